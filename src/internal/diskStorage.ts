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
import type { DiskStorage, DiskStorageOptions } from "../DiskStorage.js"
import type { AcquireError } from "../DiskStorageError.js"
import {
  DuplicateKey,
  ExtentsUnavailable,
  KeepFailed,
  ReleaseFailed,
  StorageUnlinked,
  UnlinkFailed
} from "../DiskStorageError.js"
import { IoEngine } from "../IoEngine.js"
import { Syscalls } from "../Syscalls.js"
import { bytesRefused, unless } from "./arguments.js"
import * as circuit from "./circuit.js"
import { absolute } from "./directoryPolicy.js"
import type { Door } from "./door.js"
import { makeDoor } from "./door.js"
import { mapOf } from "./extents.js"
import * as fileName from "./fileName.js"
import { OpenFile } from "./ioQueue.js"
import * as keptFile from "./keptFile.js"
import { explained } from "./leftovers.js"
import type { ResolvedOptions } from "./options.js"
import { resolve } from "./options.js"
import { make as makePatience } from "./patience.js"
import * as requiredMount from "./requiredMount.js"
import { sweepOnce } from "./sweep.js"
import * as temporaryFile from "./temporaryFile.js"
import { make as makeTransfers } from "./transfers.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/DiskStorage")

/** By `health`, which a storage that is wrapped by its user still has. */
const corruptions = new WeakMap<DiskStorage["health"], () => void>()

/** For who has checked bytes that were read from a storage, and found others than were written. */
export const countCorrupted = ({ health }: DiskStorage): void => corruptions.get(health)?.()

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

const acquire = (
  options: ResolvedOptions,
  scope: Scope.CloseableScope,
  released: Deferred.Deferred<void>
): Effect.Effect<DiskStorage, AcquireError, Syscalls | IoEngine | Scope.Scope> =>
  Effect.gen(function*(): Effect.fn.Return<DiskStorage, AcquireError, Syscalls | IoEngine | Scope.Scope> {
    const syscalls = yield* Syscalls
    const engine = yield* IoEngine
    const failures: Array<temporaryFile.ReleaseFailure> = []
    const patience = makePatience(options.releaseMillis)

    const directory = yield* absolute(syscalls, options.directory)
    // Held until the file is known to be on it.
    const mountScope = yield* Scope.fork(scope, ExecutionStrategy.sequential)
    const mount = options.requireMount === undefined
      ? undefined
      : yield* Scope.extend(requiredMount.find(syscalls, options.requireMount, directory), mountScope)
    if (!options.trustDirectory) yield* temporaryFile.checkDirectory(syscalls, directory)
    if (options.sweep) yield* sweepOnce(syscalls, directory)

    // What is to be undone, in order; the finalizers run the other way: drain, registrations, unlink and close.
    const file = yield* Effect.acquireRelease(
      temporaryFile.create(syscalls, directory),
      (file) =>
        temporaryFile.release(syscalls, file, failures, patience).pipe(
          Effect.zipRight(Effect.suspend(() =>
            failures.length === 0
              ? Effect.logDebug("disk storage released")
              : Effect.logError("disk storage not released cleanly", new ReleaseFailed({ path: file.path, failures }))
          )),
          Effect.annotateLogs({ path: file.path })
        )
    )
    // Should the scope end meanwhile, this is interrupted and waited for before the file is closed.
    const prepare = Effect.catchAll(
      temporaryFile.prepare(syscalls, engine, patience, options, file, mount),
      explained(syscalls)
    )
    const preparing = yield* Effect.acquireRelease(
      Effect.forkDaemon(Effect.interruptible(prepare)),
      (preparing) =>
        Effect.suspend(() =>
          preparing.unsafePoll() === null
            ? Effect.fiberId.pipe(
              // At once: what has not begun must not, now that the file may be gone.
              Effect.flatMap((id) => Fiber.interruptAsFork(preparing, id)),
              Effect.zipRight(patience.wait("drain", file.fds[0] ?? -1, Fiber.await(preparing)))
            )
            : Effect.void
        )
    )
    const prepared = yield* Fiber.join(preparing)
    yield* Scope.close(mountScope, Exit.void)
    const { path } = file
    const { alignment, allocated, allocation, directIo, fd, filesystem, place } = prepared
    // Of those who use the storage, and of its own steps, which alone are waited for no longer than the kernel is.
    const door = makeDoor(path)
    const ioDoor = makeDoor(path)
    const registrations = makeRegistrations(file, door)
    yield* Effect.addFinalizer((exit) => registrations.release(failures, exit))
    // Ends after the door has closed, and waits for the transfers, which it counts by itself.
    const direct = directIo.flag && directIo.verdict !== "buffered" && allocated
    const ioScope = yield* Scope.fork(scope, ExecutionStrategy.sequential)
    const lent = patience.lend(engine, fd, { path, direct, alignment: alignment.offset })
    const ioFile = yield* Scope.extend(lent, ioScope)
    const fares = yield* circuit.make(
      ioFile instanceof OpenFile ? ioFile : new OpenFile(undefined, fd, ioFile),
      options
    )
    let corrupted = 0
    const health: DiskStorage["health"] = Effect.map(fares, (directions) => ({ ...directions, corrupted }))
    corruptions.set(health, () => corrupted += 1)
    const transfers = yield* makeTransfers(engine, ioFile, options.size, prepared, ioDoor)
    const keepDoor = makeDoor(path)
    yield* Effect.addFinalizer(() =>
      Effect.all([
        ioDoor.shut,
        door.close,
        patience.wait("drain", fd, Effect.zipRight(keepDoor.close, ioDoor.close))
      ])
    )

    const unlinkLock = yield* Effect.makeSemaphore(1)
    const unlink = ioDoor.enter((restore) =>
      restore(
        unlinkLock.withPermits(1)(Effect.suspend(() =>
          file.linked
            ? Effect.mapError(fileName.unlink(syscalls, file), (error) =>
              error._tag === "StillLinked"
                ? new UnlinkFailed({ path, remaining: error.remaining })
                : new UnlinkFailed({ path, cause: error }))
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

    const keepLock = yield* Effect.makeSemaphore(1)
    /** The kernel reports a failed write-back once: a second sync would vouch for data that is lost. */
    let notSynced: KeepFailed | undefined
    const keepFile = Effect.fnUntraced(function*(mark: Uint8Array) {
      if (file.kept) return
      if (notSynced !== undefined) return yield* notSynced
      if (place === undefined) return yield* new KeepFailed({ path, reason: "no keepAt" })
      const keepAt = place.path
      const linked = Effect.suspend(() =>
        file.linked ? Effect.void : Effect.fail(new KeepFailed({ path, keepAt, reason: "unlinked" }))
      )
      // While the storage can still be used: nothing is lost by these.
      yield* linked
      yield* keptFile.checkFree(syscalls, file, keepAt, options.size)
      // From here on nobody changes the content, nor begins to; a lent descriptor and a registration could.
      yield* Effect.all([ioDoor.shut, door.close, ioDoor.close])
      yield* linked
      yield* Effect.uninterruptible(
        Effect.zipRight(Scope.close(ioScope, Exit.void), registrations.release(failures, Exit.void))
      )
      if (ioFile instanceof OpenFile && ioFile.inFlight > 0) {
        return yield* new KeepFailed({ path, keepAt, reason: "stalled" })
      }
      yield* Effect.tapError(
        keptFile.keep(syscalls, file, fd, place, options.size, mark),
        (failure) =>
          Effect.sync(() => {
            if (failure.reason === "sync") notSynced = failure
          })
      )
    })
    const keepAs = (mark: Uint8Array) => {
      const page = new Uint8Array(keptFile.markBytes)
      page.set(mark.subarray(0, keptFile.markBytes))
      return keepDoor.enter((restore) => restore(keepLock.withPermits(1)(keepFile(page))))
    }

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
      ...transfers,
      health,
      extents: ioDoor.enter(() =>
        Effect.mapError(mapOf(syscalls, fd, 0, prepared.length), (cause) => new ExtentsUnavailable({ path, cause }))
      ),
      withFd: (use) => door.enter((restore) => restore(use(fd))),
      unlinked: Effect.sync(() => !file.linked && !file.kept),
      unlink,
      register: registrations.register,
      registerThenUnlink,
      registration: registrations.registration,
      isRegistered: registrations.isRegistered,
      deregister: registrations.deregister,
      keptAt: place && { path: place.path, takenUp: place.mark !== undefined, mark: place.mark },
      keep: keepAs(new Uint8Array(0)),
      keepAs: (mark) => Effect.zipRight(unless(bytesRefused("mark", mark)), Effect.suspend(() => keepAs(mark))),
      close: Effect.uninterruptible(Scope.close(scope, Exit.void)).pipe(
        Effect.zipRight(Deferred.await(released)),
        Effect.zipRight(
          Effect.suspend(() => failures.length === 0 ? Effect.void : Effect.fail(new ReleaseFailed({ path, failures })))
        )
      )
    }
  })

/**
 * A scope that ends with `outer`, whose end waits also for a close that has begun earlier and is still under way. Uninterruptible as a
 * whole: `Scope.addFinalizer`, unlike `Effect.addFinalizer`, leaves a finalizer as interruptible as the fibre that closes `outer`, and an
 * interruption between two steps would skip the rest of them.
 */
const forkAwaited = (outer: Scope.Scope) =>
  Effect.gen(function*() {
    const link = yield* Scope.fork(outer, ExecutionStrategy.sequential)
    const scope = yield* Scope.make()
    const ended = yield* Deferred.make<void>()
    yield* Scope.addFinalizer(scope, Effect.zipRight(Deferred.succeed(ended, undefined), Scope.close(link, Exit.void)))
    yield* Scope.addFinalizerExit(
      link,
      (exit) => Effect.uninterruptible(Effect.zipRight(Scope.close(scope, exit), Deferred.await(ended)))
    )
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
