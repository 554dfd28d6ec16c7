/** The real kernel, called through libc with koffi. */
import * as Effect from "effect/Effect"
import type { PlatformNotSupported } from "../../DiskStorageError.js"
import { errnos } from "../../Syscalls.js"
import type { Kernel } from "../kernel.js"
import * as linkedFiles from "../linkedFiles.js"
import { native } from "./native.js"
import type { Argument, CFunction } from "./native.js"

// uapi/linux/fcntl.h and uapi/linux/fs.h; the ioctls carry the size of a long in their number and an int at the pointer.
const F_GETFL = 3
const F_SETFL = 4
const FS_IOC_GETFLAGS = 0x8008_6601
const FS_IOC_SETFLAGS = 0x4008_6602

// uapi/linux/stat.h
const AT_EMPTY_PATH = 0x1000
const STATX_BASIC_STATS = 0x7ff
const STATX_DIOALIGN = 0x2000

/**
 * libuv's pool has four threads that fs, dns, zlib and crypto share; koffi's off-thread calls take at most two of them.
 * One gate for the process, as the pool is.
 */
const gate = Effect.unsafeMakeSemaphore(2)

/** The arguments of calls that a thread is making: their memory must not be collected meanwhile. */
const inFlight = new Set<ReadonlyArray<Argument>>()

/** With a slash behind it; `undefined` when it has been removed. */
const workingDirectory = (): string | undefined => {
  try {
    return `${process.cwd()}/`
  } catch {
    return undefined
  }
}

export const make: Effect.Effect<Kernel, PlatformNotSupported> = Effect.gen(function*() {
  const { architecture, declare, koffi } = yield* native
  const mkdir = yield* declare("mkdir", "int", ["str", "uint32_t"])
  const mkostemp = yield* declare("mkostemp", "int", ["void *", "int"])
  const open = yield* declare("open", "int", ["str", "int", "uint32_t"])
  const fcntl = yield* declare("fcntl", "int", ["int", "int", "long"])
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
  const close = yield* declare("close", "int", ["int"])

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

  const kernel: Kernel = {
    flags: architecture.flags,
    mkdir: (path, mode) => offThread(mkdir, [path, mode]),
    mkostemp: (prefix, flags, path) =>
      Effect.suspend(() => {
        // Joined, not normalised: ".." behind a symbolic link is not what it is by text.
        const directory = prefix.startsWith("/") ? "" : workingDirectory()
        if (directory === undefined) return Effect.succeed(-errnos.ENOENT)
        const template = new TextEncoder().encode(`${directory}${prefix}XXXXXX\0`)
        return offThread(mkostemp, [template, flags], {
          begin: () => linkedFiles.begin(template),
          done: (fd) => {
            linkedFiles.end(template, fd >= 0)
            path.value = linkedFiles.templatePath(template)
          }
        })
      }),
    open: (path, flags) => offThread(open, [path, flags, 0]),
    fcntlGetFlags: (fd) => onThread(fcntl, fd, F_GETFL, 0),
    fcntlSetFlags: (fd, flags) => onThread(fcntl, fd, F_SETFL, flags),
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
    statx: (fd, out) =>
      Effect.suspend(() => {
        const buffer = new DataView(new ArrayBuffer(256))
        const bytes = new Uint8Array(buffer.buffer)
        return offThread(
          statx,
          [architecture.statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_DIOALIGN, bytes],
          {
            done: () => {
              out.value = {
                links: buffer.getUint32(0x10, true),
                inode: buffer.getBigUint64(0x20, true),
                size: Number(buffer.getBigUint64(0x28, true)),
                allocated: Number(buffer.getBigUint64(0x30, true)) * 512,
                deviceMajor: buffer.getUint32(0x88, true),
                deviceMinor: buffer.getUint32(0x8c, true),
                directIo: (buffer.getUint32(0, true) & STATX_DIOALIGN) === 0
                  ? undefined
                  : { memoryAlignment: buffer.getUint32(0x98, true), offsetAlignment: buffer.getUint32(0x9c, true) }
              }
            }
          }
        )
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
      offThread(unlink, [path], {
        done: (result) => {
          if (result === 0 || result === -errnos.ENOENT) linkedFiles.forget(path)
        }
      }),
    close: (fd) => offThread(close, [fd])
  }
  return kernel
})
