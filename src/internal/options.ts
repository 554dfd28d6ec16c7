/** Options, from data or from a `Config`. */
import * as Config from "effect/Config"
import type * as ConfigError from "effect/ConfigError"
import * as Effect from "effect/Effect"
import type * as Types from "effect/Types"
import type { DiskStorageOptions } from "../DiskStorage.js"
import { InvalidOption } from "../DiskStorageError.js"
import { duration, objectRefused, shown, unless } from "./arguments.js"
import { faithful, isFaithful } from "./pathText.js"

export interface ResolvedOptions {
  readonly size: number
  readonly directory: string
  readonly directIo: "proven" | "required" | "preferred" | "disabled"
  readonly openStrategy: "default" | "open-direct"
  readonly fallback: "truncate" | "zero-fill"
  readonly prewrite: boolean
  readonly earlyUnlink: boolean
  /** Lies in `directory`. */
  readonly keepAt: string | undefined
  readonly sweep: boolean
  readonly failureLimit: number
  readonly retryMillis: number
  readonly releaseMillis: number
  readonly trustDirectory: boolean
  readonly requireMount: string | undefined
}

/** Of the Rust original's files, whose live ones must never be taken for ours. */
export const originalsPrefix = "dynamo-kvbm-disk-cache-"
/** Of temp files: six characters follow. */
export const namePrefix = `${originalsPrefix}eds-`

/** As in the Rust original. */
export const defaultDirectory = "/tmp/"

/** The most bytes of a name in a directory (`uapi/linux/limits.h`). */
const nameMax = 255

/** `offset`, `length` and `size` may be this large: what both a JavaScript number and an `off_t` can hold, on whole pages. */
export const maxSize = Number.MAX_SAFE_INTEGER - (Number.MAX_SAFE_INTEGER % 65_536)

const oneOf = <const A extends string>(option: string, values: ReadonlyArray<A>, value: A | undefined, fallback: A) =>
  value === undefined
    ? Effect.succeed(fallback)
    : values.includes(value)
    ? Effect.succeed(value)
    : Effect.fail(
      new InvalidOption({ option, value: shown(value), expected: values.join(", ") })
    )

const withoutSlashes = (directory: string) => directory.replace(/\/+$/, "") || "/"

/** A path as an option gives it: every name that the kernel can be given as it is. */
export const pathOption = (option: string, path: unknown): Effect.Effect<string, InvalidOption> =>
  typeof path === "string" && path !== "" && isFaithful(path)
    ? Effect.succeed(path)
    : Effect.fail(new InvalidOption({ option, value: shown(path), expected: `a path: not empty, ${faithful}` }))

/** The directory of the file: that of `keepAt`, where it is given. */
const directoryOf = (
  { directory, keepAt }: DiskStorageOptions,
  earlyUnlink: boolean
): Effect.Effect<string, InvalidOption> => {
  if (keepAt === undefined) return Effect.succeed(directory ?? defaultDirectory)
  const value = shown(keepAt)
  const refused = (expected: string) => Effect.fail(new InvalidOption({ option: "keepAt", value, expected }))
  if (typeof keepAt !== "string" || !isFaithful(keepAt)) return refused(`a path: ${faithful}`)
  const slash = keepAt.lastIndexOf("/")
  const name = keepAt.slice(slash + 1)
  if (["", ".", ".."].includes(name) || new TextEncoder().encode(name).byteLength > nameMax) {
    return refused(`the path of a file: its name has 1 to ${nameMax} bytes`)
  }
  if (name.startsWith(originalsPrefix)) {
    return refused(`the path of a file whose name does not begin with ${originalsPrefix}, as those of temp files do`)
  }
  if (earlyUnlink) return refused("a path without earlyUnlink: true, which leaves nothing to keep")
  const parent = slash === -1 ? "." : keepAt.slice(0, slash + 1)
  return typeof directory !== "string" || withoutSlashes(directory) === withoutSlashes(parent)
    ? Effect.succeed(directory ?? parent)
    : refused(`a path in the option directory, ${directory}, or leave that out`)
}

export const resolve = (options: DiskStorageOptions): Effect.Effect<ResolvedOptions, InvalidOption> =>
  Effect.gen(function*() {
    yield* unless(objectRefused("options", options))
    const { earlyUnlink = false, prewrite = false, size, sweep = true, trustDirectory = false } = options
    if (!Number.isSafeInteger(size) || size <= 0 || size > maxSize) {
      return yield* new InvalidOption({
        option: "size",
        value: shown(size),
        expected: `a whole number of bytes from 1 to ${maxSize}`
      })
    }
    const directory = yield* pathOption("directory", yield* directoryOf(options, earlyUnlink))
    const { requireMount } = options
    for (const [option, value] of Object.entries({ prewrite, earlyUnlink, sweep, trustDirectory })) {
      if (typeof value !== "boolean") {
        return yield* new InvalidOption({ option, value: shown(value), expected: "true, false" })
      }
    }
    const { failureLimit = 16 } = options
    if (!(Number.isSafeInteger(failureLimit) && failureLimit > 0 || failureLimit === Infinity)) {
      return yield* new InvalidOption({
        option: "failureLimit",
        value: shown(failureLimit),
        expected: "a whole number from 1, or Infinity"
      })
    }
    return {
      size,
      directory,
      prewrite,
      earlyUnlink,
      keepAt: options.keepAt,
      sweep,
      failureLimit,
      retryMillis: yield* duration("retryAfter", options.retryAfter, "10 seconds"),
      releaseMillis: yield* duration("releaseTimeout", options.releaseTimeout, "60 seconds"),
      trustDirectory,
      requireMount: requireMount === undefined ? undefined : yield* pathOption("requireMount", requireMount),
      directIo: yield* oneOf("directIo", ["proven", "required", "preferred", "disabled"], options.directIo, "required"),
      openStrategy: yield* oneOf("openStrategy", ["default", "open-direct"], options.openStrategy, "default"),
      fallback: yield* oneOf("fallback", ["truncate", "zero-fill"], options.fallback, "truncate")
    }
  })

/** `Config.unwrap` throws on an option that is there and undefined, which callers without exact optional properties can pass. */
export const unwrapOptions = (
  config: Config.Config.Wrap<DiskStorageOptions>
): Effect.Effect<DiskStorageOptions, ConfigError.ConfigError | InvalidOption> => {
  const wrong = objectRefused("config", config, "a Config, or a record of them")
  if (wrong !== undefined) return Effect.fail(wrong)
  if (Config.isConfig(config)) return config
  const { size, ...rest } = config
  const optional: Types.Mutable<typeof rest> = rest
  for (
    const key of [
      "directory",
      "directIo",
      "openStrategy",
      "fallback",
      "prewrite",
      "earlyUnlink",
      "keepAt",
      "sweep",
      "failureLimit",
      "retryAfter",
      "releaseTimeout",
      "trustDirectory",
      "requireMount"
    ] as const
  ) {
    if (optional[key] === undefined) delete optional[key]
  }
  return Config.unwrap<DiskStorageOptions>({ size, ...optional })
}
