/** Contestants measured in turns, so that a noisy machine is as noisy for each of them. */
import * as Effect from "effect/Effect"

export interface Contestant<E, R> {
  readonly name: string
  /** One pass of what is measured. */
  readonly pass: Effect.Effect<void, E, R>
}

export interface Measured {
  readonly name: string
  /** Passes over all rounds. */
  readonly passes: number
  /** Milliseconds of the first pass of all, before any warm-up. */
  readonly first: number
  /** Milliseconds of one pass: the mean of the best round, and the median of the rounds' means. */
  readonly best: number
  readonly median: number
  /** Milliseconds of this process's CPU time that one pass takes, the kernel's for it included: the median of the rounds. */
  readonly cpu: number
}

export const median = (values: ReadonlyArray<number>): number => {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length / 2
  const [low = Number.NaN, high = low] = sorted.slice(Math.ceil(middle) - 1, Math.floor(middle) + 1)
  return (low + high) / 2
}

/** Lets signals and timers in. */
export const breathe = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

interface Round {
  readonly passes: number
  readonly millis: number
  readonly cpu: number
}

const round = <E, R>(pass: Effect.Effect<void, E, R>, millis: number): Effect.Effect<Round, E, R> =>
  Effect.gen(function*() {
    const cpu = process.cpuUsage()
    const start = performance.now()
    let passes = 0
    let elapsed = 0
    do {
      yield* pass
      passes += 1
      elapsed = performance.now() - start
    } while (elapsed < millis)
    const { system, user } = process.cpuUsage(cpu)
    return { passes, millis: elapsed / passes, cpu: (system + user) / 1000 / passes }
  })

/**
 * `rounds` rounds of at least `millis` for each; who begins changes from round to round. Each warms up for `warmUpMillis` before:
 * V8 compiles what runs often, and much more of it in some contestants than in others.
 */
export const compare = <E, R>(
  contestants: ReadonlyArray<Contestant<E, R>>,
  options: { readonly rounds: number; readonly millis: number; readonly warmUpMillis: number }
): Effect.Effect<ReadonlyArray<Measured>, E, R> =>
  Effect.gen(function*() {
    const results = yield* Effect.forEach(contestants, (contestant) =>
      Effect.map(
        round(contestant.pass, 0),
        ({ millis }) => ({ contestant, first: millis, rounds: new Array<Round>() })
      ))
    for (const { pass } of contestants) {
      yield* breathe
      yield* round(pass, options.warmUpMillis)
    }
    for (let turn = 0; turn < options.rounds; turn++) {
      const begins = turn % results.length
      for (const { contestant, rounds } of [...results.slice(begins), ...results.slice(0, begins)]) {
        yield* breathe
        rounds.push(yield* round(contestant.pass, options.millis))
      }
    }
    return results.map(({ contestant, first, rounds }) => ({
      name: contestant.name,
      passes: rounds.reduce((sum, { passes }) => sum + passes, 0),
      first,
      best: Math.min(...rounds.map(({ millis }) => millis)),
      median: median(rounds.map(({ millis }) => millis)),
      cpu: median(rounds.map(({ cpu }) => cpu))
    }))
  })
