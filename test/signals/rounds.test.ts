/** Every way in which a program that holds a storage ends, but for SIGKILL: at random moments of a storage's life, nothing is left. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { whyNotEngine } from "../engines/engines.js"
import { assertGivenBack, describeReal, Mounted, settledFreeBytes } from "../filesystems/real.js"
import type { Moment } from "./children/life.js"
import type { Ended, Running } from "./processes.js"
import {
  assertNothingLeft,
  childCommand,
  exitCode,
  processesOf,
  seed,
  seeded,
  start,
  startChild,
  temporaryDirectory,
  testTimeout
} from "./processes.js"

/** How long each takes at least (milliseconds), on a fast machine: the end comes within that. */
const moments: ReadonlyArray<readonly [Moment, number]> = [["acquire", 12], ["fill", 60], ["io", 40], ["release", 12]]

const roundsOfMoment = 5

interface Round {
  readonly moment: Moment
  readonly millis: number
  readonly index: number
}

const rounds: Effect.Effect<ReadonlyArray<Round>> = Effect.forEach(
  moments.flatMap((moment) => Array.from({ length: roundsOfMoment }, () => moment)),
  ([moment, most], index) => Effect.map(Random.nextRange(0, most), (millis) => ({ moment, millis, index }))
)

/** How the program ended that was at it: for itself, and what it said last. */
interface Outcome {
  readonly ended: Ended
  readonly output: string
}

interface Way {
  readonly name: string
  /** Starts the program, which says `begun` when the moment has come. */
  readonly start: (round: Round) => Effect.Effect<Running, never, Scope.Scope>
  /** What happens at the random moment, where the program does not do it itself. */
  readonly happens?: (running: Running) => Effect.Effect<unknown>
  readonly isAsDocumented: (outcome: Outcome) => boolean
  readonly concurrency?: number
}

const waiting = ({ moment }: Round) => ["ProcessRuntime", moment, "wait", "0"]

/** What the program did is in the file also when nobody reads its output any more. */
const reporting = (round: Round, run: (env: Record<string, string>) => Effect.Effect<Running, never, Scope.Scope>) =>
  Effect.gen(function*() {
    const report = join(yield* temporaryDirectory, `report-${round.index}`)
    const running = yield* run({ EDS_REPORT: report })
    return {
      ...running,
      output: () => existsSync(report) ? readFileSync(report, "utf8") : running.output()
    }
  })

const said = (code: number) => new RegExp(`^exit ${code}$`, "m")

/** That was faster than the signal. */
const wasThrough = ({ output }: Outcome) => /^through$/m.test(output)

const edges = ["ProcessRuntime", "NodeRuntime", "none"] as const

const ways: ReadonlyArray<Way> = [
  ...(["SIGINT", "SIGTERM", "SIGHUP"] as const).map((signal): Way => ({
    name: signal,
    start: (round) => startChild("round", waiting(round)),
    happens: (running) => running.signal(signal, "leader"),
    isAsDocumented: (outcome) => outcome.ended.code === exitCode(signal) || wasThrough(outcome)
  })),
  {
    name: "a terminal that closes",
    start: (round) =>
      reporting(round, (env) => start("script", ["-qec", childCommand("round", waiting(round)), "/dev/null"], { env })),
    happens: (running) => running.signal("SIGKILL", "leader"),
    isAsDocumented: (outcome) => said(129).test(outcome.output) || wasThrough(outcome)
  },
  ...([["throw", "an uncaught exception", 1], ["reject", "an unhandled rejection", 1], [
    "exit",
    "process.exit",
    3
  ]] as const)
    .map(([way, name, code]): Way => ({
      name: `${name}, whatever runs the program`,
      start: ({ index, millis, moment }) =>
        startChild("round", [edges[index % edges.length] ?? "none", moment, way, millis.toFixed(2)]),
      isAsDocumented: (outcome) => outcome.ended.code === code || wasThrough(outcome)
    })),
  {
    name: "npm that is killed, and SIGTERM for what goes on without it",
    start: (round) =>
      reporting(round, (env) =>
        Effect.gen(function*() {
          const cwd = join(yield* temporaryDirectory, "package")
          mkdirSync(cwd)
          const scripts = { start: childCommand("round", waiting(round)) }
          writeFileSync(
            join(cwd, "package.json"),
            JSON.stringify({ name: "p", version: "1.0.0", private: true, scripts })
          )
          return yield* start("npm", ["start"], { cwd, env })
        })),
    happens: (running) =>
      Effect.gen(function*() {
        yield* running.signal("SIGKILL", "leader")
        yield* running.left
        yield* running.signal("SIGTERM", "group")
      }),
    isAsDocumented: (outcome) => said(143).test(outcome.output) || wasThrough(outcome)
  }
]

const play = (way: Way, round: Round) =>
  Effect.scoped(Effect.gen(function*() {
    const running = yield* way.start(round)
    assert.isTrue(yield* running.printed(/^begun$/m), running.output())
    if (way.happens !== undefined) {
      yield* Effect.sleep(round.millis)
      yield* way.happens(running)
    }
    const ended = yield* running.ended
    yield* assertNothingLeft(running)
    // What was started may have ended before the program.
    const outcome = { ended, output: running.output() }
    assert.isTrue(way.isAsDocumented(outcome), JSON.stringify({ seed, way: way.name, round, ...outcome }))
  }))

describe("nothing is left after", () => {
  for (const way of ways) {
    it.live(way.name, () =>
      Effect.flatMap(
        rounds,
        Effect.forEach((round) => play(way, round), { concurrency: 3, discard: true })
      ).pipe(seeded(way.name)), testTimeout)
  }

  it.live(
    "a second Ctrl-C in a long zero-fill, at once",
    () =>
      Effect.forEach(Array.from({ length: 20 }), () =>
        Effect.scoped(Effect.gen(function*() {
          const running = yield* startChild("zeroFill", ["90000"])
          assert.isTrue(yield* running.printed(/^writing 0$/m), running.output())
          yield* Effect.sleep(yield* Random.nextRange(0, 50))
          yield* running.signal("SIGINT", "leader")
          // Longer than what counts as the same press.
          yield* Effect.sleep(yield* Random.nextRange(1200, 1300))
          assert.lengthOf(readdirSync(running.directory), 1)
          yield* running.signal("SIGINT", "leader")
          assert.deepStrictEqual(yield* running.ended, { code: null, signal: "SIGINT" }, running.output())
          yield* assertNothingLeft(running)
        })), { concurrency: 10, discard: true }).pipe(seeded("zero-fill")),
    testTimeout
  )
})

it.scopedLive(
  "a thread that is terminated while its closing of descriptors waits for the pool leaves none",
  () =>
    Effect.gen(function*() {
      const running = yield* startChild("closing", [])
      assert.deepStrictEqual(yield* running.ended, { code: 0, signal: null }, running.output())
      assert.strictEqual(running.output().trim(), "left []")
    }),
  testTimeout
)

describeReal("ext4", { name: "threads that are terminated" }, (it) => {
  for (const [engine, name] of [["io_uring", "io_uring"], ["aio", "aio"], ["node", "node:fs"]] as const) {
    const reason = whyNotEngine(name)
    it.scoped.skipIf(reason !== undefined)(`leave nothing in the process, with ${name}`, () =>
      Effect.gen(function*() {
        const { directory } = yield* Mounted
        const before = yield* settledFreeBytes(directory)
        const played = yield* rounds
        const running = yield* startChild("terminated", [JSON.stringify(played)], {
          in: directory,
          env: { DISK_STORAGE_IO_ENGINE: engine }
        })
        assert.isTrue(yield* running.printed(/^through$/m), running.output())
        const left = [...running.output().matchAll(/^left (.*)$/gm)].map(([, what = ""]) => JSON.parse(what))
        assert.deepStrictEqual(
          left,
          played.map(() => []),
          `seed ${seed}, ${JSON.stringify(played)}, ${running.output()}`
        )
        // The process goes on.
        yield* assertGivenBack(directory, before)
        assert.isNotEmpty(processesOf(running.directory))
      }).pipe(seeded(engine)), testTimeout)
  }
})
