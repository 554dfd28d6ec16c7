/** Who may use the pages of one memory at once: many who write from it, or one who reads into it. */
import { assert, describe, it } from "@effect/vitest"
import { pageSize, takeAlone } from "../src/internal/slab.js"

describe("pages of a memory", () => {
  it("that bytes are taken from are not filled, and those that are filled are used by nobody else", () => {
    const { slab } = takeAlone(4 * pageSize)
    assert.isTrue(slab.claim(0, 2 * pageSize, false))
    assert.isTrue(slab.claim(pageSize, 2 * pageSize, false))
    assert.isFalse(slab.claim(pageSize, pageSize, true))
    assert.isTrue(slab.claim(3 * pageSize, pageSize, true))
    assert.isFalse(slab.claim(2 * pageSize, 2 * pageSize, false))
    assert.isFalse(slab.claim(3 * pageSize, 1, true))
    // A refused claim has taken nothing.
    slab.release(0, 2 * pageSize)
    slab.release(pageSize, 2 * pageSize)
    assert.isTrue(slab.claim(0, 3 * pageSize, true))
  })
})
