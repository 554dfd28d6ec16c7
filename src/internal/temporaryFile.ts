/** The temp file: created, given O_DIRECT, measured and allocated by the steps below, in this order; unlinked and closed by one release. */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as AlignedBuffer from "../AlignedBuffer.js"
import type { Alignment, Allocation, DirectIoState } from "../DiskStorage.js"
import type {
  AcquireError,
  BufferUnavailable,
  DirectoryUnsafe,
  IoStalled,
  OperationError
} from "../DiskStorageError.js"
import {
  AllocationFailed,
  CreateFailed,
  DirectIoRefused,
  DirectIoUnavailable,
  DirectoryUnusable,
  FileReplaced,
  InsufficientSpace,
  OutOfSpace,
  PrewriteRefused,
  ReleaseFailed
} from "../DiskStorageError.js"
import type { IoEngine } from "../IoEngine.js"
import type { Statfs, Statx, SyscallError, Syscalls } from "../Syscalls.js"
import { errnos, FALLOC_FL_WRITE_ZEROES, FS_NOCOW_FL } from "../Syscalls.js"
import { decide } from "./directIoVerdict.js"
import type { Evidence } from "./directIoVerdict.js"
import * as directoryPolicy from "./directoryPolicy.js"
import { mapOf } from "./extents.js"
import * as fileLock from "./fileLock.js"
import * as fileName from "./fileName.js"
import {
  alignmentWithoutAnswer,
  BTRFS,
  copiesOnWrite,
  filesystemName,
  locksAreHarmless,
  locksAreTrusted,
  OVERLAY,
  overwritesMayRunOutOfSpace,
  pageCacheOf,
  statxHolds,
  usualCause
} from "./filesystems.js"
import * as keptFile from "./keptFile.js"
import * as linkedFiles from "./linkedFiles.js"
import { isInMemory, memoryOf, tightest } from "./memoryLimit.js"
import { observeRead, observeWrite } from "./observe.js"
import type { Target } from "./observe.js"
import type { ResolvedOptions } from "./options.js"
import { namePrefix } from "./options.js"
import type { Patience } from "./patience.js"
import { make as makePatience } from "./patience.js"
import { ProgressListener } from "./progress.js"
import * as requiredMount from "./requiredMount.js"

/** What mkostemp adds to its prefix. */
const randomLetters = 6

/** How often a file may be swept away between its creation and its lock. */
const maxCreations = 8

/** What one write of a zero-fill takes, and how many of them are in flight: an interruption waits for those. */
const zeroFillBytes = 4 * 1024 * 1024
const zeroFillConcurrency = 8
/** What one call asks the device to zero. */
const deviceZeroBytes = 1024 * 1024 * 1024

export type ReleaseFailure = ReleaseFailed["failures"][number]

/**
 * What there is to undo. `fds` holds a second descriptor only while the file is being reopened or taken up. `lock`: the descriptor that
 * holds its lock. `linked`: it is not known to have no link, and `path` is to be unlinked. `takenFrom`: the name that it had, and gets
 * back should it not be used. `kept`: it has that name for good.
 */
export interface TemporaryFile {
  readonly path: string
  readonly fds: Array<number>
  lock: number | undefined
  /** The directory that its name is in, open; undefined where there is no /proc to reach through it. */
  directory: number | undefined
  /** What tells it from another file with its name; undefined while that is not known. */
  identity: linkedFiles.Identity | undefined
  /** The magic number of its filesystem. */
  filesystem: number | undefined
  /** The file that was kept is getting the name. */
  takingUp: boolean
  linked: boolean
  takenFrom: string | undefined
  kept: boolean
}

/** What was found out about the file and done to it. */
export interface Prepared {
  readonly fd: number
  /** Bytes of the file: its size and the padding above; the label of a file that can be kept lies behind them. */
  readonly length: number
  readonly place: keptFile.Place | undefined
  readonly filesystem: { readonly type: number; readonly name: string }
  readonly directIo: DirectIoState
  readonly alignment: Alignment
  readonly allocation: Allocation
  /** Whether writes are known to meet allocated blocks. */
  readonly allocated: boolean
}

const is = (...codes: ReadonlyArray<keyof typeof errnos>) => {
  const numbers = codes.map((code): number => errnos[code])
  return (error: SyscallError) => numbers.includes(error.errno)
}

const isDirectoryAtFault = is("ENOENT", "ENOTDIR", "EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ELOOP")
const isNoRoom = is("ENOSPC", "EDQUOT", "EFBIG")
/** How filesystems, old kernels and sandboxes refuse fallocate; a file just made is neither immutable nor sealed. */
const isUnsupported = is("EOPNOTSUPP", "ENOSYS", "EPERM")
/** How kernels and sandboxes say no to a mode of fallocate that they, or the device, do not know. */
const isWriteZeroesRefused = is("EOPNOTSUPP", "ENOSYS", "EINVAL", "EPERM")
/** How the kernel says no to O_DIRECT. */
const isDirectIoRefused = is("EINVAL", "EOPNOTSUPP")
/** The same for a file that is open, where sandboxes have an answer of their own. */
const isFlagChangeRefused = is("EINVAL", "EOPNOTSUPP", "ENOSYS", "EPERM")
/** How filesystems, the missing right and sandboxes say no to an inode flag. */
const isFlagRefused = is("EOPNOTSUPP", "ENOTTY", "EINVAL", "EPERM", "EACCES", "ENOSYS")

const failedAt = (step: CreateFailed["step"], path: string) => (cause: SyscallError) =>
  new CreateFailed({ step, path, cause })

const creationFailed = (step: CreateFailed["step"], directory: string, path: string) => (cause: SyscallError) =>
  isDirectoryAtFault(cause) ? new DirectoryUnusable({ directory, cause }) : new CreateFailed({ step, path, cause })

/** `mkdir -p`, mode 0700. What exists already need not be a directory: creating the file tells. */
const makePath = (syscalls: Syscalls, directory: string): Effect.Effect<void, SyscallError> => {
  const trimmed = directory.replace(/\/+$/, "")
  const slash = trimmed.lastIndexOf("/")
  const mkdir = Effect.catchIf(syscalls.mkdir(directory, 0o700), is("EEXIST"), () => Effect.void)
  return slash <= 0
    ? mkdir
    : Effect.catchIf(mkdir, is("ENOENT"), () => Effect.zipRight(makePath(syscalls, trimmed.slice(0, slash)), mkdir))
}

/** A directory that others could turn against this process is not used; what is missing of it is made. */
export const checkDirectory = (
  syscalls: Syscalls,
  directory: string
): Effect.Effect<void, DirectoryUnsafe | DirectoryUnusable | CreateFailed> =>
  Effect.mapError(
    directoryPolicy.ensure(syscalls, directory),
    (error) =>
      error._tag === "DirectoryUnsafe"
        ? error
        : creationFailed(error.syscall === "mkdir" ? "create directory" : "create file", directory, directory)(error)
  )

/**
 * A lock that may be unknown on other hosts still protects the file from a forced sweep on this one. Nothing depends on it: such a
 * filesystem may answer anything.
 */
const lockedForThisHost = (syscalls: Syscalls, file: TemporaryFile, created: Statx): Effect.Effect<boolean> =>
  Effect.uninterruptible(Effect.gen(function*() {
    const beside = fileName.within(syscalls, file)
    const lock = yield* Effect.orElseSucceed(fileLock.lock(beside, file.path), () => undefined)
    if (lock?._tag !== "Locked") return true
    if (fileLock.isSameFile(lock.statx, created)) file.lock = lock.fd
    else yield* Effect.ignore(syscalls.close(lock.fd))
    return true
  }))

/**
 * Whether the file is this process', and locked where locks tell that; false when a sweep was first, or has it just now, and took it for
 * one without an owner.
 */
const locked = (
  syscalls: Syscalls,
  file: TemporaryFile,
  created: number
): Effect.Effect<boolean, SyscallError> =>
  Effect.gen(function*() {
    const { type } = yield* syscalls.fstatfs(created)
    file.filesystem = type
    const statx = yield* syscalls.statx(created)
    file.identity = statx
    linkedFiles.identify(fileName.nameOf(file), statx)
    if (!locksAreTrusted(type)) return !locksAreHarmless(type) || (yield* lockedForThisHost(syscalls, file, statx))
    const lock = yield* Effect.catchIf(
      fileLock.lock(fileName.within(syscalls, file), file.path),
      fileLock.isUnsupported,
      (cause) =>
        Effect.annotateLogs(
          Effect.logWarning("a storage cannot be locked, and a sweep may take its name away", cause),
          {
            path: file.path
          }
        )
    )
    if (lock === undefined) return true
    if (lock._tag !== "Locked") return false
    file.lock = lock.fd
    return lock.statx.links > 0 && fileLock.isSameFile(lock.statx, statx)
  })

/** The file, and the descriptor of the directory that it is in; without that where /proc, through which it is used, is missing. */
const createIn = (
  syscalls: Syscalls,
  directory: string
): Effect.Effect<
  { readonly fd: number; readonly path: string; readonly directory: number | undefined },
  DirectoryUnusable | CreateFailed
> => {
  const { O_CLOEXEC, O_DIRECTORY, O_PATH } = syscalls.flags
  const prefixIn = (directory: string) => `${directory.replace(/\/+$/, "")}/${namePrefix}`
  const prefix = prefixIn(directory)
  const failed = creationFailed("create file", directory, `${prefix}XXXXXX`)
  const madeDirectory = Effect.mapError(
    makePath(syscalls, directory),
    creationFailed("create directory", directory, directory)
  )
  const orWithDirectory = <A>(attempt: Effect.Effect<A, SyscallError>) =>
    Effect.catchIf(
      Effect.mapError(attempt, failed),
      ({ cause }) => cause?.errno === errnos.ENOENT,
      () => Effect.zipRight(madeDirectory, Effect.mapError(attempt, failed))
    )
  return Effect.gen(function*() {
    const held = yield* orWithDirectory(syscalls.open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC))
    const below = yield* Effect.either(syscalls.mkostemp(`${fileName.ofDescriptor(held)}/${namePrefix}`, O_CLOEXEC))
    if (below._tag === "Right") {
      const { fd, path } = below.right
      // As it stays when the working directory changes.
      const absolute = directory.startsWith("/")
        ? directory
        : yield* Effect.orElseSucceed(syscalls.readlink(fileName.ofDescriptor(held)), () => directory)
      return { fd, path: `${prefixIn(absolute)}${path.slice(-randomLetters)}`, directory: held }
    }
    yield* Effect.ignore(syscalls.close(held))
    if (below.left.errno !== errnos.ENOENT) return yield* failed(fileName.withPath(below.left, `${prefix}XXXXXX`))
    return { ...yield* orWithDirectory(syscalls.mkostemp(prefix, O_CLOEXEC)), directory: undefined }
  })
}

/**
 * The only step that makes something to undo; whatever the file gathers later, `release` takes care of. It is locked before anything
 * else, so that no sweep takes it for one that its owner has left behind. Its directory is opened first, and the file is made below that
 * descriptor: it certainly is in the directory that stays open. A missing directory is made when it is found missing, which saves the
 * usual case a call; what is made of it stays.
 */
export const create = (
  syscalls: Syscalls,
  directory: string,
  creations = maxCreations
): Effect.Effect<TemporaryFile, DirectoryUnusable | CreateFailed | FileReplaced> => {
  return Effect.gen(function*() {
    const made = yield* createIn(syscalls, directory)
    const { path } = made
    const file: TemporaryFile = {
      path,
      fds: [made.fd],
      lock: undefined,
      directory: made.directory,
      identity: undefined,
      filesystem: undefined,
      linked: true,
      takenFrom: undefined,
      kept: false,
      takingUp: false
    }
    const isOurs = yield* locked(syscalls, file, made.fd).pipe(
      Effect.mapError(failedAt("lock", path)),
      Effect.tapError(() => undo(syscalls, file, []))
    )
    if (isOurs) return file
    // Who holds the lock may only have looked.
    yield* undo(syscalls, file, [])
    if (creations > 1) return yield* create(syscalls, directory, creations - 1)
    return yield* new FileReplaced({ path })
  })
}

/** The descriptor of the lock, which is the caller's from now on. */
const lockOf = (file: TemporaryFile): ReadonlyArray<number> => {
  const { lock } = file
  file.lock = undefined
  return lock === undefined ? [] : [lock]
}

/**
 * Unlinks, or gives its name back, then closes; a step that fails is told in `failures` and skips nothing. A descriptor that the kernel
 * may still come to is not closed, so that its number stays its own, but when that is over: after the unlink, too, which frees nothing
 * while it has not ended.
 */
export const release = (
  syscalls: Syscalls,
  file: TemporaryFile,
  failures: Array<ReleaseFailure>,
  patience = makePatience(Infinity)
): Effect.Effect<void> =>
  Effect.suspend(() => {
    const [fd = -1] = file.fds
    const report = (failure: ReleaseFailure) => Effect.sync(() => void failures.push(failure))
    const unlinked = Effect.suspend(() =>
      file.linked
        ? Effect.flatMap(
          keptFile.givenBack(syscalls, file),
          (given) =>
            given ? Effect.void : Effect.catchAll(fileName.unlink(syscalls, file), (error) =>
              report(
                error._tag === "StillLinked"
                  ? { step: "unlink", remaining: error.remaining }
                  : { step: "unlink", cause: error }
              ))
        )
        : Effect.void
    )
    const closed = Effect.suspend(() =>
      // The lock last: while the name is there it has an owner.
      Effect.forEach(
        [...file.fds.splice(0), ...fileName.letGo(file), ...lockOf(file)],
        (fd) => Effect.catchAll(syscalls.close(fd), (cause) => report({ step: "close", cause })),
        {
          discard: true
        }
      )
    )
    const close = Effect.gen(function*() {
      const hanging = (yield* patience.unended).length > 0
      yield* hanging ? patience.afterwards(closed) : patience.wait("close", fd, closed)
      failures.push(...yield* patience.unended)
    })
    // Whose the name is, and whether it goes or is given back, is known when that has ended.
    const later = Effect.zipRight(
      patience.afterwards(Effect.zipRight(unlinked, closed)),
      Effect.map(patience.unended, (late) => void failures.push(...late))
    )
    return file.takingUp ? later : Effect.ensuring(patience.wait("unlink", fd, unlinked), close)
  })

/** Releases a file that nobody gets; what fails of that is told in the log, where nothing else could tell it. */
const undo = (syscalls: Syscalls, file: TemporaryFile, failures: Array<ReleaseFailure>): Effect.Effect<void> =>
  Effect.zipRight(
    release(syscalls, file, failures),
    Effect.suspend(() =>
      failures.length === 0
        ? Effect.void
        : Effect.logError("disk storage not released cleanly", new ReleaseFailed({ path: file.path, failures }))
    )
  )

/** The file again, with O_DIRECT: a filesystem that ignores F_SETFL takes it here. False when it is refused. */
const reopen = (
  syscalls: Syscalls,
  file: TemporaryFile,
  created: number
): Effect.Effect<{ readonly fd: number; readonly refused?: SyscallError }, CreateFailed | FileReplaced> =>
  Effect.uninterruptible(Effect.gen(function*() {
    const { O_CLOEXEC, O_DIRECT, O_NOFOLLOW, O_RDWR } = syscalls.flags
    const opened = yield* Effect.either(
      fileName.within(syscalls, file).open(file.path, O_RDWR | O_DIRECT | O_NOFOLLOW | O_CLOEXEC)
    )
    if (opened._tag === "Left") {
      if (isDirectIoRefused(opened.left)) return { fd: created, refused: opened.left }
      return yield* failedAt("reopen", file.path)(opened.left)
    }
    const fd = opened.right
    file.fds.push(fd)
    const [before, after] = yield* Effect.mapError(
      Effect.all([syscalls.statx(created), syscalls.statx(fd)]),
      failedAt("reopen", file.path)
    )
    if (!fileLock.isSameFile(before, after)) {
      // The name is somebody else's now, and not ours to remove. The release finds that, and looks for other links of the file.
      linkedFiles.forget(fileName.nameOf(file))
      return yield* new FileReplaced({ path: file.path })
    }
    file.fds.splice(file.fds.indexOf(created), 1)
    yield* Effect.mapError(syscalls.close(created), failedAt("reopen", file.path))
    return { fd }
  }))

/** A file that has content keeps the flag that it has. */
const isOutOfCopyOnWrite = (
  syscalls: Syscalls,
  file: TemporaryFile,
  fd: number
): Effect.Effect<boolean, CreateFailed> =>
  syscalls.ioctlGetFlags(fd).pipe(
    Effect.map((flags) => (flags & FS_NOCOW_FL) !== 0),
    Effect.catchIf(isFlagRefused, () => Effect.succeed(false)),
    Effect.mapError(failedAt("inspect", file.path))
  )

/** On btrfs copy-on-write makes preallocation worthless, and checksums make I/O buffered. An empty file gets rid of both: NOCOW. */
const disableCopyOnWrite = (
  syscalls: Syscalls,
  file: TemporaryFile,
  fd: number
): Effect.Effect<boolean, CreateFailed> => {
  const refused = (cause: string) =>
    Effect.logWarning("copy-on-write stays on: overwrites may run out of space").pipe(
      Effect.annotateLogs({ path: file.path, cause }),
      Effect.as(false)
    )
  return syscalls.ioctlGetFlags(fd).pipe(
    Effect.flatMap((flags) => syscalls.ioctlSetFlags(fd, flags | FS_NOCOW_FL)),
    Effect.mapError((cause) => isFlagRefused(cause) ? cause.message : failedAt("inspect", file.path)(cause)),
    Effect.zipRight(isOutOfCopyOnWrite(syscalls, file, fd)),
    Effect.flatMap((nocow) => nocow ? Effect.succeed(true) : refused("the flag NOCOW was accepted and not kept")),
    Effect.catchIf(Predicate.isString, refused)
  )
}

/** Sets O_DIRECT where `open` has not, and reads it back: the flag, or why it is not there. */
const setDirect = (
  syscalls: Syscalls,
  options: ResolvedOptions,
  file: TemporaryFile,
  fd: number,
  refusedAtOpen: SyscallError | undefined
): Effect.Effect<{ readonly flag: boolean; readonly refused?: SyscallError }, CreateFailed> =>
  Effect.gen(function*() {
    if (options.directIo === "disabled") return { flag: false }
    if (refusedAtOpen !== undefined) return { flag: false, refused: refusedAtOpen }
    const { O_DIRECT } = syscalls.flags
    if (options.openStrategy === "default") {
      const flags = yield* syscalls.fcntlGetFlags(fd)
      const set = yield* Effect.either(syscalls.fcntlSetFlags(fd, flags | O_DIRECT))
      if (set._tag === "Left") {
        return isFlagChangeRefused(set.left) ? { flag: false, refused: set.left } : yield* set.left
      }
    }
    const flags = yield* syscalls.fcntlGetFlags(fd)
    return { flag: (flags & O_DIRECT) !== 0 }
  }).pipe(Effect.mapError(failedAt("set O_DIRECT", file.path)))

/**
 * Zeros over the whole file, from one buffer, with several writes in flight. Interrupted, it ends when those have.
 */
const writeZeros = (
  engine: IoEngine,
  patience: Patience,
  step: "zero-fill" | "prewrite",
  file: TemporaryFile,
  fd: number,
  length: number,
  direct: boolean,
  alignment: Alignment
): Effect.Effect<void, OutOfSpace | AllocationFailed | BufferUnavailable | IoStalled> =>
  Effect.scoped(Effect.gen(function*() {
    const tell = yield* ProgressListener
    const { path } = file
    const failed = ({ bytes, error }: { readonly bytes: number; readonly error: OperationError }) => {
      if (error._tag === "IoStalled") return error
      const cause = error._tag === "IoFailed" ? error.cause : undefined
      return cause !== undefined && isNoRoom(cause)
        ? new OutOfSpace({ path, method: step, needed: length, cause })
        : new AllocationFailed({
          path,
          method: step,
          offset: bytes,
          alignment: Math.max(AlignedBuffer.pageSize, alignment.offset),
          cause
        })
    }
    const ioFile = yield* patience.lend(engine, fd, { path, direct, alignment: alignment.offset })
    const zeros = yield* AlignedBuffer.make(Math.min(length, zeroFillBytes))
    const last = yield* Effect.orDie(AlignedBuffer.slice(zeros, 0, length % zeros.byteLength))
    let done = 0
    yield* Effect.forEach(
      Array.from({ length: Math.ceil(length / zeros.byteLength) }, (_, index) => index * zeros.byteLength),
      (offset) => {
        const bytes = offset + zeros.byteLength > length ? last : zeros
        return Effect.matchEffect(engine.write(ioFile, bytes, offset), {
          onFailure: (error) =>
            Effect.fail(failed({ error, bytes: offset + (error._tag === "IoFailed" ? error.bytesDone : 0) })),
          onSuccess: () => tell({ step, path, done: done += bytes.byteLength, total: length })
        })
      },
      { concurrency: zeroFillConcurrency, discard: true }
    )
    yield* Effect.mapError(engine.sync(ioFile), (error) => failed({ error, bytes: length }))
  }))

/** Zeros from the device where the kernel can ask it for them, a piece at a time so that it can be interrupted and watched. */
const zeroInDevice = (
  syscalls: Syscalls,
  file: TemporaryFile,
  fd: number,
  length: number
): Effect.Effect<boolean, OutOfSpace | AllocationFailed> =>
  Effect.gen(function*() {
    const tell = yield* ProgressListener
    const { path } = file
    const method = "prewrite"
    for (let offset = 0; offset < length; offset += deviceZeroBytes) {
      const bytes = Math.min(deviceZeroBytes, length - offset)
      const zeroed = yield* syscalls.fallocate(fd, FALLOC_FL_WRITE_ZEROES, offset, bytes).pipe(
        Effect.as(true),
        Effect.catchAll((cause) =>
          isWriteZeroesRefused(cause)
            ? Effect.succeed(false)
            : Effect.fail(
              isNoRoom(cause)
                ? new OutOfSpace({ path, method, needed: length, cause })
                : new AllocationFailed({ path, method, offset, cause })
            )
        )
      )
      if (!zeroed) return false
      yield* tell({ step: method, path, done: offset + bytes, total: length })
    }
    return true
  })

/** What tells where the bytes of a unit go, and what stood in the way of the look. */
interface Observed extends Pick<Evidence, "write" | "read"> {
  readonly failure: SyscallError | undefined
}

/**
 * An overwrite and a read of the first `unit` bytes, observed in the page cache: real I/O, before anything is allocated that would take
 * long. Of a file that was taken up it is the unit of its label, which is overwritten with what is there. `thorough`: the read is made
 * even where the write has decided.
 */
const observeUnit = (
  syscalls: Syscalls,
  { fd, pageCache }: Target,
  unit: number,
  label: number | undefined,
  thorough: boolean
): Effect.Effect<Observed, BufferUnavailable> =>
  Effect.scoped(Effect.gen(function*() {
    const { bytes } = yield* AlignedBuffer.make(unit)
    // btrfs reads through the page cache into memory that has not been touched yet.
    bytes.fill(0)
    const unseen = (evidence: string, failure?: SyscallError): Observed => ({
      write: { path: "unknown", evidence },
      read: undefined,
      failure
    })
    const offset = label ?? 0
    const prepared = yield* Effect.either(
      label === undefined ? syscalls.pwrite(fd, bytes, offset) : syscalls.pread(fd, bytes, offset)
    )
    if (prepared._tag === "Left") return unseen(prepared.left.message, prepared.left)
    if (prepared.right !== unit) {
      return unseen(`${prepared.right} of ${unit} bytes could be ${label === undefined ? "written" : "read"}`)
    }
    const target = { fd, pageCache }
    const write = yield* observeWrite(syscalls, target, offset, bytes)
    const failure = write.result._tag === "Left" ? write.result.left : undefined
    if (write.path === "buffered" && !thorough) return { write, failure }
    const read = yield* observeRead(syscalls, target, offset, bytes, undefined, write.path === "direct")
    return { write, read, failure }
  }))

/** `/proc/filesystems` has some hundred bytes; each call gives a page of it at most. */
const maxListReads = 8

/** Whether the kernel has ZFS, which may lie below an overlay; true where its list cannot be read. */
const kernelHasZfs = (syscalls: Syscalls): Effect.Effect<boolean> =>
  Effect.acquireUseRelease(
    syscalls.open("/proc/filesystems", syscalls.flags.O_CLOEXEC),
    (fd) =>
      Effect.gen(function*() {
        const bytes = new Uint8Array(AlignedBuffer.pageSize)
        let text = ""
        for (let calls = 0; calls < maxListReads; calls++) {
          const read = yield* syscalls.pread(fd, bytes, text.length)
          if (read === 0) return /\tzfs$/m.test(text)
          text += String.fromCharCode(...bytes.subarray(0, read))
        }
        return true
      }),
    (fd) => Effect.ignore(syscalls.close(fd))
  ).pipe(Effect.orElseSucceed(() => true))

/**
 * What is known of direct I/O on the file, by evidence alone: the flag, the answer of statx where that holds, and otherwise one unit
 * that is written and read. `proven` always takes the latter, and fails unless it shows direct I/O.
 */
const judge = (
  syscalls: Syscalls,
  { directIo }: ResolvedOptions,
  { path }: TemporaryFile,
  fd: number,
  { name, nocow, type }: { readonly type: number; readonly name: string; readonly nocow: boolean },
  statx: Statx,
  unit: number,
  label: number | undefined
): Effect.Effect<DirectIoState, DirectIoUnavailable | OutOfSpace | BufferUnavailable> =>
  Effect.gen(function*() {
    const proving = directIo === "proven"
    const known: Evidence = { flag: true, statx: statx.directIo, statxHolds: !proving && statxHolds(type) }
    const answer = decide(known)
    if (answer.verdict !== "unknown" && !proving) {
      return { flag: true, ...answer }
    }
    const hidden = type === OVERLAY && statx.directIo !== undefined && (yield* kernelHasZfs(syscalls))
    const pageCache = pageCacheOf(hidden ? 0 : type, statx)
    const { failure, read, write } = yield* observeUnit(syscalls, { fd, pageCache }, unit, label, proving)
    const { reason, verdict } = decide({ ...known, write, read })
    const cause = verdict === "buffered" ? usualCause(type, nocow) : undefined
    if (!proving) {
      return { flag: true, verdict, reason: `observed: ${reason}${cause === undefined ? "" : `: ${cause}`}` }
    }
    if (verdict === "direct") return { flag: true, verdict, reason: `proven: ${reason}` }
    if (failure !== undefined && isNoRoom(failure)) {
      return yield* new OutOfSpace({ path, method: "fallocate", needed: unit, cause: failure })
    }
    const reasons = [
      ...(write === undefined ? [] : [`write: ${write.evidence}`]),
      ...(read === undefined ? [] : [`read: ${read.evidence}`]),
      cause ?? answer.reason
    ]
    return yield* new DirectIoUnavailable({ path, filesystem: name, reasons })
  })

/** What the blocks of a file are that has been allocated before, as far as its filesystem tells. */
const allocatedBefore = (
  syscalls: Syscalls,
  fd: number,
  length: number
): Effect.Effect<{ readonly allocated: boolean; readonly written: boolean }> =>
  mapOf(syscalls, fd, 0, length).pipe(
    Effect.map((map) => ({
      allocated: map.every(({ kind }) => kind === "written" || kind === "unwritten"),
      written: map.every(({ kind }) => kind === "written")
    })),
    Effect.orElseSucceed(() => ({ allocated: false, written: false }))
  )

/**
 * Whether there is room, as far as the filesystem tells: one without a count answers 0 of 0. Root may take what is reserved. btrfs counts what was freed as used until it
 * commits, and its fallocate looks before it takes anything: that is asked instead. What XFS has not given back yet comes with a sync.
 */
const checkSpace = (
  syscalls: Syscalls,
  { path }: TemporaryFile,
  fd: number,
  answered: Statfs,
  statx: Statx,
  needed: number
): Effect.Effect<void, CreateFailed | InsufficientSpace> =>
  Effect.gen(function*() {
    // The kernel does not refuse what is above a limit on memory: it kills.
    if (yield* isInMemory(syscalls, answered.type, statx)) {
      const tight = yield* tightest(syscalls)
      if (tight !== undefined && tight.available < memoryOf(needed)) {
        const { available, ...memory } = tight
        return yield* new InsufficientSpace({ path, needed, available, memory })
      }
    }
    const isRoot = (yield* syscalls.geteuid) === 0
    const roomOf = ({ available, free, total }: Statfs) => total === 0 ? Infinity : isRoot ? free : available
    if (answered.type === BTRFS || roomOf(answered) >= needed) return
    yield* Effect.ignore(syscalls.fdatasync(fd))
    const available = roomOf(yield* Effect.mapError(syscalls.fstatfs(fd), failedAt("inspect", path)))
    if (available < needed) return yield* new InsufficientSpace({ path, needed, available })
  })

type AllocateError = OutOfSpace | AllocationFailed | BufferUnavailable | IoStalled

const allocate = (
  syscalls: Syscalls,
  engine: IoEngine,
  patience: Patience,
  options: ResolvedOptions,
  file: TemporaryFile,
  fd: number,
  length: number,
  direct: boolean,
  alignment: Alignment
): Effect.Effect<Pick<Allocation, "method" | "written">, AllocateError> => {
  const { path } = file
  type Allocated = Pick<Allocation, "method" | "written">
  const failed = (method: AllocationFailed["method"]) => (cause: SyscallError) =>
    isNoRoom(cause)
      ? new OutOfSpace({ path, method, needed: length, cause })
      : new AllocationFailed({ path, method, cause })
  const truncate = Effect.logWarning(
    "this filesystem has no fallocate: the file is sparse, and writes may run out of space later. " +
      "DYN_KVBM_DISK_ZEROFILL_FALLBACK=true (option fallback: \"zero-fill\") fills it now, which takes longer."
  ).pipe(
    Effect.annotateLogs({ path }),
    Effect.zipRight(Effect.mapError(syscalls.ftruncate(fd, length), failed("truncate"))),
    Effect.as<Allocated>({ method: "truncate", written: false })
  )
  const fill = Effect.logInfo("this filesystem has no fallocate: writing zeros over the whole file").pipe(
    Effect.annotateLogs({ path, bytes: length }),
    // Writes that extend a file exclude each other; within its size they do not.
    Effect.zipRight(Effect.mapError(syscalls.ftruncate(fd, length), failed("zero-fill"))),
    // Into holes, as here, the kernel may write through the page cache.
    Effect.zipRight(writeZeros(engine, patience, "zero-fill", file, fd, length, false, alignment)),
    Effect.as<Allocated>({ method: "zero-fill", written: true })
  )
  const prewrite = Effect.flatMap(
    zeroInDevice(syscalls, file, fd, length),
    (zeroed) => zeroed ? Effect.void : writeZeros(engine, patience, "prewrite", file, fd, length, direct, alignment)
  )
  return Effect.matchEffect(syscalls.fallocate(fd, 0, 0, length), {
    onSuccess: () =>
      Effect.as(options.prewrite ? prewrite : Effect.void, { method: "fallocate" as const, written: options.prewrite }),
    onFailure: (cause): Effect.Effect<Allocated, AllocateError> =>
      !isUnsupported(cause)
        ? Effect.fail(failed("fallocate")(cause))
        : options.prewrite || options.fallback === "zero-fill"
        ? fill
        : truncate
  })
}

/** Where statx is refused: fstat answers without alignments. */
const warnOfFstat = (path: string): Effect.Effect<void> =>
  Effect.annotateLogs(
    Effect.logWarning("statx is refused here, as by old container runtimes: the alignment of direct I/O is assumed"),
    { path }
  )

const withSource = ({ source }: Statx, state: DirectIoState): DirectIoState =>
  source === "fstat"
    ? { ...state, reason: `${state.reason}; statx is refused here, so that the alignment is assumed` }
    : state

/** From a created file to one that can be used; plain steps, interruptible, undone by the release of `create`. */
export const prepare = (
  syscalls: Syscalls,
  engine: IoEngine,
  patience: Patience,
  options: ResolvedOptions,
  file: TemporaryFile,
  mount?: requiredMount.RequiredMount
): Effect.Effect<Prepared, AcquireError> =>
  Effect.gen(function*() {
    const { path } = file
    const { keepAt } = options
    const onMount = (fd: number, statx: Statx) =>
      mount === undefined ? Effect.void : requiredMount.check(syscalls, mount, fd, statx, options.directory)
    if (mount !== undefined) {
      const made = Arr.unsafeGet(file.fds, 0)
      yield* onMount(made, yield* Effect.mapError(syscalls.statx(made), failedAt("inspect", path)))
    }
    // Beside the file, whose path is absolute, so that the working directory may change.
    const keptPath = keepAt === undefined
      ? undefined
      : `${path.slice(0, path.lastIndexOf("/") + 1)}${keepAt.slice(keepAt.lastIndexOf("/") + 1)}`
    const label = keptPath === undefined ? undefined : yield* keptFile.takeUp(syscalls, file, keptPath, options)
    const created = Arr.unsafeGet(file.fds, 0)
    const opened = options.openStrategy === "open-direct" && options.directIo !== "disabled"
      ? yield* reopen(syscalls, file, created)
      : { fd: created, refused: undefined }
    const { fd } = opened
    if (options.earlyUnlink) {
      yield* Effect.mapError(fileName.unlink(syscalls, file), (error) =>
        error._tag === "StillLinked"
          ? new CreateFailed({ step: "early unlink", path, remaining: error.remaining })
          : failedAt("early unlink", path)(error))
    }

    const statfs = yield* Effect.mapError(syscalls.fstatfs(fd), failedAt("inspect", path))
    const { blockSize, type } = statfs
    const filesystem = { type, name: filesystemName(type) }
    const nocow = type === BTRFS &&
      (yield* (label === undefined ? disableCopyOnWrite : isOutOfCopyOnWrite)(syscalls, file, fd))

    const direct = yield* setDirect(syscalls, options, file, fd, opened.refused)
    if (!direct.flag && options.directIo !== "disabled") {
      const refused = new DirectIoRefused({
        path,
        filesystem: filesystem.name,
        openStrategy: options.openStrategy,
        cause: direct.refused
      })
      if (options.directIo === "required") return yield* refused
      if (options.directIo === "proven") {
        return yield* new DirectIoUnavailable({ path, filesystem: filesystem.name, reasons: [refused.message] })
      }
      yield* Effect.logWarning("I/O is buffered", refused)
    }

    const statx = yield* Effect.mapError(syscalls.statx(fd), failedAt("inspect", path))
    yield* onMount(fd, statx)
    const answered = statx.directIo
    if (statx.source === "fstat") yield* warnOfFstat(path)
    const unanswered = alignmentWithoutAnswer(type, blockSize)
    const offset = direct.flag ? answered?.offsetAlignment || unanswered : 1
    const alignment = { memory: direct.flag ? answered?.memoryAlignment || unanswered : 1, offset, length: offset }

    // Whole pages, so that an aligned write of the last one neither grows nor fails; what is above `size` is padding.
    const unit = label?.unit ?? Math.max(AlignedBuffer.pageSize, offset)
    const length = Math.ceil(options.size / unit) * unit
    const labelAt = label === undefined ? undefined : length
    const fileBytes = keepAt === undefined ? length : keptFile.lengthOf(options.size, unit)
    if (label === undefined) yield* checkSpace(syscalls, file, fd, statfs, statx, fileBytes)
    const accepted: DirectIoState = direct.flag
      ? withSource(statx, yield* judge(syscalls, options, file, fd, { ...filesystem, nocow }, statx, unit, labelAt))
      : {
        flag: false,
        verdict: "buffered",
        reason: options.directIo === "disabled" ? "O_DIRECT was not asked for" : "O_DIRECT was refused"
      }
    if (accepted.flag && accepted.verdict === "buffered") {
      yield* Effect.logWarning("O_DIRECT was accepted, and I/O is buffered all the same").pipe(
        Effect.annotateLogs({ path, reason: accepted.reason })
      )
    }
    const useless = options.prewrite ? copiesOnWrite(type, nocow) : undefined
    if (useless !== undefined) return yield* new PrewriteRefused({ path, filesystem: filesystem.name, reason: useless })
    const place: keptFile.Place | undefined = keptPath === undefined
      ? undefined
      : {
        path: keptPath,
        mark: label?.mark,
        offset: length,
        unit: (yield* AlignedBuffer.make(unit)).bytes
      }
    const { allocated, method, written } = label === undefined
      ? yield* Effect.map(
        allocate(syscalls, engine, patience, options, file, fd, fileBytes, direct.flag, alignment),
        (made) => ({ ...made, allocated: made.method !== "truncate" })
      )
      : { ...yield* allocatedBefore(syscalls, fd, length), method: "kept" as const }
    // Measured on ext2: the kernel writes into a hole of a file without extents through the page cache, whatever the flag.
    const directIo = !allocated && accepted.verdict === "direct"
      ? { ...accepted, reason: `${accepted.reason}; the first write into each hole may be buffered` }
      : accepted
    const allocation = {
      method,
      written,
      overwritesMayRunOutOfSpace: !allocated || overwritesMayRunOutOfSpace(type, nocow, method, answered)
    }
    // Last, so that whatever fails before leaves it as it was.
    if (place?.mark !== undefined) yield* keptFile.erase(syscalls, file, fd, place)
    yield* Effect.logDebug("disk storage acquired").pipe(
      Effect.annotateLogs({
        path,
        bytes: fileBytes,
        filesystem: filesystem.name,
        allocation: method,
        directIo: `${directIo.verdict}: ${directIo.reason}`,
        alignment: offset
      })
    )
    return { fd, length, place, filesystem, directIo, alignment, allocation, allocated }
  })
