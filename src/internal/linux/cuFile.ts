/** The calls of libcufile, each on a thread that has the CUDA context. Signatures and layouts: cufile.h of CUDA 13. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { access } from "node:fs/promises"
import type { CuFileProperties } from "../../CuFile.js"
import { CuFileFailed, CuFileUnavailable } from "../../DiskStorageError.js"
import { cuFileErrorOf } from "../cuFileErrors.js"
import { errnoCode } from "../kernel.js"
import { pageSize, take } from "../slab.js"
import type { Value } from "./libraryThreads.js"
import * as libraryThreads from "./libraryThreads.js"
import { addressOf, native } from "./native.js"

/** `CUfileError_t`, two ints returned in one register on x86-64 and arm64. */
const status = "uint64_t"
const pointer = "uint64_t"

const declarations = (library: string, cudaLibrary: string) => ({
  cuCtxSetCurrent: { library: cudaLibrary, result: "int", args: [pointer] },
  cuFileDriverOpen: { library, result: status, args: [] },
  cuFileDriverClose_v2: { library, result: status, args: [] },
  cuFileDriverGetProperties: { library, result: status, args: [pointer] },
  cuFileHandleRegister: { library, result: status, args: [pointer, pointer] },
  cuFileHandleDeregister: { library, result: "void", args: [pointer] },
  cuFileBufRegister: { library, result: status, args: [pointer, "size_t", "int"] },
  cuFileBufDeregister: { library, result: status, args: [pointer] },
  cuFileRead: { library, result: "int64_t", args: [pointer, pointer, "size_t", "int64_t", "int64_t"] },
  cuFileWrite: { library, result: "int64_t", args: [pointer, pointer, "size_t", "int64_t", "int64_t"] },
  // libc's, through what cuFile is linked with: it has another name with each libc.
  fcntl: { library, result: "int", args: ["int", "int"] },
  open: { library, result: "int", args: [pointer, "int"] },
  close: { library, result: "int", args: ["int"] },
  // What older releases lack.
  cuFileGetVersion: { library, result: status, args: [pointer], optional: true },
  cuFileGetParameterBool: { library, result: status, args: ["int", pointer], optional: true },
  cuFileBatchIOSetUp: { library, result: status, args: [pointer, "uint32_t"], optional: true },
  cuFileBatchIOSubmit: { library, result: status, args: [pointer, "uint32_t", pointer, "uint32_t"], optional: true },
  cuFileBatchIOGetStatus: {
    library,
    result: status,
    args: [pointer, "uint32_t", pointer, pointer, pointer],
    optional: true
  },
  cuFileBatchIODestroy: { library, result: "void", args: [pointer], optional: true }
} as const)

type Call = keyof ReturnType<typeof declarations>

const F_GETFL = 3

/** What a failure is told with besides the code. */
export type Place = Partial<Pick<CuFileFailed, "path" | "offset" | "length" | "bytesDone">>

export const failed = (call: string, code: number, place: Place, cudaCode = 0): CuFileFailed =>
  new CuFileFailed({
    call,
    code,
    name: code === 0 ? "CU_FILE_SUCCESS" : cuFileErrorOf(code).name,
    ...cudaCode === 0 ? {} : { cudaCode },
    ...place
  })

/** Bytes, −1 and errno, or −(5000 + n). */
export interface RawResult {
  readonly result: number
  readonly errno: number
}

/** The failure in what a transfer has answered with: −1 and errno, −(5000 + n), or 0 where there was more to be had. */
export const transferFailed = (call: string, { errno, result }: RawResult, place: Place): CuFileFailed =>
  result === -1
    ? new CuFileFailed({ call, code: -1, name: errnoCode(errno), errno, ...place })
    : failed(call, Math.abs(result), place)

/** A file that the driver knows, by a descriptor of its own. */
export interface RawHandle {
  readonly number: bigint
  readonly fd: number
}

/** One of a batch; `base` is where the memory begins that the driver knows, `baseOffset` where the transfer does in it. */
export interface RawTransfer {
  readonly handle: bigint
  readonly base: bigint
  readonly baseOffset: number
  readonly length: number
  readonly offset: number
}

/** What has become of one of a batch. */
export interface RawEvent extends RawResult {
  readonly index: number
}

export interface Batch {
  readonly submit: (kind: "read" | "write", transfers: ReadonlyArray<RawTransfer>) => Effect.Effect<void, CuFileFailed>
  /** Those that have ended since it was asked last; waits on its thread for one, but not for long. */
  readonly poll: Effect.Effect<ReadonlyArray<RawEvent>, CuFileFailed>
  readonly destroy: Effect.Effect<void>
}

export interface Driver {
  readonly open: Effect.Effect<void, CuFileFailed>
  readonly close: Effect.Effect<void, CuFileFailed>
  readonly properties: Effect.Effect<CuFileProperties, CuFileFailed>
  /** 1000 × major + 10 × minor; undefined where the library does not tell. */
  readonly version: Effect.Effect<number | undefined>
  /** `force_compat_mode` of the configuration in force; undefined where the library does not tell. */
  readonly forceCompatMode: Effect.Effect<boolean | undefined>
  /** By another descriptor of the file, which needs `fd` no more; `path` is for messages. */
  readonly registerHandle: (fd: number, path: string) => Effect.Effect<RawHandle, CuFileFailed>
  readonly deregisterHandle: (handle: RawHandle) => Effect.Effect<void>
  readonly registerBuffer: (base: bigint, length: number) => Effect.Effect<void, CuFileFailed>
  readonly deregisterBuffer: (base: bigint) => Effect.Effect<void, CuFileFailed>
  readonly transfer: (
    kind: "read" | "write",
    transfer: RawTransfer
  ) => Effect.Effect<RawResult>
  /** Room for so many transfers; undefined where the library has no batches. */
  readonly batch: ((size: number) => Effect.Effect<Batch, CuFileFailed>) | undefined
}

/** Of `CUfileDrvProps_t`: bits of `dstatusflags`, of `dcontrolflags` and of `fflags`. */
const supportBits = {
  lustre: 0,
  wekafs: 1,
  nfs: 2,
  gpfs: 3,
  nvme: 4,
  nvmeof: 5,
  scsi: 6,
  scaleflux: 7,
  nvmesh: 8,
  beegfs: 9,
  nvmeP2p: 11
} as const
const controlBits = { pollMode: 0, allowCompatMode: 1 } as const
const featureBits = { dynamicRouting: 0, batchIo: 1, streams: 2, parallelIo: 3 } as const

const flags = <const Name extends string>(word: number, bits: { readonly [name in Name]: number }): Array<Name> => {
  const names: Array<Name> = []
  for (const name in bits) if ((word >>> bits[name] & 1) === 1) names.push(name)
  return names
}

const decodeProperties = (view: DataView): CuFileProperties => ({
  nvidiaFs: { major: view.getUint32(0, true), minor: view.getUint32(4, true) },
  pollThresholdKiB: Number(view.getBigUint64(8, true)),
  maxDirectIoKiB: Number(view.getBigUint64(16, true)),
  support: flags(view.getUint32(24, true), supportBits),
  control: flags(view.getUint32(28, true), controlBits),
  features: flags(view.getUint32(32, true), featureBits),
  maxDeviceCacheKiB: view.getUint32(36, true),
  perBufferCacheKiB: view.getUint32(40, true),
  maxPinnedKiB: view.getUint32(44, true),
  maxBatch: view.getUint32(48, true),
  batchTimeoutMillis: view.getUint32(52, true)
})

/** `CUfileDescr_t`: its type (`CU_FILE_HANDLE_TYPE_OPAQUE_FD`), and the descriptor. */
const descriptorBytes = 24
const opaqueFd = 1

/** `CUFILE_PARAM_FORCE_COMPAT_MODE` of `CUFileBoolConfigParameter_t`. */
const forceCompatMode = 2

/** `CUfileIOParams_t` and `CUfileIOEvents_t`. */
const paramsBytes = 64
const eventBytes = 24
const batchMode = 1
const opcodes = { read: 0, write: 1 } as const
const completed = 0x10

/** How long one question for the state of a batch waits on its thread: it holds up the end of the layer, and other calls. */
const pollNanos = 20_000_000n

/** Whether the kernel module shows itself; a container may hide it. */
export const nvidiaFsShown: Effect.Effect<boolean> = Effect.isSuccess(
  Effect.tryPromise(() => access("/proc/driver/nvidia-fs/version"))
)

export const make = (
  library: string,
  cudaLibrary: string,
  context: bigint,
  count: number
): Effect.Effect<Driver, CuFileUnavailable, Scope.Scope> =>
  Effect.gen(function*() {
    const { architecture: { flags }, koffi } = yield* Effect.mapError(
      native,
      ({ message }) => new CuFileUnavailable({ library, reason: message.replace(/\.$/, "") })
    )
    const threads = yield* Effect.mapError(
      libraryThreads.make(declarations(library, cudaLibrary), count),
      ({ reason }) => new CuFileUnavailable({ library, reason })
    )
    for (const { result } of yield* threads.callOnEach("cuCtxSetCurrent", [context])) {
      if (result !== 0) {
        const reason = `cuCtxSetCurrent of ${cudaLibrary} failed with CUDA error ${result}`
        return yield* new CuFileUnavailable({ library, reason, code: Number(result) })
      }
    }

    /** Zeroed memory that stays where it is, for what a call tells and is told. */
    const memory = (byteLength: number) =>
      Effect.sync(() => {
        const { bytes, slab } = take(Math.max(byteLength, pageSize))
        return {
          bytes,
          address: addressOf(koffi, slab) + bytes.byteOffset,
          view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
        }
      })

    const checked = (name: Call, args: ReadonlyArray<Value>, holds: unknown, place: Place = {}) =>
      Effect.flatMap(threads.call(name, args, holds), ({ result }) => {
        const word = BigInt(result)
        const code = Number(BigInt.asIntN(32, word))
        return code === 0 ? Effect.void : Effect.fail(failed(name, code, place, Number(BigInt.asIntN(32, word >> 32n))))
      })

    const libc = (name: "fcntl" | "open", args: ReadonlyArray<Value>, path: string, holds?: unknown) =>
      Effect.flatMap(threads.call(name, args, holds), ({ errno, result }) =>
        Number(result) >= 0
          ? Effect.succeed(Number(result))
          : Effect.fail(transferFailed(name, { result: -1, errno }, { path })))
    const close = (fd: number) => Effect.asVoid(threads.call("close", [fd]))

    /** The file behind a descriptor, opened again as it is but for O_NOFOLLOW, which cuFile refuses (5019). */
    const reopen = (fd: number, path: string) =>
      Effect.gen(function*() {
        const found = yield* libc("fcntl", [fd, F_GETFL], path)
        const { address, bytes } = yield* memory(pageSize)
        new TextEncoder().encodeInto(`/proc/self/fd/${fd}`, bytes)
        return yield* libc("open", [address, (found & ~flags.O_NOFOLLOW) | flags.O_CLOEXEC], path, bytes)
      })

    const batch = (size: number) =>
      Effect.gen(function*() {
        // The handle, the number that is asked for and told, the timeout; the events; the parameters.
        const events = 64
        const params = events + size * eventBytes
        const { address, bytes, view } = yield* memory(params + size * paramsBytes)
        yield* checked("cuFileBatchIOSetUp", [address, size], bytes)
        const id = view.getBigUint64(0, true)
        const submit: Batch["submit"] = (kind, transfers) =>
          Effect.suspend(() => {
            for (const [index, { base, baseOffset, handle, length, offset }] of transfers.entries()) {
              const at = params + index * paramsBytes
              view.setInt32(at, batchMode, true)
              view.setBigUint64(at + 8, base, true)
              view.setBigInt64(at + 16, BigInt(offset), true)
              view.setBigInt64(at + 24, BigInt(baseOffset), true)
              view.setBigUint64(at + 32, BigInt(length), true)
              view.setBigUint64(at + 40, handle, true)
              view.setInt32(at + 48, opcodes[kind], true)
              view.setBigUint64(at + 56, BigInt(index), true)
            }
            return checked("cuFileBatchIOSubmit", [id, transfers.length, address + params, 0], bytes)
          })
        const poll: Batch["poll"] = Effect.gen(function*() {
          view.setUint32(8, size, true)
          view.setBigInt64(16, 0n, true)
          view.setBigInt64(24, pollNanos, true)
          yield* checked("cuFileBatchIOGetStatus", [id, 1, address + 8, address + events, address + 16], bytes)
          return Array.from({ length: Math.min(size, view.getUint32(8, true)) }, (_, place): RawEvent => {
            const at = events + place * eventBytes
            const result = Number(view.getBigInt64(at + 16, true))
            const ended = view.getInt32(at + 8, true) === completed
            const index = Number(view.getBigUint64(at, true))
            // CU_FILE_IO_ERROR for what has ended in another way and does not say why.
            if (!ended && result >= -1) return { index, result: -5044, errno: 0 }
            return result < 0 && result > -5000 ? { index, result: -1, errno: -result } : { index, result, errno: 0 }
          })
        })
        return { submit, poll, destroy: Effect.asVoid(threads.call("cuFileBatchIODestroy", [id], bytes)) }
      })

    return {
      open: checked("cuFileDriverOpen", [], undefined),
      close: checked("cuFileDriverClose_v2", [], undefined),
      properties: Effect.gen(function*() {
        const { address, bytes, view } = yield* memory(pageSize)
        yield* checked("cuFileDriverGetProperties", [address], bytes)
        return decodeProperties(view)
      }),
      version: Effect.gen(function*() {
        if (!threads.has("cuFileGetVersion")) return undefined
        const { address, bytes, view } = yield* memory(pageSize)
        return yield* checked("cuFileGetVersion", [address], bytes).pipe(
          Effect.map(() => view.getInt32(0, true)),
          Effect.orElseSucceed(() => undefined)
        )
      }),
      forceCompatMode: Effect.gen(function*() {
        if (!threads.has("cuFileGetParameterBool")) return undefined
        const { address, bytes } = yield* memory(pageSize)
        return yield* checked("cuFileGetParameterBool", [forceCompatMode, address], bytes).pipe(
          Effect.map(() => bytes[0] !== 0),
          Effect.orElseSucceed(() => undefined)
        )
      }),
      registerHandle: (fd, path) =>
        Effect.gen(function*() {
          const own = yield* reopen(fd, path)
          const { address, bytes, view } = yield* memory(pageSize)
          const descriptor = 64
          bytes.fill(0, descriptor, descriptor + descriptorBytes)
          view.setInt32(descriptor, opaqueFd, true)
          view.setInt32(descriptor + 8, own, true)
          yield* Effect.onError(
            checked("cuFileHandleRegister", [address, address + descriptor], bytes, { path }),
            () => close(own)
          )
          return { number: view.getBigUint64(0, true), fd: own }
        }),
      deregisterHandle: ({ fd, number }) =>
        Effect.zipRight(threads.call("cuFileHandleDeregister", [number]), close(fd)),
      registerBuffer: (base, length) => checked("cuFileBufRegister", [base, length, 0], undefined, { length }),
      deregisterBuffer: (base) => checked("cuFileBufDeregister", [base], undefined),
      transfer: (kind, { base, baseOffset, handle, length, offset }) =>
        Effect.map(
          threads.call(kind === "read" ? "cuFileRead" : "cuFileWrite", [handle, base, length, offset, baseOffset]),
          ({ errno, result }) => ({ result: Number(result), errno })
        ),
      batch: threads.has("cuFileBatchIOSetUp") && threads.has("cuFileBatchIOSubmit") &&
          threads.has("cuFileBatchIOGetStatus") && threads.has("cuFileBatchIODestroy")
        ? batch
        : undefined
    }
  })
