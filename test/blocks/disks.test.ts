/** Two disks of the real kernel, one of which dies in the middle of a batch. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { execFileSync } from "node:child_process"
import { closeSync, ftruncateSync, openSync, readdirSync, readlinkSync, writeSync } from "node:fs"
import { dirname, join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as BlockStore from "../../src/BlockStore.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as Linux from "../../src/Linux.js"
import type { Kind, Mount } from "../filesystems/mounts.js"
import { environment, mounted } from "../filesystems/mounts.js"
import { describeReal, freshPath, openBelow } from "../filesystems/real.js"
import { assertSettled, fill, versionOf } from "./blocks.js"

const blockBytes = 16 * 1024
const capacity = 600
const failureLimit = 5
const maxBlocksInFlight = 4

/** In order; none of them needs room that another has. */
const range = (from: number, length: number) => Array.from({ length }, (_, index) => from + index)
const before = range(1, 100)
const batch = range(101, 500)
const after = range(601, 50)

const block = (hash: number) =>
  Effect.map(AlignedBuffer.make(blockBytes), (data): BlockStore.Block => {
    fill(data.bytes, hash, hash)
    return { hash: BigInt(hash), data }
  })

/** The blocks that lie on a disk; nothing there is written over, since there is room for all. */
const lieOn = (storage: DiskStorage.DiskStorage) =>
  Effect.gen(function*() {
    const into = yield* AlignedBuffer.make(blockBytes)
    const found = new Set<number>()
    for (let slot = 0; slot < capacity; slot++) {
      yield* storage.read(slot * blockBytes, into)
      // A block begins with its version, which is its hash here.
      const hash = new Int32Array(into.bytes.buffer, into.bytes.byteOffset, 1)[0] ?? 0
      if (hash === 0) continue
      assert.strictEqual(versionOf(into.bytes, hash, `slot ${slot}`), hash)
      found.add(hash)
    }
    return found
  })

const sorted = (numbers: Iterable<number>) => [...numbers].sort((a, b) => a - b)

/** Waits for something that is known to come; nothing is measured by the limit. */
const until = (condition: Effect.Effect<boolean>) =>
  Effect.repeat(Effect.zipRight(Effect.sleep("2 millis"), condition), { until: Boolean }).pipe(
    Effect.timeout("20 seconds")
  )

/** What is done to a disk, at once: no block begins or ends meanwhile but those in flight. */
type Death = (mount: Mount) => void

const vanish: Death = ({ device, image }) => {
  if (image === undefined) return assert.fail("this kind has an image")
  ftruncateSync(image, 0)
  execFileSync("losetup", ["--set-capacity", `/dev/${device}`], { env: environment })
}

/** The filesystem that the image lies on, sparse, takes no more. */
const fillUp: Death = ({ image }) => {
  const below = dirname(readlinkSync(`/proc/self/fd/${image}`))
  const filler = openSync(join(below, "filler"), "w")
  try {
    assert.throws(() => {
      for (;;) writeSync(filler, new Uint8Array(1024 * 1024))
    }, "ENOSPC")
  } finally {
    closeSync(filler)
  }
}

const shutDown: Death = ({ directory }) => {
  execFileSync("xfs_io", ["-x", "-c", "shutdown", directory], { env: environment })
}

const dies = (kind: Kind, die: Death, engine: "io_uring" | "aio" | "node") =>
  Effect.gen(function*() {
    const mount = yield* mounted(kind)
    const dyingDirectory = join(mount.directory, "cache")
    const liveDirectory = yield* freshPath
    yield* Effect.scoped(Effect.gen(function*() {
      const make = (directory: string) =>
        DiskStorage.make({ size: capacity * blockBytes, directory, directIo: "required" })
      const dying = yield* make(dyingDirectory)
      const live = yield* make(liveDirectory)
      const store = yield* BlockStore.make([dying, live], {
        blockBytes,
        failureLimit,
        maxBlocksInFlight
      })

      const stored = new Set<number>()
      const removed = new Map<number, string>()
      yield* Effect.forkScoped(Stream.runForEach(store.events, (event) =>
        Effect.sync(() => {
          if (event._tag === "Stored") stored.add(Number(event.hash))
          else removed.set(Number("hash" in event ? event.hash : -1), "reason" in event ? event.reason : event._tag)
        })))
      yield* Effect.sleep("5 millis")

      const offload = (hashes: ReadonlyArray<number>) =>
        Effect.flatMap(Effect.forEach(hashes, block), (blocks) => store.offload(blocks))
      /** Its bytes are its own, or it is not there. */
      const read = (hash: number) =>
        Effect.gen(function*() {
          const into = yield* AlignedBuffer.make(blockBytes)
          const result = (yield* store.onboard([{ hash: BigInt(hash), into }])).get(0)
          if (Either.isLeft(result)) return result.left._tag
          assert.strictEqual(versionOf(into.bytes, hash, `block ${hash}`), hash)
          return "read"
        })

      assert.deepStrictEqual((yield* offload(before)).failures, [])
      const both = yield* store.stats
      for (const { blocks } of both.storages) assert.isAbove(blocks, 0)

      const running = yield* Effect.fork(offload(batch))
      yield* until(Effect.map(store.stats, ({ stored }) => stored >= before.length + 50))
      die(mount)
      assert.isNull(running.unsafePoll(), "the batch was over before the disk died")
      const results = yield* Fiber.join(running)

      // As many as it takes to find out, and those that were in flight then.
      const failures = results.failures.map(({ error, index }) => ({ hash: batch[index] ?? -1, tag: error._tag }))
      assert.isAtLeast(failures.length, failureLimit)
      assert.isAtMost(failures.length, failureLimit + maxBlocksInFlight)
      for (const { tag } of failures) assert.strictEqual(tag, "IoFailed")
      const [dead] = (yield* store.stats).storages
      assert.deepStrictEqual([dead?.path, dead?.failed], [dying.path, true])
      yield* until(Effect.map(store.stats, ({ storages }) => storages[0]?.blocks === 0))

      // What lies on the live disk is found and read, and nothing else is.
      const there = yield* lieOn(live)
      assert.strictEqual((yield* store.stats).storages[1]?.blocks, there.size)
      assert.deepStrictEqual(sorted((yield* store.hashes).map(Number)), sorted(there))
      for (const hash of [...before, ...batch]) {
        assert.strictEqual(yield* read(hash), there.has(hash) ? "read" : "BlockNotFound", `block ${hash}`)
      }
      assert.isEmpty(failures.filter(({ hash }) => there.has(hash)))
      assert.deepStrictEqual(sorted([...stored].filter((hash) => !removed.has(hash))), sorted(there))
      assert.deepStrictEqual([...new Set(removed.values())], ["storage"])

      const more = [...after, ...failures.map(({ hash }) => hash)]
      assert.deepStrictEqual((yield* offload(more)).failures, [])
      for (const hash of more) assert.strictEqual(yield* read(hash), "read")
      assert.deepStrictEqual(sorted(yield* lieOn(live)), sorted([...there, ...more]))
      yield* assertSettled(store)
    }))
    assert.deepStrictEqual(openBelow(mount.directory), [])
    assert.deepStrictEqual([openBelow(liveDirectory), readdirSync(liveDirectory)], [[], []])
  }).pipe(Effect.scoped, Effect.provide(Linux.layerWith({ engine })))

describeReal("ext4 on a direct loop", { name: "a disk that vanishes, with its data" }, (it) => {
  for (const engine of ["io_uring", "aio", "node"] as const) {
    it.scoped(`its blocks are gone, the other disk serves on: ${engine}`, () =>
      dies("ext4 on a direct loop", vanish, engine))
  }
})

describeReal("small ext4 on tmpfs", { name: "a disk that takes no more writes" }, (it) => {
  it.scoped("its blocks are gone, the other disk serves on", () => dies("small ext4 on tmpfs", fillUp, "io_uring"))
})

describeReal("xfs", { name: "a filesystem that shuts down", tools: ["xfs_io"] }, (it) => {
  it.scoped("its blocks are gone, the other disk serves on", () => dies("xfs", shutDown, "io_uring"))
})
