/** What `DirectIo.inspect` says of real filesystems, against what is true of each and what other tools say. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import {
  chmodSync,
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  unlinkSync,
  writeFileSync,
  writeSync
} from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as DirectIo from "../../src/DirectIo.js"
import type { Kind, Mount } from "../filesystems/mounts.js"
import { command, mounted } from "../filesystems/mounts.js"
import {
  assertBytes,
  assertGivenBack,
  assertNothingLeft,
  describeReal,
  freshPath,
  Mounted,
  openBelow,
  pattern,
  settledFreeBytes
} from "../filesystems/real.js"
import { Answer } from "./children/answer.js"
import { encrypt } from "./encrypted.js"

const mebibyte = 1024 * 1024
const nobody = 65_534

const inspect = (directory: string) => Effect.provide(DirectIo.inspect(directory), NodeFileSystem.layer)

type Affects = DirectIo.Condition["affects"]
const all: Affects = ["read", "write", "first write"]
const writes: Affects = ["write", "first write"]
const firstWrites: Affects = ["first write"]

type Paths = { readonly [id in DirectIo.Probe["id"]]: DirectIo.Probe["path"] }
const everything = (path: DirectIo.Probe["path"]): Paths => ({
  extending: path,
  written: path,
  read: path,
  allocating: path,
  hole: path,
  preallocated: path,
  shared: path,
  inline: path
})
const direct: Paths = { ...everything("direct"), shared: "not tried" }
const buffered: Paths = { ...everything("buffered"), shared: "not tried" }
const withoutExtents: Paths = { ...direct, allocating: "buffered", hole: "buffered", preallocated: "not tried" }

interface Expected {
  readonly name?: string
  readonly tools?: ReadonlyArray<string>
  /** What is done with the fresh directory first; answers with why it cannot be done here. */
  readonly prepare?: (directory: string) => Effect.Effect<unknown>
  readonly io: DirectIo.IoVerdict
  /** The rows that bear on I/O and apply: all of them. */
  readonly applies: { readonly [id: string]: Affects }
  /** Parts of what is to be done about some of them. */
  readonly remedies?: { readonly [id: string]: string }
  readonly made: Paths
  readonly nocow?: Paths | undefined
  /** What the disk wants, a page, or nothing: no transfer is direct. */
  readonly alignment: "disk" | "page" | null
  readonly inodeFlags?: ReadonlyArray<string>
}

/** Rows of a file whose every transfer goes through the page cache. */
const bufferedRows = {
  "read-ahead": ["read"],
  "page-cache": all,
  "flag-ignored": writes,
  "extending": firstWrites,
  "allocating": firstWrites,
  "preallocated": firstWrites,
  "hole-filling": firstWrites
} satisfies Expected["applies"]

const plain: Expected = { io: "direct", applies: {}, made: direct, alignment: "disk" }
const unmapped: Expected = {
  ...plain,
  io: "direct-with-conditions",
  applies: { "allocating": firstWrites, "hole-filling": firstWrites },
  made: withoutExtents
}
const journaled: Expected = {
  io: "buffered",
  applies: { ...bufferedRows, "data-journaling": all },
  made: buffered,
  remedies: { "data-journaling": "data=ordered" },
  alignment: null
}
const inMemory: Expected = { io: "buffered", applies: bufferedRows, made: buffered, alignment: null }

const inlineRows = { "inline-btrfs": all, "inline-extent": all } satisfies Expected["applies"]
const btrfs: Expected = {
  io: "direct-with-conditions",
  applies: {
    "page-cache": writes,
    "flag-ignored": writes,
    ...inlineRows,
    "extending": firstWrites,
    "allocating": firstWrites,
    "preallocated": firstWrites,
    "hole-filling": firstWrites,
    "copy-on-write": writes,
    "reflinked": writes,
    "delayed-allocation": firstWrites,
    "checksums": all
  },
  remedies: { "page-cache": "NOCOW", "copy-on-write": "chattr +C", "inline-btrfs": "max_inline=0" },
  made: { ...everything("buffered"), read: "direct" },
  nocow: everything("direct"),
  alignment: "page"
}
/** Reads are decompressed in the page cache, too. */
const compressed: Expected = {
  ...btrfs,
  applies: { ...btrfs.applies, "read-ahead": ["read"], "page-cache": all, "compression": all },
  made: everything("buffered")
}
const withoutCopyOnWrite: Expected = {
  ...plain,
  made: everything("direct"),
  alignment: "page",
  inodeFlags: ["NOCOW"]
}
const loopRow = { "loop-page-cache": all } satisfies Expected["applies"]

const truth: ReadonlyArray<readonly [Kind, ReadonlyArray<Expected>]> = [
  ["ext4 on a direct loop", [plain]],
  ["ext4", [{ ...plain, io: "direct-with-conditions", applies: loopRow }]],
  ["ext4 with data=journal on a direct loop", [journaled]],
  ["ext4 with data=journal by default", [journaled]],
  // The attribute has no effect beside delayed allocation (`ext4_inode_journal_mode`).
  ["ext4 with the attribute j", [{ ...plain, inodeFlags: ["JOURNAL_DATA", "EXTENT"] }]],
  ["ext4 with the attribute j and without delayed allocation", [{
    ...journaled,
    remedies: { "data-journaling": "chattr -j" },
    inodeFlags: ["JOURNAL_DATA", "EXTENT"]
  }]],
  ["ext4 with inline data", [{
    ...plain,
    io: "direct-with-conditions",
    applies: { "inline-ext4": all, "inline-extent": all },
    made: { ...direct, inline: "buffered" }
  }]],
  ["ext4 with encryption", [plain, {
    io: "buffered",
    name: "an encrypted directory",
    remedies: { encryption: "without an encryption policy" },
    prepare: encrypt,
    applies: { ...bufferedRows, "delayed-allocation": firstWrites, "encryption": all },
    made: buffered,
    alignment: null,
    inodeFlags: ["ENCRYPT", "EXTENT"]
  }]],
  ["ext4 on 4096-byte sectors", [plain]],
  ["ext4 without extents", [unmapped]],
  ["ext3 on a direct loop", [unmapped]],
  ["ext3 without extents on a direct loop", [unmapped]],
  ["ext2 on a direct loop", [unmapped]],
  ["ext2 on 4096-byte sectors", [unmapped]],
  ["xfs on a direct loop", [{ ...plain, made: everything("direct") }, {
    ...plain,
    made: everything("direct"),
    name: "a directory with a reflinked file",
    tools: ["cp"],
    prepare: (directory) =>
      Effect.suspend(() => {
        writeFileSync(join(directory, "one"), pattern(mebibyte, 1))
        return command("cp", "--reflink=always", join(directory, "one"), join(directory, "two"))
      })
  }]],
  ["xfs", [{ ...plain, io: "direct-with-conditions", applies: loopRow, made: everything("direct") }]],
  ["xfs without reflinks", [plain]],
  ["btrfs on a direct loop", [
    btrfs,
    {
      ...withoutCopyOnWrite,
      name: "a directory with the attribute C",
      tools: ["chattr"],
      prepare: (directory) => command("chattr", "+C", directory)
    },
    {
      ...compressed,
      io: "buffered",
      name: "a directory with the attribute c, which excludes C",
      tools: ["chattr"],
      prepare: (directory) => command("chattr", "+c", directory),
      remedies: { "copy-on-write": "chattr -c" },
      nocow: undefined,
      alignment: null,
      inodeFlags: ["COMPR"]
    },
    {
      ...btrfs,
      name: "a subvolume, whose number no mount has",
      tools: ["btrfs"],
      prepare: (directory) =>
        Effect.suspend(() => {
          rmSync(directory, { recursive: true })
          return command("btrfs", "subvolume", "create", directory)
        })
    }
  ]],
  ["btrfs with compression", [compressed]],
  ["btrfs without checksums", [{
    ...btrfs,
    applies: { ...inlineRows, "copy-on-write": writes },
    remedies: { "copy-on-write": "NOCOW" },
    made: everything("direct")
  }]],
  ["btrfs without copy-on-write", [withoutCopyOnWrite]],
  ["overlay on a direct loop", [plain]],
  ["overlay on data=journal", [journaled]],
  ["tmpfs", [inMemory]],
  ["ext4 on zram", [{ ...plain, io: "direct-with-conditions", applies: { "compression": all } }]],
  ["ext4 on a loop on a loop", [plain]],
  ["ext4 on a loop on zram", [{ ...plain, io: "direct-with-conditions", applies: { "compression": all } }]]
]

const byId = <A extends { readonly id: string }, B>(rows: ReadonlyArray<A>, value: (row: A) => B) =>
  Object.fromEntries(rows.map((row) => [row.id, value(row)]))

const bearing = ({ conditions }: DirectIo.DirectIoReport, applies: DirectIo.Condition["applies"]) =>
  conditions.filter((row) => row.applies === applies && row.bearsOn.includes("io"))

const pathsOf = ({ probes }: DirectIo.DirectIoReport, file: DirectIo.Probe["file"]) =>
  byId(probes.filter((probe) => probe.file === file), ({ path }) => path)

const queue = (device: string, attribute: string) =>
  Number(readFileSync(`/sys/block/${device}/queue/${attribute}`, "utf8"))

/** The mount that a directory is really on: `fdinfo` needs no search. */
const mountOf = (directory: string) => {
  const fd = openSync(directory, "r")
  try {
    const id = Number(/^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1])
    const line = readFileSync("/proc/self/mountinfo", "utf8").split("\n").find((text) => text.startsWith(`${id} `))
    const [mountPoint, , ...rest] = line?.split(" ").slice(4) ?? []
    const [type, source] = rest.slice(rest.indexOf("-") + 1)
    return { mountId: id, mountPoint, type, source }
  } finally {
    closeSync(fd)
  }
}

/** The filesystem's facts hold whatever becomes of the probe. */
const checkFilesystem = (directory: string, { filesystem }: DirectIo.DirectIoReport) => {
  const { bavail, blocks, bsize, type } = statfsSync(directory)
  const { mountId, mountPoint, source, type: name } = mountOf(directory)
  assert.deepStrictEqual(
    { ...filesystem, options: [], available: 0 },
    {
      type: name,
      magic: type,
      mountId,
      mountPoint,
      source,
      options: [],
      blockSize: bsize,
      total: blocks * bsize,
      available: 0
    }
  )
  // Some filesystems give the space of the probe's files back later.
  assert.closeTo(filesystem.available, bavail * bsize, 32 * mebibyte)
}

/** From the top down, as `losetup` tells it. */
const checkDevices = ({ device: top }: Mount, { devices }: DirectIo.DirectIoReport) =>
  Effect.gen(function*() {
    assert.strictEqual(devices[0]?.name, top)
    for (const { detail, kind, logicalSector, loopDirectIo, name, number, over } of devices) {
      assert.strictEqual(number, readFileSync(`/sys/block/${name}/dev`, "utf8").trim())
      assert.strictEqual(logicalSector, queue(name, "logical_block_size"))
      if (kind === "zram") {
        assert.match(name, /^zram\d+$/)
        continue
      }
      assert.strictEqual(kind, "loop")
      const told = yield* command("losetup", "-n", "--raw", "-O", "DIO,BACK-FILE", `/dev/${name}`)
      assert.strictEqual(`${Number(loopDirectIo)} ${detail?.replace(/ /g, "\\x20")}`, told.trim())
      // What the image lies on is the next device; an image without a name leads nowhere.
      const next = devices[devices.findIndex((device) => device.name === name) + 1]
      assert.deepStrictEqual(over, next === undefined ? [] : [next.name])
      assert.strictEqual(next === undefined, detail?.endsWith(" (deleted)") ?? false)
    }
  })

const checkAlignment = (
  alignment: Expected["alignment"],
  device: string | undefined,
  report: DirectIo.DirectIoReport
) => {
  const { read, statx, write } = report.alignment
  if (alignment === null) return assert.deepStrictEqual({ read, write }, { read: null, write: null })
  if (alignment === "page" || device === undefined) {
    const page = { memory: 4096, offset: 4096, length: 4096 }
    return assert.deepStrictEqual({ read, write, statx }, { read: page, write: page, statx: null })
  }
  const sector = queue(device, "logical_block_size")
  const memory = queue(device, "dma_alignment") + 1
  assert.deepInclude(statx, { memory, offset: sector })
  for (const found of [read, write]) {
    assert.deepInclude(found, { offset: sector, length: sector })
    // A disk may take more than it says.
    assert.isAtMost(found?.memory ?? Infinity, memory)
  }
}

for (const [kind, cases] of truth) {
  describeReal(kind, { name: "inspected", tools: cases.flatMap(({ tools = [] }) => tools) }, (it) => {
    for (const expected of cases) {
      it.scoped(expected.name ?? "a directory", (context) =>
        Effect.gen(function*() {
          const mount = yield* Mounted
          const directory = yield* freshPath
          mkdirSync(directory)
          const refused = yield* expected.prepare?.(directory) ?? Effect.void
          if (kind === "ext4 with encryption" && refused !== undefined) {
            // As where a filesystem cannot be made at all.
            return process.env["EDS_REQUIRE_REAL"] === "1"
              ? assert.fail(String(refused))
              : context.skip(String(refused))
          }
          const names = readdirSync(directory)

          const report = yield* inspect(directory)
          assert.deepStrictEqual(byId(bearing(report, "yes"), ({ affects }) => affects), expected.applies)
          for (const [id, part] of Object.entries(expected.remedies ?? {})) {
            assert.include(report.conditions.find((row) => row.id === id)?.remedy ?? "", part, id)
          }
          assert.strictEqual(report.verdict.io, expected.io)
          assert.deepStrictEqual(pathsOf(report, "as made here"), expected.made)
          assert.deepStrictEqual(pathsOf(report, "nocow"), expected.nocow ?? {})
          // Nothing is left open but what hangs on the image, whose name is gone.
          const unknown = bearing(report, "unknown").filter(({ evidence }) => !evidence.includes("(deleted)"))
          assert.deepStrictEqual(unknown.map(({ id }) => id), [])
          assert.isNull(report.probeFailure)
          assert.deepInclude(report.kernel, { setFlag: "kept", openFlag: "kept" })
          if (expected.inodeFlags !== undefined) assert.deepStrictEqual(report.kernel.inodeFlags, expected.inodeFlags)

          checkFilesystem(directory, report)
          if (mount.device === undefined) assert.deepStrictEqual(report.devices, [])
          else yield* checkDevices(mount, report)
          checkAlignment(expected.alignment, mount.device, report)

          assert.deepStrictEqual(readdirSync(directory), names)
          assert.deepStrictEqual(openBelow(mount.directory), [])
        }))
    }
  })
}

/** What stands of a report although nothing could be tried. */
const checkWithoutProbe = (directory: string, report: DirectIo.DirectIoReport, code: string) => {
  assert.strictEqual(report.probeFailure?.code, code)
  assert.isTrue(report.verdict.reasons.io.some((reason) => reason.includes(code)), report.verdict.reasons.io.join("; "))
  assert.deepStrictEqual(report.probes, [])
  assert.deepStrictEqual(openBelow(directory), [])
  checkFilesystem(directory, report)
}

for (const kind of ["read-only ext4", "squashfs"] as const) {
  describeReal(kind, { name: "inspected" }, (it) => {
    it.scoped("nothing can be written", () =>
      Effect.gen(function*() {
        const mount = yield* Mounted
        const report = yield* inspect(mount.directory)
        checkWithoutProbe(mount.directory, report, "EROFS")
        assert.strictEqual(report.verdict.io, "unsupported")
        yield* checkDevices(mount, report)
        assert.include(report.filesystem.options, "ro")
      }))
  })
}

describeReal("ramfs", { name: "inspected" }, (it) => {
  it.scoped("O_DIRECT is refused", () =>
    Effect.gen(function*() {
      const { directory } = yield* Mounted
      const report = yield* inspect(directory)
      assert.strictEqual(report.verdict.io, "unsupported")
      assert.deepInclude(report.kernel, { setFlag: "refused", openFlag: "refused" })
      assert.deepStrictEqual(report.probes, [])
      assert.isNull(report.probeFailure)
      assert.deepStrictEqual(bearing(report, "yes"), [])
      checkFilesystem(directory, report)
      yield* assertNothingLeft(directory, 0)
    }))
})

describeReal("ext2", { name: "inspected on a loop device that dirties pages of its own" }, (it) => {
  it.scoped("writes into holes may be told from direct ones, and are never called that", () =>
    Effect.gen(function*() {
      const report = yield* inspect((yield* Mounted).directory)
      const applies = byId(report.conditions, (row) => row.applies)
      for (const id of ["allocating", "hole-filling"]) assert.notStrictEqual(applies[id], "no", id)
      assert.strictEqual(applies["page-cache"], "no")
      assert.strictEqual(applies["loop-page-cache"], "yes")
      assert.strictEqual(report.verdict.io, "direct-with-conditions")
    }))
})

describeReal("ext4", { name: "inspected before and after a remedy" }, (it) => {
  it.scoped("a loop device that uses the page cache below it, until it is told not to", () =>
    Effect.gen(function*() {
      const { device, directory } = yield* Mounted
      const before = yield* inspect(directory)
      const remedy = bearing(before, "yes")[0]?.remedy?.replace("DEVICE", `/dev/${device}`) ?? ""
      assert.strictEqual(remedy, `losetup --direct-io=on /dev/${device}`)
      const [name = "", ...args] = remedy.split(" ")
      yield* command(name, ...args)
      const after = yield* inspect(directory)
      assert.deepStrictEqual([before.verdict.io, after.verdict.io], ["direct-with-conditions", "direct"])
    }))
})

const mountAt = (directory: string, ...args: ReadonlyArray<string>) =>
  Effect.acquireRelease(command("mount", ...args, directory), () => command("umount", directory))

const makeDirectory = (...parts: ReadonlyArray<string>) => {
  const directory = join(...parts)
  mkdirSync(directory, { recursive: true })
  return directory
}

describeReal("ext4 on a direct loop", { name: "inspected among other mounts" }, (it) => {
  it.scoped("a bind mount of a directory, at a path that mountinfo escapes", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const below = makeDirectory(yield* freshPath)
      const directory = makeDirectory((yield* mounted("tmpfs")).directory, "a b\\")
      yield* mountAt(directory, "--bind", below)
      const report = yield* inspect(directory)
      assert.strictEqual(report.filesystem.mountPoint, directory)
      assert.strictEqual(report.filesystem.type, "ext4")
      assert.strictEqual(report.verdict.io, "direct")
      yield* checkDevices(mount, report)
    }))

  it.scoped("of two mounts on one directory, the upper one counts", () =>
    Effect.gen(function*() {
      const below = makeDirectory(yield* freshPath)
      const directory = makeDirectory(yield* freshPath)
      yield* mountAt(directory, "-t", "tmpfs", "lower")
      yield* mountAt(directory, "--bind", below)
      const onDisk = yield* inspect(directory)
      checkFilesystem(directory, onDisk)
      assert.deepStrictEqual([onDisk.filesystem.type, onDisk.verdict.io], ["ext4", "direct"])
      yield* mountAt(directory, "-t", "tmpfs", "upper")
      const inMemory = yield* inspect(directory)
      checkFilesystem(directory, inMemory)
      assert.deepStrictEqual([inMemory.filesystem.source, inMemory.verdict.io], ["upper", "buffered"])
    }))

  it.scoped("a mount that another one hides does not count, however long its path", () =>
    Effect.gen(function*() {
      const below = yield* freshPath
      makeDirectory(below, "cache")
      const top = yield* freshPath
      const directory = makeDirectory(top, "cache")
      yield* mountAt(directory, "-t", "tmpfs", "hidden")
      yield* mountAt(top, "--bind", below)
      assert.include(readFileSync("/proc/self/mountinfo", "utf8"), ` ${directory} `)
      const report = yield* inspect(directory)
      checkFilesystem(directory, report)
      assert.strictEqual(report.filesystem.mountPoint, top)
      assert.deepStrictEqual([report.filesystem.type, report.verdict.io], ["ext4", "direct"])
    }))
})

/** Takes all room but `left` bytes. */
const fill = (directory: string, left: number) =>
  Effect.sync(() => {
    const reserve = join(directory, "reserve")
    writeFileSync(reserve, new Uint8Array(left))
    const fd = openSync(join(directory, "filler"), "w")
    try {
      for (const bytes of [new Uint8Array(mebibyte), new Uint8Array(4096)]) {
        try {
          while (writeSync(fd, bytes) === bytes.length);
        } catch (error) {
          if (!String(error).includes("ENOSPC")) throw error
        }
      }
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    unlinkSync(reserve)
  })

for (const kind of ["small ext4", "small ext2"] as const) {
  describeReal(kind, { name: "inspected when it is full", tools: ["sync"] }, (it) => {
    for (const kibibytes of [0, 40, 300, 1500]) {
      it.scoped(`but for ${kibibytes} KiB`, () =>
        Effect.gen(function*() {
          const { directory: root } = yield* Mounted
          const directory = makeDirectory(yield* freshPath)
          yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(directory, { recursive: true })))
          yield* fill(directory, kibibytes * 1024)
          const before = yield* settledFreeBytes(root)
          const names = readdirSync(directory)
          const report = yield* inspect(directory)
          assert.strictEqual(report.probeFailure?.code, "ENOSPC")
          assert.strictEqual(report.verdict.io, "unknown")
          assert.include(report.verdict.reasons.io.join("; "), "the disk is full")
          // Asked before anything is written.
          assert.isAbove(report.alignment.statx?.offset ?? 0, 0)
          assert.strictEqual(report.kernel.setFlag, "kept")
          checkFilesystem(directory, report)
          assert.deepStrictEqual(readdirSync(directory), names)
          assert.deepStrictEqual(openBelow(root), [])
          yield* assertGivenBack(root, before)
        }))
    }
  })
}

const child = fileURLToPath(new URL("children/inspect.ts", import.meta.url))

const inspectAs = (user: number, directory: string) =>
  Effect.map(
    command(process.execPath, "--import", "tsx", child, directory, String(user)),
    Schema.decodeUnknownSync(Answer)
  )

describeReal("ext4 on a direct loop", { name: "inspected by somebody else" }, (it) => {
  it.scoped("a directory that may not be written", () =>
    Effect.gen(function*() {
      const directory = makeDirectory(yield* freshPath)
      chmodSync((yield* Mounted).directory, 0o755)
      const report = yield* inspectAs(nobody, directory)
      if ("_tag" in report) return assert.fail(report.message)
      checkWithoutProbe(directory, report, "EACCES")
      assert.strictEqual(report.verdict.io, "unknown")
      yield* checkDevices(yield* Mounted, report)
    }))

  it.scoped("a directory that there is no way to", () =>
    Effect.gen(function*() {
      const closed = makeDirectory(yield* freshPath)
      chmodSync(closed, 0o700)
      const directory = makeDirectory(closed, "below")
      const refused = yield* inspectAs(nobody, directory)
      if (!("_tag" in refused)) return assert.fail(refused.verdict.io)
      assert.deepInclude(refused, { _tag: "DirectoryUnusable", directory })
      assert.strictEqual(refused.cause.code, "EACCES")
    }))

  it.scoped("a directory that may be written: the same as for root", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      chmodSync(mount.directory, 0o755)
      const directory = makeDirectory(yield* freshPath)
      chmodSync(directory, 0o777)
      const own = yield* inspect(directory)
      const report = yield* inspectAs(nobody, directory)
      if ("_tag" in report) return assert.fail(report.message)
      assert.isNull(report.probeFailure)
      assert.deepStrictEqual(
        byId(report.conditions, ({ applies }) => applies),
        byId(own.conditions, ({ applies }) => applies)
      )
      assert.deepStrictEqual(report.verdict, own.verdict)
      assert.deepStrictEqual(report.alignment, own.alignment)
    }))
})

describeReal("ext4", { name: "not inspected" }, (it) => {
  it.scoped("a directory that is not there, and a file", () =>
    Effect.gen(function*() {
      const file = yield* freshPath
      writeFileSync(file, "")
      const missing = yield* freshPath
      for (
        const [directory, code] of [[missing, "ENOENT"], [file, "ENOTDIR"], [join(file, "below"), "ENOTDIR"]] as const
      ) {
        const refused = yield* Effect.flip(inspect(directory))
        if (refused._tag !== "DirectoryUnusable") return assert.fail(refused.message)
        assert.deepStrictEqual([refused.directory, refused.cause.code], [directory, code])
      }
      assert.isFalse(existsSync(missing))
    }))
})

const mappedBelow = (directory: string) =>
  readFileSync("/proc/self/maps", "utf8").split("\n").filter((line) => line.includes(`${directory}/`))

for (const kind of ["ext4 on a direct loop", "ext2", "xfs", "btrfs", "overlay", "tmpfs"] as const) {
  describeReal(kind, { name: "inspected and left as it was", tools: ["sync"] }, (it) => {
    it.scoped("with its files, descriptors, mappings and free space, also where that is interrupted", () =>
      Effect.gen(function*() {
        const { directory } = yield* Mounted
        const file = join(directory, "neighbour")
        const bytes = pattern(3 * mebibyte + 77, 1)
        writeFileSync(file, bytes)
        yield* command("sync", "-f", directory)
        const names = readdirSync(directory)
        const { ctimeMs, mtimeMs, size } = statSync(file)
        const before = yield* settledFreeBytes(directory)
        const check = Effect.gen(function*() {
          assert.deepStrictEqual(readdirSync(directory), names)
          assert.deepStrictEqual(openBelow(directory), [])
          assert.deepStrictEqual(mappedBelow(directory), [])
          assert.deepInclude(statSync(file), { ctimeMs, mtimeMs, size })
          assertBytes(readFileSync(file), bytes, "the neighbour")
          yield* assertGivenBack(directory, before)
        })

        yield* inspect(directory)
        yield* check

        const first = yield* Effect.fork(inspect(directory))
        yield* Effect.yieldNow()
        assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(first)))
        yield* check
        for (const millis of [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128]) {
          const fiber = yield* Effect.fork(inspect(directory))
          yield* Effect.sleep(millis)
          yield* Fiber.interrupt(fiber)
          yield* check
        }
      }))
  })
}
