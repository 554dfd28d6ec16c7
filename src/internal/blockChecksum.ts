/** The checksums of blocks, on the thread that calls, as the words that the index keeps. */
import * as Effect from "effect/Effect"
import { setImmediate } from "node:timers"
import * as zlib from "node:zlib"
import type { Checksum } from "../BlockStore.js"
import { InvalidOption } from "../DiskStorageError.js"
import { checksumWords } from "./blockIndex.js"

/**
 * How much is computed before the event loop has a turn: about 2 ms at the 4 GB/s of either checksum. Completions that arrive together
 * would otherwise be checked all in one go.
 */
const maxBytesPerTurn = 8 * 1024 * 1024

export interface Checker {
  /** The answer is the checker's, and good until the next call. */
  readonly compute: (bytes: Uint8Array) => Int32Array
  /** Undefined where that many bytes may be computed at once; else to be waited for before. */
  readonly turn: (bytes: number) => Effect.Effect<void> | undefined
}

const never = () => undefined

/** Waits until the event loop has looked at everything else. */
export const eventLoopTurn: Effect.Effect<void> = Effect.async<void>((resume) => {
  const waiting = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(waiting))
})

const turns = (): Checker["turn"] => {
  let bytes = 0
  let counting = false
  const fits = (more: number): boolean => {
    if (bytes > 0 && bytes + more > maxBytesPerTurn) return false
    bytes += more
    if (!counting) {
      counting = true
      setImmediate(() => {
        counting = false
        bytes = 0
      })
    }
    return true
  }
  /** Those who wait come together, too: what does not fit then waits again. */
  const later = (more: number): Effect.Effect<void> =>
    Effect.flatMap(eventLoopTurn, () => fits(more) ? Effect.void : later(more))
  return (more) => fits(more) ? undefined : later(more)
}

export const make = (checksum: Checksum): Effect.Effect<Checker, InvalidOption> =>
  Effect.gen(function*() {
    const words = new Int32Array(checksumWords)
    const refused = (expected: string) => new InvalidOption({ option: "checksum", value: String(checksum), expected })
    switch (checksum) {
      case "off":
        return { compute: () => words, turn: never }
      case "crc32": {
        const { crc32 } = zlib
        if (typeof crc32 !== "function") return yield* refused("crc32 on Node 20.15 or later only; else xxh128, off")
        return {
          compute: (bytes) => {
            words[0] = crc32(bytes)
            return words
          },
          turn: turns()
        }
      }
      case "xxh128": {
        const hasher = yield* Effect.tryPromise({
          // Loaded by who asks for it.
          try: async () => (await import("hash-wasm")).createXXHash128(),
          catch: (error) => refused(`xxh128 where hash-wasm can be loaded, and it cannot: ${String(error)}`)
        })
        const bytesOfWords = new Uint8Array(words.buffer)
        return {
          compute: (bytes) => {
            bytesOfWords.set(hasher.init().update(bytes).digest("binary"))
            return words
          },
          turn: turns()
        }
      }
      default:
        return yield* refused("off, crc32, xxh128")
    }
  })
