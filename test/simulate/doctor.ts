/** Histories of the doctor, whose probe makes the calls that nobody else makes. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as DirectIo from "../../src/DirectIo.js"
import * as disks from "../doctor/fixtures/blockDevices.js"
import * as fixtures from "../doctor/fixtures/filesystems.js"
import { disturbed } from "./disturb.js"
import type { Plan, Workload } from "./plan.js"
import { mayFail } from "./plan.js"
import type { World } from "./world.js"

/** What procfs and sysfs say of the machine. */
export const tree = ({ profile }: Plan) => ({
  ...fixtures.machine,
  ...fixtures.mountinfo({ type: profile === "storageScale" ? "gpfs" : profile }),
  ...disks.btrfs("uuid", fixtures.sda1)
})

export const run = (world: World, { interruption }: Extract<Workload, { readonly _tag: "Doctor" }>) =>
  Effect.gen(function*() {
    const exit = yield* disturbed(world, DirectIo.inspect("/tmp"), interruption)
    const tag = world.outcome(exit, "inspect")
    world.note(`inspect: ${tag}`)
    world.holds(
      "reports",
      ["success", "interrupted", "DirectoryUnusable"].includes(tag) &&
        (tag !== "DirectoryUnusable" || mayFail(world.plan)),
      () => `inspect: ${tag}`
    )
    if (Exit.isFailure(exit)) return
    const { probeFailure, verdict } = exit.value
    world.holds(
      "reports",
      probeFailure === null || !verdict.io.startsWith("direct"),
      () => `direct, although ${JSON.stringify(probeFailure)}`
    )
  })
