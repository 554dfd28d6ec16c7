/**
 * The C library of this process, through koffi, which is loaded when it is asked for and not before. This folder is the only one that
 * names koffi.
 *
 * `load(null)` finds the symbols in the libc that Node itself runs on, so glibc and musl need no library name. Variadic
 * functions are declared with fixed arguments: the calling conventions of Linux on x86-64 and arm64 pass them alike, and koffi
 * cannot call variadic functions off-thread.
 */
import * as Effect from "effect/Effect"
import { EngineUnavailable, NativeModuleMissing, PlatformNotSupported } from "../../DiskStorageError.js"
import type { OpenFlags } from "../../Syscalls.js"
import type { Part, Slab } from "../slab.js"
import { takeAlone, tellOfNew } from "../slab.js"

interface Architecture {
  readonly flags: OpenFlags
  readonly statx: number
  readonly aio: {
    readonly io_setup: number
    readonly io_destroy: number
    readonly io_getevents: number
    readonly io_submit: number
  }
}

/** What differs between the two architectures (`uapi/asm/fcntl.h` and the system call tables). */
const architectures: { readonly [arch: string]: Architecture } = {
  x64: {
    flags: {
      O_RDWR: 0x2,
      O_CLOEXEC: 0x8_0000,
      O_DIRECT: 0x4000,
      O_NOFOLLOW: 0x2_0000,
      O_DIRECTORY: 0x1_0000,
      O_PATH: 0x20_0000,
      O_NONBLOCK: 0x800,
      O_TMPFILE: 0x41_0000
    },
    statx: 332,
    aio: { io_setup: 206, io_destroy: 207, io_getevents: 208, io_submit: 209 }
  },
  arm64: {
    flags: {
      O_RDWR: 0x2,
      O_CLOEXEC: 0x8_0000,
      O_DIRECT: 0x1_0000,
      O_NOFOLLOW: 0x8000,
      O_DIRECTORY: 0x4000,
      O_PATH: 0x20_0000,
      O_NONBLOCK: 0x800,
      O_TMPFILE: 0x40_4000
    },
    statx: 291,
    aio: { io_setup: 0, io_destroy: 1, io_getevents: 4, io_submit: 2 }
  }
}

export type Argument = number | string | Uint8Array | null

/** A C function that returns a signed integer, and −1 with `errno` when it failed. */
export interface CFunction {
  (...args: ReadonlyArray<Argument>): number
  async(...args: ReadonlyArray<Argument | ((error: unknown, result: number) => void)>): void
}

/** The package that holds koffi's native module for this platform. */
const nativePackage = () => `@koromix/koffi-${process.platform}-${process.arch}`

const codeOf = (error: unknown): unknown => error instanceof Error ? Reflect.get(error, "code") : undefined

/** Why koffi cannot be loaded: it, or its native module, is not there, or Node does not load that. */
const loadFailure = (error: unknown): NativeModuleMissing => {
  const reason = error instanceof Error ? error.message : String(error)
  const failure = (missing: NativeModuleMissing["missing"]) =>
    new NativeModuleMissing({ missing, module: nativePackage(), reason })
  const code = codeOf(error)
  if (code === "ERR_DLOPEN_FAILED" || code === "ERR_DLOPEN_DISABLED" || code === "ERR_ACCESS_DENIED") {
    return failure("load")
  }
  // Of koffi, and of nothing that it imports.
  if (code === "ERR_MODULE_NOT_FOUND" || code === "MODULE_NOT_FOUND") {
    return failure(/(?:package|module) '?koffi'?/i.test(reason) ? "package" : "native module")
  }
  // In a CommonJS bundle koffi has no URL to look from, and fails before it looks.
  return failure("native module")
}

const load = Effect.tryPromise({
  try: () => import("koffi"),
  catch: loadFailure
})

export type Koffi = Effect.Effect.Success<typeof load>["default"]

export interface Native {
  readonly koffi: Koffi
  readonly architecture: Architecture
  readonly declare: (
    name: string,
    result: string,
    args: Array<string>
  ) => Effect.Effect<CFunction, PlatformNotSupported>
}

// uapi/asm-generic/mman-common.h
const MADV_HUGEPAGE = 14
let advises = false

/**
 * Asks for huge pages in new slabs, where the kernel gives them to who asks (transparent huge pages, `madvise(2)`): a transfer then goes to
 * the disk in few segments, and not in one for each scattered page. Refused where there are none.
 */
const adviseHugePages = (koffi: Koffi, libc: ReturnType<Koffi["load"]>): Effect.Effect<void> =>
  Effect.sync(() => {
    if (advises) return
    advises = true
    const madvise = libc.func("madvise", "int", ["size_t", "size_t", "int"])
    tellOfNew((slab) => madvise(addressOf(koffi, slab), slab.buffer.byteLength, MADV_HUGEPAGE))
  })

export const native: Effect.Effect<Native, PlatformNotSupported | NativeModuleMissing> = Effect.gen(function*() {
  const { arch, platform } = process
  const architecture = platform === "linux" ? architectures[arch] : undefined
  if (architecture === undefined) {
    return yield* new PlatformNotSupported({ platform, arch, reason: "direct I/O here needs Linux on x64 or arm64" })
  }
  const { default: koffi } = yield* load
  const libc = yield* Effect.try({
    try: () => koffi.load(null),
    catch: (error) => new PlatformNotSupported({ platform, arch, reason: `libc could not be opened: ${String(error)}` })
  })
  yield* adviseHugePages(koffi, libc)
  return {
    koffi,
    architecture,
    declare: (name, result, args) =>
      Effect.try({
        try: (): CFunction => libc.func(name, result, args),
        catch: (error) =>
          new PlatformNotSupported({ platform, arch, reason: `libc has no ${name} to call: ${String(error)}` })
      })
  }
})

/**
 * A disk is given so many operations as soon as they are there, and not all of them at the end of a turn: it would be idle until then.
 * Measured at 4 KiB and depth 32, best of 11 rounds against fio: 0.96 for reads and 0.87 for writes, instead of 0.86 and 0.59.
 */
export const eagerSubmissions = 4

/** Memory for what an engine and the kernel tell each other. */
export const memoryOf = (engine: string, byteLength: number): Effect.Effect<Part, EngineUnavailable> =>
  Effect.try({
    try: () => takeAlone(byteLength),
    catch: (error) => new EngineUnavailable({ engine, reason: `there is no memory for it (${String(error)})` })
  })

/** The halves of a 64-bit number that is a safe integer. */
export const low = (value: number): number => value >>> 0
export const high = (value: number): number => Math.floor(value / 0x1_0000_0000)

/** Where a slab is: asked once, for backing stores do not move. */
export const addressOf = (koffi: Koffi, slab: Slab): number => {
  if (slab.address === 0) slab.address = Number(koffi.address(new Uint8Array(slab.buffer)))
  return slab.address
}
