/** The transfers of a storage, checked before the kernel sees them. */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as AlignedBuffer from "../AlignedBuffer.js"
import type { DiskStorage } from "../DiskStorage.js"
import type { BytesError, InvalidOption, IoStalled, OperationError, TransferError } from "../DiskStorageError.js"
import { BufferUnavailable, Misaligned, OutOfBounds } from "../DiskStorageError.js"
import type { IoEngine, IoFile, Operation, Results } from "../IoEngine.js"
import { isIdle, isRegion, notAligned, whenIdle } from "./alignedBuffer.js"
import { arrayRefused, bytesRefused, invalid, isObject, maxBatch } from "./arguments.js"
import type { Door } from "./door.js"
import { RangeLock } from "./rangeLock.js"
import type { Prepared } from "./temporaryFile.js"

/** The most that `readBytes` and `writeBytes` move with one operation. */
const maxBounceBytes = 1024 * 1024
/** Bounce buffers of one storage, and so its `readBytes` and `writeBytes` that move at once. */
const bounceBuffers = 4
/** Chunks of one `readBytes` or `writeBytes` that move at once. */
const bounceConcurrency = 2

/** Chunks of a stream that are read ahead. */
const streamReadAhead = 2

type Transfers = Pick<
  DiskStorage,
  | "read"
  | "write"
  | "unsafeTransfer"
  | "readBatch"
  | "writeBatch"
  | "readBytes"
  | "writeBytes"
  | "sync"
  | "stream"
  | "sink"
>

/** A result for each operation that was asked for, of which some were refused and the others sent on. */
class MergedResults implements Results<TransferError> {
  readonly length: number
  private readonly refused: ReadonlyArray<TransferError | undefined>
  private readonly sent: Results
  /** Of an operation that was sent: its place among those. */
  private readonly places: ReadonlyArray<number>

  constructor(refused: ReadonlyArray<TransferError | undefined>, sent: Results) {
    this.length = refused.length
    this.refused = refused
    this.sent = sent
    let place = 0
    this.places = refused.map((error) => error === undefined ? place++ : -1)
  }

  get(index: number): Either.Either<number, TransferError> {
    const error = this.refused[index]
    return error === undefined ? this.sent.get(this.places[index] ?? index) : Either.left(error)
  }

  get failures(): ReadonlyArray<{ readonly index: number; readonly error: TransferError }> {
    return this.refused.flatMap((_, index) =>
      Either.match(this.get(index), { onLeft: (error) => [{ index, error }], onRight: () => [] })
    )
  }
}

/** Bounce buffers are lent to one operation at a time. */
const neverBusy = <A>(
  operation: Effect.Effect<A, OperationError>
): Effect.Effect<A, Exclude<OperationError, { readonly _tag: "BufferBusy" }>> =>
  Effect.catchTag(operation, "BufferBusy", Effect.die)

export const make = (
  engine: IoEngine,
  file: IoFile,
  size: number,
  { alignment }: Pick<Prepared, "alignment">,
  door: Door
): Effect.Effect<Transfers> =>
  Effect.gen(function*() {
    const outOfBounds = (offset: number, length: number): OutOfBounds | InvalidOption | undefined =>
      Number.isSafeInteger(offset) && offset >= 0 && Number.isSafeInteger(length) && length >= 0 &&
        length <= size - offset
        ? undefined
        : typeof offset !== "number"
        ? invalid("offset", offset, "a number of bytes")
        : typeof length !== "number"
        ? invalid("length", length, "a number of bytes")
        : new OutOfBounds({ offset, length, size })

    const misaligned = (offset: number, { byteLength, bytes }: AlignedBuffer.AlignedBuffer): Misaligned | undefined =>
      offset % alignment.offset !== 0
        ? new Misaligned({ what: "offset", value: offset, alignment: alignment.offset })
        : byteLength % alignment.length !== 0
        ? new Misaligned({ what: "length", value: byteLength, alignment: alignment.length })
        : bytes.byteOffset % alignment.memory !== 0
        ? new Misaligned({ what: "memory", value: bytes.byteOffset, alignment: alignment.memory })
        : undefined

    const refusal = (offset: number, buffer: AlignedBuffer.AlignedBuffer) =>
      isRegion(buffer)
        ? outOfBounds(offset, buffer.byteLength) ?? misaligned(offset, buffer)
        : notAligned("buffer", buffer)

    const transfer = (move: IoEngine["read"]): DiskStorage["read"] => (offset, buffer) => {
      const refused = refusal(offset, buffer)
      return refused === undefined ? move(file, buffer, offset) : Effect.fail(refused)
    }

    const unsafeTransfer: DiskStorage["unsafeTransfer"] = (kind, transfer, done) => {
      if (kind !== "read" && kind !== "write") return done(invalid("kind", kind, "read, write"))
      if (!isObject(transfer)) return done(invalid("transfer", transfer, "an offset and a buffer"))
      const { buffer, offset } = transfer
      const refused = refusal(offset, buffer)
      if (refused === undefined) engine.unsafeSubmit({ kind, file, buffer, offset }, ({ error }) => done(error))
      else done(refused)
    }

    const batch = (kind: "read" | "write"): DiskStorage["readBatch"] => (transfers) =>
      Effect.suspend(() => {
        const wrong = arrayRefused("transfers", transfers, maxBatch)
        if (wrong !== undefined) return Effect.fail(wrong)
        const refused: Array<TransferError | undefined> = []
        const operations: Array<Operation> = []
        // By number: `map` would pass over the holes of a sparse array.
        for (let index = 0; index < transfers.length; index++) {
          const transfer = transfers[index]
          if (!isObject(transfer)) {
            refused.push(invalid(`transfers[${index}]`, transfer, "an offset and a buffer"))
            continue
          }
          const { buffer, offset } = transfer
          const error = refusal(offset, buffer)
          refused.push(error)
          if (error === undefined) operations.push({ kind, file, buffer, offset })
        }
        return Effect.map(
          engine.batch(operations),
          (results): Results<TransferError> =>
            operations.length === refused.length ? results : new MergedResults(refused, results)
        )
      })

    // Whole pages bounce: the file is whole pages, and pages satisfy every alignment that there is below them.
    const unit = Math.max(AlignedBuffer.pageSize, alignment.offset)
    const chunkBytes = Math.ceil(Math.min(maxBounceBytes, size) / unit) * unit
    const writers = new RangeLock()
    const permits = yield* Effect.makeSemaphore(bounceBuffers)
    const bounceFree: Array<AlignedBuffer.AlignedBuffer> = []
    const takeBounce = Effect.suspend(() => {
      const free = bounceFree.pop()
      return free === undefined ? AlignedBuffer.make(chunkBytes) : Effect.succeed(free)
    })
    /** Lends a bounce buffer. One that a hung disk keeps does not come back, and the next is a new one. */
    const withBounce = <E>(use: (buffer: AlignedBuffer.AlignedBuffer) => Effect.Effect<void, E>) => {
      const back = (buffer: AlignedBuffer.AlignedBuffer) =>
        Effect.sync(() => {
          if (isIdle(buffer)) bounceFree.push(buffer)
        })
      return permits.withPermits(1)(Effect.acquireUseRelease(takeBounce, use, back))
    }

    /** Runs `each` over the chunks of whole pages, from `start` up to `end`, that cover a range, each with a bounce buffer. */
    const overChunks = <E>(
      offset: number,
      length: number,
      each: (buffer: AlignedBuffer.AlignedBuffer, start: number, end: number) => Effect.Effect<void, E>
    ) => {
      const first = offset - (offset % unit)
      const last = Math.ceil((offset + length) / unit) * unit
      const chunks = Array.from(
        { length: Math.ceil((last - first) / chunkBytes) },
        (_, index) => first + index * chunkBytes
      )
      return Effect.forEach(
        chunks,
        (start) => withBounce((buffer) => each(buffer, start, Math.min(start + chunkBytes, last))),
        { concurrency: bounceConcurrency, discard: true }
      )
    }

    /** A part of a bounce buffer, within its bounds and on whole pages. */
    const part = (buffer: AlignedBuffer.AlignedBuffer, start: number, end: number) =>
      Effect.orDie(AlignedBuffer.slice(buffer, start, end))

    const move = (
      kind: "read" | "write",
      buffer: AlignedBuffer.AlignedBuffer,
      from: number,
      to: number,
      offset: number
    ) => Effect.flatMap(part(buffer, from, to), (bytes) => neverBusy(engine[kind](file, bytes, offset)))

    const readBytes: DiskStorage["readBytes"] = (offset, length) =>
      door.enter((restore): Effect.Effect<Uint8Array, BytesError> => {
        const refused = outOfBounds(offset, length)
        if (refused !== undefined) return Effect.fail(refused)
        return restore(Effect.gen(function*() {
          const result = yield* Effect.try({
            try: () => new Uint8Array(length),
            catch: (error) => new BufferUnavailable({ byteLength: length, reason: String(error) })
          })
          if (length === 0) return result
          yield* overChunks(offset, length, (buffer, start, end) =>
            Effect.map(move("read", buffer, 0, end - start, start), () => {
              const from = Math.max(start, offset)
              const to = Math.min(end, offset + length)
              result.set(buffer.bytes.subarray(from - start, to - start), from - offset)
            }))
          return result
        }))
      })

    /** Ranges of writes that a hung disk may still do: what is written to them meanwhile could be lost under those. */
    const unsettled = new Set<{ readonly first: number; readonly last: number; readonly stalled: IoStalled }>()
    const remember = (first: number, last: number, buffer: AlignedBuffer.AlignedBuffer, stalled: IoStalled) => {
      const entry = { first, last, stalled }
      unsettled.add(entry)
      whenIdle(buffer, () =>
        unsettled.delete(entry))
    }

    const writeBytes: DiskStorage["writeBytes"] = (offset, bytes) =>
      door.enter((restore): Effect.Effect<void, BytesError> => {
        const wrong = bytesRefused("bytes", bytes)
        if (wrong !== undefined) {
          return Effect.fail(wrong)
        }
        const length = bytes.byteLength
        const refused = outOfBounds(offset, length)
        if (refused !== undefined) {
          return Effect.fail(refused)
        }
        if (length === 0) {
          return Effect.void
        }
        const written = overChunks(offset, length, (buffer, start, end) =>
          Effect.gen(function*() {
            const from = Math.max(start, offset)
            const to = Math.min(end, offset + length)
            // The pages that the range only touches keep their other bytes.
            if (from > start || (to < end && end - start === unit)) {
              yield* move("read", buffer, 0, unit, start)
            }
            if (to < end && end - start > unit) {
              yield* move("read", buffer, end - start - unit, end - start, end - unit)
            }
            buffer.bytes.set(bytes.subarray(from - offset, to - offset), from - start)
            yield* Effect.tapErrorTag(
              move("write", buffer, 0, end - start, start),
              "IoStalled",
              (stalled) =>
                Effect.sync(() =>
                  remember(start, end, buffer, stalled)
                )
            )
          }))
        const first = offset - (offset % unit)
        const last = Math.ceil((offset + length) / unit) * unit
        const checked = Effect.suspend(() => {
          const hung = [...unsettled].find((entry) => entry.first < last && first < entry.last)
          return hung === undefined ? written : Effect.fail(hung.stalled)
        })
        return restore(writers.within(first, last, checked))
      })

    const stream: DiskStorage["stream"] = (range, chunk = maxBounceBytes) => {
      if (!isObject(range)) return Stream.fail(invalid("range", range, "an offset and a length"))
      const { length, offset } = range
      const refused = outOfBounds(offset, length) ??
        (typeof chunk !== "number"
          ? invalid("chunkBytes", chunk, "a number of bytes")
          : Number.isSafeInteger(chunk) && chunk > 0
          ? undefined
          : new OutOfBounds({ offset, length: chunk, size }))
      if (refused !== undefined) {
        return Stream.fail(refused)
      }
      return Stream.iterate(offset, (at) => at + chunk).pipe(
        Stream.takeWhile((at) => at < offset + length),
        Stream.rechunk(1),
        Stream.mapEffect((at) => readBytes(at, Math.min(chunk, offset + length - at)), {
          concurrency: streamReadAhead
        })
      )
    }

    const sink: DiskStorage["sink"] = (offset) =>
      Sink.suspend(() => {
        /** What has come and is not written yet, and how many bytes were written before. */
        let parts: Array<Uint8Array> = []
        let length = 0
        let written = 0
        const flush = Effect.suspend((): Effect.Effect<void, BytesError> => {
          const [first] = parts
          if (first === undefined) return Effect.void
          const joined = parts.length === 1 ? first : Buffer.concat(parts, length)
          return Effect.map(writeBytes(offset + written, joined), () => {
            written += length
            length = 0
            parts = []
          })
        })
        const refused = outOfBounds(offset, 0)
        if (refused !== undefined) return Sink.fail(refused)
        return Sink.forEach((bytes: Uint8Array) => {
          const wrong = bytesRefused("bytes", bytes)
          if (wrong !== undefined) return Effect.fail(wrong)
          if (bytes.byteLength === 0) return Effect.void
          parts.push(bytes)
          length += bytes.byteLength
          return length < maxBounceBytes ? Effect.void : flush
        }).pipe(Sink.mapEffect(() => Effect.map(flush, () => written)))
      })

    return {
      read: transfer(engine.read),
      write: transfer(engine.write),
      unsafeTransfer,
      readBatch: batch("read"),
      writeBatch: batch("write"),
      readBytes,
      writeBytes,
      stream,
      sink,
      sync: Effect.suspend(() => engine.sync(file)).pipe(Effect.catchTag("BufferBusy", Effect.die))
    }
  })
