/**
 * Files that are kept over a restart: the label that says so, and how such a file is found, taken up, given back and kept.
 *
 * The label is the last page of the file, and an extended attribute knows the file without it. A file has a valid label only while nothing changes its content: from the end of a `keep`
 * until it is erased, on the disk, before the storage that took the file up is handed out.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Random from "effect/Random"
import { Buffer } from "node:buffer"
import { createHash } from "node:crypto"
import type { DiskStorageOptions } from "../DiskStorage.js"
import { CreateFailed, FileReplaced, KeepFailed } from "../DiskStorageError.js"
import { errnos, S_IFMT, S_IFREG, SyscallError } from "../Syscalls.js"
import type { Statx, Syscalls } from "../Syscalls.js"
import * as fileLock from "./fileLock.js"
import * as fileName from "./fileName.js"
import { alignmentWithoutAnswer } from "./filesystems.js"
import * as linkedFiles from "./linkedFiles.js"
import type { TemporaryFile } from "./temporaryFile.js"

/** What makes a file one of ours. It stays when the label is erased, so that the file is known for what it is after a power cut. */
const magic = Buffer.from("effect-disk-kept")
const version = 1

/** Bytes of the label, at the end of the file whatever its unit is, so that it is found before that is known. */
export const labelBytes = 4096

// Where the fields of a label are; the rest is zero.
const versionAt = 16
const sizeAt = 24
const lengthAt = 32
const unitAt = 40
const idAt = 48
const idBytes = 16
const digestAt = 64
const digestBytes = 32
const markAt = 96
export const markBytes = 32

export interface Label {
  /** bytes, as asked when the storage was made */
  readonly size: number
  /** bytes of the file, this label included */
  readonly length: number
  /** What the length is a multiple of; the last of it is private, and ends with the label. */
  readonly unit: number
  /** Another one each time that a storage is kept. */
  readonly id: Uint8Array
  /** What the keeper says of the content; zeros where that is nothing. */
  readonly mark: Uint8Array
}

const digestOf = (page: Uint8Array): Buffer => {
  const copy = Buffer.from(page)
  copy.fill(0, digestAt, digestAt + digestBytes)
  return createHash("sha256").update(copy).digest()
}

export const encode = ({ id, length, mark, size, unit }: Label): Uint8Array => {
  const page = Buffer.alloc(labelBytes)
  page.set(magic, 0)
  page.writeUInt32LE(version, versionAt)
  page.writeBigUInt64LE(BigInt(size), sizeAt)
  page.writeBigUInt64LE(BigInt(length), lengthAt)
  page.writeBigUInt64LE(BigInt(unit), unitAt)
  page.set(id, idAt)
  page.set(mark, markAt)
  page.set(digestOf(page), digestAt)
  return page
}

/** Of a file that was kept and may change now, or may have. */
export const erased: Uint8Array = Buffer.concat([magic], labelBytes)

/** A label, or why it is none; undefined for what is not one of ours. */
export const decode = (bytes: Uint8Array): Label | string | undefined => {
  const page = Buffer.from(bytes)
  if (page.byteLength !== labelBytes || !page.subarray(0, magic.byteLength).equals(magic)) return undefined
  if (page.equals(erased)) return "it was taken up and not kept again"
  if (!page.subarray(digestAt, digestAt + digestBytes).equals(digestOf(page))) return "its label is torn"
  const found = page.readUInt32LE(versionAt)
  if (found !== version) return `its label is of version ${found}`
  return {
    size: Number(page.readBigUInt64LE(sizeAt)),
    length: Number(page.readBigUInt64LE(lengthAt)),
    unit: Number(page.readBigUInt64LE(unitAt)),
    id: Uint8Array.from(page.subarray(idAt, idAt + idBytes)),
    mark: Uint8Array.from(page.subarray(markAt, markAt + markBytes))
  }
}

/**
 * The extended attribute of a kept file: it knows the file where its length is another one and the label is gone. Truncation leaves it,
 * and so does a write of another content into the same file; digests of the first bytes of what was kept tell the two apart.
 */
const attributeName = "user.effect-disk-storage.kept"
const attributeVersion = 1
const attributeVersionAt = 0
const attributeLengthAt = 8
const prefixesAt = 16
/** Of each so many bytes from the start there is a digest; a file that is shorter than the least of them, and not empty, is not known. */
const prefixes = [16, 64, 256, 1024, labelBytes]
const prefixBytes = 16
const attributeBytes = prefixesAt + prefixes.length * prefixBytes

const prefixDigest = (head: Uint8Array, length: number): Buffer =>
  createHash("sha256").update(head.subarray(0, length)).digest().subarray(0, prefixBytes)

/** `head`: the first page of the content; `length`: that of the file. */
export const encodeAttribute = (head: Uint8Array, length: number): Uint8Array => {
  const value = Buffer.alloc(attributeBytes)
  value.writeUInt32LE(attributeVersion, attributeVersionAt)
  value.writeBigUInt64LE(BigInt(length), attributeLengthAt)
  prefixes.forEach((bytes, index) => value.set(prefixDigest(head, bytes), prefixesAt + index * prefixBytes))
  return value
}

/** The length that a file with this attribute was kept with, where `head`, its first bytes, are those that were kept. */
export const decodeAttribute = (attribute: Uint8Array, head: Uint8Array): number | undefined => {
  const value = Buffer.from(attribute)
  if (value.byteLength !== attributeBytes || value.readUInt32LE(attributeVersionAt) !== attributeVersion) {
    return undefined
  }
  const index = prefixes.findLastIndex((bytes) => bytes <= head.byteLength)
  const bytes = prefixes[index]
  const at = prefixesAt + index * prefixBytes
  const isPrefix = bytes !== undefined && prefixDigest(head, bytes).equals(value.subarray(at, at + prefixBytes))
  return isPrefix || head.byteLength === 0 ? Number(value.readBigUInt64LE(attributeLengthAt)) : undefined
}

/** The length of a file that can be kept: whole units for `size`, and one for the label. */
export const lengthOf = (size: number, unit: number): number => Math.ceil(size / unit) * unit + unit

/** What a file must be to be taken up. */
export interface Wanted {
  readonly size: number
  readonly directIo: Exclude<DiskStorageOptions["directIo"], undefined>
}

type Found =
  | { readonly _tag: "Nothing" }
  /** Not one of ours, and not to be touched. */
  | { readonly _tag: "Foreign"; readonly what: string }
  /** One of ours: to be taken up, or why not. */
  | { readonly _tag: "Ours"; readonly label: Label | string }

const is = (...codes: ReadonlyArray<keyof typeof errnos>) => {
  const numbers = codes.map((code): number => errnos[code])
  return (error: SyscallError) => numbers.includes(error.errno)
}

/** How `open` says that what is there is not to be read and written by this process. */
const isForbidden = is("EACCES", "EISDIR", "ELOOP", "ENXIO", "EPERM", "EROFS", "ETXTBSY")

/** Of the kinds of file (`S_IFMT`). */
const kinds = new Map<number, string>([
  [0o040_000, "a directory"],
  [0o120_000, "a symbolic link"],
  [0o010_000, "a FIFO"],
  [0o140_000, "a socket"],
  [0o020_000, "a character device"],
  [0o060_000, "a block device"]
])

/** Calls of one transfer that may be short before it is given up. */
const maxShortTransfers = 8

/** Reads until `bytes` are full or the file ends. */
const readFully = (
  syscalls: Syscalls,
  fd: number,
  bytes: Uint8Array,
  offset: number
): Effect.Effect<boolean, SyscallError> => {
  const from = (done: number, calls: number): Effect.Effect<boolean, SyscallError> =>
    done === bytes.byteLength
      ? Effect.succeed(true)
      : calls === maxShortTransfers
      ? Effect.succeed(false)
      : Effect.flatMap(syscalls.pread(fd, bytes.subarray(done), offset + done), (read) => from(done + read, calls + 1))
  return from(0, 0)
}

/** Direct I/O takes a short write up nowhere but at a multiple of its alignment: all of `bytes` is written again. */
const writeFully = (
  syscalls: Syscalls,
  fd: number,
  bytes: Uint8Array,
  offset: number,
  calls = 1
): Effect.Effect<void, SyscallError> =>
  Effect.flatMap(syscalls.pwrite(fd, bytes, offset), (written) =>
    written === bytes.byteLength
      ? Effect.void
      : calls < maxShortTransfers
      ? writeFully(syscalls, fd, bytes, offset, calls + 1)
      : Effect.fail(new SyscallError({ syscall: "pwrite", errno: errnos.EIO, code: "EIO", fd })))

/** What the group and others may do (`uapi/linux/stat.h`). */
const othersMode = 0o077

/** Why a label is not that of a file with these facts, or not of one that is wanted. */
const unfit = (
  { length, size, unit }: Label,
  { links, mode, size: bytes }: Statx,
  wanted: Wanted,
  wantedUnit: number
): string | undefined =>
  links !== 1
    ? "it has another name, too"
    : (mode & othersMode) !== 0
    ? "other users may read or write it"
    : size !== wanted.size
    ? `it holds ${size} bytes, and ${wanted.size} are asked for`
    : bytes !== length || unit < labelBytes || length !== lengthOf(size, unit)
    ? `it is ${bytes} bytes long`
    : unit % wantedUnit !== 0
    ? `its pages are of ${unit} bytes, and have to be of ${wantedUnit} now`
    : undefined

/** Units that a file is kept with, for what is known by its size alone: pages, and what direct I/O wants. */
const units = [4096, 8192, 16_384, 32_768, 65_536]

/** How far from its end a label is looked for in a file that has grown. */
const searchedBytes = 1024 * 1024

const grownOrCut = (bytes: number, length: number) => `it is ${bytes} bytes long, and was kept with ${length}`

/** The length that its attribute says a file was kept with. */
const keptLength = (syscalls: Syscalls, fd: number, bytes: number): Effect.Effect<number | undefined, SyscallError> =>
  Effect.gen(function*() {
    const value = new Uint8Array(attributeBytes)
    const found = yield* Effect.orElseSucceed(syscalls.fgetxattr(fd, attributeName, value), () => 0)
    if (found !== attributeBytes) return undefined
    const head = new Uint8Array(Math.min(bytes, labelBytes))
    return (yield* readFully(syscalls, fd, head, 0)) ? decodeAttribute(value, head) : undefined
  })

/**
 * The label of a file that has grown, which lies where its own length says: one in a copy inside of another file, an archive or the image
 * of a disk, does not. `size`: that of the storage that is wanted.
 */
const labelWithin = (
  syscalls: Syscalls,
  fd: number,
  bytes: number,
  size: number | undefined
): Effect.Effect<Label | undefined, SyscallError> =>
  Effect.gen(function*() {
    const labelIn = (page: Uint8Array, offset: number) => {
      const label = decode(page)
      return typeof label === "object" && label.length === offset + labelBytes ? label : undefined
    }
    const page = new Uint8Array(labelBytes)
    for (const offset of size === undefined ? [] : units.map((unit) => lengthOf(size, unit) - labelBytes)) {
      if (offset + labelBytes > bytes || !(yield* readFully(syscalls, fd, page, offset))) continue
      const label = labelIn(page, offset)
      if (label !== undefined) return label
    }
    const end = Math.floor(bytes / labelBytes) * labelBytes
    const start = Math.max(0, end - searchedBytes)
    const tail = new Uint8Array(end - start)
    if (!(yield* readFully(syscalls, fd, tail, start))) return undefined
    for (let offset = end - labelBytes; offset >= start; offset -= labelBytes) {
      const label = labelIn(tail.subarray(offset - start, offset - start + labelBytes), offset)
      if (label !== undefined) return label
    }
    return undefined
  })

/** The label of a file, or why it has none; undefined for what is not one of ours. */
const labelOf = (
  syscalls: Syscalls,
  fd: number,
  bytes: number,
  size: number | undefined
): Effect.Effect<Label | string | undefined, SyscallError> =>
  Effect.gen(function*() {
    const page = new Uint8Array(labelBytes)
    const whole = bytes >= labelBytes && bytes % labelBytes === 0
    // What cannot be read is not known.
    if (whole && !(yield* readFully(syscalls, fd, page, bytes - labelBytes))) return undefined
    const label = whole ? decode(page) : undefined
    if (label !== undefined) return label
    const kept = yield* keptLength(syscalls, fd, bytes)
    if (kept !== undefined) return kept === bytes ? "its label is damaged" : grownOrCut(bytes, kept)
    const within = yield* labelWithin(syscalls, fd, bytes, size)
    return within === undefined ? undefined : grownOrCut(bytes, within.length)
  })

/** What a descriptor is open on: its last page is read, and where that is no label, what else tells; nothing unless it is a regular file. */
const examine = (
  syscalls: Syscalls,
  fd: number,
  wanted: Wanted | Pick<Wanted, "size">
): Effect.Effect<Found, SyscallError> =>
  Effect.gen(function*() {
    const statx = yield* syscalls.statx(fd)
    const kind = statx.mode & S_IFMT
    if (kind !== S_IFREG) return { _tag: "Foreign" as const, what: kinds.get(kind) ?? "no regular file" }
    // Who made it may have it open still, and would read what is written to it from now on.
    if (statx.uid !== (yield* syscalls.geteuid)) return { _tag: "Foreign" as const, what: "a file of another user" }
    const label = yield* labelOf(syscalls, fd, statx.size, wanted.size)
    if (label === undefined) return { _tag: "Foreign" as const, what: "a file that no storage has kept" }
    if (typeof label === "string" || !("directIo" in wanted)) return { _tag: "Ours" as const, label }
    const { blockSize, type } = yield* syscalls.fstatfs(fd)
    const wantedUnit = wanted.directIo === "disabled"
      ? labelBytes
      : Math.max(labelBytes, statx.directIo?.offsetAlignment || alignmentWithoutAnswer(type, blockSize))
    return { _tag: "Ours" as const, label: unfit(label, statx, wanted, wantedUnit) ?? label }
  })

const withOpen = <A>(
  syscalls: Syscalls,
  path: string,
  flags: number,
  use: (fd: number) => Effect.Effect<A, SyscallError>
): Effect.Effect<A, SyscallError> =>
  Effect.acquireUseRelease(
    syscalls.open(path, flags | syscalls.flags.O_NOFOLLOW | syscalls.flags.O_CLOEXEC),
    use,
    (fd) => Effect.ignore(syscalls.close(fd))
  )

/**
 * What is at `path`. Opening a device can do something and opening a FIFO can wait: its kind is asked for first, through a descriptor
 * that opens nothing.
 */
const look = (
  syscalls: Syscalls,
  path: string,
  wanted: Wanted | Pick<Wanted, "size">
): Effect.Effect<Found, SyscallError> => {
  const { O_NONBLOCK, O_PATH, O_RDWR } = syscalls.flags
  const mode = withOpen(syscalls, path, O_PATH, (fd) => Effect.map(syscalls.statx(fd), ({ mode }) => mode & S_IFMT))
  const found = Effect.flatMap(mode, (kind): Effect.Effect<Found, SyscallError> =>
    kind === S_IFREG
      ? withOpen(syscalls, path, O_NONBLOCK, (fd) => examine(syscalls, fd, wanted)).pipe(
        // To open a foreign file for writing can make a copy of it: that of a lower layer of an overlay.
        Effect.tap((found) =>
          found._tag === "Ours" ? withOpen(syscalls, path, O_RDWR | O_NONBLOCK, () => Effect.void) : Effect.void
        )
      )
      : Effect.succeed({ _tag: "Foreign", what: kinds.get(kind) ?? "no regular file" }))
  return Effect.catchAll(
    found,
    (error): Effect.Effect<Found, SyscallError> =>
      error.syscall === "open" && error.errno === errnos.ENOENT
        ? Effect.succeed({ _tag: "Nothing" })
        : error.syscall === "pread" || (error.syscall === "open" && isForbidden(error))
        ? Effect.succeed({ _tag: "Foreign", what: error.message })
        : Effect.fail(error)
  )
}

/** Bytes that a kept file at `path` holds; undefined for anything else. It is read, and nothing else: no more than its ends. */
export const sizeOf = (syscalls: Syscalls, path: string): Effect.Effect<number | undefined> => {
  const { O_NONBLOCK, O_PATH } = syscalls.flags
  return withOpen(syscalls, path, O_PATH, syscalls.statx).pipe(
    Effect.flatMap(({ allocated, mode }) =>
      (mode & S_IFMT) === S_IFREG && allocated > 0
        ? withOpen(syscalls, path, O_NONBLOCK, (fd) =>
          Effect.gen(function*() {
            const { size } = yield* syscalls.statx(fd)
            const page = new Uint8Array(labelBytes)
            const full = size >= labelBytes && (yield* readFully(syscalls, fd, page, size - labelBytes))
            const isKept = (full && decode(page) !== undefined) || (yield* keptLength(syscalls, fd, size)) !== undefined
            return isKept ? allocated : undefined
          }))
        : Effect.succeed(undefined)
    ),
    Effect.orElseSucceed(() => undefined)
  )
}

/** Unless something is there, a file that was taken up and not used gets its name back. */
const giveBack = (syscalls: Syscalls, file: TemporaryFile, path: string): Effect.Effect<boolean> => {
  // By name: a process that is out of descriptors loses no content.
  return fileName.statName(syscalls, file, path).pipe(
    Effect.as(false),
    Effect.catchIf(is("ENOENT"), () => Effect.as(fileName.within(syscalls, file).rename(file.path, path), true)),
    Effect.orElseSucceed(() => false),
    Effect.tap((given) => {
      file.takenFrom = undefined
      if (given) file.linked = false
    })
  )
}

/** For a release: whether there is nothing to unlink any more. */
export const givenBack = (syscalls: Syscalls, file: TemporaryFile): Effect.Effect<boolean> =>
  file.takenFrom === undefined ? Effect.succeed(false) : giveBack(syscalls, file, file.takenFrom)

/** Another one may have been put there between the opening of this one and its lock. With the lock, and there, it stays there. */
const isStillAt = (syscalls: Syscalls, path: string, locked: Statx): Effect.Effect<boolean> =>
  fileLock.look(syscalls, path).pipe(
    Effect.map((statx) => statx !== undefined && fileLock.isSameFile(statx, locked)),
    Effect.orElseSucceed(() => false)
  )

const notTakenUp = (file: TemporaryFile, path: string, why: string) =>
  Effect.annotateLogs(
    Effect.logWarning(`${path} is not taken up, and this storage is new: ${why}`),
    { path: file.path }
  )

/**
 * Takes the file at `path`, which has been looked at, in place of the empty one. It is locked first, since it gets a name that is swept;
 * the rename then does it at once for this process alone: who comes later finds nothing. Its label is what counts, and not that which was
 * seen before.
 */
const claim = (
  syscalls: Syscalls,
  file: TemporaryFile,
  path: string,
  wanted: Wanted
): Effect.Effect<Label | undefined, CreateFailed | FileReplaced> =>
  Effect.uninterruptible(Effect.gen(function*() {
    file.takingUp = true
    const failed = (cause: SyscallError) => new CreateFailed({ step: "take up", path, cause })
    const beside = fileName.within(syscalls, file)
    const isNow = (identity: Statx | undefined) => {
      file.identity = identity
      linkedFiles.identify(fileName.nameOf(file), identity)
    }
    // Where the empty one needed none, this one does not.
    const lock = file.lock === undefined ? undefined : yield* Effect.either(fileLock.lock(beside, path))
    if (lock !== undefined && (Either.isLeft(lock) || lock.right._tag === "Held")) {
      const why = Either.isLeft(lock) ? lock.left.message : "another process has it locked, to take it up or to keep it"
      yield* notTakenUp(file, path, why)
      return undefined
    }
    if (lock?.right._tag === "Gone") return undefined
    const held = lock?.right._tag === "Locked" ? lock.right : undefined
    const release = held === undefined ? Effect.void : Effect.ignore(syscalls.close(held.fd))
    if (held !== undefined && !(yield* isStillAt(beside, path, held.statx))) {
      yield* release
      yield* notTakenUp(file, path, "another process has replaced it just now")
      return undefined
    }
    const renamed = yield* beside.rename(path, file.path).pipe(
      Effect.as(true),
      Effect.catchIf(is("ENOENT"), () => Effect.succeed(false)),
      // A mount point, say: both are as they were.
      Effect.catchAll((cause) => Effect.as(notTakenUp(file, path, cause.message), false))
    )
    if (!renamed) {
      yield* release
      return undefined
    }
    file.takenFrom = path
    isNow(held?.statx)
    const empty = file.lock
    file.lock = held?.fd
    if (empty !== undefined) yield* Effect.mapError(syscalls.close(empty), failed)
    const { O_CLOEXEC, O_NOFOLLOW, O_RDWR } = syscalls.flags
    const fd = yield* Effect.mapError(beside.open(file.path, O_RDWR | O_NOFOLLOW | O_CLOEXEC), failed)
    file.fds.push(fd)
    const statx = yield* Effect.mapError(syscalls.statx(fd), failed)
    const found = yield* Effect.mapError(examine(syscalls, fd, wanted), failed)
    const isLocked = held === undefined || fileLock.isSameFile(held.statx, statx)
    if (found._tag !== "Ours" || typeof found.label === "string" || !isLocked) {
      // Put there since it was looked at. Should it not go back, it stays where it is now: it is not ours to remove.
      yield* giveBack(syscalls, file, path)
      file.linked = false
      linkedFiles.forget(fileName.nameOf(file))
      return yield* new FileReplaced({ path })
    }
    isNow(statx)
    for (const replaced of file.fds.splice(0, file.fds.length - 1)) {
      yield* Effect.mapError(syscalls.close(replaced), failed)
    }
    return found.label
  })).pipe(Effect.ensuring(Effect.sync(() => {
    file.takingUp = false
  })))

/** What does not fit is removed under its lock, and only while it is there and does not fit. */
const removeMisfit = (
  syscalls: Syscalls,
  file: TemporaryFile,
  path: string,
  wanted: Wanted
): Effect.Effect<void, SyscallError> => {
  const beside = fileName.within(syscalls, file)
  // Where the storage has no lock, others have none.
  if (file.lock === undefined) return beside.unlink(path)
  return Effect.acquireUseRelease(
    fileLock.lock(beside, path),
    (locked) =>
      Effect.gen(function*() {
        if (locked._tag !== "Locked" || !(yield* isStillAt(beside, path, locked.statx))) return
        // Another process may have kept its storage there since. With the lock nobody replaces the file.
        const found = yield* look(beside, path, wanted)
        if (found._tag !== "Nothing" && found._tag !== "Foreign" && typeof found.label === "string") {
          yield* beside.unlink(path)
        }
      }),
    (locked) => locked._tag === "Locked" ? Effect.ignore(syscalls.close(locked.fd)) : Effect.void
  )
}

/**
 * The label of the file at `path`, taken up in place of the empty one; undefined when there is none to take up, with a warning that
 * says why where there is something.
 */
export const takeUp = (
  syscalls: Syscalls,
  file: TemporaryFile,
  path: string,
  wanted: Wanted
): Effect.Effect<Label | undefined, CreateFailed | FileReplaced> =>
  Effect.gen(function*() {
    const found = yield* Effect.catchAll(
      look(fileName.within(syscalls, file), path, wanted),
      (error) => Effect.as(notTakenUp(file, path, error.message), { _tag: "Nothing" as const })
    )
    if (found._tag === "Nothing") return undefined
    if (found._tag === "Foreign") {
      yield* notTakenUp(file, path, `it is ${found.what}, is not touched, and cannot be replaced by keep`)
      return undefined
    }
    if (typeof found.label !== "string") return yield* claim(syscalls, file, path, wanted)
    yield* Effect.logWarning(`what was kept at ${path} is not used, and makes way: ${found.label}`).pipe(
      Effect.annotateLogs({ path: file.path })
    )
    // The disk may not hold both. One that cannot be removed is replaced when this storage is kept.
    yield* Effect.ignore(removeMisfit(syscalls, file, path, wanted))
    return undefined
  })

/** Where a storage is kept: `offset` is that of the unit which ends with the label, `unit` memory for it. */
export interface Place {
  readonly path: string
  /** Of the label of the file that was taken up. */
  readonly mark: Uint8Array | undefined
  readonly offset: number
  readonly unit: Uint8Array
}

const writeLabel = (
  syscalls: Syscalls,
  fd: number,
  { offset, unit }: Place,
  page: Uint8Array
): Effect.Effect<void, SyscallError> =>
  Effect.suspend(() => {
    unit.fill(0)
    unit.set(page, unit.byteLength - labelBytes)
    return Effect.zipRight(writeFully(syscalls, fd, unit, offset), syscalls.fdatasync(fd))
  })

/** From now on, and on the disk, the file that was taken up is one that nobody takes up. */
export const erase = (
  syscalls: Syscalls,
  file: TemporaryFile,
  fd: number,
  place: Place
): Effect.Effect<void, CreateFailed> =>
  // Until it begins, the file can be given back as it is.
  Effect.uninterruptible(Effect.suspend(() => {
    file.takenFrom = undefined
    return Effect.mapError(
      writeLabel(syscalls, fd, place, erased),
      (cause) => new CreateFailed({ step: "take up", path: place.path, cause })
    )
  }))

/**
 * Fails when what is at the path is not one of ours, when the path does not lead to the directory of the file any more, and when the file
 * has another name, with which nobody would take it up. `size`: that of the storage which is to be there.
 */
export const checkFree = (
  syscalls: Syscalls,
  file: TemporaryFile,
  path: string,
  size: number
): Effect.Effect<void, KeepFailed> =>
  Effect.gen(function*() {
    const failed = (reason: KeepFailed["reason"], found?: string) =>
      new KeepFailed({ path: file.path, keepAt: path, reason, found })
    const looked = Effect.mapError((cause: SyscallError) =>
      new KeepFailed({ path: file.path, keepAt: path, reason: "look", cause })
    )
    if (!(yield* looked(fileName.isWhereItWas(syscalls, file)))) return yield* failed("moved")
    const { links } = yield* looked(syscalls.statx(fileName.descriptorOf(file)))
    if (links > 1) return yield* failed("linked elsewhere")
    const found = yield* looked(look(fileName.within(syscalls, file), path, { size }))
    if (found._tag === "Foreign") return yield* failed("in the way", found.what)
  })

/** The new name is on the disk after this. Where that fails, a power cut can bring back what was there before, or nothing. */
const syncDirectory = (syscalls: Syscalls, file: TemporaryFile, path: string): Effect.Effect<void> => {
  const { O_CLOEXEC, O_DIRECTORY } = syscalls.flags
  return Effect.acquireUseRelease(
    syscalls.open(fileName.directoryOf(file), O_DIRECTORY | O_CLOEXEC),
    syscalls.fdatasync,
    (fd) => Effect.ignore(syscalls.close(fd))
  ).pipe(
    Effect.catchAll((error) =>
      Effect.logWarning("a storage was kept, and its name may not survive a power cut", error).pipe(
        Effect.annotateLogs({ path })
      )
    )
  )
}

/** Without it the file is kept all the same, and is not known as ours once it is cut. */
const setAttribute = (syscalls: Syscalls, fd: number, { offset, path, unit }: Place): Effect.Effect<void> =>
  readFully(syscalls, fd, unit, 0).pipe(
    Effect.flatMap((full) =>
      full
        ? syscalls.fsetxattr(fd, attributeName, encodeAttribute(unit, offset + unit.byteLength))
        : Effect.void
    ),
    Effect.catchAll((error) =>
      Effect.annotateLogs(Effect.logDebug("a storage is kept without an extended attribute", error), { path })
    )
  )

/** Syncs, labels, syncs and renames a file whose content changes no more. When a step fails the label is erased again. */
export const keep = (
  syscalls: Syscalls,
  file: TemporaryFile,
  fd: number,
  place: Place,
  size: number,
  mark: Uint8Array
): Effect.Effect<void, KeepFailed> => {
  const { offset, path, unit } = place
  const beside = fileName.within(syscalls, file)
  const failed = (reason: KeepFailed["reason"]) => (cause: SyscallError) =>
    new KeepFailed({ path: file.path, keepAt: path, reason, cause })
  const labelled = Effect.gen(function*() {
    // It may have come while the content was synced.
    yield* checkFree(syscalls, file, path, size)
    yield* setAttribute(syscalls, fd, place)
    const id = Uint8Array.from(yield* Effect.replicateEffect(Random.nextIntBetween(0, 256), idBytes))
    const label = encode({ size, length: offset + unit.byteLength, unit: unit.byteLength, id, mark })
    // Who takes up what is there now must not find this in its place.
    const replaced = file.lock === undefined
      ? undefined
      : yield* Effect.mapError(fileLock.lock(beside, path), failed("look"))
    const release = replaced?._tag === "Locked" ? Effect.ignore(syscalls.close(replaced.fd)) : Effect.void
    const found = replaced?._tag === "Held"
      ? "another process has it locked"
      : replaced?._tag === "Locked" && !(yield* isStillAt(beside, path, replaced.statx))
      ? "another process has replaced it just now"
      : undefined
    if (found !== undefined) {
      yield* release
      return yield* new KeepFailed({ path: file.path, keepAt: path, reason: "in the way", found })
    }
    yield* Effect.mapError(writeLabel(syscalls, fd, place, label), failed("label")).pipe(
      Effect.zipRight(Effect.mapError(beside.rename(file.path, path), failed("rename"))),
      Effect.onError(() => Effect.ignore(writeLabel(syscalls, fd, place, erased))),
      Effect.ensuring(release)
    )
    file.linked = false
    file.kept = true
    // Under that name it is not swept, and the next storage may take it up at once.
    const { lock } = file
    file.lock = undefined
    if (lock !== undefined) yield* Effect.ignore(syscalls.close(lock))
    yield* syncDirectory(syscalls, file, path)
  })
  return Effect.mapError(syscalls.fdatasync(fd), failed("sync")).pipe(
    Effect.zipRight(Effect.uninterruptible(labelled)),
    Effect.zipRight(Effect.logDebug("disk storage kept").pipe(Effect.annotateLogs({ path: file.path, keptAt: path })))
  )
}
