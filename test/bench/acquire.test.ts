/** The bench runs, and leaves nothing, also when it is stopped. What it measures is no matter here. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { spawn } from "node:child_process"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../..", import.meta.url))
const script = fileURLToPath(new URL("acquire.ts", import.meta.url))

const scratch = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "bench-test-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

/** A run of the bench, ended with the Scope. */
const bench = (directory: string, args: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(process.execPath, ["--import", "tsx", script, "--directory", directory, ...args], {
          cwd: root,
          stdio: "pipe"
        })
      ),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    )
    let out = ""
    let complaint = ""
    child.stdout.on("data", (chunk) => out += String(chunk))
    child.stderr.on("data", (chunk) => complaint += String(chunk))
    const ended = new Promise<number | null>((resolve) => child.on("close", resolve))
    return {
      child,
      end: Effect.map(Effect.promise(() => ended), (code) => ({ code, out, complaint }))
    }
  })

const small = ["--size-gib", "0.001", "--fill-gib", "0.02", "--fill-rounds", "1", "--rounds", "2"]
const quick = [...small, "--round-seconds", "0.05", "--warm-up-seconds", "0.05", "--json"]

const Verdict = Schema.Literal("within", "over", "not decidable")
const Ratio = Schema.Struct({ best: Schema.Positive, median: Schema.Positive })
const Delay = Schema.Struct({ max: Schema.Positive, p99: Schema.Positive })
const Result = Schema.parseJson(Schema.Struct({
  acquired: Schema.Struct({
    measured: Schema.Array(Schema.Struct({ passes: Schema.Int, best: Schema.Positive, median: Schema.Positive })),
    times: Schema.Struct({ calls: Ratio, async: Ratio }),
    control: Schema.Struct({ calls: Ratio, async: Ratio }),
    verdict: Verdict
  }),
  filled: Schema.Struct({
    rounds: Schema.Array(Schema.Struct({ storage: Delay, idle: Delay, otherIdle: Delay })),
    verdict: Verdict
  })
}))

describe("bench:acquire", () => {
  it.live("prints its result and leaves nothing", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      const { end } = yield* bench(directory, quick)
      const { code, complaint, out } = yield* end
      assert.strictEqual(code, 0, complaint)
      const { acquired, filled } = Schema.decodeUnknownSync(Result)(out)
      assert.lengthOf(acquired.measured, 5)
      assert.lengthOf(filled.rounds, 1)
      assert.deepStrictEqual(readdirSync(directory), [])
    })))

  it.live(
    "stopped at any moment, leaves nothing",
    () =>
      Effect.forEach([0, 1, 2], (later) =>
        Effect.scoped(Effect.gen(function*() {
          const directory = yield* scratch
          const { child, end } = yield* bench(directory, [
            ...small,
            "--round-seconds",
            "1",
            "--warm-up-seconds",
            "0.05"
          ])
          while (readdirSync(directory).length === 0) yield* Effect.sleep("20 millis")
          yield* Effect.sleep(later * 400)
          child.kill("SIGINT")
          const { code, complaint } = yield* end
          assert.strictEqual(code, 130, complaint)
          assert.deepStrictEqual(readdirSync(directory), [])
        }))),
    120_000
  )

  it.live("says what is wrong with its options and its directory", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      const tooLarge = yield* Effect.flatMap(bench(directory, ["--size-gib", "1e9"]), ({ end }) => end)
      assert.strictEqual(tooLarge.code, 1)
      assert.match(tooLarge.complaint, /bytes free, and this needs/)
      const wrong = yield* Effect.flatMap(bench(directory, ["--rounds", "none"]), ({ end }) => end)
      assert.strictEqual(wrong.code, 1)
      assert.match(wrong.complaint, /--rounds none is no number above 0/)
      assert.deepStrictEqual(readdirSync(directory), [])
    })))
})
