/** The maps of real files, of storages and by path, against what was written and what `filefrag` says. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { closeSync, fsyncSync, mkdirSync, openSync, statSync, truncateSync, writeFileSync, writeSync } from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../../src/AlignedBuffer.js"
import * as DirectIo from "../../src/DirectIo.js"
import * as DiskStorage from "../../src/DiskStorage.js"
import type { Kind } from "./mounts.js"
import { command } from "./mounts.js"
import { describeReal, freshPath, Mounted, openBelow, pattern } from "./real.js"

const kibibyte = 1024
const mebibyte = 1024 * kibibyte
const size = 8 * mebibyte
const blockBytes = 64 * kibibyte

type Piece = readonly [kind: DiskStorage.ExtentKind, offset: number, length: number]

const pieces = (map: ReadonlyArray<DiskStorage.Extent>): ReadonlyArray<Piece> =>
  map.map(({ kind, length, offset }) => [kind, offset, length])

const kindsOf = (map: ReadonlyArray<DiskStorage.Extent>) => [...new Set(map.map(({ kind }) => kind))]

/** Each byte once, in order. */
const assertWhole = (map: ReadonlyArray<DiskStorage.Extent>, length: number) => {
  const end = map.reduce((at, extent) => {
    assert.strictEqual(extent.offset, at)
    assert.isAbove(extent.length, 0)
    return at + extent.length
  }, 0)
  assert.strictEqual(end, length)
}

/** A file with `write` in it, which has reached the disk. */
const madeFile = (write: (fd: number) => void) =>
  Effect.map(freshPath, (path) => {
    const fd = openSync(path, "w")
    write(fd)
    fsyncSync(fd)
    closeSync(fd)
    return path
  })

/** A block in the middle, so far from its neighbours that no filesystem zeroes those for it. */
const offset = 2 * mebibyte
const around = (kind: DiskStorage.ExtentKind, observed = 0): ReadonlyArray<Piece> => [
  ...(observed > 0 ? [["written", 0, observed] as const] : []),
  [kind, observed, offset - observed],
  ["written", offset, blockBytes],
  [kind, offset + blockBytes, size - offset - blockBytes]
]

const storages: ReadonlyArray<readonly [Kind, DiskStorage.ExtentKind]> = [
  ["ext4 on a direct loop", "unwritten"],
  ["xfs on a direct loop", "unwritten"],
  ["overlay on a direct loop", "unwritten"],
  ["ext2 on a direct loop", "hole"]
]

for (const [kind, fresh] of storages) {
  describeReal(kind, { name: "extents of a storage" }, (it) => {
    it.scoped(`${fresh} at first, written where a block was written`, () =>
      Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size, directory: yield* freshPath })
        // Where statx does not settle the verdict, one page was written to observe where it goes.
        const observed = storage.directIo.reason.startsWith("observed") ? AlignedBuffer.pageSize : 0
        assert.deepStrictEqual(pieces(yield* storage.extents), [
          ...(observed > 0 ? [["written", 0, observed] as const] : []),
          [fresh, observed, size - observed]
        ])
        const block = yield* AlignedBuffer.make(blockBytes)
        block.bytes.fill(1)
        yield* storage.write(offset, block)
        yield* storage.sync
        const map = yield* storage.extents
        assert.deepStrictEqual(pieces(map), around(fresh, observed))
        assert.deepStrictEqual(yield* DirectIo.extents(storage), map)
        assert.deepStrictEqual(yield* DirectIo.extents(storage.path), map)
      }))

    it.scoped("all written after a prewrite, whatever the size", () =>
      Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size: size + 1234, directory: yield* freshPath, prewrite: true })
        const map = yield* storage.extents
        assert.deepStrictEqual(kindsOf(map), ["written"])
        assertWhole(map, statSync(storage.path).size)
      }))

    it.scoped("closed with the storage", () =>
      Effect.gen(function*() {
        const storage = yield* DiskStorage.make({ size, directory: yield* freshPath })
        yield* storage.close
        assert.strictEqual((yield* Effect.flip(storage.extents))._tag, "StorageClosed")
      }))
  })
}

describeReal("ext4 on a direct loop", { name: "extents by path", tools: ["filefrag", "mkfifo"] }, (it) => {
  it.scoped("more of them than one answer of the kernel has", () =>
    Effect.gen(function*() {
      const blocks = 400
      const page = pattern(4096, 1)
      const path = yield* madeFile((fd) => {
        for (let index = 0; index < blocks; index++) writeSync(fd, page, 0, page.length, index * 8192)
      })
      const map = yield* DirectIo.extents(path)
      assert.deepStrictEqual(
        pieces(map),
        Array.from({ length: 2 * blocks - 1 }, (_, index) => [index % 2 === 0 ? "written" : "hole", index * 4096, 4096])
      )
      const lines = [...(yield* command("filefrag", "-v", path)).matchAll(/^ *\d+: *(\d+)\.\. *(\d+):/gm)]
      assert.deepStrictEqual(
        pieces(map.filter(({ kind }) => kind !== "hole")),
        lines.map(([, first, last]) => ["written", Number(first) * 4096, (Number(last) - Number(first) + 1) * 4096])
      )
    }))

  it.scoped("delayed until the file is written out", () =>
    Effect.gen(function*() {
      const path = yield* freshPath
      writeFileSync(path, pattern(mebibyte, 1))
      assert.deepStrictEqual(pieces(yield* DirectIo.extents(path)), [["delayed", 0, mebibyte]])
      assert.deepStrictEqual(
        pieces(yield* DirectIo.extents(path)),
        [["delayed", 0, mebibyte]],
        "asking changes nothing"
      )
      yield* command("sync", path)
      assert.deepStrictEqual(pieces(yield* DirectIo.extents(path)), [["written", 0, mebibyte]])
    }))

  it.scoped("to the end of a file that ends within a block, and none of an empty one", () =>
    Effect.gen(function*() {
      const path = yield* madeFile((fd) => writeSync(fd, pattern(5000, 1)))
      assert.deepStrictEqual(pieces(yield* DirectIo.extents(path)), [["written", 0, 5000]])
      truncateSync(path, 3 * mebibyte + 1)
      assertWhole(yield* DirectIo.extents(path), 3 * mebibyte + 1)
      truncateSync(path, 0)
      assert.deepStrictEqual(yield* DirectIo.extents(path), [])
    }))

  it.scoped("of what has none: a typed failure at once", () =>
    Effect.gen(function*() {
      const { directory } = yield* Mounted
      const fifo = yield* freshPath
      yield* command("mkfifo", fifo)
      for (const path of [fifo, "/dev/null", "/proc/self/maps", join(directory, "missing"), ""]) {
        const failure = yield* Effect.flip(DirectIo.extents(path))
        assert.deepInclude(failure, { _tag: "ExtentsUnavailable", path })
      }
      assert.deepStrictEqual(openBelow(directory), [])
    }))
})

describeReal("xfs on a direct loop", { name: "extents by path", tools: ["cp"] }, (it) => {
  it.scoped("shared with a reflinked copy; a storage beside it shares nothing", () =>
    Effect.gen(function*() {
      const path = yield* madeFile((fd) => writeSync(fd, pattern(mebibyte, 1)))
      assert.deepStrictEqual(pieces(yield* DirectIo.extents(path)), [["written", 0, mebibyte]])
      const directory = yield* freshPath
      mkdirSync(directory)
      const copy = join(directory, "copy")
      yield* command("cp", "--reflink=always", path, copy)
      for (const one of [path, copy]) {
        assert.deepStrictEqual(pieces(yield* DirectIo.extents(one)), [["shared", 0, mebibyte]])
      }
      const storage = yield* DiskStorage.make({ size, directory, prewrite: true })
      assert.deepStrictEqual(kindsOf(yield* storage.extents), ["written"])
    }))
})

describeReal("btrfs with compression", { name: "extents by path" }, (it) => {
  it.scoped("encoded where the data is compressed, inline where it is small", () =>
    Effect.gen(function*() {
      const compressed = yield* madeFile((fd) => writeSync(fd, new Uint8Array(mebibyte).fill(1)))
      assert.deepStrictEqual(kindsOf(yield* DirectIo.extents(compressed)), ["encoded"])
      const small = yield* madeFile((fd) => writeSync(fd, pattern(64, 1)))
      assert.deepStrictEqual(kindsOf(yield* DirectIo.extents(small)), ["inline"])
    }))
})

for (const kind of ["tmpfs", "ramfs"] as const) {
  describeReal(kind, { name: "extents" }, (it) => {
    it.scoped("are not known, by path or of a storage", () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const storage = yield* DiskStorage.make({ size: mebibyte, directory, directIo: "preferred" })
        const asked = [Effect.flip(storage.extents), Effect.flip(DirectIo.extents(storage.path))]
        for (const failing of asked) {
          const failure = yield* failing
          if (failure._tag !== "ExtentsUnavailable") return assert.fail(failure.message)
          assert.strictEqual(failure.path, storage.path)
        }
      }))
  })
}
