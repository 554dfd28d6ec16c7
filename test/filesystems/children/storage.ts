/** A process that acquires, writes, keeps and closes one storage, a step for each line that it reads. */
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Schema from "effect/Schema"
import { openSync, readdirSync, readlinkSync } from "node:fs"
import { createInterface } from "node:readline"
import * as DiskStorage from "../../../src/DiskStorage.js"
import type { BytesError, KeepFailed, ReleaseFailed } from "../../../src/DiskStorageError.js"
import * as Linux from "../../../src/Linux.js"
import { Reply, Task } from "./protocol.js"

const { takeDescriptors = false, user, ...options } = Schema.decodeUnknownSync(Task)(process.argv[2])

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()

const nextLine = Effect.promise(() => lines.next())

const say = (reply: Reply) => Effect.sync(() => process.stdout.write(`${Schema.encodeSync(Reply)(reply)}\n`))

/** Looked at while descriptors are left: the listing needs one. */
const openBelow = () =>
  readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`)
      return target.startsWith(`${options.directory}/`) ? [target] : []
    } catch {
      return []
    }
  })

const takeAllDescriptors = () => {
  try {
    for (;;) openSync("/dev/null", "r")
  } catch {
    // None is left.
  }
}

const acquired = (storage: DiskStorage.DiskStorage) =>
  Effect.gen(function*() {
    yield* say({ _tag: "Done", path: storage.path, openBelow: openBelow() })
    for (let line = yield* nextLine; line.done !== true; line = yield* nextLine) {
      const step: Effect.Effect<void, BytesError | KeepFailed | ReleaseFailed> = line.value === "close"
        ? storage.close
        : line.value === "keep"
        ? storage.keep
        : storage.writeBytes(0, new Uint8Array(8192).fill(7))
      yield* Effect.matchEffect(step, {
        onFailure: (error) => say({ _tag: "Failed", error, openBelow: openBelow() }),
        onSuccess: () => say({ _tag: "Done", path: storage.path, openBelow: openBelow() })
      })
    }
  })

const program = Effect.gen(function*() {
  if (user !== undefined) {
    process.setgroups?.([])
    process.setgid?.(user)
    process.setuid?.(user)
  }
  yield* say({ _tag: "Ready" })
  yield* nextLine
  if (takeDescriptors) takeAllDescriptors()
  yield* Effect.matchEffect(DiskStorage.make(options), {
    onFailure: (error) => say({ _tag: "Failed", error, openBelow: takeDescriptors ? [] : openBelow() }),
    onSuccess: acquired
  })
})

Effect.runPromise(
  program.pipe(Effect.scoped, Effect.provide(Linux.layer), Effect.provide(Logger.remove(Logger.defaultLogger)))
).then(() => process.exit(0), (error: unknown) => {
  process.stderr.write(`${String(error)}\n`)
  process.exit(1)
})
