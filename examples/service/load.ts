/**
 * `npm run service:load -- --help`: how many bytes the service moves, beside what its store moves without HTTP. The service is a process
 * of its own, and is measured in turns with the store, for no disk is the same for long. Ends with 1 where a byte is wrong or a request
 * fails; that a block was evicted before it was asked for is counted, and no error.
 */
import * as Command from "@effect/cli/Command"
import * as HelpDoc from "@effect/cli/HelpDoc"
import * as Options from "@effect/cli/Options"
import * as ValidationError from "@effect/cli/ValidationError"
import * as NodeContext from "@effect/platform-node/NodeContext"
import { BlockStore, DiskStorageConfig, Linux, ProcessRuntime } from "effect-disk-storage"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { existsSync, statfsSync } from "node:fs"
import { dirname } from "node:path"
import { resolved } from "../directory.js"
import * as Alone from "./alone.js"
import { Stats } from "./api.js"
import * as Child from "./child.js"
import * as Clients from "./clients.js"
import { Failed } from "./clients.js"
import { config, defaultSize, explained } from "./config.js"

/** Left on the disk for everybody else. */
const reserve = 10 * 2 ** 30
/** Until everything is compiled that runs for a request, on cores that the load wants, too. */
const warmUpSeconds = 8

const number = (name: string, least: number, most: number, fallback: number, whole: boolean) =>
  (whole ? Options.integer(name) : Options.float(name)).pipe(
    Options.mapEffect((value) =>
      value >= least && value <= most
        ? Effect.succeed(value)
        : Effect.fail(ValidationError.invalidValue(HelpDoc.p(`--${name} ${value} is not from ${least} to ${most}`)))
    ),
    Options.withDefault(fallback)
  )

const options = {
  clients: number("clients", 1, 1024, 64, true).pipe(Options.withDescription("Clients at once.")),
  rounds: number("rounds", 1, 1000, 5, true).pipe(Options.withDescription("Turns of each.")),
  seconds: number("seconds", 0.1, 3600, 4, false).pipe(Options.withDescription("Of a turn.")),
  blocks: number("blocks", 1, 1e9, 1e9, true).pipe(Options.withDescription("Most that are put in a turn.")),
  bare: Options.boolean("bare").pipe(
    Options.withDescription("Measure also a server that is nothing but node:http and keeps blocks in memory.")
  ),
  url: Options.text("url").pipe(
    Options.mapEffect((text) =>
      URL.canParse(text) && new URL(text).protocol === "http:"
        ? Effect.succeed(new URL(text))
        : Effect.fail(ValidationError.invalidValue(HelpDoc.p(`--url ${text} is not as http://127.0.0.1:8787`)))
    ),
    Options.optional,
    Options.withDescription("Of a service that runs; without it, one is started. With it, nothing is compared.")
  )
}

const room = Effect.gen(function*() {
  const { blockBytes, directory } = yield* config
  const { size } = yield* DiskStorageConfig.options({ blockBytes, size: defaultSize })
  let there = yield* resolved(directory)
  yield* Console.log(`cache directory ${there}`)
  while (!existsSync(there)) there = dirname(there)
  const { bavail, bsize } = yield* Effect.try({
    try: () => statfsSync(there),
    catch: (error) => new Failed({ message: String(error) })
  })
  const needed = 2 * size + reserve
  if (bavail * bsize < needed) {
    const message = `${there} has ${
      bavail * bsize
    } bytes free; two files of ${size} bytes, and ${reserve} left, need more`
    return yield* new Failed({ message })
  }
})

const at = (sorted: Float64Array, share: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]

const percentiles = (millis: ReadonlyArray<number>) => {
  const sorted = Float64Array.from(millis).sort()
  const show = (share: number) => at(sorted, share)?.toFixed(1) ?? "-"
  return `p50 ${show(0.5)}, p90 ${show(0.9)}, p99 ${show(0.99)}, max ${show(1)} ms`
}

const median = (values: ReadonlyArray<number>) => at(Float64Array.from(values).sort(), 0.5) ?? NaN

/** In bytes a second, but for what is counted. */
interface Turn {
  readonly put: number
  readonly got: number
  readonly both: number
}

const turn = (blockBytes: number, puts: number, gets: number, seconds: number): Turn => ({
  put: puts * blockBytes / seconds,
  got: gets * blockBytes / seconds,
  both: (puts + gets) * blockBytes / seconds
})

const rates = (name: string, turns: ReadonlyArray<Turn>) => {
  const mega = (of: keyof Turn) => Math.round(median(turns.map((each) => each[of])) / 1e6)
  const all = turns.map(({ both }) => Math.round(both / 1e6)).join(" ")
  return `${name}  put ${mega("put")}, get ${mega("got")}, both ${mega("both")} MB/s (median of turns; both: ${all})`
}

const ratio = (ours: ReadonlyArray<Turn>, theirs: ReadonlyArray<Turn>) => {
  const each = ours.map(({ both }, round) => both / (theirs[round]?.both ?? NaN))
  return `median ${median(each).toFixed(2)}, best ${Math.max(...each).toFixed(2)}, worst ${
    Math.min(...each).toFixed(2)
  }`
}

interface Given {
  readonly clients: number
  readonly rounds: number
  readonly seconds: number
  readonly blocks: number
}

/** Clients of one server, and what it used while they were measured. */
const against = (url: URL, usage: Option.Option<Effect.Effect<Child.Usage>>, blockBytes: number, given: Given) =>
  Effect.sync(() => {
    const run = Clients.make(url, blockBytes, given.clients)
    const tally = Clients.tally()
    const turns = Array<Turn>()
    let cpu = 0
    const used = Option.getOrElse(usage, () => Effect.succeed<Child.Usage>({ maxRss: NaN, cpu: NaN }))
    return {
      tally,
      turns,
      warmUp: Effect.asVoid(run(Clients.tally(), { ...given, seconds: warmUpSeconds })),
      turn: Effect.gen(function*() {
        const [{ cpu: before }, puts, gets] = [yield* used, tally.puts, tally.gets]
        const seconds = yield* run(tally, given)
        cpu += (yield* used).cpu - before
        turns.push(turn(blockBytes, tally.puts - puts, tally.gets - gets, seconds))
      }),
      used: (name: string) =>
        Effect.map(used, ({ maxRss }) => {
          const millis = cpu * 1000 / (tally.puts + tally.gets)
          return `${name}  RSS at most ${Math.round(maxRss / 1e6)} MB, CPU ${millis.toFixed(2)} ms a block put or got`
        })
    }
  })

const statsOf = (url: URL) =>
  Effect.gen(function*() {
    const agent = yield* Clients.makeAgent
    const { status, text } = yield* Clients.ask(agent, "GET", url, "/stats")
    if (status !== 200) return yield* new Failed({ message: `GET /stats is answered with ${status}` })
    return yield* Schema.decode(Schema.parseJson(Stats))(text)
  }).pipe(Effect.scoped)

/** Each in its turn; the first turn of each is not counted. */
const measure = (
  url: URL,
  usage: Option.Option<Effect.Effect<Child.Usage>>,
  given: Given & { readonly bare: boolean },
  alone: Option.Option<Effect.Effect.Success<ReturnType<typeof Alone.make>>>
) =>
  Effect.gen(function*() {
    const { blockBytes } = yield* statsOf(url)
    const service = yield* against(url, usage, blockBytes, given)
    const bare = given.bare
      ? Option.some(
        yield* Effect.flatMap(
          Child.start("bare", [String(blockBytes)], {}),
          (server) => against(new URL(server.url), Option.some(server.usage), blockBytes, given)
        )
      )
      : Option.none()
    const store = Option.map(alone, (run) => {
      const turns = Array<Turn>()
      return {
        turns,
        warmUp: Effect.asVoid(run({ ...given, seconds: warmUpSeconds })),
        turn: Effect.map(run(given), ({ gets, puts, seconds }) => {
          turns.push(turn(blockBytes, puts, gets, seconds))
        })
      }
    })
    const lanes = [...Option.toArray(store), service, ...Option.toArray(bare)]
    yield* Effect.forEach(lanes, ({ warmUp }) => warmUp)
    for (let round = 0; round < given.rounds; round++) yield* Effect.forEach(lanes, ({ turn }) => turn)

    const { errors, getMillis, gets, gone, mismatches, putMillis, puts } = service.tally
    const failed = Array.from(errors.values()).reduce((sum, each) => sum + each, 0)
    const { corrupted, evicted, failed: transfersFailed } = yield* statsOf(url)
    const lines = [
      `${given.clients} clients, blocks of ${blockBytes} bytes, ${given.rounds} turns of ${given.seconds} s`,
      ...Option.toArray(Option.map(store, ({ turns }) => rates("store alone", turns))),
      rates("service", service.turns),
      ...Option.toArray(Option.map(bare, ({ turns }) => rates("bare node:http", turns))),
      ...Option.toArray(Option.map(store, ({ turns }) => `service to store alone  ${ratio(service.turns, turns)}`)),
      ...Option.toArray(Option.map(bare, ({ turns }) => `service to bare node:http  ${ratio(service.turns, turns)}`)),
      `put  ${puts}, ${percentiles(putMillis)}`,
      `get  ${gets}, ${percentiles(getMillis)}; every byte compared`,
      `mismatches ${mismatches}, errors ${failed}, evicted before the get ${gone}`,
      ...Array.from(errors, ([error, times]) => `  ${times} × ${error}`),
      `store of the service: evicted ${evicted}, corrupted ${corrupted}, failed ${transfersFailed}`
    ]
    if (Option.isSome(usage)) lines.push(yield* service.used("service"))
    if (Option.isSome(bare)) lines.push(yield* bare.value.used("bare node:http"))
    yield* Console.log(lines.join("\n"))
    if (mismatches + failed > 0 || gets === 0) return yield* new Failed({ message: "the load test failed" })
  }).pipe(Effect.scoped)

const here = (given: Given & { readonly bare: boolean }) =>
  Effect.gen(function*() {
    yield* room
    const { blockBytes, buffers } = yield* config
    const service = yield* Child.start("main", [], { SERVICE_HOST: "127.0.0.1", SERVICE_PORT: "0" })
    yield* Effect.flatMap(
      Alone.make(buffers),
      (alone) => measure(new URL(service.url), Option.some(service.usage), given, Option.some(alone))
    ).pipe(Effect.provide(BlockStore.layerConfig({ blockBytes, size: defaultSize })))
  }).pipe(Effect.scoped, Effect.provide(Linux.layer))

const command = Command.make("service:load", options, ({ url, ...given }) =>
  Option.match(url, {
    onNone: () => here(given),
    onSome: (there) => measure(there, Option.none(), given, Option.none())
  })).pipe(
    Command.withDescription("Clients that put blocks to the service, get them back, and compare every byte.")
  )

Command.run(command, { name: "service:load", version: "0.1.0" })(process.argv).pipe(
  Effect.tapError((error) =>
    // What is wrong with the arguments has been printed by the parser.
    ValidationError.isValidationError(error) ? Effect.void : Console.error(explained(error))
  ),
  Effect.tapDefect((defect) => Console.error(Cause.pretty(defect))),
  Effect.provide(NodeContext.layer),
  ProcessRuntime.runMain({ disableErrorReporting: true })
)
