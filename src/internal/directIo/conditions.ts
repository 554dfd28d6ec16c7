/**
 * The conditions of sections 2.3 to 2.3.4 of the GPUDirect Storage O_DIRECT guide, one row each, decided from what was found. Where
 * nothing tells, a row is `unknown`.
 */
import type { Condition } from "../../DirectIo.js"
import type { Decision, Facts } from "./decisions.js"
import {
  byDevice,
  byProbe,
  byServers,
  checksums,
  compression,
  copyOnWrite,
  dataJournaling,
  describe,
  encryption,
  findOption,
  first,
  firstWrites,
  flagIgnored,
  inlineOf,
  inMemory,
  isDm,
  isKnown,
  isType,
  mappedInline,
  no,
  notProbed,
  optionsKnown,
  pageCache,
  parity,
  preallocate,
  readsAndWrites,
  small,
  tiered,
  tried,
  typeOf,
  unknown,
  writes,
  yes,
  zeroFill,
  zfsArc
} from "./decisions.js"

interface Row extends Pick<Condition, "id" | "section" | "title" | "bearsOn"> {
  /** How it is decided, for people. */
  readonly decidedBy: string
  readonly decide: (facts: Facts) => Decision
}

/** Every row, in the guide's order. */
export const rows: ReadonlyArray<Row> = [
  {
    id: "user-buffered",
    section: "2.3",
    title: "Buffering in user space",
    bearsOn: [],
    decidedBy: "What this library does: some of its operations copy.",
    decide: () =>
      yes(
        ["read", "write"],
        "readBytes, writeBytes, stream and sink copy through buffers of the storage, and writeBytes of a partial page reads it first; " +
          "read, write, readBatch and writeBatch do not copy",
        "read and write whole blocks with AlignedBuffer"
      )
  },
  {
    id: "metadata-with-data",
    section: "2.3",
    title: "Metadata that goes with the data",
    bearsOn: ["io", "gpu"],
    decidedBy:
      "dm-integrity and protection information (sysfs `integrity/format`) of the devices below; checksums of the filesystem have a row of their own.",
    decide: (facts) =>
      byDevice(
        facts,
        (device) => device.integrity !== null || isDm("integrity")(device),
        "tags are written with the data by",
        null
      )
  },
  {
    id: "storage-tiers",
    section: "2.3",
    title: "Storage tiers",
    bearsOn: ["io", "gpu"],
    decidedBy:
      "dm-cache, dm-writecache and bcache among the devices below; unknown for filesystems with tiers of their own.",
    decide: (facts) => {
      const look = tiered[typeOf(facts)]
      return look === undefined
        ? byDevice(
          facts,
          (device) => isDm("cache", "writecache")(device) || (device.kind === "bcache" && device.detail !== "none"),
          "data moves between tiers in",
          "a directory on the fast disk itself; or take the cache off: lvconvert --uncache, bcache detach"
        )
        : unknown(readsAndWrites, `${typeOf(facts)} may keep data in several tiers`, look)
    }
  },
  {
    id: "read-ahead",
    section: "2.3",
    title: "Read-ahead",
    bearsOn: ["io"],
    decidedBy: "Pages in the page cache after a direct read: the kernel reads ahead into it and nowhere else.",
    decide: (facts) => {
      const ahead = facts.devices.find(({ readAhead }) => readAhead !== null)?.readAhead
      const set = ahead === undefined ? "" : `; the device's read_ahead_kb is ${(ahead ?? 0) / 1024}`
      const decision = byProbe(
        facts,
        "read",
        ["read"],
        () => "blockdev --setra 0 DEVICE, or I/O that is direct",
        () => unknown(["read"], notProbed(facts))
      )
      return { ...decision, evidence: `${decision.evidence}${set}` }
    }
  },
  {
    id: "middleware-transforms",
    section: "2.3",
    title: "Middleware that examines or transforms data",
    bearsOn: [],
    decidedBy: "What this library does: nothing to the bytes.",
    decide: () =>
      no("this library neither computes checksums nor transforms; its copies are the row of buffering in user space")
  },
  {
    id: "page-cache",
    section: "2.3.1",
    title: "The page cache",
    bearsOn: ["io", "gpu"],
    decidedBy:
      "An overwrite and a read with O_DIRECT: pages of the range in the page cache before and after, by cachestat and by mincore of a mapping.",
    decide: pageCache
  },
  {
    id: "flag-ignored",
    section: "2.3.1",
    title: "O_DIRECT that is taken and ignored",
    bearsOn: ["io", "gpu"],
    decidedBy: "O_DIRECT given to fcntl and to open and read back with F_GETFL, and the overwrite of the probe.",
    decide: flagIgnored
  },
  {
    id: "fscache",
    section: "2.3.1",
    title: "fscache",
    bearsOn: ["io", "gpu"],
    decidedBy: "The mount option fsc; with it, whether a read with O_DIRECT left pages, which is what fscache keeps.",
    decide: (facts) => {
      const option = findOption(facts, /^(?:fsc(?:=.*)?|cache=fscache)$/)
      if (option === undefined) {
        return optionsKnown(facts) && isType(facts, "afs", "ceph") !== undefined && typeOf(facts) !== "afs"
          ? no("not mounted with fsc")
          : unknown(["read"], `whether ${typeOf(facts)} uses fscache here is not told`, "ls /proc/fs/fscache")
      }
      const decision = pageCache(facts)
      return { ...decision, evidence: `mounted with ${option}; ${decision.evidence}`, remedy: "mount without fsc" }
    }
  },
  {
    id: "zfs-arc",
    section: "2.3.1",
    title: "ZFS's adaptive replacement cache",
    bearsOn: ["io", "gpu"],
    decidedBy:
      "The version of the module, zfs_dio_enabled, and the pool's counts of writes past and through the ARC (kstat iostats) around the probe.",
    decide: zfsArc
  },
  {
    id: "page-pool",
    section: "2.3.1",
    title: "Storage Scale's page pool",
    bearsOn: ["io", "gpu"],
    decidedBy: "The filesystem's type; what its daemon does with O_DIRECT is not visible.",
    decide: (facts) =>
      isType(facts, "gpfs") === false
        ? no(`the filesystem is ${typeOf(facts)}`)
        : unknown(
          readsAndWrites,
          "small and unaligned direct I/O may go through the page pool",
          "mmlsconfig | grep -i -e dio -e pagepool"
        )
  },
  {
    id: "loop-page-cache",
    section: "2.3.1",
    title: "The page cache below a loop device",
    bearsOn: ["io", "gpu"],
    decidedBy: "sysfs `loop/dio` of every loop device below.",
    decide: (facts) =>
      byDevice(
        facts,
        ({ loopDirectIo }) => loopDirectIo === false,
        "the file below is read and written through the page cache by",
        "losetup --direct-io=on DEVICE",
        ({ kind, loopDirectIo }) => kind === "loop" && loopDirectIo === null
      )
  },
  {
    id: "inline-ext4",
    section: "2.3.2",
    title: "ext4 inline_data",
    bearsOn: ["io"],
    decidedBy: "FIEMAP of a file of 64 bytes.",
    decide: inlineOf("ext4", "mkfs.ext4 -O ^inline_data")
  },
  {
    id: "inline-btrfs",
    section: "2.3.2",
    title: "btrfs max_inline",
    bearsOn: ["io"],
    decidedBy: "FIEMAP of a file of 64 bytes.",
    decide: inlineOf("btrfs", "mount with max_inline=0")
  },
  {
    id: "inline-f2fs",
    section: "2.3.2",
    title: "f2fs inline_data",
    bearsOn: ["io"],
    decidedBy: "The mount options inline_data and noinline_data, else FIEMAP of a file of 64 bytes.",
    decide: (facts) =>
      typeOf(facts) === "f2fs" && findOption(facts, /^noinline_data$/) !== undefined
        ? no("mounted with noinline_data")
        : inlineOf("f2fs", "mount with noinline_data")(facts)
  },
  {
    id: "inline-lustre",
    section: "2.3.2",
    title: "Lustre data-on-metadata",
    bearsOn: ["io", "gpu"],
    decidedBy: "The filesystem's type; the layout of a directory is not visible without lfs.",
    decide: (facts) =>
      isType(facts, "lustre") === false
        ? no(`the filesystem is ${typeOf(facts)}`)
        : unknown(
          readsAndWrites,
          "the first bytes of a file may live on the metadata server",
          "lfs getstripe -d DIR (look for mdt); lfs setstripe -c 1 DIR"
        )
  },
  {
    id: "inline-extent",
    section: "2.3.2",
    title: "Inline extents",
    bearsOn: ["io"],
    decidedBy: "A direct write over a file of 64 bytes, and FIEMAP_EXTENT_DATA_INLINE before and after it.",
    decide: (facts) => {
      const seen = mappedInline(facts)
      const evidence = tried(facts, "inline").map(describe).join("; ")
      if (evidence === "") return unknown(readsAndWrites, notProbed(facts))
      if (seen === undefined) {
        return inMemory(facts)
          ? no(`no extents; ${evidence}`)
          : unknown(readsAndWrites, `no map of extents; ${evidence}`)
      }
      return seen ? yes(readsAndWrites, `inline; ${evidence}`, small) : no(`a block of its own; ${evidence}`)
    }
  },
  {
    id: "extending",
    section: "2.3.3",
    title: "Extending writes",
    bearsOn: ["io", "gpu"],
    decidedBy: "A direct write across the end of the probe's file.",
    decide: (facts) =>
      byProbe(facts, "extending", firstWrites, () => preallocate, () => unknown(firstWrites, notProbed(facts)))
  },
  {
    id: "allocating",
    section: "2.3.3",
    title: "Allocating writes",
    bearsOn: ["io", "gpu"],
    decidedBy: "A direct write at the end of a sparse file, and the pages dirtied meanwhile (/proc/vmstat).",
    decide: (facts) =>
      byProbe(facts, "allocating", firstWrites, () => zeroFill, () => unknown(firstWrites, notProbed(facts)))
  },
  {
    id: "preallocated",
    section: "2.3.3",
    title: "Writes to preallocated blocks",
    bearsOn: ["io", "gpu"],
    decidedBy: "A direct write onto extents that fallocate made, unwritten before and written after it (FIEMAP).",
    decide: (facts) =>
      byProbe(
        facts,
        "preallocated",
        firstWrites,
        () => preallocate,
        ({ evidence }) => no(`nothing is preallocated here: ${evidence}`)
      )
  },
  {
    id: "hole-filling",
    section: "2.3.3",
    title: "Hole filling",
    bearsOn: ["io", "gpu"],
    decidedBy: "A direct write into a hole between written blocks, and the pages dirtied meanwhile (/proc/vmstat).",
    decide: (facts) => byProbe(facts, "hole", firstWrites, () => zeroFill, () => unknown(firstWrites, notProbed(facts)))
  },
  {
    id: "copy-on-write",
    section: "2.3.3",
    title: "Copy-on-write",
    bearsOn: ["io", "gpu"],
    decidedBy: "The filesystem's type; on btrfs the inode flag NOCOW of a file made here.",
    decide: copyOnWrite
  },
  {
    id: "reflinked",
    section: "2.3.3",
    title: "Reflinked extents",
    bearsOn: ["io", "gpu"],
    decidedBy: "A direct write over extents that FICLONE shared (FIEMAP_EXTENT_SHARED).",
    decide: (facts) =>
      byProbe(
        facts,
        "shared",
        writes,
        () => "do not reflink or snapshot cache files",
        ({ evidence }) =>
          isKnown(facts) || facts.filesystem.type === "nfs4" || facts.filesystem.type === "nfs"
            ? no(`nothing is shared here: ${evidence}`)
            : unknown(writes, evidence)
      )
  },
  {
    id: "delayed-allocation",
    section: "2.3.3",
    title: "Delayed allocation",
    bearsOn: ["io"],
    decidedBy: "FIEMAP_EXTENT_DELALLOC after a buffered write, and whether overwrites with O_DIRECT are buffered.",
    decide: (facts) => {
      const { delayed } = facts.findings
      if (tried(facts, "written").length === 0) return unknown(firstWrites, notProbed(facts))
      if (delayed === undefined) {
        return inMemory(facts) ? no(`${typeOf(facts)} has no blocks`) : unknown(firstWrites, "no map of extents tells")
      }
      // Its map calls delayed blocks unwritten (`f2fs_fiemap`).
      if (!delayed && typeOf(facts) === "f2fs") return unknown(firstWrites, "the map of f2fs does not tell")
      if (!delayed) return no("a buffered write had its blocks at once (FIEMAP)")
      const late = "blocks of a buffered write are chosen later (FIEMAP)"
      const cached = pageCache(facts)
      return cached.applies === "no"
        ? no(`${late}; direct writes have theirs at once`)
        : cached.applies === "yes"
        ? yes(firstWrites, `${late}, and writes here are buffered`, cached.remedy)
        : unknown(firstWrites, late)
    }
  },
  {
    id: "data-journaling",
    section: "2.3.4",
    title: "Data journaling",
    bearsOn: ["io", "gpu"],
    decidedBy: "The mount option data=journal, the inode flag of a file made here, and an alignment of 0/0 from statx.",
    decide: dataJournaling
  },
  {
    id: "checksums",
    section: "2.3.4",
    title: "Checksums",
    bearsOn: ["io", "gpu"],
    decidedBy:
      "btrfs without NOCOW or nodatasum, ZFS, bcachefs; Lustre's osc.*.checksums; NFS with sec=krb5i or krb5p; dm-integrity and protection information below.",
    decide: checksums
  },
  {
    id: "compression",
    section: "2.3.4",
    title: "Compression",
    bearsOn: ["io", "gpu"],
    decidedBy: "Mount options, the inode flag of a file made here, encoded extents (FIEMAP), zram and dm-vdo below.",
    decide: compression
  },
  {
    id: "deduplication",
    section: "2.3.4",
    title: "Deduplication",
    bearsOn: ["io", "gpu"],
    decidedBy: "dm-vdo below; unknown for ZFS and distributed filesystems.",
    decide: (facts) =>
      first(byDevice(facts, isDm("vdo"), "data is deduplicated by", "another disk"), byServers("deduplication")(facts))
  },
  {
    id: "encryption",
    section: "2.3.4",
    title: "Encryption",
    bearsOn: ["io", "gpu"],
    decidedBy: "The fscrypt flag of a file made here, ecryptfs, dm-crypt below, NFS and SMB options that encrypt.",
    decide: encryption
  },
  {
    id: "erasure-coding",
    section: "2.3.4",
    title: "Erasure coding",
    bearsOn: ["io", "gpu"],
    decidedBy: "Unknown for distributed filesystems; parity of local disks has a row of its own.",
    decide: byServers("erasure coding")
  },
  {
    id: "parity",
    section: "2.3.4",
    title: "Parity",
    bearsOn: ["io", "gpu"],
    decidedBy: "md of level 4, 5 or 6, dm-raid, btrfs profiles raid5 and raid6.",
    decide: parity
  },
  {
    id: "synchronous-replication",
    section: "2.3.4",
    title: "Synchronous replication",
    bearsOn: ["io", "gpu"],
    decidedBy: "drbd among the devices below; unknown for distributed filesystems.",
    decide: (facts) =>
      first(
        byDevice(
          facts,
          ({ detail }) => detail === "drbd",
          "writes are sent to a second machine by",
          "drbdadm disconnect RESOURCE"
        ),
        byServers("synchronous replication")(facts)
      )
  }
]

/** Every row as it is decided here. */
export const decide = (facts: Facts): ReadonlyArray<Condition> =>
  rows.map(({ bearsOn, decide, id, section, title }) => {
    const { affects, applies, evidence, remedy } = decide(facts)
    return { id, section, title, applies, affects, bearsOn, evidence, remedy }
  })
