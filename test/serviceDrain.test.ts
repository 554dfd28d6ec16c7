/** The service of the examples as a process that is stopped while clients do as they like. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { connect } from "node:net"
import type { Socket } from "node:net"
import { assertNothingLeft, exitCode, start, testTimeout } from "./signals/processes.js"
import { program } from "./support/programs.js"

/** More than the sockets of loopback hold. */
const blockBytes = 16 * 1024 * 1024
const block = Buffer.alloc(blockBytes).fill("a block that is longer than any buffer of a socket, ")
const one = "/blocks/0000000000000001"

/** The service, with its block `one` stored. No limit but that of the drain ends anything. */
const service = (drainSeconds: number) =>
  Effect.gen(function*() {
    const running = yield* start(process.execPath, [program(new URL("../examples/service/main.ts", import.meta.url))], {
      env: {
        SERVICE_PORT: "0",
        SERVICE_BLOCK_BYTES: String(blockBytes),
        SERVICE_BODY_SECONDS: "3600",
        SERVICE_DRAIN_SECONDS: String(drainSeconds),
        DYN_KVBM_DISK_ZEROFILL_FALLBACK: "true"
      }
    })
    assert.isTrue(yield* running.printed(/docs/), running.output())
    const url = /http:\S+:\d+/.exec(running.output())?.[0] ?? "none"
    const stored = yield* Effect.promise(() => fetch(`${url}${one}`, { method: "PUT", body: block }))
    assert.strictEqual(stored.status, 200)
    return {
      running,
      port: Number(new URL(url).port),
      transfers: (count: number) =>
        Effect.repeat(Effect.promise(async () => (await fetch(`${url}/stats`)).text()), {
          until: (stats) => stats.includes(`"transfers":${count},`)
        })
    }
  })

interface Talk {
  readonly socket: Socket
  /** What has come by the end of the connection. */
  readonly ended: Effect.Effect<Buffer>
  /** The first bytes have come. */
  readonly answered: Effect.Effect<void>
}

/** A connection on which `text` is written, and which is left alone then. */
const talk = (port: number, text: string, options: { readonly reads?: boolean } = {}) =>
  Effect.gen(function*() {
    const [connected, answered, ended] = yield* Effect.all([
      Deferred.make<void>(),
      Deferred.make<void>(),
      Deferred.make<Buffer>()
    ])
    const socket = yield* Effect.acquireRelease(
      Effect.sync(() => connect({ port, host: "127.0.0.1", allowHalfOpen: true })),
      (socket) => Effect.sync(() => socket.destroy())
    )
    const chunks = Array<Buffer>()
    socket.on("error", () => {})
    if (options.reads !== false) {
      socket.on("data", (chunk: Buffer) => {
        chunks.push(chunk)
        Deferred.unsafeDone(answered, Effect.void)
      })
    }
    const end = () => Deferred.unsafeDone(ended, Effect.succeed(Buffer.concat(chunks)))
    socket.on("end", end).on("close", end)
    socket.write(text, () => Deferred.unsafeDone(connected, Effect.void))
    if (text === "") socket.once("connect", () => Deferred.unsafeDone(connected, Effect.void))
    yield* Deferred.await(connected)
    return { socket, ended: Deferred.await(ended), answered: Deferred.await(answered) } satisfies Talk
  })

/** The service accepts no connection any more. */
const refused = (port: number) =>
  Effect.repeat(
    Effect.async<boolean>((resume) => {
      const other = connect(port, "127.0.0.1", () => {
        other.destroy()
        resume(Effect.succeed(false))
      }).on("error", () => resume(Effect.succeed(true)))
    }),
    { until: (refused) => refused }
  )

const get = `GET ${one} HTTP/1.1\r\nhost: here\r\n\r\n`
const stats = "GET /stats HTTP/1.1\r\nhost: here\r\n\r\n"
const put = (hash: number) =>
  `PUT /blocks/000000000000000${hash} HTTP/1.1\r\nhost: here\r\ncontent-length: ${blockBytes}\r\n\r\n`
const upgrade = "GET /stats HTTP/1.1\r\nhost: here\r\nconnection: upgrade\r\nupgrade: websocket\r\n" +
  "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

describe("the service, stopped", { timeout: testTimeout }, () => {
  /** None of them ends its connection. */
  const clients: ReadonlyArray<readonly [text: string, reads: boolean]> = [
    ["", true],
    ["GET /st", true],
    ["GET /stats HTTP/1.1\r\nhost:", true],
    [stats, true],
    [upgrade, true],
    [stats.repeat(1000), false]
  ]
  it.scopedLive("ends although clients are silent, halfway through a request, idle, or upgrade", () =>
    Effect.gen(function*() {
      // No drain that the test would live to see.
      const { port, running } = yield* service(3600)
      for (const [text, reads] of clients) {
        const { answered } = yield* talk(port, text, { reads })
        if (text.includes("\r\n\r\n") && reads) yield* answered
      }
      yield* running.signal("SIGTERM", "leader")
      assert.strictEqual((yield* running.ended).code, exitCode("SIGTERM"), running.output())
      assert.notInclude(running.output(), "cut when the drain")
      yield* assertNothingLeft(running)
    }))

  it.scopedLive("cuts a body that does not come and an answer that is not read, and logs how much of them there was", () =>
    Effect.gen(function*() {
      const { port, running, transfers } = yield* service(1)
      yield* talk(port, `${put(2)}abc`)
      yield* talk(port, get, { reads: false })
      // It sends nothing more, and is owed an answer still.
      const { socket } = yield* talk(port, `${put(3)}abcde`)
      socket.end()
      yield* transfers(2)
      yield* running.signal("SIGTERM", "leader")
      assert.strictEqual((yield* running.ended).code, exitCode("SIGTERM"), running.output())
      assert.include(running.output(), `PUT /blocks/0000000000000002: 3 of ${blockBytes} bytes received`)
      const sent = new RegExp(`GET ${one}: (\\d+) of ${blockBytes} bytes sent`).exec(running.output())?.[1]
      assert.isAbove(Number(sent), 0, running.output())
      assert.isBelow(Number(sent), blockBytes, running.output())
      assert.match(running.output(), /released\n$/)
      yield* assertNothingLeft(running)
    }))

  it.scopedLive("sends an answer that has begun to its last byte, and ends then", () =>
    Effect.gen(function*() {
      const { port, running } = yield* service(3600)
      const { answered, ended, socket } = yield* talk(port, get)
      yield* answered
      socket.pause()
      yield* running.signal("SIGTERM", "leader")
      yield* refused(port)
      assert.notInclude(running.output(), "released")
      socket.resume()
      const answer = yield* ended
      assert.isTrue(answer.subarray(answer.indexOf("\r\n\r\n") + 4).equals(block), `${answer.byteLength} bytes`)
      assert.strictEqual((yield* running.ended).code, exitCode("SIGTERM"), running.output())
      assert.notInclude(running.output(), "cut when the drain")
      yield* assertNothingLeft(running)
    }))

  it.scopedLive("refuses a request on a connection that was kept, and ends the connection", () =>
    Effect.gen(function*() {
      const { port, running, transfers } = yield* service(3600)
      const upload = yield* talk(port, put(2))
      yield* transfers(1)
      const kept = yield* talk(port, stats)
      yield* kept.answered
      // Begun before, so that the connection is not ended as an idle one.
      yield* Effect.async<void>((resume) => void kept.socket.write(stats.slice(0, 5), () => resume(Effect.void)))
      yield* transfers(1)
      const idle = yield* talk(port, stats)
      yield* idle.answered
      yield* running.signal("SIGTERM", "leader")
      yield* refused(port)
      yield* idle.ended
      kept.socket.write(stats.slice(5))
      assert.match(String(yield* kept.ended), /^HTTP\/1\.1 200 .*HTTP\/1\.1 503 .*connection: close.*"Stopping"/is)
      upload.socket.write(block)
      assert.match(String(yield* upload.ended), /^HTTP\/1\.1 200 .*connection: close.*"stored"/is)
      assert.strictEqual((yield* running.ended).code, exitCode("SIGTERM"), running.output())
      yield* assertNothingLeft(running)
    }))
})
