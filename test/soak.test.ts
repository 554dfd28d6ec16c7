/** The soak itself: it passes for a while, and finds what is broken on purpose. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Schema from "effect/Schema"
import { spawn } from "node:child_process"
import { closeSync, openSync, readdirSync } from "node:fs"
import { region } from "../src/internal/alignedBuffer.js"
import type { IoEngine } from "../src/IoEngine.js"
import { temporaryDirectory } from "./signals/processes.js"
import { parse } from "./soak/arguments.js"
import { compare } from "./soak/measure.js"
import type { Sample } from "./soak/measure.js"
import * as report from "./soak/report.js"
import * as soak from "./soak/soak.js"
import { program } from "./support/programs.js"

const testTimeout = 240_000

/** Two rounds and their report. */
const soaked = (planted?: (engine: IoEngine) => IoEngine, rounds = 2) =>
  Effect.gen(function*() {
    const directory = yield* temporaryDirectory
    const state = yield* soak.make
    const options = { seed: 1, from: 1, rounds, millis: Infinity, rate: 0.01, directory, planted }
    yield* soak.run(state, options)
    assert.deepStrictEqual(readdirSync(directory).filter((name) => name !== "long"), [])
    return report.make(state, options, false)
  })

describe("a soak", { timeout: testTimeout }, () => {
  it.scopedLive("compares bytes on both kernels, meets faults, and loses nothing", () =>
    Effect.gen(function*() {
      const found = yield* soaked()
      assert.isNull(found.failure)
      assert.strictEqual(found.rounds, 2)
      for (const { bytesChecked, calls, interruptions, operations, storages } of [found.real, found.simulated]) {
        for (const count of [bytesChecked, calls, interruptions, operations, storages]) assert.isAbove(count, 0)
      }
      assert.isAbove(found.real.faults + found.simulated.faults, 0)
      assert.deepStrictEqual(new Set(Object.values(found.lost)), new Set([0]))
      assert.include(report.table(found), "compared")
    }))

  it.scopedLive("finds a byte that is wrong", () =>
    Effect.gen(function*() {
      let reads = 0
      /** Of every hundredth read the last byte is another one. */
      const planted = (engine: IoEngine): IoEngine => ({
        ...engine,
        unsafeSubmit: (operation, done) =>
          engine.unsafeSubmit(operation, (completion) => {
            if (operation.kind === "read" && (reads += 1) % 100 === 0) {
              const { bytes } = region(operation.buffer)
              bytes[bytes.length - 1] = (bytes.at(-1) ?? 0) ^ 1
            }
            done(completion)
          })
      })
      const found = yield* soaked(planted)
      assert.isFalse(found.passed)
      assert.match(found.failure?.message ?? "", /BlockCorrupted|is not of hash/)
      assert.include(report.table(found), `Again: npm run soak -- --seed 1`)
    }))

  it.scopedLive("finds a descriptor that stays open in each storage", () =>
    Effect.gen(function*() {
      const planted = (engine: IoEngine): IoEngine => ({
        ...engine,
        file: (fd, options) => {
          opened.push(openSync("/dev/null", "r"))
          return engine.file(fd, options)
        }
      })
      const opened: Array<number> = []
      // So many that some samples lie behind the warm-up, however long each round takes.
      const found = yield* soaked(planted, 6)
      for (const fd of opened) closeSync(fd)
      assert.isFalse(found.passed)
      const descriptors = found.held.find(({ what }) => what === "descriptors")
      assert.strictEqual(descriptors?.verdict, "LEAK")
    }))
})

describe("what a process holds", () => {
  const flat: Sample = {
    millis: 0,
    descriptors: 20,
    mappings: 500,
    listeners: 8,
    handles: 2,
    rss: 200e6,
    heap: 30e6,
    external: 8e6
  }
  /** Half an hour with a sample a second. */
  const hour = (at: (share: number) => Partial<Sample>) =>
    compare(Array.from({ length: 1800 }, (_, index) => ({ ...flat, ...at(index / 1800), millis: index * 1000 })))
  const leaks = (compared: ReturnType<typeof compare>) =>
    compared.growths.filter(({ verdict }) => verdict === "LEAK").map(({ what }) => what)

  it("is no leak while it goes up and down, or grows in the warm-up", () => {
    assert.deepStrictEqual(
      leaks(hour((share) => ({ rss: 200e6 + 20e6 * Math.sin(1000 * share), descriptors: 20 }))),
      []
    )
    assert.deepStrictEqual(leaks(hour((share) => share < 0.1 ? { rss: 100e6, heap: 10e6 } : {})), [])
  })

  it("is a leak where it grows by more than its limit", () => {
    assert.deepStrictEqual(leaks(hour((share) => ({ rss: 200e6 * (1 + 0.02 * share) }))), ["rss"])
    assert.deepStrictEqual(leaks(hour((share) => ({ descriptors: 20 + Math.floor(share * 4) }))), ["descriptors"])
    assert.deepStrictEqual(leaks(hour((share) => ({ mappings: 500 + Math.floor(share * 900) }))), ["mappings"])
  })

  it("says so where the run is too short for memory", () => {
    const { growths } = compare([flat, { ...flat, millis: 30_000, rss: 300e6 }, {
      ...flat,
      millis: 60_000,
      rss: 400e6
    }])
    assert.strictEqual(growths.find(({ what }) => what === "rss")?.verdict, "too short")
  })
})

describe("its arguments", () => {
  it("are taken, with their defaults", () => {
    assert.deepStrictEqual(
      parse([]),
      Either.right({
        minutes: 1,
        rounds: Infinity,
        seed: undefined,
        from: 1,
        faults: 0.01,
        json: undefined
      })
    )
    assert.deepStrictEqual(
      parse(["--rounds", "3", "--seed=0", "--from", "7", "--faults", "0", "--json", "-"]),
      Either.right({ minutes: Infinity, rounds: 3, seed: 0, from: 7, faults: 0, json: "-" })
    )
    assert.deepStrictEqual(parse(["--minutes", "1", "--help"]), Either.right("help"))
  })

  for (
    const wrong of [
      ["--minutes", "0"],
      ["--minutes", "-1"],
      ["--rounds", "1.5"],
      ["--seed", "x"],
      ["--faults", "0.6"],
      ["--from", "0"],
      ["--json"],
      ["--seed", "1", "--seed", "2"],
      ["--help=1"],
      ["--what"],
      ["30"]
    ]
  ) {
    it(`are refused: ${wrong.join(" ")}`, () => assert.isTrue(Either.isLeft(parse(wrong))))
  }
})

/** The program with these arguments, which is sent a signal when it says of what seed it is. */
const run = (args: ReadonlyArray<string>, directory: string, signal?: "SIGINT") =>
  Effect.async<{ readonly code: number | null; readonly out: string; readonly complaints: string }>((resume) => {
    const child = spawn(process.execPath, [program(new URL("soak/main.ts", import.meta.url)), ...args], {
      env: { ...process.env, DYN_KVBM_DISK_CACHE_DIR: directory },
      stdio: ["ignore", "pipe", "pipe"]
    })
    let out = ""
    let complaints = ""
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      out += text
    })
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      complaints += text
      if (signal !== undefined && text.startsWith("seed ")) setTimeout(() => child.kill(signal), 2000)
    })
    child.once("close", (code) => resume(Effect.succeed({ code, out, complaints })))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

describe("the command", { timeout: testTimeout }, () => {
  it.scopedLive("prints its report, and leaves nothing", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const { code, complaints, out } = yield* run(["--rounds", "1", "--seed", "3", "--json", "-"], directory)
      assert.strictEqual(code, 0, complaints)
      const found = yield* Schema.decode(Schema.parseJson(report.Report))(out)
      assert.deepStrictEqual([found.seed, found.rounds, found.passed], [3, 1, true])
      assert.deepStrictEqual(readdirSync(directory), [])
    }))

  it.scopedLive("tells of what was done until Ctrl-C, and leaves nothing", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const { code, complaints, out } = yield* run(["--minutes", "10", "--seed", "3"], directory, "SIGINT")
      assert.strictEqual(code, 130, complaints)
      assert.include(out, ", stopped")
      assert.deepStrictEqual(readdirSync(directory), [])
    }))

  it.scopedLive("refuses wrong arguments", () =>
    Effect.gen(function*() {
      const { code, complaints } = yield* run(["--minutes", "none"], "/nowhere")
      assert.strictEqual(code, 64)
      assert.include(complaints, "--minutes takes")
    }))
})
