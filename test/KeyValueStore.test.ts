/** The same behaviour of the platform's store in memory and of the one on blocks, and what the latter alone does. */
import * as KeyValueStore from "@effect/platform/KeyValueStore"
import { assert, describe, it } from "@effect/vitest"
import type * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import * as HashMap from "effect/HashMap"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as BlockStore from "../src/BlockStore.js"
import * as DiskStorage from "../src/DiskStorage.js"
import { IoFailed, StoreClosed } from "../src/DiskStorageError.js"
import * as internal from "../src/internal/keyValueStore.js"
import * as DiskKeyValueStore from "../src/KeyValueStore.js"
import * as Linux from "../src/Linux.js"
import * as OffloadFilter from "../src/OffloadFilter.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import { layer as simulated } from "./support/simulation.js"

const blockBytes = 8192
const blocks = 64

const storeLayer = (
  options: Partial<BlockStore.BlockStoreOptions> & { readonly blocks?: number; readonly directory?: string } = {}
) =>
  BlockStore.layer({ blockBytes, ...options }).pipe(
    Layer.provideMerge(DiskStorage.layer({
      size: (options.blocks ?? blocks) * blockBytes,
      directory: options.directory ?? "/tmp",
      directIo: "preferred"
    }))
  )

const onSimulated = (options?: Parameters<typeof storeLayer>[0]) =>
  DiskKeyValueStore.layer().pipe(Layer.provideMerge(storeLayer(options)), Layer.provideMerge(simulated()))

const encoder = new TextEncoder()
const bytes = (...values: ReadonlyArray<number>) => Uint8Array.from(values)

/** Nothing of `logged` is lost; the console stays quiet. */
const logged = <A, E, R>(effect: Effect.Effect<A, E, R>) => {
  const entries: Array<{ readonly level: string; readonly message: unknown; readonly cause: Cause.Cause<unknown> }> = []
  const logger = Logger.make(({ annotations, cause, logLevel, message }) => {
    entries.push({ level: logLevel._tag, message: [message, HashMap.toEntries(annotations)], cause })
  })
  return Effect.map(
    Effect.provide(effect, Logger.replace(Logger.defaultLogger, logger)),
    (result) => ({ result, entries })
  )
}

const layers = {
  "KeyValueStore.layerMemory": KeyValueStore.layerMemory,
  "blocks on the simulated kernel": onSimulated(),
  "blocks on the real kernel": DiskKeyValueStore.layer().pipe(
    Layer.provide(storeLayer()),
    Layer.provide(Linux.layer),
    Layer.orDie
  )
}

for (const [name, layer] of Object.entries(layers)) {
  describe(name, () => {
    const test = (title: string, body: Effect.Effect<void, unknown, KeyValueStore.KeyValueStore>) =>
      it.effect(title, () => Effect.provide(body, layer))

    test(
      "gets what was set, and None else",
      Effect.gen(function*() {
        const store = yield* KeyValueStore.KeyValueStore
        assert.deepStrictEqual(yield* store.get("a"), Option.none())
        assert.deepStrictEqual(yield* store.getUint8Array("a"), Option.none())
        yield* store.set("a", "1")
        yield* store.set("b", bytes(0, 255, 7))
        assert.deepStrictEqual(yield* store.get("a"), Option.some("1"))
        assert.deepStrictEqual(yield* store.getUint8Array("b"), Option.some(bytes(0, 255, 7)))
        assert.deepStrictEqual(yield* store.get("c"), Option.none())
        yield* store.set("a", "longer than it was")
        assert.deepStrictEqual(yield* store.get("a"), Option.some("longer than it was"))
        yield* store.set("a", "2")
        assert.deepStrictEqual(yield* store.get("a"), Option.some("2"))
        assert.strictEqual(yield* store.size, 2)
      })
    )

    test(
      "gives strings as UTF-8, and bytes as Base64",
      Effect.gen(function*() {
        const store = yield* KeyValueStore.KeyValueStore
        for (const value of ["", "1", "grün 𝄞 \u0000 \uFEFFbom", "YQ=="]) {
          yield* store.set("text", value)
          assert.deepStrictEqual(yield* store.get("text"), Option.some(value))
          assert.deepStrictEqual(yield* store.getUint8Array("text"), Option.some(encoder.encode(value)))
        }
        for (
          const [value, base64] of [
            [bytes(), ""],
            [bytes(0), "AA=="],
            [bytes(251, 255), "+/8="],
            [bytes(1, 2, 3), "AQID"]
          ] as const
        ) {
          yield* store.set("bytes", value)
          assert.deepStrictEqual(yield* store.getUint8Array("bytes"), Option.some(value))
          assert.deepStrictEqual(yield* store.get("bytes"), Option.some(base64))
        }
      })
    )

    test(
      "takes every well-formed string as a key",
      Effect.gen(function*() {
        const store = yield* KeyValueStore.KeyValueStore
        const keys = ["", ".", "..", "a/b", "a", "A", "ä", "a\u0308", "\u0000", "\uFEFF", "𝄞", "x".repeat(4000)]
        for (const [value, key] of keys.entries()) yield* store.set(key, String(value))
        for (const [value, key] of keys.entries()) {
          assert.deepStrictEqual(yield* store.get(key), Option.some(String(value)))
        }
        assert.strictEqual(yield* store.size, keys.length)
      })
    )

    test(
      "removes, clears and counts",
      Effect.gen(function*() {
        const store = yield* KeyValueStore.KeyValueStore
        assert.strictEqual(yield* store.size, 0)
        assert.isTrue(yield* store.isEmpty)
        yield* store.remove("missing")
        yield* store.set("a", "1")
        yield* store.set("a", "2")
        yield* store.set("b", bytes(1))
        assert.isTrue(yield* store.has("a"))
        assert.isFalse(yield* store.has("c"))
        assert.strictEqual(yield* store.size, 2)
        assert.isFalse(yield* store.isEmpty)
        yield* store.remove("a")
        assert.isFalse(yield* store.has("a"))
        assert.deepStrictEqual(yield* store.get("a"), Option.none())
        assert.strictEqual(yield* store.size, 1)
        yield* store.clear
        assert.isTrue(yield* store.isEmpty)
        assert.deepStrictEqual(yield* store.getUint8Array("b"), Option.none())
        yield* store.set("a", "3")
        assert.deepStrictEqual(yield* store.get("a"), Option.some("3"))
      })
    )

    test(
      "modifies what is there",
      Effect.gen(function*() {
        const store = yield* KeyValueStore.KeyValueStore
        assert.deepStrictEqual(yield* store.modify("a", () => "never"), Option.none())
        assert.deepStrictEqual(yield* store.modifyUint8Array("a", () => bytes(1)), Option.none())
        assert.isFalse(yield* store.has("a"))
        yield* store.set("a", "1")
        assert.deepStrictEqual(yield* store.modify("a", (value) => `${value}!`), Option.some("1!"))
        assert.deepStrictEqual(yield* store.get("a"), Option.some("1!"))
        assert.deepStrictEqual(
          yield* store.modifyUint8Array("a", (value) => value.slice(0, 1)),
          Option.some(bytes(49))
        )
        assert.deepStrictEqual(yield* store.getUint8Array("a"), Option.some(bytes(49)))
      })
    )

    test(
      "gives bytes that are the caller's, and keeps none of the caller's",
      Effect.gen(function*() {
        const store = yield* KeyValueStore.KeyValueStore
        yield* store.set("a", "123")
        const first = Option.getOrThrow(yield* store.getUint8Array("a"))
        first.fill(0)
        assert.deepStrictEqual(yield* store.get("a"), Option.some("123"))
        yield* store.set("b", "456")
        assert.deepStrictEqual(first, bytes(0, 0, 0))
      })
    )

    test(
      "makes stores of a schema",
      Effect.gen(function*() {
        class User extends Schema.Class<User>("User")({ name: Schema.String, born: Schema.Date }) {}
        const store = yield* KeyValueStore.KeyValueStore
        const users = store.forSchema(User)
        const ada = new User({ name: "Ada", born: new Date("1815-12-10") })
        assert.deepStrictEqual(yield* users.get("ada"), Option.none())
        assert.deepStrictEqual(yield* users.modify("ada", () => ada), Option.none())
        yield* users.set("ada", ada)
        assert.deepStrictEqual(yield* users.get("ada"), Option.some(ada))
        const changed = new User({ ...ada, name: "Ada Lovelace" })
        assert.deepStrictEqual(yield* users.modify("ada", () => changed), Option.some(changed))
        assert.deepStrictEqual(yield* users.get("ada"), Option.some(changed))
        assert.isTrue(yield* users.has("ada"))
        assert.strictEqual(yield* users.size, 1)
        yield* store.set("bob", "{}")
        const failure = yield* Effect.flip(users.get("bob"))
        assert.strictEqual(failure._tag, "ParseError")
        yield* users.remove("ada")
        assert.isFalse(yield* users.has("ada"))
        yield* users.clear
        assert.isTrue(yield* users.isEmpty)
      })
    )

    test(
      "has prefixes, and a layer of a schema",
      Effect.gen(function*() {
        const store = yield* KeyValueStore.KeyValueStore
        const prefixed = KeyValueStore.prefix(store, "app/")
        yield* prefixed.set("a", "1")
        assert.deepStrictEqual(yield* store.get("app/a"), Option.some("1"))
        assert.deepStrictEqual(yield* prefixed.get("a"), Option.some("1"))
        assert.deepStrictEqual(yield* store.get("a"), Option.none())
        assert.isTrue(yield* prefixed.has("a"))
        assert.deepStrictEqual(yield* prefixed.modify("a", (value) => `${value}2`), Option.some("12"))
        yield* prefixed.remove("a")
        assert.isFalse(yield* store.has("app/a"))

        const numbers = KeyValueStore.layerSchema(Schema.NumberFromString, "test/Numbers")
        const kept = yield* Effect.provide(
          Effect.flatMap(numbers.tag, (store) => Effect.zipRight(store.set("n", 5), store.get("n"))),
          numbers.layer
        )
        assert.deepStrictEqual(kept, Option.some(5))
        assert.deepStrictEqual(yield* store.get("n"), Option.some("\"5\""))
      })
    )

    test(
      "never mixes values of 200 sets and gets at once",
      Effect.gen(function*() {
        const store = yield* KeyValueStore.KeyValueStore
        const keys = ["a", "b", "c", "d", "e"]
        const value = (key: string, number: number) => `${key}${number};`.repeat(1 + (number * 37) % 900)
        const mine = (key: string, text: string) => {
          const number = Number(text.slice(1, text.indexOf(";")))
          assert.strictEqual(text, value(key, number))
        }
        yield* Effect.forEach(
          Array.from({ length: 200 }, (_, number) => number),
          (number) => {
            const key = keys[number % keys.length] ?? ""
            return number % 2 === 0
              ? store.set(key, value(key, number))
              : Effect.map(store.get(key), Option.map((text) => mine(key, text)))
          },
          { concurrency: "unbounded", discard: true }
        )
        for (const key of keys) mine(key, Option.getOrThrow(yield* store.get(key)))
        assert.strictEqual(yield* store.size, keys.length)
      })
    )
  })
}

describe("blocks", () => {
  it.effect("give None for what was evicted", () =>
    Effect.gen(function*() {
      const store = yield* KeyValueStore.KeyValueStore
      for (let number = 0; number < 10; number++) yield* store.set(`k${number}`, String(number))
      assert.strictEqual(yield* store.size, 4)
      assert.deepStrictEqual(yield* store.get("k0"), Option.none())
      assert.isFalse(yield* store.has("k5"))
      assert.deepStrictEqual(yield* store.modify("k5", (value) => value), Option.none())
      assert.deepStrictEqual(yield* store.get("k9"), Option.some("9"))
    }).pipe(Effect.provide(onSimulated({ blocks: 4 }))))

  it.effect("work one at a time, in a store of one block", () =>
    Effect.gen(function*() {
      const store = yield* KeyValueStore.KeyValueStore
      yield* Effect.forEach(
        Array.from({ length: 50 }, (_, number) => `k${number % 3}`),
        (key, number) =>
          number % 2 === 0
            ? store.set(key, `${key}:${number}`)
            : Effect.map(store.get(key), Option.map((value) => assert.isTrue(value.startsWith(`${key}:`)))),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(yield* store.size, 1)
    }).pipe(Effect.provide(onSimulated({ blocks: 1 }))))

  it.scoped("are found by their key where hashes collide", () =>
    Effect.gen(function*() {
      const store = yield* internal.make({}, () => 7n)
      yield* store.set("a", "of a")
      assert.deepStrictEqual(yield* store.get("b"), Option.none())
      assert.deepStrictEqual(yield* store.get("a of a"), Option.none())
      assert.deepStrictEqual(yield* store.getUint8Array(""), Option.none())
      assert.isFalse(yield* store.has("b"))
      assert.deepStrictEqual(yield* store.modify("b", () => "never"), Option.none())
      assert.deepStrictEqual(yield* store.get("a"), Option.some("of a"))
      yield* store.set("b", "of b")
      assert.deepStrictEqual(yield* store.get("a"), Option.none())
      assert.deepStrictEqual(yield* store.get("b"), Option.some("of b"))
      assert.strictEqual(yield* store.size, 1)
    }).pipe(Effect.provide(storeLayer()), Effect.provide(simulated())))

  it("have hashes of 64 bits, from SHA-256", () => {
    assert.strictEqual(internal.hashOfKey(encoder.encode("abc")), 0xba7816bf8f01cfean)
  })

  it.effect("hold what fits to the byte, and refuse more", () =>
    Effect.gen(function*() {
      const store = yield* KeyValueStore.KeyValueStore
      const largest = blockBytes - 16 - "ä".length * 2
      yield* store.set("ä", "v".repeat(largest))
      assert.deepStrictEqual(yield* store.get("ä"), Option.some("v".repeat(largest)))
      for (const value of ["v".repeat(largest + 1), "ß".repeat(largest / 2 + 1), new Uint8Array(largest + 1)]) {
        const error = yield* Effect.flip(store.set("ä", value))
        assert.strictEqual(error._tag, "BadArgument")
        assert.strictEqual(error.module, "KeyValueStore")
        assert.strictEqual(error.method, "set")
        assert.match(error.message, /a key of 2 bytes and a value of 81\d\d bytes .* larger blockBytes/)
      }
      assert.deepStrictEqual(yield* store.get("ä"), Option.some("v".repeat(largest)))
      assert.deepStrictEqual(yield* store.get("k".repeat(2 * blockBytes)), Option.none())
      assert.strictEqual((yield* Effect.flip(store.set("k".repeat(blockBytes), "")))._tag, "BadArgument")
      yield* store.set("k".repeat(blockBytes - 16), "")
      assert.deepStrictEqual(yield* store.get("k".repeat(blockBytes - 16)), Option.some(""))
    }).pipe(Effect.provide(onSimulated())))

  it.effect("refuse strings that UTF-8 cannot say", () =>
    Effect.gen(function*() {
      const store = yield* KeyValueStore.KeyValueStore
      const lone = "\uD834"
      for (
        const effect of [
          store.get(lone),
          store.getUint8Array(lone),
          store.has(lone),
          store.remove(lone),
          store.set(lone, "1"),
          store.set("a", `a${lone}`)
        ]
      ) {
        const error = yield* Effect.flip(effect)
        assert.strictEqual(error._tag, "BadArgument")
        assert.match(error.message, /well-formed/)
      }
      assert.isTrue(yield* store.isEmpty)
    }).pipe(Effect.provide(onSimulated())))

  it.effect("keep the older value when a write fails", () =>
    Effect.gen(function*() {
      const store = yield* KeyValueStore.KeyValueStore
      const kernel = yield* SimulatedSyscalls.SimulatedKernel
      yield* store.set("a", "old")
      const writes = (yield* kernel.journal).filter(({ syscall }) => syscall === "pwrite").length
      yield* kernel.inject({ syscall: "pwrite", nth: writes + 1, outcome: { _tag: "Fail", code: "EIO" } })
      const error = yield* Effect.flip(store.set("a", "new"))
      if (error._tag !== "SystemError") return assert.fail(error._tag)
      assert.strictEqual(error.reason, "Unknown")
      assert.strictEqual(error.method, "set")
      assert.strictEqual(error.pathOrDescriptor, "a")
      assert.instanceOf(error.cause, IoFailed)
      assert.match(error.message, /KeyValueStore\.set \(a\): The write .*EIO/)
      assert.deepStrictEqual(yield* store.get("a"), Option.some("old"))
      yield* store.set("a", "new")
      assert.deepStrictEqual(yield* store.get("a"), Option.some("new"))
    }).pipe(Effect.provide(onSimulated())))

  it.effect("fail a get whose read fails, and are lost then", () =>
    Effect.gen(function*() {
      const store = yield* KeyValueStore.KeyValueStore
      const kernel = yield* SimulatedSyscalls.SimulatedKernel
      for (const method of ["get", "getUint8Array", "has"] as const) {
        yield* store.set("a", "1")
        const reads = (yield* kernel.journal).filter(({ syscall }) => syscall === "pread").length
        yield* kernel.inject({ syscall: "pread", nth: reads + 1, outcome: { _tag: "Fail", code: "EIO" } })
        const error = yield* Effect.flip(Effect.all([store[method]("a")]))
        assert.strictEqual(error._tag, "SystemError")
        assert.strictEqual(error.method, method)
        assert.isFalse(yield* store.has("a"))
      }
    }).pipe(Effect.provide(onSimulated())))

  it.effect("give None for corrupted entries, and warn", () =>
    Effect.gen(function*() {
      const store = yield* KeyValueStore.KeyValueStore
      const storage = yield* DiskStorage.DiskStorage
      yield* store.set("a", "the value of a")
      const all = yield* storage.readBytes(0, storage.size)
      const at = Buffer.from(all).indexOf("the value of a")
      yield* storage.writeBytes(at, encoder.encode("THE"))
      const { entries, result } = yield* logged(store.get("a"))
      assert.deepStrictEqual(result, Option.none())
      assert.deepStrictEqual(entries.map(({ level }) => level), ["Warning"])
      assert.strictEqual(yield* store.size, 0)
      const again = yield* logged(store.get("a"))
      assert.deepStrictEqual(again.entries, [])
    }).pipe(Effect.provide(onSimulated())))

  it.effect("check their header, also without a checksum", () =>
    Effect.gen(function*() {
      const store = yield* KeyValueStore.KeyValueStore
      const storage = yield* DiskStorage.DiskStorage
      const lengths = Buffer.alloc(4)
      for (
        const [at, byte] of [[0, 0], [4, 9], [5, 2], [6, 1], [8, 0xff], [11, 1], [11, 0xff], [13, 0xff], [
          15,
          0xff
        ]] as const
      ) {
        yield* store.clear
        yield* store.set("a", "1")
        const all = Buffer.from(yield* storage.readBytes(0, storage.size))
        const start = all.indexOf("EDKV\u0001\u0001")
        assert.isTrue(start >= 0)
        yield* storage.writeBytes(start + at, bytes(byte))
        const { entries, result } = yield* logged(store.get("a"))
        assert.deepStrictEqual(result, Option.none(), `${at}`)
        // A key of another length that is still inside of the block is another key.
        assert.strictEqual(entries.length, at === 8 ? 0 : 1, `${at}`)
        yield* storage.writeBytes(start, lengths)
      }
    }).pipe(Effect.provide(onSimulated({ checksum: "off", blocks: 1 }))))

  it.effect("hold nothing of other entries", () =>
    Effect.gen(function*() {
      const store = yield* DiskKeyValueStore.make({ concurrency: 1 })
      const storage = yield* DiskStorage.DiskStorage
      yield* store.set("secret", "s3cret".repeat(1000))
      yield* store.set("a", "1")
      assert.deepStrictEqual(yield* store.getUint8Array("a"), Option.some(bytes(49)))
      const all = Buffer.from(yield* storage.readBytes(0, storage.size))
      assert.strictEqual(all.indexOf("s3cret"), -1)
    }).pipe(Effect.scoped, Effect.provide(storeLayer({ blocks: 1 })), Effect.provide(simulated())))

  it.effect("pass a filter of offloads", () =>
    Effect.gen(function*() {
      const store = yield* KeyValueStore.KeyValueStore
      yield* store.set("a", "1")
      assert.deepStrictEqual(yield* store.get("a"), Option.some("1"))
    }).pipe(Effect.provide(onSimulated()), Effect.provide(OffloadFilter.layerFrequency({ minFrequency: 8 }))))

  it.effect("fail with SystemError after the end of the store", () =>
    Effect.gen(function*() {
      const store = yield* Effect.provide(KeyValueStore.KeyValueStore, onSimulated())
      for (const effect of [store.set("a", "1"), store.get("a")]) {
        const error = yield* Effect.flip(Effect.asVoid(effect))
        if (error._tag !== "SystemError") return assert.fail(error._tag)
        assert.strictEqual(error.reason, "BadResource")
        assert.instanceOf(error.cause, StoreClosed)
      }
    }))

  it.effect("want a concurrency and memory that there are", () =>
    Effect.gen(function*() {
      for (const concurrency of [0, -1, 1.5, Number.NaN]) {
        const error = yield* Effect.flip(Effect.scoped(DiskKeyValueStore.make({ concurrency })))
        assert.strictEqual(error._tag, "InvalidOption")
        assert.match(error.message, /concurrency/)
      }
      // 8 GiB
      const error = yield* Effect.flip(
        Effect.scoped(DiskKeyValueStore.make({ concurrency: 65_536 })).pipe(
          Effect.provideServiceEffect(
            BlockStore.BlockStore,
            Effect.map(BlockStore.BlockStore, (store) => ({ ...store, blockBytes: 131_072 }))
          )
        )
      )
      assert.strictEqual(error._tag, "BufferUnavailable")
    }).pipe(Effect.provide(storeLayer()), Effect.provide(simulated())))
})

describe("a store that is slow", () => {
  /** Offloads wait for `open` before and after; `writing` is done when the first has come. */
  const slow = (when: "before" | "after") =>
    Effect.gen(function*() {
      const store = yield* BlockStore.BlockStore
      const writing = yield* Deferred.make<void>()
      const open = yield* Deferred.make<void>()
      let held = 0
      let most = 0
      const offload: BlockStore.BlockStore["offload"] = (...args) =>
        Effect.gen(function*() {
          held += 1
          most = Math.max(most, held)
          yield* Deferred.succeed(writing, undefined)
          if (when === "before") yield* Deferred.await(open)
          const results = yield* store.offload(...args)
          if (when === "after") yield* Deferred.await(open)
          return results
        }).pipe(Effect.ensuring(Effect.sync(() => held -= 1)))
      return { store: { ...store, offload }, writing, open, most: () => most }
    })

  it.scoped("has the older value until the new one is written, and after an interruption before", () =>
    Effect.gen(function*() {
      const { open, store, writing } = yield* slow("before")
      const before = yield* DiskKeyValueStore.make()
      yield* before.set("a", "old")
      const kv = yield* Effect.provideService(DiskKeyValueStore.make(), BlockStore.BlockStore, store)
      const fiber = yield* Effect.fork(kv.set("a", "new"))
      yield* Deferred.await(writing)
      assert.deepStrictEqual(yield* kv.get("a"), Option.some("old"))
      const exit = yield* Fiber.interrupt(fiber)
      assert.isTrue(Exit.isInterrupted(exit))
      assert.deepStrictEqual(yield* kv.get("a"), Option.some("old"))
      yield* Deferred.succeed(open, undefined)
      yield* kv.set("a", "newer")
      assert.deepStrictEqual(yield* kv.get("a"), Option.some("newer"))
    }).pipe(Effect.provide(storeLayer()), Effect.provide(simulated())))

  it.scoped("writes as many at once as there are buffers", () =>
    Effect.gen(function*() {
      for (const [options, expected] of [[undefined, 4], [{ concurrency: 1 }, 1], [{ concurrency: 7 }, 7]] as const) {
        const { most, open, store } = yield* slow("after")
        const kv = yield* Effect.provideService(DiskKeyValueStore.make(options), BlockStore.BlockStore, store)
        const fiber = yield* Effect.fork(
          Effect.forEach(Array.from({ length: 20 }), (_, number) => kv.set(`k${number}`, `${number}`), {
            concurrency: "unbounded"
          })
        )
        yield* Effect.yieldNow()
        yield* Deferred.succeed(open, undefined)
        yield* Fiber.join(fiber)
        assert.strictEqual(most(), expected)
        for (let number = 0; number < 20; number++) {
          assert.deepStrictEqual(yield* kv.get(`k${number}`), Option.some(String(number)))
        }
      }
    }).pipe(Effect.provide(storeLayer()), Effect.provide(simulated())))

  it.live("on the real kernel leaves the older or the new value of an interrupted set, never another", () =>
    Effect.gen(function*() {
      const store = yield* KeyValueStore.KeyValueStore
      yield* store.set("a", "0")
      let last = 0
      for (let number = 1; number <= 50; number++) {
        const fiber = yield* Effect.fork(store.set("a", String(number)))
        for (let turn = 0; turn < number % 7; turn++) yield* Effect.yieldNow()
        yield* Fiber.interrupt(fiber)
        const value = Number(Option.getOrThrow(yield* store.get("a")))
        assert.isTrue(value === number || value === last, `${value}`)
        last = value
      }
      assert.strictEqual(yield* store.size, 1)
    }).pipe(Effect.provide(layers["blocks on the real kernel"])))
})

describe("the format", () => {
  it("gives what was encoded, for its key alone", () => {
    const text = FastCheck.fullUnicodeString({ maxLength: 40 })
    FastCheck.assert(
      FastCheck.property(text, text, FastCheck.oneof(text, FastCheck.uint8Array({ maxLength: 100 })), (a, b, value) => {
        const block = new Uint8Array(512).fill(0xa5)
        const key = encoder.encode(a)
        internal.encode(block, key, value)
        const decoded = internal.decode(block, key)
        if (typeof decoded === "string") return assert.fail(decoded)
        const expected = typeof value === "string" ? encoder.encode(value) : value
        assert.deepStrictEqual(new Uint8Array(decoded.block.subarray(decoded.from, decoded.to)), expected)
        assert.strictEqual(decoded.isString, typeof value === "string")
        assert.isTrue(block.subarray(decoded.to).every((byte) => byte === 0))
        if (a !== b) assert.strictEqual(internal.decode(block, encoder.encode(b)), "other")
      }),
      { numRuns: 300 }
    )
  })

  it("is nothing but itself: any bytes are refused or inside of the block", () => {
    const key = encoder.encode("a")
    FastCheck.assert(
      FastCheck.property(
        FastCheck.uint8Array({ minLength: 16, maxLength: 16 }),
        FastCheck.boolean(),
        (header, valid) => {
          const block = new Uint8Array(64)
          block.set(header)
          if (valid) block.set([0x45, 0x44, 0x4b, 0x56, 1, 0, 0, 0, 1, 0, 0, 0])
          block.set(key, 16)
          const decoded = internal.decode(block, key)
          if (typeof decoded === "object") assert.isTrue(decoded.from === 17 && decoded.to >= 17 && decoded.to <= 64)
        }
      ),
      { numRuns: 1000 }
    )
    assert.strictEqual(internal.decode(new Uint8Array(3), key), "invalid")
  })
})
