/** Device memory over the stub of the CUDA driver, which refuses what is wrong and counts what is alive. */
import { assert, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import { beforeEach, describe } from "vitest"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DeviceMemory from "../../src/DeviceMemory.js"
import * as alignedBuffer from "../../src/internal/alignedBuffer.js"
import { assertBytes, pattern } from "../filesystems/real.js"
import { cudaControl, describeStubs } from "./stubs.js"

const { pageSize } = AlignedBuffer
const mebibyte = 1024 * 1024

/** What is logged at error level. */
const errorsInto = (errors: Array<string>) =>
  Logger.replace(
    Logger.defaultLogger,
    Logger.make(({ logLevel, message }) => {
      if (logLevel._tag === "Error") errors.push(String(message))
    })
  )

/** Waits, within a bound, since what is waited for happens on another thread. */
const until = (what: string, condition: () => boolean) =>
  Effect.gen(function*() {
    for (let round = 0; round < 2000; round++) {
      if (condition()) return
      yield* Effect.sleep(5)
    }
    return assert.fail(what)
  })

const filled = (byteLength: number, seed: number) =>
  Effect.tap(AlignedBuffer.make(byteLength), (buffer) => buffer.bytes.set(pattern(buffer.byteLength, seed)))

describeStubs("device memory", ({ cuda }) => {
  const stub = cudaControl(cuda)
  const make = (options: DeviceMemory.DeviceMemoryOptions = {}) =>
    DeviceMemory.make({ library: cuda, threads: 1, ...options })
  const nothing = { allocations: 0, pinned: 0, contexts: 0, refusals: 0 }
  beforeEach(() => stub.reset())

  /** Each call of the library, at least once. */
  const life = Effect.scoped(Effect.gen(function*() {
    const memory = yield* make()
    const one = yield* DeviceMemory.region(yield* memory.allocate(2 * pageSize))
    const two = yield* DeviceMemory.region(yield* memory.allocate(2 * pageSize))
    const host = yield* filled(2 * pageSize, 1)
    yield* memory.pin(host)
    yield* memory.copyToDevice(host, one)
    yield* memory.copyOnDevice(one, two)
    yield* memory.copyToHost(two, host)
    assertBytes(host.bytes, pattern(2 * pageSize, 1), "what came back")
  }))

  const acquires = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent"
  ]
  const uses = [
    "cuMemAlloc_v2",
    "cuPointerSetAttribute",
    "cuMemHostRegister_v2",
    "cuMemcpyHtoD_v2",
    "cuMemcpyDtoD_v2",
    "cuMemcpyDtoH_v2"
  ]

  describe("a service", () => {
    it.scoped("says which devices there are, and which is in use", () =>
      Effect.gen(function*() {
        const memory = yield* DeviceMemory.DeviceMemory
        assert.strictEqual(memory.driverVersion, 13_000)
        assert.strictEqual(memory.library, cuda)
        assert.deepStrictEqual(
          memory.devices.map(({ name, ordinal, pciAddress }) => [ordinal, name, pciAddress]),
          [[0, "Stub device 0", "0000:a1:00.0"], [1, "Stub device 1", "0000:a2:00.0"]]
        )
        assert.strictEqual(memory.device, memory.devices[1])
        assert.strictEqual(memory.device.bytes, 1024 * mebibyte)
        assert.isAbove(Number(memory.context), 0)
      }).pipe(Effect.provide(DeviceMemory.layer({ library: cuda, device: 1 }))))

    it.effect("leaves nothing behind", () =>
      Effect.gen(function*() {
        yield* life
        assert.deepStrictEqual(stub.alive(), nothing)
      }))

    it.effect("finds its library by a variable", () =>
      Effect.gen(function*() {
        const made = (value: string) =>
          Effect.scoped(DeviceMemory.make()).pipe(
            Effect.withConfigProvider(ConfigProvider.fromMap(new Map([["DISK_STORAGE_CUDA_LIBRARY", value]])))
          )
        assert.strictEqual((yield* made(cuda)).library, cuda)
        const absent = yield* Effect.flip(made("/nowhere/libcuda.so.1"))
        assert.strictEqual(absent._tag, "CudaUnavailable")
        assert.include(absent.message, "/nowhere/libcuda.so.1")
        assert.include(absent.message, "DISK_STORAGE_CUDA_LIBRARY")
      }))

    it.effect("is not made from another library", () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(Effect.scoped(make({ library: "libc.so.6" })))
        assert.strictEqual(error._tag, "CudaUnavailable")
        assert.include(error.message, "cuInit")
      }))

    it.effect("says why there is no CUDA, and what to do", () =>
      Effect.gen(function*() {
        for (const [code, words] of [[100, "nvidia-smi"], [803, "kernel module"], [34, "toolkit"]] as const) {
          stub.fail("cuInit", 1, code)
          const error = yield* Effect.flip(Effect.scoped(make()))
          if (error._tag !== "CudaUnavailable") return assert.fail(error._tag)
          assert.strictEqual(error.code, code)
          assert.include(error.message, words)
        }
        const noDevice = yield* Effect.flip(Effect.scoped(make({ device: 2 })))
        assert.strictEqual(noDevice._tag, "CudaUnavailable")
        assert.include(noDevice.message, "no device 2")
        assert.deepStrictEqual(stub.alive(), nothing)
      }))

    it.effect("takes sensible options", () =>
      Effect.gen(function*() {
        for (const options of [{ device: -1 }, { device: 0.5 }, { threads: 0 }, { threads: NaN }, { threads: 65 }]) {
          assert.strictEqual((yield* Effect.flip(Effect.scoped(make(options))))._tag, "InvalidOption")
        }
      }))

    it.scoped("has its context on each of its threads, whichever is free", () =>
      Effect.gen(function*() {
        const memory = yield* make({ threads: 3 })
        const other = yield* make({ threads: 2, device: 1 })
        stub.delay("cuMemcpyHtoD_v2", 0, 2)
        yield* Effect.forEach([memory, other, memory, other, memory, other], (each, seed) =>
          Effect.scoped(Effect.gen(function*() {
            const from = yield* filled(pageSize, seed)
            const into = yield* AlignedBuffer.make(pageSize)
            const region = yield* DeviceMemory.region(yield* each.allocate(pageSize))
            for (let round = 0; round < 10; round++) {
              yield* each.copyToDevice(from, region)
              yield* each.copyToHost(region, into)
              assertBytes(into.bytes, from.bytes, `round ${round} of ${seed}`)
            }
          })), { concurrency: 6 })
        assert.deepStrictEqual(stub.alive(), { ...nothing, contexts: 2 })
      }))

    it.effect("frees what is left when it ends, and cannot be used after that", () =>
      Effect.gen(function*() {
        const outlives = yield* Scope.make()
        const host = yield* AlignedBuffer.make(pageSize)
        const service = yield* Scope.make()
        const memory = yield* Scope.extend(make(), service)
        const buffer = yield* Scope.extend(memory.allocate(pageSize), outlives)
        yield* Scope.extend(memory.pin(host), outlives)
        assert.deepStrictEqual(stub.alive(), { allocations: 1, pinned: 1, contexts: 1, refusals: 0 })
        yield* Scope.close(service, Exit.void)
        assert.deepStrictEqual(stub.alive(), nothing)
        const region = yield* DeviceMemory.region(buffer)
        assert.strictEqual((yield* Effect.flip(memory.copyToHost(region, host)))._tag, "DeviceMemoryFreed")
        assert.strictEqual((yield* Effect.flip(Effect.scoped(memory.allocate(1))))._tag, "CudaUnavailable")
        assert.strictEqual((yield* Effect.flip(Effect.scoped(memory.pin(host))))._tag, "CudaUnavailable")
        yield* Scope.close(outlives, Exit.void)
        assert.deepStrictEqual(stub.alive(), nothing)
      }))

    it.scoped("of the same device shares the context with another, and leaves it to it", () =>
      Effect.gen(function*() {
        const memory = yield* make()
        const region = yield* DeviceMemory.region(yield* memory.allocate(pageSize))
        assert.strictEqual(yield* Effect.scoped(Effect.map(make(), ({ context }) => context)), memory.context)
        yield* memory.copyToHost(region, yield* AlignedBuffer.make(pageSize))
        assert.deepStrictEqual(stub.alive(), { allocations: 1, pinned: 0, contexts: 1, refusals: 0 })
      }))
  })

  describe("a call that fails", () => {
    const codes = [1, 2, 201, 700, 999, 12_345]
    for (const call of acquires) {
      it.effect(`${call}: there is no service`, () =>
        Effect.gen(function*() {
          for (const code of codes) {
            stub.fail(call, 1, code)
            const error = yield* Effect.flip(life)
            if (error._tag !== "CudaUnavailable") return assert.fail(error._tag)
            assert.strictEqual(error.code, code)
            assert.include(error.message, `${call} failed with ${code === 12_345 ? "an unknown error" : "CUDA_ERROR_"}`)
            assert.deepStrictEqual(stub.alive(), nothing)
          }
        }))
    }

    for (const call of uses) {
      it.effect(`${call}: is told, and nothing is left`, () =>
        Effect.gen(function*() {
          for (const nth of [1, 2]) {
            for (const code of codes) {
              stub.fail(call, nth, code)
              const failed = yield* Effect.either(life)
              stub.reset()
              if (nth === 2 && !/Alloc|Attribute/.test(call)) {
                assert.strictEqual(failed._tag, "Right")
                break
              }
              if (failed._tag === "Right") return assert.fail(`${call} ${nth}`)
              const { left: error } = failed
              if (error._tag !== "CudaFailed") return assert.fail(error._tag)
              assert.deepStrictEqual([error.call, error.code, error.device], [call, code, 0])
            }
          }
          for (const code of codes) {
            stub.fail(call, 1, code)
            yield* Effect.flip(life)
            assert.deepStrictEqual(stub.alive(), nothing)
          }
        }))
    }

    it.effect("on the second of its threads: the first keeps no context", () =>
      Effect.gen(function*() {
        stub.fail("cuCtxSetCurrent", 2, 999)
        const error = yield* Effect.flip(Effect.scoped(make({ threads: 2 })))
        assert.strictEqual(error._tag, "CudaUnavailable")
        assert.deepStrictEqual(stub.alive(), nothing)
      }))

    const releases = [
      ["cuMemFree_v2", { allocations: 1 }],
      ["cuMemHostUnregister", { pinned: 1 }],
      ["cuDevicePrimaryCtxRelease_v2", { contexts: 1 }]
    ] as const
    for (const [call, left] of releases) {
      it.effect(`${call}: is logged, and everything else is released`, () =>
        Effect.gen(function*() {
          const errors: Array<string> = []
          stub.fail(call, 1, 999)
          yield* Effect.provide(life, errorsInto(errors))
          assert.lengthOf(errors, 1)
          assert.include(errors[0], `${call} failed on device 0: CUDA_ERROR_UNKNOWN (999)`)
          assert.deepStrictEqual(stub.alive(), { ...nothing, ...left })
        }))
    }
  })

  describe("an interruption", () => {
    const all = [...acquires, ...uses, "cuMemFree_v2", "cuMemHostUnregister", "cuDevicePrimaryCtxRelease_v2"]
    for (const call of all) {
      it.live(`in ${call} waits for it, and nothing is left`, () =>
        Effect.gen(function*() {
          stub.delay(call, 1, 60)
          const fiber = yield* Effect.fork(life)
          yield* until(`${call} is called`, () => stub.delayed() === 1)
          yield* Fiber.interrupt(fiber)
          assert.strictEqual(stub.delayed(), 0)
          assert.deepStrictEqual(stub.alive(), nothing)
        }))
    }

    it.live("of a copy that waits for a thread does not wait", () =>
      Effect.scoped(Effect.gen(function*() {
        const memory = yield* make()
        const region = yield* DeviceMemory.region(yield* memory.allocate(pageSize))
        const [one, two] = [yield* AlignedBuffer.make(pageSize), yield* AlignedBuffer.make(pageSize)]
        stub.delay("cuMemcpyDtoH_v2", 1, 300)
        const running = yield* Effect.fork(memory.copyToHost(region, one))
        yield* until("the copy runs", () => stub.delayed() === 1)
        const waiting = yield* Effect.fork(memory.copyToHost(region, two))
        yield* until("it waits", () => !alignedBuffer.isIdle(two))
        yield* Fiber.interrupt(waiting)
        assert.isTrue(alignedBuffer.isIdle(two))
        assert.strictEqual(stub.delayed(), 1)
        yield* Fiber.join(running)
        assert.isTrue(alignedBuffer.isIdle(one))
      })))
  })

  describe("copies", () => {
    it.effect("move exactly the bytes that they name", () =>
      Effect.scoped(Effect.gen(function*() {
        const memory = yield* make()
        const size = 5 * pageSize
        const [one, two] = [yield* memory.allocate(size), yield* memory.allocate(size)]
        const whole = yield* AlignedBuffer.make(size)
        const copies = FastCheck.sample(
          FastCheck.record({
            length: FastCheck.integer({ min: 0, max: 2 * pageSize }),
            to: FastCheck.integer({ min: 0, max: 3 * pageSize }),
            on: FastCheck.integer({ min: 0, max: 3 * pageSize })
          }),
          40
        )
        const expected = [pattern(size, 1000), pattern(size, 1001)] as const
        for (const [index, buffer] of [one, two].entries()) {
          whole.bytes.set(expected[index === 0 ? 0 : 1])
          yield* memory.copyToDevice(whole, yield* DeviceMemory.region(buffer))
        }
        for (const [seed, { length, on, to }] of copies.entries()) {
          const host = yield* AlignedBuffer.slice(yield* filled(2 * pageSize, seed), 0, length)
          const source = yield* DeviceMemory.region(one, to, length)
          const target = yield* DeviceMemory.region(two, on, length)
          yield* memory.copyToDevice(host, source)
          yield* memory.copyOnDevice(source, target)
          expected[0].set(host.bytes, to)
          expected[1].set(host.bytes, on)
          host.bytes.fill(0)
          yield* memory.copyToHost(target, host)
          assertBytes(host.bytes, expected[1].subarray(on, on + length), "what came back")
          for (const [index, buffer] of [one, two].entries()) {
            yield* memory.copyToHost(yield* DeviceMemory.region(buffer), whole)
            assertBytes(whole.bytes, expected[index === 0 ? 0 : 1], `all of buffer ${index}`)
          }
        }
        assert.strictEqual(stub.alive().refusals, 0)
      })))

    it.scoped("are within bounds, of one length, and overlap with nothing of their own", () =>
      Effect.gen(function*() {
        const memory = yield* make()
        const buffer = yield* memory.allocate(2 * pageSize)
        const host = yield* AlignedBuffer.make(pageSize)
        for (const [offset, length] of [[-1, 1], [0, 2 * pageSize + 1], [pageSize, pageSize + 1], [0.5, 1], [0, NaN]]) {
          assert.strictEqual((yield* Effect.flip(DeviceMemory.region(buffer, offset, length)))._tag, "OutOfBounds")
        }
        const byHand = { buffer, offset: 1.5 * pageSize, byteLength: pageSize }
        assert.strictEqual((yield* Effect.flip(memory.copyToDevice(host, byHand)))._tag, "OutOfBounds")
        const all = yield* DeviceMemory.region(buffer)
        assert.strictEqual((yield* Effect.flip(memory.copyToDevice(host, all)))._tag, "LengthMismatch")
        assert.strictEqual((yield* Effect.flip(memory.copyToHost(all, host)))._tag, "LengthMismatch")
        const first = yield* DeviceMemory.region(buffer, 0, pageSize)
        assert.strictEqual((yield* Effect.flip(memory.copyOnDevice(all, first)))._tag, "LengthMismatch")
        const middle = yield* DeviceMemory.region(buffer, 1, pageSize)
        assert.strictEqual((yield* Effect.flip(memory.copyOnDevice(first, middle)))._tag, "InvalidOption")
        yield* memory.copyOnDevice(first, yield* DeviceMemory.region(buffer, pageSize))
        for (const length of [0, -1, 1.5, NaN]) {
          assert.strictEqual((yield* Effect.flip(memory.allocate(length)))._tag, "InvalidOption")
        }
        const tooMuch = yield* Effect.flip(memory.allocate(2048 * mebibyte))
        if (tooMuch._tag !== "CudaFailed") return assert.fail(tooMuch._tag)
        assert.strictEqual(tooMuch.name, "CUDA_ERROR_OUT_OF_MEMORY")
        assert.strictEqual(stub.alive().refusals, 0)
      }))

    it.scoped("stay on their device", () =>
      Effect.gen(function*() {
        const [zero, one] = [yield* make(), yield* make({ device: 1 })]
        assert.notStrictEqual(zero.context, one.context)
        const there = yield* DeviceMemory.region(yield* zero.allocate(pageSize))
        const here = yield* DeviceMemory.region(yield* one.allocate(pageSize))
        const host = yield* filled(pageSize, 7)
        for (
          const wrong of [one.copyToDevice(host, there), one.copyToHost(there, host), one.copyOnDevice(there, here)]
        ) {
          const error = yield* Effect.flip(wrong)
          assert.strictEqual(error._tag, "InvalidOption")
          assert.include(error.message, "device 0")
        }
        yield* one.copyToDevice(host, here)
        assert.strictEqual(stub.alive().refusals, 0)
      }))

    it.live("hold their host memory, as I/O does", () =>
      Effect.scoped(Effect.gen(function*() {
        const memory = yield* make({ threads: 3 })
        const region = yield* DeviceMemory.region(yield* memory.allocate(pageSize))
        const host = yield* AlignedBuffer.make(pageSize)
        const tags = (effects: ReadonlyArray<Effect.Effect<void, { readonly _tag: string }>>) =>
          Effect.forEach(effects, (effect) =>
            Effect.match(effect, { onFailure: ({ _tag }) => _tag, onSuccess: () => "done" }))
        const meanwhile = (copy: Effect.Effect<void, { readonly _tag: string }>) =>
          Effect.gen(function*() {
            const running = yield* Effect.fork(copy)
            yield* until("the copy runs", () =>
              stub.delayed() === 1)
            const seen = yield* tags([memory.copyToHost(region, host), memory.copyToDevice(host, region)])
            yield* Fiber.join(running)
            assert.isTrue(alignedBuffer.isIdle(host))
            return seen
          })
        stub.delay("cuMemcpyDtoH_v2", 1, 100)
        assert.deepStrictEqual(yield* meanwhile(memory.copyToHost(region, host)), ["BufferBusy", "BufferBusy"])
        stub.delay("cuMemcpyHtoD_v2", 1, 100)
        assert.deepStrictEqual(yield* meanwhile(memory.copyToDevice(host, region)), ["BufferBusy", "done"])
      })))

    it.live("keep nobody else waiting", () =>
      Effect.scoped(Effect.gen(function*() {
        const memory = yield* make()
        const region = yield* DeviceMemory.region(yield* memory.allocate(pageSize))
        stub.delay("cuMemcpyDtoH_v2", 1, 500)
        const running = yield* Effect.fork(memory.copyToHost(region, yield* AlignedBuffer.make(pageSize)))
        yield* until("the copy runs", () => stub.delayed() === 1)
        for (let turn = 0; turn < 5; turn++) yield* Effect.sleep(5)
        assert.strictEqual(stub.delayed(), 1, "it still runs, and the event loop has turned")
        yield* Fiber.join(running)
      })))
  })

  describe("memory", () => {
    it.live("is freed after the copies in flight, and not used after that", () =>
      Effect.scoped(Effect.gen(function*() {
        const memory = yield* make({ threads: 2 })
        const scope = yield* Scope.make()
        const buffer = yield* Scope.extend(memory.allocate(pageSize), scope)
        const region = yield* DeviceMemory.region(buffer)
        const host = yield* AlignedBuffer.make(pageSize)
        stub.delay("cuMemcpyDtoH_v2", 1, 100)
        const copy = yield* Effect.fork(memory.copyToHost(region, host))
        yield* until("the copy runs", () => stub.delayed() === 1)
        const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
        yield* Effect.yieldNow()
        const late = yield* Effect.flip(memory.copyToDevice(host, region))
        assert.strictEqual(late._tag, "DeviceMemoryFreed")
        assert.strictEqual(stub.alive().allocations, 1)
        yield* Fiber.join(copy)
        yield* Fiber.join(closing)
        assert.deepStrictEqual(stub.alive(), { ...nothing, contexts: 1 })
        for (
          const use of [
            memory.copyToDevice(host, region),
            memory.copyToHost(region, host),
            memory.copyOnDevice(region, region),
            DeviceMemory.withPointer(region, () => Effect.die("a stale pointer"))
          ]
        ) {
          const error = yield* Effect.flip(use)
          assert.strictEqual(error._tag, "DeviceMemoryFreed")
          assert.include(error.message, "4096 bytes of memory of device 0")
        }
      })))

    it.live("is kept while its address is lent", () =>
      Effect.scoped(Effect.gen(function*() {
        const memory = yield* make()
        const scope = yield* Scope.make()
        const buffer = yield* Scope.extend(memory.allocate(2 * pageSize), scope)
        const part = yield* DeviceMemory.region(buffer, 100, 200)
        yield* Effect.forkIn(
          DeviceMemory.withPointer(part, (pointer) => {
            assert.strictEqual(pointer, buffer.pointer + 100n)
            return Effect.never
          }),
          yield* Effect.scope
        )
        const lent = yield* Effect.fork(DeviceMemory.withPointer(part, () => Effect.sleep(50)))
        yield* Effect.sleep(10)
        const closing = yield* Effect.fork(Scope.close(scope, Exit.void))
        yield* Fiber.join(lent)
        assert.strictEqual(stub.alive().allocations, 1)
        assert.isNull(closing.unsafePoll())
      })))
  })

  describe("pinned memory", () => {
    it.scoped("is the buffer's own, whole pages, until its Scope ends", () =>
      Effect.gen(function*() {
        const memory = yield* make()
        const host = yield* AlignedBuffer.make(4 * pageSize)
        const first = yield* AlignedBuffer.slice(host, 0, pageSize + 1)
        const second = yield* AlignedBuffer.slice(host, 2 * pageSize, 4 * pageSize)
        yield* Effect.scoped(Effect.gen(function*() {
          yield* memory.pin(first)
          yield* memory.pin(second)
          yield* memory.pin(yield* AlignedBuffer.slice(host, 0, 0))
          assert.strictEqual(stub.alive().pinned, 2)
          const twice = yield* Effect.flip(Effect.scoped(memory.pin(host)))
          if (twice._tag !== "CudaFailed") return assert.fail(twice._tag)
          assert.strictEqual(twice.code, 712)
          assert.include(twice.message, "pinned already")
        }))
        assert.strictEqual(stub.alive().pinned, 0)
        yield* memory.pin(host)
        assert.strictEqual(stub.alive().pinned, 1)
      }))

    it.scoped("may be that of a pool", () =>
      Effect.gen(function*() {
        const memory = yield* make()
        const pool = yield* AlignedBuffer.pool({ buffers: 4, byteLength: 8 * pageSize })
        const region = yield* DeviceMemory.region(yield* memory.allocate(pool.byteLength))
        const buffers = yield* Effect.replicateEffect(pool.lease, pool.buffers)
        for (const [seed, buffer] of buffers.entries()) {
          yield* memory.pin(buffer)
          buffer.bytes.set(pattern(buffer.byteLength, seed))
        }
        assert.strictEqual(stub.alive().pinned, 4)
        for (const [seed, buffer] of buffers.entries()) {
          yield* memory.copyToDevice(buffer, region)
          buffer.bytes.fill(0)
          yield* memory.copyToHost(region, buffer)
          assertBytes(buffer.bytes, pattern(buffer.byteLength, seed), `buffer ${seed}`)
        }
        assert.strictEqual(stub.alive().refusals, 0)
      }))

    it.live("is unpinned after the copies in flight", () =>
      Effect.scoped(Effect.gen(function*() {
        const memory = yield* make({ threads: 2 })
        const region = yield* DeviceMemory.region(yield* memory.allocate(pageSize))
        const host = yield* AlignedBuffer.make(4 * pageSize)
        const part = yield* AlignedBuffer.slice(host, pageSize, 2 * pageSize)
        const scope = yield* Scope.make()
        yield* Scope.extend(memory.pin(host), scope)
        stub.delay("cuMemcpyHtoD_v2", 1, 100)
        const copy = yield* Effect.fork(memory.copyToDevice(part, region))
        yield* until("the copy runs", () => stub.delayed() === 1)
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual(stub.delayed(), 0)
        yield* Fiber.join(copy)
        assert.deepStrictEqual(stub.alive(), { ...nothing, allocations: 1, contexts: 1 })
      })))
  })

  it.effect("a layer is as good", () =>
    Effect.gen(function*() {
      const program = Effect.flatMap(DeviceMemory.DeviceMemory, (memory) => Effect.scoped(memory.allocate(1)))
      const buffer = yield* Effect.provide(program, DeviceMemory.layer({ library: cuda }))
      assert.strictEqual(buffer.byteLength, 1)
      yield* Effect.scoped(Layer.build(DeviceMemory.layer({ library: cuda, device: 1 })))
      assert.deepStrictEqual(stub.alive(), nothing)
    }))
})
