/**
 * `npm run offload-a-model -- [TRACE] [--plot FILE] [--capacities N,N,…] [--requests N] [--conversations N]`: conversations with
 * shared prefixes against a `BlockStore`, for each capacity (in blocks) from the start, on a file of its own. TRACE is a file of
 * Mooncake's format; without one, requests are generated: see `workload`. Stop it with Ctrl-C at any moment.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { FileSystem } from "@effect/platform/FileSystem"
import {
  BlockLayout,
  BlockStore,
  DiskStorage,
  DiskStorageConfig,
  DiskStorageError,
  Linux,
  ProcessRuntime
} from "effect-disk-storage"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { parseArgs } from "node:util"
import { type Replay, replay } from "./offload-a-model/replay.js"
import { generate, mooncakePageSize, read, TraceError, workload } from "./offload-a-model/trace.js"

/** 8 layers with one KV head of 64 in fp16, 64 tokens a block: 128 KiB. */
const generatedModel = { numLayers: 8, outerDim: 2, pageSize: 64, innerDim: 64, dtypeWidthBytes: 2 } as const
/** 8 layers with a latent vector of 32 in fp8, 512 tokens a block: scaled down to 128 KiB too. */
const mooncakeModel = {
  numLayers: 8,
  outerDim: 1,
  pageSize: mooncakePageSize,
  innerDim: 32,
  dtypeWidthBytes: 1
} as const

const defaultCapacities = "48,96,192,384"
const mebibyte = 1024 * 1024

const Positive = Schema.NumberFromString.pipe(Schema.int(), Schema.positive())
const Arguments = Schema.Struct({
  capacities: Schema.compose(Schema.split(","), Schema.NonEmptyArray(Positive)),
  requests: Positive,
  conversations: Positive,
  plot: Schema.optional(Schema.NonEmptyString)
})

const readArguments = Effect.gen(function*() {
  const { positionals, values } = yield* Effect.try({
    try: () =>
      parseArgs({
        allowPositionals: true,
        options: {
          plot: { type: "string" },
          capacities: { type: "string", default: defaultCapacities },
          requests: { type: "string", default: "1000" },
          conversations: { type: "string", default: String(workload.conversations) }
        }
      }),
    catch: (error) => new TraceError({ message: String(error) })
  })
  const options = yield* Schema.decodeUnknown(Arguments)(values)
  return { ...options, path: positionals[0] }
})

const percent = (part: number, whole: number) => `${(100 * part / Math.max(1, whole)).toFixed(1)} %`

const percentiles = (millis: ReadonlyArray<number>) => {
  const sorted = millis.toSorted((one, other) => one - other)
  const at = (share: number) => (sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0).toFixed(2)
  return `p50 ${at(0.5)}, p90 ${at(0.9)}, p99 ${at(0.99)}, max ${at(1)} ms of ${sorted.length} batches`
}

const report = (result: Replay, blockBytes: number) => {
  const { stats } = result
  const volume = (blocks: number) => `${blocks} blocks, ${(blocks * blockBytes / mebibyte).toFixed(1)} MiB`
  return Console.log([
    `\ncapacity    ${volume(result.capacity)}`,
    `  requests  ${result.requests}, of ${result.blocks} blocks, ${result.promptBlocks} of them in prompts`,
    `  hit rate  ${percent(result.hitBlocks, result.promptBlocks)} of the prompts' blocks, ` +
    `${percent(result.hitTokens, result.promptTokens)} of their tokens`,
    `  onboard   ${volume(result.hitBlocks)}; ${percentiles(result.onboardMillis)}; every byte is the one offloaded`,
    `  offload   ${volume(result.offloaded)}; ${percentiles(result.offloadMillis)}`,
    `  store     ${stats.blocks} blocks; stored ${stats.stored}, duplicates ${stats.duplicates}, hits ${stats.hits}, ` +
    `misses ${stats.misses}, evicted ${stats.evicted}, corrupted ${stats.corrupted}, failed ${stats.failed}`
  ].join("\n"))
}

const program = Effect.gen(function*() {
  const { capacities, conversations, path, plot, requests } = yield* readArguments
  const model = path === undefined ? generatedModel : mooncakeModel
  const generated = path === undefined ? generate(model.pageSize, conversations) : []
  const trace = Stream.take(path === undefined ? Stream.fromIterable(generated) : read(path), requests)
  const name = path ?? `${conversations} generated conversations`
  const { blockPaddedBytes: blockBytes } = yield* BlockLayout.fullyContiguous({ ...model, numBlocks: 1 })
  yield* Console.log(`${name}; a block is ${model.pageSize} tokens, ${blockBytes / 1024} KiB`)

  const results = yield* Effect.forEach(capacities, (capacity) =>
    Effect.scoped(Effect.gen(function*() {
      const size = capacity * blockBytes
      const options = yield* DiskStorageConfig.options({ blockBytes, size })
      const storage = yield* DiskStorage.make({ ...options, size })
      const store = yield* BlockStore.make([storage], { blockBytes })
      return yield* Effect.provideService(replay(trace, model.pageSize), BlockStore.BlockStore, store)
    })).pipe(Effect.tap((result) => report(result, blockBytes))))

  if (plot !== undefined) {
    const { draw } = yield* Effect.promise(() => import("./offload-a-model/plot.js"))
    const fs = yield* FileSystem
    // Ctrl-C comes before it or after it: there is no half of a plot.
    yield* Effect.uninterruptible(fs.writeFileString(plot, draw(results, name, blockBytes)))
    yield* Console.log(`\nhit rate by capacity: ${plot}`)
  }
})

/** What a person needs to know of a failure: its message. A defect keeps its trace. */
const explain = (cause: Cause.Cause<unknown>) => {
  if (Cause.isInterruptedOnly(cause)) return Console.error("\nstopped, and released")
  const failures = Array.from(
    Cause.failures(cause),
    (failure) =>
      DiskStorageError.isDiskStorageError(failure) || failure instanceof Error ? failure.message : String(failure)
  )
  return Console.error(failures.join("\n") || Cause.pretty(cause))
}

program.pipe(
  Effect.provide(Layer.merge(Linux.layer, NodeFileSystem.layer)),
  Effect.onError(explain),
  ProcessRuntime.runMain({ disableErrorReporting: true })
)
