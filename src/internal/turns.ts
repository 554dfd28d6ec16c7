/** Long walks in parts, between which the event loop looks at everything else. */
import * as Effect from "effect/Effect"
import { setImmediate } from "node:timers"

/** Waits until the event loop has looked at everything else. */
export const eventLoopTurn: Effect.Effect<void> = Effect.async<void>((resume) => {
  const waiting = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(waiting))
})

/** Calls `each` with the parts of a range, `step` long, and lets the event loop have a turn before each of them. */
export const inTurns = (
  first: number,
  last: number,
  step: number,
  each: (from: number, to: number) => void
): Effect.Effect<void> => {
  let from = first
  return Effect.whileLoop({
    while: () => from < last,
    body: () => eventLoopTurn,
    step: () => {
      const to = Math.min(last, from + step)
      each(from, to)
      from = to
    }
  })
}
