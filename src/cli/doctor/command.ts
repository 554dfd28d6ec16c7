/** `effect-disk-storage doctor [DIR]`. */
import * as Command from "@effect/cli/Command"
import * as Options from "@effect/cli/Options"
import * as ConfigError from "effect/ConfigError"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { existsSync } from "node:fs"
import * as DevicePath from "../../DevicePath.js"
import type { IoVerdict } from "../../DirectIo.js"
import * as DirectIo from "../../DirectIo.js"
import * as Linux from "../../Linux.js"
import * as Progress from "../bench/progress.js"
import * as directory from "../directory.js"
import { printable } from "../layout.js"
import * as terminal from "../terminal.js"
import { PathReport, text } from "./text.js"

/** Nothing could be said of the directory, not even that it is unsuitable. */
export class NoReport extends Data.TaggedError("NoReport")<{ readonly cause: { readonly message: string } }> {
  override get message(): string {
    // The message of an error about a variable does not name the variable.
    return printable(ConfigError.isConfigError(this.cause) ? String(this.cause) : this.cause.message)
  }
}

const exitCodes: Readonly<Record<IoVerdict, number>> = {
  "direct": 0,
  "direct-with-conditions": 1,
  "buffered": 1,
  "unknown": 1,
  "unsupported": 2
}

const options = {
  json: Options.boolean("json").pipe(Options.withDescription("Print the whole report as JSON, and nothing else.")),
  measure: Options.boolean("measure").pipe(
    Options.withDescription(
      "Also measure reads, first writes and rewrites here, and say whether prewrite is worth its time."
    )
  ),
  gpu: Options.boolean("gpu").pipe(
    Options.withDescription(
      "Also load the CUDA driver and cuFile, and say by which path bytes reach a GPU's memory from here: 1 MiB goes there and back."
    )
  ),
  all: Options.boolean("all").pipe(Options.withDescription("Show also the conditions that do not apply here."))
}

const argument = directory.argument("look at")

type Asked = Command.Command.ParseConfig<typeof options & { readonly argument: typeof argument }>

const ReportJson = Schema.parseJson(
  Schema.Struct({ ...DirectIo.DirectIoReport.fields, devicePath: Schema.optional(PathReport) }),
  { space: 2 }
)

/** What was tried of GPUs, beside what can be seen; it is logged, too, which is not needed here. */
const tryPath = (directory: string) =>
  DevicePath.make({ directory }).pipe(
    Effect.map(({ cuFile, driverAnswer, improvements, kind, memory, reasons }) => {
      const report: PathReport = {
        kind,
        reasons,
        improvements,
        device: Option.match(memory, { onNone: () => null, onSome: ({ device }) => device.name }),
        cuFile: Option.match(cuFile, {
          onNone: () => null,
          onSome: ({ mode, modeReason, version }) => ({ version: version ?? null, mode, modeReason })
        })
      }
      return { report, driverAnswer: Option.getOrUndefined(driverAnswer) }
    }),
    Effect.scoped,
    Effect.provide(Logger.remove(Logger.defaultLogger))
  )

const inspect = (asked: Asked) =>
  Effect.gen(function*() {
    const progress = yield* Progress.Progress
    const path = yield* directory.given(asked.argument)
    yield* progress.status(`${asked.measure ? "measuring in" : "looking at"} ${printable(path)} …`)
    // First, since the driver's answer outranks what can be read. It would make a directory that is missing.
    const tried = asked.gpu && existsSync(path) ? yield* tryPath(path) : undefined
    const report = yield* DirectIo.inspect(path, { measure: asked.measure, driverAnswer: tried?.driverAnswer })
    return { report, devicePath: tried?.report }
  }).pipe(
    Effect.provide([Linux.layer, Progress.layer]),
    Effect.mapError((cause) => new NoReport({ cause }))
  )

const run = (asked: Asked) =>
  Effect.gen(function*() {
    const { devicePath, report } = yield* inspect(asked)
    yield* Console.log(
      asked.json
        ? yield* Effect.orDie(Schema.encode(ReportJson)(devicePath === undefined ? report : { ...report, devicePath }))
        : text(report, {
          all: asked.all,
          devicePath,
          colour: yield* terminal.hasColour(process.stdout),
          width: yield* terminal.width
        })
    )
    // Not through process.exit, which would cut off what a pipe has not taken yet.
    yield* Effect.sync(() => {
      process.exitCode = exitCodes[report.verdict.io]
    })
  })

export const doctor = Command.make("doctor", { ...options, argument }, run).pipe(
  Command.withDescription(
    "Finds out whether a directory can do direct I/O and GPUDirect Storage, by real I/O on a file of its own and from what the kernel " +
      "says, and shows what that rests on. Verdicts on I/O: direct; direct-with-conditions (reads and overwrites are direct, something " +
      "else is not, or is done to the data); buffered (through the page cache in spite of O_DIRECT); unsupported (O_DIRECT or all " +
      "writing is refused); unknown. Verdicts on GPUs: nvidia-fs and p2pdma (direct), compat (copies through CPU memory), unavailable."
  )
)
