/**
 * Exits while another thread is creating the file: `creating.ts <moment> <milliseconds>`, counted from when the call was handed to
 * the thread. `block` keeps the event loop busy until then, `timer` lets it turn.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as DiskStorageConfig from "../../../src/DiskStorageConfig.js"
import * as IoEngine from "../../../src/IoEngine.js"
import * as LinuxSyscalls from "../../../src/LinuxSyscalls.js"
import * as ProcessRuntime from "../../../src/ProcessRuntime.js"
import { Syscalls } from "../../../src/Syscalls.js"
import { choose } from "./edges.js"
import { reportNow } from "./report.js"

const millis = Number(process.argv[3])
let before = 0

const exit = () => {
  reportNow(`listeners ${process.listenerCount("exit") - before}`)
  process.exit(3)
}

const moments: { readonly [moment: string]: () => void } = {
  block: () => {
    const until = performance.now() + millis
    while (performance.now() < until);
    exit()
  },
  timer: () => setTimeout(exit, millis)
}

const moment = choose(moments, 0)

// The fibre goes on to make the call before the microtask runs.
const syscalls = Layer.effect(
  Syscalls,
  Effect.map(Syscalls, (syscalls) => ({
    ...syscalls,
    mkostemp: (prefix: string, flags: number) =>
      Effect.suspend(() => {
        before = process.listenerCount("exit")
        queueMicrotask(moment)
        return syscalls.mkostemp(prefix, flags)
      })
  }))
).pipe(Layer.provide(LinuxSyscalls.layer))

DiskStorageConfig.options().pipe(
  Effect.flatMap(DiskStorage.make),
  Effect.zipRight(Effect.never),
  Effect.scoped,
  Effect.provide(Layer.provideMerge(IoEngine.layerSyscalls, syscalls)),
  ProcessRuntime.runMain
)
