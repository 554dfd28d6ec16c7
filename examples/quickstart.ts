/**
 * `npm start`: acquires a storage as the environment says, fills it with blocks, reads them back and compares, registers a handle,
 * unlinks, releases, and shows that nothing is left. Stop it with Ctrl-C at any moment.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { FileSystem } from "@effect/platform/FileSystem"
import {
  AlignedBuffer,
  DiskStorage,
  DiskStorageConfig,
  DiskStorageError,
  IoEngine,
  Linux,
  ProcessRuntime,
  Syscalls
} from "effect-disk-storage"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { resolved } from "./directory.js"

/** A KV block of 16 tokens for a model of 8 layers, 4 KV heads of 128 and 2-byte numbers: keys and values. */
const blockBytes = 16 * 8 * 2 * 4 * 128 * 2

const mebibyte = 1024 * 1024
const bytes = (count: number) => `${count.toLocaleString("en")} bytes (${(count / mebibyte).toFixed(1)} MiB)`
const row = (label: string, value: string) => Console.log(`  ${label.padEnd(12)}${value}`)

/** Redraws one line on a terminal that can; prints nothing elsewhere. */
const progress = (label: string, done: number, total: number) =>
  Effect.sync(() => {
    if (!process.stdout.isTTY || process.env["TERM"] === "dumb") return
    const percent = Math.floor((100 * done) / total)
    process.stdout.write(done === total ? "\r\x1b[K" : `\r  ${label.padEnd(12)}${percent} %\x1b[K`)
  })

/** What a library that wants to know the file keeps for it: registered with the storage, released with it. */
class Handle extends Context.Tag("quickstart/Handle")<Handle, { readonly fd: number }>() {}

/** A different content for every block. */
const fill = (block: Uint8Array, index: number) => {
  const words = new Uint32Array(block.buffer, block.byteOffset, block.byteLength / 4)
  for (let word = 0; word < words.length; word++) words[word] = Math.imul(index + 1, 0x9e37_79b1) ^ word
}

const freeSpace = (directory: string) =>
  Effect.gen(function*() {
    const syscalls = yield* Syscalls.Syscalls
    return yield* Effect.acquireUseRelease(
      syscalls.open(directory, syscalls.flags.O_CLOEXEC),
      (fd) => Effect.map(syscalls.fstatfs(fd), (statfs) => statfs.available),
      (fd) => Effect.ignore(syscalls.close(fd))
    )
  })

const descriptorsOf = (path: string) =>
  Effect.gen(function*() {
    const fs = yield* FileSystem
    const fds = yield* fs.readDirectory("/proc/self/fd")
    // The descriptor that listed the directory is gone by now: it has no link to read.
    const links = yield* Effect.forEach(fds, (fd) => Effect.orElseSucceed(fs.readLink(`/proc/self/fd/${fd}`), () => ""))
    return links.filter((link) => link.startsWith(path)).length
  })

/** Every whole block, two at a time, each with a buffer of its own; then the rest of the storage. */
const overBlocks = <E, R>(
  storage: DiskStorage.DiskStorage,
  label: string,
  each: (index: number, block: AlignedBuffer.AlignedBuffer, offset: number) => Effect.Effect<void, E, R>
) =>
  Effect.gen(function*() {
    const blocks = Math.floor(storage.size / blockBytes)
    const started = yield* Clock.currentTimeMillis
    let done = 0
    yield* Effect.forEach(
      [0, 1],
      (lane) =>
        Effect.gen(function*() {
          const block = yield* AlignedBuffer.make(blockBytes)
          for (let index = lane; index < blocks; index += 2) {
            yield* each(index, block, index * blockBytes)
            yield* progress(label, ++done, blocks)
          }
        }),
      { concurrency: 2 }
    )
    const millis = Math.max(1, (yield* Clock.currentTimeMillis) - started)
    return `${blocks} blocks of ${blockBytes / 1024} KiB, ${Math.round(blocks * blockBytes / 1000 / millis)} MB/s`
  })

const use = (storage: DiskStorage.DiskStorage) =>
  Effect.gen(function*() {
    const written = yield* overBlocks(storage, "write", (index, block, offset) => {
      fill(block.bytes, index)
      return storage.write(offset, block)
    })
    // What is no whole block is written as bytes, which need no alignment.
    const rest = storage.size % blockBytes
    const last = new Uint8Array(rest).fill(0xab)
    yield* storage.writeBytes(storage.size - rest, last)
    yield* storage.sync
    yield* row("write", `${written}${rest === 0 ? "" : `, and ${rest} bytes`}`)

    const expected = new Uint8Array(blockBytes)
    const compare = (actual: Uint8Array, wanted: Uint8Array, offset: number) =>
      Buffer.compare(actual, wanted) === 0
        ? Effect.void
        : Effect.dieMessage(`the bytes at offset ${offset} are not those that were written`)
    const read = yield* overBlocks(storage, "read", (index, block, offset) =>
      Effect.flatMap(storage.read(offset, block), () => {
        fill(expected, index)
        return compare(block.bytes, expected, offset)
      }))
    yield* compare(yield* storage.readBytes(storage.size - rest, rest), last, storage.size - rest)
    yield* row("read", `${read}; every byte is the one written`)

    const acquireHandle = Effect.acquireRelease(
      storage.withFd((fd) =>
        Effect.succeed({ fd })
      ),
      () =>
        row("handle", "released, before the file is closed")
    )
    const { unlink } = yield* storage.registerThenUnlink(Handle, acquireHandle)
    const linked = (yield* storage.unlinked) ? "unlinked" : "still linked"
    yield* row(
      "handle",
      `registered (${yield* storage.isRegistered(Handle)}); then the file was ${
        unlink._tag === "Right" ? linked : unlink.left.message
      }`
    )
  })

const program = Effect.gen(function*() {
  const options = yield* DiskStorageConfig.options({ blockBytes, size: 256 * mebibyte })
  const engine = yield* IoEngine.IoEngine
  const fs = yield* FileSystem
  const directory = yield* resolved(options.directory ?? "/tmp/")
  yield* Console.log("\neffect-disk-storage\n")
  yield* row("directory", directory)
  const storage = yield* Effect.scoped(Effect.gen(function*() {
    const storage = yield* DiskStorage.make(options)
    const { alignment, allocation, directIo } = storage
    yield* row("path", storage.path)
    yield* row("size", bytes(storage.size))
    yield* row("filesystem", storage.filesystem.name)
    yield* row(
      "allocation",
      `${allocation.method}; overwrites ${allocation.overwritesMayRunOutOfSpace ? "may" : "cannot"} run out of space`
    )
    yield* row(
      "O_DIRECT",
      `${directIo.flag ? "set and read back" : "not set"}; I/O is ${directIo.verdict}: ${directIo.reason}`
    )
    yield* row("alignment", `memory ${alignment.memory}, offset ${alignment.offset}, length ${alignment.length} bytes`)
    yield* row("engine", engine.name)
    yield* use(storage)
    const held = yield* freeSpace(directory)
    return { path: storage.path, held }
  }))
  const descriptors = yield* descriptorsOf(storage.path)
  const exists = yield* fs.exists(storage.path)
  const released = (yield* freeSpace(directory)) - storage.held
  yield* row(
    "released",
    `descriptors on it: ${descriptors}; file: ${exists ? "STILL THERE" : "gone"}; given back: ${bytes(released)}`
  )
  yield* Console.log("")
})

/** What a person needs to know of a failure: its message. A defect keeps its trace. */
const explain = (cause: Cause.Cause<unknown>) => {
  if (Cause.isInterruptedOnly(cause)) return Console.error("\n  stopped, and released\n")
  const failures = Array.from(
    Cause.failures(cause),
    (failure) => DiskStorageError.isDiskStorageError(failure) ? failure.message : String(failure)
  )
  return Console.error(`\n  ${failures.join("\n  ") || Cause.pretty(cause)}\n`)
}

program.pipe(
  Effect.provideService(DiskStorage.ProgressListener, ({ done, step, total }) => progress(step, done, total)),
  Effect.provide(Layer.merge(Linux.layer, NodeFileSystem.layer)),
  Effect.onError(explain),
  ProcessRuntime.runMain({ disableErrorReporting: true })
)
