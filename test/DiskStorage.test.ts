import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/TestClock"
import * as AlignedBuffer from "../src/AlignedBuffer.js"
import * as DiskAllocator from "../src/DiskAllocator.js"
import * as DiskStorage from "../src/DiskStorage.js"
import * as IoEngine from "../src/IoEngine.js"
import { SimulatedKernel } from "../src/SimulatedSyscalls.js"
import type { Profile, SimulatedOptions } from "../src/SimulatedSyscalls.js"
import * as Syscalls from "../src/Syscalls.js"
import type { ErrnoCode, SyscallName } from "../src/Syscalls.js"
import { layer, profiles } from "./support/simulation.js"

const size = 65_536

const on = (options: SimulatedOptions = {}) => Effect.provide(layer(options))

const fail = (syscall: SyscallName, code: ErrnoCode, nth = 1) =>
  Effect.flatMap(SimulatedKernel, (kernel) => kernel.inject({ syscall, nth, outcome: { _tag: "Fail", code } }))

const journal = Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)
const syscalls = Effect.map(journal, (entries) => entries.map(({ syscall }) => syscall))

/** A kernel that tells of space that somebody else takes before it is asked for. */
const takenMeanwhile = <A, E, R>(use: Effect.Effect<A, E, R>) =>
  Effect.flatMap(Syscalls.Syscalls, (kernel) =>
    Effect.provideService(use, Syscalls.Syscalls, {
      ...kernel,
      fstatfs: (fd) =>
        Effect.map(
          kernel.fstatfs(fd),
          (answer) => ({ ...answer, free: Number.MAX_SAFE_INTEGER, available: Number.MAX_SAFE_INTEGER })
        )
    }))

/** Of / and of /tmp, before a file is made. */
const closesOfLook = 2

const nothingLeft = Effect.flatMap(
  SimulatedKernel,
  (kernel) =>
    Effect.map(kernel.leaks, (leaks) => assert.deepStrictEqual(leaks, { fds: [], files: [], bytes: 0, mappings: 0 }))
)

/** What was logged, as level and text, and whatever else was given. */
const logging = () => {
  const lines: Array<string> = []
  const logger = Logger.make(({ logLevel, message }) => {
    lines.push([logLevel.label, ...(Array.isArray(message) ? message : [message])].map(String).join(" "))
  })
  return { lines, layer: Logger.replace(Logger.defaultLogger, logger) }
}

class First extends Context.Tag("test/First")<First, string>() {}
class Second extends Context.Tag("test/Second")<Second, number>() {}

describe("acquire", () => {
  it.effect("makes its calls in this order, and release its own", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, directory: "/tmp/a/" })
      assert.isTrue(/^\/tmp\/a\/dynamo-kvbm-disk-cache-eds-.{6}$/.test(storage.path))
    }).pipe(
      Effect.scoped,
      Effect.zipRight(syscalls),
      Effect.map((calls) =>
        assert.deepStrictEqual(calls, [
          // Who may write to / and to /tmp; what is missing below is made.
          "open",
          "statx",
          "close",
          "open",
          "statx",
          "close",
          "open",
          "mkdir",
          "open",
          "statx",
          "close",
          // What killed processes may have left there.
          "readdir",
          // The directory stays open, and the file is made below it.
          "open",
          "mkostemp",
          // Locked, and still there.
          "fstatfs",
          "statx",
          "open",
          "fcntlSetLock",
          "statx",
          "fstatfs",
          "fcntlGetFlags",
          "fcntlSetFlags",
          "fcntlGetFlags",
          "statx",
          "fallocate",
          // The name is that of the file, and there is no other.
          "statx",
          "unlink",
          "statx",
          "close",
          // The directory; the lock, last.
          "close",
          "close"
        ])
      ),
      on()
    ))

  it.effect("unlinks before it allocates, with earlyUnlink, and reopens before that", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, earlyUnlink: true, openStrategy: "open-direct" })
      assert.isTrue(yield* storage.unlinked)
      const calls = yield* syscalls
      assert.isBelow(calls.indexOf("open"), calls.indexOf("unlink"))
      assert.isBelow(calls.indexOf("unlink"), calls.indexOf("fallocate"))
    }).pipe(Effect.scoped, on()))

  it.effect("takes an empty btrfs file out of copy-on-write before it allocates", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      const calls = yield* syscalls
      assert.isBelow(calls.indexOf("ioctlSetFlags"), calls.indexOf("fallocate"))
      assert.strictEqual(storage.directIo.verdict, "direct")
      assert.isFalse(storage.allocation.overwritesMayRunOutOfSpace)
    }).pipe(Effect.scoped, on({ profile: "btrfs" })))

  it.effect("says that overwrites may run out of space where btrfs refuses that", () =>
    Effect.gen(function*() {
      yield* fail("ioctlSetFlags", "EPERM")
      const storage = yield* DiskStorage.make({ size })
      assert.strictEqual(storage.directIo.verdict, "buffered")
      assert.isTrue(storage.allocation.overwritesMayRunOutOfSpace)
    }).pipe(Effect.scoped, on({ profile: "btrfs" })))

  const truth: {
    readonly [profile in Profile]: readonly [DiskStorage.DiskStorage["directIo"]["verdict"], number, string, boolean]
  } = {
    ext4: ["direct", 512, "fallocate", false],
    ext2: ["direct", 4096, "truncate", true],
    lustre: ["direct", 4096, "truncate", true],
    btrfs: ["direct", 4096, "fallocate", false],
    btrfsMirrored: ["buffered", 4096, "fallocate", false],
    tmpfs: ["buffered", 4096, "fallocate", false],
    ramfs: ["buffered", 1, "truncate", true],
    storageScale: ["unknown", 4096, "fallocate", true],
    dataJournal: ["buffered", 4096, "fallocate", false]
  }
  it.effect.each([...profiles, "btrfsMirrored" as const])(
    "says what is true on %s",
    (profile) =>
      Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size: 5000, directIo: "preferred", openStrategy: "open-direct" })
        const [verdict, alignment, method, mayRunOut] = truth[profile]
        assert.strictEqual(storage.directIo.verdict, verdict)
        assert.strictEqual(storage.directIo.flag, profile !== "ramfs")
        assert.strictEqual(storage.alignment.offset, alignment)
        assert.strictEqual(storage.allocation.method, method)
        assert.strictEqual(storage.allocation.overwritesMayRunOutOfSpace, mayRunOut)
        assert.strictEqual(storage.size, 5000)
        assert.strictEqual(storage.addr, 0)
        assert.deepStrictEqual(storage.storageType, { _tag: "Disk" })
        const { size } = yield* storage.withFd((fd) => Effect.flatMap(Syscalls.Syscalls, (kernel) => kernel.statx(fd)))
        assert.strictEqual(size, 8192)
      }).pipe(Effect.scoped, on({ profile }))
  )

  it.effect("reads the flag back: Storage Scale takes it at open alone", () =>
    Effect.gen(function*() {
      const refused = yield* Effect.flip(DiskStorage.make({ size }))
      assert.strictEqual(refused._tag, "DirectIoRefused")
      assert.include(refused.message, "DYN_KVBM_DISK_ALLOCATOR_TYPE=open-direct")
      assert.include(refused.message, "DYN_KVBM_DISK_DISABLE_O_DIRECT=true")
      yield* nothingLeft
      const buffered = yield* DiskStorage.make({ size, directIo: "preferred" })
      assert.isFalse(buffered.directIo.flag)
      const direct = yield* DiskStorage.make({ size, openStrategy: "open-direct" })
      assert.isTrue(direct.directIo.flag)
    }).pipe(Effect.scoped, on({ profile: "storageScale" })))

  it.effect.each(["default", "open-direct"] as const)(
    "fails on ramfs, which refuses O_DIRECT: %s",
    (openStrategy) =>
      Effect.gen(function*() {
        const refused = yield* Effect.flip(DiskStorage.make({ size, openStrategy }))
        assert.strictEqual(refused._tag, "DirectIoRefused")
        if (refused._tag === "DirectIoRefused") assert.strictEqual(refused.cause?.code, "EINVAL")
        yield* nothingLeft
        const { layer, lines } = logging()
        const buffered = yield* Effect.provide(DiskStorage.make({ size, openStrategy, directIo: "preferred" }), layer)
        assert.deepStrictEqual([buffered.directIo.flag, buffered.directIo.verdict], [false, "buffered"])
        assert.isTrue(lines.some((line) => line.startsWith("WARN I/O is buffered")))
      }).pipe(Effect.scoped, on({ profile: "ramfs" }))
  )

  it.effect("touches nothing of a file that took the name while it was reopened", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls.Syscalls
      const other = yield* kernel.mkostemp("/tmp/other-", 0)
      const failure = yield* DiskStorage.make({ size, openStrategy: "open-direct" }).pipe(
        Effect.provideService(Syscalls.Syscalls, {
          ...kernel,
          open: (path, flags) => kernel.open((flags & kernel.flags.O_DIRECT) === 0 ? path : other.path, flags),
          statx: (fd, path) => path === undefined ? kernel.statx(fd) : kernel.statx(other.fd)
        }),
        Effect.flip
      )
      assert.strictEqual(failure._tag, "FileReplaced")
      const { fds, files } = yield* Effect.flatMap(SimulatedKernel, (control) => control.leaks)
      assert.deepStrictEqual(fds, [other.fd])
      assert.include(files, other.path)
    }).pipe(Effect.scoped, on()))

  it.effect("gives everything back at once when it fails, long before the Scope ends", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(takenMeanwhile(DiskStorage.make({ size: 3 * size })))
      assert.strictEqual(failure._tag, "OutOfSpace")
      assert.include(failure.message, "ENOSPC")
      yield* nothingLeft
      yield* DiskStorage.make({ size })
    }).pipe(Effect.scoped, on({ capacity: 2 * size })))

  it.effect.each(["ext4", "ext2", "tmpfs"] as const)(
    "asks for nothing that the filesystem says it does not have: %s",
    (profile) =>
      Effect.gen(function*() {
        for (const fallback of ["truncate", "zero-fill"] as const) {
          const failure = yield* Effect.flip(DiskStorage.make({ size: 2 * size + 1, fallback }))
          if (failure._tag !== "InsufficientSpace") return assert.fail(failure.message)
          assert.deepStrictEqual([failure.needed, failure.available], [2 * size + 4096, 2 * size])
          yield* nothingLeft
        }
        const calls = new Set(yield* syscalls)
        for (const call of ["fallocate", "ftruncate", "pwrite"] as const) assert.isFalse(calls.has(call), call)
        yield* DiskStorage.make({ size: 2 * size })
      }).pipe(Effect.scoped, on({ profile, capacity: 2 * size }))
  )

  it.effect("leaves what is reserved to root", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls.Syscalls
      const as = (euid: number) =>
        Effect.either(DiskStorage.make({ size })).pipe(Effect.provideService(Syscalls.Syscalls, {
          ...kernel,
          geteuid: Effect.succeed(euid),
          fstatfs: (fd) => Effect.map(kernel.fstatfs(fd), (answer) => ({ ...answer, available: size - 1 }))
        }))
      const refused = yield* as(1000)
      if (refused._tag === "Right" || refused.left._tag !== "InsufficientSpace") {
        return assert.fail("it was not refused")
      }
      assert.strictEqual(refused.left.available, size - 1)
      assert.strictEqual((yield* as(0))._tag, "Right")
    }).pipe(Effect.scoped, on()))

  it.effect("asks again after a sync: some filesystems give space back behind the scenes", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls.Syscalls
      let synced = false
      yield* DiskStorage.make({ size }).pipe(Effect.provideService(Syscalls.Syscalls, {
        ...kernel,
        fdatasync: (fd) => Effect.tap(kernel.fdatasync(fd), () => Effect.sync(() => synced = true)),
        fstatfs: (fd) =>
          Effect.map(kernel.fstatfs(fd), (answer) => synced ? answer : { ...answer, free: 0, available: 0 })
      }))
      assert.isTrue(synced)
    }).pipe(Effect.scoped, on()))

  it.effect.each(
    [["btrfs, whose count lags", "btrfs", 1e9], ["a filesystem without a count", "ext4", 0]] as const
  )("asks fallocate: %s", ([, profile, total]) =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls.Syscalls
      const { allocation } = yield* DiskStorage.make({ size }).pipe(Effect.provideService(Syscalls.Syscalls, {
        ...kernel,
        fstatfs: (fd) => Effect.map(kernel.fstatfs(fd), (answer) => ({ ...answer, total, free: 0, available: 0 }))
      }))
      assert.strictEqual(allocation.method, "fallocate")
    }).pipe(Effect.scoped, on({ profile })))

  const directories: ReadonlyArray<readonly [string, string, ErrnoCode]> = [
    ["a file", "/tmp/file", "ENOTDIR"],
    ["below a file", "/tmp/file/sub", "ENOTDIR"],
    ["too long a name", `/tmp/${"n".repeat(256)}`, "ENAMETOOLONG"],
    ["too long a path", `/tmp${"/directory".repeat(500)}`, "ENAMETOOLONG"]
  ]
  for (const [what, directory, code] of directories) {
    it.effect(`names the directory that is ${what}`, () =>
      Effect.gen(function*() {
        const failure = yield* Effect.flip(DiskStorage.make({ size, directory }))
        assert.strictEqual(failure._tag, "DirectoryUnusable")
        if (failure._tag === "DirectoryUnusable") assert.strictEqual(failure.cause.code, code)
        assert.include(failure.message, directory)
      }).pipe(Effect.scoped, on({ files: ["/tmp/file"] })))
  }

  it.effect("makes missing directories, and leaves them", () =>
    Effect.gen(function*() {
      yield* Effect.scoped(DiskStorage.make({ size, directory: "/tmp//x/y/../z///" }))
      const kernel = yield* Syscalls.Syscalls
      assert.strictEqual((yield* Effect.flip(kernel.mkdir("/tmp/x/z", 0o700))).code, "EEXIST")
    }).pipe(on()))

  it.effect("says what to do when there is no descriptor left", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(DiskStorage.make({ size }))
      assert.strictEqual(failure._tag, "CreateFailed")
      assert.include(failure.message, "ulimit -n")
    }).pipe(Effect.scoped, on({ maxFds: 0 })))

  it.effect.each([0, -4096, 1.5, NaN, Infinity, Number.MAX_SAFE_INTEGER, 2 ** 53])(
    "rejects a size of %d",
    (size) =>
      Effect.gen(function*() {
        const failure = yield* Effect.flip(DiskStorage.make({ size }))
        assert.strictEqual(failure._tag, "InvalidOption")
        assert.deepStrictEqual(yield* journal, [])
      }).pipe(Effect.scoped, on())
  )

  it.effect.each(["", "/tmp/\0/x"])("rejects the directory %j", (directory) =>
    Effect.gen(function*() {
      assert.strictEqual((yield* Effect.flip(DiskStorage.make({ size, directory })))._tag, "InvalidOption")
    }).pipe(Effect.scoped, on()))

  it.effect("says in its log what it decided, and nothing at a normal end above debug", () =>
    Effect.gen(function*() {
      const quiet = logging()
      yield* DiskStorage.make({ size }).pipe(Effect.scoped, Effect.provide(quiet.layer))
      assert.deepStrictEqual(quiet.lines.filter((line) => !line.startsWith("DEBUG")), [])
      yield* fail("fallocate", "ENOSYS", 2)
      const degraded = logging()
      yield* DiskStorage.make({ size }).pipe(Effect.scoped, Effect.provide(degraded.layer))
      assert.isTrue(degraded.lines.some((line) => line.startsWith("WARN this filesystem has no fallocate")))
    }).pipe(on()))

  it.effect("is one span", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls.Syscalls
      const names: Array<string> = []
      const statx: typeof kernel.statx = (fd) =>
        Effect.zipRight(
          Effect.map(Effect.orDie(Effect.currentSpan), (span) => void names.push(span.name)),
          kernel.statx(fd)
        )
      yield* Effect.provideService(DiskStorage.make({ size }), Syscalls.Syscalls, { ...kernel, statx })
      assert.deepStrictEqual(new Set(names), new Set(["DiskStorage.make"]))
    }).pipe(Effect.scoped, on()))
})

describe("zero-fill", () => {
  const zeroFill = { fallback: "zero-fill", directory: "/tmp" } as const
  const maxWrite = 4 * 1024 * 1024
  const inFlight = 8

  it.effect.each([1234, 1_000_000, 10_000_000, 100_000_000])(
    "of %d bytes makes only aligned writes",
    (size) =>
      Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ ...zeroFill, size })
        assert.strictEqual(storage.allocation.method, "zero-fill")
        const entries = yield* journal
        const writes = entries.filter(({ syscall }) => syscall === "pwrite")
        const length = Math.ceil(size / 4096) * 4096
        let reached = 0
        for (const { length = 0, memory = 0, offset } of writes) {
          assert.strictEqual(offset, reached)
          assert.strictEqual(length % 4096, 0)
          assert.isAtMost(length, maxWrite)
          assert.isAtLeast(memory, 4096)
          reached += length
        }
        assert.strictEqual(reached, length)
        assert.strictEqual(writes.length, Math.ceil(length / maxWrite))
        // Synced, and not trimmed.
        assert.deepStrictEqual(entries.slice(-1).map(({ syscall }) => syscall), ["fdatasync"])
        const kernel = yield* Syscalls.Syscalls
        assert.strictEqual((yield* storage.withFd(kernel.statx)).size, length)
        assert.strictEqual(storage.size, size)
      }).pipe(Effect.scoped, on({ profile: "ext2" }))
  )

  it.effect("goes on after short writes, from the last aligned byte", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      for (const [nth, bytes] of [[1, 5000], [2, 1], [3, 8192], [5, 4096]] as const) {
        yield* control.inject({ syscall: "pwrite", nth, outcome: { _tag: "Short", bytes } })
      }
      yield* DiskStorage.make({ ...zeroFill, size: 65_536 })
      const offsets = (yield* journal).flatMap(({ offset, syscall }) => syscall === "pwrite" ? [offset] : [])
      assert.deepStrictEqual(offsets, [0, 4096, 4096, 12_288])
    }).pipe(Effect.scoped, on({ profile: "ext2" })))

  it.effect("gives up on a write that writes nothing", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      yield* control.inject({ syscall: "pwrite", nth: 1, outcome: { _tag: "Short", bytes: 0 } })
      const failure = yield* Effect.flip(DiskStorage.make({ ...zeroFill, size }))
      assert.strictEqual(failure._tag, "AllocationFailed")
      assert.include(failure.message, "wrote nothing")
      yield* nothingLeft
    }).pipe(Effect.scoped, on({ profile: "ext2" })))

  it.effect("tells its progress, in bytes, up to the total", () =>
    Effect.gen(function*() {
      const told: Array<DiskStorage.Progress> = []
      const total = 3 * maxWrite + 4096
      const storage = yield* Effect.provideService(
        DiskStorage.make({ ...zeroFill, size: total - 1 }),
        DiskStorage.ProgressListener,
        (progress) => Effect.sync(() => void told.push(progress))
      )
      const { path } = storage
      assert.deepStrictEqual(
        told,
        [maxWrite, 2 * maxWrite, 3 * maxWrite, total].map((done) => ({ step: "zero-fill", path, done, total }))
      )
    }).pipe(Effect.scoped, on({ profile: "ext2" })))

  it.effect("keeps several writes in flight, and ends with them when it is interrupted", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      const fiber = yield* Effect.fork(Effect.scoped(DiskStorage.make({ ...zeroFill, size: 40 * maxWrite })))
      for (let nth = 1; nth <= inFlight + 1; nth++) {
        yield* control.inject({ syscall: "pwrite", nth, outcome: { _tag: "Late", duration: "1 minute" } })
      }
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* syscalls).filter((syscall) => syscall === "pwrite").length, 0)
      const interrupted = yield* Effect.fork(Fiber.interrupt(fiber))
      yield* TestClock.adjust("30 seconds")
      // The kernel has the buffer: what is submitted is waited for.
      assert.isTrue(Option.isNone(yield* Fiber.poll(interrupted)))
      yield* TestClock.adjust("1 minute")
      yield* Fiber.join(interrupted)
      assert.strictEqual((yield* syscalls).filter((syscall) => syscall === "pwrite").length, inFlight)
      yield* nothingLeft
    }).pipe(on({ profile: "ext2" })))

  it.effect("says which alignment it tried, and the way out, on EINVAL", () =>
    Effect.gen(function*() {
      yield* fail("pwrite", "EINVAL")
      const failure = yield* Effect.flip(DiskStorage.make({ ...zeroFill, size }))
      assert.strictEqual(failure._tag, "AllocationFailed")
      assert.include(failure.message, "aligned to 4096 bytes")
      assert.include(failure.message, "DYN_KVBM_DISK_DISABLE_O_DIRECT=true")
      yield* nothingLeft
    }).pipe(Effect.scoped, on({ profile: "ext2" })))

  it.effect("leaves no block of a disk that fills up half-way", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(takenMeanwhile(DiskStorage.make({ ...zeroFill, size: 2 * maxWrite })))
      assert.strictEqual(failure._tag, "OutOfSpace")
      yield* nothingLeft
    }).pipe(Effect.scoped, on({ profile: "ext2", capacity: maxWrite + 4096 * 3 })))

  it.effect("works without O_DIRECT", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ ...zeroFill, size: 5000, directIo: "disabled" })
      assert.deepStrictEqual(storage.alignment, { memory: 1, offset: 1, length: 1 })
      assert.isTrue((yield* storage.readBytes(0, 5000)).every((byte) => byte === 0))
    }).pipe(Effect.scoped, on({ profile: "lustre" })))
})

describe("transfers", () => {
  it.effect("read what was written", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      const written = yield* AlignedBuffer.make(8192)
      written.bytes.forEach((_, index) => written.bytes[index] = index % 253)
      yield* storage.write(4096, written)
      yield* storage.sync
      const read = yield* AlignedBuffer.make(8192)
      yield* storage.read(4096, read)
      assert.deepStrictEqual(read.bytes, written.bytes)
    }).pipe(Effect.scoped, on()))

  it.effect("outside the size, or unaligned, are refused before any call", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size: 10_000 })
      const page = yield* AlignedBuffer.make(4096)
      const calls = (yield* journal).length
      const refused = (transfer: Effect.Effect<unknown, { readonly _tag: string }>) =>
        Effect.map(Effect.flip(transfer), ({ _tag }) => _tag)
      for (const offset of [-4096, 8192, 12_288, 1.5, NaN, Infinity, 2 ** 60]) {
        assert.strictEqual(yield* refused(storage.read(offset, page)), "OutOfBounds")
        assert.strictEqual(yield* refused(storage.write(offset, page)), "OutOfBounds")
        assert.strictEqual(yield* refused(storage.readBytes(offset, 4096)), "OutOfBounds")
        assert.strictEqual(yield* refused(storage.writeBytes(offset, page.bytes)), "OutOfBounds")
      }
      assert.strictEqual(yield* refused(storage.readBytes(0, 10_001)), "OutOfBounds")
      assert.strictEqual(yield* refused(storage.readBytes(0, -1)), "OutOfBounds")
      assert.strictEqual(yield* refused(storage.read(100, page)), "Misaligned")
      assert.strictEqual(yield* refused(storage.write(511, page)), "Misaligned")
      assert.strictEqual((yield* storage.readBytes(10_000, 0)).byteLength, 0)
      yield* storage.writeBytes(10_000, new Uint8Array(0))
      assert.strictEqual((yield* journal).length, calls)
    }).pipe(Effect.scoped, on()))

  it.effect("of bytes keep the other bytes of a page, also of concurrent writers", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size: 3 * 4096 + 567 })
      const all = Array.from({ length: storage.size }, (_, index) => index % 249)
      yield* Effect.forEach(
        Array.from({ length: Math.ceil(storage.size / 100) }, (_, index) => index * 100),
        (offset) => storage.writeBytes(offset, Uint8Array.from(all.slice(offset, offset + 100))),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual([...yield* storage.readBytes(0, storage.size)], all)
      assert.deepStrictEqual([...yield* storage.readBytes(4095, 4099)], all.slice(4095, 8194))
    }).pipe(Effect.scoped, on({ profile: "lustre" })))

  it.effect("continue after short reads and writes", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      const storage = yield* DiskStorage.make({ size })
      yield* control.inject({ syscall: "pwrite", nth: 1, outcome: { _tag: "Short", bytes: 700 } })
      yield* control.inject({ syscall: "pread", nth: 1, outcome: { _tag: "Short", bytes: 5000 } })
      const block = yield* AlignedBuffer.make(16_384)
      block.bytes.fill(3)
      yield* storage.write(0, block)
      block.bytes.fill(0)
      yield* storage.read(0, block)
      assert.isTrue(block.bytes.every((byte) => byte === 3))
      const offsets = (yield* journal).flatMap(({ offset, syscall }) => syscall.startsWith("p") ? [offset] : [])
      assert.deepStrictEqual(offsets, [0, 512, 0, 4608])
    }).pipe(Effect.scoped, on()))

  it.effect("fail with the bytes done and the error, and with the end of a file that somebody cut", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      const kernel = yield* Syscalls.Syscalls
      const storage = yield* DiskStorage.make({ size })
      const block = yield* AlignedBuffer.make(16_384)
      yield* control.inject({ syscall: "pwrite", nth: 1, outcome: { _tag: "Short", bytes: 8192 } })
      yield* fail("pwrite", "EIO", 2)
      const failed = yield* Effect.flip(storage.write(0, block))
      assert.strictEqual(failed._tag, "IoFailed")
      if (failed._tag === "IoFailed") {
        assert.deepStrictEqual([failed.bytesDone, failed.length, failed.cause?.code], [8192, 16_384, "EIO"])
      }
      yield* storage.withFd((fd) => kernel.ftruncate(fd, 4096))
      const cut = yield* Effect.flip(storage.read(0, block))
      assert.strictEqual(cut._tag, "IoFailed")
      if (cut._tag === "IoFailed") assert.deepStrictEqual([cut.bytesDone, cut.cause], [4096, undefined])
      yield* fail("fdatasync", "EIO")
      assert.strictEqual((yield* Effect.flip(storage.sync))._tag, "IoFailed")
    }).pipe(Effect.scoped, on()))

  it.effect("survive EINTR, but not a hundred in a row", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      const page = yield* AlignedBuffer.make(4096)
      for (let nth = 1; nth <= 100; nth++) yield* fail("pwrite", "EINTR", nth)
      yield* storage.write(0, page)
      for (let nth = 102; nth <= 202; nth++) yield* fail("pwrite", "EINTR", nth)
      assert.strictEqual((yield* Effect.flip(storage.write(0, page)))._tag, "IoFailed")
    }).pipe(Effect.scoped, on()))
})

describe("unlink", () => {
  it.effect("is idempotent, may be retried, and `unlinked` tells the truth", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      assert.isFalse(yield* storage.unlinked)
      yield* fail("unlink", "EBUSY")
      const failure = yield* Effect.flip(storage.unlink)
      assert.strictEqual(failure._tag, "UnlinkFailed")
      assert.isFalse(yield* storage.unlinked)
      yield* Effect.all([storage.unlink, storage.unlink], { concurrency: 2 })
      assert.isTrue(yield* storage.unlinked)
      yield* storage.unlink
      assert.strictEqual((yield* syscalls).filter((syscall) => syscall === "unlink").length, 2)
      yield* storage.writeBytes(1, new Uint8Array(10))
    }).pipe(Effect.scoped, on()))

  it.effect("takes a name that somebody removed for unlinked, and says so", () =>
    Effect.gen(function*() {
      const { layer, lines } = logging()
      const storage = yield* DiskStorage.make({ size })
      yield* Effect.flatMap(Syscalls.Syscalls, (kernel) => kernel.unlink(storage.path))
      yield* Effect.provide(storage.unlink, layer)
      assert.isTrue(yield* storage.unlinked)
      assert.isTrue(lines.some((line) => line.startsWith("WARN") && line.includes(storage.path)))
    }).pipe(Effect.scoped, on()))
})

describe("registrations", () => {
  it.effect("are released newest first, before unlink and close", () =>
    Effect.gen(function*() {
      const order: Array<string> = []
      const handle = <A>(name: string, value: A) =>
        Effect.acquireRelease(Effect.succeed(value), () =>
          Effect.map(syscalls, (calls) =>
            void order.push(`${name} ${calls.includes("unlink") ? "late" : "in time"}`)))
      yield* Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size })
        assert.strictEqual(yield* storage.register(First, handle("first", "a")), "a")
        assert.strictEqual(yield* storage.register(Second, handle("second", 2)), 2)
        assert.deepStrictEqual(yield* storage.registration(First), Option.some("a"))
        assert.deepStrictEqual(yield* storage.registration(Second), Option.some(2))
        assert.isTrue(yield* storage.isRegistered(First))
      }))
      assert.deepStrictEqual(order, ["second in time", "first in time"])
    }).pipe(on()))

  it.effect("of a taken tag fail and release nothing", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      let released = 0
      yield* storage.register(First, Effect.acquireRelease(Effect.succeed("a"), () => Effect.sync(() => released++)))
      const duplicate = yield* Effect.flip(storage.register(First, Effect.succeed("b")))
      assert.strictEqual(duplicate._tag, "DuplicateKey")
      assert.strictEqual(released, 0)
      assert.deepStrictEqual(yield* storage.registration(First), Option.some("a"))
    }).pipe(Effect.scoped, on()))

  it.effect("of one tag at the same time make one handle", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      const acquire = Effect.delay(Effect.succeed("a"), "1 second")
      const fibers = yield* Effect.forEach([1, 2], () => Effect.fork(Effect.either(storage.register(First, acquire))))
      yield* TestClock.adjust("1 second")
      const outcomes = yield* Effect.forEach(fibers, Fiber.join)
      assert.deepStrictEqual(outcomes.map(Either.isRight).sort(), [false, true])
    }).pipe(Effect.scoped, on()))

  it.effect("that fail or are interrupted leave nothing, and the tag is free again", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      let held = 0
      const hold = Effect.acquireRelease(Effect.sync(() => held++), () => Effect.sync(() => held--))
      assert.strictEqual(yield* Effect.flip(storage.register(First, Effect.zipRight(hold, Effect.fail("no")))), "no")
      const fiber = yield* Effect.fork(storage.register(First, Effect.zipRight(hold, Effect.never)))
      yield* Effect.yieldNow()
      assert.strictEqual(held, 1)
      assert.isFalse(yield* storage.isRegistered(First))
      assert.isFalse(yield* storage.deregister(First))
      yield* Fiber.interrupt(fiber)
      assert.strictEqual(held, 0)
      yield* storage.register(First, Effect.succeed("a"))
    }).pipe(Effect.scoped, on()))

  it.effect("can be released one by one", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      let held = 0
      const hold = Effect.acquireRelease(Effect.sync(() => `${held++}`), () => Effect.sync(() => held--))
      yield* storage.register(First, hold)
      assert.isTrue(yield* storage.deregister(First))
      assert.strictEqual(held, 0)
      assert.isFalse(yield* storage.deregister(First))
      assert.deepStrictEqual(yield* storage.registration(First), Option.none())
      yield* storage.register(First, hold)
      assert.strictEqual(held, 1)
    }).pipe(Effect.scoped, on()))

  it.effect("keep their tag until they are released", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      yield* storage.register(First, Effect.acquireRelease(Effect.succeed("a"), () => Effect.sleep("1 second")))
      const deregistering = yield* Effect.fork(storage.deregister(First))
      yield* Effect.yieldNow()
      assert.isFalse(yield* storage.isRegistered(First))
      assert.strictEqual((yield* Effect.flip(storage.register(First, Effect.succeed("b"))))._tag, "DuplicateKey")
      yield* TestClock.adjust("1 second")
      assert.isTrue(yield* Fiber.join(deregistering))
      yield* storage.register(First, Effect.succeed("b"))
    }).pipe(Effect.scoped, on()))

  it.effect("that need a linked file are refused after unlink", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, earlyUnlink: true })
      let acquired = false
      const acquire = Effect.sync(() => {
        acquired = true
        return "a"
      })
      assert.strictEqual(
        (yield* Effect.flip(storage.register(First, acquire, { linked: true })))._tag,
        "StorageUnlinked"
      )
      assert.strictEqual((yield* Effect.flip(storage.registerThenUnlink(First, acquire)))._tag, "StorageUnlinked")
      assert.isFalse(acquired)
      yield* storage.register(First, acquire)
    }).pipe(Effect.scoped, on()))

  it.effect("then unlink: both outcomes are told", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      assert.strictEqual(yield* Effect.flip(storage.registerThenUnlink(First, Effect.fail("no"))), "no")
      assert.isFalse(yield* storage.unlinked)
      yield* fail("unlink", "EIO")
      const kept = yield* storage.registerThenUnlink(First, Effect.succeed("a"))
      assert.strictEqual(kept.registration, "a")
      assert.isTrue(Either.isLeft(kept.unlink))
      assert.isTrue(yield* storage.isRegistered(First))
      assert.isFalse(yield* storage.unlinked)
      const both = yield* storage.registerThenUnlink(Second, Effect.succeed(2))
      assert.deepStrictEqual(both, { registration: 2, unlink: Either.void })
      assert.isTrue(yield* storage.unlinked)
    }).pipe(Effect.scoped, on()))
})

describe("release", () => {
  it.effect("waits for what is in flight and lent, and lets nothing more in", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      const scope = yield* Scope.make()
      const storage = yield* Scope.extend(DiskStorage.make({ size }), scope)
      const page = yield* AlignedBuffer.make(4096)
      const gate = yield* Deferred.make<void>()
      yield* control.inject({ syscall: "pwrite", nth: 1, outcome: { _tag: "Late", duration: "1 minute" } })
      const writing = yield* Effect.fork(storage.write(0, page))
      const lent = yield* Effect.fork(storage.withFd((fd) => Effect.as(Deferred.await(gate), fd)))
      yield* Effect.yieldNow()
      const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("2 minutes")
      yield* Fiber.join(writing)
      assert.isTrue(Option.isNone(yield* Fiber.poll(closing)))
      assert.strictEqual((yield* Effect.flip(storage.withFd(() => Effect.void)))._tag, "StorageClosed")
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(lent)
      yield* Fiber.join(closing)
      yield* nothingLeft
    }).pipe(on()))

  it.effect("closes every method before any call", () =>
    Effect.gen(function*() {
      const storage = yield* Effect.scoped(DiskStorage.make({ size }))
      const page = yield* AlignedBuffer.make(4096)
      const calls = (yield* journal).length
      const methods: ReadonlyArray<Effect.Effect<unknown, { readonly _tag: string }>> = [
        storage.read(0, page),
        storage.write(0, page),
        storage.readBytes(0, 1),
        storage.writeBytes(0, page.bytes),
        storage.sync,
        storage.withFd(() => Effect.void),
        storage.unlink,
        storage.register(First, Effect.succeed("a")),
        storage.registerThenUnlink(First, Effect.succeed("a")),
        storage.registration(First),
        storage.isRegistered(First),
        storage.deregister(First)
      ]
      for (const method of methods) assert.strictEqual((yield* Effect.flip(method))._tag, "StorageClosed")
      assert.isTrue(yield* storage.unlinked)
      yield* storage.close
      assert.strictEqual((yield* journal).length, calls)
    }).pipe(on()))

  it.effect("by close is done once, however often and concurrently it is called", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      yield* control.inject({
        syscall: "close",
        nth: closesOfLook + 1,
        outcome: { _tag: "Late", duration: "50 seconds" }
      })
      yield* Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size })
        const closing = yield* Effect.forEach([1, 2], () => Effect.fork(storage.close))
        yield* TestClock.adjust("30 seconds")
        for (const fiber of closing) assert.isTrue(Option.isNone(yield* Fiber.poll(fiber)))
        yield* TestClock.adjust("1 minute")
        yield* Effect.forEach(closing, Fiber.join)
        yield* nothingLeft
        yield* storage.close
      }))
      assert.strictEqual((yield* syscalls).filter((syscall) => syscall === "close").length, closesOfLook + 3)
    }).pipe(on()))

  it.effect("tells every failure, skips nothing, never dies, and does not change how the program ends", () =>
    Effect.gen(function*() {
      yield* fail("unlink", "EIO")
      yield* fail("close", "ENOSPC", closesOfLook + 1)
      const { layer, lines } = logging()
      let first = 0
      const failure = yield* Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size })
        yield* storage.register(First, Effect.acquireRelease(Effect.succeed("a"), () => Effect.sync(() => first++)))
        yield* storage.register(Second, Effect.acquireRelease(Effect.succeed(2), () => Effect.dieMessage("broken")))
        const failure = yield* Effect.flip(storage.close)
        assert.deepStrictEqual(yield* Effect.flip(storage.close), failure)
        return failure
      })).pipe(Effect.provide(layer))
      assert.strictEqual(first, 1)
      assert.deepStrictEqual(failure.failures.map(({ step }) => step), ["registration", "unlink", "close"])
      for (const word of ["test/Second", "broken", "EIO", "ENOSPC", "by hand"]) assert.include(failure.message, word)
      assert.strictEqual(lines.filter((line) => line.startsWith("ERROR")).length, 1)
      const { fds } = yield* Effect.flatMap(SimulatedKernel, (control) => control.leaks)
      assert.deepStrictEqual(fds, [])
    }).pipe(on()))

  it.effect("of a scope that ends during the acquisition waits for what the kernel is at, and makes no call after it", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      yield* control.inject({ syscall: "pwrite", nth: 2, outcome: { _tag: "Late", duration: "50 seconds" } })
      const scope = yield* Scope.make()
      const options = { size: 64 * 1024 * 1024, fallback: "zero-fill" } as const
      const making = yield* Effect.fork(Effect.exit(Scope.extend(DiskStorage.make(options), scope)))
      yield* TestClock.adjust("1 second")
      const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("1 second")
      assert.lengthOf((yield* syscalls).filter((syscall) => syscall === "close"), closesOfLook)
      yield* TestClock.adjust("1 minute")
      yield* Fiber.join(closing)
      yield* nothingLeft
      assert.isTrue(Exit.isInterrupted(yield* Fiber.join(making)))
      assert.deepStrictEqual((yield* syscalls).slice(-5), ["unlink", "statx", "close", "close", "close"])
      const late = yield* Effect.exit(Scope.extend(DiskStorage.make(options), scope))
      assert.isTrue(Exit.isInterrupted(late))
      yield* nothingLeft
    }).pipe(on({ profile: "ext2" })))

  it.effect("by the scope waits for a close that has begun before", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      yield* control.inject({
        syscall: "close",
        nth: closesOfLook + 1,
        outcome: { _tag: "Late", duration: "50 seconds" }
      })
      const scope = yield* Scope.make()
      const storage = yield* Scope.extend(DiskStorage.make({ size }), scope)
      yield* Effect.forkDaemon(storage.close)
      yield* TestClock.adjust("1 second")
      const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("1 second")
      assert.isTrue(Option.isNone(yield* Fiber.poll(closing)))
      yield* TestClock.adjust("1 minute")
      yield* Fiber.join(closing)
      yield* nothingLeft
    }).pipe(on()))

  it.effect("takes every step although the fibre that closes the scope is interrupted during the first", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const storage = yield* Scope.extend(DiskStorage.make({ size }), scope)
      const gate = yield* Deferred.make<void>()
      const lent = yield* Effect.fork(storage.withFd(() => Deferred.await(gate)))
      yield* Effect.yieldNow()
      // `Scope.close` can be interrupted between two finalizers.
      const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
      yield* Effect.repeat(Effect.exit(storage.withFd(() => Effect.void)), { until: Exit.isFailure })
      yield* Fiber.interruptAsFork(closing, yield* Effect.fiberId)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(lent)
      assert.isTrue(Exit.isInterrupted(yield* Fiber.await(closing)))
      yield* nothingLeft
      yield* storage.close
    }).pipe(on()))

  it.effect("does not hide why the program failed", () =>
    Effect.gen(function*() {
      yield* fail("close", "EIO", closesOfLook + 1)
      const exit = yield* DiskStorage.make({ size }).pipe(
        Effect.zipRight(Effect.fail("the program's own")),
        Effect.scoped,
        Effect.exit,
        Effect.provide(logging().layer)
      )
      assert.deepStrictEqual(Exit.isFailure(exit) ? Chunk.toReadonlyArray(Cause.failures(exit.cause)) : [], [
        "the program's own"
      ])
    }).pipe(on()))
})

describe("layers", () => {
  it.effect("make one file for one const, and two for two tags", () =>
    Effect.gen(function*() {
      class Other extends Context.Tag("test/Other")<Other, DiskStorage.DiskStorage>() {}
      const one = DiskStorage.layer({ size })
      const other = Layer.scoped(Other, DiskStorage.make({ size: 2 * size }))
      yield* Effect.gen(function*() {
        const [a, b, c] = yield* Effect.all([DiskStorage.DiskStorage, DiskStorage.DiskStorage, Other])
        assert.strictEqual(a, b)
        assert.notStrictEqual(a.path, c.path)
        assert.strictEqual(c.size, 2 * size)
      }).pipe(Effect.provide(Layer.mergeAll(one, Layer.provideMerge(one, one), other)))
      assert.strictEqual((yield* syscalls).filter((syscall) => syscall === "mkostemp").length, 2)
      yield* nothingLeft
    }).pipe(on()))
})

describe("DiskAllocator", () => {
  it.effect("hands out storages within its budget, and takes them back", () =>
    Effect.gen(function*() {
      const allocator = yield* DiskAllocator.make({ budget: 3 * size })
      yield* Effect.scoped(Effect.gen(function*() {
        const first = yield* allocator.allocate({ size: 2 * size })
        const exceeded = yield* Effect.flip(allocator.allocate({ size: 2 * size }))
        assert.strictEqual(exceeded._tag, "BudgetExceeded")
        if (exceeded._tag === "BudgetExceeded") assert.strictEqual(exceeded.available, size)
        yield* allocator.allocate({ size })
        assert.strictEqual(yield* allocator.available, 0)
        yield* first.close
        assert.strictEqual(yield* allocator.available, 2 * size)
        yield* allocator.allocate({ size })
      }))
      assert.strictEqual(yield* allocator.available, 3 * size)
      yield* nothingLeft
    }).pipe(on()))

  it.effect("gives the budget of a failed acquisition back at once", () =>
    Effect.gen(function*() {
      const allocator = yield* DiskAllocator.DiskAllocator
      yield* fail("fallocate", "EIO")
      yield* Effect.flip(allocator.allocate({ size }))
      assert.strictEqual(yield* allocator.available, 2 * size)
      assert.strictEqual((yield* Effect.flip(allocator.allocate({ size: -1 })))._tag, "InvalidOption")
    }).pipe(Effect.scoped, Effect.provide(DiskAllocator.layer({ budget: 2 * size })), on()))

  it.effect("wants a budget", () =>
    Effect.gen(function*() {
      for (const budget of [0, -1, 0.5, NaN]) {
        assert.strictEqual((yield* Effect.flip(DiskAllocator.make({ budget })))._tag, "InvalidOption")
      }
    }).pipe(on()))
})

describe("layerNoop", () => {
  it.effect("knows the calls given, and no other", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls.Syscalls
      assert.strictEqual(yield* kernel.open("/tmp/x", 0), 7)
      const closed = yield* Effect.flip(kernel.close(7))
      assert.deepStrictEqual([closed.syscall, closed.code, closed.errno], ["close", "ENOSYS", 38])
      assert.strictEqual((yield* Effect.flip(DiskStorage.make({ size })))._tag, "CreateFailed")
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.provideMerge(IoEngine.layerSyscalls, Syscalls.layerNoop({ open: () => Effect.succeed(7) })))
    ))
})
