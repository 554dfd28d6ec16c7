/** Processes that are killed at random moments: the next start takes away what they left, and touches nobody who is alive. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { readdirSync, statSync } from "node:fs"
import { join } from "node:path"
import { assertGivenBack, describeReal, Mounted, settledFreeBytes } from "../filesystems/real.js"
import type { Moment } from "./children/life.js"
import type { Running } from "./processes.js"
import { childCommand, seed, seeded, start, startChild, testTimeout } from "./processes.js"

/** How long each takes at least (milliseconds), on a fast machine: the kill comes within that. */
const moments: ReadonlyArray<readonly [Moment, number]> = [
  ["acquire", 12],
  ["fill", 40],
  ["io", 40],
  ["keep", 12],
  ["release", 8]
]

/** Before each next start one is killed at each moment, and before every other a group of two. */
const killsOfBatch = moments.length

interface Neighbour {
  readonly running: Running
  readonly path: string
  /** Compares all that it has written, and that its file still has its name. */
  readonly isUndisturbed: Effect.Effect<void>
}

const inode = (output: string, line: string) => {
  const [, path = "", inode = ""] = new RegExp(`^${line} (\\S+) (\\d+)$`, "m").exec(output) ?? []
  return { path, inode }
}

for (const [kind, batches, gigabytes] of [["ext4", 8, 0.024], ["xfs", 6, 0.024], ["tmpfs", 6, 0.006]] as const) {
  describeReal(
    kind,
    { name: `${batches * killsOfBatch} processes and ${batches / 2} groups are killed` },
    (it) => {
      it.scoped("at random moments, and nothing is left after the next start", () =>
        Effect.gen(function*() {
          const { directory } = yield* Mounted
          const before = yield* settledFreeBytes(directory)
          const env = { DYN_KVBM_DISK_CACHE_DIR: directory, DYN_KVBM_DISK_CACHE_GB: `${gigabytes}` }
          const keepAt = join(directory, "kept")
          const round = (
            moment: Moment
          ) => ["ProcessRuntime", moment, "wait", "0", ...moment === "keep" ? [keepAt] : []]

          const neighbour = Effect.gen(function*() {
            const running = yield* startChild("neighbour", [], { env })
            assert.isTrue(yield* running.printed(/^held /m), running.output())
            const held = inode(running.output(), "held")
            let asked = 0
            const isUndisturbed = Effect.gen(function*() {
              yield* running.type("\n")
              asked += 1
              assert.isTrue(yield* running.printed(new RegExp(`^verified ${asked} `, "m")), running.output())
              assert.deepStrictEqual(inode(running.output(), `verified ${asked}`), held)
            })
            return { running, path: held.path, isUndisturbed } satisfies Neighbour
          })
          const end = ({ running }: Neighbour) =>
            Effect.gen(function*() {
              yield* running.signal("SIGTERM", "leader")
              assert.strictEqual((yield* running.ended).code, 143, running.output())
            })

          /** Again where the program was faster. */
          const kill = (moment: Moment, most: number): Effect.Effect<void> =>
            Effect.gen(function*() {
              const isKilled = yield* Effect.scoped(Effect.gen(function*() {
                const victim = yield* startChild("round", round(moment), { env })
                assert.isTrue(yield* victim.printed(/^begun$/m), victim.output())
                yield* Effect.sleep(yield* Random.nextRange(0, most))
                yield* victim.signal("SIGKILL", "leader")
                return (yield* victim.ended).signal === "SIGKILL"
              }))
              if (!isKilled) yield* kill(moment, most / 2)
            })
          const killGroup = Effect.scoped(Effect.gen(function*() {
            const commands = (["io", "fill"] as const).map((moment) =>
              childCommand("round", round(moment)).replace("exec ", "")
            )
            const group = yield* start("sh", ["-c", `${commands.join(" & ")} & wait`], { env })
            assert.isTrue(yield* group.printed(/^begun$[^]*^begun$/m), group.output())
            yield* Effect.sleep(yield* Random.nextRange(0, 40))
            assert.isTrue(yield* group.signal("SIGKILL", "group"))
            yield* group.ended
          }))

          /** A process that begins after the kills, and ends by itself. */
          const nextStart = Effect.scoped(Effect.gen(function*() {
            const next = yield* startChild("round", ["ProcessRuntime", "release", "wait", "0", keepAt], { env })
            assert.strictEqual((yield* next.ended).code, 0, next.output())
          }))
          const assertOnly = (neighbours: ReadonlyArray<Neighbour>) =>
            Effect.gen(function*() {
              const paths = neighbours.map(({ path }) => path)
              assert.sameMembers(
                readdirSync(directory).filter((name) => name !== "lost+found").map((name) => join(directory, name)),
                paths
              )
              yield* Effect.forEach(neighbours, ({ isUndisturbed }) => isUndisturbed, { concurrency: 2 })
              yield* assertGivenBack(
                directory,
                before - paths.reduce((sum, path) => sum + statSync(path).blocks * 512, 0)
              )
            })

          let leftByKills = 0
          yield* Effect.scoped(Effect.gen(function*() {
            const always = yield* neighbour
            yield* Effect.forEach(Array.from({ length: batches }), (_, batch) =>
              Effect.scoped(Effect.gen(function*() {
                const passing = yield* neighbour
                yield* Effect.forEach(moments, ([moment, most]) => kill(moment, most), { concurrency: 3 })
                if (batch % 2 === 0) yield* killGroup
                leftByKills += readdirSync(directory).length - 2
                yield* nextStart
                yield* assertOnly([always, passing])
                yield* end(passing)
                yield* assertOnly([always])
              })))
            yield* end(always)
          }))
          yield* assertOnly([])
          // Else there was nothing to be swept.
          assert.isAtLeast(leftByKills, batches)
        }).pipe(Effect.annotateLogs({ seed }), seeded(kind)), testTimeout)
    }
  )
}
