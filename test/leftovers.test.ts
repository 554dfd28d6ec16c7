/** Files that the automatic sweep leaves are counted where space is short, warned of at the start, and removed by a forced sweep. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { execFile } from "node:child_process"
import { existsSync, mkdirSync, readdirSync, statSync } from "node:fs"
import * as DiskStorage from "../src/DiskStorage.js"
import * as IoEngine from "../src/IoEngine.js"
import type { SimulatedOptions, SimulatedProcess } from "../src/SimulatedSyscalls.js"
import { SimulatedKernel } from "../src/SimulatedSyscalls.js"
import { errnos, SyscallError, Syscalls } from "../src/Syscalls.js"
import { startChild } from "./filesystems/children.js"
import { command } from "./filesystems/mounts.js"
import { describeReal, freshPath } from "./filesystems/real.js"
import { program } from "./support/programs.js"
import { layer } from "./support/simulation.js"

const size = 64 * 1024
const none = { files: 0, bytes: 0 }

const on = (options: SimulatedOptions = {}) => Effect.provide(layer(options))

const storageIn = (
  { syscalls }: Pick<SimulatedProcess, "syscalls">,
  options: Partial<DiskStorage.DiskStorageOptions> = {}
) =>
  DiskStorage.make({ size, directIo: "disabled", fallback: "zero-fill", ...options }).pipe(
    Effect.provide(Layer.provideMerge(IoEngine.layerSyscalls, Layer.succeed(Syscalls, syscalls)))
  )

const here = (options: Partial<DiskStorage.DiskStorageOptions> = {}) =>
  Effect.flatMap(Syscalls, (syscalls) => storageIn({ syscalls }, options))

/** A process that was killed, and the path of the storage that it had. */
const killed = (uid?: number) =>
  Effect.gen(function*() {
    const process = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.process({ uid }))
    const { path } = yield* Scope.extend(storageIn(process, { sweep: false }), yield* Scope.make())
    yield* process.kill
    return path
  })

const warnings = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const logger = Logger.make(({ logLevel, message }) => {
      if (LogLevel.greaterThanEqual(logLevel, LogLevel.Warning)) lines.push(String(message))
    })
    return Effect.as(Effect.provide(effect, Logger.replace(Logger.defaultLogger, logger)), lines)
  })

const calls = Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)
const filesOf = Effect.map(Effect.flatMap(SimulatedKernel, (kernel) => kernel.leaks), ({ files }) => files)
const outcomes = ({ files }: DiskStorage.SweepReport) => files.map(({ outcome, path }) => [path, outcome])

describe("no space", () => {
  for (const profile of ["lustre", "storageScale", "ramfs"] as const) {
    it.effect(`on ${profile}, whose locks do not tell: leftovers are counted, and a forced sweep makes room`, () =>
      Effect.gen(function*() {
        const paths = yield* Effect.all([killed(), killed(), killed()])
        const failure = yield* Effect.flip(Effect.scoped(here()))
        if (failure._tag !== "InsufficientSpace") return assert.fail(failure.message)
        assert.deepStrictEqual(failure.leftovers, {
          directory: "/tmp",
          unused: { files: 3, bytes: 3 * size },
          others: none,
          kept: none,
          command: "effect-disk-storage sweep --force /tmp"
        })
        assert.include(
          failure.message,
          `3 temp files that no process is seen to use in /tmp take ${3 * size} bytes: ` +
            "effect-disk-storage sweep --force /tmp removes them, when no process uses the directory, also on other hosts."
        )
        assert.deepStrictEqual(outcomes(yield* DiskStorage.sweep("/tmp")), paths.map((path) => [path, "left"]))
        const dry = yield* DiskStorage.sweep("/tmp", { force: true, dryRun: true })
        assert.deepStrictEqual(outcomes(dry), paths.map((path) => [path, "abandoned"]))
        assert.deepStrictEqual(yield* filesOf, paths)
        const report = yield* DiskStorage.sweep("/tmp", { force: true })
        assert.deepStrictEqual(outcomes(report), paths.map((path) => [path, "removed"]))
        yield* Effect.scoped(here())
        assert.deepStrictEqual(yield* filesOf, [])
      }).pipe(on({ profile, capacity: 4 * size - 4096 })))
  }

  it.effect("where nobody sweeps automatically: the command needs no force", () =>
    Effect.gen(function*() {
      yield* killed()
      const failure = yield* Effect.flip(Effect.scoped(here({ sweep: false })))
      if (failure._tag !== "InsufficientSpace") return assert.fail(failure.message)
      assert.strictEqual(failure.leftovers?.command, "effect-disk-storage sweep /tmp")
      assert.deepStrictEqual(failure.leftovers?.unused, { files: 1, bytes: size })
      assert.notInclude(failure.message, "other hosts")
    }).pipe(on({ capacity: 2 * size - 4096 })))

  it.effect("counts neither its own file, nor those in use, and tells other users' and kept files apart", () =>
    Effect.scoped(Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      yield* storageIn(yield* kernel.process())
      yield* here()
      yield* killed(4242)
      yield* Effect.scoped(Effect.flatMap(here({ keepAt: "/tmp/kept" }), (storage) => storage.keep))
      const failure = yield* Effect.flip(here({ size: 100 * size }))
      if (failure._tag !== "InsufficientSpace") return assert.fail(failure.message)
      assert.deepStrictEqual(failure.leftovers, {
        directory: "/tmp",
        unused: none,
        others: { files: 1, bytes: size },
        kept: { files: 1, bytes: size + 4096 },
        command: "effect-disk-storage sweep /tmp"
      })
      assert.notInclude(failure.message, "effect-disk-storage sweep")
      assert.include(failure.message, "1 kept storages in /tmp")
      assert.include(failure.message, "1 temp files of other users in /tmp")
    })).pipe(on({ capacity: 50 * size })))

  it.effect("that fallocate alone finds is explained, too", () =>
    Effect.gen(function*() {
      yield* killed()
      const { inject, journal } = yield* SimulatedKernel
      const calls = (yield* journal).filter(({ syscall }) => syscall === "fallocate").length
      yield* inject({ syscall: "fallocate", nth: calls + 1, outcome: { _tag: "Fail", code: "ENOSPC" } })
      const failure = yield* Effect.flip(Effect.scoped(here({ sweep: false })))
      if (failure._tag !== "OutOfSpace") return assert.fail(failure.message)
      assert.deepStrictEqual(failure.leftovers?.unused, { files: 1, bytes: size })
      assert.include(failure.message, "effect-disk-storage sweep /tmp removes them")
    }).pipe(on()))

  it.effect("without leftovers, or where they cannot be listed, is what it was", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(Effect.scoped(here({ size: 10 * size })))
      assert.isTrue(failure._tag === "InsufficientSpace" && failure.leftovers === undefined)
      yield* killed()
      const { inject, journal } = yield* SimulatedKernel
      const lists = (yield* journal).filter(({ syscall }) => syscall === "readdir").length
      for (const nth of [1, 2, 3]) {
        yield* inject({ syscall: "readdir", nth: lists + nth, outcome: { _tag: "Fail", code: "EIO" } })
      }
      const blind = yield* Effect.flip(Effect.scoped(here({ size: 10 * size, sweep: false })))
      assert.isTrue(blind._tag === "InsufficientSpace" && blind.leftovers === undefined)
    }).pipe(on({ capacity: 5 * size })))

  it.effect("in a directory with a name that a shell would split: the command is quoted", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(Effect.scoped(Effect.gen(function*() {
        const directory = "/tmp/a b'c"
        const process = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.process())
        yield* Scope.extend(storageIn(process, { directory }), yield* Scope.make())
        yield* process.kill
        return yield* here({ directory, sweep: false })
      })))
      if (failure._tag !== "InsufficientSpace") return assert.fail(failure.message)
      assert.strictEqual(failure.leftovers?.command, "effect-disk-storage sweep '/tmp/a b'\\''c'")
    }).pipe(on({ capacity: 2 * size - 4096 })))
})

describe("at the start", () => {
  it.effect("files that the automatic sweep leaves are warned of once, with the command", () =>
    Effect.gen(function*() {
      yield* killed()
      yield* killed()
      const lines = yield* warnings(Effect.scoped(Effect.zipRight(here(), here())))
      const told = lines.filter((line) => line.includes("effect-disk-storage sweep"))
      assert.deepStrictEqual(told, [
        `2 temp files that no process is seen to use take ${2 * size} bytes here, and are not removed automatically: ` +
        "effect-disk-storage sweep --force /tmp removes them"
      ])
    }).pipe(on({ profile: "lustre" })))

  it.effect("files that are not swept since that is not wanted are not looked at, and stay", () =>
    Effect.gen(function*() {
      const path = yield* killed()
      const before = (yield* calls).length
      const lines = yield* warnings(Effect.scoped(here({ sweep: false })))
      assert.deepStrictEqual(lines, [])
      assert.notInclude((yield* calls).slice(before).map(({ syscall }) => syscall), "readdir")
      assert.deepStrictEqual(yield* filesOf, [path])
      // That was no sweep.
      yield* Effect.scoped(here())
      assert.deepStrictEqual(yield* filesOf, [])
    }).pipe(on()))

  it.effect("nothing is warned of where others live, or the sweep removes it, or there is nothing", () =>
    Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      yield* killed()
      yield* killed(4242)
      yield* storageIn(yield* kernel.process(), { sweep: false })
      assert.deepStrictEqual(yield* warnings(Effect.scoped(Effect.zipRight(here(), here({ sweep: false })))), [])
    }).pipe(Effect.scoped, on()))
})

describe("a forced sweep", () => {
  it.effect("removes no file that is seen to be locked, and no other user's", () =>
    Effect.scoped(Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      const live = yield* storageIn(yield* kernel.process())
      const own = yield* here()
      const foreign = yield* killed(4242)
      const left = yield* killed()
      assert.sameDeepMembers(outcomes(yield* DiskStorage.sweep("/tmp", { force: true })), [
        [live.path, "in use"],
        [own.path, "in use"],
        [foreign, "left"],
        [left, "removed"]
      ])
    })).pipe(on({ profile: "lustre" })))

  for (const code of ["ENOLCK", "EOPNOTSUPP", "ENOSYS", "EINVAL"] as const) {
    it.effect(`removes files where the kernel has no locks: ${code}`, () =>
      Effect.gen(function*() {
        const path = yield* killed()
        const kernel = yield* Syscalls
        const failure = new SyscallError({ syscall: "fcntlSetLock", errno: errnos[code], code })
        const sweep = (options: DiskStorage.SweepOptions) =>
          Effect.provideService(DiskStorage.sweep("/tmp", options), Syscalls, {
            ...kernel,
            fcntlSetLock: () => Effect.fail(failure)
          })
        const [finding] = (yield* sweep({})).files
        assert.deepInclude(finding, { path, outcome: "left" })
        assert.include(finding?.reason ?? "", "sweep --force removes it")
        assert.deepStrictEqual(outcomes(yield* sweep({ force: true })), [[path, "removed"]])
        assert.deepStrictEqual(yield* filesOf, [])
      }).pipe(on({ profile: "lustre" })))
  }

  it.effect("may meet a storage whose filesystem answers anything to a lock", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls
      for (const code of ["EACCES", "EAGAIN", "EIO", "ENOMEM", "ENOLCK"] as const) {
        const failure = new SyscallError({ syscall: "fcntlSetLock", errno: errnos[code], code })
        yield* Effect.scoped(storageIn({ syscalls: { ...kernel, fcntlSetLock: () => Effect.fail(failure) } }))
      }
      const { fds, files } = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.leaks)
      assert.deepStrictEqual([fds, files], [[], []])
    }).pipe(on({ profile: "lustre" })))
})

/** The command, which ends as it does. */
const run = (...args: ReadonlyArray<string>) =>
  Effect.async<{ readonly code: number; readonly out: string }>((resume) => {
    execFile(
      process.execPath,
      [program(new URL("../src/cli/main.ts", import.meta.url)), "sweep", ...args],
      (error, out) => resume(Effect.succeed({ code: typeof error?.code === "number" ? error.code : 0, out }))
    )
  })

describeReal("small ext4", { name: "leftovers on FUSE", tools: ["bindfs"] }, (it) => {
  it.scoped("of killed processes fill the disk until a forced sweep removes them, and nothing of who lives", () =>
    Effect.gen(function*() {
      const below = yield* freshPath
      const directory = `${below}-fuse`
      for (const path of [below, directory]) mkdirSync(path)
      yield* Effect.acquireRelease(command("bindfs", below, directory), () => command("umount", directory))
      yield* Effect.scoped(Effect.gen(function*() {
        const task = { directory, size: 12 * 1024 ** 2, directIo: "preferred", fallback: "zero-fill" } as const
        const neighbour = yield* startChild(task)
        const lives = yield* neighbour.step("acquire")
        const kills = yield* Effect.forEach(
          [1, 2, 3],
          () => Effect.scoped(Effect.flatMap(startChild(task), (child) => child.step("acquire")))
        )
        const left = kills.flatMap((reply) => reply._tag === "Done" ? [reply.path] : [])
        if (lives._tag !== "Done" || left.length !== 3) return assert.fail(JSON.stringify([lives, kills]))
        const bytes = left.reduce((sum, path) => sum + statSync(path).blocks * 512, 0)

        const lines = yield* warnings(Effect.gen(function*() {
          const failure = yield* Effect.flip(DiskStorage.make({ ...task, size: 20 * 1024 ** 2 }))
          if (failure._tag !== "InsufficientSpace") return assert.fail(failure.message)
          const command = `effect-disk-storage sweep --force ${directory}`
          assert.deepStrictEqual(failure.leftovers, {
            directory,
            unused: { files: 3, bytes },
            others: none,
            kept: none,
            command
          })
        }))
        assert.match(
          lines.join("\n"),
          new RegExp(`^3 temp files .* ${bytes} bytes here, .* sweep --force ${directory} `, "m")
        )

        const plain = yield* run(directory)
        assert.match(plain.out, /removed: 0 files, 0 B; in use: 1 file, .*; left: 3 files, /)
        const dry = yield* run("--force", "--dry-run", directory)
        assert.match(dry.out, /would be removed: 3 files, .*; in use: 1 file, .*; left: 0 files/)
        assert.isTrue(left.every((path) => existsSync(path)))
        const { code, out } = yield* run("--force", "--json", directory)
        assert.strictEqual(code, 0)
        const report = Schema.decodeSync(Schema.parseJson(DiskStorage.SweepReport))(out)
        assert.sameDeepMembers(outcomes(report), [[lives.path, "in use"], ...left.map((path) => [path, "removed"])])
        assert.deepStrictEqual(readdirSync(directory), [lives.path.slice(directory.length + 1)])
        assert.strictEqual((yield* neighbour.step("write"))._tag, "Done")
        yield* Effect.scoped(DiskStorage.make({ ...task, size: 20 * 1024 ** 2 }))
        assert.strictEqual((yield* neighbour.step("close"))._tag, "Done")
        assert.deepStrictEqual(readdirSync(directory), [])
      }))
    }))
})
