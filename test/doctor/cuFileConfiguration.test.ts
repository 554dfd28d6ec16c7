import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import { execFileSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { readCuFileConfiguration } from "../../src/internal/directIo/cuFileConfiguration.js"
import * as FileTree from "./fileTree.js"
import { allSet, shipped } from "./fixtures/gpuConfigurations.js"

const read = (tree: FileTree.Tree, environment: ReadonlyArray<readonly [string, string]> = []) =>
  readCuFileConfiguration.pipe(
    Effect.provide(FileTree.layer(tree)),
    Effect.withConfigProvider(ConfigProvider.fromMap(new Map(environment)))
  )

const problemOf = (text: string) =>
  Effect.map(read({ "/etc/cufile.json": text }), (configuration) => configuration.problem)

it.effect("the file that NVIDIA ships, with its comments", () =>
  Effect.gen(function*() {
    assert.deepStrictEqual(yield* read({ "/etc/cufile.json": shipped }), {
      path: "/etc/cufile.json",
      problem: null,
      allowCompatMode: true,
      forceCompatMode: false,
      usePciP2pDma: false,
      blockP2pDma: { nvme: false, nvmeof: null, raid: null },
      denyList: { drivers: [], devices: [], mounts: [], filesystems: [] },
      rdmaAddresses: { all: [], of: { generic: [], lustre: [], gpfs: [], weka: [] } },
      rdmaWrites: { all: true, weka: false }
    })
  }))

it.effect("every key that counts, after a block comment", () =>
  Effect.gen(function*() {
    assert.deepStrictEqual(yield* read({ "/etc/cufile.json": allSet }), {
      path: "/etc/cufile.json",
      problem: null,
      allowCompatMode: false,
      forceCompatMode: true,
      usePciP2pDma: true,
      blockP2pDma: { nvme: true, nvmeof: false, raid: true },
      denyList: {
        drivers: ["nvme_rdma"],
        devices: ["/dev/nvme1n1"],
        mounts: ["/mnt/scratch"],
        filesystems: ["lustre"]
      },
      rdmaAddresses: { all: ["192.168.0.19"], of: { lustre: ["192.168.1.1", "192.168.1.2"], weka: [] } },
      rdmaWrites: { all: false, weka: true }
    })
  }))

it.effect("no file means the defaults, wherever it was looked for", () =>
  Effect.gen(function*() {
    for (
      const [environment, path] of [
        [[], "/etc/cufile.json"],
        [[["CUFILE_ENV_PATH_JSON", ""]], "/etc/cufile.json"],
        [[["CUFILE_ENV_PATH_JSON", "/home/me/cufile.json"]], "/home/me/cufile.json"]
      ] as const
    ) {
      const { allowCompatMode, forceCompatMode, path: found, problem, usePciP2pDma } = yield* read({}, environment)
      assert.deepStrictEqual(
        { allowCompatMode, forceCompatMode, found, problem, usePciP2pDma },
        { allowCompatMode: true, forceCompatMode: false, found: path, problem: null, usePciP2pDma: false }
      )
    }
  }))

it.effect("CUFILE_ENV_PATH_JSON names another file", () =>
  Effect.gen(function*() {
    const tree = { "/etc/cufile.json": shipped, "/home/me/mine.json": allSet }
    const mine = yield* read(tree, [["CUFILE_ENV_PATH_JSON", "/home/me/mine.json"]])
    assert.strictEqual(mine.path, "/home/me/mine.json")
    assert.isTrue(mine.forceCompatMode)
    assert.isFalse((yield* read(tree, [["CUFILE_ENV_PATH_JSON", ""]])).forceCompatMode)
  }))

it.effect("flags of the environment go before those of the file; one that cannot be read is not known", () =>
  Effect.gen(function*() {
    const configuration = yield* read({ "/etc/cufile.json": allSet }, [
      ["CUFILE_ALLOW_COMPAT_MODE", "TRUE"],
      ["CUFILE_FORCE_COMPAT_MODE", "0"],
      ["CUFILE_USE_PCIP2PDMA", "perhaps"]
    ])
    assert.isTrue(configuration.allowCompatMode)
    assert.isFalse(configuration.forceCompatMode)
    assert.isNull(configuration.usePciP2pDma)
  }))

it.effect("what is no JSON is located", () =>
  Effect.gen(function*() {
    assert.strictEqual(
      yield* problemOf("{\n  \"properties\": {\n    \"allow_compat_mode\": fals\n  }\n}"),
      "/etc/cufile.json:3:26: Unexpected identifier 'fals' found."
    )
    assert.match((yield* problemOf("")) ?? "", /^\/etc\/cufile\.json:1:1: /)
  }))

// libcufile 1.15.1 answers -22 (EINVAL) to both.
it.effect("a comma too many is a problem, as it is for libcufile", () =>
  Effect.gen(function*() {
    assert.match(
      (yield* problemOf("{ \"properties\": { \"allow_compat_mode\": true, } }")) ?? "",
      /^\/etc\/cufile\.json:1:46: /
    )
  }))

it.effect("a value of a wrong type is located, and its file says nothing else", () =>
  Effect.gen(function*() {
    const configuration = yield* read({
      "/etc/cufile.json":
        "{\n  \"properties\": {\n    \"use_pci_p2pdma\": true,\n    \"allow_compat_mode\": \"false\"\n  }\n}"
    })
    assert.match(
      configuration.problem ?? "",
      /^\/etc\/cufile\.json:4:26: properties\.allow_compat_mode: .*boolean.*"false"/
    )
    assert.isNull(configuration.allowCompatMode)
    assert.isNull(configuration.usePciP2pDma)
    assert.match(
      (yield* problemOf("{\"denylist\": {\n  \"drivers\": [\"nvme\", 1]}}")) ?? "",
      /^\/etc\/cufile\.json:2:23: denylist\.drivers\.1: /
    )
    assert.match((yield* problemOf("[]")) ?? "", /^\/etc\/cufile\.json:1:1: /)
  }))

it.effect("the last of several keys of one name counts, also for the place of its problem", () =>
  Effect.gen(function*() {
    const twice = "{\"properties\": {\"allow_compat_mode\": false},\n\"properties\": {\"use_pci_p2pdma\": true}}"
    const configuration = yield* read({ "/etc/cufile.json": twice })
    assert.isTrue(configuration.allowCompatMode)
    assert.isTrue(configuration.usePciP2pDma)
    assert.match((yield* problemOf(twice.replace("true", "1"))) ?? "", /^\/etc\/cufile\.json:2:34: /)
  }))

it.effect("a value that is null is taken, and says nothing", () =>
  Effect.gen(function*() {
    const configuration = yield* read({ "/etc/cufile.json": "{\"properties\": {\"allow_compat_mode\": null}}" })
    assert.isNull(configuration.problem)
    assert.isNull(configuration.allowCompatMode)
    assert.isFalse(configuration.forceCompatMode)
  }))

it.effect("a file that may not be read is a problem", () =>
  Effect.gen(function*() {
    const configuration = yield* read({ "/etc/cufile.json": { refused: "PermissionDenied" } })
    assert.match(configuration.problem ?? "", /^\/etc\/cufile\.json cannot be read: .*PermissionDenied/)
    assert.isNull(configuration.allowCompatMode)
  }))

it.effect("a file of more than 1 MiB is not read, up to that it is", () =>
  Effect.gen(function*() {
    const filled = (bytes: number) => `{${" ".repeat(bytes - 2)}}`
    assert.isNull(yield* problemOf(filled(2 ** 20)))
    assert.match((yield* problemOf(filled(2 ** 20 + 1))) ?? "", /is not read: it has 1048577 bytes; put a regular file/)
    // Bytes count, not characters.
    assert.match((yield* problemOf(`{ // ${"é".repeat(2 ** 19)}\n}`)) ?? "", /is not read/)
  }))

it.live("what is no regular file is not read: a FIFO, a device, a directory", () =>
  Effect.scoped(Effect.gen(function*() {
    const directory = yield* Effect.acquireRelease(
      Effect.sync(() => mkdtempSync(join(tmpdir(), "cufile-test-"))),
      (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
    )
    const fifo = join(directory, "fifo")
    execFileSync("mkfifo", [fifo])
    const cases = [[fifo, "FIFO"], ["/dev/zero", "CharacterDevice"], [directory, "Directory"]] as const
    for (const [path, type] of cases) {
      const configuration = yield* readCuFileConfiguration.pipe(
        Effect.provide(NodeFileSystem.layer),
        Effect.withConfigProvider(ConfigProvider.fromMap(new Map([["CUFILE_ENV_PATH_JSON", path]]))),
        Effect.timeout("10 seconds")
      )
      assert.strictEqual(
        configuration.problem,
        `${path} is not read: it is no regular file (${type}); ` +
          "put a regular file of at most 1 MiB there, or let CUFILE_ENV_PATH_JSON name one"
      )
      assert.isNull(configuration.allowCompatMode)
    }
  })))

it.effect("what is nested deeper than the stack is a problem", () =>
  Effect.gen(function*() {
    for (const levels of [3000, 200_000]) {
      const nested = "[".repeat(levels) + "]".repeat(levels)
      // As the document, where nothing looks at it, and where something of another type is wanted.
      for (const text of [nested, `{"other": ${nested}}`, `{"properties": {"allow_compat_mode": ${nested}}}`]) {
        assert.match((yield* problemOf(text)) ?? "", /^\/etc\/cufile\.json: it is nested too deeply/)
      }
    }
  }))
