import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { existsSync, statSync } from "node:fs"
import { BlockDevice } from "../../src/DirectIo.js"
import { stackOf } from "../../src/internal/directIo/blockDevices.js"
import { dmTarget } from "../../src/internal/directIo/dmTarget.js"
import { type Mount, readMounts } from "../../src/internal/directIo/mounts.js"
import { layer, type Tree } from "./fileTree.js"
import * as fixtures from "./fixtures/blockDevices.js"

const numbered = (device: string): Mount["device"] => {
  const [major = "", minor = ""] = device.split(":")
  return { major: Number(major), minor: Number(minor) }
}

const mountOf = (type: string, source: string, device = "0:50"): Mount => ({
  id: 50,
  device: numbered(device),
  root: "/",
  mountPoint: "/data",
  type,
  source,
  options: ["rw"],
  superOptions: ["rw"]
})

const stack = (device: string, tree: Tree, mount?: Mount, mounts: ReadonlyArray<Mount> = []) =>
  Effect.provide(stackOf(numbered(device), mount, mounts), layer(tree))

/** `name kind detail transport` of each device, and what is unseen. */
const outline = (device: string, tree: Tree, mount?: Mount, mounts: ReadonlyArray<Mount> = []) =>
  Effect.map(stack(device, tree, mount, mounts), ({ devices, unseen }) => ({
    devices: devices.map(({ detail, kind, name, transport }) => `${name} ${kind} ${detail} ${transport}`),
    unseen: unseen.map(({ what }) => what)
  }))

const shows = (device: string, tree: Tree, ...devices: ReadonlyArray<string>) =>
  Effect.map(outline(device, tree), (found) => assert.deepStrictEqual(found, { devices: [...devices], unseen: [] }))

describe("one device", () => {
  it.effect("a virtio disk, with all that its queue says, in bytes", () =>
    Effect.gen(function*() {
      const { devices, unseen } = yield* stack("254:0", fixtures.vda)
      assert.deepStrictEqual(unseen, [])
      assert.deepStrictEqual(devices, [{
        name: "vda",
        number: "254:0",
        kind: "virtio",
        over: [],
        detail: null,
        transport: "virtio",
        rotational: true,
        logicalSector: 512,
        physicalSector: 4096,
        readAhead: 8_388_608,
        dax: false,
        integrity: null,
        loopDirectIo: null
      }])
      assert.isTrue(Schema.is(Schema.Array(BlockDevice))(devices))
    }))

  it.effect("a partition and its disk", () =>
    Effect.gen(function*() {
      const { devices } = yield* stack("259:1", { ...fixtures.nvme(0), ...fixtures.nvmePartition(0) })
      const [partition, disk] = devices
      assert.deepInclude(partition, { name: "nvme0n1p1", kind: "partition", over: ["nvme0n1"], logicalSector: null })
      assert.deepInclude(disk, { name: "nvme0n1", kind: "nvme", number: "259:0", transport: "pcie", rotational: false })
      assert.strictEqual(devices.length, 2)
      yield* shows("179:2", fixtures.mmc, "mmcblk0p2 partition null null", "mmcblk0 other null mmc")
    }))

  it.effect("keeps protection information or does not", () =>
    Effect.gen(function*() {
      for (
        const [format, expected] of [["T10-DIF-TYPE1-CRC", "T10-DIF-TYPE1-CRC"], ["nop", null], ["none", null]] as const
      ) {
        const { devices: [disk] } = yield* stack("259:0", fixtures.nvme(0, format))
        assert.strictEqual(disk?.integrity, expected)
      }
    }))

  it.effect("NVMe, by its controller's transport", () =>
    Effect.gen(function*() {
      yield* shows("259:0", fixtures.nvme(0), "nvme0n1 nvme null pcie")
      yield* shows("259:40", fixtures.nvmeFabrics("tcp"), "nvme4n1 nvme null tcp")
      yield* shows("259:40", fixtures.nvmeFabrics("rdma"), "nvme4n1 nvme null rdma")
      yield* shows("259:50", fixtures.nvmeHead("rdma", "rdma"), "nvme5n1 nvme null rdma")
      yield* shows("259:50", fixtures.nvmeHead("tcp", "rdma"), "nvme5n1 nvme null rdma+tcp")
      yield* shows("259:50", fixtures.nvmeHead(), "nvme5n1 nvme null null")
    }))

  it.effect("a SCSI disk, by what it hangs below", () =>
    Effect.gen(function*() {
      const parents = [
        ["pci0000:00/0000:00:1f.2/ata1", "sata"],
        ["pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0", "usb"],
        ["pci0000:00/0000:00:03.0/virtio0", "virtio"],
        ["pci0000:00/0000:00:1c.0/0000:03:00.0", "null"]
      ] as const
      for (const [parent, transport] of parents) {
        yield* shows("8:0", fixtures.sdaAt(parent), `sda scsi null ${transport}`)
      }
      const targets = [
        ["platform/host3/session1/target3:0:0/3:0:0:1/block/sda", "iscsi"],
        ["pci0000:00/0000:00:01.0/0000:01:00.0/host1/rport-1:0-2/target1:0:0/1:0:0:0/block/sda", "fc"],
        [
          "pci0000:00/0000:00:01.0/0000:01:00.0/host2/port-2:0/end_device-2:0/target2:0:0/2:0:0:0/block/sda",
          "sas"
        ]
      ] as const
      for (const [directory, transport] of targets) {
        yield* shows("8:0", fixtures.device(directory, "8:0"), `sda scsi null ${transport}`)
      }
    }))

  it.effect("persistent memory, with DAX", () =>
    Effect.gen(function*() {
      const { devices: [pmem] } = yield* stack("259:60", fixtures.pmem)
      assert.deepInclude(pmem, { name: "pmem0", kind: "pmem", dax: true, transport: null })
    }))

  it.effect("a disk across a network, by its driver", () =>
    Effect.gen(function*() {
      yield* shows("43:0", fixtures.nbd, "nbd0 network nbd null")
      yield* shows("251:0", fixtures.rbd, "rbd0 network rbd null")
      yield* shows("147:0", fixtures.drbd, "drbd0 network drbd null", "sdb scsi null sata")
      yield* shows("152:272", fixtures.aoe, "etherd/e1.1 network aoe null")
    }))

  it.effect("zram", () => shows("253:0", fixtures.zram0, "zram0 zram null null"))
})

describe("md and bcache", () => {
  const members: Tree = { ...fixtures.nvme(0), ...fixtures.nvmePartition(0), ...fixtures.nvme(1) }

  for (const level of ["raid0", "raid1", "raid5", "raid6"]) {
    it.effect(`md ${level}: depth first`, () =>
      Effect.gen(function*() {
        const tree = { ...members, ...fixtures.md(level, fixtures.nvmePartitionPath(0), fixtures.nvmePath(1)) }
        yield* shows(
          "9:0",
          tree,
          `md0 md ${level} null`,
          "nvme0n1p1 partition null null",
          "nvme0n1 nvme null pcie",
          "nvme1n1 nvme null pcie"
        )
        const { devices: [top] } = yield* stack("9:0", tree)
        assert.deepStrictEqual(top?.over, ["nvme0n1p1", "nvme1n1"])
      }))
  }

  it.effect("bcache, with the mode in use; none before there is a cache", () =>
    Effect.gen(function*() {
      const below = ["nvme0n1 nvme null pcie", "sdb scsi null sata"]
      const modes = "writethrough [writeback] writearound none"
      yield* shows("251:0", fixtures.bcache(modes, "clean"), "bcache0 bcache writeback null", ...below)
      yield* shows("251:0", fixtures.bcache(modes, "no cache"), "bcache0 bcache none null", ...below)
    }))
})

describe("device-mapper", () => {
  const disks: Tree = { ...fixtures.nvme(0), ...fixtures.nvme(1), ...fixtures.sd("b"), ...fixtures.sd("c") }
  const { dm, dmPath, luks, lvm, nvmePath, sdPath } = fixtures
  const nvme0 = "nvme0n1 nvme null pcie"
  const nvme1 = "nvme1n1 nvme null pcie"

  it.effect("crypt over LVM over NVMe", () =>
    shows(
      "252:1",
      { ...disks, ...dm(0, "vg-data", lvm("data"), nvmePath(0)), ...dm(1, "secret", luks, dmPath(0)) },
      "dm-1 dm crypt null",
      "dm-0 dm linear null",
      nvme0
    ))

  it.effect("LVM on several disks is linear or striped, which nothing tells apart", () =>
    shows(
      "252:0",
      { ...disks, ...dm(0, "vg-data", lvm("data"), nvmePath(0), nvmePath(1)) },
      "dm-0 dm linear or striped null",
      nvme0,
      nvme1
    ))

  it.effect("LVM's cache and writecache", () =>
    Effect.gen(function*() {
      const cache: Tree = {
        ...disks,
        ...dm(0, "vg-slow_corig", `${lvm("origin")}-real`, sdPath("b")),
        ...dm(1, "vg-fast_cpool_cdata", `${lvm("data")}-cdata`, nvmePath(0)),
        ...dm(2, "vg-fast_cpool_cmeta", `${lvm("meta")}-cmeta`, nvmePath(0)),
        ...dm(3, "vg-slow", lvm("slow"), dmPath(0), dmPath(1), dmPath(2))
      }
      yield* shows(
        "252:3",
        cache,
        "dm-3 dm cache null",
        "dm-0 dm linear null",
        "sdb scsi null sata",
        "dm-1 dm linear null",
        nvme0,
        "dm-2 dm linear null"
      )
      const writecache: Tree = {
        ...disks,
        ...dm(0, "vg-slow_wcorig", `${lvm("origin")}-real`, sdPath("b")),
        ...dm(1, "vg-fast_cvol", `${lvm("fast")}-cvol`, nvmePath(0)),
        ...dm(2, "vg-slow", lvm("slow"), dmPath(0), dmPath(1))
      }
      const { devices: [top] } = yield* outline("252:2", writecache)
      assert.strictEqual(top, "dm-2 dm writecache null")
    }))

  it.effect("LVM's raid over integrity", () =>
    shows(
      "252:3",
      {
        ...disks,
        ...dm(0, "vg-r_rimage_0_iorig", `${lvm("iorig")}-real`, nvmePath(0)),
        ...dm(1, "vg-r_rimage_0_imeta", `${lvm("imeta")}-real`, nvmePath(0)),
        ...dm(2, "vg-r_rimage_0", `${lvm("image")}-real`, dmPath(0), dmPath(1)),
        ...dm(3, "vg-r", lvm("r"), dmPath(2))
      },
      "dm-3 dm raid null",
      "dm-2 dm integrity null",
      "dm-0 dm linear null",
      nvme0,
      "dm-1 dm linear null"
    ))

  it.effect("multipath, with a partition by kpartx", () =>
    shows(
      "252:1",
      {
        ...disks,
        ...dm(0, "mpatha", "mpath-3600a0b80002", sdPath("b"), sdPath("c")),
        ...dm(1, "mpatha1", "part1-mpath-3600a0b80002", dmPath(0))
      },
      "dm-1 dm linear null",
      "dm-0 dm multipath null",
      "sdb scsi null sata",
      "sdc scsi null sata"
    ))

  it.effect("a target that nothing tells is unseen, with the command that tells", () =>
    Effect.gen(function*() {
      for (
        const uuid of ["", "DMRAID-isw_volume", "CRYPT-LUKS2-OPAL-6f0a7b1e-x", "CRYPT-SUBDEV-6f0a-x-hotzone-forward"]
      ) {
        const { devices: [top], unseen } = yield* stack("252:0", { ...disks, ...dm(0, "odd", uuid, nvmePath(0)) })
        assert.strictEqual(top?.detail, null)
        assert.strictEqual(unseen.length, 1)
        assert.include(unseen[0]?.reason, "dmsetup table odd")
      }
    }))

  it("tells LVM's other layers apart, whatever the user's names are", () => {
    const disk = { name: null, uuid: null }
    const of = (name: string, layer: string, ...below: ReadonlyArray<string>) =>
      dmTarget({ name, uuid: lvm("own") + layer }, below.map((part) => ({ name: part, uuid: lvm(part) })))
    assert.strictEqual(of("vg-thin", "", "vg-pool-tpool"), "thin")
    assert.strictEqual(of("vg-pool", "-pool", "vg-pool-tpool"), "linear")
    assert.strictEqual(of("vg-pool-tpool", "-tpool", "vg-pool_tdata", "vg-pool_tmeta"), "thin-pool")
    assert.strictEqual(of("vg-data", "", "vg-data-real"), "snapshot-origin")
    assert.strictEqual(of("vg-snap", "", "vg-data-real", "vg-snap-cow"), "snapshot")
    assert.strictEqual(of("vg-data", "", "vg-data-real", "vg-snap-cow"), "snapshot-merge")
    assert.strictEqual(of("vg-vdo", "", "vg-vpool0-vpool"), "linear")
    assert.strictEqual(of("vg-vpool0-vpool", "-vpool", "vg-vpool0_vdata"), "vdo")
    assert.strictEqual(of("vg-m", "", "vg-m_mimage_0", "vg-m_mimage_1", "vg-m_mlog"), "mirror")
    assert.strictEqual(of("vg-pvmove0", "", "vg-x"), null)
    assert.strictEqual(of("vg-odd", "", "vg-odd_cmeta"), null)
    // A disk of the group is missing, and something stands in for it.
    assert.strictEqual(of("vg-r_rimage_0", "-real", "vg-r_rimage_0-missing_0_0"), "linear")
    // A volume group may be named `a-b`, and a volume `real` or `b-cow`: neither is a layer.
    assert.strictEqual(of("a--b-data", "", "a--b-real"), "linear")
    assert.strictEqual(of("a--b-data", "", "a--b-data-real"), "snapshot-origin")
    assert.strictEqual(of("vg-data", "", "vg-b--cow"), "linear")
    // A volume of another group is a disk like any other.
    assert.strictEqual(
      dmTarget({ name: "vg-data", uuid: lvm("data") }, [{ name: "other-x_corig", uuid: `LVM-${"o".repeat(64)}` }]),
      "linear"
    )
    assert.strictEqual(dmTarget({ name: "vg-zero", uuid: lvm("zero") }, []), null)
    assert.strictEqual(dmTarget({ name: "vg-data", uuid: null }, [disk]), null)
  })

  it("knows the prefixes of cryptsetup's kinds", () => {
    const of = (uuid: string, name = "x") => dmTarget({ name, uuid }, [])
    assert.strictEqual(of("CRYPT-PLAIN-x"), "crypt")
    assert.strictEqual(of("CRYPT-LUKS1-6f0a-x"), "crypt")
    assert.strictEqual(of("CRYPT-VERITY-6f0a-x"), "verity")
    assert.strictEqual(of("CRYPT-INTEGRITY-x"), "integrity")
    assert.strictEqual(of("CRYPT-SUBDEV-6f0a-x_dif", "x_dif"), "integrity")
  })
})

describe("loop devices", () => {
  // 65024 is `st_dev` of a file on 254:0, recorded; 1792 that of one on 7:0.
  const file = { "/var/disk.img": { dev: 65_024 } }

  for (const [dio, expected] of [[0, false], [1, true]] as const) {
    it.effect(`with dio ${dio}, and on with the file's disk`, () =>
      Effect.gen(function*() {
        const { devices, unseen } = yield* stack("7:0", {
          ...fixtures.vda,
          ...file,
          ...fixtures.loop(0, "/var/disk.img", dio)
        })
        assert.deepStrictEqual(unseen, [])
        assert.deepStrictEqual(devices.map(({ name }) => name), ["loop0", "vda"])
        assert.deepInclude(devices[0], { kind: "loop", detail: "/var/disk.img", loopDirectIo: expected, over: ["vda"] })
      }))
  }

  it.effect("on a file on another loop device, or on its node", () =>
    Effect.gen(function*() {
      const lower: Tree = { ...fixtures.vda, ...file, ...fixtures.loop(0, "/var/disk.img", 0) }
      const expected = ["loop1 loop /mnt/inner.img null", "loop0 loop /var/disk.img null", "vda virtio null virtio"]
      yield* shows(
        "7:1",
        { ...lower, "/mnt/inner.img": { dev: 1792 }, ...fixtures.loop(1, "/mnt/inner.img", 1) },
        ...expected
      )
      yield* shows(
        "7:1",
        { ...lower, "/dev/loop0": { rdev: 1792 }, ...fixtures.loop(1, "/dev/loop0", 1) },
        ...expected.with(0, "loop1 loop /dev/loop0 null")
      )
    }))

  it.effect("reads numbers that do not fit into 8 bits", () =>
    Effect.gen(function*() {
      // makedev(259, 1048577): 0x103 << 8 | 1 | 0x100000 << 12.
      const tree: Tree = {
        ...fixtures.device("virtual/block/big", "259:1048577"),
        "/big.img": { dev: 0x1_0001_0301 },
        ...fixtures.loop(0, "/big.img", 1)
      }
      const wide = yield* outline("7:0", tree)
      assert.deepStrictEqual(wide.devices, ["loop0 loop /big.img null", "big other null null"])
    }))

  it.effect("a file that is deleted, or not visible, or something else here, is unseen", () =>
    Effect.gen(function*() {
      const files = [
        ["/var/disk.img (deleted)", "no path"],
        ["/host/disk.img", "not visible"],
        [
          "/sys",
          "Directory"
        ],
        ["disk.img", "no absolute path"],
        ["memfd:image (deleted)", "no absolute path"]
      ] as const
      for (const [path, reason] of files) {
        const { devices, unseen } = yield* stack("7:0", fixtures.loop(0, path, 1))
        assert.strictEqual(devices.length, 1)
        assert.strictEqual(unseen.length, 1)
        assert.include(unseen[0]?.what, "loop0")
        assert.include(unseen[0]?.reason, reason)
      }
    }))

  it.effect("on a file on btrfs: all devices of that filesystem, found by a mount of the same subvolume", () =>
    Effect.gen(function*() {
      // Recorded: mountinfo has 0:39, `stat` says 40 of the mount's root and of a file on it.
      const tree: Tree = {
        ...fixtures.nvme(0),
        ...fixtures.btrfs("u-1", fixtures.nvmePath(0)),
        "/data": { dev: 40 },
        "/data/disk.img": { dev: 40 },
        ...fixtures.loop(0, "/data/disk.img", 1)
      }
      const known = yield* outline("7:0", tree, undefined, [mountOf("btrfs", "/dev/nvme0n1", "0:39")])
      assert.deepStrictEqual(known, {
        devices: ["loop0 loop /data/disk.img null", "nvme0n1 nvme null pcie"],
        unseen: []
      })
      const unknown = yield* outline("7:0", { ...tree, "/data": { dev: 41 } }, undefined, [
        mountOf("btrfs", "/dev/nvme0n1", "0:39")
      ])
      assert.deepStrictEqual(unknown, {
        devices: ["loop0 loop /data/disk.img null"],
        unseen: ["the devices of 0:40"]
      })
    }))

  it.effect("on a file on a filesystem in memory", () =>
    Effect.gen(function*() {
      const tree: Tree = { "/dev/shm/disk.img": { dev: 39 }, ...fixtures.loop(0, "/dev/shm/disk.img", 0) }
      const found = yield* outline("7:0", tree, undefined, [mountOf("tmpfs", "tmpfs", "0:39")])
      assert.deepStrictEqual(found, { devices: ["loop0 loop /dev/shm/disk.img null"], unseen: [] })
    }))
})

describe("filesystems without a device number of their own", () => {
  const { btrfs, dm, dmPath, luks, nvmePath, sdPath } = fixtures
  const disks: Tree = { ...fixtures.nvme(0), ...fixtures.nvme(1), ...fixtures.sd("b"), ...fixtures.sd("c") }
  const two: Tree = { ...disks, ...btrfs("u-1", nvmePath(0), nvmePath(1)), ...btrfs("u-2", sdPath("b"), sdPath("c")) }

  it.effect("btrfs of two devices, by any of them", () =>
    Effect.gen(function*() {
      for (const source of ["/dev/sdb", "/dev/sdc"]) {
        assert.deepStrictEqual(yield* outline("0:50", two, mountOf("btrfs", source)), {
          devices: ["sdb scsi null sata", "sdc scsi null sata"],
          unseen: []
        })
      }
    }))

  it.effect("btrfs by the number of its source's node, by where it links to, or by its dm name", () =>
    Effect.gen(function*() {
      // 2064 is 8:16.
      const byNumber = yield* outline("0:50", { ...two, "/dev/odd": { rdev: 2064 } }, mountOf("btrfs", "/dev/odd"))
      assert.strictEqual(byNumber.devices[0], "sdb scsi null sata")
      const linked: Tree = { ...two, "/dev/disk/x": { link: "../sdc" }, "/dev/sdc": "" }
      const byLink = yield* outline("0:50", linked, mountOf("btrfs", "/dev/disk/x"))
      assert.strictEqual(byLink.devices[0], "sdb scsi null sata")
      const mapped: Tree = { ...two, ...dm(0, "secret", luks, nvmePath(0)), ...btrfs("u-3", dmPath(0)) }
      const byName = yield* outline("0:50", mapped, mountOf("btrfs", "/dev/mapper/secret"))
      assert.deepStrictEqual(byName.devices, ["dm-0 dm crypt null", "nvme0n1 nvme null pcie"])
    }))

  it.effect("btrfs from an unknown source: the only one, or unseen", () =>
    Effect.gen(function*() {
      const mount = mountOf("btrfs", "/dev/root")
      const one = yield* outline("0:50", { ...disks, ...btrfs("u-1", nvmePath(0), nvmePath(1)) }, mount)
      assert.deepStrictEqual(one, { devices: ["nvme0n1 nvme null pcie", "nvme1n1 nvme null pcie"], unseen: [] })
      const many = yield* outline("0:50", two, mount)
      assert.deepStrictEqual(many, { devices: [], unseen: ["the devices of btrfs on /data"] })
      const none = yield* outline("0:50", disks, mount)
      assert.deepStrictEqual(none, { devices: [], unseen: ["the devices of btrfs on /data"] })
    }))

  it.effect("overlay and zfs are unseen; a network or memory filesystem has no device to be seen", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual((yield* outline("0:50", disks, mountOf("overlay", "overlay"))).unseen, [
        "the devices below overlay on /data"
      ])
      assert.deepStrictEqual((yield* outline("0:50", disks, mountOf("zfs", "pool/data"))).unseen, [
        "the devices of zfs on /data"
      ])
      for (const type of ["nfs4", "tmpfs", "fuse.sshfs"]) {
        assert.deepStrictEqual(yield* outline("0:50", disks, mountOf(type, "server:/x")), { devices: [], unseen: [] })
      }
    }))
})

describe("what cannot be read", () => {
  it.effect("no sysfs: the device is unseen", () =>
    Effect.gen(function*() {
      const { devices, unseen } = yield* stack("8:0", {})
      assert.deepStrictEqual(devices, [])
      assert.strictEqual(unseen[0]?.what, "/sys/dev/block/8:0")
      assert.include(unseen[0]?.reason, "NotFound")
    }))

  const refused = { refused: "PermissionDenied" } as const

  it.effect("refused attributes are null, and unseen once a device; so is a refused list of what is below", () =>
    Effect.gen(function*() {
      const base = `/sys/devices/${fixtures.nvmePath(0)}`
      const { devices: [disk], unseen } = yield* stack("259:0", {
        ...fixtures.nvme(0),
        [`${base}/queue/rotational`]: refused,
        [`${base}/queue/logical_block_size`]: refused,
        [`${base}/queue/read_ahead_kb`]: "much\n",
        [`${base}/slaves`]: refused
      })
      assert.deepInclude(disk, { rotational: null, logicalSector: null, readAhead: null, physicalSector: 4096 })
      assert.deepStrictEqual(unseen.map(({ what }) => what), [
        "what nvme0n1 is made of",
        `${base}/queue/rotational`
      ])
      assert.include(unseen[1]?.reason, "PermissionDenied")
    }))

  it.effect("an attribute that is refused and would decide something is not taken for one that is not there", () =>
    Effect.gen(function*() {
      const { dm, dmPath, luks, lvm, nvmePath } = fixtures
      const disks: Tree = { ...fixtures.vda, ...fixtures.nvme(0), ...fixtures.nvme(1), ...fixtures.nvmePartition(0) }
      const volume: Tree = {
        ...dm(0, "vg-slow_corig", `${lvm("origin")}-real`, nvmePath(0)),
        ...dm(1, "vg-slow", lvm("slow"), dmPath(0))
      }
      const cases = [
        ["9:0", fixtures.md("raid5", nvmePath(0), nvmePath(1)), "virtual/block/md0/md/level"],
        ["7:0", { "/a.img": { dev: 65_024 }, ...fixtures.loop(0, "/a.img", 1) }, "virtual/block/loop0/loop/dio"],
        ["7:0", fixtures.loop(0, "/a.img", 1), "virtual/block/loop0/loop/backing_file"],
        ["259:0", {}, `${nvmePath(0)}/integrity/format`],
        ["259:1", {}, `${fixtures.nvmePartitionPath(0)}/partition`],
        ["252:0", dm(0, "secret", luks, nvmePath(0)), `${dmPath(0)}/dm/name`],
        ["252:0", dm(0, "secret", luks, nvmePath(0)), `${dmPath(0)}/dm/uuid`],
        ["252:1", volume, `${dmPath(0)}/dm/name`]
      ] as const
      for (const [device, tree, attribute] of cases) {
        const all = yield* stack(device, { ...disks, ...tree, [`/sys/devices/${attribute}`]: refused })
        const entry = all.unseen.filter(({ what }) => what === `/sys/devices/${attribute}`)
        assert.strictEqual(entry.length, 1, attribute)
        assert.include(entry[0]?.reason, "PermissionDenied")
      }
      // What a volume is of a part without a name is not said.
      const { devices: [top] } = yield* stack("252:1", {
        ...disks,
        ...volume,
        [`/sys/devices/${dmPath(0)}/dm/name`]: refused
      })
      assert.deepInclude(top, { name: "dm-1", detail: null })
    }))

  it.effect("a stack without an end has one here, and says so", () =>
    Effect.gen(function*() {
      const levels = Array.from({ length: 20 }, (_, minor) =>
        fixtures.dm(minor, `d${minor}`, fixtures.luks, fixtures.dmPath(minor + 1)))
      const { devices, unseen } = yield* stack(
        "252:0",
        Object.fromEntries(levels.flatMap((level) =>
          Object.entries(level)
        ))
      )
      assert.strictEqual(devices.length, 16)
      assert.deepStrictEqual(
        unseen.map(({ what }) => what),
        ["dm-16"]
      )
      const circle: Tree = {
        ...fixtures.dm(0, "a", fixtures.luks, fixtures.dmPath(1)),
        ...fixtures.dm(1, "b", fixtures.luks, fixtures.dmPath(0))
      }
      yield* shows("252:0", circle, "dm-0 dm crypt null", "dm-1 dm crypt null")
    }))
})

describe("this machine", () => {
  // Without a block device below the root directory (btrfs, overlay, network), or without sysfs, there is nothing to be named.
  const { dev } = statSync("/")
  const device = { major: dev >> 8 & 0xfff, minor: dev & 0xff }
  const canSee = device.major !== 0 && existsSync(`/sys/dev/block/${device.major}:${device.minor}`)

  it.effect.skipIf(!canSee)("names the device of the root directory", () =>
    Effect.gen(function*() {
      const mounts = yield* readMounts
      const mount = mounts.find((mount) => mount.device.major === device.major && mount.device.minor === device.minor)
      assert.isDefined(mount)
      const { devices } = yield* stackOf(device, mount, mounts)
      assert.strictEqual(devices[0]?.number, `${device.major}:${device.minor}`)
      assert.isAtLeast(devices.at(-1)?.logicalSector ?? 0, 512)
      assert.isAtLeast(devices.at(-1)?.physicalSector ?? 0, 512)
    }).pipe(Effect.provide(NodeFileSystem.layer)))
})
