/**
 * The lock that says that a temp file has an owner who is alive: an open-file-description lock, which the kernel drops when the process
 * ends, however it does. It is on a description of its own that no engine ever sees: one that has I/O in flight outlives its process
 * until the disk has answered.
 */
import * as Effect from "effect/Effect"
import { errnos } from "../Syscalls.js"
import type { Statx, SyscallError, Syscalls } from "../Syscalls.js"

export type Locked =
  /** `statx` is what the kernel said of the file after it was locked. */
  | { readonly _tag: "Locked"; readonly fd: number; readonly statx: Statx }
  /** Nothing has that name. */
  | { readonly _tag: "Gone" }
  /** Somebody else has it locked. */
  | { readonly _tag: "Held" }

/** How sandboxes, servers and old kernels answer where they have no such locks. */
export const isUnsupported = (error: SyscallError): boolean =>
  error.syscall === "fcntlSetLock" &&
  [errnos.EINVAL, errnos.ENOLCK, errnos.ENOSYS, errnos.EOPNOTSUPP, errnos.EPERM].some((errno) => errno === error.errno)

const isHeld = ({ errno }: SyscallError) => errno === errnos.EAGAIN || errno === errnos.EACCES

/** What tells a file from every other one, while it is open. */
type Identity = Pick<Statx, "deviceMajor" | "deviceMinor" | "inode">

export const isSameFile = (one: Identity, other: Identity): boolean =>
  one.inode === other.inode && one.deviceMajor === other.deviceMajor && one.deviceMinor === other.deviceMinor

/** Of what has a name, without opening it: to open can make a copy of it (overlay), wait (FIFO), or do something (devices). */
export const look = (syscalls: Syscalls, path: string): Effect.Effect<Statx | undefined, SyscallError> => {
  const { O_CLOEXEC, O_NOFOLLOW, O_PATH } = syscalls.flags
  return Effect.acquireUseRelease(
    syscalls.open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC),
    syscalls.statx,
    (fd) => Effect.ignore(syscalls.close(fd))
  ).pipe(Effect.catchIf(({ errno }) => errno === errnos.ENOENT, () => Effect.succeed(undefined)))
}

/**
 * Opens what has that name and locks it, without waiting. The descriptor is the caller's to close. Who locks by name and then finds that
 * the file still has a link knows that the name is its: nobody removes it who has not got the lock.
 */
export const lock = (syscalls: Syscalls, path: string): Effect.Effect<Locked, SyscallError> => {
  const { O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK, O_RDWR } = syscalls.flags
  const locked = (fd: number): Effect.Effect<Locked, SyscallError> =>
    Effect.gen(function*() {
      const held = yield* syscalls.fcntlSetLock(fd).pipe(
        Effect.as(false),
        Effect.catchIf(isHeld, () => Effect.succeed(true))
      )
      return held ? { _tag: "Held" } : { _tag: "Locked", fd, statx: yield* syscalls.statx(fd) }
    })
  return Effect.uninterruptible(Effect.matchEffect(
    syscalls.open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC),
    {
      onFailure: (error): Effect.Effect<Locked, SyscallError> =>
        error.errno === errnos.ENOENT ? Effect.succeed({ _tag: "Gone" }) : Effect.fail(error),
      onSuccess: (fd) => {
        const close = Effect.ignore(syscalls.close(fd))
        return locked(fd).pipe(
          Effect.tap((outcome) => outcome._tag === "Locked" ? Effect.void : close),
          Effect.onError(() => close)
        )
      }
    }
  ))
}
