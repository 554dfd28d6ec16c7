/**
 * The circuit of a storage: after so many failures in a row of one direction its operations fail at once, but for one now and then that
 * finds out whether the disk is back. Called where operations begin and end; the clock is asked only while the circuit is open.
 */
import * as Effect from "effect/Effect"
import * as Runtime from "effect/Runtime"
import type * as Scope from "effect/Scope"
import * as DiskMetrics from "../DiskMetrics.js"
import type { Health } from "../DiskStorage.js"
import type { Failures, OpenFile } from "./ioQueue.js"
import type { ResolvedOptions } from "./options.js"

/** Watches over a file until the Scope ends, and tells how it fares. */
export const make = (
  file: OpenFile,
  { failureLimit, retryMillis }: ResolvedOptions
): Effect.Effect<Effect.Effect<Pick<Health, "read" | "write">>, never, Scope.Scope> =>
  Effect.gen(function*() {
    const clock = yield* Effect.clock
    const runtime = yield* Effect.runtime<never>()
    const { path } = file
    // Monotonic, as the wall clock is not.
    const now = () => Number(clock.unsafeCurrentTimeNanos() / 1_000_000n)

    const watch = (direction: "read" | "write", failures: Failures) => {
      let retryAt = 0
      let open = false
      const told = (log: Effect.Effect<void>) =>
        Runtime.runFork(runtime)(Effect.annotateLogs(log, { path, direction, failures: failures.inARow }))
      failures.limit = failureLimit
      failures.onLimit = () => {
        retryAt = now() + retryMillis
        if (open) return
        open = true
        DiskMetrics.degraded.unsafeModify(1, [])
        told(Effect.logWarning("a disk has failed too often in a row: its operations fail at once for now"))
      }
      const close = () => {
        if (!open) return
        open = false
        DiskMetrics.degraded.unsafeModify(-1, [])
      }
      failures.onSuccess = () => {
        if (open) told(Effect.logInfo("a disk that had failed too often works again"))
        close()
      }
      failures.toWait = (tries) => {
        const at = now()
        if (at < retryAt) return retryAt - at
        if (tries) retryAt = at + retryMillis
        return 0
      }
      return () => {
        close()
        failures.limit = Infinity
      }
    }
    const { reads, writes } = file
    const ends = [watch("read", reads), watch("write", writes)]
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        for (const end of ends) end()
      })
    )
    const healthOf = ({ inARow, limit }: Failures) => ({ failures: inARow, degraded: inARow >= limit })
    return Effect.sync(() => ({ read: healthOf(reads), write: healthOf(writes) }))
  })
