/** One of several programs over an engine, by name; each prints one line when it is at its end, or at its point. */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import { closeSync, openSync } from "node:fs"
import { join } from "node:path"
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"
import * as AlignedBuffer from "../../../src/AlignedBuffer.js"
import { IoEngine } from "../../../src/IoEngine.js"
import * as IoUring from "../../../src/IoUring.js"
import * as LinuxAio from "../../../src/LinuxAio.js"
import * as NodeIo from "../../../src/NodeIo.js"

const mebibyte = 1024 * 1024
const words: ReadonlyArray<string> = isMainThread ? process.argv.slice(2) : workerData
const [name = "", engineName = "", directory = "", number = "0"] = words

const layer = engineName === "io_uring" ? IoUring.layer : engineName === "aio" ? LinuxAio.layer : NodeIo.layer

const opened = (path: string) =>
  Effect.gen(function*() {
    const engine = yield* IoEngine
    const fd = yield* Effect.acquireRelease(
      Effect.sync(() => openSync(path, "w+")),
      (fd) => Effect.sync(() => closeSync(fd))
    )
    return yield* engine.file(fd, { path, direct: true, alignment: 4096 })
  })

const say = (line: string) => Effect.sync(() => console.log(line))

/** Builds the engine and leaves it open. */
const left = Effect.flatMap(
  Effect.scope,
  (scope) => Effect.map(Layer.buildWithScope(layer(), scope), (context) => Context.get(context, IoEngine))
)

const roundTrips = (seed: number) =>
  Effect.gen(function*() {
    const engine = yield* IoEngine
    const file = yield* opened(join(directory, `file-${seed}`))
    for (let round = 0; round < 4; round++) {
      const from = yield* AlignedBuffer.make(3 * mebibyte)
      const into = yield* AlignedBuffer.make(3 * mebibyte)
      from.bytes.fill(1 + (seed * 31 + round) % 255)
      yield* engine.write(file, from, round % 3 * mebibyte)
      yield* engine.read(file, into, round % 3 * mebibyte)
      if (Buffer.compare(from.bytes, into.bytes) !== 0) return yield* Effect.dieMessage(`round ${round}: other bytes`)
    }
  })

const storm = Effect.gen(function*() {
  const engine = yield* IoEngine
  const file = yield* opened(join(directory, `file-${number}`))
  const from = yield* AlignedBuffer.make(2 * mebibyte)
  const write = (index: number): Effect.Effect<void> =>
    Effect.zipRight(Effect.orDie(engine.write(file, from, index * 2 * mebibyte)), Effect.suspend(() => write(index)))
  yield* Effect.forEach([0, 1, 2, 3, 4, 5, 6, 7], (index) => Effect.fork(write(index)))
  yield* Effect.sleep("100 millis")
  yield* say("busy")
  parentPort?.postMessage("busy", [])
  if (name === "exiting") process.exit(3)
  yield* Effect.never
})

const collected = Effect.gen(function*() {
  const engine = yield* IoEngine
  const { gc } = globalThis
  if (gc === undefined) return yield* Effect.dieMessage("run it with --expose-gc")
  const length = 4 * mebibyte
  const file = yield* opened(join(directory, "file"))
  const from = yield* AlignedBuffer.make(length)
  from.bytes.fill(7)
  yield* engine.write(file, from, 0)
  const zeroes = new Uint8Array(length)
  let ended = 0
  for (let round = 0; round < 12; round++) {
    // Nobody but the engine holds this buffer.
    yield* Effect.map(
      AlignedBuffer.make(length),
      (buffer) =>
        engine.unsafeSubmit({ kind: "read", file, buffer, offset: 0 }, ({ error, operation }) => {
          if (error !== undefined) throw error
          if (operation.kind === "sync" || Buffer.compare(operation.buffer.bytes, from.bytes) !== 0) {
            throw new Error("other bytes")
          }
          ended += 1
        })
    )
    gc()
    // What is allocated now must not be where the kernel is still reading to.
    const other = yield* AlignedBuffer.make(length)
    yield* Effect.sleep("2 millis")
    gc()
    if (Buffer.compare(other.bytes, zeroes) !== 0) return yield* Effect.dieMessage("the kernel wrote into other memory")
  }
  yield* Effect.repeat(Effect.sleep("1 millis"), { until: () => ended === 12 })
})

const programs: Record<string, Effect.Effect<void, unknown>> = {
  idle: Effect.scoped(Effect.gen(function*() {
    yield* left
    yield* say("idle")
    yield* Effect.flatMap(Deferred.make<void>(), Deferred.await)
  })),
  busy: Effect.scoped(Effect.gen(function*() {
    const engine = yield* left
    const file = yield* Effect.provideService(opened(join(directory, "file")), IoEngine, engine)
    const from = yield* AlignedBuffer.make(16 * mebibyte)
    from.bytes.fill(9)
    engine.unsafeSubmit({ kind: "write", file, buffer: from, offset: 0 }, ({ bytes, error }) => {
      engine.unsafeSubmit({ kind: "sync", file }, (synced) => {
        console.log(`wrote ${bytes} ${error === undefined && synced.error === undefined}`)
      })
    })
    yield* Effect.flatMap(Deferred.make<void>(), Deferred.await)
  })),
  trips: Effect.provide(Effect.scoped(roundTrips(Number(number))), layer()).pipe(Effect.zipRight(say("right"))),
  storm: Effect.provide(Effect.scoped(storm), layer()),
  exiting: Effect.provide(Effect.scoped(storm), layer()),
  /** An engine that has been used and is idle, in a thread that says so. */
  resting: Effect.provide(
    Effect.scoped(Effect.gen(function*() {
      yield* roundTrips(Number(number))
      parentPort?.postMessage("idle", [])
      yield* Effect.never
    })),
    layer()
  ),
  collected: Effect.provide(Effect.scoped(collected), layer()).pipe(Effect.zipRight(say("right"))),
  pooled: Effect.provide(
    Effect.scoped(Effect.gen(function*() {
      const engine = yield* IoEngine
      const file = yield* opened(join(directory, "file"))
      const pool = yield* AlignedBuffer.pool({ buffers: 8, byteLength: mebibyte })
      yield* Effect.forEach(
        Array.from({ length: 64 }, (_, index) => index),
        (index) =>
          Effect.scoped(Effect.gen(function*() {
            const buffer = yield* pool.lease
            buffer.bytes.fill(index + 1)
            yield* engine.write(file, buffer, index * mebibyte)
            buffer.bytes.fill(0)
            yield* engine.read(file, buffer, index * mebibyte)
            if (Buffer.compare(buffer.bytes, Buffer.alloc(mebibyte, index + 1)) !== 0) {
              return yield* Effect.dieMessage("other bytes")
            }
          })),
        { concurrency: "unbounded", discard: true }
      )
    })),
    layer()
  ).pipe(Effect.zipRight(say("right"))),
  /** Buffers until there is no address space left. */
  greedy: Effect.gen(function*() {
    const kept: Array<AlignedBuffer.AlignedBuffer> = []
    for (let count = 0; count < 100_000; count++) {
      const made = yield* Effect.either(AlignedBuffer.make(64 * mebibyte))
      if (made._tag === "Left") return yield* say(`${made.left._tag} ${made.left.message}`)
      kept.push(made.right)
    }
    yield* say("there was no end")
  }),
  /** Engines in threads of their own; the last ones are ended in the middle of their work. */
  threads: Effect.gen(function*() {
    // A thread does not take over the loader that this file needs.
    const code = `import("tsx/esm/api").then(({ register }) => (register(), import(${
      JSON.stringify(import.meta.url)
    })))`
    const worker = (task: string, index: number) =>
      new Worker(code, { eval: true, workerData: [task, engineName, directory, String(index)] })
    yield* Effect.forEach([1, 2], (index) =>
      Effect.async<void>((resume) => {
        worker("trips", index).on("error", (error) => resume(Effect.die(error))).on("exit", (code) =>
          resume(code === 0 ? Effect.void : Effect.dieMessage(`a thread ended with ${code}`)))
      }), { concurrency: "unbounded", discard: true })
    yield* Effect.provide(Effect.scoped(roundTrips(5)), layer())
    yield* Effect.forEach([6], (index) =>
      Effect.async<void>((resume) => {
        const busy = worker("storm", index)
        busy.on("message", () => void busy.terminate())
        busy.on("exit", () => resume(Effect.void))
      }), { concurrency: "unbounded", discard: true })
    yield* Effect.forEach([9], (index) =>
      Effect.async<void>((resume) => {
        const idle = worker("resting", index)
        idle.on("message", () => void idle.terminate())
        idle.on("exit", () => resume(Effect.void))
      }), { concurrency: "unbounded", discard: true })
    yield* Effect.provide(Effect.scoped(roundTrips(8)), layer())
    yield* say("right")
  })
}

Effect.runCallback(programs[name] ?? Effect.dieMessage(`there is no ${name}`), {
  onExit: (exit) => {
    if (Exit.isSuccess(exit)) return
    console.error(String(exit))
    process.exitCode = 1
  }
})
