/** Contestants measured in turns, so that a noisy machine is as noisy for each of them. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { AlignedBuffer } from "../../AlignedBuffer.js"
import type { Contestant } from "./contestant.js"
import { idle } from "./contestant.js"
import type { ContestantFailed } from "./errors.js"
import type { Shape } from "./load.js"
import { Load } from "./load.js"
import { Progress } from "./progress.js"
import type { Cell, LeftOut, Result, Round } from "./report.js"
import { fioContestant, fioControl, mostControlOff } from "./report.js"
import type { Target } from "./target.js"
import { bytes, count, duration, median } from "./units.js"

export interface Turns {
  readonly rounds: number
  readonly millis: number
}

/** V8 compiles what runs often; nobody is measured before. */
export const warmUpMillis = (millis: number): number => Math.min(millis, 300)

const iops = ({ millis, operations }: Round) => operations / millis * 1000

export const summary = (values: ReadonlyArray<number>) => ({ best: Math.max(...values), median: median(values) })

/** What `control`, the best round of fio's control divided by that of fio, lets ratios to fio mean. */
export const verdictOf = (onDisk: boolean, control: number | undefined): Cell["verdict"] =>
  control === undefined
    ? "no control"
    : onDisk && Math.abs(control - 1) > mostControlOff
    ? "not decidable"
    : "decidable"

interface Runner {
  readonly contestant: Contestant
  readonly round: (millis: number) => Effect.Effect<Round, ContestantFailed>
  readonly rounds: Array<Round>
}

/** Measures every contestant on one load. `left` is how long the loads after this one take, in milliseconds. */
export const measure = (
  target: Target,
  shape: Shape,
  buffers: ReadonlyArray<AlignedBuffer>,
  contestants: ReadonlyArray<Contestant>,
  { millis, rounds }: Turns,
  left: number
): Effect.Effect<Cell, never, Progress> =>
  Effect.scoped(Effect.gen(function*() {
    const progress = yield* Progress
    const load = new Load(target, shape, buffers)
    const { blockSize, depth, direction } = shape
    const label = `${target.name} ${direction} ${bytes(blockSize)} × ${depth}`
    const leftOut: Array<LeftOut> = []
    let runners: Array<Runner> = []
    /** What fails once is out on this load. */
    const turn = (runner: Runner, millis: number): Effect.Effect<Round | undefined> =>
      Effect.catchAll(runner.round(millis), (error) => {
        runners = runners.filter((other) => other !== runner)
        leftOut.push({ contestant: runner.contestant.id, reason: error.message })
        return Effect.zipRight(progress.log(`${label}: left out: ${error.message}`), Effect.succeed(undefined))
      })

    yield* progress.log(`${label}: ${contestants.length} contestants, ${rounds} rounds of ${millis} ms`)
    for (const contestant of contestants) {
      const unfit = contestant.unfit?.(load)
      if (unfit !== undefined) {
        leftOut.push({ contestant: contestant.id, reason: unfit })
        continue
      }
      yield* progress.status(`${label}: warming up ${contestant.id}`)
      const round = yield* prepared(contestant, load, leftOut)
      if (round === undefined) continue
      const runner: Runner = { contestant, round, rounds: [] }
      runners.push(runner)
      yield* turn(runner, warmUpMillis(millis))
    }

    const idles: Array<number> = []
    const start = performance.now()
    for (let number = 0; number < rounds; number++) {
      yield* progress.status(`${label}: round ${number + 1}/${rounds}, idle`)
      idles.push(yield* idle(millis))
      // Who begins changes from round to round.
      const begins = number % Math.max(1, runners.length)
      for (const runner of [...runners.slice(begins), ...runners.slice(0, begins)]) {
        const { contestant: { id }, rounds: own } = runner
        const last = own.at(-1)
        const elapsed = performance.now() - start
        const remaining = number === 0 ? "" : `, about ${duration(elapsed / number * (rounds - number) + left)} left`
        const rate = last === undefined ? "" : ` ${count(iops(last))} IOPS`
        yield* progress.status(`${label}: round ${number + 1}/${rounds}, ${id}${rate}${remaining}`)
        const round = yield* turn(runner, millis)
        if (round !== undefined) own.push(round)
      }
    }
    return toCell(target, shape, runners, idles, leftOut)
  }))

const prepared = (
  contestant: Contestant,
  load: Load,
  leftOut: Array<LeftOut>
): Effect.Effect<Runner["round"] | undefined, never, Progress | Scope.Scope> =>
  Effect.catchAll(contestant.prepare(load), (error) => {
    leftOut.push({ contestant: contestant.id, reason: error.message })
    return Effect.as(Effect.flatMap(Progress, ({ log }) => log(`left out: ${error.message}`)), undefined)
  })

const toCell = (
  target: Target,
  shape: Shape,
  runners: ReadonlyArray<Runner>,
  idles: ReadonlyArray<number>,
  leftOut: ReadonlyArray<LeftOut>
): Cell => {
  const idleDelayP99Millis = median(idles)
  const ratesOf = (id: string) => {
    const runner = runners.find(({ contestant }) => contestant.id === id)
    return runner === undefined ? undefined : summary(runner.rounds.map(iops))
  }
  const ratio = (one: { best: number; median: number } | undefined, other: typeof one) =>
    one === undefined || other === undefined
      ? null
      : { best: one.best / other.best, median: one.median / other.median }
  const fio = ratesOf(fioContestant)
  const control = ratio(ratesOf(fioControl), fio)
  const results = runners.map(({ contestant: { family, id }, rounds }): Result => {
    const rates = summary(rounds.map(iops))
    const delays = rounds.flatMap(({ delayP99Millis }) => delayP99Millis === null ? [] : [delayP99Millis])
    return {
      contestant: id,
      family,
      rounds,
      iops: rates,
      bytesPerSecond: { best: rates.best * shape.blockSize, median: rates.median * shape.blockSize },
      ratioToFio: ratio(rates, fio),
      cpuMicrosPerOperation: median(rounds.map(({ cpuMicros, operations }) => cpuMicros / Math.max(1, operations))),
      delayP99MillisAboveIdle: delays.length === 0 ? null : median(delays) - idleDelayP99Millis
    }
  })
  return {
    target: target.name,
    ...shape,
    control,
    verdict: verdictOf(target.name === "disk", control?.best),
    idleDelayP99Millis,
    results,
    leftOut
  }
}
