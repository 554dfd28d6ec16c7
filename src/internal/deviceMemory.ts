/** Memory of a CUDA device: who uses which of it, and the calls. */
import type * as ConfigError from "effect/ConfigError"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Scope from "effect/Scope"
import type { AlignedBuffer } from "../AlignedBuffer.js"
import type { Device, DeviceBuffer, DeviceMemory, DeviceMemoryOptions, DeviceRegion } from "../DeviceMemory.js"
import * as DiskStorageConfig from "../DiskStorageConfig.js"
import type { CudaFailed } from "../DiskStorageError.js"
import {
  BufferBusy,
  CudaUnavailable,
  DeviceMemoryFreed,
  InvalidOption,
  LengthMismatch,
  OutOfBounds
} from "../DiskStorageError.js"
import { region as hostRegion } from "./alignedBuffer.js"
import * as argument from "./arguments.js"
import { makeDoorOf } from "./door.js"
import type { Cuda } from "./linux/cuda.js"
import * as cuda from "./linux/cuda.js"
import { RangeLock } from "./rangeLock.js"
import { pageSize } from "./slab.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/DeviceMemory")
export const BufferTypeId: unique symbol = Symbol.for("effect-disk-storage/DeviceBuffer")

/** The only class that implements `DeviceBuffer`. */
class Allocation implements DeviceBuffer {
  readonly [BufferTypeId]: typeof BufferTypeId = BufferTypeId
  readonly pointer: bigint
  readonly byteLength: number
  readonly device: Device
  readonly door
  /** How its registrations with libraries end, newest last: before it is freed. One that fails may still be used by its library. */
  readonly registrations = new Set<Effect.Effect<void, unknown>>()

  constructor(pointer: bigint, byteLength: number, device: Device) {
    this.pointer = pointer
    this.byteLength = byteLength
    this.device = device
    this.door = makeDoorOf(() => new DeviceMemoryFreed({ device: device.ordinal, byteLength }))
  }
}

const allocation = (buffer: DeviceBuffer): Allocation => {
  if (buffer instanceof Allocation) return buffer
  throw new TypeError("a DeviceBuffer is made by DeviceMemory.allocate, and by nothing else")
}

/** To be added to while the memory cannot be freed, as by `withPointer`. */
export const registrationsOf = (buffer: DeviceBuffer): Set<Effect.Effect<void, unknown>> =>
  allocation(buffer).registrations

const outside = ({ buffer, byteLength: length, offset }: DeviceRegion): OutOfBounds | undefined =>
  Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0 &&
    offset + length <= buffer.byteLength
    ? undefined
    : new OutOfBounds({ offset, length, size: buffer.byteLength })

export const region = (
  buffer: DeviceBuffer,
  offset = 0,
  byteLength = buffer.byteLength - offset
): Effect.Effect<DeviceRegion, OutOfBounds> =>
  Effect.suspend(() => {
    const made = { buffer, offset, byteLength }
    const error = outside(made)
    return error === undefined ? Effect.succeed(made) : Effect.fail(error)
  })

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** Keeps the buffer from being freed while `use` runs, which begins uninterruptible. */
const inUse = <A, E, R>(
  part: DeviceRegion,
  use: (pointer: bigint, restore: Restore) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | DeviceMemoryFreed | OutOfBounds, R> =>
  Effect.suspend((): Effect.Effect<A, E | DeviceMemoryFreed | OutOfBounds, R> => {
    const { door, pointer } = allocation(part.buffer)
    const error = outside(part)
    return error === undefined
      ? door.enter((restore) => use(pointer + BigInt(part.offset), restore))
      : Effect.fail(error)
  })

export const withPointer = <A, E, R>(
  part: DeviceRegion,
  use: (pointer: bigint) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | DeviceMemoryFreed | OutOfBounds, R> =>
  inUse(part, (pointer, restore) => restore(Effect.suspend(() => use(pointer))))

const wholeNumber = (option: string, value: number, from: number, to: number): Effect.Effect<number, InvalidOption> =>
  Number.isSafeInteger(value) && value >= from && value <= to
    ? Effect.succeed(value)
    : Effect.fail(
      new InvalidOption({ option, value: String(value), expected: `a whole number from ${from} to ${to}` })
    )

const describe = (driver: Cuda, ordinal: number): Effect.Effect<Device, CudaFailed> =>
  Effect.gen(function*() {
    const ask = (
      name: "cuDeviceGet" | "cuDeviceTotalMem_v2" | "cuDeviceGetName" | "cuDeviceGetPCIBusId",
      ...args: ReadonlyArray<number>
    ) => {
      const answer = driver.answer()
      return Effect.as(driver.call(name, [answer.address, ...args], answer), answer)
    }
    const handle = (yield* ask("cuDeviceGet", ordinal)).int()
    return {
      ordinal,
      handle,
      name: (yield* ask("cuDeviceGetName", pageSize - 1, handle)).text(),
      bytes: Number((yield* ask("cuDeviceTotalMem_v2", handle)).uint64()),
      // In small letters, as in /sys/bus/pci/devices.
      pciAddress: (yield* ask("cuDeviceGetPCIBusId", 64, handle)).text().toLowerCase()
    }
  })

/** A release that fails has nobody to tell but the log. */
const logged = (what: string, release: Effect.Effect<void, CudaFailed>): Effect.Effect<void> =>
  Effect.catchAll(release, (error) => Effect.logError(`${what}: ${error.message}`, error))

export const make = (
  options: DeviceMemoryOptions
): Effect.Effect<DeviceMemory, CudaUnavailable | InvalidOption | ConfigError.ConfigError, Scope.Scope> =>
  Effect.gen(function*() {
    yield* argument.unless(argument.objectRefused("options", options))
    const library = options.library ?? (yield* DiskStorageConfig.cudaLibrary)
    yield* argument.unless(argument.stringRefused("library", library, "a path or soname"))
    const ordinal = yield* wholeNumber("device", options.device ?? 0, 0, 0x7fff_ffff)
    const threads = yield* wholeNumber("threads", options.threads ?? 2, 1, 64)
    const unavailable = (reason: string, code?: number) =>
      new CudaUnavailable({ library, reason, ...(code === undefined ? {} : { code }) })
    const driver = yield* cuda.open(library, threads, ordinal)
    const needed = Effect.mapError(({ call, code, name }: CudaFailed) =>
      unavailable(`${call} failed with ${name} (${code})`, code)
    )

    yield* needed(driver.call("cuInit", [0]))
    const version = driver.answer()
    yield* needed(driver.call("cuDriverGetVersion", [version.address], version))
    const count = driver.answer()
    yield* needed(driver.call("cuDeviceGetCount", [count.address], count))
    const devices = yield* needed(
      Effect.forEach(Array.from({ length: count.int() }, (_, at) => at), (at) => describe(driver, at))
    )
    const device = devices[ordinal]
    if (device === undefined) {
      return yield* unavailable(`there is no device ${ordinal}, but ${devices.length}, counted from 0`, 101)
    }

    /** Whether some memory had to be. */
    let left = false
    const retained = driver.answer()
    yield* Effect.acquireRelease(
      needed(driver.call("cuDevicePrimaryCtxRetain", [retained.address, device.handle], retained)),
      () =>
        Effect.suspend(() =>
          // With its last user a context takes its memory along.
          left
            ? Effect.logError("The context is left to the process, and the device memory in it")
            : logged("The context is not released", driver.call("cuDevicePrimaryCtxRelease_v2", [device.handle]))
        )
    )
    const context = retained.uint64()
    // Before it is set, which may fail on one thread and not on the ones before.
    yield* Effect.addFinalizer(() => logged("A thread keeps its context", driver.callOnEach("cuCtxSetCurrent", [0n])))
    yield* needed(driver.callOnEach("cuCtxSetCurrent", [context]))

    const door = makeDoorOf(() =>
      unavailable("this service is released; keep its Scope open for as long as it is used")
    )
    /** How what is alive is released; each can be run by its own Scope and by the service's, and happens once. */
    const alive = new Set<Effect.Effect<void>>()
    yield* Effect.addFinalizer(() =>
      Effect.zipRight(
        door.close,
        Effect.suspend(() => Effect.forEach([...alive].reverse(), (release) => release, { discard: true }))
      )
    )
    /** Runs `acquire` in the service, and `release` at the end of the Scope or of the service, whichever is first. */
    const scoped = <A>(
      acquire: Effect.Effect<A, CudaFailed>,
      release: (acquired: A) => Effect.Effect<void>
    ): Effect.Effect<A, CudaFailed | CudaUnavailable, Scope.Scope> =>
      Effect.acquireRelease(
        door.enter(() =>
          Effect.gen(function*() {
            const acquired = yield* acquire
            const once = yield* Effect.cached(
              Effect.uninterruptible(Effect.ensuring(release(acquired), Effect.sync(() => void alive.delete(once))))
            )
            alive.add(once)
            return { acquired, once }
          })
        ),
        ({ once }) => once
      ).pipe(Effect.map(({ acquired }) => acquired))

    const allocate = (byteLength: number) =>
      Effect.zipRight(
        wholeNumber("byteLength", byteLength, 1, Number.MAX_SAFE_INTEGER),
        scoped(
          Effect.gen(function*() {
            const answer = driver.answer()
            yield* driver.call("cuMemAlloc_v2", [answer.address, byteLength], answer)
            const pointer = answer.uint64()
            const free = driver.call("cuMemFree_v2", [pointer])
            // Else a copy on the device may still go on when its call has returned, and cuFile or NIXL would read what was there before.
            const on = driver.answer()
            on.part.bytes[0] = 1
            yield* Effect.onError(
              driver.call("cuPointerSetAttribute", [on.address, cuda.syncMemops, pointer], on),
              () => logged("Device memory is not freed", free)
            )
            return { buffer: new Allocation(pointer, byteLength, device), free }
          }),
          ({ buffer: { door, registrations }, free }) =>
            Effect.gen(function*() {
              yield* door.close
              const ends = yield* Effect.forEach([...registrations].reverse(), Effect.either)
              const failures = ends.flatMap((end) => Either.isLeft(end) ? [end.left] : [])
              if (failures.length === 0) return yield* logged("Device memory is not freed", free)
              left = true
              yield* Effect.logError("Device memory is left to the process: a library may still use it", ...failures)
            })
        ).pipe(Effect.map(({ buffer }): DeviceBuffer => buffer))
      )

    // Copies and the end of `pin` on the same host memory, one after the other; what begins in between waits its turn.
    const lock = new RangeLock()
    const pin = (buffer: AlignedBuffer) =>
      Effect.suspend(() => {
        const { byteLength, slab, start } = hostRegion(buffer)
        if (byteLength === 0) return Effect.void
        const address = driver.addressOf({ slab, start })
        // A slab ends on a page, so that the rest of the last page is there.
        const length = Math.ceil(byteLength / pageSize) * pageSize
        return scoped(
          driver.call("cuMemHostRegister_v2", [address, length, cuda.portable], slab),
          () =>
            lock.within(
              address,
              address + length,
              logged("Memory is still pinned", driver.call("cuMemHostUnregister", [address], slab))
            )
        )
      })

    const otherDevice = (option: string, { buffer }: DeviceRegion) =>
      buffer.device.ordinal === device.ordinal ? undefined : new InvalidOption({
        option,
        value: `memory of device ${buffer.device.ordinal}`,
        expected: `memory of device ${device.ordinal}, which this service is of`
      })

    const hostCopy = (operation: "read" | "write", option: string, buffer: AlignedBuffer, part: DeviceRegion) =>
      inUse(
        part,
        (pointer, restore) =>
          Effect.suspend((): Effect.Effect<void, BufferBusy | CudaFailed | InvalidOption | LengthMismatch> => {
            const { byteLength: length, slab, start } = hostRegion(buffer)
            const error = otherDevice(option, part)
            if (error !== undefined) return Effect.fail(error)
            const [from, to] = operation === "read" ? [part.byteLength, length] : [length, part.byteLength]
            if (from !== to) return Effect.fail(new LengthMismatch({ from, to }))
            if (length === 0) return Effect.void
            if (!slab.claim(start, length, operation === "read")) {
              return Effect.fail(new BufferBusy({ operation, offset: part.offset, length }))
            }
            const address = driver.addressOf({ slab, start })
            const copy = operation === "read"
              ? driver.call("cuMemcpyDtoH_v2", [address, pointer, length], slab)
              : driver.call("cuMemcpyHtoD_v2", [pointer, address, length], slab)
            return Effect.ensuring(
              restore(lock.within(address, address + length, copy)),
              Effect.sync(() => slab.release(start, length))
            )
          })
      )

    const copyOnDevice = (from: DeviceRegion, to: DeviceRegion) =>
      inUse(
        from,
        (source) =>
          inUse(to, (target, restore) =>
            Effect.suspend((): Effect.Effect<void, CudaFailed | InvalidOption | LengthMismatch> => {
              const error = otherDevice("from", from) ?? otherDevice("to", to)
              if (error !== undefined) {
                return Effect.fail(error)
              }
              if (from.byteLength !== to.byteLength) {
                return Effect.fail(new LengthMismatch({ from: from.byteLength, to: to.byteLength }))
              }
              const length = BigInt(from.byteLength)
              if (length === 0n) {
                return Effect.void
              }
              if (source < target + length && target < source + length) {
                return Effect.fail(
                  new InvalidOption({
                    option: "to",
                    value: "a region that overlaps with from",
                    expected: "a region that does not, for the driver copies in any order"
                  })
                )
              }
              return restore(driver.call("cuMemcpyDtoD_v2", [target, source, length]))
            }))
      )

    yield* Effect.logDebug(
      `CUDA ${version.int()}: device ${ordinal} of ${devices.length} is ${device.name} at ${device.pciAddress}, ${device.bytes} bytes`
    )
    return {
      [TypeId]: TypeId,
      library,
      driverVersion: version.int(),
      devices,
      device,
      context,
      allocate,
      pin,
      copyToDevice: (from, to) => hostCopy("write", "to", from, to),
      copyToHost: (from, into) => hostCopy("read", "from", into, from),
      copyOnDevice
    }
  })
