/**
 * One tagged error per way to fail. Each says what happened, to what, and what to do about it; `cause` is the kernel call that
 * failed, where one did. All of them are schemas, so they survive serialisation.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import { cuFileErrorOf } from "./internal/cuFileErrors.js"
import { errnos, SyscallError } from "./Syscalls.js"

const id = <const Name extends string>(name: Name) => `effect-disk-storage/${name}` as const

/** Sixteen hexadecimal digits, as hashes are written in logs. */
const formatHash = (hash: bigint) => hash.toString(16).padStart(16, "0")

const disableDirectIo =
  "set DYN_KVBM_DISK_DISABLE_O_DIRECT=true (option directIo: \"disabled\") to use buffered I/O instead"

/**
 * The service cannot run here: not Linux, not x64 or arm64, or a libc without a function that is needed.
 *
 * @since 0.1.0
 * @category errors
 */
export class PlatformNotSupported extends Schema.TaggedError<PlatformNotSupported>(id("PlatformNotSupported"))(
  "PlatformNotSupported",
  { platform: Schema.String, arch: Schema.String, reason: Schema.String }
) {
  override get message(): string {
    return `This platform (${this.platform} ${this.arch}) is not supported: ${this.reason}. Use SimulatedSyscalls to develop and test here.`
  }
}

/**
 * The platform is supported, and koffi, through which the C library is called, cannot be loaded.
 *
 * - `package`: the package koffi is not installed where this module is, or a bundle is.
 * - `native module`: koffi is there without its native module for this platform, which is in a package of its own (`module`). It is an
 *   optional dependency, which `npm ci --omit=optional` leaves out; or a bundler has taken koffi into a bundle, where it cannot be found.
 * - `load`: the native module is there, and Node does not load it; `reason` is what Node says.
 *
 * @since 0.1.0
 * @category errors
 */
export class NativeModuleMissing extends Schema.TaggedError<NativeModuleMissing>(id("NativeModuleMissing"))(
  "NativeModuleMissing",
  { missing: Schema.Literal("package", "native module", "load"), module: Schema.String, reason: Schema.String }
) {
  override get message(): string {
    const external =
      "mark koffi as external in the bundler (esbuild: external: [\"koffi\"]; webpack: externals; Rollup: external; " +
      "Vite: ssr.external; Next.js: serverExternalPackages: [\"koffi\"])"
    const { missing, module, reason } = this
    switch (missing) {
      case "package":
        return `The package koffi is not installed (${reason}). Install the dependencies of effect-disk-storage; for a bundle, ${external}, and install koffi beside it.`
      case "native module":
        return `The package koffi has no native module here: ${module} is missing (${reason}). Install optional dependencies too (npm ci without --omit=optional; on another machine, the platform of this one). For a bundle, ${external}, and install koffi beside it.`
      case "load":
        return `The native module of koffi (${module}) cannot be loaded: ${reason}. Node must be allowed to load addons (no --no-addons; with --permission, --allow-addons), the module must be of this platform and C library, and its filesystem must not be mounted noexec.`
    }
  }
}

/**
 * No memory of that length could be had: for an aligned buffer, or for the `purpose`.
 *
 * @since 0.1.0
 * @category errors
 */
export class BufferUnavailable extends Schema.TaggedError<BufferUnavailable>(id("BufferUnavailable"))(
  "BufferUnavailable",
  { byteLength: Schema.Number, reason: Schema.String, purpose: Schema.optional(Schema.String) }
) {
  override get message(): string {
    const what = this.purpose === undefined
      ? `No aligned buffer of ${this.byteLength} bytes`
      : `No memory for ${this.purpose} (${this.byteLength} bytes)`
    return `${what}: ${this.reason}. Each slab reserves about 10 GiB of address space: look at \`ulimit -v\` and at how many buffers are held.`
  }
}

/**
 * An option or an argument has a value that it does not take: of another type, out of range, or an element of a list that is no such
 * element. Nothing was done.
 *
 * @since 0.1.0
 * @category errors
 */
export class InvalidOption extends Schema.TaggedError<InvalidOption>(id("InvalidOption"))(
  "InvalidOption",
  { option: Schema.String, value: Schema.String, expected: Schema.String }
) {
  override get message(): string {
    return `The value of ${this.option} is ${this.value}; it takes ${this.expected}.`
  }
}

/**
 * The cache directory cannot be made or used: it is no directory, may not be written, has too long a name, is on a read-only
 * filesystem.
 *
 * @since 0.1.0
 * @category errors
 */
export class DirectoryUnusable extends Schema.TaggedError<DirectoryUnusable>(id("DirectoryUnusable"))(
  "DirectoryUnusable",
  { directory: Schema.String, cause: SyscallError }
) {
  override get message(): string {
    const { errno, message } = this.cause
    const remedy = errno === errnos.EMFILE || errno === errnos.ENFILE
      ? "Raise the limit of open files (ulimit -n), or close some."
      : "Name a directory that is there and that this process may write (DYN_KVBM_DISK_CACHE_DIR, option directory)."
    return `The directory ${this.directory} cannot be used: ${message}. ${remedy}`
  }
}

/**
 * The cache directory is not used, since others could put something else in the place of the file. `writable`: `component`, the directory
 * itself, may be written by everybody and has no sticky bit. `foreign`: `component`, a link or a directory on the way to it or the directory
 * itself, lies in a directory that everybody may write, and belongs neither to this user, nor to root, nor to the owner of that
 * directory. Nothing was made but missing directories above.
 *
 * @since 0.1.0
 * @category errors
 */
export class DirectoryUnsafe extends Schema.TaggedError<DirectoryUnsafe>(id("DirectoryUnsafe"))(
  "DirectoryUnsafe",
  { directory: Schema.String, component: Schema.String, reason: Schema.Literal("writable", "foreign") }
) {
  override get message(): string {
    const { component, directory } = this
    const [why, remedy] = this.reason === "writable"
      ? [
        `everybody may write to ${component}, and could replace files of this process there`,
        `Make it sticky or private (chmod +t or 0700), or name a directory in it, which is then made with mode 0700 (DYN_KVBM_DISK_CACHE_DIR=${
          component.replace(/\/$/, "")
        }/kv)`
      ]
      : [
        `${component} belongs to another user, in a directory that everybody may write`,
        "Name another directory (DYN_KVBM_DISK_CACHE_DIR), or have it made by this user or by root"
      ]
    return `The directory ${directory} is not safe to use: ${why}. ${remedy}; or, where all its users are trusted, say so: trustDirectory: true, DISK_STORAGE_TRUST_DIRECTORY=true.`
  }
}

/** Links of a file that a removal of its name has left. */
const Remaining = Schema.Struct({
  /** Major and minor number. */
  device: Schema.String,
  inode: Schema.BigInt,
  /** bytes */
  size: Schema.Number,
  links: Schema.Number,
  /** Where the file is now, if the kernel knows. */
  path: Schema.optional(Schema.String)
})

const describeRemaining = ({ device, inode, links, path, size }: typeof Remaining.Type) =>
  `the file (device ${device}, inode ${inode}, ${size} bytes) still has ${
    links === 1 ? "a link" : `${links} links`
  } elsewhere${
    path === undefined ? "" : `, at ${path}`
  }. Find it with \`find MOUNT -xdev -inum ${inode}\`, where MOUNT is the mount point of its filesystem`

/**
 * `requireMount` names no mount point, or the storage would not lie on that mount. Nothing was made where the check came before the
 * first directory; where the mount went away after it, the file was removed before it was allocated.
 *
 * - `missing`: the path is not there.
 * - `unreadable`: the path cannot be looked at; `cause` is the call that failed.
 * - `not a mount point`: the path is there, and no filesystem is mounted at it.
 * - `elsewhere`: `directory`, or the file made in it, is on another mount.
 * - `unknown`: the kernel does not say what is mounted there (before Linux 5.8, without /proc).
 *
 * @since 0.1.0
 * @category errors
 */
export class MountMissing extends Schema.TaggedError<MountMissing>(id("MountMissing"))(
  "MountMissing",
  {
    mount: Schema.String,
    directory: Schema.String,
    reason: Schema.Literal("missing", "unreadable", "not a mount point", "elsewhere", "unknown"),
    cause: Schema.optional(SyscallError)
  }
) {
  override get message(): string {
    const { cause, directory, mount, reason } = this
    const because = cause === undefined ? "" : ` (${cause.message})`
    const option = "option requireMount, DISK_STORAGE_REQUIRE_MOUNT"
    switch (reason) {
      case "missing":
        return `No storage is made in ${directory}: the mount ${mount} is missing${because}. Mount the disk there, or correct the path (${option}).`
      case "unreadable":
        return `No storage is made in ${directory}: the mount ${mount} cannot be looked at${because}. Remove the cause, or leave the requirement out (${option}).`
      case "not a mount point":
        return `No storage is made in ${directory}: nothing is mounted at ${mount}. Mount the disk there, or correct the path (${option}).`
      case "elsewhere":
        return `No storage is made in ${directory}: it does not lie on the mount ${mount}. Use a directory below that mount (DYN_KVBM_DISK_CACHE_DIR, option directory), or name the mount that it lies on (${option}).`
      case "unknown":
        return `No storage is made in ${directory}: the kernel does not tell which mount ${mount} is${because}. Mount /proc, use Linux 5.8 or later, or leave the requirement out (${option}).`
    }
  }
}

/**
 * The path is relative, and the working directory of this process was removed, or is on a mount that was detached. A relative path
 * leads nowhere then. Nothing was made.
 *
 * @since 0.1.0
 * @category errors
 */
export class WorkingDirectoryGone extends Schema.TaggedError<WorkingDirectoryGone>(id("WorkingDirectoryGone"))(
  "WorkingDirectoryGone",
  { path: Schema.String }
) {
  override get message(): string {
    return `${this.path} is a relative path, and the working directory of this process is gone: it was removed or unmounted. Use an absolute path (DYN_KVBM_DISK_CACHE_DIR, option directory), or start the process in a directory that exists.`
  }
}

/**
 * The temp file could not be created, opened or looked at, for a reason that lies outside the directory (no descriptor left, an
 * I/O error, …). `step` says which. `remaining` is there in place of a `cause` where an early unlink left a link of the file.
 *
 * @since 0.1.0
 * @category errors
 */
export class CreateFailed extends Schema.TaggedError<CreateFailed>(id("CreateFailed"))(
  "CreateFailed",
  {
    step: Schema.Literal(
      "create directory",
      "create file",
      "lock",
      "take up",
      "reopen",
      "set O_DIRECT",
      "early unlink",
      "inspect"
    ),
    path: Schema.String,
    cause: Schema.optional(SyscallError),
    remaining: Schema.optional(Remaining)
  }
) {
  override get message(): string {
    const code = this.cause?.code
    const remedy = code === "EMFILE" || code === "ENFILE"
      ? " Raise the limit of open files (`ulimit -n`, fs.file-max) or release storages."
      : code === "ENOSPC" || code === "EDQUOT"
      ? " Free space or inodes on the filesystem."
      : ""
    const why = this.remaining === undefined ? this.cause?.message ?? "" : describeRemaining(this.remaining)
    return `The temp file ${this.path} could not be made (${this.step}): ${why}.${remedy}`
  }
}

/**
 * While the file was being reopened or taken up, its name was taken by another file. Nothing of that other file was touched.
 *
 * @since 0.1.0
 * @category errors
 */
export class FileReplaced extends Schema.TaggedError<FileReplaced>(id("FileReplaced"))(
  "FileReplaced",
  { path: Schema.String }
) {
  override get message(): string {
    return `Somebody replaced ${this.path} while it was being opened. Use a cache directory that only this user can write to.`
  }
}

/**
 * `directIo` is `required` and the kernel did not take O_DIRECT. No `cause`: the call succeeded and the flag was not there
 * when read back.
 *
 * @since 0.1.0
 * @category errors
 */
export class DirectIoRefused extends Schema.TaggedError<DirectIoRefused>(id("DirectIoRefused"))(
  "DirectIoRefused",
  {
    path: Schema.String,
    filesystem: Schema.String,
    openStrategy: Schema.Literal("default", "open-direct"),
    cause: Schema.optional(SyscallError)
  }
) {
  override get message(): string {
    const what = this.cause === undefined ? "accepted the flag and did not keep it" : this.cause.message
    const other = this.cause === undefined && this.openStrategy === "default"
      ? "DYN_KVBM_DISK_ALLOCATOR_TYPE=open-direct sets O_DIRECT at open, which such filesystems want; or "
      : ""
    return `O_DIRECT was refused for ${this.path} on ${this.filesystem}: ${what}. ${other}${disableDirectIo}.`
  }
}

/**
 * `directIo` is `proven`, and I/O was not found to be direct: O_DIRECT was refused, or accepted and reads or writes go through the
 * page cache, or that could not be found out. `reasons` say what was seen.
 *
 * @since 0.1.0
 * @category errors
 */
export class DirectIoUnavailable extends Schema.TaggedError<DirectIoUnavailable>(id("DirectIoUnavailable"))(
  "DirectIoUnavailable",
  { path: Schema.String, filesystem: Schema.String, reasons: Schema.Array(Schema.String) }
) {
  override get message(): string {
    return `I/O on ${this.path} (${this.filesystem}) is not proven to be direct: ${
      this.reasons.join("; ")
    }. \`effect-disk-storage doctor\` says what can be done about a directory; directIo: "preferred" takes what there is.`
  }
}

/**
 * The filesystem does not say which extents a file has.
 *
 * @since 0.1.0
 * @category errors
 */
export class ExtentsUnavailable extends Schema.TaggedError<ExtentsUnavailable>(id("ExtentsUnavailable"))(
  "ExtentsUnavailable",
  { path: Schema.String, cause: SyscallError }
) {
  override get message(): string {
    return `The extents of ${this.path} are not known: ${this.cause.message}. Filesystems without FIEMAP (tmpfs, NFS, ZFS) do not tell; nothing else is affected.`
  }
}

const Tally = Schema.Struct({ files: Schema.Number, bytes: Schema.Number })

/**
 * Files of this library that take space in `directory`; bytes as they hold them on the disk. `unused`: temp files of this user that no
 * process is seen to use; `command` removes them, after `--force` also where locks do not tell about other hosts. `others`: temp files of
 * other users, in use or not. `kept`: storages that were kept, of any size and name.
 *
 * @since 0.1.0
 * @category models
 */
export const Leftovers = Schema.Struct({
  directory: Schema.String,
  unused: Tally,
  others: Tally,
  kept: Tally,
  command: Schema.String
})

/**
 * @since 0.1.0
 * @category models
 */
export type Leftovers = typeof Leftovers.Type

const leftoversText = (leftovers: Leftovers | undefined): string => {
  if (leftovers === undefined) return ""
  const { command, directory, kept, others, unused } = leftovers
  const of = ({ bytes, files }: typeof Tally.Type, what: string, remedy: string) =>
    files === 0 ? "" : ` ${files} ${what} in ${directory} take ${bytes} bytes: ${remedy}.`
  const caution = command.includes(" --force ") ? ", when no process uses the directory, also on other hosts" : ""
  return of(unused, "temp files that no process is seen to use", `${command} removes them${caution}`) +
    of(kept, "kept storages", "delete those that no keepAt names any more") +
    of(others, "temp files of other users", "each user sweeps their own")
}

/**
 * A limit on memory: of a cgroup, whose directory is `path`, or of the machine (`/proc/meminfo`). All in bytes. `reclaimable` is the part
 * of `usage` that the kernel can take back: pages of files that are not in active use.
 *
 * @since 0.1.0
 * @category models
 */
export const MemoryLimit = Schema.Struct({
  path: Schema.String,
  limit: Schema.Number,
  usage: Schema.Number,
  reclaimable: Schema.Number
})

/**
 * @since 0.1.0
 * @category models
 */
export type MemoryLimit = typeof MemoryLimit.Type

/**
 * The filesystem said, before anything was allocated, that it has less room than the file takes. What its count is too low for now and
 * then is asked for all the same (see `DiskStorage.make`). With `memory`: the filesystem lies in memory (tmpfs, ramfs), and that limit
 * leaves less. The kernel would kill the process instead of refusing the allocation.
 *
 * @since 0.1.0
 * @category errors
 */
export class InsufficientSpace extends Schema.TaggedError<InsufficientSpace>(id("InsufficientSpace"))(
  "InsufficientSpace",
  {
    path: Schema.String,
    /** bytes of the file */
    needed: Schema.Number,
    /** bytes that this process may take, of which root may take all */
    available: Schema.Number,
    memory: Schema.optional(MemoryLimit),
    leftovers: Schema.optional(Leftovers)
  }
) {
  override get message(): string {
    const smaller = "ask for a smaller DYN_KVBM_DISK_CACHE_GB, or use another DYN_KVBM_DISK_CACHE_DIR"
    const noRoom = `No room for ${this.needed} bytes at ${this.path}:`
    if (this.memory === undefined) {
      return `${noRoom} the filesystem has ${this.available} left. Nothing was allocated. Free space, ${smaller}.${
        leftoversText(this.leftovers)
      }`
    }
    const { limit, path, reclaimable, usage } = this.memory
    const whose = path.startsWith("/proc/") ? "this machine has" : `the memory cgroup ${path} is limited to`
    return `${noRoom} its filesystem lies in memory, and ${whose} ${limit} bytes, of which ${usage} are in use, ${reclaimable} of those reclaimable: ${this.available} are left. Nothing was allocated: the kernel kills processes that exceed this. Raise the limit, ${smaller} on a disk.${
      leftoversText(this.leftovers)
    }`
  }
}

/**
 * The filesystem, a quota or a size limit has no room for the file. What had been allocated was given back.
 *
 * @since 0.1.0
 * @category errors
 */
export class OutOfSpace extends Schema.TaggedError<OutOfSpace>(id("OutOfSpace"))(
  "OutOfSpace",
  {
    path: Schema.String,
    method: Schema.Literal("fallocate", "zero-fill", "truncate", "prewrite"),
    /** bytes asked of the filesystem */
    needed: Schema.Number,
    cause: SyscallError,
    leftovers: Schema.optional(Leftovers)
  }
) {
  override get message(): string {
    const limit = this.cause.code === "EFBIG"
      ? "the file would exceed the filesystem's or the process's (`ulimit -f`) size limit"
      : this.cause.code === "EDQUOT"
      ? "the disk quota is used up"
      : "there is no space left"
    return `No room for ${this.needed} bytes at ${this.path} (${this.method}): ${limit}. ${this.cause.message}. Ask for a smaller DYN_KVBM_DISK_CACHE_GB or use another DYN_KVBM_DISK_CACHE_DIR.${
      leftoversText(this.leftovers)
    }`
  }
}

/**
 * The file was created and could not be allocated. `offset` (bytes) says how far a zero-fill came, `alignment` which alignment
 * its writes had.
 *
 * @since 0.1.0
 * @category errors
 */
export class AllocationFailed extends Schema.TaggedError<AllocationFailed>(id("AllocationFailed"))(
  "AllocationFailed",
  {
    path: Schema.String,
    method: Schema.Literal("fallocate", "zero-fill", "truncate", "prewrite"),
    offset: Schema.optional(Schema.Number),
    alignment: Schema.optional(Schema.Number),
    cause: Schema.optional(SyscallError)
  }
) {
  override get message(): string {
    const at = this.offset === undefined ? "" : ` at offset ${this.offset}`
    const what = this.cause === undefined ? "the kernel wrote nothing" : this.cause.message
    const hint = (this.method === "zero-fill" || this.method === "prewrite") && this.cause?.code === "EINVAL"
      ? ` Writes were aligned to ${this.alignment} bytes, which this filesystem does not take: ${disableDirectIo}.`
      : ""
    return `${this.path} could not be allocated (${this.method}${at}): ${what}.${hint}`
  }
}

/**
 * `prewrite` was asked for where it cannot do what it is for: the filesystem writes every block to a new place.
 *
 * @since 0.1.0
 * @category errors
 */
export class PrewriteRefused extends Schema.TaggedError<PrewriteRefused>(id("PrewriteRefused"))(
  "PrewriteRefused",
  { path: Schema.String, filesystem: Schema.String, reason: Schema.String }
) {
  override get message(): string {
    return `Prewriting ${this.path} on ${this.filesystem} would be of no use: ${this.reason}. Leave the option prewrite out, or use another DYN_KVBM_DISK_CACHE_DIR.`
  }
}

/**
 * The storage was released, and its descriptor and its file are gone; or it was kept, and must not change any more.
 *
 * @since 0.1.0
 * @category errors
 */
export class StorageClosed extends Schema.TaggedError<StorageClosed>(id("StorageClosed"))(
  "StorageClosed",
  { path: Schema.String }
) {
  override get message(): string {
    return `The storage at ${this.path} is released or kept. Keep its Scope open for as long as it is used, and keep it last.`
  }
}

/**
 * The file has no name any more, and what was asked for needs one.
 *
 * @since 0.1.0
 * @category errors
 */
export class StorageUnlinked extends Schema.TaggedError<StorageUnlinked>(id("StorageUnlinked"))(
  "StorageUnlinked",
  { path: Schema.String, key: Schema.String }
) {
  override get message(): string {
    return `${this.key} needs a linked file and ${this.path} is unlinked. Register it before unlink, and without earlyUnlink.`
  }
}

/**
 * A range reaches outside `[0, size)`. All in bytes.
 *
 * @since 0.1.0
 * @category errors
 */
export class OutOfBounds extends Schema.TaggedError<OutOfBounds>(id("OutOfBounds"))(
  "OutOfBounds",
  { offset: Schema.Number, length: Schema.Number, size: Schema.Number }
) {
  override get message(): string {
    return `${this.length} bytes at offset ${this.offset} are outside the ${this.size} bytes that there are. Offsets and lengths are whole, non-negative numbers.`
  }
}

/**
 * An offset, a length or a memory address (as its offset in its slab) is no multiple of `alignment` bytes.
 *
 * @since 0.1.0
 * @category errors
 */
export class Misaligned extends Schema.TaggedError<Misaligned>(id("Misaligned"))(
  "Misaligned",
  { what: Schema.Literal("offset", "length", "memory"), value: Schema.Number, alignment: Schema.Number }
) {
  override get message(): string {
    return `The ${this.what} ${this.value} is not a multiple of ${this.alignment} bytes, which direct I/O needs here. readBytes and writeBytes take any range.`
  }
}

/**
 * Memory that `AlignedBuffer` did not make: it could be detached, and then unmapped, while the kernel transfers.
 *
 * @since 0.1.0
 * @category errors
 */
export class ForeignMemory extends Schema.TaggedError<ForeignMemory>(id("ForeignMemory"))(
  "ForeignMemory",
  { byteLength: Schema.Number }
) {
  override get message(): string {
    return `${this.byteLength} bytes of memory that is not of an AlignedBuffer cannot be lent to the kernel. Copy them into one, or use readBytes and writeBytes.`
  }
}

/**
 * Another operation holds some of the buffer's pages. Nothing was transferred.
 *
 * @since 0.1.0
 * @category errors
 */
export class BufferBusy extends Schema.TaggedError<BufferBusy>(id("BufferBusy"))(
  "BufferBusy",
  { operation: Schema.Literal("read", "write"), offset: Schema.Number, length: Schema.Number }
) {
  override get message(): string {
    return `The ${this.operation} of ${this.length} bytes at offset ${this.offset} was not begun: its buffer is in use by another operation. Wait for that one, or use another buffer.`
  }
}

/**
 * The disk did not answer within the engine's `stallTimeout`. The operation may still happen, also after a later one on the same range:
 * its buffer stays the kernel's, and is lost to the caller, until it does.
 *
 * @since 0.1.0
 * @category errors
 */
export class IoStalled extends Schema.TaggedError<IoStalled>(id("IoStalled"))(
  "IoStalled",
  {
    operation: Schema.Literal("read", "write", "sync"),
    path: Schema.String,
    offset: Schema.Number,
    length: Schema.Number,
    timeoutMillis: Schema.Number
  }
) {
  override get message(): string {
    return `The ${this.operation} of ${this.length} bytes at offset ${this.offset} of ${this.path} had no answer within ${this.timeoutMillis} ms. The disk hangs: look at the kernel's log. The operation may still happen: use neither its buffer nor its range again.`
  }
}

/**
 * So many reads, or writes and syncs, of the storage have failed in a row that no more are begun but one now and then, which finds out
 * whether the disk is back. Nothing was transferred, and the buffer is the caller's.
 *
 * @since 0.1.0
 * @category errors
 */
export class StorageDegraded extends Schema.TaggedError<StorageDegraded>(id("StorageDegraded"))(
  "StorageDegraded",
  {
    path: Schema.String,
    /** Syncs are among the writes. */
    direction: Schema.Literal("read", "write"),
    failures: Schema.Number,
    /** Milliseconds until the next operation is let through. */
    retryAfterMillis: Schema.Number
  }
) {
  override get message(): string {
    return `The ${this.direction} was not begun: the last ${this.failures} ${this.direction}s of ${this.path} have failed. One is tried again in ${this.retryAfterMillis} ms. Go on without the disk, and look at the kernel's log.`
  }
}

/**
 * An I/O engine cannot run here: the kernel or a container's seccomp filter refuses it.
 *
 * @since 0.1.0
 * @category errors
 */
export class EngineUnavailable extends Schema.TaggedError<EngineUnavailable>(id("EngineUnavailable"))(
  "EngineUnavailable",
  { engine: Schema.String, reason: Schema.String, cause: Schema.optional(SyscallError) }
) {
  override get message(): string {
    const what = this.cause === undefined ? "" : `: ${this.cause.message}`
    return `The engine ${this.engine} cannot be used here: ${this.reason}${what}. DISK_STORAGE_IO_ENGINE=auto takes the best one that can.`
  }
}

/**
 * A transfer or a sync failed. `bytesDone` of `length` bytes at `offset` were transferred before; the rest is undefined. No
 * `cause`: the kernel transferred nothing and reported no error (the end of the file on a read).
 *
 * @since 0.1.0
 * @category errors
 */
export class IoFailed extends Schema.TaggedError<IoFailed>(id("IoFailed"))(
  "IoFailed",
  {
    operation: Schema.Literal("read", "write", "sync"),
    offset: Schema.Number,
    length: Schema.Number,
    bytesDone: Schema.Number,
    cause: Schema.optional(SyscallError)
  }
) {
  override get message(): string {
    const what = this.cause?.message ?? "the kernel transferred nothing and reported no error"
    const range = this.operation === "sync"
      ? ""
      : ` of ${this.length} bytes at offset ${this.offset} after ${this.bytesDone} bytes`
    return `The ${this.operation}${range} failed: ${what}. Treat the range as lost.`
  }
}

/** Remedies that name what this process, or whoever runs the machine, can change. */
const remedies: { readonly [code: string]: string } = {
  EACCES: "Restore the rights of this process on the directory",
  EPERM: "Restore the rights of this process on the directory and the file (chattr -i)",
  EROFS: "Make the filesystem writable again; the kernel's log has the reason",
  ENOSPC: "Free space",
  EDQUOT: "Free space",
  EMFILE: "Raise the limit of open files (ulimit -n) or release storages",
  ENFILE: "Raise the system's limit of open files (fs.file-max)",
  ENOMEM: "Free memory",
  EXDEV: "Unmount what is mounted over the directory",
  EISDIR: "Move away the directory that has that name",
  ENOTEMPTY: "Move away the directory that has that name",
  EEXIST: "Move away the directory that has that name",
  EBUSY: "Unmount what is mounted over that name"
}

/** Errors after which a second attempt at the same path meets the same path. */
const hopeless: { readonly [code: string]: string } = {
  ENOENT: "The file, or its directory, is gone: this storage cannot be kept. The next one starts empty",
  ENOTDIR: "The file, or its directory, is gone: this storage cannot be kept. The next one starts empty",
  ESTALE: "The file, or its directory, is gone: this storage cannot be kept. The next one starts empty",
  ELOOP: "The path cannot be followed: make the next storage with another keepAt",
  ENAMETOOLONG: "The path is too long: make the next storage with a shorter keepAt"
}

/**
 * The name could not be removed, or the file has another one: a link that somebody made, or the place that somebody moved it to. It is
 * still linked, and `unlink` may be called again. `cause` is the call that failed; `remaining` says which links are left.
 *
 * @since 0.1.0
 * @category errors
 */
export class UnlinkFailed extends Schema.TaggedError<UnlinkFailed>(id("UnlinkFailed"))(
  "UnlinkFailed",
  { path: Schema.String, cause: Schema.optional(SyscallError), remaining: Schema.optional(Remaining) }
) {
  override get message(): string {
    if (this.remaining !== undefined) {
      return `${this.path} is still linked: ${
        describeRemaining(this.remaining)
      }. Then unlink again, or remove it by hand.`
    }
    const remedy = remedies[this.cause?.code ?? ""] ?? "Look at the kernel's log"
    return `${this.path} is still linked: ${this.cause?.message}. ${remedy}. Then unlink again, or remove it by hand.`
  }
}

/**
 * The storage was not kept, and is unlinked at release as any other. `reason`: the option `keepAt` is missing; what is at that path
 * was not kept by a storage, and is not touched; the file has no name any more; its directory was moved, and the path leads elsewhere;
 * the file has another link, with which it would not be taken up; an operation without an answer may still change it;
 * or the step that failed, with its `cause`. After `sync` the storage cannot be kept at all: the kernel reports a failed write-back
 * once, and a later sync succeeds over data that never reached the disk.
 *
 * @since 0.1.0
 * @category errors
 */
export class KeepFailed extends Schema.TaggedError<KeepFailed>(id("KeepFailed"))(
  "KeepFailed",
  {
    path: Schema.String,
    keepAt: Schema.optional(Schema.String),
    reason: Schema.Literal(
      "no keepAt",
      "in the way",
      "unlinked",
      "moved",
      "linked elsewhere",
      "stalled",
      "look",
      "sync",
      "label",
      "rename"
    ),
    /** What is in the way, in words. */
    found: Schema.optional(Schema.String),
    cause: Schema.optional(SyscallError)
  }
) {
  override get message(): string {
    const failed = (step: string) => {
      const code = this.cause?.code ?? ""
      const remedy = hopeless[code] ??
        (code in remedies
          ? `${remedies[code]}, and keep again`
          : "Look at the kernel's log: keep again when the disk works")
      return `${step}: ${this.cause?.message}. ${remedy}`
    }
    const reasons: { readonly [reason in KeepFailed["reason"]]: () => string } = {
      "no keepAt": () => "no path was given for that. Set the option keepAt when the storage is made",
      "in the way": () =>
        `what is at ${this.keepAt} is no file that this process could take up${
          this.found === undefined ? "" : ` (${this.found})`
        }, and is not touched. Move it away and keep again, or name another keepAt`,
      "unlinked": () => "its file has no name any more. Do not unlink a storage that is to be kept",
      "moved": () =>
        `its directory was renamed or covered, and ${this.keepAt} leads elsewhere now. Put the directory back and keep again`,
      "linked elsewhere": () =>
        "its file has another name, and no storage takes up such a file. Remove the other name and keep again",
      "stalled": () =>
        "an operation that had no answer may still change it. The disk hangs: keep again when it has answered",
      "look": () => failed(`${this.keepAt} could not be looked at`),
      "sync": () =>
        `its content could not be synced: ${this.cause?.message}. Parts of it may be lost, and a second sync would not ` +
        "report them: this storage cannot be kept. Look at the kernel's log; the next storage starts empty",
      "label": () => failed("it could not be labelled"),
      "rename": () => failed(`it could not be renamed to ${this.keepAt}`)
    }
    return `The storage at ${this.path} was not kept: ${reasons[this.reason]()}.`
  }
}

/**
 * Something is registered under that tag already. It was left as it is.
 *
 * @since 0.1.0
 * @category errors
 */
export class DuplicateKey extends Schema.TaggedError<DuplicateKey>(id("DuplicateKey"))(
  "DuplicateKey",
  { key: Schema.String }
) {
  override get message(): string {
    return `${this.key} is registered on this storage already. Deregister it first, or use a tag of your own.`
  }
}

/**
 * Steps of a release that failed; the other steps were done. `registration` failures are defects of the finalizers of a
 * registration, as text. A step with a `timeoutMillis` had no answer from the kernel within the storage's `releaseTimeout` and goes on by
 * itself: what is in flight ended (`drain`), the name removed, the descriptor closed. Until it ends `fd` stays open, since its number may
 * still be used; the file is unlinked and closed then, and buffers come back then. `remaining`: the file has a link after the removal
 * of its name, one that somebody made or moved, and its space is not given back.
 *
 * @since 0.1.0
 * @category errors
 */
export class ReleaseFailed extends Schema.TaggedError<ReleaseFailed>(id("ReleaseFailed"))(
  "ReleaseFailed",
  {
    path: Schema.String,
    failures: Schema.Array(Schema.Union(
      Schema.Struct({ step: Schema.Literal("registration"), key: Schema.String, cause: Schema.String }),
      Schema.Struct({ step: Schema.Literal("unlink", "close"), cause: SyscallError }),
      Schema.Struct({ step: Schema.Literal("unlink"), remaining: Remaining }),
      Schema.Struct({
        step: Schema.Literal("drain", "unlink", "close"),
        fd: Schema.Number,
        timeoutMillis: Schema.Number
      })
    ))
  }
) {
  override get message(): string {
    const steps = this.failures.map((failure) =>
      failure.step === "registration"
        ? `registration ${failure.key}: ${failure.cause}`
        : "cause" in failure
        ? `${failure.step}: ${failure.cause.message}`
        : "remaining" in failure
        ? `${failure.step}: ${describeRemaining(failure.remaining)}`
        : `${failure.step}: no answer for fd ${failure.fd} within ${failure.timeoutMillis} ms`
    )
    const left = this.failures.some((failure) => failure.step === "unlink" && "cause" in failure)
      ? " The file is left: the next start in that directory sweeps it, or remove it by hand."
      : ""
    const hangs = this.failures.some((failure) => "timeoutMillis" in failure)
      ? " The disk hangs: the descriptor is left to the process, and is closed should the disk answer; until then the process cannot end."
      : ""
    return `The release of ${this.path} was not clean: ${steps.join("; ")}.${left}${hangs}`
  }
}

/**
 * The directory that was to be swept cannot be listed.
 *
 * @since 0.1.0
 * @category errors
 */
export class SweepFailed extends Schema.TaggedError<SweepFailed>(id("SweepFailed"))(
  "SweepFailed",
  { directory: Schema.String, cause: SyscallError }
) {
  override get message(): string {
    return `${this.directory} was not swept: ${this.cause.message}. Name a directory that is there and that this process may read.`
  }
}

/**
 * cuFile cannot be used here: a library does not load, the driver does not open, or the CUDA context cannot be taken. `code` is that of
 * cuFile (5001 and above) or of CUDA, where one of them answered.
 *
 * @since 0.1.0
 * @category errors
 */
export class CuFileUnavailable extends Schema.TaggedError<CuFileUnavailable>(id("CuFileUnavailable"))(
  "CuFileUnavailable",
  { library: Schema.String, reason: Schema.String, code: Schema.optional(Schema.Number) }
) {
  override get message(): string {
    const known = this.code !== undefined && (this.code > 5000 || this.code < 0)
    const remedy = known ? cuFileErrorOf(this.code ?? 0).remedy : undefined
    return `cuFile (${this.library}) cannot be used: ${this.reason}. ${
      remedy ??
        "Install libcufile and the NVIDIA driver, or name the libraries (DISK_STORAGE_CUFILE_LIBRARY, DISK_STORAGE_CUDA_LIBRARY)"
    }; without it, data goes through host memory.`
  }
}

/**
 * A call of cuFile failed. `code` is its number (5001 and above) and `name` what that is called; −1 is an error of the filesystem, in `errno`,
 * and 0 a transfer that moved nothing and reported no error. `cudaCode` is the CUDA driver's, where the code is 5011. Of a transfer:
 * `bytesDone` of `length` bytes at `offset` were transferred before; the rest is undefined.
 *
 * @since 0.1.0
 * @category errors
 */
export class CuFileFailed extends Schema.TaggedError<CuFileFailed>(id("CuFileFailed"))(
  "CuFileFailed",
  {
    call: Schema.String,
    code: Schema.Number,
    name: Schema.String,
    errno: Schema.optional(Schema.Number),
    cudaCode: Schema.optional(Schema.Number),
    path: Schema.optional(Schema.String),
    offset: Schema.optional(Schema.Number),
    length: Schema.optional(Schema.Number),
    bytesDone: Schema.optional(Schema.Number)
  }
) {
  override get message(): string {
    const { bytesDone, call, code, cudaCode, errno, length, name, offset, path } = this
    const range = length === undefined
      ? ""
      : ` of ${length} bytes${offset === undefined ? "" : ` at offset ${offset}`}${
        bytesDone === undefined || bytesDone === 0 ? "" : ` after ${bytesDone} bytes`
      }`
    const where = `${call}${range}${path === undefined ? "" : ` on ${path}`}`
    if (code === 0) return `${where} transferred nothing and reported no error. Treat the range as lost.`
    if (code === -1) {
      const hint = length === undefined
        ? "Nothing was transferred"
        : "Look at the kernel's log, and treat the range as lost"
      return `${where} failed: ${name} (errno ${errno}). ${hint}.`
    }
    const { remedy, what } = cuFileErrorOf(code)
    const cuda = cudaCode === undefined ? "" : `; CUDA error ${cudaCode}`
    return `${where} failed: ${name} (${code}), ${what}${cuda}.${remedy === undefined ? "" : ` ${remedy}.`}`
  }
}

/**
 * What was asked of cuFile needs what is released: the `handle` of a storage that was deregistered, or the `driver`, whose layer has ended.
 * Nothing was called.
 *
 * @since 0.1.0
 * @category errors
 */
export class CuFileReleased extends Schema.TaggedError<CuFileReleased>(id("CuFileReleased"))(
  "CuFileReleased",
  { what: Schema.Literal("handle", "driver"), path: Schema.optional(Schema.String) }
) {
  override get message(): string {
    return this.what === "handle"
      ? `The cuFile handle of ${this.path} is deregistered. Register the storage again, and use the handle of that registration.`
      : "The cuFile driver is closed. Keep the Scope of the CuFile layer open for as long as it is used."
  }
}

/**
 * The allocator has handed out its budget. All in bytes.
 *
 * @since 0.1.0
 * @category errors
 */
export class BudgetExceeded extends Schema.TaggedError<BudgetExceeded>(id("BudgetExceeded"))(
  "BudgetExceeded",
  { requested: Schema.Number, available: Schema.Number, budget: Schema.Number }
) {
  override get message(): string {
    return `${this.requested} bytes are more than the ${this.available} left of a budget of ${this.budget}. Release a storage or raise the budget.`
  }
}

/**
 * A block that no store can take or give: its hash is no unsigned 64-bit integer, its memory is no `AlignedBuffer` or has another length
 * than the blocks of the store, its priority is out of range, or it is no object at all. Nothing was transferred.
 *
 * @since 0.1.0
 * @category errors
 */
export class InvalidBlock extends Schema.TaggedError<InvalidBlock>(id("InvalidBlock"))(
  "InvalidBlock",
  // What is no hash has to be told of, too, as it reads.
  {
    hash: Schema.Union(Schema.BigInt, Schema.String),
    what: Schema.Literal("hash", "length", "priority", "memory", "block"),
    expected: Schema.String
  }
) {
  override get message(): string {
    if (this.what === "block") return `${this.hash} is no block: it takes ${this.expected}.`
    const block = typeof this.hash === "bigint" && this.hash >= 0n ? formatHash(this.hash) : String(this.hash)
    return `The ${this.what} of block ${block} is not accepted: it takes ${this.expected}.`
  }
}

/**
 * No block is stored under that hash (any more): it was never offloaded, evicted, removed, dropped because it could not be read,
 * or its storage was taken out.
 *
 * @since 0.1.0
 * @category errors
 */
export class BlockNotFound extends Schema.TaggedError<BlockNotFound>(id("BlockNotFound"))(
  "BlockNotFound",
  { hash: Schema.BigInt }
) {
  override get message(): string {
    return `No block is stored under ${formatHash(this.hash)}. Compute it, and offload it for the next time.`
  }
}

/**
 * What was read is not what was written under that hash: its checksum differs. The block was dropped; what is in the buffer is
 * worthless.
 *
 * @since 0.1.0
 * @category errors
 */
export class BlockCorrupted extends Schema.TaggedError<BlockCorrupted>(id("BlockCorrupted"))(
  "BlockCorrupted",
  { hash: Schema.BigInt, path: Schema.String, offset: Schema.Number, checksum: Schema.String }
) {
  override get message(): string {
    return `Block ${
      formatHash(this.hash)
    } at offset ${this.offset} of ${this.path} does not have its ${this.checksum} checksum any more. It was dropped: compute it again, and look at the disk.`
  }
}

/**
 * There is no slot for a block, and none to be made. Nothing was written. The counts are slots: of all `capacity`, those that are leased or
 * being read (`pinned`), being written (`writing`), that hold blocks of a higher priority (`higher`), and that are not used any more
 * (`retired`) after a transfer failed, a block was corrupted, or their storage was taken out; `stats` has these by storage.
 *
 * @since 0.1.0
 * @category errors
 */
export class StoreFull extends Schema.TaggedError<StoreFull>(id("StoreFull"))(
  "StoreFull",
  {
    hash: Schema.BigInt,
    priority: Schema.Number,
    capacity: Schema.Number,
    pinned: Schema.Number,
    writing: Schema.Number,
    higher: Schema.Number,
    retired: Schema.Number
  }
) {
  override get message(): string {
    const { capacity, hash, higher, pinned, priority, retired, writing } = this
    const causes = [
      [pinned, "are leased or being read", "end leases"],
      [writing, "are being written", "offload again when the writes have ended"],
      [higher, "hold blocks of a higher priority", "remove blocks, or offload with a higher priority"],
      [retired, "are retired after failures", "replace the disk that stats and the log name"]
    ] as const
    const found = causes.filter(([slots]) => slots > 0)
    const counts = found.map(([slots, what]) => `${slots} ${what}`).join(", ")
    const help = found.map(([, , remedy]) => remedy).join("; ")
    return `No room for block ${
      formatHash(hash)
    } of priority ${priority}: of ${capacity} slots ${counts}. To make room: ${help}; or use a larger storage.`
  }
}

/**
 * Every storage of the store was taken out because it failed. Lookups find nothing; a cache can go on without. `reasons`: why each of
 * `paths` was taken out.
 *
 * @since 0.1.0
 * @category errors
 */
export class NoStorageLeft extends Schema.TaggedError<NoStorageLeft>(id("NoStorageLeft"))(
  "NoStorageLeft",
  { paths: Schema.Array(Schema.String), reasons: Schema.Array(Schema.String) }
) {
  override get message(): string {
    const storages = this.paths.map((path, number) => `${path}: ${this.reasons[number] ?? "it failed"}`)
    return `Every storage of the block store was taken out (${
      storages.join(" | ")
    }) Go on without the disk, look at the kernel's log, and make a new store on a disk that works.`
  }
}

/**
 * The block store was released.
 *
 * @since 0.1.0
 * @category errors
 */
export class StoreClosed extends Schema.TaggedError<StoreClosed>(id("StoreClosed"))(
  "StoreClosed",
  {}
) {
  override get message(): string {
    return "The block store is released. Keep its Scope open for as long as it is used."
  }
}

/**
 * A block layout with a size above 2^53 − 1, the largest whole number that is exact here. `bytes` is that size, rounded.
 *
 * @since 0.1.0
 * @category errors
 */
export class LayoutOverflow extends Schema.TaggedError<LayoutOverflow>(id("LayoutOverflow"))(
  "LayoutOverflow",
  {
    quantity: Schema.Literal(
      "regionBytes",
      "layerBytes",
      "blockBytes",
      "blockStride",
      "blockPaddedBytes",
      "totalBytes"
    ),
    bytes: Schema.Number
  }
) {
  override get message(): string {
    return `The ${this.quantity} of the layout would be about ${this.bytes}, more than ${Number.MAX_SAFE_INTEGER}. Use fewer blocks, or correct the shape.`
  }
}

/**
 * The capacity holds not even one block of that shape. All in bytes.
 *
 * @since 0.1.0
 * @category errors
 */
export class LayoutDoesNotFit extends Schema.TaggedError<LayoutDoesNotFit>(id("LayoutDoesNotFit"))(
  "LayoutDoesNotFit",
  { needed: Schema.Number, available: Schema.Number }
) {
  override get message(): string {
    return `One block takes ${this.needed} bytes with its padding, and there are ${this.available}. Use a larger capacity, fewer tokens per block, or a smaller alignment.`
  }
}

/**
 * A layout has no block, layer or outer index (K or V) of that number. Indices count from 0.
 *
 * @since 0.1.0
 * @category errors
 */
export class IndexOutOfBounds extends Schema.TaggedError<IndexOutOfBounds>(id("IndexOutOfBounds"))(
  "IndexOutOfBounds",
  { what: Schema.Literal("block", "layer", "outer"), index: Schema.Number, count: Schema.Number }
) {
  override get message(): string {
    return `The ${this.what} index ${this.index} is not of this layout. It takes whole numbers from 0 to ${
      this.count - 1
    }.`
  }
}

/** What to do about an error of the CUDA driver, by its number (`CUresult` of cuda.h). */
const cudaRemedies: { readonly [code: number]: string } = {
  1: "An argument is outside what was allocated or pinned: copy within one pinned range, and use memory only while its Scope is open.",
  2: "Free device memory, ask for less, or look at who else uses the device (nvidia-smi); pinned memory is bounded by RLIMIT_MEMLOCK too.",
  3: "The driver is not initialised, or has shut down with the process: keep the layer open for as long as it is used.",
  4: "The driver is not initialised, or has shut down with the process: keep the layer open for as long as it is used.",
  34: "The library is the stub of the toolkit: name the one of the driver (DISK_STORAGE_CUDA_LIBRARY).",
  46: "Another process has the device for itself (nvidia-smi -q -d COMPUTE): end it, or use another device.",
  100: "No GPU is visible: look at nvidia-smi and CUDA_VISIBLE_DEVICES, and give a container its GPUs (--gpus all).",
  101: "There is no such device: look at nvidia-smi -L and CUDA_VISIBLE_DEVICES.",
  201: "The context is gone or not current: something else has reset the device.",
  214:
    "The device has an ECC error that it could not correct (nvidia-smi -q -d ECC): restart the process, and have the device looked at.",
  700: "Something on this device has touched memory that is not there. The context is lost: restart the process.",
  709: "The context is gone or not current: something else has reset the device.",
  712: "That memory is pinned already, by this process: pin each range once.",
  713: "That memory is not pinned any more: something else has unpinned it.",
  719: "Something that ran on this device has failed. The context is lost: restart the process.",
  800: "The operation is not permitted to this process: look at RLIMIT_MEMLOCK and at the container's capabilities.",
  801: "This device or platform cannot do that: go without pinned memory.",
  802: "The system is not ready: start nvidia-fabricmanager on systems with NVSwitch, and try again.",
  803:
    "The library and the kernel module are of different driver versions: load the new module (reboot), or take the compat library out of the way.",
  804: "The compat library does not support this device: take it out of LD_LIBRARY_PATH.",
  999: "The driver does not say why: look at the kernel's log (Xid), and at whether nvidia_uvm is loaded."
}

/**
 * The CUDA driver cannot be used here: its library cannot be loaded, it finds no device, it does not fit the kernel module, or the
 * service was released. `code` is the driver's, where a call failed.
 *
 * @since 0.1.0
 * @category errors
 */
export class CudaUnavailable extends Schema.TaggedError<CudaUnavailable>(id("CudaUnavailable"))(
  "CudaUnavailable",
  { library: Schema.String, reason: Schema.String, code: Schema.optional(Schema.Number) }
) {
  override get message(): string {
    const remedy = this.code === undefined ? undefined : cudaRemedies[this.code]
    return `CUDA cannot be used here (${this.library}): ${this.reason}.${remedy === undefined ? "" : ` ${remedy}`}`
  }
}

/**
 * A call of the CUDA driver failed. `name` is what the driver calls `code`. Some errors come from what ran on the device earlier.
 *
 * @since 0.1.0
 * @category errors
 */
export class CudaFailed extends Schema.TaggedError<CudaFailed>(id("CudaFailed"))(
  "CudaFailed",
  {
    /** The exported function, such as `cuMemAlloc_v2`. */
    call: Schema.String,
    code: Schema.Number,
    name: Schema.String,
    /** The ordinal of the device. */
    device: Schema.Number
  }
) {
  override get message(): string {
    const remedy = cudaRemedies[this.code]
    return `${this.call} failed on device ${this.device}: ${this.name} (${this.code}).${
      remedy === undefined ? "" : ` ${remedy}`
    }`
  }
}

/**
 * Device memory was used after the end of its Scope, or of the service's. Nothing was called.
 *
 * @since 0.1.0
 * @category errors
 */
export class DeviceMemoryFreed extends Schema.TaggedError<DeviceMemoryFreed>(id("DeviceMemoryFreed"))(
  "DeviceMemoryFreed",
  {
    /** The ordinal of the device. */
    device: Schema.Number,
    byteLength: Schema.Number
  }
) {
  override get message(): string {
    return `${this.byteLength} bytes of memory of device ${this.device} are freed. Keep their Scope open for as long as they are used.`
  }
}

/**
 * The two sides of a copy have different lengths, in bytes. Nothing was copied.
 *
 * @since 0.1.0
 * @category errors
 */
export class LengthMismatch extends Schema.TaggedError<LengthMismatch>(id("LengthMismatch"))(
  "LengthMismatch",
  { from: Schema.Number, to: Schema.Number }
) {
  override get message(): string {
    return `A copy from ${this.from} bytes to ${this.to} bytes was not begun: both have the same length. AlignedBuffer.slice and DeviceMemory.region name a part.`
  }
}

/** What to do about a status of NIXL's C API, by its name. */
const nixlRemedies: { readonly [name: string]: string } = {
  IN_PROG: "A request was still in progress where it must have ended: this is a mistake of NIXL or of this service.",
  INVALID_PARAM:
    "NIXL does not take an argument: look at the name of the backend and at its parameters, and at the log of NIXL (NIXL_LOG_LEVEL=INFO).",
  BACKEND:
    "The backend refused or failed: NIXL's log says why (NIXL_LOG_LEVEL=INFO). GDS and GDS_MT need cuFile and exclude each other, POSIX needs the queue that its parameters name, such as io_uring; plugins are found by NIXL_PLUGIN_DIR.",
  INVALID_STATE:
    "Something was used before it was ready or after it was gone: keep the layer open for as long as it is used.",
  EXCEPTION: "NIXL threw an exception: look at its log (NIXL_LOG_LEVEL=INFO).",
  NO_TELEMETRY: "Telemetry is off in this agent: nothing else is affected.",
  NOT_FOUND: "No backend of this agent takes that kind of memory: device memory needs GDS or GDS_MT (option backends).",
  EMFILE: "Raise the limit of open files (ulimit -n), or release storages."
}

/**
 * NIXL cannot be used here: the library of its C API cannot be loaded, or is another one.
 *
 * @since 0.1.0
 * @category errors
 */
export class NixlUnavailable extends Schema.TaggedError<NixlUnavailable>(id("NixlUnavailable"))(
  "NixlUnavailable",
  { library: Schema.String, reason: Schema.String }
) {
  override get message(): string {
    return `NIXL cannot be used here (${this.library}): ${this.reason}. Install NIXL 1.0 or later; DISK_STORAGE_NIXL_LIBRARY, or the option library, names the library of its C API.`
  }
}

/**
 * A call of NIXL's C API failed. After a failed transfer its range in the file, or in memory, is undefined.
 * An agent with the backend POSIX takes no further transfers of host memory then: see `NixlAgentFailed`.
 *
 * @since 0.1.0
 * @category errors
 */
export class NixlFailed extends Schema.TaggedError<NixlFailed>(id("NixlFailed"))(
  "NixlFailed",
  {
    /** The exported function, such as `nixl_capi_register_mem`. */
    call: Schema.String,
    /** Of `nixl_capi_status_t`; −errno where the call was one of libc. */
    status: Schema.Number,
    name: Schema.Literal(
      "SUCCESS",
      "IN_PROG",
      "INVALID_PARAM",
      "BACKEND",
      "INVALID_STATE",
      "EXCEPTION",
      "NO_TELEMETRY",
      "NOT_FOUND",
      "EMFILE",
      "UNKNOWN"
    ),
    /** What it was about: a backend, a file, memory, a transfer. */
    target: Schema.String
  }
) {
  override get message(): string {
    const remedy = nixlRemedies[this.name]
    return `${this.call} failed for ${this.target}: ${this.name} (${this.status}).${
      remedy === undefined ? "" : ` ${remedy}`
    }`
  }
}

/**
 * A registration with NIXL, or the service itself, was used after its end. Nothing was called.
 *
 * @since 0.1.0
 * @category errors
 */
export class NixlClosed extends Schema.TaggedError<NixlClosed>(id("NixlClosed"))(
  "NixlClosed",
  { what: Schema.String }
) {
  override get message(): string {
    return `${this.what} is not registered with NIXL any more. Keep its Scope open for as long as it is used, and register again.`
  }
}

/**
 * A transfer of host memory was refused, or given up, because an earlier one of the agent failed. The queues of
 * NIXL's POSIX backend (1.0 to 1.4) repeat the error of one transfer for every later one, while the kernel still
 * moves their bytes. The fields are those of the first failure.
 *
 * @since 0.1.0
 * @category errors
 */
export class NixlAgentFailed extends Schema.TaggedError<NixlAgentFailed>(id("NixlAgentFailed"))(
  "NixlAgentFailed",
  {
    agentName: Schema.String,
    /** The exported function that failed first. */
    call: Schema.String,
    status: Schema.Number,
    name: Schema.String,
    /** The transfer that failed first. */
    target: Schema.String
  }
) {
  override get message(): string {
    return `The agent ${this.agentName} takes no further transfers, since ${this.call} failed for ${this.target}: ${this.name} (${this.status}). NIXL repeats that error for later transfers. Close the Scope of this agent, make a new one, and register again.`
  }
}

/**
 * NIXL reported a transfer as done, and the file or the memory holds other bytes. The range is undefined then.
 *
 * @since 0.1.0
 * @category errors
 */
export class NixlUnconfirmed extends Schema.TaggedError<NixlUnconfirmed>(id("NixlUnconfirmed"))(
  "NixlUnconfirmed",
  {
    operation: Schema.Literal("read", "write"),
    path: Schema.String,
    /** bytes, of the piece in which the difference is */
    offset: Schema.Number,
    length: Schema.Number
  }
) {
  override get message(): string {
    return `NIXL reported a ${this.operation} of ${this.length} bytes at offset ${this.offset} of ${this.path} as done, and it was not, or not whole. Look for an I/O error in the kernel's log, for limits of file sizes (ulimit -f), and for other writers; then repeat it.`
  }
}

/**
 * Memory was to be registered that overlaps memory of the same agent. NIXL (1.0 to 1.4) looks a range up next to
 * where it would be sorted, and does not find it behind a registration inside of another. Nothing was registered.
 *
 * @since 0.1.0
 * @category errors
 */
export class NixlOverlap extends Schema.TaggedError<NixlOverlap>(id("NixlOverlap"))(
  "NixlOverlap",
  { what: Schema.String, other: Schema.String }
) {
  override get message(): string {
    return `${this.what} overlap ${this.other} that the agent has registered already. Register the whole once, and name parts of it by start and length.`
  }
}

/**
 * What `DiskStorage.make` fails with.
 *
 * @since 0.1.0
 * @category errors
 */
export type AcquireError =
  | InvalidOption
  | DirectoryUnusable
  | DirectoryUnsafe
  | MountMissing
  | WorkingDirectoryGone
  | CreateFailed
  | FileReplaced
  | DirectIoRefused
  | DirectIoUnavailable
  | InsufficientSpace
  | OutOfSpace
  | AllocationFailed
  | PrewriteRefused
  | IoStalled
  | BufferUnavailable

/**
 * What an engine's operation fails with.
 *
 * @since 0.1.0
 * @category errors
 */
export type OperationError = StorageClosed | StorageDegraded | BufferBusy | IoFailed | IoStalled

/**
 * What a transfer of aligned memory fails with.
 *
 * @since 0.1.0
 * @category errors
 */
export type TransferError = OperationError | OutOfBounds | Misaligned | InvalidOption

/**
 * What a transfer of any range fails with.
 *
 * @since 0.1.0
 * @category errors
 */
export type BytesError =
  | StorageClosed
  | StorageDegraded
  | OutOfBounds
  | BufferUnavailable
  | IoFailed
  | IoStalled
  | InvalidOption

/**
 * What a storage, or device memory, is not registered with cuFile for.
 *
 * @since 0.1.0
 * @category errors
 */
export type CuFileRegisterError = CuFileFailed | CuFileReleased | DuplicateKey | StorageClosed | StorageUnlinked

/**
 * What a transfer by cuFile fails with.
 *
 * @since 0.1.0
 * @category errors
 */
export type CuFileTransferError = CuFileFailed | CuFileReleased | StorageClosed | OutOfBounds | DeviceMemoryFreed

/**
 * What a block layout is not made with.
 *
 * @since 0.1.0
 * @category errors
 */
export type LayoutError = InvalidOption | LayoutOverflow

/**
 * What becomes of a block that was not offloaded.
 *
 * @since 0.1.0
 * @category errors
 */
export type OffloadError = InvalidBlock | StoreFull | NoStorageLeft | StoreClosed | TransferError

/**
 * What becomes of a block that was not onboarded.
 *
 * @since 0.1.0
 * @category errors
 */
export type OnboardError = InvalidBlock | BlockNotFound | BlockCorrupted | StoreClosed | TransferError

/**
 * No bytes can be moved between storages and a device here; `reasons` say why, the decisive first.
 *
 * @since 0.1.0
 * @category errors
 */
export class DevicePathUnavailable extends Schema.TaggedError<DevicePathUnavailable>(id("DevicePathUnavailable"))(
  "DevicePathUnavailable",
  { reasons: Schema.Array(Schema.String) }
) {
  override get message(): string {
    return `There is no path between storages and a GPU here: ${
      this.reasons.join("; ")
    }. Keep the blocks in host memory, or see effect-disk-storage doctor.`
  }
}

/**
 * What a copy to, from or on a device fails with.
 *
 * @since 0.1.0
 * @category errors
 */
export type CopyError = CudaFailed | DeviceMemoryFreed | LengthMismatch | OutOfBounds | InvalidOption

/**
 * What a transfer between a storage and a device fails with.
 *
 * @since 0.1.0
 * @category errors
 */
export type DeviceTransferError =
  | TransferError
  | CopyError
  | CuFileTransferError
  | CuFileRegisterError
  | DevicePathUnavailable

/**
 * What a transfer through NIXL fails with.
 *
 * @since 0.1.0
 * @category errors
 */
export type NixlTransferError =
  | NixlFailed
  | NixlAgentFailed
  | NixlUnconfirmed
  | NixlClosed
  | StorageClosed
  | OutOfBounds
  | Misaligned
  | BufferBusy
  | IoStalled
  | InvalidOption

/**
 * Every error of this module.
 *
 * @since 0.1.0
 * @category errors
 */
export type DiskStorageError =
  | AcquireError
  | TransferError
  | ForeignMemory
  | EngineUnavailable
  | PlatformNotSupported
  | NativeModuleMissing
  | StorageUnlinked
  | UnlinkFailed
  | KeepFailed
  | SweepFailed
  | DuplicateKey
  | ReleaseFailed
  | CuFileUnavailable
  | CuFileRegisterError
  | CuFileTransferError
  | BudgetExceeded
  | LayoutOverflow
  | LayoutDoesNotFit
  | IndexOutOfBounds
  | OffloadError
  | OnboardError
  | CudaUnavailable
  | CopyError
  | DevicePathUnavailable
  | NixlUnavailable
  | NixlOverlap
  | NixlTransferError

const classes = [
  DevicePathUnavailable,
  InvalidOption,
  DirectoryUnusable,
  DirectoryUnsafe,
  MountMissing,
  WorkingDirectoryGone,
  CreateFailed,
  FileReplaced,
  DirectIoRefused,
  DirectIoUnavailable,
  ExtentsUnavailable,
  InsufficientSpace,
  OutOfSpace,
  AllocationFailed,
  PrewriteRefused,
  BufferUnavailable,
  StorageClosed,
  OutOfBounds,
  Misaligned,
  ForeignMemory,
  BufferBusy,
  IoFailed,
  IoStalled,
  StorageDegraded,
  EngineUnavailable,
  PlatformNotSupported,
  NativeModuleMissing,
  StorageUnlinked,
  UnlinkFailed,
  KeepFailed,
  SweepFailed,
  DuplicateKey,
  ReleaseFailed,
  CuFileUnavailable,
  CuFileFailed,
  CuFileReleased,
  BudgetExceeded,
  LayoutOverflow,
  LayoutDoesNotFit,
  IndexOutOfBounds,
  InvalidBlock,
  BlockNotFound,
  BlockCorrupted,
  StoreFull,
  NoStorageLeft,
  StoreClosed,
  CudaUnavailable,
  CudaFailed,
  DeviceMemoryFreed,
  LengthMismatch,
  NixlUnavailable,
  NixlFailed,
  NixlClosed,
  NixlAgentFailed,
  NixlUnconfirmed,
  NixlOverlap
]

/**
 * Whether a value is an error of this module.
 *
 * @since 0.1.0
 * @category guards
 */
export const isDiskStorageError = (u: unknown): u is DiskStorageError => classes.some((error) => u instanceof error)
