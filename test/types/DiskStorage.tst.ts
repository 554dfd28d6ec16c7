import type * as FileSystem from "@effect/platform/FileSystem"
import type * as ConfigError from "effect/ConfigError"
import type * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import type * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import { describe, expect, it } from "tstyche"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DirectIo from "../../src/DirectIo.js"
import * as DiskAllocator from "../../src/DiskAllocator.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as DiskStorageConfig from "../../src/DiskStorageConfig.js"
import type * as Errors from "../../src/DiskStorageError.js"
import * as IoEngine from "../../src/IoEngine.js"
import * as IoUring from "../../src/IoUring.js"
import * as Linux from "../../src/Linux.js"
import * as LinuxAio from "../../src/LinuxAio.js"
import * as LinuxSyscalls from "../../src/LinuxSyscalls.js"
import * as NodeIo from "../../src/NodeIo.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"
import * as Syscalls from "../../src/Syscalls.js"

declare const storage: DiskStorage.DiskStorage
declare const buffer: AlignedBuffer.AlignedBuffer
declare const tag: Context.Tag<"Handle", { readonly handle: number }>
declare const acquire: Effect.Effect<{ readonly handle: number }, "refused", Scope.Scope | "Library">

type AcquireError =
  | Errors.InvalidOption
  | Errors.DirectoryUnusable
  | Errors.DirectoryUnsafe
  | Errors.MountMissing
  | Errors.WorkingDirectoryGone
  | Errors.CreateFailed
  | Errors.FileReplaced
  | Errors.DirectIoRefused
  | Errors.DirectIoUnavailable
  | Errors.InsufficientSpace
  | Errors.OutOfSpace
  | Errors.AllocationFailed
  | Errors.PrewriteRefused
  | Errors.IoStalled
  | Errors.BufferUnavailable

type OperationError =
  | Errors.StorageClosed
  | Errors.StorageDegraded
  | Errors.BufferBusy
  | Errors.IoFailed
  | Errors.IoStalled

type Kernel = Syscalls.Syscalls | IoEngine.IoEngine

describe("acquire", () => {
  it("needs the kernel and a Scope, and fails with what can fail", () => {
    expect(DiskStorage.make({ size: 1 })).type.toBe<
      Effect.Effect<DiskStorage.DiskStorage, AcquireError, Kernel | Scope.Scope>
    >()
    expect<Errors.AcquireError>().type.toBe<AcquireError>()
  })

  it("is a layer without the Scope", () => {
    expect(DiskStorage.layer({ size: 1 })).type.toBe<Layer.Layer<DiskStorage.DiskStorage, AcquireError, Kernel>>()
    expect(DiskStorage.layerConfig(DiskStorageConfig.options())).type.toBe<
      Layer.Layer<DiskStorage.DiskStorage, AcquireError | ConfigError.ConfigError, Kernel>
    >()
  })

  it("wants a size, and knows its options", () => {
    expect(DiskStorage.make).type.not.toBeCallableWith({})
    expect(DiskStorage.make).type.not.toBeCallableWith({ size: 1, directIo: "maybe" })
    expect(DiskStorage.make).type.toBeCallableWith({ size: 1, directory: undefined, earlyUnlink: true })
    expect(DiskStorage.make).type.toBeCallableWith({ size: 1, failureLimit: Infinity, retryAfter: "1 minute" })
    expect(DiskStorage.make).type.not.toBeCallableWith({ size: 1, retryAfter: "soon" })
  })

  it("from an allocator needs the Scope alone", () => {
    expect(DiskAllocator.make({ budget: 1 })).type.toBe<
      Effect.Effect<DiskAllocator.DiskAllocator, Errors.InvalidOption, Kernel>
    >()
    expect<DiskAllocator.DiskAllocator["allocate"]>().type.toBe<
      (
        options: DiskStorage.DiskStorageOptions
      ) => Effect.Effect<DiskStorage.DiskStorage, AcquireError | Errors.BudgetExceeded, Scope.Scope>
    >()
  })

  it("has a listener without a requirement", () => {
    expect(DiskStorage.ProgressListener).type.toBeAssignableTo<
      Effect.Effect<(progress: DiskStorage.Progress) => Effect.Effect<void>>
    >()
  })
})

describe("transfers", () => {
  it("of aligned memory need nothing, and fail exactly so", () => {
    type Transfer = Effect.Effect<
      void,
      OperationError | Errors.OutOfBounds | Errors.Misaligned | Errors.InvalidOption
    >
    expect(storage.read(0, buffer)).type.toBe<Transfer>()
    expect(storage.write(0, buffer)).type.toBe<Transfer>()
  })

  it("of aligned memory take no other memory", () => {
    expect(storage.read).type.not.toBeCallableWith(0, new Uint8Array(4096))
    expect(storage.write).type.not.toBeCallableWith(0, new Uint8Array(4096))
  })

  it("of bytes are never misaligned", () => {
    type Failure =
      | Errors.StorageClosed
      | Errors.StorageDegraded
      | Errors.OutOfBounds
      | Errors.InvalidOption
      | Errors.BufferUnavailable
      | Errors.IoFailed
      | Errors.IoStalled
    expect(storage.readBytes(0, 1)).type.toBe<Effect.Effect<Uint8Array, Failure>>()
    expect(storage.writeBytes(0, new Uint8Array(1))).type.toBe<Effect.Effect<void, Failure>>()
    expect(storage.sync).type.toBe<
      Effect.Effect<void, Errors.StorageClosed | Errors.StorageDegraded | Errors.IoFailed | Errors.IoStalled>
    >()
    expect(storage.stream({ offset: 0, length: 1 })).type.toBe<Stream.Stream<Uint8Array, Failure>>()
    expect(storage.sink(0)).type.toBe<Sink.Sink<number, Uint8Array, never, Failure>>()
  })

  it("in batches fail as a whole for what is no batch alone, and have a result for each", () => {
    type Results = IoEngine.Results<OperationError | Errors.OutOfBounds | Errors.Misaligned | Errors.InvalidOption>
    type Batch = Effect.Effect<Results, Errors.InvalidOption>
    expect(storage.readBatch([{ offset: 0, buffer }])).type.toBe<Batch>()
    expect(storage.writeBatch([{ offset: 0, buffer }])).type.toBe<Batch>()
  })
})

describe("the file", () => {
  it("is lent, and is no field", () => {
    expect(storage).type.not.toHaveProperty("fd")
    expect(storage.withFd((fd) => {
      expect(fd).type.toBe<number>()
      return acquire
    })).type.toBe<
      Effect.Effect<{ readonly handle: number }, "refused" | Errors.StorageClosed, Scope.Scope | "Library">
    >()
  })

  it("is unlinked and closed with what can fail", () => {
    expect(storage.unlinked).type.toBe<Effect.Effect<boolean>>()
    expect(storage.unlink).type.toBe<Effect.Effect<void, Errors.UnlinkFailed | Errors.StorageClosed>>()
    expect(storage.close).type.toBe<Effect.Effect<void, Errors.ReleaseFailed>>()
  })

  it("is kept with what can fail", () => {
    expect(storage.keep).type.toBe<Effect.Effect<void, Errors.KeepFailed | Errors.StorageClosed>>()
    expect(storage.keepAs).type.toBe<
      (mark: Uint8Array) => Effect.Effect<void, Errors.KeepFailed | Errors.StorageClosed | Errors.InvalidOption>
    >()
    expect(storage.keptAt).type.toBe<
      { readonly path: string; readonly takenUp: boolean; readonly mark: Uint8Array | undefined } | undefined
    >()
    expect(DiskStorage.make).type.toBeCallableWith({ size: 1, keepAt: "/cache/kept" })
  })
})

describe("how it fares", () => {
  it("is told without a failure", () => {
    expect(storage.health).type.toBe<Effect.Effect<DiskStorage.Health>>()
  })
})

describe("registrations", () => {
  it("take the Scope away and keep every other requirement", () => {
    type Failure = "refused" | Errors.DuplicateKey | Errors.StorageClosed | Errors.StorageUnlinked
    expect(storage.register(tag, acquire)).type.toBe<
      Effect.Effect<{ readonly handle: number }, Failure, "Library">
    >()
    expect(storage.registerThenUnlink(tag, acquire)).type.toBe<
      Effect.Effect<
        {
          readonly registration: { readonly handle: number }
          readonly unlink: Either.Either<void, Errors.UnlinkFailed>
        },
        Failure,
        "Library"
      >
    >()
  })

  it("are typed by their tag", () => {
    expect(storage.register).type.not.toBeCallableWith(tag, null)
    expect(storage.registration(tag)).type.toBe<
      Effect.Effect<Option.Option<{ readonly handle: number }>, Errors.StorageClosed>
    >()
    expect(storage.isRegistered(tag)).type.toBe<Effect.Effect<boolean, Errors.StorageClosed>>()
    expect(storage.deregister(tag)).type.toBe<Effect.Effect<boolean, Errors.StorageClosed>>()
  })
})

describe("the doctor", () => {
  it("fails only without a directory or memory, and needs the kernel, an engine and files", () => {
    expect(DirectIo.inspect("/")).type.toBe<
      Effect.Effect<
        DirectIo.DirectIoReport,
        Errors.DirectoryUnusable | Errors.BufferUnavailable | Errors.InvalidOption,
        Kernel | FileSystem.FileSystem
      >
    >()
  })

  it("maps a storage without the kernel, a path with it", () => {
    expect(DirectIo.extents(storage)).type.toBe<
      Effect.Effect<
        ReadonlyArray<DiskStorage.Extent>,
        Errors.StorageClosed | Errors.ExtentsUnavailable | Errors.InvalidOption
      >
    >()
    expect(DirectIo.extents("/file")).type.toBe<
      Effect.Effect<
        ReadonlyArray<DiskStorage.Extent>,
        Errors.ExtentsUnavailable | Errors.InvalidOption,
        Syscalls.Syscalls
      >
    >()
  })
})

describe("kernels and engines", () => {
  it("are layers that fail only where they can", () => {
    expect(LinuxSyscalls.layer).type.toBe<
      Layer.Layer<Syscalls.Syscalls, Errors.PlatformNotSupported | Errors.NativeModuleMissing>
    >()
    type Refused =
      | Errors.EngineUnavailable
      | Errors.PlatformNotSupported
      | Errors.NativeModuleMissing
      | Errors.InvalidOption
    expect(Linux.layer).type.toBe<Layer.Layer<Kernel, Refused | ConfigError.ConfigError>>()
    expect(Linux.layerWith({ engine: "aio" })).type.toBe<typeof Linux.layer>()
    expect(Linux.layerWith).type.not.toBeCallableWith({ engine: "fastest" })
    expect(IoUring.layer()).type.toBe<Layer.Layer<IoEngine.IoEngine, Refused>>()
    expect(LinuxAio.layer()).type.toBe<Layer.Layer<IoEngine.IoEngine, Refused>>()
    expect(NodeIo.layer()).type.toBe<Layer.Layer<IoEngine.IoEngine, Errors.InvalidOption>>()
    expect(SimulatedSyscalls.layerEngine()).type.toBe<
      Layer.Layer<IoEngine.IoEngine, Errors.InvalidOption, SimulatedSyscalls.SimulatedKernel>
    >()
    expect(IoEngine.layerSyscalls).type.toBe<Layer.Layer<IoEngine.IoEngine, never, Syscalls.Syscalls>>()
    expect(SimulatedSyscalls.layer()).type.toBe<
      Layer.Layer<Syscalls.Syscalls | SimulatedSyscalls.SimulatedKernel>
    >()
    expect(Syscalls.layerNoop({})).type.toBe<Layer.Layer<Syscalls.Syscalls>>()
  })

  it("fail with SyscallError alone", () => {
    expect<Effect.Effect.Error<ReturnType<Syscalls.Syscalls["fallocate"]>>>().type.toBe<Syscalls.SyscallError>()
  })

  it("hand out aligned memory with a typed failure", () => {
    expect(AlignedBuffer.make(1)).type.toBe<
      Effect.Effect<AlignedBuffer.AlignedBuffer, Errors.BufferUnavailable>
    >()
    expect(AlignedBuffer.slice(buffer, 0, 1)).type.toBe<
      Effect.Effect<AlignedBuffer.AlignedBuffer, Errors.OutOfBounds | Errors.Misaligned | Errors.InvalidOption>
    >()
    expect(AlignedBuffer.fromUint8Array(new Uint8Array(1))).type.toBe<
      Effect.Effect<AlignedBuffer.AlignedBuffer, Errors.ForeignMemory | Errors.Misaligned | Errors.InvalidOption>
    >()
    expect(AlignedBuffer.pool({ buffers: 1, byteLength: 1 })).type.toBe<
      Effect.Effect<AlignedBuffer.Pool, Errors.BufferUnavailable | Errors.InvalidOption, Scope.Scope>
    >()
  })
})
