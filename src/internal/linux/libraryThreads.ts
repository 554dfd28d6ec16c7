/**
 * Threads on which C libraries are called whose calls block, or depend on what is current on the thread that makes them, as CUDA's do on
 * the context. koffi's own off-thread calls run on whichever thread of libuv's pool is free, which has no context.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { createRequire } from "node:module"
import { Worker } from "node:worker_threads"

/** An integer, or an address: of memory that stays where it is for as long as the call takes. */
export type Value = number | bigint

export interface Declaration {
  /** Path or soname of the library. */
  readonly library: string
  /** Types of koffi; pointers are `uint64_t` here, since they cross threads as numbers. */
  readonly result: string
  readonly args: ReadonlyArray<string>
  /** A symbol that older releases lack: see `has`. */
  readonly optional?: boolean | undefined
}

export type Declarations = { readonly [name: string]: Declaration }

export interface Answer {
  readonly result: Value
  /** What `errno` was right after the call, on its thread. */
  readonly errno: number
}

/** Repeats a call on its thread, without a pause, while it answers `answer`: `times` calls at most. */
export interface Again {
  readonly answer: number
  readonly times: number
}

export interface LibraryThreads<F extends Declarations> {
  /**
   * Makes one call on whichever thread is free. Waiting for one can be interrupted; a call that has begun is waited for. `holds` is what
   * must not be collected until then.
   */
  readonly call: (
    name: keyof F & string,
    args: ReadonlyArray<Value>,
    holds?: unknown,
    again?: Again
  ) => Effect.Effect<Answer>
  /** Makes the same call on each of the threads, one after the other: what is current is so per thread. */
  readonly callOnEach: (
    name: keyof F & string,
    args: ReadonlyArray<Value>
  ) => Effect.Effect<ReadonlyArray<Answer>>
  readonly has: (name: keyof F & string) => boolean
}

/** Plain JavaScript, evaluated: a file of its own would have to be found from sources, from the build and from bundles of others. */
const program = `
const { parentPort, workerData } = require("node:worker_threads")
const koffi = require(workerData.koffi)
const libraries = new Map()
const functions = new Map()
try {
  for (const [name, { library, result, args, optional }] of Object.entries(workerData.functions)) {
    try {
      if (!libraries.has(library)) libraries.set(library, koffi.load(library))
      functions.set(name, libraries.get(library).func(name, result, args))
    } catch (error) {
      if (optional !== true || !libraries.has(library)) throw new Error(library + ": " + error.message)
    }
  }
  parentPort.postMessage({ names: [...functions.keys()] })
} catch (error) {
  parentPort.postMessage({ reason: error.message })
}
parentPort.on("message", (calls) => {
  parentPort.postMessage(calls.map(({ name, args, again }) => {
    try {
      const call = functions.get(name)
      let result = call(...args)
      for (let left = again?.times ?? 0; left > 1 && result === again.answer; left--) result = call(...args)
      return { result, errno: koffi.errno() }
    } catch (error) {
      return { reason: String(error) }
    }
  }))
})
`

/** What becomes of the libraries, told once, and then of calls, as many as were sent. */
type Message =
  | { readonly names: ReadonlyArray<string> }
  | { readonly reason: string }
  | ReadonlyArray<Answer | { readonly reason: string }>

interface Call {
  readonly name: string
  readonly args: ReadonlyArray<Value>
  readonly holds: unknown
  readonly again?: Again | undefined
  /** Whoever waits for its end. */
  ended: (answer: Effect.Effect<Answer>) => void
}

interface Thread {
  readonly worker: Worker
  /** What it is at. */
  calls: ReadonlyArray<Call>
  /** Why it answers no more. */
  ended: string | undefined
}

const notCalled = ({ name }: Call, reason: string) => Effect.dieMessage(`${name} was not called: ${reason}`)

/** `loaded` is told when the libraries are there, or why they are not; `idle` each time that a thread has ended its calls. */
const start = (
  functions: Declarations,
  koffi: string,
  loaded: (outcome: ReadonlyArray<string> | NotLoaded) => void,
  idle: () => void
): Thread => {
  const worker = new Worker(program, { eval: true, workerData: { functions, koffi } })
  const thread: Thread = { worker, calls: [], ended: undefined }
  const over = (reason: string) => {
    thread.ended ??= reason
    loaded({ reason })
    const { calls } = thread
    thread.calls = []
    for (const call of calls) call.ended(notCalled(call, reason))
  }
  worker.on("message", (message: Message) => {
    if ("names" in message) return loaded(message.names)
    if ("reason" in message) return loaded(message)
    const { calls } = thread
    thread.calls = []
    // It does not keep the process alive while it is at nothing.
    worker.unref()
    idle()
    for (const [index, call] of calls.entries()) {
      const answer = message[index] ?? { reason: "there was no answer" }
      call.ended("reason" in answer ? notCalled(call, answer.reason) : Effect.succeed(answer))
    }
  })
  worker.on("error", (error) => over(String(error)))
  worker.on("exit", (code) => over(`its thread has ended (${code})`))
  return thread
}

const send = (thread: Thread, calls: ReadonlyArray<Call>): void => {
  const { ended, worker } = thread
  if (ended !== undefined) {
    for (const call of calls) call.ended(notCalled(call, ended))
    return
  }
  thread.calls = calls
  worker.ref()
  worker.postMessage(calls.map(({ again, args, name }) => ({ name, args, again })), [])
}

/** What a library that cannot be loaded, or lacks a function, is told by. */
export interface NotLoaded {
  readonly reason: string
}

/**
 * `threads` threads that have loaded the libraries. The end of the Scope waits for calls in flight, however long those take. Libraries
 * stay loaded. A call after that is a defect.
 *
 * To wake another thread costs as much as a short call: up to `together` calls that wait are given to a thread at once, and end together.
 */
export const make = <const F extends Declarations>(
  functions: F,
  threads: number,
  together = 1
): Effect.Effect<LibraryThreads<F>, NotLoaded, Scope.Scope> =>
  Effect.gen(function*() {
    const koffi = yield* Effect.try({
      try: () => createRequire(import.meta.url).resolve("koffi"),
      catch: (error): NotLoaded => ({ reason: `koffi cannot be found: ${String(error)}` })
    })
    const all: Array<Thread> = []
    const waiting: Array<Call> = []
    const sendWaiting = () => {
      const idle = all.filter(({ calls }) => calls.length === 0)
      for (const [index, thread] of idle.entries()) {
        const share = Math.min(together, Math.ceil(waiting.length / (idle.length - index)))
        if (share > 0) send(thread, waiting.splice(0, share))
      }
    }
    /** At the end of the turn, when all who begin something now have done so. */
    let planned = false
    const sendSoon = () => {
      if (planned) return
      planned = true
      queueMicrotask(() => {
        planned = false
        sendWaiting()
      })
    }
    const gate = yield* Effect.makeSemaphore(threads * together)
    const names = new Set<string>()
    const startOne = Effect.async<Thread, NotLoaded>((resume) => {
      const thread = start(functions, koffi, (outcome) => {
        if ("reason" in outcome) {
          void thread.worker.terminate()
          return resume(Effect.fail(outcome))
        }
        for (const name of outcome) names.add(name)
        thread.worker.unref()
        resume(Effect.succeed(thread))
      }, sendSoon)
    })
    // Those that wait or are in flight hold a permit each.
    yield* Effect.addFinalizer(() =>
      gate.withPermits(threads * together)(
        Effect.forEach(all, ({ worker }) => Effect.promise(() => worker.terminate()), { discard: true })
      )
    )
    for (let count = 0; count < threads; count++) {
      yield* Effect.uninterruptible(Effect.tap(startOne, (thread) => Effect.sync(() => all.push(thread))))
    }
    return {
      call: (name, args, holds, again) =>
        gate.withPermits(1)(Effect.async<Answer>((resume) => {
          const call: Call = { name, args, holds, again, ended: resume }
          waiting.push(call)
          sendSoon()
          return Effect.suspend(() => {
            const at = waiting.indexOf(call)
            if (at < 0) return Effect.async<void>((resume) => void (call.ended = () => resume(Effect.void)))
            waiting.splice(at, 1)
            return Effect.void
          })
        })),
      callOnEach: (name, args) =>
        gate.withPermits(threads * together)(Effect.forEach(all, (thread) =>
          Effect.uninterruptible(
            Effect.async<Answer>((resume) => send(thread, [{ name, args, holds: undefined, ended: resume }]))
          ))),
      has: (name) => names.has(name)
    }
  })
