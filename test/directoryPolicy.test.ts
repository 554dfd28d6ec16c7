/** Which directories a storage is made in, on a simulated kernel: every rule, and every call of the look. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as DiskStorage from "../src/DiskStorage.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import { errnosBySyscall } from "../src/Syscalls.js"
import { history, layer } from "./support/simulation.js"

const size = 8192
const [us, root, other, nobody] = [1000, 0, 2000, 65_534]

const open = 0o777
const sticky = 0o1777

interface Case {
  readonly directory: string
  readonly directories?: SimulatedSyscalls.SimulatedOptions["directories"]
  readonly links?: SimulatedSyscalls.SimulatedOptions["links"]
  /** Default `us`. */
  readonly uid?: number
}

const tmp = { path: "/tmp", mode: sticky }
const link = (uid: number, path: string, target: string) => ({ path, target, uid })

/** What the kernel of a case says of an acquisition. */
const tried = ({ directories = [], directory, links = [], uid = us }: Case, trustDirectory = false) =>
  Effect.gen(function*() {
    const kernel = yield* SimulatedSyscalls.SimulatedKernel
    const exit = yield* Effect.exit(Effect.scoped(DiskStorage.make({ size, directory, trustDirectory })))
    assert.deepStrictEqual(yield* kernel.leaks, { fds: [], files: [], bytes: 0, mappings: 0 })
    return { exit, journal: yield* kernel.journal }
  }).pipe(Effect.provide(layer({ directories: [tmp, ...directories], links, uid })))

const chain = (length: number) => [
  ...Array.from({ length }, (_, index) => link(root, `/link${index}`, `/link${index + 1}`)),
  link(root, `/link${length}`, "/mnt/nvme")
]

const nvme = { path: "/mnt/nvme", mode: 0o700, uid: us }

const used: Record<string, Case> = {
  "a sticky directory for everybody": { directory: "/tmp/" },
  "one without a slash at its end": { directory: "/tmp" },
  "one with more slashes and dots than it needs": { directory: "//tmp/.///" },
  "one of root that everybody may read": { directory: "/cache", directories: ["/cache"] },
  "one that its group may write, as volumes are given": {
    directory: "/cache",
    directories: [{ path: "/cache", mode: 0o2775 }]
  },
  "one of another user that only they may write": {
    directory: "/cache",
    directories: [{ path: "/cache", mode: 0o755, uid: other }]
  },
  "one of ours in a sticky directory": { directory: "/tmp/a", directories: [{ path: "/tmp/a", mode: 0o700, uid: us }] },
  "one of root in a sticky directory": { directory: "/tmp/a", directories: ["/tmp/a"] },
  "one that is made in a sticky directory": { directory: "/tmp/a/b/c" },
  "one that is made in a directory for everybody": {
    directory: "/cache/kv",
    directories: [{ path: "/cache", mode: open }]
  },
  "a link of root to a disk": {
    directory: "/cache",
    directories: [nvme],
    links: [link(root, "/cache", "/mnt/nvme")]
  },
  "a link of another user where only they may write": {
    directory: "/home/bob/cache",
    directories: [{ path: "/home/bob", mode: 0o755, uid: other }, nvme],
    links: [link(other, "/home/bob/cache", "/mnt/nvme")]
  },
  "a link of ours in a sticky directory": {
    directory: "/tmp/cache/",
    directories: [nvme],
    links: [link(us, "/tmp/cache", "../mnt/./nvme")]
  },
  "a link of root in a sticky directory": {
    directory: "/tmp/cache",
    directories: [nvme],
    links: [link(root, "/tmp/cache", "/mnt/nvme")]
  },
  "a link of a sticky directory's owner": {
    directory: "/shared/cache",
    directories: [{ path: "/shared", mode: sticky, uid: other }, nvme],
    links: [link(other, "/shared/cache", "/mnt/nvme")]
  },
  "what is made behind a link": {
    directory: "/cache/a/b",
    directories: [nvme],
    links: [link(root, "/cache", "/mnt/nvme")]
  },
  "as many links as the kernel follows": { directory: "/link0", directories: [nvme], links: chain(39) }
}

/** With the reason, and the part of the path that it is about. */
const refused: Record<string, readonly ["writable" | "foreign", string, Case]> = {
  "a directory for everybody that is not sticky": [
    "writable",
    "/cache",
    { directory: "/cache/", directories: [{ path: "/cache", mode: open }] }
  ],
  "one of ours": ["writable", "/cache", {
    directory: "/cache",
    directories: [{ path: "/cache", mode: 0o702, uid: us }]
  }],
  "one behind a link": ["writable", "/mnt/open", {
    directory: "/cache",
    directories: [{ path: "/mnt/open", mode: open }],
    links: [link(root, "/cache", "/mnt/open")]
  }],
  "a link of another user in a sticky directory": ["foreign", "/tmp/cache", {
    directory: "/tmp/cache",
    directories: [nvme],
    links: [link(other, "/tmp/cache", "/mnt/nvme")]
  }],
  "for root too": ["foreign", "/tmp/cache", {
    directory: "/tmp/cache",
    directories: [nvme],
    links: [link(other, "/tmp/cache", "/mnt/nvme")],
    uid: root
  }],
  "the working directory, in one of another user": ["foreign", "/tmp/theirs", {
    directory: ".",
    directories: [{ path: "/tmp/theirs", mode: 0o755, uid: other }, "/tmp/theirs/cache", "/proc/self"],
    links: [link(root, "/proc/self/cwd", "/tmp/theirs/cache")]
  }],
  "a link of whom a user namespace does not know": ["foreign", "/pub/cache", {
    directory: "/pub/cache",
    directories: [{ path: "/pub", mode: sticky, uid: nobody }, nvme],
    links: [link(nobody, "/pub/cache", "/mnt/nvme")]
  }],
  "a link of another user in one that is not sticky": ["foreign", "/open/cache", {
    directory: "/open/cache",
    directories: [{ path: "/open", mode: open }, nvme],
    links: [link(other, "/open/cache", "/mnt/nvme")]
  }],
  "such a link in the middle of the path": ["foreign", "/tmp/a", {
    directory: "/tmp/a/nvme",
    directories: [nvme],
    links: [link(other, "/tmp/a", "/mnt")]
  }],
  "such a link in the target of another": ["foreign", "/mnt/../tmp/a", {
    directory: "/cache",
    directories: [nvme],
    links: [link(root, "/cache", "mnt/../tmp/a"), link(other, "/tmp/a", "/mnt/nvme")]
  }],
  "a directory of another user in a sticky one": ["foreign", "/tmp/a", {
    directory: "/tmp/a/b",
    directories: [{ path: "/tmp/a", mode: 0o755, uid: other }]
  }]
}

describe("a directory", () => {
  for (const [name, some] of Object.entries(used)) {
    it.effect(`is used: ${name}`, () =>
      Effect.gen(function*() {
        const { exit } = yield* tried(some)
        if (Exit.isFailure(exit)) assert.fail(Cause.pretty(exit.cause))
      }))
  }

  for (const [name, [reason, component, some]] of Object.entries(refused)) {
    it.effect(`is refused, unless it is trusted: ${name}`, () =>
      Effect.gen(function*() {
        const { exit, journal } = yield* tried(some)
        const failure = yield* Effect.flip(exit)
        if (failure._tag !== "DirectoryUnsafe") return assert.fail(failure.message)
        assert.deepStrictEqual({ ...failure }, {
          _tag: "DirectoryUnsafe",
          directory: some.directory.startsWith("/") ? some.directory : `/tmp/theirs/cache/${some.directory}`,
          component,
          reason
        })
        assert.include(failure.message, "DISK_STORAGE_TRUST_DIRECTORY=true")
        assert.notIncludeMembers(journal.map(({ syscall }) => syscall), ["mkostemp", "mkdir"])
        assert.isTrue(Exit.isSuccess((yield* tried(some, true)).exit))
      }))
  }

  it.effect("is looked at with six calls where it is /tmp", () =>
    Effect.gen(function*() {
      const { journal } = yield* tried({ directory: "/tmp/" })
      const calls = journal.map(({ syscall }) => syscall)
      assert.deepStrictEqual(calls.slice(0, calls.indexOf("mkostemp")), [
        "open",
        "statx",
        "close",
        "open",
        "statx",
        "close",
        // Of the sweep.
        "readdir",
        // It stays open.
        "open"
      ])
    }))

  it.effect("that a link leads to is not made: its disk may not be mounted", () =>
    Effect.gen(function*() {
      for (const directory of ["/cache", "/cache/kv"]) {
        const { exit, journal } = yield* tried({
          directory,
          directories: ["/mnt"],
          links: [link(root, "/cache", "/mnt/nvme/cache")]
        })
        const failure = yield* Effect.flip(exit)
        if (failure._tag !== "DirectoryUnusable") return assert.fail(failure.message)
        assert.strictEqual(failure.cause.code, "ENOENT")
        assert.notIncludeMembers(journal.map(({ syscall }) => syscall), ["mkdir"])
      }
    }))

  it.effect("behind more links than the kernel follows, or in a circle of them, is unusable", () =>
    Effect.gen(function*() {
      const circle = [link(root, "/a", "b"), link(root, "/b", "/a")]
      for (const some of [{ directory: "/link0", links: chain(40) }, { directory: "/a/c", links: circle }]) {
        const failure = yield* Effect.flip((yield* tried({ directories: [nvme], ...some })).exit)
        if (failure._tag !== "DirectoryUnusable") return assert.fail(failure.message)
        assert.strictEqual(failure.cause.code, "ELOOP")
      }
    }))

  it.effect("that somebody else makes at the same time is looked at", () =>
    Effect.gen(function*() {
      const kernel = yield* SimulatedSyscalls.SimulatedKernel
      // It was not there for the look, and is for mkdir.
      yield* kernel.inject({ syscall: "open", nth: 3, outcome: { _tag: "Fail", code: "ENOENT" } })
      const failure = yield* Effect.flip(Effect.scoped(DiskStorage.make({ size, directory: "/tmp/a" })))
      assert.strictEqual(failure._tag, "DirectoryUnsafe")
    }).pipe(Effect.provide(layer({ directories: [tmp, { path: "/tmp/a", mode: open, uid: us }] }))))

  it.effect("that is no directory is unusable", () =>
    Effect.gen(function*() {
      for (const directory of ["/tmp/file", "/tmp/file/kv"]) {
        const failure = yield* Effect.flip(Effect.scoped(DiskStorage.make({ size, directory })))
        if (failure._tag !== "DirectoryUnusable") return assert.fail(failure.message)
        assert.strictEqual(failure.cause.code, "ENOTDIR")
      }
    }).pipe(Effect.provide(layer({ files: ["/tmp/file"] }))))
})

describe("a look at a directory", () => {
  /** A link, its target, and what is made behind it. */
  const kernel = { directories: [tmp, nvme], links: [link(us, "/tmp/cache", "/mnt/nvme")] }
  const options = { size, directory: "/tmp/cache/a/b", sweep: false }

  const looked = Effect.map(history(kernel, options), ({ exit, journal }) => {
    assert.isTrue(Exit.isSuccess(exit))
    // The last one opens the directory for the file, and is a part of its creation.
    return journal.slice(0, journal.findIndex(({ syscall }) => syscall === "mkostemp") - 1)
  })

  it.effect("leaves nothing, whatever call of it fails", () =>
    Effect.gen(function*() {
      const calls = yield* looked
      assert.includeMembers(calls.map(({ syscall }) => syscall), ["open", "statx", "close", "readlink", "mkdir"])
      for (const { call, syscall } of calls) {
        for (const code of errnosBySyscall[syscall]) {
          const { exit, leaks } = yield* history(kernel, options, {
            faults: [{ nth: call, outcome: { _tag: "Fail", code } }]
          })
          const what = `call ${call}, ${syscall}: ${code}`
          assert.deepStrictEqual(leaks, { fds: [], files: [], bytes: 0, mappings: 0 }, what)
          if (Exit.isSuccess(exit)) {
            // It is there, or is made; a directory that cannot be listed is not swept.
            assert.isTrue(syscall === "readdir" || ["EINTR", "ENOENT", "EEXIST"].includes(code), `${what}: succeeded`)
            continue
          }
          assert.deepStrictEqual(Exit.isFailure(exit) && [...Cause.defects(exit.cause)], [], what)
        }
      }
    }))

  it.effect("leaves nothing when it is interrupted at any call", () =>
    Effect.gen(function*() {
      for (const { call } of yield* looked) {
        for (const when of ["before", "during", "after"] as const) {
          const { exit, journal, leaks } = yield* history(kernel, options, { interruption: { call, when } })
          assert.isTrue(Exit.isInterrupted(exit), `${when} call ${call}`)
          assert.deepStrictEqual(leaks, { fds: [], files: [], bytes: 0, mappings: 0 }, `${when} call ${call}`)
          assert.notIncludeMembers(journal.map(({ syscall }) => syscall), ["mkostemp"])
        }
      }
    }))
})
