/**
 * `npm run service:load -- --clients 64 --seconds 10 [--blocks N] [--url http://127.0.0.1:8787]`: many clients put blocks and get them
 * back, over loopback, and look at every byte. Without an address it starts the service in this process. Ends with 1 where a byte is
 * wrong or a request fails; that a block was evicted before it was asked for is counted, and no error.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { BlockStore, DiskStorageConfig, Linux, ProcessRuntime } from "effect-disk-storage"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Agent, request } from "node:http"
import { parseArgs } from "node:util"
import { Stats } from "./api.js"
import { serve } from "./server.js"

class Failed extends Data.TaggedError("Failed")<{ readonly message: string }> {}

const { values: given } = parseArgs({
  options: {
    clients: { type: "string", default: "64" },
    seconds: { type: "string", default: "10" },
    blocks: { type: "string", default: "1000000" },
    url: { type: "string" }
  }
})
const [clients, seconds, blocks] = [Number(given.clients), Number(given.seconds), Number(given.blocks)]

/** The content of a block, which its hash says. */
const fill = (block: Uint8Array, hash: bigint) => {
  const words = new Uint32Array(block.buffer, block.byteOffset, block.byteLength / 4)
  const seed = Number(hash & 0xffff_ffffn) ^ Number(hash >> 32n)
  for (let word = 0; word < words.length; word++) words[word] = Math.imul(seed + word, 0x9e37_79b1) ^ (word >>> 3)
}

interface Answer {
  readonly status: number
  readonly body: Buffer
}

const ask = (agent: Agent, method: string, url: string, body?: Uint8Array) =>
  Effect.async<Answer, Failed>((resume) => {
    const fail = (error: Error) => resume(new Failed({ message: `${method}: ${error.message}` }))
    const headers = body === undefined ? {} : { "content-length": body.byteLength }
    const asked = request(url, { agent, method, headers }, (response) => {
      const chunks: Array<Buffer> = []
      response.on("data", (chunk: Buffer) => chunks.push(chunk)).on("error", fail).on(
        "end",
        () => resume(Effect.succeed({ status: response.statusCode ?? 0, body: Buffer.concat(chunks) }))
      )
    })
    asked.on("error", fail).end(body)
    return Effect.sync(() => asked.destroy())
  })

const percentiles = (millis: Array<number>) => {
  const sorted = Float64Array.from(millis).sort()
  const at = (share: number) =>
    sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]?.toFixed(1) ?? "-"
  return `p50 ${at(0.5)}, p90 ${at(0.9)}, p99 ${at(0.99)}, max ${at(1)} ms`
}

const load = (url: string) =>
  Effect.gen(function*() {
    const agent = yield* Effect.acquireRelease(
      Effect.sync(() => new Agent({ keepAlive: true, maxSockets: clients })),
      (agent) => Effect.sync(() => agent.destroy())
    )
    const stats = Effect.flatMap(
      ask(agent, "GET", `${url}/stats`),
      ({ body }) => Schema.decode(Schema.parseJson(Stats))(body.toString())
    )
    const { blockBytes } = yield* stats
    const times = { put: Array<number>(), get: Array<number>() }
    const errors = new Map<string, number>()
    let [puts, gets, gone, mismatches, maxRss] = [0, 0, 0, 0, 0]
    const count = (error: string) => errors.set(error, (errors.get(error) ?? 0) + 1)
    const run = BigInt(Date.now() % 1_000_000)
    const begun = performance.now()
    const until = begun + seconds * 1000
    let next = 0

    const timed = (kind: "put" | "get", address: string, body?: Uint8Array) =>
      Effect.gen(function*() {
        const started = performance.now()
        const answer = yield* ask(agent, kind.toUpperCase(), address, body)
        times[kind].push(performance.now() - started)
        return answer
      })

    const client = Effect.gen(function*() {
      const block = Buffer.from(new ArrayBuffer(blockBytes))
      while (next < blocks && performance.now() < until) {
        const hash = (run << 40n) | (BigInt(next++) << 8n) | 0x5bn
        const address = `${url}/blocks/${hash.toString(16).padStart(16, "0")}`
        fill(block, hash)
        const put = yield* timed("put", address, block)
        if (put.status === 200) puts++
        else {
          count(`PUT ${put.status} ${put.body}`)
          continue
        }
        const got = yield* timed("get", address)
        maxRss = Math.max(maxRss, process.memoryUsage.rss())
        if (got.status === 404) gone++
        else if (got.status !== 200) count(`GET ${got.status} ${got.body}`)
        else if (got.body.equals(block)) gets++
        else mismatches++
      }
    }).pipe(Effect.catchTag("Failed", ({ message }) => Effect.sync(() => count(message))))
    yield* Effect.all(Array.from({ length: clients }, () => client), { concurrency: "unbounded", discard: true })

    const elapsed = (performance.now() - begun) / 1000
    const rate = (done: number) => `${Math.round(done * blockBytes / 1e6 / elapsed)} MB/s`
    const failed = Array.from(errors.values()).reduce((sum, each) => sum + each, 0)
    const { corrupted, evicted, failed: transfersFailed } = yield* stats
    yield* Console.log([
      `${clients} clients, blocks of ${blockBytes} bytes, ${elapsed.toFixed(1)} s`,
      `put  ${puts}, ${rate(puts)}, ${percentiles(times.put)}`,
      `get  ${gets}, ${rate(gets)}, ${percentiles(times.get)}; every byte compared`,
      `mismatches ${mismatches}, errors ${failed}, evicted before the get ${gone}`,
      `store: evicted ${evicted}, corrupted ${corrupted}, failed ${transfersFailed}`,
      `RSS of this process, at most ${Math.round(maxRss / 1e6)} MB`,
      ...Array.from(errors, ([error, times]) => `  ${times} × ${error}`)
    ].join("\n"))
    if (mismatches + failed > 0 || gets === 0) return yield* new Failed({ message: "the load test failed" })
  }).pipe(Effect.scoped)

const here = Effect.gen(function*() {
  const directory = yield* DiskStorageConfig.directory
  const address = yield* serve({
    host: "127.0.0.1",
    port: 0,
    directory,
    buffers: 32,
    queue: 256,
    bodySeconds: 30,
    drainSeconds: 10
  })
  yield* load(address)
}).pipe(
  Effect.scoped,
  Effect.provide(BlockStore.layerConfig({ blockBytes: 1024 * 1024, size: 256 * 1024 * 1024 })),
  Effect.provide(Layer.merge(Linux.layer, NodeFileSystem.layer))
)

ProcessRuntime.runMain(given.url === undefined ? here : load(given.url))
