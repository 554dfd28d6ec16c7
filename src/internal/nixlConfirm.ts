/** Compares what a transfer was to have moved with what is in the file, read once more into memory of the agent. */
import type { Alignment } from "../DiskStorage.js"
import type { Region } from "./alignedBuffer.js"
import { pageSize } from "./slab.js"

/** Memory to read into. More than this is read in several turns. */
export const scratchBytes = 4 * 1024 * 1024

interface Piece {
  readonly offset: number
  readonly start: number
  readonly length: number
  readonly memory: { readonly region: Region | undefined }
}

/** Part of a piece of host memory, to be read again. */
export interface Part<P extends Piece> {
  readonly piece: P
  readonly offset: number
  readonly length: number
  readonly expected: Uint8Array
}

/** Pieces of one write that share bytes of the file leave either's bytes there: these are not compared. */
const apart = <P extends Piece>(pieces: ReadonlyArray<P>): ReadonlyArray<P> => {
  const sorted = [...pieces].sort((one, other) => one.offset - other.offset)
  let end = 0
  return sorted.filter((piece, index) => {
    const after = sorted[index + 1]
    const alone = piece.offset >= end && (after === undefined || piece.offset + piece.length <= after.offset)
    end = Math.max(end, piece.offset + piece.length)
    return alone
  })
}

/** Each part begins on a page of the scratch memory. */
const paged = (length: number) => Math.ceil(length / pageSize) * pageSize

/**
 * What is read again of the pieces: with `ends` the last block of each, which a short transfer leaves out, else all. In
 * groups that fit into the scratch memory, of no more parts than there are pieces.
 */
export const groupsOf = <P extends Piece>(
  pieces: ReadonlyArray<P>,
  what: "ends" | "read-back",
  operation: "read" | "write",
  alignment: Alignment
): ReadonlyArray<ReadonlyArray<Part<P>>> => {
  const block = Math.max(pageSize, alignment.offset, alignment.length)
  const groups: Array<Array<Part<P>>> = []
  let used = scratchBytes
  for (const piece of operation === "write" ? apart(pieces) : pieces) {
    const { memory: { region }, length, offset, start } = piece
    if (region === undefined) continue
    let from = what === "ends" ? length - 1 - (length - 1) % block : 0
    while (from < length) {
      if (used + block > scratchBytes || (groups.at(-1)?.length ?? 0) >= pieces.length) {
        groups.push([])
        used = 0
      }
      const room = scratchBytes - used
      const part = Math.min(length - from, room - room % block)
      const expected = new Uint8Array(region.slab.buffer, region.start + start + from, part)
      groups.at(-1)?.push({ piece, offset: offset + from, length: part, expected })
      used += paged(part)
      from += part
    }
  }
  return groups
}

/** The same bytes as words, where they begin and end on one. */
const wordsOf = (bytes: Uint8Array): Int32Array | Uint8Array =>
  bytes.byteOffset % 4 === 0 && bytes.byteLength % 4 === 0
    ? new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
    : bytes

/** Where each part is to be read to. The memory is filled with other bytes than are expected: what is not read differs. */
export const prepare = <P extends Piece>(
  group: ReadonlyArray<Part<P>>,
  scratch: Region
): { readonly starts: ReadonlyArray<number>; readonly different: () => P | undefined } => {
  let next = 0
  const starts = group.map(({ length }) => {
    const start = next
    next += paged(length)
    return start
  })
  const pairs = group.map(({ expected, length, piece }, index) => {
    const found = new Uint8Array(scratch.slab.buffer, scratch.start + (starts[index] ?? 0), length)
    const wanted = wordsOf(expected)
    return { piece, wanted, found: wanted instanceof Int32Array ? wordsOf(found) : found }
  })
  for (const { found, wanted } of pairs) {
    for (let index = 0; index < wanted.length; index++) found[index] = ~(wanted[index] ?? 0)
  }
  return {
    starts,
    different: () =>
      pairs.find(({ found, wanted }) => {
        for (let index = 0; index < wanted.length; index++) if (found[index] !== wanted[index]) return true
        return false
      })?.piece
  }
}
