/** Storages in processes of their own, which limits and injected faults reach. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { program } from "../support/programs.js"
import { Reply, Task } from "./children/protocol.js"

const root = fileURLToPath(new URL("../..", import.meta.url))

export interface Child {
  readonly pid: number
  /** Lets the process take its next step, and waits for its answer. */
  readonly step: (line: "acquire" | "write" | "keep" | "close") => Effect.Effect<Reply>
}

/** A process until the Scope ends, whose standard error is told when it ends before it was to. */
const scopedProcess = (name: string, args: ReadonlyArray<string>, env: Record<string, string>) =>
  Effect.acquireRelease(
    Effect.sync(() => spawn(name, args, { cwd: root, stdio: "pipe", env: { ...process.env, ...env } })),
    (child) =>
      Effect.async<void>((resume) => {
        if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
        child.on("exit", () => resume(Effect.void))
        child.kill("SIGKILL")
      })
  )

/** Starts a process that is ready to acquire a storage. `limits` are options of `prlimit`; `under` is a command that starts it. */
export const startChild = (
  task: Task,
  limits: ReadonlyArray<string> = [],
  under: ReadonlyArray<string> = []
): Effect.Effect<Child, never, Scope.Scope> =>
  Effect.gen(function*() {
    const node = [
      process.execPath,
      program(new URL("children/storage.ts", import.meta.url)),
      Schema.encodeSync(Task)(task)
    ]
    const [name = "", ...args] = [...under, ...(limits.length === 0 ? node : ["prlimit", ...limits, ...node])]
    // One thread of the pool makes all calls, transfers too, so that the n-th call of a thread is the n-th call.
    const child = yield* scopedProcess(name, args, { UV_THREADPOOL_SIZE: "1", DISK_STORAGE_IO_ENGINE: "node" })
    let complaint = ""
    child.stderr.on("data", (chunk) => complaint += String(chunk))
    const replies = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    const reply = Effect.map(
      Effect.promise(() => replies.next()),
      (line) => {
        if (line.done === true) return assert.fail(`the process ended: ${complaint}`)
        return Schema.decodeUnknownSync(Reply)(line.value)
      }
    )
    assert.strictEqual((yield* reply)._tag, "Ready")
    return {
      pid: child.pid ?? 0,
      step: (line) => Effect.zipRight(Effect.sync(() => child.stdin.write(`${line}\n`)), reply)
    }
  })

const attached = (tracer: ChildProcess) =>
  Effect.async<void>((resume) => {
    let said = ""
    tracer.on("error", (error) => resume(Effect.die(error)))
    tracer.on("exit", (code) => resume(Effect.dieMessage(`strace ended with ${code}: ${said}`)))
    tracer.stderr?.on("data", (chunk) => {
      said += String(chunk)
      if (/attached/.test(said)) resume(Effect.void)
    })
  })

/** From now on a call of the process fails as `strace --inject` says; until then it ran undisturbed. */
export const inject = ({ pid }: Child, calls: string, fault: string): Effect.Effect<void, never, Scope.Scope> =>
  Effect.gen(function*() {
    const args = ["-f", "-o", "/dev/null", "-e", `trace=${calls}`, "-e", `inject=${calls}:${fault}`, "-p", String(pid)]
    yield* attached(yield* scopedProcess("strace", args, {}))
  })
