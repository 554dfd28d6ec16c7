/**
 * The block store: batches of transfers between buffers and slots. Whatever becomes of a transfer is entered into the index in one
 * step of plain code, so that nobody sees half of it, and an interruption comes before a transfer or after it.
 */
import * as Arr from "effect/Array"
import * as Chunk from "effect/Chunk"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Mailbox from "effect/Mailbox"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
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
  BufferUnavailable,
  InvalidBlock,
  InvalidOption,
  IoFailed,
  NoStorageLeft,
  StoreClosed,
  StoreFull
} from "../DiskStorageError.js"
import type { IoEngine, Results } from "../IoEngine.js"
import * as OffloadFilter from "../OffloadFilter.js"
import type { Syscalls } from "../Syscalls.js"
import { Region } from "./alignedBuffer.js"
import * as argument from "./arguments.js"
import type { Batch } from "./blockBatch.js"
import { Gate } from "./blockBatch.js"
import * as checksums from "./blockChecksum.js"
import { BlockEvents } from "./blockEvents.js"
import { BlockIndex, priorities } from "./blockIndex.js"
import * as restart from "./blockRestart.js"
import { BlockResults } from "./blockResults.js"
import * as diskStorage from "./diskStorage.js"
import { makeDoor } from "./door.js"
import { wholeNumber } from "./engineOptions.js"
import { isWellFormed } from "./pathText.js"
import { inTurns } from "./turns.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/BlockStore")

const maxHash = 2n ** 64n - 1n

/** Lines, links, checksum and two buckets of the index, as it is made. */
const indexBytesPerSlot = 32 + 8 + 16 + 8

/** Links between slots are 32-bit; more slots than this would also take more memory than one array can have. */
const maxSlots = 2 ** 27

/** Groups of a stream that are moved at once: the next is on its way while the last blocks of one are still being moved. */
const groupsInFlight = 2

/** Slots that a walk over all of them looks at before the event loop has a turn: some milliseconds of the dearest walk. */
const slotsPerTurn = 8192

const isHash = (hash: bigint): boolean => typeof hash === "bigint" && hash >= 0n && hash <= maxHash

const invalidHash = (hash: unknown) =>
  new InvalidBlock({
    hash: typeof hash === "bigint" ? hash : argument.shown(hash),
    what: "hash",
    expected: "an unsigned integer of 64 bits, as a bigint"
  })

const noBlock = (value: unknown, expected: string) =>
  new InvalidBlock({ hash: argument.shown(value), what: "block", expected })

const stored = Either.right("stored" as const)
const duplicate = Either.right("duplicate" as const)
const filtered = Either.right("filtered" as const)

/** What of the counts are metrics, too. */
const metricEvents = ["hits", "misses", "stored", "evicted", "corrupted", "failed"] as const

/** What a transfer of a block fails with. */
interface Failure {
  readonly _tag: string
  readonly message: string
  readonly code?: number | string | undefined
  readonly errno?: number | undefined
}

/** CuFileFailed by the disk: with an errno, CU_FILE_IO_ERROR, or nothing moved and no reason. What else fails there is the driver's. */
const isDiskFault = ({ code, errno }: Failure): boolean => errno !== undefined || code === 5044 || code === 0

/** Memory that no engine reaches, only for stores without checksums, which need not look at it. */
export interface Foreign<E extends Failure> {
  readonly byteLength: number
  /** Moves the block of a slot, and calls `done` once, as an engine does. */
  readonly move: (
    kind: "read" | "write",
    storage: DiskStorage,
    offset: number,
    done: (error: TransferError | E | undefined) => void
  ) => void
}

type Memory<E extends Failure> = AlignedBuffer.AlignedBuffer | Foreign<E>

export interface BlockOf<E extends Failure> extends Omit<Block, "data"> {
  readonly data: Memory<E>
}

export interface DestinationOf<E extends Failure> extends Omit<Destination, "into"> {
  readonly into: Memory<E>
}

/** What a store without checksums can besides. */
export interface WithForeign {
  readonly storages: ReadonlyArray<DiskStorage>
  readonly offload: <E extends Failure>(
    blocks: ReadonlyArray<BlockOf<E>>
  ) => Effect.Effect<Results<OffloadError | E, Offloaded>, InvalidOption>
  readonly onboard: <E extends Failure>(
    destinations: ReadonlyArray<DestinationOf<E>>
  ) => Effect.Effect<Results<OnboardError | E>, InvalidOption>
}

const unchecked = new WeakMap<BlockStore, WithForeign>()

/** Undefined of a store with checksums. */
export const withForeign = (store: BlockStore): WithForeign | undefined => unchecked.get(store)

const bufferOf = (memory: Memory<Failure>): AlignedBuffer.AlignedBuffer => {
  if ("move" in memory) throw new TypeError("a store with checksums has to look at the bytes")
  return memory
}

/** A hash that is being written; `waiters` are told when that has ended. */
interface Writing {
  ended: boolean
  waiters: Set<() => void> | undefined
}

/** Blocks of whole pages can be moved by every kind of direct I/O with pages below it. */
export const wholePages = (blockBytes: number): number =>
  Math.ceil(blockBytes / AlignedBuffer.pageSize) * AlignedBuffer.pageSize

/** More storages than any machine has disks. */
const maxStorages = 4096

const directoriesRefused = (directories: unknown): InvalidOption | undefined => {
  const refused = argument.arrayRefused("directories", directories, maxStorages)
  if (refused !== undefined || !Array.isArray(directories)) return refused
  if (directories.length === 0) return argument.invalid("directories", directories, "one directory at least")
  // Not of `every`, which passes over holes.
  for (let number = 0; number < directories.length; number++) {
    const wrong = argument.stringRefused(`directories[${number}]`, directories[number], "a path")
    if (wrong !== undefined) return wrong
  }
  return undefined
}

/** A storage in each directory, which together have the size that is asked for; or one that is kept, with room for its index. */
export const storages = (
  options: DiskStorageOptions,
  { blockBytes, directories, keepAt }: Pick<BlockStoreOptions, "blockBytes"> & {
    readonly directories?: readonly [string, ...ReadonlyArray<string>] | undefined
    readonly keepAt?: string | undefined
  }
): Effect.Effect<readonly [DiskStorage, ...Array<DiskStorage>], AcquireError, Syscalls | IoEngine | Scope.Scope> => {
  const refused = directories === undefined ? undefined : directoriesRefused(directories)
  if (refused !== undefined) return Effect.fail(refused)
  const block = wholePages(blockBytes)
  // What is no number is refused by `DiskStorage.make`.
  const blocks = typeof options.size === "number" ? Math.floor(options.size / block) : NaN
  if (blocks < 1) {
    return Effect.fail(
      new InvalidOption({
        option: "size",
        value: String(options.size),
        expected: `at least one block of ${block} bytes`
      })
    )
  }
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

/** The options, checked; and the checksum, loaded. */
export const resolve = (options: BlockStoreOptions) =>
  Effect.gen(function*() {
    yield* argument.unless(argument.objectRefused("options", options))
    const checksum = options.checksum ?? "xxh128"
    const { content = "" } = options
    yield* argument.unless(argument.stringRefused("content", content))
    if (!isWellFormed(content)) {
      const value = argument.shown(content)
      return yield* new InvalidOption({ option: "content", value, expected: "a text without lone surrogates" })
    }
    return {
      asked: yield* wholeNumber("blockBytes", options.blockBytes, 0, 1, 2 ** 32),
      maxBlocksInFlight: yield* wholeNumber("maxBlocksInFlight", options.maxBlocksInFlight, 32, 1, 65_536),
      eventCapacity: yield* wholeNumber("eventCapacity", options.eventCapacity, 4096, 1, 2 ** 24),
      failureLimit: yield* wholeNumber("failureLimit", options.failureLimit, 8, 1, 2 ** 31),
      content,
      checksum,
      checker: yield* checksums.make(checksum)
    }
  })

/** Something with the properties of a storage that a store uses at once; the rest is up to who made it. */
const storageRefused = (storages: unknown): InvalidOption | undefined => {
  const refused = argument.arrayRefused("storages", storages, maxStorages)
  if (refused !== undefined || !Array.isArray(storages)) return refused
  if (storages.length === 0) return argument.invalid("storages", storages, "one storage at least")
  for (let number = 0; number < storages.length; number++) {
    const storage: unknown = storages[number]
    if (argument.isObject(storage) && diskStorage.TypeId in storage) continue
    return argument.invalid(`storages[${number}]`, storage, "a DiskStorage")
  }
  return undefined
}

/** Two stores on one storage would read each other's blocks. */
const inUse = new WeakSet<DiskStorage>()

const claim = (storages: ReadonlyArray<DiskStorage>): Effect.Effect<void, InvalidOption, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.suspend(() => {
      for (const [number, storage] of storages.entries()) {
        if (!inUse.has(storage) && storages.indexOf(storage) === number) continue
        const expected = "storages that no other store uses, each once"
        return Effect.fail(new InvalidOption({ option: "storages", value: storage.path, expected }))
      }
      for (const storage of storages) inUse.add(storage)
      return Effect.void
    }),
    () =>
      Effect.sync(() => {
        for (const storage of storages) inUse.delete(storage)
      })
  )

export const make = (
  storages: readonly [DiskStorage, ...ReadonlyArray<DiskStorage>],
  options: BlockStoreOptions
): Effect.Effect<BlockStore, InvalidOption | BufferUnavailable, Scope.Scope> =>
  Effect.gen(function*() {
    yield* argument.unless(storageRefused(storages))
    const { asked, checker, checksum, content, eventCapacity, failureLimit, maxBlocksInFlight } = yield* resolve(
      options
    )
    const filter = yield* OffloadFilter.OffloadFilter
    yield* claim(storages)

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
    const index = yield* Effect.try({
      try: () =>
        new BlockIndex(
          capacities,
          (hash, failed) => {
            if (!failed) counts.evicted += 1
            removed(hash, failed ? "storage" : "evicted")
          },
          (number) => retiredOf(number)
        ),
      catch: (error) =>
        new BufferUnavailable({
          byteLength: slots * indexBytesPerSlot,
          reason: `${String(error)}. Larger blocks (blockBytes) need a smaller one`,
          purpose: `the index of ${slots} blocks`
        })
    })
    /** Blocks in flight hold their slots: never more than there are. */
    const gate = new Gate(Math.min(maxBlocksInFlight, slots))
    /** Blocks that were read and are not verified yet do, too: so many beside those in flight, and always room to write. */
    let maxUnverified = Math.min(gate.permits, slots - gate.permits)
    let unverified = 0
    /** After slots have retired, or a storage. */
    const shrink = () => {
      const { usable } = index
      gate.permits = Math.max(1, Math.min(maxBlocksInFlight, usable))
      maxUnverified = Math.min(gate.permits, usable - gate.permits)
    }
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
        return inTurns(base, fresh, slotsPerTurn, (from, to) => index.visit(from, to, each))
      }, { discard: true })
    const everyStorage = storages.map((_, number) => number)

    /** Failures in a row, by storage; reads that succeed say nothing of writes. */
    const failures = { read: storages.map(() => 0), write: storages.map(() => 0) }
    /** Slots that retired on a storage that worked, by cause; and the failure that came last, which says why a storage was taken out. */
    const faults = storages.map(() => ({ corrupted: 0, failed: 0, stalled: 0 }))
    const lastFault: Array<Failure | undefined> = storages.map(() => undefined)
    const reasons: Array<string | undefined> = storages.map(() => undefined)

    /** For the log: storages that were taken out, and slots that retired. */
    const reports = yield* Queue.unbounded<Effect.Effect<void>>()
    const reported = Effect.flatMap(Queue.takeAll(reports), (rest) => Effect.all(rest, { discard: true }))
    const annotated = (number: number, more: Record<string, unknown>) =>
      Effect.annotateLogs({ path: storages[number]?.path, ...more })
    /** The blocks of a storage that was taken out are found no more from then on, and leave the index bit by bit. */
    const purge = (number: number) =>
      walk([number], (slot) => {
        const hash = index.hashOf(slot)
        index.drop(slot)
        removed(hash, "storage")
      })
    yield* Effect.forkScoped(Effect.interruptible(Effect.forever(Effect.flatMap(Queue.take(reports), (one) => one))))

    const takeOut = (number: number, error: Failure, why: string): void => {
      index.fail(number)
      shrink()
      reasons[number] = `${why}: ${error.message}`
      const { blocks = 0, retired = 0 } = index.storages[number] ?? {}
      reports.unsafeOffer(
        Effect.logError(`a storage is taken out of the block store, with its blocks: ${why}`, error).pipe(
          annotated(number, { blocks, retired, ...faults[number] })
        )
      )
      reports.unsafeOffer(purge(number))
    }

    /** Said at 1, 2, 4, … slots of a storage: a disk that dies bit by bit must not fill the log. */
    const retiredOf = (number: number): void => {
      shrink()
      const error = lastFault[number]
      const { capacity = 0, retired = 0 } = index.storages[number] ?? {}
      if (error === undefined) return
      if (retired === capacity) return takeOut(number, error, "none of its slots can be used any more")
      if ((retired & (retired - 1)) !== 0) return
      reports.unsafeOffer(
        Effect.logWarning("slots of a block store are not used any more: what was read or written there failed", error)
          .pipe(annotated(number, { retired, capacity, ...faults[number] }))
      )
    }

    /** Whether the range that a transfer failed on is to be used no more. */
    const isFault = (error: Failure): boolean =>
      error._tag === "IoFailed" || error._tag === "IoStalled" || error._tag === "StorageClosed" ||
      (error._tag === "CuFileFailed" && isDiskFault(error))
    /** Whether a transfer failed because of its storage, which is to be used no more after too many. */
    const isOfStorage = (error: Failure): boolean => isFault(error) || error._tag === "StorageDegraded"
    /** A failure of the storage that a slot lies on; before the slot retires because of it. */
    const failedOn = (kind: "read" | "write", slot: number, error: Failure): void => {
      const number = index.storageOf(slot)
      const storage = index.storages[number]
      const inARow = (failures[kind][number] ?? 0) + 1
      failures[kind][number] = inARow
      lastFault[number] = error
      if (storage === undefined || storage.failed) return
      if (error._tag === "StorageClosed") takeOut(number, error, "it is closed")
      else if (inARow >= failureLimit) takeOut(number, error, `${inARow} ${kind}s in a row failed`)
    }
    /** A slot is about to retire. */
    const faultOn = (slot: number, cause: "corrupted" | "failed" | "stalled"): void => {
      const found = faults[index.storageOf(slot)]
      if (found !== undefined && !index.isRetired(slot)) found[cause] += 1
    }
    const causeOf = (error: Failure) => error._tag === "IoStalled" ? "stalled" as const : "failed" as const

    /** The disk gave other bytes than it was given. It counts as a read that failed, once for all who read the block meanwhile. */
    const corrupted = (slot: number, hash: bigint): BlockCorrupted => {
      const storage = storageAt(slot)
      const error = new BlockCorrupted({ hash, path: storage.path, offset: offsetOf(slot), checksum })
      if (index.isRetired(slot)) return error
      counts.corrupted += 1
      diskStorage.countCorrupted(storage)
      DiskMetrics.errors("read", "CORRUPTED").unsafeUpdate(1, [])
      if (index.isReady(slot) && events.wanted) events.push({ _tag: "Corrupted", hash })
      faultOn(slot, "corrupted")
      failedOn("read", slot, error)
      index.drop(slot, true)
      return error
    }

    /** What throws is no engine of this package; nothing of it may be left behind. */
    const transfer = <E extends Failure>(
      batch: Batch,
      kind: "read" | "write",
      slot: number,
      memory: Memory<E>,
      done: (error: TransferError | E | undefined) => void
    ): void => {
      const offset = offsetOf(slot)
      try {
        const storage = storageAt(slot)
        if ("move" in memory) memory.move(kind, storage, offset, done)
        else storage.unsafeTransfer(kind, { offset, buffer: memory }, done)
      } catch (defect) {
        batch.die(defect)
        done(new IoFailed({ operation: kind, offset, length: blockBytes, bytesDone: 0, cause: undefined }))
      }
    }

    const lengthOf = (memory: unknown): number | undefined => {
      if (memory instanceof Region) return memory.byteLength
      const isForeign = checker === undefined && argument.isObject(memory) && "move" in memory && "byteLength" in memory
      return isForeign && typeof memory.byteLength === "number" ? memory.byteLength : undefined
    }

    const memoryRefused = (hash: bigint, memory: unknown): InvalidBlock | undefined => {
      const length = lengthOf(memory)
      if (length === blockBytes) return undefined
      return length === undefined
        ? new InvalidBlock({ hash, what: "memory", expected: `an AlignedBuffer of ${blockBytes} bytes` })
        : new InvalidBlock({ hash, what: "length", expected: `a buffer of exactly ${blockBytes} bytes` })
    }

    const refused = (block: BlockOf<Failure> | undefined): InvalidBlock | undefined => {
      if (!argument.isObject(block)) return noBlock(block, "a hash and data")
      const { data, hash, priority = 0 } = block
      if (!isHash(hash)) return invalidHash(hash)
      if (!Number.isInteger(priority) || priority < 0 || priority >= priorities) {
        return new InvalidBlock({ hash, what: "priority", expected: `a whole number from 0 to ${priorities - 1}` })
      }
      return memoryRefused(hash, data)
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
          Effect.withSpan(`BlockStore.${transfer}`, { attributes: { blocks }, captureStackTrace: false })
        )
      })

    const noRoom = (hash: bigint, priority: number): () => OffloadError => {
      const { capacity, occupied } = index
      if (index.storages.every(({ failed }) => failed)) {
        return () =>
          new NoStorageLeft({
            paths: storages.map(({ path }) => path),
            reasons: reasons.map((why) => why ?? "it failed")
          })
      }
      const { pinned, retired, writing } = occupied
      // Nothing is free, and what could be evicted was.
      const higher = capacity - pinned - retired - writing
      return () => new StoreFull({ hash, priority, capacity, pinned, writing, higher, retired })
    }

    /**
     * The end of a write that succeeded: from now on the block is found. Undefined where its storage was taken out meanwhile. Where
     * somebody else has put a block of that hash there meanwhile, it makes way for one that replaces it only.
     */
    const written = (
      slot: number,
      hash: bigint,
      priority: number,
      replace: boolean
    ): typeof stored | typeof duplicate | undefined => {
      if (index.storages[index.storageOf(slot)]?.failed !== false) {
        index.giveBack(slot, true)
        return undefined
      }
      failures.write[index.storageOf(slot)] = 0
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
      for (const listing of listings) listing.add(hash)
      counts.stored += 1
      if (events.wanted) events.push({ _tag: "Stored", hash })
      return stored
    }

    /**
     * Writes those of `todo` that are not there. What somebody else is writing is left, and told: whether that succeeds is not known yet.
     */
    const offloadOnce = <E extends Failure>(
      blocks: ReadonlyArray<BlockOf<E>>,
      todo: ReadonlyArray<number>,
      replace: boolean,
      { outcomes }: BlockResults<Offloaded, OffloadError | E>
    ): Effect.Effect<ReadonlyArray<{ readonly place: number; readonly other: Writing }>> =>
      Effect.suspend(() => {
        const left: Array<{ readonly place: number; readonly other: Writing }> = []
        /** Looks at the caller's block once: what becomes of it later changes nothing. */
        const begin = (number: number, batch: Batch): void => {
          const place = todo[number] ?? -1
          const block = blocks[place]
          const error = refused(block)
          if (block !== undefined && error === undefined) {
            return put(number, place, block.hash, block.data, block.priority ?? 0, batch)
          }
          outcomes[place] = Either.left(() => error ?? noBlock(block, "a hash and data"))
          batch.landed()
          batch.ended()
        }
        const put = (
          number: number,
          place: number,
          hash: bigint,
          data: Memory<E>,
          priority: number,
          batch: Batch
        ): void => {
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
          if (slot < 0) return end(Either.left(noRoom(hash, priority)))
          const entry: Writing = { ended: false, waiters: undefined }
          if (!replace) writing.set(hash, entry)
          let error: TransferError | E | undefined
          let pending = checker === undefined ? 1 : 2
          /** Of the write and the checksum, which go side by side. */
          const partEnded = () => {
            pending -= 1
            if (pending > 0) return
            let outcome: typeof outcomes[number]
            if (error === undefined) outcome = written(slot, hash, priority, replace)
            else {
              const failure = error
              const fault = isFault(failure)
              if (fault) faultOn(slot, causeOf(failure))
              if (isOfStorage(failure)) {
                counts.failed += 1
                failedOn("write", slot, failure)
              }
              // Nothing is known of a slot whose write failed; one that had no answer may even be written to later.
              index.giveBack(slot, fault)
              outcome = Either.left(() => failure)
            }
            if (!replace) writing.delete(hash)
            entry.ended = true
            // Its storage was taken out: there may be another.
            if (outcome === undefined) batch.again(number)
            else end(outcome)
            // Last, since a waiter runs the caller's code.
            if (entry.waiters !== undefined) { for (const waiter of entry.waiters) waiter() }
          }
          transfer(batch, "write", slot, data, (failed) => {
            error = failed
            partEnded()
          })
          checker?.soon(blockBytes, () => {
            index.seal(slot, checker.compute(bufferOf(data).bytes))
            partEnded()
          })
        }
        return Effect.as(gate.run(todo.length, begin), left)
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

    /** The places of the blocks that are to be offloaded: all but those that are new and that the filter does not let through. */
    const worthIt = <E extends Failure>(
      blocks: ReadonlyArray<BlockOf<E>>,
      { outcomes }: BlockResults<Offloaded, OffloadError | E>
    ): Effect.Effect<ReadonlyArray<number>> => {
      const places = Arr.makeBy(blocks.length, (place) => place)
      if (filter === OffloadFilter.none) return Effect.succeed(places)
      const hashes = places.map((place) => {
        const block = blocks[place]
        return refused(block) === undefined ? block?.hash : undefined
      })
      const asked = [...new Set(hashes)]
        .filter((hash): hash is bigint => hash !== undefined && index.find(hash) < 0)
      return Effect.map(filter.admit(asked), (admitted) => {
        const out = new Set<bigint | undefined>(asked.filter((_, number) => admitted[number] !== true))
        const isOut = (place: number) => out.has(hashes[place])
        for (const place of places) {
          if (!isOut(place)) continue
          outcomes[place] = filtered
          counts.filtered += 1
        }
        return places.filter((place) => !isOut(place))
      })
    }

    const offload = <E extends Failure = never>(
      blocks: ReadonlyArray<BlockOf<E>>,
      options: { readonly replace?: boolean | undefined } = {}
    ) => {
      const wrong = argument.arrayRefused("blocks", blocks, argument.maxBatch) ??
        argument.objectRefused("options", options) ?? argument.booleanRefused("replace", options.replace)
      if (wrong !== undefined) return Effect.fail(wrong)
      const { replace = false } = options
      return inBatch("offload", blocks.length, (results: BlockResults<Offloaded, OffloadError | E>) =>
        Effect.gen(function*() {
          let todo = replace
            ? Arr.makeBy(blocks.length, (place) =>
              place)
            : yield* worthIt(blocks, results)
          while (todo.length > 0) {
            const left = yield* offloadOnce(blocks, todo, replace, results)
            for (const { other } of left) {
              yield* ended(other)
            }
            todo = left.map(({ place }) =>
              place
            )
          }
        }))
    }

    /** Pages that the reads of a batch have filled: to the end of the batch no other read fills them. */
    type Filled = Array<Region>
    const letGo = (filled: Filled) =>
      Effect.sync(() => {
        for (const { slab, start } of filled) {
          slab.release(start, blockBytes)
        }
      })

    /** Reads the block of a slot, which is pinned meanwhile, and verifies it; what cannot be read is dropped. */
    const read = <E extends Failure>(
      batch: Batch,
      filled: Filled,
      outcomes: BlockResults<number, OnboardError | E>["outcomes"],
      place: number,
      slot: number,
      { hash, into: memory }: DestinationOf<E>
    ): void => {
      counts.hits += 1
      index.pin(slot)
      const end = (outcome: typeof outcomes[number], landed: boolean) => {
        // Before the next block is begun, which may need the slot.
        index.unpin(slot)
        outcomes[place] = outcome
        if (landed) batch.landed()
        batch.ended()
      }
      transfer(batch, "read", slot, memory, (error) => {
        if (error !== undefined) {
          const isCounted = index.isRetired(slot)
          if (isFault(error)) {
            if (index.isReady(slot)) removed(hash, "failed")
            faultOn(slot, causeOf(error))
            index.drop(slot, true)
          }
          if (isOfStorage(error)) {
            counts.failed += 1
            // One bad block that many read at once is one failure of the disk.
            if (!isCounted) failedOn("read", slot, error)
          }
          return end(Either.left(() => error), true)
        }
        // Another read to the same memory would fill it with another block, before the caller has seen this one.
        if (memory instanceof Region && memory.slab.claim(memory.start, blockBytes, false)) filled.push(memory)
        if (checker === undefined) {
          failures.read[index.storageOf(slot)] = 0
          return end(complete, true)
        }
        // The next block is on its way while this one is looked at.
        const into = bufferOf(memory)
        const ahead = unverified < maxUnverified
        unverified += 1
        if (ahead) batch.landed()
        checker.soon(blockBytes, () => {
          unverified -= 1
          const intact = index.verifies(slot, checker.compute(into.bytes))
          if (intact) {
            failures.read[index.storageOf(slot)] = 0
            return end(complete, !ahead)
          }
          const error = corrupted(slot, hash)
          end(Either.left(() => error), !ahead)
        })
      })
    }

    const onboard = <E extends Failure = never>(destinations: ReadonlyArray<DestinationOf<E>>) => {
      const wrong = argument.arrayRefused("destinations", destinations, argument.maxBatch)
      if (wrong !== undefined) return Effect.fail(wrong)
      return inBatch("onboard", destinations.length, ({ outcomes }: BlockResults<number, OnboardError | E>) => {
        const filled: Filled = []
        const each = (place: number, batch: Batch): void => {
          const end = (error: () => OnboardError) => {
            outcomes[place] = Either.left(error)
            batch.landed()
            batch.ended()
          }
          const destination = destinations[place]
          if (!argument.isObject(destination)) return end(() => noBlock(destination, "a hash and into"))
          const { hash, into } = destination
          const refused = isHash(hash) ? memoryRefused(hash, into) : invalidHash(hash)
          if (refused !== undefined) return end(() => refused)
          const slot = index.find(hash)
          if (slot >= 0) return read(batch, filled, outcomes, place, slot, destination)
          counts.misses += 1
          end(() => new BlockNotFound({ hash }))
        }
        return Effect.ensuring(gate.run(destinations.length, each), letGo(filled))
      })
    }

    /**
     * Moves as many as have come while earlier ones were moved, and no more at a time than may be in flight: nobody upstream is waited
     * for. What has come is moved and told of even where upstream then fails.
     */
    const inGroups = <A, B, E, R>(
      stream: Stream.Stream<A, E, R>,
      move: (group: ReadonlyArray<A>) => Effect.Effect<ReadonlyArray<B>>
    ): Stream.Stream<B, E, R> =>
      Stream.unwrapScoped(Effect.map(Mailbox.fromStream(Stream.either(stream), { capacity: gate.permits }), (come) =>
        Mailbox.toStream(come).pipe(
          Stream.chunks,
          Stream.mapEffect((group) => {
            const [failures, some] = Arr.separate(group)
            return Effect.map(move(some), (moved) =>
              Chunk.unsafeFromArray<Either.Either<B, E>>([
                ...moved.map((one) =>
                  Either.right(one)
                ),
                ...failures.map((error) =>
                  Either.left(error)
                )
              ]))
          }, { concurrency: groupsInFlight }),
          Stream.flattenChunks,
          Stream.mapEffect((one) => one)
        )))

    const streamRefused = (option: string, value: unknown): InvalidOption | undefined =>
      argument.isObject(value) && Stream.StreamTypeId in value ? undefined : argument.invalid(option, value, "a Stream")

    /** An element without a hash is shown as one with −1, which no block has. */
    const hashOf = (block: Block | null | undefined): bigint => block?.hash ?? -1n

    const offloadStream: BlockStore["offloadStream"] = (blocks) => {
      const wrong = streamRefused("blocks", blocks)
      if (wrong !== undefined) return Stream.fail(wrong)
      return inGroups(blocks, (group) =>
        Effect.map(Effect.orDie(offload(group)), (results) =>
          group.map((block, place) => ({ hash: hashOf(block), result: results.get(place) }))))
    }

    const onboardStream: BlockStore["onboardStream"] = (hashes) => {
      const wrong = streamRefused("hashes", hashes)
      if (wrong !== undefined) {
        return Stream.fail(wrong)
      }
      return inGroups(hashes, (group) =>
        Effect.gen(function*() {
          const targets = yield* Effect.forEach(
            group,
            (hash) =>
              Effect.either(Effect.map(AlignedBuffer.make(blockBytes), (into) => ({ hash, into })))
          )
          const results = yield* Effect.orDie(onboard(Arr.getRights(targets)))
          let place = 0
          return Arr.zipWith(group, targets, (hash, target) => ({
            hash,
            result: Either.flatMap(target, ({ into }) =>
              Either.map(results.get(place++), () =>
                into))
          }))
        }))
    }

    const prefix = (hashes: ReadonlyArray<bigint>): number => {
      let length = 0
      while (length < hashes.length && find(hashes[length] ?? -1n) >= 0) length++
      return length
    }

    /** Reads through a lease: until it ends its slot is pinned, whatever has become of the hash. */
    const onboardLeased = (term: { ended: boolean }, slot: number, hash: bigint): Lease["onboard"] => (into) =>
      Effect.suspend(() => {
        const filled: Filled = []
        return Effect.flatMap(
          inBatch("onboard", 1, ({ outcomes }: BlockResults<number, OnboardError>) => {
            const only = (_: number, batch: Batch): void => {
              const error = term.ended || index.isRetired(slot)
                ? new BlockNotFound({ hash })
                : memoryRefused(hash, into)
              if (error === undefined) return read(batch, filled, outcomes, 0, slot, { hash, into })
              outcomes[0] = Either.left(() => error)
              batch.landed()
              batch.ended()
            }
            return Effect.ensuring(gate.run(1, only), letGo(filled))
          }),
          (results) => Effect.asVoid(results.get(0))
        )
      })

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

    /** Nothing is done where one of the hashes is none. */
    const ofEach = (
      hashes: ReadonlyArray<bigint>,
      use: (slot: number, hash: bigint) => void
    ): Effect.Effect<number, InvalidBlock | InvalidOption> =>
      Effect.suspend((): Effect.Effect<number, InvalidBlock | InvalidOption> => {
        const wrong = argument.arrayRefused("hashes", hashes, argument.maxHashes)
        if (wrong !== undefined) return Effect.fail(wrong)
        for (const hash of hashes) if (!isHash(hash)) return Effect.fail(invalidHash(hash))
        let found = 0
        for (const hash of hashes) {
          const slot = closed ? -1 : index.find(hash)
          if (slot < 0) continue
          found += 1
          use(slot, hash)
        }
        return Effect.succeed(found)
      })

    /** How many of the first hashes are there, unless what ends the prefix is no hash. */
    const checkedPrefix = (hashes: ReadonlyArray<bigint>): Effect.Effect<number, InvalidBlock | InvalidOption> =>
      Effect.suspend((): Effect.Effect<number, InvalidBlock | InvalidOption> => {
        const wrong = argument.arrayRefused("hashes", hashes, argument.maxHashes)
        if (wrong !== undefined) return Effect.fail(wrong)
        const length = prefix(hashes)
        const next: unknown = hashes[length]
        return length === hashes.length || (typeof next === "bigint" && isHash(next))
          ? Effect.succeed(length)
          : Effect.fail(invalidHash(next))
      })

    const dropped = (reason: RemovalReason) => (slot: number) => {
      const hash = index.hashOf(slot)
      index.drop(slot)
      removed(hash, reason)
    }

    const geometryOf = (number: number): restart.Geometry => ({
      blockBytes,
      slots: capacities[number] ?? 0,
      checksum,
      content
    })
    let ready = false
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closed = true
      }).pipe(
        Effect.zipRight(door.close),
        Effect.zipRight(Effect.sync(() => events.close())),
        Effect.zipRight(reported),
        Effect.zipRight(
          Effect.suspend(() => ready ? restart.keep(storages, geometryOf, index) : restart.giveBack(storages))
        )
      )
    )
    yield* restart.takeUp(storages, geometryOf, index)
    ready = true

    /** The hashes that are being listed: a block that comes meanwhile may come behind the walk. */
    const listings = new Set<Set<bigint>>()
    const listed = Effect.acquireUseRelease(
      Effect.sync(() => {
        const listing = new Set<bigint>()
        listings.add(listing)
        return listing
      }),
      (listing) =>
        Effect.map(
          walk(everyStorage, (slot) => {
            const hash = index.hashOf(slot)
            if (find(hash) === slot) listing.add(hash)
          }),
          () => [...listing]
        ),
      (listing) => Effect.sync(() => listings.delete(listing))
    )

    const store: BlockStore = {
      [TypeId]: TypeId,
      blockBytes,
      capacity: index.capacity,
      checksum,
      offload,
      onboard,
      offloadStream,
      onboardStream,
      match: checkedPrefix,
      has: (hash) =>
        Effect.suspend(() => isHash(hash) ? Effect.succeed(find(hash) >= 0) : Effect.fail(invalidHash(hash))),
      lease: (hash) =>
        Effect.flatMap(
          lease(() => find(hash) < 0 ? [] : [hash]),
          ([only]) =>
            only === undefined
              ? Effect.fail(isHash(hash) ? new BlockNotFound({ hash }) : invalidHash(hash))
              : Effect.succeed(only)
        ),
      leasePrefix: (hashes) => Effect.zipRight(checkedPrefix(hashes), lease(() => hashes.slice(0, prefix(hashes)))),
      touch: (hashes) => ofEach(hashes, (slot) => index.touch(slot)),
      remove: (hashes) => ofEach(hashes, dropped("removed")),
      reset: Effect.catchTag(
        door.enter((restore) => restore(walk(everyStorage, dropped("reset")))),
        "StorageClosed",
        () => new StoreClosed({})
      ),
      hashes: listed,
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
            retiredBy: { ...(faults[number] ?? { corrupted: 0, failed: 0, stalled: 0 }) },
            failed,
            failure: reasons[number]
          }
        })
      })),
      events: events.stream
    }
    if (checker === undefined) unchecked.set(store, { storages, offload, onboard })
    return store
  })
