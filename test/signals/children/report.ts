/** What a program did, for the test that started it: on standard output, and in a file that survives a closed terminal. */
import * as Effect from "effect/Effect"
import { appendFileSync } from "node:fs"

/** A program must not outlive a test run that was killed. */
setTimeout(() => process.exit(99), 600_000).unref()

const file = process.env["EDS_REPORT"]

export const reportNow = (line: string): void => {
  if (file !== undefined) appendFileSync(file, `${line}\n`)
  console.log(line)
}

export const report = (line: string): Effect.Effect<void> => Effect.sync(() => reportNow(line))

/** The exit code, which nobody else sees when the shell and npm above have died. */
export const reportExit = (): void => {
  process.on("exit", (code) => reportNow(`exit ${code}`))
}
