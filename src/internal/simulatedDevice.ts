/**
 * A device over the simulated kernel that answers in random order, late, short, with failures, or never; the same seed gives the same
 * answers. Bytes move when the answer comes, so that a buffer that is touched before that shows.
 */
import * as Effect from "effect/Effect"
import { PCGRandom } from "effect/Utils"
import { setImmediate } from "node:timers"
import type { ErrnoCode } from "../Syscalls.js"
import { errnos } from "../Syscalls.js"
import type { Region } from "./alignedBuffer.js"
import type { Kind, OpenDevice, OpenFile } from "./ioQueue.js"

/** The kernel's answer to one transfer at once, of which it moves at most `most` bytes: bytes, or −errno. */
export type Transfer = (kind: Kind, fd: number, bytes: Uint8Array, offset: number, most: number) => number

export interface Misbehaviour {
  readonly seed: number
  readonly short: number
  readonly fail: number
  readonly transient: number
  readonly never: number
}

interface Staged {
  readonly slot: number
  readonly kind: Kind
  readonly file: OpenFile
  readonly region: Region | undefined
  readonly from: number
  readonly length: number
  readonly offset: number
  readonly answer: "whole" | "short" | "never" | ErrnoCode
}

const transients = ["EINTR", "EAGAIN", "EBUSY"] as const

export const open = (transfer: Transfer, slots: number, options: Misbehaviour): OpenDevice => (complete, woken) => {
  const random = new PCGRandom(options.seed)
  const inFlight: Array<Staged> = []
  let closed = false
  let scheduled = false
  let due: Array<Staged> = []

  const decide = (): Staged["answer"] => {
    const number = random.number()
    let bound = options.never
    if (number < bound) return "never"
    bound += options.fail
    if (number < bound) return "EIO"
    bound += options.transient
    if (number < bound) return transients[random.integer(transients.length)] ?? "EINTR"
    bound += options.short
    return number < bound ? "short" : "whole"
  }

  const answerOf = ({ answer, file, from, kind, length, offset, region }: Staged): number => {
    if (answer !== "whole" && answer !== "short" && answer !== "never") return -errnos[answer]
    if (region === undefined) return transfer(kind, file.fd, new Uint8Array(0), 0, 0)
    const most = answer === "short" ? 1 + random.integer(length) : length
    return transfer(kind, file.fd, region.bytes.subarray(from, from + length), offset, most)
  }

  /** Some of what is in flight is answered in each turn of the event loop. */
  const schedule = () => {
    if (scheduled || closed || inFlight.every(({ answer }) => answer === "never")) return
    scheduled = true
    setImmediate(() => {
      scheduled = false
      const candidates = inFlight.filter(({ answer }) => answer !== "never")
      for (let count = random.integer(candidates.length + 1); count > 0; count--) {
        const [next] = candidates.splice(random.integer(candidates.length), 1)
        if (next === undefined) break
        inFlight.splice(inFlight.indexOf(next), 1)
        due.push(next)
      }
      schedule()
      woken()
    })
  }

  return {
    name: "simulated",
    slots,
    stage: (slot, kind, file, region, from, length, offset) => {
      inFlight.push({ slot, kind, file, region, from, length, offset, answer: decide() })
      schedule()
    },
    submit: () => {
      const answered = due
      due = []
      for (const staged of answered) complete(staged.slot, answerOf(staged))
      return false
    },
    defer: (turn) => void setImmediate(turn),
    hold: () => {},
    keepsFile: () => true,
    attach: () => {},
    detach: () => {},
    close: Effect.sync(() => {
      closed = true
    })
  }
}
