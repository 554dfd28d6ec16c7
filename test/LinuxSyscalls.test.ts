/** The real kernel's layer itself: what it loads and when, where it runs, how it goes with signals. */
import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))

/** Runs a module of its own, so that nothing that the tests have loaded counts, and gives what it printed as JSON. */
const run = (code: string): unknown => {
  const { status, stderr, stdout } = spawnSync(
    process.execPath,
    ["--import", "tsx", "--input-type=module", "-e", code],
    { cwd: root, encoding: "utf8" }
  )
  assert.strictEqual(status, 0, stderr)
  return JSON.parse(stdout)
}

const koffiIsMapped = `readFileSync("/proc/self/maps", "utf8").includes("koffi.node")`

describe("LinuxSyscalls", () => {
  it("loads no native module at import, one when the layer is built", () => {
    assert.deepStrictEqual(
      run(`
        import { readFileSync } from "node:fs"
        import * as Effect from "effect/Effect"
        const { LinuxSyscalls } = await import("./src/index.ts")
        const before = ${koffiIsMapped}
        await Effect.runPromise(Effect.scoped(Effect.provide(Effect.void, LinuxSyscalls.layer)))
        console.log(JSON.stringify([before, ${koffiIsMapped}]))
      `),
      [false, true]
    )
  })

  it.each([["darwin", "arm64"], ["win32", "x64"], ["linux", "riscv64"]])(
    "imports on %s %s and fails with a typed PlatformNotSupported",
    (platform, arch) => {
      assert.deepStrictEqual(
        run(`
          import { readFileSync } from "node:fs"
          import * as Effect from "effect/Effect"
          Object.defineProperty(process, "platform", { value: "${platform}" })
          Object.defineProperty(process, "arch", { value: "${arch}" })
          const { Linux } = await import("./src/index.ts")
          const failure = await Effect.runPromise(Effect.flip(Effect.provide(Effect.void, Linux.layer)))
          console.log(JSON.stringify([failure._tag, failure.platform, failure.arch, ${koffiIsMapped}]))
        `),
        ["PlatformNotSupported", platform, arch, false]
      )
    }
  )

  it("leaves two threads of the pool to everybody else", () => {
    // Twenty calls that cannot end (opening a FIFO to read waits for a writer), and a stat that must still come through.
    assert.deepStrictEqual(
      run(`
        import { execFileSync } from "node:child_process"
        import { mkdtempSync, openSync, rmSync } from "node:fs"
        import { stat } from "node:fs/promises"
        import { tmpdir } from "node:os"
        import { join } from "node:path"
        import * as Effect from "effect/Effect"
        import * as Fiber from "effect/Fiber"
        import { LinuxSyscalls, Syscalls } from "./src/index.ts"
        const directory = mkdtempSync(join(tmpdir(), "effect-disk-storage-gate-"))
        const fifo = join(directory, "fifo")
        execFileSync("mkfifo", [fifo])
        const program = Effect.gen(function*() {
          const kernel = yield* Syscalls.Syscalls
          const opening = yield* Effect.forEach(Array.from({ length: 20 }), () => Effect.fork(kernel.open(fifo, 0)))
          yield* Effect.sleep("50 millis")
          const directoryFound = yield* Effect.promise(() => stat(directory).then((stats) => stats.isDirectory()))
          // What waits for its turn can be interrupted; what has begun is waited for.
          const [first, second, ...waiting] = opening
          yield* Fiber.interruptAll(waiting)
          const begun = yield* Effect.forEach([first, second], (fiber) => Effect.fork(Fiber.interrupt(fiber)))
          yield* Effect.sleep("50 millis")
          const stillWaited = (yield* Effect.forEach(begun, (fiber) => Fiber.poll(fiber))).map((exit) => exit._tag)
          openSync(fifo, "r+")
          yield* Effect.forEach(begun, Fiber.join)
          return [directoryFound, waiting.length, stillWaited]
        })
        try {
          console.log(JSON.stringify(await Effect.runPromise(Effect.provide(program, LinuxSyscalls.layer))))
        } finally {
          rmSync(directory, { recursive: true })
        }
      `),
      [true, 18, ["None", "None"]]
    )
  })
})
