/** Storages on real filesystems, over each engine: results of batches, streams, and bytes at any offset. */
import { assert } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Stream from "effect/Stream"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { Kind } from "../filesystems/mounts.js"
import { assertBytes, describeReal, freshPath } from "../filesystems/real.js"
import { engines, expected, filled, mebibyte, numbers, page, seed, whyNotEngine } from "./engines.js"

const kinds: ReadonlyArray<Kind> = ["ext4", "tmpfs", "ext4 on 4096-byte sectors"]

const make = (size: number) =>
  Effect.flatMap(freshPath, (directory) => DiskStorage.make({ size, directory, directIo: "preferred" }))

for (const kind of kinds) {
  describeReal(kind, { name: "storages" }, (it) => {
    for (const engine of engines) {
      if (whyNotEngine(engine.name) !== undefined && process.env["EDS_REQUIRE_REAL"] !== "1") continue

      it.scoped(`${engine.name}: a batch tells what became of each transfer`, () =>
        Effect.gen(function*() {
          const storage = yield* make(mebibyte)
          const good = yield* filled(2 * page, 1)
          const other = yield* filled(page, 2)
          const ragged = yield* AlignedBuffer.slice(good, 0, page + 1)
          const wrote = yield* storage.writeBatch([
            { offset: 0, buffer: good },
            { offset: mebibyte - page, buffer: good },
            { offset: 1, buffer: good },
            { offset: -page, buffer: good },
            { offset: NaN, buffer: good },
            { offset: 4 * page, buffer: ragged },
            { offset: mebibyte - page, buffer: other }
          ])
          const tags = Array.from({ length: wrote.length }, (_, index) =>
            Either.match(wrote.get(index), { onLeft: ({ _tag }) => _tag, onRight: String }))
          const wanted = ["8192", "OutOfBounds", "Misaligned", "OutOfBounds", "OutOfBounds", "Misaligned", "4096"]
          assert.deepStrictEqual(tags, wanted)
          assert.deepStrictEqual(
            wrote.failures.map(({ error, index }) =>
              `${index} ${error._tag}`
            ),
            [
              "1 OutOfBounds",
              "2 Misaligned",
              "3 OutOfBounds",
              "4 OutOfBounds",
              "5 Misaligned"
            ]
          )
          const into = yield* AlignedBuffer.make(2 * page)
          const read = yield* storage.readBatch([
            { offset: 2 ** 53, buffer: into },
            { offset: 0, buffer: into },
            { offset: 0, buffer: into }
          ])
          assert.deepStrictEqual(read.failures.map(({ error, index }) => `${index} ${error._tag}`), [
            "0 OutOfBounds",
            "2 BufferBusy"
          ])
          assertBytes(into.bytes, good.bytes, "what was read")
          assert.throws(() => read.get(3), RangeError)
          assert.strictEqual((yield* storage.readBatch([])).length, 0)
          yield* storage.close
          const late = yield* storage.readBatch([{ offset: 0, buffer: into }, { offset: -1, buffer: into }])
          assert.deepStrictEqual(late.failures.map(({ error }) => error._tag), ["StorageClosed", "OutOfBounds"])
        }).pipe(Effect.provide(engine.layer())))

      it.scoped(`${engine.name}: a stream that is written is the stream that is read`, () =>
        Effect.gen(function*() {
          const random = numbers(seed)
          const size = 5 * mebibyte + 777
          const storage = yield* make(size)
          const all = expected(size + 3, seed).subarray(0, size)
          for (
            const [offset, longest, chunk] of [[0, 300_000, 1_000_000], [1, 5000, 4096], [
              4097,
              3 * mebibyte,
              77_777
            ]] as const
          ) {
            const pieces: Array<Uint8Array> = []
            const length = size - offset - 13
            for (let at = 0; at < length;) {
              const piece = Math.min(length - at, random(longest))
              pieces.push(all.subarray(at, at + piece))
              at += piece
            }
            const before = yield* storage.readBytes(offset + length, 13)
            const written = yield* Stream.run(Stream.fromIterable(pieces), storage.sink(offset))
            assert.strictEqual(written, length)
            const read = yield* Stream.runCollect(storage.stream({ offset, length }, chunk))
            for (const { byteLength } of Chunk.toReadonlyArray(read).slice(0, -1)) assert.strictEqual(byteLength, chunk)
            assertBytes(
              Buffer.concat(Chunk.toReadonlyArray(read)),
              all.subarray(0, length),
              `seed ${seed}: at ${offset}`
            )
            assertBytes(yield* storage.readBytes(offset + length, 13), before, "what is behind it")
          }
          const tooMuch = Stream.run(Stream.make(all), storage.sink(1))
          assert.strictEqual((yield* Effect.flip(tooMuch))._tag, "OutOfBounds")
        }).pipe(Effect.provide(engine.layer())))

      it.scoped(`${engine.name}: overlapping writes at any offsets lose nothing`, () =>
        Effect.gen(function*() {
          for (let round = 0; round < 4; round++) {
            const random = numbers(seed + round)
            const storage = yield* make(3 * mebibyte + random(page))
            const writes = Array.from({ length: 60 }, (_, index) => {
              const offset = random(storage.size - 1)
              const most = index % 10 === 0 ? 2 * mebibyte : 3 * page
              return { offset, byte: index + 1, length: 1 + random(Math.min(most, storage.size - offset)) }
            })
            yield* Effect.forEach(
              writes,
              ({ byte, length, offset }) => storage.writeBytes(offset, new Uint8Array(length).fill(byte)),
              { concurrency: "unbounded" }
            )
            const bytes = yield* storage.readBytes(0, storage.size)
            // First come, first served among those that overlap: the last of them wins.
            const wanted = new Uint8Array(storage.size)
            for (const { byte, length, offset } of writes) wanted.fill(byte, offset, offset + length)
            assertBytes(bytes, wanted, `seed ${seed + round}`)
            yield* storage.close
          }
        }).pipe(Effect.provide(engine.layer())))
    }

    it.scoped("a sink takes many tiny pieces in time", () =>
      Effect.gen(function*() {
        const storage = yield* make(mebibyte)
        const pieces = Stream.fromIterable(Array.from({ length: 200_000 }, (_, index) => Uint8Array.of(index)))
        assert.strictEqual(yield* Stream.run(Stream.rechunk(pieces, 4096), storage.sink(0)), 200_000)
        const bytes = yield* storage.readBytes(0, 200_000)
        assert.isTrue(bytes.every((byte, index) => byte === index % 256))
      }))
  })
}
