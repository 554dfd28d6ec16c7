/** Who is measured, and how a round of one that runs in this process is. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { monitorEventLoopDelay } from "node:perf_hooks"
import { ContestantFailed } from "./errors.js"
import type { Load } from "./load.js"
import { stoppable } from "./load.js"
import type { Round } from "./report.js"

/** Which of the lines of a chart and of the answers to `--contestant` one belongs to. */
export type Family = "io_uring" | "aio" | "node" | "fs" | "platform" | "fio"

export interface Contestant {
  /** `family.mode` */
  readonly id: string
  readonly family: Family
  /** What cannot carry this load says so and is left out. */
  readonly unfit?: ((load: Load) => string | undefined) | undefined
  /** Opens what the rounds of a load need; the scope is that of the load. */
  readonly prepare: (
    load: Load
  ) => Effect.Effect<(millis: number) => Effect.Effect<Round, ContestantFailed>, ContestantFailed, Scope.Scope>
}

/** The finest resolution there is, milliseconds. */
const delayResolution = 1

const delays = Effect.acquireRelease(
  Effect.sync(() => {
    const histogram = monitorEventLoopDelay({ resolution: delayResolution })
    histogram.enable()
    return histogram
  }),
  (histogram) => Effect.sync(() => histogram.disable())
)

/** Measures `run` as one round. */
export const measured = (load: Load, run: Effect.Effect<void, unknown>) => (millis: number) =>
  Effect.scoped(Effect.gen(function*() {
    const histogram = yield* delays
    const cpu = process.cpuUsage()
    const start = performance.now()
    load.begin(millis)
    yield* stoppable(load, run)
    const elapsed = performance.now() - start
    const { system, user } = process.cpuUsage(cpu)
    if (load.failure !== undefined) return yield* Effect.fail(load.failure)
    return {
      operations: load.operations,
      millis: elapsed,
      cpuMicros: system + user,
      delayP99Millis: histogram.percentile(99) / 1e6,
      delayMaxMillis: histogram.max / 1e6
    } satisfies Round
  }))

/** A contestant that runs in this process. */
export const inProcess = (
  id: string,
  family: Family,
  prepare: (load: Load) => Effect.Effect<Effect.Effect<void, unknown>, unknown, Scope.Scope>,
  unfit?: (load: Load) => string | undefined
): Contestant => {
  const failed = Effect.mapError((cause: unknown) => new ContestantFailed({ contestant: id, cause }))
  return {
    id,
    family,
    unfit,
    prepare: (load) =>
      Effect.map(failed(prepare(load)), (run) => {
        const round = measured(load, run)
        return (millis) => failed(round(millis))
      })
  }
}

/** The event loop of this process when it has nothing to do, p99 in milliseconds. */
export const idle = (millis: number): Effect.Effect<number> =>
  Effect.scoped(Effect.gen(function*() {
    const histogram = yield* delays
    yield* Effect.sleep(millis)
    return histogram.percentile(99) / 1e6
  }))
