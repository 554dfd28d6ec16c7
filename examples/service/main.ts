/** `npm run service`: blocks over HTTP, until Ctrl-C or SIGTERM, which let transfers end and leave no file. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { BlockStore, DiskStorageConfig, Linux, ProcessRuntime } from "effect-disk-storage"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { serve } from "./server.js"

const whole = (name: string, least: number, most: number, fallback: number) =>
  Config.integer(name).pipe(
    Config.validate({
      message: `a whole number, ${least} to ${most}`,
      validation: (value) => value >= least && value <= most
    }),
    Config.withDefault(fallback)
  )

const config = Config.all({
  host: Config.withDefault(Config.nonEmptyString("HOST"), "127.0.0.1"),
  port: whole("PORT", 0, 65_535, 8787),
  blockBytes: whole("SERVICE_BLOCK_BYTES", 1, 256 * 1024 * 1024, 1024 * 1024),
  buffers: whole("SERVICE_BUFFERS", 1, 1024, 32),
  queue: whole("SERVICE_QUEUE", 0, 100_000, 256),
  bodySeconds: whole("SERVICE_BODY_SECONDS", 1, 3600, 30),
  drainSeconds: whole("SERVICE_DRAIN_SECONDS", 0, 3600, 10),
  directory: DiskStorageConfig.directory
})

const program = Effect.gen(function*() {
  const { blockBytes, ...options } = yield* config
  const StoreLayer = BlockStore.layerConfig({ blockBytes, size: 256 * 1024 * 1024 })
  yield* Effect.gen(function*() {
    const address = yield* serve(options)
    const store = yield* BlockStore.BlockStore
    yield* Console.log(`${store.capacity} blocks of ${store.blockBytes} bytes\n${address}\n${address}/docs`)
    return yield* Effect.never
  }).pipe(Effect.scoped, Effect.provide(StoreLayer))
})

program.pipe(
  Effect.provide(Layer.merge(Linux.layer, NodeFileSystem.layer)),
  Effect.onInterrupt(() => Console.log("stopped, and released")),
  ProcessRuntime.runMain
)
