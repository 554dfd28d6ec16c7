/**
 * `npm run bench:acquire`: what an acquisition and a release cost beyond their system calls, and whether a long zero-fill holds up
 * the event loop. `--help` lists the options.
 */
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import { mkdtempSync, rmSync, statfsSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as Linux from "../../src/Linux.js"
import * as ProcessRuntime from "../../src/ProcessRuntime.js"
import type { Delay } from "./delay.js"
import { during, idle } from "./delay.js"
import { withoutFallocate } from "./kernels.js"
import * as raw from "./raw.js"
import type { Measured } from "./rounds.js"
import { compare, median } from "./rounds.js"

const usage = `npm run bench:acquire -- [options]
  --directory <path>    where the files are made (default: the system's temporary directory)
  --size-gib <n>        file of the acquisitions with fallocate, GiB (1)
  --rounds <n>          rounds for each contestant (11)
  --round-seconds <n>   a round's least length (1)
  --warm-up-seconds <n> warm-up of each contestant before the rounds (5)
  --fill-gib <n>        file of the acquisitions with zero-fill, GiB (4)
  --fill-rounds <n>     acquisitions with zero-fill (3)
  --json                print JSON
  --help`

const gibibyte = 2 ** 30

/** An acquisition and release may take this many times its system calls, best round against best round. */
const mostTimesRaw = 2
/** The longest event-loop delay during a zero-fill may be this much above that of an idle process, milliseconds. */
const mostMillisAboveIdle = 20
/** Beyond this between a contestant and itself the machine is too noisy for a ratio to mean much. */
const mostControlOff = 0.05

class Usage extends Data.TaggedError("Usage")<{ readonly message: string }> {}

interface Options {
  readonly directory: string
  readonly size: number
  readonly rounds: number
  readonly millis: number
  readonly warmUpMillis: number
  readonly fillSize: number
  readonly fillRounds: number
  readonly json: boolean
  readonly help: boolean
}

const options = Effect.try({
  try: (): Options => {
    const { values } = parseArgs({
      options: {
        directory: { type: "string", default: tmpdir() },
        "size-gib": { type: "string", default: "1" },
        rounds: { type: "string", default: "11" },
        "round-seconds": { type: "string", default: "1" },
        "warm-up-seconds": { type: "string", default: "5" },
        "fill-gib": { type: "string", default: "4" },
        "fill-rounds": { type: "string", default: "3" },
        json: { type: "boolean", default: false },
        help: { type: "boolean", default: false }
      }
    })
    const positive = (name: Exclude<keyof typeof values, "directory" | "json" | "help">) => {
      const value = Number(values[name])
      if (!(value > 0 && value < Number.POSITIVE_INFINITY)) {
        throw new Usage({ message: `--${name} ${values[name]} is no number above 0` })
      }
      return value
    }
    return {
      directory: values.directory ?? tmpdir(),
      size: Math.ceil(positive("size-gib") * gibibyte),
      rounds: Math.ceil(positive("rounds")),
      millis: positive("round-seconds") * 1000,
      warmUpMillis: positive("warm-up-seconds") * 1000,
      fillSize: Math.ceil(positive("fill-gib") * gibibyte),
      fillRounds: Math.ceil(positive("fill-rounds")),
      json: values.json === true,
      help: values.help === true
    }
  },
  catch: (error) => new Usage({ message: `${error instanceof Error ? error.message : String(error)}\n${usage}` })
})

/** Room for the largest file twice: filesystems give space back behind the scenes. */
const checkSpace = ({ directory, fillSize, size }: Options) =>
  Effect.flatMap(
    Effect.try({ try: () => statfsSync(directory), catch: (error) => new Usage({ message: String(error) }) }),
    ({ bavail, bsize }) => {
      const needed = 2 * Math.max(size, fillSize)
      return bavail * bsize >= needed
        ? Effect.void
        : Effect.fail(new Usage({ message: `${directory} has ${bavail * bsize} bytes free, and this needs ${needed}` }))
    }
  )

const scratch = (directory: string) =>
  Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(directory, "bench-acquire-"))),
    (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
  )

type Verdict = "within" | "over" | "not decidable"

interface Ratio {
  readonly best: number
  readonly median: number
}

const ratio = (one: Measured, other: Measured): Ratio => ({
  best: one.best / other.best,
  median: one.median / other.median
})

const acquisitions = (directory: string, { millis, rounds, size, warmUpMillis }: Options) =>
  Effect.gen(function*() {
    const plain = Effect.sync(() => raw.synchronous(directory, size))
    const threaded = Effect.uninterruptible(Effect.promise(() => raw.asynchronous(directory, size)))
    const [calls, callsAgain, async, asyncAgain, storage] = yield* compare([
      { name: "raw calls", pass: plain },
      { name: "raw calls, again", pass: plain },
      { name: "raw calls off-thread", pass: threaded },
      { name: "raw calls off-thread, again", pass: threaded },
      { name: "DiskStorage.make, scoped", pass: Effect.scoped(DiskStorage.make({ size, directory })) }
    ], { rounds, millis, warmUpMillis })
    if (!calls || !callsAgain || !async || !asyncAgain || !storage) {
      return yield* Effect.dieMessage("a contestant is missing")
    }
    const control = { calls: ratio(callsAgain, calls), async: ratio(asyncAgain, async) }
    const times = { calls: ratio(storage, calls), async: ratio(storage, async) }
    const noise = Math.max(Math.abs(control.calls.best - 1), Math.abs(control.async.best - 1))
    const within = times.calls.best < mostTimesRaw
    // Noise decides nothing unless it could carry the ratio across the bar.
    const near = Math.abs(times.calls.best / mostTimesRaw - 1) <= noise
    const verdict: Verdict = noise > mostControlOff && near ? "not decidable" : within ? "within" : "over"
    return { size, measured: [calls, callsAgain, async, asyncAgain, storage], times, control, verdict }
  })

interface Fill {
  readonly seconds: number
  readonly storage: Delay
  readonly idle: Delay
  readonly otherIdle: Delay
}

const fills = (directory: string, { fillRounds, fillSize }: Options) =>
  Effect.gen(function*() {
    const [one, other] = yield* Effect.all([idle, idle])
    const acquire = (size: number) => Effect.scoped(DiskStorage.make({ size, directory, fallback: "zero-fill" }))
    yield* acquire(Math.min(fillSize, 64 * 1024 * 1024))
    const rounds: Array<Fill> = []
    for (let round = 0; round < fillRounds; round++) {
      yield* one.start
      yield* other.start
      const start = performance.now()
      const storage = yield* during(acquire(fillSize))
      const seconds = (performance.now() - start) / 1000
      rounds.push({ seconds, storage, idle: yield* one.stop, otherIdle: yield* other.stop })
    }
    const difference = (of: (fill: Fill) => number) => median(rounds.map(of))
    const above = {
      max: difference(({ idle, storage }) => storage.max - idle.max),
      p99: difference(({ idle, storage }) => storage.p99 - idle.p99)
    }
    const control = {
      max: difference(({ idle, otherIdle }) => otherIdle.max - idle.max),
      p99: difference(({ idle, otherIdle }) => otherIdle.p99 - idle.p99)
    }
    const noise = median(rounds.map(({ idle, otherIdle }) => Math.abs(otherIdle.max - idle.max)))
    const verdict: Verdict = above.max <= mostMillisAboveIdle
      ? "within"
      : noise > mostMillisAboveIdle
      ? "not decidable"
      : "over"
    return { size: fillSize, rounds, above, control, verdict }
  }).pipe(Effect.scoped, Effect.provide(withoutFallocate))

const columns = (cells: ReadonlyArray<string | number>) =>
  cells.map((cell, index) =>
    index === 0 ? String(cell).padEnd(30) : (typeof cell === "number" ? cell.toFixed(2) : cell).padStart(12)
  ).join("")

const table = (
  acquired: Effect.Effect.Success<ReturnType<typeof acquisitions>>,
  filled: Effect.Effect.Success<ReturnType<typeof fills>>
): string => {
  const percent = (value: number) => `${value >= 1 ? "+" : ""}${((value - 1) * 100).toFixed(0)} %`
  const { control, times } = acquired
  return [
    "",
    `acquire and release, ${acquired.size / gibibyte} GiB with fallocate, milliseconds each`,
    columns(["", "first", "best", "median", "CPU", "passes"]),
    ...acquired.measured.map(({ best, cpu, first, median, name, passes }) =>
      columns([name, first, best, median, cpu, String(passes)])
    ),
    `  times the raw calls: ${times.calls.best.toFixed(2)} best, ${times.calls.median.toFixed(2)} median ` +
    `(the raw calls against themselves: ${percent(control.calls.best)}, ${percent(control.calls.median)})`,
    `  times the same off-thread: ${times.async.best.toFixed(2)} best, ${times.async.median.toFixed(2)} median ` +
    `(these against themselves: ${percent(control.async.best)}, ${percent(control.async.median)})`,
    `  below ${mostTimesRaw} times the raw calls, best against best: ${acquired.verdict}`,
    "",
    `event-loop delay while ${filled.size / gibibyte} GiB are zero-filled and released, milliseconds`,
    columns(["", "max", "p99", "idle max", "idle p99", "other max", "other p99"]),
    ...filled.rounds.map(({ idle, otherIdle, seconds, storage }, round) =>
      columns([
        `round ${round + 1}, ${seconds.toFixed(1)} s`,
        storage.max,
        storage.p99,
        idle.max,
        idle.p99,
        otherIdle.max,
        otherIdle.p99
      ])
    ),
    `  above an idle process, median of the rounds: max ${filled.above.max.toFixed(1)}, p99 ${
      filled.above.p99.toFixed(1)
    } ` +
    `(another idle process: max ${filled.control.max.toFixed(1)}, p99 ${filled.control.p99.toFixed(1)})`,
    `  max at most ${mostMillisAboveIdle} ms above idle: ${filled.verdict}`,
    ""
  ].join("\n")
}

const program = Effect.gen(function*() {
  const parsed = yield* options
  if (parsed.help) return yield* Console.log(usage)
  yield* checkSpace(parsed)
  const directory = yield* scratch(parsed.directory)
  const acquired = yield* Effect.provide(acquisitions(directory, parsed), Linux.layer)
  const filled = yield* fills(directory, parsed)
  yield* Console.log(parsed.json ? JSON.stringify({ acquired, filled }, undefined, 2) : table(acquired, filled))
})

program.pipe(
  Effect.scoped,
  // Nothing but the result is printed.
  Effect.provide(Logger.remove(Logger.defaultLogger)),
  Effect.tapError(({ message }) => Console.error(message)),
  ProcessRuntime.runMain({ disableErrorReporting: true, disablePrettyLogger: true })
)
