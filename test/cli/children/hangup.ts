/** Holds something, and prints into a pipe that nobody reads any more while it releases it after SIGHUP. */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as terminal from "../../../src/cli/terminal.js"
import * as ProcessRuntime from "../../../src/ProcessRuntime.js"

const release = Effect.gen(function*() {
  yield* Console.log("releasing")
  yield* Effect.sleep("200 millis")
  yield* Console.error("released")
})

terminal.endWithStreams.pipe(
  Effect.zipRight(Effect.acquireUseRelease(Console.error("held"), () => Effect.never, () => release)),
  ProcessRuntime.runMain({ disableErrorReporting: true })
)
