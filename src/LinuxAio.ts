/**
 * The engine over Linux native AIO (`io_submit(2)`), which most containers allow where they refuse io_uring. AIO is asynchronous only
 * with O_DIRECT; buffered files, and `sync`, go through `node:fs`.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Layer from "effect/Layer"
import type { EngineUnavailable, InvalidOption, NativeModuleMissing, PlatformNotSupported } from "./DiskStorageError.js"
import * as internal from "./internal/linuxAio.js"
import { IoEngine } from "./IoEngine.js"

/**
 * @since 0.1.0
 * @category models
 */
export interface LinuxAioOptions {
  /** The most pieces (at most 1 MiB each) in flight, which count against `/proc/sys/fs/aio-max-nr`. Default 128. */
  readonly depth?: number | undefined
  /** The most bytes in flight. Default 64 MiB. */
  readonly maxBytesInFlight?: number | undefined
  /** The most bytes handed to the kernel in one call, which takes it time on the event loop. Default 4 MiB. */
  readonly maxBytesPerSubmission?: number | undefined
  /** After this time without an answer an operation fails with `IoStalled`. Off by default. */
  readonly stallTimeout?: Duration.DurationInput | undefined
}

/**
 * Fails with `EngineUnavailable` where the kernel or a container refuses it, or where other processes have used up
 * `/proc/sys/fs/aio-max-nr`.
 *
 * `worker.terminate()` leaves the context until the process ends, and its slots count towards `aio-max-nr`.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (
  options: LinuxAioOptions = {}
): Layer.Layer<IoEngine, EngineUnavailable | PlatformNotSupported | NativeModuleMissing | InvalidOption> =>
  Layer.scoped(IoEngine, internal.make(options))
