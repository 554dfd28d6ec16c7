/**
 * The files that this process has created and not yet unlinked, and the one `process.on("exit")` listener that unlinks them
 * when no finalizer runs any more (an uncaught exception, `process.exit`, a second signal). The listener exists while there is
 * a file for it.
 */
import { constVoid } from "effect/Function"
import { lstatSync, unlinkSync } from "node:fs"
import type { Statx } from "../Syscalls.js"

/** How long an exit waits for a file whose creation is still under way on another thread. */
const creationWaitMillis = 1000

/** What tells a file from another one that has got its name. */
export type Identity = Pick<Statx, "deviceMajor" | "deviceMinor" | "inode">

interface Entry {
  /** What else there is to do when the name is gone. */
  readonly forgotten: () => void
  /** Undefined until it is known: the name is random. */
  readonly identity: Identity | undefined
}

/** By their names, which may lead through the descriptor of a directory. */
const linked = new Map<string, Entry>()
/** Templates that a thread is filling in: bytes of a path, ending in NUL. */
const creating = new Set<Uint8Array>()

const listen = () => {
  if (linked.size + creating.size === 0) process.removeListener("exit", unlinkAll)
  else if (!process.listeners("exit").includes(unlinkAll)) process.on("exit", unlinkAll)
}

/** As `makedev` has it. */
const deviceOf = ({ deviceMajor, deviceMinor }: Identity): bigint => {
  const [major, minor] = [BigInt(deviceMajor), BigInt(deviceMinor)]
  return ((major & 0xffff_f000n) << 32n) | ((major & 0xfffn) << 8n) | ((minor & 0xffff_ff00n) << 12n) | (minor & 0xffn)
}

const isNameOf = (path: string, identity: Identity): boolean => {
  const { dev, ino } = lstatSync(path, { bigint: true })
  return ino === identity.inode && dev === deviceOf(identity)
}

const unlinked = (path: string, identity?: Identity): boolean => {
  try {
    if (identity !== undefined && !isNameOf(path, identity)) return false
    unlinkSync(path)
    return true
  } catch {
    // Gone already, or beyond help: the process is ending and there is nobody left to tell.
    return false
  }
}

/** What mkostemp replaces by a name, the first thing that it does. */
const placeholder = "XXXXXX"

/**
 * Takes back a creation that no thread has begun, as when all of them are busy: mkostemp refuses an empty template. The thread that
 * begins right now finds no path to create either, or has read it before and then left its name in the template.
 */
const takenBack = (template: Uint8Array, path: string): boolean => {
  if (!path.endsWith(placeholder)) return false
  template[0] = 0
  return templatePath(template).endsWith(placeholder)
}

/** As it stays when the working directory changes; `undefined` when that has been removed. Not normalised: ".." is not what it is by text. */
export const absolute = (path: string): string | undefined => {
  try {
    return path.startsWith("/") ? path : `${process.cwd()}/${path}`
  } catch {
    return undefined
  }
}

export const templatePath = (template: Uint8Array): string => new TextDecoder().decode(template.subarray(0, -1))

/** Unlinks everything now, synchronously. */
export const unlinkAll = (): void => {
  for (const [path, { identity }] of linked) unlinked(path, identity)
  linked.clear()
  // mkostemp writes the name into the template and then creates the file, on a thread that goes on while this one exits.
  const pause = new Int32Array(new SharedArrayBuffer(4))
  for (let waited = 0; creating.size > 0 && waited < creationWaitMillis; waited++) {
    for (const template of creating) {
      const path = `/${templatePath(template).slice(1)}`
      if (takenBack(template, path) || unlinked(path)) creating.delete(template)
    }
    if (creating.size > 0) Atomics.wait(pause, 0, 0, 1)
  }
  creating.clear()
}

/** Before mkostemp is called with `template`. */
export const begin = (template: Uint8Array): void => {
  creating.add(template)
  listen()
}

/** When it has answered: `created` is whether the file exists. */
export const end = (template: Uint8Array, created: boolean): void => {
  creating.delete(template)
  if (created) linked.set(templatePath(template), { forgotten: constVoid, identity: undefined })
  listen()
}

/** A file that there may be by this path from now on. */
export const add = (path: string, forgotten: () => void): void => {
  linked.set(path, { forgotten, identity: undefined })
  listen()
}

/** Which file has the name: what else may have it at the exit stays. Undefined while that is not known. */
export const identify = (path: string, identity: Identity | undefined): void => {
  const entry = linked.get(path)
  if (entry !== undefined) linked.set(path, { ...entry, identity })
}

/** The same file by another name, as when the descriptor that `path` leads through is closed. */
export const renamed = (path: string, to: string): void => {
  const entry = linked.get(path)
  if (entry === undefined) return
  linked.delete(path)
  linked.set(to, entry)
}

const baseOf = (path: string): string => path.slice(path.lastIndexOf("/") + 1)

/** Whether this process has the file that has this path. While it does not know which file it has, the random name decides. */
export const has = (path: string, { deviceMajor, deviceMinor, inode }: Identity): boolean =>
  [...linked].some(([name, { identity }]) =>
    identity === undefined
      ? baseOf(name) === baseOf(path)
      : identity.inode === inode && identity.deviceMajor === deviceMajor && identity.deviceMinor === deviceMinor
  )

/** When the name is gone. */
export const forget = (path: string): void => {
  linked.get(path)?.forgotten()
  linked.delete(path)
  listen()
}
