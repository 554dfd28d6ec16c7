/**
 * A mount that a storage must lie on. Its root is held open while the file is made, so that its id is not given to another mount. The
 * file is compared with it by that id, whatever happens to the paths in between.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { WorkingDirectoryGone } from "../DiskStorageError.js"
import { MountMissing } from "../DiskStorageError.js"
import type { Statx, SyscallError, Syscalls } from "../Syscalls.js"
import { errnos, STATX_ATTR_MOUNT_ROOT } from "../Syscalls.js"
import { absolute } from "./directoryPolicy.js"
import { isSameFile } from "./fileLock.js"

export interface RequiredMount {
  readonly path: string
  readonly id: number
}

/** More than /proc/self/fdinfo says of a descriptor that only names a file. */
const fdinfoBytes = 4096

/** The same id where statx does not give it: before Linux 5.8, and where it is refused (`proc_pid_fdinfo(5)`). */
const idInProc = (syscalls: Syscalls, fd: number): Effect.Effect<number | undefined> =>
  Effect.scoped(Effect.gen(function*() {
    const info = yield* Effect.acquireRelease(
      syscalls.open(`/proc/self/fdinfo/${fd}`, syscalls.flags.O_CLOEXEC),
      (info) => Effect.ignore(syscalls.close(info))
    )
    const bytes = new Uint8Array(fdinfoBytes)
    const text = new TextDecoder().decode(bytes.subarray(0, yield* syscalls.pread(info, bytes, 0)))
    const id = /^mnt_id:\s*([0-9]+)$/m.exec(text)?.[1]
    return id === undefined ? undefined : Number(id)
  })).pipe(Effect.orElseSucceed(() => undefined))

const mountIdOf = (syscalls: Syscalls, fd: number, { mountId }: Statx): Effect.Effect<number | undefined> =>
  mountId === undefined ? idInProc(syscalls, fd) : Effect.succeed(mountId)

interface Found {
  readonly statx: Statx
  readonly mountId: number | undefined
}

/** A directory, held until the Scope ends. With O_DIRECTORY an automount is mounted by this. */
const hold = (syscalls: Syscalls, path: string): Effect.Effect<Found, SyscallError, Scope.Scope> =>
  Effect.gen(function*() {
    const { O_CLOEXEC, O_DIRECTORY, O_PATH } = syscalls.flags
    const fd = yield* Effect.acquireRelease(
      syscalls.open(path, O_PATH | O_DIRECTORY | O_CLOEXEC),
      (fd) => Effect.ignore(syscalls.close(fd))
    )
    const statx = yield* syscalls.statx(fd)
    return { statx, mountId: yield* mountIdOf(syscalls, fd, statx) }
  })

/** Whether a directory is the root of a mount; undefined where the kernel does not tell. */
const isMountRoot = (
  syscalls: Syscalls,
  path: string,
  { mountId, statx }: Found
): Effect.Effect<boolean | undefined, SyscallError> =>
  ((statx.attributesMask ?? 0) & STATX_ATTR_MOUNT_ROOT) !== 0
    ? Effect.succeed((statx.attributes & STATX_ATTR_MOUNT_ROOT) !== 0)
    : Effect.map(Effect.scoped(hold(syscalls, `${path}/..`)), (above) => {
      // The root of the process has nothing above it, and need not be the root of a mount.
      if (isSameFile(above.statx, statx) && above.mountId === mountId) return undefined
      // By device alone a subvolume of btrfs would look like a mount, and a bind mount like none.
      return mountId === undefined || above.mountId === undefined ? undefined : above.mountId !== mountId
    })

/** The directory, or what there is of the way to it: what is missing will be made below that. */
const holdNearest = (syscalls: Syscalls, directory: string): Effect.Effect<Found, SyscallError, Scope.Scope> =>
  Effect.catchIf(hold(syscalls, directory), ({ errno }) => errno === errnos.ENOENT, (error) => {
    const trimmed = directory.replace(/\/+$/, "")
    const slash = trimmed.lastIndexOf("/")
    return slash < 0 ? Effect.fail(error) : holdNearest(syscalls, trimmed.slice(0, slash) || "/")
  })

/** Before anything is made: the mount is there, and `directory` is on it, or will be when what is missing of it is made. */
export const find = (
  syscalls: Syscalls,
  requireMount: string,
  directory: string
): Effect.Effect<RequiredMount, MountMissing | WorkingDirectoryGone, Scope.Scope> =>
  Effect.gen(function*() {
    const path = yield* absolute(syscalls, requireMount)
    const refuse = (reason: MountMissing["reason"], cause?: SyscallError) =>
      new MountMissing({ mount: path, directory, reason, ...(cause === undefined ? {} : { cause }) })
    const isMissing = ({ errno }: SyscallError) => errno === errnos.ENOENT || errno === errnos.ENOTDIR
    const mount = yield* Effect.mapError(
      hold(syscalls, path),
      (cause) => refuse(isMissing(cause) ? "missing" : "unreadable", cause)
    )
    const isRoot = yield* Effect.mapError(isMountRoot(syscalls, path, mount), (cause) => refuse("unknown", cause))
    if (isRoot === false) return yield* refuse("not a mount point")
    const { mountId: id } = mount
    if (isRoot === undefined || id === undefined) return yield* refuse("unknown")
    // What cannot be used is told as that, when it is used.
    const nearest = yield* Effect.option(holdNearest(syscalls, directory))
    if (nearest._tag === "Some" && nearest.value.mountId !== id) return yield* refuse("elsewhere")
    return { path, id }
  })

/** Before the file is allocated: it is on that mount, whatever has been mounted and unmounted since. */
export const check = (
  syscalls: Syscalls,
  { id, path }: RequiredMount,
  fd: number,
  statx: Statx,
  directory: string
): Effect.Effect<void, MountMissing> =>
  Effect.flatMap(mountIdOf(syscalls, fd, statx), (found) =>
    found === id
      ? Effect.void
      : Effect.fail(
        new MountMissing({ mount: path, directory, reason: found === undefined ? "unknown" : "elsewhere" })
      ))
