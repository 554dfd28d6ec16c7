/** One decision on direct I/O from what was answered and observed, and nothing from the type of a filesystem. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as DiskStorage from "../src/DiskStorage.js"
import { decide } from "../src/internal/directIoVerdict.js"
import type { Evidence } from "../src/internal/directIoVerdict.js"
import * as IoEngine from "../src/IoEngine.js"
import type { Profile } from "../src/SimulatedSyscalls.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import { errnos, FS_NOCOW_FL, SyscallError, Syscalls } from "../src/Syscalls.js"

const alignment = { memoryAlignment: 512, offsetAlignment: 512 }
const none = { memoryAlignment: 0, offsetAlignment: 0 }
const seen = (path: "direct" | "buffered" | "refused" | "unknown") => ({ path, evidence: `seen ${path}` })
const nothing: Evidence = { flag: true, statx: undefined, statxHolds: false }
const holds: Evidence = { flag: true, statx: alignment, statxHolds: true }
const direct = { write: seen("direct"), read: seen("direct") }

const decisions: ReadonlyArray<readonly [string, Evidence, DiskStorage.DirectIoState["verdict"]]> = [
  ["nothing", nothing, "unknown"],
  ["no flag, whatever else was seen", { ...holds, ...direct, flag: false }, "buffered"],
  ["an alignment that holds", holds, "direct"],
  ["an alignment that proves nothing", { ...holds, statxHolds: false }, "unknown"],
  ["statx without direct I/O", { ...nothing, statx: none }, "buffered"],
  ["a direct write and a direct read", { ...nothing, ...direct }, "direct"],
  ["a direct write alone", { ...nothing, write: seen("direct") }, "unknown"],
  ["a direct write and an unknown read", { ...nothing, write: seen("direct"), read: seen("unknown") }, "unknown"],
  ["a buffered write, against statx", { ...holds, write: seen("buffered"), read: seen("direct") }, "buffered"],
  ["a buffered read, against statx", { ...holds, write: seen("direct"), read: seen("buffered") }, "buffered"],
  ["a refused write, against statx", { ...holds, write: seen("refused"), read: seen("direct") }, "unknown"],
  ["direct I/O, against statx", { ...nothing, ...direct, statx: none }, "unknown"],
  ["an own cache that was used", { ...holds, ...direct, ownCache: "used" }, "buffered"],
  ["an own cache that was bypassed", { ...nothing, write: seen("unknown"), ownCache: "bypassed" }, "direct"]
]

describe("decide", () => {
  it.each(decisions)("%s", (_, evidence, verdict) => {
    const decided = decide(evidence)
    assert.strictEqual(decided.verdict, verdict, decided.reason)
    assert.isNotEmpty(decided.reason)
  })
})

const XFS = 0x5846_5342
const ZFS = 0x2fc1_2fc1
const OVERLAY = 0x794c_7630
const size = 64 * 1024

/** The simulated kernel with other answers. */
const on = (profile: Profile, change: (kernel: Syscalls) => Partial<Syscalls>) => {
  const kernel = SimulatedSyscalls.layer({ profile })
  const changed = Layer.map(kernel, (context) => context)
  const other = Layer.effect(Syscalls, Effect.map(Syscalls, (real) => ({ ...real, ...change(real) })))
  return Effect.provide(Layer.provideMerge(IoEngine.layerSyscalls, Layer.provideMerge(other, changed)))
}

const ofType = (type: number) => (kernel: Syscalls): Partial<Syscalls> => ({
  fstatfs: (fd) => Effect.map(kernel.fstatfs(fd), (answer) => ({ ...answer, type }))
})

/** The text of `/proc/filesystems`, under a descriptor that the kernel does not have. */
const withFilesystems = (text: string) => (kernel: Syscalls): Partial<Syscalls> => {
  const list = 999_001
  return {
    ...ofType(OVERLAY)(kernel),
    open: (path, flags) => path === "/proc/filesystems" ? Effect.succeed(list) : kernel.open(path, flags),
    pread: (fd, into, offset) =>
      fd === list
        ? Effect.sync(() => new TextEncoder().encodeInto(text.slice(offset, offset + 8), into).written)
        : kernel.pread(fd, into, offset),
    close: (fd) => fd === list ? Effect.void : kernel.close(fd)
  }
}

describe("a storage", () => {
  const verdictOf = (options: Partial<DiskStorage.DiskStorageOptions> = {}) =>
    Effect.map(DiskStorage.make({ size, ...options }), ({ directIo }) => directIo.verdict).pipe(Effect.scoped)

  it.effect("does not take an alignment for direct I/O on ZFS, whose cache statx does not know", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* verdictOf(), "unknown")
    }).pipe(on("ext4", ofType(ZFS))))

  it.effect("does not take an alignment for direct I/O on an overlay that may lie over ZFS", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* verdictOf(), "unknown")
    }).pipe(on("ext4", withFilesystems("nodev\ttmpfs\n\text4\nnodev\tzfs\n"))))

  it.effect("nor where the list of filesystems cannot be read", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* verdictOf(), "unknown")
    }).pipe(on("ext4", ofType(OVERLAY))))

  it.effect("observes direct I/O on an overlay where the kernel has no ZFS", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* verdictOf(), "direct")
    }).pipe(on("ext4", withFilesystems("nodev\ttmpfs\n\text4\n\text3\n"))))

  it.effect("is buffered on a btrfs that keeps copies of data, NOCOW or not, and never to be had as proven", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      assert.strictEqual(storage.directIo.verdict, "buffered")
      assert.match(storage.directIo.reason, /^observed: .* in the page cache/)
      const refused = yield* Effect.flip(verdictOf({ directIo: "proven" }))
      assert.strictEqual(refused._tag, "DirectIoUnavailable")
    }).pipe(Effect.scoped, on("btrfsMirrored", () => ({}))))

  const noSpace = new SyscallError({ syscall: "pwrite", errno: errnos.EIO, code: "EIO" })
  it.effect("is unknown where the observation fails, and there all the same", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* verdictOf(), "unknown")
    }).pipe(on("btrfs", () => ({ pwrite: () => Effect.fail(noSpace) }))))

  it.effect("copies on write where btrfs accepts NOCOW and does not keep it", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      assert.strictEqual(storage.directIo.verdict, "buffered")
      assert.isTrue(storage.allocation.overwritesMayRunOutOfSpace)
      const refused = yield* Effect.flip(DiskStorage.make({ size, prewrite: true }))
      assert.strictEqual(refused._tag, "PrewriteRefused")
    }).pipe(
      Effect.scoped,
      on("btrfs", (kernel) => ({ ioctlSetFlags: (fd, flags) => kernel.ioctlSetFlags(fd, flags & ~FS_NOCOW_FL) }))
    ))

  it.effect("may run out of space on an XFS that does not preallocate, since it always copies on write", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, fallback: "zero-fill" })
      assert.strictEqual(storage.allocation.method, "zero-fill")
      assert.isTrue(storage.allocation.overwritesMayRunOutOfSpace)
    }).pipe(Effect.scoped, on("ext2", ofType(XFS))))
})
