/** What a store does when a disk fails, hangs, lies or goes, when it is full, and when those who use it are stopped. */
import { assert, describe, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/TestClock"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as BlockStore from "../../src/BlockStore.js"
import * as DiskMetrics from "../../src/DiskMetrics.js"
import type * as DiskStorage from "../../src/DiskStorage.js"
import type { TransferError } from "../../src/DiskStorageError.js"
import * as IoEngine from "../../src/IoEngine.js"
import * as OffloadFilter from "../../src/OffloadFilter.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"
import {
  assertSettled,
  blank,
  block,
  blocks,
  fill,
  hashes,
  ioFailed,
  numbers,
  offload,
  onboard,
  page,
  recorded,
  silent,
  simulated,
  storage,
  told,
  turns,
  until,
  versionOf
} from "./blocks.js"
import { identify } from "./content.js"

const make = (blocks: number, options: Partial<BlockStore.BlockStoreOptions> = {}) =>
  Effect.flatMap(storage(blocks), (storage) => BlockStore.make([storage], { blockBytes: page, ...options }))

/** The storage with transfers that go through the test. */
const tampered = (
  storage: DiskStorage.DiskStorage,
  around: (
    kind: "read" | "write",
    transfer: Effect.Effect<void, TransferError>
  ) => Effect.Effect<void, TransferError>
): DiskStorage.DiskStorage => ({
  ...storage,
  unsafeTransfer: (kind, transfer, done) => {
    const through = Effect.async<void, TransferError>((resume) =>
      storage.unsafeTransfer(kind, transfer, (error) => resume(error === undefined ? Effect.void : Effect.fail(error)))
    )
    Effect.runCallback(Effect.either(around(kind, through)), {
      onExit: (exit) => done(Exit.isSuccess(exit) && Either.isLeft(exit.value) ? exit.value.left : undefined)
    })
  }
})

const syscalls = Layer.merge(Layer.provideMerge(IoEngine.layerSyscalls, SimulatedSyscalls.layer()), silent)

const writes = Effect.flatMap(
  SimulatedSyscalls.SimulatedKernel,
  ({ journal }) => Effect.map(journal, (entries) => entries.filter(({ syscall }) => syscall === "pwrite").length)
)

describe("transfers that fail", () => {
  it.scoped("a write that fails is told, is not found, and its slot is not used again", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedSyscalls.SimulatedKernel
      const store = yield* make(4, { maxBlocksInFlight: 1 })
      const before = yield* writes
      for (
        const [nth, outcome] of [
          [1, { _tag: "Fail", code: "EIO" }],
          [2, { _tag: "Fail", code: "ENOSPC" }],
          [3, { _tag: "Short", bytes: 1024 }],
          [4, { _tag: "Fail", code: "EIO" }]
        ] as const
      ) yield* control.inject({ syscall: "pwrite", nth: before + nth, outcome })
      assert.deepStrictEqual(yield* offload(store, [1, 2, 3, 4]), ["IoFailed", "IoFailed", "IoFailed", "stored"])
      assert.deepStrictEqual(yield* hashes(store), [4])
      const stats = yield* store.stats
      assert.strictEqual(stats.storages[0]?.retired, 3)
      assert.strictEqual(stats.failed, 3)
      // One slot is left: the next evicts.
      assert.deepStrictEqual(yield* offload(store, [5]), ["stored"])
      assert.deepStrictEqual(yield* hashes(store), [5])
      yield* assertSettled(store)
    }).pipe(Effect.provide(syscalls)))

  it.scoped("a write without an answer is told, and its slot is not used again", () =>
    Effect.gen(function*() {
      const store = yield* make(4, { failureLimit: 100, checksum: "off" })
      const fiber = yield* Effect.fork(offload(store, [1, 2, 3]))
      // Whatever it does before it waits.
      yield* turns(20)
      yield* TestClock.adjust("30 seconds")
      assert.deepStrictEqual(yield* Fiber.join(fiber), ["IoStalled", "IoStalled", "IoStalled"])
      const stats = yield* store.stats
      assert.strictEqual(stats.storages[0]?.retired, 3)
      assert.strictEqual(stats.storages[0]?.free, 1)
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated({ never: 1, stallTimeout: "10 seconds" }))))

  it.scopedLive("a block that cannot be read is dropped", () =>
    Effect.gen(function*() {
      let broken = false
      const disk = tampered(yield* storage(2), (kind, transfer) =>
        broken && kind === "read" ? Effect.fail(ioFailed(kind)) : transfer)
      const store = yield* BlockStore.make([disk], { blockBytes: page })
      const { events } = yield* recorded(store)
      yield* offload(store, [1, 2])
      broken = true
      assert.strictEqual(yield* onboard(store, 1), "IoFailed")
      broken = false
      assert.strictEqual(yield* onboard(store, 1), "BlockNotFound")
      assert.strictEqual(yield* onboard(store, 2), 0)
      yield* turns(5)
      assert.deepStrictEqual(events.slice(2), ["Removed 1 failed"])
      assert.strictEqual((yield* store.stats).storages[0]?.retired, 1)
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive.each(["xxh128", "crc32"] as const)(
    "bytes that are not those that were written: %s",
    (checksum) =>
      Effect.gen(function*() {
        const disk = yield* storage(1)
        const store = yield* BlockStore.make([disk], { blockBytes: page, checksum })
        const { events } = yield* recorded(store)
        yield* offload(store, [1])
        const other = yield* blank(page)
        fill(other.bytes, 1, 7)
        yield* disk.write(0, other)
        assert.strictEqual(yield* onboard(store, 1), "BlockCorrupted")
        assert.strictEqual(yield* onboard(store, 1), "BlockNotFound")
        assert.isFalse(yield* store.has(1n))
        yield* turns(5)
        assert.deepStrictEqual(events, ["Stored 1", "Corrupted 1"])
        assert.strictEqual((yield* store.stats).corrupted, 1)
        yield* assertSettled(store)
      }).pipe(Effect.provide(simulated()))
  )

  it.scopedLive.each(["xxh128", "crc32"] as const)(
    "every block of a large batch is verified, however many are unverified at once: %s",
    (checksum) =>
      Effect.gen(function*() {
        const all = numbers(64)
        const disk = yield* storage(all.length)
        const store = yield* BlockStore.make([disk], { blockBytes: page, checksum, failureLimit: 1000 })
        yield* offload(store, all)
        // The blocks that they were, but for one bit each, at another place in each.
        const damaged = all.filter((hash) => hash % 5 !== 0)
        const into = yield* blank(page)
        for (let slot = 0; slot < all.length; slot++) {
          yield* disk.read(slot * page, into)
          const hash = all.find((hash) => identify(into.bytes, hash).wrong === undefined) ?? assert.fail()
          if (!damaged.includes(hash)) continue
          const place = hash * 61 % page
          into.bytes[place] = (into.bytes[place] ?? 0) ^ (1 << hash % 8)
          yield* disk.write(slot * page, into)
        }
        const buffers = yield* Effect.replicateEffect(blank(page), all.length)
        const results = told(
          yield* store.onboard(buffers.map((into, index) => ({ hash: BigInt(all[index] ?? -1), into })))
        )
        assert.deepStrictEqual(
          results,
          all.map((hash) => damaged.includes(hash) ? "BlockCorrupted" : String(page))
        )
        assert.deepStrictEqual(yield* hashes(store), all.filter((hash) => !damaged.includes(hash)))
        yield* assertSettled(store)
      }).pipe(Effect.provide(simulated()))
  )

  it.scopedLive("memory that is in use drops nothing", () =>
    Effect.gen(function*() {
      const store = yield* make(2)
      yield* offload(store, [1])
      const into = yield* blank(page)
      const results = yield* store.onboard([{ hash: 1n, into }, { hash: 1n, into }])
      assert.deepStrictEqual([...told(results)].sort(), ["4096", "BufferBusy"])
      assert.strictEqual(yield* onboard(store, 1), 0)
      assert.strictEqual((yield* store.stats).failed, 0)
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))
})

describe("storages that go", () => {
  for (const how of ["closed", "failing"] as const) {
    it.scopedLive(`one of two ${how}: its blocks are gone, the other serves on`, () =>
      Effect.gen(function*() {
        let broken = false
        const first = yield* storage(20)
        const dying = tampered(first, (kind, transfer) => broken ? Effect.fail(ioFailed(kind)) : transfer)
        const store = yield* BlockStore.make([dying, yield* storage(20)], {
          blockBytes: page,
          failureLimit: 3,
          maxBlocksInFlight: 4
        })
        const { events } = yield* recorded(store)
        yield* offload(store, numbers(20))
        const batch = yield* Effect.fork(offload(store, numbers(20).map((hash) => 100 + hash)))
        yield* turns(1)
        if (how === "closed") yield* first.close
        else broken = true
        const results = yield* Fiber.join(batch)
        for (const hash of numbers(20)) yield* onboard(store, hash)
        assert.isTrue((yield* store.stats).storages[0]?.failed)
        yield* until(Effect.map(store.stats, ({ storages }) => storages[0]?.blocks === 0))
        yield* turns(5)
        // Those that were stored on the other one are there, and can be read; nothing else is.
        const there = yield* hashes(store)
        assert.isAtLeast(there.length, 10)
        for (const hash of there) assert.strictEqual(yield* onboard(store, hash), 0)
        const found = new Set<string>()
        for (const event of events) {
          const [tag = "", hash = ""] = event.split(" ")
          if (tag === "Stored") found.add(hash)
          else found.delete(hash)
        }
        assert.deepStrictEqual([...found].map(Number).sort((a, b) => a - b), there)
        for (const [place, what] of results.entries()) {
          if (what !== "stored") assert.isFalse(there.includes(100 + place))
        }
        assert.deepStrictEqual(yield* offload(store, [500, 501]), ["stored", "stored"])
        yield* assertSettled(store)
      }).pipe(Effect.provide(simulated())))
  }

  it.scopedLive("a write that ends on a storage that was taken out goes to another", () =>
    Effect.gen(function*() {
      const slow = yield* Deferred.make<void>()
      let wait = true
      const first = tampered(yield* storage(4), (kind, transfer) => {
        if (kind === "read") return Effect.fail(ioFailed(kind))
        if (!wait) return transfer
        wait = false
        return Effect.zipRight(Deferred.await(slow), transfer)
      })
      const store = yield* BlockStore.make([first, yield* storage(4)], { blockBytes: page, failureLimit: 1 })
      const { events } = yield* recorded(store)
      const fiber = yield* Effect.fork(offload(store, [1]))
      yield* turns(3)
      assert.deepStrictEqual(yield* offload(store, [2, 3, 4]), ["stored", "stored", "stored"])
      // One of them lies on the first.
      for (const hash of [2, 3, 4]) yield* onboard(store, hash)
      assert.isTrue((yield* store.stats).storages[0]?.failed)
      yield* Deferred.succeed(slow, undefined)
      assert.deepStrictEqual(yield* Fiber.join(fiber), ["stored"])
      assert.strictEqual(yield* onboard(store, 1), 0)
      yield* turns(5)
      assert.strictEqual(events.filter((event) => event === "Stored 1").length, 1)
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("none is left", () =>
    Effect.gen(function*() {
      const disks = [yield* storage(2), yield* storage(2)] as const
      const store = yield* BlockStore.make(disks, { blockBytes: page })
      yield* offload(store, [1, 2])
      for (const disk of disks) yield* disk.close
      assert.deepStrictEqual(yield* offload(store, [3, 4]), ["StorageClosed", "StorageClosed"])
      assert.deepStrictEqual(yield* offload(store, [5]), ["NoStorageLeft"])
      assert.strictEqual(yield* store.match([1n]), 0)
      yield* until(Effect.map(store.stats, ({ blocks }) => blocks === 0))
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))
})

describe("those who are stopped", () => {
  it.scopedLive("an interrupted batch begins nothing more, and what came through counts", () =>
    Effect.gen(function*() {
      let begun = 0
      const hold = yield* Deferred.make<void>()
      const disk = tampered(yield* storage(20), (_, transfer) => {
        begun += 1
        return begun === 3 ? Effect.zipRight(Deferred.await(hold), transfer) : transfer
      })
      const store = yield* BlockStore.make([disk], { blockBytes: page, maxBlocksInFlight: 1 })
      const batch = yield* Effect.fork(offload(store, numbers(10)))
      yield* until(Effect.sync(() => begun === 3))
      const other = yield* Effect.fork(offload(store, [50]))
      yield* turns(3)
      const interrupting = yield* Effect.fork(Fiber.interrupt(batch))
      yield* turns(5)
      assert.isNull(batch.unsafePoll(), "a block was in flight")
      yield* Deferred.succeed(hold, undefined)
      assert.isTrue(Exit.isInterrupted(yield* Fiber.join(interrupting)))
      assert.deepStrictEqual(yield* Fiber.join(other), ["stored"])
      assert.deepStrictEqual(yield* hashes(store), [0, 1, 2, 50])
      assert.strictEqual(begun, 4)
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("no permit is lost with who is stopped as it comes", () =>
    Effect.gen(function*() {
      let finish = () => {}
      const disk: DiskStorage.DiskStorage = {
        ...yield* storage(8),
        unsafeTransfer: (_kind, _transfer, done) => {
          finish = () => done(undefined)
        }
      }
      const store = yield* BlockStore.make([disk], { blockBytes: page, maxBlocksInFlight: 1 })
      const first = yield* Effect.fork(offload(store, [1]))
      yield* turns(3)
      const second = yield* Effect.fork(offload(store, [2]))
      yield* turns(3)
      // The second has the permit by the time that it is stopped.
      finish()
      second.unsafeInterruptAsFork(FiberId.none)
      yield* turns(3)
      finish()
      assert.deepStrictEqual(yield* Fiber.join(first), ["stored"])
      assert.isTrue(Exit.isInterrupted(yield* Fiber.await(second)))
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("a store that is released waits for its batches, and is closed afterwards", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const disk = yield* storage(20)
      const store = yield* Scope.extend(BlockStore.make([disk], { blockBytes: page, maxBlocksInFlight: 2 }), scope)
      const { fiber: listening } = yield* recorded(store)
      const batch = yield* Effect.fork(offload(store, numbers(10)))
      yield* turns(1)
      yield* Scope.close(scope, Exit.void)
      assert.isNotNull(batch.unsafePoll(), "the batch was under way")
      assert.deepStrictEqual(yield* Fiber.join(batch), numbers(10).map(() => "stored"))
      assert.deepStrictEqual(yield* offload(store, [1, 2]), ["StoreClosed", "StoreClosed"])
      assert.strictEqual(yield* onboard(store, 1), "StoreClosed")
      assert.strictEqual(yield* store.match([1n]), 0)
      assert.deepStrictEqual(yield* store.hashes, [])
      assert.strictEqual((yield* Effect.flip(store.lease(1n)))._tag, "BlockNotFound")
      yield* Fiber.join(listening)
    }).pipe(Effect.provide(simulated())))
})

describe("room", () => {
  it.scopedLive("leases are not evicted, and a store full of them says so", () =>
    Effect.gen(function*() {
      const store = yield* make(4)
      yield* offload(store, [1, 2, 3, 4])
      const scope = yield* Scope.make()
      const leases = yield* Scope.extend(store.leasePrefix([1n, 2n, 3n]), scope)
      assert.strictEqual(leases.length, 3)
      assert.deepStrictEqual(yield* offload(store, [5]), ["stored"])
      assert.deepStrictEqual(yield* hashes(store), [1, 2, 3, 5])
      const last = yield* Scope.extend(store.lease(5n), scope)
      assert.deepStrictEqual(yield* offload(store, [6]), ["StoreFull"])
      for (const lease of [...leases, last]) {
        const into = yield* blank(page)
        yield* lease.onboard(into)
        assert.strictEqual(versionOf(into.bytes, Number(lease.hash), "lease"), 0)
      }
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(yield* offload(store, [6]), ["stored"])
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("a leased block that is removed or replaced is read through its lease, until that ends", () =>
    Effect.gen(function*() {
      const store = yield* make(3)
      yield* offload(store, [1, 2], 1)
      const into = yield* blank(page)
      const scope = yield* Scope.make()
      const [first, second] = yield* Scope.extend(store.leasePrefix([1n, 2n]), scope)
      if (first === undefined || second === undefined) return assert.fail("not leased")
      assert.strictEqual(yield* store.remove([1n]), 1)
      yield* store.offload(yield* blocks([2], 2), { replace: true })
      assert.strictEqual(yield* onboard(store, 1), "BlockNotFound")
      assert.strictEqual(yield* onboard(store, 2), 2)
      // No room is made at their expense.
      yield* offload(store, [3, 4, 5])
      yield* first.onboard(into)
      assert.strictEqual(versionOf(into.bytes, 1, "removed"), 1)
      yield* second.onboard(into)
      assert.strictEqual(versionOf(into.bytes, 2, "replaced"), 1)
      yield* Scope.close(scope, Exit.void)
      yield* offload(store, [6, 7, 8])
      assert.strictEqual((yield* Effect.flip(first.onboard(into)))._tag, "BlockNotFound")
      assert.strictEqual((yield* Effect.flip(second.onboard(into)))._tag, "BlockNotFound")
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("an older write does not take the place of one that replaced its hash meanwhile", () =>
    Effect.gen(function*() {
      const hold = yield* Deferred.make<void>()
      let wait = true
      const disk = tampered(yield* storage(4), (_, transfer) => {
        if (!wait) return transfer
        wait = false
        return Effect.zipRight(Deferred.await(hold), transfer)
      })
      const store = yield* BlockStore.make([disk], { blockBytes: page })
      const older = yield* Effect.fork(offload(store, [1], 1))
      yield* turns(3)
      yield* store.offload(yield* blocks([1], 2), { replace: true })
      yield* Deferred.succeed(hold, undefined)
      assert.deepStrictEqual(yield* Fiber.join(older), ["duplicate"])
      assert.strictEqual(yield* onboard(store, 1), 2)
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("duplicates of one batch and of two are written once", () =>
    Effect.gen(function*() {
      const store = yield* make(8)
      const before = yield* writes
      const both = yield* Effect.all([offload(store, [1, 1, 2]), offload(store, [2, 1])], { concurrency: "unbounded" })
      assert.deepStrictEqual(both.flat().filter((what) => what === "stored").length, 2)
      assert.deepStrictEqual(both.flat().filter((what) => what === "duplicate").length, 3)
      assert.strictEqual((yield* writes) - before, 2)
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("10 000 fibres", () =>
    Effect.gen(function*() {
      const store = yield* make(64, { maxBlocksInFlight: 64 })
      yield* Effect.forEach(numbers(10_000), (index) =>
        index % 2 === 0
          ? offload(store, [index % 200])
          : Effect.map(onboard(store, index % 200 - 1), (what) => {
            if (what !== 0) assert.strictEqual(what, "BlockNotFound")
          }), { concurrency: "unbounded", discard: true })
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated({ depth: 128 }))))

  it.scopedLive("streams of more than fits", () =>
    Effect.gen(function*() {
      const store = yield* make(50, { maxBlocksInFlight: 8 })
      const all = numbers(300)
      const stored = yield* Stream.runCollect(
        store.offloadStream(Stream.mapEffect(Stream.fromIterable(all), (hash) => block(hash)))
      )
      assert.deepStrictEqual(Chunk.toReadonlyArray(stored).map(({ hash }) => Number(hash)), all)
      assert.isTrue(Chunk.toReadonlyArray(stored).every(({ result }) => Either.isRight(result)))
      const read = yield* Stream.runCollect(store.onboardStream(Stream.fromIterable(all.map(BigInt))))
      let found = 0
      for (const [place, { hash, result }] of Chunk.toReadonlyArray(read).entries()) {
        assert.strictEqual(Number(hash), place)
        if (Either.isRight(result)) {
          found += 1
          assert.strictEqual(versionOf(result.right.bytes, place, "stream"), 0)
        } else assert.strictEqual(result.left._tag, "BlockNotFound")
      }
      assert.strictEqual(found, 50)
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))
})

describe("streams of borrowed buffers", () => {
  it.scopedLive("go on with fewer buffers than may be in flight", () =>
    Effect.gen(function*() {
      const store = yield* make(50, { maxBlocksInFlight: 8 })
      const free = yield* Queue.unbounded<AlignedBuffer.AlignedBuffer>()
      yield* Effect.forEach(numbers(3), () => Effect.flatMap(blank(page), (buffer) => free.offer(buffer)))
      const lent = new Map<bigint, AlignedBuffer.AlignedBuffer>()
      const blocks = Stream.mapEffect(Stream.fromIterable(numbers(40)), (number) =>
        Effect.map(Queue.take(free), (data) => {
          const hash = BigInt(number)
          fill(data.bytes, number, 0)
          lent.set(hash, data)
          return { hash, data }
        }))
      const stored: Array<number> = []
      yield* Stream.runForEach(store.offloadStream(blocks), ({ hash, result }) => {
        stored.push(Number(hash))
        assert.deepStrictEqual(result, Either.right("stored" as const))
        const data = lent.get(hash)
        return data === undefined ? Effect.dieMessage("never lent") : free.offer(data)
      })
      assert.deepStrictEqual(stored, numbers(40))
      for (const number of numbers(40)) {
        assert.strictEqual(yield* onboard(store, number), 0)
      }
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))
})

describe("what is told", () => {
  it.scopedLive("who is slow is told how much was missed, who is fast misses nothing", () =>
    Effect.gen(function*() {
      const store = yield* make(4, { eventCapacity: 10 })
      const fast = yield* recorded(store)
      const slow: Array<BlockStore.BlockEvent> = []
      const scope = yield* Scope.make()
      const pull = yield* Scope.extend(Stream.toPull(store.events), scope)
      const first = yield* Effect.fork(pull)
      yield* turns(3)
      yield* offload(store, [0])
      slow.push(...yield* Fiber.join(first))
      for (const hash of numbers(30)) {
        yield* offload(store, [hash + 1])
        yield* turns(3)
      }
      const total = fast.events.length
      slow.push(...yield* pull)
      const [one, missed, ...rest] = slow
      assert.strictEqual(one?._tag, "Stored")
      assert.deepStrictEqual(missed, { _tag: "Missed", events: total - 1 - 10 })
      assert.strictEqual(rest.length, 10)
      assert.isFalse(fast.events.some((event) => event.startsWith("Missed")))
      assert.strictEqual(fast.events.filter((event) => event.startsWith("Stored")).length, 31)
      yield* Scope.close(scope, Exit.void)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("the filter that is around is asked", () =>
    Effect.gen(function*() {
      const store = yield* make(4).pipe(Effect.provideService(OffloadFilter.OffloadFilter, {
        ...OffloadFilter.none,
        admit: (hashes) => Effect.succeed(hashes.map((hash) => hash % 2n === 0n))
      }))
      assert.deepStrictEqual(yield* offload(store, [1, 2, 3, 4]), ["filtered", "stored", "filtered", "stored"])
      assert.strictEqual((yield* store.stats).filtered, 2)
      const results = yield* store.offload(yield* blocks([1]), { replace: true })
      assert.deepStrictEqual(told(results), ["stored"])
      assert.deepStrictEqual(yield* hashes(store), [1, 2, 4])
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("what is no block", () =>
    Effect.gen(function*() {
      const store = yield* make(4)
      const data = yield* blank(page)
      const long = yield* AlignedBuffer.make(2 * page)
      const results = yield* store.offload([
        { hash: -1n, data },
        { hash: 2n ** 64n, data },
        { hash: 1n, data, priority: 16 },
        { hash: 1n, data, priority: 0.5 },
        { hash: 1n, data: long },
        { hash: 2n ** 64n - 1n, data }
      ])
      assert.deepStrictEqual(told(results), [...numbers(5).map(() => "InvalidBlock"), "stored"])
      const read = yield* store.onboard([{ hash: -1n, into: data }, { hash: 2n ** 64n - 1n, into: long }])
      assert.deepStrictEqual(told(read), ["InvalidBlock", "InvalidBlock"])
      for (const hash of [-1n, 2n ** 64n]) {
        assert.strictEqual((yield* Effect.flip(store.has(hash)))._tag, "InvalidBlock")
      }
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("metrics count each block once, however many batches there are", () =>
    Effect.gen(function*() {
      const value = (metric: Metric.Metric.Counter<number>) => Effect.map(Metric.value(metric), ({ count }) => count)
      const counts = Effect.all([
        value(DiskMetrics.blocks.stored),
        value(DiskMetrics.blocks.evicted),
        value(DiskMetrics.blocks.hits),
        value(DiskMetrics.blocks.misses),
        value(DiskMetrics.blockBytes.offload),
        value(DiskMetrics.blockBytes.onboard)
      ])
      const store = yield* make(4)
      const before = yield* counts
      yield* Effect.all([offload(store, [1, 2, 3]), offload(store, [4, 5])], { concurrency: "unbounded" })
      yield* Effect.forEach(yield* store.hashes, (hash) => onboard(store, Number(hash)), { concurrency: "unbounded" })
      yield* onboard(store, 99)
      const after = yield* counts
      assert.deepStrictEqual(after.map((count, index) => count - (before[index] ?? 0)), [
        5,
        1,
        4,
        1,
        5 * page,
        4 * page
      ])
      assert.strictEqual((yield* Metric.value(DiskMetrics.occupancy)).value, 1)
    }).pipe(Effect.provide(simulated())))
})
