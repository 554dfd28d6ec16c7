/** Histories of processes that share a directory: they sweep it, keep a file and take it up, and are killed at any moment. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as IoEngine from "../../src/IoEngine.js"
import { Syscalls } from "../../src/Syscalls.js"
import { Living } from "./living.js"
import type { Interruption, Neighbour, Tenancy, Workload } from "./plan.js"
import { mayFail, pageBytes } from "./plan.js"
import type { World } from "./world.js"
import { canonical, directoryOf, keptPathOf } from "./world.js"

/** What every page of a storage that was kept holds, by the number in its mark. */
interface Keep {
  readonly value: number
  taken: boolean
}

interface Shared {
  readonly world: World
  readonly keeps: Array<Keep>
  /** Paths of files whose owner lives, and who that is. */
  readonly owners: Map<string, Process>
  /** Somebody has kept a storage, and nobody has been about to take it up or to replace it since. */
  settled: boolean
  /** How many are about to take one up; who was killed over that counts on. */
  taking: number
}

interface Process {
  readonly number: number
  /** Nothing that it says counts any more. */
  killed: boolean
}

/** The filesystems on which a free lock says that a file has no owner. */
const trusted = (world: World) => !["lustre", "ramfs", "storageScale"].includes(world.plan.profile)

/** A kernel that refuses such locks: a sweep takes names away then, which is logged. */
const unlocked = ({ plan }: World) =>
  plan.faults.some(({ outcome, syscall }) => syscall === "fcntlSetLock" && outcome._tag === "Fail")

/** With fewer descriptors than these a sweep cannot look at a file. */
const sweepFds = 3

const markOf = (number: number): Uint8Array => Uint8Array.of(number + 1)

/** One storage of a process, from its beginning to its end. */
const tenancy = (shared: Shared, process: Process, options: Tenancy) =>
  Effect.gen(function*() {
    const { keeps, owners, world } = shared
    const holds: World["holds"] = (invariant, condition, what) =>
      process.killed || world.holds(invariant, condition, () => `process ${process.number}: ${what()}`)
    const { place } = options
    if (place === "kept") {
      shared.settled = false
      shared.taking += 1
    }
    const made = yield* Effect.exit(DiskStorage.make({
      size: options.pages * pageBytes,
      directIo: "preferred",
      openStrategy: options.openStrategy,
      earlyUnlink: place === "nameless",
      sweep: options.sweep,
      ...(place === "kept" ? { keepAt: keptPathOf(world) } : { directory: directoryOf(world) })
    }))
    if (process.killed) return
    if (place === "kept") shared.taking -= 1
    const tag = world.outcome(made, "make")
    if (Exit.isFailure(made)) {
      world.note(`process ${process.number}: make: ${tag}`)
      holds("causes", mayFail(world.plan) || (tag === "FileReplaced" && place === "kept"), () => `make: ${tag}`)
      return
    }
    const storage = made.value
    const path = canonical(storage.path)
    world.note(`process ${process.number}: has ${path}`)
    holds("live files", !owners.has(path), () => `${path} is that of process ${owners.get(path)?.number}, too`)
    owners.set(path, process)
    yield* Effect.addFinalizer(() => Effect.sync(() => owners.delete(path)))
    const isThere = () => {
      const there = place === "nameless" || unlocked(world) || world.leaks.files.includes(path)
      holds("live files", there, () => `${path} is gone`)
    }
    isThere()

    let value = world.nextValue()
    const taken = storage.keptAt?.takenUp === true ? (storage.keptAt.mark?.[0] ?? 0) - 1 : undefined
    if (taken !== undefined) {
      const kept = keeps[taken]
      world.note(`process ${process.number}: took up ${taken}`)
      const toBeHad = kept !== undefined && !kept.taken
      holds("kept", toBeHad, () => `took up ${taken}, which is not to be had`)
      if (!toBeHad) return
      kept.taken = true
      value = kept.value
    } else {
      for (let page = 0; page < options.pages; page++) {
        const buffer = yield* Effect.orDie(AlignedBuffer.make(pageBytes))
        buffer.bytes.fill(value)
        const written = yield* Effect.exit(storage.write(page * pageBytes, buffer))
        if (process.killed) return
        const tag = world.outcome(written, "write")
        if (tag === "success") continue
        holds("causes", mayFail(world.plan), () => `write: ${tag}`)
        return
      }
    }
    yield* Effect.sleep(options.millis)
    if (options.sweeps) {
      const exit = yield* Effect.exit(DiskStorage.sweep(directoryOf(world)))
      if (process.killed) return
      const tag = world.outcome(exit, "sweep")
      holds("causes", tag === "success" || mayFail(world.plan), () => `sweep: ${tag}`)
    }
    for (let page = 0; page < options.pages; page++) {
      const buffer = yield* Effect.orDie(AlignedBuffer.make(pageBytes))
      if (Exit.isFailure(yield* Effect.exit(storage.read(page * pageBytes, buffer)))) continue
      holds("contents", buffer.bytes.every((byte) => byte === value), () => `page ${page} of ${path} is not ${value}`)
    }
    isThere()
    if (place !== "kept" || !options.keepAtEnd) return
    const number = keeps.push({ value, taken: false }) - 1
    shared.settled = false
    const kept = yield* Effect.exit(storage.keepAs(markOf(number)))
    if (process.killed) return
    const keepTag = world.outcome(kept, "keep")
    world.note(`process ${process.number}: keep ${number}: ${keepTag}`)
    // Refused where another one is taking up or keeping just now.
    holds("causes", keepTag === "success" || keepTag === "KeepFailed", () => `keep: ${keepTag}`)
    shared.settled = keepTag === "success" && shared.taking === 0
  }).pipe(Effect.scoped)

/** What a process may do of itself: it has a kernel's view, an engine and a memory of directories of its own. */
const isolated = (syscalls: Syscalls) =>
  Effect.provide(Layer.provideMerge(IoEngine.layerSyscalls, Layer.succeed(Syscalls, syscalls)))

const killedAt = (world: World, at: Interruption, kill: Effect.Effect<void>) =>
  Effect.gen(function*() {
    if (at._tag === "Time") return yield* Effect.delay(kill, at.millis)
    // Not `never`, which takes a timer.
    const waiting = yield* Effect.fork(Effect.async<never>(() => {}))
    yield* world.kernel.interrupt(waiting, at)
    yield* Effect.ensuring(Effect.exit(Fiber.join(waiting)), kill)
  })

const neighbour = (shared: Shared, number: number, plan: Neighbour) =>
  Effect.gen(function*() {
    const { owners, world } = shared
    yield* Effect.sleep(plan.startAfter)
    const { kill, syscalls } = yield* world.kernel.process()
    const process: Process = { number, killed: false }
    const own = new Living()
    const lives = Effect.forEach(plan.storages, (options) => tenancy(shared, process, options), {
      concurrency: plan.together,
      discard: true
    })
    // Of nobody: once it is killed there is nothing to wait for.
    const running = yield* Effect.supervised(Effect.forkDaemon(isolated(syscalls)(lives)), own)
    const killed = yield* Deferred.make<void>()
    const end = Effect.gen(function*() {
      process.killed = true
      world.dead.push(own)
      for (const [path, owner] of owners) if (owner === process) owners.delete(path)
      world.note(`process ${number} is killed`)
      yield* kill
      yield* Deferred.succeed(killed, undefined)
    })
    const endUnlessOver = Effect.suspend(() => running.unsafePoll() === null ? end : Effect.void)
    const { killed: at } = plan
    const killer = at === undefined ? undefined : yield* Effect.fork(killedAt(world, at, endUnlessOver))
    const exit = yield* Effect.raceFirst(Fiber.await(running), Effect.as(Deferred.await(killed), Exit.void))
    world.outcome(exit, `process ${number}`)
    if (killer !== undefined) yield* Fiber.interrupt(killer)
  })

/** The next start in the directory, after all of them are gone; whether it has left nothing but what was kept. */
const successor = (shared: Shared) =>
  Effect.gen(function*() {
    const { world } = shared
    const { syscalls } = yield* world.kernel.process()
    const kept = canonical(keptPathOf(world))
    return yield* Effect.gen(function*() {
      const storage = yield* Effect.option(DiskStorage.make({ size: pageBytes, directory: directoryOf(world) }))
      const own = storage._tag === "Some" ? canonical(storage.value.path) : undefined
      return world.leaks.files.filter((path) => path !== own && path !== kept)
    }).pipe(Effect.scoped, isolated(syscalls))
  })

export const run = (world: World, { processes }: Extract<Workload, { readonly _tag: "Neighbours" }>) =>
  Effect.gen(function*() {
    const shared: Shared = { world, keeps: [], owners: new Map(), settled: false, taking: 0 }
    const kept = canonical(keptPathOf(world))
    world.keptAt.add(kept)
    yield* Effect.forEach(processes, (plan, number) => neighbour(shared, number, plan), {
      concurrency: "unbounded",
      discard: true
    })
    let left: ReadonlyArray<string> = []
    // Each fault happens once, and may have been waiting for this.
    for (let start = 0; start <= world.plan.faults.length; start++) {
      left = yield* successor(shared)
      if (left.length === 0) break
    }
    world.holds("kept", !shared.settled || world.leaks.files.includes(kept), () => "what was kept is gone")
    if (trusted(world) && world.plan.maxFds >= sweepFds) {
      world.holds("abandoned", left.length === 0, () => `left after the next start: ${left}`)
    } else for (const path of left) world.keptAt.add(path)
  })
