/** Whole reports about machines that are not this one. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as DirectIo from "../../src/DirectIo.js"
import type { Profile } from "../../src/SimulatedSyscalls.js"
import { SimulatedKernel } from "../../src/SimulatedSyscalls.js"
import type { ErrnoCode } from "../../src/Syscalls.js"
import { errnos, SyscallError } from "../../src/Syscalls.js"
import type { Tree } from "./fileTree.js"
import * as disks from "./fixtures/blockDevices.js"
import * as fixtures from "./fixtures/filesystems.js"
import * as gpus from "./fixtures/gpu.js"
import type { Change, Machine } from "./machine.js"
import { answers, changes, layer } from "./machine.js"

type Report = DirectIo.DirectIoReport

const inspect = (machine: Machine, options?: DirectIo.InspectOptions) =>
  Effect.gen(function*() {
    const report = yield* DirectIo.inspect("/tmp", options)
    const kernel = yield* SimulatedKernel
    assert.deepStrictEqual(yield* kernel.leaks, { fds: [], files: [], bytes: 0, mappings: 0 })
    return report
  }).pipe(Effect.provide(layer(machine)))

const row = ({ conditions }: Report, id: string) => {
  const found = conditions.find((one) => one.id === id)
  return found ?? assert.fail(`there is no row ${id}`)
}

const applies = (report: Report, ...ids: ReadonlyArray<string>) =>
  Object.fromEntries(ids.map((id) => [id, row(report, id).applies]))

/** The rows that must not be "no" and are. */
const wrongNo = (report: Report, ...ids: ReadonlyArray<string>) =>
  ids.filter((id) => row(report, id).applies === "no").map((id) => `${id}: ${row(report, id).evidence}`)

const paths = ({ probes }: Report, file: DirectIo.Probe["file"] = "as made here") =>
  Object.fromEntries(probes.filter((probe) => probe.file === file).map(({ id, path }) => [id, path]))

const failing = (syscall: string, code: ErrnoCode) =>
  Effect.suspend(() => Effect.fail(new SyscallError({ syscall, errno: errnos[code], code })))

const multiples = (memory: number, offset: number) => ({ memory, offset, length: offset })

const everyWrite = (path: DirectIo.Probe["path"]) => ({
  extending: path,
  written: path,
  allocating: path,
  hole: path,
  preallocated: path,
  inline: path
})

/** The mount of each profile, as the kernel or its vendor shows it, and whether a block device's number is its `st_dev`. */
const mounts: {
  readonly [profile in Profile]: { readonly type: string; readonly disk: boolean; readonly options?: string }
} = {
  ext4: { type: "ext4", disk: true },
  ext2: { type: "ext2", disk: true },
  lustre: { type: "lustre", disk: false, options: "rw,checksum,flock" },
  btrfs: { type: "btrfs", disk: false, options: "rw,space_cache=v2,subvolid=5,subvol=/" },
  btrfsMirrored: { type: "btrfs", disk: false, options: "rw,space_cache=v2,subvolid=5,subvol=/" },
  tmpfs: { type: "tmpfs", disk: false, options: "rw,size=65536k" },
  ramfs: { type: "ramfs", disk: false },
  storageScale: { type: "gpfs", disk: false },
  dataJournal: { type: "ext4", disk: true, options: "rw,data=journal" }
}

const on = (profile: Profile, tree: Tree = {}, more: Omit<Machine, "profile" | "tree"> = {}): Machine => {
  const { disk, options, type } = mounts[profile]
  return {
    profile,
    ...more,
    change: changes(disk ? () => ({}) : answers({ deviceMajor: 0, deviceMinor: 40 }), more.change ?? (() => ({}))),
    tree: {
      ...fixtures.machine,
      ...fixtures.mountinfo({ type, device: disk ? "8:1" : "0:40", ...(options === undefined ? {} : { options }) }),
      ...(profile === "btrfs" ? { ...disks.btrfs("uuid", fixtures.sda1), ...fixtures.btrfsData("single") } : {}),
      ...(profile === "btrfsMirrored"
        ? { ...disks.btrfs("uuid", fixtures.sda1), ...fixtures.btrfsData("dup") }
        : {}),
      ...tree
    }
  }
}

describe("a whole report", () => {
  const device = ["sda1", "sda"]
  const cases: {
    readonly [profile in Profile]: {
      readonly io: DirectIo.IoVerdict
      readonly flags: DirectIo.KernelFacts
      readonly paths: { readonly [id: string]: DirectIo.Probe["path"] }
      readonly nocow?: { readonly [id: string]: DirectIo.Probe["path"] }
      readonly alignment: DirectIo.Alignment
      readonly devices: ReadonlyArray<string>
      readonly rows: { readonly [id: string]: DirectIo.Condition["applies"] }
    }
  } = {
    ext4: {
      io: "direct",
      flags: { release: "6.18.0", setFlag: "kept", openFlag: "kept", inodeFlags: [] },
      paths: { ...everyWrite("direct"), read: "direct", shared: "not tried" },
      alignment: {
        read: multiples(512, 512),
        write: multiples(512, 512),
        statx: { memory: 512, offset: 512, readOffset: null }
      },
      devices: device,
      rows: { "page-cache": "no", "flag-ignored": "no", "hole-filling": "no", "data-journaling": "no", parity: "no" }
    },
    ext2: {
      io: "direct",
      flags: { release: "6.18.0", setFlag: "kept", openFlag: "kept", inodeFlags: [] },
      paths: { ...everyWrite("direct"), read: "direct", preallocated: "not tried", shared: "not tried" },
      alignment: {
        read: multiples(512, 4096),
        write: multiples(512, 4096),
        statx: { memory: 512, offset: 4096, readOffset: null }
      },
      devices: device,
      rows: { preallocated: "no", "hole-filling": "no", allocating: "no", "inline-ext4": "no" }
    },
    lustre: {
      io: "direct",
      flags: { release: "6.18.0", setFlag: "kept", openFlag: "kept", inodeFlags: null },
      paths: { ...everyWrite("direct"), read: "direct", preallocated: "not tried", shared: "not tried" },
      alignment: { read: multiples(4096, 4096), write: multiples(4096, 4096), statx: null },
      devices: [],
      rows: {
        checksums: "unknown",
        "inline-lustre": "unknown",
        "inline-extent": "unknown",
        "delayed-allocation": "unknown"
      }
    },
    btrfs: {
      io: "direct-with-conditions",
      flags: { release: "6.18.0", setFlag: "kept", openFlag: "kept", inodeFlags: [] },
      paths: { ...everyWrite("buffered"), read: "direct", shared: "not tried" },
      nocow: { ...everyWrite("direct"), read: "direct", shared: "not tried" },
      alignment: { read: multiples(1, 1), write: multiples(1, 1), statx: null },
      devices: device,
      rows: { checksums: "yes", "copy-on-write": "yes", "page-cache": "yes", preallocated: "yes", parity: "no" }
    },
    btrfsMirrored: {
      io: "buffered",
      flags: { release: "6.18.0", setFlag: "kept", openFlag: "kept", inodeFlags: [] },
      paths: { ...everyWrite("buffered"), read: "direct", shared: "not tried" },
      nocow: { ...everyWrite("buffered"), read: "direct", shared: "not tried" },
      alignment: { read: multiples(1, 1), write: null, statx: null },
      devices: device,
      rows: { checksums: "yes", "copy-on-write": "yes", "page-cache": "yes", preallocated: "yes", parity: "no" }
    },
    tmpfs: {
      io: "buffered",
      flags: { release: "6.18.0", setFlag: "kept", openFlag: "kept", inodeFlags: [] },
      paths: { ...everyWrite("buffered"), read: "buffered", shared: "not tried" },
      alignment: { read: null, write: null, statx: null },
      devices: [],
      rows: { "page-cache": "yes", "flag-ignored": "yes", "read-ahead": "yes", checksums: "no", encryption: "no" }
    },
    ramfs: {
      io: "unsupported",
      flags: { release: "6.18.0", setFlag: "refused", openFlag: "refused", inodeFlags: null },
      paths: {},
      alignment: { read: null, write: null, statx: null },
      devices: [],
      rows: { "page-cache": "unknown", "flag-ignored": "no", extending: "unknown" }
    },
    storageScale: {
      io: "unknown",
      flags: { release: "6.18.0", setFlag: "ignored", openFlag: "kept", inodeFlags: null },
      paths: { ...everyWrite("unknown"), read: "unknown", shared: "not tried" },
      alignment: { read: multiples(512, 512), write: multiples(512, 512), statx: null },
      devices: [],
      rows: { "flag-ignored": "yes", "page-pool": "unknown", "page-cache": "unknown", "read-ahead": "unknown" }
    },
    dataJournal: {
      io: "buffered",
      flags: { release: "6.18.0", setFlag: "kept", openFlag: "kept", inodeFlags: [] },
      paths: { ...everyWrite("buffered"), read: "unknown", shared: "not tried" },
      alignment: { read: null, write: null, statx: { memory: 0, offset: 0, readOffset: null } },
      devices: device,
      rows: { "data-journaling": "yes", "page-cache": "yes", "flag-ignored": "yes", "copy-on-write": "no" }
    }
  }

  const profiles = [
    "ext4",
    "ext2",
    "lustre",
    "btrfs",
    "btrfsMirrored",
    "tmpfs",
    "ramfs",
    "storageScale",
    "dataJournal"
  ] as const
  for (const profile of profiles) {
    it.effect(profile, () =>
      Effect.gen(function*() {
        const expected = cases[profile]
        const report = yield* inspect(on(profile))
        assert.strictEqual(report.verdict.io, expected.io, report.verdict.reasons.io.join("; "))
        assert.deepStrictEqual(report.kernel, expected.flags)
        assert.deepStrictEqual(paths(report), expected.paths)
        assert.deepStrictEqual(paths(report, "nocow"), expected.nocow ?? {})
        assert.deepStrictEqual(report.alignment, expected.alignment)
        assert.deepStrictEqual(report.devices.map(({ name }) => name), expected.devices)
        assert.deepStrictEqual(applies(report, ...Object.keys(expected.rows)), expected.rows)
        assert.isNull(report.probeFailure)
        assert.isNull(report.measurement)
        assert.isNotEmpty(report.verdict.reasons.io)
        assert.strictEqual(report.filesystem.type, mounts[profile].type)
        assert.strictEqual(report.filesystem.mountPoint, "/tmp")
        assert.strictEqual(report.filesystem.total, 1024 ** 3)
        const json = yield* Schema.encode(Schema.parseJson(DirectIo.DirectIoReport))(report)
        assert.deepStrictEqual(yield* Schema.decodeUnknown(Schema.parseJson(DirectIo.DirectIoReport))(json), report)
      }))
  }

  it.effect("says what to do where fcntl ignores the flag and open does not", () =>
    Effect.gen(function*() {
      const report = yield* inspect(on("storageScale"))
      const { evidence, remedy } = row(report, "flag-ignored")
      assert.include(evidence, "open: kept")
      assert.include(remedy, "DYN_KVBM_DISK_ALLOCATOR_TYPE=open-direct")
      assert.include(remedy, "openStrategy")
    }))

  it.effect("unlinks its files before it writes to them", () =>
    Effect.gen(function*() {
      yield* DirectIo.inspect("/tmp")
      const journal = yield* Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)
      const linked = new Set<number>()
      for (const { fd, result, syscall } of journal) {
        if (syscall === "mkostemp" && typeof result === "number") linked.add(result)
        else if (syscall === "unlink") linked.clear()
        else if (syscall === "pwrite" && fd !== undefined) assert.isFalse(linked.has(fd))
      }
      assert.isTrue(journal.some(({ syscall }) => syscall === "pwrite"))
    }).pipe(Effect.provide(layer(on("ext4")))))
})

/** The keys of each object of the JSON form, by its path; `[]` stands for every element. */
const form: { readonly [path: string]: ReadonlyArray<string> } = {
  "": [
    "alignment",
    "conditions",
    "devices",
    "directory",
    "filesystem",
    "format",
    "gpu",
    "kernel",
    "measurement",
    "probeFailure",
    "probes",
    "unseen",
    "verdict"
  ],
  ".alignment": ["read", "statx", "write"],
  ".alignment.read": ["length", "memory", "offset"],
  ".alignment.statx": ["memory", "offset", "readOffset"],
  ".alignment.write": ["length", "memory", "offset"],
  ".conditions[]": ["affects", "applies", "bearsOn", "evidence", "id", "remedy", "section", "title"],
  ".devices[]": [
    "dax",
    "detail",
    "integrity",
    "kind",
    "logicalSector",
    "loopDirectIo",
    "name",
    "number",
    "over",
    "physicalSector",
    "readAhead",
    "rotational",
    "transport"
  ],
  ".filesystem": ["available", "blockSize", "magic", "mountId", "mountPoint", "options", "source", "total", "type"],
  ".gpu": ["configuration", "cuFile", "driver", "gpus", "nvidiaFs", "peerToPeerMemory"],
  ".gpu.configuration": ["allowCompatMode", "forceCompatMode", "path", "problem", "usePciP2pDma"],
  ".gpu.nvidiaFs": ["modules", "version"],
  ".kernel": ["inodeFlags", "openFlag", "release", "setFlag"],
  ".measurement": ["blockSize", "depth", "engine", "firstWriteRatio", "firstWrites", "reads", "rewrites", "rounds"],
  ".probeFailure": ["code", "message", "step"],
  ".probes[]": [
    "bytes",
    "cached",
    "dirtied",
    "evidence",
    "extentsAfter",
    "extentsBefore",
    "file",
    "id",
    "mapped",
    "path"
  ],
  ".probes[].cached": ["after", "before"],
  ".probes[].mapped": ["after", "before"],
  ".unseen[]": ["reason", "what"],
  ".verdict": ["gpu", "io", "reasons"],
  ".verdict.reasons": ["gpu", "io"]
}

/** Adds the keys of what `value` consists of. */
const collect = (value: unknown, path: string, found: Map<string, Set<string>>): void => {
  if (Array.isArray(value)) { for (const one of value) collect(one, `${path}[]`, found) }
  else if (typeof value === "object" && value !== null) {
    const keys = found.get(path) ?? new Set()
    found.set(path, keys)
    for (const [key, own] of Object.entries(value)) {
      keys.add(key)
      collect(own, `${path}.${key}`, found)
    }
  }
}

/** No file can be made, without a name or with one. */
const unmakeable = (code: ErrnoCode): Change => (kernel) => ({
  mkostemp: () => failing("mkostemp", code),
  open: (path, flags) =>
    (flags & kernel.flags.O_TMPFILE) === kernel.flags.O_TMPFILE ? failing("open", code) : kernel.open(path, flags)
})

it.live("the keys of the JSON form are what they were", () =>
  Effect.gen(function*() {
    const readOffset = answers({
      directIo: { memoryAlignment: 512, offsetAlignment: 512, readOffsetAlignment: 512 }
    })
    const full = yield* inspect(on("ext4", gpus.withNvidiaFs, { change: readOffset }), { measure: true })
    const broken = yield* inspect(on("ext4", {}, { change: unmakeable("EACCES") }))
    assert.isNotNull(full.measurement)
    assert.isNotNull(broken.probeFailure)
    const hidden = yield* inspect({})
    assert.isNotEmpty(hidden.unseen)
    const found = new Map<string, Set<string>>()
    for (const report of [full, broken, hidden]) {
      const json = yield* Schema.encode(Schema.parseJson(DirectIo.DirectIoReport))(report)
      collect(JSON.parse(json), "", found)
    }
    const sorted = Object.fromEntries([...found].map(([path, keys]) => [path, [...keys].sort()]))
    assert.deepStrictEqual(sorted, form)
    assert.strictEqual(full.format, "effect-disk-storage doctor 1")
  }))

describe("the mount", () => {
  it.effect("is that of statx's id, not the one with the longest path", () =>
    Effect.gen(function*() {
      const report = yield* inspect({
        profile: "ext4",
        tree: {
          ...fixtures.machine,
          ...fixtures.mountinfo(
            { id: 22, at: "/", type: "overlay", device: "0:30", source: "overlay" },
            { id: 1, at: "/", type: "ext4", options: "rw,data=ordered" },
            { id: 23, at: "/tmp", type: "tmpfs", device: "0:31", source: "tmpfs", options: "rw,size=1k" }
          )
        }
      })
      assert.deepInclude(report.filesystem, {
        type: "ext4",
        mountId: 1,
        mountPoint: "/",
        source: "/dev/sda1",
        options: ["rw", "relatime", "data=ordered"]
      })
      assert.deepStrictEqual(report.devices.map(({ name }) => name), ["sda1", "sda"])
      assert.deepStrictEqual(report.unseen, [])
    }))

  const hidden = [
    ["that is not in mountinfo", { ...fixtures.machine, ...fixtures.mountinfo({ id: 99, type: "ext4" }) }, () => ({})],
    [
      "without an id",
      { ...fixtures.machine, ...fixtures.mountinfo({ type: "ext4" }) },
      answers({ mountId: undefined })
    ],
    ["without /proc", {}, () => ({})]
  ] as const satisfies ReadonlyArray<readonly [string, Tree, Change]>
  for (const [name, tree, change] of hidden) {
    it.effect(`${name}: a report all the same`, () =>
      Effect.gen(function*() {
        const report = yield* inspect({ profile: "ext4", tree, change })
        assert.include(["direct", "direct-with-conditions", "unknown"], report.verdict.io)
        assert.deepInclude(report.filesystem, { type: "ext2/ext3/ext4", mountPoint: null, source: null, options: [] })
        assert.isTrue(report.unseen.some(({ what }) => what === "the mount" || what === "/proc/self/mountinfo"))
        assert.deepStrictEqual(wrongNo(report, "fscache", "data-journaling"), [])
        assert.isTrue(Schema.is(DirectIo.DirectIoReport)(report))
      }))
  }

  it.effect("without /proc and /sys nothing about devices is denied", () =>
    Effect.gen(function*() {
      const report = yield* inspect({ profile: "ext4" })
      assert.isNull(report.kernel.release)
      assert.deepStrictEqual(
        applies(report, "encryption", "parity", "compression", "storage-tiers", "loop-page-cache"),
        {
          encryption: "unknown",
          parity: "unknown",
          compression: "unknown",
          "storage-tiers": "unknown",
          "loop-page-cache": "unknown"
        }
      )
    }))

  it.effect("on a device that sysfs does not have", () =>
    Effect.gen(function*() {
      const report = yield* inspect({
        ...on("ext4"),
        change: answers({ deviceMajor: 9, deviceMinor: 127 })
      })
      assert.deepStrictEqual(report.devices, [])
      assert.isTrue(report.unseen.some(({ what }) => what.includes("9:127")))
      assert.strictEqual(row(report, "parity").applies, "unknown")
    }))
})

describe("an overlay", () => {
  /** `/upper` lies on another mount, the second. */
  const upper: Change = (kernel) => {
    const above = new Set<number>()
    return {
      open: (path, flags) =>
        Effect.tap(
          kernel.open(path, flags),
          (fd) => Effect.sync(() => path === "/upper" ? above.add(fd) : above.delete(fd))
        ),
      statx: (fd, path) =>
        Effect.map(kernel.statx(fd, path), (own) =>
          above.has(fd)
            ? { ...own, mountId: 2 }
            : { ...own, deviceMajor: 0, deviceMinor: 30 }),
      fstatfs: (fd) => Effect.map(kernel.fstatfs(fd), (own) => above.has(fd) ? own : { ...own, type: 0x794c_7630 })
    }
  }
  const overlay = (options: string, second: { readonly type: string; readonly options?: string }): Machine => ({
    profile: "ext4",
    directories: ["/tmp", "/upper"],
    change: upper,
    tree: {
      ...fixtures.machine,
      ...fixtures.mountinfo(
        { type: "overlay", device: "0:30", source: "overlay", options },
        { id: 2, at: "/upper", ...second }
      )
    }
  })

  it.effect("has the disks and the rows of its upper directory", () =>
    Effect.gen(function*() {
      const report = yield* inspect(overlay("rw,lowerdir=/lower,upperdir=/upper,workdir=/work", {
        type: "ext4",
        options: "rw,data=journal"
      }))
      assert.strictEqual(report.filesystem.type, "overlay")
      assert.deepStrictEqual(report.devices.map(({ name }) => name), ["sda1", "sda"])
      assert.deepStrictEqual(applies(report, "data-journaling", "inline-ext4", "parity"), {
        // statx has an alignment, which it would not have with data journaling.
        "data-journaling": "no",
        "inline-ext4": "no",
        parity: "no"
      })
    }))

  it.effect("whose upper directory is not visible", () =>
    Effect.gen(function*() {
      const report = yield* inspect(
        overlay("rw,lowerdir=/lower,upperdir=/elsewhere/upper,workdir=/work", { type: "ext4" })
      )
      assert.deepStrictEqual(report.devices, [])
      assert.isTrue(report.unseen.some(({ what }) => what.includes("overlay")))
      assert.deepStrictEqual(
        wrongNo(
          report,
          "encryption",
          "checksums",
          "compression",
          "parity",
          "copy-on-write",
          "deduplication",
          "data-journaling",
          "erasure-coding",
          "zfs-arc"
        ),
        []
      )
    }))

  it.effect("whose upper directory lies on ZFS", () =>
    Effect.gen(function*() {
      const report = yield* inspect(overlay("rw,lowerdir=/lower,upperdir=/upper,workdir=/work", { type: "zfs" }))
      assert.deepStrictEqual(wrongNo(report, "zfs-arc", "compression", "checksums"), [])
    }))
})

describe("what procfs and sysfs say of a filesystem", () => {
  const magic = (type: number): Change => answers({ directIo: undefined }, { type })
  const zfs = (tree: Tree, iostats?: () => string): Machine => ({
    ...on("lustre", {
      ...tree,
      ...fixtures.mountinfo({ type: "zfs", device: "0:40", source: "tank/cache", options: "rw,xattr,posixacl" })
    }),
    change: changes(answers({ deviceMajor: 0, deviceMinor: 40 }), magic(0x2fc1_2fc1)),
    ...(iostats === undefined ? {} : { texts: { "/proc/spl/kstat/zfs/tank/iostats": iostats } })
  })
  const counting = (direct: boolean) => {
    let asked = 0
    return () => {
      const made = 10 * asked++
      return fixtures.zfsIostats(direct ? { direct: made, arc: 7 } : { direct: 7, arc: made })
    }
  }

  for (
    const [name, machine, expected] of [
      ["OpenZFS 2.2", zfs(fixtures.zfsModule("2.2.6-1")), "yes"],
      ["OpenZFS 2.3, zfs_dio_enabled 0", zfs(fixtures.zfsModule("2.3.1-1", 0), counting(true)), "yes"],
      ["OpenZFS 2.3, counting direct writes and reads", zfs(fixtures.zfsModule("2.3.1-1", 1), counting(true)), "no"],
      ["OpenZFS 2.3, counting those of its ARC", zfs(fixtures.zfsModule("2.3.1-1", 1), counting(false)), "yes"],
      ["OpenZFS 2.3, whose counts are not there", zfs(fixtures.zfsModule("2.3.1-1", 1)), "unknown"]
    ] as const
  ) {
    it.effect(name, () =>
      Effect.gen(function*() {
        const report = yield* inspect(machine)
        assert.strictEqual(row(report, "zfs-arc").applies, expected, row(report, "zfs-arc").evidence)
        assert.notStrictEqual(row(report, "read-ahead").applies, "no")
        if (expected === "yes") assert.strictEqual(report.verdict.io, "buffered")
        else assert.notStrictEqual(report.verdict.io, "buffered")
        if (expected === "unknown") assert.strictEqual(report.verdict.io, "unknown")
      }))
  }

  for (
    const [name, tree, expected] of [
      ["off", fixtures.lustreChecksums("0", "0"), "no"],
      ["on for one target", fixtures.lustreChecksums("0", "1"), "yes"],
      ["unreadable", {}, "unknown"],
      [
        "unreadable for one target",
        { ...fixtures.lustreChecksums("0"), "/sys/fs/lustre/osc/other/checksums": { refused: "PermissionDenied" } },
        "unknown"
      ]
    ] as const satisfies ReadonlyArray<readonly [string, Tree, string]>
  ) {
    it.effect(`Lustre's checksums: ${name}`, () =>
      Effect.map(
        inspect(on("lustre", tree)),
        (report) => assert.strictEqual(row(report, "checksums").applies, expected)
      ))
  }

  for (
    const [source, expected] of [
      ["10.0.0.1@o2ib:/scratch", "no"],
      ["10.0.0.1@tcp:/scratch", "yes"],
      ["10.0.0.1@o2ib,10.0.0.1@tcp:/scratch", "unknown"]
    ] as const
  ) {
    it.effect(`Lustre from ${source}`, () =>
      Effect.gen(function*() {
        const report = yield* inspect(on("lustre", fixtures.mountinfo({ type: "lustre", device: "0:40", source })))
        assert.deepStrictEqual(applies(report, "remote-without-rdma", "rdma-mount"), {
          "remote-without-rdma": expected,
          "rdma-mount": expected
        })
      }))
  }

  for (const [proto, expected] of [["tcp", "yes"], ["rdma", "no"]] as const) {
    it.effect(`NFS over ${proto}`, () =>
      Effect.gen(function*() {
        const mount = fixtures.mountinfo({
          type: "nfs4",
          device: "0:40",
          source: "10.0.0.5:/export",
          options: `rw,vers=4.2,hard,proto=${proto},port=20049,sec=krb5p`
        })
        const report = yield* inspect({
          ...on("lustre", mount),
          change: changes(magic(0x6969), answers({ deviceMajor: 0 }))
        })
        assert.deepStrictEqual(applies(report, "remote-without-rdma", "rdma-mount", "encryption", "loop-page-cache"), {
          "remote-without-rdma": expected,
          "rdma-mount": expected,
          encryption: "yes",
          "loop-page-cache": "no"
        })
      }))
  }

  it.effect("btrfs with parity", () =>
    Effect.gen(function*() {
      const report = yield* inspect(on("btrfs", fixtures.btrfsData("raid5")))
      assert.strictEqual(row(report, "parity").applies, "yes")
      const { "/sys/fs/btrfs/uuid/allocation/data/single/total_bytes": _, ...tree } = on("btrfs").tree ?? {}
      const untold = yield* inspect({ ...on("btrfs"), tree })
      assert.strictEqual(row(untold, "parity").applies, "unknown")
    }))

  it.effect("a FUSE filesystem says nothing of what its daemon does", () =>
    Effect.gen(function*() {
      const mount = fixtures.mountinfo({ type: "fuse.foo", device: "0:40", source: "foo" })
      const report = yield* inspect({
        ...on("lustre", mount),
        change: changes(answers({ deviceMajor: 0 }), magic(0x6573_5546))
      })
      assert.strictEqual(report.verdict.io, "unknown")
      assert.deepStrictEqual(
        wrongNo(report, "page-cache", "read-ahead", "flag-ignored", "checksums", "encryption", "zfs-arc", "extending"),
        []
      )
    }))
})

describe("writes into holes", () => {
  /** A filesystem that writes into holes through the page cache, after it took mapped pages out, and drops what it cached. */
  const buffering = () => {
    let dirtied = 1000
    const change: Change = (kernel) => ({
      pwrite: (fd, from, offset) =>
        Effect.gen(function*() {
          const map = yield* Effect.orElseSucceed(kernel.fiemap(fd, offset, from.byteLength), () => [])
          if (map.length === 0) dirtied += Math.ceil(from.byteLength / 4096)
          return yield* kernel.pwrite(fd, from, offset)
        })
    })
    return on("ext2", {}, { change, texts: { "/proc/vmstat": () => fixtures.vmstat(dirtied) } })
  }

  it.effect("that dirty as many pages every time", () =>
    Effect.gen(function*() {
      const report = yield* inspect(buffering())
      assert.deepInclude(paths(report), { hole: "buffered", allocating: "buffered", written: "direct" })
      assert.deepStrictEqual(applies(report, "hole-filling", "allocating"), {
        "hole-filling": "yes",
        allocating: "yes"
      })
      assert.include(row(report, "hole-filling").remedy, "prewrite")
      assert.strictEqual(report.verdict.io, "direct-with-conditions")
    }))

  it.effect("on a kernel that does not count", () =>
    Effect.gen(function*() {
      const { "/proc/vmstat": _, ...tree } = on("ext2").tree ?? {}
      const report = yield* inspect({ ...on("ext2"), tree })
      assert.deepStrictEqual(wrongNo(report, "hole-filling", "allocating"), [])
      assert.notStrictEqual(report.verdict.io, "direct")
    }))

  it.effect("above a loop device whose file is dirtied as well", () =>
    Effect.gen(function*() {
      const loop: Tree = {
        ...disks.loop(0, "/disk.img", 0),
        "/disk.img": { dev: 0x0801 },
        ...fixtures.mountinfo({ type: "ext2", device: "7:0", source: "/dev/loop0" })
      }
      const machine = buffering()
      const report = yield* inspect({
        ...machine,
        tree: { ...machine.tree, ...loop },
        change: changes(machine.change ?? (() => ({})), answers({ deviceMajor: 7, deviceMinor: 0 }))
      })
      assert.deepStrictEqual(report.devices.map(({ name }) => name), ["loop0", "sda1", "sda"])
      assert.deepStrictEqual(applies(report, "loop-page-cache", "hole-filling"), {
        "loop-page-cache": "yes",
        "hole-filling": "unknown"
      })
    }))
})

describe("a directory that cannot be written to", () => {
  for (
    const [code, verdict, said] of [
      ["EROFS", "unsupported", "read-only"],
      ["EACCES", "unknown", "may not make files"],
      ["ENOSPC", "unknown", "full"],
      ["EDQUOT", "unknown", "quota"],
      ["EMFILE", "unknown", "descriptor"]
    ] as const
  ) {
    it.effect(code, () =>
      Effect.gen(function*() {
        const report = yield* inspect(on("ext4", {}, { change: unmakeable(code) }))
        assert.strictEqual(report.verdict.io, verdict)
        assert.deepInclude(report.probeFailure, { step: "create a file", code })
        assert.include(report.probeFailure?.message, said)
        assert.include(report.verdict.reasons.io.join(), said)
        assert.deepStrictEqual(report.probes, [])
        assert.deepStrictEqual(report.devices.map(({ name }) => name), ["sda1", "sda"])
        assert.deepStrictEqual(wrongNo(report, "page-cache", "extending", "delayed-allocation", "encryption"), [])
      }))
  }

  it.effect("whose file cannot be unlinked: it is named", () =>
    Effect.gen(function*() {
      const machine = on("lustre", {}, { change: () => ({ unlink: () => failing("unlink", "EPERM") }) })
      const report = yield* Effect.provide(DirectIo.inspect("/tmp"), layer(machine))
      assert.strictEqual(report.probeFailure?.step, "unlink the file")
      assert.match(
        report.probeFailure?.message ?? "",
        /empty file \/tmp\/dynamo-kvbm-disk-cache-eds-\w+ remains: remove it/
      )
    }))

  it.effect("that is full once the file is there", () =>
    Effect.gen(function*() {
      const report = yield* inspect(on("ext4", {}, { capacity: 128 * 1024 }))
      assert.strictEqual(report.probeFailure?.code, "ENOSPC")
      assert.strictEqual(report.verdict.io, "unknown")
      assert.isNotEmpty(report.probes)
    }))

  it.effect("or is not there at all", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(DirectIo.inspect("/nowhere"))
      assert.strictEqual(failure._tag, "DirectoryUnusable")
    }).pipe(Effect.provide(layer(on("ext4")))))
})

it.effect("I/O that is refused", () =>
  Effect.gen(function*() {
    const refusing: Change = (kernel) => ({
      pwrite: (fd, from, offset) =>
        Effect.flatMap(kernel.fcntlGetFlags(fd), (flags) =>
          (flags & kernel.flags.O_DIRECT) === 0 ? kernel.pwrite(fd, from, offset) : failing("pwrite", "EINVAL"))
    })
    const report = yield* inspect(on("ext4", {}, { change: refusing }))
    assert.strictEqual(report.verdict.io, "unsupported")
    assert.strictEqual(paths(report)["written"], "refused")
    assert.isNull(report.alignment.write)
    assert.strictEqual(row(report, "extending").applies, "yes")
  }))

it.effect("an encrypted directory, and one with the inode flags of compression and journaling", () =>
  Effect.gen(function*() {
    const flagged = (flags: number, profile: Profile = "ext4") =>
      inspect(on(profile, {}, { change: () => ({ ioctlGetFlags: () => Effect.succeed(flags) }) }))
    const encrypted = yield* flagged(0x800)
    assert.deepStrictEqual(encrypted.kernel.inodeFlags, ["ENCRYPT"])
    assert.strictEqual(row(encrypted, "encryption").applies, "yes")
    assert.strictEqual(encrypted.verdict.io, "direct-with-conditions")
    assert.strictEqual(row(yield* flagged(0x4000, "dataJournal"), "data-journaling").applies, "yes")
    assert.strictEqual(row(yield* flagged(0x4, "btrfs"), "compression").applies, "yes")
    const nocow = yield* flagged(0x80_0000, "btrfs")
    assert.deepStrictEqual(applies(nocow, "copy-on-write", "checksums"), { "copy-on-write": "no", checksums: "no" })
    assert.deepStrictEqual(paths(nocow, "nocow"), {})
  }))

it.effect("btrfs where NOCOW is refused", () =>
  Effect.gen(function*() {
    const report = yield* inspect(
      on("btrfs", {}, { change: () => ({ ioctlSetFlags: () => failing("ioctl", "EINVAL") }) })
    )
    assert.strictEqual(report.verdict.io, "buffered")
    assert.deepStrictEqual(paths(report, "nocow"), {})
    assert.include(row(report, "copy-on-write").remedy, "chattr -c")
  }))
