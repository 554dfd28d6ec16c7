/** Files of this library that take space in a directory and that no process is seen to use: they are counted where that explains something. */
import * as Effect from "effect/Effect"
import type { AcquireError, Leftovers } from "../DiskStorageError.js"
import { InsufficientSpace, OutOfSpace } from "../DiskStorageError.js"
import type { Syscalls } from "../Syscalls.js"
import * as keptFile from "./keptFile.js"
import { count, isTemporaryName, tallyOf } from "./sweep.js"

/** Names of a directory that are looked at for kept files; a shared directory may have many. */
const maxLookedAt = 1024

/** Kept files, each with the bytes that it holds. */
const keptIn = (syscalls: Syscalls, directory: string) =>
  syscalls.readdir(directory).pipe(
    Effect.flatMap((names) =>
      Effect.forEach(
        names.filter((name) => !isTemporaryName(name)).slice(0, maxLookedAt),
        (name) => keptFile.sizeOf(syscalls, `${directory === "/" ? "" : directory}/${name}`)
      )
    ),
    Effect.map((sizes) => sizes.filter((size) => size !== undefined)),
    Effect.orElseSucceed((): ReadonlyArray<number> => [])
  )

/** What lies beside the file at `path`, which is the caller's; undefined where there is nothing. */
const beside = (syscalls: Syscalls, path: string): Effect.Effect<Leftovers | undefined> =>
  Effect.gen(function*() {
    const directory = path.slice(0, path.lastIndexOf("/")) || "/"
    const { command, others, unused } = yield* count(syscalls, directory, path)
    const kept = tallyOf((yield* keptIn(syscalls, directory)).map((bytes) => ({ bytes })))
    return unused.files + others.files + kept.files === 0
      ? undefined
      : { directory, unused, others, kept, command }
  })

/** The same error with what takes the space, where it is one about space. */
export const explained = (syscalls: Syscalls) => (error: AcquireError): Effect.Effect<never, AcquireError> =>
  error._tag === "InsufficientSpace" || error._tag === "OutOfSpace"
    ? Effect.flatMap(beside(syscalls, error.path), (leftovers) => {
      if (leftovers === undefined) return Effect.fail(error)
      if (error._tag === "OutOfSpace") {
        const { cause, method, needed, path } = error
        return Effect.fail(new OutOfSpace({ path, method, needed, cause, leftovers }))
      }
      const { available, memory, needed, path } = error
      return Effect.fail(new InsufficientSpace({ path, needed, available, memory, leftovers }))
    })
    : Effect.fail(error)
