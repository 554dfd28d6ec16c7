/** Histories of storages: acquired, used by several fibres at once, interrupted, kept, taken up, released. */
import * as Chunk from "effect/Chunk"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskAllocator from "../../src/DiskAllocator.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { IoEngine } from "../../src/IoEngine.js"
import type { Syscalls } from "../../src/Syscalls.js"
import type { Write } from "./contents.js"
import { cellBytes, Contents } from "./contents.js"
import { disturbed } from "./disturb.js"
import type { Life, Step, Workload } from "./plan.js"
import { mayFail, pageBytes } from "./plan.js"
import type { World } from "./world.js"
import { canonical, directoryOf, keptPathOf, Refused } from "./world.js"

/** What one was kept as, by the number in its mark. */
interface Keep {
  readonly contents: Contents
  /** It was taken up, or another was kept over it: nobody finds it again. */
  gone: boolean
}

export interface Shared {
  readonly world: World
  readonly keeps: Array<Keep>
  /** Whether there is one storage at a time, so that what was kept last is known. */
  readonly oneByOne: boolean
}

/** What a failure is told by that does nothing but say no. */
const refusals = ["DirectIoRefused", "DirectIoUnavailable", "PrewriteRefused"]

class Used {
  readonly world: World
  readonly storage: DiskStorage.DiskStorage
  readonly contents: Contents
  readonly fd: number
  readonly life: Life
  readonly keeps: Array<Keep>
  readonly oneByOne: boolean
  /** Release, close or keep has begun: operations may meet a closed storage. */
  closing = false
  /** Release or close has ended: they must. */
  closed = false
  /** It may be kept again, which is nothing. */
  kept = false
  readonly registered: Array<number> = []
  /** Those that are being taken back one by one, in any order. */
  deregistering = 0

  constructor(shared: Shared, storage: DiskStorage.DiskStorage, contents: Contents, fd: number, life: Life) {
    this.world = shared.world
    this.keeps = shared.keeps
    this.oneByOne = shared.oneByOne
    this.storage = storage
    this.contents = contents
    this.fd = fd
    this.life = life
  }

  /** Whole pages; the last, partial one is for bytes alone. */
  get pages(): number {
    return Math.floor(this.storage.size / pageBytes)
  }

  /** Pages below are written as pages, those above as bytes: who writes bytes writes the rest of a page back as it was. */
  get border(): number {
    return Math.floor(this.pages / 2)
  }

  /** The direct range of a step, in pages. */
  range(step: Step, from: number, to: number): { readonly offset: number; readonly length: number } | undefined {
    if (to <= from) return undefined
    const first = from + Math.floor(step.at * (to - from))
    const count = 1 + Math.floor(step.length * (to - first - 1))
    return { offset: first * pageBytes, length: count * pageBytes }
  }

  /** A range of bytes for a write, in cells. */
  bytesRange(step: Step): { readonly offset: number; readonly length: number } | undefined {
    const from = this.border * pageBytes / cellBytes
    const to = Math.floor(this.storage.size / cellBytes)
    if (to <= from) return undefined
    const first = from + Math.floor(step.at * (to - from))
    const count = 1 + Math.floor(step.length * (to - first - 1))
    return { offset: first * cellBytes, length: count * cellBytes }
  }

  /** Judges how an operation ended; `begunClosed`: whether the storage was released before it began. */
  judge(
    exit: Exit.Exit<unknown, unknown>,
    what: string,
    begunClosed: boolean,
    explained: ReadonlyArray<string> = []
  ): string {
    const { world } = this
    const tag = world.outcome(exit, what)
    if (begunClosed) {
      world.holds(
        "after release",
        tag === "StorageClosed" || tag === "interrupted",
        () => `${what} of a released storage: ${tag}`
      )
    } else if (tag === "StorageClosed") {
      world.holds("causes", this.closing, () => `${what}: StorageClosed, and nobody releases the storage`)
    } else if (tag !== "success" && tag !== "interrupted" && !explained.includes(tag)) {
      world.holds("causes", mayFail(world.plan), () => `${what}: ${tag}`)
    }
    return tag
  }

  /** The end of a write, from what is known of it. */
  settle(write: Write, tag: string): void {
    if (["StorageClosed", "StorageDegraded", "BufferBusy", "OutOfBounds", "Misaligned"].includes(tag)) {
      this.contents.refused(write)
    } else if (tag !== "IoStalled") this.contents.ended(write, tag === "success", this.world.tick())
  }

  /** What the memory of an operation must be after it: nobody's but ours, or, where it stalled, the kernel's for good. */
  left(buffer: AlignedBuffer.AlignedBuffer, tag: string, what: string): Effect.Effect<void> {
    const { storage, world } = this
    if (tag !== "IoStalled") return Effect.sync(() => world.leave(buffer.bytes, what))
    // What had to wait for others that never ended was given up without the kernel having seen it.
    const { depth = 0, maxBytesInFlight = 0 } = world.plan.device ?? {}
    if (depth < 32 || maxBytesInFlight < 1024 ** 2) return Effect.void
    return Effect.map(Effect.either(storage.read(0, buffer)), (again) => {
      const tag = Either.isLeft(again) ? again.left._tag : "success"
      world.holds(
        "stalls",
        tag === "BufferBusy" || tag === "StorageClosed" || tag === "StorageDegraded",
        () => `memory of ${what}, which the kernel never gave back, was taken for another: ${tag}`
      )
    })
  }

  check(bytes: Uint8Array, offset: number, began: number, what: string): void {
    this.world.holds("contents", true, () => "")
    const wrong = this.contents.wrong(bytes, offset, began, this.world.tick())
    if (wrong !== undefined) this.world.holds("contents", false, () => `${what}: ${wrong}`)
  }
}

const memory = (byteLength: number) => Effect.orDie(AlignedBuffer.make(byteLength))

/** One transfer of pages, by any of the three ways in. */
const direct = (
  used: Used,
  kind: "read" | "write",
  { length, offset }: { readonly offset: number; readonly length: number },
  through: "effect" | "unsafe"
) =>
  Effect.gen(function*() {
    const { contents, storage, world } = used
    const buffer = yield* memory(length)
    const what = `${through === "unsafe" ? "unsafe " : ""}${kind} of ${length} bytes at ${offset}`
    const began = world.tick()
    const { closed } = used
    const value = world.nextValue()
    if (kind === "write") buffer.bytes.fill(value)
    const write = kind === "write" ? contents.begin(offset, length, value, began) : undefined
    const run = through === "effect"
      ? storage[kind](offset, buffer)
      : Effect.uninterruptible(
        Effect.async<void, Effect.Effect.Error<ReturnType<DiskStorage.DiskStorage["read"]>>>((resume) => {
          storage.unsafeTransfer(
            kind,
            { offset, buffer },
            (error) => resume(error === undefined ? Effect.void : Effect.fail(error))
          )
        })
      )
    yield* Effect.onExit(run, (exit) => {
      const tag = used.judge(exit, what, closed)
      if (write !== undefined) used.settle(write, tag)
      else if (tag === "success") used.check(buffer.bytes, offset, began, what)
      return used.left(buffer, tag, what)
    })
  })

const batch = (used: Used, kind: "read" | "write", step: Step) =>
  Effect.gen(function*() {
    const { contents, storage, world } = used
    const count = 1 + step.number % 4
    const began = world.tick()
    const { closed } = used
    const transfers: Array<{ readonly offset: number; readonly buffer: AlignedBuffer.AlignedBuffer }> = []
    const writes: Array<Write | undefined> = []
    for (let index = 0; index < count; index++) {
      const at = { ...step, at: (step.at + index / count) % 1, length: step.length / count }
      const range = used.range(at, 0, kind === "read" ? used.pages : used.border)
      if (range === undefined) return
      const buffer = yield* memory(range.length)
      // One that is out of bounds, and must hide nothing of the others.
      const offset = step.number % 7 === 0 && index === 1 ? storage.size + pageBytes : range.offset
      const value = world.nextValue()
      if (kind === "write") buffer.bytes.fill(value)
      transfers.push({ offset, buffer })
      writes.push(
        kind === "write" && offset < storage.size ? contents.begin(offset, range.length, value, began) : undefined
      )
    }
    const run = kind === "read" ? storage.readBatch(transfers) : storage.writeBatch(transfers)
    yield* Effect.onExit(run, (exit) =>
      Effect.forEach(transfers, ({ buffer, offset }, index) => {
        const what = `${kind} ${index} of a batch of ${count}, of ${buffer.byteLength} bytes at ${offset}`
        const write = writes[index]
        if (Exit.isFailure(exit)) {
          const tag = world.outcome(exit, what)
          if (write !== undefined) used.settle(write, tag)
          return used.left(buffer, tag, what)
        }
        if (!world.holds("batches", exit.value.length === count, () => `${exit.value.length} results of ${count}`)) {
          return Effect.void
        }
        const result = exit.value.get(index)
        const tag = used.judge(
          Either.match(result, { onLeft: Exit.fail, onRight: Exit.succeed }),
          what,
          closed && offset < storage.size,
          ["OutOfBounds"]
        )
        world.holds(
          "batches",
          offset < storage.size ? tag !== "OutOfBounds" : tag === "OutOfBounds",
          () => `${what}: ${tag}`
        )
        world.holds(
          "batches",
          Either.isLeft(result) || result.right === buffer.byteLength,
          () => `${what}: said to have moved ${Either.getOrElse(result, () => 0)}`
        )
        if (write !== undefined) used.settle(write, tag)
        else if (tag === "success") used.check(buffer.bytes, offset, began, what)
        return used.left(buffer, tag, what)
      }, { discard: true }))
  })

const tagOf = (number: number) => Context.GenericTag<number, number>(`registered ${number % 3}`)

const register = (used: Used, step: Step, unlinks: boolean) =>
  Effect.gen(function*() {
    const { storage, world } = used
    const order = world.tick()
    const fails = step.number % 5 === 0
    const handle = Effect.acquireRelease(
      Effect.sync(() => {
        world.registered += 1
        used.registered.push(order)
        return order
      }),
      () =>
        Effect.sync(() => {
          world.registered -= 1
          const newest = Math.max(...used.registered)
          if (used.closing && !fails && used.deregistering === 0) {
            world.holds("release order", newest === order, () => `registration ${order} went before ${newest}`)
          }
          world.holds(
            "release order",
            world.leaks.fds.includes(used.fd),
            () => `registration ${order} outlived the file`
          )
          used.registered.splice(used.registered.indexOf(order), 1)
        })
    )
    const acquire = fails ? Effect.zipRight(handle, Effect.fail(new Refused())) : handle
    const { closed } = used
    const explained = ["DuplicateKey", "StorageUnlinked", "Refused"]
    yield* Effect.onExit(
      unlinks
        ? Effect.asVoid(storage.registerThenUnlink(tagOf(step.number), acquire))
        : Effect.asVoid(storage.register(tagOf(step.number), acquire)),
      (exit) => Effect.sync(() => used.judge(exit, unlinks ? "registerThenUnlink" : "register", closed, explained))
    )
  })

/** Two operations on the same memory, of which the second comes while the first is under way. */
const contend = (used: Used, step: Step) =>
  Effect.gen(function*() {
    const { storage, world } = used
    const range = used.range(step, 0, used.pages)
    if (range === undefined) return
    const buffer = yield* memory(range.length)
    const state = { begun: false, ended: false }
    let stalled = false
    const first = storage.read(range.offset, buffer).pipe(
      Effect.onExit((exit) =>
        Effect.sync(() => {
          state.ended = true
          stalled ||= world.outcome(exit, "the first of two reads") === "IoStalled"
        })
      )
    )
    const { closed } = used
    const fiber = yield* Effect.fork(Effect.zipRight(Effect.sync(() => void (state.begun = true)), first))
    for (let turn = step.number % 3; turn >= 0; turn--) yield* Effect.yieldNow()
    const overlapped = state.begun && !state.ended
    const second = yield* Effect.exit(storage.read(range.offset, buffer))
    const tag = used.judge(second, "the second of two reads", closed, ["BufferBusy"])
    stalled ||= tag === "IoStalled"
    world.holds(
      "owned buffers",
      !overlapped || state.ended || (tag !== "success" && tag !== "IoFailed"),
      () => `a second read into memory that the kernel had: ${tag}`
    )
    yield* Fiber.join(fiber).pipe(Effect.ignore)
    if (!stalled) world.leave(buffer.bytes, "contending reads")
  })

const perform = (used: Used, step: Step): Effect.Effect<unknown, unknown> =>
  Effect.suspend((): Effect.Effect<unknown, unknown> => {
    const { contents, storage, world } = used
    const { closed } = used
    const judged = <A, E>(effect: Effect.Effect<A, E>, explained: ReadonlyArray<string> = []) =>
      Effect.onExit(effect, (exit) => Effect.sync(() => used.judge(exit, step.kind, closed, explained)))
    switch (step.kind) {
      case "read":
      case "write": {
        const range = used.range(step, 0, step.kind === "read" ? used.pages : used.border)
        return range === undefined ? Effect.void : direct(used, step.kind, range, "effect")
      }
      case "unsafe": {
        const kind = step.number % 2 === 0 ? "read" : "write"
        const range = used.range(step, 0, kind === "read" ? used.pages : used.border)
        return range === undefined ? Effect.void : direct(used, kind, range, "unsafe")
      }
      case "readBatch":
        return batch(used, "read", step)
      case "writeBatch":
        return batch(used, "write", step)
      case "readBytes": {
        const range = used.bytesRange(step)
        if (range === undefined) return Effect.void
        const began = world.tick()
        return Effect.onExit(storage.readBytes(range.offset, range.length), (exit) =>
          Effect.sync(() => {
            used.judge(exit, "readBytes", closed)
            if (Exit.isSuccess(exit)) used.check(exit.value, range.offset, began, "readBytes")
          }))
      }
      case "writeBytes": {
        const range = used.bytesRange(step)
        if (range === undefined) return Effect.void
        const value = world.nextValue()
        const write = contents.begin(range.offset, range.length, value, world.tick())
        const bytes = new Uint8Array(range.length).fill(value)
        return Effect.onExit(
          storage.writeBytes(range.offset, bytes),
          (exit) => Effect.sync(() => used.settle(write, used.judge(exit, "writeBytes", closed)))
        )
      }
      case "stream": {
        const range = used.bytesRange(step)
        if (range === undefined) return Effect.void
        const began = world.tick()
        let at = range.offset
        return Effect.onExit(
          Stream.runForEach(storage.stream(range, (1 + step.number % 5) * 1024), (bytes) =>
            Effect.sync(() => {
              used.check(bytes, at, began, "stream")
              at += bytes.byteLength
            })),
          (exit) =>
            Effect.sync(() => {
              used.judge(exit, "stream", closed)
              const whole = at === range.offset + range.length
              world.holds("contents", Exit.isFailure(exit) || whole, () => `a stream ended at ${at}`)
            })
        )
      }
      case "sink": {
        const range = used.bytesRange(step)
        if (range === undefined) return Effect.void
        const value = world.nextValue()
        const write = contents.begin(range.offset, range.length, value, world.tick())
        const bytes = new Uint8Array(range.length).fill(value)
        const half = Math.floor(range.length / 2)
        const parts = Stream.fromChunk(Chunk.make(bytes.subarray(0, half), bytes.subarray(half)))
        return Effect.onExit(
          Stream.run(parts, Sink.map(storage.sink(range.offset), (count) => count)),
          (exit) =>
            Effect.sync(() => {
              used.settle(write, used.judge(exit, "sink", closed))
              if (Exit.isSuccess(exit)) {
                world.holds("contents", exit.value === range.length, () => `a sink told of ${exit.value} bytes`)
              }
            })
        )
      }
      case "sync":
        return judged(storage.sync)
      case "extents":
        return judged(storage.extents, ["ExtentsUnavailable"])
      case "withFd":
        return judged(storage.withFd((fd) =>
          Effect.gen(function*() {
            yield* Effect.sleep(step.number % 20 / 10)
            world.holds("release order", world.leaks.fds.includes(fd), () => "a lent descriptor was closed")
          })
        ))
      case "register":
        return register(used, step, false)
      case "registerThenUnlink":
        return register(used, step, true)
      case "deregister":
        used.deregistering += 1
        return Effect.ensuring(
          judged(storage.deregister(tagOf(step.number))),
          Effect.sync(() => void (used.deregistering -= 1))
        )
      case "unlink":
        // What is taken down cannot be kept.
        return used.life.placed ? Effect.void : judged(storage.unlink)
      case "contend":
        return contend(used, step)
      case "pause":
        return Effect.sleep(step.number % 20 / 10)
      case "keep":
        return used.life.placed ? keep(used) : judged(storage.keep, ["KeepFailed"])
      case "close":
        used.closing = true
        return Effect.onExit(storage.close, (exit) =>
          Effect.sync(() => {
            used.judge(exit, "close", false)
            if (!Exit.isInterrupted(exit)) used.closed = true
          }))
    }
  })

const markOf = (number: number): Uint8Array => {
  const mark = new Uint8Array(32)
  new DataView(mark.buffer).setUint32(0, number + 1, true)
  return mark
}

const keep = (used: Used) =>
  Effect.suspend(() => {
    const { keeps, storage, world } = used
    const entry: Keep = { contents: used.contents, gone: false }
    const number = keeps.push(entry) - 1
    const closed = used.closed && !used.kept
    used.closing = true
    return Effect.onExit(storage.keepAs(markOf(number)), (exit) =>
      Effect.sync(() => {
        const tag = used.judge(exit, "keep", closed, ["KeepFailed"])
        world.note(`keep ${number}: ${tag}`)
        if (tag !== "success") return
        // Kept twice is kept once, with the first mark.
        for (const [other, earlier] of keeps.entries()) {
          if (used.oneByOne && other !== number && earlier.contents !== used.contents) earlier.gone = true
        }
        used.kept = true
        used.closed = true
      }))
  })

/** Everything that was acknowledged is read back, as often as it takes. */
const readBack = (used: Used) =>
  Effect.gen(function*() {
    const { contents, storage, world } = used
    const attempts = 30
    for (let page = 0; page < used.pages; page++) {
      const buffer = yield* memory(pageBytes)
      const began = world.tick()
      const read = yield* Effect.either(Effect.retry(storage.read(page * pageBytes, buffer), {
        times: attempts,
        while: ({ _tag }) => _tag === "IoFailed"
      }))
      if (Either.isLeft(read)) continue
      const wrong = contents.wrong(buffer.bytes, page * pageBytes, began, world.tick())
      world.holds("acknowledged", wrong === undefined, () => `read back: ${wrong}`)
    }
  })

/** Everything that a released storage can be asked, and no call for it. */
const afterRelease = (used: Used) =>
  Effect.gen(function*() {
    const { storage, world } = used
    const buffer = yield* memory(pageBytes)
    // Others may be making calls of their own.
    const calls = () => used.oneByOne ? world.journal.length : 0
    const before = calls()
    const tags: Array<string> = []
    const ask = <A, E>(effect: Effect.Effect<A, E>) =>
      Effect.map(Effect.exit(effect), (exit) => tags.push(world.outcome(exit, "after release")))
    const fits = used.pages > 0
    if (fits) {
      yield* ask(storage.read(0, buffer))
      yield* ask(storage.write(0, buffer))
      for (const run of [storage.readBatch, storage.writeBatch]) {
        yield* ask(Effect.flatMap(run([{ offset: 0, buffer }]), (results) => results.get(0)))
      }
    }
    yield* ask(storage.readBytes(0, 1))
    yield* ask(storage.writeBytes(0, new Uint8Array(1)))
    yield* ask(Stream.runDrain(storage.stream({ offset: 0, length: 1 })))
    yield* ask(storage.sync)
    yield* ask(storage.withFd(() => Effect.void))
    yield* ask(storage.unlink)
    yield* ask(storage.extents)
    yield* ask(storage.register(tagOf(0), Effect.succeed(0)))
    yield* ask(storage.registration(tagOf(0)))
    yield* ask(storage.deregister(tagOf(0)))
    world.holds("after release", tags.every((tag) => tag === "StorageClosed"), () => tags.join(", "))
    world.holds("after release", calls() === before, () => "a released storage made a system call")
    // Again: it tells the same, and does nothing.
    yield* Effect.exit(storage.close)
    world.holds("after release", calls() === before, () => "a second close made a system call")
  })

/** The name goes before the descriptor does, and each of them once. */
const releaseOrder = (used: Used) => {
  const { fd, storage, world } = used
  const { journal } = world
  const path = canonical(storage.path)
  const closed = journal.findLastIndex((entry) => entry.syscall === "close" && entry.fd === fd)
  const unlinked = journal.findLastIndex((entry) => entry.syscall === "unlink" && entry.path === path)
  const later = journal.slice(closed + 1).some((entry) => entry.fd === fd)
  world.holds("release order", unlinked < closed || later, () => `${storage.path} was unlinked after it was closed`)
}

const life = (
  shared: Shared,
  options: Life,
  make: (
    options: DiskStorage.DiskStorageOptions
  ) => Effect.Effect<DiskStorage.DiskStorage, unknown, Scope.Scope | Syscalls | IoEngine>
): Effect.Effect<void, never, Syscalls | IoEngine> =>
  Effect.gen(function*() {
    const { keeps, world } = shared
    const scope = yield* Scope.make()
    let used: Used | undefined
    let releasing = false
    const acquire = Effect.onExit(
      Scope.extend(
        make({
          size: options.size,
          directIo: options.directIo,
          openStrategy: options.openStrategy,
          fallback: options.fallback,
          prewrite: options.prewrite,
          earlyUnlink: options.earlyUnlink,
          ...(options.placed ? { keepAt: keptPathOf(world) } : { directory: directoryOf(world) })
        }),
        scope
      ),
      (exit) =>
        Effect.sync(() => {
          const tag = world.outcome(exit, "make")
          world.note(`make: ${tag}`)
          if (tag === "success" || tag === "interrupted" || refusals.includes(tag)) return
          const explained = mayFail(world.plan) || tag === "BudgetExceeded" ||
            (tag === "FileReplaced" && options.placed)
          world.holds("causes", explained, () => `make: ${tag}`)
        })
    )
    const body = Effect.gen(function*() {
      const storage = yield* acquire
      const { keptAt } = storage
      let contents = new Contents(storage.size)
      if (keptAt?.takenUp === true) {
        const number = new DataView(keptAt.mark?.slice().buffer ?? new ArrayBuffer(4)).getUint32(0, true) - 1
        const kept = keeps[number]
        world.note(`took up ${number}`)
        if (
          world.holds(
            "kept",
            kept !== undefined && !kept.gone,
            () =>
              `took up ${number}, which ${kept === undefined ? "was never kept" : "was taken up before, or replaced"}`
          ) && kept !== undefined
        ) {
          kept.gone = true
          contents = kept.contents
        }
      }
      const fd = yield* storage.withFd(Effect.succeed)
      const using = used = new Used(shared, storage, contents, fd, options)
      if (releasing) using.closing = true
      yield* Effect.forEach(options.steps, (step) => disturbed(world, perform(using, step), step.interruption), {
        concurrency: options.together,
        discard: true
      })
      if (!using.closing) yield* readBack(using)
      if (options.keepAtEnd && !using.closing) yield* Effect.ignore(keep(using))
    })
    const release = Effect.gen(function*() {
      releasing = true
      if (used !== undefined) used.closing = true
      yield* Scope.close(scope, Exit.void)
      if (used !== undefined) used.closed = true
      world.note("released")
    })
    const { releaseAfter } = options
    const running = yield* Effect.fork(disturbed(world, body, options.interruption))
    if (releaseAfter !== undefined) {
      yield* Effect.sleep(releaseAfter)
      yield* release
      yield* Fiber.join(running)
    } else {
      yield* Fiber.join(running)
      yield* release
    }
    // It may have come only now.
    const last: Used | undefined = used
    if (last === undefined) return
    yield* afterRelease(last)
    releaseOrder(last)
  })

export const run = (
  world: World,
  { atOnce, budget, lives }: Extract<Workload, { readonly _tag: "Storages" }>
): Effect.Effect<void, never, Syscalls | IoEngine> =>
  Effect.gen(function*() {
    const shared: Shared = { world, keeps: [], oneByOne: !atOnce }
    world.keptAt.add(canonical(keptPathOf(world)))
    const allocator = budget === undefined ? undefined : yield* Effect.orDie(DiskAllocator.make({ budget }))
    let taken = 0
    const make = (options: DiskStorage.DiskStorageOptions) =>
      allocator === undefined ? DiskStorage.make(options) : Effect.gen(function*() {
        // Before it is given back; finalizers run the other way.
        const storage = yield* allocator.allocate(options)
        taken += storage.size
        yield* Effect.addFinalizer(() => Effect.sync(() => void (taken -= storage.size)))
        world.holds("budget", taken <= allocator.budget, () => `${taken} bytes of ${allocator.budget} are handed out`)
        return storage
      })
    yield* Effect.forEach(lives, (options) => life(shared, options, make), {
      concurrency: atOnce ? "unbounded" : 1,
      discard: true
    })
    if (allocator === undefined) return
    const available = yield* allocator.available
    world.holds("budget", available === allocator.budget, () => `${available} of ${allocator.budget} bytes came back`)
  })
