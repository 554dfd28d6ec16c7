/**
 * The blocks of batches, begun one after the other as room for more in flight comes free. Plain code, called back by the engine: a
 * block costs no fibre. Batches that wait take turns, a block each.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import * as MutableList from "effect/MutableList"
import { setImmediate } from "node:timers"

/** Blocks that may be begun in a row before the event loop has a turn: most of those end at once. */
const maxBegunPerTurn = 1024

/**
 * Begins a block: from then on it is in flight until `landed`, and its outcome is open until `ended`. Each is to be called once, `landed`
 * first, perhaps before this returns.
 */
export type Begin = (index: number, batch: Batch) => void

const nothing = () => {}

export class Batch {
  stopped = false
  /** Whether the gate has it in its line. */
  inLine = false
  private readonly gate: Gate
  private readonly count: number
  private begin: Begin
  private next = 0
  private readonly anew: Array<number> = []
  private open = 0
  private exit: Exit.Exit<void> = Exit.void
  private readonly over = Deferred.unsafeMake<void>(FiberId.none)

  constructor(gate: Gate, count: number, begin: Begin) {
    this.gate = gate
    this.count = count
    this.begin = begin
  }

  /** Ends when every block has ended that was begun, and none is to come. */
  get await(): Effect.Effect<void> {
    return Deferred.await(this.over)
  }

  get hasMore(): boolean {
    return this.next < this.count || this.anew.length > 0
  }

  beginNext(): void {
    this.open += 1
    try {
      this.begin(this.anew.pop() ?? this.next++, this)
    } catch (defect) {
      this.die(defect)
      this.landed()
      this.ended()
    }
  }

  /** Its bytes are where they belong, or will never be: another block may be in flight. */
  landed(): void {
    this.gate.give()
  }

  /** In place of both: it is begun anew in its turn, since its slot is worth nothing any more. */
  again(index: number): void {
    this.open -= 1
    if (!this.stopped) {
      this.anew.push(index)
      this.gate.enter(this)
    }
    this.gate.give()
    this.settle()
  }

  ended(): void {
    this.open -= 1
    this.settle()
  }

  /** Begins no more blocks. */
  stop(): void {
    if (this.hasMore) this.gate.left()
    this.stopped = true
    this.next = this.count
    this.anew.length = 0
    // It may stand in line for long, and must not keep its buffers meanwhile.
    this.begin = nothing
    this.settle()
  }

  /** Begins no more, and ends with a defect. */
  die(defect: unknown): void {
    this.exit = Exit.die(defect)
    this.stop()
  }

  private settle(): void {
    if (this.open === 0 && !this.hasMore) Deferred.unsafeDone(this.over, this.exit)
  }
}

/** Bounds the blocks in flight of all batches. */
export class Gate {
  /** May be lowered; those in flight stay. */
  permits: number
  taken = 0
  private waiting = MutableList.empty<Batch>()
  /** Of those that wait, how many were stopped; perhaps some more. */
  private stopped = 0
  private admitting = false
  private later = false

  constructor(permits: number) {
    this.permits = permits
  }

  /** Begins `count` blocks; interrupted it begins no more, and ends when those that it has begun have ended. */
  run(count: number, begin: Begin): Effect.Effect<void> {
    return Effect.uninterruptibleMask((restore) =>
      Effect.suspend(() => {
        if (count === 0) return Effect.void
        const batch = new Batch(this, count, begin)
        this.enter(batch)
        this.admit()
        return Effect.onInterrupt(restore(batch.await), () => {
          batch.stop()
          return batch.await
        })
      })
    )
  }

  enter(batch: Batch): void {
    if (batch.inLine) return
    batch.inLine = true
    MutableList.append(this.waiting, batch)
  }

  give(): void {
    this.taken -= 1
    this.admit()
  }

  /** A disk that hangs must not make those who came and went pile up here. */
  left(): void {
    this.stopped += 1
    if (this.stopped < 1024 || this.stopped * 2 < MutableList.length(this.waiting)) return
    this.waiting = MutableList.fromIterable([...this.waiting].filter(({ hasMore }) => hasMore))
    this.stopped = 0
  }

  private admit(): void {
    // What ends as it begins comes by here again: the loop below goes on for it.
    if (this.admitting || this.later) return
    this.admitting = true
    for (let begun = 0; this.taken < this.permits; begun++) {
      const batch = MutableList.shift(this.waiting)
      if (batch === undefined) break
      if (begun === maxBegunPerTurn) {
        MutableList.prepend(this.waiting, batch)
        this.later = true
        setImmediate(() => {
          this.later = false
          this.admit()
        })
        break
      }
      batch.inLine = false
      if (!batch.hasMore) continue
      this.taken += 1
      batch.beginNext()
      if (batch.hasMore) this.enter(batch)
    }
    this.admitting = false
  }
}
