/** Which engine works here: found out by a real write and a real read. */
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as AlignedBuffer from "../AlignedBuffer.js"
import { EngineUnavailable } from "../DiskStorageError.js"
import type { InvalidOption, NativeModuleMissing, PlatformNotSupported } from "../DiskStorageError.js"
import type { IoEngine } from "../IoEngine.js"
import type { LinuxOptions } from "../Linux.js"
import * as ioUring from "./ioUring.js"
import { memoryFile } from "./linux/probe.js"
import * as linuxAio from "./linuxAio.js"
import * as nodeIo from "./nodeIo.js"

/** Writes a page, reads it back and compares, on a file in memory. */
const tried = (
  engine: IoEngine
): Effect.Effect<IoEngine, EngineUnavailable | PlatformNotSupported | NativeModuleMissing> =>
  Effect.scoped(Effect.gen(function*() {
    const fd = yield* memoryFile
    const refused = (reason: string) => new EngineUnavailable({ engine: engine.name, reason })
    if (fd < 0) return yield* refused("there is no memory file to try it on")
    // As a direct file, so that an engine does not hand it to another one.
    const file = yield* engine.file(fd, { path: "a file in memory", direct: true, alignment: 1 })
    const page = yield* Effect.mapError(
      AlignedBuffer.make(2 * AlignedBuffer.pageSize),
      ({ message }) => refused(message)
    )
    const [from, into] = yield* Effect.orDie(Effect.all([
      AlignedBuffer.slice(page, 0, AlignedBuffer.pageSize),
      AlignedBuffer.slice(page, AlignedBuffer.pageSize, page.byteLength)
    ]))
    from.bytes.forEach((_, index) => from.bytes[index] = index)
    yield* Effect.mapError(engine.write(file, from, 0), ({ message }) => refused(`a write failed. ${message}`))
    yield* Effect.mapError(engine.read(file, into, 0), ({ message }) => refused(`a read failed. ${message}`))
    if (from.bytes.some((byte, index) => byte !== into.bytes[index])) {
      return yield* refused("it did not read what it had written")
    }
    return engine
  }))

/** Makes an engine and tries it; one that was tried in vain is closed at once. */
const attempt = <E>(
  make: Effect.Effect<IoEngine, E, Scope.Scope>
): Effect.Effect<IoEngine, E | EngineUnavailable | PlatformNotSupported | NativeModuleMissing, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Scope.fork(yield* Effect.scope, ExecutionStrategy.sequential)
      return yield* restore(Effect.flatMap(make, tried)).pipe(
        Scope.extend(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
    })
  )

type Failure = EngineUnavailable | PlatformNotSupported | NativeModuleMissing | InvalidOption

/** The engine that is asked for, or the best one that can write and read. */
export const choose = (
  asked: "auto" | "io_uring" | "aio" | "node",
  options: LinuxOptions
): Effect.Effect<IoEngine, Failure, Scope.Scope> => {
  const { stallTimeout } = options
  const ring = attempt(ioUring.make({ stallTimeout, ...options.ioUring }))
  const aio = attempt(linuxAio.make({ stallTimeout, ...options.aio }))
  const node = nodeIo.make({ stallTimeout, ...options.node })
  const said = (why: string) => (engine: IoEngine) => Effect.logDebug(`I/O engine ${engine.name}: ${why}`)
  const why = ({ cause, engine, reason }: EngineUnavailable) =>
    `${engine}: ${reason}${cause === undefined ? "" : ` (${cause.message})`}.`
  if (asked === "io_uring") return Effect.tap(ring, said("asked for"))
  if (asked === "aio") return Effect.tap(aio, said("asked for"))
  if (asked === "node") return Effect.tap(node, said("asked for"))
  return Effect.tap(ring, said("a write and a read through it came back")).pipe(
    Effect.catchTag(
      "EngineUnavailable",
      (noRing) =>
        Effect.tap(aio, said(`a write and a read through it came back. ${why(noRing)}`)).pipe(
          Effect.catchTag("EngineUnavailable", (noAio) =>
            Effect.tap(node, (engine) =>
              Effect.logWarning(
                `I/O engine ${engine.name}: libuv's pool does all I/O, which is slow. ${why(noRing)} ${why(noAio)}`
              )))
        )
    )
  )
}
