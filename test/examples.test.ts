/** The examples run, say what they should, and leave nothing. */
import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { mkdtempSync, readdirSync, rmdirSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))

const run = (example: string, environment: Record<string, string> = {}, ...args: ReadonlyArray<string>) => {
  const directory = mkdtempSync(join(tmpdir(), "effect-disk-storage-example-"))
  try {
    const command = ["--import", "tsx", `examples/${example}.ts`, ...args]
    const { status, stderr, stdout } = spawnSync(process.execPath, command, {
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
    return { directory, status, stderr, stdout }
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

  it("choose-a-directory takes one whose I/O is direct, or says of each why not", () => {
    const { directory, status, stderr, stdout } = run("choose-a-directory")
    if (status === 0) {
      assert.match(stdout, /^(\S+) it is: I\/O is direct.*\n67108864 bytes in \1\/\S+: proven/m)
    } else {
      for (const candidate of [directory, "/tmp", "/dev/shm"]) assert.include(stderr, candidate)
    }
  })

  it("choose-a-directory does not start where nothing is direct", () => {
    const { status, stderr, stdout } = run("choose-a-directory", {}, "/proc", "/nonexistent")
    assert.strictEqual(status, 1)
    assert.match(stderr, /^No directory does direct I\/O:\n {2}.*\/proc/)
    assert.match(stderr, /\n {2}.*\/nonexistent.*ENOENT/)
    assert.notMatch(stderr, /\n\s+at /)
    assert.notInclude(stdout, " it is")
  })
})
