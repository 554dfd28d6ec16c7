/**
 * The environment variables that the disk tier reads, as `Config`s. A bad value is a `ConfigError` that names the variable and
 * what it accepts; an empty one counts as unset.
 *
 * Space around a value is dropped. A value that begins or ends with a quotation mark is refused: files
 * of the form `NAME=value` keep the marks, and a directory of that name is never meant.
 *
 * Paths are refused where nobody can mean them. These are: a leading `~`, `-` or `=`; references to
 * variables (`$NAME`, `${NAME}`, `$(NAME)`, `%NAME%`); backquotes; `{{…}}` and `<…>` of templates;
 * backslashes and drive letters; URLs; several paths (`/a:/b`, `/a,/b`) and paths of other hosts
 * (`nas:/a`); `*`; a comment (`#` after a space); control and invisible characters; the words of
 * programs for no value, yes and no. A space, a comma, and a `$` before a digit, a `/` or the end are
 * part of a name. Options in code take every path without NUL and without lone surrogates.
 *
 * Numbers are decimal digits, with a point where a fraction is taken: `20`, `0.5`. Signs, exponents,
 * separators, units and hexadecimal numbers are refused.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as ConfigError from "effect/ConfigError"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type { DiskStorageOptions } from "./DiskStorage.js"
import { defaultDirectory, maxSize } from "./internal/options.js"
import { isQuoted, notMeant, printableText, unquoted } from "./internal/pathText.js"

/** Why a value is refused, and what to write instead. */
type Refused = string

/**
 * `Config.nested` of a primitive puts the variable's name into the error; an empty value is missing. `parse` gets the value without
 * the space around it, and without quotation marks.
 */
const variable = <A>(
  name: string,
  expected: string,
  parse: (text: string) => Either.Either<A, Refused>
): Config.Config<A> =>
  Config.nested(
    Config.primitive(expected, (value) => {
      const text = value.trim()
      if (text === "") return Either.left(ConfigError.MissingData([], `set it to ${expected}`))
      const shown = printableText(text)
      const invalid = (why: string) => ConfigError.InvalidData([], `'${shown}' is not accepted: ${why}`)
      if (isQuoted(text)) {
        const marks = "its quotation marks are part of the value"
        return Either.left(invalid(`${marks}: write ${name}=${printableText(unquoted(text))} (it takes ${expected})`))
      }
      return Either.mapLeft(parse(text), invalid)
    }),
    name
  )

/** One that takes what `find` finds something for. */
const variableOf = <A>(name: string, expected: string, find: (text: string) => Option.Option<A>): Config.Config<A> =>
  variable(name, expected, (text) => Either.fromOption(find(text), () => `it takes ${expected}`))

/** A path that somebody can mean, as it is written. */
const path = (name: string, expected: string): Config.Config<string> =>
  variable(name, expected, (text) => {
    const why = notMeant(text)
    return why === undefined ? Either.right(text) : Either.left(why)
  })

const oneOf = <const A extends string>(name: string, ...values: ReadonlyArray<A>): Config.Config<A> =>
  variableOf(
    name,
    values.join(", "),
    (text) => Option.fromNullable(values.find((value) => value === text.toLowerCase()))
  )

const on: ReadonlyArray<string> = ["1", "true", "on", "yes"]
const off: ReadonlyArray<string> = ["0", "false", "off", "no"]

const boolean = (name: string): Config.Config<boolean> =>
  Config.withDefault(
    variableOf(name, `one of ${on.join(", ")} or ${off.join(", ")}`, (text) => {
      const word = text.toLowerCase()
      return on.includes(word) ? Option.some(true) : off.includes(word) ? Option.some(false) : Option.none()
    }),
    false
  )

/**
 * `DYN_KVBM_DISK_CACHE_DIR`: the directory of the temp file; `/tmp/` when unset. A storage resolves a relative path against the
 * working directory, and logs a warning with the result, once.
 *
 * @since 0.1.0
 * @category configs
 */
export const directory: Config.Config<string> = Config.withDefault(
  path("DYN_KVBM_DISK_CACHE_DIR", "a path"),
  defaultDirectory
)

/**
 * `DISK_STORAGE_REQUIRE_MOUNT`: the path of a mount point, without which no storage is made; see `requireMount` of
 * `DiskStorageOptions`.
 *
 * @since 0.1.0
 * @category configs
 */
export const requireMount: Config.Config<Option.Option<string>> = Config.option(
  path("DISK_STORAGE_REQUIRE_MOUNT", "the path of a mount point, such as /mnt/nvme")
)

/**
 * `DYN_KVBM_DISK_ZEROFILL_FALLBACK`: whether to zero-fill, rather than truncate, where fallocate is not supported.
 *
 * @since 0.1.0
 * @category configs
 */
export const zeroFillFallback: Config.Config<boolean> = boolean("DYN_KVBM_DISK_ZEROFILL_FALLBACK")

/**
 * `DYN_KVBM_DISK_DISABLE_O_DIRECT`: whether I/O is to be buffered.
 *
 * @since 0.1.0
 * @category configs
 */
export const disableDirectIo: Config.Config<boolean> = boolean("DYN_KVBM_DISK_DISABLE_O_DIRECT")

/**
 * `DYN_KVBM_DISK_ALLOCATOR_TYPE`: `default` sets O_DIRECT after open, `open-direct` at open.
 *
 * @since 0.1.0
 * @category configs
 */
export const openStrategy: Config.Config<"default" | "open-direct"> = Config.withDefault(
  oneOf("DYN_KVBM_DISK_ALLOCATOR_TYPE", "default", "open-direct"),
  "default"
)

const isDecimal = (text: string) => /^[0-9]+(?:\.[0-9]+)?$/.test(text)
const isWhole = (text: string) => /^[0-9]+$/.test(text)

/**
 * `DYN_KVBM_DISK_CACHE_GB`: the size, in decimal gigabytes (10⁹ bytes, may be fractional), as bytes. It takes digits, and a point with
 * more digits: `20`, `0.5`.
 *
 * @since 0.1.0
 * @category configs
 */
export const cacheBytes: Config.Config<number> = variableOf(
  "DYN_KVBM_DISK_CACHE_GB",
  "a number of gigabytes above 0 in decimal digits and without a unit, such as 20 or 0.5",
  (text) => {
    const bytes = isDecimal(text) ? Math.round(Number(text) * 1e9) : NaN
    return bytes > 0 && bytes <= maxSize ? Option.some(bytes) : Option.none()
  }
)

/**
 * `DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS`: the size as a number of blocks; 0 is as good as unset.
 *
 * @since 0.1.0
 * @category configs
 */
export const numBlocks: Config.Config<Option.Option<number>> = Config.withDefault(
  variableOf(
    "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS",
    "a whole number of blocks, 0 or above",
    (text) => isWhole(text) && Number.isSafeInteger(Number(text)) ? Option.some(Number(text)) : Option.none()
  ),
  0
).pipe(Config.map((blocks) => blocks > 0 ? Option.some(blocks) : Option.none()))

/**
 * `DISK_STORAGE_IO_ENGINE`: which engine moves the bytes; `auto` when unset.
 *
 * @since 0.1.0
 * @category configs
 */
export const ioEngine: Config.Config<"auto" | "io_uring" | "aio" | "node"> = Config.withDefault(
  oneOf("DISK_STORAGE_IO_ENGINE", "auto", "io_uring", "aio", "node"),
  "auto"
)

/**
 * `DISK_STORAGE_CUFILE_LIBRARY`: path or soname of cuFile; `libcufile.so.0` when unset.
 *
 * @since 0.1.0
 * @category configs
 */
export const cuFileLibrary: Config.Config<string> = Config.withDefault(
  path("DISK_STORAGE_CUFILE_LIBRARY", "the path of a library"),
  "libcufile.so.0"
)

/**
 * `DISK_STORAGE_TRUST_DIRECTORY`: whether to use the directory whoever else may write to it.
 *
 * @since 0.1.0
 * @category configs
 */
export const trustDirectory: Config.Config<boolean> = boolean("DISK_STORAGE_TRUST_DIRECTORY")

/**
 * `DISK_STORAGE_CUDA_LIBRARY`: path or soname of the CUDA driver library; `libcuda.so.1` when unset.
 *
 * @since 0.1.0
 * @category configs
 */
export const cudaLibrary: Config.Config<string> = Config.withDefault(
  path("DISK_STORAGE_CUDA_LIBRARY", "the path of a library"),
  "libcuda.so.1"
)

/**
 * `DISK_STORAGE_NIXL_LIBRARY`: path or soname of the library of NIXL's C API; `libnixl_capi.so` when unset.
 *
 * @since 0.1.0
 * @category configs
 */
export const nixlLibrary: Config.Config<string> = Config.withDefault(
  path("DISK_STORAGE_NIXL_LIBRARY", "the path of a library"),
  "libnixl_capi.so"
)

/**
 * The options of a storage from all of these variables. The size is `DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS` × `blockBytes`
 * when that number is set and above 0, else `DYN_KVBM_DISK_CACHE_GB`, else `size` (bytes); with none of them it is a
 * `ConfigError`, as is a number of blocks without `blockBytes`.
 *
 * @example
 * ```ts
 * import { DiskStorage, DiskStorageConfig } from "effect-disk-storage"
 *
 * const StorageLayer = DiskStorage.layerConfig(DiskStorageConfig.options({ blockBytes: 2 * 1024 * 1024 }))
 * ```
 *
 * @since 0.1.0
 * @category configs
 */
export const options = (
  fallback: { readonly blockBytes?: number | undefined; readonly size?: number | undefined } = {}
): Config.Config<DiskStorageOptions> =>
  Config.all({
    blocks: numBlocks,
    bytes: Config.option(cacheBytes),
    directory,
    disableDirectIo,
    openStrategy,
    requireMount,
    trustDirectory,
    zeroFillFallback
  }).pipe(
    Config.mapOrFail(({ blocks, bytes, directory, disableDirectIo, openStrategy, requireMount, ...rest }) =>
      Either.map(sizeOf(blocks, bytes, fallback), (size): DiskStorageOptions => ({
        size,
        directory,
        directIo: disableDirectIo ? "disabled" : "required",
        openStrategy,
        fallback: rest.zeroFillFallback ? "zero-fill" : "truncate",
        ...(Option.isSome(requireMount) ? { requireMount: requireMount.value } : {}),
        ...(rest.trustDirectory ? { trustDirectory: true } : {})
      }))
    )
  )

const sizeOf = (
  blocks: Option.Option<number>,
  bytes: Option.Option<number>,
  { blockBytes, size }: { readonly blockBytes?: number | undefined; readonly size?: number | undefined }
): Either.Either<number, ConfigError.ConfigError> => {
  if (Option.isSome(blocks)) {
    const name = "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS"
    if (blockBytes === undefined) {
      return Either.left(ConfigError.InvalidData(
        [name],
        "a number of blocks needs the size of one, and the program gave none: DiskStorageConfig.options({ blockBytes })"
      ))
    }
    const total = blocks.value * blockBytes
    return total <= maxSize
      ? Either.right(total)
      : Either.left(
        ConfigError.InvalidData([name], `${blocks.value} blocks of ${blockBytes} bytes exceed ${maxSize} bytes`)
      )
  }
  return Either.fromOption(
    Option.orElse(bytes, () => Option.fromNullable(size)),
    () =>
      ConfigError.MissingData(
        ["DYN_KVBM_DISK_CACHE_GB"],
        "set it to the size of the storage in gigabytes, such as 20 or 0.5"
      )
  )
}
