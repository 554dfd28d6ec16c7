/** What answers the requests of `api.ts`, over a `BlockStore`. */
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import { BlockStore } from "effect-disk-storage"
import type { DirectIo, DiskStorageError } from "effect-disk-storage"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { Api, BlockMissing, Degraded, NoRoom, Stopping, TransferFailed, Unhealthy } from "./api.js"
import * as Prometheus from "./prometheus.js"
import { Transfers } from "./transfers.js"

/** What the doctor said of the directory. */
export class Verdict extends Context.Tag("service/Verdict")<Verdict, DirectIo.DirectIoReport["verdict"]>() {}

const digits = (hash: bigint) => hash.toString(16).padStart(16, "0")

const offloadFailure = (error: DiskStorageError.OffloadError) => {
  switch (error._tag) {
    case "StoreFull":
    case "NoStorageLeft":
      return new NoRoom({ reason: error._tag })
    case "StoreClosed":
      return new Stopping()
    case "StorageDegraded":
      return new Degraded({ retryAfterMillis: error.retryAfterMillis })
    default:
      return new TransferFailed({ reason: error._tag })
  }
}

const onboardFailure = (error: DiskStorageError.OnboardError) => {
  switch (error._tag) {
    case "BlockNotFound":
      return new BlockMissing({ hash: digits(error.hash) })
    case "StoreClosed":
      return new Stopping()
    case "StorageDegraded":
      return new Degraded({ retryAfterMillis: error.retryAfterMillis })
    default:
      return new TransferFailed({ reason: error._tag })
  }
}

/** The schemas of the API have checked the arguments: that the store refuses one is a defect. */
export const blocks = HttpApiBuilder.group(Api, "blocks", (handlers) =>
  Effect.gen(function*() {
    const store = yield* BlockStore.BlockStore
    const transfers = yield* Transfers
    return handlers
      .handleRaw("put", ({ path: { hash } }) =>
        Effect.gen(function*() {
          yield* transfers.checkLength
          const data = yield* transfers.buffer
          yield* transfers.receive(data)
          const results = yield* Effect.orDie(store.offload([{ hash, data }]))
          return { outcome: yield* Either.mapLeft(results.get(0), offloadFailure) }
        }).pipe(Effect.scoped))
      .handle("get", ({ path: { hash } }) =>
        Effect.gen(function*() {
          // Many ask in vain: that takes no buffer.
          if (!(yield* Effect.orDie(store.has(hash)))) return yield* new BlockMissing({ hash: digits(hash) })
          const into = yield* transfers.buffer
          const results = yield* Effect.orDie(store.onboard([{ hash, into }]))
          const bytes = yield* Either.mapLeft(results.get(0), onboardFailure)
          if (bytes !== into.byteLength) return yield* new TransferFailed({ reason: "not all of it was read" })
          return yield* transfers.send(into)
        }).pipe(Effect.scoped))
      .handle("remove", ({ path: { hash } }) =>
        Effect.flatMap(
          Effect.orDie(store.remove([hash])),
          (removed) => removed === 1 ? Effect.void : Effect.fail(new BlockMissing({ hash: digits(hash) }))
        ))
      .handle("match", ({ payload: { hashes } }) =>
        Effect.map(Effect.orDie(store.match(hashes)), (count) => ({ blocks: count })))
  }))

export const operations = HttpApiBuilder.group(Api, "operations", (handlers) =>
  Effect.gen(function*() {
    const store = yield* BlockStore.BlockStore
    const transfers = yield* Transfers
    const verdict = yield* Verdict
    return handlers
      .handle("stats", () =>
        Effect.map(
          Effect.all([store.stats, transfers.active]),
          ([stats, active]) => ({ ...stats, blockBytes: store.blockBytes, transfers: active })
        ))
      .handle("health", () =>
        Effect.gen(function*() {
          if (yield* transfers.isStopping) return yield* new Unhealthy({ reason: "The service is being stopped." })
          const { storages } = yield* store.stats
          const storagesFailed = storages.filter(({ failed }) => failed).length
          if (storagesFailed === storages.length) {
            return yield* new Unhealthy({ reason: "Every storage failed and was taken out." })
          }
          const { gpu, io, reasons } = verdict
          const status = storagesFailed === 0 && io.startsWith("direct") ? "ok" : "degraded"
          return { status, io, gpu, reasons: reasons.io, storages: storages.length, storagesFailed } as const
        }))
      .handle("metrics", () => Prometheus.text)
  }))
