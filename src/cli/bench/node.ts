/** What Node and Effect's platform offer without this package. */
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as NFS from "node:fs"
import type { FileHandle } from "node:fs/promises"
import * as NFSP from "node:fs/promises"
import { Syscalls } from "../../Syscalls.js"
import type { Contestant } from "./contestant.js"
import { inProcess } from "./contestant.js"
import type { Load } from "./load.js"
import { callbacks } from "./load.js"

const { O_DIRECT, O_RDWR } = NFS.constants

const callback = inProcess("fs.callback", "fs", (load) => {
  const { buffers, direction, target: { fd } } = load
  return Effect.succeed(callbacks(load, (index, completed) => {
    const bytes = buffers[index]?.bytes ?? new Uint8Array()
    return direction === "read"
      ? (offset) => NFS.read(fd, bytes, 0, bytes.byteLength, offset, completed)
      : (offset) => NFS.write(fd, bytes, 0, bytes.byteLength, offset, completed)
  }))
})

const promises = inProcess("fs.promises", "fs", (load) =>
  Effect.gen(function*() {
    const { buffers, direction, target } = load
    const handle = yield* Effect.acquireRelease(
      Effect.tryPromise({
        try: () => NFSP.open(target.path, O_RDWR | (target.direct ? O_DIRECT : 0)),
        catch: (cause) => cause
      }),
      (handle) => Effect.promise(() => handle.close())
    )
    const loop = direction === "read" ? reading : writing
    return Effect.tryPromise({
      try: () => Promise.all(buffers.map(({ bytes }) => loop(load, handle, bytes))),
      catch: (cause) => cause
    })
  }))

// What fails ends the round for the others, too: nobody must be under way when the first rejection is seen.
const reading = async (load: Load, handle: FileHandle, bytes: Uint8Array): Promise<void> => {
  try {
    for (let offset = load.next(); offset >= 0; offset = load.next()) {
      load.completed((await handle.read(bytes, 0, bytes.byteLength, offset)).bytesRead)
    }
  } catch (error) {
    load.fail(error)
  }
}

const writing = async (load: Load, handle: FileHandle, bytes: Uint8Array): Promise<void> => {
  try {
    for (let offset = load.next(); offset >= 0; offset = load.next()) {
      load.completed((await handle.write(bytes, 0, bytes.byteLength, offset)).bytesWritten)
    }
  } catch (error) {
    load.fail(error)
  }
}

/**
 * A `File` has a position and no way to say an offset: seek, then read or write, on a `File` for each operation in flight. It
 * cannot be opened with O_DIRECT either: the flag is set on its descriptor.
 */
const platform = (fileSystem: FileSystem.FileSystem, syscalls: Syscalls): Contestant =>
  inProcess("platform.FileSystem", "platform", (load) =>
    Effect.gen(function*() {
      const { buffers, direction, target } = load
      const loops = yield* Effect.forEach(buffers, ({ bytes }) =>
        Effect.gen(function*() {
          const file = yield* fileSystem.open(target.path, { flag: "r+" })
          if (target.direct) {
            const flags = yield* syscalls.fcntlGetFlags(file.fd)
            yield* syscalls.fcntlSetFlags(file.fd, flags | syscalls.flags.O_DIRECT)
          }
          const transfer = direction === "read" ? file.read(bytes) : file.write(bytes)
          let offset = -1
          return Effect.whileLoop({
            while: () => (offset = load.next()) >= 0,
            body: () => Effect.zipRight(file.seek(offset, "start"), transfer),
            step: (moved) => load.completed(Number(moved))
          })
        }))
      return together(load, loops)
    }))

/** One fibre for each; the first failure ends the round, and the others' operations are waited for. */
export const together = (
  load: Load,
  loops: ReadonlyArray<Effect.Effect<void, unknown>>
): Effect.Effect<void> =>
  Effect.forEach(loops, (loop) => Effect.catchAll(loop, (error) => Effect.sync(() => load.fail(error))), {
    concurrency: "unbounded",
    discard: true
  })

export const contestants: Effect.Effect<
  ReadonlyArray<Contestant>,
  never,
  FileSystem.FileSystem | Syscalls
> = Effect.map(
  Effect.all([FileSystem.FileSystem, Syscalls]),
  ([fileSystem, syscalls]) => [callback, promises, platform(fileSystem, syscalls)]
)
