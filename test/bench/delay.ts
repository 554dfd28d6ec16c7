/** How long the event loop of this process is held up while something runs, against processes that do nothing meanwhile. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { ChildProcess } from "node:child_process"
import { fork } from "node:child_process"
import type { IntervalHistogram } from "node:perf_hooks"
import { monitorEventLoopDelay } from "node:perf_hooks"
import { fileURLToPath } from "node:url"

/** Milliseconds. */
export interface Delay {
  readonly max: number
  readonly p99: number
}

/** The finest resolution there is, milliseconds. */
export const resolution = 1

export const delayOf = (histogram: IntervalHistogram): Delay => ({
  max: histogram.max / 1e6,
  p99: histogram.percentile(99) / 1e6
})

/** A process that does nothing but measure its own event loop. */
export interface Idle {
  readonly start: Effect.Effect<void>
  readonly stop: Effect.Effect<Delay>
}

const isDelay = (value: unknown): value is Delay =>
  typeof value === "object" && value !== null && "max" in value && "p99" in value

const script = fileURLToPath(new URL("children/idle.ts", import.meta.url))

const tell = (child: ChildProcess, message: "start" | "stop") =>
  Effect.async<unknown>((resume) => {
    const ended = () => resume(Effect.dieMessage("the idle process ended"))
    child.once("exit", ended)
    child.once("message", (answer) => {
      child.removeListener("exit", ended)
      resume(Effect.succeed(answer))
    })
    if (child.connected) child.send(message)
    else ended()
  })

/** In a process group of its own, which no Ctrl-C reaches; it ends with this process, however that ends. */
export const idle: Effect.Effect<Idle, never, Scope.Scope> = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => fork(script, { execArgv: ["--import", "tsx"], detached: true })),
    (child) =>
      Effect.async<void>((resume) => {
        if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
        child.once("exit", () => resume(Effect.void))
        child.kill("SIGKILL")
      })
  ),
  (child) => ({
    start: Effect.asVoid(tell(child, "start")),
    stop: Effect.flatMap(
      tell(child, "stop"),
      (answer) => isDelay(answer) ? Effect.succeed(answer) : Effect.dieMessage("no delay was answered")
    )
  })
)

/** The delay of this process while `effect` runs. */
export const during = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<Delay, E, R> =>
  Effect.suspend(() => {
    const histogram = monitorEventLoopDelay({ resolution })
    return Effect.sync(() => histogram.enable()).pipe(
      Effect.zipRight(effect),
      Effect.ensuring(Effect.sync(() => histogram.disable())),
      Effect.map(() => delayOf(histogram))
    )
  })
