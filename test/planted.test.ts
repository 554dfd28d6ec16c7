/** The list of planted bugs fits the sources; `npm run planted-bugs` plants them. */
import { assert, describe, it } from "@effect/vitest"
import { existsSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { bugs } from "./planted/bugs.js"
import { planted } from "./planted/plugin.js"

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url))

describe("a planted bug has its place in the sources, and tests near it:", () => {
  for (const bug of bugs) {
    it(bug.what, () => {
      const text = readFileSync(at(`../src/${bug.file}`), "utf8")
      assert.notStrictEqual(planted(text, bug), text)
      assert.isNotEmpty(bug.tests)
      for (const test of bug.tests) assert.isTrue(existsSync(at(test)), test)
    })
  }
})
