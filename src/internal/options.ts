/** Options, from data or from a `Config`. */
import * as Config from "effect/Config"
import type * as ConfigError from "effect/ConfigError"
import * as Effect from "effect/Effect"
import type * as Types from "effect/Types"
import type { DiskStorageOptions } from "../DiskStorage.js"
import { InvalidOption } from "../DiskStorageError.js"

export interface ResolvedOptions {
  readonly size: number
  readonly directory: string
  readonly directIo: "proven" | "required" | "preferred" | "disabled"
  readonly openStrategy: "default" | "open-direct"
  readonly fallback: "truncate" | "zero-fill"
  readonly prewrite: boolean
  readonly earlyUnlink: boolean
}

/** As in the Rust original. */
export const defaultDirectory = "/tmp/"

/** `offset`, `length` and `size` may be this large: what both a JavaScript number and an `off_t` can hold, on whole pages. */
export const maxSize = Number.MAX_SAFE_INTEGER - (Number.MAX_SAFE_INTEGER % 65_536)

const oneOf = <const A extends string>(option: string, values: ReadonlyArray<A>, value: A | undefined, fallback: A) =>
  value === undefined
    ? Effect.succeed(fallback)
    : values.includes(value)
    ? Effect.succeed(value)
    : Effect.fail(
      new InvalidOption({ option, value: JSON.stringify(value) ?? String(value), expected: values.join(", ") })
    )

export const resolve = (options: DiskStorageOptions): Effect.Effect<ResolvedOptions, InvalidOption> =>
  Effect.gen(function*() {
    const { directory = defaultDirectory, earlyUnlink = false, prewrite = false, size } = options
    if (!Number.isSafeInteger(size) || size <= 0 || size > maxSize) {
      return yield* new InvalidOption({
        option: "size",
        value: String(size),
        expected: `a whole number of bytes from 1 to ${maxSize}`
      })
    }
    if (typeof directory !== "string" || directory === "" || directory.includes("\0")) {
      return yield* new InvalidOption({
        option: "directory",
        value: JSON.stringify(directory) ?? String(directory),
        expected: "a path: not empty, without NUL"
      })
    }
    for (const [option, value] of Object.entries({ prewrite, earlyUnlink })) {
      if (typeof value !== "boolean") {
        return yield* new InvalidOption({ option, value: String(value), expected: "true, false" })
      }
    }
    return {
      size,
      directory,
      prewrite,
      earlyUnlink,
      directIo: yield* oneOf("directIo", ["proven", "required", "preferred", "disabled"], options.directIo, "required"),
      openStrategy: yield* oneOf("openStrategy", ["default", "open-direct"], options.openStrategy, "default"),
      fallback: yield* oneOf("fallback", ["truncate", "zero-fill"], options.fallback, "truncate")
    }
  })

/** `Config.unwrap` throws on an option that is there and undefined, which callers without exact optional properties can pass. */
export const unwrapOptions = (
  config: Config.Config.Wrap<DiskStorageOptions>
): Effect.Effect<DiskStorageOptions, ConfigError.ConfigError> => {
  if (Config.isConfig(config)) return config
  const { size, ...rest } = config
  const optional: Types.Mutable<typeof rest> = rest
  for (const key of ["directory", "directIo", "openStrategy", "fallback", "prewrite", "earlyUnlink"] as const) {
    if (optional[key] === undefined) delete optional[key]
  }
  return Config.unwrap<DiskStorageOptions>({ size, ...optional })
}
