/** Terminates a thread whose closing of descriptors waits for a busy pool. Prints what the thread has left in the process. */
import * as Effect from "effect/Effect"
import { pbkdf2 } from "node:crypto"
import { readdirSync, readlinkSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { isMainThread, parentPort, Worker } from "node:worker_threads"
import * as Linux from "../../../src/Linux.js"
import { Syscalls } from "../../../src/Syscalls.js"
import { reportNow } from "./report.js"

const directory = process.env["DYN_KVBM_DISK_CACHE_DIR"] ?? ""

/** More than enough work for every thread of libuv's pool; what is asked for after it waits. */
const busy = (times: number) => {
  for (let time = 0; time < times; time++) pbkdf2("", "", 100_000, 64, "sha512", () => {})
}

const closing = Effect.gen(function*() {
  const syscalls = yield* Syscalls
  const made = yield* Effect.replicateEffect(syscalls.mkostemp(join(directory, "closing-"), 0), 20)
  yield* Effect.forEach(made, ({ path }) => syscalls.unlink(path))
  busy(32)
  yield* Effect.forEach(made, ({ fd }) => Effect.forkDaemon(syscalls.close(fd)))
  yield* Effect.yieldNow()
  parentPort?.postMessage("begun", [])
})

const main = async () => {
  const worker = new Worker(fileURLToPath(import.meta.url))
  await new Promise((resolve) => worker.once("message", resolve))
  await worker.terminate()
  const left = readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)].filter((target) => target.startsWith(directory))
    } catch {
      // The descriptor of this very listing.
      return []
    }
  })
  reportNow(`left ${JSON.stringify(left)}`)
}

if (isMainThread) await main()
else Effect.runFork(Effect.provide(closing, Linux.layer))
