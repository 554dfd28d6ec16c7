/** Block stores, used by several at once in every way, over storages that fail, fill up and are taken out, and started again. */
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as BlockStore from "../../src/BlockStore.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { BufferUnavailable, InvalidBlock, InvalidOption, StoreClosed } from "../../src/DiskStorageError.js"
import type { IoEngine } from "../../src/IoEngine.js"
import * as OffloadFilter from "../../src/OffloadFilter.js"
import type { Syscalls } from "../../src/Syscalls.js"
import { fill, identify } from "../blocks/content.js"
import { Versions } from "./versions.js"
import type { Broken, Decisions, Life } from "./world.js"
import { attempt, broken, numbers, perhapsInterrupted, seen, turn } from "./world.js"

const page = AlignedBuffer.pageSize
const users = 4
const mostOfBatch = 6
const actsOfUser = 24
const priorities = 4

type Buffers = Effect.Effect<AlignedBuffer.AlignedBuffer, BufferUnavailable, Scope.Scope>

/** What a store is used with. */
export interface Usage {
  readonly store: BlockStore.BlockStore
  readonly versions: Versions
  /** Hashes are below it. */
  readonly hashes: number
  readonly buffers: Buffers
}

/** A block that was read must be of its hash, and of a version that may be there. */
const compared = (
  { tally }: Life,
  what: string,
  hash: number,
  bytes: Uint8Array,
  allowed: ReadonlySet<number>
): Effect.Effect<void, Broken> =>
  Effect.suspend(() => {
    tally.blocksChecked += 1
    tally.bytesChecked += bytes.byteLength
    const { version, wrong } = identify(bytes, hash)
    if (wrong !== undefined) {
      return broken(`${what} gave a block of which word ${wrong} is not of hash ${hash}, version ${version}`)
    }
    return allowed.has(version)
      ? Effect.void
      : broken(`${what} gave version ${version} of hash ${hash}, which may be ${[...allowed].join(", ") || "none"}`)
  })

/** One who does some of what a store is for. */
const user = (life: Life, decisions: Decisions, usage: Usage, acts: number): Effect.Effect<void, Broken> =>
  Effect.scoped(Effect.gen(function*() {
    const { tally } = life
    const { buffers, hashes, store, versions } = usage
    const held: Array<{ readonly scope: Scope.CloseableScope; readonly leases: ReadonlyArray<Leased> }> = []
    interface Leased {
      readonly lease: BlockStore.Lease
      readonly allowed: ReadonlySet<number>
    }
    // A lease that is still held when this ends, however it ends.
    yield* Effect.addFinalizer(() => Effect.forEach(held, ({ scope }) => Scope.close(scope, Exit.void)))

    const did = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>) => attempt(tally, `${what} of a store`, effect)
    /** Of one act alone: how far an interruption let it come changes nothing about those after it. */
    let dice = decisions
    // Of a hash that is often asked for, or of any.
    const hash = () => dice.below(dice.chance(0.5) ? Math.ceil(hashes / 8) : hashes)
    const some = () => numbers(dice.between(1, mostOfBatch)).map(hash)
    const run = () => {
      const first = hash()
      return numbers(dice.between(1, mostOfBatch)).map((index) => first + index)
    }

    const offload = Effect.suspend(() => {
      const streams = dice.chance(0.2)
      const replace = dice.chance(0.3)
      const blocks = some().map((hash) => ({
        hash,
        change: versions.offloading(hash),
        priority: dice.below(priorities)
      }))
      const outcomes: Array<"stored" | "refused"> = []
      const told = (index: number, result: Either.Either<BlockStore.Offloaded, unknown>) =>
        Effect.suspend(() => {
          outcomes[index] = Either.isRight(result) && result.right === "stored" ? "stored" : "refused"
          return Either.isLeft(result) ? seen(tally, result.left, "a block that is offloaded") : Effect.void
        })
      return Effect.scoped(Effect.gen(function*() {
        const offered = yield* Effect.forEach(
          blocks,
          ({ change: { version }, hash, priority }) =>
            Effect.map(buffers, (data) => {
              fill(data.bytes, hash, version)
              return { hash: BigInt(hash), data, priority }
            })
        )
        if (streams) {
          const results = Stream.zipWithIndex(store.offloadStream(Stream.fromIterable(offered)))
          return yield* Stream.runForEach(results, ([{ result }, index]) => told(index, result))
        }
        const results = yield* store.offload(offered, { replace })
        for (const index of offered.keys()) yield* told(index, results.get(index))
      })).pipe(
        Effect.ensuring(
          Effect.sync(() => blocks.forEach(({ change }, index) => change.ended(outcomes[index] ?? "unknown")))
        )
      )
    })

    const onboard = Effect.suspend(() => {
      const streams = dice.chance(0.2)
      const wanted = some().map((hash) => ({ hash, reading: versions.reading(hash) }))
      const streamed = Effect.gen(function*() {
        const stream = store.onboardStream(Stream.fromIterable(wanted.map(({ hash }) => BigInt(hash))))
        const come = Chunk.toReadonlyArray(yield* Stream.runCollect(stream))
        for (const [index, { hash, reading }] of wanted.entries()) {
          const result = come[index]?.result
          if (result === undefined) return yield* broken(`a stream left out hash ${hash}`)
          if (Either.isLeft(result)) yield* seen(tally, result.left, "a block of a stream")
          else yield* compared(life, "onboardStream", hash, result.right.bytes, reading.allowed)
        }
      })
      const batched = Effect.scoped(Effect.gen(function*() {
        const destinations = yield* Effect.forEach(
          wanted,
          ({ hash }) => Effect.map(buffers, (into) => ({ hash: BigInt(hash), into }))
        )
        const results = yield* store.onboard(destinations)
        for (const [index, { hash, reading }] of wanted.entries()) {
          const result = results.get(index)
          if (Either.isLeft(result)) yield* seen(tally, result.left, "a block that is onboarded")
          else {yield* compared(
              life,
              "onboard",
              hash,
              destinations[index]?.into.bytes ?? new Uint8Array(0),
              reading.allowed
            )}
        }
      }))
      return Effect.ensuring(
        streams ? streamed : batched,
        Effect.sync(() => wanted.forEach(({ reading }) => reading.ended()))
      )
    })

    const lease = Effect.suspend(() => {
      const asked = dice.chance(0.5) ? [hash()] : run()
      const readings = new Map(asked.map((hash) => [BigInt(hash), versions.reading(hash)]))
      return Effect.uninterruptible(Effect.gen(function*() {
        const scope = yield* Scope.make()
        const leases = yield* Scope.extend(store.leasePrefix(asked.map(BigInt)), scope)
        held.push({
          scope,
          leases: leases.map((lease) => ({ lease, allowed: readings.get(lease.hash)?.allowed ?? new Set<number>() }))
        })
      })).pipe(Effect.ensuring(Effect.sync(() => readings.forEach(({ ended }) => ended()))))
    })
    const readLeased = Effect.suspend(() =>
      Effect.forEach(
        held[dice.below(Math.max(1, held.length))]?.leases ?? [],
        ({ allowed, lease }) =>
          Effect.scoped(Effect.gen(function*() {
            const into = yield* buffers
            yield* lease.onboard(into)
            yield* compared(life, "a lease", Number(lease.hash), into.bytes, allowed)
          })).pipe(
            Effect.catchAll((error) => error._tag === "Broken" ? Effect.fail(error) : seen(tally, error, "a lease"))
          ),
        {
          discard: true
        }
      )
    )
    const release = Effect.suspend(() => {
      const [one] = held.splice(dice.below(Math.max(1, held.length)), 1)
      return one === undefined ? Effect.void : Scope.close(one.scope, Exit.void)
    })
    const removing = <A, E, R>(hashes: ReadonlyArray<number>, remove: Effect.Effect<A, E, R>) =>
      Effect.suspend(() => {
        const ended = versions.removing(hashes)
        return Effect.onExit(remove, (exit) => Effect.sync(() => ended(Exit.isSuccess(exit))))
      })
    const remove = Effect.suspend(() => {
      const going = [...new Set(some())]
      return removing(going, store.remove(going.map(BigInt)))
    })
    const match = Effect.suspend(() => {
      const asked = run()
      return Effect.filterOrElse(
        store.match(asked.map(BigInt)),
        (length) => length <= asked.length,
        (length) => broken(`a prefix of ${asked.length} matched ${length}`)
      )
    })
    const touch = Effect.suspend(() => store.touch(some().map(BigInt)))
    const list = Effect.flatMap(
      store.hashes,
      (there) => new Set(there).size === there.length ? Effect.void : broken("a hash is listed twice")
    )

    type Act = readonly [
      string,
      Effect.Effect<unknown, Broken | BufferUnavailable | InvalidBlock | InvalidOption | StoreClosed>
    ]
    const often: readonly [Act, ...ReadonlyArray<Act>] = [
      ["offload", offload],
      ["offload", offload],
      ["offload", offload],
      ["onboard", onboard],
      ["onboard", onboard],
      ["onboard", onboard],
      ["lease", lease],
      ["a lease's onboard", readLeased],
      ["a lease's end", release]
    ]
    const rarely: readonly [Act, ...ReadonlyArray<Act>] = [
      ["remove", remove],
      ["match", match],
      ["touch", touch],
      ["hashes", list],
      ["reset", removing(numbers(hashes + mostOfBatch), store.reset)]
    ]
    for (let count = 0; count < acts; count++) {
      dice = decisions.apart(`act ${count}`)
      const [what, act] = decisions.of(decisions.chance(0.9) ? often : rarely)
      yield* perhapsInterrupted(decisions, tally, 0.06, Effect.asVoid(did(what, act)))
    }
  }))

/** What is found can be read; every slot is somewhere; nobody has any. */
const settled = (life: Life, { buffers, store, versions }: Usage): Effect.Effect<void, Broken> =>
  Effect.gen(function*() {
    const { tally } = life
    // Blocks of a storage that was taken out leave the index bit by bit.
    const leaving = Effect.map(
      store.stats,
      ({ storages }) => storages.some(({ blocks, failed }) => failed && blocks > 0)
    )
    yield* Effect.repeat(Effect.zipRight(turn, leaving), { while: (some) => some })
    for (const found of yield* store.hashes) {
      const hash = Number(found)
      const reading = versions.reading(hash)
      yield* attempt(
        tally,
        "onboard at the end",
        Effect.scoped(Effect.gen(function*() {
          const into = yield* buffers
          const result = (yield* store.onboard([{ hash: found, into }])).get(0)
          yield* Either.isLeft(result)
            ? seen(tally, result.left, "a block at the end")
            : compared(life, "onboard at the end", hash, into.bytes, reading.allowed)
        }))
      )
      reading.ended()
    }
    yield* Effect.repeat(Effect.zipRight(turn, leaving), { while: (some) => some })
    const stats = yield* store.stats
    const lost = stats.storages.reduce(
      (sum, { blocks, capacity, free, retired }) => sum + capacity - blocks - free - retired,
      0
    )
    life.lost.slots += lost
    life.lost.pins += stats.pinned + stats.inFlight
    if (lost !== 0 || stats.pinned + stats.inFlight !== 0) {
      return yield* broken(`a store that nobody uses: ${JSON.stringify(stats)}`)
    }
  })

/** Counts blocks by what is told of them. */
const followed = (store: BlockStore.BlockStore) =>
  Effect.gen(function*() {
    const count = { blocks: (yield* store.stats).blocks, missed: 0 }
    yield* Effect.forkScoped(Stream.runForEach(store.events, (event) =>
      Effect.sync(() => {
        if (event._tag === "Stored") count.blocks += 1
        else if (event._tag === "Missed") count.missed += event.events
        else count.blocks -= 1
      })))
    for (let turns = 0; turns < 5; turns++) yield* turn
    return count
  })

/** Turns of the event loop until an event has come to who follows. */
const mostTurns = 1000

const useOnce = (
  life: Life,
  usage: Usage,
  decisions: Decisions,
  acts: number
): Effect.Effect<void, Broken, Scope.Scope> =>
  Effect.gen(function*() {
    const count = yield* followed(usage.store)
    yield* Effect.forEach(
      numbers(users),
      (number) => user(life, decisions.apart(`user ${number}`), usage, acts),
      { concurrency: users, discard: true }
    )
    yield* settled(life, usage)
    const { blocks } = yield* usage.store.stats
    for (let turns = 0; turns < mostTurns && count.blocks !== blocks && count.missed === 0; turns++) yield* turn
    if (count.missed === 0 && count.blocks !== blocks) {
      return yield* broken(`events tell of ${count.blocks} blocks, and there are ${blocks}`)
    }
  })

/** Some turns at a store that lives long. */
export const continued = (life: Life, usage: Usage): Effect.Effect<void, Broken> =>
  Effect.scoped(useOnce(life, usage, life.decisions, actsOfUser))

/** A store's whole life; where its storage is kept, the life of the next one, too. */
export const live = (life: Life): Effect.Effect<void, Broken, Syscalls | IoEngine> =>
  Effect.scoped(Effect.gen(function*() {
    const { decisions, directory, tally } = life
    const blockBytes = decisions.of([page, page, 4 * page, 16 * page])
    const count = decisions.between(1, 3)
    const slots = decisions.between(8, 48)
    const keepAt = count === 1 && decisions.chance(0.5) ? `${directory}/store.kept` : undefined
    const options: BlockStore.BlockStoreOptions = {
      blockBytes,
      checksum: decisions.of(["xxh128", "xxh128", "off"]),
      maxBlocksInFlight: decisions.between(1, 12),
      failureLimit: decisions.of([2, 8, 1000])
    }
    const versions = new Versions()
    const hashes = Math.ceil(slots * count * decisions.of([0.5, 1, 2]))
    const pool = yield* Effect.orDie(AlignedBuffer.pool({ buffers: users * mostOfBatch, byteLength: blockBytes }))
    const buffers = life.pooled ? pool.leaseUninitialized : AlignedBuffer.make(blockBytes)
    const filter = decisions.chance(0.2) ? Layer.orDie(OffloadFilter.layerFrequency()) : Layer.empty

    /** How many faults there had been when its use ended, and what was found then; undefined where a slot is no more used. */
    let left: { readonly faults: number; readonly blocks: number } | undefined
    const start = (number: number) =>
      attempt(
        tally,
        "a store",
        Effect.scoped(Effect.gen(function*() {
          const decided = decisions.apart(`store ${number}`)
          const storages = yield* Effect.forEach(numbers(count), () =>
            DiskStorage.make({
              // With room for the index of what is kept.
              size: slots * blockBytes + (keepAt === undefined ? 0 : 16 * page),
              directory,
              directIo: "preferred",
              earlyUnlink: keepAt === undefined && decided.chance(0.5),
              ...(keepAt === undefined ? {} : { keepAt })
            }))
          tally.storages += count
          const [first, ...others] = storages
          if (first === undefined) return
          const store = yield* BlockStore.make([first, ...others], options)
          tally.stores += 1
          if (first.keptAt?.takenUp === true) tally.takenUp += 1
          const { blocks } = yield* store.stats
          if (left !== undefined && left.faults === tally.faults && left.blocks !== blocks) {
            return yield* broken(`a store that was kept with ${left.blocks} blocks starts with ${blocks}`)
          }
          const dies = others.length > 0 && decided.chance(0.2)
          // One of several is closed under the store, which then takes it out.
          const dying = Effect.zipRight(Effect.sleep(decided.between(1, 80)), attempt(tally, "close", first.close))
          yield* Effect.all([
            useOnce(life, { store, versions, hashes, buffers }, decided, actsOfUser),
            dies ? dying : Effect.void
          ], {
            concurrency: 2,
            discard: true
          })
          const stats = yield* store.stats
          left = keepAt !== undefined && stats.storages.every(({ retired }) => retired === 0)
            ? { faults: tally.faults, blocks: stats.blocks }
            : undefined
        }))
      )
    yield* perhapsInterrupted(decisions, tally, 0.1, Effect.asVoid(Effect.provide(start(1), filter)))
    if (keepAt !== undefined) yield* Effect.provide(start(2), filter)
    yield* Effect.scoped(Effect.forEach(numbers(pool.buffers), () => pool.leaseUninitialized, { discard: true }))
  }))
