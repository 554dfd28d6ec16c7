/** The map of a file, from FIEMAP. */
import * as Effect from "effect/Effect"
import type { DiskStorage, Extent, ExtentKind } from "../DiskStorage.js"
import type { InvalidOption, StorageClosed } from "../DiskStorageError.js"
import { ExtentsUnavailable } from "../DiskStorageError.js"
import type { SyscallError } from "../Syscalls.js"
import { errnos, Syscalls } from "../Syscalls.js"
import { invalid, isObject } from "./arguments.js"

// uapi/linux/fiemap.h
const LAST = 0x1
const UNKNOWN = 0x2
const DELALLOC = 0x4
const ENCODED = 0x8
const DATA_ENCRYPTED = 0x80
const DATA_INLINE = 0x200
const UNWRITTEN = 0x800
const SHARED = 0x2000

/** Most telling first: an extent has several flags, and a delayed one is always of unknown place, too. */
const kinds: ReadonlyArray<readonly [number, ExtentKind]> = [
  [DATA_INLINE, "inline"],
  [DELALLOC, "delayed"],
  [ENCODED | DATA_ENCRYPTED, "encoded"],
  [SHARED, "shared"],
  [UNWRITTEN, "unwritten"],
  [UNKNOWN, "unknown"]
]

const kindOf = (flags: number): ExtentKind => kinds.find(([bits]) => (flags & bits) !== 0)?.[1] ?? "written"

/** The extents from `offset` to `end`, holes between them included; neighbours of one kind and the same flags are one. */
export const mapOf = (
  syscalls: Syscalls,
  fd: number,
  offset: number,
  end: number
): Effect.Effect<ReadonlyArray<Extent>, SyscallError> =>
  Effect.gen(function*() {
    const map: Array<Extent> = []
    const cursor = { at: offset }
    const append = (until: number, kind: ExtentKind, flags: number) => {
      const previous = map.at(-1)
      const length = Math.min(until, end) - cursor.at
      if (length <= 0) return
      if (previous !== undefined && previous.kind === kind && previous.flags === flags) {
        map[map.length - 1] = { ...previous, length: previous.length + length }
      } else map.push({ offset: cursor.at, length, kind, flags })
      cursor.at += length
    }
    while (cursor.at < end) {
      const begun = cursor.at
      const found = yield* syscalls.fiemap(fd, begun, end - begun)
      for (const { flags, length, logical } of found) {
        append(logical, "hole", 0)
        append(logical + length, kindOf(flags), flags & ~LAST)
      }
      const last = found.at(-1)
      // The kernel gives what lies above the last answer; should it not, this ends.
      if (last === undefined || (last.flags & LAST) !== 0 || cursor.at === begun) append(end, "hole", 0)
    }
    return map
  })

/** Which kinds of extent a range is made of, each once; `null` where the filesystem has no map. */
export const kindsIn = (
  syscalls: Syscalls,
  fd: number,
  offset: number,
  length: number
): Effect.Effect<ReadonlyArray<ExtentKind> | null, SyscallError> =>
  mapOf(syscalls, fd, offset, offset + length).pipe(
    Effect.map((map) => [...new Set(map.map(({ kind }) => kind))]),
    Effect.catchIf(({ errno }) => errno === errnos.EOPNOTSUPP || errno === errnos.ENOTTY, () => Effect.succeed(null))
  )

const ofPath = (path: string): Effect.Effect<ReadonlyArray<Extent>, ExtentsUnavailable, Syscalls> =>
  Effect.gen(function*() {
    const syscalls = yield* Syscalls
    // Without waiting for somebody at the other end of a FIFO.
    const { O_CLOEXEC, O_NONBLOCK } = syscalls.flags
    return yield* Effect.acquireUseRelease(
      syscalls.open(path, O_NONBLOCK | O_CLOEXEC),
      // What is no file, or no file with extents, says so when it is asked; an empty one would not be.
      (fd) =>
        syscalls.fiemap(fd, 0, 1).pipe(
          Effect.zipRight(syscalls.statx(fd)),
          Effect.flatMap(({ size }) => mapOf(syscalls, fd, 0, size))
        ),
      (fd) => Effect.ignore(syscalls.close(fd))
    )
  }).pipe(Effect.mapError((cause) => new ExtentsUnavailable({ path, cause })))

export function extents(
  storage: DiskStorage
): Effect.Effect<ReadonlyArray<Extent>, StorageClosed | ExtentsUnavailable | InvalidOption>
export function extents(
  path: string
): Effect.Effect<ReadonlyArray<Extent>, ExtentsUnavailable | InvalidOption, Syscalls>
export function extents(
  file: DiskStorage | string
): Effect.Effect<ReadonlyArray<Extent>, StorageClosed | ExtentsUnavailable | InvalidOption, Syscalls> {
  if (typeof file === "string") return ofPath(file)
  return isObject(file) && Effect.isEffect(file.extents)
    ? file.extents
    : Effect.fail(invalid("file", file, "a path or a DiskStorage"))
}
