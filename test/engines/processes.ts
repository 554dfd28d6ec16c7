/** Programs of this folder in processes of their own, which are gone when the Scope ends. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { createRequire } from "node:module"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../..", import.meta.url))
const tsx = createRequire(import.meta.url).resolve("tsx")

export interface Ended {
  readonly code: number | null
  readonly signal: string | null
  readonly output: string
  readonly complaint: string
}

export interface Child {
  readonly pid: number
  /** Waits for this on standard output; false when it ended without. */
  readonly printed: (text: string) => Effect.Effect<boolean>
  readonly kill: Effect.Effect<void>
  readonly ended: Effect.Effect<Ended>
}

/** The command line of a child, for those that start it through another program. */
export const commandLine = (
  child: string,
  args: ReadonlyArray<string>,
  nodeOptions: ReadonlyArray<string> = []
): ReadonlyArray<string> => [
  process.execPath,
  ...nodeOptions,
  "--import",
  tsx,
  fileURLToPath(new URL(`children/${child}.ts`, import.meta.url)),
  ...args
]

export const start = (
  [command = "", ...args]: ReadonlyArray<string>,
  env: Readonly<Record<string, string>> = {}
): Effect.Effect<Child, never, Scope.Scope> =>
  Effect.gen(function*() {
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(command, args, { cwd: root, stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...env } })
      ),
      (process) =>
        Effect.async<void>((resume) => {
          if (process.exitCode !== null || process.signalCode !== null || process.pid === undefined) {
            return resume(Effect.void)
          }
          process.on("exit", () => resume(Effect.void))
          process.kill("SIGKILL")
        })
    )
    let output = ""
    let complaint = ""
    const looks = new Set<() => void>()
    const look = () => looks.forEach((each) => each())
    child.stdout.on("data", (chunk) => {
      output += String(chunk)
      look()
    })
    child.stderr.on("data", (chunk) => complaint += String(chunk))
    let end: Ended | undefined
    child.on("error", (error) => complaint += String(error))
    child.on("close", (code, signal) => {
      end = { code, signal, output, complaint }
      look()
    })
    const when = <A>(ready: () => A | undefined) =>
      Effect.async<A>((resume) => {
        const each = () => {
          const value = ready()
          if (value === undefined) return
          looks.delete(each)
          resume(Effect.succeed(value))
        }
        looks.add(each)
        each()
      })
    return {
      pid: child.pid ?? 0,
      printed: (text) => when(() => output.includes(text) ? true : end === undefined ? undefined : false),
      kill: Effect.sync(() => void child.kill("SIGKILL")),
      ended: when(() => end)
    }
  })

/** Runs to its end. */
export const run = (
  command: ReadonlyArray<string>,
  env: Readonly<Record<string, string>> = {}
): Effect.Effect<Ended> => Effect.scoped(Effect.flatMap(start(command, env), ({ ended }) => ended))
