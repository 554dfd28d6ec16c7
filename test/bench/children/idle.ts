/** A process that does nothing but measure its own event loop, from the message `start` to the message `stop`. */
import { monitorEventLoopDelay } from "node:perf_hooks"
import { delayOf, resolution } from "../delay.js"

const histogram = monitorEventLoopDelay({ resolution })

process.on("message", (message) => {
  if (message === "start") {
    histogram.reset()
    histogram.enable()
    process.send?.("started")
  } else {
    histogram.disable()
    process.send?.(delayOf(histogram))
  }
})
