/** `npm run service`: blocks over HTTP, until Ctrl-C or SIGTERM, which let transfers end and leave no file. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { BlockStore, DirectIo, Linux, ProcessRuntime } from "effect-disk-storage"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { resolved } from "../directory.js"
import { config, defaultSize, explained } from "./config.js"
import { serve } from "./server.js"

const program = Effect.gen(function*() {
  const { blockBytes, directory, ...options } = yield* config
  yield* Console.log(`cache directory ${yield* resolved(directory)}`)
  const StoreLayer = BlockStore.layerConfig({ blockBytes, size: defaultSize })
  yield* Effect.gen(function*() {
    const { verdict } = yield* DirectIo.inspect(directory)
    const address = yield* serve({ ...options, verdict })
    const store = yield* BlockStore.BlockStore
    yield* Console.log(`${store.capacity} blocks of ${store.blockBytes} bytes\n${address}\n${address}/docs`)
    return yield* Effect.never
  }).pipe(Effect.scoped, Effect.provide(StoreLayer))
})

program.pipe(
  Effect.provide(Layer.merge(Linux.layer, NodeFileSystem.layer)),
  // Nobody collects spans here, and a request has some ten.
  Effect.withTracerEnabled(false),
  Effect.onInterrupt(() => Console.log("stopped, and released")),
  Effect.tapError((error) => Console.error(explained(error))),
  Effect.tapDefect((defect) => Console.error(Cause.pretty(defect))),
  ProcessRuntime.runMain({ disableErrorReporting: true })
)
