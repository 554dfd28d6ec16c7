/** The command `bench`: it says what is wrong, measures, writes what it measured, and leaves nothing. The figures are no matter here. */
import * as Command from "@effect/cli/Command"
import * as HelpDoc from "@effect/cli/HelpDoc"
import * as ValidationError from "@effect/cli/ValidationError"
import * as NodeContext from "@effect/platform-node/NodeContext"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { spawn } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmSync, statfsSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { bench as command } from "../../src/cli/bench/command.js"
import { ReportJson } from "../../src/cli/bench/report.js"
import { program } from "../support/programs.js"

const root = fileURLToPath(new URL("../..", import.meta.url))
const main = new URL("../../src/cli/main.ts", import.meta.url)

const testTimeout = 120_000

const scratch = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "bench-test-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

/** A run of the command, ended with the Scope. */
const start = (args: ReadonlyArray<string>) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => {
        const child = spawn(process.execPath, [program(main), "bench", ...args], { cwd: root, stdio: "pipe" })
        const said = { out: "", complaint: "" }
        child.stdout.on("data", (chunk) => said.out += String(chunk))
        child.stderr.on("data", (chunk) => said.complaint += String(chunk))
        return { child, said, code: new Promise<number | null>((resolve) => child.on("close", resolve)) }
      }),
      ({ child }) => Effect.sync(() => child.kill("SIGKILL"))
    ),
    ({ child, code, said }) => ({
      child,
      said,
      ended: Effect.map(Effect.promise(() => code), (code) => ({ code, ...said }))
    })
  )

const bench = (...args: ReadonlyArray<string>) => Effect.scoped(Effect.flatMap(start(args), ({ ended }) => ended))

/** What the parser prints is not for whoever reads about tests. */
const quietly = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.consoleWith((console) => Effect.withConsole(effect, { ...console, error: () => Effect.void }))

/** A disk too full for the bench is left alone. */
const roomy = (directory: string) => {
  const { bavail, bsize } = statfsSync(directory)
  return bavail * bsize > 11 * 2 ** 30
}
const targets = (directory: string) => roomy(directory) ? [] : ["--target", "memory"]

/** Processes that a bench started. */
const startedBy = (pid: number) =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((name) => {
    try {
      const command = readFileSync(`/proc/${name}/cmdline`, "latin1").replaceAll("\0", " ")
      return command.includes(`/proc/${pid}/fd/`) ? [command] : []
    } catch {
      // Ended meanwhile.
      return []
    }
  })

const inMemory = (pid: number) => {
  try {
    return readdirSync("/dev/shm").filter((name) => name.startsWith(`effect-disk-storage-bench-${pid}-`))
  } catch {
    // None here.
    return []
  }
}

/** Elements of a picture, each closed in its turn. */
const elements = (svg: string): ReadonlyArray<string> => {
  const open: Array<string> = []
  const seen: Array<string> = []
  for (
    const [, closes, name = "", empty] of svg.matchAll(/<(\/?)([A-Za-z][\w:-]*)(?:\s+[\w:-]+="[^"<]*")*\s*(\/?)>/g)
  ) {
    if (closes) assert.strictEqual(open.pop(), name)
    else {
      seen.push(name)
      if (!empty) open.push(name)
    }
  }
  assert.deepStrictEqual(open, [])
  return seen
}

describe.concurrent("bench", () => {
  it.live("says what is wrong with its arguments", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      const wrong = [
        [["--rounds", "0"], /--rounds 0 is not a whole number from 1 to 1000/],
        [["--block-size", "4K,5k"], /--block-size 5k is not a multiple of 4096 bytes/],
        [["--contestant", "dd"], /--contestant dd is not one of .*io_uring\.raw/],
        [["--part", "transfer"], /--part transfer is not one of transfers, allocation, delay, blocks/],
        [["--part", "delay", "--plot", join(directory, "a.svg")], /--plot draws the part transfers/],
        [["--frobnicate"], /--frobnicate is not an option/],
        [[join(directory, "missing")], /missing cannot be used .*ENOENT/],
        [["--json", join(directory, "missing", "file.json"), directory], /file\.json cannot be written: .*ENOENT/]
      ] as const
      const parse = Command.run(command, { name: "bench", version: "0" })
      for (const [args, complaint] of wrong) {
        const error = yield* Effect.flip(parse(["node", "bench", ...args]))
        assert.match(
          ValidationError.isValidationError(error) ? HelpDoc.toAnsiText(error.error) : error.message,
          complaint
        )
      }
      assert.deepStrictEqual(readdirSync(directory), [])
    })).pipe(quietly, Effect.provide(NodeContext.layer)))

  it.live("leaves room on the disk, and says so", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      const { code, complaint, out } = yield* bench("--size", "1000T", directory)
      assert.strictEqual(code, 1)
      assert.match(complaint, /free, and this needs 1000 TiB.*smaller --size/)
      assert.notMatch(complaint, /\n\s+at /)
      assert.strictEqual(out, "")
      assert.deepStrictEqual(readdirSync(directory), [])
    })), testTimeout)

  it.live(
    "measures, prints, writes JSON and draws, and leaves nothing else",
    () =>
      Effect.scoped(Effect.gen(function*() {
        const directory = yield* scratch
        const results = yield* scratch
        const json = join(results, "result.json")
        const plot = join(results, "result.svg")
        const small = ["--rounds", "1", "--millis", "50", "--size", "8M", "--block-size", "4K", "--direction", "read"]
        // fio and its control run along.
        const some = ["--contestant", "io_uring,node.raw,fs,platform"]
        const where = [...targets(directory), directory]
        const { code, complaint, out } = yield* bench(...small, ...some, "--json", json, "--plot", plot, ...where)
        assert.strictEqual(code, 0, complaint)
        const report = yield* Schema.decode(ReportJson)(readFileSync(json, "utf8"))
        assert.lengthOf(report.cells, report.targets.length)
        for (const { leftOut, results } of report.cells) {
          assert.deepStrictEqual(leftOut, [])
          for (const { contestant, iops, ratioToFio, rounds } of results) {
            assert.lengthOf(rounds, 1)
            assert.isAbove(iops.median, 0, contestant)
            assert.isAtLeast(iops.best, iops.median)
            assert.strictEqual(ratioToFio === null, report.host.fio === null)
          }
          assert.includeMembers(
            results.map(({ contestant }) => contestant),
            ["node.raw", "fs.callback", "fs.promises", "platform.FileSystem"]
          )
        }
        assert.match(out, /read, 4 KiB × depth 32/)
        assert.match(out, /fs\.callback +\d/)
        assert.include(elements(readFileSync(plot, "utf8")), "svg")
        assert.match(readFileSync(plot, "utf8"), /IOPS \(logarithmic\)/)
        assert.deepStrictEqual(readdirSync(directory), [])
        assert.deepStrictEqual(readdirSync(results).sort(), ["result.json", "result.svg"])
      })),
    testTimeout
  )

  it.live(
    "measures how a file gets its blocks, and the event loop",
    () =>
      Effect.scoped(Effect.gen(function*() {
        const directory = yield* scratch
        const results = yield* scratch
        if (!roomy(directory)) return
        const json = join(results, "result.json")
        const small = ["--size", "8M", "--rounds", "1", "--millis", "100", "--operations", "2000"]
        const { code, complaint, out } = yield* bench("--part", "allocation,delay", ...small, "--json", json, directory)
        assert.strictEqual(code, 0, complaint)
        const { allocation, cells, delay, host, parts } = yield* Schema.decode(ReportJson)(readFileSync(json, "utf8"))
        assert.deepStrictEqual(parts, ["allocation", "delay"])
        assert.deepStrictEqual(cells, [])
        assert.deepStrictEqual(allocation?.leftOut, [])
        for (const { bytes, bytesPerSecond, contestant, millis } of allocation?.passes ?? []) {
          assert.lengthOf(millis, 1, contestant)
          assert.strictEqual(bytes, 8 * 2 ** 20)
          assert.isAbove(bytesPerSecond.best, 0, contestant)
        }
        const filled = allocation?.passes.filter(({ kind }) => kind === "zero-fill").map(({ contestant }) => contestant)
        assert.includeMembers(filled ?? [], ["serial", ...(host.fio === null ? [] : ["fio.io_uring", "fio.control"])])
        for (const kind of ["first writes", "rewrites"] as const) {
          assert.lengthOf(allocation?.passes.filter((pass) => pass.kind === kind) ?? [], 2)
          assert.lengthOf(allocation?.ratios.filter((ratio) => ratio.kind === kind) ?? [], 1)
        }
        const [load, ...others] = delay?.loads ?? []
        assert.deepStrictEqual(others, [])
        assert.isAbove(load?.loop.max ?? 0, 0)
        assert.isAbove(load?.idle.max ?? 0, 0)
        assert.match(delay?.leftOut[0]?.reason ?? "", /a block is larger than the file/)
        for (const { samples } of delay?.endurance ?? []) {
          assert.deepStrictEqual(samples.map(({ operations }) => operations), [200, 1000, 2000])
        }
        assert.match(out, /prewrite to \w+\.fallocate: \d/)
        assert.match(out, /128 reads of 16 MiB in flight left out/)
        assert.deepStrictEqual(readdirSync(directory), [])
      })),
    testTimeout
  )

  it.live(
    "measures a block store against its engine, and its index",
    () =>
      Effect.scoped(Effect.gen(function*() {
        const directory = yield* scratch
        const results = yield* scratch
        if (!roomy(directory)) return
        const json = join(results, "result.json")
        const small = ["--size", "64M", "--rounds", "1", "--millis", "300", "--blocks", "2000"]
        const { code, complaint, out } = yield* bench("--part", "blocks", ...small, "--json", json, directory)
        assert.strictEqual(code, 0, complaint)
        const { blocks, parts } = yield* Schema.decode(ReportJson)(readFileSync(json, "utf8"))
        assert.deepStrictEqual(parts, ["blocks"])
        assert.deepStrictEqual(blocks?.leftOut, [])
        assert.deepStrictEqual(
          blocks?.cells.map(({ blockSize, direction }) => [direction, blockSize]),
          [["offload", 2 ** 20], ["onboard", 2 ** 20], ["offload", 2 ** 16], ["onboard", 2 ** 16]]
        )
        for (const { results } of blocks?.cells ?? []) {
          assert.deepStrictEqual(
            results.map(({ contestant }) => contestant),
            ["raw", "control", "off", "crc32", "xxh128"]
          )
          for (const { contestant, ratioToRaw, rounds } of results) {
            assert.lengthOf(rounds, 1, contestant)
            assert.isAbove(ratioToRaw.median, 0, contestant)
          }
        }
        assert.deepStrictEqual(blocks?.index.sizes.map(({ blocks }) => blocks), [10_000, 2000])
        assert.deepStrictEqual(blocks?.withoutDisk.sizes.map(({ blocks }) => blocks), [10_000, 2000])
        assert.isAbove(blocks?.withoutDisk.matchMicros.best ?? 0, 0)
        assert.strictEqual(blocks?.restart.blocks, 2000)
        assert.isAbove(blocks?.restart.startMillis.best ?? 0, 0)
        assert.match(out, /store, checksum xxh128 +\d/)
        assert.match(out, /raw against raw: \d/)
        assert.deepStrictEqual(readdirSync(directory), [])
      })),
    testTimeout
  )

  it.live(
    "ended by Ctrl-C at any moment, leaves neither files nor processes",
    () =>
      Effect.scoped(Effect.gen(function*() {
        const directory = yield* scratch
        yield* Effect.forEach(["io_uring,node,fs", "fio"], (contestant) =>
          Effect.scoped(Effect.gen(function*() {
            const args = [
              "--contestant",
              contestant,
              "--size",
              "8M",
              "--millis",
              "2000",
              ...targets(directory),
              directory
            ]
            const { child, ended, said } = yield* start(
              contestant === "fio" ? args : ["--without-fio", ...args]
            )
            const pid = child.pid ?? 0
            const deadline = performance.now() + 20_000
            // Measuring has begun; where there is a fio, it runs.
            while (!/× \d+: \d+ contestants/.test(said.complaint) && performance.now() < deadline) {
              if (child.exitCode !== null) break
              yield* Effect.sleep("20 millis")
            }
            yield* Effect.sleep("700 millis")
            child.kill("SIGINT")
            const { code, complaint } = yield* ended
            // Without fio, nothing was to be measured.
            if (/No contestant can run/.test(complaint)) return
            assert.strictEqual(code, 130, complaint)
            assert.deepStrictEqual(readdirSync(directory), [])
            assert.deepStrictEqual(inMemory(pid), [])
            assert.deepStrictEqual(startedBy(pid), [])
          })), { concurrency: 2, discard: true })
      })),
    testTimeout
  )
})
