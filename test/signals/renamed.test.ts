/** Programs whose cache directory is renamed while they hold a storage: nothing of it is left, however they end. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { exitCode, startChild, testTimeout } from "./processes.js"

describe("a directory that is renamed", () => {
  for (
    const [way, code] of [["exit", 3], ["throw", 1], ["reject", 1], ["terminate", 0]] as const
  ) {
    it.scopedLive(
      `is left empty: ${way === "terminate" ? "a thread that is terminated" : way}`,
      () =>
        Effect.gen(function*() {
          const running = yield* startChild("renamed", ["none", "directory", way])
          assert.deepStrictEqual(yield* running.ended, { code, signal: null }, running.output())
          assert.deepStrictEqual(readdirSync(running.directory), ["moved"], running.output())
          assert.deepStrictEqual(readdirSync(join(running.directory, "moved")), [], running.output())
          if (way === "terminate") assert.match(running.output(), /^open \[\]$/m)
        }),
      testTimeout
    )
  }

  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    it.scopedLive(`is left empty: ${signal}`, () =>
      Effect.gen(function*() {
        const running = yield* startChild("renamed", ["ProcessRuntime", "directory", "wait"])
        assert.isTrue(yield* running.printed(/^held$/m), running.output())
        yield* running.signal(signal, "leader")
        assert.deepStrictEqual(yield* running.ended, { code: exitCode(signal), signal: null }, running.output())
        assert.deepStrictEqual(readdirSync(join(running.directory, "moved")), [], running.output())
      }), testTimeout)
  }
})

describe("a name that another file has got", () => {
  for (const [way, code] of [["exit", 3], ["throw", 1]] as const) {
    it.scopedLive(`is that file's after ${way}`, () =>
      Effect.gen(function*() {
        const running = yield* startChild("renamed", ["none", "file", way])
        assert.deepStrictEqual(yield* running.ended, { code, signal: null }, running.output())
        const cache = join(running.directory, "cache")
        const [name = "", ...others] = readdirSync(cache)
        assert.deepStrictEqual(others, [])
        assert.strictEqual(readFileSync(join(cache, name), "utf8"), "somebody else's")
      }), testTimeout)
  }
})
