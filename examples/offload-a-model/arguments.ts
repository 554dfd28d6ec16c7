/** The arguments of the example, and what is said of wrong ones. */
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Data from "effect/Data"
import * as Either from "effect/Either"
import { parseArgs } from "node:util"
import { quote } from "./quote.js"
import { exampleLine, workload } from "./trace.js"

const defaultCapacities: NonEmptyReadonlyArray<number> = [48, 96, 192, 384]
/** They are generated before the first is replayed. */
const mostConversations = 10_000
const most = 1e9

export const help = `npm run offload-a-model -- [TRACE] [OPTION…]

Replays requests to a model against a block store: what the store has of a prompt is read back and
compared, byte by byte, and the rest is written. Once for each capacity, on a file of its own, which is
gone afterwards. Ctrl-C stops it at any moment.

  TRACE              a file of Mooncake's format, a request a line:
                       ${exampleLine}
                     Requests are replayed in the order of their timestamps, those with the same one in
                     the order of the file, and without the time between them. Without TRACE,
                     conversations with shared prefixes are generated from a seed.
  --capacities N,…   how many blocks a store has room for (default: ${defaultCapacities.join(",")})
  --requests N       replay only the first N (default: all; a long trace writes many gigabytes)
  --conversations N  generate so many, at most ${mostConversations} (default: ${workload.conversations})
  --plot FILE        draw the hit rate by capacity, as SVG
  -h, --help         this text

The files are made in DYN_KVBM_DISK_CACHE_DIR, or in /tmp.

Exit codes: 0: done; 1: the trace is wrong, a store failed or the plot cannot be written;
64: wrong arguments; 128 + n: ended by signal n`

/** Wrong arguments. */
export class UsageError extends Data.TaggedError("UsageError")<{ readonly message: string }> {}

const options = {
  capacities: { type: "string" },
  requests: { type: "string" },
  conversations: { type: "string" },
  plot: { type: "string" },
  help: { type: "boolean", short: "h" }
} as const

const taken = {
  capacities: `whole numbers from 1 to ${most}, such as ${defaultCapacities.slice(0, 3).join(",")}`,
  requests: `a whole number from 1 to ${most}, such as 500`,
  conversations: `a whole number from 1 to ${mostConversations}, such as ${workload.conversations}`,
  plot: "the name of a file to write, such as hit-rate.svg"
} as const

type Name = keyof typeof taken

const names: ReadonlyArray<Name> = ["capacities", "requests", "conversations", "plot"]

const wrong = (name: Name, given: string) => new UsageError({ message: `--${name} takes ${taken[name]}: ${given}` })

const whole = (name: Name, text: string, within = text) => {
  const value = /^\d+$/.test(text.trim()) ? Number(text) : 0
  return value >= 1 && value <= (name === "conversations" ? mostConversations : most)
    ? Either.right(value)
    : Either.left(wrong(name, text === within ? quote(text) : `${quote(text)} in ${quote(within)}`))
}

export interface Arguments {
  readonly trace: string | undefined
  readonly capacities: NonEmptyReadonlyArray<number>
  readonly requests: number
  readonly conversations: number
  readonly plot: string | undefined
}

/** Of the command line, without the program: what is asked for, or "help". */
export const parse = (args: ReadonlyArray<string>): Either.Either<Arguments | "help", UsageError> =>
  Either.gen(function*() {
    // Not strict: its messages are of several sentences, and it lets an option be given twice.
    const { tokens } = parseArgs({ args: [...args], options, strict: false, tokens: true })
    if (tokens.some((token) => token.kind === "option" && token.name === "help" && token.value === undefined)) {
      return "help" as const
    }

    const given = new Map<Name, string>()
    const positionals: Array<string> = []
    for (const token of tokens) {
      if (token.kind === "positional") positionals.push(token.value)
      if (token.kind !== "option") continue
      const name = names.find((name) => name === token.name)
      if (name === undefined) {
        const message = token.name === "help"
          ? `--help takes no value: ${quote(token.value ?? "")}`
          : `There is no option ${token.rawName}; --help lists those there are.`
        return yield* Either.left(new UsageError({ message }))
      }
      if (token.value === undefined) return yield* Either.left(wrong(name, "nothing follows it"))
      // `--plot --requests 5` is no plot of that name; `--plot=--requests` is.
      if (!token.inlineValue && token.value.startsWith("--")) {
        return yield* Either.left(wrong(name, `${token.value} follows it`))
      }
      if (given.has(name)) {
        return yield* Either.left(new UsageError({ message: `--${name} is taken once; it is given twice.` }))
      }
      given.set(name, token.value)
    }
    const [trace, second] = positionals
    if (second !== undefined) {
      const message = `One TRACE is taken, and there are ${positionals.length}: ${positionals.map(quote).join(" ")}`
      return yield* Either.left(new UsageError({ message }))
    }
    if (trace === "") {
      return yield* Either.left(
        new UsageError({ message: "TRACE takes the name of a file, such as trace.jsonl: \"\"" })
      )
    }

    const list = given.get("capacities")
    const [first, ...others] = list?.split(",") ?? []
    const capacity = (text: string) => whole("capacities", text, list)
    const capacities: NonEmptyReadonlyArray<number> = first === undefined
      ? defaultCapacities
      : [yield* capacity(first), ...(yield* Either.all(others.map(capacity)))]
    const requests = given.get("requests")
    const conversations = given.get("conversations")
    const plot = given.get("plot")
    if (plot === "") return yield* Either.left(wrong("plot", quote(plot)))
    if (conversations !== undefined && trace !== undefined) {
      const message = `--conversations is for requests that are generated; those of ${quote(trace)} are replayed.`
      return yield* Either.left(new UsageError({ message }))
    }
    return {
      trace,
      capacities,
      requests: requests === undefined ? Infinity : yield* whole("requests", requests),
      conversations: conversations === undefined
        ? workload.conversations
        : yield* whole("conversations", conversations),
      plot
    }
  })
