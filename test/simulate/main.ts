/**
 * `npm run simulate`: thousands of short histories of everything in `src`, each drawn from a seed, and what must hold of each.
 *
 * A seed gives a plan (`plan.ts`): a kernel and an engine of `SimulatedSyscalls`, their faults, the work of several fibres, and when who
 * is interrupted. `history.ts` runs it on an event loop whose timers, immediates and clocks are simulated (`loop.ts`), so that nothing
 * outside decides what comes first, a history that hangs is known at once, and a seed gives the same history each time. What is checked
 * is listed in `invariants.ts`. `contents.ts` says what a read may give; `storages.ts`, `blocks.ts`, `doctor.ts` and,
 * with several processes that are killed, `neighbours.ts` do the work.
 *
 * The histories run in a process of their own, from one bundle of `src` and this folder. `--mutants` plants a bug in that bundle, one
 * after the other (`mutants.ts`), and looks how many seeds it takes until its invariant is violated. A plan that has ever failed is kept,
 * as the data it is, in `failed.json`, so that it stays the same history when other seeds become other plans.
 */
import { randomInt } from "node:crypto"
import { parseArgs } from "node:util"
import type { Caught } from "./findings.js"
import { coverage, hunt, known } from "./findings.js"
import { invariants, names } from "./invariants.js"
import { mutants } from "./mutants.js"
import { matrix } from "./plan.js"
import { simulate } from "./processes.js"
import type { Result } from "./processes.js"
import type { Failed, Told } from "./told.js"

const usage = `Usage: npm run simulate -- [--seeds N] [--from S] [--seed S] [--failed] [--mutants] [--json]

  --seeds N   how many histories (default 1000)
  --from S    the first seed (default: any)
  --seed S    this one alone, with its history
  --failed    those that failed once (test/simulate/failed.json)
  --mutants   plants each bug, and tells how many seeds it took to find it (at most --seeds, default 2000)
  --json      one JSON document in place of tables
`

/** Ends after so many seeds that fail. */
const mostFailed = 5

const pad = (rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? []
  const last = widths.length - 1
  return rows.map((row) =>
    row.map((cell, column) =>
      column === last ? cell : /^\d/.test(cell) ? cell.padStart(widths[column] ?? 0) : cell.padEnd(widths[column] ?? 0)
    ).join("  ").trimEnd()
  ).join("\n")
}

const tables = ({ calls, checks, histories, met, seconds }: Result): string => {
  const rows = coverage(met)
  const hit = rows.reduce((sum, row) => sum + row.hit, 0)
  return [
    pad([
      ["invariant", "checks", ""],
      ...names.map((name) => [name, String(checks[name] ?? 0), invariants[name]])
    ]),
    pad([
      ["syscall", "errnos hit", "missing"],
      ...rows.map((row) => [row.syscall, `${row.hit} of ${row.of}`, row.missing.join(" ")]),
      ["all", `${hit} of ${matrix.length}`, hit === matrix.length ? "" : `${matrix.length - hit} missing`]
    ]),
    `${histories} histories, ${calls} calls, ${seconds.toFixed(1)} s`
  ].join("\n\n")
}

const report = ({ history, plan, violations }: Failed): string =>
  [
    `Seed ${plan.seed} failed.`,
    ...violations.map(({ invariant, what }) => `  ${invariant} (${invariants[invariant]}): ${what}`),
    "",
    "Its plan:",
    JSON.stringify(plan, undefined, 2),
    "",
    "The last of its history:",
    ...history,
    "",
    `Again: npm run simulate -- --seed ${plan.seed}`,
    ""
  ].join("\n")

const write = (text: string): void => void process.stdout.write(`${text}\n`)

/** One line that is written over, where there is a terminal to write it on. */
const status = (text: string): void => {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001b[K${text}`)
}

const number = (value: string | undefined, fallback: number): number => {
  if (value === undefined) return fallback
  const given = Number(value)
  if (!Number.isSafeInteger(given) || given < 0) throw new TypeError(`${value} is no whole number`)
  return given
}

/** A line as soon as it is known: some take long. */
const mutantLine = (invariant: string, seeds: string, bug: string): string =>
  `${invariant.padEnd(Math.max(...names.map(({ length }) => length)))}  ${seeds.padStart(6)}  ${bug}`

const caughtLine = ({ mutant, seeds, what }: Caught): string =>
  mutantLine(
    mutant.invariant,
    seeds === undefined ? "missed" : String(seeds),
    `${mutant.what}${seeds === undefined && what !== "" ? ` (${what})` : ""}`
  )

const options = {
  seeds: { type: "string" },
  from: { type: "string" },
  seed: { type: "string" },
  failed: { type: "boolean", default: false },
  mutants: { type: "boolean", default: false },
  json: { type: "boolean", default: false },
  help: { type: "boolean", default: false }
} as const

const main = async (): Promise<number> => {
  const { values } = parseArgs({ options })
  if (values.help) {
    process.stdout.write(usage)
    return 0
  }
  const stopped = new AbortController()
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => stopped.abort())
  const from = number(values.from, randomInt(2 ** 31))
  if (values.mutants) {
    const caught: Array<Caught> = []
    if (!values.json) write(`From seed ${from}\n\n${mutantLine("invariant", "seeds", "bug")}`)
    for (const mutant of mutants) {
      status(`${caught.length} of ${mutants.length}: ${mutant.what}`)
      const one = await hunt(mutant, from, number(values.seeds, 2000), stopped.signal)
      if (stopped.signal.aborted) break
      caught.push(one)
      status("")
      if (!values.json) write(caughtLine(one))
    }
    if (values.json) write(JSON.stringify({ from, mutants: caught }))
    return caught.length === mutants.length && caught.every(({ seeds }) => seeds !== undefined) ? 0 : 1
  }
  const asked = values.failed
    ? { from: 0, count: 0, most: Infinity, plans: known().map(({ plan }) => plan) }
    : values.seed === undefined
    ? { from, count: number(values.seeds, 1000), most: mostFailed }
    : { from: number(values.seed, 0), count: 1, most: 1 }
  if (!values.json && !values.failed && values.seed === undefined) write(`From seed ${from}`)
  let failed = 0
  const onTold = (told: Told) => {
    if (told._tag === "Failed") {
      failed += 1
      if (!values.json) write(`\n${report(told)}`)
    } else status(`${told.histories} histories, ${told.calls} calls, ${failed} failed`)
  }
  const result = await simulate({ ...asked, most: Math.min(asked.most, 2 ** 31) }, onTold, stopped.signal)
  status("")
  write(values.json ? JSON.stringify({ from: asked.from, ...result, coverage: coverage(result.met) }) : tables(result))
  if (result.broken !== undefined) process.stderr.write(`The simulation ended early: ${result.broken}\n`)
  else if (stopped.signal.aborted) process.stderr.write("Stopped; this is what there was so far.\n")
  return result.failed.length > 0 || result.broken !== undefined ? 1 : 0
}

try {
  process.exitCode = await main()
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n${usage}`)
  process.exitCode = 2
}
