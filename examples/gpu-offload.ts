/**
 * KV blocks from the memory of a GPU to a disk and back into other memory of it, compared byte by byte, by whichever path there is here, and
 * why it is that one. `npm run gpu-offload`, or `npm run gpu-offload -- --stubs` where there is no GPU: libraries with the same functions
 * over host memory, compiled with cc from test/gpu/stubs.
 */
import { NodeContext } from "@effect/platform-node"
import {
  AlignedBuffer,
  BlockStore,
  DeviceMemory,
  DevicePath,
  DiskStorage,
  DiskStorageConfig,
  Linux,
  ProcessRuntime
} from "effect-disk-storage"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { compileStubs } from "../test/gpu/stubs/compile.js"
import { resolved } from "./directory.js"

const blockBytes = 1024 * 1024
const blocks = 64

class Wrong extends Data.TaggedError("Wrong")<{ readonly message: string }> {}

/** The stub libraries, gone with the Scope. */
const stubs = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-disk-storage-stubs-"))),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  ),
  compileStubs
)

const line = (name: string, text: string) => Console.log(`  ${name.padEnd(10)}${text}`)

const perSecond = (duration: Duration.Duration) =>
  `${(blocks * blockBytes / 1e6 / Duration.toSeconds(duration)).toFixed(0)} MB/s`

/** Another byte in each place of each block, so that no block passes for another. */
const fill = (bytes: Uint8Array, block: number) => {
  for (let at = 0; at < bytes.byteLength; at++) bytes[at] = (at * 7 + (at >> 12) + block * 13) % 251
}

const program = Effect.gen(function*() {
  const libraries = process.argv.includes("--stubs") ? yield* stubs : undefined
  const options = yield* DiskStorageConfig.options({ size: blocks * blockBytes })
  yield* Console.log("gpu-offload")
  yield* line("directory", yield* resolved(options.directory ?? "/tmp/"))
  const path = yield* DevicePath.make(
    libraries === undefined ? {} : { memory: { library: libraries.cuda }, cuFile: { library: libraries.cufile } }
  )
  if (Option.isNone(path.memory)) {
    yield* line("path", path.kind)
    for (const reason of path.reasons) yield* line("", reason)
    return yield* line("", "Without a GPU: npm run gpu-offload -- --stubs")
  }
  const memory = path.memory.value
  yield* line("device", libraries === undefined ? memory.device.name : `${memory.device.name}: host memory, no GPU`)
  yield* line("path", path.kind)
  for (const reason of path.reasons) yield* line("", reason)
  for (const improvement of path.improvements) yield* line("better", improvement)

  const storage = yield* DiskStorage.make({ ...options, size: blocks * blockBytes, directIo: "preferred" })
  const store = yield* BlockStore.make([storage], { blockBytes })
  const device = yield* path.blocks(store)
  const [cache, other] = [yield* memory.allocate(blocks * blockBytes), yield* memory.allocate(blocks * blockBytes)]
  const regions = (buffer: DeviceMemory.DeviceBuffer) =>
    Effect.forEach(
      Array.from({ length: blocks }, (_, block) => block),
      (block) => DeviceMemory.region(buffer, block * blockBytes, blockBytes)
    )
  const [from, into] = [yield* regions(cache), yield* regions(other)]
  const host = yield* AlignedBuffer.make(blockBytes)
  for (const [block, region] of from.entries()) {
    fill(host.bytes, block)
    yield* memory.copyToDevice(host, region)
  }
  // Never in what was filled in: the blocks have to come from the disk.
  host.bytes.fill(0xff)
  for (const region of into) yield* memory.copyToDevice(host, region)

  const [offloading, offloaded] = yield* Effect.timed(
    device.offload(from.map((from, block) => ({ hash: BigInt(block), from })))
  )
  const [onboarding, onboarded] = yield* Effect.timed(
    device.onboard(into.map((into, block) => ({ hash: BigInt(block), into })))
  )
  for (const { error, index } of [...offloaded.failures, ...onboarded.failures]) {
    yield* line("failed", `block ${index}: ${error.message}`)
  }
  const expected = new Uint8Array(blockBytes)
  for (const [block, region] of into.entries()) {
    yield* memory.copyToHost(region, host)
    fill(expected, block)
    if (Buffer.compare(host.bytes, expected) !== 0) {
      return yield* new Wrong({ message: `block ${block} came back wrong` })
    }
  }
  yield* line("offloaded", `${blocks} blocks of ${blockBytes} bytes, device to disk: ${perSecond(offloading)}`)
  yield* line("onboarded", `disk to other memory of the device: ${perSecond(onboarding)}`)
  yield* line("compared", "every byte is the one that was put into the device")
})

program.pipe(
  Effect.scoped,
  Effect.provide(Layer.merge(Linux.layer, NodeContext.layer)),
  // The decision is printed, and need not be logged.
  Effect.provide(Logger.remove(Logger.defaultLogger)),
  ProcessRuntime.runMain({ disablePrettyLogger: true })
)
