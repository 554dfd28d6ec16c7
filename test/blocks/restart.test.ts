/** The index over a restart: what was kept is found again, with the right bytes; anything doubtful is an empty store. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Logger from "effect/Logger"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as BlockStore from "../../src/BlockStore.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as restart from "../../src/internal/blockRestart.js"
import * as Linux from "../../src/Linux.js"
import { layer } from "../support/simulation.js"

const blockBytes = 4096
const size = 40 * blockBytes
const keepAt = "/tmp/kept.blocks"

const options = { blockBytes, checksum: "xxh128" } as const

/** What a block of that hash holds. */
const fill = (buffer: AlignedBuffer.AlignedBuffer, hash: bigint) => {
  const words = new DataView(buffer.bytes.buffer, buffer.bytes.byteOffset, buffer.byteLength)
  for (let at = 0; at < buffer.byteLength; at += 8) words.setBigUint64(at, hash * 1_000_003n + BigInt(at), true)
}

/** A life of a store on a kept file: `use` runs between start and clean end. */
const life = <A, E>(
  use: (store: BlockStore.BlockStore) => Effect.Effect<A, E>,
  more: { readonly paths?: readonly [string, ...Array<string>]; readonly options?: BlockStore.BlockStoreOptions } = {}
) =>
  Effect.scoped(Effect.gen(function*() {
    const [path, ...others] = more.paths ?? [keepAt]
    const first = yield* DiskStorage.make({ size, keepAt: path })
    const rest = yield* Effect.forEach(others, (keepAt) => DiskStorage.make({ size, keepAt }))
    const store = yield* BlockStore.make([first, ...rest], more.options ?? options)
    return yield* use(store)
  }))

const offload = (store: BlockStore.BlockStore, hashes: ReadonlyArray<bigint>) =>
  Effect.gen(function*() {
    const blocks = yield* Effect.forEach(hashes, (hash) =>
      Effect.map(AlignedBuffer.make(blockBytes), (data) => {
        fill(data, hash)
        return { hash, data }
      }))
    const results = yield* store.offload(blocks)
    assert.deepStrictEqual(results.failures, [])
  })

/** How many of the hashes are there, each with its own bytes. */
const intact = (store: BlockStore.BlockStore, hashes: ReadonlyArray<bigint>) =>
  Effect.gen(function*() {
    const into = yield* AlignedBuffer.make(blockBytes)
    const expected = yield* AlignedBuffer.make(blockBytes)
    let count = 0
    for (const hash of hashes) {
      const [result] = [(yield* store.onboard([{ hash, into }])).get(0)]
      if (Either.isLeft(result)) {
        assert.strictEqual(result.left._tag, "BlockNotFound")
        continue
      }
      fill(expected, hash)
      assert.isTrue(Buffer.from(into.bytes).equals(expected.bytes), `bytes of ${hash}`)
      count += 1
    }
    return count
  })

const hashes = Array.from({ length: 10 }, (_, index) => BigInt(index * 7 + 1))
const quiet = Logger.remove(Logger.defaultLogger)

describe("a block store that is kept", () => {
  it.effect("finds its blocks again, in the order in which they were used, once per clean end", () =>
    Effect.gen(function*() {
      const capacity = yield* life((store) => Effect.as(offload(store, hashes), store.capacity))
      yield* life((store) =>
        Effect.gen(function*() {
          assert.strictEqual(yield* intact(store, hashes), hashes.length)
          yield* store.touch([hashes[0] ?? 0n])
          yield* store.remove([hashes[1] ?? 0n])
        })
      )
      yield* life((store) =>
        Effect.gen(function*() {
          assert.isFalse(yield* store.has(hashes[1] ?? 0n))
          // The gaps are used first, then the least recently used go: of the ten, those that were not touched.
          const others = Array.from({ length: capacity - 9 + 3 }, (_, index) => BigInt(1000 + index))
          for (const other of others) yield* offload(store, [other])
          assert.strictEqual(yield* store.match([hashes[0] ?? 0n]), 1)
          const left = yield* Effect.filter(hashes, store.has)
          assert.deepStrictEqual(left, [...hashes.slice(0, 1), ...hashes.slice(5)])
          assert.strictEqual(yield* intact(store, [...hashes, ...others]), capacity)
        })
      )
    }).pipe(Effect.provide(layer())))

  for (
    const [what, changed] of [
      ["another size of blocks", { ...options, blockBytes: 8192 }],
      ["another checksum", { ...options, checksum: "crc32" }]
    ] as const
  ) {
    it.effect(`starts empty with ${what}`, () =>
      Effect.gen(function*() {
        yield* life((store) => offload(store, hashes))
        yield* life((store) => Effect.map(store.stats, ({ blocks }) => assert.strictEqual(blocks, 0)), {
          options: changed
        })
      }).pipe(Effect.provide(layer()), Effect.provide(quiet)))
  }

  it.effect("starts empty where nobody ended it cleanly, and where its index was written over", () =>
    Effect.gen(function*() {
      yield* life((store) => offload(store, hashes))
      // A life of the storage without a store: the index stays, and one byte of it changes.
      const index = restart.slotsOf(size, blockBytes) * blockBytes
      yield* Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size, keepAt })
        assert.isTrue(storage.keptAt?.takenUp)
        const [byte = 0] = yield* storage.readBytes(index + 4096 + 5, 1)
        yield* storage.writeBytes(index + 4096 + 5, Uint8Array.of(byte ^ 1))
        yield* storage.keep
      }))
      yield* life((store) => Effect.map(store.stats, ({ blocks }) => assert.strictEqual(blocks, 0)))
      // Released without being kept.
      yield* life((store) => offload(store, hashes))
      yield* Effect.scoped(DiskStorage.make({ size, keepAt }))
      yield* life((store) => Effect.map(store.stats, ({ blocks }) => assert.strictEqual(blocks, 0)))
    }).pipe(Effect.provide(layer()), Effect.provide(quiet)))

  it.effect("takes up several storages that ended together, one of them alone, and not those of different ends", () =>
    Effect.gen(function*() {
      const a = "/tmp/a.blocks"
      const b = "/tmp/b.blocks"
      const many = Array.from({ length: 30 }, (_, index) => BigInt(index))
      yield* life((store) => offload(store, many), { paths: [a, b] })
      yield* life((store) => Effect.map(intact(store, many), (found) => assert.strictEqual(found, 30)), {
        paths: [a, b]
      })
      const half = yield* life((store) => intact(store, many), { paths: [a] })
      assert.isTrue(half > 0 && half < 30, `${half}`)
      yield* life((store) => Effect.map(store.stats, ({ blocks }) => assert.strictEqual(blocks, 0)), { paths: [a, b] })
    }).pipe(Effect.provide(layer()), Effect.provide(quiet)))

  it.live("is taken up on a real filesystem", () =>
    Effect.gen(function*() {
      const path = `/tmp/effect-disk-storage-restart-${process.pid}`
      yield* life((store) => offload(store, hashes), { paths: [path] })
      yield* Effect.ensuring(
        life((store) => Effect.map(intact(store, hashes), (found) => assert.strictEqual(found, hashes.length)), {
          paths: [path]
        }),
        // Taken up, and not kept again.
        Effect.ignore(Effect.scoped(DiskStorage.make({ size, keepAt: path })))
      )
    }).pipe(Effect.provide(Linux.layer)))
})

describe("an index", () => {
  const geometry = { blockBytes, slots: 30, checksum: "xxh128", content: "a model" } as const
  const words = Int32Array.of(1, -2, 3, -4)
  const encoder = restart.encoder(geometry, 77n, 3)
  for (const place of [4, 2, 9]) encoder.put(BigInt(place) << 60n, place, place, words)

  it.effect("comes back as it was", () =>
    Effect.gen(function*() {
      const found = yield* restart.decode(encoder.bytes, geometry, yield* restart.markOf(encoder.bytes))
      assert.strictEqual(found._tag, "Index")
      if (found._tag !== "Index") return
      assert.strictEqual(found.ended, 77n)
      const blocks: Array<unknown> = []
      const put: restart.Put = (hash, place, priority, words) => blocks.push([hash, place, priority, [...words]])
      found.visit(0, 1, put)
      found.visit(1, found.count, put)
      assert.deepStrictEqual(
        blocks,
        [4, 2, 9].map((place) => [BigInt.asUintN(64, BigInt(place) << 60n), place, place, [...words]])
      )
    }))

  it.effect("is of no use with any byte changed or missing", () =>
    Effect.gen(function*() {
      const index = encoder.bytes
      const mark = yield* restart.markOf(index)
      const tagOf = (bytes: Uint8Array, of: restart.Geometry = geometry, as: Uint8Array = mark) =>
        Effect.map(restart.decode(bytes, of, as), ({ _tag }) => _tag)
      assert.strictEqual(yield* tagOf(index), "Index")
      for (let at = 0; at < index.byteLength; at++) {
        const torn = index.slice()
        torn[at] = (torn[at] ?? 0) ^ 0x10
        assert.strictEqual(yield* tagOf(torn), "Unusable", `byte ${at}`)
        assert.strictEqual(yield* tagOf(index.subarray(0, at)), "Unusable", `cut at ${at}`)
      }
      assert.strictEqual(yield* tagOf(index, { ...geometry, content: "another" }), "Unusable")
      assert.strictEqual(yield* tagOf(index, geometry, new Uint8Array(32)), "Unusable", "kept without a mark")
    }))

  it("fits behind as many blocks as there is room for, and no more would", () => {
    for (let size = 4096; size < 4096 * 600; size += 4096) {
      const slots = restart.slotsOf(size, 4096)
      assert.isTrue(slots * 4096 + restart.areaBytes(slots) <= size || slots === 0)
      assert.isTrue((slots + 1) * 4096 + restart.areaBytes(slots + 1) > size)
    }
  })
})
