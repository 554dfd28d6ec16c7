/**
 * The verdict of a storage, the doctor's, and the pages that writes through the storage really dirty: on every kind of filesystem, and
 * on every profile of btrfs that can be made here.
 */
import { NodeFileSystem } from "@effect/platform-node"
import { assert, describe, it as plainly } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { closeSync, constants, copyFileSync, mkdirSync, openSync, readFileSync } from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DirectIo from "../../src/DirectIo.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import { cachedPages } from "./cachestat.js"
import type { Kind } from "./mounts.js"
import { command, whyNot } from "./mounts.js"
import type { It } from "./real.js"
import { describeReal, freshPath, Mounted } from "./real.js"

type Verdict = DiskStorage.DirectIoState["verdict"]

const mebibyte = 1024 * 1024
/** Many more pages than the per-CPU counters keep back (125 each). */
const blocks = 8
const pages = blocks * mebibyte / 4096
const few = pages / 4

/** Rounds until one is seen that nothing else on the machine has disturbed. */
const maxRounds = 100
/** Rounds that must all have dirtied the pages; what others dirty only adds to them. */
const bufferedRounds = 2

/** Pages dirtied on the whole machine so far (`proc_vmstat(5)`). */
const dirtied = Effect.sync(() =>
  Number(/^nr_dirtied (\d+)$/m.exec(readFileSync("/proc/vmstat", "utf8"))?.[1] ?? Number.NaN)
)

/** The least that a pass of writes over clean pages has dirtied. */
const fewestDirtied = (storage: DiskStorage.DiskStorage, rounds: number) =>
  Effect.gen(function*() {
    const block = yield* AlignedBuffer.make(mebibyte)
    block.bytes.fill(1)
    let fewest = Number.POSITIVE_INFINITY
    for (let round = 0; round < rounds && fewest >= few; round++) {
      yield* storage.sync
      const before = yield* dirtied
      for (let index = 0; index < blocks; index++) yield* storage.write(index * mebibyte, block)
      fewest = Math.min(fewest, (yield* dirtied) - before)
    }
    return fewest
  })

/** Where the pages are the storage and nobody counts them as dirtied: whether they are there. */
const areCached = (storage: DiskStorage.DiskStorage) =>
  Effect.gen(function*() {
    const { directory, upper } = yield* Mounted
    return yield* Effect.acquireUseRelease(
      Effect.sync(() => openSync(storage.path.replace(directory, upper ?? directory), "r")),
      (fd) => Effect.map(cachedPages(fd, 0, blocks * mebibyte), (cached) => cached === undefined || cached === pages),
      (fd) => Effect.sync(() => closeSync(fd))
    )
  })

interface Case {
  readonly verdict: Verdict
  readonly doctor: DirectIo.IoVerdict
  /** Files have no pages but those that they are. */
  readonly inMemory?: boolean
  readonly prepare?: (directory: string) => Effect.Effect<unknown>
}

const size = blocks * mebibyte

/** Two verdicts and what was done; `expected` is the storage's, a reason to fail by itself. */
const compare = (
  storage: DiskStorage.DiskStorage,
  report: DirectIo.DirectIoReport,
  { doctor, inMemory = false, verdict }: Case
) =>
  Effect.gen(function*() {
    const said = `storage: ${storage.directIo.reason}; doctor: ${report.verdict.reasons.io.join("; ")}`
    assert.strictEqual(storage.directIo.verdict, verdict, said)
    assert.strictEqual(report.verdict.io, doctor, said)
    if (verdict === "direct") {
      assert.isBelow(yield* fewestDirtied(storage, maxRounds), few, said)
    } else if (verdict === "buffered" && inMemory) {
      yield* fewestDirtied(storage, 1)
      assert.isTrue(yield* areCached(storage), said)
    } else if (verdict === "buffered") {
      assert.isAtLeast(yield* fewestDirtied(storage, bufferedRounds), pages - few, said)
    }
    // The rule, whatever the table expects.
    if (verdict === "direct") assert.notStrictEqual(report.verdict.io, "buffered")
    if (report.verdict.io.startsWith("direct")) assert.notStrictEqual(verdict, "buffered")
  })

const acquire = (directory: string, more: Partial<DiskStorage.DiskStorageOptions> = {}) =>
  DiskStorage.make({ size, directory, directIo: "preferred", fallback: "zero-fill", ...more })

const inspect = (directory: string) => Effect.provide(DirectIo.inspect(directory), NodeFileSystem.layer)

const suite = (expected: Case) => (it: It) => {
  it.scoped(`storage: ${expected.verdict}, doctor: ${expected.doctor}, and the pages agree`, () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      mkdirSync(directory)
      yield* expected.prepare?.(directory) ?? Effect.void
      const storage = yield* acquire(directory)
      yield* compare(storage, yield* inspect(directory), expected)
    }))
}

const direct: Case = { verdict: "direct", doctor: "direct" }
const withConditions: Case = { verdict: "direct", doctor: "direct-with-conditions" }
const buffered: Case = { verdict: "buffered", doctor: "buffered" }

const truth: ReadonlyArray<readonly [Kind, Case]> = [
  ["ext4 on a direct loop", direct],
  ["ext4 on 4096-byte sectors", direct],
  ["ext4 with data=journal on a direct loop", buffered],
  ["ext4 with data=journal by default", buffered],
  ["ext4 with the attribute j", direct],
  ["ext4 with the attribute j and without delayed allocation", buffered],
  ["ext4 without extents", withConditions],
  ["ext4 with inline data", withConditions],
  ["ext2 on a direct loop", withConditions],
  ["ext3 on a direct loop", withConditions],
  ["ext3 without extents on a direct loop", withConditions],
  ["xfs on a direct loop", direct],
  ["xfs without reflinks", direct],
  ["btrfs with data as single", withConditions],
  ["btrfs with data as dup", buffered],
  ["btrfs with data as raid0", withConditions],
  ["btrfs with data as raid1", buffered],
  ["btrfs with data as raid1c3", buffered],
  ["btrfs with data as raid1c4", buffered],
  ["btrfs with data as raid10", buffered],
  ["btrfs with data as raid5", buffered],
  ["btrfs with data as raid6", buffered],
  ["btrfs with data and metadata mixed", withConditions],
  ["btrfs with data and metadata mixed, as dup", buffered],
  ["btrfs without copy-on-write", direct],
  ["btrfs without checksums", withConditions],
  ["btrfs with compression", withConditions],
  ["btrfs with compression by force", withConditions],
  ["tmpfs", { ...buffered, inMemory: true }],
  ["ramfs", { verdict: "buffered", doctor: "unsupported", inMemory: true }],
  ["overlay on a direct loop", direct],
  ["overlay on xfs", direct],
  ["overlay on data=journal", buffered],
  // Nothing tells a storage what lies below; the doctor finds the mount.
  ["overlay on btrfs", { verdict: "unknown", doctor: "buffered" }],
  ["overlay on tmpfs", { verdict: "unknown", doctor: "buffered" }]
]

for (const [kind, expected] of truth) describeReal(kind, { name: "verdicts" }, suite(expected))

describeReal(
  "btrfs with data as single",
  { name: "verdicts of files that are not NOCOW", tools: ["chattr"] },
  suite({ ...buffered, prepare: (directory) => command("chattr", "+c", directory) })
)

const whyNoFuse = whyNot("bindfs")
if (whyNoFuse === undefined) {
  describeReal("bindfs", { name: "verdicts" }, suite({ verdict: "unknown", doctor: "unknown" }))
} else {
  describe("bindfs: verdicts", () => {
    plainly.skip(`not here: ${whyNoFuse}`, () => {})
  })
}

/** A storage that was kept at `keepAt`, after `change` was done to its file, taken up by `use`. */
const takenUp = <A, E, R, R2>(
  directory: string,
  change: (keepAt: string) => Effect.Effect<unknown, never, R2>,
  use: (storage: DiskStorage.DiskStorage) => Effect.Effect<A, E, R>
) =>
  Effect.gen(function*() {
    const keepAt = join(directory, "kept")
    const content = new Uint8Array(size).fill(0x5a)
    yield* Effect.scoped(Effect.gen(function*() {
      const storage = yield* acquire(directory, { keepAt })
      yield* storage.writeBytes(0, content)
      yield* storage.keep
    }))
    yield* change(keepAt)
    return yield* Effect.scoped(Effect.gen(function*() {
      const storage = yield* acquire(directory, { keepAt })
      assert.isTrue(storage.keptAt?.takenUp)
      assert.isTrue(Buffer.compare(yield* storage.readBytes(0, size), content) === 0, "the content")
      return yield* use(storage)
    }))
  })

for (
  const [kind, expected] of [
    ["ext4 on a direct loop", direct],
    ["xfs on a direct loop", direct],
    ["btrfs with data as single", withConditions],
    ["btrfs with data as raid1", buffered]
  ] as const
) {
  describeReal(kind, { name: "verdicts on kept files" }, (it) => {
    it.scoped(`${expected.verdict}, with every byte of the content in place`, () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        mkdirSync(directory)
        yield* takenUp(
          directory,
          () => Effect.void,
          (storage) => Effect.flatMap(inspect(directory), (report) => compare(storage, report, expected))
        )
      }))
  })
}

describeReal("xfs on a direct loop", { name: "verdicts on reflinked files" }, (it) => {
  it.scoped("a kept file that shares its blocks is direct, and overwrites of it may run out of space", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      mkdirSync(directory)
      yield* takenUp(
        directory,
        (keepAt) => Effect.sync(() => copyFileSync(keepAt, join(directory, "copy"), constants.COPYFILE_FICLONE_FORCE)),
        (storage) =>
          Effect.gen(function*() {
            assert.isTrue(storage.allocation.overwritesMayRunOutOfSpace)
            yield* compare(storage, yield* inspect(directory), direct)
          })
      )
    }))
})

describeReal("btrfs with data as single", { name: "verdicts on files in a snapshot", tools: ["btrfs"] }, (it) => {
  it.scoped("a kept file is direct, and overwrites of it may run out of space", () =>
    Effect.gen(function*() {
      const { directory: mount } = yield* Mounted
      const directory = yield* freshPath
      mkdirSync(directory)
      yield* takenUp(
        directory,
        () => command("btrfs", "subvolume", "snapshot", mount, join(mount, "snapshot")),
        (storage) =>
          Effect.gen(function*() {
            assert.isTrue(storage.allocation.overwritesMayRunOutOfSpace)
            yield* compare(storage, yield* inspect(directory), withConditions)
          })
      )
    }))
})

describeReal("btrfs with data as raid0", { name: "verdicts with several data profiles", tools: ["btrfs"] }, (it) => {
  it.scoped("follow the profile that new data gets", () =>
    Effect.gen(function*() {
      const { directory: mount } = yield* Mounted
      const directory = yield* freshPath
      mkdirSync(directory)
      yield* Effect.scoped(Effect.flatMap(acquire(directory), (storage) =>
        Effect.flatMap(inspect(directory), (report) =>
          compare(storage, report, withConditions))))
      // Several block groups, one of which is converted: as a balance leaves them that was stopped.
      yield* command("fallocate", "-l", "100M", join(directory, "old"))
      yield* command("btrfs", "balance", "start", "-dconvert=raid1,limit=1", mount)
      const usage = yield* command("btrfs", "filesystem", "df", mount)
      assert.match(usage, /^Data, RAID0:/m)
      assert.match(usage, /^Data, RAID1:/m)
      yield* compare(yield* acquire(directory), yield* inspect(directory), buffered)
    }))
})
