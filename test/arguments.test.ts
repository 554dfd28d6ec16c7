/** What callers without a compiler may hand over: each public function answers with a typed failure, and is as good as before. */
import { BadArgument } from "@effect/platform/Error"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as AlignedBuffer from "../src/AlignedBuffer.js"
import * as BlockLayout from "../src/BlockLayout.js"
import * as BlockStore from "../src/BlockStore.js"
import * as DirectIo from "../src/DirectIo.js"
import * as DiskAllocator from "../src/DiskAllocator.js"
import * as DiskStorage from "../src/DiskStorage.js"
import { isDiskStorageError } from "../src/DiskStorageError.js"
import * as IoUring from "../src/IoUring.js"
import * as DiskKeyValueStore from "../src/KeyValueStore.js"
import * as LinuxAio from "../src/LinuxAio.js"
import * as NodeIo from "../src/NodeIo.js"
import * as OffloadFilter from "../src/OffloadFilter.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import { assertSettled, blank, offload, onboard, page, simulated } from "./blocks/blocks.js"

/** A function as JavaScript sees it. */
const untyped = (f: Function) => (...args: ReadonlyArray<unknown>): unknown => Reflect.apply(f, undefined, args)

const nothing = Object.create(null)
const sparse = Array(3)
const endless = Array(2 ** 32 - 1)
const detached = () => {
  const bytes = new Uint8Array(8)
  structuredClone(bytes.buffer, { transfer: [bytes.buffer] })
  return bytes
}
const symbol = Symbol("no value")

/** No object, and no array. */
const scalars: ReadonlyArray<unknown> = [null, undefined, 5, NaN, "text", true, 5n, symbol, () => {}]
const notNumbers: ReadonlyArray<unknown> = [null, undefined, "0", 5n, {}, [], nothing, symbol]
const wrongNumbers: ReadonlyArray<unknown> = [...notNumbers, NaN, -1, 0.5, 2 ** 53, Infinity]
const notHashes: ReadonlyArray<unknown> = [null, undefined, 5, NaN, "5", {}, nothing, symbol, -1n, 2n ** 64n]
const notBuffers: ReadonlyArray<unknown> = [null, undefined, 5, "bytes", {}, nothing, new Uint8Array(page), detached()]
const notArrays: ReadonlyArray<unknown> = [...scalars, {}, nothing, new Set(), { length: 1 }, endless]
const notStrings: ReadonlyArray<unknown> = [null, 5, true, 5n, {}, nothing, symbol]

// Their services are those of the test.
const isEffect = (u: unknown): u is Effect.Effect<unknown, unknown> => Effect.isEffect(u)
const isLayer = (u: unknown): u is Layer.Layer<never, unknown> => Layer.isLayer(u)
const isStream = (u: unknown): u is Stream.Stream<unknown, unknown> =>
  typeof u === "object" && u !== null && Stream.StreamTypeId in u

/** What an effect, a stream or an Either fails with, which is typed; none of the three, and a defect, fails the test. */
const failureOf = (outcome: unknown, what: string): Effect.Effect<unknown> =>
  Effect.gen(function*() {
    if (Either.isEither(outcome)) return Either.isLeft(outcome) ? outcome.left : assert.fail(`${what} succeeded`)
    const effect: Effect.Effect<unknown, unknown, Scope.Scope> = isEffect(outcome)
      ? outcome
      : isLayer(outcome)
      ? Layer.build(outcome)
      : isStream(outcome)
      ? Stream.runDrain(outcome)
      : assert.fail(`${what} is no effect`)
    const exit = yield* Effect.exit(Effect.scoped(effect))
    if (Exit.isSuccess(exit)) return assert.fail(`${what} succeeded`)
    const failure = Cause.failureOption(exit.cause)
    assert.deepStrictEqual([...Cause.defects(exit.cause)], [], what)
    return failure._tag === "Some" ? failure.value : assert.fail(`${what}: ${Cause.pretty(exit.cause)}`)
  })

/** Whether its message can be made, and it is an error of this library or of the interface that it implements. */
const assertTyped = (failure: unknown, what: string) => {
  assert.isTrue(
    isDiskStorageError(failure) || failure instanceof BadArgument ||
      (typeof failure === "object" && failure !== null && "_tag" in failure && failure._tag === "ConfigError"),
    `${what}: ${String(failure)}`
  )
  assert.isAbove(String(failure instanceof Error ? failure.message : failure).length, 10, what)
}

const shown = (args: ReadonlyArray<unknown>) =>
  args.map((arg) => typeof arg === "object" && arg !== null ? Object.prototype.toString.call(arg) : String(arg)).join(
    ", "
  )

type Case = readonly [name: string, f: Function, calls: ReadonlyArray<ReadonlyArray<unknown>>]

const check = (cases: ReadonlyArray<Case>) =>
  Effect.forEach(cases, ([name, f, calls]) =>
    Effect.forEach(calls, (args) => {
      const what = `${name}(${shown(args)})`
      return Effect.map(
        Effect.suspend(() => failureOf(untyped(f)(...args), what)),
        (failure) => assertTyped(failure, what)
      )
    }, { discard: true }), { discard: true })

/** One call for each value. */
const each = (values: ReadonlyArray<unknown>, call: (value: unknown) => ReadonlyArray<unknown> = (value) => [value]) =>
  values.map(call)

/** Each element of a batch that is none fails alone. */
const assertEachRefused = (results: unknown, elements: number, what: string) => {
  if (typeof results !== "object" || results === null || !("failures" in results)) return assert.fail(what)
  const { failures } = results
  if (!Array.isArray(failures)) return assert.fail(what)
  assert.strictEqual(failures.length, elements, what)
  for (const { error } of failures) assertTyped(error, what)
}

describe("arguments of untyped callers", { timeout: 120_000 }, () => {
  it.scopedLive("of a storage are typed failures, and it transfers as before", () =>
    Effect.gen(function*() {
      const options = { size: 4 * page, directIo: "preferred" as const }
      const storage = yield* DiskStorage.make(options)
      const buffer = yield* blank(page)
      yield* check([
        ["make", DiskStorage.make, [
          ...each([...scalars, nothing, []]),
          ...each(wrongNumbers, (size) => [{ size }]),
          ...each([...notStrings, ""], (directory) => [{ ...options, directory: directory ?? 5 }]),
          ...each(notStrings, (keepAt) => [{ ...options, keepAt: keepAt ?? 5 }]),
          ...each(["on", 5, {}, nothing, symbol], (directIo) => [{ ...options, directIo }]),
          ...each([5, "x", nothing, symbol], (fallback) => [{ ...options, fallback }]),
          ...each([5, "x", nothing, symbol], (openStrategy) => [{ ...options, openStrategy }]),
          ...each([null, 5, "true", nothing, symbol], (sweep) => [{ ...options, sweep }]),
          ...each([null, 5, "true"], (prewrite) => [{ ...options, prewrite }]),
          ...each([null, 0, NaN, "5", nothing, symbol], (failureLimit) => [{ ...options, failureLimit }]),
          ...each([0, -1, NaN, "soon", {}, nothing, symbol], (retryAfter) => [{ ...options, retryAfter }]),
          ...each([0, -1, NaN, "soon", {}, nothing], (releaseTimeout) => [{ ...options, releaseTimeout }])
        ]],
        ["layer", DiskStorage.layer, each([null, undefined, 5, nothing])],
        ["layerConfig", DiskStorage.layerConfig, each([null, undefined, 5])],
        ["sweep", DiskStorage.sweep, [...each([undefined, ...notStrings]), ["/tmp", null], ["/tmp", { dryRun: 1 }]]],
        ["read", storage.read, [
          ...each(wrongNumbers, (offset) => [offset, buffer]),
          ...each(notBuffers, (into) => [0, into])
        ]],
        ["write", storage.write, [
          ...each(wrongNumbers, (offset) => [offset, buffer]),
          ...each(notBuffers, (from) => [0, from])
        ]],
        ["readBatch", storage.readBatch, each(notArrays)],
        ["writeBatch", storage.writeBatch, each(notArrays)],
        ["readBytes", storage.readBytes, [
          ...each(wrongNumbers, (offset) => [offset, 1]),
          ...each(wrongNumbers, (length) => [0, length])
        ]],
        ["writeBytes", storage.writeBytes, [
          ...each(wrongNumbers, (offset) => [offset, new Uint8Array(1)]),
          ...each([...notNumbers, 5, new ArrayBuffer(8), detached(), [1, 2]], (bytes) => [0, bytes])
        ]],
        ["stream", storage.stream, [
          ...each(scalars),
          ...each(wrongNumbers, (offset) => [{ offset, length: 1 }]),
          ...each(wrongNumbers, (length) => [{ offset: 0, length }]),
          ...each([null, "5", 5n, nothing, NaN, -1, 0], (chunk) => [{ offset: 0, length: 1 }, chunk])
        ]],
        [
          "sink",
          (offset: never) => Stream.run(Stream.make(new Uint8Array(1)), storage.sink(offset)),
          each(wrongNumbers)
        ],
        [
          "an empty sink",
          (offset: never) => Stream.run(Stream.empty, storage.sink(offset)),
          each(wrongNumbers)
        ],
        [
          "what goes into a sink",
          (bytes: never) => Stream.run(Stream.make(bytes), storage.sink(0)),
          each([...scalars, [], nothing, detached()])
        ],
        ["keepAs", storage.keepAs, each([...scalars, "mark", [1], detached()])]
      ])
      const wrong = [null, undefined, 5, {}, { offset: 0 }, { buffer }, { offset: "0", buffer }, {
        offset: NaN,
        buffer
      }]
      for (const batch of [storage.readBatch, storage.writeBatch]) {
        for (const elements of [wrong, sparse, [{ offset: 0, buffer: new Uint8Array(page) }]]) {
          const results = yield* Effect.flatMap(
            Effect.sync(() => untyped(batch)(elements)),
            (effect) => isEffect(effect) ? effect : Effect.die("no effect")
          )
          assertEachRefused(results, elements.length, "a batch")
        }
        const mixed = untyped(batch)([null, { offset: 0, buffer }, 5])
        const results = yield* (isEffect(mixed) ? mixed : Effect.die("no effect"))
        assertEachRefused(results, 2, "a mixed batch")
      }
      const refusedBy = (kind: unknown, transfer: unknown) => {
        let error: unknown
        untyped(storage.unsafeTransfer)(kind, transfer, (failure: unknown) => {
          error = failure
        })
        return error
      }
      for (const transfer of wrong) assertTyped(refusedBy("read", transfer), shown([transfer]))
      for (const kind of [null, 5, "sync"]) assertTyped(refusedBy(kind, { offset: 0, buffer }), shown([kind]))

      yield* storage.writeBytes(0, new Uint8Array(page).fill(7))
      yield* storage.read(0, buffer)
      assert.isTrue(buffer.bytes.every((byte) => byte === 7))
      assert.strictEqual(yield* Stream.run(Stream.make(Uint8Array.of(1)), storage.sink(0)), 1)
      assert.deepInclude(yield* storage.health, { corrupted: 0, write: { failures: 0, degraded: false } })
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("of a block store are typed failures, and it stores as before", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make({ size: 16 * page, directIo: "preferred" })
      const options = { blockBytes: page }
      const spare = yield* DiskStorage.make({ size: 16 * page, directIo: "preferred" })
      const store = yield* BlockStore.make([storage], options)
      const data = yield* blank(page)
      assert.deepStrictEqual(yield* offload(store, [1, 2]), ["stored", "stored"])
      const streamed = (f: Function) => (element: unknown) =>
        Stream.runForEach(
          (() => {
            const stream = untyped(f)(Stream.make(element))
            return isStream(stream) ? stream : assert.fail("no stream")
          })(),
          (told) =>
            typeof told === "object" && told !== null && "result" in told && Either.isEither(told.result)
              ? told.result
              : Effect.die("nothing is told")
        )
      yield* check([
        ["make", BlockStore.make, [
          ...each([...notArrays, [], [null], sparse, [{}], [5]], (storages) => [storages, options]),
          ...each([...scalars, nothing], (options) => [[spare], options]),
          ...each([...wrongNumbers, 0], (blockBytes) => [[spare], { blockBytes }]),
          ...each(notStrings.slice(1), (content) => [[spare], { ...options, content }]),
          ...each(["md5", 5, nothing, symbol], (checksum) => [[spare], { ...options, checksum }]),
          ...each([null, 0, "5", nothing], (maxBlocksInFlight) => [[spare], { ...options, maxBlocksInFlight }]),
          ...each([null, 0, "5", nothing], (eventCapacity) => [[spare], { ...options, eventCapacity }]),
          ...each([null, 0, "5", nothing], (failureLimit) => [[spare], { ...options, failureLimit }])
        ]],
        ["layerConfig", BlockStore.layerConfig, [
          ...each([...scalars, nothing, {}]),
          ...each([null, 5, "/tmp", [], {}, [5], sparse], (directories) => [{ ...options, size: 1e6, directories }]),
          ...each([5, {}, nothing, "\0"], (keepAt) => [{ ...options, size: 1e6, keepAt }]),
          ...each([NaN, -1, "1000000", nothing], (size) => [{ ...options, size }])
        ]],
        ["offload", store.offload, [
          ...each(notArrays),
          ...each([null, 5, "x", () => {}], (options) => [[{ hash: 9n, data }], options]),
          ...each([null, 1, "yes", nothing], (replace) => [[{ hash: 9n, data }], { replace }])
        ]],
        ["onboard", store.onboard, each(notArrays)],
        ["offloadStream", store.offloadStream, each([...scalars, {}, [1], nothing, Effect.void])],
        ["onboardStream", store.onboardStream, each([...scalars, {}, [1], nothing, Effect.void])],
        ["an element of offloadStream", streamed(store.offloadStream), each([null, 5, {}, { hash: 5, data }])],
        ["an element of onboardStream", streamed(store.onboardStream), each(notHashes)],
        ["match", store.match, [...each(notArrays), ...each(notHashes, (hash) => [[1n, hash]]), [sparse]]],
        ["leasePrefix", store.leasePrefix, [...each(notArrays), ...each(notHashes, (hash) => [[1n, hash]]), [sparse]]],
        ["touch", store.touch, [...each(notArrays), ...each(notHashes, (hash) => [[1n, hash]]), [sparse]]],
        ["remove", store.remove, [...each(notArrays), ...each(notHashes, (hash) => [[1n, hash]]), [sparse]]],
        ["has", store.has, each(notHashes)],
        ["lease", store.lease, each(notHashes)],
        ["a lease's onboard", (yield* store.lease(1n)).onboard, each(notBuffers)]
      ])
      const elements = [
        null,
        undefined,
        5,
        {},
        nothing,
        ...notHashes.map((hash) => ({ hash, data, into: data })),
        ...notBuffers.map((memory) => ({ hash: 1n, data: memory, into: memory })),
        ...notBuffers.map((memory) => ({ hash: 99n, data: memory, into: memory })),
        { hash: 1n },
        { hash: 1n, into: { move: () => {}, byteLength: page }, data: { move: () => {}, byteLength: page } }
      ]
      for (const batch of [store.offload, store.onboard]) {
        for (const some of [elements, sparse]) {
          const effect = untyped(batch)(some)
          assertEachRefused(yield* isEffect(effect) ? effect : Effect.die("no effect"), some.length, "a batch")
        }
      }
      for (const priority of [null, NaN, -1, 16, "5", nothing]) {
        const effect = untyped(store.offload)([{ hash: 77n, data, priority }])
        assertEachRefused(yield* isEffect(effect) ? effect : Effect.die("no effect"), 1, shown([priority]))
      }

      assert.deepStrictEqual((yield* store.hashes).length, 2)
      for (const hash of [1, 2]) assert.strictEqual(yield* onboard(store, hash), 0)
      assert.deepStrictEqual(yield* offload(store, [3]), ["stored"])
      assert.strictEqual(yield* store.remove([3n]), 1)
      // The lease above lives as long as the test.
      assert.deepInclude(yield* store.stats, { inFlight: 0, pinned: 1, failed: 0 })
      const other = yield* BlockStore.make([spare], options)
      assert.deepStrictEqual(yield* offload(other, [1]), ["stored"])
      yield* assertSettled(other)
    }).pipe(Effect.provide(simulated())))

  it.scopedLive("of memory, filters, allocators and key-value stores are typed failures", () =>
    Effect.gen(function*() {
      const buffer = yield* blank(2 * page)
      const allocator = yield* DiskAllocator.make({ budget: 1e6 })
      const pool = { buffers: 1, byteLength: page }
      yield* check([
        ["AlignedBuffer.make", AlignedBuffer.make, each([...wrongNumbers, 0])],
        ["fromUint8Array", AlignedBuffer.fromUint8Array, each([...notBuffers, [1], new ArrayBuffer(8)])],
        ["slice", AlignedBuffer.slice, [
          ...each(notBuffers, (from) => [from, 0, 1]),
          ...each(wrongNumbers, (start) => [buffer, start, 1]),
          ...each(wrongNumbers, (end) => [buffer, 0, end])
        ]],
        ["pool", AlignedBuffer.pool, [
          ...each([...scalars, nothing, {}]),
          ...each([...wrongNumbers, 0], (buffers) => [{ ...pool, buffers }]),
          ...each([...wrongNumbers, 0], (byteLength) => [{ ...pool, byteLength }])
        ]],
        ["OffloadFilter.frequency", OffloadFilter.frequency, [
          ...each([null, 5, "x"]),
          ...each([null, 0, NaN, "5", nothing], (minFrequency) => [{ minFrequency }]),
          ...each([null, 0, NaN, "5", nothing], (maxEntries) => [{ maxEntries }]),
          ...each([null, 0, NaN, "soon", nothing, symbol], (decayInterval) => [{ decayInterval }])
        ]],
        ["OffloadFilter.layerFrequency", OffloadFilter.layerFrequency, each([null, 5])],
        ["DiskAllocator.make", DiskAllocator.make, [
          ...each([...scalars, nothing]),
          ...each([...wrongNumbers, 0], (budget) => [{ budget }])
        ]],
        ["DiskAllocator.layer", DiskAllocator.layer, each([null, undefined, 5])],
        ["allocate", allocator.allocate, [...each([...scalars, nothing]), ...each(wrongNumbers, (size) => [{ size }])]]
      ])
      assert.strictEqual(yield* allocator.available, 1e6)

      const storage = yield* DiskStorage.make({ size: 8 * page, directIo: "preferred" })
      const store = Layer.succeed(BlockStore.BlockStore, yield* BlockStore.make([storage], { blockBytes: page }))
      yield* Effect.gen(function*() {
        const entries = yield* DiskKeyValueStore.make()
        yield* check([
          ["make", DiskKeyValueStore.make, [
            ...each([null, 5, "x"]),
            ...each([null, 0, NaN, "5", nothing], (concurrency) => [{ concurrency }])
          ]],
          ["get", entries.get, each([undefined, ...notStrings])],
          ["getUint8Array", entries.getUint8Array, each([undefined, ...notStrings])],
          ["has", entries.has, each([undefined, ...notStrings])],
          ["remove", entries.remove, each([undefined, ...notStrings])],
          ["set", entries.set, [
            ...each([undefined, ...notStrings], (key) => [key, "value"]),
            ...each([undefined, ...notStrings], (value) => ["key", value])
          ]]
        ])
        yield* entries.set("key", "value")
        assert.deepStrictEqual(yield* Effect.flatten(entries.get("key")), "value")
      }).pipe(Effect.provide(store))
    }).pipe(Effect.provide(simulated())))

  it.effect("of engines and of the doctor are typed failures", () =>
    Effect.gen(function*() {
      for (const { layer } of [IoUring, LinuxAio, NodeIo]) {
        yield* check([["layer", layer, [
          ...each([null, 5, "x"]),
          ...each([null, 0, NaN, "5", nothing], (depth) => [{ depth }]),
          ...each([null, 0, NaN, -1, "soon", {}, nothing, symbol], (stallTimeout) => [{ stallTimeout }])
        ]]])
      }
      yield* check([
        ["inspect", DirectIo.inspect, [...each([undefined, ...notStrings]), ["/tmp", null], ["/tmp", 5]]],
        ["extents", DirectIo.extents, each([...scalars.filter((value) => value !== "text"), {}, nothing])]
      ])
    }).pipe(Effect.provide(Layer.merge(SimulatedSyscalls.layer(), simulated()))))

  it.effect("of layouts are typed failures", () =>
    Effect.gen(function*() {
      const shape = { numLayers: 2, outerDim: 2, pageSize: 16, innerDim: 64, dtypeWidthBytes: 2 }
      const layout = yield* BlockLayout.fullyContiguous({ ...shape, numBlocks: 4 })
      const wrong = (make: (changed: object) => ReadonlyArray<unknown>) =>
        ["numLayers", "outerDim", "pageSize", "innerDim", "dtypeWidthBytes", "numBlocks", "alignment"].flatMap((name) =>
          wrongNumbers.filter((value) => name !== "alignment" || value !== undefined)
            .map((value) => make({ [name]: value }))
        )
      const contiguous = { ...shape, numBlocks: 4 }
      const separate = { ...contiguous, outerContiguous: true }
      const kind = { ...shape, kind: "fullyContiguous" }
      yield* check([
        ["fullyContiguous", BlockLayout.fullyContiguous, [
          ...each([...scalars, nothing]),
          ...wrong((changed) => [{ ...contiguous, ...changed }])
        ]],
        ["layerSeparate", BlockLayout.layerSeparate, [
          ...each([...scalars, nothing]),
          ...wrong((changed) => [{ ...separate, ...changed }]),
          ...each([null, undefined, 1, "true"], (outerContiguous) => [{ ...contiguous, outerContiguous }])
        ]],
        ["forCapacity", BlockLayout.forCapacity, [
          ...each(wrongNumbers, (bytes) => [bytes, kind]),
          ...each([...scalars, nothing], (options) => [1e9, options]),
          ...each([null, 5, "both", nothing], (kind) => [1e9, { ...shape, kind }])
        ]],
        ["block", layout.block, each(wrongNumbers)],
        ["region", layout.region, [
          ...each([...scalars, nothing]),
          ...each(wrongNumbers, (block) => [{ block, layer: 0, outer: 0 }]),
          ...each(wrongNumbers, (layer) => [{ block: 0, layer, outer: 0 }]),
          ...each(wrongNumbers, (outer) => [{ block: 0, layer: 0, outer }])
        ]],
        ["regionInBlock", layout.regionInBlock, [
          ...each([...scalars, nothing]),
          ...each(wrongNumbers, (layer) => [{ layer, outer: 0 }]),
          ...each(wrongNumbers, (outer) => [{ layer: 0, outer }])
        ]]
      ])
      assert.isTrue(Either.isRight(layout.block(0)))
    }))
})
