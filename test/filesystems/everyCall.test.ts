/** On the real kernel: every call of acquire, use and release refused once, and interrupted while the kernel is at it. */
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import { readdirSync } from "node:fs"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import { isDiskStorageError } from "../../src/DiskStorageError.js"
import * as IoEngine from "../../src/IoEngine.js"
import type { SyscallName } from "../../src/Syscalls.js"
import { errnos, errnosBySyscall, SyscallError, Syscalls } from "../../src/Syscalls.js"
import { assertGivenBack, describeReal, freshPath, openBelow, settledFreeBytes } from "./real.js"

/** The real kernel with something before every call; what that does is done as a part of the call. */
const before = (kernel: Syscalls, each: (syscall: SyscallName) => Effect.Effect<void, SyscallError>): Syscalls => {
  const wrap = <Args extends ReadonlyArray<unknown>, A>(
    syscall: SyscallName,
    call: (...args: Args) => Effect.Effect<A, SyscallError>
  ) =>
  (...args: Args) => Effect.uninterruptible(Effect.zipRight(Effect.suspend(() => each(syscall)), call(...args)))
  return {
    ...kernel,
    mkdir: wrap("mkdir", kernel.mkdir),
    mkostemp: wrap("mkostemp", kernel.mkostemp),
    open: wrap("open", kernel.open),
    fcntlGetFlags: wrap("fcntlGetFlags", kernel.fcntlGetFlags),
    fcntlSetFlags: wrap("fcntlSetFlags", kernel.fcntlSetFlags),
    fallocate: wrap("fallocate", kernel.fallocate),
    ftruncate: wrap("ftruncate", kernel.ftruncate),
    pread: wrap("pread", kernel.pread),
    pwrite: wrap("pwrite", kernel.pwrite),
    fdatasync: wrap("fdatasync", kernel.fdatasync),
    statx: wrap("statx", kernel.statx),
    fstatfs: wrap("fstatfs", kernel.fstatfs),
    unlink: wrap("unlink", kernel.unlink)
  }
}

const history = (kernel: Syscalls, directory: string, openStrategy: "default" | "open-direct") =>
  Effect.scoped(Effect.gen(function*() {
    const storage = yield* DiskStorage.make({ size: 1_000_000, directory, openStrategy, fallback: "zero-fill" })
    const block = yield* AlignedBuffer.make(65_536)
    yield* storage.write(0, block)
    yield* storage.read(0, block)
    yield* storage.writeBytes(100, new Uint8Array(10))
    yield* storage.sync
    yield* storage.unlink
  })).pipe(Effect.provide(IoEngine.layerSyscalls), Effect.provideService(Syscalls, kernel))

/** The calls of one undisturbed run, in a directory that is there. */
const callsOf = (kernel: Syscalls, directory: string, openStrategy: "default" | "open-direct") =>
  Effect.gen(function*() {
    const calls: Array<SyscallName> = []
    yield* kernel.mkdir(directory, 0o700)
    const counting = before(kernel, (syscall) => Effect.sync(() => void calls.push(syscall)))
    yield* history(counting, directory, openStrategy)
    return calls
  })

/**
 * Refused fallocate and F_SETFL have a way around. Without the unit that is written to observe where it goes, the verdict is `unknown`. A
 * name that cannot be looked at is removed unseen, and links that cannot be counted are taken for none.
 */
const isGoneAround = (calls: ReadonlyArray<SyscallName>, index: number): boolean => {
  const syscall = calls[index]
  return syscall === "fallocate" || syscall === "fcntlSetFlags" ||
    (["pread", "pwrite", "fdatasync"].includes(syscall ?? "") && index < calls.indexOf("fallocate")) ||
    (syscall === "statx" && (calls[index + 1] === "unlink" || calls[index - 1] === "unlink"))
}

for (const kind of ["ext4", "ext2", "xfs", "btrfs"] as const) {
  for (const openStrategy of ["default", "open-direct"] as const) {
    describeReal(kind, { name: `every call, ${openStrategy}` }, (it) => {
      it.effect("refused once: a typed failure or a way around, and nothing is left", () =>
        Effect.gen(function*() {
          const directory = yield* freshPath
          const kernel = yield* Syscalls
          const calls = yield* callsOf(kernel, directory, openStrategy)
          const free = yield* settledFreeBytes(directory)
          for (const [index, syscall] of calls.entries()) {
            // The last error of its row, and the I/O error that most calls can give.
            const codes = [...errnosBySyscall[syscall]].filter((code, at, all) =>
              code === "EIO" || at === all.length - 1
            )
            for (const code of codes) {
              let made = 0
              const refusing = before(
                kernel,
                (syscall) =>
                  made++ === index ? Effect.fail(new SyscallError({ syscall, code, errno: errnos[code] })) : Effect.void
              )
              const exit = yield* Effect.exit(history(refusing, directory, openStrategy))
              const what = `call ${index + 1}, ${syscall}: ${code}`
              assert.deepStrictEqual(openBelow(directory), [], what)
              assert.deepStrictEqual(readdirSync(directory), [], what)
              if (Exit.isFailure(exit)) {
                assert.deepStrictEqual([...Cause.failures(exit.cause)].map(isDiskStorageError), [true], what)
                assert.deepStrictEqual([...Cause.defects(exit.cause)], [], what)
              } else assert.isTrue(isGoneAround(calls, index), `${what}: succeeded`)
            }
          }
          yield* assertGivenBack(directory, free)
        }))

      it.effect("interrupted: it is undone, and nothing is left", () =>
        Effect.gen(function*() {
          const directory = yield* freshPath
          const kernel = yield* Syscalls
          const calls = yield* callsOf(kernel, directory, openStrategy)
          const free = yield* settledFreeBytes(directory)
          for (const [index, syscall] of calls.entries()) {
            let made = 0
            const fiber: Fiber.RuntimeFiber<void, unknown> = yield* Effect.fork(history(
              before(kernel, () =>
                Effect.sync(() => {
                  if (made++ === index) fiber.unsafeInterruptAsFork(FiberId.none)
                })),
              directory,
              openStrategy
            ))
            const exit = yield* Fiber.await(fiber)
            const what = `call ${index + 1}, ${syscall}`
            assert.isTrue(Exit.isInterrupted(exit), what)
            assert.deepStrictEqual(openBelow(directory), [], what)
            assert.deepStrictEqual(readdirSync(directory), [], what)
          }
          yield* assertGivenBack(directory, free)
        }))
    })
  }
}
