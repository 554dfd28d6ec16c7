/** The buffers that blocks go through, how many may want one, and the bodies of requests and responses. */
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { AlignedBuffer } from "effect-disk-storage"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { IncomingMessage, ServerResponse } from "node:http"
import { Busy, Stopping, TooLarge, TooSlow, WrongLength } from "./api.js"

export interface TransferOptions {
  readonly blockBytes: number
  /** Buffers, each of a block: so many transfers run at a time. */
  readonly buffers: number
  /** Transfers that may wait for a buffer; the next one is refused. */
  readonly queue: number
  /** Within which a body has to come or go. */
  readonly bodySeconds: number
}

export class Transfers extends Context.Tag("service/Transfers")<Transfers, {
  /** Transfers that run or wait. */
  readonly active: Effect.Effect<number>
  readonly isStopping: Effect.Effect<boolean>
  /** Refuses new transfers from now on. */
  readonly stop: Effect.Effect<void>
  /** A buffer that is the request's until its response is sent, or will never be. */
  readonly buffer: Effect.Effect<
    AlignedBuffer.AlignedBuffer,
    Busy | Stopping,
    Scope.Scope | HttpServerRequest.HttpServerRequest
  >
  /** The body of the request, exactly a block, into the buffer. */
  readonly receive: (
    into: AlignedBuffer.AlignedBuffer
  ) => Effect.Effect<void, WrongLength | TooLarge | TooSlow, HttpServerRequest.HttpServerRequest>
  /** Fails for a length that is known beforehand and wrong. */
  readonly checkLength: Effect.Effect<void, WrongLength | TooLarge, HttpServerRequest.HttpServerRequest>
  readonly send: (buffer: AlignedBuffer.AlignedBuffer) => HttpServerResponse.HttpServerResponse
}>() {}

/** Until the kernel has taken the last byte of the response, or the connection is gone. */
const sentOrGone = (response: ServerResponse) =>
  Effect.gen(function*() {
    const over = yield* Deferred.make<void>()
    const end = () => Deferred.unsafeDone(over, Effect.void)
    if (response.writableFinished || response.closed) end()
    response.once("finish", end).once("close", end)
    return Deferred.await(over)
  })

/** Nothing of the rest of the body is awaited: answered, the connection ends. */
const refuse = <E>(message: IncomingMessage, response: ServerResponse, error: E) =>
  Effect.suspend(() => {
    response.setHeader("connection", "close")
    message.resume()
    return Effect.fail(error)
  })

const receive = (message: IncomingMessage, response: ServerResponse, into: Uint8Array) =>
  Effect.async<void, WrongLength | TooLarge>((resume) => {
    const expected = into.byteLength
    let received = 0
    const onData = (chunk: Uint8Array) => {
      if (received + chunk.byteLength > expected) {
        stop()
        resume(refuse(message, response, new TooLarge({ expected })))
      } else {
        into.set(chunk, received)
        received += chunk.byteLength
      }
    }
    const onEnd = () => {
      stop()
      resume(received === expected ? Effect.void : Effect.fail(new WrongLength({ expected, actual: received })))
    }
    // The connection broke: nobody hears the answer, and `close` of the response interrupts the request.
    const onError = () => {
      stop()
      resume(Effect.fail(new WrongLength({ expected, actual: received })))
    }
    const stop = () => {
      message.off("data", onData).off("end", onEnd).off("error", onError)
    }
    message.on("data", onData).on("end", onEnd).on("error", onError)
    return Effect.sync(() => {
      stop()
      // What comes after an interruption is dropped, so that a late error does not go unheard.
      message.on("error", () => {}).resume()
    })
  })

export const make = (options: TransferOptions) =>
  Effect.gen(function*() {
    const { blockBytes, bodySeconds, buffers, queue } = options
    const pool = yield* AlignedBuffer.pool({ buffers, byteLength: blockBytes })
    let active = 0
    let stopping = false

    const place = Effect.acquireRelease(
      Effect.suspend((): Effect.Effect<void, Busy | Stopping> => {
        if (stopping) return Effect.fail(new Stopping())
        if (active >= buffers + queue) return Effect.fail(new Busy({ transfers: active }))
        active++
        return Effect.void
      }),
      () =>
        Effect.sync(() => {
          active--
        })
    )

    return Transfers.of({
      active: Effect.sync(() => active),
      isStopping: Effect.sync(() => stopping),
      stop: Effect.sync(() => {
        stopping = true
      }),
      buffer: Effect.gen(function*() {
        const response = NodeHttpServerRequest.toServerResponse(yield* HttpServerRequest.HttpServerRequest)
        // The Scope of a request ends when the last write was queued: what is queued is still read from the buffer. So first the
        // response is sent or gone, then the buffer goes back to the pool, then the place is free.
        yield* place
        const buffer = yield* pool.lease
        // A response that is not taken in time is cut off.
        yield* Effect.sync(() => response.destroy()).pipe(Effect.delay(`${2 * bodySeconds} seconds`), Effect.forkScoped)
        const over = yield* sentOrGone(response)
        yield* Effect.addFinalizer(() => over)
        return buffer
      }),
      receive: (into) =>
        Effect.gen(function*() {
          const request = yield* HttpServerRequest.HttpServerRequest
          const message = NodeHttpServerRequest.toIncomingMessage(request)
          const response = NodeHttpServerRequest.toServerResponse(request)
          yield* receive(message, response, into.bytes).pipe(
            Effect.timeoutOption(`${bodySeconds} seconds`),
            Effect.flatten,
            Effect.catchTag(
              "NoSuchElementException",
              () => refuse(message, response, new TooSlow({ seconds: bodySeconds }))
            )
          )
        }),
      checkLength: Effect.gen(function*() {
        const request = yield* HttpServerRequest.HttpServerRequest
        const length = request.headers["content-length"]
        if (length === undefined || Number(length) === blockBytes) return
        const error = Number(length) > blockBytes
          ? new TooLarge({ expected: blockBytes })
          : new WrongLength({ expected: blockBytes, actual: Number(length) })
        yield* refuse(
          NodeHttpServerRequest.toIncomingMessage(request),
          NodeHttpServerRequest.toServerResponse(request),
          error
        )
      }),
      send: ({ bytes }) =>
        HttpServerResponse.stream(Stream.succeed(bytes), {
          contentLength: bytes.byteLength,
          contentType: "application/octet-stream"
        })
    })
  })
