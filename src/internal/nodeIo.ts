/** From options to the queue and engine over `node:fs`. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { InvalidOption } from "../DiskStorageError.js"
import type { IoEngine } from "../IoEngine.js"
import type { NodeIoOptions } from "../NodeIo.js"
import { checked, makeQueue, wholeNumber } from "./engineOptions.js"
import type { IoQueue } from "./ioQueue.js"
import { makeEngine } from "./ioQueue.js"
import { open } from "./nodeDevice.js"

export const makeNodeQueue = (options: NodeIoOptions): Effect.Effect<IoQueue, InvalidOption, Scope.Scope> =>
  Effect.gen(function*() {
    yield* checked(options)
    const depth = yield* wholeNumber("depth", options.depth, 8, 1, 1024)
    return yield* makeQueue(Effect.succeed(open(depth)), options)
  })

export const make = (options: NodeIoOptions): Effect.Effect<IoEngine, InvalidOption, Scope.Scope> =>
  Effect.map(makeNodeQueue(options), (queue) => makeEngine("node:fs", () => queue))
