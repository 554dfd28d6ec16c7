/** A disk that does not answer: libuv's threads wait for pipes that nobody opens, and what the engine has given them waits behind. */
import { assert, describe, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { spawnSync } from "node:child_process"
import { closeSync, open, openSync, readFileSync } from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import { IoEngine } from "../../src/IoEngine.js"
import * as LinuxSyscalls from "../../src/LinuxSyscalls.js"
import * as NodeIo from "../../src/NodeIo.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"
import { descriptor, page, temporaryDirectory } from "./engines.js"

const threads = Number(process.env["UV_THREADPOOL_SIZE"] ?? 4)

/** Keeps every thread of the pool busy until the effect that it answers with has run, or the scope ends. */
const busyPool = Effect.gen(function*() {
  const directory = yield* temporaryDirectory
  const pipes = Array.from({ length: threads }, (_, index) => join(directory, `pipe-${index}`))
  assert.strictEqual(spawnSync("mkfifo", pipes).status, 0)
  let waiting = pipes.length
  const { freed } = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const opened = new Promise<void>((resolve) => {
        for (const pipe of pipes) {
          open(pipe, "r", (_, fd) => {
            if (fd > 0) closeSync(fd)
            waiting -= 1
            if (waiting === 0) resolve()
          })
        }
      })
      let isFree = false
      const freed = Effect.suspend(() => {
        // Opened for both, a pipe lets those in who wait for either.
        const both = isFree ? [] : pipes.map((pipe) => openSync(pipe, "r+"))
        isFree = true
        return Effect.promise(() => opened.then(() => both.forEach((fd) => closeSync(fd))))
      })
      return { freed }
    }),
    ({ freed }) => freed
  )
  return freed
})

const impatient = NodeIo.layer({ stallTimeout: "2 seconds" })

describe("what the pool has and has not begun", () => {
  it.scopedLive("keeps its file open, whose number another one could get", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const engine = yield* IoEngine
      const scope = yield* Scope.make()
      const path = join(directory, "file")
      const fd = yield* descriptor(path, page)
      const file = yield* Scope.extend(engine.file(fd, { path, direct: false, alignment: 1 }), scope)
      const buffer = yield* AlignedBuffer.make(page)
      buffer.bytes.fill(7)
      const freed = yield* busyPool
      assert.strictEqual((yield* Effect.flip(engine.write(file, buffer, 0)))._tag, "IoStalled")
      assert.strictEqual((yield* Effect.flip(engine.read(file, buffer, 0)))._tag, "BufferBusy")
      const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* Effect.sleep("50 millis")
      assert.isNull(closing.unsafePoll(), "the file was let go while a thread may still come to its number")
      yield* freed
      yield* Fiber.join(closing)
      assert.isTrue(readFileSync(path).every((byte) => byte === 7))
    }).pipe(Effect.provide(impatient)))
})

describe("a storage on a disk that does not answer", () => {
  it.scopedLive("loses no later writeBytes to one that may still happen", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const storage = yield* DiskStorage.make({ size: 4 * page, directory, directIo: "disabled" })
      yield* storage.writeBytes(0, new Uint8Array(4 * page).fill(1))
      // A whole page, so that it is the write itself that the pool keeps.
      const freed = yield* busyPool
      const first = yield* Effect.flip(storage.writeBytes(0, new Uint8Array(page).fill(2)))
      assert.strictEqual(first._tag, "IoStalled")
      const second = yield* Effect.flip(storage.writeBytes(100, new Uint8Array(page).fill(3)))
      assert.strictEqual(second._tag, "IoStalled")
      yield* freed
      // The late write has been done when what comes behind it in the pool has.
      yield* Effect.repeat(Effect.option(storage.sync), { until: (done) => done._tag === "Some" })
      let third = yield* Effect.either(storage.writeBytes(100, new Uint8Array(page).fill(4)))
      for (let turn = 0; turn < 10_000 && third._tag === "Left"; turn++) {
        yield* Effect.sleep("10 millis")
        third = yield* Effect.either(storage.writeBytes(100, new Uint8Array(page).fill(4)))
      }
      assert.strictEqual(third._tag, "Right")
      const expected = new Uint8Array(4 * page).fill(1)
      expected.fill(2, 0, 100)
      expected.fill(4, 100, 100 + page)
      assert.deepStrictEqual(yield* storage.readBytes(0, 4 * page), expected)
    }).pipe(Effect.provide(Layer.merge(LinuxSyscalls.layer, impatient))))

  it.scopedLive("fails each operation in time, and can be released", () =>
    Effect.gen(function*() {
      const storage = yield* Scope.make().pipe(
        Effect.flatMap((scope) => Scope.extend(DiskStorage.make({ size: 1024 * page }), scope))
      )
      const tags = yield* Effect.forEach(Array.from({ length: 12 }, (_, index) => index), (index) => {
        const operation = index % 2 === 0
          ? Effect.asVoid(storage.readBytes(index * page, 10))
          : storage.writeBytes(index * page, new Uint8Array(10))
        return Effect.map(Effect.flip(operation), ({ _tag }) => _tag)
      })
      assert.deepStrictEqual(new Set(tags), new Set(["IoStalled"]))
      yield* storage.close
    }).pipe(Effect.provide(Layer.provideMerge(
      SimulatedSyscalls.layerEngine({ never: 1, stallTimeout: "40 millis" }),
      SimulatedSyscalls.layer()
    ))))
})

describe("a sink", () => {
  it.scopedLive("takes chunks of any number and size, empty ones too", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size: 1024 * page })
      const chunks = Array.from({ length: 30_000 }, (_, index) => new Uint8Array(index % 7).fill(index))
      const total = chunks.reduce((sum, { byteLength }) => sum + byteLength, 0)
      const sink = storage.sink(123)
      assert.strictEqual(yield* Stream.run(Stream.fromIterable(chunks), sink), total)
      // A sink can be run again.
      assert.strictEqual(yield* Stream.run(Stream.fromIterable(chunks), sink), total)
      const back = yield* Stream.runCollect(storage.stream({ offset: 123, length: total }, 1000))
      assert.deepStrictEqual(Buffer.concat(Chunk.toReadonlyArray(back)), Buffer.concat(chunks))
      assert.strictEqual(yield* Stream.run(Stream.empty, storage.sink(0)), 0)
    }).pipe(
      Effect.provide(Layer.provideMerge(SimulatedSyscalls.layerEngine({ short: 0.2 }), SimulatedSyscalls.layer()))
    ))
})
