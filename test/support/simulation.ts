/** One history of a storage on a simulated kernel: acquire, use, release, under a schedule of faults or an interruption. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { DiskStorageError } from "../../src/DiskStorageError.js"
import { ReleaseFailed } from "../../src/DiskStorageError.js"
import * as IoEngine from "../../src/IoEngine.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"

export const layer = (options?: SimulatedSyscalls.SimulatedOptions) =>
  Layer.provideMerge(IoEngine.layerSyscalls, SimulatedSyscalls.layer(options))

export const profiles: ReadonlyArray<SimulatedSyscalls.Profile> = [
  "ext4",
  "ext2",
  "lustre",
  "btrfs",
  "tmpfs",
  "ramfs",
  "storageScale",
  "dataJournal"
]

export type Policy = Omit<DiskStorage.DiskStorageOptions, "size" | "directory">

/** Every combination; how the file is opened matters only where it is opened for direct I/O. */
export const policies = (["required", "preferred", "disabled"] as const).flatMap((directIo) =>
  (directIo === "disabled" ? ["default"] as const : ["default", "open-direct"] as const).flatMap((openStrategy) =>
    (["truncate", "zero-fill"] as const).flatMap((fallback) =>
      [false, true].map((earlyUnlink) => ({ directIo, openStrategy, fallback, earlyUnlink } satisfies Policy))
    )
  )
)

export const policyName = (policy: Policy): string =>
  `${policy.directIo} ${policy.openStrategy} ${policy.fallback}${policy.earlyUnlink === true ? " early-unlink" : ""}`

class Registered extends Context.Tag("test/Registered")<Registered, string>() {}

export interface History {
  readonly exit: Exit.Exit<void, DiskStorageError>
  readonly journal: ReadonlyArray<SimulatedSyscalls.JournalEntry>
  readonly leaks: SimulatedSyscalls.Leaks
  /** What is registered and not released. */
  readonly registered: number
  /** The number of calls that had been made when the storage was acquired, and when its use ended; absent when it came not so far. */
  readonly acquired: number | undefined
  readonly used: number | undefined
  /** The failures of releases that were logged. */
  readonly releaseFailures: ReadonlyArray<ReleaseFailed>
}

export interface Schedule {
  readonly faults?: ReadonlyArray<SimulatedSyscalls.Fault>
  readonly interruption?: { readonly call: number; readonly when: "before" | "during" | "after" }
}

const use = (storage: DiskStorage.DiskStorage, onRegister: Effect.Effect<void>, onRelease: Effect.Effect<void>) =>
  Effect.gen(function*() {
    const block = yield* AlignedBuffer.make(4096)
    block.bytes.fill(1)
    yield* storage.write(0, block)
    yield* storage.writeBytes(4090, new Uint8Array(10).fill(2))
    yield* storage.sync
    yield* storage.read(0, block)
    const acquire = Effect.acquireRelease(Effect.as(onRegister, "handle"), () => onRelease)
    if (yield* storage.unlinked) yield* storage.register(Registered, acquire)
    else {
      const { unlink } = yield* storage.registerThenUnlink(Registered, acquire)
      yield* unlink
    }
  })

export const history = (
  options: SimulatedSyscalls.SimulatedOptions,
  storageOptions: DiskStorage.DiskStorageOptions,
  schedule: Schedule = {}
): Effect.Effect<History> =>
  Effect.gen(function*() {
    const kernel = yield* SimulatedSyscalls.SimulatedKernel
    yield* Effect.forEach(schedule.faults ?? [], kernel.inject)
    let registered = 0
    let acquired: number | undefined
    let used: number | undefined
    const releaseFailures: Array<ReleaseFailed> = []
    const logger = Logger.make(({ message }) => {
      for (const part of Array.isArray(message) ? message : [message]) {
        if (part instanceof ReleaseFailed) releaseFailures.push(part)
      }
    })
    const calls = Effect.map(kernel.journal, (journal) => journal.length)
    const program = Effect.scoped(Effect.gen(function*() {
      const storage = yield* DiskStorage.make(storageOptions)
      acquired = yield* calls
      yield* use(storage, Effect.sync(() => void registered++), Effect.sync(() => void registered--))
      used = yield* calls
    }))
    const fiber = yield* Effect.fork(Effect.provide(program, Logger.replace(Logger.defaultLogger, logger)))
    if (schedule.interruption !== undefined) yield* kernel.interrupt(fiber, schedule.interruption)
    const exit = yield* Fiber.await(fiber)
    return {
      exit,
      journal: yield* kernel.journal,
      leaks: yield* kernel.leaks,
      registered,
      acquired,
      used,
      releaseFailures
    }
  }).pipe(Effect.provide(layer(options)))
