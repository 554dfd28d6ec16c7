/** Terminates threads that hold a storage: `terminated.ts <rounds>`, as JSON. Prints what each has left in the process, and goes on. */
import * as Effect from "effect/Effect"
import { mkdirSync, readdirSync, readlinkSync, rmdirSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"
import type { Moment } from "./life.js"
import { life } from "./life.js"
import { reportNow } from "./report.js"

interface Round {
  readonly moment: Moment
  readonly millis: number
}

const parent = process.env["DYN_KVBM_DISK_CACHE_DIR"] ?? ""

/** Of all descriptors what is behind them. */
const open = () =>
  readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      // The descriptor of this very listing.
      return []
    }
  })

/** Node's own event loop may have some. */
const rings = () => open().filter((target) => target.includes("io_uring"))

const play = async ({ millis, moment }: Round, index: number) => {
  const directory = join(parent, `${index}`)
  mkdirSync(directory)
  const ringsBefore = rings().length
  const worker = new Worker(fileURLToPath(import.meta.url), {
    workerData: moment,
    env: { ...process.env, DYN_KVBM_DISK_CACHE_DIR: directory }
  })
  await new Promise((resolve) => worker.once("message", resolve))
  await new Promise((resolve) => setTimeout(resolve, millis))
  await worker.terminate()
  const descriptors = open().filter((target) => target.startsWith(directory))
  reportNow(`left ${JSON.stringify([...readdirSync(directory), ...descriptors, ...rings().slice(ringsBefore)])}`)
  rmdirSync(directory)
}

if (isMainThread) {
  const rounds: ReadonlyArray<Round> = JSON.parse(process.argv[2] ?? "[]")
  for (const [index, round] of rounds.entries()) await play(round, index)
  reportNow("through")
  setInterval(() => {}, 1000)
} else {
  Effect.runFork(life(workerData, () => parentPort?.postMessage("begun", [])))
}
