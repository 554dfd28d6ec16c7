/** `npm start`, signalled at any moment, as a terminal, a supervisor or an impatient user does. Programs without npm are in `rounds.test.ts`. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { assertNothingLeft, exitCode, npmStart, processesOf, seed, seeded, testTimeout } from "./processes.js"
import type { Ended, Signal } from "./processes.js"

/** Lines of the quickstart: each is printed when a part of its work begins or is done. */
const lines = {
  begun: /^effect-disk-storage$/m,
  acquired: /^ {2}path /m,
  writing: /^ {2}engine /m,
  reading: /^ {2}write /m,
  releasing: /^ {2}read /m,
  released: /^ {2}released /m
} as const

type Line = keyof typeof lines

const partOf = (output: string): Line | "starting" => {
  const order = ["released", "releasing", "reading", "writing", "acquired", "begun"] as const
  return order.find((line) => lines[line].test(output)) ?? "starting"
}

/** One undisturbed run: when each line came (milliseconds), which says from when to when there is what to disturb. */
const undisturbed = Effect.runSync(Effect.cached(Effect.scoped(Effect.gen(function*() {
  const started = performance.now()
  const running = yield* npmStart
  const at = (line: Line) => Effect.map(running.printed(lines[line]), () => performance.now() - started)
  const begun = yield* at("begun")
  const acquired = yield* at("acquired")
  const found = processesOf(running.directory).length
  const writing = yield* at("writing")
  const reading = yield* at("reading")
  const releasing = yield* at("releasing")
  const released = yield* at("released")
  const ended = yield* running.ended
  return { begun, acquired, writing, reading, releasing, released, ended, found, output: running.output() }
}))))

interface Round {
  /** What to wait for, and then how long; from the start where there is nothing to wait for. */
  readonly after: Line | undefined
  readonly delay: number
  /** When more than one signal is sent: milliseconds between them. */
  readonly gap: number
}

/** A fifth of the moments spread over the whole run, and a fifth in each of creation, writing, reading and release. */
const moments = (count: number) =>
  Effect.gen(function*() {
    const fifth = count / 5
    const times = yield* undisturbed
    const gap = Random.nextIntBetween(0, 400)
    // Two runs at a time take longer than one.
    const whole = times.released * 1.5
    const anywhere = Effect.forEach(Array.from({ length: fifth }, (_, index) => index), (index): Effect.Effect<Round> =>
      Effect.gen(function*() {
        const delay = whole * (index + (yield* Random.next)) / fifth
        return { after: undefined, delay, gap: yield* gap }
      }))
    const within = (after: Line, length: number) =>
      Effect.replicateEffect(
        Effect.gen(function*() {
          return { after, delay: length * (yield* Random.next), gap: yield* gap }
        }),
        fifth
      )
    return [
      ...yield* anywhere,
      ...yield* within("begun", times.acquired - times.begun),
      ...yield* within("writing", times.reading - times.writing),
      ...yield* within("reading", times.releasing - times.reading),
      ...yield* within("releasing", times.released - times.releasing)
    ]
  })

interface Case {
  readonly signal: Signal
  readonly to: "group" | "leader"
  readonly presses: 1 | 2
  readonly rounds: number
}

/**
 * What npm must end with when the first signal came while the storage was held: the exit code of the program. Where npm itself dies
 * by the signal there is nothing to see: a second SIGINT that comes when the program has ended.
 */
const isAsDocumented = (
  { presses, signal }: Case,
  { ended, output }: { readonly ended: Ended; readonly output: string }
) =>
  ended.code === exitCode(signal) ||
  (ended.signal === signal && presses === 2) ||
  // The signal came when all was done.
  (lines.released.test(output) && (ended.code === 0 || ended.signal === signal))

const run = (kind: Case, round: Round) =>
  Effect.scoped(Effect.gen(function*() {
    const running = yield* npmStart
    if (round.after !== undefined) yield* running.printed(lines[round.after])
    yield* Effect.sleep(round.delay)
    const part = partOf(running.output())
    yield* running.signal(kind.signal, kind.to)
    if (kind.presses === 2) {
      yield* Effect.sleep(round.gap)
      yield* running.signal(kind.signal, kind.to)
    }
    const ended = yield* running.ended
    const output = running.output()
    const told = JSON.stringify({ seed, kind, round, part, ended, output }, undefined, 2)
    yield* assertNothingLeft(running)
    if (part !== "starting" && part !== "begun") assert.isTrue(isAsDocumented(kind, { ended, output }), told)
    return partOf(output)
  }))

const cases: ReadonlyArray<readonly [string, Case]> = [
  ["SIGINT to the group, as a terminal sends it", { signal: "SIGINT", to: "group", presses: 1, rounds: 5 }],
  ["SIGINT to npm alone", { signal: "SIGINT", to: "leader", presses: 1, rounds: 5 }],
  ["SIGTERM to npm alone", { signal: "SIGTERM", to: "leader", presses: 1, rounds: 5 }],
  ["SIGINT to the group, twice within a second", { signal: "SIGINT", to: "group", presses: 2, rounds: 5 }]
]

describe("npm start", () => {
  it.live("ends by itself, and is found by its environment until then", () =>
    Effect.gen(function*() {
      const { ended, found, output } = yield* undisturbed
      assert.deepStrictEqual(ended, { code: 0, signal: null }, output)
      assert.isAtLeast(found, 2)
    }), testTimeout)

  for (const [name, kind] of cases) {
    it.live(`leaves nothing after ${name}`, () =>
      Effect.gen(function*() {
        const parts = yield* Effect.forEach(yield* moments(kind.rounds), (round) => run(kind, round), {
          concurrency: 2
        })
        // They take long enough to be met even on a slow machine.
        assert.isTrue(parts.includes("writing") || parts.includes("reading"), `seed ${seed}: ${parts.join(", ")}`)
      }).pipe(seeded(name)), testTimeout)
  }
})
