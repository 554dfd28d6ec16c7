/** koffi as it is left out, bundled, or not loadable: a program and its node_modules, each as somebody has them. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import { buildSync } from "esbuild"
import { spawnSync } from "node:child_process"
import { cpSync, mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const modules = realpathSync(fileURLToPath(new URL("../../node_modules", import.meta.url)))
const source = fileURLToPath(new URL("children/load.ts", import.meta.url))
const native = `@koromix/koffi-${process.platform}-${process.arch}`

let directory = ""
beforeAll(() => {
  // Not below the repository, whose node_modules would be found.
  directory = mkdtempSync(join(tmpdir(), "effect-disk-storage-koffi-"))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const Told = Schema.parseJson(Schema.Struct({
  tag: Schema.String,
  missing: Schema.optional(Schema.String),
  message: Schema.String
}))

interface Installed {
  /** The package itself, without the dependencies that are optional. */
  readonly koffi?: boolean
  readonly native?: "as it is" | "broken"
  readonly bundled?: boolean
  readonly format?: "esm" | "cjs"
}

/** Runs the program where this is installed, and nothing else. */
const run = (name: string, installed: Installed, ...nodeOptions: ReadonlyArray<string>): typeof Told.Type => {
  const { bundled = false, format = "esm", koffi = false } = installed
  const place = join(directory, name)
  const outfile = join(place, format === "esm" ? "main.mjs" : "main.cjs")
  buildSync({
    entryPoints: [source],
    outfile,
    bundle: true,
    platform: "node",
    format,
    external: bundled ? [] : ["koffi"],
    // Of import.meta in CommonJS, which koffi has.
    logLevel: "error"
  })
  if (koffi) {
    cpSync(join(modules, "koffi"), join(place, "node_modules/koffi"), {
      recursive: true,
      filter: (path) => !/\/koffi\/(?:build|doc|vendor)$/.test(path)
    })
  }
  if (installed.native === "as it is") {
    cpSync(join(modules, native), join(place, "node_modules", native), { recursive: true })
  }
  if (installed.native === "broken") {
    const broken = join(place, "node_modules", native)
    mkdirSync(broken, { recursive: true })
    writeFileSync(join(broken, "package.json"), JSON.stringify({ name: native, main: "koffi.node" }))
    writeFileSync(join(broken, "koffi.node"), "of another platform")
  }
  const { status, stderr, stdout } = spawnSync(process.execPath, [...nodeOptions, outfile], {
    cwd: place,
    encoding: "utf8"
  })
  assert.strictEqual(status, 0, stderr)
  return Schema.decodeSync(Told)(stdout)
}

describe("koffi", { timeout: 120_000 }, () => {
  it("is loaded where it is installed with its native module, beside a bundle too", () => {
    const { message, tag } = run("installed", { koffi: true, native: "as it is" })
    assert.strictEqual(tag, "loaded", message)
  })

  it("is named where it is not installed, or not beside a bundle, with the bundler's setting", () => {
    const { message, missing, tag } = run("none", {})
    assert.deepStrictEqual([tag, missing], ["NativeModuleMissing", "package"])
    for (const part of ["The package koffi is not installed", "external: [\"koffi\"]", "serverExternalPackages"]) {
      assert.include(message, part)
    }
  })

  it("is named with its native module where optional dependencies were left out", () => {
    const { message, missing, tag } = run("omitted", { koffi: true })
    assert.deepStrictEqual([tag, missing], ["NativeModuleMissing", "native module"])
    for (const part of [native, "--omit=optional", "external: [\"koffi\"]"]) assert.include(message, part)
    assert.notInclude(message, "not supported")
  })

  it.each(["esm", "cjs"] as const)(
    "is named with the bundler's setting where a bundle (%s) has it inside",
    (format) => {
      for (const [name, installed] of [["alone", {}], ["beside", { koffi: true }]] as const) {
        const { message, missing, tag } = run(`bundled-${format}-${name}`, { ...installed, format, bundled: true })
        assert.deepStrictEqual([tag, missing], ["NativeModuleMissing", "native module"], message)
        assert.include(message, "external: [\"koffi\"]")
      }
    }
  )

  it("is named where a CommonJS bundle has it inside, whose native module is installed beside it", () => {
    const { message, missing } = run("bundled-native", {
      koffi: true,
      native: "as it is",
      format: "cjs",
      bundled: true
    })
    assert.strictEqual(missing, "native module", message)
  })

  it("is told apart from one whose native module cannot be loaded", () => {
    const broken = run("broken", { koffi: true, native: "broken" })
    assert.deepStrictEqual([broken.tag, broken.missing], ["NativeModuleMissing", "load"], broken.message)
    assert.include(broken.message, native)
    const refused = run("refused", { koffi: true, native: "as it is" }, "--no-addons")
    assert.deepStrictEqual([refused.tag, refused.missing], ["NativeModuleMissing", "load"], refused.message)
    assert.include(refused.message, "--no-addons")
  })
})
