/**
 * The environment variables that the disk tier reads, as `Config`s. A bad value is a `ConfigError` that names the variable and
 * what it accepts; an empty one counts as unset.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as ConfigError from "effect/ConfigError"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type { DiskStorageOptions } from "./DiskStorage.js"
import { defaultDirectory, maxSize } from "./internal/options.js"

/** `Config.nested` of a primitive puts the variable's name into the error; an empty value is missing. */
const variable = <A>(name: string, expected: string, parse: (text: string) => Option.Option<A>): Config.Config<A> =>
  Config.nested(
    Config.primitive(expected, (text) =>
      text === ""
        ? Either.left(ConfigError.MissingData([], `set it to ${expected}`))
        : Either.fromOption(parse(text), () =>
          ConfigError.InvalidData([], `'${text}' is not accepted: it takes ${expected}`))),
    name
  )

const oneOf = <const A extends string>(name: string, ...values: ReadonlyArray<A>): Config.Config<A> =>
  variable(
    name,
    values.join(", "),
    (text) => Option.fromNullable(values.find((value) => value === text.trim().toLowerCase()))
  )

const on: ReadonlyArray<string> = ["1", "true", "on", "yes"]
const off: ReadonlyArray<string> = ["0", "false", "off", "no"]

const boolean = (name: string): Config.Config<boolean> =>
  Config.withDefault(
    variable(name, `one of ${on.join(", ")} or ${off.join(", ")}`, (text) => {
      const word = text.trim().toLowerCase()
      return on.includes(word) ? Option.some(true) : off.includes(word) ? Option.some(false) : Option.none()
    }),
    false
  )

/**
 * `DYN_KVBM_DISK_CACHE_DIR`: the directory of the temp file; `/tmp/` when unset.
 *
 * @since 0.1.0
 * @category configs
 */
export const directory: Config.Config<string> = Config.withDefault(
  variable("DYN_KVBM_DISK_CACHE_DIR", "a path", Option.some),
  defaultDirectory
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

/**
 * `DYN_KVBM_DISK_CACHE_GB`: the size, in decimal gigabytes (10⁹ bytes, may be fractional), as bytes.
 *
 * @since 0.1.0
 * @category configs
 */
export const cacheBytes: Config.Config<number> = variable(
  "DYN_KVBM_DISK_CACHE_GB",
  "a number of gigabytes above 0, such as 20 or 0.5",
  (text) => {
    const bytes = text.trim() === "" ? NaN : Math.round(Number(text) * 1e9)
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
  variable(
    "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS",
    "a whole number of blocks, 0 or above",
    (text) => /^\s*\d+\s*$/.test(text) && Number.isSafeInteger(Number(text)) ? Option.some(Number(text)) : Option.none()
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
  variable("DISK_STORAGE_CUFILE_LIBRARY", "the path of a library", Option.some),
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
  variable("DISK_STORAGE_CUDA_LIBRARY", "the path of a library", Option.some),
  "libcuda.so.1"
)

/**
 * `DISK_STORAGE_NIXL_LIBRARY`: path or soname of the library of NIXL's C API; `libnixl_capi.so` when unset.
 *
 * @since 0.1.0
 * @category configs
 */
export const nixlLibrary: Config.Config<string> = Config.withDefault(
  variable("DISK_STORAGE_NIXL_LIBRARY", "the path of a library", Option.some),
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
    trustDirectory,
    zeroFillFallback
  }).pipe(
    Config.mapOrFail(({ blocks, bytes, directory, disableDirectIo, openStrategy, trustDirectory, zeroFillFallback }) =>
      Either.map(sizeOf(blocks, bytes, fallback), (size): DiskStorageOptions => ({
        size,
        directory,
        directIo: disableDirectIo ? "disabled" : "required",
        openStrategy,
        fallback: zeroFillFallback ? "zero-fill" : "truncate",
        ...(trustDirectory ? { trustDirectory } : {})
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
