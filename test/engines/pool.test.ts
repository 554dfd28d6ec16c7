/** Pools of buffers: back-pressure, order, interruption, and memory that the kernel knows. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { readFileSync } from "node:fs"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import { IoEngine } from "../../src/IoEngine.js"
import * as IoUring from "../../src/IoUring.js"
import { assertBytes } from "../filesystems/real.js"
import { describeEngines, expected, fill, mebibyte, numbers, page, scratchFile, seed, whyNotEngine } from "./engines.js"

const isWaiting = (fiber: Fiber.RuntimeFiber<unknown, unknown>) =>
  Effect.map(Fiber.status(fiber), (status) => status._tag === "Suspended")

/** Yields until the fibre waits for something. */
const untilWaiting = (fiber: Fiber.RuntimeFiber<unknown, unknown>) =>
  Effect.repeat(Effect.zipRight(Effect.yieldNow(), isWaiting(fiber)), { until: (waits) => waits, times: 10_000 })

/** A fibre yields after so many operations: the same effect, as it yields at each of its operations in turn. */
const slowed = <A, E>(effect: Effect.Effect<A, E>): ReadonlyArray<Effect.Effect<A, E>> =>
  Array.from({ length: 80 }, (_, before) => {
    // Each step in front is an odd number of operations further; the bound is small, yet above what a yield itself takes.
    let slow = effect
    for (let step = 0; step < before; step++) slow = Effect.zipRight(Effect.void, slow)
    return Effect.withMaxOpsBeforeYield(slow, 60 + before % 2)
  })

/** All buffers of the pool can be leased at once, and none of them twice. */
const assertWhole = (pool: AlignedBuffer.Pool, what = "") =>
  Effect.scoped(Effect.gen(function*() {
    const leased = new Set<number>()
    for (let index = 0; index < pool.buffers; index++) {
      const buffer = yield* Effect.timeoutOption(pool.lease, "2 minutes")
      if (Option.isNone(buffer)) return assert.fail(`${what}: ${index} of ${pool.buffers} buffers are left`)
      leased.add(buffer.value.bytes.byteOffset)
    }
    assert.strictEqual(leased.size, pool.buffers, what)
    const more = yield* Effect.fork(Effect.scoped(pool.lease))
    yield* Effect.yieldNow()
    assert.isTrue(yield* isWaiting(more), `${what}: one buffer too many`)
    yield* Fiber.interrupt(more)
  }))

describe("a pool", () => {
  it.scopedLive("lends to those who wait in the order in which they came", () =>
    Effect.gen(function*() {
      const pool = yield* AlignedBuffer.pool({ buffers: 2, byteLength: page })
      const order: Array<number> = []
      const first = yield* Scope.make()
      yield* Effect.replicateEffect(Scope.extend(pool.lease, first), 2)
      const fibers = yield* Effect.forEach(Array.from({ length: 20 }, (_, index) => index), (index) =>
        Effect.tap(
          Effect.fork(Effect.scoped(Effect.flatMap(pool.lease, () => Effect.sync(() => order.push(index))))),
          untilWaiting
        ))
      // Those who leave the line hold up nobody.
      yield* Effect.forEach(fibers.filter((_, index) => index % 3 === 0), Fiber.interrupt)
      yield* Scope.close(first, Exit.void)
      yield* Effect.forEach(fibers, Fiber.await)
      assert.deepStrictEqual(order, Array.from({ length: 20 }, (_, index) => index).filter((index) => index % 3 !== 0))
      yield* assertWhole(pool)
    }))

  it.scopedLive("loses no buffer to a fibre that is interrupted at any of its steps", () =>
    Effect.gen(function*() {
      const pool = yield* AlignedBuffer.pool({ buffers: 1, byteLength: page })
      for (const attempt of slowed(Effect.scoped(pool.lease))) {
        for (let turns = 0; turns < 4; turns++) {
          const fiber = yield* Effect.fork(attempt)
          for (let turn = 0; turn < turns; turn++) yield* Effect.yieldNow()
          yield* Fiber.interrupt(fiber)
        }
      }
      yield* assertWhole(pool)
    }))

  it.scopedLive("loses no buffer that was handed over together with the interruption", () =>
    Effect.gen(function*() {
      const pool = yield* AlignedBuffer.pool({ buffers: 1, byteLength: page })
      for (const attempt of slowed(Effect.scoped(pool.lease))) {
        for (let turns = 0; turns < 4; turns++) {
          const scope = yield* Scope.make()
          yield* Scope.extend(pool.lease, scope)
          const waiter = yield* Effect.fork(attempt)
          yield* untilWaiting(waiter)
          yield* Scope.close(scope, Exit.void)
          for (let turn = 0; turn < turns; turn++) yield* Effect.yieldNow()
          yield* Fiber.interrupt(waiter)
        }
      }
      yield* assertWhole(pool)
    }))

  it.scopedLive(
    "is whole after thousands of fibres came, used, and were interrupted at random",
    () =>
      Effect.gen(function*() {
        const random = numbers(seed)
        const pool = yield* AlignedBuffer.pool({ buffers: 3, byteLength: page })
        let users = 0
        const use = Effect.gen(function*() {
          const { bytes } = yield* pool.lease
          users += 1
          assert.isAtMost(users, 3)
          const mark = random(256)
          bytes.fill(mark)
          const turns = random(4)
          for (let turn = 0; turn < turns; turn++) yield* Effect.yieldNow()
          assert.isTrue(bytes.every((byte) => byte === mark), `seed ${seed}: two users of one buffer`)
        }).pipe(Effect.ensuring(Effect.sync(() => users = Math.max(0, users - 1))))
        for (let round = 0; round < 40; round++) {
          users = 0
          const fibers = yield* Effect.replicateEffect(Effect.fork(Effect.scoped(pool.lease)), 20)
          const others = yield* Effect.replicateEffect(Effect.fork(Effect.scoped(pool.lease)), 20)
          for (const fiber of [...fibers, ...others]) {
            const turns = random(3)
            for (let turn = 0; turn < turns; turn++) yield* Effect.yieldNow()
            if (random(2) === 0) yield* Fiber.interruptFork(fiber)
          }
          yield* Effect.forEach([...fibers, ...others], Fiber.await)
          const workers = yield* Effect.replicateEffect(Effect.fork(Effect.scoped(use)), 8)
          const exits = yield* Effect.forEach(workers, Fiber.await)
          assert.isTrue(exits.every(Exit.isSuccess), `seed ${seed}`)
          yield* assertWhole(pool, `seed ${seed}, round ${round}`)
        }
      }),
    60_000
  )

  it.scopedLive("shows nobody what its last user left there, unless they ask for it", () =>
    Effect.gen(function*() {
      const pool = yield* AlignedBuffer.pool({ buffers: 2, byteLength: 3 * page })
      const secret = 0xaa
      const is = (byte: number) => ({ bytes }: AlignedBuffer.AlignedBuffer) => bytes.every((each) => each === byte)
      const both = (lease: AlignedBuffer.Pool["lease"]) => Effect.replicateEffect(lease, pool.buffers)
      const leave = Effect.scoped(Effect.map(both(pool.leaseUninitialized), (buffers) => {
        for (const { bytes } of buffers) bytes.fill(secret)
        return buffers
      }))
      // Nobody has had them.
      assert.isTrue(yield* Effect.scoped(Effect.map(both(pool.leaseUninitialized), (some) => some.every(is(0)))))
      yield* leave
      assert.isTrue(yield* Effect.scoped(Effect.map(both(pool.lease), (some) => some.every(is(0)))))
      yield* leave
      assert.isTrue(yield* Effect.scoped(Effect.map(both(pool.leaseUninitialized), (some) => some.every(is(secret)))))
      // Written to by who has them no more.
      const stale = yield* leave
      for (const { bytes } of stale) bytes.fill(secret)
      assert.isTrue(yield* Effect.scoped(Effect.map(both(pool.lease), (some) => some.every(is(0)))))
      // Handed over to those who wait; two of them have been interrupted by then.
      const [first, second] = [yield* Scope.make(), yield* Scope.make()]
      for (const { bytes } of yield* Scope.extend(both(pool.leaseUninitialized), first)) bytes.fill(secret)
      const [gone, zeroed, alsoGone, asLeft] = yield* Effect.forEach(
        [pool.lease, pool.lease, pool.leaseUninitialized, pool.leaseUninitialized],
        (lease) => Effect.tap(Effect.fork(Scope.extend(lease, second)), untilWaiting)
      )
      if (gone === undefined || zeroed === undefined || alsoGone === undefined || asLeft === undefined) {
        return assert.fail("there are four")
      }
      yield* Effect.forEach([gone, alsoGone], Fiber.interrupt)
      yield* Scope.close(first, Exit.void)
      assert.isTrue(is(0)(yield* Fiber.join(zeroed)))
      assert.isTrue(is(secret)(yield* Fiber.join(asLeft)))
    }))

  it.effect("refuses what is no number of buffers, and what no memory can hold", () =>
    Effect.gen(function*() {
      for (const buffers of [0, -1, 1.5, NaN, Infinity]) {
        assert.strictEqual(
          (yield* Effect.flip(AlignedBuffer.pool({ buffers, byteLength: page })))._tag,
          "InvalidOption"
        )
      }
      for (const byteLength of [0, -1, 1.5, NaN, Infinity, 2 ** 32]) {
        const refused = yield* Effect.flip(AlignedBuffer.pool({ buffers: 2, byteLength }))
        assert.strictEqual(refused._tag, "BufferUnavailable")
      }
    }).pipe(Effect.scoped))
})

describeEngines("a pool and", ({ layer }) => {
  it.scopedLive("a lease that ends while an operation holds its buffer", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const length = 4 * mebibyte
      const file = yield* scratchFile(length)
      const pool = yield* AlignedBuffer.pool({ buffers: 1, byteLength: length })
      for (let round = 0; round < 5; round++) {
        const done = yield* Deferred.make<number>()
        let ended = false
        const wrote = yield* Effect.scoped(Effect.gen(function*() {
          const buffer = yield* pool.lease
          fill(buffer.bytes, round)
          engine.unsafeSubmit({ kind: "write", file, buffer, offset: 0 }, ({ bytes }) => {
            ended = true
            Deferred.unsafeDone(done, Effect.succeed(bytes))
          })
          return ended
        }))
        assert.isFalse(wrote, "the operation had ended before the lease did: nothing was tested")
        yield* Effect.scoped(Effect.flatMap(pool.lease, ({ bytes }) =>
          Effect.sync(() => {
            assert.isTrue(ended, "the buffer was lent while the kernel had it")
            bytes.fill(0)
          })))
        assert.strictEqual(yield* Deferred.await(done), length)
        const into = yield* AlignedBuffer.make(length)
        yield* engine.read(file, into, 0)
        assertBytes(into.bytes, expected(length, round), "what was written")
      }
    }).pipe(Effect.provide(layer({ depth: 2 }))))

  it.scopedLive("many pools that come and go on one engine", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const random = numbers(seed)
      const file = yield* scratchFile(mebibyte)
      for (let round = 0; round < 150; round++) {
        const buffers = 1 + random(4)
        const byteLength = page * (1 + random(8))
        yield* Effect.scoped(Effect.gen(function*() {
          const pool = yield* AlignedBuffer.pool({ buffers, byteLength })
          const leased = yield* Effect.replicateEffect(pool.lease, buffers)
          yield* Effect.forEach(leased, (buffer, index) => {
            fill(buffer.bytes, round * 8 + index)
            return engine.write(file, buffer, index * byteLength)
          }, { concurrency: "unbounded" })
          for (const { bytes } of leased) bytes.fill(0)
          yield* Effect.forEach(leased, (buffer, index) => engine.read(file, buffer, index * byteLength), {
            concurrency: "unbounded"
          })
          leased.forEach(({ bytes }, index) =>
            assertBytes(bytes, expected(byteLength, round * 8 + index), `seed ${seed}, pool ${round}`)
          )
        }))
      }
    }).pipe(Effect.provide(layer())))
})

const pinnedKib = () => Number(/^VmPin:\s*(\d+)/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1])

/** Waits until memory is pinned: its pages are brought in on another thread first. */
const assertPinned = (atLeast: number) =>
  Effect.gen(function*() {
    for (let look = 0; look < 6000 && pinnedKib() < atLeast; look++) yield* Effect.sleep("20 millis")
    assert.isAtLeast(pinnedKib(), atLeast, "it was never registered")
  })

/** Waits until the memory is not pinned any more: the kernel lets go of it behind the scenes. */
const assertUnpinned = (before: number, what: string) =>
  Effect.gen(function*() {
    for (let look = 0; look < 6000 && pinnedKib() > before; look++) yield* Effect.sleep("20 millis")
    assert.isAtMost(pinnedKib(), before, what)
  })

describe.skipIf(whyNotEngine("io_uring") !== undefined)("memory that io_uring has registered", () => {
  const byteLength = mebibyte

  it.scopedLive("is let go when its pool ends", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const file = yield* scratchFile(mebibyte)
      const before = pinnedKib()
      yield* Effect.scoped(Effect.gen(function*() {
        const pool = yield* AlignedBuffer.pool({ buffers: 2, byteLength })
        yield* engine.write(file, yield* pool.lease, 0)
        yield* assertPinned(before + 2048)
      }))
      yield* assertUnpinned(before, "after the pool")
    }).pipe(Effect.provide(IoUring.layer())))

  it.scopedLive("is let go also when all of its buffers are leased, or in use, when its pool ends", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const file = yield* scratchFile(4 * mebibyte)
      const before = pinnedKib()
      for (let round = 0; round < 3; round++) {
        const poolScope = yield* Scope.make()
        const leaseScope = yield* Scope.make()
        const pool = yield* Scope.extend(AlignedBuffer.pool({ buffers: 1, byteLength: 4 * mebibyte }), poolScope)
        const buffer = yield* Scope.extend(pool.lease, leaseScope)
        yield* engine.write(file, buffer, 0)
        yield* assertPinned(before + 4096)
        yield* Scope.close(poolScope, Exit.void)
        yield* Scope.close(leaseScope, Exit.void)
      }
      yield* assertUnpinned(before, "after the pools")
    }).pipe(Effect.provide(IoUring.layer())))

  it.scopedLive("is not registered again by an operation that goes on after the end of its pool", () =>
    Effect.gen(function*() {
      const engine = yield* IoEngine
      const length = 48 * mebibyte
      const file = yield* scratchFile(length)
      const before = pinnedKib()
      const poolScope = yield* Scope.make()
      const pool = yield* Scope.extend(AlignedBuffer.pool({ buffers: 1, byteLength: length }), poolScope)
      const buffer = yield* Scope.extend(pool.lease, poolScope)
      fill(buffer.bytes, seed)
      const done = yield* Deferred.make<number>()
      // One piece at a time: most of them are begun after the pool has ended.
      engine.unsafeSubmit(
        { kind: "write", file, buffer, offset: 0 },
        ({ bytes }) => Deferred.unsafeDone(done, Effect.succeed(bytes))
      )
      yield* Scope.close(poolScope, Exit.void)
      assert.isFalse(yield* Deferred.isDone(done), "the operation had ended before the pool did: nothing was tested")
      assert.strictEqual(yield* Deferred.await(done), length)
      yield* assertUnpinned(before, "after the operation")
      const into = yield* AlignedBuffer.make(length)
      yield* engine.read(file, into, 0)
      assertBytes(into.bytes, expected(length, seed), "what was written")
    }).pipe(Effect.provide(IoUring.layer({ depth: 1 }))))

  it.scopedLive("is let go when the engine ends before the pool", () =>
    Effect.gen(function*() {
      const before = pinnedKib()
      const pool = yield* AlignedBuffer.pool({ buffers: 1, byteLength })
      for (let round = 0; round < 3; round++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const engine = yield* IoEngine
          const file = yield* scratchFile(mebibyte)
          yield* engine.write(file, yield* pool.lease, 0)
          yield* assertPinned(before + 1024)
        })).pipe(Effect.provide(IoUring.layer()))
      }
      yield* assertUnpinned(before, "after the engines")
    }))
})
