/** The service of the examples, as a process: what it answers, that it ends well, and that nothing is left. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { randomBytes } from "node:crypto"
import { watch } from "node:fs"
import { request } from "node:http"
import type { ClientRequest, IncomingMessage } from "node:http"
import { connect } from "node:net"
import { serve } from "../examples/service/server.js"
import type { TransferOptions } from "../examples/service/transfers.js"
import * as AlignedBuffer from "../src/AlignedBuffer.js"
import * as BlockStore from "../src/BlockStore.js"
import * as DiskStorage from "../src/DiskStorage.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import { temporaryDirectory } from "./engines/engines.js"
import { assertNothingLeft, exitCode, start } from "./signals/processes.js"

const blockBytes = 64 * 1024
const env = {
  SERVICE_PORT: "0",
  SERVICE_BLOCK_BYTES: String(blockBytes),
  DYN_KVBM_DISK_ZEROFILL_FALLBACK: "true"
}

const service = Effect.gen(function*() {
  const running = yield* start(process.execPath, ["--import", "tsx", "examples/service/main.ts"], { env })
  assert.isTrue(yield* running.printed(/docs/), running.output())
  const url = /http:\S+:\d+/.exec(running.output())?.[0] ?? "none"
  const ask = (method: string, path: string, body?: Uint8Array | string, headers: Record<string, string> = {}) =>
    Effect.promise(async () => {
      const response = await fetch(`${url}${path}`, { method, headers, ...(body === undefined ? {} : { body }) })
      return { status: response.status, body: Buffer.from(await response.arrayBuffer()) }
    })
  return { running, url, ask }
})

const answered = (asked: ClientRequest) =>
  Effect.async<{ readonly status: number; readonly body: string }>((resume) => {
    asked.on("error", (error) => resume(Effect.die(error))).on("response", (response) => {
      let body = ""
      response.on("data", (chunk) => {
        body += String(chunk)
      }).on("end", () => resume(Effect.succeed({ status: response.statusCode ?? 0, body })))
    })
  })

describe("the service", () => {
  it.scopedLive("answers, and refuses what is wrong by name", () =>
    Effect.gen(function*() {
      const { ask, running } = yield* service
      const block = randomBytes(blockBytes)
      const one = "/blocks/00000000000000ab"
      const tag = (body: Buffer) => /.*"_tag":"(\w+)"/s.exec(body.toString())?.[1]
      const refused = (answer: { readonly status: number; readonly body: Buffer }) => [answer.status, tag(answer.body)]

      assert.deepStrictEqual(refused(yield* ask("GET", one)), [404, "BlockMissing"])
      const put = yield* ask("PUT", one, block)
      assert.deepStrictEqual([put.status, put.body.toString()], [200, "{\"outcome\":\"stored\"}"])
      assert.include((yield* ask("PUT", one, block)).body.toString(), "duplicate")
      const got = yield* ask("GET", one)
      assert.strictEqual(got.status, 200)
      assert.isTrue(got.body.equals(block))

      assert.deepStrictEqual(refused(yield* ask("PUT", one, block.subarray(1))), [400, "WrongLength"])
      assert.deepStrictEqual(
        refused(yield* ask("PUT", one, Buffer.concat([block, block]))),
        [413, "TooLarge"]
      )
      for (const hash of ["ab", "00000000000000xy", "00000000000000abc"]) {
        assert.deepStrictEqual(refused(yield* ask("PUT", `/blocks/${hash}`, block)), [400, "HttpApiDecodeError"])
      }

      const match = (...hashes: ReadonlyArray<string>) =>
        ask("POST", "/match", JSON.stringify({ hashes }), { "content-type": "application/json" })
      const matched = yield* match("00000000000000ab", "00000000000000ac")
      assert.deepStrictEqual([matched.status, matched.body.toString()], [200, "{\"blocks\":1}"])
      assert.strictEqual((yield* match("ab")).status, 400)

      const health = yield* ask("GET", "/health")
      assert.strictEqual(health.status, 200)
      assert.include(health.body.toString(), "\"storagesFailed\":0")
      const stats = yield* ask("GET", "/stats")
      assert.include(stats.body.toString(), `"blockBytes":${blockBytes}`)
      assert.include(stats.body.toString(), "\"transfers\":0")
      const metrics = (yield* ask("GET", "/metrics")).body.toString()
      assert.match(metrics, /^block_store_blocks_total\{event="stored"\} 1$/m)
      assert.match(metrics, /^block_store_latency_ms_bucket\{transfer="onboard",le="\+Inf"\} 1$/m)
      assert.notInclude(metrics, running.directory)
      assert.include((yield* ask("GET", "/openapi.json")).body.toString(), "/blocks/{hash}")
      const docs = (yield* ask("GET", "/docs")).body.toString()
      assert.include(docs, "Blocks on disk")
      assert.include(docs, "\"withDefaultFonts\":false,\"telemetry\":false")

      assert.strictEqual((yield* ask("DELETE", one)).status, 204)
      assert.deepStrictEqual(refused(yield* ask("GET", one)), [404, "BlockMissing"])
      yield* running.signal("SIGINT", "leader")
      assert.strictEqual((yield* running.ended).code, exitCode("SIGINT"), running.output())
      yield* assertNothingLeft(running)
    }))

  it.scopedLive("SIGTERM lets an upload end, and drops one that was given up", () =>
    Effect.gen(function*() {
      const { ask, running, url } = yield* service
      const block = randomBytes(blockBytes)
      const headers = { "content-length": blockBytes }
      const givenUp = request(`${url}/blocks/0000000000000001`, { method: "PUT", headers })
      givenUp.on("error", () => {}).write(block.subarray(0, 1000))
      const slow = request(`${url}/blocks/0000000000000002`, { method: "PUT", headers })
      slow.write(block.subarray(0, 1000))
      const transfers = (count: number) =>
        Effect.repeat(ask("GET", "/stats"), {
          until: ({ body }) => body.toString().includes(`"transfers":${count}`)
        })
      yield* transfers(2)
      givenUp.destroy()
      yield* transfers(1)
      yield* running.signal("SIGTERM", "leader")
      // The drain has begun.
      yield* Effect.repeat(Effect.option(Effect.tryPromise(() => fetch(url))), { until: Option.isNone })
      const answer = yield* Effect.zipLeft(
        Effect.zipRight(Effect.sync(() => slow.end(block.subarray(1000))), answered(slow)),
        Effect.void
      )
      assert.deepStrictEqual(answer, { status: 200, body: "{\"outcome\":\"stored\"}" })
      assert.strictEqual((yield* running.ended).code, exitCode("SIGTERM"), running.output())
      yield* assertNothingLeft(running)
    }))

  it.scopedLive("under load every byte is the one that was put", () =>
    Effect.gen(function*() {
      const load = ["--clients", "8", "--rounds", "1", "--blocks", "40", "--seconds", "8"]
      const args = ["--import", "tsx", "examples/service/load.ts", ...load]
      const running = yield* start(process.execPath, args, { env })
      assert.strictEqual((yield* running.ended).code, 0, running.output())
      assert.match(running.output(), /get {2}40, .*every byte compared\nmismatches 0, errors 0/)
      assert.match(running.output(), /^service to store alone {2}median \d/m)
      assert.match(running.output(), /^service {2}RSS at most \d+ MB, CPU \d/m)
      yield* assertNothingLeft(running)
    }))
})

interface Simulated extends Partial<TransferOptions> {
  readonly capacity?: number
  readonly drainSeconds?: number
  /** What is offloaded is never answered, and cannot be interrupted. */
  readonly hangs?: boolean
}

/** The service in this process, on a simulated disk, with a door before each transfer of the store. */
const simulated = ({ capacity = 8, hangs = false, ...given }: Simulated = {}) =>
  Effect.gen(function*() {
    const options = { blockBytes, buffers: 1, queue: 4, bodySeconds: 60, drainSeconds: 60, ...given }
    const storage = yield* DiskStorage.make({ size: capacity * options.blockBytes })
    const store = yield* BlockStore.make([storage], { blockBytes: options.blockBytes, failureLimit: 2 })
    const door = Effect.unsafeMakeLatch(true)
    const behindTheDoor: BlockStore.BlockStore = {
      ...store,
      offload: (...batch) => hangs ? Effect.uninterruptible(Effect.never) : door.whenOpen(store.offload(...batch)),
      onboard: (...batch) => door.whenOpen(store.onboard(...batch))
    }
    const scope = yield* Scope.make()
    yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
    const url = yield* serve({
      ...options,
      host: "127.0.0.1",
      port: 0,
      verdict: { io: "direct", gpu: "unavailable", reasons: { io: [], gpu: [] } }
    }).pipe(Effect.provideService(BlockStore.BlockStore, behindTheDoor), Scope.extend(scope))

    const open = (method: string, path: string, headers: Record<string, number> = {}) =>
      // Each on a connection of its own, so that none waits for another and none is used again.
      request(`${url}${path}`, { agent: false, headers, method })
    const ask = (method: string, path: string, body?: Uint8Array) =>
      Effect.flatMap(
        Effect.sync(() => {
          const asked = open(method, path, body === undefined ? {} : { "content-length": body.byteLength })
          asked.end(body)
          return asked
        }),
        answered
      )
    return {
      ask,
      door,
      open,
      store,
      url,
      /** Done when so many transfers run or wait. */
      transfers: (count: number) =>
        Effect.repeat(ask("GET", "/stats"), { until: ({ body }) => body.includes(`"transfers":${count},`) }),
      stop: Scope.close(scope, Exit.void)
    }
  })

const engine = (options: SimulatedSyscalls.EngineOptions = {}) =>
  Layer.provideMerge(SimulatedSyscalls.layerEngine(options), SimulatedSyscalls.layer())

/** The head of an answer, of which nothing more is read. */
const head = (asked: ClientRequest) =>
  Effect.async<IncomingMessage>((resume) => {
    asked.on("error", () => {}).on("response", (response) => resume(Effect.succeed(response.on("error", () => {}))))
  })

const gone = (emitter: ClientRequest | IncomingMessage) =>
  Effect.async<void>((resume) => {
    if (emitter.closed) return resume(Effect.void)
    emitter.once("close", () => resume(Effect.void))
  })

/** A connection, and what has come by its end. */
const talk = (port: number) =>
  Effect.gen(function*() {
    const ended = yield* Deferred.make<string>()
    const socket = yield* Effect.acquireRelease(
      Effect.sync(() => connect(port, "127.0.0.1")),
      (socket) => Effect.sync(() => socket.destroy())
    )
    let said = ""
    socket.on("error", () => {}).on("data", (chunk) => {
      said += String(chunk)
    }).on("close", () => Deferred.unsafeDone(ended, Effect.succeed(said)))
    return { ended: Deferred.await(ended), socket }
  })

const is = (status: number, tag: string) => (answer: { readonly status: number; readonly body: string }) => {
  assert.strictEqual(answer.status, status, answer.body)
  assert.include(answer.body, tag)
}

/** More than sockets of loopback hold, so that a reader who does not read is noticed. */
const large = 32 * 1024 * 1024

describe("the service on a simulated disk", () => {
  const block = randomBytes(blockBytes)
  const path = (hash: number) => `/blocks/${hash.toString(16).padStart(16, "0")}`

  /** Put past HTTP, for which a service that cuts off soon leaves no time. */
  const putLarge = (store: BlockStore.BlockStore) =>
    Effect.gen(function*() {
      const data = yield* AlignedBuffer.make(large)
      assert.strictEqual((yield* store.offload([{ hash: 1n, data }])).failures.length, 0)
    })

  it.scopedLive("refuses what neither runs nor may wait, and not what is not there", () =>
    Effect.gen(function*() {
      const { ask, door, transfers } = yield* simulated({ buffers: 1, queue: 1 })
      yield* door.close
      const both = yield* Effect.fork(Effect.all([1, 2].map((hash) => ask("PUT", path(hash), block)), {
        concurrency: 2
      }))
      yield* transfers(2)
      is(503, "\"Busy\"")(yield* ask("PUT", path(3), block))
      is(404, "\"BlockMissing\"")(yield* ask("GET", path(3)))
      yield* door.open
      for (const answer of yield* both) is(200, "stored")(answer)
      yield* transfers(0)
      is(200, "stored")(yield* ask("PUT", path(3), block))
    }).pipe(Effect.provide(engine())))

  it.scopedLive("being stopped, it refuses what comes and ends what runs", () =>
    Effect.gen(function*() {
      const { door, stop, transfers, url } = yield* simulated()
      yield* door.close
      const port = Number(new URL(url).port)
      const put = (hash: number) =>
        Buffer.concat([
          Buffer.from(
            `PUT ${path(hash)} HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-length: ${blockBytes}\r\n\r\n`
          ),
          block
        ])
      const [first, second] = [yield* talk(port), yield* talk(port)]
      first.socket.write(put(1))
      // It has begun, so that its connection is not closed as one that nobody uses; no other is accepted later.
      second.socket.write(put(2).subarray(0, 10))
      yield* transfers(1)
      const stopping = yield* Effect.fork(stop)
      const refused = Effect.async<boolean>((resume) => {
        const other = connect(port, "127.0.0.1", () => {
          other.destroy()
          resume(Effect.succeed(false))
        }).on("error", () => resume(Effect.succeed(true)))
      })
      yield* Effect.repeat(refused, { until: (refused) => refused })
      second.socket.write(put(2).subarray(10))
      assert.match(yield* second.ended, /^HTTP\/1\.1 503 .*"Stopping"/s)
      yield* door.open
      assert.match(yield* first.ended, /^HTTP\/1\.1 200 .*stored/s)
      yield* stopping
    }).pipe(Effect.provide(engine())))

  it.scopedLive("a request behind one that is not answered yet ends its connection, and keeps no buffer", () =>
    Effect.gen(function*() {
      const { ask, store, transfers, url } = yield* simulated({ blockBytes: large, buffers: 2, capacity: 2 })
      yield* putLarge(store)
      for (let round = 0; round < 3; round++) {
        const { ended, socket } = yield* talk(Number(new URL(url).port))
        socket.pause()
        socket.write(`GET ${path(1)} HTTP/1.1\r\nhost: here\r\n\r\n`.repeat(4))
        yield* Effect.zipRight(transfers(0), Effect.sync(() => socket.resume()))
        assert.isBelow((yield* ended).length, large)
      }
      assert.strictEqual((yield* ask("GET", path(1))).status, 200)
    }).pipe(Effect.provide(engine())))

  it.scopedLive("a body that is no JSON is not looked at, nor are its files written to a disk", () =>
    Effect.gen(function*() {
      const { url } = yield* simulated()
      const watched = yield* temporaryDirectory
      const before = process.env["TMPDIR"]
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          process.env["TMPDIR"] = watched
        }),
        () =>
          Effect.sync(() => {
            if (before === undefined) delete process.env["TMPDIR"]
            else process.env["TMPDIR"] = before
          })
      )
      let written = 0
      const watcher = watch(watched, () => {
        written += 1
      })
      yield* Effect.addFinalizer(() => Effect.sync(() => watcher.close()))
      const form = new FormData()
      form.append("file", new Blob([block]), "file")
      const match = (body: string | FormData, type?: string) =>
        Effect.promise(() =>
          fetch(`${url}/match`, {
            method: "POST",
            body,
            ...(type === undefined ? {} : { headers: { "content-type": type } })
          })
        )
      assert.strictEqual((yield* match(form)).status, 415)
      assert.strictEqual((yield* match("a=b", "application/x-www-form-urlencoded")).status, 415)
      assert.strictEqual((yield* match("{\"hashes\":[]}", "text/plain")).status, 415)
      assert.strictEqual((yield* match("{\"hashes\":[]}", "application/jsonp")).status, 415)
      assert.strictEqual((yield* match("{\"hashes\":[]}", "application/json; charset=utf-8")).status, 200)
      yield* Effect.sleep("50 millis")
      assert.strictEqual(written, 0)
    }).pipe(Effect.provide(engine())))

  it.scopedLive("a body that does not come in time is given up", () =>
    Effect.gen(function*() {
      const { ask, open, transfers } = yield* simulated({ bodySeconds: 0.05 })
      const slow = open("PUT", path(1), { "content-length": blockBytes })
      slow.write(block.subarray(1))
      is(408, "\"TooSlow\"")(yield* answered(slow))
      yield* transfers(0)
      is(404, "\"BlockMissing\"")(yield* ask("GET", path(1)))
      is(200, "stored")(yield* ask("PUT", path(1), block))
    }).pipe(Effect.provide(engine())))

  it.scopedLive("there is no room where every block is pinned", () =>
    Effect.gen(function*() {
      const { ask, store } = yield* simulated({ capacity: 1 })
      is(200, "stored")(yield* ask("PUT", path(1), block))
      yield* Effect.gen(function*() {
        yield* store.lease(1n)
        is(507, "\"StoreFull\"")(yield* ask("PUT", path(2), block))
      }).pipe(Effect.scoped)
      is(200, "stored")(yield* ask("PUT", path(2), block))
    }).pipe(Effect.provide(engine())))

  it.scopedLive("a write that fails is said, and so is that no storage is left", () =>
    Effect.gen(function*() {
      const { ask } = yield* simulated()
      is(500, "\"IoFailed\"")(yield* ask("PUT", path(1), block))
      is(500, "\"IoFailed\"")(yield* ask("PUT", path(2), block))
      is(507, "\"NoStorageLeft\"")(yield* ask("PUT", path(3), block))
      is(503, "\"Unhealthy\"")(yield* ask("GET", "/health"))
    }).pipe(Effect.provide([engine({ fail: 1 }), Logger.remove(Logger.defaultLogger)])))

  it.scopedLive("an upload that is given up stores nothing, and its buffer comes back", () =>
    Effect.gen(function*() {
      const { ask, door, open, transfers } = yield* simulated()
      const first = open("PUT", path(1), { "content-length": blockBytes })
      first.on("error", () => {}).write(block.subarray(1))
      yield* transfers(1)
      first.destroy()
      yield* transfers(0)
      // And when all of it has come, and the store was not asked yet.
      yield* door.close
      const second = open("PUT", path(2), { "content-length": blockBytes })
      second.on("error", () => {}).end(block)
      yield* transfers(1)
      second.destroy()
      yield* transfers(0)
      yield* door.open
      for (const hash of [1, 2]) {
        is(404, "\"BlockMissing\"")(yield* ask("GET", path(hash)))
        is(200, "stored")(yield* ask("PUT", path(hash), block))
      }
    }).pipe(Effect.provide(engine())))

  it.scopedLive("bodies without a length are measured as they come", () =>
    Effect.gen(function*() {
      const { ask, open, transfers } = yield* simulated()
      const chunked = (hash: number, ...pieces: ReadonlyArray<Uint8Array>) =>
        Effect.suspend(() => {
          const asked = open("PUT", path(hash))
          pieces.forEach((piece) => asked.write(piece))
          asked.end()
          return answered(asked)
        })
      is(413, "\"TooLarge\"")(yield* chunked(1, block, block.subarray(0, 1)))
      is(400, `"actual":${blockBytes - 1}`)(yield* chunked(1, block.subarray(0, 1), block.subarray(2)))
      is(404, "\"BlockMissing\"")(yield* ask("GET", path(1)))
      is(200, "stored")(yield* chunked(1, block.subarray(0, 1), block.subarray(1)))
      yield* transfers(0)
    }).pipe(Effect.provide(engine())))

  it.scopedLive("who does not read is cut off, and the buffer comes back", () =>
    Effect.gen(function*() {
      const { open, store, transfers } = yield* simulated({ blockBytes: large, bodySeconds: 0.2, capacity: 2 })
      yield* putLarge(store)
      const asked = open("GET", path(1))
      asked.end()
      const response = yield* head(asked)
      yield* transfers(0)
      let received = 0
      response.on("data", (chunk: Buffer) => {
        received += chunk.byteLength
      })
      yield* gone(response)
      assert.isBelow(received, large)
      assert.strictEqual((yield* store.stats).pinned, 0)
    }).pipe(Effect.provide(engine())))

  it.scopedLive("who goes before all was read leaves no buffer behind", () =>
    Effect.gen(function*() {
      const { ask, door, open, store, transfers } = yield* simulated({ blockBytes: large, capacity: 2 })
      yield* putLarge(store)
      const sent = open("GET", path(1))
      sent.end()
      const response = yield* head(sent)
      yield* transfers(1)
      response.destroy()
      yield* transfers(0)
      // And before the store was asked.
      yield* door.close
      const waiting = open("GET", path(1))
      waiting.on("error", () => {}).end()
      yield* transfers(1)
      waiting.destroy()
      yield* transfers(0)
      yield* door.open
      assert.strictEqual((yield* ask("GET", path(1))).status, 200)
    }).pipe(Effect.provide(engine())))

  it.scopedLive("being stopped, it waits for nobody longer than it may", () =>
    Effect.gen(function*() {
      const { open, stop, store, transfers } = yield* simulated({
        blockBytes: large,
        buffers: 2,
        capacity: 2,
        drainSeconds: 0.05
      })
      yield* putLarge(store)
      const slow = open("GET", path(1))
      slow.end()
      const response = yield* head(slow)
      const stuck = open("PUT", path(2), { "content-length": large })
      stuck.on("error", () => {}).write(block)
      yield* transfers(2)
      // It ends only when every buffer has come back.
      yield* stop
      yield* gone(stuck)
      response.resume()
      yield* gone(response)
      assert.isFalse(response.complete)
      assert.deepStrictEqual(yield* store.hashes, [1n])
    }).pipe(Effect.provide(engine())))

  it.scopedLive("being stopped, it ends although the disk never answers, and logs the transfer", () => {
    const lines = Array<string>()
    const logger = Logger.make(({ message }) => void lines.push(String(message)))
    return Effect.gen(function*() {
      const { open, stop, transfers } = yield* simulated({ drainSeconds: 0.05, hangs: true })
      open("PUT", path(1), { "content-length": blockBytes }).on("error", () => {}).end(block)
      yield* transfers(1)
      yield* stop
      assert.include(lines.join("\n"), "1 transfers still wait for the disk")
    }).pipe(Effect.provide([engine(), Logger.replace(Logger.defaultLogger, logger)]))
  })
})
