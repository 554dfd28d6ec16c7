/**
 * Exits while all threads are busy, and for longer than an exit waits, so that none has begun to create the file:
 * `busyThreads.ts <fifo>`, which does not exist yet.
 */
import * as Effect from "effect/Effect"
import { constVoid } from "effect/Function"
import { execFileSync, spawn } from "node:child_process"
import { open } from "node:fs"
import { directory } from "../../../src/DiskStorageConfig.js"
import * as LinuxSyscalls from "../../../src/LinuxSyscalls.js"
import * as ProcessRuntime from "../../../src/ProcessRuntime.js"
import { Syscalls } from "../../../src/Syscalls.js"
import { reportNow } from "./report.js"

const fifo = process.argv[2] ?? ""

/** Each takes a thread until somebody opens the other end. */
const takeThreads = Effect.sync(() => {
  execFileSync("mkfifo", [fifo])
  for (let thread = 0; thread < 4; thread++) open(fifo, "r", constVoid)
  spawn("sh", ["-c", `sleep 2; : > "$1"`, "sh", fifo], { stdio: "ignore" })
})

const program = Effect.gen(function*() {
  const syscalls = yield* Syscalls
  const prefix = `${yield* directory}/file-`
  yield* takeThreads
  const before = process.listenerCount("exit")
  setTimeout(() => {
    reportNow(`listeners ${process.listenerCount("exit") - before}`)
    process.exit(3)
  })
  yield* syscalls.mkostemp(prefix, syscalls.flags.O_CLOEXEC)
  reportNow("created")
})

ProcessRuntime.runMain(Effect.provide(program, LinuxSyscalls.layer))
