/** A disk that does not answer, made with a frozen filesystem: operations and releases end, and nothing is left once it answers. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { spawn } from "node:child_process"
import { mkdirSync, readdirSync } from "node:fs"
import { createInterface } from "node:readline"
import { program } from "../support/programs.js"
import { environment } from "./mounts.js"
import { assertGivenBack, describeReal, freshPath, Mounted, openBelow, settledFreeBytes } from "./real.js"

/**
 * Freezes a filesystem until the effect that it answers with has run, or the scope has ended, or this process has, however it did: the
 * shell has a session of its own, and thaws when its standard input ends. It holds the root open, so that nobody unmounts it before.
 */
const frozen = (directory: string) =>
  Effect.acquireRelease(
    Effect.async<{ readonly thaw: Effect.Effect<void> }>((resume) => {
      const script = `trap "" INT TERM HUP
        exec 3< "$DIRECTORY"
        fsfreeze --freeze /proc/self/fd/3 || exit
        echo frozen
        cat > /dev/null
        fsfreeze --unfreeze /proc/self/fd/3`
      const child = spawn("sh", ["-c", script], {
        detached: true,
        stdio: ["pipe", "pipe", "inherit"],
        env: { ...environment, DIRECTORY: directory }
      })
      const ended = new Promise<number | null>((resolve) => child.on("close", resolve))
      const thaw = Effect.suspend(() => {
        child.stdin.end()
        return Effect.map(Effect.promise(() => ended), (code) => assert.strictEqual(code, 0, "it was not thawed"))
      })
      void ended.then((code) => resume(Effect.dieMessage(`fsfreeze ended with ${code}`)))
      child.stdout.once("data", () => resume(Effect.succeed({ thaw })))
    }),
    ({ thaw }) => thaw
  )

/** A process that is told what to do line by line. It ends by itself: no signal would end it while its disk hangs. */
const startChild = (task: object) =>
  Effect.gen(function*() {
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(process.execPath, [program(new URL("children/hanging.ts", import.meta.url)), JSON.stringify(task)], {
          stdio: ["pipe", "pipe", "inherit"],
          env: environment
        })
      ),
      (child) => Effect.sync(() => void child.kill("SIGKILL"))
    )
    const ended = new Promise<number | string | null>((resolve) =>
      child.on("exit", (code, signal) => resolve(code ?? signal))
    )
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    const answer = Effect.map(Effect.promise(() => lines.next()), (line): Record<string, unknown> => {
      if (line.done === true) return assert.fail("the process ended")
      return JSON.parse(line.value)
    })
    return {
      pid: child.pid ?? 0,
      answer,
      go: Effect.zipRight(Effect.sync(() => child.stdin.write("\n")), answer),
      last: Effect.sync(() => child.stdin.write("\n")),
      ended: Effect.promise(() => ended)
    }
  })

for (const kind of ["ext4", "xfs"] as const) {
  describeReal(kind, { name: "frozen", tools: ["fsfreeze"] }, (it) => {
    // Submitting to a frozen filesystem blocks with AIO: there the event loop waits.
    for (const engine of ["io_uring", "node"] as const) {
      for (const fails of ["stallTimeout", "releaseTimeout"] as const) {
        it.scoped(`${engine}, ${fails}: operations and the release end, then the process, and nothing is left`, () =>
          Effect.gen(function*() {
            const mount = yield* Mounted
            const directory = yield* freshPath
            mkdirSync(directory)
            const before = yield* settledFreeBytes(directory)
            const child = yield* startChild({ directory, engine, fails })
            const { fd, wrote } = yield* child.answer
            assert.strictEqual(wrote, "done")
            const { thaw } = yield* frozen(mount.directory)

            const stalled = yield* child.go
            if (fails === "stallTimeout") {
              // The buffer of the first is the kernel's; the third is not begun.
              assert.deepStrictEqual(stalled["wrote"], ["IoStalled", "BufferBusy", "IoStalled", "StorageDegraded"])
            }
            const { buffer, failures } = yield* child.go
            // Nothing of a ring is where the number of the descriptor could be another's.
            const drained = engine === "io_uring" && fails === "stallTimeout"
            const timeouts = drained ? ["unlink"] : ["drain", "unlink"]
            assert.deepStrictEqual(
              failures,
              timeouts.map((step) => ({ step, fd, timeoutMillis: 1500 }))
            )
            assert.strictEqual(buffer, "StorageClosed")
            assert.deepStrictEqual((yield* child.answer)["ended"], true)
            assert.isNotEmpty(openBelow(directory, child.pid))

            yield* thaw
            assert.deepStrictEqual((yield* child.go)["open"], [])
            yield* assertGivenBack(directory, before)
            yield* child.last
            assert.strictEqual(yield* child.ended, 0)
            assert.deepStrictEqual(readdirSync(directory), [])
          }))
      }
    }
  })
}
