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

export interface LibraryThreads<F extends Declarations> {
  /**
   * Makes one call on whichever thread is free. Waiting for one can be interrupted; a call that has begun is waited for. `holds` is what
   * must not be collected until then.
   */
  readonly call: (name: keyof F & string, args: ReadonlyArray<Value>, holds?: unknown) => Effect.Effect<Answer>
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
parentPort.on("message", ({ name, args }) => {
  try {
    const result = functions.get(name)(...args)
    parentPort.postMessage({ result, errno: koffi.errno() })
  } catch (error) {
    parentPort.postMessage({ reason: String(error) })
  }
})
`

type Message =
  | { readonly names: ReadonlyArray<string> }
  | { readonly reason: string }
  | Answer

interface Thread {
  readonly worker: Worker
  /** What the call uses that it is at. */
  holds: unknown
  /** Who waits for the answer to the call that it is at. */
  answer: ((message: Message) => void) | undefined
  /** Why it answers no more. */
  ended: string | undefined
}

const start = (functions: Declarations, koffi: string): Thread => {
  const worker = new Worker(program, { eval: true, workerData: { functions, koffi } })
  const thread: Thread = { worker, holds: undefined, answer: undefined, ended: undefined }
  const answered = (message: Message) => {
    const { answer } = thread
    thread.answer = undefined
    thread.holds = undefined
    // It does not keep the process alive while it is at nothing.
    worker.unref()
    answer?.(message)
  }
  worker.on("message", answered)
  worker.on("error", (error) => answered({ reason: String(error) }))
  worker.on("exit", (code) => {
    thread.ended = `its thread has ended (${code})`
    answered({ reason: thread.ended })
  })
  return thread
}

const ask = (thread: Thread, name: string, args: ReadonlyArray<Value>, holds: unknown) =>
  Effect.uninterruptible(Effect.async<Answer>((resume) => {
    if (thread.ended !== undefined) return resume(Effect.dieMessage(`${name} was not called: ${thread.ended}`))
    thread.answer = (message) => {
      if ("result" in message) return resume(Effect.succeed(message))
      resume(
        Effect.dieMessage(`${name} was not called: ${"reason" in message ? message.reason : "an answer to nothing"}`)
      )
    }
    thread.holds = holds
    thread.worker.ref()
    thread.worker.postMessage({ name, args }, [])
  }))

/** What a library that cannot be loaded, or lacks a function, is told by. */
export interface NotLoaded {
  readonly reason: string
}

/**
 * `threads` threads that have loaded the libraries. The end of the Scope waits for calls in flight, however long those take. Libraries
 * stay loaded. A call after that is a defect.
 */
export const make = <const F extends Declarations>(
  functions: F,
  threads: number
): Effect.Effect<LibraryThreads<F>, NotLoaded, Scope.Scope> =>
  Effect.gen(function*() {
    const koffi = yield* Effect.try({
      try: () => createRequire(import.meta.url).resolve("koffi"),
      catch: (error): NotLoaded => ({ reason: `koffi cannot be found: ${String(error)}` })
    })
    const gate = yield* Effect.makeSemaphore(threads)
    const idle: Array<Thread> = []
    const names = new Set<string>()
    const startOne = Effect.async<Thread, NotLoaded>((resume) => {
      const thread = start(functions, koffi)
      thread.answer = (message) => {
        if ("names" in message) {
          for (const name of message.names) names.add(name)
          return resume(Effect.succeed(thread))
        }
        void thread.worker.terminate()
        resume(Effect.fail({ reason: "reason" in message ? message.reason : "it answered before it was asked" }))
      }
    })
    const all: Array<Thread> = []
    // Those in flight hold a permit each.
    yield* Effect.addFinalizer(() =>
      gate.withPermits(threads)(
        Effect.forEach(all, ({ worker }) => Effect.promise(() => worker.terminate()), { discard: true })
      )
    )
    for (let count = 0; count < threads; count++) {
      const thread = yield* Effect.uninterruptible(
        Effect.tap(startOne, (thread) => Effect.sync(() => all.push(thread)))
      )
      idle.push(thread)
    }
    return {
      call: (name, args, holds) =>
        gate.withPermits(1)(Effect.suspend(() => {
          const thread = idle.pop()
          if (thread === undefined) return Effect.dieMessage("there is a permit for each thread")
          return Effect.ensuring(ask(thread, name, args, holds), Effect.sync(() => void idle.push(thread)))
        })),
      callOnEach: (name, args) =>
        gate.withPermits(threads)(Effect.forEach(all, (thread) => ask(thread, name, args, undefined))),
      has: (name) => names.has(name)
    }
  })
