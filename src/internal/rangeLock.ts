/** Exclusive use of byte ranges, first come first served among those that overlap. */
import * as Effect from "effect/Effect"

interface Entry {
  readonly start: number
  readonly end: number
  held: boolean
  grant: () => void
}

export class RangeLock {
  private entries: Array<Entry> = []

  private grantable(entry: Entry): boolean {
    for (const earlier of this.entries) {
      if (earlier === entry) return true
      if (earlier.start < entry.end && entry.start < earlier.end) return false
    }
    return true
  }

  private leave(entry: Entry): void {
    this.entries = this.entries.filter((other) => other !== entry)
    for (const waiting of this.entries) {
      if (waiting.held || !this.grantable(waiting)) continue
      waiting.held = true
      waiting.grant()
    }
  }

  /** Runs `use` when nobody who came earlier holds or wants a byte from `start` up to `end`. */
  within<A, E, R>(start: number, end: number, use: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.uninterruptibleMask((restore) => {
      const entry: Entry = { start, end, held: false, grant: () => {} }
      this.entries.push(entry)
      entry.held = this.grantable(entry)
      const granted = entry.held ? Effect.void : Effect.async<void>((resume) => {
        entry.grant = () => resume(Effect.void)
        if (entry.held) entry.grant()
      })
      return Effect.ensuring(
        Effect.zipRight(restore(granted), restore(use)),
        Effect.sync(() => this.leave(entry))
      )
    })
  }
}
