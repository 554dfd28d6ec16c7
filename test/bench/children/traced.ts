/**
 * A process for a trace: acquires, uses and releases one storage, and says who its main thread is and what the file was called;
 * not where it was, for that would look like a call on it.
 */
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Schema from "effect/Schema"
import { fdatasyncSync } from "node:fs"
import { basename } from "node:path"
import * as AlignedBuffer from "../../../src/AlignedBuffer.js"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as Linux from "../../../src/Linux.js"
import { withoutFallocate } from "../kernels.js"
import { Report, Task } from "./protocol.js"

const { hasFallocate, onMainThread, ...options } = Schema.decodeUnknownSync(Task)(process.env["TASK"])

const program = Effect.gen(function*() {
  const storage = yield* DiskStorage.make(options)
  const block = yield* AlignedBuffer.make(storage.alignment.offset)
  yield* storage.write(0, block)
  yield* storage.read(0, block)
  yield* storage.writeBytes(5, new Uint8Array(10_000).fill(7))
  yield* storage.readBytes(5, 10_000)
  yield* storage.sync
  if (onMainThread) yield* storage.withFd((fd) => Effect.sync(() => fdatasyncSync(fd)))
  return { pid: process.pid, name: basename(storage.path), method: storage.allocation.method }
})

Effect.runPromise(
  program.pipe(
    Effect.scoped,
    Effect.provide(hasFallocate ? Linux.layer : withoutFallocate),
    Effect.provide(Logger.remove(Logger.defaultLogger))
  )
).then((report) => process.stdout.write(Schema.encodeSync(Report)(report)))
