/**
 * The event loop woken by eventfds.
 *
 * On the main thread koffi does that, the cheapest way. It calls back also while Node takes the event loop down, when no JavaScript may
 * run, and a completion that comes then would end the process with SIGABRT: the one `process.on("exit")` listener here ends that. It
 * exists while there is something to be woken by.
 *
 * A worker that is terminated runs no listener. There the eventfd is put in the place of a pipe that Node has as a socket: a handle of
 * Node's own, which it closes before anything else.
 */
import { Socket } from "node:net"
import { isMainThread } from "node:worker_threads"
import type { Koffi } from "./native.js"

// uapi/asm-generic/fcntl.h
const O_CLOEXEC = 0x8_0000

type Poll = ReturnType<Koffi["node"]["poll"]>
type WakeUp = Pick<Poll, "ref" | "unref" | "close">

const polls = new Set<Poll>()

const stopAll = () => {
  for (const poll of polls) poll.stop()
}

const fromKoffi = (koffi: Koffi, fd: number, callback: () => void): WakeUp => {
  const poll = koffi.node.poll(fd, { readable: true }, callback)
  if (polls.size === 0) process.on("exit", stopAll)
  polls.add(poll)
  return {
    ref: () => poll.ref(),
    unref: () => poll.unref(),
    close: () => {
      polls.delete(poll)
      if (polls.size === 0) process.removeListener("exit", stopAll)
      poll.close()
    }
  }
}

const fromSocket = (koffi: Koffi, fd: number, callback: () => void): WakeUp => {
  const libc = koffi.load(null)
  const pipe2 = libc.func("pipe2", "int", ["void *", "int"])
  const dup3 = libc.func("dup3", "int", ["int", "int", "int"])
  const close = libc.func("close", "int", ["int"])
  const ends = new Int32Array(2)
  // Descriptors have run out.
  if (pipe2(new Uint8Array(ends.buffer), O_CLOEXEC) < 0) return fromKoffi(koffi, fd, callback)
  const [reading = -1, writing = -1] = ends
  const options = {
    fd: reading,
    readable: true,
    writable: false,
    onread: {
      // More than the 8 bytes that an eventfd gives, so that nothing is read twice.
      buffer: new Uint8Array(16),
      callback: () => {
        callback()
        return true
      }
    }
  }
  const socket = new Socket(options)
  // Before the loop has looked at it.
  dup3(fd, reading, O_CLOEXEC)
  close(writing)
  return {
    ref: () => void socket.ref(),
    unref: () => void socket.unref(),
    close: () => void socket.destroy()
  }
}

/** Calls back when the descriptor becomes readable; it does not keep the process alive until it is asked to. */
export const wakeUp = (koffi: Koffi, fd: number, callback: () => void): WakeUp => {
  const made = (isMainThread ? fromKoffi : fromSocket)(koffi, fd, callback)
  made.unref()
  return made
}
