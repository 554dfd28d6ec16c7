/** Somebody who is interrupted. */
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type { Interruption } from "./plan.js"
import type { World } from "./world.js"

/** Runs in a fibre of its own, which is interrupted as the plan says. */
export const disturbed = <A, E, R>(
  world: World,
  run: Effect.Effect<A, E, R>,
  interruption: Interruption | undefined
): Effect.Effect<Exit.Exit<A, E>, never, R> =>
  Effect.gen(function*() {
    const fiber = yield* Effect.fork(run)
    if (interruption?._tag === "Call") yield* world.kernel.interrupt(fiber, interruption)
    if (interruption?._tag !== "Time") return yield* Fiber.await(fiber)
    const late = Effect.zipRight(Effect.sleep(interruption.millis), Fiber.interruptFork(fiber))
    const timer = yield* Effect.fork(late)
    const exit = yield* Fiber.await(fiber)
    yield* Fiber.interrupt(timer)
    return exit
  })
