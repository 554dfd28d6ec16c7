/** The event loop waits for no disk: a trace of the system calls by thread. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { spawn, spawnSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { Report, Task } from "./bench/children/protocol.js"
import { program } from "./support/programs.js"

const root = fileURLToPath(new URL("..", import.meta.url))
const script = new URL("bench/children/traced.ts", import.meta.url)

/** Why nothing can be traced here. */
const whyNot = (): string | undefined => {
  const { error, status, stderr } = spawnSync("strace", ["-f", "-o", "/dev/null", "true"], { encoding: "utf8" })
  if (error !== undefined) return "there is no strace"
  return status === 0 ? undefined : `strace cannot trace: ${stderr.trim()}`
}

/** All that can be done to a file or its descriptor; `?` for those that not every architecture has. */
const calls = [
  "?open,?creat,openat,?unlink,unlinkat,?mkdir,mkdirat,?rename,?renameat,renameat2,?stat,?lstat,newfstatat,?fstat,statx",
  "statfs,fstatfs,truncate,ftruncate,fallocate,read,write,pread64,pwrite64,preadv,pwritev,preadv2,pwritev2,readv,writev",
  "fsync,fdatasync,sync_file_range,syncfs,ioctl,fcntl,lseek,close,flock,fadvise64"
].join(",")

/** These only look at or change the descriptor itself. */
const harmless = new Set(["fcntl"])

interface Call {
  readonly thread: number
  readonly name: string
}

/** The calls below `directory`, which `--decode-fds=path` names in each line, also once the file is unlinked. */
const callsBelow = (trace: string, directory: string): Array<Call> =>
  trace.split("\n").flatMap((line) => {
    const [, thread, name] = /^(\d+) +(\w+)\(/.exec(line) ?? []
    return thread !== undefined && name !== undefined && line.includes(`${directory}/`)
      ? [{ thread: Number(thread), name }]
      : []
  })

interface Outcome {
  readonly report: typeof Report.Type
  /** Names of the calls below the directory, by the main thread and by all others. */
  readonly main: ReadonlySet<string>
  readonly others: ReadonlySet<string>
}

const scratch = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "threads-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

/** Runs to its end. When it is interrupted it is ended; strace hands the signal on to what it started. */
const run = (name: string, args: ReadonlyArray<string>, env: Record<string, string>) =>
  Effect.async<{ readonly code: number | null; readonly out: string; readonly complaint: string }>((resume) => {
    const child = spawn(name, args, { cwd: root, stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...env } })
    let out = ""
    let complaint = ""
    child.stdout.on("data", (chunk) => out += String(chunk))
    child.stderr.on("data", (chunk) => complaint += String(chunk))
    child.on("error", (error) => resume(Effect.die(error)))
    child.on("close", (code) => resume(Effect.succeed({ code, out, complaint })))
    return Effect.async<void>((ended) => {
      child.on("close", () => ended(Effect.void))
      child.kill()
    })
  })

/** How the engines move bytes and sync, in calls that name the file; a ring does that without. */
const transfers = { io_uring: [], aio: ["fdatasync"], node: ["pread64", "pwrite64", "fdatasync"] } as const

const traced = (
  task: Omit<Task, "size" | "directory">,
  engine: keyof typeof transfers = "node"
): Effect.Effect<Outcome> =>
  Effect.scoped(Effect.gen(function*() {
    const scratchDirectory = yield* scratch
    const log = join(scratchDirectory, "trace")
    const directory = join(scratchDirectory, "cache")
    const { code, complaint, out } = yield* run(
      "strace",
      [
        "-f",
        "-s",
        "512",
        "--decode-fds=path",
        "-o",
        log,
        "-e",
        `trace=${calls}`,
        "--",
        process.execPath,
        program(script)
      ],
      {
        TASK: Schema.encodeSync(Task)({ ...task, size: 3 * 1024 * 1024 + 5, directory }),
        DISK_STORAGE_IO_ENGINE: engine
      }
    )
    assert.strictEqual(code, 0, complaint)
    const report = Schema.decodeUnknownSync(Report)(out)
    // The name of the file is looked up below the descriptor of its directory.
    const trace = readFileSync(log, "utf8").replaceAll(/"\/proc\/self\/fd\/\d+\/(?=dynamo-)/g, `"${directory}/`)
    assert.include(trace, `${directory}/${report.name}`)
    // The directory itself is made, too.
    const found = callsBelow(trace.replaceAll(`${directory}"`, `${directory}/"`), directory)
    const names = (of: (call: Call) => boolean) => new Set(found.filter(of).map(({ name }) => name))
    return {
      report,
      main: names(({ thread }) => thread === report.pid),
      others: names(({ thread }) => thread !== report.pid)
    }
  }))

/** Every storage here makes these on a thread of the pool. */
const control = ["mkdir", "openat", "statx", "fstatfs", "unlink", "close"]
const always = [...control, ...transfers.node]

const withoutAt = (names: ReadonlySet<string>) =>
  new Set([...names].map((name) => name.replace(/^(mkdir|unlink)at$/, "$1")))

const assertOffThread = ({ main, others }: Outcome, expected: ReadonlyArray<string>) => {
  assert.deepStrictEqual([...main].filter((name) => !harmless.has(name)), [], "calls of the main thread")
  assert.includeMembers([...withoutAt(others)], [...expected], "calls of other threads")
}

const plain = {
  openStrategy: "default",
  fallback: "truncate",
  earlyUnlink: false,
  hasFallocate: true,
  onMainThread: false
} as const

const reason = whyNot()

describe("a storage makes its disk calls off the main thread", () => {
  if (reason !== undefined && process.env["EDS_REQUIRE_REAL"] === "1") {
    it("can be traced here", () => assert.fail(reason))
  } else if (reason !== undefined) {
    it.skip(`not here: ${reason}`, () => {})
  } else {
    it.live("with fallocate", () =>
      Effect.gen(function*() {
        const outcome = yield* traced(plain)
        assert.strictEqual(outcome.report.method, "fallocate")
        assertOffThread(outcome, [...always, "fallocate"])
        // What may run on the main thread does, and the trace sees it.
        assert.deepStrictEqual([...outcome.main], ["fcntl"])
      }))

    for (const engine of ["io_uring", "aio"] as const) {
      it.live(`with ${engine}, which transfers by itself`, () =>
        Effect.gen(function*() {
          const outcome = yield* traced(plain, engine)
          assertOffThread(outcome, [...control, ...transfers[engine], "fallocate"])
          const moves = [...outcome.others].filter((name) => name === "pread64" || name === "pwrite64")
          assert.deepStrictEqual(moves, [], "the engine was not used")
        }))
    }

    it.live("with open-direct", () =>
      Effect.gen(function*() {
        const outcome = yield* traced({ ...plain, openStrategy: "open-direct" })
        assert.strictEqual(outcome.report.method, "fallocate")
        assertOffThread(outcome, [...always, "fallocate"])
      }))

    it.live("with early unlink", () =>
      Effect.gen(function*() {
        assertOffThread(yield* traced({ ...plain, earlyUnlink: true }), [...always, "fallocate"])
      }))

    it.live("with zero-fill", () =>
      Effect.gen(function*() {
        const outcome = yield* traced({ ...plain, hasFallocate: false, fallback: "zero-fill" })
        assert.strictEqual(outcome.report.method, "zero-fill")
        assertOffThread(outcome, always)
      }))

    it.live("with truncate", () =>
      Effect.gen(function*() {
        const outcome = yield* traced({ ...plain, hasFallocate: false })
        assert.strictEqual(outcome.report.method, "truncate")
        assertOffThread(outcome, [...always, "ftruncate"])
      }))

    it.live("and one that is made on it is seen", () =>
      Effect.gen(function*() {
        const { main } = yield* traced({ ...plain, onMainThread: true })
        assert.include([...main], "fdatasync")
      }))
  }
})
