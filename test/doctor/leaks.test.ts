/** The doctor, and storages that want direct I/O proven, on a kernel that fails or is interrupted at every call. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as DirectIo from "../../src/DirectIo.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import { isDiskStorageError } from "../../src/DiskStorageError.js"
import type { Fault, JournalEntry, Leaks, Profile } from "../../src/SimulatedSyscalls.js"
import { SimulatedKernel } from "../../src/SimulatedSyscalls.js"
import type { ErrnoCode, SyscallName } from "../../src/Syscalls.js"
import { errnos, errnosBySyscall, FALLOC_FL_WRITE_ZEROES, SyscallError } from "../../src/Syscalls.js"
import * as disks from "./fixtures/blockDevices.js"
import * as fixtures from "./fixtures/filesystems.js"
import type { Change, Machine } from "./machine.js"
import { layer } from "./machine.js"

type Program<A, E> = Effect.Effect<A, E, Layered>
type Layered = Effect.Effect.Context<ReturnType<typeof DirectIo.inspect>> | SimulatedKernel

interface Run<A, E> {
  readonly exit: Exit.Exit<A, E>
  readonly journal: ReadonlyArray<JournalEntry>
  readonly leaks: Leaks
}

interface Schedule {
  readonly fault?: Fault
  readonly interruption?: { readonly call: number; readonly when: "before" | "during" | "after" }
}

const run = <A, E>(
  machine: Machine,
  program: Program<A, E>,
  { fault, interruption }: Schedule = {}
): Effect.Effect<Run<A, E>> =>
  Effect.gen(function*() {
    const kernel = yield* SimulatedKernel
    if (fault !== undefined) yield* kernel.inject(fault)
    const fiber = yield* Effect.fork(program)
    if (interruption !== undefined) yield* kernel.interrupt(fiber, interruption)
    const exit = yield* Fiber.await(fiber)
    return { exit, journal: yield* kernel.journal, leaks: yield* kernel.leaks }
  }).pipe(Effect.provide(layer(machine)))

const failing = (syscall: SyscallName, code: ErrnoCode) =>
  Effect.suspend(() => Effect.fail(new SyscallError({ syscall, errno: errnos[code], code })))

const none: Leaks = { fds: [], files: [], bytes: 0, mappings: 0 }

/** What may be left when the very call fails that would have removed it: a name with its bytes, or a mapping. */
const leftBy = (syscall: SyscallName, code: ErrnoCode, { bytes, fds, files, mappings }: Leaks): Leaks =>
  syscall === "unlink" && code !== "ENOENT"
    ? { fds, files: files.slice(1), bytes: files.length === 1 ? 0 : bytes, mappings }
    : syscall === "munmap"
    ? { fds, files, bytes, mappings: mappings - 1 }
    : { fds, files, bytes, mappings }

const noDefect = ({ exit }: Run<unknown, unknown>, what: string) => {
  if (Exit.isFailure(exit)) {
    assert.deepStrictEqual([...Cause.defects(exit.cause)], [], `${what}: ${Cause.pretty(exit.cause)}`)
  }
}

/** Lets timers and the test runner have the thread. */
const breathe = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

/** `count` of `all`, others for each `start`, so that neighbouring calls of one kind meet different ones. */
const some = <A>(all: ReadonlyArray<A>, count: number, start: number): ReadonlyArray<A> =>
  Array.from({ length: Math.min(count, all.length) }, (_, index) => all[(start + index) % all.length]).flatMap((one) =>
    one === undefined ? [] : [one]
  )

const machineOf = (profile: Profile): Machine => ({
  profile,
  tree: {
    ...fixtures.machine,
    ...fixtures.mountinfo({ type: profile === "storageScale" ? "gpfs" : profile }),
    ...disks.btrfs("uuid", fixtures.sda1)
  }
})

const syscallAt = ({ journal }: Run<unknown, unknown>, call: number): SyscallName =>
  journal[call - 1]?.syscall ?? assert.fail(`call ${call} was not made`)

/**
 * One run takes its time, so that not every call can be tried in every way: every `step`-th, the first of each kind, and few of the
 * search for alignments, whose hundreds of calls are those of the other tries over again.
 */
const sample = (journal: ReadonlyArray<JournalEntry>, step: number, phase: number): ReadonlyArray<JournalEntry> => {
  // Its place in the file of the probe is the fourth, 8 MiB each.
  const inSearch = ({ offset = 0 }: JournalEntry) => offset >= 24 * 1024 ** 2 && offset < 32 * 1024 ** 2
  const [begin, end] = [journal.findIndex(inSearch), journal.findLastIndex(inSearch)]
  return journal.filter((entry, index) =>
    index % (index > begin && index < end ? 23 : step) === phase ||
    journal.findIndex(({ syscall }) => syscall === entry.syscall) === index
  )
}

const steps = [["ext4", 1], ["btrfs", 3], ["storageScale", 3]] as const

describe.each(steps)("the doctor on %s", (profile, step) => {
  const machine = machineOf(profile)
  const inspect = DirectIo.inspect("/tmp")

  it.effect("fails once at a call", () =>
    Effect.gen(function*() {
      const baseline = yield* run(machine, inspect)
      assert.deepStrictEqual(baseline.leaks, none)
      const calls = sample(baseline.journal, step, 0)
      const met = new Map<SyscallName, number>()
      for (const { call, syscall } of calls) {
        const before = met.get(syscall) ?? 0
        const repeats = calls.filter((entry) => entry.syscall === syscall).length
        const codes: ReadonlyArray<ErrnoCode> = errnosBySyscall[syscall]
        const tried = some(codes, Math.ceil(codes.length / repeats), before)
        met.set(syscall, before + tried.length)
        for (const code of tried) {
          const what = `call ${call}, ${syscall}: ${code}`
          const failed = yield* run(machine, inspect, { fault: { nth: call, outcome: { _tag: "Fail", code } } })
          noDefect(failed, what)
          assert.strictEqual(syscallAt(failed, call), syscall, what)
          assert.deepStrictEqual(leftBy(syscall, code, failed.leaks), none, what)
          // The first three calls look at the directory: open, fstatfs, statx.
          if (Exit.isSuccess(failed.exit)) {
            assert.isTrue(call > 3 || code === "EINTR", `${what}: a report`)
            const { probeFailure, verdict } = failed.exit.value
            if (probeFailure !== null) assert.notStrictEqual(verdict.io, "direct", what)
          } else {
            assert.isTrue(call <= 3, `${what}: ${Cause.pretty(failed.exit.cause)}`)
            const tags = [...Cause.failures(failed.exit.cause)].map(({ _tag }) => _tag)
            assert.deepStrictEqual(tags, ["DirectoryUnusable"])
          }
        }
        yield* breathe
      }
      // Every error that a call can give was met by one of its kind.
      for (const [syscall, count] of met) assert.isAtLeast(count, errnosBySyscall[syscall].length, syscall)
    }))

  it.effect("is interrupted at a call", () =>
    Effect.gen(function*() {
      const baseline = yield* run(machine, inspect)
      const whens = ["before", "during", "after"] as const
      for (const { call, syscall } of sample(baseline.journal, 4, 1)) {
        const first = baseline.journal.findIndex((entry) => entry.syscall === syscall) === call - 1
        for (const when of first ? whens : some(whens, 1, call)) {
          const what = `${when} call ${call}, ${syscall}`
          const interrupted = yield* run(machine, inspect, { interruption: { call, when } })
          noDefect(interrupted, what)
          // What comes while finalizers run may be too late to end anything.
          if (syscall !== "close") assert.isTrue(Exit.isInterrupted(interrupted.exit), what)
          assert.deepStrictEqual(interrupted.leaks, none, what)
        }
        yield* breathe
      }
    }))
})

it.effect("a directory that cannot be opened, whatever the reason", () =>
  Effect.gen(function*() {
    for (const code of errnosBySyscall.open) {
      if (code === "EINTR") continue
      const { exit, leaks } = yield* run(machineOf("ext4"), DirectIo.inspect("/tmp"), {
        fault: { syscall: "open", nth: 1, outcome: { _tag: "Fail", code } }
      })
      if (Exit.isSuccess(exit)) return assert.fail(code)
      assert.deepStrictEqual([...Cause.failures(exit.cause)].map(({ _tag }) => _tag), ["DirectoryUnusable"])
      assert.deepStrictEqual(leaks, none, code)
    }
  }))

const size = 3 * 4096 + 567
const proven = (options: Partial<DiskStorage.DiskStorageOptions> = {}) =>
  DiskStorage.make({ size, directory: "/tmp", directIo: "proven", ...options })

describe("a storage whose direct I/O is to be proven", () => {
  const acquired: ReadonlyArray<readonly [Profile, Partial<DiskStorage.DiskStorageOptions>]> = [
    ["ext4", {}],
    ["ext4", { openStrategy: "open-direct" }],
    ["ext2", { fallback: "zero-fill" }],
    ["btrfs", {}],
    ["lustre", {}],
    ["lustre", { prewrite: true }]
  ]
  for (const [profile, options] of acquired) {
    it.scoped(`is had on ${profile} ${JSON.stringify(options)}`, () =>
      Effect.gen(function*() {
        const storage = yield* proven(options)
        assert.isTrue(storage.directIo.flag)
        assert.strictEqual(storage.directIo.verdict, "direct")
        assert.include(storage.directIo.reason, "proven: the write took")
        // What the proof wrote is gone: a new storage reads as zeros.
        assert.deepStrictEqual(yield* storage.readBytes(0, size), new Uint8Array(size))
      }).pipe(Effect.provide(layer(machineOf(profile)))))
  }

  const refused: ReadonlyArray<readonly [Profile, Partial<DiskStorage.DiskStorageOptions>, said: RegExp, Change?]> = [
    ["tmpfs", {}, /page cache|in memory/],
    ["dataJournal", {}, /page cache/],
    ["dataJournal", { openStrategy: "open-direct" }, /page cache/],
    ["ramfs", {}, /./],
    ["ramfs", { openStrategy: "open-direct" }, /./],
    ["storageScale", {}, /open-direct/],
    // The flag is kept there, and the page cache proves nothing.
    ["storageScale", { openStrategy: "open-direct" }, /proves nothing/],
    ["btrfs", {}, /page cache/, () => ({ ioctlSetFlags: () => failing("ioctlSetFlags", "EOPNOTSUPP") })]
  ]
  for (const [profile, options, said, change = () => ({})] of refused) {
    it.effect(`is refused on ${profile} ${JSON.stringify(options)}${said.source === "page cache" ? ": page cache" : ""}`, () =>
      Effect.gen(function*() {
        const failure = yield* Effect.flip(Effect.scoped(proven(options)))
        if (failure._tag !== "DirectIoUnavailable") return assert.fail(`${failure._tag}: ${failure.message}`)
        assert.match(failure.reasons.join("; "), said)
        assert.isNotEmpty(failure.reasons)
        const kernel = yield* SimulatedKernel
        assert.deepStrictEqual(yield* kernel.leaks, none)
      }).pipe(Effect.provide(layer({ ...machineOf(profile), change }))))
  }

  const attempted: ReadonlyArray<readonly [Profile, Partial<DiskStorage.DiskStorageOptions>]> = [
    ["ext4", { openStrategy: "open-direct" }],
    ["btrfs", {}],
    ["lustre", { prewrite: true }],
    ["tmpfs", {}],
    ["ramfs", {}],
    ["storageScale", { openStrategy: "open-direct" }]
  ]
  for (const [profile, options] of attempted) {
    const program = Effect.scoped(Effect.asVoid(proven(options)))
    it.effect(`leaves nothing when a call fails on ${profile} ${JSON.stringify(options)}`, () =>
      Effect.gen(function*() {
        const machine = machineOf(profile)
        const baseline = yield* run(machine, program)
        for (const { call, syscall } of baseline.journal) {
          for (const code of errnosBySyscall[syscall]) {
            const what = `call ${call}, ${syscall}: ${code}`
            const failed = yield* run(machine, program, { fault: { nth: call, outcome: { _tag: "Fail", code } } })
            noDefect(failed, what)
            if (Exit.isFailure(failed.exit)) {
              const failures = [...Cause.failures(failed.exit.cause)]
              assert.strictEqual(failures.length, 1, what)
              assert.isTrue(failures.every(isDiskStorageError), what)
            } else assert.isTrue(Exit.isSuccess(baseline.exit), `${what}: succeeded`)
            assert.deepStrictEqual(leftBy(syscall, code, failed.leaks), none, what)
          }
          yield* breathe
        }
      }))

    it.effect(`leaves nothing when it is interrupted on ${profile} ${JSON.stringify(options)}`, () =>
      Effect.gen(function*() {
        const machine = machineOf(profile)
        const { journal } = yield* run(machine, program)
        for (const { call, syscall } of journal) {
          for (const when of ["before", "during", "after"] as const) {
            const interrupted = yield* run(machine, program, { interruption: { call, when } })
            noDefect(interrupted, `${when} call ${call}, ${syscall}`)
            assert.deepStrictEqual(interrupted.leaks, none, `${when} call ${call}, ${syscall}`)
          }
          yield* breathe
        }
      }))
  }

  it.effect("never takes a call that was answered wrongly for a proof", () =>
    Effect.gen(function*() {
      // Where the page cache can be asked in neither way nothing is proven.
      for (const syscalls of [["mmap", "cachestat"], ["mincore", "cachestat"]] as const) {
        const machine = {
          ...machineOf("ext4"),
          change: () => Object.fromEntries(syscalls.map((syscall) => [syscall, () => failing(syscall, "ENOSYS")]))
        }
        const { exit, leaks } = yield* run(machine, Effect.scoped(Effect.asVoid(proven())))
        if (Exit.isSuccess(exit)) return assert.fail(syscalls.join())
        assert.deepStrictEqual([...Cause.failures(exit.cause)].map(({ _tag }) => _tag), ["DirectIoUnavailable"])
        assert.deepStrictEqual(leaks, none)
      }
    }))
})

describe("extents", () => {
  const whole = 4 * 4096
  const kinds = (extents: ReadonlyArray<DiskStorage.Extent>) =>
    extents.map(({ kind, length, offset }) => `${kind} ${offset}+${length}`)

  it.scoped("of a storage turn from unwritten to written with each write", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, directory: "/tmp" })
      assert.deepStrictEqual(kinds(yield* storage.extents), [`unwritten 0+${whole}`])
      yield* storage.writeBytes(4096, new Uint8Array(4096).fill(1))
      assert.deepStrictEqual(kinds(yield* DirectIo.extents(storage)), [
        "unwritten 0+4096",
        "written 4096+4096",
        "unwritten 8192+8192"
      ])
    }).pipe(Effect.provide(layer({ profile: "ext4" }))))

  it.scoped("are written from the start with prewrite", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, directory: "/tmp", prewrite: true })
      assert.deepStrictEqual(kinds(yield* storage.extents), [`written 0+${whole}`])
      assert.deepStrictEqual(kinds(yield* DirectIo.extents(storage.path)), [`written 0+${whole}`])
    }).pipe(Effect.provide(layer({ profile: "ext4" }))))

  it.scoped("are the device's where that zeroes them", () => {
    const asked: Array<number> = []
    const change: Change = (kernel) => ({
      fallocate: (fd, mode, offset, length) =>
        mode === FALLOC_FL_WRITE_ZEROES
          ? Effect.asVoid(
            Effect.zipRight(Effect.sync(() => asked.push(length)), kernel.pwrite(fd, new Uint8Array(length), offset))
          )
          : kernel.fallocate(fd, mode, offset, length)
    })
    return Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, directory: "/tmp", prewrite: true, directIo: "disabled" })
      assert.deepStrictEqual(asked, [whole])
      assert.deepStrictEqual(kinds(yield* storage.extents), [`written 0+${whole}`])
    }).pipe(Effect.provide(layer({ profile: "ext4", change })))
  })

  it.scoped("of a sparse file are holes", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, directory: "/tmp" })
      assert.strictEqual(storage.allocation.method, "truncate")
      assert.deepStrictEqual(kinds(yield* storage.extents), [`hole 0+${whole}`])
      yield* storage.writeBytes(8192, new Uint8Array(4096).fill(1))
      assert.deepStrictEqual(kinds(yield* storage.extents), ["hole 0+8192", "written 8192+4096", "hole 12288+4096"])
    }).pipe(Effect.provide(layer({ profile: "ext2" }))))

  it.scoped("come in pieces of 128 from the kernel, and as one map", () => {
    let calls = 0
    const change: Change = (kernel) => ({
      fiemap: (fd, offset, length) =>
        Effect.tap(kernel.fiemap(fd, offset, length), (found) =>
          Effect.sync(() => {
            calls++
            assert.isAtMost(found.length, 128)
          }))
    })
    return Effect.gen(function*() {
      const pages = 1000
      const storage = yield* DiskStorage.make({ size: pages * 4096, directory: "/tmp" })
      // Every other page of the first half, so that nothing can be merged there.
      for (let page = 0; page < pages / 2; page += 2) {
        yield* storage.writeBytes(page * 4096, new Uint8Array(4096).fill(1))
      }
      const extents = yield* storage.extents
      assert.strictEqual(calls, Math.ceil(pages / 128))
      assert.strictEqual(extents.length, pages / 2)
      assert.deepStrictEqual(kinds(extents).slice(-2), [
        `written ${(pages / 2 - 2) * 4096}+4096`,
        `unwritten ${(pages / 2 - 1) * 4096}+${(pages / 2 + 1) * 4096}`
      ])
      let end = 0
      for (const { length, offset } of extents) {
        assert.strictEqual(offset, end)
        end = offset + length
      }
      assert.strictEqual(end, pages * 4096)
    }).pipe(Effect.provide(layer({ profile: "ext4", change })))
  })

  it.scoped("end where the kernel stops answering", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, directory: "/tmp" })
      assert.deepStrictEqual(kinds(yield* storage.extents), [`hole 0+${whole}`])
    }).pipe(
      Effect.provide(layer({ profile: "ext4", change: () => ({ fiemap: () => Effect.succeed([]) }) }))
    ))

  it.effect("fail typed where there is no map, no file, or the storage is closed", () =>
    Effect.gen(function*() {
      const storage = yield* Effect.scoped(DiskStorage.make({ size, directory: "/tmp" }))
      assert.strictEqual((yield* Effect.flip(storage.extents))._tag, "StorageClosed")
      assert.strictEqual((yield* Effect.flip(DirectIo.extents("/nowhere")))._tag, "ExtentsUnavailable")
      yield* Effect.scoped(Effect.gen(function*() {
        const open = yield* DiskStorage.make({ size, directory: "/tmp" })
        assert.strictEqual((yield* Effect.flip(open.extents))._tag, "ExtentsUnavailable")
        assert.strictEqual((yield* Effect.flip(DirectIo.extents(open.path)))._tag, "ExtentsUnavailable")
      }))
      const kernel = yield* SimulatedKernel
      assert.deepStrictEqual(yield* kernel.leaks, none)
    }).pipe(Effect.provide(layer({ profile: "lustre" }))))

  it.effect("leave nothing open when a call fails or is interrupted", () =>
    Effect.gen(function*() {
      const machine: Machine = { profile: "ext4", files: ["/tmp/file"] }
      const program = DirectIo.extents("/tmp/file")
      const { journal } = yield* run(machine, program)
      assert.deepStrictEqual(journal.map(({ syscall }) => syscall), ["open", "fiemap", "statx", "close"])
      const filled: Change = (kernel) => ({
        statx: (fd, path) => Effect.map(kernel.statx(fd, path), (own) => ({ ...own, size: 4096 }))
      })
      const all = yield* run({ ...machine, change: filled }, program)
      for (const { call, syscall } of all.journal) {
        for (const code of errnosBySyscall[syscall]) {
          const { exit, leaks } = yield* run({ ...machine, change: filled }, program, {
            fault: { nth: call, outcome: { _tag: "Fail", code } }
          })
          const what = `call ${call}, ${syscall}: ${code}`
          assert.deepStrictEqual(leaks, none, what)
          if (Exit.isSuccess(exit)) assert.isTrue(syscall === "close" || code === "EINTR", what)
          else {
            assert.deepStrictEqual(
              [...Cause.failures(exit.cause)].map(({ _tag }) => _tag),
              ["ExtentsUnavailable"],
              what
            )
          }
        }
        for (const when of ["before", "during", "after"] as const) {
          const { leaks } = yield* run({ ...machine, change: filled }, program, { interruption: { call, when } })
          assert.deepStrictEqual(leaks, none, `${when} ${syscall}`)
        }
      }
    }))
})
