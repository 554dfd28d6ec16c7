/**
 * The `KeyValueStore` of `@effect/platform` on a `BlockStore`: code that is written for that interface uses the disk tier unchanged.
 * Imported as `effect-disk-storage/KeyValueStore` only, since it needs `@effect/platform` at run time,
 * 0.84.1 or later.
 *
 * It is a cache: an entry may be evicted at any time, to make room for another, and lasts no longer than the `BlockStore`; then `get`
 * gives `None`.
 *
 * @since 0.1.0
 */
import * as KeyValueStore from "@effect/platform/KeyValueStore"
import type * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { BlockStore } from "./BlockStore.js"
import type { BufferUnavailable, InvalidOption } from "./DiskStorageError.js"
import * as internal from "./internal/keyValueStore.js"

/**
 * @since 0.1.0
 * @category models
 */
export interface KeyValueStoreOptions {
  /**
   * Entries that are read or written at once, each with a buffer of `blockBytes` bytes; the others wait their turn. All buffers together
   * hold at most 4 GiB. Default 4.
   */
  readonly concurrency?: number | undefined
}

/**
 * A key-value store that has all of the `BlockStore` in the context: its `clear` removes every block, and its `size` counts them.
 *
 * - An entry takes a block, whatever its length. The key (in UTF-8), the value and a header of 16 bytes must fit in `blockBytes` bytes;
 *   `set` fails with `BadArgument` otherwise. Half of a surrogate pair is refused, too.
 * - `get` gives the value that was set under that key, or `None`, never another's. Keys whose 64-bit hashes are the same push each other out.
 * - `set` ends when the value is on disk. Until then, and when it fails, the older value is found, unless it was evicted to make
 *   room. An interrupted `set` leaves either of them. Of several at once the last one to end wins; `modify` is a `get` and a `set`.
 * - What was set as a string is given by `getUint8Array` in UTF-8; what was set as bytes is given by `get` in Base64, as
 *   `KeyValueStore.layerMemory` does.
 * - An entry whose bytes are not those that were written is dropped, with a warning in the log, and is `None`. Any other failure of the
 *   disk or the store is a `SystemError` with the store's own error as its `cause`.
 *
 * Fails with `InvalidOption` for a bad `concurrency`, and with `BufferUnavailable` when there is no memory for the buffers.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (
  options?: KeyValueStoreOptions
): Effect.Effect<KeyValueStore.KeyValueStore, BufferUnavailable | InvalidOption, BlockStore | Scope.Scope> =>
  internal.make(options)

/**
 * The same as a layer.
 *
 * @example
 * ```ts
 * import * as KeyValueStore from "@effect/platform/KeyValueStore"
 * import { BlockStore, Linux } from "effect-disk-storage"
 * import * as DiskKeyValueStore from "effect-disk-storage/KeyValueStore"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const program = Effect.gen(function*() {
 *   const store = yield* KeyValueStore.KeyValueStore
 *   yield* store.set("greeting", "hello")
 *   return yield* store.get("greeting") // Some("hello"), or None when it was evicted
 * })
 *
 * const StoreLayer = BlockStore.layerConfig({ blockBytes: 64 * 1024, size: 1e9 })
 * const Live = DiskKeyValueStore.layer().pipe(Layer.provide(StoreLayer), Layer.provide(Linux.layer))
 * program.pipe(Effect.provide(Live))
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (
  options?: KeyValueStoreOptions
): Layer.Layer<KeyValueStore.KeyValueStore, BufferUnavailable | InvalidOption, BlockStore> =>
  Layer.scoped(KeyValueStore.KeyValueStore, make(options))
