/**
 * Real filesystems for tests: each kind, freshly made and mounted for the length of a Scope.
 *
 * One `sh` per mount makes it, waits until its standard input ends, and undoes everything. The input ends with the Scope and
 * with this process, however it ends; the shell ignores the signals of a terminal and has a session of its own. Images never
 * have a name once they are used, but where they lie on a filesystem that is itself made here, and a loop device lives exactly as
 * long as its mount.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { spawn, spawnSync } from "node:child_process"
import {
  accessSync,
  closeSync,
  constants,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  statfsSync,
  unlinkSync
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

/** What is left free on the disk that holds the images. */
const reserveBytes = 10 * 1024 ** 3
const mebibyte = 1024 ** 2

/** Where images are made: on a disk, which /tmp may not be. */
const imageDirectory = "/var/tmp"

/** A filesystem on a loop device over a sparse image: `mkfs IMAGE mkfsOptions` makes it. */
interface Loop {
  readonly how: "loop"
  readonly type: string
  readonly mkfs: ReadonlyArray<string>
  readonly mkfsOptions?: ReadonlyArray<string>
  /** A shell command that changes the filesystem before it is mounted; the image is its last argument. */
  readonly tune?: string
  readonly mebibytes: number
  readonly options?: string
  readonly losetup?: ReadonlyArray<string>
  /** What the image lies on, under the name `image`; the disk of the machine where nothing is given. */
  readonly on?: Loop | Zram | Memory
}

/** A filesystem over several loop devices, each over a sparse image of `mebibytes`: `mkfs DEVICES` makes it. */
interface Several {
  readonly how: "several"
  readonly type: string
  readonly mkfs: ReadonlyArray<string>
  readonly devices: number
  readonly mebibytes: number
  readonly options?: string
}

/** A program that serves `source`, a directory on the disk of the machine, through FUSE. */
interface Fuse {
  readonly how: "fuse"
  readonly type: "fuse"
  readonly serve: ReadonlyArray<string>
}

/** A filesystem on a compressed RAM disk that takes `limitMebibytes` of what is written to it. */
interface Zram {
  readonly how: "zram"
  readonly type: string
  readonly mkfs: ReadonlyArray<string>
  readonly mebibytes: number
}

/** A filesystem without a device. */
interface Memory {
  readonly how: "memory"
  readonly type: string
  readonly options?: string
}

/** An overlay whose lower and upper directories lie on another kind. */
interface Overlay {
  readonly how: "overlay"
  readonly type: "overlay"
  readonly on: Loop | Memory
}

type Recipe = Loop | Several | Zram | Memory | Overlay | Fuse

const extOptions = ["-q", "-F", "-b", "4096", "-m", "0"]
const mkfsExt4 = ["mkfs.ext4", ...extOptions]
const mkfsExt2 = ["mkfs.ext2", ...extOptions]
const direct = ["--direct-io=on"]
const largeSectors = [...direct, "--sector-size", "4096"]
const ext4: Loop = { how: "loop", type: "ext4", mkfs: mkfsExt4, mebibytes: 256, options: "noinit_itable" }
const ext2: Loop = { how: "loop", type: "ext2", mkfs: mkfsExt2, mebibytes: 256 }
const ext3: Loop = { how: "loop", type: "ext3", mkfs: ["mkfs.ext3", ...extOptions], mebibytes: 256 }
const ext3WithoutExtents: Loop = { ...ext3, mkfs: [...ext3.mkfs, "-O", "^extents"] }
const xfs: Loop = { how: "loop", type: "xfs", mkfs: ["mkfs.xfs", "-q", "-f"], mebibytes: 320 }
const btrfs: Loop = { how: "loop", type: "btrfs", mkfs: ["mkfs.btrfs", "-q", "-f"], mebibytes: 512 }
const journal: Loop = { ...ext4, options: "noinit_itable,data=journal" }
const zram: Zram = { how: "zram", type: "ext4", mkfs: mkfsExt4, mebibytes: 256 }
const directExt4: Loop = { ...ext4, losetup: direct }
/** For the root directory and what is made in it; chattr needs a right for this that root may lack. */
const attributeJ = "debugfs -w -R 'set_inode_field <2> flags 0x84000'"

/** Data kept as the profile says, on as few devices as that takes. */
const btrfsData = (profile: string, devices: number, ...more: ReadonlyArray<string>): Several => ({
  how: "several",
  type: "btrfs",
  mkfs: [...btrfs.mkfs, "-d", profile, ...more],
  devices,
  mebibytes: devices === 1 ? 512 : 320
})

export const kinds = {
  "ext4": ext4,
  "ext2": ext2,
  "ext3 without extents": ext3WithoutExtents,
  "xfs": xfs,
  "btrfs": btrfs,
  "ext4 with data=journal": journal,
  "ext4 on 4096-byte sectors": { ...ext4, losetup: largeSectors },
  "ext2 on 4096-byte sectors": { ...ext2, losetup: largeSectors },
  "small ext4": { ...ext4, mebibytes: 64 },
  "small ext2": { ...ext2, mebibytes: 64 },
  "large ext2": { ...ext2, mebibytes: 512 },
  "read-only ext4": { ...ext4, options: "ro" },
  "tmpfs": { how: "memory", type: "tmpfs", options: "size=64m" },
  "large tmpfs": { how: "memory", type: "tmpfs", options: "size=1g" },
  "ramfs": { how: "memory", type: "ramfs" },
  "overlay": { how: "overlay", type: "overlay", on: ext4 },
  "ext4 on zram": zram,
  "ext4 on a direct loop": directExt4,
  "ext4 with data=journal on a direct loop": { ...journal, losetup: direct },
  "ext4 with data=journal by default": { ...directExt4, tune: "tune2fs -o journal_data" },
  "ext4 with the attribute j": { ...directExt4, tune: attributeJ },
  "ext4 with the attribute j and without delayed allocation": {
    ...directExt4,
    options: "noinit_itable,nodelalloc",
    tune: attributeJ
  },
  "ext4 without extents": { ...directExt4, mkfs: [...mkfsExt4, "-O", "^extents,^64bit"] },
  "ext4 with inline data": { ...directExt4, mkfs: [...mkfsExt4, "-O", "inline_data"] },
  "ext4 with encryption": { ...directExt4, mkfs: [...mkfsExt4, "-O", "encrypt"] },
  "ext2 on a direct loop": { ...ext2, losetup: direct },
  "ext3 on a direct loop": { ...ext3, losetup: direct },
  "ext3 without extents on a direct loop": { ...ext3WithoutExtents, losetup: direct },
  "xfs on a direct loop": { ...xfs, losetup: direct },
  "xfs without reflinks": { ...xfs, mkfs: [...xfs.mkfs, "-m", "reflink=0"], losetup: direct },
  "btrfs on a direct loop": { ...btrfs, losetup: direct },
  "btrfs with compression": { ...btrfs, options: "compress=zstd", losetup: direct },
  "btrfs without checksums": { ...btrfs, options: "nodatasum", losetup: direct },
  "btrfs without copy-on-write": { ...btrfs, options: "nodatacow", losetup: direct },
  "btrfs with compression by force": { ...btrfs, options: "compress-force=zstd", losetup: direct },
  "btrfs with data as single": btrfsData("single", 1),
  "btrfs with data as dup": btrfsData("dup", 1),
  "btrfs with data as raid0": btrfsData("raid0", 2),
  "btrfs with data as raid1": btrfsData("raid1", 2),
  "btrfs with data as raid1c3": btrfsData("raid1c3", 3, "-m", "raid1"),
  "btrfs with data as raid1c4": btrfsData("raid1c4", 4, "-m", "raid1"),
  "btrfs with data as raid10": btrfsData("raid10", 4, "-m", "raid1"),
  "btrfs with data as raid5": btrfsData("raid5", 3, "-m", "raid1"),
  "btrfs with data as raid6": btrfsData("raid6", 4, "-m", "raid1"),
  "btrfs with data and metadata mixed": btrfsData("single", 1, "-m", "single", "--mixed"),
  "btrfs with data and metadata mixed, as dup": btrfsData("dup", 1, "-m", "dup", "--mixed"),
  "squashfs": {
    how: "loop",
    type: "squashfs",
    mkfs: ["mksquashfs", "/dev/null"],
    mkfsOptions: ["-noappend", "-quiet", "-no-progress"],
    mebibytes: 16,
    losetup: direct
  },
  "overlay on a direct loop": { how: "overlay", type: "overlay", on: directExt4 },
  "overlay on xfs": { how: "overlay", type: "overlay", on: { ...xfs, losetup: direct } },
  "overlay on btrfs": { how: "overlay", type: "overlay", on: { ...btrfs, losetup: direct } },
  "overlay on tmpfs": { how: "overlay", type: "overlay", on: { how: "memory", type: "tmpfs", options: "size=64m" } },
  "bindfs": { how: "fuse", type: "fuse", serve: ["bindfs"] },
  "overlay on data=journal": { how: "overlay", type: "overlay", on: { ...journal, losetup: direct } },
  "ext4 on a loop on a loop": { ...directExt4, mebibytes: 128, on: directExt4 },
  "ext4 on a loop on zram": { ...directExt4, mebibytes: 128, on: zram },
  "small ext4 on tmpfs": { ...ext4, mebibytes: 64, on: { how: "memory", type: "tmpfs", options: "size=64m" } }
} satisfies Record<string, Recipe>

export type Kind = keyof typeof kinds

export interface Mount {
  readonly directory: string
  /** The name of the block device below, without `/dev/`, where there is one. */
  readonly device: string | undefined
  /** A descriptor of the image below the loop device, where there is one. */
  readonly image: number | undefined
  /** Where the files of an overlay really are. */
  readonly upper: string | undefined
}

export class MountFailed extends Data.TaggedError("MountFailed")<{ readonly kind: string; readonly reason: string }> {
  override get message() {
    return `${this.kind} could not be mounted: ${this.reason}`
  }
}

/** sbin is where the tools are, and not in everybody's PATH. */
export const environment = {
  ...process.env,
  PATH: `${process.env["PATH"] ?? ""}:/usr/local/sbin:/usr/sbin:/sbin`,
  LC_ALL: "C"
}

const script = `
trap "" INT TERM HUP
trap 'rmdir "$DIRECTORY"' EXIT
device=
code=
case $HOW in
  loop)
    $MKFS /proc/self/fd/3 $MKFS_OPTIONS >&2 || exit
    if [ -n "$TUNE" ]; then
      eval "$TUNE /proc/self/fd/3" >&2 || exit
    fi
    device=$(losetup --find --show $LOSETUP /proc/self/fd/3) || exit
    mount -t "$TYPE" -o "$OPTIONS" "$device" "$DIRECTORY"
    code=$?
    # Without a mount this frees the device, with one the end of the mount does.
    losetup --detach "$device"
    exec 3>&-
    ;;
  several)
    devices=
    first=
    for image in 3 4 5 6; do
      [ "$image" -lt $((3 + DEVICES)) ] || break
      one=$(losetup --find --show --direct-io=on "/proc/self/fd/$image") || code=1
      first=\${first:-$one}
      devices="$devices $one"
    done
    device=$first
    if [ -z "$code" ]; then
      $MKFS $devices >&2 && mount -t "$TYPE" -o "$OPTIONS" "$device" "$DIRECTORY"
      code=$?
    fi
    for one in $devices; do losetup --detach "$one"; done
    exec 3>&- 4>&- 5>&- 6>&-
    ;;
  fuse)
    source=$(mktemp -d /var/tmp/effect-disk-storage-source-XXXXXX) || exit
    trap 'rmdir "$DIRECTORY"; rm -rf "$source"' EXIT
    $SERVE "$source" "$DIRECTORY" >&2
    code=$?
    ;;
  zram)
    number=$(cat /sys/class/zram-control/hot_add) || exit
    device=/dev/zram$number
    echo "$BYTES" > "/sys/block/zram$number/disksize" && $MKFS "$device" >&2 &&
      mount -t "$TYPE" "$device" "$DIRECTORY"
    code=$?
    ;;
  *)
    mount -t "$TYPE" -o "$OPTIONS" "$TYPE" "$DIRECTORY"
    code=$?
    ;;
esac
if [ "$code" = 0 ]; then
  echo "mounted $device"
  cat > /dev/null
  tries=0
  until message=$(umount "$DIRECTORY" 2>&1); do
    tries=$((tries + 1))
    if [ "$tries" = 200 ]; then
      echo "$message" >&2
      code=1
      umount --lazy "$DIRECTORY"
      break
    fi
    sleep 0.05
  done
fi
if [ "$HOW" = zram ]; then
  echo 1 > "/sys/block/zram$number/reset" && echo "$number" > /sys/class/zram-control/hot_remove || code=1
fi
exit "$code"
`

/** Holds a mount; `end` undoes it and says what went wrong. */
interface Holder {
  readonly device: string | undefined
  readonly end: Effect.Effect<void, MountFailed>
}

const hold = (
  kind: string,
  variables: Record<string, string>,
  images: ReadonlyArray<number>
): Effect.Effect<Holder, MountFailed> =>
  Effect.async<Holder, MountFailed>((resume) => {
    const child = spawn("sh", ["-c", script], {
      detached: true,
      stdio: ["pipe", "pipe", "pipe", ...images],
      env: { ...environment, LOSETUP: "", MKFS_OPTIONS: "", OPTIONS: "", TUNE: "", ...variables }
    })
    let said = ""
    let complaint = ""
    child.on("error", (error) => resume(Effect.fail(new MountFailed({ kind, reason: String(error) }))))
    child.stderr?.on("data", (chunk) => complaint += String(chunk))
    const ended = new Promise<number | null>((resolve) => child.on("close", resolve))
    const failed = (code: number | null) =>
      new MountFailed({ kind, reason: complaint.trim() || `sh ended with ${code}` })
    void ended.then((code) => resume(Effect.fail(failed(code))))
    child.stdout?.on("data", (chunk) => {
      said += String(chunk)
      const mounted = /^mounted (?:\/dev\/)?(.*)\n/m.exec(said)
      if (mounted === null) return
      resume(Effect.succeed({
        device: mounted[1] || undefined,
        end: Effect.suspend(() => {
          child.stdin?.end()
          return Effect.flatMap(
            Effect.promise(() => ended),
            (code) => code === 0 ? Effect.void : Effect.fail(failed(code))
          )
        })
      }))
    })
  })

const freeBytes = (directory: string) => {
  const { bavail, bsize } = statfsSync(directory)
  return bavail * bsize
}

const tooFull = (mebibytes: number): string | undefined =>
  freeBytes(imageDirectory) - mebibytes * mebibyte < reserveBytes
    ? `${imageDirectory} has no ${mebibytes} MiB above the ${reserveBytes / 1024 ** 3} GiB that stay free`
    : undefined

/** A sparse file that has no name, unless one is given. */
const makeImage = (kind: string, mebibytes: number, name?: string) =>
  Effect.acquireRelease(
    Effect.try({
      try: () => {
        if (name !== undefined) {
          const image = openSync(name, "wx+", 0o600)
          ftruncateSync(image, mebibytes * mebibyte)
          return image
        }
        const full = tooFull(mebibytes)
        if (full !== undefined) throw new Error(full)
        const path = join(
          imageDirectory,
          `effect-disk-storage-image-${process.pid}-${Math.random().toString(36).slice(2)}`
        )
        const image = openSync(path, "wx+", 0o600)
        unlinkSync(path)
        ftruncateSync(image, mebibytes * mebibyte)
        return image
      },
      catch: (error) => new MountFailed({ kind, reason: String(error) })
    }),
    (image) => Effect.sync(() => closeSync(image))
  )

const mount = (
  kind: string,
  variables: Record<string, string>,
  ...images: ReadonlyArray<number>
): Effect.Effect<Mount, MountFailed, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.suspend(() => {
      const directory = mkdtempSync(join(tmpdir(), "effect-disk-storage-mount-"))
      return Effect.map(hold(kind, { ...variables, DIRECTORY: directory }, images), (holder) => ({ holder, directory }))
    }),
    ({ holder }) => Effect.orDie(holder.end)
  ).pipe(
    Effect.map(({ directory, holder }) => ({ directory, device: holder.device, image: images[0], upper: undefined }))
  )

const mountRecipe = (kind: string, recipe: Recipe): Effect.Effect<Mount, MountFailed, Scope.Scope> =>
  Effect.gen(function*() {
    const { how, type } = recipe
    switch (how) {
      case "loop": {
        const { losetup = [], mebibytes, mkfs, mkfsOptions = [], on, options = "defaults", tune = "" } = recipe
        const below = on && (yield* mountRecipe(kind, on))
        const image = yield* makeImage(kind, mebibytes, below && join(below.directory, "image"))
        const variables = {
          HOW: how,
          TYPE: type,
          MKFS: mkfs.join(" "),
          MKFS_OPTIONS: mkfsOptions.join(" "),
          LOSETUP: losetup.join(" "),
          OPTIONS: options,
          TUNE: tune
        }
        return yield* mount(kind, variables, image)
      }
      case "several": {
        const { devices, mebibytes, mkfs, options = "defaults" } = recipe
        const images = yield* Effect.replicateEffect(makeImage(kind, mebibytes), devices)
        const variables = { HOW: how, TYPE: type, MKFS: mkfs.join(" "), OPTIONS: options, DEVICES: String(devices) }
        return yield* mount(kind, variables, ...images)
      }
      case "fuse":
        return yield* mount(kind, { HOW: how, TYPE: type, SERVE: recipe.serve.join(" ") })
      case "zram": {
        const { mebibytes, mkfs } = recipe
        return yield* mount(kind, { HOW: how, TYPE: type, MKFS: mkfs.join(" "), BYTES: String(mebibytes * mebibyte) })
      }
      case "memory":
        return yield* mount(kind, { HOW: how, TYPE: type, OPTIONS: recipe.options ?? "defaults" })
      case "overlay": {
        const { device, directory } = yield* mountRecipe(kind, recipe.on)
        const lower = join(directory, "lower")
        const upper = join(directory, "upper")
        const work = join(directory, "work")
        for (const path of [lower, upper, work]) mkdirSync(path)
        const options = `lowerdir=${lower},upperdir=${upper},workdir=${work}`
        const overlay = yield* mount(kind, { HOW: how, TYPE: type, OPTIONS: options })
        return { ...overlay, device, upper }
      }
    }
  })

/** A freshly made filesystem, mounted until the Scope ends; a filesystem that stays busy then is a defect. */
export const mounted = (kind: Kind): Effect.Effect<Mount, MountFailed, Scope.Scope> => mountRecipe(kind, kinds[kind])

/** The output of a command, for what only a tool can do. */
export const command = (name: string, ...args: ReadonlyArray<string>): Effect.Effect<string> =>
  Effect.async((resume) => {
    const child = spawn(name, args, { stdio: ["ignore", "pipe", "pipe"], env: environment })
    let output = ""
    child.stdout.on("data", (chunk) => output += String(chunk))
    child.stderr.on("data", (chunk) => output += String(chunk))
    child.on("error", (error) => resume(Effect.die(error)))
    child.on("close", (code) =>
      resume(
        code === 0
          ? Effect.succeed(output)
          : Effect.dieMessage(`${[name, ...args].join(" ")} ended with ${code}: ${output.trim()}`)
      ))
  })

const succeeds = (attempt: () => void): boolean => {
  try {
    attempt()
    return true
  } catch {
    return false
  }
}

const hasTool = (name: string) =>
  environment.PATH.split(":").some((directory) => succeeds(() => accessSync(join(directory, name), constants.X_OK)))

const kernelHas = (type: string) => {
  const known = () => new RegExp(`\\t${type}$`, "m").test(readFileSync("/proc/filesystems", "utf8"))
  return known() || (spawnSync("modprobe", ["-q", type], { env: environment }).status === 0 && known())
}

/** `CAP_SYS_ADMIN`, which root may lack in a container. */
const mayMount = () => {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0"
  return (BigInt(`0x${effective}`) >> 21n & 1n) === 1n
}

const whyNotRecipe = (recipe: Recipe): string | undefined => {
  if (process.platform !== "linux") return "not Linux"
  if (process.getuid?.() !== 0) return "not root"
  if (!mayMount()) return "no CAP_SYS_ADMIN"
  if (!kernelHas(recipe.type)) return `the kernel has no ${recipe.type}`
  if (recipe.how === "overlay") return whyNotRecipe(recipe.on)
  if (recipe.how === "memory") return undefined
  const tune = recipe.how === "loop" ? recipe.tune : undefined
  if (recipe.how === "fuse") {
    const missing = recipe.serve.slice(0, 1).find((tool) => !hasTool(tool))
    if (missing !== undefined) return `no ${missing}`
    return succeeds(() => closeSync(openSync("/dev/fuse", "r+"))) ? undefined : "no /dev/fuse"
  }
  const tools = ["losetup", ...recipe.mkfs.slice(0, 1), ...(tune?.split(" ").slice(0, 1) ?? [])]
  const missing = tools.find((tool) => !hasTool(tool))
  if (missing !== undefined) return `no ${missing}`
  if (recipe.how === "zram") {
    return succeeds(() => accessSync("/sys/class/zram-control/hot_add", constants.R_OK)) ? undefined : "no zram"
  }
  if (!succeeds(() => closeSync(openSync("/dev/loop-control", "r+")))) return "no /dev/loop-control"
  if (recipe.how === "several") return tooFull(recipe.devices * recipe.mebibytes)
  if (recipe.on !== undefined) return whyNotRecipe(recipe.on)
  return tooFull(recipe.mebibytes)
}

/** Why a kind cannot be made here, or a tool that a test needs beside it is not there; `undefined` when all is well. */
export const whyNot = (kind: Kind, tools: ReadonlyArray<string> = []): string | undefined => {
  const missing = tools.find((tool) => !hasTool(tool))
  return whyNotRecipe(kinds[kind]) ?? (missing === undefined ? undefined : `no ${missing}`)
}
