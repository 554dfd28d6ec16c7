import type * as KeyValueStore from "@effect/platform/KeyValueStore"
import type * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { describe, expect, it } from "tstyche"
import type * as BlockStore from "../../src/BlockStore.js"
import type * as Errors from "../../src/DiskStorageError.js"
import * as DiskKeyValueStore from "../../src/KeyValueStore.js"

describe("the key-value store", () => {
  type Failure = Errors.BufferUnavailable | Errors.InvalidOption

  it("is the platform's, needs a block store, and fails for its buffers and options", () => {
    expect(DiskKeyValueStore.make()).type.toBe<
      Effect.Effect<KeyValueStore.KeyValueStore, Failure, BlockStore.BlockStore | Scope.Scope>
    >()
    expect(DiskKeyValueStore.layer()).type.toBe<
      Layer.Layer<KeyValueStore.KeyValueStore, Failure, BlockStore.BlockStore>
    >()
    expect(DiskKeyValueStore.layer()).type.toBeAssignableTo<
      Layer.Layer<Layer.Layer.Success<typeof KeyValueStore.layerMemory>, Failure, BlockStore.BlockStore>
    >()
  })

  it("knows its options", () => {
    expect(DiskKeyValueStore.make).type.toBeCallableWith({ concurrency: undefined })
    expect(DiskKeyValueStore.make).type.not.toBeCallableWith({ buffers: 4 })
    expect(DiskKeyValueStore.layer).type.not.toBeCallableWith({ concurrency: "4" })
  })
})
