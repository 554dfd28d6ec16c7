/**
 * The default wiring on Linux.
 *
 * @since 0.1.0
 */
import type * as ConfigError from "effect/ConfigError"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as DiskStorageConfig from "./DiskStorageConfig.js"
import type { PlatformNotSupported } from "./DiskStorageError.js"
import * as IoEngine from "./IoEngine.js"
import * as LinuxSyscalls from "./LinuxSyscalls.js"
import type { Syscalls } from "./Syscalls.js"

const engine = Layer.unwrapEffect(Effect.gen(function*() {
  const asked = yield* DiskStorageConfig.ioEngine
  if (asked !== "auto") {
    yield* Effect.logWarning(`DISK_STORAGE_IO_ENGINE=${asked}: this version has one engine, pread/pwrite, and uses it`)
  }
  return IoEngine.layerSyscalls
}))

/**
 * What a storage needs: the real kernel and the best engine that works here. `DISK_STORAGE_IO_ENGINE` asks for a certain engine;
 * this version has one, `IoEngine.layerSyscalls`.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  Syscalls | IoEngine.IoEngine,
  PlatformNotSupported | ConfigError.ConfigError
> = Layer.provideMerge(engine, LinuxSyscalls.layer)
