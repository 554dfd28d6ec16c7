/** The default listener of `DiskStorage.ProgressListener`: nobody. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Progress } from "../DiskStorage.js"

export class ProgressListener extends Context.Reference<ProgressListener>()("effect-disk-storage/ProgressListener", {
  defaultValue: (): (progress: Progress) => Effect.Effect<void> => () => Effect.void
}) {}
