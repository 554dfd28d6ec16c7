/** Simulated histories: new seeds, every plan that failed once, and a planted bug for each invariant. */
import { randomInt } from "node:crypto"
import { assert, describe, it } from "vitest"
import { coverage, hunt, known } from "./simulate/findings.js"
import { invariants, names } from "./simulate/invariants.js"
import { mutants } from "./simulate/mutants.js"
import { simulate } from "./simulate/processes.js"

const histories = 300

describe("simulated histories", () => {
  it(`of ${histories} new seeds violate nothing`, async () => {
    const from = randomInt(2 ** 31)
    const { broken, checks, failed, histories: done, met } = await simulate({ from, count: histories, most: 1 })
    for (const { plan, violations } of failed) {
      assert.fail(`npm run simulate -- --seed ${plan.seed}: ${violations.map(({ what }) => what).join("; ")}`)
    }
    assert.isUndefined(broken)
    assert.strictEqual(done, histories)
    // What is not checked cannot be violated.
    for (const name of names) {
      if (name !== "stalls" && name !== "reports" && name !== "kept") {
        assert.isAbove(checks[name] ?? 0, 0, `${name}, from seed ${from}`)
      }
    }
    const hit = coverage(met).filter((row) => row.hit > 0).length
    assert.isAbove(hit, coverage(met).length / 2)
  })

  it("that failed once do not fail any more", async () => {
    const plans = known().map(({ plan }) => plan)
    const { broken, failed, histories: done } = await simulate({ from: 0, count: 0, most: 1000, plans })
    assert.isUndefined(broken)
    assert.deepStrictEqual(failed.map(({ number, violations }) => [known()[number]?.what, violations]), [])
    assert.strictEqual(done, plans.length)
  })

  it("have a planted bug for each invariant", () => {
    const planted = new Set(mutants.map(({ invariant }) => invariant))
    assert.deepStrictEqual(names.filter((name) => !planted.has(name)), [])
    assert.isAtMost(planted.size, Object.keys(invariants).length)
  })
})

describe("a planted bug is found:", () => {
  for (const mutant of mutants) {
    it(mutant.what, async () => {
      // Those seeds find it; a bug that other plans hide shows here.
      const { seeds, what } = await hunt(mutant, mutant.near ?? 0, 2000)
      assert.isDefined(seeds, what)
    })
  }
})
