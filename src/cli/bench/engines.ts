/** This package's engines as contestants. */
import * as Effect from "effect/Effect"
import type { Contestant } from "./contestant.js"
import type { LeftOut } from "./report.js"

export interface Engines {
  readonly contestants: ReadonlyArray<Contestant>
  /** Engines that this kernel refuses. */
  readonly leftOut: ReadonlyArray<LeftOut>
}

export const engines: Effect.Effect<Engines> = Effect.succeed({ contestants: [], leftOut: [] })
