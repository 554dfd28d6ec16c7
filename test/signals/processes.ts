/** Processes that tests start and signal: what they print, how they end, and that nothing of them is left. */
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { stripVTControlCharacters } from "node:util"
import { program } from "../support/programs.js"

export const root = fileURLToPath(new URL("../..", import.meta.url))

/** Nothing here is measured; these only end what hangs. */
export const testTimeout = 300_000
const waitLimit = "4 minutes"
const goneLimitMillis = 120_000

/** Rounds at random moments; the seed is told by what fails, and `EDS_SEED` brings the same moments back. */
export const seed = Number(process.env["EDS_SEED"] ?? Date.now() % 1_000_000)

export const seeded = (name: string) => Effect.withRandom(Random.make(`${seed} ${name}`))

export type Signal = "SIGHUP" | "SIGINT" | "SIGTERM"

export const exitCode = (signal: Signal): number => ({ SIGHUP: 129, SIGINT: 130, SIGTERM: 143 })[signal]

export interface Ended {
  readonly code: number | null
  readonly signal: string | null
}

export interface Running {
  /** The cache directory, which it alone uses, and whose path in the environment tells its processes from all others. */
  readonly directory: string
  /** What it has printed so far, on either stream. */
  readonly output: () => string
  /** Waits for output that matches; false when the output ended without. */
  readonly printed: (pattern: RegExp) => Effect.Effect<boolean>
  /** `group` is what a terminal signals, also when what was started has ended, `leader` what was started; false when there is none. */
  readonly signal: (signal: Signal | "SIGKILL", to: "group" | "leader") => Effect.Effect<boolean>
  readonly type: (text: string) => Effect.Effect<void>
  /** When what was started has ended; others may go on and write to its output. */
  readonly left: Effect.Effect<void>
  /** How what was started ended, once its output has ended too. */
  readonly ended: Effect.Effect<Ended>
}

const temporaryDirectoryIn = (parent: string): Effect.Effect<string, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(parent, "eds-signals-"))),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  )

export const temporaryDirectory = temporaryDirectoryIn(tmpdir())

interface StartOptions {
  readonly cwd?: string
  readonly env?: Readonly<Record<string, string>>
  /** Where its cache directory is made. */
  readonly in?: string
}

/** The processes that were started with `directory` in their environment and have not ended. */
export const processesOf = (directory: string): Array<number> =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) => {
    try {
      return pid !== process.pid && readFileSync(`/proc/${pid}/environ`, "latin1").includes(`=${directory}\0`)
    } catch {
      // Ended meanwhile, or another user's.
      return false
    }
  })

const commandLines = (pids: ReadonlyArray<number>) =>
  pids.map((pid) => {
    try {
      return `${pid} ${readFileSync(`/proc/${pid}/cmdline`, "latin1").replaceAll("\0", " ")}`
    } catch {
      return `${pid}, ended meanwhile`
    }
  })

const kill = (pid: number, signal: Signal | "SIGKILL"): boolean => {
  try {
    return process.kill(pid, signal)
  } catch {
    return false
  }
}

/** Waits until none is left, at most so long; what is left then. */
const awaitGone = (directory: string): Effect.Effect<ReadonlyArray<number>> =>
  Effect.gen(function*() {
    const limit = performance.now() + goneLimitMillis
    for (;;) {
      const left = processesOf(directory)
      if (left.length === 0 || performance.now() > limit) return left
      yield* Effect.sleep("20 millis")
    }
  })

/** As on paper: without what moves a cursor or colours, and without lines that were written over. */
const plain = (output: string) =>
  stripVTControlCharacters(output).replaceAll(/\r+\n/g, "\n").replaceAll(/^.*\r(?!\n)/gm, "")

/** A process, the leader of a group of its own, that is gone when the Scope ends, together with all that it started. */
export const start = (
  command: string,
  args: ReadonlyArray<string>,
  options: StartOptions = {}
): Effect.Effect<Running, never, Scope.Scope> =>
  Effect.gen(function*() {
    const directory = yield* temporaryDirectoryIn(options.in ?? tmpdir())
    const end = yield* Deferred.make<Ended>()
    let raw = ""
    const output = () => plain(raw)
    const waiting = new Set<() => void>()
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(command, args, {
          cwd: options.cwd ?? root,
          detached: true,
          stdio: "pipe",
          env: {
            ...process.env,
            DYN_KVBM_DISK_CACHE_DIR: directory,
            DYN_KVBM_DISK_CACHE_GB: "0.064",
            npm_config_update_notifier: "false",
            ...options.env
          }
        })
      ),
      () =>
        Effect.gen(function*() {
          processesOf(directory).forEach((pid) => kill(pid, "SIGKILL"))
          assert.deepStrictEqual(commandLines(yield* awaitGone(directory)), [])
        })
    )
    const hasEnded = () => child.exitCode !== null || child.signalCode !== null
    const add = (chunk: unknown) => {
      raw += String(chunk)
      waiting.forEach((look) => look())
    }
    child.stdout.on("data", add)
    child.stderr.on("data", add)
    child.stdin.on("error", () => {})
    child.on("error", (error) => Deferred.unsafeDone(end, Effect.die(error)))
    child.on("close", (code, signal) => {
      Deferred.unsafeDone(end, Effect.succeed({ code, signal }))
      waiting.forEach((look) => look())
    })
    return {
      directory,
      output,
      printed: (pattern) =>
        Effect.async<boolean>((resume) => {
          const look = () => {
            const came = pattern.test(output())
            if (!came && !child.stdout.closed) return
            waiting.delete(look)
            resume(Effect.succeed(came))
          }
          waiting.add(look)
          look()
        }).pipe(
          Effect.timeoutFail({ duration: waitLimit, onTimeout: () => new Error(`${pattern} is not in: ${output()}`) }),
          Effect.orDie
        ),
      signal: (signal, to) =>
        Effect.sync(() =>
          child.pid !== undefined &&
          (to === "group" ? kill(-child.pid, signal) : !hasEnded() && kill(child.pid, signal))
        ),
      left: Effect.async<void>((resume) => {
        if (hasEnded()) resume(Effect.void)
        else child.once("exit", () => resume(Effect.void))
      }),
      type: (text) => Effect.sync(() => child.stdin.write(text)),
      ended: Deferred.await(end).pipe(
        Effect.timeoutFail({
          duration: waitLimit,
          onTimeout: () => new Error(`it has not ended, and said: ${output()}`)
        }),
        Effect.orDie
      )
    }
  })

/** `npm start` of this package. */
export const npmStart: Effect.Effect<Running, never, Scope.Scope> = start("npm", ["start"])

const compiled = (child: string) => program(new URL(`children/${child}.ts`, import.meta.url))

/** One of the programs beside this file. */
export const startChild = (
  child: string,
  args: ReadonlyArray<string>,
  options: StartOptions = {}
): Effect.Effect<Running, never, Scope.Scope> => start(process.execPath, [compiled(child), ...args], options)

/** The command line of the same, for a shell or the script of a package. */
export const childCommand = (child: string, args: ReadonlyArray<string>): string =>
  ["exec", process.execPath, compiled(child), ...args].map((word) => `'${word}'`).join(" ").replace("'exec'", "exec")

/** Longer than what counts as the same press (`ProcessRuntime`). */
const longerThanOnePress = "1200 millis"

/** Presses until the program has ended: on a busy machine it may take the first press for a part of the one before. */
export const pressAgain = (running: Running, press: Effect.Effect<unknown>): Effect.Effect<Ended> =>
  Effect.race(running.ended, Effect.forever(Effect.zipRight(Effect.sleep(longerThanOnePress), press)))

/** The processes are gone, and so are the files. */
export const assertNothingLeft = ({ directory, output }: Running): Effect.Effect<void> =>
  Effect.gen(function*() {
    assert.deepStrictEqual(commandLines(yield* awaitGone(directory)), [], output())
    assert.deepStrictEqual(readdirSync(directory), [], output())
  })
