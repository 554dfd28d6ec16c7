/** The part `allocation`: what it costs that a file gets its blocks, and what the first writes into them cost. */
import type * as CommandExecutor from "@effect/platform/CommandExecutor"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import type * as Scope from "effect/Scope"
import { PCGRandom } from "effect/Utils"
import { randomFillSync } from "node:crypto"
import * as NFS from "node:fs"
import * as AlignedBuffer from "../../AlignedBuffer.js"
import * as DiskStorage from "../../DiskStorage.js"
import { errnos, SyscallError, Syscalls } from "../../Syscalls.js"
import type { Own } from "./engines.js"
import type { NotEnoughSpace, TargetUnusable } from "./errors.js"
import { ContestantFailed } from "./errors.js"
import * as fio from "./fio.js"
import { Progress } from "./progress.js"
import type { Allocation, LeftOut } from "./report.js"
import { fioContestant, fioControl, Pass } from "./report.js"
import { summary, verdictOf } from "./rounds.js"
import type { Filesystem } from "./target.js"
import * as target from "./target.js"
import { bytes, duration } from "./units.js"

/** As the Rust original fills a file: one write of so many bytes at a time. */
const serialBytes = 16 * 2 ** 20
const serial = "serial"

/** The random writes. */
const blockSize = 128 * 2 ** 10
const depth = 8

interface Timing {
  readonly kind: Pass["kind"]
  readonly bytes: number
  readonly millis: number
}

interface Contestant {
  readonly id: string
  /** Each time on a new file, which the Scope ends. */
  readonly round: Effect.Effect<ReadonlyArray<Timing>, unknown, Scope.Scope | CommandExecutor.CommandExecutor>
}

const timed = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<number, E, R> =>
  Effect.suspend(() => {
    const start = performance.now()
    return Effect.map(effect, () => performance.now() - start)
  })

/** The real kernel as if its filesystems had no fallocate. */
const withoutFallocate = (context: Own["context"]): Own["context"] =>
  Context.add(context, Syscalls, {
    ...Context.get(context, Syscalls),
    fallocate: (fd) =>
      Effect.suspend(() =>
        Effect.fail(new SyscallError({ syscall: "fallocate", errno: errnos.EOPNOTSUPP, code: "EOPNOTSUPP", fd }))
      )
  })

const zeroFill = ({ context, family }: Own, directory: string, size: number): Contestant => ({
  id: `${family}.storage`,
  round: DiskStorage.make({ size, directory, fallback: "zero-fill", earlyUnlink: true }).pipe(
    timed,
    Effect.provide(withoutFallocate(context)),
    Effect.map((millis) => [{ kind: "zero-fill", bytes: size, millis }])
  )
})

/** On libuv's threads. */
const call = (start: (done: (cause: Error | null, count?: number) => void) => void, expected?: number) =>
  Effect.uninterruptible(
    Effect.async<void, unknown>((resume) =>
      start((cause, count) =>
        resume(cause === null && count === expected ? Effect.void : Effect.fail(cause ?? "a short write"))
      )
    )
  )

const serially = (directory: string, filesystem: Filesystem, size: number): Contestant => ({
  id: serial,
  round: Effect.gen(function*() {
    const zeros = yield* AlignedBuffer.make(Math.min(serialBytes, size))
    const fd = yield* target.empty(directory, filesystem, true)
    const millis = yield* timed(Effect.gen(function*() {
      for (let offset = 0; offset < size; offset += zeros.byteLength) {
        const length = Math.min(zeros.byteLength, size - offset)
        yield* call((done) => NFS.write(fd, zeros.bytes, 0, length, offset, done), length)
      }
      yield* call((done) => NFS.fdatasync(fd, done))
    }))
    return [{ kind: "zero-fill", bytes: size, millis }]
  })
})

const byFio = (id: string, directory: string, filesystem: Filesystem, size: number): Contestant => ({
  id,
  round: Effect.gen(function*() {
    const fd = yield* target.empty(directory, filesystem, true)
    return [{ kind: "zero-fill", bytes: size, millis: yield* fio.fill(id, target.pathOf(fd), size) }]
  })
})

/** Every block of a file once, in an order that is another for another `seed`. */
const shuffled = (size: number, block: number, seed: number): Float64Array => {
  const random = new PCGRandom(seed)
  const offsets = Float64Array.from({ length: Math.floor(size / block) }, (_, index) => index * block)
  for (let last = offsets.length - 1; last > 0; last--) {
    const other = random.integer(last + 1)
    const offset = offsets[last] ?? 0
    offsets[last] = offsets[other] ?? 0
    offsets[other] = offset
  }
  return offsets
}

const firstWrites = (
  { context, family }: Own,
  method: "fallocate" | "prewrite",
  directory: string,
  size: number
): Contestant => {
  const block = Math.min(blockSize, size)
  // The same orders for both.
  let seed = 0
  return {
    id: `${family}.${method}`,
    round: Effect.gen(function*() {
      const buffers = yield* Effect.replicateEffect(AlignedBuffer.make(block), depth)
      for (const { bytes } of buffers) randomFillSync(bytes)
      const storage = yield* DiskStorage.make({ size, directory, earlyUnlink: true, prewrite: method === "prewrite" })
      const pass = (kind: Pass["kind"]) =>
        Effect.suspend(() => {
          const offsets = shuffled(size, block, seed++)
          let next = 0
          const all = Effect.forEach(buffers, (buffer) =>
            Effect.whileLoop({
              while: () => next < offsets.length,
              body: () => storage.write(offsets[next++] ?? 0, buffer),
              step: () => {}
            }), { concurrency: "unbounded", discard: true })
          return Effect.map(timed(all), (millis): Timing => ({ kind, bytes: offsets.length * block, millis }))
        })
      const first = yield* pass("first writes")
      // What the first writes left to do is not to burden the second.
      yield* storage.sync
      return [first, yield* pass("rewrites")]
    }).pipe(Effect.provide(context))
  }
}

export const measure = (
  own: ReadonlyArray<Own>,
  options: { readonly directory: string; readonly size: number; readonly rounds: number; readonly fio: boolean }
): Effect.Effect<Allocation, NotEnoughSpace | TargetUnusable, Progress | CommandExecutor.CommandExecutor> =>
  Effect.gen(function*() {
    const progress = yield* Progress
    const { directory, rounds, size } = options
    const filesystem = yield* target.filesystemOf(directory)
    // Filesystems give space back behind the scenes: one file can still hold its own while the next is made.
    yield* target.checkSpace(directory, filesystem, 2 * size)
    let contestants: ReadonlyArray<Contestant> = [
      ...own.map((engine) => zeroFill(engine, directory, size)),
      serially(directory, filesystem, size),
      ...(options.fio ? [fioContestant, fioControl].map((id) => byFio(id, directory, filesystem, size)) : []),
      ...own.flatMap((engine) => [
        firstWrites(engine, "fallocate", directory, size),
        firstWrites(engine, "prewrite", directory, size)
      ])
    ]
    yield* progress.log(`allocation: ${contestants.length} contestants, ${rounds} rounds of ${bytes(size)}`)
    const leftOut: Array<LeftOut> = []
    const timings = new Map<string, Array<Timing>>(contestants.map(({ id }) => [id, []]))
    const ids = [...timings.keys()]
    const start = performance.now()
    for (let number = 0; number < rounds; number++) {
      const begins = number % Math.max(1, contestants.length)
      const remaining = number === 0
        ? ""
        : `, about ${duration((performance.now() - start) / number * (rounds - number))} left`
      for (const contestant of [...contestants.slice(begins), ...contestants.slice(0, begins)]) {
        const { id, round } = contestant
        yield* progress.status(`allocation: round ${number + 1}/${rounds}, ${id}${remaining}`)
        yield* Effect.scoped(round).pipe(
          Effect.map((measured) => timings.get(id)?.push(...measured)),
          Effect.catchAll((cause) => {
            const { message } = new ContestantFailed({ contestant: id, cause })
            contestants = contestants.filter((other) => other !== contestant)
            timings.delete(id)
            leftOut.push({ contestant: id, reason: message })
            return progress.log(`allocation: left out: ${message}`)
          })
        )
      }
    }
    const passes = Pass.fields.kind.literals.flatMap((kind) =>
      ids.flatMap((id): ReadonlyArray<Pass> => {
        const measured = (timings.get(id) ?? []).filter((timing) => timing.kind === kind)
        const [one] = measured
        return one === undefined ? [] : [{
          kind,
          contestant: id,
          bytes: one.bytes,
          millis: measured.map(({ millis }) => millis),
          bytesPerSecond: summary(measured.map(({ bytes, millis }) => bytes / millis * 1000))
        }]
      })
    )
    const ratios = passes.flatMap((pass) =>
      passes.filter((other) => other.kind === pass.kind && isYardstick(pass.contestant, other.contestant)).map((
        { bytesPerSecond: { best, median }, contestant }
      ) => ({
        kind: pass.kind,
        contestant: pass.contestant,
        to: contestant,
        best: pass.bytesPerSecond.best / best,
        median: pass.bytesPerSecond.median / median
      }))
    )
    const control = ratios.find(({ contestant }) => contestant === fioControl)
    return {
      directory,
      filesystem: filesystem.name,
      size,
      rounds,
      passes,
      verdict: verdictOf(!filesystem.isMemory, control?.best),
      ratios,
      leftOut
    }
    // That there is no fallocate is no news here.
  }).pipe(Logger.withMinimumLogLevel(LogLevel.None))

/** Whether a ratio of `id` to `other` says something. */
const isYardstick = (id: string, other: string): boolean =>
  id.endsWith(".storage")
    ? other === serial || other === fioContestant
    : id === serial || id === fioControl
    ? other === fioContestant
    : id.endsWith(".prewrite") && other === id.replace(".prewrite", ".fallocate")
