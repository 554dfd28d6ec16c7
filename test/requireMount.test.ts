/** A storage that needs a mount: made on it, and nowhere else, whatever becomes of the mount meanwhile. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as DiskStorage from "../src/DiskStorage.js"
import type { AcquireError, MountMissing } from "../src/DiskStorageError.js"
import type { IoEngine } from "../src/IoEngine.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import type { Statx } from "../src/Syscalls.js"
import { errnos, SyscallError, Syscalls } from "../src/Syscalls.js"
import { command } from "./filesystems/mounts.js"
import type { Kind } from "./filesystems/mounts.js"
import { describeReal, freshPath, Mounted } from "./filesystems/real.js"
import { layer } from "./support/simulation.js"

const size = 1024 * 1024

/** A directory of the disk below, which is gone with the Scope. */
const plain = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-disk-storage-require-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

const bound = (from: string, to: string) =>
  Effect.acquireRelease(command("mount", "--bind", from, to), () => command("umount", to))

type Made = Effect.Effect<DiskStorage.DiskStorage, AcquireError, Syscalls | IoEngine | Scope.Scope>

const make = (
  requireMount: string,
  directory: string,
  options: Partial<DiskStorage.DiskStorageOptions> = {}
): Made => DiskStorage.make({ size, directory, directIo: "preferred", requireMount, ...options })

/** Acquires and releases; the path that it had. */
const used = (made: Made) => Effect.scoped(Effect.map(made, ({ path }) => path))

const refused = (made: Made, reason: MountMissing["reason"]) =>
  Effect.gen(function*() {
    const error = yield* Effect.flip(used(made))
    assert.strictEqual(error._tag, "MountMissing", error.message)
    if (error._tag === "MountMissing") assert.strictEqual(error.reason, reason, error.message)
    return error.message
  })

/** A kernel that answers `statx`, or fails to open a path, differently. */
const on = (
  made: Made,
  { change = (statx) => statx, hidden }: { readonly change?: (statx: Statx) => Statx; readonly hidden?: string }
): Made =>
  Effect.flatMap(Syscalls, (syscalls) =>
    Effect.provideService(made, Syscalls, {
      ...syscalls,
      statx: (fd, path) => Effect.map(syscalls.statx(fd, path), change),
      open: (path, flags) =>
        hidden !== undefined && path.startsWith(hidden)
          ? Effect.fail(new SyscallError({ syscall: "open", errno: errnos.ENOENT, code: "ENOENT", path }))
          : syscalls.open(path, flags)
    }))

/** As a kernel before Linux 5.8 answers, and as the fallback of statx does. */
const withoutRoots = (statx: Statx): Statx => ({
  ...statx,
  attributes: statx.attributes & ~0x2000,
  attributesMask: undefined
})
const withoutIds = (statx: Statx): Statx => ({ ...withoutRoots(statx), mountId: undefined })

for (const kind of ["ext4", "btrfs", "tmpfs", "overlay"] satisfies ReadonlyArray<Kind>) {
  describeReal(kind, { name: "as a mount that is required" }, (it) => {
    it.scoped("makes the storage, and the directory, on the mount", () =>
      Effect.gen(function*() {
        const { directory: mount } = yield* Mounted
        const directory = join(yield* freshPath, "a", "b")
        assert.isTrue((yield* used(make(mount, directory))).startsWith(`${directory}/`))
        yield* used(make(`${mount}/`, `${mount}/`))
        yield* used(make(mount, directory, { trustDirectory: true, earlyUnlink: true }))
        yield* used(make(mount, directory, { openStrategy: "open-direct" }))
      }))

    it.scoped("refuses a directory of it, which is no mount point, and makes nothing", () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        mkdirSync(directory)
        const message = yield* refused(make(directory, join(directory, "kv")), "not a mount point")
        assert.include(message, `nothing is mounted at ${directory}`)
        assert.include(message, "DISK_STORAGE_REQUIRE_MOUNT")
        assert.deepStrictEqual(readdirSync(directory), [])
      }))

    it.scoped("refuses a directory that lies elsewhere, and makes nothing", () =>
      Effect.gen(function*() {
        const { directory: mount } = yield* Mounted
        const directory = yield* plain
        const message = yield* refused(make(mount, join(directory, "kv")), "elsewhere")
        assert.include(message, "DYN_KVBM_DISK_CACHE_DIR")
        yield* refused(make("/", join(mount, "kv-of-root")), "elsewhere")
        assert.isFalse(existsSync(join(mount, "kv-of-root")))
        assert.deepStrictEqual(readdirSync(directory), [])
      }))

    it.scoped("finds mounts by their ids where the kernel does not tell roots", () =>
      Effect.gen(function*() {
        const { directory: mount } = yield* Mounted
        const directory = yield* freshPath
        for (const change of [withoutRoots, withoutIds]) {
          yield* used(on(make(mount, directory), { change }))
          yield* refused(on(make(directory, directory), { change }), "not a mount point")
          yield* refused(on(make("/", directory), { change }), "unknown")
        }
        const message = yield* refused(
          on(make(mount, directory), { change: withoutIds, hidden: "/proc/" }),
          "unknown"
        )
        assert.include(message, "Mount /proc")
      }))

    it.scoped("finds a mount point through a link, and a directory behind one", () =>
      Effect.gen(function*() {
        const { directory: mount } = yield* Mounted
        const below = yield* plain
        symlinkSync(mount, join(below, "link"))
        yield* used(make(join(below, "link"), join(below, "link", "kv")))
        yield* used(make(mount, join(below, "link", "kv")))
      }))
  })
}

describeReal("btrfs", { name: "as a mount that is required, with subvolumes", tools: ["btrfs"] }, (it) => {
  it.scoped("takes no subvolume for a mount", () =>
    Effect.gen(function*() {
      const { directory: mount } = yield* Mounted
      const subvolume = yield* freshPath
      yield* command("btrfs", "subvolume", "create", subvolume)
      yield* refused(make(subvolume, subvolume), "not a mount point")
      yield* refused(on(make(subvolume, subvolume), { change: withoutIds }), "not a mount point")
      yield* used(make(mount, subvolume))
    }))
})

describeReal("ext4", { name: "as a mount that goes away" }, (it) => {
  it.scoped("refuses a path that is not there, or no directory", () =>
    Effect.gen(function*() {
      const directory = yield* plain
      const message = yield* refused(make(join(directory, "nvme"), join(directory, "nvme", "kv")), "missing")
      assert.include(message, "ENOENT")
      assert.deepStrictEqual(readdirSync(directory), [])
      yield* refused(make("/etc/hostname/nvme", directory), "missing")
      symlinkSync(join(directory, "nowhere"), join(directory, "dangling"))
      yield* refused(make(join(directory, "dangling"), join(directory, "dangling", "kv")), "missing")
      assert.deepStrictEqual(readdirSync(directory), ["dangling"])
    }))

  it.scoped("takes a bind mount, and nothing once that is unmounted", () =>
    Effect.gen(function*() {
      const [source, target] = [yield* plain, yield* plain]
      yield* Effect.scoped(Effect.zipRight(bound(source, target), used(make(target, join(target, "kv")))))
      assert.deepStrictEqual(readdirSync(source), ["kv"])
      yield* refused(make(target, join(target, "kv")), "not a mount point")
      assert.deepStrictEqual(readdirSync(target), [])
    }))

  it.scoped("takes a directory of another mount below for one that lies elsewhere", () =>
    Effect.gen(function*() {
      const { directory: mount } = yield* Mounted
      const inner = yield* freshPath
      mkdirSync(inner)
      yield* bound(inner, inner)
      yield* refused(make(mount, join(inner, "kv")), "elsewhere")
      yield* used(make(inner, join(inner, "kv")))
    }))

  it.scoped("takes the root of the process, or whatever the disk below is mounted at", () =>
    Effect.gen(function*() {
      const directory = yield* plain
      const target = (yield* command("findmnt", "--noheadings", "--output", "TARGET", "--target", directory)).trim()
      yield* used(make(target, join(directory, "kv")))
    }))

  it.scoped("leaves no file, and allocates nothing, when the mount goes away before the file is made", () =>
    Effect.gen(function*() {
      const [source, target] = [yield* plain, yield* plain]
      mkdirSync(join(source, "kv"))
      mkdirSync(join(target, "kv"), 0o700)
      const syscalls = yield* Syscalls
      const calls: Array<string> = []
      const unmounting: Made = Effect.provideService(make(target, join(target, "kv")), Syscalls, {
        ...syscalls,
        // The sweep comes between the check and the look-up of the directory for the file.
        readdir: (path) => Effect.zipRight(command("umount", "-l", target), syscalls.readdir(path)),
        fallocate: (...all) => Effect.zipRight(Effect.sync(() => calls.push("fallocate")), syscalls.fallocate(...all))
      })
      yield* command("mount", "--bind", source, target)
      const message = yield* refused(unmounting, "elsewhere")
      assert.include(message, target)
      assert.deepStrictEqual(calls, [])
      assert.deepStrictEqual(readdirSync(join(target, "kv")), [])
      assert.deepStrictEqual(readdirSync(join(source, "kv")), [])
    }))

  it.scoped("keeps a file on the mount that goes away once its directory is open", () =>
    Effect.gen(function*() {
      const [source, target] = [yield* plain, yield* plain]
      mkdirSync(join(source, "kv"))
      mkdirSync(join(target, "kv"), 0o700)
      const syscalls = yield* Syscalls
      yield* command("mount", "--bind", source, target)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* Effect.provideService(make(target, join(target, "kv")), Syscalls, {
          ...syscalls,
          mkostemp: (prefix, flags) =>
            Effect.zipRight(command("umount", "-l", target), syscalls.mkostemp(prefix, flags))
        })
        assert.lengthOf(readdirSync(join(source, "kv")), 1)
        assert.deepStrictEqual(readdirSync(join(target, "kv")), [])
      }))
      assert.deepStrictEqual(readdirSync(join(source, "kv")), [])
    }))

  it.scoped("takes up what was kept on the mount, and touches nothing kept below it", () =>
    Effect.gen(function*() {
      const { directory: mount } = yield* Mounted
      const options = { directory: undefined, keepAt: join(mount, "kept") }
      const kept = Effect.scoped(
        Effect.flatMap(make(mount, mount, options), ({ keep, keptAt }) => Effect.as(keep, keptAt?.takenUp))
      )
      assert.isFalse(yield* kept)
      assert.isTrue(yield* kept)
      const below = yield* plain
      const belowToo = { directory: undefined, keepAt: join(below, "kept") }
      yield* Effect.scoped(Effect.flatMap(
        DiskStorage.make({ size, directIo: "preferred", keepAt: belowToo.keepAt }),
        ({ keep }) => keep
      ))
      yield* refused(make(mount, below, belowToo), "elsewhere")
      assert.deepStrictEqual(readdirSync(below), ["kept"])
    }))
})

describe("requireMount, simulated", () => {
  it.effect.each([["", "empty"], ["/mnt/\0", "NUL"], ["/mnt/\ud800", "surrogates"]])(
    "refuses %j, a path that is %s or has such",
    ([path = ""]) =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(used(make(path, "/tmp")))
        assert.strictEqual(error._tag, "InvalidOption")
        assert.include(error.message, "requireMount")
      }).pipe(Effect.provide(layer()))
  )

  it.effect("releases everything, whichever call fails", () =>
    Effect.gen(function*() {
      let failed = 0
      for (let nth = 1; nth < 200; nth++) {
        const exit = yield* Effect.gen(function*() {
          const kernel = yield* SimulatedSyscalls.SimulatedKernel
          yield* kernel.inject({ nth, outcome: { _tag: "Fail", code: "EIO" } })
          const exit = yield* Effect.exit(used(make("/", "/tmp/a/b")))
          const { fds, files } = yield* kernel.leaks
          const journal = yield* kernel.journal
          assert.deepStrictEqual(fds, [], `call ${nth}`)
          // A name that cannot be removed stays, and is told.
          if (journal[nth - 1]?.syscall !== "unlink") assert.deepStrictEqual(files, [], `call ${nth}`)
          return { exit, calls: journal.length }
        }).pipe(Effect.provide(layer()))
        if (exit.exit._tag === "Failure") failed += 1
        if (exit.calls < nth) break
      }
      assert.isAbove(failed, 10)
    }))
})
