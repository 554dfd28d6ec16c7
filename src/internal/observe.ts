/**
 * Where the bytes of one transfer go, asked of the page cache.
 *
 * A page that is mapped into this process stays in the page cache when a buffered write changes it, and when the filesystem drops
 * its pages behind such a write; a direct write has to take it out, mapped or not (`kiocb_invalidate_pages` in `mm/filemap.c`).
 * `mincore(2)` of the mapping tells, also through an overlay, whose own files have no pages for `cachestat(2)` to count.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type { Probe } from "../DirectIo.js"
import type { SyscallError, Syscalls } from "../Syscalls.js"
import { errnos, POSIX_FADV_DONTNEED } from "../Syscalls.js"
import type { PageCache } from "./filesystems.js"

type Pages = Probe["cached"]

export interface Observation extends Pick<Probe, "path" | "cached" | "mapped" | "evidence"> {
  /** Bytes moved, or why none were. */
  readonly result: Either.Either<number, SyscallError>
}

export interface Target {
  readonly fd: number
  readonly pageCache: PageCache
}

export interface Range {
  /** bytes, a multiple of the page */
  readonly offset: number
  readonly length: number
}

/** How the kernel says that it will not do a transfer this way. */
const isRefused = ({ errno }: SyscallError) => errno === errnos.EINVAL || errno === errnos.EOPNOTSUPP

const countCached = (syscalls: Syscalls, { fd }: Target, { length, offset }: Range) =>
  Effect.orElseSucceed(Effect.map(syscalls.cachestat(fd, offset, length), ({ cached }) => cached), () => undefined)

const bothSides = (before: number | undefined, after: number | undefined): Pages =>
  before === undefined || after === undefined ? null : { before, after }

/** Counts pages before and after `transfer`, which is made while the range is mapped. */
const observe = (
  syscalls: Syscalls,
  target: Target,
  range: Range,
  populate: boolean,
  transfer: Effect.Effect<number, SyscallError>
): Effect.Effect<Pick<Observation, "result" | "cached" | "mapped">> => {
  const counted = (countMapped: Effect.Effect<number | undefined>) =>
    Effect.gen(function*() {
      const cachedBefore = yield* countCached(syscalls, target, range)
      const mappedBefore = yield* countMapped
      const result = yield* Effect.either(transfer)
      const mapped = bothSides(mappedBefore, yield* countMapped)
      return { result, cached: bothSides(cachedBefore, yield* countCached(syscalls, target, range)), mapped }
    })
  return Effect.acquireUseRelease(
    Effect.option(syscalls.mmap(target.fd, range.offset, range.length, populate)),
    (address) =>
      counted(
        address._tag === "None"
          ? Effect.succeed(undefined)
          : Effect.orElseSucceed(syscalls.mincore(address.value, range.length), () => undefined)
      ),
    (address) => address._tag === "None" ? Effect.void : Effect.ignore(syscalls.munmap(address.value, range.length))
  )
}

const pages = (count: number) => `${count} ${count === 1 ? "page" : "pages"}`

/** What a transfer that did not move everything means; undefined for one that did. */
const incomplete = (
  result: Observation["result"],
  length: number
): Pick<Observation, "path" | "evidence"> | undefined =>
  Either.match(result, {
    onLeft: (error) => ({ path: isRefused(error) ? "refused" : "unknown", evidence: error.message }),
    onRight: (moved) =>
      moved === length ? undefined : { path: "unknown", evidence: `${moved} of ${length} bytes were transferred` }
  })

const judgeWrite = (
  pageCache: PageCache,
  { cached, mapped }: Pick<Observation, "cached" | "mapped">
): Pick<Observation, "path" | "evidence"> => {
  const added = cached === null ? 0 : cached.after - (mapped === null ? 0 : cached.before)
  if (added > 0) return { path: "buffered", evidence: `the write brought ${pages(added)} into the page cache` }
  if (mapped === null || mapped.before === 0) return { path: "unknown", evidence: "no page could be watched" }
  const went = mapped.before - mapped.after
  if (pageCache === "does not tell") {
    const evidence = `${went} of ${pages(mapped.before)} left the page cache, which proves nothing on this filesystem`
    return { path: "unknown", evidence }
  }
  if (mapped.after === 0) {
    return { path: "direct", evidence: `the write took ${pages(mapped.before)} of the range out of the page cache` }
  }
  return went <= 0
    ? { path: "buffered", evidence: `${pages(mapped.after)} stayed in the page cache, through which the write went` }
    : { path: "unknown", evidence: `${went} of ${pages(mapped.before)} left the page cache` }
}

/** Writes `from` at `offset`, which has to lie below the end of the file for its pages to be mapped. */
export const observeWrite = (
  syscalls: Syscalls,
  target: Target,
  offset: number,
  from: Uint8Array,
  watched: Range = { offset, length: from.byteLength }
): Effect.Effect<Observation> =>
  Effect.map(
    observe(syscalls, target, watched, true, syscalls.pwrite(target.fd, from, offset)),
    (seen) => ({ ...seen, ...(incomplete(seen.result, from.byteLength) ?? judgeWrite(target.pageCache, seen)) })
  )

const judgeRead = (
  pageCache: PageCache,
  { cached, mapped }: Pick<Observation, "cached" | "mapped">
): Pick<Observation, "path" | "evidence"> => {
  if (mapped === null && cached === null) return { path: "unknown", evidence: "no page could be watched" }
  const before = Math.max(mapped?.before ?? 0, cached?.before ?? 0)
  const after = Math.max(mapped?.after ?? 0, cached?.after ?? 0)
  if (before > 0) {
    return pageCache === "is the storage"
      ? { path: "buffered", evidence: `the ${pages(before)} of the range are there in memory and nowhere else` }
      : { path: "unknown", evidence: `${pages(before)} of the range cannot be dropped from the page cache` }
  }
  if (after > 0) return { path: "buffered", evidence: `the read brought ${pages(after)} into the page cache` }
  return pageCache === "tells"
    ? { path: "direct", evidence: "the read left no page in the page cache" }
    : { path: "unknown", evidence: "the read left no page in the page cache, which proves nothing on this filesystem" }
}

/**
 * Reads `into` from `offset`, after what the page cache holds of it has been written back and dropped. Nothing has to be written back
 * where `isClean`: behind a direct write.
 */
export const observeRead = (
  syscalls: Syscalls,
  target: Target,
  offset: number,
  into: Uint8Array,
  range: Range = { offset, length: into.byteLength },
  isClean = false
): Effect.Effect<Observation> => {
  const dropped = Effect.ignore(
    Effect.zipRight(
      isClean ? Effect.void : syscalls.fdatasync(target.fd),
      syscalls.fadvise(target.fd, range.offset, range.length, POSIX_FADV_DONTNEED)
    )
  )
  return Effect.map(
    Effect.zipRight(dropped, observe(syscalls, target, range, false, syscalls.pread(target.fd, into, offset))),
    (seen) => ({ ...seen, ...(incomplete(seen.result, into.byteLength) ?? judgeRead(target.pageCache, seen)) })
  )
}
