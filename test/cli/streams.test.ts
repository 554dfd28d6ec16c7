/** What the command lets through to a terminal, and how it ends where its output cannot be written. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { spawn } from "node:child_process"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { printable, printableButColours, printableLines } from "../../src/cli/layout.js"
import { program } from "../support/programs.js"

const root = fileURLToPath(new URL("../..", import.meta.url))

const escape = "\u001B"

const scratch = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "streams-test-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

interface Ended {
  readonly code: number | null
  readonly out: string
  readonly complaint: string
}

/** `file` with `args`; `heard` sees all complaints so far. */
const run = (
  file: string,
  args: ReadonlyArray<string>,
  heard: (child: ReturnType<typeof spawn>, complaint: string) => void = () => {}
) =>
  Effect.scoped(Effect.flatMap(
    Effect.acquireRelease(
      Effect.sync(() => spawn(file, args, { cwd: root, stdio: ["ignore", "pipe", "pipe"] })),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    ),
    (child) =>
      Effect.async<Ended>((resume) => {
        const said = { out: "", complaint: "" }
        child.stdout.on("data", (chunk) => said.out += String(chunk))
        child.stderr.on("data", (chunk) => {
          said.complaint += String(chunk)
          heard(child, said.complaint)
        })
        child.on("close", (code) => resume(Effect.succeed({ code, ...said })))
      })
  ))

const main = [program(new URL("../../src/cli/main.ts", import.meta.url))]
const hangup = [program(new URL("children/hangup.ts", import.meta.url))]

/** Node with `args` in a line of bash, as `"$@"`. */
const inBash = (line: string, ...args: ReadonlyArray<string>) =>
  run("bash", ["-c", line, "bash", process.execPath, ...args])

describe("text of others", () => {
  it("is shown with its control and format characters, and with what passes for ends of lines", () => {
    assert.strictEqual(printable(`a${escape}[31m\n\u007F\u009B`), "a\\x1b[31m\\x0a\\x7f\\x9b")
    // Soft hyphen, zero width, direction, byte order mark, a tag beyond 16 bits.
    assert.strictEqual(
      printable("\u00AD\u200B\u202E\u2066\uFEFF\u{E0041}"),
      "\\xad\\u{200b}\\u{202e}\\u{2066}\\u{feff}\\u{e0041}"
    )
    assert.strictEqual(printable("\u2028\u2029"), "\\u{2028}\\u{2029}")
    assert.strictEqual(printable("/tmp/Überprüfung 日本 😀 e\u0301"), "/tmp/Überprüfung 日本 😀 e\u0301")
  })

  it("keeps its lines, and its colours, where they are meant", () => {
    assert.strictEqual(printableLines(`one\ntwo${escape}[31m\r\nthree`), "one\ntwo\\x1b[31m\\x0d\nthree")
    assert.strictEqual(
      printableButColours(`${escape}[1;31mone${escape}[0m\ntwo${escape}]0;title\u0007`),
      `${escape}[1;31mone${escape}[0m\ntwo\\x1b]0;title\\x07`
    )
  })
})

describe("names that control a terminal", () => {
  const title = `x${escape}]0;pwned\u0007`

  it.live("are shown in complaints, whoever complains", () =>
    Effect.gen(function*() {
      const cases = [
        [["doctor", `/${title}`], 70],
        [["doctor", `--${title}`], 64],
        [["doctor", "/tmp", title], 64],
        [["bench", "--json", `/missing/${title}`], 1]
      ] as const
      yield* Effect.forEach(cases, ([args, expected]) =>
        Effect.map(run(process.execPath, [...main, ...args]), ({ code, complaint }) => {
          assert.strictEqual(code, expected, complaint)
          assert.include(complaint, "x\\x1b]0;pwned\\x07")
          assert.notInclude(complaint, escape)
        }), { concurrency: 2, discard: true })
    }))

  it.live("are shown in what a terminal sees while it waits", () =>
    Effect.gen(function*() {
      const line = `exec '${process.execPath}' ${main.join(" ")} doctor '/${title}'`
      const { out } = yield* run("script", ["-qec", line, "/dev/null"])
      assert.include(out, "looking at /x\\x1b]0;pwned\\x07 …")
      assert.notInclude(out, `${escape}]`)
    }))

  it.live("get no escape sequence on a terminal that is dumb, and no colour where NO_COLOR is set", () =>
    Effect.gen(function*() {
      const seen = (variables: string, args: string) =>
        Effect.map(
          run("script", ["-qec", `exec env ${variables} '${process.execPath}' ${main.join(" ")} ${args}`, "/dev/null"]),
          ({ out }) => out
        )
      for (const args of ["doctor /proc", "--help", "doctor --wrong", "bench --wrong"]) {
        assert.notInclude(yield* seen("-u NO_COLOR TERM=dumb", args), escape, args)
        assert.notInclude(yield* seen("NO_COLOR=1 TERM=xterm", args), `${escape}[1m`, args)
      }
      // The control: this terminal has both.
      const capable = yield* seen("-u NO_COLOR TERM=xterm", "doctor /proc")
      assert.include(capable, `${escape}[2K`)
      assert.include(capable, `${escape}[1m`)
    }))

  it.live("leave messages of several lines as they are", () =>
    Effect.scoped(Effect.gen(function*() {
      const args = ["bench", "--contestant", "fio", "--without-fio", yield* scratch]
      const { code, complaint } = yield* run(process.execPath, [...main, ...args])
      assert.strictEqual(code, 1, complaint)
      assert.match(complaint, /^No contestant can run here\.\n\S/m)
    })))
})

describe("an output that takes nothing", () => {
  const commands = (directory: string) => [["doctor", directory, "--json"], ["bench", "--help"]] as const

  it.live("nobody reads: ends silently, as by SIGPIPE", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      for (const args of commands(directory)) {
        assert.deepStrictEqual(
          yield* inBash("\"$@\" | true; echo ${PIPESTATUS[0]}", ...main, ...args),
          { code: 0, out: "141\n", complaint: "" }
        )
      }
      assert.deepStrictEqual(readdirSync(directory), [])
    })))

  it.live("nobody reads complaints: ends likewise", () =>
    Effect.gen(function*() {
      const { complaint } = yield* inBash("{ \"$@\" 2>&1 >/dev/null; echo $? >&3; } 3>&2 | true", ...hangup)
      assert.strictEqual(complaint, "141\n")
    }))

  it.live("is full: says so, and ends with 70", () =>
    Effect.scoped(Effect.gen(function*() {
      const directory = yield* scratch
      for (const args of commands(directory)) {
        assert.deepStrictEqual(
          yield* inBash("\"$@\" > /dev/full; echo $?", ...main, ...args),
          {
            code: 0,
            out: "70\n",
            complaint: "Standard output cannot be written: ENOSPC: no space left on device, write\n"
          }
        )
      }
      assert.deepStrictEqual(readdirSync(directory), [])
    })))

  it.live("is gone after SIGHUP: what is held is released first", () =>
    Effect.gen(function*() {
      let sent = false
      const { code, complaint } = yield* run(process.execPath, hangup, (child, complaint) => {
        if (sent || !complaint.includes("held")) return
        sent = true
        child.stdout?.destroy()
        child.kill("SIGHUP")
      })
      assert.strictEqual(complaint, "held\nreleased\n")
      assert.strictEqual(code, 129)
    }))
})
