/** Many clients of the service at once: each puts a block, gets it back, compares every byte, and goes on with the next. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { randomFillSync } from "node:crypto"
import { Agent, request } from "node:http"

export class Failed extends Data.TaggedError("Failed")<{ readonly message: string }> {}

const page = 4096

/** Blocks by their hash: a piece of one buffer of random bytes, with the hash in each page of it. */
export const contents = (blockBytes: number) => {
  const pieces = 16_384
  const random = randomFillSync(Buffer.alloc(blockBytes + pieces * page))
  /** Numbers that follow one another begin far apart. */
  return (into: Buffer, hash: bigint) => {
    const begin = Number((hash * 0x9e37_79b1n) % BigInt(pieces)) * page
    random.copy(into, 0, begin, begin + blockBytes)
    for (let at = 0; at + 8 <= blockBytes; at += page) into.writeBigUInt64LE(hash, at)
  }
}

interface Answer {
  readonly status: number
  /** Of what is no block. */
  readonly text: string
  /** Whether the body was `expected`, byte by byte. */
  readonly same: boolean
}

/** Most that is kept of an answer that is no block. */
const mostText = 64 * 1024

export const ask = (
  agent: Agent,
  method: string,
  url: URL,
  path: string,
  body?: Uint8Array,
  expected?: Buffer
): Effect.Effect<Answer, Failed> =>
  Effect.async((resume) => {
    const fail = (error: Error) => resume(new Failed({ message: `${method}: ${error.message}` }))
    const headers = body === undefined ? {} : { "content-length": body.byteLength }
    // The brackets of an IPv6 address belong to the URL, and are no part of the address.
    const host = url.hostname.replace(/^\[(.*)\]$/, "$1")
    const asked = request({ host, port: url.port, path, agent, method, headers }, (response) => {
      const status = response.statusCode ?? 0
      let text = ""
      let same = true
      let received = 0
      response.on("data", (chunk: Buffer) => {
        const end = received + chunk.byteLength
        if (status !== 200 || expected === undefined) {
          if (text.length < mostText) text += chunk.toString()
        } else if (end > expected.byteLength) same = false
        else if (expected.compare(chunk, 0, chunk.byteLength, received, end) !== 0) same = false
        received = end
      })
      response.on("error", fail).on(
        "end",
        () => resume(Effect.succeed({ status, text, same: same && received === (expected?.byteLength ?? received) }))
      )
    })
    asked.on("error", fail).end(body)
    return Effect.sync(() => asked.destroy())
  })

export const makeAgent = Effect.acquireRelease(
  Effect.sync(() => new Agent({ keepAlive: true, noDelay: true })),
  (agent) => Effect.sync(() => agent.destroy())
)

export interface Tally {
  puts: number
  gets: number
  mismatches: number
  /** Evicted before they were asked for. */
  gone: number
  readonly errors: Map<string, number>
  readonly putMillis: Array<number>
  readonly getMillis: Array<number>
}

export const tally = (): Tally => ({
  puts: 0,
  gets: 0,
  mismatches: 0,
  gone: 0,
  errors: new Map(),
  putMillis: [],
  getMillis: []
})

export interface Load {
  readonly clients: number
  readonly seconds: number
  /** Most that are put. */
  readonly blocks: number
}

/** Made once, run in every round: clients keep their memory, and no hash comes twice. */
export const make = (url: URL, blockBytes: number, clients: number) => {
  const fill = contents(blockBytes)
  const memory = Array.from({ length: clients }, () => Buffer.alloc(blockBytes))
  let hash = BigInt(Date.now() % 1_000_000) << 40n

  const client = (agent: Agent, block: Buffer, to: Tally, mayGoOn: () => boolean) =>
    Effect.gen(function*() {
      const count = (error: string) => to.errors.set(error, (to.errors.get(error) ?? 0) + 1)
      const counted = (method: string, { status, text }: Answer) =>
        count(`${method} ${status} ${/"_tag":"(\w+)"/.exec(text)?.[1] ?? ""}`)
      while (mayGoOn()) {
        const mine = hash++
        const path = `/blocks/${mine.toString(16).padStart(16, "0")}`
        fill(block, mine)
        const begun = performance.now()
        const put = yield* ask(agent, "PUT", url, path, block)
        if (put.status !== 200) {
          counted("PUT", put)
          continue
        }
        to.puts++
        const halfway = performance.now()
        to.putMillis.push(halfway - begun)
        const got = yield* ask(agent, "GET", url, path, undefined, block)
        to.getMillis.push(performance.now() - halfway)
        if (got.status === 404) to.gone++
        else if (got.status !== 200) counted("GET", got)
        else if (got.same) to.gets++
        else to.mismatches++
      }
    }).pipe(
      Effect.catchAll(({ message }) => Effect.sync(() => to.errors.set(message, (to.errors.get(message) ?? 0) + 1)))
    )

  /** How many seconds it took. */
  return (to: Tally, { blocks, seconds }: Omit<Load, "clients">) =>
    Effect.gen(function*() {
      // One for each turn: a server ends a connection that was idle for long, perhaps just as it is used again.
      const agent = yield* makeAgent
      const begun = performance.now()
      let left = blocks
      const mayGoOn = () => left-- > 0 && performance.now() < begun + seconds * 1000
      yield* Effect.forEach(memory, (block) => client(agent, block, to, mayGoOn), {
        concurrency: "unbounded",
        discard: true
      })
      return (performance.now() - begun) / 1000
    }).pipe(Effect.scoped)
}
