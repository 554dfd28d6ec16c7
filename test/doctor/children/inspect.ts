/** A process that says as JSON what `DirectIo.inspect` says of a directory (first argument) to another user (second). */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as DirectIo from "../../../src/DirectIo.js"
import * as Linux from "../../../src/Linux.js"
import { Answer } from "./answer.js"

const [directory = "", user = ""] = process.argv.slice(2)

const program = Effect.gen(function*() {
  process.setgroups?.([])
  process.setgid?.(Number(user))
  process.setuid?.(Number(user))
  const answer = yield* Effect.catchTag(DirectIo.inspect(directory), "DirectoryUnusable", Effect.succeed)
  process.stdout.write(Schema.encodeSync(Answer)(answer))
})

Effect.runPromise(program.pipe(Effect.provide(Linux.layer), Effect.provide(NodeFileSystem.layer))).catch(
  (error: unknown) => {
    process.stderr.write(`${String(error)}\n`)
    process.exitCode = 1
  }
)
