/**
 * The default wiring on Linux.
 *
 * @since 0.1.0
 */
import type * as ConfigError from "effect/ConfigError"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as DiskStorageConfig from "./DiskStorageConfig.js"
import type { EngineUnavailable, InvalidOption, NativeModuleMissing, PlatformNotSupported } from "./DiskStorageError.js"
import { choose } from "./internal/chooseEngine.js"
import { IoEngine } from "./IoEngine.js"
import type { IoUringOptions } from "./IoUring.js"
import type { LinuxAioOptions } from "./LinuxAio.js"
import * as LinuxSyscalls from "./LinuxSyscalls.js"
import type { NodeIoOptions } from "./NodeIo.js"
import type { Syscalls } from "./Syscalls.js"

/**
 * @since 0.1.0
 * @category models
 */
export interface LinuxOptions {
  /** `auto` takes the best engine that works. Default: what `DISK_STORAGE_IO_ENGINE` says, which is `auto` when unset. */
  readonly engine?: "auto" | "io_uring" | "aio" | "node" | undefined
  /** For whichever engine it is. Off by default. */
  readonly stallTimeout?: Duration.DurationInput | undefined
  readonly ioUring?: IoUringOptions | undefined
  readonly aio?: LinuxAioOptions | undefined
  readonly node?: NodeIoOptions | undefined
}

type LinuxError =
  | PlatformNotSupported
  | NativeModuleMissing
  | EngineUnavailable
  | InvalidOption
  | ConfigError.ConfigError

/**
 * `layer` with options.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerWith = (options: LinuxOptions): Layer.Layer<Syscalls | IoEngine, LinuxError> =>
  Layer.provideMerge(
    Layer.scoped(
      IoEngine,
      Effect.flatMap(
        options.engine === undefined ? DiskStorageConfig.ioEngine : Effect.succeed(options.engine),
        (asked) => choose(asked, options)
      )
    ),
    LinuxSyscalls.layer
  )

/**
 * What a storage needs: the real kernel, and the best engine that works here, found by a real write and read: io_uring, else Linux
 * AIO, else `node:fs`. Which and why is logged at debug, as a warning when it is the last. An engine that is asked for by
 * `DISK_STORAGE_IO_ENGINE` and refused fails with `EngineUnavailable`.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<Syscalls | IoEngine, LinuxError> = layerWith({})
