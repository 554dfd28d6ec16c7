/** Whether I/O that is called direct bypasses the page cache, asked of the page cache itself. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { closeSync, openSync, writeSync } from "node:fs"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import { cachedPages } from "./cachestat.js"
import type { Kind } from "./mounts.js"
import { command } from "./mounts.js"
import { assertBytes, describeReal, freshPath, Mounted, pattern } from "./real.js"

const mebibyte = 1024 * 1024
const pages = mebibyte / 4096

/** Kinds whose page cache tells; btrfs drops pages after a buffered write. */
const told: ReadonlyArray<readonly [Kind, "direct" | "buffered"]> = [
  ["ext4", "direct"],
  ["ext4 on 4096-byte sectors", "direct"],
  ["ext2", "direct"],
  ["xfs", "direct"],
  ["ext4 with data=journal", "buffered"],
  ["tmpfs", "buffered"],
  ["overlay", "direct"]
]

/** What is cached of the first MiB after it was written and read through a storage. */
const cachedAfterUse = (options: Omit<DiskStorage.DiskStorageOptions, "size" | "directory">) =>
  Effect.gen(function*() {
    const directory = yield* freshPath
    const storage = yield* DiskStorage.make({ size: 4 * mebibyte, directory, fallback: "zero-fill", ...options })
    const block = yield* AlignedBuffer.make(mebibyte)
    block.bytes.fill(1)
    // An overlay has no page cache of its own: its upper file does.
    const { directory: mount, upper } = yield* Mounted
    const own = storage.path.replace(mount, upper ?? mount)
    const cached = Effect.acquireUseRelease(
      Effect.sync(() => openSync(own, "r")),
      (fd) => cachedPages(fd, 0, mebibyte),
      (fd) => Effect.sync(() => closeSync(fd))
    )
    yield* storage.write(0, block)
    const afterWrite = yield* cached
    yield* storage.read(0, block)
    return { verdict: storage.directIo.verdict, afterWrite, afterRead: yield* cached }
  })

for (const [kind, verdict] of told) {
  describeReal(kind, { name: "the page cache" }, (it) => {
    it.scoped(`I/O with O_DIRECT is ${verdict}`, (context) =>
      Effect.gen(function*() {
        const used = yield* cachedAfterUse({})
        if (used.afterWrite === undefined) return context.skip("the kernel has no cachestat")
        const cached = verdict === "direct" ? 0 : pages
        assert.deepStrictEqual(used, { verdict, afterWrite: cached, afterRead: cached })
      }))

    it.scoped("I/O without it is buffered", (context) =>
      Effect.gen(function*() {
        const used = yield* cachedAfterUse({ directIo: "disabled" })
        if (used.afterWrite === undefined) return context.skip("the kernel has no cachestat")
        assert.deepStrictEqual(used, { verdict: "buffered", afterWrite: pages, afterRead: pages })
      }))
  })
}

for (const kind of ["ext2 on 4096-byte sectors", "ext4 on 4096-byte sectors"] as const) {
  describeReal(kind, { name: "strict alignment" }, (it) => {
    it.scoped("half a sector is refused by the disk, and done through the bounce buffer by the storage", () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const storage = yield* DiskStorage.make({ size: mebibyte, directory, fallback: "zero-fill" })
        const block = yield* AlignedBuffer.make(4096)
        yield* storage.withFd((fd) =>
          Effect.sync(() => assert.throws(() => writeSync(fd, block.bytes, 0, 512, 0), /EINVAL/))
        )
        const misaligned = yield* Effect.flip(storage.write(512, block))
        if (misaligned._tag !== "Misaligned") return assert.fail(misaligned.message)
        assert.strictEqual(misaligned.alignment, 4096)
        yield* storage.writeBytes(512, pattern(512, 1))
        assertBytes(yield* storage.readBytes(512, 512), pattern(512, 1), "half a sector")
      }))
  })
}

describeReal("btrfs", { name: "copy-on-write", tools: ["lsattr"] }, (it) => {
  it.scoped("is off for the file", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const storage = yield* DiskStorage.make({ size: mebibyte, directory })
      assert.match((yield* command("lsattr", storage.path)).split(" ")[0] ?? "", /C/)
    }))

  it.scoped("so that most of the filesystem is rewritten again and again without running out of space", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const blocks = 380
      const storage = yield* DiskStorage.make({ size: blocks * mebibyte, directory })
      assert.isFalse(storage.allocation.overwritesMayRunOutOfSpace)
      const block = yield* AlignedBuffer.make(mebibyte)
      for (let pass = 0; pass < 3; pass++) {
        block.bytes.fill(pass + 1)
        // 263 and 380 have no common factor: every block once, in an order that is not the file's.
        for (let index = 0; index < blocks; index++) yield* storage.write(index * 263 % blocks * mebibyte, block)
        yield* storage.sync
      }
      for (const index of [0, 1, 200, blocks - 1]) {
        yield* storage.read(index * mebibyte, block)
        assertBytes(block.bytes, new Uint8Array(mebibyte).fill(3), `MiB ${index}`)
      }
    }))
})
