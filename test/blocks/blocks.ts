/** Blocks whose bytes tell the hash and the version that they belong to. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Stream from "effect/Stream"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import type * as BlockStore from "../../src/BlockStore.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { TransferError } from "../../src/DiskStorageError.js"
import { BufferBusy, IoFailed } from "../../src/DiskStorageError.js"
import { region } from "../../src/internal/alignedBuffer.js"
import type * as IoEngine from "../../src/IoEngine.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"
import { fill, identify } from "./content.js"

export const page = AlignedBuffer.pageSize

export { fill }

/** The version that `bytes` are of; fails where not all of them are of that one, or are of another hash. */
export const versionOf = (bytes: Uint8Array, hash: number, what: string): number => {
  const { version, wrong } = identify(bytes, hash)
  if (wrong !== undefined) assert.fail(`${what}: word ${wrong} is not of hash ${hash}, version ${version}`)
  return version
}

export const blank = (byteLength: number): Effect.Effect<AlignedBuffer.AlignedBuffer> =>
  Effect.orDie(AlignedBuffer.make(byteLength))

export const block = (
  hash: number,
  version = 0,
  priority = 0
): Effect.Effect<BlockStore.Block> =>
  Effect.map(blank(page), (data) => {
    fill(data.bytes, hash, version)
    return { hash: BigInt(hash), data, priority }
  })

export const silent = Logger.remove(Logger.defaultLogger)

export const simulated = (options: SimulatedSyscalls.EngineOptions = {}) =>
  Layer.merge(
    Layer.provideMerge(SimulatedSyscalls.layerEngine(options), SimulatedSyscalls.layer()),
    silent
  )

export const storage = (blocks: number, options: Partial<DiskStorage.DiskStorageOptions> = {}) =>
  DiskStorage.make({ size: blocks * page, directIo: "preferred", ...options })

export const numbers = (length: number): ReadonlyArray<number> => Array.from({ length }, (_, index) => index)

export const blocks = (hashes: ReadonlyArray<number>, version = 0) =>
  Effect.forEach(hashes, (hash) => block(hash, version))

export const told = <A, E extends { readonly _tag: string }>(results: IoEngine.Results<E, A>): ReadonlyArray<string> =>
  numbers(results.length).map((index) =>
    Either.match(results.get(index), { onLeft: ({ _tag }) => _tag, onRight: String })
  )

export const offload = (store: BlockStore.BlockStore, hashes: ReadonlyArray<number>, version = 0) =>
  Effect.flatMap(blocks(hashes, version), (blocks) => Effect.map(store.offload(blocks), told))

/** The version that is read of a hash, or why none. */
export const onboard = (store: BlockStore.BlockStore, hash: number) =>
  Effect.gen(function*() {
    const into = yield* blank(page)
    const result = (yield* store.onboard([{ hash: BigInt(hash), into }])).get(0)
    return Either.isRight(result) ? versionOf(into.bytes, hash, "onboard") : result.left._tag
  })

export const hashes = (store: BlockStore.BlockStore) =>
  Effect.map(store.hashes, (hashes) => hashes.map(Number).sort((a, b) => a - b))

export const ioFailed = (operation: "read" | "write") =>
  new IoFailed({ operation, offset: 0, length: page, bytesDone: 0, cause: undefined })

/** Events as they come, from before this effect ends. */
export const recorded = (store: BlockStore.BlockStore) =>
  Effect.gen(function*() {
    const events: Array<string> = []
    const fiber = yield* Effect.forkScoped(Stream.runForEach(store.events, (event) =>
      Effect.sync(() => {
        events.push(
          event._tag === "Missed"
            ? `Missed ${event.events}`
            : `${event._tag} ${event.hash}${event._tag === "Removed" ? ` ${event.reason}` : ""}`
        )
      })))
    yield* turns(5)
    return { events, fiber }
  })

export const turn = Effect.async<void>((resume) => void setImmediate(() => resume(Effect.void)))
export const turns = (count: number) => Effect.forEach(numbers(count), () => turn, { discard: true })

/** Waits for something that is known to come. */
export const until = (condition: Effect.Effect<boolean>) =>
  Effect.repeat(Effect.zipRight(turn, condition), { until: Boolean })

/** Every slot is accounted for, and nobody uses any. */
export const assertSettled = (store: BlockStore.BlockStore): Effect.Effect<void> =>
  Effect.map(Effect.zip(store.stats, store.hashes), ([stats, hashes]) => {
    let blocks = 0
    for (const one of stats.storages) {
      assert.strictEqual(one.blocks + one.free + one.retired, one.capacity, JSON.stringify(stats))
      blocks += one.blocks
    }
    assert.strictEqual(blocks, stats.blocks)
    assert.strictEqual(stats.pinned, 0)
    assert.strictEqual(stats.inFlight, 0)
    assert.strictEqual(hashes.length, stats.blocks)
    assert.strictEqual(new Set(hashes).size, hashes.length)
  })

/** A disk in memory: its transfers end as they are begun, or, where they are held, when they are let go. */
export interface Memory {
  readonly disk: DiskStorage.DiskStorage
  readonly held: Array<() => void>
  /** Lets the first of those that are held go, or all. */
  readonly next: () => void
  readonly release: () => void
  /** What lies where. */
  readonly written: ReadonlyMap<number, Uint8Array>
}

/** `begin` may throw; `fails` is asked when a transfer ends. */
export const memory = (blocks: number, around: {
  readonly begin?: (kind: "read" | "write") => void
  readonly holds?: (kind: "read" | "write", offset: number) => boolean
  readonly fails?: (kind: "read" | "write", offset: number) => TransferError | undefined
} = {}) =>
  Effect.map(storage(1), (base): Memory => {
    const written = new Map<number, Uint8Array>()
    const held: Array<() => void> = []
    const disk: DiskStorage.DiskStorage = {
      ...base,
      size: blocks * page,
      unsafeTransfer: (kind, { buffer, offset }, done) => {
        around.begin?.(kind)
        const { byteLength, bytes, slab, start } = region(buffer)
        if (!slab.claim(start, byteLength, kind === "read")) {
          return done(new BufferBusy({ operation: kind, offset, length: byteLength }))
        }
        const end = () => {
          const error = around.fails?.(kind, offset)
          if (error === undefined) {
            if (kind === "write") written.set(offset, Uint8Array.from(bytes))
            else bytes.set(written.get(offset) ?? new Uint8Array(byteLength))
          }
          slab.release(start, byteLength)
          done(error)
        }
        if (around.holds?.(kind, offset) === true) held.push(end)
        else end()
      }
    }
    return {
      disk,
      held,
      next: () => held.shift()?.(),
      release: () => {
        for (const end of held.splice(0)) end()
      },
      written
    }
  })
