/**
 * Memory that direct I/O can use without a copy.
 *
 * A buffer is a page-aligned slice of a `WebAssembly.Memory`: its start is on a 64 KiB boundary, nobody can detach or grow it, a
 * view keeps it alive, the garbage collector frees it when no view is left, and no foreign function is needed to make one. Once an engine
 * is there, the kernel is asked for huge pages in what is made (`madvise(2)`).
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { BufferUnavailable, ForeignMemory, InvalidOption, Misaligned, OutOfBounds } from "./DiskStorageError.js"
import * as internal from "./internal/alignedBuffer.js"
import * as slab from "./internal/slab.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: typeof internal.TypeId = internal.TypeId

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * `bytes` starts on a 4096-byte boundary. It is the kernel's while an operation on it is in flight: neither read nor write it
 * then. Engines keep count, by page: a second operation on bytes that are being read into, or a read into bytes that are being
 * written from, fails with `BufferBusy`; several writes from the same bytes are fine. Made by this module alone.
 *
 * @since 0.1.0
 * @category models
 */
export interface AlignedBuffer {
  readonly [TypeId]: TypeId
  readonly bytes: Uint8Array
  readonly byteLength: number
}

/**
 * The page size that every buffer is aligned to, in bytes. It satisfies the 512-byte and 4096-byte sectors that Linux
 * filesystems ask for.
 *
 * @since 0.1.0
 * @category constants
 */
export const pageSize = slab.pageSize

/**
 * A zeroed buffer of at least `byteLength` bytes, rounded up to a multiple of `pageSize`. Fails with `BufferUnavailable` when
 * the length is no positive safe integer, is above what one WebAssembly memory can hold (4 GiB), or when there is no address
 * space left for it.
 *
 * @example
 * ```ts
 * import { AlignedBuffer } from "effect-disk-storage"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const block = yield* AlignedBuffer.make(1_000_000)
 *   return block.byteLength // 1 003 520
 * })
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: (byteLength: number) => Effect.Effect<AlignedBuffer, BufferUnavailable> = internal.make

/**
 * The buffer that `bytes` is a view of, such as `buffer.bytes.subarray(4096)`; no copy. Fails with `ForeignMemory` for memory that
 * this module did not make, which could be moved or detached under the kernel, and with `Misaligned` when the view does not start
 * on a page. A value of another type is an `InvalidOption`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromUint8Array: (
  bytes: Uint8Array
) => Effect.Effect<AlignedBuffer, ForeignMemory | Misaligned | InvalidOption> = internal.fromUint8Array

/**
 * The bytes from `start` (a multiple of `pageSize`) up to `end`, sharing the memory; no copy. Any length, 0 included: what a file
 * takes is checked where it is used. What is no `AlignedBuffer`, and an end that is no number, is an `InvalidOption`.
 *
 * @since 0.1.0
 * @category combinators
 */
export const slice: (
  buffer: AlignedBuffer,
  start: number,
  end: number
) => Effect.Effect<AlignedBuffer, OutOfBounds | Misaligned | InvalidOption> = internal.slice

/**
 * @since 0.1.0
 * @category models
 */
export interface PoolOptions {
  /** How many. All together hold at most 4 GiB. */
  readonly buffers: number
  /** bytes of each, rounded up to a multiple of `pageSize` */
  readonly byteLength: number
}

/**
 * A fixed number of buffers that are used again and again. `lease` takes one for as long as the Scope lives, and waits, first come
 * first served, while all are leased. It is zeroed: nobody sees what its last user left there. A buffer that an operation still holds
 * when its lease ends is leased again only after that operation.
 *
 * `leaseUninitialized` saves the time that zeroing takes, about 60 µs a MiB (Node 20, x64): for those who overwrite all of it before
 * they look at it or hand it on. Until then it holds whatever its last user left there.
 *
 * @since 0.1.0
 * @category models
 */
export interface Pool {
  readonly buffers: number
  readonly byteLength: number
  readonly lease: Effect.Effect<AlignedBuffer, never, Scope.Scope>
  readonly leaseUninitialized: Effect.Effect<AlignedBuffer, never, Scope.Scope>
}

/**
 * A pool, on memory of its own. Engines that can, register it with the kernel while the Scope lives, which saves them the look-up
 * of its pages in every operation.
 *
 * @since 0.1.0
 * @category constructors
 */
export const pool: (
  options: PoolOptions
) => Effect.Effect<Pool, BufferUnavailable | InvalidOption, Scope.Scope> = internal.pool
