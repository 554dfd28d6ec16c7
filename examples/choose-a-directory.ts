/**
 * A program that looks at directories when it starts, takes the one that suits its storage best, and does not start where I/O would go
 * through the page cache. Run it: `node --import tsx examples/choose-a-directory.ts [DIRECTORY…]`
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { DirectIo, DiskStorage, DiskStorageConfig, Linux, ProcessRuntime } from "effect-disk-storage"
import * as Arr from "effect/Array"
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Order from "effect/Order"
import { resolved } from "./directory.js"

type Report = DirectIo.DirectIoReport

/** Why the program does not start: what is wrong with each directory. */
class NoDirectIo extends Data.TaggedError("NoDirectIo")<{ readonly reasons: ReadonlyArray<string> }> {
  override get message(): string {
    return ["No directory does direct I/O:", ...this.reasons].join("\n  ")
  }
}

const isDirect = ({ verdict }: Report) => verdict.io === "direct" || verdict.io === "direct-with-conditions"

/** The best first: both verdicts list their words from best to worst. */
const preference: Order.Order<Report> = Order.combineAll([
  Order.mapInput(Order.number, ({ verdict }: Report) => DirectIo.IoVerdict.literals.indexOf(verdict.io)),
  Order.mapInput(Order.number, ({ verdict }: Report) => DirectIo.GpuVerdict.literals.indexOf(verdict.gpu)),
  Order.mapInput(Order.reverse(Order.number), ({ filesystem }: Report) => filesystem.available)
])

const choose = (directories: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const [unusable, reports] = yield* Effect.partition(directories, (directory) => DirectIo.inspect(directory))
    const [direct, others] = Arr.partition(Arr.sort(reports, preference), (report) => !isDirect(report))
    const [best] = direct
    if (best !== undefined) return best
    return yield* new NoDirectIo({
      reasons: [
        ...others.map(({ directory, verdict: { io, reasons } }) =>
          `${directory}: ${[io, ...reasons.io].join("\n    ")}`
        ),
        ...unusable.map(({ message }) => message)
      ]
    })
  })

const program = Effect.gen(function*() {
  const asked = process.argv.slice(2)
  const usual = [yield* DiskStorageConfig.directory, "/tmp", "/dev/shm"]
  const candidates = yield* Effect.forEach(asked.length > 0 ? asked : usual, resolved)
  yield* Console.log(`looking at ${candidates.join(", ")}`)
  const { directory, verdict } = yield* choose(Arr.dedupe(candidates))
  yield* Console.log(`${directory} it is: I/O is ${verdict.io}, GPU ${verdict.gpu}`)
  // What the report found, the storage proves once more on its own file.
  const storage = yield* DiskStorage.make({ directory, size: 64 * 2 ** 20, directIo: "proven" })
  yield* Console.log(`${storage.size} bytes in ${storage.path}: ${storage.directIo.reason}`)
})

program.pipe(
  Effect.scoped,
  Effect.provide(Layer.merge(Linux.layer, NodeFileSystem.layer)),
  Effect.tapError((error) => Console.error(error.message)),
  ProcessRuntime.runMain({ disableErrorReporting: true })
)
