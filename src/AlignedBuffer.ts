/**
 * Memory that direct I/O can use without a copy.
 *
 * A buffer is a page-aligned slice of a `WebAssembly.Memory`: its start is on a 64 KiB boundary, nobody can detach or grow it, a
 * view keeps it alive, the garbage collector frees it when no view is left, and no foreign function is needed to make one.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { BufferUnavailable } from "./DiskStorageError.js"
import * as slab from "./internal/slab.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = Symbol.for("effect-disk-storage/AlignedBuffer")

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * `bytes` starts on a 4096-byte boundary and is a multiple of 4096 bytes long. It is the kernel's while an operation on it is in
 * flight: neither read nor write it then.
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
export const make = (byteLength: number): Effect.Effect<AlignedBuffer, BufferUnavailable> =>
  Effect.try({
    try: () => {
      const bytes = slab.take(byteLength)
      return { [TypeId]: TypeId, bytes, byteLength: bytes.byteLength }
    },
    catch: (error) =>
      new BufferUnavailable({ byteLength, reason: error instanceof Error ? error.message : String(error) })
  })
