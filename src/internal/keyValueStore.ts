/**
 * Entries of a key-value store as blocks: the entry's key decides on the hash, and is in the block, where it is compared.
 *
 * A block: magic (4 bytes), version (1), kind (1), zero (2), bytes of the key (u32, little-endian), bytes of the value (u32), the key in
 * UTF-8, the value, zeros.
 */
import * as PlatformError from "@effect/platform/Error"
import * as KeyValueStore from "@effect/platform/KeyValueStore"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { createHash } from "node:crypto"
import * as AlignedBuffer from "../AlignedBuffer.js"
import { BlockStore } from "../BlockStore.js"
import type { BufferUnavailable, InvalidOption, OffloadError, OnboardError } from "../DiskStorageError.js"
import type { KeyValueStoreOptions } from "../KeyValueStore.js"
import { shown as shownValue } from "./arguments.js"
import { checked, wholeNumber } from "./engineOptions.js"

const headerBytes = 16
/** "EDKV" */
const magic = 0x45444b56
const version = 1
const kinds = { bytes: 0, string: 1 } as const

type Method = "clear" | "get" | "getUint8Array" | "set" | "remove" | "has"

/** Bytes of a block that are an entry's value. */
interface Value {
  readonly block: Buffer
  readonly isString: boolean
  readonly from: number
  readonly to: number
}

/** Of a hash that other keys may have, too. */
export const hashOfKey = (key: Uint8Array): bigint => createHash("sha256").update(key).digest().readBigUInt64BE(0)

/** The other half of a pair is missing: UTF-8 has no bytes for that, and another string would come back. */
const hasLoneSurrogate = (text: string): boolean => /\p{Surrogate}/u.test(text)

const bufferOf = ({ buffer, byteLength, byteOffset }: Uint8Array): Buffer => Buffer.from(buffer, byteOffset, byteLength)

export const encode = (into: Uint8Array, key: Uint8Array, value: string | Uint8Array): void => {
  const block = bufferOf(into)
  const from = headerBytes + key.byteLength
  block.writeUInt32BE(magic, 0)
  block.writeUInt8(version, 4)
  block.writeUInt8(typeof value === "string" ? kinds.string : kinds.bytes, 5)
  block.writeUInt16LE(0, 6)
  block.writeUInt32LE(key.byteLength, 8)
  block.set(key, headerBytes)
  let length = 0
  if (typeof value === "string") length = block.write(value, from, "utf8")
  else {
    block.set(value, from)
    length = value.byteLength
  }
  block.writeUInt32LE(length, 12)
  block.fill(0, from + length)
}

/** What a block holds for `key`; `other` when it is another key's, `invalid` when it is no entry at all. */
export const decode = (bytes: Uint8Array, key: Uint8Array): Value | "other" | "invalid" => {
  const block = bufferOf(bytes)
  if (
    block.byteLength < headerBytes || block.readUInt32BE(0) !== magic || block.readUInt8(4) !== version ||
    block.readUInt16LE(6) !== 0
  ) return "invalid"
  const kind = block.readUInt8(5)
  const from = headerBytes + block.readUInt32LE(8)
  const to = from + block.readUInt32LE(12)
  if ((kind !== kinds.string && kind !== kinds.bytes) || to > block.byteLength) return "invalid"
  return block.subarray(headerBytes, from).equals(key)
    ? { block, isString: kind === kinds.string, from, to }
    : "other"
}

const copied = ({ block, from, to }: Value): Uint8Array => new Uint8Array(block.subarray(from, to))

/** Bytes are text as those of `KeyValueStore.layerMemory` are. */
const text = ({ block, from, isString, to }: Value): string => block.toString(isString ? "utf8" : "base64", from, to)

const badArgument = (method: Method, description: string) =>
  new PlatformError.BadArgument({ module: "KeyValueStore", method, description })

const reasons: Record<(OffloadError | OnboardError)["_tag"], PlatformError.SystemErrorReason> = {
  BlockCorrupted: "InvalidData",
  BlockNotFound: "NotFound",
  BufferBusy: "Busy",
  InvalidBlock: "Unknown",
  InvalidOption: "Unknown",
  IoFailed: "Unknown",
  IoStalled: "TimedOut",
  Misaligned: "Unknown",
  NoStorageLeft: "BadResource",
  OutOfBounds: "Unknown",
  StorageClosed: "BadResource",
  StorageDegraded: "Busy",
  StoreClosed: "BadResource",
  StoreFull: "Busy"
}

/** Keys may be as long as a block. */
const shown = (key: string): string => key.length > 100 ? `${key.slice(0, 100)}…` : key

const systemError = (method: Method, key: string, error: OffloadError | OnboardError) =>
  new PlatformError.SystemError({
    reason: reasons[error._tag],
    module: "KeyValueStore",
    method,
    pathOrDescriptor: shown(key),
    description: error.message,
    cause: error
  })

export const make = (
  options: KeyValueStoreOptions = {},
  hashOf: (key: Uint8Array) => bigint = hashOfKey
): Effect.Effect<
  KeyValueStore.KeyValueStore,
  BufferUnavailable | InvalidOption,
  BlockStore | Scope.Scope
> =>
  Effect.gen(function*() {
    yield* checked(options)
    const buffers = yield* wholeNumber("concurrency", options.concurrency, 4, 1, 65_536)
    const store = yield* BlockStore
    const pool = yield* AlignedBuffer.pool({ buffers, byteLength: store.blockBytes })

    const named = <A, E>(
      method: Method,
      key: string,
      use: (name: Uint8Array, hash: bigint) => Effect.Effect<A, E>
    ): Effect.Effect<A, E | PlatformError.BadArgument> =>
      Effect.suspend((): Effect.Effect<A, E | PlatformError.BadArgument> => {
        if (typeof key !== "string") {
          return Effect.fail(badArgument(method, `the key is ${shownValue(key)}. Use a string.`))
        }
        if (hasLoneSurrogate(key)) {
          return Effect.fail(
            badArgument(
              method,
              "the key has half of a surrogate pair, which UTF-8 cannot say. Use a well-formed string."
            )
          )
        }
        const name = Buffer.from(key, "utf8")
        return use(name, hashOf(name))
      })

    const missing = (key: string, why: string, error?: OnboardError): Effect.Effect<Option.Option<never>> =>
      Effect.logWarning(why, ...(error === undefined ? [] : [error])).pipe(
        Effect.annotateLogs({ key: shown(key) }),
        Effect.as(Option.none())
      )

    /** What `use` makes of the value, while its block is in memory. */
    const read = <A>(
      method: Method,
      key: string,
      use: (value: Value) => A
    ): Effect.Effect<Option.Option<A>, PlatformError.PlatformError> =>
      named(method, key, (name, hash) => {
        const found = (bytes: Uint8Array): Effect.Effect<Option.Option<A>, PlatformError.BadArgument> => {
          const value = decode(bytes, name)
          if (value === "other") return Effect.succeedNone
          if (value === "invalid") {
            // Not removed: the key may have been set meanwhile.
            return missing(key, "a block that is no entry of a key-value store was found, and is no value")
          }
          return Effect.try({
            try: () => Option.some(use(value)),
            catch: (error) => badArgument(method, `the value is too long for a string (${error}). Use getUint8Array.`)
          })
        }
        return Effect.scoped(Effect.flatMap(pool.leaseUninitialized, (into) =>
          Effect.flatMap(Effect.orDie(store.onboard([{ hash, into }])), (results) =>
            Either.match(results.get(0), {
              onRight: (): Effect.Effect<Option.Option<A>, PlatformError.PlatformError> => found(into.bytes),
              onLeft: (error) => {
                if (error._tag === "BlockNotFound") {
                  return Effect.succeedNone
                }
                return error._tag === "BlockCorrupted"
                  ? missing(key, "an entry of a key-value store was lost", error)
                  : Effect.fail(systemError(method, key, error))
              }
            }))))
      })

    const set: KeyValueStore.KeyValueStore["set"] = (key, value) =>
      named("set", key, (name, hash): Effect.Effect<void, PlatformError.PlatformError> => {
        if (typeof value !== "string" && !(value instanceof Uint8Array)) {
          return Effect.fail(badArgument("set", `the value is ${shownValue(value)}. Use a string or a Uint8Array.`))
        }
        if (typeof value === "string" && hasLoneSurrogate(value)) {
          return Effect.fail(
            badArgument(
              "set",
              "the value has half of a surrogate pair, which UTF-8 cannot say. Use a well-formed string, or set bytes."
            )
          )
        }
        const valueBytes = Buffer.byteLength(value)
        const needed = headerBytes + name.byteLength + valueBytes
        if (needed > store.blockBytes) {
          return Effect.fail(
            badArgument(
              "set",
              `a key of ${name.byteLength} bytes and a value of ${valueBytes} bytes need ${needed} with their header, and a block has ${store.blockBytes}. Use a smaller value, or a BlockStore with a larger blockBytes.`
            )
          )
        }
        return Effect.scoped(Effect.flatMap(pool.leaseUninitialized, (data) => {
          encode(data.bytes, name, value)
          return Effect.flatMap(Effect.orDie(store.offload([{ hash, data }], { replace: true })), (results) =>
            Either.match(results.get(0), {
              onRight: () =>
                Effect.void,
              onLeft: (error) =>
                Effect.fail(systemError("set", key, error))
            }))
        }))
      })

    return KeyValueStore.make({
      get: (key) =>
        read("get", key, text),
      getUint8Array: (key) => read("getUint8Array", key, copied),
      has: (key) => Effect.map(read("has", key, () => true), Option.isSome),
      set,
      remove: (key) => named("remove", key, (_, hash) => Effect.asVoid(Effect.orDie(store.remove([hash])))),
      clear: Effect.mapError(store.reset, (error) => systemError("clear", "every key", error)),
      size: Effect.map(store.stats, ({ blocks }) => blocks)
    })
  })
