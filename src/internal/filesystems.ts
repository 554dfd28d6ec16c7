/** What is known of filesystems by their magic number (`uapi/linux/magic.h`; the vendors' for zfs, lustre, gpfs and bcachefs). */
import * as AlignedBuffer from "../AlignedBuffer.js"
import type { Allocation } from "../DiskStorage.js"
import type { Statx } from "../Syscalls.js"
import { STATX_ATTR_DAX } from "../Syscalls.js"

export const BTRFS = 0x9123_683e
export const OVERLAY = 0x794c_7630
const TMPFS = 0x0102_1994
const RAMFS = 0x8584_58f6

const names = new Map<number, string>([
  [0xef53, "ext2/ext3/ext4"],
  [0x5846_5342, "xfs"],
  [BTRFS, "btrfs"],
  [TMPFS, "tmpfs"],
  [OVERLAY, "overlay"],
  [RAMFS, "ramfs"],
  [0x6969, "nfs"],
  [0x6573_5546, "fuse"],
  [0x2fc1_2fc1, "zfs"],
  [0x0bd0_0bd0, "lustre"],
  [0x4750_4653, "gpfs"],
  [0xf2f5_2010, "f2fs"],
  [0xca45_1a4e, "bcachefs"],
  [0x7371_7368, "squashfs"],
  [0xe0f5_e1e2, "erofs"],
  [0x00c3_6400, "ceph"],
  [0xfe53_4d42, "smb3"],
  [0xff53_4d42, "cifs"],
  [0x0102_1997, "9p"],
  [0xf15f, "ecryptfs"],
  [0x2011_bab0, "exfat"],
  [0x4d44, "vfat"]
])

const lockedByTheKernel = new Set([0xef53, 0x5846_5342, BTRFS, TMPFS, OVERLAY])

/**
 * Whether the kernel alone decides about locks there: ext2, ext3, ext4, xfs, btrfs, tmpfs, and overlay, for who sees the files through
 * the same mount. Elsewhere a server or a daemon may know of other hosts' locks, or of none.
 */
export const locksAreTrusted = (type: number): boolean => lockedByTheKernel.has(type)

/** NFS waits for its server; the byte-range locks of SMB (cifs, smb3, smb) are mandatory, and refuse the storage's own writes. */
const lockedByServers = new Set([0x6969, 0xff53_4d42, 0xfe53_4d42, 0x517b])

/** Whether a lock there costs nothing and hinders nobody, although it may not tell of owners on other hosts. */
export const locksAreHarmless = (type: number): boolean => !lockedByServers.has(type)

/**
 * Whether the pages of its files are memory that the kernel charges to the process and cannot take back without swap: tmpfs (devtmpfs
 * has the same number) and ramfs. Pages of hugetlbfs come from a pool of their own, and a DAX device is no part of the memory.
 */
export const isMemoryBacked = (type: number): boolean => type === TMPFS || type === RAMFS

export const filesystemName = (type: number): string => names.get(type) ?? `0x${type.toString(16)}`

const linksCountedByTheKernel = new Set<string>([
  "ext2/ext3/ext4",
  "xfs",
  "btrfs",
  "tmpfs",
  "ramfs",
  "overlay",
  "f2fs",
  "bcachefs",
  "vfat",
  "exfat"
])

/**
 * Whether the kernel itself counts the links that a descriptor answers with. Elsewhere a server or a daemon does: NFS and FUSE, for
 * example, remove the name of an open file by renaming it.
 */
export const linksAreTrusted = (type: number): boolean => linksCountedByTheKernel.has(filesystemName(type))

/** These rewrite an allocated block in place, unless another file shares it. */
const rewritesInPlace = new Set<string>(["ext2/ext3/ext4", "xfs", "tmpfs"])

/**
 * Of blocks that no other file shares. A NOCOW file of btrfs is rewritten in place with every profile of data. An XFS that always
 * copies on write refuses to preallocate, and its statx asks for larger writes than reads where it copies the blocks of a file.
 */
export const overwritesMayRunOutOfSpace = (
  type: number,
  nocow: boolean,
  method: Allocation["method"],
  directIo: Statx["directIo"]
): boolean => {
  if (type === BTRFS) return !nocow
  const name = filesystemName(type)
  if (name === "xfs" && method === "zero-fill") return true
  const { offsetAlignment = 0, readOffsetAlignment = offsetAlignment } = directIo ?? {}
  return !rewritesInPlace.has(name) || readOffsetAlignment < offsetAlignment
}

/** A page satisfies every filesystem that takes the flag and does not say what it wants; btrfs wants its own block. */
export const alignmentWithoutAnswer = (type: number, blockSize: number): number =>
  type === BTRFS ? Math.max(AlignedBuffer.pageSize, blockSize) : AlignedBuffer.pageSize

/**
 * What pages in the page cache say of I/O on a filesystem: where it went, nothing since they are all there is, or nothing since the
 * filesystem has caches of its own, keeps mapped pages, or gives up on direct I/O because of them (OpenZFS does all three).
 */
export type PageCache = "tells" | "is the storage" | "does not tell"

const inMemory = new Set<string>(["tmpfs", "ramfs"])

const pagesTell = new Set<string>(["ext2/ext3/ext4", "xfs", "btrfs", "f2fs", "nfs", "lustre"])

/**
 * An overlay's pages are those of a filesystem that is not named; of those that answer statx for direct I/O OpenZFS alone has
 * another cache, and is no part of the kernel. Files on DAX have no pages but the memory that they are.
 */
export const pageCacheOf = (
  type: number,
  { attributes, directIo }: Pick<Statx, "attributes" | "directIo">
): PageCache => {
  const name = filesystemName(type)
  if ((attributes & STATX_ATTR_DAX) !== 0) return "does not tell"
  if (inMemory.has(name)) return "is the storage"
  return pagesTell.has(name) || (name === "overlay" && directIo !== undefined) ? "tells" : "does not tell"
}

/** Why every block of such a file goes to a new place when it is overwritten; undefined where that is not known. */
export const copiesOnWrite = (type: number, nocow: boolean): string | undefined =>
  type === BTRFS && !nocow
    ? "copy-on-write stays on for this file (NOCOW was refused)"
    : filesystemName(type) === "zfs"
    ? "zfs copies on write"
    : undefined

/**
 * Filesystems on which an alignment from statx means direct I/O, as test/filesystems/verdicts.test.ts shows. OpenZFS answers with one
 * and may use its ARC; an overlay passes the answer of any filesystem on.
 */
const keepTheirWord = new Set<string>(["ext2/ext3/ext4", "xfs"])

export const statxHolds = (type: number): boolean => keepTheirWord.has(filesystemName(type))

/** The usual cause of buffered I/O on a descriptor with O_DIRECT: an explanation for people, never a reason for a verdict. */
export const usualCause = (type: number, nocow: boolean): string | undefined =>
  inMemory.has(filesystemName(type))
    ? `${filesystemName(type)} keeps everything in memory`
    : type !== BTRFS
    ? undefined
    : nocow
    ? "btrfs buffers writes where data has a profile with copies or parity (dup, raid1, raid10, raid5, ...)"
    : "btrfs buffers writes of files with data checksums (the file is not NOCOW)"
