/** Limits on memory are found before a file on a memory-backed filesystem is allocated: the kernel would kill the process instead. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import * as DiskStorage from "../src/DiskStorage.js"
import { belowMount, cgroupsOf, isInMemory, tightest } from "../src/internal/memoryLimit.js"
import type { SimulatedOptions } from "../src/SimulatedSyscalls.js"
import { SimulatedKernel } from "../src/SimulatedSyscalls.js"
import { errnos, SyscallError, Syscalls } from "../src/Syscalls.js"
import { startChild } from "./filesystems/children.js"
import { command } from "./filesystems/mounts.js"
import { describeReal, freshPath, Mounted } from "./filesystems/real.js"
import { layer } from "./support/simulation.js"

const mebibyte = 1024 ** 2
const none = "9223372036854771712"

/** The content of files that the simulated kernel does not have, by path. */
type Tree = { readonly [path: string]: string }

const firstFd = 100_000

/** A kernel that has these files, too. */
const withTree = (syscalls: Syscalls, tree: Tree): Syscalls => {
  const paths = Object.keys(tree)
  const contentOf = (fd: number) => tree[paths[fd - firstFd] ?? ""]
  return {
    ...syscalls,
    open: (path, flags) => {
      const index = paths.indexOf(path)
      return index === -1 ? syscalls.open(path, flags) : Effect.succeed(firstFd + index)
    },
    pread: (fd, into, offset) => {
      const content = contentOf(fd)
      if (content === undefined) return syscalls.pread(fd, into, offset)
      const rest = Buffer.from(content).subarray(offset, offset + into.byteLength)
      into.set(rest)
      return Effect.succeed(rest.byteLength)
    },
    fstatfs: (fd) =>
      contentOf(fd) === undefined
        ? syscalls.fstatfs(fd)
        : Effect.succeed({ type: 0x0102_1994, blockSize: 4096, total: 0, free: 0, available: 0 }),
    close: (fd) => contentOf(fd) === undefined ? syscalls.close(fd) : Effect.void
  }
}

const inTree = (tree: Tree, options: SimulatedOptions = {}) => <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.flatMap(Syscalls, (syscalls) => Effect.provideService(effect, Syscalls, withTree(syscalls, tree))).pipe(
    Effect.provide(layer({ profile: "tmpfs", ...options }))
  )

const mountOf = (type: string, root: string, path: string, options: string, id = 31) =>
  `${id} 30 0:28 ${root} ${path} rw,relatime shared:9 - ${type} ${type} ${options}\n`

/** The files of a cgroup of version 2. */
const v2 = (path: string, max: string | number, current: number, inactive: number, active = 0): Tree => ({
  [`${path}/memory.max`]: `${max}\n`,
  [`${path}/memory.current`]: `${current}\n`,
  [`${path}/memory.stat`]: `anon 5\nfile 6\nactive_file ${active}\ninactive_file ${inactive}\n`
})

const v1 = (path: string, limit: string | number, usage: number, inactive: number, effective = limit): Tree => ({
  [`${path}/memory.limit_in_bytes`]: `${limit}\n`,
  [`${path}/memory.usage_in_bytes`]: `${usage}\n`,
  [`${path}/memory.use_hierarchy`]: "1\n",
  [`${path}/memory.stat`]:
    `cache 1\ninactive_file 3\nactive_file 4\nhierarchical_memory_limit ${effective}\ntotal_inactive_file ${inactive}\n`
})

const tmpfsMount = "30 1 0:27 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
const meminfo = (availableBytes: number, freeSwap = 0): Tree => ({
  "/proc/meminfo": `MemTotal:       ${2 ** 30 / 1024} kB\nMemFree:  17 kB\nMemAvailable:   ${
    availableBytes / 1024
  } kB\nSwapFree: ${freeSwap / 1024} kB\n`
})

/** In a container with a cgroup namespace: its own cgroup is the root. */
const namespaced: Tree = {
  "/proc/self/cgroup": "0::/\n",
  "/proc/self/mountinfo": mountOf("cgroup2", "/", "/sys/fs/cgroup", "rw,nsdelegate"),
  ...v2("/sys/fs/cgroup", 100 * mebibyte, 60 * mebibyte, 20 * mebibyte),
  ...meminfo(900 * mebibyte)
}

/** On the host: a slice with a smaller limit than the pod in it. */
const nested: Tree = {
  "/proc/self/cgroup": "0::/kubepods.slice/pod.slice/app\n",
  "/proc/self/mountinfo": mountOf("cgroup2", "/", "/sys/fs/cgroup", "rw"),
  ...v2("/sys/fs/cgroup/kubepods.slice", 70 * mebibyte, 50 * mebibyte, 10 * mebibyte),
  ...v2("/sys/fs/cgroup/kubepods.slice/pod.slice", 100 * mebibyte, 20 * mebibyte, 0),
  ...v2("/sys/fs/cgroup/kubepods.slice/pod.slice/app", "max", 20 * mebibyte, 0)
}

/** Memory is a controller of version 1; the hierarchy of version 2 has none. */
const hybrid: Tree = {
  "/proc/self/cgroup": "9:name=systemd:/x\n4:cpu,memory:/a/b\n0::/x\n",
  "/proc/self/mountinfo": tmpfsMount + mountOf("cgroup", "/", "/sys/fs/cgroup/cpu", "rw,cpu") +
    mountOf("cgroup", "/", "/sys/fs/cgroup/memory", "rw,cpu,memory") +
    mountOf("cgroup2", "/", "/sys/fs/cgroup/unified", "rw"),
  ...v1("/sys/fs/cgroup/memory", none, 900 * mebibyte, 0),
  ...v1("/sys/fs/cgroup/memory/a", 64 * mebibyte, 50 * mebibyte, 16 * mebibyte),
  ...v1("/sys/fs/cgroup/memory/a/b", 128 * mebibyte, 48 * mebibyte, 16 * mebibyte, 64 * mebibyte)
}

/** In a container of version 1 without a namespace: the path is the host's, and the mount shows what is below it. */
const bound: Tree = {
  "/proc/self/cgroup": "4:memory:/docker/0123/inner\n",
  "/proc/self/mountinfo": mountOf("cgroup", "/docker/0123", "/sys/fs/c\\040group", "rw,memory"),
  ...v1("/sys/fs/c group", 50 * mebibyte, 10 * mebibyte, mebibyte, 41 * mebibyte),
  ...v1("/sys/fs/c group/inner", none, 5 * mebibyte, 0, 41 * mebibyte)
}

describe("the tightest limit on memory", () => {
  const limitIn = (tree: Tree) =>
    Effect.flatMap(Syscalls, tightest).pipe(inTree(tree), Effect.map((limit) => limit && [limit.path, limit.available]))

  const cases: ReadonlyArray<readonly [string, Tree, ReadonlyArray<unknown> | undefined]> = [
    ["is that of the namespace's root in version 2", namespaced, ["/sys/fs/cgroup", 60 * mebibyte]],
    ["may be a parent's", nested, ["/sys/fs/cgroup/kubepods.slice", 30 * mebibyte]],
    ["may be a parent's in version 1 beside 2", hybrid, ["/sys/fs/cgroup/memory/a", 30 * mebibyte]],
    ["may be of an ancestor that is not visible", bound, ["/sys/fs/c group", 32 * mebibyte]],
    ["is the machine's where that is tighter", { ...namespaced, ...meminfo(mebibyte) }, ["/proc/meminfo", mebibyte]],
    ["is the machine's where no cgroup has one", {
      ...namespaced,
      ...v2("/sys/fs/cgroup", "max", 1, 0)
    }, ["/proc/meminfo", 900 * mebibyte]],
    ["counts active pages of files, which the kernel takes back before it kills", {
      ...namespaced,
      ...v2("/sys/fs/cgroup", 100 * mebibyte, 90 * mebibyte, 20 * mebibyte, 50 * mebibyte)
    }, ["/sys/fs/cgroup", 80 * mebibyte]],
    ["counts free swap, to which pages in memory can go", { ...namespaced, ...meminfo(mebibyte, 4 * mebibyte) }, [
      "/proc/meminfo",
      5 * mebibyte
    ]],
    ["is 0 where the usage is above it", { ...namespaced, ...v2("/sys/fs/cgroup", 4096, 8192, 0) }, [
      "/sys/fs/cgroup",
      0
    ]],
    ["is none without cgroups and meminfo", {}, undefined],
    ["is none where memory is limited nowhere", {
      "/proc/self/cgroup": "4:memory:/a\n",
      "/proc/self/mountinfo": mountOf("cgroup", "/", "/sys/fs/cgroup/memory", "rw,memory"),
      ...v1("/sys/fs/cgroup/memory/a", none, 5, 0),
      "/proc/meminfo": "MemTotal: 5 kB\n"
    }, undefined],
    ["is not that of a cgroup that leaves those below it alone", {
      ...hybrid,
      "/sys/fs/cgroup/memory/a/memory.use_hierarchy": "0\n",
      ...v1("/sys/fs/cgroup/memory/a/b", 128 * mebibyte, 48 * mebibyte, 16 * mebibyte)
    }, ["/sys/fs/cgroup/memory/a/b", 96 * mebibyte]],
    ["counts an unknown usage as nothing", {
      "/proc/self/cgroup": "0::/\n",
      "/proc/self/mountinfo": mountOf("cgroup2", "/", "/sys/fs/cgroup", "rw"),
      "/sys/fs/cgroup/memory.max": "4096\n"
    }, ["/sys/fs/cgroup", 4096]]
  ]
  for (const [what, tree, expected] of cases) {
    it.effect(what, () => Effect.map(limitIn(tree), (limit) => assert.deepStrictEqual(limit, expected)))
  }

  it.effect("is found or not, and never a failure, whatever a file holds", () =>
    Effect.forEach(
      [namespaced, nested, hybrid, bound],
      (tree) =>
        Effect.forEach(Object.keys(tree), (path) =>
          Effect.forEach(["", "\n", "-1", "1e3", "max", "0x10", "\0\0", "  ", "12 12", "a b c d e - f"], (content) =>
            Effect.gen(function*() {
              const limit = yield* limitIn({ ...tree, [path]: content })
              const { [path]: _, ...without } = tree
              for (const found of [limit, yield* limitIn(without)]) {
                assert.isTrue(found === undefined || Number.isSafeInteger(found[1]), `${path}: ${content}`)
              }
            }), { discard: true }), { discard: true }),
      { discard: true }
    ))

  it.effect("leaves no descriptor where a call fails", () =>
    Effect.gen(function*() {
      const syscalls = yield* Syscalls
      const open = new Set<number>()
      const failing = (nth: number): Syscalls => {
        const kernel = withTree(syscalls, hybrid)
        let calls = 0
        const failure = (syscall: string) => new SyscallError({ syscall, errno: errnos.EIO, code: "EIO" })
        return {
          ...kernel,
          open: (path, flags) =>
            ++calls === nth
              ? Effect.fail(failure("open"))
              : Effect.tap(kernel.open(path, flags), (fd) => Effect.sync(() => open.add(fd))),
          pread: (fd, into, offset) => ++calls === nth ? Effect.fail(failure("pread")) : kernel.pread(fd, into, offset),
          close: (fd) => Effect.tap(kernel.close(fd), () => Effect.sync(() => open.delete(fd)))
        }
      }
      for (let nth = 1; nth < 40; nth++) {
        yield* tightest(failing(nth))
        assert.strictEqual(open.size, 0, `call ${nth}`)
      }
    }).pipe(Effect.provide(layer({ profile: "tmpfs" }))))

  it("is looked for where the mount shows the cgroup", () => {
    const places: ReadonlyArray<readonly [string, string, ReadonlyArray<string> | undefined]> = [
      ["/", "/", []],
      ["/", "/a/b", ["a", "b"]],
      ["/a", "/a/b", ["b"]],
      ["/a", "/ab", undefined],
      ["/a/b", "/a", undefined],
      ["/", "/../x", undefined],
      ["/..", "/", []],
      ["/../..", "/a", []],
      ["/../x", "/a", undefined],
      ["/..", "/../x", ["x"]]
    ]
    for (const [root, own, expected] of places) assert.deepStrictEqual(belowMount(root, own), expected, root + own)
  })
})

describe("a storage in memory", () => {
  const size = 31 * mebibyte

  for (const profile of ["tmpfs", "ramfs"] as const) {
    it.effect(`on ${profile} above a limit is refused before anything is allocated, and the limit is named`, () =>
      Effect.gen(function*() {
        const failure = yield* Effect.flip(DiskStorage.make({ size, directIo: "disabled" }))
        if (failure._tag !== "InsufficientSpace") return assert.fail(failure.message)
        assert.deepStrictEqual(failure.memory, {
          path: "/sys/fs/cgroup/memory/a",
          limit: 64 * mebibyte,
          usage: 50 * mebibyte,
          reclaimable: 16 * mebibyte
        })
        assert.deepStrictEqual([failure.needed, failure.available], [size, 30 * mebibyte])
        assert.include(failure.message, "the memory cgroup /sys/fs/cgroup/memory/a is limited to 67108864 bytes")
        const { journal, leaks } = yield* SimulatedKernel
        const calls = (yield* journal).map(({ syscall }) => syscall)
        assert.notInclude(calls, "fallocate")
        assert.notInclude(calls, "ftruncate")
        assert.deepStrictEqual(yield* leaks, { fds: [], files: [], bytes: 0, mappings: 0 })
      }).pipe(Effect.scoped, inTree(hybrid, { profile })))
  }

  it.effect("below it is made, as far as the kernel's index of its pages has room, too", () =>
    Effect.gen(function*() {
      const room = 30 * mebibyte
      yield* Effect.scoped(DiskStorage.make({ size: room - room / 128, directIo: "disabled" }))
      const failure = yield* Effect.flip(Effect.scoped(DiskStorage.make({ size: room, directIo: "disabled" })))
      assert.strictEqual(failure._tag, "InsufficientSpace")
    }).pipe(inTree(hybrid)))

  it.effect("is the only one whose limits are read", () =>
    Effect.forEach(["ext4", "btrfs", "lustre", "ext2"] as const, (profile) =>
      Effect.gen(function*() {
        yield* Effect.scoped(DiskStorage.make({ size, directIo: "disabled" }))
        const journal = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)
        assert.deepStrictEqual(journal.filter(({ path }) => path?.startsWith("/proc/") === true), [])
      }).pipe(Effect.provide(layer({ profile }))), { discard: true }))

  it.effect("is recognised below an overlay by the upper directory of its mount", () => {
    const overlay = 0x794c_7630
    const upper = (options: string) => ({
      "/proc/self/mountinfo": mountOf("overlay", "/", "/", options, 77),
      "/up,per": ""
    })
    const asked = (tree: Tree, type: number, directIo?: { memoryAlignment: number; offsetAlignment: number }) =>
      Effect.flatMap(Syscalls, (syscalls) => isInMemory(syscalls, type, { directIo, mountId: 77 })).pipe(inTree(tree))
    const inMemory = upper("rw,lowerdir=/low,upperdir=/up\\134\\054per,workdir=/work")
    return Effect.gen(function*() {
      assert.isTrue(yield* asked(inMemory, overlay))
      assert.isFalse(yield* asked(inMemory, overlay, { memoryAlignment: 512, offsetAlignment: 512 }))
      assert.isFalse(yield* asked(inMemory, 0xef53))
      assert.isFalse(yield* asked(upper("rw,lowerdir=/low"), overlay))
      assert.isFalse(yield* asked(upper("rw,upperdir=/elsewhere"), overlay))
      assert.isFalse(yield* asked({}, overlay))
    })
  })
})

/** The v1 memory cgroup of this process, or why a test cannot make one below it. */
const own = cgroupsOf(
  existsSync("/proc/self/cgroup") ? readFileSync("/proc/self/cgroup", "utf8") : "",
  existsSync("/proc/self/mountinfo") ? readFileSync("/proc/self/mountinfo", "utf8") : ""
).findLast(({ version }) => version === "v1")
const whyNoCgroup = own === undefined
  ? "this machine has no memory cgroup of version 1"
  : process.getuid?.() === 0
  ? undefined
  : "not root"

let made = 0

/**
 * Makes cgroups, the first in this process' own and each other in the one before, with these limits; gives their directories. A shell
 * removes them when its input ends, with the Scope or with this process.
 */
const nestedCgroups = (...limits: ReadonlyArray<number>): Effect.Effect<ReadonlyArray<string>, never, Scope.Scope> => {
  const directories = limits.map((_, index) =>
    join(own?.path ?? "", ...Array.from({ length: index + 1 }, (_, level) => `eds-${process.pid}-${made}-${level}`))
  )
  made += 1
  const script = `
    trap "" INT TERM HUP
    ${
    directories.map((path, index) => `mkdir ${path} && echo ${limits[index]} > ${path}/memory.limit_in_bytes`).join(
      " && "
    )
  } && echo made
    cat > /dev/null
    for path in ${[...directories].reverse().join(" ")}; do
      tries=0
      until rmdir $path; do tries=$((tries + 1)); [ $tries = 200 ] && break; sleep 0.05; done
    done`
  return Effect.acquireRelease(
    Effect.async<ReturnType<typeof spawn>>((resume) => {
      const holder = spawn("sh", ["-c", script], { detached: true, stdio: ["pipe", "pipe", "ignore"] })
      holder.stdout.on("data", () => resume(Effect.succeed(holder)))
      holder.on("close", () => resume(Effect.dieMessage("no cgroup could be made")))
    }),
    (holder) =>
      Effect.async<void>((resume) => {
        holder.on("close", () => resume(Effect.void))
        holder.stdin?.end()
      })
  ).pipe(Effect.as(directories))
}

/** Starts a command in a cgroup. */
const inCgroup = (cgroup: string) => ["sh", "-c", `echo $$ > ${cgroup}/cgroup.procs && exec "$@"`, "sh"]

describeReal("large tmpfs", { name: "a memory cgroup" }, (it) => {
  if (whyNoCgroup !== undefined) {
    it.skip(`not here: ${whyNoCgroup}`, () => Effect.void)
    return
  }

  /** Acquires a storage in a process of the innermost cgroup. */
  const acquire = (cgroups: ReadonlyArray<string>, size: number, kept?: string) =>
    Effect.gen(function*() {
      const directory = kept ?? (yield* freshPath)
      const child = yield* startChild({ directory, size, directIo: "preferred" }, [], inCgroup(cgroups.at(-1) ?? ""))
      return { child, directory, reply: yield* child.step("acquire") }
    })

  it.scoped("that is smaller than the file: InsufficientSpace, and no SIGKILL", () =>
    Effect.gen(function*() {
      const cgroups = yield* nestedCgroups(300 * mebibyte)
      const { directory, reply } = yield* acquire(cgroups, 400 * mebibyte)
      if (reply._tag !== "Failed" || reply.error._tag !== "InsufficientSpace") return assert.fail(JSON.stringify(reply))
      assert.strictEqual(reply.error.memory?.path, cgroups[0])
      assert.strictEqual(reply.error.memory?.limit, 300 * mebibyte)
      assert.isAbove(reply.error.memory?.usage ?? 0, mebibyte)
      assert.deepStrictEqual(readdirSync(directory), [])
      assert.deepStrictEqual(reply.openBelow, [])
      const fits = yield* acquire(cgroups, 64 * mebibyte)
      assert.strictEqual(fits.reply._tag, "Done")
    }))

  it.scoped("whose parent's limit is smaller than its own: the parent is named", () =>
    Effect.gen(function*() {
      const cgroups = yield* nestedCgroups(300 * mebibyte, 900 * mebibyte)
      const { reply } = yield* acquire(cgroups, 400 * mebibyte)
      if (reply._tag !== "Failed" || reply.error._tag !== "InsufficientSpace") return assert.fail(JSON.stringify(reply))
      assert.strictEqual(reply.error.memory?.path, cgroups[0])
    }))

  it.scoped("whose parent another process has filled: what that uses counts", () =>
    Effect.gen(function*() {
      const cgroups = yield* nestedCgroups(500 * mebibyte, 900 * mebibyte)
      const filled = yield* acquire(cgroups.slice(0, 1), 250 * mebibyte)
      assert.strictEqual(filled.reply._tag, "Done")
      const { reply } = yield* acquire(cgroups, 240 * mebibyte)
      if (reply._tag !== "Failed" || reply.error._tag !== "InsufficientSpace") return assert.fail(JSON.stringify(reply))
      assert.strictEqual(reply.error.memory?.path, cgroups[0])
      assert.isAbove(reply.error.memory?.usage ?? 0, 250 * mebibyte)
      yield* filled.child.step("close")
      assert.strictEqual((yield* acquire(cgroups, 240 * mebibyte)).reply._tag, "Done")
    }))

  it.scoped("that is smaller than a file on an overlay whose upper directory is here: it is refused, too", () =>
    Effect.gen(function*() {
      const cgroups = yield* nestedCgroups(300 * mebibyte)
      const below = yield* freshPath
      const [lower, upper, work, merged] = ["lower", "upp,er", "work", "merged"].map((name) => join(below, name))
      if (lower === undefined || upper === undefined || work === undefined || merged === undefined) return
      for (const path of [lower, upper, work, merged]) mkdirSync(path, { recursive: true })
      const options = `lowerdir=${lower},upperdir=${upper.replace(",", "\\,")},workdir=${work}`
      yield* Effect.acquireRelease(
        command("mount", "-t", "overlay", "-o", options, "overlay", merged),
        () => command("umount", merged)
      )
      yield* Effect.scoped(Effect.gen(function*() {
        const { reply } = yield* acquire(cgroups, 400 * mebibyte, merged)
        if (reply._tag !== "Failed" || reply.error._tag !== "InsufficientSpace") {
          return assert.fail(JSON.stringify(reply))
        }
        assert.strictEqual(reply.error.memory?.path, cgroups[0])
      }))
    }))

  it.scoped("that is full of the pages of a file on a disk: those make way", () =>
    Effect.gen(function*() {
      const [cgroup = ""] = yield* nestedCgroups(400 * mebibyte)
      const { directory } = yield* Mounted
      const file = `/var/tmp/effect-disk-storage-cached-${process.pid}`
      // Written, on the disk, and unlinked: its pages stay while a descriptor is open.
      const cached = yield* Effect.acquireRelease(
        Effect.sync(() => {
          const shell =
            `dd if=/dev/zero of=${file} bs=1M count=260 conv=fsync status=none; exec 3<${file}; rm ${file}; echo; cat`
          return spawn("sh", [...inCgroup(cgroup).slice(1), "sh", "-c", shell], { stdio: ["pipe", "pipe", "ignore"] })
        }),
        (child) =>
          Effect.async<void>((resume) => {
            child.on("close", () => resume(Effect.void))
            child.stdin.end()
          })
      )
      yield* Effect.async<void>((resume) => void cached.stdout.once("data", () => resume(Effect.void)))
      const usage = Number(readFileSync(`${cgroup}/memory.usage_in_bytes`, "utf8"))
      assert.isAbove(usage, 250 * mebibyte, "bytes of cache that are charged")
      mkdirSync(join(directory, "beside-cache"))
      const { reply } = yield* acquire([cgroup], 200 * mebibyte, join(directory, "beside-cache"))
      assert.strictEqual(reply._tag, "Done", JSON.stringify(reply))
      yield* command("sh", "-c", `test ! -e ${file}`)
    }))
})
