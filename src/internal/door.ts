/** The way in and out of a storage. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { StorageClosed } from "../DiskStorageError.js"

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** The way in and out of a storage: counts what is inside, so that release can close the door and wait until all have left. */
export const makeDoor = (path: string) => {
  let closed = false
  let inside = 0
  let drained: Deferred.Deferred<void> | undefined

  const leave = Effect.suspend(() => {
    inside -= 1
    return inside === 0 && drained !== undefined ? Deferred.succeed(drained, undefined) : Effect.void
  })
  return {
    /** Runs `use` inside. It starts uninterruptible; `restore` is for what may be interrupted. */
    enter: <A, E, R>(use: (restore: Restore) => Effect.Effect<A, E, R>): Effect.Effect<A, E | StorageClosed, R> =>
      Effect.uninterruptibleMask((restore): Effect.Effect<A, E | StorageClosed, R> => {
        if (closed) return Effect.fail(new StorageClosed({ path }))
        inside += 1
        return Effect.ensuring(Effect.suspend(() => use(restore)), leave)
      }),
    /** Lets nobody in any more. */
    shut: Effect.sync(() => {
      closed = true
    }),
    /** Shuts it, and waits until all have left. */
    close: Effect.flatMap(Deferred.make<void>(), (empty) =>
      Effect.suspend(() => {
        closed = true
        drained ??= empty
        return inside === 0 ? Effect.void : Deferred.await(drained)
      }))
  }
}

export type Door = ReturnType<typeof makeDoor>
