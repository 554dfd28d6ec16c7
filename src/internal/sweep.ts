/** Removes temp files whose owner is gone: killed, or ended by a power cut, before it could unlink them. */
import * as Effect from "effect/Effect"
import type { SweepFinding, SweepOptions, SweepReport } from "../DiskStorage.js"
import type { InvalidOption } from "../DiskStorageError.js"
import { SweepFailed } from "../DiskStorageError.js"
import { errnos, S_IFMT, S_IFREG, Syscalls } from "../Syscalls.js"
import type { Statx, SyscallError, Syscalls as Kernel } from "../Syscalls.js"
import { booleanRefused, objectRefused, stringRefused } from "./arguments.js"
import { isSameFile, isUnsupported, lock, look } from "./fileLock.js"
import { filesystemName, linksAreTrusted, locksAreTrusted, OVERLAY } from "./filesystems.js"
import * as linkedFiles from "./linkedFiles.js"
import { namePrefix } from "./options.js"

/** What mkostemp makes of the template; nobody else's files are looked at. */
const temporaryName = new RegExp(`^${namePrefix}[A-Za-z0-9]{6}$`)

/** Directories that are remembered as swept; above that they are swept again. */
const maxSwept = 1024

export const isTemporaryName = (name: string): boolean => temporaryName.test(name)

/** Why a file is left: its locks do not tell; it is another user's; it is no file of ours; a call has failed. */
type Why = "locks" | "user" | "kind" | "failure"

type Outcome = Pick<SweepFinding, "outcome" | "reason"> & { readonly why?: Why }

/** A finding, and what only this module wants to know of it. */
interface Found {
  readonly finding: SweepFinding
  readonly why: Why | undefined
}

type Mode = Required<{ readonly [key in keyof SweepOptions]: boolean }>

const automatic: Mode = { dryRun: false, force: false }

const left = (why: Why, reason: string): Outcome => ({ outcome: "left", why, reason })
const inUse: Outcome = { outcome: "in use" }
const gone: Outcome = { outcome: "gone", reason: "somebody else removed it meanwhile" }

/** The name of a file that was looked at before; it is unlinked unless another file has got it. */
const unlinkSame = (syscalls: Kernel, path: string, found: Statx, { dryRun }: Mode) =>
  Effect.gen(function*() {
    const named = yield* look(syscalls, path)
    if (named === undefined) return gone
    if (!isSameFile(named, found)) return left("kind", "another file has got its name meanwhile")
    if (dryRun) return { outcome: "abandoned" } satisfies Outcome
    yield* syscalls.unlink(path)
    return { outcome: "removed" } satisfies Outcome
  })

const forcible = "sweep --force removes it; use that only when no process uses this directory, also on other hosts"

/** With the lock: the name is still that of this file, and stays so, since nobody else may remove it. */
const remove = (syscalls: Kernel, path: string, fd: number, locked: Statx, mode: Mode) =>
  Effect.gen(function*() {
    const { type } = yield* syscalls.fstatfs(fd)
    if (!locksAreTrusted(type) && !mode.force) {
      return left("locks", `locks on ${filesystemName(type)} do not tell whether its owner lives; ${forcible}`)
    }
    const outcome = yield* unlinkSame(syscalls, path, locked, mode)
    if (outcome.outcome !== "removed" || !linksAreTrusted(type)) return outcome
    const { links } = yield* Effect.orElseSucceed(syscalls.statx(fd), () => ({ links: 0 }))
    return links === 0 ? outcome : left("kind", `its name is removed, and inode ${locked.inode} has another link`)
  })

const judge = (syscalls: Kernel, path: string, uid: number, mode: Mode, found: Statx) =>
  Effect.gen(function*() {
    if ((found.mode & S_IFMT) !== S_IFREG) return left("kind", "it is no regular file")
    if (found.uid !== uid) return left("user", `it belongs to another user (${found.uid})`)
    // Where there are no locks, this process still knows its own.
    if (linkedFiles.has(path, found)) return inUse
    return yield* Effect.acquireUseRelease(
      Effect.catchIf(
        lock(syscalls, path),
        isUnsupported,
        (error) => Effect.succeed({ _tag: "NoLocks" as const, error })
      ),
      (locked): Effect.Effect<Outcome, SyscallError> =>
        locked._tag === "Locked"
          ? remove(syscalls, path, locked.fd, locked.statx, mode)
          : locked._tag === "NoLocks"
          ? mode.force
            ? unlinkSame(syscalls, path, found, mode)
            : Effect.succeed(left("locks", `there are no locks here: ${locked.error.message}; ${forcible}`))
          : Effect.succeed(locked._tag === "Gone" ? gone : inUse),
      (locked) => locked._tag === "Locked" ? Effect.ignore(syscalls.close(locked.fd)) : Effect.void
    )
  })

const sweepOne = (syscalls: Kernel, path: string, uid: number, mode: Mode): Effect.Effect<Found> =>
  Effect.gen(function*() {
    const found = yield* look(syscalls, path)
    if (found === undefined) return { bytes: 0, ...gone }
    const outcome = yield* Effect.catchAll(
      judge(syscalls, path, uid, mode, found),
      (error) => Effect.succeed(left("failure", error.message))
    )
    return { bytes: found.allocated, ...outcome }
  }).pipe(
    Effect.catchAll((error) => Effect.succeed({ bytes: 0, ...left("failure", error.message) })),
    Effect.map(({ why, ...outcome }) => ({ finding: { path, ...outcome }, why }))
  )

const sweepIn = (
  syscalls: Kernel,
  directory: string,
  mode: Mode
): Effect.Effect<ReadonlyArray<Found>, SweepFailed> =>
  Effect.gen(function*() {
    const names = yield* Effect.mapError(
      syscalls.readdir(directory),
      (cause) => new SweepFailed({ directory, cause })
    )
    const uid = yield* syscalls.geteuid
    const below = directory.replace(/\/+$/, "")
    return yield* Effect.forEach(
      names.filter(isTemporaryName).sort(),
      (name) => sweepOne(syscalls, `${below}/${name}`, uid, mode)
    )
  })

/** A number of files, and the bytes that they hold on the disk. */
export interface Tally {
  readonly files: number
  readonly bytes: number
}

export const tallyOf = (files: ReadonlyArray<{ readonly bytes: number }>): Tally => ({
  files: files.length,
  bytes: files.reduce((sum, { bytes }) => sum + bytes, 0)
})

/** As a shell takes it. */
const quoted = (path: string) => /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", `'\\''`)}'`

/** What is left of a sweep: files of this user that nobody is seen to use, other users', and the command that removes the former. */
const leftoversOf = (directory: string, found: ReadonlyArray<Found>) => {
  const unused = found.filter(({ finding, why }) => finding.outcome === "abandoned" || why === "locks")
  const others = found.filter(({ why }) => why === "user")
  const force = unused.some(({ why }) => why === "locks") ? " --force" : ""
  return {
    unused: tallyOf(unused.map(({ finding }) => finding)),
    others: tallyOf(others.map(({ finding }) => finding)),
    command: `effect-disk-storage sweep${force} ${quoted(directory.replace(/\/+$/, "") || "/")}`
  }
}

/** To open a file for its lock copies it up from a lower layer of an overlay, which takes the space that is short. */
const isOverlay = (syscalls: Kernel, directory: string): Effect.Effect<boolean> => {
  const { O_CLOEXEC, O_DIRECTORY, O_PATH } = syscalls.flags
  return Effect.acquireUseRelease(
    syscalls.open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC),
    syscalls.fstatfs,
    (fd) => Effect.ignore(syscalls.close(fd))
  ).pipe(Effect.map(({ type }) => type === OVERLAY), Effect.orElseSucceed(() => true))
}

/**
 * Counts temp files and removes none; that of the caller does not count. A directory that cannot be listed has none, and on an overlay
 * none are counted.
 */
export const count = (syscalls: Kernel, directory: string, own: string) =>
  Effect.if(isOverlay(syscalls, directory), {
    onTrue: () => Effect.succeed<ReadonlyArray<Found>>([]),
    onFalse: () => sweepIn(syscalls, directory, { dryRun: true, force: false })
  }).pipe(
    Effect.orElseSucceed((): ReadonlyArray<Found> => []),
    Effect.map((found) => leftoversOf(directory, found.filter(({ finding }) => finding.path !== own)))
  )

export const sweep = (
  directory: string,
  options: SweepOptions = {}
): Effect.Effect<SweepReport, SweepFailed | InvalidOption, Syscalls> => {
  const wrong = stringRefused("directory", directory, "a path") ?? objectRefused("options", options) ??
    booleanRefused("dryRun", options.dryRun) ?? booleanRefused("force", options.force)
  if (wrong !== undefined) return Effect.fail(wrong)
  const { dryRun = false, force = false } = options
  return Effect.flatMap(Syscalls, (syscalls) => sweepIn(syscalls, directory, { dryRun, force })).pipe(
    Effect.map((found) => ({ directory, dryRun, files: found.map(({ finding }) => finding) })),
    Effect.withSpan("DiskStorage.sweep", { attributes: { directory, dryRun, force } })
  )
}

interface Once {
  readonly turn: Effect.Semaphore
  done: boolean
}

/** By the kernel that they are of. */
const swept = new WeakMap<Kernel, Map<string, Once>>()

const onceIn = (syscalls: Kernel, directory: string): Once => {
  const directories = swept.get(syscalls) ?? new Map<string, Once>()
  const once = directories.get(directory) ?? { turn: Effect.unsafeMakeSemaphore(1), done: false }
  if (directories.size >= maxSwept) directories.clear()
  directories.set(directory, once)
  swept.set(syscalls, directories)
  return once
}

/** What the automatic sweep leaves is warned of once: it takes space until somebody removes it. */
const warnOfLeft = (directory: string, found: ReadonlyArray<Found>): Effect.Effect<void> => {
  const { command, unused } = leftoversOf(directory, found)
  return unused.files === 0 ? Effect.void : Effect.annotateLogs(
    Effect.logWarning(
      `${unused.files} temp files that no process is seen to use take ${unused.bytes} bytes here, and are not removed ` +
        `automatically: ${command} removes them`
    ),
    { directory, ...unused, command }
  )
}

/** Before the first storage of a directory is made, which may need the space. Who comes second waits; nobody fails because of it. */
export const sweepOnce = (syscalls: Kernel, directory: string): Effect.Effect<void> =>
  Effect.suspend(() => {
    const once = onceIn(syscalls, directory)
    if (once.done) return Effect.void
    const first = sweepIn(syscalls, directory, automatic).pipe(
      Effect.flatMap((found) => {
        const removed = tallyOf(
          found.flatMap(({ finding }) => finding.outcome === "removed" ? [finding] : [])
        )
        const told = removed.files === 0 ? Effect.void : Effect.annotateLogs(
          Effect.logInfo("removed temp files that processes had left behind"),
          { directory, ...removed }
        )
        once.done = true
        return told.pipe(
          Effect.zipRight(warnOfLeft(directory, found)),
          Effect.zipRight(Effect.forEach(found, ({ finding: { outcome, path, reason } }) =>
            outcome === "left"
              ? Effect.annotateLogs(Effect.logDebug(`a temp file is left where it is: ${reason}`), { path })
              : Effect.void, { discard: true }))
        )
      }),
      Effect.catchAll(({ cause }) =>
        cause.errno === errnos.ENOENT
          ? Effect.void
          : Effect.annotateLogs(Effect.logDebug(`not swept: ${cause.message}`), { directory })
      )
    )
    return once.turn.withPermits(1)(Effect.suspend(() => once.done ? Effect.void : first))
  })
