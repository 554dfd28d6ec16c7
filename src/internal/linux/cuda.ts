/**
 * The CUDA driver library, on threads of its own. Names, signatures and numbers are those of `cuda.h` (CUDA 13.0); the `_v2` names are
 * what the header maps the short ones to, and are there since CUDA 4 (the release of a primary context since 11).
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { CudaFailed, CudaUnavailable } from "../../DiskStorageError.js"
import type { Part } from "../slab.js"
import { pageSize, take } from "../slab.js"
import type { Value } from "./libraryThreads.js"
import * as libraryThreads from "./libraryThreads.js"
import { addressOf, native } from "./native.js"

const signatures = {
  cuInit: ["uint32_t"],
  cuDriverGetVersion: ["uint64_t"],
  cuGetErrorName: ["int", "uint64_t"],
  cuDeviceGetCount: ["uint64_t"],
  cuDeviceGet: ["uint64_t", "int"],
  cuDeviceGetName: ["uint64_t", "int", "int"],
  cuDeviceTotalMem_v2: ["uint64_t", "int"],
  cuDeviceGetPCIBusId: ["uint64_t", "int", "int"],
  cuDevicePrimaryCtxRetain: ["uint64_t", "int"],
  cuDevicePrimaryCtxRelease_v2: ["int"],
  cuCtxSetCurrent: ["uint64_t"],
  cuMemAlloc_v2: ["uint64_t", "size_t"],
  cuMemFree_v2: ["uint64_t"],
  cuPointerSetAttribute: ["uint64_t", "int", "uint64_t"],
  cuMemHostRegister_v2: ["uint64_t", "size_t", "uint32_t"],
  cuMemHostUnregister: ["uint64_t"],
  cuMemcpyHtoD_v2: ["uint64_t", "uint64_t", "size_t"],
  cuMemcpyDtoH_v2: ["uint64_t", "uint64_t", "size_t"],
  cuMemcpyDtoD_v2: ["uint64_t", "uint64_t", "size_t"]
} as const

type Name = keyof typeof signatures

/** Registered memory counts as pinned in the contexts of all devices (`CU_MEMHOSTREGISTER_PORTABLE`). */
export const portable = 0x1
/** Copies that touch the memory are over when their call returns (`CU_POINTER_ATTRIBUTE_SYNC_MEMOPS`). */
export const syncMemops = 6

/** How many calls a thread is given at once: copies of 1 MiB are as short as it takes to wake it. */
const copiesTogether = 4

/** Memory for one answer by reference; zero until then. */
export interface Answer {
  readonly address: number
  readonly part: Part
  readonly int: () => number
  readonly uint64: () => bigint
  readonly text: () => string
}

export interface Cuda {
  readonly library: string
  /** Fails unless it answers 0. `holds` is what must not be collected meanwhile. */
  readonly call: (name: Name, args: ReadonlyArray<Value>, holds?: unknown) => Effect.Effect<void, CudaFailed>
  /** On each of the threads; also when it fails on some. */
  readonly callOnEach: (name: Name, args: ReadonlyArray<Value>) => Effect.Effect<void, CudaFailed>
  readonly answer: () => Answer
  readonly addressOf: (memory: { readonly slab: Part["slab"]; readonly start: number }) => number
}

/** Loads the library on `threads` threads; `device` is for messages. */
export const open = (
  library: string,
  threads: number,
  device: number
): Effect.Effect<Cuda, CudaUnavailable, Scope.Scope> =>
  Effect.gen(function*() {
    const { koffi } = yield* Effect.mapError(native, ({ reason }) => new CudaUnavailable({ library, reason }))
    const loaded = yield* Effect.mapError(
      libraryThreads.make(
        Object.fromEntries(Object.entries(signatures).map(([name, args]) => [name, { library, result: "int", args }])),
        threads,
        copiesTogether
      ),
      ({ reason }) =>
        new CudaUnavailable({
          library,
          reason:
            `${reason}; install the driver of NVIDIA, give a container its GPUs (--gpus all), or name the library: DISK_STORAGE_CUDA_LIBRARY, option library`
        })
    )

    const answer = (): Answer => {
      const part = take(pageSize)
      const view = new DataView(part.bytes.buffer, part.bytes.byteOffset, pageSize)
      return {
        address: addressOf(koffi, part.slab) + part.bytes.byteOffset,
        part,
        int: () => view.getInt32(0, true),
        uint64: () => view.getBigUint64(0, true),
        text: () => new TextDecoder().decode(part.bytes.subarray(0, part.bytes.indexOf(0)))
      }
    }

    const nameOf = (code: number) =>
      Effect.suspend(() => {
        const name = answer()
        return Effect.map(
          loaded.call("cuGetErrorName", [code, name.address], name),
          ({ result }): string => result === 0 ? koffi.decode(name.part.bytes, "const char *") : "an unknown error"
        )
      })
    const checked = (call: string, { result }: libraryThreads.Answer): Effect.Effect<void, CudaFailed> =>
      result === 0
        ? Effect.void
        : Effect.flatMap(nameOf(Number(result)), (name) => new CudaFailed({ call, code: Number(result), name, device }))

    return {
      library,
      call: (name, args, holds) => Effect.flatMap(loaded.call(name, args, holds), (answer) => checked(name, answer)),
      callOnEach: (name, args) =>
        Effect.flatMap(
          loaded.callOnEach(name, args),
          (answers) => Effect.forEach(answers, (answer) => checked(name, answer), { discard: true })
        ),
      answer,
      addressOf: ({ slab, start }) => addressOf(koffi, slab) + start
    }
  })
