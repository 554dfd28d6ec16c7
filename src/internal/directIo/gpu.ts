/**
 * What GPUs, drivers, configuration and storage come to for cuFile in one directory. NVIDIA's guides are those of GPUDirect Storage:
 * "Installation and Troubleshooting", "Release Notes" and "cuFile API Reference".
 */
import type { BlockDevice, Condition, DriverAnswer, Filesystem, GpuVerdict, IoVerdict } from "../../DirectIo.js"
import type { CuFileConfiguration } from "./cuFileConfiguration.js"
import { NVIDIA_FS_MODULES, NVIDIA_FS_VERSION, NVIDIA_VERSION } from "./gpuFacts.js"
import type { GpuFindings } from "./gpuFacts.js"

/** What the verdict is made from: what `gpuFacts` found, the configuration, and what lies below the directory. */
export interface GpuInput extends GpuFindings {
  readonly configuration: CuFileConfiguration
  readonly filesystem: Filesystem
  readonly devices: ReadonlyArray<BlockDevice>
  /** Of direct I/O here. */
  readonly io: IoVerdict
  readonly kernelRelease: string | null
  /** What `cuFileDriverOpen` answered in this process, where it was called. It outranks what is read. */
  readonly driverAnswer?: DriverAnswer | undefined
}

export interface GpuJudgement {
  readonly verdict: GpuVerdict
  /** Why, the decisive first; what is not known comes last, unless it decides. */
  readonly reasons: ReadonlyArray<string>
  readonly conditions: ReadonlyArray<Condition>
}

/** The rows of sections 2.1 and 2.2 of the O_DIRECT guide; `decidedBy` says how a row is decided. */
export const gpuConditions = [
  {
    id: "gpu-driver",
    section: "2.1",
    title: "The kernel's storage driver cannot do DMA to GPU memory",
    decidedBy:
      "/proc/driver/nvidia-fs/modules must list the driver of this storage, or cuFile, kernel, NVIDIA driver and GPU must be set up for PCI peer-to-peer DMA."
  },
  {
    id: "dma-path",
    section: "2.1",
    title: "No DMA engine near the storage reaches the GPU over PCIe",
    decidedBy:
      "Every device below the filesystem must be NVMe on PCIe or over RDMA, alone or in a RAID 0 of md; a network filesystem must use RDMA."
  },
  {
    id: "remote-without-rdma",
    section: "2.1",
    title: "Remote storage without RDMA",
    decidedBy: "The filesystem's type and its mount options, or the transports of its block devices."
  },
  {
    id: "compat-mode",
    section: "2.1",
    title: "cuFile copies through CPU memory (compatibility mode)",
    decidedBy:
      "properties.force_compat_mode and allow_compat_mode of cuFile's configuration, and whether anything else rules the direct path out."
  },
  {
    id: "remote",
    section: "2.2",
    title: "Storage is remote, and not reached by RDMA",
    decidedBy:
      "A network filesystem, or block devices whose transport is a network, are remote; everything else is local."
  },
  {
    id: "network-attached",
    section: "2.2",
    title: "Network-attached filesystem whose client is not enabled for GPUDirect Storage",
    decidedBy: "The filesystem's type, and whether nvidia-fs is registered with its client."
  },
  {
    id: "rdma-mount",
    section: "2.2",
    title: "Network filesystem mounted without RDMA",
    decidedBy:
      "proto=rdma or rdma for NFS, the network types of the source's NIDs for Lustre, connUseRDMA for BeeGFS; others do not tell."
  }
] as const

type ConditionId = (typeof gpuConditions)[number]["id"]

type Answer = Condition["applies"]

/** Whether something stands in the way, by what evidence, and what is to be done about it. */
interface Finding {
  readonly applies: Answer
  readonly evidence: string
  readonly remedy: string | null
}

const clear = (evidence: string): Finding => ({ applies: "no", evidence, remedy: null })
const obstacle = (evidence: string, remedy: string | null = null): Finding => ({ applies: "yes", evidence, remedy })
const unclear = (evidence: string, remedy: string | null = null): Finding => ({ applies: "unknown", evidence, remedy })

/** What is certainly in the way counts before what is not known, and that before what is not. */
const worst = (findings: ReadonlyArray<Finding>, none: Finding): Finding => {
  const decisive = findings.filter((finding) => finding.applies === "yes")
  const open = findings.filter((finding) => finding.applies === "unknown")
  const shown = decisive.length > 0 ? decisive : open.length > 0 ? open : findings
  const first = shown[0] ?? none
  return {
    ...first,
    evidence: [...new Set((shown[0] === undefined ? [none] : shown).map((one) => one.evidence))].join("; ")
  }
}

/**
 * Clients of network filesystems, by the name under which nvidia-fs lists them (`modules_list` in nvfs-dma.c) and that of their section
 * in cuFile's configuration. Those in user space do RDMA by themselves and need cuFile's list of RDMA devices instead.
 */
const clients: ReadonlyMap<string, { readonly module: string; readonly section: string; readonly userSpace: boolean }> =
  new Map([
    ["nfs", { module: "rpcrdma", section: "nfs", userSpace: false }],
    ["nfs4", { module: "rpcrdma", section: "nfs", userSpace: false }],
    ["lustre", { module: "lnet", section: "lustre", userSpace: false }],
    ["beegfs", { module: "beegfs", section: "beegfs", userSpace: false }],
    ["scatefs", { module: "scatefs", section: "scatefs", userSpace: false }],
    ["wekafs", { module: "wekafsio", section: "weka", userSpace: true }],
    ["gpfs", { module: "mmfslinux", section: "gpfs", userSpace: true }]
  ])

/** Network filesystems that cuFile has no direct path for. */
const otherNetworkFilesystems = new Set([
  "cifs",
  "smb3",
  "ceph",
  "9p",
  "afs",
  "orangefs",
  "glusterfs",
  "fuse.glusterfs",
  "fuse.sshfs",
  "fuse.s3fs",
  "fuse.ceph",
  "fuse.juicefs"
])

const inMemory = new Set(["tmpfs", "ramfs"])

const isNetworkAttached = (type: string): boolean => clients.has(type) || otherNetworkFilesystems.has(type)

const describe = (device: BlockDevice): string =>
  `${device.name} (${[device.kind, device.detail, device.transport].filter((part) => part !== null).join(", ")})`

const isLeaf = (device: BlockDevice): boolean => device.over.length === 0

const sees = (input: GpuInput, path: string): string | null =>
  input.unseen.find((entry) => entry.what === path)?.reason ?? null

type Place = "local" | "network block" | "network" | "unknown"

const networkTransports = /^(?:rdma|tcp|fc|iscsi)(?:\+|$)/

const placeOf = ({ devices, filesystem }: GpuInput): Place => {
  if (isNetworkAttached(filesystem.type)) return "network"
  if (inMemory.has(filesystem.type)) return "local"
  const leaves = devices.filter(isLeaf)
  if (leaves.length === 0) return "unknown"
  if (leaves.some((leaf) => leaf.kind === "network" || networkTransports.test(leaf.transport ?? ""))) {
    return "network block"
  }
  return leaves.some((leaf) => leaf.kind === "nvme" && leaf.transport === null) ? "unknown" : "local"
}

/** `1.2.3.4@o2ib1,5.6.7.8@o2ib1:/scratch`: the network type stands behind the @ of each address (`lnet(7)`, Lustre manual). */
const lustreRdma = (source: string | null): Finding => {
  const networks = [...(source ?? "").matchAll(/@([a-z]+(?:\d?[a-z]+)?)\d*/g)].map((match) => match[1] ?? "")
  const evidence = `mounted from ${source ?? "?"}`
  if (networks.length > 0 && networks.every((network) => network === "o2ib")) return clear(evidence)
  return networks.length > 0 && networks.every((network) => network === "tcp")
    ? obstacle(evidence, "configure LNet with an o2ib network, and mount from an address @o2ib")
    : unclear(`${evidence}, which does not tell that all of it uses RDMA`, "lctl list_nids")
}

/** `nfs(5)`: proto= is shown whatever the mount command said. */
const nfsRdma = (options: ReadonlyArray<string>): Finding => {
  const transport = options.find((option) => option === "rdma" || option.startsWith("proto="))
  if (transport === undefined) return unclear("the mount options show no proto=")
  return transport === "rdma" || transport === "proto=rdma"
    ? clear(`mounted with ${transport}`)
    : obstacle(`mounted with ${transport}`, "mount -o proto=rdma,port=20049 …, where the server offers NFS over RDMA")
}

const mountRdma = ({ filesystem }: GpuInput): Finding => {
  switch (filesystem.type) {
    case "nfs":
    case "nfs4":
      return nfsRdma(filesystem.options)
    case "lustre":
      return lustreRdma(filesystem.source)
    case "beegfs": {
      const option = filesystem.options.find((option) => option.toLowerCase().startsWith("connuserdma="))
      if (option === undefined) {
        return unclear("the mount options do not tell; connUseRDMA in the client's configuration does")
      }
      return /=(?:true|1)$/i.test(option)
        ? clear(option)
        : obstacle(option, "set connUseRDMA = true in beegfs-client.conf")
    }
    case "wekafs":
      return unclear("the mount options of WekaFS do not tell", "weka local status; weka cluster processes")
    case "gpfs":
      return unclear("the mount options of Storage Scale do not tell", "mmlsconfig verbsRdma")
    case "ceph":
    case "fuse.sshfs":
    case "fuse.s3fs":
      return obstacle(`${filesystem.type} has no RDMA in its client`)
    default:
      return filesystem.options.some((option) => option === "rdma" || option === "trans=rdma")
        ? clear("mounted with rdma")
        : unclear(`the mount options of ${filesystem.type} do not tell`)
  }
}

const transportRdma = (devices: ReadonlyArray<BlockDevice>): Finding =>
  worst(
    devices.filter(isLeaf).map((leaf) =>
      leaf.transport === "rdma" || leaf.transport === "pcie"
        ? clear(describe(leaf))
        : /^(?:tcp|iscsi)$/.test(leaf.transport ?? "") || (leaf.kind === "network" && leaf.transport === null)
        ? obstacle(describe(leaf), leaf.kind === "nvme" ? "nvme connect -t rdma …, where the target offers it" : null)
        : unclear(`${describe(leaf)}: whether RDMA reaches it is not known`)
    ),
    unclear("no block device is known below the filesystem")
  )

/** Whether remote data comes without RDMA. */
const withoutRdma = (input: GpuInput, place: Place): Finding => {
  switch (place) {
    case "network":
      return mountRdma(input)
    case "network block":
      return transportRdma(input.devices)
    case "local":
      return clear(`local: ${below(input)}`)
    case "unknown":
      return unclear(`not known to be local: ${below(input)}`)
  }
}

const below = ({ devices, filesystem }: GpuInput): string =>
  devices.length === 0 ? filesystem.type : `${filesystem.type} on ${devices.map(describe).join(", ")}`

/**
 * What a device is for a DMA between storage and GPU. Release notes and support matrix name NVMe, NVMe over Fabrics and RAID 0 of them;
 * libcufile 1.15 to 1.18 refuses every other RAID level. Whatever maps or copies blocks in the CPU is in the way.
 */
const deviceDma = (device: BlockDevice, nvidiaFsModules: ReadonlyArray<string>): Finding => {
  const evidence = describe(device)
  switch (device.kind) {
    case "partition":
      return clear(evidence)
    case "md":
      return device.detail === "raid0"
        ? clear(evidence)
        : device.detail === null
        ? unclear(`${evidence}: level not known`)
        : obstacle(`${evidence}: cuFile takes RAID 0 only`, "put the directory on NVMe alone or in RAID 0")
    case "nvme":
      if (device.transport === "pcie" || device.transport === "rdma") return clear(evidence)
      return device.transport === "tcp" || device.transport === "loop"
        ? obstacle(
          `${evidence}: the CPU copies to and from sockets`,
          "nvme connect -t rdma …, where the target offers it"
        )
        : unclear(evidence)
    case "scsi":
      // Storage stacks with GPUDirect Storage of their own register scsi_mod with nvidia-fs.
      if (nvidiaFsModules.includes("scsi_mod")) return clear(evidence)
      return ["sata", "usb", "iscsi", "virtio", "mmc", "xen", "vmbus"].includes(device.transport ?? "")
        ? obstacle(evidence, "put the directory on NVMe")
        : unclear(evidence)
    case "other":
      return unclear(evidence)
    case "network":
      return device.transport === "rdma"
        ? unclear(evidence)
        : obstacle(`${evidence}: the CPU copies to and from sockets`)
    default:
      return obstacle(`${evidence}: the CPU is in the data path`, "put the directory on NVMe without layers between")
  }
}

const dmaPath = (input: GpuInput, place: Place, rdma: Finding): Finding => {
  const { devices, facts, filesystem } = input
  if (inMemory.has(filesystem.type)) {
    return obstacle(`${filesystem.type} is CPU memory`, "put the directory on NVMe")
  }
  if (filesystem.type === "overlay") {
    return obstacle(
      "overlay: cuFile finds no block device below it",
      "put the directory on a volume of its own, outside the container's root filesystem"
    )
  }
  if (place === "network") return rdma
  return worst(
    devices.map((device) => deviceDma(device, facts.nvidiaFs?.modules ?? [])),
    unclear(`no block device is known below ${filesystem.type}`)
  )
}

/** The names under which nvidia-fs must be registered for this storage. */
const neededModules = ({ devices, filesystem }: GpuInput): ReadonlyArray<string> => {
  const client = clients.get(filesystem.type)
  if (client !== undefined) return [client.module]
  return [
    ...new Set(
      devices.filter(isLeaf).flatMap((leaf) =>
        leaf.kind === "nvme" && leaf.transport === "pcie"
          ? ["nvme"]
          : leaf.kind === "nvme" && leaf.transport === "rdma"
          ? ["nvme_rdma"]
          : leaf.kind === "scsi"
          ? ["scsi_mod"]
          : []
      )
    )
  ]
}

const rdmaAddresses = ({ configuration, filesystem }: GpuInput): ReadonlyArray<string> =>
  [
    ...configuration.rdmaAddresses.all,
    ...configuration.rdmaAddresses.of[clients.get(filesystem.type)?.section ?? ""] ?? []
  ].filter((address) => address.trim() !== "")

const nvidiaFsPath = (input: GpuInput): Finding => {
  const { nvidiaFs } = input.facts
  if (nvidiaFs === null) {
    const reason = sees(input, NVIDIA_FS_VERSION)
    return reason === null
      ? obstacle("nvidia-fs is not loaded", "modprobe nvidia-fs (package nvidia-gds)")
      : unclear(`whether nvidia-fs is loaded is not shown: ${reason}`)
  }
  const loaded = `nvidia-fs ${nvidiaFs.version ?? ""}`.trim()
  if (clients.get(input.filesystem.type)?.userSpace === true) {
    const addresses = rdmaAddresses(input)
    return addresses.length > 0
      ? clear(`${loaded} is loaded and rdma_dev_addr_list has ${addresses.join(", ")}`)
      : unclear(
        `${loaded} is loaded and rdma_dev_addr_list is empty, so that cuFile must find RDMA devices by itself`,
        `set properties.rdma_dev_addr_list in ${input.configuration.path}`
      )
  }
  const needed = neededModules(input)
  const missing = needed.filter((name) => !nvidiaFs.modules.includes(name))
  if (needed.length === 0) {
    return unclear(`${loaded} is loaded; which driver must be registered with it is not known here`)
  }
  if (missing.length === 0) return clear(`${loaded} is registered with ${needed.join(", ")}`)
  const hidden = sees(input, NVIDIA_FS_MODULES)
  return hidden === null
    ? obstacle(
      `${loaded} is registered with ${nvidiaFs.modules.join(", ") || "no driver"}, not with ${missing.join(", ")}`,
      "install the storage drivers of NVIDIA DOCA or MLNX_OFED, then reload nvidia-fs"
    )
    : unclear(`${loaded} is loaded; whether it is registered with ${missing.join(", ")} is not shown: ${hidden}`)
}

/** -1, 0 or 1 of dotted numbers; what follows the numbers does not count. */
const compareVersions = (one: string, other: string): number => {
  const parts = (version: string) => (version.match(/^[\d.]+/)?.[0] ?? "").split(".").map(Number)
  const [left, right] = [parts(one), parts(other)]
  for (let index = 0; index < Math.max(left.length, right.length); index += 1) {
    const difference = (left[index] ?? 0) - (right[index] ?? 0)
    if (difference !== 0) return Math.sign(difference)
  }
  return 0
}

/** Beyond local NVMe, newer releases have it for NVMe over Fabrics, and for RAID 0 on NVIDIA's own CPUs, each with a key of its own. */
const p2pDmaDevices = (
  devices: ReadonlyArray<BlockDevice>,
  keys: CuFileConfiguration["blockP2pDma"]
): Finding => {
  const disks = devices.filter((device) => device.kind !== "partition")
  const evidence = "peer-to-peer DMA is for local NVMe alone"
  return worst(
    disks.map((disk) => {
      if (disk.kind === "nvme" && disk.transport === "pcie") return clear(describe(disk))
      if (disk.kind === "nvme" && disk.transport === null) return unclear(`${describe(disk)}: transport not known`)
      const newer = (disk.kind === "nvme" && disk.transport === "rdma" && keys.nvmeof === true) ||
        (disk.kind === "md" && disk.detail === "raid0" && keys.raid === true)
      return newer
        ? unclear(`${describe(disk)}: peer-to-peer DMA depends on the release of cuFile`)
        : obstacle(evidence)
    }),
    obstacle(evidence)
  )
}

/**
 * PCI peer-to-peer DMA (troubleshooting guide, "NVMe P2PDMA", and release notes, "Known Limitations"): ext4 or xfs on local NVMe, no RAID,
 * NVMe multipath off, open kernel module 565.47 or later, kernel 6.2 or later (others may have it built in, so older is not known).
 */
const p2pDmaPath = (input: GpuInput): Finding => {
  const { configuration, devices, facts, filesystem, kernelRelease } = input
  const say = `set properties.use_pci_p2pdma and block.nvme.use_pci_p2pdma in ${configuration.path}`
  const findings: Array<Finding> = []
  const off = configuration.usePciP2pDma
  if (off === false) findings.push(obstacle("properties.use_pci_p2pdma is off", say))
  if (off === null) findings.push(unclear("whether cuFile uses peer-to-peer DMA is not known"))
  if (configuration.blockP2pDma.nvme === false) findings.push(obstacle("block.nvme.use_pci_p2pdma is off", say))
  findings.push(p2pDmaDevices(devices, configuration.blockP2pDma))
  if (!["ext4", "xfs"].includes(filesystem.type)) findings.push(obstacle(`no peer-to-peer DMA on ${filesystem.type}`))
  if (input.openKernelModule === false) {
    findings.push(obstacle("the NVIDIA driver is not the open kernel module", "install the open kernel module"))
  }
  if (facts.driver !== null && compareVersions(facts.driver, "565.47") < 0) {
    findings.push(obstacle(`NVIDIA driver ${facts.driver} is older than 565.47`, "update the NVIDIA driver"))
  }
  if (facts.driver === null || input.openKernelModule === null) {
    findings.push(unclear("version or kind of the NVIDIA driver is not shown"))
  }
  if (kernelRelease === null || compareVersions(kernelRelease, "6.2") < 0) {
    findings.push(unclear(
      `kernel ${kernelRelease ?? "of unknown release"}: peer-to-peer DMA is certain from 6.2 on`,
      "grep p2pdma_pgmap_ops /proc/kallsyms"
    ))
  }
  if (input.nvmeMultipath === true) {
    findings.push(unclear(
      "nvme_core.multipath is on, and a device of several paths has no peer-to-peer DMA",
      "options nvme_core multipath=N"
    ))
  }
  if (facts.peerToPeerMemory !== true) {
    // The driver registers the memory when a process opens the GPU, so that none now does not mean none then.
    findings.push(unclear(
      "no GPU shows peer-to-peer memory in sysfs now",
      "options nvidia NVreg_RegistryDwords=\"RMForceStaticBar1=1;RmForceDisableIomapWC=1;\""
    ))
  }
  const finding = worst(findings, clear(""))
  if (finding.applies !== "no") return finding
  return clear(
    configuration.blockP2pDma.nvme === null
      ? "set up for peer-to-peer DMA; newer releases of cuFile also want block.nvme.use_pci_p2pdma"
      : "set up for peer-to-peer DMA"
  )
}

const driverOpened = clear("cuFileDriverOpen has opened the driver")

const driverState = (input: GpuInput): Finding => {
  if (input.driverAnswer?.opened === true) return driverOpened
  const { driver, gpus } = input.facts
  if (gpus !== null && gpus.length === 0) return obstacle("no NVIDIA GPU on the PCI bus")
  const hidden = sees(input, NVIDIA_VERSION)
  if (driver === null && hidden === null) {
    return obstacle("the NVIDIA driver is not loaded", "install and load the NVIDIA driver")
  }
  if (driver === null) return unclear(`whether the NVIDIA driver is loaded is not shown: ${hidden}`)
  return clear(`NVIDIA driver ${driver}`)
}

/** One way is enough; where none is certain, none is excluded that is not known. */
const gpuDriver = (state: Finding, nvidiaFs: Finding, p2pDma: Finding): Finding => {
  if (state.applies === "yes") return state
  const open = [nvidiaFs, p2pDma].find((path) => path.applies === "no") ??
    [nvidiaFs, p2pDma].find((path) => path.applies === "unknown")
  return open ?? { ...nvidiaFs, evidence: `${nvidiaFs.evidence}; ${p2pDma.evidence}` }
}

const withoutTrailingSlash = (path: string): string => path.length > 1 ? path.replace(/\/+$/, "") : path

/** What of this storage the deny list names; `nfs4` is one of the filesystems of `nfs`. */
const denied = (input: GpuInput): ReadonlyArray<string> => {
  const { configuration: { denyList }, devices, filesystem } = input
  const types = [filesystem.type, filesystem.type.replace(/^nfs4$/, "nfs")]
  const names = devices.flatMap((device) => [device.name, `/dev/${device.name}`])
  const modules = neededModules(input)
  const point = filesystem.mountPoint
  return [
    ...denyList.filesystems.filter((name) => types.includes(name)).map((name) => `denylist.filesystems has ${name}`),
    ...denyList.mounts.filter((name) => point !== null && withoutTrailingSlash(name) === point).map((name) =>
      `denylist.mounts has ${name}`
    ),
    ...denyList.devices.filter((name) => names.includes(name)).map((name) => `denylist.devices has ${name}`),
    ...denyList.drivers.filter((name) => modules.includes(name)).map((name) => `denylist.drivers has ${name}`)
  ]
}

/** XFS, ext4 with ordered data, and the clients that nvidia-fs knows (README of nvidia-fs). */
const filesystemSupport = (input: GpuInput): Finding => {
  const { filesystem } = input
  const { type } = filesystem
  if (type === "xfs" || clients.has(type)) return clear(type)
  if (type === "virtiofs") return unclear("virtiofs has a direct path in newer releases of cuFile only")
  if (type !== "ext4") return obstacle(`cuFile has no direct path on ${type}`)
  const data = filesystem.options.find((option) => option.startsWith("data="))
  return data === undefined || data === "data=ordered"
    ? clear(data === undefined ? "ext4 shows no data= option, taken as its default, ordered" : "ext4, data=ordered")
    : obstacle(`ext4 is mounted with ${data}`, "mount with data=ordered")
}

const ioState = (io: IoVerdict): Finding => {
  switch (io) {
    case "direct":
    case "direct-with-conditions":
      return clear(`I/O with O_DIRECT is ${io}`)
    case "unknown":
      return unclear("whether I/O with O_DIRECT is direct is not known")
    default:
      return obstacle(`I/O with O_DIRECT is ${io}`)
  }
}

const libraryState = ({ cuFile: { loads, name, reason }, driverAnswer }: GpuInput): Finding => {
  // A library that answers was loaded.
  if (driverAnswer !== undefined) return clear(`${name} loads`)
  const because = reason === null ? "" : `: ${reason}`
  switch (loads) {
    case true:
      return clear(`${name} loads`)
    case false:
      return obstacle(
        `${name} does not load${because}`,
        "install libcufile (CUDA toolkit), or name it: DISK_STORAGE_CUFILE_LIBRARY"
      )
    case null:
      return unclear(`whether ${name} loads is not known${because}`)
  }
}

/** What the configuration, or else the driver itself, says of its start. */
const startState = ({ configuration, driverAnswer }: GpuInput): Finding => {
  const { doubt, path, problem } = configuration
  const suspicion = problem ?? doubt
  if (driverAnswer?.opened === true) return driverOpened
  if (driverAnswer !== undefined) {
    const because = suspicion === null ? "" : `; ${suspicion}`
    return obstacle(
      `cuFile does not start: ${driverAnswer.reason}${because}`,
      suspicion === null ? "look at cufile.log" : `correct ${path}`
    )
  }
  if (problem !== null) {
    return obstacle(`cuFile does not start with its configuration: ${problem}`, `correct ${path}`)
  }
  return doubt === null
    ? clear(path)
    : unclear(`whether cuFile starts with its configuration is not known: ${doubt}`, `correct ${path}`)
}

const configurationState = (input: GpuInput): Finding => {
  const start = startState(input)
  if (start.applies !== "no") return start
  const { configuration } = input
  return configuration.forceCompatMode === null
    ? unclear("whether compatibility mode is forced is not known: force_compat_mode is neither true nor false")
    : clear(configuration.path)
}

const evidenceOf = (findings: ReadonlyArray<Finding>, applies: Answer): ReadonlyArray<string> =>
  findings.filter((finding) => finding.applies === applies).map((finding) => finding.evidence)

/** Some writes are copied even where reads are direct ("cuFile Compatibility Mode" in the API reference). */
const copiedWrites = ({ configuration: { rdmaWrites }, filesystem }: GpuInput, place: Place): ReadonlyArray<string> => {
  if (place !== "network") return []
  if (rdmaWrites.all === false) return ["writes are copied: properties.gds_rdma_write_support is off"]
  return filesystem.type === "wekafs" && rdmaWrites.weka === false
    ? ["writes are copied: fs.weka.rdma_write_support is off"]
    : []
}

interface Paths {
  readonly place: Place
  readonly rdma: Finding
  readonly dma: Finding
  readonly nvidiaFs: Finding
  readonly p2pDma: Finding
  readonly driver: Finding
}

interface Decision extends Omit<GpuJudgement, "conditions"> {
  /** Whether it is certain that there is no direct way. */
  readonly excluded: boolean
}

/** A direct way is one where nothing is in the way and nothing that could be is unknown. */
const decide = (input: GpuInput, paths: Paths): Decision => {
  const { configuration } = input
  const { dma, nvidiaFs, p2pDma, rdma } = paths
  const start = [driverState(input), libraryState(input), configurationState(input)]
  const fatal = evidenceOf(start, "yes")
  if (fatal.length > 0) return { verdict: "unavailable", reasons: fatal, excluded: true }
  if (configuration.forceCompatMode === true) {
    return { verdict: "compat", reasons: ["compatibility mode is forced: force_compat_mode is on"], excluded: true }
  }
  const supported = filesystemSupport(input)
  // Of devices that no DMA engine serves it does not matter how they are reached.
  const here = [supported, ioState(input.io), dma, ...(dma.applies === "no" ? [rdma] : [])]
  const against = [...denied(input), ...evidenceOf(here, "yes")]
  const open = evidenceOf([...start, ...here], "unknown")
  const hasPath = p2pDma.applies === "no" || nvidiaFs.applies === "no"
  if (hasPath && against.length === 0 && open.length === 0) {
    const evidence = p2pDma.applies === "no"
      ? [p2pDma.evidence, supported.evidence]
      : [nvidiaFs.evidence, supported.evidence, ...copiedWrites(input, paths.place)]
    return { verdict: p2pDma.applies === "no" ? "p2pdma" : "nvidia-fs", reasons: evidence, excluded: false }
  }
  const excluded = against.length > 0 || (p2pDma.applies === "yes" && nvidiaFs.applies === "yes")
  const why = against.length > 0
    ? against
    : hasPath
    ? open
    : [...dma.applies === "no" ? [] : [dma.evidence], nvidiaFs.evidence, p2pDma.evidence]
  const reasons = [...new Set([...why, ...open])]
  switch (configuration.allowCompatMode) {
    case true:
      return { verdict: "compat", reasons, excluded }
    case false:
      return {
        verdict: "unavailable",
        reasons: [...reasons, "compatibility mode is not allowed: allow_compat_mode is off"],
        excluded
      }
    case null:
      return {
        verdict: "compat",
        reasons: [...reasons, "whether compatibility mode is allowed is not known"],
        excluded
      }
  }
}

const compatMode = (input: GpuInput, decision: Decision): Finding => {
  const { configuration } = input
  const start = startState(input)
  if (start.applies !== "no") return unclear(start.evidence, start.remedy)
  if (configuration.forceCompatMode === true) {
    return obstacle(
      `forced in ${configuration.path} or CUFILE_FORCE_COMPAT_MODE`,
      "set properties.force_compat_mode to false"
    )
  }
  if (decision.verdict === "compat") {
    return decision.excluded
      ? obstacle(`cuFile copies here: ${decision.reasons.join("; ")}`)
      : unclear(`whether cuFile copies here is not known: ${decision.reasons.join("; ")}`)
  }
  switch (configuration.allowCompatMode) {
    case true:
      return clear("allowed: where there is no direct path cuFile copies, and does not say so")
    case false:
      return clear("off: where there is no direct path cuFile fails")
    case null:
      return unclear("whether it is allowed is not known")
  }
}

const networkAttached = (input: GpuInput, { nvidiaFs, place }: Paths): Finding => {
  const { type } = input.filesystem
  if (place === "unknown") return unclear(`not known to be block-based: ${below(input)}`)
  if (place !== "network") return clear(`not network-attached: ${below(input)}`)
  return clients.has(type)
    ? { ...nvidiaFs, evidence: `${type} is network-attached: ${nvidiaFs.evidence}` }
    : obstacle(`${type} is network-attached, and cuFile has no direct path for its client`)
}

const findings = (
  input: GpuInput,
  paths: Paths,
  decision: Decision
): { readonly [id in ConditionId]: Finding } => {
  const { place, rdma } = paths
  return {
    "gpu-driver": paths.driver,
    "dma-path": paths.dma,
    "remote-without-rdma": rdma,
    "compat-mode": compatMode(input, decision),
    "remote": place === "local" || place === "unknown"
      ? rdma
      : {
        ...rdma,
        evidence: `remote, ${place === "network" ? "a network filesystem" : "block-based"}: ${rdma.evidence}`
      },
    "network-attached": networkAttached(input, paths),
    "rdma-mount": place === "network"
      ? rdma
      : place === "unknown"
      ? unclear(`not known to be a network filesystem: ${below(input)}`)
      : clear(`not a network filesystem: ${below(input)}`)
  }
}

const toCondition = ({ id, section, title }: (typeof gpuConditions)[number], finding: Finding): Condition => ({
  id,
  section,
  title,
  applies: finding.applies,
  affects: ["read", "write"],
  bearsOn: ["gpu"],
  evidence: finding.evidence,
  remedy: finding.remedy
})

/**
 * What cuFile can do in a directory. Where a fact is missing its row is `unknown`; the verdict is then the most that is certain, and the
 * reasons name what is not.
 */
export const judgeGpu = (input: GpuInput): GpuJudgement => {
  const place = placeOf(input)
  const rdma = withoutRdma(input, place)
  const nvidiaFs = nvidiaFsPath(input)
  const p2pDma = p2pDmaPath(input)
  const paths: Paths = {
    place,
    rdma,
    dma: dmaPath(input, place, rdma),
    nvidiaFs,
    p2pDma,
    driver: gpuDriver(driverState(input), nvidiaFs, p2pDma)
  }
  const decision = decide(input, paths)
  const rows = findings(input, paths, decision)
  return {
    verdict: decision.verdict,
    reasons: decision.reasons,
    conditions: gpuConditions.map((row) => toCondition(row, rows[row.id]))
  }
}
