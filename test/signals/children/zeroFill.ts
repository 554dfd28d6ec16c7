/**
 * Zero-fills a storage on a disk that takes `zeroFill.ts <milliseconds>` for each write, where the filesystem cannot allocate:
 * the real file, the real writes, and time between them.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as DiskStorage from "../../../src/DiskStorage.js"
import * as DiskStorageConfig from "../../../src/DiskStorageConfig.js"
import * as IoEngine from "../../../src/IoEngine.js"
import * as LinuxSyscalls from "../../../src/LinuxSyscalls.js"
import * as ProcessRuntime from "../../../src/ProcessRuntime.js"
import { errnos, SyscallError, Syscalls } from "../../../src/Syscalls.js"
import { report, reportExit } from "./report.js"

const duration = Duration.millis(Number(process.argv[2]))

const syscalls = Layer.effect(
  Syscalls,
  Effect.map(Syscalls, (syscalls) => ({
    ...syscalls,
    fallocate: (fd: number) =>
      new SyscallError({ syscall: "fallocate", errno: errnos.EOPNOTSUPP, code: "EOPNOTSUPP", fd }),
    pwrite: (fd: number, from: Uint8Array, offset: number) =>
      Effect.uninterruptible(Effect.zipRight(
        report(`writing ${offset}`),
        Effect.zipLeft(syscalls.pwrite(fd, from, offset), Effect.sleep(duration))
      ))
  }))
).pipe(Layer.provide(LinuxSyscalls.layer))

reportExit()
for (const signal of ["SIGHUP", "SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => Effect.runSync(report(`heard ${signal}`)))
}

DiskStorageConfig.options().pipe(
  Effect.flatMap((options) => DiskStorage.make({ ...options, fallback: "zero-fill" })),
  Effect.zipRight(report("held")),
  Effect.scoped,
  Effect.provide(Layer.provideMerge(IoEngine.layerSyscalls, syscalls)),
  ProcessRuntime.runMain
)
