/** How fast direct I/O is in a directory, and what first writes cost against rewrites. */
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as AlignedBuffer from "../../AlignedBuffer.js"
import type { Measurement } from "../../DirectIo.js"
import * as DiskStorage from "../../DiskStorage.js"
import type { AcquireError, TransferError } from "../../DiskStorageError.js"
import { IoEngine } from "../../IoEngine.js"
import type { Syscalls } from "../../Syscalls.js"

const blockSize = 128 * 1024
const depth = 8
const rounds = 5
/** Of a round's file: every block is written twice and read once. */
export const measuredBytes = 64 * 1024 * 1024

interface Round {
  readonly firstWrites: number
  readonly rewrites: number
  readonly reads: number
}

const median = (values: ReadonlyArray<number>): number => {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? 0
}

/** A file of its own each round, so that each has first writes, with the other passes right behind them. */
const round = (directory: string): Effect.Effect<Round, AcquireError | TransferError, Syscalls | IoEngine> =>
  Effect.scoped(Effect.gen(function*() {
    const storage = yield* DiskStorage.make({
      size: measuredBytes,
      directory,
      directIo: "preferred",
      earlyUnlink: true
    })
    const buffers = yield* Effect.replicateEffect(AlignedBuffer.make(blockSize), depth)
    const pass = (
      operation: (offset: number, buffer: AlignedBuffer.AlignedBuffer) => Effect.Effect<void, TransferError>
    ) =>
      Effect.gen(function*() {
        const blocks = [...(yield* Random.shuffle(Arr.range(0, measuredBytes / blockSize - 1)))]
        const begun = yield* Clock.currentTimeNanos
        yield* Effect.forEach(buffers, (buffer) =>
          Effect.whileLoop({
            while: () => blocks.length > 0,
            body: () => operation((blocks.pop() ?? 0) * blockSize, buffer),
            step: () => {}
          }), { concurrency: "unbounded", discard: true })
        const seconds = Number((yield* Clock.currentTimeNanos) - begun) / 1e9
        return Math.round(measuredBytes / seconds)
      })
    const firstWrites = yield* pass(storage.write)
    const rewrites = yield* pass(storage.write)
    return { firstWrites, rewrites, reads: yield* pass(storage.read) }
  }))

export const measure = (
  directory: string
): Effect.Effect<Measurement, AcquireError | TransferError, Syscalls | IoEngine> =>
  Effect.gen(function*() {
    const engine = yield* IoEngine
    const done = yield* Effect.replicateEffect(round(directory), rounds)
    return {
      blockSize,
      depth,
      rounds,
      engine: engine.name,
      reads: median(done.map(({ reads }) => reads)),
      firstWrites: median(done.map(({ firstWrites }) => firstWrites)),
      rewrites: median(done.map(({ rewrites }) => rewrites)),
      firstWriteRatio: median(done.map(({ firstWrites, rewrites }) => rewrites / firstWrites))
    }
  })
