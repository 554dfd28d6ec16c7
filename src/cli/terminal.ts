/** What the standard streams of the command may carry. */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import { withoutColours } from "./layout.js"

interface Stream {
  readonly isTTY: boolean
}

/** https://no-color.org: a variable that is there and not empty. */
const noColour = Config.option(Config.nonEmptyString("NO_COLOR")).pipe(
  Effect.match({ onFailure: () => false, onSuccess: Option.isSome })
)

/** Whether what is written to `stream` may have colours. */
export const hasColour = (stream: Stream): Effect.Effect<boolean> =>
  Effect.map(noColour, (refused) => !refused && stream.isTTY === true)

/** Of lines on standard output; narrower than 40 nothing can be read. */
export const width: Effect.Effect<number> = Effect.sync(() => Math.max(40, process.stdout.columns || 100))

const without = (value: unknown): unknown => typeof value === "string" ? withoutColours(value) : value

/** The parser colours its help and its complaints wherever they go. */
export const withColoursWhereTheyBelong = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.gen(function*() {
    const coloured = { out: yield* hasColour(process.stdout), complaints: yield* hasColour(process.stderr) }
    const console = yield* Effect.consoleWith(Effect.succeed)
    return yield* Effect.withConsole(effect, {
      ...console,
      log: (...values) => console.log(...(coloured.out ? values : values.map(without))),
      error: (...values) => console.error(...(coloured.complaints ? values : values.map(without)))
    })
  })

/** Logs go to standard error: standard output is what was asked for. */
export const loggerLayer: Layer.Layer<never> = Layer.unwrapEffect(
  Effect.map(
    hasColour(process.stderr),
    (colors) => Logger.replace(Logger.defaultLogger, Logger.prettyLogger({ colors, stderr: true }))
  )
)
