/** Which blocks are admitted: by tables, and by a model that looks at everything every time. */
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as TestClock from "effect/TestClock"
import { make, maxCount } from "../src/internal/frequency.js"
import * as OffloadFilter from "../src/OffloadFilter.js"

const a = 0xdead_beef_0000_0001n
const b = 0xdead_beef_0000_0002n
const c = 3n

describe("frequency", () => {
  it.effect("admits what is seen again, in order, and counts a hash twice that is asked for twice", () =>
    Effect.gen(function*() {
      const filter = yield* OffloadFilter.frequency()
      assert.deepStrictEqual(yield* filter.admit([a, b]), [false, false])
      assert.deepStrictEqual(yield* filter.admit([c, b]), [false, true])
      assert.deepStrictEqual(yield* filter.admit([a, c, a, b]), [true, true, true, true])
      assert.deepStrictEqual(yield* filter.admit([7n, 7n, 7n]), [false, true, true])
      assert.deepStrictEqual(yield* filter.admit([]), [])
    }))

  it.effect("doubles: 1, 2, 4, 8", () =>
    Effect.gen(function*() {
      for (const [minFrequency, admitted] of [[1, 1], [2, 2], [3, 3], [4, 3], [5, 4], [8, 4], [1024, 11]] as const) {
        const filter = yield* OffloadFilter.frequency({ minFrequency })
        const answers = yield* filter.admit(Array.from({ length: 20 }, () => a))
        assert.strictEqual(answers.indexOf(true) + 1, admitted)
        assert.isTrue(answers.slice(admitted - 1).every((answer) => answer))
      }
    }))

  it.effect("loses 1 at the end of every interval, and forgets at 0", () =>
    Effect.gen(function*() {
      const filter = yield* OffloadFilter.frequency({ minFrequency: 4, decayInterval: "1 minute" })
      yield* filter.admit([a, b, b, c, c, c]) // 1, 2, 4
      yield* TestClock.adjust("59 seconds")
      assert.deepStrictEqual(yield* filter.admit([b]), [true]) // 4
      yield* TestClock.adjust("1 second")
      // 0, 3, 3: forgotten, then doubled
      assert.deepStrictEqual(yield* filter.admit([a, b, c]), [false, true, true]) // 1, 6, 6
      yield* TestClock.adjust("5 minutes")
      assert.deepStrictEqual(yield* filter.admit([a, b]), [false, false]) // 1, 2
      assert.deepStrictEqual(yield* filter.admit([a, b]), [false, true]) // 2, 4
      yield* TestClock.adjust("10 days")
      assert.deepStrictEqual(yield* filter.admit([a, b, c, a, b, c, a]), [
        false,
        false,
        false,
        false,
        false,
        false,
        true
      ])
    }))

  it.effect("has the original's interval of 10 minutes, and may have none", () =>
    Effect.gen(function*() {
      const usual = yield* OffloadFilter.frequency()
      const forever = yield* OffloadFilter.frequency({ decayInterval: Duration.infinity })
      yield* usual.admit([a, b])
      yield* forever.admit([a])
      yield* TestClock.adjust("599 seconds")
      assert.deepStrictEqual(yield* usual.admit([a]), [true])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* usual.admit([a, b]), [true, false])
      yield* TestClock.adjust("10000 days")
      assert.deepStrictEqual(yield* usual.admit([a]), [false])
      assert.deepStrictEqual(yield* forever.admit([a]), [true])
    }))

  it.effect("stops to double, so that a block that was much in use is forgotten within a week", () =>
    Effect.gen(function*() {
      const filter = yield* OffloadFilter.frequency()
      const often = Array.from({ length: 2000 }, () => a)
      yield* filter.admit(often)
      yield* TestClock.adjust(Duration.minutes(10 * (maxCount - 1)))
      assert.deepStrictEqual(yield* filter.admit([a]), [true])
      yield* filter.admit(often)
      yield* TestClock.adjust(Duration.minutes(10 * maxCount))
      assert.deepStrictEqual(yield* filter.admit([a]), [false])
    }))

  it.effect("drops the least seen, of several the longest unseen, when it is full", () =>
    Effect.gen(function*() {
      const filter = yield* OffloadFilter.frequency({ maxEntries: 3, decayInterval: "1 minute" })
      yield* filter.admit([a, a, b, c]) // a 2, b 1, c 1
      assert.deepStrictEqual(yield* filter.admit([4n]), [false]) // b goes
      assert.deepStrictEqual(yield* filter.admit([c, a]), [true, true])
      assert.deepStrictEqual(yield* filter.admit([b]), [false]) // 4n goes
      assert.deepStrictEqual(yield* filter.admit([4n]), [false])
    }))

  it.effect("lets new hashes have their turn where all are frequent", () =>
    Effect.gen(function*() {
      const filter = yield* OffloadFilter.frequency({ maxEntries: 4, decayInterval: Duration.infinity })
      const old = [1n, 2n, 3n, 4n]
      for (let times = 0; times < 20; times++) yield* filter.admit(old)
      // Two that take turns would drop each other for ever if the others kept their counts.
      assert.deepStrictEqual(yield* filter.admit([a, b, a, b]), [false, false, true, true])
    }))

  it.effect("counts the low 64 bits of a hash", () =>
    Effect.gen(function*() {
      const filter = yield* OffloadFilter.frequency()
      yield* filter.admit([0n, 2n ** 64n - 1n])
      assert.deepStrictEqual(
        yield* filter.admit([2n ** 64n, -1n, 2n ** 32n, 2n ** 63n, 2n ** 63n]),
        [true, true, false, false, true]
      )
    }))

  it.effect("takes no other options", () =>
    Effect.gen(function*() {
      const refused: ReadonlyArray<readonly [OffloadFilter.FrequencyOptions, string]> = [
        ...[0, -1, 1.5, NaN, 1025, Infinity].map((minFrequency) => [{ minFrequency }, "minFrequency"] as const),
        ...[0, -1, 1.5, NaN, 2 ** 26 + 1, Infinity].map((maxEntries) => [{ maxEntries }, "maxEntries"] as const),
        ...[0, -1, NaN, Duration.zero].map((decayInterval) => [{ decayInterval }, "decayInterval"] as const)
      ]
      for (const [options, option] of refused) {
        const error = yield* Effect.flip(OffloadFilter.frequency(options))
        assert.strictEqual(error._tag, "InvalidOption")
        assert.strictEqual(error.option, option)
      }
      for (const maxEntries of [1, 2, 3, 5, 17]) {
        const filter = yield* OffloadFilter.frequency({ maxEntries })
        assert.deepStrictEqual(yield* filter.admit([a, a, b, b, a]), [false, true, false, true, maxEntries > 1])
      }
    }))
})

describe("the filter in use", () => {
  it.effect("is none without a layer: it admits all", () =>
    Effect.gen(function*() {
      const filter = yield* OffloadFilter.OffloadFilter
      assert.strictEqual(filter, OffloadFilter.none)
      assert.deepStrictEqual(yield* filter.admit([a, b, a]), [true, true, true])
      assert.deepStrictEqual(yield* filter.admit([]), [])
    }))

  it.effect("is that of the layer", () =>
    Effect.gen(function*() {
      const filter = yield* OffloadFilter.OffloadFilter
      assert.deepStrictEqual(yield* filter.admit([a, a, a]), [false, false, true])
    }).pipe(Effect.provide(OffloadFilter.layerFrequency({ minFrequency: 3 }))))

  it.effect("fails with its layer's options", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        Effect.provide(OffloadFilter.OffloadFilter, OffloadFilter.layerFrequency({ maxEntries: 0 }))
      )
      assert.strictEqual(error.option, "maxEntries")
    }))
})

/** What `frequency` promises, the slow way: every count is looked at and lowered each time. */
const model = (maxEntries: number) => {
  interface Entry {
    readonly hash: bigint
    count: number
  }
  // The longest unseen first.
  let entries: Array<Entry> = []
  let dead: Array<Entry> = []
  return {
    size: () => entries.length + dead.length,
    decay: (steps: number) => {
      for (let step = 0; step < steps; step++) {
        for (const entry of entries) entry.count--
        // Those with the lower count were forgotten before.
        dead.push(...entries.filter(({ count }) => count <= 0).sort((x, y) => x.count - y.count))
        entries = entries.filter(({ count }) => count > 0)
      }
    },
    see: (hash: bigint): number => {
      const known = entries.find((entry) => entry.hash === hash)
      let count = 1
      if (known === undefined) {
        const forgotten = dead.some((entry) => entry.hash === hash)
        dead = dead.filter((entry) => entry.hash !== hash)
        if (!forgotten && entries.length + dead.length === maxEntries && dead.shift() === undefined) {
          const lowest = Math.min(...entries.map((entry) => entry.count))
          const victim = entries.find((entry) => entry.count === lowest)
          entries = entries.filter((entry) => entry !== victim)
          for (const entry of entries) entry.count -= Math.max(0, lowest)
        }
      } else {
        count = Math.min(maxCount, 2 * Math.max(1, known.count))
        entries = entries.filter((entry) => entry !== known)
      }
      entries.push({ hash, count })
      return count
    }
  }
}

describe("the table", () => {
  const step = FastCheck.oneof(
    { weight: 8, arbitrary: FastCheck.record({ see: FastCheck.bigInt({ min: 0n, max: 12n }) }) },
    { weight: 2, arbitrary: FastCheck.record({ see: FastCheck.bigInt({ min: 0n, max: 2n ** 64n - 1n }) }) },
    {
      weight: 1,
      arbitrary: FastCheck.record({
        decay: FastCheck.oneof(FastCheck.integer({ min: 1, max: 3 }), FastCheck.constantFrom(1023, 1024, 1025, 5000))
      })
    }
  )

  it.prop(
    "counts as the model, whatever is seen, decays and makes room, and never grows beyond its bound",
    {
      maxEntries: FastCheck.integer({ min: 1, max: 10 }),
      seed: FastCheck.integer({ min: 0, max: 2 ** 32 - 1 }),
      steps: FastCheck.array(step, { maxLength: 300, size: "max" })
    },
    ({ maxEntries, seed, steps }) => {
      const table = make(maxEntries, seed)
      const expected = model(maxEntries)
      for (const step of steps) {
        if ("see" in step) {
          assert.strictEqual(table.see(step.see), expected.see(step.see))
        } else {
          table.decay(step.decay)
          expected.decay(step.decay)
        }
        assert.strictEqual(table.size(), expected.size())
        assert.isAtMost(table.size(), maxEntries)
      }
    },
    { fastCheck: { numRuns: 500 } }
  )

  it("keeps its bound and finds what it holds after many more hashes than it holds", () => {
    const table = make(1000, 7)
    for (let hash = 0n; hash < 20_000n; hash++) assert.strictEqual(table.see(hash << 20n), 1)
    assert.strictEqual(table.size(), 1000)
    for (let hash = 19_000n; hash < 20_000n; hash++) assert.strictEqual(table.see(hash << 20n), 2)
    for (let hash = 0n; hash < 1000n; hash++) assert.strictEqual(table.see(hash << 20n), 1)
  })
})
