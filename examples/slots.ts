/** A service that stands on a disk storage: numbered slots of one size. A slot whose write failed is empty. */
import { DiskStorage } from "effect-disk-storage"
import type { AlignedBuffer, DiskStorageError } from "effect-disk-storage"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

export class SlotEmpty extends Data.TaggedError("SlotEmpty")<{ readonly slot: number }> {}

export class Slots extends Context.Tag("examples/Slots")<Slots, {
  readonly count: number
  readonly put: (
    slot: number,
    from: AlignedBuffer.AlignedBuffer
  ) => Effect.Effect<void, DiskStorageError.TransferError>
  readonly get: (
    slot: number,
    into: AlignedBuffer.AlignedBuffer
  ) => Effect.Effect<void, DiskStorageError.TransferError | SlotEmpty>
}>() {}

/** `slotBytes`: a multiple of 4096, so that slots are aligned on every storage. */
export const layer = (slotBytes: number): Layer.Layer<Slots, never, DiskStorage.DiskStorage> =>
  Layer.effect(
    Slots,
    Effect.map(DiskStorage.DiskStorage, (storage) => {
      const written = new Set<number>()
      return {
        count: Math.floor(storage.size / slotBytes),
        put: (slot, from) =>
          Effect.sync(() => written.delete(slot)).pipe(
            Effect.zipRight(storage.write(slot * slotBytes, from)),
            Effect.tap(() => {
              written.add(slot)
            })
          ),
        get: (slot, into) =>
          Effect.gen(function*() {
            if (!written.has(slot)) return yield* new SlotEmpty({ slot })
            yield* storage.read(slot * slotBytes, into)
          })
      }
    })
  )
