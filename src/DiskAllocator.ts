/**
 * Hands out storages within a budget of bytes.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { DiskStorage, DiskStorageOptions } from "./DiskStorage.js"
import type { AcquireError, InvalidOption } from "./DiskStorageError.js"
import { BudgetExceeded } from "./DiskStorageError.js"
import { invalid, objectRefused, unless } from "./internal/arguments.js"
import { makeAfter } from "./internal/diskStorage.js"
import { resolve } from "./internal/options.js"
import type { IoEngine } from "./IoEngine.js"
import type { Syscalls } from "./Syscalls.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = Symbol.for("effect-disk-storage/DiskAllocator")

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

/**
 * `allocate` acquires a storage as `DiskStorage.make` does and takes its `size` from the budget until it is released. It fails at
 * once, with `BudgetExceeded`, when the budget has no room for it.
 *
 * @since 0.1.0
 * @category models
 */
export interface DiskAllocator {
  readonly [TypeId]: TypeId
  /** bytes */
  readonly budget: number
  /** bytes of the budget that are not handed out */
  readonly available: Effect.Effect<number>
  readonly allocate: (
    options: DiskStorageOptions
  ) => Effect.Effect<DiskStorage, AcquireError | BudgetExceeded, Scope.Scope>
}

/**
 * @since 0.1.0
 * @category tags
 */
export const DiskAllocator: Context.Tag<DiskAllocator, DiskAllocator> = Context.GenericTag<DiskAllocator>(
  "effect-disk-storage/DiskAllocator"
)

/**
 * `budget`: bytes, a positive safe integer, that all storages together may have.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (options: {
  readonly budget: number
}): Effect.Effect<DiskAllocator, InvalidOption, Syscalls | IoEngine> =>
  Effect.gen(function*() {
    yield* unless(objectRefused("options", options))
    const { budget } = options
    if (!Number.isSafeInteger(budget) || budget <= 0) {
      return yield* invalid("budget", budget, "a whole number of bytes above 0")
    }
    const kernel = yield* Effect.context<Syscalls | IoEngine>()
    let available = budget
    const reserve = (requested: number) =>
      Effect.acquireRelease(
        Effect.suspend(() => {
          if (requested > available) return Effect.fail(new BudgetExceeded({ requested, available, budget }))
          available -= requested
          return Effect.void
        }),
        () =>
          Effect.sync(() => {
            available += requested
          })
      )
    return {
      [TypeId]: TypeId,
      budget,
      available: Effect.sync(() => available),
      allocate: (options) =>
        Effect.flatMap(resolve(options), (resolved) => makeAfter(reserve(resolved.size), resolved)).pipe(
          Effect.mapInputContext((scope: Context.Context<Scope.Scope>) => Context.merge(kernel, scope))
        )
    }
  })

/**
 * @since 0.1.0
 * @category layers
 */
export const layer = (options: {
  readonly budget: number
}): Layer.Layer<DiskAllocator, InvalidOption, Syscalls | IoEngine> => Layer.effect(DiskAllocator, make(options))
