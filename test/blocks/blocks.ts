/** Blocks whose bytes tell the hash and the version that they belong to. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import type * as BlockStore from "../../src/BlockStore.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"

export const page = AlignedBuffer.pageSize

const words = (bytes: Uint8Array): Int32Array => new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 2)

const word = (hash: number, version: number, index: number): number =>
  Math.imul(Math.imul(hash + 1, 0x9e37_79b1) ^ Math.imul(version + 1, 0x85eb_ca6b) ^ index, 0xc2b2_ae35)

export const fill = (bytes: Uint8Array, hash: number, version: number): void => {
  const block = words(bytes)
  for (let index = 0; index < block.length; index++) block[index] = word(hash, version, index)
  block[0] = version
}

/** The version that `bytes` are of; fails where not all of them are of that one, or are of another hash. */
export const versionOf = (bytes: Uint8Array, hash: number, what: string): number => {
  const block = words(bytes)
  const version = block[0] ?? 0
  for (let index = 1; index < block.length; index++) {
    if (block[index] !== word(hash, version, index)) {
      assert.fail(`${what}: word ${index} is not of hash ${hash}, version ${version}`)
    }
  }
  return version
}

export const blank = (byteLength: number): Effect.Effect<AlignedBuffer.AlignedBuffer> =>
  Effect.orDie(AlignedBuffer.make(byteLength))

export const block = (
  hash: number,
  version = 0,
  priority = 0
): Effect.Effect<BlockStore.Block> =>
  Effect.map(blank(page), (data) => {
    fill(data.bytes, hash, version)
    return { hash: BigInt(hash), data, priority }
  })

export const silent = Logger.remove(Logger.defaultLogger)

export const simulated = (options: SimulatedSyscalls.EngineOptions = {}) =>
  Layer.merge(
    Layer.provideMerge(SimulatedSyscalls.layerEngine(options), SimulatedSyscalls.layer()),
    silent
  )

export const storage = (blocks: number, options: Partial<DiskStorage.DiskStorageOptions> = {}) =>
  DiskStorage.make({ size: blocks * page, directIo: "preferred", ...options })

/** Every slot is accounted for, and nobody uses any. */
export const assertSettled = (store: BlockStore.BlockStore): Effect.Effect<void> =>
  Effect.map(Effect.zip(store.stats, store.hashes), ([stats, hashes]) => {
    let blocks = 0
    for (const one of stats.storages) {
      assert.strictEqual(one.blocks + one.free + one.retired, one.capacity, JSON.stringify(stats))
      blocks += one.blocks
    }
    assert.strictEqual(blocks, stats.blocks)
    assert.strictEqual(stats.pinned, 0)
    assert.strictEqual(stats.inFlight, 0)
    assert.strictEqual(hashes.length, stats.blocks)
    assert.strictEqual(new Set(hashes).size, hashes.length)
  })
