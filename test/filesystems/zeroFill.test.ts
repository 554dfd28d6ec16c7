/** Zero-fill on filesystems that have no fallocate, and prewriting on those that have. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { statSync } from "node:fs"
import * as DiskStorage from "../../src/DiskStorage.js"
import { command } from "./mounts.js"
import { assertBytes, describeReal, freshPath, pattern } from "./real.js"

const zeroFilled = ["ext2", "ext3 without extents", "ext2 on 4096-byte sectors"] as const
const zeroFilledSizes = [1234, 4096, 4097, 3 * 4096 + 567, 10 * 1024 * 1024]

for (const kind of zeroFilled) {
  describeReal(kind, { name: "zero-fill" }, (it) => {
    for (const directIo of ["required", "disabled"] as const) {
      for (const bytes of zeroFilledSizes) {
        it.scoped(`${bytes} bytes, direct I/O ${directIo}: all blocks taken, all zero, progress told`, () =>
          Effect.gen(function*() {
            const directory = yield* freshPath
            const events: Array<DiskStorage.Progress> = []
            const storage = yield* DiskStorage.make({ size: bytes, directory, directIo, fallback: "zero-fill" }).pipe(
              Effect.provideService(DiskStorage.ProgressListener, (event) => Effect.sync(() => events.push(event)))
            )
            assert.strictEqual(storage.allocation.method, "zero-fill")
            assertBytes(yield* storage.readBytes(0, bytes), new Uint8Array(bytes), "a zero-filled storage")
            const { blocks, size: length } = statSync(storage.path)
            assert.strictEqual(length, Math.ceil(bytes / 4096) * 4096)
            assert.isAtLeast(blocks * 512, length)

            assert.isNotEmpty(events)
            assert.isTrue(events.every((event, index) => event.done > (events[index - 1]?.done ?? 0)))
            assert.isTrue(events.every((event) => event.total === length && event.path === storage.path))
            assert.strictEqual(events.at(-1)?.done, length)
          }))
      }
    }

    it.scoped("old data of the disk does not shine through", () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const options = { size: 32 * 1024 * 1024, directory, fallback: "zero-fill" } as const
        yield* Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make(options)
          yield* storage.writeBytes(0, new Uint8Array(options.size).fill(0xaa))
          yield* storage.sync
        }))
        const storage = yield* DiskStorage.make(options)
        assertBytes(yield* storage.readBytes(0, options.size), new Uint8Array(options.size), "the second storage")
      }))
  })
}

/** What FIEMAP says of the file's extents. */
const extents = (path: string) => command("filefrag", "-v", path)

for (const kind of ["ext4", "xfs"] as const) {
  describeReal(kind, { name: "prewrite", tools: ["filefrag"] }, (it) => {
    it.scoped("every extent is a written one, all zero, and takes data", () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const size = 20 * 1024 * 1024 + 5
        const plain = yield* DiskStorage.make({ size, directory })
        assert.isFalse(plain.allocation.written)
        assert.include(yield* extents(plain.path), "unwritten")

        const storage = yield* DiskStorage.make({ size, directory, prewrite: true })
        assert.isTrue(storage.allocation.written)
        const written = yield* extents(storage.path)
        assert.include(written, "extent")
        assert.notInclude(written, "unwritten")
        assertBytes(yield* storage.readBytes(0, size), new Uint8Array(size), "a prewritten storage")
        const bytes = pattern(1_000_000, 3)
        yield* storage.writeBytes(12_345, bytes)
        assertBytes(yield* storage.readBytes(12_345, bytes.length), bytes, "what was written over it")
      }))
  })
}
