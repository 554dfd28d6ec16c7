/** What the standard streams of the command may carry. */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import { printableButColours, withoutColours } from "./layout.js"

interface Stream {
  readonly isTTY: boolean
}

/** https://no-color.org: a variable that is there and not empty. */
const noColour = Config.option(Config.nonEmptyString("NO_COLOR")).pipe(
  Effect.match({ onFailure: () => false, onSuccess: Option.isSome })
)

/** A terminal that only prints characters (terminfo's `dumb`): no colours, and no line that is drawn again. */
const isDumb = Config.option(Config.nonEmptyString("TERM")).pipe(
  Effect.match({ onFailure: () => false, onSuccess: Option.contains("dumb") })
)

/** Whether a line on `stream` may be erased and drawn again. */
export const redraws = (stream: Stream): Effect.Effect<boolean> =>
  Effect.map(isDumb, (dumb) => !dumb && stream.isTTY === true)

/** Whether text on `stream` may have colours. */
export const hasColour = (stream: Stream): Effect.Effect<boolean> =>
  Effect.zipWith(noColour, redraws(stream), (refused, capable) => !refused && capable)

/** Of lines on standard output; narrower than 40 nothing can be read. */
export const width: Effect.Effect<number> = Effect.sync(() => Math.max(40, process.stdout.columns || 100))

const without = (value: unknown): unknown => typeof value === "string" ? withoutColours(value) : value

/** The parser quotes arguments as they are. */
const shown = (value: unknown): unknown => typeof value === "string" ? printableButColours(value) : value

/** The parser colours its help and its complaints wherever they go. */
export const withColoursWhereTheyBelong = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.gen(function*() {
    const coloured = { out: yield* hasColour(process.stdout), complaints: yield* hasColour(process.stderr) }
    const console = yield* Effect.consoleWith(Effect.succeed)
    return yield* Effect.withConsole(effect, {
      ...console,
      log: (...values) => console.log(...(coloured.out ? values : values.map(without))),
      error: (...values) => console.error(...(coloured.complaints ? values : values.map(without)).map(shown))
    })
  })

/** SIGPIPE, which Node ignores (`signal(7)`), and EX_SOFTWARE of sysexits.h. */
const exitCodes = { noReader: 128 + 13, notWritten: 70 }

/**
 * The program ends at once where nobody reads what it prints any more, silently as others do by SIGPIPE, and where what it prints
 * cannot be written. After SIGHUP it does not: the terminal is gone, and `ProcessRuntime.runMain` lets the release finish.
 */
export const endWithStreams: Effect.Effect<void> = Effect.sync(() => {
  const end = ({ code, message }: NodeJS.ErrnoException) => {
    if (code === "EPIPE") process.exit(exitCodes.noReader)
    process.stderr.write(`Standard output cannot be written: ${message}\n`)
    process.exit(exitCodes.notWritten)
  }
  const complain = ({ code }: NodeJS.ErrnoException) =>
    process.exit(code === "EPIPE" ? exitCodes.noReader : exitCodes.notWritten)
  process.stdout.on("error", end)
  process.stderr.on("error", complain)
  process.once("SIGHUP", () => {
    process.stdout.off("error", end)
    process.stderr.off("error", complain)
    // Without this listener the signal would have killed.
    if (process.listenerCount("SIGHUP") === 0) process.kill(process.pid, "SIGHUP")
  })
})

/** Logs go to standard error: standard output is what was asked for. */
export const loggerLayer: Layer.Layer<never> = Layer.unwrapEffect(
  Effect.map(
    hasColour(process.stderr),
    (colors) => Logger.replace(Logger.defaultLogger, Logger.prettyLogger({ colors, stderr: true }))
  )
)
