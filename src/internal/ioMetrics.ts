/** Plain fields that a queue counts in, and their way into the metrics once per drain. */
import * as DiskMetrics from "../DiskMetrics.js"
import { errnoCode } from "./kernel.js"

/** Latencies that one drain counts per direction: a histogram's update costs as much as several operations' counting. */
const maxLatencies = 4

class Direction {
  bytes = 0
  operations = 0
  latencies = 0

  private readonly name: "read" | "write" | "sync"

  constructor(name: "read" | "write" | "sync") {
    this.name = name
  }

  ended(bytes: number, millis: number): void {
    this.bytes += bytes
    this.operations += 1
    if (this.latencies === maxLatencies) return
    this.latencies += 1
    DiskMetrics.latency[this.name].unsafeUpdate(millis, [])
  }

  flush(): void {
    if (this.operations === 0) return
    DiskMetrics.operations[this.name].unsafeUpdate(this.operations, [])
    if (this.bytes > 0) DiskMetrics.bytes[this.name].unsafeUpdate(this.bytes, [])
    this.bytes = 0
    this.operations = 0
    this.latencies = 0
  }
}

export class IoMetrics {
  readonly read = new Direction("read")
  readonly write = new Direction("write")
  readonly sync = new Direction("sync")
  private inFlight = 0

  failed(kind: "read" | "write" | "sync", errno: number): void {
    DiskMetrics.errors(kind, errno > 0 ? errnoCode(errno) : "SHORT").unsafeUpdate(1, [])
  }

  stalled(kind: "read" | "write" | "sync"): void {
    DiskMetrics.errors(kind, "STALLED").unsafeUpdate(1, [])
  }

  flush(inFlight: number): void {
    this.read.flush()
    this.write.flush()
    this.sync.flush()
    if (inFlight === this.inFlight) return
    this.inFlight = inFlight
    DiskMetrics.inFlight.unsafeUpdate(inFlight, [])
  }
}
