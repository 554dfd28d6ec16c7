/** What each filesystem really does with a storage, against what the storage says of it. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import { fstatSync, readFileSync, statSync } from "node:fs"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { Kind, Mount } from "./mounts.js"
import {
  assertBytes,
  assertNothingLeft,
  describeReal,
  freshPath,
  Mounted,
  openBelow,
  pattern,
  settledFreeBytes
} from "./real.js"

interface Expected {
  readonly filesystem: string
  /** Whether O_DIRECT stays on a descriptor. */
  readonly takesFlag: boolean
  readonly verdict: "direct" | "buffered"
  /** Multiples for memory and offset: what the block device below says, or a page. */
  readonly alignment: "device" | "page"
  readonly hasFallocate: boolean
  readonly overwritesMayRunOutOfSpace: boolean
}

const onDevice: Omit<Expected, "filesystem"> = {
  takesFlag: true,
  verdict: "direct",
  alignment: "device",
  hasFallocate: true,
  overwritesMayRunOutOfSpace: false
}
const ext4: Expected = { ...onDevice, filesystem: "ext2/ext3/ext4" }
const withoutExtents: Expected = { ...ext4, hasFallocate: false }

const truth: ReadonlyArray<readonly [Kind, Expected]> = [
  ["ext4", ext4],
  ["ext2", withoutExtents],
  ["ext3 without extents", withoutExtents],
  ["xfs", { ...onDevice, filesystem: "xfs" }],
  ["btrfs", { ...onDevice, filesystem: "btrfs", alignment: "page" }],
  ["ext4 with data=journal", { ...ext4, verdict: "buffered", alignment: "page" }],
  ["ext4 on 4096-byte sectors", ext4],
  ["ext2 on 4096-byte sectors", withoutExtents],
  ["tmpfs", { ...onDevice, filesystem: "tmpfs", verdict: "buffered", alignment: "page" }],
  [
    "ramfs",
    {
      filesystem: "ramfs",
      takesFlag: false,
      verdict: "buffered",
      alignment: "page",
      hasFallocate: false,
      overwritesMayRunOutOfSpace: true
    }
  ],
  ["overlay", { ...onDevice, filesystem: "overlay", overwritesMayRunOutOfSpace: true }]
]

const size = 1024 * 1024 + 1234
const roundedSize = 1024 * 1024 + 4096

const queue = (device: string, attribute: string) =>
  Number(readFileSync(`/sys/block/${device}/queue/${attribute}`, "utf8"))

const expectedAlignment = (expected: Expected, { device }: Mount, flag: boolean): DiskStorage.Alignment => {
  if (!flag) return { memory: 1, offset: 1, length: 1 }
  if (expected.alignment === "page" || device === undefined) return { memory: 4096, offset: 4096, length: 4096 }
  const sector = queue(device, "logical_block_size")
  return { memory: queue(device, "dma_alignment") + 1, offset: sector, length: sector }
}

const combinations = (["default", "open-direct"] as const).flatMap((openStrategy) =>
  (["truncate", "zero-fill"] as const).flatMap((fallback) =>
    [false, true].map((earlyUnlink) => ({ openStrategy, fallback, earlyUnlink }))
  )
)

/** Aligned and odd transfers all over the storage, against an array; and against what the kernel says is in the file. */
const checkData = (storage: DiskStorage.DiskStorage, earlyUnlink: boolean) =>
  Effect.gen(function*() {
    const model = new Uint8Array(storage.size)
    assertBytes(yield* storage.readBytes(0, storage.size), model, "a new storage")

    const unit = Math.max(4096, storage.alignment.offset)
    const block = yield* AlignedBuffer.make(16 * unit)
    for (const offset of [0, 16 * unit, 64 * unit]) {
      block.bytes.set(pattern(block.byteLength, offset))
      yield* storage.write(offset, block)
      model.set(block.bytes, offset)
      const back = yield* AlignedBuffer.make(block.byteLength)
      yield* storage.read(offset, back)
      assertBytes(back.bytes, block.bytes, `the block at ${offset}`)
    }

    const ranges = [[0, 1], [511, 2], [4095, 4098], [70_001, 33_333], [storage.size - 1235, 1235], [
      storage.size - 1,
      1
    ]]
    for (const [offset = 0, length = 0] of ranges) {
      const bytes = pattern(length, offset)
      yield* storage.writeBytes(offset, bytes)
      model.set(bytes, offset)
      assertBytes(yield* storage.readBytes(offset, length), bytes, `the range at ${offset}`)
    }
    yield* storage.sync
    assertBytes(yield* storage.readBytes(0, storage.size), model, "the whole storage")
    if (!earlyUnlink) {
      assertBytes(readFileSync(storage.path).subarray(0, storage.size), model, "the file, read by somebody else")
    }
  })

/** Length, links, permissions, and whether the file holds blocks. */
const checkFile = (
  storage: DiskStorage.DiskStorage,
  { earlyUnlink, fallback }: (typeof combinations)[number],
  hasFallocate: boolean
) =>
  Effect.gen(function*() {
    const { blocks, nlink, size: length } = yield* storage.withFd((fd) => Effect.sync(() => fstatSync(fd)))
    assert.strictEqual(length, roundedSize)
    assert.strictEqual(nlink, earlyUnlink ? 0 : 1)
    assert.strictEqual(yield* storage.unlinked, earlyUnlink)
    if (!earlyUnlink) {
      assert.strictEqual(statSync(storage.path).size, roundedSize)
      assert.strictEqual(statSync(storage.path).mode & 0o777, 0o600)
    }
    if (hasFallocate || fallback === "zero-fill") assert.isAtLeast(blocks * 512, roundedSize)
    else assert.strictEqual(blocks, 0)
  })

const checkCombination = (
  expected: Expected,
  directIo: DiskStorage.DiskStorageOptions["directIo"],
  combination: (typeof combinations)[number]
) =>
  Effect.gen(function*() {
    const mount = yield* Mounted
    const directory = yield* freshPath
    const before = yield* settledFreeBytes(mount.directory)
    const flag = expected.takesFlag && directIo !== "disabled"
    const options = { size, directory, directIo, ...combination }

    if (!expected.takesFlag && directIo !== "preferred" && directIo !== "disabled") {
      const refused = yield* Effect.flip(DiskStorage.make(options))
      if (refused._tag !== "DirectIoRefused") return assert.fail(refused.message)
      assert.strictEqual(refused.filesystem, expected.filesystem)
      assert.strictEqual(refused.openStrategy, combination.openStrategy)
      assert.strictEqual(refused.cause?.code, "EINVAL")
      return yield* assertNothingLeft(directory, before)
    }

    yield* Effect.scoped(Effect.gen(function*() {
      const storage = yield* DiskStorage.make(options)
      assert.strictEqual(statSync(directory).mode & 0o777, 0o700)
      assert.strictEqual(storage.size, size)
      assert.strictEqual(storage.filesystem.name, expected.filesystem)
      assert.strictEqual(storage.directIo.flag, flag)
      assert.strictEqual(storage.directIo.verdict, flag ? expected.verdict : "buffered")
      assert.deepStrictEqual(storage.alignment, expectedAlignment(expected, mount, flag))
      const method = expected.hasFallocate ? "fallocate" : combination.fallback
      assert.deepStrictEqual(storage.allocation, {
        method,
        written: method === "zero-fill",
        overwritesMayRunOutOfSpace: method === "truncate" || expected.overwritesMayRunOutOfSpace
      })
      // The second one holds the lock.
      assert.lengthOf(openBelow(directory), 2)
      yield* checkFile(storage, combination, expected.hasFallocate)
      yield* checkData(storage, combination.earlyUnlink)
    }))
    yield* assertNothingLeft(directory, before)
  })

for (const [kind, expected] of truth) {
  describeReal(kind, {}, (it) => {
    for (const directIo of [undefined, "required", "preferred", "disabled"] as const) {
      it.scoped(`direct I/O ${directIo ?? "by default"}: says and does what is true`, () =>
        Effect.forEach(combinations, (combination) =>
          checkCombination(expected, directIo, combination).pipe(
            Effect.withSpan(JSON.stringify(combination))
          ), { discard: true }))
    }

    it.scoped("bytes written in any order of ranges are bytes read", () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const length = 40_000
        const storage = yield* DiskStorage.make({ size: length, directory, directIo: "preferred" })
        const model = new Uint8Array(length)
        const writes = FastCheck.sample(
          FastCheck.tuple(FastCheck.nat(length - 1), FastCheck.nat(12_000)),
          { numRuns: 60, seed: 20 }
        )
        for (const [index, [offset, wanted]] of writes.entries()) {
          const bytes = pattern(Math.min(wanted, length - offset), index)
          yield* storage.writeBytes(offset, bytes)
          model.set(bytes, offset)
          assertBytes(
            yield* storage.readBytes(0, length),
            model,
            `after write ${index} of ${bytes.length} at ${offset}`
          )
        }
      }))
  })
}
