/**
 * `npm run test:gpu`: what there is of CUDA, cuFile and NIXL on this machine; each path to the device tried with every byte compared, and its
 * bandwidth against that of the engine alone, in interleaved rounds; what a call costs; then the tests that hold on any library and the
 * example, over these ones. Where something is missing it says what, and ends with 0. `-- --stubs`: the same over the stub libraries.
 */
import { NodeContext } from "@effect/platform-node"
import * as Command from "@effect/platform/Command"
import {
  AlignedBuffer,
  DeviceMemory,
  DevicePath,
  DiskStorage,
  DiskStorageConfig,
  Linux,
  Nixl,
  ProcessRuntime
} from "effect-disk-storage"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import koffi from "koffi"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { median } from "../../src/cli/bench/units.js"
import { compileStubs } from "./stubs/compile.js"

const mebibyte = 1024 * 1024
/** Of each round, in blocks of 1 MiB, 16 of them in flight. */
const bytes = 64 * mebibyte
const depth = 16
const rounds = 11

class Wrong extends Data.TaggedError("Wrong")<{ readonly message: string }> {}

const line = (name: string, text: string) => Console.log(`  ${name.padEnd(18)}${text}`)

const stubs = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-disk-storage-stubs-"))),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  ),
  compileStubs
)

const pattern = (into: Uint8Array, seed: number) => {
  for (let at = 0; at < into.byteLength; at++) into[at] = (at * 7 + (at >> 12) + seed * 13) % 251
}

const megabytes = (millis: number) => bytes / 1e3 / millis

/** Milliseconds that `run` takes. */
const timed = <A, E, R>(run: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const began = performance.now()
    return Effect.map(run, () => performance.now() - began)
  })

/** The path and the engine alone, one after the other in each round. */
const compared = (path: DevicePath.DevicePath, memory: DeviceMemory.DeviceMemory, directory: string) =>
  Effect.scoped(Effect.gen(function*() {
    const storage = yield* DiskStorage.make({ size: bytes, directory, directIo: "preferred", prewrite: true })
    const region = yield* DeviceMemory.region(yield* memory.allocate(bytes))
    const other = yield* DeviceMemory.region(yield* memory.allocate(bytes))
    const host = yield* AlignedBuffer.make(mebibyte)
    const parts = Array.from({ length: bytes / mebibyte }, (_, index) => index)
    for (const part of parts) {
      pattern(host.bytes, part)
      yield* memory.copyToDevice(host, { ...region, offset: part * mebibyte, byteLength: mebibyte })
    }
    // Never in the pattern: what an earlier path has left there is no proof of this one.
    host.bytes.fill(0xff)
    yield* Effect.forEach(
      parts,
      (part) => memory.copyToDevice(host, { ...other, offset: part * mebibyte, byteLength: mebibyte }),
      { discard: true }
    )
    yield* path.write(storage, 0, region)
    yield* path.read(storage, 0, other)
    const expected = new Uint8Array(mebibyte)
    for (const part of parts) {
      yield* memory.copyToHost({ ...other, offset: part * mebibyte, byteLength: mebibyte }, host)
      pattern(expected, part)
      if (Buffer.compare(expected, host.bytes) !== 0) {
        return yield* new Wrong({ message: `MiB ${part} came back wrong` })
      }
    }
    const buffers = yield* Effect.replicateEffect(AlignedBuffer.make(mebibyte), depth)
    const alone = (kind: "read" | "write") =>
      Effect.forEach(buffers, (buffer, lane) =>
        Effect.forEach(
          parts.filter((part) => part % depth === lane),
          (part) => storage[kind](part * mebibyte, buffer),
          { discard: true }
        ), { concurrency: depth, discard: true })
    const times = { write: [0], read: [0], engineWrite: [0], engineRead: [0] }
    const engineWrite = Effect.map(timed(alone("write")), (millis) => times.engineWrite.push(millis))
    const write = Effect.map(timed(path.write(storage, 0, region)), (millis) => times.write.push(millis))
    const engineRead = Effect.map(timed(alone("read")), (millis) => times.engineRead.push(millis))
    const read = Effect.map(timed(path.read(storage, 0, other)), (millis) => times.read.push(millis))
    // A disk that is shared lets whoever comes first go faster.
    for (let round = 0; round < rounds; round++) {
      if (round % 2 === 0) yield* Effect.all([engineWrite, write, engineRead, read])
      else yield* Effect.all([write, engineWrite, read, engineRead])
    }
    for (const kind of ["write", "read"] as const) {
      const [own, engine] = [times[kind].slice(1), times[kind === "write" ? "engineWrite" : "engineRead"].slice(1)]
      const ratios = own.map((millis, round) => (engine[round] ?? 0) / millis)
      yield* line(
        `${path.kind} ${kind}`,
        `${megabytes(Math.min(...own)).toFixed(0)} MB/s, the engine alone ${
          megabytes(Math.min(...engine)).toFixed(0)
        }: best against best ${(Math.min(...engine) / Math.min(...own)).toFixed(2)}, median of ${rounds} rounds ${
          median(ratios).toFixed(2)
        }`
      )
    }
  }))

/** NIXL, its plugins, and what moves through POSIX. */
const nixlFound = (options: Nixl.NixlOptions) =>
  Effect.scoped(Effect.gen(function*() {
    const nixl = yield* Nixl.make({ ...options, agentName: "test:gpu" })
    yield* line(
      "NIXL",
      `${nixl.library}: plugins ${nixl.plugins.join(", ")}; an agent with ${nixl.backends.join(", ")}`
    )
  })).pipe(Effect.catchTags({
    NixlUnavailable: ({ message }) => line("NIXL", message),
    NixlFailed: ({ message }) => line("NIXL", message)
  }))

const calls = 20_000

/** What koffi adds to a call with the arguments of cuFileRead, in its thread; and what it is to wait for one from here. */
const callCost = (options: DeviceMemory.DeviceMemoryOptions) =>
  Effect.scoped(Effect.gen(function*() {
    // It does next to nothing, and takes what it does not know in registers.
    const arguments_ = ["uint64_t", "uint64_t", "size_t", "int64_t", "int64_t"]
    const nothing: (...args: ReadonlyArray<number | bigint>) => number = koffi.load(null).func(
      "labs",
      "int64_t",
      arguments_
    )
    const batch = () => {
      const began = performance.now()
      for (let call = 0; call < calls; call++) {
        nothing(0x7000_0000_0000n, 0x7000_0000_1000n, mebibyte, 0, 0)
        koffi.errno()
      }
      return (performance.now() - began) * 1e3 / calls
    }
    const costs = Array.from({ length: rounds }, batch)
    yield* line(
      "a call",
      `${Math.min(...costs).toFixed(2)} us best, ${median(costs).toFixed(2)} us median, in its thread`
    )
    const memory = yield* DeviceMemory.make(options)
    const region = yield* DeviceMemory.region(yield* memory.allocate(1))
    const host = yield* AlignedBuffer.slice(yield* AlignedBuffer.make(1), 0, 1)
    const trips = yield* Effect.replicateEffect(timed(memory.copyToHost(region, host)), 500)
    yield* line(
      "and from here",
      `${(median(trips) * 1e3).toFixed(0)} us median: a copy of one byte, one after the other`
    )
  })).pipe(Effect.catchTag("CudaUnavailable", ({ message }) => line("and from here", message)))

/** Runs a command with this one's output; it has to end well. */
const ended = (command: Command.Command) =>
  command.pipe(
    Command.workingDirectory(fileURLToPath(new URL("../..", import.meta.url))),
    Command.stdout("inherit"),
    Command.stderr("inherit"),
    Command.exitCode,
    Effect.flatMap((code) => code === 0 ? Effect.void : new Wrong({ message: `it ended with ${code}` }))
  )

const program = Effect.gen(function*() {
  const libraries = process.argv.includes("--stubs") ? yield* stubs : undefined
  const directory = yield* DiskStorageConfig.directory
  yield* Console.log(libraries === undefined ? "test:gpu" : "test:gpu over stub libraries: host memory, no GPU")
  for (const kind of ["gds", "host-staged", "gds-compat"] as const) {
    yield* Effect.scoped(Effect.gen(function*() {
      const path = yield* DevicePath.make({
        directory,
        order: [kind],
        ...(libraries === undefined
          ? {}
          : { memory: { library: libraries.cuda }, cuFile: { library: libraries.cufile } })
      })
      if (Option.isNone(path.memory)) return yield* line(kind, `not here: ${path.reasons.slice(0, 2).join("; ")}`)
      const memory = path.memory.value
      yield* line("device", `${memory.device.name}, CUDA ${memory.driverVersion}`)
      yield* Option.match(path.cuFile, {
        onNone: () => line("cuFile", "not there"),
        onSome: ({ mode, modeReason, version }) => line("cuFile", `${version}, ${mode}: ${modeReason}`)
      })
      yield* compared(path, memory, directory)
    }))
  }
  yield* nixlFound(libraries === undefined ? {} : { library: libraries.nixl })
  yield* callCost(libraries === undefined ? {} : { library: libraries.cuda })
  const mode = libraries === undefined ? "real" : "stubs"
  yield* Console.log(`  tests that hold on any library, over the ${mode} ones`)
  yield* ended(
    Command.make("test/run.sh", "test/gpu/libraries.test.ts").pipe(Command.env({ EDS_GPU_LIBRARIES: mode }))
  )
  yield* ended(
    Command.make("npm", "run", "--silent", "gpu-offload", ...(libraries === undefined ? [] : ["--", "--stubs"]))
  )
})

program.pipe(
  Effect.scoped,
  Effect.provide(Layer.merge(Linux.layer, NodeContext.layer)),
  Effect.provide(Logger.remove(Logger.defaultLogger)),
  // What is decided is printed.
  ProcessRuntime.runMain({ disablePrettyLogger: true })
)
