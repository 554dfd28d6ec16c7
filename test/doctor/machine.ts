/** A machine that is not this one: the simulated kernel, some of its calls answered otherwise, and what procfs and sysfs say. */
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as IoEngine from "../../src/IoEngine.js"
import * as SimulatedSyscalls from "../../src/SimulatedSyscalls.js"
import { Syscalls } from "../../src/Syscalls.js"
import type { Statfs, Statx } from "../../src/Syscalls.js"
import type { Tree } from "./fileTree.js"
import * as fileTree from "./fileTree.js"

/** Some calls instead of the kernel's own. */
export type Change = (kernel: Syscalls) => Partial<Syscalls>

export interface Machine extends SimulatedSyscalls.SimulatedOptions {
  readonly tree?: Tree | undefined
  /** Files whose text is another one each time, by their path. */
  readonly texts?: { readonly [path: string]: () => string } | undefined
  readonly change?: Change | undefined
}

const files = ({ texts = {}, tree = {} }: Machine) =>
  Layer.effect(
    FileSystem.FileSystem,
    Effect.map(FileSystem.FileSystem, (files): FileSystem.FileSystem => ({
      ...files,
      readFileString: (path, encoding) => {
        const text = texts[path]
        return text === undefined ? files.readFileString(path, encoding) : Effect.sync(text)
      }
    }))
  ).pipe(Layer.provide(fileTree.layer(tree)))

export const layer = (machine: Machine) => {
  const { change = () => ({}) } = machine
  const kernel = Layer.effect(
    Syscalls,
    Effect.map(Syscalls, (kernel): Syscalls => ({ ...kernel, ...change(kernel) }))
  ).pipe(Layer.provideMerge(SimulatedSyscalls.layer(machine)))
  return Layer.merge(Layer.provideMerge(IoEngine.layerSyscalls, kernel), files(machine))
}

/** What statx and statfs answer otherwise. */
export const answers = (statx: Partial<Statx>, statfs: Partial<Statfs> = {}): Change => (kernel) => ({
  statx: (fd, path) => Effect.map(kernel.statx(fd, path), (own) => ({ ...own, ...statx })),
  fstatfs: (fd) => Effect.map(kernel.fstatfs(fd), (own) => ({ ...own, ...statfs }))
})

/** Both changes, the second above the first. */
export const changes = (first: Change, second: Change): Change => (kernel) => {
  const calls = first(kernel)
  return { ...calls, ...second({ ...kernel, ...calls }) }
}
