import type * as FileSystem from "@effect/platform/FileSystem"
import type * as ConfigError from "effect/ConfigError"
import type * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { describe, expect, it } from "tstyche"
import type * as AlignedBuffer from "../../src/AlignedBuffer.js"
import type * as BlockStore from "../../src/BlockStore.js"
import * as CuFile from "../../src/CuFile.js"
import * as DeviceMemory from "../../src/DeviceMemory.js"
import * as DevicePath from "../../src/DevicePath.js"
import type * as DiskStorage from "../../src/DiskStorage.js"
import type * as Errors from "../../src/DiskStorageError.js"
import type * as IoEngine from "../../src/IoEngine.js"
import * as Nixl from "../../src/Nixl.js"
import type * as Syscalls from "../../src/Syscalls.js"

declare const storage: DiskStorage.DiskStorage
declare const store: BlockStore.BlockStore
declare const buffer: AlignedBuffer.AlignedBuffer
declare const memory: DeviceMemory.DeviceMemory
declare const region: DeviceMemory.DeviceRegion
declare const cuFile: CuFile.CuFile
declare const handle: CuFile.CuFileHandle
declare const nixl: Nixl.Nixl
declare const file: Nixl.File
declare const path: DevicePath.DevicePath
declare const blocks: DevicePath.DeviceBlocks

type CopyError =
  | Errors.CudaFailed
  | Errors.DeviceMemoryFreed
  | Errors.LengthMismatch
  | Errors.OutOfBounds
  | Errors.InvalidOption
type CuFileTransferError =
  | Errors.CuFileFailed
  | Errors.CuFileReleased
  | Errors.StorageClosed
  | Errors.OutOfBounds
  | Errors.DeviceMemoryFreed
type CuFileRegisterError =
  | Errors.CuFileFailed
  | Errors.CuFileReleased
  | Errors.DuplicateKey
  | Errors.StorageClosed
  | Errors.StorageUnlinked
type TransferError =
  | Errors.StorageClosed
  | Errors.StorageDegraded
  | Errors.BufferBusy
  | Errors.IoFailed
  | Errors.IoStalled
  | Errors.OutOfBounds
  | Errors.Misaligned
  | Errors.InvalidOption
type Unlinked<A> = { readonly registration: A; readonly unlink: Either.Either<void, Errors.UnlinkFailed> }

describe("device memory", () => {
  type Failure = Errors.CudaUnavailable | Errors.InvalidOption | ConfigError.ConfigError

  it("needs a Scope, and fails where there is no CUDA", () => {
    expect(DeviceMemory.make()).type.toBe<Effect.Effect<DeviceMemory.DeviceMemory, Failure, Scope.Scope>>()
    expect(DeviceMemory.layer()).type.toBe<Layer.Layer<DeviceMemory.DeviceMemory, Failure>>()
    expect(memory.allocate(1)).type.toBe<
      Effect.Effect<
        DeviceMemory.DeviceBuffer,
        Errors.CudaFailed | Errors.CudaUnavailable | Errors.InvalidOption,
        Scope.Scope
      >
    >()
    expect(memory.pin(buffer)).type.toBe<
      Effect.Effect<void, Errors.CudaFailed | Errors.CudaUnavailable, Scope.Scope>
    >()
  })

  it("copies whole regions, and says where it cannot", () => {
    expect(memory.copyToDevice(buffer, region)).type.toBe<Effect.Effect<void, CopyError | Errors.BufferBusy>>()
    expect(memory.copyToHost(region, buffer)).type.toBe<Effect.Effect<void, CopyError | Errors.BufferBusy>>()
    expect(memory.copyOnDevice(region, region)).type.toBe<Effect.Effect<void, CopyError>>()
    expect(memory.copyToDevice).type.not.toBeCallableWith(new Uint8Array(1), region)
  })

  it("is made by allocate alone", () => {
    expect<{ pointer: bigint; byteLength: number; device: DeviceMemory.Device }>().type.not.toBeAssignableTo<
      DeviceMemory.DeviceBuffer
    >()
  })
})

describe("cuFile", () => {
  it("needs device memory", () => {
    expect(CuFile.layer()).type.toBe<
      Layer.Layer<
        CuFile.CuFile,
        Errors.CuFileUnavailable | Errors.InvalidOption | ConfigError.ConfigError,
        DeviceMemory.DeviceMemory
      >
    >()
  })

  it("registers storages and memory, and moves what is registered", () => {
    expect(cuFile.register(storage)).type.toBe<Effect.Effect<CuFile.CuFileHandle, CuFileRegisterError>>()
    expect(cuFile.registerThenUnlink(storage)).type.toBe<
      Effect.Effect<Unlinked<CuFile.CuFileHandle>, CuFileRegisterError>
    >()
    expect(cuFile.registerBuffer(region)).type.toBe<
      Effect.Effect<
        void,
        Errors.CuFileFailed | Errors.CuFileReleased | Errors.DeviceMemoryFreed | Errors.OutOfBounds,
        Scope.Scope
      >
    >()
    expect(cuFile.read(handle, 0, region)).type.toBe<Effect.Effect<void, CuFileTransferError>>()
    expect(cuFile.writeBatch([{ handle, offset: 0, region }])).type.toBe<
      Effect.Effect<IoEngine.Results<CuFileTransferError>>
    >()
    expect(cuFile.read).type.not.toBeCallableWith(storage, 0, region)
  })
})

describe("NIXL", () => {
  type Failure =
    | Errors.NixlUnavailable
    | Errors.NixlFailed
    | Errors.InvalidOption
    | ConfigError.ConfigError
  type RegisterError =
    | Errors.NixlFailed
    | Errors.NixlClosed
    | Errors.DuplicateKey
    | Errors.StorageClosed
    | Errors.StorageUnlinked

  it("needs a Scope, and fails where there is no library or a backend cannot be made", () => {
    expect(Nixl.make()).type.toBe<Effect.Effect<Nixl.Nixl, Failure, Scope.Scope>>()
    expect(Nixl.layer()).type.toBe<Layer.Layer<Nixl.Nixl, Failure>>()
  })

  it("registers storages and memory, and moves what is registered", () => {
    expect(nixl.register(storage)).type.toBe<Effect.Effect<Nixl.File, RegisterError>>()
    expect(nixl.registerThenUnlink(storage)).type.toBe<Effect.Effect<Unlinked<Nixl.File>, RegisterError>>()
    expect(nixl.registerMemory(buffer)).type.toBe<
      Effect.Effect<
        Nixl.Memory,
        | Errors.NixlFailed
        | Errors.NixlClosed
        | Errors.NixlOverlap
        | Errors.InvalidOption
        | Errors.DeviceMemoryFreed
        | Errors.OutOfBounds,
        Scope.Scope
      >
    >()
    expect(nixl.transfer("read", file, [])).type.toBe<
      Effect.Effect<
        void,
        | Errors.NixlFailed
        | Errors.NixlAgentFailed
        | Errors.NixlUnconfirmed
        | Errors.NixlClosed
        | Errors.StorageClosed
        | Errors.OutOfBounds
        | Errors.Misaligned
        | Errors.BufferBusy
        | Errors.IoStalled
        | Errors.InvalidOption
      >
    >()
  })
})

describe("the path to a device", () => {
  type Failure =
    | Errors.DirectoryUnsafe
    | Errors.DirectoryUnusable
    | Errors.MountMissing
    | Errors.WorkingDirectoryGone
    | Errors.CreateFailed
    | Errors.BufferUnavailable
    | Errors.InvalidOption
    | ConfigError.ConfigError
  type Needs = Syscalls.Syscalls | IoEngine.IoEngine | FileSystem.FileSystem

  it("does not fail for want of a GPU", () => {
    expect(DevicePath.make()).type.toBe<Effect.Effect<DevicePath.DevicePath, Failure, Needs | Scope.Scope>>()
    expect(DevicePath.layer()).type.toBe<Layer.Layer<DevicePath.DevicePath, Failure, Needs>>()
    expect(DevicePath.make).type.not.toBeCallableWith({ order: ["unavailable"] })
  })

  it("fails a range as the storage, the copies or cuFile do", () => {
    expect(path.read(storage, 0, region)).type.toBe<
      Effect.Effect<
        void,
        TransferError | CopyError | CuFileTransferError | CuFileRegisterError | Errors.DevicePathUnavailable
      >
    >()
    expect(path.write(storage, 0, region)).type.toBe<ReturnType<typeof path.read>>()
  })

  it("fails each block by itself", () => {
    expect(path.blocks(store)).type.toBe<
      Effect.Effect<
        DevicePath.DeviceBlocks,
        | Errors.DevicePathUnavailable
        | Errors.BufferUnavailable
        | Errors.InvalidOption
        | Errors.CudaFailed
        | Errors.CudaUnavailable,
        Scope.Scope
      >
    >()
    expect(blocks.offload([{ hash: 1n, from: region }])).type.toBe<
      Effect.Effect<
        IoEngine.Results<
          | Errors.InvalidBlock
          | Errors.StoreFull
          | Errors.NoStorageLeft
          | Errors.StoreClosed
          | TransferError
          | CopyError
          | CuFileTransferError
          | CuFileRegisterError,
          BlockStore.Offloaded
        >
      >
    >()
    expect(blocks.onboard([{ hash: 1n, into: region }])).type.toBe<
      Effect.Effect<
        IoEngine.Results<
          | Errors.InvalidBlock
          | Errors.BlockNotFound
          | Errors.BlockCorrupted
          | Errors.StoreClosed
          | TransferError
          | CopyError
          | CuFileTransferError
          | CuFileRegisterError
        >
      >
    >()
  })
})
