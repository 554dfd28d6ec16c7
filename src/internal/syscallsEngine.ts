/** The engine over `Syscalls`: one `pread` or `pwrite` after the other, in the fibre that asks. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Runtime from "effect/Runtime"
import type { OperationError } from "../DiskStorageError.js"
import { BufferBusy, IoFailed, StorageClosed } from "../DiskStorageError.js"
import type { Completion, IoEngine, Operation } from "../IoEngine.js"
import type { SyscallError } from "../Syscalls.js"
import { Syscalls } from "../Syscalls.js"
import { region } from "./alignedBuffer.js"
import { maxStalledTransfers, OpenFile, openFile, results, TypeId } from "./ioQueue.js"
import type { Kind } from "./ioQueue.js"

/** Operations of a batch that are under way at once. */
const batchConcurrency = 8

export const make = Effect.gen(function*() {
  const syscalls = yield* Syscalls
  const runtime = yield* Effect.runtime<never>()

  const transfer = (
    kind: "read" | "write",
    file: OpenFile,
    bytes: Uint8Array,
    offset: number
  ): Effect.Effect<void, IoFailed> => {
    const length = bytes.byteLength
    const call = kind === "read" ? syscalls.pread : syscalls.pwrite
    const failed = (bytesDone: number, cause?: SyscallError) =>
      new IoFailed({ operation: kind, offset, length, bytesDone, cause })
    const from = (done: number, stalled: number): Effect.Effect<void, IoFailed> =>
      done === length ? Effect.void : Effect.matchEffect(
        call(file.fd, done === 0 ? bytes : bytes.subarray(done), offset + done),
        {
          onFailure: (cause) => Effect.fail(failed(done, cause)),
          onSuccess: (transferred) => {
            const reached = done + transferred
            const next = reached === length ? length : reached - reached % file.alignment
            if (transferred === 0 || (next === done && stalled === maxStalledTransfers)) {
              return Effect.fail(failed(reached))
            }
            return from(next, next === done ? stalled + 1 : 0)
          }
        }
      )
    return from(0, 0)
  }

  /** Counts `run` in the file's operations in flight. */
  const within = (
    file: OpenFile,
    kind: Kind,
    run: Effect.Effect<void, IoFailed>,
    ended: () => void
  ): Effect.Effect<void, IoFailed> =>
    Effect.uninterruptibleMask((restore) => {
      file.inFlight += 1
      return Effect.onExit(restore(run), (exit) =>
        Effect.sync(() => {
          file.inFlight -= 1
          if (Exit.isSuccess(exit)) {
            if (kind !== "sync") file.failuresOf(kind).succeeded()
          } else if (Cause.isFailure(exit.cause)) file.failuresOf(kind).failed()
          ended()
          file.left()
        }))
    })

  const perform = (operation: Operation): Effect.Effect<void, OperationError> =>
    Effect.suspend(() => {
      const file = openFile(operation.file)
      if (file.closed) return Effect.fail(new StorageClosed({ path: file.path }))
      const failures = file.failuresOf(operation.kind)
      if (operation.kind === "sync") {
        if (failures.refuses("sync")) return Effect.fail(file.degraded("sync"))
        const sync = Effect.mapError(
          syscalls.fdatasync(file.fd),
          (cause) => new IoFailed({ operation: "sync", offset: 0, length: 0, bytesDone: 0, cause })
        )
        return within(file, "sync", sync, () => {})
      }
      const { kind, offset } = operation
      const { byteLength: length, bytes, slab, start } = region(operation.buffer)
      if (length === 0) return Effect.void
      return Effect.uninterruptibleMask((restore): Effect.Effect<void, OperationError> => {
        if (!slab.claim(start, length, kind === "read")) {
          return Effect.fail(new BufferBusy({ operation: kind, offset, length }))
        }
        const released = () => slab.release(start, length)
        if (!failures.refuses(kind)) return within(file, kind, restore(transfer(kind, file, bytes, offset)), released)
        released()
        return Effect.fail(file.degraded(kind))
      })
    })

  const complete = (operation: Operation): Effect.Effect<Completion> =>
    Effect.map(Effect.either(perform(operation)), (result) => {
      const error = Either.isLeft(result) ? result.left : undefined
      const length = operation.kind === "sync" ? 0 : operation.buffer.byteLength
      return { operation, error, bytes: error === undefined ? length : error._tag === "IoFailed" ? error.bytesDone : 0 }
    })

  const diedOf = (operation: Operation): Completion => {
    const [offset, length] = operation.kind === "sync" ? [0, 0] : [operation.offset, operation.buffer.byteLength]
    const { kind } = operation
    return {
      operation,
      bytes: 0,
      error: new IoFailed({ operation: kind, offset, length, bytesDone: 0, cause: undefined })
    }
  }

  const engine: IoEngine = {
    [TypeId]: TypeId,
    name: "pread/pwrite",
    file: (fd, options) =>
      Effect.acquireRelease(
        Effect.sync(() => new OpenFile(undefined, fd, options)),
        (file) => Effect.async<void>((resume) => file.close(() => resume(Effect.void)))
      ),
    read: (file, buffer, offset) => perform({ kind: "read", file, buffer, offset }),
    write: (file, buffer, offset) => perform({ kind: "write", file, buffer, offset }),
    sync: (file) => perform({ kind: "sync", file }),
    batch: (operations) => Effect.map(Effect.forEach(operations, complete, { concurrency: batchConcurrency }), results),
    unsafeSubmit: (operation, done) => {
      // Whoever waits for `done` would wait for ever, if a call died.
      Runtime.runCallback(runtime)(complete(operation), {
        onExit: (exit) => done(Exit.isSuccess(exit) ? exit.value : diedOf(operation))
      })
    }
  }
  return engine
})
