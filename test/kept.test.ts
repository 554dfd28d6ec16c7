/** Storages that are kept over a restart: what is taken up is what was kept, once, whatever fails, is interrupted or is in the way. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Random from "effect/Random"
import * as TestClock from "effect/TestClock"
import {
  appendFileSync,
  closeSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync
} from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../src/AlignedBuffer.js"
import * as DiskStorage from "../src/DiskStorage.js"
import { isDiskStorageError } from "../src/DiskStorageError.js"
import * as keptFile from "../src/internal/keptFile.js"
import * as linkedFiles from "../src/internal/linkedFiles.js"
import * as Linux from "../src/Linux.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import { SimulatedKernel } from "../src/SimulatedSyscalls.js"
import { errnosBySyscall, Syscalls } from "../src/Syscalls.js"
import { startChild } from "./filesystems/children.js"
import type { Kind } from "./filesystems/mounts.js"
import { command } from "./filesystems/mounts.js"
import {
  assertBytes,
  assertNothingLeft,
  describeReal,
  freshPath,
  Mounted,
  openBelow,
  pattern,
  settledFreeBytes
} from "./filesystems/real.js"

import { layer } from "./support/simulation.js"

const size = 3 * 4096 + 567
const keepAt = "/tmp/kept"
const first = pattern(size, 1)
const second = pattern(size, 2)

const on = (options: SimulatedSyscalls.SimulatedOptions = {}) => Effect.provide(layer(options))

const leaks = Effect.flatMap(SimulatedKernel, (kernel) => kernel.leaks)
const nothingLeft = Effect.map(
  leaks,
  (left) => assert.deepStrictEqual(left, { fds: [], files: [], bytes: 0, mappings: 0 })
)

const warnings = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const logger = Logger.make(({ logLevel, message }) => {
      if (LogLevel.greaterThanEqual(logLevel, LogLevel.Warning)) lines.push(String(message))
    })
    return Effect.map(Effect.provide(effect, Logger.replace(Logger.defaultLogger, logger)), (value) => ({
      value,
      lines
    }))
  })

/** Makes a storage, writes all of it, keeps it and releases it. */
const keepContent = (content: Uint8Array, options: Partial<DiskStorage.DiskStorageOptions> = {}) =>
  Effect.scoped(Effect.gen(function*() {
    const storage = yield* DiskStorage.make({ size: content.byteLength, keepAt, ...options })
    yield* storage.writeBytes(0, content)
    yield* storage.keep
  }))

/** Makes a storage that is not kept again: its content, where it took something up. */
const takeContent = (options: Partial<DiskStorage.DiskStorageOptions> = {}) =>
  Effect.scoped(Effect.gen(function*() {
    const storage = yield* DiskStorage.make({ size, keepAt, ...options })
    const content = yield* storage.readBytes(0, storage.size)
    if (storage.keptAt?.takenUp === true) return content
    assertBytes(content, new Uint8Array(storage.size), "a new storage")
    return undefined
  }))

/** The file at `keepAt` of a simulated kernel, as bytes. */
const withFile = <A, E, R>(use: (fd: number, bytes: number) => Effect.Effect<A, E, R>, path = keepAt) =>
  Effect.gen(function*() {
    const kernel = yield* Syscalls
    return yield* Effect.acquireUseRelease(
      kernel.open(path, kernel.flags.O_RDWR),
      (fd) => Effect.flatMap(kernel.statx(fd), ({ size }) => use(fd, size)),
      (fd) => Effect.orDie(kernel.close(fd))
    )
  })

const profiles = ["ext4", "ext2", "lustre", "btrfs", "tmpfs", "dataJournal"] as const

describe("a storage that is kept", () => {
  for (const profile of profiles) {
    for (const directIo of ["required", "disabled"] as const) {
      it.effect(`on ${profile} is taken up once, with its content: ${directIo}`, () =>
        Effect.gen(function*() {
          yield* keepContent(first, { directIo })
          const { bytes, files, fds } = yield* leaks
          assert.deepStrictEqual([files, fds], [[keepAt], []])
          assert.isAbove(bytes, size)
          assert.deepStrictEqual(yield* takeContent({ directIo }), first)
          yield* nothingLeft
          assert.isUndefined(yield* takeContent({ directIo }))
        }).pipe(on({ profile })))
    }
  }

  it.effect("can be changed and kept again", () =>
    Effect.gen(function*() {
      yield* keepContent(first)
      yield* keepContent(second)
      assert.deepStrictEqual(yield* takeContent({ openStrategy: "open-direct" }), second)
      yield* nothingLeft
    }).pipe(on()))

  it.effect("says what it is, and reaches its size and no more", () =>
    Effect.gen(function*() {
      yield* keepContent(first)
      const storage = yield* DiskStorage.make({ size, keepAt })
      assert.deepStrictEqual(storage.keptAt, { path: keepAt, takenUp: true, mark: new Uint8Array(32) })
      assert.notStrictEqual(storage.path, keepAt)
      assert.strictEqual(storage.size, size)
      assert.deepStrictEqual(storage.allocation, { method: "kept", written: true, overwritesMayRunOutOfSpace: false })
      assert.strictEqual(storage.directIo.verdict, "direct")
      assert.strictEqual((yield* storage.extents).reduce((sum, { length }) => sum + length, 0), 4 * 4096)
      const page = yield* AlignedBuffer.make(4096)
      assert.strictEqual((yield* Effect.flip(storage.read(4 * 4096, page)))._tag, "OutOfBounds")
      assert.strictEqual((yield* Effect.flip(storage.readBytes(size, 1)))._tag, "OutOfBounds")
    }).pipe(Effect.scoped, on()))

  it.effect("knows of its blocks what the filesystem tells, and no more", () =>
    Effect.gen(function*() {
      yield* keepContent(first)
      const { allocation } = yield* DiskStorage.make({ size, keepAt })
      assert.deepStrictEqual(allocation, { method: "kept", written: false, overwritesMayRunOutOfSpace: true })
    }).pipe(Effect.scoped, on({ profile: "tmpfs" })))

  it.effect("has holes where nothing was written to a sparse file", () =>
    Effect.gen(function*() {
      yield* Effect.scoped(Effect.flatMap(DiskStorage.make({ size, keepAt }), (storage) => storage.keep))
      const { allocation, directIo } = yield* DiskStorage.make({ size, keepAt })
      assert.deepStrictEqual(allocation, { method: "kept", written: false, overwritesMayRunOutOfSpace: true })
      assert.include(directIo.reason, "hole")
    }).pipe(Effect.scoped, on({ profile: "ext2" })))

  it.effect("is still out of copy-on-write on btrfs", () =>
    Effect.gen(function*() {
      yield* keepContent(first)
      const calls = (yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)).length
      const { allocation, directIo } = yield* DiskStorage.make({ size, keepAt })
      assert.deepStrictEqual([directIo.verdict, allocation.overwritesMayRunOutOfSpace], ["direct", false])
      const journal = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)
      assert.notInclude(journal.slice(calls).map(({ syscall }) => syscall), "ioctlSetFlags")
    }).pipe(Effect.scoped, on({ profile: "btrfs" })))

  it.effect("is proven without a touch of its content", () =>
    Effect.gen(function*() {
      yield* keepContent(first)
      assert.deepStrictEqual(yield* takeContent({ directIo: "proven" }), first)
    }).pipe(on()))

  it.effect("has a path that does not depend on the working directory", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, keepAt: "tmp/../tmp//kept" })
      assert.deepStrictEqual(storage.keptAt, { path: keepAt, takenUp: false, mark: undefined })
    }).pipe(Effect.scoped, on()))

  it.effect("makes its directory", () =>
    Effect.gen(function*() {
      yield* keepContent(first, { keepAt: "/tmp/a/b/kept" })
      assert.deepStrictEqual(yield* takeContent({ keepAt: "/tmp/a/b/kept", directory: "/tmp/a/b//" }), first)
    }).pipe(on()))
})

describe("the calls", () => {
  const tail = (count: number) =>
    Effect.map(
      Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal),
      (journal) =>
        journal.slice(count).map(({ offset, syscall }) => offset === undefined ? syscall : `${syscall} ${offset}`)
    )
  const made = Effect.map(Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal), (journal) => journal.length)
  const look = ["open", "statx", "close", "open", "statx", "pread 16384", "fstatfs", "close"]
  const lock = ["open", "fcntlSetLock", "statx"]
  /** At / and at /tmp. */
  const directories = ["open", "statx", "close", "open", "statx", "close"]

  it.effect("of keep: the content is on the disk before the label, the label before the name", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, keepAt })
      const before = yield* made
      yield* storage.keep
      const nothing = "open"
      // The path leads to the directory of the file, which has no other link.
      const isThere = ["statx", "statx", "statx"]
      assert.deepStrictEqual(yield* tail(before), [
        ...isThere,
        nothing,
        "fdatasync",
        ...isThere,
        nothing,
        // What it is known by when it is cut.
        "pread 0",
        "fsetxattr",
        // To be locked, were it there.
        nothing,
        "pwrite 16384",
        "fdatasync",
        "rename",
        // The lock, which the next one wants.
        "close",
        "open",
        "fdatasync",
        "close"
      ])
      // What is synced after the name is there is the directory that it is in.
      const entries = (yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)).slice(before)
      const [opened, synced, closed] = entries.slice(entries.findIndex(({ syscall }) => syscall === "rename") + 2)
      assert.deepInclude(opened, { syscall: "open", path: "/tmp/." })
      for (const call of [synced, closed]) assert.strictEqual(call?.fd, opened?.result)
    }).pipe(Effect.scoped, on()))

  it.effect("of taking up: nothing is allocated, and the label is erased, on the disk, at the end", () =>
    Effect.gen(function*() {
      yield* keepContent(first)
      const before = yield* made
      yield* DiskStorage.make({ size, keepAt })
      assert.deepStrictEqual(yield* tail(before), [
        ...directories,
        "open",
        "mkostemp",
        "fstatfs",
        "statx",
        ...lock,
        ...look,
        "open",
        "close",
        // Before it has a name that is swept.
        ...lock,
        // It is still that which has this name.
        "open",
        "statx",
        "close",
        "rename",
        "close",
        "open",
        "statx",
        "statx",
        "pread 16384",
        "fstatfs",
        "close",
        "fstatfs",
        "fcntlGetFlags",
        "fcntlSetFlags",
        "fcntlGetFlags",
        "statx",
        "fiemap 0",
        "pwrite 16384",
        "fdatasync"
      ])
    }).pipe(Effect.scoped, on()))
})

describe("keep", () => {
  it.live("does not label what a write without an answer may still change", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, keepAt })
      assert.strictEqual((yield* Effect.flip(storage.writeBytes(0, first)))._tag, "IoStalled")
      assert.deepInclude(yield* Effect.flip(storage.keep), { _tag: "KeepFailed", reason: "stalled" })
    }).pipe(
      Effect.scoped,
      Effect.zipRight(nothingLeft),
      Effect.provide(
        Layer.provideMerge(
          SimulatedSyscalls.layerEngine({ never: 1, stallTimeout: "50 millis" }),
          SimulatedSyscalls.layer()
        )
      )
    ))

  it.effect("ends the use of a storage, may be called again, and leaves nothing to unlink", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, keepAt })
      let released = 0
      const tag = SimulatedKernel
      yield* storage.register(
        tag,
        Effect.acquireRelease(Effect.flatMap(SimulatedKernel, Effect.succeed), () => Effect.sync(() => void released++))
      )
      yield* storage.keep
      assert.strictEqual(released, 1)
      const calls = (yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)).length
      yield* storage.keep
      const page = yield* AlignedBuffer.make(4096)
      const refused: ReadonlyArray<Effect.Effect<unknown, { readonly _tag: string }>> = [
        storage.write(0, page),
        storage.read(0, page),
        storage.writeBytes(0, new Uint8Array(1)),
        storage.readBytes(0, 1),
        storage.sync,
        storage.unlink,
        storage.extents,
        storage.withFd(() => Effect.void),
        storage.isRegistered(tag)
      ]
      for (const operation of refused) assert.strictEqual((yield* Effect.flip(operation))._tag, "StorageClosed")
      assert.isFalse(yield* storage.unlinked)
      assert.strictEqual((yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)).length, calls)
      yield* storage.close
      assert.strictEqual((yield* Effect.flip(storage.keep))._tag, "StorageClosed")
      const journal = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)
      // The file, and its directory.
      assert.deepStrictEqual(journal.slice(calls).map(({ syscall }) => syscall), ["close", "close"])
    }).pipe(Effect.scoped, on()))

  it.effect("waits for who has the descriptor", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, keepAt })
      const lent = yield* Effect.fork(storage.withFd(() => Effect.sleep("1 hour")))
      yield* Effect.yieldNow()
      const keeping = yield* Effect.fork(storage.keep)
      yield* Effect.yieldNow()
      assert.deepStrictEqual((yield* leaks).files, [storage.path])
      yield* Fiber.interrupt(lent)
      yield* Fiber.join(keeping)
      assert.deepStrictEqual((yield* leaks).files, [keepAt])
    }).pipe(Effect.scoped, on()))

  it.effect("without keepAt says so, and the storage goes on", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size })
      const failure = yield* Effect.flip(storage.keep)
      assert.deepInclude(failure, { _tag: "KeepFailed", reason: "no keepAt" })
      assert.isUndefined(storage.keptAt)
      yield* storage.writeBytes(0, first)
    }).pipe(Effect.scoped, on()))

  it.effect("of an unlinked storage says so, and the storage goes on", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, keepAt })
      yield* storage.unlink
      assert.deepInclude(yield* Effect.flip(storage.keep), { _tag: "KeepFailed", reason: "unlinked" })
      yield* storage.writeBytes(0, first)
    }).pipe(Effect.scoped, on()))

  it.effect("can be tried again when a step has failed", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      yield* Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size, keepAt })
        yield* storage.writeBytes(0, first)
        yield* control.inject({ syscall: "rename", nth: 1, outcome: { _tag: "Fail", code: "EDQUOT" } })
        const failure = yield* Effect.flip(storage.keep)
        assert.deepInclude(failure, { _tag: "KeepFailed", reason: "rename" })
        assert.include(failure.message, "Free space")
        const bytes = new Uint8Array(4096)
        yield* withFile(
          (fd, length) => Effect.flatMap(Syscalls, (kernel) => kernel.pread(fd, bytes, length - 4096)),
          storage.path
        )
        assert.strictEqual(keptFile.decode(bytes), "it was taken up and not kept again")
        yield* storage.keep
      }))
      assert.deepStrictEqual(yield* takeContent(), first)
    }).pipe(on()))

  it.effect("is refused for good after a sync that failed: a second one would report nothing of what is lost", () =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      yield* Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size, keepAt })
        yield* storage.writeBytes(0, first)
        yield* control.inject({ syscall: "fdatasync", nth: 1, outcome: { _tag: "Fail", code: "EIO" } })
        for (const _ of [1, 2]) {
          const failure = yield* Effect.flip(storage.keep)
          assert.deepInclude(failure, { _tag: "KeepFailed", reason: "sync" })
          assert.include(failure.message, "cannot be kept")
          assert.notInclude(failure.message, "keep again")
        }
      }))
      assert.isUndefined(yield* takeContent())
      yield* nothingLeft
    }).pipe(on()))

  it.effect("has a mark, which the next one finds; plain it has none but zeros", () =>
    Effect.gen(function*() {
      const mark = pattern(40, 3)
      const none = new Uint8Array(32)
      const keptAs = (keep: (storage: DiskStorage.DiskStorage) => ReturnType<DiskStorage.DiskStorage["keepAs"]>) =>
        Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size, keepAt })
          yield* keep(storage)
          return storage.keptAt?.mark
        }))
      assert.isUndefined(yield* keptAs((storage) => storage.keepAs(mark)))
      assert.deepStrictEqual(yield* keptAs((storage) => storage.keep), mark.slice(0, 32))
      assert.deepStrictEqual(yield* keptAs((storage) => storage.keepAs(mark.subarray(8))), none)
      assert.deepStrictEqual(yield* keptAs((storage) => storage.keepAs(mark.subarray(1))), mark.slice(8, 40))
      assert.deepStrictEqual(yield* takeContent(), new Uint8Array(size))
    }).pipe(on()))

  it.effect("replaces what another storage has kept there meanwhile", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, keepAt })
      yield* storage.writeBytes(0, second)
      yield* keepContent(first)
      yield* storage.keep
      yield* storage.close
      assert.deepStrictEqual(yield* takeContent(), second)
      yield* nothingLeft
    }).pipe(Effect.scoped, on()))
})

describe("options", () => {
  const refused: ReadonlyArray<Partial<DiskStorage.DiskStorageOptions>> = [
    { keepAt: "" },
    { keepAt: "/tmp/" },
    { keepAt: "/tmp/.." },
    { keepAt: "." },
    { keepAt: "/tmp/a\0b" },
    { keepAt: `/tmp/${"é".repeat(128)}` },
    { keepAt, directory: "/var/tmp" },
    { keepAt, directory: "" },
    { keepAt, earlyUnlink: true }
  ]
  it.effect.each(refused)("%j are refused", (options) =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(DiskStorage.make({ size, ...options }))
      assert.deepInclude(failure, { _tag: "InvalidOption", option: "keepAt" })
      assert.lengthOf(yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal), 0)
    }).pipe(Effect.scoped, on()))
})

describe("the label", () => {
  const label: keptFile.Label = {
    size,
    length: keptFile.lengthOf(size, 4096),
    unit: 4096,
    id: Uint8Array.from({ length: 16 }, (_, index) => index),
    mark: Uint8Array.from({ length: 32 }, (_, index) => 255 - index)
  }
  const page = keptFile.encode(label)

  it("is what it was", () => {
    assert.deepStrictEqual(keptFile.decode(page), label)
    assert.isUndefined(keptFile.decode(new Uint8Array(4096)))
    assert.isUndefined(keptFile.decode(new Uint8Array(0)))
    assert.isUndefined(keptFile.decode(page.subarray(1)))
  })

  it("is none when any byte of it is another, or it is torn anywhere", () => {
    for (let index = 0; index < page.byteLength; index++) {
      const changed = Uint8Array.from(page)
      changed[index] = (changed[index] ?? 0) ^ (1 << (index % 8))
      const read = keptFile.decode(changed)
      if (index < 16) assert.isUndefined(read, `byte ${index}`)
      else assert.isString(read, `byte ${index}`)
      // Of an erasure, either part may have come.
      if (index < 16 || index > 95) continue
      for (const torn of [[page, keptFile.erased], [keptFile.erased, page]] as const) {
        const bytes = Uint8Array.from([...torn[0].subarray(0, index), ...torn[1].subarray(index)])
        if (!Buffer.from(page).equals(bytes)) assert.isString(keptFile.decode(bytes), `torn at ${index}`)
      }
    }
  })

  const changeLabel = (change: (page: Uint8Array) => Uint8Array) =>
    withFile((fd, length) =>
      Effect.gen(function*() {
        const kernel = yield* Syscalls
        const bytes = new Uint8Array(4096)
        yield* kernel.pread(fd, bytes, length - 4096)
        yield* kernel.pwrite(fd, change(bytes), length - 4096)
      })
    )

  it.effect("torn makes a new storage, says so, and the old file is gone at once", () =>
    Effect.forEach([16, 20, 24, 32, 40, 48, 63, 64, 95, 96, 2000, 4095], (index) =>
      Effect.gen(function*() {
        yield* keepContent(first)
        yield* changeLabel((bytes) => {
          bytes[index] = (bytes[index] ?? 0) ^ 1
          return bytes
        })
        const { lines, value } = yield* warnings(Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size, keepAt })
          assert.deepStrictEqual((yield* leaks).files, [storage.path])
          return yield* storage.readBytes(0, size)
        })))
        assert.match(lines.join(), /^what was kept at \/tmp\/kept is not used, and makes way: its label is /)
        assert.deepStrictEqual(value, new Uint8Array(size))
        yield* nothingLeft
      }), { discard: true }).pipe(on()))

  it.effect("of another file does not fit", () =>
    Effect.gen(function*() {
      const unfit: ReadonlyArray<readonly [Partial<keptFile.Label>, RegExp]> = [
        [{ size: size + 1 }, /holds 12856 bytes, and 12855/],
        [{ length: label.length + 4096 }, /20480 bytes long/],
        [{ unit: 8192 }, /20480 bytes long/],
        [{ unit: 0 }, /20480 bytes long/]
      ]
      for (const [changed, reason] of unfit) {
        yield* keepContent(first)
        yield* changeLabel(() => keptFile.encode({ ...label, ...changed }))
        const { lines } = yield* warnings(takeContent())
        assert.match(lines.join(), reason)
        yield* nothingLeft
      }
    }).pipe(on()))

  it.effect("of another size makes a new storage, where the disk has no room for both", () =>
    Effect.gen(function*() {
      yield* keepContent(first)
      const { lines } = yield* warnings(keepContent(pattern(2 * size, 3)))
      assert.match(lines.join(), /holds 12855 bytes, and 25710 are asked for/)
      assert.isUndefined(yield* takeContent())
    }).pipe(on({ capacity: 9 * 4096 })))

  it.effect("erased is known: after a power cut the name may be back, the content is not", () =>
    Effect.gen(function*() {
      yield* keepContent(first)
      yield* Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size, keepAt })
        yield* storage.writeBytes(0, second)
        const kernel = yield* Syscalls
        yield* kernel.rename(storage.path, keepAt)
      }))
      const { lines, value } = yield* warnings(takeContent())
      assert.match(lines.join(), /taken up and not kept again/)
      assert.isUndefined(value)
      yield* nothingLeft
    }).pipe(on()))
})

describe("what no storage has kept", () => {
  const content = pattern(20_480, 9)

  it.effect("is not touched, is warned of, and stops keep alone", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls
      const { fd, path } = yield* kernel.mkostemp("/tmp/other", 0)
      yield* kernel.pwrite(fd, content, 0)
      yield* kernel.close(fd)
      yield* kernel.rename(path, keepAt)
      const { lines } = yield* warnings(Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size, keepAt })
        assert.deepStrictEqual(storage.keptAt, { path: keepAt, takenUp: false, mark: undefined })
        yield* storage.writeBytes(0, first)
        assert.deepInclude(yield* Effect.flip(storage.keep), { _tag: "KeepFailed", reason: "in the way", keepAt })
        assert.deepStrictEqual(yield* storage.readBytes(0, size), first)
        const bytes = new Uint8Array(content.byteLength)
        yield* withFile((fd) => kernel.pread(fd, bytes, 0))
        assert.deepStrictEqual(bytes, content)
        yield* kernel.rename(keepAt, "/tmp/moved")
        yield* storage.keep
      })))
      assert.match(
        lines.join(),
        /not taken up, and this storage is new: it is a file that no storage has kept, is not touched/
      )
      assert.deepStrictEqual(yield* takeContent(), first)
      assert.deepStrictEqual((yield* leaks).files, ["/tmp/moved"])
    }).pipe(on()))

  it.effect("and comes while a storage is being kept is not touched either", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls
      const storage = yield* DiskStorage.make({ size, keepAt }).pipe(
        Effect.provideService(Syscalls, {
          ...kernel,
          fdatasync: (fd) => Effect.zipRight(Effect.orDie(kernel.mkdir(keepAt, 0o700)), kernel.fdatasync(fd))
        })
      )
      assert.deepInclude(yield* Effect.flip(storage.keep), { _tag: "KeepFailed", reason: "in the way" })
      yield* storage.close
      assert.strictEqual((yield* Effect.flip(kernel.mkdir(keepAt, 0o700))).code, "EEXIST")
      yield* nothingLeft
    }).pipe(Effect.scoped, on()))

  it.effect("and comes between a look and the taking up is put back", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls
      yield* keepContent(first)
      const { fd, path } = yield* kernel.mkostemp("/tmp/other", 0)
      yield* kernel.pwrite(fd, content, 0)
      let renames = 0
      const failure = yield* DiskStorage.make({ size, keepAt }).pipe(
        Effect.provideService(Syscalls, {
          ...kernel,
          rename: (from, to) =>
            Effect.zipRight(
              renames++ === 0 ? Effect.orDie(kernel.rename(path, keepAt)) : Effect.void,
              kernel.rename(from, to)
            )
        }),
        Effect.flip
      )
      assert.deepInclude(failure, { _tag: "FileReplaced", path: keepAt })
      const left = yield* leaks
      assert.deepStrictEqual([left.files, left.fds], [[keepAt], [fd]])
      const bytes = new Uint8Array(content.byteLength)
      yield* withFile((fd) => kernel.pread(fd, bytes, 0))
      assert.deepStrictEqual(bytes, content)
    }).pipe(Effect.scoped, on()))
})

describe("what cannot be looked at", () => {
  it.effect("is not touched and warned of, and the storage is a new one", () =>
    Effect.gen(function*() {
      const lock = ["open", "fcntlSetLock", "statx"] as const
      const directories = ["open", "statx", "close", "open", "statx", "close"]
      const look = [
        "open",
        "statx",
        "close",
        "open",
        "statx",
        "pread",
        "fstatfs",
        "close",
        "open",
        "close",
        ...lock
      ] as const
      for (const [call, syscall] of look.entries()) {
        yield* Effect.gen(function*() {
          yield* keepContent(first)
          const control = yield* SimulatedKernel
          const before = (yield* control.journal).length
          // After the directory was looked at, and the file of the new one made and locked.
          const made = before + [...directories, "open", "mkostemp", "fstatfs", "statx", ...lock].length
          yield* control.inject({ nth: made + 1 + call, outcome: { _tag: "Fail", code: "EIO" } })
          const { lines, value } = yield* warnings(Effect.scoped(Effect.gen(function*() {
            const storage = yield* DiskStorage.make({ size, keepAt })
            const closed = syscall === "close"
            assert.strictEqual(storage.keptAt?.takenUp, closed, `${call}: ${syscall}`)
            if (closed) return yield* storage.keep
            yield* storage.writeBytes(0, second)
          })))
          const [failed] = (yield* control.journal).slice(made + call)
          assert.deepInclude(failed, { syscall, result: "EIO" })
          assert.isUndefined(value)
          if (syscall !== "close") {
            assert.lengthOf(lines, 1, `${call}: ${syscall}`)
            assert.match(lines.join(), /not taken up, and this storage is new: .*EIO/)
          }
          assert.deepStrictEqual(yield* takeContent(), first, `${call}: ${syscall}`)
          yield* nothingLeft
        }).pipe(on())
      }
    }))
})

describe("a file that is being taken up", () => {
  it.effect("gets its name back when that hangs longer than the release waits", () =>
    Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      yield* keepContent(first)
      const renames = (yield* kernel.journal).filter(({ syscall }) => syscall === "rename").length
      yield* kernel.inject({ syscall: "rename", nth: renames + 1, outcome: { _tag: "Late", duration: "1 hour" } })
      const options = { size, keepAt, releaseTimeout: "10 seconds" } as const
      const making = yield* Effect.fork(Effect.scoped(DiskStorage.make(options)))
      yield* TestClock.adjust("1 second")
      yield* Effect.fork(Fiber.interrupt(making))
      yield* TestClock.adjust("1 minute")
      assert.isNotNull(making.unsafePoll(), "the release has ended")
      yield* TestClock.adjust("2 hours")
      assert.deepInclude(yield* leaks, { files: [keepAt], fds: [] })
      assert.deepStrictEqual(yield* takeContent(), first)
      yield* nothingLeft
    }).pipe(on()))
})

describe("two storages", () => {
  it.effect("that want what was kept: one gets it", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls
      for (let round = 0; round < 30; round++) {
        yield* keepContent(first)
        const late =
          <Args extends ReadonlyArray<unknown>, A, E>(call: (...args: Args) => Effect.Effect<A, E>) =>
          (...args: Args) =>
            Effect.zipRight(
              Effect.flatMap(Random.nextIntBetween(0, 4), (turns) => Effect.replicateEffect(Effect.yieldNow(), turns)),
              call(...args)
            )
        const slow: Syscalls = {
          ...kernel,
          open: late(kernel.open),
          statx: late(kernel.statx),
          pread: late(kernel.pread),
          rename: late(kernel.rename),
          close: late(kernel.close)
        }
        const taken = yield* Effect.all([takeContent(), takeContent()], { concurrency: 2 }).pipe(
          Effect.provideService(Syscalls, slow)
        )
        assert.deepStrictEqual(taken.filter((content) => content !== undefined), [first], `round ${round}`)
        yield* nothingLeft
      }
    }).pipe(Effect.withRandom(Random.make("two storages")), on()))
})

describe("whatever fails and whenever it is interrupted", () => {
  type Schedule =
    | { readonly nth: number; readonly outcome: SimulatedSyscalls.Fault["outcome"] }
    | { readonly call: number; readonly when: "before" | "during" | "after" }

  interface Run {
    readonly acquired: boolean
    readonly takenUp: boolean
    readonly kept: boolean
    readonly exit: Exit.Exit<void, unknown>
    readonly journal: ReadonlyArray<SimulatedSyscalls.JournalEntry>
    /** The number of calls before. */
    readonly base: number
  }

  /** Takes up what was kept, where something was, changes it and keeps it; then looks what there is. */
  const run = (
    profile: SimulatedSyscalls.Profile,
    options: Partial<DiskStorage.DiskStorageOptions>,
    before: "something was kept" | "nothing was kept",
    schedule?: (base: number) => Schedule,
    atAWrite = false
  ) =>
    Effect.gen(function*() {
      const control = yield* SimulatedKernel
      if (before === "something was kept") yield* keepContent(first, options)
      const base = (yield* control.journal).length
      const seen = { acquired: false, takenUp: false, kept: false }
      const program = Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size, keepAt, ...options })
        seen.acquired = true
        seen.takenUp = storage.keptAt?.takenUp === true
        yield* storage.writeBytes(0, second)
        yield* Effect.tap(storage.keep, () => {
          seen.kept = true
        })
      }))
      const due = schedule?.(base)
      if (due !== undefined && "nth" in due) yield* control.inject(due)
      const fiber = yield* Effect.fork(Effect.provide(program, Logger.remove(Logger.defaultLogger)))
      if (due !== undefined && "call" in due) yield* control.interrupt(fiber, due)
      const exit = yield* Fiber.await(fiber)
      const journal = yield* control.journal
      const result: Run = { ...seen, exit, journal, base }
      const what = `${due === undefined ? "undisturbed" : JSON.stringify(due)} ${JSON.stringify(seen)}`

      const left = yield* control.leaks
      assert.deepStrictEqual(left.fds, [], what)
      // A name stays only where its unlink has failed; ENOENT means that it is gone.
      const unlinkFailed = journal.slice(base).some(({ result, syscall }) =>
        syscall === "unlink" && typeof result === "string" && result !== "ENOENT"
      )
      const others = left.files.filter((path) => path !== keepAt)
      assert.strictEqual(others.length, unlinkFailed && others.length === 1 ? 1 : 0, `${what}: ${others.join()}`)
      if (Exit.isFailure(exit) && !Cause.isInterruptedOnly(exit.cause)) {
        assert.isTrue([...Cause.failures(exit.cause)].every(isDiskStorageError), what)
        assert.lengthOf([...Cause.defects(exit.cause)], 0, `${what}: ${Cause.pretty(exit.cause)}`)
      }

      // The next storage: the old content only where nobody has changed it, the new one only where it was kept.
      const there = left.files.includes(keepAt)
      const content = yield* Effect.provide(takeContent(options), Logger.remove(Logger.defaultLogger))
      const renamed = journal.slice(base).some(({ result, syscall, to }) =>
        syscall === "rename" && to === keepAt && result === 0
      )
      if (seen.kept) assert.deepStrictEqual(content, second, what)
      else if (content !== undefined) {
        const old = Buffer.compare(content, first) === 0
        assert.isTrue(old || Buffer.compare(content, second) === 0, `${what}: mixed`)
        if (old) assert.isTrue(!seen.acquired || !seen.takenUp, `${what}: what was changed came back`)
        else assert.isTrue(renamed, `${what}: kept without a rename`)
      }
      // Its erasure had not begun: it has its name again, or never lost it.
      const unwritten = !journal.slice(base).some(({ syscall }) => syscall === "pwrite") && !atAWrite
      if (before === "something was kept" && !seen.acquired && unwritten) assert.deepStrictEqual(content, first, what)
      if (there) assert.isDefined(content, `${what}: something is there that is not taken up`)
      const { bytes, fds, files, mappings } = yield* control.leaks
      assert.deepStrictEqual([files, fds], [others, []], what)
      // A mapping stays where it could not be undone, and nowhere else.
      const undone = journal.every(({ result, syscall }) => syscall !== "munmap" || result === 0)
      assert.strictEqual(mappings, undone ? 0 : 1, what)
      if (others.length === 0) assert.strictEqual(bytes, 0, what)
      return result
    }).pipe(on({ profile }))

  const breathe = Effect.async<void>((resume) => {
    setImmediate(() => resume(Effect.void))
  })

  const cases: ReadonlyArray<
    readonly [SimulatedSyscalls.Profile, Partial<DiskStorage.DiskStorageOptions>, number]
  > = [
    ["ext4", {}, 4],
    ["ext4", { openStrategy: "open-direct", directIo: "proven" }, 16],
    ["btrfs", {}, 16],
    ["lustre", { fallback: "zero-fill" }, 16]
  ]
  for (const [profile, options, stride] of cases) {
    for (const before of ["something was kept", "nothing was kept"] as const) {
      it.effect(`on ${profile} ${JSON.stringify(options)}, ${before}`, () =>
        Effect.gen(function*() {
          const undisturbed = yield* run(profile, options, before)
          assert.isTrue(undisturbed.kept)
          assert.strictEqual(undisturbed.takenUp, before === "something was kept")
          const calls = undisturbed.journal.slice(undisturbed.base)
          let turn = 0
          for (const [index, { syscall }] of calls.entries()) {
            for (const code of errnosBySyscall[syscall]) {
              if (turn++ % stride !== 0) continue
              yield* run(profile, options, before, (base) => ({
                nth: base + index + 1,
                outcome: { _tag: "Fail", code }
              }))
            }
            // What the first case says of the moments before and after a call holds for all.
            for (const when of stride < 5 ? ["before", "during", "after"] as const : ["during"] as const) {
              const interruption = (base: number) => ({ call: base + index + 1, when })
              yield* run(profile, options, before, interruption, syscall === "pwrite")
            }
            if (syscall === "pread" || syscall === "pwrite") {
              for (const bytes of [0, 1, 4000]) {
                yield* run(profile, options, before, (base) => ({
                  nth: base + index + 1,
                  outcome: { _tag: "Short", bytes }
                }))
              }
            }
            yield* breathe
          }
        }))
    }
  }
})

const real: ReadonlyArray<readonly [Kind, DiskStorage.DiskStorageOptions["directIo"]]> = [
  ["ext4 on a direct loop", "proven"],
  ["ext2 on 4096-byte sectors", "required"],
  ["xfs on a direct loop", "proven"],
  ["btrfs on a direct loop", "proven"],
  ["tmpfs", "preferred"],
  ["overlay", "required"]
]

for (const [kind, directIo] of real) {
  describeReal(kind, { name: "kept" }, (it) => {
    it.scoped("is taken up as it was, by one of two, once, and leaves nothing", () =>
      Effect.gen(function*() {
        const mount = yield* Mounted
        const directory = yield* freshPath
        const keepAt = join(directory, "kept")
        const size = 1_000_000
        const content = pattern(size, 5)
        const before = yield* settledFreeBytes(mount.directory)
        yield* keepContent(content, { keepAt, directIo })
        assert.deepStrictEqual(readdirSync(directory), ["kept"])
        assert.strictEqual(statSync(keepAt).size, keptFile.lengthOf(size, 4096))
        assert.deepStrictEqual(openBelow(directory), [])
        for (let round = 0; round < 5; round++) {
          yield* Effect.scoped(Effect.gen(function*() {
            const made = yield* Effect.all(
              [DiskStorage.make({ size, keepAt, directIo }), DiskStorage.make({ size, keepAt, directIo })],
              { concurrency: 2 }
            )
            const [taken, ...others] = made.filter(({ keptAt }) => keptAt?.takenUp === true)
            if (taken === undefined || others.length > 0) return assert.fail(`round ${round}: not exactly one`)
            assert.isFalse(existsSync(keepAt))
            assertBytes(yield* taken.readBytes(0, size), content, `round ${round}`)
            if (directIo === "proven") assert.strictEqual(taken.directIo.verdict, "direct")
            content.set(pattern(5000, round), round * 5000)
            yield* taken.writeBytes(round * 5000, pattern(5000, round))
            if (round < 4) yield* taken.keep
            // What would run at process.exit removes what is not kept, and that alone.
            linkedFiles.unlinkAll()
            assert.deepStrictEqual(readdirSync(directory), round < 4 ? ["kept"] : [])
          }))
        }
        yield* assertNothingLeft(directory, before)
      }))
  })
}

describeReal("ext4 on a direct loop", { name: "in the way of what is kept" }, (it) => {
  const size = 100_000
  const obstacles: ReadonlyArray<readonly [string, (path: string) => Effect.Effect<unknown>]> = [
    ["an empty file", (path) => Effect.sync(() => writeFileSync(path, ""))],
    ["a file", (path) => Effect.sync(() => writeFileSync(path, pattern(keptFile.lengthOf(size, 4096), 7)))],
    ["a directory", (path) => Effect.sync(() => mkdirSync(path))],
    ["a symbolic link to what was kept", (path) =>
      Effect.zipRight(
        keepContent(pattern(size, 8), { keepAt: `${path}-real` }).pipe(Effect.provide(Linux.layer), Effect.orDie),
        Effect.sync(() => symlinkSync(`${path}-real`, path))
      )],
    ["a dangling symbolic link", (path) => Effect.sync(() => symlinkSync("/nowhere/at/all", path))],
    ["a FIFO", (path) => command("mkfifo", path)],
    ["a device", (path) => command("mknod", path, "c", "1", "5")]
  ]
  for (const [what, put] of obstacles) {
    it.scoped(`${what} stays as it is`, () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        mkdirSync(directory)
        const keepAt = join(directory, "kept")
        yield* put(keepAt)
        const { ctimeMs, ino, mode } = lstatSync(keepAt)
        const names = readdirSync(directory)
        const { lines } = yield* warnings(Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size, keepAt })
          assert.strictEqual(storage.keptAt?.takenUp, false)
          assert.deepInclude(yield* Effect.flip(storage.keep), { _tag: "KeepFailed", reason: "in the way" })
          yield* storage.writeBytes(0, new Uint8Array(10))
        })))
        assert.lengthOf(lines, 1)
        const { ctimeMs: ctime, ino: inode, mode: kind } = lstatSync(keepAt)
        assert.deepStrictEqual([ctime, inode, kind], [ctimeMs, ino, mode])
        assert.deepStrictEqual(readdirSync(directory), names)
      }))
  }

  it.scoped("what was kept and has another name since is not changed by it", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const keepAt = join(directory, "kept")
      yield* keepContent(pattern(size, 3), { keepAt })
      linkSync(keepAt, join(directory, "other"))
      const bytes = readFileSync(keepAt)
      const { lines } = yield* warnings(keepContent(pattern(size, 4), { keepAt }))
      assert.match(lines.join(), /another name/)
      assertBytes(readFileSync(join(directory, "other")), bytes, "the other name")
      assertBytes(readFileSync(keepAt).subarray(0, size), pattern(size, 4), "what is kept now")
    }))

  /** What may have become of a kept file, and what the log says of it then. */
  const misfits: ReadonlyArray<readonly [string, (path: string) => void, RegExp]> = [
    ["that was cut by a byte", (path) => truncateSync(path, statSync(path).size - 1), /long, and was kept with/],
    ["that was cut by its label", (path) => truncateSync(path, statSync(path).size - 4096), /long, and was kept with/],
    ["that was cut to less than a page", (path) => truncateSync(path, 1000), /it is 1000 bytes long, and was kept/],
    ["that was cut to some bytes", (path) => truncateSync(path, 16), /it is 16 bytes long, and was kept/],
    ["that is empty", (path) => writeFileSync(path, ""), /it is 0 bytes long, and was kept/],
    ["that was cut and has a hole now", (path) => {
      const { size } = statSync(path)
      truncateSync(path, 50_000)
      truncateSync(path, size)
    }, /its label is damaged/],
    ["that grew by a byte", (path) => appendFileSync(path, "x"), /long, and was kept with/],
    ["that grew by pages", (path) => appendFileSync(path, new Uint8Array(3 * 4096)), /long, and was kept with/],
    ["that grew by megabytes", (path) => truncateSync(path, 40_000_001), /it is 40000001 bytes long, and was kept/],
    ["whose label has lost what it begins with", (path) => {
      const file = openSync(path, "r+")
      writeSync(file, new Uint8Array(16), 0, 16, statSync(path).size - 4096)
      closeSync(file)
    }, /its label is damaged/]
  ]
  for (const [what, change, reason] of misfits) {
    it.scoped(`a kept file ${what} is replaced, and what is kept there next is taken up`, () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const keepAt = join(directory, "kept")
        yield* keepContent(pattern(size, 3), { keepAt })
        change(keepAt)
        const { lines, value } = yield* warnings(Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size, keepAt })
          assert.isFalse(existsSync(keepAt))
          assert.strictEqual(storage.keptAt?.takenUp, false)
          yield* storage.writeBytes(0, pattern(size, 4))
          yield* storage.keep
          return true
        })))
        assert.isTrue(value)
        assert.lengthOf(lines, 1)
        assert.match(lines.join(), /^what was kept at .* is not used, and makes way: /)
        assert.match(lines.join(), reason)
        assertBytes((yield* takeContent({ size, keepAt })) ?? new Uint8Array(0), pattern(size, 4), "what is kept next")
      }))

    it.scoped(`a kept file ${what} while another storage lives is replaced by its keep`, () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const keepAt = join(directory, "kept")
        yield* Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size, keepAt })
          yield* storage.writeBytes(0, pattern(size, 4))
          yield* keepContent(pattern(size, 3), { keepAt })
          change(keepAt)
          yield* storage.keep
        }))
        assertBytes((yield* takeContent({ size, keepAt })) ?? new Uint8Array(0), pattern(size, 4), "what is kept next")
      }))
  }

  it.scoped("a kept file that grew is known without its attribute, as a copy or an older version has none", () =>
    Effect.gen(function*() {
      for (const grow of [1, 4096, 500_000, 5_000_000]) {
        const directory = yield* freshPath
        const keepAt = join(directory, "kept")
        yield* keepContent(pattern(size, 3), { keepAt })
        const bytes = readFileSync(keepAt)
        rmSync(keepAt)
        writeFileSync(keepAt, bytes, { mode: 0o600 })
        assertBytes((yield* takeContent({ size, keepAt })) ?? new Uint8Array(0), pattern(size, 3), "the copy")
        writeFileSync(keepAt, bytes, { mode: 0o600 })
        truncateSync(keepAt, bytes.byteLength + grow)
        const { lines } = yield* warnings(keepContent(pattern(size, 4), { keepAt }))
        assert.match(lines.join(), /is not used, and makes way: it is \d+ bytes long, and was kept with/, `${grow}`)
        assertBytes((yield* takeContent({ size, keepAt })) ?? new Uint8Array(0), pattern(size, 4), `${grow}`)
      }
    }))

  /** Other content at the path: `put` is given the bytes of a file that was kept there, whose inode it may write to. */
  const foreign: ReadonlyArray<readonly [string, (path: string, kept: Uint8Array) => void]> = [
    ["another content in the inode of a kept file", (path) => writeFileSync(path, pattern(30_000, 9))],
    ["a short content in the inode of a kept file", (path) => writeFileSync(path, "notes")],
    ["a kept file behind other content", (path, kept) => {
      rmSync(path)
      writeFileSync(path, Buffer.concat([pattern(4096, 9), kept, pattern(4096, 10)]))
    }],
    ["a label behind other content, elsewhere than it says", (path, kept) => {
      rmSync(path)
      writeFileSync(path, Buffer.concat([pattern(8192, 9), kept.subarray(-4096), pattern(100, 10)]))
    }]
  ]
  for (const [what, put] of foreign) {
    it.scoped(`${what} is not touched`, () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const keepAt = join(directory, "kept")
        yield* keepContent(pattern(size, 3), { keepAt })
        put(keepAt, readFileSync(keepAt))
        const bytes = readFileSync(keepAt)
        const { lines } = yield* warnings(Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size, keepAt })
          assert.deepInclude(yield* Effect.flip(storage.keep), { _tag: "KeepFailed", reason: "in the way" })
        })))
        assert.match(lines.join(), /a file that no storage has kept, is not touched/)
        assertBytes(readFileSync(keepAt), bytes, what)
      }))
  }

  it.scoped("a torn label makes a new storage", () =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const keepAt = join(directory, "kept")
      yield* keepContent(pattern(size, 3), { keepAt })
      const file = openSync(keepAt, "r+")
      const at = statSync(keepAt).size - 4096 + 70
      const byte = new Uint8Array(1)
      readSync(file, byte, 0, 1, at)
      writeSync(file, Uint8Array.of((byte[0] ?? 0) ^ 0x55), 0, 1, at)
      closeSync(file)
      const { lines, value } = yield* warnings(takeContent({ size, keepAt }))
      assert.match(lines.join(), /torn/)
      assert.isUndefined(value)
      assert.deepStrictEqual(readdirSync(directory), [])
    }))

  /** What there is to take up after a process has done `steps` and was killed. */
  const afterAKill = (kept: boolean, ...steps: ReadonlyArray<"acquire" | "write" | "keep">) =>
    Effect.gen(function*() {
      const directory = yield* freshPath
      const keepAt = join(directory, "kept")
      if (kept) yield* keepContent(pattern(size, 3), { keepAt })
      yield* Effect.scoped(Effect.gen(function*() {
        const child = yield* startChild({ size, directory, keepAt })
        for (const step of steps) assert.strictEqual((yield* child.step(step))._tag, "Done", step)
      }))
      const names = readdirSync(directory)
      return { names, content: yield* takeContent({ size, keepAt }) }
    })

  it.scoped("a process that was killed leaves what it has kept, and nothing else to take up", () =>
    Effect.gen(function*() {
      const [takenUp, kept] = yield* Effect.all([
        afterAKill(true, "acquire", "write"),
        afterAKill(false, "acquire", "write", "keep")
      ], { concurrency: 2 })
      assert.lengthOf(takenUp.names, 1)
      assert.match(takenUp.names[0] ?? "", /-eds-/)
      assert.isUndefined(takenUp.content)
      assert.deepStrictEqual(kept.names, ["kept"])
      assertBytes(kept.content?.subarray(0, 8192) ?? new Uint8Array(0), new Uint8Array(8192).fill(7), "what was kept")
    }))
})
