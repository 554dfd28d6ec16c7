/**
 * The C libraries of the GPU path over host memory: compiled once per test file, and what their schedules of faults and counts are asked
 * through.
 */
import { afterAll, assert, describe, it } from "@effect/vitest"
import koffi from "koffi"
import { execFileSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Paths } from "./stubs/compile.js"
import { compileStubs } from "./stubs/compile.js"

const whyNot = (): string | undefined => {
  try {
    execFileSync("cc", ["--version"], { stdio: "pipe" })
    return process.platform === "linux" ? undefined : "the stubs are libraries of Linux"
  } catch {
    return "there is no cc to compile the stub libraries with"
  }
}

/**
 * A suite over the stub libraries. Where they cannot be compiled it is one skipped test whose name says why, and a failing one when
 * `EDS_REQUIRE_REAL` is 1.
 */
export const describeStubs = (name: string, body: (paths: Paths) => void): void => {
  const reason = whyNot()
  if (reason === undefined) {
    const directory = mkdtempSync(join(tmpdir(), "eds-stubs-"))
    const remove = () => rmSync(directory, { recursive: true, force: true })
    let paths: Paths
    try {
      paths = compileStubs(directory)
    } catch (error) {
      remove()
      throw error
    }
    describe(name, () => {
      afterAll(remove)
      body(paths)
    })
  } else if (process.env["EDS_REQUIRE_REAL"] === "1") {
    describe(name, () => {
      it("can be made here", () => assert.fail(reason))
    })
  } else {
    describe(name, () => {
      it.skip(`not here: ${reason}`, () => {})
    })
  }
}

export interface Alive {
  readonly allocations: number
  readonly pinned: number
  readonly contexts: number
  /** Calls that were refused since they were mistakes of the caller, such as the wrong context. */
  readonly refusals: number
}

/** The schedule and the counts of the stub of CUDA; `name` is the exported one, such as `cuMemAlloc_v2`. */
export interface CudaControl {
  /** The `nth` call from now on, from 1, fails with `code` and does nothing; with 0 each does. */
  readonly fail: (name: string, nth: number, code: number) => void
  readonly delay: (name: string, nth: number, millis: number) => void
  readonly alive: () => Alive
  /** How many calls are in their delay. */
  readonly delayed: () => number
  readonly reset: () => void
}

export const cudaControl = (path: string): CudaControl => {
  const library = koffi.load(path)
  const count: (what: number) => number = library.func("stub_cuda_alive", "int", ["int"])
  return {
    fail: library.func("stub_cuda_fail", "void", ["str", "int", "int"]),
    delay: library.func("stub_cuda_delay", "void", ["str", "int", "int"]),
    alive: () => ({ allocations: count(0), pinned: count(1), contexts: count(2), refusals: count(3) }),
    delayed: () => count(4),
    reset: library.func("stub_cuda_reset", "void", [])
  }
}

export interface CuFileAlive {
  readonly opens: number
  readonly handles: number
  readonly buffers: number
  readonly batches: number
  readonly inFlight: number
  /** What the real library need not notice, and what must not happen: transfers that outlive what they use, leaks at close. */
  readonly misuses: number
}

/** The schedule and the counts of the stub of cuFile; `name` is the exported one, `cuFileBatchIOSubmit transfer` one of a batch. */
export interface CuFileControl {
  /** The `nth` call from now on, or each with 0, fails: with a code of cuFile (above 5000), of CUDA below, or of a transfer with −errno. */
  readonly fail: (name: string, nth: number, code: number) => void
  readonly delay: (name: string, nth: number, millis: number) => void
  /** It moves only so many bytes; of `cuFileBatchIOGetStatus`, it tells of so many. */
  readonly short: (name: string, nth: number, count: number) => void
  /** Whether files without O_DIRECT are taken. */
  readonly compat: (on: number) => void
  readonly props: (nvfs: number, support: number, control: number, features: number, maxBatch: number) => void
  readonly parameter: (parameter: number, value: number) => void
  readonly alive: () => CuFileAlive
  /** What the last misuse was. */
  readonly misuse: () => string
  /** The calls since the last reset, in order; a deregistration says whether the file was linked, unlinked or closed. */
  readonly calls: () => Array<string>
  readonly reset: () => void
}

export const cuFileControl = (path: string): CuFileControl => {
  const library = koffi.load(path)
  const count: (what: number) => number = library.func("stub_cufile_alive", "int", ["int"])
  const call: (index: number) => string | null = library.func("stub_cufile_call", "str", ["int"])
  return {
    fail: library.func("stub_cufile_fail", "void", ["str", "int", "int"]),
    delay: library.func("stub_cufile_delay", "void", ["str", "int", "int"]),
    short: library.func("stub_cufile_short", "void", ["str", "int", "int"]),
    compat: library.func("stub_cufile_compat", "void", ["int"]),
    props: library.func("stub_cufile_props", "void", ["uint", "uint", "uint", "uint", "uint"]),
    parameter: library.func("stub_cufile_parameter", "void", ["int", "int"]),
    alive: () => ({
      opens: count(0),
      handles: count(1),
      buffers: count(2),
      batches: count(3),
      inFlight: count(4),
      misuses: count(5)
    }),
    misuse: library.func("stub_cufile_misuse", "str", []),
    calls: () => {
      const names: Array<string> = []
      for (let name = call(0); name !== null; name = call(names.length)) names.push(name)
      return names
    },
    reset: library.func("stub_cufile_reset", "void", [])
  }
}

export interface NixlAlive {
  readonly agents: number
  readonly backends: number
  /** Parameters, strings and lists. */
  readonly lists: number
  readonly requests: number
  readonly files: number
  readonly memory: number
}

/** The schedule and the counts of the stub of NIXL; `name` is the exported one. */
export interface NixlControl {
  /** The `nth` call from now on, from 1, answers `status` and does nothing; with 0 each does. */
  readonly fail: (name: string, nth: number, status: number) => void
  readonly delay: (name: string, nth: number, millis: number) => void
  /** What becomes of the next request that is posted. */
  readonly transfer: (fate: {
    readonly error?: number
    readonly late?: number
    readonly never?: boolean
    readonly short?: boolean
    /** Through POSIX: the index of the piece that fails. Default 0. */
    readonly piece?: number
  }) => void
  /** io_uring: as it is here, refused by the backend, or passed over, which leaves the backend without a queue. */
  readonly uring: (how: "available" | "refused" | "passed over") => void
  /** Whether POSIX moves nothing, and the longest piece that it was given. */
  readonly dry: (on: boolean) => void
  readonly longest: () => number
  /** What was never to end ends now. */
  readonly end: (status: number) => void
  readonly alive: () => NixlAlive
  /** Calls that were refused as mistakes of the caller, and how often a status was asked for. */
  readonly refusals: () => number
  readonly looks: () => number
  /** How often `aio_cancel` was called. */
  readonly cancels: () => number
  /** The descriptor that a file is registered by, −1 when none is. */
  readonly registeredFd: () => number
  readonly parameter: () => string
  readonly reset: () => void
}

export const nixlControl = (path: string): NixlControl => {
  const library = koffi.load(path)
  const count: (what: number) => number = library.func("stub_nixl_alive", "int", ["int"])
  const transfer: (...args: ReadonlyArray<number>) => void = library.func("stub_nixl_transfer", "void", [
    "int",
    "int",
    "int",
    "int",
    "int"
  ])
  const uring: (how: number) => void = library.func("stub_nixl_no_uring", "void", ["int"])
  const dry: (on: number) => void = library.func("stub_nixl_dry", "void", ["int"])
  return {
    fail: library.func("stub_nixl_fail", "void", ["str", "int", "int"]),
    delay: library.func("stub_nixl_delay", "void", ["str", "int", "int"]),
    transfer: ({ error = 0, late = 0, never = false, piece = 0, short = false }) =>
      transfer(error, late, Number(never), Number(short), piece),
    uring: (how) => uring(["available", "refused", "passed over"].indexOf(how)),
    dry: (on) => dry(Number(on)),
    longest: library.func("stub_nixl_longest", "double", []),
    end: library.func("stub_nixl_end", "void", ["int"]),
    alive: () => ({
      agents: count(0),
      backends: count(1),
      lists: count(2),
      requests: count(3),
      files: count(4),
      memory: count(5)
    }),
    refusals: () => count(6),
    looks: () => count(7),
    cancels: () => count(9),
    registeredFd: library.func("stub_nixl_registered_fd", "int", []),
    parameter: library.func("stub_nixl_parameter", "str", []),
    reset: library.func("stub_nixl_reset", "void", [])
  }
}
