/** Texts that would reach the kernel, or a digest, as another text: NUL ends one in C, and a lone surrogate has no form in UTF-8. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as BlockStore from "../../src/BlockStore.js"
import * as DevicePath from "../../src/DevicePath.js"
import * as DirectIo from "../../src/DirectIo.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import * as IoEngine from "../../src/IoEngine.js"
import * as LinuxSyscalls from "../../src/LinuxSyscalls.js"
import { errnos, Syscalls } from "../../src/Syscalls.js"
import { layer } from "../support/simulation.js"

const unfaithful = [["a NUL", "a\0b"], ["a lone surrogate", "a\ud800b"], ["half a pair at the end", "a\udc00"]] as const

describe("options, simulated", () => {
  for (const [what, text] of unfaithful) {
    it.effect(`refuse ${what} in directory, keepAt and requireMount, and the directory of DevicePath`, () =>
      Effect.gen(function*() {
        const failure = <A, E extends { readonly _tag: string; readonly message?: string }, R>(
          make: Effect.Effect<A, E, R>
        ) => Effect.map(Effect.flip(make), (error) => `${error._tag}: ${error.message}`)
        const path = `/tmp/${text}`
        const tries = [
          ["directory", yield* failure(Effect.scoped(DiskStorage.make({ size: 4096, directory: path })))],
          ["keepAt", yield* failure(Effect.scoped(DiskStorage.make({ size: 4096, keepAt: path })))],
          ["keepAt", yield* failure(Effect.scoped(DiskStorage.make({ size: 4096, keepAt: `${path}/kept` })))],
          ["requireMount", yield* failure(Effect.scoped(DiskStorage.make({ size: 4096, requireMount: path })))],
          ["directory", yield* failure(Effect.scoped(DevicePath.make({ directory: path })))]
        ] as const
        for (const [option, message] of tries) {
          assert.match(message, new RegExp(`^InvalidOption: The value of ${option} is `))
          assert.notMatch(message, /[\0\ud800-\udfff]/)
        }
      }).pipe(Effect.provide(layer()), Effect.provide(NodeFileSystem.layer)))
  }

  it.effect("refuse a lone surrogate in content, whose digest would be that of another text", () =>
    Effect.gen(function*() {
      for (const content of ["model \ud800", "\udfff"]) {
        const error = yield* Effect.flip(Effect.scoped(Effect.gen(function*() {
          const storage = yield* DiskStorage.make({ size: 1_000_000 })
          return yield* BlockStore.make([storage], { blockBytes: 4096, content })
        })))
        assert.strictEqual(error._tag, "InvalidOption")
        assert.include(error.message, "The value of content is")
      }
      yield* Effect.scoped(Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size: 1_000_000 })
        yield* BlockStore.make([storage], { blockBytes: 4096, content: "model 🦙" })
      }))
    }).pipe(Effect.provide(layer())))
})

describe("the real kernel", { timeout: 120_000 }, () => {
  const Kernel = Layer.mergeAll(
    Layer.provideMerge(IoEngine.layerSyscalls, LinuxSyscalls.layer),
    NodeFileSystem.layer
  )
  const scratch = Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-disk-storage-faithful-"))),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  )

  it.scopedLive("finds nothing under such a name, and makes nothing", () =>
    Effect.gen(function*() {
      const directory = yield* scratch
      const syscalls = yield* Syscalls
      for (const [, text] of unfaithful) {
        const path = join(directory, text)
        const calls = [
          syscalls.mkdir(path, 0o700),
          syscalls.mkostemp(path, syscalls.flags.O_CLOEXEC),
          syscalls.open(path, syscalls.flags.O_CLOEXEC),
          syscalls.unlink(path),
          syscalls.rename(path, directory),
          syscalls.rename(directory, path),
          syscalls.readdir(path),
          syscalls.readlink(path)
        ]
        for (const call of calls) {
          const { errno } = yield* Effect.flip(Effect.asVoid(call))
          assert.strictEqual(errno, errnos.ENOENT)
        }
        assert.strictEqual((yield* Effect.flip(syscalls.dlopen(`libc.so.6${text}`))).errno, errnos.ELIBACC)
        assert.strictEqual((yield* Effect.flip(DiskStorage.sweep(path)))._tag, "SweepFailed")
        assert.strictEqual((yield* Effect.flip(DirectIo.inspect(path)))._tag, "DirectoryUnusable")
        assert.strictEqual((yield* Effect.flip(DirectIo.extents(path)))._tag, "ExtentsUnavailable")
      }
      assert.deepStrictEqual(readdirSync(directory), [])
    }).pipe(Effect.provide(Kernel)))
})
