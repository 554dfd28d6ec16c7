/**
 * NIXL, NVIDIA's transfer library, over its C API: storages and memory registered with an agent, and transfers between the two by one of
 * its backends for files, POSIX, GDS or GDS_MT.
 *
 * @since 0.1.0
 */
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { AlignedBuffer } from "./AlignedBuffer.js"
import type { DeviceBuffer, DeviceRegion } from "./DeviceMemory.js"
import type { DiskStorage } from "./DiskStorage.js"
import type {
  DeviceMemoryFreed,
  DuplicateKey,
  InvalidOption,
  NixlClosed,
  NixlFailed,
  NixlOverlap,
  NixlTransferError,
  NixlUnavailable,
  OutOfBounds,
  StorageClosed,
  StorageUnlinked,
  UnlinkFailed
} from "./DiskStorageError.js"
import * as internal from "./internal/nixl.js"

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
 * A backend of the agent: the name of a plugin, and its parameters, such as `{ thread_count: "8" }` of GDS_MT. GDS and
 * GDS_MT exclude each other.
 *
 * POSIX takes one of three queues by `use_uring`, `use_posix_aio` or `use_aio` (see `Queue`). Here the default is
 * io_uring, and POSIX AIO where NIXL has no io_uring. NIXL's own default, AIO, is used only if named. At most
 * `ios_pool_size` pieces are in flight, 1024 by default.
 *
 * @since 0.1.0
 * @category models
 */
export interface Backend {
  readonly name: "POSIX" | "GDS" | "GDS_MT" | (string & {})
  readonly parameters?: { readonly [key: string]: string } | undefined
}

/**
 * The queue of the backend POSIX, as NIXL 1.0 to 1.4 behave. `io_uring` reports errors, and counts a short transfer as
 * done. `posix_aio` reports both, and moves the pieces of a file one after the other. `aio` reports neither.
 *
 * @since 0.1.0
 * @category models
 */
export type Queue = "io_uring" | "posix_aio" | "aio"

/**
 * How a transfer of host memory is confirmed after NIXL has reported it as done.
 *
 * - `none`: not at all.
 * - `ends`: the last block of each piece that was written is read again and compared, and the end of the file is
 *   compared with each piece that was read. It finds short transfers, unless that block held the same bytes before.
 * - `read-back`: all bytes are read again and compared. It costs as much as the transfer, or more.
 *
 * @since 0.1.0
 * @category models
 */
export type Confirmation = "none" | "ends" | "read-back"

/**
 * @since 0.1.0
 * @category models
 */
export interface NixlOptions {
  /** Path or soname of the library. Default: `DISK_STORAGE_NIXL_LIBRARY`, else `libnixl_capi.so`. */
  readonly library?: string | undefined
  /** The name of the agent. Default `effect-disk-storage`. */
  readonly agentName?: string | undefined
  /** In the order in which they are preferred. Default POSIX alone. */
  readonly backends?: ReadonlyArray<Backend> | undefined
  /**
   * When NIXL is asked whether a transfer has ended: four times right after it was posted, then after the delays of this
   * schedule, 1 ms at least; when it has no more, every 16 ms. Default: from 1 ms on, half as much more each time, up to 16 ms.
   */
  readonly completion?: Schedule.Schedule<unknown> | undefined
  /**
   * Transfer requests in flight; others wait. Default 64, and 1 with the backend POSIX: after an I/O error all of its
   * requests in flight fail. The pieces of one request are moved side by side there.
   */
  readonly maxInFlight?: number | undefined
  /**
   * How transfers of host memory are confirmed. Default `ends` with the queue io_uring, `read-back` with AIO, `none` with
   * POSIX AIO and without the backend POSIX. Device memory is not confirmed: use a checksum.
   */
  readonly confirm?: Confirmation | undefined
  /**
   * After this time without an answer a transfer fails with `IoStalled`. Its request, its registrations and its memory stay with the
   * service until it ends. Off by default: a slow disk is no broken one.
   */
  readonly stallTimeout?: Duration.DurationInput | undefined
}

/**
 * A storage that is registered, until its registration or its storage is released, or the service is.
 *
 * @since 0.1.0
 * @category models
 */
export interface File {
  readonly [internal.FileTypeId]: typeof internal.FileTypeId
  readonly path: string
  /** bytes, those of the storage */
  readonly size: number
}

/**
 * The tag that a storage keeps its registration under.
 *
 * @since 0.1.0
 * @category tags
 */
export const File: Context.Tag<File, File> = internal.File

/**
 * Device memory of somebody else: its address there, its bytes, and the ordinal of the device. It has to stay allocated while it is
 * registered.
 *
 * @since 0.1.0
 * @category models
 */
export interface DeviceRange {
  readonly pointer: bigint
  readonly byteLength: number
  readonly device: number
}

/**
 * Memory that is registered, until its Scope ends, or the service's.
 *
 * @since 0.1.0
 * @category models
 */
export interface Memory {
  readonly [internal.MemoryTypeId]: typeof internal.MemoryTypeId
  readonly kind: "host" | "device"
  readonly byteLength: number
}

/**
 * One of a batch: `length` bytes (by default up to the end of `memory`) of `memory` from `start` (default 0) on, at `offset` of the file.
 *
 * @since 0.1.0
 * @category models
 */
export interface Piece {
  /** bytes, a multiple of the storage's `alignment.offset` */
  readonly offset: number
  readonly memory: Memory
  readonly start?: number | undefined
  readonly length?: number | undefined
}

/**
 * An agent with its backends.
 *
 * A transfer holds its storage open, as `withFd` does: a release waits for it. Once posted it is waited for, also by an
 * interruption, and its host memory is busy until it has ended; `stallTimeout` bounds that. Offsets, lengths and addresses
 * of host memory are multiples of the storage's `alignment`, since a backend need not report an I/O that the kernel
 * refuses. A piece above 1 GiB is split, since Linux moves less than 2 GiB at once.
 *
 * After a transfer of host memory failed, an agent with the backend POSIX refuses further ones with `NixlAgentFailed`:
 * its queues repeat the error for later transfers (NIXL 1.0 to 1.4). The memory of the failed transfer stays busy until
 * the agent ends. Make a new agent.
 *
 * A status proves no more than the queue reports: see `Queue`, and `confirm` for what is compared. A checksum proves the
 * content.
 *
 * @since 0.1.0
 * @category models
 */
export interface Nixl {
  readonly [TypeId]: TypeId
  readonly library: string
  readonly agentName: string
  /** The plugins that NIXL found, by name. */
  readonly plugins: ReadonlyArray<string>
  /** The backends of this agent, by name. */
  readonly backends: ReadonlyArray<string>
  /** The queue of the backend POSIX; undefined without it. */
  readonly queue: Queue | undefined
  readonly confirm: Confirmation
  /**
   * Registers the storage with every backend that takes files, under the tag `File`; it has to be linked. NIXL is given a duplicate of the
   * descriptor, so that its number is nobody else's for as long as NIXL may use it. What the end of the registration fails with is told by
   * `ReleaseFailed` of the storage; `deregister` of the storage dies with it. The duplicate stays open then until the agent is gone.
   */
  readonly register: (
    storage: DiskStorage
  ) => Effect.Effect<File, NixlFailed | NixlClosed | DuplicateKey | StorageClosed | StorageUnlinked>
  /** Registers it, then unlinks it: nothing is left on the disk. When the registration fails, the storage is as it was. */
  readonly registerThenUnlink: (
    storage: DiskStorage
  ) => Effect.Effect<
    { readonly registration: File; readonly unlink: Either.Either<void, UnlinkFailed> },
    NixlFailed | NixlClosed | DuplicateKey | StorageClosed | StorageUnlinked
  >
  /**
   * Registers host or device memory with every backend that takes its kind. The end of the Scope, or of a `DeviceBuffer`, waits for
   * transfers that use it; a failure then is logged. Memory that overlaps registered memory of this agent is refused with
   * `NixlOverlap`. Exactly the same memory can be registered twice, where the backends take it.
   */
  readonly registerMemory: (
    memory: AlignedBuffer | DeviceBuffer | DeviceRegion | DeviceRange
  ) => Effect.Effect<
    Memory,
    NixlFailed | NixlClosed | NixlOverlap | InvalidOption | DeviceMemoryFreed | OutOfBounds,
    Scope.Scope
  >
  /** Reads `length` bytes (default: all of `into` from `start` on) at `offset` of the file. */
  readonly read: (
    file: File,
    offset: number,
    into: Memory,
    part?: { readonly start?: number | undefined; readonly length?: number | undefined }
  ) => Effect.Effect<void, NixlTransferError>
  /** Writes as `read` reads. */
  readonly write: (
    file: File,
    offset: number,
    from: Memory,
    part?: { readonly start?: number | undefined; readonly length?: number | undefined }
  ) => Effect.Effect<void, NixlTransferError>
  /**
   * Many pieces as one request, of host memory or of device memory. When it fails, none is known to have been moved. Some
   * can still be on their way then, unknown to NIXL: see the rules of a failed agent above.
   */
  readonly transfer: (
    operation: "read" | "write",
    file: File,
    pieces: ReadonlyArray<Piece>
  ) => Effect.Effect<void, NixlTransferError>
}

/**
 * @since 0.1.0
 * @category tags
 */
export const Nixl: Context.Tag<Nixl, Nixl> = Context.GenericTag<Nixl>("effect-disk-storage/Nixl")

/**
 * Loads the library and makes an agent and its backends. The end of the Scope waits for transfers, deregisters what is registered, and
 * destroys the backends and the agent, newest first. It also waits for the I/O of transfers that failed, once for
 * `stallTimeout` at most; without `stallTimeout` that wait has no end. Where I/O has not ended, or nothing shows its end, the agent, its memory and its requests are left to the
 * process, and that is logged.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: (
  options?: NixlOptions
) => Effect.Effect<
  Nixl,
  NixlUnavailable | NixlFailed | InvalidOption | ConfigError.ConfigError,
  Scope.Scope
> = internal.make

/**
 * The agent as a layer. Fails with `NixlUnavailable` where there is no library of NIXL, and with `NixlFailed` where a backend cannot be made.
 *
 * @example
 * ```ts
 * import { AlignedBuffer, DiskStorage, Linux, Nixl } from "effect-disk-storage"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const nixl = yield* Nixl.Nixl
 *   const storage = yield* DiskStorage.make({ size: 256 * 1024 * 1024 })
 *   const { registration: file } = yield* nixl.registerThenUnlink(storage)
 *   const block = yield* nixl.registerMemory(yield* AlignedBuffer.make(1024 * 1024))
 *   yield* nixl.write(file, 0, block)
 *   yield* nixl.read(file, 0, block)
 * }).pipe(Effect.scoped, Effect.provide([Linux.layer, Nixl.layer({ backends: [{ name: "GDS_MT" }] })]))
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (
  options?: NixlOptions
): Layer.Layer<Nixl, NixlUnavailable | NixlFailed | InvalidOption | ConfigError.ConfigError> =>
  Layer.scoped(Nixl, make(options))
