/** What a soak found, as data and as a table. */
import * as Schema from "effect/Schema"
import { bytes, count, duration } from "../../src/cli/bench/units.js"
import { compare, leastMillisForMemory, what } from "./measure.js"
import type { Options, Soak } from "./soak.js"
import type { Tally } from "./world.js"

const Counts = Schema.Record({ key: Schema.String, value: Schema.Number })

const Side = Schema.Struct({
  operations: Schema.Number,
  storages: Schema.Number,
  stores: Schema.Number,
  takenUp: Schema.Number,
  blocksChecked: Schema.Number,
  bytesChecked: Schema.Number,
  /** Calls and operations that could be given a fault, and those that were. */
  calls: Schema.Number,
  faults: Schema.Number,
  interruptions: Schema.Number,
  failures: Counts
})

export const Report = Schema.Struct({
  seed: Schema.Number,
  from: Schema.Number,
  rounds: Schema.Number,
  millis: Schema.Number,
  rate: Schema.Number,
  /** By which it was ended before its time. */
  stopped: Schema.Boolean,
  engines: Schema.Array(Schema.String),
  refused: Schema.Array(Schema.String),
  real: Side,
  simulated: Side,
  logged: Counts,
  warmUpMillis: Schema.Number,
  samples: Schema.Number,
  /** Medians of the first and of the last tenth of the samples after the warm-up. */
  held: Schema.Array(Schema.Struct({
    what: Schema.Literal(...what),
    from: Schema.Number,
    to: Schema.Number,
    verdict: Schema.Literal("none", "LEAK", "too short")
  })),
  /** What had not come back when nothing was at work. */
  lost: Schema.Struct({
    slots: Schema.Number,
    pins: Schema.Number,
    budget: Schema.Number,
    registrations: Schema.Number,
    files: Schema.Number,
    simulated: Schema.Number
  }),
  failure: Schema.NullOr(Schema.Struct({ lane: Schema.String, round: Schema.Number, message: Schema.String })),
  passed: Schema.Boolean
})

export type Report = typeof Report.Type

const side = ({ failures, ...counts }: Tally): typeof Side.Type => ({
  ...counts,
  failures: Object.fromEntries(failures)
})

export const make = (soak: Soak, { from, rate, seed }: Options, stopped: boolean): Report => {
  const { growths, samples, warmUpMillis } = compare(soak.samples)
  const lost = Object.values(soak.lost).some((count) => count !== 0)
  return {
    seed,
    from,
    rounds: soak.rounds,
    millis: performance.now() - soak.began,
    rate,
    stopped,
    engines: soak.engines,
    refused: soak.refused,
    real: side(soak.real),
    simulated: side(soak.simulated),
    logged: Object.fromEntries(soak.logged),
    warmUpMillis,
    samples,
    held: growths,
    lost: { ...soak.lost },
    failure: soak.failure ?? null,
    passed: soak.failure === undefined && (stopped || !lost) && growths.every(({ verdict }) => verdict !== "LEAK")
  }
}

const columns = (cells: ReadonlyArray<string>): string =>
  cells.map((cell, index) => index === 0 ? cell.padEnd(28) : cell.padStart(14)).join("").trimEnd()

const percent = (part: number, whole: number) => `${(100 * part / Math.max(1, whole)).toFixed(2)} %`

const names = {
  descriptors: "descriptors",
  mappings: "mappings",
  listeners: "listeners of the process",
  handles: "active handles",
  rss: "RSS",
  heap: "heap",
  external: "external memory"
} as const

const heldLine = ({ from, to, verdict, what }: Report["held"][number]): string => {
  const isMemory = what === "rss" || what === "heap" || what === "external"
  const shown = (value: number) => isMemory ? `${(value / 2 ** 20).toFixed(2)} MiB` : String(value)
  const growth = isMemory
    ? `${to >= from ? "+" : ""}${percent(to - from, from)}`
    : `${to >= from ? "+" : ""}${to - from}`
  return columns([names[what], shown(from), shown(to), growth, verdict === "none" ? "no leak" : verdict])
}

const counted = (counts: Readonly<Record<string, number>>): ReadonlyArray<string> =>
  Object.entries(counts).sort(([, one], [, other]) => other - one).map(([name, count]) =>
    `  ${String(count).padStart(9)}  ${name}`
  )

export const replay = ({ failure, rate, seed }: Pick<Report, "failure" | "rate" | "seed">): string =>
  failure === null
    ? ""
    : `npm run soak -- --seed ${seed} --faults ${rate} ${
      failure.lane === "long" ? `--rounds ${failure.round}` : `--from ${failure.round} --rounds 1`
    }`

/** One line of what was done so far. */
export const line = ({ real, rounds, samples, simulated }: Soak): string => {
  const sum = (of: (tally: Tally) => number) => of(real) + of(simulated)
  const last = samples.at(-1)
  return `round ${rounds}, ${duration(last?.millis ?? 0)}: ${count(sum(({ operations }) => operations))} operations, ` +
    `${bytes(sum(({ bytesChecked }) => bytesChecked))} compared, ${sum(({ faults }) => faults)} faults; ` +
    `RSS ${((last?.rss ?? 0) / 2 ** 20).toFixed(1)} MiB, heap ${((last?.heap ?? 0) / 2 ** 20).toFixed(1)} MiB, ` +
    `${last?.descriptors ?? 0} descriptors, ${last?.mappings ?? 0} mappings`
}

export const table = (report: Report): string => {
  const { held, lost, real, simulated } = report
  const both = (name: string, of: (one: typeof Side.Type) => string) => columns([name, of(real), of(simulated)])
  return [
    `seed ${report.seed}, rounds ${report.from} to ${report.from + report.rounds - 1}, ${duration(report.millis)}` +
    `${report.stopped ? ", stopped" : ""}; engines ${report.engines.join(", ")}, and a simulated one`,
    ...report.refused.map((reason) => `left out: ${reason}`),
    "",
    columns(["", "real kernel", "simulated"]),
    both("operations", ({ operations }) => count(operations)),
    both("storages", ({ storages }) => String(storages)),
    both("block stores", ({ stores }) => String(stores)),
    both("taken up again", ({ takenUp }) => String(takenUp)),
    both("blocks compared", ({ blocksChecked }) => count(blocksChecked)),
    both("bytes compared", ({ bytesChecked }) => bytes(bytesChecked)),
    both("calls that could fail", ({ calls }) => count(calls)),
    both("faults", ({ faults }) => String(faults)),
    both(`rate (asked: ${percent(report.rate, 1)})`, ({ calls, faults }) => percent(faults, calls)),
    both("interruptions", ({ interruptions }) => String(interruptions)),
    "",
    "failures, real kernel",
    ...counted(real.failures),
    "failures, simulated",
    ...counted(simulated.failures),
    ...(Object.keys(report.logged).length === 0
      ? []
      : ["warnings and errors that were logged", ...counted(report.logged)]),
    "",
    `held when nothing is at work: medians of ${report.samples} rounds after a warm-up of ${
      duration(report.warmUpMillis)
    }, and of the last ${report.samples}`,
    columns(["", "first", "last", "growth", ""]),
    ...held.map(heldLine),
    ...(report.millis < leastMillisForMemory
      ? [
        `Memory and mappings decide in runs of ${
          duration(leastMillisForMemory)
        } and more: before that they are still growing.`
      ]
      : []),
    "",
    "not come back",
    columns(["slots and pins of stores", String(lost.slots + lost.pins)]),
    columns(["budget of allocators", `${lost.budget} B`]),
    columns(["registrations", String(lost.registrations)]),
    columns(["files", String(lost.files)]),
    columns(["of simulated kernels", String(lost.simulated)]),
    "",
    ...(report.failure === null ? [] : [
      `BROKEN in round ${report.failure.round}, ${report.failure.lane}: ${report.failure.message}`,
      `Again: ${replay(report)}`
    ]),
    report.passed ? "every byte was right, and nothing leaked" : "FAILED"
  ].join("\n")
}
