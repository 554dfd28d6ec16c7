/** The checksums that the index keeps: all words of a checksum decide, of each slot by itself. */
import { assert, describe, it } from "@effect/vitest"
import { BlockIndex, checksumWords } from "../../src/internal/blockIndex.js"

const words = (first: number) => Int32Array.from({ length: checksumWords }, (_, word) => first + word)

describe("checksums in the index", () => {
  for (let word = 0; word < checksumWords; word++) {
    it(`a difference in word ${word} alone does not verify`, () => {
      const index = new BlockIndex([2], () => {})
      index.seal(0, words(10))
      index.seal(1, words(20))
      const other = words(10)
      other[word] = (other[word] ?? 0) ^ (1 << 31)
      assert.isTrue(index.verifies(0, words(10)))
      assert.isTrue(index.verifies(1, words(20)))
      assert.isFalse(index.verifies(0, other))
      assert.isFalse(index.verifies(1, words(10)))
    })
  }
})
