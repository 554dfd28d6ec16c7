/** What the engines count. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as AlignedBuffer from "../src/AlignedBuffer.js"
import * as BlockStore from "../src/BlockStore.js"
import * as DiskMetrics from "../src/DiskMetrics.js"
import * as DiskStorage from "../src/DiskStorage.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"

const count = (metric: Metric.Metric.Counter<number>) => Effect.map(Metric.value(metric), (state) => state.count)

const counts = Effect.all({
  read: count(DiskMetrics.operations.read),
  written: count(DiskMetrics.operations.write),
  synced: count(DiskMetrics.operations.sync),
  bytesRead: count(DiskMetrics.bytes.read),
  bytesWritten: count(DiskMetrics.bytes.write),
  failed: count(DiskMetrics.errors("write", "EIO")),
  latencies: Effect.map(Metric.value(DiskMetrics.latency.write), (state) => state.count)
})

const growth = <E, R>(use: Effect.Effect<unknown, E, R>) =>
  Effect.gen(function*() {
    const before = yield* counts
    yield* use
    const after = yield* counts
    return {
      read: after.read - before.read,
      written: after.written - before.written,
      synced: after.synced - before.synced,
      bytesRead: after.bytesRead - before.bytesRead,
      bytesWritten: after.bytesWritten - before.bytesWritten,
      failed: after.failed - before.failed,
      latencies: after.latencies - before.latencies
    }
  })

const on = (options: SimulatedSyscalls.EngineOptions) =>
  Layer.provideMerge(SimulatedSyscalls.layerEngine(options), SimulatedSyscalls.layer())

const pages = 6
const transfers = Effect.map(
  Effect.replicateEffect(AlignedBuffer.make(4096), pages),
  (buffers) => buffers.map((buffer, index) => ({ buffer, offset: index * 4096 }))
)

describe("metrics", () => {
  it.live("count operations, bytes and latencies by direction", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size: 1024 * 1024 })
      const batch = yield* transfers
      const grown = yield* growth(Effect.gen(function*() {
        yield* storage.writeBatch(batch)
        for (const { buffer, offset } of batch) yield* storage.read(offset, buffer)
        yield* storage.sync
      }))
      const { latencies, ...rest } = grown
      assert.deepStrictEqual(rest, {
        read: pages,
        written: pages,
        synced: 1,
        bytesRead: pages * 4096,
        bytesWritten: pages * 4096,
        failed: 0
      })
      assert.isAtLeast(latencies, 1)
      assert.isAtMost(latencies, pages)
    }).pipe(Effect.scoped, Effect.provide(on({ seed: 1 }))))

  it.live("count failures by errno, and what is in flight", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size: 1024 * 1024 })
      const batch = yield* transfers
      const grown = yield* growth(storage.writeBatch(batch))
      assert.strictEqual(grown.failed, pages)
      assert.strictEqual(grown.written, pages)
      assert.strictEqual(grown.bytesWritten, 0)
      assert.strictEqual((yield* Metric.value(DiskMetrics.inFlight)).value, 0)
    }).pipe(Effect.scoped, Effect.provide(on({ fail: 1 }))))

  it.live("name no path, no hash and no content", () =>
    Effect.gen(function*() {
      const [secret, hash] = ["sesame", 0xfeed_face_cafe_beefn]
      yield* Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size: 1024 * 1024, directory: `/tmp/${secret}` })
        const store = yield* BlockStore.make([storage], { blockBytes: 4096, content: secret })
        const data = yield* AlignedBuffer.make(4096)
        data.bytes.set(new TextEncoder().encode(secret))
        yield* store.offload([{ hash, data }])
        yield* store.onboard([{ hash, into: data }, { hash: hash + 1n, into: yield* AlignedBuffer.make(4096) }])
        yield* store.remove([hash])
      }).pipe(Effect.scoped, Effect.provide(on({})))
      yield* Effect.flip(
        DiskStorage.make({ size: 1024 * 1024, directory: `/tmp/${secret}` }).pipe(
          Effect.flatMap((storage) => storage.writeBytes(0, new TextEncoder().encode(secret))),
          Effect.scoped,
          Effect.provide(on({ fail: 1 }))
        )
      )
      const named = (yield* Metric.snapshot).map(({ metricKey: { description, name, tags } }) =>
        [name, description, ...tags.flatMap(({ key, value }) => [key, value])].join(" ")
      )
      assert.isTrue(named.some((words) => words.includes("block_store_blocks")))
      assert.isTrue(named.some((words) => words.includes("disk_storage_errors")))
      for (const words of named) {
        assert.notMatch(words, new RegExp(`${secret}|${hash}|${hash.toString(16)}|${hash + 1n}|/tmp|kvbm`, "i"))
      }
    }).pipe(Effect.provide(Logger.remove(Logger.defaultLogger))))
})
