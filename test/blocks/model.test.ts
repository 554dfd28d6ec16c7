/** Schedules of everything that a store can do: one after the other like a map with the same rules, together never wrong bytes. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as BlockStore from "../../src/BlockStore.js"
import type { InvalidBlock, InvalidOption } from "../../src/DiskStorageError.js"
import type { IoEngine } from "../../src/IoEngine.js"
import * as Linux from "../../src/Linux.js"
import type { Syscalls } from "../../src/Syscalls.js"
import { numbers, seed, whyNotEngine } from "../engines/engines.js"
import { describeReal, freshPath } from "../filesystems/real.js"
import {
  assertSettled,
  blank,
  block,
  ioFailed,
  memory,
  page,
  silent,
  simulated,
  storage,
  until,
  versionOf
} from "./blocks.js"

const hash = FastCheck.nat(11)
const hashes = FastCheck.array(hash, { maxLength: 6 })

const step = FastCheck.oneof(
  {
    weight: 6,
    arbitrary: FastCheck.record({
      kind: FastCheck.constant("offload" as const),
      blocks: FastCheck.array(FastCheck.record({ hash, priority: FastCheck.nat(3) }), { maxLength: 6 }),
      replace: FastCheck.nat(3).map((number) => number === 0)
    })
  },
  { weight: 4, arbitrary: FastCheck.record({ kind: FastCheck.constant("onboard" as const), hashes }) },
  { weight: 1, arbitrary: FastCheck.record({ kind: FastCheck.constant("match" as const), hashes }) },
  { weight: 1, arbitrary: FastCheck.record({ kind: FastCheck.constant("has" as const), hash }) },
  { weight: 2, arbitrary: FastCheck.record({ kind: FastCheck.constant("lease" as const), hash }) },
  { weight: 1, arbitrary: FastCheck.record({ kind: FastCheck.constant("leasePrefix" as const), hashes }) },
  { weight: 2, arbitrary: FastCheck.record({ kind: FastCheck.constant("read" as const), lease: FastCheck.nat(9) }) },
  { weight: 2, arbitrary: FastCheck.record({ kind: FastCheck.constant("release" as const), lease: FastCheck.nat(9) }) },
  { weight: 1, arbitrary: FastCheck.record({ kind: FastCheck.constant("touch" as const), hashes }) },
  { weight: 1, arbitrary: FastCheck.record({ kind: FastCheck.constant("remove" as const), hashes }) },
  { weight: 1, arbitrary: FastCheck.record({ kind: FastCheck.constant("reset" as const) }) }
)

const plan = FastCheck.record({
  seed: FastCheck.nat(1_000_000),
  checksum: FastCheck.constantFrom("off" as const, "xxh128" as const, "crc32" as const),
  capacities: FastCheck.array(FastCheck.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 3 }),
  maxBlocksInFlight: FastCheck.integer({ min: 1, max: 8 }),
  short: FastCheck.constantFrom(0, 0.2),
  transient: FastCheck.constantFrom(0, 0.2),
  fail: FastCheck.constantFrom(0, 0, 0.1),
  /** Whether transfers end as they are begun. */
  atOnce: FastCheck.boolean(),
  /** Of those who run together: storages are taken out after as many failures. */
  failureLimit: FastCheck.constantFrom(1_000_000, 1, 2),
  steps: FastCheck.array(step, { minLength: 1, maxLength: 60 }),
  /** Turns after which a step that runs with others is interrupted; most are not. */
  interruptions: FastCheck.array(FastCheck.oneof(FastCheck.constant(-1), FastCheck.constant(-1), FastCheck.nat(12)), {
    minLength: 1,
    maxLength: 20
  })
})

type Plan = typeof plan extends FastCheck.Arbitrary<infer A> ? A : never
type Step = Plan["steps"][number]

/** A plan whose storages may have a place of their own, and then do direct I/O. */
interface Placed extends Plan {
  readonly directory?: string
}

type Schedule = (plan: Placed) => Effect.Effect<void, unknown, Syscalls | IoEngine | Scope.Scope>

const make = (plan: Placed, maxBlocksInFlight: number, failureLimit = 1_000_000) =>
  Effect.gen(function*() {
    const [first, ...others] = plan.capacities
    const where = plan.directory === undefined ? {} : { directory: plan.directory, directIo: "required" as const }
    const random = numbers(plan.seed)
    const fails = (kind: "read" | "write") => random(1000) < plan.fail * 1000 ? ioFailed(kind) : undefined
    const disk = (blocks: number) =>
      plan.atOnce ? Effect.map(memory(blocks, { fails }), ({ disk }) => disk) : storage(blocks, where)
    const one = yield* disk(first ?? 1)
    const more = yield* Effect.forEach(others, disk)
    return yield* BlockStore.make([one, ...more], {
      blockBytes: page,
      checksum: plan.checksum,
      maxBlocksInFlight,
      failureLimit
    })
  })

/** Waits until the blocks of storages that were taken out have left, bit by bit. */
const purged = (store: BlockStore.BlockStore) =>
  until(Effect.map(store.stats, ({ storages }) => storages.every(({ blocks, failed }) => !failed || blocks === 0)))

/** What the model knows of a block; it stays one when it is found no more and still leased. */
interface Entry {
  readonly hash: number
  readonly version: number
  priority: number
  used: number
  pins: number
  broken: boolean
}

/** The rules of a store, for one who does one thing after the other. */
class Model {
  readonly found = new Map<number, Entry>()
  readonly leaving = new Set<Entry>()
  slots: number
  private clock = 0

  constructor(slots: number) {
    this.slots = slots
  }

  use(entry: Entry, priority = 0): void {
    entry.used = this.clock += 1
    entry.priority = Math.max(entry.priority, priority)
  }

  drop(entry: Entry): void {
    this.found.delete(entry.hash)
    if (entry.pins > 0) this.leaving.add(entry)
  }

  /** A slot is not used any more. */
  break(entry: Entry): void {
    entry.broken = true
    if (this.found.get(entry.hash) === entry) this.drop(entry)
    if (entry.pins === 0) this.slots -= 1
  }

  release(entry: Entry): void {
    entry.pins -= 1
    if (entry.pins > 0) return
    this.use(entry)
    if (!this.leaving.delete(entry)) return
    if (entry.broken) this.slots -= 1
  }

  /** Whether there is room for a block of that priority. */
  room(priority: number): boolean {
    if (this.found.size + this.leaving.size < this.slots) return true
    const going = [...this.found.values()]
      .filter((entry) => entry.pins === 0 && entry.priority <= priority)
      .sort((a, b) => a.priority - b.priority || a.used - b.used)[0]
    if (going === undefined) return false
    this.drop(going)
    return true
  }

  store(hash: number, version: number, priority: number): void {
    const older = this.found.get(hash)
    if (older !== undefined) this.drop(older)
    const entry = { hash, version, priority, used: 0, pins: 0, broken: false }
    this.use(entry)
    this.found.set(hash, entry)
  }

  prefix(hashes: ReadonlyArray<number>): ReadonlyArray<Entry> {
    const entries: Array<Entry> = []
    for (const hash of hashes) {
      const entry = this.found.get(hash)
      if (entry === undefined) break
      entries.push(entry)
    }
    return entries
  }
}

interface Leased {
  readonly leases: ReadonlyArray<BlockStore.Lease>
  readonly entries: ReadonlyArray<Entry>
  readonly scope: Scope.CloseableScope
}

const sequential: Schedule = (plan) =>
  Effect.gen(function*() {
    // One at a time: a batch goes in its order.
    const store = yield* make(plan, 1)
    const model = new Model(store.capacity)
    const leased: Array<Leased> = []
    let version = 0

    /** What a read gave, and what the model says of it. */
    const read = (entry: Entry, result: Either.Either<unknown, { readonly _tag: string }>, bytes: Uint8Array) => {
      if (Either.isRight(result)) {
        assert.strictEqual(versionOf(bytes, entry.hash, "read"), entry.version)
        model.use(entry)
      } else {
        assert.strictEqual(result.left._tag, "IoFailed")
        assert.isAbove(plan.fail, 0)
        model.break(entry)
      }
    }

    const perform = (step: Step): Effect.Effect<void, InvalidBlock | InvalidOption> =>
      Effect.gen(function*() {
        switch (step.kind) {
          case "offload": {
            const blocks = yield* Effect.forEach(
              step.blocks,
              ({ hash, priority }) => block(hash, version += 1, priority)
            )
            const results = yield* store.offload(blocks, { replace: step.replace })
            const first = version - blocks.length + 1
            step.blocks.forEach(({ hash, priority }, place) => {
              const result = results.get(place)
              const what = Either.isRight(result) ? result.right : result.left._tag
              const present = model.found.get(hash)
              if (present !== undefined && !step.replace) {
                model.use(present, priority)
                assert.strictEqual(what, "duplicate")
              } else if (!model.room(priority)) {
                assert.strictEqual(what, "StoreFull")
              } else if (what === "IoFailed") {
                assert.isAbove(plan.fail, 0)
                model.slots -= 1
              } else {
                assert.strictEqual(what, "stored")
                model.store(hash, first + place, priority)
              }
            })
            return
          }
          case "onboard": {
            const into = yield* Effect.forEach(step.hashes, () => blank(page))
            const results = yield* store.onboard(
              into.map((into, place) => ({ hash: BigInt(step.hashes[place] ?? 0), into }))
            )
            into.forEach(({ bytes }, place) => {
              const result = results.get(place)
              const entry = model.found.get(step.hashes[place] ?? 0)
              if (entry !== undefined) return read(entry, result, bytes)
              assert.strictEqual(Either.isLeft(result) && result.left._tag, "BlockNotFound")
            })
            return
          }
          case "match":
            assert.strictEqual(yield* store.match(step.hashes.map(BigInt)), model.prefix(step.hashes).length)
            return
          case "has":
            assert.strictEqual(yield* store.has(BigInt(step.hash)), model.found.has(step.hash))
            return
          case "lease": {
            const scope = yield* Scope.make()
            const lease = yield* Effect.option(Scope.extend(store.lease(BigInt(step.hash)), scope))
            const entry = model.found.get(step.hash)
            assert.strictEqual(lease._tag === "Some", entry !== undefined)
            if (lease._tag === "None" || entry === undefined) return
            entry.pins += 1
            leased.push({ leases: [lease.value], entries: [entry], scope })
            return
          }
          case "leasePrefix": {
            const scope = yield* Scope.make()
            const leases = yield* Scope.extend(store.leasePrefix(step.hashes.map(BigInt)), scope)
            const entries = model.prefix(step.hashes)
            assert.strictEqual(leases.length, entries.length)
            for (const entry of entries) entry.pins += 1
            leased.push({ leases, entries, scope })
            return
          }
          case "read": {
            const { entries, leases } = leased[step.lease % Math.max(1, leased.length)] ?? { entries: [], leases: [] }
            for (const [place, lease] of leases.entries()) {
              const into = yield* blank(page)
              const result = yield* Effect.either(lease.onboard(into))
              const entry = entries[place]
              if (entry === undefined) return
              if (!entry.broken) read(entry, result, into.bytes)
              else assert.strictEqual(Either.isLeft(result) && result.left._tag, "BlockNotFound")
            }
            return
          }
          case "release": {
            const [some] = leased.splice(step.lease % Math.max(1, leased.length), 1)
            if (some === undefined) return
            yield* Scope.close(some.scope, Exit.void)
            some.entries.forEach((entry) => model.release(entry))
            const into = yield* blank(page)
            for (const lease of some.leases) {
              assert.strictEqual((yield* Effect.flip(lease.onboard(into)))._tag, "BlockNotFound")
            }
            return
          }
          case "touch": {
            assert.strictEqual(
              yield* store.touch(step.hashes.map(BigInt)),
              step.hashes.filter((hash) => model.found.has(hash)).length
            )
            for (const hash of step.hashes) {
              const entry = model.found.get(hash)
              if (entry !== undefined) model.use(entry)
            }
            return
          }
          case "remove": {
            const there = new Set(step.hashes.filter((hash) => model.found.has(hash)))
            assert.strictEqual(yield* store.remove(step.hashes.map(BigInt)), there.size)
            for (const hash of there) {
              const entry = model.found.get(hash)
              if (entry !== undefined) model.drop(entry)
            }
            return
          }
          case "reset":
            yield* Effect.orDie(store.reset)
            for (const entry of model.found.values()) model.drop(entry)
        }
      }).pipe(Effect.orDie)

    for (const step of plan.steps) {
      yield* perform(step)
      const there = yield* store.hashes
      assert.deepStrictEqual(
        there.map(Number).sort((a, b) => a - b),
        [...model.found.keys()].sort((a, b) => a - b),
        `after ${JSON.stringify(step)}`
      )
      const pinned = new Set([...model.found.values(), ...model.leaving].filter(({ pins }) => pins > 0))
      assert.strictEqual((yield* store.stats).pinned, pinned.size)
    }
    for (const { scope } of leased) yield* Scope.close(scope, Exit.void)
    yield* assertSettled(store)
  })

const concurrent: Schedule = (plan) =>
  Effect.gen(function*() {
    const store = yield* make(plan, plan.maxBlocksInFlight, plan.failureLimit)
    const failures = plan.fail === 0 ? [] : plan.failureLimit > 1000 ? ["IoFailed"] : ["IoFailed", "NoStorageLeft"]
    const given = new Map<number, number>()
    let version = 0
    const leased: Array<{ readonly leases: ReadonlyArray<BlockStore.Lease>; readonly scope: Scope.CloseableScope }> = []

    const check = (bytes: Uint8Array, hash: number) =>
      assert.strictEqual(given.get(versionOf(bytes, hash, "read")), hash, "a version that was never offloaded")

    const perform = (step: Step): Effect.Effect<void, InvalidBlock | InvalidOption> =>
      Effect.gen(function*() {
        switch (step.kind) {
          case "offload": {
            const blocks = yield* Effect.forEach(step.blocks, ({ hash, priority }) => {
              given.set(version += 1, hash)
              return block(hash, version, priority)
            })
            const results = yield* store.offload(blocks, { replace: step.replace })
            for (const { error } of results.failures) {
              assert.include([...failures, "StoreFull"], error._tag)
            }
            return
          }
          case "onboard": {
            const into = yield* Effect.forEach(step.hashes, () => blank(page))
            const results = yield* store.onboard(
              into.map((into, place) => ({ hash: BigInt(step.hashes[place] ?? 0), into }))
            )
            into.forEach(({ bytes }, place) => {
              const result = results.get(place)
              if (Either.isRight(result)) check(bytes, step.hashes[place] ?? 0)
              else assert.include(plan.fail > 0 ? ["IoFailed", "BlockNotFound"] : ["BlockNotFound"], result.left._tag)
            })
            return
          }
          case "match":
            assert.isAtMost(yield* store.match(step.hashes.map(BigInt)), step.hashes.length)
            return
          case "has":
            yield* store.has(BigInt(step.hash))
            return
          case "lease":
          case "leasePrefix": {
            const scope = yield* Scope.make()
            const hashes = step.kind === "lease" ? [step.hash] : step.hashes
            const leases = yield* Scope.extend(store.leasePrefix(hashes.map(BigInt)), scope)
            leased.push({ leases, scope })
            return
          }
          case "read": {
            const some = leased[step.lease % Math.max(1, leased.length)]
            const into = yield* blank(page)
            for (const lease of some?.leases ?? []) {
              const result = yield* Effect.either(lease.onboard(into))
              if (Either.isRight(result)) check(into.bytes, Number(lease.hash))
              else assert.include(["IoFailed", "BlockNotFound"], result.left._tag)
            }
            return
          }
          case "release": {
            const [some] = leased.splice(step.lease % Math.max(1, leased.length), 1)
            if (some !== undefined) yield* Scope.close(some.scope, Exit.void)
            return
          }
          case "touch":
            yield* store.touch(step.hashes.map(BigInt))
            return
          case "remove":
            yield* store.remove(step.hashes.map(BigInt))
            return
          case "reset":
            yield* Effect.orDie(store.reset)
        }
      })

    yield* Effect.forEach(plan.steps, (step, place) => {
      const turns = plan.interruptions[place % plan.interruptions.length] ?? -1
      if (turns < 0) return perform(step)
      return Effect.gen(function*() {
        const fiber = yield* Effect.fork(perform(step))
        for (let turn = 0; turn < turns; turn++) {
          yield* turn % 2 === 0 ? Effect.yieldNow() : Effect.async<void>((resume) => {
            setImmediate(() => resume(Effect.void))
          })
        }
        const exit = yield* Fiber.interrupt(fiber)
        if (Exit.isFailure(exit) && !Exit.isInterrupted(exit)) yield* exit
      })
    }, { concurrency: 8, discard: true })
    for (const { scope } of leased) yield* Scope.close(scope, Exit.void)
    yield* purged(store)
    // What is there now can be read, all of it.
    for (const hash of yield* store.hashes) {
      const into = yield* blank(page)
      const result = (yield* store.onboard([{ hash, into }])).get(0)
      if (Either.isRight(result)) check(into.bytes, Number(hash))
      else if (result.left._tag === "IoFailed") assert.isAbove(plan.fail, 0)
      else {
        // With the storage that was taken out for one of those before it.
        assert.strictEqual(result.left._tag, "BlockNotFound")
        assert.isTrue((yield* store.stats).storages.some(({ failed }) => failed))
      }
    }
    yield* purged(store)
    yield* assertSettled(store)
  })

const runs = { seed, endOnFailure: false }

describe("over a simulated kernel", () => {
  const on = (plan: Plan, run: Schedule) =>
    run(plan).pipe(Effect.scoped, Effect.provide(simulated({ ...plan, depth: plan.maxBlocksInFlight })))

  it.live.prop(
    "one after the other: the same as the model, up to what is evicted",
    { plan },
    ({ plan }) => on(plan, sequential),
    { fastCheck: { ...runs, numRuns: 60 } }
  )

  it.live.prop(
    "together, some interrupted: bytes of their hash, no slot lost",
    { plan },
    ({ plan }) => on(plan, concurrent),
    { fastCheck: { ...runs, numRuns: 80 } }
  )
})

for (const [engine, name] of [["io_uring", "io_uring"], ["node", "node:fs"]] as const) {
  const reason = whyNotEngine(name)
  const refused = reason !== undefined && process.env["EDS_REQUIRE_REAL"] !== "1"
  describe.skipIf(refused)(`on the real kernel: ${name}${refused ? `, not here: ${reason}` : ""}`, () => {
    const layer = Layer.merge(Linux.layerWith({ engine }), silent)
    const on = (plan: Plan, run: Schedule) =>
      run({ ...plan, fail: 0, atOnce: false }).pipe(Effect.scoped, Effect.provide(layer))

    it.live.prop("one after the other: the same as the model", { plan }, ({ plan }) => on(plan, sequential), {
      fastCheck: { ...runs, numRuns: 8 }
    })

    it.live.prop("together: bytes of their hash, no slot lost", { plan }, ({ plan }) => on(plan, concurrent), {
      fastCheck: { ...runs, numRuns: 12 }
    })
  })
}

// Only direct I/O goes through AIO, so this one has a filesystem that does it.
describeReal("ext4", { name: "aio" }, (it) => {
  const layer = Linux.layerWith({ engine: "aio" })
  const on = (plan: Plan, run: Schedule) =>
    Effect.flatMap(freshPath, (directory) => run({ ...plan, fail: 0, atOnce: false, directory })).pipe(
      Effect.scoped,
      Effect.provide(layer)
    )

  it.effect.prop("one after the other: the same as the model", { plan }, ({ plan }) => on(plan, sequential), {
    fastCheck: { ...runs, numRuns: 4 }
  })

  it.effect.prop("together: bytes of their hash, no slot lost", { plan }, ({ plan }) => on(plan, concurrent), {
    fastCheck: { ...runs, numRuns: 6 }
  })
})
