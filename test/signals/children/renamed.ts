/**
 * Holds a storage in a directory that is renamed, and ends: `renamed.ts <edge> <change> <way>`. The change is made to `cache` below the
 * directory of the environment.
 */
import * as Effect from "effect/Effect"
import { mkdirSync, readdirSync, readlinkSync, renameSync, writeFileSync } from "node:fs"
import { basename, dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as Linux from "../../../src/Linux.js"
import { choose, edges } from "./edges.js"
import { reportExit, reportNow } from "./report.js"

const parent = process.env["DYN_KVBM_DISK_CACHE_DIR"] ?? ""
const directory = join(parent, "cache")

const changes: { readonly [name: string]: (path: string) => void } = {
  directory: () => renameSync(directory, join(parent, "moved")),
  /** The name is another file's. */
  file: (path) => {
    renameSync(path, join(parent, "moved-file"))
    writeFileSync(path, "somebody else's")
  }
}

/** Another storage was there before, and its descriptors are free again. */
const held = (change: (path: string) => void, then: () => void) =>
  Effect.gen(function*() {
    const options = { size: 1024 * 1024, directory, directIo: "preferred" } as const
    yield* Effect.scoped(DiskStorage.make(options))
    const storage = yield* DiskStorage.make(options)
    const second = yield* DiskStorage.make(options)
    yield* second.close
    change(storage.path)
    then()
    yield* Effect.never
  }).pipe(Effect.scoped, Effect.provide(Linux.layer))

const fail = () => {
  throw new Error("not foreseen")
}

/** What is open below the directory, by this process. */
const open = () =>
  readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`)
      return target.startsWith(parent) ? [basename(dirname(target))] : []
    } catch {
      return []
    }
  })

const terminate = async (change: string) => {
  const worker = new Worker(fileURLToPath(import.meta.url), { workerData: change })
  await new Promise((resolve) => worker.once("message", resolve))
  await worker.terminate()
  reportNow(`open ${JSON.stringify(open())}`)
}

if (isMainThread) {
  mkdirSync(directory)
  const ways = {
    exit: () => setTimeout(() => process.exit(3)),
    throw: () => setTimeout(fail),
    reject: () => void Promise.resolve().then(fail),
    wait: () => reportNow("held")
  }
  reportExit()
  if (process.argv[4] === "terminate") await terminate(process.argv[3] ?? "")
  else choose(edges, 0)(held(choose(changes, 1), choose(ways, 2)))
} else {
  Effect.runFork(held(changes[String(workerData)] ?? fail, () => parentPort?.postMessage("held", [])))
}
