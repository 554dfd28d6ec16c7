/** The command `sweep`: what it removes, what it says of it, and how it ends. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { execFile } from "node:child_process"
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { text } from "../../src/cli/sweep/command.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as Linux from "../../src/Linux.js"
import { program } from "../support/programs.js"

const escape = "\u001B"

const scratch = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "sweep-test-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

const main = new URL("../../src/cli/main.ts", import.meta.url)

const run = (directory: string, ...args: ReadonlyArray<string>) =>
  Effect.async<{ readonly code: number; readonly out: string; readonly complaint: string }>((resume) => {
    const env = { ...process.env, DYN_KVBM_DISK_CACHE_DIR: directory }
    execFile(
      process.execPath,
      [program(main), "sweep", ...args],
      { env },
      (error, out, complaint) =>
        resume(Effect.succeed({ code: typeof error?.code === "number" ? error.code : 0, out, complaint }))
    )
  })

describe("sweep", () => {
  it.scopedLive("removes, tells what it did, and takes nothing from a storage", () =>
    Effect.gen(function*() {
      const directory = yield* scratch
      const storage = yield* DiskStorage.make({ size: 8192, directory, directIo: "disabled" })
      const abandoned = join(directory, "dynamo-kvbm-disk-cache-eds-abcdef")
      writeFileSync(abandoned, new Uint8Array(1_000_000))

      const dry = yield* run(directory, "--dry-run")
      assert.deepStrictEqual([dry.code, dry.complaint], [0, ""])
      assert.match(dry.out, new RegExp(`^abandoned .* ${abandoned}$`, "m"))
      assert.match(dry.out, new RegExp(`^in use .* ${storage.path}$`, "m"))
      assert.match(dry.out, /^would be removed: 1 file, .*; in use: 1 file, .*; left: 0 files, 0 B$/m)
      assert.isTrue(existsSync(abandoned))

      const { code, out } = yield* run(directory, "--json", directory)
      assert.strictEqual(code, 0)
      const report = Schema.decodeSync(Schema.parseJson(DiskStorage.SweepReport))(out)
      assert.sameDeepMembers(report.files.map(({ outcome, path }) => [path, outcome]), [
        [abandoned, "removed"],
        [storage.path, "in use"]
      ])
      assert.deepStrictEqual(readdirSync(directory), [storage.path.slice(directory.length + 1)])
    }).pipe(Effect.provide(Linux.layer)))

  it.scopedLive(
    "ends with 70 where nothing can be looked at, with 64 for what it does not take",
    () =>
      Effect.gen(function*() {
        const directory = yield* scratch
        const none = yield* run(directory, join(directory, `none${escape}[31m`))
        assert.deepStrictEqual([none.code, none.out], [70, ""])
        assert.match(none.complaint, /none\\x1b\[31m was not swept: readdir .* ENOENT/)
        assert.strictEqual((yield* run(directory, "--wet-run")).code, 64)
        assert.strictEqual((yield* run(directory, "")).code, 64)
        assert.deepInclude(yield* run(directory), { code: 0, out: `no temp files in ${directory}\n` })
      })
  )

  it("shows names and reasons with their control characters", () => {
    const files = [{ path: `/tmp/${escape}[31m`, bytes: 2048, outcome: "left", reason: `a\nb` }] as const
    assert.strictEqual(
      text({ directory: "/tmp", dryRun: false, files }),
      "left       2 KiB  /tmp/\\x1b[31m: a\\x0ab\nremoved: 0 files, 0 B; in use: 0 files, 0 B; left: 1 file, 2 KiB"
    )
  })
})
