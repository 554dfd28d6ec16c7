/** A storage from its acquisition to its release, which tells when a part of that begins. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as DiskStorageConfig from "../../../src/DiskStorageConfig.js"
import * as Linux from "../../../src/Linux.js"
import { errnos, SyscallError, Syscalls } from "../../../src/Syscalls.js"

export type Moment = "acquire" | "fill" | "io" | "keep" | "release"

/** No filesystem here is without fallocate. */
const withoutFallocate = Layer.effect(
  Syscalls,
  Effect.map(Syscalls, (syscalls) => ({
    ...syscalls,
    fallocate: (fd: number) =>
      new SyscallError({ syscall: "fallocate", errno: errnos.EOPNOTSUPP, code: "EOPNOTSUPP", fd })
  }))
)

/**
 * Runs `begun` at that moment; I/O goes on until it is interrupted, and at every other moment the life goes on to its end. It is kept at
 * `keepAt` only when that is the moment.
 */
export const life = (moment: Moment, begun: () => void, keepAt?: string) => {
  let told = false
  const at = (here: Moment) =>
    Effect.sync(() => {
      if (told || here !== moment) return
      told = true
      begun()
    })
  const options = Effect.map(DiskStorageConfig.options(), (options): DiskStorage.DiskStorageOptions => ({
    ...options,
    fallback: "zero-fill",
    keepAt
  }))
  const use = Effect.gen(function*() {
    yield* at("acquire")
    const storage = yield* Effect.flatMap(options, DiskStorage.make)
    const bytes = new Uint8Array(1024 * 1024).fill(7)
    const write = Effect.forEach([0, 1, 2, 3], (index) => storage.writeBytes(index * bytes.byteLength, bytes), {
      concurrency: 4
    })
    yield* at("io")
    yield* moment === "io" ? Effect.forever(write) : write
    yield* at("keep")
    if (moment === "keep") yield* Effect.ignore(storage.keep)
    yield* Effect.addFinalizer(() => at("release"))
  })
  const listening = Effect.provideService(use, DiskStorage.ProgressListener, () => at("fill"))
  return (moment === "fill" ? Effect.provide(listening, withoutFallocate) : listening).pipe(
    Effect.scoped,
    Effect.provide(Linux.layer)
  )
}
