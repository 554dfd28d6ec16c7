/** Numbers from a seed (mulberry32), the same everywhere. */
export class Random {
  private state: number

  constructor(seed: number) {
    this.state = seed >>> 0
    // Neighbouring seeds begin alike without this.
    for (let round = 0; round < 4; round++) this.fraction()
  }

  /** From 0 up to 1. */
  fraction(): number {
    this.state = (this.state + 0x6d2b_79f5) >>> 0
    let t = this.state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }

  /** A whole number from 0 up to `bound`. */
  below(bound: number): number {
    return Math.floor(this.fraction() * bound)
  }

  between(first: number, last: number): number {
    return first + this.below(last - first + 1)
  }

  chance(probability: number): boolean {
    return this.fraction() < probability
  }

  pick<A>(first: A, ...others: ReadonlyArray<A>): A {
    const place = this.below(1 + others.length)
    return place === 0 ? first : others[place - 1] ?? first
  }

  of<A>(all: ReadonlyArray<A>): A {
    const one = all[this.below(all.length)]
    if (one === undefined) throw new RangeError("there is nothing to choose from")
    return one
  }

  some<A>(count: number, make: (index: number) => A): ReadonlyArray<A> {
    return Array.from({ length: count }, (_, index) => make(index))
  }
}
