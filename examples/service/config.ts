/** What the variables of the environment say, but for those of the storage. */
import { DiskStorageConfig } from "effect-disk-storage"
import * as Config from "effect/Config"

/** Of the file, in bytes, where `DYN_KVBM_DISK_CACHE_GB` and `DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS` say nothing. */
export const defaultSize = 256 * 1024 * 1024

const whole = (name: string, least: number, most: number, fallback: number) =>
  Config.integer(name).pipe(
    Config.validate({
      message: `a whole number, ${least} to ${most}`,
      validation: (value) => value >= least && value <= most
    }),
    Config.withDefault(fallback)
  )

export const config = Config.all({
  host: Config.withDefault(Config.nonEmptyString("HOST"), "127.0.0.1"),
  port: whole("PORT", 0, 65_535, 8787),
  blockBytes: whole("SERVICE_BLOCK_BYTES", 1, 256 * 1024 * 1024, 1024 * 1024),
  buffers: whole("SERVICE_BUFFERS", 1, 1024, 32),
  queue: whole("SERVICE_QUEUE", 0, 100_000, 256),
  bodySeconds: whole("SERVICE_BODY_SECONDS", 1, 3600, 30),
  drainSeconds: whole("SERVICE_DRAIN_SECONDS", 0, 3600, 10),
  directory: DiskStorageConfig.directory
})
