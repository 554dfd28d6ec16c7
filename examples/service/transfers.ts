/** The buffers that blocks go through, how many may want one, and the bodies of requests and responses. */
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { AlignedBuffer } from "effect-disk-storage"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
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
  /** A buffer, for as long as the Scope lives. */
  readonly buffer: Effect.Effect<AlignedBuffer.AlignedBuffer, Busy | Stopping, Scope.Scope>
  /** Fails for a length that is known beforehand and wrong. */
  readonly checkLength: Effect.Effect<void, WrongLength | TooLarge, HttpServerRequest.HttpServerRequest>
  /** The body of the request, exactly a block, into the buffer. */
  readonly receive: (
    into: AlignedBuffer.AlignedBuffer
  ) => Effect.Effect<void, WrongLength | TooLarge | TooSlow, HttpServerRequest.HttpServerRequest>
  /** Answers with the buffer; done when nothing reads from it any more. */
  readonly send: (
    buffer: AlignedBuffer.AlignedBuffer
  ) => Effect.Effect<HttpServerResponse.HttpServerResponse, never, HttpServerRequest.HttpServerRequest>
}>() {}

/** How much of a block has passed. */
export interface Progress {
  readonly direction: "received" | "sent"
  bytes: number
  readonly of: number
}

const progress = new WeakMap<ServerResponse, Progress>()

/** Undefined where the request moves no block, or waits for a buffer. */
export const progressOf = (response: ServerResponse): Readonly<Progress> | undefined => progress.get(response)

const begin = (response: ServerResponse, direction: Progress["direction"], of: number): Progress => {
  const begun: Progress = { direction, bytes: 0, of }
  progress.set(response, begun)
  return begun
}

/** Nothing of the rest of the body is awaited: answered, the connection ends. */
const refuse = <E>(message: IncomingMessage, response: ServerResponse, error: E) =>
  Effect.suspend(() => {
    response.setHeader("connection", "close")
    message.resume()
    return Effect.fail(error)
  })

/** Each piece goes straight from the socket to its place, without a stream or an effect of its own. */
const receive = (message: IncomingMessage, response: ServerResponse, into: Uint8Array, seconds: number) =>
  Effect.async<void, WrongLength | TooLarge | TooSlow>((resume) => {
    const expected = into.byteLength
    const received = begin(response, "received", expected)
    const stop = () => {
      clearTimeout(timer)
      message.off("data", onData).off("end", onEnd).off("error", onError)
    }
    const end = (how: Effect.Effect<void, WrongLength | TooLarge | TooSlow>) => {
      stop()
      resume(how)
    }
    const onData = (chunk: Uint8Array) => {
      if (received.bytes + chunk.byteLength > expected) end(refuse(message, response, new TooLarge({ expected })))
      else {
        into.set(chunk, received.bytes)
        received.bytes += chunk.byteLength
      }
    }
    const onEnd = () =>
      end(
        received.bytes === expected
          ? Effect.void
          : Effect.fail(new WrongLength({ expected, actual: received.bytes }))
      )
    // The connection broke: nobody hears the answer, and `close` of the response interrupts the request.
    const onError = () => end(Effect.fail(new WrongLength({ expected, actual: received.bytes })))
    const timer = setTimeout(() => end(refuse(message, response, new TooSlow({ seconds }))), seconds * 1000)
    message.on("data", onData).on("end", onEnd).on("error", onError)
    return Effect.sync(() => {
      stop()
      // What comes after an interruption is dropped, so that a late error does not go unheard.
      message.on("error", () => {}).resume()
    })
  })

/** Bytes that are given to the kernel at once. */
const pieceBytes = 256 * 1024

/**
 * Written here, and not by the platform, which tells of no end where the connection breaks: the buffer is free once the kernel has taken
 * the last byte, or the connection is gone. It is not before, so no interruption is heard. In pieces, one after the other, so that it
 * is known how much the kernel has taken.
 */
const send = (response: ServerResponse, bytes: Uint8Array, seconds: number) =>
  Effect.uninterruptible(Effect.async<void>((resume) => {
    if (response.closed) return resume(Effect.void)
    const over = () => {
      clearTimeout(timer)
      response.off("finish", over).off("close", over)
      resume(Effect.void)
    }
    // Who does not take it in time is cut off.
    const timer = setTimeout(() => response.destroy(), seconds * 1000)
    response.once("finish", over).once("close", over)
    response.writeHead(200, {
      "content-type": "application/octet-stream",
      "content-length": bytes.byteLength,
      // It holds whatever a client has put, and is to be shown to nobody.
      "x-content-type-options": "nosniff"
    })
    const sent = begin(response, "sent", bytes.byteLength)
    const next = () => {
      const end = sent.bytes + pieceBytes
      if (end >= bytes.byteLength) return void response.end(bytes.subarray(sent.bytes))
      response.write(bytes.subarray(sent.bytes, end), (error) => {
        // The connection is gone, and `close` follows.
        if (error) return
        sent.bytes = end
        next()
      })
    }
    next()
  }))

const ofNode = Effect.map(HttpServerRequest.HttpServerRequest, (request) => ({
  message: NodeHttpServerRequest.toIncomingMessage(request),
  response: NodeHttpServerRequest.toServerResponse(request)
}))

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
      // Released in turn: the buffer goes back to the pool, then the place is free. What it held is never seen: nothing is stored
      // before a body has filled it, and nothing is sent before a block has.
      buffer: Effect.zipRight(place, pool.leaseUninitialized),
      checkLength: Effect.gen(function*() {
        const { headers } = yield* HttpServerRequest.HttpServerRequest
        const length = headers["content-length"]
        if (length === undefined || Number(length) === blockBytes) return
        const { message, response } = yield* ofNode
        const error = Number(length) > blockBytes
          ? new TooLarge({ expected: blockBytes })
          : new WrongLength({ expected: blockBytes, actual: Number(length) })
        yield* refuse(message, response, error)
      }),
      receive: ({ bytes }) =>
        Effect.flatMap(ofNode, ({ message, response }) => receive(message, response, bytes, bodySeconds)),
      send: ({ bytes }) =>
        Effect.flatMap(
          ofNode,
          // The platform leaves a response alone that has ended.
          ({ response }) => Effect.as(send(response, bytes, bodySeconds), HttpServerResponse.empty())
        )
    })
  })
