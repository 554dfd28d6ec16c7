/** Plants a bug in a source while vitest loads it. */
import { fileURLToPath } from "node:url"
import type { Mutation } from "../simulate/bundle.js"
import { bugs } from "./bugs.js"

const sources = fileURLToPath(new URL("../../src/", import.meta.url))

/** Names one of `bugs` by its number. */
export const variable = "EDS_PLANTED_BUG"

/** Fails where the text to be replaced is not there exactly once. */
export const planted = (text: string, { file, from, to }: Mutation): string => {
  const parts = text.split(from)
  if (parts.length !== 2) throw new Error(`${file} has ${parts.length - 1} times, and not once: ${from}`)
  return parts.join(to)
}

/** Plugins for vitest's configuration: none where no bug is asked for. */
export const plantedBug = () => {
  const number = process.env[variable]
  if (number === undefined) return []
  const bug = bugs[Number(number)]
  if (bug === undefined) throw new Error(`${variable}=${number} names no planted bug`)
  return [{
    name: "planted-bug",
    enforce: "pre" as const,
    transform: (text: string, id: string) => id === `${sources}${bug.file}` ? planted(text, bug) : undefined
  }]
}
