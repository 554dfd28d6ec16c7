/**
 * KV blocks on disk, found by their sequence hash: offloaded in batches, matched by prefix, onboarded again, evicted when room is
 * needed. A block is found only after all of it was written, and is given back only when all of it was read and, with a checksum,
 * is what was written.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { AlignedBuffer } from "./AlignedBuffer.js"
import * as DiskStorage from "./DiskStorage.js"
import * as DiskStorageConfig from "./DiskStorageConfig.js"
import type {
  AcquireError,
  BlockNotFound,
  BufferUnavailable,
  InvalidBlock,
  InvalidOption,
  OffloadError,
  OnboardError,
  StoreClosed
} from "./DiskStorageError.js"
import * as internal from "./internal/blockStore.js"
import type { IoEngine, Results } from "./IoEngine.js"
import type { Syscalls } from "./Syscalls.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: typeof internal.TypeId = internal.TypeId

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * What names a block: an unsigned 64-bit hash of its tokens and of all tokens before them. Two blocks of one hash are the same
 * block to the store.
 *
 * @since 0.1.0
 * @category models
 */
export type SequenceHash = bigint

/**
 * How the bytes of a block are checked when it is onboarded:
 *
 * - `xxh128` (default): 128 bits, by the library hash-wasm.
 * - `crc32`: 32 bits, by zlib; Node 20.15 or later.
 * - `off`: not at all.
 *
 * It is computed on the thread that calls, and kept in memory beside the hash: bytes of another block, or of an older one, do not
 * pass either.
 *
 * @since 0.1.0
 * @category models
 */
export type Checksum = "off" | "crc32" | "xxh128"

/**
 * @since 0.1.0
 * @category models
 */
export interface BlockStoreOptions {
  /** Bytes of a block; rounded up to whole pages, and to the alignment of the storages: see `BlockStore.blockBytes`. */
  readonly blockBytes: number
  /** Default `xxh128`. */
  readonly checksum?: Checksum | undefined
  /** Blocks of all batches together that are being written or read; the others wait their turn. Default 32. */
  readonly maxBlocksInFlight?: number | undefined
  /** Events that are kept for a subscriber who is behind; it is told how many older ones it missed. Default 4096. */
  readonly eventCapacity?: number | undefined
  /**
   * Reads or writes of a storage that fail in a row, without one that succeeds between, after which it is taken out. Default 8. Those that
   * a degraded storage refuses (`StorageDegraded`) count, and cost neither the slot nor the block. A block that is corrupted counts as a
   * read that failed. A storage is taken out as well when none of its slots can be used any more, and when it is closed.
   */
  readonly failureLimit?: number | undefined
  /**
   * What the blocks are of: model, revision, adapter, dtype, layout, whatever else the hashes do not say. Blocks that were kept are taken
   * up only where it is the same.
   */
  readonly content?: string | undefined
}

/**
 * A block to be offloaded. `data` has exactly `blockBytes` bytes and belongs to the store until the batch ends. `priority` (0 to 15,
 * default 0): a block makes room for others of its own or a higher priority only.
 *
 * @since 0.1.0
 * @category models
 */
export interface Block {
  readonly hash: SequenceHash
  readonly data: AlignedBuffer
  readonly priority?: number | undefined
}

/**
 * Where a block is to be onboarded: `into` has exactly `blockBytes` bytes and belongs to the kernel until the batch ends. When it
 * fails, `into` holds anything.
 *
 * @since 0.1.0
 * @category models
 */
export interface Destination {
  readonly hash: SequenceHash
  readonly into: AlignedBuffer
}

/**
 * `stored`: it is on disk now. `duplicate`: it was there already, and nothing was written. `filtered`: the `OffloadFilter` did not
 * let it through.
 *
 * @since 0.1.0
 * @category models
 */
export type Offloaded = "stored" | "duplicate" | "filtered"

/**
 * Why a block is found no more: `evicted` to make room, `removed` or `reset` by a call, `replaced` by another of its hash, `failed`
 * because it could not be read, `storage` because its storage was taken out.
 *
 * @since 0.1.0
 * @category models
 */
export type RemovalReason = "evicted" | "removed" | "reset" | "replaced" | "failed" | "storage"

/**
 * What happened, in order. `Corrupted`: dropped because its bytes were not those that were written. `Missed`: so many events came
 * while this subscriber was behind that they are gone; list what there is with `hashes`.
 *
 * @since 0.1.0
 * @category models
 */
export type BlockEvent =
  | { readonly _tag: "Stored"; readonly hash: SequenceHash }
  | { readonly _tag: "Removed"; readonly hash: SequenceHash; readonly reason: RemovalReason }
  | { readonly _tag: "Corrupted"; readonly hash: SequenceHash }
  | { readonly _tag: "Missed"; readonly events: number }

/**
 * A block that stays where it is, whatever is offloaded meanwhile, until the Scope ends in which it was leased. Removed or replaced in
 * the meantime, it is found by nobody else, and `onboard` still gives its bytes; afterwards `onboard` fails with `BlockNotFound`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Lease {
  readonly hash: SequenceHash
  readonly onboard: (into: AlignedBuffer) => Effect.Effect<void, OnboardError>
}

/**
 * @since 0.1.0
 * @category models
 */
export interface StorageStats {
  readonly path: string
  /** Blocks that it can hold. */
  readonly capacity: number
  readonly blocks: number
  /** Slots with nothing in them. */
  readonly free: number
  /**
   * Slots that are not used any more for as long as the store lives: a transfer to or from them failed, a block in them was corrupted, or
   * the whole storage was taken out.
   */
  readonly retired: number
  /**
   * How many slots retired while the storage worked, by cause: a block without its checksum (`corrupted`), a read or a write that failed
   * (`failed`) or had no answer (`stalled`).
   */
  readonly retiredBy: { readonly corrupted: number; readonly failed: number; readonly stalled: number }
  /** Whether it was taken out. */
  readonly failed: boolean
  /** Why it was taken out, with the last failure. */
  readonly failure: string | undefined
}

/**
 * Counts since the store was made, and what there is now. In blocks.
 *
 * @since 0.1.0
 * @category models
 */
export interface Stats {
  readonly capacity: number
  readonly blocks: number
  /** Blocks that are leased or being read. */
  readonly pinned: number
  readonly inFlight: number
  readonly stored: number
  readonly duplicates: number
  readonly filtered: number
  readonly hits: number
  readonly misses: number
  readonly evicted: number
  readonly corrupted: number
  /** Transfers that failed; not those of corrupted blocks, which succeeded. */
  readonly failed: number
  readonly storages: ReadonlyArray<StorageStats>
}

/**
 * Blocks of `blockBytes` bytes over one or several storages, striped. Everything here may run concurrently. After release nothing is
 * found, and blocks fail with `StoreClosed`.
 *
 * Arguments are checked: an element of a batch that is no block is its own `InvalidBlock`, as is a hash that is no unsigned 64-bit
 * bigint in the other calls. Anything else of a wrong type is an `InvalidOption`, and nothing was begun.
 *
 * An interrupted batch waits for the blocks that are in flight and begins no other; those that came through count.
 *
 * @since 0.1.0
 * @category models
 */
export interface BlockStore {
  readonly [TypeId]: TypeId
  /** Bytes of every buffer: `AlignedBuffer.make(store.blockBytes)`. */
  readonly blockBytes: number
  /** Blocks that all storages together can hold. */
  readonly capacity: number
  readonly checksum: Checksum

  /**
   * Writes what is not there yet, in any order, straight from the buffers, and tells of each block what became of it. A hash that is
   * there already, twice in the batch, or just being written by another batch (but for `replace`), is written once. A full store evicts blocks of the same
   * or a lower priority, the lowest and least recently used first. `replace: true` writes every block, past the `OffloadFilter`, and
   * puts it in the place of an older one when all of it is written.
   */
  readonly offload: (
    blocks: ReadonlyArray<Block>,
    options?: { readonly replace?: boolean | undefined }
  ) => Effect.Effect<Results<OffloadError, Offloaded>, InvalidOption>
  /**
   * Reads blocks straight into the buffers, and tells of each how many bytes came (`blockBytes`) or why none. A block that cannot be
   * read or does not verify is dropped. Memory that a block of the same batch was read into is `BufferBusy` for the others.
   */
  readonly onboard: (destinations: ReadonlyArray<Destination>) => Effect.Effect<Results<OnboardError>, InvalidOption>
  /**
   * The same for more blocks than memory holds: takes what upstream has ready, at most as many at a time as may be in flight, and tells
   * of each in order. It waits for none: buffers may come from a pool of any size, and go back as they are told of.
   */
  readonly offloadStream: <E, R>(
    blocks: Stream.Stream<Block, E, R>
  ) => Stream.Stream<
    { readonly hash: SequenceHash; readonly result: Either.Either<Offloaded, OffloadError> },
    E | InvalidOption,
    R
  >
  /**
   * The blocks of many hashes in order, each in memory of its own, which is the caller's; read ahead by as many as may be in flight,
   * three times at most.
   */
  readonly onboardStream: <E, R>(
    hashes: Stream.Stream<SequenceHash, E, R>
  ) => Stream.Stream<
    { readonly hash: SequenceHash; readonly result: Either.Either<AlignedBuffer, OnboardError | BufferUnavailable> },
    E | InvalidOption,
    R
  >

  /** How many of the first hashes are all there: the longest cached prefix, in blocks. Counts as no use; see `touch`. */
  readonly match: (hashes: ReadonlyArray<SequenceHash>) => Effect.Effect<number, InvalidBlock | InvalidOption>
  readonly has: (hash: SequenceHash) => Effect.Effect<boolean, InvalidBlock>
  /** Keeps a block until the Scope ends: it is neither evicted nor overwritten. */
  readonly lease: (hash: SequenceHash) => Effect.Effect<Lease, BlockNotFound | InvalidBlock, Scope.Scope>
  /** Matches and leases in one step: the leases of the longest cached prefix. */
  readonly leasePrefix: (
    hashes: ReadonlyArray<SequenceHash>
  ) => Effect.Effect<ReadonlyArray<Lease>, InvalidBlock | InvalidOption, Scope.Scope>
  /** Makes blocks the most recently used of their priority, the last one most; how many of them are there. */
  readonly touch: (hashes: ReadonlyArray<SequenceHash>) => Effect.Effect<number, InvalidBlock | InvalidOption>
  /** How many of them were there. Who reads one of them still gets it. */
  readonly remove: (hashes: ReadonlyArray<SequenceHash>) => Effect.Effect<number, InvalidBlock | InvalidOption>
  /**
   * Removes every block. One that is being written or offloaded meanwhile may come after it. Fails once the store is being released: what is
   * kept by then stays.
   */
  readonly reset: Effect.Effect<void, StoreClosed>
  /** Every hash that is there from the beginning to the end of the call, once, in no order; and some of those that come or go meanwhile. */
  readonly hashes: Effect.Effect<ReadonlyArray<SequenceHash>>
  readonly stats: Effect.Effect<Stats>
  /** What happens from the subscription on; ends with the store. A subscriber who is slow holds nothing up. */
  readonly events: Stream.Stream<BlockEvent>
}

/**
 * @since 0.1.0
 * @category tags
 */
export const BlockStore: Context.Tag<BlockStore, BlockStore> = Context.GenericTag<BlockStore>(
  "effect-disk-storage/BlockStore"
)

/**
 * A store over `storages`, which must outlive its Scope and which nobody else writes to. Its end waits for the batches in flight.
 * Fails with `InvalidOption` for a bad option, when a storage is too small for one block, and when another store uses it; with
 * `BufferUnavailable` when there is no memory for the index or for the hasher of the checksums.
 *
 * Storages with `keepAt` hold fewer blocks, since the index lies behind them. The end of the store keeps them, and with that closes them; blocks
 * that the next one takes up are no events.
 *
 * @example
 * ```ts
 * import { AlignedBuffer, BlockStore, DiskStorage, Linux } from "effect-disk-storage"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const storage = yield* DiskStorage.make({ size: 1_000_000_000 })
 *   const store = yield* BlockStore.make([storage], { blockBytes: 1024 * 1024 })
 *   const data = yield* AlignedBuffer.make(store.blockBytes)
 *   yield* store.offload([{ hash: 42n, data }])
 *   const cached = yield* store.match([42n, 43n]) // 1
 *   const results = yield* store.onboard([{ hash: 42n, into: data }])
 *   return [cached, results.failures.length]
 * }).pipe(Effect.scoped, Effect.provide(Linux.layer))
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: (
  storages: readonly [DiskStorage.DiskStorage, ...ReadonlyArray<DiskStorage.DiskStorage>],
  options: BlockStoreOptions
) => Effect.Effect<BlockStore, InvalidOption | BufferUnavailable, Scope.Scope> = internal.make

/**
 * The store over the one `DiskStorage` of the context.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (
  options: BlockStoreOptions
): Layer.Layer<BlockStore, InvalidOption | BufferUnavailable, DiskStorage.DiskStorage> =>
  Layer.scoped(BlockStore, Effect.flatMap(DiskStorage.DiskStorage, (storage) => make([storage], options)))

/**
 * The store with a storage of its own, as the `DYN_KVBM_*` variables say: `DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS` blocks, or as many
 * as `DYN_KVBM_DISK_CACHE_GB` holds, else `size` bytes. With `directories`, one storage in each of them, which together have that size.
 *
 * @example
 * ```ts
 * import { BlockStore, Linux } from "effect-disk-storage"
 * import * as Layer from "effect/Layer"
 *
 * const StoreLayer = BlockStore.layerConfig({ blockBytes: 2 * 1024 * 1024, size: 20e9 })
 * const Live = Layer.provide(StoreLayer, Linux.layer)
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layerConfig = (
  options: BlockStoreOptions & {
    /** bytes, where no variable says */
    readonly size?: number | undefined
    /** Default: the one of `DYN_KVBM_DISK_CACHE_DIR`. */
    readonly directories?: readonly [string, ...ReadonlyArray<string>] | undefined
    /**
     * Where the blocks are kept over a restart, in place of every directory; the file is a little larger than the size, for their index. Say
     * what they are of with `content`.
     */
    readonly keepAt?: string | undefined
  }
): Layer.Layer<BlockStore, AcquireError | ConfigError.ConfigError, Syscalls | IoEngine> =>
  Layer.scoped(
    BlockStore,
    Effect.gen(function*() {
      // What is kept must not be lost to a bad option.
      yield* internal.resolve(options)
      const config: Config.Config<DiskStorage.DiskStorageOptions> = DiskStorageConfig.options({
        blockBytes: internal.wholePages(options.blockBytes),
        size: options.size
      })
      const storages = yield* internal.storages(yield* config, options)
      return yield* make(storages, options)
    })
  )
