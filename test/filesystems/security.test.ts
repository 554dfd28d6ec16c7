/** What others can see of a storage: permissions, directories, and what was on the disk before. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { chmodSync, lchownSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync } from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as IoUring from "../../src/IoUring.js"
import * as LinuxAio from "../../src/LinuxAio.js"
import * as NodeIo from "../../src/NodeIo.js"
import { errnos, FALLOC_FL_WRITE_ZEROES, SyscallError, Syscalls } from "../../src/Syscalls.js"
import { startChild } from "./children.js"
import { assertBytes, assertGivenBack, describeReal, freshPath, settledFreeBytes } from "./real.js"

const mebibyte = 1024 * 1024
const [somebody, other] = [65_534, 65_533]

const permissions = (path: string) => (statSync(path).mode & 0o7777).toString(8)

for (const kind of ["ext4", "tmpfs"] as const) {
  describeReal(kind, { name: "permissions" }, (it) => {
    it.scoped("whatever the umask is, files and directories are for their user alone", () =>
      Effect.gen(function*() {
        const above = yield* freshPath
        yield* Effect.acquireRelease(Effect.sync(() => process.umask(0)), (before) =>
          Effect.sync(() => process.umask(before)))
        const directory = join(above, "a", "b")
        for (const openStrategy of ["default", "open-direct"] as const) {
          const storage = yield* DiskStorage.make({ size: mebibyte, directory, openStrategy })
          assert.strictEqual(permissions(storage.path), "600")
        }
        for (const made of [above, join(above, "a"), directory]) {
          assert.strictEqual(permissions(made), "700")
        }
        const keepAt = join(directory, "kept")
        for (let life = 0; life < 2; life++) {
          yield* Effect.scoped(Effect.gen(function*() {
            const storage = yield* DiskStorage.make({ size: mebibyte, keepAt })
            assert.strictEqual(permissions(storage.path), "600")
            yield* storage.keep
          }))
          assert.strictEqual(permissions(keepAt), "600")
        }
      }))

    it.scoped("a file of ours that others may read or write, or of another user, is not taken up", () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const keepAt = join(directory, "kept")
        const kept = Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size: mebibyte, keepAt })
          yield* storage.writeBytes(0, new Uint8Array(5000).fill(7))
          yield* storage.keep
          return storage.keptAt?.takenUp
        }))
        assert.isFalse(yield* kept)
        assert.isTrue(yield* kept)
        for (const mode of [0o640, 0o604, 0o620, 0o602]) {
          chmodSync(keepAt, mode)
          // Who opened it meanwhile still could.
          assert.isFalse(yield* kept, mode.toString(8))
        }
        lchownSync(keepAt, somebody, somebody)
        const before = readFileSync(keepAt)
        yield* Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size: mebibyte, keepAt })
          assert.isFalse(storage.keptAt?.takenUp)
          assertBytes(yield* storage.readBytes(0, 5000), new Uint8Array(5000), "a new storage")
          const failed = yield* Effect.flip(storage.keep)
          assert.strictEqual(failed._tag === "KeepFailed" && failed.reason, "in the way")
        }))
        assertBytes(readFileSync(keepAt), before, "the file of another user")
      }))
  })
}

describeReal("tmpfs", { name: "directories of others" }, (it) => {
  /** A sticky directory for everybody, and one behind it to which links lead. */
  const places = Effect.gen(function*() {
    const [shared, target] = [yield* freshPath, yield* freshPath]
    mkdirSync(shared)
    chmodSync(shared, 0o1777)
    mkdirSync(target)
    chmodSync(target, 0o1777)
    const linked = (owner: number) => {
      const path = join(shared, `of-${owner}`)
      symlinkSync(target, path)
      lchownSync(path, owner, owner)
      return path
    }
    return { linked, shared }
  })

  const asUser = (directory: string, user?: number) =>
    Effect.gen(function*() {
      const child = yield* startChild({ size: mebibyte, directory, ...(user === undefined ? {} : { user }) })
      const reply = yield* child.step("acquire")
      if (reply._tag === "Failed") return reply.error
      yield* child.step("close")
      return undefined
    })

  it.scoped("links are followed that are ours or root's, and not those of another user", () =>
    Effect.gen(function*() {
      const { linked } = yield* places
      const [ours, roots, theirs] = [linked(somebody), linked(0), linked(other)]
      assert.isUndefined(yield* asUser(ours, somebody))
      assert.isUndefined(yield* asUser(roots, somebody))
      for (const user of [somebody, undefined]) {
        const failure = yield* asUser(theirs, user)
        if (failure?._tag !== "DirectoryUnsafe") return assert.fail(String(failure))
        assert.deepStrictEqual([failure.component, failure.reason], [theirs, "foreign"])
      }
      assert.deepStrictEqual(readdirSync(theirs), [])
    }))

  it.scoped("one that everybody may write is refused, and used by its subdirectory", () =>
    Effect.gen(function*() {
      const shared = yield* freshPath
      mkdirSync(shared)
      chmodSync(shared, 0o777)
      const failure = yield* asUser(shared, somebody)
      if (failure?._tag !== "DirectoryUnsafe") return assert.fail(String(failure))
      assert.deepStrictEqual([failure.component, failure.reason], [shared, "writable"])
      assert.deepStrictEqual(readdirSync(shared), [])
      const below = join(shared, "kv")
      assert.isUndefined(yield* asUser(below, somebody))
      assert.strictEqual(permissions(below), "700")
      // Put there by somebody else, in the place of ours.
      const theirs = join(shared, "theirs")
      mkdirSync(theirs)
      lchownSync(theirs, other, other)
      chmodSync(theirs, 0o777)
      assert.strictEqual((yield* asUser(theirs, somebody))?._tag, "DirectoryUnsafe")
    }))
})

const engines = { io_uring: IoUring.layer(), aio: LinuxAio.layer(), node: NodeIo.layer() } as const

/** How the blocks of a file can be got, on every filesystem: what is in the way of the others is taken out of the kernel. */
const methods = {
  fallocate: { options: {}, without: [] },
  "zero-fill": { options: { fallback: "zero-fill" }, without: ["fallocate"] },
  truncate: { options: { fallback: "truncate" }, without: ["fallocate"] },
  prewrite: { options: { prewrite: true }, without: [] },
  "prewrite by this process": { options: { prewrite: true }, without: ["device zeros"] }
} as const

const unsupported = Effect.fail(
  new SyscallError({ syscall: "fallocate", errno: errnos.EOPNOTSUPP, code: "EOPNOTSUPP" })
)

const withoutCalls = (syscalls: Syscalls, without: ReadonlyArray<string>): Syscalls => ({
  ...syscalls,
  fallocate: (fd, mode, offset, length) =>
    without.includes("fallocate") || (without.includes("device zeros") && mode === FALLOC_FL_WRITE_ZEROES)
      ? unsupported
      : syscalls.fallocate(fd, mode, offset, length)
})

const secret = 0x5e

for (const kind of ["small ext4", "small ext2", "xfs", "btrfs", "tmpfs", "overlay"] as const) {
  describeReal(kind, { name: "what was on the disk before" }, (it) => {
    /** Most of the disk, full of a secret, and given back. */
    const leaveSecrets = (directory: string) =>
      Effect.gen(function*() {
        const before = yield* settledFreeBytes(directory)
        const size = Math.floor(before * 0.8 / mebibyte) * mebibyte - 1234
        yield* Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size, directory, directIo: "preferred" })
          const piece = new Uint8Array(4 * mebibyte).fill(secret)
          for (let at = 0; at < size; at += piece.byteLength) {
            yield* storage.writeBytes(at, piece.subarray(0, Math.min(piece.byteLength, size - at)))
          }
          yield* storage.sync
        }))
        yield* assertGivenBack(directory, before)
      })

    for (const [method, { options, without }] of Object.entries(methods)) {
      it.scoped(`is in no byte of a new storage: ${method}`, () =>
        Effect.gen(function*() {
          const syscalls = yield* Syscalls
          const directory = yield* freshPath
          mkdirSync(directory)
          yield* leaveSecrets(directory)
          const size = 12 * mebibyte + 567
          const attempt = Effect.gen(function*() {
            for (const directIo of ["preferred", "disabled"] as const) {
              const earlyUnlink = directIo === "preferred"
              for (const [engine, engineLayer] of Object.entries(engines)) {
                const what = `${engine}, direct I/O ${directIo}${earlyUnlink ? ", unlinked" : ""}`
                yield* Effect.scoped(Effect.gen(function*() {
                  const storage = yield* DiskStorage.make({ ...options, size, directory, directIo, earlyUnlink })
                  const into = yield* AlignedBuffer.make(4 * mebibyte)
                  for (let at = 0; at + into.byteLength <= size; at += into.byteLength) {
                    into.bytes.fill(0xff)
                    yield* storage.read(at, into)
                    if (into.bytes.some((byte) => byte !== 0)) assert.fail(`${what}: not zeros at ${at}`)
                  }
                  const tail = yield* storage.readBytes(size - size % mebibyte, size % mebibyte)
                  assert.isTrue(tail.every((byte) => byte === 0), `${what}: the tail`)
                  // The padding too, past the storage and past its engine.
                  yield* storage.withFd((fd) =>
                    Effect.sync(() => {
                      const all = readFileSync(`/proc/self/fd/${fd}`)
                      assert.isAbove(all.byteLength, size)
                      assert.isFalse(all.includes(secret), `${what}: the file`)
                    })
                  )
                })).pipe(Effect.provide(engineLayer))
              }
            }
          })
          const exit = yield* attempt.pipe(
            Effect.provideService(Syscalls, withoutCalls(syscalls, without)),
            Effect.either
          )
          // btrfs that copies on write, tmpfs: what was asked for is refused, by name.
          if (exit._tag === "Left" && exit.left._tag !== "PrewriteRefused") return yield* exit.left
        }))
    }
  })
}
