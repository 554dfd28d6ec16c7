/** Storages that are to be had with proof of direct I/O, or not at all; and the one warning of those that may be buffered. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import { mkdirSync } from "node:fs"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { Kind } from "./mounts.js"
import { command } from "./mounts.js"
import { assertBytes, assertNothingLeft, describeReal, freshPath, Mounted, settledFreeBytes } from "./real.js"

const size = 1024 * 1024 + 1234

const combinations = (["default", "open-direct"] as const).flatMap((openStrategy) =>
  [false, true].map((earlyUnlink) => ({ openStrategy, earlyUnlink }))
)

/** What an effect logs as a warning or worse. */
const warnings = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const logger = Logger.make(({ logLevel, message }) => {
      if (LogLevel.greaterThanEqual(logLevel, LogLevel.Warning)) lines.push(String(message))
    })
    return Effect.as(Effect.provide(effect, Logger.add(logger)), lines)
  })

const provable: ReadonlyArray<Kind> = [
  "ext4 on a direct loop",
  "ext4 on 4096-byte sectors",
  "ext2 on 4096-byte sectors",
  "ext4 with inline data",
  "xfs on a direct loop",
  "btrfs on a direct loop",
  "overlay on a direct loop"
]

for (const kind of provable) {
  describeReal(kind, { name: "proven" }, (it) => {
    it.scoped("a storage is to be had, new and empty, and leaves nothing", () =>
      Effect.forEach(combinations, (combination) =>
        Effect.gen(function*() {
          const mount = yield* Mounted
          const directory = yield* freshPath
          const before = yield* settledFreeBytes(mount.directory)
          yield* Effect.scoped(Effect.gen(function*() {
            const storage = yield* DiskStorage.make({ size, directory, directIo: "proven", ...combination })
            assert.deepInclude(storage.directIo, { flag: true, verdict: "direct" })
            assert.match(storage.directIo.reason, /^proven: /)
            assertBytes(yield* storage.readBytes(0, size), new Uint8Array(size), "a new storage")
          }))
          yield* assertNothingLeft(directory, before)
        }), { discard: true }))
  })
}

interface Refused {
  readonly filesystem: string
  readonly reasons: ReadonlyArray<RegExp>
  readonly prepare?: (directory: string) => Effect.Effect<unknown>
}

const wentThrough = [/^write: .*page cache/, /^read: .*page cache/]

const refused: ReadonlyArray<readonly [Kind, Refused]> = [
  ["ext4 with data=journal on a direct loop", {
    filesystem: "ext2/ext3/ext4",
    reasons: [...wentThrough, /data journaling/]
  }],
  ["overlay on data=journal", { filesystem: "overlay", reasons: [...wentThrough, /data journaling/] }],
  ["tmpfs", { filesystem: "tmpfs", reasons: [/^write: .*page cache/, /^read: .*in memory/, /tmpfs/] }],
  ["ramfs", { filesystem: "ramfs", reasons: [/O_DIRECT/] }],
  ["btrfs on a direct loop", {
    filesystem: "btrfs",
    reasons: [...wentThrough, /NOCOW/],
    prepare: (directory) => command("chattr", "+c", directory)
  }]
]

for (const [kind, { filesystem, prepare, reasons }] of refused) {
  describeReal(kind, { name: "not proven", tools: prepare === undefined ? [] : ["chattr"] }, (it) => {
    it.scoped("there is no storage, the failure says what was seen, and nothing is left", () =>
      Effect.forEach(combinations, (combination) =>
        Effect.gen(function*() {
          const mount = yield* Mounted
          const directory = yield* freshPath
          mkdirSync(directory)
          yield* prepare?.(directory) ?? Effect.void
          const before = yield* settledFreeBytes(mount.directory)
          const failure = yield* Effect.flip(DiskStorage.make({ size, directory, directIo: "proven", ...combination }))
          if (failure._tag !== "DirectIoUnavailable") return assert.fail(failure.message)
          assert.strictEqual(failure.filesystem, filesystem)
          assert.strictEqual(failure.reasons.length, reasons.length, failure.reasons.join("; "))
          reasons.forEach((reason, index) => assert.match(failure.reasons[index] ?? "", reason))
          yield* assertNothingLeft(directory, before)
        }), { discard: true }))
  })
}

const warned: ReadonlyArray<readonly [Kind, ReadonlyArray<string>]> = [
  ["ext4 on a direct loop", []],
  ["ext4 with data=journal on a direct loop", ["O_DIRECT was accepted, and I/O is buffered all the same"]],
  ["tmpfs", ["O_DIRECT was accepted, and I/O is buffered all the same"]]
]

for (const [kind, expected] of warned) {
  describeReal(kind, { name: "warnings" }, (it) => {
    it.scoped(`required: ${expected.length}`, () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const lines = yield* warnings(Effect.scoped(DiskStorage.make({ size, directory, directIo: "required" })))
        assert.deepStrictEqual(lines, expected)
      }))
  })
}
