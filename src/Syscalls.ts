/**
 * The kernel calls that the disk tier makes, as an abstract service: the real kernel is `LinuxSyscalls`, an in-memory one
 * `SimulatedSyscalls`. Nothing here knows either of them.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = Symbol.for("effect-disk-storage/Syscalls")

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * Linux error numbers (`asm-generic/errno-base.h` and `errno.h`; the same on x86-64 and arm64), by name.
 *
 * @since 0.1.0
 * @category errnos
 */
export const errnos = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  EXDEV: 18,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOTTY: 25,
  ETXTBSY: 26,
  EFBIG: 27,
  ENOSPC: 28,
  ESPIPE: 29,
  EROFS: 30,
  EMLINK: 31,
  EPIPE: 32,
  ERANGE: 34,
  ENAMETOOLONG: 36,
  ENOLCK: 37,
  ENOSYS: 38,
  ENOTEMPTY: 39,
  ELOOP: 40,
  ENODATA: 61,
  EOVERFLOW: 75,
  ELIBACC: 79,
  EOPNOTSUPP: 95,
  ESTALE: 116,
  EDQUOT: 122
} as const

/**
 * @since 0.1.0
 * @category errnos
 */
export type ErrnoCode = keyof typeof errnos

/**
 * Which errors each call can give, from its man page and the kernel sources behind it. `EINTR` is listed where the kernel
 * can give it although a caller sees it from `close` alone: everywhere else it is retried (see `Syscalls`).
 *
 * @since 0.1.0
 * @category errnos
 */
export const errnosBySyscall = {
  mkdir: [
    "EACCES",
    "EDQUOT",
    "EEXIST",
    "EIO",
    "ELOOP",
    "EMLINK",
    "ENAMETOOLONG",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "ENOTDIR",
    "EPERM",
    "EROFS",
    "ESTALE"
  ],
  mkostemp: [
    "EACCES",
    "EDQUOT",
    "EEXIST",
    "EINTR",
    "EINVAL",
    "EIO",
    "ELOOP",
    "EMFILE",
    "ENAMETOOLONG",
    "ENFILE",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "ENOTDIR",
    "EPERM",
    "EROFS",
    "ESTALE"
  ],
  open: [
    "EACCES",
    "EBUSY",
    "EINTR",
    "EINVAL",
    "EIO",
    "EISDIR",
    "ELOOP",
    "EMFILE",
    "ENAMETOOLONG",
    "ENFILE",
    "ENOENT",
    "ENOMEM",
    "ENOTDIR",
    "ENXIO",
    "EOPNOTSUPP",
    "EPERM",
    "EROFS",
    "ESTALE",
    "ETXTBSY"
  ],
  fcntlGetFlags: ["EBADF"],
  fcntlSetFlags: ["EBADF", "EINVAL", "EPERM"],
  fcntlSetLock: ["EACCES", "EAGAIN", "EBADF", "EINTR", "EINVAL", "EIO", "ENOLCK", "ENOMEM", "EOPNOTSUPP"],
  ioctlGetFlags: ["EBADF", "EINVAL", "EIO", "ENOTTY", "EOPNOTSUPP"],
  ioctlSetFlags: ["EACCES", "EBADF", "EINTR", "EINVAL", "EIO", "ENOSPC", "ENOTTY", "EOPNOTSUPP", "EPERM", "EROFS"],
  fallocate: [
    "EBADF",
    "EDQUOT",
    "EFBIG",
    "EINTR",
    "EINVAL",
    "EIO",
    "ENODEV",
    "ENOSPC",
    "ENOSYS",
    "EOPNOTSUPP",
    "EPERM",
    "ESPIPE",
    "ETXTBSY"
  ],
  ftruncate: ["EBADF", "EDQUOT", "EFBIG", "EINTR", "EINVAL", "EIO", "ENOSPC", "EPERM", "EROFS", "ETXTBSY"],
  pread: ["EAGAIN", "EBADF", "EFAULT", "EINTR", "EINVAL", "EIO", "EISDIR", "ENXIO", "EOVERFLOW", "ESPIPE", "ESTALE"],
  pwrite: [
    "EAGAIN",
    "EBADF",
    "EDQUOT",
    "EFAULT",
    "EFBIG",
    "EINTR",
    "EINVAL",
    "EIO",
    "ENOSPC",
    "ENXIO",
    "EPERM",
    "EPIPE",
    "ESPIPE",
    "ESTALE"
  ],
  fdatasync: ["EBADF", "EDQUOT", "EINTR", "EINVAL", "EIO", "ENOSPC", "EROFS"],
  statx: [
    "EACCES",
    "EBADF",
    "EFAULT",
    "EINVAL",
    "EIO",
    "ELOOP",
    "ENAMETOOLONG",
    "ENOENT",
    "ENOMEM",
    "ENOSYS",
    "ENOTDIR",
    "ESTALE"
  ],
  fstatfs: ["EBADF", "EFAULT", "EINTR", "EIO", "ENOMEM", "ENOSYS", "EOVERFLOW"],
  unlink: [
    "EACCES",
    "EBUSY",
    "EFAULT",
    "EIO",
    "EISDIR",
    "ELOOP",
    "ENAMETOOLONG",
    "ENOENT",
    "ENOMEM",
    "ENOTDIR",
    "EPERM",
    "EROFS",
    "ESTALE"
  ],
  rename: [
    "EACCES",
    "EBUSY",
    "EDQUOT",
    "EEXIST",
    "EFAULT",
    "EINVAL",
    "EIO",
    "EISDIR",
    "ELOOP",
    "EMLINK",
    "ENAMETOOLONG",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "ENOTDIR",
    "ENOTEMPTY",
    "EPERM",
    "EROFS",
    "ESTALE",
    "EXDEV"
  ],
  readdir: [
    "EACCES",
    "EBADF",
    "EINTR",
    "EIO",
    "ELOOP",
    "EMFILE",
    "ENAMETOOLONG",
    "ENFILE",
    "ENOENT",
    "ENOMEM",
    "ENOTDIR",
    "EPERM",
    "ESTALE"
  ],
  readlink: [
    "EACCES",
    "EINVAL",
    "EIO",
    "ELOOP",
    "ENAMETOOLONG",
    "ENOENT",
    "ENOMEM",
    "ENOTDIR",
    "ESTALE"
  ],
  close: ["EBADF", "EDQUOT", "EINTR", "EIO", "ENOSPC"],
  fgetxattr: [
    "E2BIG",
    "EACCES",
    "EBADF",
    "EIO",
    "ENODATA",
    "ENOMEM",
    "ENOSYS",
    "EOPNOTSUPP",
    "EPERM",
    "ERANGE",
    "ESTALE"
  ],
  fsetxattr: [
    "E2BIG",
    "EACCES",
    "EBADF",
    "EDQUOT",
    "EIO",
    "ENOMEM",
    "ENOSPC",
    "ENOSYS",
    "EOPNOTSUPP",
    "EPERM",
    "ERANGE",
    "EROFS",
    "ESTALE"
  ],
  fadvise: ["EBADF", "EINVAL", "ESPIPE"],
  cachestat: ["EBADF", "EFAULT", "EINVAL", "ENOSYS", "EOPNOTSUPP", "EPERM"],
  fiemap: ["EBADF", "EFAULT", "EINTR", "EINVAL", "EIO", "ENOMEM", "ENOTTY", "EOPNOTSUPP"],
  ficlone: [
    "EBADF",
    "EDQUOT",
    "EINVAL",
    "EIO",
    "EISDIR",
    "ENOSPC",
    "ENOTTY",
    "EOPNOTSUPP",
    "EPERM",
    "ETXTBSY",
    "EXDEV"
  ],
  mmap: ["EACCES", "EAGAIN", "EBADF", "EINVAL", "ENFILE", "ENODEV", "ENOMEM", "EOVERFLOW", "EPERM"],
  mincore: ["EAGAIN", "EFAULT", "EINVAL", "ENOMEM"],
  munmap: ["EINVAL", "ENOMEM"],
  dlopen: ["ELIBACC", "EMFILE", "ENFILE", "ENOMEM"]
} as const satisfies Record<string, ReadonlyArray<ErrnoCode>>

/**
 * @since 0.1.0
 * @category models
 */
export type SyscallName = keyof typeof errnosBySyscall

/**
 * One failed kernel call. `code` is the name of `errno` where it has one in `errnos`, else `E` and the number.
 *
 * @since 0.1.0
 * @category errors
 */
export class SyscallError extends Schema.TaggedError<SyscallError>("effect-disk-storage/SyscallError")("SyscallError", {
  syscall: Schema.String,
  errno: Schema.Int,
  code: Schema.String,
  path: Schema.optional(Schema.String),
  fd: Schema.optional(Schema.Int)
}) {
  override get message(): string {
    const target = this.path !== undefined ? ` of ${this.path}` : this.fd !== undefined ? ` of fd ${this.fd}` : ""
    return `${this.syscall}${target} failed with ${this.code} (errno ${this.errno})`
  }
}

/**
 * What the disk tier reads of `statx(2)`. `directIo` is `undefined` where the kernel or the filesystem does not answer
 * (the `STATX_DIOALIGN` bit is clear); 0 / 0 is an answer: no direct I/O on this file. `readOffsetAlignment` is there where reads want
 * another offset alignment (`STATX_DIO_READ_ALIGN`, Linux 6.14).
 *
 * @since 0.1.0
 * @category models
 */
export interface Statx {
  readonly deviceMajor: number
  readonly deviceMinor: number
  readonly inode: bigint
  readonly links: number
  /** `st_mode`: the kind of the file (`S_IFMT`) and its permissions. */
  readonly mode: number
  /** The user who owns it. */
  readonly uid: number
  /** bytes */
  readonly size: number
  /** bytes that the file holds on the disk: `stx_blocks` × 512 */
  readonly allocated: number
  readonly directIo:
    | {
      readonly memoryAlignment: number
      readonly offsetAlignment: number
      readonly readOffsetAlignment?: number | undefined
    }
    | undefined
  /** `STATX_ATTR_*` of `uapi/linux/stat.h`, the lower half. */
  readonly attributes: number
  /** The attributes that the kernel knows of this file: others are clear and say nothing. Left out: none. */
  readonly attributesMask?: number | undefined
  /** Where `statx(2)` is refused, as in old sandboxes, the answer is that of `fstat(2)`, which has no alignment and no attributes. */
  readonly source?: "fstat" | undefined
  /** The id of the mount, as in the first field of `/proc/self/mountinfo`; `undefined` before Linux 5.8. */
  readonly mountId: number | undefined
}

/**
 * What of a range is in the page cache (`cachestat(2)`), in pages.
 *
 * @since 0.1.0
 * @category models
 */
export interface CacheStat {
  readonly cached: number
  readonly dirty: number
  readonly writeback: number
}

/**
 * One extent of a file (`struct fiemap_extent` of `uapi/linux/fiemap.h`): bytes, and its `FIEMAP_EXTENT_*` flags.
 *
 * @since 0.1.0
 * @category models
 */
export interface FiemapExtent {
  readonly logical: number
  readonly physical: number
  readonly length: number
  readonly flags: number
}

/**
 * What the disk tier reads of `fstatfs(2)`: `type` is the filesystem's magic number; the counts are bytes.
 *
 * @since 0.1.0
 * @category models
 */
export interface Statfs {
  readonly type: number
  readonly blockSize: number
  readonly total: number
  readonly free: number
  readonly available: number
}

/**
 * Flags of `open(2)`. Their numbers differ between architectures, so they come with the kernel.
 *
 * @since 0.1.0
 * @category models
 */
export interface OpenFlags {
  readonly O_RDWR: number
  readonly O_CLOEXEC: number
  readonly O_DIRECT: number
  readonly O_NOFOLLOW: number
  readonly O_DIRECTORY: number
  readonly O_PATH: number
  readonly O_NONBLOCK: number
  readonly O_TMPFILE: number
}

/**
 * `FS_NOCOW_FL` of `ioctl_iflags(2)`: no copy-on-write for this file (btrfs).
 *
 * @since 0.1.0
 * @category models
 */
export const FS_NOCOW_FL = 0x0080_0000

/**
 * The bits of a mode that say what kind of file it is, and those of a regular file (`uapi/linux/stat.h`).
 *
 * @since 0.1.0
 * @category models
 */
export const S_IFMT = 0o170_000

/**
 * @since 0.1.0
 * @category models
 */
export const S_IFREG = 0o100_000

/**
 * @since 0.1.0
 * @category models
 */
export const S_IFDIR = 0o040_000

/**
 * @since 0.1.0
 * @category models
 */
export const S_IFLNK = 0o120_000

/**
 * `STATX_ATTR_DAX` of `uapi/linux/stat.h`: the file is memory itself, read and written by the CPU.
 *
 * @since 0.1.0
 * @category models
 */
export const STATX_ATTR_DAX = 0x20_0000

/**
 * `STATX_ATTR_MOUNT_ROOT` of `uapi/linux/stat.h` (Linux 5.8): the root of a mount.
 *
 * @since 0.1.0
 * @category models
 */
export const STATX_ATTR_MOUNT_ROOT = 0x2000

/**
 * `POSIX_FADV_DONTNEED` of `uapi/linux/fadvise.h`, the same on x86-64 and arm64: drop what is clean of a range from the page cache.
 *
 * @since 0.1.0
 * @category models
 */
export const POSIX_FADV_DONTNEED = 4

/**
 * `FALLOC_FL_WRITE_ZEROES` of `uapi/linux/falloc.h` (Linux 6.17): written extents of zeros, made by the device where it can.
 *
 * @since 0.1.0
 * @category models
 */
export const FALLOC_FL_WRITE_ZEROES = 0x80

/**
 * The calls. Paths are absolute or relative to the working directory; offsets and lengths are bytes as safe integers; file
 * descriptors are plain numbers that the caller owns and closes.
 *
 * Every call fails with `SyscallError` alone. `EINTR` is retried inside, except on `close`, whose descriptor is gone even
 * then. A call that has begun cannot be interrupted: the effect ends when the kernel has answered, and what waits for its
 * turn can be interrupted. Memory given to `pread` and `pwrite` belongs to the kernel until the effect ends.
 *
 * @since 0.1.0
 * @category models
 */
export interface Syscalls {
  readonly [TypeId]: TypeId
  readonly flags: OpenFlags
  /** Bytes of a page of memory: 4096, on some arm64 kernels 16384 or 65536. */
  readonly pageSize: number
  readonly mkdir: (path: string, mode: number) => Effect.Effect<void, SyscallError>
  /** Creates and opens (read and write, mode 0600) a new file at `prefix` plus six random characters. `path` is absolute. */
  readonly mkostemp: (
    prefix: string,
    flags: number
  ) => Effect.Effect<{ readonly fd: number; readonly path: string }, SyscallError>
  /** Opens an existing file; with O_TMPFILE, makes one without a name (mode 0600) in the directory `path`. */
  readonly open: (path: string, flags: number) => Effect.Effect<number, SyscallError>
  /** `fcntl(fd, F_GETFL)` */
  readonly fcntlGetFlags: (fd: number) => Effect.Effect<number, SyscallError>
  /** `fcntl(fd, F_SETFL, flags)` */
  readonly fcntlSetFlags: (fd: number, flags: number) => Effect.Effect<void, SyscallError>
  /**
   * `fcntl(fd, F_OFD_SETLK)` with a write lock on all of the file: it belongs to the open file description, excludes every other one's,
   * and ends when the last descriptor of that description is closed, as at the end of the process. `EAGAIN` while another has it.
   */
  readonly fcntlSetLock: (fd: number) => Effect.Effect<void, SyscallError>
  /** `ioctl(fd, FS_IOC_GETFLAGS)` */
  readonly ioctlGetFlags: (fd: number) => Effect.Effect<number, SyscallError>
  /** `ioctl(fd, FS_IOC_SETFLAGS, flags)` */
  readonly ioctlSetFlags: (fd: number, flags: number) => Effect.Effect<void, SyscallError>
  readonly fallocate: (fd: number, mode: number, offset: number, length: number) => Effect.Effect<void, SyscallError>
  readonly ftruncate: (fd: number, length: number) => Effect.Effect<void, SyscallError>
  /** Bytes read, which may be fewer than asked for; 0 at the end of the file. */
  readonly pread: (fd: number, into: Uint8Array, offset: number) => Effect.Effect<number, SyscallError>
  /** Bytes written, which may be fewer than given. */
  readonly pwrite: (fd: number, from: Uint8Array, offset: number) => Effect.Effect<number, SyscallError>
  readonly fdatasync: (fd: number) => Effect.Effect<void, SyscallError>
  /** Of the file that is open as `fd`, or of `path` below that directory, where a link at its end is not followed. */
  readonly statx: (fd: number, path?: string) => Effect.Effect<Statx, SyscallError>
  readonly fstatfs: (fd: number) => Effect.Effect<Statfs, SyscallError>
  readonly unlink: (path: string) => Effect.Effect<void, SyscallError>
  /** Gives a file another name of the same filesystem. What has that name is replaced in one step, and unlinked. */
  readonly rename: (from: string, to: string) => Effect.Effect<void, SyscallError>
  /** The names in a directory, without "." and "..". */
  readonly readdir: (path: string) => Effect.Effect<ReadonlyArray<string>, SyscallError>
  /** Where a symbolic link points to; `EINVAL` for anything else. */
  readonly readlink: (path: string) => Effect.Effect<string, SyscallError>
  /** The effective user of this process, whose files it makes. */
  readonly geteuid: Effect.Effect<number>
  readonly close: (fd: number) => Effect.Effect<void, SyscallError>
  /** Bytes of an extended attribute's value, which is put into `into`; `ENODATA` where there is none, `ERANGE` where it is longer. */
  readonly fgetxattr: (fd: number, name: string, into: Uint8Array) => Effect.Effect<number, SyscallError>
  readonly fsetxattr: (fd: number, name: string, value: Uint8Array) => Effect.Effect<void, SyscallError>
  readonly fadvise: (fd: number, offset: number, length: number, advice: number) => Effect.Effect<void, SyscallError>
  /** Linux 6.5 and later. */
  readonly cachestat: (fd: number, offset: number, length: number) => Effect.Effect<CacheStat, SyscallError>
  /** `ioctl(fd, FS_IOC_FIEMAP)` without flags: the first extents that touch the range, at most 128 of them, in order. */
  readonly fiemap: (
    fd: number,
    offset: number,
    length: number
  ) => Effect.Effect<ReadonlyArray<FiemapExtent>, SyscallError>
  /** `ioctl(fd, FICLONE, source)`: `fd` becomes a reflinked copy of `source`. */
  readonly ficlone: (fd: number, source: number) => Effect.Effect<void, SyscallError>
  /**
   * Maps a range (`offset` a multiple of the page) to read, shared, and gives its address. `populate` brings its pages in. Nothing reads
   * through it: it is there to be asked about with `mincore`, and to hold pages in the page cache.
   */
  readonly mmap: (fd: number, offset: number, length: number, populate: boolean) => Effect.Effect<number, SyscallError>
  /** How many pages of a mapping are in the page cache. */
  readonly mincore: (address: number, length: number) => Effect.Effect<number, SyscallError>
  readonly munmap: (address: number, length: number) => Effect.Effect<void, SyscallError>
  /**
   * Loads a shared library into this process, for good; `ELIBACC` where it, or a library that it needs, cannot be had, unless
   * descriptors or memory ran out.
   */
  readonly dlopen: (library: string) => Effect.Effect<void, SyscallError>
}

/**
 * @since 0.1.0
 * @category tags
 */
export const Syscalls: Context.Tag<Syscalls, Syscalls> = Context.GenericTag<Syscalls>("effect-disk-storage/Syscalls")

const notImplemented = (syscall: SyscallName) => () =>
  Effect.fail(new SyscallError({ syscall, errno: errnos.ENOSYS, code: "ENOSYS" }))

/**
 * A kernel that knows only the calls given; every other one fails with `ENOSYS`. For tests of code that meets few calls;
 * `SimulatedSyscalls` is a whole kernel.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerNoop = (calls: Partial<Omit<Syscalls, TypeId>>): Layer.Layer<Syscalls> =>
  Layer.succeed(Syscalls, {
    [TypeId]: TypeId,
    flags: {
      O_RDWR: 0o2,
      O_CLOEXEC: 0o2_000_000,
      O_DIRECT: 0o40_000,
      O_NOFOLLOW: 0o400_000,
      O_DIRECTORY: 0o200_000,
      O_PATH: 0o10_000_000,
      O_NONBLOCK: 0o4000,
      O_TMPFILE: 0o20_200_000
    },
    pageSize: 4096,
    mkdir: notImplemented("mkdir"),
    mkostemp: notImplemented("mkostemp"),
    open: notImplemented("open"),
    fcntlGetFlags: notImplemented("fcntlGetFlags"),
    fcntlSetFlags: notImplemented("fcntlSetFlags"),
    fcntlSetLock: notImplemented("fcntlSetLock"),
    ioctlGetFlags: notImplemented("ioctlGetFlags"),
    ioctlSetFlags: notImplemented("ioctlSetFlags"),
    fallocate: notImplemented("fallocate"),
    ftruncate: notImplemented("ftruncate"),
    pread: notImplemented("pread"),
    pwrite: notImplemented("pwrite"),
    fdatasync: notImplemented("fdatasync"),
    statx: notImplemented("statx"),
    fstatfs: notImplemented("fstatfs"),
    unlink: notImplemented("unlink"),
    rename: notImplemented("rename"),
    readdir: notImplemented("readdir"),
    readlink: notImplemented("readlink"),
    geteuid: Effect.succeed(0),
    close: notImplemented("close"),
    fgetxattr: notImplemented("fgetxattr"),
    fsetxattr: notImplemented("fsetxattr"),
    fadvise: notImplemented("fadvise"),
    cachestat: notImplemented("cachestat"),
    fiemap: notImplemented("fiemap"),
    ficlone: notImplemented("ficlone"),
    mmap: notImplemented("mmap"),
    mincore: notImplemented("mincore"),
    munmap: notImplemented("munmap"),
    dlopen: notImplemented("dlopen"),
    ...calls
  })
