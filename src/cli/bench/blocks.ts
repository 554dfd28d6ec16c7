/** The part `blocks`: what a block store adds to its engine, and what its index costs without a disk. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Scope from "effect/Scope"
import { PCGRandom } from "effect/Utils"
import { randomFillSync } from "node:crypto"
import { rm } from "node:fs/promises"
import { join } from "node:path"
import type { AlignedBuffer } from "../../AlignedBuffer.js"
import * as AlignedBuffers from "../../AlignedBuffer.js"
import * as BlockStore from "../../BlockStore.js"
import * as DiskStorage from "../../DiskStorage.js"
import { BlockIndex } from "../../internal/blockIndex.js"
import { areaBytes } from "../../internal/blockRestart.js"
import type { Completion, Results } from "../../IoEngine.js"
import { IoEngine } from "../../IoEngine.js"
import { measured } from "./contestant.js"
import { collector, settled } from "./delay.js"
import type { Own } from "./engines.js"
import { buffersFor } from "./engines.js"
import type { NotEnoughSpace } from "./errors.js"
import { ContestantFailed, TargetUnusable } from "./errors.js"
import { callbacks, Load } from "./load.js"
import { together } from "./node.js"
import { Progress } from "./progress.js"
import type { BlockIndexCost, BlockIndexSize, Blocks, BlocksCell, BlocksResult, LeftOut, Round } from "./report.js"
import type { Turns } from "./rounds.js"
import { summary, verdictOf, warmUpMillis } from "./rounds.js"
import * as target from "./target.js"
import { bytes, duration, median } from "./units.js"

const shapes = [
  { blockSize: 2 ** 20, depth: 8, batch: 64 },
  { blockSize: 2 ** 16, depth: 32, batch: 256 }
] as const
type BlocksShape = typeof shapes[number]

const checksums = ["off", "crc32", "xxh128"] as const
type ContestantId = BlocksResult["contestant"]
type Direction = BlocksCell["direction"]

/** One file of the raw engine, and one of each store. */
const files = 1 + checksums.length
const batchesInFlight = 2

/** The numbers from 0 in an order of their own: no two of them are the same hash. */
const hashes = () => {
  let next = 0n
  return (): bigint => BigInt.asUintN(64, ++next * 0x9E37_79B9_7F4A_7C15n)
}

const kindOf = (direction: Direction): "read" | "write" => direction === "offload" ? "write" : "read"

interface Contestant {
  readonly id: ContestantId
  /** Before a round, unmeasured. */
  readonly before: Effect.Effect<void>
  readonly round: (millis: number) => Effect.Effect<Round, unknown>
}

const contestantsOf = (
  { context }: Own,
  { batch, blockSize, depth }: BlocksShape,
  options: { readonly directory: string; readonly filesystem: string; readonly size: number },
  left: (contestant: string, reason: string) => Effect.Effect<void>
): Effect.Effect<Readonly<Record<Direction, ReadonlyArray<Contestant>>>, unknown, Scope.Scope> =>
  Effect.gen(function*() {
    const { directory, filesystem, size } = options
    const engine = Context.get(context, IoEngine)
    const capacity = Math.floor(size / blockSize)
    const some = Math.min(batch, Math.floor(capacity / 2))
    const target = { name: "disk", directory, filesystem, direct: true, size, fd: -1, path: "" } as const
    /** As many for the engine as for a store, so that memory is as warm for either. */
    const buffers = yield* buffersFor(target, {
      direction: "write",
      blockSize,
      depth: batchesInFlight * Math.max(some, depth)
    })
    for (const { bytes } of buffers) randomFillSync(bytes)
    const file = DiskStorage.make({ size, directory, earlyUnlink: true })

    const raw = (id: ContestantId, storage: DiskStorage.DiskStorage, direction: Direction): Contestant => {
      const kind = kindOf(direction)
      const load = new Load(target, { direction: kind, blockSize, depth }, buffers)
      return {
        id,
        before: Effect.void,
        round: (millis) =>
          storage.withFd((fd) =>
            Effect.scoped(Effect.gen(function*() {
              const file = yield* engine.file(fd, {
                path: storage.path,
                direct: true,
                alignment: AlignedBuffers.pageSize
              })
              const run = callbacks(load, (slot, completed) => {
                const own = buffers.filter((_, number) => number % depth === slot)
                  .map((buffer) => ({ kind, file, buffer, offset: 0 }))
                const done = ({ bytes, error }: Completion) => completed(error, bytes)
                let turn = 0
                return (offset) => {
                  const operation = own[turn]
                  turn = (turn + 1) % own.length
                  if (operation === undefined) return
                  operation.offset = offset
                  engine.unsafeSubmit(operation, done)
                }
              })
              return yield* measured(load, run)(millis)
            }))
          )
      }
    }

    const groups = Array.from(
      { length: batchesInFlight },
      (_, group): ReadonlyArray<AlignedBuffer> => buffers.slice(group * some, (group + 1) * some)
    )
    /** Two fibres, each with one batch after the other. */
    const batches = (
      id: ContestantId,
      direction: Direction,
      before: Effect.Effect<void>,
      move: (group: ReadonlyArray<AlignedBuffer>) => Effect.Effect<Results<unknown, unknown>>
    ): Contestant => {
      const load = new Load(target, { direction: kindOf(direction), blockSize, depth }, buffers)
      const run = together(
        load,
        groups.map((group) =>
          Effect.whileLoop({
            while: () => load.nextBatch([]),
            body: () => move(group),
            step: ({ failures: [failed], length }) => {
              if (failed === undefined) load.operations += length
              else load.fail(failed.error)
            }
          })
        )
      )
      return { id, before, round: measured(load, run) }
    }

    const offload: Array<Contestant> = []
    const onboard: Array<Contestant> = []
    const others: { readonly offload: Array<Contestant>; readonly onboard: Array<Contestant> } = {
      offload: [],
      onboard: []
    }
    for (const checksum of checksums) {
      const storage = yield* file
      const store = yield* BlockStore.make([storage], { blockBytes: blockSize, checksum, maxBlocksInFlight: depth })
        .pipe(Effect.catchAll((error) => Effect.as(left(`store, checksum ${checksum}`, error.message), undefined)))
      if (store === undefined) continue
      const fresh = hashes()
      const write = (group: ReadonlyArray<AlignedBuffer>) =>
        Effect.orDie(store.offload(group.map((data) => ({ hash: fresh(), data }))))
      for (let written = 0; written < capacity; written += some) {
        const { failures: [failed] } = yield* write(buffers.slice(0, some))
        if (failed !== undefined) return yield* Effect.fail(failed.error)
      }
      yield* storage.sync
      let known: ReadonlyArray<bigint> = []
      const random = new PCGRandom(capacity)
      others.offload.push(batches(checksum, "offload", Effect.void, write))
      others.onboard.push(batches(
        checksum,
        "onboard",
        Effect.map(store.hashes, (all) => {
          known = all
        }),
        (group) =>
          Effect.orDie(
            store.onboard(group.map((into) => ({ hash: known[random.integer(known.length)] ?? 0n, into })))
          )
      ))
      if (checksum === "off") {
        // Nobody checks what lies in this one: the control tells of its place on the disk, too.
        offload.push(raw("control", storage, "offload"))
        onboard.push(raw("control", storage, "onboard"))
      }
    }
    const storage = yield* file
    for (let offset = 0; offset + blockSize <= size; offset += blockSize * depth) {
      const { failures: [failed] } = yield* storage.writeBatch(
        buffers.slice(0, depth).map((buffer, number) => ({ buffer, offset: offset + number * blockSize }))
          .filter(({ offset }) => offset + blockSize <= size)
      )
      if (failed !== undefined) return yield* Effect.fail(failed.error)
    }
    yield* storage.sync
    return {
      offload: [raw("raw", storage, "offload"), ...offload, ...others.offload],
      onboard: [raw("raw", storage, "onboard"), ...onboard, ...others.onboard]
    }
  }).pipe(Effect.provide(context))

const toCell = (
  engine: Own["family"],
  direction: Direction,
  { blockSize, depth }: BlocksShape,
  rounds: ReadonlyMap<ContestantId, ReadonlyArray<Round>>
): BlocksCell => {
  const rates = (id: ContestantId) =>
    (rounds.get(id) ?? []).map(({ millis, operations }) => operations * blockSize / millis * 1000)
  const raw = rates("raw")
  const best = Math.max(...raw)
  const ratioOf = (id: ContestantId) => {
    const own = rates(id)
    return {
      best: Math.max(...own) / best,
      median: median(own.map((rate, round) => rate / (raw[round] ?? Number.NaN)))
    }
  }
  const control = ratioOf("control")
  const verdicts = [control.best, control.median].map((ratio) => verdictOf(true, ratio))
  return {
    engine,
    direction,
    blockSize,
    depth,
    control,
    verdict: verdicts.find((verdict) => verdict === "not decidable") ?? "decidable",
    results: [...rounds].map(([contestant, own]) => ({
      contestant,
      rounds: own,
      bytesPerSecond: summary(rates(contestant)),
      ratioToRaw: ratioOf(contestant),
      cpuMicrosPerBlock: median(own.map(({ cpuMicros, operations }) => cpuMicros / Math.max(1, operations)))
    }))
  }
}

/** Both directions of one shape, in turns. */
const transfers = (
  own: Own,
  shape: BlocksShape,
  options: { readonly directory: string; readonly filesystem: string; readonly size: number },
  { millis, rounds }: Turns,
  left: (contestant: string, reason: string) => Effect.Effect<void>
): Effect.Effect<ReadonlyArray<BlocksCell>, unknown, Progress> =>
  Effect.scoped(Effect.gen(function*() {
    const progress = yield* Progress
    const label = `${own.family}, blocks of ${bytes(shape.blockSize)} × ${shape.depth}`
    yield* progress.log(`blocks: ${label}, ${rounds} rounds of ${millis} ms`)
    yield* progress.status(`blocks: ${label}: writing the files once`)
    const contestants = yield* contestantsOf(own, shape, options, left)
    const cells: Array<BlocksCell> = []
    for (const direction of ["offload", "onboard"] as const) {
      const all = contestants[direction]
      const turn = (one: Contestant, millis: number) =>
        Effect.zipRight(one.before, one.round(millis)).pipe(
          Effect.mapError((cause) => new ContestantFailed({ contestant: `${one.id}, ${direction}`, cause }))
        )
      const measurements = new Map<ContestantId, Array<Round>>(all.map(({ id }) => [id, []]))
      for (const one of all) yield* turn(one, warmUpMillis(millis))
      const start = performance.now()
      for (let number = 0; number < rounds; number++) {
        const begins = number % all.length
        const remaining = number === 0
          ? ""
          : `, about ${duration((performance.now() - start) / number * (rounds - number))} left`
        for (const one of [...all.slice(begins), ...all.slice(0, begins)]) {
          yield* progress.status(`blocks: ${label}: ${direction} ${number + 1}/${rounds}, ${one.id}${remaining}`)
          measurements.get(one.id)?.push(yield* turn(one, millis))
        }
      }
      cells.push(toCell(own.family, direction, shape, measurements))
    }
    return cells
  }))

/** The smaller index. */
const smallIndex = 10_000

/** Operations of a round, where it is long enough. */
const mostOperations = 200_000
const operationsPerMilli = 200

/** An index that is full, and what lies in which slot of it, kept apart so that asking for it warms nothing in the index. */
class Full {
  readonly index: BlockIndex
  readonly capacity: number
  private readonly placed: BigUint64Array
  private readonly fresh = hashes()
  private readonly checksum = new Int32Array(4)
  private readonly random: PCGRandom

  constructor(capacity: number) {
    this.capacity = capacity
    this.random = new PCGRandom(capacity)
    this.placed = new BigUint64Array(capacity)
    this.index = new BlockIndex([capacity], () => {})
  }

  fill(): void {
    const some = Array.from({ length: this.capacity }, () => this.fresh())
    this.remember(some, this.commits(some))
  }

  private commits(some: ReadonlyArray<bigint>): Int32Array {
    const { checksum, index } = this
    const slots = new Int32Array(some.length)
    for (const [number, hash] of some.entries()) {
      if (index.find(hash) >= 0) continue
      const slot = index.take(0)
      index.seal(slot, checksum)
      index.commit(slot, hash, 0)
      slots[number] = slot
    }
    return slots
  }

  private remember(some: ReadonlyArray<bigint>, slots: Int32Array): void {
    for (const [number, hash] of some.entries()) this.placed[slots[number] ?? 0] = hash
  }

  /** Microseconds for each of so many new blocks: looked for, given a slot by eviction, entered. */
  offload(operations: number): number {
    const some = Array.from({ length: operations }, () => this.fresh())
    const start = performance.now()
    const slots = this.commits(some)
    const micros = (performance.now() - start) * 1000 / operations
    this.remember(some, slots)
    return micros
  }

  /** Microseconds for each of so many blocks that are there: found, pinned, unpinned. */
  onboard(operations: number): number {
    const { index } = this
    const some = Array.from({ length: operations }, () => this.placed[this.random.integer(this.capacity)] ?? 0n)
    let missed = 0
    const start = performance.now()
    for (const hash of some) {
      const slot = index.find(hash)
      if (slot < 0) {
        missed += 1
        continue
      }
      index.pin(slot)
      index.unpin(slot)
    }
    const micros = (performance.now() - start) * 1000 / operations
    if (missed > 0) throw new Error(`${missed} of ${operations} blocks were not found in the index`)
    return micros
  }
}

const leastAndMedian = (values: ReadonlyArray<number>) => ({ best: Math.min(...values), median: median(values) })

interface Timings {
  readonly blocks: number
  readonly offload: ReadonlyArray<number>
  readonly onboard: ReadonlyArray<number>
}

/** A small one and a large one. */
const compared = (timings: ReadonlyArray<Timings>) => {
  const sizes = timings.map(({ blocks, offload, onboard }): BlockIndexSize => ({
    blocks,
    offloadMicros: leastAndMedian(offload),
    onboardMicros: leastAndMedian(onboard),
    micros: leastAndMedian(offload.map((micros, round) => micros + (onboard[round] ?? Number.NaN)))
  }))
  const [small, large] = sizes
  const ratioOf = (what: "best" | "median") => (large?.micros[what] ?? Number.NaN) / (small?.micros[what] ?? Number.NaN)
  return { sizes, ratio: { best: ratioOf("best"), median: ratioOf("median") } }
}

const indexCost = (blocks: number, { millis, rounds }: Turns): Effect.Effect<BlockIndexCost, never, Progress> =>
  Effect.gen(function*() {
    const progress = yield* Progress
    yield* progress.log(`blocks: an index of ${smallIndex} and one of ${blocks} blocks, ${rounds} rounds`)
    const collect = yield* collector
    const operations = Math.min(mostOperations, millis * operationsPerMilli)
    const small = new Full(smallIndex)
    small.fill()
    // Compiled before anything counts.
    for (let time = 0; time < 5; time++) {
      small.offload(smallIndex)
      small.onboard(smallIndex)
    }
    const before = yield* settled(collect)
    const large = new Full(blocks)
    large.fill()
    const after = yield* settled(collect)
    // What the bench itself remembers is not of the index.
    const perBlock = (grown: number) => grown / blocks - BigUint64Array.BYTES_PER_ELEMENT
    const timings = [small, large].map((full) => {
      const offload: Array<number> = []
      const onboard: Array<number> = []
      return { full, offload, onboard }
    })
    for (let number = 0; number < rounds; number++) {
      for (const { full, offload, onboard } of number % 2 === 0 ? timings : timings.toReversed()) {
        yield* progress.status(`blocks: round ${number + 1}/${rounds}, an index of ${full.capacity} blocks`)
        yield* Effect.sync(() => onboard.push(full.onboard(operations)))
        yield* Effect.sync(() => offload.push(full.offload(operations)))
        yield* Effect.sleep(0)
      }
    }
    return {
      operations,
      ...compared(timings.map(({ full, offload, onboard }) => ({ blocks: full.capacity, offload, onboard }))),
      bytesPerBlock: {
        arrayBuffers: perBlock(after.arrayBuffers - before.arrayBuffers),
        heapUsed: (after.heapUsed - before.heapUsed) / blocks,
        rss: perBlock(after.rss - before.rss)
      },
      collected: collect !== undefined
    }
  })

const asked = 1000
const emptyBatch = 1024
/** Of a round. */
const emptyBatches = 16
const matchesPerRound = 32

/** A storage that says it is that large, and that moves nothing. */
const idle = (storage: DiskStorage.DiskStorage, size: number): DiskStorage.DiskStorage => ({
  ...storage,
  size,
  unsafeTransfer: (_kind, _transfer, done) => done(undefined)
})

const offloadFresh = (store: BlockStore.BlockStore, data: AlignedBuffer, fresh: () => bigint, count: number) => {
  const blocks = Array.from({ length: count }, () => ({ hash: fresh(), data }))
  return timed(count, Effect.orDie(store.offload(blocks)))
}

/** Microseconds for each of so many. */
const timed = (count: number, move: Effect.Effect<unknown>): Effect.Effect<number> =>
  Effect.suspend(() => {
    const start = performance.now()
    return Effect.map(move, () => (performance.now() - start) * 1000 / count)
  })

const fill = (store: BlockStore.BlockStore, data: AlignedBuffer, fresh: () => bigint) =>
  Effect.gen(function*() {
    const progress = yield* Progress
    for (let entered = 0; entered < store.capacity; entered += emptyBatch) {
      yield* offloadFresh(store, data, fresh, Math.min(emptyBatch, store.capacity - entered))
      yield* progress.status(`blocks: a store of ${store.capacity} blocks, ${entered} entered`)
    }
  })

/** Stores over a storage that moves nothing: all that is left is the store. */
const withoutDisk = (
  { context }: Own,
  directory: string,
  blocks: number,
  { rounds }: Turns
): Effect.Effect<Blocks["withoutDisk"], unknown, Progress> =>
  Effect.scoped(Effect.gen(function*() {
    const progress = yield* Progress
    yield* progress.log(
      `blocks: stores of ${smallIndex} and of ${blocks} blocks over a storage that moves nothing, ${rounds} rounds`
    )
    const collect = yield* collector
    const blockBytes = AlignedBuffers.pageSize
    const storage = yield* DiskStorage.make({ size: blockBytes, directory, earlyUnlink: true })
    const data = yield* AlignedBuffers.make(blockBytes)
    const fresh = hashes()
    const stores = yield* Effect.forEach([smallIndex, blocks], (blocks) =>
      Effect.gen(function*() {
        const store = yield* BlockStore.make([idle(storage, blocks * blockBytes)], { blockBytes, checksum: "off" })
        yield* fill(store, data, fresh)
        return {
          store,
          blocks,
          random: new PCGRandom(blocks),
          offload: Array<number>(),
          onboard: Array<number>(),
          match: Array<number>()
        }
      }))
    const round = ({ blocks, match, offload, onboard, random, store }: typeof stores[number], counts: boolean) =>
      Effect.gen(function*() {
        // In an array of words, so that asking for one makes it anew: a million of them on the heap are in no cache, either.
        const known = BigUint64Array.from(yield* store.hashes)
        collect?.()
        const some = (count: number) => Array.from({ length: count }, () => known[random.integer(known.length)] ?? 0n)
        let [offloads, onboards] = [0, 0]
        for (let times = 0; times < matchesPerRound; times++) {
          const few = some(asked)
          let length = 0
          const micros = yield* timed(
            1,
            Effect.map(Effect.orDie(store.match(few)), (found) => {
              length = found
            })
          )
          if (length !== asked) return yield* Effect.fail(`${length} of ${asked} blocks were matched`)
          if (counts) match.push(micros)
        }
        for (let times = 0; times < emptyBatches; times++) {
          onboards += yield* timed(
            emptyBatch,
            Effect.orDie(store.onboard(some(emptyBatch).map((hash) => ({ hash, into: data }))))
          )
        }
        for (let times = 0; times < emptyBatches; times++) {
          offloads += yield* offloadFresh(store, data, fresh, Math.min(emptyBatch, blocks))
        }
        if (!counts) return
        onboard.push(onboards / emptyBatches)
        offload.push(offloads / emptyBatches)
      })
    // Compiled before anything counts.
    for (const store of stores) yield* round(store, false)
    for (let number = 0; number < rounds; number++) {
      for (const store of number % 2 === 0 ? stores : stores.toReversed()) yield* round(store, true)
    }
    return { ...compared(stores), asked, matchMicros: leastAndMedian(stores[1]?.match ?? []) }
  })).pipe(Effect.provide(context))

/** Milliseconds of the end of a store that is kept, with so many blocks, and of the next start, which takes them up. */
const restarts = (
  { context }: Own,
  directory: string,
  blocks: number,
  { rounds }: Turns
): Effect.Effect<Blocks["restart"], unknown, Progress> =>
  Effect.scoped(Effect.gen(function*() {
    const progress = yield* Progress
    yield* progress.log(`blocks: a store of ${blocks} blocks that is kept, ${rounds} rounds`)
    const blockBytes = AlignedBuffers.pageSize
    const keepAt = join(directory, `eds-bench-kept-${process.pid}`)
    yield* Effect.addFinalizer(() => Effect.promise(() => rm(keepAt, { force: true })))
    const data = yield* AlignedBuffers.make(blockBytes)
    const start = (scope: Scope.CloseableScope) =>
      Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size: blocks * blockBytes + areaBytes(blocks), keepAt })
        // The blocks themselves are neither written nor read.
        return yield* BlockStore.make([idle(storage, storage.size)], { blockBytes, checksum: "off" })
      }).pipe(Scope.extend(scope))
    const ends: Array<number> = []
    const starts: Array<number> = []
    for (let number = 0; number <= rounds; number++) {
      yield* Effect.acquireUseRelease(
        Scope.make(),
        (scope) =>
          Effect.gen(function*() {
            const began = performance.now()
            const store = yield* start(scope)
            const millis = performance.now() - began
            if (number === 0) return yield* fill(store, data, hashes())
            starts.push(millis)
            const { blocks: found } = yield* store.stats
            if (found !== store.capacity) return yield* Effect.fail(`${found} of ${store.capacity} blocks were kept`)
          }),
        (scope) =>
          Effect.map(timed(1, Scope.close(scope, Exit.void)), (micros) => {
            ends.push(micros / 1000)
          })
      )
    }
    return { blocks, endMillis: leastAndMedian(ends), startMillis: leastAndMedian(starts) }
  })).pipe(Effect.provide(context))

export const measure = (
  own: readonly [Own, ...ReadonlyArray<Own>],
  options: Turns & {
    readonly directory: string
    /** Of all files together. */
    readonly size: number
    /** Of the larger index. */
    readonly blocks: number
  }
): Effect.Effect<Blocks, NotEnoughSpace | TargetUnusable, Progress> =>
  Effect.gen(function*() {
    const progress = yield* Progress
    const { blocks, directory, rounds } = options
    const filesystem = yield* target.filesystemOf(directory)
    // Filesystems give space back behind the scenes: those of one shape can still hold theirs while the next are made.
    yield* target.checkSpace(directory, filesystem, 2 * options.size)
    const leftOut: Array<LeftOut> = []
    const left = (contestant: string, reason: string) => {
      leftOut.push({ contestant, reason })
      return progress.log(`blocks: left out: ${contestant}: ${reason}`)
    }
    const size = Math.floor(options.size / files / AlignedBuffers.pageSize) * AlignedBuffers.pageSize
    const cells: Array<BlocksCell> = []
    for (const engine of own) {
      for (const shape of shapes) {
        const label = `${engine.family}, blocks of ${bytes(shape.blockSize)} × ${shape.depth}`
        if (size < 2 * shape.depth * shape.blockSize) {
          yield* left(label, `a file of ${bytes(size)} is too small`)
          continue
        }
        const asked = { directory, filesystem: filesystem.name, size }
        yield* Effect.matchEffect(transfers(engine, shape, asked, options, left), {
          onFailure: (cause) => left(label, new ContestantFailed({ contestant: engine.family, cause }).message),
          onSuccess: (measured) => Effect.sync(() => cells.push(...measured))
        })
      }
    }
    const index = yield* indexCost(blocks, options)
    const [engine] = own
    const failed = (step: string) => (cause: unknown) => new TargetUnusable({ directory, step, cause })
    const empty = yield* Effect.mapError(
      withoutDisk(engine, directory, blocks, options),
      failed("a store without a disk")
    )
    yield* target.checkSpace(directory, filesystem, blocks * AlignedBuffers.pageSize + areaBytes(blocks))
    const restart = yield* Effect.mapError(
      restarts(engine, directory, blocks, options),
      failed("a store that is kept")
    )
    return {
      directory,
      filesystem: filesystem.name,
      size,
      rounds,
      cells,
      index,
      withoutDisk: empty,
      restart,
      leftOut
    }
    // What a storage has to say about its directory is no news here.
  }).pipe(Logger.withMinimumLogLevel(LogLevel.None))
