/** Rings that are full, batches that are too long, ends of files, and what the kernel refuses: each operation is told its own end. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { closeSync, constants, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import type { Completion, Operation } from "../../src/IoEngine.js"
import { IoEngine } from "../../src/IoEngine.js"
import type { IoUringOptions } from "../../src/IoUring.js"
import * as IoUring from "../../src/IoUring.js"
import { assertBytes } from "../filesystems/real.js"
import {
  describeEngines,
  descriptor,
  expected,
  fill,
  filled,
  mebibyte,
  page,
  scratchFile,
  temporaryDirectory,
  whyNotEngine
} from "./engines.js"

/** Many pages at once, in one batch and each on its own, there and back. */
const manyPages = (count: number) =>
  Effect.gen(function*() {
    const engine = yield* IoEngine
    const file = yield* scratchFile(count * page)
    const memory = yield* AlignedBuffer.make(count * page)
    const buffers = yield* Effect.forEach(Array.from({ length: count }, (_, index) => index * page), (start) =>
      AlignedBuffer.slice(memory, start, start + page))
    const every = (kind: "read" | "write") =>
      buffers.map((buffer, index): Operation => ({ kind, file, buffer, offset: index * page }))

    fill(memory.bytes, 1)
    const wrote = yield* engine.batch(every("write"))
    assert.strictEqual(wrote.length, count)
    assert.deepStrictEqual(wrote.failures, [])
    memory.bytes.fill(0)
    assert.deepStrictEqual((yield* engine.batch(every("read"))).failures, [])
    assertBytes(memory.bytes, expected(count * page, 1), "read by one batch")

    fill(memory.bytes, 2)
    yield* Effect.forEach(buffers, (buffer, index) =>
      engine.write(file, buffer, index * page), {
      concurrency: "unbounded",
      discard: true
    })
    memory.bytes.fill(0)
    let left = count
    yield* Effect.async<void>((resume) => {
      for (const operation of every("read")) {
        engine.unsafeSubmit(operation, ({ error }) => {
          if (error !== undefined) return resume(Effect.die(error))
          left -= 1
          if (left === 0) resume(Effect.void)
        })
      }
    })
    assertBytes(memory.bytes, expected(count * page, 2), "read one by one")
  })

describe.skipIf(whyNotEngine("io_uring") !== undefined)("a small ring", () => {
  const rings: ReadonlyArray<IoUringOptions> = [
    { entries: 1, depth: 64 },
    { entries: 2, depth: 64 },
    { entries: 4, depth: 64, registeredFiles: 0 },
    { entries: 1, completionEntries: 1, depth: 64 },
    { entries: 2, completionEntries: 2, depth: 512 },
    { entries: 8, completionEntries: 8, depth: 1024, registerBuffers: false },
    { entries: 128, completionEntries: 128, depth: 2048 },
    { entries: 1024, depth: 1 }
  ]
  for (const options of rings) {
    it.scopedLive(`moves everything: ${JSON.stringify(options)}`, () =>
      Effect.provide(manyPages(3000), IoUring.layer(options)))
  }

  it.effect.each(
    [
      { entries: 0 },
      { entries: 3 },
      { entries: 65_536 },
      { entries: 1.5 },
      { entries: 8, completionEntries: 4 },
      { completionEntries: 65_537 },
      { depth: 0 },
      { depth: NaN },
      { registeredFiles: -1 },
      { maxBytesInFlight: 0 },
      { maxBytesPerSubmission: -1 },
      { stallTimeout: 0 }
    ]
  )("is refused: %j", (options) =>
    Effect.gen(function*() {
      const refused = yield* Effect.flip(Effect.provide(IoEngine, IoUring.layer(options)))
      assert.strictEqual(refused._tag, "InvalidOption")
    }))

  it.scopedLive("takes more files than it registers", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const directory = yield* temporaryDirectory
      const files = yield* Effect.forEach(Array.from({ length: 12 }, (_, index) => index), (index) =>
        Effect.gen(function*() {
          const path = join(directory, `file-${index}`)
          const file = yield* engine.file(yield* descriptor(path, 0), { path, direct: true, alignment: page })
          return { file, path, buffer: yield* filled(2 * page, index) }
        }))
      const results = yield* engine.batch(
        files.map(({ buffer, file }): Operation => ({ kind: "write", file, buffer, offset: 0 }))
      )
      assert.deepStrictEqual(results.failures, [])
      files.forEach(({ path }, index) =>
        assertBytes(readFileSync(path), expected(2 * page, index), path)
      )
    }).pipe(Effect.provide(IoUring.layer({ registeredFiles: 3 }))))
})

describeEngines("the limits of", ({ layer, name }) => {
  it.scopedLive("one slot", () => Effect.provide(manyPages(500), layer({ depth: 1 })))

  it.scopedLive("few bytes", () =>
    Effect.provide(manyPages(500), layer({ maxBytesInFlight: 1, maxBytesPerSubmission: 1 })))

  it.scopedLive("nothing at all: an empty batch, operations of no bytes", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const file = yield* scratchFile(page)
      const empty = yield* engine.batch([])
      assert.strictEqual(empty.length, 0)
      assert.deepStrictEqual(empty.failures, [])
      assert.throws(() => empty.get(0), RangeError)
      const page0 = yield* filled(page, 1)
      const nothing = yield* AlignedBuffer.slice(page0, 0, 0)
      yield* engine.read(file, nothing, 0)
      yield* engine.write(file, nothing, 10 * page)
      const ends: Array<Completion> = []
      engine.unsafeSubmit({ kind: "read", file, buffer: nothing, offset: 0 }, (end) => ends.push(end))
      assert.deepStrictEqual(ends.map(({ bytes, error }) => [bytes, error]), [[0, undefined]])
      const results = yield* engine.batch([
        { kind: "write", file, buffer: nothing, offset: 0 },
        { kind: "write", file, buffer: page0, offset: 0 },
        { kind: "sync", file },
        { kind: "read", file, buffer: nothing, offset: 5 * page }
      ])
      assert.deepStrictEqual([0, 1, 2, 3].map((index) => results.get(index)), [0, page, 0, 0].map(Either.right))
      for (const index of [-1, 4, 0.5, NaN]) assert.throws(() => results.get(index), RangeError)
      assert.strictEqual(readFileSync(file.path).byteLength, page)
    }).pipe(Effect.provide(layer())))

  for (const alignment of [page, 512, 1]) {
    it.scopedLive(`the end of a file, for transfers that go on at multiples of ${alignment}`, () =>
      Effect.gen(function*() {
        const engine = yield* IoEngine
        const size = 2 * mebibyte + page + 100
        const file = yield* scratchFile(size, alignment)
        const fd = yield* descriptor(file.path, size)
        writeSync(fd, expected(size, 7))
        const cases: ReadonlyArray<readonly [length: number, offset: number]> = [
          [page, size - 100],
          [page, size - 1],
          [page, size],
          [page, size + 1],
          [page, 2 ** 40],
          [3 * mebibyte, 0],
          [2 * mebibyte, 2 * page],
          [4 * mebibyte, size - mebibyte - 50]
        ]
        for (const [length, offset] of cases) {
          const into = yield* AlignedBuffer.make(length)
          const failure = yield* Effect.flip(engine.read(file, into, offset))
          const there = Math.max(0, size - offset)
          assert.strictEqual(failure._tag, "IoFailed", `${length} bytes at ${offset}`)
          if (failure._tag !== "IoFailed") continue
          assert.strictEqual(failure.cause, undefined)
          assert.strictEqual(failure.offset, offset)
          assert.strictEqual(failure.length, length)
          assert.strictEqual(failure.bytesDone, there, `${length} bytes at ${offset}`)
          assertBytes(
            into.bytes.subarray(0, there),
            expected(size, 7).subarray(offset, offset + there),
            `${length} bytes at ${offset}`
          )
        }
        // What ends with the file is no failure, whatever its length.
        const last = yield* AlignedBuffer.slice(yield* AlignedBuffer.make(page), 0, 100)
        yield* engine.read(file, last, size - 100)
        assertBytes(last.bytes, expected(size, 7).subarray(size - 100), "the last bytes")
      }).pipe(Effect.provide(layer())))
  }

  it.scopedLive("a read while the file is cut short, of which nothing is made up", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const file = yield* scratchFile(8 * mebibyte)
      const fd = yield* descriptor(file.path, 8 * mebibyte)
      const into = yield* AlignedBuffer.make(8 * mebibyte)
      ftruncateSync(fd, 3 * mebibyte + page)
      const failure = yield* Effect.flip(engine.read(file, into, 0))
      assert.strictEqual(failure._tag === "IoFailed" ? failure.bytesDone : -1, 3 * mebibyte + page)
    }).pipe(Effect.provide(layer())))

  it.scopedLive("what the kernel refuses, beside what it takes", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const directory = yield* temporaryDirectory
      const path = join(directory, "file")
      const options = { path, direct: true, alignment: page }
      const fd = yield* descriptor(path, 4 * page)
      const readOnly = yield* descriptor(path, 0, constants.O_RDONLY)
      const writeOnly = yield* descriptor(path, 4 * page, constants.O_WRONLY)
      const folder = yield* descriptor(directory, 0, constants.O_RDONLY)
      const good = yield* engine.file(fd, options)
      const files = {
        readOnly: yield* engine.file(readOnly, options),
        writeOnly: yield* engine.file(writeOnly, options),
        none: yield* engine.file(1_000_000, options),
        folder: yield* engine.file(folder, options)
      }
      const buffers = yield* Effect.forEach([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], (index) => filled(page, index))
      const at = (index: number) => buffers[index] ?? assert.fail("no such buffer")
      const operations: ReadonlyArray<readonly [Operation, string | undefined]> = [
        [{ kind: "write", file: good, buffer: at(0), offset: 0 }, undefined],
        [{ kind: "write", file: files.readOnly, buffer: at(1), offset: 0 }, "EBADF"],
        [{ kind: "write", file: good, buffer: at(2), offset: page }, undefined],
        [{ kind: "read", file: files.writeOnly, buffer: at(3), offset: 0 }, "EBADF"],
        [{ kind: "read", file: files.none, buffer: at(4), offset: 0 }, "EBADF"],
        [{ kind: "read", file: files.folder, buffer: at(5), offset: 0 }, name === "aio" ? "EINVAL" : "EISDIR"],
        [{ kind: "sync", file: files.none }, "EBADF"],
        [{ kind: "read", file: files.readOnly, buffer: at(6), offset: 3 * page }, undefined],
        [{ kind: "sync", file: good }, undefined],
        [{ kind: "write", file: files.writeOnly, buffer: at(7), offset: 2 * page }, undefined]
      ]
      for (let round = 0; round < 3; round++) {
        const results = yield* engine.batch(operations.map(([operation]) => operation))
        operations.forEach(([operation, code], index) => {
          const end = results.get(index)
          const told = Either.isRight(end)
            ? undefined
            : end.left._tag === "IoFailed"
            ? end.left.cause?.code
            : end.left._tag
          assert.strictEqual(told, code, `operation ${index}, ${operation.kind}`)
          if (Either.isLeft(end) && end.left._tag === "IoFailed") {
            assert.strictEqual(end.left.bytesDone, 0)
            assert.strictEqual(end.left.operation, operation.kind)
            assert.include(end.left.message, code ?? "")
          }
        })
        const failing = operations.flatMap(([, code], index) => code === undefined ? [] : [index])
        assert.deepStrictEqual(results.failures.map(({ index }) => index), failing)
      }
      const wanted = expected(page, 7)
      assertBytes(readFileSync(path).subarray(2 * page, 3 * page), wanted, "what came last")
      // None of them keeps its buffer.
      yield* Effect.forEach(buffers, (buffer) => engine.read(good, buffer, 0))
    }).pipe(Effect.provide(layer({ depth: 3 }))))

  it.scopedLive("a full disk", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const fd = yield* Effect.acquireRelease(
        Effect.sync(() => openSync("/dev/full", constants.O_WRONLY)),
        (full) => Effect.sync(() => closeSync(full))
      )
      const file = yield* engine.file(fd, { path: "/dev/full", direct: false, alignment: page })
      const buffer = yield* filled(2 * mebibyte, 1)
      const failure = yield* Effect.flip(engine.write(file, buffer, 0))
      assert.strictEqual(failure._tag === "IoFailed" ? failure.cause?.code : failure._tag, "ENOSPC")
    }).pipe(Effect.provide(layer()), Effect.scoped))

  it.scopedLive("memory that is in use, and is used again afterwards", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const file = yield* scratchFile(8 * mebibyte)
      const whole = yield* filled(8 * mebibyte, 1)
      const tag = (kind: "read" | "write", buffer: AlignedBuffer.AlignedBuffer) => {
        const ends: Array<Completion> = []
        engine.unsafeSubmit({ kind, file, buffer, offset: 0 }, (end) => ends.push(end))
        return ends
      }
      const busy = (ends: ReadonlyArray<Completion>) => ends[0]?.error?._tag === "BufferBusy"
      const part = yield* AlignedBuffer.slice(whole, 4 * page, 6 * page)
      const beside = yield* AlignedBuffer.slice(whole, 6 * page, 7 * page)
      const overlapping = yield* AlignedBuffer.slice(whole, 5 * page, 8 * page)
      const samePage = yield* AlignedBuffer.slice(whole, 5 * page, 5 * page + 10)
      const view = yield* AlignedBuffer.fromUint8Array(whole.bytes.subarray(4 * page, 4 * page + 1))
      yield* engine.write(file, whole, 0)

      // Being read into excludes everything.
      const reading = tag("read", part)
      assert.deepStrictEqual(reading, [])
      for (const other of [part, overlapping, samePage, view, whole]) {
        assert.isTrue(busy(tag("read", other)), `read of ${other.byteLength} bytes`)
        assert.isTrue(busy(tag("write", other)), `write of ${other.byteLength} bytes`)
      }
      const free = tag("read", beside)
      assert.isFalse(busy(free), "a neighbour")
      const refused = yield* Effect.flip(engine.read(file, whole, 0))
      assert.strictEqual(refused._tag, "BufferBusy")
      yield* engine.sync(file)
      for (let turn = 0; turn < 100_000 && reading.length + free.length < 2; turn++) yield* Effect.sleep(1)
      assert.deepStrictEqual([...reading, ...free].map(({ error }) => error), [undefined, undefined])

      // Being written from excludes reads alone.
      const writes = [tag("write", whole), tag("write", whole), tag("write", part), tag("write", samePage)]
      for (const ends of writes) assert.isFalse(busy(ends))
      assert.isTrue(busy(tag("read", samePage)))
      assert.isTrue(busy(tag("read", whole)))
      for (let turn = 0; turn < 100_000 && writes.some(({ length }) => length === 0); turn++) {
        // Until the last of them has ended.
        if (writes[0]?.length === 0 || writes[1]?.length === 0) assert.isTrue(busy(tag("read", whole)))
        yield* Effect.sleep(1)
      }
      assert.deepStrictEqual(writes.flat().map(({ error }) => error), writes.map(() => undefined))
      yield* engine.read(file, whole, 0)
      yield* engine.write(file, whole, 0)
      // One batch may not read twice into the same memory either.
      const twice = yield* engine.batch([
        { kind: "read", file, buffer: part, offset: 0 },
        { kind: "read", file, buffer: part, offset: page }
      ])
      assert.deepStrictEqual(twice.failures.map(({ error, index }) => [index, error._tag]), [[1, "BufferBusy"]])
    }).pipe(Effect.provide(layer())))
})
