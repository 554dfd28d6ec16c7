/** A file that is memory alone, to try engines on: no directory is touched. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { NativeModuleMissing, PlatformNotSupported } from "../../DiskStorageError.js"
import { native } from "./native.js"

// uapi/linux/memfd.h
const MFD_CLOEXEC = 1

/** The descriptor, or −1 where there is no such file to be had; closed with the scope. */
export const memoryFile: Effect.Effect<number, PlatformNotSupported | NativeModuleMissing, Scope.Scope> = Effect.gen(
  function*() {
    const { declare } = yield* native
    const memfdCreate = yield* declare("memfd_create", "int", ["str", "uint32_t"])
    const close = yield* declare("close", "int", ["int"])
    return yield* Effect.acquireRelease(
      Effect.sync(() => memfdCreate("effect-disk-storage", MFD_CLOEXEC)),
      // No disk is behind it, so that closing it waits for nothing.
      (fd) => Effect.sync(() => fd >= 0 && close(fd))
    )
  }
)
