/** An agent of NIXL: what is registered with it, and its transfers from their post to their end. */
import type * as ConfigError from "effect/ConfigError"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { AlignedBuffer } from "../AlignedBuffer.js"
import type { DeviceBuffer, DeviceRegion } from "../DeviceMemory.js"
import { withPointer } from "../DeviceMemory.js"
import type { DiskStorage } from "../DiskStorage.js"
import * as DiskStorageConfig from "../DiskStorageConfig.js"
import type { NixlFailed, NixlTransferError, NixlUnavailable } from "../DiskStorageError.js"
import { BufferBusy, InvalidOption, IoStalled, Misaligned, NixlClosed, OutOfBounds } from "../DiskStorageError.js"
import type * as Public from "../Nixl.js"
import type { Region } from "./alignedBuffer.js"
import { region } from "./alignedBuffer.js"
import { BufferTypeId, registrationsOf } from "./deviceMemory.js"
import { makeDoorOf } from "./door.js"
import { wholeNumber } from "./engineOptions.js"
import type { Value } from "./linux/libraryThreads.js"
import type { Api, Call, CString } from "./linux/nixl.js"
import { failed, load, status } from "./linux/nixl.js"
import { faithful, isFaithful } from "./pathText.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/Nixl")
export const FileTypeId: unique symbol = Symbol.for("effect-disk-storage/Nixl/File")
export const MemoryTypeId: unique symbol = Symbol.for("effect-disk-storage/Nixl/Memory")

export const File: Context.Tag<Public.File, Public.File> = Context.GenericTag<Public.File>(
  "effect-disk-storage/Nixl/File"
)

/** `nixl_capi_mem_type_t` and `nixl_capi_xfer_op_t`. */
const kinds = { host: 0, device: 1, file: 4 } as const
const operations = { read: 0, write: 1 } as const

/**
 * What NIXL's POSIX backend names as defaults in `io_queue.cpp` and does not apply (1.0 to 1.4): without them a request of more than 64 pieces
 * fails, with io_uring one of more than 16. Its own pool is larger; this one bounds a request, and the backend's memory.
 */
const posixDefaults = { ios_pool_size: "1024", kernel_queue_size: "256" }

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
  end: Effect.Effect<void, NixlFailed | IoStalled> = Effect.void
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

/** A request that was made: when it has ended, and with what. */
interface Request {
  readonly handle: bigint
  readonly target: string
  /** What failed first: a failed transfer is never a success. */
  failure: NixlFailed | undefined
  /** Answers below 0 one after the other. */
  refusals: number
  ended: boolean
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
    /** The most pieces of a request of host memory. */
    readonly maxPieces: number
    readonly stallMillis: number | undefined
  }
) =>
  Effect.gen(function*() {
    const { agentName, name, schedule, stallMillis } = options
    const { lost, registrations } = held
    const door = makeDoorOf(() => new NixlClosed({ what: `The agent ${agentName}` }))
    const permits = yield* Effect.makeSemaphore(options.maxInFlight)
    /** Requests that have failed and whose other pieces may still move, and their pieces: see `run`. */
    const suspects = new Map<Request, ReadonlyArray<Checked>>()
    const watchers = new Set<Fiber.RuntimeFiber<void>>()

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

    const register = (registration: Registration) =>
      Effect.gen(function*() {
        yield* withList(
          registration,
          (list) => api.call("nixl_capi_register_mem", registration.what, [agent, list, 0])
        )
        registrations.add(registration)
        // Asked for by its Scope, and by the service's end.
        registration.end = yield* Effect.cached(
          Effect.zipRight(
            registration.door.close,
            Effect.suspend((): Effect.Effect<void, NixlFailed | IoStalled> => {
              const [stall] = registration.stalls
              if (stall === undefined) return deregister(registration)
              registration.waiting = true
              return Effect.fail(stall)
            })
          )
        )
      })

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

    const registerHost = (memory: AlignedBuffer) =>
      Effect.suspend(() => {
        const host = region(memory)
        const { byteLength, slab, start } = host
        const what = `${byteLength} bytes of host memory`
        const registration = new Registration(what, kinds.host, api.addressOf(slab) + start, byteLength, 0, host)
        return Effect.as(register(registration), new RegisteredMemory("host", registration, host))
      })

    const registerDevice = (
      memory: Public.DeviceRange
    ): Effect.Effect<RegisteredMemory, NixlFailed | InvalidOption> => {
      const { byteLength, device, pointer } = memory
      if (!(Number.isSafeInteger(byteLength) && byteLength > 0 && Number.isSafeInteger(device) && device >= 0)) {
        return Effect.fail(
          new InvalidOption({
            option: "memory",
            value: `${byteLength} bytes of device ${device}`,
            expected: "a length above 0 and the ordinal of a device"
          })
        )
      }
      const what = `${byteLength} bytes of memory of device ${device}`
      const registration = new Registration(what, kinds.device, pointer, byteLength, device, memory)
      return Effect.as(register(registration), new RegisteredMemory("device", registration, undefined))
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
      if ("bytes" in memory) return registerHost(memory)
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
      for (const { length: asked, memory, offset, start = 0 } of pieces) {
        if (!(memory instanceof RegisteredMemory)) {
          return new InvalidOption({
            option: "memory",
            value: String(memory),
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
        if (length > 0) checked.push({ offset, memory, start, length })
      }
      return checked
    }

    /** Takes the pages of all pieces, or none. */
    const claim = (operation: "read" | "write", pieces: ReadonlyArray<Checked>): BufferBusy | undefined => {
      for (const [index, { length, memory, offset, start }] of pieces.entries()) {
        if (memory.region?.slab.claim(memory.region.start + start, length, operation === "read") === false) {
          release(pieces.slice(0, index))
          return new BufferBusy({ operation, offset, length })
        }
      }
      return undefined
    }
    const release = (pieces: ReadonlyArray<Checked>) => {
      for (const { length, memory, start } of pieces) {
        memory.region?.slab.release(memory.region.start + start, length)
      }
    }

    const transferList = (kind: number, target: string) =>
      Effect.acquireRelease(
        api.make("nixl_capi_create_xfer_dlist", target, (out) => [kind, out]),
        (list) => destroy(api, "nixl_capi_destroy_xfer_dlist", target, list)
      )

    /** The lists are copied into the request. */
    const makeRequest = (operation: "read" | "write", file: RegisteredFile, pieces: ReadonlyArray<Checked>) =>
      Effect.scoped(Effect.gen(function*() {
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
        return { handle, target, failure: undefined, refusals: 0, ended: false }
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
      request.ended = answer === status.success || request.refusals > 1
    }
    const asked = (request: Request, call: Call, args: ReadonlyArray<Value>) =>
      Effect.map(api.ask(call, [agent, request.handle, ...args]), (answer) => note(request, call, answer))
    const look = (request: Request) => asked(request, "nixl_capi_get_xfer_status", [])
    const watch = (request: Request, schedule: Schedule.Schedule<unknown>) =>
      Effect.suspend(() =>
        request.ended
          ? Effect.void
          : Effect.asVoid(
            Effect.repeat(look(request), { schedule, until: () => request.ended })
          )
      )

    /** Of one that has ended. NIXL is asked twice, for it refuses what it takes to be in progress. */
    const dispose = (request: Request) => {
      const { handle, target } = request
      const once = api.call("nixl_capi_release_xfer_req", target, [agent, handle])
      return Effect.matchEffect(Effect.orElse(once, () => once), {
        onFailure: (error) => Effect.zipRight(Effect.sync(() => lost.add(request)), Effect.logError("left", error)),
        onSuccess: () => destroy(api, "nixl_capi_destroy_xfer_req", target, handle)
      })
    }

    /** Goes on in the background with one that was given up, until it ends or the service does. */
    const abandon = (
      request: Request,
      error: IoStalled,
      involved: ReadonlyArray<Registration>,
      done: Effect.Effect<void>
    ) =>
      Effect.gen(function*() {
        lost.add(request)
        for (const { stalls } of involved) stalls.add(error)
        const settled = Effect.gen(function*() {
          lost.delete(request)
          yield* dispose(request)
          yield* done
          for (const registration of involved) {
            registration.stalls.delete(error)
            if (registration.waiting && registration.stalls.size === 0) {
              yield* Effect.catchAll(deregister(registration), (error) => Effect.logError("not deregistered", error))
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

    /** Uninterruptible; `done` is for when nothing of it is in use any more. */
    const run = (
      operation: "read" | "write",
      file: RegisteredFile,
      pieces: ReadonlyArray<Checked>,
      involved: ReadonlyArray<Registration>,
      done: Effect.Effect<void>
    ): Effect.Effect<void, NixlFailed | IoStalled> =>
      Effect.gen(function*() {
        const request: Request = yield* Effect.onError(makeRequest(operation, file, pieces), () => done)
        yield* asked(request, "nixl_capi_post_xfer_req", [0])
        yield* watch(
          request,
          stallMillis === undefined ? schedule : Schedule.intersect(schedule, Schedule.recurUpTo(stallMillis))
        )
        if (!request.ended && stallMillis !== undefined) {
          const error = new IoStalled({
            operation,
            path: file.path,
            offset: pieces[0]?.offset ?? 0,
            length: pieces.reduce((sum, { length }) => sum + length, 0),
            timeoutMillis: stallMillis
          })
          yield* abandon(request, error, involved, done)
          return yield* error
        }
        // POSIX tells of the first error of a request while its other pieces are on their way (1.0 to 1.4), and might tell the next one of
        // theirs. The kernel has their memory for as long as that: until the backend's queue is gone.
        const suspect = request.failure !== undefined && pieces[0]?.memory.kind === "host" &&
          options.backends.includes("POSIX") && (pieces.length > 1 || suspects.size > 0)
        if (suspect) {
          suspects.set(request, pieces)
          yield* Effect.asVoid(permits.release(1))
        } else {
          yield* dispose(request)
          yield* done
        }
        if (request.failure !== undefined) return yield* request.failure
      })

    const transfer: Public.Nixl["transfer"] = (operation, file, pieces) =>
      Effect.suspend((): Effect.Effect<void, NixlTransferError> => {
        if (!(file instanceof RegisteredFile)) {
          return Effect.fail(
            new InvalidOption({ option: "file", value: String(file), expected: "what register has made" })
          )
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
        const memories = new Set(checked.map(({ memory }) => memory.registration))
        const involved = [file.registration, ...memories]
        return Effect.uninterruptibleMask((restore) =>
          Effect.zipRight(
            restore(permits.take(1)),
            Effect.suspend(() => {
              let begun = false
              const back = Effect.asVoid(permits.release(1))
              const begin = Effect.suspend((): Effect.Effect<void, NixlFailed | IoStalled | BufferBusy> => {
                const busy = claim(operation, checked)
                if (busy !== undefined) return Effect.fail(busy)
                begun = true
                return run(
                  operation,
                  file,
                  checked,
                  involved,
                  Effect.suspend(() => {
                    release(checked)
                    return back
                  })
                )
              })
              const inside = involved.reduce<Effect.Effect<void, NixlFailed | IoStalled | BufferBusy | NixlClosed>>(
                (effect, registration) => registration.door.enter(() => effect),
                begin
              )
              return Effect.ensuring(
                door.enter(() => file.storage.withFd(() => inside)),
                Effect.suspend(() => begun ? Effect.void : back)
              )
            })
          )
        )
      })

    held.afterwards = () => suspects.forEach(release)
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
        for (const request of suspects.keys()) yield* dispose(request)
      })
    )
    const nixl: Public.Nixl = {
      [TypeId]: TypeId,
      library: api.library,
      agentName,
      plugins: options.plugins,
      backends: options.backends,
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

const isText = (option: string, value: string) =>
  value !== "" && isFaithful(value)
    ? Effect.void
    : Effect.fail(new InvalidOption({ option, value: JSON.stringify(value), expected: `text: not empty, ${faithful}` }))

export const make = (
  options: Public.NixlOptions = {}
): Effect.Effect<
  Public.Nixl,
  NixlUnavailable | NixlFailed | InvalidOption | ConfigError.ConfigError,
  Scope.Scope
> =>
  Effect.gen(function*() {
    const { agentName = "effect-disk-storage" } = options
    const backends = (options.backends ?? [{ name: "POSIX" }]).map(({ name, parameters }): Public.Backend => ({
      name,
      parameters: name === "POSIX" ? { ...posixDefaults, ...parameters } : parameters
    }))
    yield* isText("agentName", agentName)
    for (const { name, parameters = {} } of backends) {
      yield* isText("backends", name)
      for (const [key, value] of Object.entries(parameters)) yield* isText(`${name}.${key}`, value)
    }
    const names = backends.map(({ name }) => name)
    if (names.length === 0 || new Set(names).size !== names.length) {
      return yield* new InvalidOption({ option: "backends", value: names.join(), expected: "one or more, each once" })
    }
    const most = names.includes("POSIX") ? 1 : 64
    const maxInFlight = yield* wholeNumber("maxInFlight", options.maxInFlight, most, 1, 65_536)
    const posix = backends.find(({ name }) => name === "POSIX")
    const maxPieces = posix === undefined
      ? Infinity
      : yield* wholeNumber("ios_pool_size", Number(posix.parameters?.["ios_pool_size"]), 0, 64, 65_536)
    const stall = options.stallTimeout === undefined ? Infinity : Duration.toMillis(options.stallTimeout)
    if (!(stall > 0)) {
      return yield* new InvalidOption({
        option: "stallTimeout",
        value: String(stall),
        expected: "a duration above 0"
      })
    }
    const library = options.library ?? (yield* DiskStorageConfig.nixlLibrary)
    const api = yield* load(library)
    const name = yield* api.cString(agentName)
    const held: Held = { afterwards: () => {}, registrations: new Set(), lost: new Set() }
    const agent = yield* Effect.acquireRelease(
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
    )
    const plugins = yield* pluginsOf(api, agent)
    yield* Effect.forEach(backends, (backend) =>
      Effect.acquireRelease(
        makeBackend(api, agent, backend),
        (handle) =>
          Effect.suspend(() =>
            held.lost.size > 0 ? Effect.void : destroy(api, "nixl_capi_destroy_backend", backend.name, handle)
          )
      ))
    yield* Effect.logDebug("NIXL is ready").pipe(Effect.annotateLogs({ library, agentName, backends: names, plugins }))
    return yield* service(api, agent, held, {
      agentName,
      name,
      plugins,
      backends: names,
      schedule: completion(options.completion),
      maxInFlight,
      maxPieces,
      stallMillis: Number.isFinite(stall) ? stall : undefined
    })
  }).pipe(Effect.withSpan("Nixl.make"))
