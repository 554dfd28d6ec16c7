/**
 * Where the regions of KV blocks lie in a file. A block holds the keys and values of `pageSize` tokens; a region is what one layer
 * keeps of one of the two. The arithmetic only: nothing is allocated, read or written.
 *
 * The two kinds are those of Dynamo's KV block manager (`lib/llm/src/block_manager/layout.rs`): the same shapes, and strides padded
 * at the same place. Two things differ, because the bytes are a file's: offsets count from 0, which is aligned, so there is no base
 * offset; and the padding of the last block belongs to the layout, so that every block can be transferred whole.
 *
 * @since 0.1.0
 */
import * as Either from "effect/Either"
import {
  IndexOutOfBounds,
  type InvalidOption,
  LayoutDoesNotFit,
  type LayoutError,
  LayoutOverflow
} from "./DiskStorageError.js"
import * as argument from "./internal/arguments.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = Symbol.for("effect-disk-storage/BlockLayout")

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * What one block holds, and how it is padded. All are whole numbers from 1.
 *
 * @since 0.1.0
 * @category models
 */
export interface BlockShape {
  readonly numLayers: number
  /** 2 where keys and values are apart; 1 where one latent vector stands for both (MLA). */
  readonly outerDim: number
  /** Tokens per block. */
  readonly pageSize: number
  /** Elements per token, layer and outer index: heads of K or V × head size, or the size of the latent vector. */
  readonly innerDim: number
  /** Bytes per element: 2 for fp16 and bf16, 1 for fp8. */
  readonly dtypeWidthBytes: number
  /** Bytes, a power of two; what is transferred as one piece begins and ends at multiples of it. Default 4096. */
  readonly alignment?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface BlockLayoutOptions extends BlockShape {
  readonly numBlocks: number
}

/**
 * The order of a layer's regions: `false` is blocks × outer × page × inner, `true` is outer × blocks × page × inner. There is no
 * default: both need the same bytes (but for the padding), so the wrong one is not noticed until K and V are swapped.
 *
 * @since 0.1.0
 * @category models
 */
export interface LayerSeparateOptions {
  readonly outerContiguous: boolean
}

/**
 * A kind, with what it needs to be known.
 *
 * @since 0.1.0
 * @category models
 */
export type LayoutKind =
  | { readonly kind: "fullyContiguous" }
  | ({ readonly kind: "layerSeparate" } & LayerSeparateOptions)

/**
 * Bytes `offset` to `offset + length`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Extent {
  readonly offset: number
  readonly length: number
}

/**
 * All sizes, strides and offsets are bytes. The methods are pure and take constant time, but for `block`, whose time is that of
 * its `extentsPerBlock` extents.
 *
 * @since 0.1.0
 * @category models
 */
export interface BlockLayout extends Required<BlockLayoutOptions> {
  readonly [TypeId]: TypeId
  readonly kind: LayoutKind["kind"]
  readonly alignment: number
  /** `false` for `fullyContiguous`. */
  readonly outerContiguous: boolean
  /** Of one region: page × inner × dtype. */
  readonly regionBytes: number
  /** Of one layer of a block: outer × `regionBytes`. */
  readonly layerBytes: number
  /** Of a block: layers × `layerBytes`, without padding. */
  readonly blockBytes: number
  /** From a block to the next, within a layer where layers are separate: also the length of each extent, a multiple of `alignment`. */
  readonly blockStride: number
  /** From a layer of a block to its next. */
  readonly layerStride: number
  /** From a region to the one of the next outer index (K to V). */
  readonly outerStride: number
  /** Of all extents of a block: what it takes with its padding. */
  readonly blockPaddedBytes: number
  /** Of the whole: `numBlocks` × `blockPaddedBytes`. */
  readonly totalBytes: number
  /** Regions of all blocks: blocks × layers × outer. */
  readonly regions: number
  /** Pieces in which a block is transferred: 1, or one per layer, or one per layer and outer index where that is contiguous. */
  readonly extentsPerBlock: number
  /**
   * Where a region lies, without padding. Its offset need not be aligned: transfer the extents that `block` returns. An index that is no
   * number is an `InvalidOption`, here as in the others.
   */
  readonly region: (
    index: { readonly block: number; readonly layer: number; readonly outer: number }
  ) => Either.Either<Extent, IndexOutOfBounds | InvalidOption>
  /**
   * What is to be transferred for a block, with its padding, by ascending offset: layer by layer, and outer index by outer index. Offsets
   * and lengths are multiples of `alignment`, and no other block has a byte of it.
   */
  readonly block: (block: number) => Either.Either<ReadonlyArray<Extent>, IndexOutOfBounds | InvalidOption>
  /** Where a region lies in a buffer of `blockPaddedBytes` that holds the extents of its block, one after the other. */
  readonly regionInBlock: (
    index: { readonly layer: number; readonly outer: number }
  ) => Either.Either<Extent, IndexOutOfBounds | InvalidOption>
}

/**
 * A block after the other, each in one piece: blocks × layers × outer × page × inner, the stride from block to block padded up to
 * `alignment`. One transfer per block; what the disk tier wants.
 *
 * Fails with `InvalidOption`, or `LayoutOverflow` where a size exceeds 2^53 − 1.
 *
 * @example
 * ```ts
 * import { BlockLayout } from "effect-disk-storage"
 * import * as Either from "effect/Either"
 *
 * // 32 layers of 8 KV heads × 128 in fp16, 16 tokens a block: 2 MiB
 * const layout = BlockLayout.fullyContiguous({
 *   numBlocks: 1000, numLayers: 32, outerDim: 2, pageSize: 16, innerDim: 8 * 128, dtypeWidthBytes: 2
 * })
 * Either.flatMap(layout, (layout) => layout.region({ block: 1, layer: 0, outer: 1 }))
 * // right({ offset: 2_129_920, length: 32_768 })
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const fullyContiguous = (options: BlockLayoutOptions): Either.Either<BlockLayout, LayoutError> =>
  Either.flatMap(
    geometry(options, { kind: "fullyContiguous" }),
    (geometry) => layOut(geometry, options.numBlocks)
  )

/**
 * A layer after the other, as engines keep them, each with all its blocks: layers × blocks × outer × page × inner, or with
 * `outerContiguous` layers × outer × blocks × page × inner. The stride from block to block is padded up to `alignment`. The layers
 * lie in one file, without a gap.
 *
 * Fails with `InvalidOption`, or `LayoutOverflow` where a size exceeds 2^53 − 1.
 *
 * @since 0.1.0
 * @category constructors
 */
export const layerSeparate = (
  options: BlockLayoutOptions & LayerSeparateOptions
): Either.Either<BlockLayout, LayoutError> =>
  Either.flatMap(
    geometry(options, { kind: "layerSeparate", outerContiguous: options?.outerContiguous }),
    (geometry) => layOut(geometry, options.numBlocks)
  )

/**
 * The layout with as many blocks as fit in `bytes`, padding included.
 *
 * Fails as the layout of that kind does, or with `LayoutDoesNotFit` where not even one block fits.
 *
 * @example
 * ```ts
 * import { BlockLayout } from "effect-disk-storage"
 *
 * // DeepSeek-V3 in 500 GB: 61 layers with one latent vector of 512 + 64, bf16, 64 tokens a block
 * const layout = BlockLayout.forCapacity(500e9, {
 *   kind: "fullyContiguous", numLayers: 61, outerDim: 1, pageSize: 64, innerDim: 576, dtypeWidthBytes: 2
 * })
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const forCapacity = (
  bytes: number,
  options: BlockShape & LayoutKind
): Either.Either<BlockLayout, LayoutError | LayoutDoesNotFit> =>
  Either.gen(function*() {
    const available = yield* whole("bytes", bytes)
    const found = yield* geometry(options, options)
    const needed = found.blockPaddedBytes
    if (needed > available) return yield* Either.left(new LayoutDoesNotFit({ needed, available }))
    // Exact where the quotient of two large numbers would be rounded up to the next whole one.
    return yield* layOut(found, (available - available % needed) / needed)
  })

/** What does not depend on the number of blocks. */
interface Geometry extends Required<BlockShape> {
  readonly alignment: number
  readonly kind: LayoutKind["kind"]
  readonly outerContiguous: boolean
  readonly regionBytes: number
  readonly layerBytes: number
  readonly blockBytes: number
  readonly blockStride: number
  readonly blockPaddedBytes: number
  readonly extentsPerBlock: number
}

const invalid = (option: string, value: unknown, expected: string) =>
  Either.left(argument.invalid(option, value, expected))

const whole = (option: string, value: number): Either.Either<number, InvalidOption> =>
  Number.isSafeInteger(value) && value >= 1
    ? Either.right(value)
    : invalid(option, value, `a whole number from 1 to ${Number.MAX_SAFE_INTEGER}`)

/** Not by logarithm, which is a whole number for 2^53 − 1 too. At most 53 steps. */
const isPowerOfTwo = (value: number): boolean => {
  if (!Number.isSafeInteger(value)) return false
  let power = 1
  while (power < value) power *= 2
  return power === value
}

/** A product or sum of safe integers that is rounded is above 2^53 − 1, and stays so. */
const fitting = (
  quantity: LayoutOverflow["quantity"],
  bytes: number
): Either.Either<number, LayoutOverflow> =>
  bytes <= Number.MAX_SAFE_INTEGER ? Either.right(bytes) : Either.left(new LayoutOverflow({ quantity, bytes }))

const geometry = (shape: BlockShape, kind: LayoutKind): Either.Either<Geometry, LayoutError> =>
  Either.gen(function*() {
    if (!argument.isObject(shape)) return yield* invalid("options", shape, "the shape of a block")
    const numLayers = yield* whole("numLayers", shape.numLayers)
    const { outerDim } = shape
    if (outerDim !== 1 && outerDim !== 2) {
      return yield* invalid("outerDim", outerDim, "1 (one latent vector) or 2 (K and V)")
    }
    const pageSize = yield* whole("pageSize", shape.pageSize)
    const innerDim = yield* whole("innerDim", shape.innerDim)
    const dtypeWidthBytes = yield* whole("dtypeWidthBytes", shape.dtypeWidthBytes)
    const { alignment = 4096 } = shape
    if (!isPowerOfTwo(alignment)) return yield* invalid("alignment", alignment, "a power of two, in bytes")
    if (kind.kind !== "fullyContiguous" && kind.kind !== "layerSeparate") {
      return yield* invalid("kind", kind, "fullyContiguous, layerSeparate")
    }
    const outerContiguous = kind.kind === "layerSeparate" && kind.outerContiguous
    if (typeof outerContiguous !== "boolean") {
      return yield* invalid("outerContiguous", outerContiguous, "true, false")
    }
    const regionBytes = yield* fitting(
      "regionBytes",
      (yield* fitting("regionBytes", pageSize * innerDim)) * dtypeWidthBytes
    )
    const layerBytes = yield* fitting("layerBytes", outerDim * regionBytes)
    const blockBytes = yield* fitting("blockBytes", numLayers * layerBytes)
    const [pieceBytes, extentsPerBlock] = kind.kind === "fullyContiguous"
      ? [blockBytes, 1]
      : outerContiguous
      ? [regionBytes, numLayers * outerDim]
      : [layerBytes, numLayers]
    const beyond = pieceBytes % alignment
    const blockStride = yield* fitting("blockStride", beyond === 0 ? pieceBytes : pieceBytes + (alignment - beyond))
    const blockPaddedBytes = yield* fitting("blockPaddedBytes", extentsPerBlock * blockStride)
    return {
      numLayers,
      outerDim,
      pageSize,
      innerDim,
      dtypeWidthBytes,
      alignment,
      kind: kind.kind,
      outerContiguous,
      regionBytes,
      layerBytes,
      blockBytes,
      blockStride,
      blockPaddedBytes,
      extentsPerBlock
    }
  })

const layOut = (geometry: Geometry, blocks: number): Either.Either<BlockLayout, LayoutError> =>
  Either.gen(function*() {
    const numBlocks = yield* whole("numBlocks", blocks)
    const { blockPaddedBytes, blockStride, extentsPerBlock, numLayers, outerContiguous, outerDim, regionBytes } =
      geometry
    const totalBytes = yield* fitting("totalBytes", numBlocks * blockPaddedBytes)
    // No product below can exceed `totalBytes`.
    const layerSeparate = geometry.kind === "layerSeparate"
    const outerStride = outerContiguous ? numBlocks * blockStride : regionBytes
    const layerStride = outerContiguous
      ? outerDim * outerStride
      : layerSeparate
      ? numBlocks * blockStride
      : geometry.layerBytes
    const extentStride = numBlocks * blockStride
    const outside = (layer: number, outer: number) =>
      !isIndex(layer, numLayers)
        ? noIndex("layer", layer, numLayers)
        : !isIndex(outer, outerDim)
        ? noIndex("outer", outer, outerDim)
        : undefined
    const noBlock = (block: number) => Either.left(noIndex("block", block, numBlocks))
    return {
      ...geometry,
      [TypeId]: TypeId,
      numBlocks,
      layerStride,
      outerStride,
      totalBytes,
      regions: numBlocks * numLayers * outerDim,
      region: (index) => {
        if (!argument.isObject(index)) return invalid("index", index, "block, layer and outer")
        const { block, layer, outer } = index
        if (!isIndex(block, numBlocks)) return noBlock(block)
        const error = outside(layer, outer)
        return error === undefined
          ? Either.right({
            offset: block * blockStride + layer * layerStride + outer * outerStride,
            length: regionBytes
          })
          : Either.left(error)
      },
      block: (block) => {
        if (!isIndex(block, numBlocks)) return noBlock(block)
        const extents: Array<Extent> = []
        for (let piece = 0; piece < extentsPerBlock; piece++) {
          extents.push({ offset: piece * extentStride + block * blockStride, length: blockStride })
        }
        return Either.right(extents)
      },
      regionInBlock: (index) => {
        if (!argument.isObject(index)) return invalid("index", index, "layer and outer")
        const { layer, outer } = index
        const error = outside(layer, outer)
        if (error !== undefined) return Either.left(error)
        const offset = outerContiguous
          ? (layer * outerDim + outer) * blockStride
          : layer * (layerSeparate ? blockStride : layerStride) + outer * regionBytes
        return Either.right({ offset, length: regionBytes })
      }
    }
  })

const noIndex = (what: "block" | "layer" | "outer", index: number, count: number): IndexOutOfBounds | InvalidOption =>
  typeof index === "number"
    ? new IndexOutOfBounds({ what, index, count })
    : argument.invalid(what, index, `a whole number from 0 to ${count - 1}`)

const isIndex = (index: number, count: number): boolean => Number.isSafeInteger(index) && index >= 0 && index < count
