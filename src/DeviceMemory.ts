/**
 * Memory of a GPU, through the CUDA driver library alone: allocations with a lifetime, host memory that is page-locked for the device, and
 * copies between the two. One service is one device.
 *
 * The library's calls run on threads of their own, on each of which the device's primary context is current: the one that the CUDA runtime
 * and other libraries of this process use too.
 *
 * @since 0.1.0
 */
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { AlignedBuffer } from "./AlignedBuffer.js"
import type {
  BufferBusy,
  CopyError,
  CudaFailed,
  CudaUnavailable,
  DeviceMemoryFreed,
  InvalidOption,
  OutOfBounds
} from "./DiskStorageError.js"
import * as internal from "./internal/deviceMemory.js"

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
export const BufferTypeId: typeof internal.BufferTypeId = internal.BufferTypeId

/**
 * @since 0.1.0
 * @category type ids
 */
export type BufferTypeId = typeof BufferTypeId

/**
 * @since 0.1.0
 * @category models
 */
export interface Device {
  /** Counted by the driver from 0, among the devices that `CUDA_VISIBLE_DEVICES` leaves. */
  readonly ordinal: number
  /** The `CUdevice`. */
  readonly handle: number
  readonly name: string
  /** bytes of its memory */
  readonly bytes: number
  /** As in /sys/bus/pci/devices: `0000:a1:00.0`. */
  readonly pciAddress: string
}

/**
 * Memory of a device, until the Scope ends that it was allocated in. Made by `allocate` alone.
 *
 * `pointer`, the `CUdeviceptr` of its first byte, is for C libraries, and names somebody else's memory after that: `withPointer` keeps the
 * memory for as long as it is used.
 *
 * @since 0.1.0
 * @category models
 */
export interface DeviceBuffer {
  readonly [BufferTypeId]: BufferTypeId
  readonly pointer: bigint
  readonly byteLength: number
  readonly device: Device
}

/**
 * Part of a `DeviceBuffer`; `offset` and `byteLength` are bytes, of any alignment. It is checked where it is used.
 *
 * @since 0.1.0
 * @category models
 */
export interface DeviceRegion {
  readonly buffer: DeviceBuffer
  readonly offset: number
  readonly byteLength: number
}

/**
 * @since 0.1.0
 * @category models
 */
export interface DeviceMemory {
  readonly [TypeId]: TypeId
  /** Path or soname of the driver library that is in use. */
  readonly library: string
  /** The newest CUDA that the driver supports: 1000 × major + 10 × minor. */
  readonly driverVersion: number
  readonly devices: ReadonlyArray<Device>
  /** The one in use. */
  readonly device: Device
  /** Its `CUcontext`, for C libraries on threads of others, which make it current there. Valid until the end of the service. */
  readonly context: bigint
  /**
   * Memory of the device, not cleared. The end of the Scope waits for the copies in flight and frees it; after that it fails with
   * `DeviceMemoryFreed`. The end of the service frees what is left. Copies that touch it are over when they end, whoever looks next
   * (`CU_POINTER_ATTRIBUTE_SYNC_MEMOPS`).
   */
  readonly allocate: (
    byteLength: number
  ) => Effect.Effect<DeviceBuffer, CudaFailed | CudaUnavailable | InvalidOption, Scope.Scope>
  /**
   * Page-locks the memory of `buffer`, whole pages of it, until the Scope ends, so that the device reaches it without a copy in between. The
   * end waits for the copies in flight from and to it. Memory that is pinned already, in part or all of it, fails with `CudaFailed` (712).
   * Pin a pool's buffers once, and copy within one pinned buffer at a time: the driver refuses what is pinned in part.
   */
  readonly pin: (buffer: AlignedBuffer) => Effect.Effect<void, CudaFailed | CudaUnavailable, Scope.Scope>
  /**
   * Copies all of `from` to `to`, which is as long. `from` is in use as by a write to a disk meanwhile, and fails with `BufferBusy` when
   * something is being read into it. Waiting for a thread can be interrupted; a copy that has begun is waited for.
   */
  readonly copyToDevice: (from: AlignedBuffer, to: DeviceRegion) => Effect.Effect<void, CopyError | BufferBusy>
  /** Copies all of `from` into `into`, which is as long, and in use as by a read from a disk meanwhile. As `copyToDevice` otherwise. */
  readonly copyToHost: (from: DeviceRegion, into: AlignedBuffer) => Effect.Effect<void, CopyError | BufferBusy>
  /** Copies all of `from` to `to`, which is as long and does not overlap with it. As `copyToDevice` otherwise. */
  readonly copyOnDevice: (from: DeviceRegion, to: DeviceRegion) => Effect.Effect<void, CopyError>
}

/**
 * @since 0.1.0
 * @category tags
 */
export const DeviceMemory: Context.Tag<DeviceMemory, DeviceMemory> = Context.GenericTag<DeviceMemory>(
  "effect-disk-storage/DeviceMemory"
)

/**
 * The bytes of `buffer` from `offset` on, all of them unless `byteLength` is given. Fails with `OutOfBounds`.
 *
 * @example
 * ```ts
 * import { AlignedBuffer, DeviceMemory } from "effect-disk-storage"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const memory = yield* DeviceMemory.DeviceMemory
 *   const blocks = yield* memory.allocate(64 * 1024 * 1024)
 *   const staging = yield* AlignedBuffer.make(1024 * 1024)
 *   yield* memory.pin(staging)
 *   const second = yield* DeviceMemory.region(blocks, staging.byteLength, staging.byteLength)
 *   yield* memory.copyToDevice(staging, second)
 * }))
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const region: (
  buffer: DeviceBuffer,
  offset?: number,
  byteLength?: number
) => Effect.Effect<DeviceRegion, OutOfBounds> = internal.region

/**
 * Lends the address of `region` to `use`, and keeps its memory from being freed until `use` has ended. It has to have ended before the
 * Scope of the memory can: closing that inside `use` waits for ever.
 *
 * @since 0.1.0
 * @category combinators
 */
export const withPointer: <A, E, R>(
  region: DeviceRegion,
  use: (pointer: bigint) => Effect.Effect<A, E, R>
) => Effect.Effect<A, E | DeviceMemoryFreed | OutOfBounds, R> = internal.withPointer

/**
 * @since 0.1.0
 * @category models
 */
export interface DeviceMemoryOptions {
  /** The ordinal of the device. Default 0. */
  readonly device?: number | undefined
  /** Path or soname of the driver library. Default: what `DISK_STORAGE_CUDA_LIBRARY` says, which is `libcuda.so.1` when unset. */
  readonly library?: string | undefined
  /** How many calls may be in the library at a time, each on a thread of its own. Default 2. */
  readonly threads?: number | undefined
}

/**
 * Retains the primary context of the device while the Scope lives. Fails with `CudaUnavailable`, which says why and what to do, where the
 * library cannot be loaded, finds no device or does not fit the kernel module.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: (
  options?: DeviceMemoryOptions
) => Effect.Effect<DeviceMemory, CudaUnavailable | InvalidOption | ConfigError.ConfigError, Scope.Scope> = (
  options = {}
) => internal.make(options)

/**
 * `make` as a layer.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (
  options?: DeviceMemoryOptions
): Layer.Layer<DeviceMemory, CudaUnavailable | InvalidOption | ConfigError.ConfigError> =>
  Layer.scoped(DeviceMemory, make(options))
