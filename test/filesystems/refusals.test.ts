/** Real reasons why a storage cannot be had, and that nothing is left of the attempt. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  unlinkSync,
  writeFileSync,
  writeSync
} from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { AcquireError } from "../../src/DiskStorageError.js"
import { Syscalls } from "../../src/Syscalls.js"
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

/** A kernel that tells of space that somebody else takes before it is asked for. */
const takenMeanwhile = <A, E, R>(use: Effect.Effect<A, E, R>) =>
  Effect.flatMap(Syscalls, (kernel) =>
    Effect.provideService(use, Syscalls, {
      ...kernel,
      fstatfs: (fd) =>
        Effect.map(
          kernel.fstatfs(fd),
          (answer) => ({ ...answer, free: Number.MAX_SAFE_INTEGER, available: Number.MAX_SAFE_INTEGER })
        )
    }))

/** Takes what is free below a directory, and a little less than a MiB of it not, until the Scope ends. */
const fillUp = (directory: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const path = join(directory, "filler")
      const filler = openSync(path, "w")
      try {
        for (;;) writeSync(filler, new Uint8Array(mebibyte))
      } catch {
        // It is full.
      } finally {
        closeSync(filler)
      }
      return path
    }),
    (path) => Effect.sync(() => unlinkSync(path))
  )

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
        const failure = yield* takenMeanwhile(failsAndLeavesNothing({ size, earlyUnlink }))
        assertOutOfSpace(failure, { method: "fallocate", needed: size, code: "ENOSPC" })
      }
      const storage = yield* DiskStorage.make({ size: 40 * mebibyte, directory: yield* freshPath })
      assert.strictEqual(storage.allocation.method, "fallocate")
    }))

  it.scoped("a size above what the filesystem can address: OutOfSpace with EFBIG", () =>
    Effect.gen(function*() {
      const size = 17 * 1024 ** 4
      const failure = yield* takenMeanwhile(failsAndLeavesNothing({ size }))
      assertOutOfSpace(failure, { method: "fallocate", needed: size, code: "EFBIG" })
    }))
})

for (const kind of ["small ext4", "small ext2", "tmpfs", "xfs"] as const) {
  describeReal(kind, { name: "a count of free space" }, (it) => {
    it.scoped("InsufficientSpace for what is not there; what was released is there at once", () =>
      Effect.gen(function*() {
        const mount = yield* Mounted
        for (const fallback of ["truncate", "zero-fill"] as const) {
          const free = yield* settledFreeBytes(mount.directory)
          const failure = yield* failsAndLeavesNothing({ size: free + 1, fallback })
          if (failure._tag !== "InsufficientSpace") return assert.fail(failure.message)
          const { available, needed } = failure
          assert.isAtLeast(needed, free + 1)
          // A new directory takes a block or two.
          assert.isAtMost(Math.abs(available - free), mebibyte)
        }
        const directory = yield* freshPath
        const most = Math.floor((yield* settledFreeBytes(mount.directory)) * 0.75)
        for (let round = 0; round < 4; round++) {
          yield* Effect.scoped(Effect.flatMap(
            DiskStorage.make({ size: most, directory, fallback: "zero-fill" }),
            (storage) => storage.writeBytes(0, new Uint8Array(most).fill(1))
          ))
        }
      }))
  })
}

describeReal("small ext2", { name: "no space" }, (it) => {
  it.scoped("zero-fill: OutOfSpace half-way, and what was written is given back", () =>
    Effect.gen(function*() {
      for (const directIo of ["required", "disabled"] as const) {
        for (const earlyUnlink of [false, true]) {
          const size = 100 * mebibyte
          const done: Array<number> = []
          const options = { size, fallback: "zero-fill", directIo, earlyUnlink } as const
          const failure = yield* takenMeanwhile(failsAndLeavesNothing(options)).pipe(
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
      const { directory: mounted } = yield* Mounted
      const directory = yield* freshPath
      const storage = yield* DiskStorage.make({ size: 40 * mebibyte, directory })
      assert.isTrue(storage.allocation.overwritesMayRunOutOfSpace)
      const block = yield* AlignedBuffer.make(mebibyte)
      yield* storage.write(0, block)
      yield* Effect.scoped(Effect.zipRight(
        fillUp(mounted),
        Effect.gen(function*() {
          const offset = 3 * mebibyte
          const failure = yield* Effect.flip(storage.write(offset, block))
          if (failure._tag !== "IoFailed") return assert.fail(failure.message)
          assert.deepStrictEqual([failure.operation, failure.offset, failure.length], ["write", offset, mebibyte])
          assert.strictEqual(failure.cause?.code, "ENOSPC")
          // What has its blocks is served.
          yield* storage.write(0, block)
          yield* storage.read(0, block)
        })
      ))
      yield* storage.write(3 * mebibyte, block)
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
      const failure = yield* takenMeanwhile(failsAndLeavesNothing({ size }))
      assertOutOfSpace(failure, { method: "fallocate", needed: size, code: "ENOSPC" })
    }))
})

describeReal("btrfs", { name: "no space" }, (it) => {
  it.scoped("fallocate is asked, since the count lags behind what is released", () =>
    Effect.gen(function*() {
      const { directory: mounted } = yield* Mounted
      const directory = yield* freshPath
      const free = yield* settledFreeBytes(mounted)
      const failure = yield* Effect.flip(DiskStorage.make({ size: 2 * free, directory }))
      assertOutOfSpace(failure, {
        method: "fallocate",
        needed: failure._tag === "OutOfSpace" ? failure.needed : 0,
        code: "ENOSPC"
      })
      const most = Math.floor(free * 0.6)
      for (let round = 0; round < 3; round++) {
        yield* Effect.scoped(Effect.flatMap(
          DiskStorage.make({ size: most, directory }),
          (storage) => Effect.zipRight(storage.writeBytes(0, new Uint8Array(most).fill(1)), storage.sync)
        ))
      }
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
        assert.strictEqual(reply.error.cause?.code, "EACCES")
      }
      assert.deepStrictEqual(readdirSync(closed), [])
    }))

  it.scoped("a user without rights has a storage where it may write", () =>
    Effect.gen(function*() {
      const open = yield* freshPath
      mkdirSync(open)
      chmodSync(open, 0o1777)
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
      assert.strictEqual(reply.error.cause?.code, "EMFILE")
      assert.deepStrictEqual(openBelow(directory, child.pid), [])
      yield* assertNothingLeft(directory, before)
    }))
})
