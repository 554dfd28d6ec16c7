/** `cachestat(2)`: what of a file is in the page cache, which tells buffered I/O from direct I/O. */
import * as Effect from "effect/Effect"

/** The same number on x86-64 and arm64 (`uapi/asm-generic/unistd.h`). */
const SYS_cachestat = 451

const ENOSYS = 38

/** `syscall(2)` with the arguments of cachestat. */
type Call = (number: number, fd: number, range: Uint8Array, result: Uint8Array, flags: number) => number

const load = Effect.promise(async () => {
  const { default: koffi } = await import("koffi")
  const call: Call = koffi.load(null).func("syscall", "long", [
    "long",
    "unsigned int",
    "void *",
    "void *",
    "unsigned int"
  ])
  return { call, errno: () => koffi.errno() }
})

/** Pages of `length` bytes from `offset` on that are cached; `undefined` where the kernel is older than the call (6.5). */
export const cachedPages = (fd: number, offset: number, length: number): Effect.Effect<number | undefined> =>
  Effect.map(load, ({ call, errno }) => {
    const range = new Uint8Array(BigUint64Array.of(BigInt(offset), BigInt(length)).buffer)
    // cached, dirty, under writeback, evicted, recently evicted
    const result = new BigUint64Array(5)
    if (call(SYS_cachestat, fd, range, new Uint8Array(result.buffer), 0) === 0) return Number(result[0])
    if (errno() === ENOSYS) return undefined
    throw new Error(`cachestat failed with errno ${errno()}`)
  })
