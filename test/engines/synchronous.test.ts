/**
 * The order in which an engine changes its own state and runs the caller's code. Effect 3 resumes a fibre later; Effect 4 resumes it inside
 * `resume`. A scheduler that runs each task at once makes Effect 3 do the same, so that a fibre goes on inside the callback that ends its
 * operation: it ends Scopes, leases buffers and begins operations there.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as BlockStore from "../../src/BlockStore.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import { region } from "../../src/internal/alignedBuffer.js"
import { IoQueue, makeEngine } from "../../src/internal/ioQueue.js"
import type { Device, OpenDevice } from "../../src/internal/ioQueue.js"
import type { IoFile } from "../../src/IoEngine.js"
import { IoEngine } from "../../src/IoEngine.js"
import * as LinuxSyscalls from "../../src/LinuxSyscalls.js"
import { errnos } from "../../src/Syscalls.js"
import { assertBytes } from "../filesystems/real.js"
import { describeEngines, descriptor, descriptors, expected, filled, page, temporaryDirectory } from "./engines.js"

const immediate: Scheduler.Scheduler = { shouldYield: () => false, scheduleTask: (task) => task() }

const atOnce = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>): Promise<A> =>
  new Promise((succeed, fail) => {
    Effect.runFork(Effect.scoped(effect), { scheduler: immediate }).addObserver((exit) => {
      if (Exit.isSuccess(exit)) succeed(exit.value)
      else fail(Cause.squash(exit.cause))
    })
  })

describe("the scheduler of these tests", () => {
  it("runs a fibre inside the callback that resumes it, as Effect 4 does", async () => {
    const order: Array<string> = []
    let resumed = () => {}
    const fiber = Effect.runFork(
      Effect.zipRight(
        Effect.async<void>((resume) => void (resumed = () => resume(Effect.void))),
        Effect.sync(() => order.push("the fibre"))
      ),
      { scheduler: immediate }
    )
    resumed()
    order.push("after resume")
    await Effect.runPromise(Fiber.join(fiber))
    assert.deepStrictEqual(order, ["the fibre", "after resume"])
  })
})

const depth = 8

describeEngines("a fibre that goes on inside of a completion", ({ layer, name }) => {
  const engine = (limits = {}) => Effect.map(Layer.build(layer(limits)), (built) => Context.get(built, IoEngine))
  const opened = (from: IoEngine, pages: number) =>
    Effect.gen(function*() {
      const path = `${yield* temporaryDirectory}/file`
      return yield* from.file(yield* descriptor(path, pages * page), { path, direct: true, alignment: page })
    })

  it("ends the Scope of its engine, and nothing of it is used afterwards", async () => {
    const before = descriptors()
    for (let round = 0; round < 20; round++) {
      const bytes = await atOnce(Effect.gen(function*() {
        const buffer = yield* filled(page, round)
        const back = yield* AlignedBuffer.make(page)
        const scope = yield* Scope.make()
        const io = yield* Scope.extend(engine(), scope)
        const file = yield* Scope.extend(opened(io, 1), scope)
        yield* io.write(file, buffer, 0)
        yield* io.read(file, back, 0)
        yield* Scope.close(scope, Exit.void)
        return back.bytes
      }))
      assertBytes(bytes, expected(page, round), `round ${round}`)
    }
    assert.deepStrictEqual(descriptors(), before)
  })

  it("ends the Scope after a batch of which others are in flight, and waits for those", async () => {
    const ends = await atOnce(Effect.gen(function*() {
      const scope = yield* Scope.make()
      const io = yield* Scope.extend(engine({ depth }), scope)
      const file = yield* Scope.extend(opened(io, 64), scope)
      const seen: Array<string> = []
      const write = (from: number, count: number) =>
        Effect.gen(function*() {
          const writes = yield* Effect.forEach(
            Array.from({ length: count }, (_, index) => from + index),
            (number) =>
              Effect.map(filled(page, 1, number * page), (buffer) => ({
                kind: "write" as const,
                file,
                buffer,
                offset: number * page
              }))
          )
          const results = yield* io.batch(writes)
          assert.deepStrictEqual(results.failures, [])
          seen.push(`${count} from ${from}`)
        })
      const others = yield* Effect.fork(write(4, 60))
      yield* write(0, 4)
      yield* Scope.close(scope, Exit.void)
      seen.push("the end")
      yield* Fiber.join(others)
      return seen
    }))
    assert.strictEqual(ends.at(-1), "the end")
    assert.strictEqual(ends.length, 3)
  })

  it("begins the next operation there, as many as there are, also beyond the depth", async () => {
    await atOnce(Effect.gen(function*() {
      const io = yield* engine({ depth })
      const file = yield* opened(io, 64)
      yield* Effect.forEach(
        Array.from({ length: 64 }, (_, number) => number),
        (number) =>
          Effect.gen(function*() {
            const buffer = yield* filled(page, 3, number * page)
            const back = yield* AlignedBuffer.make(page)
            for (let round = 0; round < 4; round++) {
              yield* io.write(file, buffer, number * page)
              yield* io.read(file, back, number * page)
              assertBytes(back.bytes, expected(page, 3, number * page), `page ${number}`)
            }
          }),
        { concurrency: "unbounded", discard: true }
      )
    }))
  })

  it("finds its buffer free, and nobody else's buffer is lent twice", async () => {
    await atOnce(Effect.gen(function*() {
      const io = yield* engine({ depth })
      const file = yield* opened(io, 64)
      const buffers = 3
      const pool = yield* AlignedBuffer.pool({ buffers, byteLength: page })
      const lent = new Set<AlignedBuffer.AlignedBuffer>()
      const use = (number: number) =>
        Effect.scoped(Effect.gen(function*() {
          const buffer = yield* pool.lease
          assert.isFalse(lent.has(buffer), "this buffer is lent to another fibre")
          lent.add(buffer)
          yield* Effect.addFinalizer(() => Effect.sync(() => lent.delete(buffer)))
          buffer.bytes.fill(number)
          yield* io.write(file, buffer, number * page)
          buffer.bytes.fill(0)
          yield* io.read(file, buffer, number * page)
          assert.isTrue(buffer.bytes.every((byte) => byte === number))
        }))
      yield* Effect.forEach(Array.from({ length: 64 }, (_, number) => number), use, {
        concurrency: "unbounded",
        discard: true
      })
      const all = yield* Effect.all(Array.from({ length: buffers }, () => pool.lease))
      assert.strictEqual(new Set(all).size, buffers)
    }))
  })

  it("interrupts what waits for its turn, which is taken back, and ends all", async () => {
    await atOnce(Effect.gen(function*() {
      const scope = yield* Scope.make()
      const io = yield* Scope.extend(engine({ depth: 2 }), scope)
      const file = yield* Scope.extend(opened(io, 64), scope)
      const fibers = yield* Effect.forEach(
        Array.from({ length: 32 }, (_, number) => number),
        (number) => Effect.flatMap(filled(page, 5), (buffer) => Effect.fork(io.write(file, buffer, number * page)))
      )
      yield* Effect.flatten(Fiber.await(fibers[0] ?? Fiber.void))
      yield* Fiber.interruptAll(fibers)
      yield* Scope.close(scope, Exit.void)
    }))
  })

  it("serves blocks: two who offload the same one, and a reader of events that ends the store", async () => {
    const before = descriptors()
    await atOnce(Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const scope = yield* Scope.make()
      const services = Layer.merge(layer({ depth }), LinuxSyscalls.layer)
      const built = yield* Scope.extend(Layer.build(services), scope)
      const blockBytes = 16 * page
      const store = yield* Scope.extend(
        Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size: 64 * blockBytes, directory, directIo: "preferred" })
          return yield* BlockStore.make([storage], { blockBytes })
        }).pipe(Effect.provide(built)),
        scope
      )
      const data = yield* filled(blockBytes, 7)
      const stored = yield* Deferred.make<void>()
      const reader = yield* Effect.fork(
        Stream.runForEach(store.events, (event) =>
          event._tag === "Stored" && event.hash === 40n
            ? Effect.zipRight(Deferred.succeed(stored, undefined), Scope.close(scope, Exit.void))
            : Effect.void)
      )
      const offload = (hash: bigint) => Effect.map(store.offload([{ hash, data }]), (results) => results.get(0)._tag)
      for (let hash = 0n; hash < 40n; hash++) {
        assert.deepStrictEqual(
          yield* Effect.all([offload(hash), offload(hash), offload(hash)], { concurrency: "unbounded" }),
          ["Right", "Right", "Right"]
        )
        const into = yield* AlignedBuffer.make(blockBytes)
        const results = yield* store.onboard([{ hash, into }])
        assert.deepStrictEqual(results.failures, [])
        assertBytes(into.bytes, data.bytes, `block ${hash}`)
      }
      // The reader ends store, storage and engine inside of what reports this one.
      assert.strictEqual(yield* offload(40n), "Right")
      yield* Deferred.await(stored)
      yield* Fiber.join(reader)
      assert.strictEqual((yield* store.offload([{ hash: 41n, data }])).failures[0]?.error._tag, "StoreClosed")
    }))
    assert.deepStrictEqual(descriptors(), before, name)
  })
})

/** A device that answers in its turn, as `answer` says, and fails the test when the caller's code comes in meanwhile. */
const scripted = (answer: (slot: number, length: number) => number, refuseAtOnce = false) => {
  let inTurn = 0
  const during = <A>(run: () => A): A => {
    inTurn += 1
    try {
      return run()
    } finally {
      inTurn -= 1
    }
  }
  let staged: Array<readonly [number, number]> = []
  const log: Array<string> = []
  const open: OpenDevice = (complete): Device => ({
    name: "scripted",
    slots: 4,
    stage: (slot, _kind, _file, _region, _from, length) =>
      during(() => {
        if (refuseAtOnce) complete(slot, -errnos.EIO)
        else staged.push([slot, length])
      }),
    submit: () =>
      during(() => {
        const answered = staged
        staged = []
        for (const [slot, length] of answered) complete(slot, answer(slot, length))
        return false
      }),
    defer: (turn) => void setImmediate(turn),
    hold: () => during(() => {}),
    keepsFile: () => true,
    attach: () => {},
    detach: () => during(() => log.push("detach")),
    close: Effect.sync(() => during(() => log.push("close")))
  })
  return { open, log, isInTurn: () => inTurn > 0 }
}

const limits = { maxBytesInFlight: 2 ** 30, maxBytesPerSubmission: 2 ** 30, stallMillis: 1000 }

const scriptedFile = (queue: IoQueue): IoFile => queue.attach(3, { path: "scripted", direct: true, alignment: page })

describe("the turn of a device", () => {
  const outcomes: ReadonlyArray<readonly [string, (slot: number, length: number) => number, boolean]> = [
    ["succeeds", (_, length) => length, false],
    ["fails", () => -errnos.EIO, false],
    ["is short to its end", () => 0, false],
    ["refuses while operations are handed over", () => 0, true]
  ]
  for (const [what, answer, refuseAtOnce] of outcomes) {
    it(`has ended before any caller hears of it, where it ${what}`, async () => {
      const device = scripted(answer, refuseAtOnce)
      const queue = new IoQueue(device.open, limits)
      const engine = makeEngine("scripted", () => queue)
      const file = scriptedFile(queue)
      const buffers = await Effect.runPromise(Effect.replicateEffect(AlignedBuffer.make(page), 32))
      const places: Array<string> = []
      await new Promise<void>((ended) => {
        let open = buffers.length
        for (const [index, buffer] of buffers.entries()) {
          const { slab, start } = region(buffer)
          slab.claim(start, page, false)
          // Tells when the operation has let go of the pages, which is the last of them that we hold.
          engine.unsafeSubmit({ kind: "write", file, buffer, offset: index * page }, () => {
            if (device.isInTurn()) places.push(`completion ${index}`)
            open -= 1
            if (open === 0) ended()
          })
          slab.release(start, page)
          slab.whenIdle(start, page, () => {
            if (device.isInTurn()) places.push(`idle ${index}`)
          })
        }
      })
      assert.deepStrictEqual(places, [])
    })
  }

  it("lets a completion end file and queue while others of the same turn are to be told", async () => {
    const device = scripted((_, length) => length)
    const queue = new IoQueue(device.open, limits)
    const engine = makeEngine("scripted", () => queue)
    const file = scriptedFile(queue)
    const buffers = await Effect.runPromise(Effect.replicateEffect(AlignedBuffer.make(page), 4))
    const order: Array<string> = []
    await new Promise<void>((ended) => {
      for (const [index, buffer] of buffers.entries()) {
        engine.unsafeSubmit({ kind: "read", file, buffer, offset: 0 }, ({ error }) => {
          assert.strictEqual(error, undefined)
          order.push(`read ${index}`)
          if (index !== 0) return
          Effect.runFork(
            Effect.ensuring(
              queue.close,
              Effect.sync(() => {
                order.push("closed")
                ended()
              })
            ),
            { scheduler: immediate }
          )
          engine.unsafeSubmit({ kind: "sync", file }, (late) => order.push(`late: ${late.error?._tag}`))
        })
      }
    })
    assert.deepStrictEqual(order, ["read 0", "late: StorageClosed", "read 1", "read 2", "read 3", "closed"])
    assert.deepStrictEqual(device.log, ["detach", "close"])
  })

  it("gives up what is late only after all of it is marked", async () => {
    const answers: Array<number> = []
    const device = scripted(() => 0)
    const silent: OpenDevice = (complete, woken) => ({
      ...device.open(complete, woken),
      stage: (slot) => void answers.push(slot),
      submit: () => false
    })
    const queue = new IoQueue(silent, limits)
    const engine = makeEngine("scripted", () => queue)
    const file = scriptedFile(queue)
    const buffers = await Effect.runPromise(Effect.replicateEffect(AlignedBuffer.make(page), 3))
    const order: Array<string> = []
    for (const [index, buffer] of buffers.entries()) {
      engine.unsafeSubmit({ kind: "read", file, buffer, offset: 0 }, ({ error }) => {
        order.push(`read ${index}: ${error?._tag}`)
        // A second look from inside of the first one: each operation is told once.
        queue.watch(0)
        if (index === 0) queue.detach(queue.attach(4, file), () => order.push("another file is gone"))
      })
    }
    queue.watch(0)
    assert.deepStrictEqual(order, [
      "read 0: IoStalled",
      "another file is gone",
      "read 1: IoStalled",
      "read 2: IoStalled"
    ])
    assert.strictEqual(answers.length, 3)
  })
})

describe("memory that becomes idle", () => {
  it("goes to everybody who waits for it once, and keeps who comes to wait inside of that", async () => {
    const [buffer] = await Effect.runPromise(Effect.replicateEffect(AlignedBuffer.make(2 * page), 1))
    assert.isDefined(buffer)
    const { slab, start } = region(buffer ?? assert.fail())
    const order: Array<string> = []
    assert.isTrue(slab.claim(start, page, true))
    assert.isTrue(slab.claim(start + page, page, true))
    slab.whenIdle(start, page, () => {
      order.push("first")
      // Used again, and let go of inside: whoever waits next must not be lost, nor called twice.
      assert.isTrue(slab.claim(start, page, true))
      slab.whenIdle(start, page, () => order.push("inside"))
      slab.release(start + page, page)
      slab.release(start, page)
    })
    slab.whenIdle(start + page, page, () => order.push("second page"))
    slab.whenIdle(start, page, () => order.push("second"))
    slab.release(start, page)
    assert.deepStrictEqual([...order].sort(), ["first", "inside", "second", "second page"])
    assert.strictEqual(order[0], "first")
  })
})
