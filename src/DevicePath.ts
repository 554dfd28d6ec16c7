/**
 * How bytes move between a storage and the memory of a GPU: decided once, with reasons, by the doctor and by a real transfer, and then
 * used for ranges of a storage and for the blocks of a `BlockStore`.
 *
 * @since 0.1.0
 */
import type * as FileSystem from "@effect/platform/FileSystem"
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { BlockStore, Offloaded, SequenceHash } from "./BlockStore.js"
import type { CuFile, CuFileOptions } from "./CuFile.js"
import type { DeviceMemory, DeviceMemoryOptions, DeviceRegion } from "./DeviceMemory.js"
import type { DriverAnswer } from "./DirectIo.js"
import type { DiskStorage } from "./DiskStorage.js"
import type {
  BufferUnavailable,
  CopyError,
  CreateFailed,
  CudaFailed,
  CudaUnavailable,
  CuFileRegisterError,
  CuFileTransferError,
  DevicePathUnavailable,
  DeviceTransferError,
  DirectoryUnsafe,
  DirectoryUnusable,
  InvalidOption,
  MountMissing,
  OffloadError,
  OnboardError,
  WorkingDirectoryGone
} from "./DiskStorageError.js"
import * as internal from "./internal/devicePath.js"
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
 * - `gds`: disk → device by cuFile, without a copy in host memory.
 * - `gds-compat`: by cuFile, which copies through host memory of its own (compatibility mode).
 * - `host-staged`: disk → pinned host memory → device, by the engine and by copies of the CUDA driver, side by side.
 * - `unavailable`: no bytes reach a device from here.
 *
 * @since 0.1.0
 * @category models
 */
export type Kind = "gds" | "gds-compat" | "host-staged" | "unavailable"

/**
 * A block whose bytes are in device memory: a region of exactly the store's `blockBytes`, which belongs to the store until the batch ends.
 *
 * @since 0.1.0
 * @category models
 */
export interface DeviceBlock {
  readonly hash: SequenceHash
  readonly from: DeviceRegion
  /** As in `BlockStore.Block`. */
  readonly priority?: number | undefined
}

/**
 * Where in device memory a block is to be onboarded: exactly `blockBytes` bytes. When it fails, `into` holds what it held, or anything.
 *
 * @since 0.1.0
 * @category models
 */
export interface DeviceDestination {
  readonly hash: SequenceHash
  readonly into: DeviceRegion
}

/**
 * The blocks of one store, in device memory.
 *
 * Those of a store with checksums pass through pinned host memory, on every path, since the checksum is computed and compared there: a
 * transfer that failed, was short or does not verify is never a block, nor reaches the device. Those of a store without (`checksum: "off"`)
 * go by the path that was decided, with cuFile straight between disk and device: one that failed or was short is never a block, and nobody
 * looks at the bytes. cuFile has no `stallTimeout`: a call that does not return is waited for, by the batch and by the end of every Scope.
 *
 * @since 0.1.0
 * @category models
 */
export interface DeviceBlocks {
  /** How they go, and why. */
  readonly kind: Exclude<Kind, "unavailable">
  readonly reason: string
  /** As `BlockStore.offload`. A block that is there already is not copied. */
  readonly offload: (
    blocks: ReadonlyArray<DeviceBlock>
  ) => Effect.Effect<Results<OffloadError | CopyError | CuFileTransferError | CuFileRegisterError, Offloaded>>
  /** As `BlockStore.onboard`. */
  readonly onboard: (
    destinations: ReadonlyArray<DeviceDestination>
  ) => Effect.Effect<Results<OnboardError | CopyError | CuFileTransferError | CuFileRegisterError>>
}

/**
 * @since 0.1.0
 * @category models
 */
export interface DevicePath {
  readonly [TypeId]: TypeId
  readonly kind: Kind
  /** Why it is this one: what was seen, the decisive first. */
  readonly reasons: ReadonlyArray<string>
  /** What would make a better one possible; empty where there is none, or nothing is known. */
  readonly improvements: ReadonlyArray<string>
  /** Absent where the path is `unavailable`. */
  readonly memory: Option.Option<DeviceMemory>
  /** Absent where it is not to be had, or was not wanted; it may be there on a path that does not use it. */
  readonly cuFile: Option.Option<CuFile>
  /** What `cuFileDriverOpen` answered; absent where it was not called. */
  readonly driverAnswer: Option.Option<DriverAnswer>
  /**
   * Writes a region at `offset` of a storage; offset and length are multiples of `storage.alignment.offset`. Fails with the first piece that
   * failed; the range holds anything then. On the paths of cuFile the storage is registered with the first transfer, unless it is: it must
   * still have its name then.
   */
  readonly write: (
    storage: DiskStorage,
    offset: number,
    from: DeviceRegion
  ) => Effect.Effect<void, DeviceTransferError | DevicePathUnavailable>
  /** Reads a range of a storage into a region, whose content is anything where that fails. */
  readonly read: (
    storage: DiskStorage,
    offset: number,
    into: DeviceRegion
  ) => Effect.Effect<void, DeviceTransferError | DevicePathUnavailable>
  /**
   * Device memory in front of a store, `depth` blocks (default 16) under way at a time, for as long as the Scope lives: with a pinned buffer
   * for each where they pass through host memory, else with the storages registered with cuFile, which have to be linked for that. Where a
   * storage cannot be registered, they pass through host memory; that is logged, and told by `reason`.
   */
  readonly blocks: (
    store: BlockStore,
    options?: { readonly depth?: number | undefined }
  ) => Effect.Effect<
    DeviceBlocks,
    DevicePathUnavailable | BufferUnavailable | InvalidOption | CudaFailed | CudaUnavailable,
    Scope.Scope
  >
}

/**
 * @since 0.1.0
 * @category tags
 */
export const DevicePath: Context.Tag<DevicePath, DevicePath> = Context.GenericTag<DevicePath>(
  "effect-disk-storage/DevicePath"
)

/**
 * @since 0.1.0
 * @category models
 */
export interface DevicePathOptions {
  /**
   * Where the storages are. Default: what `DYN_KVBM_DISK_CACHE_DIR` says, which is `/tmp/` when unset; it must lie on the mount that
   * `DISK_STORAGE_REQUIRE_MOUNT` names, where that is set.
   */
  readonly directory?: string | undefined
  readonly memory?: DeviceMemoryOptions | undefined
  /** `false`: without cuFile. */
  readonly cuFile?: CuFileOptions | false | undefined
  /**
   * The paths to try, the first that works is taken. Default: `gds`, `host-staged`, `gds-compat`, since where cuFile copies through host
   * memory anyway, the engine keeps more transfers in flight.
   */
  readonly order?: ReadonlyArray<Exclude<Kind, "unavailable">> | undefined
}

/**
 * Decides the path for storages in a directory: by what `DirectIo.inspect` sees, and by 1 MiB that goes from device memory to a file of its
 * own there and back, and is compared. The decision is logged, as a warning where there is no path. It does not fail for want of a GPU: the
 * path is `unavailable` then, and says why.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: (
  options?: DevicePathOptions
) => Effect.Effect<
  DevicePath,
  | DirectoryUnsafe
  | DirectoryUnusable
  | MountMissing
  | WorkingDirectoryGone
  | CreateFailed
  | BufferUnavailable
  | InvalidOption
  | ConfigError.ConfigError,
  Syscalls | IoEngine | FileSystem.FileSystem | Scope.Scope
> = (options = {}) => internal.make(options)

/**
 * `make` as a layer.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (
  options?: DevicePathOptions
): Layer.Layer<
  DevicePath,
  | DirectoryUnsafe
  | DirectoryUnusable
  | MountMissing
  | WorkingDirectoryGone
  | CreateFailed
  | BufferUnavailable
  | InvalidOption
  | ConfigError.ConfigError,
  Syscalls | IoEngine | FileSystem.FileSystem
> => Layer.scoped(DevicePath, make(options))
