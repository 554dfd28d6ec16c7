/** Where an example makes its storages, as it is printed at the start. */
import { DiskStorageError } from "effect-disk-storage"
import * as Effect from "effect/Effect"

/** Absolute: a relative directory is one below the working directory. ".." is left to the kernel, since a link may stand before it. */
export const resolved = (directory: string): Effect.Effect<string, DiskStorageError.WorkingDirectoryGone> =>
  Effect.try({
    try: () => directory.startsWith("/") ? directory : `${process.cwd()}/${directory}`,
    catch: () => new DiskStorageError.WorkingDirectoryGone({ path: directory })
  })
