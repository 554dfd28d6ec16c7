/**
 * The name of a temp file: looked up below its directory, which is held open, and removed only while it is that file's.
 *
 * A path proves nothing about a file. A directory that was renamed, a mount over it, a link on the way that leads elsewhere: each gives
 * ENOENT for a file that is still linked. The descriptor of the directory leads to the name wherever the directory is, and the descriptor
 * of the file counts its links.
 *
 * Between the comparison of the name and its removal another process may put a file of its own there. Linux has no call that removes a
 * name only if it is a given file's. The name is random and its directory is writable for few, so that this takes intent.
 */
import * as Effect from "effect/Effect"
import type { UnlinkFailed } from "../DiskStorageError.js"
import { errnos, SyscallError } from "../Syscalls.js"
import type { Statx, Syscalls } from "../Syscalls.js"
import { isSameFile } from "./fileLock.js"
import { linksAreTrusted } from "./filesystems.js"
import * as linkedFiles from "./linkedFiles.js"
import type { TemporaryFile } from "./temporaryFile.js"

/** `AT_FDCWD` of `uapi/linux/fcntl.h`, which an absolute path goes without. */
const workingDirectory = -100

const baseOf = (path: string): string => path.slice(path.lastIndexOf("/") + 1)
const parentOf = (path: string): string => path.slice(0, path.lastIndexOf("/"))

/** The path of a directory that is open, wherever it is. */
export const ofDescriptor = (fd: number): string => `/proc/self/fd/${fd}`

/** As the kernel is given it: below the open directory; by its path where there is no /proc. */
export const nameOf = (file: Pick<TemporaryFile, "directory" | "path">): string =>
  file.directory === undefined ? file.path : `${ofDescriptor(file.directory)}/${baseOf(file.path)}`

/** The directory of the name, likewise. */
export const directoryOf = (file: Pick<TemporaryFile, "directory" | "path">): string =>
  `${file.directory === undefined ? parentOf(file.path) : ofDescriptor(file.directory)}/.`

export const withPath = ({ code, errno, fd, syscall }: SyscallError, path: string): SyscallError =>
  new SyscallError({ syscall, errno, code, path, fd })

/** `syscalls`, where a path beside the file is looked up below the open directory. Errors name the path. */
export const within = (syscalls: Syscalls, file: Pick<TemporaryFile, "directory" | "path">): Syscalls => {
  const { directory } = file
  if (directory === undefined) return syscalls
  const parent = parentOf(file.path)
  const isBeside = (path: string) => parentOf(path) === parent
  const at = (path: string) => isBeside(path) ? `${ofDescriptor(directory)}/${baseOf(path)}` : path
  const named = (path: string) => <A>(effect: Effect.Effect<A, SyscallError>) =>
    isBeside(path) ? Effect.mapError(effect, (error) => withPath(error, path)) : effect
  return {
    ...syscalls,
    open: (path, flags) => named(path)(syscalls.open(at(path), flags)),
    unlink: (path) => named(path)(syscalls.unlink(at(path))),
    rename: (from, to) => named(from)(syscalls.rename(at(from), at(to))),
    statx: (fd, path) =>
      path === undefined
        ? syscalls.statx(fd)
        : named(path)(isBeside(path) ? syscalls.statx(directory, baseOf(path)) : syscalls.statx(fd, path))
  }
}

/** What has that name, which is not opened for this; a link is not followed. */
export const statName = (syscalls: Syscalls, file: TemporaryFile, path: string): Effect.Effect<Statx, SyscallError> =>
  within(syscalls, file).statx(workingDirectory, path)

/** A descriptor of the file: that of the lock is of the file that has the name, also while another one is taken up. */
export const descriptorOf = (file: TemporaryFile): number => file.lock ?? file.fds.at(-1) ?? -1

/** Links that a file has although its name is gone, or is another file's. */
export interface StillLinked {
  readonly _tag: "StillLinked"
  readonly remaining: NonNullable<UnlinkFailed["remaining"]>
}

/** The file's present path where the kernel knows it: of a file that was renamed it does. */
const presentPath = (syscalls: Syscalls, fd: number): Effect.Effect<string | undefined> =>
  syscalls.readlink(ofDescriptor(fd)).pipe(
    Effect.map((path) => path.startsWith("/") && !path.endsWith(" (deleted)") ? path : undefined),
    Effect.orElseSucceed(() => undefined)
  )

const stillLinked = (
  syscalls: Syscalls,
  fd: number,
  links: number,
  statx: Statx
): Effect.Effect<never, StillLinked> =>
  Effect.flatMap(presentPath(syscalls, fd), (path) =>
    Effect.fail({
      _tag: "StillLinked" as const,
      remaining: {
        device: `${statx.deviceMajor}:${statx.deviceMinor}`,
        inode: statx.inode,
        size: statx.size,
        links,
        path
      }
    }))

/**
 * Removes the name while it is the file's, and counts the links that are left. Succeeds with "removed", with "gone" where somebody else
 * has removed it and nothing is left, and with "unknown" where the filesystem does not tell.
 */
const removed = (
  syscalls: Syscalls,
  file: TemporaryFile
): Effect.Effect<"removed" | "gone" | "unknown", SyscallError | StillLinked> =>
  Effect.gen(function*() {
    const { path } = file
    const fd = descriptorOf(file)
    const before = yield* Effect.either(statName(syscalls, file, path))
    const { identity } = file
    // A name that cannot be looked at is taken for the file's own: it is random.
    const isOurs = before._tag === "Left" || identity === undefined || isSameFile(before.right, identity)
    const unlinked = isOurs && (yield* within(syscalls, file).unlink(path).pipe(
      Effect.as(true),
      Effect.catchIf(({ errno }) => errno === errnos.ENOENT, () => Effect.succeed(false))
    ))
    const after = yield* Effect.either(syscalls.statx(fd))
    const trusted = file.filesystem !== undefined && linksAreTrusted(file.filesystem)
    if (after._tag === "Right" && (trusted || after.right.links === 0)) {
      const { links } = after.right
      return links > 0 ? yield* stillLinked(syscalls, fd, links, after.right) : unlinked ? "removed" : "gone"
    }
    // There the removal of an open file may be a rename, and its link goes when it is closed; others were there before.
    if (unlinked) {
      const others = before._tag === "Right" ? before.right.links - 1 : 0
      return before._tag === "Right" && others > 0
        ? yield* stillLinked(syscalls, fd, others, before.right)
        : "removed"
    }
    return after._tag === "Left" ? yield* after.left : "unknown"
  })

/** The name is removed, and the file has no other; else it fails, `linked` stays true, and this can be tried again. */
export const unlink = (syscalls: Syscalls, file: TemporaryFile): Effect.Effect<void, SyscallError | StillLinked> =>
  Effect.uninterruptible(Effect.flatMap(removed(syscalls, file), (removal) => {
    if (removal === "unknown") {
      return Effect.logWarning(
        `${file.path} is gone, and this filesystem does not tell whether the file has another name`
      )
    }
    file.linked = false
    linkedFiles.forget(nameOf(file))
    return removal === "removed" ? Effect.void : Effect.logWarning(`${file.path} was removed by somebody else`)
  }))

/** The descriptor of the directory, which is the caller's from now on. A file that is still linked is found by its path then. */
export const letGo = (file: TemporaryFile): ReadonlyArray<number> => {
  const { directory } = file
  if (directory === undefined) return []
  if (file.linked) linkedFiles.renamed(nameOf(file), file.path)
  file.directory = undefined
  return [directory]
}

/** The path of the directory leads to it. */
export const isWhereItWas = (syscalls: Syscalls, file: TemporaryFile): Effect.Effect<boolean, SyscallError> =>
  file.directory === undefined
    ? Effect.succeed(true)
    : Effect.zipWith(
      syscalls.statx(file.directory),
      syscalls.statx(workingDirectory, `${parentOf(file.path)}/.`),
      isSameFile
    ).pipe(
      Effect.catchIf(({ errno }) => errno === errnos.ENOENT || errno === errnos.ENOTDIR, () => Effect.succeed(false))
    )
