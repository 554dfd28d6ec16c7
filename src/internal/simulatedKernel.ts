/** The in-memory kernel: inodes, names, space, and processes with their descriptors, behind the same seam as the real one. */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import { Buffer } from "node:buffer"
import type { Fault, JournalEntry, Leaks, Profile, SimulatedKernel, SimulatedOptions } from "../SimulatedSyscalls.js"
import type { ErrnoCode, OpenFlags, Statx, SyscallName, Syscalls } from "../Syscalls.js"
import {
  errnos,
  FS_NOCOW_FL,
  POSIX_FADV_DONTNEED,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_IFREG,
  STATX_ATTR_MOUNT_ROOT
} from "../Syscalls.js"
import { fromKernel } from "./kernel.js"
import type { Kernel } from "./kernel.js"
import type { Transfer } from "./simulatedDevice.js"
import { addressAlignment } from "./slab.js"

/** How a filesystem differs from the plainest one. */
interface Filesystem {
  readonly type: number
  readonly fallocate: boolean
  readonly setDirect: "taken" | "ignored" | "refused"
  readonly openDirect: "taken" | "refused"
  /** What statx answers. */
  readonly directIo: Statx["directIo"]
  /** What a direct transfer must be a multiple of, in bytes. */
  readonly strict: { readonly memory: number; readonly offset: number }
  /** How inode flags are taken: NOCOW too, all but NOCOW, or not at all. */
  readonly inodeFlags: "nocow" | "no nocow" | "none"
  readonly copyOnWrite: boolean
  /**
   * Where transfers with O_DIRECT go: past the page cache, into it, or, writes alone, through it with their pages dropped
   * behind them, as far as nobody has them mapped.
   */
  readonly pageCache: "bypassed" | "used" | "used and dropped"
  /** Whether that holds for NOCOW files, too: where btrfs keeps data with copies or parity. */
  readonly mirrored?: boolean
  readonly fiemap: boolean
  /** Whether files have extended attributes of users. */
  readonly attributes: boolean
  /** Whether files without a name can be made. */
  readonly tmpfile: boolean
  readonly maxFileBytes: number
}

const anyAlignment = { memory: 1, offset: 1 }

const ext4: Filesystem = {
  type: 0xef53,
  fallocate: true,
  setDirect: "taken",
  openDirect: "taken",
  directIo: { memoryAlignment: 512, offsetAlignment: 512 },
  strict: { memory: 512, offset: 512 },
  inodeFlags: "no nocow",
  copyOnWrite: false,
  pageCache: "bypassed",
  fiemap: true,
  attributes: true,
  tmpfile: true,
  // 2³² − 1 blocks of 4 KiB
  maxFileBytes: 16 * 1024 ** 4 - 4096
}

const filesystems: { readonly [name in Profile]: Filesystem } = {
  ext4,
  ext2: {
    ...ext4,
    fallocate: false,
    directIo: { memoryAlignment: 512, offsetAlignment: 4096 },
    strict: { memory: 512, offset: 4096 },
    maxFileBytes: 2 * 1024 ** 4
  },
  lustre: {
    ...ext4,
    type: 0x0bd0_0bd0,
    fallocate: false,
    directIo: undefined,
    strict: { memory: 4096, offset: 4096 },
    inodeFlags: "none",
    fiemap: false,
    tmpfile: false
  },
  btrfs: {
    ...ext4,
    type: 0x9123_683e,
    directIo: undefined,
    strict: anyAlignment,
    inodeFlags: "nocow",
    copyOnWrite: true,
    pageCache: "used and dropped",
    maxFileBytes: Infinity
  },
  btrfsMirrored: {
    ...ext4,
    type: 0x9123_683e,
    directIo: undefined,
    strict: anyAlignment,
    inodeFlags: "nocow",
    copyOnWrite: true,
    pageCache: "used and dropped",
    mirrored: true,
    maxFileBytes: Infinity
  },
  tmpfs: {
    ...ext4,
    type: 0x0102_1994,
    directIo: undefined,
    strict: anyAlignment,
    pageCache: "used",
    fiemap: false,
    maxFileBytes: Infinity
  },
  ramfs: {
    ...ext4,
    type: 0x8584_58f6,
    fallocate: false,
    setDirect: "refused",
    openDirect: "refused",
    directIo: undefined,
    strict: anyAlignment,
    inodeFlags: "none",
    pageCache: "used",
    fiemap: false,
    attributes: false,
    maxFileBytes: Infinity
  },
  storageScale: {
    ...ext4,
    type: 0x4750_4653,
    setDirect: "ignored",
    directIo: undefined,
    inodeFlags: "none",
    fiemap: false,
    tmpfile: false
  },
  dataJournal: {
    ...ext4,
    directIo: { memoryAlignment: 0, offsetAlignment: 0 },
    strict: anyAlignment,
    pageCache: "used"
  }
}

const flags: OpenFlags = {
  O_RDWR: 0x2,
  O_CLOEXEC: 0x8_0000,
  O_DIRECT: 0x4000,
  O_NOFOLLOW: 0x2_0000,
  O_DIRECTORY: 0x1_0000,
  O_PATH: 0x20_0000,
  O_NONBLOCK: 0x800,
  O_TMPFILE: 0x41_0000
}
const O_ACCMODE = 0x3
const O_WRONLY = 0x1

/** Of directories that are there from the start; everybody's `/tmp` is sticky. */
const directoryPermissions = new Map([["/tmp", 0o1777]])
const defaultDirectoryPermissions = 0o755
const defaultUid = 1000
/** As in Linux, of one look-up. */
const maxLinks = 40

// uapi/linux/fiemap.h
const FIEMAP_EXTENT_LAST = 0x1
const FIEMAP_EXTENT_UNWRITTEN = 0x800
/** The most that one call gives. */
const fiemapExtents = 128

const blockBytes = 4096
const nameMax = 255
const pathMax = 4096
const firstFd = 3

const zeros = Buffer.alloc(blockBytes)

/** What a name can name; a directory has no more to it than that it is there. */
interface Inode {
  readonly inode: bigint
  /** `S_IFMT` and permissions, which are told and not enforced. */
  readonly mode: number
  readonly uid: number
  /** Of a symbolic link. */
  readonly target?: string
}

interface File extends Inode {
  /** Allocated blocks by number; `undefined` reads as zeros. */
  readonly blocks: Map<number, Uint8Array | undefined>
  /** Those of them that were written. */
  readonly written: Set<number>
  /** Those that the page cache holds; a page is as large as a block. */
  readonly cached: Set<number>
  /** Extended attributes, by name. */
  readonly attributes: Map<string, Uint8Array>
  size: number
  links: number
  descriptors: number
  inodeFlags: number
  /** Who has it locked. */
  lock: Description | undefined
}

interface Description {
  readonly file: File
  flags: number
}

interface Process {
  /** Undefined for the first one. */
  readonly id: number | undefined
  readonly uid: number
  readonly descriptions: Map<number, Description>
  readonly mappings: Map<number, { readonly file: File; readonly pages: ReadonlyArray<number> }>
  killed: boolean
}

/** Without the timer of `Effect.never`, which keeps Node alive. */
const unanswered: Effect.Effect<never> = Effect.async(() => {})

const isFile = (inode: Inode): inode is File => (inode.mode & S_IFMT) === S_IFREG
const isDirectory = (inode: Inode) => (inode.mode & S_IFMT) === S_IFDIR

type Answer = number | ErrnoCode

export const make = (
  options: SimulatedOptions
): {
  readonly syscalls: Syscalls
  readonly control: Omit<SimulatedKernel, symbol>
  /** What a device does with one operation, without faults: those are its own. */
  readonly transfer: Transfer
} => {
  const {
    capacity = 1024 ** 3,
    directories = ["/tmp"],
    files = [],
    links = [],
    maxFds = 1024,
    profile = "ext4",
    uid = defaultUid
  } = options
  const filesystem = filesystems[profile]
  let nextAddress = 0x7f00_0000_0000
  const rootInode = 11n
  let nextInode = rootInode
  let nextName = 0
  let used = 0

  const newInode = (mode: number, uid: number): Inode => ({ inode: nextInode++, mode, uid })

  const newFile = (inode: Inode): File => ({
    ...inode,
    blocks: new Map(),
    written: new Set(),
    cached: new Set(),
    attributes: new Map(),
    size: 0,
    links: 1,
    descriptors: 0,
    inodeFlags: 0,
    lock: undefined
  })

  const names = new Map<string, Inode>([["", newInode(S_IFDIR | defaultDirectoryPermissions, 0)]])
  const initial = new Set<string>()
  const processes: Array<Process> = []
  const startProcess = (uid: number): Process => {
    const process: Process = {
      id: processes.length === 0 ? undefined : processes.length,
      uid,
      descriptions: new Map(),
      mappings: new Map(),
      killed: false
    }
    processes.push(process)
    return process
  }
  const first = startProcess(uid)

  // Paths: absolute, or from the root.

  const pathOf = (held: Inode): string | undefined => [...names].find(([, { inode }]) => inode === held.inode)?.[0]

  /** A path that begins with an open directory, by the path that the directory has now. */
  const belowDescriptor = ({ descriptions }: Process, path: string): string => {
    const [, fd, rest] = /^\/proc\/self\/fd\/(\d+)(\/.*)$/.exec(path) ?? []
    const held = fd === undefined ? undefined : descriptions.get(Number(fd))?.file
    if (held === undefined) return path
    const directory = pathOf(held)
    return directory === undefined ? path : `${directory}${rest}`
  }

  /**
   * The canonical path of a name whose directory exists, or why there is none. A link at the end, without a slash behind it, is what is named, unless `follow`.
   */
  const lookup = (given: string, follow = false, process = first): { readonly path: string } | ErrnoCode => {
    const path = belowDescriptor(process, given)
    if (path === "") return "ENOENT"
    if (Buffer.byteLength(path) >= pathMax) return "ENAMETOOLONG"
    const parts = path.split("/").reverse()
    let at = ""
    let followed = 0
    for (let part = parts.pop(); part !== undefined; part = parts.pop()) {
      if (part === "" || part === ".") continue
      const directory = names.get(at)
      if (directory === undefined) return "ENOENT"
      if (!isDirectory(directory)) return "ENOTDIR"
      if (part === "..") {
        at = at.slice(0, Math.max(0, at.lastIndexOf("/")))
        continue
      }
      if (Buffer.byteLength(part) > nameMax) return "ENAMETOOLONG"
      const target = names.get(`${at}/${part}`)?.target
      if (target === undefined || (!follow && parts.length === 0)) {
        at = `${at}/${part}`
        continue
      }
      followed += 1
      if (followed > maxLinks) return "ELOOP"
      if (target.startsWith("/")) at = ""
      parts.push(...target.split("/").reverse())
    }
    return { path: at }
  }

  /** As many directories as are missing. */
  const place = (path: string, permissions: number | undefined, owner: number) => {
    const parts = path.split("/").filter((part) => part !== "")
    parts.forEach((_, index) => {
      const directory = `/${parts.slice(0, index + 1).join("/")}`
      const last = index === parts.length - 1
      if (names.has(directory) && !last) return
      const asked = last ? permissions : undefined
      const mode = asked ?? directoryPermissions.get(directory) ?? defaultDirectoryPermissions
      names.set(directory, newInode(S_IFDIR | mode, last ? owner : 0))
    })
  }
  for (const directory of directories) {
    const { mode, path, uid: owner = 0 } = typeof directory === "string" ? { path: directory } : directory
    place(path, mode, owner)
  }
  for (const { path, target, uid: owner = 0 } of links) {
    names.set(path, { ...newInode(S_IFLNK | 0o777, owner), target })
    initial.add(path)
  }
  for (const file of files) {
    const { path, uid: owner = uid } = typeof file === "string" ? { path: file } : file
    const canonical = lookup(path)
    if (typeof canonical === "string") throw new RangeError(`no directory for ${path}: ${canonical}`)
    names.set(canonical.path, newFile(newInode(S_IFREG | 0o600, owner)))
    initial.add(canonical.path)
  }

  // Space

  const free = () => capacity - used

  const reserve = (file: File, block: number): boolean => {
    if (file.blocks.has(block)) return true
    if (free() < blockBytes) return false
    file.blocks.set(block, undefined)
    used += blockBytes
    return true
  }

  const forget = (file: File) => {
    if (file.links > 0 || file.descriptors > 0) return
    used -= file.blocks.size * blockBytes
    file.blocks.clear()
    file.written.clear()
    file.cached.clear()
  }

  const openFile = ({ descriptions }: Process, file: File, openFlags: number): Answer => {
    if (descriptions.size >= maxFds) return "EMFILE"
    let fd = firstFd
    while (descriptions.has(fd)) fd++
    file.descriptors += 1
    descriptions.set(fd, { file, flags: openFlags & ~(flags.O_CLOEXEC | flags.O_NOFOLLOW) })
    return fd
  }

  const descriptionOf = (
    { descriptions }: Process,
    fd: number,
    use: (description: Description) => Answer
  ): Answer => {
    const description = descriptions.get(fd)
    return description === undefined ? "EBADF" : use(description)
  }

  const closeFile = ({ descriptions }: Process, fd: number, description: Description): Answer => {
    const { file } = description
    descriptions.delete(fd)
    if (file.lock === description) file.lock = undefined
    file.descriptors -= 1
    forget(file)
    return 0
  }

  const misaligned = ({ flags: held }: Description, bytes: Uint8Array, offset: number): boolean => {
    const { strict } = filesystem
    return (held & flags.O_DIRECT) !== 0 &&
      (offset % strict.offset !== 0 || bytes.byteLength % strict.offset !== 0 ||
        addressAlignment(bytes) < strict.memory)
  }

  const pagesOf = (file: File, offset: number, length: number): ReadonlyArray<number> => {
    const first = Math.floor(offset / blockBytes)
    const end = Math.ceil(Math.min(offset + length, file.size) / blockBytes)
    return Array.from({ length: Math.max(0, end - first) }, (_, index) => first + index)
  }

  const isMapped = (file: File, page: number) =>
    processes.some(({ mappings }) =>
      [...mappings.values()].some((mapping) => mapping.file === file && mapping.pages.includes(page))
    )

  /** What a transfer leaves in the page cache. */
  const cache = (kind: "read" | "write", { file, flags: held }: Description, offset: number, length: number) => {
    const nocow = (file.inodeFlags & FS_NOCOW_FL) !== 0
    const direct = (held & flags.O_DIRECT) !== 0
    const used = !direct || filesystem.pageCache === "used"
    const dropped = filesystem.pageCache === "used and dropped" && kind === "write" &&
      (!nocow || filesystem.mirrored === true)
    for (const page of pagesOf(file, offset, length)) {
      if (used) file.cached.add(page)
      else if (kind === "write" && !(dropped && isMapped(file, page))) file.cached.delete(page)
    }
  }

  const read = (description: Description, into: Uint8Array, offset: number): Answer => {
    const { file } = description
    cache("read", description, offset, into.byteLength)
    const length = Math.max(0, Math.min(into.byteLength, file.size - offset))
    for (let done = 0; done < length;) {
      const at = offset + done
      const within = at % blockBytes
      const count = Math.min(blockBytes - within, length - done)
      const block = file.blocks.get(Math.floor(at / blockBytes))
      if (block === undefined) into.fill(0, done, done + count)
      else into.set(block.subarray(within, within + count), done)
      done += count
    }
    return length
  }

  const write = (description: Description, from: Uint8Array, offset: number): Answer => {
    const { file } = description
    const copyOnWrite = filesystem.copyOnWrite && (file.inodeFlags & FS_NOCOW_FL) === 0
    let done = 0
    while (done < from.byteLength) {
      const at = offset + done
      const number = Math.floor(at / blockBytes)
      const within = at % blockBytes
      const count = Math.min(blockBytes - within, from.byteLength - done)
      // Copy-on-write writes the new block before it gives the old one back.
      if (copyOnWrite ? free() < blockBytes : !reserve(file, number)) break
      if (copyOnWrite) reserve(file, number)
      const bytes = from.subarray(done, done + count)
      const block = file.blocks.get(number)
      file.written.add(number)
      if (block !== undefined) block.set(bytes, within)
      else if (!zeros.subarray(0, count).equals(bytes)) {
        const fresh = new Uint8Array(blockBytes)
        fresh.set(bytes, within)
        file.blocks.set(number, fresh)
      }
      done += count
    }
    file.size = Math.max(file.size, offset + done)
    cache("write", description, offset, done)
    return done === 0 && from.byteLength > 0 ? "ENOSPC" : done
  }

  // Faults, interruptions, journal

  const faults: Array<Fault> = []
  const interruptions: Array<{
    readonly fiber: Fiber.RuntimeFiber<unknown, unknown>
    readonly call: number
    readonly when: "before" | "during" | "after"
  }> = []
  const journal: Array<JournalEntry> = []
  const counts = new Map<SyscallName, number>()
  let calls = 0

  /** Interrupts who is to be interrupted here, and lets the interruption arrive. */
  const interrupt = (call: number, when: "before" | "during" | "after"): Effect.Effect<void> => {
    const due = interruptions.filter((interruption) => interruption.call === call && interruption.when === when)
    if (due.length === 0) return Effect.void
    return Effect.zipRight(
      Effect.sync(() => due.forEach(({ fiber }) => fiber.unsafeInterruptAsFork(FiberId.none))),
      Effect.yieldNow()
    )
  }

  const isBelow = (path: string, directory: string) => path.startsWith(`${directory}/`)

  /** In the order in which the kernel looks: the two directories, then the two names, then what they name. */
  const rename = (process: Process, from: string, to: string): Answer => {
    const source = lookup(from, false, process)
    if (typeof source === "string") return source
    const target = lookup(to, false, process)
    if (typeof target === "string") return target
    if (source.path === "" || target.path === "") return "EBUSY"
    const moved = names.get(source.path)
    if (moved === undefined) return "ENOENT"
    if (!isDirectory(moved) && (from.endsWith("/") || to.endsWith("/"))) return "ENOTDIR"
    if (isBelow(target.path, source.path)) return "EINVAL"
    if (isBelow(source.path, target.path)) return "ENOTEMPTY"
    const replaced = names.get(target.path)
    if (replaced === moved && source.path === target.path) return 0
    if (replaced !== undefined) {
      if (!isDirectory(moved) && isDirectory(replaced)) return "EISDIR"
      if (isDirectory(moved) && !isDirectory(replaced)) return "ENOTDIR"
      if ([...names.keys()].some((path) => isBelow(path, target.path))) return "ENOTEMPTY"
    }
    if (replaced !== undefined && isFile(replaced)) {
      replaced.links -= 1
      forget(replaced)
    }
    const moving = [...names].filter(([path]) => path === source.path || isBelow(path, source.path))
    for (const [path, file] of moving) {
      names.delete(path)
      names.set(`${target.path}${path.slice(source.path.length)}`, file)
    }
    return 0
  }

  const create = (process: Process, prefix: string, openFlags: number, path: { value?: string }): Answer => {
    const name = lookup(`${prefix}${(nextName++).toString(36).padStart(6, "0")}`, false, process)
    if (typeof name === "string") return name
    if (process.descriptions.size >= maxFds) return "EMFILE"
    const file = newFile(newInode(S_IFREG | 0o600, process.uid))
    names.set(name.path, file)
    path.value = name.path
    if ((openFlags & flags.O_DIRECT) !== 0 && filesystem.openDirect === "refused") return "EINVAL"
    return openFile(process, file, openFlags | flags.O_RDWR)
  }

  /** The calls of one process. */
  const kernelOf = (process: Process): Kernel => {
    /** One call: `run` answers it, given the most bytes that it may move. */
    const perform = (
      syscall: SyscallName,
      details: Pick<JournalEntry, "path" | "to" | "fd" | "offset" | "length" | "memory">,
      run: (most: number) => Answer
    ): Effect.Effect<number> =>
      Effect.suspend(() => {
        if (process.killed) return unanswered
        const call = ++calls
        const nth = (counts.get(syscall) ?? 0) + 1
        counts.set(syscall, nth)
        const due = faults.filter((fault) =>
          fault.syscall === undefined ? fault.nth === call : fault.syscall === syscall && fault.nth === nth
        )
        let failure: ErrnoCode | undefined
        let most = Infinity
        let late: Duration.DurationInput | undefined
        for (const { outcome } of due) {
          if (outcome._tag === "Fail") failure = outcome.code
          else if (outcome._tag === "Short") most = outcome.bytes
          else late = outcome.duration
        }
        const answer = Effect.suspend(() => {
          if (process.killed) return unanswered
          // Linux frees the descriptor of a close that fails; ENOENT from unlink means that the name is gone.
          const happens = failure === undefined || syscall === "close" || (syscall === "unlink" && failure === "ENOENT")
          const answered = happens ? run(most) : 0
          const result = failure ?? answered
          const code = typeof result === "string" ? -errnos[result] : result
          journal.push({
            call,
            syscall,
            ...details,
            result,
            ...(process.id === undefined ? {} : { process: process.id })
          })
          return Effect.succeed(code)
        })
        return interrupt(call, "before").pipe(
          Effect.zipRight(Effect.uninterruptible(
            interrupt(call, "during").pipe(
              Effect.zipRight(late === undefined ? Effect.void : Effect.sleep(late)),
              Effect.zipRight(answer)
            )
          )),
          Effect.zipLeft(interrupt(call, "after"))
        )
      })

    const withDescription = (fd: number, use: (description: Description) => Answer): Answer =>
      descriptionOf(process, fd, use)

    const shown = (path: string) => belowDescriptor(process, path)
    const kernel: Kernel = {
      flags,
      pageSize: blockBytes,
      mkdir: (path, mode) =>
        perform("mkdir", { path: shown(path) }, () => {
          const name = lookup(path, false, process)
          if (typeof name === "string") return name
          if (names.has(name.path)) return "EEXIST"
          names.set(name.path, newInode(S_IFDIR | mode, process.uid))
          return 0
        }),
      mkostemp: (prefix, openFlags, path) =>
        perform("mkostemp", { path: shown(prefix) }, () => create(process, prefix, openFlags, path)),
      open: (path, openFlags) =>
        perform("open", { path: shown(path) }, () => {
          const reopened = /^\/proc\/self\/fd\/(\d+)$/.exec(path)?.[1]
          const name = lookup(path, (openFlags & flags.O_NOFOLLOW) === 0, process)
          const inode = reopened !== undefined
            ? process.descriptions.get(Number(reopened))?.file
            : typeof name === "string"
            ? name
            : names.get(name.path)
          if (inode === undefined) return "ENOENT"
          if (typeof inode === "string") return inode
          const onlyNamed = (openFlags & flags.O_PATH) !== 0
          if (isDirectory(inode)) {
            if ((openFlags & flags.O_TMPFILE) === flags.O_TMPFILE) {
              const nameless = { ...newFile(newInode(S_IFREG | 0o600, process.uid)), links: 0 }
              return filesystem.tmpfile ? openFile(process, nameless, openFlags & ~flags.O_TMPFILE) : "EOPNOTSUPP"
            }
            const held = { ...newFile(inode), links: 0 }
            return onlyNamed || (openFlags & O_ACCMODE) === 0
              ? openFile(process, held, openFlags & ~O_ACCMODE)
              : "EISDIR"
          }
          if ((openFlags & flags.O_DIRECTORY) !== 0) return "ENOTDIR"
          if (!isFile(inode)) return onlyNamed ? openFile(process, newFile(inode), openFlags) : "ELOOP"
          if ((openFlags & flags.O_DIRECT) !== 0 && filesystem.openDirect === "refused") return "EINVAL"
          return openFile(process, inode, openFlags)
        }),
      fcntlGetFlags: (fd) =>
        perform("fcntlGetFlags", { fd }, () => withDescription(fd, (description) => description.flags)),
      fcntlSetFlags: (fd, newFlags) =>
        perform("fcntlSetFlags", { fd }, () =>
          withDescription(fd, (description) => {
            if ((newFlags & flags.O_DIRECT) !== 0 && filesystem.setDirect === "refused") return "EINVAL"
            if (filesystem.setDirect !== "ignored") {
              description.flags = (description.flags & ~flags.O_DIRECT) | (newFlags & flags.O_DIRECT)
            }
            return 0
          })),
      fcntlSetLock: (fd) =>
        perform("fcntlSetLock", { fd }, () =>
          withDescription(fd, (description) => {
            const { file, flags: held } = description
            if ((held & O_ACCMODE) === 0) return "EBADF"
            if (file.lock !== undefined && file.lock !== description) return "EAGAIN"
            file.lock = description
            return 0
          })),
      ioctlGetFlags: (fd, out) =>
        perform("ioctlGetFlags", { fd }, () =>
          withDescription(fd, ({ file }) => {
            if (filesystem.inodeFlags === "none") return "ENOTTY"
            out.value = file.inodeFlags
            return 0
          })),
      ioctlSetFlags: (fd, inodeFlags) =>
        perform("ioctlSetFlags", { fd }, () =>
          withDescription(fd, ({ file }) => {
            if (filesystem.inodeFlags === "none") return "ENOTTY"
            if ((inodeFlags & FS_NOCOW_FL) !== 0 && filesystem.inodeFlags === "no nocow") return "EOPNOTSUPP"
            // btrfs says yes and does nothing once there is data.
            if (file.size === 0) file.inodeFlags = inodeFlags
            return 0
          })),
      fallocate: (fd, mode, offset, length) =>
        perform("fallocate", { fd, offset, length }, () =>
          withDescription(fd, ({ file }) => {
            if (offset < 0 || length <= 0) return "EINVAL"
            if (!filesystem.fallocate || mode !== 0) return "EOPNOTSUPP"
            if (offset + length > filesystem.maxFileBytes) return "EFBIG"
            const last = Math.ceil((offset + length) / blockBytes)
            for (let block = Math.floor(offset / blockBytes); block < last; block++) {
              if (!reserve(file, block)) return "ENOSPC"
            }
            file.size = Math.max(file.size, offset + length)
            return 0
          })),
      ftruncate: (fd, length) =>
        perform("ftruncate", { fd, length }, () =>
          withDescription(fd, ({ file }) => {
            if (length < 0) return "EINVAL"
            if (length > filesystem.maxFileBytes) return "EFBIG"
            for (const [block, bytes] of file.blocks) {
              if (block * blockBytes >= length) {
                file.blocks.delete(block)
                file.written.delete(block)
                file.cached.delete(block)
                used -= blockBytes
              } else bytes?.fill(0, Math.min(blockBytes, length - block * blockBytes))
            }
            file.size = length
            return 0
          })),
      pread: (fd, into, offset) =>
        perform(
          "pread",
          { fd, offset, length: into.byteLength, memory: addressAlignment(into) },
          (most) =>
            withDescription(fd, (description) => {
              if ((description.flags & O_ACCMODE) === O_WRONLY) return "EBADF"
              if (offset < 0 || misaligned(description, into, offset)) return "EINVAL"
              return read(description, into.subarray(0, Math.min(most, into.byteLength)), offset)
            })
        ),
      pwrite: (fd, from, offset) =>
        perform(
          "pwrite",
          { fd, offset, length: from.byteLength, memory: addressAlignment(from) },
          (most) =>
            withDescription(fd, (description) => {
              if ((description.flags & O_ACCMODE) === 0) return "EBADF"
              if (offset < 0 || misaligned(description, from, offset)) return "EINVAL"
              if (offset + from.byteLength > filesystem.maxFileBytes) return "EFBIG"
              return write(description, from.subarray(0, Math.min(most, from.byteLength)), offset)
            })
        ),
      fdatasync: (fd) => perform("fdatasync", { fd }, () => withDescription(fd, () => 0)),
      statx: (fd, out, path) => {
        const answer = (file: File): Answer => {
          out.value = {
            deviceMajor: 8,
            deviceMinor: 1,
            inode: file.inode,
            links: file.links,
            mode: file.mode,
            uid: file.uid,
            // One filesystem, mounted at the root.
            attributes: file.inode === rootInode ? STATX_ATTR_MOUNT_ROOT : 0,
            attributesMask: STATX_ATTR_MOUNT_ROOT,
            mountId: 1,
            size: file.size,
            allocated: file.blocks.size * blockBytes,
            directIo: filesystem.directIo
          }
          return 0
        }
        if (path === undefined) return perform("statx", { fd }, () => withDescription(fd, ({ file }) => answer(file)))
        const absolute = fd < 0 || path.startsWith("/") ? path : `/proc/self/fd/${fd}/${path}`
        return perform("statx", { path: shown(absolute), ...(fd < 0 ? {} : { fd }) }, () => {
          const name = lookup(absolute, false, process)
          if (typeof name === "string") return name
          const inode = names.get(name.path)
          return inode === undefined ? "ENOENT" : answer(isFile(inode) ? inode : newFile(inode))
        })
      },
      fstatfs: (fd, out) =>
        perform("fstatfs", { fd }, () =>
          withDescription(fd, () => {
            out.value = {
              type: filesystem.type,
              blockSize: blockBytes,
              total: capacity,
              free: free(),
              available: free()
            }
            return 0
          })),
      unlink: (path) =>
        perform("unlink", { path: shown(path) }, () => {
          const name = lookup(path, false, process)
          if (typeof name === "string") return name
          const inode = names.get(name.path)
          if (inode === undefined) return "ENOENT"
          if (isDirectory(inode)) return "EISDIR"
          names.delete(name.path)
          if (isFile(inode)) {
            inode.links -= 1
            forget(inode)
          }
          return 0
        }),
      rename: (path, to) => perform("rename", { path: shown(path), to: shown(to) }, () => rename(process, path, to)),
      readdir: (path, out) =>
        perform("readdir", { path: shown(path) }, () => {
          const name = lookup(path, true, process)
          if (typeof name === "string") return name
          const inode = names.get(name.path)
          if (inode === undefined) return "ENOENT"
          if (!isDirectory(inode)) return "ENOTDIR"
          const parent = `${name.path}/`
          out.value = [...names.keys()].flatMap((path) => {
            const rest = path.slice(parent.length)
            return path.startsWith(parent) && !rest.includes("/") ? [rest] : []
          })
          return 0
        }),
      readlink: (path, out) =>
        perform("readlink", { path: shown(path) }, () => {
          const held = process.descriptions.get(Number(/^\/proc\/self\/fd\/(\d+)$/.exec(path)?.[1]))
          if (held !== undefined) {
            out.value = pathOf(held.file) ?? "/unknown (deleted)"
            return 0
          }
          const name = lookup(path, false, process)
          if (typeof name === "string") return name
          const inode = names.get(name.path)
          if (inode?.target === undefined) return inode === undefined ? "ENOENT" : "EINVAL"
          out.value = inode.target
          return 0
        }),
      geteuid: Effect.succeed(process.uid),
      close: (fd) =>
        perform("close", { fd }, () => withDescription(fd, (description) => closeFile(process, fd, description))),
      fgetxattr: (fd, name, into) =>
        perform("fgetxattr", { fd }, () =>
          withDescription(fd, ({ file }) => {
            if (!filesystem.attributes) return "EOPNOTSUPP"
            const value = file.attributes.get(name)
            if (value === undefined) return "ENODATA"
            if (value.byteLength > into.byteLength) return "ERANGE"
            into.set(value)
            return value.byteLength
          })),
      fsetxattr: (fd, name, value) =>
        perform("fsetxattr", { fd }, () =>
          withDescription(fd, ({ file }) => {
            if (!filesystem.attributes) return "EOPNOTSUPP"
            file.attributes.set(name, Uint8Array.from(value))
            return 0
          })),
      fadvise: (fd, offset, length, advice) =>
        perform("fadvise", { fd, offset, length }, () =>
          withDescription(fd, ({ file }) => {
            if (advice !== POSIX_FADV_DONTNEED || filesystem.pageCache === "used") return 0
            for (const page of pagesOf(file, offset, length)) if (!isMapped(file, page)) file.cached.delete(page)
            return 0
          })),
      cachestat: (fd, offset, length, out) =>
        perform("cachestat", { fd, offset, length }, () =>
          withDescription(fd, ({ file }) => {
            const cached = pagesOf(file, offset, length).filter((page) => file.cached.has(page)).length
            out.value = { cached, dirty: 0, writeback: 0 }
            return 0
          })),
      fiemap: (fd, offset, length, out) =>
        perform("fiemap", { fd, offset, length }, () =>
          withDescription(fd, ({ file }) => {
            if (!filesystem.fiemap) return "EOPNOTSUPP"
            const last = Math.max(...file.blocks.keys())
            out.value = [...file.blocks.keys()]
              .filter((block) => (block + 1) * blockBytes > offset && block * blockBytes < offset + length)
              .sort((a, b) => a - b)
              .slice(0, fiemapExtents)
              .map((block) => ({
                logical: block * blockBytes,
                physical: (1024 + block) * blockBytes,
                length: blockBytes,
                flags: (file.written.has(block) ? 0 : FIEMAP_EXTENT_UNWRITTEN) |
                  (block === last ? FIEMAP_EXTENT_LAST : 0)
              }))
            return 0
          })),
      ficlone: (fd) => perform("ficlone", { fd }, () => "EOPNOTSUPP"),
      mmap: (fd, offset, length, populate) =>
        perform("mmap", { fd, offset, length }, () =>
          withDescription(fd, ({ file }) => {
            if (offset % blockBytes !== 0 || length <= 0) return "EINVAL"
            const pages = pagesOf(file, offset, length)
            if (populate) pages.forEach((page) => file.cached.add(page))
            const address = nextAddress
            nextAddress += Math.ceil(length / blockBytes) * blockBytes
            process.mappings.set(address, { file, pages })
            return address
          })),
      mincore: (address, length, resident) =>
        perform("mincore", { length }, () => {
          const mapping = process.mappings.get(address)
          if (mapping === undefined) return "ENOMEM"
          resident.value = mapping.pages.filter((page) => mapping.file.cached.has(page)).length
          return 0
        }),
      munmap: (address, length) =>
        perform("munmap", { length }, () => (process.mappings.delete(address) ? 0 : "EINVAL")),
      dlopen: (path) => perform("dlopen", { path }, () => "ELIBACC")
    }
    return kernel
  }

  const transfer: Transfer = (kind, fd, bytes, offset, most) => {
    const answer = descriptionOf(first, fd, (description) =>
      kind === "sync"
        ? 0
        : misaligned(description, bytes, offset)
        ? "EINVAL"
        : kind === "read"
        ? read(description, bytes.subarray(0, most), offset)
        : write(description, bytes.subarray(0, most), offset))
    const syscall = kind === "sync" ? "fdatasync" : kind === "read" ? "pread" : "pwrite"
    journal.push({ call: ++calls, syscall, fd, offset, length: bytes.byteLength, result: answer })
    return typeof answer === "string" ? -errnos[answer] : answer
  }

  const leaks = (): Leaks => ({
    fds: processes.flatMap(({ descriptions }) => [...descriptions.keys()]),
    files: [...names].filter(([path, inode]) => !isDirectory(inode) && !initial.has(path)).map(([path]) => path),
    bytes: used,
    mappings: processes.reduce((sum, { mappings }) => sum + mappings.size, 0)
  })

  const process: SimulatedKernel["process"] = (options = {}) =>
    Effect.sync(() => {
      const process = startProcess(options.uid ?? uid)
      return {
        syscalls: fromKernel(kernelOf(process)),
        kill: Effect.sync(() => {
          process.killed = true
          process.mappings.clear()
          for (const [fd, description] of process.descriptions) closeFile(process, fd, description)
        })
      }
    })

  return {
    syscalls: fromKernel(kernelOf(first)),
    transfer,
    control: {
      inject: (fault) => Effect.sync(() => void faults.push(fault)),
      interrupt: (fiber, { call, when }) => Effect.sync(() => void interruptions.push({ fiber, call, when })),
      journal: Effect.sync(() => [...journal]),
      leaks: Effect.sync(leaks),
      process
    }
  }
}
