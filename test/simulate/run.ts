/** The process in which histories run: one after the other, told line by line. Its argument names a file that says which. */
import * as loop from "./loop.js"
// It must be there before anything that takes a timer.
import { readFileSync } from "node:fs"
import { run } from "./history.js"
import type { Invariant } from "./invariants.js"
import { draw } from "./plan.js"
import type { Asked } from "./processes.js"
import type { Told } from "./told.js"

/** Of so many histories one is run again, and must be the same. */
const replayed = 25
/** How long Node's own loop waits for its turn. */
const sliceMillis = 100

const asked: Asked = JSON.parse(readFileSync(process.argv[2] ?? "", "utf8"))
const total = asked.plans?.length ?? asked.count

const tell = (told: Told): void => void process.stdout.write(`${JSON.stringify(told)}\n`)

const checks = new Map<Invariant, number>()
const met = new Map<string, number>()
let histories = 0
let calls = 0
let failed = 0

const one = (number: number): void => {
  const plan = asked.plans?.[number] ?? draw(asked.from + number)
  const outcome = run(plan, checks)
  histories += 1
  calls += outcome.calls
  for (const { code, syscall } of outcome.met) {
    const pair = `${syscall} ${code}`
    met.set(pair, (met.get(pair) ?? 0) + 1)
  }
  const violations = [...outcome.violations]
  if (asked.plans !== undefined || number % replayed === 0 || violations.length > 0) {
    const again = run(plan, new Map())
    checks.set("replay", (checks.get("replay") ?? 0) + 1)
    if (again.digest !== outcome.digest) {
      violations.push({ invariant: "replay", what: "the same seed gave another history" })
    }
  }
  if (!violations.some(({ invariant }) => asked.until === undefined || invariant === asked.until)) return
  failed += 1
  tell({ _tag: "Failed", number, plan, violations, history: outcome.history })
}

// Whoever asked has enough, or is gone.
let stopping = false
const stop = () => {
  stopping = true
}
process.stdin.on("end", stop).on("error", stop).resume()
// The terminal signals everybody; whoever asked decides.
process.on("SIGINT", () => {})

const slice = (): void => {
  const began = loop.real.now()
  const more = () => histories < total && failed < asked.most && !stopping
  while (more() && loop.real.now() - began < sliceMillis) one(histories)
  tell({ _tag: "Progress", histories, calls, checks: Object.fromEntries(checks), met: Object.fromEntries(met) })
  if (more()) loop.real.setImmediate(slice)
  else process.stdin.destroy()
}

loop.real.setImmediate(slice)
