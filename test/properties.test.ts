/** Any size, policy, profile, capacity and fault schedule keeps what DESIGN promises: nothing leaks, every failure is typed, bytes are right. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as AlignedBuffer from "../src/AlignedBuffer.js"
import * as DiskStorage from "../src/DiskStorage.js"
import { isDiskStorageError } from "../src/DiskStorageError.js"
import type { Fault } from "../src/SimulatedSyscalls.js"
import { SimulatedKernel } from "../src/SimulatedSyscalls.js"
import type { SyscallName } from "../src/Syscalls.js"
import { errnosBySyscall, Syscalls } from "../src/Syscalls.js"
import { history, layer, policies, profiles } from "./support/simulation.js"

const mebibyte = 1024 * 1024

const profile = FastCheck.constantFrom(...profiles)
const policy = FastCheck.constantFrom(...policies)
const size = FastCheck.oneof(
  FastCheck.integer({ min: 1, max: 3 * 4096 }),
  FastCheck.integer({ min: 1, max: 4 * mebibyte }),
  FastCheck.integer({ min: 1, max: 64 }).map((pages) => pages * 4096)
)

const errno: FastCheck.Arbitrary<Fault> = FastCheck.constantFrom<Array<SyscallName>>(
  "mkdir",
  "mkostemp",
  "open",
  "fcntlGetFlags",
  "fcntlSetFlags",
  "ioctlGetFlags",
  "ioctlSetFlags",
  "fallocate",
  "ftruncate",
  "pread",
  "pwrite",
  "fdatasync",
  "statx",
  "fstatfs"
).chain((syscall) =>
  FastCheck.record({
    syscall: FastCheck.constant(syscall),
    nth: FastCheck.integer({ min: 1, max: 4 }),
    outcome: FastCheck.record({
      _tag: FastCheck.constant("Fail" as const),
      code: FastCheck.constantFrom(...errnosBySyscall[syscall])
    })
  })
)
const short: FastCheck.Arbitrary<Fault> = FastCheck.record({
  syscall: FastCheck.constantFrom("pread" as const, "pwrite" as const),
  nth: FastCheck.integer({ min: 1, max: 8 }),
  outcome: FastCheck.record({
    _tag: FastCheck.constant("Short" as const),
    bytes: FastCheck.integer({ min: 0, max: 3 * 4096 })
  })
})
const faults = FastCheck.array(FastCheck.oneof(errno, short), { maxLength: 4 })

describe("properties", () => {
  it.effect.prop(
    "nothing leaks and every failure is typed, whatever fails and whenever it is interrupted",
    {
      profile,
      policy,
      size,
      faults,
      capacity: FastCheck.integer({ min: 0, max: 8 * mebibyte }),
      maxFds: FastCheck.integer({ min: 0, max: 4 }),
      interruption: FastCheck.option(FastCheck.record({
        call: FastCheck.integer({ min: 1, max: 25 }),
        when: FastCheck.constantFrom("before" as const, "during" as const, "after" as const)
      }))
    },
    ({ capacity, faults, interruption, maxFds, policy, profile, size }) =>
      Effect.gen(function*() {
        const run = yield* history(
          { profile, capacity, maxFds },
          { size: Math.max(size, 3 * 4096), directory: "/tmp/a", ...policy },
          interruption === null ? { faults } : { faults, interruption }
        )
        assert.deepStrictEqual(run.leaks, { fds: [], files: [], bytes: 0, mappings: 0 })
        assert.strictEqual(run.registered, 0)
        if (Exit.isFailure(run.exit)) {
          assert.strictEqual([...Cause.defects(run.exit.cause)].length, 0, Cause.pretty(run.exit.cause))
          for (const failure of Cause.failures(run.exit.cause)) assert.isTrue(isDiskStorageError(failure))
        }
        const created = run.journal.findIndex(({ result, syscall }) =>
          syscall === "mkostemp" && typeof result === "number"
        )
        if (created !== -1) assert.isTrue(run.journal.slice(created).some(({ syscall }) => syscall === "close"))
      }),
    { fastCheck: { numRuns: 1000 } }
  )

  it.effect.prop(
    "the file is the size rounded up to whole pages, the alignment is kept, the size is as asked",
    { profile, policy, size },
    ({ policy, profile, size }) =>
      Effect.gen(function*() {
        const kernel = yield* Syscalls
        const storage = yield* DiskStorage.make({
          ...policy,
          size,
          directIo: policy.directIo === "required" ? "preferred" : policy.directIo
        })
        const unit = Math.max(4096, storage.alignment.offset)
        assert.strictEqual((yield* storage.withFd(kernel.statx)).size, Math.ceil(size / unit) * unit)
        assert.strictEqual(storage.size, size)
        assert.strictEqual(storage.directIo.flag, storage.alignment.offset > 1)
        assert.strictEqual(yield* storage.unlinked, policy.earlyUnlink)
      }).pipe(Effect.scoped, Effect.provide(layer({ profile }))),
    { fastCheck: { numRuns: 300 } }
  )

  it.effect.prop(
    "what is read is what was written: bytes of any range, blocks where they fit, under short transfers",
    {
      profile,
      size: FastCheck.integer({ min: 1, max: 40_000 }),
      shorts: FastCheck.array(short.filter(({ outcome }) => outcome._tag === "Short" && outcome.bytes >= 4096), {
        maxLength: 6
      }),
      steps: FastCheck.array(
        FastCheck.record({
          kind: FastCheck.constantFrom("readBytes" as const, "writeBytes" as const, "read" as const, "write" as const),
          offset: FastCheck.nat(40_000),
          length: FastCheck.nat(20_000),
          seed: FastCheck.integer({ min: 1, max: 255 })
        }),
        { minLength: 1, maxLength: 12 }
      )
    },
    ({ profile, shorts, size, steps }) =>
      Effect.gen(function*() {
        const control = yield* SimulatedKernel
        const storage = yield* DiskStorage.make({ size, directIo: "preferred" })
        yield* Effect.forEach(shorts, control.inject)
        const model = new Uint8Array(size)
        for (const { kind, length, offset, seed } of steps) {
          const from = Math.min(offset, size)
          const count = Math.min(length, size - from)
          const content = new Uint8Array(count).map((_, index) => seed + index)
          if (kind === "writeBytes") {
            yield* storage.writeBytes(from, content)
            model.set(content, from)
          } else if (kind === "readBytes") {
            assert.deepStrictEqual(yield* storage.readBytes(from, count), model.slice(from, from + count))
          } else {
            const at = from - (from % 4096)
            const block = yield* AlignedBuffer.make(4096)
            if (at + 4096 > size) {
              assert.strictEqual((yield* Effect.flip(storage[kind](at, block)))._tag, "OutOfBounds")
            } else if (kind === "write") {
              block.bytes.fill(seed)
              yield* storage.write(at, block)
              model.set(block.bytes, at)
            } else {
              yield* storage.read(at, block)
              assert.deepStrictEqual(block.bytes.slice(), model.slice(at, at + 4096))
            }
          }
        }
        assert.deepStrictEqual(yield* storage.readBytes(0, size), model)
      }).pipe(Effect.scoped, Effect.provide(layer({ profile }))),
    { fastCheck: { numRuns: 400 } }
  )
})
