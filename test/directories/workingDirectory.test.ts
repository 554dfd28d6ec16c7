/** Relative directories, and working directories that are gone, in processes of their own. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { spawn } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { program } from "../support/programs.js"

const child = new URL("children/make.ts", import.meta.url)
const main = new URL("../../src/cli/main.ts", import.meta.url)

const scratch = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-disk-storage-cwd-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

interface Ended {
  readonly code: number | null
  readonly output: string
  readonly complaint: string
}

/** Runs a command line, whose working directory `cwd` is. */
const run = (cwd: string, [command = "", ...args]: ReadonlyArray<string>, env: Record<string, string> = {}) =>
  Effect.async<Ended>((resume) => {
    const started = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] })
    let [output, complaint] = ["", ""]
    started.stdout.setEncoding("utf8").on("data", (text: string) => output += text)
    started.stderr.setEncoding("utf8").on("data", (text: string) => complaint += text)
    started.on("error", (error) => resume(Effect.die(error)))
    started.on("close", (code) => resume(Effect.succeed({ code, output, complaint })))
  })

const Told = Schema.parseJson(Schema.Struct({
  outcomes: Schema.Tuple(Schema.String, Schema.String),
  warnings: Schema.Array(Schema.String)
}))

const make = (cwd: string, how: "there" | "removed" | "detached", directory: string) =>
  Effect.gen(function*() {
    const { code, complaint, output } = yield* run(cwd, [process.execPath, program(child), how, directory])
    assert.strictEqual(code, 0, complaint)
    return Schema.decodeSync(Told)(output)
  })

describe("a relative directory", { timeout: 120_000 }, () => {
  it.scopedLive("is resolved against the working directory, and warned of once", () =>
    Effect.gen(function*() {
      const cwd = yield* scratch
      const { outcomes, warnings } = yield* make(cwd, "there", "cache/kv")
      for (const path of outcomes) assert.isTrue(path.startsWith(`${cwd}/cache/kv/dynamo-kvbm-`), path)
      assert.deepStrictEqual(warnings, [
        `the relative path cache/kv is resolved against the working directory to ${cwd}/cache/kv`
      ])
      const absolute = yield* make(cwd, "there", `${cwd}/cache/kv`)
      assert.deepStrictEqual(absolute.warnings, [])
    }))

  it.scopedLive("works where the working directory is called … (deleted), and is there", () =>
    Effect.gen(function*() {
      const cwd = join(yield* scratch, "kv (deleted)")
      mkdirSync(cwd)
      const { outcomes } = yield* make(cwd, "there", "cache")
      for (const path of outcomes) assert.isTrue(path.startsWith(`${cwd}/cache/`), path)
    }))

  it.scopedLive("is refused, and nothing made, where the working directory was removed", () =>
    Effect.gen(function*() {
      const above = yield* scratch
      const cwd = join(above, "kv")
      mkdirSync(cwd)
      const { outcomes } = yield* make(cwd, "removed", "cache")
      for (const failure of outcomes) {
        assert.match(failure, /^WorkingDirectoryGone: cache is a relative path, and the working directory .* is gone/)
      }
      assert.deepStrictEqual(readdirSync(above), [])
    }))

  it.scopedLive("is refused where another directory has the name that the kernel gives to the removed one", () =>
    Effect.gen(function*() {
      const above = yield* scratch
      const cwd = join(above, "kv")
      mkdirSync(cwd)
      mkdirSync(`${cwd} (deleted)`)
      const { outcomes } = yield* make(cwd, "removed", "cache")
      for (const failure of outcomes) assert.match(failure, /^WorkingDirectoryGone: /)
      assert.deepStrictEqual(readdirSync(`${cwd} (deleted)`), [])
    }))

  it.scopedLive("is refused where the name of the working directory leads elsewhere, as after a detached mount", () =>
    Effect.gen(function*() {
      const { outcomes } = yield* make(yield* scratch, "detached", "cache-of-a-detached-mount")
      for (const failure of outcomes) assert.match(failure, /^WorkingDirectoryGone: /)
      assert.isFalse(existsSync("/tmp/cache-of-a-detached-mount"))
    }))

  it.scopedLive("does not matter to an absolute one", () =>
    Effect.gen(function*() {
      const above = yield* scratch
      const cwd = join(above, "kv")
      mkdirSync(cwd)
      const { outcomes } = yield* make(cwd, "removed", above)
      for (const path of outcomes) assert.isTrue(path.startsWith(`${above}/dynamo-kvbm-`), path)
    }))
})

/** The command in a working directory that is removed before it starts. */
const inRemoved = (args: ReadonlyArray<string>, env: Record<string, string> = {}) =>
  Effect.gen(function*() {
    const cwd = join(yield* scratch, "kv")
    mkdirSync(cwd)
    const script = "rmdir \"$PWD\" && exec \"$@\""
    return yield* run(cwd, ["sh", "-c", script, "sh", process.execPath, program(main), ...args], env)
  })

describe("the command, where the working directory was removed", { timeout: 120_000 }, () => {
  const relative: ReadonlyArray<readonly [string, number, ReadonlyArray<string>]> = [
    ["doctor", 70, ["doctor", "cache"]],
    ["doctor --json", 70, ["doctor", "--json", "."]],
    ["sweep", 70, ["sweep", "cache"]],
    ["bench", 1, ["bench", "--target", "disk", "--without-fio", "cache"]],
    ["bench --json", 1, ["bench", "--target", "memory", "--json", "out.json"]],
    ["bench --plot", 1, ["bench", "--target", "memory", "--plot", "out.svg"]]
  ]
  it.scopedLive.each(relative)("%s ends with a sentence, and no stack", ([, code, args]) =>
    Effect.gen(function*() {
      const ended = yield* inRemoved(args)
      assert.strictEqual(ended.code, code, ended.complaint)
      assert.strictEqual(ended.output, "")
      assert.include(ended.complaint, "the working directory of this process is gone")
      assert.notMatch(ended.complaint, /^\s+at /m)
    }))

  it.scopedLive("says the same of a relative directory of the variable", () =>
    Effect.gen(function*() {
      const ended = yield* inRemoved(["doctor"], { DYN_KVBM_DISK_CACHE_DIR: "cache" })
      assert.strictEqual(ended.code, 70)
      assert.include(ended.complaint, "cache is a relative path")
    }))

  it.scopedLive("sweeps an absolute one", () =>
    Effect.gen(function*() {
      const directory = yield* scratch
      const ended = yield* inRemoved(["sweep", "--dry-run", directory])
      assert.deepStrictEqual([ended.code, ended.complaint], [0, ""])
      assert.include(ended.output, directory)
    }))
})

describe("the command", { timeout: 120_000 }, () => {
  it.scopedLive("refuses a variable that nobody can mean, and names it", () =>
    Effect.gen(function*() {
      const cwd = yield* scratch
      for (const [command, code] of [["doctor", 70], ["sweep", 70]] as const) {
        const ended = yield* run(cwd, [process.execPath, program(main), command], {
          DYN_KVBM_DISK_CACHE_DIR: "\"/tmp\""
        })
        assert.strictEqual(ended.code, code, ended.complaint)
        assert.include(ended.complaint, "write DYN_KVBM_DISK_CACHE_DIR=/tmp")
      }
      assert.deepStrictEqual(readdirSync(cwd), [])
    }))

  it.scopedLive("refuses a DIR whose bytes are no UTF-8, which Node reads as another name", () =>
    Effect.gen(function*() {
      const cwd = yield* scratch
      const script = "exec \"$@\" \"$(printf '/tmp/\\351')\""
      for (const command of ["doctor", "sweep"]) {
        const ended = yield* run(cwd, ["sh", "-c", script, "sh", process.execPath, program(main), command])
        assert.strictEqual(ended.code, 64, ended.complaint)
        assert.include(ended.complaint + ended.output, "UTF-8")
      }
      rmdirSync(cwd)
    }))
})
