/** The same rounds over a kernel that answers late, in any order, short, badly or never. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/TestClock"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { Completion, Operation } from "../../src/IoEngine.js"
import { IoEngine, layerSyscalls } from "../../src/IoEngine.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"
import { Syscalls } from "../../src/Syscalls.js"
import { assertBytes } from "../filesystems/real.js"
import { expected, filled, mebibyte, numbers, page, seed } from "./engines.js"
import { follow } from "./model.js"

const simulated = (options: SimulatedSyscalls.EngineOptions) =>
  Layer.provideMerge(SimulatedSyscalls.layerEngine(options), SimulatedSyscalls.layer())

const openFile = (size: number, alignment: number) =>
  Effect.gen(function*() {
    const kernel = yield* Syscalls
    const { fd, path } = yield* Effect.orDie(kernel.mkostemp("/tmp/file-", 0))
    yield* Effect.orDie(kernel.ftruncate(fd, size))
    return yield* Effect.flatMap(IoEngine, ({ file }) => file(fd, { path, direct: true, alignment }))
  })

const size = 64 * page

describe("over a simulated kernel", () => {
  for (let round = 0; round < 40; round++) {
    const own = seed + round
    const random = numbers(own)
    const short = random(5) / 10
    const transient = random(4) / 10
    const fail = round % 2 === 0 ? 0 : random(3) / 20
    const options = {
      seed: own,
      short,
      transient,
      fail,
      depth: 1 + random(8),
      maxBytesInFlight: 1 + random(40 * page)
    }
    it.live(`rounds with seed ${own}: ${JSON.stringify(options)}`, () =>
      Effect.gen(function*() {
        const unit = page
        const file = yield* openFile(size, unit)
        yield* follow({
          seed: own,
          file,
          size,
          unit,
          maxUnits: 12,
          rounds: 3,
          interrupt: round % 3 !== 0,
          mayFail: true
        })
      }).pipe(Effect.scoped, Effect.provide(simulated(options))))
  }

  it.live("an operation of many pieces that fails says where, and what is before that is there", () =>
    Effect.gen(function*() {
      let failures = 0
      for (let round = 0; round < 20; round++) {
        yield* Effect.gen(function*() {
          const engine = yield* IoEngine
          const file = yield* openFile(8 * mebibyte, page)
          const from = yield* filled(8 * mebibyte, round)
          const end = yield* Effect.either(engine.write(file, from, 0))
          if (end._tag === "Right") return
          failures += 1
          const error = end.left
          assert.strictEqual(error._tag, "IoFailed")
          if (error._tag !== "IoFailed") return
          assert.strictEqual(error.cause?.code, "EIO")
          assert.isBelow(error.bytesDone, 8 * mebibyte)
          if (error.bytesDone === 0) return
          const into = yield* AlignedBuffer.make(8 * mebibyte)
          yield* Effect.retry(engine.read(file, into, 0), { times: 1000 })
          assertBytes(
            into.bytes.subarray(0, error.bytesDone),
            expected(8 * mebibyte, round).subarray(0, error.bytesDone),
            `seed ${round}`
          )
        }).pipe(Effect.scoped, Effect.provide(simulated({ seed: round, fail: 0.05, depth: 3 })))
      }
      assert.isAbove(failures, 0)
    }))
})

describe("calls one after the other", () => {
  it.scopedLive("tell who submitted them when one dies, and go on", () => {
    let dies = false
    const dying = Layer.effect(
      Syscalls,
      Effect.map(Syscalls, (kernel): Syscalls => ({
        ...kernel,
        pread: (...args) => dies ? Effect.dieMessage("a call that dies") : kernel.pread(...args),
        fdatasync: (fd) => dies ? Effect.dieMessage("a call that dies") : kernel.fdatasync(fd)
      }))
    )
    return Effect.gen(function*() {
      const file = yield* openFile(size, page)
      const engine = yield* IoEngine
      const buffer = yield* AlignedBuffer.make(page)
      const submitted = (operation: Operation) =>
        Effect.async<Completion>((resume) =>
          engine.unsafeSubmit(operation, (completion) => resume(Effect.succeed(completion)))
        )
      const read: Operation = { kind: "read", file, buffer, offset: page }
      dies = true
      for (const operation of [read, { kind: "sync", file } as const]) {
        const completion = yield* submitted(operation)
        assert.strictEqual(completion.operation, operation)
        assert.strictEqual(completion.bytes, 0)
        assert.deepInclude(completion.error, { _tag: "IoFailed", operation: operation.kind })
      }
      dies = false
      // The memory is free again.
      assert.deepStrictEqual(yield* submitted(read), { operation: read, bytes: page, error: undefined })
    }).pipe(Effect.provide(
      Layer.provideMerge(layerSyscalls, Layer.provideMerge(dying, SimulatedSyscalls.layer()))
    ))
  })
})

describe("a disk that never answers", () => {
  const stalled = { never: 1, stallTimeout: "10 seconds", depth: 2 } as const

  /** An engine whose scope the test closes itself. */
  const build = (options: SimulatedSyscalls.EngineOptions) =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(simulated(options), scope)
      const fileScope = yield* Scope.make()
      const file = yield* openFile(size, page).pipe(Scope.extend(fileScope), Effect.provide(context))
      return { engine: Context.get(context, IoEngine), file, fileScope, scope }
    })

  const isDone = (fiber: Fiber.RuntimeFiber<unknown, unknown>) =>
    Effect.map(fiber.status, (status) => status._tag === "Done")

  it.scoped("fails what it was given, and keeps the memory", () =>
    Effect.gen(function*() {
      const { engine, file } = yield* build(stalled)
      const buffer = yield* filled(page, 1)
      const fiber = yield* Effect.fork(Effect.flip(engine.read(file, buffer, 0)))
      yield* TestClock.adjust("9 seconds")
      assert.isFalse(yield* isDone(fiber))
      yield* TestClock.adjust("4 seconds")
      const error = yield* Fiber.join(fiber)
      assert.strictEqual(error._tag, "IoStalled")
      const again = yield* Effect.flip(engine.write(file, buffer, 0))
      assert.strictEqual(again._tag, "BufferBusy")
    }))

  it.scoped("lends no buffer again that it was given", () =>
    Effect.gen(function*() {
      const { engine, file } = yield* build(stalled)
      const pool = yield* AlignedBuffer.pool({ buffers: 1, byteLength: page })
      const fiber = yield* Effect.fork(
        Effect.scoped(Effect.flatMap(pool.lease, (buffer) => Effect.flip(engine.read(file, buffer, 0))))
      )
      yield* TestClock.adjust("15 seconds")
      assert.strictEqual((yield* Fiber.join(fiber))._tag, "IoStalled")
      const waiting = yield* Effect.fork(Effect.scoped(pool.lease))
      yield* TestClock.adjust("5 minutes")
      assert.isFalse(yield* isDone(waiting), "the kernel's memory was lent")
      yield* Fiber.interrupt(waiting)
    }))

  it.scoped("fails what waits for the slots that it keeps", () =>
    Effect.gen(function*() {
      const { engine, file } = yield* build(stalled)
      const fibers = yield* Effect.forEach([0, 1, 2, 3, 4, 5], (index) =>
        Effect.flatMap(filled(page, index), (buffer) =>
          Effect.fork(Effect.flip(engine.write(file, buffer, index * page)))))
      const batch = yield* filled(page, 9)
      const results = yield* Effect.fork(engine.batch([0, 1, 2].map((index) => ({
        kind: "write",
        file,
        buffer: batch,
        offset: index * page
      }))))
      yield* TestClock.adjust("1 minute")
      const done = yield* Effect.forEach([...fibers, results], isDone)
      assert.deepStrictEqual(
        done,
        done.map(() =>
          true
        ),
        "who waits behind a disk that hangs, waits for ever"
      )
      const errors = yield* Effect.forEach(fibers, Fiber.join)
      assert.deepStrictEqual(errors.map(({ _tag }) => _tag), errors.map(() => "IoStalled"))
      assert.strictEqual((yield* Fiber.join(results)).failures.length, 3)
      // The kernel never saw this one.
      const free = yield* filled(page, 10)
      const late = yield* Effect.fork(Effect.flip(engine.write(file, free, 0)))
      yield* TestClock.adjust("1 minute")
      assert.isTrue(yield* isDone(late))
      assert.strictEqual((yield* Fiber.join(late))._tag, "IoStalled")
    }))

  it.scoped("does not keep a file or an engine from ending", () =>
    Effect.gen(function*() {
      const { engine, file, fileScope, scope } = yield* build(stalled)
      const ends: Array<Completion> = []
      for (let index = 0; index < 5; index++) {
        const buffer = yield* filled(page, index)
        engine.unsafeSubmit({ kind: "write", file, buffer, offset: index * page }, (end) => ends.push(end))
      }
      yield* TestClock.adjust("1 second")
      const closing = yield* Effect.fork(
        Effect.zipRight(Scope.close(fileScope, Exit.void), Scope.close(scope, Exit.void))
      )
      yield* TestClock.adjust("2 minutes")
      assert.isTrue(yield* isDone(closing), "the end of the file waits for ever")
      assert.deepStrictEqual(ends.filter(({ error }) => error?._tag === "IoStalled").length, 5)
    }))

  it.scoped("does not keep an engine from ending whose files are still open", () =>
    Effect.gen(function*() {
      const { engine, file, scope } = yield* build(stalled)
      const buffer = yield* filled(page, 1)
      const fiber = yield* Effect.fork(Effect.flip(engine.write(file, buffer, 0)))
      yield* TestClock.adjust("1 second")
      const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("2 minutes")
      assert.isTrue(yield* isDone(closing), "the end of the engine waits for ever")
      assert.strictEqual((yield* Fiber.join(fiber))._tag, "IoStalled")
    }))

  it.scoped("lets an interrupted fibre go once it is given up, not before", () =>
    Effect.gen(function*() {
      const { engine, file } = yield* build(stalled)
      const buffer = yield* filled(page, 1)
      const fiber = yield* Effect.fork(engine.batch([{ kind: "read", file, buffer, offset: 0 }]))
      yield* TestClock.adjust("1 second")
      yield* Effect.fork(Fiber.interrupt(fiber))
      yield* TestClock.adjust("5 seconds")
      assert.isFalse(yield* isDone(fiber), "the kernel still had the buffer")
      yield* TestClock.adjust("10 seconds")
      assert.isTrue(yield* isDone(fiber))
    }))

  it.scoped("is not taken for one that answers, however slowly, where nobody has set a limit", () =>
    Effect.gen(function*() {
      const { engine, file } = yield* build({ never: 1 })
      const buffer = yield* filled(page, 1)
      const ended = yield* Deferred.make<void>()
      engine.unsafeSubmit({ kind: "read", file, buffer, offset: 0 }, () => Deferred.unsafeDone(ended, Effect.void))
      yield* TestClock.adjust("1 hour")
      assert.isFalse(yield* Deferred.isDone(ended))
    }))
})

describe("a storage over a simulated engine", () => {
  it.live.each(Array.from({ length: 12 }, (_, index) => seed + index))(
    "loses nothing of overlapping writes at any offsets: seed %d",
    (own) =>
      Effect.gen(function*() {
        const random = numbers(own)
        const storage = yield* DiskStorage.make({ size: 20 * page + random(page) })
        const writes = Array.from({ length: 40 }, (_, index) => {
          const offset = random(storage.size - 1)
          return { offset, byte: index + 1, length: 1 + random(Math.min(3 * page, storage.size - offset)) }
        })
        yield* Effect.forEach(
          writes,
          ({ byte, length, offset }) => storage.writeBytes(offset, new Uint8Array(length).fill(byte)),
          { concurrency: "unbounded" }
        )
        const bytes = yield* storage.readBytes(0, storage.size)
        const covering = Array.from(bytes, () => new Set<number>())
        for (const { byte, length, offset } of writes) {
          for (let at = offset; at < offset + length; at++) covering[at]?.add(byte)
        }
        bytes.forEach((byte, at) => {
          const allowed = covering[at]
          if (allowed !== undefined && allowed.size > 0 ? !allowed.has(byte) : byte !== 0) {
            assert.fail(`seed ${own}: byte ${at} is ${byte}, of ${[...allowed ?? []].join()}`)
          }
        })
        // Whole writes, one after the other: where two overlap, all of the overlap is of the later one.
        for (const a of writes) {
          for (const b of writes) {
            const start = Math.max(a.offset, b.offset)
            const end = Math.min(a.offset + a.length, b.offset + b.length)
            if (a === b || start >= end) continue
            const seen = new Set(bytes.subarray(start, end))
            assert.isFalse(seen.has(a.byte) && seen.has(b.byte), `seed ${own}: two writes are mixed`)
          }
        }
      }).pipe(Effect.scoped, Effect.provide(simulated({ seed: own, short: 0.2, transient: 0.2 })))
  )
})
