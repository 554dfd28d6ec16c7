import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { readMounts } from "../../src/internal/directIo/mounts.js"
import { layer } from "./fileTree.js"
import * as fixtures from "./fixtures/mounts.js"

const mounts = (text: string) => Effect.provide(readMounts, layer({ "/proc/self/mountinfo": text }))

describe("mounts", () => {
  it.effect("are read with their ids, numbers and options", () =>
    Effect.gen(function*() {
      const [proc, root, tools] = yield* mounts(fixtures.recorded)
      assert.strictEqual(proc?.type, "proc")
      assert.deepStrictEqual(root, {
        id: 27,
        device: { major: 254, minor: 0 },
        root: "/",
        mountPoint: "/",
        type: "ext4",
        source: "/dev/vda",
        options: ["rw", "relatime"],
        superOptions: ["rw", "discard", "resv_strict", "resuid=65534", "resgid=65534"]
      })
      assert.strictEqual(tools?.id, 28)
      assert.deepStrictEqual(tools?.options, ["ro", "nosuid", "nodev", "relatime"])
    }))

  it.effect("may have any number of optional fields", () =>
    Effect.gen(function*() {
      const [only, ...rest] = yield* mounts(fixtures.manual)
      assert.deepStrictEqual(rest, [])
      assert.deepStrictEqual(only, {
        id: 36,
        device: { major: 98, minor: 0 },
        root: "/mnt1",
        mountPoint: "/mnt2",
        type: "ext3",
        source: "/dev/root",
        options: ["rw", "noatime"],
        superOptions: ["rw", "errors=continue"]
      })
    }))

  it.effect("have paths with any character, and options with commas", () =>
    Effect.gen(function*() {
      const [only] = yield* mounts(fixtures.escaped)
      assert.deepStrictEqual(only, {
        id: 40,
        device: { major: 0, minor: 40 },
        root: "/a b",
        mountPoint: "/mnt/x\ty\nz\\",
        type: "overlay",
        source: "-",
        options: ["rw"],
        superOptions: [
          "rw",
          "context=\"system_u:object_r:t:s0:c1,c2\"",
          "lowerdir=/l o",
          "upperdir=/u,p",
          "workdir=/w"
        ]
      })
    }))

  it.effect("are left out where a line cannot be understood", () =>
    Effect.gen(function*() {
      const found = yield* mounts(fixtures.odd)
      assert.deepStrictEqual(found.map(({ id, mountPoint, source, type }) => ({ id, mountPoint, source, type })), [
        { id: 50, mountPoint: "/empty", source: "", type: "tmpfs" },
        { id: 54, mountPoint: "/last", source: "/dev/sda1", type: "xfs" }
      ])
    }))

  it.effect("say why they cannot be read", () =>
    Effect.gen(function*() {
      const refused = yield* Effect.flip(
        Effect.provide(readMounts, layer({ "/proc/self/mountinfo": { refused: "PermissionDenied" } }))
      )
      assert.strictEqual(refused.what, "/proc/self/mountinfo")
      assert.include(refused.reason, "PermissionDenied")
      const missing = yield* Effect.flip(Effect.provide(readMounts, layer({})))
      assert.include(missing.reason, "NotFound")
    }))
})
