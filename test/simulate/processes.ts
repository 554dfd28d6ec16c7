/** The processes in which histories run: each a bundle of its own, gone with whoever started it. */
import { spawn } from "node:child_process"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import type { Mutation } from "./bundle.js"
import { bundle } from "./bundle.js"
import type { Invariant } from "./invariants.js"
import type { Plan } from "./plan.js"
import type { Failed, Progress, Told } from "./told.js"

export interface Asked {
  /** The first seed, and how many. */
  readonly from: number
  readonly count: number
  /** Ends after so many that failed. */
  readonly most: number
  /** Only those that violate this one have failed. */
  readonly until?: Invariant | undefined
  /** In place of those that the seeds give. */
  readonly plans?: ReadonlyArray<Plan> | undefined
  readonly mutation?: Mutation | undefined
}

export interface Result extends Omit<Progress, "_tag"> {
  readonly failed: ReadonlyArray<Failed>
  readonly seconds: number
  /** Why the process did not come to its end. */
  readonly broken?: string | undefined
}

/** A history that takes longer than this goes round in circles where nothing counts. */
const silenceMillis = 60_000

const parse = (line: string): Told => JSON.parse(line)

export const simulate = async (
  asked: Asked,
  onTold: (told: Told) => void = () => {},
  signal?: AbortSignal
): Promise<Result> => {
  const directory = mkdtempSync(join(tmpdir(), "simulate-"))
  const remove = () => rmSync(directory, { recursive: true, force: true })
  process.once("exit", remove)
  try {
    const program = join(directory, "run.mjs")
    const arguments_ = join(directory, "asked.json")
    await bundle(program, asked.mutation)
    const { mutation: _, ...rest } = asked
    writeFileSync(arguments_, JSON.stringify(rest))
    const began = performance.now()
    const child = spawn(process.execPath, [program, arguments_], { stdio: ["pipe", "pipe", "pipe"] })
    const stop = () => void child.stdin.end()
    signal?.addEventListener("abort", stop)
    // It may have come while the bundle was made.
    if (signal?.aborted === true) stop()
    let progress: Progress = { _tag: "Progress", histories: 0, calls: 0, checks: {}, met: {} }
    let broken: string | undefined
    const failed: Array<Failed> = []
    const kill = () => {
      broken = `nothing was heard of it for ${silenceMillis / 1000} s after ${progress.histories} histories`
      child.kill("SIGKILL")
    }
    let silence = setTimeout(kill, silenceMillis)
    let errors = ""
    child.stderr.on("data", (data) => {
      errors += String(data)
    })
    const ended = new Promise<number | null>((resolve) => child.once("close", resolve))
    for await (const line of createInterface({ input: child.stdout })) {
      clearTimeout(silence)
      silence = setTimeout(kill, silenceMillis)
      const told = parse(line)
      if (told._tag === "Failed") failed.push(told)
      else progress = told
      onTold(told)
    }
    const code = await ended
    clearTimeout(silence)
    signal?.removeEventListener("abort", stop)
    if (code !== 0) broken ??= `it ended with ${code}: ${errors}`
    const { calls, checks, histories, met } = progress
    return { histories, calls, checks, met, failed, broken, seconds: (performance.now() - began) / 1000 }
  } finally {
    process.removeListener("exit", remove)
    remove()
  }
}
