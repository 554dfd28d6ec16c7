/**
 * A process with one storage on a disk that its parent makes hang: it writes, releases and ends, a step for each line that it reads, and
 * tells of each in a line of JSON. Its event loop is never to wait for the disk.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Logger from "effect/Logger"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { readdirSync, readlinkSync } from "node:fs"
import { createInterface } from "node:readline"
import * as AlignedBuffer from "../../../src/AlignedBuffer.js"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as Linux from "../../../src/Linux.js"

const Task = Schema.parseJson(Schema.Struct({
  directory: Schema.String,
  engine: Schema.Literal("io_uring", "aio", "node"),
  fails: Schema.Literal("stallTimeout", "releaseTimeout")
}))

const { directory, engine, fails } = Schema.decodeUnknownSync(Task)(process.argv[2])
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const nextLine = Effect.promise(() => lines.next())
const say = (said: unknown) => Effect.sync(() => process.stdout.write(`${JSON.stringify(said)}\n`))
const tag = Either.match({ onLeft: ({ _tag }: { readonly _tag: string }) => _tag, onRight: () => "done" })

const program = Effect.gen(function*() {
  const scope = yield* Scope.make()
  const storage = yield* Scope.extend(
    DiskStorage.make({
      size: 8 * 1024 * 1024,
      directory,
      failureLimit: 2,
      retryAfter: "1 minute",
      releaseTimeout: 1500
    }),
    scope
  )
  const buffers = yield* Effect.replicateEffect(AlignedBuffer.make(4096), 3)
  const move = (kind: "read" | "write", number: number) =>
    Effect.flatMap(
      Effect.fromNullable(buffers[number]),
      (buffer) => Effect.map(Effect.either(storage[kind](number * 4096, buffer)), tag)
    )
  const write = (number: number) => move("write", number)
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  yield* say({ fd: yield* storage.withFd(Effect.succeed), wrote: yield* write(0) })
  yield* nextLine
  if (fails === "stallTimeout") {
    yield* say({ wrote: [yield* write(0), yield* move("read", 0), yield* write(1), yield* write(2)] })
  } else {
    yield* Effect.forkDaemon(write(0))
    yield* say({ wrote: [] })
  }
  yield* nextLine
  const closed = yield* Effect.either(storage.close)
  yield* say({ failures: Either.isLeft(closed) ? closed.left.failures : [], buffer: yield* write(0) })
}).pipe(
  Effect.scoped,
  Effect.provide(Linux.layerWith({ engine, ...(fails === "stallTimeout" ? { stallTimeout: 1000 } : {}) }))
)

const openBelow = () =>
  readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`)
      return target.startsWith(`${directory}/`) ? [target] : []
    } catch {
      return []
    }
  })

/** When the engine has ended, too, and the disk has answered: what it kept open for that goes by itself. */
const afterwards = Effect.gen(function*() {
  yield* say({ ended: true })
  yield* nextLine
  for (let round = 0; round < 4000 && openBelow().length > 0; round++) yield* Effect.sleep("25 millis")
  yield* say({ open: openBelow() })
  yield* nextLine
  // Its standard input would keep it.
  process.stdin.destroy()
})

await Effect.runPromise(Effect.provide(program, Logger.remove(Logger.defaultLogger)))
await Effect.runPromise(afterwards)
