/**
 * How often 64-bit hashes were seen, in bounded memory: the table of `OffloadFilter.frequency`.
 *
 * An entry keeps the age at which its count is 0, not the count: when everything ages by one, only `age` moves. Entries of the same
 * such age form a list, the longest unseen first, and the lists form a ring, so that the next victim is found at its low end. No
 * operation looks at all entries.
 *
 * One flat array: 32 bytes per entry at most, nothing for the garbage collector to trace, pages that the kernel hands out when they are
 * first written, and all of an entry beside each other, because what a look-up costs is misses of the processor's cache.
 */

/** Where a count stops to double: forgotten 1024 intervals after it was last seen, a week of the default ones. */
export const maxCount = 1024

/** `maxEntries` may be this: 1.9 GB. */
export const mostEntries = 2 ** 26

/** Lists for the ages from `age` to `age + maxCount`; a power of two. */
const ring = 2 * maxCount

/**
 * A record: the hash, the next entry of its chain + 1 (0 ends a chain), its neighbours in its list, and the age at which its count is
 * 0. Ages are compared modulo 2^32: an entry that nobody asked for in 2^31 intervals would be taken for a fresh one.
 */
const stride = 6
const low = 0
const high = 1
const chain = 2
const next = 3
const previous = 4
const expiry = 5

export interface Frequencies {
  /** Ages everything by `steps` whole intervals. */
  readonly decay: (steps: number) => void
  /** Counts one more sight of a hash, and returns its count. */
  readonly see: (hash: bigint) => number
  /** Entries that take room, of which some may have decayed. */
  readonly size: () => number
}

/** `seed`: 32 bits that whoever chooses the hashes does not know, so that no choice makes all collide. Throws where there is no memory. */
export const make = (maxEntries: number, seed: number): Frequencies => {
  const buckets = 2 ** Math.max(4, Math.ceil(Math.log2(maxEntries)))
  const mask = buckets - 1
  // The first entry of a bucket + 1.
  const first = new Uint32Array(buckets)
  // Behind the entries, the sentinels of their lists: those of the ring, then that of what has decayed.
  const decayed = maxEntries + ring
  const records = new Uint32Array((decayed + 1) * stride)

  const word = new BigUint64Array(1)
  const halves = new Uint32Array(word.buffer)
  let size = 0
  // Close to where it wraps, so that wrapping is nothing rare.
  let age = 2 ** 32 - 100
  /** What expires at this age or before has decayed; `age` may be ahead of it, where room had to be made. */
  let horizon = age

  const get = (record: number, field: number): number => records[record * stride + field] ?? 0
  const set = (record: number, field: number, value: number): void => {
    records[record * stride + field] = value
  }
  const firstOf = (bucket: number): number => first[bucket] ?? 0
  const list = (of: number): number => maxEntries + (of & (ring - 1))

  const link = (before: number, after: number): void => {
    set(before, next, after)
    set(after, previous, before)
  }
  for (let sentinel = maxEntries; sentinel <= decayed; sentinel++) link(sentinel, sentinel)

  const unlink = (entry: number): void => link(get(entry, previous), get(entry, next))

  const append = (entry: number, sentinel: number): void => {
    link(get(sentinel, previous), entry)
    link(entry, sentinel)
  }

  /** Moves a whole list to the end of the decayed ones. */
  const retire = (sentinel: number): void => {
    const head = get(sentinel, next)
    if (head === sentinel) return
    const tail = get(sentinel, previous)
    link(get(decayed, previous), head)
    link(tail, decayed)
    link(sentinel, sentinel)
  }

  const bucketOf = (a: number, b: number): number => {
    // The finaliser of MurmurHash3, once per half.
    let h = a ^ seed
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35) ^ b
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
    return (h ^ (h >>> 16)) & mask
  }

  /** The entry to give up: the longest unseen of the decayed, else of those with the lowest count. */
  const victim = (): number => {
    const gone = get(decayed, next)
    if (gone !== decayed) return gone
    // At most `maxCount` steps: the table is full, and nothing expires later than that. All counts sink by what `age` moves, so that
    // what is new gets a place among the others, and not the place of what was new before.
    while (get(list(age), next) === list(age)) age = (age + 1) >>> 0
    return get(list(age), next)
  }

  const remove = (entry: number): void => {
    const bucket = bucketOf(get(entry, low), get(entry, high))
    if (firstOf(bucket) === entry + 1) {
      first[bucket] = get(entry, chain)
      return
    }
    let before = firstOf(bucket) - 1
    while (get(before, chain) !== entry + 1) before = get(before, chain) - 1
    set(before, chain, get(entry, chain))
  }

  return {
    size: () => size,
    decay: (steps) => {
      // Whatever there is has decayed after so many; more steps would only take time.
      const bounded = Math.min(steps, maxCount + 1)
      for (let step = 0; step < bounded; step++) retire(list(age + step))
      age = (age + bounded) >>> 0
      retire(list(age))
      horizon = age
    },
    see: (hash) => {
      word[0] = hash
      const a = halves[0] ?? 0
      const b = halves[1] ?? 0
      const bucket = bucketOf(a, b)
      let entry = firstOf(bucket) - 1
      while (entry !== -1 && (get(entry, low) !== a || get(entry, high) !== b)) entry = get(entry, chain) - 1
      let count = 1
      if (entry === -1) {
        if (size < maxEntries) {
          entry = size++
        } else {
          entry = victim()
          unlink(entry)
          remove(entry)
        }
        set(entry, low, a)
        set(entry, high, b)
        set(entry, chain, firstOf(bucket))
        first[bucket] = entry + 1
      } else {
        const expires = get(entry, expiry)
        // While it has a place, and has not decayed, it was seen at least once.
        if (((expires - horizon) | 0) > 0) count = Math.min(maxCount, 2 * Math.max(1, (expires - age) | 0))
        unlink(entry)
      }
      const expires = (age + count) >>> 0
      set(entry, expiry, expires)
      append(entry, list(expires))
      return count
    }
  }
}
