/** A directory, from its mount down to the disks, through real I/O, to the verdicts. */
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type {
  BlockDevice,
  Condition,
  DirectIoReport,
  Filesystem,
  InspectOptions,
  IoVerdict,
  Measurement,
  Unseen
} from "../../DirectIo.js"
import * as DiskStorageConfig from "../../DiskStorageConfig.js"
import { DirectoryUnusable } from "../../DiskStorageError.js"
import type { BufferUnavailable } from "../../DiskStorageError.js"
import type { IoEngine } from "../../IoEngine.js"
import { Syscalls } from "../../Syscalls.js"
import { decide as decideVerdict } from "../directIoVerdict.js"
import { filesystemName, statxHolds, usualCause } from "../filesystems.js"
import { stackOf, unpacked } from "./blockDevices.js"
import { decide } from "./conditions.js"
import { readCuFileConfiguration } from "./cuFileConfiguration.js"
import type { ZfsFacts } from "./decisions.js"
import { judgeGpu } from "./gpu.js"
import { gpuFacts } from "./gpuFacts.js"
import { measure, measuredBytes } from "./measure.js"
import { readMounts } from "./mounts.js"
import type { Mount } from "./mounts.js"
import type { Findings, PoolCounts } from "./probe.js"
import { probe } from "./probe.js"

/** Names of what `ioctl_iflags(2)` lists, as far as they say something here. */
const inodeFlags: ReadonlyArray<readonly [number, string]> = [
  [0x4, "COMPR"],
  [0x8, "SYNC"],
  [0x800, "ENCRYPT"],
  [0x4000, "JOURNAL_DATA"],
  [0x8_0000, "EXTENT"],
  [0x80_0000, "NOCOW"],
  [0x200_0000, "DAX"],
  [0x1000_0000, "INLINE_DATA"],
  [0x2000_0000, "PROJINHERIT"],
  [0x4000_0000, "CASEFOLD"]
]

/** The text of a small file, trimmed; null where it cannot be read. */
const textOf = (path: string) =>
  Effect.flatMap(FileSystem.FileSystem, (files) => files.readFileString(path)).pipe(
    Effect.map((text) => text.trim()),
    Effect.orElseSucceed(() => null)
  )

const namesIn = (directory: string) =>
  Effect.flatMap(FileSystem.FileSystem, (files) => files.readDirectory(directory)).pipe(
    Effect.orElseSucceed((): ReadonlyArray<string> => [])
  )

/** The same id where statx does not give it yet, before Linux 5.8 (`proc_pid_fdinfo(5)`). */
const mountIdOf = (fd: number) =>
  Effect.map(textOf(`/proc/self/fdinfo/${fd}`), (text) => {
    const id = /^mnt_id:\s*(\d+)$/m.exec(text ?? "")?.[1]
    return id === undefined ? undefined : Number(id)
  })

/** What a directory is, without needing the right to read it. */
const look = (directory: string) =>
  Effect.gen(function*() {
    const syscalls = yield* Syscalls
    const { O_CLOEXEC, O_DIRECTORY, O_PATH } = syscalls.flags
    return yield* Effect.acquireUseRelease(
      syscalls.open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC),
      (fd) =>
        Effect.gen(function*() {
          const statfs = yield* syscalls.fstatfs(fd)
          const statx = yield* syscalls.statx(fd)
          return { statfs, statx, mountId: statx.mountId ?? (yield* mountIdOf(fd)) }
        }),
      (fd) => Effect.ignore(syscalls.close(fd))
    )
  }).pipe(Effect.mapError((cause) => new DirectoryUnusable({ directory, cause })))

type Looked = Effect.Effect.Success<ReturnType<typeof look>>

/** The mount that an overlay's files are really on. */
const upperOf = (mount: Mount | undefined, mounts: ReadonlyArray<Mount>) =>
  Effect.gen(function*() {
    if (mount?.type !== "overlay") return undefined
    const directory = mount.superOptions.find((option) => option.startsWith("upperdir="))?.slice("upperdir=".length)
    // A relative one is relative to where somebody else stood when it was mounted.
    if (directory === undefined || !directory.startsWith("/")) return undefined
    const looked = yield* Effect.option(look(directory.replaceAll("\\,", ",").replaceAll("\\:", ":")))
    if (looked._tag === "None") return undefined
    const { mountId, statfs, statx } = looked.value
    const device = { major: statx.deviceMajor, minor: statx.deviceMinor }
    return { device, mount: mounts.find(({ id }) => id === mountId), type: statfs.type }
  })

const filesystemOf = ({ mountId, statfs }: Looked, mount: Mount | undefined): Filesystem => ({
  type: mount?.type ?? filesystemName(statfs.type),
  magic: statfs.type,
  mountId: mountId ?? null,
  mountPoint: mount?.mountPoint ?? null,
  source: mount?.source ?? null,
  options: mount === undefined ? [] : [...new Set([...mount.options, ...mount.superOptions])],
  blockSize: statfs.blockSize,
  total: statfs.total,
  available: statfs.available
})

const zfsFacts: Effect.Effect<ZfsFacts, never, FileSystem.FileSystem> = Effect.gen(function*() {
  const enabled = yield* textOf("/sys/module/zfs/parameters/zfs_dio_enabled")
  return { version: yield* textOf("/sys/module/zfs/version"), directEnabled: enabled === null ? null : enabled === "1" }
})

/** The kstat `iostats` of a pool: three columns, name, type and value (`module/zfs/spa_stats.c` of OpenZFS 2.3). */
const poolCountsOf = (source: string) => {
  const path = `/proc/spl/kstat/zfs/${source.split("/")[0] ?? ""}/iostats`
  return Effect.map(textOf(path), (text): PoolCounts | undefined => {
    const counted = (name: string) => {
      const value = new RegExp(`^${name}\\s+\\d+\\s+(\\d+)$`, "m").exec(text ?? "")?.[1]
      return value === undefined ? undefined : Number(value)
    }
    const of = (kind: "read" | "write") => {
      const [direct, arc] = [counted(`direct_${kind}_count`), counted(`arc_${kind}_count`)]
      return direct === undefined || arc === undefined ? undefined : { direct, arc }
    }
    const [reads, writes] = [of("read"), of("write")]
    return reads === undefined || writes === undefined ? undefined : { reads, writes }
  })
}

/** `/sys/fs/btrfs/<uuid>/allocation/data/<profile>`, of the filesystem that has one of the devices. */
const btrfsProfiles = (devices: ReadonlyArray<BlockDevice>) =>
  Effect.gen(function*() {
    for (const uuid of yield* namesIn("/sys/fs/btrfs")) {
      const members = yield* namesIn(`/sys/fs/btrfs/${uuid}/devices`)
      if (!devices.some(({ name }) => members.includes(name))) continue
      const names = yield* namesIn(`/sys/fs/btrfs/${uuid}/allocation/data`)
      return names.filter((name) => /^(?:single|dup|raid\w+)$/.test(name))
    }
    return undefined
  })

/** The types of the filesystems that hold the files of loop devices; undefined where one is not found. */
const loopFilesystems = (devices: ReadonlyArray<BlockDevice>, mounts: ReadonlyArray<Mount>) =>
  Effect.forEach(
    devices.filter(({ kind }) => kind === "loop"),
    ({ detail }) =>
      Effect.flatMap(FileSystem.FileSystem, (files) => files.stat(detail ?? "")).pipe(
        Effect.map(({ dev }) => {
          const { major, minor } = unpacked(dev)
          return mounts.find(({ device }) => device.major === major && device.minor === minor)?.type
        }),
        Effect.orElseSucceed(() => undefined)
      )
  )

/** Lustre's client: one directory a target below `/sys/fs/lustre/osc`. */
const lustreChecksums = Effect.gen(function*() {
  const targets = yield* namesIn("/sys/fs/lustre/osc")
  const values = yield* Effect.forEach(targets, (target) => textOf(`/sys/fs/lustre/osc/${target}/checksums`))
  if (values.some((value) => value !== null && value !== "0")) return true
  return values.length === 0 || values.includes(null) ? undefined : false
})

/** Rows that are what other rows lead to. */
const symptoms = new Set([
  "page-cache",
  "flag-ignored",
  "read-ahead",
  "extending",
  "allocating",
  "preallocated",
  "hole-filling",
  "delayed-allocation"
])

const judgeIo = (
  findings: Findings,
  filesystem: Filesystem,
  pagesType: number,
  conditions: ReadonlyArray<Condition>
): { readonly verdict: IoVerdict; readonly reasons: ReadonlyArray<string> } => {
  const { failure, openFlag, pool, probes, setFlag, statx } = findings
  const applying = conditions.filter(({ applies, bearsOn }) => applies === "yes" && bearsOn.includes("io"))
  const causes = applying.filter(({ id }) => !symptoms.has(id))
  const because = (causes.length > 0 ? causes : applying).map(({ evidence, title }) => `${title}: ${evidence}`)
  const said = statx === undefined
    ? "statx does not say"
    : statx.offsetAlignment === 0
    ? "statx answers that files here have no direct I/O"
    : `statx answers with an alignment of ${statx.memoryAlignment} bytes of memory and ${statx.offsetAlignment} of offset`
  if (setFlag === "refused" && openFlag === "refused") {
    return { verdict: "unsupported", reasons: [`${filesystem.type} refuses O_DIRECT, given to fcntl and to open`] }
  }
  if (setFlag !== null && setFlag !== "kept" && openFlag !== "kept") {
    return { verdict: "unsupported", reasons: ["O_DIRECT is not kept, given to fcntl or to open"] }
  }
  if (failure?.code === "EROFS") {
    return { verdict: "unsupported", reasons: [`nothing can be written here: ${failure.message}`] }
  }
  const kind = probes.some(({ file }) => file === "nocow") ? "nocow" : "as made here"
  const own = probes.filter(({ file }) => file === kind)
  const [written, read] = (["written", "read"] as const).map((wanted) => own.find(({ id }) => id === wanted))
  if (written === undefined || read === undefined) {
    return {
      verdict: "unknown",
      // Without a file statx was not asked.
      reasons: [
        failure === null ? "no I/O could be tried" : `${failure.step}: ${failure.message}`,
        ...(setFlag === null ? [] : [said])
      ]
    }
  }
  const whose = kind === "nocow" ? " of a NOCOW file, as DiskStorage makes them" : ""
  const seen = [`overwrite${whose}: ${written.evidence}`, `read${whose}: ${read.evidence}`]
  const arc = conditions.find(({ id }) => id === "zfs-arc")?.applies
  const { verdict } = decideVerdict({
    flag: true,
    statx,
    statxHolds: statxHolds(pagesType),
    write: written,
    read,
    ownCache: arc === "yes" ? "used" : arc === "no" && pool !== undefined ? "bypassed" : undefined
  })
  if (verdict === "buffered") {
    const cause = usualCause(pagesType, kind === "nocow")
    const known = cause === undefined ? [] : [cause]
    return { verdict, reasons: [...seen, ...known, ...(causes.length > 0 ? because : known.length > 0 ? [] : [said])] }
  }
  if (written.path === "refused" || read.path === "refused") return { verdict: "unsupported", reasons: seen }
  if (verdict === "unknown") return { verdict, reasons: [...seen, said] }
  // Overwrites and reads are direct; what is not known of other writes is not known to be.
  const open = own.filter(({ id, path }) => id !== "shared" && path === "unknown")
  const reasons = [
    ...seen,
    ...because,
    ...open.map(({ evidence, id }) => `not known of the try "${id}": ${evidence}`),
    ...(failure === null ? [] : [`not everything could be tried: ${failure.step}: ${failure.message}`])
  ]
  if (failure !== null) return { verdict: "unknown", reasons }
  return { verdict: applying.length + open.length > 0 ? "direct-with-conditions" : "direct", reasons }
}

/** What `measure` asks for, where there is room and something to measure. */
const measured = (directory: string, filesystem: Filesystem, verdict: IoVerdict) => {
  const refused = (
    reason: string
  ): { readonly measurement: Measurement | null; readonly unseen: ReadonlyArray<Unseen> } => ({
    measurement: null,
    unseen: [{ what: "speed", reason }]
  })
  if (filesystem.available < 2 * measuredBytes) {
    return Effect.succeed(refused(`less than ${2 * measuredBytes} bytes are available to measure with`))
  }
  if (verdict === "unsupported" || verdict === "buffered") {
    return Effect.succeed(refused(`I/O here is ${verdict}: what could be measured is not the disk`))
  }
  return Effect.match(measure(directory), {
    onFailure: (error) => refused(error.message),
    onSuccess: (measurement) => ({ measurement, unseen: [] })
  })
}

export const inspect = (
  directory: string,
  options: InspectOptions = {}
): Effect.Effect<
  DirectIoReport,
  DirectoryUnusable | BufferUnavailable,
  Syscalls | IoEngine | FileSystem.FileSystem
> =>
  Effect.gen(function*() {
    const syscalls = yield* Syscalls
    const looked = yield* look(directory)
    const { mountId, statx } = looked

    const read = yield* Effect.either(readMounts)
    const mounts = Either.getOrElse(read, (): ReadonlyArray<Mount> => [])
    const mount = mounts.find(({ id }) => id === mountId)
    const mountUnseen = Either.isLeft(read)
      ? [read.left]
      : mount === undefined
      ? [{ what: "the mount", reason: `mount ${mountId ?? "(of no known id)"} is not in /proc/self/mountinfo` }]
      : []
    const filesystem = filesystemOf(looked, mount)
    const upper = yield* upperOf(mount, mounts)
    const stack = yield* stackOf(
      upper?.device ?? { major: statx.deviceMajor, minor: statx.deviceMinor },
      upper === undefined ? mount : upper.mount,
      mounts
    )
    const { devices } = stack

    const { type } = looked.statfs
    // What the files lie on in the end: of an overlay, its upper directory's filesystem.
    const [below, source] = upper?.mount === undefined
      ? [filesystem.type, filesystem.source]
      : [upper.mount.type, upper.mount.source]
    // Below an overlay ZFS may hide, which has a cache of its own, where the kernel has it.
    const maybeZfs = filesystem.type === "overlay" && /\tzfs$/m.test((yield* textOf("/proc/filesystems")) ?? "\tzfs")
    const pagesType = upper?.type ?? (maybeZfs ? 0 : type)
    const findings = yield* probe({ directory, type, pagesType }, {
      // Where no device is seen there may be a loop device.
      dirtiesBelow: devices.length === 0
        ? stack.unseen.length > 0
        : devices.some(({ kind, loopDirectIo }) => kind === "loop" && loopDirectIo !== true),
      poolCounts: yield* Effect.map(FileSystem.FileSystem, (files) =>
        below === "zfs" && source !== null && source !== undefined
          ? Effect.provideService(poolCountsOf(source), FileSystem.FileSystem, files)
          : Effect.succeed(undefined))
    })
    const facts = {
      filesystem,
      upper: upper?.mount,
      devices,
      devicesUnseen: stack.unseen,
      loopFilesystems: yield* loopFilesystems(devices, mounts),
      findings,
      zfs: below === "zfs" ? yield* zfsFacts : undefined,
      btrfsProfiles: below === "btrfs" ? yield* btrfsProfiles(devices) : undefined,
      lustreChecksums: below === "lustre" ? yield* lustreChecksums : undefined
    }
    const conditions = decide(facts)
    const io = judgeIo(findings, filesystem, pagesType, conditions)

    const kernelRelease = yield* textOf("/proc/sys/kernel/osrelease")
    const configuration = yield* readCuFileConfiguration
    const name = yield* Effect.orElseSucceed(DiskStorageConfig.cuFileLibrary, () =>
      "libcufile.so.0")
    const library = yield* Effect.match(syscalls.dlopen(name), {
      onFailure: ({ code, message }) =>
        code === "ELIBACC"
          ? { name, loads: false, reason: "the loader does not find it, or a library that it needs" }
          : { name, loads: null, reason: message },
      onSuccess: () => ({ name, loads: true, reason: null })
    })
    const gpu = yield* gpuFacts(library, configuration)
    const onGpu = judgeGpu({
      ...gpu,
      configuration,
      filesystem,
      devices,
      io: io.verdict,
      kernelRelease,
      driverAnswer: options.driverAnswer
    })

    const speed = options.measure === true
      ? yield* measured(directory, filesystem, io.verdict)
      : { measurement: null, unseen: [] }
    const { alignment, failure, inodeFlags: flags, openFlag, probes, setFlag } = findings
    return {
      format: "effect-disk-storage doctor 1" as const,
      directory,
      verdict: { io: io.verdict, gpu: onGpu.verdict, reasons: { io: io.reasons, gpu: onGpu.reasons } },
      filesystem,
      devices,
      alignment: {
        ...alignment,
        statx: findings.statx === undefined ? null : {
          memory: findings.statx.memoryAlignment,
          offset: findings.statx.offsetAlignment,
          readOffset: findings.statx.readOffsetAlignment ?? null
        }
      },
      kernel: {
        release: kernelRelease,
        setFlag,
        openFlag,
        inodeFlags: flags === undefined
          ? null
          : inodeFlags.flatMap(([bit, name]) => ((flags & bit) === 0 ? [] : [name]))
      },
      probes,
      probeFailure: failure,
      measurement: speed.measurement,
      gpu: gpu.facts,
      conditions: [...onGpu.conditions, ...conditions],
      unseen: [...mountUnseen, ...stack.unseen, ...gpu.unseen, ...speed.unseen]
    }
  }).pipe(Effect.withSpan("DirectIo.inspect", { attributes: { directory } }))
