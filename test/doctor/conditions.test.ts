/** The rows of the O_DIRECT guide, each decided from facts about machines that are not this one. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as DirectIo from "../../src/DirectIo.js"
import type { Condition, Filesystem, Probe } from "../../src/DirectIo.js"
import { stackOf } from "../../src/internal/directIo/blockDevices.js"
import { decide, rows } from "../../src/internal/directIo/conditions.js"
import type { Facts } from "../../src/internal/directIo/decisions.js"
import type { Mount } from "../../src/internal/directIo/mounts.js"
import type { Findings } from "../../src/internal/directIo/probe.js"
import { FS_NOCOW_FL } from "../../src/Syscalls.js"
import type { Tree } from "./fileTree.js"
import * as fileTree from "./fileTree.js"
import * as disks from "./fixtures/blockDevices.js"
import * as fixtures from "./fixtures/filesystems.js"
import { layer } from "./machine.js"

type Applies = { readonly [id: string]: Condition["applies"] }

// ioctl_iflags(2)
const FS_COMPR_FL = 0x4
const FS_ENCRYPT_FL = 0x800
const FS_JOURNAL_DATA_FL = 0x4000
const FS_EXTENT_FL = 0x8_0000

const probe = (id: Probe["id"], own: Partial<Probe> = {}): Probe => ({
  id,
  file: "as made here",
  path: "direct",
  bytes: 65_536,
  cached: null,
  mapped: null,
  dirtied: null,
  extentsBefore: ["written"],
  extentsAfter: ["written"],
  evidence: "the write took 16 pages of the range out of the page cache",
  ...own
})

const ids = ["extending", "written", "read", "allocating", "hole", "preallocated", "shared", "inline"] as const
const allDirect = ids.map((id) => probe(id))

/** Everything was tried, and all of it was direct. */
const direct: Findings = {
  statx: { memoryAlignment: 512, offsetAlignment: 512 },
  inodeFlags: FS_EXTENT_FL,
  setFlag: "kept",
  openFlag: "kept",
  nocow: undefined,
  probes: allDirect,
  alignment: { read: null, write: null },
  delayed: false,
  pool: undefined,
  failure: null
}

/** Nothing could be tried. */
const nothing: Findings = {
  ...direct,
  statx: undefined,
  inodeFlags: undefined,
  setFlag: null,
  openFlag: null,
  probes: [],
  delayed: undefined,
  failure: { step: "create a file", code: "EACCES", message: "this user may not write here (mkostemp: EACCES)" }
}

const filesystem = (type: string, options: ReadonlyArray<string> = [], own: Partial<Filesystem> = {}): Filesystem => ({
  type,
  magic: 0,
  mountId: 30,
  mountPoint: "/mnt/cache",
  source: "/dev/nvme0n1",
  options: ["rw", "relatime", ...options],
  blockSize: 4096,
  total: 1e12,
  available: 5e11,
  ...own
})

/** What is known where the mount cannot be seen: the name of the magic number. */
const unmounted = (type: string): Filesystem => filesystem(type, [], { mountPoint: null, source: null, options: [] })

const mount = (type: string, superOptions: ReadonlyArray<string> = ["rw"]): Mount => ({
  id: 31,
  device: { major: 259, minor: 0 },
  root: "/",
  mountPoint: "/upper",
  type,
  source: "/dev/nvme0n1",
  options: ["rw"],
  superOptions
})

const noDirectIo = { memoryAlignment: 0, offsetAlignment: 0 }

const unseen: Facts["devicesUnseen"] = [{ what: "/sys/dev/block/8:1", reason: "NotFound" }]

const facts = (type: string | Filesystem, own: Partial<Omit<Facts, "filesystem">> = {}): Facts => ({
  filesystem: typeof type === "string" ? filesystem(type) : type,
  upper: undefined,
  devices: [],
  devicesUnseen: [],
  loopFilesystems: ["ext4"],
  findings: direct,
  zfs: undefined,
  btrfsProfiles: undefined,
  lustreChecksums: undefined,
  ...own
})

const found = (findings: Partial<Findings>): Pick<Facts, "findings"> => ({ findings: { ...direct, ...findings } })

const applies = (all: Facts): Applies => Object.fromEntries(decide(all).map(({ applies, id }) => [id, applies]))

/** The rows that were asked about, as `id: evidence` where they are not what they should be. */
const check = (all: Facts, expected: Applies) => {
  const decided = decide(all)
  const wrong = Object.entries(expected).flatMap(([id, wanted]) => {
    const row = decided.find((one) => one.id === id)
    return row?.applies === wanted ? [] : [`${id} should be ${wanted}, is ${row?.applies}: ${row?.evidence}`]
  })
  assert.deepStrictEqual(wrong, [])
}

/** The rows that must not be "no" and are. */
const wrongNo = (all: Facts, mustNot: (id: string) => boolean): ReadonlyArray<string> =>
  decide(all).flatMap(({ applies, evidence, id }) => applies === "no" && mustNot(id) ? [`${id}: ${evidence}`] : [])

type Case = readonly [name: string, facts: Facts, expected: Applies]

const table = (cases: ReadonlyArray<Case>) => {
  for (const [name, all, expected] of cases) it(name, () => check(all, expected))
}

const all = (ids: ReadonlyArray<string>, applies: Condition["applies"]): Applies =>
  Object.fromEntries(ids.map((id) => [id, applies]))

describe("ZFS", () => {
  const zfs = (version: string | null, directEnabled: boolean | null, pool?: Findings["pool"]): Facts =>
    facts(filesystem("zfs", [], { source: "tank/cache" }), {
      zfs: { version, directEnabled },
      devicesUnseen: [{ what: "the devices of zfs on /mnt/cache", reason: "sysfs does not tell" }],
      ...found({ pool, statx: undefined, inodeFlags: undefined })
    })
  /** Of 2.3, what its pool counted past the ARC and through it while three writes and reads were made. */
  const counted = (writes: readonly [number, number], reads: readonly [number, number] = [3, 0]) =>
    zfs("2.3.1-1", true, {
      made: 3,
      writes: { direct: writes[0], arc: writes[1] },
      reads: { direct: reads[0], arc: reads[1] }
    })
  table([
    ["2.2 uses its ARC", zfs("2.2.6-1", null), { "zfs-arc": "yes" }],
    ["0.8 does", zfs("0.8.4-1ubuntu11", null), { "zfs-arc": "yes" }],
    ["2.3 with zfs_dio_enabled 0 does", zfs("2.3.1-1", false), { "zfs-arc": "yes" }],
    ["2.3 counts everything past it", counted([3, 0]), { "zfs-arc": "no" }],
    ["2.3 counts writes through it", counted([0, 3]), { "zfs-arc": "yes" }],
    ["2.3 counts writes of both kinds", counted([3, 1]), { "zfs-arc": "unknown" }],
    ["2.3 counts too few writes", counted([2, 0]), { "zfs-arc": "unknown" }],
    ["2.3 counts no writes", counted([0, 0]), { "zfs-arc": "unknown" }],
    ["2.3 counts reads through it", counted([3, 0], [0, 3]), { "zfs-arc": "unknown" }],
    ["2.3 with counts that cannot be read", zfs("2.3.1-1", true), { "zfs-arc": "unknown" }],
    ["a version that is not told", zfs(null, null), { "zfs-arc": "unknown" }],
    ["what pool and dataset have is not visible", zfs("2.3.1-1", true), {
      checksums: "yes",
      "copy-on-write": "yes",
      ...all(
        ["compression", "deduplication", "encryption", "parity", "storage-tiers", "metadata-with-data"],
        "unknown"
      ),
      ...all(["erasure-coding", "synchronous-replication", "loop-page-cache"], "unknown"),
      ...all(["inline-ext4", "inline-btrfs", "page-pool"], "no")
    }],
    [
      "below an overlay",
      facts("overlay", { upper: mount("zfs"), devicesUnseen: unseen }),
      { checksums: "yes", "copy-on-write": "yes", "zfs-arc": "unknown", compression: "unknown" }
    ]
  ])
})

describe("Lustre", () => {
  const lustre = (own: Partial<Facts> = {}) =>
    facts(filesystem("lustre", [], { source: "10.0.0.1@o2ib:/scratch" }), {
      ...found({ statx: undefined, inodeFlags: undefined }),
      ...own
    })
  table([
    ["checksums 1", lustre({ lustreChecksums: true }), { checksums: "yes" }],
    ["checksums 0", lustre({ lustreChecksums: false }), { checksums: "no" }],
    ["checksums that cannot be read", lustre(), { checksums: "unknown" }],
    [
      "what its servers and layouts do is not visible",
      lustre(),
      all([
        "inline-lustre",
        "storage-tiers",
        "deduplication",
        "erasure-coding",
        "synchronous-replication",
        "encryption",
        "compression",
        "copy-on-write",
        "data-journaling"
      ], "unknown")
    ],
    ["has no device below a loop's page cache", lustre(), { "loop-page-cache": "no", "zfs-arc": "no" }],
    ["with an encryption policy", lustre(found({ inodeFlags: FS_ENCRYPT_FL })), { encryption: "yes" }]
  ])
})

describe("Storage Scale", () => {
  const gpfs = facts(filesystem("gpfs", [], { source: "fs1" }), found({ statx: undefined, inodeFlags: undefined }))
  table([
    [
      "nothing of its daemon is visible",
      gpfs,
      all(
        [
          "page-pool",
          "storage-tiers",
          "checksums",
          "compression",
          "encryption",
          "deduplication",
          "erasure-coding",
          "synchronous-replication",
          "copy-on-write",
          "data-journaling",
          "metadata-with-data",
          "parity"
        ],
        "unknown"
      )
    ],
    [
      "F_SETFL that is ignored, open that is not",
      { ...gpfs, ...found({ setFlag: "ignored" }) },
      { "flag-ignored": "yes" }
    ]
  ])
  it("says how to open its files", () => {
    const row = decide({ ...gpfs, ...found({ setFlag: "ignored" }) }).find(({ id }) => id === "flag-ignored")
    assert.include(row?.remedy, "open-direct")
    const never = decide({ ...gpfs, ...found({ setFlag: "ignored", openFlag: "ignored" }) })
    assert.strictEqual(never.find(({ id }) => id === "flag-ignored")?.remedy, "another filesystem")
  })
})

describe("NFS and SMB", () => {
  const mounted = (type: string, ...options: ReadonlyArray<string>) =>
    facts(filesystem(type, options, { source: "10.0.0.5:/export" }), found({ statx: undefined, inodeFlags: undefined }))
  const plain = mounted("nfs4", "vers=4.2", "proto=tcp", "sec=sys")
  table([
    ["sec=sys", plain, { checksums: "no", encryption: "no", fscache: "no", "zfs-arc": "no" }],
    ["sec=krb5", mounted("nfs4", "sec=krb5"), { checksums: "no", encryption: "no" }],
    ["sec=krb5i signs", mounted("nfs4", "sec=krb5i"), { checksums: "yes", encryption: "no" }],
    ["sec=krb5p signs and encrypts", mounted("nfs4", "sec=krb5p"), { checksums: "yes", encryption: "yes" }],
    ["xprtsec=tls", mounted("nfs4", "sec=sys", "xprtsec=tls"), { encryption: "yes" }],
    ["xprtsec=mtls", mounted("nfs", "sec=sys", "xprtsec=mtls"), { encryption: "yes" }],
    ["xprtsec=none", mounted("nfs", "sec=sys", "xprtsec=none"), { encryption: "no" }],
    ["fsc, and a direct read left nothing", mounted("nfs4", "sec=sys", "fsc"), { fscache: "no" }],
    [
      "fsc, and a read left pages",
      {
        ...mounted("nfs4", "sec=sys", "fsc"),
        ...found({ probes: [probe("written"), probe("read", { path: "buffered" })] })
      },
      { fscache: "yes", "page-cache": "yes", "read-ahead": "yes" }
    ],
    [
      "fsc, and nothing was tried",
      { ...mounted("nfs4", "sec=sys", "fsc"), findings: nothing },
      { fscache: "unknown", "page-cache": "unknown" }
    ],
    ["cache=fscache of 9p", { ...mounted("9p", "cache=fscache"), findings: nothing }, { fscache: "unknown" }],
    ["SMB with seal", mounted("cifs", "vers=3.1.1", "seal"), { encryption: "yes" }],
    [
      "SMB without",
      mounted("cifs", "vers=3.1.1"),
      all(
        ["encryption", "compression", "checksums", "copy-on-write", "data-journaling", "erasure-coding"],
        "unknown"
      )
    ]
  ])

  it("of a mount that cannot be seen the options are not known", () => {
    const hidden = facts(unmounted("nfs"), found({ statx: undefined, inodeFlags: undefined }))
    assert.deepStrictEqual(wrongNo(hidden, (id) => ["checksums", "encryption", "fscache"].includes(id)), [])
  })
})

describe("filesystems of one machine", () => {
  const inline = probe("inline", { extentsBefore: ["inline"], extentsAfter: ["written"] })
  const unmapped = probe("inline", { extentsBefore: null, extentsAfter: null })
  const f2fs = (options: ReadonlyArray<string>, own: Partial<Findings> = {}) =>
    facts(filesystem("f2fs", options), found({ inodeFlags: 0, ...own }))
  const btrfs = (own: Partial<Findings> = {}, more: Partial<Facts> = {}, ...options: ReadonlyArray<string>) =>
    facts(filesystem("btrfs", options), { btrfsProfiles: ["single"], ...found({ inodeFlags: 0, ...own }), ...more })
  table([
    ["f2fs, noinline_data", f2fs(["noinline_data"], { probes: [inline] }), { "inline-f2fs": "no" }],
    ["f2fs, inline_data", f2fs(["inline_data"], { probes: [inline] }), {
      "inline-f2fs": "yes",
      "inline-extent": "yes"
    }],
    ["f2fs, inline_data, not in this file", f2fs(["inline_data"]), { "inline-f2fs": "no" }],
    ["f2fs without a map", f2fs(["inline_data"], { probes: [unmapped] }), { "inline-f2fs": "unknown" }],
    [
      "f2fs, +c",
      f2fs(["compress_algorithm=lz4", "compress_extension=*"], { inodeFlags: FS_COMPR_FL }),
      { compression: "yes" }
    ],
    ["f2fs, mode=lfs", f2fs(["mode=lfs"]), { "copy-on-write": "yes", checksums: "no", "data-journaling": "no" }],
    [
      "bcachefs",
      facts("bcachefs", { devicesUnseen: unseen }),
      {
        checksums: "yes",
        "copy-on-write": "yes",
        ...all(["encryption", "compression", "storage-tiers", "erasure-coding"], "unknown")
      }
    ],
    ["bcachefs that compresses", facts(filesystem("bcachefs", ["compression=lz4"])), { compression: "yes" }],
    ["bcachefs that does not say", facts(filesystem("bcachefs", ["compression=none"])), { compression: "unknown" }],
    [
      "ecryptfs",
      facts("ecryptfs"),
      { encryption: "yes", ...all(["checksums", "compression", "copy-on-write", "deduplication"], "unknown") }
    ],
    ["ext4 with an inline file", facts("ext4", found({ probes: [inline] })), {
      "inline-ext4": "yes",
      "inline-extent": "yes"
    }],
    ["ext4 without a map", facts("ext4", found({ probes: [unmapped] })), { "inline-ext4": "unknown" }],
    ["ext4, fscrypt", facts("ext4", found({ inodeFlags: FS_ENCRYPT_FL })), { encryption: "yes" }],
    ["ext4, fscrypt without direct I/O", {
      ...facts("ext4"),
      ...found({ inodeFlags: FS_ENCRYPT_FL, statx: { memoryAlignment: 0, offsetAlignment: 0 } })
    }, { encryption: "yes", "data-journaling": "no", compression: "no" }],
    ["ext4, +j, without effect", facts("ext4", found({ inodeFlags: FS_JOURNAL_DATA_FL })), { "data-journaling": "no" }],
    [
      "ext4, +j",
      facts("ext4", found({ inodeFlags: FS_JOURNAL_DATA_FL, statx: noDirectIo })),
      { "data-journaling": "yes" }
    ],
    [
      "ext4, data=journal",
      facts(filesystem("ext4", ["data=journal"]), found({ statx: noDirectIo })),
      { "data-journaling": "yes" }
    ],
    ["ext4, 0/0", facts("ext4", found({ statx: noDirectIo })), { "data-journaling": "yes" }],
    ["ext4, no answer", facts("ext4", found({ statx: undefined })), { "data-journaling": "unknown" }],
    ["ext4, data=ordered", facts(filesystem("ext4", ["data=ordered"])), { "data-journaling": "no" }],
    ["btrfs", btrfs(), { checksums: "yes", "copy-on-write": "yes", parity: "no", "data-journaling": "no" }],
    ["btrfs, NOCOW", btrfs({ inodeFlags: FS_NOCOW_FL }), { "copy-on-write": "no" }],
    ["btrfs, +c", btrfs({ inodeFlags: FS_COMPR_FL }), { compression: "yes" }],
    ["btrfs, compress=zstd:3", btrfs({}, {}, "compress=zstd:3"), { compression: "yes" }],
    ["btrfs, compress-force=lzo", btrfs({}, {}, "compress-force=lzo"), { compression: "yes" }],
    [
      "btrfs, an encoded extent",
      btrfs({ probes: [probe("written", { extentsAfter: ["encoded"] })] }),
      { compression: "yes" }
    ],
    ["btrfs, raid5", btrfs({}, { btrfsProfiles: ["raid5"] }), { parity: "yes" }],
    ["btrfs, single and raid6", btrfs({}, { btrfsProfiles: ["single", "raid6"] }), { parity: "yes" }],
    ["btrfs, profiles that are not told", btrfs({}, { btrfsProfiles: undefined }), { parity: "unknown" }],
    ["a buffered write over what is shared", {
      ...facts("xfs"),
      ...found({ probes: allDirect.with(6, probe("shared", { path: "buffered" })) })
    }, { reflinked: "yes", "page-cache": "no" }],
    [
      "delayed allocation, and overwrites that are direct",
      facts("xfs", found({ delayed: true })),
      { "delayed-allocation": "no" }
    ],
    [
      "delayed allocation, and overwrites that are not",
      facts("xfs", found({ delayed: true, probes: [probe("written", { path: "buffered" }), probe("read")] })),
      { "delayed-allocation": "yes" }
    ],
    [
      "delayed allocation, and overwrites that were not tried",
      facts("xfs", found({ delayed: true, probes: [] })),
      { "delayed-allocation": "unknown" }
    ],
    ["squashfs", facts("squashfs", { findings: nothing }), { compression: "yes" }]
  ])
})

/** Rows that the devices below a local filesystem decide. */
const rowsOfDevices = [
  "metadata-with-data",
  "storage-tiers",
  "loop-page-cache",
  "checksums",
  "compression",
  "deduplication",
  "encryption",
  "parity",
  "synchronous-replication"
]

describe("devices below ext4", () => {
  const none = all(rowsOfDevices, "no")
  const nvme: Tree = { ...disks.nvme(0), ...disks.nvme(1) }
  const both = [disks.nvmePath(0), disks.nvmePath(1)] as const
  const onNvme = (name: string, uuid: string): Tree => ({ ...nvme, ...disks.dm(0, name, uuid, both[0]) })
  // 66304 is `st_dev` 259:0 as stat(2) packs it.
  const image: Tree = { ...nvme, "/images/disk.img": { dev: 0x1_0300 } }
  const without = (tree: Tree, path: string): Tree =>
    Object.fromEntries(Object.entries(tree).filter(([name]) => name !== path))

  const below: Mount = { ...mount("btrfs"), device: { major: 0, minor: 40 }, mountPoint: "/images" }

  const found = (number: string, tree: Tree) => {
    const [major = "", minor = ""] = number.split(":")
    return stackOf({ major: Number(major), minor: Number(minor) }, mount("ext4"), [below]).pipe(
      Effect.map((stack) =>
        facts("ext4", { devices: stack.devices, devicesUnseen: stack.unseen, loopFilesystems: ["btrfs"] })
      ),
      Effect.provide(fileTree.layer(tree))
    )
  }

  const cases: ReadonlyArray<readonly [name: string, number: string, tree: Tree, expected: Applies]> = [
    ["NVMe", "259:0", nvme, none],
    [
      "NVMe with protection information",
      "259:0",
      disks.nvme(0, "T10-DIF-TYPE1-CRC"),
      { ...none, "metadata-with-data": "yes", checksums: "yes" }
    ],
    ["md raid0", "9:0", { ...nvme, ...disks.md("raid0", ...both) }, none],
    ["md raid1", "9:0", { ...nvme, ...disks.md("raid1", ...both) }, none],
    ["md raid4", "9:0", { ...nvme, ...disks.md("raid4", ...both) }, { ...none, parity: "yes" }],
    ["md raid5", "9:0", { ...nvme, ...disks.md("raid5", ...both) }, { ...none, parity: "yes" }],
    ["md raid6", "9:0", { ...nvme, ...disks.md("raid6", ...both) }, { ...none, parity: "yes" }],
    [
      "md of a level that is not told",
      "9:0",
      without({ ...nvme, ...disks.md("raid5", ...both) }, "/sys/devices/virtual/block/md0/md/level"),
      { parity: "unknown" }
    ],
    ["dm-crypt", "252:0", onNvme("secret", disks.luks), { ...none, encryption: "yes" }],
    ["dm-linear", "252:0", onNvme("vg-data", disks.lvm("data")), none],
    [
      "dm-integrity",
      "252:0",
      onNvme("x", "CRYPT-INTEGRITY-x"),
      { ...none, "metadata-with-data": "yes", checksums: "yes" }
    ],
    [
      "dm-crypt on dm-integrity",
      "252:1",
      {
        ...onNvme("secret_dif", "CRYPT-SUBDEV-6f0a7b1e5c3d4e8f9a0b1c2d3e4f5a6b-secret_dif"),
        ...disks.dm(1, "secret", disks.luks, disks.dmPath(0))
      },
      { ...none, encryption: "yes", "metadata-with-data": "yes", checksums: "yes" }
    ],
    [
      "dm-cache",
      "252:1",
      { ...onNvme("vg-data_corig", disks.lvm("o")), ...disks.dm(1, "vg-data", disks.lvm("data"), disks.dmPath(0)) },
      { ...none, "storage-tiers": "yes" }
    ],
    [
      "dm-writecache",
      "252:1",
      { ...onNvme("vg-data_wcorig", disks.lvm("o")), ...disks.dm(1, "vg-data", disks.lvm("data"), disks.dmPath(0)) },
      { ...none, "storage-tiers": "yes" }
    ],
    [
      "dm-raid of a level that is not told",
      "252:1",
      { ...onNvme("vg-r_rimage_0", disks.lvm("i")), ...disks.dm(1, "vg-r", disks.lvm("r"), disks.dmPath(0)) },
      { ...none, parity: "unknown" }
    ],
    ["vdo", "252:0", onNvme("vdo0", "VDO-6f0a7b1e"), { ...none, compression: "yes", deduplication: "yes" }],
    ["a dm target that nothing tells", "252:0", onNvme("odd", "DMRAID-isw_volume"), all(rowsOfDevices, "unknown")],
    ["bcache", "251:0", disks.bcache("writethrough [writeback] writearound none", "dirty"), {
      ...none,
      "storage-tiers": "yes"
    }],
    ["bcache in mode none", "251:0", disks.bcache("writethrough writeback writearound [none]", "clean"), none],
    ["bcache without a cache", "251:0", disks.bcache("[writethrough] writeback writearound none", "no cache"), none],
    ["bcache in a mode that is not told", "251:0", disks.bcache("?", "clean"), { "storage-tiers": "yes" }],
    ["drbd", "147:0", disks.drbd, { "synchronous-replication": "yes", parity: "no", compression: "no" }],
    ["zram", "253:0", disks.zram0, { ...none, compression: "yes" }],
    [
      "a loop device with direct I/O",
      "7:0",
      { ...image, ...disks.loop(0, "/images/disk.img", 1) },
      { "loop-page-cache": "no" }
    ],
    [
      "a loop device without",
      "7:0",
      { ...image, ...disks.loop(0, "/images/disk.img", 0) },
      { "loop-page-cache": "yes" }
    ],
    [
      "a loop device that does not tell",
      "7:0",
      without(
        { ...image, ...disks.loop(0, "/images/disk.img", 1) },
        "/sys/devices/virtual/block/loop0/loop/dio"
      ),
      { "loop-page-cache": "unknown" }
    ],
    [
      "a loop device on a deleted file",
      "7:0",
      disks.loop(0, "/images/disk.img (deleted)", 1),
      all(rowsOfDevices, "unknown")
    ],
    ["a device that is not there", "8:77", {}, all(rowsOfDevices, "unknown")]
  ]
  for (const [name, number, tree, expected] of cases) {
    it.effect(name, () => Effect.map(found(number, tree), (all) => check(all, expected)))
  }

  /** What lies below is more than blocks. */
  const notNo: ReadonlyArray<readonly [name: string, number: string, tree: Tree, ids: ReadonlyArray<string>]> = [
    // A filesystem below sums up, compresses, encrypts and copies: here btrfs, whose mount has the file's `st_dev`.
    [
      "a loop device whose file lies on btrfs",
      "7:0",
      {
        ...nvme,
        ...disks.btrfs("uuid", disks.nvmePath(0)),
        "/images/disk.img": { dev: 40 },
        ...disks.loop(0, "/images/disk.img", 1)
      },
      ["checksums", "compression", "copy-on-write"]
    ],
    [
      "a loop device whose file lies on a filesystem that is not found",
      "7:0",
      { "/images/disk.img": { dev: 41 }, ...disks.loop(0, "/images/disk.img", 1) },
      ["checksums", "compression", "encryption", "copy-on-write", "zfs-arc"]
    ],
    // A volume of ZFS (zvol, `zd0`), and a disk that a program plays (`ublkb0`, Documentation/block/ublk.rst).
    ["a volume of ZFS", "230:0", disks.device("virtual/block/zd0", "230:0", disks.queue()), [
      "checksums",
      "compression",
      "encryption",
      "parity",
      "copy-on-write",
      "zfs-arc"
    ]],
    ["a disk that a program plays", "259:70", disks.device("virtual/block/ublkb0", "259:70", disks.queue()), [
      "checksums",
      "compression",
      "encryption",
      "parity"
    ]],
    // "For distributed block devices, the erasure coding decision is performed on the client side" (section 2.3.4).
    ["rbd", "251:0", disks.rbd, ["checksums", "encryption", "erasure-coding", "synchronous-replication"]],
    // Digests and TLS of NVMe over TCP are in no file of sysfs (drivers/nvme/host/tcp.c).
    ["NVMe over TCP", "259:40", disks.nvmeFabrics("tcp"), ["checksums", "encryption"]],
    // dm-thin copies what a snapshot shares, through kcopyd (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
    [
      "a thin volume",
      "252:1",
      {
        ...onNvme("vg-pool-tpool", `${disks.lvm("pool")}-tpool`),
        ...disks.dm(1, "vg-thin", disks.lvm("thin"), disks.dmPath(0))
      },
      ["copy-on-write"]
    ]
  ]
  for (const [name, number, tree, ids] of notNo) {
    it.effect(`${name}: not decided`, () =>
      Effect.map(found(number, tree), (all) => assert.deepStrictEqual(wrongNo(all, (id) => ids.includes(id)), [])))
  }
})

/** Rows that say what this library does. */
const ofTheLibrary = ["user-buffered", "middleware-transforms"]
/** Rows about one kind of filesystem, which another kind answers with no. */
const ofOneType = ["zfs-arc", "page-pool", "inline-ext4", "inline-btrfs", "inline-f2fs", "inline-lustre"]

describe("what is not known is not denied", () => {
  // Types as mountinfo shows them; none of them is one that rows know, and nothing could be tried.
  const strangers = [
    "exfat",
    "vfat",
    "ntfs3",
    "fuseblk",
    "jfs",
    "reiserfs",
    "ocfs2",
    "gfs2",
    "nilfs2",
    "hfsplus",
    "ubifs",
    "bcachefs",
    "gpfs",
    "wekafs",
    "beegfs",
    "ceph",
    "orangefs",
    "lustre",
    "cifs",
    "smb3",
    "9p",
    "virtiofs"
  ]
  // What only ever can be said by absence: that of an option of the mount, and of block devices on this machine.
  const absent = ["fscache", ...ofOneType, ...ofTheLibrary]
  const remote = ["wekafs", "beegfs", "ceph", "lustre", "cifs", "smb3", "9p", "virtiofs"]
  const devicesAbsent = ["loop-page-cache", "metadata-with-data", "storage-tiers", "parity"]
  for (const type of strangers) {
    it(`${type}, of which nothing could be tried`, () => {
      const all = facts(type, { findings: nothing })
      assert.deepStrictEqual(
        wrongNo(all, (id) => !absent.includes(id) && !(remote.includes(type) && devicesAbsent.includes(id))),
        []
      )
    })
  }

  // What lies behind them may be anything: ZFS, Lustre, an ext4 with inline data.
  for (const type of ["fuse", "fuse.foo", "fuse.mergerfs", "overlay", "ecryptfs", "aufs", "0x12345678"]) {
    it(`${type}, which hides what it keeps its files on`, () => {
      const all = facts(type === "overlay" ? filesystem(type, ["upperdir=/u"]) : type, {
        findings: nothing,
        devicesUnseen: type === "overlay" ? unseen : []
      })
      assert.deepStrictEqual(wrongNo(all, (id) => id !== "fscache" && !ofTheLibrary.includes(id)), [])
    })
  }

  it("a filesystem whose mount cannot be seen has options that are not known", () => {
    for (const type of ["ext2/ext3/ext4", "xfs", "btrfs", "nfs", "fuse", "0x12345678"]) {
      const all = facts(unmounted(type), { devicesUnseen: unseen, ...found({ inodeFlags: 0 }) })
      assert.deepStrictEqual(wrongNo(all, (id) => id === "fscache"), [], type)
    }
    assert.deepStrictEqual(
      wrongNo(facts(unmounted("ext2/ext3/ext4"), { findings: nothing }), (id) => id === "inline-ext4"),
      []
    )
    assert.deepStrictEqual(wrongNo(facts(unmounted("btrfs")), (id) => id === "compression"), [])
  })

  it("a directory in which nothing can be made", () => {
    const tried = [
      "read-ahead",
      "page-cache",
      "flag-ignored",
      "inline-extent",
      "extending",
      "allocating",
      "preallocated",
      "hole-filling",
      "reflinked",
      "delayed-allocation"
    ]
    // Which rows need a file of this filesystem: its flags, its map, its alignment.
    const also: { readonly [type: string]: ReadonlyArray<string> } = {
      ext4: ["inline-ext4", "encryption", "data-journaling"],
      xfs: [],
      btrfs: ["inline-btrfs", "compression"],
      f2fs: ["inline-f2fs", "encryption", "compression"]
    }
    for (const [type, own] of Object.entries(also)) {
      const all = facts(type, { findings: nothing, btrfsProfiles: ["single"] })
      assert.deepStrictEqual(wrongNo(all, (id) => [...tried, ...own].includes(id)), [], type)
    }
  })

  it("tries of which the page cache told nothing", () => {
    const probes = ids.map((id) => probe(id, { path: "unknown" }))
    const rows = ["read-ahead", "page-cache", "flag-ignored", "extending", "allocating", "preallocated", "hole-filling"]
    check(facts("zfs", found({ probes })), all([...rows, "reflinked"], "unknown"))
  })

  it("devices that cannot be seen", () => {
    check(
      facts("ext4", { devicesUnseen: unseen }),
      all(rowsOfDevices, "unknown")
    )
  })

  it("devices of which some match and some cannot be seen", () => {
    const crypt = {
      name: "dm-0",
      number: "252:0",
      kind: "dm",
      over: [],
      detail: "crypt",
      transport: null,
      rotational: false,
      logicalSector: 512,
      physicalSector: 512,
      readAhead: 131_072,
      dax: false,
      integrity: null,
      loopDirectIo: null
    } as const
    check(facts("ext4", { devices: [crypt], devicesUnseen: unseen }), { encryption: "yes", parity: "unknown" })
  })
})

describe("an overlay", () => {
  const over = (type: string, own: Partial<Facts> = {}, ...options: ReadonlyArray<string>) =>
    facts(filesystem("overlay", ["upperdir=/u", "lowerdir=/l"]), { upper: mount(type, ["rw", ...options]), ...own })
  table([
    ["has the rows of its upper directory", over("ext4", found({ statx: noDirectIo }), "data=journal"), {
      "data-journaling": "yes",
      "copy-on-write": "no",
      "inline-ext4": "no",
      "zfs-arc": "no"
    }],
    ["on btrfs", over("btrfs", found({ inodeFlags: 0 })), { checksums: "yes", "copy-on-write": "yes" }],
    ["on btrfs of profiles that are not told", over("btrfs", found({ inodeFlags: 0 })), { parity: "unknown" }],
    ["on xfs", over("xfs"), { checksums: "no", compression: "no", "inline-btrfs": "no" }]
  ])
})

describe("the table of rows", () => {
  it.effect("has every row of a report, in its order", () =>
    Effect.gen(function*() {
      const report = yield* DirectIo.inspect("/tmp")
      const asked = DirectIo.conditions.map(({ id, section, title }) => ({ id, section, title }))
      assert.deepStrictEqual(report.conditions.map(({ id, section, title }) => ({ id, section, title })), asked)
      assert.strictEqual(new Set(asked.map(({ id }) => id)).size, asked.length)
      for (const { decidedBy, id } of DirectIo.conditions) assert.match(decidedBy, /^.{20,}\.$/s, id)
      const sections = asked.map(({ section }) => section)
      assert.deepStrictEqual([...sections].sort(), sections)
    }).pipe(Effect.provide(layer({ tree: { ...fixtures.machine, ...fixtures.mountinfo({ type: "ext4" }) } }))))

  it("says with every answer what was seen, and with every yes what it degrades", () => {
    for (const type of ["ext4", "btrfs", "zfs", "lustre", "nfs4", "gpfs", "fuse.foo", "tmpfs"]) {
      for (const findings of [direct, nothing]) {
        for (const { affects, applies, evidence, id } of decide(facts(type, { findings }))) {
          assert.isNotEmpty(evidence, `${type}: ${id}`)
          assert.strictEqual(affects.length > 0, applies !== "no", `${type}: ${id}`)
        }
      }
    }
    assert.strictEqual(Object.keys(applies(facts("ext4"))).length, rows.length)
  })
})
