/**
 * Linux native AIO from TypeScript. Layouts and numbers are those of `uapi/linux/aio_abi.h` and the system call tables.
 */
import * as Effect from "effect/Effect"
import { fdatasync } from "node:fs"
import { EngineUnavailable } from "../../DiskStorageError.js"
import type { NativeModuleMissing, PlatformNotSupported } from "../../DiskStorageError.js"
import { errnos, SyscallError } from "../../Syscalls.js"
import type { Region } from "../alignedBuffer.js"
import type { OpenDevice } from "../ioQueue.js"
import { errnoCode } from "../kernel.js"
import { addressOf, eagerSubmissions, high, low, memoryOf, native } from "./native.js"
import { descriptors } from "./threadExit.js"
import { wakeUp } from "./wakeUps.js"

const IOCB_CMD_PREAD = 0
const IOCB_CMD_PWRITE = 1
const IOCB_FLAG_RESFD = 1
const iocbWords = 16
const eventWords = 8
/** Completions fetched by one io_getevents. */
const maxEvents = 128

// uapi/linux/eventfd.h
const EFD_CLOEXEC = 0x8_0000
const EFD_NONBLOCK = 0x800

/** io_submit is asked again so often when it says EAGAIN, with a turn of the event loop in between. */
const maxSubmitRetries = 100

/** Syncs that libuv's pool, which others use too, has at once. */
const maxSyncs = 2

/** A context for `slots` operations. */
export const make = (
  slots: number
): Effect.Effect<OpenDevice, EngineUnavailable | PlatformNotSupported | NativeModuleMissing> =>
  Effect.gen(function*() {
    const { architecture, declare, koffi } = yield* native
    const setup = yield* declare("syscall", "long", ["long", "uint32_t", "void *"])
    const destroy = yield* declare("syscall", "long", ["long", "uint64_t"])
    const submit = yield* declare("syscall", "long", ["long", "uint64_t", "long", "size_t"])
    const getEvents = yield* declare("syscall", "long", ["long", "uint64_t", "long", "long", "size_t", "void *"])
    const { close, keep } = yield* descriptors(declare)
    const read = yield* declare("read", "int64_t", ["int", "void *", "size_t"])
    const eventfd = yield* declare("eventfd", "int", ["uint32_t", "int"])
    const outcome = (result: number) => (result < 0 ? -koffi.errno() : result)
    const { io_destroy, io_getevents, io_setup, io_submit } = architecture.aio

    // One block of memory: an iocb per slot, the list of pointers that io_submit takes, the events that io_getevents fills.
    const pointersAt = slots * iocbWords * 4
    const eventsAt = pointersAt + slots * 8
    const memory = yield* memoryOf("aio", eventsAt + maxEvents * eventWords * 4)
    const contextId = new BigUint64Array(1)
    const made = outcome(setup(io_setup, slots, new Uint8Array(contextId.buffer)))
    const eventFd = made < 0 ? made : keep(outcome(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)))
    const context = Number(contextId[0])
    if (eventFd < 0) {
      if (made >= 0) destroy(io_destroy, context)
      const errno = -eventFd
      return yield* new EngineUnavailable({
        engine: "aio",
        reason: errno === errnos.EAGAIN
          ? "other programs have used up /proc/sys/fs/aio-max-nr"
          : errno === errnos.EPERM || errno === errnos.EACCES
          ? "it is refused, by a seccomp filter"
          : "no context could be set up",
        cause: new SyscallError({ syscall: made < 0 ? "io_setup" : "eventfd", errno, code: errnoCode(errno) })
      })
    }

    return (complete, woken) => {
      const at = memory.bytes.byteOffset
      const iocbs = new Int32Array(memory.slab.buffer, at, slots * iocbWords)
      const pointers = new Uint32Array(memory.slab.buffer, at + pointersAt, slots * 2)
      const events = new Int32Array(memory.slab.buffer, at + eventsAt, maxEvents * eventWords)
      const address = addressOf(koffi, memory.slab) + at
      const regions = Array.from<Region | undefined>({ length: slots })
      const counter = new Uint8Array(8)
      /** Slots to be submitted. */
      const staged: Array<number> = []
      /** Slots and results of what did not go through AIO, in turn. */
      let answers: Array<number> = []
      /** Slots and descriptors to be synced, and how many are being. */
      const syncs: Array<readonly [number, number]> = []
      let syncing = 0
      let refusals = 0
      let closed = false

      const poll = wakeUp(koffi, eventFd, () => {
        read(eventFd, counter, 8)
        woken()
      })

      /** IOCB_CMD_FDSYNC would do no better than libuv's pool: the kernel gives it to a thread, too. */
      const syncNext = () => {
        const [slot = 0, fd] = syncing < maxSyncs ? syncs.shift() ?? [] : []
        if (fd === undefined) return
        syncing += 1
        fdatasync(fd, (error) => {
          syncing -= 1
          syncNext()
          answers.push(slot, error === null ? 0 : error.errno ?? -errnos.EIO)
          woken()
        })
      }

      const submitStaged = () => {
        while (staged.length > 0) {
          staged.forEach((slot, index) => {
            const iocb = address + slot * iocbWords * 4
            pointers[index * 2] = low(iocb)
            pointers[index * 2 + 1] = high(iocb)
          })
          const taken = outcome(submit(io_submit, context, staged.length, address + pointersAt))
          if (taken === -errnos.EINTR) continue
          if (taken > 0) {
            staged.splice(0, taken)
            refusals = 0
          } else if (taken === -errnos.EAGAIN && refusals < maxSubmitRetries) {
            refusals += 1
            return
          } else {
            // The first one is at fault; the kernel has looked at no other.
            const [slot = 0] = staged.splice(0, 1)
            refusals = 0
            answers.push(slot, taken === 0 ? -errnos.EAGAIN : taken)
          }
        }
      }

      const reap = () => {
        for (;;) {
          const count = outcome(getEvents(io_getevents, context, 0, maxEvents, address + eventsAt, null))
          for (let index = 0; index < count; index++) {
            const event = index * eventWords
            const slot = events[event] ?? 0
            regions[slot] = undefined
            answers.push(slot, events[event + 4] ?? 0)
          }
          if (count < maxEvents) return
        }
      }

      return {
        name: "aio",
        slots,
        stage: (slot, kind, file, region, from, length, offset) => {
          if (region === undefined) {
            syncs.push([slot, file.fd])
            return syncNext()
          }
          regions[slot] = region
          const memoryAddress = addressOf(koffi, region.slab) + region.start + from
          const iocb = slot * iocbWords
          iocbs[iocb] = slot
          iocbs[iocb + 1] = 0
          iocbs[iocb + 2] = 0
          iocbs[iocb + 3] = 0
          iocbs[iocb + 4] = kind === "read" ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE
          iocbs[iocb + 5] = file.fd
          iocbs[iocb + 6] = low(memoryAddress)
          iocbs[iocb + 7] = high(memoryAddress)
          iocbs[iocb + 8] = length
          iocbs[iocb + 9] = 0
          iocbs[iocb + 10] = low(offset)
          iocbs[iocb + 11] = high(offset)
          iocbs[iocb + 14] = IOCB_FLAG_RESFD
          iocbs[iocb + 15] = eventFd
          staged.push(slot)
          if (staged.length >= eagerSubmissions) submitStaged()
        },
        submit: () => {
          // A turn that was deferred comes after the end of the context.
          if (closed) return false
          if (staged.length > 0) submitStaged()
          reap()
          const taken = answers
          answers = []
          for (let index = 0; index < taken.length; index += 2) complete(taken[index] ?? 0, taken[index + 1] ?? 0)
          return refusals > 0
        },
        defer: (turn) => void setImmediate(turn),
        hold: (busy) => busy ? poll.ref() : poll.unref(),
        keepsFile: (kind) => kind !== "sync",
        attach: () => {},
        detach: () => {},
        close: Effect.async<void>((resume) => {
          closed = true
          poll.close()
          // It waits some 30 ms even for a context that is idle.
          const destroyed = () => {
            close(eventFd)
            resume(Effect.void)
          }
          try {
            destroy.async(io_destroy, context, destroyed)
          } catch {
            // koffi has no room for another call off-thread.
            destroy(io_destroy, context)
            destroyed()
          }
        })
      }
    }
  })
