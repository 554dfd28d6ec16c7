/** Checks of what callers hand over, for those whose compiler does not check it. Only data properties are looked at. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import { InvalidOption } from "../DiskStorageError.js"

/** Elements of one batch: each needs a page of memory at least, so that a longer array holds something else. */
export const maxBatch = 2 ** 22

/** Elements of a list of hashes: as many as a store can hold. */
export const maxHashes = 2 ** 27

const shownLength = 100

/** A short text for any value; never throws. */
export const shown = (value: unknown): string => {
  switch (typeof value) {
    case "string":
      return JSON.stringify(value.length > shownLength ? `${value.slice(0, shownLength)}…` : value)
    case "bigint":
      return `${value}n`
    case "function":
      return "a function"
    case "object":
      if (value === null) return "null"
      if (Array.isArray(value)) return `an array of ${value.length}`
      return value instanceof Uint8Array ? "a Uint8Array" : "an object"
    default:
      return String(value)
  }
}

export const invalid = (option: string, value: unknown, expected: string): InvalidOption =>
  new InvalidOption({ option, value: shown(value), expected })

export const isObject = (value: unknown): value is object => typeof value === "object" && value !== null

export const objectRefused = (option: string, value: unknown, expected = "an object"): InvalidOption | undefined =>
  isObject(value) ? undefined : invalid(option, value, expected)

export const arrayRefused = (option: string, value: unknown, most: number): InvalidOption | undefined =>
  Array.isArray(value) && value.length <= most ? undefined : invalid(option, value, `an array of at most ${most}`)

export const booleanRefused = (option: string, value: unknown): InvalidOption | undefined =>
  value === undefined || typeof value === "boolean" ? undefined : invalid(option, value, "true or false")

export const stringRefused = (option: string, value: unknown, expected = "a string"): InvalidOption | undefined =>
  typeof value === "string" ? undefined : invalid(option, value, expected)

/** Its views have no bytes any more, and cannot be told from empty ones: Node 20 has no `detached`. */
const isDetached = ({ buffer }: Uint8Array): boolean => Either.isLeft(Either.try(() => new Uint8Array(buffer)))

export const bytesRefused = (option: string, value: unknown): InvalidOption | undefined =>
  !(value instanceof Uint8Array)
    ? invalid(option, value, "a Uint8Array")
    : value.byteLength === 0 && isDetached(value)
    ? invalid(option, value, "a Uint8Array whose buffer is not detached")
    : undefined

/** Milliseconds. */
export const duration = (
  option: string,
  value: Duration.DurationInput | undefined,
  fallback: Duration.DurationInput
): Effect.Effect<number, InvalidOption> => {
  const millis = Option.map(Duration.decodeUnknown(value ?? fallback), Duration.toMillis)
  return Option.isSome(millis) && millis.value > 0 && value !== null
    ? Effect.succeed(millis.value)
    : Effect.fail(invalid(option, value, "a duration above 0"))
}

/** Undefined where nothing is wrong. */
export const unless = (refused: InvalidOption | undefined): Effect.Effect<void, InvalidOption> =>
  refused === undefined ? Effect.void : Effect.fail(refused)
