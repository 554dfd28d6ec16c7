/** cuFile over its stub, which refuses what the library refuses and moves bytes between real files and the stub's device memory. */
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import koffi from "koffi"
import { closeSync, constants, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, afterEach, beforeEach, describe } from "vitest"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as CuFile from "../../src/CuFile.js"
import * as DeviceMemory from "../../src/DeviceMemory.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as DiskStorageConfig from "../../src/DiskStorageConfig.js"
import { modeOf } from "../../src/internal/cuFile.js"
import { cuFileErrors } from "../../src/internal/cuFileErrors.js"
import * as IoEngine from "../../src/IoEngine.js"
import * as LinuxSyscalls from "../../src/LinuxSyscalls.js"
import { assertBytes, pattern } from "../filesystems/real.js"
import { cudaControl, cuFileControl, describeStubs } from "./stubs.js"

const { pageSize } = AlignedBuffer
const size = 64 * pageSize

const services = Layer.merge(
  Layer.provideMerge(IoEngine.layerSyscalls, LinuxSyscalls.layer),
  Logger.remove(Logger.defaultLogger)
)

describe("the errors of cuFile", () => {
  it("have each a name, and words that begin small and end without a stop", () => {
    const numbers = Object.keys(cuFileErrors).map(Number)
    const all = Array.from({ length: 50 }, (_, index) => 5001 + index).filter((code) => code !== 5021 && code !== 5032)
    assert.deepStrictEqual(numbers, all)
    for (const { name, remedy = "Do", what } of Object.values(cuFileErrors)) {
      assert.match(name, /^CU_FILE_[A-Z_0-9]+$/)
      assert.match(what, /[^.]$/)
      assert.match(remedy, /^[`A-Z].*[^.]$/s)
    }
  })
})

describe("the mode of cuFile", () => {
  const none = { major: 0, minor: 0 }
  const some = { major: 2, minor: 20 }
  const cases = [
    ["direct", { nvidiaFs: some, support: ["nvme"], control: [] }, true, undefined],
    ["direct", { nvidiaFs: some, support: ["nvme"], control: ["allowCompatMode"] }, true, false],
    ["compat", { nvidiaFs: some, support: ["nvme"], control: [] }, true, true],
    ["unknown", { nvidiaFs: some, support: [], control: ["allowCompatMode"] }, true, undefined],
    ["unknown", { nvidiaFs: some, support: ["nvme", "nvmeP2p"], control: [] }, true, undefined],
    ["unknown", { nvidiaFs: some, support: ["nvme"], control: [] }, false, undefined],
    ["unknown", { nvidiaFs: none, support: ["nvme"], control: [] }, true, undefined],
    ["p2pdma", { nvidiaFs: none, support: ["nvmeP2p"], control: ["allowCompatMode"] }, false, undefined],
    ["compat", { nvidiaFs: none, support: [], control: ["allowCompatMode"] }, false, undefined],
    ["unknown", { nvidiaFs: none, support: [], control: [] }, false, undefined]
  ] as const
  it.each(cases)("is %s", (mode, properties, nvidiaFsShown, forceCompatMode) => {
    const found = modeOf({ properties, nvidiaFsShown, forceCompatMode })
    assert.strictEqual(found.mode, mode, found.modeReason)
  })
})

describeStubs("cuFile", ({ cuda, cufile }) => {
  const stub = cuFileControl(cufile)
  const device = cudaControl(cuda)
  const directory = mkdtempSync(join(tmpdir(), "eds-cufile-"))
  afterAll(() => rmSync(directory, { recursive: true, force: true }))
  const nothing = { opens: 0, handles: 0, buffers: 0, batches: 0, inFlight: 0, misuses: 0 }
  beforeEach(() => {
    stub.reset()
    device.reset()
  })
  afterEach(() => {
    assert.deepStrictEqual(stub.alive(), nothing, stub.misuse())
    assert.deepStrictEqual(device.alive(), { allocations: 0, pinned: 0, contexts: 0, refusals: 0 })
  })

  const memoryLayer = DeviceMemory.layer({ library: cuda, threads: 1 })
  const layer = (options: CuFile.CuFileOptions = {}) =>
    Layer.provideMerge(CuFile.layer({ library: cufile, threads: 2, ...options }), memoryLayer)
  const storageOf = (options: Partial<DiskStorage.DiskStorageOptions> = {}) =>
    DiskStorage.make({ size, directory, ...options })

  /** With a driver, and a storage that is released before it. */
  const live = <A, E>(
    name: string,
    body: Effect.Effect<
      A,
      E,
      CuFile.CuFile | DeviceMemory.DeviceMemory | Layer.Layer.Success<typeof services> | Scope.Scope
    >,
    options?: CuFile.CuFileOptions
  ) =>
    it.live(
      name,
      () => Effect.suspend(() => body.pipe(Effect.scoped, Effect.provide(layer(options)), Effect.provide(services)))
    )

  const deviceOf = (byteLength: number) =>
    Effect.flatMap(DeviceMemory.DeviceMemory, (memory) => memory.allocate(byteLength))
  const upload = (bytes: Uint8Array, region: DeviceMemory.DeviceRegion) =>
    Effect.gen(function*() {
      const memory = yield* DeviceMemory.DeviceMemory
      const whole = yield* AlignedBuffer.make(bytes.byteLength)
      whole.bytes.set(bytes)
      yield* memory.copyToDevice(yield* AlignedBuffer.slice(whole, 0, bytes.byteLength), region)
    })
  const download = (region: DeviceMemory.DeviceRegion) =>
    Effect.gen(function*() {
      const memory = yield* DeviceMemory.DeviceMemory
      const whole = yield* AlignedBuffer.make(region.byteLength)
      const part = yield* AlignedBuffer.slice(whole, 0, region.byteLength)
      yield* memory.copyToHost(region, part)
      return part.bytes
    })
  const until = (what: string, condition: () => boolean) =>
    Effect.gen(function*() {
      for (let round = 0; round < 2000; round++) {
        if (condition()) return
        yield* Effect.sleep(5)
      }
      return assert.fail(what)
    })

  const openFiles = () => readdirSync("/proc/self/fd").length
  /** `flags` in octal (`proc_pid_fdinfo(5)`). */
  const flagsOf = (fd: number) =>
    Number.parseInt(/^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1] ?? "", 8)

  it("is as strict as the library", () => {
    const library = koffi.load(cufile)
    const status = (name: string, ...args: Array<string>): (...args: ReadonlyArray<unknown>) => number => {
      const call: (...args: ReadonlyArray<unknown>) => number | bigint = library.func(name, "uint64_t", args)
      return (...args) => Number(BigInt.asIntN(32, BigInt(call(...args))))
    }
    const open = status("cuFileDriverOpen")
    const close = status("cuFileDriverClose_v2")
    const register = status("cuFileHandleRegister", "void *", "void *")
    const deregister: (handle: bigint) => void = library.func("cuFileHandleDeregister", "void", ["uint64_t"])
    const read: (...args: ReadonlyArray<number | bigint>) => number = library.func("cuFileRead", "int64_t", [
      "uint64_t",
      "uint64_t",
      "size_t",
      "int64_t",
      "int64_t"
    ])
    const handle = Buffer.alloc(8)
    const descriptor = (fd: number) => {
      const bytes = Buffer.alloc(24)
      bytes.writeInt32LE(1, 0)
      bytes.writeInt32LE(fd, 8)
      return bytes
    }
    const { O_APPEND, O_CREAT, O_DIRECT, O_NOATIME, O_NOFOLLOW, O_RDWR } = constants
    const path = join(directory, "strict")
    const taken = (flags: number, prepare: (fd: number) => void = () => {}) => {
      const fd = openSync(path, O_RDWR | O_CREAT | flags)
      prepare(fd)
      const code = register(handle, descriptor(fd))
      if (code === 0) deregister(handle.readBigUInt64LE())
      closeSync(fd)
      return code
    }
    assert.strictEqual(taken(O_DIRECT), 5001)
    assert.strictEqual(open(), 0)
    assert.strictEqual(taken(O_DIRECT), 0)
    assert.strictEqual(taken(0), 5020)
    for (const flag of [O_APPEND, O_NOATIME, O_NOFOLLOW]) assert.strictEqual(taken(O_DIRECT | flag), 5019)
    assert.strictEqual(taken(O_DIRECT, () => rmSync(path)), 5030)
    const fd = openSync(path, O_RDWR | O_CREAT | O_DIRECT)
    for (const [at, byte] of [[0, 2], [4, 1], [12, 1], [16, 1]] as const) {
      const wrong = descriptor(fd)
      wrong[at] = byte
      assert.strictEqual(register(handle, wrong), 5022)
    }
    assert.strictEqual(register(handle, descriptor(fd)), 0)
    const number = handle.readBigUInt64LE()
    assert.strictEqual(register(handle, descriptor(fd)), 5028)
    // This thread has no context.
    assert.strictEqual(read(number, 4096n, 1, 0, 0), -5015)
    assert.strictEqual(read(number + 1n, 4096n, 1, 0, 0), -5027)
    assert.strictEqual(stub.alive().misuses, 0)
    closeSync(fd)
    deregister(number)
    assert.include(stub.misuse(), "after its file was closed")
    deregister(number)
    assert.include(stub.misuse(), "not registered")
    assert.strictEqual(read(number, 4096n, 1, 0, 0), -5027)
    assert.strictEqual(close(), 0)
    assert.strictEqual(close(), 5001)
    assert.strictEqual(read(number, 4096n, 1, 0, 0), -5001)
    assert.strictEqual(stub.alive().misuses, 3)
    stub.reset()
    device.reset()
  })

  live(
    "says what the driver says",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      assert.strictEqual(cuFile.version, "1.15")
      assert.deepStrictEqual(cuFile.properties, {
        nvidiaFs: { major: 2, minor: 20 },
        support: ["nvme"],
        control: [],
        features: ["dynamicRouting", "batchIo"],
        pollThresholdKiB: 4,
        maxDirectIoKiB: 16384,
        maxDeviceCacheKiB: 131072,
        perBufferCacheKiB: 1024,
        maxPinnedKiB: 33554432,
        maxBatch: 128,
        batchTimeoutMillis: 0
      })
      // The stub names nvidia-fs, which this machine need not have.
      assert.include(["direct", "unknown"], cuFile.mode)
    })
  )

  for (const registers of [false, true]) {
    live(
      `moves bytes both ways, exactly, ${registers ? "in registered memory" : "in memory as it is"}`,
      Effect.gen(function*() {
        const cuFile = yield* CuFile.CuFile
        const storage = yield* storageOf()
        const handle = yield* cuFile.register(storage)
        const buffer = yield* deviceOf(size)
        if (registers) yield* cuFile.registerBuffer({ buffer, offset: pageSize, byteLength: size - pageSize })
        const content = new Uint8Array(size)
        const expected = pattern(size, 7)
        yield* upload(expected, yield* DeviceMemory.region(buffer))
        const ranges = [[0, 0, pageSize], [pageSize, 3 * pageSize, 5 * pageSize], [
          9 * pageSize + 77,
          10 * pageSize + 13,
          4321
        ]] as const
        for (const [offset, at, length] of ranges) {
          yield* cuFile.write(handle, offset, yield* DeviceMemory.region(buffer, at, length))
          content.set(expected.subarray(at, at + length), offset)
        }
        assertBytes(yield* storage.readBytes(0, size), content, "the file")
        yield* storage.writeBytes(0, pattern(size, 8))
        const other = pattern(size, 8)
        for (const [offset, at, length] of ranges) {
          yield* cuFile.read(handle, offset, yield* DeviceMemory.region(buffer, at, length))
          expected.set(other.subarray(offset, offset + length), at)
        }
        assertBytes(yield* download(yield* DeviceMemory.region(buffer)), expected, "the device")
        yield* cuFile.read(handle, size, { buffer, offset: 0, byteLength: 0 })
        for (
          const [offset, byteLength] of [[size, 1], [-1, 1], [0.5, 1], [NaN, 1], [0, size + 1], [1, size]] as const
        ) {
          const error = yield* Effect.flip(cuFile.read(handle, offset, { buffer, offset: 0, byteLength }))
          assert.strictEqual(error._tag, "OutOfBounds")
        }
        const outside = yield* Effect.flip(cuFile.read(handle, 0, { buffer, offset: size - 1, byteLength: 2 }))
        assert.strictEqual(outside._tag, "OutOfBounds")
      })
    )
  }

  live(
    "continues short transfers, and calls none that moved nothing a success",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      const storage = yield* storageOf()
      const handle = yield* cuFile.register(storage)
      const buffer = yield* deviceOf(2 * pageSize)
      const region = yield* DeviceMemory.region(buffer)
      const expected = pattern(2 * pageSize, 3)
      yield* upload(expected, region)
      stub.short("cuFileWrite", 1, 1000)
      stub.short("cuFileWrite", 2, 1)
      stub.fail("cuFileWrite", 3, -4)
      yield* cuFile.write(handle, pageSize, region)
      assert.strictEqual(stub.calls().filter((name) => name === "cuFileWrite").length, 4)
      assertBytes(yield* storage.readBytes(pageSize, 2 * pageSize), expected, "the file")
      stub.short("cuFileRead", 1, 1000)
      stub.short("cuFileRead", 2, 0)
      const error = yield* Effect.flip(cuFile.read(handle, pageSize, region))
      assert.strictEqual(error._tag, "CuFileFailed")
      assert.deepInclude(error, {
        code: 0,
        call: "cuFileRead",
        offset: pageSize,
        length: 2 * pageSize,
        bytesDone: 1000
      })
    })
  )

  live(
    "tells each error by its name",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      const storage = yield* storageOf()
      const handle = yield* cuFile.register(storage)
      const region = yield* DeviceMemory.region(yield* deviceOf(pageSize))
      for (const [code, { name }] of Object.entries(cuFileErrors)) {
        stub.fail("cuFileRead", 1, Number(code))
        const error = yield* Effect.flip(cuFile.read(handle, 0, region))
        assert.deepInclude(error, { _tag: "CuFileFailed", code: Number(code), name, path: storage.path })
      }
      stub.fail("cuFileWrite", 1, -28)
      const full = yield* Effect.flip(cuFile.write(handle, 0, region))
      assert.deepInclude(full, { code: -1, errno: 28, name: "ENOSPC" })
    })
  )

  live(
    "registers what the driver takes, and leaves a storage that it refuses whole",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      const unlinked = yield* storageOf({ earlyUnlink: true })
      assert.strictEqual((yield* Effect.flip(cuFile.register(unlinked)))._tag, "StorageUnlinked")
      const buffered = yield* storageOf({ directIo: "disabled" })
      const refused = yield* Effect.flip(cuFile.registerThenUnlink(buffered))
      assert.deepInclude(refused, { _tag: "CuFileFailed", code: 5020, path: buffered.path })
      assert.isFalse(yield* buffered.unlinked)
      assert.isFalse(yield* buffered.isRegistered(CuFile.CuFileHandle))
      stub.compat(1)
      yield* cuFile.registerThenUnlink(buffered)
      assert.isTrue(yield* buffered.unlinked)
      assert.strictEqual((yield* Effect.flip(cuFile.register(buffered)))._tag, "DuplicateKey")
      stub.fail("cuFileHandleRegister", 1, 999)
      const storage = yield* storageOf()
      assert.deepInclude(yield* Effect.flip(cuFile.register(storage)), { code: 5011, cudaCode: 999 })
      yield* cuFile.register(storage)
    })
  )

  for (const how of ["open-direct", "keepAt"] as const) {
    live(
      `registers a storage that was opened with O_NOFOLLOW (${how}), by a descriptor that is gone with the registration`,
      Effect.gen(function*() {
        const cuFile = yield* CuFile.CuFile
        const keepAt = join(directory, "kept")
        if (how === "keepAt") yield* Effect.scoped(Effect.flatMap(storageOf({ keepAt }), ({ keep }) => keep))
        const storage = yield* storageOf(how === "keepAt" ? { keepAt } : { openStrategy: how })
        assert.notStrictEqual(yield* storage.withFd((fd) => Effect.sync(() => flagsOf(fd) & constants.O_NOFOLLOW)), 0)
        const before = openFiles()
        stub.fail("cuFileHandleRegister", 1, 5016)
        yield* Effect.flip(cuFile.register(storage))
        assert.strictEqual(openFiles(), before)
        const handle = yield* cuFile.register(storage)
        const region = yield* DeviceMemory.region(yield* deviceOf(pageSize))
        yield* upload(pattern(pageSize, 5), region)
        yield* cuFile.write(handle, 0, region)
        assertBytes(yield* storage.readBytes(0, pageSize), pattern(pageSize, 5), "the file")
        assert.isTrue(yield* storage.deregister(CuFile.CuFileHandle))
        assert.strictEqual(openFiles(), before)
      })
    )
  }

  live(
    "deregisters before the file is unlinked and closed, and a handle is dead then",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      const region = yield* DeviceMemory.region(yield* deviceOf(pageSize))
      const storage = yield* storageOf()
      const handle = yield* cuFile.register(storage)
      assert.isTrue(yield* storage.deregister(CuFile.CuFileHandle))
      const before = stub.calls().length
      const dead = yield* Effect.flip(cuFile.read(handle, 0, region))
      assert.deepInclude(dead, { _tag: "CuFileReleased", what: "handle", path: storage.path })
      assert.strictEqual(stub.calls().length, before)
      const second = yield* cuFile.register(storage)
      yield* cuFile.read(second, 0, region)
      assert.strictEqual((yield* Effect.flip(cuFile.read(handle, 0, region)))._tag, "CuFileReleased")
      yield* storage.close
      assert.strictEqual((yield* Effect.flip(cuFile.read(second, 0, region)))._tag, "StorageClosed")
      const other = yield* storageOf()
      yield* cuFile.registerThenUnlink(other)
      yield* other.close
      const ends = stub.calls().filter((name) => name.startsWith("cuFileHandleDeregister"))
      assert.deepStrictEqual(ends, [
        "cuFileHandleDeregister linked",
        "cuFileHandleDeregister linked",
        "cuFileHandleDeregister unlinked"
      ])
    })
  )

  live(
    "never takes one storage for another that has its descriptor's number",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      const region = yield* DeviceMemory.region(yield* deviceOf(pageSize))
      const numbers: Array<number> = []
      for (const seed of [1, 2, 3]) {
        const scope = yield* Scope.make()
        const storage = yield* Scope.extend(storageOf(), scope)
        numbers.push(yield* storage.withFd(Effect.succeed))
        const handle = yield* cuFile.register(storage)
        yield* upload(pattern(pageSize, seed), region)
        yield* cuFile.write(handle, 0, region)
        assertBytes(yield* storage.readBytes(0, pageSize), pattern(pageSize, seed), "its own")
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual((yield* Effect.flip(cuFile.write(handle, 0, region)))._tag, "StorageClosed")
      }
      assert.strictEqual(new Set(numbers).size, 1, "a number that is used again")
    })
  )

  live(
    "waits for transfers in flight before a storage, a buffer or its registration is released",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      for (const what of ["storage", "handle", "buffer", "registration"] as const) {
        const storageScope = yield* Scope.make()
        const bufferScope = yield* Scope.make()
        const registrationScope = yield* Scope.make()
        const storage = yield* Scope.extend(storageOf(), storageScope)
        const handle = yield* cuFile.register(storage)
        const region = yield* DeviceMemory.region(yield* Scope.extend(deviceOf(pageSize), bufferScope))
        if (what === "registration") yield* Scope.extend(cuFile.registerBuffer(region), registrationScope)
        stub.delay("cuFileRead", 1, 100)
        const reading = yield* Effect.fork(cuFile.read(handle, 0, region))
        yield* until("in flight", () => stub.alive().inFlight === 1)
        const release = {
          storage: Scope.close(storageScope, Exit.void),
          handle: storage.deregister(CuFile.CuFileHandle),
          buffer: Scope.close(bufferScope, Exit.void),
          registration: Scope.close(registrationScope, Exit.void)
        }
        yield* release[what]
        assert.strictEqual(stub.alive().inFlight, 0, what)
        yield* Fiber.join(reading)
        yield* Scope.close(registrationScope, Exit.void)
        yield* Scope.close(storageScope, Exit.void)
        yield* Scope.close(bufferScope, Exit.void)
        const late = yield* Effect.flip(cuFile.read(handle, 0, region))
        assert.strictEqual(late._tag, "StorageClosed")
      }
      const storage = yield* storageOf()
      const handle = yield* cuFile.register(storage)
      const freed = yield* Effect.scoped(Effect.flatMap(deviceOf(pageSize), (buffer) => DeviceMemory.region(buffer)))
      assert.strictEqual((yield* Effect.flip(cuFile.read(handle, 0, freed)))._tag, "DeviceMemoryFreed")
      assert.strictEqual((yield* Effect.flip(cuFile.registerBuffer(freed)))._tag, "DeviceMemoryFreed")
    })
  )

  live(
    "registers memory once at a time",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      const buffer = yield* deviceOf(4 * pageSize)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* cuFile.registerBuffer(buffer)
        assert.deepInclude(yield* Effect.flip(cuFile.registerBuffer(buffer)), { _tag: "CuFileFailed", code: 5023 })
        assert.strictEqual(stub.alive().buffers, 1)
      }))
      assert.strictEqual(stub.alive().buffers, 0)
      yield* cuFile.registerBuffer(buffer)
    })
  )

  it.live("ends with its layer, whatever is still registered or in flight; storages live on", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(layer(), scope)
      const storage = yield* storageOf()
      yield* Effect.gen(function*() {
        const cuFile = yield* CuFile.CuFile
        const handle = yield* cuFile.register(storage)
        const buffer = yield* Scope.extend(deviceOf(pageSize), scope)
        const region = yield* DeviceMemory.region(buffer)
        yield* Scope.extend(cuFile.registerBuffer(buffer), scope)
        stub.delay("cuFileWrite", 1, 100)
        const writing = yield* Effect.fork(cuFile.write(handle, 0, region))
        yield* until("in flight", () => stub.alive().inFlight === 1)
        yield* Scope.close(scope, Exit.void)
        yield* Fiber.join(writing)
        assert.deepStrictEqual(stub.alive(), nothing, stub.misuse())
        assert.strictEqual((yield* Effect.flip(cuFile.write(handle, 0, region)))._tag, "CuFileReleased")
        const error = yield* Effect.flip(cuFile.register(yield* storageOf()))
        assert.deepInclude(error, { _tag: "CuFileReleased", what: "driver" })
      }).pipe(Effect.provide(context))
      yield* storage.readBytes(0, 1)
      yield* storage.close
      assert.strictEqual(stub.calls().filter((name) => name.startsWith("cuFileHandleDeregister")).length, 1)
    }).pipe(Effect.scoped, Effect.provide(services)))

  live(
    "deregisters memory that ends first, after its transfers and before it is freed",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      const handle = yield* cuFile.register(yield* storageOf())
      const scope = yield* Scope.make()
      const buffer = yield* Scope.extend(deviceOf(4 * pageSize), scope)
      const region = yield* DeviceMemory.region(buffer, pageSize, pageSize)
      yield* cuFile.registerBuffer(region)
      yield* Effect.scoped(cuFile.registerBuffer(yield* DeviceMemory.region(buffer, 2 * pageSize, pageSize)))
      yield* cuFile.registerBuffer(yield* DeviceMemory.region(buffer, 0, pageSize))
      stub.delay("cuFileWrite", 1, 100)
      const writing = yield* Effect.fork(cuFile.write(handle, 0, region))
      yield* until("in flight", () => stub.alive().inFlight === 1)
      yield* Scope.close(scope, Exit.void)
      assert.isNotNull(writing.unsafePoll())
      yield* Fiber.join(writing)
      assert.strictEqual(stub.alive().buffers, 0)
      assert.strictEqual(device.alive().allocations, 0)
      assert.strictEqual((yield* Effect.flip(cuFile.write(handle, 0, region)))._tag, "DeviceMemoryFreed")
    })
  )

  it.live("leaves memory to the process that cuFile did not deregister, and its context; until the driver is closed", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const memory = yield* Scope.extend(DeviceMemory.make({ library: cuda, threads: 1 }), scope)
      const driver = yield* Scope.make()
      const context = yield* Layer.buildWithScope(
        Layer.provide(CuFile.layer({ library: cufile }), Layer.succeed(DeviceMemory.DeviceMemory, memory)),
        driver
      )
      const cuFile = Context.get(context, CuFile.CuFile)
      const first = yield* Scope.make()
      yield* cuFile.registerBuffer(yield* Scope.extend(memory.allocate(pageSize), first))
      const second = yield* Scope.make()
      const other = yield* Scope.extend(memory.allocate(pageSize), second)
      stub.fail("cuFileBufDeregister", 1, 5030)
      yield* Effect.scoped(cuFile.registerBuffer(other))
      stub.fail("cuFileBufDeregister", 1, 5030)
      yield* Scope.close(first, Exit.void)
      assert.deepStrictEqual([stub.alive().buffers, device.alive().allocations], [2, 2])
      yield* Scope.close(driver, Exit.void)
      yield* Scope.close(second, Exit.void)
      assert.strictEqual(device.alive().allocations, 1)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(device.alive().contexts, 1)
      stub.reset()
      device.reset()
    }).pipe(Effect.scoped, Effect.provide(services)))

  live(
    "registers a storage anew whose handle ended with another driver, and not one that is in use",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      const memory = yield* DeviceMemory.DeviceMemory
      const storage = yield* storageOf()
      const another = Layer.provide(CuFile.layer({ library: cufile }), Layer.succeed(DeviceMemory.DeviceMemory, memory))
      yield* Effect.flatMap(CuFile.CuFile, (other) => other.register(storage)).pipe(Effect.provide(another))
      const region = yield* DeviceMemory.region(yield* deviceOf(pageSize))
      const handle = yield* cuFile.register(storage)
      yield* cuFile.write(handle, 0, region)
      assert.strictEqual((yield* Effect.flip(cuFile.register(storage)))._tag, "DuplicateKey")
      yield* cuFile.read(handle, 0, region)
    })
  )

  it.live("outlives the service of its memory, of which nothing is registered then", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const memory = yield* Scope.extend(DeviceMemory.make({ library: cuda, threads: 1 }), scope)
      const context = yield* Layer.build(
        Layer.provide(CuFile.layer({ library: cufile }), Layer.succeed(DeviceMemory.DeviceMemory, memory))
      )
      const cuFile = Context.get(context, CuFile.CuFile)
      const storage = yield* storageOf()
      const handle = yield* cuFile.register(storage)
      const region = yield* DeviceMemory.region(yield* memory.allocate(pageSize))
      yield* cuFile.registerBuffer(region)
      yield* cuFile.write(handle, 0, region)
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(device.alive(), { allocations: 0, pinned: 0, contexts: 0, refusals: 0 })
      assert.deepStrictEqual(stub.alive(), { ...nothing, opens: 1, handles: 1 }, stub.misuse())
      assert.strictEqual((yield* Effect.flip(cuFile.write(handle, 0, region)))._tag, "DeviceMemoryFreed")
      yield* storage.sync
    }).pipe(Effect.scoped, Effect.provide(services)))

  live(
    "tells of each transfer of a batch, by the driver's batches and without them",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      const storages = [yield* storageOf(), yield* storageOf()]
      const handles = yield* Effect.forEach(storages, (storage) => cuFile.register(storage))
      const buffer = yield* deviceOf(8 * pageSize)
      const expected = pattern(8 * pageSize, 5)
      yield* upload(expected, yield* DeviceMemory.region(buffer))
      const transfers = Array.from({ length: 8 }, (_, index) => ({
        handle: handles[index % 2] ?? assert.fail("two handles"),
        offset: index * pageSize,
        region: { buffer, offset: index * pageSize, byteLength: pageSize }
      }))
      const outside = { ...transfers[0] ?? assert.fail("eight transfers"), offset: size }
      const empty = { ...outside, region: { buffer, offset: 0, byteLength: 0 } }
      stub.fail("cuFileBatchIOSubmit transfer", 2, 5044)
      stub.fail("cuFileBatchIOSubmit transfer", 3, -5)
      stub.short("cuFileBatchIOSubmit transfer", 2, 100)
      stub.short("cuFileBatchIOGetStatus", 1, 0)
      stub.short("cuFileBatchIOGetStatus", 2, 3)
      const results = yield* cuFile.writeBatch([outside, ...transfers, empty])
      assert.strictEqual(results.length, 10)
      assert.deepStrictEqual(
        results.failures.map(({ error, index }) => [index, error._tag, "code" in error ? error.name : ""]),
        [[0, "OutOfBounds", ""], [2, "CuFileFailed", "CU_FILE_IO_ERROR"], [3, "CuFileFailed", "EIO"]]
      )
      for (const [index, storage] of [...storages, ...storages, ...storages, ...storages].entries()) {
        if (index === 1 || index === 2) continue
        const range = [index * pageSize, (index + 1) * pageSize] as const
        assertBytes(yield* storage.readBytes(range[0], pageSize), expected.subarray(...range), `transfer ${index}`)
      }
      assert.isEmpty((yield* cuFile.writeBatch(transfers)).failures)
      yield* upload(new Uint8Array(8 * pageSize), yield* DeviceMemory.region(buffer))
      assert.isEmpty((yield* cuFile.readBatch(transfers)).failures)
      assertBytes(yield* download(yield* DeviceMemory.region(buffer)), expected, "what was read back")

      for (const call of ["cuFileBatchIOSubmit", "cuFileBatchIOGetStatus"]) {
        stub.fail(call, 1, 5030)
        const { failures } = yield* cuFile.readBatch(transfers)
        assert.strictEqual(failures.length, 8)
        for (const { error } of failures) assert.deepInclude(error, { call, code: 5030, length: pageSize })
      }
      stub.fail("cuFileBatchIOSetUp", 1, 5037)
      assert.isEmpty((yield* cuFile.readBatch(transfers)).failures)
      stub.fail("cuFileBatchIOSubmit", 1, 5049)
      assert.isEmpty((yield* cuFile.readBatch(transfers)).failures)
      stub.fail("cuFileBatchIOSetUp", 1, 5037)
      stub.fail("cuFileRead", 4, 5008)
      const singles = yield* cuFile.readBatch(transfers)
      assert.strictEqual(singles.failures.length, 1)
      assert.deepInclude(singles.failures[0]?.error, { call: "cuFileRead", code: 5008 })
      assert.isEmpty((yield* cuFile.readBatch([])).failures)
    })
  )

  it.live("splits batches at the driver's bound, and goes without where it has none", () =>
    Effect.gen(function*() {
      for (const [features, maxBatch, setUps] of [[3, 3, 3], [1, 128, 0], [3, 0, 0]] as const) {
        stub.reset()
        stub.props(2, 16, 0, features, maxBatch)
        yield* Effect.gen(function*() {
          const cuFile = yield* CuFile.CuFile
          const handle = yield* cuFile.register(yield* storageOf())
          const buffer = yield* deviceOf(8 * pageSize)
          const results = yield* cuFile.writeBatch(Array.from({ length: 8 }, (_, index) => ({
            handle,
            offset: index * pageSize,
            region: { buffer, offset: index * pageSize, byteLength: pageSize }
          })))
          assert.isEmpty(results.failures)
          assert.strictEqual(stub.calls().filter((name) => name === "cuFileBatchIOSetUp").length, setUps)
        }).pipe(Effect.scoped, Effect.provide(layer()))
      }
    }).pipe(Effect.provide(services)))

  /** All of it once; `batches` too. */
  const life = Effect.gen(function*() {
    const cuFile = yield* CuFile.CuFile
    const storage = yield* storageOf()
    const { registration } = yield* cuFile.registerThenUnlink(storage)
    const buffer = yield* deviceOf(2 * pageSize)
    yield* cuFile.registerBuffer(buffer)
    const region = yield* DeviceMemory.region(buffer)
    yield* cuFile.write(registration, 0, region)
    yield* cuFile.read(registration, 0, region)
    const halves = [0, pageSize].map((offset) => ({
      handle: registration,
      offset,
      region: { buffer, offset, byteLength: pageSize }
    }))
    for (const { error } of (yield* cuFile.writeBatch(halves)).failures) return yield* error
    for (const { error } of (yield* cuFile.readBatch(halves)).failures) return yield* error
  }).pipe(Effect.scoped, Effect.provide(layer()))

  const failing = [
    ["cuFileDriverOpen", "CuFileUnavailable"],
    ["cuFileDriverGetProperties", "CuFileUnavailable"],
    ["cuFileGetVersion", undefined],
    ["cuFileGetParameterBool", undefined],
    ["cuFileHandleRegister", "CuFileFailed"],
    ["cuFileBufRegister", "CuFileFailed"],
    ["cuFileWrite", "CuFileFailed"],
    ["cuFileRead", "CuFileFailed"],
    ["cuFileBatchIOSetUp", undefined],
    ["cuFileBatchIOSubmit", "CuFileFailed"],
    ["cuFileBatchIOGetStatus", "CuFileFailed"]
  ] as const
  it.live.each(failing)("leaks nothing when %s fails", ([call, tag]) =>
    Effect.gen(function*() {
      for (const code of [5001, 5011, 5030, 201]) {
        stub.fail(call, 1, code)
        const exit = yield* Effect.either(life)
        assert.strictEqual(exit._tag === "Left" ? exit.left._tag : undefined, tag)
        assert.deepStrictEqual(stub.alive(), nothing, stub.misuse())
        stub.reset()
      }
    }).pipe(Effect.provide(services)))

  it.live("tells the log what could not be released, and releases the rest", () =>
    Effect.gen(function*() {
      const logs: Array<string> = []
      const logger = Logger.replace(
        Logger.defaultLogger,
        Logger.make(({ logLevel, message }) => {
          if (logLevel._tag === "Error") logs.push(String(message))
        })
      )
      stub.fail("cuFileBufDeregister", 1, 5010)
      stub.fail("cuFileDriverClose_v2", 1, 5030)
      yield* Effect.provide(life, logger)
      assert.strictEqual(logs.length, 4)
      assert.include(logs[0], "CU_FILE_NVFS_DRIVER_ERROR (5010)")
      assert.include(logs[1], "Device memory is left to the process")
      assert.include(logs[2], "CU_FILE_INTERNAL_ERROR (5030)")
      assert.include(logs[3], "The context is left to the process")
      const { batches, handles, inFlight } = stub.alive()
      assert.deepStrictEqual({ batches, handles, inFlight }, { batches: 0, handles: 0, inFlight: 0 })
      stub.reset()
      device.reset()
    }).pipe(Effect.provide(Layer.provideMerge(IoEngine.layerSyscalls, LinuxSyscalls.layer))))

  it.live("can be interrupted at every call, and leaks nothing", () =>
    Effect.gen(function*() {
      yield* life
      const calls = stub.calls().map((name) => name.replace(/ (linked|unlinked|transfer)$/, ""))
      const nth = (index: number) => calls.slice(0, index + 1).filter((name) => name === calls[index]).length
      for (const [index, call] of calls.entries()) {
        stub.reset()
        stub.delay(call, nth(index), 30)
        const fiber = yield* Effect.fork(life)
        yield* until(call, () => stub.calls().length > index)
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(stub.alive(), nothing, `${call}: ${stub.misuse()}`)
      }
    }).pipe(Effect.provide(services)))

  live(
    "can be interrupted while it waits for a thread, and not in a call",
    Effect.gen(function*() {
      const cuFile = yield* CuFile.CuFile
      const handle = yield* cuFile.register(yield* storageOf())
      const region = yield* DeviceMemory.region(yield* deviceOf(pageSize))
      stub.delay("cuFileRead", 1, 200)
      const first = yield* Effect.fork(cuFile.read(handle, 0, region))
      yield* until("in flight", () => stub.alive().inFlight === 1)
      const second = yield* Effect.fork(cuFile.read(handle, 0, region))
      yield* Effect.sleep(20)
      yield* Fiber.interrupt(second)
      assert.strictEqual(stub.alive().inFlight, 1)
      yield* Fiber.interrupt(first)
      assert.strictEqual(stub.alive().inFlight, 0)
    }),
    { threads: 1 }
  )

  it.live("says why it is not there", () =>
    Effect.gen(function*() {
      const absent = yield* Effect.flip(Effect.scoped(Layer.build(layer({ library: "libnowhere.so.0" }))))
      assert.strictEqual(absent._tag, "CuFileUnavailable")
      assert.include(absent.message, "libnowhere.so.0")
      assert.include(absent.message, "DISK_STORAGE_CUFILE_LIBRARY")
      stub.fail("cuFileDriverOpen", 1, 5001)
      const noDriver = yield* Effect.flip(Effect.scoped(Layer.build(layer())))
      assert.deepInclude(noDriver, { _tag: "CuFileUnavailable", code: 5001 })
      assert.include(noDriver.message, "modprobe nvidia-fs")
      const threads = yield* Effect.flip(Effect.scoped(Layer.build(layer({ threads: 0 }))))
      assert.strictEqual(threads._tag, "InvalidOption")
      const scope = yield* Scope.make()
      const memory = yield* Layer.buildWithScope(memoryLayer, scope)
      device.fail("cuCtxSetCurrent", 2, 201)
      const noContext = yield* Effect.flip(Effect.scoped(
        Effect.provide(Layer.build(CuFile.layer({ library: cufile, threads: 3 })), memory)
      ))
      assert.deepInclude(noContext, { _tag: "CuFileUnavailable", code: 201 })
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(yield* DiskStorageConfig.cuFileLibrary, "libcufile.so.0")
    }))
})
