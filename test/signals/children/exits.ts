/** Ends without finalizers while it holds a storage: `exits.ts <edge> <way>`. */
import * as Effect from "effect/Effect"
import { existsSync } from "node:fs"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as DiskStorageConfig from "../../../src/DiskStorageConfig.js"
import * as Linux from "../../../src/Linux.js"
import { choose, edges } from "./edges.js"
import { report } from "./report.js"

const fail = () => {
  throw new Error("not foreseen")
}

const ways: { readonly [way: string]: Effect.Effect<unknown> } = {
  throw: Effect.zipRight(Effect.sync(() => setTimeout(fail)), Effect.never),
  reject: Effect.zipRight(Effect.sync(() => void Promise.resolve().then(fail)), Effect.never),
  exit: Effect.sync(() => process.exit(3)),
  /** While the disk is at work for the storage. */
  exitLater: Effect.zipRight(Effect.sync(() => setTimeout(() => process.exit(3), 5)), Effect.never)
}

const way = choose(ways, 1)

const program = Effect.gen(function*() {
  const storage = yield* Effect.flatMap(DiskStorageConfig.options(), DiskStorage.make)
  yield* Effect.addFinalizer(() => report("finalized"))
  yield* report(`held, file ${existsSync(storage.path) ? "there" : "missing"}`)
  const bytes = new Uint8Array(storage.size)
  yield* Effect.race(Effect.forever(storage.writeBytes(0, bytes)), way)
})

choose(edges, 0)(program.pipe(Effect.scoped, Effect.provide(Linux.layer)))
