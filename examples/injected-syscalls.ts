/**
 * The same service over the simulated kernel: no disk, no root, and every failure on demand. Run it:
 * `node --import tsx examples/injected-syscalls.ts`
 */
import { AlignedBuffer, DiskStorage, IoEngine, SimulatedSyscalls } from "effect-disk-storage"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { strict as assert } from "node:assert"
import * as Slots from "./slots.js"

const slotBytes = 4096

/** The wiring of the program, down to the kernel, which is another one, with a filesystem that has no fallocate. */
const KernelLayer = Layer.provideMerge(IoEngine.layerSyscalls, SimulatedSyscalls.layer({ profile: "ext2" }))
const StorageLayer = DiskStorage.layer({ size: 10 * slotBytes, fallback: "zero-fill" })
const TestLayer = Slots.layer(slotBytes).pipe(Layer.provide(StorageLayer), Layer.provideMerge(KernelLayer))

const failedWriteLeavesAnEmptySlot = Effect.gen(function*() {
  const kernel = yield* SimulatedSyscalls.SimulatedKernel
  const slots = yield* Slots.Slots
  const block = yield* AlignedBuffer.make(slotBytes)
  yield* slots.put(3, block)
  // The zero-fill was the first write, the put above the second; the next one meets a bad sector.
  yield* kernel.inject({ syscall: "pwrite", nth: 3, outcome: { _tag: "Fail", code: "EIO" } })
  const failed = yield* Effect.flip(slots.put(3, block))
  assert.equal(failed._tag, "IoFailed")
  const empty = yield* Effect.flip(slots.get(3, block))
  assert.equal(empty._tag, "SlotEmpty")
  yield* Console.log(`a failed write leaves an empty slot: ${failed.message}`)
}).pipe(Effect.provide(TestLayer))

const nothingLeaks = Effect.gen(function*() {
  const kernel = yield* SimulatedSyscalls.SimulatedKernel
  const use = Effect.flatMap(Slots.Slots, (slots) => Console.log(`${slots.count} slots, used and released`))
  yield* Effect.provide(use, Layer.provide(Slots.layer(slotBytes), StorageLayer))
  assert.deepEqual(yield* kernel.leaks, { fds: [], files: [], bytes: 0, mappings: 0 })
  yield* Console.log("nothing leaks: no descriptor, no file, no block")
}).pipe(Effect.provide(KernelLayer))

Effect.runPromise(Effect.zipRight(failedWriteLeavesAnEmptySlot, nothingLeaks)).catch((error: unknown) => {
  console.error(error)
  process.exitCode = 1
})
