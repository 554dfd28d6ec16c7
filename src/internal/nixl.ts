/** An agent of NIXL: what is registered with it, and its transfers from their post to their end. */
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type { AlignedBuffer } from "../AlignedBuffer.js"
import type { DeviceBuffer, DeviceRegion } from "../DeviceMemory.js"
import { withPointer } from "../DeviceMemory.js"
import type { DiskStorage } from "../DiskStorage.js"
import * as DiskStorageConfig from "../DiskStorageConfig.js"
import type { NixlFailed, NixlTransferError, NixlUnavailable } from "../DiskStorageError.js"
import {
  BufferBusy,
  InvalidOption,
  IoStalled,
  Misaligned,
  NixlAgentFailed,
  NixlClosed,
  NixlOverlap,
  NixlUnconfirmed,
  OutOfBounds
} from "../DiskStorageError.js"
import type * as Public from "../Nixl.js"
import { Region, region } from "./alignedBuffer.js"
import * as argument from "./arguments.js"
import { BufferTypeId, registrationsOf } from "./deviceMemory.js"
import { makeDoorOf } from "./door.js"
import { wholeNumber } from "./engineOptions.js"
import type { Again, Value } from "./linux/libraryThreads.js"
import type { Api, Call, CString } from "./linux/nixl.js"
import { failed, load, status } from "./linux/nixl.js"
import * as confirming from "./nixlConfirm.js"
import * as posix from "./nixlPosix.js"
import { faithful, isFaithful } from "./pathText.js"
import { takeAlone } from "./slab.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/Nixl")
export const FileTypeId: unique symbol = Symbol.for("effect-disk-storage/Nixl/File")
export const MemoryTypeId: unique symbol = Symbol.for("effect-disk-storage/Nixl/Memory")

export const File: Context.Tag<Public.File, Public.File> = Context.GenericTag<Public.File>(
  "effect-disk-storage/Nixl/File"
)

/** `nixl_capi_mem_type_t` and `nixl_capi_xfer_op_t`. */
const kinds = { host: 0, device: 1, file: 4 } as const
const operations = { read: 0, write: 1 } as const

/** Without a delay, after the post: each takes as long as a hop to the thread and back, and small transfers end meanwhile. */
const looksAtOnce = 4
const firstLook = Duration.millis(1)
/** Half a millisecond late on average, for one that takes that long: what a hop to the thread and back costs is a small part of it. */
const lastLook = Duration.millis(16)

/** Never sooner than after a millisecond, and never not again. */
const completion = (schedule: Schedule.Schedule<unknown> | undefined): Schedule.Schedule<unknown> =>
  Schedule.andThen(
    schedule ?? Schedule.union(Schedule.exponential(firstLook, 1.5), Schedule.spaced(lastLook)),
    Schedule.spaced(lastLook)
  ).pipe(Schedule.modifyDelay((_, delay) => Duration.max(delay, firstLook)))

/** Registered with the agent: a list of one descriptor. */
class Registration {
  readonly door: ReturnType<typeof makeDoorOf<NixlClosed>>
  /** Transfers that were given up, and may go on. */
  readonly stalls = new Set<IoStalled>()
  /** Its end has come while there were such: it is deregistered when they have ended. */
  waiting = false
  /** A transfer of it failed whose pieces may still move. */
  unsettled = false
  end: Effect.Effect<void, NixlFailed | NixlAgentFailed | IoStalled> = Effect.void
  /** All registrations of its device memory: whoever frees that ends them first. */
  ofMemory: Set<Effect.Effect<void, unknown>> | undefined

  readonly what: string
  readonly kind: number
  readonly address: Value
  readonly length: number
  readonly device: number
  /** Memory that must not be collected meanwhile. */
  readonly holds: unknown

  constructor(what: string, kind: number, address: Value, length: number, device: number, holds: unknown) {
    this.what = what
    this.kind = kind
    this.address = address
    this.length = length
    this.device = device
    this.holds = holds
    this.door = makeDoorOf(() => new NixlClosed({ what }))
  }
}

class RegisteredFile implements Public.File {
  readonly [FileTypeId]: typeof FileTypeId = FileTypeId
  readonly path: string
  readonly size: number
  readonly storage: DiskStorage
  readonly registration: Registration

  constructor(storage: DiskStorage, registration: Registration) {
    this.path = storage.path
    this.size = storage.size
    this.storage = storage
    this.registration = registration
  }
}

class RegisteredMemory implements Public.Memory {
  readonly [MemoryTypeId]: typeof MemoryTypeId = MemoryTypeId
  readonly kind: "host" | "device"
  readonly byteLength: number
  readonly registration: Registration
  /** Of host memory. */
  readonly region: Region | undefined

  constructor(kind: "host" | "device", registration: Registration, region: Region | undefined) {
    this.kind = kind
    this.byteLength = registration.length
    this.registration = registration
    this.region = region
  }
}

/** A piece that was checked. */
interface Checked {
  readonly offset: number
  readonly memory: RegisteredMemory
  readonly start: number
  readonly length: number
}

/** What the requests of one transfer use: the busy pages of its memory, and its places among those in flight. */
class Use {
  /** Its transfer, and each of its requests that has not ended. */
  private holders = 1
  /** Its pages are taken. */
  claimed = false
  /** One of the requests was left to the agent, whose end frees the memory. */
  kept = false

  readonly pieces: ReadonlyArray<Checked>
  private readonly leave: Effect.Effect<void>

  constructor(pieces: ReadonlyArray<Checked>, leave: Effect.Effect<void>) {
    this.pieces = pieces
    this.leave = leave
  }

  hold(): void {
    this.holders += 1
  }

  readonly drop = Effect.suspend(() => {
    this.holders -= 1
    if (this.holders > 0) return Effect.void
    if (this.claimed && !this.kept) this.free()
    return this.leave
  })

  free(): void {
    for (const { length, memory, start } of this.pieces) {
      memory.region?.slab.release(memory.region.start + start, length)
    }
  }
}

/** A request, from its post until nothing of it is in use any more. */
interface Request {
  readonly handle: bigint
  readonly target: string
  readonly pieces: ReadonlyArray<Checked>
  readonly file: RegisteredFile
  readonly use: Use
  readonly involved: ReadonlyArray<Registration>
  /** What failed first: a failed transfer is never a success. */
  failure: NixlFailed | undefined
  /** Answers below 0 one after the other. */
  refusals: number
  ended: boolean
  /** The last answer was that all is done. */
  succeeded: boolean
  /** Of one that failed: nothing of it is in flight any more. */
  settled: boolean
}

/** What agents that had to be left alive may still use: it is never collected. */
const left = new Set<unknown>()

const outOfBounds = (offset: number, length: number, size: number): OutOfBounds | undefined =>
  Number.isSafeInteger(offset) && offset >= 0 && Number.isSafeInteger(length) && length >= 0 && length <= size - offset
    ? undefined
    : new OutOfBounds({ offset, length, size })

/** What belongs to an agent, for its end. */
interface Held {
  /** What is to be done once the agent is gone. */
  afterwards: () => void
  readonly registrations: Set<Registration>
  /** Requests that have not ended, or that NIXL would not release. */
  readonly lost: Set<Request>
}

/** What is made is destroyed; should that fail, it is lost to NIXL and nobody uses it again. */
const destroy = (api: Api, call: Call, target: string, what: bigint) =>
  Effect.catchAll(api.call(call, target, [what]), (error) => Effect.logError("not destroyed", error))

const closeFile = (api: Api, { device, kind }: Registration) => kind === kinds.file ? api.close(device) : Effect.void

const service = (
  api: Api,
  agent: bigint,
  held: Held,
  options: {
    readonly agentName: string
    readonly name: CString
    readonly plugins: ReadonlyArray<string>
    readonly backends: ReadonlyArray<string>
    readonly schedule: Schedule.Schedule<unknown>
    readonly maxInFlight: number
    /** The queue of the backend POSIX, its rings, and the most pieces of host memory in flight. */
    readonly queue: Public.Queue | undefined
    readonly rings: ReadonlySet<number>
    readonly maxPieces: number
    readonly confirm: Public.Confirmation
    readonly stallMillis: number | undefined
  }
) =>
  Effect.gen(function*() {
    const { agentName, name, queue, schedule, stallMillis } = options
    const { lost, registrations } = held
    const door = makeDoorOf(() => new NixlClosed({ what: `The agent ${agentName}` }))
    const permits = yield* Effect.makeSemaphore(options.maxInFlight)
    const places = yield* Effect.makeSemaphore(options.maxPieces)
    const watchers = new Set<Fiber.RuntimeFiber<void>>()
    /** Requests that were posted and have not ended. */
    const active = new Set<Request>()
    /** What failed first in the queue of POSIX. Its answers are worth nothing from then on. */
    let first: NixlFailed | undefined
    /** Requests of that queue that have failed, or whose end is unknown. They are never released: see `conclude`. */
    const suspects = new Set<Request>()

    const isQueued = ({ pieces }: Request) => queue !== undefined && pieces[0]?.memory.kind === "host"
    const agentFailed = ({ call, name, status, target }: NixlFailed) =>
      new NixlAgentFailed({ agentName, call, status, name, target })

    /** How long the end of I/O is waited for. Once that time has passed, later callers look once. */
    let patience = stallMillis
    /** Whether nothing of the suspects is in flight any more, once it is so, or for as long as a stalled transfer takes. */
    const settled = Effect.suspend(() => {
      const unsettled = [...suspects].filter(({ settled }) => !settled)
      const files = new Set(unsettled.map(({ file }) => file.registration.device))
      return unsettled.length === 0
        ? Effect.succeed(true)
        : Effect.tap(posix.drained(api, queue, options.rings, files, patience), (is) =>
          Effect.sync(() => {
            if (!is) patience = 0
            for (const request of unsettled) request.settled = is
          }))
    })

    /** A list of one descriptor, for as long as `use` runs. */
    const withList = <A, E>(registration: Registration, use: (list: bigint) => Effect.Effect<A, E>) => {
      const { address, device, kind, length, what } = registration
      return Effect.acquireUseRelease(
        api.make("nixl_capi_create_reg_dlist", what, (out) => [kind, out]),
        (list) =>
          Effect.zipRight(
            api.call("nixl_capi_reg_dlist_add_desc", what, [list, address, length, device, 0, 0]),
            use(list)
          ),
        (list) => destroy(api, "nixl_capi_destroy_reg_dlist", what, list)
      )
    }

    /** When it fails the registration stays with the agent, and with it the descriptor, whose number nobody else may get. */
    const deregister = (registration: Registration) =>
      withList(registration, (list) => api.call("nixl_capi_deregister_mem", registration.what, [agent, list, 0])).pipe(
        Effect.zipRight(Effect.suspend(() => {
          registrations.delete(registration)
          registration.ofMemory?.delete(registration.end)
          return closeFile(api, registration)
        }))
      )

    /** Of one that no transfer uses, but for those that failed. */
    const end = (registration: Registration): Effect.Effect<void, NixlFailed | NixlAgentFailed> => {
      if (!registration.unsettled || first === undefined) return deregister(registration)
      const error = agentFailed(first)
      return Effect.flatMap(
        settled,
        (is): Effect.Effect<void, NixlFailed | NixlAgentFailed> => is ? deregister(registration) : Effect.fail(error)
      )
    }

    const register = (registration: Registration) =>
      Effect.gen(function*() {
        registrations.add(registration)
        yield* Effect.onError(
          withList(
            registration,
            (list) => api.call("nixl_capi_register_mem", registration.what, [agent, list, 0])
          ),
          () => Effect.sync(() => registrations.delete(registration))
        )
        // Asked for by its Scope, and by the service's end.
        registration.end = yield* Effect.cached(
          Effect.zipRight(
            registration.door.close,
            Effect.suspend((): Effect.Effect<void, NixlFailed | NixlAgentFailed | IoStalled> => {
              const [stall] = registration.stalls
              if (stall === undefined) return end(registration)
              registration.waiting = true
              return Effect.fail(stall)
            })
          )
        )
      })

    /** An exact second registration is found by NIXL, whichever of the two ends first. */
    const registerMemoryOf = (registration: Registration): Effect.Effect<void, NixlFailed | NixlOverlap> => {
      const at = BigInt(registration.address)
      const end = at + BigInt(registration.length)
      for (const { address, device, kind, length, what } of registrations) {
        const other = BigInt(address)
        const same = other === at && length === registration.length
        if (kind !== registration.kind || device !== registration.device || same) continue
        if (other < end && at < other + BigInt(length)) {
          return Effect.fail(new NixlOverlap({ what: registration.what, other: what }))
        }
      }
      return register(registration)
    }

    const acquireFile = (storage: DiskStorage) =>
      Effect.acquireRelease(
        door.enter(() =>
          Effect.gen(function*() {
            const fd = yield* storage.withFd((fd) => api.duplicate(fd, storage.path))
            const registration = new Registration(storage.path, kinds.file, 0, storage.size, fd, undefined)
            yield* Effect.onError(register(registration), () => api.close(fd))
            return new RegisteredFile(storage, registration)
          })
        ),
        // A storage tells of the defects of its registrations' finalizers.
        ({ registration }) => Effect.orDie(Effect.suspend(() => registration.end))
      )

    const registerHost = <E>(host: Region, register: (registration: Registration) => Effect.Effect<void, E>) =>
      Effect.suspend(() => {
        const { byteLength, slab, start } = host
        const what = `${byteLength} bytes of host memory`
        const registration = new Registration(what, kinds.host, api.addressOf(slab) + start, byteLength, 0, host)
        return Effect.as(register(registration), new RegisteredMemory("host", registration, host))
      })

    const registerDevice = (
      memory: Public.DeviceRange
    ): Effect.Effect<RegisteredMemory, NixlFailed | NixlOverlap | InvalidOption> => {
      const { byteLength, device, pointer } = memory
      if (typeof pointer !== "bigint" && typeof pointer !== "number") {
        return Effect.fail(argument.invalid("pointer", pointer, "an address"))
      }
      if (!(Number.isSafeInteger(byteLength) && byteLength > 0 && Number.isSafeInteger(device) && device >= 0)) {
        return Effect.fail(
          new InvalidOption({
            option: "memory",
            value: `${argument.shown(byteLength)} bytes of device ${argument.shown(device)}`,
            expected: "a length above 0 and the ordinal of a device"
          })
        )
      }
      const what = `${byteLength} bytes of memory of device ${device}`
      const registration = new Registration(what, kinds.device, pointer, byteLength, device, memory)
      return Effect.as(registerMemoryOf(registration), new RegisteredMemory("device", registration, undefined))
    }

    const registerOwned = ({ buffer, byteLength, offset }: DeviceRegion) =>
      withPointer({ buffer, byteLength, offset }, (pointer) =>
        Effect.tap(
          registerDevice({ pointer, byteLength, device: buffer.device.ordinal }),
          ({ registration }) =>
            Effect.sync(() => {
              registration.ofMemory = registrationsOf(buffer).add(registration.end)
            })
        ))

    const registerAny = (memory: AlignedBuffer | DeviceBuffer | DeviceRegion | Public.DeviceRange) => {
      if (!argument.isObject(memory) || ("bytes" in memory && !(memory instanceof Region))) {
        return Effect.fail(argument.invalid("memory", memory, "an AlignedBuffer, or memory of a device"))
      }
      if ("bytes" in memory) return registerHost(region(memory), registerMemoryOf)
      if ("buffer" in memory) return registerOwned(memory)
      return BufferTypeId in memory
        ? registerOwned({ buffer: memory, byteLength: memory.byteLength, offset: 0 })
        : registerDevice(memory)
    }

    const registerMemory: Public.Nixl["registerMemory"] = (memory) =>
      Effect.acquireRelease(
        door.enter((): ReturnType<typeof registerAny> => registerAny(memory)),
        ({ registration }) =>
          Effect.catchAll(
            Effect.suspend(() => registration.end),
            (error) => Effect.logError("memory not deregistered", error)
          )
      )

    const check = (file: RegisteredFile, pieces: ReadonlyArray<Public.Piece>) => {
      const { alignment } = file.storage
      const checked: Array<Checked> = []
      const wrongPieces = argument.arrayRefused("pieces", pieces, argument.maxBatch)
      if (wrongPieces !== undefined) return wrongPieces
      for (const piece of pieces) {
        if (!argument.isObject(piece)) return argument.invalid("pieces", piece, "an offset, memory and a length")
        const { length: asked, memory, offset, start = 0 } = piece
        for (const [option, value] of Object.entries({ offset, start, length: asked ?? 0 })) {
          if (typeof value !== "number") return argument.invalid(option, value, "a number of bytes")
        }
        if (!(memory instanceof RegisteredMemory)) {
          return new InvalidOption({
            option: "memory",
            value: argument.shown(memory),
            expected: "what registerMemory has made"
          })
        }
        const length = asked ?? Math.max(0, memory.byteLength - start)
        const position = (memory.region?.start ?? 0) + start
        const wrong = outOfBounds(start, length, memory.byteLength) ?? outOfBounds(offset, length, file.size) ??
          (offset % alignment.offset !== 0
            ? new Misaligned({ what: "offset", value: offset, alignment: alignment.offset })
            : length % alignment.length !== 0
            ? new Misaligned({ what: "length", value: length, alignment: alignment.length })
            : memory.kind === "host" && position % alignment.memory !== 0
            ? new Misaligned({ what: "memory", value: position, alignment: alignment.memory })
            : checked[0] !== undefined && checked[0].memory.kind !== memory.kind
            ? new InvalidOption({ option: "pieces", value: "host and device memory", expected: "memory of one kind" })
            : undefined)
        if (wrong !== undefined) return wrong
        if (length > 0) checked.push(...posix.split({ offset, memory, start, length }))
      }
      return checked
    }

    /** Takes the pages of all pieces, or none. */
    const claim = (operation: "read" | "write", pieces: ReadonlyArray<Checked>): BufferBusy | undefined => {
      for (const [index, { length, memory, offset, start }] of pieces.entries()) {
        if (memory.region?.slab.claim(memory.region.start + start, length, operation === "read") === false) {
          new Use(pieces.slice(0, index), Effect.void).free()
          return new BufferBusy({ operation, offset, length })
        }
      }
      return undefined
    }

    const transferList = (kind: number, target: string) =>
      Effect.acquireRelease(
        api.make("nixl_capi_create_xfer_dlist", target, (out) => [kind, out]),
        (list) => destroy(api, "nixl_capi_destroy_xfer_dlist", target, list)
      )

    /** The lists are copied into the request. */
    const makeRequest = (
      operation: "read" | "write",
      file: RegisteredFile,
      pieces: ReadonlyArray<Checked>,
      use: Use
    ) =>
      Effect.scoped(Effect.gen(function*(): Effect.fn.Return<Request, NixlFailed, Scope.Scope> {
        const target = `a ${operation} of ${file.path}`
        const local = yield* transferList(kinds[pieces[0]?.memory.kind ?? "host"], target)
        const remote = yield* transferList(kinds.file, target)
        for (const { length, memory: { registration }, offset, start } of pieces) {
          const address = typeof registration.address === "bigint"
            ? registration.address + BigInt(start)
            : registration.address + start
          const add = (list: bigint, at: Value, device: number) =>
            api.call("nixl_capi_xfer_dlist_add_desc", target, [list, at, length, device])
          yield* add(local, address, registration.device)
          yield* add(remote, offset, file.registration.device)
        }
        const handle = yield* api.make(
          "nixl_capi_create_xfer_req",
          target,
          (out) => [agent, operations[operation], local, remote, name.address, out, 0],
          name
        )
        return {
          handle,
          target,
          pieces,
          file,
          use,
          involved: [file.registration, ...new Set(pieces.map(({ memory }) => memory.registration))],
          failure: undefined,
          refusals: 0,
          ended: false,
          succeeded: false,
          settled: false
        }
      }))

    /**
     * An answer below 0 need not be the end: the call may have failed and not the transfer. Asked again, NIXL repeats the status of what
     * has ended.
     */
    const note = (request: Request, call: Call, answer: number) => {
      if (answer === status.inProgress) return void (request.refusals = 0)
      if (answer !== status.success) {
        request.failure ??= failed(call, answer, request.target)
        request.refusals += 1
      }
      request.succeeded = answer === status.success
      request.ended = request.succeeded || request.refusals > 1
      if (request.ended && !request.succeeded && isQueued(request)) first ??= request.failure
    }
    /** Another request has failed: the queue repeats its answer, and a poll may call back into what was freed. */
    const isOver = (request: Request) => request.ended || (first !== undefined && isQueued(request))
    const asked = (request: Request, call: Call, args: ReadonlyArray<Value>, again?: Again) =>
      Effect.map(
        api.ask(call, [agent, request.handle, ...args], undefined, again),
        (answer) => note(request, call, answer)
      )
    /** Each moves on what POSIX has queued: as many at once as that takes where the disk keeps up. */
    const look = (request: Request) =>
      Effect.suspend(() =>
        isOver(request) ? Effect.void : asked(request, "nixl_capi_get_xfer_status", [], {
          answer: status.inProgress,
          times: isQueued(request) ? posix.pollsAtOnce(request.pieces.length) : 1
        })
      )
    const watch = (request: Request, schedule: Schedule.Schedule<unknown>) =>
      Effect.asVoid(Effect.repeat(look(request), { schedule, until: () => isOver(request) }))

    /** Of one that has ended. NIXL is asked twice, for it refuses what it takes to be in progress. */
    const dispose = (request: Request) => {
      const { handle, target } = request
      const once = api.call("nixl_capi_release_xfer_req", target, [agent, handle])
      return Effect.matchEffect(Effect.orElse(once, () => once), {
        onFailure: (error) => Effect.zipRight(Effect.sync(() => lost.add(request)), Effect.logError("left", error)),
        onSuccess: () => destroy(api, "nixl_capi_destroy_xfer_req", target, handle)
      })
    }

    /**
     * Of one that has ended: it is released, and what it used is free. Not so in the queue of POSIX after a
     * failure. There other pieces may be on their way: their memory stays in use until the agent is gone. The request
     * is not released at all, since with io_uring the backend calls back into it by each later poll (from 1.3 on).
     */
    const conclude = (request: Request) =>
      Effect.suspend(() => {
        active.delete(request)
        if (!isQueued(request) || (request.succeeded && first === undefined)) {
          return Effect.zipRight(dispose(request), request.use.drop)
        }
        // An error is no end, also of a lone piece: the calls for the status may have failed, and not the transfer.
        for (const registration of request.involved) registration.unsettled = true
        suspects.add(request)
        request.use.kept = true
        return request.use.drop
      })

    /** Goes on in the background with one that was given up, until it ends or the service does. */
    const abandon = (request: Request, error: IoStalled) =>
      Effect.gen(function*() {
        lost.add(request)
        for (const { stalls } of request.involved) stalls.add(error)
        const settled = Effect.gen(function*() {
          lost.delete(request)
          yield* conclude(request)
          for (const registration of request.involved) {
            registration.stalls.delete(error)
            if (registration.waiting && registration.stalls.size === 0) {
              yield* Effect.catchAll(end(registration), (error) => Effect.logError("not deregistered", error))
            }
          }
        })
        const watcher = yield* Effect.forkDaemon(Effect.uninterruptible(
          Effect.zipRight(Effect.interruptible(watch(request, schedule)), settled)
        ))
        watchers.add(watcher)
        watcher.addObserver(() => void watchers.delete(watcher))
        yield* Effect.logWarning("a transfer has no answer", error)
      })

    /** Uninterruptible. */
    const run = (
      operation: "read" | "write",
      file: RegisteredFile,
      pieces: ReadonlyArray<Checked>,
      use: Use
    ): Effect.Effect<void, NixlFailed | NixlAgentFailed | IoStalled> =>
      Effect.gen(function*() {
        const request = yield* makeRequest(operation, file, pieces, use)
        use.hold()
        active.add(request)
        yield* asked(request, "nixl_capi_post_xfer_req", [0])
        for (let left = looksAtOnce; left > 1 && !isOver(request); left--) yield* look(request)
        yield* watch(
          request,
          stallMillis === undefined ? schedule : Schedule.intersect(schedule, Schedule.recurUpTo(stallMillis))
        )
        if (!isOver(request) && stallMillis !== undefined) {
          const error = new IoStalled({
            operation,
            path: file.path,
            offset: pieces[0]?.offset ?? 0,
            length: pieces.reduce((sum, { length }) => sum + length, 0),
            timeoutMillis: stallMillis
          })
          yield* abandon(request, error)
          return yield* error
        }
        const earlier = first
        yield* conclude(request)
        if (request.failure !== undefined) return yield* request.failure
        if (earlier !== undefined && isQueued(request)) return yield* agentFailed(earlier)
      })

    /** Memory to read back into, of one transfer after the other. It is given up where a read of it may go on. */
    let scratch: { readonly memory: RegisteredMemory; readonly region: Region } | undefined
    const scratchTurn = yield* Effect.makeSemaphore(1)
    const takeScratch = Effect.suspend(() => {
      if (scratch !== undefined) return Effect.succeed(scratch)
      return Effect.flatMap(
        Effect.try({ try: () => new Region(takeAlone(confirming.scratchBytes)), catch: () => "no memory" as const }),
        (region) => Effect.map(registerHost(region, register), (memory) => scratch = { memory, region })
      )
    })

    /** Reads what the option asks for once more, and compares. `use` holds the memory and the file meanwhile. */
    const confirm = (
      operation: "read" | "write",
      file: RegisteredFile,
      pieces: ReadonlyArray<Checked>,
      use: Use
    ): Effect.Effect<void, NixlTransferError> => {
      const { path } = file
      const unconfirmed = ({ length, offset }: Checked) => new NixlUnconfirmed({ operation, path, offset, length })
      const [anyPiece] = pieces
      if (options.confirm === "none" || anyPiece?.memory.kind !== "host") return Effect.void
      // A read is short at the end of the file alone, and the kernel may fill what is beyond with zeros.
      const reachesAll = operation === "write"
        ? Effect.void
        : Effect.flatMap(api.sizeOf(file.registration.device), (size) => {
          const beyond = pieces.find(({ length, offset }) => offset + length > size)
          return beyond === undefined ? Effect.void : Effect.fail(unconfirmed(beyond))
        })
      if (options.confirm === "ends" && operation === "read") return reachesAll
      const compare = (group: ReadonlyArray<confirming.Part<Checked>>) =>
        Effect.gen(function*() {
          const taken = yield* Effect.catchIf(takeScratch, (error) => error === "no memory", () => Effect.void)
          // The bytes were moved, and nothing shows that all of them were.
          if (taken === undefined) return yield* unconfirmed(group[0]?.piece ?? anyPiece)
          const { memory, region } = taken
          const { different, starts } = confirming.prepare(group, region)
          const parts = group.map(({ length, offset }, index) => ({
            offset,
            memory,
            length,
            start: starts[index] ?? 0
          }))
          yield* Effect.onError(run("read", file, parts, use), () => Effect.sync(() => void (scratch = undefined)))
          const piece = different()
          if (piece !== undefined) return yield* unconfirmed(piece)
        })
      const groups = confirming.groupsOf(pieces, options.confirm, operation, file.storage.alignment)
      const compareAll = scratchTurn.withPermits(1)(Effect.forEach(groups, compare, { discard: true }))
      return Effect.zipRight(reachesAll, compareAll)
    }

    const transfer: Public.Nixl["transfer"] = (operation, file, pieces) =>
      Effect.suspend((): Effect.Effect<void, NixlTransferError> => {
        if (!(file instanceof RegisteredFile)) {
          return Effect.fail(
            new InvalidOption({ option: "file", value: argument.shown(file), expected: "what register has made" })
          )
        }
        if (operation !== "read" && operation !== "write") {
          return Effect.fail(argument.invalid("operation", operation, "read or write"))
        }
        const checked = check(file, pieces)
        if (!Array.isArray(checked)) return Effect.fail(checked)
        if (checked.length === 0) return Effect.void
        if (checked.length > options.maxPieces && checked[0]?.memory.kind === "host") {
          return Effect.fail(
            new InvalidOption({
              option: "pieces",
              value: String(checked.length),
              expected: `at most ${options.maxPieces}, the ios_pool_size of the backend POSIX`
            })
          )
        }
        const registrations = [file.registration, ...new Set(checked.map(({ memory }) => memory.registration))]
        const isHost = checked[0]?.memory.kind === "host"
        // Device memory does not go through the queue of POSIX.
        const count = isHost && queue !== undefined ? checked.length : 0
        const leave = Effect.zipRight(places.release(count), permits.release(1))
        return Effect.uninterruptibleMask((restore) =>
          Effect.zipRight(
            restore(Effect.zipRight(
              permits.take(1),
              Effect.onInterrupt(places.take(count), () => permits.release(1))
            )),
            Effect.suspend(() => {
              const use = new Use(checked, leave)
              const moved = Effect.suspend((): Effect.Effect<void, NixlTransferError> => {
                if (first !== undefined && isHost) return Effect.fail(agentFailed(first))
                const busy = claim(operation, checked)
                if (busy !== undefined) return Effect.fail(busy)
                use.claimed = true
                return Effect.zipRight(run(operation, file, checked, use), confirm(operation, file, checked, use))
              })
              const inside = registrations.reduce<Effect.Effect<void, NixlTransferError>>(
                (effect, registration) => registration.door.enter(() => effect),
                moved
              )
              return Effect.ensuring(door.enter(() => file.storage.withFd(() => inside)), use.drop)
            })
          )
        )
      })

    held.afterwards = () => {
      for (const use of new Set([...suspects].map(({ use }) => use))) use.free()
    }
    // Before the backends and the agent go.
    yield* Effect.addFinalizer(() =>
      Effect.gen(function*() {
        yield* door.close
        for (const registration of [...registrations].reverse()) {
          yield* Effect.catchAll(
            Effect.suspend(() => registration.end),
            (error) => Effect.logError("not deregistered", error)
          )
        }
        yield* Fiber.interruptAll([...watchers])
        // The queue must not go before what the kernel was given has ended.
        if (!(yield* settled)) { for (const request of suspects) lost.add(request) }
      })
    )
    const nixl: Public.Nixl = {
      [TypeId]: TypeId,
      library: api.library,
      agentName,
      plugins: options.plugins,
      backends: options.backends,
      queue,
      confirm: options.confirm,
      register: (storage) => storage.register(File, acquireFile(storage), { linked: true }),
      registerThenUnlink: (storage) => storage.registerThenUnlink(File, acquireFile(storage)),
      registerMemory,
      read: (file, offset, memory, part) => transfer("read", file, [{ ...part, offset, memory }]),
      write: (file, offset, memory, part) => transfer("write", file, [{ ...part, offset, memory }]),
      transfer
    }
    return nixl
  })

/** The plugins that NIXL finds, by name. */
const pluginsOf = (api: Api, agent: bigint) =>
  Effect.acquireUseRelease(
    api.make("nixl_capi_get_available_plugins", "the plugins", (out) => [agent, out]),
    (list) =>
      Effect.gen(function*() {
        const size = yield* api.make("nixl_capi_string_list_size", "the plugins", (out) => [list, out])
        const names: Array<string> = []
        for (let index = 0; index < size; index++) {
          names.push(
            api.read(yield* api.make("nixl_capi_string_list_get", "the plugins", (out) => [list, index, out]))
          )
        }
        return names
      }),
    (list) => destroy(api, "nixl_capi_destroy_string_list", "the plugins", list)
  )

const makeBackend = (api: Api, agent: bigint, { name, parameters = {} }: Public.Backend) =>
  Effect.acquireUseRelease(
    api.make("nixl_capi_create_params", name, (out) => [out]),
    (params) =>
      Effect.gen(function*() {
        for (const [key, value] of Object.entries(parameters)) {
          const [one, other] = yield* Effect.all([api.cString(key), api.cString(value)])
          yield* api.call("nixl_capi_params_add", name, [params, one.address, other.address], [one, other])
        }
        const plugin = yield* api.cString(name)
        return yield* api.make(
          "nixl_capi_create_backend",
          name,
          (out) => [agent, plugin.address, params, out],
          plugin
        )
      }),
    (params) => destroy(api, "nixl_capi_destroy_params", name, params)
  )

/** An agent, with what it will hold at its end. */
const makeAgent = (api: Api, agentName: string, name: CString) => {
  const held: Held = { afterwards: () => {}, registrations: new Set(), lost: new Set() }
  return Effect.map(
    Effect.acquireRelease(
      api.make("nixl_capi_create_agent", agentName, (out) => [name.address, out], name),
      (agent) =>
        Effect.suspend(() => {
          if (held.lost.size > 0) {
            left.add(held)
            return Effect.logError(
              `the agent ${agentName} is left to the process, and what its ${held.lost.size} transfers use`
            )
          }
          return Effect.matchEffect(api.call("nixl_capi_destroy_agent", agentName, [agent]), {
            onFailure: (error) => {
              left.add(held)
              return Effect.logError("not destroyed", error)
            },
            // What could not be deregistered went with the agent.
            onSuccess: () =>
              Effect.zipRight(
                Effect.forEach(held.registrations, (registration) => {
                  registration.ofMemory?.delete(registration.end)
                  return closeFile(api, registration)
                }, { discard: true }),
                Effect.sync(held.afterwards)
              )
          })
        })
    ),
    (agent) => ({ agent, held })
  )
}

/**
 * An agent with its backends, and the rings that came with them. NIXL 1.0 makes a backend without a queue where it was
 * built without io_uring, and its first transfer is a crash: a ring has to be there.
 */
const open = (
  api: Api,
  agentName: string,
  name: CString,
  backends: ReadonlyArray<Public.Backend>,
  queue: Public.Queue | undefined
) =>
  Effect.gen(function*() {
    const { agent, held } = yield* makeAgent(api, agentName, name)
    const plugins = yield* pluginsOf(api, agent)
    // The engines of this package make and end theirs meanwhile: those are never counted.
    const before = api.rings()
    yield* Effect.forEach(backends, (backend) =>
      Effect.acquireRelease(
        makeBackend(api, agent, backend),
        (handle) =>
          Effect.suspend(() =>
            held.lost.size > 0 ? Effect.void : destroy(api, "nixl_capi_destroy_backend", backend.name, handle)
          )
      ))
    const rings = new Set([...api.rings()].filter((fd) => !before.has(fd)))
    if (queue === "io_uring" && rings.size === 0) {
      return yield* failed("nixl_capi_create_backend", status.backend, posix.backendName)
    }
    return { agent, held, plugins, queue, rings }
  })

/** In a Scope of its own, which ends when it fails. */
const attempt = <A, E, R>(make: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const scope = yield* Effect.flatMap(Effect.scope, (scope) => Scope.fork(scope, ExecutionStrategy.sequential))
    return yield* Effect.onError(Scope.extend(make, scope), (cause) => Scope.close(scope, Exit.failCause(cause)))
  })

/** With the queue that the caller has named, else with io_uring, else with POSIX AIO. */
const openAny = (
  api: Api,
  agentName: string,
  name: CString,
  backends: ReadonlyArray<Public.Backend>
) => {
  const given = backends.find(({ name }) => name === posix.backendName)
  const openWith = (queue: Public.Queue | undefined) =>
    attempt(open(
      api,
      agentName,
      name,
      backends.map((backend) => backend === given && queue !== undefined ? posix.withQueue(backend, queue) : backend),
      queue
    ))
  const named = given === undefined ? undefined : posix.namedQueue(given)
  if (given === undefined || named !== undefined) return openWith(named)
  return Effect.catchIf(
    openWith("io_uring"),
    ({ call, target }) => call === "nixl_capi_create_backend" && target === posix.backendName,
    () =>
      Effect.zipLeft(
        openWith("posix_aio"),
        Effect.logWarning("NIXL's backend POSIX has no io_uring here, and moves the pieces of a file by POSIX AIO")
      )
  )
}

const isText = (option: string, value: string) =>
  typeof value === "string" && value !== "" && isFaithful(value)
    ? Effect.void
    : Effect.fail(argument.invalid(option, value, `text: not empty, ${faithful}`))

const stallMillisOf = (stallTimeout: Duration.DurationInput | undefined) =>
  Effect.map(
    argument.duration("stallTimeout", stallTimeout, Infinity),
    (millis) => Number.isFinite(millis) ? millis : undefined
  )

export const make = (
  options: Public.NixlOptions = {}
): Effect.Effect<
  Public.Nixl,
  NixlUnavailable | NixlFailed | InvalidOption | ConfigError.ConfigError,
  Scope.Scope
> =>
  Effect.gen(function*() {
    yield* argument.unless(argument.objectRefused("options", options))
    const { agentName = "effect-disk-storage" } = options
    const backends = options.backends ?? [{ name: posix.backendName }]
    yield* isText("agentName", agentName)
    yield* argument.unless(argument.arrayRefused("backends", backends, 64))
    for (const backend of backends) {
      yield* argument.unless(argument.objectRefused("backends", backend, "objects with a name"))
      const { name, parameters = {} } = backend
      yield* isText("backends", name)
      yield* argument.unless(argument.objectRefused(`${name}.parameters`, parameters))
      for (const [key, value] of Object.entries(parameters)) yield* isText(`${name}.${key}`, value)
    }
    const names = backends.map(({ name }) => name)
    if (names.length === 0 || new Set(names).size !== names.length) {
      return yield* new InvalidOption({ option: "backends", value: names.join(), expected: "one or more, each once" })
    }
    const given = backends.find(({ name }) => name === posix.backendName)
    const maxInFlight = yield* wholeNumber("maxInFlight", options.maxInFlight, given === undefined ? 64 : 1, 1, 65_536)
    const stallMillis = yield* stallMillisOf(options.stallTimeout)
    // Before anything is made.
    yield* posix.confirmation(options.confirm, undefined)
    if (given !== undefined) yield* posix.maxPieces(given, "io_uring")
    const library = options.library ?? (yield* DiskStorageConfig.nixlLibrary)
    yield* isText("library", library)
    const api = yield* load(library)
    const name = yield* api.cString(agentName)
    const { agent, held, plugins, queue, rings } = yield* openAny(api, agentName, name, backends)
    const confirm = yield* posix.confirmation(options.confirm, queue)
    const annotations = { library, agentName, backends: names, plugins, queue, confirm }
    yield* Effect.logDebug("NIXL is ready").pipe(Effect.annotateLogs(annotations))
    return yield* service(api, agent, held, {
      agentName,
      name,
      plugins,
      backends: names,
      schedule: completion(options.completion),
      maxInFlight,
      queue,
      rings,
      maxPieces: given === undefined || queue === undefined ? Infinity : yield* posix.maxPieces(given, queue),
      confirm,
      stallMillis
    })
  }).pipe(Effect.withSpan("Nixl.make"))
