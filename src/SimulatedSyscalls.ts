/**
 * An in-memory kernel, for tests of services that stand on a disk storage: it behaves like the filesystem it is told to be,
 * fails, shortens and delays calls on schedule, interrupts fibres at chosen calls, writes a journal, and tells what leaked.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type { InvalidOption } from "./DiskStorageError.js"
import { makeQueue, wholeNumber } from "./internal/engineOptions.js"
import { makeEngine } from "./internal/ioQueue.js"
import { open as openDevice } from "./internal/simulatedDevice.js"
import type { Transfer } from "./internal/simulatedDevice.js"
import * as internal from "./internal/simulatedKernel.js"
import { IoEngine } from "./IoEngine.js"
import type { ErrnoCode, SyscallName } from "./Syscalls.js"
import { Syscalls } from "./Syscalls.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = Symbol.for("effect-disk-storage/SimulatedKernel")

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * The filesystem that the kernel plays:
 *
 * - `ext4`: fallocate, direct I/O at 512 bytes.
 * - `ext2`: no fallocate; direct I/O strictly at 4096 bytes (a disk with such sectors).
 * - `lustre`: no fallocate, no answer from statx; direct I/O strictly at 4096 bytes of address, length and offset.
 * - `btrfs`: copy-on-write unless the empty file was made NOCOW: overwrites then need new space.
 * - `btrfsMirrored`: the same with data as dup, raid1 or raid10: writes go through the page cache, of NOCOW files too.
 * - `tmpfs`: takes O_DIRECT and means nothing by it.
 * - `ramfs`: refuses O_DIRECT, and leaves the file behind when it is refused at creation; no fallocate.
 * - `storageScale`: F_SETFL succeeds and is ignored; O_DIRECT works at open.
 * - `dataJournal`: ext4 with `data=journal`: takes the flag, and statx answers 0/0.
 *
 * @since 0.1.0
 * @category models
 */
export type Profile =
  | "ext4"
  | "ext2"
  | "lustre"
  | "btrfs"
  | "btrfsMirrored"
  | "tmpfs"
  | "ramfs"
  | "storageScale"
  | "dataJournal"

/**
 * @since 0.1.0
 * @category models
 */
export interface SimulatedOptions {
  /** Default `ext4`. */
  readonly profile?: Profile | undefined
  /** Bytes that all files together may hold; default 1 GiB. */
  readonly capacity?: number | undefined
  /** How many descriptors may be open at once; default 1024. */
  readonly maxFds?: number | undefined
  /**
   * Directories that exist from the start, with those above them: `/tmp` is sticky and for everybody, others are root's with mode 0755
   * where nothing else is said. Default `/tmp`.
   */
  readonly directories?:
    | ReadonlyArray<
      string | { readonly path: string; readonly mode?: number | undefined; readonly uid?: number | undefined }
    >
    | undefined
  /** Empty regular files that exist from the start, of the user of the process where nothing else is said. */
  readonly files?: ReadonlyArray<string | { readonly path: string; readonly uid?: number | undefined }> | undefined
  /** Symbolic links that exist from the start, of root where nothing else is said. */
  readonly links?:
    | ReadonlyArray<{ readonly path: string; readonly target: string; readonly uid?: number | undefined }>
    | undefined
  /** The user of the process; default 1000. Owners and modes are told, and not enforced. */
  readonly uid?: number | undefined
}

/**
 * What is to happen to one call: the `nth` (from 1) of `syscall`, or of all where there is no `syscall`, counted from the start of
 * the kernel. `Fail`: it answers with an error and does nothing, except a `close`, whose descriptor is gone even then, and an `unlink`
 * with ENOENT, whose name is. `Short`: a
 * transfer moves at most `bytes`. `Late`: it answers after `duration` of the Clock.
 *
 * @since 0.1.0
 * @category models
 */
export interface Fault {
  readonly syscall?: SyscallName | undefined
  readonly nth: number
  readonly outcome:
    | { readonly _tag: "Fail"; readonly code: ErrnoCode }
    | { readonly _tag: "Short"; readonly bytes: number }
    | { readonly _tag: "Late"; readonly duration: Duration.DurationInput }
}

/**
 * One call as it was made. `result` is what the kernel answered: a number, or the name of an error. `memory` is the power of two
 * (bytes, at most 65536) that the address of a transfer's memory is known to be a multiple of.
 *
 * @since 0.1.0
 * @category models
 */
export interface JournalEntry {
  /** from 1, over all calls */
  readonly call: number
  readonly syscall: SyscallName
  /** Of which process; undefined for the one of the layer. */
  readonly process?: number | undefined
  readonly path?: string | undefined
  /** Where `path` was renamed to. */
  readonly to?: string | undefined
  readonly fd?: number | undefined
  readonly offset?: number | undefined
  readonly length?: number | undefined
  readonly memory?: number | undefined
  readonly result: number | ErrnoCode
}

/**
 * Another process on the same kernel. `kill` is SIGKILL: its descriptors are closed and its locks and mappings gone, its files
 * stay, and none of its calls is ever answered again.
 *
 * @since 0.1.0
 * @category models
 */
export interface SimulatedProcess {
  readonly syscalls: Syscalls
  readonly kill: Effect.Effect<void>
}

/**
 * What is still there of what calls of all processes have made: open descriptors, linked files, bytes held by files, mappings. All empty and 0 when
 * nothing leaked.
 *
 * @since 0.1.0
 * @category models
 */
export interface Leaks {
  readonly fds: ReadonlyArray<number>
  readonly files: ReadonlyArray<string>
  readonly bytes: number
  readonly mappings: number
}

/**
 * The control of a simulated kernel.
 *
 * @since 0.1.0
 * @category models
 */
export interface SimulatedKernel {
  readonly [TypeId]: TypeId
  readonly inject: (fault: Fault) => Effect.Effect<void>
  /**
   * Interrupts `fiber` at call `call` (from 1, over all calls): before the call is made, while the kernel is at it, or right after it
   * answered.
   */
  readonly interrupt: (
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    at: { readonly call: number; readonly when: "before" | "during" | "after" }
  ) => Effect.Effect<void>
  readonly journal: Effect.Effect<ReadonlyArray<JournalEntry>>
  readonly leaks: Effect.Effect<Leaks>
  /** Starts another process, of `uid`, or of the user of the first one. Faults and interruptions reach its calls, too. */
  readonly process: (options?: { readonly uid?: number | undefined }) => Effect.Effect<SimulatedProcess>
}

/**
 * @since 0.1.0
 * @category tags
 */
export const SimulatedKernel: Context.Tag<SimulatedKernel, SimulatedKernel> = Context.GenericTag<SimulatedKernel>(
  "effect-disk-storage/SimulatedKernel"
)

/**
 * A kernel of its own for everything that shares this layer.
 *
 * @example
 * ```ts
 * import { DiskStorage, IoEngine, SimulatedSyscalls } from "effect-disk-storage"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const Kernel = Layer.provideMerge(IoEngine.layerSyscalls, SimulatedSyscalls.layer({ profile: "lustre" }))
 *
 * const program = Effect.gen(function*() {
 *   const kernel = yield* SimulatedSyscalls.SimulatedKernel
 *   yield* kernel.inject({ syscall: "ftruncate", nth: 1, outcome: { _tag: "Fail", code: "ENOSPC" } })
 *   const failure = yield* Effect.flip(Effect.scoped(DiskStorage.make({ size: 4096 })))
 *   const { files } = yield* kernel.leaks
 *   return [failure._tag, files] // OutOfSpace, []
 * }).pipe(Effect.provide(Kernel))
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (options: SimulatedOptions = {}): Layer.Layer<Syscalls | SimulatedKernel> =>
  Layer.effectContext(Effect.sync(() => {
    const { control, syscalls, transfer } = internal.make(options)
    const service: SimulatedKernel = { [TypeId]: TypeId, ...control }
    transfers.set(service, transfer)
    return Context.make(Syscalls, syscalls).pipe(Context.add(SimulatedKernel, service))
  }))

/** What engines do on a kernel of this module. */
const transfers = new WeakMap<SimulatedKernel, Transfer>()

/**
 * How a simulated engine misbehaves. Each operation is cut into pieces of at most 1 MiB, and what is said here is the probability, for
 * each submission of a piece, of that answer; together they are at most 1.
 *
 * @since 0.1.0
 * @category models
 */
export interface EngineOptions {
  /** The same seed gives the same answers. Default 0. */
  readonly seed?: number | undefined
  /** Fewer bytes than asked for, at least one. Default 0. */
  readonly short?: number | undefined
  /** EIO. Default 0. */
  readonly fail?: number | undefined
  /** EINTR, EAGAIN or EBUSY, which the engine tries again. Default 0. */
  readonly transient?: number | undefined
  /** No answer at all. Default 0. */
  readonly never?: number | undefined
  /** The most pieces in flight. Default 32. */
  readonly depth?: number | undefined
  /** The most bytes in flight. Default 64 MiB. */
  readonly maxBytesInFlight?: number | undefined
  readonly stallTimeout?: Duration.DurationInput | undefined
}

/**
 * An engine over the simulated kernel, with the queue of the real ones and a device that answers in random order and late, and badly
 * as the options say. Bytes move when the answer comes, so that a buffer touched before that shows. The faults and interruptions of
 * `SimulatedKernel` do not reach it; its transfers are in the journal.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerEngine = (options: EngineOptions = {}): Layer.Layer<IoEngine, InvalidOption, SimulatedKernel> =>
  Layer.scoped(
    IoEngine,
    Effect.gen(function*() {
      const transfer = transfers.get(yield* SimulatedKernel)
      if (transfer === undefined) return yield* Effect.dieMessage("the kernel is not one of SimulatedSyscalls.layer")
      const { fail = 0, never = 0, seed = 0, short = 0, transient = 0 } = options
      const depth = yield* wholeNumber("depth", options.depth, 32, 1, 65_536)
      const open = openDevice(transfer, depth, { seed, short, fail, transient, never })
      const queue = yield* makeQueue(Effect.succeed(open), options)
      return makeEngine("simulated", () => queue)
    })
  )
