/** What an earlier life has left is taken up where it is what the last one kept, and nowhere else; no start that fails costs it. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import * as BlockStore from "../../src/BlockStore.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import { SimulatedKernel } from "../../src/SimulatedSyscalls.js"
import { layer } from "../support/simulation.js"
import {
  blank,
  block,
  blocks,
  fill,
  hashes,
  numbers,
  offload,
  onboard,
  page,
  silent,
  simulated,
  turns,
  until
} from "./blocks.js"

const keepAt = "/tmp/kept.blocks"
const size = 40 * page
const options: BlockStore.BlockStoreOptions = { blockBytes: page }

interface Life {
  readonly store: BlockStore.BlockStore
  readonly storage: DiskStorage.DiskStorage
  readonly warnings: ReadonlyArray<string>
}

/** A life on a kept storage; `keeps`: its program keeps the storage itself, after the end of the store. */
const life = <A, E, R>(
  use: (life: Life) => Effect.Effect<A, E, R>,
  { keeps = false, ...more }: Partial<BlockStore.BlockStoreOptions> & { readonly keeps?: boolean } = {}
) => {
  const warnings: Array<string> = []
  const logger = Logger.make(({ annotations, message }) => {
    warnings.push([...[message].flat().map(String), ...[...annotations].map((one) => one.join(" "))].join(", "))
  })
  return Effect.gen(function*() {
    const storage = yield* DiskStorage.make({ size, keepAt })
    if (keeps) yield* Effect.addFinalizer(() => Effect.ignore(storage.keep))
    const store = yield* BlockStore.make([storage], { ...options, ...more })
    return yield* use({ store, storage, warnings })
  }).pipe(Effect.scoped, Effect.provide(Logger.replace(Logger.defaultLogger, logger)))
}

const isEmpty = ({ store, storage, warnings }: Life) =>
  Effect.gen(function*() {
    assert.isTrue(storage.keptAt?.takenUp)
    assert.deepStrictEqual(yield* store.hashes, [])
    assert.lengthOf(warnings, 1)
    assert.include(warnings[0], "starts empty")
  })

const holds = (expected: ReadonlyArray<number>) => ({ store, storage }: Life) =>
  Effect.gen(function*() {
    assert.isTrue(storage.keptAt?.takenUp)
    assert.deepStrictEqual(yield* hashes(store), expected)
    for (const hash of expected) assert.strictEqual(yield* onboard(store, hash), 0)
  })

const kernel = Effect.flatMap(SimulatedKernel, Effect.succeed)
const journal = Effect.flatMap(kernel, ({ journal }) => journal)

describe("an index that an earlier life has left", () => {
  for (const checksum of ["xxh128", "off"] as const) {
    it.effect(`is not taken up after a life with blocks of another size: ${checksum}`, () =>
      Effect.gen(function*() {
        yield* life(({ store }) => offload(store, [7]), { checksum })
        yield* life(({ store }) =>
          Effect.gen(function*() {
            const data = yield* blank(4 * page)
            fill(data.bytes, 7, 1)
            assert.deepStrictEqual((yield* store.offload([{ hash: 7n, data }])).failures, [])
          }), { checksum, blockBytes: 4 * page })
        yield* life(isEmpty, { checksum })
      }).pipe(Effect.provide(layer())))

    const changed = ({ store }: Life) =>
      Effect.gen(function*() {
        yield* store.offload([yield* block(7, 1)], { replace: true })
        yield* store.remove([8n])
        assert.deepStrictEqual(yield* offload(store, [9]), ["stored"])
      })
    /** The next write fails. */
    const failWrite = Effect.gen(function*() {
      const control = yield* kernel
      const writes = (yield* control.journal).filter(({ syscall }) => syscall === "pwrite").length
      yield* control.inject({ syscall: "pwrite", nth: writes + 1, outcome: { _tag: "Fail", code: "EIO" } })
    })
    const lives: ReadonlyArray<readonly [string, (life: Life) => Effect.Effect<unknown, unknown, SimulatedKernel>]> = [
      ["whose index could not be written", () => failWrite],
      ["whose storage was taken out", ({ store }) =>
        Effect.zipRight(
          failWrite,
          Effect.map(offload(store, [10]), (results) => assert.deepStrictEqual(results, ["IoFailed"]))
        )],
      ["that kept its storage before the store ended", ({ storage }) => storage.keep]
    ]
    for (const [what, last] of lives) {
      it.effect(`is not taken up after a life ${what}, and kept what it wrote: ${checksum}`, () =>
        Effect.gen(function*() {
          yield* life(({ store }) => offload(store, [7, 8]), { checksum })
          yield* life((life) => Effect.zipRight(changed(life), last(life)), { checksum, keeps: true, failureLimit: 1 })
          yield* life(isEmpty, { checksum })
        }).pipe(Effect.provide(layer())))
    }

    it.effect(`is taken up after a life that ended well, and kept its storage once more: ${checksum}`, () =>
      Effect.gen(function*() {
        yield* life(({ store }) => offload(store, [7, 8]), { checksum })
        yield* life(changed, { checksum, keeps: true })
        yield* life(({ store }) =>
          Effect.gen(function*() {
            assert.deepStrictEqual(yield* hashes(store), [7, 9])
            assert.deepStrictEqual([yield* onboard(store, 7), yield* onboard(store, 9)], [1, 0])
          }), { checksum })
      }).pipe(Effect.provide(layer())))

    for (const [what, keep] of [["plain", false], ["with a mark of its own", true]] as const) {
      it.effect(`is not taken up after a life without a store, kept ${what}: ${checksum}`, () =>
        Effect.gen(function*() {
          yield* life(({ store }) => offload(store, [7]), { checksum })
          yield* Effect.scoped(Effect.gen(function*() {
            const storage = yield* DiskStorage.make({ size, keepAt })
            yield* storage.writeBytes(0, new Uint8Array(page).fill(9))
            yield* keep ? storage.keepAs(new Uint8Array(32).fill(3)) : storage.keep
          }))
          yield* life(isEmpty, { checksum })
        }).pipe(Effect.provide(layer())))
    }
  }

  it.effect("is taken up by a store of the same content, and of no other", () =>
    Effect.gen(function*() {
      yield* life(({ store }) => offload(store, [1, 2]), { content: "model one" })
      yield* life(holds([1, 2]), { content: "model one" })
      yield* life(({ store, ...rest }) => Effect.zipRight(isEmpty({ store, ...rest }), offload(store, [3])), {
        content: "model two"
      })
      yield* life(isEmpty)
      yield* life(holds([]))
      yield* life(isEmpty, { content: "model two" })
    }).pipe(Effect.provide(layer())))

  it.effect("is not of one end with another, however random numbers are drawn", () =>
    Effect.gen(function*() {
      const [a, b] = ["/tmp/a.blocks", "/tmp/b.blocks"]
      const over = <A, E>(
        paths: readonly [string, ...Array<string>],
        use: (store: BlockStore.BlockStore) => Effect.Effect<A, E>
      ) =>
        Effect.gen(function*() {
          const [first, ...others] = paths
          const make = (keepAt: string) => DiskStorage.make({ size, keepAt })
          const store = yield* BlockStore.make([yield* make(first), ...yield* Effect.forEach(others, make)], options)
          return yield* use(store)
        }).pipe(Effect.scoped, Effect.withRandom(Random.make("a seed of the program")))
      yield* over([a, b], (store) => offload(store, [1, 2]))
      yield* over(
        [a],
        (store) => Effect.flatMap(blocks([1, 2], 1), (blocks) => store.offload(blocks, { replace: true }))
      )
      yield* over([b, a], (store) => Effect.map(store.hashes, (hashes) => assert.deepStrictEqual(hashes, [])))
    }).pipe(Effect.provide(layer()), Effect.provide(silent)))
})

describe("what was kept", () => {
  it.effect("is there after a store that was interrupted while it took it up, at whatever call", () =>
    Effect.gen(function*() {
      const first = life(({ store }) => offload(store, [1, 2, 3]))
      /** How many calls a store makes as it begins. */
      const calls = yield* Effect.gen(function*() {
        yield* first
        return yield* Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size, keepAt })
          const before = (yield* journal).length
          yield* Effect.scoped(Effect.zipRight(BlockStore.make([storage], options), Effect.void))
          const reads = (yield* journal).slice(before).filter(({ syscall }) => syscall === "pread")
          return reads.length
        }))
      }).pipe(Effect.provide(layer()))
      assert.isAbove(calls, 1)
      for (const call of numbers(calls)) {
        for (const when of ["before", "during", "after"] as const) {
          yield* Effect.gen(function*() {
            yield* first
            const control = yield* kernel
            yield* Effect.scoped(Effect.gen(function*() {
              const storage = yield* DiskStorage.make({ size, keepAt })
              const before = (yield* journal).length
              const making = yield* Effect.fork(Effect.scoped(BlockStore.make([storage], options)))
              yield* control.interrupt(making, { call: before + call + 1, when })
              const exit = yield* Fiber.await(making)
              assert.isTrue(Exit.isInterrupted(exit), `${call} ${when}`)
            }))
            yield* life(holds([1, 2, 3]))
          }).pipe(Effect.provide(layer()))
        }
      }
    }))

  const bad: ReadonlyArray<readonly [string, unknown]> = [
    ["maxBlocksInFlight", 0],
    ["failureLimit", 0],
    ["eventCapacity", -1],
    ["checksum", "md5"],
    ["blockBytes", 2 ** 33],
    ["size", page - 1]
  ]
  const store = (more: object = {}) => BlockStore.layerConfig({ blockBytes: page, size: 20 * page, keepAt, ...more })
  for (const [option, value] of bad) {
    it.effect(`is left alone by a layer with a bad option: ${option}`, () =>
      Effect.gen(function*() {
        const used = <A, E>(use: (store: BlockStore.BlockStore) => Effect.Effect<A, E>, more?: object) =>
          Effect.provide(Effect.flatMap(BlockStore.BlockStore, use), store(more))
        yield* used((store) => offload(store, [1]))
        const failure = yield* Effect.flip(used(() => Effect.void, { [option]: value }))
        assert.strictEqual(failure._tag, "InvalidOption")
        yield* used((store) => Effect.map(onboard(store, 1), (version) => assert.strictEqual(version, 0)))
      }).pipe(Effect.provide(layer())))
  }

  it.effect("is there after a layer that was interrupted, at whatever call but those that erase its label", () =>
    Effect.gen(function*() {
      const first = Effect.provide(Effect.flatMap(BlockStore.BlockStore, (store) => offload(store, [1, 2])), store())
      /** Of a start that is not interrupted. */
      const calls = yield* Effect.gen(function*() {
        yield* first
        const before = (yield* journal).length
        return (yield* Effect.provide(journal, store())).slice(before).map(({ syscall }) => syscall)
      }).pipe(Effect.provide(layer()))
      const takenUp = calls.indexOf("rename")
      assert.isAbove(takenUp, 0)
      for (const [call, syscall] of calls.entries()) {
        // Before it has the name of the new one nobody has touched it; while its label is being erased it belongs to nobody.
        if (call < takenUp || syscall === "pwrite" || syscall === "fdatasync") continue
        for (const when of ["before", "during", "after"] as const) {
          yield* Effect.gen(function*() {
            const control = yield* kernel
            yield* first
            const before = (yield* journal).length
            const starting = yield* Effect.fork(Effect.provide(Effect.never, store()))
            yield* control.interrupt(starting, { call: before + call + 1, when })
            const exit = yield* Fiber.await(starting)
            assert.isTrue(Exit.isInterrupted(exit), `${call} ${when}`)
            const there = yield* Effect.provide(Effect.flatMap(BlockStore.BlockStore, hashes), store())
            assert.deepStrictEqual(there, [1, 2], `interrupted ${when} call ${call}`)
          }).pipe(Effect.provide(layer()), Effect.provide(silent))
        }
      }
    }))

  it.effect("has the blocks that somebody leases beyond the end of the store, as those used last", () =>
    Effect.gen(function*() {
      const request = yield* Scope.make()
      const capacity = yield* life(({ store }) =>
        Effect.gen(function*() {
          yield* offload(store, numbers(store.capacity))
          yield* Scope.extend(store.leasePrefix([0n, 1n]), request)
          yield* Scope.extend(store.lease(5n), request)
          return store.capacity
        })
      )
      yield* Scope.close(request, Exit.void)
      yield* life(({ store }) =>
        Effect.gen(function*() {
          assert.deepStrictEqual(yield* hashes(store), numbers(capacity))
          for (const number of numbers(capacity - 3)) yield* offload(store, [1000 + number])
          assert.deepStrictEqual((yield* hashes(store)).filter((hash) => hash < 1000), [0, 1, 5])
          for (const hash of [0, 1, 5]) assert.strictEqual(yield* onboard(store, hash), 0)
        })
      )
    }).pipe(Effect.provide(layer())))

  it.scopedLive("keeps what a reset came too late for, and says so", () =>
    Effect.gen(function*() {
      const keepAt = "/tmp/kept"
      const scope = yield* Scope.make()
      const disk = yield* Scope.extend(DiskStorage.make({ size: 40 * page, keepAt }), scope)
      const held: Array<() => void> = []
      const slow: DiskStorage.DiskStorage = {
        ...disk,
        unsafeTransfer: (kind, transfer, done) => void held.push(() => disk.unsafeTransfer(kind, transfer, done))
      }
      const store = yield* Scope.extend(BlockStore.make([slow], { blockBytes: page, maxBlocksInFlight: 1 }), scope)
      const batch = yield* Effect.fork(offload(store, [1]))
      yield* until(Effect.sync(() => held.length === 1))
      const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* turns(3)
      assert.strictEqual((yield* Effect.flip(store.reset))._tag, "StoreClosed")
      held.shift()?.()
      assert.deepStrictEqual(yield* Fiber.join(batch), ["stored"])
      yield* Fiber.join(closing)
      const next = yield* BlockStore.make([yield* DiskStorage.make({ size: 40 * page, keepAt })], { blockBytes: page })
      assert.isTrue(yield* next.has(1n))
    }).pipe(Effect.provide(simulated())))

  it.live("has nothing that was reset, where the store ended while that was under way", () =>
    Effect.gen(function*() {
      const slots = 20_000
      const path = "/tmp/many.blocks"
      const many = <A, E>(use: (store: BlockStore.BlockStore) => Effect.Effect<A, E>) =>
        Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size: slots * (page + 40), keepAt: path })
          // What the blocks hold does not matter.
          const instant: DiskStorage.DiskStorage = { ...storage, unsafeTransfer: (_, __, done) => done(undefined) }
          return yield* use(yield* BlockStore.make([instant], { ...options, checksum: "off" }))
        }))
      const data = yield* blank(page)
      const resetting = yield* many((store) =>
        Effect.gen(function*() {
          yield* store.offload(numbers(slots).map((hash) => ({ hash: BigInt(hash), data })))
          const resetting = yield* Effect.forkDaemon(store.reset)
          yield* until(Effect.map(store.stats, ({ blocks }) => blocks < slots))
          assert.isNull(resetting.unsafePoll(), "the reset was over")
          return resetting
        })
      )
      yield* Fiber.join(resetting)
      yield* many((store) => Effect.map(store.hashes, (hashes) => assert.deepStrictEqual(hashes, [])))
    }).pipe(Effect.provide(layer({ capacity: 2 ** 28 }))))
})
