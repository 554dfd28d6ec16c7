/** A program on a service on a storage, wired once, at the edge. Run it: `node --import tsx examples/as-a-layer.ts` */
import { AlignedBuffer, DiskStorage, DiskStorageConfig, Linux, ProcessRuntime } from "effect-disk-storage"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { resolved } from "./directory.js"
import * as Slots from "./slots.js"

const slotBytes = 64 * 1024

// In consts: each call of a layer function makes another file.
const StorageLayer = DiskStorage.layerConfig(
  DiskStorageConfig.options({ blockBytes: slotBytes, size: 1000 * slotBytes })
)
const MainLayer = Slots.layer(slotBytes).pipe(Layer.provide(StorageLayer), Layer.provide(Linux.layer))

const program = Effect.gen(function*() {
  const slots = yield* Slots.Slots
  const block = yield* AlignedBuffer.make(slotBytes)
  for (let slot = 0; slot < slots.count; slot++) {
    block.bytes.fill(slot)
    yield* slots.put(slot, block)
  }
  yield* slots.get(42, block)
  yield* Console.log(`${slots.count} slots written; slot 42 holds ${block.bytes[0]}`)
})

const printDirectory = DiskStorageConfig.directory.pipe(
  Effect.flatMap(resolved),
  Effect.flatMap((directory) => Console.log(`directory: ${directory}`))
)

// Before the storage is made, so that it is known where to look when that fails.
Effect.zipRight(printDirectory, Effect.provide(program, MainLayer)).pipe(ProcessRuntime.runMain)
