/**
 * The block store: batches of transfers between buffers and slots. Whatever becomes of a transfer is entered into the index in one
 * step of plain code, so that nobody sees half of it, and an interruption comes before a transfer or after it.
 */
import * as Arr from "effect/Array"
import * as Chunk from "effect/Chunk"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as AlignedBuffer from "../AlignedBuffer.js"
import type {
  Block,
  BlockStore,
  BlockStoreOptions,
  Destination,
  Lease,
  Offloaded,
  RemovalReason,
  Stats
} from "../BlockStore.js"
import * as DiskMetrics from "../DiskMetrics.js"
import type { DiskStorage, DiskStorageOptions } from "../DiskStorage.js"
import type { AcquireError, OffloadError, OnboardError, TransferError } from "../DiskStorageError.js"
import {
  BlockCorrupted,
  BlockNotFound,
  InvalidBlock,
  InvalidOption,
  NoStorageLeft,
  StoreClosed,
  StoreFull
} from "../DiskStorageError.js"
import type { IoEngine, Results } from "../IoEngine.js"
import * as OffloadFilter from "../OffloadFilter.js"
import type { Syscalls } from "../Syscalls.js"
import { region } from "./alignedBuffer.js"
import type { Batch } from "./blockBatch.js"
import { Gate } from "./blockBatch.js"
import * as checksums from "./blockChecksum.js"
import { BlockEvents } from "./blockEvents.js"
import { BlockIndex, priorities } from "./blockIndex.js"
import * as restart from "./blockRestart.js"
import * as diskStorage from "./diskStorage.js"
import { makeDoor } from "./door.js"
import { wholeNumber } from "./engineOptions.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/BlockStore")

const maxHash = 2n ** 64n - 1n

/** Links between slots are 32-bit; more slots than this would also take more memory than one array can have. */
const maxSlots = 2 ** 27

/** Groups of a stream that are moved at once: the next is on its way while the last blocks of one are still being moved. */
const groupsInFlight = 2

/** Blocks that a walk over all of them looks at before the event loop has a turn: some milliseconds of the dearest walk. */
const blocksPerTurn = 8192

/** Calls `each` with the parts of a range, and lets the event loop have a turn before each of them. */
const inTurns = (first: number, last: number, each: (from: number, to: number) => void): Effect.Effect<void> => {
  let from = first
  return Effect.whileLoop({
    while: () => from < last,
    body: () => checksums.eventLoopTurn,
    step: () => {
      const to = Math.min(last, from + blocksPerTurn)
      each(from, to)
      from = to
    }
  })
}

const isHash = (hash: bigint): boolean => typeof hash === "bigint" && hash >= 0n && hash <= maxHash

const invalidHash = (hash: bigint) =>
  new InvalidBlock({ hash, what: "hash", expected: "an unsigned integer of 64 bits" })

const stored = Either.right("stored" as const)
const duplicate = Either.right("duplicate" as const)
const filtered = Either.right("filtered" as const)

/** What became of each block; errors are made when they are looked at, since a miss is nothing unusual. */
class BlockResults<A, E> implements Results<E, A> {
  readonly outcomes: Array<Either.Either<A, () => E> | undefined>
  private readonly otherwise: () => E

  /** `otherwise`: of a block that was not begun. */
  constructor(length: number, otherwise: () => E) {
    this.outcomes = Array.from({ length })
    this.otherwise = otherwise
  }

  get length(): number {
    return this.outcomes.length
  }

  /** Blocks that were written or read. */
  get moved(): number {
    let moved = 0
    for (const outcome of this.outcomes) {
      if (outcome === undefined || Either.isLeft(outcome)) continue
      const what: unknown = outcome.right
      if (what !== "duplicate" && what !== "filtered") moved += 1
    }
    return moved
  }

  get(index: number): Either.Either<A, E> {
    if (index >= this.length) throw new RangeError(`a batch of ${this.length} blocks has no block ${index}`)
    return Either.mapLeft(this.outcomes[index] ?? Either.left(this.otherwise), (make) => make())
  }

  get failures(): ReadonlyArray<{ readonly index: number; readonly error: E }> {
    return this.outcomes.flatMap((outcome, index) =>
      outcome !== undefined && Either.isRight(outcome)
        ? []
        : Either.match(this.get(index), { onLeft: (error) => [{ index, error }], onRight: () => [] })
    )
  }
}

/** What of the counts are metrics, too. */
const metricEvents = ["hits", "misses", "stored", "evicted", "corrupted", "failed"] as const

/** A hash that is being written; `waiters` are told when that has ended. */
interface Writing {
  ended: boolean
  waiters: Set<() => void> | undefined
}

/** Blocks of whole pages can be moved by every kind of direct I/O with pages below it. */
export const wholePages = (blockBytes: number): number =>
  Math.ceil(blockBytes / AlignedBuffer.pageSize) * AlignedBuffer.pageSize

/** A storage in each directory, which together have the size that is asked for; or one that is kept, with room for its index. */
export const storages = (
  options: DiskStorageOptions,
  { blockBytes, directories, keepAt }: Pick<BlockStoreOptions, "blockBytes"> & {
    readonly directories?: readonly [string, ...ReadonlyArray<string>] | undefined
    readonly keepAt?: string | undefined
  }
): Effect.Effect<readonly [DiskStorage, ...Array<DiskStorage>], AcquireError, Syscalls | IoEngine | Scope.Scope> => {
  const block = wholePages(blockBytes)
  const blocks = Math.floor(options.size / block)
  if (keepAt !== undefined) {
    return directories === undefined
      ? Effect.map(
        diskStorage.make({
          ...options,
          size: blocks * block + restart.areaBytes(blocks),
          directory: undefined,
          keepAt
        }),
        (storage): readonly [DiskStorage] => [storage]
      )
      : Effect.fail(new InvalidOption({ option: "keepAt", value: keepAt, expected: "nothing beside directories" }))
  }
  const [first = options.directory, ...others] = directories ?? []
  // Whole blocks for each, so that none is lost at every end.
  const size = others.length === 0 ? options.size : Math.ceil(blocks / (1 + others.length)) * block
  const one = (directory: string | undefined) => diskStorage.make({ ...options, directory, size })
  return Effect.zipWith(
    one(first),
    Effect.forEach(others, one),
    (storage, more): readonly [DiskStorage, ...Array<DiskStorage>] => [storage, ...more]
  )
}

export const make = (
  storages: readonly [DiskStorage, ...ReadonlyArray<DiskStorage>],
  options: BlockStoreOptions
): Effect.Effect<BlockStore, InvalidOption, Scope.Scope> =>
  Effect.gen(function*() {
    const asked = yield* wholeNumber("blockBytes", options.blockBytes, 0, 1, 2 ** 32)
    const maxBlocksInFlight = yield* wholeNumber("maxBlocksInFlight", options.maxBlocksInFlight, 32, 1, 65_536)
    const eventCapacity = yield* wholeNumber("eventCapacity", options.eventCapacity, 4096, 1, 2 ** 24)
    const failureLimit = yield* wholeNumber("failureLimit", options.failureLimit, 8, 1, 2 ** 31)
    const checksum = options.checksum ?? "xxh128"
    const checker = yield* checksums.make(checksum)
    const filter = yield* OffloadFilter.OffloadFilter

    const unit = Math.max(AlignedBuffer.pageSize, ...storages.map(({ alignment }) => alignment.offset))
    const blockBytes = Math.ceil(asked / unit) * unit
    const capacities = storages.map(({ keptAt, size }) =>
      keptAt === undefined ? Math.floor(size / blockBytes) : restart.slotsOf(size, blockBytes)
    )
    const small = storages.find((_, number) => (capacities[number] ?? 0) < 1)
    if (small !== undefined) {
      return yield* new InvalidOption({
        option: "blockBytes",
        value: String(asked),
        expected: `at most the ${small.size} bytes of ${small.path}`
      })
    }
    const slots = capacities.reduce((sum, capacity) => sum + capacity, 0)
    if (slots > maxSlots) {
      return yield* new InvalidOption({
        option: "blockBytes",
        value: String(asked),
        expected: `blocks large enough for the storages to hold ${maxSlots} of them at most, not ${slots}`
      })
    }

    const complete = Either.right(blockBytes)
    const events = new BlockEvents(eventCapacity)
    const counts = {
      stored: 0,
      duplicates: 0,
      filtered: 0,
      hits: 0,
      misses: 0,
      evicted: 0,
      corrupted: 0,
      failed: 0
    }
    const removed = (hash: bigint, reason: RemovalReason) => {
      if (events.wanted) events.push({ _tag: "Removed", hash, reason })
    }
    const index = new BlockIndex(capacities, yield* Random.nextIntBetween(0, 2 ** 31), (hash, failed) => {
      if (!failed) counts.evicted += 1
      removed(hash, failed ? "storage" : "evicted")
    })
    const gate = new Gate(Math.min(maxBlocksInFlight, slots))
    /** Blocks that were read and are not verified yet hold their slots, too: so many beside those in flight, and always room to write. */
    const maxUnverified = Math.min(gate.permits, slots - gate.permits)
    let unverified = 0
    const writing = new Map<bigint, Writing>()
    const door = makeDoor(storages[0].path)
    let closed = false

    const storageAt = (slot: number): DiskStorage => {
      const storage = storages[index.storageOf(slot)]
      if (storage === undefined) throw new RangeError(`slot ${slot} belongs to no storage`)
      return storage
    }
    const offsetOf = (slot: number) => index.placeOf(slot) * blockBytes

    const find = (hash: bigint) => isHash(hash) && !closed ? index.find(hash) : -1

    /** Calls `each` for every block of some storages, a part at a time. */
    const walk = (numbers: ReadonlyArray<number>, each: (slot: number) => void): Effect.Effect<void> =>
      Effect.forEach(numbers, (number) => {
        const { base, fresh } = index.storages[number] ?? { base: 0, fresh: 0 }
        return inTurns(base, fresh, (from, to) => index.visit(from, to, each))
      }, { discard: true })
    const everyStorage = storages.map((_, number) => number)

    /** Failures in a row, by storage. */
    const failures = storages.map(() => 0)
    /** Storages that were taken out. Their blocks are found no more from then on, and leave the index bit by bit. */
    const takenOut = yield* Queue.unbounded<{ readonly number: number; readonly error: TransferError }>()
    const purge = ({ error, number }: { readonly number: number; readonly error: TransferError }) =>
      Effect.suspend(() =>
        Effect.logError("a storage is taken out of the block store, with its blocks", error).pipe(
          Effect.annotateLogs({ path: storages[number]?.path, blocks: index.storages[number]?.blocks }),
          Effect.zipRight(walk([number], (slot) => {
            const hash = index.hashOf(slot)
            index.drop(slot)
            removed(hash, "storage")
          }))
        )
      )
    yield* Effect.forkScoped(Effect.interruptible(Effect.forever(Effect.flatMap(Queue.take(takenOut), purge))))

    /** Whether the range that a transfer failed on is to be used no more, and the storage with it after too many. */
    const isFault = (error: TransferError): boolean =>
      error._tag === "IoFailed" || error._tag === "IoStalled" || error._tag === "StorageClosed"
    const failedOn = (slot: number, error: TransferError): void => {
      const number = index.storageOf(slot)
      const storage = index.storages[number]
      const inARow = (failures[number] ?? 0) + 1
      failures[number] = inARow
      if (storage === undefined || storage.failed) return
      if (error._tag !== "StorageClosed" && inARow < failureLimit) return
      index.fail(number)
      takenOut.unsafeOffer({ number, error })
    }

    /** Memory that no engine would take is a defect, before anything has begun. */
    const lengthRefused = (hash: bigint, buffer: AlignedBuffer.AlignedBuffer) =>
      region(buffer).byteLength === blockBytes
        ? undefined
        : new InvalidBlock({ hash, what: "length", expected: `a buffer of exactly ${blockBytes} bytes` })

    const refused = ({ data, hash, priority = 0 }: Block): InvalidBlock | undefined => {
      if (!isHash(hash)) {
        return invalidHash(hash)
      }
      if (!Number.isInteger(priority) || priority < 0 || priority >= priorities) {
        return new InvalidBlock({ hash, what: "priority", expected: `a whole number from 0 to ${priorities - 1}` })
      }
      return lengthRefused(hash, data)
    }

    /** What the counts were when they were last told to the metrics. */
    const told = { hits: 0, misses: 0, stored: 0, evicted: 0, corrupted: 0, failed: 0 }
    const tell = (transfer: "offload" | "onboard", blocks: number, millis: number) => {
      for (const event of metricEvents) {
        const more = counts[event] - told[event]
        if (more > 0) {
          DiskMetrics.blocks[event].unsafeUpdate(more, [])
        }
        told[event] = counts[event]
      }
      if (blocks > 0) {
        DiskMetrics.blockBytes[transfer].unsafeUpdate(blocks * blockBytes, [])
      }
      DiskMetrics.batchLatency[transfer].unsafeUpdate(millis, [])
      DiskMetrics.occupancy.unsafeUpdate(index.blocks / index.capacity, [])
    }

    /** A batch from its beginning to its end: inside of the door, with a span, and told to the metrics. */
    const inBatch = <A, E>(
      transfer: "offload" | "onboard",
      blocks: number,
      use: (results: BlockResults<A, E | StoreClosed>) => Effect.Effect<void>
    ): Effect.Effect<BlockResults<A, E | StoreClosed>> =>
      Clock.clockWith((clock) => {
        const results = new BlockResults<A, E | StoreClosed>(blocks, () => new StoreClosed({}))
        if (blocks === 0) return Effect.succeed(results)
        const began = clock.unsafeCurrentTimeMillis()
        return door.enter((restore) => restore(use(results))).pipe(
          Effect.catchTag("StorageClosed", () => Effect.void),
          Effect.ensuring(Effect.sync(() => {
            tell(transfer, results.moved, clock.unsafeCurrentTimeMillis() - began)
          })),
          Effect.as(results),
          Effect.withSpan(`BlockStore.${transfer}`, { attributes: { blocks } })
        )
      })

    const noRoom = (hash: bigint, priority: number): OffloadError =>
      index.storages.every(({ failed }) => failed)
        ? new NoStorageLeft({ paths: storages.map(({ path }) => path) })
        : new StoreFull({ hash, capacity: index.capacity, pinned: index.pinned, priority })

    /**
     * The end of a write that succeeded: from now on the block is found. Undefined where its storage was taken out meanwhile. Where
     * somebody else has put a block of that hash there meanwhile, it makes way for one that replaces it only.
     */
    const written = (
      slot: number,
      { hash, priority = 0 }: Block,
      replace: boolean
    ): typeof stored | typeof duplicate | undefined => {
      if (index.storages[index.storageOf(slot)]?.failed !== false) {
        index.giveBack(slot, true)
        return undefined
      }
      failures[index.storageOf(slot)] = 0
      const present = index.find(hash)
      if (present >= 0 && !replace) {
        index.giveBack(slot, false)
        index.touch(present, priority)
        counts.duplicates += 1
        return duplicate
      }
      if (present >= 0) {
        index.drop(present)
        removed(hash, "replaced")
      }
      index.commit(slot, hash, priority)
      counts.stored += 1
      if (events.wanted) events.push({ _tag: "Stored", hash })
      return stored
    }

    /**
     * Writes those of `todo` that are not there. What somebody else is writing is left, and told: whether that succeeds is not known yet.
     */
    const offloadOnce = (
      blocks: ReadonlyArray<Block>,
      todo: ReadonlyArray<number>,
      replace: boolean,
      { outcomes }: BlockResults<Offloaded, OffloadError>
    ): Effect.Effect<ReadonlyArray<{ readonly place: number; readonly other: Writing }>> =>
      Effect.suspend(() => {
        const left: Array<{ readonly place: number; readonly other: Writing }> = []
        const begin = (place: number, batch: Batch): void => {
          const block = blocks[place]
          if (block === undefined) throw new RangeError(`there is no block ${place}`)
          const { data, hash, priority = 0 } = block
          const end = (outcome: typeof outcomes[number]) => {
            outcomes[place] = outcome
            batch.landed()
            batch.ended()
          }
          if (!replace) {
            const present = index.find(hash)
            if (present >= 0) {
              index.touch(present, priority)
              counts.duplicates += 1
              return end(duplicate)
            }
            const other = writing.get(hash)
            if (other !== undefined) {
              left.push({ place, other })
              return end(undefined)
            }
          }
          const slot = index.take(priority)
          if (slot < 0) return end(Either.left(() => noRoom(hash, priority)))
          const entry: Writing = { ended: false, waiters: undefined }
          if (!replace) writing.set(hash, entry)
          let error: TransferError | undefined
          let pending = checker === undefined ? 1 : 2
          /** Of the write and the checksum, which go side by side. */
          const partEnded = () => {
            pending -= 1
            if (pending > 0) return
            let outcome: typeof outcomes[number]
            if (error === undefined) outcome = written(slot, block, replace)
            else {
              const failure = error
              const fault = isFault(failure)
              if (fault) {
                counts.failed += 1
                failedOn(slot, failure)
              }
              // Nothing is known of a slot whose write failed; one that had no answer may even be written to later.
              index.giveBack(slot, fault)
              outcome = Either.left(() => failure)
            }
            if (!replace) writing.delete(hash)
            entry.ended = true
            if (entry.waiters !== undefined) { for (const waiter of entry.waiters) waiter() }
            if (outcome === undefined) begin(place, batch)
            else end(outcome)
          }
          storageAt(slot).unsafeTransfer("write", { offset: offsetOf(slot), buffer: data }, (failed) => {
            error = failed
            partEnded()
          })
          checker?.soon(blockBytes, () => {
            index.seal(slot, checker.compute(data.bytes))
            partEnded()
          })
        }
        return Effect.as(gate.run(todo.length, (number, batch) => begin(todo[number] ?? -1, batch)), left)
      })

    const ended = (other: Writing): Effect.Effect<void> =>
      Effect.async<void>((resume) => {
        const waiter = () => resume(Effect.void)
        if (other.ended) return waiter()
        const waiters = other.waiters ?? new Set()
        other.waiters = waiters
        waiters.add(waiter)
        return Effect.sync(() => waiters.delete(waiter))
      })

    /** Those of `places` that are not there and that the filter lets through. */
    const worthIt = (
      blocks: ReadonlyArray<Block>,
      places: ReadonlyArray<number>,
      { outcomes }: BlockResults<Offloaded, OffloadError>
    ): Effect.Effect<ReadonlyArray<number>> => {
      if (filter === OffloadFilter.none) return Effect.succeed(places)
      const hashOf = (place: number) => blocks[place]?.hash ?? 0n
      const unknown = places.filter((place) => index.find(hashOf(place)) < 0)
      return Effect.map(filter.admit(unknown.map(hashOf)), (admitted) => {
        const out = new Set(unknown.filter((_, number) => admitted[number] !== true))
        for (const place of out) outcomes[place] = filtered
        counts.filtered += out.size
        return places.filter((place) => !out.has(place))
      })
    }

    const offload: BlockStore["offload"] = (blocks, { replace = false } = {}) =>
      inBatch("offload", blocks.length, (results: BlockResults<Offloaded, OffloadError>) =>
        Effect.gen(function*() {
          const accepted = blocks.flatMap((block, place) => {
            const error = refused(block)
            if (error === undefined) return [place]
            results.outcomes[place] = Either.left(() => error)
            return []
          })
          let todo = replace ? accepted : yield* worthIt(blocks, accepted, results)
          while (todo.length > 0) {
            const left = yield* offloadOnce(blocks, todo, replace, results)
            for (const { other } of left) yield* ended(other)
            todo = left.map(({ place }) => place)
          }
        }))

    /** Reads the block of a slot, which is pinned meanwhile, and verifies it; what cannot be read is dropped. */
    const read = (
      batch: Batch,
      outcomes: BlockResults<number, OnboardError>["outcomes"],
      place: number,
      slot: number,
      { hash, into }: Destination
    ): void => {
      const offset = offsetOf(slot)
      counts.hits += 1
      index.pin(slot)
      const end = (outcome: typeof outcomes[number]) => {
        index.unpin(slot)
        outcomes[place] = outcome
        batch.ended()
      }
      storageAt(slot).unsafeTransfer("read", { offset, buffer: into }, (error) => {
        if (error !== undefined) {
          if (isFault(error)) {
            counts.failed += 1
            if (index.isReady(slot)) removed(hash, "failed")
            index.drop(slot, true)
            failedOn(slot, error)
          }
          batch.landed()
          return end(Either.left(() => error))
        }
        failures[index.storageOf(slot)] = 0
        if (checker === undefined) {
          batch.landed()
          return end(complete)
        }
        // The next block is on its way while this one is looked at.
        const ahead = unverified < maxUnverified
        unverified += 1
        if (ahead) batch.landed()
        checker.soon(blockBytes, () => {
          unverified -= 1
          if (!ahead) batch.landed()
          if (index.verifies(slot, checker.compute(into.bytes))) return end(complete)
          const { path } = storageAt(slot)
          counts.corrupted += 1
          if (index.isReady(slot) && events.wanted) events.push({ _tag: "Corrupted", hash })
          index.drop(slot, true)
          end(Either.left(() => new BlockCorrupted({ hash, path, offset, checksum })))
        })
      })
    }

    const onboard: BlockStore["onboard"] = (destinations) =>
      inBatch("onboard", destinations.length, ({ outcomes }: BlockResults<number, OnboardError>) =>
        gate.run(destinations.length, (place, batch) => {
          const destination = destinations[place]
          if (destination === undefined) {
            throw new RangeError(`there is no block ${place}`)
          }
          const { hash, into } = destination
          const end = (error: () => OnboardError) => {
            outcomes[place] = Either.left(error)
            batch.landed()
            batch.ended()
          }
          const refused = isHash(hash) ? lengthRefused(hash, into) : invalidHash(hash)
          if (refused !== undefined) {
            return end(() =>
              refused
            )
          }
          const slot = index.find(hash)
          if (slot >= 0) return read(batch, outcomes, place, slot, destination)
          counts.misses += 1
          end(() => new BlockNotFound({ hash }))
        }))

    /** As many as have come while earlier ones were moved, and no more than may be in flight: nobody is waited for. */
    const inGroups = <A, E, R>(stream: Stream.Stream<A, E, R>) =>
      Stream.aggregate(stream, Sink.collectAllN<A>(gate.permits))

    const offloadStream: BlockStore["offloadStream"] = (blocks) =>
      inGroups(blocks).pipe(
        Stream.mapEffect((group) =>
          Effect.map(offload(Chunk.toReadonlyArray(group)), (results) =>
            Chunk.map(group, ({ hash }, place) => ({ hash, result: results.get(place) }))), {
          concurrency: groupsInFlight
        }),
        Stream.flattenChunks
      )

    const onboardStream: BlockStore["onboardStream"] = (hashes) =>
      inGroups(hashes).pipe(
        Stream.mapEffect((group) =>
          Effect.gen(function*() {
            const hashes = Chunk.toReadonlyArray(group)
            const targets = yield* Effect.forEach(
              hashes,
              (hash) =>
                Effect.either(Effect.map(AlignedBuffer.make(blockBytes), (into) => ({ hash, into })))
            )
            const results = yield* onboard(Arr.getRights(targets))
            let place = 0
            return Chunk.unsafeFromArray(Arr.zipWith(hashes, targets, (hash, target) => ({
              hash,
              result: Either.flatMap(target, ({ into }) => Either.map(results.get(place++), () => into))
            })))
          }), { concurrency: groupsInFlight }),
        Stream.flattenChunks
      )

    const prefix = (hashes: ReadonlyArray<bigint>): number => {
      let length = 0
      while (length < hashes.length && find(hashes[length] ?? -1n) >= 0) length++
      return length
    }

    /** Reads through a lease: until it ends its slot is pinned, whatever has become of the hash. */
    const onboardLeased = (term: { ended: boolean }, slot: number, hash: bigint): Lease["onboard"] => (into) =>
      Effect.flatMap(
        inBatch("onboard", 1, ({ outcomes }: BlockResults<number, OnboardError>) =>
          gate.run(1, (_, batch) => {
            const error = term.ended || index.isRetired(slot) ? new BlockNotFound({ hash }) : lengthRefused(hash, into)
            if (error === undefined) return read(batch, outcomes, 0, slot, { hash, into })
            outcomes[0] = Either.left(() => error)
            batch.landed()
            batch.ended()
          })),
        (results) => Effect.asVoid(results.get(0))
      )

    /** Pins what is found of some hashes in the same step: nothing can go between. */
    const lease = (
      choose: () => ReadonlyArray<bigint>
    ): Effect.Effect<ReadonlyArray<Lease>, never, Scope.Scope> =>
      Effect.uninterruptible(Effect.suspend(() => {
        const leases = choose().map((hash) => ({ hash, slot: index.find(hash) }))
        for (const { slot } of leases) index.pin(slot)
        const term = { ended: false }
        const unpin = Effect.sync(() => {
          term.ended = true
          for (const { slot } of leases) index.unpin(slot)
        })
        return Effect.as(
          Effect.addFinalizer(() => unpin),
          leases.map(({ hash, slot }): Lease => ({ hash, onboard: onboardLeased(term, slot, hash) }))
        )
      }))

    const ofEach = (hashes: ReadonlyArray<bigint>, use: (slot: number, hash: bigint) => void): Effect.Effect<number> =>
      Effect.sync(() => {
        let found = 0
        for (const hash of hashes) {
          const slot = find(hash)
          if (slot < 0) continue
          found += 1
          use(slot, hash)
        }
        return found
      })

    const dropped = (reason: RemovalReason) => (slot: number) => {
      const hash = index.hashOf(slot)
      index.drop(slot)
      removed(hash, reason)
    }

    const geometryOf = (number: number): restart.Geometry => ({ blockBytes, slots: capacities[number] ?? 0, checksum })

    /** Takes up what the last clean end has left on storages that were kept, all of one end; anything doubtful is left out. */
    const takeUp = Effect.gen(function*() {
      const indexes: Array<
        { readonly number: number; readonly index: restart.Index }
      > = []
      for (const [number, storage] of storages.entries()) {
        if (storage.keptAt?.takenUp !== true) continue
        const found = yield* Effect.catchAll(restart.read(storage, geometryOf(number)), (error) =>
          Effect.succeed({ _tag: "Unusable" as const, reason: error.message }))
        if (found._tag === "Index") {
          indexes.push({ number, index: found })
        } else {
          yield* Effect.logWarning("the block store starts empty on a storage that was kept").pipe(
            Effect.annotateLogs({ path: storage.keptAt.path, reason: found.reason })
          )
        }
      }
      if (
        indexes.some((one) =>
          one.index.ended !== indexes[0]?.index.ended
        )
      ) {
        return yield* Effect.logWarning("the block store starts empty: its storages were not kept together").pipe(
          Effect.annotateLogs({ paths: indexes.map(({ number }) => storages[number]?.keptAt?.path) })
        )
      }
      for (const { index: { count, visit }, number } of indexes) {
        yield* inTurns(0, count, (from, to) =>
          visit(from, to, (hash, place, priority, words) =>
            void index.restore(number, place, hash, priority, words)))
        index.restored(number)
      }
    })

    /** Writes the index to the storages that are to be kept. What fails costs the blocks, and nothing else. */
    const keep = Effect.gen(function*() {
      const kept = storages.flatMap((storage, number) =>
        storage.keptAt === undefined || index.storages[number]?.failed !== false ? [] : [{ storage, number }]
      )
      if (kept.length === 0) {
        return
      }
      const word = Effect.map(Random.nextIntBetween(0, 2 ** 32), BigInt)
      const ended = ((yield* word) << 32n) | (yield* word)
      const slotsInOrder: Array<Array<number>> = storages.map(() => [])
      for (let priority = 0; priority < priorities; priority++) {
        let slot = index.oldestOf(priority)
        while (slot >= 0) {
          for (let seen = 0; seen < blocksPerTurn && slot >= 0; seen++, slot = index.newerThan(slot)) {
            slotsInOrder[index.storageOf(slot)]?.push(slot)
          }
          yield* checksums.eventLoopTurn
        }
      }
      for (const { number, storage } of kept) {
        const slots = slotsInOrder[number] ?? []
        const encoder = restart.encoder(geometryOf(number), ended, slots.length)
        yield* inTurns(0, slots.length, (from, to) => {
          for (const slot of slots.slice(from, to)) {
            encoder.put(index.hashOf(slot), index.placeOf(slot), index.priorityOf(slot), index.checksumOf(slot))
          }
        })
        const bytes = yield* encoder.bytes
        yield* Effect.catchAll(
          Effect.zipRight(restart.write(storage, geometryOf(number), bytes), storage.keep),
          (error) =>
            Effect.logWarning("a storage of the block store is not kept: the next start finds it empty", error).pipe(
              Effect.annotateLogs({ path: storage.path })
            )
        )
      }
    })

    yield* takeUp
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closed = true
        events.close()
      }).pipe(Effect.zipRight(door.close), Effect.zipRight(keep))
    )

    return {
      [TypeId]: TypeId,
      blockBytes,
      capacity: index.capacity,
      checksum,
      offload,
      onboard,
      offloadStream,
      onboardStream,
      match: (hashes) =>
        Effect.sync(() =>
          prefix(hashes)
        ),
      has: (hash) => Effect.sync(() => find(hash) >= 0),
      lease: (hash) =>
        Effect.flatMap(
          lease(() => find(hash) < 0 ? [] : [hash]),
          ([only]) => only === undefined ? Effect.fail(new BlockNotFound({ hash })) : Effect.succeed(only)
        ),
      leasePrefix: (hashes) => lease(() => hashes.slice(0, prefix(hashes))),
      touch: (hashes) => ofEach(hashes, (slot) => index.touch(slot)),
      remove: (hashes) => ofEach(hashes, dropped("removed")),
      reset: Effect.suspend(() => walk(everyStorage, dropped("reset"))),
      hashes: Effect.suspend(() => {
        const found: Array<bigint> = []
        return Effect.as(
          walk(everyStorage, (slot) => {
            const hash = index.hashOf(slot)
            if (find(hash) === slot) found.push(hash)
          }),
          found
        )
      }),
      stats: Effect.sync((): Stats => ({
        capacity: index.capacity,
        blocks: index.blocks,
        pinned: index.pinned,
        inFlight: gate.taken,
        ...counts,
        storages: index.storages.map(({ base, blocks, capacity, failed, freed, fresh, retired }, number) => {
          const free = freed + base + capacity - fresh
          return {
            path: storages[number]?.path ?? "",
            capacity,
            blocks,
            free: failed ? 0 : free,
            retired: failed ? retired + free : retired,
            failed
          }
        })
      })),
      events: events.stream
    }
  })
