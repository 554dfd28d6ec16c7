/** Node's own file operations as a device: libuv's pool does one blocking call for each piece. */
import * as Effect from "effect/Effect"
import { fdatasync, read, write } from "node:fs"
import { setImmediate } from "node:timers"
import { errnos } from "../Syscalls.js"
import type { OpenDevice } from "./ioQueue.js"

export const open = (slots: number): OpenDevice => (complete, woken) => {
  /** Slots and results that have come and were not taken up, in turn. */
  let answers: Array<number> = []

  const answered = (slot: number) => (error: NodeJS.ErrnoException | null, transferred?: number) => {
    answers.push(slot, error === null ? transferred ?? 0 : error.errno ?? -errnos.EIO)
    woken()
  }
  const callbacks = Array.from({ length: slots }, (_, slot) => answered(slot))

  return {
    name: "node:fs",
    slots,
    stage: (slot, kind, file, region, from, length, offset) => {
      const callback = callbacks[slot]
      if (callback === undefined) return
      if (region === undefined) fdatasync(file.fd, callback)
      else if (kind === "read") read(file.fd, region.bytes, from, length, offset, callback)
      else write(file.fd, region.bytes, from, length, offset, callback)
    },
    submit: () => {
      const taken = answers
      answers = []
      for (let index = 0; index < taken.length; index += 2) complete(taken[index] ?? 0, taken[index + 1] ?? 0)
      return false
    },
    defer: (turn) => void setImmediate(turn),
    // A pending call keeps the process alive by itself.
    hold: () => {},
    // libuv has the number alone, until a thread has come to it.
    keepsFile: () => false,
    attach: () => {},
    detach: () => {},
    close: Effect.void
  }
}
