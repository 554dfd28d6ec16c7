/** What a lane of the soak has: its random numbers, its faults, and where it counts what happened. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Hash from "effect/Hash"
import { PCGRandom } from "effect/Utils"
import type { DiskStorageError } from "../../src/DiskStorageError.js"
import { isDiskStorageError } from "../../src/DiskStorageError.js"

/** A promise of the package that was not kept: the soak ends here. */
export class Broken extends Data.TaggedError("Broken")<{ readonly message: string }> {}

export const broken = (message: string): Effect.Effect<never, Broken> => Effect.fail(new Broken({ message }))

/** What the same seed decides again, whatever the kernel does meanwhile. */
export class Decisions {
  private readonly random: PCGRandom
  readonly name: string

  constructor(name: string) {
    this.name = name
    this.random = new PCGRandom(Hash.string(name))
  }

  /** Others that do not depend on how many of these were taken. */
  apart(name: string): Decisions {
    return new Decisions(`${this.name} ${name}`)
  }

  below(bound: number): number {
    return this.random.integer(bound)
  }

  between(least: number, most: number): number {
    return least + this.random.integer(most - least + 1)
  }

  chance(probability: number): boolean {
    return this.random.number() < probability
  }

  of<A>(some: readonly [A, ...ReadonlyArray<A>]): A {
    return some[this.random.integer(some.length)] ?? some[0]
  }
}

/** What was done and seen so far, by all lanes of one kernel. */
export class Tally {
  /** Acquisitions, transfers, batches, and whatever else a lane asks for. */
  operations = 0
  interruptions = 0
  storages = 0
  stores = 0
  takenUp = 0
  blocksChecked = 0
  bytesChecked = 0
  /** Calls that could be given a fault, and those that were. */
  calls = 0
  faults = 0
  readonly failures = new Map<string, number>()

  fail(tag: string): void {
    this.failures.set(tag, (this.failures.get(tag) ?? 0) + 1)
  }
}

/** What is to be nothing whenever no lane is at work. */
export interface Lost {
  slots: number
  pins: number
  budget: number
  registrations: number
  files: number
  simulated: number
}

/** Failures that no fault explains: the soak asks for nothing that would be answered so, and a block must never be wrong. */
const inexplicable: ReadonlySet<DiskStorageError["_tag"]> = new Set<DiskStorageError["_tag"]>([
  "BlockCorrupted",
  "BufferBusy",
  "DuplicateKey",
  "FileReplaced",
  "ForeignMemory",
  "InvalidBlock",
  "InvalidOption",
  "Misaligned",
  "OutOfBounds",
  "PlatformNotSupported"
])

/** Counts a failure of the package; one that no fault explains ends the soak. */
export const seen = (tally: Tally, error: unknown, what: string): Effect.Effect<void, Broken> =>
  Effect.suspend(() => {
    if (!isDiskStorageError(error)) {
      return broken(`${what} failed with what is no error of the package: ${String(error)}`)
    }
    if (inexplicable.has(error._tag)) return broken(`${what} failed with ${error._tag}: ${error.message}`)
    tally.fail(error._tag)
    return Effect.void
  })

/** Runs `effect`, counts it, and counts its failure; whether it succeeded. */
export const attempt = <A, E, R>(
  tally: Tally,
  what: string,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<boolean, Broken, R> =>
  Effect.suspend(() => {
    tally.operations += 1
    return Effect.matchEffect(effect, {
      onFailure: (error) => error instanceof Broken ? Effect.fail(error) : Effect.as(seen(tally, error, what), false),
      onSuccess: () => Effect.succeed(true)
    })
  })

export const turn = Effect.async<void>((resume) => void setImmediate(() => resume(Effect.void)))

/** Runs `effect`; with a `probability`, only until it is interrupted some turns of the event loop later, wherever it is by then. */
export const perhapsInterrupted = <E, R>(
  decisions: Decisions,
  tally: Tally,
  probability: number,
  effect: Effect.Effect<void, E, R>
): Effect.Effect<void, E, R> =>
  Effect.suspend(() => {
    if (!decisions.chance(probability)) return effect
    const turns = decisions.below(decisions.chance(0.5) ? 4 : 40)
    return Effect.gen(function*() {
      const fiber = yield* Effect.fork(effect)
      for (let count = 0; count < turns; count++) yield* turn
      const exit = yield* Fiber.interrupt(fiber)
      if (Exit.isFailure(exit) && !Exit.isInterrupted(exit)) return yield* exit
      if (Exit.isInterrupted(exit)) tally.interruptions += 1
    })
  })

export const numbers = (length: number): ReadonlyArray<number> => Array.from({ length }, (_, index) => index)

/** A life: everything that it acquires is released at its end. */
export interface Life {
  readonly decisions: Decisions
  readonly tally: Tally
  readonly lost: Lost
  /** Its own. */
  readonly directory: string
  /** Whether memory for transfers comes from a pool; a kernel that never answers would keep a pool's buffers for ever. */
  readonly pooled: boolean
}
