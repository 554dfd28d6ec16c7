/**
 * io_uring from TypeScript: the submission and completion rings are mapped memory, io_uring_enter is one call through koffi.
 * Layouts and numbers are those of `uapi/linux/io_uring.h`.
 */
import * as Effect from "effect/Effect"
import * as Runtime from "effect/Runtime"
import { isMainThread } from "node:worker_threads"
import { EngineUnavailable } from "../../DiskStorageError.js"
import type { NativeModuleMissing, PlatformNotSupported } from "../../DiskStorageError.js"
import { errnos, SyscallError } from "../../Syscalls.js"
import type { Region } from "../alignedBuffer.js"
import type { Device, OpenDevice } from "../ioQueue.js"
import { errnoCode } from "../kernel.js"
import type { Slab } from "../slab.js"
import { addressOf, eagerSubmissions, high, low, memoryOf, native } from "./native.js"
import { ownRings } from "./ownRings.js"
import { descriptors } from "./threadExit.js"
import { wakeUp } from "./wakeUps.js"

const IO_URING_SETUP = 425
const IO_URING_ENTER = 426
const IO_URING_REGISTER = 427

const SETUP_CQSIZE = 1 << 3
const SETUP_SUBMIT_ALL = 1 << 7
const SETUP_COOP_TASKRUN = 1 << 8
const SETUP_TASKRUN_FLAG = 1 << 9
const SETUP_SINGLE_ISSUER = 1 << 12
const SETUP_DEFER_TASKRUN = 1 << 13
const FEAT_SINGLE_MMAP = 1 << 0
const FEAT_NODROP = 1 << 1
const SQ_CQ_OVERFLOW = 1 << 1
const SQ_TASKRUN = 1 << 2
const ENTER_GETEVENTS = 1 << 0
const REGISTER_FILES = 2
const REGISTER_EVENTFD = 4
const REGISTER_FILES_UPDATE = 6
const REGISTER_BUFFERS2 = 15
const REGISTER_BUFFERS_UPDATE = 16
const RSRC_REGISTER_SPARSE = 1 << 0
const OFF_SQES = 0x1000_0000
const IOSQE_FIXED_FILE = 1 << 0
const OP_FSYNC = 3
const OP_READ_FIXED = 4
const OP_WRITE_FIXED = 5
const OP_READ = 22
const OP_WRITE = 23
const FSYNC_DATASYNC = 1

// uapi/asm-generic/mman-common.h
const PROT_READ_WRITE = 3
const MAP_SHARED_POPULATE = 0x8001
/** Linux 5.14; before, memory stays unregistered. */
const MADV_POPULATE_WRITE = 23

// uapi/linux/eventfd.h
const EFD_CLOEXEC = 0x8_0000
const EFD_NONBLOCK = 0x800

/**
 * What newer kernels have, first; each kernel takes one of them (6.1, 5.19, 5.6).
 *
 * When a worker is terminated the ring stays mapped until the process ends, and with it what the ring holds: registered files and
 * buffers, and requests whose completions are deferred, with their files, whose space would not come back. A worker's ring holds none.
 */
const setups = [
  SETUP_CQSIZE | SETUP_SUBMIT_ALL | SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN,
  SETUP_CQSIZE | SETUP_SUBMIT_ALL | SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG,
  SETUP_CQSIZE
]

/** Slots for registered memory: pools, of which a program has few. */
const maxBuffers = 64
/** Registering pins memory, which RLIMIT_MEMLOCK bounds. */
const maxRegisteredBytes = 64 * 1024 * 1024
/** What one call brings in before that, off-thread. */
const maxPopulatedBytes = 1024 * 1024
/** io_uring_enter is not asked again more often than this in one turn when it says that it is out of something. */
const maxEnterRetries = 100

/** Calls in one turn that ask for more completions; what is left then is asked for in the next one. */
const maxReapCalls = 4

export interface RingOptions {
  readonly entries: number
  readonly completionEntries: number
  readonly slots: number
  readonly files: number
  readonly registerBuffers: boolean
}

interface Registration {
  /** −1: not registered, yet or at all. */
  index: number
  forget: () => void
}

/** A ring that is set up, on which a queue opens its device. */
export const make = (
  options: RingOptions
): Effect.Effect<OpenDevice, EngineUnavailable | PlatformNotSupported | NativeModuleMissing> =>
  Effect.gen(function*() {
    const { declare, koffi } = yield* native
    const runtime = yield* Effect.runtime<never>()
    const setup = yield* declare("syscall", "long", ["long", "uint32_t", "void *"])
    const enter = yield* declare("syscall", "long", [
      "long",
      "int",
      "uint32_t",
      "uint32_t",
      "uint32_t",
      "size_t",
      "size_t"
    ])
    const register = yield* declare("syscall", "long", ["long", "int", "uint32_t", "void *", "uint32_t"])
    const mmap = yield* declare("mmap", "int64_t", ["size_t", "size_t", "int", "int", "int", "int64_t"])
    const madvise = yield* declare("madvise", "int", ["size_t", "size_t", "int"])
    const munmap = yield* declare("munmap", "int", ["size_t", "size_t"])
    const { close, keep } = yield* descriptors(declare)
    const read = yield* declare("read", "int64_t", ["int", "void *", "size_t"])
    const eventfd = yield* declare("eventfd", "int", ["uint32_t", "int"])
    const outcome = (result: number) => (result < 0 ? -koffi.errno() : result)
    const refused = (call: string, errno: number, reason: string) =>
      new EngineUnavailable({
        engine: "io_uring",
        reason,
        cause: new SyscallError({ syscall: call, errno, code: errnoCode(errno) })
      })

    // What registrations point at: memory that does not move and is not collected meanwhile.
    const scratch = yield* memoryOf("io_uring", 64)
    const params = new Uint32Array(30)
    let fd = -errnos.EINVAL
    let flags = 0
    for (flags of isMainThread ? setups : setups.slice(1)) {
      params.fill(0)
      params[2] = flags
      params[1] = options.completionEntries
      fd = keep(outcome(setup(IO_URING_SETUP, options.entries, new Uint8Array(params.buffer))))
      if (fd !== -errnos.EINVAL) break
    }
    if (fd < 0) {
      const reason = fd === -errnos.EPERM || fd === -errnos.EACCES
        ? "it is refused, by a container's seccomp filter or by /proc/sys/kernel/io_uring_disabled"
        : fd === -errnos.ENOSYS
        ? "the kernel has no io_uring"
        : "no ring could be set up"
      return yield* refused("io_uring_setup", -fd, reason)
    }
    const closeRing = () => {
      ownRings.delete(fd)
      close(fd)
    }
    ownRings.add(fd)
    const word = (index: number) => params[index] ?? 0
    const entries = word(0)
    // struct io_sqring_offsets at word 10: head, tail, ring_mask, ring_entries, flags, dropped, array.
    const [sqTail, sqFlags, sqArray] = [word(11) >> 2, word(14) >> 2, word(16) >> 2]
    // struct io_cqring_offsets at word 20: head, tail, ring_mask, ring_entries, overflow, cqes.
    const [cqHead, cqTail, cqes] = [word(20) >> 2, word(21) >> 2, word(25) >> 2]
    const ringBytes = Math.max(word(16) + entries * 4, word(25) + word(1) * 16)
    const sqeBytes = entries * 64
    const features = word(5)
    if ((features & FEAT_SINGLE_MMAP) === 0 || (features & FEAT_NODROP) === 0) {
      closeRing()
      return yield* new EngineUnavailable({
        engine: "io_uring",
        reason: "the kernel's io_uring is older than Linux 5.6"
      })
    }
    const mappings: Array<readonly [number, number]> = []
    const map = (length: number, offset: number) => {
      const address = mmap(0, length, PROT_READ_WRITE, MAP_SHARED_POPULATE, fd, offset)
      if (address === -1) return undefined
      mappings.push([address, length])
      return koffi.view(BigInt(address), length)
    }
    const unmap = () => {
      for (const [address, length] of mappings.splice(0)) munmap(address, length)
    }
    const ringMemory = map(ringBytes, 0)
    const sqeMemory = ringMemory === undefined ? undefined : map(sqeBytes, OFF_SQES)
    if (ringMemory === undefined || sqeMemory === undefined) {
      const errno = koffi.errno()
      unmap()
      closeRing()
      return yield* refused("mmap", errno, "the ring could not be mapped")
    }
    const ring = new Int32Array(ringMemory)
    const sqe = new Int32Array(sqeMemory)
    const sqMask = entries - 1
    const cqMask = word(1) - 1
    // Entry i of the submission ring is submission i: written once.
    for (let index = 0; index < entries; index++) ring[sqArray + index] = index

    // Polling the ring's own descriptor loses wake-ups with deferred task work (seen on Linux 6.18).
    const eventFd = keep(outcome(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)))
    const counter = new Uint8Array(8)
    const events = new Uint8Array(Int32Array.of(eventFd).buffer)
    const told = eventFd < 0 ? eventFd : outcome(register(IO_URING_REGISTER, fd, REGISTER_EVENTFD, events, 1))
    if (told < 0) {
      if (eventFd >= 0) close(eventFd)
      unmap()
      closeRing()
      return yield* refused("eventfd", -told, "completions cannot be waited for")
    }

    const registerFiles = new Int32Array(options.files).fill(-1)
    const hasFiles = isMainThread && options.files > 0 &&
      outcome(register(IO_URING_REGISTER, fd, REGISTER_FILES, new Uint8Array(registerFiles.buffer), options.files)) >= 0
    // struct io_uring_rsrc_register: nr, flags, resv2, data, tags.
    const sparse = Uint32Array.of(maxBuffers, RSRC_REGISTER_SPARSE, 0, 0, 0, 0, 0, 0)
    const hasBuffers = isMainThread && options.registerBuffers &&
      outcome(register(IO_URING_REGISTER, fd, REGISTER_BUFFERS2, new Uint8Array(sparse.buffer), 32)) >= 0

    return (complete, woken) => {
      const freeFiles = hasFiles ? Array.from(registerFiles.keys()).reverse() : []
      const freeBuffers = hasBuffers ? Array.from({ length: maxBuffers }, (_, index) => index).reverse() : []
      /** Registered memory, which must not be collected: where it is registered, or −1 where it could not be. */
      const registered = new Map<Slab, Registration>()
      /** The memory of what is in flight, by slot. */
      const regions = Array.from<Region | undefined>({ length: options.slots })
      const generations = new Int32Array(options.slots)
      let tail = Atomics.load(ring, sqTail)
      let staged = 0
      /** Slots for which the submission ring had no room. */
      const turnedAway: Array<number> = []
      let failures = 0
      let closed = false

      const argument = new Uint32Array(scratch.slab.buffer, scratch.bytes.byteOffset, 16)
      const argumentAddress = addressOf(koffi, scratch.slab) + scratch.bytes.byteOffset

      /** struct io_uring_rsrc_update2 (offset, resv, data, tags, nr, resv2) over one struct iovec behind it. */
      const updateBuffer = (index: number, address: number, length: number) => {
        const data = argumentAddress + 32
        argument.set([index, 0, low(data), high(data), 0, 0, 1, 0])
        argument.set([low(address), high(address), low(length), high(length)], 8)
        return outcome(register(IO_URING_REGISTER, fd, REGISTER_BUFFERS_UPDATE, scratch.bytes, 32))
      }

      /** struct io_uring_files_update (offset, resv, fds) over one descriptor behind it. */
      const updateFile = (index: number, file: number) => {
        const data = argumentAddress + 32
        argument.set([index, 0, low(data), high(data)])
        argument[8] = file
        return outcome(register(IO_URING_REGISTER, fd, REGISTER_FILES_UPDATE, scratch.bytes, 1))
      }

      let told = false
      const tellUnregistered = (call: string, errno: number) => {
        if (told) return
        told = true
        Runtime.runFork(runtime)(Effect.logDebug(
          `the memory of a pool could not be registered with io_uring (${call}: ${errnoCode(errno)}), and is used ` +
            "unregistered, a little slower: look at `ulimit -l`"
        ))
      }

      /**
       * Registers the memory of a pool when it is first used. Registering takes every page of it, which takes milliseconds for each MiB
       * of fresh memory: another thread does that first, and until then the memory is used unregistered.
       */
      const registerSlab = (slab: Slab): Registration => {
        const registration: Registration = { index: -1, forget: () => {} }
        const { byteLength } = slab.buffer
        const address = addressOf(koffi, slab)
        registered.set(slab, registration)
        const forget = slab.onRetire(() => {
          registered.delete(slab)
          if (registration.index === -1) return
          updateBuffer(registration.index, 0, 0)
          freeBuffers.push(registration.index)
          registration.index = -1
        })
        registration.forget = forget
        /** A part at a time: meanwhile other threads cannot map memory, the collector's among them. */
        const populate = (done: number) => {
          const length = Math.min(maxPopulatedBytes, byteLength - done)
          try {
            madvise.async(address + done, length, MADV_POPULATE_WRITE, (error: unknown, result: number) => {
              if (closed || registered.get(slab) !== registration) return
              if (error !== null || result < 0) tellUnregistered("madvise", koffi.errno())
              else if (done + length < byteLength) populate(done + length)
              else pin()
            })
          } catch {
            // koffi has no room for another call: this pool stays as it is.
          }
        }
        const pin = () => {
          const index = freeBuffers.pop()
          if (index === undefined) return
          const outcome = updateBuffer(index, address, byteLength)
          if (outcome >= 0) registration.index = index
          else {
            freeBuffers.push(index)
            tellUnregistered("io_uring_register", -outcome)
          }
        }
        if (byteLength <= maxRegisteredBytes && freeBuffers.length > 0) populate(0)
        return registration
      }

      /** Hands over what is staged, ahead of the flush, which deals with a kernel that takes nothing. */
      const handOver = () => {
        Atomics.store(ring, sqTail, tail)
        staged -= Math.max(0, enter(IO_URING_ENTER, fd, staged, 0, 0, 0, 0))
      }

      /** Hands over what is staged, or as much of it as the kernel takes now. */
      const enterRing = (flags: number): void => {
        Atomics.store(ring, sqTail, tail)
        for (let attempt = 0; attempt < maxEnterRetries; attempt++) {
          const taken = enter(IO_URING_ENTER, fd, staged, 0, flags, 0, 0)
          if (taken >= 0) {
            staged -= taken
            failures = 0
            return
          }
          const errno = koffi.errno()
          if (errno === errnos.EINTR) continue
          failures += 1
          // Out of memory for requests, or of room for completions: these are taken up below, and then there is more.
          const passing = errno === errnos.EAGAIN || errno === errnos.EBUSY
          return passing && failures < maxEnterRetries ? undefined : refuseStaged(errno)
        }
      }

      /** What the kernel does not take ends here, with the reason. */
      const refuseStaged = (errno: number) => {
        const slots = Array.from({ length: staged }, (_, index) => sqe[((tail - 1 - index) & sqMask) * 16 + 8] ?? 0)
        tail = tail - staged | 0
        staged = 0
        failures = 0
        Atomics.store(ring, sqTail, tail)
        for (const slot of slots) complete(slot, -errno)
      }

      const reap = (): void => {
        let head = Atomics.load(ring, cqHead)
        while (head !== Atomics.load(ring, cqTail)) {
          const at = cqes + (head & cqMask) * 4
          const slot = ring[at] ?? 0
          const generation = ring[at + 1]
          const result = ring[at + 2] ?? 0
          head = head + 1 | 0
          // Given back before the callback, which may submit, and may fail.
          Atomics.store(ring, cqHead, head)
          // A completion of an earlier use of the slot must not reach the present one.
          if (generations[slot] !== generation) continue
          generations[slot] = (generation ?? 0) + 1 | 0
          regions[slot] = undefined
          complete(slot, result)
        }
      }

      const hasMore = () => (Atomics.load(ring, sqFlags) & (SQ_TASKRUN | SQ_CQ_OVERFLOW)) !== 0

      const poll = wakeUp(koffi, eventFd, () => {
        read(eventFd, counter, 8)
        woken()
      })

      const device: Device = {
        name: "io_uring",
        slots: options.slots,
        stage: (slot, kind, file, region, from, length, offset) => {
          if (staged === entries) enterRing(0)
          // Still full, since the kernel takes none now: again when it has been asked for what it has done.
          if (staged === entries) return void turnedAway.push(slot)
          const at = (tail & sqMask) * 16
          tail = tail + 1 | 0
          staged += 1
          const fixedFile = file.slot >= 0
          let fixedBuffer = -1
          let address = 0
          if (region !== undefined) {
            regions[slot] = region
            address = addressOf(koffi, region.slab) + region.start + from
            if (region.slab.pooled && hasBuffers) {
              fixedBuffer = (registered.get(region.slab) ?? registerSlab(region.slab)).index
            }
          }
          const opcode = kind === "sync"
            ? OP_FSYNC
            : fixedBuffer >= 0
            ? kind === "read" ? OP_READ_FIXED : OP_WRITE_FIXED
            : kind === "read"
            ? OP_READ
            : OP_WRITE
          sqe[at] = opcode | (fixedFile ? IOSQE_FIXED_FILE << 8 : 0)
          sqe[at + 1] = fixedFile ? file.slot : file.fd
          sqe[at + 2] = low(offset)
          sqe[at + 3] = high(offset)
          sqe[at + 4] = low(address)
          sqe[at + 5] = high(address)
          sqe[at + 6] = length
          sqe[at + 7] = kind === "sync" ? FSYNC_DATASYNC : 0
          sqe[at + 8] = slot
          sqe[at + 9] = generations[slot] ?? 0
          sqe[at + 10] = fixedBuffer >= 0 ? fixedBuffer : 0
          if (file.direct && staged >= eagerSubmissions) handOver()
        },
        submit: () => {
          // A turn that was deferred comes after the end of the ring, whose memory is gone.
          if (closed) return false
          if (staged > 0) enterRing(ENTER_GETEVENTS)
          reap()
          // With deferred task work there are completions when the kernel is asked for them, some twenty with each call; its flag tells
          // that there are more, for which it does not wake again.
          for (let calls = 0; hasMore() && calls < maxReapCalls; calls++) {
            enterRing(ENTER_GETEVENTS)
            reap()
          }
          for (const slot of turnedAway.splice(0)) complete(slot, -errnos.EAGAIN)
          return staged > 0 || hasMore()
        },
        defer: (turn) => void setImmediate(turn),
        hold: (busy) => busy ? poll.ref() : poll.unref(),
        keepsFile: () => true,
        attach: (file) => {
          const index = freeFiles.pop()
          if (index === undefined) return
          if (updateFile(index, file.fd) >= 0) file.slot = index
          else freeFiles.push(index)
        },
        detach: (file) => {
          if (file.slot < 0) return
          updateFile(file.slot, -1)
          freeFiles.push(file.slot)
          file.slot = -1
        },
        close: Effect.sync(() => {
          closed = true
          poll.close()
          close(eventFd)
          for (const { forget } of registered.values()) forget()
          unmap()
          closeRing()
        })
      }
      return device
    }
  })
