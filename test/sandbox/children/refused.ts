/** Has the kernel refuse calls of this process, then makes, uses and releases a storage, and prints what became of it. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { writeSync } from "node:fs"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as Linux from "../../../src/Linux.js"
import { isRefusable, refuse } from "../../engines/children/seccomp.js"
import type { Refused } from "../../engines/children/seccomp.js"
import { Outcome, Task } from "./protocol.js"

const { directory, engine, errno, keepAt, refuse: asked, ...options } = Schema.decodeUnknownSync(Task)(process.argv[2])

const warnings: Array<string> = []
const logger = Logger.make(({ logLevel, message }) => {
  if (logLevel.label === "WARN" || logLevel.label === "ERROR") {
    const parts: ReadonlyArray<unknown> = Array.isArray(message) ? message : [message]
    warnings.push(parts.map((part) => part instanceof Error ? part.message : String(part)).join(" "))
  }
})

/** The step that is being taken, and what the storage said of itself. */
let step: NonNullable<Outcome["failed"]>["step"] = "acquire"
let storage: Outcome["storage"]

const program = Effect.gen(function*() {
  const made = yield* DiskStorage.make({
    size: 1_000_000,
    ...options,
    ...(keepAt === undefined ? { directory } : { keepAt })
  })
  const { alignment, allocation, directIo } = made
  storage = {
    verdict: directIo.verdict,
    reason: directIo.reason,
    alignment: alignment.offset,
    allocation: allocation.method
  }
  step = "transfer"
  const bytes = new Uint8Array(50_000).fill(7)
  yield* made.writeBytes(123, bytes)
  const back = yield* made.readBytes(123, bytes.byteLength)
  if (back.some((byte) => byte !== 7)) return yield* Effect.dieMessage("other bytes came back")
  step = "sync"
  yield* made.sync
  if (keepAt !== undefined) {
    step = "keep"
    yield* made.keep
  }
  step = "release"
  yield* made.close
}).pipe(
  Effect.scoped,
  Effect.provide(Linux.layerWith({ engine })),
  Effect.provide(Logger.replace(Logger.defaultLogger, logger))
)

const toRefused = (call: Task["refuse"][number]): Refused => {
  const [name, second] = typeof call === "string" ? [call, undefined] : call
  if (!isRefusable(name)) throw new Error(`${name} is not in the table of seccomp.ts`)
  return second === undefined ? name : [name, second]
}
refuse(asked.map(toRefused), errno)

const exit = await Effect.runPromiseExit(program)
const failed = Exit.match(exit, {
  onSuccess: () => undefined,
  onFailure: (cause) =>
    Option.match(Cause.failureOption(cause), {
      onNone: () => ({ step, tag: "defect", message: Cause.pretty(cause) }),
      onSome: (error) => ({ step, tag: "_tag" in error ? error._tag : "ConfigError", message: String(error) })
    })
})
const told = Schema.encodeSync(Outcome)({
  ...(failed === undefined ? {} : { failed }),
  ...(storage === undefined ? {} : { storage }),
  warnings
})
writeSync(1, `${told}\n`)
// Node itself cannot end where fcntl is refused: it gives its standard streams their flags back, and aborts.
process.kill(process.pid, "SIGKILL")
