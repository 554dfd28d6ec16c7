#!/usr/bin/env node
/** The command `effect-disk-storage`: the edge of a program, where the world is touched. */
import * as Command from "@effect/cli/Command"
import * as HelpDoc from "@effect/cli/HelpDoc"
import * as ValidationError from "@effect/cli/ValidationError"
import * as NodeContext from "@effect/platform-node/NodeContext"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { readFileSync } from "node:fs"
import * as ProcessRuntime from "../ProcessRuntime.js"
import { bench } from "./bench/command.js"
import { doctor, NoReport } from "./doctor/command.js"
import { printableLines } from "./layout.js"
import { NotSwept, sweep } from "./sweep/command.js"
import * as terminal from "./terminal.js"

/** As deep below the root of the package from `src/cli` as from `dist/cli`. */
const { version } = Schema.decodeSync(Schema.parseJson(Schema.Struct({ version: Schema.String })))(
  readFileSync(new URL("../../package.json", import.meta.url), "utf8")
)

const command = Command.make("effect-disk-storage").pipe(
  Command.withDescription("The disk tier of an LLM KV cache, from the command line."),
  Command.withSubcommands([bench, doctor, sweep])
)

/** Below every help. 64 and 70 are EX_USAGE and EX_SOFTWARE of sysexits.h. */
const footer = HelpDoc.sequence(
  HelpDoc.h1("EXIT CODES"),
  HelpDoc.enumeration([
    HelpDoc.p("0: done; doctor: the verdict on I/O is direct"),
    HelpDoc.p("1: bench refuses or fails; doctor: direct-with-conditions, buffered or unknown"),
    HelpDoc.p("2: doctor: unsupported"),
    HelpDoc.p("64: wrong arguments"),
    HelpDoc.p("70: no report could be made or written, the directory could not be swept, or a defect of this program"),
    HelpDoc.p("128 + n: ended by signal n; 141 also where nobody reads the output any more")
  ])
)

const run = Command.run(command, {
  name: "effect-disk-storage",
  version,
  executable: "effect-disk-storage",
  footer
})

/** As `footer` says; the verdicts' codes are set where they are found. */
const exitCode = (cause: Cause.Cause<unknown>): number =>
  Option.match(Cause.failureOption(cause), {
    onNone: () => 70,
    onSome: (error) =>
      ValidationError.isValidationError(error) ? 64 : error instanceof NoReport || error instanceof NotSwept ? 70 : 1
  })

Effect.zipRight(terminal.endWithStreams, run(process.argv)).pipe(
  // What is wrong with the arguments has been printed by the parser.
  Effect.tapError((error) =>
    ValidationError.isValidationError(error) ? Effect.void : Console.error(printableLines(error.message))
  ),
  Effect.tapDefect((defect) => Console.error(Cause.pretty(defect))),
  terminal.withColoursWhereTheyBelong,
  Effect.provide([NodeContext.layer, terminal.loggerLayer]),
  ProcessRuntime.runMain({
    disableErrorReporting: true,
    disablePrettyLogger: true,
    teardown: (exit, onExit) => onExit(Exit.match(exit, { onSuccess: () => 0, onFailure: exitCode }))
  })
)
