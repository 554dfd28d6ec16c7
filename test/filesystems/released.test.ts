/** What a path says of a file after somebody has changed what the path leads to, and what is left when its storage has ended. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import {
  closeSync,
  existsSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync
} from "node:fs"
import { basename, dirname, join } from "node:path"
import * as DiskStorage from "../../src/DiskStorage.js"
import { Syscalls } from "../../src/Syscalls.js"
import type { Kind } from "./mounts.js"
import { command } from "./mounts.js"
import { assertGivenBack, describeReal, freshPath, Mounted, openBelow, settledFreeBytes } from "./real.js"

const size = 1024 * 1024

interface Place {
  /** Where the storage is made: below `base`, which is there. */
  readonly directory: string
  readonly base: string
}

interface Change {
  readonly name: string
  /** Before the storage is made; the directory, where nothing else is said, is made here. */
  readonly prepare?: (place: Place) => Effect.Effect<unknown, never, Scope.Scope>
  /** While it is used. */
  readonly change: (place: Place) => Effect.Effect<unknown, never, Scope.Scope>
}

const sync = <A>(attempt: () => A) => Effect.sync(attempt)

const mountedOver = ({ directory }: Place) =>
  Effect.acquireRelease(command("mount", "-t", "tmpfs", "tmpfs", directory), () => command("umount", directory))

const changes: ReadonlyArray<Change> = [
  { name: "its directory is renamed", change: ({ base, directory }) => sync(() => renameSync(directory, `${base}/b`)) },
  {
    name: "its directory is renamed, and another one made in its place",
    change: ({ base, directory }) =>
      sync(() => {
        renameSync(directory, `${base}/b`)
        mkdirSync(directory)
      })
  },
  { name: "the directory above is renamed", change: ({ base }) => sync(() => renameSync(`${base}/a`, `${base}/b`)) },
  { name: "a filesystem is mounted over its directory", change: mountedOver },
  {
    name: "a link on the way leads elsewhere",
    prepare: ({ base }) =>
      sync(() => {
        mkdirSync(`${base}/real/cache`, { recursive: true })
        mkdirSync(`${base}/other/cache`, { recursive: true })
        symlinkSync("real", `${base}/a`)
      }),
    change: ({ base }) =>
      sync(() => {
        unlinkSync(`${base}/a`)
        symlinkSync("other", `${base}/a`)
      })
  },
  {
    name: "its filesystem is unmounted lazily",
    prepare: (place) =>
      Effect.zipRight(
        sync(() => mkdirSync(place.directory, { recursive: true })),
        Effect.acquireRelease(
          command("mount", "--bind", place.base, place.directory),
          () => Effect.catchAllCause(command("umount", "--lazy", place.directory), () => Effect.void)
        )
      ),
    change: ({ directory }) => command("umount", "--lazy", directory)
  }
]

/** Does something once, as a part of the first call of a kind: between the creation of a file and what follows. */
const atFirst = (kernel: Syscalls, something: Effect.Effect<unknown>): Syscalls => {
  let done = false
  return {
    ...kernel,
    fcntlSetLock: (fd) =>
      Effect.suspend(() => {
        if (done) return kernel.fcntlSetLock(fd)
        done = true
        return Effect.zipRight(something, kernel.fcntlSetLock(fd))
      })
  }
}

/** The names in a directory that is open, wherever it is. */
const namesIn = (fd: number) => readdirSync(`/proc/self/fd/${fd}`).filter((name) => name.startsWith("dynamo-"))

const held = (path: string) => Effect.acquireRelease(sync(() => openSync(path, "r")), (fd) => sync(() => closeSync(fd)))

const place = Effect.map(freshPath, (base): Place => {
  mkdirSync(base)
  return { base, directory: `${base}/a/cache` }
})

const prepared = ({ prepare }: Change, here: Place) =>
  Effect.zipRight(
    prepare === undefined ? sync(() => mkdirSync(here.directory, { recursive: true })) : prepare(here),
    held(here.directory)
  )

const ways = {
  "release": (storage: DiskStorage.DiskStorage) => storage.close,
  "storage.unlink": (storage: DiskStorage.DiskStorage) =>
    Effect.gen(function*() {
      yield* storage.unlink
      assert.isTrue(yield* storage.unlinked)
      yield* storage.close
    })
}

for (const kind of ["ext4", "xfs", "btrfs", "overlay", "tmpfs"] as const) {
  describeReal(kind, { name: "a storage of which" }, (it) => {
    for (const change of changes) {
      for (const [way, end] of Object.entries(ways)) {
        it.scoped(`${change.name} leaves nothing: ${way}`, () =>
          Effect.gen(function*() {
            const { directory: mount } = yield* Mounted
            const before = yield* settledFreeBytes(mount)
            const here = yield* place
            const directory = yield* prepared(change, here)
            const storage = yield* DiskStorage.make({ size, directory: here.directory, directIo: "preferred" })
            assert.strictEqual(dirname(storage.path), here.directory)
            assert.deepStrictEqual(namesIn(directory), [basename(storage.path)])
            yield* change.change(here)
            yield* end(storage)
            assert.deepStrictEqual(namesIn(directory), [])
            assert.isTrue(yield* storage.unlinked)
            assert.deepStrictEqual(openBelow(mount).filter((path) => path.includes("/dynamo-")), [])
            yield* assertGivenBack(mount, before)
          }))
      }

      it.scoped(`${change.name} leaves nothing: an early unlink`, () =>
        Effect.gen(function*() {
          const { directory: mount } = yield* Mounted
          const kernel = yield* Syscalls
          const here = yield* place
          const directory = yield* prepared(change, here)
          const changing = Effect.provideService(change.change(here), Scope.Scope, yield* Effect.scope)
          let names: ReadonlyArray<string> = []
          const looking = Effect.zipRight(changing, sync(() => names = namesIn(directory)))
          const storage = yield* DiskStorage.make({
            size,
            directory: here.directory,
            directIo: "preferred",
            openStrategy: "open-direct",
            earlyUnlink: true,
            sweep: false
          }).pipe(Effect.provideService(Syscalls, atFirst(kernel, looking)))
          assert.lengthOf(names, 1)
          assert.isTrue(yield* storage.unlinked)
          assert.deepStrictEqual(namesIn(directory), [])
          yield* storage.close
          assert.deepStrictEqual(openBelow(mount).filter((path) => path.includes("/dynamo-")), [])
        }))
    }
  })
}

const failing: ReadonlyArray<{
  readonly name: string
  /** Makes a link that remains, and gives its path. */
  readonly make: (path: string, here: Place) => string
  /** Another file has the name, and is not touched. */
  readonly replaced?: boolean
}> = [
  {
    name: "a hard link is made",
    make: (path, { base }) => {
      linkSync(path, `${base}/link`)
      return `${base}/link`
    }
  },
  {
    name: "the file is moved away and the directory removed",
    make: (path, { base, directory }) => {
      renameSync(path, `${base}/moved`)
      rmdirSync(directory)
      return `${base}/moved`
    }
  },
  {
    name: "the file is moved away and another one put in its place",
    make: (path, { base }) => {
      renameSync(path, `${base}/moved`)
      writeFileSync(path, "somebody else's")
      return `${base}/moved`
    },
    replaced: true
  }
]

const expected = (kind: Kind, link: string, ino: number, moved: boolean) => ({
  step: "unlink",
  inode: BigInt(ino),
  links: 1,
  // Only a name that was changed is known; an overlay shows it as any other does.
  path: moved ? link : undefined,
  kind
})

for (const kind of ["ext4", "xfs", "btrfs", "overlay", "tmpfs"] as const) {
  describeReal(kind, { name: "a link that somebody else has made, where" }, (it) => {
    for (const { make, name, replaced = false } of failing) {
      const assertUntouched = (path: string) =>
        replaced ? assert.strictEqual(readFileSync(path, "utf8"), "somebody else's") : assert.isFalse(existsSync(path))

      it.scoped(`${name}, is told by the release`, () =>
        Effect.gen(function*() {
          const { directory: mount } = yield* Mounted
          const here = yield* place
          const storage = yield* DiskStorage.make({ size, directory: here.directory, directIo: "preferred" })
          const { ino, size: bytes } = statSync(storage.path)
          const link = make(storage.path, here)
          const failure = yield* Effect.flip(storage.close)
          assert.strictEqual(failure._tag, "ReleaseFailed")
          const [told, ...others] = failure.failures
          assert.deepStrictEqual(others, [])
          if (told === undefined || !("remaining" in told)) return assert.fail(failure.message)
          const { inode, links, path, size: left } = told.remaining
          const want = expected(kind, link, ino, link.endsWith("moved"))
          assert.deepStrictEqual({ step: told.step, inode, links, path, kind }, want)
          assert.strictEqual(left, bytes)
          assert.include(failure.message, `-xdev -inum ${ino}`)
          const found = yield* command("find", mount, "-xdev", "-inum", String(ino))
          assert.strictEqual(found.trim(), link)
          assert.isFalse(yield* storage.unlinked)
          assertUntouched(storage.path)
          assert.deepStrictEqual(openBelow(mount), [])
          rmSync(link)
        }))

      it.scoped(`${name}, is told by storage.unlink, which can be repeated`, () =>
        Effect.gen(function*() {
          const { directory: mount } = yield* Mounted
          const here = yield* place
          const storage = yield* DiskStorage.make({ size, directory: here.directory, directIo: "preferred" })
          const { ino } = statSync(storage.path)
          const link = make(storage.path, here)
          for (let times = 0; times < 2; times++) {
            const failure = yield* Effect.flip(storage.unlink)
            if (failure._tag !== "UnlinkFailed") return assert.fail(failure.message)
            assert.strictEqual(failure.remaining?.inode, BigInt(ino))
            assert.include(failure.message, `-xdev -inum ${ino}`)
            assert.isFalse(yield* storage.unlinked)
          }
          assertUntouched(storage.path)
          rmSync(link)
          yield* storage.unlink
          assert.isTrue(yield* storage.unlinked)
          yield* storage.close
          assertUntouched(storage.path)
          assert.deepStrictEqual(openBelow(mount), [])
        }))
    }

    it.scoped("fails an acquisition that unlinks early", () =>
      Effect.gen(function*() {
        const { directory: mount } = yield* Mounted
        const here = yield* place
        mkdirSync(here.directory, { recursive: true })
        const kernel = yield* Syscalls
        const linking = sync(() => {
          const [name = ""] = readdirSync(here.directory)
          linkSync(join(here.directory, name), `${here.base}/link`)
        })
        const failure = yield* Effect.flip(
          DiskStorage.make({
            size,
            directory: here.directory,
            directIo: "preferred",
            earlyUnlink: true,
            sweep: false
          }).pipe(
            Effect.provideService(Syscalls, atFirst(kernel, linking))
          )
        )
        if (failure._tag !== "CreateFailed") return assert.fail(failure.message)
        assert.strictEqual(failure.step, "early unlink")
        assert.strictEqual(failure.remaining?.inode, BigInt(statSync(`${here.base}/link`).ino))
        assert.include(failure.message, "-xdev -inum")
        assert.deepStrictEqual(openBelow(mount), [])
      }))

    it.scoped("and of a storage that was kept, its own link is none of these", () =>
      Effect.gen(function*() {
        const here = yield* place
        const keepAt = `${here.directory}/kept`
        const storage = yield* DiskStorage.make({ size, directory: here.directory, directIo: "preferred", keepAt })
        yield* storage.keep
        yield* storage.close
        assert.isFalse(yield* storage.unlinked)
        assert.deepStrictEqual(readdirSync(here.directory), ["kept"])
      }))

    it.scoped("is told by a sweep, whose file keeps its space", () =>
      Effect.gen(function*() {
        const here = yield* place
        mkdirSync(here.directory, { recursive: true })
        const path = join(here.directory, "dynamo-kvbm-disk-cache-eds-abcdef")
        writeFileSync(path, new Uint8Array(size))
        linkSync(path, `${here.base}/link`)
        const { files } = yield* DiskStorage.sweep(here.directory)
        assert.deepStrictEqual(files.map(({ outcome }) => outcome), ["left"])
        assert.include(files[0]?.reason, `inode ${statSync(`${here.base}/link`).ino} has another link`)
        assert.deepStrictEqual(readdirSync(here.directory), [])
      }))

    it.scoped("or a directory that was renamed, is no place to keep a storage at", () =>
      Effect.gen(function*() {
        const here = yield* place
        const keepAt = `${here.directory}/kept`
        const options = { size, directory: here.directory, directIo: "preferred", keepAt } as const
        const linked = yield* DiskStorage.make(options)
        linkSync(linked.path, `${here.base}/link`)
        assert.deepInclude(yield* Effect.flip(linked.keep), { _tag: "KeepFailed", reason: "linked elsewhere" })
        rmSync(`${here.base}/link`)
        yield* linked.close
        const moved = yield* DiskStorage.make(options)
        renameSync(here.directory, `${here.base}/b`)
        assert.deepInclude(yield* Effect.flip(moved.keep), { _tag: "KeepFailed", reason: "moved" })
        yield* moved.close
        assert.deepStrictEqual(readdirSync(`${here.base}/b`), [])
      }))

    it.scoped("a file that was taken up and not used gets its name back in a directory that was renamed", () =>
      Effect.gen(function*() {
        const here = yield* place
        const keepAt = `${here.directory}/kept`
        const options = { size, directory: here.directory, directIo: "preferred", keepAt } as const
        yield* Effect.scoped(Effect.flatMap(DiskStorage.make(options), (storage) => storage.keep))
        const kernel = yield* Syscalls
        // The label is erased last.
        const failing: Syscalls = {
          ...kernel,
          fstatfs: (fd) =>
            existsSync(keepAt) || existsSync(`${here.base}/b`)
              ? kernel.fstatfs(fd)
              : Effect.zipRight(sync(() => renameSync(here.directory, `${here.base}/b`)), kernel.fstatfs(fd)),
          fcntlGetFlags: () => Effect.interrupt
        }
        yield* Effect.exit(Effect.scoped(Effect.provideService(DiskStorage.make(options), Syscalls, failing)))
        assert.deepStrictEqual(readdirSync(`${here.base}/b`), ["kept"])
      }))
  })
}

for (const [how, options] of [["renames what is open", []], ["removes what is open", ["-o", "hard_remove"]]] as const) {
  describeReal("ext4", { name: `FUSE that ${how}`, tools: ["bindfs"] }, (it) => {
    const withStorage = (
      use: (storage: DiskStorage.DiskStorage, cache: string, below: string) => Effect.Effect<void, unknown>
    ) =>
      Effect.gen(function*() {
        const { base } = yield* place
        const [below, mount] = [`${base}/below`, `${base}/mount`]
        mkdirSync(`${below}/cache`, { recursive: true })
        mkdirSync(mount)
        yield* Effect.acquireRelease(command("bindfs", ...options, below, mount), () => command("umount", mount))
        yield* Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size, directory: `${mount}/cache`, directIo: "preferred" })
          assert.strictEqual(storage.filesystem.name, "fuse")
          yield* use(storage, `${mount}/cache`, below)
        }))
        assert.deepStrictEqual(openBelow(base), [])
        assert.deepStrictEqual(readdirSync(`${below}/cache`), [])
      })

    it.scoped("a release and storage.unlink fail with nothing", () =>
      Effect.gen(function*() {
        yield* withStorage((storage) =>
          Effect.zipRight(storage.close, Effect.map(storage.unlinked, (unlinked) => assert.isTrue(unlinked)))
        )
        yield* withStorage((storage, cache) =>
          Effect.gen(function*() {
            yield* storage.unlink
            assert.isTrue(yield* storage.unlinked)
            assert.isFalse(existsSync(storage.path))
            assert.strictEqual(
              readdirSync(cache).filter((name) => name.startsWith(".fuse_hidden")).length,
              how === "renames what is open" ? 1 : 0
            )
            yield* storage.close
          })
        )
      }))

    it.scoped("a directory that was renamed is left empty", () =>
      withStorage((storage, cache) =>
        Effect.gen(function*() {
          renameSync(cache, `${cache}-moved`)
          mkdirSync(cache)
          yield* storage.close
          assert.deepStrictEqual(readdirSync(`${cache}-moved`), [])
        })
      ))

    it.scoped("a hard link that was made before is told", () =>
      withStorage((storage, _, below) =>
        Effect.gen(function*() {
          linkSync(storage.path, `${dirname(dirname(storage.path))}/link`)
          const failure = yield* Effect.flip(storage.close)
          assert.strictEqual(failure._tag, "ReleaseFailed")
          assert.include(failure.message, "still has a link elsewhere")
          assert.isTrue(existsSync(`${below}/link`))
        })
      ))

    it.scoped("of a file that was moved away nothing is claimed", () =>
      withStorage((storage, _, below) =>
        Effect.gen(function*() {
          renameSync(storage.path, `${dirname(dirname(storage.path))}/moved`)
          yield* storage.unlink
          assert.isFalse(yield* storage.unlinked)
          yield* storage.close
          assert.isTrue(existsSync(`${below}/moved`))
        })
      ))
  })
}
