/** `prewrite`: zeros over every extent after fallocate, from the device where it can, else written. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as DiskStorage from "../src/DiskStorage.js"
import * as IoEngine from "../src/IoEngine.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import { SimulatedKernel } from "../src/SimulatedSyscalls.js"
import { errnos, FALLOC_FL_WRITE_ZEROES, SyscallError, Syscalls } from "../src/Syscalls.js"
import { layer } from "./support/simulation.js"

const mebibyte = 1024 * 1024
const options = { size: 9 * mebibyte + 1, directory: "/tmp", prewrite: true } as const
const length = 9 * mebibyte + 4096

const told = <A, E, R>(use: Effect.Effect<A, E, R>) => {
  const progress: Array<DiskStorage.Progress> = []
  return Effect.map(
    Effect.provideService(use, DiskStorage.ProgressListener, (one) => Effect.sync(() => void progress.push(one))),
    (value) => ({ value, progress })
  )
}

/** The simulated kernel, whose device answers `FALLOC_FL_WRITE_ZEROES` as told, and the ranges that it was asked for. */
const device = (answer: Effect.Effect<void, SyscallError>) => {
  const ranges: Array<readonly [number, number]> = []
  const kernel = Layer.effect(
    Syscalls,
    Effect.map(Syscalls, (kernel): Syscalls => ({
      ...kernel,
      fallocate: (fd, mode, offset, bytes) =>
        mode === FALLOC_FL_WRITE_ZEROES
          ? Effect.zipRight(Effect.sync(() => void ranges.push([offset, bytes])), answer)
          : kernel.fallocate(fd, mode, offset, bytes)
    }))
  ).pipe(Layer.provideMerge(SimulatedSyscalls.layer()))
  return { ranges, layer: Layer.provideMerge(IoEngine.layerSyscalls, kernel) }
}

describe("prewrite", () => {
  it.effect("writes every extent once where the device cannot", () =>
    Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      const { progress, value: storage } = yield* told(DiskStorage.make(options))
      assert.deepStrictEqual(storage.allocation, {
        method: "fallocate",
        written: true,
        overwritesMayRunOutOfSpace: false
      })
      const journal = yield* kernel.journal
      const reached = journal.flatMap(({ length = 0, syscall }) => syscall === "pwrite" ? [length] : [])
      assert.strictEqual(reached.reduce((sum, bytes) => sum + bytes, 0), length)
      assert.strictEqual(journal.at(-1)?.syscall, "fdatasync")
      assert.isTrue(progress.every(({ step, total }) => step === "prewrite" && total === length))
      assert.strictEqual(progress.at(-1)?.done, length)
    }).pipe(Effect.scoped, Effect.provide(layer())))

  it.effect("leaves it to the device where that can", () => {
    const { layer, ranges } = device(Effect.void)
    return Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      const { progress, value: storage } = yield* told(DiskStorage.make(options))
      assert.isTrue(storage.allocation.written)
      assert.deepStrictEqual(ranges, [[0, length]])
      assert.isFalse((yield* kernel.journal).some(({ syscall }) => syscall === "pwrite"))
      assert.deepStrictEqual(progress.map(({ done, step }) => [step, done]), [["prewrite", length]])
    }).pipe(Effect.scoped, Effect.provide(layer))
  })

  it.effect("fails typed, and leaves nothing, when the device fails", () => {
    const { layer } = device(
      Effect.suspend(() => Effect.fail(new SyscallError({ syscall: "fallocate", errno: errnos.EIO, code: "EIO" })))
    )
    return Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      const failure = yield* Effect.flip(Effect.scoped(DiskStorage.make(options)))
      if (failure._tag !== "AllocationFailed") return assert.fail(failure.message)
      assert.strictEqual(failure.method, "prewrite")
      assert.strictEqual(failure.cause?.code, "EIO")
      assert.deepStrictEqual(yield* kernel.leaks, { fds: [], files: [], bytes: 0, mappings: 0 })
    }).pipe(Effect.provide(layer))
  })

  it.effect("is filled with zeros where there is no fallocate", () =>
    Effect.gen(function*() {
      const storage = yield* DiskStorage.make(options)
      assert.strictEqual(storage.allocation.method, "zero-fill")
      assert.isTrue(storage.allocation.written)
    }).pipe(Effect.scoped, Effect.provide(layer({ profile: "ext2" }))))

  it.effect("is refused, with the reason, where copy-on-write stays on", () =>
    Effect.gen(function*() {
      const kernel = yield* SimulatedKernel
      yield* kernel.inject({ syscall: "ioctlSetFlags", nth: 1, outcome: { _tag: "Fail", code: "EOPNOTSUPP" } })
      const failure = yield* Effect.flip(Effect.scoped(DiskStorage.make({ ...options, directIo: "preferred" })))
      if (failure._tag !== "PrewriteRefused") return assert.fail(failure.message)
      assert.include(failure.message, "copy-on-write")
      assert.deepStrictEqual(yield* kernel.leaks, { fds: [], files: [], bytes: 0, mappings: 0 })
    }).pipe(Effect.provide(layer({ profile: "btrfs" }))))

  it.effect("leaves nothing when it is interrupted at any call, or any call fails", () =>
    Effect.gen(function*() {
      const calls = yield* Effect.scoped(DiskStorage.make(options)).pipe(
        Effect.zipRight(Effect.flatMap(SimulatedKernel, (kernel) => kernel.journal)),
        Effect.provide(layer())
      )
      for (const { call } of calls) {
        for (const kind of ["fail", "before", "during", "after"] as const) {
          yield* Effect.gen(function*() {
            const kernel = yield* SimulatedKernel
            if (kind === "fail") yield* kernel.inject({ nth: call, outcome: { _tag: "Fail", code: "EIO" } })
            const fiber = yield* Effect.fork(Effect.scoped(DiskStorage.make(options)))
            if (kind !== "fail") yield* kernel.interrupt(fiber, { call, when: kind })
            const exit = yield* fiber.await
            const { syscall } = calls[call - 1] ?? {}
            // Nobody fails because of a sweep, and the end of the scope is a success, whatever close and unlink answer.
            // So it is whether or not the name can be looked at, and its links be counted.
            const isAboutName = syscall === "statx" &&
              [calls[call - 2]?.syscall, calls[call]?.syscall].includes("unlink")
            if (!isAboutName && syscall !== "readdir" && syscall !== "close" && syscall !== "unlink") {
              assert.isTrue(Exit.isFailure(exit), `${kind} ${syscall}`)
            }
            const { bytes, fds } = yield* kernel.leaks
            assert.deepStrictEqual(fds, [], `${kind} ${syscall}`)
            if (!(kind === "fail" && syscall === "unlink")) {
              assert.strictEqual(bytes, 0, `${kind} ${syscall}`)
            }
          }).pipe(Effect.provide(layer()))
        }
      }
    }))
})
