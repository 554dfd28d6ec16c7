/** The same work on a store of this process, without HTTP: what the disk, the checksum and one thread can do. */
import { AlignedBuffer, BlockStore } from "effect-disk-storage"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { randomFillSync } from "node:crypto"

/** As many buffers as the service has: each offloads a block, onboards it, and goes on with the next. */
export const make = (buffers: number) =>
  Effect.gen(function*() {
    const store = yield* BlockStore.BlockStore
    const memory = yield* Effect.replicateEffect(AlignedBuffer.make(store.blockBytes), buffers)
    memory.forEach(({ bytes }) => randomFillSync(bytes))
    let hash = 1n

    return ({ blocks, seconds }: { readonly seconds: number; readonly blocks: number }) =>
      Effect.gen(function*() {
        const begun = performance.now()
        let [left, puts, gets] = [blocks, 0, 0]
        const one = (buffer: AlignedBuffer.AlignedBuffer) =>
          Effect.gen(function*() {
            while (left-- > 0 && performance.now() < begun + seconds * 1000) {
              const mine = hash++
              const put = (yield* store.offload([{ hash: mine, data: buffer }])).get(0)
              if (Either.isLeft(put)) return yield* put.left
              puts++
              const got = (yield* store.onboard([{ hash: mine, into: buffer }])).get(0)
              if (Either.isRight(got)) gets++
              else if (got.left._tag !== "BlockNotFound") return yield* got.left
            }
          })
        yield* Effect.forEach(memory, one, { concurrency: "unbounded", discard: true })
        return { puts, gets, seconds: (performance.now() - begun) / 1000 }
      })
  })
