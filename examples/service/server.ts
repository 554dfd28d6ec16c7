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
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { createServer } from "node:http"
import type { Server } from "node:http"
import { Api } from "./api.js"
import * as Service from "./service.js"
import * as Transfers from "./transfers.js"

export interface ServerOptions extends Omit<Transfers.TransferOptions, "blockBytes"> {
  readonly host: string
  /** 0 takes a free one. */
  readonly port: number
  /** Of the doctor on the directory. */
  readonly verdict: DirectIo.DirectIoReport["verdict"]
  /** How long transfers may take to end once the service is being stopped. */
  readonly drainSeconds: number
}

/** The page of `/docs` would load fonts, and tell its maker what is clicked; the type leaves the second out. */
const scalar = { withDefaultFonts: false, telemetry: false }

/** Each costs memory, also one that says nothing; those above are closed. */
const maxConnections = 4096
/** Bytes of a body that is no block. */
const maxBodyBytes = 1024 * 1024

/**
 * What no handler gets to see. Of a connection, a request that comes before the last one was answered: Node tells its response nothing of
 * the end of the connection, so that it would keep its buffer for ever. And a body that says it is a form: the platform writes
 * the files in it to a disk before anything looks at them.
 */
const guard = HttpMiddleware.make((app) =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => {
    const message = NodeHttpServerRequest.toIncomingMessage(request)
    if (NodeHttpServerRequest.toServerResponse(request).socket === null) {
      message.socket.destroy()
      return Effect.interrupt
    }
    const type = request.headers["content-type"] ?? "application/json"
    return request.method === "POST" && !/^application\/json\s*(;|$)/i.test(type)
      ? Effect.succeed(HttpServerResponse.empty({ status: 415 }))
      : app
  })
)

/** How many requests are not answered to the last byte yet, of connections that still are. */
const openRequests = (server: Server) => {
  let open = 0
  server.on("request", (_, response) => {
    // One that waits behind another is not answered, and told of no end.
    if (response.socket === null) return
    open++
    response.once("close", () => open--)
  })
  return () => open
}

/** Accepts no connection, lets what runs end, then cuts what is left; done when no buffer is in use. */
const drain = (server: Server, open: () => number, transfers: Transfers.Transfers["Type"], seconds: number) =>
  Effect.gen(function*() {
    yield* transfers.stop
    yield* Effect.sync(() => server.close())
    const idle = Effect.gen(function*() {
      while (open() > 0 || (yield* transfers.active) > 0) yield* Effect.sleep("10 millis")
    })
    yield* Effect.timeoutOption(idle, `${seconds} seconds`)
    yield* Effect.sync(() => server.closeAllConnections())
    yield* idle
  }).pipe(Effect.interruptible)

/** Serves; what its address is. The store must outlive the Scope. */
export const serve = (options: ServerOptions) =>
  Effect.gen(function*() {
    const store = yield* BlockStore.BlockStore
    const transfers = yield* Transfers.make({ ...options, blockBytes: store.blockBytes })
    const nodeServer = createServer({ noDelay: true })
    nodeServer.maxConnections = maxConnections
    const open = openRequests(nodeServer)
    const server = yield* NodeHttpServer.make(() => nodeServer, { host: options.host, port: options.port })
    const ApiLive = HttpApiBuilder.api(Api).pipe(Layer.provide([Service.blocks, Service.operations]))
    const bounded = HttpServerRequest.withMaxBodySize(Option.some(maxBodyBytes))
    const Live = HttpApiBuilder.serve((app) => guard(bounded(app))).pipe(
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
    yield* Effect.addFinalizer(() => drain(nodeServer, open, transfers, options.drainSeconds))
    return HttpServer.formatAddress(server.address)
  })
