/** Where regions lie, by tables computed by hand and by what holds for every shape. */
import { assert, describe, it } from "@effect/vitest"
import * as Either from "effect/Either"
import * as FastCheck from "effect/FastCheck"
import * as BlockLayout from "../src/BlockLayout.js"
import { IndexOutOfBounds, InvalidOption, LayoutDoesNotFit, LayoutOverflow } from "../src/DiskStorageError.js"

const right = <A, E>(either: Either.Either<A, E>): A => Either.getOrThrowWith(either, (error) => error)
const left = <A, E>(either: Either.Either<A, E>): E => Either.getOrThrow(Either.flip(either))

/** The sizes of a layout, in the order of its interface. */
const sizes = (layout: BlockLayout.BlockLayout) => ({
  regionBytes: layout.regionBytes,
  layerBytes: layout.layerBytes,
  blockBytes: layout.blockBytes,
  blockStride: layout.blockStride,
  layerStride: layout.layerStride,
  outerStride: layout.outerStride,
  blockPaddedBytes: layout.blockPaddedBytes,
  totalBytes: layout.totalBytes,
  regions: layout.regions,
  extentsPerBlock: layout.extentsPerBlock
})

/** Llama 3.1 8B: 32 layers, 8 KV heads × 128, fp16, 16 tokens. */
const llama = { numLayers: 32, outerDim: 2, pageSize: 16, innerDim: 8 * 128, dtypeWidthBytes: 2 }

/** DeepSeek-V3: 61 layers, one latent vector of 512 + 64, bf16, 64 tokens. */
const deepSeek = { numLayers: 61, outerDim: 1, pageSize: 64, innerDim: 576, dtypeWidthBytes: 2 }

/** Small and odd, so that every padding shows: 3 layers, K and V, 5 tokens of 7 elements of 3 bytes. */
const odd = { numLayers: 3, outerDim: 2, pageSize: 5, innerDim: 7, dtypeWidthBytes: 3 }

describe("fullyContiguous", () => {
  it("Llama 3.1 8B fills whole pages: nothing is padded", () => {
    const layout = right(BlockLayout.fullyContiguous({ ...llama, numBlocks: 1000 }))
    assert.deepStrictEqual(sizes(layout), {
      regionBytes: 32_768, // 16 × 1024 × 2
      layerBytes: 65_536, // 2 × 32,768
      blockBytes: 2_097_152, // 32 × 65,536
      blockStride: 2_097_152, // 512 × 4096
      layerStride: 65_536,
      outerStride: 32_768,
      blockPaddedBytes: 2_097_152,
      totalBytes: 2_097_152_000, // 1000 × 2,097,152
      regions: 64_000, // 1000 × 32 × 2
      extentsPerBlock: 1
    })
    // 999 × 2,097,152 + 31 × 65,536 + 1 × 32,768 = 2,095,054,848 + 2,031,616 + 32,768
    assert.deepStrictEqual(right(layout.region({ block: 999, layer: 31, outer: 1 })), {
      offset: 2_097_119_232,
      length: 32_768
    })
    assert.deepStrictEqual(right(layout.block(999)), [{ offset: 2_095_054_848, length: 2_097_152 }])
    // 31 × 65,536 + 32,768
    assert.deepStrictEqual(right(layout.regionInBlock({ layer: 31, outer: 1 })), { offset: 2_064_384, length: 32_768 })
  })

  it("Llama 3.1 70B in fp8 on 64 KiB: 80 layers of 8 × 128", () => {
    const layout = right(BlockLayout.fullyContiguous({
      numBlocks: 10,
      numLayers: 80,
      outerDim: 2,
      pageSize: 16,
      innerDim: 1024,
      dtypeWidthBytes: 1,
      alignment: 65_536
    }))
    assert.deepStrictEqual(sizes(layout), {
      regionBytes: 16_384, // 16 × 1024 × 1
      layerBytes: 32_768,
      blockBytes: 2_621_440, // 80 × 32,768
      blockStride: 2_621_440, // 40 × 65,536
      layerStride: 32_768,
      outerStride: 16_384,
      blockPaddedBytes: 2_621_440,
      totalBytes: 26_214_400,
      regions: 1600,
      extentsPerBlock: 1
    })
  })

  it("DeepSeek-V3 with a latent vector, on 4 KiB and on 64 KiB", () => {
    const layout = right(BlockLayout.fullyContiguous({ ...deepSeek, numBlocks: 100 }))
    assert.deepStrictEqual(sizes(layout), {
      regionBytes: 73_728, // 64 × 576 × 2
      layerBytes: 73_728, // 1 × 73,728
      blockBytes: 4_497_408, // 61 × 73,728
      blockStride: 4_497_408, // 1098 × 4096
      layerStride: 73_728,
      outerStride: 73_728,
      blockPaddedBytes: 4_497_408,
      totalBytes: 449_740_800,
      regions: 6100,
      extentsPerBlock: 1
    })
    const coarse = right(BlockLayout.fullyContiguous({ ...deepSeek, numBlocks: 100, alignment: 65_536 }))
    // 4,497,408 / 65,536 = 68.6…, so 69 × 65,536 = 4,521,984
    assert.strictEqual(coarse.blockStride, 4_521_984)
    assert.strictEqual(coarse.blockBytes, 4_497_408)
    assert.strictEqual(coarse.totalBytes, 452_198_400)
    // 7 × 4,521,984 + 60 × 73,728 = 31,653,888 + 4,423,680
    assert.deepStrictEqual(right(coarse.region({ block: 7, layer: 60, outer: 0 })), {
      offset: 36_077_568,
      length: 73_728
    })
  })

  it("an odd width: padding after the block, none within", () => {
    const layout = right(BlockLayout.fullyContiguous({ ...odd, numBlocks: 4, alignment: 512 }))
    assert.deepStrictEqual(sizes(layout), {
      regionBytes: 105, // 5 × 7 × 3
      layerBytes: 210, // 2 × 105
      blockBytes: 630, // 3 × 210
      blockStride: 1024, // 2 × 512
      layerStride: 210,
      outerStride: 105,
      blockPaddedBytes: 1024,
      totalBytes: 4096,
      regions: 24, // 4 × 3 × 2
      extentsPerBlock: 1
    })
    // 3 × 1024 + 2 × 210 + 105
    assert.deepStrictEqual(right(layout.region({ block: 3, layer: 2, outer: 1 })), { offset: 3597, length: 105 })
    assert.deepStrictEqual(right(layout.block(3)), [{ offset: 3072, length: 1024 }])
    assert.strictEqual(right(BlockLayout.fullyContiguous({ ...odd, numBlocks: 4, alignment: 1 })).totalBytes, 2520)
    // the default
    assert.strictEqual(right(BlockLayout.fullyContiguous({ ...odd, numBlocks: 4 })).blockStride, 4096)
  })
})

describe("layerSeparate", () => {
  it("block-contiguous: a layer has all its blocks, K beside V", () => {
    const layout = right(BlockLayout.layerSeparate({ ...llama, numBlocks: 1000, outerContiguous: false }))
    assert.deepStrictEqual(sizes(layout), {
      regionBytes: 32_768,
      layerBytes: 65_536,
      blockBytes: 2_097_152,
      blockStride: 65_536, // outer × region, 16 × 4096
      layerStride: 65_536_000, // 1000 × 65,536
      outerStride: 32_768,
      blockPaddedBytes: 2_097_152, // 32 × 65,536
      totalBytes: 2_097_152_000,
      regions: 64_000,
      extentsPerBlock: 32
    })
    // 7 × 65,536 + 3 × 65,536,000 + 32,768 = 458,752 + 196,608,000 + 32,768
    assert.deepStrictEqual(right(layout.region({ block: 7, layer: 3, outer: 1 })), {
      offset: 197_099_520,
      length: 32_768
    })
    const extents = right(layout.block(7))
    assert.strictEqual(extents.length, 32)
    assert.deepStrictEqual(extents[0], { offset: 458_752, length: 65_536 })
    assert.deepStrictEqual(extents[3], { offset: 197_066_752, length: 65_536 }) // 458,752 + 196,608,000
  })

  it("outer-contiguous: a layer has all its K, then all its V", () => {
    const layout = right(BlockLayout.layerSeparate({ ...llama, numBlocks: 1000, outerContiguous: true }))
    assert.deepStrictEqual(sizes(layout), {
      regionBytes: 32_768,
      layerBytes: 65_536,
      blockBytes: 2_097_152,
      blockStride: 32_768, // a region, 8 × 4096
      layerStride: 65_536_000, // 2 × 32,768,000
      outerStride: 32_768_000, // 1000 × 32,768
      blockPaddedBytes: 2_097_152, // 64 × 32,768
      totalBytes: 2_097_152_000,
      regions: 64_000,
      extentsPerBlock: 64
    })
    // 7 × 32,768 + 3 × 65,536,000 + 32,768,000 = 229,376 + 196,608,000 + 32,768,000
    assert.deepStrictEqual(right(layout.region({ block: 7, layer: 3, outer: 1 })), {
      offset: 229_605_376,
      length: 32_768
    })
    assert.deepStrictEqual(right(layout.block(7))[7], { offset: 229_605_376, length: 32_768 }) // 3 × 2 + 1
    assert.deepStrictEqual(right(layout.regionInBlock({ layer: 3, outer: 1 })), { offset: 229_376, length: 32_768 }) // 7 × 32,768
  })

  it("an odd width: padding per layer, or per layer and outer index", () => {
    const block = right(BlockLayout.layerSeparate({ ...odd, numBlocks: 4, outerContiguous: false, alignment: 512 }))
    assert.deepStrictEqual(sizes(block), {
      regionBytes: 105,
      layerBytes: 210,
      blockBytes: 630,
      blockStride: 512, // 210 padded
      layerStride: 2048, // 4 × 512
      outerStride: 105,
      blockPaddedBytes: 1536, // 3 × 512
      totalBytes: 6144, // 4 × 1536
      regions: 24,
      extentsPerBlock: 3
    })
    // 1 × 512 + 2 × 2048 + 105
    assert.deepStrictEqual(right(block.region({ block: 1, layer: 2, outer: 1 })), { offset: 4713, length: 105 })
    assert.deepStrictEqual(right(block.block(1)), [
      { offset: 512, length: 512 },
      { offset: 2560, length: 512 }, // 2048 + 512
      { offset: 4608, length: 512 } // 4096 + 512
    ])
    assert.deepStrictEqual(right(block.regionInBlock({ layer: 2, outer: 1 })), { offset: 1129, length: 105 }) // 2 × 512 + 105

    const outer = right(BlockLayout.layerSeparate({ ...odd, numBlocks: 4, outerContiguous: true, alignment: 512 }))
    assert.deepStrictEqual(sizes(outer), {
      regionBytes: 105,
      layerBytes: 210,
      blockBytes: 630,
      blockStride: 512, // 105 padded
      layerStride: 4096, // 2 × 2048
      outerStride: 2048, // 4 × 512
      blockPaddedBytes: 3072, // 6 × 512
      totalBytes: 12_288, // 4 × 3072
      regions: 24,
      extentsPerBlock: 6
    })
    // 1 × 512 + 2 × 4096 + 2048
    assert.deepStrictEqual(right(outer.region({ block: 1, layer: 2, outer: 1 })), { offset: 10_752, length: 105 })
    assert.deepStrictEqual(right(outer.block(1)).map(({ offset }) => offset), [512, 2560, 4608, 6656, 8704, 10_752])
    assert.deepStrictEqual(right(outer.regionInBlock({ layer: 2, outer: 1 })), { offset: 2560, length: 105 }) // 5 × 512
  })

  it("with one outer index, both forms lie alike", () => {
    const forms = [true, false].map((outerContiguous) =>
      right(BlockLayout.layerSeparate({ ...deepSeek, numBlocks: 9, outerContiguous, alignment: 65_536 }))
    )
    for (const layout of forms) {
      // 73,728 on 64 KiB: 2 × 65,536 = 131,072 for each of 61 layers
      assert.strictEqual(layout.blockPaddedBytes, 7_995_392)
      assert.strictEqual(layout.totalBytes, 71_958_528)
      // 8 × 131,072 + 60 × 9 × 131,072 = 548 × 131,072
      assert.strictEqual(right(layout.region({ block: 8, layer: 60, outer: 0 })).offset, 71_827_456)
    }
  })
})

describe("forCapacity", () => {
  it("is exact at its boundaries, padding included", () => {
    const kinds = [
      [{ kind: "fullyContiguous" }, 1024],
      [{ kind: "layerSeparate", outerContiguous: false }, 1536],
      [{ kind: "layerSeparate", outerContiguous: true }, 3072]
    ] as const
    for (const [kind, padded] of kinds) {
      const blocks = (bytes: number) =>
        right(BlockLayout.forCapacity(bytes, { ...odd, ...kind, alignment: 512 })).numBlocks
      assert.strictEqual(blocks(padded), 1)
      assert.strictEqual(blocks(2 * padded - 1), 1)
      assert.strictEqual(blocks(2 * padded), 2)
      assert.deepStrictEqual(
        left(BlockLayout.forCapacity(padded - 1, { ...odd, ...kind, alignment: 512 })),
        new LayoutDoesNotFit({ needed: padded, available: padded - 1 })
      )
    }
  })

  it("of a terabyte and of all that can be counted", () => {
    const shape = { ...llama, kind: "fullyContiguous" } as const
    // 10^12 / 2,097,152 = 476,837.1…
    assert.strictEqual(right(BlockLayout.forCapacity(1e12, shape)).numBlocks, 476_837)
    // (2^53 − 1) / 2^21, less the part of a block: 2^32 − 1
    assert.strictEqual(right(BlockLayout.forCapacity(Number.MAX_SAFE_INTEGER, shape)).numBlocks, 4_294_967_295)
    // 2^53 − 1 is 6361 × 69431 × 20394401: a divisor is met exactly, and one byte less is a block less
    const bytes = { numLayers: 1, outerDim: 1, pageSize: 1, innerDim: 6361, dtypeWidthBytes: 1, alignment: 1 }
    const count = (capacity: number) =>
      right(BlockLayout.forCapacity(capacity, { ...bytes, kind: "fullyContiguous" })).numBlocks
    assert.strictEqual(count(Number.MAX_SAFE_INTEGER), 1_416_003_655_831) // 69,431 × 20,394,401
    assert.strictEqual(count(Number.MAX_SAFE_INTEGER - 1), 1_416_003_655_830)
  })

  it("keeps the options and the kind", () => {
    const layout = right(BlockLayout.forCapacity(1e9, { ...odd, kind: "layerSeparate", outerContiguous: true }))
    const same = right(BlockLayout.layerSeparate({ ...odd, numBlocks: layout.numBlocks, outerContiguous: true }))
    assert.deepStrictEqual(sizes(layout), sizes(same))
    assert.strictEqual(layout.kind, "layerSeparate")
    assert.isTrue(layout.outerContiguous)
    assert.include(layout, { ...odd, alignment: 4096 })
  })
})

describe("what is not taken", () => {
  const options = { ...odd, numBlocks: 4 }

  it.each(
    (["numBlocks", "numLayers", "outerDim", "pageSize", "innerDim", "dtypeWidthBytes", "alignment"] as const).flatMap(
      (option) => [0, -1, 1.5, NaN, Infinity, -Infinity, 2 ** 53].map((value) => [option, value] as const)
    )
  )("%s = %d", (option, value) => {
    const made = [
      BlockLayout.fullyContiguous({ ...options, [option]: value }),
      BlockLayout.layerSeparate({ ...options, outerContiguous: true, [option]: value }),
      ...(option === "numBlocks"
        ? []
        : [BlockLayout.forCapacity(1e6, { ...options, kind: "fullyContiguous", [option]: value })])
    ]
    for (const either of made) {
      const error = left(either)
      assert.instanceOf(error, InvalidOption)
      assert.strictEqual(error.option, option)
      assert.strictEqual(error.value, String(value))
    }
  })

  it("other outer dimensions, alignments and capacities", () => {
    for (const outerDim of [3, 4]) {
      assert.strictEqual(left(BlockLayout.fullyContiguous({ ...options, outerDim }))._tag, "InvalidOption")
    }
    for (const alignment of [3, 1000, 4095, 4097, Number.MAX_SAFE_INTEGER]) {
      assert.strictEqual(left(BlockLayout.fullyContiguous({ ...options, alignment }))._tag, "InvalidOption")
    }
    for (const bytes of [0, -1, 0.5, NaN, Infinity, 2 ** 53]) {
      assert.strictEqual(
        left(BlockLayout.forCapacity(bytes, { ...odd, kind: "fullyContiguous" }))._tag,
        "InvalidOption"
      )
    }
  })

  it("kinds that a program without types names", () => {
    const parse = (text: string): BlockLayout.LayoutKind => JSON.parse(text)
    for (
      const [text, option] of [["{\"kind\":\"layerwise\"}", "kind"], [
        "{\"kind\":\"layerSeparate\"}",
        "outerContiguous"
      ]] as const
    ) {
      const error = left(BlockLayout.forCapacity(1e9, { ...odd, ...parse(text) }))
      assert.instanceOf(error, InvalidOption)
      assert.strictEqual(error.option, option)
    }
  })

  it("sizes above 2^53 − 1, each by its name", () => {
    const one = { numBlocks: 1, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: 1, dtypeWidthBytes: 1, alignment: 1 }
    const max = Number.MAX_SAFE_INTEGER
    const half = 2 ** 52
    const quantity = (changes: Partial<typeof one>) => {
      const error = left(BlockLayout.layerSeparate({ ...one, ...changes, outerContiguous: true }))
      assert.instanceOf(error, LayoutOverflow)
      assert.isAbove(error.bytes, max)
      return error.quantity
    }
    assert.strictEqual(quantity({ pageSize: half, innerDim: 2 }), "regionBytes")
    assert.strictEqual(quantity({ pageSize: max, innerDim: max, dtypeWidthBytes: max }), "regionBytes")
    assert.strictEqual(quantity({ innerDim: half, dtypeWidthBytes: 2 }), "regionBytes")
    assert.strictEqual(quantity({ innerDim: half, outerDim: 2 }), "layerBytes")
    assert.strictEqual(quantity({ innerDim: half, numLayers: 2 }), "blockBytes")
    assert.strictEqual(quantity({ innerDim: half + 1, alignment: half }), "blockStride")
    assert.strictEqual(quantity({ numLayers: 2, alignment: half }), "blockPaddedBytes")
    assert.strictEqual(quantity({ numBlocks: 2, alignment: half }), "totalBytes")
    assert.strictEqual(right(BlockLayout.fullyContiguous({ ...one, innerDim: max })).totalBytes, max)
    assert.strictEqual(right(BlockLayout.fullyContiguous({ ...one, numBlocks: max })).totalBytes, max)
  })

  it("indices of nothing", () => {
    const layouts = [
      right(BlockLayout.fullyContiguous(options)),
      right(BlockLayout.layerSeparate({ ...options, outerContiguous: false })),
      right(BlockLayout.layerSeparate({ ...options, outerContiguous: true }))
    ]
    for (const layout of layouts) {
      for (const [what, count] of [["block", 4], ["layer", 3], ["outer", 2]] as const) {
        for (const index of [-1, count, 0.5, NaN, Infinity, 2 ** 53]) {
          const error = new IndexOutOfBounds({ what, index, count })
          assert.deepStrictEqual(left(layout.region({ block: 0, layer: 0, outer: 0, [what]: index })), error)
          if (what === "block") assert.deepStrictEqual(left(layout.block(index)), error)
          else assert.deepStrictEqual(left(layout.regionInBlock({ layer: 0, outer: 0, [what]: index })), error)
        }
      }
    }
  })
})

describe("properties", () => {
  const shape = {
    numLayers: FastCheck.integer({ min: 1, max: 5 }),
    outerDim: FastCheck.integer({ min: 1, max: 2 }),
    pageSize: FastCheck.integer({ min: 1, max: 9 }),
    innerDim: FastCheck.integer({ min: 1, max: 600 }),
    dtypeWidthBytes: FastCheck.integer({ min: 1, max: 5 }),
    alignment: FastCheck.constantFrom(1, 2, 64, 512, 4096, 65_536)
  }
  const kind = FastCheck.constantFrom<Array<BlockLayout.LayoutKind>>(
    { kind: "fullyContiguous" },
    { kind: "layerSeparate", outerContiguous: false },
    { kind: "layerSeparate", outerContiguous: true }
  )
  const make = (options: BlockLayout.BlockLayoutOptions, kind: BlockLayout.LayoutKind) =>
    right(
      kind.kind === "fullyContiguous"
        ? BlockLayout.fullyContiguous(options)
        : BlockLayout.layerSeparate({ ...options, outerContiguous: kind.outerContiguous })
    )
  const assertApart = (extents: ReadonlyArray<BlockLayout.Extent>, totalBytes: number) => {
    let end = 0
    for (const { length, offset } of [...extents].sort((a, b) => a.offset - b.offset)) {
      assert.isAtLeast(offset, end)
      end = offset + length
    }
    assert.isAtMost(end, totalBytes)
  }

  it.prop(
    "regions and blocks lie apart, within the whole, aligned, and regions within their block",
    { options: FastCheck.record({ ...shape, numBlocks: FastCheck.integer({ min: 1, max: 6 }) }), kind },
    ({ kind, options }) => {
      const layout = make(options, kind)
      const regions: Array<BlockLayout.Extent> = []
      const pieces: Array<BlockLayout.Extent> = []
      for (let block = 0; block < options.numBlocks; block++) {
        const extents = right(layout.block(block))
        assert.strictEqual(extents.length, layout.extentsPerBlock)
        assert.strictEqual(extents.reduce((sum, { length }) => sum + length, 0), layout.blockPaddedBytes)
        pieces.push(...extents)
        const inBlock: Array<BlockLayout.Extent> = []
        for (let layer = 0; layer < options.numLayers; layer++) {
          for (let outer = 0; outer < options.outerDim; outer++) {
            const region = right(layout.region({ block, layer, outer }))
            const local = right(layout.regionInBlock({ layer, outer }))
            assert.strictEqual(region.length, layout.regionBytes)
            assert.strictEqual(local.length, layout.regionBytes)
            regions.push(region)
            inBlock.push(local)
            // A block's extents laid end to end: the region is at `local` of them.
            const extent = extents[Math.floor(local.offset / layout.blockStride)]
            assert.isDefined(extent)
            assert.strictEqual(extent.offset + local.offset % layout.blockStride, region.offset)
            assert.isAtMost(region.offset + region.length, extent.offset + extent.length)
          }
        }
        assertApart(inBlock, layout.blockPaddedBytes)
      }
      assert.strictEqual(regions.length, layout.regions)
      assertApart(regions, layout.totalBytes)
      assertApart(pieces, layout.totalBytes)
      for (const { length, offset } of pieces) {
        assert.strictEqual(offset % options.alignment, 0)
        assert.strictEqual(length % options.alignment, 0)
      }
      assert.strictEqual(pieces.reduce((sum, { length }) => sum + length, 0), layout.totalBytes)
    },
    { fastCheck: { numRuns: 500 } }
  )

  it.prop(
    "forCapacity holds as many blocks as there can be",
    {
      shape: FastCheck.record(shape),
      kind,
      bytes: FastCheck.oneof(FastCheck.integer({ min: 1, max: 10_000_000 }), FastCheck.maxSafeNat())
    },
    ({ bytes, kind, shape }) => {
      const made = BlockLayout.forCapacity(Math.max(bytes, 1), { ...shape, ...kind })
      if (Either.isRight(made)) {
        const { numBlocks, totalBytes } = made.right
        assert.isAtMost(totalBytes, bytes)
        const more = kind.kind === "fullyContiguous"
          ? BlockLayout.fullyContiguous({ ...shape, numBlocks: numBlocks + 1 })
          : BlockLayout.layerSeparate({ ...shape, numBlocks: numBlocks + 1, outerContiguous: kind.outerContiguous })
        if (Either.isRight(more)) assert.isAbove(more.right.totalBytes, bytes)
        else assert.strictEqual(more.left._tag, "LayoutOverflow")
      } else {
        assert.strictEqual(made.left._tag, "LayoutDoesNotFit")
        assert.isAbove(make({ ...shape, numBlocks: 1 }, kind).totalBytes, bytes)
      }
    },
    { fastCheck: { numRuns: 1000 } }
  )
})
