/** Disks that break, and kernels that say no, while a storage is in use. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { ftruncateSync, readdirSync, writeFileSync } from "node:fs"
import { dirname } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { SyscallError } from "../../src/Syscalls.js"
import { inject, startChild } from "./children.js"
import { command } from "./mounts.js"
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

const mebibyte = 1024 * 1024

const code = (cause: string | SyscallError) => typeof cause === "string" ? cause : cause.code

/** The highest byte of the disk below each MiB of a file, from `filefrag -e` in units of bytes. */
const physicalEnds = (listing: string, mebibytes: number): Array<number> => {
  const extents = [...listing.matchAll(/^ *\d+: +(\d+)\.\. *(\d+): +(\d+)\.\./gm)].map((match) => {
    const [logical = 0, logicalEnd = 0, physical = 0] = match.slice(1).map(Number)
    return { logical, logicalEnd, physical }
  })
  return Array.from({ length: mebibytes }, (_, index) => {
    const start = index * mebibyte
    const end = start + mebibyte - 1
    return Math.max(
      ...extents.filter((extent) => extent.logical <= end && extent.logicalEnd >= start).map((extent) =>
        extent.physical + Math.min(end, extent.logicalEnd) - extent.logical
      )
    )
  })
}

describeReal("ext4", { name: "a disk whose end is lost", tools: ["filefrag"] }, (it) => {
  it.scoped("reads fail where the disk is gone, and nowhere else", () =>
    Effect.gen(function*() {
      const { image } = yield* Mounted
      if (image === undefined) return assert.fail("this kind has an image")
      const directory = yield* freshPath
      const mebibytes = 48
      // Each range is asked for, however many before it have failed.
      const storage = yield* DiskStorage.make({ size: mebibytes * mebibyte, directory, failureLimit: Infinity })
      const block = yield* AlignedBuffer.make(mebibyte)
      for (let index = 0; index < mebibytes; index++) {
        block.bytes.set(pattern(mebibyte, index))
        yield* storage.write(index * mebibyte, block)
      }
      yield* storage.sync
      yield* command("sync", "-f", directory)

      const ends = physicalEnds(yield* command("filefrag", "-e", "-b1", storage.path), mebibytes)
      const left = ends.toSorted((a, b) => a - b)[mebibytes / 2] ?? 0
      ftruncateSync(image, left + 1)

      for (const [index, end] of ends.entries()) {
        const offset = index * mebibyte
        const read = yield* Effect.either(storage.read(offset, block))
        if (end <= left) {
          assert.strictEqual(read._tag, "Right", `MiB ${index} is on the disk`)
          assertBytes(block.bytes, pattern(mebibyte, index), `MiB ${index}`)
          continue
        }
        if (read._tag === "Right" || read.left._tag !== "IoFailed") return assert.fail(`MiB ${index} was lost`)
        assert.strictEqual(read.left.operation, "read")
        assert.strictEqual(read.left.offset, offset)
        assert.strictEqual(read.left.length, mebibyte)
        assert.isBelow(read.left.bytesDone, mebibyte)
        assert.strictEqual(read.left.cause?.code, "EIO")
      }
      yield* storage.close
      assert.deepStrictEqual(openBelow(directory), [])
    }))
})

describeReal("xfs", { name: "a filesystem that shuts down", tools: ["xfs_io"] }, (it) => {
  it.scoped("transfers fail, and the release tells what it could not do and closes", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const directory = yield* freshPath
      const storage = yield* DiskStorage.make({ size: 4 * mebibyte, directory })
      const block = yield* AlignedBuffer.make(mebibyte)
      yield* storage.write(0, block)
      yield* command("xfs_io", "-x", "-c", "shutdown", mount.directory)

      for (const [operation, transfer] of [["write", storage.write], ["read", storage.read]] as const) {
        const failed = yield* Effect.flip(transfer(0, block))
        if (failed._tag !== "IoFailed") return assert.fail(failed.message)
        assert.strictEqual(failed.operation, operation)
        assert.strictEqual(failed.bytesDone, 0)
        assert.strictEqual(failed.cause?.code, "EIO")
      }
      const unsynced = yield* Effect.flip(storage.sync)
      if (unsynced._tag !== "IoFailed") return assert.fail(unsynced.message)
      assert.strictEqual(unsynced.cause?.code, "EIO")

      const released = yield* Effect.flip(storage.close)
      assert.deepStrictEqual(
        released.failures.map((failure) => [failure.step, "cause" in failure && code(failure.cause)]),
        [["unlink", "EIO"]]
      )
      assert.deepStrictEqual(openBelow(directory), [])
      assert.strictEqual((yield* Effect.flip(storage.write(0, block)))._tag, "StorageClosed")
    }))
})

/** How much memory the disk may take, in bytes; 0 is any. */
const limitZram = (device: string | undefined, bytes: number) =>
  writeFileSync(`/sys/block/${device}/mem_limit`, String(bytes))

describeReal("ext4 on zram", { name: "a disk that takes no more" }, (it) => {
  it.scoped("writes that the disk refuses are failures, and are left after some; what was written stays readable", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const directory = yield* freshPath
      const blocks = 64
      const retryAfter = "3 seconds"
      const storage = yield* DiskStorage.make({ size: blocks * mebibyte, directory, failureLimit: 3, retryAfter })
      yield* settledFreeBytes(mount.directory)
      yield* Effect.sync(() => limitZram(mount.device, 16 * mebibyte))

      const block = yield* AlignedBuffer.make(mebibyte)
      let written = 0
      let failed: Effect.Effect.Error<ReturnType<typeof storage.write>> | undefined
      while (failed === undefined && written < blocks) {
        block.bytes.set(pattern(mebibyte, written))
        const result = yield* Effect.either(storage.write(written * mebibyte, block))
        if (result._tag === "Left") failed = result.left
        else written += 1
      }
      if (failed?._tag !== "IoFailed") return assert.fail(failed?.message ?? "the disk took everything")
      assert.strictEqual(failed.cause?.code, "EIO")
      assert.isAbove(written, 0)
      const last = (blocks - 1) * mebibyte
      const tags: Array<string> = []
      while (!tags.includes("StorageDegraded") && tags.length < 10) {
        tags.push((yield* Effect.flip(storage.write(last, block)))._tag)
      }
      assert.deepStrictEqual(tags, ["IoFailed", "IoFailed", "StorageDegraded"])
      assert.deepStrictEqual(yield* storage.health, {
        read: { failures: 0, degraded: false },
        write: { failures: 3, degraded: true },
        corrupted: 0
      })
      for (let index = 0; index < written; index++) {
        yield* storage.read(index * mebibyte, block)
        assertBytes(block.bytes, pattern(mebibyte, index), `MiB ${index}`)
      }
      yield* Effect.sync(() => limitZram(mount.device, 0))
      yield* Effect.sleep(retryAfter)
      yield* storage.write(last, block)
      yield* storage.write(0, block)
      assert.isFalse((yield* storage.health).write.degraded)
      yield* storage.close
      assert.deepStrictEqual(openBelow(directory), [])
      assert.deepStrictEqual(readdirSync(directory), [])
    }))
})

const tools = ["strace"]

describeReal("ext2", { name: "injected faults", tools }, (it) => {
  it.scoped("no space at the third write of a zero-fill: OutOfSpace, and nothing is left", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const directory = yield* freshPath
      const before = yield* settledFreeBytes(mount.directory)
      const child = yield* startChild({ size: 96 * mebibyte, directory, fallback: "zero-fill" })
      yield* inject(child, "pwrite64", "error=ENOSPC:when=3")
      const reply = yield* child.step("acquire")
      if (reply._tag !== "Failed" || reply.error._tag !== "OutOfSpace") return assert.fail(JSON.stringify(reply))
      assert.strictEqual(reply.error.method, "zero-fill")
      assert.strictEqual(reply.error.needed, 96 * mebibyte)
      assert.strictEqual(reply.error.cause.syscall, "node:fs write")
      assert.strictEqual(reply.error.cause.code, "ENOSPC")
      assert.deepStrictEqual(reply.openBelow, [])
      yield* assertNothingLeft(directory, before)
    }))

  it.scoped("an I/O error at the third write of a zero-fill: AllocationFailed says where, and nothing is left", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const directory = yield* freshPath
      const before = yield* settledFreeBytes(mount.directory)
      const child = yield* startChild({ size: 96 * mebibyte, directory, fallback: "zero-fill" })
      yield* inject(child, "pwrite64", "error=EIO:when=3")
      const reply = yield* child.step("acquire")
      if (reply._tag !== "Failed" || reply.error._tag !== "AllocationFailed") return assert.fail(JSON.stringify(reply))
      // The engine writes a MiB at a time.
      assert.strictEqual(reply.error.offset, 2 * mebibyte)
      assert.strictEqual(reply.error.cause?.code, "EIO")
      assert.deepStrictEqual(reply.openBelow, [])
      yield* assertNothingLeft(directory, before)
    }))
})

describeReal("ext4", { name: "injected faults", tools }, (it) => {
  it.scoped("fallocate: AllocationFailed, and nothing is left", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const directory = yield* freshPath
      const before = yield* settledFreeBytes(mount.directory)
      const child = yield* startChild({ size: 16 * mebibyte, directory })
      yield* inject(child, "fallocate", "error=EIO")
      const reply = yield* child.step("acquire")
      if (reply._tag !== "Failed" || reply.error._tag !== "AllocationFailed") return assert.fail(JSON.stringify(reply))
      assert.strictEqual(reply.error.method, "fallocate")
      assert.strictEqual(reply.error.cause?.code, "EIO")
      assert.deepStrictEqual(reply.openBelow, [])
      yield* assertNothingLeft(directory, before)
    }))

  it.scoped("a filesystem that says it has no fallocate is filled with zeros", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const child = yield* startChild({ size: 4 * mebibyte, directory, fallback: "zero-fill" })
      yield* inject(child, "fallocate", "error=EOPNOTSUPP")
      assert.strictEqual((yield* child.step("acquire"))._tag, "Done")
      assert.strictEqual(dirname(openBelow(directory, child.pid)[0] ?? ""), directory)
      assert.strictEqual((yield* child.step("close"))._tag, "Done")
      assert.deepStrictEqual(readdirSync(directory), [])
    }))

  it.scoped("a call that signals interrupt is made again", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const child = yield* startChild({ size: 4 * mebibyte, directory })
      yield* inject(child, "fallocate,pwrite64,fdatasync", "error=EINTR:when=1..3")
      assert.strictEqual((yield* child.step("acquire"))._tag, "Done")
      assert.strictEqual((yield* child.step("write"))._tag, "Done")
      assert.strictEqual((yield* child.step("close"))._tag, "Done")
      assert.deepStrictEqual(readdirSync(directory), [])
    }))

  it.scoped("a write: IoFailed, and the next one is tried", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const child = yield* startChild({ size: 4 * mebibyte, directory })
      assert.strictEqual((yield* child.step("acquire"))._tag, "Done")
      yield* inject(child, "pwrite64", "error=EIO:when=1")
      const reply = yield* child.step("write")
      if (reply._tag !== "Failed" || reply.error._tag !== "IoFailed") return assert.fail(JSON.stringify(reply))
      assert.strictEqual(reply.error.cause?.code, "EIO")
      assert.strictEqual((yield* child.step("write"))._tag, "Done")
      assert.strictEqual((yield* child.step("close"))._tag, "Done")
      assert.deepStrictEqual(readdirSync(directory), [])
    }))

  it.scoped("unlink: ReleaseFailed names the step, the file is left, the descriptor closed", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const child = yield* startChild({ size: 4 * mebibyte, directory })
      const acquired = yield* child.step("acquire")
      // And its lock.
      assert.lengthOf(openBelow(directory, child.pid), 2)
      yield* inject(child, "/^unlink(at)?$", "error=EIO:when=1")
      const reply = yield* child.step("close")
      if (reply._tag !== "Failed" || reply.error._tag !== "ReleaseFailed") return assert.fail(JSON.stringify(reply))
      if (acquired._tag !== "Done") return assert.fail(JSON.stringify(acquired))
      assert.strictEqual(reply.error.path, acquired.path)
      assert.deepStrictEqual(
        reply.error.failures.map((failure) => [failure.step, "cause" in failure && code(failure.cause)]),
        [["unlink", "EIO"]]
      )
      assert.deepStrictEqual(reply.openBelow, [])
      assert.deepStrictEqual(openBelow(directory, child.pid), [])
      assert.deepStrictEqual(readdirSync(directory), [acquired.path.slice(directory.length + 1)])
    }))

  it.scoped("early unlink: CreateFailed names the step, and the file goes on release", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const directory = yield* freshPath
      const before = yield* settledFreeBytes(mount.directory)
      const child = yield* startChild({ size: 4 * mebibyte, directory, earlyUnlink: true })
      yield* inject(child, "/^unlink(at)?$", "error=EIO:when=1")
      const reply = yield* child.step("acquire")
      if (reply._tag !== "Failed" || reply.error._tag !== "CreateFailed") return assert.fail(JSON.stringify(reply))
      assert.strictEqual(reply.error.step, "early unlink")
      assert.deepStrictEqual(reply.openBelow, [])
      yield* assertNothingLeft(directory, before)
    }))

  it.scoped("close: ReleaseFailed names the step, and the file is gone", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const child = yield* startChild({ size: 4 * mebibyte, directory })
      const acquired = yield* child.step("acquire")
      if (acquired._tag !== "Done") return assert.fail(JSON.stringify(acquired))
      yield* inject(child, "close", "error=EIO:when=1")
      const reply = yield* child.step("close")
      if (reply._tag !== "Failed" || reply.error._tag !== "ReleaseFailed") return assert.fail(JSON.stringify(reply))
      assert.deepStrictEqual(
        reply.error.failures.map((failure) => [failure.step, "cause" in failure && code(failure.cause)]),
        [["close", "EIO"]]
      )
      assert.deepStrictEqual(readdirSync(directory), [])
    }))
})
