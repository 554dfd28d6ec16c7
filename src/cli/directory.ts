/** The argument that names a directory. */
import * as Args from "@effect/cli/Args"
import * as HelpDoc from "@effect/cli/HelpDoc"
import type * as ConfigError from "effect/ConfigError"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as DiskStorageConfig from "../DiskStorageConfig.js"
import { WorkingDirectoryGone } from "../DiskStorageError.js"

/** `purpose`: what is done with it, as the help says. */
export const argument = (purpose: string): Args.Args<Option.Option<string>> =>
  Args.text({ name: "DIR" }).pipe(
    // What looks like an option and is none, or is given twice, arrives here.
    Args.mapEffect((text) =>
      text === ""
        ? Effect.fail(HelpDoc.p("DIR is empty."))
        : text.includes("\uFFFD")
        ? Effect.fail(
          HelpDoc.p("DIR has bytes that are no UTF-8, or U+FFFD, which stands for such. Use a path in UTF-8.")
        )
        : text.startsWith("-")
        ? Effect.fail(
          HelpDoc.p(
            `${text} is not an option, or is given twice; --help lists those there are. A path can start with ./`
          )
        )
        : Effect.succeed(text)
    ),
    Args.withDescription(`The directory to ${purpose} (default: DYN_KVBM_DISK_CACHE_DIR, else /tmp).`),
    Args.optional
  )

/** Absolute, whatever becomes of the working directory. As it stands: ".." behind a link leads elsewhere than its text. */
export const resolved = (path: string): Effect.Effect<string, WorkingDirectoryGone> =>
  Effect.try({
    try: () => path.startsWith("/") ? path : `${process.cwd()}/${path}`,
    catch: () => new WorkingDirectoryGone({ path })
  })

/** The one that was given, or the one of storages; absolute. */
export const given = (
  argument: Option.Option<string>
): Effect.Effect<string, ConfigError.ConfigError | WorkingDirectoryGone> =>
  Effect.flatMap(
    Option.match(argument, { onNone: () => DiskStorageConfig.directory, onSome: Effect.succeed }),
    resolved
  )
