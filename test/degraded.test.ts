/** A storage whose disk fails again and again leaves it alone, and finds out when it is back. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Metric from "effect/Metric"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/TestClock"
import * as AlignedBuffer from "../src/AlignedBuffer.js"
import * as BlockStore from "../src/BlockStore.js"
import * as DiskMetrics from "../src/DiskMetrics.js"
import * as DiskStorage from "../src/DiskStorage.js"
import type { BytesError, TransferError } from "../src/DiskStorageError.js"
import type { OpenDevice, OpenFile } from "../src/internal/ioQueue.js"
import { IoQueue, makeEngine, openFile } from "../src/internal/ioQueue.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import type { ErrnoCode, SyscallName } from "../src/Syscalls.js"
import { errnos } from "../src/Syscalls.js"
import { assertSettled, hashes, offload, onboard, page, silent } from "./blocks/blocks.js"
import { layer } from "./support/simulation.js"

const size = 16 * page

const turn = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

const callsOf = (...names: ReadonlyArray<SyscallName>) =>
  Effect.flatMap(
    SimulatedSyscalls.SimulatedKernel,
    ({ journal }) => Effect.map(journal, (entries) => entries.filter(({ syscall }) => names.includes(syscall)).length)
  )

/** The next `count` calls of that name fail. */
const breaks = (syscall: SyscallName, count: number, code: ErrnoCode = "EIO") =>
  Effect.gen(function*() {
    const { inject } = yield* SimulatedSyscalls.SimulatedKernel
    const before = yield* callsOf(syscall)
    for (let nth = before + 1; nth <= before + count; nth++) {
      yield* inject({ syscall, nth, outcome: { _tag: "Fail", code } })
    }
  })

const degraded = Effect.map(Metric.value(DiskMetrics.degraded), ({ value }) => value)

const tagOf = <A>(operation: Effect.Effect<A, TransferError | BytesError>) =>
  Effect.map(Effect.either(operation), Either.match({ onLeft: ({ _tag }) => _tag, onRight: () => "done" as const }))

const logged = () => {
  const lines: Array<string> = []
  const logger = Logger.make(({ logLevel, message }) => {
    if (LogLevel.greaterThanEqual(logLevel, LogLevel.Info)) lines.push(`${logLevel.label} ${String(message)}`)
  })
  return { lines, layer: Logger.replace(Logger.defaultLogger, logger) }
}

const on = (options: SimulatedSyscalls.SimulatedOptions = {}) => Effect.provide(Layer.merge(layer(options), silent))

const inBatch = (storage: DiskStorage.DiskStorage, kind: "read" | "write", buffer: AlignedBuffer.AlignedBuffer) =>
  Effect.flatMap(
    kind === "read" ? storage.readBatch([{ offset: 0, buffer }]) : storage.writeBatch([{ offset: 0, buffer }]),
    (results) => results.get(0)
  )

const unsafely = (storage: DiskStorage.DiskStorage, kind: "read" | "write", buffer: AlignedBuffer.AlignedBuffer) =>
  Effect.async<void, TransferError>((resume) =>
    storage.unsafeTransfer(
      kind,
      { offset: 0, buffer },
      (error) => resume(error === undefined ? Effect.void : Effect.fail(error))
    )
  )

describe("what counts", () => {
  it.effect("is no sync that succeeds, which it does on a disk that takes no writes, nor is one a trial", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, failureLimit: 3, retryAfter: "10 seconds" })
      const buffer = yield* AlignedBuffer.make(page)
      const write = tagOf(storage.write(0, buffer))
      yield* breaks("pwrite", 3)
      assert.deepStrictEqual([yield* write, yield* tagOf(storage.sync), yield* write], ["IoFailed", "done", "IoFailed"])
      assert.deepStrictEqual([yield* tagOf(storage.sync), yield* write], ["done", "IoFailed"])
      assert.isTrue((yield* storage.health).write.degraded)
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(yield* tagOf(storage.sync), "StorageDegraded")
      assert.deepStrictEqual([yield* write, yield* tagOf(storage.sync)], ["done", "done"])
    }).pipe(Effect.scoped, on()))

  it.effect("is no operation that has nothing to do, or whose buffer is in use", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, failureLimit: 1, retryAfter: "10 seconds" })
      const buffer = yield* AlignedBuffer.make(page)
      const nothing = yield* AlignedBuffer.slice(buffer, 0, 0)
      yield* breaks("pread", 1)
      assert.strictEqual(yield* tagOf(storage.read(0, buffer)), "IoFailed")
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(yield* tagOf(storage.read(0, nothing)), "done")
      assert.strictEqual(yield* tagOf(storage.read(0, buffer)), "done")
    }).pipe(Effect.scoped, on()))

  it.live("is nothing that waited behind another file's hung operations, and a refusal stays as it was", () =>
    Effect.gen(function*() {
      const never = new Map<number, OpenFile>()
      const device: OpenDevice = (complete) => {
        const staged: Array<readonly [number, OpenFile, number]> = []
        return {
          name: "two slots",
          slots: 2,
          stage: (slot, _kind, file, _region, _from, length) => {
            if (file.path === "/bad") never.set(slot, file)
            else staged.push([slot, file, file.path === "/good" ? length : -errnos.EIO])
          },
          submit: () => {
            for (const [slot, , result] of staged.splice(0)) complete(slot, result)
            return false
          },
          defer: (turn) => void setImmediate(turn),
          hold: () => {},
          keepsFile: () => true,
          attach: () => {},
          detach: () => {},
          close: Effect.void
        }
      }
      const options = { maxBytesInFlight: 2 ** 30, maxBytesPerSubmission: 2 ** 30, stallMillis: 1 }
      const queue = new IoQueue(device, options)
      const engine = makeEngine("two slots", () => queue)
      const file = (path: string) => engine.file(3, { path, direct: true, alignment: 1 })
      const [bad, good, broken] = yield* Effect.all([file("/bad"), file("/good"), file("/broken")])
      const pages = yield* Effect.replicateEffect(AlignedBuffer.make(page), 6)
      const [first, second, third, fourth, fifth, sixth] = pages
      if (first === undefined || second === undefined || third === undefined) return
      if (fourth === undefined || fifth === undefined || sixth === undefined) return

      const { writes } = openFile(broken)
      writes.limit = 1
      writes.toWait = (tries) => tries ? 1234 : 0
      yield* Effect.exit(engine.write(broken, fourth, 0))
      const refusals = yield* engine.batch([{ kind: "write", file: broken, buffer: fourth, offset: 0 }])
      writes.inARow = 0
      assert.deepInclude(Either.flip(refusals.get(0)).pipe(Either.getOrThrow), {
        _tag: "StorageDegraded",
        failures: 1,
        retryAfterMillis: 1234
      })

      const waiting = yield* Effect.fork(engine.batch([
        ...[first, second].map((buffer) => ({ kind: "write" as const, file: bad, buffer, offset: 0 })),
        ...[third, fifth, sixth].map((buffer) => ({ kind: "write" as const, file: good, buffer, offset: 0 }))
      ]))
      yield* turn
      for (let epoch = 0; epoch < 4; epoch++) queue.watch(1)
      const results = yield* Fiber.join(waiting)
      assert.deepStrictEqual(results.failures.map(({ error }) => error._tag), Array(5).fill("IoStalled"))
      assert.strictEqual(openFile(bad).writes.inARow, 2)
      assert.strictEqual(openFile(good).writes.inARow, 0)
    }).pipe(Effect.scoped))
})

describe("a storage", () => {
  it.effect("leaves its disk alone after so many failures in a row, but for one operation now and then", () =>
    Effect.gen(function*() {
      const { layer: log, lines } = logged()
      yield* Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size, failureLimit: 3, retryAfter: "10 seconds" })
        const buffer = yield* AlignedBuffer.make(page)
        const read = tagOf(storage.read(0, buffer))
        const before = yield* degraded
        yield* breaks("pread", 4)
        for (let failures = 0; failures < 3; failures++) {
          assert.deepStrictEqual((yield* storage.health).read, { failures, degraded: false })
          assert.strictEqual(yield* read, "IoFailed")
        }
        const calls = yield* callsOf("pread")
        assert.strictEqual((yield* degraded) - before, 1)
        assert.deepStrictEqual((yield* storage.health).read, { failures: 3, degraded: true })
        yield* TestClock.adjust("4 seconds")
        const refused = yield* Effect.flip(storage.read(page, buffer))
        if (refused._tag !== "StorageDegraded") return assert.fail(refused.message)
        const { direction, failures, path, retryAfterMillis } = refused
        assert.deepStrictEqual([direction, failures, path, retryAfterMillis], ["read", 3, storage.path, 6000])
        assert.strictEqual(yield* callsOf("pread"), calls)
        // The other direction is none the worse.
        assert.strictEqual(yield* tagOf(storage.write(0, buffer)), "done")
        assert.strictEqual(yield* tagOf(storage.sync), "done")
        assert.deepStrictEqual((yield* storage.health).write, { failures: 0, degraded: false })

        yield* TestClock.adjust("6 seconds")
        assert.deepStrictEqual([yield* read, yield* read], ["IoFailed", "StorageDegraded"])
        yield* TestClock.adjust("9999 millis")
        assert.strictEqual(yield* read, "StorageDegraded")
        assert.strictEqual((yield* degraded) - before, 1)
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual([yield* read, yield* read], ["done", "done"])
        assert.deepStrictEqual((yield* storage.health).read, { failures: 0, degraded: false })
        assert.strictEqual(yield* degraded, before)
        assert.lengthOf(lines, 2)
        assert.match(lines[0] ?? "", /^WARN .*too often/)
        assert.match(lines[1] ?? "", /^INFO .*works again/)
      }).pipe(Effect.scoped, Effect.provide(Layer.merge(layer(), log)))
    }))

  it.effect("refuses whatever would read, or write, and makes no call for it", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, failureLimit: 2 })
      const buffer = yield* AlignedBuffer.make(page)
      yield* breaks("pread", 2)
      yield* breaks("fdatasync", 1)
      yield* breaks("pwrite", 1, "ENOSPC")
      assert.strictEqual(yield* tagOf(storage.sync), "IoFailed")
      assert.strictEqual(yield* tagOf(storage.write(0, buffer)), "IoFailed")
      for (let turn = 0; turn < 2; turn++) assert.strictEqual(yield* tagOf(storage.readBytes(1, 7)), "IoFailed")
      const calls = yield* callsOf("pread", "pwrite", "fdatasync")
      const ways: Record<string, Effect.Effect<unknown, TransferError | BytesError>> = {
        read: storage.read(0, buffer),
        readBatch: inBatch(storage, "read", buffer),
        "unsafe read": unsafely(storage, "read", buffer),
        readBytes: storage.readBytes(0, 10),
        stream: Stream.runDrain(storage.stream({ offset: 0, length: size })),
        write: storage.write(0, buffer),
        writeBatch: inBatch(storage, "write", buffer),
        "unsafe write": unsafely(storage, "write", buffer),
        "writeBytes of a page": storage.writeBytes(0, new Uint8Array(page)),
        "writeBytes of less": storage.writeBytes(0, new Uint8Array(10)),
        sink: Stream.run(Stream.make(new Uint8Array(page)), storage.sink(0)),
        sync: storage.sync
      }
      for (const [way, use] of Object.entries(ways)) assert.strictEqual(yield* tagOf(use), "StorageDegraded", way)
      assert.strictEqual(yield* callsOf("pread", "pwrite", "fdatasync"), calls)
      // What needs no disk is as before, and the buffer is the caller's.
      assert.strictEqual(yield* tagOf(storage.read(size, buffer)), "OutOfBounds")
      assert.strictEqual(yield* tagOf(storage.readBytes(0, 0)), "done")
      yield* storage.close
      assert.strictEqual(yield* tagOf(storage.read(0, buffer)), "StorageClosed")
    }).pipe(Effect.scoped, on()))

  it.effect("counts what fails in a row, and nothing else", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, failureLimit: 3 })
      const never = yield* DiskStorage.make({ size, failureLimit: Infinity })
      const buffer = yield* AlignedBuffer.make(page)
      const failures = Effect.map(storage.health, ({ read }) => read.failures)
      for (let round = 0; round < 3; round++) {
        yield* breaks("pread", 2)
        assert.deepStrictEqual([yield* tagOf(storage.read(0, buffer)), yield* failures], ["IoFailed", 1])
        assert.deepStrictEqual([yield* tagOf(storage.read(0, buffer)), yield* failures], ["IoFailed", 2])
        assert.deepStrictEqual([yield* tagOf(storage.read(1, buffer)), yield* failures], ["Misaligned", 2])
        const { inject } = yield* SimulatedSyscalls.SimulatedKernel
        yield* inject({
          syscall: "pread",
          nth: (yield* callsOf("pread")) + 1,
          outcome: { _tag: "Late", duration: "1 second" }
        })
        const slow = yield* Effect.fork(tagOf(storage.read(0, buffer)))
        yield* Effect.yieldNow()
        assert.deepStrictEqual([yield* tagOf(storage.read(0, buffer)), yield* failures], ["BufferBusy", 2])
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual([yield* Fiber.join(slow), yield* failures], ["done", 0])
      }
      yield* breaks("pread", 100)
      for (let read = 0; read < 100; read++) assert.strictEqual(yield* tagOf(never.read(0, buffer)), "IoFailed")
      assert.deepStrictEqual((yield* never.health).read, { failures: 100, degraded: false })
    }).pipe(Effect.scoped, on()))

  it.effect("is counted while it is there", () =>
    Effect.gen(function*() {
      const before = yield* degraded
      yield* Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size, failureLimit: 1 })
        const buffer = yield* AlignedBuffer.make(page)
        yield* breaks("pread", 1)
        yield* breaks("pwrite", 1)
        yield* Effect.ignore(storage.read(0, buffer))
        yield* Effect.ignore(storage.write(0, buffer))
        assert.strictEqual((yield* degraded) - before, 2)
      }))
      assert.strictEqual(yield* degraded, before)
    }).pipe(on()))

  it.scopedLive("whose engine has a queue counts failures and what had no answer", () =>
    Effect.gen(function*() {
      for (const options of [{ fail: 1 }, { never: 1, stallTimeout: "20 millis" }] as const) {
        yield* Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size, failureLimit: 2, retryAfter: "1 hour" })
          const tags = yield* Effect.forEach([0, 1, 2], (number) =>
            Effect.flatMap(AlignedBuffer.make(page), (buffer) => tagOf(storage.write(number * page, buffer))))
          const failure = options.fail === 1 ? "IoFailed" : "IoStalled"
          assert.deepStrictEqual(tags, [failure, failure, "StorageDegraded"])
          const buffer = yield* AlignedBuffer.make(page)
          assert.strictEqual(yield* tagOf(inBatch(storage, "write", buffer)), "StorageDegraded")
          assert.strictEqual(yield* tagOf(unsafely(storage, "write", buffer)), "StorageDegraded")
          assert.strictEqual(yield* tagOf(storage.sync), "StorageDegraded")
          // It is not held by what was refused.
          assert.strictEqual(yield* tagOf(storage.read(0, buffer)), failure)
          yield* storage.close
        }).pipe(
          Effect.scoped,
          Effect.provide(Layer.provideMerge(SimulatedSyscalls.layerEngine(options), SimulatedSyscalls.layer()))
        )
      }
    }).pipe(Effect.provide(silent)))

  it.effect("takes no limit and no time that are none", () =>
    Effect.gen(function*() {
      for (const failureLimit of [0, -1, 1.5, NaN, -Infinity]) {
        const failure = yield* Effect.flip(DiskStorage.make({ size, failureLimit }))
        assert.deepStrictEqual(failure._tag === "InvalidOption" && failure.option, "failureLimit")
      }
      const failure = yield* Effect.flip(DiskStorage.make({ size, retryAfter: 0 }))
      assert.deepStrictEqual(failure._tag === "InvalidOption" && failure.option, "retryAfter")
    }).pipe(Effect.scoped, on()))
})

describe("a block store", () => {
  const make = (failureLimit: number) =>
    Effect.flatMap(
      DiskStorage.make({ size, failureLimit: 2, retryAfter: "10 seconds" }),
      (storage) => BlockStore.make([storage], { blockBytes: page, failureLimit, maxBlocksInFlight: 1 })
    )

  it.effect("loses neither blocks nor slots to what its storage refuses", () =>
    Effect.gen(function*() {
      const store = yield* make(100)
      assert.deepStrictEqual(yield* offload(store, [1, 2, 3, 4]), ["stored", "stored", "stored", "stored"])
      yield* breaks("pread", 2)
      const read = [yield* onboard(store, 1), yield* onboard(store, 2), yield* onboard(store, 3)]
      assert.deepStrictEqual(read, ["IoFailed", "IoFailed", "StorageDegraded"])
      assert.deepStrictEqual(yield* hashes(store), [3, 4])
      yield* breaks("pwrite", 2)
      const tags = ["IoFailed", "IoFailed", "StorageDegraded", "StorageDegraded"]
      assert.deepStrictEqual(yield* offload(store, [5, 6, 7, 8]), tags)
      const { failed, storages } = yield* store.stats
      assert.deepStrictEqual([failed, storages[0]?.retired, storages[0]?.failed], [7, 4, false])
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual([yield* onboard(store, 3), yield* onboard(store, 4)], [0, 0])
      assert.deepStrictEqual(yield* offload(store, [7, 8]), ["stored", "stored"])
      yield* assertSettled(store)
    }).pipe(Effect.scoped, on()))

  it.effect("takes a storage out that refuses too often", () =>
    Effect.gen(function*() {
      const store = yield* make(5)
      yield* breaks("pwrite", 2)
      const [, , third, , fifth, sixth] = yield* offload(store, [1, 2, 3, 4, 5, 6])
      assert.deepStrictEqual([third, fifth, sixth], ["StorageDegraded", "StorageDegraded", "NoStorageLeft"])
      assert.isTrue((yield* store.stats).storages[0]?.failed)
    }).pipe(Effect.scoped, on()))
})
