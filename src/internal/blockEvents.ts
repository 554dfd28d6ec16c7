/**
 * The last so many events, and readers who follow at their own pace: one who is further behind than that is told how many are gone.
 * Costs the writer the same whoever reads.
 */
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { BlockEvent } from "../BlockStore.js"

/** The most that a reader is given at once. */
const maxChunk = 1024

export class BlockEvents {
  private readonly ring: Array<BlockEvent> = []
  /** Events so far. */
  private count = 0
  private readers = 0
  private closed = false
  private readonly waiting = new Set<() => void>()
  /** Readers are about to be woken. */
  private waking = false
  private readonly capacity: number

  constructor(capacity: number) {
    this.capacity = capacity
  }

  /** Whether anybody listens: without, no event need be made. */
  get wanted(): boolean {
    return this.readers > 0
  }

  push(event: BlockEvent): void {
    if (this.readers === 0) return
    this.ring[this.count % this.capacity] = event
    this.count += 1
    if (this.waking || this.waiting.size === 0) return
    this.waking = true
    // Readers run the caller's code: they wait until the store has done what the event reports.
    queueMicrotask(() => {
      this.waking = false
      this.wake()
    })
  }

  close(): void {
    this.closed = true
    this.wake()
  }

  private wake(): void {
    const waiting = [...this.waiting]
    this.waiting.clear()
    for (const resume of waiting) resume()
  }

  private readonly more = (seen: number): Effect.Effect<void> =>
    Effect.async<void>((resume) => {
      if (this.count > seen || this.closed) return resume(Effect.void)
      const wake = () => resume(Effect.void)
      this.waiting.add(wake)
      return Effect.sync(() => this.waiting.delete(wake))
    })

  readonly stream: Stream.Stream<BlockEvent> = Stream.unwrapScoped(
    Effect.map(
      Effect.acquireRelease(
        Effect.sync(() => {
          this.readers += 1
          return { seen: this.count }
        }),
        () =>
          Effect.sync(() => {
            this.readers -= 1
            // What nobody will read need not stay.
            if (this.readers === 0) this.ring.length = 0
          })
      ),
      (reader) =>
        Stream.repeatEffectChunkOption(Effect.flatMap(
          Effect.suspend(() => this.more(reader.seen)),
          () => this.read(reader)
        ))
    )
  )

  private read(reader: { seen: number }): Effect.Effect<Chunk.Chunk<BlockEvent>, Option.Option<never>> {
    if (this.count === reader.seen) return Effect.fail(Option.none())
    const events: Array<BlockEvent> = []
    const missed = this.count - this.capacity - reader.seen
    if (missed > 0) {
      events.push({ _tag: "Missed", events: missed })
      reader.seen += missed
    }
    const to = Math.min(this.count, reader.seen + maxChunk)
    for (; reader.seen < to; reader.seen++) {
      const event = this.ring[reader.seen % this.capacity]
      if (event !== undefined) events.push(event)
    }
    return Effect.succeed(Chunk.unsafeFromArray(events))
  }
}
