/** A real terminal, made by script(1): Ctrl-C is typed, and the terminal goes away. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import type { Running } from "./processes.js"
import {
  assertNothingLeft,
  childCommand,
  pressAgain,
  seed,
  seeded,
  start,
  temporaryDirectory,
  testTimeout
} from "./processes.js"

const ctrlC = "\x03"

/** `command` in the foreground of a new terminal, of which nothing is recorded. */
const inTerminal = (command: string, env: Readonly<Record<string, string>> = {}) =>
  start("script", ["-qec", command, "/dev/null"], { env })

const assertPrinted = (running: Running, line: RegExp) =>
  Effect.map(running.printed(line), (came) => assert.isTrue(came, running.output()))

/** What the quickstart prints, and how far beyond it to go at most (milliseconds). */
const moments = [
  [/^effect-disk-storage$/m, 20],
  [/^ {2}engine /m, 100],
  [/^ {2}write {7}\d+ blocks/m, 100],
  [/^ {2}read {8}\d+ blocks/m, 10]
] as const

describe("in a terminal", () => {
  it.live(
    "Ctrl-C leaves nothing of npm start",
    () =>
      Effect.forEach(moments, ([line, millis]) =>
        Effect.scoped(Effect.gen(function*() {
          const running = yield* inTerminal("npm start")
          yield* assertPrinted(running, line)
          yield* Effect.sleep(yield* Random.nextIntBetween(0, millis))
          yield* running.type(ctrlC)
          const { code, signal } = yield* running.ended
          const told = JSON.stringify({ seed, line: String(line), code, signal, output: running.output() })
          const wasThrough = / {2}released {4}/.test(running.output())
          assert.isTrue(code === 130 || (wasThrough && code === 0), told)
          yield* assertNothingLeft(running)
        })), { concurrency: 2 }).pipe(seeded("typed")),
    testTimeout
  )

  it.live(
    "a second Ctrl-C within a second lets the release finish, a later one ends it",
    () =>
      Effect.scoped(Effect.gen(function*() {
        const quick = yield* inTerminal(childCommand("held", ["one", "slow"]))
        yield* assertPrinted(quick, /^held /m)
        yield* quick.type(ctrlC)
        yield* quick.type(ctrlC)
        assert.deepStrictEqual(yield* quick.ended, { code: 130, signal: null }, quick.output())
        // The terminal echoes what is typed, wherever the output is by then.
        assert.match(quick.output(), /^(\^C)*released\nexit 130$/m)
        yield* assertNothingLeft(quick)

        const patient = yield* inTerminal(childCommand("held", ["one", "endless"]))
        yield* assertPrinted(patient, /^held /m)
        yield* patient.type(ctrlC)
        yield* assertPrinted(patient, /releasing$/m)
        yield* pressAgain(patient, patient.type(ctrlC))
        assert.deepStrictEqual((yield* patient.ended).code, 130, patient.output())
        assert.notMatch(patient.output(), /^(released|exit .*)$/m)
        yield* assertNothingLeft(patient)
      })),
    testTimeout
  )

  it.live(
    "closing it releases, although what the release prints goes nowhere",
    () =>
      Effect.scoped(Effect.gen(function*() {
        const report = join(yield* temporaryDirectory, "report")
        const running = yield* inTerminal(childCommand("held", ["twice", "slow"]), { EDS_REPORT: report })
        yield* assertPrinted(running, /^held /m)
        yield* running.signal("SIGKILL", "leader")
        yield* running.ended
        yield* assertNothingLeft(running)
        assert.deepStrictEqual(
          readFileSync(report, "utf8").trim().split("\n"),
          ["held 2", "releasing", "released", "releasing", "released", "exit 129"]
        )
      })),
    testTimeout
  )
})
