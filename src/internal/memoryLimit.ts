/**
 * How much memory a file on a memory-backed filesystem may take. Its pages are charged to the memory cgroups of the process that
 * allocates them, and fallocate above a limit is no error: the kernel kills the process. The limits are read before, from the cgroup
 * v1 and v2 hierarchies that this mount namespace shows, and from /proc/meminfo.
 *
 * A file that is missing, empty or malformed restricts nothing, and an unknown usage counts as 0: a limit that is not known to be
 * exceeded refuses nothing. Swap does not count.
 */
import * as Effect from "effect/Effect"
import type { Statx, SyscallError, Syscalls } from "../Syscalls.js"
import { isMemoryBacked, OVERLAY } from "./filesystems.js"

/** A limit, all in bytes. */
export interface MemoryLimit {
  /** The cgroup's directory, or /proc/meminfo for the memory of the machine. */
  readonly path: string
  readonly limit: number
  readonly usage: number
  /** What the kernel can take back of `usage`: pages of files that are not in active use. */
  readonly reclaimable: number
  /** What is left: `limit` − `usage` + `reclaimable`, and at least 0. */
  readonly available: number
}

/** The longest of these files that is read; mountinfo of a busy host has some hundred KiB. */
const maxBytes = 4 * 1024 * 1024
const chunkBytes = 64 * 1024
/** The deepest cgroup that is looked at; systemd and Kubernetes nest about ten. */
const maxDepth = 64

/** The content of a file of /proc or /sys, whose size says nothing; empty where it cannot be read. */
const read = (syscalls: Syscalls, path: string): Effect.Effect<string> => {
  const chunks: Array<Uint8Array> = []
  const from = (fd: number, offset: number): Effect.Effect<string, SyscallError> =>
    Effect.suspend(() => {
      const chunk = new Uint8Array(chunkBytes)
      return Effect.flatMap(syscalls.pread(fd, chunk, offset), (bytes) => {
        if (bytes > 0) chunks.push(chunk.subarray(0, bytes))
        return bytes > 0 && offset + bytes < maxBytes
          ? from(fd, offset + bytes)
          : Effect.succeed(textOf(chunks, offset + bytes))
      })
    })
  return Effect.acquireUseRelease(
    syscalls.open(path, syscalls.flags.O_CLOEXEC),
    (fd) => from(fd, 0),
    (fd) => Effect.ignore(syscalls.close(fd))
  ).pipe(Effect.orElseSucceed(() => ""))
}

const textOf = (chunks: ReadonlyArray<Uint8Array>, length: number): string => {
  const all = new Uint8Array(length)
  let at = 0
  for (const chunk of chunks) {
    all.set(chunk, at)
    at += chunk.byteLength
  }
  return new TextDecoder().decode(all)
}

/** Bytes; undefined for "max", for the largest number of v1 (2⁶³ less a page), which means none too, and for anything else. */
const bytesOf = (text: string | undefined): number | undefined => {
  const trimmed = text?.trim() ?? ""
  const bytes = /^\d+$/.test(trimmed) ? Number(trimmed) : NaN
  return Number.isSafeInteger(bytes) ? bytes : undefined
}

/** A line "name 123" of memory.stat. */
const statOf = (stat: string, name: string): number | undefined =>
  bytesOf(new RegExp(`^${name} (\\d+)$`, "m").exec(stat)?.[1])

/** A mount as proc_pid_mountinfo(5) has it. */
interface Mount {
  readonly id: number
  readonly root: string
  readonly path: string
  readonly type: string
  readonly options: string
}

/** Spaces and the like are octal there. */
const unescaped = (text: string) =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)))

const mountsOf = (mountinfo: string): ReadonlyArray<Mount> =>
  mountinfo.split("\n").flatMap((line) => {
    const [before = "", after] = line.split(" - ")
    const [id, , , root, path] = before.split(" ")
    const [type, , options] = after?.split(" ") ?? []
    return root === undefined || path === undefined || type === undefined || options === undefined
      ? []
      : [{ id: Number(id), root: unescaped(root), path: unescaped(path), type, options }]
  })

type Version = "v1" | "v2"

/** The cgroup of this process in the hierarchy of the memory controller, by version. */
const ownOf = (cgroup: string): { readonly [version in Version]: string | undefined } => {
  const lines = cgroup.split("\n").map((line) => /^(\d+):([^:]*):(\/.*)$/.exec(line))
  const find = (is: (id: string, controllers: string) => boolean) =>
    lines.find((line) => line !== null && is(line[1] ?? "", line[2] ?? ""))?.[3]
  return {
    v1: find((_, controllers) => controllers.split(",").includes("memory")),
    v2: find((id, controllers) => id === "0" && controllers === "")
  }
}

const parts = (path: string) => path.split("/").filter((part) => part !== "")

/**
 * Where `own` lies below a mount of its hierarchy that shows `root` and what is below it; undefined where it does not show the cgroup.
 * Both are relative to the root of the cgroup namespace. Above that there is only "..", as many as levels: such a root is an ancestor,
 * and the names below it are not known.
 */
export const belowMount = (root: string, own: string): ReadonlyArray<string> | undefined => {
  const [above, names] = [parts(root), parts(own)]
  if (above.length > 0 && above.every((part) => part === "..") && names[0] !== "..") return []
  return above.every((part, index) => names[index] === part) && names[above.length] !== ".."
    ? names.slice(above.length)
    : undefined
}

/** `path`: its directory. `own`: it is this process' own, and no ancestor of that. `top`: no ancestor of it is visible. */
interface Cgroup {
  readonly path: string
  readonly version: Version
  readonly own: boolean
  readonly top: boolean
}

/** Directories of the cgroups that limit this process, each hierarchy from the mount's root down to its own. */
export const cgroupsOf = (
  cgroup: string,
  mountinfo: string
): ReadonlyArray<Cgroup> => {
  const own = ownOf(cgroup)
  const found = new Map<string, Cgroup>()
  for (const { options, path, root, type } of mountsOf(mountinfo)) {
    const version = type === "cgroup2"
      ? "v2"
      : type === "cgroup" && options.split(",").includes("memory")
      ? "v1"
      : undefined
    const names = version && own[version] !== undefined ? belowMount(root, own[version]) : undefined
    if (version === undefined || names === undefined) continue
    for (let depth = 0; depth <= Math.min(names.length, maxDepth); depth++) {
      const directory = [path === "/" ? "" : path, ...names.slice(0, depth)].join("/")
      found.set(directory, { path: directory, version, own: depth === names.length, top: depth === 0 })
    }
  }
  return [...found.values()]
}

const limitOf = (path: string, limit: number | undefined, usage = 0, reclaimable = usage): MemoryLimit | undefined =>
  limit === undefined
    ? undefined
    : { path, limit, usage, reclaimable, available: Math.max(0, limit - usage + Math.min(usage, reclaimable)) }

/** Page cache of files, which the kernel takes back before it kills: the inactive pages first, then the active ones. */
const cachedIn = (stat: string, prefix: string): number | undefined => {
  const [inactive, active] = [statOf(stat, `${prefix}inactive_file`), statOf(stat, `${prefix}active_file`)]
  return inactive === undefined && active === undefined ? undefined : (inactive ?? 0) + (active ?? 0)
}

const smaller = (one: number | undefined, other: number | undefined) =>
  one === undefined || other === undefined ? one ?? other : Math.min(one, other)

const limitOfCgroup = (
  syscalls: Syscalls,
  { own, path, top, version }: Cgroup
): Effect.Effect<MemoryLimit | undefined> =>
  Effect.gen(function*() {
    if (version === "v2") {
      const limit = bytesOf(yield* read(syscalls, `${path}/memory.max`))
      if (limit === undefined) return undefined
      const usage = bytesOf(yield* read(syscalls, `${path}/memory.current`))
      return limitOf(path, limit, usage, cachedIn(yield* read(syscalls, `${path}/memory.stat`), ""))
    }
    const stat = yield* read(syscalls, `${path}/memory.stat`)
    // That of an ancestor that is not visible bounds the topmost one, too; the counts of the others lag behind each other.
    const limit = smaller(
      bytesOf(yield* read(syscalls, `${path}/memory.limit_in_bytes`)),
      top ? statOf(stat, "hierarchical_memory_limit") : undefined
    )
    if (limit === undefined) return undefined
    // Before Linux 5.11 a cgroup may leave those below it alone.
    if (!own && (yield* read(syscalls, `${path}/memory.use_hierarchy`)).trim() === "0") return undefined
    const usage = bytesOf(yield* read(syscalls, `${path}/memory.usage_in_bytes`))
    return limitOf(path, limit, usage, cachedIn(stat, "total_") ?? cachedIn(stat, ""))
  })

/** The memory of the machine, with its free swap, to which the pages of tmpfs can go. */
const machine = (syscalls: Syscalls): Effect.Effect<MemoryLimit | undefined> =>
  Effect.map(read(syscalls, "/proc/meminfo"), (meminfo) => {
    const field = (name: string) => {
      const kibibytes = bytesOf(new RegExp(`^${name}:\\s*(\\d+) kB$`, "m").exec(meminfo)?.[1])
      return kibibytes === undefined ? undefined : kibibytes * 1024
    }
    const [memory, available, swap = 0] = [field("MemTotal"), field("MemAvailable"), field("SwapFree")]
    return memory === undefined || available === undefined
      ? undefined
      : limitOf("/proc/meminfo", memory + swap, Math.max(0, memory - available), 0)
  })

/** The tightest limit of all: the outermost one, where several leave the same. */
export const tightest = (syscalls: Syscalls): Effect.Effect<MemoryLimit | undefined> =>
  Effect.gen(function*() {
    const cgroups = cgroupsOf(
      yield* read(syscalls, "/proc/self/cgroup"),
      yield* read(syscalls, "/proc/self/mountinfo")
    )
    const limits = yield* Effect.forEach(cgroups, (cgroup) => limitOfCgroup(syscalls, cgroup))
    return [...limits, yield* machine(syscalls)].reduce(
      (tightest, limit) =>
        limit !== undefined && (tightest === undefined || limit.available < tightest.available) ? limit : tightest,
      undefined
    )
  })

/** The upper directory of an overlay, as its mount names it; it may not be visible here. */
const upperOf = (mountinfo: string, mountId: number): string | undefined => {
  const options = mountsOf(mountinfo).find(({ id, type }) => id === mountId && type === "overlay")?.options ?? ""
  // A comma in a path is octal here; in what that gives, a backslash still stands before it.
  const upper = unescaped(/(?:^|,)upperdir=([^,]*)/.exec(options)?.[1] ?? "").replace(/\\(.)/g, "$1")
  return upper.startsWith("/") ? upper : undefined
}

/**
 * Whether the pages of a file are its only place. An overlay has the pages of its upper directory: memory has no alignment for direct
 * I/O to answer with, so that only one without is looked at.
 */
export const isInMemory = (
  syscalls: Syscalls,
  type: number,
  { directIo, mountId }: Pick<Statx, "directIo" | "mountId">
): Effect.Effect<boolean> =>
  Effect.gen(function*() {
    if (isMemoryBacked(type)) return true
    if (type !== OVERLAY || directIo !== undefined || mountId === undefined) return false
    const upper = upperOf(yield* read(syscalls, "/proc/self/mountinfo"), mountId)
    if (upper === undefined) return false
    const { O_CLOEXEC, O_PATH } = syscalls.flags
    return yield* Effect.acquireUseRelease(
      syscalls.open(upper, O_PATH | O_CLOEXEC),
      (fd) => Effect.map(syscalls.fstatfs(fd), (statfs) => isMemoryBacked(statfs.type)),
      (fd) => Effect.ignore(syscalls.close(fd))
    ).pipe(Effect.orElseSucceed(() => false))
  })

/** Bytes of memory that a file of so many takes: the kernel's index of its pages is below 1/256 of them (`struct xa_node`). */
export const memoryOf = (bytes: number): number => bytes + Math.ceil(bytes / 256)
