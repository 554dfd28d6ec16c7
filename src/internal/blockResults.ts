/** What became of each block of a batch; errors are made when they are looked at, since a miss is nothing unusual. */
import * as Either from "effect/Either"
import type { Results } from "../IoEngine.js"

export class BlockResults<A, E> implements Results<E, A> {
  readonly outcomes: Array<Either.Either<A, () => E> | undefined>
  private readonly otherwise: () => E

  /** `otherwise`: of a block that was not begun. */
  constructor(length: number, otherwise: () => E) {
    this.outcomes = Array.from({ length })
    this.otherwise = otherwise
  }

  get length(): number {
    return this.outcomes.length
  }

  /** Blocks that were written or read. */
  get moved(): number {
    let moved = 0
    for (const outcome of this.outcomes) {
      if (outcome === undefined || Either.isLeft(outcome)) continue
      const what: unknown = outcome.right
      if (what !== "duplicate" && what !== "filtered") moved += 1
    }
    return moved
  }

  get(index: number): Either.Either<A, E> {
    if (!(index in this.outcomes)) throw new RangeError(`a batch of ${this.length} blocks has no block ${index}`)
    return Either.mapLeft(this.outcomes[index] ?? Either.left(this.otherwise), (make) => make())
  }

  get failures(): ReadonlyArray<{ readonly index: number; readonly error: E }> {
    return this.outcomes.flatMap((outcome, index) =>
      outcome !== undefined && Either.isRight(outcome)
        ? []
        : Either.match(this.get(index), { onLeft: (error) => [{ index, error }], onRight: () => [] })
    )
  }
}
