/**
 * Which block lies in which slot, who uses it, and which one goes next. Plain code over typed arrays: half a cache line per slot,
 * chained into hash buckets, and a list per priority from the least to the most recently used, so that nothing here looks at more than
 * a few slots, however many there are.
 *
 * The table holds only blocks that can be read. The lists hold those of them that nobody uses: the head of one can always go.
 *
 * With a million slots the time goes into memory that is in no cache. The links of the lists, of which four are changed for every use,
 * therefore lie by themselves.
 */

import { randomFillSync } from "node:crypto"

/** Priorities are 0 to 15. */
export const priorities = 16

/** Words of a slot. */
const words = 8
const LOW = 0
const HIGH = 1
/** The next slot of the same bucket, or of the free list. Slots in links are counted from 1, so that 0 is none. */
const NEXT = 2
/** Readers and leases. */
const PINS = 3
const STATE = 4
const PRIORITY = 5
const STORAGE = 6
/** Whether the slot is not to be used again. */
const RETIRE = 7

/** Links of a slot in the list of its priority. */
const links = 2
const OLDER = 0
const NEWER = 1

/** Of the checksum, in words. */
export const checksumWords = 4

const FREE = 0
const WRITING = 1
const READY = 2
/** In the table no more, and still used by somebody. */
const LEAVING = 3
const RETIRED = 4

export interface StorageSlots {
  /** Its first slot; its others follow. */
  readonly base: number
  readonly capacity: number
  /** Slots from here on were never used. */
  fresh: number
  /** The first of those that are free again, and how many. */
  free: number
  freed: number
  blocks: number
  /** Read or leased, whatever has become of their hash. */
  pinned: number
  writing: number
  retired: number
  /** Set by `fail`. */
  failed: boolean
}

/** A mixer of two words. Without `keys` nobody can choose hashes that meet in one bucket. */
const mix = (low: number, high: number, keys: Int32Array): number => {
  let h = Math.imul(low ^ (keys[0] ?? 0), keys[1] ?? 1)
  h = Math.imul((h ^ (h >>> 15)) + (high ^ (keys[2] ?? 0)), keys[3] ?? 1)
  h = Math.imul(h ^ (h >>> 13), keys[1] ?? 1)
  return (h ^ (h >>> 16)) >>> 0
}

/** Multipliers are odd. */
const drawKeys = (): Int32Array => {
  const keys = randomFillSync(new Int32Array(4))
  return keys.map((key, number) => number % 2 === 1 ? key | 1 : key)
}

export class BlockIndex {
  readonly storages: ReadonlyArray<StorageSlots>
  readonly capacity: number
  blocks = 0
  /** Blocks that are read or leased. */
  pinned = 0
  private readonly lines: Int32Array
  private readonly list: Int32Array
  private readonly checksums: Int32Array
  private readonly buckets: Int32Array
  private readonly mask: number
  private readonly keys = drawKeys()
  /** Least and most recently used of each priority. */
  private readonly oldest = new Int32Array(priorities)
  private readonly newest = new Int32Array(priorities)
  private someFailed = false
  /** Whose turn it is to take a block. */
  private turn = 0
  private readonly hash64 = new BigUint64Array(1)
  private readonly hash32 = new Uint32Array(this.hash64.buffer)
  private readonly onRemoved: (hash: bigint, storage: boolean) => void
  private readonly onRetired: (storage: number) => void

  /**
   * `onRemoved` is told of each block that goes to make room, or that was met while its storage had failed (`storage`). `onRetired` is
   * called after a slot of a storage that works has retired.
   */
  constructor(
    capacities: ReadonlyArray<number>,
    onRemoved: (hash: bigint, storage: boolean) => void,
    onRetired: (storage: number) => void = () => {}
  ) {
    let base = 0
    this.storages = capacities.map((capacity): StorageSlots => {
      const none = { free: 0, freed: 0, blocks: 0, pinned: 0, writing: 0, retired: 0, failed: false }
      const slots = { base, capacity, fresh: base, ...none }
      base += capacity
      return slots
    })
    this.capacity = base
    this.onRemoved = onRemoved
    this.onRetired = onRetired
    this.lines = new Int32Array(base * words)
    this.list = new Int32Array(base * links)
    this.checksums = new Int32Array(base * checksumWords)
    // Half of them empty at least: most chains are of one.
    const size = 2 ** Math.ceil(Math.log2(Math.max(2, 2 * base)))
    this.buckets = new Int32Array(size)
    this.mask = size - 1
  }

  private at(slot: number, word: number): number {
    return this.lines[slot * words + word] ?? 0
  }

  private put(slot: number, word: number, value: number): void {
    this.lines[slot * words + word] = value
  }

  private storage(slot: number): StorageSlots {
    const storage = this.storages[this.at(slot, STORAGE)]
    if (storage === undefined) throw new RangeError(`slot ${slot} belongs to no storage`)
    return storage
  }

  storageOf(slot: number): number {
    return this.at(slot, STORAGE)
  }

  /** Its place among the slots of its storage. */
  placeOf(slot: number): number {
    return slot - this.storage(slot).base
  }

  hashOf(slot: number): bigint {
    this.hash32[0] = this.at(slot, LOW)
    this.hash32[1] = this.at(slot, HIGH)
    return this.hash64[0] ?? 0n
  }

  priorityOf(slot: number): number {
    return this.at(slot, PRIORITY)
  }

  isReady(slot: number): boolean {
    return this.at(slot, STATE) === READY
  }

  /** Whether something failed on it, so that it is not used again. */
  isRetired(slot: number): boolean {
    return this.at(slot, RETIRE) !== 0
  }

  /** The slot of a block that can be read, or −1. `failed`: of one whose storage has failed, and that is still in the table. */
  find(hash: bigint, failed = false): number {
    this.hash64[0] = hash
    const low = (this.hash32[0] ?? 0) | 0
    const high = (this.hash32[1] ?? 0) | 0
    const { lines, someFailed } = this
    if (failed && !someFailed) return -1
    let link = this.buckets[mix(low, high, this.keys) & this.mask] ?? 0
    while (link !== 0) {
      const line = (link - 1) * words
      if (
        lines[line + LOW] === low && lines[line + HIGH] === high &&
        (!someFailed || this.storages[lines[line + STORAGE] ?? 0]?.failed === failed)
      ) return link - 1
      link = lines[line + NEXT] ?? 0
    }
    return -1
  }

  /** Of all slots, how many are used and how: once none is free and none can be evicted, the others hold blocks of a higher priority. */
  get occupied(): { readonly pinned: number; readonly writing: number; readonly retired: number } {
    let pinned = 0
    let writing = 0
    let retired = 0
    for (const storage of this.storages) {
      if (storage.failed) retired += storage.capacity
      else {
        pinned += storage.pinned
        writing += storage.writing
        retired += storage.retired
      }
    }
    return { pinned, writing, retired }
  }

  /** Slots that can still be used. */
  get usable(): number {
    return this.storages.reduce((sum, { capacity, failed, retired }) => failed ? sum : sum + capacity - retired, 0)
  }

  /** From now on its blocks are not found, and none is put there. */
  fail(number: number): void {
    const storage = this.storages[number]
    if (storage === undefined) return
    storage.failed = true
    this.someFailed = true
  }

  /** A slot to write a block of that priority to, or −1. It belongs to the caller until `commit` or `giveBack`. */
  take(priority: number): number {
    for (;;) {
      const free = this.takeFree()
      if (free >= 0) return free
      if (!this.evict(priority)) return -1
    }
  }

  private takeFree(): number {
    const { storages } = this
    for (let tried = 0; tried < storages.length; tried++) {
      const number = this.turn
      this.turn = (number + 1) % storages.length
      const storage = storages[number]
      if (storage === undefined || storage.failed) continue
      let slot = storage.free - 1
      if (slot >= 0) {
        storage.free = this.at(slot, NEXT)
        storage.freed -= 1
      } else if (storage.fresh < storage.base + storage.capacity) slot = storage.fresh++
      else continue
      storage.writing += 1
      this.put(slot, STATE, WRITING)
      this.put(slot, STORAGE, number)
      return slot
    }
    return -1
  }

  private evict(priority: number): boolean {
    for (let lowest = 0; lowest <= priority; lowest++) {
      const slot = (this.oldest[lowest] ?? 0) - 1
      if (slot < 0) continue
      const hash = this.hashOf(slot)
      const { failed } = this.storage(slot)
      this.drop(slot)
      this.onRemoved(hash, failed)
      return true
    }
    return false
  }

  /** Keeps the checksum of what a slot is written with. */
  seal(slot: number, checksum: Int32Array): void {
    this.checksums.set(checksum, slot * checksumWords)
  }

  /** The block of `slot` can be read from now on. No other block of that hash can be. */
  commit(slot: number, hash: bigint, priority: number): void {
    this.storage(slot).writing -= 1
    this.enter(slot, hash, priority)
  }

  private enter(slot: number, hash: bigint, priority: number): void {
    // Whoever hears of it hears of the one that is lost before.
    const lost = this.find(hash, true)
    if (lost >= 0) {
      this.drop(lost)
      this.onRemoved(hash, true)
    }
    this.hash64[0] = hash
    const low = (this.hash32[0] ?? 0) | 0
    const high = (this.hash32[1] ?? 0) | 0
    const bucket = mix(low, high, this.keys) & this.mask
    this.put(slot, LOW, low)
    this.put(slot, HIGH, high)
    this.put(slot, NEXT, this.buckets[bucket] ?? 0)
    this.put(slot, STATE, READY)
    this.put(slot, PRIORITY, priority)
    this.put(slot, PINS, 0)
    this.buckets[bucket] = slot + 1
    this.blocks += 1
    this.storage(slot).blocks += 1
    this.append(slot)
  }

  /** Gives a slot back that was taken and not committed. */
  giveBack(slot: number, retire: boolean): void {
    this.storage(slot).writing -= 1
    this.put(slot, RETIRE, retire ? 1 : 0)
    this.free(slot)
  }

  /** Whether the checksum kept for the block is this one. */
  verifies(slot: number, checksum: Int32Array): boolean {
    for (let word = 0; word < checksumWords; word++) {
      if (this.checksums[slot * checksumWords + word] !== checksum[word]) return false
    }
    return true
  }

  checksumOf(slot: number): Int32Array {
    return this.checksums.subarray(slot * checksumWords, (slot + 1) * checksumWords)
  }

  /** Its slot stays what it is until as many `unpin`s. */
  pin(slot: number): void {
    const pins = this.at(slot, PINS)
    if (pins === 0) {
      this.unlink(slot)
      this.pinned += 1
      this.storage(slot).pinned += 1
    }
    this.put(slot, PINS, pins + 1)
  }

  /** The last one makes the block the most recently used of its priority. */
  unpin(slot: number): void {
    const pins = this.at(slot, PINS) - 1
    this.put(slot, PINS, pins)
    if (pins > 0) return
    this.pinned -= 1
    this.storage(slot).pinned -= 1
    if (this.isReady(slot)) this.append(slot)
    else this.free(slot)
  }

  /** The most recently used of its priority; a priority only rises by this. */
  touch(slot: number, priority = 0): void {
    const raised = Math.max(priority, this.at(slot, PRIORITY))
    if (this.at(slot, PINS) > 0) return this.put(slot, PRIORITY, raised)
    this.unlink(slot)
    this.put(slot, PRIORITY, raised)
    this.append(slot)
  }

  /** Takes a block out of the table. Its slot is free when nobody uses it any more; with `retire` it is not used again. */
  drop(slot: number, retire = false): void {
    if (retire) this.put(slot, RETIRE, 1)
    if (!this.isReady(slot)) return
    const bucket = mix(this.at(slot, LOW), this.at(slot, HIGH), this.keys) & this.mask
    const next = this.at(slot, NEXT)
    let link = this.buckets[bucket] ?? 0
    if (link === slot + 1) this.buckets[bucket] = next
    else {
      while (this.at(link - 1, NEXT) !== slot + 1) link = this.at(link - 1, NEXT)
      this.put(link - 1, NEXT, next)
    }
    this.blocks -= 1
    this.storage(slot).blocks -= 1
    if (this.at(slot, PINS) > 0) this.put(slot, STATE, LEAVING)
    else {
      this.unlink(slot)
      this.free(slot)
    }
  }

  private free(slot: number): void {
    const storage = this.storage(slot)
    if (storage.failed || this.at(slot, RETIRE) !== 0) {
      this.put(slot, STATE, RETIRED)
      storage.retired += 1
      if (!storage.failed) this.onRetired(this.at(slot, STORAGE))
      return
    }
    this.put(slot, STATE, FREE)
    this.put(slot, NEXT, storage.free)
    storage.free = slot + 1
    storage.freed += 1
  }

  private append(slot: number): void {
    const { list } = this
    const priority = this.at(slot, PRIORITY)
    const last = this.newest[priority] ?? 0
    list[slot * links + OLDER] = last
    list[slot * links + NEWER] = 0
    if (last === 0) this.oldest[priority] = slot + 1
    else list[(last - 1) * links + NEWER] = slot + 1
    this.newest[priority] = slot + 1
  }

  private unlink(slot: number): void {
    const { list } = this
    const priority = this.at(slot, PRIORITY)
    const older = list[slot * links + OLDER] ?? 0
    const newer = list[slot * links + NEWER] ?? 0
    if (older === 0) this.oldest[priority] = newer
    else list[(older - 1) * links + NEWER] = newer
    if (newer === 0) this.newest[priority] = older
    else list[(newer - 1) * links + OLDER] = older
  }

  /** Calls `each` with the blocks in the slots from `from` up to `to`. */
  visit(from: number, to: number, each: (slot: number) => void): void {
    for (let slot = from; slot < to; slot++) if (this.isReady(slot)) each(slot)
  }

  /** Calls `each` with the blocks in those slots that somebody uses. */
  visitPinned(from: number, to: number, each: (slot: number) => void): void {
    for (let slot = from; slot < to; slot++) if (this.isReady(slot) && this.at(slot, PINS) > 0) each(slot)
  }

  /** Of the blocks that nobody uses, the least recently used one of a priority, or −1. */
  oldestOf(priority: number): number {
    return (this.oldest[priority] ?? 0) - 1
  }

  /** The one used next after it, or −1. */
  newerThan(slot: number): number {
    return (this.list[slot * links + NEWER] ?? 0) - 1
  }

  /**
   * Puts a block where it was, as the most recently used of its priority, into an index that has not been used yet; `restored` comes
   * after the last one. False, and nothing done, where something is there already or that is no place.
   */
  restore(number: number, place: number, hash: bigint, priority: number, checksum: Int32Array): boolean {
    const storage = this.storages[number]
    if (storage === undefined || place >= storage.capacity || priority >= priorities || this.find(hash) >= 0) {
      return false
    }
    const slot = storage.base + place
    if (this.at(slot, STATE) !== FREE) return false
    this.put(slot, STORAGE, number)
    storage.fresh = Math.max(storage.fresh, slot + 1)
    this.seal(slot, checksum)
    this.enter(slot, hash, priority)
    return true
  }

  /** Those of some slots that were not restored are free; for all up to the last that was. */
  restored(number: number, from: number, to: number): void {
    for (let slot = from; slot < to; slot++) {
      if (this.at(slot, STATE) !== FREE) continue
      this.put(slot, STORAGE, number)
      this.free(slot)
    }
  }
}
