/** What the process in which histories run tells of them, a line of JSON each. */
import type { Invariant } from "./invariants.js"
import type { Plan } from "./plan.js"
import type { Violation } from "./world.js"

export interface Failed {
  readonly _tag: "Failed"
  /** Which of those that were asked for. */
  readonly number: number
  readonly plan: Plan
  readonly violations: ReadonlyArray<Violation>
  readonly history: ReadonlyArray<string>
}

/** What there is so far. */
export interface Progress {
  readonly _tag: "Progress"
  readonly histories: number
  readonly calls: number
  readonly checks: { readonly [name in Invariant]?: number }
  /** How often each error of each call was given. */
  readonly met: { readonly [pair: string]: number }
}

export type Told = Failed | Progress
