/** The connections of a server, and the requests on them that are not answered to the last byte yet. */
import type { IncomingMessage, Server, ServerResponse } from "node:http"
import { Server as NetServer } from "node:net"
import type { Socket } from "node:net"
import { progressOf } from "./transfers.js"

export interface Connections {
  /** Requests that are not answered to the last byte, on connections that are still there. */
  readonly open: () => number
  /**
   * Accepts no connection from now on, and ends those that no request has begun on. An answer whose head was not sent
   * yet is the last one of its connection, and so is each one that is being sent.
   */
  readonly stop: () => void
  /** Ends every connection at once; a line for each request that is cut by it. */
  readonly cut: () => ReadonlyArray<string>
}

/** Characters of a request's target that are logged. */
const mostTarget = 100

const describe = (message: IncomingMessage, response: ServerResponse): string => {
  const target = message.url ?? ""
  const shown = target.length > mostTarget ? `${target.slice(0, mostTarget)}…` : target
  return `${message.method} ${shown}: ${stateOf(message, response)}`
}

const stateOf = (message: IncomingMessage, response: ServerResponse): string => {
  const progress = progressOf(response)
  if (progress !== undefined) return `${progress.bytes} of ${progress.of} bytes ${progress.direction}`
  if (response.headersSent) {
    const length = Number(response.getHeader("content-length"))
    const unsent = response.socket?.writableLength ?? 0
    return Number.isNaN(length)
      ? `${unsent} bytes of the answer not sent`
      : `${Math.max(0, length - unsent)} of ${length} bytes sent`
  }
  return message.complete ? "not answered" : `0 of ${message.headers["content-length"] ?? "unknown"} bytes taken`
}

export const track = (server: Server): Connections => {
  /** With the bytes that had been read when the last answer had been sent. */
  const sockets = new Map<Socket, number>()
  const exchanges = new Map<ServerResponse, IncomingMessage>()
  let stopping = false

  server.on("connection", (socket) => {
    sockets.set(socket, 0)
    socket.once("close", () => sockets.delete(socket))
  })
  server.on("request", (message, response) => {
    // It waits behind another one of its connection: its end is never emitted.
    if (response.socket === null) return
    const { socket } = message
    if (stopping) response.shouldKeepAlive = false
    exchanges.set(response, message)
    response.once("close", () => {
      exchanges.delete(response)
      if (sockets.has(socket)) sockets.set(socket, socket.bytesRead)
      if (stopping) socket.destroySoon()
    })
  })

  return {
    open: () => exchanges.size,
    stop: () => {
      stopping = true
      // Not `close` of node:http: that also destroys connections whose answer has ended and is not sent yet.
      NetServer.prototype.close.call(server)
      const busy = new Set<Socket>()
      for (const [response, message] of exchanges) {
        busy.add(message.socket)
        if (!response.headersSent) response.shouldKeepAlive = false
      }
      for (const [socket, read] of sockets) if (!busy.has(socket) && socket.bytesRead === read) socket.destroySoon()
    },
    cut: () => {
      const lines = Array.from(exchanges, ([response, message]) => describe(message, response))
      for (const socket of sockets.keys()) socket.destroy()
      return lines
    }
  }
}
