/** The decision how bytes reach a device, and the path through pinned host memory. */
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Cause from "effect/Cause"
import type * as ConfigError from "effect/ConfigError"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as AlignedBuffer from "../AlignedBuffer.js"
import type { BlockStore, Offloaded } from "../BlockStore.js"
import type { CuFile } from "../CuFile.js"
import { CuFileHandle } from "../CuFile.js"
import * as DeviceMemory from "../DeviceMemory.js"
import type { DeviceBlocks, DevicePath, DevicePathOptions, Kind } from "../DevicePath.js"
import * as DirectIo from "../DirectIo.js"
import * as DiskStorage from "../DiskStorage.js"
import * as DiskStorageConfig from "../DiskStorageConfig.js"
import type {
  BufferUnavailable,
  CopyError,
  CreateFailed,
  CudaFailed,
  CudaUnavailable,
  CuFileRegisterError,
  CuFileTransferError,
  DeviceTransferError,
  DirectoryUnsafe,
  DirectoryUnusable,
  InvalidOption,
  MountMissing,
  OffloadError,
  OnboardError,
  WorkingDirectoryGone
} from "../DiskStorageError.js"
import { DevicePathUnavailable, InvalidBlock, IoFailed, OutOfBounds, StoreClosed } from "../DiskStorageError.js"
import type { IoEngine, Results } from "../IoEngine.js"
import { Syscalls } from "../Syscalls.js"
import { isIdle, whenIdle } from "./alignedBuffer.js"
import * as argument from "./arguments.js"
import { BlockResults } from "./blockResults.js"
import type { Foreign, WithForeign } from "./blockStore.js"
import { withForeign } from "./blockStore.js"
import { isReleased, make as makeCuFile } from "./cuFile.js"
import { readCuFileConfiguration } from "./directIo/cuFileConfiguration.js"
import { absolute } from "./directoryPolicy.js"
import { makeDoorOf } from "./door.js"
import { wholeNumber } from "./engineOptions.js"
import { pathOption } from "./options.js"
import * as requiredMount from "./requiredMount.js"
import { checkDirectory } from "./temporaryFile.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/DevicePath")

const mebibyte = 1024 * 1024
/**
 * Buffers for the pieces of ranges, and what one takes at most: each piece is handed to another thread and back, which costs as much as to
 * copy 1 MiB. Measured over a copy in memory, 64 MiB at a time: about 0.8 of the engine alone with 16 of 1 MiB, about 0.9 with 8 of 4.
 */
const pieces = 8
const pieceBytes = 4 * mebibyte
const probeBytes = mebibyte
const defaultOrder = ["gds", "host-staged", "gds-compat"] as const

/** Memory that the disk and the device both reach, lent one buffer at a time. */
interface Staging {
  readonly buffers: number
  readonly lend: <A, E, R>(
    use: (buffer: AlignedBuffer.AlignedBuffer) => Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E, R>
}

const makeStaging = (
  memory: DeviceMemory.DeviceMemory,
  buffers: number,
  byteLength: number
): Effect.Effect<Staging, BufferUnavailable | InvalidOption | CudaFailed | CudaUnavailable, Scope.Scope> =>
  Effect.gen(function*() {
    const scope = yield* Effect.scope
    const pool = yield* AlignedBuffer.pool({ buffers, byteLength })
    const all = yield* Effect.replicateEffect(pool.leaseUninitialized, buffers)
    yield* Effect.forEach(all, memory.pin, { discard: true })
    const another = Effect.tap(AlignedBuffer.make(byteLength), (buffer) => Scope.extend(memory.pin(buffer), scope))
    // A lease for each piece would need a Scope for each, which costs as much as the copy.
    const free = yield* Queue.unbounded<AlignedBuffer.AlignedBuffer>()
    yield* Queue.offerAll(free, all)
    return {
      buffers,
      lend: (use) =>
        Effect.acquireUseRelease(Queue.take(free), use, (buffer) =>
          isIdle(buffer)
            ? Queue.offer(free, buffer)
            // The kernel still has it, and has not answered in time: others are not to wait for that.
            : Effect.matchEffect(another, {
              onFailure: () => Effect.sync(() => whenIdle(buffer, () => void Queue.unsafeOffer(free, buffer))),
              onSuccess: (other) => Queue.offer(free, other)
            }))
    }
  })

/** A range in pieces, all of them under way as there are buffers for it. */
const inPieces = <E>(
  staging: Staging,
  storage: DiskStorage.DiskStorage,
  offset: number,
  { buffer, byteLength, offset: start }: DeviceMemory.DeviceRegion,
  move: (
    host: AlignedBuffer.AlignedBuffer,
    offset: number,
    region: DeviceMemory.DeviceRegion
  ) => Effect.Effect<void, E>
): Effect.Effect<void, E | DeviceTransferError> =>
  Effect.suspend(() => {
    if (!(offset >= 0) || offset + byteLength > storage.size) {
      return new OutOfBounds({ offset, length: byteLength, size: storage.size })
    }
    // Short ranges in smaller ones, so that the disk and the device work at the same time.
    const most = Math.min(pieceBytes, Math.ceil(byteLength / staging.buffers / mebibyte) * mebibyte)
    return Effect.forEach(
      Array.from({ length: Math.ceil(byteLength / most) }, (_, index) => index * most),
      (from) => {
        const length = Math.min(most, byteLength - from)
        return staging.lend((whole) =>
          Effect.flatMap(
            length === whole.byteLength ? Effect.succeed(whole) : AlignedBuffer.slice(whole, 0, length),
            (host): Effect.Effect<void, E | DeviceTransferError> =>
              move(host, offset + from, { buffer, offset: start + from, byteLength: length })
          )
        )
      },
      { concurrency: staging.buffers, discard: true }
    )
  })

const stagedBlocks = (
  memory: DeviceMemory.DeviceMemory,
  store: BlockStore,
  depth: number,
  reason: string
): Effect.Effect<DeviceBlocks, BufferUnavailable | InvalidOption | CudaFailed | CudaUnavailable, Scope.Scope> =>
  Effect.gen(function*() {
    const { blockBytes } = store
    const staging = yield* makeStaging(memory, depth, blockBytes)
    const lengthRefused = (hash: bigint, { byteLength }: DeviceMemory.DeviceRegion) =>
      byteLength === blockBytes
        ? Effect.void
        : Effect.fail(new InvalidBlock({ hash, what: "length", expected: `a region of exactly ${blockBytes} bytes` }))
    const each = <B, A, E>(blocks: ReadonlyArray<B>, one: (block: B) => Effect.Effect<A, E>) =>
      Effect.suspend(() => {
        const results = new BlockResults<A, E | StoreClosed>(blocks.length, () => new StoreClosed({}))
        return Effect.forEach(blocks, (block, index) =>
          Effect.map(Effect.either(one(block)), (outcome) => {
            results.outcomes[index] = Either.mapLeft(outcome, (error) => () => error)
          }), { concurrency: depth, discard: true }).pipe(Effect.as(results))
      })
    return {
      kind: "host-staged",
      reason,
      offload: (blocks) =>
        each(blocks, ({ from, hash, priority }) =>
          Effect.gen(function*() {
            yield* lengthRefused(hash, from)
            // Nothing is copied for what is there.
            if ((yield* store.touch([hash])) > 0) return "duplicate" satisfies Offloaded
            return yield* staging.lend((data): Effect.Effect<Offloaded, OffloadError | CopyError> =>
              Effect.zipRight(
                memory.copyToHost(from, data),
                Effect.flatMap(store.offload([{ hash, data, priority }]), (results) => results.get(0))
              )
            )
          })),
      onboard: (destinations) =>
        each(destinations, ({ hash, into }) =>
          Effect.zipRight(
            lengthRefused(hash, into),
            staging.lend((data): Effect.Effect<number, OnboardError | CopyError> =>
              Effect.flatMap(store.onboard([{ hash, into: data }]), (results) => results.get(0)).pipe(
                // Verified by now.
                Effect.tap(() => memory.copyToDevice(data, into))
              )
            )
          ))
    }
  })

/** Blocks that cuFile moves straight to and from their slots: nobody looks at the bytes. */
const directBlocks = (
  kind: "gds" | "gds-compat",
  cuFile: CuFile,
  store: WithForeign,
  depth: number
): Effect.Effect<DeviceBlocks, never, Scope.Scope> =>
  Effect.gen(function*() {
    const door = makeDoorOf(() => new StoreClosed({}))
    const asked = yield* Queue.unbounded<Effect.Effect<void>>()
    // What was taken is done: there is a block that waits for it.
    const work = Effect.uninterruptibleMask((restore) => Effect.flatten(restore(Queue.take(asked))))
    // Until the last block has been moved, in whichever order a Scope ends.
    yield* Effect.acquireRelease(
      Effect.replicateEffect(Effect.forkDaemon(Effect.interruptible(Effect.forever(work))), depth),
      (workers) => Effect.zipRight(door.close, Fiber.interruptAll(workers))
    )

    const foreign = (region: DeviceMemory.DeviceRegion): Foreign<CuFileTransferError | CuFileRegisterError> => ({
      byteLength: region.byteLength,
      move: (kind, storage, offset, done) => {
        // Looked for each time: who has registered it may have ended.
        const transfer = Effect.flatMap(handleOf(cuFile, storage), (handle) => cuFile[kind](handle, offset, region))
        const moved = Effect.matchCauseEffect(transfer, {
          onFailure: (cause) =>
            Option.match(Cause.failureOption(cause), {
              onNone: () =>
                Effect.zipRight(
                  Effect.logError("a transfer by cuFile has a defect", cause),
                  Effect.sync(() =>
                    done(new IoFailed({ operation: kind, offset, length: region.byteLength, bytesDone: 0 }))
                  )
                ),
              onSome: (error) => Effect.sync(() => done(error))
            }),
          onSuccess: () => Effect.sync(() => done(undefined))
        })
        Queue.unsafeOffer(asked, moved)
      }
    })
    const inside = <A, E>(
      count: number,
      use: Effect.Effect<Results<E, A>>
    ): Effect.Effect<Results<E | StoreClosed, A>> =>
      Effect.orElseSucceed(
        door.enter((restore) => restore(use)),
        () => new BlockResults<A, E | StoreClosed>(count, () => new StoreClosed({}))
      )
    return {
      kind,
      reason: "the store has no checksums, and its storages are registered with cuFile",
      offload: (blocks) =>
        inside(
          blocks.length,
          // An array by now, which is all that the batch as a whole can be refused for.
          Effect.orDie(
            Effect.suspend(() =>
              store.offload(blocks.map(({ from, hash, priority }) => ({ hash, data: foreign(from), priority })))
            )
          )
        ),
      onboard: (destinations) =>
        inside(
          destinations.length,
          Effect.orDie(
            Effect.suspend(() => store.onboard(destinations.map(({ hash, into }) => ({ hash, into: foreign(into) }))))
          )
        )
    }
  })

/** By the path that was decided, or through host memory where that cannot be. */
const blocksOf = (
  kind: Tried,
  { cuFile, memory }: Means,
  store: BlockStore,
  asked: number | undefined
): Effect.Effect<DeviceBlocks, BufferUnavailable | InvalidOption | CudaFailed | CudaUnavailable, Scope.Scope> =>
  Effect.gen(function*() {
    const depth = yield* wholeNumber("depth", asked, 16, 1, 4096)
    const staged = (reason: string) => stagedBlocks(memory, store, depth, reason)
    if (kind === "host-staged" || Option.isNone(cuFile)) return yield* staged(`the path is ${kind}`)
    if (store.checksum !== "off") {
      return yield* staged(`the store has checksums (${store.checksum}), which are computed in host memory`)
    }
    const direct = withForeign(store)
    if (direct === undefined) return yield* staged("the store is not as BlockStore.make has made it")
    const registered = yield* Effect.either(
      Effect.forEach(direct.storages, (storage) => handleOf(cuFile.value, storage), { discard: true })
    )
    if (Either.isLeft(registered)) {
      yield* Effect.logWarning(
        "blocks go through host memory: a storage is not registered with cuFile",
        registered.left
      )
      return yield* staged(registered.left.message)
    }
    return yield* directBlocks(kind, cuFile.value, direct, depth)
  })

/** Why a path is not taken. */
interface Refusal {
  readonly message: string
}

const neverInPattern = 0xff
const pattern = (bytes: Uint8Array): void => {
  for (let at = 0; at < bytes.byteLength; at++) bytes[at] = (at * 31 + (at >> 8)) % 251
}

/** Writes what it has put into device memory to a storage of its own, reads it back into other device memory, and compares. */
const probe = (
  path: Transfers,
  memory: DeviceMemory.DeviceMemory,
  directory: string
) =>
  Effect.scoped(Effect.gen(function*() {
    const storage = yield* DiskStorage.make({ size: probeBytes, directory, directIo: "preferred" })
    const sent = yield* DeviceMemory.region(yield* memory.allocate(probeBytes))
    const received = yield* DeviceMemory.region(yield* memory.allocate(probeBytes))
    const host = yield* AlignedBuffer.make(probeBytes)
    pattern(host.bytes)
    yield* memory.copyToDevice(host, sent)
    // What is there may be what an earlier probe has left, which a path that moves nothing must not pass with.
    const back = yield* AlignedBuffer.make(probeBytes)
    back.bytes.fill(neverInPattern)
    yield* memory.copyToDevice(back, received)
    yield* path.write(storage, 0, sent)
    yield* path.read(storage, 0, received)
    yield* memory.copyToHost(received, back)
    const wrong = back.bytes.findIndex((byte, at) => byte !== host.bytes[at])
    if (wrong >= 0) return yield* Effect.fail<Refusal>({ message: `byte ${wrong} came back wrong` })
  }))

const unavailable = (
  reasons: ReadonlyArray<string>,
  improvements: ReadonlyArray<string>,
  driverAnswer: Option.Option<DirectIo.DriverAnswer>
): DevicePath => {
  const refused = new DevicePathUnavailable({ reasons })
  return {
    [TypeId]: TypeId,
    kind: "unavailable",
    reasons,
    improvements,
    memory: Option.none(),
    cuFile: Option.none(),
    driverAnswer,
    write: () => refused,
    read: () => refused,
    blocks: () => refused
  }
}

/** What there is to move bytes with. */
interface Means {
  readonly memory: DeviceMemory.DeviceMemory
  readonly cuFile: Option.Option<CuFile>
}

type Transfers = Pick<DevicePath, "read" | "write">

const hostStaged = (
  { memory }: Means
): Effect.Effect<Transfers, BufferUnavailable | InvalidOption | CudaFailed | CudaUnavailable, Scope.Scope> =>
  Effect.map(makeStaging(memory, pieces, pieceBytes), (staging) => ({
    write: (storage, offset, from) =>
      inPieces(
        staging,
        storage,
        offset,
        from,
        (host, at, region) => Effect.zipRight(memory.copyToHost(region, host), storage.write(at, host))
      ),
    read: (storage, offset, into) =>
      inPieces(
        staging,
        storage,
        offset,
        into,
        (host, at, region) => Effect.zipRight(storage.read(at, host), memory.copyToDevice(host, region))
      )
  }))

/** The handle that the storage is registered with, by somebody else or now. */
const handleOf = (
  cuFile: CuFile,
  storage: DiskStorage.DiskStorage
): Effect.Effect<CuFileHandle, CuFileRegisterError> => {
  const found = Effect.map(storage.registration(CuFileHandle), Option.filter((handle) => !isReleased(handle)))
  return Effect.flatMap(
    found,
    Option.match({
      onSome: (handle) => Effect.succeed(handle),
      onNone: () =>
        Effect.catchTag(cuFile.register(storage), "DuplicateKey", (error) =>
          Effect.flatMap(
            found,
            Option.match({ onSome: (handle) => Effect.succeed(handle), onNone: () => Effect.fail(error) })
          ))
    })
  )
}

const byCuFile = (cuFile: CuFile): Transfers => ({
  write: (storage, offset, from) =>
    Effect.flatMap(handleOf(cuFile, storage), (handle) => cuFile.write(handle, offset, from)),
  read: (storage, offset, into) =>
    Effect.flatMap(handleOf(cuFile, storage), (handle) => cuFile.read(handle, offset, into))
})

type Tried = Exclude<Kind, "unavailable">

/** The transfers of a path, or why there are none. */
const open = (
  kind: Tried,
  means: Means,
  verdict: DirectIo.GpuVerdict
): Effect.Effect<Transfers, Refusal, Scope.Scope> => {
  if (kind === "host-staged") return hostStaged(means)
  if (Option.isNone(means.cuFile)) return Effect.fail({ message: "there is no cuFile" })
  const cuFile = means.cuFile.value
  const { mode, modeReason } = cuFile
  const direct = (verdict === "nvidia-fs" || verdict === "p2pdma") && (mode === "direct" || mode === "p2pdma")
  if (kind === "gds" && !direct) {
    return Effect.fail({ message: `the directory's verdict is ${verdict}, cuFile's mode ${mode}: ${modeReason}` })
  }
  return Effect.succeed(byCuFile(cuFile))
}

const told = (path: DevicePath): Effect.Effect<DevicePath> => {
  const { improvements, kind, reasons } = path
  const log = kind === "unavailable"
    ? Effect.logWarning("no path to a device")
    : Effect.logInfo(`path to the device: ${kind}`)
  return Effect.as(
    Effect.annotateLogs(log, { reasons: reasons.join("; "), improvements: improvements.join("; ") }),
    path
  )
}

interface OpenedCuFile {
  readonly cuFile: Either.Either<CuFile, string>
  readonly answer: Option.Option<DirectIo.DriverAnswer>
}

const notOpened = (reason: string): OpenedCuFile => ({ cuFile: Either.left(reason), answer: Option.none() })

const openCuFile = (
  options: DevicePathOptions["cuFile"],
  memory: DeviceMemory.DeviceMemory
): Effect.Effect<
  OpenedCuFile,
  InvalidOption | ConfigError.ConfigError,
  FileSystem.FileSystem | Scope.Scope
> =>
  Effect.gen(function*() {
    if (options === false) return notOpened("it is not wanted")
    const { doubt, endsProcess, problem } = yield* readCuFileConfiguration
    if (endsProcess) return notOpened(`libcufile would end this process: ${problem ?? doubt ?? ""}`)
    return yield* makeCuFile(options ?? {}).pipe(
      Effect.provideService(DeviceMemory.DeviceMemory, memory),
      Effect.map((cuFile): OpenedCuFile => ({ cuFile: Either.right(cuFile), answer: Option.some({ opened: true }) })),
      Effect.catchTag("CuFileUnavailable", ({ code, message, reason }) =>
        Effect.succeed<OpenedCuFile>({
          cuFile: Either.left(message),
          // Other calls fail beside it, and the library may not be there to answer.
          answer: code !== undefined && reason.startsWith("cuFileDriverOpen ")
            ? Option.some({ opened: false, reason })
            : Option.none()
        }))
    )
  })

export const make = (
  options: DevicePathOptions
): Effect.Effect<
  DevicePath,
  | DirectoryUnsafe
  | DirectoryUnusable
  | MountMissing
  | WorkingDirectoryGone
  | CreateFailed
  | BufferUnavailable
  | InvalidOption
  | ConfigError.ConfigError,
  Syscalls | IoEngine | FileSystem.FileSystem | Scope.Scope
> =>
  Effect.gen(function*() {
    yield* argument.unless(argument.objectRefused("options", options))
    const { order = defaultOrder } = options
    yield* argument.unless(argument.arrayRefused("order", order, 64))
    const syscalls = yield* Syscalls
    const required = options.directory === undefined ? yield* DiskStorageConfig.requireMount : Option.none()
    const asked = options.directory ?? (yield* DiskStorageConfig.directory)
    const directory = yield* absolute(syscalls, yield* pathOption("directory", asked))
    if (Option.isSome(required)) yield* Effect.scoped(requiredMount.find(syscalls, required.value, directory))
    // As a storage does: what is missing of it is made.
    yield* checkDirectory(syscalls, directory)
    const memory = yield* DeviceMemory.make(options.memory).pipe(
      Effect.map(Either.right),
      Effect.catchTag("CudaUnavailable", (error) => Effect.succeed(Either.left(error)))
    )
    const { answer, cuFile } = Either.isLeft(memory)
      ? notOpened("there is no memory of a device")
      : yield* openCuFile(options.cuFile, memory.right)
    const { conditions, verdict } = yield* DirectIo.inspect(directory, { driverAnswer: Option.getOrUndefined(answer) })
    const improvements = conditions.flatMap(({ applies, bearsOn, remedy }) =>
      applies === "yes" && bearsOn.includes("gpu") && remedy !== null ? [remedy] : []
    )
    const seen = `GPUDirect Storage here: ${[verdict.gpu, ...verdict.reasons.gpu].join("; ")}`
    if (Either.isLeft(memory)) return yield* told(unavailable([memory.left.message, seen], improvements, answer))
    const means: Means = { memory: memory.right, cuFile: Either.getRight(cuFile) }
    const against: Array<string> = [seen, ...Either.isLeft(cuFile) ? [`no cuFile: ${cuFile.left}`] : []]
    for (const kind of order) {
      const attempt = yield* Scope.fork(yield* Effect.scope, ExecutionStrategy.sequential)
      const tried = yield* open(kind, means, verdict.gpu).pipe(
        Effect.tap((transfers) => probe(transfers, memory.right, directory)),
        Scope.extend(attempt),
        Effect.either
      )
      if (Either.isLeft(tried)) {
        yield* Scope.close(attempt, Exit.void)
        against.push(`${kind}: ${tried.left.message}`)
        continue
      }
      return yield* told({
        [TypeId]: TypeId,
        ...tried.right,
        kind,
        reasons: [`${kind}: 1 MiB went from the device to a file in ${directory} and back, unchanged`, ...against],
        improvements: kind === "gds" ? [] : improvements,
        memory: Option.some(memory.right),
        cuFile: means.cuFile,
        driverAnswer: answer,
        blocks: (store, options = {}) => blocksOf(kind, means, store, options.depth)
      })
    }
    return yield* told(unavailable(against, improvements, answer))
  }).pipe(Effect.withSpan("DevicePath.make"))
