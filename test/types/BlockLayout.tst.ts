import type * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Either from "effect/Either"
import type * as Layer from "effect/Layer"
import { describe, expect, it } from "tstyche"
import * as BlockLayout from "../../src/BlockLayout.js"
import type * as Errors from "../../src/DiskStorageError.js"
import * as OffloadFilter from "../../src/OffloadFilter.js"

const shape = { numLayers: 32, outerDim: 2, pageSize: 16, innerDim: 1024, dtypeWidthBytes: 2 }
const options = { ...shape, numBlocks: 10 }

describe("layouts", () => {
  it("fail with what can fail", () => {
    type Made = Either.Either<BlockLayout.BlockLayout, Errors.InvalidOption | Errors.LayoutOverflow>
    expect(BlockLayout.fullyContiguous(options)).type.toBe<Made>()
    expect(BlockLayout.layerSeparate({ ...options, outerContiguous: true })).type.toBe<Made>()
    expect(BlockLayout.forCapacity(1, { ...shape, kind: "fullyContiguous" })).type.toBe<
      Either.Either<BlockLayout.BlockLayout, Errors.InvalidOption | Errors.LayoutOverflow | Errors.LayoutDoesNotFit>
    >()
  })

  it("want to be told which form separate layers have", () => {
    expect(BlockLayout.layerSeparate).type.not.toBeCallableWith(options)
    expect(BlockLayout.forCapacity).type.not.toBeCallableWith(1, { ...shape, kind: "layerSeparate" })
    expect(BlockLayout.forCapacity).type.toBeCallableWith(1, {
      ...shape,
      kind: "layerSeparate",
      outerContiguous: false,
      alignment: undefined
    })
  })
})

describe("the filter", () => {
  it("adds no requirement", () => {
    expect(OffloadFilter.OffloadFilter).type.toBe<
      Context.Reference<OffloadFilter.OffloadFilter, OffloadFilter.OffloadFilter>
    >()
    expect(OffloadFilter.OffloadFilter).type.toBeAssignableTo<Effect.Effect<OffloadFilter.OffloadFilter>>()
  })

  it("fails with its options alone", () => {
    expect(OffloadFilter.frequency()).type.toBe<Effect.Effect<OffloadFilter.OffloadFilter, Errors.InvalidOption>>()
    expect(OffloadFilter.layerFrequency({ decayInterval: "1 minute" })).type.toBe<
      Layer.Layer<never, Errors.InvalidOption>
    >()
  })
})
