/** The driver, the storages and the memory that are registered with it, and the transfers between them. */
import * as Arr from "effect/Array"
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type {
  CuFile,
  CuFileHandle as CuFileHandleService,
  CuFileMode,
  CuFileOptions,
  CuFileProperties,
  CuFileTransfer
} from "../CuFile.js"
import type { DeviceBuffer, DeviceRegion } from "../DeviceMemory.js"
import { DeviceMemory, withPointer } from "../DeviceMemory.js"
import type { DiskStorage } from "../DiskStorage.js"
import * as DiskStorageConfig from "../DiskStorageConfig.js"
import type { CuFileTransferError, InvalidOption } from "../DiskStorageError.js"
import { CuFileFailed, CuFileReleased, CuFileUnavailable, OutOfBounds } from "../DiskStorageError.js"
import type { Results } from "../IoEngine.js"
import { errnos } from "../Syscalls.js"
import { cuFileErrorOf } from "./cuFileErrors.js"
import { registrationsOf } from "./deviceMemory.js"
import { makeDoorOf } from "./door.js"
import { wholeNumber } from "./engineOptions.js"
import type { Batch, Driver, Place, RawHandle, RawResult, RawTransfer } from "./linux/cuFile.js"
import * as native from "./linux/cuFile.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/CuFile")
export const HandleTypeId: unique symbol = Symbol.for("effect-disk-storage/CuFileHandle")

export const CuFileHandle: Context.Tag<CuFileHandleService, CuFileHandleService> = Context.GenericTag<
  CuFileHandleService
>("effect-disk-storage/CuFileHandle")

/** Bound on calls of one transfer after EINTR. */
const maxRetries = 100

/** How long to rest after a batch has told nothing: at first, and twice as long each time, at most. */
const shortestRest = 1
const longestRest = 50

/** CU_FILE_BATCH_NOCOMPAT_ERROR: nothing was begun. */
const notInCompatMode = 5049

/** What `mode` follows from. */
export interface ModeEvidence {
  readonly properties: Pick<CuFileProperties, "nvidiaFs" | "support" | "control">
  /** Whether /proc/driver/nvidia-fs is there. */
  readonly nvidiaFsShown: boolean
  readonly forceCompatMode: boolean | undefined
}

export const modeOf = (
  { forceCompatMode, nvidiaFsShown, properties: { control, nvidiaFs, support } }: ModeEvidence
): { readonly mode: CuFileMode; readonly modeReason: string } => {
  if (forceCompatMode === true) return { mode: "compat", modeReason: "force_compat_mode is on" }
  const loaded = nvidiaFs.major > 0 || nvidiaFs.minor > 0
  const p2p = support.includes("nvmeP2p")
  const paths = support.filter((name) => name !== "nvmeP2p")
  if (loaded !== nvidiaFsShown) {
    const modeReason = loaded
      ? `the driver names nvidia-fs ${nvidiaFs.major}.${nvidiaFs.minor}, and /proc/driver/nvidia-fs does not show it`
      : "/proc/driver/nvidia-fs shows nvidia-fs, and the driver does not name it"
    return { mode: "unknown", modeReason }
  }
  if (loaded) {
    const version = `nvidia-fs ${nvidiaFs.major}.${nvidiaFs.minor} is loaded`
    if (p2p) return { mode: "unknown", modeReason: `${version}, and there is peer-to-peer DMA too` }
    if (paths.length > 0) return { mode: "direct", modeReason: `${version}, with paths to ${paths.join(", ")}` }
    return { mode: "unknown", modeReason: `${version}, and the driver names no path` }
  }
  if (p2p) return { mode: "p2pdma", modeReason: "nvidia-fs is not loaded, and the driver has peer-to-peer DMA to NVMe" }
  return control.includes("allowCompatMode")
    ? {
      mode: "compat",
      modeReason: "nvidia-fs is not loaded, there is no peer-to-peer DMA, and allow_compat_mode is on"
    }
    : {
      mode: "unknown",
      modeReason: "nvidia-fs is not loaded, and neither peer-to-peer DMA nor allow_compat_mode is on"
    }
}

/** The only class that implements `CuFileHandle`. Its number is not used after the door has closed. */
class Handle implements CuFileHandleService {
  readonly [HandleTypeId]: typeof HandleTypeId = HandleTypeId
  readonly path: string
  readonly size: number
  readonly storage: DiskStorage
  readonly raw: RawHandle
  readonly door

  constructor(storage: DiskStorage, raw: RawHandle) {
    const { path, size } = storage
    this.path = path
    this.size = size
    this.storage = storage
    this.raw = raw
    this.door = makeDoorOf(() => new CuFileReleased({ what: "handle", path }))
  }
}

const handleOf = (handle: CuFileHandleService): Handle => {
  if (handle instanceof Handle) return handle
  throw new TypeError("a CuFileHandle is made by CuFile.register, and by nothing else")
}

/** A range of a buffer that is registered. cuFile wants its beginning as the base of what is within it. */
class Range {
  readonly offset: number
  readonly byteLength: number
  readonly door = makeDoorOf(() => new CuFileReleased({ what: "driver" }))

  constructor({ byteLength, offset }: DeviceRegion) {
    this.offset = offset
    this.byteLength = byteLength
  }

  holds({ byteLength, offset }: DeviceRegion): boolean {
    return offset >= this.offset && offset + byteLength <= this.offset + this.byteLength
  }
}

/** What becomes of each, in order: bytes, or why it failed. */
class Outcomes implements Results<CuFileTransferError> {
  readonly length: number
  readonly failures: Results<CuFileTransferError>["failures"]
  private readonly outcomes: ReadonlyArray<Either.Either<number, CuFileTransferError>>

  constructor(outcomes: ReadonlyArray<Either.Either<number, CuFileTransferError>>) {
    this.length = outcomes.length
    this.outcomes = outcomes
    this.failures = outcomes.flatMap((outcome, index) =>
      Either.match(outcome, { onLeft: (error) => [{ index, error }], onRight: () => [] })
    )
  }

  get(index: number): Either.Either<number, CuFileTransferError> {
    const outcome = this.outcomes[index]
    if (outcome === undefined) throw new RangeError(`no transfer ${index} in a batch of ${this.length}`)
    return outcome
  }
}

const logged = (what: string, effect: Effect.Effect<void, CuFileFailed>): Effect.Effect<void> =>
  Effect.catchAll(effect, (error) => Effect.logError(what, error))

/** Whether it was released, by its storage or with its driver, which leaves it registered with the storage. */
export const isReleased = (handle: CuFileHandleService): boolean => handleOf(handle).door.isShut()

/** Of all drivers: one makes way for another on the same storage. */
const registrationTurn = Effect.unsafeMakeSemaphore(1)

type Kind = "read" | "write"
const callOf = { read: "cuFileRead", write: "cuFileWrite" } as const

export const make = (
  options: CuFileOptions
): Effect.Effect<
  CuFile,
  CuFileUnavailable | InvalidOption | ConfigError.ConfigError,
  DeviceMemory | Scope.Scope
> =>
  Effect.gen(function*() {
    const memory = yield* DeviceMemory
    const threads = yield* wholeNumber("threads", options.threads, 4, 1, 64)
    const library = options.library ?? (yield* DiskStorageConfig.cuFileLibrary)
    const driver = yield* native.make(library, memory.library, memory.context, threads)
    const unavailable = ({ call, code, cudaCode, name }: CuFileFailed) => {
      const cuda = cudaCode === undefined ? "" : `, CUDA error ${cudaCode}`
      const reason = `${call} failed: ${name} (${code}), ${cuFileErrorOf(code).what}${cuda}`
      return new CuFileUnavailable({ library, reason, code })
    }
    const state: DriverState = { closed: false }
    yield* Effect.acquireRelease(
      Effect.mapError(driver.open, unavailable),
      () =>
        logged(
          "cuFile driver not closed cleanly",
          Effect.map(driver.close, () => {
            state.closed = true
          })
        )
    )
    const properties = yield* Effect.mapError(driver.properties, unavailable)
    const number = yield* driver.version
    const nvidiaFsShown = yield* native.nvidiaFsShown
    const { mode, modeReason } = modeOf({ properties, nvidiaFsShown, forceCompatMode: yield* driver.forceCompatMode })
    yield* Effect.logDebug(`cuFile ${number ?? ""} of ${library} is open, mode ${mode}: ${modeReason}`)
    return {
      [TypeId]: TypeId,
      library,
      version: number === undefined ? undefined : `${Math.floor(number / 1000)}.${Math.floor(number % 1000 / 10)}`,
      properties,
      mode,
      modeReason,
      ...yield* makeTransfers(driver, state, properties)
    }
  })

type Transfers = Pick<
  CuFile,
  "register" | "registerThenUnlink" | "registerBuffer" | "read" | "write" | "readBatch" | "writeBatch"
>

interface DriverState {
  /** What it still had is gone with it. */
  closed: boolean
}

const makeTransfers = (
  driver: Driver,
  state: DriverState,
  properties: CuFileProperties
): Effect.Effect<Transfers, never, Scope.Scope> =>
  Effect.gen(function*() {
    const door = makeDoorOf(() => new CuFileReleased({ what: "driver" }))
    /** What is registered, newest last, by how it is released: each once, by its owner or by the end of the driver. */
    const registered = new Set<Effect.Effect<void>>()
    const ranges = new WeakMap<DeviceBuffer, Set<Range>>()
    yield* Effect.addFinalizer(() =>
      Effect.zipRight(
        door.close,
        Effect.suspend(() => Effect.forEach([...registered].reverse(), (release) => release, { discard: true }))
      )
    )

    /**
     * Acquires, and releases with the Scope, with the driver, or by `ofMemory`, whose memory ends before them; there it stays when it fails,
     * until the driver is closed. Uninterruptible: what a call has made is not to be lost.
     */
    const registering = <A, E>(
      acquire: Effect.Effect<A, E>,
      release: (acquired: A) => Effect.Effect<void, CuFileFailed>,
      ofMemory?: Set<Effect.Effect<void, unknown>>
    ): Effect.Effect<A, E | CuFileReleased, Scope.Scope> =>
      Effect.acquireRelease(
        door.enter(() =>
          Effect.gen(function*() {
            const acquired = yield* acquire
            const once = yield* Effect.cached(Effect.map(release(acquired), () => {
              ofMemory?.delete(byMemory)
            }))
            const byMemory = Effect.suspend(() => state.closed ? Effect.void : once)
            const end: Effect.Effect<void> = yield* Effect.cached(Effect.ensuring(
              logged("not deregistered", once),
              Effect.sync(() => registered.delete(end))
            ))
            registered.add(end)
            ofMemory?.add(byMemory)
            return { acquired, end }
          })
        ),
        ({ end }) => end
      ).pipe(Effect.map(({ acquired }) => acquired))

    const acquireHandle = (storage: DiskStorage) =>
      storage.withFd((fd) =>
        registering(
          Effect.map(driver.registerHandle(fd, storage.path), (raw) => new Handle(storage, raw)),
          ({ door, raw }) => Effect.zipRight(door.close, driver.deregisterHandle(raw))
        )
      )

    /** Registers a storage from which the handle of a driver that has ended is taken before. */
    const afterReleased = <A, E>(storage: DiskStorage, register: Effect.Effect<A, E>) =>
      registrationTurn.withPermits(1)(Effect.flatMap(
        storage.registration(CuFileHandle),
        (found) =>
          Option.isSome(found) && isReleased(found.value)
            ? Effect.zipRight(storage.deregister(CuFileHandle), register)
            : register
      ))

    const registerBuffer: CuFile["registerBuffer"] = (memory) => {
      const region = "buffer" in memory ? memory : { buffer: memory, offset: 0, byteLength: memory.byteLength }
      return withPointer(region, (base) =>
        Effect.asVoid(registering(
          Effect.map(driver.registerBuffer(base, region.byteLength), () => {
            const range = new Range(region)
            const others = ranges.get(region.buffer) ?? new Set()
            ranges.set(region.buffer, others.add(range))
            return range
          }),
          (range) =>
            Effect.suspend(() => {
              ranges.get(region.buffer)?.delete(range)
              return Effect.zipRight(range.door.close, driver.deregisterBuffer(base))
            }),
          registrationsOf(region.buffer)
        )))
    }

    const checked = ({ handle, offset, region }: CuFileTransfer): Effect.Effect<Handle, OutOfBounds> =>
      Effect.suspend(() => {
        const known = handleOf(handle)
        const { byteLength: length } = region
        const inside = Number.isSafeInteger(offset) && offset >= 0 && Number.isSafeInteger(length) && length >= 0 &&
          length <= known.size - offset
        return inside ? Effect.succeed(known) : Effect.fail(new OutOfBounds({ offset, length, size: known.size }))
      })

    /** Holds the storage, the handle and the memory, and says where the memory is, until `use` has ended. */
    const holding = <A, E>(
      transfer: CuFileTransfer,
      use: (raw: RawTransfer) => Effect.Effect<A, E>
    ): Effect.Effect<A, E | CuFileTransferError> =>
      Effect.flatMap(checked(transfer), ({ door, raw: { number: handle }, storage }) => {
        const { offset, region } = transfer
        const length = region.byteLength
        return storage.withFd(() =>
          door.enter((restore) =>
            restore(withPointer(region, (pointer) => {
              const range = [...ranges.get(region.buffer) ?? []].find((range) => range.holds(region))
              const baseOffset = region.offset - (range?.offset ?? 0)
              const raw = { handle, base: pointer - BigInt(baseOffset), baseOffset, length, offset }
              return range === undefined ? use(raw) : range.door.enter((restore) => restore(use(raw)))
            }))
          )
        )
      })

    /** The rest of a transfer of which `done` bytes are there, by as many calls as it takes. */
    const rest = (kind: Kind, path: string, raw: RawTransfer, done: number): Effect.Effect<void, CuFileFailed> =>
      Effect.gen(function*() {
        let bytesDone = done
        let retries = maxRetries
        while (bytesDone < raw.length) {
          const answer = yield* driver.transfer(kind, {
            ...raw,
            baseOffset: raw.baseOffset + bytesDone,
            length: raw.length - bytesDone,
            offset: raw.offset + bytesDone
          })
          if (answer.result > 0) bytesDone += answer.result
          else if (answer.result !== -1 || answer.errno !== errnos.EINTR || retries-- === 0) {
            return yield* native.transferFailed(callOf[kind], answer, placeOf(path, raw, bytesDone))
          }
        }
      })

    const transfer = (kind: Kind, one: CuFileTransfer) => holding(one, (raw) => rest(kind, one.handle.path, raw, 0))

    type Outcome = Either.Either<number, CuFileTransferError>

    const singly = (kind: Kind, transfers: ReadonlyArray<CuFileTransfer>): Effect.Effect<Array<Outcome>> =>
      Effect.forEach(
        transfers,
        (one) => Effect.either(Effect.as(transfer(kind, one), one.region.byteLength)),
        { concurrency: "unbounded" }
      )

    /** Holds what all of them need; `refused` is told of those that it cannot hold anything for. */
    const holdingAll = <A, E>(
      transfers: ReadonlyArray<CuFileTransfer>,
      refused: (index: number, error: CuFileTransferError) => void,
      use: (held: ReadonlyArray<Held>) => Effect.Effect<A, E>
    ): Effect.Effect<A, E> => {
      const held: Array<Held> = []
      const from = (index: number): Effect.Effect<A, E> => {
        const one = transfers[index]
        if (one === undefined) return Effect.suspend(() => use(held))
        return Effect.flatten(Effect.catchAll(
          holding(one, (raw) => {
            held.push({ index, path: one.handle.path, raw })
            return Effect.exit(from(index + 1))
          }),
          (error) => {
            refused(index, error)
            return Effect.exit(from(index + 1))
          }
        ))
      }
      return Effect.suspend(() => from(0))
    }

    /** Asks until all have ended that were submitted, or cannot be asked for; resting while there is nothing new. */
    const answersOf = (batch: Batch, count: number) =>
      Effect.gen(function*() {
        const answers = new Map<number, RawResult>()
        let rest = shortestRest
        let problem: CuFileFailed | undefined
        while (answers.size < count && problem === undefined) {
          const events = yield* Effect.either(batch.poll)
          if (events._tag === "Left") problem = events.left
          else if (events.right.length > 0) {
            rest = shortestRest
            for (const event of events.right) answers.set(event.index, event)
          } else {
            yield* Effect.sleep(rest)
            rest = Math.min(2 * rest, longestRest)
          }
        }
        return { answers, problem }
      })

    const submitting = (kind: Kind, batch: Batch, held: ReadonlyArray<Held>) =>
      Effect.uninterruptible(Effect.flatMap(
        Effect.either(batch.submit(kind, held.map(({ raw }) => raw))),
        (submitted) =>
          submitted._tag === "Right"
            ? answersOf(batch, held.length)
            : Effect.succeed({ answers: new Map<number, RawResult>(), problem: submitted.left })
      ))

    /** By one batch of the driver, and what that has left over by single calls. */
    const batched = (
      setUp: (size: number) => Effect.Effect<Batch, CuFileFailed>,
      kind: Kind,
      transfers: ReadonlyArray<CuFileTransfer>
    ): Effect.Effect<Array<Outcome>> =>
      Effect.suspend(() => {
        const outcomes = transfers.map(({ region }): Outcome => Either.right(region.byteLength))
        const fail = (index: number, error: CuFileTransferError) => {
          outcomes[index] = Either.left(error)
        }
        const finish = ({ index, path, raw }: Held, done: number) =>
          Effect.catchAll(rest(kind, path, raw, done), (error) => Effect.sync(() => fail(index, error)))
        return Effect.as(
          holdingAll(transfers, fail, (all) => {
            const held = all.filter(({ raw }) => raw.length > 0)
            if (held.length === 0) return Effect.void
            const each = (use: (one: Held, place: number) => Effect.Effect<void>) =>
              Effect.forEach(held, use, { concurrency: "unbounded", discard: true })
            return Effect.acquireUseRelease(
              setUp(held.length),
              (batch) => submitting(kind, batch, held),
              (batch) => batch.destroy
            ).pipe(
              // Nothing was begun.
              Effect.orElseSucceed(() => undefined),
              Effect.flatMap((batch) =>
                batch === undefined || batch.problem?.code === notInCompatMode
                  ? each((one) => finish(one, 0))
                  : each((one, place) => {
                    const answer = batch.answers.get(place)
                    if (answer !== undefined && answer.result > 0) return finish(one, answer.result)
                    const error = answer === undefined
                      ? new CuFileFailed({
                        ...batch.problem ?? native.failed("cuFileBatchIOGetStatus", 0, {}),
                        ...placeOf(one.path, one.raw, 0)
                      })
                      : native.transferFailed("cuFileBatchIOSubmit", answer, placeOf(one.path, one.raw, 0))
                    return Effect.sync(() => fail(one.index, error))
                  })
              )
            )
          }),
          outcomes
        )
      })

    const batch = (kind: Kind) => (transfers: ReadonlyArray<CuFileTransfer>) => {
      const { features, maxBatch } = properties
      const setUp = features.includes("batchIo") && maxBatch > 1 ? driver.batch : undefined
      const outcomes = setUp === undefined
        ? singly(kind, transfers)
        : Effect.map(
          Effect.forEach(
            Arr.chunksOf(transfers, maxBatch),
            (chunk) => chunk.length === 1 ? singly(kind, chunk) : batched(setUp, kind, chunk),
            { concurrency: "unbounded" }
          ),
          Arr.flatten
        )
      return Effect.map(outcomes, (outcomes) => new Outcomes(outcomes))
    }

    return {
      register: (storage) =>
        afterReleased(storage, storage.register(CuFileHandle, acquireHandle(storage), { linked: true })),
      registerThenUnlink: (storage) =>
        afterReleased(storage, storage.registerThenUnlink(CuFileHandle, acquireHandle(storage))),
      registerBuffer,
      read: (handle, offset, region) => transfer("read", { handle, offset, region }),
      write: (handle, offset, region) => transfer("write", { handle, offset, region }),
      readBatch: batch("read"),
      writeBatch: batch("write")
    }
  })

/** A transfer of a batch whose storage, handle and memory are held. */
interface Held {
  readonly index: number
  readonly path: string
  readonly raw: RawTransfer
}

const placeOf = (path: string, { length, offset }: RawTransfer, bytesDone: number): Place => ({
  path,
  offset,
  length,
  bytesDone
})
