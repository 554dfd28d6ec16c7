/** From options to a ring and its engine. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { EngineUnavailable, NativeModuleMissing, PlatformNotSupported } from "../DiskStorageError.js"
import { InvalidOption } from "../DiskStorageError.js"
import type { IoEngine } from "../IoEngine.js"
import type { IoUringOptions } from "../IoUring.js"
import { booleanRefused, unless } from "./arguments.js"
import { checked, makeQueue, wholeNumber } from "./engineOptions.js"
import { makeEngine } from "./ioQueue.js"
import * as ring from "./linux/ring.js"

/** The kernel's bound on both rings (`IORING_MAX_ENTRIES`; completions twice that). */
const maxEntries = 32_768

export const make = (
  options: IoUringOptions
): Effect.Effect<
  IoEngine,
  EngineUnavailable | PlatformNotSupported | NativeModuleMissing | InvalidOption,
  Scope.Scope
> =>
  Effect.gen(function*() {
    yield* checked(options)
    const entries = yield* wholeNumber("entries", options.entries, 128, 1, maxEntries)
    const slots = yield* wholeNumber("depth", options.depth, 256, 1, 65_536)
    const completionEntries = yield* wholeNumber(
      "completionEntries",
      options.completionEntries,
      Math.max(slots, entries),
      entries,
      2 * maxEntries
    )
    const files = yield* wholeNumber("registeredFiles", options.registeredFiles, 64, 0, 1024)
    if ((entries & (entries - 1)) !== 0) {
      return yield* new InvalidOption({ option: "entries", value: String(entries), expected: "a power of two" })
    }
    yield* unless(booleanRefused("registerBuffers", options.registerBuffers))
    const { registerBuffers = true } = options
    const queue = yield* makeQueue(ring.make({ entries, completionEntries, slots, files, registerBuffers }), options)
    return makeEngine("io_uring", () => queue)
  })
