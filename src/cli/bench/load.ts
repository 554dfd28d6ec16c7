/** The load that every contestant carries: where the next operation goes, until the round is over. */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { PCGRandom } from "effect/Utils"
import type { AlignedBuffer } from "../../AlignedBuffer.js"
import type { Target } from "./target.js"

export type Direction = "read" | "write"

export interface Shape {
  readonly direction: Direction
  readonly blockSize: number
  readonly depth: number
}

/** As many offsets as a GiB has blocks of 4 KiB: caches below see as much of the file as they do from fio. */
const offsetCount = 2 ** 18

/** Random multiples of `blockSize` within `size`, the same ones in every run. */
const randomOffsets = (size: number, blockSize: number): Float64Array => {
  const random = new PCGRandom(blockSize)
  const blocks = Math.floor(size / blockSize)
  return Float64Array.from({ length: offsetCount }, () => random.integer(blocks) * blockSize)
}

/** Below this the clock is read for one operation in 16 only: reading it is a percent of a fast operation. */
const smallBlock = 16 * 1024

/**
 * Shared by all contestants on one load, so that the compiler sees one shape, and used up by one at a time. Nothing here
 * allocates for an operation.
 */
export class Load {
  /** Operations completed in this round. */
  operations = 0
  failure: unknown = undefined
  private cursor = 0
  private started = 0
  private deadline = 0
  private over = true
  readonly target: Target
  readonly direction: Direction
  readonly blockSize: number
  readonly depth: number
  /** `depth` of them, one for each operation in flight. */
  readonly buffers: ReadonlyArray<AlignedBuffer>
  private readonly offsets: Float64Array
  private readonly clockMask: number

  constructor(target: Target, { blockSize, depth, direction }: Shape, buffers: ReadonlyArray<AlignedBuffer>) {
    this.target = target
    this.direction = direction
    this.blockSize = blockSize
    this.depth = depth
    this.buffers = buffers
    this.offsets = randomOffsets(target.size, blockSize)
    this.clockMask = blockSize <= smallBlock ? 15 : 0
  }

  begin(millis: number): void {
    this.operations = 0
    this.failure = undefined
    this.started = 0
    this.over = false
    this.deadline = performance.now() + millis
  }

  /** The offset of the next operation, or −1 when the round is over. */
  next(): number {
    const { started } = this
    this.started = started + 1
    if ((started & this.clockMask) === 0 && performance.now() >= this.deadline) this.over = true
    if (this.over) return -1
    const { cursor } = this
    this.cursor = (cursor + 1) % offsetCount
    return this.offsets[cursor] ?? 0
  }

  /** Gives each of a batch its offset; false when the round is over. */
  nextBatch(operations: ReadonlyArray<{ offset: number }>): boolean {
    if (this.over || performance.now() >= this.deadline) return false
    for (const operation of operations) {
      operation.offset = this.offsets[this.cursor] ?? 0
      this.cursor = (this.cursor + 1) % offsetCount
    }
    return true
  }

  /** Counts an operation that moved `bytes`; anything but a whole block ends the round. */
  completed(bytes: number): void {
    if (bytes === this.blockSize) this.operations += 1
    else this.fail(new Error(`an operation of ${this.blockSize} bytes moved ${bytes}`))
  }

  fail(error: unknown): void {
    this.failure ??= error
    this.over = true
  }

  stop(): void {
    this.over = true
  }
}

/** Runs a round to its end, and interrupted to an early one: no operation is under way when this returns. */
export const stoppable = <E, R>(load: Load, round: Effect.Effect<void, E, R>): Effect.Effect<void, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.fork(round), (fiber) =>
      Effect.onInterrupt(restore(Fiber.join(fiber)), () => {
        load.stop()
        return Fiber.await(fiber)
      }))
  )

/**
 * Keeps one operation of each slot in flight. `slot` is called once for each; what it returns starts an operation at an
 * offset, which calls `completed` when it has ended.
 */
export const callbacks = (
  load: Load,
  slot: (index: number, completed: (error: unknown, bytes: number) => void) => (offset: number) => void
): Effect.Effect<void> =>
  Effect.async<void>((resume) => {
    let running = load.depth
    for (let index = 0; index < load.depth; index++) {
      let starting = false
      let ended = false
      // A loop where an operation ends before the call that starts it returns, so that the stack does not grow.
      const continued = () => {
        ended = true
        if (starting) return
        starting = true
        while (ended) {
          ended = false
          const offset = load.next()
          if (offset >= 0) start(offset)
          else if (--running === 0) resume(Effect.void)
        }
        starting = false
      }
      const start = slot(index, (error, bytes) => {
        if (error === null || error === undefined) load.completed(bytes)
        else load.fail(error)
        continued()
      })
      continued()
    }
  })
