/** The end of files and of engines: what comes afterwards reaches nothing, and nothing waits for ever. */
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { closeSync, constants, ftruncateSync, openSync, readFileSync } from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import type { Completion } from "../../src/IoEngine.js"
import { IoEngine } from "../../src/IoEngine.js"
import { assertBytes } from "../filesystems/real.js"
import {
  describeEngines,
  descriptor,
  descriptors,
  expected,
  filled,
  mebibyte,
  page,
  temporaryDirectory
} from "./engines.js"

describeEngines("the end of", ({ layer }) => {
  it.scopedLive("a file keeps its operations from the file that gets the same number", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const directory = yield* temporaryDirectory
      const [first, second] = [join(directory, "first"), join(directory, "second")]
      const flags = constants.O_RDWR | constants.O_CREAT
      const buffer = yield* filled(4 * page, 1)
      for (let round = 0; round < 20; round++) {
        const scope = yield* Scope.make()
        const fd = openSync(first, flags, 0o600)
        const file = yield* Scope.extend(engine.file(fd, { path: first, direct: true, alignment: page }), scope)
        yield* engine.write(file, buffer, 0)
        yield* Scope.close(scope, Exit.void)
        closeSync(fd)
        const again = openSync(second, flags, 0o600)
        assert.strictEqual(again, fd, "the number was not used again: nothing was tested")
        ftruncateSync(again, 0)
        try {
          const ends: Array<Completion> = []
          engine.unsafeSubmit({ kind: "write", file, buffer, offset: 0 }, (end) => ends.push(end))
          assert.strictEqual(ends[0]?.error?._tag, "StorageClosed")
          assert.strictEqual((yield* Effect.flip(engine.write(file, buffer, 0)))._tag, "StorageClosed")
          assert.strictEqual((yield* Effect.flip(engine.read(file, buffer, 0)))._tag, "StorageClosed")
          assert.strictEqual((yield* Effect.flip(engine.sync(file)))._tag, "StorageClosed")
          const results = yield* engine.batch([
            { kind: "write", file, buffer, offset: 0 },
            { kind: "sync", file }
          ])
          assert.deepStrictEqual(results.failures.map(({ error }) => error._tag), ["StorageClosed", "StorageClosed"])
          assert.strictEqual(readFileSync(second).byteLength, 0)
          // The number itself works for the file that has it now.
          yield* Effect.scoped(Effect.gen(function*() {
            const other = yield* engine.file(again, { path: second, direct: true, alignment: page })
            yield* engine.write(other, buffer, 0)
          }))
          assertBytes(readFileSync(second), expected(4 * page, 1), "the other file")
        } finally {
          closeSync(again)
        }
      }
    }).pipe(Effect.provide(layer())))

  it.scopedLive("a file waits for what is in flight and for what waits for a slot", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const path = join(yield* temporaryDirectory, "file")
      const fd = yield* descriptor(path, 0)
      const scope = yield* Scope.make()
      const file = yield* Scope.extend(engine.file(fd, { path, direct: true, alignment: page }), scope)
      const buffer = yield* filled(2 * mebibyte, 2)
      const fibers = yield* Effect.forEach(
        Array.from({ length: 16 }, (_, index) => index),
        (index) => Effect.fork(engine.write(file, buffer, index * 2 * mebibyte))
      )
      let ended = 0
      engine.unsafeSubmit({ kind: "write", file, buffer, offset: 32 * mebibyte }, () => ended += 1)
      yield* Effect.yieldNow()
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(ended, 1)
      const exits = yield* Effect.forEach(fibers, Fiber.await)
      // All were begun before the scope closed; what came after it is refused, and nothing hangs between the two.
      assert.isTrue(exits.every(Exit.isSuccess))
      assert.strictEqual(readFileSync(path).byteLength, 34 * mebibyte)
    }).pipe(Effect.provide(layer({ depth: 2 }))))

  it.scopedLive("an engine fails what is done with a file that is opened afterwards", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const engine = Context.get(yield* Layer.buildWithScope(layer(), scope), IoEngine)
      const path = join(yield* temporaryDirectory, "file")
      const fd = yield* descriptor(path, 0)
      const early = yield* engine.file(fd, { path, direct: true, alignment: page })
      yield* Scope.close(scope, Exit.void)
      const late = yield* engine.file(fd, { path, direct: true, alignment: page })
      const buffer = yield* filled(page, 3)
      for (const file of [early, late]) {
        assert.strictEqual((yield* Effect.flip(engine.write(file, buffer, 0)))._tag, "StorageClosed")
        assert.strictEqual((yield* Effect.flip(engine.sync(file)))._tag, "StorageClosed")
        const results = yield* engine.batch([{ kind: "read", file, buffer, offset: 0 }])
        assert.strictEqual(results.failures[0]?.error._tag, "StorageClosed")
      }
      assert.strictEqual(readFileSync(path).byteLength, 0)
    }))

  it.scopedLive("an engine and the end of its file may wait for the same operation", () =>
    Effect.gen(function*() {
      const engineScope = yield* Scope.make()
      const fileScope = yield* Scope.make()
      const engine = Context.get(yield* Layer.buildWithScope(layer({ depth: 1 }), engineScope), IoEngine)
      const path = join(yield* temporaryDirectory, "file")
      const fd = yield* descriptor(path, 0)
      const file = yield* Scope.extend(engine.file(fd, { path, direct: true, alignment: page }), fileScope)
      const buffer = yield* filled(48 * mebibyte, 4)
      let ended = false
      engine.unsafeSubmit({ kind: "write", file, buffer, offset: 0 }, () => ended = true)
      const closing = yield* Effect.fork(Scope.close(fileScope, Exit.void))
      yield* Effect.yieldNow()
      const ending = yield* Effect.fork(Scope.close(engineScope, Exit.void))
      yield* Effect.yieldNow()
      assert.isFalse(ended, "the operation had ended before both waited for it: nothing was tested")
      // Neither of the two waits for ever.
      yield* Effect.timeout(Effect.zipRight(Fiber.join(closing), Fiber.join(ending)), "4 minutes")
      assert.isTrue(ended)
      assertBytes(readFileSync(path), expected(48 * mebibyte, 4), "what was written")
    }))

  it.scopedLive("many engines leaves no descriptor, also of those that were interrupted while they were made", () =>
    Effect.gen(function*() {
      const use = Effect.scoped(Effect.gen(function*() {
        const engine = yield* IoEngine
        const path = join(yield* temporaryDirectory, "file")
        const fd = yield* descriptor(path, 0)
        const file = yield* engine.file(fd, { path, direct: true, alignment: page })
        yield* engine.write(file, yield* AlignedBuffer.make(page), 0)
      })).pipe(Effect.provide(layer({ depth: 4 })))
      yield* use
      const before = descriptors()
      for (let round = 0; round < 30; round++) {
        const fiber = yield* Effect.fork(Effect.withMaxOpsBeforeYield(use, 50 + round))
        for (let turn = 0; turn < round; turn++) yield* Effect.yieldNow()
        yield* Fiber.interrupt(fiber)
      }
      yield* use
      assert.deepStrictEqual(descriptors(), before)
    }))
})
