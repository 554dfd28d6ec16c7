/** The files that are measured on: made, unlinked at once, and written once. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { randomFillSync } from "node:crypto"
import * as NFS from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../../AlignedBuffer.js"
import { NoDirectIo, NotEnoughSpace, TargetUnusable } from "./errors.js"
import { Progress } from "./progress.js"
import type { TargetReport } from "./report.js"
import { bytes } from "./units.js"

export interface Target extends TargetReport {
  readonly fd: number
  /** The file has no name any more; through this, others open it, with this process's fd and in this process's rights. */
  readonly path: string
}

/** Left free on a disk for everybody else, bytes. */
export const reserve = 10 * 2 ** 30

const tmpfs = 0x0102_1994
/** `f_type` of statfs(2), from linux/magic.h. */
const filesystems: ReadonlyMap<number, string> = new Map([
  [tmpfs, "tmpfs"],
  [0xEF53, "ext2/ext3/ext4"],
  [0x5846_5342, "xfs"],
  [0x9123_683E, "btrfs"],
  [0x794C_7630, "overlay"],
  [0x8584_58F6, "ramfs"],
  [0x6969, "nfs"],
  [0x6573_5546, "fuse"],
  [0x2FC1_2FC1, "zfs"],
  [0x0BD0_0BD0, "lustre"],
  [0x4750_4653, "gpfs"]
])

const attempt = <A>(directory: string, step: string, call: () => A) =>
  Effect.try({ try: call, catch: (cause) => new TargetUnusable({ directory, step, cause }) })

export interface Filesystem {
  readonly name: string
  readonly isMemory: boolean
  /** bytes this user may still take */
  readonly free: number
}

export const filesystemOf = (directory: string): Effect.Effect<Filesystem, TargetUnusable> =>
  Effect.map(attempt(directory, "statfs", () => NFS.statfsSync(directory)), ({ bavail, bsize, type }) => ({
    name: filesystems.get(type) ?? `filesystem 0x${type.toString(16)}`,
    isMemory: type === tmpfs,
    free: bavail * bsize
  }))

export const checkSpace = (
  directory: string,
  filesystem: Filesystem,
  size: number
): Effect.Effect<void, NotEnoughSpace> => {
  const left = filesystem.isMemory ? 0 : reserve
  return filesystem.free >= size + left
    ? Effect.void
    : Effect.fail(new NotEnoughSpace({ directory, size, reserve: left, free: filesystem.free }))
}

const { O_CREAT, O_DIRECT, O_EXCL, O_NOFOLLOW, O_RDWR } = NFS.constants

/** In one piece, so that nothing can come between a file and the loss of its name. */
const openUnlinked = (directory: string, direct: boolean): number => {
  const path = join(directory, `effect-disk-storage-bench-${process.pid}-${performance.now().toString(36)}`)
  try {
    return NFS.openSync(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | (direct ? O_DIRECT : 0), 0o600)
  } finally {
    // An open that fails for O_DIRECT can have made the file.
    NFS.rmSync(path, { force: true })
  }
}

/** An empty file without a name. */
export const empty = (
  directory: string,
  filesystem: Filesystem,
  direct: boolean
): Effect.Effect<number, NoDirectIo | TargetUnusable, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.try({
      try: () => openUnlinked(directory, direct),
      catch: (cause) =>
        direct && isInvalid(cause)
          ? new NoDirectIo({ directory, filesystem: filesystem.name })
          : new TargetUnusable({ directory, step: "make a file", cause })
    }),
    // The last close of a large file takes its time, and does so on another thread.
    (fd) => Effect.async<void>((resume) => NFS.close(fd, () => resume(Effect.void)))
  )

/** By which another process opens what this one has open. */
export const pathOf = (fd: number): string => `/proc/${process.pid}/fd/${fd}`

const isInvalid = (cause: unknown) => cause instanceof Error && "code" in cause && cause.code === "EINVAL"

const chunk = 2 ** 20
/** Progress is told once in so many bytes. */
const reported = 2 ** 25
/** Node has four threads for this. */
const writesInFlight = 4

const fill = (directory: string, fd: number, size: number, label: string) =>
  Effect.gen(function*() {
    const progress = yield* Progress
    const buffer = yield* AlignedBuffer.make(Math.min(chunk, size))
    randomFillSync(buffer.bytes)
    let written = 0
    const write = (offset: number) =>
      Effect.uninterruptible(Effect.async<void, TargetUnusable>((resume) => {
        const length = Math.min(buffer.byteLength, size - offset)
        NFS.write(fd, buffer.bytes, 0, length, offset, (cause, count) => {
          written += count
          resume(
            cause === null && count === length ? Effect.void : Effect.fail(
              new TargetUnusable({ directory, step: "write the file once", cause: cause ?? "a short write" })
            )
          )
        })
      }))
    const offsets = Array.from({ length: Math.ceil(size / buffer.byteLength) }, (_, index) => index * buffer.byteLength)
    yield* Effect.forEach(offsets, (offset) =>
      Effect.zipRight(
        write(offset),
        Effect.suspend(() =>
          offset % reported === 0
            ? progress.status(`${label}: writing the file once, ${bytes(written)} of ${bytes(size)}`)
            : Effect.void
        )
      ), { concurrency: writesInFlight, discard: true })
    yield* Effect.uninterruptible(Effect.async<void, TargetUnusable>((resume) => {
      NFS.fsync(fd, (cause) =>
        resume(
          cause === null
            ? Effect.void
            : Effect.fail(new TargetUnusable({ directory, step: "write the file once", cause }))
        ))
    }))
  })

/**
 * A file of `size` bytes, written once, that nothing but its descriptor keeps alive: however this process ends, the kernel takes
 * it back.
 */
export const make = (
  name: "disk" | "memory",
  directory: string,
  size: number
): Effect.Effect<Target, NotEnoughSpace | NoDirectIo | TargetUnusable, Progress | Scope.Scope> =>
  Effect.gen(function*() {
    const filesystem = yield* filesystemOf(directory)
    const direct = name === "disk"
    const fd = yield* empty(directory, filesystem, direct)
    yield* checkSpace(directory, filesystem, size)
    yield* fill(directory, fd, size, name).pipe(
      Effect.mapError((error) =>
        error._tag === "TargetUnusable" ? error : new TargetUnusable({ directory, step: "memory", cause: error })
      )
    )
    return { name, directory, filesystem: filesystem.name, direct, size, fd, path: pathOf(fd) }
  })
