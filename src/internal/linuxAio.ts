/** From options to an AIO context and its engine. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type {
  EngineUnavailable,
  InvalidOption,
  NativeModuleMissing,
  PlatformNotSupported
} from "../DiskStorageError.js"
import type { IoEngine } from "../IoEngine.js"
import type { LinuxAioOptions } from "../LinuxAio.js"
import { checked, makeQueue, wholeNumber } from "./engineOptions.js"
import { makeEngine } from "./ioQueue.js"
import * as aio from "./linux/aio.js"
import { makeNodeQueue } from "./nodeIo.js"

export const make = (
  options: LinuxAioOptions
): Effect.Effect<
  IoEngine,
  EngineUnavailable | PlatformNotSupported | NativeModuleMissing | InvalidOption,
  Scope.Scope
> =>
  Effect.gen(function*() {
    yield* checked(options)
    const depth = yield* wholeNumber("depth", options.depth, 128, 1, 65_536)
    const direct = yield* makeQueue(aio.make(depth), options)
    const buffered = yield* makeNodeQueue({ stallTimeout: options.stallTimeout })
    return makeEngine("aio", (file) => file.direct ? direct : buffered)
  })
