#!/usr/bin/env node
/** The command `effect-disk-storage`: the edge of a program, where the world is touched. */
import * as Command from "@effect/cli/Command"
import * as ValidationError from "@effect/cli/ValidationError"
import * as NodeContext from "@effect/platform-node/NodeContext"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { readFileSync } from "node:fs"
import * as ProcessRuntime from "../ProcessRuntime.js"
import { bench } from "./bench/command.js"

/** As deep below the root of the package from `src/cli` as from `dist/cli`. */
const { version } = Schema.decodeSync(Schema.parseJson(Schema.Struct({ version: Schema.String })))(
  readFileSync(new URL("../../package.json", import.meta.url), "utf8")
)

const command = Command.make("effect-disk-storage").pipe(
  Command.withDescription("The disk tier of an LLM KV cache, from the command line."),
  Command.withSubcommands([bench])
)

const run = Command.run(command, { name: "effect-disk-storage", version, executable: "effect-disk-storage" })

run(process.argv).pipe(
  // What is wrong with the arguments has been printed by the parser.
  Effect.tapError((error) => ValidationError.isValidationError(error) ? Effect.void : Console.error(error.message)),
  Effect.provide(NodeContext.layer),
  ProcessRuntime.runMain({ disableErrorReporting: true })
)
