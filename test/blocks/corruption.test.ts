/** A disk that gives other bytes than it was given: what the store counts, logs and answers, until the disk is out of use. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as Scope from "effect/Scope"
import { execFileSync } from "node:child_process"
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as BlockStore from "../../src/BlockStore.js"
import * as DiskMetrics from "../../src/DiskMetrics.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { NoStorageLeft, StoreFull } from "../../src/DiskStorageError.js"
import { notLoaded } from "../../src/internal/blockChecksum.js"
import * as Linux from "../../src/Linux.js"
import {
  assertSettled,
  blank,
  block,
  ioFailed,
  memory,
  numbers,
  offload,
  onboard,
  page,
  simulated,
  until
} from "./blocks.js"
import { identify } from "./content.js"

const freshDirectory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "corruption-test-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

/** The log of an effect, a line per entry with its annotations. */
const logged = (lines: Array<string>) =>
  Logger.replace(
    Logger.defaultLogger,
    Logger.make(({ annotations, logLevel, message }) => {
      const notes = [...annotations].map(([name, value]) => `${name}=${String(value)}`)
      lines.push([logLevel.label, ...[message].flat().map(String), ...notes].join(" "))
    })
  )

/** The error that a block of that hash is refused with. */
const refusal = (store: BlockStore.BlockStore, hash: number, priority = 0) =>
  Effect.gen(function*() {
    const results = yield* store.offload([yield* block(hash, 0, priority)])
    return yield* Effect.flip(results.get(0))
  })

const isNoStorageLeft = (error: { readonly _tag: string }): error is NoStorageLeft => error._tag === "NoStorageLeft"
const isStoreFull = (error: { readonly _tag: string }): error is StoreFull => error._tag === "StoreFull"

/** Other bytes than were written, in every slot. */
const damaged = (written: ReadonlyMap<number, Uint8Array>) => {
  for (const bytes of written.values()) bytes[bytes.length - 1] = (bytes[bytes.length - 1] ?? 0) ^ 1
}

describe("corrupted blocks", () => {
  for (const engine of ["io_uring", "aio", "node"] as const) {
    it.scopedLive(`of a real file take its storage out, in health, metrics, stats, log and error: ${engine}`, () => {
      const lines: Array<string> = []
      return Effect.gen(function*() {
        const directory = yield* freshDirectory
        const storage = yield* DiskStorage.make({ size: 4 * page, directory, directIo: "preferred" })
        const store = yield* BlockStore.make([storage], { blockBytes: page })
        const errors = DiskMetrics.errors("read", "CORRUPTED")
        const before = (yield* Metric.value(errors)).count
        assert.deepStrictEqual(yield* offload(store, [1, 2, 3, 4]), ["stored", "stored", "stored", "stored"])
        const fd = openSync(storage.path, "r+")
        writeSync(fd, new Uint8Array(4 * page).fill(0xee), 0, 4 * page, 0)
        closeSync(fd)
        for (const hash of [1, 2, 3, 4]) assert.strictEqual(yield* onboard(store, hash), "BlockCorrupted")

        assert.strictEqual((yield* storage.health).corrupted, 4)
        assert.strictEqual((yield* Metric.value(errors)).count - before, 4)
        const [found] = (yield* store.stats).storages
        assert.deepInclude(found, { failed: true, retired: 4, retiredBy: { corrupted: 4, failed: 0, stalled: 0 } })
        const error = yield* refusal(store, 5)
        if (!isNoStorageLeft(error)) return assert.fail(error._tag)
        assert.deepStrictEqual(error.paths, [storage.path])
        for (const text of [error.message, found?.failure]) {
          assert.include(text, "none of its slots can be used any more")
          assert.include(text, "xxh128 checksum")
        }
        assert.notInclude(error.message, "leases")
        yield* until(Effect.sync(() => lines.some((line) => line.startsWith("ERROR"))))
        assert.isTrue(lines.some((line) => line.startsWith("WARN slots of a block store")), lines.join("\n"))
        const last = lines.find((line) => line.startsWith("ERROR")) ?? ""
        assert.include(last, "taken out of the block store, with its blocks: none of its slots")
        assert.include(last, `path=${storage.path}`)
        assert.include(last, "corrupted=4")
        yield* assertSettled(store)
      }).pipe(Effect.provide(Layer.merge(Linux.layerWith({ engine }), logged(lines))))
    })
  }

  it.scopedLive("in a row count towards failureLimit, and one that is intact ends the row", () =>
    Effect.gen(function*() {
      const first = yield* memory(40)
      const second = yield* memory(40)
      const store = yield* BlockStore.make([first.disk, second.disk], { blockBytes: page, failureLimit: 3 })
      yield* offload(store, numbers(20))
      // Blocks lie on the two in turn.
      const on = (disk: 0 | 1) => numbers(20).filter((hash) => hash % 2 === disk)
      const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0] = on(0)
      damaged(first.written)
      for (const hash of [a, b]) assert.strictEqual(yield* onboard(store, hash), "BlockCorrupted")
      damaged(first.written)
      assert.strictEqual(yield* onboard(store, c), 0)
      damaged(first.written)
      for (const hash of [d, e]) assert.strictEqual(yield* onboard(store, hash), "BlockCorrupted")
      assert.isFalse((yield* store.stats).storages[0]?.failed)
      assert.strictEqual(yield* onboard(store, f), "BlockCorrupted")
      const { corrupted, failed, storages } = yield* store.stats
      assert.deepStrictEqual([corrupted, failed], [5, 0])
      assert.include(storages[0]?.failure, "3 reads in a row failed")
      assert.deepInclude(storages[1], { failed: false, failure: undefined, retired: 0 })
      // The other one serves on.
      for (const hash of on(1)) assert.strictEqual(yield* onboard(store, hash), 0)
      assert.deepStrictEqual(yield* offload(store, [100, 101]), ["stored", "stored"])
      for (const hash of [100, 101]) assert.strictEqual(yield* onboard(store, hash), 0)
      yield* until(Effect.map(store.stats, ({ storages }) => storages[0]?.blocks === 0))
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  for (const cause of ["corrupted", "failed"] as const) {
    it.scopedLive(`that many read at once count once: one bad block leaves the disk in use, ${cause}`, () =>
      Effect.gen(function*() {
        let bad = -1
        const { disk, written } = yield* memory(16, {
          fails: (kind, offset) => cause === "failed" && kind === "read" && offset === bad ? ioFailed(kind) : undefined
        })
        const store = yield* BlockStore.make([disk], { blockBytes: page, failureLimit: 3, maxBlocksInFlight: 8 })
        yield* offload(store, numbers(8))
        const [place, bytes] = [...written][0] ?? assert.fail("nothing was written")
        bad = place
        const hash = numbers(8).find((hash) => identify(bytes, hash).wrong === undefined) ?? assert.fail()
        if (cause === "corrupted") bytes[7] = (bytes[7] ?? 0) ^ 1
        const buffers = yield* Effect.replicateEffect(blank(page), 8)
        const results = yield* store.onboard(buffers.map((into) => ({ hash: BigInt(hash), into })))
        const tag = cause === "corrupted" ? "BlockCorrupted" : "IoFailed"
        assert.include(results.failures.map(({ error }) => error._tag), tag)
        for (const other of numbers(8)) {
          assert.strictEqual(yield* onboard(store, other), other === hash ? "BlockNotFound" : 0)
        }
        const { corrupted, storages: [one] } = yield* store.stats
        assert.deepStrictEqual([corrupted, one?.retired, one?.failed], [cause === "corrupted" ? 1 : 0, 1, false])
        yield* assertSettled(store)
      }).pipe(Effect.provide(simulated())))
  }

  it.scopedLive("are logged also where the store ends at once", () => {
    const lines: Array<string> = []
    return Effect.gen(function*() {
      const { disk, written } = yield* memory(40)
      yield* Effect.scoped(Effect.gen(function*() {
        const store = yield* BlockStore.make([disk], { blockBytes: page, failureLimit: 2 })
        yield* offload(store, [1, 2])
        damaged(written)
        for (const hash of [1, 2]) assert.strictEqual(yield* onboard(store, hash), "BlockCorrupted")
      }))
      assert.deepStrictEqual(lines.map((line) => line.split(" ")[0]), ["WARN", "ERROR"], lines.join("\n"))
    }).pipe(Effect.provide(simulated()), Effect.provide(logged(lines)))
  })

  it.scopedLive("one by one are logged at 1, 2, 4, … slots alone", () => {
    const lines: Array<string> = []
    return Effect.gen(function*() {
      const { disk, written } = yield* memory(40)
      const store = yield* BlockStore.make([disk], { blockBytes: page, failureLimit: 100 })
      yield* offload(store, numbers(20))
      damaged(written)
      for (const hash of numbers(20)) assert.strictEqual(yield* onboard(store, hash), "BlockCorrupted")
      yield* until(Effect.sync(() => lines.length >= 5))
      assert.deepStrictEqual(lines.map((line) => / retired=(\d+)/.exec(line)?.[1]), ["1", "2", "4", "8", "16"])
    }).pipe(Effect.provide(simulated()), Effect.provide(logged(lines)))
  })
})

describe("a store without room", () => {
  /** What fills it, how many of its four slots that takes, and what is to be done. */
  const causes = [
    ["pinned", "end leases"],
    ["higher", "higher priority"],
    ["writing", "when the writes have ended"],
    ["retired", "replace the disk"]
  ] as const

  it.scopedLive.each(causes)(
    "names its slots by what is in the way, and a remedy that helps: %s",
    ([cause, remedy]) =>
      Effect.gen(function*() {
        let fails = false
        let holds = false
        const { disk, release } = yield* memory(4, {
          fails: (kind) => fails && kind === "write" ? ioFailed(kind) : undefined,
          holds: () => holds
        })
        const store = yield* BlockStore.make([disk], { blockBytes: page, failureLimit: 100, maxBlocksInFlight: 4 })
        const scope = yield* Scope.make()
        yield* Effect.addFinalizer(() => Effect.sync(release))
        // One slot is leased in each case, so that a storage without slots is not the cause.
        yield* offload(store, [1])
        yield* Scope.extend(store.lease(1n), scope)
        switch (cause) {
          case "pinned":
            yield* offload(store, [2, 3, 4])
            yield* Scope.extend(store.leasePrefix([2n, 3n, 4n]), scope)
            break
          case "higher":
            yield* store.offload(yield* Effect.forEach([2, 3, 4], (hash) => block(hash, 0, 9)))
            break
          case "writing":
            holds = true
            yield* Effect.fork(offload(store, [2, 3, 4]))
            yield* until(Effect.map(store.stats, ({ inFlight }) => inFlight === 3))
            break
          case "retired":
            fails = true
            yield* offload(store, [2, 3, 4])
            fails = false
        }
        const error = yield* refusal(store, 9)
        if (!isStoreFull(error)) return assert.fail(error._tag)
        const { capacity, higher, pinned, retired, writing } = error
        const expected = { pinned: 1, higher: 0, writing: 0, retired: 0 }
        expected[cause] += 3
        assert.deepStrictEqual({ capacity, higher, pinned, retired, writing }, { capacity: 4, ...expected })
        assert.include(error.message, remedy)
        for (const [other, text] of causes) {
          if (other !== cause && other !== "pinned") assert.notInclude(error.message, text)
        }
        holds = false
        release()
        yield* Scope.close(scope, yield* Effect.exit(Effect.void))
        yield* until(Effect.map(store.stats, ({ inFlight }) => inFlight === 0))
        // The lease was in the way in each case.
        assert.deepStrictEqual(yield* offload(store, [9]), ["stored"])
        yield* assertSettled(store)
      }).pipe(Effect.provide(simulated()))
  )

  it.scopedLive("whose last slot retires at the end of a lease takes its storage out", () =>
    Effect.gen(function*() {
      const { disk, written } = yield* memory(2)
      const store = yield* BlockStore.make([disk], { blockBytes: page, failureLimit: 100 })
      yield* offload(store, [1, 2])
      const scope = yield* Scope.make()
      yield* Scope.extend(store.leasePrefix([1n, 2n]), scope)
      damaged(written)
      for (const hash of [1, 2]) assert.strictEqual(yield* onboard(store, hash), "BlockCorrupted")
      assert.strictEqual((yield* refusal(store, 3))._tag, "StoreFull")
      yield* Scope.close(scope, yield* Effect.exit(Effect.void))
      assert.strictEqual((yield* refusal(store, 3))._tag, "NoStorageLeft")
      yield* assertSettled(store)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("says of storages that are closed that they are, and not that a disk is broken", () =>
    Effect.gen(function*() {
      const disk = yield* DiskStorage.make({ size: 4 * page, directIo: "preferred" })
      const store = yield* BlockStore.make([disk], { blockBytes: page })
      yield* disk.close
      yield* offload(store, [1])
      const error = yield* refusal(store, 2)
      if (!isNoStorageLeft(error)) return assert.fail(error._tag)
      assert.include(error.reasons[0], "it is closed")
      assert.include(error.reasons[0], "Keep its Scope open")
    }).pipe(Effect.provide(simulated())))
})

describe("no memory", () => {
  it("for the hasher is said to be that, and not a bad option (a process with little address space)", () => {
    // As BlockStore.make loads it; a checksum without WebAssembly memory loads all the same.
    const script = `
        import("hash-wasm").then((library) => library.createXXHash128()).then(
          () => console.log("loaded"),
          (error) => console.log(error.constructor.name, error.message)
        )`
    const limited = execFileSync(
      "bash",
      ["-c", "ulimit -v 4000000 && exec \"$@\"", "bash", process.execPath, "-e", script],
      { encoding: "utf8" }
    )
    assert.match(limited, /RangeError .*Out of memory/)
    const error = notLoaded(new RangeError(limited.trim()), "xxh128")
    assert.strictEqual(error._tag, "BufferUnavailable")
    assert.include(error.message, "No memory for the hasher of xxh128 checksums")
    assert.include(error.message, "ulimit -v")
    const missing = notLoaded(new Error("Cannot find package 'hash-wasm'"), "xxh128")
    assert.strictEqual(missing._tag, "InvalidOption")
  })
})

describe("an onboard that runs again", () => {
  it.scopedLive("lets go of no page but its own: memory that is being filled meanwhile stays busy", () =>
    Effect.gen(function*() {
      let holds = false
      const { disk, release } = yield* memory(4, { holds: (kind) => holds && kind === "read" })
      const store = yield* BlockStore.make([disk], { blockBytes: page })
      yield* offload(store, [1])
      const into = yield* blank(page)
      const again = store.onboard([{ hash: 1n, into }])
      assert.deepStrictEqual((yield* again).failures, [])
      yield* store.remove([1n])
      holds = true
      const ends: Array<string> = []
      const read = () =>
        disk.unsafeTransfer("read", { offset: 0, buffer: into }, (error) => ends.push(error?._tag ?? "read"))
      read()
      assert.deepStrictEqual((yield* again).failures.map(({ error }) => error._tag), ["BlockNotFound"])
      read()
      assert.deepStrictEqual(ends, ["BufferBusy"])
      release()
      assert.deepStrictEqual(ends, ["BufferBusy", "read"])
    }).pipe(Effect.provide(simulated())))
})

describe("one buffer for two blocks of a batch", () => {
  for (const checksum of ["off", "xxh128"] as const) {
    for (const maxBlocksInFlight of [1, 4]) {
      it.scopedLive(`is busy for the second, however many are in flight: ${checksum}, ${maxBlocksInFlight}`, () =>
        Effect.gen(function*() {
          const { disk } = yield* memory(4)
          const store = yield* BlockStore.make([disk], { blockBytes: page, checksum, maxBlocksInFlight })
          yield* offload(store, [1, 2])
          const into = yield* blank(page)
          for (const _ of [1, 2]) {
            const results = yield* store.onboard([{ hash: 1n, into }, { hash: 2n, into }])
            assert.deepStrictEqual(results.failures.map(({ error, index }) => [index, error._tag]), [[1, "BufferBusy"]])
          }
          // It is the caller's again after each batch.
          assert.deepStrictEqual((yield* store.onboard([{ hash: 2n, into }])).failures, [])
          yield* disk.read(0, into)
          yield* assertSettled(store)
        }).pipe(Effect.provide(simulated())))
    }
  }
})
