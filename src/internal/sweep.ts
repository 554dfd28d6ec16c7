/** Removes temp files whose owner is gone: killed, or ended by a power cut, before it could unlink them. */
import * as Effect from "effect/Effect"
import type { SweepFinding, SweepOptions, SweepReport } from "../DiskStorage.js"
import { SweepFailed } from "../DiskStorageError.js"
import { errnos, S_IFMT, S_IFREG, Syscalls } from "../Syscalls.js"
import type { Statx, SyscallError, Syscalls as Kernel } from "../Syscalls.js"
import { isSameFile, lock, look } from "./fileLock.js"
import { filesystemName, linksAreTrusted, locksAreTrusted } from "./filesystems.js"
import { namePrefix } from "./options.js"

/** What mkostemp makes of the template; nobody else's files are looked at. */
const temporaryName = new RegExp(`^${namePrefix}[A-Za-z0-9]{6}$`)

/** Directories that are remembered as swept; above that they are swept again. */
const maxSwept = 1024

type Outcome = Pick<SweepFinding, "outcome" | "reason">

const left = (reason: string): Outcome => ({ outcome: "left", reason })
const gone: Outcome = { outcome: "gone", reason: "somebody else removed it meanwhile" }

/** With the lock: the name is still that of this file, and stays so, since nobody else may remove it. */
const remove = (syscalls: Kernel, path: string, fd: number, locked: Statx, dryRun: boolean) =>
  Effect.gen(function*() {
    const { type } = yield* syscalls.fstatfs(fd)
    if (!locksAreTrusted(type)) return left(`locks on ${filesystemName(type)} do not tell whether its owner lives`)
    const named = yield* look(syscalls, path)
    if (named === undefined) return gone
    if (!isSameFile(named, locked)) return left("another file has got its name meanwhile")
    if (dryRun) return { outcome: "abandoned" } satisfies Outcome
    yield* syscalls.unlink(path)
    const { links } = yield* Effect.orElseSucceed(syscalls.statx(fd), () => ({ links: 0 }))
    if (links > 0 && linksAreTrusted(type)) {
      return left(`its name is removed, and inode ${locked.inode} has another link`)
    }
    return { outcome: "removed" } satisfies Outcome
  })

const judge = (syscalls: Kernel, path: string, uid: number, dryRun: boolean, found: Statx) =>
  Effect.gen(function*() {
    if ((found.mode & S_IFMT) !== S_IFREG) return left("it is no regular file")
    if (found.uid !== uid) return left(`it belongs to another user (${found.uid})`)
    return yield* Effect.acquireUseRelease(
      lock(syscalls, path),
      (locked): Effect.Effect<Outcome, SyscallError> =>
        locked._tag === "Locked"
          ? remove(syscalls, path, locked.fd, locked.statx, dryRun)
          : Effect.succeed(locked._tag === "Gone" ? gone : { outcome: "in use" }),
      (locked) => locked._tag === "Locked" ? Effect.ignore(syscalls.close(locked.fd)) : Effect.void
    )
  })

const sweepOne = (syscalls: Kernel, path: string, uid: number, dryRun: boolean): Effect.Effect<SweepFinding> =>
  Effect.gen(function*() {
    const found = yield* look(syscalls, path)
    if (found === undefined) return { path, bytes: 0, ...gone }
    const bytes = found.allocated
    const outcome = yield* Effect.catchAll(
      judge(syscalls, path, uid, dryRun, found),
      (error) => Effect.succeed(left(error.message))
    )
    return { path, bytes, ...outcome }
  }).pipe(Effect.catchAll((error) => Effect.succeed({ path, bytes: 0, ...left(error.message) })))

const sweepIn = (syscalls: Kernel, directory: string, dryRun: boolean): Effect.Effect<SweepReport, SweepFailed> =>
  Effect.gen(function*() {
    const names = yield* Effect.mapError(
      syscalls.readdir(directory),
      (cause) => new SweepFailed({ directory, cause })
    )
    const uid = yield* syscalls.geteuid
    const below = directory.replace(/\/+$/, "")
    const files = yield* Effect.forEach(
      names.filter((name) => temporaryName.test(name)).sort(),
      (name) => sweepOne(syscalls, `${below}/${name}`, uid, dryRun)
    )
    return { directory, dryRun, files }
  })

export const sweep = (
  directory: string,
  { dryRun = false }: SweepOptions = {}
): Effect.Effect<SweepReport, SweepFailed, Syscalls> =>
  Effect.flatMap(Syscalls, (syscalls) => sweepIn(syscalls, directory, dryRun)).pipe(
    Effect.withSpan("DiskStorage.sweep", { attributes: { directory, dryRun } })
  )

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

/** Before the first storage of a directory is made, which may need the space. Who comes second waits; nobody fails because of it. */
export const sweepOnce = (syscalls: Kernel, directory: string): Effect.Effect<void> =>
  Effect.suspend(() => {
    const once = onceIn(syscalls, directory)
    if (once.done) return Effect.void
    const first = sweepIn(syscalls, directory, false).pipe(
      Effect.flatMap(({ files }) => {
        const removed = files.filter(({ outcome }) => outcome === "removed")
        const kept = files.filter(({ outcome }) => outcome === "left")
        const told = removed.length === 0 ? Effect.void : Effect.annotateLogs(
          Effect.logInfo("removed temp files that processes had left behind"),
          { directory, files: removed.length, bytes: removed.reduce((sum, { bytes }) => sum + bytes, 0) }
        )
        once.done = true
        return Effect.zipRight(
          told,
          Effect.forEach(kept, ({ path, reason }) =>
            Effect.annotateLogs(Effect.logDebug(`a temp file is left where it is: ${reason}`), { path }), {
            discard: true
          })
        )
      }),
      Effect.catchAll(({ cause }) =>
        cause.errno === errnos.ENOENT
          ? Effect.void
          : Effect.annotateLogs(Effect.logDebug(`not swept: ${cause.message}`), { directory })
      )
    )
    return once.turn.withPermits(1)(Effect.suspend(() =>
      once.done ? Effect.void : first
    ))
  })
