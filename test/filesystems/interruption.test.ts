/** Acquisitions that are interrupted at any moment, on the real kernel. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as DiskStorage from "../../src/DiskStorage.js"
import { assertGivenBack, assertNothingLeft, describeReal, freshPath, Mounted, settledFreeBytes } from "./real.js"

describeReal("large ext2", { name: "interruption" }, (it) => {
  it.scoped("leaves no descriptor, no name and no block, whenever it comes", () =>
    Effect.gen(function*() {
      const mount = yield* Mounted
      const directory = yield* freshPath
      yield* Effect.scoped(DiskStorage.make({ size: 4096, directory }))
      const before = yield* settledFreeBytes(mount.directory)
      const rounds = FastCheck.sample(
        FastCheck.record({ delay: FastCheck.nat(100), earlyUnlink: FastCheck.boolean(), direct: FastCheck.boolean() }),
        { numRuns: 20, seed: 7 }
      )
      let interrupted = 0
      for (const { delay, direct, earlyUnlink } of rounds) {
        const fiber = yield* DiskStorage.make({
          size: 200 * 1024 * 1024,
          directory,
          earlyUnlink,
          directIo: direct ? "required" : "disabled",
          fallback: "zero-fill"
        }).pipe(
          Effect.scoped,
          Effect.fork
        )
        yield* Effect.sleep(delay)
        const exit = yield* Fiber.interrupt(fiber)
        if (Exit.isInterrupted(exit)) interrupted += 1
        else assert.isTrue(Exit.isSuccess(exit))
        yield* assertNothingLeft(directory, before)
      }
      assert.isAbove(interrupted, 0)
      yield* assertGivenBack(directory, before)
    }))
})
