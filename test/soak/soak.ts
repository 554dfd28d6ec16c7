/** Rounds of lives, side by side on real and simulated kernels, and what the process holds between them. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import { mkdirSync, readdirSync, rmSync } from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as BlockStore from "../../src/BlockStore.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as IoEngine from "../../src/IoEngine.js"
import * as Linux from "../../src/Linux.js"
import * as LinuxSyscalls from "../../src/LinuxSyscalls.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"
import type { Syscalls } from "../../src/Syscalls.js"
import * as blocks from "./blocks.js"
import * as faulty from "./faults.js"
import type { Sample } from "./measure.js"
import { sample } from "./measure.js"
import * as storages from "./storages.js"
import { Versions } from "./versions.js"
import type { Broken, Life, Lost } from "./world.js"
import { broken, Decisions, Tally } from "./world.js"

export interface Options {
  readonly seed: number
  /** The number of the first round; rounds do not depend on those before them, but for the store that lives as long as all of them. */
  readonly from: number
  /** How many rounds, and for how long new ones are begun. */
  readonly rounds: number
  readonly millis: number
  /** The share of calls and operations that meet a fault. */
  readonly rate: number
  /** Of the soak alone; empty. */
  readonly directory: string
  /** For tests of the soak: a fault that it must find. */
  readonly planted?: ((engine: IoEngine.IoEngine) => IoEngine.IoEngine) | undefined
  /** After each round. */
  readonly onRound?: ((soak: Soak) => Effect.Effect<void>) | undefined
}

/** What happened so far. */
export interface Soak {
  readonly began: number
  rounds: number
  readonly real: Tally
  readonly simulated: Tally
  readonly lost: Lost
  readonly samples: Array<Sample>
  readonly engines: ReadonlyArray<string>
  /** Engines that this machine refuses, and why. */
  readonly refused: ReadonlyArray<string>
  /** Warnings and errors that were logged, by their words. */
  readonly logged: Map<string, number>
  /** What each lane is at, by its name. */
  readonly at: Map<string, string>
  failure: { readonly lane: string; readonly round: number; readonly message: string } | undefined
}

type Kernel<E> = Layer.Layer<Syscalls | IoEngine.IoEngine, E>

const profiles = ["ext4", "ext2", "lustre", "btrfs", "tmpfs", "ramfs", "storageScale", "dataJournal"] as const

const mebibyte = 1024 * 1024

/** Of each of the two storages of the store that lives long. */
const longSlots = 256
const longBlockBytes = 16 * 1024

/** No operation ends for so long while one is under way: it never will. */
const hungMillis = 2 * 60_000
const looksMillis = 10_000

/** Which engines work here. */
const whichEngines = Effect.gen(function*() {
  const engines: Array<string> = []
  const refused: Array<string> = []
  for (const engine of ["io_uring", "aio", "node"] as const) {
    const built = yield* Effect.either(Effect.scoped(Layer.build(Linux.layerWith({ engine }))))
    if (Either.isRight(built)) engines.push(engine)
    else refused.push(built.left.message)
  }
  return { engines: [...engines, "pread/pwrite"], refused }
})

export const make = Effect.gen(function*() {
  const { engines, refused } = yield* whichEngines
  const soak: Soak = {
    began: performance.now(),
    rounds: 0,
    real: new Tally(),
    simulated: new Tally(),
    lost: { slots: 0, pins: 0, budget: 0, registrations: 0, files: 0, simulated: 0 },
    samples: [],
    engines,
    refused,
    logged: new Map(),
    at: new Map(),
    failure: undefined
  }
  return soak
})

/** Counts what is logged, in place of printing it. */
const logger = ({ logged }: Soak) =>
  Logger.make(({ logLevel, message }) => {
    if (logLevel.label !== "WARN" && logLevel.label !== "ERROR" && logLevel.label !== "FATAL") return
    const words = [message].flat().map((part) =>
      typeof part === "string" ? part : part instanceof Error ? part.name : ""
    )
    const text = `${logLevel.label} ${words.join(" ").replaceAll(/\/\S+|\d+/g, "…").split(/[.:;] /)[0]}`
    logged.set(text, (logged.get(text) ?? 0) + 1)
  })

/** Ends when `soak` has come to nothing more for too long. */
const watched = (soak: Soak): Effect.Effect<never, Broken> =>
  Effect.suspend(() => {
    const done = () => soak.real.operations + soak.simulated.operations
    let last = done()
    let since = performance.now()
    const look = Effect.suspend(() => {
      const now = performance.now()
      if (done() !== last) {
        last = done()
        since = now
      }
      return now - since < hungMillis
        ? Effect.void
        : broken(`nothing has ended for ${Math.round(hungMillis / 1000)} s: ${
          [...soak.at].map((one) => one.join(": ")).join("; ")
        }`)
    })
    return Effect.forever(Effect.delay(look, looksMillis))
  })

/** A life on a simulated kernel may keep memory for ever, where that never answers: it has the memory that it makes. */
const hangsProbability = 0.25

/** Runs all rounds. The first promise that was not kept ends it, and is `failure` then. */
export const run = (soak: Soak, options: Options): Effect.Effect<void> => {
  const { directory, planted, rate, seed } = options

  const plant = <E>(kernel: Kernel<E>): Kernel<E> =>
    planted === undefined
      ? kernel
      : Layer.provideMerge(Layer.effect(IoEngine.IoEngine, Effect.map(IoEngine.IoEngine, planted)), kernel)

  const realKernel = (engine: string | undefined, faults: faulty.Faults) => {
    const asked = engine === "io_uring" || engine === "aio" || engine === "node" ? engine : undefined
    return plant(
      asked === undefined
        ? Layer.provideMerge(
          IoEngine.layerSyscalls,
          Layer.provide(faulty.layerSyscalls(faults), LinuxSyscalls.layer)
        )
        : Layer.provideMerge(faulty.layer(faults), Linux.layerWith({ engine: asked }))
    )
  }

  /** A life of its own in each round. */
  const onReal = (lane: string, round: number, place: number, live: typeof storages.live) =>
    Effect.suspend(() => {
      const decisions = new Decisions(`${seed} ${lane} ${round}`)
      const engine = soak.engines[(round + place) % soak.engines.length]
      soak.at.set(lane, `round ${round}, ${engine}`)
      const own = join(directory, `${lane}-${round}`)
      const life: Life = { decisions, tally: soak.real, lost: soak.lost, directory: own, pooled: true }
      const faults = { rate, decisions: decisions.apart("faults"), tally: soak.real, fails: true }
      return Effect.acquireUseRelease(
        Effect.sync(() => mkdirSync(own)),
        () =>
          Effect.gen(function*() {
            yield* Effect.provide(live(life), Layer.orDie(realKernel(engine, faults)))
            // What was kept may be left: it has the name that it was given.
            const left = readdirSync(own).filter((name) => !name.endsWith(".kept"))
            soak.lost.files += left.length
            if (left.length > 0) return yield* broken(`files are left: ${left.join(", ")}`)
          }),
        () => Effect.sync(() => rmSync(own, { recursive: true, force: true }))
      )
    })

  const onSimulated = (lane: string, round: number, place: number, live: typeof storages.live) =>
    Effect.suspend(() => {
      const decisions = new Decisions(`${seed} ${lane} ${round}`)
      const profile = profiles[(round + place) % profiles.length]
      soak.at.set(lane, `round ${round}, ${profile}`)
      const hangs = decisions.chance(hangsProbability)
      const life: Life = { decisions, tally: soak.simulated, lost: soak.lost, directory: "/tmp", pooled: !hangs }
      const faults = { rate, decisions: decisions.apart("faults"), tally: soak.simulated, fails: true }
      const kernel = SimulatedSyscalls.layer({
        profile,
        // The first two are full now and then.
        capacity: decisions.of([1, 3, 64, 64]) * mebibyte
      })
      const engine = SimulatedSyscalls.layerEngine({
        seed: decisions.below(2 ** 31),
        short: rate,
        transient: rate,
        never: hangs ? rate / 10 : 0,
        depth: decisions.of([2, 32]),
        // On a busy machine what is only late is given up, too.
        ...(hangs ? { stallTimeout: "200 millis" } : {})
      })
      return Effect.gen(function*() {
        const control = yield* SimulatedSyscalls.SimulatedKernel
        yield* live(life)
        const { bytes, fds, files, mappings } = yield* control.leaks
        const left = files.filter((name) => !name.endsWith(".kept"))
        const lost = fds.length + left.length + mappings + (files.length === 0 ? bytes : 0)
        soak.lost.simulated += lost
        if (lost === 0) return
        return yield* broken(
          `a simulated kernel has left: descriptors ${fds.join(", ") || "none"}, files ${left.join(", ") || "none"}, ` +
            `${bytes} bytes, ${mappings} mappings`
        )
      }).pipe(
        Effect.provide(Layer.provideMerge(faulty.layer(faults), Layer.provideMerge(Layer.orDie(engine), kernel)))
      )
    })

  /** One store, one engine and one pool for all rounds. Its disks are late and never fail: a slot that a transfer failed on is used no more. */
  const long = Effect.gen(function*() {
    const decisions = new Decisions(`${seed} long`)
    const own = join(directory, "long")
    mkdirSync(own)
    const faults = { rate, decisions: decisions.apart("faults"), tally: soak.real, fails: false }
    const kernel = yield* Layer.build(realKernel(soak.engines[0], faults))
    const disk = Effect.provide(
      DiskStorage.make({ size: longSlots * longBlockBytes, directory: own, directIo: "preferred" }),
      kernel
    )
    const store = yield* BlockStore.make([yield* disk, yield* disk], { blockBytes: longBlockBytes })
    const pool = yield* AlignedBuffer.pool({ buffers: 24, byteLength: longBlockBytes })
    const usage = { store, versions: new Versions(), hashes: longSlots * 3, buffers: pool.leaseUninitialized }
    return (round: number) =>
      Effect.suspend(() => {
        soak.at.set("long", `round ${round}, ${soak.engines[0]}`)
        const apart = decisions.apart(String(round))
        return blocks.continued(
          { decisions: apart, tally: soak.real, lost: soak.lost, directory: own, pooled: true },
          usage
        )
      })
  })

  const rounds = Effect.scoped(Effect.gen(function*() {
    const continued = yield* Effect.orDie(long)
    for (let number = 0; number < options.rounds; number++) {
      if (number > 0 && performance.now() - soak.began >= options.millis) return
      const round = options.from + number
      const lanes: ReadonlyArray<readonly [string, Effect.Effect<void, Broken>]> = [
        ["storages", onReal("storages", round, 0, storages.live)],
        ["stores", onReal("stores", round, 1, blocks.live)],
        ["long", continued(round)],
        ["simulated storages", onSimulated("simulated storages", round, 0, storages.live)],
        ["simulated stores", onSimulated("simulated stores", round, 3, blocks.live)]
      ]
      yield* Effect.forEach(lanes, ([lane, live]) =>
        Effect.onExit(live, (exit) =>
          Effect.sync(() => {
            soak.at.set(lane, "at rest")
            if (Exit.isSuccess(exit) || Cause.isInterruptedOnly(exit.cause)) return
            const message = Option.match(Cause.failureOption(exit.cause), {
              onSome: ({ message }) => message,
              onNone: () => Cause.pretty(exit.cause)
            })
            soak.failure ??= { lane, round, message }
          })), { concurrency: lanes.length, discard: true })
      soak.rounds += 1
      soak.samples.push(yield* sample(soak.began))
      if (options.onRound !== undefined) yield* options.onRound(soak)
    }
  }))

  const failed = (cause: Cause.Cause<Broken>) =>
    Effect.sync(() => {
      const message = Option.match(Cause.failureOption(cause), {
        onSome: ({ message }) => message,
        onNone: () => Cause.pretty(cause)
      })
      soak.failure ??= { lane: "all", round: options.from + soak.rounds, message }
    })

  return Effect.gen(function*() {
    // Of its own, so that a lane that hangs does not keep the report back; what is interrupted is waited for.
    const working = yield* Effect.forkDaemon(rounds)
    const watching = yield* Effect.forkDaemon(watched(soak))
    yield* Effect.raceFirst(Fiber.join(working), Fiber.join(watching)).pipe(
      Effect.onInterrupt(() => Fiber.interrupt(working)),
      Effect.ensuring(Fiber.interruptFork(watching))
    )
  }).pipe(
    Effect.catchAllCause((cause) => Cause.isInterruptedOnly(cause) ? Effect.interrupt : failed(cause)),
    Effect.provide(Logger.replace(Logger.defaultLogger, logger(soak)))
  )
}
