/** Holds a storage, and for each line that it reads compares all of it, writes it anew, and says so with the path and the inode. */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { statSync } from "node:fs"
import { createInterface } from "node:readline"
import * as AlignedBuffer from "../../../src/AlignedBuffer.js"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as DiskStorageConfig from "../../../src/DiskStorageConfig.js"
import * as Linux from "../../../src/Linux.js"
import * as ProcessRuntime from "../../../src/ProcessRuntime.js"
import { report } from "./report.js"

const program = Effect.gen(function*() {
  const storage = yield* Effect.flatMap(DiskStorageConfig.options(), DiskStorage.make)
  const buffer = yield* AlignedBuffer.make(1024 * 1024)
  const offsets = Array.from(
    { length: Math.floor(storage.size / buffer.byteLength) },
    (_, index) => index * buffer.byteLength
  )
  const word = (offset: number, generation: number) => Math.imul(offset + process.pid, 0x9e37_79b1) ^ generation
  const words = () => new Int32Array(buffer.bytes.buffer, buffer.bytes.byteOffset, buffer.byteLength >> 2)
  const write = (generation: number) =>
    Effect.forEach(offsets, (offset) => {
      words().fill(word(offset, generation))
      return storage.write(offset, buffer)
    })
  const compare = (generation: number) =>
    Effect.forEach(
      offsets,
      (offset) =>
        Effect.flatMap(storage.read(offset, buffer), () =>
          words().every((found) => found === word(offset, generation))
            ? Effect.void
            : Effect.dieMessage(`other bytes at ${offset}`))
    )
  const say = (what: string) => Effect.suspend(() => report(`${what} ${storage.path} ${statSync(storage.path).ino}`))
  yield* write(0)
  yield* say("held")
  const lines = Stream.fromAsyncIterable(createInterface({ input: process.stdin }), String)
  yield* Stream.runForEach(Stream.zipWithIndex(lines), ([, generation]) =>
    compare(generation).pipe(
      Effect.zipRight(write(generation + 1)),
      Effect.zipRight(say(`verified ${generation + 1}`))
    ))
  yield* Effect.never
})

program.pipe(Effect.scoped, Effect.provide(Linux.layer), ProcessRuntime.runMain)
