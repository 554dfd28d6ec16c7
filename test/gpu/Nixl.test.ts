/** NIXL over its stub: real bytes in real files, and everything that can go wrong on the way. */
import { afterEach, assert, it, onTestFinished, vi } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import koffi from "koffi"
import { closeSync, existsSync, openSync, readdirSync, readlinkSync, rmSync, truncateSync, unlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DeviceMemory from "../../src/DeviceMemory.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import { isDiskStorageError } from "../../src/DiskStorageError.js"
import type { IoEngine } from "../../src/IoEngine.js"
import * as Linux from "../../src/Linux.js"
import * as Nixl from "../../src/Nixl.js"
import type { Syscalls } from "../../src/Syscalls.js"
import { cudaControl, describeStubs, nixlControl } from "./stubs.js"

vi.setConfig({ testTimeout: 120_000 })

const mebibyte = 1024 * 1024
const nothing = { agents: 0, backends: 0, lists: 0, requests: 0, files: 0, memory: 0 }

const storage = DiskStorage.make({ size: mebibyte, directory: tmpdir(), directIo: "preferred" })

const filled = (byteLength: number, seed: number) =>
  Effect.tap(
    AlignedBuffer.make(byteLength),
    ({ bytes }) =>
      Effect.sync(() => bytes.forEach((_, index) => bytes[index] = (index * 31 + seed + (index >> 8)) & 255))
  )

/** Descriptors of temp files of storages that this process has open. */
const openFiles = () =>
  readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes("dynamo-kvbm-disk-cache-eds")
    } catch {
      return false
    }
  }).length

const services = Layer.merge(Linux.layer, Logger.remove(Logger.defaultLogger))

describeStubs("NIXL", (paths) => {
  const stub = nixlControl(paths.nixl)
  const library = paths.nixl
  afterEach(() => stub.reset())

  const live = <A, E>(name: string, body: Effect.Effect<A, E, Syscalls | IoEngine | Scope.Scope>) =>
    it.live(name, () => body.pipe(Effect.scoped, Effect.provide(services)))

  /** Without memory of its own to read back into, which would be counted. */
  const posix = (options: Nixl.NixlOptions = {}) => Nixl.make({ library, confirm: "none", ...options })

  live(
    "moves the bytes there and back, of one piece and of many",
    Effect.gen(function*() {
      const nixl = yield* posix()
      assert.deepStrictEqual(nixl.plugins, ["GDS", "GDS_MT", "POSIX"])
      assert.deepStrictEqual(nixl.backends, ["POSIX"])
      const disk = yield* storage
      const { registration: file, unlink } = yield* nixl.registerThenUnlink(disk)
      assert.strictEqual(unlink._tag, "Right")
      assert.isFalse(existsSync(disk.path))
      const from = yield* filled(65_536, 3)
      const into = yield* AlignedBuffer.make(65_536)
      const [source, target] = yield* Effect.all([nixl.registerMemory(from), nixl.registerMemory(into)])
      yield* nixl.write(file, 131_072, source)
      yield* nixl.read(file, 131_072, target)
      assert.deepStrictEqual(into.bytes, from.bytes)
      // Seen from the other side, too.
      assert.deepStrictEqual(yield* disk.readBytes(131_072, 65_536), from.bytes)

      // In another order, and of parts.
      yield* nixl.transfer("write", file, [
        { offset: 8192, memory: source, start: 4096, length: 4096 },
        { offset: 0, memory: source, start: 16_384, length: 8192 },
        { offset: 1_044_480, memory: source, start: 61_440 }
      ])
      into.bytes.fill(0)
      yield* nixl.transfer("read", file, [
        { offset: 1_044_480, memory: target, start: 0, length: 4096 },
        { offset: 0, memory: target, start: 4096, length: 12_288 }
      ])
      assert.deepStrictEqual(into.bytes.subarray(0, 4096), from.bytes.subarray(61_440))
      assert.deepStrictEqual(into.bytes.subarray(4096, 12_288), from.bytes.subarray(16_384, 24_576))
      assert.deepStrictEqual(into.bytes.subarray(12_288, 16_384), from.bytes.subarray(4096, 8192))
      assert.isTrue(into.bytes.subarray(16_384).every((byte) => byte === 0))
      yield* nixl.transfer("read", file, [])
      assert.deepStrictEqual(stub.alive(), { ...nothing, agents: 1, backends: 1, files: 1, memory: 2 })
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  live(
    "moves device memory through a backend that takes it",
    Effect.gen(function*() {
      const cuda = koffi.load(paths.cuda)
      const out = new BigUint64Array(1)
      const call = (name: string, types: Array<string>, ...args: Array<unknown>) => {
        const called: (...args: Array<unknown>) => number = cuda.func(name, "int", types)
        assert.strictEqual(called(...args), 0, name)
      }
      call("cuInit", ["uint32_t"], 0)
      call("cuDevicePrimaryCtxRetain", ["void *", "int"], out, 0)
      call("cuCtxSetCurrent", ["uint64_t"], out[0])
      call("cuMemAlloc_v2", ["void *", "size_t"], out, 65_536)
      const memory = { pointer: out[0] ?? 0n, byteLength: 65_536, device: 0 }
      yield* Effect.addFinalizer(() => Effect.sync(() => call("cuMemFree_v2", ["uint64_t"], memory.pointer)))
      const parameters = { thread_count: "2" }
      const nixl = yield* posix({ backends: [{ name: "GDS_MT", parameters }] })
      assert.strictEqual(stub.parameter(), "thread_count=2")
      const disk = yield* storage
      const file = yield* nixl.register(disk)
      const device = yield* nixl.registerMemory(memory)
      const host = yield* filled(65_536, 7)
      const registered = yield* nixl.registerMemory(host)
      yield* nixl.write(file, 0, registered)
      yield* nixl.read(file, 0, device)
      yield* nixl.write(file, 524_288, device, { start: 4096, length: 4096 })
      assert.deepStrictEqual(yield* disk.readBytes(524_288, 4096), host.bytes.slice(4096, 8192))

      const mixed = yield* Effect.flip(nixl.transfer("write", file, [
        { offset: 0, memory: device },
        { offset: 65_536, memory: registered }
      ]))
      assert.include(mixed.message, "memory of one kind")
      // POSIX has no device memory.
      const other = yield* Effect.flip(
        Effect.scoped(Effect.flatMap(posix(), (nixl) => nixl.registerMemory(memory)))
      )
      assert.propertyVal(other, "name", "BACKEND")
      const wrong = yield* Effect.flip(nixl.registerMemory({ ...memory, byteLength: 0.5 }))
      assert.strictEqual(wrong._tag, "InvalidOption")
    })
  )

  live(
    "is told that it is not there",
    Effect.gen(function*() {
      const absent = yield* Effect.flip(Nixl.make({ library: "/nowhere/libnixl_capi.so" }))
      assert.strictEqual(absent._tag, "NixlUnavailable")
      assert.include(absent.message, "/nowhere/libnixl_capi.so")
      const other = yield* Effect.flip(Nixl.make({ library: "libc.so.6" }))
      assert.strictEqual(other._tag, "NixlUnavailable")
      assert.include(other.message, "nixl_capi_create_agent")
      const environment = new Map([["DISK_STORAGE_NIXL_LIBRARY", "/elsewhere.so"]])
      const named = yield* Effect.flip(
        Effect.withConfigProvider(Nixl.make(), ConfigProvider.fromMap(environment))
      )
      assert.include(named.message, "/elsewhere.so")
    })
  )

  live(
    "refuses options and backends that cannot be",
    Effect.gen(function*() {
      for (
        const options of [
          { agentName: "" },
          { agentName: "a\0b" },
          { backends: [] },
          { backends: [{ name: "POSIX" }, { name: "POSIX" }] },
          { maxInFlight: 0 },
          { stallTimeout: 0 }
        ]
      ) assert.strictEqual((yield* Effect.flip(Effect.scoped(posix(options))))._tag, "InvalidOption")
      const unknown = yield* Effect.flip(Effect.scoped(posix({ backends: [{ name: "POSIX" }, { name: "TAPE" }] })))
      assert.propertyVal(unknown, "target", "TAPE")
      const both = yield* Effect.flip(Effect.scoped(posix({ backends: [{ name: "GDS" }, { name: "GDS_MT" }] })))
      assert.propertyVal(both, "call", "nixl_capi_create_backend")
      // What came before the failure is gone.
      assert.deepStrictEqual(stub.alive(), nothing)
    })
  )

  live(
    "checks ranges and alignment before any call",
    Effect.gen(function*() {
      const nixl = yield* posix()
      const disk = yield* storage
      const file = yield* nixl.register(disk)
      const memory = yield* nixl.registerMemory(yield* AlignedBuffer.make(8192))
      const tag = (effect: Effect.Effect<void, { readonly _tag: string }>) =>
        Effect.map(Effect.flip(effect), ({ _tag }) => _tag)
      assert.strictEqual(yield* tag(nixl.read(file, mebibyte - 4096, memory)), "OutOfBounds")
      assert.strictEqual(yield* tag(nixl.read(file, -4096, memory)), "OutOfBounds")
      assert.strictEqual(yield* tag(nixl.read(file, 0, memory, { start: 4096, length: 8192 })), "OutOfBounds")
      assert.strictEqual(yield* tag(nixl.read(file, 0, memory, { start: 12_288 })), "OutOfBounds")
      if (disk.alignment.offset > 1) {
        assert.strictEqual(yield* tag(nixl.read(file, 1, memory)), "Misaligned")
        assert.strictEqual(yield* tag(nixl.read(file, 0, memory, { length: 4095 })), "Misaligned")
        assert.strictEqual(yield* tag(nixl.read(file, 0, memory, { start: 1, length: 4096 })), "Misaligned")
      }
      assert.strictEqual(stub.looks(), 0)
      // Twice the same pages of one read.
      const busy = nixl.transfer("read", file, [{ offset: 0, memory }, { offset: 8192, memory }])
      assert.strictEqual(yield* tag(busy), "BufferBusy")
      yield* nixl.read(file, 0, memory)
    })
  )

  live(
    "refuses a storage that is registered already, or has no name",
    Effect.gen(function*() {
      const nixl = yield* posix()
      const disk = yield* storage
      yield* nixl.register(disk)
      assert.strictEqual((yield* Effect.flip(nixl.register(disk)))._tag, "DuplicateKey")
      assert.isTrue(yield* disk.deregister(Nixl.File))
      yield* disk.unlink
      assert.strictEqual((yield* Effect.flip(nixl.register(disk)))._tag, "StorageUnlinked")
      assert.strictEqual(stub.alive().files, 0)
    })
  )

  live(
    "leaves the storage whole when the registration fails",
    Effect.gen(function*() {
      const nixl = yield* posix()
      const disk = yield* storage
      const before = openFiles()
      stub.fail("nixl_capi_register_mem", 1, -2)
      const error = yield* Effect.flip(nixl.registerThenUnlink(disk))
      assert.propertyVal(error, "call", "nixl_capi_register_mem")
      assert.strictEqual(openFiles(), before)
      assert.isTrue(existsSync(disk.path))
      yield* disk.writeBytes(0, new Uint8Array(4096))
      yield* nixl.registerThenUnlink(disk)
      assert.isFalse(existsSync(disk.path))
    })
  )

  live(
    "ends with its registrations: a handle that is over makes no call",
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const nixl = yield* Scope.extend(posix(), scope)
      const disk = yield* storage
      const file = yield* nixl.register(disk)
      const buffer = yield* AlignedBuffer.make(4096)
      const ended = yield* Effect.scoped(nixl.registerMemory(buffer))
      const memory = yield* nixl.registerMemory(buffer)
      assert.strictEqual((yield* Effect.flip(nixl.read(file, 0, ended)))._tag, "NixlClosed")
      yield* nixl.read(file, 0, memory)
      yield* disk.deregister(Nixl.File)
      assert.strictEqual((yield* Effect.flip(nixl.read(file, 0, memory)))._tag, "NixlClosed")
      const again = yield* nixl.register(disk)
      yield* nixl.read(again, 0, memory)
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(stub.alive(), nothing)
      assert.strictEqual((yield* Effect.flip(nixl.read(again, 0, memory)))._tag, "NixlClosed")
      assert.strictEqual((yield* Effect.flip(nixl.registerMemory(buffer)))._tag, "NixlClosed")
      yield* disk.close
      assert.strictEqual((yield* Effect.flip(nixl.read(again, 0, memory)))._tag, "NixlClosed")
      assert.strictEqual(stub.refusals(), 0)
      assert.strictEqual(openFiles(), 0)
    })
  )

  live(
    "never meets another file under a number that was used before",
    Effect.gen(function*() {
      const nixl = yield* posix()
      const numbers = new Set<number>()
      const memory = yield* nixl.registerMemory(yield* filled(4096, 1))
      for (let round = 0; round < 4; round++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const disk = yield* storage
          const { registration: file } = yield* nixl.registerThenUnlink(disk)
          const fd = yield* disk.withFd(Effect.succeed)
          numbers.add(stub.registeredFd())
          assert.notStrictEqual(stub.registeredFd(), fd)
          yield* nixl.write(file, 0, memory)
          assert.deepStrictEqual(yield* disk.readBytes(0, 4096), (yield* filled(4096, 1)).bytes)
        }))
      }
      // The number was reused, or nothing was tried here.
      assert.isBelow(numbers.size, 4)
      assert.strictEqual(stub.refusals(), 0)
      assert.strictEqual(openFiles(), 0)
    })
  )

  live(
    "tells of a deregistration that fails, and keeps the number from others until the agent is gone",
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const nixl = yield* Scope.extend(posix(), scope)
      const disk = yield* storage
      yield* nixl.registerThenUnlink(disk)
      stub.fail("nixl_capi_deregister_mem", 1, -3)
      const error = yield* Effect.flip(disk.close)
      assert.match(error.message, /registration .*nixl_capi_deregister_mem .*INVALID_STATE/s)
      assert.strictEqual(openFiles(), 1)
      assert.strictEqual(stub.alive().files, 1)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(openFiles(), 0)
      assert.deepStrictEqual(stub.alive(), nothing)
    })
  )

  live(
    "answers arguments that no compiler has checked with typed failures, and works on",
    Effect.gen(function*() {
      /** A function as JavaScript sees it. */
      const untyped = (f: Function, ...args: ReadonlyArray<unknown>): Effect.Effect<unknown, unknown, Scope.Scope> =>
        Reflect.apply(f, undefined, args)
      const refused = (effect: Effect.Effect<unknown, unknown, Scope.Scope>, what: string) =>
        Effect.map(Effect.exit(Effect.scoped(effect)), (exit) => {
          const failure = Exit.isFailure(exit) ? Cause.failureOption(exit.cause) : Option.none()
          assert.isTrue(Option.isSome(failure) && isDiskStorageError(failure.value), `${what}: ${String(exit)}`)
        })
      const options = [
        null,
        { stallTimeout: "abc" },
        { stallTimeout: null },
        { backends: 5 },
        { backends: [5] },
        { backends: [null] },
        { backends: [{ name: "POSIX", parameters: { use_uring: 5 } }] },
        { backends: [{ name: "POSIX", parameters: 5 }] },
        { agentName: 5 },
        { library: 5 },
        { library, confirm: {} }
      ]
      for (const given of options) yield* refused(untyped(Nixl.make, given), `make(${JSON.stringify(given)})`)
      for (const given of [null, 5, { library: 5 }]) yield* refused(untyped(DeviceMemory.make, given), "DeviceMemory")
      const nixl = yield* posix()
      const file = yield* nixl.register(yield* storage)
      const memory = yield* nixl.registerMemory(yield* AlignedBuffer.make(4096))
      const transfers = [
        ["read", 5, []],
        ["read", file, 5],
        ["read", file, [null]],
        ["read", file, [{ offset: 0 }]],
        ["delete", file, [{ offset: 0, memory }]]
      ]
      for (const given of transfers) yield* refused(untyped(nixl.transfer, ...given), `transfer ${String(given)}`)
      for (
        const given of [["0", memory], [undefined, memory], [0, 5], [0, memory, { start: "0" }], [0, memory, {
          length: "1"
        }]]
      ) {
        yield* refused(untyped(nixl.read, file, ...given), `read ${String(given)}`)
        yield* refused(untyped(nixl.write, file, ...given), `write ${String(given)}`)
      }
      for (const given of [5, null, { bytes: new Uint8Array(8) }, { pointer: "x" }, { pointer: 1n }]) {
        yield* refused(untyped(nixl.registerMemory, given), "registerMemory")
      }
      yield* nixl.write(file, 0, memory)
      yield* nixl.read(file, 0, memory)
    })
  )

  live(
    "reports transfers of device memory that fail, end with an error, or are short; and can be used on",
    Effect.gen(function*() {
      yield* Effect.addFinalizer(() => Effect.sync(() => cudaControl(paths.cuda).reset()))
      const devices = yield* DeviceMemory.make({ library: paths.cuda })
      const nixl = yield* posix({ backends: [{ name: "GDS" }] })
      assert.strictEqual(nixl.queue, undefined)
      const file = yield* nixl.register(yield* storage)
      const buffer = yield* AlignedBuffer.make(8192)
      const memory = yield* nixl.registerMemory(yield* devices.allocate(8192))
      yield* nixl.write(file, 0, memory)
      for (const error of [-1, -2, -3, -4, -5, -6, -77]) {
        stub.transfer({ error })
        const failure = yield* Effect.flip(nixl.read(file, 0, memory))
        assert.propertyVal(failure, "status", error)
        assert.propertyVal(failure, "call", "nixl_capi_get_xfer_status")
        stub.fail("nixl_capi_post_xfer_req", 1, error)
        assert.propertyVal(yield* Effect.flip(nixl.read(file, 0, memory)), "call", "nixl_capi_post_xfer_req")
      }
      for (const operation of ["read", "write"] as const) {
        stub.transfer({ short: true })
        assert.propertyVal(yield* Effect.flip(nixl[operation](file, 0, memory)), "name", "BACKEND")
      }
      // The call for the status fails, and the transfer goes on: it is waited for, and has failed.
      stub.transfer({ late: 100 })
      stub.fail("nixl_capi_get_xfer_status", 2, -4)
      assert.propertyVal(yield* Effect.flip(nixl.read(file, 0, memory)), "name", "EXCEPTION")
      yield* nixl.read(file, 0, yield* nixl.registerMemory(buffer))
      assert.strictEqual(stub.alive().requests, 0)
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  const queues = ["io_uring", "posix_aio", "aio"] as const
  const parameterOf = { io_uring: "use_uring", posix_aio: "use_posix_aio", aio: "use_aio" } as const
  const withQueue = (queue: Nixl.Queue, options: Nixl.NixlOptions = {}) =>
    Nixl.make({ library, ...options, backends: [{ name: "POSIX", parameters: { [parameterOf[queue]]: "true" } }] })
  const tagOf = <A>(effect: Effect.Effect<A, { readonly _tag: string }>) =>
    Effect.map(Effect.flip(effect), ({ _tag }) => _tag)

  for (const queue of ["io_uring", "posix_aio"] as const) {
    live(
      `${queue}: refuses transfers after a failed one, and keeps its memory until its other pieces have ended with the agent`,
      Effect.gen(function*() {
        const buffer = yield* filled(65_536, 1)
        const scope = yield* Scope.make()
        const nixl = yield* Scope.extend(withQueue(queue), scope)
        const disk = yield* storage
        const file = yield* nixl.register(disk)
        const memory = yield* nixl.registerMemory(buffer)
        const other = yield* nixl.registerMemory(yield* filled(4096, 2))
        yield* disk.writeBytes(0, new Uint8Array(65_536).fill(0xaa))
        // The second piece fails; the first and the third are on their way for longer.
        stub.transfer({ error: -5, piece: 1, late: 1000 })
        const pieces = [0, 1, 2].map((index) => ({ offset: index * 4096, memory, start: index * 4096, length: 4096 }))
        const failure = yield* Effect.flip(nixl.transfer("read", file, pieces))
        assert.propertyVal(failure, "_tag", "NixlFailed")
        const refused = yield* Effect.flip(nixl.write(file, 0, other))
        assert.propertyVal(refused, "_tag", "NixlAgentFailed")
        assert.include(refused.message, "nixl_capi_get_xfer_status failed for a read of")
        assert.strictEqual(yield* tagOf(nixl.read(file, 0, memory)), "NixlAgentFailed")
        // Nobody gets the memory meanwhile, whichever way.
        assert.strictEqual(yield* tagOf(disk.read(0, buffer)), "BufferBusy")
        assert.strictEqual(stub.alive().requests, 1)
        yield* Scope.close(scope, Exit.void)
        // The pieces have ended by then, and were moved: the memory is free, and nothing is left.
        assert.isTrue(buffer.bytes.subarray(0, 4096).every((byte) => byte === 0xaa))
        assert.isTrue(buffer.bytes.subarray(8192, 12_288).every((byte) => byte === 0xaa))
        yield* disk.read(0, buffer)
        assert.deepStrictEqual(stub.alive(), nothing)
        assert.strictEqual(stub.refusals(), 0)
      })
    )

    live(
      `${queue}: a registration that ends waits for pieces of a failed transfer, whose descriptor keeps its number`,
      Effect.gen(function*() {
        const nixl = yield* withQueue(queue)
        const buffer = yield* filled(8192, 1)
        const memory = yield* nixl.registerMemory(buffer)
        yield* Effect.scoped(Effect.gen(function*() {
          const disk = yield* storage
          const { registration: file } = yield* nixl.registerThenUnlink(disk)
          stub.transfer({ error: -5, late: 300 })
          const pieces = [{ offset: 0, memory, length: 4096 }, { offset: 4096, memory, start: 4096 }]
          assert.strictEqual(yield* tagOf(nixl.transfer("write", file, pieces)), "NixlFailed")
        }))
        assert.strictEqual(stub.refusals(), 0)
        assert.deepStrictEqual(stub.alive(), { ...nothing, agents: 1, backends: 1, requests: 1, memory: 1 })
        assert.strictEqual(openFiles(), 0)
      })
    )
  }

  live(
    "fails what else is in flight when a transfer fails with io_uring, and keeps its memory, too",
    Effect.gen(function*() {
      const buffers = yield* Effect.forEach([0, 1, 2], (seed) => filled(4096, seed))
      yield* Effect.scoped(Effect.gen(function*() {
        const nixl = yield* withQueue("io_uring", { maxInFlight: 3 })
        const disk = yield* storage
        const file = yield* nixl.register(disk)
        const memories = yield* Effect.forEach(buffers, nixl.registerMemory)
        const fibers = yield* Effect.forEach(memories, (memory, index) =>
          Effect.gen(function*() {
            stub.transfer(index === 2 ? { error: -5 } : { late: 400 })
            const before = stub.looks()
            const fiber = yield* Effect.fork(nixl.write(file, index * 4096, memory))
            // It was posted once it was looked at.
            while (stub.alive().requests <= index || stub.looks() === before) yield* Effect.sleep(1)
            return fiber
          }))
        const tags = yield* Effect.forEach(fibers, (fiber) => tagOf(Fiber.join(fiber)))
        for (const tag of tags) assert.include(["NixlFailed", "NixlAgentFailed"], tag)
        for (const buffer of buffers) assert.strictEqual(yield* tagOf(disk.read(0, buffer)), "BufferBusy")
      }))
      assert.deepStrictEqual(stub.alive(), nothing)
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  live(
    "leaves a failed agent to the process when its pieces do not end within the stall timeout",
    Effect.gen(function*() {
      const buffer = yield* filled(8192, 1)
      yield* Effect.scoped(Effect.gen(function*() {
        const nixl = yield* withQueue("posix_aio", { stallTimeout: 60 })
        const file = yield* nixl.register(yield* storage)
        const memory = yield* nixl.registerMemory(buffer)
        stub.transfer({ error: -5, never: true })
        const pieces = [{ offset: 0, memory, length: 4096 }, { offset: 4096, memory, start: 4096 }]
        assert.strictEqual(yield* tagOf(nixl.transfer("write", file, pieces)), "NixlFailed")
      }))
      assert.deepStrictEqual(stub.alive(), { ...nothing, agents: 1, backends: 1, requests: 1, files: 1, memory: 1 })
      const disk = yield* storage
      assert.strictEqual(yield* tagOf(disk.read(0, buffer)), "BufferBusy")
      assert.strictEqual(stub.refusals(), 0)
      // For the tests after this one: the descriptor would be left to the process.
      const fd = stub.registeredFd()
      stub.end(0)
      closeSync(fd)
    })
  )

  for (const queue of ["io_uring", "posix_aio"] as const) {
    live(
      `${queue}: a lone piece whose status cannot be had is waited for before its memory is free`,
      Effect.gen(function*() {
        const buffer = yield* filled(4096, 1)
        const disk = yield* storage
        const content = yield* filled(4096, 9)
        yield* disk.write(0, content)
        yield* Effect.scoped(Effect.gen(function*() {
          const nixl = yield* withQueue(queue)
          const file = yield* nixl.register(disk)
          const memory = yield* nixl.registerMemory(buffer)
          stub.transfer({ late: 500 })
          for (let nth = 1; nth <= 40; nth++) stub.fail("nixl_capi_get_xfer_status", nth, -4)
          assert.strictEqual(yield* tagOf(nixl.read(file, 0, memory)), "NixlFailed")
        }))
        // With the agent gone the bytes have arrived, or never will.
        const at = Uint8Array.from(buffer.bytes)
        yield* Effect.sleep(1000)
        assert.deepStrictEqual(Uint8Array.from(buffer.bytes), at)
        assert.deepStrictEqual(at, Uint8Array.from(content.bytes))
      })
    )
  }

  live(
    "frees memory of a lone piece that failed with the agent, at once",
    Effect.gen(function*() {
      for (const queue of ["io_uring", "posix_aio"] as const) {
        const buffer = yield* filled(4096, 1)
        yield* Effect.scoped(Effect.gen(function*() {
          const nixl = yield* withQueue(queue)
          const disk = yield* storage
          const file = yield* nixl.register(disk)
          const memory = yield* nixl.registerMemory(buffer)
          stub.transfer({ error: -5 })
          assert.strictEqual(yield* tagOf(nixl.write(file, 0, memory)), "NixlFailed")
          assert.isTrue(yield* disk.deregister(Nixl.File))
        }))
        assert.deepStrictEqual(stub.alive(), nothing)
        assert.strictEqual(stub.refusals(), 0)
      }
    })
  )

  live(
    "takes io_uring, POSIX AIO without it, and AIO if that is named",
    Effect.gen(function*() {
      const queueOf = (make: ReturnType<typeof posix>) =>
        Effect.scoped(Effect.map(make, ({ confirm, queue }) => [queue, confirm]))
      assert.deepStrictEqual(yield* queueOf(Nixl.make({ library })), ["io_uring", "ends"])
      for (const how of ["refused", "passed over"] as const) {
        stub.uring(how)
        assert.deepStrictEqual(yield* queueOf(Nixl.make({ library })), ["posix_aio", "none"])
        assert.propertyVal(yield* Effect.flip(queueOf(withQueue("io_uring"))), "call", "nixl_capi_create_backend")
        assert.deepStrictEqual(stub.alive(), nothing)
      }
      stub.uring("available")
      assert.deepStrictEqual(yield* queueOf(withQueue("aio")), ["aio", "read-back"])
      assert.deepStrictEqual(yield* queueOf(withQueue("aio", { confirm: "none" })), ["aio", "none"])
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  for (const queue of queues) {
    live(
      `${queue}: a transfer that is short, or failed unheard, is not confirmed`,
      Effect.gen(function*() {
        for (const operation of ["read", "write"] as const) {
          for (const fate of [{ short: true }, { error: -5, piece: 1 }]) {
            const nixl = yield* withQueue(queue, { confirm: "read-back" })
            const disk = yield* storage
            const file = yield* nixl.register(disk)
            const buffer = yield* filled(16_384, 1)
            const memory = yield* nixl.registerMemory(buffer)
            yield* disk.writeBytes(0, new Uint8Array(16_384).fill(0xaa))
            const pieces = [{ offset: 0, memory, length: 8192 }, { offset: 8192, memory, start: 8192 }]
            stub.transfer(fate)
            const heard = queue === "posix_aio" || (queue === "io_uring" && fate.error !== undefined)
            assert.strictEqual(
              yield* tagOf(nixl.transfer(operation, file, pieces)),
              heard ? "NixlFailed" : "NixlUnconfirmed",
              `${operation} ${JSON.stringify(fate)}`
            )
            if (heard) continue
            // The agent can be used on.
            yield* nixl.transfer(operation, file, pieces)
            assert.deepStrictEqual(yield* disk.readBytes(0, 16_384), buffer.bytes)
          }
        }
        assert.strictEqual(stub.refusals(), 0)
      })
    )
  }

  live(
    "confirms the ends of what was written, and the end of the file for what was read",
    Effect.gen(function*() {
      const nixl = yield* withQueue("io_uring")
      const disk = yield* storage
      const file = yield* nixl.register(disk)
      const memory = yield* nixl.registerMemory(yield* filled(16_384, 1))
      stub.transfer({ short: true })
      const error = yield* Effect.flip(nixl.write(file, 8192, memory))
      assert.include(error.message, "a write of 16384 bytes at offset 8192")
      yield* nixl.write(file, 8192, memory)
      // Pieces that share bytes of the file leave either's there.
      const shared = [{ offset: 0, memory, length: 8192 }, { offset: 4096, memory, start: 4096, length: 8192 }]
      yield* nixl.transfer("write", file, shared)
      truncateSync(disk.path, mebibyte - 4096)
      assert.strictEqual(yield* tagOf(nixl.read(file, mebibyte - 16_384, memory)), "NixlUnconfirmed")
      yield* nixl.read(file, mebibyte - 20_480, memory)
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  live(
    "splits pieces that Linux would cut",
    Effect.gen(function*() {
      // 2 GiB and a page; nothing of it is touched.
      const size = 2 * 1024 ** 3 + 4096
      const nixl = yield* withQueue("posix_aio")
      const disk = yield* DiskStorage.make({ size, directory: tmpdir(), directIo: "preferred" })
      const file = yield* nixl.register(disk)
      const memory = yield* nixl.registerMemory(yield* AlignedBuffer.make(size))
      stub.dry(true)
      yield* nixl.write(file, 0, memory)
      yield* nixl.read(file, 0, memory)
      assert.strictEqual(stub.longest(), 1024 ** 3)
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  live(
    "refuses memory that overlaps registered memory, and takes the same a second time",
    Effect.gen(function*() {
      const nixl = yield* posix()
      const file = yield* nixl.register(yield* storage)
      const whole = yield* filled(65_536, 1)
      const within = yield* AlignedBuffer.slice(whole, 8192, 12_288)
      const memory = yield* nixl.registerMemory(whole)
      const error = yield* Effect.flip(nixl.registerMemory(within))
      assert.include(error.message, "4096 bytes of host memory overlap 65536 bytes of host memory")
      // Behind the inner one NIXL would not find the range.
      yield* nixl.write(file, 16_384, memory, { start: 16_384, length: 4096 })
      yield* Effect.scoped(Effect.flatMap(nixl.registerMemory(whole), (same) => nixl.write(file, 0, same)))
      yield* nixl.write(file, 0, memory)
      yield* Effect.scoped(Effect.gen(function*() {
        const part = yield* AlignedBuffer.make(8192)
        yield* nixl.registerMemory(yield* AlignedBuffer.slice(part, 0, 4096))
        yield* nixl.registerMemory(yield* AlignedBuffer.slice(part, 4096, 8192))
        assert.strictEqual(yield* tagOf(Effect.scoped(nixl.registerMemory(part))), "NixlOverlap")
      }))
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  live(
    "asks again at once where the answer of POSIX is one look late",
    Effect.gen(function*() {
      // The second delay never ends: all has to be moved and reported at the first.
      const nixl = yield* withQueue("posix_aio", { completion: Schedule.spaced("1 hour"), maxInFlight: 1 })
      const file = yield* nixl.register(yield* storage)
      const memory = yield* nixl.registerMemory(yield* filled(4096, 1))
      const pieces = Array.from({ length: 1000 }, (_, index) => ({ offset: (index % 256) * 4096, memory }))
      yield* nixl.transfer("write", file, pieces)
      yield* nixl.write(file, 0, memory)
    })
  )

  live(
    "bounds pieces in flight over all requests",
    Effect.gen(function*() {
      const nixl = yield* withQueue("posix_aio", { maxInFlight: 8 })
      const file = yield* nixl.register(yield* storage)
      const memory = yield* nixl.registerMemory(yield* filled(4096, 1))
      const pieces = Array.from({ length: 600 }, (_, index) => ({ offset: (index % 256) * 4096, memory }))
      yield* Effect.forEach([0, 1, 2, 3], () => nixl.transfer("write", file, pieces), { concurrency: "unbounded" })
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  live(
    "bounds the pieces of a request by the queue of POSIX",
    Effect.gen(function*() {
      const moved = (nixl: Nixl.Nixl, count: number) =>
        Effect.gen(function*() {
          const file = yield* nixl.register(yield* storage)
          const memory = yield* nixl.registerMemory(yield* filled(4096, 1))
          const pieces = Array.from({ length: count }, (_, index) => ({ offset: (index % 256) * 4096, memory }))
          yield* nixl.transfer("write", file, pieces)
        })
      yield* Effect.scoped(Effect.flatMap(posix(), (nixl) => moved(nixl, 1024)))
      const refused = yield* Effect.flip(Effect.scoped(Effect.flatMap(posix(), (nixl) => moved(nixl, 1025))))
      assert.include(refused.message, "at most 1024")
      const backends = [{ name: "POSIX", parameters: { ios_pool_size: "64" } }]
      const fewer = yield* Effect.flip(Effect.scoped(Effect.flatMap(posix({ backends }), (nixl) => moved(nixl, 65))))
      assert.include(fewer.message, "at most 64")
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  live(
    "asks seldom for the status of what is late, by its own schedule or another, and never without a pause",
    Effect.gen(function*() {
      const file = (nixl: Nixl.Nixl) => Effect.flatMap(storage, nixl.register)
      const looksOf = (options: Nixl.NixlOptions) =>
        Effect.scoped(Effect.gen(function*() {
          const nixl = yield* posix(options)
          const registered = yield* file(nixl)
          const memory = yield* nixl.registerMemory(yield* AlignedBuffer.make(4096))
          const before = stub.looks()
          stub.transfer({ late: 400 })
          yield* nixl.read(registered, 0, memory)
          return stub.looks() - before
        }))
      // Seven delays from 1 ms to 16 ms, then 16 ms each; two looks each time, and six more at once at first.
      const own = yield* looksOf({})
      assert.isAbove(own, 3)
      assert.isBelow(own, 78)
      assert.isBelow(yield* looksOf({ completion: Schedule.spaced(150) }), 18)
      // Without any delay, and with an end.
      assert.isBelow(yield* looksOf({ completion: Schedule.forever }), 810)
      assert.isBelow(yield* looksOf({ completion: Schedule.recurs(2) }), 78)
    })
  )

  live(
    "is waited for by interruption, by the end of memory, of a storage and of the service",
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const memoryScope = yield* Scope.make()
      const nixl = yield* Scope.extend(posix({ maxInFlight: 8 }), scope)
      const disk = yield* storage
      const file = yield* nixl.register(disk)
      const buffer = yield* filled(4096, 9)
      const memory = yield* Scope.extend(nixl.registerMemory(buffer), memoryScope)
      const begin = Effect.gen(function*() {
        stub.transfer({ late: 200 })
        const fiber = yield* Effect.fork(nixl.write(file, 0, memory))
        while (stub.alive().requests === 0) yield* Effect.sleep(1)
        yield* Effect.sleep(20)
        return fiber
      })
      const first = yield* begin
      // Its bytes are in use meanwhile.
      assert.strictEqual((yield* Effect.flip(disk.read(0, buffer)))._tag, "BufferBusy")
      yield* Fiber.interrupt(first)
      assert.strictEqual(stub.alive().requests, 0)
      assert.deepStrictEqual(yield* disk.readBytes(0, 4096), buffer.bytes)

      const second = yield* begin
      yield* Scope.close(memoryScope, Exit.void)
      assert.isNotNull(second.unsafePoll())
      assert.strictEqual(stub.alive().memory, 0)

      const other = yield* nixl.registerMemory(buffer)
      stub.transfer({ late: 200 })
      const third = yield* Effect.fork(nixl.write(file, 0, other))
      while (stub.alive().requests === 0) yield* Effect.sleep(1)
      const closing = yield* Effect.fork(disk.close)
      yield* Effect.sleep(20)
      assert.isNull(closing.unsafePoll())
      assert.strictEqual(stub.alive().files, 1)
      yield* Fiber.join(closing)
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(third)))
      assert.strictEqual((yield* Effect.flip(nixl.write(file, 0, other)))._tag, "StorageClosed")

      const next = yield* nixl.register(yield* storage)
      stub.transfer({ late: 200 })
      const last = yield* Effect.fork(nixl.write(next, 0, other))
      while (stub.alive().requests === 0) yield* Effect.sleep(1)
      yield* Scope.close(scope, Exit.void)
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(last)))
      assert.deepStrictEqual(stub.alive(), nothing)
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  live(
    "lets others wait above its bound, and forgets those that are interrupted there",
    Effect.gen(function*() {
      const nixl = yield* posix()
      const file = yield* nixl.register(yield* storage)
      const memories = yield* Effect.forEach(
        [0, 1, 2],
        (seed) => Effect.flatMap(filled(4096, seed), nixl.registerMemory)
      )
      stub.transfer({ late: 150 })
      const [first, second, third] = yield* Effect.forEach(
        memories,
        (memory, index) => Effect.fork(nixl.write(file, index * 4096, memory))
      )
      yield* Effect.sleep(50)
      assert.strictEqual(stub.alive().requests, 1)
      if (second !== undefined) yield* Fiber.interrupt(second)
      assert.isNull(first?.unsafePoll())
      if (third !== undefined) yield* Fiber.join(third)
    })
  )

  live(
    "gives up what never ends after the stall timeout, and keeps what it uses until it does",
    Effect.gen(function*() {
      const nixl = yield* posix({ stallTimeout: 60, maxInFlight: 4 })
      const disk = yield* storage
      const { registration: file } = yield* nixl.registerThenUnlink(disk)
      const buffer = yield* AlignedBuffer.make(4096)
      const scope = yield* Scope.make()
      const memory = yield* Scope.extend(nixl.registerMemory(buffer), scope)
      stub.transfer({ never: true })
      const error = yield* Effect.flip(nixl.read(file, 8192, memory))
      assert.propertyVal(error, "_tag", "IoStalled")
      assert.propertyVal(error, "timeoutMillis", 60)
      assert.strictEqual((yield* Effect.flip(nixl.read(file, 0, memory)))._tag, "BufferBusy")
      // Others go on, and so does the storage.
      yield* nixl.write(file, 0, yield* nixl.registerMemory(yield* AlignedBuffer.make(4096)))
      yield* disk.sync
      // Nothing that it uses is taken from under it.
      yield* Scope.close(scope, Exit.void)
      assert.match((yield* Effect.flip(disk.close)).message, /registration .*had no answer within 60 ms/s)
      assert.deepStrictEqual(stub.alive(), { ...nothing, agents: 1, backends: 1, requests: 1, files: 1, memory: 2 })
      assert.strictEqual(openFiles(), 1)
      stub.end(0)
      yield* Effect.sleep(200)
      assert.deepStrictEqual(stub.alive(), { ...nothing, agents: 1, backends: 1, memory: 1 })
      assert.strictEqual(openFiles(), 0)
      assert.strictEqual(stub.refusals(), 0)
    })
  )

  live(
    "deregisters device memory that ends first, and leaves to the process what a transfer may still use",
    Effect.gen(function*() {
      const cuda = cudaControl(paths.cuda)
      const errors: Array<unknown> = []
      // Finalizers log to those who were there when they were added.
      const logger = Logger.make(({ logLevel, message }) => {
        if (logLevel._tag === "Error") errors.push(message)
      })
      yield* Effect.addFinalizer(() => Effect.sync(() => cuda.reset()))
      const devices = yield* DeviceMemory.make({ library: paths.cuda })
      const nixl = yield* posix({ backends: [{ name: "GDS" }], stallTimeout: 300 })
      const file = yield* nixl.register(yield* storage)
      yield* Effect.gen(function*() {
        const scope = yield* Scope.make()
        const buffer = yield* Scope.extend(devices.allocate(65_536), scope)
        yield* Effect.scoped(nixl.registerMemory(buffer))
        const first = yield* nixl.registerMemory(yield* DeviceMemory.region(buffer, 0, 32_768))
        const second = yield* nixl.registerMemory(yield* DeviceMemory.region(buffer, 32_768))
        yield* nixl.write(file, 0, first)
        stub.transfer({ late: 100 })
        const writing = yield* Effect.fork(nixl.write(file, 0, second))
        while (stub.alive().requests === 0) yield* Effect.sleep(1)
        yield* Scope.close(scope, Exit.void)
        assert.isTrue(Exit.isSuccess(yield* Fiber.await(writing)))
        assert.strictEqual(stub.alive().memory, 0)
        assert.strictEqual(cuda.alive().allocations, 0)
        assert.strictEqual((yield* Effect.flip(nixl.read(file, 0, second)))._tag, "NixlClosed")
        assert.strictEqual((yield* Effect.flip(nixl.registerMemory(buffer)))._tag, "DeviceMemoryFreed")
      }).pipe(Effect.provide(Logger.add(logger)))
      assert.isEmpty(errors)
      yield* Effect.gen(function*() {
        const scope = yield* Scope.make()
        const memory = yield* nixl.registerMemory(yield* Scope.extend(devices.allocate(4096), scope))
        stub.transfer({ never: true })
        assert.strictEqual((yield* Effect.flip(nixl.read(file, 0, memory)))._tag, "IoStalled")
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual(cuda.alive().allocations, 1)
        assert.include(String(errors), "left to the process")
        stub.end(0)
        while (stub.alive().requests > 0) yield* Effect.sleep(1)
      }).pipe(Effect.provide(Logger.add(logger)))
    })
  )

  it("is strict itself", () => {
    const native = koffi.load(paths.nixl)
    const out = new BigUint64Array(1)
    const call = (name: string, types: Array<string>, ...args: Array<unknown>) => {
      const called: (...args: Array<unknown>) => number = native.func(`nixl_capi_${name}`, "int", types)
      return called(...args)
    }
    const made = (name: string, types: Array<string>, ...args: Array<unknown>) => {
      assert.strictEqual(call(name, [...types, "void *"], ...args, out), 0, name)
      return out[0]
    }
    const handles = (count: number) => Array.from({ length: count }, () => "uint64_t")
    const agent = made("create_agent", ["str"], "a")
    const parameters = made("create_params", [])
    const backend = made("create_backend", ["uint64_t", "str", "uint64_t"], agent, "POSIX", parameters)
    const list = (kind: "reg" | "xfer", memory: number, address: number | bigint, length: number, device: number) => {
      const list = made(`create_${kind}_dlist`, ["int"], memory)
      const types = kind === "reg" ? handles(6) : handles(4)
      const args = kind === "reg" ? [list, address, length, device, 0, 0] : [list, address, length, device]
      assert.strictEqual(call(`${kind}_dlist_add_desc`, types, ...args), 0)
      return list
    }
    const register = (what: unknown) => call("register_mem", handles(3), agent, what, 0)
    const deregister = (what: unknown) => call("deregister_mem", handles(3), agent, what, 0)
    // Held until the end: its address alone keeps nothing.
    const bytes = new Uint8Array(8192)
    onTestFinished(() => assert.lengthOf(bytes, 8192))
    const memory = koffi.address(bytes)
    const host = list("reg", 0, memory, 8192, 0)

    const path = join(tmpdir(), `eds-nixl-${process.pid}`)
    onTestFinished(() => rmSync(path, { force: true }))
    const fd = openSync(path, "w+")
    const file = list("reg", 4, 0, 8192, fd)
    assert.strictEqual(register(file), 0)
    const local = list("xfer", 0, memory, 4096, 0)
    const remote = list("xfer", 4, 0, 4096, fd)
    const request = (operation: number, local: unknown, remote: unknown, name = "a") =>
      call(
        "create_xfer_req",
        ["uint64_t", "int", "uint64_t", "uint64_t", "str", "void *", "uint64_t"],
        agent,
        operation,
        local,
        remote,
        name,
        out,
        0
      )
    assert.strictEqual(request(1, local, remote), -2, "memory that is not registered")
    assert.strictEqual(register(host), 0)
    assert.strictEqual(request(1, local, remote, "b"), -2, "another agent")
    assert.strictEqual(request(1, remote, local), -2, "the wrong way round")
    assert.strictEqual(request(1, local, list("xfer", 4, 0, 8192, fd)), -2, "unequal lengths")
    assert.strictEqual(request(1, local, list("xfer", 4, 8192, 4096, fd)), -2, "outside of the file")
    assert.strictEqual(request(1, local, remote), 0)
    const made1 = out[0]
    const one = handles(1)
    assert.strictEqual(call("destroy_xfer_req", one, made1), -3, "not released")
    stub.transfer({ never: true })
    assert.strictEqual(call("post_xfer_req", handles(3), agent, made1, 0), 1)
    assert.strictEqual(call("release_xfer_req", handles(2), agent, made1), -2, "in flight")
    assert.strictEqual(deregister(file), -3, "in use")
    assert.strictEqual(deregister(host), -3, "in use")
    stub.end(0)
    assert.strictEqual(call("get_xfer_status", handles(2), agent, made1), 1, "one look late")
    assert.strictEqual(call("get_xfer_status", handles(2), agent, made1), 0)
    assert.strictEqual(call("release_xfer_req", handles(2), agent, made1), 0)
    assert.strictEqual(call("destroy_xfer_req", one, made1), 0)
    assert.strictEqual(call("destroy_xfer_req", one, made1), -1, "gone")

    // The number is another file's by now.
    closeSync(fd)
    const other = openSync(`${path}-2`, "w+")
    unlinkSync(path)
    assert.strictEqual(other, fd)
    assert.strictEqual(request(1, local, remote), -2, "another file")
    assert.strictEqual(deregister(file), -2, "another file")
    unlinkSync(`${path}-2`)
    assert.strictEqual(register(list("reg", 4, 0, 4096, other)), -2, "no name")
    closeSync(other)
    assert.strictEqual(register(list("reg", 4, 0, 4096, other)), -2, "no descriptor")
    assert.strictEqual(register(list("reg", 1, memory, 4096, 0)), -2, "no backend")
    assert.strictEqual(deregister(list("reg", 0, memory, 4096, 0)), -2, "not registered")
    assert.strictEqual(call("destroy_xfer_dlist", one, local), 0)
    assert.strictEqual(call("xfer_dlist_add_desc", handles(4), local, 0, 1, 0), -1, "a list that is gone")
    assert.strictEqual(call("destroy_agent", one, agent), -3, "with a backend")
    assert.strictEqual(call("destroy_backend", one, backend), 0)
    assert.strictEqual(call("destroy_agent", one, agent), 0)
    assert.strictEqual(call("get_available_plugins", ["uint64_t", "void *"], agent, out), -1, "an agent that is gone")
  })

  const calls = [
    "create_agent",
    "destroy_agent",
    "get_available_plugins",
    "string_list_size",
    "string_list_get",
    "destroy_string_list",
    "create_params",
    "params_add",
    "destroy_params",
    "create_backend",
    "destroy_backend",
    "create_reg_dlist",
    "reg_dlist_add_desc",
    "destroy_reg_dlist",
    "register_mem",
    "deregister_mem",
    "create_xfer_dlist",
    "xfer_dlist_add_desc",
    "destroy_xfer_dlist",
    "create_xfer_req",
    "post_xfer_req",
    "get_xfer_status",
    "release_xfer_req",
    "destroy_xfer_req"
  ]

  /** A life from the agent to its end. */
  const life = Effect.scoped(Effect.gen(function*() {
    const backends = [{ name: "POSIX", parameters: { use_uring: "true" } }, { name: "GDS" }]
    const nixl = yield* posix({ backends, confirm: "ends" })
    const disk = yield* storage
    const { registration: file } = yield* nixl.registerThenUnlink(disk)
    const from = yield* filled(8192, 11)
    const into = yield* AlignedBuffer.make(8192)
    const [source, target] = yield* Effect.all([nixl.registerMemory(from), nixl.registerMemory(into)])
    yield* nixl.write(file, 0, source)
    yield* nixl.transfer("read", file, [
      { offset: 0, memory: target, length: 4096 },
      { offset: 4096, memory: target, start: 4096 }
    ])
    assert.deepStrictEqual(into.bytes, from.bytes)
  }))

  for (const name of calls) {
    live(
      `leaks nothing when ${name} fails once`,
      Effect.gen(function*() {
        for (const [nth, status] of [[1, -2], [2, -1], [3, -6]] as const) {
          stub.fail(`nixl_capi_${name}`, nth, status)
          const exit = yield* Effect.exit(life)
          // What is cleaned up is logged, and a release is tried again.
          if (nth === 1 && !/^(destroy|deregister|release)/.test(name)) assert.isTrue(Exit.isFailure(exit))
          if (Exit.isFailure(exit)) {
            assert.deepInclude(Cause.failureOption(exit.cause), { _tag: "Some" })
            assert.deepStrictEqual([...Cause.defects(exit.cause)], [])
          }
          const { agents, backends, files, lists, memory, requests } = stub.alive()
          assert.strictEqual(openFiles(), 0)
          assert.deepStrictEqual({ files, memory }, agents === 0 ? { files: 0, memory: 0 } : { files, memory })
          // What is not destroyed is all that is left; the stub keeps an agent that still has something.
          if (!name.startsWith("destroy")) {
            assert.deepStrictEqual(stub.alive(), nothing, `call ${nth}`)
            assert.strictEqual(stub.refusals(), 0, `call ${nth}`)
          } else assert.isAtMost(agents + backends + lists + requests, 2, `call ${nth}`)
          stub.reset()
        }
      })
    )
  }

  live(
    "leaks nothing wherever it is interrupted",
    Effect.gen(function*() {
      // Slow calls, so that interruptions come in each of them.
      const slow = calls.filter((name) => !/list|destroy_xfer_req/.test(name))
      for (const name of slow) stub.delay(`nixl_capi_${name}`, 0, 6)
      let finished = 0
      for (let millis = 0; millis < 250; millis += 6) {
        const fiber = yield* Effect.fork(life)
        yield* Effect.sleep(millis)
        const exit = yield* Fiber.interrupt(fiber)
        if (Exit.isSuccess(exit)) finished += 1
        assert.deepStrictEqual(stub.alive(), nothing, `after ${millis} ms`)
        assert.strictEqual(stub.refusals(), 0)
        assert.strictEqual(openFiles(), 0)
      }
      assert.isBelow(finished, 42)
    })
  )

  // The last one: it leaves a descriptor to this process.
  live(
    "leaves the agent to the process when a transfer has not ended by the end of the service",
    Effect.gen(function*() {
      const stalled = yield* Effect.exit(Effect.scoped(Effect.gen(function*() {
        const nixl = yield* posix({ stallTimeout: 40 })
        const file = yield* nixl.register(yield* storage)
        const memory = yield* nixl.registerMemory(yield* AlignedBuffer.make(4096))
        stub.transfer({ never: true })
        // Interrupted meanwhile: that is bounded, too.
        const fiber = yield* Effect.fork(nixl.read(file, 0, memory))
        while (stub.alive().requests === 0) yield* Effect.sleep(1)
        yield* Fiber.interrupt(fiber)
      })))
      assert.isTrue(Exit.isSuccess(stalled))
      assert.deepStrictEqual(stub.alive(), { ...nothing, agents: 1, backends: 1, requests: 1, files: 1, memory: 1 })
      assert.strictEqual(stub.refusals(), 0)
    })
  )
})
