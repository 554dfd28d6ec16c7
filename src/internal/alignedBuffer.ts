/** The one implementation of AlignedBuffer, and its pool. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { AlignedBuffer, Pool, PoolOptions } from "../AlignedBuffer.js"
import type { InvalidOption } from "../DiskStorageError.js"
import { BufferUnavailable, ForeignMemory, Misaligned, OutOfBounds } from "../DiskStorageError.js"
import { invalid, objectRefused, shown, unless } from "./arguments.js"
import type { Part, Slab } from "./slab.js"
import * as slabs from "./slab.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/AlignedBuffer")

/** The only class that implements `AlignedBuffer`: engines know it by `instanceof`. */
export class Region implements AlignedBuffer {
  readonly [TypeId]: typeof TypeId = TypeId
  readonly slab: Slab
  readonly bytes: Uint8Array
  readonly byteLength: number
  /** Where it begins in the slab; a field, for a getter of a typed array costs more on a hot path. */
  readonly start: number

  constructor({ bytes, slab }: Part) {
    this.slab = slab
    this.bytes = bytes
    this.byteLength = bytes.byteLength
    this.start = bytes.byteOffset
  }
}

export const region = (buffer: AlignedBuffer): Region => {
  if (buffer instanceof Region) return buffer
  throw new TypeError(
    "an AlignedBuffer is made by AlignedBuffer.make, slice, fromUint8Array or a pool, and by nothing else"
  )
}

export const isRegion = (buffer: unknown): buffer is Region => buffer instanceof Region

/** For memory that no engine takes. */
export const notAligned = (option: string, value: unknown): InvalidOption =>
  invalid(option, value, "an AlignedBuffer, made by AlignedBuffer.make, slice, fromUint8Array or a pool")

const reasonOf = (error: unknown) => error instanceof Error ? error.message : String(error)

/** What is no number has no length. */
const unavailable = (byteLength: number, error: unknown): BufferUnavailable => {
  const isNumber = typeof byteLength === "number"
  const reason = isNumber ? reasonOf(error) : `${reasonOf(error)}, and not ${shown(byteLength)}`
  return new BufferUnavailable({ byteLength: isNumber ? byteLength : NaN, reason })
}

export const make = (byteLength: number): Effect.Effect<AlignedBuffer, BufferUnavailable> =>
  Effect.try({
    try: () => new Region(slabs.take(byteLength)),
    catch: (error) => unavailable(byteLength, error)
  })

const onAPage = (start: number): Effect.Effect<void, Misaligned> =>
  start % slabs.pageSize === 0
    ? Effect.void
    : Effect.fail(new Misaligned({ what: "memory", value: start, alignment: slabs.pageSize }))

export const fromUint8Array = (
  bytes: Uint8Array
): Effect.Effect<AlignedBuffer, ForeignMemory | Misaligned | InvalidOption> =>
  Effect.suspend((): Effect.Effect<AlignedBuffer, ForeignMemory | Misaligned | InvalidOption> => {
    if (!(bytes instanceof Uint8Array)) return Effect.fail(invalid("bytes", bytes, "a Uint8Array"))
    const slab = slabs.slabOf(bytes)
    if (slab === undefined) return Effect.fail(new ForeignMemory({ byteLength: bytes.byteLength }))
    return Effect.as(onAPage(bytes.byteOffset), new Region({ slab, bytes }))
  })

export const slice = (
  buffer: AlignedBuffer,
  start: number,
  end: number
): Effect.Effect<AlignedBuffer, OutOfBounds | Misaligned | InvalidOption> =>
  Effect.suspend((): Effect.Effect<AlignedBuffer, OutOfBounds | Misaligned | InvalidOption> => {
    if (!isRegion(buffer)) return Effect.fail(notAligned("buffer", buffer))
    if (typeof start !== "number") return Effect.fail(invalid("start", start, "a number of bytes"))
    if (typeof end !== "number") return Effect.fail(invalid("end", end, "a number of bytes"))
    const { byteLength, bytes, slab } = buffer
    const length = end - start
    if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end) || start < 0 || length < 0 || end > byteLength) {
      return Effect.fail(new OutOfBounds({ offset: start, length, size: byteLength }))
    }
    return Effect.as(onAPage(start), new Region({ slab, bytes: bytes.subarray(start, end) }))
  })

/** Whether no operation holds any of its pages. */
export const isIdle = (buffer: AlignedBuffer): boolean => {
  const { byteLength, slab, start } = region(buffer)
  return slab.isIdle(start, byteLength)
}

/** Calls `then` when no operation holds any of its pages, which may be now. */
export const whenIdle = (buffer: AlignedBuffer, then: () => void): void => {
  const { byteLength, slab, start } = region(buffer)
  slab.whenIdle(start, byteLength, then)
}

/** Who waits for a buffer; `given` is the one that it got, perhaps together with its interruption. */
interface Waiter {
  given: Region | undefined
  resume: (buffer: Effect.Effect<Region>) => void
}

export const pool = (options: PoolOptions): Effect.Effect<Pool, BufferUnavailable | InvalidOption, Scope.Scope> =>
  Effect.gen(function*() {
    yield* unless(objectRefused("options", options))
    const { buffers, byteLength } = options
    if (!Number.isSafeInteger(buffers) || buffers <= 0) {
      return yield* invalid("buffers", buffers, "a whole number above 0")
    }
    const free = yield* Effect.acquireRelease(
      Effect.try({
        try: () => slabs.takePooled(buffers, byteLength).map((part) => new Region(part)),
        catch: (error) => unavailable(byteLength, error)
      }).pipe(Effect.map((regions) => ({ regions: [...regions], slab: regions[0]?.slab }))),
      // What is on its way may be registered memory that the kernel has not looked up yet.
      ({ slab }) => Effect.sync(() => slab?.whenIdle(0, slab.buffer.byteLength, () => slab.retire()))
    ).pipe(Effect.map(({ regions }) => regions))
    /** Zero still: nobody has had them. */
    const fresh = new Set(free)
    const waiting = new Set<Waiter>()

    const give = (buffer: Region) => {
      const [waiter] = waiting
      if (waiter === undefined) return void free.push(buffer)
      waiting.delete(waiter)
      waiter.given = buffer
      waiter.resume(Effect.succeed(buffer))
    }
    /** An operation that nobody waits for any more may still hold its pages: the buffer comes back when that has ended. */
    const giveBack = (buffer: Region) => buffer.slab.whenIdle(buffer.start, buffer.byteLength, () => give(buffer))

    const handedOver = (waiter: Waiter) =>
      Effect.async<Region>((resume) => {
        waiter.resume = resume
        waiting.add(waiter)
      })
    // A fibre can be interrupted wherever it yields: a buffer is taken, kept and given back where none is heard of.
    const lease = (zeroed: boolean) =>
      Effect.uninterruptibleMask((restore) => {
        const given = (buffer: Region) => {
          // At the beginning of a lease, since its last user may still have written to it after the end of theirs.
          if (!fresh.delete(buffer) && zeroed) buffer.bytes.fill(0)
          return Effect.as(Effect.addFinalizer(() => Effect.sync(() => giveBack(buffer))), buffer)
        }
        const buffer = waiting.size === 0 ? free.pop() : undefined
        if (buffer !== undefined) return given(buffer)
        const waiter: Waiter = { given: undefined, resume: () => {} }
        return Effect.matchCauseEffect(restore(handedOver(waiter)), {
          onFailure: (cause) => {
            waiting.delete(waiter)
            if (waiter.given !== undefined) giveBack(waiter.given)
            return Effect.failCause(cause)
          },
          onSuccess: given
        })
      })
    return {
      buffers,
      byteLength: Math.ceil(byteLength / slabs.pageSize) * slabs.pageSize,
      lease: lease(true),
      leaseUninitialized: lease(false)
    }
  })
