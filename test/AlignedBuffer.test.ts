import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as AlignedBuffer from "../src/AlignedBuffer.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import { Syscalls } from "../src/Syscalls.js"

/** A file that is written with O_DIRECT on a filesystem as strict as Lustre. */
const strictWriter = Effect.gen(function*() {
  const kernel = yield* Syscalls
  const { fd } = yield* kernel.mkostemp("/tmp/file-", 0)
  yield* kernel.fcntlSetFlags(fd, kernel.flags.O_DIRECT)
  return (bytes: Uint8Array) => kernel.pwrite(fd, bytes, 0)
})

describe("AlignedBuffer", () => {
  it.effect.each([1234, 4096, 4097, 16 * 1024 * 1024, 1_000_000])(
    "of %d bytes satisfies a strict writer",
    (byteLength) =>
      Effect.gen(function*() {
        const write = yield* strictWriter
        const { bytes } = yield* AlignedBuffer.make(byteLength)
        assert.strictEqual(bytes.byteLength, Math.ceil(byteLength / 4096) * 4096)
        assert.strictEqual(yield* write(bytes), bytes.byteLength)
      }).pipe(Effect.provide(SimulatedSyscalls.layer({ profile: "lustre" })))
  )

  it.effect("other memory is refused by it", () =>
    Effect.gen(function*() {
      const write = yield* strictWriter
      const { bytes } = yield* AlignedBuffer.make(8192)
      for (const memory of [new Uint8Array(8192), bytes.subarray(1, 4097), bytes.subarray(0, 4095)]) {
        assert.strictEqual((yield* Effect.flip(write(memory))).code, "EINVAL")
      }
    }).pipe(Effect.provide(SimulatedSyscalls.layer({ profile: "lustre" }))))

  it.effect("is zeroed and overlaps no other", () =>
    Effect.gen(function*() {
      const buffers = yield* Effect.replicateEffect(AlignedBuffer.make(300_000), 40)
      for (const [index, { bytes }] of buffers.entries()) {
        assert.isTrue(bytes.every((byte) => byte === 0))
        bytes.fill(index + 1)
      }
      for (const [index, { bytes }] of buffers.entries()) assert.isTrue(bytes.every((byte) => byte === index + 1))
    }))

  it.effect("cannot be detached", () =>
    Effect.gen(function*() {
      const { bytes } = yield* AlignedBuffer.make(4096)
      const { buffer } = bytes
      if (!(buffer instanceof ArrayBuffer)) return assert.fail("not a plain buffer")
      bytes.fill(7)
      // Node 22 throws here, Node 20 copies.
      try {
        structuredClone(buffer, { transfer: [buffer] })
      } catch (error) {
        assert.instanceOf(error, Error)
      }
      assert.strictEqual(bytes.byteLength, 4096)
      assert.isTrue(bytes.every((byte) => byte === 7))
    }))

  it.effect.each([0, -1, 1.5, NaN, Infinity, 2 ** 33])(
    "of %d bytes is a typed failure",
    (byteLength) =>
      Effect.gen(function*() {
        const failure = yield* Effect.flip(AlignedBuffer.make(byteLength))
        assert.strictEqual(failure._tag, "BufferUnavailable")
        assert.include(failure.message, String(byteLength))
      })
  )
})
