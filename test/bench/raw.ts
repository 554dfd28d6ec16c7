/**
 * What a storage costs without this package: the same system calls in the same order, written by hand over koffi, as plain
 * calls on the main thread and through koffi's `.async`.
 */
import koffi from "koffi"
import { constants } from "node:fs"
import { join } from "node:path"

type Argument = number | string | Uint8Array

interface CFunction {
  (...args: ReadonlyArray<Argument>): number
  async(...args: ReadonlyArray<Argument | ((error: unknown, result: number) => void)>): void
}

const libc = koffi.load(null)
const declare = (name: string, args: Array<string>): CFunction => libc.func(name, "int", args)

const mkostemp = declare("mkostemp", ["void *", "int"])
const fstatfs = declare("fstatfs", ["int", "void *"])
const fcntl = declare("fcntl", ["int", "int", "long"])
const statx = declare("statx", ["int", "str", "int", "unsigned int", "void *"])
const fallocate = declare("fallocate", ["int", "int", "int64_t", "int64_t"])
const unlink = declare("unlink", ["str"])
const close = declare("close", ["int"])

// uapi/asm-generic/fcntl.h, uapi/linux/stat.h, asm-generic/errno-base.h
const O_CLOEXEC = 0x8_0000
const F_GETFL = 3
const F_SETFL = 4
const AT_EMPTY_PATH = 0x1000
const STATX_BASIC_STATS = 0x7ff
const STATX_DIOALIGN = 0x2000

type Call = readonly [fn: CFunction, ...args: Array<Argument>]

/** The acquisition and release of a file of `size` bytes, each call yielded to whoever makes it; errors are −errno. */
function* calls(directory: string, size: number): Generator<Call, void, number> {
  const must = (result: number, what: string) => {
    if (result < 0) throw new Error(`${what} failed with errno ${-result}`)
    return result
  }
  const template = new TextEncoder().encode(`${join(directory, "raw-")}XXXXXX\0`)
  const fd = must(yield [mkostemp, template, O_CLOEXEC], "mkostemp")
  try {
    must(yield [fstatfs, fd, new Uint8Array(120)], "fstatfs")
    const flags = must(yield [fcntl, fd, F_GETFL, 0], "fcntl")
    must(yield [fcntl, fd, F_SETFL, flags | constants.O_DIRECT], "fcntl")
    const direct = must(yield [fcntl, fd, F_GETFL, 0], "fcntl") & constants.O_DIRECT
    if (direct === 0) throw new Error("O_DIRECT was not taken")
    must(yield [statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_DIOALIGN, new Uint8Array(256)], "statx")
    must(yield [fallocate, fd, 0, 0, size], "fallocate")
  } finally {
    const unlinked = yield [unlink, new TextDecoder().decode(template.subarray(0, -1))]
    const closed = yield [close, fd]
    must(unlinked, "unlink")
    must(closed, "close")
  }
}

/** On the main thread, one call after the other. */
export const synchronous = (directory: string, size: number): void => {
  const sequence = calls(directory, size)
  for (let step = sequence.next(); step.done !== true;) {
    const [fn, ...args] = step.value
    const result = fn(...args)
    step = sequence.next(result < 0 ? -koffi.errno() : result)
  }
}

/** On libuv's pool, all of them. */
export const asynchronous = async (directory: string, size: number): Promise<void> => {
  const sequence = calls(directory, size)
  for (let step = sequence.next(); step.done !== true;) {
    const [fn, ...args] = step.value
    const result = await new Promise<number>((resolve, reject) =>
      fn.async(...args, (error, result) => {
        if (error !== null) reject(error)
        else resolve(result < 0 ? -koffi.errno() : result)
      })
    )
    step = sequence.next(result)
  }
}
