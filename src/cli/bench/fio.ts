/** The yardstick: fio, on the same file, in a process of its own. */
import * as Command from "@effect/platform/Command"
import * as CommandExecutor from "@effect/platform/CommandExecutor"
import * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { Contestant } from "./contestant.js"
import { ContestantFailed } from "./errors.js"
import type { Load } from "./load.js"
import { fioContestant, fioControl } from "./report.js"

const Direction = Schema.Struct({ total_ios: Schema.Number, runtime: Schema.Number })

const Output = Schema.parseJson(Schema.Struct({
  jobs: Schema.NonEmptyArray(Schema.Struct({
    error: Schema.Number,
    read: Direction,
    write: Direction,
    /** percent of the runtime */
    usr_cpu: Schema.Number,
    sys_cpu: Schema.Number
  }))
}))

/** `fio-3.33`, or none when it is not installed. */
export const version: Effect.Effect<Option.Option<string>, never, CommandExecutor.CommandExecutor> = Command.make(
  "fio",
  "--version"
).pipe(Command.string, Effect.map((text) => text.trim()), Effect.option)

const random = ({ blockSize, depth, direction, target }: Load, engine: "io_uring" | "psync", millis: number) =>
  job(
    target.path,
    target.size,
    `--ioengine=${engine}`,
    // psync has one operation in flight whatever it is told, and says so.
    `--iodepth=${engine === "psync" ? 1 : depth}`,
    `--rw=rand${direction}`,
    `--bs=${blockSize}`,
    `--direct=${target.direct ? 1 : 0}`,
    "--time_based=1",
    `--runtime=${millis}ms`,
    // Without O_DIRECT fio does not align its buffers, and copies of 1 MiB into them can take five times as long.
    "--iomem_align=4096",
    // Each offset on its own, and other ones in each round, as here.
    "--norandommap=1",
    "--randrepeat=0"
  )

/** From the start of an empty file to its end, synced. */
const sequential = (path: string, size: number) =>
  job(
    path,
    size,
    "--ioengine=io_uring",
    "--iodepth=32",
    "--rw=write",
    `--bs=${Math.min(2 ** 20, size)}`,
    "--direct=1",
    "--iomem_align=4096",
    "--end_fsync=1",
    // Else it unlinks the file to begin with a new one.
    "--file_append=1"
  )

const job = (path: string, size: number, ...options: ReadonlyArray<string>) =>
  Command.make(
    "fio",
    "--name=bench",
    `--filename=${path}`,
    `--size=${size}`,
    "--numjobs=1",
    // One process to end.
    "--thread=1",
    ...options,
    "--allow_file_create=0",
    "--fallocate=none",
    "--output-format=json",
    "--eta=never"
  )

const text = <E>(stream: Stream.Stream<Uint8Array, E>) => Stream.mkString(Stream.decodeText(stream))

const execute = (executor: CommandExecutor.CommandExecutor, id: string, command: Command.Command) =>
  Effect.scoped(Effect.gen(function*() {
    const failed = (cause: unknown) => new ContestantFailed({ contestant: id, cause })
    // The end of the scope ends the process, and waits for that.
    const running = yield* executor.start(command)
    const [output, complaint, code] = yield* Effect.all(
      [text(running.stdout), text(running.stderr), running.exitCode],
      { concurrency: "unbounded" }
    )
    if (code !== 0) return yield* failed(complaint.trim() || `fio ended with ${code}`)
    // Remarks come before the object.
    const { jobs: [job] } = yield* Schema.decode(Output)(output.slice(Math.max(0, output.indexOf("{"))))
    return job.error === 0 ? job : yield* failed(`fio reports error ${job.error}`)
  })).pipe(
    Effect.mapError((cause) =>
      cause instanceof ContestantFailed ? cause : new ContestantFailed({ contestant: id, cause })
    )
  )

const contestant = (
  executor: CommandExecutor.CommandExecutor,
  id: string,
  engine: "io_uring" | "psync"
): Contestant => {
  const round = (load: Load, millis: number) =>
    Effect.map(execute(executor, id, random(load, engine, millis)), (job) => {
      const { runtime, total_ios } = job[load.direction]
      return {
        operations: total_ios,
        millis: runtime,
        cpuMicros: (job.usr_cpu + job.sys_cpu) / 100 * runtime * 1000,
        delayP99Millis: null,
        delayMaxMillis: null
      }
    })
  return { id, family: "fio", prepare: (load) => Effect.succeed((millis) => round(load, millis)) }
}

/** Milliseconds that it takes to write an empty file to its end. */
export const fill = (
  id: string,
  path: string,
  size: number
): Effect.Effect<number, ContestantFailed, CommandExecutor.CommandExecutor> =>
  Effect.flatMap(CommandExecutor.CommandExecutor, (executor) =>
    // It counts whole milliseconds.
    Effect.map(execute(executor, id, sequential(path, size)), ({ write }) => Math.max(1, write.runtime)))

export const notes: ReadonlyArray<string> = [
  "fio.psync has one operation in flight at any depth (numjobs=1).",
  "fio counts the CPU of its own thread: what kernel workers do for it, as with large blocks without O_DIRECT, is not in it."
]

/** Milliseconds that a fio needs besides its runtime, for the estimate. */
export const overheadMillis = 350

export const contestants: Effect.Effect<ReadonlyArray<Contestant>, never, CommandExecutor.CommandExecutor> = Effect
  .map(CommandExecutor.CommandExecutor, (executor) => [
    contestant(executor, fioContestant, "io_uring"),
    contestant(executor, fioControl, "io_uring"),
    contestant(executor, "fio.psync", "psync")
  ])
