/** The simulation as one file of JavaScript, with a bug planted in it or without. */
import { build } from "esbuild"
import { readFile } from "node:fs/promises"
import { fileURLToPath } from "node:url"

/** Some text of a source, and what stands there instead. */
export interface Mutation {
  /** Below `src`. */
  readonly file: string
  readonly from: string
  readonly to: string
}

const entry = fileURLToPath(new URL("run.ts", import.meta.url))
const sources = fileURLToPath(new URL("../../src/", import.meta.url))

/** Fails where the text to be replaced is not there exactly once. */
export const bundle = async (outfile: string, mutation?: Mutation): Promise<void> => {
  await build({
    entryPoints: [entry],
    outfile,
    bundle: true,
    platform: "node",
    format: "esm",
    external: ["koffi"],
    // Some of what is bundled asks for Node's modules with require.
    banner: {
      js: "import { createRequire as nodeRequire } from \"node:module\"\nconst require = nodeRequire(import.meta.url)"
    },
    logLevel: "silent",
    plugins: mutation === undefined ? [] : [{
      name: "mutation",
      setup: ({ onLoad }) => {
        onLoad({ filter: /\.ts$/ }, async ({ path }) => {
          if (path !== `${sources}${mutation.file}`) return undefined
          const text = await readFile(path, "utf8")
          const parts = text.split(mutation.from)
          if (parts.length !== 2) {
            throw new Error(`${mutation.file} has ${parts.length - 1} times, and not once: ${mutation.from}`)
          }
          return { contents: parts.join(mutation.to), loader: "ts" }
        })
      }
    }]
  })
}
