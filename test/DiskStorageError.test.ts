import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as Errors from "../src/DiskStorageError.js"
import { errnos, errnosBySyscall, SyscallError } from "../src/Syscalls.js"

const path = "/tmp/dynamo-kvbm-disk-cache-eds-abcdef"
const cause = new SyscallError({ syscall: "fallocate", errno: 28, code: "ENOSPC", fd: 7 })

const samples = [
  [
    Errors.DevicePathUnavailable,
    new Errors.DevicePathUnavailable({ reasons: ["no GPU", "no cuFile"] }),
    "no GPU; no cuFile"
  ],
  [
    Errors.PlatformNotSupported,
    new Errors.PlatformNotSupported({ platform: "darwin", arch: "arm64", reason: "no" }),
    "darwin"
  ],
  [
    Errors.NativeModuleMissing,
    new Errors.NativeModuleMissing({ missing: "package", module: "@koromix/koffi-linux-x64", reason: "no" }),
    "The package koffi is not installed"
  ],
  [
    Errors.NativeModuleMissing,
    new Errors.NativeModuleMissing({ missing: "native module", module: "@koromix/koffi-linux-x64", reason: "no" }),
    "--omit=optional"
  ],
  [
    Errors.NativeModuleMissing,
    new Errors.NativeModuleMissing({ missing: "load", module: "@koromix/koffi-linux-x64", reason: "no" }),
    "noexec"
  ],
  [Errors.BufferUnavailable, new Errors.BufferUnavailable({ byteLength: 77, reason: "no" }), "77"],
  [Errors.InvalidOption, new Errors.InvalidOption({ option: "size", value: "-1", expected: "more" }), "size is -1"],
  [Errors.DirectoryUnusable, new Errors.DirectoryUnusable({ directory: "/nowhere", cause }), "/nowhere"],
  [
    Errors.DirectoryUnsafe,
    new Errors.DirectoryUnsafe({ directory: "/cache", component: "/cache", reason: "writable" }),
    "DYN_KVBM_DISK_CACHE_DIR=/cache/kv"
  ],
  [
    Errors.MountMissing,
    new Errors.MountMissing({ mount: "/mnt/nvme", directory: "/mnt/nvme/kv", reason: "missing", cause }),
    "the mount /mnt/nvme is missing (fallocate of fd 7 failed"
  ],
  [
    Errors.MountMissing,
    new Errors.MountMissing({ mount: "/mnt/nvme", directory: "/mnt/nvme/kv", reason: "not a mount point" }),
    "nothing is mounted at /mnt/nvme"
  ],
  [
    Errors.MountMissing,
    new Errors.MountMissing({ mount: "/mnt/nvme", directory: "/var/kv", reason: "elsewhere" }),
    "Use a directory below that mount"
  ],
  [
    Errors.MountMissing,
    new Errors.MountMissing({ mount: "/mnt/nvme", directory: "/var/kv", reason: "unknown" }),
    "Mount /proc"
  ],
  [Errors.WorkingDirectoryGone, new Errors.WorkingDirectoryGone({ path: "kv" }), "kv is a relative path"],
  [Errors.CreateFailed, new Errors.CreateFailed({ step: "create file", path, cause }), "create file"],
  [Errors.FileReplaced, new Errors.FileReplaced({ path }), path],
  [
    Errors.DirectIoRefused,
    new Errors.DirectIoRefused({ path, filesystem: "ramfs", openStrategy: "default", cause }),
    "DYN_KVBM_DISK_DISABLE_O_DIRECT=true"
  ],
  [
    Errors.DirectIoUnavailable,
    new Errors.DirectIoUnavailable({ path, filesystem: "tmpfs", reasons: ["the page cache", "holds it"] }),
    "the page cache; holds it"
  ],
  [Errors.ExtentsUnavailable, new Errors.ExtentsUnavailable({ path, cause }), "FIEMAP"],
  [Errors.InsufficientSpace, new Errors.InsufficientSpace({ path, needed: 4096, available: 77 }), "has 77 left"],
  [Errors.OutOfSpace, new Errors.OutOfSpace({ path, method: "fallocate", needed: 4096, cause }), "4096 bytes"],
  [
    Errors.AllocationFailed,
    new Errors.AllocationFailed({ path, method: "zero-fill", offset: 8192, alignment: 4096, cause }),
    "8192"
  ],
  [Errors.PrewriteRefused, new Errors.PrewriteRefused({ path, filesystem: "zfs", reason: "it copies" }), "it copies"],
  [
    Errors.CudaUnavailable,
    new Errors.CudaUnavailable({ library: "libcuda.so.1", reason: "cuInit failed", code: 803 }),
    "different driver versions"
  ],
  [
    Errors.CudaFailed,
    new Errors.CudaFailed({ call: "cuMemAlloc_v2", code: 2, name: "CUDA_ERROR_OUT_OF_MEMORY", device: 1 }),
    "cuMemAlloc_v2 failed on device 1: CUDA_ERROR_OUT_OF_MEMORY (2). Free device memory"
  ],
  [Errors.DeviceMemoryFreed, new Errors.DeviceMemoryFreed({ device: 1, byteLength: 77 }), "77 bytes"],
  [Errors.LengthMismatch, new Errors.LengthMismatch({ from: 77, to: 88 }), "77 bytes to 88 bytes"],
  [Errors.ForeignMemory, new Errors.ForeignMemory({ byteLength: 77 }), "77"],
  [Errors.BufferBusy, new Errors.BufferBusy({ operation: "read", offset: 4096, length: 77 }), "offset 4096"],
  [
    Errors.IoStalled,
    new Errors.IoStalled({ operation: "write", path, offset: 1, length: 2, timeoutMillis: 3000 }),
    "3000 ms"
  ],
  [
    Errors.StorageDegraded,
    new Errors.StorageDegraded({ path, direction: "read", failures: 16, retryAfterMillis: 3000 }),
    "the last 16 reads"
  ],
  [Errors.EngineUnavailable, new Errors.EngineUnavailable({ engine: "aio", reason: "no", cause }), "engine aio"],
  [
    Errors.CuFileUnavailable,
    new Errors.CuFileUnavailable({ library: "libcufile.so.0", reason: "no", code: 5001 }),
    "modprobe nvidia-fs"
  ],
  [
    Errors.CuFileFailed,
    new Errors.CuFileFailed({ call: "cuFileHandleRegister", code: 5020, name: "CU_FILE_DIO_NOT_SET", path }),
    "CU_FILE_DIO_NOT_SET (5020), O_DIRECT is not set. Make the storage with directIo"
  ],
  [Errors.CuFileReleased, new Errors.CuFileReleased({ what: "handle", path }), `handle of ${path} is deregistered`],
  [Errors.StorageClosed, new Errors.StorageClosed({ path }), path],
  [Errors.StorageUnlinked, new Errors.StorageUnlinked({ path, key: "Nixl" }), "Nixl"],
  [Errors.OutOfBounds, new Errors.OutOfBounds({ offset: 1, length: 2, size: 3 }), "2 bytes at offset 1"],
  [Errors.Misaligned, new Errors.Misaligned({ what: "offset", value: 1, alignment: 512 }), "512"],
  [Errors.IoFailed, new Errors.IoFailed({ operation: "read", offset: 1, length: 2, bytesDone: 1, cause }), "ENOSPC"],
  [Errors.UnlinkFailed, new Errors.UnlinkFailed({ path, cause }), path],
  [Errors.KeepFailed, new Errors.KeepFailed({ path, reason: "no keepAt" }), "option keepAt"],
  [Errors.DuplicateKey, new Errors.DuplicateKey({ key: "Nixl" }), "Nixl"],
  [
    Errors.ReleaseFailed,
    new Errors.ReleaseFailed({
      path,
      failures: [{ step: "close", cause }, { step: "registration", key: "a", cause: "b" }]
    }),
    "close: fallocate of fd 7 failed with ENOSPC (errno 28); registration a: b"
  ],
  [
    Errors.InvalidBlock,
    new Errors.InvalidBlock({ hash: -1n, what: "hash", expected: "an unsigned integer" }),
    "unsigned integer"
  ],
  [Errors.BlockNotFound, new Errors.BlockNotFound({ hash: 255n }), "00000000000000ff"],
  [
    Errors.BlockCorrupted,
    new Errors.BlockCorrupted({ hash: 255n, path: "/tmp/f", offset: 4096, checksum: "crc32" }),
    "offset 4096 of /tmp/f"
  ],
  [
    Errors.StoreFull,
    new Errors.StoreFull({ hash: 1n, capacity: 8, pinned: 3, priority: 2 }),
    "of 8 blocks 3 are pinned"
  ],
  [Errors.NoStorageLeft, new Errors.NoStorageLeft({ paths: ["/tmp/a", "/tmp/b"] }), "/tmp/a, /tmp/b"],
  [Errors.StoreClosed, new Errors.StoreClosed({}), "is released"],
  [
    Errors.NixlUnavailable,
    new Errors.NixlUnavailable({ library: "libnixl_capi.so", reason: "no" }),
    "DISK_STORAGE_NIXL_LIBRARY"
  ],
  [
    Errors.NixlFailed,
    new Errors.NixlFailed({ call: "nixl_capi_register_mem", status: -2, name: "BACKEND", target: path }),
    "BACKEND (-2)"
  ],
  [Errors.NixlClosed, new Errors.NixlClosed({ what: path }), path],
  [Errors.SweepFailed, new Errors.SweepFailed({ directory: "/tmp/a", cause }), "/tmp/a was not swept"],
  [Errors.BudgetExceeded, new Errors.BudgetExceeded({ requested: 3, available: 2, budget: 4 }), "budget of 4"],
  [Errors.LayoutOverflow, new Errors.LayoutOverflow({ quantity: "totalBytes", bytes: 1e16 }), "The totalBytes"],
  [Errors.LayoutDoesNotFit, new Errors.LayoutDoesNotFit({ needed: 4096, available: 77 }), "there are 77"],
  [Errors.IndexOutOfBounds, new Errors.IndexOutOfBounds({ what: "layer", index: 32, count: 32 }), "from 0 to 31"]
] as const

describe("errors", () => {
  it.each(samples.map(([, error, word]) => [error._tag, error, word] as const))(
    "%s says what happened, to what, and what to do, and survives serialisation",
    (_, error, word) => {
      assert.include(error.message, word)
      assert.isTrue(error.message.endsWith("."))
      assert.isTrue(Errors.isDiskStorageError(error))
      const any = Schema.Union(...samples.map(([schema]) => schema))
      const wire: unknown = JSON.parse(JSON.stringify(Schema.encodeSync(any)(error)))
      const back = Schema.decodeUnknownSync(any)(wire)
      assert.strictEqual(back.constructor, error.constructor)
      assert.strictEqual(back.message, error.message)
      assert.deepStrictEqual(back, error)
    }
  )

  it("are every one of the module", () => {
    const exported = Object.values(Errors).filter((value) => typeof value === "function" && "ast" in value)
    assert.sameMembers(exported, [...new Set(samples.map(([schema]) => schema))])
  })

  it("are told from other values", () => {
    for (const other of [undefined, null, 1, "StorageClosed", {}, { _tag: "Nope" }, cause, new Error("x")]) {
      assert.isFalse(Errors.isDiskStorageError(other))
    }
  })

  it("of what was not kept say why, and to do what", () => {
    const words = {
      "no keepAt": "Set the option keepAt",
      "in the way": "/kept is no file that this process could take up",
      "unlinked": "Do not unlink",
      "stalled": "keep again when it has answered",
      "look": "/kept could not be looked at: fallocate of fd 7 failed with ENOSPC (errno 28). Free space",
      "sync": "could not be synced",
      "label": "could not be labelled",
      "rename": "could not be renamed to /kept"
    } as const
    for (const reason of Errors.KeepFailed.fields.reason.literals) {
      assert.include(new Errors.KeepFailed({ path, keepAt: "/kept", reason, cause }).message, words[reason])
    }
  })

  it("of a release that the disk did not answer name the descriptor, and what becomes of it", () => {
    const { message } = new Errors.ReleaseFailed({
      path,
      failures: [{ step: "drain", fd: 7, timeoutMillis: 60_000 }, { step: "unlink", fd: 7, timeoutMillis: 60_000 }]
    })
    assert.include(message, "drain: no answer for fd 7 within 60000 ms; unlink: no answer")
    assert.include(message, "left to the process")
    assert.notInclude(message, "by hand")
  })

  it("of the kernel have names and numbers for every errno of every call", () => {
    for (const [syscall, codes] of Object.entries(errnosBySyscall)) {
      assert.strictEqual(new Set(codes).size, codes.length, syscall)
      for (const code of codes) assert.isAbove(errnos[code], 0)
    }
    assert.strictEqual(
      new SyscallError({ syscall: "unlink", errno: 2, code: "ENOENT", path }).message,
      `unlink of ${path} failed with ENOENT (errno 2)`
    )
  })
})
