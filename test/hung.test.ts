/** Releases that meet a disk without an answer, on simulated kernels: bounded, told, and done to the end when it answers after all. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/TestClock"
import * as AlignedBuffer from "../src/AlignedBuffer.js"
import * as DiskStorage from "../src/DiskStorage.js"
import type { ReleaseFailed } from "../src/DiskStorageError.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import type { SyscallName } from "../src/Syscalls.js"
import { page, silent } from "./blocks/blocks.js"
import { layer } from "./support/simulation.js"

const size = 16 * page
const options = { size, releaseTimeout: "10 seconds", sweep: false } as const

const on = (simulated: SimulatedSyscalls.SimulatedOptions = {}) => Effect.provide(Layer.merge(layer(simulated), silent))

const journal = Effect.flatMap(SimulatedSyscalls.SimulatedKernel, (kernel) => kernel.journal)
const leaks = Effect.flatMap(SimulatedSyscalls.SimulatedKernel, (kernel) => kernel.leaks)
const nothing = { fds: [], files: [], bytes: 0, mappings: 0 }

/** The next call of that name is answered after an hour. */
const hangs = (syscall: SyscallName) =>
  Effect.gen(function*() {
    const { inject } = yield* SimulatedSyscalls.SimulatedKernel
    const before = (yield* journal).filter((entry) => entry.syscall === syscall).length
    yield* inject({ syscall, nth: before + 1, outcome: { _tag: "Late", duration: "1 hour" } })
  })

const stepsOf = ({ failures }: ReleaseFailed) =>
  failures.map((failure) => "timeoutMillis" in failure ? [failure.step, failure.timeoutMillis] : failure.step)

/** What the release of a storage fails with, and that it takes so long as it may and no longer. */
const released = (storage: DiskStorage.DiskStorage, steps: number) =>
  Effect.gen(function*() {
    const closing = yield* Effect.fork(Effect.flip(storage.close))
    yield* TestClock.adjust(steps * 10_000 - 1)
    assert.isNull(closing.unsafePoll(), "it did not wait for the disk")
    yield* TestClock.adjust(1)
    assert.isNotNull(closing.unsafePoll(), "it waits longer than it is to")
    return yield* Fiber.join(closing)
  })

describe("a release", () => {
  it.effect("waits for a write without an answer for so long, and closes nothing that it may come to", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make(options)
      const fd = yield* storage.withFd(Effect.succeed)
      const buffer = yield* AlignedBuffer.make(page)
      yield* hangs("pwrite")
      const writing = yield* Effect.fork(storage.write(0, buffer))
      yield* Effect.yieldNow()
      const failure = yield* released(storage, 1)
      assert.deepStrictEqual(failure.failures, [{ step: "drain", fd, timeoutMillis: 10_000 }])
      assert.include(failure.message, `fd ${fd}`)
      const left = yield* leaks
      assert.deepStrictEqual(left.files, [])
      assert.include(left.fds, fd)
      assert.strictEqual((yield* Effect.flip(storage.read(0, buffer)))._tag, "StorageClosed")
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(yield* Fiber.await(writing), Exit.void)
      assert.deepStrictEqual(yield* leaks, nothing)
      const calls = (yield* journal).map(({ syscall }) => syscall)
      assert.isBelow(calls.lastIndexOf("pwrite"), calls.indexOf("close", calls.lastIndexOf("pwrite")))
    }).pipe(Effect.scoped, on()))

  it.effect("waits for bytes that are on their way, too, and not at all once they have come", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make(options)
      yield* hangs("pwrite")
      yield* Effect.fork(storage.writeBytes(0, new Uint8Array(page)))
      yield* Effect.yieldNow()
      // The door and the engine wait for the same write.
      assert.deepStrictEqual(stepsOf(yield* released(storage, 2)), [["drain", 10_000], ["drain", 10_000]])
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(yield* leaks, nothing)
    }).pipe(Effect.scoped, on()))

  it.effect("leaves an unlink without an answer, and closes behind it", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make(options)
      yield* hangs("unlink")
      assert.deepStrictEqual(stepsOf(yield* released(storage, 1)), [["unlink", 10_000]])
      const calls = (yield* journal).length
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual((yield* journal).slice(calls).map(({ syscall }) => syscall), [
        "unlink",
        "statx",
        "close",
        "close",
        "close"
      ])
      assert.deepStrictEqual(yield* leaks, nothing)
    }).pipe(Effect.scoped, on()))

  it.effect("leaves a close without an answer", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make(options)
      yield* hangs("close")
      assert.deepStrictEqual(stepsOf(yield* released(storage, 1)), [["close", 10_000]])
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(yield* leaks, nothing)
    }).pipe(Effect.scoped, on()))

  it.effect("waits for ever where it is told to, and where the descriptor is lent", () =>
    Effect.gen(function*() {
      const patient = yield* DiskStorage.make({ ...options, releaseTimeout: Infinity })
      yield* hangs("unlink")
      const closing = yield* Effect.fork(patient.close)
      yield* TestClock.adjust("59 minutes")
      assert.isNull(closing.unsafePoll())
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* Fiber.await(closing), Exit.void)
      const lending = yield* DiskStorage.make(options)
      yield* Effect.fork(lending.withFd(() => Effect.sleep("1 hour")))
      yield* Effect.yieldNow()
      const waiting = yield* Effect.fork(lending.close)
      yield* TestClock.adjust("59 minutes")
      assert.isNull(waiting.unsafePoll())
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* Fiber.await(waiting), Exit.void)
      assert.deepStrictEqual(yield* leaks, nothing)
    }).pipe(Effect.scoped, on()))

  it.effect("of an acquisition that hangs is bounded, too, however it is interrupted", () =>
    Effect.gen(function*() {
      for (const call of ["fallocate", "pwrite", "fdatasync"] as const) {
        yield* Effect.gen(function*() {
          yield* hangs(call)
          const making = yield* Effect.fork(Effect.scoped(DiskStorage.make({ ...options, fallback: "zero-fill" })))
          yield* TestClock.adjust("1 minute")
          assert.isNull(making.unsafePoll(), call)
          yield* Effect.fork(Fiber.interrupt(making))
          yield* TestClock.adjust("20 seconds")
          assert.isNotNull(making.unsafePoll(), call)
          const left = yield* leaks
          // The file, its directory and its lock.
          assert.deepStrictEqual([left.files, left.fds.length], [[], 3], call)
          yield* TestClock.adjust("1 hour")
          assert.deepStrictEqual(yield* leaks, nothing, call)
        }).pipe(on({ profile: call === "fallocate" ? "ext4" : "ext2" }))
      }
    }))

  it.scopedLive("ends with its engine, which does not wait either, and keeps the buffer", () =>
    Effect.gen(function*() {
      const engine = Layer.provideMerge(SimulatedSyscalls.layerEngine({ never: 1 }), SimulatedSyscalls.layer())
      const buffer = yield* AlignedBuffer.make(page)
      const failure = yield* Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ ...options, releaseTimeout: "20 millis" })
        yield* Effect.forkDaemon(storage.write(0, buffer))
        yield* Effect.yieldNow()
        return yield* Effect.flip(storage.close)
      }).pipe(Effect.scoped, Effect.provide(engine))
      assert.deepStrictEqual(stepsOf(failure), [["drain", 20]])
      yield* Effect.gen(function*() {
        const storage = yield* DiskStorage.make(options)
        assert.strictEqual((yield* Effect.flip(storage.read(0, buffer)))._tag, "BufferBusy")
      }).pipe(Effect.scoped, Effect.provide(layer()))
    }).pipe(Effect.provide(silent)))

  it.effect("takes no time that is none", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(DiskStorage.make({ size, releaseTimeout: 0 }))
      assert.deepStrictEqual(failure._tag === "InvalidOption" && failure.option, "releaseTimeout")
    }).pipe(Effect.scoped, on()))
})

describe("a scope that a fibre closes which is interrupted", () => {
  it.effect("waits as long as any other", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const running = yield* Effect.fork(
        Effect.zipRight(Scope.extend(DiskStorage.make(options), scope), Effect.never).pipe(
          Effect.onInterrupt(() => Scope.close(scope, Exit.void))
        )
      )
      yield* TestClock.adjust(1)
      yield* hangs("unlink")
      yield* Effect.fork(Fiber.interrupt(running))
      yield* TestClock.adjust("9999 millis")
      assert.isNull(running.unsafePoll())
      yield* TestClock.adjust("1 hour")
      assert.isNotNull(running.unsafePoll())
      assert.deepStrictEqual(yield* leaks, nothing)
    }).pipe(on()))
})
