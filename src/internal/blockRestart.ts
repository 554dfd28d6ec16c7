/**
 * The index of a block store, kept with its blocks at the end of each storage: written at a clean end, taken up by the next start.
 * That the blocks are as they were then is what `DiskStorage` promises of a file that was kept. The mark that it is kept with is the
 * SHA-256 of the index: one that an earlier life has left there, or that is torn, is not taken for that of this content.
 *
 * A page of header (little-endian): magic, version, checksum, bytes of a block, slots, blocks, a number drawn at that end, SHA-256 of
 * what the blocks are of. Behind it 32 bytes for each block, from the least to the most recently used of each priority: hash, place,
 * priority, checksum.
 */
import * as Effect from "effect/Effect"
import { createHash, randomBytes } from "node:crypto"
import * as AlignedBuffer from "../AlignedBuffer.js"
import type { Checksum } from "../BlockStore.js"
import type { DiskStorage } from "../DiskStorage.js"
import type { BytesError, KeepFailed } from "../DiskStorageError.js"
import type { BlockIndex } from "./blockIndex.js"
import { checksumWords, priorities } from "./blockIndex.js"
import { eventLoopTurn, inTurns } from "./turns.js"

const magic = 0x5349_4253_4445_0001n
const version = 1
const headerBytes = AlignedBuffer.pageSize
const entryBytes = 32
const contentAt = 64
const contentBytes = 32
const checksums: ReadonlyArray<Checksum> = ["off", "crc32", "xxh128"]

/** What an index must have been made for to be taken up. */
export interface Geometry {
  readonly blockBytes: number
  readonly slots: number
  readonly checksum: Checksum
  /** What the blocks are of: their model, say. */
  readonly content: string
}

/** Takes a block of an index. `words`, its checksum, is good until the next one. */
export type Put = (hash: bigint, place: number, priority: number, words: Int32Array) => void

/** Bytes that the index of so many slots may take. */
export const areaBytes = (slots: number): number =>
  headerBytes + Math.ceil((slots * entryBytes) / AlignedBuffer.pageSize) * AlignedBuffer.pageSize

/** How many blocks fit in `size` bytes together with their index. */
export const slotsOf = (size: number, blockBytes: number): number => {
  let slots = Math.max(0, Math.floor((size - headerBytes) / (blockBytes + entryBytes)))
  while (slots > 0 && slots * blockBytes + areaBytes(slots) > size) slots--
  return slots
}

/** Bytes that are digested before the event loop has a turn: about a millisecond. */
const digestedPerTurn = 1024 * 1024

/** What a storage is kept with beside its index. */
export const markOf = (bytes: Uint8Array): Effect.Effect<Buffer> =>
  Effect.suspend(() => {
    const hash = createHash("sha256")
    return Effect.map(
      inTurns(0, bytes.byteLength, digestedPerTurn, (from, to) => void hash.update(bytes.subarray(from, to))),
      () => hash.digest()
    )
  })

const contentDigest = (content: string) => createHash("sha256").update(content).digest()

/** An index in the making: `put` takes its blocks one after the other. */
export interface Encoder {
  readonly put: Put
  readonly bytes: Uint8Array
}

export const encoder = (geometry: Geometry, ended: bigint, count: number): Encoder => {
  const bytes = new Uint8Array(headerBytes + count * entryBytes)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, magic, true)
  view.setUint32(8, version, true)
  view.setUint32(12, checksums.indexOf(geometry.checksum), true)
  view.setBigUint64(16, BigInt(geometry.blockBytes), true)
  view.setBigUint64(24, BigInt(geometry.slots), true)
  view.setBigUint64(32, BigInt(count), true)
  view.setBigUint64(40, ended, true)
  bytes.set(contentDigest(geometry.content), contentAt)
  let at = headerBytes
  return {
    put: (hash, place, priority, words) => {
      view.setBigUint64(at, hash, true)
      view.setUint32(at + 8, place, true)
      view.setUint32(at + 12, priority, true)
      for (let word = 0; word < checksumWords; word++) view.setInt32(at + 16 + word * 4, words[word] ?? 0, true)
      at += entryBytes
    },
    bytes
  }
}

/** An index: the end at which it was written, and its blocks, of which `visit` gives those from one number up to another. */
export interface Index {
  readonly _tag: "Index"
  readonly ended: bigint
  readonly count: number
  readonly visit: (from: number, to: number, put: Put) => void
}

/** What was found, or why it is of no use. */
export type Found = Index | { readonly _tag: "Unusable"; readonly reason: string }

const unusable = (reason: string): Found => ({ _tag: "Unusable", reason })

/** The number of blocks that a header tells of, or why it is not one of ours. */
const countOf = (header: DataView, { blockBytes, checksum, content, slots }: Geometry): number | string => {
  if (header.getBigUint64(0, true) !== magic) return "there is no index"
  if (header.getUint32(8, true) !== version) return `the index is of version ${header.getUint32(8, true)}`
  if (checksums[header.getUint32(12, true)] !== checksum) return "the index has other checksums"
  if (header.getBigUint64(16, true) !== BigInt(blockBytes)) return "the index is of blocks of another size"
  if (header.getBigUint64(24, true) !== BigInt(slots)) return "the index is of another number of slots"
  const found = new Uint8Array(header.buffer, header.byteOffset + contentAt, contentBytes)
  if (!contentDigest(content).equals(found)) return "its blocks are of something else"
  const count = Number(header.getBigUint64(32, true))
  return count <= slots ? count : "the index is torn"
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

export const decode = (bytes: Uint8Array, geometry: Geometry, mark: Uint8Array): Effect.Effect<Found> => {
  const torn = unusable("the index is torn")
  if (bytes.byteLength < headerBytes) return Effect.succeed(torn)
  const view = viewOf(bytes)
  const count = countOf(view, geometry)
  if (typeof count === "string") return Effect.succeed(unusable(count))
  if (bytes.byteLength !== headerBytes + count * entryBytes) return Effect.succeed(torn)
  return Effect.map(markOf(bytes), (found) => {
    if (!found.equals(mark)) return unusable("the index is torn, or not that of what was kept")
    return {
      _tag: "Index",
      ended: view.getBigUint64(40, true),
      count,
      visit: (from, to, put) => {
        const words = new Int32Array(checksumWords)
        for (let number = from; number < to; number++) {
          const at = headerBytes + number * entryBytes
          for (let word = 0; word < checksumWords; word++) words[word] = view.getInt32(at + 16 + word * 4, true)
          put(view.getBigUint64(at, true), view.getUint32(at + 8, true), view.getUint32(at + 12, true), words)
        }
      }
    }
  })
}

const read = (storage: DiskStorage, geometry: Geometry, mark: Uint8Array): Effect.Effect<Found, BytesError> =>
  Effect.gen(function*() {
    const start = geometry.slots * geometry.blockBytes
    const header = yield* storage.readBytes(start, headerBytes)
    const count = countOf(viewOf(header), geometry)
    return typeof count === "string"
      ? unusable(count)
      : yield* decode(yield* storage.readBytes(start, headerBytes + count * entryBytes), geometry, mark)
  })

/** Blocks that are looked at before the event loop has a turn: some milliseconds. */
const blocksPerTurn = 8192

/** Takes up what the last clean end has left on storages that were kept, all of one end; anything doubtful is left out. */
export const takeUp = (
  storages: ReadonlyArray<DiskStorage>,
  geometryOf: (number: number) => Geometry,
  index: BlockIndex
): Effect.Effect<void> =>
  Effect.gen(function*() {
    const found: Array<{ readonly number: number; readonly path: string; readonly kept: Index }> = []
    for (const [number, storage] of storages.entries()) {
      if (storage.keptAt?.mark === undefined) continue
      const { mark, path } = storage.keptAt
      const kept = yield* Effect.catchAll(
        read(storage, geometryOf(number), mark),
        (error) => Effect.succeed(unusable(error.message))
      )
      if (kept._tag === "Index") found.push({ number, path, kept })
      else {
        yield* Effect.logWarning("the block store starts empty on a storage that was kept").pipe(
          Effect.annotateLogs({ path, reason: kept.reason })
        )
      }
    }
    if (found.some(({ kept }) => kept.ended !== found[0]?.kept.ended)) {
      return yield* Effect.logWarning("the block store starts empty: its storages were not kept together").pipe(
        Effect.annotateLogs({ paths: found.map(({ path }) => path) })
      )
    }
    for (const { kept: { count, visit }, number } of found) {
      yield* inTurns(0, count, blocksPerTurn, (from, to) =>
        visit(from, to, (hash, place, priority, words) =>
          void index.restore(number, place, hash, priority, words)))
      const { base, fresh } = index.storages[number] ?? { base: 0, fresh: 0 }
      yield* inTurns(base, fresh, blocksPerTurn, (from, to) =>
        index.restored(number, from, to))
    }
  })

/** Gives storages back as they were taken up: nothing was written to them. */
export const giveBack = (storages: ReadonlyArray<DiskStorage>): Effect.Effect<void> =>
  Effect.forEach(
    storages,
    (storage) =>
      storage.keptAt?.mark === undefined ? Effect.void : notKept(storage, storage.keepAs(storage.keptAt.mark)),
    {
      discard: true
    }
  )

/** What fails costs the blocks, and nothing else. */
const notKept = (storage: DiskStorage, keep: Effect.Effect<void, BytesError | KeepFailed>): Effect.Effect<void> =>
  Effect.catchAll(
    keep,
    (error) =>
      Effect.logWarning("a storage of the block store is not kept: the next start finds it empty", error).pipe(
        Effect.annotateLogs({ path: storage.path })
      )
  )

/** Keeps those of the storages that are to be kept and that have not failed, with the index of their blocks. */
export const keep = (
  storages: ReadonlyArray<DiskStorage>,
  geometryOf: (number: number) => Geometry,
  index: BlockIndex
): Effect.Effect<void> =>
  Effect.gen(function*() {
    const kept = storages.flatMap((storage, number) =>
      storage.keptAt === undefined || index.storages[number]?.failed !== false ? [] : [{ storage, number }]
    )
    if (kept.length === 0) return
    // Not of `Random`, which may be seeded: two ends must not have the same.
    const ended = randomBytes(8).readBigUInt64LE()
    const slotsInOrder: Array<Array<number>> = storages.map(() => [])
    const put = (slot: number) => void slotsInOrder[index.storageOf(slot)]?.push(slot)
    for (let priority = 0; priority < priorities; priority++) {
      let slot = index.oldestOf(priority)
      while (slot >= 0) {
        for (let seen = 0; seen < blocksPerTurn && slot >= 0; seen++, slot = index.newerThan(slot)) put(slot)
        yield* eventLoopTurn
      }
    }
    // Those that are leased beyond the end of the store are in no list; they are the most recently used.
    if (index.pinned > 0) {
      for (const { base, fresh } of index.storages) {
        yield* inTurns(base, fresh, blocksPerTurn, (from, to) => index.visitPinned(from, to, put))
      }
    }
    for (const { number, storage } of kept) {
      const slots = (slotsInOrder[number] ?? []).filter((slot) => index.isReady(slot))
      const { bytes, put } = encoder(geometryOf(number), ended, slots.length)
      yield* inTurns(0, slots.length, blocksPerTurn, (from, to) => {
        for (const slot of slots.slice(from, to)) {
          put(index.hashOf(slot), index.placeOf(slot), index.priorityOf(slot), index.checksumOf(slot))
        }
      })
      const { blockBytes, slots: all } = geometryOf(number)
      yield* notKept(
        storage,
        Effect.zipRight(storage.writeBytes(all * blockBytes, bytes), Effect.flatMap(markOf(bytes), storage.keepAs))
      )
    }
  })
