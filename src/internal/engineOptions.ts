/** The options that the engines share: their defaults, their check, and the watchdog. */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { InvalidOption } from "../DiskStorageError.js"
import { duration, invalid, objectRefused, unless } from "./arguments.js"
import type { OpenDevice } from "./ioQueue.js"
import { IoQueue } from "./ioQueue.js"

/** Measured on ext4, reads of 16 MiB at depth 128: one submission took up to 84 ms with 16 MiB in it, up to 7 ms with 4 MiB. */
const defaultMaxBytesInFlight = 64 * 1024 * 1024
const defaultMaxBytesPerSubmission = 4 * 1024 * 1024

export interface SharedOptions {
  readonly maxBytesInFlight?: number | undefined
  readonly maxBytesPerSubmission?: number | undefined
  readonly stallTimeout?: Duration.DurationInput | undefined
}

export const wholeNumber = (
  option: string,
  value: number | undefined,
  fallback: number,
  min: number,
  max: number
): Effect.Effect<number, InvalidOption> =>
  value === undefined
    ? Effect.succeed(fallback)
    : Number.isSafeInteger(value) && value >= min && value <= max
    ? Effect.succeed(value)
    : Effect.fail(invalid(option, value, `a whole number from ${min} to ${max}`))

/** Before any of them is looked at. */
export const checked = (options: object): Effect.Effect<void, InvalidOption> =>
  unless(objectRefused("options", options))

/** The watchdog looks so many times within one `stallTimeout`. */
const looks = 4

/**
 * A queue that is closed with the scope, after its files. With a `stallTimeout` a fibre looks over what is in flight, as long as
 * something is.
 */
export const makeQueue = <E>(
  open: Effect.Effect<OpenDevice, E>,
  options: SharedOptions
): Effect.Effect<IoQueue, E | InvalidOption, Scope.Scope> =>
  Effect.gen(function*() {
    const maxBytesInFlight = yield* wholeNumber(
      "maxBytesInFlight",
      options.maxBytesInFlight,
      defaultMaxBytesInFlight,
      1,
      Number.MAX_SAFE_INTEGER
    )
    const maxBytesPerSubmission = yield* wholeNumber(
      "maxBytesPerSubmission",
      options.maxBytesPerSubmission,
      defaultMaxBytesPerSubmission,
      1,
      Number.MAX_SAFE_INTEGER
    )
    const stallMillis = options.stallTimeout === undefined
      ? undefined
      : yield* duration("stallTimeout", options.stallTimeout, options.stallTimeout)
    // The watchdog outlives the queue's end, which may wait for what the watchdog gives up.
    return yield* Effect.uninterruptible(Effect.gen(function*() {
      const queue = new IoQueue(yield* open, { maxBytesInFlight, maxBytesPerSubmission, stallMillis })
      if (stallMillis !== undefined && Number.isFinite(stallMillis)) {
        const busy = yield* Effect.makeLatch(false)
        queue.onBusy = (isBusy) => isBusy ? busy.unsafeOpen() : busy.unsafeClose()
        const look = Effect.sync(() => queue.watch(looks))
        yield* Effect.forkScoped(Effect.interruptible(
          Effect.forever(Effect.zipRight(busy.await, Effect.zipRight(Effect.sleep(stallMillis / looks), look)))
        ))
      }
      yield* Effect.addFinalizer(() => queue.close)
      return queue
    }))
  })
