/**
 * How often 64-bit hashes were seen, in bounded memory: the table of `OffloadFilter.frequency`.
 *
 * An entry keeps the age at which its count is 0, not the count: when everything ages by one, only `age` moves. Entries of the same
 * such age form a list, the longest unseen first, and the lists form a ring, so that the next victim is found at its low end. No
 * operation looks at all entries.
 *
 * Flat arrays: 36 bytes per entry at most, nothing for the garbage collector to trace, and pages that the kernel hands out when they are
 * first written.
 */

/** Where a count stops to double: forgotten 1024 intervals after it was last seen, a week of the default ones. */
export const maxCount = 1024

/** `maxEntries` may be this: 2.4 GB. */
export const mostEntries = 2 ** 26

/** Lists for the ages from `age` to `age + maxCount`; a power of two. */
const ring = 2 * maxCount

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
  // Chained hash table: the first entry of a bucket + 1, and the next of an entry + 1; 0 ends a chain.
  const first = new Uint32Array(buckets)
  const chain = new Uint32Array(maxEntries)
  const low = new Uint32Array(maxEntries)
  const high = new Uint32Array(maxEntries)
  const expiry = new Float64Array(maxEntries)
  // Doubly linked lists, each with a sentinel: those of the ring, then that of what has decayed.
  const decayed = maxEntries + ring
  const next = new Uint32Array(decayed + 1)
  const previous = new Uint32Array(decayed + 1)
  for (let list = maxEntries; list <= decayed; list++) next[list] = previous[list] = list

  const word = new BigUint64Array(1)
  const halves = new Uint32Array(word.buffer)
  let size = 0
  let age = 0
  /** What expires at this age or before has decayed; `age` may be ahead of it, where room had to be made. */
  let horizon = 0

  const at = (array: Uint32Array | Float64Array, index: number): number => array[index] ?? 0
  const list = (of: number): number => maxEntries + of % ring

  const unlink = (entry: number): void => {
    const before = at(previous, entry)
    const after = at(next, entry)
    next[before] = after
    previous[after] = before
  }

  const append = (entry: number, sentinel: number): void => {
    const last = at(previous, sentinel)
    next[last] = entry
    previous[entry] = last
    next[entry] = sentinel
    previous[sentinel] = entry
  }

  /** Moves a whole list to the end of the decayed ones. */
  const retire = (sentinel: number): void => {
    const head = at(next, sentinel)
    if (head === sentinel) return
    const tail = at(previous, sentinel)
    const last = at(previous, decayed)
    next[last] = head
    previous[head] = last
    next[tail] = decayed
    previous[decayed] = tail
    next[sentinel] = previous[sentinel] = sentinel
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
    const gone = at(next, decayed)
    if (gone !== decayed) return gone
    // At most `maxCount` steps: the table is full, and nothing expires later than that. All counts sink by what `age` moves, so that
    // what is new gets a place among the others, and not the place of what was new before.
    while (at(next, list(age)) === list(age)) age++
    return at(next, list(age))
  }

  const remove = (entry: number): void => {
    const bucket = bucketOf(at(low, entry), at(high, entry))
    if (at(first, bucket) === entry + 1) {
      first[bucket] = at(chain, entry)
      return
    }
    let before = at(first, bucket) - 1
    while (at(chain, before) !== entry + 1) before = at(chain, before) - 1
    chain[before] = at(chain, entry)
  }

  return {
    size: () => size,
    decay: (steps) => {
      // Whatever there is has decayed after so many; more steps would only take time.
      const bounded = Math.min(steps, maxCount + 1)
      for (let step = 0; step < bounded; step++) retire(list(age + step))
      age += bounded
      retire(list(age))
      horizon = age
    },
    see: (hash) => {
      word[0] = hash
      const a = at(halves, 0)
      const b = at(halves, 1)
      const bucket = bucketOf(a, b)
      let entry = at(first, bucket) - 1
      while (entry !== -1 && (at(low, entry) !== a || at(high, entry) !== b)) entry = at(chain, entry) - 1
      let count = 1
      if (entry === -1) {
        if (size < maxEntries) {
          entry = size++
        } else {
          entry = victim()
          unlink(entry)
          remove(entry)
        }
        low[entry] = a
        high[entry] = b
        chain[entry] = at(first, bucket)
        first[bucket] = entry + 1
      } else {
        const expires = at(expiry, entry)
        // While it has a place, and has not decayed, it was seen at least once.
        if (expires > horizon) count = Math.min(maxCount, 2 * Math.max(1, expires - age))
        unlink(entry)
      }
      expiry[entry] = age + count
      append(entry, list(age + count))
      return count
    }
  }
}
