/** How long the event loop of this process is held up while something runs, against processes that do nothing meanwhile. */
import * as Effect from "effect/Effect"
import type { IntervalHistogram } from "node:perf_hooks"
import { monitorEventLoopDelay } from "node:perf_hooks"

/** Milliseconds. */
export interface Delay {
  readonly max: number
  readonly p99: number
}

/** The finest resolution there is, milliseconds. */
const resolution = 1

const delayOf = (histogram: IntervalHistogram): Delay => ({
  max: histogram.max / 1e6,
  p99: histogram.percentile(99) / 1e6
})

/** A process that does nothing but measure its own event loop: the one of the command. */
export { make as idle } from "../../src/cli/bench/idle.js"

/** The delay of this process while `effect` runs. */
export const during = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<Delay, E, R> =>
  Effect.suspend(() => {
    const histogram = monitorEventLoopDelay({ resolution })
    return Effect.sync(() => histogram.enable()).pipe(
      Effect.zipRight(effect),
      Effect.ensuring(Effect.sync(() => histogram.disable())),
      Effect.map(() => delayOf(histogram))
    )
  })
