/** What is written is read: every engine, on real filesystems, in any order, single and in batches, whatever is interrupted. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { constants } from "node:fs"
import { IoEngine } from "../../src/IoEngine.js"
import type { Kind } from "../filesystems/mounts.js"
import { describeReal, freshPath } from "../filesystems/real.js"
import type { Limits } from "./engines.js"
import { descriptor, descriptors, engines, mebibyte, page, seed, whyNotEngine } from "./engines.js"
import { follow } from "./model.js"

interface Setting {
  readonly kind: Kind
  readonly direct: boolean
  readonly unit: number
}

const settings: ReadonlyArray<Setting> = [
  { kind: "ext4", direct: true, unit: 512 },
  { kind: "ext4 on 4096-byte sectors", direct: true, unit: page },
  { kind: "ext4", direct: false, unit: 1 },
  { kind: "xfs", direct: true, unit: page },
  { kind: "btrfs", direct: true, unit: page },
  { kind: "tmpfs", direct: true, unit: page }
]

const limits: ReadonlyArray<readonly [string, Limits]> = [
  ["as it is by default", {}],
  ["with few slots", { depth: 3 }],
  ["with few bytes in flight", { maxBytesInFlight: 100_000, maxBytesPerSubmission: 70_000 }]
]

const size = 4 * mebibyte

for (const { direct, kind, unit } of settings) {
  const name = `${direct ? "O_DIRECT" : "buffered"}, units of ${unit} bytes`
  describeReal(kind, { name }, (it) => {
    for (const engine of engines) {
      if (whyNotEngine(engine.name) !== undefined && process.env["EDS_REQUIRE_REAL"] !== "1") continue
      for (const [how, limit] of direct && unit === 512 ? limits : limits.slice(0, 1)) {
        it.scoped(`${engine.name} ${how}`, () =>
          Effect.gen(function*() {
            const path = yield* freshPath
            const flags = constants.O_RDWR | constants.O_CREAT | (direct ? constants.O_DIRECT : 0)
            const before = descriptors()
            for (
              const [interrupt, longest] of [[false, 2.5 * mebibyte], [true, 1.5 * mebibyte], [
                true,
                64 * 1024
              ]] as const
            ) {
              const outcome = yield* Effect.gen(function*() {
                const fd = yield* descriptor(path, size, flags | constants.O_TRUNC)
                const file = yield* Effect.flatMap(IoEngine, ({ file }) => file(fd, { path, direct, alignment: unit }))
                return yield* follow({
                  seed: seed + longest,
                  file,
                  size,
                  unit,
                  maxUnits: Math.floor(longest / unit),
                  rounds: 4,
                  interrupt
                })
              }).pipe(Effect.scoped, Effect.provide(engine.layer(limit)))
              assert.isAbove(outcome.succeeded, 0)
              if (interrupt && longest < mebibyte) assert.isAbove(outcome.interrupted, 0, "nothing was interrupted")
            }
            assert.deepStrictEqual(descriptors(), before)
          }))
      }
    }
  })
}
