/** Requests to a model, as the tokens of a conversation grow: generated from a seed, or read from a file. */
import type { PlatformError } from "@effect/platform/Error"
import { FileSystem } from "@effect/platform/FileSystem"
import type { BlockStore } from "effect-disk-storage"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { createHash } from "node:crypto"
import { printable } from "./quote.js"

export interface Request {
  /** When it came: requests are replayed in that order. */
  readonly at: number
  /** Tokens that the prompt has, a last part of a block included. */
  readonly promptTokens: number
  /** The first of `hashes` are the prompt's; what follows is known only after the answer. */
  readonly promptBlocks: number
  readonly hashes: ReadonlyArray<BlockStore.SequenceHash>
}

export class TraceError extends Data.TaggedError("TraceError")<{ readonly message: string }> {}

/** The model that requests are generated from. Lengths are means; times are seconds. */
export const workload = {
  seed: 1,
  conversations: 24,
  /** Between two conversations that begin, exponential. */
  arrival: 4,
  /** The system prompt of rank r is taken with a probability in proportion to 1 / r^zipf. */
  systemPrompts: 8,
  zipf: 1,
  /** Tokens of a system prompt, evenly from `min` to `max`. */
  systemPrompt: { min: 256, max: 1024 },
  /** Turns of a conversation, geometric. */
  turns: 4,
  /** Tokens of a user's message and of an answer, log-normal around their median. */
  message: { median: 48, sigma: 0.8 },
  answer: { median: 200, sigma: 0.6 },
  /** A user thinks, exponential; an answer comes at so many tokens a second. */
  think: 20,
  tokensPerSecond: 50
} as const

/** A block is named by its parent's name and by what it holds: 64 bits of SHA-256. */
const chain = (parent: bigint, content: Uint8Array): bigint => {
  const name = Buffer.alloc(8)
  name.writeBigUInt64LE(parent)
  return createHash("sha256").update(name).update(content).digest().readBigUInt64LE()
}

/** Numbers from 0 up to 1, the same for a seed: mulberry32. */
const numbers = (seed: number) => {
  let state = seed
  return () => {
    state = (state + 0x6d2b_79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** All requests of the workload, in the order of their times, in blocks of `pageSize` tokens. */
export const generate = (pageSize: number, conversations: number = workload.conversations): ReadonlyArray<Request> => {
  const random = numbers(workload.seed)
  const exponential = (mean: number) => -mean * Math.log(1 - random())
  const logNormal = ({ median, sigma }: { readonly median: number; readonly sigma: number }) => {
    const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())
    return Math.max(1, Math.round(median * Math.exp(sigma * normal)))
  }
  const tokens = (count: number) => Array.from({ length: count }, () => Math.floor(random() * 32_000))

  const prompts = Array.from({ length: workload.systemPrompts }, (_, index) => ({
    weight: 1 / (index + 1) ** workload.zipf,
    tokens: tokens(
      workload.systemPrompt.min + Math.floor(random() * (workload.systemPrompt.max - workload.systemPrompt.min + 1))
    )
  }))
  const weights = prompts.reduce((sum, { weight }) => sum + weight, 0)
  const systemPrompt = () => {
    let left = random() * weights
    return (prompts.find(({ weight }) => (left -= weight) < 0) ?? prompts[0])?.tokens ?? []
  }

  const requests: Array<Request> = []
  let begin = 0
  for (let conversation = 0; conversation < conversations; conversation++) {
    begin += exponential(workload.arrival)
    let at = begin
    const said = [...systemPrompt()]
    const hashes: Array<bigint> = []
    const say = (words: ReadonlyArray<number>) => {
      for (const word of words) said.push(word)
      for (let end = (hashes.length + 1) * pageSize; end <= said.length; end += pageSize) {
        const content = new Uint8Array(Uint32Array.from(said.slice(end - pageSize, end)).buffer)
        hashes.push(chain(hashes.at(-1) ?? 0n, content))
      }
    }
    do {
      say(tokens(logNormal(workload.message)))
      const promptTokens = said.length
      const promptBlocks = hashes.length
      const answer = tokens(logNormal(workload.answer))
      say(answer)
      requests.push({ at, promptTokens, promptBlocks, hashes: [...hashes] })
      at += answer.length / workload.tokensPerSecond + exponential(workload.think)
    } while (random() >= 1 / workload.turns)
  }
  return requests.toSorted((one, other) => one.at - other.at)
}

/** The blocks of Mooncake's traces: 512 tokens, the last of a prompt maybe fewer. */
export const mooncakePageSize = 512

/** A line of a trace. */
export const exampleLine = `{"timestamp": 0, "input_length": 1300, "output_length": 52, "hash_ids": [0, 1, 2]}`

const shown = (value: unknown) => printable(JSON.stringify(value) ?? String(value))

const aRequest = `a request is such as ${exampleLine}`

const Count = Schema.NonNegativeInt.annotations({
  message: ({ actual }) => ({
    message: `is ${shown(actual)}, and not a whole number from 0 to ${Number.MAX_SAFE_INTEGER}`,
    override: true
  })
})

/**
 * A line of the traces that came with Mooncake (FAST '25): https://github.com/kvcache-ai/Mooncake, `FAST25-release/traces`. Two
 * requests have an id in common where all tokens up to the end of that block are the same. The timestamp is when the request came,
 * in milliseconds; several may have come at once.
 */
const Row = Schema.Struct({
  timestamp: Schema.NonNegative.annotations({
    message: ({ actual }) => ({ message: `is ${shown(actual)}, and not a number from 0`, override: true })
  }),
  input_length: Count,
  output_length: Count,
  hash_ids: Schema.Array(Count).annotations({
    message: ({ actual }) => `is ${shown(actual)}, and not a list of whole numbers`
  })
}).annotations({ message: ({ actual }) => `it is ${shown(actual)}; ${aRequest}` }).pipe(
  Schema.filter(({ hash_ids, input_length }) => {
    const blocks = Math.ceil(input_length / mooncakePageSize)
    return hash_ids.length === blocks ||
      `there must be ${blocks} hash_ids, since input_length is ${input_length} and a block has ${mooncakePageSize} tokens; there are ${hash_ids.length}`
  })
)

const decodeJson = Schema.decode(Schema.parseJson())
const decodeRow = Schema.decodeUnknown(Row)

/** The first thing that is wrong, in a sentence. */
const sentence = ({ issue }: ParseResult.ParseError) => {
  const [first] = ParseResult.ArrayFormatter.formatIssueSync(issue)
  if (first === undefined) return aRequest
  const [field, index] = first.path
  if (field === undefined) return first.message
  const place = index === undefined ? String(field) : `${String(field)}[${String(index)}]`
  return `${place} ${first._tag === "Missing" ? `is missing; ${aRequest}` : first.message}`
}

const decodeLine = (line: string) =>
  Effect.gen(function*() {
    const json = yield* Effect.mapError(
      decodeJson(line),
      (error) => `it is not JSON (${printable(sentence(error))}); ${aRequest}`
    )
    return yield* Effect.mapError(decodeRow(json), sentence)
  })

/** What the filesystem says, with the path, and without where in the code it was said. */
const unreadable = (path: string) => (error: PlatformError) =>
  new TraceError({
    message: error._tag === "SystemError" && error.reason === "NotFound"
      ? `There is no file ${path}.`
      : `${path} cannot be read: ${error.description ?? error.message}`
  })

const lines = (path: string) =>
  Stream.unwrap(Effect.gen(function*() {
    const fs = yield* FileSystem
    const { type } = yield* Effect.mapError(fs.stat(path), unreadable(path))
    if (type === "Directory") {
      return yield* new TraceError({ message: `${path} is a directory; a TRACE is a file of Mooncake's format.` })
    }
    return Stream.mapError(fs.stream(path), unreadable(path))
  })).pipe(Stream.decodeText(), Stream.splitLines)

/** All requests of a file in Mooncake's format, in the order of their times; those of the same time in that of the file. */
export const read = (path: string): Effect.Effect<ReadonlyArray<Request>, TraceError, FileSystem> =>
  lines(path).pipe(
    Stream.zipWithIndex,
    Stream.filter(([line]) => line.trim() !== ""),
    Stream.mapEffect(([line, index]) =>
      Effect.mapError(
        decodeLine(line),
        (what) => new TraceError({ message: `${path}, line ${index + 1}: ${what}` })
      )
    ),
    Stream.map(({ hash_ids, input_length, timestamp }) => {
      const hashes: Array<bigint> = []
      for (const id of hash_ids) hashes.push(chain(hashes.at(-1) ?? 0n, Buffer.from(String(id))))
      return { at: timestamp, promptTokens: input_length, promptBlocks: hashes.length, hashes }
    }),
    Stream.runCollect,
    Effect.map((requests) => Array.from(requests).sort((one, other) => one.at - other.at)),
    Effect.filterOrFail(
      (requests) => requests.length > 0,
      () => new TraceError({ message: `${path} is empty; ${aRequest}, on a line of its own` })
    )
  )
