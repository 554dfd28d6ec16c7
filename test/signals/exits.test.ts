/** The listener of 'exit', which unlinks where no finalizer runs: when it is there, and what it does about a file that is being created. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { readdirSync } from "node:fs"
import { join } from "node:path"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as Linux from "../../src/Linux.js"
import { assertNothingLeft, seed, seeded, startChild, temporaryDirectory, testTimeout } from "./processes.js"

describe("while a file is created", () => {
  it.live("process.exit leaves nothing while another thread creates the file", () =>
    Effect.gen(function*() {
      const rounds = yield* Effect.forEach(
        ["0", "0", ...Array.from({ length: 10 }, () => "block"), ...Array.from({ length: 8 }, () => "timer")],
        (moment) =>
          Effect.map(Random.nextRange(0, 3), (millis) => moment === "0" ? ["block", "0"] : [moment, millis.toFixed(3)])
      )
      yield* Effect.forEach(rounds, (round) =>
        Effect.scoped(Effect.gen(function*() {
          const running = yield* startChild("creating", round)
          const told = `seed ${seed}, round ${round.join(" ")}`
          assert.deepStrictEqual(yield* running.ended, { code: 3, signal: null }, running.output())
          assert.match(running.output(), /^listeners 1$/m, told)
          yield* assertNothingLeft(running)
        })), { concurrency: 2 })
    }).pipe(seeded("creating")), testTimeout)
})

describe("with all threads busy", () => {
  it.live("process.exit takes back a creation that has not begun", () =>
    Effect.scoped(Effect.gen(function*() {
      const running = yield* startChild("busyThreads", [join(yield* temporaryDirectory, "fifo")])
      assert.deepStrictEqual(yield* running.ended, { code: 3, signal: null }, running.output())
      assert.match(running.output(), /^listeners 1$/m)
      assert.notMatch(running.output(), /^created$/m)
      yield* assertNothingLeft(running)
    })), testTimeout)
})

describe("the listener of 'exit'", () => {
  const withStorages = <E, R>(
    use: (
      make: (earlyUnlink?: boolean) => ReturnType<typeof DiskStorage.make>,
      listeners: () => number,
      directory: string
    ) => Effect.Effect<void, E, R>
  ) =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const before = process.listenerCount("exit")
      yield* use(
        (earlyUnlink = false) => DiskStorage.make({ size: 8192, directory, earlyUnlink }),
        () => process.listenerCount("exit") - before,
        directory
      )
    }).pipe(Effect.provide(Linux.layer))

  it.scopedLive("lives as long as a file is linked", () =>
    withStorages((make, listeners) =>
      Effect.gen(function*() {
        assert.strictEqual(listeners(), 0)
        yield* Effect.scoped(Effect.zipRight(make(), Effect.sync(() => assert.strictEqual(listeners(), 1))))
        assert.strictEqual(listeners(), 0)

        yield* Effect.scoped(Effect.gen(function*() {
          const storage = yield* make()
          assert.strictEqual(listeners(), 1)
          yield* storage.unlink
          assert.strictEqual(listeners(), 0)
        }))
        assert.strictEqual(listeners(), 0)

        yield* Effect.scoped(Effect.zipRight(make(true), Effect.sync(() => assert.strictEqual(listeners(), 0))))
        assert.strictEqual(listeners(), 0)
      })
    ))

  it.scopedLive("is one for all storages", () =>
    withStorages((make, listeners, directory) =>
      Effect.gen(function*() {
        yield* Effect.scoped(Effect.gen(function*() {
          const [first, second] = yield* Effect.all([make(), make()], { concurrency: 2 })
          assert.lengthOf(readdirSync(directory), 2)
          assert.strictEqual(listeners(), 1)
          yield* first.close
          assert.strictEqual(listeners(), 1)
          yield* second.close
          assert.strictEqual(listeners(), 0)
        }))
        assert.strictEqual(listeners(), 0)
      })
    ))

  it.scopedLive("goes with a creation that failed", () =>
    withStorages((_, listeners) =>
      Effect.gen(function*() {
        const made = yield* Effect.either(Effect.scoped(DiskStorage.make({ size: 8192, directory: "/dev/null" })))
        assert.isTrue(made._tag === "Left" && made.left._tag === "DirectoryUnusable")
        assert.strictEqual(listeners(), 0)
      })
    ))
})
