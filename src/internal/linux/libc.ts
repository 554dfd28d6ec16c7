/** The real kernel, called through libc with koffi. */
import * as Effect from "effect/Effect"
import { fstat, lstat, readdir, readlink } from "node:fs"
import type { BigIntStats } from "node:fs"
import type { NativeModuleMissing, PlatformNotSupported } from "../../DiskStorageError.js"
import { errnos } from "../../Syscalls.js"
import type { FiemapExtent, Statx } from "../../Syscalls.js"
import type { Kernel, Out } from "../kernel.js"
import * as linkedFiles from "../linkedFiles.js"
import { isFaithful } from "../pathText.js"
import { pageSize } from "../slab.js"
import { native } from "./native.js"
import type { Argument, CFunction } from "./native.js"
import { endingWithThread } from "./threadExit.js"

// uapi/linux/fcntl.h and uapi/linux/fs.h; the ioctls carry the size of a long in their number and an int at the pointer.
const F_GETFL = 3
const F_SETFL = 4
const F_OFD_SETLK = 37
const FS_IOC_GETFLAGS = 0x8008_6601
const FS_IOC_SETFLAGS = 0x4008_6602
const FICLONE = 0x4004_9409

// struct flock of both architectures: l_type (F_WRLCK), l_whence, l_start, l_len (0: to the end), l_pid; 32 bytes with padding.
const flockBytes = 32
const F_WRLCK = 1

// uapi/linux/fiemap.h: struct fiemap of 32 bytes, then as many struct fiemap_extent of 56 as were asked for.
const FS_IOC_FIEMAP = 0xc020_660b
const fiemapBytes = 32
const fiemapExtentBytes = 56
const fiemapExtents = 128

// uapi/linux/stat.h
const AT_SYMLINK_NOFOLLOW = 0x100
const AT_EMPTY_PATH = 0x1000
const AT_STATX_FORCE_SYNC = 0x2000
/** What a name is that of is not taken from a cache: FUSE and NFS ask their server. */
const namedFlags = AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC
const STATX_BASIC_STATS = 0x7ff
const STATX_MNT_ID = 0x1000
const STATX_DIOALIGN = 0x2000
const STATX_DIO_READ_ALIGN = 0x2_0000
const statxMask = STATX_BASIC_STATS | STATX_MNT_ID | STATX_DIOALIGN | STATX_DIO_READ_ALIGN

/** The same on x86-64 and arm64 (`uapi/asm-generic/unistd.h`). */
const SYS_cachestat = 451

// uapi/asm-generic/mman-common.h and mman.h
const PROT_READ = 0x1
const MAP_SHARED = 0x1
const MAP_POPULATE = 0x8000

// dlfcn.h of glibc and musl
const RTLD_LAZY = 0x1

/** How sandboxes refuse statx, as libuv has met them (`uv__fs_statx`); each means this call here, whose arguments are right. */
const statxRefusals: ReadonlyArray<number> = [errnos.EPERM, errnos.ENOSYS, errnos.EOPNOTSUPP, errnos.EINVAL]

/** The upper and the lower part of a device number of Linux (`makedev(3)`). */
const majorOf = (device: bigint) => Number(device >> 32n & 0xffff_f000n | device >> 8n & 0xfffn)
const minorOf = (device: bigint) => Number(device >> 12n & 0xffff_ff00n | device & 0xffn)

/** What fstat knows of what statx would have said. */
const ofFstat = (stats: BigIntStats): Statx => ({
  source: "fstat",
  mountId: undefined,
  attributes: 0,
  links: Number(stats.nlink),
  uid: Number(stats.uid),
  mode: Number(stats.mode),
  inode: stats.ino,
  size: Number(stats.size),
  allocated: Number(stats.blocks) * 512,
  deviceMajor: majorOf(stats.dev),
  deviceMinor: minorOf(stats.dev),
  directIo: undefined
})

/** One entry of `mincore`'s vector says of a page, in its lowest bit, whether it is there. */
const residentPages = (vector: Uint8Array) => vector.reduce((pages, entry) => pages + (entry & 1), 0)

/**
 * libuv's pool has four threads that fs, dns, zlib and crypto share; koffi's off-thread calls take at most two of them.
 * One gate for the process, as the pool is.
 */
const gate = Effect.unsafeMakeSemaphore(2)

/** The arguments of calls that a thread is making: their memory must not be collected meanwhile. */
const inFlight = new Set<ReadonlyArray<Argument>>()

export const make: Effect.Effect<Kernel, PlatformNotSupported | NativeModuleMissing> = Effect.gen(function*() {
  const { architecture, declare, koffi } = yield* native
  const mkdir = yield* declare("mkdir", "int", ["str", "uint32_t"])
  const mkostemp = yield* declare("mkostemp", "int", ["void *", "int"])
  const open = yield* declare("open", "int", ["str", "int", "uint32_t"])
  const fcntl = yield* declare("fcntl", "int", ["int", "int", "long"])
  const fcntlPointer = yield* declare("fcntl", "int", ["int", "int", "void *"])
  const ioctl = yield* declare("ioctl", "int", ["int", "unsigned long", "void *"])
  const fallocate = yield* declare("fallocate", "int", ["int", "int", "int64_t", "int64_t"])
  const ftruncate = yield* declare("ftruncate", "int", ["int", "int64_t"])
  const pread = yield* declare("pread", "int64_t", ["int", "void *", "size_t", "int64_t"])
  const pwrite = yield* declare("pwrite", "int64_t", ["int", "void *", "size_t", "int64_t"])
  const fdatasync = yield* declare("fdatasync", "int", ["int"])
  // Through syscall(2): musl has had a statx of its own only since 1.2.5.
  const statx = yield* declare("syscall", "long", ["long", "int", "str", "int", "unsigned int", "void *"])
  const fstatfs = yield* declare("fstatfs", "int", ["int", "void *"])
  const unlink = yield* declare("unlink", "int", ["str"])
  const rename = yield* declare("rename", "int", ["str", "str"])
  const close = yield* declare("close", "int", ["int"])
  const fgetxattr = yield* declare("fgetxattr", "int64_t", ["int", "str", "void *", "size_t"])
  const fsetxattr = yield* declare("fsetxattr", "int", ["int", "str", "void *", "size_t", "int"])
  const posixFadvise = yield* declare("posix_fadvise", "int", ["int", "int64_t", "int64_t", "int"])
  const cachestat = yield* declare("syscall", "long", ["long", "unsigned int", "void *", "void *", "unsigned int"])
  const ioctlNumber = yield* declare("ioctl", "int", ["int", "unsigned long", "long"])
  // Addresses as numbers: nothing here reads or writes through them, and user space ends far below 2⁵³.
  const mmap = yield* declare("mmap", "int64_t", ["int64_t", "size_t", "int", "int", "int", "int64_t"])
  const mincore = yield* declare("mincore", "int", ["int64_t", "size_t", "void *"])
  const munmap = yield* declare("munmap", "int", ["int64_t", "size_t"])
  const getpagesize = yield* declare("getpagesize", "int", [])
  const dlopen = yield* declare("dlopen", "int64_t", ["str", "int"])

  /** koffi keeps errno per thread: read at once after a call, or inside the callback of one. */
  const outcome = (result: number) => (result < 0 ? -koffi.errno() : result)

  /** For calls that touch no disk. */
  const onThread = (fn: CFunction, ...args: ReadonlyArray<Argument>) => Effect.sync(() => outcome(fn(...args)))

  /**
   * For calls that can wait for a disk. Waiting for the gate can be interrupted; a call that has begun is waited for.
   * `done` runs when the kernel has answered, before anything else can.
   */
  const offThread = (
    fn: CFunction,
    args: ReadonlyArray<Argument>,
    hooks?: { readonly begin?: () => void; readonly done?: (result: number) => void }
  ) =>
    gate.withPermits(1)(Effect.uninterruptible(Effect.async<number>((resume) => {
      const answered = (error: unknown, value: number) => {
        inFlight.delete(args)
        if (error !== null) return resume(Effect.die(error))
        const result = outcome(value)
        hooks?.done?.(result)
        resume(Effect.succeed(result))
      }
      const begin = () => {
        try {
          fn.async(...args, answered)
        } catch (error) {
          // koffi queues at most 256 calls of the whole process, and throws above. Others' calls end; this one waits for that.
          if (String(error).includes("Too many asynchronous calls")) setTimeout(begin, 1)
          else answered(error, -1)
        }
      }
      hooks?.begin?.()
      inFlight.add(args)
      begin()
    })))

  /** The same for what Node does with a path by itself, on the same threads. */
  const throughNode = <A>(
    out: { value?: A },
    call: (answered: (error: NodeJS.ErrnoException | null, value?: A) => void) => void
  ) =>
    gate.withPermits(1)(Effect.uninterruptible(Effect.async<number>((resume) => {
      call((error, value) => {
        if (value !== undefined) out.value = value
        resume(Effect.succeed(error === null ? 0 : error.errno ?? -errnos.EIO))
      })
    })))

  /** C would end a path at a NUL, UTF-8 replaces a lone surrogate, and both name another file: no file has that name. */
  const onPath = (path: string, call: () => Effect.Effect<number>, error: number = errnos.ENOENT) =>
    Effect.suspend(() => isFaithful(path) ? call() : Effect.succeed(-error))

  const kernel: Kernel = {
    flags: architecture.flags,
    pageSize: getpagesize(),
    mkdir: (path, mode) => onPath(path, () => offThread(mkdir, [path, mode])),
    mkostemp: (prefix, flags, path) =>
      onPath(prefix, () => {
        const absolute = linkedFiles.absolute(prefix)
        if (absolute === undefined) return Effect.succeed(-errnos.ENOENT)
        const template = new TextEncoder().encode(`${absolute}XXXXXX\0`)
        return offThread(mkostemp, [template, flags], {
          begin: () => linkedFiles.begin(template),
          done: (fd) => {
            linkedFiles.end(template, fd >= 0)
            path.value = linkedFiles.templatePath(template)
          }
        })
      }),
    open: (path, flags) => onPath(path, () => offThread(open, [path, flags, 0o600])),
    fcntlGetFlags: (fd) => onThread(fcntl, fd, F_GETFL, 0),
    fcntlSetFlags: (fd, flags) => onThread(fcntl, fd, F_SETFL, flags),
    fcntlSetLock: (fd) =>
      Effect.suspend(() => {
        const lock = new DataView(new ArrayBuffer(flockBytes))
        lock.setInt16(0, F_WRLCK, true)
        return offThread(fcntlPointer, [fd, F_OFD_SETLK, new Uint8Array(lock.buffer)])
      }),
    ioctlGetFlags: (fd, flags) =>
      Effect.suspend(() => {
        const out = new DataView(new ArrayBuffer(8))
        return offThread(ioctl, [fd, FS_IOC_GETFLAGS, new Uint8Array(out.buffer)], {
          done: () => {
            flags.value = out.getInt32(0, true)
          }
        })
      }),
    ioctlSetFlags: (fd, flags) =>
      Effect.suspend(() => offThread(ioctl, [fd, FS_IOC_SETFLAGS, new Uint8Array(Int32Array.of(flags, 0).buffer)])),
    fallocate: (fd, mode, offset, length) => offThread(fallocate, [fd, mode, offset, length]),
    ftruncate: (fd, length) => offThread(ftruncate, [fd, length]),
    pread: (fd, into, offset) => offThread(pread, [fd, into, into.byteLength, offset]),
    pwrite: (fd, from, offset) => offThread(pwrite, [fd, from, from.byteLength, offset]),
    fdatasync: (fd) => offThread(fdatasync, [fd]),
    statx: (fd, out, path = "") =>
      onPath(path, () => {
        const buffer = new DataView(new ArrayBuffer(256))
        const bytes = new Uint8Array(buffer.buffer)
        const answered = offThread(
          statx,
          [architecture.statx, fd, path, path === "" ? AT_EMPTY_PATH : namedFlags, statxMask, bytes],
          {
            done: () => {
              const mask = buffer.getUint32(0, true)
              out.value = {
                mountId: (mask & STATX_MNT_ID) === 0 ? undefined : Number(buffer.getBigUint64(0x90, true)),
                attributes: buffer.getUint32(0x8, true),
                attributesMask: buffer.getUint32(0x38, true),
                links: buffer.getUint32(0x10, true),
                uid: buffer.getUint32(0x14, true),
                mode: buffer.getUint16(0x1c, true),
                inode: buffer.getBigUint64(0x20, true),
                size: Number(buffer.getBigUint64(0x28, true)),
                allocated: Number(buffer.getBigUint64(0x30, true)) * 512,
                deviceMajor: buffer.getUint32(0x88, true),
                deviceMinor: buffer.getUint32(0x8c, true),
                directIo: (mask & STATX_DIOALIGN) === 0
                  ? undefined
                  : {
                    memoryAlignment: buffer.getUint32(0x98, true),
                    offsetAlignment: buffer.getUint32(0x9c, true),
                    readOffsetAlignment: (mask & STATX_DIO_READ_ALIGN) === 0 ? undefined : buffer.getUint32(0xb4, true)
                  }
              }
            }
          }
        )
        const stats: Out<BigIntStats> = {}
        const byStat = throughNode(stats, (done) =>
          path === ""
            ? fstat(fd, { bigint: true }, done)
            : lstat(path.startsWith("/") ? path : `/proc/self/fd/${fd}/${path}`, { bigint: true }, done))
        return Effect.flatMap(answered, (result) =>
          statxRefusals.includes(-result)
            ? Effect.tap(byStat, () =>
              Effect.sync(() => {
                if (stats.value !== undefined) out.value = ofFstat(stats.value)
              }))
            : Effect.succeed(result))
      }),
    fstatfs: (fd, out) =>
      Effect.suspend(() => {
        // struct statfs of both architectures: f_type, f_bsize, f_blocks, f_bfree, f_bavail, each 8 bytes.
        const buffer = new DataView(new ArrayBuffer(120))
        return offThread(fstatfs, [fd, new Uint8Array(buffer.buffer)], {
          done: () => {
            const field = (index: number) => Number(buffer.getBigUint64(index * 8, true))
            const blockSize = field(1)
            out.value = {
              type: field(0),
              blockSize,
              total: field(2) * blockSize,
              free: field(3) * blockSize,
              available: field(4) * blockSize
            }
          }
        })
      }),
    unlink: (path) =>
      onPath(path, () =>
        offThread(unlink, [path], {
          done: (result) => {
            // ENOENT proves nothing: a file whose directory was renamed has its name.
            if (result === 0) linkedFiles.forget(path)
          }
        })),
    rename: (from, to) =>
      onPath(`${from}${to}`, () =>
        offThread(rename, [from, to], {
          done: (result) => {
            // What has got another name is to stay; what had `to` is gone, and what has it now goes as that would have.
            if (result === 0 && from !== to) linkedFiles.forget(from)
          }
        })),
    readdir: (path, names) => onPath(path, () => throughNode(names, (answered) => readdir(path, answered))),
    readlink: (path, target) => onPath(path, () => throughNode(target, (answered) => readlink(path, answered))),
    geteuid: Effect.sync(() => process.geteuid?.() ?? 0),
    close: (fd) => offThread(close, [fd]),
    fgetxattr: (fd, name, into) => offThread(fgetxattr, [fd, name, into, into.byteLength]),
    fsetxattr: (fd, name, value) => offThread(fsetxattr, [fd, name, value, value.byteLength, 0]),
    fadvise: (fd, offset, length, advice) =>
      // This one returns its error and leaves errno alone.
      Effect.map(offThread(posixFadvise, [fd, offset, length, advice]), (error) => -error),
    cachestat: (fd, offset, length, out) =>
      Effect.suspend(() => {
        const range = new Uint8Array(BigUint64Array.of(BigInt(offset), BigInt(length)).buffer)
        // cached, dirty, under writeback, evicted, recently evicted
        const pages = new BigUint64Array(5)
        return offThread(cachestat, [SYS_cachestat, fd, range, new Uint8Array(pages.buffer), 0], {
          done: () => {
            out.value = { cached: Number(pages[0]), dirty: Number(pages[1]), writeback: Number(pages[2]) }
          }
        })
      }),
    fiemap: (fd, offset, length, out) =>
      Effect.suspend(() => {
        const buffer = new DataView(new ArrayBuffer(fiemapBytes + fiemapExtents * fiemapExtentBytes))
        buffer.setBigUint64(0, BigInt(offset), true)
        buffer.setBigUint64(8, BigInt(length), true)
        buffer.setUint32(24, fiemapExtents, true)
        return offThread(ioctl, [fd, FS_IOC_FIEMAP, new Uint8Array(buffer.buffer)], {
          done: () => {
            out.value = Array.from({ length: buffer.getUint32(20, true) }, (_, index): FiemapExtent => {
              const at = fiemapBytes + index * fiemapExtentBytes
              const field = (place: number) => Number(buffer.getBigUint64(at + place, true))
              return {
                logical: field(0),
                physical: field(8),
                length: field(16),
                flags: buffer.getUint32(at + 40, true)
              }
            })
          }
        })
      }),
    ficlone: (fd, source) => offThread(ioctlNumber, [fd, FICLONE, source]),
    mmap: (fd, offset, length, populate) =>
      offThread(mmap, [0, length, PROT_READ, MAP_SHARED | (populate ? MAP_POPULATE : 0), fd, offset]),
    mincore: (address, length, resident) =>
      Effect.suspend(() => {
        const vector = new Uint8Array(Math.ceil(length / pageSize))
        return offThread(mincore, [address, length, vector], {
          done: () => {
            resident.value = residentPages(vector)
          }
        })
      }),
    munmap: (address, length) => offThread(munmap, [address, length]),
    dlopen: (library) =>
      onPath(library, () => {
        // What went wrong, dlerror tells the thread that called, and no other; errno tells what ran out.
        let ranOut: number = errnos.ELIBACC
        return Effect.map(
          offThread(dlopen, [library, RTLD_LAZY], {
            done: () => {
              const errno = koffi.errno()
              if (errno === errnos.EMFILE || errno === errnos.ENFILE || errno === errnos.ENOMEM) ranOut = errno
            }
          }),
          (handle) => handle === 0 ? -ranOut : 0
        )
      }, errnos.ELIBACC)
  }
  return yield* endingWithThread(kernel, declare, gate, offThread)
})
