/** What sysfs and procfs say of NVIDIA's GPUs and drivers. Nothing here needs a GPU, CUDA or root. */
import type * as PlatformError from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import type { GpuFacts, Unseen } from "../../DirectIo.js"
import type { CuFileConfiguration } from "./cuFileConfiguration.js"

/** These are also what `unseen` names them by. */
export const NVIDIA_VERSION = "/proc/driver/nvidia/version"
export const NVIDIA_FS_MODULES = "/proc/driver/nvidia-fs/modules"
export const NVIDIA_FS_VERSION = "/proc/driver/nvidia-fs/version"

const NVIDIA_FS_STATS = "/proc/driver/nvidia-fs/stats"
const PCI_DEVICES = "/sys/bus/pci/devices"

/** Whether the library of cuFile loads, which only the caller can try; `reason` says why not, or why it was not tried. */
export interface CuFileLibrary {
  readonly name: string
  readonly loads: boolean | null
  readonly reason: string | null
}

/** `GpuFacts`, and what the verdict needs beyond them. */
export interface GpuFindings {
  readonly facts: GpuFacts
  readonly unseen: ReadonlyArray<Unseen>
  readonly cuFile: CuFileLibrary
  /** Whether the driver is the open kernel module: the one with peer-to-peer DMA. */
  readonly openKernelModule: boolean | null
  /** Whether the NVMe driver merges paths; a merged device has no peer-to-peer DMA. */
  readonly nvmeMultipath: boolean | null
}

interface Look<A> {
  readonly value: A | null
  readonly unseen: ReadonlyArray<Unseen>
}

const nothing: Look<never> = { value: null, unseen: [] }

/** What is not there is an answer; what may not be read is none. */
const orUnseen = (what: string) => (error: PlatformError.PlatformError): Effect.Effect<Look<never>> =>
  Effect.succeed(
    error._tag === "SystemError" && error.reason === "NotFound"
      ? nothing
      : { value: null, unseen: [{ what, reason: error.message }] }
  )

const text = (path: string): Effect.Effect<Look<string>, never, FileSystem.FileSystem> =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readFileString(path)).pipe(
    Effect.map((value): Look<string> => ({ value, unseen: [] })),
    Effect.catchAll(orUnseen(path))
  )

/** Whether a PCI device is a GPU of NVIDIA's, and what of it could not be read. */
const isGpu = (address: string) =>
  Effect.gen(function*() {
    const vendor = yield* text(`${PCI_DEVICES}/${address}/vendor`)
    const unseen = [...vendor.unseen]
    if (vendor.value?.trim() !== "0x10de") return { gpu: false, unseen }
    // PCI class 03: 00 is a VGA controller, 02 a 3D controller (pci_ids.h); the rest are bridges, audio and the like.
    const kind = yield* text(`${PCI_DEVICES}/${address}/class`)
    return { gpu: /^0x030[02]/.test(kind.value ?? ""), unseen: [...unseen, ...kind.unseen] }
  })

const findGpus = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const listed = yield* fs.readDirectory(PCI_DEVICES).pipe(
    Effect.map((value): Look<ReadonlyArray<string>> => ({ value, unseen: [] })),
    // A machine has no PCI bus, or a sandbox does not show it.
    Effect.catchAll((error) => Effect.succeed({ value: null, unseen: [{ what: PCI_DEVICES, reason: error.message }] }))
  )
  if (listed.value === null) return { value: null, unseen: listed.unseen }
  const looks = yield* Effect.forEach(
    listed.value,
    (address) => Effect.map(isGpu(address), (look) => ({ address, ...look })),
    { concurrency: 8 }
  )
  const gpus = looks.filter((look) => look.gpu).map((look) => look.address).sort()
  const unseen = looks.flatMap((look) => look.unseen)
  return { value: gpus.length === 0 && unseen.length > 0 ? null : gpus, unseen }
})

/** `p2pmem` is there where a driver registered memory (Documentation/ABI/testing/sysfs-bus-pci). */
const findPeerToPeerMemory = (gpus: ReadonlyArray<string> | null) =>
  Effect.gen(function*() {
    if (gpus === null) return nothing
    const sizes = yield* Effect.forEach(gpus, (address) => text(`${PCI_DEVICES}/${address}/p2pmem/size`))
    const unseen = sizes.flatMap((size) => size.unseen)
    const some = sizes.some((size) => Number(size.value ?? 0) > 0)
    return { value: some ? true : unseen.length > 0 ? null : false, unseen }
  })

/** `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  565.57.01  Release Build …`, closed: `… x86_64 Kernel Module  535.…`. */
const findDriver = (loaded: ReadonlySet<string>) =>
  Effect.gen(function*() {
    const shown = yield* text(NVIDIA_VERSION)
    const module = yield* text("/sys/module/nvidia/version")
    const line = shown.value?.split("\n").find((line) => line.startsWith("NVRM version:"))
    const version = line?.match(/\s(\d+\.\d+(?:\.\d+)?)\s/)?.[1] ?? module.value?.trim() ?? null
    const hidden = version === null && shown.unseen.length === 0 && (loaded.has("nvidia") || shown.value !== null)
    return {
      version,
      open: line === undefined ? null : line.includes("Open Kernel Module"),
      unseen: version !== null
        ? []
        : hidden
        ? [{ what: NVIDIA_VERSION, reason: "the module nvidia is loaded and its version is not shown" }]
        : [...shown.unseen, ...module.unseen.map(({ reason }) => ({ what: NVIDIA_VERSION, reason }))]
    }
  })

/**
 * The formats are those of nvidia-fs: `version: 2.17` and `nvme: 1.0` for each driver it is registered with (nvfs-proc.c), and
 * `NVFS Driver(version: 2.17.5)` (nvfs-stat.c), which has the patch level.
 */
const findNvidiaFs = (loaded: ReadonlySet<string>) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const version = yield* text(NVIDIA_FS_VERSION)
    const stats = yield* text(NVIDIA_FS_STATS)
    const modules = yield* text(NVIDIA_FS_MODULES)
    const inSysfs = yield* Effect.orElseSucceed(fs.exists("/sys/module/nvidia_fs"), () => false)
    const there = version.value !== null || modules.value !== null || inSysfs || loaded.has("nvidia_fs")
    if (!there) return { value: null, unseen: version.unseen }
    return {
      value: {
        version: stats.value?.match(/^NVFS Driver\(version: ([\d.]+)\)/m)?.[1] ??
          version.value?.match(/^version:\s*([\d.]+)/m)?.[1] ?? null,
        modules: (modules.value ?? "").split("\n").flatMap((line) => line.match(/^(\S+):/)?.[1] ?? [])
      },
      unseen: modules.value === null && modules.unseen.length === 0
        ? [{ what: NVIDIA_FS_MODULES, reason: "nvidia-fs is loaded, and this file is not shown" }]
        : modules.unseen
    }
  })

/** The first word of a line is a module's name (`proc_modules(5)`). */
const loadedModules = Effect.map(
  text("/proc/modules"),
  (look): ReadonlySet<string> => new Set((look.value ?? "").split("\n").map((line) => line.split(" ")[0] ?? ""))
)

const multipathOf = (value: string | null): boolean | null => {
  const letter = value?.trim()
  return letter === "Y" ? true : letter === "N" ? false : null
}

export const gpuFacts = (
  cuFile: CuFileLibrary,
  configuration: CuFileConfiguration
): Effect.Effect<GpuFindings, never, FileSystem.FileSystem> =>
  Effect.gen(function*() {
    const loaded = yield* loadedModules
    const gpus = yield* findGpus
    const driver = yield* findDriver(loaded)
    const nvidiaFs = yield* findNvidiaFs(loaded)
    const peer = yield* findPeerToPeerMemory(gpus.value)
    const multipath = yield* text("/sys/module/nvme_core/parameters/multipath")
    const library = cuFile.loads === null
      ? [{ what: cuFile.name, reason: cuFile.reason ?? "it was not tried" }]
      : []
    return {
      facts: {
        gpus: gpus.value,
        driver: driver.version,
        nvidiaFs: nvidiaFs.value,
        peerToPeerMemory: peer.value,
        cuFile: cuFile.loads,
        configuration: {
          path: configuration.path,
          problem: configuration.problem,
          allowCompatMode: configuration.allowCompatMode,
          forceCompatMode: configuration.forceCompatMode,
          usePciP2pDma: configuration.usePciP2pDma
        }
      },
      unseen: [...gpus.unseen, ...driver.unseen, ...nvidiaFs.unseen, ...peer.unseen, ...library],
      cuFile,
      openKernelModule: driver.open,
      nvmeMultipath: multipathOf(multipath.value)
    }
  })
