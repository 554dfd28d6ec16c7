/** Engines in processes and threads of their own: how those end, and what the collector and limits do to memory. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { describeEngines, mebibyte, temporaryDirectory, whyNotEngine } from "./engines.js"
import { commandLine, run, start } from "./processes.js"

describeEngines("a process with", ({ name }) => {
  it.scopedLive("nothing to wait for ends by itself, though its engine is open", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const { code, complaint, output } = yield* run(commandLine("program", ["idle", name, directory]))
      assert.deepStrictEqual([output, code], ["idle\n", 0], complaint)
    }))

  it.scopedLive("an operation in flight ends after it", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const { code, complaint, output } = yield* run(commandLine("program", ["busy", name, directory]))
      assert.deepStrictEqual([output, code], [`wrote ${16 * mebibyte} true\n`, 0], complaint)
      const written = readFileSync(join(directory, "file"))
      assert.strictEqual(written.byteLength, 16 * mebibyte)
      assert.strictEqual(Buffer.compare(written, Buffer.alloc(16 * mebibyte, 9)), 0)
    }))

  it.scopedLive("heavy I/O is gone when it is killed", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const child = yield* start(commandLine("program", ["storm", name, directory]))
      assert.isTrue(yield* child.printed("busy"))
      yield* child.kill
      const ended = yield* Effect.timeout(child.ended, "4 minutes")
      assert.strictEqual(ended.signal, "SIGKILL")
      assert.throws(() => process.kill(child.pid, 0), /ESRCH/)
    }))

  it.scopedLive("heavy I/O ends at once when it says so, with its own code", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const { code, complaint, signal } = yield* run(commandLine("program", ["exiting", name, directory]))
      assert.deepStrictEqual([code, signal], [3, null], complaint)
    }))

  it.scopedLive("several threads has an engine in each, and survives the end of those that are busy or idle", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const { code, complaint, output } = yield* run(commandLine("program", ["threads", name, directory]))
      const lines = output.split("\n").filter((line) => line === "right")
      assert.deepStrictEqual([lines.length, code], [3, 0], output + complaint)
    }))

  it.scopedLive("a forced collector keeps the memory that the kernel has", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const { code, complaint, output } = yield* run(
        commandLine("program", ["collected", name, directory], ["--expose-gc"])
      )
      assert.deepStrictEqual([output, code], ["right\n", 0], complaint)
    }))
})

/** Without root no limit on locked memory is overridden by CAP_IPC_LOCK; root drops it. */
const withoutLocks = process.getuid?.() === 0 ? ["setpriv", "--bounding-set", "-ipc_lock"] : []

describe.skipIf(whyNotEngine("io_uring") !== undefined)("registered memory", () => {
  it.scopedLive("is done without where hardly any may be locked", () =>
    Effect.gen(function*() {
      const directory = yield* temporaryDirectory
      const { code, complaint, output } = yield* run([
        "prlimit",
        "--memlock=65536:65536",
        ...withoutLocks,
        ...commandLine("program", ["pooled", "io_uring", directory])
      ])
      assert.deepStrictEqual([output, code], ["right\n", 0], complaint)
    }))
})

describe("memory", () => {
  it.scopedLive("that cannot be had is a typed failure", () =>
    Effect.gen(function*() {
      const { code, complaint, output } = yield* run([
        "prlimit",
        `--as=${100 * 1024 ** 3}`,
        ...commandLine("program", ["greedy", "node:fs", ""])
      ])
      assert.match(output, /^BufferUnavailable .*67108864/, complaint)
      assert.strictEqual(code, 0, complaint)
    }))
})
