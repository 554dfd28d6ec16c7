/**
 * What holds on any CUDA driver, cuFile and NIXL: over the stubs, and by `npm run test:gpu` (`EDS_GPU_LIBRARIES=real`) over the libraries of
 * this machine, with storages in `DYN_KVBM_DISK_CACHE_DIR`.
 */
import { NodeContext } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { execFileSync } from "node:child_process"
import { truncateSync } from "node:fs"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as BlockStore from "../../src/BlockStore.js"
import * as CuFile from "../../src/CuFile.js"
import * as DeviceMemory from "../../src/DeviceMemory.js"
import * as DevicePath from "../../src/DevicePath.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as DiskStorageConfig from "../../src/DiskStorageConfig.js"
import * as Linux from "../../src/Linux.js"
import * as Nixl from "../../src/Nixl.js"
import { assertBytes, pattern } from "../filesystems/real.js"
import { describeStubs } from "./stubs.js"

const mebibyte = 1024 * 1024
const { pageSize } = AlignedBuffer
const quiet = Logger.remove(Logger.defaultLogger)
const services = Layer.mergeAll(Linux.layer, NodeContext.layer, quiet)
const directory = Effect.runSync(DiskStorageConfig.directory)

const timeout = 120_000

/** The parameters of the queues of NIXL's backend POSIX. */
const queues = { io_uring: "use_uring", posix_aio: "use_posix_aio", aio: "use_aio" } as const

const prlimit = (limit: string) => execFileSync("prlimit", ["--pid", String(process.pid), `--fsize=${limit}:`])
const noPrlimit = (() => {
  try {
    prlimit("unlimited")
    return {}
  } catch {
    return { missing: "prlimit (util-linux) cannot lift the limit of file sizes" }
  }
})()

/** No write of this process beyond so many bytes of a file while `use` runs: EFBIG. Node ignores SIGXFSZ. */
const withFileLimit = <A, E, R>(bytes: number, use: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => prlimit(String(bytes))),
    () => use,
    () => Effect.sync(() => prlimit("unlimited"))
  )

/** A library by its options, or why there is none. */
type Found<Options> = Options | { readonly missing: string }

interface Libraries {
  readonly memory: Found<DeviceMemory.DeviceMemoryOptions>
  readonly cuFile: Found<CuFile.CuFileOptions>
  readonly nixl: Found<Nixl.NixlOptions>
  /** Backends of NIXL that take device memory. */
  readonly gds: ReadonlyArray<string>
}

const suite = (libraries: Libraries) => {
  /** One test; skipped, with the reason, where a library that it needs is missing. */
  const live = (
    name: string,
    needs: ReadonlyArray<Found<object>>,
    body: Effect.Effect<void, unknown, Scope.Scope | Layer.Layer.Success<typeof services>>
  ) => {
    const missing = needs.flatMap((found) => "missing" in found ? [found.missing] : [])
    if (missing.length > 0) return it.skip(`${name} (${missing.join("; ")})`, () => {})
    return it.live(name, () => body.pipe(Effect.scoped, Effect.provide(services)), timeout)
  }
  const given = <Options extends object>(found: Found<Options>): Options =>
    "missing" in found ? assert.fail(found.missing) : found

  const storageOf = (size: number, options: Partial<DiskStorage.DiskStorageOptions> = {}) =>
    DiskStorage.make({ size, directory, directIo: "preferred", ...options })
  const upload = (memory: DeviceMemory.DeviceMemory, bytes: Uint8Array, region: DeviceMemory.DeviceRegion) =>
    Effect.gen(function*() {
      const whole = yield* AlignedBuffer.make(bytes.byteLength)
      whole.bytes.set(bytes)
      yield* memory.copyToDevice(yield* AlignedBuffer.slice(whole, 0, bytes.byteLength), region)
    })
  const download = (memory: DeviceMemory.DeviceMemory, region: DeviceMemory.DeviceRegion) =>
    Effect.gen(function*() {
      const whole = yield* AlignedBuffer.make(region.byteLength)
      const part = yield* AlignedBuffer.slice(whole, 0, region.byteLength)
      yield* memory.copyToHost(region, part)
      return part.bytes
    })

  for (const pinned of [false, true]) {
    live(
      `copies any length from and to any place, ${pinned ? "pinned" : "pageable"}`,
      [libraries.memory],
      Effect.gen(function*() {
        const memory = yield* DeviceMemory.make(given(libraries.memory))
        for (const length of [1, 4095, mebibyte + 3, 8 * mebibyte]) {
          const [one, two] = [yield* memory.allocate(length + 200), yield* memory.allocate(length + 300)]
          const host = yield* AlignedBuffer.make(length + 300)
          if (pinned) yield* memory.pin(host)
          const around = new Uint8Array(length + 300).fill(0xee)
          host.bytes.fill(0xee)
          yield* memory.copyToDevice(
            yield* AlignedBuffer.slice(host, 0, length + 300),
            yield* DeviceMemory.region(two)
          )
          const part = yield* AlignedBuffer.slice(host, 0, length)
          part.bytes.set(pattern(length, length))
          const [from, to] = [
            yield* DeviceMemory.region(one, 77, length),
            yield* DeviceMemory.region(two, 133, length)
          ]
          yield* memory.copyToDevice(part, from)
          yield* memory.copyOnDevice(from, to)
          const whole = yield* AlignedBuffer.slice(host, 0, length + 300)
          yield* memory.copyToHost(yield* DeviceMemory.region(two), whole)
          around.set(pattern(length, length), 133)
          assertBytes(whole.bytes, around, `${length} bytes`)
        }
      })
    )
  }

  live(
    "copies in both directions at once, and refuses memory that is freed",
    [libraries.memory],
    Effect.gen(function*() {
      const memory = yield* DeviceMemory.make({ ...given(libraries.memory), threads: 4 })
      const buffers = yield* Effect.forEach(
        Array.from({ length: 16 }, (_, index) => index),
        (index) =>
          Effect.gen(function*() {
            const host = yield* AlignedBuffer.make(mebibyte)
            yield* memory.pin(host)
            host.bytes.set(pattern(mebibyte, index))
            return { index, host, region: yield* DeviceMemory.region(yield* memory.allocate(mebibyte)) }
          })
      )
      for (let round = 0; round < 4; round++) {
        yield* Effect.forEach(buffers, ({ host, index, region }) =>
          Effect.gen(function*() {
            yield* memory.copyToDevice(host, region)
            host.bytes.fill(0)
            yield* memory.copyToHost(region, host)
            assertBytes(host.bytes, pattern(mebibyte, index), `buffer ${index}`)
          }), { concurrency: "unbounded" })
      }
      const freed = yield* Effect.scoped(
        Effect.flatMap(memory.allocate(pageSize), (buffer) => DeviceMemory.region(buffer))
      )
      assert.strictEqual((yield* Effect.flip(download(memory, freed)))._tag, "DeviceMemoryFreed")
    })
  )

  for (const registers of [false, true]) {
    live(
      `cuFile moves ranges both ways, ${registers ? "in registered memory" : "in memory as it is"}`,
      [libraries.memory, libraries.cuFile],
      Effect.gen(function*() {
        const memory = yield* DeviceMemory.DeviceMemory
        const cuFile = yield* CuFile.CuFile
        const size = 8 * mebibyte
        for (const openStrategy of ["default", "open-direct"] as const) {
          const storage = yield* storageOf(size, { openStrategy })
          const { registration: handle } = yield* cuFile.registerThenUnlink(storage)
          const buffer = yield* memory.allocate(size)
          if (registers) yield* cuFile.registerBuffer(buffer)
          const [sent, content] = [pattern(size, 7), new Uint8Array(size)]
          yield* upload(memory, sent, yield* DeviceMemory.region(buffer))
          const ranges = [[0, 0, pageSize], [mebibyte, 3 * mebibyte, 2 * mebibyte], [
            5 * mebibyte,
            mebibyte + pageSize,
            64 * 1024
          ], [6 * mebibyte + 77, 2 * mebibyte + 13, 4321]] as const
          for (const [offset, at, length] of ranges) {
            yield* cuFile.write(handle, offset, yield* DeviceMemory.region(buffer, at, length))
            content.set(sent.subarray(at, at + length), offset)
          }
          assertBytes(yield* storage.readBytes(0, size), content, "the file")
          yield* storage.writeBytes(0, pattern(size, 8))
          const outcomes = yield* cuFile.readBatch([
            ...ranges.map(([offset, at, length]) => ({
              handle,
              offset,
              region: { buffer, offset: at, byteLength: length }
            })),
            { handle, offset: size, region: { buffer, offset: 0, byteLength: 1 } }
          ])
          assert.deepStrictEqual(
            outcomes.failures.map(({ error, index }) => [index, error._tag]),
            [[ranges.length, "OutOfBounds"]]
          )
          for (const [offset, at, length] of ranges) {
            sent.set(pattern(size, 8).subarray(offset, offset + length), at)
          }
          assertBytes(yield* download(memory, yield* DeviceMemory.region(buffer)), sent, "the device")
        }
      }).pipe(
        Effect.provide(
          Layer.suspend(() =>
            Layer.provideMerge(CuFile.layer(given(libraries.cuFile)), DeviceMemory.layer(given(libraries.memory)))
          )
        )
      )
    )
  }

  live(
    "NIXL moves host memory through POSIX",
    [libraries.nixl],
    Effect.gen(function*() {
      const nixl = yield* Nixl.make(given(libraries.nixl))
      const storage = yield* storageOf(4 * mebibyte)
      const { registration: file } = yield* nixl.registerThenUnlink(storage)
      const host = yield* AlignedBuffer.make(2 * mebibyte)
      const back = yield* AlignedBuffer.make(2 * mebibyte)
      host.bytes.set(pattern(2 * mebibyte, 5))
      yield* nixl.write(file, mebibyte, yield* nixl.registerMemory(host))
      assertBytes(yield* storage.readBytes(mebibyte, 2 * mebibyte), pattern(2 * mebibyte, 5), "the file")
      const memory = yield* nixl.registerMemory(back)
      yield* nixl.transfer(
        "read",
        file,
        Array.from({ length: 32 }, (_, index) => ({
          offset: mebibyte + index * 65_536,
          memory,
          start: index * 65_536,
          length: 65_536
        }))
      )
      assertBytes(back.bytes, pattern(2 * mebibyte, 5), "memory")
    })
  )

  const nixlWith = (queue: Nixl.Queue, options: Nixl.NixlOptions = {}) =>
    Nixl.make({
      ...given(libraries.nixl),
      ...options,
      backends: [{ name: "POSIX", parameters: { [queues[queue]]: "true" } }]
    })
  const piecesOf = (memory: Nixl.Memory, count: number, length: number) =>
    Array.from({ length: count }, (_, index) => ({ offset: index * length, memory, start: index * length, length }))

  for (const queue of ["io_uring", "posix_aio"] as const) {
    live(
      `NIXL with ${queue}: after an I/O error an agent takes no more transfers, and its end gives the memory back`,
      [libraries.nixl, noPrlimit],
      Effect.gen(function*() {
        const host = yield* AlignedBuffer.make(4 * mebibyte)
        host.bytes.set(pattern(4 * mebibyte, 3))
        const scope = yield* Scope.make()
        const nixl = yield* Scope.extend(nixlWith(queue), scope)
        const storage = yield* storageOf(4 * mebibyte)
        const { registration: file } = yield* nixl.registerThenUnlink(storage)
        const memory = yield* nixl.registerMemory(host)
        const other = yield* nixl.registerMemory(yield* AlignedBuffer.make(mebibyte))
        const writing = nixl.transfer("write", file, piecesOf(memory, 64, 65_536))
        const failure = yield* withFileLimit(2 * mebibyte, Effect.flip(writing))
        assert.strictEqual(failure._tag, "NixlFailed")
        // Without the limit, and with other memory: the queue would answer with the old error.
        const refused = yield* Effect.flip(nixl.read(file, 0, other))
        assert.strictEqual(refused._tag, "NixlAgentFailed")
        assert.strictEqual((yield* Effect.flip(storage.read(0, host)))._tag, "BufferBusy")
        yield* Scope.close(scope, Exit.void)
        yield* storage.read(0, host)

        const next = yield* nixlWith(queue)
        const again = yield* next.register(yield* storageOf(4 * mebibyte))
        const registered = yield* next.registerMemory(host)
        yield* next.transfer("write", again, piecesOf(registered, 64, 65_536))
      })
    )
  }

  for (const queue of ["io_uring", "posix_aio", "aio"] as const) {
    live(
      `NIXL with ${queue}: no transfer that failed or was short is a success`,
      [libraries.nixl, noPrlimit],
      Effect.gen(function*() {
        const opened = Effect.gen(function*() {
          const nixl = yield* nixlWith(queue)
          const storage = yield* storageOf(mebibyte)
          const host = yield* AlignedBuffer.make(mebibyte)
          host.bytes.set(pattern(mebibyte, 4))
          return { nixl, storage, host, file: yield* nixl.register(storage), memory: yield* nixl.registerMemory(host) }
        })
        // The second piece of two is short, or fails.
        for (const limit of [786_432, 524_288]) {
          const { file, memory, nixl } = yield* opened
          const writing = nixl.transfer("write", file, piecesOf(memory, 2, 524_288))
          const wrote = yield* withFileLimit(limit, Effect.either(writing))
          assert.include(
            ["NixlFailed", "NixlUnconfirmed"],
            Either.isLeft(wrote) ? wrote.left._tag : `a success, ${limit}`
          )
        }
        const { file, host, memory, nixl, storage } = yield* opened
        yield* nixl.write(file, 0, memory)
        truncateSync(storage.path, mebibyte / 2)
        host.bytes.fill(0)
        const read = yield* Effect.either(nixl.read(file, 0, memory))
        assert.include(["NixlFailed", "NixlUnconfirmed"], Either.isLeft(read) ? read.left._tag : "a success, read")
      })
    )
  }

  live(
    "NIXL refuses memory within registered memory, and takes the same a second time",
    [libraries.nixl],
    Effect.gen(function*() {
      const nixl = yield* Nixl.make(given(libraries.nixl))
      const file = yield* nixl.register(yield* storageOf(mebibyte))
      const host = yield* AlignedBuffer.make(mebibyte)
      const memory = yield* nixl.registerMemory(host)
      const inner = nixl.registerMemory(yield* AlignedBuffer.slice(host, 65_536, 131_072))
      assert.strictEqual((yield* Effect.flip(inner))._tag, "NixlOverlap")
      yield* Effect.scoped(Effect.flatMap(nixl.registerMemory(host), (same) => nixl.write(file, 0, same)))
      yield* nixl.write(file, 0, memory, { start: 524_288, length: 65_536 })
    })
  )

  live(
    "NIXL moves 1000 pieces with few delays",
    [libraries.nixl],
    Effect.gen(function*() {
      // Each poll submits 64, and a delay of this schedule is longer than the I/O.
      const delays: Array<unknown> = []
      const completion = Schedule.spaced("2 seconds").pipe(
        Schedule.tapOutput((delay) => Effect.sync(() => delays.push(delay)))
      )
      const nixl = yield* Nixl.make({ ...given(libraries.nixl), completion })
      const file = yield* nixl.register(yield* storageOf(4 * mebibyte))
      const memory = yield* nixl.registerMemory(yield* AlignedBuffer.make(4_096_000))
      yield* nixl.transfer("read", file, piecesOf(memory, 1000, pageSize))
      // 64 at each would be 16.
      assert.isBelow(delays.length, 12)
    })
  )

  if (libraries.gds.length === 0) it.skip("NIXL moves device memory (it has no plugin GDS or GDS_MT)", () => {})
  for (const backend of libraries.gds) {
    live(
      `NIXL moves device memory through ${backend}`,
      [libraries.nixl, libraries.memory],
      Effect.gen(function*() {
        const memory = yield* DeviceMemory.make(given(libraries.memory))
        const nixl = yield* Nixl.make({ ...given(libraries.nixl), backends: [{ name: backend }] })
        const storage = yield* storageOf(4 * mebibyte)
        const { registration: file } = yield* nixl.registerThenUnlink(storage)
        const [from, into] = [yield* memory.allocate(mebibyte), yield* memory.allocate(mebibyte)]
        const region = yield* DeviceMemory.region(from)
        yield* upload(memory, pattern(mebibyte, 9), region)
        yield* DeviceMemory.withPointer(region, (pointer) =>
          Effect.scoped(Effect.flatMap(
            nixl.registerMemory({ pointer, byteLength: mebibyte, device: memory.device.ordinal }),
            (registered) => nixl.write(file, mebibyte, registered)
          )))
        assertBytes(yield* storage.readBytes(mebibyte, mebibyte), pattern(mebibyte, 9), "the file")
        const target = yield* DeviceMemory.region(into)
        yield* DeviceMemory.withPointer(target, (pointer) =>
          Effect.scoped(Effect.flatMap(
            nixl.registerMemory({ pointer, byteLength: mebibyte, device: memory.device.ordinal }),
            (registered) => nixl.read(file, mebibyte, registered)
          )))
        assertBytes(yield* download(memory, target), pattern(mebibyte, 9), "the device")
      })
    )
  }

  live(
    "the path that is taken moves ranges and blocks",
    [libraries.memory],
    Effect.gen(function*() {
      const path = yield* DevicePath.make({
        directory,
        memory: given(libraries.memory),
        cuFile: "missing" in libraries.cuFile ? false : libraries.cuFile
      })
      const memory = Option.getOrElse(path.memory, () => assert.fail(path.reasons.join("; ")))
      const blockBytes = 192 * 1024
      const count = 40
      const storage = yield* storageOf(count * blockBytes)
      const whole = yield* DeviceMemory.region(yield* memory.allocate(count * blockBytes))
      yield* upload(memory, pattern(count * blockBytes, 1), whole)
      yield* path.write(storage, 0, whole)
      const back = yield* DeviceMemory.region(yield* memory.allocate(count * blockBytes))
      yield* path.read(storage, 0, back)
      assertBytes(yield* download(memory, back), pattern(count * blockBytes, 1), path.kind)

      const store = yield* BlockStore.make([yield* storageOf(count * blockBytes)], { blockBytes })
      const blocks = yield* path.blocks(store)
      const part = (buffer: DeviceMemory.DeviceBuffer, index: number) => ({
        buffer,
        offset: index * blockBytes,
        byteLength: blockBytes
      })
      const all = Array.from({ length: count }, (_, index) => index)
      const offloaded = yield* blocks.offload(all.map((index) => ({
        hash: BigInt(index),
        from: part(whole.buffer, index)
      })))
      assert.deepStrictEqual(offloaded.failures, [])
      yield* upload(memory, new Uint8Array(count * blockBytes), back)
      const onboarded = yield* blocks.onboard(all.map((index) => ({
        hash: BigInt(index),
        into: part(back.buffer, index)
      })))
      assert.deepStrictEqual(onboarded.failures, [])
      assertBytes(yield* download(memory, back), pattern(count * blockBytes, 1), "blocks")
    })
  )
}

/** What there is on this machine, each loaded once to see. */
const find = Effect.gen(function*() {
  const tried = <A, E extends { readonly message: string }>(make: Effect.Effect<A, E, Scope.Scope>) =>
    Effect.either(Effect.scoped(make))
  const reason = Either.match({
    onLeft: ({ message }: { message: string }) => ({ missing: message }),
    onRight: () => ({})
  })
  const memory = yield* tried(DeviceMemory.make())
  const cuFile = yield* tried(
    Layer.build(Layer.provide(CuFile.layer(), DeviceMemory.layer()))
  )
  const nixl = yield* tried(Nixl.make())
  const plugins = Either.match(nixl, { onLeft: () => [], onRight: ({ plugins }) => plugins })
  return {
    memory: reason(memory),
    cuFile: reason(cuFile),
    nixl: reason(nixl),
    gds: plugins.filter((name) => name === "GDS" || name === "GDS_MT")
  }
})

if (process.env["EDS_GPU_LIBRARIES"] === "real") {
  const libraries = await Effect.runPromise(Effect.provide(find, quiet))
  describe("the libraries of this machine", () => {
    suite(libraries)
  })
} else {
  describeStubs("the stub libraries", ({ cuda, cufile, nixl }) =>
    suite({
      memory: { library: cuda },
      cuFile: { library: cufile },
      nixl: { library: nixl },
      gds: ["GDS", "GDS_MT"]
    }))
}
