/** The examples run, say what they should, and leave nothing. */
import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs"
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

  describe("offload-a-model", () => {
    const withFiles = (use: (directory: string) => void) => {
      const directory = mkdtempSync(join(tmpdir(), "effect-disk-storage-trace-"))
      try {
        use(directory)
      } finally {
        rmSync(directory, { recursive: true })
      }
    }
    const row = (input_length: number, ...hash_ids: ReadonlyArray<number>) =>
      JSON.stringify({ timestamp: 0, input_length, output_length: 1, hash_ids })

    it("replays what it generates, at every capacity, and draws it", () => {
      withFiles((directory) => {
        const plot = join(directory, "hit-rate.svg")
        const args = ["--conversations", "2", "--capacities", "8,32", "--plot", plot]
        const { status, stderr, stdout } = run("offload-a-model", {}, ...args)
        assert.strictEqual(status, 0, stderr)
        assert.match(stdout, /^2 generated conversations; a block is 64 tokens, 128 KiB$/m)
        assert.match(stdout, /^capacity {4}8 blocks, 1\.0 MiB$/m)
        assert.match(stdout, /^capacity {4}32 blocks, 4\.0 MiB$/m)
        assert.strictEqual(stdout.match(/every byte is the one offloaded/g)?.length, 2)
        assert.strictEqual(stdout.match(/corrupted 0, failed 0$/gm)?.length, 2)
        assert.match(stdout, /onboard {3}[1-9]/)
        const svg = readFileSync(plot, "utf8")
        assert.match(svg, /^<svg/)
        assert.include(svg, "capacity, blocks")
      })
    })

    it("replays a trace of Mooncake's format", () => {
      withFiles((directory) => {
        const trace = join(directory, "trace.jsonl")
        // 2 of 3 blocks are shared, then the whole prompt, whose last block is not full; nothing of the empty one.
        writeFileSync(trace, [row(1300, 0, 1, 2), row(1536, 0, 1, 3), row(1300, 0, 1, 2), row(0), ""].join("\n"))
        const { status, stderr, stdout } = run("offload-a-model", {}, trace, "--capacities", "8")
        assert.strictEqual(status, 0, stderr)
        assert.include(stdout, "requests  4, of 9 blocks, 9 of them in prompts")
        // 5 of 9; 1024 + 1300 of 4136
        assert.include(stdout, "hit rate  55.6 % of the prompts' blocks, 56.2 % of their tokens")
        assert.include(stdout, "stored 4, duplicates 0, hits 5,")
      })
    })

    it.each([
      ["{\"timestamp\": 0", "JSON"],
      [JSON.stringify({ timestamp: 0, input_length: 5, hash_ids: [0] }), "output_length"],
      [row(1300, 0, 1), "3 hash_ids, since input_length is 1300"],
      [row(10, -1), "-1"]
    ])("names the line that is malformed: %s", (line, expected) => {
      withFiles((directory) => {
        const trace = join(directory, "trace.jsonl")
        writeFileSync(trace, `${row(512, 0)}\n${line}\n`)
        const { status, stderr } = run("offload-a-model", {}, trace, "--capacities", "8")
        assert.strictEqual(status, 1)
        assert.include(stderr, `${trace}, line 2:`)
        assert.include(stderr, expected)
        assert.notMatch(stderr, /\n\s+at /)
      })
    })

    it("names a bad argument", () => {
      const { status, stderr } = run("offload-a-model", {}, "--capacities", "8,none")
      assert.strictEqual(status, 1)
      assert.include(stderr, "none")
    })
  })
})
