/**
 * Programs that tests start, each compiled once into one file, with all that it imports: through tsx, or with modules one by one, a
 * process takes most of a second before it begins.
 */
import { afterAll } from "@effect/vitest"
import { buildSync } from "esbuild"
import { chmodSync, mkdtempSync, rmSync } from "node:fs"
import { basename, join } from "node:path"
import { fileURLToPath } from "node:url"

const modules = fileURLToPath(new URL("../../node_modules", import.meta.url))

let directory: string | undefined
const compiled = new Map<string, string>()

afterAll(() => {
  if (directory !== undefined) rmSync(directory, { recursive: true, force: true })
})

/** The path of the program as plain JavaScript, which is there until the tests of this file have ended. */
export const program = (source: URL): string => {
  const path = fileURLToPath(source)
  const known = compiled.get(path)
  if (known !== undefined) return known
  // Here, the native module is found.
  if (directory === undefined) {
    directory = mkdtempSync(join(modules, ".programs-"))
    // For processes that become another user.
    chmodSync(directory, 0o755)
  }
  const outfile = join(directory, `${basename(path, ".ts")}.mjs`)
  buildSync({
    entryPoints: [path],
    outfile,
    bundle: true,
    platform: "node",
    format: "esm",
    external: ["koffi"],
    // Of what is in there, some is CommonJS and asks for Node's own modules.
    banner: {
      js: "import { createRequire as nodeRequire } from \"node:module\"; const require = nodeRequire(import.meta.url);"
    },
    logLevel: "silent"
  })
  compiled.set(path, outfile)
  return outfile
}
