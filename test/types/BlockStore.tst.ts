import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import { describe, expect, it } from "tstyche"
import type * as BlockLayout from "../../src/BlockLayout.js"
import * as BlockStore from "../../src/BlockStore.js"
import type * as DiskStorage from "../../src/DiskStorage.js"
import type * as Errors from "../../src/DiskStorageError.js"
import type * as IoEngine from "../../src/IoEngine.js"

declare const storage: DiskStorage.DiskStorage
declare const store: BlockStore.BlockStore

type Wrong = Errors.InvalidBlock | Errors.InvalidOption

describe("a block store", () => {
  it("is made with what can fail", () => {
    expect(BlockStore.make([storage], { blockBytes: 1 })).type.toBe<
      Effect.Effect<BlockStore.BlockStore, Errors.InvalidOption | Errors.BufferUnavailable, Scope.Scope>
    >()
  })

  it("fails in batches as a whole for what is no batch alone", () => {
    expect(store.offload([])).type.toBe<
      Effect.Effect<IoEngine.Results<Errors.OffloadError, BlockStore.Offloaded>, Errors.InvalidOption>
    >()
    expect(store.onboard([])).type.toBe<
      Effect.Effect<IoEngine.Results<Errors.OnboardError>, Errors.InvalidOption>
    >()
    expect<Stream.Stream.Error<ReturnType<typeof store.offloadStream<"upstream", never>>>>().type.toBe<
      "upstream" | Errors.InvalidOption
    >()
  })

  it("refuses what is no hash with the same error everywhere", () => {
    expect(store.match([])).type.toBe<Effect.Effect<number, Wrong>>()
    expect(store.touch([])).type.toBe<Effect.Effect<number, Wrong>>()
    expect(store.remove([])).type.toBe<Effect.Effect<number, Wrong>>()
    expect(store.has(1n)).type.toBe<Effect.Effect<boolean, Errors.InvalidBlock>>()
    expect(store.lease(1n)).type.toBe<
      Effect.Effect<BlockStore.Lease, Errors.BlockNotFound | Errors.InvalidBlock, Scope.Scope>
    >()
    expect(store.leasePrefix([])).type.toBe<Effect.Effect<ReadonlyArray<BlockStore.Lease>, Wrong, Scope.Scope>>()
  })
})

describe("a layout", () => {
  it("has indices that can be wrong in two ways", () => {
    expect<Errors.IndexOutOfBounds | Errors.InvalidOption>().type.toBeAssignableFrom<
      Effect.Effect.Error<ReturnType<BlockLayout.BlockLayout["region"]>>
    >()
  })
})
