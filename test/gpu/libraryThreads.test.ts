/** Threads that call C libraries, tried on libc. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { make } from "../../src/internal/linux/libraryThreads.js"
import { errnos } from "../../src/Syscalls.js"

const library = "libc.so.6"
const functions = {
  gettid: { library, result: "int", args: [] },
  close: { library, result: "int", args: ["int"] },
  usleep: { library, result: "int", args: ["uint32_t"] },
  strnlen: { library, result: "size_t", args: ["uint64_t", "size_t"] },
  nowhere: { library, result: "int", args: [], optional: true }
} as const

describe("threads for libraries", () => {
  it.scoped("are as many as were asked for, each one and the same for all its calls", () =>
    Effect.gen(function*() {
      const threads = yield* make(functions, 3)
      const each = (yield* threads.callOnEach("gettid", [])).map(({ result }) => result)
      assert.strictEqual(new Set(each).size, 3)
      assert.notInclude(each, process.pid)
      const busy = yield* Effect.forEach([1, 2, 3], () => threads.call("usleep", [20_000]), { concurrency: 3 })
      assert.lengthOf(busy, 3)
      const { result } = yield* threads.call("gettid", [])
      assert.include(each, result)
    }))

  it.live("give calls that wait to a thread together, each with its own answer, and drop one that is given up", () =>
    Effect.scoped(Effect.gen(function*() {
      const threads = yield* make(functions, 1, 3)
      const busy = yield* Effect.fork(threads.call("usleep", [100_000]))
      yield* Effect.sleep(20)
      const [one, given, two] = yield* Effect.all([
        Effect.fork(threads.call("close", [-1])),
        Effect.fork(threads.call("usleep", [60_000_000])),
        Effect.fork(threads.call("strnlen", [0, 0]))
      ])
      yield* Effect.sleep(20)
      yield* Fiber.interrupt(given)
      assert.isNull(busy.unsafePoll())
      assert.deepStrictEqual(yield* Fiber.join(one), { result: -1, errno: errnos.EBADF })
      assert.strictEqual((yield* Fiber.join(two)).result, 0)
      assert.strictEqual((yield* Fiber.join(busy)).result, 0)
      // Those that were sent with one that lasts end with it; one that is given up then is waited for.
      const [short, long] = yield* Effect.all([
        Effect.fork(threads.call("gettid", [])),
        Effect.fork(threads.call("usleep", [100_000]))
      ])
      yield* Effect.sleep(20)
      assert.isNull(short.unsafePoll())
      yield* Fiber.interrupt(long)
      assert.isNotNull(short.unsafePoll())
    })))

  it.scoped("tell errno as it was right after the call, and take 64 bits", () =>
    Effect.gen(function*() {
      const threads = yield* make(functions, 1)
      assert.deepStrictEqual(yield* threads.call("close", [-1]), { result: -1, errno: errnos.EBADF })
      assert.strictEqual((yield* threads.call("strnlen", [0xffff_ffff_ffff_f000n, 0])).result, 0)
    }))

  it.scoped("say which functions a library lacks", () =>
    Effect.gen(function*() {
      const threads = yield* make(functions, 1)
      assert.isTrue(threads.has("close"))
      assert.isFalse(threads.has("nowhere"))
      const missing = yield* Effect.flip(make({ nowhere: { library, result: "int", args: [] } }, 1))
      assert.match(missing.reason, /nowhere/)
      const none = yield* Effect.flip(make({ close: { library: "libnowhere.so", result: "int", args: ["int"] } }, 1))
      assert.match(none.reason, /libnowhere\.so/)
    }))

  it.effect("are not called after their scope: that is a defect, and nothing that waits", () =>
    Effect.gen(function*() {
      const threads = yield* Effect.scoped(make(functions, 1))
      const exit = yield* Effect.exit(threads.call("gettid", []))
      assert.match(String(exit), /gettid was not called: its thread has ended/)
    }))

  it.live("are waited for by an interruption, and by the end of their scope", () =>
    Effect.gen(function*() {
      const calling = yield* Effect.scoped(Effect.gen(function*() {
        const threads = yield* make(functions, 1)
        const calling = yield* Effect.forkDaemon(threads.call("usleep", [300_000]))
        const waiting = yield* Effect.forkDaemon(threads.call("gettid", []))
        yield* Effect.sleep(50)
        // It is only waiting for a thread.
        yield* Fiber.interrupt(waiting)
        assert.isNull(calling.unsafePoll())
        return calling
      }))
      // It had its answer before the scope had ended.
      assert.isNotNull(calling.unsafePoll())
    }))
})
