/**
 * `npm run planted-bugs [-- PART…]`: plants each bug of `bugs.ts` whose description or file has one of the parts, and runs the tests near
 * it. Exit code 1 where a bug is not noticed. The sources are not touched: vitest plants the bug as it loads them.
 */
import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { bugs } from "./bugs.js"
import { variable } from "./plugin.js"

const run = fileURLToPath(new URL("../run.sh", import.meta.url))

/** A planted bug may make a test hang: that is noticed, too. */
const mostMillis = 10 * 60_000

/** Whether a test failed; a run that ended otherwise, such as a source that does not compile, is an error. */
const noticed = (number: number, tests: ReadonlyArray<string>): Promise<boolean> =>
  new Promise((resolve, reject) => {
    const child = spawn(run, ["--bail", "1", "--testTimeout", "60000", ...tests.map((test) => `test/${test}`)], {
      env: { ...process.env, [variable]: String(number), NO_COLOR: "1" },
      stdio: ["ignore", "pipe", "pipe"],
      detached: true
    })
    let output = ""
    const add = (chunk: Buffer) => void (output = `${output}${chunk.toString()}`.slice(-200_000))
    child.stdout.on("data", add)
    child.stderr.on("data", add)
    const end = () => child.pid !== undefined && process.kill(-child.pid, "SIGKILL")
    let hung = false
    const timer = setTimeout(() => {
      hung = true
      end()
    }, mostMillis)
    const interrupted = () => {
      end()
      process.exit(130)
    }
    process.once("SIGINT", interrupted).once("SIGTERM", interrupted)
    child.once("error", reject)
    child.once("close", (code) => {
      clearTimeout(timer)
      process.off("SIGINT", interrupted).off("SIGTERM", interrupted)
      if (hung) resolve(true)
      else if (code === 0) resolve(false)
      else if (/^ *Tests .*\d failed/m.test(output) || /Channel closed|Worker exited/.test(output)) resolve(true)
      else reject(new Error(output.slice(-4000)))
    })
  })

const parts = process.argv.slice(2)
const chosen = [...bugs.entries()].filter(([, { file, what }]) =>
  parts.length === 0 || parts.some((part) => what.includes(part) || file.includes(part))
)
const missed: Array<string> = []
for (const [index, [number, { file, tests, what }]] of chosen.entries()) {
  process.stderr.write(`${index + 1} of ${chosen.length}: ${what} (${file}) … `)
  const found = await noticed(number, tests)
  process.stderr.write(found ? "noticed\n" : "NOT NOTICED\n")
  if (!found) missed.push(what)
}
console.log(`${chosen.length - missed.length} of ${chosen.length} planted bugs were noticed`)
for (const what of missed) console.log(`not noticed: ${what}`)
process.exit(missed.length === 0 ? 0 : 1)
