/** What a person sees on stderr while waiting. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { redraws } from "../terminal.js"

export class Progress extends Context.Tag("effect-disk-storage/cli/Progress")<Progress, {
  /** Replaces the last status on a terminal that can erase a line; nothing elsewhere. */
  readonly status: (text: string) => Effect.Effect<void>
  /** Stays. */
  readonly log: (text: string) => Effect.Effect<void>
}>() {}

const eraseLine = "\r\u001B[2K"

/** The line is gone when the layer is. */
export const layer: Layer.Layer<Progress> = Layer.scoped(
  Progress,
  Effect.gen(function*() {
    const { stderr } = process
    if (!(yield* redraws(stderr))) {
      return {
        status: () => Effect.void,
        log: (text) => Effect.sync(() => void stderr.write(`${text}\n`))
      }
    }
    yield* Effect.addFinalizer(() => Effect.sync(() => stderr.write(eraseLine)))
    return {
      status: (text) => Effect.sync(() => void stderr.write(eraseLine + text.slice(0, (stderr.columns || 80) - 1))),
      log: (text) => Effect.sync(() => void stderr.write(`${eraseLine}${text}\n`))
    }
  })
)
