/** The service's own variables of the environment, and the cache directory, which the storage reads, too. */
import { DiskStorageConfig } from "effect-disk-storage"
import * as Config from "effect/Config"
import * as ConfigError from "effect/ConfigError"
import * as Either from "effect/Either"
import { isIPv6 } from "node:net"

/** Bytes of the file, where `DYN_KVBM_DISK_CACHE_GB` and `DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS` are unset. */
export const defaultSize = 256 * 1024 * 1024

/** A trimmed value; an empty one counts as unset. `Config.nested` puts the variable's name into the error. */
const variable = <A>(
  name: string,
  expected: string,
  fallback: A,
  parse: (text: string) => Either.Either<A, string>
): Config.Config<A> =>
  Config.nested(
    Config.primitive(expected, (raw) => {
      const text = raw.trim()
      if (text === "") return Either.left(ConfigError.MissingData([], `set it to ${expected}`))
      const parsed = /["'`]/.test(text)
        ? Either.left("the quotes are part of the value; write it without them")
        : parse(text)
      return Either.mapLeft(
        parsed,
        (reason) => ConfigError.InvalidData([], `${raw} is not accepted: ${reason}. Set it to ${expected}`)
      )
    }),
    name
  ).pipe(Config.withDefault(fallback))

const whole = (name: string, least: number, most: number, fallback: number) =>
  variable(name, `a whole number from ${least} to ${most}`, fallback, (text) => {
    // Kubernetes sets such a value in every container of a namespace that has a Service of the name.
    if (text.startsWith("tcp://")) {
      return Either.left("Kubernetes made it for a Service of that name; `enableServiceLinks: false` prevents it")
    }
    // Decimal digits only: `Number` also takes 0x10 and 1e3.
    const value = /^\d+$/.test(text) ? Number(text) : NaN
    return value >= least && value <= most ? Either.right(value) : Either.left("it is none")
  })

/** An IPv6 address may stand in brackets, as in a URL. */
const host = variable("SERVICE_HOST", "an IP address or a host name, such as 127.0.0.1 or ::1", "127.0.0.1", (text) => {
  const bare = text.replace(/^\[(.*)\]$/, "$1")
  if (isIPv6(bare)) return Either.right(bare)
  if (/^[^/]*:\d+$/.test(text)) return Either.left("the port belongs into SERVICE_PORT")
  return /^[\w.-]+$/.test(text) ? Either.right(text) : Either.left("it is neither")
})

export const config = Config.all({
  host,
  port: whole("SERVICE_PORT", 0, 65_535, 8787),
  blockBytes: whole("SERVICE_BLOCK_BYTES", 1, 256 * 1024 * 1024, 1024 * 1024),
  buffers: whole("SERVICE_BUFFERS", 1, 1024, 32),
  queue: whole("SERVICE_QUEUE", 0, 100_000, 256),
  bodySeconds: whole("SERVICE_BODY_SECONDS", 1, 3600, 30),
  drainSeconds: whole("SERVICE_DRAIN_SECONDS", 0, 3600, 10),
  directory: DiskStorageConfig.directory
})

/** One line for a person. The `message` alone of a `ConfigError` lacks the variable. */
export const explained = (error: unknown): string =>
  !ConfigError.isConfigError(error) && typeof error === "object" && error !== null && "message" in error
    ? String(error.message)
    : String(error)
