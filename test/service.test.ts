/** The service of the examples, as a process: what it answers, that it ends well, and that nothing is left. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { randomBytes } from "node:crypto"
import { request } from "node:http"
import type { ClientRequest } from "node:http"
import { assertNothingLeft, exitCode, start } from "./signals/processes.js"

const blockBytes = 64 * 1024
const env = {
  PORT: "0",
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

describe("the service", { timeout: 60_000 }, () => {
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
      assert.include((yield* ask("GET", "/docs")).body.toString(), "Blocks on disk")

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
      yield* Effect.sleep("300 millis")
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
