/** Histories of block stores: over several storages that fail or are closed under them, and over several lives of kept ones. */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as BlockStore from "../../src/BlockStore.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import { areaBytes } from "../../src/internal/blockRestart.js"
import type { IoEngine } from "../../src/IoEngine.js"
import { Syscalls } from "../../src/Syscalls.js"
import { disturbed } from "./disturb.js"
import type { BlockStep, StoreLife, Workload } from "./plan.js"
import { mayFail, pageBytes } from "./plan.js"
import type { World } from "./world.js"

const allHashes = Array.from({ length: 9 }, (_, hash) => hash)

interface Offloaded {
  readonly version: number
  readonly began: number
  /** Infinity while it is not known to have ended. */
  ended: number
  outcome: "open" | "stored" | "unknown" | "refused"
}

/** Which versions of a block may be found, given what was offloaded and removed, and when. */
class Versions {
  private readonly offloaded = allHashes.map((): Array<Offloaded> => [])
  private readonly removed = allHashes.map((): Array<{ readonly began: number; readonly ended: number }> => [])
  /** What was kept could not be taken up, and stays for a later life, whatever comes between. */
  comeBack = false

  begin(hash: number, version: number, now: number): Offloaded {
    const entry: Offloaded = { version, began: now, ended: Infinity, outcome: "open" }
    this.offloaded[hash]?.push(entry)
    return entry
  }

  remove(hashes: ReadonlyArray<number>, began: number, ended: number): void {
    for (const hash of hashes) this.removed[hash]?.push({ began, ended })
  }

  mayBeFound(hash: number, version: number, began: number, ended: number): boolean {
    const all = this.offloaded[hash] ?? []
    const entry = all.find((one) => one.version === version)
    if (entry === undefined || entry.outcome === "refused" || entry.began > ended) return false
    if (this.comeBack) return true
    const over = (later: { readonly began: number; readonly ended: number }) =>
      later.began > entry.ended && later.ended < began
    return !(this.removed[hash] ?? []).some(over) && !all.some((one) => one.outcome === "stored" && over(one))
  }
}

const words = (bytes: Uint8Array): Int32Array => new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 2)
const word = (hash: number, version: number, index: number): number =>
  Math.imul(Math.imul(hash + 1, 0x9e37_79b1) ^ Math.imul(version + 1, 0x85eb_ca6b) ^ index, 0xc2b2_ae35)

const fill = (bytes: Uint8Array, hash: number, version: number): void => {
  const block = words(bytes)
  for (let index = 0; index < block.length; index++) block[index] = word(hash, version, index)
  block[0] = version
}

/** The version that all of the bytes are of; −1 where they are of none of that hash. */
const versionOf = (bytes: Uint8Array, hash: number): number => {
  const block = words(bytes)
  const version = block[0] ?? -1
  for (let index = 1; index < block.length; index++) if (block[index] !== word(hash, version, index)) return -1
  return version
}

interface Lives {
  readonly world: World
  readonly versions: Versions
  version: number
  /** Some bytes were changed in this life or an earlier one. */
  rotten: boolean
}

interface Leased {
  readonly lease: BlockStore.Lease
  readonly scope: Scope.CloseableScope
  /** Before it was leased. */
  readonly since: number
  /** That it was read as; −1 before that. */
  version: number
}

class Used {
  readonly world: World
  readonly versions: Versions
  readonly lives: Lives
  readonly life: StoreLife
  readonly store: BlockStore.BlockStore
  readonly storages: ReadonlyArray<DiskStorage.DiskStorage>
  closing = false
  /** A storage was closed under it. */
  died = false
  /** The bytes of a block were changed. */
  get rotten(): boolean {
    return this.lives.rotten
  }
  readonly leases: Array<Leased> = []

  constructor(
    lives: Lives,
    life: StoreLife,
    store: BlockStore.BlockStore,
    storages: ReadonlyArray<DiskStorage.DiskStorage>
  ) {
    this.lives = lives
    this.world = lives.world
    this.versions = lives.versions
    this.life = life
    this.store = store
    this.storages = storages
  }

  /** Why a block was not moved: a violation where nothing explains it. */
  judge(error: { readonly _tag: string }, what: string, explained: ReadonlyArray<string>): void {
    const { _tag } = error
    const { world } = this
    const sound = _tag !== "BlockCorrupted" || this.rotten
    if (!world.holds("blocks", sound, () => `${what}: the bytes of a block are not what was written`)) return
    const known = explained.includes(_tag) || _tag === "BlockCorrupted" ||
      (_tag === "StoreClosed" && this.closing) ||
      (["StorageClosed", "NoStorageLeft"].includes(_tag) && (this.died || this.closing)) ||
      // A corrupted block counts as a failure of its storage, which is taken out after so many, or with its last slot.
      (_tag === "NoStorageLeft" && this.rotten) ||
      mayFail(world.plan)
    world.holds("causes", known, () => `${what}: ${_tag}`)
  }
}

const memory = (byteLength: number) => Effect.orDie(AlignedBuffer.make(byteLength))

const offload = (used: Used, { hashes, priority }: BlockStep, replace: boolean) =>
  Effect.gen(function*() {
    const { lives, store, versions, world } = used
    const began = world.tick()
    const blocks: Array<BlockStore.Block> = []
    const entries: Array<Offloaded> = []
    for (const hash of hashes) {
      const data = yield* memory(store.blockBytes)
      const version = lives.version += 1
      fill(data.bytes, hash, version)
      blocks.push({ hash: BigInt(hash), data, priority })
      entries.push(versions.begin(hash, version, began))
    }
    yield* Effect.onExit(store.offload(blocks, { replace }), (exit) =>
      Effect.sync(() => {
        world.outcome(exit, "offload")
        const ended = world.tick()
        for (const [place, { data, hash }] of blocks.entries()) {
          const entry = entries[place]
          if (entry === undefined) continue
          entry.ended = ended
          const what = `offload of ${hash}, version ${entry.version}`
          if (Exit.isFailure(exit)) {
            entry.outcome = "unknown"
            if (used.world.plan.device?.never === 0) world.leave(data.bytes, what)
            continue
          }
          const result = exit.value.get(place)
          if (Either.isRight(result)) entry.outcome = result.right === "stored" ? "stored" : "refused"
          else {
            entry.outcome = "refused"
            used.judge(result.left, what, ["StoreFull"])
          }
          if (Either.isRight(result) || result.left._tag !== "IoStalled") world.leave(data.bytes, what)
        }
        if (Exit.isSuccess(exit)) {
          world.holds(
            "batches",
            exit.value.length === blocks.length,
            () => `${exit.value.length} results of ${blocks.length}`
          )
        }
      }))
  })

const found = (used: Used, hash: number, bytes: Uint8Array, began: number, what: string): number => {
  const { versions, world } = used
  const version = versionOf(bytes, hash)
  world.holds(
    "blocks",
    version >= 0 && versions.mayBeFound(hash, version, began, world.tick()),
    () =>
      `${what} of hash ${hash} gave ${version < 0 ? "bytes of no version" : `version ${version}, which is not there`}`
  )
  return version
}

const onboard = (used: Used, hashes: ReadonlyArray<number>) =>
  Effect.gen(function*() {
    const { store, world } = used
    const began = world.tick()
    const destinations: Array<BlockStore.Destination> = []
    for (const hash of hashes) destinations.push({ hash: BigInt(hash), into: yield* memory(store.blockBytes) })
    yield* Effect.onExit(store.onboard(destinations), (exit) =>
      Effect.sync(() => {
        world.outcome(exit, "onboard")
        for (const [place, { hash, into }] of destinations.entries()) {
          if (Exit.isFailure(exit)) {
            if (used.world.plan.device?.never === 0) world.leave(into.bytes, `onboard of ${hash}`)
            continue
          }
          const result = exit.value.get(place)
          if (Either.isRight(result)) found(used, Number(hash), into.bytes, began, "onboard")
          else used.judge(result.left, `onboard of ${hash}`, ["BlockNotFound"])
          if (Either.isRight(result) || result.left._tag !== "IoStalled") world.leave(into.bytes, `onboard of ${hash}`)
        }
      }))
  })

/** What is read through a lease is what was there when it began. */
const readLeased = (used: Used, leased: Leased) =>
  Effect.gen(function*() {
    const { store, world } = used
    const into = yield* memory(store.blockBytes)
    const hash = Number(leased.lease.hash)
    const exit = yield* Effect.exit(leased.lease.onboard(into))
    if (Exit.isFailure(exit)) {
      const tag = world.outcome(exit, "onboard of a lease")
      // One whose bytes have changed, or whose storage is gone, is given up when that is seen.
      if (tag !== "interrupted") {
        used.judge({ _tag: tag }, `onboard of leased ${hash}`, used.rotten || used.died ? ["BlockNotFound"] : [])
      }
      return
    }
    const version = leased.version >= 0
      ? versionOf(into.bytes, hash)
      : found(used, hash, into.bytes, leased.since, "lease")
    world.holds(
      "leases",
      leased.version < 0 || leased.version === version,
      () => `hash ${hash} was leased as version ${leased.version}, and is ${version} now`
    )
    leased.version = version
    world.leave(into.bytes, `onboard of leased ${hash}`)
  })

const perform = (used: Used, step: BlockStep): Effect.Effect<void, unknown> =>
  Effect.gen(function*() {
    const { store, versions, world } = used
    const hashes = step.hashes.map(BigInt)
    switch (step.kind) {
      case "offload":
        return yield* offload(used, step, false)
      case "replace":
        return yield* offload(used, step, true)
      case "onboard":
        return yield* onboard(used, step.hashes)
      case "match": {
        const length = yield* store.match(hashes)
        world.holds("blocks", length <= hashes.length, () => `${length} of ${hashes.length} hashes match`)
        return
      }
      case "lease": {
        const began = world.tick()
        yield* Effect.uninterruptibleMask((restore) =>
          Effect.gen(function*() {
            const scope = yield* Scope.make()
            const leases = [
              ...yield* Scope.extend(store.leasePrefix(hashes), scope),
              // What is behind the first that is missing.
              ...(yield* Effect.forEach(hashes, (hash) => Scope.extend(store.leasePrefix([hash]), scope))).flat()
            ]
            for (const lease of leases) {
              const leased = { lease, scope, since: began, version: -1 }
              used.leases.push(leased)
              yield* Effect.ignore(restore(readLeased(used, leased)))
            }
          })
        )
        return
      }
      case "touch":
        yield* store.touch(hashes)
        return
      case "remove": {
        const began = world.tick()
        // None where the store has ended: what it has kept by then stays.
        if ((yield* store.remove(hashes)) > 0) versions.remove(step.hashes, began, world.tick())
        return
      }
      case "reset": {
        const began = world.tick()
        const exit = yield* Effect.exit(store.reset)
        if (world.outcome(exit, "reset") === "success") versions.remove(allHashes, began, world.tick())
        return
      }
      case "pause":
        return yield* Effect.sleep(step.millis)
      case "hashes": {
        const there = yield* store.hashes
        world.holds("slots", new Set(there).size === there.length, () => "a hash was listed twice")
      }
    }
  })

const turn = Effect.async<void>((resume) => void setImmediate(() => resume(Effect.void)))

/** What must hold when nothing is under way. */
const settled = (used: Used) =>
  Effect.gen(function*() {
    const { store, storages, world } = used
    for (const leased of used.leases) yield* readLeased(used, leased)
    for (const { scope } of used.leases) yield* Scope.close(scope, Exit.void)
    const account = Effect.gen(function*() {
      // The blocks of storages that were taken out leave bit by bit.
      for (let turns = 0; turns < 50; turns++) yield* turn
      const stats = yield* store.stats
      const there = yield* store.hashes
      if (used.closing) return stats
      world.holds("slots", stats.pinned === 0 && stats.inFlight === 0, () => JSON.stringify(stats))
      for (const { blocks, capacity, failed, free, retired } of stats.storages) {
        const whole = blocks + free + retired === capacity && (!failed || blocks === 0)
        world.holds("slots", whole, () => JSON.stringify(stats))
      }
      world.holds("slots", there.length === stats.blocks, () => `${there.length} hashes of ${stats.blocks} blocks`)
      return stats
    })
    const stats = yield* account
    const out: Array<number> = []
    for (const [number, { failed }] of stats.storages.entries()) {
      const storage = storages[number]
      if (!failed || storage === undefined) continue
      const fd = yield* Effect.option(storage.withFd(Effect.succeed))
      if (fd._tag === "Some") out.push(fd.value)
    }
    const calls = world.journal.length
    yield* onboard(used, allHashes)
    yield* offload(used, { kind: "offload", hashes: [0, 1, 2], priority: 15, millis: 0 }, true)
    const met = world.journal.slice(calls).filter(({ fd, syscall }) =>
      fd !== undefined && out.includes(fd) && (syscall === "pread" || syscall === "pwrite")
    )
    world.holds("taken out", met.length === 0, () => `${met.length} transfers of a storage that was taken out`)
    yield* account
  })

const life = (lives: Lives, options: StoreLife, kept: boolean): Effect.Effect<void, never, Syscalls | IoEngine> =>
  Effect.gen(function*() {
    const { versions, world } = lives
    const scope = yield* Scope.make()
    let used: Used | undefined
    let releasing = false
    const make = Effect.gen(function*() {
      const storages: Array<DiskStorage.DiskStorage> = []
      for (const [number, capacity] of options.capacities.entries()) {
        const keepAt = `/tmp/blocks/kept-${number}`
        if (kept) world.keptAt.add(keepAt)
        storages.push(
          yield* DiskStorage.make({
            size: capacity * pageBytes + (kept ? areaBytes(capacity) : 0),
            directIo: "preferred",
            ...(kept ? { keepAt } : { directory: "/tmp" })
          })
        )
      }
      const [first, ...others] = storages
      if (first === undefined) return yield* Effect.dieMessage("a store has a storage")
      if (!storages.some(({ keptAt }) => keptAt?.takenUp === true)) {
        versions.remove(allHashes, world.tick(), world.tick())
        versions.comeBack ||= world.leaks.files.some((path) => world.keptAt.has(path))
      }
      const store = yield* BlockStore.make([first, ...others], {
        blockBytes: pageBytes,
        checksum: options.checksum,
        maxBlocksInFlight: options.maxBlocksInFlight,
        failureLimit: options.failureLimit
      })
      return new Used(lives, options, store, storages)
    })
    const body = Effect.gen(function*() {
      const using = used = yield* Effect.onExit(Scope.extend(make, scope), (exit) =>
        Effect.sync(() => {
          const tag = world.outcome(exit, "make")
          world.note(`make: ${tag}`)
          if (tag !== "success" && tag !== "interrupted") {
            world.holds("causes", mayFail(world.plan), () => `make: ${tag}`)
          }
        }))
      if (releasing) using.closing = true
      const { dies } = options
      if (dies !== undefined) {
        const storage = using.storages[dies.storage]
        yield* Effect.fork(
          Effect.sleep(dies.millis).pipe(
            Effect.zipRight(Effect.sync(() => {
              using.died = true
              world.note(`storage ${dies.storage} is closed`)
            })),
            Effect.zipRight(storage === undefined ? Effect.void : Effect.ignore(storage.close))
          )
        )
      }
      const { rots } = options
      if (rots !== undefined) {
        const storage = using.storages[rots.storage]
        const syscalls = yield* Syscalls
        const bytes = (yield* memory(pageBytes)).bytes.fill(0x77)
        const change = (fd: number) =>
          Effect.suspend(() => {
            lives.rotten = true
            return syscalls.pwrite(fd, bytes, rots.place % (options.capacities[rots.storage] ?? 1) * pageBytes)
          })
        yield* Effect.fork(
          Effect.zipRight(
            Effect.sleep(rots.millis),
            storage === undefined ? Effect.void : Effect.ignore(storage.withFd(change))
          )
        )
      }
      yield* Effect.forEach(options.steps, (step) => disturbed(world, perform(using, step), step.interruption), {
        concurrency: options.together,
        discard: true
      })
      if (!using.closing) yield* settled(using)
    })
    const release = Effect.gen(function*() {
      releasing = true
      if (used !== undefined) used.closing = true
      yield* Scope.close(scope, Exit.void)
      world.note("released")
    })
    const running = yield* Effect.fork(disturbed(world, body, options.interruption))
    if (options.releaseAfter !== undefined) {
      yield* Effect.sleep(options.releaseAfter)
      yield* release
      yield* Fiber.join(running)
    } else {
      yield* Fiber.join(running)
      yield* release
    }
    const last: Used | undefined = used
    if (last === undefined) return
    for (const { scope } of last.leases) yield* Scope.close(scope, Exit.void)
    const into = yield* memory(last.store.blockBytes)
    const calls = world.journal.length
    const results = yield* Effect.orDie(last.store.onboard([{ hash: 0n, into }]))
    const result = results.get(0)
    const tag = Either.isLeft(result) ? result.left._tag : "success"
    world.holds(
      "after release",
      tag === "StoreClosed" && world.journal.length === calls,
      () => `a released store: ${tag}`
    )
  })

export const run = (
  world: World,
  { kept, lives }: Extract<Workload, { readonly _tag: "Blocks" }>
): Effect.Effect<void, never, Syscalls | IoEngine> => {
  const shared: Lives = { world, versions: new Versions(), version: 0, rotten: false }
  return Effect.forEach(lives, (options) => life(shared, options, kept), { discard: true })
}
