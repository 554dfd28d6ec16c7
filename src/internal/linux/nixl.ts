/**
 * The C API of NIXL (`src/bindings/rust/wrapper.h` in its sources). Its agent is used on one thread, of its own, since calls may block; what
 * only fills lists in memory is called right here. What calls answer through pointers goes to one page, and is taken before the next one.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { readdirSync, readFileSync, readlinkSync } from "node:fs"
import { NixlFailed, NixlUnavailable } from "../../DiskStorageError.js"
import { errnos } from "../../Syscalls.js"
import { take } from "../slab.js"
import type { Part, Slab } from "../slab.js"
import * as libraryThreads from "./libraryThreads.js"
import type { Again, Value } from "./libraryThreads.js"
import { addressOf, native } from "./native.js"
import { ownRings } from "./ownRings.js"

/** Handles are addresses. */
const handle = "uint64_t"
const out = "uint64_t"
const text = "uint64_t"

const signatures = {
  nixl_capi_create_agent: [text, out],
  nixl_capi_destroy_agent: [handle],
  nixl_capi_get_available_plugins: [handle, out],
  nixl_capi_string_list_size: [handle, out],
  nixl_capi_string_list_get: [handle, "size_t", out],
  nixl_capi_destroy_string_list: [handle],
  nixl_capi_create_params: [out],
  nixl_capi_params_add: [handle, text, text],
  nixl_capi_destroy_params: [handle],
  nixl_capi_create_backend: [handle, text, handle, out],
  nixl_capi_destroy_backend: [handle],
  nixl_capi_create_reg_dlist: ["int", out],
  nixl_capi_reg_dlist_add_desc: [handle, "uint64_t", "size_t", "uint64_t", "uint64_t", "size_t"],
  nixl_capi_destroy_reg_dlist: [handle],
  nixl_capi_register_mem: [handle, handle, handle],
  nixl_capi_deregister_mem: [handle, handle, handle],
  nixl_capi_create_xfer_dlist: ["int", out],
  nixl_capi_xfer_dlist_add_desc: [handle, "uint64_t", "size_t", "uint64_t"],
  nixl_capi_destroy_xfer_dlist: [handle],
  nixl_capi_create_xfer_req: [handle, "int", handle, handle, text, out, handle],
  nixl_capi_post_xfer_req: [handle, handle, handle],
  nixl_capi_get_xfer_status: [handle, handle],
  nixl_capi_release_xfer_req: [handle, handle],
  nixl_capi_destroy_xfer_req: [handle]
} as const

export type Call = keyof typeof signatures

/** These allocate, fill and free lists, and know no agent: a hop to the thread and back costs many times what they do. */
const local = [
  "nixl_capi_create_reg_dlist",
  "nixl_capi_reg_dlist_add_desc",
  "nixl_capi_destroy_reg_dlist",
  "nixl_capi_create_xfer_dlist",
  "nixl_capi_xfer_dlist_add_desc",
  "nixl_capi_destroy_xfer_dlist",
  "nixl_capi_destroy_xfer_req"
] as const satisfies ReadonlyArray<Call>

/** The statuses of `nixl_capi_status_t`. */
export const status = { success: 0, inProgress: 1, backend: -2 } as const
const names: { readonly [status: number]: NixlFailed["name"] } = {
  0: "SUCCESS",
  1: "IN_PROG",
  [-1]: "INVALID_PARAM",
  [-2]: "BACKEND",
  [-3]: "INVALID_STATE",
  [-4]: "EXCEPTION",
  [-5]: "NO_TELEMETRY",
  [-6]: "NOT_FOUND"
}

/** `fcntl.h` and `unistd.h` */
const F_DUPFD_CLOEXEC = 1030
const SEEK_END = 2
/** What `aio_cancel` answers when no request of the descriptor is left (glibc's and musl's `aio.h`). */
const AIO_ALLDONE = 2

/** The descriptors of io_uring in this process but those of our own engines; none where /proc cannot be read. */
const rings = (): ReadonlySet<number> => {
  const found = new Set<number>()
  try {
    for (const fd of readdirSync("/proc/self/fd")) {
      try {
        if (readlinkSync(`/proc/self/fd/${fd}`) === "anon_inode:[io_uring]" && !ownRings.has(Number(fd))) {
          found.add(Number(fd))
        }
      } catch {
        // Closed meanwhile.
      }
    }
  } catch {
    // No /proc: no ring is known.
  }
  return found
}

/**
 * Whether the kernel has completed all that it took from a ring, by the counters in its fdinfo (Linux 5.15): it posts
 * one completion for each submission here. Undefined where the kernel does not show them. While the lock of the ring is
 * held, Linux leaves all lines of the ring out (from 6.7 on): then it is not known to be idle, and is asked again.
 */
export const ringIdleBy = (info: string): boolean | undefined => {
  const taken = /^SqHead:\s*(\d+)$/m.exec(info)?.[1]
  const completed = /^CqTail:\s*(\d+)$/m.exec(info)?.[1]
  if (taken !== undefined && completed !== undefined) return Number(taken) === Number(completed)
  return /^(Sq|Cq|User|Cached)\w*:/m.test(info) ? undefined : false
}

const ringIdle = (fd: number): boolean | undefined => {
  try {
    return ringIdleBy(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))
  } catch {
    return undefined
  }
}

export const failed = (call: string, what: number, target: string): NixlFailed =>
  new NixlFailed({ call, status: what, name: names[what] ?? "UNKNOWN", target })

/** A C string. */
export interface CString {
  readonly part: Part
  readonly address: number
}

export interface Api {
  readonly library: string
  /** What the call answers: 0, 1, or below 0. */
  readonly ask: (
    call: Call,
    args: ReadonlyArray<Value>,
    holds?: unknown,
    again?: Again
  ) => Effect.Effect<number>
  /** Fails where it answers anything but 0; `target` is what it is about, for the error. */
  readonly call: (
    call: Call,
    target: string,
    args: ReadonlyArray<Value>,
    holds?: unknown
  ) => Effect.Effect<void, NixlFailed>
  /** The same, and what the call gives through its pointer, for which `args` has to leave room. */
  readonly make: (
    call: Call,
    target: string,
    args: (out: number) => ReadonlyArray<Value>,
    holds?: unknown
  ) => Effect.Effect<bigint, NixlFailed>
  readonly cString: (text: string) => Effect.Effect<CString>
  /** The text at an address. */
  readonly read: (address: bigint) => string
  readonly addressOf: (slab: Slab) => number
  /** A descriptor of the same file, which children do not inherit. */
  readonly duplicate: (fd: number, target: string) => Effect.Effect<number, NixlFailed>
  readonly close: (fd: number) => Effect.Effect<void>
  /** The size of the file in bytes. */
  readonly sizeOf: (fd: number) => Effect.Effect<number>
  readonly rings: () => ReadonlySet<number>
  /** Whether nothing of a ring is known to be in flight; undefined where the kernel does not show it. */
  readonly ringIdle: (fd: number) => boolean | undefined
  /**
   * Cancels the requests of POSIX AIO for a descriptor that have not begun, and answers whether none is left; undefined
   * where the C library has no such call.
   */
  readonly aioIdle: (fd: number) => Effect.Effect<boolean | undefined>
}

export const load = (library: string): Effect.Effect<Api, NixlUnavailable, Scope.Scope> =>
  Effect.gen(function*() {
    const unavailable = ({ reason }: { readonly reason: string }) => new NixlUnavailable({ library, reason })
    const { koffi } = yield* Effect.mapError(native, unavailable)
    const declarations: { [name: string]: libraryThreads.Declaration } = {
      // libc's, through what NIXL is linked with: it has another name with each libc.
      fcntl: { library, result: "int", args: ["int", "int", "int"] },
      close: { library, result: "int", args: ["int"] },
      lseek: { library, result: "int64_t", args: ["int", "int64_t", "int"] },
      aio_cancel: { library, result: "int", args: ["int", "uint64_t"], optional: true }
    }
    for (const [name, args] of Object.entries(signatures)) declarations[name] = { library, result: "int", args }
    const threads = yield* Effect.mapError(libraryThreads.make(declarations, 1), unavailable)
    // The thread has loaded it: this only finds it.
    const here = yield* Effect.try({
      try: () => {
        const loaded = koffi.load(library)
        return new Map<Call, (...args: ReadonlyArray<Value>) => Value>(
          local.map((name) => [name, loaded.func(name, "int", [...signatures[name]])])
        )
      },
      catch: (error) => unavailable({ reason: String(error) })
    })
    const allocate = (byteLength: number) =>
      Effect.mapError(
        Effect.try(() => take(byteLength)),
        ({ message }) => unavailable({ reason: `there is no memory to call it with (${message})` })
      )
    const addressOfSlab = (slab: Slab) => addressOf(koffi, slab)
    const answers = yield* allocate(8)
    const view = new DataView(answers.slab.buffer, answers.bytes.byteOffset, 8)
    const answersAt = addressOfSlab(answers.slab) + answers.bytes.byteOffset
    // Nobody else's call may answer before this one's answer was taken.
    const turn = yield* Effect.makeSemaphore(1)

    const ask: Api["ask"] = (call, args, holds, again) => {
      const local = here.get(call)
      return local === undefined
        ? Effect.map(threads.call(call, args, holds, again), ({ result }) => Number(result))
        : Effect.sync(() => Number(local(...args)))
    }
    const call: Api["call"] = (name, target, args, holds) =>
      Effect.flatMap(ask(name, args, holds), (result) =>
        result === status.success ? Effect.void : Effect.fail(failed(name, result, target)))
    return {
      library,
      ask,
      call,
      make: (name, target, args, holds) =>
        turn.withPermits(1)(
          Effect.map(call(name, target, args(answersAt), [answers, holds]), () =>
            view.getBigUint64(0, true))
        ),
      cString: (text) =>
        Effect.map(
          Effect.orDie(allocate(new TextEncoder().encode(text).byteLength + 1)),
          (part) => {
            new TextEncoder().encodeInto(text, part.bytes)
            return { part, address: addressOfSlab(part.slab) + part.bytes.byteOffset }
          }
        ),
      read: (address) => String(koffi.decode(address, "char", -1)),
      addressOf: addressOfSlab,
      duplicate: (fd, target) =>
        Effect.flatMap(threads.call("fcntl", [fd, F_DUPFD_CLOEXEC, 0]), ({ errno, result }) =>
          Number(result) >= 0
            ? Effect.succeed(Number(result))
            : Effect.fail(
              new NixlFailed({
                call: "fcntl",
                status: -errno,
                name: errno === errnos.EMFILE ? "EMFILE" : "UNKNOWN",
                target
              })
            )),
      close: (fd) => Effect.asVoid(threads.call("close", [fd])),
      sizeOf: (fd) => Effect.map(threads.call("lseek", [fd, 0, SEEK_END]), ({ result }) => Number(result)),
      rings,
      ringIdle,
      aioIdle: (fd) =>
        threads.has("aio_cancel")
          ? Effect.map(
            threads.call("aio_cancel", [fd, 0]),
            ({ result }) => Number(result) < 0 ? undefined : Number(result) === AIO_ALLDONE
          )
          : Effect.succeed(undefined)
    }
  })
