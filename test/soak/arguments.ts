/** The arguments of the soak, and what is said of wrong ones. */
import * as Data from "effect/Data"
import * as Either from "effect/Either"
import { parseArgs } from "node:util"

const defaultMinutes = 1
const defaultRate = 0.01

export const help = `npm run soak -- [OPTION…]

Storages and block stores, used at random by several at once on the real kernel and on simulated ones, with faults
put into their calls and interruptions anywhere. Every byte that is read is compared with what may be there. Between
two rounds, when nothing is at work, it measures what the process holds. Ctrl-C ends it, and what was done is told.

  --minutes N    begin rounds for so long (default: ${defaultMinutes}, without --rounds)
  --rounds N     so many rounds
  --seed N       of all decisions, a whole number (default: from the clock; it is printed)
  --from N       begin with round N (default: 1). A round decides the same whatever came before it, so that
                 --seed S --from N --rounds 1 runs round N again. The order in which a real kernel answers is its
                 own; and the one store that lives as long as the soak begins empty.
  --faults RATE  the share of system calls and I/O operations that fail, are cut short or are late, from 0 to 0.5
                 (default: ${defaultRate})
  --json FILE    write the report as JSON, "-" to standard output in place of the table
  -h, --help     this text

Files are made in a directory of its own in DYN_KVBM_DISK_CACHE_DIR, or in the system's directory for temporary ones,
at most 512 MiB, and are gone at the end. 10 GiB are left free.

Exit codes: 0: every byte right and no leak; 1: not so, or it could not run; 64: wrong arguments;
128 + n: ended by signal n, and right so far`

/** Wrong arguments. */
export class UsageError extends Data.TaggedError("UsageError")<{ readonly message: string }> {}

export interface Arguments {
  readonly minutes: number
  readonly rounds: number
  readonly seed: number | undefined
  readonly from: number
  readonly faults: number
  readonly json: string | undefined
}

const most = 1e9

const taken = {
  minutes: "a number above 0, such as 30 or 0.5",
  rounds: `a whole number from 1 to ${most}, such as 10`,
  seed: `a whole number from 0 to ${most}, such as 7`,
  from: `a whole number from 1 to ${most}, such as 12`,
  faults: "a share from 0 to 0.5, such as 0.01",
  json: "the name of a file to write, or -"
} as const

type Name = keyof typeof taken

const options = {
  minutes: { type: "string" },
  rounds: { type: "string" },
  seed: { type: "string" },
  from: { type: "string" },
  faults: { type: "string" },
  json: { type: "string" },
  help: { type: "boolean", short: "h" }
} as const

const names: ReadonlyArray<Name> = ["minutes", "rounds", "seed", "from", "faults", "json"]

const wrong = (name: Name, given: string) => new UsageError({ message: `--${name} takes ${taken[name]}: ${given}` })

const accepted: { readonly [name in Exclude<Name, "json">]: (value: number) => boolean } = {
  minutes: (value) => value > 0 && value <= most,
  rounds: (value) => Number.isInteger(value) && value >= 1 && value <= most,
  seed: (value) => Number.isInteger(value) && value >= 0 && value <= most,
  from: (value) => Number.isInteger(value) && value >= 1 && value <= most,
  faults: (value) => value >= 0 && value <= 0.5
}

const number = (name: keyof typeof accepted, text: string): Either.Either<number, UsageError> => {
  const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN
  return accepted[name](value) ? Either.right(value) : Either.left(wrong(name, JSON.stringify(text)))
}

/** Of the command line, without the program: what is asked for, or "help". */
export const parse = (args: ReadonlyArray<string>): Either.Either<Arguments | "help", UsageError> =>
  Either.gen(function*() {
    const fail = (message: string) => Either.left(new UsageError({ message }))
    // Not strict: its messages are of several sentences, and it lets an option be given twice.
    const { tokens } = parseArgs({ args: [...args], options, strict: false, tokens: true })
    if (tokens.some((token) => token.kind === "option" && token.name === "help" && token.value === undefined)) {
      return "help" as const
    }
    const given = new Map<Name, string>()
    for (const token of tokens) {
      if (token.kind === "positional") {
        return yield* fail(`There is no argument ${JSON.stringify(token.value)}; --help lists the options.`)
      }
      if (token.kind !== "option") continue
      const name = names.find((name) => name === token.name)
      if (name === undefined) {
        return yield* fail(
          token.name === "help"
            ? `--help takes no value: ${JSON.stringify(token.value)}`
            : `There is no option ${token.rawName}; --help lists those there are.`
        )
      }
      if (token.value === undefined || token.value === "") return yield* Either.left(wrong(name, "nothing follows it"))
      if (given.has(name)) return yield* fail(`--${name} is given twice.`)
      given.set(name, token.value)
    }
    const read = <A>(name: keyof typeof accepted, otherwise: A) => {
      const text = given.get(name)
      return text === undefined ? Either.right(otherwise) : number(name, text)
    }
    return {
      minutes: yield* read("minutes", given.has("rounds") ? Infinity : defaultMinutes),
      rounds: yield* read("rounds", Infinity),
      seed: yield* read("seed", undefined),
      from: yield* read("from", 1),
      faults: yield* read("faults", defaultRate),
      json: given.get("json")
    }
  })
