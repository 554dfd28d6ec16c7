/**
 * Whether nobody but this process, root and the owners of the directories on the way can put something else in the place of a storage's
 * file. Who names a directory of another user, which that user alone may write, trusts them.
 *
 * A path is walked as the kernel walks it. What lies in a directory that everybody may write (/tmp, say) has to belong to this user, to
 * root or to the owner of that directory: another's link would lead, and another's directory would put, the file where its owner wants it;
 * for links it is the rule of fs.protected_symlinks in proc(5), whatever that is set to. The directory at the end must not be one that
 * everybody may write without the sticky bit, in which others remove and rename what is ours.
 *
 * Between this look and the use of the path, it can be changed only by those who may write to a directory on it, and those were found to be
 * trusted, but for one case: a directory of ours in one that everybody may write and that is not sticky can be moved away. It is not
 * theirs then, and neither is the file in it; what they put in its place is refused the next time.
 */
import * as Effect from "effect/Effect"
import { DirectoryUnsafe, WorkingDirectoryGone } from "../DiskStorageError.js"
import { errnos, S_IFDIR, S_IFLNK, S_IFMT, SyscallError } from "../Syscalls.js"
import type { Statx, Syscalls } from "../Syscalls.js"
import { isSameFile } from "./fileLock.js"

/** As many as the kernel follows in a path (`MAXSYMLINKS` of path_resolution(7)). */
const maxLinks = 40

const root = 0
/** Who owns what nobody of a user namespace owns (`overflowuid` of proc(5), as it comes): anybody. */
const overflowUid = 65_534
const S_ISVTX = 0o1000
const S_IWOTH = 0o002

const isWritableByAll = ({ mode }: Statx) => (mode & S_IWOTH) !== 0

/** Of what has this name, be it a link. Nothing is opened, and nothing waits. */
const look = (syscalls: Syscalls, path: string): Effect.Effect<Statx, SyscallError> => {
  const { O_CLOEXEC, O_NOFOLLOW, O_PATH } = syscalls.flags
  return Effect.uninterruptible(
    Effect.flatMap(
      syscalls.open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC),
      (fd) => Effect.flatMap(Effect.either(syscalls.statx(fd)), (found) => Effect.zipRight(syscalls.close(fd), found))
    )
  )
}

/** The same; a directory that is missing is made, for this user alone. */
const lookOrMake = (syscalls: Syscalls, path: string): Effect.Effect<Statx, SyscallError> =>
  Effect.catchIf(look(syscalls, path), ({ errno }) => errno === errnos.ENOENT, () =>
    syscalls.mkdir(path, 0o700).pipe(
      Effect.catchIf(({ errno }) => errno === errnos.EEXIST, () => Effect.void),
      Effect.zipRight(look(syscalls, path))
    ))

const partsOf = (path: string): ReadonlyArray<string> => path.split("/").filter((part) => part !== "" && part !== ".")

/**
 * The working directory as a path. The kernel appends " (deleted)" to that of a removed one, and leaves the mount out of that of a
 * detached one: only a path that leads to the same directory is its name. Undefined where there is no /proc to ask.
 */
const workingDirectory = (
  syscalls: Syscalls,
  relative: string
): Effect.Effect<string | undefined, WorkingDirectoryGone> =>
  Effect.gen(function*() {
    const link = "/proc/self/cwd"
    const named = yield* Effect.option(syscalls.readlink(link))
    if (named._tag === "None") return undefined
    const [here, there] = yield* Effect.all([
      // Through the link, which leads to the directory whatever it is called.
      Effect.either(look(syscalls, `${link}/.`)),
      Effect.either(look(syscalls, named.value))
    ])
    const isGone = there._tag === "Left"
      // One that may not be looked up by this user is there all the same.
      ? there.left.errno === errnos.ENOENT || there.left.errno === errnos.ENOTDIR
      : here._tag === "Right" && !isSameFile(here.right, there.right)
    if (isGone) return yield* new WorkingDirectoryGone({ path: relative })
    return named.value
  })

/** The relative paths that a process has been warned of; above this they are told again. */
const maxWarned = 1024

/** By the kernel that they are of. */
const warned = new WeakMap<Syscalls, Set<string>>()

const warnOnce = (syscalls: Syscalls, path: string, resolved: string): Effect.Effect<void> =>
  Effect.suspend(() => {
    const known = warned.get(syscalls) ?? new Set<string>()
    if (known.has(resolved)) return Effect.void
    if (known.size >= maxWarned) known.clear()
    warned.set(syscalls, known.add(resolved))
    return Effect.annotateLogs(
      Effect.logWarning(`the relative path ${path} is resolved against the working directory to ${resolved}`),
      { path, resolved }
    )
  })

/**
 * As it stays when the working directory changes, and as the kernel walks it; warned of once. Where there is no /proc it stays as it
 * is.
 */
export const absolute = (syscalls: Syscalls, directory: string): Effect.Effect<string, WorkingDirectoryGone> =>
  directory.startsWith("/")
    ? Effect.succeed(directory)
    : Effect.flatMap(workingDirectory(syscalls, directory), (working) => {
      if (working === undefined) return Effect.succeed(directory)
      const resolved = `${working === "/" ? "" : working}/${directory}`
      return Effect.as(warnOnce(syscalls, directory, resolved), resolved)
    })

/**
 * Looks at a directory and makes what is missing of it (mode 0700), which stays. Three calls for each name of the path, and for the
 * directory that it begins in.
 */
export const ensure = (syscalls: Syscalls, directory: string): Effect.Effect<void, DirectoryUnsafe | SyscallError> =>
  Effect.gen(function*() {
    const uid = yield* syscalls.geteuid
    let at = directory.startsWith("/") ? "/" : "."
    let here = yield* look(syscalls, at)
    // The next one is the last.
    const left = [...partsOf(directory)].reverse()
    /** Of those, how many are of a link: what that leads to, a disk that is not mounted, say, is not made. */
    let ofLinks = 0
    let followed = 0
    for (let part = left.pop(); part !== undefined; part = left.pop()) {
      const path = `${at === "/" ? "" : at}/${part}`
      const found = yield* (ofLinks > 0 ? look : lookOrMake)(syscalls, path)
      ofLinks = Math.max(0, ofLinks - 1)
      const owner = here.uid === overflowUid ? [] : [here.uid]
      if (part !== ".." && isWritableByAll(here) && ![uid, root, ...owner].includes(found.uid)) {
        return yield* new DirectoryUnsafe({ directory, component: path, reason: "foreign" })
      }
      if ((found.mode & S_IFMT) !== S_IFLNK) {
        at = path
        here = found
        continue
      }
      if (++followed > maxLinks) {
        return yield* new SyscallError({ syscall: "open", errno: errnos.ELOOP, code: "ELOOP", path: directory })
      }
      const target = yield* syscalls.readlink(path)
      const parts = partsOf(target)
      left.push(...[...parts].reverse())
      ofLinks += parts.length
      if (!target.startsWith("/")) continue
      at = "/"
      here = yield* look(syscalls, at)
    }
    const isDirectory = (here.mode & S_IFMT) === S_IFDIR
    if (isDirectory && isWritableByAll(here) && (here.mode & S_ISVTX) === 0) {
      return yield* new DirectoryUnsafe({ directory, component: at, reason: "writable" })
    }
  })
