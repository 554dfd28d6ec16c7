/** What is known of the queues of NIXL's POSIX backend (1.0 to 1.4), and what the binding does about it. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { InvalidOption } from "../DiskStorageError.js"
import type * as Public from "../Nixl.js"
import * as argument from "./arguments.js"
import { wholeNumber } from "./engineOptions.js"
import type { Api } from "./linux/nixl.js"

export const backendName = "POSIX"

/** The parameter of each queue, in the order in which the backend looks at them. */
const parameterOf = { aio: "use_aio", io_uring: "use_uring", posix_aio: "use_posix_aio" } as const
const queues = ["aio", "io_uring", "posix_aio"] as const

/** The queue that the caller has named. */
export const namedQueue = ({ parameters = {} }: Public.Backend): Public.Queue | undefined =>
  queues.find((queue) => /^(true|1|yes|on)$/i.test(parameters[parameterOf[queue]] ?? ""))

/**
 * The backend names defaults in `io_queue.cpp` and does not apply them: without these a request of more than 64 pieces
 * fails, with io_uring one of more than 16. The pool bounds the pieces in flight, and the backend's memory. The
 * completion ring has twice `kernel_queue_size` places: completions above that are lost to a poll that submits nothing.
 */
const sizes = { ios_pool_size: "1024", kernel_queue_size: "1024" }

export const withQueue = ({ name, parameters }: Public.Backend, queue: Public.Queue): Public.Backend => ({
  name,
  parameters: { ...sizes, ...parameters, [parameterOf[queue]]: "true" }
})

/** How many pieces may be in flight in the queue at once. */
export const maxPieces = ({ parameters = {} }: Public.Backend, queue: Public.Queue) =>
  Effect.gen(function*() {
    const whole = (option: keyof typeof sizes, least: number, most: number) =>
      wholeNumber(option, Number(parameters[option] ?? sizes[option]), 0, least, most)
    const pool = yield* whole("ios_pool_size", 64, 65_536)
    const kernel = yield* whole("kernel_queue_size", 16, 1024)
    return queue === "io_uring" ? Math.min(pool, 2 * kernel) : pool
  })

/** A poll submits and reaps so many pieces at most. */
const perPoll = 64
/** Polls that move all of a request where its I/O is done already: the poll after the one that reaps the last reports it. */
export const pollsAtOnce = (pieces: number): number => Math.ceil(pieces / perPoll) + 1

/**
 * One read or write of Linux moves 0x7ffff000 bytes at most, and NIXL counts the piece as done. 1 GiB is a multiple of
 * every page size.
 */
const longest = 1024 ** 3

/** The parts of a piece that the kernel moves whole. */
export const split = <Piece extends { readonly offset: number; readonly start: number; readonly length: number }>(
  piece: Piece
): ReadonlyArray<Piece> =>
  piece.length <= longest
    ? [piece]
    : Array.from({ length: Math.ceil(piece.length / longest) }, (_, index) => ({
      ...piece,
      offset: piece.offset + index * longest,
      start: piece.start + index * longest,
      length: Math.min(longest, piece.length - index * longest)
    }))

/** AIO reports no error at all, io_uring no short transfer, POSIX AIO reports both. */
const confirmations = { aio: "read-back", io_uring: "ends", posix_aio: "none" } as const

export const confirmation = (
  option: Public.Confirmation | undefined,
  queue: Public.Queue | undefined
): Effect.Effect<Public.Confirmation, InvalidOption> => {
  const chosen: unknown = option ?? (queue === undefined ? "none" : confirmations[queue])
  return chosen === "none" || chosen === "ends" || chosen === "read-back"
    ? Effect.succeed(chosen)
    : Effect.fail(argument.invalid("confirm", chosen, "none, ends or read-back"))
}

const pause = Duration.millis(16)

/**
 * Waits until the kernel has ended what a queue has handed it, `millis` at most. NIXL itself does not report that after
 * an error. False: it has not, or nothing shows it. `files` are the descriptors of the transfers that failed.
 */
export const drained = (
  api: Pick<Api, "ringIdle" | "aioIdle">,
  queue: Public.Queue | undefined,
  rings: ReadonlySet<number>,
  files: ReadonlySet<number>,
  millis: number | undefined
): Effect.Effect<boolean> => {
  const all = (answers: ReadonlyArray<boolean | undefined>) =>
    answers.includes(undefined) ? undefined : !answers.includes(false)
  const look = queue === "io_uring"
    ? Effect.sync(() => rings.size === 0 ? undefined : all([...rings].map(api.ringIdle)))
    : queue === "posix_aio"
    ? Effect.map(Effect.forEach(files, api.aioIdle), all)
    // The end of an AIO context waits for its I/O, in the kernel.
    : Effect.succeed(queue === "aio")
  const schedule = Schedule.spaced(pause)
  let ended: boolean | undefined
  return Effect.map(
    Effect.repeat(Effect.map(look, (answer) => void (ended = answer)), {
      schedule: millis === undefined ? schedule : Schedule.intersect(schedule, Schedule.recurUpTo(millis)),
      until: () => ended !== false
    }),
    () => ended === true
  )
}
