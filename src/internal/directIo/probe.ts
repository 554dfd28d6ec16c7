/**
 * The probe: small files of its own, without a name before a byte is written, and every kind of I/O on them with O_DIRECT, each judged
 * by what the page cache and the map of the file are afterwards.
 */
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { Mutable } from "effect/Types"
import * as AlignedBuffer from "../../AlignedBuffer.js"
import type { Alignment, KernelFacts, Probe, ProbeFailure } from "../../DirectIo.js"
import type { BufferUnavailable } from "../../DiskStorageError.js"
import type { Statx, SyscallError } from "../../Syscalls.js"
import { errnos, FS_NOCOW_FL, Syscalls } from "../../Syscalls.js"
import { kindsIn } from "../extents.js"
import { BTRFS, filesystemName, pageCacheOf } from "../filesystems.js"
import type { PageCache } from "../filesystems.js"
import * as linkedFiles from "../linkedFiles.js"
import * as observe from "../observe.js"
import { namePrefix } from "../options.js"

/** What one try moves: enough pages for a count of them to mean something, and more than any filesystem keeps inline. */
const chunkBytes = 64 * 1024
/** A write into a hole: so many pages that those that others dirty meanwhile do not drown them. */
const holeBytes = 2 * 1024 * 1024
const holeRounds = 3
/**
 * A CPU keeps up to 125 pages that it has dirtied to itself before the kernel adds them up (`calculate_normal_threshold` in
 * `mm/vmstat.c`), and a write may move from one CPU to another.
 */
const unaccountedPages = 2 * 125
/** `FS_EXTENT_FL` of `ioctl_iflags(2)`: the file is mapped by extents (ext4). */
const FS_EXTENT_FL = 0x8_0000
/** The largest multiple that is tried for an alignment. */
const maxAlignment = 64 * 1024

/** What the file of the probe is, as far as it came. */
export interface Findings {
  readonly statx: Statx["directIo"] | undefined
  readonly inodeFlags: number | undefined
  readonly setFlag: KernelFacts["setFlag"]
  readonly openFlag: KernelFacts["openFlag"]
  /** Whether the empty file could be taken out of copy-on-write; undefined where that is not asked for. */
  readonly nocow: boolean | undefined
  readonly probes: ReadonlyArray<Probe>
  readonly alignment: Pick<Alignment, "read" | "write">
  /** Whether a buffered write had its blocks chosen at once, or later. */
  readonly delayed: boolean | undefined
  /** ZFS: what the pool counted while `made` direct writes, and then as many reads, were made. */
  readonly pool: (PoolCounts & { readonly made: number }) | undefined
  readonly failure: ProbeFailure | null
}

/** Operations past the ARC of a pool of ZFS, and through it. */
export interface PoolCounts {
  readonly writes: { readonly direct: number; readonly arc: number }
  readonly reads: { readonly direct: number; readonly arc: number }
}

interface File {
  /** Without O_DIRECT. */
  readonly plain: number
  readonly fd: number
  readonly pageCache: PageCache
  readonly kind: Probe["file"]
  /** A direct write that has begun here is never given up for a buffered one: xfs, btrfs, and ext4 with extents. */
  readonly staysDirect: boolean
}

/** Where the probe is made. */
export interface Place {
  readonly directory: string
  /** The filesystem's magic number, and that of the one whose pages are used: of an overlay, its upper directory's. */
  readonly type: number
  readonly pagesType: number
}

interface Tools {
  readonly syscalls: Syscalls
  readonly bytes: Uint8Array
  /** Pages dirtied in the whole system so far; undefined where that is not told. */
  readonly dirtied: Effect.Effect<number | undefined>
  /** Whether a direct write dirties pages of a file that a loop device below reads and writes through the page cache. */
  readonly dirtiesBelow: boolean
  readonly poolCounts: Effect.Effect<PoolCounts | undefined>
}

const meanings: { readonly [code: string]: string } = {
  EROFS: "the filesystem is mounted read-only",
  ENOSPC: "the disk is full",
  EDQUOT: "the quota is used up",
  EFBIG: "the size limit of files (ulimit -f) is too low",
  EMFILE: "this process has no file descriptor left (ulimit -n)",
  ENFILE: "the machine has no file descriptor left",
  EIO: "the disk failed: look at the kernel's log"
}

/** What the same codes mean where a file is made; 126 is ENOKEY. */
const meaningsAtCreation: { readonly [code: string]: string } = {
  EACCES: "this user may not make files here",
  EPERM: "files may not be made here",
  ENOENT: "the directory is gone, or its filesystem takes no files",
  E126: "the key of this encrypted directory is not there"
}

export const failureAt = (step: string, special = meanings) => (cause: SyscallError): ProbeFailure => ({
  step,
  code: cause.code,
  message: `${special[cause.code] ?? meanings[cause.code] ?? "the kernel refused"} (${cause.message})`
})

/** Filesystems and kernels without O_TMPFILE (`open(2)`). */
const hasNoTmpfile = ({ errno }: SyscallError) =>
  [errnos.EOPNOTSUPP, errnos.EISDIR, errnos.EINVAL, errnos.ENOSYS].some((number) => number === errno)

/** A new file without a name: from the start where that can be, else it loses its name before anything is written. */
const create = (syscalls: Syscalls, directory: string): Effect.Effect<number, ProbeFailure, Scope.Scope> => {
  const { O_CLOEXEC, O_RDWR, O_TMPFILE } = syscalls.flags
  const named = Effect.gen(function*() {
    const prefix = `${directory.replace(/\/+$/, "")}/${namePrefix}`
    const { fd, path } = yield* Effect.mapError(
      syscalls.mkostemp(prefix, O_CLOEXEC),
      failureAt("create a file", meaningsAtCreation)
    )
    yield* syscalls.unlink(path).pipe(
      // A sweep was first, if the file has no link any more: a directory that was renamed gives the same error.
      Effect.catchIf(
        ({ errno }) => errno === errnos.ENOENT,
        (cause) =>
          Effect.flatMap(
            syscalls.statx(fd),
            ({ links }) => links === 0 ? Effect.sync(() => linkedFiles.forget(path)) : Effect.fail(cause)
          )
      ),
      Effect.tapError(() => Effect.ignore(syscalls.close(fd))),
      Effect.mapError((cause) => ({
        step: "unlink the file",
        code: cause.code,
        message: `the empty file ${path} remains: remove it (${cause.message})`
      }))
    )
    return fd
  })
  return Effect.acquireRelease(
    Effect.catchAll(
      syscalls.open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC),
      (cause) => hasNoTmpfile(cause) ? named : Effect.fail(failureAt("create a file", meaningsAtCreation)(cause))
    ),
    (fd) => Effect.ignore(syscalls.close(fd))
  )
}

const isRefusal = ({ errno }: SyscallError) => errno === errnos.EINVAL || errno === errnos.EOPNOTSUPP

/** The same file again, with O_DIRECT: set where that is kept, else given to `open`, which some filesystems want. */
const openDirect = (
  syscalls: Syscalls,
  plain: number
): Effect.Effect<
  { readonly fd: number | undefined } & Pick<Findings, "setFlag" | "openFlag">,
  ProbeFailure,
  Scope.Scope
> =>
  Effect.gen(function*() {
    const { O_CLOEXEC, O_DIRECT, O_RDWR } = syscalls.flags
    const failed = <A, R>(effect: Effect.Effect<A, SyscallError, R>) =>
      Effect.mapError(effect, failureAt("set O_DIRECT", { ENOENT: "/proc is not mounted" }))
    const again = (flags: number) =>
      Effect.acquireRelease(
        syscalls.open(`/proc/self/fd/${plain}`, O_RDWR | O_CLOEXEC | flags),
        (fd) => Effect.ignore(syscalls.close(fd))
      )
    const isKept = (fd: number) => Effect.map(syscalls.fcntlGetFlags(fd), (flags) => (flags & O_DIRECT) !== 0)
    const asked = yield* failed(again(0))
    const set = yield* Effect.either(
      Effect.flatMap(syscalls.fcntlGetFlags(asked), (flags) => syscalls.fcntlSetFlags(asked, flags | O_DIRECT))
    )
    const setFlag = Either.isLeft(set) ? "refused" : (yield* failed(isKept(asked))) ? "kept" : "ignored"
    const opened = yield* Effect.either(again(O_DIRECT))
    if (Either.isLeft(opened)) {
      // Where the set flag was kept the file can be used, whatever open says.
      if (setFlag !== "kept" && !isRefusal(opened.left)) {
        return yield* Effect.fail(failureAt("open with O_DIRECT")(opened.left))
      }
      return { fd: setFlag === "kept" ? asked : undefined, setFlag, openFlag: "refused" }
    }
    const openFlag = (yield* failed(isKept(opened.right))) ? "kept" : "ignored"
    return { fd: setFlag === "kept" ? asked : openFlag === "kept" ? opened.right : undefined, setFlag, openFlag }
  })

type Attempt = Effect.Effect<Probe, ProbeFailure>

/** What a filesystem says where it has no such thing as what the try needs. */
const isUnheardOf = ({ errno }: SyscallError) =>
  [errnos.EINVAL, errnos.EOPNOTSUPP, errnos.ENOTTY, errnos.ENOSYS, errnos.EXDEV].some((number) => number === errno)

/** What forbids one try, and not the others: a policy (seccomp, for example), or a flag of the file. */
const isForbidden = ({ errno }: SyscallError) => errno === errnos.EPERM || errno === errnos.EACCES

/** One try: `prepare` makes the range what it has to be; the map is taken before and after. */
const attempt = (
  { syscalls }: Tools,
  { kind, plain }: File,
  id: Probe["id"],
  { length, offset }: observe.Range,
  prepare: Effect.Effect<unknown, SyscallError>,
  transfer: Effect.Effect<observe.Observation & Partial<Pick<Probe, "dirtied">>>
): Attempt => {
  const common = { id, file: kind, bytes: length }
  const nothingSeen = { cached: null, mapped: null, dirtied: null, extentsBefore: null, extentsAfter: null }
  const kinds = Effect.mapError(kindsIn(syscalls, plain, offset, length), failureAt("read the map of the file"))
  const run = Effect.gen(function*() {
    const extentsBefore = yield* kinds
    const { cached, dirtied = null, evidence, mapped, path, result } = yield* transfer
    if (Either.isLeft(result) && path !== "refused") return yield* Effect.fail(failureAt(`probe "${id}"`)(result.left))
    const extentsAfter = yield* kinds
    return { ...common, path, evidence, cached, mapped, dirtied, extentsBefore, extentsAfter }
  })
  return Effect.matchEffect(Effect.zipRight(prepare, syscalls.fdatasync(plain)), {
    onSuccess: () => run,
    onFailure: (cause): Attempt =>
      isUnheardOf(cause) || isForbidden(cause)
        ? Effect.succeed({
          ...common,
          ...nothingSeen,
          path: isForbidden(cause) ? "unknown" : "not tried",
          evidence: cause.message
        })
        : Effect.fail(failureAt(`prepare the probe "${id}"`)(cause))
  })
}

/**
 * A write into a hole. Filesystems that give up on direct I/O there do so after mapped pages were taken out, and drop what they
 * cached (ext2, ext3 without extents): what remains of it is the count of pages that were dirtied. One round without them proves a
 * direct write; all rounds with them make a buffered one likely, since what others dirty meanwhile is counted, too. A loop device
 * that dirties pages of its own file blurs that.
 */
const intoHole = (
  tools: Tools,
  file: File,
  offset: number,
  round = 1
): Effect.Effect<observe.Observation & Pick<Probe, "dirtied">> =>
  Effect.gen(function*() {
    const { bytes, dirtied, dirtiesBelow, syscalls } = tools
    const pages = holeBytes / syscalls.pageSize
    const before = yield* dirtied
    const seen = yield* observe.observeWrite(syscalls, file, offset, bytes.subarray(0, holeBytes))
    const after = yield* dirtied
    if (seen.path !== "direct") return { ...seen, dirtied: null }
    if (before === undefined || after === undefined) {
      return file.staysDirect ? { ...seen, dirtied: null } : {
        ...seen,
        dirtied: null,
        path: "unknown",
        evidence: `${seen.evidence}, but what was dirtied meanwhile cannot be counted (/proc/vmstat)`
      }
    }
    const count = after - before
    if (pages <= unaccountedPages && !file.staysDirect) {
      const evidence = `${seen.evidence}, but pages of ${syscalls.pageSize} bytes are too few to count what was dirtied`
      return { ...seen, dirtied: count, path: "unknown", evidence }
    }
    if (count < pages - unaccountedPages || file.staysDirect) return { ...seen, dirtied: count }
    if (dirtiesBelow && count < 2 * pages - unaccountedPages) {
      const evidence = `${seen.evidence}, but ${count} pages were dirtied, here or in the file of the loop device below`
      return { ...seen, dirtied: count, path: "unknown", evidence }
    }
    if (round < holeRounds) return yield* intoHole(tools, file, offset + holeBytes, round + 1)
    const evidence =
      `each of ${holeRounds} writes of ${pages} pages dirtied as many in the page cache, and dropped them again`
    return { ...seen, dirtied: count, path: "buffered", evidence }
  })

/** The places of the tries in the file, which do not touch. */
const placeBytes = 4 * holeBytes
const at = (place: number, length = chunkBytes): observe.Range => ({ offset: place * placeBytes, length })
const places = { written: at(1), unwritten: at(2), aligned: at(3), hole: at(4, holeBytes), end: at(5, holeBytes) }

/** Every kind of write, and a read. */
const tries = (tools: Tools, file: File): ReadonlyArray<Attempt> => {
  const { bytes, syscalls } = tools
  const { plain } = file
  const page = syscalls.pageSize
  const chunk = bytes.subarray(0, chunkBytes)
  const write = (range: observe.Range, watched = range) =>
    observe.observeWrite(syscalls, file, range.offset, chunk, watched)
  const { end, hole, unwritten, written } = places
  return [
    // The file ends within a page, which is there to be watched.
    attempt(
      tools,
      file,
      "extending",
      { offset: page, length: chunkBytes },
      syscalls.pwrite(plain, bytes.subarray(0, page + page / 2), 0),
      write({ offset: page, length: chunkBytes }, { offset: page, length: page })
    ),
    attempt(tools, file, "written", written, syscalls.pwrite(plain, chunk, written.offset), write(written)),
    attempt(
      tools,
      file,
      "read",
      written,
      syscalls.pwrite(plain, chunk, written.offset),
      observe.observeRead(syscalls, file, written.offset, chunk)
    ),
    attempt(
      tools,
      file,
      "allocating",
      end,
      syscalls.ftruncate(plain, end.offset + holeRounds * holeBytes),
      intoHole(tools, file, end.offset)
    ),
    attempt(
      tools,
      file,
      "hole",
      hole,
      Effect.zipRight(
        syscalls.pwrite(plain, chunk, hole.offset - chunkBytes),
        syscalls.pwrite(plain, chunk, hole.offset + holeRounds * holeBytes)
      ),
      intoHole(tools, file, hole.offset)
    ),
    // After fallocate btrfs compresses no more.
    attempt(
      tools,
      file,
      "preallocated",
      unwritten,
      syscalls.fallocate(plain, 0, unwritten.offset, unwritten.length),
      write(unwritten)
    )
  ]
}

/** A few bytes, written without O_DIRECT so that they may go into the inode; then a direct write over them. */
const tryInline = (tools: Tools, file: File, unit: number): Attempt => {
  const { bytes, syscalls } = tools
  const { plain } = file
  const few = bytes.subarray(0, 64)
  return attempt(
    tools,
    file,
    "inline",
    { offset: 0, length: few.byteLength },
    syscalls.pwrite(plain, few, 0),
    observe.observeWrite(syscalls, file, 0, bytes.subarray(0, unit), { offset: 0, length: syscalls.pageSize })
  )
}

/** A write over what another file shares: one that is not a multiple of blocks may be buffered then. */
const tryShared = (tools: Tools, file: File, copy: number): Attempt => {
  const { bytes, syscalls } = tools
  const { plain } = file
  const chunk = bytes.subarray(0, chunkBytes)
  return attempt(
    tools,
    file,
    "shared",
    { offset: 0, length: chunkBytes },
    Effect.zipRight(syscalls.pwrite(plain, chunk, 0), syscalls.ficlone(copy, plain)),
    observe.observeWrite(syscalls, file, 0, chunk)
  )
}

/** 1, 2, 4, … `most` */
const powers = (most: number): ReadonlyArray<number> =>
  Array.from({ length: Math.log2(most) + 1 }, (_, index) => 2 ** index)

/**
 * The smallest multiples that transfers take and do directly, each found by transfers that are off by just so much. Where the page
 * cache cannot tell direct from buffered, the smallest that are taken.
 */
const findMultiples = (
  { bytes, syscalls }: Tools,
  file: File,
  direction: "read" | "write",
  path: Probe["path"]
): Effect.Effect<Alignment["read"]> => {
  if (path !== "direct" && path !== "unknown") return Effect.succeed(null)
  const page = syscalls.pageSize
  const transfer = (memory: number, offset: number, length: number) => {
    const buffer = bytes.subarray(memory, memory + chunkBytes + length)
    const start = places.aligned.offset + offset
    const first = start - start % page
    const watched = { offset: first, length: Math.ceil((start + buffer.byteLength - first) / page) * page }
    const observed = direction === "read"
      ? observe.observeRead(syscalls, file, start, buffer, watched)
      : observe.observeWrite(syscalls, file, start, buffer, watched)
    return Effect.map(observed, (seen) => seen.path === path)
  }
  const smallest = (most: number, taken: (multiple: number) => Effect.Effect<boolean>) =>
    Effect.findFirst(powers(most), taken)
  return Effect.gen(function*() {
    const memory = yield* smallest(page, (multiple) => transfer(multiple, 0, 0))
    const offset = yield* smallest(maxAlignment, (multiple) => transfer(0, multiple, 0))
    const length = yield* smallest(maxAlignment, (multiple) => transfer(0, 0, multiple))
    return Option.getOrNull(Option.all({ memory, offset, length }))
  })
}

/** A new file, out of copy-on-write where `kind` wants that and it can be had, and again with O_DIRECT. */
const makeFile = ({ syscalls }: Tools, { directory, pagesType }: Place, kind: Probe["file"]) =>
  Effect.gen(function*() {
    const plain = yield* create(syscalls, directory)
    const inodeFlags = Option.getOrUndefined(yield* Effect.option(syscalls.ioctlGetFlags(plain)))
    const nocow = kind === "nocow" && inodeFlags !== undefined &&
      Either.isRight(yield* Effect.either(syscalls.ioctlSetFlags(plain, inodeFlags | FS_NOCOW_FL)))
    const { fd, openFlag, setFlag } = yield* openDirect(syscalls, plain)
    const extents = ((inodeFlags ?? 0) & FS_EXTENT_FL) !== 0
    const staysDirect = pagesType === BTRFS || filesystemName(pagesType) === "xfs" || extents
    const statx = yield* Effect.mapError(syscalls.statx(fd ?? plain), failureAt("ask with statx"))
    const pageCache = pageCacheOf(pagesType, statx)
    const file = fd === undefined ? undefined : { plain, fd, pageCache, kind, staysDirect }
    return { plain, file, inodeFlags, nocow, setFlag, openFlag, statx: statx.directIo }
  })

/** Large direct writes, then reads, and what a pool of ZFS counted; writes of less than a record would go through its ARC. */
const countInPool = (
  { bytes, poolCounts, syscalls }: Tools,
  { fd }: File
): Effect.Effect<Findings["pool"], ProbeFailure> =>
  Effect.gen(function*() {
    const made = holeRounds
    const transfer = bytes.subarray(0, holeBytes)
    const before = yield* poolCounts
    if (before === undefined) return undefined
    for (let index = 0; index < made; index++) {
      const offset = places.end.offset + index * holeBytes
      yield* Effect.mapError(syscalls.pwrite(fd, transfer, offset), failureAt("write to the file"))
    }
    for (let index = 0; index < made; index++) {
      const offset = places.end.offset + index * holeBytes
      yield* Effect.mapError(syscalls.pread(fd, transfer, offset), failureAt("read the file"))
    }
    const after = yield* poolCounts
    if (after === undefined) return undefined
    const between = (kind: keyof PoolCounts) => ({
      direct: after[kind].direct - before[kind].direct,
      arc: after[kind].arc - before[kind].arc
    })
    return { made, writes: between("writes"), reads: between("reads") }
  })

const inspectFile = (
  tools: Tools,
  place: Place,
  kind: Probe["file"],
  findings: Mutable<Findings>
): Effect.Effect<void, ProbeFailure, Scope.Scope> =>
  Effect.gen(function*() {
    const { bytes, syscalls } = tools
    const { file, inodeFlags, nocow, openFlag, plain, setFlag, statx } = yield* makeFile(tools, place, kind)
    if (kind === "nocow") {
      findings.nocow = nocow
      if (!nocow) return
    } else Object.assign(findings, { inodeFlags, setFlag, openFlag })
    findings.statx = statx

    yield* Effect.mapError(syscalls.pwrite(plain, bytes.subarray(0, chunkBytes), 0), failureAt("write to the file"))
    const kinds = yield* Effect.mapError(kindsIn(syscalls, plain, 0, chunkBytes), failureAt("read the map of the file"))
    findings.delayed = kinds?.includes("delayed")
    yield* Effect.mapError(syscalls.ftruncate(plain, 0), failureAt("shorten the file"))
    if (file === undefined) return

    const found: Array<Probe> = []
    const keep = (probe: Attempt) =>
      Effect.map(probe, (done) => {
        found.push(done)
        findings.probes = [...findings.probes, done]
      })
    yield* Effect.forEach(tries(tools, file), keep, { discard: true })

    const pathOf = (id: Probe["id"]) => found.find((probe) => probe.id === id)?.path ?? "not tried"
    const covered = bytes.subarray(0, chunkBytes + 2 * maxAlignment)
    yield* Effect.mapError(syscalls.pwrite(plain, covered, places.aligned.offset), failureAt("write to the file"))
    const write = yield* findMultiples(tools, file, "write", pathOf("written"))
    // Pages that buffered writes have left say nothing of a read.
    const readPath = pathOf("written") === "buffered" && pathOf("read") === "unknown" ? "not tried" : pathOf("read")
    findings.alignment = { write, read: yield* findMultiples(tools, file, "read", readPath) }

    findings.pool = yield* countInPool(tools, file)

    const copied = yield* makeFile(tools, place, kind)
    const copy = yield* makeFile(tools, place, kind)
    if (copied.file !== undefined) yield* keep(tryShared(tools, copied.file, copy.plain))
    const small = yield* makeFile(tools, place, kind)
    const unit = Math.max(write?.offset ?? syscalls.pageSize, write?.length ?? syscalls.pageSize)
    if (small.file !== undefined) yield* keep(tryInline(tools, small.file, unit))
  })

/**
 * Everything that real I/O in a directory tells. On btrfs two files are asked: one as it is made here, and one that is made NOCOW, as a
 * `DiskStorage` makes it. Nothing is left: the files lose their names before anything is written.
 */
export const probe = (
  place: Place,
  { dirtiesBelow, poolCounts }: Pick<Tools, "dirtiesBelow" | "poolCounts">
): Effect.Effect<Findings, BufferUnavailable, Syscalls | FileSystem.FileSystem> =>
  Effect.gen(function*() {
    const syscalls = yield* Syscalls
    const fileSystem = yield* FileSystem.FileSystem
    const { bytes } = yield* AlignedBuffer.make(holeBytes)
    bytes.fill(0x5a)
    const dirtied = Effect.match(fileSystem.readFileString("/proc/vmstat"), {
      onFailure: () => undefined,
      onSuccess: (text) => {
        const count = /^nr_dirtied (\d+)$/m.exec(text)?.[1]
        return count === undefined ? undefined : Number(count)
      }
    })
    const tools = { syscalls, bytes, dirtied, dirtiesBelow, poolCounts }
    const findings: Mutable<Findings> = {
      statx: undefined,
      inodeFlags: undefined,
      setFlag: null,
      openFlag: null,
      nocow: undefined,
      probes: [],
      alignment: { read: null, write: null },
      delayed: undefined,
      pool: undefined,
      failure: null
    }
    const inspect = (kind: Probe["file"]) => Effect.scoped(inspectFile(tools, place, kind, findings))
    yield* Effect.catchAll(
      Effect.suspend(() =>
        Effect.zipRight(
          inspect("as made here"),
          Effect.suspend(() =>
            place.type === BTRFS && ((findings.inodeFlags ?? 0) & FS_NOCOW_FL) === 0 ? inspect("nocow") : Effect.void
          )
        )
      ),
      (failure) =>
        Effect.sync(() => {
          findings.failure = failure
        })
    )
    return findings
  })
