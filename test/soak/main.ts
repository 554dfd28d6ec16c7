/** `npm run soak -- --help`. */
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as progress from "../../src/cli/bench/progress.js"
import { checkSpace, filesystemOf } from "../../src/cli/bench/target.js"
import * as ProcessRuntime from "../../src/ProcessRuntime.js"
import { help, parse, UsageError } from "./arguments.js"
import * as report from "./report.js"
import * as soak from "./soak.js"

/** Bytes that all files together have at most, with room to spare. */
const mostBytes = 512 * 1024 * 1024

const minuteMillis = 60_000

/** The table has said why. */
class Failed extends Data.TaggedError("Failed") {}

const cacheDirectory = Config.nonEmptyString("DYN_KVBM_DISK_CACHE_DIR").pipe(Config.withDefault(tmpdir()))

/** Gone at the end, and where the process ends without coming to it. */
const ownDirectory = Effect.gen(function*() {
  const parent = yield* cacheDirectory
  mkdirSync(parent, { recursive: true, mode: 0o700 })
  yield* checkSpace(parent, yield* filesystemOf(parent), mostBytes)
  return yield* Effect.acquireRelease(
    Effect.sync(() => {
      const directory = mkdtempSync(join(parent, "effect-disk-storage-soak-"))
      const remove = () => rmSync(directory, { recursive: true, force: true })
      process.on("exit", remove)
      return { directory, remove }
    }),
    ({ remove }) =>
      Effect.sync(() => {
        process.off("exit", remove)
        remove()
      })
  )
})

const program = Effect.gen(function*() {
  const given = yield* parse(process.argv.slice(2))
  if (given === "help") return yield* Console.log(help)
  const { directory } = yield* ownDirectory
  const { log, status } = yield* progress.Progress
  const seed = given.seed ?? Date.now() % 1_000_000
  yield* log(`seed ${seed}, in ${directory}`)
  const state = yield* soak.make
  let minutes = 0
  const options: soak.Options = {
    seed,
    from: given.from,
    rounds: given.rounds,
    millis: given.minutes * minuteMillis,
    rate: given.faults,
    directory,
    onRound: (soak) =>
      Effect.suspend(() => {
        const passed = Math.floor((performance.now() - soak.began) / minuteMillis)
        if (passed === minutes) return status(report.line(soak))
        minutes = passed
        return log(report.line(soak))
      })
  }
  const told = (stopped: boolean) =>
    Effect.gen(function*() {
      const found = report.make(state, options, stopped)
      const json = `${yield* Schema.encode(Schema.parseJson(report.Report, { space: 2 }))(found)}\n`
      if (given.json !== undefined && given.json !== "-") writeFileSync(given.json, json)
      yield* status("")
      yield* given.json === "-" ? Effect.sync(() => process.stdout.write(json)) : Console.log(report.table(found))
      return found
    })
  // What was done is told however it ends; an interruption goes on when it is.
  const { passed } = yield* Effect.onInterrupt(soak.run(state, options), () => Effect.orDie(told(true))).pipe(
    Effect.zipRight(told(false))
  )
  if (!passed) return yield* new Failed()
}).pipe(Effect.scoped, Effect.provide(progress.layer))

const explain = (cause: Cause.Cause<Failed | { readonly message: string }>) => {
  if (Cause.isInterruptedOnly(cause)) return Effect.void
  const messages = Array.from(Cause.failures(cause), (error) => error instanceof Failed ? "" : error.message)
  const text = messages.filter((message) => message !== "").join("\n")
  return text === "" && messages.length > 0 ? Effect.void : Console.error(text || Cause.pretty(cause))
}

/** 64 is EX_USAGE of sysexits.h. */
const exitCode = (cause: Cause.Cause<unknown>) =>
  Chunk.some(Cause.failures(cause), (failure) => failure instanceof UsageError) ? 64 : 1

program.pipe(
  Effect.onError(explain),
  ProcessRuntime.runMain({
    disableErrorReporting: true,
    // What is logged is counted.
    disablePrettyLogger: true,
    teardown: (exit, onExit) => onExit(Exit.match(exit, { onSuccess: () => 0, onFailure: exitCode }))
  })
)
