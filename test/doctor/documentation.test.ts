/** The table of the README is the one that the code decides by. */
import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"
import * as DirectIo from "../../src/DirectIo.js"

const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8")

describe("the README", () => {
  it("has every condition, its section and how it is decided, in the order of a report", () => {
    const documented = [...readme.matchAll(/^\| (2\.[\d.]+) \| `([a-z0-9-]+)` \| (.+?) \| (.+?) \|$/gm)]
    assert.deepStrictEqual(
      documented.map(([, section, id, title, decidedBy]) => ({ id, section, title, decidedBy })),
      DirectIo.conditions.map(({ decidedBy, id, section, title }) => ({ id, section, title, decidedBy }))
    )
  })
})
