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
import { allSet, measured, measuredTexts, named, shipped } from "./fixtures/gpuConfigurations.js"

const read = (tree: FileTree.Tree, environment: ReadonlyArray<readonly [string, string]> = []) =>
  readCuFileConfiguration.pipe(
    Effect.provide(FileTree.layer(tree)),
    Effect.withConfigProvider(ConfigProvider.fromMap(new Map(environment)))
  )

const problemOf = (text: string) =>
  Effect.map(read({ "/etc/cufile.json": text }), (configuration) => configuration.problem)

const doubtOf = (text: string) => Effect.map(read({ "/etc/cufile.json": text }), (configuration) => configuration.doubt)

it.effect("the file that NVIDIA ships, with its comments", () =>
  Effect.gen(function*() {
    assert.deepStrictEqual(yield* read({ "/etc/cufile.json": shipped }), {
      path: "/etc/cufile.json",
      problem: null,
      doubt: null,
      endsProcess: false,
      allowCompatMode: true,
      forceCompatMode: false,
      usePciP2pDma: false,
      blockP2pDma: { nvme: false, nvmeof: null, raid: null },
      denyList: { drivers: [], devices: [], mounts: [], filesystems: [] },
      rdmaAddresses: { all: [], of: { lustre: [], nfs: [], gpfs: [], weka: [], beegfs: [], scatefs: [] } },
      rdmaWrites: { all: true, weka: false }
    })
  }))

it.effect("every key that counts, after a block comment", () =>
  Effect.gen(function*() {
    assert.deepStrictEqual(yield* read({ ...named, "/etc/cufile.json": allSet }), {
      path: "/etc/cufile.json",
      problem: null,
      doubt: null,
      endsProcess: false,
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
      rdmaAddresses: {
        all: ["192.168.0.19"],
        of: { lustre: ["192.168.1.1", "192.168.1.2"], nfs: [], gpfs: [], weka: [], beegfs: [], scatefs: [] }
      },
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
    const tree = { ...named, "/etc/cufile.json": shipped, "/home/me/mine.json": allSet }
    const mine = yield* read(tree, [["CUFILE_ENV_PATH_JSON", "/home/me/mine.json"]])
    assert.strictEqual(mine.path, "/home/me/mine.json")
    assert.isTrue(mine.forceCompatMode)
    assert.isFalse((yield* read(tree, [["CUFILE_ENV_PATH_JSON", ""]])).forceCompatMode)
  }))

it.effect("flags of the environment go before those of the file; one that cannot be read is not known", () =>
  Effect.gen(function*() {
    const configuration = yield* read({ ...named, "/etc/cufile.json": allSet }, [
      ["CUFILE_ALLOW_COMPAT_MODE", "TRUE"],
      ["CUFILE_FORCE_COMPAT_MODE", "False"],
      ["CUFILE_USE_PCIP2PDMA", "perhaps"]
    ])
    assert.isTrue(configuration.allowCompatMode)
    assert.isFalse(configuration.forceCompatMode)
    assert.isNull(configuration.usePciP2pDma)
    // libcufile 1.15 does not take 1 and 0; others may.
    const number = yield* read({ "/etc/cufile.json": "{}" }, [["CUFILE_FORCE_COMPAT_MODE", "1"]])
    assert.isNull(number.forceCompatMode)
  }))

it.effect("what is no JSON is located", () =>
  Effect.gen(function*() {
    assert.strictEqual(
      yield* problemOf("{\n  \"properties\": {\n    \"allow_compat_mode\": fals\n  }\n}"),
      "/etc/cufile.json:3:26: \"f\" begins no value"
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

it.effect("a value of a wrong type is located, and not taken for another", () =>
  Effect.gen(function*() {
    const configuration = yield* read({
      "/etc/cufile.json":
        "{\n  \"properties\": {\n    \"use_pci_p2pdma\": true,\n    \"allow_compat_mode\": \"false\"\n  }\n}"
    })
    assert.match(
      configuration.problem ?? "",
      /^\/etc\/cufile\.json:4:26: properties\.allow_compat_mode: true or false is expected, not "false"$/
    )
    assert.isNull(configuration.allowCompatMode)
    assert.match(
      (yield* problemOf("{\"denylist\": {\n  \"drivers\": [\"nvme\", 1]}}")) ?? "",
      /^\/etc\/cufile\.json:2:23: denylist\.drivers: a text is expected, not 1$/
    )
    assert.match((yield* problemOf("[1]")) ?? "", /^\/etc\/cufile\.json:1:1: /)
  }))

it.effect("the last of several keys of one name counts, also for the place of its problem", () =>
  Effect.gen(function*() {
    const twice = "{\"properties\": {\"allow_compat_mode\": false},\n\"properties\": {\"use_pci_p2pdma\": true}}"
    const configuration = yield* read({ "/etc/cufile.json": twice })
    assert.isTrue(configuration.allowCompatMode)
    assert.isTrue(configuration.usePciP2pDma)
    assert.match(
      (yield* problemOf(twice.replace("\"use_pci_p2pdma\": true", "\"io_batchsize\": 0"))) ?? "",
      /^\/etc\/cufile\.json:2:32: /
    )
  }))

it.effect("a value that is null is as good as none", () =>
  Effect.gen(function*() {
    const configuration = yield* read({ "/etc/cufile.json": "{\"properties\": {\"allow_compat_mode\": null}}" })
    assert.isNull(configuration.problem)
    assert.isTrue(configuration.allowCompatMode)
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
    assert.isNull(yield* doubtOf(filled(2 ** 20)))
    // libcufile reads larger ones: it is not known, then, and no problem.
    assert.isNull(yield* problemOf(filled(2 ** 20 + 1)))
    assert.match((yield* doubtOf(filled(2 ** 20 + 1))) ?? "", /is not read: it has 1048577 bytes; put a regular file/)
    // Bytes count, not characters.
    assert.match((yield* doubtOf(`{ // ${"é".repeat(2 ** 19)}\n}`)) ?? "", /is not read/)
  }))

it.live("what is no regular file is not read: a FIFO, a device", () =>
  Effect.scoped(Effect.gen(function*() {
    const directory = yield* Effect.acquireRelease(
      Effect.sync(() => mkdtempSync(join(tmpdir(), "cufile-test-"))),
      (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
    )
    const fifo = join(directory, "fifo")
    execFileSync("mkfifo", [fifo])
    const cases = [[fifo, "FIFO"], ["/dev/zero", "CharacterDevice"]] as const
    for (const [path, type] of cases) {
      const configuration = yield* readCuFileConfiguration.pipe(
        Effect.provide(NodeFileSystem.layer),
        Effect.withConfigProvider(ConfigProvider.fromMap(new Map([["CUFILE_ENV_PATH_JSON", path]]))),
        Effect.timeout("10 seconds")
      )
      assert.isNull(configuration.problem)
      assert.strictEqual(
        configuration.doubt,
        `${path} is not read: it is no regular file (${type}); ` +
          "put a regular file of at most 1 MiB there, or let CUFILE_ENV_PATH_JSON name one"
      )
      assert.isNull(configuration.allowCompatMode)
    }
  })))

it.effect("more than 1000 levels, which end the process, are a problem; as many are none", () =>
  Effect.gen(function*() {
    const nested = (levels: number) => `{"other": ${"[".repeat(levels)}${"]".repeat(levels)}}`
    assert.isNull(yield* problemOf(nested(999)))
    for (const levels of [1000, 200_000]) {
      const configuration = yield* read({ "/etc/cufile.json": nested(levels) })
      assert.match(configuration.problem ?? "", /more than 1000 levels; libcufile ends the process/)
      assert.isTrue(configuration.endsProcess)
    }
  }))

/** Directories and files that the measured configurations name. */
const places = { "/tmp/x": "", "/etc/passwd": "", "/dev/zero": { rdev: 0x105 } } as const

it.effect("texts are accepted and refused as libcufile 1.4 to 1.15 does", () =>
  Effect.gen(function*() {
    for (const [text, answer] of measuredTexts) {
      const bytes = typeof text === "string" ? new TextEncoder().encode(text) : text
      const { doubt, endsProcess, problem } = yield* read({ "/etc/cufile.json": bytes })
      const shown = JSON.stringify(typeof text === "string" ? text : [...text]).slice(0, 60)
      assert.deepStrictEqual(
        { refused: problem !== null, doubt, endsProcess },
        { refused: answer !== "accepted", doubt: null, endsProcess: answer === "ends the process" },
        `${shown}: ${problem}`
      )
    }
  }))

it.effect("values of every key are accepted and refused as libcufile 1.4 to 1.15 does", () =>
  Effect.gen(function*() {
    for (const [path, accepted, refused, since] of measured) {
      const of = (value: string) =>
        read({
          ...places,
          "/etc/cufile.json": path.split(".").reduceRight((text, name) => `{"${name}": ${text}}`, value)
        })
      for (const value of [...accepted, "null"]) {
        const { doubt, problem } = yield* of(value)
        assert.deepStrictEqual({ doubt, problem }, { doubt: null, problem: null }, `${path} ${value}`)
      }
      for (const value of refused) {
        const { doubt, problem } = yield* of(value)
        const [wrong, other] = since === "1.15" ? [doubt, problem] : [problem, doubt]
        assert.match(wrong ?? "", new RegExp(`^/etc/cufile\\.json:1:\\d+: ${path}: `), `${path} ${value}`)
        // Beside a problem, a doubt does not matter.
        if (since === "1.15") assert.isNull(other, `${path} ${value}`)
      }
    }
  }))

it.effect("a section that is no object ends the process, in those releases that look at it", () =>
  Effect.gen(function*() {
    for (const name of ["logging", "profile", "execution", "properties", "fs", "denylist", "miscellaneous"]) {
      for (const value of ["[]", "[1]", "1", "true", "\"x\""]) {
        const configuration = yield* read({ "/etc/cufile.json": `{"${name}": ${value}}` })
        assert.match(configuration.problem ?? "", /is no object; libcufile ends the process/, `${name} ${value}`)
        assert.isTrue(configuration.endsProcess)
      }
    }
    const block = yield* read({ "/etc/cufile.json": "{\"block\": []}" })
    assert.isNull(block.problem)
    assert.match(block.doubt ?? "", /newer than 1\.15/)
    assert.isFalse(block.endsProcess)
    for (const text of ["{\"fs\": {\"mounts\": [{\"a\": 1}]}}", "{\"fs\": {\"other\": 1}}", "{\"other\": []}"]) {
      const { doubt, problem } = yield* read({ "/etc/cufile.json": text })
      assert.deepStrictEqual({ doubt, problem }, { doubt: null, problem: null }, text)
    }
  }))

it.effect("the slab lists have one length, with three slabs where no file names sizes", () =>
  Effect.gen(function*() {
    const slabs = (sizes: string | null, counts: string | null) =>
      problemOf(JSON.stringify({
        properties: {
          ...sizes === null ? {} : { posix_pool_slab_size_kb: JSON.parse(sizes) },
          ...counts === null ? {} : { posix_pool_slab_count: JSON.parse(counts) }
        }
      }))
    for (
      const [sizes, counts] of [["[4]", "[1]"], ["[]", "[]"], ["[4]", null], [null, "[1,2,3]"], [
        "[4]",
        "null"
      ]] as const
    ) {
      assert.isNull(yield* slabs(sizes, counts), `${sizes} ${counts}`)
    }
    for (const [sizes, counts] of [["[4,8]", "[1]"], [null, "[1]"], ["null", "[1]"]] as const) {
      assert.match(
        (yield* slabs(sizes, counts)) ?? "",
        /posix_pool_slab_count: it has 1 elements, and/,
        `${sizes} ${counts}`
      )
    }
  }))

it.effect("I/O smaller than the buffers is refused by 1.15 alone, and not known", () =>
  Effect.gen(function*() {
    for (
      const properties of [
        { max_direct_io_size_kb: 64 },
        { per_buffer_cache_size_kb: 2048 },
        { max_direct_io_size_kb: 1024, per_buffer_cache_size_kb: 2048 }
      ]
    ) {
      const { doubt, problem } = yield* read({ "/etc/cufile.json": JSON.stringify({ properties }) })
      assert.isNull(problem)
      assert.match(doubt ?? "", /KiB are less than properties\.per_buffer_cache_size_kb/)
    }
    const enough = { max_direct_io_size_kb: 16384, per_buffer_cache_size_kb: 16384 }
    assert.isNull(yield* doubtOf(JSON.stringify({ properties: enough })))
  }))

it.effect("both files are read, the one that the environment names above the default one", () =>
  Effect.gen(function*() {
    const user = [["CUFILE_ENV_PATH_JSON", "/mine.json"]] as const
    const both = (base: string, mine: string) => read({ "/etc/cufile.json": base, "/mine.json": mine }, user)
    const force = (value: boolean | null) => JSON.stringify({ properties: { force_compat_mode: value } })
    assert.isTrue((yield* both(force(true), "{}")).forceCompatMode)
    assert.isTrue((yield* both(force(true), force(null))).forceCompatMode)
    assert.isFalse((yield* both(force(true), force(false))).forceCompatMode)
    const broken = "{\"properties\": {\"io_batchsize\": 0}}"
    const base = yield* both(broken, "{}")
    assert.match(base.problem ?? "", /^\/etc\/cufile\.json:1:33: properties\.io_batchsize: 0 is not within 1 and 256$/)
    assert.strictEqual(base.path, "/etc/cufile.json")
    assert.strictEqual((yield* both("{}", broken)).path, "/mine.json")
    assert.isNotNull((yield* read({ "/etc/cufile.json": broken }, user)).problem)
    // Sizes of the one, counts of the other.
    const sizes = "{\"properties\": {\"posix_pool_slab_size_kb\": [4]}}"
    assert.isNull((yield* both(sizes, "{\"properties\": {\"posix_pool_slab_count\": [1]}}")).problem)
    assert.isNotNull((yield* both(sizes, "{\"properties\": {\"posix_pool_slab_count\": [1,2,3]}}")).problem)
  }))

it.effect("paths that the configuration names are looked at", () =>
  Effect.gen(function*() {
    const closed = yield* read({
      "/closed": { refused: "PermissionDenied" },
      "/closed/x": "",
      "/etc/cufile.json": "{\"logging\": {\"dir\": \"/closed\"}}"
    })
    assert.match(closed.problem ?? "", /logging\.dir: \/closed cannot be used: .*PermissionDenied/)
    const table = (list: string) =>
      problemOf(`{"fs": {"lustre": {"mount_table": {"/gone": {"rdma_dev_addr_list": ${list}}}}}}`)
    assert.isNull(yield* table("[]"))
    assert.match((yield* table("[\"1.1.1.1\"]")) ?? "", /fs\.lustre\.mount_table: \/gone cannot be used/)
  }))

it.effect("CUFILE_RDMA_DC_KEY is a hexadecimal number above 0", () =>
  Effect.gen(function*() {
    for (const value of ["1", "0xffeeddcc"]) {
      assert.isNull((yield* read({}, [["CUFILE_RDMA_DC_KEY", value]])).problem, value)
    }
    for (const value of ["", "0", "true", "-5", "0x1ffeeddcc"]) {
      assert.match((yield* read({}, [["CUFILE_RDMA_DC_KEY", value]])).problem ?? "", /^CUFILE_RDMA_DC_KEY: /, value)
    }
  }))
