/** Where an example makes its storages, as it is printed at the start. */
import { DiskStorageError } from "effect-disk-storage"
import * as Effect from "effect/Effect"
import { resolve } from "node:path"

/** Absolute: a relative directory is one below the working directory. */
export const resolved = (directory: string): Effect.Effect<string, DiskStorageError.WorkingDirectoryGone> =>
  Effect.try({
    try: () => resolve(directory),
    catch: () => new DiskStorageError.WorkingDirectoryGone({ path: directory })
  })
