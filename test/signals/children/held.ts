/**
 * Holds storages until it is signalled: `held.ts <arrangement> <release>`. Each has a registration, the first thing to be released,
 * which takes as long as the second argument says.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as DiskStorageConfig from "../../../src/DiskStorageConfig.js"
import * as Linux from "../../../src/Linux.js"
import * as ProcessRuntime from "../../../src/ProcessRuntime.js"
import { choose } from "./edges.js"
import { report, reportExit } from "./report.js"

class Handle extends Context.Tag("held/Handle")<Handle, "handle">() {}
class First extends Context.Tag("held/First")<First, DiskStorage.DiskStorage>() {}
class Second extends Context.Tag("held/Second")<Second, DiskStorage.DiskStorage>() {}

const make = (extra: Partial<DiskStorage.DiskStorageOptions> = {}) =>
  Effect.flatMap(DiskStorageConfig.options(), (options) => DiskStorage.make({ ...options, ...extra }))

const one = make()

type Arrangement = Effect.Effect<
  ReadonlyArray<DiskStorage.DiskStorage>,
  Effect.Effect.Error<typeof one>,
  Effect.Effect.Context<typeof one>
>

const arrangements: { readonly [name: string]: Arrangement } = {
  one: Effect.map(one, (storage) => [storage]),
  /** The same effect twice makes two files. */
  twice: Effect.all([one, one], { concurrency: 2 }),
  layers: Effect.gen(function*() {
    const layer = Layer.merge(Layer.scoped(First, one), Layer.scoped(Second, one))
    const context = yield* Layer.build(layer)
    return [Context.get(context, First), Context.get(context, Second)]
  }),
  earlyUnlink: Effect.map(make({ earlyUnlink: true }), (storage) => [storage]),
  mixed: Effect.all([one, make({ earlyUnlink: true }), Effect.tap(one, (storage) => Effect.orDie(storage.unlink))])
}

const releases: { readonly [name: string]: Effect.Effect<unknown> } = {
  quick: Effect.void,
  slow: Effect.sleep("3 seconds"),
  endless: Effect.never,
  /** Nothing else of the program runs meanwhile, signal handlers included. */
  blocking: Effect.sync(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2500))
}

const release = choose(releases, 1)

reportExit()

const acquireHandle = Effect.acquireRelease(
  Effect.succeed("handle" as const),
  () => Effect.zipRight(report("releasing"), Effect.zipRight(release, report("released")))
)

choose(arrangements, 0).pipe(
  Effect.tap(Effect.forEach((storage) => storage.register(Handle, acquireHandle))),
  Effect.tap((storages) => report(`held ${storages.length}`)),
  Effect.zipRight(Effect.never),
  Effect.scoped,
  Effect.provide(Linux.layer),
  ProcessRuntime.runMain
)
