/** Which engine it is: the best that works, what is asked for, or a typed refusal. */
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Schema from "effect/Schema"
import { IoEngine } from "../../src/IoEngine.js"
import * as Linux from "../../src/Linux.js"
import { Outcome, Steps } from "./children/choiceProtocol.js"
import { temporaryDirectory, whyNotEngine } from "./engines.js"
import { commandLine, run } from "./processes.js"

const [EPERM, EACCES, ENOSYS, ENOMEM] = [1, 13, 38, 12]

/** What became of each step, in a process of its own. */
const outcomes = (steps: (typeof Steps.Type)["steps"], env: Record<string, string> = {}) =>
  Effect.gen(function*() {
    const directory = yield* temporaryDirectory
    const ended = yield* run(commandLine("choice", [Schema.encodeSync(Steps)({ directory, steps })]), {
      DISK_STORAGE_IO_ENGINE: "",
      ...env
    })
    assert.strictEqual(ended.code, 0, ended.complaint)
    const told = ended.output.trim().split("\n").map((line) => Schema.decodeUnknownSync(Outcome)(line))
    assert.strictEqual(told.length, steps.length, ended.complaint)
    for (const { left } of told) assert.deepStrictEqual(left, [], "left open")
    return told
  })

const logged = (outcome: typeof Outcome.Type | undefined) => outcome?.lines.join("\n") ?? ""

const works = whyNotEngine("io_uring") === undefined && whyNotEngine("aio") === undefined

describe.skipIf(!works)("where the kernel refuses", () => {
  it.scopedLive("io_uring, it is AIO; where it refuses that too, node:fs", () =>
    Effect.gen(function*() {
      const [all, noRing, noAio, forcedRing, forcedAio, forcedNode] = yield* outcomes([
        { refuse: [], errno: 0 },
        { refuse: ["io_uring_setup"], errno: EPERM },
        { refuse: ["io_setup"], errno: EPERM },
        { refuse: [], errno: 0, engine: "io_uring" },
        { refuse: [], errno: 0, engine: "aio" },
        { refuse: [], errno: 0, engine: "node" }
      ])
      assert.strictEqual(all?.engine, "io_uring", all?.message)
      assert.match(logged(all), /^DEBUG I\/O engine io_uring: a write and a read/)
      assert.strictEqual(noRing?.engine, "aio", noRing?.message)
      assert.match(logged(noRing), /^DEBUG I\/O engine aio: .*io_uring.*seccomp.*EPERM/)
      assert.strictEqual(noAio?.engine, "node:fs", noAio?.message)
      assert.match(logged(noAio), /^WARN I\/O engine node:fs: .*io_uring.*seccomp.*EPERM.*aio.*seccomp.*EPERM/)
      assert.strictEqual(forcedRing?.failure, "EngineUnavailable", forcedRing?.message)
      assert.strictEqual(forcedAio?.failure, "EngineUnavailable", forcedAio?.message)
      assert.strictEqual(forcedNode?.engine, "node:fs", forcedNode?.message)
    }))

  it.scopedLive("io_uring's other calls, and AIO's, one at a time", () =>
    Effect.gen(function*() {
      const [noEnter, noSubmit] = yield* outcomes([
        { refuse: ["io_uring_enter"], errno: EACCES },
        { refuse: ["io_submit"], errno: ENOSYS }
      ])
      assert.strictEqual(noEnter?.engine, "aio", noEnter?.message)
      assert.match(logged(noEnter), /io_uring.*EACCES/)
      assert.strictEqual(noSubmit?.engine, "node:fs", noSubmit?.message)
      assert.match(logged(noSubmit), /EACCES.*ENOSYS/)
      const [noRegister, noMemory] = yield* outcomes([
        { refuse: ["io_uring_register"], errno: ENOSYS },
        { refuse: ["memfd_create"], errno: ENOMEM }
      ])
      assert.strictEqual(noRegister?.engine, "aio", noRegister?.message)
      // Nothing to try them on is no reason to fail.
      assert.strictEqual(noMemory?.engine, "node:fs", noMemory?.message)
      const [noEvents] = yield* outcomes([{ refuse: ["eventfd2"], errno: EPERM }])
      assert.strictEqual(noEvents?.engine, "node:fs", noEvents?.message)
    }))
})

describe("DISK_STORAGE_IO_ENGINE", () => {
  const chosen = (value: string | undefined) =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make(({ message }) => void lines.push(String(message)))
      const provider = ConfigProvider.fromMap(new Map(value === undefined ? [] : [["DISK_STORAGE_IO_ENGINE", value]]))
      const { name } = yield* Effect.scoped(IoEngine).pipe(
        Effect.provide(Linux.layer),
        Effect.withConfigProvider(provider),
        Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
        Logger.withMinimumLogLevel(LogLevel.Debug)
      )
      return { name, said: lines.join("\n") }
    })

  const values = [["io_uring", "io_uring"], ["aio", "aio"], ["node", "node:fs"]] as const
  for (const [value, name] of values) {
    it.live.skipIf(whyNotEngine(name) !== undefined)(value, () =>
      Effect.gen(function*() {
        const { name: taken, said } = yield* chosen(value)
        assert.strictEqual(taken, name)
        assert.include(said, `I/O engine ${name}: asked for`)
      }))
  }

  it.live.skipIf(!works)("is auto where it is unset or empty", () =>
    Effect.gen(function*() {
      for (const value of ["auto", "", undefined]) assert.strictEqual((yield* chosen(value)).name, "io_uring")
    }))

  it.live("is refused when it names no engine", () =>
    Effect.gen(function*() {
      const refused = yield* Effect.flip(chosen("spdk"))
      assert.include(String(refused), "DISK_STORAGE_IO_ENGINE")
    }))

  it.scopedLive("is read from the environment", () =>
    Effect.gen(function*() {
      const [outcome] = yield* outcomes([{ refuse: [], errno: 0 }], { DISK_STORAGE_IO_ENGINE: "node" })
      assert.strictEqual(outcome?.engine, "node:fs", outcome?.message)
    }))
})
