/**
 * The block devices below a filesystem, from sysfs: `Documentation/ABI/stable/sysfs-block`, `sysfs-block-dm`,
 * `Documentation/admin-guide/md.rst`, `bcache.rst` and `devices.txt`.
 */
import type { PlatformError } from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { BlockDevice, Unseen } from "../../DirectIo.js"
import { dmTarget } from "./dmTarget.js"
import type { DeviceNumber, Mount } from "./mounts.js"

export interface Stack {
  readonly devices: ReadonlyArray<BlockDevice>
  readonly unseen: ReadonlyArray<Unseen>
}

type Kind = BlockDevice["kind"]

/** No stack that anybody builds is deeper or wider; where one is, that is said. */
const MAX_DEPTH = 16
const MAX_DEVICES = 512

/** Where each driver's disks are told apart by: the names that drivers give their disks; no one else can rename them. */
const kinds: ReadonlyArray<readonly [names: RegExp, kind: Kind]> = [
  [/^loop\d/, "loop"],
  [/^dm-\d/, "dm"],
  [/^md[\d_]/, "md"],
  [/^bcache\d/, "bcache"],
  [/^zram\d/, "zram"],
  [/^nvme\d/, "nvme"],
  [/^vd[a-z]/, "virtio"],
  [/^(?:sd[a-z]|sr\d)/, "scsi"],
  [/^pmem\d/, "pmem"],
  [/^(?:nbd|rbd|drbd|rnbd)\d|^etherd\//, "network"]
]

/**
 * How a disk is attached, from what lies above it in `/sys/devices`: the classes that `drivers/scsi/scsi_transport_*.c`, libata,
 * usb, virtio, mmc, xen and hyper-v name their devices by.
 */
const buses: ReadonlyArray<readonly [part: RegExp, transport: string]> = [
  [/\/session\d+\//, "iscsi"],
  [/\/rport-\d+:\d+-\d+\//, "fc"],
  [/\/end_device-/, "sas"],
  [/\/usb\d+\//, "usb"],
  [/\/ata\d+\//, "sata"],
  [/\/virtio\d+\//, "virtio"],
  [/\/mmc_host\//, "mmc"],
  [/\/vbd-\d+\//, "xen"],
  [/\/(?:VMBUS|MSFT1000):\d+\//i, "vmbus"]
]

const lookUp = <A>(table: ReadonlyArray<readonly [RegExp, A]>, text: string): A | undefined =>
  table.find(([pattern]) => pattern.test(text))?.[1]

const lastPart = (path: string): string => path.slice(path.lastIndexOf("/") + 1)

/** sysfs writes the `/` of a name such as `cciss/c0d0` as `!`. */
const nameOf = (directory: string): string => lastPart(directory).replaceAll("!", "/")

const written = ({ major, minor }: DeviceNumber): string => `${major}:${minor}`

/** Parts of the number that `stat(2)` gives, as the C library packs them (`gnu_dev_major` in `sys/sysmacros.h`). */
export const unpacked = (device: number): DeviceNumber => {
  const bits = BigInt(device)
  return {
    major: Number((bits >> 32n & 0xffff_f000n) | (bits >> 8n & 0xfffn)),
    minor: Number((bits >> 12n & 0xffff_ff00n) | (bits & 0xffn))
  }
}

const isMissing = (error: PlatformError): boolean => error._tag === "SystemError" && error.reason === "NotFound"

/** One line; `null` where there is none. */
const text = (path: string) =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readFileString(path)).pipe(
    Effect.map((content): string | null => content.replace(/\n$/, "")),
    Effect.catchIf(isMissing, () => Effect.succeed(null))
  )

/** Where it is enough that something else tells. */
const textIfReadable = (path: string) => Effect.orElseSucceed(text(path), () => null)

/** An attribute by its path below a device's directory; `null` where there is none, and where it cannot be read, which is then unseen. */
type Read = (attribute: string) => Effect.Effect<string | null, never, FileSystem.FileSystem>

const number = (read: Read, attribute: string) =>
  Effect.map(read(attribute), (content) => content !== null && /^\d+$/.test(content) ? Number(content) : null)

const flag = (read: Read, attribute: string) =>
  Effect.map(read(attribute), (content) => content === "1" ? true : content === "0" ? false : null)

const entries = (directory: string) => Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readDirectory(directory))

const realPath = (path: string) => Effect.flatMap(FileSystem.FileSystem, (fs) => fs.realPath(path))

/**
 * A controller says how it is attached (`drivers/nvme/host/sysfs.c`). The head of several paths hangs below its subsystem instead, which
 * has a link to each controller.
 */
const nvmeTransport = Effect.fnUntraced(function*(directory: string, read: Read) {
  const own = yield* read("device/transport")
  if (own !== null) return own
  const links = yield* Effect.orElseSucceed(entries(`${directory}/device`), () => [])
  const found = yield* Effect.forEach(
    links.filter((name) => /^nvme\d+$/.test(name)),
    (name) => read(`device/${name}/transport`)
  )
  if (found.length === 0 || found.includes(null)) return null
  return [...new Set(found)].sort().join("+")
})

/** bcache without a cache yet keeps the mode that it would have. */
const cacheMode = Effect.fnUntraced(function*(read: Read) {
  if ((yield* read("bcache/state")) === "no cache") return "none"
  return /\[(\w+)\]/.exec((yield* read("bcache/cache_mode")) ?? "")?.[1] ?? null
})

/** `none` and `nop` say that no protection information is kept. */
const integrityFormat = (read: Read) =>
  Effect.map(read("integrity/format"), (format) => format === "none" || format === "nop" ? null : format)

const kindOf = (directory: string, read: Read) =>
  Effect.map(
    read("partition"),
    (partition): Kind => partition !== null ? "partition" : lookUp(kinds, nameOf(directory)) ?? "other"
  )

/** Each device is a directory of `/sys/devices`; `unseen` collects what hides something that may decide. */
const makeWalk = (mounts: ReadonlyArray<Mount>) => {
  const devices = new Map<string, BlockDevice>()
  const unseen: Array<Unseen> = []

  const unreadable = new Set<string>()

  const hidden = (what: string, reason: string) =>
    Effect.sync((): ReadonlyArray<string> => {
      unseen.push({ what, reason })
      return []
    })

  /** One attribute that cannot be read tells of its device; that others cannot either adds nothing. */
  const readerOf = (directory: string): Read => (attribute) =>
    Effect.catchAll(text(`${directory}/${attribute}`), (error) =>
      Effect.sync(() => {
        if (!unreadable.has(directory)) unseen.push({ what: `${directory}/${attribute}`, reason: error.message })
        unreadable.add(directory)
        return null
      }))

  /** One filesystem's devices are told by any device that it was mounted from, or by there being no other filesystem. */
  const btrfsDevices = Effect.fnUntraced(function*(mount: Mount) {
    const fs = yield* FileSystem.FileSystem
    const real = yield* Effect.orElseSucceed(fs.realPath(mount.source), () => mount.source)
    const node = yield* Effect.option(fs.stat(mount.source))
    const sourceNumber = Option.getOrNull(
      Option.map(Option.flatMap(node, ({ rdev }) => rdev), (rdev) => written(unpacked(rdev)))
    )
    const isSource = Effect.fnUntraced(function*(directory: string) {
      if (lastPart(directory) === lastPart(real)) return true
      if (sourceNumber !== null && (yield* textIfReadable(`${directory}/dev`)) === sourceNumber) return true
      return (yield* textIfReadable(`${directory}/dm/name`)) === lastPart(mount.source)
    })

    const every: Array<ReadonlyArray<string>> = []
    for (const uuid of yield* fs.readDirectory("/sys/fs/btrfs")) {
      const links = `/sys/fs/btrfs/${uuid}/devices`
      // Beside the filesystems lies `features`, which has no devices.
      const names = yield* Effect.catchIf(fs.readDirectory(links), isMissing, () => Effect.succeed([]))
      if (names.length === 0) continue
      const directories = yield* Effect.forEach([...names].sort(), (name) => fs.realPath(`${links}/${name}`))
      if ((yield* Effect.forEach(directories, isSource)).includes(true)) return directories
      every.push(directories)
    }
    const [only] = every
    if (only !== undefined && every.length === 1) return only
    return yield* hidden(
      `the devices of btrfs on ${mount.mountPoint}`,
      `/sys/fs/btrfs has ${every.length} filesystems, none of them with ${mount.source}; btrfs filesystem show tells`
    )
  })

  /** Where a filesystem with this `st_dev` lies: one device or, where the filesystem itself spans several, all of them. */
  const topsOf = (device: DeviceNumber, mount: Mount | undefined) => {
    const link = `/sys/dev/block/${written(device)}`
    if (device.major !== 0) {
      return Effect.catchAll(
        Effect.map(realPath(link), (directory): ReadonlyArray<string> => [directory]),
        (error) => hidden(link, error.message)
      )
    }
    if (mount === undefined) {
      return hidden(`the devices of ${written(device)}`, "it is no block device's number, and no mount has it")
    }
    switch (mount.type) {
      case "btrfs":
        return Effect.catchAll(
          btrfsDevices(mount),
          (error) => hidden(`the devices of btrfs on ${mount.mountPoint}`, error.message)
        )
      case "overlay":
        return hidden(
          `the devices below overlay on ${mount.mountPoint}`,
          "an overlay has none of its own; those of its upper directory count"
        )
      case "zfs":
      case "bcachefs":
        return hidden(
          `the devices of ${mount.type} on ${mount.mountPoint}`,
          mount.type === "zfs"
            ? "sysfs does not tell; zpool status does"
            : `not looked up; its source is ${mount.source}`
        )
      default:
        return Effect.succeed<ReadonlyArray<string>>([])
    }
  }

  /**
   * btrfs gives each subvolume a number that mountinfo does not have, so there a mount is known by its root's number; the last mount on a
   * path is the one that is seen.
   */
  const mountWith = Effect.fnUntraced(function*(device: DeviceNumber) {
    const wanted = written(device)
    const direct = mounts.find((mount) => written(mount.device) === wanted)
    if (direct !== undefined) return direct
    const fs = yield* FileSystem.FileSystem
    for (const mount of mounts.filter(({ type }) => type === "btrfs").reverse()) {
      const root = yield* Effect.option(fs.stat(mount.mountPoint))
      if (Option.exists(root, ({ dev }) => written(unpacked(dev)) === wanted)) return mount
    }
    return undefined
  })

  /** The path is the one in the mount namespace where the loop device was set up, usually this one. */
  const belowLoop = Effect.fnUntraced(function*(directory: string) {
    const what = `the file behind ${nameOf(directory)}`
    const path = yield* readerOf(directory)("loop/backing_file")
    if (path === null) return yield* hidden(what, `${directory}/loop/backing_file cannot be read`)
    if (!path.startsWith("/")) return yield* hidden(what, `${path} is no absolute path`)
    if (path.endsWith(" (deleted)")) return yield* hidden(what, `${path}: no path leads to it any more`)
    const fs = yield* FileSystem.FileSystem
    const file = yield* Effect.either(fs.stat(path))
    if (file._tag === "Left") return yield* hidden(what, `${path} is not visible here: ${file.left.message}`)
    const { dev, rdev, type } = file.right
    if (type === "BlockDevice" && Option.isSome(rdev)) return yield* topsOf(unpacked(rdev.value), undefined)
    if (type !== "File") return yield* hidden(what, `${path} is another thing here: ${type}`)
    const device = unpacked(dev)
    return yield* topsOf(device, device.major === 0 ? yield* mountWith(device) : undefined)
  })

  const belowAny = (directory: string) =>
    Effect.flatMap(
      entries(`${directory}/slaves`),
      (names) => Effect.forEach([...names].sort(), (name) => realPath(`${directory}/slaves/${name}`))
    ).pipe(
      Effect.catchAll((error) =>
        isMissing(error) ? Effect.succeed([]) : hidden(`what ${nameOf(directory)} is made of`, error.message)
      )
    )

  const below = (directory: string, kind: Kind) =>
    kind === "partition"
      ? Effect.succeed([directory.slice(0, directory.lastIndexOf("/"))])
      : kind === "loop"
      ? belowLoop(directory)
      : belowAny(directory)

  /** sysfs has no table of a dm device; who made it and of what tells its target in most cases. */
  const dmDetail = Effect.fnUntraced(function*(directory: string, over: ReadonlyArray<string>) {
    const identity = (read: Read) => Effect.all({ name: read("dm/name"), uuid: read("dm/uuid") })
    const own = yield* identity(readerOf(directory))
    const parts = yield* Effect.forEach(over, (part) => identity(readerOf(part)))
    // A part without its name may be any part, of any target.
    const target = over.some((part) => unreadable.has(part)) ? null : dmTarget(own, parts)
    if (target === null) {
      const name = own.name ?? nameOf(directory)
      yield* hidden(
        `the target of ${nameOf(directory)} (${name})`,
        `sysfs does not give it, and neither the name nor the uuid (${
          own.uuid ?? "unreadable"
        }) tells; dmsetup table ${name} does`
      )
    }
    return target
  })

  const detail = (directory: string, read: Read, kind: Kind, over: ReadonlyArray<string>) => {
    switch (kind) {
      case "dm":
        return dmDetail(directory, over)
      case "md":
        return read("md/level")
      case "bcache":
        return cacheMode(read)
      case "loop":
        return read("loop/backing_file")
      case "network": {
        const driver = /^[a-z]+/.exec(nameOf(directory))?.[0] ?? null
        return Effect.succeed(driver === "etherd" ? "aoe" : driver)
      }
      default:
        return Effect.succeed(null)
    }
  }

  const visit = (directory: string, depth: number): Effect.Effect<void, never, FileSystem.FileSystem> =>
    Effect.gen(function*() {
      if (devices.has(directory)) return
      if (depth > MAX_DEPTH || devices.size >= MAX_DEVICES) {
        yield* hidden(nameOf(directory), `the stack has more than ${MAX_DEPTH} levels or ${MAX_DEVICES} devices`)
        return
      }
      const read = readerOf(directory)
      const kind = yield* kindOf(directory, read)
      const over = yield* below(directory, kind)
      const readAhead = yield* number(read, "queue/read_ahead_kb")
      // A partition has none of what belongs to the disk's queue; the disk is the next device.
      const own = kind !== "partition"
      devices.set(directory, {
        name: nameOf(directory),
        number: (yield* read("dev")) ?? "?",
        kind,
        over: over.map(nameOf),
        detail: yield* detail(directory, read, kind, over),
        transport: kind === "nvme"
          ? yield* nvmeTransport(directory, read)
          : (own ? lookUp(buses, directory) : undefined) ?? null,
        rotational: yield* flag(read, "queue/rotational"),
        logicalSector: yield* number(read, "queue/logical_block_size"),
        physicalSector: yield* number(read, "queue/physical_block_size"),
        readAhead: readAhead === null ? null : readAhead * 1024,
        dax: yield* flag(read, "queue/dax"),
        integrity: yield* integrityFormat(read),
        loopDirectIo: kind === "loop" ? yield* flag(read, "loop/dio") : null
      })
      yield* Effect.forEach(over, (next) => visit(next, depth + 1), { discard: true })
    })

  return { devices, topsOf, unseen, visit }
}

/**
 * The stack below the filesystem with this `st_dev`, which `mount` is a mount of: top first, depth first, each device once. Goes on below the
 * file of a loop device. What is not there is `null`; what is there and could not be looked at is in `unseen` too, as it may decide.
 */
export const stackOf = (
  device: DeviceNumber,
  mount: Mount | undefined,
  mounts: ReadonlyArray<Mount>
): Effect.Effect<Stack, never, FileSystem.FileSystem> =>
  Effect.gen(function*() {
    const { devices, topsOf, unseen, visit } = makeWalk(mounts)
    yield* Effect.forEach(yield* topsOf(device, mount), (top) => visit(top, 1), { discard: true })
    return { devices: [...devices.values()], unseen }
  })
