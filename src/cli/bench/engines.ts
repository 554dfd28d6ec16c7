/** This package's engines as contestants. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as AlignedBuffer from "../../AlignedBuffer.js"
import type { Contestant } from "./contestant.js"
import { TargetUnusable } from "./errors.js"
import type { Shape } from "./load.js"
import type { LeftOut } from "./report.js"
import type { Target } from "./target.js"

export interface Engines {
  readonly contestants: ReadonlyArray<Contestant>
  /** Engines that this kernel refuses. */
  readonly leftOut: ReadonlyArray<LeftOut>
}

/** Those of which something is `wanted`. */
export const engines = (_wanted: (id: string) => boolean): Effect.Effect<Engines, never, Scope.Scope> =>
  Effect.succeed({ contestants: [], leftOut: [] })

/** Memory for every operation in flight, which all contestants use in turns. */
export const buffersFor = (
  { directory }: Target,
  { blockSize, depth }: Shape
): Effect.Effect<ReadonlyArray<AlignedBuffer.AlignedBuffer>, TargetUnusable, Scope.Scope> =>
  Effect.forEach(Array.from({ length: depth }), () => AlignedBuffer.make(blockSize)).pipe(
    Effect.mapError((cause) => new TargetUnusable({ directory, step: "memory for the operations in flight", cause }))
  )
