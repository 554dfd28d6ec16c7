/** The ways to run a program: ours, the platform's, and none. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import * as ProcessRuntime from "../../../src/ProcessRuntime.js"

export const edges = {
  ProcessRuntime: ProcessRuntime.runMain,
  NodeRuntime: NodeRuntime.runMain,
  none: (effect: Effect.Effect<unknown, unknown>): void => void Effect.runFork(effect)
} as const

/** The argument at `index`, which must be a key of `choices`. */
export const choose = <A>(choices: { readonly [key: string]: A }, index: number): A => {
  const choice = choices[process.argv[index + 2] ?? ""]
  if (choice === undefined) throw new Error(`argument ${index + 1} is one of: ${Object.keys(choices).join(", ")}`)
  return choice
}
