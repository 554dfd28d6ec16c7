/** Acquires a storage in a directory, by a working directory that may be gone by then, and prints the path, or the failure. */
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import { rmdirSync } from "node:fs"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as Linux from "../../../src/Linux.js"
import * as Syscalls from "../../../src/Syscalls.js"

const [how = "", directory = ""] = process.argv.slice(2)
if (how === "removed") rmdirSync(process.cwd())

const warnings: Array<string> = []
const logger = Logger.make(({ logLevel, message }) => {
  if (logLevel.label === "WARN") warnings.push(String(message))
})

const make = Effect.scoped(Effect.map(
  DiskStorage.make({ size: 4096, directory, directIo: "disabled" }),
  ({ path }) => path
))
// As after `umount -l`: what the kernel calls the working directory is the name of something else.
const renamed = Effect.flatMap(
  Syscalls.Syscalls,
  (syscalls) => Effect.provideService(make, Syscalls.Syscalls, { ...syscalls, readlink: () => Effect.succeed("/tmp") })
)

const program = Effect.gen(function*() {
  const outcomes: Array<string> = []
  // Twice, since the second storage is not warned of.
  for (let time = 0; time < 2; time++) {
    outcomes.push(
      yield* Effect.match(how === "detached" ? renamed : make, {
        onFailure: (error) => `${error._tag}: ${error.message}`,
        onSuccess: (path) => path
      })
    )
  }
  return outcomes
})

const outcomes = await Effect.runPromise(
  program.pipe(Effect.provide(Linux.layer), Effect.provide(Logger.replace(Logger.defaultLogger, logger)))
)
console.log(JSON.stringify({ outcomes, warnings }))
