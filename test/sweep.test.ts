/** What killed owners leave is removed, and nothing else, whoever sweeps or starts at the same moment. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import { existsSync, mkdirSync, readdirSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as DiskStorage from "../src/DiskStorage.js"
import * as IoEngine from "../src/IoEngine.js"
import type { SimulatedOptions, SimulatedProcess } from "../src/SimulatedSyscalls.js"
import { SimulatedKernel } from "../src/SimulatedSyscalls.js"
import type { ErrnoCode } from "../src/Syscalls.js"
import { errnosBySyscall, Syscalls } from "../src/Syscalls.js"
import { startChild } from "./filesystems/children.js"
import { command } from "./filesystems/mounts.js"
import { assertGivenBack, describeReal, freshPath, pattern, settledFreeBytes } from "./filesystems/real.js"
import { layer } from "./support/simulation.js"

const prefix = "dynamo-kvbm-disk-cache-eds-"
const size = 64 * 1024

const on = (options: SimulatedOptions = {}) => Effect.provide(layer(options))

const storageIn = (
  { syscalls }: Pick<SimulatedProcess, "syscalls">,
  options: Partial<DiskStorage.DiskStorageOptions> = {}
) =>
  DiskStorage.make({ size, ...options }).pipe(
    Effect.provide(Layer.provideMerge(IoEngine.layerSyscalls, Layer.succeed(Syscalls, syscalls)))
  )

const sweepBy = ({ syscalls }: Pick<SimulatedProcess, "syscalls">, options?: DiskStorage.SweepOptions) =>
  Effect.provideService(DiskStorage.sweep("/tmp", options), Syscalls, syscalls)

/** A process that was killed, and the path of the storage that it had. */
const killed = (options: Partial<DiskStorage.DiskStorageOptions> = {}) =>
  Effect.gen(function*() {
    const process = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.process())
    const { path } = yield* Scope.extend(storageIn(process, options), yield* Scope.make())
    yield* process.kill
    return path
  })

const leaks = Effect.flatMap(SimulatedKernel, (kernel) => kernel.leaks)
const nothingLeft = Effect.map(
  leaks,
  (left) => assert.deepStrictEqual(left, { fds: [], files: [], bytes: 0, mappings: 0 })
)

const outcomes = ({ files }: DiskStorage.SweepReport) => files.map(({ outcome, path }) => [path, outcome])

describe("a sweep", () => {
  it.effect("removes what a killed process has left, and gives its space back", () =>
    Effect.gen(function*() {
      const path = yield* killed()
      assert.deepInclude(yield* leaks, { fds: [], files: [path], bytes: size })
      const dry = yield* DiskStorage.sweep("/tmp", { dryRun: true })
      assert.deepStrictEqual(dry, {
        directory: "/tmp",
        dryRun: true,
        files: [{ path, bytes: size, outcome: "abandoned" }]
      })
      assert.deepInclude(yield* leaks, { fds: [], files: [path] })
      assert.deepStrictEqual((yield* DiskStorage.sweep("/tmp")).files, [{ path, bytes: size, outcome: "removed" }])
      yield* nothingLeft
      assert.deepStrictEqual((yield* DiskStorage.sweep("/tmp/")).files, [])
    }).pipe(on()))

  it.effect("touches no file of an owner who is alive, in this process or in another one", () =>
    Effect.gen(function*() {
      const other = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.process())
      yield* Effect.scoped(Effect.gen(function*() {
        const paths = [
          (yield* DiskStorage.make({ size })).path,
          (yield* DiskStorage.make({ size, openStrategy: "open-direct" })).path,
          (yield* storageIn(other)).path,
          (yield* storageIn(other, { keepAt: "/tmp/kept" })).path
        ]
        for (const process of [other, { syscalls: yield* Syscalls }]) {
          assert.deepStrictEqual(outcomes(yield* sweepBy(process)), paths.map((path) => [path, "in use"]))
        }
        assert.deepStrictEqual((yield* leaks).files, paths)
      }))
      yield* nothingLeft
    }).pipe(on()))

  it.effect("touches nothing but regular files of this user with the name of a temp file", () => {
    const ours = `/tmp/${prefix}aaaaaa`
    const names = [
      "dynamo-kvbm-disk-cache-aaaaaa",
      `${prefix}aaaaa`,
      `${prefix}aaaaaaa`,
      `${prefix}aaaa-a`,
      `${prefix}aaaaaa.bak`,
      `x${prefix}aaaaaa`,
      "kept"
    ]
    const foreign = { path: `/tmp/${prefix}bbbbbb`, uid: 0 }
    const link = { path: `/tmp/${prefix}cccccc`, target: ours, uid: 1000 }
    return Effect.gen(function*() {
      const { files } = yield* DiskStorage.sweep("/tmp")
      assert.deepStrictEqual(files.map(({ outcome, path, reason }) => [path, outcome, reason]), [
        [ours, "removed", undefined],
        [foreign.path, "left", "it belongs to another user (0)"],
        [link.path, "left", "it is no regular file"]
      ])
      const kernel = yield* Syscalls
      assert.sameMembers([...yield* kernel.readdir("/tmp")], [...names, `${prefix}bbbbbb`, `${prefix}cccccc`])
    }).pipe(on({ files: [ours, ...names.map((name) => `/tmp/${name}`), foreign], links: [link] }))
  })

  for (const profile of ["lustre", "ramfs", "storageScale"] as const) {
    it.effect(`leaves what is on ${profile}, whose locks do not tell`, () =>
      Effect.gen(function*() {
        const path = yield* killed({ directIo: "disabled" })
        const [finding] = (yield* DiskStorage.sweep("/tmp")).files
        assert.deepInclude(finding, { path, outcome: "left" })
        assert.match(finding?.reason ?? "", /^locks on .* do not tell/)
        assert.deepStrictEqual((yield* leaks).files, [path])
      }).pipe(on({ profile })))
  }

  it.effect("takes the name of a new file between its creation and its lock: the owner makes another file", () =>
    Effect.gen(function*() {
      const syscalls = yield* Syscalls
      const swept: Array<string> = []
      let created = ""
      const racing: Syscalls = {
        ...syscalls,
        mkostemp: (prefix, flags) =>
          Effect.tap(syscalls.mkostemp(prefix, flags), ({ path }) => Effect.sync(() => created = path)),
        // The kernel grants the lock of a file whose last name has just gone.
        fcntlSetLock: (fd) =>
          Effect.tap(syscalls.fcntlSetLock(fd), () => {
            if (swept.length > 0) return Effect.void
            swept.push(created)
            return syscalls.unlink(created)
          })
      }
      yield* Effect.scoped(Effect.gen(function*() {
        const { path } = yield* storageIn({ syscalls: racing })
        assert.notInclude(swept, path)
        assert.deepStrictEqual((yield* leaks).files, [path])
      }))
      assert.strictEqual(swept.length, 1)
      yield* nothingLeft
    }).pipe(on()))

  it.effect("of a directory that cannot be listed says so", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(DiskStorage.sweep("/tmp/none"))
      assert.deepInclude(failure, { _tag: "SweepFailed", directory: "/tmp/none" })
      assert.strictEqual(failure._tag === "SweepFailed" && failure.cause.code, "ENOENT")
    }).pipe(on()))

  /** An owner who is alive and a file without one, then a sweep; what it found, and the calls that it made. */
  const history = (
    schedule: { readonly nth: number; readonly code: ErrnoCode } | { readonly nth: number } | undefined
  ) =>
    Effect.scoped(Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      const abandoned = yield* killed()
      const { path } = yield* storageIn(yield* kernel.process(), { sweep: false })
      const before = (yield* kernel.journal).length
      const held = (yield* kernel.leaks).fds
      const sweeping = yield* Effect.fork(DiskStorage.sweep("/tmp"))
      if (schedule !== undefined) {
        const nth = before + 1 + schedule.nth
        if ("code" in schedule) yield* kernel.inject({ nth, outcome: { _tag: "Fail", code: schedule.code } })
        else {
          for (const when of ["before", "during", "after"] as const) {
            yield* kernel.interrupt(sweeping, { call: nth, when })
          }
        }
      }
      const exit = yield* Fiber.await(sweeping)
      const calls = (yield* kernel.journal).slice(before).map(({ syscall }) => syscall)
      const after = yield* kernel.leaks
      assert.deepStrictEqual(after.fds, held, "descriptors")
      assert.include(after.files, path, "the file of a live owner")
      // Whatever it was, it does not keep the next one from its work.
      yield* DiskStorage.sweep("/tmp")
      assert.deepStrictEqual((yield* kernel.leaks).files, [path], `without ${abandoned}`)
      return { exit, calls }
    })).pipe(on())

  it.effect("fails at no file, leaves no descriptor and takes nobody's file, whatever call of it fails", () =>
    Effect.gen(function*() {
      const { calls } = yield* history(undefined)
      assert.isAbove(calls.length, 12)
      for (const [nth, syscall] of calls.entries()) {
        for (const code of errnosBySyscall[syscall]) {
          const { exit } = yield* history({ nth, code })
          if (Exit.isFailure(exit)) assert.strictEqual(syscall, "readdir", `call ${nth + 1}: ${code}`)
        }
      }
    }))

  it.effect("can be interrupted at every call", () =>
    Effect.gen(function*() {
      const { calls } = yield* history(undefined)
      for (const nth of calls.keys()) {
        const { exit } = yield* history({ nth })
        // The last call of all may be over by then.
        assert.isTrue(Exit.isInterrupted(exit) || nth === calls.length - 1, `call ${nth + 1}`)
      }
    }))
})

describe("before the first storage", () => {
  const lists = Effect.map(
    Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal),
    (journal) => journal.filter(({ syscall }) => syscall === "readdir").map(({ path }) => path)
  )

  it.effect("its directory is swept, so that it can have the space", () =>
    Effect.gen(function*() {
      yield* killed()
      const storage = yield* DiskStorage.make({ size })
      assert.deepStrictEqual((yield* leaks).files, [storage.path])
    }).pipe(Effect.scoped, on({ capacity: size + 4096 })))

  it.effect("and not again, but each directory and in each process", () =>
    Effect.gen(function*() {
      yield* Effect.all([DiskStorage.make({ size }), DiskStorage.make({ size })], { concurrency: 2 })
      assert.deepStrictEqual(yield* lists, ["/tmp/"])
      yield* DiskStorage.make({ size, directory: "/tmp/new" })
      const process = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.process())
      yield* storageIn(process)
      assert.deepStrictEqual(yield* lists, ["/tmp/", "/tmp/new", "/tmp/"])
    }).pipe(Effect.scoped, on()))

  it.effect("unless that is not wanted", () =>
    Effect.gen(function*() {
      const path = yield* killed()
      yield* DiskStorage.make({ size, sweep: false })
      assert.include((yield* leaks).files, path)
    }).pipe(Effect.scoped, on()))

  it.effect("one that fails or is interrupted does not count", () =>
    Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      const path = yield* killed()
      const before = (yield* kernel.journal).length
      const making = yield* Effect.fork(Effect.scoped(DiskStorage.make({ size })))
      yield* kernel.interrupt(making, { call: before + 2, when: "before" })
      assert.isTrue(Exit.isInterrupted(yield* Fiber.await(making)))
      assert.deepStrictEqual((yield* kernel.leaks).files, [path])
      yield* Effect.scoped(DiskStorage.make({ size }))
      yield* nothingLeft
    }).pipe(on()))
})

describe("a storage that is being made", () => {
  it.effect("is made again when a sweep was first", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls
      let sweeps = 0
      const late: Syscalls = {
        ...kernel,
        mkostemp: (prefix, flags) =>
          Effect.tap(kernel.mkostemp(prefix, flags), () =>
            sweeps++ < 3 ? Effect.orDie(sweepBy({ syscalls: kernel })) : Effect.void)
      }
      const storage = yield* storageIn({ syscalls: late })
      assert.strictEqual(sweeps, 4)
      assert.deepStrictEqual((yield* leaks).files, [storage.path])
      // The file, its directory and its lock.
      assert.lengthOf((yield* leaks).fds, 3)
    }).pipe(Effect.scoped, Effect.zipRight(nothingLeft), on()))

  it.effect("gives up when one is always first", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls
      const late: Syscalls = {
        ...kernel,
        mkostemp: (prefix, flags) =>
          Effect.tap(kernel.mkostemp(prefix, flags), () => Effect.orDie(sweepBy({ syscalls: kernel })))
      }
      assert.strictEqual((yield* Effect.flip(storageIn({ syscalls: late })))._tag, "FileReplaced")
    }).pipe(Effect.scoped, Effect.zipRight(nothingLeft), on()))

  it.effect("keeps its file, whatever sweeps and other owners do at the same time", () =>
    Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      const late =
        <Args extends ReadonlyArray<unknown>, A, E>(call: (...args: Args) => Effect.Effect<A, E>) => (...args: Args) =>
          Effect.zipRight(
            Effect.flatMap(Random.nextIntBetween(0, 6), (turns) => Effect.replicateEffect(Effect.yieldNow(), turns)),
            call(...args)
          )
      const slow = (syscalls: Syscalls): Syscalls => ({
        ...syscalls,
        mkostemp: late(syscalls.mkostemp),
        open: late(syscalls.open),
        fcntlSetLock: late(syscalls.fcntlSetLock),
        statx: late(syscalls.statx),
        readdir: late(syscalls.readdir),
        rename: late(syscalls.rename),
        unlink: late(syscalls.unlink),
        close: late(syscalls.close)
      })
      for (let round = 0; round < 40; round++) {
        const processes = yield* Effect.replicateEffect(
          Effect.map(kernel.process(), ({ syscalls }) => ({ syscalls: slow(syscalls) })),
          4
        )
        const abandoned = yield* Effect.replicateEffect(killed(), 2)
        yield* Effect.forEach(processes, (process, index) =>
          Effect.scoped(Effect.gen(function*() {
            if (index % 2 === 0) yield* sweepBy(process)
            // One of them takes up what the other has kept, or did not come to that yet.
            const storage = yield* storageIn(process, index < 2 ? { keepAt: "/tmp/kept" } : {})
            yield* sweepBy(process)
            const { files } = yield* kernel.leaks
            assert.include(files, storage.path, `round ${round}`)
            for (const path of abandoned) assert.notInclude(files, path, `round ${round}`)
            // Refused where the other one is taking up or keeping just now.
            if (index < 2) {
              yield* Effect.catchTag(
                storage.keep,
                "KeepFailed",
                ({ reason }) => Effect.sync(() => assert.strictEqual(reason, "in the way"))
              )
            }
          })), { concurrency: "unbounded" })
        const { files } = yield* kernel.leaks
        assert.deepStrictEqual(files, ["/tmp/kept"], `round ${round}`)
      }
      yield* Effect.flatMap(Syscalls, (syscalls) => syscalls.unlink("/tmp/kept"))
      yield* nothingLeft
    }).pipe(Effect.withRandom(Random.make("sweeps")), on()))
})

describe("what is kept", () => {
  it.effect("has no name that is swept", () =>
    Effect.gen(function*() {
      for (const name of [`${prefix}aaaaaa`, "dynamo-kvbm-disk-cache-aaaaaa"]) {
        const failure = yield* Effect.flip(DiskStorage.make({ size, keepAt: `/tmp/${name}` }))
        assert.deepInclude(failure, { _tag: "InvalidOption", option: "keepAt" })
      }
    }).pipe(Effect.scoped, on()))

  it.effect("is not taken up while another process has it locked", () =>
    Effect.gen(function*() {
      const keepAt = "/tmp/kept"
      yield* Effect.scoped(Effect.flatMap(DiskStorage.make({ size, keepAt }), (storage) => storage.keep))
      const { syscalls } = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.process())
      const fd = yield* syscalls.open(keepAt, syscalls.flags.O_RDWR)
      yield* syscalls.fcntlSetLock(fd)
      yield* Effect.scoped(
        Effect.map(DiskStorage.make({ size, keepAt }), ({ keptAt }) => assert.strictEqual(keptAt?.takenUp, false))
      )
      yield* syscalls.close(fd)
      yield* Effect.scoped(
        Effect.map(DiskStorage.make({ size, keepAt }), ({ keptAt }) => assert.strictEqual(keptAt?.takenUp, true))
      )
      yield* nothingLeft
    }).pipe(on()))

  /** The second lock of its process waits until `first` is over: that of the file at the path, after that of its own. */
  const after = (first: Effect.Effect<unknown>) =>
    Effect.map(Syscalls, (syscalls): Syscalls => {
      let locks = 0
      return {
        ...syscalls,
        fcntlSetLock: (fd) =>
          Effect.zipRight(Effect.suspend(() => ++locks === 2 ? first : Effect.void), syscalls.fcntlSetLock(fd))
      }
    })
  const mark = (number: number) => Uint8Array.of(number)
  const markAt = (path: string) =>
    Effect.scoped(Effect.map(DiskStorage.make({ size, keepAt: path }), ({ keptAt }) => keptAt?.mark?.[0]))

  it.effect("is not taken up, and nobody else's, where another process replaces it as it is about to be locked", () =>
    Effect.gen(function*() {
      const keepAt = "/tmp/kept"
      const kernel = yield* SimulatedKernel
      const other = yield* storageIn(yield* kernel.process(), { keepAt })
      yield* Effect.scoped(Effect.flatMap(DiskStorage.make({ size, keepAt }), (storage) => storage.keepAs(mark(1))))
      const syscalls = yield* after(Effect.orDie(other.keepAs(mark(2))))
      const storage = yield* storageIn({ syscalls }, { keepAt, sweep: false })
      assert.strictEqual(storage.keptAt?.takenUp, false)
      assert.strictEqual(yield* markAt(keepAt), 2)
    }).pipe(Effect.scoped, on()))

  it.effect("replaces nothing that came as it was about to be locked", () =>
    Effect.gen(function*() {
      const keepAt = "/tmp/kept"
      const kernel = yield* SimulatedKernel
      const other = yield* storageIn(yield* kernel.process(), { keepAt })
      const syscalls = yield* after(Effect.orDie(other.keepAs(mark(2))))
      const storage = yield* storageIn({ syscalls }, { keepAt, sweep: false })
      yield* Effect.scoped(Effect.flatMap(DiskStorage.make({ size, keepAt }), (storage) => storage.keepAs(mark(1))))
      const failure = yield* Effect.flip(storage.keepAs(mark(3)))
      assert.deepInclude(failure, { _tag: "KeepFailed", reason: "in the way" })
      assert.strictEqual(yield* markAt(keepAt), 2)
    }).pipe(Effect.scoped, on()))
})

for (const kind of ["ext4", "ext2", "xfs", "btrfs", "tmpfs", "overlay"] as const) {
  describeReal(kind, { name: "a sweep" }, (it) => {
    it.effect("removes what SIGKILL has left, through a bind mount too, and nothing of who lives", () =>
      Effect.scoped(Effect.gen(function*() {
        const directory = yield* freshPath
        mkdirSync(directory)
        const before = yield* settledFreeBytes(directory)
        const size = 4 * 1024 * 1024
        const neighbour = yield* startChild({ directory, size })
        const lives = yield* neighbour.step("acquire")
        // A process that is gone with its scope, killed.
        const left = yield* Effect.scoped(
          Effect.flatMap(startChild({ directory, size }), (child) => child.step("acquire"))
        )
        if (lives._tag !== "Done" || left._tag !== "Done") return assert.fail(`${lives._tag}, ${left._tag}`)
        const { ino } = statSync(lives.path)
        mkdirSync(`${directory}-bound`)
        yield* Effect.acquireRelease(
          command("mount", "--bind", directory, `${directory}-bound`),
          () => command("umount", `${directory}-bound`)
        )
        writeFileSync(join(directory, "dynamo-kvbm-disk-cache-aaaaaa"), "the original's")
        symlinkSync(lives.path, join(directory, `${prefix}linked`))

        const dry = yield* DiskStorage.sweep(`${directory}-bound`, { dryRun: true })
        const bound = (path: string) => path.replace(directory, `${directory}-bound`)
        assert.sameDeepMembers(outcomes(dry), [
          [bound(lives.path), "in use"],
          [bound(left.path), "abandoned"],
          [join(`${directory}-bound`, `${prefix}linked`), "left"]
        ])
        assert.isTrue(existsSync(left.path))
        const storage = yield* DiskStorage.make({ size, directory: `${directory}-bound` })
        assert.isFalse(existsSync(left.path), "the first storage of a directory sweeps it")
        assert.strictEqual(statSync(lives.path).ino, ino)
        assert.strictEqual((yield* neighbour.step("write"))._tag, "Done")
        assert.deepInclude(outcomes(yield* DiskStorage.sweep(directory)), [lives.path, "in use"])
        yield* storage.close
        yield* neighbour.step("close")
        assert.sameMembers(readdirSync(directory), ["dynamo-kvbm-disk-cache-aaaaaa", `${prefix}linked`])
        yield* assertGivenBack(directory, before)
      })))

    it.effect("beside storages that are made and kept takes none of them", () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const keepAt = join(directory, "kept")
        const content = pattern(8192, 1)
        const sweeping = yield* Effect.fork(Effect.forever(Effect.zipRight(
          Effect.option(DiskStorage.sweep(directory)),
          Effect.yieldNow()
        )))
        yield* Effect.forEach([0, 1], (lane) =>
          Effect.repeatN(
            Effect.scoped(Effect.gen(function*() {
              const storage = yield* DiskStorage.make({
                size: 8192,
                directory,
                directIo: "preferred",
                keepAt: lane === 0 ? keepAt : undefined
              })
              const kept = storage.keptAt?.takenUp === true
              if (kept) assert.deepStrictEqual(yield* storage.readBytes(0, 8192), content)
              yield* storage.writeBytes(0, content)
              const { ino } = statSync(storage.path)
              yield* storage.withFd((fd) =>
                Effect.sync(() => assert.strictEqual(statSync(`/proc/self/fd/${fd}`).ino, ino))
              )
              if (lane === 0) yield* storage.keep
            })),
            20
          ), { concurrency: 2 })
        yield* Fiber.interrupt(sweeping)
        assert.deepStrictEqual(readdirSync(directory), ["kept"])
      }))
  })
}
