/** Runs one plan from its beginning to its end, on a loop of its own, and checks what must hold of it. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as RandomService from "effect/Random"
import { createHash } from "node:crypto"
import { ReleaseFailed } from "../../src/DiskStorageError.js"
import * as IoEngine from "../../src/IoEngine.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"
import type { Syscalls } from "../../src/Syscalls.js"
import * as fileTree from "../doctor/fileTree.js"
import * as blocks from "./blocks.js"
import * as doctor from "./doctor.js"
import type { Invariant } from "./invariants.js"
import { Living } from "./living.js"
import * as loop from "./loop.js"
import * as neighbours from "./neighbours.js"
import type { Pair, Plan } from "./plan.js"
import * as storages from "./storages.js"
import type { Violation } from "./world.js"
import { canonical, World } from "./world.js"

export interface Outcome {
  readonly violations: ReadonlyArray<Violation>
  /** Errors that calls gave. */
  readonly met: ReadonlyArray<Pair>
  readonly calls: number
  /** Of everything that was observable. */
  readonly digest: string
  /** The last of what happened, in words. */
  readonly history: ReadonlyArray<string>
}

const engine = (
  { device }: Plan
): Layer.Layer<IoEngine.IoEngine, never, Syscalls | SimulatedSyscalls.SimulatedKernel> =>
  device === undefined ? IoEngine.layerSyscalls : Layer.orDie(SimulatedSyscalls.layerEngine(device))

const layer = (plan: Plan) =>
  Layer.merge(
    Layer.provideMerge(engine(plan), SimulatedSyscalls.layer(plan)),
    fileTree.layer(doctor.tree(plan))
  )

const workload = (world: World, { workload }: Plan) =>
  workload._tag === "Storages"
    ? storages.run(world, workload)
    : workload._tag === "Blocks"
    ? blocks.run(world, workload)
    : workload._tag === "Neighbours"
    ? neighbours.run(world, workload)
    : doctor.run(world, workload)

/** What nobody caught, from wherever it came. */
let uncaught: ((what: string) => void) | undefined
process.on("unhandledRejection", (reason) => uncaught?.(`an unhandled rejection: ${String(reason)}`))
process.on("uncaughtException", (error) => {
  if (uncaught === undefined) throw error
  uncaught(`an uncaught exception: ${error.stack}`)
})

const listeners = () => process.listenerCount("exit")

const lines = 60

const written = (world: World): ReadonlyArray<string> => {
  const calls = world.journal.map(({ call, fd, length, offset, path, process, result, syscall, to }) => ({
    at: call,
    text: `${String(call).padStart(5)}  ${process === undefined ? "" : `[${process}] `}${syscall} ${path ?? ""}${
      to === undefined ? "" : ` → ${to}`
    }${fd === undefined ? "" : `fd ${fd}`}${offset === undefined ? "" : ` at ${offset}`}${
      length === undefined ? "" : ` of ${length}`
    } = ${result}`
  }))
  const notes = world.notes.map(({ calls, millis, text }) => ({
    at: calls + 0.5,
    text: `       ${millis.toFixed(2)} ms  ${text}`
  }))
  return [...calls, ...notes].sort((a, b) => a.at - b.at).map(({ text }) => text)
}

/** Every descriptor is open when it is used. */
const descriptors = (world: World) => {
  const open = new Set<string>()
  for (const { fd, process = 0, result, syscall } of world.journal) {
    const of = (fd: number) => `${fd} of process ${process}`
    if ((syscall === "open" || syscall === "mkostemp") && typeof result === "number") open.add(of(result))
    if (fd === undefined) continue
    world.holds("closed descriptors", open.has(of(fd)), () => `${syscall} of fd ${of(fd)}, which is not open`)
    // It is gone even where close fails.
    if (syscall === "close") open.delete(of(fd))
  }
}

/** What is left, but for what calls that failed have left, and what was kept. */
const leaks = (world: World) => {
  const { journal } = world
  const { bytes, fds, files, mappings } = world.leaks
  world.holds("descriptors", fds.length === 0, () => `open: ${fds}`)
  const failed = (path: string) =>
    journal.some((entry) =>
      entry.syscall === "unlink" && canonical(entry.path ?? "") === path && typeof entry.result === "string" &&
      entry.result !== "ENOENT"
    )
  const left = files.filter((path) => !world.keptAt.has(path) && !failed(path))
  world.holds("files", left.length === 0, () => `left: ${left}`)
  world.holds("files", bytes === 0 || files.length > 0, () => `${bytes} bytes of no file`)
  const unmapped = journal.filter(({ result, syscall }) => syscall === "munmap" && typeof result === "string").length
  world.holds(
    "mappings",
    mappings <= unmapped,
    () => `${mappings} mappings, and ${unmapped} that could not be unmapped`
  )
}

/** Each unlink or close that failed for good and belongs to a release is in a `ReleaseFailed`. */
const told = (world: World, failures: ReadonlyArray<ReleaseFailed>) => {
  const left = world.leaks.files.filter((path) => !world.keptAt.has(path))
  for (const path of left) {
    const steps = failures.filter((failure) => canonical(failure.path) === path).flatMap((failure) => failure.failures)
    world.holds(
      "release is told",
      steps.some(({ step }) => step === "unlink"),
      () => `${path} is left, and nobody said so`
    )
  }
}

export const run = (plan: Plan, checks: Map<Invariant, number>): Outcome => {
  loop.restart(plan.seed)
  const before = listeners()
  const living = new Living()
  const releaseFailures: Array<ReleaseFailed> = []
  let world: World | undefined
  let exit: Exit.Exit<void> | undefined
  const stray: Array<string> = []
  uncaught = (what) => stray.push(what)
  const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
    const parts = Array.isArray(message) ? message : [message]
    for (const part of parts) if (part instanceof ReleaseFailed) releaseFailures.push(part)
    if (LogLevel.greaterThan(logLevel, LogLevel.Info)) world?.note(`${logLevel.label}: ${parts.map(String).join(" ")}`)
  })
  const program = Effect.gen(function*() {
    const kernel = yield* SimulatedSyscalls.SimulatedKernel
    const here = world = new World(plan, kernel, (effect) => Effect.runSync(effect), checks)
    yield* Effect.forEach(plan.faults, kernel.inject, { discard: true })
    yield* workload(here, plan)
  }).pipe(
    Effect.provide(layer(plan)),
    Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
    Effect.withRandom(RandomService.make(plan.seed)),
    Effect.supervised(living)
  )
  const fiber = Effect.runFork(program)
  fiber.addObserver((ended) => {
    exit = ended
  })
  let stopped: ReturnType<typeof loop.run> = "idle"
  try {
    stopped = loop.run(() => exit !== undefined)
    // What is still to come comes now, if at all.
    if (stopped === "ended") stopped = loop.run(() => false) === "endless" ? "endless" : "ended"
  } catch (error) {
    stray.push(`thrown at the event loop: ${error instanceof Error ? error.stack : String(error)}`)
  }
  uncaught = undefined
  const last: World | undefined = world
  if (last === undefined) throw new Error(`seed ${plan.seed} did not begin: ${stray.join("; ")}`)
  for (const what of stray) last.holds("errors", false, () => what)
  const ended: Exit.Exit<void> | undefined = exit
  if (last.holds("progress", stopped === "ended", () => stopped === "idle" ? "it hangs" : "it goes round for ever")) {
    if (ended !== undefined && Exit.isFailure(ended)) last.outcome(ended, "the history")
    const left = [...living.fibers].filter((fiber) => !last.dead.some(({ fibers }) => fibers.has(fiber)))
    last.holds("fibres", left.length === 0, () => `${left.length} fibres are left`)
    last.holds("registrations", last.registered === 0, () => `${last.registered} registrations are left`)
    last.holds("listeners", listeners() === before, () => `${listeners() - before} exit listeners are left`)
    last.checkMemory()
    leaks(last)
    told(last, releaseFailures)
  }
  descriptors(last)
  const all = written(last)
  const { journal } = last
  return {
    violations: last.violations,
    met: journal.flatMap(({ result, syscall }) => typeof result === "string" ? [{ syscall, code: result }] : []),
    calls: journal.length,
    digest: createHash("sha256").update(all.join("\n")).digest("hex"),
    history: all.slice(-lines)
  }
}
