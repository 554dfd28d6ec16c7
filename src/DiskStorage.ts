/**
 * A preallocated, direct-I/O temp file with a lifetime: acquired in a Scope, unlinked and closed when the Scope ends, whatever
 * happens in between; or kept for the next one, where that is asked for.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import type { AlignedBuffer } from "./AlignedBuffer.js"
import type {
  AcquireError,
  BytesError,
  DuplicateKey,
  ExtentsUnavailable,
  InvalidOption,
  IoFailed,
  IoStalled,
  KeepFailed,
  ReleaseFailed,
  StorageClosed,
  StorageDegraded,
  StorageUnlinked,
  SweepFailed,
  TransferError,
  UnlinkFailed
} from "./DiskStorageError.js"
import * as internal from "./internal/diskStorage.js"
import { unwrapOptions } from "./internal/options.js"
import * as internalProgress from "./internal/progress.js"
import * as internalSweep from "./internal/sweep.js"
import type { IoEngine, Results } from "./IoEngine.js"
import type { Syscalls } from "./Syscalls.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: typeof internal.TypeId = internal.TypeId

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * How a storage is made.
 *
 * @since 0.1.0
 * @category models
 */
export interface DiskStorageOptions {
  /** Bytes: a whole number above 0. The file is this rounded up to max(4096, offset alignment), and one more of those with `keepAt`. */
  readonly size: number
  /** Where the file is made; created (mode 0700) when missing, and left. Default `/tmp/`. */
  readonly directory?: string | undefined
  /**
   * `required` (default): O_DIRECT was taken and read back, or the acquisition fails; a warning where I/O is buffered all the same.
   * `proven`: a write and a read of the file's first page (of the private one of a file that is taken up) went past the page cache, or
   * the acquisition fails with `DirectIoUnavailable`. `preferred`: buffered I/O, with a warning, where O_DIRECT was not taken. `disabled`: buffered I/O.
   */
  readonly directIo?: "proven" | "required" | "preferred" | "disabled" | undefined
  /**
   * `default`: O_DIRECT is set with fcntl after the file was made. `open-direct`: the file is reopened with it, for filesystems
   * that ignore F_SETFL (IBM Storage Scale).
   */
  readonly openStrategy?: "default" | "open-direct" | undefined
  /**
   * What to do where the filesystem has no fallocate. `truncate` (default): a sparse file, whose writes can run out of space
   * later. `zero-fill`: write zeros over all of it, which takes as long as the disk needs.
   */
  readonly fallback?: "truncate" | "zero-fill" | undefined
  /**
   * Write zeros over the whole file once after it was allocated, so that the first writes meet written extents, which filesystems
   * overwrite faster. In the device where the kernel can (`FALLOC_FL_WRITE_ZEROES`), else as long as a zero-fill takes. Refused with
   * `PrewriteRefused` where copy-on-write makes it meaningless; implies `fallback: "zero-fill"`. Default false.
   */
  readonly prewrite?: boolean | undefined
  /** Unlink the file right after its creation, before anything is allocated: nothing to leave behind, nothing to register. */
  readonly earlyUnlink?: boolean | undefined
  /**
   * Path at which `keep` leaves the file, and at which a file that a storage of the same `size` has kept is taken up. `directory` is that
   * of this path. Until it is kept the file has a name of its own, and is gone at release: what is taken up can be taken up once, and
   * there is nothing to take up after a crash. Who of two processes is second gets a new file. What is at the path and was not kept by a
   * storage, or cannot be read or renamed by this process, is not touched: a warning tells of it. What was kept and does not fit is
   * removed, with a warning: another size, a file that was cut or has grown, a label that is damaged. Its name must not begin like those of temp files, which are swept.
   */
  readonly keepAt?: string | undefined
  /**
   * Before the first storage that this process makes in a directory, `sweep` it: files that killed processes have left give their
   * space back. Files that it leaves, and all leftovers where it is false, are counted in one warning. Default true.
   */
  readonly sweep?: boolean | undefined
  /**
   * After so many failures in a row of reads, or of writes and syncs, the operations of that direction fail with `StorageDegraded`, before
   * any system call: a whole number from 1, or `Infinity` for never. Default 16.
   */
  readonly failureLimit?: number | undefined
  /** How often one operation is let through then; when one succeeds, all are. Default 10 seconds. */
  readonly retryAfter?: Duration.DurationInput | undefined
  /**
   * How long each step of a release waits for the kernel: for what is in flight, the removal of the name, the closing. Default 60
   * seconds; `Infinity` waits until it answers. What takes longer goes on by itself and is told in `ReleaseFailed`. It does not bound
   * who has borrowed the descriptor (`withFd`), nor the acquisition and the finalizers of registrations: those are waited for.
   */
  readonly releaseTimeout?: Duration.DurationInput | undefined
  /**
   * Do not look at who else may write to `directory` and to what leads to it; see `DirectoryUnsafe`. For directories all of whose users
   * are trusted, such as one that everybody may write in a container of one's own. Default false.
   */
  readonly trustDirectory?: boolean | undefined
  /**
   * The path of a mount point on which `directory` must lie. Nothing is made where no filesystem is mounted there: a disk that is
   * missing must not fill the one below it. It is checked before any directory is made, and the file is checked again, before it
   * is allocated. Fails with `MountMissing`. Default: no mount is required.
   */
  readonly requireMount?: string | undefined
}

/**
 * How a storage fares, by direction (syncs are among the writes): failures in a row, and whether those are so many that operations fail
 * at once. `corrupted`: blocks that a `BlockStore` has read from it and that did not have their checksum, since the storage was made. The
 * storage itself checks no bytes, and goes on; the store takes it out after its own `failureLimit`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Health {
  readonly read: { readonly failures: number; readonly degraded: boolean }
  readonly write: { readonly failures: number; readonly degraded: boolean }
  readonly corrupted: number
}

/**
 * What is known about direct I/O. `flag`: O_DIRECT is set on the descriptor (read back from the kernel). `verdict`: whether I/O
 * bypasses the page cache, which the flag alone does not prove; `reason` names its evidence.
 *
 * The doctor and `directIo: "proven"` decide by the same function. The evidence is the answer of `statx(2)` on ext2, ext3, ext4 and
 * xfs. On other filesystems it is one page of the file, written and read while the page cache is observed. The type of a filesystem
 * is no evidence. Without any the verdict is `unknown`. It describes the time of the acquisition: on btrfs a balance to another
 * profile of data changes how later writes go.
 *
 * @since 0.1.0
 * @category models
 */
export interface DirectIoState {
  readonly flag: boolean
  readonly verdict: "direct" | "buffered" | "unknown"
  readonly reason: string
}

/**
 * Multiples, in bytes, that `read` and `write` ask for: of the memory address, the file offset and the length. 1 is any.
 *
 * @since 0.1.0
 * @category models
 */
export interface Alignment {
  readonly memory: number
  readonly offset: number
  readonly length: number
}

/**
 * How the file got its blocks; `kept` is that of a file that was taken up, whose blocks are told by its map of extents, where the
 * filesystem has one. `overwritesMayRunOutOfSpace` is false only where it is known that every block of the file is
 * reserved and rewritten in place. A snapshot or a reflinked copy of the file that is made later changes that, and so does a block
 * device that allocates late (thin provisioning).
 *
 * @since 0.1.0
 * @category models
 */
export interface Allocation {
  readonly method: "fallocate" | "zero-fill" | "truncate" | "kept"
  /** Whether every extent is known to have been written once: by a zero-fill, by `prewrite`, or before it was kept. */
  readonly written: boolean
  readonly overwritesMayRunOutOfSpace: boolean
}

/**
 * What a range of a file is, and so what a write to it meets:
 *
 * - `written`: blocks with data, which are overwritten.
 * - `unwritten`: allocated blocks that read as zeros; their first write changes metadata.
 * - `hole`: nothing; a write allocates.
 * - `inline`: data inside of the inode or a metadata block.
 * - `shared`: blocks that another file or snapshot has too; a write goes elsewhere.
 * - `delayed`: data in memory for which no block has been chosen yet.
 * - `encoded`: compressed or encrypted data.
 * - `unknown`: the filesystem does not say where it is.
 *
 * @since 0.1.0
 * @category models
 */
export const ExtentKind = Schema.Literal(
  "written",
  "unwritten",
  "hole",
  "inline",
  "shared",
  "delayed",
  "encoded",
  "unknown"
)

/**
 * @since 0.1.0
 * @category models
 */
export type ExtentKind = typeof ExtentKind.Type

/**
 * A range of a file, in bytes. `flags` are those of FIEMAP (`FIEMAP_EXTENT_*` in `uapi/linux/fiemap.h`), 0 for a hole, from which
 * `kind` follows.
 *
 * @since 0.1.0
 * @category models
 */
export interface Extent {
  readonly offset: number
  readonly length: number
  readonly kind: ExtentKind
  readonly flags: number
}

/**
 * @since 0.1.0
 * @category models
 */
export interface StorageType {
  readonly _tag: "Disk"
}

/**
 * One of a batch: all of `buffer`, at `offset` (bytes, a multiple of `alignment.offset`).
 *
 * @since 0.1.0
 * @category models
 */
export interface Transfer {
  readonly offset: number
  readonly buffer: AlignedBuffer
}

/**
 * A storage of `size` bytes. Everything it says about itself is what the kernel answered.
 *
 * An argument of a wrong type is an `InvalidOption`; callbacks, effects and tags are not checked.
 *
 * Operations may run concurrently; overlapping concurrent writes end in an unspecified order. After release every effect here
 * fails with `StorageClosed` before any system call, `health`, `unlinked` and `close` excepted.
 *
 * @since 0.1.0
 * @category models
 */
export interface DiskStorage {
  readonly [TypeId]: TypeId
  readonly storageType: StorageType
  /** A file has no address. */
  readonly addr: 0
  /** Absolute. Names the file while it is linked. */
  readonly path: string
  /** bytes, as asked */
  readonly size: number
  /** `type` is the `statfs(2)` magic number, `name` what it is called, in hexadecimal where it is not known. */
  readonly filesystem: { readonly type: number; readonly name: string }
  readonly directIo: DirectIoState
  readonly alignment: Alignment
  readonly allocation: Allocation

  /**
   * Reads `into.byteLength` bytes at `offset` (bytes, a multiple of `alignment.offset`) straight into `into`; no copy. `into`
   * belongs to the kernel until the effect ends, also when it is interrupted.
   */
  readonly read: (offset: number, into: AlignedBuffer) => Effect.Effect<void, TransferError>
  /** Writes all of `from` at `offset`, as `read` reads. */
  readonly write: (offset: number, from: AlignedBuffer) => Effect.Effect<void, TransferError>
  /**
   * Many reads at once, in any order, with a result for each: none hides what became of another. It ends when all have ended, and
   * costs less than as many `read`s. It fails as a whole where `transfers` is no array, or one of more than 2^22.
   */
  readonly readBatch: (transfers: ReadonlyArray<Transfer>) => Effect.Effect<Results<TransferError>, InvalidOption>
  readonly writeBatch: (transfers: ReadonlyArray<Transfer>) => Effect.Effect<Results<TransferError>, InvalidOption>
  /**
   * The way in without Effect, for those who count microseconds: `done` is called once, perhaps before this returns, with the error if
   * there is one. Nothing can take the transfer back; `done` must not throw, and how many transfers wait is the caller's to bound.
   */
  readonly unsafeTransfer: (
    kind: "read" | "write",
    transfer: Transfer,
    done: (error: TransferError | undefined) => void
  ) => void
  /** Any range, through aligned bounce buffers of the storage. The result is the caller's. */
  readonly readBytes: (offset: number, length: number) => Effect.Effect<Uint8Array, BytesError>
  /**
   * Any range, through the same bounce buffers: a partial page is read, changed and written back, so do not `write` to that page
   * meanwhile; `writeBytes` among themselves lose nothing. `bytes` is read until the effect ends.
   */
  readonly writeBytes: (offset: number, bytes: Uint8Array) => Effect.Effect<void, BytesError>
  /** The bytes of a range, in order, in chunks of `chunkBytes` (default 1 MiB), the last one shorter; read ahead by one chunk. */
  readonly stream: (
    range: { readonly offset: number; readonly length: number },
    chunkBytes?: number
  ) => Stream.Stream<Uint8Array, BytesError>
  /** Writes what comes one after the other from `offset` on, and answers how many bytes that were. */
  readonly sink: (offset: number) => Sink.Sink<number, Uint8Array, never, BytesError>
  /** `fdatasync`: what was written before survives a power cut. */
  readonly sync: Effect.Effect<void, StorageClosed | StorageDegraded | IoFailed | IoStalled>

  /** How the transfers have fared lately; may be asked at any time, and asks no disk. */
  readonly health: Effect.Effect<Health>

  /**
   * Lends the file descriptor for as long as `use` runs; release waits for it. Do not keep the number, do not close it, and do
   * not release the storage inside `use`: that waits for itself.
   */
  readonly withFd: <A, E, R>(use: (fd: number) => Effect.Effect<A, E, R>) => Effect.Effect<A, E | StorageClosed, R>

  /**
   * The map of the file as it is now, in order and without gaps: which condition the next write to a range meets. `prewrite` makes
   * every extent `written`. Delayed extents are seen before they are chosen; nothing is written out for this.
   */
  readonly extents: Effect.Effect<ReadonlyArray<Extent>, StorageClosed | ExtentsUnavailable>

  /** The file is not kept, and is known to have no link: false while it has one, or where the filesystem does not count them. */
  readonly unlinked: Effect.Effect<boolean>
  /**
   * Removes the name, wherever its directory is now; the space stays until release. Fails, with the links that are left, when the file has
   * another name. Does nothing when it has none; may be called again after a failure.
   */
  readonly unlink: Effect.Effect<void, UnlinkFailed | StorageClosed>

  /**
   * Runs `acquire` in a scope that lives until `deregister` or release, and keeps what it made under `tag`. Registrations are
   * released newest first, before unlink and close. With `linked: true` it is refused once the file has no name; do not `unlink`
   * while it is being acquired. A descriptor lent to `acquire` stays open until the finalizers of the registration have run; they
   * meet a closed storage, and must not call `close`, which waits for them.
   */
  readonly register: <I, S, E, R>(
    tag: Context.Tag<I, S>,
    acquire: Effect.Effect<S, E, R>,
    options?: { readonly linked?: boolean | undefined }
  ) => Effect.Effect<S, E | DuplicateKey | StorageClosed | StorageUnlinked, Exclude<R, Scope.Scope>>
  /**
   * Registers, then unlinks, for handles that need a linked file (cuFile, NIXL) of which nothing shall be left. Fails, with the
   * file still linked, when the registration does; a failed unlink leaves the registration in place and is told in `unlink`.
   */
  readonly registerThenUnlink: <I, S, E, R>(
    tag: Context.Tag<I, S>,
    acquire: Effect.Effect<S, E, R>
  ) => Effect.Effect<
    { readonly registration: S; readonly unlink: Either.Either<void, UnlinkFailed> },
    E | DuplicateKey | StorageClosed | StorageUnlinked,
    Exclude<R, Scope.Scope>
  >
  readonly registration: <I, S>(tag: Context.Tag<I, S>) => Effect.Effect<Option.Option<S>, StorageClosed>
  readonly isRegistered: <I, S>(tag: Context.Tag<I, S>) => Effect.Effect<boolean, StorageClosed>
  /** Releases one registration; false when there is none. */
  readonly deregister: <I, S>(tag: Context.Tag<I, S>) => Effect.Effect<boolean, StorageClosed>

  /**
   * Where the storage is to be kept, and whether its content is that of one which was kept there, with the 32 bytes that `keepAs` was
   * given (zeros by `keep`); undefined without `keepAt`.
   */
  readonly keptAt:
    | { readonly path: string; readonly takenUp: boolean; readonly mark: Uint8Array | undefined }
    | undefined
  /**
   * Keeps the file at `keepAt` for the next storage that is made with that, in place of unlinking it at release: syncs it, labels it
   * and gives it that name in one step. It is for the end of a storage: it waits for what is in flight, releases the registrations,
   * and everything but `close`, `unlinked` and `keep` itself fails with `StorageClosed` afterwards, since what is kept must not change.
   * When it fails the file is unlinked at release, unless `keep` is called again and succeeds, which it cannot after a failed sync; where
   * an option is missing, or something was in the way from the beginning, the storage can be used as before. Not for the inside of `withFd`: it would wait for itself.
   */
  readonly keep: Effect.Effect<void, KeepFailed | StorageClosed>
  /**
   * The same, with a mark for the next one to find, the first 32 bytes of `mark`: the digest of an index that lies in the file, say, by
   * which it is known to be of this content, and not one that an earlier life has left there.
   */
  readonly keepAs: (mark: Uint8Array) => Effect.Effect<void, KeepFailed | StorageClosed | InvalidOption>

  /**
   * Releases now what the end of the Scope releases: waits for what is in flight, releases registrations, unlinks, closes. Every
   * step that failed, or had no answer within `releaseTimeout`, is in `ReleaseFailed`; calling it again tells the same and does nothing. Not for the inside of `withFd` nor of a
   * registration's finalizer: it would wait for itself.
   */
  readonly close: Effect.Effect<void, ReleaseFailed>
}

/**
 * @since 0.1.0
 * @category tags
 */
export const DiskStorage: Context.Tag<DiskStorage, DiskStorage> = Context.GenericTag<DiskStorage>(
  "effect-disk-storage/DiskStorage"
)

/**
 * What an acquisition is doing that takes long: `done` of `total` bytes.
 *
 * @since 0.1.0
 * @category models
 */
export interface Progress {
  readonly step: "zero-fill" | "prewrite"
  readonly path: string
  readonly done: number
  readonly total: number
}

/**
 * Who is told of the progress of an acquisition; nobody by default. It adds no requirement: provide it around `make` or to a
 * layer.
 *
 * @example
 * ```ts
 * import { DiskStorage } from "effect-disk-storage"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 *
 * const storage = DiskStorage.make({ size: 1_000_000, fallback: "zero-fill" }).pipe(
 *   Effect.provideService(DiskStorage.ProgressListener, (progress) =>
 *     Console.log(`${progress.done} of ${progress.total} bytes`))
 * )
 * ```
 *
 * @since 0.1.0
 * @category tags
 */
export const ProgressListener: Context.Reference<
  internalProgress.ProgressListener,
  (progress: Progress) => Effect.Effect<void>
> = internalProgress.ProgressListener

/**
 * @since 0.1.0
 * @category models
 */
export interface SweepOptions {
  /** Remove nothing, and tell what would be removed. Default false. */
  readonly dryRun?: boolean | undefined
  /**
   * Remove files whose locks do not tell whether their owner lives (FUSE, NFS, Lustre, …), too, unless somebody on this host is seen to
   * have them locked. Only for a directory that no process uses, on other hosts neither. Default false.
   */
  readonly force?: boolean | undefined
}

/**
 * A file that has the name of a temp file. `bytes` it holds on the disk. `outcome`: `removed`; `abandoned`, what `dryRun` makes of that;
 * `in use` by an owner who is alive; `left` where it is, or `gone` meanwhile, for a `reason`.
 *
 * @since 0.1.0
 * @category models
 */
export const SweepFinding = Schema.Struct({
  path: Schema.String,
  bytes: Schema.Number,
  outcome: Schema.Literal("removed", "abandoned", "in use", "left", "gone"),
  reason: Schema.optional(Schema.String)
})

/**
 * @since 0.1.0
 * @category models
 */
export type SweepFinding = typeof SweepFinding.Type

/**
 * @since 0.1.0
 * @category models
 */
export const SweepReport = Schema.Struct({
  directory: Schema.String,
  dryRun: Schema.Boolean,
  files: Schema.Array(SweepFinding)
})

/**
 * @since 0.1.0
 * @category models
 */
export type SweepReport = typeof SweepReport.Type

/**
 * Removes the temp files of this user in `directory` whose owner is gone, and tells what it found. An owner has its file locked for as
 * long as it lives, whatever process, container or mount of the same filesystem it is in; that lock is what is looked at. Nothing else is
 * touched: no file of another name, such as those of the Rust original or those that are kept; no link; no other user's file; nothing where the
 * locks of a filesystem do not tell (all but ext2, ext3, ext4, xfs, btrfs, tmpfs and overlay), unless `force` is set. Any number of sweeps may run beside
 * each other and beside storages that are being made.
 *
 * Two things it cannot see: an overlay's upper directory, swept from outside of the overlay, where locks taken through it are not seen; and
 * an owner that is gone while a child that it forked without exec lives on, whose files are left.
 *
 * @since 0.1.0
 * @category constructors
 */
export const sweep: (
  directory: string,
  options?: SweepOptions
) => Effect.Effect<SweepReport, SweepFailed | InvalidOption, Syscalls> = internalSweep.sweep

/**
 * Acquires a storage: makes the temp file, or takes up the one that was kept, sets O_DIRECT and reads it back, finds the alignment, allocates. Whatever step fails
 * or is interrupted, the file is unlinked and closed before the failure is seen; after success that happens when the Scope ends.
 *
 * Where the filesystem counts less free space than the file takes it fails with `InsufficientSpace`, before it allocates, also where the
 * file would be sparse, or the filesystem would compress what is written to it. fallocate alone knows whether there is room. It is asked
 * without a look at the count on btrfs, whose count lags, and where there is no count; another process may be faster; a quota need not
 * be in the count: what fallocate refuses is `OutOfSpace`.
 *
 * On tmpfs and ramfs it also compares the size with the memory limits of its cgroups and of the machine, and names the tightest one. Above
 * a limit the kernel kills the process instead of refusing. The check is a look: other processes can take the memory afterwards.
 *
 * @example
 * ```ts
 * import { AlignedBuffer, DiskStorage, Linux } from "effect-disk-storage"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const storage = yield* DiskStorage.make({ size: 256 * 1024 * 1024, directory: "/tmp/" })
 *   const block = yield* AlignedBuffer.make(1024 * 1024)
 *   block.bytes.fill(7)
 *   yield* storage.write(0, block)
 *   yield* storage.read(0, block)
 * }).pipe(Effect.scoped, Effect.provide(Linux.layer))
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: (
  options: DiskStorageOptions
) => Effect.Effect<DiskStorage, AcquireError, Syscalls | IoEngine | Scope.Scope> = internal.make

/**
 * The storage as a layer. Keep it in a const: two calls make two files. For two storages give each a tag of its own:
 * `Layer.scoped(MyTag, DiskStorage.make(options))`.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (options: DiskStorageOptions): Layer.Layer<DiskStorage, AcquireError, Syscalls | IoEngine> =>
  Layer.scoped(DiskStorage, make(options))

/**
 * The same with the options read from a `Config`, such as `DiskStorageConfig.options()`, or a record of them.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerConfig = (
  config: Config.Config.Wrap<DiskStorageOptions>
): Layer.Layer<DiskStorage, AcquireError | ConfigError.ConfigError, Syscalls | IoEngine> =>
  Layer.scoped(DiskStorage, Effect.flatMap(unwrapOptions(config), make))
