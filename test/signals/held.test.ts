/** Programs that hold storages, signalled: what is released, how they end, and what a second signal does. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { mkdirSync, readdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import type { Running, Signal } from "./processes.js"
import {
  assertNothingLeft,
  childCommand,
  exitCode,
  pressAgain,
  processesOf,
  seed,
  seeded,
  start,
  startChild,
  temporaryDirectory,
  testTimeout
} from "./processes.js"

const signals = ["SIGHUP", "SIGINT", "SIGTERM"] as const

const count = (output: string, line: string) => output.split("\n").filter((printed) => printed === line).length

const assertPrinted = (running: Running, line: RegExp) =>
  Effect.map(running.printed(line), (came) => assert.isTrue(came, running.output()))

/** Signals while storages are held; all registrations are released, then the files. */
const signalHeld = (arrangement: string, signal: Signal, storages: number, linked: number) =>
  Effect.scoped(Effect.gen(function*() {
    const running = yield* startChild("held", [arrangement, "quick"])
    yield* assertPrinted(running, /^held /m)
    assert.lengthOf(readdirSync(running.directory), linked)
    assert.isNotEmpty(processesOf(running.directory))
    yield* running.signal(signal, "leader")
    assert.deepStrictEqual(yield* running.ended, { code: exitCode(signal), signal: null }, running.output())
    assert.strictEqual(count(running.output(), "released"), storages, running.output())
    yield* assertNothingLeft(running)
  }))

/** A package whose `start` is a program that holds a storage. */
const npmStartHeld = (release: string) =>
  Effect.gen(function*() {
    const cwd = join(yield* temporaryDirectory, "held")
    mkdirSync(cwd)
    const scripts = { start: childCommand("held", ["one", release]) }
    writeFileSync(join(cwd, "package.json"), JSON.stringify({ name: "held", version: "1.0.0", private: true, scripts }))
    return yield* start("npm", ["start"], { cwd })
  })

describe("a program that holds storages", () => {
  const arrangements = [
    ["one", 1, 1],
    ["twice", 2, 2],
    ["layers", 2, 2],
    ["earlyUnlink", 1, 0],
    ["mixed", 3, 1]
  ] as const
  for (const [arrangement, storages, linked] of arrangements) {
    it.live(
      `leaves nothing after a signal: ${arrangement}`,
      () => Effect.forEach(signals, (signal) => signalHeld(arrangement, signal, storages, linked), { concurrency: 2 }),
      testTimeout
    )
  }

  it.live(
    "finishes a slow release when npm and the terminal deliver one press twice, and when two come in a second",
    () =>
      Effect.forEach(Array.from({ length: 10 }), () =>
        Effect.scoped(Effect.gen(function*() {
          const running = yield* npmStartHeld("slow")
          yield* assertPrinted(running, /^held /m)
          yield* running.signal("SIGINT", "group")
          yield* Effect.sleep(yield* Random.nextIntBetween(0, 200))
          yield* running.signal("SIGINT", "group")
          const told = `seed ${seed}: ${running.output()}`
          assert.deepStrictEqual(yield* running.ended, { code: 130, signal: null }, told)
          assert.match(running.output(), /^releasing\nreleased\nexit 130$/m, told)
          yield* assertNothingLeft(running)
        })), { concurrency: 5 }).pipe(seeded("slow")),
    testTimeout
  )

  it.live(
    "dies by the second press, when that is a press of its own, and leaves no file",
    () =>
      Effect.forEach(Array.from({ length: 6 }), () =>
        Effect.scoped(Effect.gen(function*() {
          const running = yield* npmStartHeld("endless")
          yield* assertPrinted(running, /^held /m)
          yield* running.signal("SIGINT", "group")
          yield* assertPrinted(running, /^releasing$/m)
          assert.lengthOf(readdirSync(running.directory), 1)
          yield* pressAgain(running, running.signal("SIGINT", "group"))
          assert.deepStrictEqual(yield* running.ended, { code: null, signal: "SIGINT" }, running.output())
          assert.notMatch(running.output(), /^(released|exit .*)$/m)
          yield* assertNothingLeft(running)
        })), { concurrency: 6 }),
    testTimeout
  )

  for (const [first, second] of [["SIGINT", "SIGTERM"], ["SIGTERM", "SIGHUP"], ["SIGHUP", "SIGINT"]] as const) {
    it.live(
      `dies by ${second} when that follows ${first} as a press of its own`,
      () =>
        Effect.scoped(Effect.gen(function*() {
          const running = yield* startChild("held", ["twice", "endless"])
          yield* assertPrinted(running, /^held /m)
          yield* running.signal(first, "leader")
          yield* assertPrinted(running, /^releasing$/m)
          yield* pressAgain(running, running.signal(second, "leader"))
          assert.deepStrictEqual(yield* running.ended, { code: null, signal: second }, running.output())
          yield* assertNothingLeft(running)
        })),
      testTimeout
    )
  }
})

describe("a release that blocks the event loop", () => {
  it.live("is not cut off by one press that comes twice and is seen late", () =>
    Effect.scoped(Effect.gen(function*() {
      const running = yield* startChild("held", ["one", "blocking"])
      yield* assertPrinted(running, /^held /m)
      yield* running.signal("SIGINT", "leader")
      yield* assertPrinted(running, /^releasing$/m)
      yield* running.signal("SIGINT", "leader")
      assert.deepStrictEqual(yield* running.ended, { code: 130, signal: null }, running.output())
      assert.match(running.output(), /^releasing\nreleased\nexit 130$/m)
      yield* assertNothingLeft(running)
    })), testTimeout)
})

describe("a program that zero-fills", () => {
  it.live(
    "stops within one write",
    () =>
      Effect.forEach([...signals, ...signals], (signal) =>
        Effect.scoped(Effect.gen(function*() {
          const running = yield* startChild("zeroFill", ["1000"])
          yield* assertPrinted(running, /^writing 0$/m)
          yield* Effect.sleep(yield* Random.nextIntBetween(0, 900))
          assert.lengthOf(readdirSync(running.directory), 1)
          yield* running.signal(signal, "leader")
          assert.deepStrictEqual(yield* running.ended, { code: exitCode(signal), signal: null }, running.output())
          // The child prints both in the order in which they happen, however busy the machine is. A write that ends in the same turn may
          // be followed by one more.
          const [, after = assert.fail(running.output())] = running.output().split(/^heard .*$/m)
          assert.isAtMost(count(after.replaceAll(/\d+$/gm, ""), "writing "), 1, running.output())
          assert.notMatch(running.output(), /^held$/m)
          yield* assertNothingLeft(running)
        })), { concurrency: 3 }).pipe(seeded("zero-fill")),
    testTimeout
  )
})
