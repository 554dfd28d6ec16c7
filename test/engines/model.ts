/** Rounds of operations in any order, single and in batches, some of them interrupted, and a copy in memory to compare with. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import type { OperationError } from "../../src/DiskStorageError.js"
import type { IoFile, Operation } from "../../src/IoEngine.js"
import { IoEngine } from "../../src/IoEngine.js"
import { fill, numbers } from "./engines.js"

export interface Plan {
  readonly seed: number
  readonly file: IoFile
  /** bytes, a multiple of `unit` */
  readonly size: number
  /** What offsets and lengths are multiples of. */
  readonly unit: number
  /** The most units of one operation. */
  readonly maxUnits: number
  readonly rounds: number
  readonly interrupt: boolean
  /** The device fails on its own: what has failed is read again. */
  readonly mayFail?: boolean
}

interface Step {
  readonly kind: "read" | "write"
  readonly offset: number
  readonly buffer: AlignedBuffer.AlignedBuffer
  /** Bytes from the start that are said to be transferred; all of them after a success, none after an interruption. */
  sure: number
}

/** What nothing here writes into a file. */
const canary = 0xa5

export interface Outcome {
  readonly succeeded: number
  readonly failed: number
  readonly interrupted: number
}

export const follow = (plan: Plan): Effect.Effect<Outcome, never, IoEngine> =>
  Effect.gen(function*() {
    const { file, maxUnits, rounds, seed, size, unit } = plan
    const engine = yield* IoEngine
    const random = numbers(seed)
    const model = new Uint8Array(size)
    const arena = yield* Effect.orDie(AlignedBuffer.make(size))
    const check = yield* Effect.orDie(AlignedBuffer.make(size))
    const untouched = new Uint8Array(arena.byteLength).fill(canary)
    const outcome = { succeeded: 0, failed: 0, interrupted: 0 }
    let round = 0
    const fail = (what: string) => assert.fail(`seed ${seed}, round ${round}: ${what}`)

    const failed = (error: OperationError): number => {
      if (error._tag !== "IoFailed" || plan.mayFail !== true) return fail(error.message)
      outcome.failed += 1
      return error.bytesDone
    }

    const reread = (buffer: AlignedBuffer.AlignedBuffer, offset: number) =>
      plan.mayFail === true
        ? Effect.orDie(Effect.retry(engine.read(file, buffer, offset), { times: 200 }))
        : Effect.orDie(engine.read(file, buffer, offset))

    const operation = ({ buffer, kind, offset }: Step): Operation => ({ kind, file, buffer, offset })

    const single = (step: Step) =>
      Effect.map(Effect.either(engine[step.kind](file, step.buffer, step.offset)), (end) => {
        step.sure = Either.isRight(end) ? step.buffer.byteLength : failed(end.left)
        if (Either.isRight(end)) outcome.succeeded += 1
      })

    const together = (steps: ReadonlyArray<Step>) =>
      Effect.map(engine.batch(steps.map(operation)), (results) => {
        assert.strictEqual(results.length, steps.length)
        steps.forEach((step, index) => {
          const end = results.get(index)
          step.sure = Either.isRight(end) ? end.right : failed(end.left)
          if (Either.isRight(end)) {
            outcome.succeeded += 1
            assert.strictEqual(end.right, step.buffer.byteLength)
          }
        })
      })

    const disturbed = (run: Effect.Effect<void>): Effect.Effect<void> => {
      const how = plan.interrupt ? random(6) : 0
      const turns = random(12)
      const pause = Effect.forEach(Array.from({ length: turns }), () => Effect.yieldNow(), { discard: true })
      const count = Effect.onInterrupt(run, () => Effect.sync(() => void (outcome.interrupted += 1)))
      switch (how) {
        case 0:
        case 1:
          return run
        case 2:
          return Effect.asVoid(Effect.timeoutOption(count, random(4)))
        case 3:
          return Effect.raceFirst(count, pause)
        default:
          return Effect.gen(function*() {
            const fiber = yield* Effect.fork(count)
            yield* pause
            const exit = yield* Fiber.interrupt(fiber)
            if (Exit.isFailure(exit) && !Exit.isInterrupted(exit)) yield* exit
          })
      }
    }

    /** What a step left in the file and in memory is what was there before, or what it moved; what it is sure of is the latter. */
    const settle = (step: Step) =>
      Effect.gen(function*() {
        const { buffer: { byteLength, bytes }, kind, offset, sure } = step
        const before = model.subarray(offset, offset + byteLength)
        const what = `${kind} of ${byteLength} bytes at ${offset}, ${sure} of them sure`
        if (kind === "read") {
          if (Buffer.compare(bytes.subarray(0, sure), before.subarray(0, sure)) !== 0) {
            return fail(`${what}: other bytes`)
          }
          return
        }
        if (sure < byteLength) {
          const now = yield* Effect.orDie(AlignedBuffer.slice(check, 0, byteLength))
          yield* reread(now, offset)
          for (let at = 0; at < byteLength; at++) {
            if (now.bytes[at] === bytes[at] || (at >= sure && now.bytes[at] === before[at])) continue
            return fail(`${what}: byte ${at} is neither old nor new`)
          }
          before.set(now.bytes)
        } else before.set(bytes)
      })

    for (; round < rounds; round++) {
      const steps: Array<Step> = []
      for (let offset = 0; offset < size;) {
        const length = Math.min(size - offset, unit * (1 + random(maxUnits)))
        // Memory starts on a page, a file's units may be smaller.
        const start = Math.ceil(offset / AlignedBuffer.pageSize) * AlignedBuffer.pageSize
        if (random(8) > 0 && start + length <= size) {
          const buffer = yield* Effect.orDie(AlignedBuffer.slice(arena, start, start + length))
          const kind = random(2) === 0 ? "read" : "write"
          if (kind === "write") {
            fill(buffer.bytes.subarray(0, length - length % 4), round * 131 + steps.length + seed, offset)
          }
          steps.push({ kind, offset, buffer, sure: 0 })
          offset = Math.max(offset + length, start + length - start % unit)
          offset += (unit - offset % unit) % unit
          // The next memory starts behind this one.
          while (Math.ceil(offset / AlignedBuffer.pageSize) * AlignedBuffer.pageSize < start + length) {
            offset += unit
          }
        } else offset += length
      }
      for (let index = steps.length - 1; index > 0; index--) {
        const other = random(index + 1)
        const [a, b] = [steps[index], steps[other]]
        if (a !== undefined && b !== undefined) [steps[index], steps[other]] = [b, a]
      }
      const runs: Array<Effect.Effect<void>> = []
      for (let index = 0; index < steps.length;) {
        const many = random(3) === 0 ? 1 + random(8) : 1
        const some = steps.slice(index, index + many)
        const [first] = some
        if (first !== undefined) runs.push(disturbed(many === 1 ? single(first) : together(some)))
        index += many
      }
      if (random(3) === 0) {
        runs.push(disturbed(Effect.map(Effect.either(engine.sync(file)), (end) => {
          if (Either.isLeft(end)) failed(end.left)
        })))
      }
      yield* Effect.all(runs, { concurrency: "unbounded", discard: true })
      yield* Effect.forEach(steps, settle, { discard: true })
      arena.bytes.fill(canary)
      for (let turn = 0; turn < 4; turn++) yield* Effect.yieldNow()
      yield* Effect.async<void>((resume) => void setImmediate(() => resume(Effect.void)))
      if (Buffer.compare(arena.bytes, untouched) !== 0) {
        fail("the kernel wrote into memory after the operation had ended")
      }
    }
    for (let offset = 0; offset < size; offset += 4 * AlignedBuffer.pageSize) {
      const buffer = yield* Effect.orDie(
        AlignedBuffer.slice(check, offset, Math.min(size, offset + 4 * AlignedBuffer.pageSize))
      )
      yield* reread(buffer, offset)
    }
    if (Buffer.compare(check.bytes.subarray(0, size), model) !== 0) fail("the file is not what was written")
    return outcome
  })
