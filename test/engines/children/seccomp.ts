/** A filter that makes system calls of this process, all of its threads and what they start fail with an errno. */
import koffi from "koffi"

const PR_SET_NO_NEW_PRIVS = 38
const SECCOMP_SET_MODE_FILTER = 1
const SECCOMP_FILTER_FLAG_TSYNC = 1
const SECCOMP_RET_ERRNO = 0x0005_0000
const SECCOMP_RET_ALLOW = 0x7fff_0000
const BPF_LD_W_ABS = 0x20
const BPF_JEQ_K = 0x15
const BPF_RET_K = 0x06

const x64 = {
  seccomp: 317,
  io_setup: 206,
  io_submit: 209,
  eventfd2: 290,
  memfd_create: 319,
  io_uring_setup: 425,
  io_uring_enter: 426,
  io_uring_register: 427,
  statx: 332,
  cachestat: 451,
  fallocate: 285,
  ftruncate: 77,
  pread64: 17,
  pwrite64: 18,
  fdatasync: 75,
  fstatfs: 138,
  mkdir: 83,
  readlink: 89,
  getdents64: 217,
  unlink: 87,
  rename: 82,
  fadvise64: 221,
  mincore: 27,
  fcntl: 72,
  ioctl: 16
}
const arm64: typeof x64 = {
  ...x64,
  seccomp: 277,
  io_setup: 0,
  io_submit: 2,
  eventfd2: 19,
  memfd_create: 279,
  statx: 291,
  fallocate: 47,
  ftruncate: 46,
  pread64: 67,
  pwrite64: 68,
  fdatasync: 83,
  fstatfs: 44,
  // Of a directory's descriptor, as all of these are there.
  mkdir: 34,
  readlink: 78,
  getdents64: 61,
  unlink: 35,
  rename: 38,
  fadvise64: 223,
  mincore: 232,
  fcntl: 25,
  ioctl: 29
}
const numbers = process.arch === "arm64" ? arm64 : x64

export type Refusable = Exclude<keyof typeof x64, "seccomp">

export const isRefusable = (name: string): name is Refusable => name !== "seccomp" && Object.hasOwn(x64, name)

/** A call, or one with this second argument (the command of fcntl and ioctl). */
export type Refused = Refusable | readonly [name: Refusable, second: number]

/** Of struct seccomp_data: the lower half of the second argument. */
const secondArgument = 24

const libc = koffi.load(null)
const prctl = libc.func("prctl", "int", ["int", "ulong", "ulong", "ulong", "ulong"])
const syscall = libc.func("syscall", "long", ["long", "uint", "uint", "void *"])

export const refuse = (names: ReadonlyArray<Refused>, errno: number): void => {
  // struct sock_filter: code (16), jt (8), jf (8), k (32).
  const instructions = [
    [BPF_LD_W_ABS, 0, 0, 0] as const,
    ...names.flatMap((refused) =>
      typeof refused === "string"
        ? [
          [BPF_JEQ_K, 0, 1, numbers[refused]] as const,
          [BPF_RET_K, 0, 0, SECCOMP_RET_ERRNO | errno] as const
        ]
        : [
          [BPF_JEQ_K, 0, 4, numbers[refused[0]]] as const,
          [BPF_LD_W_ABS, 0, 0, secondArgument] as const,
          [BPF_JEQ_K, 0, 1, refused[1]] as const,
          [BPF_RET_K, 0, 0, SECCOMP_RET_ERRNO | errno] as const,
          [BPF_LD_W_ABS, 0, 0, 0] as const
        ]
    ),
    [BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW] as const
  ]
  const filter = Buffer.alloc(instructions.length * 8)
  instructions.forEach(([code, yes, no, k], index) => {
    filter.writeUInt16LE(code, index * 8)
    filter.writeUInt8(yes, index * 8 + 2)
    filter.writeUInt8(no, index * 8 + 3)
    filter.writeUInt32LE(k, index * 8 + 4)
  })
  // struct sock_fprog: len (16), padding, filter (64).
  const program = Buffer.alloc(16)
  program.writeUInt16LE(instructions.length, 0)
  program.writeBigUInt64LE(BigInt(koffi.address(filter)), 8)
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) !== 0) throw new Error(`prctl failed: errno ${koffi.errno()}`)
  const installed: unknown = syscall(numbers.seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, program)
  if (installed !== 0) throw new Error(`seccomp failed: errno ${koffi.errno()}`)
}
