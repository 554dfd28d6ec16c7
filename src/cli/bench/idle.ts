/** A process that does nothing but measure its own event loop. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import { EventLoop } from "./report.js"

/** A text, since the command is one file, and so that the process loads nothing of it. */
const script = `
const histogram = require("node:perf_hooks").monitorEventLoopDelay({ resolution: 1 })
process.on("message", (message) => {
  if (message === "start") {
    histogram.reset()
    histogram.enable()
    process.send("started")
  } else {
    histogram.disable()
    process.send({ p99: histogram.percentile(99) / 1e6, max: histogram.max / 1e6 })
  }
})`

export interface Idle {
  readonly start: Effect.Effect<void>
  readonly stop: Effect.Effect<EventLoop>
}

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
export const make: Effect.Effect<Idle, never, Scope.Scope> = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() =>
      spawn(process.execPath, ["--input-type=commonjs", "--eval", script], {
        detached: true,
        stdio: ["ignore", "ignore", "inherit", "ipc"]
      })
    ),
    (child) =>
      Effect.async<void>((resume) => {
        if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
        child.once("exit", () => resume(Effect.void))
        child.kill("SIGKILL")
      })
  ),
  (child) => ({
    start: Effect.asVoid(tell(child, "start")),
    stop: Effect.flatMap(tell(child, "stop"), (answer) => Effect.orDie(Schema.decodeUnknown(EventLoop)(answer)))
  })
)
