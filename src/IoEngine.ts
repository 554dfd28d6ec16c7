/**
 * How bytes move between memory and a file descriptor: the abstract engine, and the one that every kernel can run.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { AlignedBuffer } from "./AlignedBuffer.js"
import type { OperationError } from "./DiskStorageError.js"
import * as ioQueue from "./internal/ioQueue.js"
import * as internal from "./internal/syscallsEngine.js"
import type { Syscalls } from "./Syscalls.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: typeof ioQueue.TypeId = ioQueue.TypeId

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * What an engine is told about a file.
 *
 * @since 0.1.0
 * @category models
 */
export interface FileOptions {
  /** For messages. */
  readonly path: string
  /**
   * Whether I/O on it bypasses the page cache and meets allocated blocks. The kernel would do anything else while it is being submitted,
   * with AIO: that engine does it in another way then.
   */
  readonly direct: boolean
  /** Bytes: a short transfer is continued from the last multiple of it, since direct I/O takes up nowhere else. */
  readonly alignment: number
}

/**
 * A descriptor that an engine may use until the Scope ends in which `file` was called. That end waits for the operations in flight;
 * afterwards every operation on it fails with `StorageClosed`, so that a number that the kernel has given to another file is never
 * reached.
 *
 * @since 0.1.0
 * @category models
 */
export interface IoFile extends FileOptions {
  readonly fd: number
}

/**
 * One thing to do. `read` fills all of `buffer` from `offset` (bytes) of the file, `write` writes all of it, `sync` is
 * `fdatasync(2)`.
 *
 * @since 0.1.0
 * @category models
 */
export type Operation =
  | { readonly kind: "read" | "write"; readonly file: IoFile; readonly buffer: AlignedBuffer; readonly offset: number }
  | { readonly kind: "sync"; readonly file: IoFile }

/**
 * An operation that has ended: `bytes` were transferred, all of the buffer when `error` is undefined.
 *
 * @since 0.1.0
 * @category models
 */
export interface Completion {
  readonly operation: Operation
  readonly bytes: number
  /** Built when it is looked at. */
  readonly error: OperationError | undefined
}

/**
 * What became of each operation of a batch, in the order of the batch: what it gave (bytes transferred), or why it failed.
 *
 * @since 0.1.0
 * @category models
 */
export interface Results<out E = OperationError, out A = number> {
  readonly length: number
  readonly get: (index: number) => Either.Either<A, E>
  /** Empty when everything succeeded. */
  readonly failures: ReadonlyArray<{ readonly index: number; readonly error: E }>
}

/**
 * An operation transfers the whole buffer or fails: short transfers are continued, EINTR, EAGAIN and EBUSY are tried again within
 * a bound. The buffer is the kernel's until the effect ends, also when it is interrupted: what is queued is taken back, what is
 * submitted is waited for.
 *
 * An engine checks neither bounds nor alignment: `DiskStorage` does.
 *
 * @since 0.1.0
 * @category models
 */
export interface IoEngine {
  readonly [TypeId]: TypeId
  readonly name: string
  /** Borrows the descriptor: the caller closes it, after the Scope. */
  readonly file: (fd: number, options: FileOptions) => Effect.Effect<IoFile, never, Scope.Scope>
  readonly read: (file: IoFile, into: AlignedBuffer, offset: number) => Effect.Effect<void, OperationError>
  readonly write: (file: IoFile, from: AlignedBuffer, offset: number) => Effect.Effect<void, OperationError>
  readonly sync: (file: IoFile) => Effect.Effect<void, OperationError>
  /** Ends when all of them have ended; none hides what became of another. They run in any order, also on the same range. */
  readonly batch: (operations: ReadonlyArray<Operation>) => Effect.Effect<Results>
  /**
   * The way in without Effect: `done` is called once, perhaps before this returns, and never within a turn of the device: it may begin
   * operations, and end the file and the engine. Nothing can take the operation back. For measuring,
   * and for those who count microseconds; `done` must not throw, and the number of operations that wait is the caller's to bound.
   */
  readonly unsafeSubmit: (operation: Operation, done: (completion: Completion) => void) => void
}

/**
 * @since 0.1.0
 * @category tags
 */
export const IoEngine: Context.Tag<IoEngine, IoEngine> = Context.GenericTag<IoEngine>("effect-disk-storage/IoEngine")

/**
 * An engine over `pread` and `pwrite` of whatever `Syscalls` there is: for tests over a simulated kernel. On the real kernel each
 * operation is one call on another thread, two at a time; the other engines are faster.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerSyscalls: Layer.Layer<IoEngine, never, Syscalls> = Layer.effect(IoEngine, internal.make)
