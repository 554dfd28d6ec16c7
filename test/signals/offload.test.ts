/** `examples/offload-a-model.ts`, stopped by Ctrl-C at any moment. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { existsSync, readdirSync } from "node:fs"
import { join } from "node:path"
import { assertNothingLeft, exitCode, start, temporaryDirectory, testTimeout } from "./processes.js"

describe("offload-a-model", () => {
  for (
    const [when, args, reached] of [
      ["in the first replay", ["--conversations", "3000", "--requests", "1000000"], /^3000 generated conversations/m],
      ["in a later replay", ["--capacities", "8,48,96,192,384,768,1536"], /^capacity {4}8 blocks/m]
    ] as const
  ) {
    it.live(`Ctrl-C ${when} releases the storage, and draws nothing`, () =>
      Effect.scoped(Effect.gen(function*() {
        const plot = join(yield* temporaryDirectory, "hit-rate.svg")
        const program = ["--import", "tsx", "examples/offload-a-model.ts"]
        const running = yield* start(process.execPath, [...program, ...args, "--plot", plot])
        assert.isTrue(yield* running.printed(reached), running.output())
        // The replay of whose storage this is the file is about to begin, or under way.
        while (readdirSync(running.directory).length === 0) yield* Effect.sleep("2 millis")
        yield* running.signal("SIGINT", "group")
        assert.deepStrictEqual(
          yield* running.ended,
          { code: exitCode("SIGINT"), signal: null },
          running.output()
        )
        assert.include(running.output(), "stopped, and released")
        assert.notMatch(running.output(), /^hit rate by capacity/m)
        assert.isFalse(existsSync(plot))
        yield* assertNothingLeft(running)
      })), testTimeout)
  }
})
