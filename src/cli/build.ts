/**
 * Builds the command: one file that needs nothing but the dependencies of the package, and beside it the licences of everything in it.
 * Run from the root of the package, as `npm run build` does.
 */
import { build } from "esbuild"
import { readdirSync, readFileSync, writeFileSync } from "node:fs"

const outfile = "dist/cli/main.js"
const notices = "dist/cli/THIRD-PARTY-NOTICES.txt"

const { metafile } = await build({
  entryPoints: ["src/cli/main.ts"],
  outfile,
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20",
  minifySyntax: true,
  minifyWhitespace: true,
  // The names of functions stay readable in the stack of a defect.
  minifyIdentifiers: false,
  // What the package depends on is there beside it.
  external: ["koffi", "hash-wasm"],
  define: { "process.env.NODE_ENV": "\"production\"" },
  legalComments: "none",
  logLevel: "warning",
  logOverride: { "ignored-bare-import": "silent" },
  // CommonJS inside of the bundle asks for modules of Node.
  banner: { js: "import{createRequire as nodeRequire}from\"node:module\";const require=nodeRequire(import.meta.url);" },
  metafile: true
})

const bundled = Object.entries(metafile.outputs[outfile]?.inputs ?? {})
  .filter(([, { bytesInOutput }]) => bytesInOutput > 0)
  .flatMap(([path]) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path) ?? [])

const sections = [...new Set(bundled)].sort().map((directory) => {
  const description: unknown = JSON.parse(readFileSync(`${directory}/package.json`, "utf8"))
  const field = (name: string): string => {
    const value = typeof description === "object" && description !== null ? Reflect.get(description, name) : undefined
    if (typeof value !== "string") throw new Error(`${directory}/package.json does not say its ${name}`)
    return value
  }
  const texts = readdirSync(directory, { withFileTypes: true })
    .filter(({ name }) => /^(licen[cs]es?|notice|copying)\b/i.test(name))
    // A package may keep the licences of what it has taken in in a directory.
    .flatMap((entry) =>
      entry.isDirectory()
        ? readdirSync(`${directory}/${entry.name}`).map((name) => `${entry.name}/${name}`)
        : entry.name
    )
  if (!texts.some((name) => !/^notice/i.test(name))) {
    throw new Error(`${directory} comes without the text of its licence`)
  }
  return [
    `${field("name")} ${field("version")} (${field("license")})`,
    ...texts.map((name) => readFileSync(`${directory}/${name}`, "utf8").trim())
  ].join("\n\n")
})

writeFileSync(
  notices,
  [`${outfile} contains parts of these packages, under these licences.`, ...sections].join(
    `\n\n${"=".repeat(78)}\n\n`
  ) + "\n"
)
