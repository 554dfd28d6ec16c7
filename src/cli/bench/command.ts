/** `effect-disk-storage bench [DIR]`. */
import * as Command from "@effect/cli/Command"
import * as HelpDoc from "@effect/cli/HelpDoc"
import * as Options from "@effect/cli/Options"
import * as ValidationError from "@effect/cli/ValidationError"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { arch, cpus, release } from "node:os"
import { dirname } from "node:path"
import * as AlignedBuffer from "../../AlignedBuffer.js"
import * as LinuxSyscalls from "../../LinuxSyscalls.js"
import * as directory from "../directory.js"
import { printable } from "../layout.js"
import * as allocation from "./allocation.js"
import * as blocks from "./blocks.js"
import type { Contestant } from "./contestant.js"
import * as delay from "./delay.js"
import { buffersFor, built, engines } from "./engines.js"
import { NothingToMeasure, OutputFailed } from "./errors.js"
import * as fio from "./fio.js"
import type { Direction, Shape } from "./load.js"
import * as node from "./node.js"
import * as Progress from "./progress.js"
import type { Cell, LeftOut, Report } from "./report.js"
import { Part, ReportJson } from "./report.js"
import type { Turns } from "./rounds.js"
import { measure, warmUpMillis } from "./rounds.js"
import { table } from "./table.js"
import type { Target } from "./target.js"
import * as target from "./target.js"
import { bytes, duration, parseBytes } from "./units.js"

const invalid = (text: string) => ValidationError.invalidValue(HelpDoc.p(text))

/** `--name a --name b` and `--name a,b` are the same. */
const list = <A>(name: string, pseudo: string, what: string, parse: (text: string) => A | undefined) =>
  Options.text(name).pipe(
    Options.withPseudoName(pseudo),
    Options.repeated,
    Options.mapEffect((texts) =>
      Effect.forEach(texts.flatMap((text) => text.split(",")), (text) => {
        const value = parse(text.trim())
        return value === undefined ? Effect.fail(invalid(`--${name} ${text} is not ${what}`)) : Effect.succeed(value)
      })
    )
  )

const whole = (name: string, least: number, most: number) =>
  Options.integer(name).pipe(
    Options.mapEffect((value) =>
      value >= least && value <= most
        ? Effect.succeed(value)
        : Effect.fail(invalid(`--${name} ${value} is not a whole number from ${least} to ${most}`))
    )
  )

/** A file that is written at the end. */
const output = (name: string, pseudo: string) =>
  Options.text(name).pipe(
    Options.withPseudoName(pseudo),
    Options.mapEffect((path) => path === "" ? Effect.fail(invalid(`--${name} is empty`)) : Effect.succeed(path)),
    Options.optional
  )

const page = AlignedBuffer.pageSize

/** Of a block or a file. */
const pages = (text: string): number | undefined => {
  const value = parseBytes(text)
  return value === undefined || value % page !== 0 ? undefined : value
}

const mostBlock = 2 ** 30
const mostDepth = 4096
/** What a pool of buffers can hold. */
const mostInFlight = 4 * 2 ** 30

const wholeUpTo = (most: number) => (text: string): number | undefined =>
  /^\d+$/.test(text) && Number(text) >= 1 && Number(text) <= most ? Number(text) : undefined

const families = ["io_uring", "aio", "node", "fs", "platform", "fio"] as const
const modes = ["fibres", "batches", "barrier", "raw"] as const
const contestantNames: ReadonlyArray<string> = [
  ...families,
  ...["io_uring", "aio", "node"].flatMap((family) => modes.map((mode) => `${family}.${mode}`)),
  "fs.callback",
  "fs.promises",
  "platform.FileSystem",
  "fio.psync"
]

const oneOf = <const A extends string>(...values: ReadonlyArray<A>) => (text: string): A | undefined =>
  values.find((value) => value === text)

const defaultRounds = { transfers: 11, allocation: 5, blocks: 11 } as const
const defaultMillis = { transfers: 1000, delay: 10_000, blocks: 1000 } as const

const options = {
  parts: list("part", "name", `one of ${Part.literals.join(", ")}`, oneOf(...Part.literals)).pipe(
    Options.withDescription(
      "What to measure. transfers (the default): random reads and writes against fio and Node. allocation: zero-fills " +
        "against fio and a serial loop, and first writes with and without prewrite, on the disk; it takes --engine, " +
        "--without-fio, --size and --rounds. delay: how long reads in flight hold up the event loop against an idle process, " +
        "and whether millions of operations leave memory behind; it takes --engine, --size, --millis and --operations. For its " +
        "longest io_uring_enter run it under strace -f -T -e trace=io_uring_enter, which slows it down. blocks: a block store " +
        "against its engine alone on the disk, and its index alone; it takes --engine, --size (of four files together), " +
        "--rounds, --millis and --blocks."
    )
  ),
  blockSizes: list(
    "block-size",
    "size",
    `a multiple of ${page} bytes up to 1 GiB, such as 4K, 128K or 1M`,
    (text) => {
      const value = pages(text)
      return value !== undefined && value <= mostBlock ? value : undefined
    }
  ).pipe(Options.withDescription("Block sizes to measure, such as 4K,128K,1M.")),
  depths: list("depth", "count", `a whole number from 1 to ${mostDepth}`, wholeUpTo(mostDepth)).pipe(
    Options.withDescription("Operations in flight.")
  ),
  directions: list("direction", "read|write", "read or write", oneOf("read", "write")).pipe(
    Options.withDescription("Only reads, or only writes.")
  ),
  targets: list("target", "disk|memory", "disk or memory", oneOf("disk", "memory")).pipe(
    Options.withDescription("Only the file in DIR, or only the one in /dev/shm.")
  ),
  contestants: list(
    "contestant",
    "name",
    `one of ${contestantNames.join(", ")}`,
    (text) => oneOf(...contestantNames)(text)
  ).pipe(
    Options.withAlias("engine"),
    Options.withDescription(
      `Only these: a family (${families.join(", ")}) or one of it, such as io_uring.raw. ` +
        "fio and its control run along, when installed, since ratios need them."
    )
  ),
  withoutFio: Options.boolean("without-fio").pipe(Options.withDescription("Leave fio out, and with it the ratios.")),
  all: Options.boolean("all").pipe(
    Options.withDescription(
      "4K, 64K, 1M and 16M at depth 1, 8, 32 and 128. Without it: 4K at depth 32 and 1M at depth 8. " +
        "--block-size and --depth replace their half of either."
    )
  ),
  rounds: whole("rounds", 1, 1000).pipe(
    Options.optional,
    Options.withDescription(
      `Rounds of each contestant (default: ${defaultRounds.transfers}, of allocation ${defaultRounds.allocation}).`
    )
  ),
  millis: whole("millis", 10, 600_000).pipe(
    Options.optional,
    Options.withDescription(
      `Milliseconds of a round (default: ${defaultMillis.transfers}, of delay ${defaultMillis.delay}).`
    )
  ),
  operations: whole("operations", 100, 1_000_000_000).pipe(
    Options.withDefault(10_000_000),
    Options.withDescription("Operations of 4 KiB that delay runs on a file in memory.")
  ),
  blocks: whole("blocks", 1000, 2 ** 24).pipe(
    Options.withDefault(1_000_000),
    Options.withDescription("Blocks of the larger index of blocks.")
  ),
  size: Options.text("size").pipe(
    Options.withPseudoName("size"),
    Options.mapEffect((text) => {
      const value = pages(text)
      return value === undefined
        ? Effect.fail(invalid(`--size ${text} is not a multiple of ${page} bytes, such as 256M or 4G`))
        : Effect.succeed(value)
    }),
    Options.optional,
    Options.withDescription("Bytes of the files (default: 1G on disk, 256M in memory).")
  ),
  json: output("json", "file").pipe(
    Options.withDescription("Write the result, every round of it, as JSON.")
  ),
  plot: output("plot", "file.svg").pipe(
    Options.withDescription("Draw bandwidth and IOPS as SVG.")
  )
}

const argument = directory.argument("make the file on disk in; after the options")

const memoryDirectory = "/dev/shm"
const defaultSizes = { disk: 2 ** 30, memory: 2 ** 28 } as const

const shapes = (asked: {
  readonly all: boolean
  readonly blockSizes: ReadonlyArray<number>
  readonly depths: ReadonlyArray<number>
  readonly directions: ReadonlyArray<Direction>
}): ReadonlyArray<Shape> => {
  const unique = (values: ReadonlyArray<number>) => [...new Set(values)].sort((a, b) => a - b)
  const narrowed = asked.all || asked.blockSizes.length > 0 || asked.depths.length > 0
  const depthsOf = (blockSize: number) =>
    asked.depths.length > 0 ? unique(asked.depths) : asked.all ? [1, 8, 32, 128] : [blockSize < 2 ** 16 ? 32 : 8]
  const blockSizes = asked.blockSizes.length > 0
    ? unique(asked.blockSizes)
    : asked.all
    ? [2 ** 12, 2 ** 16, 2 ** 20, 2 ** 24]
    : [2 ** 12, 2 ** 20]
  const directions = asked.directions.length > 0 ? asked.directions : ["read", "write"] as const
  const loads = narrowed
    ? blockSizes.flatMap((blockSize) => depthsOf(blockSize).map((depth) => ({ blockSize, depth })))
    : [{ blockSize: 2 ** 12, depth: 32 }, { blockSize: 2 ** 20, depth: 8 }]
  return loads.flatMap(({ blockSize, depth }) =>
    [...new Set(directions)].map((direction) => ({ blockSize, depth, direction }))
  )
}

/** Finds out before the measurement, not after it, that its result has nowhere to go. */
const checkOutput = (path: string) =>
  Effect.gen(function*() {
    const fileSystem = yield* FileSystem.FileSystem
    yield* fileSystem.access(dirname(yield* directory.resolved(path)), { writable: true })
    const found = yield* Effect.option(fileSystem.stat(path))
    if (Option.isSome(found) && found.value.type === "Directory") return yield* Effect.fail("it is a directory")
  }).pipe(Effect.mapError((cause) => new OutputFailed({ path, cause })))

const write = (path: string, content: string) =>
  Effect.flatMap(FileSystem.FileSystem, (fileSystem) => fileSystem.writeFileString(path, content)).pipe(
    Effect.mapError((cause) => new OutputFailed({ path, cause }))
  )

type Asked = Command.Command.ParseConfig<typeof options & { readonly argument: typeof argument }>

const targetsOf = (asked: Asked, notes: Array<string>) =>
  Effect.gen(function*() {
    const names = asked.targets.length > 0 ? [...new Set(asked.targets)] : ["disk", "memory"] as const
    const made: Array<Target> = []
    for (const name of names) {
      const size = Option.getOrElse(asked.size, () => defaultSizes[name])
      if (name === "disk") {
        const place = yield* directory.given(asked.argument)
        const disk = yield* target.make(name, place, size)
        if ((yield* target.filesystemOf(place)).isMemory) notes.push(`${place} is a tmpfs: its figures are of memory.`)
        made.push(disk)
      } else if (yield* isTmpfs(memoryDirectory)) {
        made.push(yield* target.make(name, memoryDirectory, size))
      } else {
        notes.push(`${memoryDirectory} is not a tmpfs here: no memory-backed file is measured.`)
      }
    }
    return made
  })

const isTmpfs = (directory: string) =>
  Effect.match(target.filesystemOf(directory), { onFailure: () => false, onSuccess: ({ isMemory }) => isMemory })

const contestantsOf = (asked: Asked, version: Option.Option<string>, leftOut: Array<LeftOut>) =>
  Effect.gen(function*() {
    const wanted = (id: string) =>
      asked.contestants.length === 0 || asked.contestants.some((name) => id === name || id.startsWith(`${name}.`))
    const own = yield* engines(wanted)
    leftOut.push(...own.leftOut)
    const yardsticks = Option.isSome(version) ? yield* fio.contestants : []
    if (Option.isNone(version)) {
      leftOut.push({ contestant: "fio", reason: asked.withoutFio ? "--without-fio" : "it is not installed" })
    }
    return [
      ...[...own.contestants, ...(yield* node.contestants)].filter(({ id }) => wanted(id)),
      ...yardsticks.filter(({ id }) => wanted(id) || id !== "fio.psync")
    ] satisfies ReadonlyArray<Contestant>
  })

const transfers = (
  asked: Asked,
  turns: Turns,
  fioVersion: Option.Option<string>,
  notes: Array<string>,
  leftOut: Array<LeftOut>
) =>
  Effect.gen(function*() {
    const progress = yield* Progress.Progress
    const contestants = yield* contestantsOf(asked, fioVersion, leftOut)
    if (contestants.length === 0) {
      return yield* new NothingToMeasure({
        message: ["No contestant can run here.", ...leftOut.map(({ contestant, reason }) => `${contestant}: ${reason}`)]
          .join("\n")
      })
    }
    if (Option.isSome(fioVersion)) notes.push(...fio.notes)
    const loads = shapes(asked)
    const targets = yield* targetsOf(asked, notes)
    const cells = targets.flatMap((target) =>
      loads.filter(({ blockSize, depth }) => blockSize <= target.size && blockSize * depth <= mostInFlight)
        .map((shape) => ({ target, shape }))
    )
    if (cells.length < targets.length * loads.length) {
      notes.push(`Left out: blocks larger than the file, and more than ${bytes(mostInFlight)} in flight.`)
    }
    if (cells.length === 0) return yield* new NothingToMeasure({ message: ["Nothing to measure.", ...notes].join(" ") })

    const cellMillis = contestants.reduce(
      (sum, { family }) =>
        sum + warmUpMillis(turns.millis) + turns.rounds * turns.millis +
        (family === "fio" ? (turns.rounds + 1) * fio.overheadMillis : 0),
      turns.rounds * turns.millis
    )
    yield* progress.log(
      `${cells.length} loads, ${contestants.length} contestants, ${turns.rounds} rounds of ${turns.millis} ms: ` +
        `about ${duration(cells.length * cellMillis)}`
    )
    const done: Array<Cell> = []
    for (const { shape, target } of cells) {
      const left = (cells.length - done.length - 1) * cellMillis
      done.push(
        yield* Effect.scoped(
          Effect.flatMap(
            buffersFor(target, shape),
            (buffers) => measure(target, shape, buffers, contestants, turns, left)
          )
        )
      )
    }
    return {
      targets: targets.map(({ direct, directory, filesystem, name, size }) => ({
        direct,
        directory,
        filesystem,
        name,
        size
      })),
      cells: done
    }
  })

const run = (asked: Asked) =>
  Effect.gen(function*() {
    const progress = yield* Progress.Progress
    const notes: Array<string> = []
    const leftOut: Array<LeftOut> = []
    const parts = Part.literals.filter((part) =>
      asked.parts.length === 0 ? part === "transfers" : asked.parts.includes(part)
    )
    yield* Effect.forEach([asked.json, asked.plot], Option.match({ onNone: () => Effect.void, onSome: checkOutput }))
    if (Option.isSome(asked.plot) && !parts.includes("transfers")) {
      return yield* new NothingToMeasure({
        message: "--plot draws the part transfers, and it is not among those asked for."
      })
    }
    const onDisk = asked.targets.length === 0 || asked.targets.includes("disk") ||
      parts.some((part) => part !== "transfers")
    if (onDisk) yield* progress.log(`directory: ${printable(yield* directory.given(asked.argument))}`)
    const started = new Date()
    const turns = {
      rounds: Option.getOrElse(asked.rounds, () => defaultRounds.transfers),
      millis: Option.getOrElse(asked.millis, () => defaultMillis.transfers)
    }
    const fioVersion = asked.withoutFio ? Option.none() : yield* fio.version
    const own = parts.some((part) => part !== "transfers") ? yield* built(asked.contestants, leftOut) : []
    const measured = parts.includes("transfers")
      ? yield* Effect.scoped(transfers(asked, turns, fioVersion, notes, leftOut))
      : { targets: [], cells: [] }
    const size = Option.getOrElse(asked.size, () => defaultSizes.disk)
    const allocated = parts.includes("allocation")
      ? yield* allocation.measure(own, {
        directory: yield* directory.given(asked.argument),
        size,
        rounds: Option.getOrElse(asked.rounds, () => defaultRounds.allocation),
        fio: Option.isSome(fioVersion)
      })
      : null
    const delayed = parts.includes("delay")
      ? yield* delay.measure(own, {
        directory: yield* directory.given(asked.argument),
        memoryDirectory: (yield* isTmpfs(memoryDirectory)) ? memoryDirectory : undefined,
        size,
        millis: Option.getOrElse(asked.millis, () => defaultMillis.delay),
        operations: asked.operations
      })
      : null
    const [engine, ...engines] = own
    if (parts.includes("blocks") && engine === undefined) {
      return yield* new NothingToMeasure({
        message: "the part blocks needs an engine of this package, and none can be used here."
      })
    }
    const stored = parts.includes("blocks") && engine !== undefined
      ? yield* blocks.measure([engine, ...engines], {
        directory: yield* directory.given(asked.argument),
        size,
        rounds: Option.getOrElse(asked.rounds, () => defaultRounds.blocks),
        millis: Option.getOrElse(asked.millis, () => defaultMillis.blocks),
        blocks: asked.blocks
      })
      : null
    const report: Report = {
      format: "effect-disk-storage bench 1",
      parts,
      started,
      host: {
        kernel: release(),
        arch: arch(),
        cpus: cpus().length,
        cpu: cpus()[0]?.model.trim() ?? "unknown CPU",
        node: process.versions.node,
        fio: Option.getOrNull(fioVersion)
      },
      ...turns,
      ...measured,
      allocation: allocated,
      delay: delayed,
      blocks: stored,
      leftOut,
      notes
    }
    yield* progress.status("")
    yield* Console.log(table(report))
    if (Option.isSome(asked.json)) yield* write(asked.json.value, `${yield* Schema.encode(ReportJson)(report)}\n`)
    if (Option.isSome(asked.plot)) {
      // Only who wants a chart waits for the library that draws it.
      const { draw } = yield* Effect.promise(() => import("./plot.js"))
      yield* write(asked.plot.value, draw(report))
    }
  }).pipe(Effect.scoped, Effect.provide([LinuxSyscalls.layer, Progress.layer]))

export const bench = Command.make("bench", { ...options, argument }, run).pipe(
  Command.withDescription(
    "Measures the engines of this package against Node's own calls and fio, in turns, on a file on disk and one in memory; with --part allocation, how files get their blocks; with --part delay, the event loop; with --part blocks, what a block store costs. " +
      `At least ${bytes(target.reserve)} stay free on the disk; the files vanish with the process.`
  )
)
