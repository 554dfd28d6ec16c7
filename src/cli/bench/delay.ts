/** The part `delay`: how long reads in flight hold up the event loop, and whether many operations leave something behind. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { PCGRandom } from "effect/Utils"
import { freemem } from "node:os"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import * as AlignedBuffer from "../../AlignedBuffer.js"
import * as DiskStorage from "../../DiskStorage.js"
import { IoEngine } from "../../IoEngine.js"
import type { Own } from "./engines.js"
import { buffersFor, contestantsOf } from "./engines.js"
import type { NoDirectIo, NotEnoughSpace, TargetUnusable } from "./errors.js"
import { ContestantFailed } from "./errors.js"
import * as idle from "./idle.js"
import type { Shape } from "./load.js"
import { Load } from "./load.js"
import { Progress } from "./progress.js"
import type { Delay, DelayLoad, Endurance, EventLoop, LeftOut } from "./report.js"
import { warmUpMillis } from "./rounds.js"
import type { Target } from "./target.js"
import * as target from "./target.js"
import { bytes } from "./units.js"

const shapes: ReadonlyArray<Shape> = [
  { direction: "read", blockSize: 2 ** 20, depth: 32 },
  { direction: "read", blockSize: 2 ** 24, depth: 128 }
]

/** The operations that may leave something behind. */
const operationBytes = 4096
const batchLength = 32
const memoryFileBytes = 64 * 2 ** 20
const samplesAt = [0.1, 0.5, 1]

/** A byte for each of ten million operations is more than this. */
const mostHeapGrowth = 8 * 2 ** 20
/** What the allocators below V8 keep comes and goes. */
const mostRssGrowth = 32 * 2 ** 20

/** Bytes of memory that this process can still take: of the machine, or of its cgroup where that has less. */
const availableMemory = () => Math.min(freemem(), process.availableMemory?.() ?? Number.POSITIVE_INFINITY)

const minus = (one: EventLoop, other: EventLoop): EventLoop => ({ p99: one.p99 - other.p99, max: one.max - other.max })

const unfit = ({ size }: Target, { blockSize, depth }: Shape): string | undefined => {
  if (blockSize > size) return `a block is larger than the file of ${bytes(size)}`
  // The buffers are not all that grows.
  const needed = blockSize * depth * 1.25
  const available = availableMemory()
  return needed <= available
    ? undefined
    : `needs ${bytes(needed)} of memory for ${bytes(blockSize * depth)} of buffers, and ${
      bytes(available)
    } are available`
}

const load = (
  { context, family }: Own,
  file: Target,
  shape: Shape,
  millis: number
): Effect.Effect<DelayLoad, ContestantFailed | TargetUnusable> =>
  Effect.scoped(Effect.gen(function*() {
    const id = `${family}.fibres`
    const contestant = contestantsOf(family, Context.get(context, IoEngine)).find((contestant) => contestant.id === id)
    if (contestant === undefined) return yield* new ContestantFailed({ contestant: id, cause: "there is none" })
    const run = yield* contestant.prepare(new Load(file, shape, yield* buffersFor(file, shape)))
    const [one, other] = yield* Effect.all([idle.make, idle.make])
    yield* run(warmUpMillis(millis))
    yield* one.start
    yield* other.start
    const round = yield* run(millis)
    const idles = { idle: yield* one.stop, otherIdle: yield* other.stop }
    const loop = { p99: round.delayP99Millis ?? Number.NaN, max: round.delayMaxMillis ?? Number.NaN }
    return {
      engine: family,
      blockSize: shape.blockSize,
      depth: shape.depth,
      round,
      bytesPerSecond: round.operations * shape.blockSize / round.millis * 1000,
      loop,
      ...idles,
      aboveIdle: minus(loop, idles.idle),
      control: minus(idles.otherIdle, idles.idle)
    }
  }))

/** What `--expose-gc` gives from the start. */
export const collector = Effect.sync((): (() => void) | undefined => {
  setFlagsFromString("--expose-gc")
  const collect: unknown = runInNewContext("gc")
  return typeof collect === "function" ? () => collect() : undefined
})

/** V8 gives pages back on other threads, and not all of them after one collection. */
export const settled = (collect: (() => void) | undefined) =>
  Effect.map(
    Effect.replicateEffect(
      Effect.delay(
        Effect.sync(() => {
          collect?.()
          return process.memoryUsage()
        }),
        "20 millis"
      ),
      10
    ),
    (readings) => ({
      heapUsed: Math.min(...readings.map(({ heapUsed }) => heapUsed)),
      rss: Math.min(...readings.map(({ rss }) => rss)),
      arrayBuffers: Math.min(...readings.map(({ arrayBuffers }) => arrayBuffers))
    })
  )

const endurance = (
  { context, family }: Own,
  directory: string,
  operations: number
): Effect.Effect<Endurance, unknown, Progress> =>
  Effect.scoped(Effect.gen(function*() {
    const progress = yield* Progress
    const collect = yield* collector
    const storage = yield* DiskStorage.make({
      size: memoryFileBytes,
      directory,
      directIo: "disabled",
      earlyUnlink: true
    })
    const pool = yield* AlignedBuffer.pool({ buffers: 2 * batchLength, byteLength: operationBytes })
    const random = new PCGRandom(operations)
    let begun = 0
    let failure: unknown
    const transfers = Effect.map(
      Effect.replicateEffect(pool.lease, batchLength),
      (buffers) => buffers.map((buffer) => ({ buffer, offset: 0 }))
    )
    const loop = (
      batch: DiskStorage.DiskStorage["readBatch"],
      all: Effect.Effect.Success<typeof transfers>,
      until: () => number
    ) => {
      let some = all
      return Effect.whileLoop({
        while: () => begun < until() && failure === undefined,
        body: () => {
          const left = until() - begun
          some = left < all.length ? all.slice(0, left) : all
          begun += some.length
          for (const one of some) one.offset = random.integer(memoryFileBytes / operationBytes) * operationBytes
          return batch(some)
        },
        step: ({ failures: [failed] }) => failure ??= failed?.error
      })
    }
    let until = 0
    const both = Effect.all([
      loop(storage.readBatch, yield* transfers, () => until),
      loop(storage.writeBatch, yield* transfers, () => until)
    ], { concurrency: "unbounded", discard: true })
    const samples: Array<Endurance["samples"][number]> = []
    let millis = 0
    for (const part of samplesAt) {
      until = Math.round(operations * part)
      yield* progress.status(`delay: ${family}, ${begun} of ${operations} operations of ${bytes(operationBytes)}`)
      const start = performance.now()
      yield* both
      millis += performance.now() - start
      if (failure !== undefined) return yield* Effect.fail(failure)
      // Nothing is in flight now.
      const { heapUsed, rss } = yield* settled(collect)
      samples.push({ operations: begun, heapUsed, rss })
    }
    const grown = (of: (sample: Endurance["samples"][number]) => number) => {
      const values = samples.map(of)
      return (values.at(-1) ?? 0) - (values[0] ?? 0)
    }
    return {
      engine: family,
      operations,
      millis,
      collected: collect !== undefined,
      samples,
      verdict: grown(({ heapUsed }) => heapUsed) < mostHeapGrowth && grown(({ rss }) => rss) < mostRssGrowth
        ? "flat" as const
        : "growing" as const
    }
  })).pipe(Effect.provide(context))

export const measure = (
  own: ReadonlyArray<Own>,
  options: {
    readonly directory: string
    /** Of a tmpfs; without one, nothing is asked of memory. */
    readonly memoryDirectory: string | undefined
    readonly size: number
    readonly millis: number
    readonly operations: number
  }
): Effect.Effect<Delay, NotEnoughSpace | NoDirectIo | TargetUnusable, Progress> =>
  Effect.scoped(Effect.gen(function*() {
    const progress = yield* Progress
    const { memoryDirectory, millis, operations } = options
    const file = yield* target.make("disk", options.directory, options.size)
    const leftOut: Array<LeftOut> = []
    const left = (contestant: string, reason: string) => {
      leftOut.push({ contestant, reason })
      return progress.log(`delay: left out: ${contestant}: ${reason}`)
    }
    const loads: Array<DelayLoad> = []
    const ran: Array<Endurance> = []
    for (const engine of own) {
      for (const shape of shapes) {
        const label = `${engine.family}, ${shape.depth} reads of ${bytes(shape.blockSize)} in flight`
        const reason = unfit(file, shape)
        if (reason !== undefined) {
          yield* left(label, reason)
          continue
        }
        yield* progress.log(`delay: ${label}, for ${millis} ms`)
        yield* Effect.matchEffect(load(engine, file, shape, millis), {
          onFailure: ({ message }) => left(label, message),
          onSuccess: (measured) => Effect.sync(() => loads.push(measured))
        })
      }
      const label = `${engine.family}, ${operations} operations of ${bytes(operationBytes)}`
      if (memoryDirectory === undefined) {
        yield* left(label, "there is no tmpfs here")
        continue
      }
      yield* progress.log(`delay: ${label}, in memory`)
      yield* Effect.matchEffect(endurance(engine, memoryDirectory, operations), {
        onFailure: (cause) => left(label, new ContestantFailed({ contestant: engine.family, cause }).message),
        onSuccess: (measured) => Effect.sync(() => ran.push(measured))
      })
    }
    const { direct, directory, filesystem, name, size } = file
    return { file: { direct, directory, filesystem, name, size }, loads, endurance: ran, leftOut }
  }))
