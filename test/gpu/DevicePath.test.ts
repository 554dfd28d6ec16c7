/** How bytes reach a device: decided over the stubs, with real files, and used for ranges and blocks. */
import { NodeContext } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { readFileSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { beforeEach } from "vitest"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as BlockStore from "../../src/BlockStore.js"
import * as DeviceMemory from "../../src/DeviceMemory.js"
import * as DevicePath from "../../src/DevicePath.js"
import * as DirectIo from "../../src/DirectIo.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as Linux from "../../src/Linux.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"
import * as Syscalls from "../../src/Syscalls.js"
import * as fileTree from "../doctor/fileTree.js"
import * as disks from "../doctor/fixtures/blockDevices.js"
import * as filesystems from "../doctor/fixtures/filesystems.js"
import * as gpus from "../doctor/fixtures/gpu.js"
import { answers } from "../doctor/machine.js"
import { assertBytes, pattern } from "../filesystems/real.js"
import { cudaControl, cuFileControl, describeStubs } from "./stubs.js"

const mebibyte = 1024 * 1024
const directory = tmpdir()

/** Each decision is logged. */
const Services = Layer.mergeAll(Linux.layer, NodeContext.layer, Logger.remove(Logger.defaultLogger))

describeStubs("the path to a device", ({ cuda, cufile }) => {
  const stub = cudaControl(cuda)
  const driver = cuFileControl(cufile)
  const nothing = { allocations: 0, pinned: 0, contexts: 0, refusals: 0 }
  beforeEach(() => {
    stub.reset()
    driver.reset()
  })

  const make = (options: DevicePath.DevicePathOptions = {}) =>
    DevicePath.make({ directory, memory: { library: cuda }, cuFile: { library: cufile }, ...options })

  const memoryOf = (path: DevicePath.DevicePath) =>
    Option.match(path.memory, {
      onNone: () => Effect.dieMessage(`no memory: ${path.reasons.join("; ")}`),
      onSome: Effect.succeed
    })

  /** Device memory that holds a pattern. */
  const filled = (memory: DeviceMemory.DeviceMemory, byteLength: number, seed: number) =>
    Effect.gen(function*() {
      const region = yield* DeviceMemory.region(yield* memory.allocate(byteLength))
      const host = yield* AlignedBuffer.make(byteLength)
      host.bytes.set(pattern(host.byteLength, seed))
      yield* memory.copyToDevice(host, region)
      return region
    })
  const bytesOf = (memory: DeviceMemory.DeviceMemory, region: DeviceMemory.DeviceRegion) =>
    Effect.gen(function*() {
      const host = yield* AlignedBuffer.make(region.byteLength)
      yield* memory.copyToHost(region, host)
      return host.bytes
    })

  for (const order of [["host-staged"], ["gds-compat"]] as const) {
    it.scopedLive(`${order[0]}: ranges of any place and length come back as they were`, () =>
      Effect.gen(function*() {
        const path = yield* make({ order })
        assert.strictEqual(path.kind, order[0], path.reasons.join("; "))
        const memory = yield* memoryOf(path)
        const storage = yield* DiskStorage.make({ size: 8 * mebibyte, directory })
        for (
          const [offset, length] of [[0, 4096], [mebibyte, 3 * mebibyte + 8192], [5 * mebibyte, 3 * mebibyte]] as const
        ) {
          const sent = yield* filled(memory, length, offset + 1)
          yield* path.write(storage, offset, sent)
          // Into the inside of a larger allocation.
          const into = yield* memory.allocate(length + 4096)
          const received = yield* DeviceMemory.region(into, 4096, length)
          yield* path.read(storage, offset, received)
          assertBytes(yield* bytesOf(memory, received), pattern(length, offset + 1), `${length} at ${offset}`)
          assertBytes(yield* storage.readBytes(offset, length), pattern(length, offset + 1), "on the disk")
        }
        const out = yield* filled(memory, 8192, 1)
        const beyond = yield* Effect.flip(path.write(storage, 8 * mebibyte - 4096, out))
        assert.strictEqual(beyond._tag, "OutOfBounds")
        yield* storage.close
        assert.strictEqual((yield* Effect.flip(path.read(storage, 0, out)))._tag, "StorageClosed")
      }).pipe(Effect.provide(Services)))
  }

  it.scopedLive("is host-staged where cuFile is missing, and says so", () =>
    Effect.gen(function*() {
      const path = yield* make({ cuFile: { library: "/nowhere/libcufile.so.0" } })
      assert.strictEqual(path.kind, "host-staged")
      assert.isTrue(Option.isNone(path.cuFile))
      assert.include(path.reasons.join("\n"), "/nowhere/libcufile.so.0")
      assert.match(path.reasons.join("\n"), /GPUDirect Storage here: /)
    }).pipe(Effect.provide(Services)))

  it.scopedLive("is unavailable without CUDA: typed, with the reason", () =>
    Effect.gen(function*() {
      const path = yield* make({ memory: { library: "/nowhere/libcuda.so.1" } })
      assert.strictEqual(path.kind, "unavailable")
      assert.include(path.reasons[0], "/nowhere/libcuda.so.1")
      const storage = yield* DiskStorage.make({ size: 4096, directory })
      const store = yield* BlockStore.make([storage], { blockBytes: 4096 })
      assert.strictEqual((yield* Effect.flip(path.blocks(store)))._tag, "DevicePathUnavailable")
    }).pipe(Effect.provide(Services)))

  for (const call of ["cuMemAlloc_v2", "cuMemHostRegister_v2", "cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2"]) {
    it.live(`is unavailable where ${call} fails each time it is tried, and leaves nothing`, () =>
      Effect.gen(function*() {
        stub.fail(call, 0, 999)
        const path = yield* make({ cuFile: false })
        assert.strictEqual(path.kind, "unavailable")
        assert.include(path.reasons.join("\n"), call)
      }).pipe(
        Effect.scoped,
        Effect.zipRight(Effect.sync(() => assert.deepStrictEqual(stub.alive(), nothing))),
        Effect.provide(Services)
      ))
  }

  /** This machine, but with a GPU, and the files on an NVMe disk that both reach (peer-to-peer DMA), as far as one can see. */
  const peerToPeerWith = (configuration: string) =>
    Layer.mergeAll(
      Layer.effect(
        Syscalls.Syscalls,
        Effect.map(Syscalls.Syscalls, (kernel): Syscalls.Syscalls => ({
          ...kernel,
          ...answers({ deviceMajor: 259, deviceMinor: 1, mountId: 1 })(kernel)
        }))
      ).pipe(Layer.provide(Linux.layer)),
      fileTree.layer({
        ...filesystems.machine,
        ...filesystems.mountinfo({ type: "ext4", device: "259:1", source: "/dev/nvme0n1p1" }),
        ...disks.nvme(0),
        ...disks.nvmePartition(0),
        ...gpus.withPeerToPeer,
        "/etc/cufile.json": configuration
      })
    )
  const configurationWith = (properties: object) =>
    JSON.stringify({
      properties: { use_pci_p2pdma: true, ...properties },
      block: { nvme: { use_pci_p2pdma: true } }
    })
  const onPeerToPeer = <A, E, R>(body: Effect.Effect<A, E, R>, configuration = configurationWith({})) =>
    body.pipe(
      Effect.provide(peerToPeerWith(configuration)),
      Effect.withConfigProvider(ConfigProvider.fromMap(new Map([["DISK_STORAGE_CUFILE_LIBRARY", cufile]]))),
      Effect.provide(Services)
    )
  const nvmeP2p = 1 << 11

  it.scopedLive("is gds where directory and driver both have a direct path, and moves the bytes by cuFile alone", () =>
    onPeerToPeer(Effect.gen(function*() {
      driver.props(0, nvmeP2p, 0, 0, 0)
      const path = yield* make({ memory: { library: cuda }, cuFile: {} })
      assert.strictEqual(path.kind, "gds", path.reasons.join("; "))
      assert.deepStrictEqual(path.improvements, [])
      assert.strictEqual(stub.alive().pinned, 0)
      const memory = yield* memoryOf(path)
      const storage = yield* DiskStorage.make({ size: mebibyte, directory })
      const sent = yield* filled(memory, mebibyte, 3)
      yield* path.write(storage, 0, sent)
      assertBytes(yield* storage.readBytes(0, mebibyte), pattern(mebibyte, 3), "on the disk")
      assert.include(driver.calls(), "cuFileWrite")
    })))

  it.scopedLive("is gds where the driver opens with a configuration that looks wrong", () =>
    onPeerToPeer(
      Effect.gen(function*() {
        assert.strictEqual((yield* DirectIo.inspect(directory)).verdict.gpu, "unavailable")
        driver.props(0, nvmeP2p, 0, 0, 0)
        const path = yield* make({ memory: { library: cuda }, cuFile: {} })
        assert.strictEqual(path.kind, "gds", path.reasons.join("; "))
        assert.deepStrictEqual(path.driverAnswer, Option.some({ opened: true } as const))
        assert.notMatch(path.reasons.join(), /does not start/)
        const { verdict } = yield* DirectIo.inspect(directory, { driverAnswer: { opened: true } })
        assert.strictEqual(verdict.gpu, "p2pdma", verdict.reasons.gpu.join())
      }),
      configurationWith({ io_batchsize: 512 })
    ))

  it.scopedLive("reports a driver that refuses a configuration that looks right", () =>
    onPeerToPeer(Effect.gen(function*() {
      assert.strictEqual((yield* DirectIo.inspect(directory)).verdict.gpu, "p2pdma")
      driver.fail("cuFileDriverOpen", 1, -22)
      const path = yield* make({ memory: { library: cuda }, cuFile: {} })
      assert.strictEqual(path.kind, "host-staged")
      const reason = "cuFileDriverOpen failed: EINVAL (-22), cuFile refuses its configuration"
      assert.deepStrictEqual(path.driverAnswer, Option.some({ opened: false, reason } as const))
      assert.match(
        path.reasons.join("\n"),
        /GPUDirect Storage here: unavailable; cuFile does not start: cuFileDriverOpen failed/
      )
      const report = yield* DirectIo.inspect(directory, { driverAnswer: { opened: false, reason } })
      assert.strictEqual(report.verdict.gpu, "unavailable")
      assert.include(report.conditions.find(({ id }) => id === "compat-mode")?.evidence ?? "", reason)
    })))

  it.scopedLive("takes the failure of no other call for the answer of the driver's opening", () =>
    onPeerToPeer(Effect.gen(function*() {
      driver.fail("cuFileDriverGetProperties", 1, 5001)
      const path = yield* make({ memory: { library: cuda }, cuFile: {} })
      assert.strictEqual(path.kind, "host-staged")
      assert.deepStrictEqual(path.driverAnswer, Option.none())
    })))

  it.scopedLive("does not open a driver that would end the process", () =>
    onPeerToPeer(
      Effect.gen(function*() {
        const path = yield* make({ memory: { library: cuda }, cuFile: {} })
        assert.strictEqual(path.kind, "host-staged")
        assert.match(path.reasons.join("\n"), /no cuFile: libcufile would end this process: .*logging is no object/)
        assert.deepStrictEqual(path.driverAnswer, Option.none())
        assert.notInclude(driver.calls(), "cuFileDriverOpen")
      }),
      "{\"logging\": []}"
    ))

  it.live("is not gds where the driver copies after all, or moves nothing; what it tried is given back", () =>
    onPeerToPeer(Effect.gen(function*() {
      driver.props(0, 0, 1 << 1, 0, 0)
      const copies = yield* make({ order: ["gds", "host-staged"] })
      assert.strictEqual(copies.kind, "host-staged")
      assert.match(copies.reasons.join("\n"), /gds: the directory's verdict is p2pdma, cuFile's mode compat/)
      driver.props(0, nvmeP2p, 0, 0, 0)
      driver.fail("cuFileWrite", 0, 5030)
      const failing = yield* make({ order: ["gds", "host-staged"] })
      assert.strictEqual(failing.kind, "host-staged")
      assert.match(failing.reasons.join("\n"), /gds: cuFileWrite/)
      stub.fail("cuMemcpyDtoH_v2", 0, 700)
      const before = stub.alive().pinned
      assert.strictEqual((yield* make({ order: ["host-staged"] })).kind, "unavailable")
      assert.strictEqual(stub.alive().pinned, before)
    })).pipe(Effect.scoped))

  it.scopedLive("takes the next one when a path fails its transfer", () =>
    Effect.gen(function*() {
      stub.fail("cuMemHostRegister_v2", 1, 801)
      const path = yield* make({ order: ["host-staged", "gds-compat"] })
      assert.strictEqual(path.kind, "gds-compat", path.reasons.join("; "))
      assert.match(path.reasons.join("\n"), /host-staged: .*cuMemHostRegister/)
    }).pipe(Effect.provide(Services)))

  it.live("a disk that does not answer keeps its staging memory, and others get other memory", () =>
    Effect.gen(function*() {
      const path = yield* make({ cuFile: false })
      const memory = yield* memoryOf(path)
      const { pinned } = stub.alive()
      const silent = yield* Layer.build(SimulatedSyscalls.layerEngine({ never: 1, stallTimeout: 50 }))
      const hung = yield* Effect.provide(
        DiskStorage.make({ size: 8 * mebibyte, directory, failureLimit: Infinity }),
        silent
      )
      const region = yield* filled(memory, 8 * mebibyte, 1)
      // Each takes all the buffers that there are.
      for (let round = 0; round < 3; round++) {
        assert.strictEqual((yield* Effect.flip(path.write(hung, 0, region)))._tag, "IoStalled")
      }
      assert.isAbove(stub.alive().pinned, pinned)
      const well = yield* DiskStorage.make({ size: 8 * mebibyte, directory })
      yield* path.write(well, 0, region)
      assertBytes(yield* well.readBytes(0, 8 * mebibyte), pattern(8 * mebibyte, 1), "a disk that answers")
    }).pipe(
      Effect.scoped,
      Effect.zipRight(Effect.sync(() => assert.deepStrictEqual(stub.alive(), nothing))),
      Effect.provide(Layer.provideMerge(SimulatedSyscalls.layerEngine(), SimulatedSyscalls.layer())),
      Effect.provide(Services)
    ))

  const blockBytes = 64 * 1024
  const stored = Effect.gen(function*() {
    const path = yield* make({ cuFile: false })
    const memory = yield* memoryOf(path)
    const storage = yield* DiskStorage.make({ size: 64 * blockBytes, directory })
    const store = yield* BlockStore.make([storage], { blockBytes })
    const blocks = yield* path.blocks(store, { depth: 4 })
    return { path, memory, storage, store, blocks }
  })

  it.live("moves blocks to a store and to other device memory", () =>
    Effect.gen(function*() {
      const { blocks, memory, store } = yield* stored
      const hashes = Array.from({ length: 24 }, (_, index) => BigInt(index))
      const sent = yield* Effect.forEach(hashes, (hash) =>
        Effect.map(filled(memory, blockBytes, Number(hash)), (from) => ({ hash, from })))
      const offloaded = yield* blocks.offload([...sent, ...sent.slice(0, 3)])
      assert.deepStrictEqual(offloaded.failures, [])
      assert.strictEqual(yield* store.match(hashes), 24)
      assert.strictEqual((yield* store.stats).stored, 24)
      const again = yield* blocks.offload(sent)
      assert.deepStrictEqual(again.get(7), Either.right("duplicate"))

      const into = yield* memory.allocate(24 * blockBytes)
      const destinations = yield* Effect.forEach(hashes, (hash, index) =>
        Effect.map(DeviceMemory.region(into, index * blockBytes, blockBytes), (into) => ({ hash, into })))
      const onboarded = yield* blocks.onboard([...destinations, {
        hash: 99n,
        into: destinations[0]?.into ?? sent[0]?.from ?? assert.fail()
      }])
      assert.deepStrictEqual(onboarded.failures.map(({ error, index }) => [index, error._tag]), [[24, "BlockNotFound"]])
      for (const { hash, into } of destinations) {
        assertBytes(yield* bytesOf(memory, into), pattern(blockBytes, Number(hash)), `block ${hash}`)
      }
    }).pipe(
      Effect.scoped,
      Effect.zipRight(Effect.sync(() =>
        assert.deepStrictEqual(stub.alive(), nothing)
      )),
      Effect.provide(Services)
    ))

  it.scopedLive("makes no block of a copy that failed, and none of one that is too short", () =>
    Effect.gen(function*() {
      const { blocks, memory, store } = yield* stored
      const [one, two] = [yield* filled(memory, blockBytes, 1), yield* filled(memory, blockBytes, 2)]
      stub.fail("cuMemcpyDtoH_v2", 1, 700)
      const results = yield* blocks.offload([{ hash: 1n, from: one }, { hash: 2n, from: two }])
      assert.deepStrictEqual(results.failures.map(({ error }) => error._tag), ["CudaFailed"])
      assert.strictEqual((yield* store.stats).blocks, 1)
      const short = yield* blocks.offload([{ hash: 3n, from: { ...one, byteLength: 4096 } }])
      assert.deepStrictEqual(short.failures.map(({ error }) => error._tag), ["InvalidBlock"])
      assert.isFalse(yield* store.has(3n))
    }).pipe(Effect.provide(Services)))

  it.scopedLive("brings no damaged block to the device", () =>
    Effect.gen(function*() {
      const { blocks, memory, storage } = yield* stored
      const from = yield* filled(memory, blockBytes, 1)
      assert.deepStrictEqual((yield* blocks.offload([{ hash: 1n, from }])).failures, [])
      const content = readFileSync(storage.path)
      writeFileSync(storage.path, content.fill(0x77, 100, 101), { flag: "r+" })
      const into = yield* filled(memory, blockBytes, 9)
      const results = yield* blocks.onboard([{ hash: 1n, into }])
      assert.deepStrictEqual(results.failures.map(({ error }) => error._tag), ["BlockCorrupted"])
      assertBytes(yield* bytesOf(memory, into), pattern(blockBytes, 9), "what the device had")
    }).pipe(Effect.provide(Services)))

  it.live("may be interrupted while copies are under way, and leaves nothing", () =>
    Effect.gen(function*() {
      const { blocks, memory } = yield* stored
      const from = yield* filled(memory, blockBytes, 1)
      stub.delay("cuMemcpyDtoH_v2", 0, 30)
      const offloading = yield* Effect.fork(
        blocks.offload(Array.from({ length: 20 }, (_, index) => ({ hash: BigInt(index), from })))
      )
      yield* Effect.sleep(45)
      assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(offloading)))
    }).pipe(
      Effect.scoped,
      Effect.zipRight(Effect.sync(() => assert.deepStrictEqual(stub.alive(), nothing))),
      Effect.provide(Services)
    ))

  const size = 16 * blockBytes
  /** By cuFile, which copies here. */
  const direct = (options: Partial<DiskStorage.DiskStorageOptions> = {}, checksum: BlockStore.Checksum = "off") =>
    Effect.gen(function*() {
      const path = yield* make({ order: ["gds-compat"] })
      const memory = yield* memoryOf(path)
      const storage = yield* DiskStorage.make({ size, directory, ...options })
      const store = yield* BlockStore.make([storage], { blockBytes, checksum })
      const blocks = yield* path.blocks(store, { depth: 4 })
      return { path, memory, storage, store, blocks }
    })
  const filledBlocks = (memory: DeviceMemory.DeviceMemory, hashes: ReadonlyArray<bigint>) =>
    Effect.forEach(hashes, (hash) => Effect.map(filled(memory, blockBytes, Number(hash)), (from) => ({ hash, from })))

  it.live("moves the blocks of a store without checksums by cuFile, straight to and from their slots", () =>
    Effect.gen(function*() {
      const { blocks, memory, store } = yield* direct()
      assert.strictEqual(blocks.kind, "gds-compat", blocks.reason)
      assert.strictEqual(stub.alive().pinned, 0)
      const hashes = Array.from({ length: 12 }, (_, index) => BigInt(index))
      const sent = yield* filledBlocks(memory, hashes)
      driver.short("cuFileWrite", 2, 4096)
      driver.short("cuFileRead", 3, 8192)
      const offloaded = yield* blocks.offload([...sent, ...sent.slice(0, 2)])
      assert.deepStrictEqual(offloaded.failures, [])
      assert.deepStrictEqual(
        [0, 12, 13].map((index) => Either.getOrNull(offloaded.get(index))),
        ["stored", "duplicate", "duplicate"]
      )
      // Who reads them into host memory sees the same.
      const host = yield* AlignedBuffer.make(blockBytes)
      assert.deepStrictEqual((yield* store.onboard([{ hash: 7n, into: host }])).failures, [])
      assertBytes(host.bytes, pattern(blockBytes, 7), "in host memory")
      host.bytes.set(pattern(blockBytes, 20))
      assert.deepStrictEqual((yield* store.offload([{ hash: 20n, data: host }])).failures, [])

      const into = yield* memory.allocate(13 * blockBytes)
      const destinations = yield* Effect.forEach(
        [...hashes, 20n],
        (hash, index) =>
          Effect.map(DeviceMemory.region(into, index * blockBytes, blockBytes), (into) => ({ hash, into }))
      )
      const absent = { hash: 99n, into: sent[0]?.from ?? assert.fail() }
      const onboarded = yield* blocks.onboard([...destinations, absent])
      assert.deepStrictEqual(onboarded.failures.map(({ error, index }) => [index, error._tag]), [[13, "BlockNotFound"]])
      for (const { hash, into } of destinations) {
        assertBytes(yield* bytesOf(memory, into), pattern(blockBytes, Number(hash)), `block ${hash}`)
      }
      // More than there is room for: the least recently used make room.
      const more = yield* filledBlocks(memory, Array.from({ length: 8 }, (_, index) => BigInt(100 + index)))
      assert.deepStrictEqual((yield* blocks.offload(more)).failures, [])
      assert.strictEqual((yield* store.stats).evicted, 5)
      assert.isTrue(yield* store.has(107n))
    }).pipe(
      Effect.scoped,
      Effect.zipRight(Effect.sync(() => {
        assert.deepStrictEqual(stub.alive(), nothing)
        assert.deepStrictEqual([driver.alive().handles, driver.alive().misuses], [0, 0], driver.misuse())
      })),
      Effect.provide(Services)
    ))

  it.scopedLive("makes no block of what cuFile did not write, and keeps the slot where that says nothing of the disk", () =>
    Effect.gen(function*() {
      const { blocks, memory, store } = yield* direct()
      const [one, two] = yield* filledBlocks(memory, [1n, 2n])
      if (one === undefined || two === undefined) return assert.fail("two blocks")
      const retired = Effect.map(store.stats, ({ storages }) => storages[0]?.retired)
      driver.fail("cuFileWrite", 1, 5030)
      assert.deepInclude((yield* blocks.offload([one])).failures[0]?.error, { _tag: "CuFileFailed", code: 5030 })
      assert.isFalse(yield* store.has(1n))
      assert.strictEqual(yield* retired, 0)
      driver.fail("cuFileWrite", 1, -5)
      assert.deepInclude((yield* blocks.offload([one])).failures[0]?.error, { _tag: "CuFileFailed", name: "EIO" })
      assert.isFalse(yield* store.has(1n))
      assert.strictEqual(yield* retired, 1)

      assert.deepStrictEqual((yield* blocks.offload([one, two])).failures, [])
      driver.fail("cuFileRead", 1, 5030)
      const { from: into } = two
      const [failure] = (yield* blocks.onboard([{ hash: 1n, into }])).failures
      assert.deepInclude(failure?.error, { _tag: "CuFileFailed", code: 5030 })
      assert.isTrue(yield* store.has(1n))
      driver.fail("cuFileRead", 1, -5)
      assert.lengthOf((yield* blocks.onboard([{ hash: 1n, into }])).failures, 1)
      assert.isFalse(yield* store.has(1n))
      assert.strictEqual(yield* retired, 2)

      const short = yield* blocks.offload([{ hash: 3n, from: { ...one.from, byteLength: 4096 } }])
      assert.deepStrictEqual(short.failures.map(({ error }) => error._tag), ["InvalidBlock"])
      const freed = yield* Effect.scoped(filled(memory, blockBytes, 4))
      const gone = yield* blocks.offload([{ hash: 4n, from: freed }])
      assert.deepStrictEqual(gone.failures.map(({ error }) => error._tag), ["DeviceMemoryFreed"])
      assert.strictEqual((yield* store.stats).blocks, 1)
    }).pipe(Effect.provide(Services)))

  it.scopedLive("takes a slot out of use, and a storage, where cuFile tells of the disk without an errno", () =>
    Effect.gen(function*() {
      const { blocks, memory, store } = yield* direct()
      const [block] = yield* filledBlocks(memory, [1n])
      if (block === undefined) return assert.fail("a block")
      assert.deepStrictEqual((yield* blocks.offload([block])).failures, [])
      // Nothing moved, and no reason.
      driver.short("cuFileRead", 1, 0)
      const [failure] = (yield* blocks.onboard([{ hash: 1n, into: block.from }])).failures
      assert.deepInclude(failure?.error, { _tag: "CuFileFailed", code: 0 })
      assert.isFalse(yield* store.has(1n))
      driver.fail("cuFileWrite", 0, 5044)
      const lost = Array.from({ length: 8 }, (_, index) => ({ ...block, hash: BigInt(index) }))
      assert.lengthOf((yield* blocks.offload(lost)).failures, 8)
      const { failed, storages } = yield* store.stats
      assert.strictEqual(failed, 9)
      assert.isTrue(storages[0]?.failed)
    }).pipe(Effect.provide(Services)))

  it.scopedLive("one path after the other serves a store that outlives them", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size, directory })
      const store = yield* BlockStore.make([storage], { blockBytes, checksum: "off" })
      const first = yield* Scope.make()
      const second = yield* make({ order: ["gds-compat"] })
      const memory = yield* memoryOf(second)
      const sent = yield* filledBlocks(memory, [1n, 2n, 3n])
      // Registered by the first, and used by both.
      const path = yield* Scope.extend(make({ order: ["gds-compat"] }), first)
      const before = yield* Scope.extend(path.blocks(store), first)
      const blocks = yield* second.blocks(store)
      assert.deepStrictEqual((yield* before.offload(sent.slice(0, 1))).failures, [])
      assert.deepStrictEqual((yield* blocks.offload(sent.slice(0, 2))).failures, [])
      yield* Scope.close(first, Exit.void)
      assert.deepStrictEqual((yield* blocks.offload(sent)).failures, [])
      const anew = yield* second.blocks(store)
      assert.strictEqual(anew.kind, "gds-compat", anew.reason)
      const destinations = sent.map(({ from, hash }) => ({ hash, into: from }))
      assert.deepStrictEqual((yield* anew.onboard(destinations)).failures, [])
      yield* second.write(storage, 0, sent[0]?.from ?? assert.fail("a block"))

      const wrapped = yield* second.blocks({ ...store })
      assert.strictEqual(wrapped.kind, "host-staged")
      assert.include(wrapped.reason, "not as BlockStore.make")
    }).pipe(Effect.provide(Services)))

  it.scopedLive("goes through host memory where there are checksums, or cuFile cannot have the file; and says so", () =>
    Effect.gen(function*() {
      const verified = yield* direct({}, "xxh128")
      assert.strictEqual(verified.path.kind, "gds-compat")
      assert.strictEqual(verified.blocks.kind, "host-staged")
      assert.include(verified.blocks.reason, "checksums (xxh128)")
      const unlinked = yield* direct({ earlyUnlink: true })
      assert.strictEqual(unlinked.blocks.kind, "host-staged")
      assert.include(unlinked.blocks.reason, "unlinked")
      const [block] = yield* filledBlocks(unlinked.memory, [1n])
      if (block === undefined) return assert.fail("a block")
      const calls = driver.calls().length
      assert.deepStrictEqual((yield* unlinked.blocks.offload([block])).failures, [])
      assert.strictEqual(driver.calls().length, calls)
    }).pipe(Effect.provide(Services)))

  it.live("ends in a Scope whose finalizers run side by side", () =>
    Effect.gen(function*() {
      const { memory, path, store } = yield* direct()
      const scope = yield* Scope.make(ExecutionStrategy.parallel)
      const blocks = yield* Scope.extend(path.blocks(store, { depth: 1 }), scope)
      const sent = yield* filledBlocks(memory, [1n, 2n, 3n, 4n])
      driver.delay("cuFileWrite", 0, 30)
      const begun = yield* Effect.fork(blocks.offload(sent))
      while (driver.alive().inFlight === 0) yield* Effect.sleep(1)
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual((yield* Fiber.join(begun)).failures, [])
    }).pipe(Effect.scoped, Effect.provide(Services)))

  it.live("waits for what cuFile is at, interrupted or at the end of its Scope, and is closed then", () =>
    Effect.gen(function*() {
      const { memory, path, store } = yield* direct()
      const scope = yield* Scope.make()
      const blocks = yield* Scope.extend(path.blocks(store, { depth: 2 }), scope)
      const sent = yield* filledBlocks(memory, Array.from({ length: 10 }, (_, index) => BigInt(index)))
      driver.delay("cuFileWrite", 0, 30)
      const interrupted = yield* Effect.fork(blocks.offload(sent))
      while (driver.alive().inFlight === 0) yield* Effect.sleep(1)
      assert.isTrue(Exit.isInterrupted(yield* Fiber.interrupt(interrupted)))
      assert.strictEqual(driver.alive().inFlight, 0)
      assert.strictEqual((yield* store.stats).inFlight, 0)
      const others = sent.map(({ from, hash }) => ({ hash: hash + 100n, from }))
      const begun = yield* Effect.fork(blocks.offload(others))
      while (driver.alive().inFlight === 0) yield* Effect.sleep(1)
      yield* Scope.close(scope, Exit.void)
      assert.isNotNull(begun.unsafePoll())
      assert.deepStrictEqual((yield* Fiber.join(begun)).failures, [])
      assert.deepStrictEqual(
        (yield* blocks.offload(sent)).failures.map(({ error }) => error._tag),
        sent.map(() => "StoreClosed")
      )
    }).pipe(
      Effect.scoped,
      Effect.zipRight(Effect.sync(() => assert.deepStrictEqual(stub.alive(), nothing))),
      Effect.provide(Services)
    ))
})
