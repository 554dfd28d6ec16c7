/** The way in and out of what is released once and used until then. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { StorageClosed } from "../DiskStorageError.js"

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** Counts what is inside, so that release can close the door and wait until all have left; who comes later is `refused`. */
export const makeDoorOf = <Refused>(refused: () => Refused) => {
  let closed = false
  let inside = 0
  let drained: Deferred.Deferred<void> | undefined

  const leave = Effect.suspend(() => {
    inside -= 1
    return inside === 0 && drained !== undefined ? Deferred.succeed(drained, undefined) : Effect.void
  })
  return {
    /** Runs `use` inside. It starts uninterruptible; `restore` is for what may be interrupted. */
    enter: <A, E, R>(use: (restore: Restore) => Effect.Effect<A, E, R>): Effect.Effect<A, E | Refused, R> =>
      Effect.uninterruptibleMask((restore): Effect.Effect<A, E | Refused, R> => {
        if (closed) return Effect.fail(refused())
        inside += 1
        return Effect.ensuring(Effect.suspend(() => use(restore)), leave)
      }),
    isShut: () => closed,
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

/** The door of a storage. */
export const makeDoor = (path: string) => makeDoorOf(() => new StorageClosed({ path }))

export type Door = ReturnType<typeof makeDoor>
