/**
 * Which blocks are worth a write. Most blocks are never asked for again: writing only those that were seen before saves most of a
 * disk's wear.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import { InvalidOption } from "./DiskStorageError.js"
import { invalid, objectRefused, shown, unless } from "./internal/arguments.js"
import * as frequencies from "./internal/frequency.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = Symbol.for("effect-disk-storage/OffloadFilter")

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * @since 0.1.0
 * @category models
 */
export interface OffloadFilter {
  readonly [TypeId]: TypeId
  /** For each hash, in order: whether its block is to be written. Being asked counts as being seen once more. */
  readonly admit: (hashes: ReadonlyArray<bigint>) => Effect.Effect<ReadonlyArray<boolean>>
}

/**
 * Admits every block, and keeps nothing.
 *
 * @since 0.1.0
 * @category constructors
 */
export const none: OffloadFilter = {
  [TypeId]: TypeId,
  admit: (hashes) => Effect.succeed(hashes.map(() => true))
}

class Reference extends Context.Reference<OffloadFilter>()("effect-disk-storage/OffloadFilter", {
  defaultValue: (): OffloadFilter => none
}) {}

/**
 * The filter in use; `none` by default. It adds no requirement: provide one to the layer of a block store.
 *
 * @since 0.1.0
 * @category tags
 */
export const OffloadFilter: Context.Reference<OffloadFilter, OffloadFilter> = Reference

/**
 * @since 0.1.0
 * @category models
 */
export interface FrequencyOptions {
  /** Blocks with at least this count are written: 1 admits all. A whole number from 1 to 1024. Default 2: what is seen again. */
  readonly minFrequency?: number | undefined
  /** How long it takes for every count to lose 1. Above 0; `Duration.infinity` forgets only to make room. Default 10 minutes. */
  readonly decayInterval?: Duration.DurationInput | undefined
  /** Hashes that are remembered: at most 32 bytes each, taken as they come. A whole number from 1 to 67,108,864. Default 1,000,000. */
  readonly maxEntries?: number | undefined
}

/**
 * Admits blocks that were seen often enough of late. The rule and its defaults are those of the filter in front of the disk in
 * Dynamo's KV block manager (`lib/llm/src/block_manager/offload/filter.rs`):
 *
 * - The count of a hash is 1 when it is seen first and doubles, up to 1024, whenever it is seen again.
 * - At the end of every `decayInterval` since the filter was made, all counts lose 1. What reaches 0 is forgotten.
 * - When `maxEntries` are remembered and a new hash comes, the one with the lowest count makes room, of several the longest unseen. All
 *   counts are lowered with it as if time had passed, until its own is 0, but what remains counts as seen once at least; so new hashes get
 *   their turn also in a table full of frequent ones. (The original lowers all counts until enough are 0, and drops all of those.)
 *
 * Hashes are unsigned 64-bit integers; of larger ones the low 64 bits count. Time is the monotonic time of `Clock`. No fibre runs:
 * what has decayed is found out when it is asked for. A hash costs constant time, amortised, and no memory for the garbage collector.
 *
 * Fails with `InvalidOption`, also where there is no memory for `maxEntries`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const frequency = (options: FrequencyOptions = {}): Effect.Effect<OffloadFilter, InvalidOption> =>
  Effect.gen(function*() {
    yield* unless(objectRefused("options", options))
    const { decayInterval = "10 minutes", maxEntries = 1_000_000, minFrequency = 2 } = options
    yield* whole("minFrequency", minFrequency, frequencies.maxCount)
    yield* whole("maxEntries", maxEntries, frequencies.mostEntries)
    const interval = Option.getOrElse(Duration.decodeUnknown(decayInterval), () => Duration.zero)
    const intervalNanos = Duration.toMillis(interval) * 1e6
    if (!(intervalNanos > 0)) {
      return yield* new InvalidOption({
        option: "decayInterval",
        value: shown(decayInterval),
        expected: "a duration above 0"
      })
    }
    const seed = yield* Random.nextIntBetween(0, 2 ** 32)
    const table = yield* Effect.try({
      try: () => frequencies.make(maxEntries, seed),
      catch: () =>
        new InvalidOption({
          option: "maxEntries",
          value: String(maxEntries),
          expected: "no more than there is memory for: 32 bytes each"
        })
    })
    return yield* Effect.clockWith((clock) =>
      Effect.sync((): OffloadFilter => {
        const begun = clock.unsafeCurrentTimeNanos()
        let elapsed = 0
        return {
          [TypeId]: TypeId,
          admit: (hashes) =>
            Effect.clockWith((clock) =>
              Effect.sync(() => {
                const intervals = Math.floor(Number(clock.unsafeCurrentTimeNanos() - begun) / intervalNanos)
                if (intervals > elapsed) {
                  table.decay(intervals - elapsed)
                  elapsed = intervals
                }
                return hashes.map((hash) => table.see(hash) >= minFrequency)
              })
            )
        }
      })
    )
  })

/**
 * `frequency` as the filter in use.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerFrequency = (options: FrequencyOptions = {}): Layer.Layer<never, InvalidOption> =>
  Layer.effect(OffloadFilter, frequency(options))

const whole = (option: string, value: number, most: number): Effect.Effect<void, InvalidOption> =>
  Number.isSafeInteger(value) && value >= 1 && value <= most
    ? Effect.void
    : invalid(option, value, `a whole number from 1 to ${most}`)
