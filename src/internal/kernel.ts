/**
 * The seam under `Syscalls`: a kernel answers every call with a number, as Linux does (≥ 0, or −errno), and never fails.
 * `fromKernel` makes the service of it, so that the retries and the errors are the same code over the real kernel and over the
 * simulated one.
 */
import * as Effect from "effect/Effect"
import { errnos, SyscallError, TypeId } from "../Syscalls.js"
import type { CacheStat, FiemapExtent, OpenFlags, Statfs, Statx, SyscallName, Syscalls } from "../Syscalls.js"

/** What a call fills in, as C does through a pointer. */
export type Out<A> = { value?: A }

export interface Kernel {
  readonly flags: OpenFlags
  readonly pageSize: number
  readonly mkdir: (path: string, mode: number) => Effect.Effect<number>
  readonly mkostemp: (prefix: string, flags: number, path: Out<string>) => Effect.Effect<number>
  readonly open: (path: string, flags: number) => Effect.Effect<number>
  readonly fcntlGetFlags: (fd: number) => Effect.Effect<number>
  readonly fcntlSetFlags: (fd: number, flags: number) => Effect.Effect<number>
  readonly fcntlSetLock: (fd: number) => Effect.Effect<number>
  readonly ioctlGetFlags: (fd: number, flags: Out<number>) => Effect.Effect<number>
  readonly ioctlSetFlags: (fd: number, flags: number) => Effect.Effect<number>
  readonly fallocate: (fd: number, mode: number, offset: number, length: number) => Effect.Effect<number>
  readonly ftruncate: (fd: number, length: number) => Effect.Effect<number>
  readonly pread: (fd: number, into: Uint8Array, offset: number) => Effect.Effect<number>
  readonly pwrite: (fd: number, from: Uint8Array, offset: number) => Effect.Effect<number>
  readonly fdatasync: (fd: number) => Effect.Effect<number>
  readonly statx: (fd: number, out: Out<Statx>, path?: string) => Effect.Effect<number>
  readonly fstatfs: (fd: number, out: Out<Statfs>) => Effect.Effect<number>
  readonly unlink: (path: string) => Effect.Effect<number>
  readonly rename: (from: string, to: string) => Effect.Effect<number>
  readonly readdir: (path: string, names: Out<ReadonlyArray<string>>) => Effect.Effect<number>
  readonly readlink: (path: string, target: Out<string>) => Effect.Effect<number>
  readonly geteuid: Effect.Effect<number>
  readonly close: (fd: number) => Effect.Effect<number>
  readonly fgetxattr: (fd: number, name: string, into: Uint8Array) => Effect.Effect<number>
  readonly fsetxattr: (fd: number, name: string, value: Uint8Array) => Effect.Effect<number>
  readonly fadvise: (fd: number, offset: number, length: number, advice: number) => Effect.Effect<number>
  readonly cachestat: (fd: number, offset: number, length: number, out: Out<CacheStat>) => Effect.Effect<number>
  readonly fiemap: (
    fd: number,
    offset: number,
    length: number,
    out: Out<ReadonlyArray<FiemapExtent>>
  ) => Effect.Effect<number>
  readonly ficlone: (fd: number, source: number) => Effect.Effect<number>
  readonly mmap: (fd: number, offset: number, length: number, populate: boolean) => Effect.Effect<number>
  readonly mincore: (address: number, length: number, resident: Out<number>) => Effect.Effect<number>
  readonly munmap: (address: number, length: number) => Effect.Effect<number>
  readonly dlopen: (library: string) => Effect.Effect<number>
}

/** Bound on retries of one call after EINTR; a signal storm that long is an answer too. */
const maxRetries = 100

/**
 * Names of the errnos from 1 on, in order (`uapi/asm-generic/errno-base.h` and `errno.h`, which x86-64 and arm64 share); `-` is an unused
 * number. The aliases EWOULDBLOCK, EDEADLOCK and ENOTSUP are left out.
 */
const names = `EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY
  EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM
  ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP - ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG
  EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT - EBFONT ENOSTR ENODATA ETIME ENOSR ENONET ENOPKG
  EREMOTE ENOLINK EADV ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD EREMCHG ELIBACC ELIBBAD
  ELIBSCN ELIBMAX ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT
  EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH
  ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN
  EHOSTUNREACH EALREADY EINPROGRESS ESTALE EUCLEAN ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE
  ECANCELED ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON`.split(/\s+/)

export const errnoCode = (errno: number): string => {
  const name = names[errno - 1]
  return name === undefined || name === "-" ? `E${errno}` : name
}

type Target = { readonly path?: string; readonly fd?: number }

const failure = (syscall: SyscallName, errno: number, target: Target) =>
  new SyscallError({ syscall, errno, code: errnoCode(errno), ...target })

/** One call: again after EINTR, a typed failure after any other error, the number otherwise. */
const call = (
  syscall: SyscallName,
  target: Target,
  attempt: Effect.Effect<number>,
  retries = maxRetries
): Effect.Effect<number, SyscallError> =>
  Effect.flatMap(attempt, (result) => {
    if (result >= 0) return Effect.succeed(result)
    if (result === -errnos.EINTR && retries > 0) return call(syscall, target, attempt, retries - 1)
    return Effect.fail(failure(syscall, -result, target))
  })

/** The same for a call with an out-parameter. A kernel that succeeds and fills nothing is a broken one: a defect. */
const callOut = <A>(
  syscall: SyscallName,
  target: Target,
  attempt: (out: Out<A>) => Effect.Effect<number>
): Effect.Effect<{ readonly result: number; readonly value: A }, SyscallError> =>
  Effect.suspend(() => {
    const out: Out<A> = {}
    return Effect.flatMap(call(syscall, target, attempt(out)), (result) =>
      out.value === undefined
        ? Effect.dieMessage(`${syscall} succeeded and filled nothing in`)
        : Effect.succeed({ result, value: out.value }))
  })

export const fromKernel = (kernel: Kernel): Syscalls => ({
  [TypeId]: TypeId,
  flags: kernel.flags,
  pageSize: kernel.pageSize,
  mkdir: (path, mode) => Effect.asVoid(call("mkdir", { path }, kernel.mkdir(path, mode))),
  mkostemp: (prefix, flags) =>
    Effect.map(
      callOut<string>("mkostemp", { path: `${prefix}XXXXXX` }, (path) => kernel.mkostemp(prefix, flags, path)),
      ({ result, value }) => ({ fd: result, path: value })
    ),
  open: (path, flags) => call("open", { path }, kernel.open(path, flags)),
  fcntlGetFlags: (fd) => call("fcntlGetFlags", { fd }, kernel.fcntlGetFlags(fd)),
  fcntlSetFlags: (fd, flags) => Effect.asVoid(call("fcntlSetFlags", { fd }, kernel.fcntlSetFlags(fd, flags))),
  fcntlSetLock: (fd) => Effect.asVoid(call("fcntlSetLock", { fd }, kernel.fcntlSetLock(fd))),
  ioctlGetFlags: (fd) =>
    Effect.map(
      callOut<number>("ioctlGetFlags", { fd }, (flags) => kernel.ioctlGetFlags(fd, flags)),
      (out) => out.value
    ),
  ioctlSetFlags: (fd, flags) => Effect.asVoid(call("ioctlSetFlags", { fd }, kernel.ioctlSetFlags(fd, flags))),
  fallocate: (fd, mode, offset, length) =>
    Effect.asVoid(call("fallocate", { fd }, kernel.fallocate(fd, mode, offset, length))),
  ftruncate: (fd, length) => Effect.asVoid(call("ftruncate", { fd }, kernel.ftruncate(fd, length))),
  pread: (fd, into, offset) => call("pread", { fd }, kernel.pread(fd, into, offset)),
  pwrite: (fd, from, offset) => call("pwrite", { fd }, kernel.pwrite(fd, from, offset)),
  fdatasync: (fd) => Effect.asVoid(call("fdatasync", { fd }, kernel.fdatasync(fd))),
  statx: (fd, path) =>
    Effect.map(
      callOut<Statx>("statx", path === undefined ? { fd } : { fd, path }, (out) => kernel.statx(fd, out, path)),
      (out) => out.value
    ),
  fstatfs: (fd) => Effect.map(callOut<Statfs>("fstatfs", { fd }, (out) => kernel.fstatfs(fd, out)), (out) => out.value),
  unlink: (path) => Effect.asVoid(call("unlink", { path }, kernel.unlink(path))),
  rename: (from, to) => Effect.asVoid(call("rename", { path: from }, kernel.rename(from, to))),
  readdir: (path) =>
    Effect.map(
      callOut<ReadonlyArray<string>>("readdir", { path }, (names) => kernel.readdir(path, names)),
      (out) => out.value
    ),
  readlink: (path) =>
    Effect.map(
      callOut<string>("readlink", { path }, (target) => kernel.readlink(path, target)),
      (out) => out.value
    ),
  geteuid: kernel.geteuid,
  close: (fd) => Effect.asVoid(call("close", { fd }, kernel.close(fd), 0)),
  fgetxattr: (fd, name, into) => call("fgetxattr", { fd }, kernel.fgetxattr(fd, name, into)),
  fsetxattr: (fd, name, value) => Effect.asVoid(call("fsetxattr", { fd }, kernel.fsetxattr(fd, name, value))),
  fadvise: (fd, offset, length, advice) =>
    Effect.asVoid(call("fadvise", { fd }, kernel.fadvise(fd, offset, length, advice))),
  cachestat: (fd, offset, length) =>
    Effect.map(
      callOut<CacheStat>("cachestat", { fd }, (out) => kernel.cachestat(fd, offset, length, out)),
      (out) => out.value
    ),
  fiemap: (fd, offset, length) =>
    Effect.map(
      callOut<ReadonlyArray<FiemapExtent>>("fiemap", { fd }, (out) => kernel.fiemap(fd, offset, length, out)),
      (out) => out.value
    ),
  ficlone: (fd, source) => Effect.asVoid(call("ficlone", { fd }, kernel.ficlone(fd, source))),
  mmap: (fd, offset, length, populate) => call("mmap", { fd }, kernel.mmap(fd, offset, length, populate)),
  mincore: (address, length) =>
    Effect.map(
      callOut<number>("mincore", {}, (resident) => kernel.mincore(address, length, resident)),
      (out) => out.value
    ),
  munmap: (address, length) => Effect.asVoid(call("munmap", {}, kernel.munmap(address, length))),
  dlopen: (library) => Effect.asVoid(call("dlopen", { path: library }, kernel.dlopen(library)))
})
