import { assert, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import { readCuFileConfiguration } from "../../src/internal/directIo/cuFileConfiguration.js"
import type { GpuInput, GpuJudgement } from "../../src/internal/directIo/gpu.js"
import { gpuConditions, judgeGpu } from "../../src/internal/directIo/gpu.js"
import type { CuFileLibrary } from "../../src/internal/directIo/gpuFacts.js"
import { gpuFacts } from "../../src/internal/directIo/gpuFacts.js"
import * as FileTree from "./fileTree.js"
import * as Machine from "./fixtures/gpu.js"

const loads: CuFileLibrary = { name: "libcufile.so.0", loads: true, reason: null }

const find = (tree: FileTree.Tree, cuFile = loads) =>
  Effect.gen(function*() {
    const configuration = yield* readCuFileConfiguration
    return { configuration, ...yield* gpuFacts(cuFile, configuration) }
  }).pipe(
    Effect.provide(FileTree.layer(tree)),
    Effect.withConfigProvider(ConfigProvider.fromMap(new Map()))
  )

type Storage = Partial<Pick<GpuInput, "filesystem" | "devices" | "io" | "kernelRelease" | "driverAnswer">>

/** ext4 on an NVMe partition, with direct I/O and a kernel of today, where the test does not say otherwise. */
const judge = (tree: FileTree.Tree, storage: Storage = {}, cuFile = loads) =>
  Effect.map(find(tree, cuFile), (found) =>
    judgeGpu({
      ...found,
      filesystem: Machine.ext4,
      devices: Machine.nvme("pcie"),
      io: "direct",
      kernelRelease: "6.8.0-51-generic",
      ...storage
    }))

const configured = (tree: FileTree.Tree, content: object): FileTree.Tree => ({
  ...tree,
  "/etc/cufile.json": JSON.stringify(content)
})

const peerToPeer = configured(Machine.withPeerToPeer, {
  properties: { use_pci_p2pdma: true },
  block: { nvme: { use_pci_p2pdma: true } }
})

const row = (judgement: GpuJudgement, id: string) => judgement.conditions.find((condition) => condition.id === id)

const answers = (judgement: GpuJudgement) =>
  Object.fromEntries(judgement.conditions.map((condition) => [condition.id, condition.applies]))

/** All rows but those named: nothing in the way. */
const allClearBut = (others: { readonly [id: string]: string }) => ({
  ...Object.fromEntries(gpuConditions.map(({ id }) => [id, "no"])),
  ...others
})

it.effect("nvidia-fs with the drivers that it is registered with", () =>
  Effect.gen(function*() {
    const { facts, openKernelModule, unseen } = yield* find(Machine.withNvidiaFs)
    assert.deepStrictEqual(facts, {
      gpus: ["0000:3b:00.0"],
      driver: "570.86.15",
      nvidiaFs: { version: "2.24.2", modules: ["nvme", "nvme_rdma", "lnet", "rpcrdma"] },
      peerToPeerMemory: false,
      cuFile: true,
      configuration: {
        path: "/etc/cufile.json",
        problem: null,
        allowCompatMode: true,
        forceCompatMode: false,
        usePciP2pDma: false
      }
    })
    assert.isTrue(openKernelModule)
    assert.deepStrictEqual(unseen, [])
  }))

it.effect("a closed driver, a GPU without nvidia-fs, no GPU", () =>
  Effect.gen(function*() {
    const closed = yield* find({ ...Machine.gpuOnly, ...Machine.oldClosedDriver })
    assert.strictEqual(closed.facts.driver, "535.129.03")
    assert.isFalse(closed.openKernelModule)
    assert.isNull(closed.facts.nvidiaFs)
    const none = yield* find(Machine.noGpu)
    assert.deepStrictEqual(none.facts.gpus, [])
    assert.isNull(none.facts.driver)
    assert.isFalse(none.facts.peerToPeerMemory)
    assert.deepStrictEqual(none.unseen, [])
    assert.isTrue((yield* find(Machine.withPeerToPeer)).facts.peerToPeerMemory)
  }))

it.effect("the version file is enough where statistics are not built in", () =>
  Effect.gen(function*() {
    const { facts } = yield* find({
      ...Machine.gpuOnly,
      "/proc/driver/nvidia-fs/version": "version: 2.24\n",
      "/proc/driver/nvidia-fs/modules": ""
    })
    assert.deepStrictEqual(facts.nvidiaFs, { version: "2.24", modules: [] })
  }))

it.effect("what may not be read is unseen and not absent", () =>
  Effect.gen(function*() {
    const { facts, unseen } = yield* find(Machine.refusedEverywhere, {
      ...loads,
      loads: null,
      reason: "no dlopen here"
    })
    assert.isNull(facts.gpus)
    assert.isNull(facts.driver)
    assert.isNull(facts.nvidiaFs)
    assert.isNull(facts.peerToPeerMemory)
    assert.deepStrictEqual(unseen.map(({ what }) => what), [
      "/sys/bus/pci/devices",
      "/proc/driver/nvidia/version",
      "/proc/driver/nvidia-fs/version",
      "libcufile.so.0"
    ])
    assert.strictEqual(unseen.at(-1)?.reason, "no dlopen here")
    const judgement = yield* judge(Machine.refusedEverywhere, {}, { ...loads, loads: null, reason: "no dlopen here" })
    assert.strictEqual(judgement.verdict, "compat")
    assert.strictEqual(row(judgement, "gpu-driver")?.applies, "unknown")
    assert.include(judgement.reasons, "whether libcufile.so.0 loads is not known: no dlopen here")
  }))

it.effect("a module that is loaded and does not show its file is unseen", () =>
  Effect.gen(function*() {
    const tree = {
      "/sys/bus/pci/devices/0000:3b:00.0/vendor": "0x10de\n",
      "/sys/bus/pci/devices/0000:3b:00.0/class": { refused: "PermissionDenied" },
      "/proc/modules": "nvidia 1 0 - Live 0x0\nnvidia_fs 1 0 - Live 0x0\n"
    } as const
    const { facts, unseen } = yield* find(tree)
    assert.isNull(facts.gpus)
    assert.isNull(facts.driver)
    assert.deepStrictEqual(facts.nvidiaFs, { version: null, modules: [] })
    assert.deepStrictEqual(unseen.map(({ what }) => what), [
      "/sys/bus/pci/devices/0000:3b:00.0/class",
      "/proc/driver/nvidia/version",
      "/proc/driver/nvidia-fs/modules"
    ])
    assert.strictEqual(row(yield* judge(tree), "gpu-driver")?.applies, "unknown")
  }))

it.effect("the rows are the listed ones, in their order", () =>
  Effect.gen(function*() {
    const { conditions } = yield* judge(Machine.withNvidiaFs)
    assert.deepStrictEqual(
      conditions.map(({ bearsOn, id, section, title }) => ({ bearsOn, id, section, title })),
      gpuConditions.map(({ id, section, title }) => ({ bearsOn: ["gpu"] as const, id, section, title }))
    )
    assert.deepStrictEqual(gpuConditions.map(({ id, section }) => `${section} ${id}`), [
      "2.1 gpu-driver",
      "2.1 dma-path",
      "2.1 remote-without-rdma",
      "2.1 compat-mode",
      "2.2 remote",
      "2.2 network-attached",
      "2.2 rdma-mount"
    ])
  }))

it.effect("nvidia-fs, ext4 or xfs, NVMe alone or in RAID 0: nothing in the way", () =>
  Effect.gen(function*() {
    for (
      const storage of [
        {},
        { filesystem: Machine.filesystem("xfs"), devices: Machine.raid("raid0") },
        { filesystem: Machine.filesystem("ext4"), devices: Machine.nvme("rdma") },
        { io: "direct-with-conditions" }
      ] as const
    ) {
      const judgement = yield* judge(Machine.withNvidiaFs, storage)
      assert.strictEqual(judgement.verdict, "nvidia-fs", judgement.reasons.join())
      assert.deepStrictEqual(answers(judgement), allClearBut({}))
    }
  }))

it.effect("without a GPU, a driver, libcufile or a configuration that it takes, cuFile does not start", () =>
  Effect.gen(function*() {
    const cases = [
      [Machine.noGpu, loads, /no NVIDIA GPU/],
      [{ ...Machine.noGpu, ...pciOnly }, loads, /driver is not loaded/],
      [
        Machine.withNvidiaFs,
        { ...loads, loads: false, reason: "cannot open shared object file" },
        /cannot open shared object/
      ],
      [{ ...Machine.withNvidiaFs, "/etc/cufile.json": "{" }, loads, /\/etc\/cufile\.json:1:\d+: /]
    ] as const
    for (const [tree, cuFile, reason] of cases) {
      const { reasons, verdict } = yield* judge(tree, {}, cuFile)
      assert.strictEqual(verdict, "unavailable")
      assert.match(reasons[0] ?? "", reason)
    }
    const missing = row(yield* judge({ ...Machine.noGpu, ...pciOnly }), "gpu-driver")
    assert.deepStrictEqual([missing?.applies, missing?.remedy !== null], ["yes", true])
  }))

const pciOnly: FileTree.Tree = {
  "/sys/bus/pci/devices/0000:3b:00.0/vendor": "0x10de\n",
  "/sys/bus/pci/devices/0000:3b:00.0/class": "0x030000\n"
}

it.effect("a GPU without nvidia-fs and without peer-to-peer DMA copies", () =>
  Effect.gen(function*() {
    const judgement = yield* judge(Machine.gpuOnly)
    assert.strictEqual(judgement.verdict, "compat")
    assert.deepStrictEqual(answers(judgement), allClearBut({ "gpu-driver": "yes", "compat-mode": "yes" }))
    assert.include(row(judgement, "compat-mode")?.evidence ?? "", "nvidia-fs is not loaded")
  }))

it.effect("compatibility mode: forced, not allowed", () =>
  Effect.gen(function*() {
    const forced = yield* judge(configured(Machine.withNvidiaFs, { properties: { force_compat_mode: true } }))
    assert.strictEqual(forced.verdict, "compat")
    assert.strictEqual(row(forced, "compat-mode")?.remedy, "set properties.force_compat_mode to false")
    assert.deepStrictEqual(answers(forced), allClearBut({ "compat-mode": "yes" }))
    const strict = { properties: { allow_compat_mode: false } }
    const off = yield* judge(configured(Machine.gpuOnly, strict))
    assert.strictEqual(off.verdict, "unavailable")
    assert.include(off.reasons.at(-1) ?? "", "allow_compat_mode is off")
    assert.strictEqual(row(off, "compat-mode")?.applies, "no")
    assert.strictEqual((yield* judge(configured(Machine.withNvidiaFs, strict))).verdict, "nvidia-fs")
  }))

it.effect("peer-to-peer DMA needs all of its parts", () =>
  Effect.gen(function*() {
    const whole = yield* judge(peerToPeer)
    assert.strictEqual(whole.verdict, "p2pdma", whole.reasons.join())
    assert.deepStrictEqual(answers(whole), allClearBut({}))
    const onlyGlobal = configured(Machine.withPeerToPeer, { properties: { use_pci_p2pdma: true } })
    const proviso = yield* judge(onlyGlobal)
    assert.strictEqual(proviso.verdict, "p2pdma")
    assert.include(proviso.reasons[0] ?? "", "newer releases of cuFile also want block.nvme.use_pci_p2pdma")
    const cases = [
      [peerToPeer, { devices: Machine.raid("raid0") }, "yes"],
      [peerToPeer, { devices: Machine.nvme("rdma") }, "yes"],
      [peerToPeer, { filesystem: Machine.filesystem("btrfs") }, "yes"],
      [{ ...peerToPeer, ...Machine.closedDriver }, {}, "yes"],
      [{ ...peerToPeer, ...Machine.olderDriver }, {}, "yes"],
      [
        configured(Machine.withPeerToPeer, {
          properties: { use_pci_p2pdma: true },
          block: { nvme: { use_pci_p2pdma: false } }
        }),
        {},
        "yes"
      ],
      [peerToPeer, { kernelRelease: "5.15.0-100-generic" }, "unknown"],
      [peerToPeer, { kernelRelease: null }, "unknown"],
      [{ ...peerToPeer, "/sys/module/nvme_core/parameters/multipath": "Y\n" }, {}, "unknown"],
      [{ ...peerToPeer, "/sys/bus/pci/devices/0000:3b:00.0/p2pmem/size": "0\n" }, {}, "unknown"]
    ] as const
    for (const [tree, storage, driver] of cases) {
      const judgement = yield* judge(tree, storage)
      assert.strictEqual(judgement.verdict, "compat", judgement.reasons.join())
      assert.strictEqual(row(judgement, "gpu-driver")?.applies, driver, judgement.reasons.join())
    }
  }))

it.effect("devices that no DMA engine serves", () =>
  Effect.gen(function*() {
    const cases = [
      [Machine.crypt, "yes", /dm-0 \(dm, crypt\)/],
      [Machine.raid("raid1"), "yes", /RAID 0 only/],
      [Machine.nvme("tcp"), "yes", /nvme0n1 \(nvme, tcp\)/],
      [Machine.alone("virtio", "virtio"), "yes", /virtio0/],
      [Machine.alone("loop", null), "yes", /loop0/],
      [Machine.alone("zram", null), "yes", /zram0/],
      [Machine.alone("scsi", "sata"), "yes", /sata/],
      [Machine.alone("scsi", "sas"), "unknown", /sas/],
      [Machine.alone("other", null), "unknown", /other0/],
      [Machine.nvme(null), "unknown", /nvme0n1/],
      [Machine.raid(null), "unknown", /md0 \(md\): level not known/],
      [[], "unknown", /no block device/]
    ] as const
    for (const [devices, applies, evidence] of cases) {
      const judgement = yield* judge(Machine.withNvidiaFs, { devices })
      assert.strictEqual(judgement.verdict, "compat")
      assert.strictEqual(row(judgement, "dma-path")?.applies, applies)
      assert.match(row(judgement, "dma-path")?.evidence ?? "", evidence)
    }
  }))

it.effect("NVMe over TCP is remote without RDMA, and over RDMA it is not in the way", () =>
  Effect.gen(function*() {
    const tcp = yield* judge(Machine.withNvidiaFs, { devices: Machine.nvme("tcp") })
    assert.strictEqual(row(tcp, "remote-without-rdma")?.applies, "yes")
    assert.strictEqual(row(tcp, "remote")?.applies, "yes")
    assert.strictEqual(row(tcp, "rdma-mount")?.applies, "no")
    const rdma = yield* judge(Machine.withNvidiaFs, { devices: Machine.nvme("rdma") })
    assert.match(row(rdma, "remote")?.evidence ?? "", /^remote, block-based: nvme0n1/)
  }))

it.effect("NFS by its proto=", () =>
  Effect.gen(function*() {
    const rdma = yield* judge(Machine.withNvidiaFs, { filesystem: Machine.nfs("rdma"), devices: [] })
    assert.strictEqual(rdma.verdict, "nvidia-fs", rdma.reasons.join())
    assert.deepStrictEqual(answers(rdma), allClearBut({}))
    const tcp = yield* judge(Machine.withNvidiaFs, { filesystem: Machine.nfs("tcp"), devices: [] })
    assert.strictEqual(tcp.verdict, "compat")
    assert.deepStrictEqual(
      answers(tcp),
      allClearBut({
        "dma-path": "yes",
        "remote-without-rdma": "yes",
        "compat-mode": "yes",
        "remote": "yes",
        "rdma-mount": "yes"
      })
    )
    assert.include(row(tcp, "rdma-mount")?.evidence ?? "", "proto=tcp")
  }))

it.effect("Lustre by the networks of its NIDs", () =>
  Effect.gen(function*() {
    const cases = [
      ["10.1.1.1@o2ib,10.1.1.2@o2ib:10.1.1.3@o2ib1:/scratch", "no", "nvidia-fs"],
      ["10.1.1.1@tcp:/scratch", "yes", "compat"],
      ["10.1.1.1@tcp,10.1.1.1@o2ib:/scratch", "unknown", "compat"],
      ["10@kfi:/scratch", "unknown", "compat"]
    ] as const
    for (const [source, applies, verdict] of cases) {
      const judgement = yield* judge(Machine.withNvidiaFs, { filesystem: Machine.lustre(source), devices: [] })
      assert.strictEqual(row(judgement, "rdma-mount")?.applies, applies, source)
      assert.strictEqual(judgement.verdict, verdict, source)
    }
  }))

it.effect("Storage Scale and WekaFS do not tell of RDMA, with RDMA devices in cuFile's configuration or without", () =>
  Effect.gen(function*() {
    const storage = { filesystem: Machine.storageScale, devices: [] }
    const without = yield* judge(Machine.withNvidiaFs, storage)
    assert.strictEqual(without.verdict, "compat")
    assert.strictEqual(row(without, "gpu-driver")?.applies, "unknown")
    assert.strictEqual(row(without, "rdma-mount")?.applies, "unknown")
    const listed = yield* judge(
      configured(Machine.withNvidiaFs, { fs: { gpfs: { rdma_dev_addr_list: ["192.168.0.19"] } } }),
      storage
    )
    assert.strictEqual(row(listed, "gpu-driver")?.applies, "no")
    assert.strictEqual(listed.verdict, "compat")
    assert.deepStrictEqual(listed.reasons, ["the mount options of Storage Scale do not tell"])
    const weka = yield* judge(
      configured(Machine.withNvidiaFs, { properties: { rdma_dev_addr_list: ["192.168.0.19"] } }),
      { filesystem: Machine.filesystem("wekafs"), devices: [] }
    )
    assert.deepStrictEqual([weka.verdict, weka.reasons], ["compat", ["the mount options of WekaFS do not tell"]])
  }))

it.effect("a client that is not registered with nvidia-fs, and one that cuFile does not know", () =>
  Effect.gen(function*() {
    const beegfs = yield* judge(Machine.withNvidiaFs, {
      filesystem: Machine.filesystem("beegfs", { options: ["rw", "connUseRDMA=true"] }),
      devices: []
    })
    assert.strictEqual(beegfs.verdict, "compat")
    assert.strictEqual(row(beegfs, "gpu-driver")?.applies, "yes")
    assert.strictEqual(row(beegfs, "network-attached")?.applies, "yes")
    const cifs = yield* judge(Machine.withNvidiaFs, { filesystem: Machine.filesystem("cifs"), devices: [] })
    assert.strictEqual(row(cifs, "network-attached")?.applies, "yes")
    assert.strictEqual(row(cifs, "rdma-mount")?.applies, "unknown")
  }))

it.effect("writes that are copied although reads are not", () =>
  Effect.gen(function*() {
    const tree = configured(Machine.withNvidiaFs, { properties: { gds_rdma_write_support: false } })
    const remote = yield* judge(tree, { filesystem: Machine.nfs("rdma"), devices: [] })
    assert.include(remote.reasons, "writes are copied: properties.gds_rdma_write_support is off")
    assert.notInclude((yield* judge(tree)).reasons.join(), "writes are copied")
  }))

it.effect("the deny list", () =>
  Effect.gen(function*() {
    // cuFile does not start with a device or mount that is not there.
    const there: FileTree.Tree = {
      "/dev/nvme0n1": { rdev: 0x10300 },
      "/dev/nvme1n1": { rdev: 0x10301 },
      "/mnt/cache/x": ""
    }
    const cases = [
      [{ drivers: ["nvme"] }, {}],
      [{ devices: ["/dev/nvme0n1"] }, {}],
      [{ mounts: ["/mnt/cache/"] }, {}],
      [{ filesystems: ["ext4"] }, {}],
      [{ filesystems: ["nfs"] }, { filesystem: Machine.nfs("rdma"), devices: [] }],
      [{ drivers: ["rpcrdma"] }, { filesystem: Machine.nfs("rdma"), devices: [] }]
    ] as const
    for (const [denylist, storage] of cases) {
      const judgement = yield* judge(configured({ ...Machine.withNvidiaFs, ...there }, { denylist }), storage)
      assert.strictEqual(judgement.verdict, "compat")
      assert.match(judgement.reasons[0] ?? "", /^denylist\./)
      assert.include(row(judgement, "compat-mode")?.evidence ?? "", "denylist.")
    }
    const others = {
      denylist: { drivers: ["nvme_rdma"], devices: ["/dev/nvme1n1"], mounts: ["/mnt"], filesystems: ["xfs"] }
    }
    assert.strictEqual((yield* judge(configured({ ...Machine.withNvidiaFs, ...there }, others))).verdict, "nvidia-fs")
  }))

it.effect("filesystems and I/O that are not direct", () =>
  Effect.gen(function*() {
    const cases = [
      [{ filesystem: Machine.filesystem("tmpfs"), devices: [] }, /tmpfs/, "yes"],
      [{ filesystem: Machine.filesystem("overlay"), devices: Machine.nvme("pcie") }, /overlay/, "yes"],
      [{ filesystem: Machine.filesystem("btrfs") }, /no direct path on btrfs/, "no"],
      [{ filesystem: Machine.filesystem("ext4", { options: ["rw", "data=journal"] }) }, /data=journal/, "no"],
      [{ io: "buffered" }, /O_DIRECT is buffered/, "no"],
      [{ io: "unsupported" }, /O_DIRECT is unsupported/, "no"]
    ] as const
    for (const [storage, reason, dma] of cases) {
      const judgement = yield* judge(Machine.withNvidiaFs, storage)
      assert.strictEqual(judgement.verdict, "compat")
      assert.match(judgement.reasons[0] ?? "", reason)
      assert.strictEqual(row(judgement, "dma-path")?.applies, dma)
    }
  }))

/** NFS on a kernel or through a mount helper that does not show `proto=`. */
const silentNfs = Machine.filesystem("nfs4", { source: "10.0.0.5:/export", options: ["rw", "vers=4.2"] })

it.effect("nothing that is not known goes with a direct verdict, on nvidia-fs or with peer-to-peer DMA", () =>
  Effect.gen(function*() {
    const untried: CuFileLibrary = { ...loads, loads: null, reason: "no dlopen here" }
    const noVersion = { refused: "PermissionDenied" } as const
    const withoutDriver: FileTree.Tree = {
      "/proc/driver/nvidia/version": noVersion,
      "/sys/module/nvidia/version": noVersion
    }
    // libcufile 1.15 refuses it, and older ones do not.
    const unforced = { max_direct_io_size_kb: 64 }
    const cases = [
      [Machine.withNvidiaFs, { io: "unknown" }, loads, /O_DIRECT is direct is not known/],
      [peerToPeer, { io: "unknown" }, loads, /O_DIRECT is direct is not known/],
      [Machine.withNvidiaFs, {}, untried, /libcufile.so.0 loads is not known: no dlopen here/],
      [peerToPeer, {}, untried, /libcufile.so.0 loads is not known: no dlopen here/],
      [{ ...Machine.withNvidiaFs, ...withoutDriver }, {}, loads, /whether the NVIDIA driver is loaded is not shown/],
      [
        configured(Machine.withNvidiaFs, { properties: unforced }),
        {},
        loads,
        /whether cuFile starts with its configuration is not known/
      ],
      [
        configured(Machine.withPeerToPeer, { properties: { ...unforced, use_pci_p2pdma: true } }),
        {},
        loads,
        /whether cuFile starts with its configuration is not known/
      ],
      [Machine.withNvidiaFs, { filesystem: Machine.filesystem("virtiofs") }, loads, /virtiofs/],
      [Machine.withNvidiaFs, { filesystem: silentNfs, devices: [] }, loads, /show no proto=/],
      [
        Machine.withNvidiaFs,
        { filesystem: Machine.lustre("10.1.1.1@tcp,10.1.1.1@o2ib:/x"), devices: [] },
        loads,
        /@tcp/
      ],
      [Machine.withNvidiaFs, { filesystem: Machine.lustre("10@kfi:/x"), devices: [] }, loads, /@kfi/],
      [Machine.withNvidiaFs, { devices: Machine.nvme(null) }, loads, /nvme0n1/],
      [registeredScsi, { devices: Machine.alone("scsi", "fc") }, loads, /scsi0 \(scsi, fc\): whether RDMA/]
    ] as const
    for (const [tree, storage, cuFile, reason] of cases) {
      const judgement = yield* judge(tree, storage, cuFile)
      assert.strictEqual(judgement.verdict, "compat", judgement.reasons.join())
      assert.match(judgement.reasons[0] ?? "", reason)
      // That cuFile copies is then not known either.
      assert.strictEqual(row(judgement, "compat-mode")?.applies, "unknown", judgement.reasons.join())
    }
  }))

const registeredScsi: FileTree.Tree = {
  ...Machine.withNvidiaFs,
  "/proc/driver/nvidia-fs/modules": "scsi_mod: 1.0\n"
}

it.effect("what is not known leaves nothing where compatibility mode is not allowed", () =>
  Effect.gen(function*() {
    const strict = configured(Machine.withNvidiaFs, { properties: { allow_compat_mode: false } })
    const { reasons, verdict } = yield* judge(strict, { filesystem: silentNfs, devices: [] })
    assert.strictEqual(verdict, "unavailable")
    assert.deepStrictEqual(reasons, [
      "the mount options show no proto=",
      "compatibility mode is not allowed: allow_compat_mode is off"
    ])
  }))

it.effect("a constraint that only some releases enforce leaves it unknown whether cuFile starts", () =>
  Effect.gen(function*() {
    const judgement = yield* judge(configured(Machine.withNvidiaFs, { properties: { max_direct_io_size_kb: 64 } }))
    assert.strictEqual(judgement.verdict, "compat")
    assert.match(
      judgement.reasons.join(),
      /whether cuFile starts with its configuration is not known: .*1\.15 refuses it/
    )
    assert.deepStrictEqual(answers(judgement), allClearBut({ "compat-mode": "unknown" }))
  }))

it.effect("every release refuses the examples that libcufile 1.15 refuses, and accepts the rest", () =>
  Effect.gen(function*() {
    for (
      const content of [
        { logging: { dir: "/gone" } },
        { properties: { posix_pool_slab_size_kb: 4, posix_pool_slab_count: 128 } },
        { properties: { posix_pool_slab_size_kb: [4, 1024], posix_pool_slab_count: [128] } },
        { properties: { io_batchsize: 257 } },
        { properties: { max_device_cache_size_kb: 1001 } }
      ]
    ) {
      const { reasons, verdict } = yield* judge(configured(Machine.withNvidiaFs, content))
      assert.strictEqual(verdict, "unavailable", JSON.stringify(content))
      assert.match(reasons[0] ?? "", /cuFile does not start with its configuration: \/etc\/cufile\.json:1:/)
    }
    assert.strictEqual(
      (yield* judge({ ...Machine.withNvidiaFs, "/etc/cufile.json": "\uFEFF{}" })).verdict,
      "unavailable"
    )
    for (const text of ["{\"fs\": {\"mounts\": [{\"path\": \"/mnt\"}]}}", "{} // as it was\nbefore"]) {
      const { reasons, verdict } = yield* judge({ ...Machine.withNvidiaFs, "/etc/cufile.json": text })
      assert.strictEqual(verdict, "nvidia-fs", reasons.join())
    }
  }))

it.effect("the driver's answer outranks what is read", () =>
  Effect.gen(function*() {
    const broken = configured(Machine.withNvidiaFs, { properties: { io_batchsize: 257 } })
    const opened = yield* judge(broken, { driverAnswer: { opened: true } }, { ...loads, loads: null, reason: "no" })
    assert.strictEqual(opened.verdict, "nvidia-fs", opened.reasons.join())
    assert.deepStrictEqual(answers(opened), allClearBut({}))
    assert.notMatch(JSON.stringify(opened), /does not start|257/)
    const doubtful = configured(Machine.withNvidiaFs, { properties: { max_direct_io_size_kb: 64 } })
    assert.strictEqual((yield* judge(doubtful, { driverAnswer: { opened: true } })).verdict, "nvidia-fs")

    const answer = { opened: false, reason: "cuFileDriverOpen failed: EINVAL (-22)" } as const
    const refused = yield* judge(Machine.withNvidiaFs, { driverAnswer: answer })
    assert.strictEqual(refused.verdict, "unavailable")
    assert.deepStrictEqual(refused.reasons, ["cuFile does not start: cuFileDriverOpen failed: EINVAL (-22)"])
    assert.match(row(refused, "compat-mode")?.evidence ?? "", /EINVAL \(-22\)/)
    const both = yield* judge(broken, { driverAnswer: answer })
    assert.match(both.reasons[0] ?? "", /EINVAL \(-22\); \/etc\/cufile\.json:1:\d+: properties\.io_batchsize: 257/)
  }))
