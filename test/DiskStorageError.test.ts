import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import { getSystemErrorMap } from "node:util"
import * as Errors from "../src/DiskStorageError.js"
import { errnoCode } from "../src/internal/kernel.js"
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
  [
    Errors.InvalidOption,
    new Errors.InvalidOption({ option: "size", value: "-1", expected: "more" }),
    "The value of size is -1; it takes more."
  ],
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
  [
    Errors.InsufficientSpace,
    new Errors.InsufficientSpace({
      path,
      needed: 4096,
      available: 77,
      memory: { path: "/sys/fs/cgroup/a", limit: 177, usage: 150, reclaimable: 50 },
      leftovers: {
        directory: "/tmp",
        unused: { files: 2, bytes: 99 },
        others: { files: 0, bytes: 0 },
        kept: { files: 0, bytes: 0 },
        command: "effect-disk-storage sweep --force /tmp"
      }
    }),
    "the memory cgroup /sys/fs/cgroup/a is limited to 177 bytes"
  ],
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
    new Errors.StoreFull({ hash: 1n, priority: 2, capacity: 8, pinned: 3, writing: 0, higher: 1, retired: 4 }),
    "of 8 slots 3 are leased or being read, 1 hold blocks of a higher priority, 4 are retired after failures. To make room: end leases;"
  ],
  [
    Errors.NoStorageLeft,
    new Errors.NoStorageLeft({ paths: ["/tmp/a", "/tmp/b"], reasons: ["it is closed", "8 reads failed"] }),
    "/tmp/a: it is closed | /tmp/b: 8 reads failed"
  ],
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
  [
    Errors.NixlAgentFailed,
    new Errors.NixlAgentFailed({
      agentName: "one",
      call: "nixl_capi_get_xfer_status",
      status: -2,
      name: "BACKEND",
      target: path
    }),
    "make a new one"
  ],
  [Errors.NixlUnconfirmed, new Errors.NixlUnconfirmed({ operation: "write", path, offset: 4096, length: 8192 }), path],
  [
    Errors.NixlOverlap,
    new Errors.NixlOverlap({ what: "4096 bytes of host memory", other: "8192 bytes of host memory" }),
    "start and length"
  ],
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
    const exported = Object.values(Errors).filter((value) => typeof value === "function" && "_tag" in value)
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
      "moved": "/kept leads elsewhere now. Put the directory back",
      "linked elsewhere": "Remove the other name and keep again",
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

  it("of what was not kept offer a second attempt only where it can help", () => {
    const messageOf = (reason: Errors.KeepFailed["reason"], code: keyof typeof errnos) =>
      new Errors.KeepFailed({
        path,
        keepAt: "/kept",
        reason,
        cause: new SyscallError({ syscall: "rename", errno: errnos[code], code, path })
      }).message
    for (const reason of ["look", "label", "rename"] as const) {
      for (const code of ["ENOENT", "ENOTDIR", "ESTALE", "ENAMETOOLONG", "ELOOP"] as const) {
        assert.notInclude(messageOf(reason, code), "keep again")
      }
      assert.include(messageOf(reason, "EROFS"), "writable again; the kernel's log has the reason, and keep again")
      assert.include(messageOf(reason, "EXDEV"), "Unmount")
      assert.include(messageOf(reason, "EACCES"), "rights")
      assert.include(messageOf(reason, "EIO"), "keep again when the disk works")
    }
    for (const code of ["EIO", "ENOSPC"] as const) assert.notInclude(messageOf("sync", code), "again")
  })

  it("of a name that stays name the obstacle before the second attempt", () => {
    const messageOf = (code: keyof typeof errnos) =>
      new Errors.UnlinkFailed({ path, cause: new SyscallError({ syscall: "unlink", errno: errnos[code], code, path }) })
        .message
    assert.include(messageOf("EROFS"), "writable again")
    assert.include(messageOf("EPERM"), "chattr -i")
    assert.include(messageOf("EIO"), "kernel's log")
  })

  it("of the kernel have a name for every errno of Linux, as the headers and Node have them", () => {
    assert.strictEqual(errnoCode(107), "ENOTCONN")
    assert.strictEqual(errnoCode(117), "EUCLEAN")
    for (const [errno, [name]] of getSystemErrorMap()) {
      // Numbers of libuv alone are beyond those of the kernel; ENOTSUP is another name of EOPNOTSUPP.
      if (errno < -133 || name === "ENOTSUP") continue
      assert.strictEqual(errnoCode(-errno), name)
    }
    for (const [name, errno] of Object.entries(errnos)) assert.strictEqual(errnoCode(errno), name)
    const codes = Array.from({ length: 133 }, (_, index) => errnoCode(index + 1))
    // 41 and 58 have no name.
    assert.deepStrictEqual(codes.filter((code) => /\d+$/.test(code) && !code.startsWith("EL")), ["E41", "E58"])
    assert.strictEqual(new Set(codes).size, 133)
    assert.strictEqual(errnoCode(134), "E134")
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
