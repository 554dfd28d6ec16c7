/** Real reasons why a storage cannot be had, and that nothing is left of the attempt. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { chmodSync, existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { AcquireError } from "../../src/DiskStorageError.js"
import { startChild } from "./children.js"
import { command } from "./mounts.js"
import { assertNothingLeft, describeReal, freshPath, Mounted, openBelow, settledFreeBytes } from "./real.js"

const mebibyte = 1024 * 1024

const nobody = 65_534

const assertOutOfSpace = (
  failure: AcquireError,
  expected: { readonly method: string; readonly needed: number; readonly code: string }
) => {
  if (failure._tag !== "OutOfSpace") return assert.fail(failure.message)
  const { cause: { code }, method, needed } = failure
  assert.deepStrictEqual({ method, needed, code }, expected)
}

const assertUnusable = (failure: AcquireError, directory: string, code: string) => {
  if (failure._tag !== "DirectoryUnusable") return assert.fail(failure.message)
  assert.strictEqual(failure.directory, directory)
  assert.strictEqual(failure.cause.code, code)
}

/** A request that fails, and what must be true right then, with the caller's Scope still open. */
const failsAndLeavesNothing = (options: Omit<DiskStorage.DiskStorageOptions, "directory">) =>
  Effect.gen(function*() {
    const mount = yield* Mounted
    const directory = yield* freshPath
    const before = yield* settledFreeBytes(mount.directory)
    const failure = yield* Effect.flip(DiskStorage.make({ ...options, directory }))
    yield* assertNothingLeft(directory, before)
    return failure
  })

describeReal("small ext4", { name: "no space" }, (it) => {
  it.scoped("fallocate: OutOfSpace, and what it had taken is there for the next one", () =>
    Effect.gen(function*() {
      for (const earlyUnlink of [false, true]) {
        const size = 100 * mebibyte
        const failure = yield* failsAndLeavesNothing({ size, earlyUnlink })
        assertOutOfSpace(failure, { method: "fallocate", needed: size, code: "ENOSPC" })
      }
      const storage = yield* DiskStorage.make({ size: 40 * mebibyte, directory: yield* freshPath })
      assert.strictEqual(storage.allocation.method, "fallocate")
    }))

  it.scoped("a size above what the filesystem can address: OutOfSpace with EFBIG", () =>
    Effect.gen(function*() {
      const size = 17 * 1024 ** 4
      assertOutOfSpace(yield* failsAndLeavesNothing({ size }), { method: "fallocate", needed: size, code: "EFBIG" })
    }))
})

describeReal("small ext2", { name: "no space" }, (it) => {
  it.scoped("zero-fill: OutOfSpace half-way, and what was written is given back", () =>
    Effect.gen(function*() {
      for (const directIo of ["required", "disabled"] as const) {
        for (const earlyUnlink of [false, true]) {
          const size = 100 * mebibyte
          const done: Array<number> = []
          const failure = yield* failsAndLeavesNothing({ size, fallback: "zero-fill", directIo, earlyUnlink }).pipe(
            Effect.provideService(DiskStorage.ProgressListener, (event) => Effect.sync(() => done.push(event.done)))
          )
          assertOutOfSpace(failure, { method: "zero-fill", needed: size, code: "ENOSPC" })
          assert.isAbove(done.at(-1) ?? 0, 0)
          assert.isBelow(done.at(-1) ?? 0, size)
        }
      }
      const options = { size: 40 * mebibyte, directory: yield* freshPath, fallback: "zero-fill" } as const
      assert.strictEqual((yield* DiskStorage.make(options)).allocation.method, "zero-fill")
    }))

  it.scoped("truncate takes no space: the writes tell, as the storage said they may", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const size = 100 * mebibyte
      const storage = yield* DiskStorage.make({ size, directory })
      assert.isTrue(storage.allocation.overwritesMayRunOutOfSpace)
      const failure = yield* Effect.flip(storage.writeBytes(0, new Uint8Array(size).fill(1)))
      if (failure._tag !== "IoFailed") return assert.fail(failure.message)
      assert.strictEqual(failure.cause?.code, "ENOSPC")
    }))
})

describeReal("ext2", { name: "limits of a process", tools: ["prlimit"] }, (it) => {
  for (const fallback of ["truncate", "zero-fill"] as const) {
    it.scoped(`a limit on the size of files, ${fallback}: OutOfSpace with EFBIG`, () =>
      Effect.gen(function*() {
        const mount = yield* Mounted
        const directory = yield* freshPath
        const before = yield* settledFreeBytes(mount.directory)
        const size = 40 * mebibyte
        const child = yield* startChild({ size, directory, fallback }, [`--fsize=${20 * mebibyte}`])
        const reply = yield* child.step("acquire")
        if (reply._tag !== "Failed" || reply.error._tag !== "OutOfSpace") return assert.fail(JSON.stringify(reply))
        assertOutOfSpace(reply.error, { method: fallback, needed: size, code: "EFBIG" })
        assert.deepStrictEqual(reply.openBelow, [])
        yield* assertNothingLeft(directory, before)
      }))
  }
})

describeReal("btrfs", { name: "a quota", tools: ["btrfs"] }, (it) => {
  it.scoped("OutOfSpace with EDQUOT", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const subvolume = join(mount.directory, "limited")
      yield* command("btrfs", "quota", "enable", mount.directory)
      yield* command("btrfs", "subvolume", "create", subvolume)
      yield* command("btrfs", "qgroup", "limit", "16M", subvolume)
      const size = 64 * mebibyte
      const failure = yield* Effect.flip(DiskStorage.make({ size, directory: subvolume }))
      assertOutOfSpace(failure, { method: "fallocate", needed: size, code: "EDQUOT" })
      assert.deepStrictEqual(openBelow(subvolume), [])
      assert.deepStrictEqual(readdirSync(subvolume), [])
      yield* settledFreeBytes(subvolume)
      yield* DiskStorage.make({ size: 8 * mebibyte, directory: subvolume })
    }))
})

describeReal("tmpfs", { name: "no space" }, (it) => {
  it.scoped("fallocate: OutOfSpace, and nothing is left", () =>
    Effect.gen(function*() {
      const size = 100 * mebibyte
      assertOutOfSpace(yield* failsAndLeavesNothing({ size }), { method: "fallocate", needed: size, code: "ENOSPC" })
    }))
})

describeReal("read-only ext4", {}, (it) => {
  it.scoped("is unusable with EROFS, whether the directory exists or not", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      for (const directory of [mount.directory, `${mount.directory}/`, yield* freshPath]) {
        assertUnusable(yield* Effect.flip(DiskStorage.make({ size: mebibyte, directory })), directory, "EROFS")
      }
      assert.deepStrictEqual(openBelow(mount.directory), [])
    }))
})

describeReal("ext4", { name: "directories" }, (it) => {
  it.scoped("a file is none", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      writeFileSync(directory, "")
      assertUnusable(yield* Effect.flip(DiskStorage.make({ size: mebibyte, directory })), directory, "ENOTDIR")
      const below = join(directory, "below")
      assertUnusable(yield* Effect.flip(DiskStorage.make({ size: mebibyte, directory: below })), below, "ENOTDIR")
    }))

  it.scoped("neither a name nor a path may be too long", () =>
    Effect.gen(function*() {
      const fresh = yield* freshPath
      const name = join(fresh, "n".repeat(300))
      const path = join(fresh, ...Array.from({ length: 50 }, () => "p".repeat(100)))
      for (const directory of [name, path]) {
        assertUnusable(yield* Effect.flip(DiskStorage.make({ size: mebibyte, directory })), directory, "ENAMETOOLONG")
      }
    }))

  it.scoped("links may not go in circles", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      yield* command("ln", "-s", directory, directory)
      assertUnusable(yield* Effect.flip(DiskStorage.make({ size: mebibyte, directory })), directory, "ELOOP")
    }))

  it.scoped("missing ones are made, with their parents, and stay", () =>
    Effect.gen(function*() {
      const directory = join(yield* freshPath, "a", "b", "c")
      yield* Effect.scoped(DiskStorage.make({ size: mebibyte, directory }))
      assert.isTrue(existsSync(directory))
      assert.deepStrictEqual(readdirSync(directory), [])
    }))
})

describeReal("ext4", { name: "an immutable directory", tools: ["chattr"] }, (it) => {
  it.scoped("is unusable with EPERM", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      mkdirSync(directory)
      yield* Effect.acquireRelease(command("chattr", "+i", directory), () => command("chattr", "-i", directory))
      assertUnusable(yield* Effect.flip(DiskStorage.make({ size: mebibyte, directory })), directory, "EPERM")
      assert.deepStrictEqual(readdirSync(directory), [])
    }))
})

describeReal("ext4", { name: "limits of a process", tools: ["prlimit"] }, (it) => {
  it.scoped("a directory of somebody else is unusable with EACCES", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const closed = yield* freshPath
      mkdirSync(closed, { mode: 0o755 })
      for (const directory of [closed, join(closed, "missing"), join(mount.directory, "lost+found", "missing")]) {
        const child = yield* startChild({ size: mebibyte, directory, user: nobody })
        const reply = yield* child.step("acquire")
        if (reply._tag !== "Failed") return assert.fail(JSON.stringify(reply))
        if (reply.error._tag !== "DirectoryUnusable") return assert.fail(reply.error.message)
        assert.strictEqual(reply.error.directory, directory)
        assert.strictEqual(reply.error.cause.code, "EACCES")
      }
      assert.deepStrictEqual(readdirSync(closed), [])
    }))

  it.scoped("a user without rights has a storage where it may write", () =>
    Effect.gen(function*() {
      const open = yield* freshPath
      mkdirSync(open)
      chmodSync(open, 0o777)
      const child = yield* startChild({ size: mebibyte, directory: open, user: nobody })
      for (const step of ["acquire", "write", "close"] as const) {
        assert.strictEqual((yield* child.step(step))._tag, "Done", step)
      }
      assert.deepStrictEqual(readdirSync(open), [])
    }))

  it.scoped("a limit on the size of files: OutOfSpace with EFBIG", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const directory = yield* freshPath
      const before = yield* settledFreeBytes(mount.directory)
      const child = yield* startChild({ size: 2 * mebibyte, directory }, [`--fsize=${mebibyte}`])
      const reply = yield* child.step("acquire")
      if (reply._tag !== "Failed" || reply.error._tag !== "OutOfSpace") return assert.fail(JSON.stringify(reply))
      assertOutOfSpace(reply.error, { method: "fallocate", needed: 2 * mebibyte, code: "EFBIG" })
      assert.deepStrictEqual(reply.openBelow, [])
      yield* assertNothingLeft(directory, before)
    }))

  it.scoped("no descriptor left: CreateFailed with EMFILE", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const directory = yield* freshPath
      mkdirSync(directory)
      const before = yield* settledFreeBytes(mount.directory)
      const child = yield* startChild({ size: mebibyte, directory, takeDescriptors: true }, ["--nofile=256"])
      const reply = yield* child.step("acquire")
      if (reply._tag !== "Failed" || reply.error._tag !== "CreateFailed") return assert.fail(JSON.stringify(reply))
      assert.strictEqual(reply.error.step, "create file")
      assert.strictEqual(reply.error.cause.code, "EMFILE")
      assert.deepStrictEqual(openBelow(directory, child.pid), [])
      yield* assertNothingLeft(directory, before)
    }))
})
