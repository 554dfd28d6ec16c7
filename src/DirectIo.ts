/**
 * Can this directory do direct I/O and GPUDirect Storage? Decided from real I/O on a file of its own and from what the kernel says
 * about filesystem, disks and drivers, with the evidence.
 *
 * @since 0.1.0
 */
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { DiskStorage, Extent } from "./DiskStorage.js"
import { ExtentKind } from "./DiskStorage.js"
import type {
  BufferUnavailable,
  DirectoryUnusable,
  ExtentsUnavailable,
  InvalidOption,
  StorageClosed
} from "./DiskStorageError.js"
import { booleanRefused, objectRefused, stringRefused } from "./internal/arguments.js"
import { rows } from "./internal/directIo/conditions.js"
import { gpuConditions } from "./internal/directIo/gpu.js"
import * as internal from "./internal/directIo/inspect.js"
import * as internalExtents from "./internal/extents.js"
import type { IoEngine } from "./IoEngine.js"
import type { Syscalls } from "./Syscalls.js"

/**
 * The verdict on I/O with O_DIRECT here:
 *
 * - `direct`: reads and every kind of write bypass the page cache.
 * - `direct-with-conditions`: reads and overwrites do; the conditions that apply say what does not, or what is done to the data below.
 * - `buffered`: O_DIRECT is taken and the page cache is used all the same.
 * - `unsupported`: O_DIRECT is refused, or nothing can be written here.
 * - `unknown`: it could not be found out; the reasons say why.
 *
 * @since 0.1.0
 * @category models
 */
export const IoVerdict = Schema.Literal("direct", "direct-with-conditions", "buffered", "unsupported", "unknown")

/**
 * @since 0.1.0
 * @category models
 */
export type IoVerdict = typeof IoVerdict.Type

/**
 * The verdict on cuFile here:
 *
 * - `nvidia-fs`: the DMA goes between storage and GPU memory, through the module nvidia-fs.
 * - `p2pdma`: the same through the kernel's PCI peer-to-peer DMA, without that module.
 * - `compat`: cuFile works, by copying through CPU memory as far as is known; the reasons name what is not.
 * - `unavailable`: cuFile does not work here.
 *
 * @since 0.1.0
 * @category models
 */
export const GpuVerdict = Schema.Literal("nvidia-fs", "p2pdma", "compat", "unavailable")

/**
 * @since 0.1.0
 * @category models
 */
export type GpuVerdict = typeof GpuVerdict.Type

/**
 * One condition of the GPUDirect Storage O_DIRECT guide. `section` is the guide's; `applies`: whether it holds here, and so degrades
 * I/O; `affects`: what it degrades (a first write is one to a block that has not been written before); `bearsOn`: the verdicts
 * that it weighs on; `evidence`: what was observed; `remedy`: a command or an option, `null` where nothing is to be done.
 *
 * @since 0.1.0
 * @category models
 */
export const Condition = Schema.Struct({
  id: Schema.String,
  section: Schema.String,
  title: Schema.String,
  applies: Schema.Literal("yes", "no", "unknown"),
  affects: Schema.Array(Schema.Literal("read", "write", "first write")),
  bearsOn: Schema.Array(Schema.Literal("io", "gpu")),
  evidence: Schema.String,
  remedy: Schema.NullOr(Schema.String)
})

/**
 * @since 0.1.0
 * @category models
 */
export type Condition = typeof Condition.Type

/**
 * Something that could not be looked at, and why.
 *
 * @since 0.1.0
 * @category models
 */
export const Unseen = Schema.Struct({ what: Schema.String, reason: Schema.String })

/**
 * @since 0.1.0
 * @category models
 */
export type Unseen = typeof Unseen.Type

/**
 * The filesystem, found by the mount id that `statx(2)` gives, so that no other mount can be taken for it. `magic` is
 * `statfs(2)`'s number; `options` are those of the mount, then those of the filesystem (`proc_pid_mountinfo(5)`); sizes are bytes.
 *
 * @since 0.1.0
 * @category models
 */
export const Filesystem = Schema.Struct({
  type: Schema.String,
  magic: Schema.Int,
  mountId: Schema.NullOr(Schema.Int),
  mountPoint: Schema.NullOr(Schema.String),
  source: Schema.NullOr(Schema.String),
  options: Schema.Array(Schema.String),
  blockSize: Schema.Int,
  total: Schema.Number,
  available: Schema.Number
})

/**
 * @since 0.1.0
 * @category models
 */
export type Filesystem = typeof Filesystem.Type

/**
 * One block device of the stack below the filesystem, from sysfs (`Documentation/ABI/stable/sysfs-block`); sizes are bytes, `null` what
 * is not there.
 *
 * @since 0.1.0
 * @category models
 */
export const BlockDevice = Schema.Struct({
  /** The kernel's name: `nvme0n1p1`. */
  name: Schema.String,
  /** Major and minor number: `259:1`. */
  number: Schema.String,
  kind: Schema.Literal(
    "partition",
    "loop",
    "dm",
    "md",
    "bcache",
    "zram",
    "nvme",
    "virtio",
    "scsi",
    "pmem",
    "network",
    "other"
  ),
  /** The names of the devices that this one is made of. */
  over: Schema.Array(Schema.String),
  /**
   * dm: its target (`crypt`, `linear`, `cache`, …), as far as names tell; md: its level; bcache: its cache mode; loop: the backing file; network: the
   * driver (`nbd`, `rbd`, `drbd`).
   */
  detail: Schema.NullOr(Schema.String),
  /** `pcie`, `rdma`, `tcp`, `fc`, `virtio`, `sata`, `sas`, `usb`, `iscsi`, … */
  transport: Schema.NullOr(Schema.String),
  rotational: Schema.NullOr(Schema.Boolean),
  logicalSector: Schema.NullOr(Schema.Int),
  physicalSector: Schema.NullOr(Schema.Int),
  readAhead: Schema.NullOr(Schema.Number),
  dax: Schema.NullOr(Schema.Boolean),
  /** The format of protection information (T10-DIF-…), where the device keeps any. */
  integrity: Schema.NullOr(Schema.String),
  /** loop: whether it reads and writes its file with direct I/O. */
  loopDirectIo: Schema.NullOr(Schema.Boolean)
})

/**
 * @since 0.1.0
 * @category models
 */
export type BlockDevice = typeof BlockDevice.Type

const Multiples = Schema.Struct({ memory: Schema.Int, offset: Schema.Int, length: Schema.Int })

/**
 * What a direct transfer must be a multiple of, in bytes, as smaller and smaller attempts found it; `null` where none was made or
 * none was direct. `statx` is what the kernel answers (0: no direct I/O), `null` where it does not.
 *
 * @since 0.1.0
 * @category models
 */
export const Alignment = Schema.Struct({
  read: Schema.NullOr(Multiples),
  write: Schema.NullOr(Multiples),
  statx: Schema.NullOr(Schema.Struct({ memory: Schema.Int, offset: Schema.Int, readOffset: Schema.NullOr(Schema.Int) }))
})

/**
 * @since 0.1.0
 * @category models
 */
export type Alignment = typeof Alignment.Type

/**
 * What the kernel says. `setFlag` and `openFlag`: what became of O_DIRECT given to `fcntl(F_SETFL)` and to `open`, read back with
 * F_GETFL. `inodeFlags`: of a new file here, by their names in `ioctl_iflags(2)`.
 *
 * @since 0.1.0
 * @category models
 */
export const KernelFacts = Schema.Struct({
  release: Schema.NullOr(Schema.String),
  setFlag: Schema.NullOr(Schema.Literal("kept", "ignored", "refused")),
  openFlag: Schema.NullOr(Schema.Literal("kept", "ignored", "refused")),
  inodeFlags: Schema.NullOr(Schema.Array(Schema.String))
})

/**
 * @since 0.1.0
 * @category models
 */
export type KernelFacts = typeof KernelFacts.Type

/**
 * What is known of GPUs and of GPUDirect Storage on this machine.
 *
 * @since 0.1.0
 * @category models
 */
export const GpuFacts = Schema.Struct({
  /** PCI addresses of NVIDIA GPUs; `null` where sysfs cannot be read. */
  gpus: Schema.NullOr(Schema.Array(Schema.String)),
  /** The version of the NVIDIA driver that is loaded. */
  driver: Schema.NullOr(Schema.String),
  /** `version` of nvidia-fs where it is loaded; `modules` are the storage drivers that it is registered with. */
  nvidiaFs: Schema.NullOr(
    Schema.Struct({ version: Schema.NullOr(Schema.String), modules: Schema.Array(Schema.String) })
  ),
  /** Whether a GPU offers memory for the kernel's peer-to-peer DMA. */
  peerToPeerMemory: Schema.NullOr(Schema.Boolean),
  /** Whether the loader finds and loads `libcufile.so.0`, or what `DISK_STORAGE_CUFILE_LIBRARY` names. */
  cuFile: Schema.NullOr(Schema.Boolean),
  /** The cuFile configuration: where it is, what it says of compatibility mode and peer-to-peer DMA, and what is wrong with it. */
  configuration: Schema.Struct({
    path: Schema.String,
    problem: Schema.NullOr(Schema.String),
    allowCompatMode: Schema.NullOr(Schema.Boolean),
    forceCompatMode: Schema.NullOr(Schema.Boolean),
    usePciP2pDma: Schema.NullOr(Schema.Boolean)
  })
})

/**
 * @since 0.1.0
 * @category models
 */
export type GpuFacts = typeof GpuFacts.Type

const Pages = Schema.NullOr(Schema.Struct({ before: Schema.Int, after: Schema.Int }))

/**
 * One try of real I/O with O_DIRECT.
 *
 * - `id`: `extending` the file; `allocating` at the end of a sparse one; onto `preallocated`, unwritten extents; into a `hole` between
 *   written ones; over `written` extents; over `shared` ones, of which a reflinked copy exists; `inline`: the first bytes of a file so
 *   small that it may live in its inode; `read`: of written extents.
 * - `file`: `as made here`, or made `nocow`, as a `DiskStorage` does where that makes I/O direct (btrfs).
 * - `path`: where the bytes went. `buffered`: through the page cache; `refused`: the kernel said no; `not tried`: it could not be set up.
 * - `cached` and `mapped`: pages of the range in the page cache, by `cachestat(2)`, and by `mincore(2)` of a mapping. A buffered write
 *   leaves a mapped page where it is; a direct one takes it out. `mapped` sees through an overlay, and after a filesystem that
 *   drops its pages behind a buffered write (btrfs); `cached` does not. `dirtied`: pages dirtied meanwhile in the whole system.
 * - `extentsBefore`, `extentsAfter`: the kinds of extent that the range was and is made of; `null` without FIEMAP.
 *
 * @since 0.1.0
 * @category models
 */
export const Probe = Schema.Struct({
  id: Schema.Literal("extending", "allocating", "preallocated", "hole", "written", "shared", "inline", "read"),
  file: Schema.Literal("as made here", "nocow"),
  path: Schema.Literal("direct", "buffered", "refused", "not tried", "unknown"),
  bytes: Schema.Int,
  cached: Pages,
  mapped: Pages,
  dirtied: Schema.NullOr(Schema.Int),
  extentsBefore: Schema.NullOr(Schema.Array(ExtentKind)),
  extentsAfter: Schema.NullOr(Schema.Array(ExtentKind)),
  evidence: Schema.String
})

/**
 * @since 0.1.0
 * @category models
 */
export type Probe = typeof Probe.Type

/**
 * Bytes per second of random direct I/O, `blockSize` bytes each and `depth` in flight, medians of interleaved rounds: reads, first writes onto
 * preallocated extents, and writes over written ones. `firstWriteRatio` is rewrites to first writes: above 1, `prewrite` makes first
 * writes faster.
 *
 * @since 0.1.0
 * @category models
 */
export const Measurement = Schema.Struct({
  blockSize: Schema.Int,
  depth: Schema.Int,
  rounds: Schema.Int,
  engine: Schema.String,
  reads: Schema.Number,
  firstWrites: Schema.Number,
  rewrites: Schema.Number,
  firstWriteRatio: Schema.Number
})

/**
 * @since 0.1.0
 * @category models
 */
export type Measurement = typeof Measurement.Type

/**
 * What stood in the way of the probe: the step, the kernel's answer, and what that means. The rest of the report stands without it.
 *
 * @since 0.1.0
 * @category models
 */
export const ProbeFailure = Schema.Struct({ step: Schema.String, code: Schema.String, message: Schema.String })

/**
 * @since 0.1.0
 * @category models
 */
export type ProbeFailure = typeof ProbeFailure.Type

/**
 * Everything that was found out about a directory. Its JSON form is stable within a `format`.
 *
 * @since 0.1.0
 * @category models
 */
export const DirectIoReport = Schema.Struct({
  format: Schema.Literal("effect-disk-storage doctor 1"),
  directory: Schema.String,
  verdict: Schema.Struct({
    io: IoVerdict,
    gpu: GpuVerdict,
    reasons: Schema.Struct({ io: Schema.Array(Schema.String), gpu: Schema.Array(Schema.String) })
  }),
  filesystem: Filesystem,
  devices: Schema.Array(BlockDevice),
  alignment: Alignment,
  kernel: KernelFacts,
  probes: Schema.Array(Probe),
  probeFailure: Schema.NullOr(ProbeFailure),
  measurement: Schema.NullOr(Measurement),
  gpu: GpuFacts,
  conditions: Schema.Array(Condition),
  unseen: Schema.Array(Unseen)
})

/**
 * @since 0.1.0
 * @category models
 */
export type DirectIoReport = typeof DirectIoReport.Type

/**
 * The answer of `cuFileDriverOpen` in this process; `reason` names the error. `DevicePath` has it as `driverAnswer`.
 *
 * @since 0.1.0
 * @category models
 */
export type DriverAnswer = { readonly opened: true } | { readonly opened: false; readonly reason: string }

/**
 * @since 0.1.0
 * @category models
 */
export interface InspectOptions {
  /**
   * Time reads, first writes and rewrites, too: five rounds over a file of 64 MiB, which the directory must have room for twice. Not
   * done, and said in `unseen`, where that room is missing or I/O is buffered or unsupported. Default false.
   */
  readonly measure?: boolean | undefined
  /** Outranks what the configuration of cuFile and the files of the NVIDIA driver show. Default: the driver was not opened. */
  readonly driverAnswer?: DriverAnswer | undefined
}

/**
 * Inspects a directory: its filesystem and the disks below, real I/O on a small file of its own (some MiB, without a name from the
 * start, gone at the end), every condition of the O_DIRECT guide, and the verdicts on I/O and on GPUDirect Storage. It needs neither
 * root, a GPU nor CUDA, and changes nothing; libcufile stays loaded where there is one.
 *
 * Fails with `DirectoryUnusable` when there is no such directory, or no way to it, and with `InvalidOption` for arguments of a wrong type. Everything else that cannot be seen or done is part of
 * the report: `probeFailure`, `unseen`, rows that are `unknown`.
 *
 * @example
 * ```ts
 * import { DirectIo, Linux } from "effect-disk-storage"
 * import { NodeContext } from "@effect/platform-node"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 *
 * const program = DirectIo.inspect("/mnt/nvme").pipe(
 *   Effect.flatMap(({ verdict }) => Console.log(verdict.io, verdict.reasons.io)),
 *   Effect.provide(Linux.layer),
 *   Effect.provide(NodeContext.layer)
 * )
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const inspect: (
  directory: string,
  options?: InspectOptions
) => Effect.Effect<
  DirectIoReport,
  DirectoryUnusable | BufferUnavailable | InvalidOption,
  Syscalls | IoEngine | FileSystem.FileSystem
> = (directory, options = {}) => {
  const wrong = stringRefused("directory", directory, "a path") ?? objectRefused("options", options) ??
    booleanRefused("measure", options.measure)
  return wrong === undefined ? internal.inspect(directory, options) : Effect.fail(wrong)
}

/**
 * How each condition is decided: the rows of a report, in its order, by `id`.
 *
 * @since 0.1.0
 * @category models
 */
export const conditions: ReadonlyArray<
  { readonly id: string; readonly section: string; readonly title: string; readonly decidedBy: string }
> = [...gpuConditions, ...rows.map(({ decidedBy, id, section, title }) => ({ id, section, title, decidedBy }))]

/**
 * The map of a file, in order and without gaps: which condition the next write to a range meets. A path is opened to read, and nothing
 * in it is changed. Fails with `ExtentsUnavailable` where the file cannot be opened or its filesystem has no map, and with `InvalidOption`
 * where it is neither a path nor a storage.
 *
 * @since 0.1.0
 * @category combinators
 */
export const extents: {
  (storage: DiskStorage): Effect.Effect<ReadonlyArray<Extent>, StorageClosed | ExtentsUnavailable | InvalidOption>
  (path: string): Effect.Effect<ReadonlyArray<Extent>, ExtentsUnavailable | InvalidOption, Syscalls>
} = internalExtents.extents
