/** Suites over real filesystems, and what is looked at from outside: descriptors, directory entries, free space. */
import type { Vitest } from "@effect/vitest"
import { assert, describe, it, layer, vi } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { readdirSync, readlinkSync, statfsSync } from "node:fs"
import { join } from "node:path"
import type { IoEngine } from "../../src/IoEngine.js"
import * as Linux from "../../src/Linux.js"
import type { Syscalls } from "../../src/Syscalls.js"
import type { Kind, Mount } from "./mounts.js"
import { command, mounted, whyNot } from "./mounts.js"

/** Nothing here is measured; this only ends what hangs. */
const timeout = 120_000
vi.setConfig({ testTimeout: timeout, hookTimeout: timeout })

/** The filesystem of a suite. */
export class Mounted extends Context.Tag("Mounted")<Mounted, Mount>() {}

export type It = Vitest.MethodsNonLive<Mounted | Syscalls | IoEngine, true>

const silent = Logger.remove(Logger.defaultLogger)

/**
 * A suite on a freshly made filesystem that its tests share. Where that cannot be made the suite is one skipped test whose name
 * says why, and a failing one when `EDS_REQUIRE_REAL` is 1.
 */
export const describeReal = (
  kind: Kind,
  options: { readonly name?: string; readonly tools?: ReadonlyArray<string> },
  body: (it: It) => void
): void => {
  const name = options.name === undefined ? kind : `${kind}: ${options.name}`
  const reason = whyNot(kind, options.tools)
  if (reason === undefined) {
    const services = Layer.mergeAll(Layer.scoped(Mounted, mounted(kind)), Linux.layer, silent)
    layer(services, { excludeTestServices: true, timeout })(name, body)
  } else if (process.env["EDS_REQUIRE_REAL"] === "1") {
    describe(name, () => {
      it("can be made here", () => assert.fail(reason))
    })
  } else {
    describe(name, () => {
      it.skip(`not here: ${reason}`, () => {})
    })
  }
}

let made = 0

/** A path on the suite's filesystem where nothing is yet. */
export const freshPath: Effect.Effect<string, never, Mounted> = Effect.map(
  Mounted,
  ({ directory }) => join(directory, `cache-${made += 1}`)
)

/** What this process (or another) holds open below a directory. */
export const openBelow = (directory: string, pid: number | "self" = "self"): Array<string> =>
  readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/${pid}/fd/${fd}`)
      return target.startsWith(`${directory}/`) ? [target] : []
    } catch {
      // The descriptor of this very listing.
      return []
    }
  })

export const freeBytes = (directory: string): number => {
  const { bfree, bsize } = statfsSync(directory)
  return bfree * bsize
}

/** Free space once everything that was begun is on the disk. */
export const settledFreeBytes = (directory: string): Effect.Effect<number> =>
  Effect.map(command("sync", "-f", directory), () => freeBytes(directory))

/** What metadata may keep: the blocks of a new directory, nodes of a tree. Less than any file here. */
const metadataBytes = 256 * 1024

/** Filesystems give space back behind the scenes; this waits for it, within a bound. */
export const assertGivenBack = (directory: string, before: number): Effect.Effect<void> =>
  Effect.gen(function*() {
    let free = freeBytes(directory)
    for (let round = 0; round < 1000 && free < before - metadataBytes; round++) {
      yield* Effect.sleep("100 millis")
      free = yield* settledFreeBytes(directory)
    }
    assert.isAtLeast(free, before - metadataBytes, "bytes free")
  })

/** No descriptor, no name, no space: nothing is left of what was made in `directory` since `before` bytes were free. */
export const assertNothingLeft = (directory: string, before: number): Effect.Effect<void> =>
  Effect.suspend(() => {
    assert.deepStrictEqual(openBelow(directory), [])
    assert.deepStrictEqual(readdirSync(directory), [])
    return assertGivenBack(directory, before)
  })

/** Bytes that differ from page to page and from seed to seed, and are never all zero. */
export const pattern = (length: number, seed: number): Uint8Array => {
  const bytes = new Uint8Array(length)
  let state = Math.imul(seed + 1, 0x9e37_79b1) | 1
  for (let index = 0; index < length; index++) {
    state = Math.imul(state, 0x0019_660d) + 0x3c6e_f35f | 0
    bytes[index] = state >>> 24
  }
  return bytes
}

/** Compares long ranges without printing them. */
export const assertBytes = (actual: Uint8Array, expected: Uint8Array, what: string): void => {
  assert.strictEqual(actual.byteLength, expected.byteLength, what)
  if (Buffer.compare(actual, expected) === 0) return
  const first = actual.findIndex((byte, index) => byte !== expected[index])
  assert.fail(`${what}: differs from byte ${first} on`)
}
