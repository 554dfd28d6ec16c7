/** How long a release waits for the kernel: for each step so long at most. What has no end by then goes on by itself. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import type { ReleaseFailed } from "../DiskStorageError.js"
import type { FileOptions, IoEngine, IoFile } from "../IoEngine.js"
import { OpenFile } from "./ioQueue.js"

type Late = Extract<ReleaseFailed["failures"][number], { readonly timeoutMillis: number }>

export interface Patience {
  /** Runs a step that may wait for the kernel, and that must not be interrupted. */
  readonly wait: (step: Late["step"], fd: number, effect: Effect.Effect<unknown>) => Effect.Effect<void>
  /** Lends a descriptor to the engine until the Scope ends, whose end waits for what is in flight. */
  readonly lend: (
    engine: IoEngine,
    fd: number,
    options: FileOptions
  ) => Effect.Effect<IoFile, never, Scope.Scope>
  /** The steps that were given up and have not ended yet: the kernel may still come to their descriptors. */
  readonly unended: Effect.Effect<ReadonlyArray<Late>>
  /** Runs an effect when all of those have ended, which is not waited for. */
  readonly afterwards: (effect: Effect.Effect<void>) => Effect.Effect<void>
}

export const make = (timeoutMillis: number): Patience => {
  const givenUp: Array<{ readonly late: Late; readonly fiber: Fiber.RuntimeFiber<unknown> }> = []
  const lent = new Set<OpenFile>()

  // In fibres of their own: a finalizer can neither be interrupted nor, where its fibre is interrupted already, wait interruptibly.
  const wait: Patience["wait"] = (step, fd, effect) =>
    timeoutMillis === Infinity ? effect : Effect.uninterruptible(Effect.gen(function*() {
      const over = yield* Deferred.make<boolean>()
      const fiber = yield* Effect.forkDaemon(Effect.ensuring(effect, Deferred.succeed(over, true)))
      const timer = yield* Effect.sleep(timeoutMillis).pipe(
        Effect.zipRight(Deferred.succeed(over, false)),
        Effect.interruptible,
        Effect.forkDaemon
      )
      if (yield* Deferred.await(over)) {
        yield* Fiber.interruptFork(timer)
        yield* Fiber.join(fiber)
        return
      }
      givenUp.push({ late: { step, fd, timeoutMillis }, fiber })
      // Their engine must not wait for them either, when it ends.
      for (const file of lent) file.abandoned = true
    }))

  const unended = () => givenUp.filter(({ fiber }) => fiber.unsafePoll() === null)

  return {
    wait,
    lend: (engine, fd, options) =>
      Effect.uninterruptible(Effect.gen(function*() {
        const scope = yield* Scope.make()
        const file = yield* Scope.extend(engine.file(fd, options), scope)
        if (file instanceof OpenFile) lent.add(file)
        yield* Effect.addFinalizer((exit) => wait("drain", fd, Scope.close(scope, exit)))
        return file
      })),
    unended: Effect.sync(() => unended().map(({ late }) => late)),
    afterwards: (effect) =>
      Effect.suspend(() =>
        Effect.asVoid(Effect.forkDaemon(
          Effect.zipRight(Effect.forEach(unended(), ({ fiber }) => Fiber.await(fiber), { discard: true }), effect)
        ))
      )
  }
}
