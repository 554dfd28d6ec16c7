/** What the process holds, and whether it became more. */
import * as Effect from "effect/Effect"
import koffi from "koffi"
import { readdirSync, readFileSync } from "node:fs"
import { Session } from "node:inspector"
import { median } from "../../src/cli/bench/units.js"
import { turn } from "./world.js"

const inspector = new Session()
inspector.connect()

/** Everything, and what the heap keeps for later is given back too, which `gc()` does not do. */
const collect = Effect.async<void>((resume) => inspector.post("HeapProfiler.collectGarbage", () => resume(Effect.void)))

/** Gives back what malloc holds free, in the arenas of all threads; glibc alone has it. */
const trim = (() => {
  try {
    return koffi.load(null).func("int malloc_trim(size_t pad)")
  } catch {
    return undefined
  }
})()

export const what = [
  "descriptors",
  "mappings",
  "listeners",
  "handles",
  "rss",
  "heap",
  "external"
] as const

export type What = typeof what[number]

export interface Sample extends Record<What, number> {
  /** since the beginning */
  readonly millis: number
}

const listeners = () => process.eventNames().reduce((sum, name) => sum + process.listenerCount(name), 0)

/**
 * After the collector has been, twice, since what the first frees lets the second free more; and after malloc has given back what it
 * holds free: in half an hour that swung between 208 and 242 MiB without a trend.
 */
export const sample = (since: number): Effect.Effect<Sample> =>
  Effect.gen(function*() {
    for (let times = 0; times < 2; times++) {
      yield* collect
      yield* turn
      yield* turn
    }
    trim?.(0)
    const { external, heapUsed, rss } = process.memoryUsage()
    return {
      millis: performance.now() - since,
      // Without the one of this listing.
      descriptors: readdirSync("/proc/self/fd").length - 1,
      mappings: readFileSync("/proc/self/maps", "utf8").split("\n").length - 1,
      listeners: listeners(),
      handles: process.getActiveResourcesInfo().length,
      rss,
      heap: heapUsed,
      external
    }
  })

const second = 1000
const minute = 60 * second
const leastWarmUpMillis = 20 * second
/**
 * Until then the heap grows by 4 % where V8 compiles, all of it code and what belongs to that (two snapshots compared), RSS with it, and both
 * go on for as long as there is something to compile. `npm run soak` turns its compilers off: what grows then is the program's.
 */
const warmUpMillisOfLongRuns = 10 * minute
/** In a shorter run, memory says nothing: caches, compiled code and the allocator's habits are still growing. */
export const leastMillisForMemory = 10 * minute

/** What may be more at the end than at the beginning: counts, and shares of what there was. */
const limits: { readonly [name in What]: { readonly count: number } | { readonly share: number } } = {
  descriptors: { count: 0 },
  // V8 maps as it compiles and collects: see test/leaks.test.ts.
  mappings: { count: 40 },
  listeners: { count: 0 },
  handles: { count: 0 },
  rss: { share: 0.01 },
  heap: { share: 0.05 },
  external: { share: 0.05 }
}

export interface Growth {
  readonly what: What
  readonly from: number
  readonly to: number
  readonly verdict: "none" | "LEAK" | "too short"
}

export interface Compared {
  readonly warmUpMillis: number
  /** Samples in each of the first and the last tenth after the warm-up. */
  readonly samples: number
  readonly growths: ReadonlyArray<Growth>
}

/**
 * Medians of the first and the last tenth of what came after the warm-up: a third of the run, at most ten minutes, at least 20 s, and half
 * of a run that is too short for that.
 */
export const compare = (samples: ReadonlyArray<Sample>): Compared => {
  const total = samples.at(-1)?.millis ?? 0
  const warmUpMillis = Math.min(Math.max(leastWarmUpMillis, Math.min(total / 3, warmUpMillisOfLongRuns)), total / 2)
  const after = samples.filter(({ millis }) => millis >= warmUpMillis)
  const tenth = Math.ceil(after.length / 10)
  return {
    warmUpMillis,
    samples: tenth,
    growths: what.map((name) => {
      const of = (some: ReadonlyArray<Sample>) => median(some.map((one) => one[name]))
      const from = of(after.slice(0, tenth))
      const to = of(after.slice(-tenth))
      const limit = limits[name]
      const grown = "count" in limit ? to - from > limit.count : to - from > limit.share * from
      const isMemory = name === "mappings" || "share" in limit
      const tooShort = after.length < 2 || (isMemory && total < leastMillisForMemory)
      return { what: name, from, to, verdict: tooShort ? "too short" : grown ? "LEAK" : "none" }
    })
  }
}
