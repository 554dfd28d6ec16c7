/**
 * Bugs, each planted in one source of `src`, and the test files that must notice it. They are small, as real ones are: a bound that is off
 * by one, a case that is forgotten, a check that is dropped. `npm run planted-bugs` plants one after the other.
 */
import type { Mutation } from "../simulate/bundle.js"

export interface PlantedBug extends Mutation {
  readonly what: string
  /** Below `test`; the suites nearest to the bug. */
  readonly tests: ReadonlyArray<string>
}

export const bugs: ReadonlyArray<PlantedBug> = [
  {
    what: "two of the four words of a checksum are compared",
    file: "internal/blockIndex.ts",
    from: "word < checksumWords; word++) {\n      if (this.checksums",
    to: "word < 2; word++) {\n      if (this.checksums",
    tests: ["blocks/blockIndex.test.ts"]
  },
  {
    what: "a new file that lost its name before its lock is used all the same",
    file: "internal/temporaryFile.ts",
    from: "lock.statx.links > 0 && ",
    to: "",
    tests: ["sweep.test.ts"]
  },
  {
    what: "blocks are not verified while more than three of them wait for that",
    file: "internal/blockStore.ts",
    from: "const intact = index.verifies(",
    to: "const intact = unverified > 3 || index.verifies(",
    tests: ["blocks/faults.test.ts"]
  },
  {
    what: "a short transfer goes on where it stopped, and not at a multiple of the alignment",
    file: "internal/ioQueue.ts",
    from: "const next = reached - reached % request.file.alignment",
    to: "const next = reached",
    tests: ["engines/simulated.test.ts"]
  },
  {
    what: "EBUSY ends an operation at once",
    file: "internal/ioQueue.ts",
    from: " || result === -errnos.EAGAIN || result === -errnos.EBUSY",
    to: " || result === -errnos.EAGAIN",
    tests: ["engines/simulated.test.ts"]
  },
  {
    what: "a batch counts the bytes of its first failed piece wrongly",
    file: "internal/ioQueue.ts",
    from: "if (this.outcome !== succeeded && bytes >= this.bytes) return",
    to: "if (this.outcome !== succeeded) return",
    tests: ["engines/simulated.test.ts", "engines/limits.test.ts"]
  },
  {
    what: "memory that is being written from may be read into",
    file: "internal/slab.ts",
    from: "if (fill ? users !== 0 : users < 0) return false",
    to: "if (users < 0) return false",
    tests: ["slab.test.ts"]
  },
  {
    what: "ranges that touch in their last bytes do not exclude each other",
    file: "internal/rangeLock.ts",
    from: "earlier.start < entry.end && entry.start < earlier.end",
    to: "earlier.start <= entry.start && entry.start < earlier.end",
    tests: ["engines/storage.test.ts"]
  },
  {
    what: "the last page of a long write is not read first, and loses its other bytes",
    file: "internal/transfers.ts",
    from: "if (to < end && end - start > unit) {",
    to: "if (to < end && end - start > 2 * unit) {",
    tests: ["properties.test.ts", "engines/storage.test.ts"]
  },
  {
    what: "a call that a signal interrupts is tried again a few times only",
    file: "internal/kernel.ts",
    from: "if (result === -errnos.EINTR && retries > 0)",
    to: "if (result === -errnos.EINTR && retries > maxRetries - 2)",
    tests: ["DiskStorage.test.ts", "contract.test.ts"]
  },
  {
    what: "a sweep takes the files of other users",
    file: "internal/sweep.ts",
    from: "if (found.uid !== uid) return left(",
    to: "if (found.uid < 0) return left(",
    tests: ["sweep.test.ts"]
  },
  {
    what: "a directory that everybody may write passes if it has the sticky bit or not",
    file: "internal/directoryPolicy.ts",
    from: "isWritableByAll(here) && (here.mode & S_ISVTX) === 0) {",
    to: "isWritableByAll(here) && here.mode === 0) {",
    tests: ["directoryPolicy.test.ts"]
  },
  {
    what: "neighbouring extents are merged although they differ in their flags",
    file: "internal/extents.ts",
    from: "previous.kind === kind && previous.flags === flags",
    to: "previous.kind === kind",
    tests: ["filesystems/extents.test.ts", "doctor/filesystems.test.ts"]
  },
  {
    what: "the mount point keeps the kernel's escapes",
    file: "internal/directIo/mounts.ts",
    from: "mountPoint: unescape(mountPoint)",
    to: "mountPoint",
    tests: ["doctor/mounts.test.ts"]
  },
  {
    what: "after a long pause one count too few has decayed",
    file: "internal/frequency.ts",
    from: "const bounded = Math.min(steps, maxCount + 1)",
    to: "const bounded = Math.min(steps, maxCount - 1)",
    tests: ["OffloadFilter.test.ts"]
  },
  {
    what: "the pieces of a block lie on each other",
    file: "BlockLayout.ts",
    from: "offset: piece * extentStride + block * blockStride",
    to: "offset: piece * blockStride + block * blockStride",
    tests: ["BlockLayout.test.ts"]
  },
  {
    what: "a block never makes room for one of its own priority",
    file: "internal/blockIndex.ts",
    from: "lowest <= priority; lowest++",
    to: "lowest < Math.max(1, priority); lowest++",
    tests: ["blocks/model.test.ts", "blocks/rules.test.ts"]
  },
  {
    what: "a touch lowers the priority of a block",
    file: "internal/blockIndex.ts",
    from: "const raised = Math.max(priority, this.at(slot, PRIORITY))",
    to: "const raised = priority",
    tests: ["blocks/model.test.ts", "blocks/rules.test.ts"]
  },
  {
    what: "a slow reader of events misses one more than it is told of",
    file: "internal/blockEvents.ts",
    from: "events.push({ _tag: \"Missed\", events: missed })\n      reader.seen += missed",
    to: "events.push({ _tag: \"Missed\", events: missed })\n      reader.seen += missed + 1",
    tests: ["blocks/faults.test.ts", "blocks/rules.test.ts"]
  },
  {
    what: "storages of different ends are taken up together",
    file: "internal/blockRestart.ts",
    from: "kept.ended !== found[0]?.kept.ended",
    to: "kept.ended === undefined",
    tests: ["blocks/restart.test.ts", "blocks/lives.test.ts"]
  },
  {
    what: "every operation is tried once the pause of a failing disk is over, and not one",
    file: "internal/circuit.ts",
    from: "if (tries) retryAt = at + retryMillis",
    to: "",
    tests: ["degraded.test.ts"]
  },
  {
    what: "a budget cannot be used up",
    file: "DiskAllocator.ts",
    from: "if (requested > available)",
    to: "if (requested >= available)",
    tests: ["DiskStorage.test.ts"]
  },
  {
    what: "a call that was interrupted while it waited for a thread is made all the same",
    file: "internal/linux/libraryThreads.ts",
    from: "waiting.splice(at, 1)\n",
    to: "",
    tests: ["gpu/libraryThreads.test.ts"]
  },
  {
    what: "one direct probe is enough for the page cache to count as bypassed",
    file: "internal/directIo/decisions.ts",
    from: "if (buffered.length === 0) {\n    return probes.every(",
    to: "if (buffered.length === 0) {\n    return probes.some(",
    tests: ["doctor/conditions.test.ts", "doctor/inspect.test.ts", "doctor/filesystems.test.ts"]
  },
  {
    what: "a value may reach beyond its block",
    file: "internal/keyValueStore.ts",
    from: "|| to > block.byteLength) return \"invalid\"",
    to: "|| to > block.byteLength + 1) return \"invalid\"",
    tests: ["KeyValueStore.test.ts"]
  },
  {
    what: "a buffer that an operation still holds goes back to its pool",
    file: "internal/alignedBuffer.ts",
    from: "buffer.slab.whenIdle(buffer.start, buffer.byteLength, () => give(buffer))",
    to: "give(buffer)",
    tests: ["engines/pool.test.ts"]
  }
]
