/**
 * The event loop of a simulation: immediates, timers and clocks that are no longer Node's. What runs in it waits for nothing outside, so
 * that one seed gives one order. Import this before anything that takes a timer: it replaces them as it is loaded.
 */
import crypto from "node:crypto"
import { syncBuiltinESMExports } from "node:module"
import timers from "node:timers"
import { Random } from "./random.js"

/** Callbacks of one history; what takes more goes round in circles. */
const maxCallbacks = 200_000
/** The most that one callback takes of the simulated time. */
const maxCallbackMillis = 0.1
const epoch = 1_700_000_000_000

class Handle {
  cancelled = false
  readonly due: number
  readonly order: number
  readonly run: () => void

  constructor(due: number, order: number, run: () => void) {
    this.due = due
    this.order = order
    this.run = run
  }

  ref(): this {
    return this
  }

  unref(): this {
    return this
  }
}

/** Node's own, for what lies outside of the simulation. */
export const real = {
  setImmediate: globalThis.setImmediate,
  now: performance.now.bind(performance)
}

// Microtasks are run to their end between two callbacks, by what Node itself does that with.
const tickCallback: unknown = Reflect.get(process, "_tickCallback")
const drain = (): void => {
  if (typeof tickCallback !== "function") throw new TypeError("this Node has no process._tickCallback")
  Reflect.apply(tickCallback, process, [])
}

let now = 0
let order = 0
let random = new Random(0)
let immediates: Array<Handle> = []
let waiting: Array<Handle> = []

const insert = (handle: Handle): void => {
  let at = waiting.length
  while (at > 0 && (waiting[at - 1]?.due ?? 0) > handle.due) at--
  waiting.splice(at, 0, handle)
}

type Callback = (...args: ReadonlyArray<unknown>) => void

const setImmediate = (callback: Callback, ...args: ReadonlyArray<unknown>): Handle => {
  const handle = new Handle(now, order++, () => callback(...args))
  immediates.push(handle)
  return handle
}

const setTimeout = (callback: Callback, millis = 1, ...args: ReadonlyArray<unknown>): Handle => {
  const handle = new Handle(now + Math.max(1, millis), order++, () => callback(...args))
  insert(handle)
  return handle
}

const clear = (handle: unknown): void => {
  if (handle instanceof Handle) handle.cancelled = true
}

const setInterval = (): never => {
  throw new Error("nothing in a simulation repeats by itself")
}

const replaced = {
  setImmediate,
  setTimeout,
  setInterval,
  clearImmediate: clear,
  clearTimeout: clear,
  clearInterval: clear
}

const randomBytes = (length: number): Buffer => Buffer.from(Array.from({ length }, () => random.below(256)))

const randomFillSync = <A extends ArrayBufferView>(view: A): A => {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
  bytes.set(randomBytes(bytes.byteLength))
  return view
}

const wasm: unknown = Reflect.get(globalThis, "WebAssembly")
const construct = (name: string, args: ReadonlyArray<unknown>): object => {
  const made: unknown = typeof wasm === "object" && wasm !== null ? Reflect.get(wasm, name) : undefined
  if (typeof made !== "function") throw new TypeError(`there is no WebAssembly.${name}`)
  const instance: unknown = Reflect.construct(made, args)
  if (typeof instance !== "object" || instance === null) throw new TypeError(`WebAssembly.${name} made nothing`)
  return instance
}

// Most errors of a history are looked at by nobody, and their stacks are a third of what they cost.
Error.stackTraceLimit = 0
Object.assign(globalThis, replaced)
Object.assign(timers, replaced)
Object.assign(crypto, { randomBytes, randomFillSync })
Object.assign(Date, { now: () => Math.floor(epoch + now) })
Object.assign(Math, { random: () => random.fraction() })
Object.assign(process.hrtime, { bigint: () => BigInt(Math.round((epoch + now) * 1e6)) })
Object.defineProperty(performance, "now", { value: () => now, configurable: true, writable: true })
// The checksums are compiled on another thread, which answers when it likes.
if (typeof wasm === "object" && wasm !== null) {
  Object.assign(wasm, {
    compile: async (bytes: Uint8Array) => construct("Module", [bytes]),
    instantiate: async (module: object, imports: object) => construct("Instance", [module, imports])
  })
}
syncBuiltinESMExports()

/** Simulated milliseconds since the history began. */
export const millis = (): number => now

/** An empty loop, whose callbacks take as long as the seed says. */
export const restart = (seed: number): void => {
  now = 0
  order = 0
  random = new Random(seed)
  immediates = []
  waiting = []
}

let callbacks = 0

const call = ({ cancelled, run }: Handle): void => {
  if (cancelled) return
  callbacks += 1
  now += random.fraction() * maxCallbackMillis
  run()
  drain()
}

/**
 * Runs what is due, one turn after the other, until `ended` or until nothing is left to do; time passes as callbacks take it, and leaps
 * to the next timer when nothing else is due. To be called from a callback of Node's own loop, outside of microtasks.
 */
export const run = (ended: () => boolean): "ended" | "idle" | "endless" => {
  callbacks = 0
  for (;;) {
    drain()
    if (ended()) return "ended"
    if (callbacks > maxCallbacks) return "endless"
    waiting = waiting.filter(({ cancelled }) => !cancelled)
    const [next] = waiting
    const turn = immediates
    immediates = []
    if (turn.length === 0) {
      if (next === undefined) return "idle"
      now = Math.max(now, next.due)
    }
    const due = waiting.filter((timer) => timer.due <= now)
    waiting = waiting.filter((timer) => timer.due > now)
    for (const handle of due) call(handle)
    for (const handle of turn) call(handle)
  }
}
