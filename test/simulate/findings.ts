/** What is made of simulations: seeds until a bug is found, errors that were met, plans that failed once. */
import { readFileSync } from "node:fs"
import type { Mutant } from "./mutants.js"
import type { Plan } from "./plan.js"
import { matrix } from "./plan.js"
import type { Result } from "./processes.js"
import { simulate } from "./processes.js"

export interface Known {
  /** What was wrong. */
  readonly what: string
  readonly plan: Plan
}

export const known = (): ReadonlyArray<Known> =>
  JSON.parse(readFileSync(new URL("failed.json", import.meta.url), "utf8"))

export interface Caught {
  readonly mutant: Mutant
  /** Undefined: not within as many as were allowed. */
  readonly seeds: number | undefined
  readonly what: string
}

export const hunt = async (mutant: Mutant, from: number, most: number, signal?: AbortSignal): Promise<Caught> => {
  const { failed, broken, histories } = await simulate(
    { from, count: most, most: 1, until: mutant.invariant, mutation: mutant },
    () => {},
    signal
  )
  const [first] = failed
  const violation = first?.violations.find(({ invariant }) => invariant === mutant.invariant)
  if (violation !== undefined && first !== undefined) return { mutant, seeds: first.number + 1, what: violation.what }
  // One that makes the process itself go round in circles is seen by its silence.
  return mutant.invariant === "progress" && broken !== undefined
    ? { mutant, seeds: histories + 1, what: broken }
    : { mutant, seeds: undefined, what: broken ?? "" }
}

export interface Coverage {
  readonly syscall: string
  readonly of: number
  readonly hit: number
  readonly missing: ReadonlyArray<string>
}

export const coverage = (met: Result["met"]): ReadonlyArray<Coverage> => {
  const syscalls = [...new Set(matrix.map(({ syscall }) => syscall))]
  return syscalls.map((syscall) => {
    const codes = matrix.filter((pair) => pair.syscall === syscall).map(({ code }) => code)
    const missing = codes.filter((code) => met[`${syscall} ${code}`] === undefined)
    return { syscall, of: codes.length, hit: codes.length - missing.length, missing }
  })
}
