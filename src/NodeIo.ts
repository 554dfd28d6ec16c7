/**
 * The engine over `node:fs`: callback `read` and `write` on the raw descriptor, which libuv's pool does, four at a time unless
 * `UV_THREADPOOL_SIZE` says otherwise. It runs wherever Node runs.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Layer from "effect/Layer"
import type { InvalidOption } from "./DiskStorageError.js"
import * as internal from "./internal/nodeIo.js"
import { IoEngine } from "./IoEngine.js"

/**
 * @since 0.1.0
 * @category models
 */
export interface NodeIoOptions {
  /**
   * The most pieces (at most 1 MiB each) that the pool has at once. Default 8: enough for four threads, and what else the pool does
   * (fs, dns, zlib, crypto) waits behind no more than that.
   */
  readonly depth?: number | undefined
  /** The most bytes in flight. Default 64 MiB. */
  readonly maxBytesInFlight?: number | undefined
  /** After this time without an answer an operation fails with `IoStalled`. Off by default. */
  readonly stallTimeout?: Duration.DurationInput | undefined
}

/**
 * @since 0.1.0
 * @category layers
 */
export const layer = (options: NodeIoOptions = {}): Layer.Layer<IoEngine, InvalidOption> =>
  Layer.scoped(IoEngine, internal.make(options))
