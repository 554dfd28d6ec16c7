/**
 * The index of a block store, kept with its blocks at the end of each storage: written at a clean end, taken up by the next start.
 * That the blocks are as they were then is what `DiskStorage` promises of a file that was kept; here it is made sure that the index is
 * whole, of this version, of this geometry, and of the same end as those of the other storages.
 *
 * A page of header (little-endian): magic, version, checksum, bytes of a block, slots, blocks, a number drawn at that end, SHA-256 of
 * all the rest. Behind it 32 bytes for each block, from the least to the most recently used of each priority: hash, place, priority,
 * checksum.
 */
import * as Effect from "effect/Effect"
import { createHash } from "node:crypto"
import * as AlignedBuffer from "../AlignedBuffer.js"
import type { Checksum } from "../BlockStore.js"
import type { DiskStorage } from "../DiskStorage.js"
import type { BytesError } from "../DiskStorageError.js"
import { eventLoopTurn } from "./blockChecksum.js"
import { checksumWords } from "./blockIndex.js"

const magic = 0x5349_4253_4445_0001n
const version = 1
const headerBytes = AlignedBuffer.pageSize
const entryBytes = 32
const digestAt = 64
const digestBytes = 32
const checksums: ReadonlyArray<Checksum> = ["off", "crc32", "xxh128"]

/** What an index must have been made for to be taken up. */
export interface Geometry {
  readonly blockBytes: number
  readonly slots: number
  readonly checksum: Checksum
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

const digest = (bytes: Uint8Array): Effect.Effect<Buffer> =>
  Effect.suspend(() => {
    const hash = createHash("sha256").update(bytes.subarray(0, digestAt))
    let from = digestAt + digestBytes
    return Effect.map(
      Effect.whileLoop({
        while: () => from < bytes.byteLength,
        body: () => eventLoopTurn,
        step: () => {
          hash.update(bytes.subarray(from, from + digestedPerTurn))
          from += digestedPerTurn
        }
      }),
      () => hash.digest()
    )
  })

/** Takes the blocks of an index one after the other, `count` of them; `bytes` is it then. */
export interface Encoder {
  readonly put: Put
  readonly bytes: Effect.Effect<Uint8Array>
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
  let at = headerBytes
  return {
    put: (hash, place, priority, words) => {
      view.setBigUint64(at, hash, true)
      view.setUint32(at + 8, place, true)
      view.setUint32(at + 12, priority, true)
      for (let word = 0; word < checksumWords; word++) view.setInt32(at + 16 + word * 4, words[word] ?? 0, true)
      at += entryBytes
    },
    bytes: Effect.map(digest(bytes), (digest) => {
      bytes.set(digest, digestAt)
      return bytes
    })
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
const countOf = (header: DataView, { blockBytes, checksum, slots }: Geometry): number | string => {
  if (header.getBigUint64(0, true) !== magic) return "there is no index"
  if (header.getUint32(8, true) !== version) return `the index is of version ${header.getUint32(8, true)}`
  if (checksums[header.getUint32(12, true)] !== checksum) return "the index has other checksums"
  if (header.getBigUint64(16, true) !== BigInt(blockBytes)) return "the index is of blocks of another size"
  if (header.getBigUint64(24, true) !== BigInt(slots)) return "the index is of another number of slots"
  const count = Number(header.getBigUint64(32, true))
  return count <= slots ? count : "the index is torn"
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

export const decode = (bytes: Uint8Array, geometry: Geometry): Effect.Effect<Found> => {
  const torn = unusable("the index is torn")
  if (bytes.byteLength < headerBytes) return Effect.succeed(torn)
  const view = viewOf(bytes)
  const count = countOf(view, geometry)
  if (typeof count === "string") return Effect.succeed(unusable(count))
  if (bytes.byteLength !== headerBytes + count * entryBytes) return Effect.succeed(torn)
  return Effect.map(digest(bytes), (digest) => {
    if (!digest.equals(bytes.subarray(digestAt, digestAt + digestBytes))) return torn
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

export const read = (storage: DiskStorage, geometry: Geometry): Effect.Effect<Found, BytesError> =>
  Effect.gen(function*() {
    const start = geometry.slots * geometry.blockBytes
    const header = yield* storage.readBytes(start, headerBytes)
    const count = countOf(viewOf(header), geometry)
    return typeof count === "string"
      ? unusable(count)
      : yield* decode(yield* storage.readBytes(start, headerBytes + count * entryBytes), geometry)
  })

export const write = (
  storage: DiskStorage,
  geometry: Geometry,
  index: Uint8Array
): Effect.Effect<void, BytesError> => storage.writeBytes(geometry.slots * geometry.blockBytes, index)
