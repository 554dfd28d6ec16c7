/** Requests against a store: what it has of a prompt is onboarded and compared, the rest is offloaded. */
import { AlignedBuffer, BlockStore, type DiskStorageError } from "effect-disk-storage"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Request } from "./trace.js"

/** Blocks that are transferred by one call, each with a buffer of its own: all the memory that a replay takes. */
const batchBlocks = 32

export class WrongBytes extends Data.TaggedError("WrongBytes")<{ readonly hash: bigint }> {
  override get message() {
    return `block ${this.hash.toString(16)}: the bytes that were onboarded are not those that were offloaded`
  }
}

/** What stands for keys and values: a different content for every hash (xorshift32). */
const fill = (block: Uint8Array, hash: bigint) => {
  const words = new Uint32Array(block.buffer, block.byteOffset, block.byteLength / 4)
  let state = Number(BigInt.asUintN(32, hash ^ (hash >> 32n))) | 1
  for (let index = 0; index < words.length; index++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    words[index] = state
  }
  // All 64 bits of it, since the state has 32.
  new DataView(block.buffer, block.byteOffset).setBigUint64(0, hash)
}

const batches = <A>(values: ReadonlyArray<A>): ReadonlyArray<ReadonlyArray<A>> =>
  Array.from(
    { length: Math.ceil(values.length / batchBlocks) },
    (_, index) => values.slice(index * batchBlocks, (index + 1) * batchBlocks)
  )

const timed = <A, E, R>(millis: Array<number>, effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const begin = yield* Clock.currentTimeNanos
    const result = yield* effect
    millis.push(Number((yield* Clock.currentTimeNanos) - begin) / 1e6)
    return result
  })

const firstFailure = <E>(failures: ReadonlyArray<{ readonly error: E }>): Effect.Effect<void, E> => {
  const [first] = failures
  return first === undefined ? Effect.void : Effect.fail(first.error)
}

export type ReplayError = WrongBytes | DiskStorageError.OnboardError | DiskStorageError.OffloadError

/** Replays requests one after the other, in the order in which they are given: without the time between them. */
export const replay = (requests: ReadonlyArray<Request>, pageSize: number) =>
  Effect.gen(function*() {
    const store = yield* BlockStore.BlockStore
    const buffers = yield* Effect.replicateEffect(AlignedBuffer.make(store.blockBytes), batchBlocks)
    const expected = new Uint8Array(store.blockBytes)
    const count = { requests: 0, promptBlocks: 0, promptTokens: 0, hitBlocks: 0, hitTokens: 0, blocks: 0, offloaded: 0 }
    const onboardMillis: Array<number> = []
    const offloadMillis: Array<number> = []

    const onboard = (hashes: ReadonlyArray<bigint>) =>
      Effect.gen(function*() {
        const destinations = buffers.slice(0, hashes.length).map((into, index) => ({ into, hash: hashes[index] ?? 0n }))
        const results = yield* timed(onboardMillis, store.onboard(destinations))
        yield* firstFailure(results.failures)
        for (const { hash, into } of destinations) {
          fill(expected, hash)
          if (Buffer.compare(into.bytes, expected) !== 0) return yield* new WrongBytes({ hash })
        }
      })

    const offload = (hashes: ReadonlyArray<bigint>) =>
      Effect.gen(function*() {
        const blocks = buffers.slice(0, hashes.length).map((data, index) => ({ data, hash: hashes[index] ?? 0n }))
        for (const { data, hash } of blocks) fill(data.bytes, hash)
        const results = yield* timed(offloadMillis, store.offload(blocks))
        yield* firstFailure(results.failures)
      })

    yield* Effect.forEach(requests, ({ hashes, promptBlocks, promptTokens }) =>
      Effect.gen(function*() {
        const prompt = hashes.slice(0, promptBlocks)
        // Cheap, and told to a router; what is to be read is leased, so that no other request evicts it meanwhile.
        const matched = yield* store.match(prompt)
        const found = yield* Effect.scoped(Effect.gen(function*() {
          const leases = yield* store.leasePrefix(prompt.slice(0, matched))
          yield* Effect.forEach(batches(leases.map(({ hash }) => hash)), onboard, { discard: true })
          return leases.length
        }))
        yield* Effect.forEach(batches(hashes.slice(found)), offload, { discard: true })
        // The first block most recently: without it those that follow are not found.
        yield* store.touch(hashes.toReversed())
        count.requests++
        count.blocks += hashes.length
        count.promptBlocks += promptBlocks
        count.promptTokens += promptTokens
        count.hitBlocks += found
        count.hitTokens += Math.min(found * pageSize, promptTokens)
      }), { discard: true })
    const stats = yield* store.stats
    return { ...count, offloaded: stats.stored, capacity: store.capacity, onboardMillis, offloadMillis, stats }
  })

export type Replay = Effect.Effect.Success<ReturnType<typeof replay>>
