import { assert, describe, it } from "@effect/vitest"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as DiskStorage from "../src/DiskStorage.js"
import * as DiskStorageConfig from "../src/DiskStorageConfig.js"
import { layer } from "./support/simulation.js"

const load = <A>(config: Config.Config<A>, environment: Record<string, string>) =>
  Effect.withConfigProvider(config, ConfigProvider.fromJson(environment))

const rejects = <A>(config: Config.Config<A>, environment: Record<string, string>, ...words: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const error = yield* Effect.flip(load(config, environment))
    for (const word of words) assert.include(String(error), word)
  })

describe("DiskStorageConfig", () => {
  it.effect("reads the whole environment", () =>
    Effect.gen(function*() {
      const options = yield* load(DiskStorageConfig.options({ blockBytes: 4096 }), {
        DYN_KVBM_DISK_CACHE_DIR: "/mnt/a, b/",
        DYN_KVBM_DISK_ZEROFILL_FALLBACK: "Yes",
        DYN_KVBM_DISK_DISABLE_O_DIRECT: " TRUE ",
        DYN_KVBM_DISK_ALLOCATOR_TYPE: "open-direct",
        DYN_KVBM_DISK_CACHE_GB: "0.5",
        DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS: "0"
      })
      const expected: DiskStorage.DiskStorageOptions = {
        size: 500_000_000,
        directory: "/mnt/a, b/",
        directIo: "disabled",
        openStrategy: "open-direct",
        fallback: "zero-fill"
      }
      assert.deepStrictEqual(options, expected)
    }))

  it.effect("takes unset and empty alike", () =>
    Effect.gen(function*() {
      const expected: DiskStorage.DiskStorageOptions = {
        size: 1_000_000_000,
        directory: "/tmp/",
        directIo: "required",
        openStrategy: "default",
        fallback: "truncate"
      }
      assert.deepStrictEqual(yield* load(DiskStorageConfig.options(), { DYN_KVBM_DISK_CACHE_GB: "1" }), expected)
      assert.deepStrictEqual(
        yield* load(DiskStorageConfig.options(), {
          DYN_KVBM_DISK_CACHE_DIR: "",
          DYN_KVBM_DISK_ZEROFILL_FALLBACK: "",
          DYN_KVBM_DISK_DISABLE_O_DIRECT: "",
          DYN_KVBM_DISK_ALLOCATOR_TYPE: "",
          DYN_KVBM_DISK_CACHE_GB: "1",
          DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS: ""
        }),
        expected
      )
    }))

  it.effect("prefers a number of blocks to gigabytes, and both to the program's own size", () =>
    Effect.gen(function*() {
      const config = DiskStorageConfig.options({ blockBytes: 10_000, size: 7 })
      const size = (environment: Record<string, string>) => Effect.map(load(config, environment), ({ size }) => size)
      const blocks = { DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS: "12" }
      assert.strictEqual(yield* size({ ...blocks, DYN_KVBM_DISK_CACHE_GB: "3" }), 120_000)
      assert.strictEqual(yield* size({ DYN_KVBM_DISK_CACHE_GB: "3" }), 3_000_000_000)
      assert.strictEqual(yield* size({}), 7)
    }))

  it.effect("names the variable when no size is given, and only data is missing", () =>
    Effect.gen(function*() {
      yield* rejects(DiskStorageConfig.options(), {}, "DYN_KVBM_DISK_CACHE_GB", "gigabytes")
      const fallback = Config.withDefault(DiskStorageConfig.options(), "none")
      assert.strictEqual(yield* load(fallback, {}), "none")
    }))

  it.effect("names the variable when blocks come without the size of one, or are too many", () =>
    Effect.gen(function*() {
      const name = "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS"
      yield* rejects(DiskStorageConfig.options(), { [name]: "3" }, name, "blockBytes")
      yield* rejects(DiskStorageConfig.options({ blockBytes: 2 ** 40 }), { [name]: "9999999" }, name, "exceed")
    }))

  const bad: ReadonlyArray<readonly [string, Config.Config<unknown>, ReadonlyArray<string>, string]> = [
    ["DYN_KVBM_DISK_ZEROFILL_FALLBACK", DiskStorageConfig.zeroFillFallback, ["maybe", "2", "truee"], "true"],
    ["DYN_KVBM_DISK_DISABLE_O_DIRECT", DiskStorageConfig.disableDirectIo, ["maybe", "-1", "o n"], "off"],
    ["DYN_KVBM_DISK_ALLOCATOR_TYPE", DiskStorageConfig.openStrategy, ["direct", "open_direct"], "open-direct"],
    [
      "DYN_KVBM_DISK_CACHE_GB",
      DiskStorageConfig.cacheBytes,
      [
        "0",
        "-1",
        "NaN",
        "x",
        "1e30",
        "Infinity",
        "1e-30",
        "0x10",
        "0b11",
        "1e2",
        "+5",
        "5GB",
        "5 GB",
        "5GiB",
        "1_000",
        "1,5",
        "1,000",
        "5.",
        ".5",
        "1.5.2",
        "١٢",
        "２０"
      ],
      "gigabytes"
    ],
    ["DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", DiskStorageConfig.numBlocks, [
      "-1",
      "1.5",
      "ten",
      "1e3",
      "0x10",
      "+5",
      "1_000",
      "２０",
      "99999999999999999999"
    ], "whole"],
    ["DISK_STORAGE_IO_ENGINE", DiskStorageConfig.ioEngine, ["uring", "fast"], "io_uring"]
  ]
  for (const [name, config, values, accepted] of bad) {
    for (const value of values) {
      it.effect(`rejects ${name}=${value}, naming the variable, the value and what it accepts`, () =>
        rejects(config, { [name]: value }, name, `'${value}'`, accepted))
      it.effect(`rejects it within a default, too: ${name}=${value}`, () =>
        rejects(DiskStorageConfig.options({ blockBytes: 1, size: 1 }).pipe(Config.zip(DiskStorageConfig.ioEngine)), {
          [name]: value
        }, name))
    }
  }

  it.effect("takes sizes with space around them", () =>
    Effect.gen(function*() {
      const name = "DYN_KVBM_DISK_CACHE_GB"
      for (const [text, bytes] of [[" 5 ", 5e9], ["\t0.5\n", 5e8], ["007", 7e9]] as const) {
        assert.strictEqual(yield* load(DiskStorageConfig.cacheBytes, { [name]: text }), bytes)
      }
      assert.deepStrictEqual(
        yield* load(DiskStorageConfig.numBlocks, { DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS: " 12\n" }),
        Option.some(12)
      )
    }))

  const paths: Record<string, Config.Config<unknown>> = {
    DYN_KVBM_DISK_CACHE_DIR: DiskStorageConfig.directory,
    DISK_STORAGE_REQUIRE_MOUNT: DiskStorageConfig.requireMount,
    DISK_STORAGE_CUFILE_LIBRARY: DiskStorageConfig.cuFileLibrary,
    DISK_STORAGE_CUDA_LIBRARY: DiskStorageConfig.cudaLibrary,
    DISK_STORAGE_NIXL_LIBRARY: DiskStorageConfig.nixlLibrary
  }
  const notMeant: ReadonlyArray<readonly [string, string]> = [
    ["\"/mnt/nvme\"", "=/mnt/nvme"],
    ["'/mnt/nvme'", "=/mnt/nvme"],
    [" '\"/mnt/nvme\"' ", "=/mnt/nvme"],
    ["“/mnt/nvme”", "=/mnt/nvme"],
    ["\"/mnt/nvme", "quotation"],
    ["/mnt/nvme'", "quotation"],
    ["~", "home directory"],
    ["~/.cache/kv", "home directory"],
    ["~user/kv", "home directory"],
    ["$(NODE_CACHE)/kv", "reference to a variable"],
    ["/mnt/$(hostname)", "reference to a variable"],
    ["${NODE_CACHE}/kv", "reference to a variable"],
    ["/mnt/${NODE_CACHE:-nvme}/kv", "reference to a variable"],
    ["$HOME/kv", "reference to a variable"],
    ["/mnt/$disk", "reference to a variable"],
    ["%TEMP%/kv", "%NAME%"],
    ["/mnt/`hostname`/kv", "backquote"],
    ["{{ .Values.cache }}", "template"],
    ["/mnt/{{ item }}/kv", "template"],
    ["{% cache %}", "template"],
    ["<no value>", "placeholder"],
    ["/mnt/<your disk>", "placeholder"],
    ["C:\\cache", "drive letter"],
    ["C:/cache", "drive letter"],
    ["\\\\server\\share", "backslash"],
    ["/mnt/my\\ disk", "backslash"],
    ["file:///mnt/nvme", "URL"],
    ["file:/mnt/nvme", "URL"],
    ["s3://bucket/kv", "URL"],
    ["/mnt/a:/mnt/b", "several paths"],
    ["/mnt/a,/mnt/b", "several paths"],
    ["nas:/export/kv", "another host"],
    ["DYN_KVBM_DISK_CACHE_DIR=/mnt/nvme", "name of a variable"],
    ["=/mnt/nvme", "begins with ="],
    ["--directory", "options"],
    ["/mnt/nvme # the fast one", "comment"],
    ["# /mnt/nvme", "comment"],
    ["/mnt/nvme*", "pattern"],
    ["/mnt/a\n/mnt/b", "\\u{a}"],
    ["/mnt/\u001b[31m", "\\u{1b}"],
    ["/mnt/\u007f", "\\u{7f}"],
    ["/mnt/\u0085", "\\u{85}"],
    ["/mnt/\u200bnvme", "\\u{200b}"],
    ["/mnt/\u202envme", "\\u{202e}"],
    ["/mnt/\u2028nvme", "\\u{2028}"],
    ["/mnt/\ud800", "\\u{d800}"],
    ["/mnt/\0", "\\u{0}"],
    ["/mnt/caf\ufffd", "UTF-8"],
    ["undefined", "no value"],
    ["null", "no value"],
    ["[object Object]", "no value"],
    ["true", "yes or no"],
    ["0", "yes or no"]
  ]
  for (const [name, config] of Object.entries(paths)) {
    it.effect.each(notMeant)(
      `refuses ${name}=%s, which nobody means`,
      ([value, word]) => rejects(config, { [name]: value }, name, word)
    )
  }

  it.effect.each([
    "/mnt/nvme",
    "/mnt/my disk/kv",
    "/mnt/price$",
    "/mnt/$5/c$/kv",
    "/mnt/a, b",
    "/mnt/it's",
    "/mnt/a:b",
    "/mnt/#1",
    "/mnt/c#",
    "/mnt/100%",
    "/mnt/50%/%x",
    "/mnt/{a}",
    "/mnt/a=b",
    "/mnt/-x",
    "/mnt/~x",
    "./~x",
    "./true",
    "/mnt/null",
    "/mnt/undefined/kv",
    "/mnt/日本語/café",
    "/mnt/می\u200cخواهم",
    "..",
    "cache/kv"
  ])("takes %s as it is", (value) =>
    Effect.gen(function*() {
      for (const text of [value, `  ${value}\n`]) {
        assert.strictEqual(yield* load(DiskStorageConfig.directory, { DYN_KVBM_DISK_CACHE_DIR: text }), value)
      }
    }))

  const all: ReadonlyArray<readonly [string, Config.Config<unknown>, string, unknown]> = [
    ["DYN_KVBM_DISK_ZEROFILL_FALLBACK", DiskStorageConfig.zeroFillFallback, "true", true],
    ["DYN_KVBM_DISK_DISABLE_O_DIRECT", DiskStorageConfig.disableDirectIo, "true", true],
    ["DISK_STORAGE_TRUST_DIRECTORY", DiskStorageConfig.trustDirectory, "true", true],
    ["DYN_KVBM_DISK_ALLOCATOR_TYPE", DiskStorageConfig.openStrategy, "open-direct", "open-direct"],
    ["DYN_KVBM_DISK_CACHE_GB", DiskStorageConfig.cacheBytes, "20", 20e9],
    ["DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", DiskStorageConfig.numBlocks, "20", Option.some(20)],
    ["DISK_STORAGE_IO_ENGINE", DiskStorageConfig.ioEngine, "aio", "aio"],
    ["DISK_STORAGE_REQUIRE_MOUNT", DiskStorageConfig.requireMount, "/mnt", Option.some("/mnt")]
  ]
  for (const [name, config, value, expected] of all) {
    it.effect(`trims ${name}, and refuses its value in quotation marks`, () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* load(config, { [name]: ` ${value}\r\n` }), expected)
        for (const mark of ["\"", "'"]) {
          yield* rejects(config, { [name]: `${mark}${value}${mark}` }, name, `write ${name}=${value}`)
        }
      }))
    it.effect(`takes ${name} of nothing but space as unset`, () =>
      Effect.gen(function*() {
        const [space, unset] = [
          yield* Effect.exit(load(config, { [name]: " \t" })),
          yield* Effect.exit(load(config, {}))
        ]
        assert.strictEqual(space._tag, unset._tag)
        if (space._tag === "Success" && unset._tag === "Success") assert.deepStrictEqual(space.value, unset.value)
      }))
  }

  it.effect("hands the mount that is required to the storage", () =>
    Effect.gen(function*() {
      const options = yield* load(DiskStorageConfig.options({ size: 1 }), { DISK_STORAGE_REQUIRE_MOUNT: "/mnt/nvme" })
      assert.strictEqual(options.requireMount, "/mnt/nvme")
    }))

  it.effect.each(["1", "true", "on", "yes", "TRUE", " On "])("switches on for %s", (value) =>
    Effect.gen(function*() {
      assert.isTrue(yield* load(DiskStorageConfig.disableDirectIo, { DYN_KVBM_DISK_DISABLE_O_DIRECT: value }))
    }))

  it.effect.each(["0", "false", "off", "no", "FALSE", " No ", ""])(
    "switches off for %s",
    (value) =>
      Effect.gen(function*() {
        assert.isFalse(yield* load(DiskStorageConfig.disableDirectIo, { DYN_KVBM_DISK_DISABLE_O_DIRECT: value }))
      })
  )

  it.effect("reads single variables", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* load(DiskStorageConfig.numBlocks, {}), Option.none())
      assert.strictEqual(yield* load(DiskStorageConfig.ioEngine, {}), "auto")
      assert.strictEqual(yield* load(DiskStorageConfig.ioEngine, { DISK_STORAGE_IO_ENGINE: "IO_URING" }), "io_uring")
      assert.strictEqual(yield* load(DiskStorageConfig.directory, {}), "/tmp/")
      assert.strictEqual(yield* load(DiskStorageConfig.openStrategy, {}), "default")
    }))
})

describe("layerConfig", () => {
  it.effect("makes a storage of the environment", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.DiskStorage
      assert.strictEqual(storage.size, 64_000_000)
      assert.isTrue(storage.path.startsWith("/tmp/dynamo-kvbm-disk-cache-eds-"))
    }).pipe(
      Effect.provide(DiskStorage.layerConfig(DiskStorageConfig.options())),
      Effect.provide(layer()),
      Effect.withConfigProvider(ConfigProvider.fromJson({ DYN_KVBM_DISK_CACHE_GB: "0.064" }))
    ))

  it.effect("takes a record of configs", () =>
    Effect.gen(function*() {
      assert.strictEqual((yield* DiskStorage.DiskStorage).size, 4096)
    }).pipe(
      Effect.provide(DiskStorage.layerConfig({ size: Config.integer("SIZE"), directory: Config.succeed("/tmp") })),
      Effect.provide(layer()),
      Effect.withConfigProvider(ConfigProvider.fromJson({ SIZE: "4096" }))
    ))

  it.effect("takes options that are there and undefined, as callers without exact optional properties write them", () =>
    Effect.gen(function*() {
      const written: { size: Config.Config<number>; directory?: Config.Config<string> } = { size: Config.succeed(4096) }
      Object.defineProperty(written, "directory", { value: undefined, enumerable: true, configurable: true })
      const { size } = yield* Effect.provide(DiskStorage.DiskStorage, DiskStorage.layerConfig(written))
      assert.strictEqual(size, 4096)
    }).pipe(Effect.provide(layer())))

  it.effect("fails with the ConfigError", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        Effect.provide(DiskStorage.DiskStorage, DiskStorage.layerConfig(DiskStorageConfig.options()))
      )
      assert.include(String(error), "DYN_KVBM_DISK_CACHE_GB")
    }).pipe(Effect.provide(layer()), Effect.withConfigProvider(ConfigProvider.fromJson({}))))
})
