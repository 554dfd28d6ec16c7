/** Storms of fibres that are interrupted at any moment: afterwards the engine is whole, and nobody's memory was touched. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { readFileSync } from "node:fs"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import type { Operation } from "../../src/IoEngine.js"
import { IoEngine } from "../../src/IoEngine.js"
import { assertBytes } from "../filesystems/real.js"
import {
  describeEngines,
  descriptors,
  expected,
  filled,
  mebibyte,
  numbers,
  page,
  scratchFile,
  seed
} from "./engines.js"

const yields = (turns: number) =>
  Effect.forEach(Array.from({ length: turns }), () => Effect.yieldNow(), { discard: true })

describeEngines("interruption of", ({ layer }) => {
  it.scopedLive("thousands of fibres with pool buffers leaves every slot, buffer and byte where it was", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const random = numbers(seed)
      const depth = 8
      const byteLength = 4 * page
      const blocks = 64
      const file = yield* scratchFile(blocks * byteLength)
      const pool = yield* AlignedBuffer.pool({ buffers: 2 * depth, byteLength })
      // What a block holds tells which block it is, however often it is written.
      const whole = yield* AlignedBuffer.make(blocks * byteLength)
      for (let block = 0; block < blocks; block++) {
        whole.bytes.fill(block + 1, block * byteLength, (block + 1) * byteLength)
      }
      yield* engine.write(file, whole, 0)
      const before = descriptors()
      const [counts, mark] = [{ interrupted: 0, ended: 0 }, 0xee]
      const use = Effect.suspend(() => {
        const block = random(blocks)
        const reads = random(2) === 0
        return Effect.scoped(Effect.gen(function*() {
          const buffer = yield* pool.lease
          buffer.bytes.fill(reads ? mark : block + 1)
          yield* engine[reads ? "read" : "write"](file, buffer, block * byteLength)
          if (buffer.bytes.some((byte) => byte !== block + 1)) {
            assert.fail(`seed ${seed}: block ${block} has other bytes`)
          }
          // The lease goes on: nothing late may arrive here.
          buffer.bytes.fill(mark)
          yield* yields(random(4))
          if (buffer.bytes.some((byte) => byte !== mark)) assert.fail(`seed ${seed}: a late answer reached a buffer`)
          counts.ended += 1
        }))
      })
      for (let round = 0; round < 30; round++) {
        const fibers = yield* Effect.forEach(Array.from({ length: 60 }), () => {
          const how = random(4)
          const run = how === 0
            ? Effect.timeoutOption(use, random(5))
            : how === 1
            ? Effect.raceFirst(use, yields(random(40)))
            : use
          return Effect.fork(run)
        })
        for (const fiber of fibers) {
          if (random(3) > 0) continue
          yield* yields(random(3))
          counts.interrupted += 1
          yield* Fiber.interruptFork(fiber)
        }
        for (const exit of yield* Effect.forEach(fibers, Fiber.await)) {
          if (Exit.isFailure(exit) && !Exit.isInterrupted(exit)) yield* exit
        }
      }
      assert.isAbove(counts.interrupted, 100)
      assert.isAbove(counts.ended, 100)
      // All buffers are there, and each slot works.
      yield* Effect.scoped(Effect.gen(function*() {
        const buffers = yield* Effect.replicateEffect(Effect.timeout(pool.lease, "2 minutes"), 2 * depth)
        const results = yield* engine.batch(
          buffers.map((buffer, index): Operation => ({ kind: "read", file, buffer, offset: index * byteLength }))
        )
        assert.deepStrictEqual(results.failures, [])
      }))
      assert.deepStrictEqual(descriptors(), before)
      assertBytes(readFileSync(file.path), whole.bytes, `seed ${seed}: the file`)
    }).pipe(Effect.provide(layer({ depth: 8 }))))

  it.scopedLive("those who wait for a slot takes back what was not begun, and waits for what was", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const count = 3000
      const file = yield* scratchFile(count * page)
      const buffers = yield* Effect.forEach(
        Array.from({ length: count }, (_, index) => index),
        (index) => filled(page, index)
      )
      const operations = buffers.map((buffer, index): Operation => ({
        kind: "write",
        file,
        buffer,
        offset: index * page
      }))
      const fibers = yield* Effect.forEach(operations, (operation, index) =>
        Effect.fork(
          operation.kind !== "write" || index % 3 === 0
            ? Effect.asVoid(engine.batch([operation, operation]))
            : engine.write(file, operation.buffer, operation.offset)
        ))
      yield* Effect.yieldNow()
      yield* Fiber.interruptAll(fibers)
      const exits = yield* Effect.forEach(fibers, Fiber.await)
      assert.isAbove(exits.filter(Exit.isFailure).length, 0, "none was interrupted: nothing was tested")
      const then = readFileSync(file.path)
      const nothing = new Uint8Array(page)
      exits.forEach((exit, index) => {
        const there = then.subarray(index * page, (index + 1) * page)
        if (Exit.isSuccess(exit) || Buffer.compare(there, nothing) !== 0) {
          assertBytes(there, expected(page, index), `page ${index}`)
        }
      })
      // Nothing comes later, and no memory is kept.
      yield* Effect.forEach(buffers, (buffer) => engine.read(file, buffer, 0), { concurrency: "unbounded" })
      yield* engine.sync(file)
      assertBytes(readFileSync(file.path), then, "the file afterwards")
    }).pipe(Effect.provide(layer({ depth: 1 }))))

  it.scopedLive("one operation of many pieces waits for those that the kernel has", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const file = yield* scratchFile(16 * mebibyte)
      const whole = yield* filled(16 * mebibyte, 5)
      yield* engine.write(file, whole, 0)
      const buffer = yield* AlignedBuffer.make(16 * mebibyte)
      let cut = 0
      for (let round = 0; round < 40; round++) {
        buffer.bytes.fill(0)
        const fiber = yield* Effect.fork(engine.read(file, buffer, 0))
        yield* yields(round % 10)
        if (round % 2 === 0) yield* Effect.sleep(round / 20)
        const exit = yield* Fiber.interrupt(fiber)
        if (Exit.isFailure(exit)) cut += 1
        // It is ours again: what the kernel still did would show.
        const copy = Buffer.from(buffer.bytes)
        yield* Effect.sleep(1)
        assertBytes(buffer.bytes, copy, `round ${round}: the memory afterwards`)
        // Pieces are whole or not begun.
        for (let at = 0; at < 16 * mebibyte; at += mebibyte) {
          const piece = buffer.bytes.subarray(at, at + mebibyte)
          if (piece[8] === 0 && piece[100] === 0 && piece[mebibyte - 1] === 0) continue
          assertBytes(piece, whole.bytes.subarray(at, at + mebibyte), `round ${round}: the piece at ${at}`)
        }
        yield* engine.write(file, buffer, 16 * mebibyte)
      }
      assert.isAbove(cut, 0, "no operation was cut short: nothing was tested")
    }).pipe(Effect.provide(layer({ depth: 2 }))))
})
