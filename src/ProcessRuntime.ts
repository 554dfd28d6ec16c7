/**
 * The edge of a program that holds storages: runs its main effect and turns signals into a release.
 *
 * @since 0.1.0
 */
import { makeRunMain } from "@effect/platform/Runtime"
import type { RunMain } from "@effect/platform/Runtime"
import * as Exit from "effect/Exit"
import { constVoid } from "effect/Function"
import { unlinkAll } from "./internal/linkedFiles.js"

/** By number (`signal(7)`), for the exit code 128 + number. */
const signals = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const

type Signal = keyof typeof signals

/** Signals that follow the first one this closely (milliseconds) are the same press, delivered again. */
const samePressMillis = 1000

/**
 * Runs `effect` as the program, like `NodeRuntime.runMain`, and lets a slow release finish:
 *
 * - SIGINT, SIGTERM and SIGHUP interrupt `effect`, whose scopes release their storages; then the process exits with
 *   128 + the signal's number. The handlers stay installed until then: a runner that takes its handlers away with the first signal
 *   is killed by the second, in the middle of the release.
 * - `npm start` delivers Ctrl-C twice: the terminal signals the whole group, and npm forwards what it got. What comes within a
 *   second of the first signal is therefore ignored.
 * - A signal after that second means it: files that are still linked are unlinked at once, synchronously, and the process dies by
 *   that signal.
 * - After SIGHUP the terminal is gone, and errors of writing to it are ignored.
 *
 * Whatever runs a program, with this helper or without:
 *
 * - An uncaught exception, an unhandled rejection and `process.exit` run no finalizer. Files are unlinked at 'exit', synchronously, also
 *   those that another thread is just creating, and the kernel closes what is open.
 * - A worker that ends, by `worker.terminate()` too, leaves neither file nor descriptor in the process.
 * - What kills a process leaves a file that is still linked, until the next start in that directory sweeps it
 *   (`DiskStorage.sweep`): SIGKILL, and every other signal that nobody listens to.
 *
 * Without this helper nobody listens to SIGHUP, which is also what a terminal that closes sends. To SIGINT and SIGTERM
 * `NodeRuntime.runMain` listens once: the second one kills, such as the one that npm sends after Ctrl-C. A listener of one's own has to
 * interrupt the program, or call `process.exit`.
 *
 * Start programs with `exec node …` in an npm script: the shell that npm starts otherwise dies by SIGTERM and leaves node running. An npm
 * that is killed by SIGKILL leaves it running as well: it holds its storage until it is signalled itself.
 *
 * @since 0.1.0
 * @category runtime
 */
export const runMain: RunMain = makeRunMain(({ fiber, teardown }) => {
  // Nothing else need keep the process alive while the main fibre waits.
  const keepAlive = setInterval(constVoid, 2 ** 31 - 1)
  let first: Signal | undefined
  let meansIt = false

  const onSignal = (signal: Signal) => {
    if (first === undefined) {
      first = signal
      // By the turns of the event loop, not by the clock: what came while a release blocked the loop is seen before the immediate.
      setTimeout(() =>
        setImmediate(() => {
          meansIt = true
        }), samePressMillis).unref()
      if (signal === "SIGHUP") [process.stdout, process.stderr].forEach((stream) => stream.on("error", constVoid))
      fiber.unsafeInterruptAsFork(fiber.id())
    } else if (meansIt) {
      unlinkAll()
      // A listener of somebody else's would keep the signal from killing.
      process.removeAllListeners(signal)
      process.kill(process.pid, signal)
      // Only the first process of a container comes here: the kernel spares it.
      process.exit(128 + signals[signal])
    }
  }
  const handlers = [
    ["SIGHUP", () => onSignal("SIGHUP")],
    ["SIGINT", () => onSignal("SIGINT")],
    ["SIGTERM", () => onSignal("SIGTERM")]
  ] as const
  const stopListening = () => handlers.forEach(([signal, handler]) => process.removeListener(signal, handler))
  handlers.forEach(([signal, handler]) => process.on(signal, handler))

  fiber.addObserver((exit) => {
    clearInterval(keepAlive)
    teardown(exit, (code) => {
      if (first !== undefined && Exit.isInterrupted(exit)) process.exit(128 + signals[first])
      else if (first !== undefined || code !== 0) process.exit(code)
      else stopListening()
    })
  })
})
