/**
 * What a worker thread leaves when it is terminated: Node then runs no JavaScript in it any more, no listener of 'exit' and no
 * finalizer. So that others, who do run, know of its files and descriptors:
 *
 * - The names are registered with libc, which unlinks them when the thread has ended, however it ends. By then Node has waited for the
 *   calls that the pool was making for the thread, and has closed its descriptors: a name below the descriptor of a directory is
 *   registered below a duplicate of that, which Node does not know. libc compares nothing: a file that has got the name is unlinked.
 * - The descriptors are opened through `node:fs`: a worker closes what is left of these, also one whose opening was under way
 *   (`trackUnmanagedFds`, on by default). They are not closed through it off-thread: Node forgets a descriptor when that is asked for,
 *   and drops what still waits for the pool when the thread is terminated.
 */
import * as Effect from "effect/Effect"
import { randomInt } from "node:crypto"
import { close, closeSync, constants, open, openSync, readlinkSync } from "node:fs"
import { isMainThread } from "node:worker_threads"
import { PlatformNotSupported } from "../../DiskStorageError.js"
import { errnos } from "../../Syscalls.js"
import type { Kernel } from "../kernel.js"
import * as linkedFiles from "../linkedFiles.js"
import { isFaithful } from "../pathText.js"
import type { Argument, CFunction, Native } from "./native.js"

// uapi/linux/limits.h, the NUL included
const PATH_MAX = 4096

/** As mkostemp has them. */
const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
const maxNames = 100

const randomName = () => Array.from({ length: 6 }, () => letters[randomInt(letters.length)]).join("")

/** glibc's, and that of the C++ library, which other libcs leave it to. */
const registrars = ["__cxa_thread_atexit_impl", "__cxa_thread_atexit"]

/** Memory of C, and a descriptor for the directory of the path in it. Both end with the thread. */
interface Registered {
  readonly memory: number
  readonly directory: number
}

/** Those of this thread that hold no path now. */
const unused: Array<Registered> = []

/** A path below the descriptor of a directory. */
const belowDescriptor = /^\/proc\/self\/fd\/(\d+)\/(.*)$/s

/** Has a path unlinked at the end of this thread, until what it returns is called. */
type AtEnd = (path: string) => () => void

/**
 * What is registered with libc cannot be taken back, and stays as many as there were names at once: each is memory of C that
 * holds a path, or an empty one, which names no file, until there is another. It outlives the memory of JavaScript. `nothing` is a
 * descriptor that holds nothing, for when there is no directory.
 */
const unlinkAtEnd = (declare: Native["declare"], nothing: number): Effect.Effect<AtEnd, PlatformNotSupported> =>
  Effect.gen(function*() {
    const dlsym = yield* declare("dlsym", "int64_t", ["int64_t", "str"])
    const registrar = registrars.find((name) => dlsym(0, name) !== 0)
    if (registrar === undefined) return () => () => {}
    // The destructor, its argument, and an address in the library that must stay loaded until then.
    const register = yield* declare(registrar, "int", ["int64_t", "int64_t", "int64_t"])
    const malloc = yield* declare("malloc", "int64_t", ["size_t"])
    const memcpy = yield* declare("memcpy", "int64_t", ["int64_t", "void *", "size_t"])
    const fcntl = yield* declare("fcntl", "int", ["int", "int", "long"])
    const dup3 = yield* declare("dup3", "int", ["int", "int", "int"])
    const [unlink, free, close] = [dlsym(0, "unlink"), dlsym(0, "free"), dlsym(0, "close")]
    const take = (): Registered | undefined => {
      const known = unused.pop()
      if (known !== undefined) return known
      const memory = malloc(PATH_MAX)
      if (memory === 0) return undefined
      const directory = fcntl(nothing, F_DUPFD_CLOEXEC, 0)
      // Called in the opposite order; an integer is passed as a pointer is.
      if (directory >= 0) register(close, directory, unlink)
      register(free, memory, unlink)
      memcpy(memory, new Uint8Array(1), 1)
      register(unlink, memory, unlink)
      return { memory, directory }
    }
    /** The path as it leads to the file when Node has closed the descriptor in it. */
    const lasting = (path: string, { directory }: Registered): string => {
      const [, fd, name] = belowDescriptor.exec(path) ?? []
      if (fd === undefined) return path
      if (directory >= 0 && dup3(Number(fd), directory, O_CLOEXEC) >= 0) return `/proc/self/fd/${directory}/${name}`
      try {
        return `${readlinkSync(`/proc/self/fd/${fd}`)}/${name}`
      } catch {
        return path
      }
    }
    return (path) => {
      const registered = take()
      if (registered === undefined) return () => {}
      const { directory, memory } = registered
      const bytes = new TextEncoder().encode(`${lasting(path, registered)}\0`)
      if (bytes.byteLength <= PATH_MAX) memcpy(memory, bytes, bytes.byteLength)
      return () => {
        memcpy(memory, new Uint8Array(1), 1)
        if (directory >= 0) dup3(nothing, directory, O_CLOEXEC)
        unused.push(registered)
      }
    }
  })

// uapi/asm-generic/fcntl.h and uapi/linux/fcntl.h
const O_CLOEXEC = 0x8_0000
const F_DUPFD_CLOEXEC = 1030

/** For descriptors that no file of a path is behind: `keep` gives another number for one, which ends with a worker, `close` takes it. */
export const descriptors = (
  declare: Native["declare"]
): Effect.Effect<
  { readonly keep: (fd: number) => number; readonly close: (fd: number) => void },
  PlatformNotSupported
> =>
  Effect.gen(function*() {
    const close = yield* declare("close", "int", ["int"])
    if (isMainThread) return { keep: (fd) => fd, close }
    const dup3 = yield* declare("dup3", "int", ["int", "int", "int"])
    const kept = new Set<number>()
    return {
      keep: (fd) => {
        if (fd < 0) return fd
        try {
          // A number that Node closes, for something else.
          const number = openSync("/dev/null", "r")
          dup3(fd, number, O_CLOEXEC)
          close(fd)
          kept.add(number)
          return number
        } catch {
          // No number is left: it stays until the process ends, if the thread is terminated.
          return fd
        }
      },
      close: (fd) => kept.delete(fd) ? closeSync(fd) : void close(fd)
    }
  })

/** A descriptor that names a directory and opens nothing; one is enough for a thread. */
let placeholder: number | undefined

/** A call that a thread of the pool makes; `done` runs when the kernel has answered, before anything else can. */
type OffThread = (
  fn: CFunction,
  args: ReadonlyArray<Argument>,
  hooks: { readonly done: (result: number) => void }
) => Effect.Effect<number>

/** `kernel` as it is for the main thread; for a worker, one whose files end with it. */
export const endingWithThread = (
  kernel: Kernel,
  declare: Native["declare"],
  gate: Effect.Semaphore,
  offThread: OffThread
): Effect.Effect<Kernel, PlatformNotSupported> =>
  isMainThread ? Effect.succeed(kernel) : Effect.gen(function*() {
    const dup3 = yield* declare("dup3", "int", ["int", "int", "int"])
    const nothing = yield* Effect.try({
      try: () => placeholder ??= openSync("/", kernel.flags.O_PATH),
      catch: (error) =>
        new PlatformNotSupported({
          platform: process.platform,
          arch: process.arch,
          reason: `this thread gets no descriptor: ${String(error)}`
        })
    })

    const atEnd = yield* unlinkAtEnd(declare, nothing)

    type Answered = (error: NodeJS.ErrnoException | null, fd?: number) => void
    const throughNode = (call: (answered: Answered) => void): Effect.Effect<number> =>
      gate.withPermits(1)(Effect.uninterruptible(Effect.async<number>((resume) =>
        call((error, fd) =>
          resume(Effect.succeed(error === null ? fd ?? 0 : error.errno ?? -errnos.EIO))
        )
      )))

    const create = (path: string, flags: number): Effect.Effect<number> =>
      !isFaithful(path) ? Effect.succeed(-errnos.ENOENT) : throughNode((answered) => {
        linkedFiles.add(path, atEnd(path))
        open(path, flags | constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600, (error, fd) => {
          if (error !== null) {
            linkedFiles.forget(path)
          }
          answered(error, fd)
        })
      })

    const createAnew = (
      prefix: string,
      flags: number,
      into: { value?: string },
      tries: number
    ): Effect.Effect<number> => {
      const path = `${prefix}${randomName()}`
      return Effect.flatMap(create(path, flags), (fd) => {
        if (fd === -errnos.EEXIST && tries > 1) {
          return createAnew(prefix, flags, into, tries - 1)
        }
        into.value = path
        return Effect.succeed(fd)
      })
    }

    return {
      ...kernel,
      mkostemp: (prefix, flags, path) =>
        Effect.suspend(() => {
          const absolute = linkedFiles.absolute(prefix)
          return absolute === undefined
            ? Effect.succeed(-errnos.ENOENT)
            : createAnew(absolute, flags, path, maxNames)
        }),
      open: (path, flags) =>
        !isFaithful(path)
          ? Effect.succeed(-errnos.ENOENT)
          : throughNode((answered) =>
            open(path, flags, 0o600, answered)
          ),
      // Its file is closed off-thread, by putting nothing in its place (what close(2) would tell is lost); the number, which stays Node's
      // until then, after that.
      close: (fd) =>
        Effect.flatMap(kernel.fcntlGetFlags(fd), (flags) =>
          flags < 0
            ? Effect.succeed(flags)
            : Effect.flatMap(
              offThread(dup3, [nothing, fd, O_CLOEXEC], { done: (result) => void (result < 0 || closeSync(fd)) }),
              // A limit that was lowered below the number, for one.
              (result) => result < 0 ? throughNode((answered) => close(fd, answered)) : Effect.succeed(0)
            ))
    }
  })
