/** The checksums of blocks, on the thread that calls, as the words that the index keeps. */
import * as Effect from "effect/Effect"
import * as MutableList from "effect/MutableList"
import { setImmediate } from "node:timers"
import * as zlib from "node:zlib"
import type { Checksum } from "../BlockStore.js"
import { BufferUnavailable, InvalidOption } from "../DiskStorageError.js"
import { shown } from "./arguments.js"
import { checksumWords } from "./blockIndex.js"

/**
 * How much is computed before the event loop has a turn: a quarter of a millisecond at the 4 GB/s of either checksum. Completions that
 * arrive together would otherwise be checked all in one go, and meanwhile nothing else be submitted.
 */
const maxBytesPerTurn = 1024 * 1024

export interface Checker {
  /** The answer is the checker's, and good until the next call. */
  readonly compute: (bytes: Uint8Array) => Int32Array
  /** Calls `step`, which computes over so many bytes: when what was submitted in this turn of the event loop is on its way. */
  readonly soon: (bytes: number, step: () => void) => void
}

const afterSubmission = (): Checker["soon"] => {
  const waiting = MutableList.empty<{ readonly bytes: number; readonly step: () => void }>()
  let computed = 0
  let counting = false
  let scheduled = false
  const run = () => {
    scheduled = false
    for (let first = MutableList.head(waiting); first !== undefined; first = MutableList.head(waiting)) {
      if (computed > 0 && computed + first.bytes > maxBytesPerTurn) break
      MutableList.shift(waiting)
      computed += first.bytes
      first.step()
    }
    if (counting) return
    counting = true
    setImmediate(() => {
      counting = false
      computed = 0
      if (!MutableList.isEmpty(waiting)) run()
    })
  }
  return (bytes, step) => {
    MutableList.append(waiting, { bytes, step })
    if (scheduled) return
    scheduled = true
    queueMicrotask(run)
  }
}

/** Memory of one hasher of hash-wasm, in WebAssembly pages. */
const hasherBytes = 4 * 65_536

/** V8 has no other word for it: a module that compiles, and whose memory cannot be reserved. */
const isOutOfMemory = (error: unknown): boolean => error instanceof RangeError || /out of memory/i.test(String(error))

/** Why there is no hasher: memory, or the library. */
export const notLoaded = (error: unknown, checksum: Checksum): InvalidOption | BufferUnavailable =>
  isOutOfMemory(error)
    ? new BufferUnavailable({
      byteLength: hasherBytes,
      reason: String(error),
      purpose: "the hasher of xxh128 checksums"
    })
    : new InvalidOption({
      option: "checksum",
      value: checksum,
      expected: `xxh128 where hash-wasm can be loaded, and it cannot: ${String(error)}`
    })

/** Undefined: nothing is computed. */
export const make = (checksum: Checksum): Effect.Effect<Checker | undefined, InvalidOption | BufferUnavailable> =>
  Effect.gen(function*() {
    const words = new Int32Array(checksumWords)
    const refused = (expected: string) => new InvalidOption({ option: "checksum", value: shown(checksum), expected })
    switch (checksum) {
      case "off":
        return undefined
      case "crc32": {
        const { crc32 } = zlib
        if (typeof crc32 !== "function") return yield* refused("crc32 on Node 20.15 or later only; else xxh128, off")
        return {
          compute: (bytes) => {
            words[0] = crc32(bytes)
            return words
          },
          soon: afterSubmission()
        }
      }
      case "xxh128": {
        const hasher = yield* Effect.tryPromise({
          // Loaded by who asks for it.
          try: async () => (await import("hash-wasm")).createXXHash128(),
          catch: (error) => notLoaded(error, checksum)
        })
        const bytesOfWords = new Uint8Array(words.buffer)
        return {
          compute: (bytes) => {
            bytesOfWords.set(hasher.init().update(bytes).digest("binary"))
            return words
          },
          soon: afterSubmission()
        }
      }
      default:
        return yield* refused("off, crc32, xxh128")
    }
  })
