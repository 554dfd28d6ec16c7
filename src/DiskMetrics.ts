/**
 * What the engines count, as Effect metrics: always on (`IoEngine.layerSyscalls` aside, which is for tests), collected in plain fields
 * and handed over once per drain of completions.
 *
 * @since 0.1.0
 */
import * as Metric from "effect/Metric"
import * as MetricBoundaries from "effect/MetricBoundaries"

type Direction = "read" | "write" | "sync"

const byDirection = <A>(make: (direction: Direction) => A): { readonly [direction in Direction]: A } => ({
  read: make("read"),
  write: make("write"),
  sync: make("sync")
})

/**
 * Bytes transferred (`disk_storage_bytes`, tag `direction`). Failed operations count what they transferred before they failed.
 *
 * @since 0.1.0
 * @category metrics
 */
export const bytes = byDirection((direction): Metric.Metric.Counter<number> =>
  Metric.tagged(Metric.counter("disk_storage_bytes", { incremental: true }), "direction", direction)
)

/**
 * Operations that have ended, well or not (`disk_storage_operations`, tag `direction`).
 *
 * @since 0.1.0
 * @category metrics
 */
export const operations = byDirection((direction): Metric.Metric.Counter<number> =>
  Metric.tagged(Metric.counter("disk_storage_operations", { incremental: true }), "direction", direction)
)

/**
 * Operations that failed (`disk_storage_errors`, tags `direction` and `code`): the name of the errno, or `SHORT` where the kernel
 * transferred nothing and reported no error, or `STALLED`, or `CORRUPTED` where a block store has read other bytes than were written.
 *
 * @since 0.1.0
 * @category metrics
 */
export const errors = (direction: Direction, code: string): Metric.Metric.Counter<number> =>
  Metric.counter("disk_storage_errors", { incremental: true }).pipe(
    Metric.tagged("direction", direction),
    Metric.tagged("code", code)
  )

/**
 * Pieces (at most 1 MiB each) that the kernel has and has not answered (`disk_storage_in_flight`), of the engine that was busy last.
 *
 * @since 0.1.0
 * @category metrics
 */
export const inFlight: Metric.Metric.Gauge<number> = Metric.gauge("disk_storage_in_flight")

/**
 * Directions of storages, reads or writes, that fail at once because their disk has failed too often in a row (`disk_storage_degraded`).
 *
 * @since 0.1.0
 * @category metrics
 */
export const degraded: Metric.Metric.Gauge<number> = Metric.gauge("disk_storage_degraded")

/**
 * Milliseconds from submission to completion (`disk_storage_latency_ms`, tag `direction`); of the operations that end together up
 * to four are counted.
 *
 * @since 0.1.0
 * @category metrics
 */
export const latency = byDirection((direction): Metric.Metric.Histogram<number> =>
  Metric.tagged(
    Metric.histogram("disk_storage_latency_ms", MetricBoundaries.exponential({ start: 0.01, factor: 2, count: 22 })),
    "direction",
    direction
  )
)

type Transfer = "offload" | "onboard"

const byTransfer = <A>(make: (transfer: Transfer) => A): { readonly [transfer in Transfer]: A } => ({
  offload: make("offload"),
  onboard: make("onboard")
})

const blockCounter = (event: string): Metric.Metric.Counter<number> =>
  Metric.tagged(Metric.counter("block_store_blocks", { incremental: true }), "event", event)

/**
 * What block stores count, in blocks (`block_store_blocks`, tag `event`): found and not found by `onboard`, stored, evicted, found
 * corrupted, and transfers that failed. Handed over once per batch.
 *
 * @since 0.1.0
 * @category metrics
 */
export const blocks = {
  hits: blockCounter("hit"),
  misses: blockCounter("miss"),
  stored: blockCounter("stored"),
  evicted: blockCounter("evicted"),
  corrupted: blockCounter("corrupted"),
  failed: blockCounter("failed")
}

/**
 * Bytes of the blocks that were offloaded and onboarded (`block_store_bytes`, tag `transfer`).
 *
 * @since 0.1.0
 * @category metrics
 */
export const blockBytes = byTransfer((transfer): Metric.Metric.Counter<number> =>
  Metric.tagged(Metric.counter("block_store_bytes", { incremental: true }), "transfer", transfer)
)

/**
 * Blocks that are stored over blocks that could be, 0 to 1 (`block_store_occupancy`), of the store that was busy last.
 *
 * @since 0.1.0
 * @category metrics
 */
export const occupancy: Metric.Metric.Gauge<number> = Metric.gauge("block_store_occupancy")

/**
 * Milliseconds that a batch took (`block_store_latency_ms`, tag `transfer`).
 *
 * @since 0.1.0
 * @category metrics
 */
export const batchLatency = byTransfer((transfer): Metric.Metric.Histogram<number> =>
  Metric.tagged(
    Metric.histogram("block_store_latency_ms", MetricBoundaries.exponential({ start: 0.05, factor: 2, count: 20 })),
    "transfer",
    transfer
  )
)
