/**
 * Calls that sandboxes refuse, each with EPERM, as old container runtimes do, and with ENOSYS, as gVisor and old kernels do: a storage
 * goes on without it, or fails with a typed error, and nothing is left. The rings, AIO, eventfd and memfd are in
 * `engines/choice.test.ts`. Node itself does not live without openat, close, mmap, munmap, madvise and futex.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { spawn } from "node:child_process"
import { mkdirSync, readdirSync, rmSync } from "node:fs"
import { join } from "node:path"
import type { It } from "../filesystems/real.js"
import { describeReal, freshPath, Mounted } from "../filesystems/real.js"
import { program } from "../support/programs.js"
import type { Task } from "./children/protocol.js"
import { Outcome, Task as TaskSchema } from "./children/protocol.js"

const child = new URL("children/refused.ts", import.meta.url)

const errnos = { EPERM: 1, ENOSYS: 38 } as const
type Code = keyof typeof errnos

// uapi/linux/fcntl.h and uapi/linux/fs.h
const [F_GETFL, F_SETFL, F_OFD_SETLK] = [3, 4, 37]
const [FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FIEMAP] = [0x8008_6601, 0x4008_6602, 0xc020_660b]

const outcomeOf = (task: Task) =>
  Effect.gen(function*() {
    const ended = yield* Effect.async<
      { readonly signal: string | null; readonly output: string; readonly complaint: string }
    >(
      (resume) => {
        const started = spawn(process.execPath, [program(child), Schema.encodeSync(TaskSchema)(task)], {
          stdio: ["ignore", "pipe", "pipe"]
        })
        let [output, complaint] = ["", ""]
        started.stdout.setEncoding("utf8").on("data", (text: string) => output += text)
        started.stderr.setEncoding("utf8").on("data", (text: string) => complaint += text)
        started.on("error", (error) => resume(Effect.die(error)))
        started.on("close", (_, signal) => resume(Effect.succeed({ signal, output, complaint })))
      }
    )
    assert.strictEqual(ended.signal, "SIGKILL", ended.complaint)
    return yield* Effect.orDie(Schema.decode(Outcome)(ended.output))
  })

interface Case {
  readonly refuse: Task["refuse"]
  readonly options?: Partial<Task>
  /** All that is said of it besides. */
  readonly survives?: (outcome: Outcome, code: Code) => void
  /** The step that fails, and with what. */
  readonly fails?: readonly [step: NonNullable<Outcome["failed"]>["step"], ...tags: ReadonlyArray<string>]
  /** Whether the file is left: a name that may not be removed. */
  readonly leaves?: boolean
}

const warned = ({ warnings }: Outcome, part: string) => assert.include(warnings.join("\n"), part)
const silent = ({ warnings }: Outcome) => assert.deepStrictEqual(warnings, [])

const cases: Readonly<Record<string, Case>> = {
  "statx: fstat, an alignment of pages, and a warning": {
    refuse: ["statx"],
    survives: (outcome) => {
      warned(outcome, "statx is refused here")
      // Without an answer of the kernel, one page is written and read.
      assert.strictEqual(outcome.storage?.verdict, "direct")
      assert.include(outcome.storage?.reason, "statx is refused here")
      assert.strictEqual(outcome.storage?.alignment, 4096)
      assert.strictEqual(outcome.storage?.allocation, "fallocate")
    }
  },
  "statx, with directIo: \"proven\": the page cache tells": {
    refuse: ["statx"],
    options: { directIo: "proven" },
    survives: ({ storage }) => assert.strictEqual(storage?.verdict, "direct")
  },
  "cachestat, with directIo: \"proven\": mincore tells": {
    refuse: ["cachestat"],
    options: { directIo: "proven" },
    survives: (outcome) => {
      silent(outcome)
      assert.strictEqual(outcome.storage?.verdict, "direct")
    }
  },
  "cachestat and mincore, with directIo: \"proven\": nothing tells": {
    refuse: ["cachestat", "mincore"],
    options: { directIo: "proven" },
    fails: ["acquire", "DirectIoUnavailable"]
  },
  "fadvise64, with directIo: \"proven\"": {
    refuse: ["fadvise64"],
    options: { directIo: "proven" },
    survives: silent
  },
  "fallocate: a sparse file, with a warning": {
    refuse: ["fallocate"],
    survives: (outcome) => {
      warned(outcome, "has no fallocate")
      assert.strictEqual(outcome.storage?.allocation, "truncate")
    }
  },
  "fallocate, with fallback: \"zero-fill\"": {
    refuse: ["fallocate"],
    options: { fallback: "zero-fill" },
    survives: ({ storage }) => assert.strictEqual(storage?.allocation, "zero-fill")
  },
  "fallocate and ftruncate": { refuse: ["fallocate", "ftruncate"], fails: ["acquire", "AllocationFailed"] },
  "ftruncate alone, which nothing needs": { refuse: ["ftruncate"], survives: silent },
  "pread64 and pwrite64, which the ring does without": { refuse: ["pread64", "pwrite64"], survives: silent },
  "pwrite64, with directIo: \"proven\"": {
    refuse: ["pwrite64"],
    options: { directIo: "proven" },
    fails: ["acquire", "DirectIoUnavailable"]
  },
  "pwrite64, with the engine node:fs": {
    refuse: ["pwrite64"],
    options: { engine: "node" },
    fails: ["transfer", "IoFailed"]
  },
  "fdatasync, which the ring does without": { refuse: ["fdatasync"], survives: silent },
  "fdatasync, with the engine node:fs": {
    refuse: ["fdatasync"],
    options: { engine: "node" },
    fails: ["sync", "IoFailed"]
  },
  "fstatfs: the filesystem is not known": { refuse: ["fstatfs"], fails: ["acquire", "CreateFailed"] },
  "mkdir: the directory cannot be made": { refuse: ["mkdir"], fails: ["acquire", "DirectoryUnusable", "CreateFailed"] },
  "readlink, which an absolute directory does without": { refuse: ["readlink"], survives: silent },
  "getdents64: nothing is swept": { refuse: ["getdents64"], survives: silent },
  "fcntl(F_OFD_SETLK): a storage without a lock, with a warning": {
    refuse: [["fcntl", F_OFD_SETLK]],
    survives: (outcome) => warned(outcome, "cannot be locked")
  },
  "fcntl(F_SETFL), with directIo: \"preferred\": buffered, with a warning": {
    refuse: [["fcntl", F_SETFL]],
    options: { directIo: "preferred" },
    survives: (outcome) => {
      warned(outcome, "I/O is buffered")
      assert.strictEqual(outcome.storage?.verdict, "buffered")
    }
  },
  "fcntl(F_SETFL), with directIo: \"required\"": {
    refuse: [["fcntl", F_SETFL]],
    fails: ["acquire", "DirectIoRefused"]
  },
  "fcntl(F_GETFL)": { refuse: [["fcntl", F_GETFL]], fails: ["acquire", "CreateFailed"] },
  "ioctl(FS_IOC_FIEMAP), which only the map of extents needs": { refuse: [["ioctl", FS_IOC_FIEMAP]], survives: silent },
  "unlink: the release fails, and the file is left": {
    refuse: ["unlink"],
    fails: ["release", "ReleaseFailed"],
    leaves: true
  }
}

const attempt = (task: Partial<Task>, { fails, leaves = false, options, refuse, survives }: Case, code: Code) =>
  Effect.gen(function*() {
    const directory = yield* freshPath
    if (!refuse.includes("mkdir")) mkdirSync(directory)
    const outcome = yield* outcomeOf({
      directory,
      refuse,
      errno: errnos[code],
      directIo: "required",
      engine: "auto",
      fallback: "truncate",
      ...task,
      ...options
    })
    const told = JSON.stringify(outcome)
    if (fails === undefined) assert.isUndefined(outcome.failed, told)
    else {
      const [step, ...tags] = fails
      assert.strictEqual(outcome.failed?.step, step, told)
      assert.include(tags, outcome.failed?.tag, told)
    }
    survives?.(outcome, code)
    if (refuse.includes("mkdir")) return
    assert.strictEqual(readdirSync(directory).length, leaves ? 1 : 0, told)
    rmSync(directory, { recursive: true })
  })

/** Most of the time of a child goes by before it is refused anything. */
const timeout = 300_000

const table = (it: It, all: Readonly<Record<string, Case>>) => {
  for (const [name, one] of Object.entries(all)) {
    it.scoped(
      name,
      () => Effect.forEach(["EPERM", "ENOSYS"] as const, (code) => attempt({}, one, code), { discard: true }),
      { timeout }
    )
  }
}

describeReal("ext4", { name: "where the kernel refuses" }, (it) => {
  table(it, cases)

  it.scoped("statx, and a mount is required: /proc tells the mount", () =>
    Effect.gen(function*() {
      const { directory } = yield* Mounted
      const elsewhere = yield* freshPath
      mkdirSync(elsewhere)
      yield* attempt({ requireMount: directory }, {
        refuse: ["statx"],
        survives: (outcome) => warned(outcome, "statx")
      }, "EPERM")
      yield* attempt({ requireMount: elsewhere }, { refuse: ["statx"], fails: ["acquire", "MountMissing"] }, "EPERM")
      rmSync(elsewhere, { recursive: true })
    }), { timeout })

  it.scoped("rename: a storage cannot be kept, and is gone", () =>
    Effect.gen(function*() {
      const { directory } = yield* Mounted
      const keepAt = join(directory, "kept")
      for (const code of ["EPERM", "ENOSYS"] as const) {
        yield* attempt({ keepAt }, { refuse: ["rename"], fails: ["keep", "KeepFailed"] }, code)
        assert.notInclude(readdirSync(directory), "kept")
      }
    }), { timeout })
})

describeReal("btrfs", { name: "where the kernel refuses" }, (it) => {
  table(it, {
    "ioctl(FS_IOC_GETFLAGS): copy-on-write stays on, with a warning": {
      refuse: [["ioctl", FS_IOC_GETFLAGS]],
      survives: (outcome) => warned(outcome, "copy-on-write stays on")
    },
    "ioctl(FS_IOC_SETFLAGS): copy-on-write stays on, with a warning": {
      refuse: [["ioctl", FS_IOC_SETFLAGS]],
      survives: (outcome) => warned(outcome, "copy-on-write stays on")
    },
    "statx: fstat, and an alignment of the filesystem's blocks": {
      refuse: ["statx"],
      survives: (outcome) => {
        warned(outcome, "statx is refused here")
        assert.strictEqual(outcome.storage?.alignment, 4096)
      }
    }
  })
})
