/**
 * The engine over io_uring, from TypeScript alone: one ring per layer, for the thread that built it.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Layer from "effect/Layer"
import type { EngineUnavailable, InvalidOption, NativeModuleMissing, PlatformNotSupported } from "./DiskStorageError.js"
import * as internal from "./internal/ioUring.js"
import { IoEngine } from "./IoEngine.js"

/**
 * @since 0.1.0
 * @category models
 */
export interface IoUringOptions {
  /** Entries of the submission ring, a power of two from 1 to 32768. Default 128. More may be in flight. */
  readonly entries?: number | undefined
  /** Entries of the completion ring. Default: `depth`. When fewer, the kernel keeps what does not fit. */
  readonly completionEntries?: number | undefined
  /** The most pieces (at most 1 MiB each) in flight; what comes above waits its turn. Default 256. */
  readonly depth?: number | undefined
  /** The most bytes in flight. Default 64 MiB. */
  readonly maxBytesInFlight?: number | undefined
  /** The most bytes handed to the kernel in one call, which takes it time on the event loop. Default 4 MiB. */
  readonly maxBytesPerSubmission?: number | undefined
  /** Files that are registered with the ring; those above work too, a little slower. Default 64. */
  readonly registeredFiles?: number | undefined
  /** Whether the memory of pools is registered, as RLIMIT_MEMLOCK allows. Default true. */
  readonly registerBuffers?: boolean | undefined
  /** After this time without an answer an operation fails with `IoStalled`. Off by default: a slow disk is no broken one. */
  readonly stallTimeout?: Duration.DurationInput | undefined
}

/**
 * Fails with `EngineUnavailable` where the kernel or a container refuses io_uring.
 *
 * `worker.terminate()` leaves 16 KiB of mapped memory of each ring until the process ends. In a worker nothing is registered with the ring, and
 * completions are not deferred, since a ring that stays mapped would keep files and their space.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (
  options: IoUringOptions = {}
): Layer.Layer<IoEngine, EngineUnavailable | PlatformNotSupported | NativeModuleMissing | InvalidOption> =>
  Layer.scoped(IoEngine, internal.make(options))
