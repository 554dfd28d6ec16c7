/** The examples run, say what they should, and leave nothing. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { spawn } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { parse } from "../examples/offload-a-model/arguments.js"
import { exampleLine, read } from "../examples/offload-a-model/trace.js"

const root = fileURLToPath(new URL("..", import.meta.url))

/** Not `spawnSync`: one after the other they would hold the event loop until the runner takes this process for dead. */
const ended = (args: ReadonlyArray<string>, env: NodeJS.ProcessEnv) =>
  new Promise<{ readonly status: number | null; readonly stdout: string; readonly stderr: string }>(
    (resolve, reject) => {
      const child = spawn(process.execPath, args, { cwd: root, env, stdio: ["ignore", "pipe", "pipe"] })
      let [stdout, stderr] = ["", ""]
      child.stdout.setEncoding("utf8").on("data", (text: string) => stdout += text)
      child.stderr.setEncoding("utf8").on("data", (text: string) => stderr += text)
      child.on("error", reject).on("close", (status) => resolve({ status, stdout, stderr }))
    }
  )

const run = async (example: string, environment: Record<string, string> = {}, ...args: ReadonlyArray<string>) => {
  const directory = mkdtempSync(join(tmpdir(), "effect-disk-storage-example-"))
  try {
    const { status, stderr, stdout } = await ended(["--import", "tsx", `examples/${example}.ts`, ...args], {
      ...process.env,
      DYN_KVBM_DISK_CACHE_DIR: directory,
      // Also where the system's temporary directory takes no O_DIRECT.
      DYN_KVBM_DISK_ZEROFILL_FALLBACK: "true",
      ...environment
    })
    assert.deepStrictEqual(readdirSync(directory), [])
    return { directory, status, stderr, stdout }
  } finally {
    rmdirSync(directory)
  }
}

describe("examples", () => {
  it.each([["0.02", "false"], ["0.0200001", "true"]])("quickstart, of %s GB, buffered: %s", async (size, buffered) => {
    const { status, stderr, stdout } = await run("quickstart", {
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

  it("quickstart names a bad variable", async () => {
    const { status, stderr, stdout } = await run("quickstart", { DYN_KVBM_DISK_CACHE_GB: "lots" })
    assert.notStrictEqual(status, 0)
    assert.include(stdout + stderr, "DYN_KVBM_DISK_CACHE_GB")
  })

  it("gpu-offload, without a GPU and over the stub libraries", async () => {
    const none = { DISK_STORAGE_CUDA_LIBRARY: "/nowhere/libcuda.so.1" }
    const without = await run("gpu-offload", none)
    assert.strictEqual(without.status, 0, without.stderr)
    assert.include(without.stdout, "unavailable")
    assert.include(without.stdout, "/nowhere/libcuda.so.1")
    const stubs = await run("gpu-offload", none, "--stubs")
    assert.strictEqual(stubs.status, 0, stubs.stderr)
    assert.include(stubs.stdout, "host memory, no GPU")
    assert.include(stubs.stdout, "every byte is the one that was put into the device")
  })

  it("as-a-layer", async () => {
    const { status, stderr, stdout } = await run("as-a-layer")
    assert.strictEqual(status, 0, stderr)
    assert.include(stdout, "1000 slots written; slot 42 holds 42")
  })

  it("injected-syscalls", async () => {
    const { status, stderr, stdout } = await run("injected-syscalls")
    assert.strictEqual(status, 0, stderr)
    assert.include(stdout, "nothing leaks")
  })

  it("choose-a-directory takes one whose I/O is direct, or says of each why not", async () => {
    const { directory, status, stderr, stdout } = await run("choose-a-directory")
    if (status === 0) {
      assert.match(stdout, /^(\S+) it is: I\/O is direct.*\n67108864 bytes in \1\/\S+: proven/m)
    } else {
      for (const candidate of [directory, "/tmp", "/dev/shm"]) assert.include(stderr, candidate)
    }
  })

  it("choose-a-directory does not start where nothing is direct", async () => {
    const { status, stderr, stdout } = await run("choose-a-directory", {}, "/proc", "/nonexistent")
    assert.strictEqual(status, 1)
    assert.match(stderr, /^No directory does direct I\/O:\n {2}.*\/proc/)
    assert.match(stderr, /\n {2}.*\/nonexistent.*ENOENT/)
    assert.notMatch(stderr, /\n\s+at /)
    assert.notInclude(stdout, " it is")
  })

  describe("offload-a-model", () => {
    const withFiles = async (use: (directory: string) => Promise<void>) => {
      const directory = mkdtempSync(join(tmpdir(), "effect-disk-storage-trace-"))
      try {
        await use(directory)
      } finally {
        rmSync(directory, { recursive: true })
      }
    }
    const row = (input_length: number, ...hash_ids: ReadonlyArray<number>) =>
      JSON.stringify({ timestamp: 0, input_length, output_length: 1, hash_ids })

    it("replays what it generates, at every capacity, and draws it", async () => {
      await withFiles(async (directory) => {
        const plot = join(directory, "hit-rate.svg")
        const args = ["--conversations", "2", "--capacities", "8,32", "--plot", plot]
        const { status, stderr, stdout } = await run("offload-a-model", {}, ...args)
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

    it("replays a trace of Mooncake's format", async () => {
      await withFiles(async (directory) => {
        const trace = join(directory, "trace.jsonl")
        // 2 of 3 blocks are shared, then the whole prompt, whose last block is not full; nothing of the empty one.
        writeFileSync(trace, [row(1300, 0, 1, 2), row(1536, 0, 1, 3), row(1300, 0, 1, 2), row(0), ""].join("\n"))
        const { status, stderr, stdout } = await run("offload-a-model", {}, trace, "--capacities", "8")
        assert.strictEqual(status, 0, stderr)
        assert.include(stdout, "requests  4, of 9 blocks, 9 of them in prompts")
        // 5 of 9; 1024 + 1300 of 4136
        assert.include(stdout, "hit rate  55.6 % of the prompts' blocks, 56.2 % of their tokens")
        assert.include(stdout, "stored 4, duplicates 0, hits 5,")
      })
    })

    it("replays a trace in the order of its timestamps, and says where it stops", async () => {
      await withFiles(async (directory) => {
        const trace = join(directory, "trace.jsonl")
        const at = (timestamp: number, ...hash_ids: ReadonlyArray<number>) =>
          JSON.stringify({ timestamp, input_length: 512, output_length: 1, hash_ids })
        writeFileSync(trace, [at(2, 8), at(1, 7), at(1, 9), at(0, 7)].join("\n"))
        const { status, stderr, stdout } = await run(
          "offload-a-model",
          {},
          trace,
          "--capacities",
          "8",
          "--requests",
          "2"
        )
        assert.strictEqual(status, 0, stderr)
        assert.include(stdout, `the first 2 of 4 requests of ${trace}; a block is 512 tokens`)
        // Both are of block 7: in the order of the lines nothing would be found.
        assert.include(stdout, "requests  2, of 2 blocks")
        assert.include(stdout, "stored 1, duplicates 0, hits 1,")
      })
    })

    const reading = (path: string) =>
      Effect.runPromise(
        read(path).pipe(
          Effect.match({ onFailure: ({ message }) => message, onSuccess: (requests) => requests.length }),
          Effect.provide(NodeFileSystem.layer)
        )
      )
    const such = `a request is such as ${exampleLine}`

    /** What is said of `line`, as the third of a file. */
    const said = async (line: string) => {
      const directory = mkdtempSync(join(tmpdir(), "effect-disk-storage-trace-"))
      try {
        const trace = join(directory, "trace.jsonl")
        writeFileSync(trace, `${row(512, 0)}\n\n${line}\n`)
        return String(await reading(trace)).replace(`${trace}, line 3: `, "line 3: ")
      } finally {
        rmSync(directory, { recursive: true })
      }
    }

    it.each([
      ["[5]", `it is [5]; ${such}`],
      [JSON.stringify({ timestamp: 0, input_length: 5, hash_ids: [0] }), `output_length is missing; ${such}`],
      [
        row(1300, 0, 1),
        "there must be 3 hash_ids, since input_length is 1300 and a block has 512 tokens; there are 2"
      ],
      [row(10, -1), "hash_ids[0] is -1, and not a whole number from 0 to 9007199254740991"],
      [row(10).replace("[]", "\"0\""), "hash_ids is \"0\", and not a list of whole numbers"],
      [
        row(512, 0).replace("\"timestamp\":0", "\"timestamp\":\"noon\""),
        "timestamp is \"noon\", and not a number from 0"
      ]
    ])("says in a sentence what is wrong with a line: %s", async (line, expected) => {
      assert.strictEqual(await said(line), `line 3: ${expected}`)
    })

    it.each(["{\"timestamp\": 0", "\u001b[31m"])("says what is not JSON, printably: %j", async (line) => {
      const message = await said(line)
      assert.isTrue(message.startsWith("line 3: it is not JSON ("), message)
      assert.isTrue(message.endsWith(`); ${such}`), message)
      assert.notMatch(message, /\p{Cc}/u)
    })

    it("names a trace that cannot be read", async () => {
      assert.strictEqual(await reading("/proc"), "/proc is a directory; a TRACE is a file of Mooncake's format.")
      assert.strictEqual(await reading("/nonexistent/trace"), "There is no file /nonexistent/trace.")
      assert.strictEqual(await reading("/dev/null"), `/dev/null is empty; ${such}, on a line of its own`)
      assert.match(String(await reading("/proc/self/mem")), /^\/proc\/self\/mem cannot be read: EIO/)
    })

    it("ends with 1 and a sentence for a bad trace, before anything is replayed", async () => {
      await withFiles(async (directory) => {
        const trace = join(directory, "trace.jsonl")
        writeFileSync(trace, `${row(512, 0)}\n${row(10, -1)}\n`)
        const { status, stderr, stdout } = await run("offload-a-model", {}, trace, "--capacities", "8")
        assert.strictEqual(status, 1)
        assert.strictEqual(
          stderr,
          `${trace}, line 2: hash_ids[0] is -1, and not a whole number from 0 to 9007199254740991\n`
        )
        assert.strictEqual(stdout, "")
      })
    })

    const capacities = "--capacities takes whole numbers from 1 to 1000000000, such as 48,96,192:"
    const requests = "--requests takes a whole number from 1 to 1000000000, such as 500:"
    const conversations = "--conversations takes a whole number from 1 to 10000, such as 24:"
    const plot = "--plot takes the name of a file to write, such as hit-rate.svg:"

    it.each([
      [["--capacities", "x"], `${capacities} "x"`],
      [["--capacities", "8,none"], `${capacities} "none" in "8,none"`],
      [["--capacities", "8,"], `${capacities} "" in "8,"`],
      [["--capacities="], `${capacities} ""`],
      [["--capacities"], `${capacities} nothing follows it`],
      [["--capacities", "8,9007199254740991"], `${capacities} "9007199254740991" in "8,9007199254740991"`],
      [["--requests", "0"], `${requests} "0"`],
      [["--requests", "-5"], `${requests} "-5"`],
      [["--requests", "1.5"], `${requests} "1.5"`],
      [["--conversations", "1e3"], `${conversations} "1e3"`],
      [["--conversations", "20000"], `${conversations} "20000"`],
      [["--plot", ""], `${plot} ""`],
      [["--plot", "--requests", "5"], `${plot} --requests follows it`],
      [["--requests", "5", "--requests", "6"], "--requests is taken once; it is given twice."],
      [["one", "two"], "One TRACE is taken, and there are 2: \"one\" \"two\""],
      [[""], "TRACE takes the name of a file, such as trace.jsonl: \"\""],
      [
        ["one", "--conversations", "2"],
        "--conversations is for requests that are generated; those of \"one\" are replayed."
      ],
      [["--bogus"], "There is no option --bogus; --help lists those there are."],
      [["-x"], "There is no option -x; --help lists those there are."],
      [["--help=me"], "--help takes no value: \"me\""]
    ])("says in a sentence what is wrong with %j", (args, expected) => {
      assert.deepStrictEqual(Either.mapLeft(parse(args), ({ message }) => message), Either.left(expected))
    })

    it("takes what is right", () => {
      const defaults = {
        trace: undefined,
        capacities: [48, 96, 192, 384],
        requests: Infinity,
        conversations: 24,
        plot: undefined
      } as const
      assert.deepStrictEqual(parse([]), Either.right(defaults))
      assert.deepStrictEqual(
        parse(["--capacities", "8, 32", "--requests=5", "trace.jsonl", "--plot", "out.svg"]),
        Either.right({ ...defaults, trace: "trace.jsonl", capacities: [8, 32] as const, requests: 5, plot: "out.svg" })
      )
      assert.deepStrictEqual(parse(["--bogus", "-h"]), Either.right("help"))
    })

    it("ends with 64 for a bad argument, and helps with 0", async () => {
      const bad = await run("offload-a-model", {}, "--capacities", "8,none")
      assert.deepStrictEqual([bad.status, bad.stderr, bad.stdout], [64, `${capacities} "none" in "8,none"\n`, ""])
      const { status, stderr, stdout } = await run("offload-a-model", {}, "--help")
      assert.deepStrictEqual([status, stderr], [0, ""])
      for (const name of ["TRACE", "--capacities", "--requests", "--conversations", "--plot", "--help"]) {
        assert.match(stdout, new RegExp(`^ +(-h, )?${name} `, "m"))
      }
    })

    it.each([
      ["/nonexistent/hit-rate.svg", "there is no directory /nonexistent"],
      ["/proc/hit-rate.svg", "ENOENT"],
      ["/proc", "it is a directory"]
    ])("refuses to plot to %s before anything is replayed", async (path, why) => {
      const { status, stderr, stdout } = await run("offload-a-model", {}, "--plot", path)
      assert.strictEqual(status, 1)
      assert.isTrue(stderr.startsWith(`The plot ${path} cannot be written: ${why}`), stderr)
      assert.notMatch(stderr, /\n./)
      assert.strictEqual(stdout, "")
    })
  })
})
