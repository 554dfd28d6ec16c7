/**
 * The real kernel: `Syscalls` through the C library of this process, with koffi.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { NativeModuleMissing, PlatformNotSupported } from "./DiskStorageError.js"
import { fromKernel } from "./internal/kernel.js"
import * as libc from "./internal/linux/libc.js"
import { Syscalls } from "./Syscalls.js"

/**
 * Linux on x64 or arm64; anything else fails with `PlatformNotSupported`, and `NativeModuleMissing` says that koffi is missing. It is loaded when the layer is built,
 * not when this module is imported.
 *
 * Calls that can wait for a disk run on libuv's thread pool, at most two at a time in the whole process; `fcntl` alone runs on the
 * thread that calls. Files made with `mkostemp` and not unlinked yet are unlinked when the process exits without running its
 * finalizers.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<Syscalls, PlatformNotSupported | NativeModuleMissing> = Layer.effect(
  Syscalls,
  Effect.map(libc.make, fromKernel)
)
