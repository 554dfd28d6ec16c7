/** Builds the layer after each refusal, uses a storage on it, and says which engine it was, what it logged and what it left open. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { readdirSync, readlinkSync } from "node:fs"
import * as DiskStorage from "../../../src/DiskStorage.js"
import { IoEngine } from "../../../src/IoEngine.js"
import * as Linux from "../../../src/Linux.js"
import { Outcome, Steps } from "./choiceProtocol.js"
import { refuse } from "./seccomp.js"

const { directory, steps } = Schema.decodeUnknownSync(Steps)(process.argv[2])

const left = () =>
  readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      return []
    }
  }).filter((target) => /io_uring|memfd|effect-disk|dynamo/.test(target))

for (const step of steps) {
  if (step.refuse.length > 0) refuse(step.refuse, step.errno)
  const lines: Array<string> = []
  const logger = Logger.make(({ logLevel, message }) => void lines.push(`${logLevel.label} ${String(message)}`))
  const program = Effect.gen(function*() {
    const storage = yield* DiskStorage.make({ size: 1_000_000, directory, directIo: "preferred" })
    const bytes = new Uint8Array(500_000).fill(7)
    yield* storage.writeBytes(123, bytes)
    yield* storage.sync
    const back = yield* storage.readBytes(123, bytes.byteLength)
    const { name } = yield* IoEngine
    return back.every((byte) => byte === 7) ? name : `${name}, which lost data`
  }).pipe(
    Effect.scoped,
    Effect.provide(step.engine === undefined ? Linux.layer : Linux.layerWith({ engine: step.engine })),
    Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
    Logger.withMinimumLogLevel(LogLevel.Debug)
  )
  const exit = await Effect.runPromiseExit(program)
  const outcome = Exit.match(exit, {
    onSuccess: (engine) => ({ engine, message: "" }),
    onFailure: (cause) =>
      Option.match(Cause.failureOption(cause), {
        onNone: () => ({ failure: "defect", message: Cause.pretty(cause) }),
        onSome: (error) => ({
          failure: "_tag" in error ? error._tag : "ConfigError",
          message: "message" in error ? String(error.message) : String(error)
        })
      })
  })
  console.log(
    Schema.encodeSync(Outcome)({ ...outcome, lines: lines.filter((line) => line.includes("I/O engine")), left: left() })
  )
}
