/** The engines of the real kernel, one suite for all of them, and files to use them on. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { closeSync, constants, ftruncateSync, mkdtempSync, openSync, readdirSync, readlinkSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import type {
  EngineUnavailable,
  InvalidOption,
  NativeModuleMissing,
  PlatformNotSupported
} from "../../src/DiskStorageError.js"
import type { IoFile } from "../../src/IoEngine.js"
import { IoEngine } from "../../src/IoEngine.js"
import type { IoUringOptions } from "../../src/IoUring.js"
import * as IoUring from "../../src/IoUring.js"
import * as LinuxAio from "../../src/LinuxAio.js"
import * as NodeIo from "../../src/NodeIo.js"

export const page = AlignedBuffer.pageSize
export const mebibyte = 1024 * 1024

/** What the engines have in common. */
export type Limits = Pick<IoUringOptions, "depth" | "maxBytesInFlight" | "maxBytesPerSubmission" | "stallTimeout">

export interface Engine {
  readonly name: "io_uring" | "aio" | "node:fs"
  readonly layer: (
    limits?: Limits
  ) => Layer.Layer<IoEngine, EngineUnavailable | PlatformNotSupported | NativeModuleMissing | InvalidOption>
}

export const engines: ReadonlyArray<Engine> = [
  { name: "io_uring", layer: IoUring.layer },
  { name: "aio", layer: LinuxAio.layer },
  { name: "node:fs", layer: NodeIo.layer }
]

const refusals = new Map(
  await Promise.all(engines.map(async ({ layer, name }) => {
    const built = await Effect.runPromise(Effect.either(Effect.scoped(Layer.build(layer()))))
    return [name, Either.isLeft(built) ? built.left.message : undefined] as const
  }))
)

/** Why an engine cannot be tested here. */
export const whyNotEngine = (name: Engine["name"]): string | undefined => refusals.get(name)

/** One suite for each engine; one that the kernel refuses is a skipped test whose name says why, a failing one when it must not be. */
export const describeEngines = (name: string, body: (engine: Engine) => void): void => {
  for (const engine of engines) {
    describe(`${name}: ${engine.name}`, () => {
      const reason = whyNotEngine(engine.name)
      if (reason === undefined) body(engine)
      else if (process.env["EDS_REQUIRE_REAL"] === "1") it("works here", () => assert.fail(reason))
      else it.skip(`not here: ${reason}`, () => {})
    })
  }
}

export const temporaryDirectory: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "eds-engines-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

/** A descriptor of a file of `size` bytes, closed with the scope. */
export const descriptor = (
  path: string,
  size: number,
  flags: number = constants.O_RDWR | constants.O_CREAT
): Effect.Effect<number, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const fd = openSync(path, flags, 0o600)
      if ((flags & 3) !== constants.O_RDONLY) ftruncateSync(fd, size)
      return fd
    }),
    (fd) => Effect.sync(() => closeSync(fd))
  )

/** A file without a name in the temporary directory, that the engine takes for one with O_DIRECT: else AIO hands it on. */
export const scratchFile = (
  size: number,
  alignment = page
): Effect.Effect<IoFile & { readonly path: string }, never, IoEngine | Scope.Scope> =>
  Effect.gen(function*() {
    const engine = yield* IoEngine
    const path = join(yield* temporaryDirectory, "file")
    const fd = yield* descriptor(path, size)
    return yield* engine.file(fd, { path, direct: true, alignment })
  })

/** Words that tell which page of which file they belong to, and which write they are of. */
export const fill = (bytes: Uint8Array, seed: number, offset = 0): void => {
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 2)
  const base = Math.imul(seed + 1, 0x9e37_79b1)
  for (let index = 0; index < words.length; index++) {
    words[index] = Math.imul((offset >> 2) + index + base | 0, 0x85eb_ca6b) ^ base
  }
}

/** A buffer full of what only `seed` writes. */
export const filled = (byteLength: number, seed: number, offset = 0) =>
  Effect.tap(AlignedBuffer.make(byteLength), ({ bytes }) => Effect.sync(() => fill(bytes, seed, offset)))

/** What `fill` would have made of memory of this length. */
export const expected = (byteLength: number, seed: number, offset = 0): Uint8Array => {
  const bytes = new Uint8Array(byteLength)
  fill(bytes, seed, offset)
  return bytes
}

/** Descriptors of this process and what they are, without the one of the listing. */
export const descriptors = (): ReadonlyArray<string> =>
  readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [`${fd} ${readlinkSync(`/proc/self/fd/${fd}`)}`]
    } catch {
      return []
    }
  })

/** The seed of a run: what fails tells it, and `EDS_SEED` brings it back. */
export const seed = Number(process.env["EDS_SEED"] ?? 20_261)

/** Whole numbers below `bound`, the same ones for the same seed. */
export const numbers = (from: number) => {
  let state = Math.imul(from + 1, 0x9e37_79b1) | 1
  return (bound: number): number => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % bound
  }
}
