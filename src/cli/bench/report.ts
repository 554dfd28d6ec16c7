/**
 * The result of a run: the format of `--json FILE`, and what the table and the chart are drawn from.
 *
 * A report is one JSON object. `targets` are the files that were measured on; `cells` are the loads (a target, a direction, a
 * block size in bytes and a depth), and each has the `results` of its contestants. Rounds are kept as they were measured, so that
 * every other figure can be computed again. Times are milliseconds or microseconds, as the name says; rates are per second.
 *
 * That is the part `transfers`. The parts `allocation`, `delay` and `blocks` have an object each, null when they were not asked for.
 */
import * as Schema from "effect/Schema"

/** One round of one contestant. */
export const Round = Schema.Struct({
  operations: Schema.Int,
  millis: Schema.Number,
  /** CPU time of the process, user and system, microseconds; of fio, that of its job. */
  cpuMicros: Schema.Number,
  /** 99th percentile of the event-loop delay, milliseconds; null for what runs in another process. */
  delayP99Millis: Schema.NullOr(Schema.Number),
  delayMaxMillis: Schema.NullOr(Schema.Number)
})
export type Round = typeof Round.Type

/** The best round and the median of the rounds. */
const BestAndMedian = Schema.Struct({ best: Schema.Number, median: Schema.Number })

export const Result = Schema.Struct({
  /** `family.mode`, such as `io_uring.fibres` or `fio.io_uring`. */
  contestant: Schema.String,
  family: Schema.Literal("io_uring", "aio", "node", "fs", "platform", "fio"),
  rounds: Schema.Array(Round),
  /** Operations per second. */
  iops: BestAndMedian,
  bytesPerSecond: BestAndMedian,
  /** IOPS divided by those of `fio.io_uring`: best by best, median by median; null without fio. */
  ratioToFio: Schema.NullOr(BestAndMedian),
  /** Median of the rounds. */
  cpuMicrosPerOperation: Schema.Number,
  /** Median of the rounds' p99 minus that of the idle phases of the same load; null for fio. */
  delayP99MillisAboveIdle: Schema.NullOr(Schema.Number)
})
export type Result = typeof Result.Type

/** A contestant that could not run, and why; on one load or on all. */
export const LeftOut = Schema.Struct({ contestant: Schema.String, reason: Schema.String })
export type LeftOut = typeof LeftOut.Type

/** `not decidable` on a disk when the best rounds of fio and of its control are more than 5 % apart. */
const Verdict = Schema.Literal("decidable", "not decidable", "no control")

export const Cell = Schema.Struct({
  target: Schema.Literal("disk", "memory"),
  direction: Schema.Literal("read", "write"),
  blockSize: Schema.Int,
  depth: Schema.Int,
  /** IOPS of `fio.control` divided by those of `fio.io_uring`: what a ratio of 1 looks like here; null without fio. */
  control: Schema.NullOr(BestAndMedian),
  verdict: Verdict,
  idleDelayP99Millis: Schema.Number,
  results: Schema.Array(Result),
  leftOut: Schema.Array(LeftOut)
})
export type Cell = typeof Cell.Type

export const TargetReport = Schema.Struct({
  name: Schema.Literal("disk", "memory"),
  directory: Schema.String,
  filesystem: Schema.String,
  /** Whether the file was opened with O_DIRECT. */
  direct: Schema.Boolean,
  /** bytes */
  size: Schema.Int
})
export type TargetReport = typeof TargetReport.Type

/** How one contestant went over a whole file, once in each round. */
export const Pass = Schema.Struct({
  /** `first writes` and `rewrites` are random ones over the same file, of 128 KiB, 8 in flight, each block once. */
  kind: Schema.Literal("zero-fill", "first writes", "rewrites"),
  /**
   * Of zero-fills `<engine>.storage`, `serial` (16 MiB at a time), `fio.io_uring` and `fio.control`; of writes
   * `<engine>.fallocate` and `<engine>.prewrite`, by how the storage was made.
   */
  contestant: Schema.String,
  /** Bytes of a pass. */
  bytes: Schema.Int,
  /** Of each round. */
  millis: Schema.Array(Schema.Number),
  bytesPerSecond: BestAndMedian
})
export type Pass = typeof Pass.Type

export const Allocation = Schema.Struct({
  directory: Schema.String,
  filesystem: Schema.String,
  /** bytes */
  size: Schema.Int,
  rounds: Schema.Int,
  passes: Schema.Array(Pass),
  /** Of ratios to fio, as that of a cell. */
  verdict: Verdict,
  /** Bandwidth of `contestant` divided by that of `to`: best by best, median by median. */
  ratios: Schema.Array(
    Schema.Struct({
      kind: Pass.fields.kind,
      contestant: Schema.String,
      to: Schema.String,
      ...BestAndMedian.fields
    })
  ),
  leftOut: Schema.Array(LeftOut)
})
export type Allocation = typeof Allocation.Type

/** Of an event loop, milliseconds. */
export const EventLoop = Schema.Struct({ p99: Schema.Number, max: Schema.Number })
export type EventLoop = typeof EventLoop.Type

/** Reads kept in flight, and the event loop meanwhile: of this process, and of two that did nothing. */
export const DelayLoad = Schema.Struct({
  engine: Schema.String,
  blockSize: Schema.Int,
  depth: Schema.Int,
  round: Round,
  bytesPerSecond: Schema.Number,
  loop: EventLoop,
  idle: EventLoop,
  otherIdle: EventLoop,
  /** `loop` minus `idle`. */
  aboveIdle: EventLoop,
  /** `otherIdle` minus `idle`: what 0 looks like here. */
  control: EventLoop
})
export type DelayLoad = typeof DelayLoad.Type

/** Operations of 4 KiB in batches on a file in memory, half of them reads, and what they left in this process. */
export const Endurance = Schema.Struct({
  engine: Schema.String,
  operations: Schema.Int,
  millis: Schema.Number,
  /** Whether the garbage was collected before each sample. */
  collected: Schema.Boolean,
  /** After 10 %, 50 % and 100 % of the operations; bytes, each the least of ten readings. */
  samples: Schema.Array(Schema.Struct({ operations: Schema.Int, heapUsed: Schema.Int, rss: Schema.Int })),
  /** `flat` when from the first sample to the last the heap grew by less than 8 MiB and RSS by less than 32 MiB. */
  verdict: Schema.Literal("flat", "growing")
})
export type Endurance = typeof Endurance.Type

export const Delay = Schema.Struct({
  file: TargetReport,
  loads: Schema.Array(DelayLoad),
  endurance: Schema.Array(Endurance),
  leftOut: Schema.Array(LeftOut)
})
export type Delay = typeof Delay.Type

/** One way of moving blocks. `raw` is the engine without a store, `control` the same again; the others are stores by their checksum. */
export const BlocksResult = Schema.Struct({
  contestant: Schema.Literal("raw", "control", "off", "crc32", "xxh128"),
  /** An operation is a block. */
  rounds: Schema.Array(Round),
  bytesPerSecond: BestAndMedian,
  /** Best by best; the median of the ratios to `raw` in the same round. */
  ratioToRaw: BestAndMedian,
  /** Median of the rounds. */
  cpuMicrosPerBlock: Schema.Number
})
export type BlocksResult = typeof BlocksResult.Type

export const BlocksCell = Schema.Struct({
  engine: Schema.String,
  direction: Schema.Literal("offload", "onboard"),
  blockSize: Schema.Int,
  depth: Schema.Int,
  /** The ratio of `control`. */
  control: BestAndMedian,
  /** `not decidable` when either of `control` is more than 5 % from 1. */
  verdict: Verdict,
  results: Schema.Array(BlocksResult)
})
export type BlocksCell = typeof BlocksCell.Type

/** Microseconds for a block: the least and the median of the rounds. */
export const BlockIndexSize = Schema.Struct({
  blocks: Schema.Int,
  /** Looked for and not found, given a slot by eviction, entered. */
  offloadMicros: BestAndMedian,
  /** Found, pinned, unpinned. */
  onboardMicros: BestAndMedian,
  /** Both. */
  micros: BestAndMedian
})
export type BlockIndexSize = typeof BlockIndexSize.Type

/** The index alone, full, with random hashes. */
export const BlockIndexCost = Schema.Struct({
  /** Of a round. */
  operations: Schema.Int,
  sizes: Schema.Array(BlockIndexSize),
  /** `micros` of the larger one divided by that of the smaller. */
  ratio: BestAndMedian,
  /** By how much the process grew while the larger one was made and filled. */
  bytesPerBlock: Schema.Struct({ arrayBuffers: Schema.Number, heapUsed: Schema.Number, rss: Schema.Number }),
  /** Whether the garbage was collected before memory was measured. */
  collected: Schema.Boolean
})
export type BlockIndexCost = typeof BlockIndexCost.Type

export const Blocks = Schema.Struct({
  directory: Schema.String,
  filesystem: Schema.String,
  /** Bytes of each of the four files. */
  size: Schema.Int,
  rounds: Schema.Int,
  cells: Schema.Array(BlocksCell),
  index: BlockIndexCost,
  /** Full stores without checksum whose storage moves nothing: what is left is the store. */
  withoutDisk: Schema.Struct({
    sizes: Schema.Array(BlockIndexSize),
    /** `micros` of the larger one divided by that of the smaller. */
    ratio: BestAndMedian,
    /** Of a `match` of that many hashes in the larger one. */
    asked: Schema.Int,
    matchMicros: BestAndMedian
  }),
  /** The end of a store that is kept, and the next start, which takes all its blocks up: milliseconds. */
  restart: Schema.Struct({ blocks: Schema.Int, endMillis: BestAndMedian, startMillis: BestAndMedian }),
  leftOut: Schema.Array(LeftOut)
})
export type Blocks = typeof Blocks.Type

export const Part = Schema.Literal("transfers", "allocation", "delay", "blocks")
export type Part = typeof Part.Type

export const Report = Schema.Struct({
  format: Schema.Literal("effect-disk-storage bench 1"),
  parts: Schema.Array(Part),
  started: Schema.DateFromString,
  host: Schema.Struct({
    kernel: Schema.String,
    arch: Schema.String,
    cpus: Schema.Int,
    cpu: Schema.String,
    node: Schema.String,
    fio: Schema.NullOr(Schema.String)
  }),
  /** Of `cells`. */
  rounds: Schema.Int,
  millis: Schema.Int,
  targets: Schema.Array(TargetReport),
  cells: Schema.Array(Cell),
  allocation: Schema.NullOr(Allocation),
  delay: Schema.NullOr(Delay),
  blocks: Schema.NullOr(Blocks),
  /** Contestants that could not run at all. */
  leftOut: Schema.Array(LeftOut),
  /** What else a reader has to know. */
  notes: Schema.Array(Schema.String)
})
export type Report = typeof Report.Type

export const ReportJson = Schema.parseJson(Report, { space: 2 })

export const fioContestant = "fio.io_uring"
export const fioControl = "fio.control"

/** Further apart than this, best rounds of fio and of fio again say that a disk is too restless for a ratio. */
export const mostControlOff = 0.05
