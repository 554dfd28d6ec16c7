/** `effect-disk-storage sweep [DIR]`. */
import * as Command from "@effect/cli/Command"
import * as Options from "@effect/cli/Options"
import * as ConfigError from "effect/ConfigError"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as DiskStorage from "../../DiskStorage.js"
import * as LinuxSyscalls from "../../LinuxSyscalls.js"
import { bytes } from "../bench/units.js"
import * as directory from "../directory.js"
import { printable } from "../layout.js"

/** Nothing was looked at. */
export class NotSwept extends Data.TaggedError("NotSwept")<{ readonly cause: { readonly message: string } }> {
  override get message(): string {
    // The message of an error about a variable does not name the variable.
    return printable(ConfigError.isConfigError(this.cause) ? String(this.cause) : this.cause.message)
  }
}

const options = {
  dryRun: Options.boolean("dry-run").pipe(Options.withDescription("Remove nothing, and tell what would be removed.")),
  force: Options.boolean("force").pipe(
    Options.withDescription(
      "Remove files where locks do not tell whether their owner lives, too, unless they are seen to be locked. Only when no " +
        "process uses the directory, also on other hosts."
    )
  ),
  json: Options.boolean("json").pipe(Options.withDescription("Print the report as JSON, and nothing else."))
}

const argument = directory.argument("sweep")

const ReportJson = Schema.parseJson(DiskStorage.SweepReport, { space: 2 })

type Outcome = DiskStorage.SweepFinding["outcome"]

const total = (files: DiskStorage.SweepReport["files"]) =>
  `${files.length} file${files.length === 1 ? "" : "s"}, ${bytes(files.reduce((sum, file) => sum + file.bytes, 0))}`

/** What was found, a line for each file, and what became of it in all. */
export const text = ({ directory, dryRun, files }: DiskStorage.SweepReport): string => {
  const of = (...outcomes: ReadonlyArray<Outcome>) => files.filter(({ outcome }) => outcomes.includes(outcome))
  const wide = Math.max(0, ...files.map((file) => bytes(file.bytes).length))
  const lines = files.map((file) =>
    `${file.outcome.padEnd("abandoned".length)}  ${bytes(file.bytes).padStart(wide)}  ${printable(file.path)}${
      file.reason === undefined ? "" : `: ${printable(file.reason)}`
    }`
  )
  const verb = dryRun ? "would be removed" : "removed"
  return [
    ...lines,
    files.length === 0
      ? `no temp files in ${printable(directory)}`
      : `${verb}: ${total(of("removed", "abandoned"))}; in use: ${total(of("in use"))}; left: ${total(of("left"))}`
  ].join("\n")
}

export const sweep = Command.make(
  "sweep",
  { ...options, argument },
  ({ argument, dryRun, force, json }) =>
    Effect.gen(function*() {
      const report = yield* directory.given(argument).pipe(
        Effect.flatMap((directory) => DiskStorage.sweep(directory, { dryRun, force })),
        Effect.provide(LinuxSyscalls.layer),
        Effect.mapError((cause) => new NotSwept({ cause }))
      )
      yield* Console.log(
        json
          ? yield* Effect.orDie(Schema.encode(ReportJson)(report))
          : report.files.length === 0
          ? text(report)
          : `directory: ${printable(report.directory)}\n${text(report)}`
      )
    })
).pipe(
  Command.withDescription(
    "Removes the temp files of this user that killed processes have left in a directory, as every program does before its first " +
      "storage there. Files of owners who are alive (in use) stay, and so does what is not known to be abandoned (left): other users' " +
      "files, links, and files on filesystems whose locks do not tell (FUSE, NFS and others), unless --force is given."
  )
)
