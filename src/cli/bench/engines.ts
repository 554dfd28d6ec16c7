/** This package's engines as contestants. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as AlignedBuffer from "../../AlignedBuffer.js"
import type { Completion, IoFile } from "../../IoEngine.js"
import { IoEngine } from "../../IoEngine.js"
import * as IoUring from "../../IoUring.js"
import * as Linux from "../../Linux.js"
import * as LinuxAio from "../../LinuxAio.js"
import * as NodeIo from "../../NodeIo.js"
import type { Syscalls } from "../../Syscalls.js"
import type { Contestant } from "./contestant.js"
import { inProcess } from "./contestant.js"
import { NothingToMeasure, TargetUnusable } from "./errors.js"
import type { Direction, Load, Shape } from "./load.js"
import { callbacks } from "./load.js"
import { together } from "./node.js"
import type { LeftOut } from "./report.js"
import type { Target } from "./target.js"

type Family = "io_uring" | "aio" | "node"

/** As users get them: with the defaults of their options. */
const layers: ReadonlyArray<readonly [Family, Layer.Layer<IoEngine, { readonly message: string }>]> = [
  ["io_uring", IoUring.layer()],
  ["aio", LinuxAio.layer()],
  ["node", NodeIo.layer()]
]

export interface Engines {
  readonly contestants: ReadonlyArray<Contestant>
  /** Engines that this kernel refuses. */
  readonly leftOut: ReadonlyArray<LeftOut>
}

/** Those of which something is `wanted`. */
export const engines = (wanted: (id: string) => boolean): Effect.Effect<Engines, never, Scope.Scope> =>
  Effect.gen(function*() {
    const contestants: Array<Contestant> = []
    const leftOut: Array<LeftOut> = []
    for (const [family, layer] of layers) {
      const ids = modes.map((mode) => `${family}.${mode}`)
      if (!ids.some(wanted)) continue
      yield* Effect.match(Layer.build(layer), {
        onFailure: ({ message }) => leftOut.push({ contestant: family, reason: message }),
        onSuccess: (context) => contestants.push(...contestantsOf(family, Context.get(context, IoEngine)))
      })
    }
    return { contestants, leftOut }
  })

/** One engine, and the kernel. */
export interface Own {
  readonly family: Family
  readonly context: Context.Context<Syscalls | IoEngine>
}

/** The engines of which something was asked for; the best that works here when nothing was. */
export const built = (
  asked: ReadonlyArray<string>,
  leftOut: Array<LeftOut>
): Effect.Effect<ReadonlyArray<Own>, NothingToMeasure, Scope.Scope> =>
  Effect.gen(function*() {
    const made: Array<Own> = []
    for (const [family] of layers) {
      if (asked.length === 0 ? made.length > 0 : !asked.some((name) => name.split(".")[0] === family)) continue
      yield* Effect.match(Layer.build(Linux.layerWith({ engine: family })), {
        onFailure: ({ message }) => leftOut.push({ contestant: family, reason: message }),
        onSuccess: (context) => made.push({ family, context })
      })
    }
    if (made.length > 0) return made
    return yield* new NothingToMeasure({
      message: ["No engine of this package to measure.", ...leftOut.map(({ reason }) => reason)].join("\n")
    })
  })

const modes = ["fibres", "batches", "barrier", "raw"] as const

/** Made once and given a new offset each time. */
interface Transfer {
  readonly kind: Direction
  readonly file: IoFile
  readonly buffer: AlignedBuffer.AlignedBuffer
  offset: number
}

const transfers = (file: IoFile, { direction }: Load, buffers: Load["buffers"]): ReadonlyArray<Transfer> =>
  buffers.map((buffer) => ({ kind: direction, file, buffer, offset: 0 }))

/** One fibre for each operation in flight. */
const fibres = (engine: IoEngine, file: IoFile, load: Load) =>
  together(
    load,
    load.buffers.map((buffer) => {
      let offset = -1
      return Effect.whileLoop({
        while: () => (offset = load.next()) >= 0,
        body: load.direction === "read"
          ? () => engine.read(file, buffer, offset)
          : () => engine.write(file, buffer, offset),
        step: () => load.completed(load.blockSize)
      })
    })
  )

/** One fibre for each batch; a batch is made when the one before it has ended. */
const batches = (engine: IoEngine, file: IoFile, load: Load, groups: ReadonlyArray<Load["buffers"]>) =>
  together(
    load,
    groups.map((buffers) => {
      const operations = transfers(file, load, buffers)
      return Effect.whileLoop({
        while: () => load.nextBatch(operations),
        body: () => engine.batch(operations),
        step: ({ failures: [failed] }) => {
          if (failed === undefined) load.operations += operations.length
          else load.fail(failed.error)
        }
      })
    })
  )

const raw = (engine: IoEngine, file: IoFile, load: Load) => {
  const operations = transfers(file, load, load.buffers)
  return callbacks(load, (index, completed) => {
    const operation = operations[index]
    const done = ({ bytes, error }: Completion) => completed(error, bytes)
    return (offset) => {
      if (operation === undefined) return
      operation.offset = offset
      engine.unsafeSubmit(operation, done)
    }
  })
}

export const contestantsOf = (family: Family, engine: IoEngine): ReadonlyArray<Contestant> => {
  const contestant = (
    mode: typeof modes[number],
    run: (file: IoFile, load: Load) => Effect.Effect<void>,
    unfit?: (load: Load) => string | undefined
  ) =>
    inProcess(
      `${family}.${mode}`,
      family,
      (load) => {
        const { direct, fd, path } = load.target
        return Effect.map(
          engine.file(fd, { path, direct, alignment: AlignedBuffer.pageSize }),
          (file) => run(file, load)
        )
      },
      unfit
    )
  return [
    contestant("fibres", (file, load) => fibres(engine, file, load)),
    contestant(
      "batches",
      (file, load) => {
        const half = Math.ceil(load.depth / 2)
        return batches(engine, file, load, [load.buffers.slice(0, half), load.buffers.slice(half)])
      },
      ({ depth }) => depth < 2 ? "two batches need a depth of 2" : undefined
    ),
    contestant("barrier", (file, load) => batches(engine, file, load, [load.buffers])),
    contestant("raw", (file, load) => raw(engine, file, load))
  ]
}

/** Memory for every operation in flight, which all contestants use in turns. */
export const buffersFor = (
  { directory }: Target,
  { blockSize, depth }: Shape
): Effect.Effect<ReadonlyArray<AlignedBuffer.AlignedBuffer>, TargetUnusable, Scope.Scope> =>
  Effect.gen(function*() {
    const pool = yield* AlignedBuffer.pool({ buffers: depth, byteLength: blockSize })
    return yield* Effect.replicateEffect(pool.lease, depth)
  }).pipe(
    Effect.mapError((cause) => new TargetUnusable({ directory, step: "memory for the operations in flight", cause }))
  )
