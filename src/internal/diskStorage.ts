/** The resource: one file, its operations, its registrations, and their release in order. */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as AlignedBuffer from "../AlignedBuffer.js"
import type { DiskStorage, DiskStorageOptions } from "../DiskStorage.js"
import type { AcquireError, IoFailed } from "../DiskStorageError.js"
import {
  BufferUnavailable,
  DuplicateKey,
  Misaligned,
  OutOfBounds,
  ReleaseFailed,
  StorageClosed,
  StorageUnlinked,
  UnlinkFailed
} from "../DiskStorageError.js"
import { IoEngine } from "../IoEngine.js"
import { Syscalls } from "../Syscalls.js"
import type { ResolvedOptions } from "./options.js"
import { resolve } from "./options.js"
import * as temporaryFile from "./temporaryFile.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/DiskStorage")

/** The most that `readBytes` and `writeBytes` move at once. */
const maxBounceBytes = 1024 * 1024

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** The way in and out of a storage: counts what is inside, so that release can close the door and wait until all have left. */
const makeDoor = (path: string) => {
  let closed = false
  let inside = 0
  let drained: Deferred.Deferred<void> | undefined

  const leave = Effect.suspend(() => {
    inside -= 1
    return inside === 0 && drained !== undefined ? Deferred.succeed(drained, undefined) : Effect.void
  })
  return {
    /** Runs `use` inside. It starts uninterruptible; `restore` is for what may be interrupted. */
    enter: <A, E, R>(use: (restore: Restore) => Effect.Effect<A, E, R>): Effect.Effect<A, E | StorageClosed, R> =>
      Effect.uninterruptibleMask((restore): Effect.Effect<A, E | StorageClosed, R> => {
        if (closed) return Effect.fail(new StorageClosed({ path }))
        inside += 1
        return Effect.ensuring(Effect.suspend(() => use(restore)), leave)
      }),
    close: Effect.flatMap(Deferred.make<void>(), (empty) =>
      Effect.suspend(() => {
        closed = true
        drained = empty
        return inside === 0 ? Effect.void : Deferred.await(empty)
      }))
  }
}

type Door = ReturnType<typeof makeDoor>

/** What is registered, each in a scope of its own. */
const makeRegistrations = (file: temporaryFile.TemporaryFile, door: Door) => {
  const scopes = new Map<string, Scope.CloseableScope>()
  let services: Context.Context<never> = Context.empty()

  const register: DiskStorage["register"] = (tag, acquire, options) =>
    door.enter((restore) =>
      Effect.gen(function*() {
        const { key } = tag
        const scope = yield* Scope.make()
        if (scopes.has(key)) return yield* new DuplicateKey({ key })
        if (options?.linked === true && !file.linked) return yield* new StorageUnlinked({ path: file.path, key })
        scopes.set(key, scope)
        const service = yield* restore(Scope.extend(acquire, scope)).pipe(
          Effect.onError((cause) => {
            scopes.delete(key)
            return Scope.close(scope, Exit.failCause(cause))
          })
        )
        services = Context.add(services, tag, service)
        return service
      })
    )

  const registration: DiskStorage["registration"] = (tag) =>
    door.enter(() => Effect.sync(() => Context.getOption(services, tag)))

  const isRegistered: DiskStorage["isRegistered"] = (tag) =>
    Effect.map(registration(tag), (found) => found._tag === "Some")

  const deregister: DiskStorage["deregister"] = (tag) =>
    door.enter(() => {
      const scope = scopes.get(tag.key)
      if (scope === undefined || Context.getOption(services, tag)._tag === "None") return Effect.succeed(false)
      services = Context.omit(tag)(services)
      return Scope.close(scope, Exit.void).pipe(
        Effect.ensuring(Effect.sync(() => scopes.delete(tag.key))),
        Effect.as(true)
      )
    })

  /** Newest first; a finalizer that dies is told in `failures` and stops nothing. */
  const release = (failures: Array<temporaryFile.ReleaseFailure>, exit: Exit.Exit<unknown, unknown>) =>
    Effect.suspend(() => {
      const newestFirst = [...scopes].reverse()
      scopes.clear()
      services = Context.empty()
      return Effect.forEach(
        newestFirst,
        ([key, scope]) =>
          Effect.catchAllCause(
            Scope.close(scope, exit),
            (cause) => Effect.sync(() => failures.push({ step: "registration", key, cause: Cause.pretty(cause) }))
          ),
        { discard: true }
      )
    })

  return { register, registration, isRegistered, deregister, release }
}

/** Transfers, checked before the kernel sees them. */
const makeTransfers = (
  engine: IoEngine,
  size: number,
  { alignment, fd }: Pick<temporaryFile.Prepared, "alignment" | "fd">,
  door: Door,
  bounceLock: Effect.Semaphore
) => {
  const outOfBounds = (offset: number, length: number): OutOfBounds | undefined =>
    Number.isSafeInteger(offset) && offset >= 0 && Number.isSafeInteger(length) && length >= 0 &&
      length <= size - offset
      ? undefined
      : new OutOfBounds({ offset, length, size })

  const misaligned = (offset: number, { bytes }: AlignedBuffer.AlignedBuffer): Misaligned | undefined =>
    offset % alignment.offset !== 0
      ? new Misaligned({ what: "offset", value: offset, alignment: alignment.offset })
      : bytes.byteLength % alignment.length !== 0
      ? new Misaligned({ what: "length", value: bytes.byteLength, alignment: alignment.length })
      : bytes.byteOffset % alignment.memory !== 0
      ? new Misaligned({ what: "memory", value: bytes.byteOffset, alignment: alignment.memory })
      : undefined

  const transfer = (move: IoEngine["read"]) => (offset: number, buffer: AlignedBuffer.AlignedBuffer) =>
    door.enter((restore): Effect.Effect<void, OutOfBounds | Misaligned | IoFailed> => {
      const refused = outOfBounds(offset, buffer.bytes.byteLength) ?? misaligned(offset, buffer)
      return refused === undefined ? restore(move(fd, buffer.bytes, offset, alignment.offset)) : Effect.fail(refused)
    })

  let bounce: AlignedBuffer.AlignedBuffer | undefined
  const takeBounce = Effect.suspend(() =>
    bounce === undefined
      ? Effect.tap(
        AlignedBuffer.make(Math.ceil(Math.min(maxBounceBytes, size) / alignment.offset) * alignment.offset),
        (made) => {
          bounce = made
        }
      )
      : Effect.succeed(bounce)
  )

  /** Runs `each` over the aligned chunks, `[start, end)`, that cover a range, holding the bounce buffer. */
  const overChunks = <E>(
    offset: number,
    length: number,
    each: (chunk: Uint8Array, start: number, end: number) => Effect.Effect<void, E>
  ) =>
    bounceLock.withPermits(1)(Effect.gen(function*() {
      const { bytes, byteLength } = yield* takeBounce
      const unit = alignment.offset
      const last = Math.ceil((offset + length) / unit) * unit
      for (let start = offset - (offset % unit); start < last; start += byteLength) {
        const end = Math.min(start + byteLength, last)
        yield* each(bytes.subarray(0, end - start), start, end)
      }
    }))

  const readBytes: DiskStorage["readBytes"] = (offset, length) =>
    door.enter((restore): Effect.Effect<Uint8Array, OutOfBounds | BufferUnavailable | IoFailed> => {
      const refused = outOfBounds(offset, length)
      if (refused !== undefined) return Effect.fail(refused)
      return restore(Effect.gen(function*() {
        const result = yield* Effect.try({
          try: () => new Uint8Array(length),
          catch: (error) => new BufferUnavailable({ byteLength: length, reason: String(error) })
        })
        if (length === 0) return result
        yield* overChunks(
          offset,
          length,
          (chunk, start, end) =>
            Effect.tap(engine.read(fd, chunk, start, alignment.offset), () => {
              const from = Math.max(start, offset)
              result.set(chunk.subarray(from - start, Math.min(end, offset + length) - start), from - offset)
            })
        )
        return result
      }))
    })

  const writeBytes: DiskStorage["writeBytes"] = (offset, bytes) =>
    door.enter((restore): Effect.Effect<void, OutOfBounds | BufferUnavailable | IoFailed> => {
      const length = bytes.byteLength
      const refused = outOfBounds(offset, length)
      if (refused !== undefined) return Effect.fail(refused)
      if (length === 0) return Effect.void
      const unit = alignment.offset
      return restore(overChunks(offset, length, (chunk, start, end) =>
        Effect.gen(function*() {
          const from = Math.max(start, offset)
          const to = Math.min(end, offset + length)
          // The units that the range only touches keep their other bytes.
          if (from > start || (to < end && end - start === unit)) {
            yield* engine.read(fd, chunk.subarray(0, unit), start, unit)
          }
          if (to < end && end - start > unit) {
            yield* engine.read(fd, chunk.subarray(end - start - unit), end - unit, unit)
          }
          chunk.set(bytes.subarray(from - offset, to - offset), from - start)
          yield* engine.write(fd, chunk, start, unit)
        })))
    })

  return {
    read: transfer(engine.read),
    write: transfer(engine.write),
    readBytes,
    writeBytes,
    sync: door.enter((restore) => restore(engine.sync(fd)))
  }
}

const acquire = (
  options: ResolvedOptions,
  scope: Scope.CloseableScope,
  released: Deferred.Deferred<void>
): Effect.Effect<DiskStorage, AcquireError, Syscalls | IoEngine | Scope.Scope> =>
  Effect.gen(function*(): Effect.fn.Return<DiskStorage, AcquireError, Syscalls | IoEngine | Scope.Scope> {
    const syscalls = yield* Syscalls
    const engine = yield* IoEngine
    const failures: Array<temporaryFile.ReleaseFailure> = []

    // What is to be undone, in order; the finalizers run the other way: drain, registrations, unlink and close.
    const file = yield* Effect.acquireRelease(
      temporaryFile.create(syscalls, options.directory),
      (file) =>
        temporaryFile.release(syscalls, file, failures).pipe(
          Effect.zipRight(Effect.suspend(() =>
            failures.length === 0
              ? Effect.logDebug("disk storage released")
              : Effect.logError("disk storage not released cleanly", new ReleaseFailed({ path: file.path, failures }))
          )),
          Effect.annotateLogs({ path: file.path })
        )
    )
    // In a fibre of the scope: should the scope end meanwhile, it is interrupted and waited for before the file is closed.
    const preparing = yield* Effect.forkIn(temporaryFile.prepare(syscalls, engine, options, file), scope)
    const prepared = yield* Effect.onInterrupt(Fiber.join(preparing), () => Fiber.interrupt(preparing))
    const { path } = file
    const { alignment, allocation, directIo, fd, filesystem } = prepared
    const door = makeDoor(path)
    const registrations = makeRegistrations(file, door)
    yield* Effect.addFinalizer((exit) => registrations.release(failures, exit))
    yield* Effect.addFinalizer(() => door.close)

    const unlinkLock = yield* Effect.makeSemaphore(1)
    const unlink = door.enter((restore) =>
      restore(
        unlinkLock.withPermits(1)(Effect.suspend(() =>
          file.linked
            ? Effect.mapError(temporaryFile.unlink(syscalls, file), (cause) => new UnlinkFailed({ path, cause }))
            : Effect.void
        ))
      )
    )
    const registerThenUnlink: DiskStorage["registerThenUnlink"] = (tag, acquire) =>
      Effect.flatMap(registrations.register(tag, acquire, { linked: true }), (registration) =>
        unlink.pipe(
          Effect.map(() => Either.void),
          Effect.catchTag("UnlinkFailed", (failure) => Effect.succeed(Either.left(failure))),
          Effect.map((unlink: Either.Either<void, UnlinkFailed>) => ({ registration, unlink }))
        ))

    return {
      [TypeId]: TypeId,
      storageType: { _tag: "Disk" },
      addr: 0,
      path,
      size: options.size,
      filesystem,
      directIo,
      alignment,
      allocation,
      ...makeTransfers(engine, options.size, prepared, door, yield* Effect.makeSemaphore(1)),
      withFd: (use) => door.enter((restore) => restore(use(fd))),
      unlinked: Effect.sync(() => !file.linked),
      unlink,
      register: registrations.register,
      registerThenUnlink,
      registration: registrations.registration,
      isRegistered: registrations.isRegistered,
      deregister: registrations.deregister,
      close: Effect.uninterruptible(Scope.close(scope, Exit.void)).pipe(
        Effect.zipRight(Deferred.await(released)),
        Effect.zipRight(
          Effect.suspend(() => failures.length === 0 ? Effect.void : Effect.fail(new ReleaseFailed({ path, failures })))
        )
      )
    }
  })

/** A scope that ends with `outer`, whose end waits also for a close that has begun earlier and is still under way. */
const forkAwaited = (outer: Scope.Scope) =>
  Effect.gen(function*() {
    const link = yield* Scope.fork(outer, ExecutionStrategy.sequential)
    const scope = yield* Scope.make()
    const ended = yield* Deferred.make<void>()
    yield* Scope.addFinalizer(scope, Effect.zipRight(Deferred.succeed(ended, undefined), Scope.close(link, Exit.void)))
    yield* Scope.addFinalizerExit(link, (exit) => Effect.zipRight(Scope.close(scope, exit), Deferred.await(ended)))
    return { scope, ended }
  })

/**
 * `acquire` in a scope of its own below the caller's: it is closed at once when a step fails or is interrupted, and `close`
 * can close it early. What `prologue` acquires is released after everything else.
 */
export const makeAfter = <E, R>(
  prologue: Effect.Effect<unknown, E, R>,
  options: ResolvedOptions
): Effect.Effect<DiskStorage, AcquireError | E, Syscalls | IoEngine | Scope.Scope | R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const { ended, scope } = yield* forkAwaited(yield* Effect.scope)
      return yield* restore(Effect.zipRight(prologue, acquire(options, scope, ended))).pipe(
        Scope.extend(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
    })
  ).pipe(Effect.withSpan("DiskStorage.make", { attributes: { ...options } }))

export const make = (
  options: DiskStorageOptions
): Effect.Effect<DiskStorage, AcquireError, Syscalls | IoEngine | Scope.Scope> =>
  Effect.flatMap(resolve(options), (resolved) => makeAfter(Effect.void, resolved))
