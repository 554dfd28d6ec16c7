/** Device memory over the stub of the CUDA driver. */
import { assert, it } from "@effect/vitest"
import { cudaControl, describeStubs } from "./stubs.js"

describeStubs("device memory", ({ cuda }) => {
  it("nothing is alive before anything was made", () => {
    assert.deepStrictEqual(cudaControl(cuda).alive(), { allocations: 0, pinned: 0, contexts: 0, refusals: 0 })
  })
})
