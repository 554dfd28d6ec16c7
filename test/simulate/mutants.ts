/** Bugs, each planted in a source when it is bundled, and the invariant that it must violate. */
import type { Mutation } from "./bundle.js"
import type { Invariant } from "./invariants.js"

export interface Mutant extends Mutation {
  readonly invariant: Invariant
  readonly what: string
  /** Where the tests begin to look, shortly before the first seed that has found it; 0 where that comes early. */
  readonly near?: number
}

export const mutants: ReadonlyArray<Mutant> = [
  {
    invariant: "descriptors",
    what: "the file is not closed where it could not be unlinked",
    near: 140,
    file: "internal/temporaryFile.ts",
    from: "Effect.ensuring(patience.wait(\"unlink\", fd, unlinked), close)",
    to: "Effect.zipRight(unlinked, Effect.suspend(() => failures.length === 0 ? close : Effect.void))"
  },
  {
    invariant: "files",
    what: "the creation of the file can be interrupted once it is made",
    near: 55,
    file: "internal/diskStorage.ts",
    from: "temporaryFile.create(syscalls, directory),",
    to: "Effect.interruptible(temporaryFile.create(syscalls, directory)),"
  },
  {
    invariant: "live files",
    what: "a file that its owner has locked counts as abandoned",
    file: "internal/fileLock.ts",
    from: "Effect.catchIf(isHeld, () => Effect.succeed(true))",
    to: "Effect.catchIf(isHeld, () => Effect.succeed(false))"
  },
  {
    invariant: "abandoned",
    what: "the first storage in a directory does not sweep it",
    file: "internal/diskStorage.ts",
    from: "if (options.sweep) yield* sweepOnce(syscalls, directory)",
    to: ""
  },
  {
    invariant: "mappings",
    what: "a mapping that was made to be asked about is not unmapped",
    file: "internal/observe.ts",
    from: "address._tag === \"None\" ? Effect.void : Effect.ignore(",
    to: "address._tag !== \"None\" ? Effect.void : Effect.ignore("
  },
  {
    invariant: "registrations",
    what: "what a registration has acquired stays when it fails",
    file: "internal/diskStorage.ts",
    from: "return Scope.close(scope, Exit.failCause(cause))\n",
    to: "return Effect.as(Effect.void, cause)\n"
  },
  {
    invariant: "fibres",
    what: "the watchdog lives on when its engine has ended",
    file: "internal/engineOptions.ts",
    from: "yield* Effect.forkScoped(",
    to: "yield* Effect.forkDaemon("
  },
  {
    invariant: "listeners",
    what: "each storage adds a listener to the process",
    file: "internal/diskStorage.ts",
    from: "const door = makeDoor(path)\n",
    to: "const door = makeDoor(path)\n    process.on(\"exit\", () => {})\n"
  },
  {
    invariant: "closed descriptors",
    what: "the file is closed twice",
    file: "internal/temporaryFile.ts",
    from: "[...file.fds.splice(0), ...fileName.letGo(file), ...lockOf(file)]",
    to: "[...file.fds.splice(0), ...fileName.letGo(file), ...lockOf(file)].flatMap((fd) => [fd, fd])"
  },
  {
    invariant: "closed descriptors",
    what: "release does not wait for what is in flight",
    file: "internal/ioQueue.ts",
    from: "if (this.drained.length === 0 || this.inFlight > this.stalled) return",
    to: "if (this.drained.length === 0) return"
  },
  {
    invariant: "contents",
    what: "an error of a piece of a transfer is lost",
    file: "internal/ioQueue.ts",
    from: "request.fail(piece.from + piece.done, -result)",
    to: ""
  },
  {
    invariant: "acknowledged",
    what: "a short write counts as a whole one",
    near: 35,
    file: "internal/ioQueue.ts",
    from: "} else if (result < piece.length - piece.done) {",
    to: "} else if (result < piece.length - piece.done && request.operation.kind === \"read\") {"
  },
  {
    invariant: "owned buffers",
    what: "memory that the kernel fills is lent a second time",
    near: 125,
    file: "internal/slab.ts",
    from: "if (fill ? users !== 0 : users < 0) return false",
    to: "if (fill ? users > 0 : users < -1) return false"
  },
  {
    invariant: "stalls",
    what: "memory is given back when its operation stalls",
    near: 1890,
    file: "internal/ioQueue.ts",
    from: "      request.givenUp = true\n",
    to: "      request.givenUp = true\n      request.region?.slab.release(request.region.start, request.length)\n"
  },
  {
    invariant: "errors",
    what: "a call that fails during acquisition is a defect",
    near: 130,
    file: "internal/temporaryFile.ts",
    from: "const statfs = yield* Effect.mapError(syscalls.fstatfs(fd), failedAt(\"inspect\", path))",
    to: "const statfs = yield* Effect.orDie(syscalls.fstatfs(fd))"
  },
  {
    invariant: "causes",
    what: "a call that a signal has interrupted is not made again",
    file: "internal/kernel.ts",
    from: "if (result === -errnos.EINTR && retries > 0)",
    to: "if (result === -errnos.EINTR && retries > maxRetries)"
  },
  {
    invariant: "after release",
    what: "an engine takes operations on a closed file",
    file: "internal/ioQueue.ts",
    from: "if (file.closed) request.fail(0, closed)",
    to: "if (file.closed && file.queue === undefined) request.fail(0, closed)"
  },
  {
    invariant: "release order",
    what: "registrations are released oldest first",
    file: "internal/diskStorage.ts",
    from: "[...scopes].reverse()",
    to: "[...scopes]"
  },
  {
    invariant: "release order",
    what: "the file is closed before it is unlinked",
    file: "internal/temporaryFile.ts",
    from: "Effect.ensuring(patience.wait(\"unlink\", fd, unlinked), close)",
    to: "Effect.ensuring(close, patience.wait(\"unlink\", fd, unlinked))"
  },
  {
    invariant: "release is told",
    what: "a name that could not be removed is taken for gone",
    near: 140,
    file: "internal/temporaryFile.ts",
    from: "Effect.catchAll(fileName.unlink(syscalls, file), (error) =>",
    to: "Effect.catchAll(Effect.ignore(fileName.unlink(syscalls, file)), (error) =>"
  },
  {
    invariant: "batches",
    what: "the first result of a batch stands for all that were not refused",
    near: 115,
    file: "internal/transfers.ts",
    from: "this.sent.get(this.places[index] ?? index)",
    to: "this.sent.get(0)"
  },
  {
    invariant: "budget",
    what: "the budget of a storage does not come back",
    file: "DiskAllocator.ts",
    from: "available += requested",
    to: "available += 0"
  },
  {
    invariant: "kept",
    what: "the label of a file that is taken up stays, and the file goes back under its name",
    near: 95,
    file: "internal/keptFile.ts",
    from: "    file.takenFrom = undefined\n    return Effect.mapError(\n      writeLabel",
    to: "    return Effect.void\n    return Effect.mapError(\n      writeLabel"
  },
  {
    invariant: "blocks",
    what: "a block whose write failed is found",
    file: "internal/blockStore.ts",
    from: "if (error === undefined) outcome = written(",
    to: "if (error === undefined || error._tag === \"IoFailed\") outcome = written("
  },
  {
    invariant: "blocks",
    what: "the checksum of a block is not compared",
    near: 50,
    file: "internal/blockStore.ts",
    from: "const intact = index.verifies(slot, checker.compute(into.bytes))",
    to: "const intact = true"
  },
  {
    invariant: "leases",
    what: "a leased block that is removed makes room at once",
    file: "internal/blockStore.ts",
    from: "        for (const { slot } of leases) index.pin(slot)\n        const term = { ended: false }\n" +
      "        const unpin = Effect.sync(() => {\n          term.ended = true\n" +
      "          for (const { slot } of leases) index.unpin(slot)\n        })\n",
    to:
      "        const term = { ended: false }\n        const unpin = Effect.sync(() => {\n          term.ended = true\n        })\n"
  },
  {
    invariant: "slots",
    what: "the permits of an interrupted batch are lost",
    near: 310,
    file: "internal/blockBatch.ts",
    from: "  landed(): void {\n    this.gate.give()",
    to: "  landed(): void {\n    if (!this.stopped) this.gate.give()"
  },
  {
    invariant: "taken out",
    what: "blocks are put on a storage that was taken out",
    near: 1170,
    file: "internal/blockIndex.ts",
    from: "if (storage === undefined || storage.failed) continue",
    to: "if (storage === undefined) continue"
  },
  {
    invariant: "reports",
    what: "a probe that could not try everything counts as one that did",
    near: 220,
    file: "internal/directIo/inspect.ts",
    from: "  if (failure !== null) return { verdict: \"unknown\", reasons }\n",
    to: ""
  },
  {
    invariant: "progress",
    what: "a permit that comes back wakes nobody",
    file: "internal/blockBatch.ts",
    from: "    this.taken -= 1\n    this.admit()",
    to: "    this.taken -= 1"
  },
  {
    invariant: "progress",
    what: "who waits for a range is not told that it is free",
    near: 100,
    file: "internal/rangeLock.ts",
    from: "      waiting.grant()\n",
    to: ""
  },
  {
    invariant: "replay",
    what: "the device draws from more than its seed",
    near: 170,
    file: "internal/simulatedDevice.ts",
    from: "new PCGRandom(options.seed)",
    to: "new PCGRandom(options.seed + process.memoryUsage().heapUsed)"
  }
]
