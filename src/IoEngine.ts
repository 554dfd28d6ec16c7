/**
 * How bytes move between memory and a file descriptor: the abstract engine, and the one that every kernel can run.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { IoFailed } from "./DiskStorageError.js"
import type { SyscallError } from "./Syscalls.js"
import { Syscalls } from "./Syscalls.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = Symbol.for("effect-disk-storage/IoEngine")

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * An operation transfers the whole buffer or fails with `IoFailed`: short transfers are continued, from the last multiple of
 * `alignment` bytes, since direct I/O takes up nowhere else. Offsets are bytes. The buffer is the kernel's until the effect
 * ends, also when it is interrupted: what is queued can be taken back, what is submitted is waited for.
 *
 * An engine checks neither bounds nor alignment: `DiskStorage` does.
 *
 * @since 0.1.0
 * @category models
 */
export interface IoEngine {
  readonly [TypeId]: TypeId
  readonly name: string
  readonly read: (fd: number, into: Uint8Array, offset: number, alignment: number) => Effect.Effect<void, IoFailed>
  readonly write: (fd: number, from: Uint8Array, offset: number, alignment: number) => Effect.Effect<void, IoFailed>
  /** `fdatasync(2)` */
  readonly sync: (fd: number) => Effect.Effect<void, IoFailed>
}

/**
 * @since 0.1.0
 * @category tags
 */
export const IoEngine: Context.Tag<IoEngine, IoEngine> = Context.GenericTag<IoEngine>("effect-disk-storage/IoEngine")

/** Bound on transfers of one operation in a row that end before the next multiple of the alignment. */
const maxStalledTransfers = 16

const make = Effect.map(Syscalls, (syscalls): IoEngine => {
  const transfer = (
    operation: "read" | "write",
    call: (fd: number, bytes: Uint8Array, offset: number) => Effect.Effect<number, SyscallError>,
    fd: number,
    bytes: Uint8Array,
    offset: number,
    alignment: number
  ): Effect.Effect<void, IoFailed> => {
    const length = bytes.byteLength
    const failed = (bytesDone: number, cause?: SyscallError) =>
      new IoFailed({ operation, offset, length, bytesDone, cause })
    const from = (done: number, stalled: number): Effect.Effect<void, IoFailed> =>
      done === length ? Effect.void : Effect.matchEffect(
        call(fd, done === 0 ? bytes : bytes.subarray(done), offset + done),
        {
          onFailure: (cause) => Effect.fail(failed(done, cause)),
          onSuccess: (transferred) => {
            const reached = done + transferred
            const next = reached === length ? length : reached - reached % alignment
            if (transferred === 0 || (next === done && stalled === maxStalledTransfers)) {
              return Effect.fail(failed(reached))
            }
            return from(next, next === done ? stalled + 1 : 0)
          }
        }
      )
    return from(0, 0)
  }
  return {
    [TypeId]: TypeId,
    name: "pread/pwrite",
    read: (fd, into, offset, alignment) => transfer("read", syscalls.pread, fd, into, offset, alignment),
    write: (fd, from, offset, alignment) => transfer("write", syscalls.pwrite, fd, from, offset, alignment),
    sync: (fd) =>
      Effect.mapError(
        syscalls.fdatasync(fd),
        (cause) => new IoFailed({ operation: "sync", offset: 0, length: 0, bytesDone: 0, cause })
      )
  }
})

/**
 * An engine over `pread` and `pwrite` of whatever `Syscalls` there is. On the real kernel each operation is one call on
 * another thread, two at a time.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerSyscalls: Layer.Layer<IoEngine, never, Syscalls> = Layer.effect(IoEngine, make)
