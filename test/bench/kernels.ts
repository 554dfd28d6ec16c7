/** The real kernel with something done before its calls: a failure, an interruption, nothing. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as IoEngine from "../../src/IoEngine.js"
import * as LinuxSyscalls from "../../src/LinuxSyscalls.js"
import { errnos, SyscallError, Syscalls } from "../../src/Syscalls.js"
import type { ErrnoCode } from "../../src/Syscalls.js"

/** The calls of an acquisition of which one can be met, in their order. */
export const steps = ["mkostemp", "fstatfs", "fcntlSetFlags", "statx", "fallocate", "pwrite", "fdatasync"] as const

export type Step = typeof steps[number]

export const refuse = (syscall: Step, code: ErrnoCode): Effect.Effect<never, SyscallError> =>
  Effect.suspend(() => Effect.fail(new SyscallError({ syscall, errno: errnos[code], code })))

/** The real kernel and the engine over it, with `before` run ahead of each call of `steps`; when it fails the call is not made. */
export const layer = (before: (step: Step) => Effect.Effect<void, SyscallError>) =>
  Layer.provideMerge(
    IoEngine.layerSyscalls,
    Layer.effect(
      Syscalls,
      Effect.map(Syscalls, (kernel): Syscalls => {
        const met = <Args extends ReadonlyArray<unknown>, A>(
          step: Step,
          call: (...args: Args) => Effect.Effect<A, SyscallError>
        ) =>
        (...args: Args) => Effect.zipRight(Effect.suspend(() => before(step)), call(...args))
        return {
          ...kernel,
          mkostemp: met("mkostemp", kernel.mkostemp),
          fstatfs: met("fstatfs", kernel.fstatfs),
          fcntlSetFlags: met("fcntlSetFlags", kernel.fcntlSetFlags),
          statx: met("statx", kernel.statx),
          fallocate: met("fallocate", kernel.fallocate),
          pwrite: met("pwrite", kernel.pwrite),
          fdatasync: met("fdatasync", kernel.fdatasync)
        }
      })
    ).pipe(Layer.provide(LinuxSyscalls.layer))
  )

/** The real kernel as if its filesystems had no fallocate. */
export const withoutFallocate = layer((step) => step === "fallocate" ? refuse("fallocate", "EOPNOTSUPP") : Effect.void)
