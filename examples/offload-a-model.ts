/**
 * `npm run offload-a-model -- --help`: conversations with shared prefixes against a `BlockStore`, for each capacity (in blocks) from the
 * start, on a file of its own. TRACE is a file of Mooncake's format; without one, requests are generated: see `workload`. Stop it with
 * Ctrl-C at any moment.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import type { PlatformError } from "@effect/platform/Error"
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
import * as Chunk from "effect/Chunk"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { dirname } from "node:path"
import { resolved } from "./directory.js"
import { help, parse, UsageError } from "./offload-a-model/arguments.js"
import { type Replay, replay } from "./offload-a-model/replay.js"
import { generate, mooncakePageSize, read } from "./offload-a-model/trace.js"

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

const mebibyte = 1024 * 1024

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

/** A plot has nowhere to go. */
class PlotError extends Data.TaggedError("PlotError")<{ readonly message: string }> {}

const cannotPlot = (path: string, why: string) =>
  new PlotError({ message: `The plot ${path} cannot be written: ${why}.` })

const reason = (error: PlatformError) => error.description ?? error.message

/** Finds out before the replay, not after it. */
const checkPlot = (path: string) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem
    const directory = dirname(yield* resolved(path))
    const typeOf = (path: string) => Effect.option(Effect.map(fs.stat(path), ({ type }) => type))
    const [type, parent] = [yield* typeOf(path), yield* typeOf(directory)]
    if (Option.contains(type, "Directory")) return yield* cannotPlot(path, "it is a directory")
    if (Option.isNone(parent)) return yield* cannotPlot(path, `there is no directory ${directory}`)
    if (!Option.contains(parent, "Directory")) return yield* cannotPlot(path, `${directory} is not a directory`)
    // Made rather than asked for: access allows root to make files in /proc.
    const made = Option.isSome(type)
      ? fs.access(path, { writable: true })
      : Effect.scoped(fs.makeTempDirectoryScoped({ directory }))
    yield* Effect.mapError(made, (error) => cannotPlot(path, reason(error)))
  })

const program = Effect.gen(function*() {
  const given = yield* parse(process.argv.slice(2))
  if (given === "help") return yield* Console.log(help)
  const { capacities, conversations, plot, trace } = given
  if (plot !== undefined) yield* checkPlot(plot)

  const model = trace === undefined ? generatedModel : mooncakeModel
  const all = trace === undefined ? generate(model.pageSize, conversations) : yield* read(trace)
  const requests = all.slice(0, given.requests)
  const whole = trace ?? `${conversations} generated conversations`
  const name = requests.length === all.length
    ? whole
    : `the first ${requests.length} of ${all.length} requests of ${whole}`
  const { blockPaddedBytes: blockBytes } = yield* BlockLayout.fullyContiguous({ ...model, numBlocks: 1 })
  yield* Console.log(`directory   ${yield* resolved(yield* DiskStorageConfig.directory)}`)
  yield* Console.log(`${name}; a block is ${model.pageSize} tokens, ${blockBytes / 1024} KiB`)

  const results = yield* Effect.forEach(capacities, (capacity) =>
    Effect.scoped(Effect.gen(function*() {
      const size = capacity * blockBytes
      const options = yield* DiskStorageConfig.options({ blockBytes, size })
      const storage = yield* DiskStorage.make({ ...options, size })
      const store = yield* BlockStore.make([storage], { blockBytes })
      return yield* Effect.provideService(replay(requests, model.pageSize), BlockStore.BlockStore, store)
    })).pipe(Effect.tap((result) => report(result, blockBytes))))

  if (plot !== undefined) {
    const { draw } = yield* Effect.promise(() => import("./offload-a-model/plot.js"))
    const fs = yield* FileSystem
    // Ctrl-C comes before it or after it: there is no half of a plot.
    yield* fs.writeFileString(plot, draw(results, name, blockBytes)).pipe(
      Effect.mapError((error) => cannotPlot(plot, reason(error))),
      Effect.uninterruptible
    )
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

/** 64 is EX_USAGE of sysexits.h. */
const exitCode = (cause: Cause.Cause<unknown>) =>
  Chunk.some(Cause.failures(cause), (failure) => failure instanceof UsageError) ? 64 : 1

program.pipe(
  Effect.provide(Layer.merge(Linux.layer, NodeFileSystem.layer)),
  Effect.onError(explain),
  ProcessRuntime.runMain({
    disableErrorReporting: true,
    teardown: (exit, onExit) => onExit(Exit.match(exit, { onSuccess: () => 0, onFailure: exitCode }))
  })
)
