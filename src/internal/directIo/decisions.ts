/** What the rows of the report are decided from, and the decisions that are longer than their row. A wrong "no" is worse than unknown. */
import type { BlockDevice, Condition, Filesystem, Probe, Unseen } from "../../DirectIo.js"
import { FS_NOCOW_FL } from "../../Syscalls.js"
import type { Mount } from "./mounts.js"
import type { Findings } from "./probe.js"

/** What is known of ZFS, from `/sys/module/zfs` (`zfs(4)`). */
export interface ZfsFacts {
  readonly version: string | null
  /** The module's parameter `zfs_dio_enabled`; null before OpenZFS 2.3. */
  readonly directEnabled: boolean | null
}

/** Everything that rows are decided from. */
export interface Facts {
  readonly filesystem: Filesystem
  /** Of an overlay: the mount that its upper directory lies on. */
  readonly upper: Mount | undefined
  readonly devices: ReadonlyArray<BlockDevice>
  /** Why the devices below are not all known; empty where they are. */
  readonly devicesUnseen: ReadonlyArray<Unseen>
  /** The types of the filesystems that hold the files of loop devices; undefined where one is not found. */
  readonly loopFilesystems: ReadonlyArray<string | undefined>
  readonly findings: Findings
  readonly zfs: ZfsFacts | undefined
  /** btrfs: the profiles of its data (`single`, `raid1`, `raid5`, …); undefined where they are not told. */
  readonly btrfsProfiles: ReadonlyArray<string> | undefined
  /** Lustre: whether its client checks pages (`/sys/fs/lustre/osc/…/checksums`); undefined where that is not told. */
  readonly lustreChecksums: boolean | undefined
}

export type Decision = Pick<Condition, "applies" | "affects" | "evidence" | "remedy">

export const no = (evidence: string): Decision => ({ applies: "no", affects: [], evidence, remedy: null })
export const yes = (affects: Condition["affects"], evidence: string, remedy: string | null = null): Decision => ({
  applies: "yes",
  affects,
  evidence,
  remedy
})
export const unknown = (affects: Condition["affects"], evidence: string, remedy: string | null = null): Decision => ({
  applies: "unknown",
  affects,
  evidence,
  remedy
})

export const readsAndWrites: Condition["affects"] = ["read", "write", "first write"]
export const writes: Condition["affects"] = ["write", "first write"]
export const firstWrites: Condition["affects"] = ["first write"]

// What ioctl_iflags(2) names.
const FS_COMPR_FL = 0x4
const FS_ENCRYPT_FL = 0x800
const FS_JOURNAL_DATA_FL = 0x4000
const FS_INLINE_DATA_FL = 0x1000_0000

const hasFlag = ({ findings }: Facts, flag: number) => ((findings.inodeFlags ?? 0) & flag) !== 0

/** Local filesystems of the kernel whose behaviour is known here; rows about others cannot be decided by their absence. */
const known = new Set(["ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "ramfs", "squashfs", "erofs", "f2fs"])

/** The type that counts: of an overlay, that of its upper directory's mount. */
export const typeOf = ({ filesystem, upper }: Facts): string =>
  filesystem.type === "overlay" && upper !== undefined ? upper.type : filesystem.type

/** Filesystems that stand on another one which is not seen, or have no name here. */
const isOpaque = (type: string) => /^(?:overlay|aufs|ecryptfs|0x.*|fuse(?:\..*|blk)?)$/.test(type)

/** Whether the filesystem is one of these; undefined where that cannot be said. */
export const isType = (facts: Facts, ...types: ReadonlyArray<string>): boolean | undefined => {
  const type = typeOf(facts)
  if (types.includes(type)) return true
  // The magic number of the three is one; only the mount tells them apart.
  if (type === "ext2/ext3/ext4") return types.some((one) => /^ext[234]$/.test(one)) ? undefined : false
  return isOpaque(type) ? undefined : false
}

/** Without its mount the options of a filesystem are not known. */
export const optionsKnown = ({ filesystem }: Facts) => filesystem.mountPoint !== null

export const inMemory = (facts: Facts) => ["tmpfs", "ramfs"].includes(typeOf(facts))

export const isKnown = (facts: Facts) => known.has(typeOf(facts))

const optionsOf = ({ filesystem, upper }: Facts): ReadonlyArray<string> => [
  ...filesystem.options,
  ...(upper === undefined ? [] : [...upper.options, ...upper.superOptions])
]

export const findOption = (facts: Facts, pattern: RegExp): string | undefined =>
  optionsOf(facts).find((option) => pattern.test(option))

const undecided = (facts: Facts, what: string, remedy: string | null = null): Decision =>
  unknown(readsAndWrites, `${what} is not told for ${typeOf(facts)}`, remedy)

const names = (devices: ReadonlyArray<BlockDevice>) =>
  devices.map(({ detail, kind, name }) => `${name} (${detail === null ? kind : `${kind} ${detail}`})`).join(", ")

/** Whose blocks are on other machines: what those do with the data needs no memory of this one (section 2.3.3). */
const remote = new Set(["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "lustre", "beegfs", "wekafs"])

/** Block devices without a kind of their own here that are plain disks all the same. */
const isPlain = ({ kind, name }: BlockDevice) => kind !== "other" || /^(?:mmcblk|xvd|dasd|sr)/.test(name)

/** A row about block devices: some that match apply; else the rest must be known, and not be one of those that may. */
export const byDevice = (
  facts: Facts,
  matches: (device: BlockDevice) => boolean,
  what: string,
  remedy: string | null,
  mayMatch: (device: BlockDevice) => boolean = () => false
): Decision => {
  const { devices, devicesUnseen } = facts
  const type = typeOf(facts)
  const found = devices.filter(matches)
  if (found.length > 0) return yes(readsAndWrites, `${what}: ${names(found)}`, remedy)
  const [unseen] = devicesUnseen
  if (unseen !== undefined) {
    return unknown(readsAndWrites, `the devices below are not all known: ${unseen.what}: ${unseen.reason}`, remedy)
  }
  const open = devices.filter((device) => !isPlain(device) || mayMatch(device))
  if (open.length > 0) return unknown(readsAndWrites, `not told of ${names(open)}`, remedy)
  if (devices.length > 0) return no(`the devices below are ${names(devices)}`)
  if (remote.has(type)) return no(`${type} has no block device on this machine`)
  return known.has(type)
    ? no(`${type} has no block device`)
    : unknown(readsAndWrites, `what ${type} keeps its data on is not visible from here`)
}

/** A loop device whose file lies on a filesystem that may do more with data than write it in place. */
const isOpaqueLoop = ({ loopFilesystems }: Facts) => ({ kind }: BlockDevice) =>
  kind === "loop" && !loopFilesystems.every((type) => type !== undefined && /^(?:ext[234]|xfs)$/.test(type))

/** The client or the far end may do more with the data than move it. */
const isRemoteDevice = ({ kind, transport }: BlockDevice) => kind === "network" || /tcp/.test(transport ?? "")

export const isDm = (...targets: ReadonlyArray<string>) => ({ detail, kind }: BlockDevice) =>
  kind === "dm" && detail !== null && targets.includes(detail)

/** The devices decide where the filesystem itself does not. */
export const first = (...decisions: ReadonlyArray<Decision>): Decision =>
  decisions.find(({ applies }) => applies === "yes") ?? decisions.find(({ applies }) => applies === "unknown") ??
    decisions[0] ?? no("")

export const tried = ({ findings }: Facts, id: Probe["id"]) => findings.probes.filter((probe) => probe.id === id)

export const describe = ({ evidence, file, path }: Probe) =>
  `${file === "nocow" ? "NOCOW file" : "file"}: ${path}, ${evidence}`

export const notProbed = ({ findings }: Facts) =>
  findings.failure === null
    ? "it was not tried: O_DIRECT cannot be had here"
    : `it was not tried: ${findings.failure.message}`

const nocowRemedy = "make the files NOCOW while they are empty, as DiskStorage does, or the directory: chattr +C DIR"

/** What one try of real I/O says of a condition. */
export const byProbe = (
  facts: Facts,
  id: Probe["id"],
  affects: Condition["affects"],
  remedy: (facts: Facts) => string | null,
  notTried: (probe: Probe) => Decision
): Decision => {
  const probes = tried(facts, id)
  const evidence = probes.map(describe).join("; ")
  const [one] = probes
  if (one === undefined) return unknown(affects, notProbed(facts))
  if (probes.some(({ path }) => path === "buffered" || path === "refused")) {
    // Nothing helps one kind of write where every kind is buffered.
    const allBuffered = tried(facts, "written").every(({ path }) => path === "buffered")
    return yes(affects, evidence, probes.at(-1)?.path === "direct" ? nocowRemedy : allBuffered ? null : remedy(facts))
  }
  if (probes.every(({ path }) => path === "not tried")) return notTried(one)
  return probes.every(({ path }) => path === "direct") ? no(evidence) : unknown(affects, evidence)
}

export const preallocate =
  "preallocate, as DiskStorage does, with prewrite: true so that every block has been written once"
export const zeroFill = "fill the file before use: DiskStorage with fallback: \"zero-fill\" or prewrite: true"

/** The kinds of extent that were seen in a probe. */
const sawExtent = ({ findings }: Facts, kind: "inline" | "encoded" | "delayed", id?: Probe["id"]) =>
  findings.probes.find((probe) =>
    (id === undefined || probe.id === id) &&
    (probe.extentsBefore?.includes(kind) === true || probe.extentsAfter?.includes(kind) === true)
  )

export const mappedInline = (facts: Facts): boolean | undefined =>
  tried(facts, "inline").some(({ extentsAfter, extentsBefore }) => extentsBefore !== null && extentsAfter !== null)
    ? sawExtent(facts, "inline", "inline") !== undefined
    : undefined

export const small = "files of a page and more; a DiskStorage is never smaller"

export const inlineOf = (type: string, remedy: string) => (facts: Facts): Decision => {
  const is = isType(facts, type)
  if (is === false) return no(`the filesystem is ${typeOf(facts)}`)
  const seen = mappedInline(facts)
  if (seen === undefined || (is === undefined && seen)) {
    const evidence = seen === undefined
      ? "whether a file of 64 bytes lies inline could not be seen"
      : `a file of 64 bytes lies inline (FIEMAP), on ${typeOf(facts)}`
    return unknown(readsAndWrites, evidence, remedy)
  }
  return seen
    ? yes(readsAndWrites, "a file of 64 bytes lies inline (FIEMAP)", `${small}; or ${remedy}`)
    : no("a file of 64 bytes has a block of its own (FIEMAP)")
}

const elsewhere = (facts: Facts) =>
  inMemory(facts)
    ? `a directory on a disk: ${typeOf(facts)} keeps everything in memory`
    : "what the rows of section 2.3.4 say, or another directory"

export const pageCache = (facts: Facts): Decision => {
  const probes = [...tried(facts, "written"), ...tried(facts, "read")]
  const evidence = probes.map((probe) => `${probe.id}: ${describe(probe)}`).join("; ")
  if (probes.length === 0) return unknown(readsAndWrites, notProbed(facts))
  const buffered = probes.filter(({ path }) => path === "buffered")
  if (buffered.length === 0) {
    return probes.every(({ path }) => path === "direct") ? no(evidence) : unknown(readsAndWrites, evidence)
  }
  const affects = [
    ...(buffered.some(({ id }) => id === "read") ? ["read"] as const : []),
    ...(buffered.some(({ id }) => id === "written") ? writes : [])
  ]
  const nocowIsDirect = probes.some(({ file }) => file === "nocow") &&
    probes.every(({ file, path }) => file !== "nocow" || path === "direct")
  return yes(affects, evidence, nocowIsDirect ? nocowRemedy : elsewhere(facts))
}

export const zfsArc = (facts: Facts): Decision => {
  const { findings: { pool }, zfs } = facts
  if (isType(facts, "zfs") === false) {
    const below = facts.devices.filter((device) => isOpaqueLoop(facts)(device) || !isPlain(device))
    return below.length > 0
      ? unknown(readsAndWrites, `whether ZFS is below ${names(below)} is not seen`)
      : no(`the filesystem is ${typeOf(facts)}`)
  }
  if (zfs === undefined) return unknown(readsAndWrites, `what ${typeOf(facts)} stands on is not seen`)
  const version = zfs.version ?? "of unknown version"
  const look = `zfs get direct ${facts.filesystem.source ?? "DATASET"}`
  if (zfs.directEnabled === null && /^(?:0|1|2\.[0-2])\./.test(version)) {
    return yes(
      readsAndWrites,
      `OpenZFS ${version} takes O_DIRECT and uses its ARC all the same`,
      "OpenZFS 2.3 or later"
    )
  }
  if (zfs.directEnabled === false) {
    return yes(
      readsAndWrites,
      `OpenZFS ${version}: its parameter zfs_dio_enabled is 0`,
      "echo 1 > /sys/module/zfs/parameters/zfs_dio_enabled"
    )
  }
  if (pool === undefined) return unknown(readsAndWrites, `OpenZFS ${version}: the pool's iostats cannot be read`, look)
  const { made, reads, writes: written } = pool
  const counted =
    `while ${made} direct writes and reads were made, the pool counted ${written.direct} writes and ${reads.direct} ` +
    `reads past the ARC, ${written.arc} writes and ${reads.arc} reads through it (kstat iostats)`
  const remedy = `zfs set direct=standard ${facts.filesystem.source ?? "DATASET"}; see ${look}`
  if (written.direct < made && written.arc >= made) return yes(readsAndWrites, counted, remedy)
  return written.direct >= made && reads.direct >= made && written.arc === 0 && reads.arc === 0
    ? no(counted)
    : unknown(readsAndWrites, `${counted}, whosoever's`, look)
}

export const flagIgnored = (facts: Facts): Decision => {
  const { openFlag, setFlag } = facts.findings
  const [written] = tried(facts, "written")
  if (setFlag === null) return unknown(readsAndWrites, notProbed(facts))
  if (setFlag === "refused" && openFlag === "refused") return no("O_DIRECT is refused, not ignored")
  if (setFlag === "ignored") {
    return yes(
      readsAndWrites,
      `fcntl(F_SETFL) takes O_DIRECT and does not keep it; open: ${openFlag}`,
      openFlag === "kept" ? "DYN_KVBM_DISK_ALLOCATOR_TYPE=open-direct (option openStrategy)" : "another filesystem"
    )
  }
  if (written === undefined || written.path === "unknown" || written.path === "not tried") {
    return unknown(readsAndWrites, written?.evidence ?? notProbed(facts))
  }
  return written.path === "buffered"
    ? yes(
      writes,
      `O_DIRECT is kept, and a write went through the page cache: ${written.evidence}`,
      elsewhere(facts)
    )
    : no(`O_DIRECT is kept, and a write was ${written.path}`)
}

export const dataJournaling = (facts: Facts): Decision => {
  const type = typeOf(facts)
  const option = findOption(facts, /^data=journal$/)
  const evidence = [
    ...(option === undefined ? [] : [`mounted with ${option}`]),
    ...(hasFlag(facts, FS_JOURNAL_DATA_FL) ? ["files made here have the inode flag j (FS_JOURNAL_DATA_FL)"] : [])
  ]
  const { statx } = facts.findings
  const remedy = hasFlag(facts, FS_JOURNAL_DATA_FL) && option === undefined
    ? "chattr -j DIR, then new files"
    : "mount with data=ordered"
  if (type === "ext3" || type === "ext4") {
    // `ext4_inode_journal_mode`: never of encrypted files; and the attribute j does nothing beside delayed allocation.
    if (hasFlag(facts, FS_ENCRYPT_FL)) return no("files made here are encrypted, and ext4 journals no data of those")
    if (statx !== undefined && statx.offsetAlignment !== 0) {
      const said = `statx answers with an alignment of ${statx.offsetAlignment}, which data journaling would not`
      return no(evidence.length === 0 ? said : `${evidence.join("; ")}, without effect: ${said}`)
    }
    // `ext4_dio_alignment`: what else answers so is verity, which no new file has, and inline data.
    if (statx !== undefined && evidence.length === 0 && !hasFlag(facts, FS_INLINE_DATA_FL)) {
      evidence.push("statx answers 0/0 for a new file, which is neither encrypted nor inline")
    }
    if (evidence.length > 0 && (statx !== undefined || option !== undefined)) {
      return yes(readsAndWrites, evidence.join("; "), remedy)
    }
    return unknown(
      readsAndWrites,
      evidence[0] ?? "no data=journal among the options; the default is in the superblock",
      "tune2fs -l DEVICE"
    )
  }
  if (statx?.offsetAlignment === 0) {
    return unknown(readsAndWrites, "statx answers 0/0, no direct I/O, as with data journaling or encryption", remedy)
  }
  return isKnown(facts) ? no(`${type} journals no data`) : undecided(facts, "data journaling")
}

const nocowInherited = (facts: Facts) => hasFlag(facts, FS_NOCOW_FL)

export const checksums = (facts: Facts): Decision => {
  const type = typeOf(facts)
  const devices = byDevice(
    facts,
    (device) => device.integrity !== null || isDm("integrity")(device),
    "checksums are kept beside the data by",
    "integritysetup without tags, or a format without protection information (nvme format --pi=0)",
    (device) => isOpaqueLoop(facts)(device) || isRemoteDevice(device)
  )
  switch (type) {
    case "btrfs":
      return nocowInherited(facts)
        ? first(no("files made here are NOCOW, and so without checksums"), devices)
        : findOption(facts, /^nodatasum$/) !== undefined
        ? first(no("mounted with nodatasum"), devices)
        : yes(readsAndWrites, "btrfs keeps checksums of the data of files that are not NOCOW", nocowRemedy)
    case "zfs":
    case "bcachefs":
      return yes(readsAndWrites, `${type} computes checksums of all data in the CPU`)
    case "lustre":
      return facts.lustreChecksums === undefined
        ? unknown(readsAndWrites, "osc.*.checksums cannot be read", "lctl get_param osc.*.checksums")
        : facts.lustreChecksums
        ? yes(readsAndWrites, "osc.*.checksums is 1: the client sums up every page", "lctl set_param osc.*.checksums=0")
        : no("osc.*.checksums is 0")
    case "nfs":
    case "nfs4": {
      const security = findOption(facts, /^sec=krb5[ip]$/)
      if (security !== undefined) {
        return yes(
          readsAndWrites,
          `mounted with ${security}: the client signs every message`,
          "mount with sec=sys or sec=krb5"
        )
      }
      return optionsKnown(facts)
        ? no("not mounted with sec=krb5i or sec=krb5p")
        : unknown(readsAndWrites, "the mount's options are not known")
    }
    default:
      return isKnown(facts)
        ? first(no(`${type} keeps no checksums of data; ${devices.evidence}`), devices)
        : undecided(facts, "checksums of data")
  }
}

export const compression = (facts: Facts): Decision => {
  const type = typeOf(facts)
  if (type === "squashfs" || type === "erofs") return yes(["read"], `${type} images are compressed, as a rule`)
  if (type === "zfs") {
    return unknown(
      readsAndWrites,
      "a property of the dataset",
      `zfs get compression ${facts.filesystem.source ?? "DATASET"}`
    )
  }
  // ext4 takes the inode flag and does nothing with it; f2fs compresses what has the flag or the right name.
  const flagged = hasFlag(facts, FS_COMPR_FL) && ["btrfs", "f2fs"].includes(type)
  const option = findOption(facts, /^(?:compress(?:-force)?(?:=|$)|compression=)/)
  const encoded = hasFlag(facts, FS_ENCRYPT_FL) ? undefined : sawExtent(facts, "encoded")
  const evidence = [
    ...(option === undefined || /=(?:no|none)$/.test(option) ? [] : [`mounted with ${option}`]),
    ...(flagged ? ["files made here have the inode flag c (FS_COMPR_FL)"] : []),
    ...(encoded === undefined ? [] : [`the probe "${encoded.id}" left encoded extents (FIEMAP)`])
  ]
  if (evidence.length > 0) {
    return yes(readsAndWrites, evidence.join("; "), type === "btrfs" ? nocowRemedy : "mount without compression")
  }
  const devices = byDevice(
    facts,
    (device) => device.kind === "zram" || isDm("vdo")(device),
    "the data is compressed by",
    "a disk that does not compress",
    isOpaqueLoop(facts)
  )
  if (!isKnown(facts)) return undecided(facts, "compression")
  if (["btrfs", "f2fs"].includes(type) && (facts.findings.inodeFlags === undefined || !optionsKnown(facts))) {
    return unknown(readsAndWrites, "neither the options nor the inode flags of a file made here are all known")
  }
  return findOption(facts, /^compress_algorithm=/) === undefined
    ? first(no(`neither options nor inode flags nor extents tell of it; ${devices.evidence}`), devices)
    : unknown(
      readsAndWrites,
      "f2fs compresses files by their names (compress_extension)",
      "mount without compress_algorithm"
    )
}

export const encryption = (facts: Facts): Decision => {
  const type = typeOf(facts)
  if (hasFlag(facts, FS_ENCRYPT_FL)) {
    return yes(
      readsAndWrites,
      `files made here are encrypted (fscrypt); statx answers ${facts.findings.statx?.offsetAlignment ?? "nothing"}`,
      "a directory without an encryption policy; or the mount option inlinecrypt on a disk that encrypts"
    )
  }
  if (type === "ecryptfs") return yes(readsAndWrites, "ecryptfs encrypts in the page cache", "another filesystem")
  const security = findOption(facts, /^(?:sec=krb5p|seal|xprtsec=m?tls)$/)
  if (security !== undefined) {
    return yes(readsAndWrites, `mounted with ${security}: the client encrypts`, "mount without it")
  }
  if (type === "nfs" || type === "nfs4") {
    return optionsKnown(facts)
      ? no("mounted without sec=krb5p and xprtsec=tls")
      : unknown(readsAndWrites, "the mount's options are not known")
  }
  if (type === "zfs") {
    return unknown(
      readsAndWrites,
      "a property of the dataset",
      `zfs get encryption ${facts.filesystem.source ?? "DATASET"}`
    )
  }
  if (!isKnown(facts)) return undecided(facts, "encryption")
  if (["ext4", "f2fs"].includes(type) && facts.findings.inodeFlags === undefined) {
    return unknown(readsAndWrites, "the inode flags of a file made here are not known", "fscryptctl get_policy DIR")
  }
  return byDevice(
    facts,
    isDm("crypt"),
    "the data is encrypted by",
    "a disk that encrypts by itself (OPAL)",
    (device) => isOpaqueLoop(facts)(device) || isRemoteDevice(device)
  )
}

export const copyOnWrite = (facts: Facts): Decision => {
  const type = typeOf(facts)
  const { nocow } = facts.findings
  if (type === "btrfs" && !nocowInherited(facts)) {
    return yes(
      writes,
      `btrfs writes every block of a file that is not NOCOW to a new place; NOCOW can${
        nocow === false ? "not" : ""
      } be set here`,
      nocow === false ? "chattr -c DIR: NOCOW and compression exclude each other" : nocowRemedy
    )
  }
  if (["zfs", "bcachefs", "nilfs2"].includes(type) || findOption(facts, /^mode=lfs$/) !== undefined) {
    return yes(writes, `${type} writes every block to a new place`)
  }
  if (!isKnown(facts)) return undecided(facts, "copy-on-write")
  const devices = byDevice(
    facts,
    isDm("snapshot", "snapshot-origin", "snapshot-merge"),
    "blocks are copied before they are first overwritten by",
    "lvremove the snapshots",
    (device) => isOpaqueLoop(facts)(device) || isDm("thin", "vdo")(device) || device.detail === "rbd"
  )
  if (type === "f2fs" && !optionsKnown(facts)) return unknown(writes, "the mount's options are not known")
  const own = type === "btrfs" ? "files made here are NOCOW" : `${type} overwrites in place what no other file shares`
  return first(no(`${own}; ${devices.evidence}`), devices)
}

export const parity = (facts: Facts): Decision => {
  if (typeOf(facts) === "zfs") return unknown(writes, "a property of the pool (raidz, draid)", "zpool status")
  const profiles = facts.btrfsProfiles ?? []
  const computed = profiles.filter((profile) => /^raid[56]$/.test(profile))
  if (computed.length > 0) {
    return yes(writes, `btrfs keeps data as ${computed.join(", ")}`, "btrfs balance start -dconvert=raid10 DIR")
  }
  if (typeOf(facts) === "btrfs" && profiles.length === 0) {
    return unknown(writes, "the profile of btrfs's data is not told", "btrfs filesystem df DIR")
  }
  return byDevice(
    facts,
    ({ detail, kind }) => kind === "md" && /^raid[456]$/.test(detail ?? ""),
    "parity is computed by",
    "RAID 10 or RAID 0",
    (device) => isDm("raid")(device) || (device.kind === "md" && device.detail === null)
  )
}

const distributed = [
  "ceph",
  "fuse.glusterfs",
  "glusterfs",
  "gpfs",
  "wekafs",
  "beegfs",
  "lustre",
  "fuse.ceph",
  "orangefs"
]

export const byServers = (what: string) => (facts: Facts): Decision => {
  const type = typeOf(facts)
  if (distributed.includes(type)) {
    return unknown(writes, `${type} decides, on the servers or in the client, about ${what}`)
  }
  if (type === "zfs") return unknown(writes, `a property of the dataset: ${what}`)
  const far = facts.devices.filter(({ detail }) => detail === "rbd")
  if (far.length > 0) return unknown(writes, `the cluster behind ${names(far)} decides about ${what}`)
  return isKnown(facts) || type === "nfs" || type === "nfs4"
    ? no(`${type} does no ${what} in the client`)
    : undecided(facts, what)
}

export const tiered: { readonly [type: string]: string } = {
  zfs: "zpool status (cache, log and special devices)",
  bcachefs: "bcachefs show-super DEVICE (foreground, background and promote targets)",
  lustre: "lfs hsm_state FILE; lctl get_param llite.*.pcc",
  gpfs: "mmlspool; mmlspolicy",
  wekafs: "weka fs (tiering)"
}
