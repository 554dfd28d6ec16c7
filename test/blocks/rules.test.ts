/** What a store keeps to when an engine dies, a disk takes no more, memory is shared, and callers change what they have handed over. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as v8 from "node:v8"
import type * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as BlockStore from "../../src/BlockStore.js"
import { StorageClosed } from "../../src/DiskStorageError.js"
import { Batch } from "../../src/internal/blockBatch.js"
import * as keyValueStore from "../../src/internal/keyValueStore.js"
import * as IoEngine from "../../src/IoEngine.js"
import * as OffloadFilter from "../../src/OffloadFilter.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"
import { Syscalls } from "../../src/Syscalls.js"
import {
  assertSettled,
  blank,
  block,
  blocks,
  fill,
  hashes,
  ioFailed,
  memory,
  numbers,
  offload,
  onboard,
  page,
  recorded,
  silent,
  simulated,
  storage,
  told,
  turn,
  turns,
  until
} from "./blocks.js"

const checksums = ["off", "xxh128"] as const

/** How a block may look to who made it: it can be used again. */
interface Reused {
  hash: bigint
  data: AlignedBuffer.AlignedBuffer
  priority?: number
}

const reused = (hash: number): Effect.Effect<Reused> => Effect.map(block(hash), ({ data, hash }) => ({ hash, data }))

describe("an engine or a disk that fails", () => {
  for (const kind of ["read", "write"] as const) {
    it.scopedLive(`a ${kind} whose call dies ends with an error, and the store with it`, () => {
      let dies = false
      const dying = Layer.effect(
        Syscalls,
        Effect.map(Syscalls, (kernel): Syscalls => {
          const call: Syscalls["pread"] = (...args) =>
            dies
              ? Effect.dieMessage("a call that dies")
              : kind === "read"
              ? kernel.pread(...args)
              : kernel.pwrite(...args)
          return kind === "read" ? { ...kernel, pread: call } : { ...kernel, pwrite: call }
        })
      )
      return Effect.gen(function*() {
        const disk = yield* storage(4)
        const scope = yield* Scope.make()
        const store = yield* Scope.extend(
          BlockStore.make([disk], { blockBytes: page, maxBlocksInFlight: 1 }),
          scope
        )
        yield* offload(store, [1])
        dies = true
        if (kind === "read") assert.strictEqual(yield* onboard(store, 1), "IoFailed")
        else assert.deepStrictEqual(yield* offload(store, [2, 3]), ["IoFailed", "IoFailed"])
        dies = false
        assert.deepStrictEqual(yield* offload(store, [4]), ["stored"])
        assert.deepStrictEqual(yield* hashes(store), kind === "read" ? [4] : [1, 4])
        yield* assertSettled(store)
        yield* Scope.close(scope, Exit.void)
      }).pipe(Effect.provide(Layer.merge(
        Layer.provideMerge(IoEngine.layerSyscalls, Layer.provide(dying, SimulatedSyscalls.layer())),
        silent
      )))
    })
  }

  for (const failing of ["read", "write"] as const) {
    it.scopedLive(`${failing}s alone that fail take the storage out, after as many as the limit`, () =>
      Effect.gen(function*() {
        let broken = false
        const { disk } = yield* memory(40, { fails: (kind) => broken && kind === failing ? ioFailed(kind) : undefined })
        const store = yield* BlockStore.make([disk], { blockBytes: page, failureLimit: 5 })
        yield* offload(store, numbers(20))
        broken = true
        const both = (number: number) =>
          Effect.zip(offload(store, [100 + number]), onboard(store, failing === "read" ? number : 19))
        const wrong: readonly [ReadonlyArray<string>, number | string] = failing === "read"
          ? [["stored"], "IoFailed"]
          : [["IoFailed"], 0]
        const assertWrong = (number: number) =>
          Effect.map(both(number), (results) => assert.deepStrictEqual<unknown>(results, wrong))
        for (const number of numbers(4)) yield* assertWrong(number)
        // One that succeeds counts, of the same kind.
        broken = false
        yield* both(5)
        broken = true
        for (const number of [6, 7, 8, 9]) yield* assertWrong(number)
        assert.isFalse((yield* store.stats).storages[0]?.failed)
        yield* failing === "read" ? onboard(store, 10) : offload(store, [110])
        assert.isTrue((yield* store.stats).storages[0]?.failed)
        assert.deepStrictEqual(yield* offload(store, [500]), ["NoStorageLeft"])
        assert.strictEqual(yield* onboard(store, 19), "BlockNotFound")
        yield* until(Effect.map(store.stats, ({ blocks }) => blocks === 0))
        yield* assertSettled(store)
      }).pipe(Effect.provide(simulated())))
  }

  it.scopedLive("a transfer that throws ends its batch with that, and leaves nothing behind", () =>
    Effect.gen(function*() {
      let throws = false
      const { disk } = yield* memory(4, {
        begin: () => {
          if (!throws) return
          throws = false
          throw new TypeError("thrown by an engine")
        }
      })
      const store = yield* BlockStore.make([disk], { blockBytes: page, maxBlocksInFlight: 1 })
      yield* offload(store, [1])
      const diedOf = <A, E>(effect: Effect.Effect<A, E>) =>
        Effect.gen(function*() {
          throws = true
          const exit = yield* Effect.exit(effect)
          assert.isTrue(Exit.isFailure(exit) && exit.cause._tag === "Die", String(exit))
          assert.deepInclude(yield* store.stats, { pinned: 0, inFlight: 0 })
          yield* assertSettled(store)
        })
      yield* diedOf(offload(store, [2, 3]))
      // Nobody waits for a write that will never end.
      assert.deepStrictEqual(yield* offload(store, [2]), ["stored"])
      yield* diedOf(onboard(store, 1))
      assert.strictEqual(yield* onboard(store, 2), 0)
      assert.deepStrictEqual(yield* offload(store, [4, 5]), ["stored", "stored"])
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("an interrupted batch does not begin again what ended on a storage that was taken out", () =>
    Effect.gen(function*() {
      let gone = false
      const first = yield* memory(4, {
        holds: (kind) => kind === "write",
        fails: (kind) => kind === "read" && gone ? new StorageClosed({ path: "/gone" }) : undefined
      })
      let begun = 0
      const second = yield* memory(4, {
        holds: (kind) => {
          if (kind === "write") begun += 1
          return kind === "write"
        }
      })
      const store = yield* BlockStore.make([first.disk, second.disk], { blockBytes: page })
      const before = yield* Effect.fork(offload(store, [1, 2]))
      yield* until(Effect.sync(() => first.held.length === 1 && second.held.length === 1))
      first.release()
      second.release()
      yield* Fiber.join(before)
      const batch = yield* Effect.fork(offload(store, [10]))
      yield* until(Effect.sync(() => first.held.length === 1))
      const interrupting = yield* Effect.fork(Fiber.interrupt(batch))
      yield* turns(3)
      gone = true
      for (const hash of [1, 2]) yield* onboard(store, hash)
      assert.isTrue((yield* store.stats).storages[0]?.failed)
      begun = 0
      first.release()
      assert.isTrue(Exit.isInterrupted(yield* Fiber.join(interrupting)))
      assert.strictEqual(begun, 0)
      assert.isFalse(yield* store.has(10n))
      yield* until(Effect.map(store.stats, ({ storages }) => storages[0]?.blocks === 0))
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  const whatIsThere = "queryObjects" in v8
  it.scopedLive.skipIf(!whatIsThere)(
    "batches that come and go while a disk hangs do not pile up (counted by v8.queryObjects, of Node 20.13)",
    () =>
      Effect.gen(function*() {
        let hangs = false
        const { disk, release } = yield* memory(4, { holds: () => hangs })
        const store = yield* BlockStore.make([disk], { blockBytes: page, maxBlocksInFlight: 1, checksum: "off" })
        yield* offload(store, [1])
        hangs = true
        const waiting = yield* Effect.fork(onboard(store, 1))
        yield* turns(2)
        const into = yield* blank(page)
        const count = 3000
        for (let number = 0; number < count; number++) {
          const fiber = yield* Effect.fork(store.onboard([{ hash: 1n, into }]))
          yield* Effect.yieldNow()
          yield* Fiber.interrupt(fiber)
        }
        assert.isBelow(v8.queryObjects(Batch, { format: "count" }), count / 2)
        hangs = false
        release()
        assert.strictEqual(yield* Fiber.join(waiting), 0)
        yield* assertSettled(store)
      }).pipe(Effect.provide(simulated()))
  )
})

describe("memory and blocks that the caller goes on with", () => {
  const engines = {
    "a queue": simulated({ depth: 8 }),
    "calls": Layer.merge(Layer.provideMerge(IoEngine.layerSyscalls, SimulatedSyscalls.layer()), silent)
  }
  for (const [engine, layer] of Object.entries(engines)) {
    for (const checksum of checksums) {
      it.scopedLive(`one buffer for many reads loses no block: ${engine}, ${checksum}`, () =>
        Effect.gen(function*() {
          for (const maxBlocksInFlight of [1, 2, 8]) {
            const disk = yield* storage(16)
            const store = yield* BlockStore.make([disk], { blockBytes: page, maxBlocksInFlight, checksum })
            const all = numbers(8)
            yield* offload(store, all)
            const into = yield* blank(page)
            const results = told(yield* store.onboard(all.map((hash) => ({ hash: BigInt(hash), into }))))
            assert.include(results, "4096")
            assert.deepStrictEqual(results.filter((what) => what !== "4096" && what !== "BufferBusy"), [])
            assert.deepStrictEqual(yield* hashes(store), all)
            const stats = yield* store.stats
            assert.deepStrictEqual([stats.corrupted, stats.failed, stats.storages[0]?.retired], [0, 0, 0])
            for (const hash of all) assert.strictEqual(yield* onboard(store, hash), 0)
            yield* assertSettled(store)
          }
        }).pipe(Effect.provide(layer)))
    }
  }

  it.scopedLive("one buffer for many reads that end as they are begun", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.make([(yield* memory(16)).disk], { blockBytes: page, maxBlocksInFlight: 2 })
      const all = numbers(8)
      yield* offload(store, all)
      const into = yield* blank(page)
      const results = told(yield* store.onboard(all.map((hash) => ({ hash: BigInt(hash), into }))))
      assert.include(results, "4096")
      assert.deepStrictEqual(results.filter((what) => what !== "4096" && what !== "BufferBusy"), [])
      assert.deepStrictEqual(yield* hashes(store), all)
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  for (const checksum of checksums) {
    it.scopedLive(`a block whose object is used again is stored as what it was, or as what it is: ${checksum}`, () =>
      Effect.gen(function*() {
        const { disk, held, next } = yield* memory(8, { holds: (kind) => kind === "write" })
        const store = yield* BlockStore.make([disk], { blockBytes: page, maxBlocksInFlight: 1, checksum })
        const begun = yield* reused(1)
        const waiting = yield* reused(2)
        const batch = yield* Effect.fork(store.offload([begun, waiting]))
        yield* until(Effect.sync(() => held.length === 1))
        begun.hash = 3n
        begun.priority = 99
        begun.data = yield* blank(3 * page)
        const other = yield* block(4)
        waiting.hash = other.hash
        waiting.data = other.data
        next()
        yield* until(Effect.sync(() => held.length === 1))
        next()
        assert.deepStrictEqual(told(yield* Fiber.join(batch)), ["stored", "stored"])
        const there = yield* hashes(store)
        assert.isFalse(there.includes(3))
        assert.lengthOf(there, 2)
        for (const hash of there) assert.strictEqual(yield* onboard(store, hash), 0)
        yield* assertSettled(store)
      }).pipe(Effect.provide(simulated())))
  }

  const changes: ReadonlyArray<readonly [string, (blank: Reused, long: AlignedBuffer.AlignedBuffer) => void]> = [
    ["hash below 0", (block) => {
      block.hash = -7n
    }],
    ["hash above 64 bits", (block) => {
      block.hash = 2n ** 64n
    }],
    ["priority", (block) => {
      block.priority = Number.NaN
    }],
    ["length", (block, long) => {
      block.data = long
    }]
  ]
  for (const [what, change] of changes) {
    it.scopedLive(`what is no block any more when its turn comes is refused: ${what}`, () =>
      Effect.gen(function*() {
        const { disk, held, release, written } = yield* memory(4, { holds: (kind) => kind === "write" })
        const store = yield* BlockStore.make([disk], { blockBytes: page, maxBlocksInFlight: 1 })
        const changed = yield* reused(2)
        const replaced: Array<BlockStore.Block> = [yield* block(1), changed, yield* block(3)]
        const batch = yield* Effect.fork(store.offload(replaced))
        yield* until(Effect.sync(() => held.length === 1))
        const long = yield* blank(3 * page)
        change(changed, long)
        const worse = yield* reused(4)
        change(worse, long)
        replaced[2] = worse
        release()
        assert.deepStrictEqual(told(yield* Fiber.join(batch)), ["stored", "InvalidBlock", "InvalidBlock"])
        assert.deepStrictEqual(yield* hashes(store), [1])
        for (const [offset, { byteLength }] of written) {
          assert.deepStrictEqual([offset % page, byteLength], [0, page])
        }
        yield* assertSettled(store)
      }).pipe(Effect.provide(simulated())))
  }

  it.scopedLive("an array that becomes shorter meanwhile has no blocks at its end, and nothing is left behind", () =>
    Effect.gen(function*() {
      const { disk, held, release } = yield* memory(4, { holds: (kind) => kind === "write" })
      const store = yield* BlockStore.make([disk], { blockBytes: page, maxBlocksInFlight: 1 })
      const all = [...yield* blocks([1, 2, 3])]
      const batch = yield* Effect.fork(store.offload(all))
      yield* until(Effect.sync(() => held.length === 1))
      all.length = 1
      release()
      assert.deepStrictEqual(told(yield* Fiber.join(batch)), ["stored", "InvalidBlock", "InvalidBlock"])
      const again = yield* Effect.fork(offload(store, [2]))
      yield* until(Effect.sync(() => held.length === 1))
      release()
      assert.deepStrictEqual(yield* Fiber.join(again), ["stored"])
      assert.deepStrictEqual(yield* hashes(store), [1, 2])
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("a hash that is no bigint is refused, and the others go on", () =>
    Effect.gen(function*() {
      const store = yield* BlockStore.make([yield* storage(4)], { blockBytes: page })
      // What a program without types may hand over.
      const noHash: bigint = JSON.parse("5")
      const data = yield* blank(page)
      const [one, two] = [yield* block(1), yield* block(2)]
      assert.deepStrictEqual(told(yield* store.offload([one, { hash: noHash, data }, two])), [
        "stored",
        "InvalidBlock",
        "stored"
      ])
      const into = yield* blank(page)
      const read = yield* store.onboard([
        { hash: noHash, into: data },
        { hash: 1n, into }
      ])
      assert.deepStrictEqual(told(read), ["InvalidBlock", "4096"])
      for (const refused of [store.has(noHash), store.match([1n, noHash]), store.remove([1n, noHash])]) {
        assert.strictEqual(
          (yield* Effect.flip<unknown, { readonly _tag: string }, never>(refused))._tag,
          "InvalidBlock"
        )
      }
      assert.deepStrictEqual(yield* hashes(store), [1, 2])
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("what became of a block is what it was, whenever it is looked at", () =>
    Effect.gen(function*() {
      let broken = false
      const { disk } = yield* memory(1, { fails: (kind) => broken ? ioFailed(kind) : undefined })
      const store = yield* BlockStore.make([disk], { blockBytes: page, failureLimit: 1 })
      yield* offload(store, [1])
      const scope = yield* Scope.make()
      yield* Scope.extend(store.lease(1n), scope)
      const results = yield* store.offload([yield* block(2)])
      const look = () =>
        Either.match(results.get(0), { onLeft: ({ _tag, message }) => `${_tag}: ${message}`, onRight: String })
      const [failure] = results.failures
      const first = look()
      assert.isTrue(first.startsWith("StoreFull"), first)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(look(), first)
      broken = true
      yield* onboard(store, 1)
      assert.isTrue((yield* store.stats).storages[0]?.failed)
      assert.strictEqual(look(), first)
      assert.strictEqual(results.failures[0]?.error.message, failure?.error.message)
      for (const index of [-1, 0.5, 1, Number.NaN]) assert.throws(() => results.get(index), RangeError)
    }).pipe(Effect.provide(simulated())))
})

describe("storages", () => {
  it.scopedLive("are of one store at a time, each once", () =>
    Effect.gen(function*() {
      const disks = [yield* storage(4), yield* storage(4)] as const
      const options = { blockBytes: page }
      const refused = (of: Parameters<typeof BlockStore.make>[0]) =>
        Effect.map(
          Effect.flip(BlockStore.make(of, options)),
          (error) => assert.deepInclude(error, { _tag: "InvalidOption", option: "storages" })
        )
      yield* refused([disks[0], disks[0]])
      yield* refused([disks[0], disks[1], disks[0]])
      for (const _ of numbers(2)) {
        yield* Effect.scoped(Effect.gen(function*() {
          const store = yield* BlockStore.make([disks[0]], options)
          yield* refused([disks[0]])
          yield* refused([disks[1], disks[0]])
          // What was refused has taken nothing.
          yield* BlockStore.make([disks[1]], options)
          assert.deepStrictEqual(yield* offload(store, [1, 2]), ["stored", "stored"])
          yield* assertSettled(store)
        }))
      }
      yield* BlockStore.make(disks, options)
    }).pipe(Effect.provide(simulated())))
})

describe("a store that is small for what comes", () => {
  for (const checksum of checksums) {
    for (const slots of [1, 4]) {
      it.scopedLive(`is not full because of reads: ${slots}, ${checksum}`, () =>
        Effect.gen(function*() {
          let holds = false
          const { disk, held, next, release } = yield* memory(slots, { holds: (kind) => holds && kind === "read" })
          const store = yield* BlockStore.make([disk], { blockBytes: page, checksum })
          const there = numbers(slots)
          yield* offload(store, there)
          holds = true
          const reads = yield* Effect.forEach(there, (hash) => Effect.fork(onboard(store, hash)))
          yield* until(Effect.sync(() => held.length === slots))
          const write = yield* Effect.fork(offload(store, [100]))
          yield* turns(3)
          // Its place in flight goes to the write.
          next()
          yield* turns(3)
          release()
          assert.deepStrictEqual(yield* Fiber.join(write), ["stored"])
          assert.deepStrictEqual(yield* Effect.forEach(reads, Fiber.join), there.map(() => 0))
          assert.isTrue(yield* store.has(100n))
          yield* assertSettled(store)
        }).pipe(Effect.provide(simulated())))

      it.scopedLive(`is not full because of anything that comes and goes: ${slots}, ${checksum}`, () =>
        Effect.gen(function*() {
          const store = yield* BlockStore.make([yield* storage(slots)], { blockBytes: page, checksum })
          yield* Effect.forEach(numbers(300), (number) =>
            number % 2 === 0
              ? Effect.map(offload(store, [number % 14, (number + 2) % 14]), (results) =>
                assert.notInclude(results, "StoreFull"))
              : Effect.map(onboard(store, number % 14 - 1), (what) => {
                if (what !== 0) {
                  assert.strictEqual(what, "BlockNotFound")
                }
              }), { concurrency: 20, discard: true })
          yield* assertSettled(store)
        }).pipe(Effect.provide(simulated())))
    }
  }

  it.scopedLive("is not full with a storage less", () =>
    Effect.gen(function*() {
      let gone = false
      const first = yield* memory(16, { fails: () => gone ? new StorageClosed({ path: "/gone" }) : undefined })
      const second = yield* memory(16, { holds: (kind) => gone && kind === "write" })
      const store = yield* BlockStore.make([first.disk, second.disk], { blockBytes: page })
      yield* offload(store, numbers(32))
      gone = true
      const finding = yield* Effect.fork(offload(store, [500, 501]))
      yield* until(Effect.map(store.stats, ({ storages }) => storages[0]?.failed === true))
      second.release()
      yield* Fiber.join(finding)
      const batch = yield* Effect.fork(offload(store, numbers(40).map((number) => 1000 + number)))
      while (batch.unsafePoll() === null) {
        yield* turn
        second.next()
      }
      assert.deepStrictEqual(yield* Fiber.join(batch), numbers(40).map(() => "stored"))
      yield* until(Effect.map(store.stats, ({ storages }) => storages[0]?.blocks === 0))
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("is not full for writes that ended on a storage that was taken out", () =>
    Effect.gen(function*() {
      let gone = false
      let holds = false
      const first = yield* memory(4, {
        holds: (kind) => holds && kind === "write",
        fails: (kind) => kind === "read" && gone ? new StorageClosed({ path: "/gone" }) : undefined
      })
      const second = yield* memory(4, { holds: (kind) => holds && kind === "write" })
      const store = yield* BlockStore.make([first.disk, second.disk], { blockBytes: page, maxBlocksInFlight: 32 })
      yield* offload(store, [1, 2])
      holds = true
      const batch = yield* Effect.fork(offload(store, [10, 11, 12, 13, 14, 15]))
      yield* until(Effect.sync(() => first.held.length === 3 && second.held.length === 3))
      gone = true
      for (const hash of [1, 2]) yield* Effect.fork(onboard(store, hash))
      yield* until(Effect.map(store.stats, ({ storages }) => storages[0]?.failed === true))
      holds = false
      first.release()
      yield* turns(3)
      second.release()
      assert.deepStrictEqual(yield* Fiber.join(batch), numbers(6).map(() => "stored"))
      yield* until(Effect.map(store.stats, ({ storages }) => storages[0]?.blocks === 0))
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("is not full with slots less", () =>
    Effect.gen(function*() {
      let broken = true
      const { disk, next } = yield* memory(8, {
        holds: (kind) => !broken && kind === "write",
        fails: (kind) => broken ? ioFailed(kind) : undefined
      })
      const store = yield* BlockStore.make([disk], { blockBytes: page, failureLimit: 100 })
      yield* offload(store, numbers(5))
      assert.strictEqual((yield* store.stats).storages[0]?.retired, 5)
      broken = false
      const batch = yield* Effect.fork(offload(store, numbers(20)))
      while (batch.unsafePoll() === null) {
        yield* turn
        next()
      }
      assert.deepStrictEqual(yield* Fiber.join(batch), numbers(20).map(() => "stored"))
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))
})

describe("what is listed and told", () => {
  it.scopedLive("a block that is there throughout is listed once, wherever its replacements lie", () =>
    Effect.gen(function*() {
      const slots = 20_000
      const data = yield* blank(page)
      const filled = (free: ReadonlyArray<number>) =>
        Effect.gen(function*() {
          const { disk } = yield* memory(1)
          const instant = {
            ...disk,
            size: slots * page,
            unsafeTransfer: (...[, , done]: Parameters<typeof disk.unsafeTransfer>) => done(undefined)
          }
          const store = yield* BlockStore.make([instant], { blockBytes: page, checksum: "off" })
          yield* store.offload(numbers(slots - 10).map((hash) => ({ hash: BigInt(hash), data })))
          yield* store.remove(free.map(BigInt))
          return store
        })
      /** What is listed when a block is replaced after as many turns of the walk. */
      const listedWhile = (store: BlockStore.BlockStore, replaced: number, after: number) =>
        Effect.gen(function*() {
          const listing = yield* Effect.fork(store.hashes)
          yield* turns(after)
          assert.isNull(listing.unsafePoll(), "it was listed before")
          yield* store.offload([{ hash: BigInt(replaced), data }], { replace: true })
          const listed = yield* Fiber.join(listing)
          assert.strictEqual(new Set(listed).size, listed.length, "one is listed twice")
          assert.strictEqual(listed.filter((hash) => hash === BigInt(replaced)).length, 1)
          assert.strictEqual(listed.length, (yield* store.stats).blocks)
        })
      // From a slot that the walk has not reached to one that it has passed, and the other way.
      yield* listedWhile(yield* filled([0, 1, 2]), slots - 100, 1)
      yield* listedWhile(yield* filled([]), 5, 1)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("blocks that are stored while the store closes", () =>
    Effect.gen(function*() {
      const { disk, held, release } = yield* memory(4, { holds: (kind) => kind === "write" })
      const scope = yield* Scope.make()
      const store = yield* Scope.extend(BlockStore.make([disk], { blockBytes: page }), scope)
      const { events, fiber } = yield* recorded(store)
      const batch = yield* Effect.fork(offload(store, [1, 2]))
      yield* until(Effect.sync(() => held.length === 2))
      const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* turns(3)
      assert.isNull(closing.unsafePoll(), "the batch is under way")
      release()
      assert.deepStrictEqual(yield* Fiber.join(batch), ["stored", "stored"])
      yield* Fiber.join(closing)
      yield* Fiber.join(fiber)
      assert.deepStrictEqual([...events].sort(), ["Stored 1", "Stored 2"])
    }).pipe(Effect.provide(simulated())))

  it.scopedLive.each([false, true])(
    "what came before upstream failed is stored and told of, then the failure: at once %s",
    (atOnce) =>
      Effect.gen(function*() {
        for (const maxBlocksInFlight of [2, 8]) {
          const store = yield* BlockStore.make([(yield* memory(20)).disk], { blockBytes: page, maxBlocksInFlight })
          const five = Stream.fromIterable(yield* blocks([1, 2, 3, 4, 5]))
          const upstream = Stream.concat(
            atOnce ? five : Stream.mapEffect(five, (block) => Effect.as(turn, block)),
            Stream.fail("upstream")
          )
          const seen: Array<number> = []
          const failure = yield* Effect.flip(Stream.runForEach(store.offloadStream(upstream), ({ hash, result }) =>
            Effect.sync(() => {
              assert.deepStrictEqual(result, Either.right("stored" as const))
              seen.push(Number(hash))
            })))
          assert.strictEqual(failure, "upstream")
          assert.deepStrictEqual(seen, [1, 2, 3, 4, 5])
          assert.deepStrictEqual(yield* hashes(store), [1, 2, 3, 4, 5])
        }
      }).pipe(Effect.provide(simulated()))
  )

  it.scopedLive("a filter is asked once of a hash that a batch has twice", () =>
    Effect.gen(function*() {
      const asked: Array<ReadonlyArray<bigint>> = []
      const filter = yield* OffloadFilter.frequency()
      const store = yield* BlockStore.make([yield* storage(4)], { blockBytes: page }).pipe(
        Effect.provideService(OffloadFilter.OffloadFilter, {
          ...filter,
          admit: (hashes) => {
            asked.push(hashes)
            return filter.admit(hashes)
          }
        })
      )
      assert.deepStrictEqual(yield* offload(store, [1, 1, 2, 1]), numbers(4).map(() => "filtered"))
      assert.deepStrictEqual(asked, [[1n, 2n]])
      assert.deepStrictEqual([...yield* offload(store, [1, 1, 3])].sort(), ["duplicate", "filtered", "stored"])
      assert.deepStrictEqual(yield* hashes(store), [1])
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))
})

describe("a key-value store", () => {
  it.scopedLive("does not lose what was set while an older block was read", () =>
    Effect.gen(function*() {
      let holds = false
      const { disk, held, release } = yield* memory(8, { holds: (kind) => holds && kind === "read" })
      const store = yield* BlockStore.make([disk], { blockBytes: page })
      const entries = yield* Effect.provideService(keyValueStore.make({}), BlockStore.BlockStore, store)
      const key = "a key"
      // Somebody's block that is no entry.
      const data = yield* blank(page)
      fill(data.bytes, 1, 1)
      yield* store.offload([{ hash: keyValueStore.hashOfKey(Buffer.from(key)), data }])
      holds = true
      const getting = yield* Effect.fork(entries.get(key))
      yield* until(Effect.sync(() => held.length === 1))
      yield* entries.set(key, "set meanwhile")
      holds = false
      release()
      assert.isTrue(Option.isNone(yield* Fiber.join(getting)))
      assert.deepStrictEqual(yield* entries.get(key), Option.some("set meanwhile"))
    }).pipe(Effect.provide(simulated())))
})
