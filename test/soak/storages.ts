/** Storages with all their options, made by an allocator, used by several at once, kept, closed early, interrupted anywhere. */
import * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskAllocator from "../../src/DiskAllocator.js"
import type { DiskStorage, DiskStorageOptions } from "../../src/DiskStorage.js"
import type { BufferUnavailable } from "../../src/DiskStorageError.js"
import type { IoEngine } from "../../src/IoEngine.js"
import type { Syscalls } from "../../src/Syscalls.js"
import type { Broken, Decisions, Life } from "./world.js"
import { attempt, broken, numbers, perhapsInterrupted } from "./world.js"

const page = AlignedBuffer.pageSize
const storagesAtOnce = 3
const usersOfOne = 3
const actsOfOne = 14
/** Pages that one transfer moves at most. */
const mostPages = 4
/** Bytes; all together sometimes ask for more. */
const budget = 1.5 * 1024 * 1024

class Handle extends Context.Tag("soak/Handle")<Handle, string>() {}

type Buffers = Effect.Effect<AlignedBuffer.AlignedBuffer, BufferUnavailable, Scope.Scope>

/**
 * What a storage must hold: bytes, and of which pages they are known. A write that failed or was interrupted leaves a page unknown: until the
 * next one, or for good where the disk may not have answered, since what had no answer can still come.
 */
class Shadow {
  readonly bytes: Buffer
  readonly known: Uint8Array
  private readonly lost: Uint8Array
  private readonly hangs: boolean

  constructor(pages: number, hangs: boolean) {
    this.bytes = Buffer.alloc(pages * page)
    this.known = new Uint8Array(pages).fill(1)
    this.lost = new Uint8Array(pages)
    this.hangs = hangs
  }

  /** What is about to be written; what is called when it was. */
  writing(offset: number, bytes: Uint8Array): () => void {
    const first = Math.floor(offset / page)
    const end = Math.ceil((offset + bytes.byteLength) / page)
    const before = { known: this.known.slice(first, end), lost: this.lost.slice(first, end) }
    this.known.fill(0, first, end)
    if (this.hangs) this.lost.fill(1, first, end)
    return () => {
      this.lost.set(before.lost, first)
      before.known.forEach((wasKnown, index) => {
        const start = (first + index) * page
        const whole = offset <= start && start + page <= offset + bytes.byteLength
        this.known[first + index] = (whole || wasKnown === 1) && before.lost[index] === 0 ? 1 : 0
      })
      this.bytes.set(bytes, offset)
    }
  }

  /** The first byte that is known to be another one. */
  difference(offset: number, bytes: Uint8Array): number | undefined {
    const end = offset + bytes.byteLength
    for (let from = offset; from < end;) {
      const number = Math.floor(from / page)
      const to = Math.min(end, (number + 1) * page)
      const part = bytes.subarray(from - offset, to - offset)
      if (this.known[number] === 1 && this.bytes.compare(part, 0, part.byteLength, from, to) !== 0) {
        let at = from
        while (at < to && this.bytes[at] === bytes[at - offset]) at++
        return at
      }
      from = to
    }
    return undefined
  }
}

/** Bytes that no other write has. */
const fresh = (decisions: Decisions, length: number): Uint8Array => {
  const words = new Uint32Array(Math.ceil(length / 4))
  const seed = decisions.below(0xffff_ffff)
  for (let index = 0; index < words.length; index++) words[index] = Math.imul(index ^ seed, 0x9e37_79b1) ^ seed
  return new Uint8Array(words.buffer, 0, length)
}

/** Some of what a storage can do, on pages from `first` up to `last` that nobody else writes to. */
const user = (
  life: Life,
  decisions: Decisions,
  storage: DiskStorage,
  shadow: Shadow,
  first: number,
  last: number,
  buffers: Buffers
): Effect.Effect<void, Broken> => {
  const { tally } = life
  const did = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>) => attempt(tally, `${what} of a storage`, effect)

  /** Of one act alone: how far an interruption let it come changes nothing about those after it. */
  let dice = decisions
  const range = (most: number) => {
    const length = dice.between(1, Math.min(most, last - first))
    return { offset: dice.between(first, last - length) * page, length: length * page }
  }
  const anyRange = () => {
    const start = dice.between(first * page, last * page - 1)
    return { offset: start, length: dice.between(1, Math.min(mostPages * page, last * page - start)) }
  }
  const written = (offset: number, bytes: Uint8Array, write: Effect.Effect<boolean, Broken>) =>
    Effect.suspend(() => {
      const done = shadow.writing(offset, bytes)
      return Effect.map(write, (succeeded) => {
        if (succeeded) done()
      })
    })
  const compared = (what: string, offset: number, bytes: Uint8Array): Effect.Effect<void, Broken> =>
    Effect.suspend(() => {
      tally.bytesChecked += bytes.byteLength
      const at = shadow.difference(offset, bytes)
      return at === undefined ? Effect.void : broken(`${what} gave a wrong byte at ${at} of ${storage.path}`)
    })
  /** Memory of so many bytes, which nobody's bytes are in. */
  const lent = (length: number) =>
    Effect.gen(function*() {
      const buffer = yield* buffers
      if (buffer.bytes.some((byte) => byte !== 0)) return yield* broken("memory was lent with somebody's bytes in it")
      return yield* AlignedBuffer.slice(buffer, 0, length)
    })

  const write = Effect.suspend(() => {
    const { length, offset } = range(mostPages)
    const bytes = fresh(dice, length)
    return written(
      offset,
      bytes,
      did(
        "a write",
        Effect.scoped(Effect.gen(function*() {
          const buffer = yield* lent(length)
          buffer.bytes.set(bytes)
          yield* storage.write(offset, buffer)
        }))
      )
    )
  })
  const read = Effect.suspend(() => {
    const { length, offset } = range(mostPages)
    return did(
      "a read",
      Effect.scoped(Effect.gen(function*() {
        const buffer = yield* lent(length)
        yield* storage.read(offset, buffer)
        yield* compared("a read", offset, buffer.bytes)
      }))
    )
  })
  const batch = (kind: "read" | "write") =>
    Effect.suspend(() => {
      const count = dice.between(1, Math.min(mostPages, last - first))
      const start = dice.between(first, last - count)
      const parts = numbers(count).map((index) => {
        const offset = (start + index) * page
        if (kind === "read") return { offset, bytes: new Uint8Array(0), done: () => {} }
        const bytes = fresh(dice, page)
        return { offset, bytes, done: shadow.writing(offset, bytes) }
      })
      return did(
        `a batch that ${kind}s`,
        Effect.scoped(Effect.gen(function*() {
          const memory = yield* lent(count * page)
          const transfers = yield* Effect.forEach(parts, ({ bytes, offset }, index) =>
            Effect.map(AlignedBuffer.slice(memory, index * page, (index + 1) * page), (buffer) => {
              buffer.bytes.set(bytes)
              return { offset, buffer }
            }))
          const results = yield* kind === "read" ? storage.readBatch(transfers) : storage.writeBatch(transfers)
          const failed = new Set(results.failures.map(({ index }) =>
            index
          ))
          for (const { error } of results.failures) {
            yield* did(`an operation of a batch`, Effect.fail(error))
          }
          for (const [index, { buffer, offset }] of transfers.entries()) {
            if (failed.has(index)) continue
            if (kind === "write") parts[index]?.done()
            else yield* compared("a batch that reads", offset, buffer.bytes)
          }
        }))
      )
    })
  const writeBytes = Effect.suspend(() => {
    const { length, offset } = anyRange()
    const bytes = fresh(dice, length)
    return written(offset, bytes, did("writeBytes", storage.writeBytes(offset, bytes)))
  })
  const readBytes = Effect.suspend(() => {
    const { length, offset } = anyRange()
    return did(
      "readBytes",
      Effect.flatMap(storage.readBytes(offset, length), (bytes) => compared("readBytes", offset, bytes))
    )
  })
  const stream = Effect.suspend(() => {
    const { length, offset } = anyRange()
    const chunks = Stream.runCollect(storage.stream({ offset, length }, dice.between(1000, 9000)))
    return did(
      "a stream",
      Effect.flatMap(chunks, (chunks) => compared("a stream", offset, Buffer.concat(Chunk.toReadonlyArray(chunks))))
    )
  })
  const sink = Effect.suspend(() => {
    const { length, offset } = anyRange()
    const bytes = fresh(dice, length)
    const middle = dice.below(length)
    const parts = Stream.make(bytes.subarray(0, middle), bytes.subarray(middle))
    return written(offset, bytes, did("a sink", Stream.run(parts, storage.sink(offset))))
  })
  const sync = did("sync", storage.sync)
  const withFd = did("withFd", storage.withFd((fd) => fd >= 0 ? Effect.void : broken(`withFd lent ${fd}`)))
  const registered = Effect.acquireRelease(
    Effect.sync(() => {
      life.lost.registrations += 1
      return "handle"
    }),
    () => Effect.sync(() => void (life.lost.registrations -= 1))
  )
  const register = Effect.gen(function*() {
    if (yield* storage.isRegistered(Handle)) yield* storage.deregister(Handle)
    else if (storage.keptAt === undefined && dice.chance(0.3)) yield* storage.registerThenUnlink(Handle, registered)
    else yield* storage.register(Handle, registered)
  })
  const extents = did("extents", storage.extents)

  // One user alone registers, so that no key is there twice.
  const acts = [
    write,
    read,
    write,
    read,
    batch("write"),
    batch("read"),
    writeBytes,
    readBytes,
    stream,
    sink,
    sync,
    withFd,
    extents
  ]
  return Effect.forEach(numbers(actsOfOne), (count) =>
    Effect.suspend(() => {
      dice = decisions.apart(`act ${count}`)
      const number = decisions.below(first === 0 ? acts.length + 1 : acts.length)
      const act = acts[number] ?? did("a registration", register)
      return perhapsInterrupted(decisions, tally, 0.06, Effect.asVoid(act))
    }), { discard: true })
}

const optionsOf = (decisions: Decisions, directory: string, name: string): DiskStorageOptions => {
  const pages = decisions.between(3, 160)
  const keeps = decisions.chance(0.25)
  return {
    size: pages * page + (decisions.chance(0.3) ? decisions.below(page) : 0),
    directory,
    directIo: decisions.of(["preferred", "required", "proven", "disabled"]),
    openStrategy: decisions.of(["default", "open-direct"]),
    fallback: decisions.of(["truncate", "zero-fill"]),
    prewrite: decisions.chance(0.1),
    ...(keeps ? { keepAt: `${directory}/${name}.kept` } : { earlyUnlink: decisions.chance(0.4) })
  }
}

const one = (
  life: Life,
  decisions: Decisions,
  allocator: DiskAllocator.DiskAllocator,
  buffers: Buffers
): Effect.Effect<void, Broken> =>
  Effect.gen(function*() {
    const { tally } = life
    const options = optionsOf(decisions, life.directory, decisions.name.replaceAll(/\W/g, "-"))
    const pages = Math.floor(options.size / page)
    const shadow = new Shadow(pages, !life.pooled)
    /** How many faults there had been when it was kept. */
    let keptWith: number | undefined

    const whole = (storage: DiskStorage, what: string) =>
      attempt(
        tally,
        "a stream over a storage",
        Stream.runFoldEffect(
          storage.stream({ offset: 0, length: pages * page }, 64 * 1024),
          0,
          (offset, bytes) => {
            tally.bytesChecked += bytes.byteLength
            const at = shadow.difference(offset, bytes)
            return at === undefined
              ? Effect.succeed(offset + bytes.byteLength)
              : broken(`${what} has a wrong byte at ${at} of ${storage.path}`)
          }
        )
      )
    const use = Effect.gen(function*() {
      const storage = yield* allocator.allocate(options)
      tally.storages += 1
      if (storage.keptAt?.takenUp === true) return yield* broken(`${storage.path} was taken up, and none was kept`)
      yield* whole(storage, "a new storage")
      const share = Math.floor(pages / usersOfOne)
      const users = Effect.forEach(numbers(usersOfOne), (number) =>
        user(life, decisions.apart(`user ${number}`), storage, shadow, number * share, (number + 1) * share, buffers), {
        concurrency: usersOfOne,
        discard: true
      })
      if (decisions.chance(0.15)) {
        const after = decisions.between(1, 60)
        const close = Effect.zipRight(Effect.yieldNow(), Effect.delay(storage.close, after))
        yield* Effect.all([users, attempt(tally, "close", close)], { concurrency: 2, discard: true })
      } else {
        yield* users
        if (storage.keptAt !== undefined && (yield* attempt(tally, "keep", storage.keep))) {
          keptWith = tally.faults
        }
      }
    })
    // A use that was interrupted may have kept its storage and not said so.
    let done = false
    yield* perhapsInterrupted(
      decisions,
      tally,
      0.1,
      Effect.map(attempt(tally, "an acquisition", Effect.scoped(use)), () => {
        done = true
      })
    )
    if (options.keepAt === undefined) {
      return
    }
    const again = Effect.gen(function*() {
      const storage = yield* allocator.allocate(options)
      tally.storages += 1
      const takenUp = storage.keptAt?.takenUp === true
      if (takenUp) {
        tally.takenUp += 1
      }
      if (takenUp && done && keptWith === undefined) {
        return yield* broken(`${storage.path} was taken up, and none was kept`)
      }
      if (!takenUp) {
        if (keptWith !== undefined && keptWith === tally.faults) {
          return yield* broken(`what was kept at ${options.keepAt} is gone`)
        }
        shadow.bytes.fill(0)
        shadow.known.fill(1)
      }
      yield* whole(storage, takenUp ? "a storage that was taken up" : "a new storage")
    })
    yield* attempt(tally, "an acquisition of what was kept", Effect.scoped(again))
  })

/** Ends with everything released, and says what was not. */
export const live = (life: Life): Effect.Effect<void, Broken, Syscalls | IoEngine> =>
  Effect.scoped(Effect.gen(function*() {
    const allocator = yield* Effect.orDie(DiskAllocator.make({ budget }))
    const pool = yield* Effect.orDie(AlignedBuffer.pool({ buffers: 5, byteLength: mostPages * page }))
    const buffers = life.pooled ? pool.lease : AlignedBuffer.make(mostPages * page)
    yield* Effect.forEach(
      numbers(storagesAtOnce),
      (number) => one(life, life.decisions.apart(`storage ${number}`), allocator, buffers),
      { concurrency: storagesAtOnce, discard: true }
    )
    // All of them come back, or this waits for ever.
    yield* Effect.scoped(Effect.forEach(numbers(pool.buffers), () => pool.lease, { discard: true }))
    const available = yield* allocator.available
    if (available === budget) return
    life.lost.budget += budget - available
    return yield* broken(`${budget - available} bytes of an allocator's budget did not come back`)
  }))
