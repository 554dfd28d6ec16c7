/** A server as a process of its own, so that its memory and its time are its own, which ends with the Scope whatever happens. */
import * as Command from "@effect/platform/Command"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { readFileSync } from "node:fs"
import { extname } from "node:path"
import { fileURLToPath } from "node:url"
import { Failed } from "./clients.js"

export interface Server {
  readonly url: string
  readonly usage: Effect.Effect<Usage>
}

export interface Usage {
  /** Most that was resident so far, in bytes. */
  readonly maxRss: number
  /** Seconds of a processor, on all threads, in the program and in the kernel for it. */
  readonly cpu: number
}

/** Of USER_HZ, which Linux shows every program as 100. */
const ticksPerSecond = 100

const usage = (pid: number) =>
  Effect.sync((): Usage => {
    try {
      const kibibytes = /^VmHWM:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]
      // The second field is a name in brackets, which may hold anything; utime and stime are the 14th and the 15th.
      const fields = readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\) /s, "").split(" ")
      const ticks = Number(fields[11]) + Number(fields[12])
      return { maxRss: Number(kibibytes) * 1024, cpu: ticks / ticksPerSecond }
    } catch {
      return { maxRss: NaN, cpu: NaN }
    }
  })

const extension = extname(import.meta.url)

/** The program beside this file, run as this one is run. */
export const start = (program: string, args: ReadonlyArray<string>, env: Record<string, string>) =>
  Effect.gen(function*() {
    const file = fileURLToPath(new URL(`${program}${extension}`, import.meta.url))
    const url = yield* Deferred.make<string, Failed>()
    const process_ = yield* Command.make(process.execPath, ...process.execArgv, file, ...args).pipe(
      Command.env(env),
      Command.stderr("inherit"),
      Command.start,
      Effect.mapError(({ message }) => new Failed({ message }))
    )
    // It reads until the process has ended, also while that is being stopped: else its last words would break a pipe.
    yield* process_.stdout.pipe(
      Stream.decodeText(),
      Stream.splitLines,
      Stream.runForEach((line) => /^http:\S+:\d+$/.test(line) ? Deferred.succeed(url, line) : Effect.void),
      Effect.ignore,
      Effect.zipRight(Deferred.fail(url, new Failed({ message: `${program} ended before it served` }))),
      Effect.forkDaemon
    )
    const server: Server = { url: yield* Deferred.await(url), usage: usage(process_.pid) }
    return server
  })
