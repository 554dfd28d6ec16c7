/** A kernel and an engine, real or simulated, with faults put between them and who uses them. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import type { OperationError } from "../../src/DiskStorageError.js"
import { IoFailed } from "../../src/DiskStorageError.js"
import * as IoEngine from "../../src/IoEngine.js"
import type { ErrnoCode, SyscallName } from "../../src/Syscalls.js"
import { errnos, SyscallError, Syscalls } from "../../src/Syscalls.js"
import type { Decisions, Tally } from "./world.js"

/** Faults at a rate: the share of the calls that meet one. */
export interface Faults {
  readonly rate: number
  readonly decisions: Decisions
  readonly tally: Tally
  /** Whether calls and operations fail, too, and are not only late. */
  readonly fails: boolean
}

const strikes = ({ decisions, rate, tally }: Faults): boolean => {
  tally.calls += 1
  if (!decisions.chance(rate)) return false
  tally.faults += 1
  return true
}

const failure = (syscall: SyscallName, code: ErrnoCode) => new SyscallError({ syscall, errno: errnos[code], code })

const lateMillis = (decisions: Decisions) => decisions.between(1, 20)

type Call<Args extends ReadonlyArray<unknown>, A> = (...args: Args) => Effect.Effect<A, SyscallError>

/**
 * What calls fail with. Not `unlink` and `close`: a name that cannot be removed stays, and the soak counts what is left. `fcntlSetFlags`
 * and `fallocate` are refused as by filesystems that do not have them.
 */
const kernel = (faults: Faults, inner: Syscalls): Syscalls => {
  const { decisions } = faults
  const met = <Args extends ReadonlyArray<unknown>, A>(
    syscall: SyscallName,
    codes: readonly [ErrnoCode, ...ReadonlyArray<ErrnoCode>],
    call: Call<Args, A>
  ): Call<Args, A> =>
  (...args) =>
    Effect.suspend(() => {
      if (!strikes(faults)) return call(...args)
      return faults.fails && decisions.chance(0.75)
        ? Effect.fail(failure(syscall, decisions.of(codes)))
        : Effect.delay(call(...args), lateMillis(decisions))
    })
  /** Moves fewer bytes, too. */
  const transfer = (syscall: "pread" | "pwrite", call: Syscalls["pread"]): Syscalls["pread"] => {
    const failing = met(syscall, syscall === "pread" ? ["EIO"] : ["EIO", "ENOSPC"], call)
    return (fd, bytes, offset) =>
      Effect.suspend(() => {
        if (bytes.byteLength <= 4096 || !strikes(faults)) return failing(fd, bytes, offset)
        const pages = decisions.between(1, Math.floor((bytes.byteLength - 1) / 4096))
        return call(fd, bytes.subarray(0, pages * 4096), offset)
      })
  }
  return {
    ...inner,
    mkostemp: met("mkostemp", ["EIO", "ENOSPC", "EMFILE", "EACCES"], inner.mkostemp),
    open: met("open", ["EIO", "EMFILE"], inner.open),
    fcntlSetFlags: met("fcntlSetFlags", ["EINVAL"], inner.fcntlSetFlags),
    fallocate: met("fallocate", ["EIO", "ENOSPC", "EOPNOTSUPP"], inner.fallocate),
    ftruncate: met("ftruncate", ["EIO", "ENOSPC"], inner.ftruncate),
    pread: transfer("pread", inner.pread),
    pwrite: transfer("pwrite", inner.pwrite),
    fdatasync: met("fdatasync", ["EIO", "ENOSPC"], inner.fdatasync),
    statx: met("statx", ["EIO", "ENOMEM"], inner.statx),
    fstatfs: met("fstatfs", ["EIO", "ENOMEM"], inner.fstatfs),
    rename: met("rename", ["EIO", "ENOSPC"], inner.rename),
    fiemap: met("fiemap", ["EIO", "EOPNOTSUPP"], inner.fiemap)
  }
}

const results = (completions: ReadonlyArray<IoEngine.Completion>): IoEngine.Results => ({
  length: completions.length,
  get: (index) => {
    const completion = completions[index]
    if (completion === undefined) throw new RangeError(`there is no operation ${index}`)
    return completion.error === undefined ? Either.right(completion.bytes) : Either.left(completion.error)
  },
  failures: completions.flatMap(({ error }, index) => error === undefined ? [] : [{ index, error }])
})

/** An operation is refused, done and told as failed, or late. */
const engine = (faults: Faults, inner: IoEngine.IoEngine): IoEngine.IoEngine => {
  const { decisions } = faults
  type Fault = { readonly kind: "refused" | "denied"; readonly code: ErrnoCode } | { readonly kind: "late" }
  const next = (kind: IoEngine.Operation["kind"]): Fault | undefined => {
    if (!strikes(faults)) return undefined
    if (!faults.fails || decisions.chance(1 / 3)) return { kind: "late" }
    const code: ErrnoCode = kind === "read" || decisions.chance(0.5) ? "EIO" : "ENOSPC"
    return { kind: decisions.chance(0.5) ? "refused" : "denied", code }
  }
  const failed = (operation: IoEngine.Operation, code: ErrnoCode): OperationError => {
    const syscall = operation.kind === "read" ? "pread" : operation.kind === "write" ? "pwrite" : "fdatasync"
    const [offset, length] = operation.kind === "sync" ? [0, 0] : [operation.offset, operation.buffer.byteLength]
    return new IoFailed({ operation: operation.kind, offset, length, bytesDone: 0, cause: failure(syscall, code) })
  }
  const submit = (
    operation: IoEngine.Operation,
    fault: Fault | undefined,
    done: (completion: IoEngine.Completion) => void
  ): void => {
    if (fault === undefined) return inner.unsafeSubmit(operation, done)
    if (fault.kind === "late") {
      return void setTimeout(() => inner.unsafeSubmit(operation, done), lateMillis(decisions))
    }
    const error = failed(operation, fault.code)
    if (fault.kind === "refused") return void setImmediate(() => done({ operation, bytes: 0, error }))
    inner.unsafeSubmit(
      operation,
      (completion) => done({ ...completion, operation, bytes: 0, error: completion.error ?? error })
    )
  }
  const single = (
    operation: IoEngine.Operation,
    perform: Effect.Effect<void, OperationError>
  ): Effect.Effect<void, OperationError> =>
    Effect.suspend(() => {
      const fault = next(operation.kind)
      if (fault === undefined) return perform
      if (fault.kind === "late") return Effect.delay(perform, lateMillis(decisions))
      const error = Effect.fail(failed(operation, fault.code))
      return fault.kind === "refused" ? error : Effect.zipRight(perform, error)
    })
  return {
    ...inner,
    read: (file, buffer, offset) => single({ kind: "read", file, buffer, offset }, inner.read(file, buffer, offset)),
    write: (file, buffer, offset) => single({ kind: "write", file, buffer, offset }, inner.write(file, buffer, offset)),
    sync: (file) => single({ kind: "sync", file }, inner.sync(file)),
    batch: (operations) =>
      Effect.suspend(() => {
        const drawn = operations.map(({ kind }) => next(kind))
        if (drawn.every((fault) => fault === undefined)) return inner.batch(operations)
        // Without a way to take it back: what is not submitted yet is waited for, too.
        return Effect.map(
          Effect.uninterruptible(Effect.forEach(operations, (operation, index) =>
            Effect.async<IoEngine.Completion>((resume) =>
              submit(operation, drawn[index], (completion) =>
                resume(Effect.succeed(completion)))
            ), { concurrency: "unbounded" })),
          results
        )
      }),
    unsafeSubmit: (operation, done) => submit(operation, next(operation.kind), done)
  }
}

/** `Syscalls` with faults, over those of the context: for an engine that is made over them. */
export const layerSyscalls = (faults: Faults): Layer.Layer<Syscalls, never, Syscalls> =>
  Layer.effect(Syscalls, Effect.map(Syscalls, (syscalls) => kernel(faults, syscalls)))

/** Both with faults, over those of the context. */
export const layer = (
  faults: Faults
): Layer.Layer<Syscalls | IoEngine.IoEngine, never, Syscalls | IoEngine.IoEngine> =>
  Layer.effectContext(
    Effect.map(Effect.zip(Syscalls, IoEngine.IoEngine), ([syscalls, one]) =>
      Context.make(Syscalls, kernel(faults, syscalls)).pipe(
        Context.add(IoEngine.IoEngine, engine(faults, one))
      ))
  )
