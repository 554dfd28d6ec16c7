/**
 * The files that this process has created and not yet unlinked, and the one `process.on("exit")` listener that unlinks them
 * when no finalizer runs any more (an uncaught exception, `process.exit`, a second signal). The listener exists while there is
 * a file for it.
 */
import { constVoid } from "effect/Function"
import { unlinkSync } from "node:fs"

/** How long an exit waits for a file whose creation is still under way on another thread. */
const creationWaitMillis = 1000

/** Each with what else there is to do when its name is gone. */
const linked = new Map<string, () => void>()
/** Templates that a thread is filling in: bytes of a path, ending in NUL. */
const creating = new Set<Uint8Array>()

const listen = () => {
  if (linked.size + creating.size === 0) process.removeListener("exit", unlinkAll)
  else if (!process.listeners("exit").includes(unlinkAll)) process.on("exit", unlinkAll)
}

const unlinked = (path: string): boolean => {
  try {
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
  for (const path of linked.keys()) unlinked(path)
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
  if (created) linked.set(templatePath(template), constVoid)
  listen()
}

/** A file that there may be by this path from now on. */
export const add = (path: string, forgotten: () => void): void => {
  linked.set(path, forgotten)
  listen()
}

/** Whether this process has a file by this path. */
export const has = (path: string): boolean => linked.has(path)

/** When the name is gone. */
export const forget = (path: string): void => {
  linked.get(path)?.()
  linked.delete(path)
  listen()
}
