/**
 * GPUDirect Storage: bytes go between a storage and the memory of a GPU, through NVIDIA's libcufile, which is loaded when the layer is
 * built.
 *
 * @since 0.1.0
 */
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { DeviceBuffer, DeviceMemory, DeviceRegion } from "./DeviceMemory.js"
import type { DiskStorage } from "./DiskStorage.js"
import type {
  CuFileFailed,
  CuFileRegisterError,
  CuFileReleased,
  CuFileTransferError,
  CuFileUnavailable,
  DeviceMemoryFreed,
  InvalidOption,
  OutOfBounds,
  UnlinkFailed
} from "./DiskStorageError.js"
import * as internal from "./internal/cuFile.js"
import type { Results } from "./IoEngine.js"

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
 * @since 0.1.0
 * @category type ids
 */
export const HandleTypeId: typeof internal.HandleTypeId = internal.HandleTypeId

/**
 * @since 0.1.0
 * @category type ids
 */
export type HandleTypeId = typeof HandleTypeId

/**
 * What the driver says of itself (`CUfileDrvProps_t`). `nvidiaFs` is the version of the kernel module, 0.0 without one; `support` names the
 * filesystems and devices that there is a direct path to, `nvmeP2p` that of PCI peer-to-peer DMA.
 *
 * @since 0.1.0
 * @category models
 */
export interface CuFileProperties {
  readonly nvidiaFs: { readonly major: number; readonly minor: number }
  readonly support: ReadonlyArray<
    | "lustre"
    | "wekafs"
    | "nfs"
    | "gpfs"
    | "nvme"
    | "nvmeof"
    | "scsi"
    | "scaleflux"
    | "nvmesh"
    | "beegfs"
    | "nvmeP2p"
  >
  readonly control: ReadonlyArray<"pollMode" | "allowCompatMode">
  readonly features: ReadonlyArray<"dynamicRouting" | "batchIo" | "streams" | "parallelIo">
  readonly pollThresholdKiB: number
  readonly maxDirectIoKiB: number
  readonly maxDeviceCacheKiB: number
  readonly perBufferCacheKiB: number
  readonly maxPinnedKiB: number
  /** The most transfers of one batch. */
  readonly maxBatch: number
  readonly batchTimeoutMillis: number
}

/**
 * How the driver moves bytes, as far as it can be known without moving any:
 *
 * - `direct`: nvidia-fs is loaded, and the driver has a direct path to some filesystem or device.
 * - `p2pdma`: nvidia-fs is not loaded, and the driver has PCI peer-to-peer DMA to NVMe.
 * - `compat`: it copies through CPU memory: that is forced, or there is neither of the above and it is allowed.
 * - `unknown`: nothing of this follows from what the driver and the kernel say, or they contradict each other.
 *
 * It is the driver's, and not a file's: where compatibility mode is allowed (`control`), files without a direct path are copied, and
 * cuFile does not say so. The doctor (`DirectIo.inspect`) looks at a directory.
 *
 * @since 0.1.0
 * @category models
 */
export type CuFileMode = "direct" | "p2pdma" | "compat" | "unknown"

/**
 * A storage that is registered with cuFile, until it is deregistered or released, or the layer ends. Made by `register` alone.
 *
 * @since 0.1.0
 * @category models
 */
export interface CuFileHandle {
  readonly [HandleTypeId]: HandleTypeId
  /** Of the storage. */
  readonly path: string
  /** Of the storage, in bytes. */
  readonly size: number
}

/**
 * The tag under which `register` keeps a handle on its storage: `storage.deregister(CuFile.CuFileHandle)`.
 *
 * @since 0.1.0
 * @category tags
 */
export const CuFileHandle: Context.Tag<CuFileHandle, CuFileHandle> = internal.CuFileHandle

/**
 * One of a batch: all of `region`, at `offset` (bytes) of the storage.
 *
 * @since 0.1.0
 * @category models
 */
export interface CuFileTransfer {
  readonly handle: CuFileHandle
  readonly offset: number
  readonly region: DeviceRegion
}

/**
 * The open driver. Its calls block, each on a thread of its own; a call that has begun is waited for, whatever is interrupted. After the end
 * of its Scope everything fails with `CuFileReleased`.
 *
 * @since 0.1.0
 * @category models
 */
export interface CuFile {
  readonly [TypeId]: TypeId
  /** The library that was loaded. */
  readonly library: string
  /** Of the library, such as `1.15`; undefined where it does not tell. */
  readonly version: string | undefined
  readonly properties: CuFileProperties
  readonly mode: CuFileMode
  /** What `mode` was concluded from. */
  readonly modeReason: string

  /**
   * Registers the storage, as `storage.register` does: the handle is deregistered before the file is unlinked or closed, and waits for the
   * transfers that use it. It is registered by a descriptor of its own, opened through /proc/self/fd without O_NOFOLLOW, which the driver
   * refuses. Fails with `StorageUnlinked` when the file has no name any more, and with `CuFileFailed` when the driver refuses
   * it: 5020 where it needs O_DIRECT, 5008 or 5030 on filesystems without support. The storage is left as it was then. Acquiring is
   * not interruptible.
   */
  readonly register: (storage: DiskStorage) => Effect.Effect<CuFileHandle, CuFileRegisterError>
  /**
   * The same, then unlinks, which is the order to prefer: nothing is left of the file then, whatever happens. When the registration fails
   * the file is still linked; a failed unlink leaves the registration in place and is told in `unlink`.
   */
  readonly registerThenUnlink: (storage: DiskStorage) => Effect.Effect<
    { readonly registration: CuFileHandle; readonly unlink: Either.Either<void, UnlinkFailed> },
    CuFileRegisterError
  >
  /**
   * Registers device memory until the Scope ends, or the memory's own, which pins it and spares each transfer within it the bounce buffers
   * of the library.
   */
  readonly registerBuffer: (
    memory: DeviceBuffer | DeviceRegion
  ) => Effect.Effect<void, CuFileFailed | CuFileReleased | DeviceMemoryFreed | OutOfBounds, Scope.Scope>

  /**
   * Reads `into.byteLength` bytes at `offset` (bytes) straight into device memory. Any offset and length; multiples of 4096 are faster.
   * A short transfer is continued, one of nothing fails. The storage, the handle and the memory are held until it ends.
   */
  readonly read: (
    handle: CuFileHandle,
    offset: number,
    into: DeviceRegion
  ) => Effect.Effect<void, CuFileTransferError>
  /** Writes all of `from` at `offset`, as `read` reads. */
  readonly write: (
    handle: CuFileHandle,
    offset: number,
    from: DeviceRegion
  ) => Effect.Effect<void, CuFileTransferError>
  /**
   * Many reads at once, in any order, with a result for each: none hides what became of another. By the driver's own batches where it has
   * them (`features`), else by single calls on all of the threads. Once submitted a batch is waited for.
   */
  readonly readBatch: (transfers: ReadonlyArray<CuFileTransfer>) => Effect.Effect<Results<CuFileTransferError>>
  readonly writeBatch: (transfers: ReadonlyArray<CuFileTransfer>) => Effect.Effect<Results<CuFileTransferError>>
}

/**
 * @since 0.1.0
 * @category tags
 */
export const CuFile: Context.Tag<CuFile, CuFile> = Context.GenericTag<CuFile>("effect-disk-storage/CuFile")

/**
 * @since 0.1.0
 * @category models
 */
export interface CuFileOptions {
  /** Path or soname of the library. Default: `DISK_STORAGE_CUFILE_LIBRARY`, else `libcufile.so.0`. */
  readonly library?: string | undefined
  /** Threads that call it, and so transfers that are in it at once: a whole number from 1 to 64. Default 4. */
  readonly threads?: number | undefined
}

/**
 * Loads the library, makes the context of `DeviceMemory` current on its threads and opens the driver. The end of the Scope waits for the
 * transfers in flight, deregisters what is still registered and closes the driver; storages live on.
 *
 * Fails with `CuFileUnavailable` where the library does not load or the driver does not open. One layer for a process: the driver is shared by
 * all of it.
 *
 * @example
 * ```ts
 * import { CuFile, DeviceMemory, DiskStorage } from "effect-disk-storage"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const cuFile = yield* CuFile.CuFile
 *   const memory = yield* DeviceMemory.DeviceMemory
 *   const storage = yield* DiskStorage.DiskStorage
 *   const { registration } = yield* cuFile.registerThenUnlink(storage)
 *   const buffer = yield* memory.allocate(1024 * 1024)
 *   yield* cuFile.registerBuffer(buffer)
 *   yield* cuFile.write(registration, 0, { buffer, offset: 0, byteLength: buffer.byteLength })
 * })
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (
  options: CuFileOptions = {}
): Layer.Layer<CuFile, CuFileUnavailable | InvalidOption | ConfigError.ConfigError, DeviceMemory> =>
  Layer.scoped(CuFile, internal.make(options))
