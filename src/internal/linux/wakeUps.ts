/**
 * The event loop woken by eventfds, and the one `process.on("exit")` listener that ends that. koffi calls back also while Node takes
 * the event loop down, when no JavaScript may run, and a completion that comes then would end the process with SIGABRT. The listener
 * exists while there is something to be woken by.
 */
import type { Koffi } from "./native.js"

type Poll = ReturnType<Koffi["node"]["poll"]>

const polls = new Set<Poll>()

const stopAll = () => {
  for (const poll of polls) poll.stop()
}

/** Calls back when the descriptor becomes readable; it does not keep the process alive until it is asked to. */
export const wakeUp = (koffi: Koffi, fd: number, callback: () => void): Pick<Poll, "ref" | "unref" | "close"> => {
  const poll = koffi.node.poll(fd, { readable: true }, callback)
  poll.unref()
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
