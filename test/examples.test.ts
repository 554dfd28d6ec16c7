/** The examples run, say what they should, and leave nothing. */
import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { mkdtempSync, readdirSync, rmdirSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))

const run = (example: string, environment: Record<string, string> = {}) => {
  const directory = mkdtempSync(join(tmpdir(), "effect-disk-storage-example-"))
  try {
    const { status, stderr, stdout } = spawnSync(process.execPath, ["--import", "tsx", `examples/${example}.ts`], {
      cwd: root,
      encoding: "utf8",
      env: {
        ...process.env,
        DYN_KVBM_DISK_CACHE_DIR: directory,
        // Also where the system's temporary directory takes no O_DIRECT.
        DYN_KVBM_DISK_ZEROFILL_FALLBACK: "true",
        ...environment
      }
    })
    assert.deepStrictEqual(readdirSync(directory), [])
    return { status, stderr, stdout }
  } finally {
    rmdirSync(directory)
  }
}

describe("examples", { timeout: 120_000 }, () => {
  it.each([["0.02", "false"], ["0.0200001", "true"]])("quickstart, of %s GB, buffered: %s", (size, buffered) => {
    const { status, stderr, stdout } = run("quickstart", {
      DYN_KVBM_DISK_CACHE_GB: size,
      DYN_KVBM_DISK_DISABLE_O_DIRECT: buffered
    })
    assert.strictEqual(status, 0, stderr)
    for (
      const line of ["every byte is the one written", "then the file was unlinked", "descriptors on it: 0; file: gone"]
    ) {
      assert.include(stdout, line)
    }
    assert.include(stdout, buffered === "true" ? "O_DIRECT was not asked for" : "set and read back")
  })

  it("quickstart names a bad variable", () => {
    const { status, stderr, stdout } = run("quickstart", { DYN_KVBM_DISK_CACHE_GB: "lots" })
    assert.notStrictEqual(status, 0)
    assert.include(stdout + stderr, "DYN_KVBM_DISK_CACHE_GB")
  })

  it("as-a-layer", () => {
    const { status, stderr, stdout } = run("as-a-layer")
    assert.strictEqual(status, 0, stderr)
    assert.include(stdout, "1000 slots written; slot 42 holds 42")
  })

  it("injected-syscalls", () => {
    const { status, stderr, stdout } = run("injected-syscalls")
    assert.strictEqual(status, 0, stderr)
    assert.include(stdout, "nothing leaks")
  })
})
