/** The command `doctor`: what its report says, where it goes, and how it ends. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { stripVTControlCharacters } from "node:util"
import type { TextOptions } from "../../src/cli/doctor/text.js"
import { PathReport, text } from "../../src/cli/doctor/text.js"
import * as DirectIo from "../../src/DirectIo.js"
import { program } from "../support/programs.js"

const root = fileURLToPath(new URL("../..", import.meta.url))
const main = new URL("../../src/cli/main.ts", import.meta.url)

const escape = "\u001B"

const disk: DirectIo.BlockDevice = {
  name: "vda",
  number: "254:0",
  kind: "virtio",
  over: [],
  detail: null,
  transport: "virtio",
  rotational: false,
  logicalSector: 512,
  physicalSector: 512,
  readAhead: 131072,
  dax: false,
  integrity: null,
  loopDirectIo: null
}

const inline: DirectIo.Condition = {
  id: "inline-data",
  section: "2.3.2",
  title: "Small files live in their inodes",
  applies: "no",
  affects: ["read", "write"],
  bearsOn: ["io"],
  evidence: "the first bytes of a file lie in an extent",
  remedy: null
}

const journal: DirectIo.Condition = {
  id: "data-journal",
  section: "2.3.4",
  title: "File data is journaled",
  applies: "yes",
  affects: ["write", "first write"],
  bearsOn: ["io", "gpu"],
  evidence:
    "the mount has data=journal, with which ext4 takes O_DIRECT and writes through the page cache, and the probe saw the pages",
  remedy: "mount -o remount,data=ordered /data"
}

const replication: DirectIo.Condition = {
  ...inline,
  id: "replication",
  section: "2.3.4",
  title: "Another host gets a copy",
  applies: "unknown",
  evidence: "the name of the device does not tell"
}

const probe: DirectIo.Probe = {
  id: "extending",
  file: "as made here",
  path: "direct",
  bytes: 65536,
  cached: { before: 16, after: 0 },
  mapped: { before: 16, after: 0 },
  dirtied: 0,
  extentsBefore: [],
  extentsAfter: ["written"],
  evidence: "16 pages before, none after"
}

/** On an ordinary virtual machine. */
const direct: DirectIo.DirectIoReport = {
  format: "effect-disk-storage doctor 1",
  directory: "/data/kv",
  verdict: {
    io: "direct",
    gpu: "unavailable",
    reasons: { io: ["every try was direct"], gpu: ["there is no NVIDIA GPU"] }
  },
  filesystem: {
    type: "ext4",
    magic: 0xef53,
    mountId: 25,
    mountPoint: "/",
    source: "/dev/vda",
    options: ["rw", "relatime"],
    blockSize: 4096,
    total: 252 * 2 ** 30,
    available: 78 * 2 ** 30
  },
  devices: [disk],
  alignment: {
    read: { memory: 4, offset: 512, length: 512 },
    write: { memory: 4, offset: 1024, length: 1024 },
    statx: { memory: 4, offset: 512, readOffset: null }
  },
  kernel: { release: "6.8.0", setFlag: "kept", openFlag: "kept", inodeFlags: ["EXTENT"] },
  probes: [probe, { ...probe, id: "read", evidence: "nothing was cached" }],
  probeFailure: null,
  measurement: null,
  gpu: {
    gpus: [],
    driver: null,
    nvidiaFs: null,
    peerToPeerMemory: null,
    cuFile: false,
    configuration: {
      path: "/etc/cufile.json",
      problem: null,
      allowCompatMode: null,
      forceCompatMode: null,
      usePciP2pDma: null
    }
  },
  conditions: [inline],
  unseen: []
}

const degraded: DirectIo.DirectIoReport = {
  ...direct,
  verdict: {
    io: "direct-with-conditions",
    gpu: "compat",
    reasons: { io: ["allocating writes went through the page cache"], gpu: ["nvidia-fs is not loaded"] }
  },
  filesystem: { ...direct.filesystem, source: "/dev/mapper/kv", mountPoint: "/data" },
  devices: [
    { ...disk, name: "dm-0", kind: "dm", detail: "crypt", transport: null, over: ["md0"] },
    { ...disk, name: "md0", kind: "md", detail: "raid5", transport: null, over: ["nvme0n1", "nvme1n1"] },
    { ...disk, name: "nvme0n1", kind: "nvme", transport: "pcie", physicalSector: 4096 },
    { ...disk, name: "nvme1n1", kind: "nvme", transport: "pcie", physicalSector: 4096 }
  ],
  probes: [probe, { ...probe, id: "allocating", file: "nocow", path: "buffered", evidence: "16 pages stayed" }],
  measurement: {
    blockSize: 131072,
    depth: 8,
    rounds: 5,
    engine: "io_uring",
    reads: 2e9,
    firstWrites: 5e8,
    rewrites: 1e9,
    firstWriteRatio: 2
  },
  conditions: [inline, journal, replication],
  unseen: [{ what: "dirty pages of the system", reason: "/proc/vmstat cannot be read" }]
}

const unsupported: DirectIo.DirectIoReport = {
  ...direct,
  verdict: { ...direct.verdict, io: "unsupported", reasons: { io: ["open with O_DIRECT gave EINVAL"], gpu: [] } },
  filesystem: { ...direct.filesystem, type: "tmpfs", source: "tmpfs", mountPoint: "/dev/shm" },
  devices: [],
  alignment: { read: null, write: null, statx: { memory: 0, offset: 0, readOffset: null } },
  kernel: { release: null, setFlag: "refused", openFlag: null, inodeFlags: null },
  probes: [],
  probeFailure: { step: "open", code: "EINVAL", message: "the filesystem has no direct I/O" }
}

const plain = (report: DirectIo.DirectIoReport, options: Partial<TextOptions> = {}) =>
  text(report, { all: false, colour: false, width: 100, ...options })

/** The same words, however they are broken into lines. */
const flowing = (text: string) => text.replace(/\s+/g, " ")

describe("the text of a report", () => {
  it("puts the verdict and its meaning before all else", () => {
    const [first, io, why, gpu, reason] = plain(direct).split("\n")
    assert.strictEqual(first, "/data/kv")
    assert.strictEqual(io, "I/O  direct — reads and every kind of write bypass the page cache")
    assert.strictEqual(why, "     - every try was direct")
    assert.strictEqual(gpu, "GPU  unavailable — cuFile does not work here")
    assert.strictEqual(reason, "     - there is no NVIDIA GPU")
  })

  it("says on what a plain disk the directory is, its alignment and what was tried", () => {
    const said = plain(direct)
    assert.include(said, "  ext4 on /dev/vda (virtio, 512/512 sectors, read-ahead 128 KiB) mounted at /\n")
    assert.include(said, "78 GiB of 252 GiB")
    assert.include(said, "Linux 6.8.0; O_DIRECT by fcntl: kept; by open: kept")
    assert.match(said, /reads +memory 4, offset 512, length 512\n +writes +memory 4, offset 1024, length 1024\n/)
    assert.match(said, /extending +direct +16 pages before, none after\n +read +direct +nothing was cached\n/)
    assert.notInclude(said, "Measured")
    assert.notInclude(said, "Not seen")
  })

  it("shows the devices below each other", () => {
    assert.include(
      plain(degraded, { width: 120 }),
      [
        "  ext4 on /dev/mapper/kv, which is dm-0 (dm crypt, 512/512 sectors, read-ahead 128 KiB) mounted at /data",
        "  └ md0 (md raid5, 512/512 sectors, read-ahead 128 KiB)",
        "    └ nvme0n1 (nvme over pcie, 512/4096 sectors, read-ahead 128 KiB)",
        "    └ nvme1n1 (nvme over pcie, 512/4096 sectors, read-ahead 128 KiB)"
      ].join("\n")
    )
  })

  it("ends where devices lie below each other in a circle, or are not described", () => {
    const circle = [{ ...disk, name: "a", over: ["b", "lost"] }, { ...disk, name: "b", over: ["a"] }]
    const top = { ...disk, name: "top", over: ["a"] }
    assert.match(plain({ ...direct, devices: [top, ...circle] }), /└ a \(.*\n +└ b \(.*\n +└ lost\n/)
  })

  it("shows the conditions that apply or are unknown, each with its remedy, and the others when asked", () => {
    const said = plain(degraded)
    assert.match(said, /2\.3\.4 Examining or transforming user data\n +applies +File data is journaled/)
    assert.include(
      flowing(said),
      "(affects writes, first writes; bears on I/O and GPU) the mount has data=journal, with which"
    )
    assert.match(said, /\n +→ mount -o remount,data=ordered \/data\n +unknown +Another host gets a copy/)
    assert.notInclude(said, "2.3.2")
    assert.include(said, "1 of 3 do not apply here; --all shows them")
    const all = plain(degraded, { all: true })
    assert.match(all, /2\.3\.2 Inline files\n +not here +Small files live in their inodes/)
    assert.notInclude(all, "--all")
  })

  it("says what was measured, and whether prewrite is worth its time", () => {
    const said = plain(degraded)
    assert.include(said, "128 KiB at random offsets, 8 in flight, io_uring, medians of 5")
    assert.match(said, /reads +2000 MB\/s\n +first writes +500 MB\/s\n +rewrites +1000 MB\/s\n/)
    assert.include(flowing(said), "Rewrites run at 2.00 times the speed of first writes: prewrite makes")
    const { measurement } = degraded
    const even = plain({ ...degraded, measurement: measurement && { ...measurement, firstWriteRatio: 1.01 } })
    assert.include(even, "prewrite gains nothing here")
  })

  it("says what could not be seen, and marks a file that was made differently", () => {
    const said = plain(degraded)
    assert.include(said, "Not seen\n  dirty pages of the system: /proc/vmstat cannot be read")
    assert.match(said, /allocating, nocow +buffered +16 pages stayed/)
  })

  it("says where the probe stopped", () => {
    const said = plain(unsupported)
    assert.match(said, /I\/O {2}unsupported — .*\n +- open with O_DIRECT gave EINVAL/)
    assert.include(said, "  tmpfs mounted at /dev/shm\n")
    assert.match(said, /reads +no direct read was made\n +writes +no direct write was made\n +statx +no direct I\/O/)
    assert.include(said, "stopped at open (EINVAL): the filesystem has no direct I/O")
  })

  it("keeps within the width, and breaks nothing but lines", () => {
    const wide = plain(degraded, { all: true, width: 1000 })
    for (const width of [60, 80, 120]) {
      const said = plain(degraded, { all: true, width })
      for (const line of said.split("\n")) assert.isAtMost(line.length, width, line)
      assert.strictEqual(flowing(said), flowing(wide))
      assert.notMatch(said, / $/m)
    }
    // What follows starts below what it continues.
    assert.match(plain(degraded, { width: 60 }), /\n {14}the mount has .*\n {14}\S/)
  })

  it("has colours when asked, and says the same without", () => {
    const coloured = text(degraded, { all: true, colour: true, width: 80 })
    assert.include(coloured, escape)
    assert.strictEqual(stripVTControlCharacters(coloured), plain(degraded, { all: true, width: 80 }))
    assert.notInclude(plain(degraded), escape)
  })

  it("lets no control character of a name through", () => {
    const said = plain({ ...direct, directory: `/tmp/${escape}[31m\nred` })
    assert.match(said, /^\/tmp\/\\x1b\[31m\\x0ared\n/)
  })
})

const scratch = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "doctor-test-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

/** `heard` may end the child by what it says. */
const command = (args: ReadonlyArray<string>, heard: (child: ChildProcess, complaint: string) => void = () => {}) =>
  Effect.scoped(Effect.flatMap(
    Effect.acquireRelease(
      Effect.sync(() => spawn(process.execPath, [program(main), ...args], { cwd: root, stdio: "pipe" })),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    ),
    (child) =>
      Effect.async<{ readonly code: number | null; readonly out: string; readonly complaint: string }>((resume) => {
        const said = { out: "", complaint: "" }
        child.stdout.on("data", (chunk) => said.out += String(chunk))
        child.stderr.on("data", (chunk) => {
          said.complaint += String(chunk)
          heard(child, said.complaint)
        })
        child.on("close", (code) => resume(Effect.succeed({ code, ...said })))
      })
  ))

const doctor = (...args: ReadonlyArray<string>) => command(["doctor", ...args])

const codes: Readonly<Record<DirectIo.IoVerdict, number>> = {
  "direct": 0,
  "direct-with-conditions": 1,
  "buffered": 1,
  "unknown": 1,
  "unsupported": 2
}

const ReportJson = Schema.parseJson(DirectIo.DirectIoReport)

describe("the command doctor", () => {
  it.live("prints the report as JSON and nothing else, ends as its verdict says, and leaves nothing", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      // Whatever is logged, it is not part of the report.
      const { code, complaint, out } = yield* command(["--log-level", "all", "doctor", directory, "--json"])
      const report = yield* Schema.decode(ReportJson)(out)
      assert.strictEqual(report.directory, directory)
      assert.strictEqual(code, codes[report.verdict.io], complaint)
      assert.match(out, /^\{\n {2}"format": "effect-disk-storage doctor 1",\n/)
      assert.isTrue(out.endsWith("\n}\n"))
      assert.include(complaint, "DEBUG")
      assert.deepStrictEqual(readdirSync(directory), [])
    })))

  it.live("tries the path to a GPU where that is asked for, and says what came of it", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      const { complaint, out } = yield* doctor("--gpu", "--json", directory)
      const tried = Schema.parseJson(Schema.Struct({ devicePath: PathReport }))
      const { devicePath } = yield* Schema.decode(tried)(out)
      assert.isAbove(devicePath.reasons.length, 1, complaint)
      const text = (yield* doctor("--gpu", directory)).out
      assert.match(text, new RegExp(`^ +path +${devicePath.kind}$`, "m"))
      assert.deepStrictEqual(readdirSync(directory), [])
    })))

  it.live("prints the same verdict as text, without colours in a pipe", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      const { code, complaint, out } = yield* doctor("--all", directory)
      const [first, io] = out.split("\n")
      assert.strictEqual(first, directory, complaint)
      const verdict = yield* Schema.decodeUnknown(DirectIo.IoVerdict)(io?.split(/\s+/)[1])
      assert.strictEqual(code, codes[verdict])
      assert.notInclude(out + complaint, escape)
      assert.deepStrictEqual(readdirSync(directory), [])
    })))

  it.live("measures", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      const { code, complaint, out } = yield* doctor("--measure", "--json", directory)
      const { measurement, verdict } = yield* Schema.decode(ReportJson)(out)
      assert.strictEqual(code, codes[verdict.io], complaint)
      if (verdict.io === "direct") assert.isAbove(measurement?.reads ?? 0, 0)
      assert.deepStrictEqual(readdirSync(directory), [])
    })))

  it.live("ended by Ctrl-C while it measures, leaves nothing", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      let pressed = false
      const args = ["--log-level", "debug", "doctor", "--measure", directory]
      const { code, complaint, out } = yield* command(args, (child, complaint) => {
        // The kernel and the engine are there, and nothing is measured yet.
        if (pressed || !complaint.includes("engine")) return
        pressed = true
        child.kill("SIGINT")
      })
      assert.isTrue(pressed, complaint)
      assert.strictEqual(code, 130, complaint)
      assert.strictEqual(out, "")
      assert.deepStrictEqual(readdirSync(directory), [])
    })))

  it.live("ends with 64 on wrong arguments, said without colours", () =>
    Effect.gen(function*() {
      const wrong = [
        [["doctor", "--frobnicate"], /--frobnicate is not an option/],
        [["doctor", "--json", "--json"], /--json is not an option, or is given twice/],
        [["doctor", "/tmp", "/var"], /unknown argument: '\/var'/],
        [["doctor", ""], /DIR is empty/],
        [["docter"], /Invalid subcommand/],
        [["bench", "--rounds", "0"], /--rounds 0 is not a whole number/]
      ] as const
      yield* Effect.forEach(wrong, ([args, expected]) =>
        Effect.map(command(args), ({ code, complaint, out }) => {
          assert.strictEqual(code, 64, args.join(" "))
          assert.match(complaint, expected)
          assert.strictEqual(out, "")
          assert.notInclude(complaint, escape)
        }), { concurrency: 2, discard: true })
    }))

  it.live("ends with 70 where no report can be made, and says why", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      const file = join(directory, "file")
      writeFileSync(file, "")
      for (const [path, code] of [[join(directory, "missing"), "ENOENT"], [file, "ENOTDIR"]] as const) {
        const ended = yield* doctor("--json", path)
        assert.strictEqual(ended.code, 70, ended.complaint)
        assert.include(ended.complaint, path)
        assert.include(ended.complaint, code)
        assert.notMatch(ended.complaint, /\n\s+at /)
        assert.strictEqual(ended.out, "")
      }
      assert.deepStrictEqual(readdirSync(directory), ["file"])
    })))

  it.live("explains verdicts and exit codes, without colours in a pipe", () =>
    Effect.gen(function*() {
      for (const args of [["doctor", "--help"], ["--help"], ["bench", "--help"]] as const) {
        const { code, out } = yield* command(args)
        assert.strictEqual(code, 0)
        assert.notInclude(out, escape)
        if (args[0] !== "doctor") continue
        for (const word of [...DirectIo.IoVerdict.literals, ...DirectIo.GpuVerdict.literals, "64", "70"]) {
          assert.include(flowing(out), word)
        }
      }
    }))
})
