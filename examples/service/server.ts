/** The service on a port of this machine, for as long as the Scope lives. */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpApiScalar from "@effect/platform/HttpApiScalar"
import * as HttpMiddleware from "@effect/platform/HttpMiddleware"
import * as HttpServer from "@effect/platform/HttpServer"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { BlockStore } from "effect-disk-storage"
import type { DirectIo } from "effect-disk-storage"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { createServer } from "node:http"
import { cannotListen, urlOf } from "./address.js"
import { Api } from "./api.js"
import * as Connections from "./connections.js"
import * as Service from "./service.js"
import * as Transfers from "./transfers.js"

export interface ServerOptions extends Omit<Transfers.TransferOptions, "blockBytes"> {
  readonly host: string
  /** 0 takes a free one. */
  readonly port: number
  /** Of the doctor on the directory. */
  readonly verdict: DirectIo.DirectIoReport["verdict"]
  /** How long requests may take to end once the service is being stopped. */
  readonly drainSeconds: number
}

/** The page of `/docs` would load fonts, and tell its maker what is clicked; the type leaves the second out. */
const scalar = { withDefaultFonts: false, telemetry: false }

/** Each costs memory, also one that says nothing; those above are closed. */
const maxConnections = 4096
/** Bytes of a body that is no block. */
const maxBodyBytes = 1024 * 1024
/** For which transfers of clients that were cut are waited for. */
const diskSeconds = 5

/**
 * What no handler gets to see. Of a connection, a request that comes before the last one was answered: Node tells its response nothing of
 * the end of the connection, so that it would keep its buffer for ever. And a body that says it is a form: the platform writes
 * the files in it to a disk before anything looks at them.
 */
const guard = (transfers: Transfers.Transfers["Type"]) =>
  HttpMiddleware.make((app) =>
    Effect.gen(function*() {
      const request = yield* HttpServerRequest.HttpServerRequest
      const message = NodeHttpServerRequest.toIncomingMessage(request)
      if (NodeHttpServerRequest.toServerResponse(request).socket === null) {
        message.socket.destroy()
        return yield* Effect.interrupt
      }
      // The connection ends with the answer. /health has an answer of its own.
      if ((yield* transfers.isStopping) && request.url !== "/health") {
        return HttpServerResponse.unsafeJson({ _tag: "Stopping" }, { status: 503 })
      }
      const type = request.headers["content-type"] ?? "application/json"
      return request.method === "POST" && !/^application\/json\s*(;|$)/i.test(type)
        ? HttpServerResponse.empty({ status: 415 })
        : yield* app
    })
  )

/** Waits until it holds, for at most so long; false when it does not by then. A finalizer cannot be interrupted. */
const within = (seconds: number, holds: Effect.Effect<boolean>) =>
  Effect.gen(function*() {
    const end = (yield* Clock.currentTimeNanos) + BigInt(Math.round(seconds * 1e9))
    while (!(yield* holds)) {
      if ((yield* Clock.currentTimeNanos) >= end) return false
      yield* Effect.sleep("10 millis")
    }
    return true
  })

/**
 * Refuses what is new, lets what runs end, then cuts and logs what is left. Its time is bounded, whatever clients do.
 *
 * Nothing in here is interruptible: a program that is stopped by a signal runs its finalizers on a fibre that has been
 * interrupted, and there an interruptible effect ends before its first step.
 */
const drain = (connections: Connections.Connections, transfers: Transfers.Transfers["Type"], seconds: number) =>
  Effect.gen(function*() {
    yield* transfers.stop
    yield* Effect.sync(connections.stop)
    const idle = Effect.map(transfers.active, (active) => active === 0 && connections.open() === 0)
    yield* within(seconds, idle)
    for (const line of yield* Effect.sync(connections.cut)) {
      yield* Effect.logWarning(`cut when the drain of ${seconds} s was over: ${line}`)
    }
    // A transfer waits for no client now. One that the disk has not ended is waited for by the store, with its own limits.
    if (!(yield* within(diskSeconds, idle))) {
      yield* Effect.logError(`${yield* transfers.active} transfers still wait for the disk`)
    }
  })

/** Serves, and returns its URL. The store must outlive the Scope. */
export const serve = (options: ServerOptions) =>
  Effect.gen(function*() {
    const store = yield* BlockStore.BlockStore
    const transfers = yield* Transfers.make({ ...options, blockBytes: store.blockBytes })
    const nodeServer = createServer({ noDelay: true })
    nodeServer.maxConnections = maxConnections
    const connections = Connections.track(nodeServer)
    const { host, port } = options
    const server = yield* Effect.uninterruptibleMask((restore) =>
      Effect.zipLeft(
        restore(NodeHttpServer.make(() => nodeServer, { host, port })),
        // The finalizer of the server waits for every connection: there are none when it begins.
        Effect.addFinalizer(() => Effect.sync(connections.cut))
      )
    ).pipe(Effect.mapError(({ cause }) => cannotListen(host, port, cause)))
    const ApiLive = HttpApiBuilder.api(Api).pipe(Layer.provide([Service.blocks, Service.operations]))
    const bounded = HttpServerRequest.withMaxBodySize(Option.some(maxBodyBytes))
    const Live = HttpApiBuilder.serve((app) => guard(transfers)(bounded(app))).pipe(
      Layer.provide([HttpApiScalar.layer({ scalar }), HttpApiBuilder.middlewareOpenApi()]),
      Layer.provide(ApiLive),
      Layer.provide([
        Layer.succeed(HttpServer.HttpServer, server),
        Layer.succeed(BlockStore.BlockStore, store),
        Layer.succeed(Transfers.Transfers, transfers),
        Layer.succeed(Service.Verdict, options.verdict),
        NodeHttpServer.layerContext
      ])
    )
    yield* Layer.build(Live)
    // An upgraded connection is no longer the server's, and nothing here speaks another protocol.
    nodeServer.removeAllListeners("upgrade")
    yield* Effect.addFinalizer(() => drain(connections, transfers, options.drainSeconds))
    return urlOf(nodeServer)
  })
