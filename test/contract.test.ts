/** The simulated kernel answers every call as the real one does on the filesystem that it plays: the same script over both. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { readdirSync, statSync, symlinkSync } from "node:fs"
import { join } from "node:path"
import * as AlignedBuffer from "../src/AlignedBuffer.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import type { SyscallError, Syscalls as Kernel } from "../src/Syscalls.js"
import { FS_NOCOW_FL, Syscalls } from "../src/Syscalls.js"
import type { Kind } from "./filesystems/mounts.js"
import { describeReal, freshPath } from "./filesystems/real.js"

/** A number that no process here has open. */
const noFd = 999_983
const huge = 17 * 1024 ** 4

/** Symbolic links that are there before. */
const links = [["link", "sub"], ["loop", "loop"]] as const

/** Makes calls below `directory` (which is there and has `links` alone) and writes down what each answered. */
const script = (directory: string) =>
  Effect.gen(function*() {
    const kernel = yield* Syscalls
    const { O_CLOEXEC, O_DIRECT, O_NOFOLLOW, O_RDWR } = kernel.flags
    const answers: Array<string> = []
    const ask = <A>(what: string, call: Effect.Effect<A, SyscallError>, show: (answer: A) => unknown = () => "done") =>
      Effect.match(call, {
        onFailure: (error) => {
          answers.push(`${what}: ${error.syscall} failed with ${error.code} ${error.errno}`)
          return undefined
        },
        onSuccess: (answer) => {
          answers.push(`${what}: ${String(show(answer))}`)
          return answer
        }
      })
    const needed = <A>(answer: A | undefined): Effect.Effect<A> =>
      answer === undefined
        ? Effect.dieMessage(`the script cannot go on after ${answers.at(-1)}`)
        : Effect.succeed(answer)
    const length = (path: string) => path.length - directory.length
    const longName = "n".repeat(256)
    const longPath = `${directory}${"/d".repeat(2048)}`

    yield* ask("mkdir", kernel.mkdir(`${directory}/sub`, 0o700))
    yield* ask("mkdir again", kernel.mkdir(`${directory}/sub/`, 0o700))
    yield* ask("mkdir /", kernel.mkdir("/", 0o700))
    yield* ask("mkdir without parent", kernel.mkdir(`${directory}/none/sub`, 0o700))
    yield* ask("mkdir, long name", kernel.mkdir(`${directory}/${longName}`, 0o700))
    yield* ask("mkdir, long path", kernel.mkdir(longPath, 0o700))
    yield* ask("mkdir, empty path", kernel.mkdir("", 0o700))

    const { fd, path } = yield* needed(
      yield* ask("mkostemp", kernel.mkostemp(`${directory}/sub/file-`, O_CLOEXEC), (file) => length(file.path))
    )
    yield* ask("mkostemp without directory", kernel.mkostemp(`${directory}/none/file-`, O_CLOEXEC))
    yield* ask("mkostemp below a file", kernel.mkostemp(`${path}/file-`, O_CLOEXEC))
    yield* ask("mkostemp, long name", kernel.mkostemp(`${directory}/${longName}`, O_CLOEXEC))
    yield* ask("mkostemp, long path", kernel.mkostemp(longPath, O_CLOEXEC))
    yield* ask("mkdir on a file", kernel.mkdir(path, 0o700))
    yield* ask("mkdir below a file", kernel.mkdir(`${path}/sub`, 0o700))

    yield* ask("open nothing", kernel.open(`${directory}/none`, O_RDWR))
    yield* ask("open below nothing", kernel.open(`${directory}/none/none`, O_RDWR))
    yield* ask("open below a file", kernel.open(`${path}/none`, O_RDWR))
    yield* ask("open a directory", kernel.open(directory, O_RDWR))
    yield* ask("open, long name", kernel.open(`${directory}/${longName}`, O_RDWR))
    const readOnly = yield* needed(yield* ask("open to read", kernel.open(path, O_CLOEXEC)))
    const writeOnly = yield* needed(yield* ask("open to write", kernel.open(path, O_CLOEXEC | 1)))
    const bytes = new Uint8Array(8192)
    yield* ask("pread of a descriptor to write", kernel.pread(writeOnly, bytes, 0))
    yield* ask("pwrite to a descriptor to read", kernel.pwrite(readOnly, bytes, 0))
    yield* ask("close", kernel.close(readOnly))
    yield* ask("close", kernel.close(writeOnly))
    const direct = yield* ask("open with O_DIRECT", kernel.open(path, O_RDWR | O_DIRECT | O_NOFOLLOW | O_CLOEXEC))
    if (direct !== undefined) {
      yield* ask("its flags", kernel.fcntlGetFlags(direct), (flags) => (flags & O_DIRECT) !== 0)
      yield* ask("close", kernel.close(direct))
    }

    yield* ask("flags", kernel.fcntlGetFlags(fd), (flags) => [flags & 3, flags & O_DIRECT, flags & O_CLOEXEC])
    yield* ask("set O_DIRECT", kernel.fcntlSetFlags(fd, O_RDWR | O_DIRECT))
    yield* ask("flags", kernel.fcntlGetFlags(fd), (flags) => (flags & O_DIRECT) !== 0)
    yield* ask("clear O_DIRECT", kernel.fcntlSetFlags(fd, O_RDWR))
    yield* ask("flags", kernel.fcntlGetFlags(fd), (flags) => (flags & O_DIRECT) !== 0)
    const inodeFlags = yield* ask("inode flags", kernel.ioctlGetFlags(fd), (flags) => flags & FS_NOCOW_FL)
    yield* ask("set NOCOW", kernel.ioctlSetFlags(fd, (inodeFlags ?? 0) | FS_NOCOW_FL))
    if (inodeFlags !== undefined) yield* ask("inode flags", kernel.ioctlGetFlags(fd), (flags) => flags & FS_NOCOW_FL)

    const state = (what: string) =>
      ask(what, kernel.statx(fd), ({ allocated, links, size }) => [size, links, allocated > 0 ? "blocks" : "no blocks"])
    yield* state("statx of the empty file")
    yield* ask(
      "statx of direct I/O",
      kernel.statx(fd),
      ({ directIo }) => directIo === undefined ? "no answer" : [directIo.offsetAlignment]
    )
    yield* ask("fstatfs", kernel.fstatfs(fd), ({ blockSize, type }) => [type, blockSize])

    yield* ask("fallocate nothing", kernel.fallocate(fd, 0, 0, 0))
    yield* ask("fallocate below 0", kernel.fallocate(fd, 0, -4096, 4096))
    yield* ask("fallocate", kernel.fallocate(fd, 0, 0, 65_536))
    yield* state("statx after fallocate")
    yield* ask("ftruncate below 0", kernel.ftruncate(fd, -1))
    yield* ask("ftruncate", kernel.ftruncate(fd, 0))
    yield* state("statx after ftruncate to 0")
    yield* ask("ftruncate to much", kernel.ftruncate(fd, huge))
    yield* ask("ftruncate", kernel.ftruncate(fd, 10_000))
    yield* ask("statx", kernel.statx(fd), ({ size }) => size)

    const content = new Uint8Array(5000).map((_, index) => index % 251)
    yield* ask("pwrite", kernel.pwrite(fd, content, 100), (count) => count)
    yield* ask("pwrite nothing", kernel.pwrite(fd, content.subarray(0, 0), 100), (count) => count)
    yield* ask("pread", kernel.pread(fd, bytes, 0), (count) => count)
    answers.push(`what was read: ${Buffer.compare(bytes.subarray(100, 5100), content)} ${bytes[99]} ${bytes[5100]}`)
    yield* ask("pread at the end", kernel.pread(fd, bytes, 9000), (count) => count)
    yield* ask("pread behind the end", kernel.pread(fd, bytes, 10_000), (count) => count)
    yield* ask("pread below 0", kernel.pread(fd, bytes, -1))
    yield* ask("pwrite below 0", kernel.pwrite(fd, bytes, -1))
    yield* ask("pwrite behind the end", kernel.pwrite(fd, content.subarray(0, 10), 12_000), (count) => count)
    yield* ask("statx", kernel.statx(fd), ({ size }) => size)
    yield* ask("fdatasync", kernel.fdatasync(fd))

    const attribute = "user.eds-contract"
    yield* ask("fgetxattr of none", kernel.fgetxattr(fd, attribute, bytes))
    yield* ask("fsetxattr", kernel.fsetxattr(fd, attribute, Uint8Array.of(1, 2, 3)))
    yield* ask("fsetxattr again", kernel.fsetxattr(fd, attribute, Uint8Array.of(5, 6)))
    yield* ask("fgetxattr", kernel.fgetxattr(fd, attribute, bytes), (count) => [count, bytes[0], bytes[1]])
    yield* ask("fgetxattr of more than is wanted", kernel.fgetxattr(fd, attribute, bytes.subarray(0, 1)))

    yield* ask("set O_DIRECT", kernel.fcntlSetFlags(fd, O_RDWR | O_DIRECT))
    const aligned = (yield* AlignedBuffer.make(16_384)).bytes
    aligned.fill(7)
    const transfers: ReadonlyArray<readonly [string, Uint8Array, number]> = [
      ["aligned", aligned.subarray(0, 8192), 4096],
      ["at offset 1", aligned.subarray(0, 4096), 1],
      ["at offset 511", aligned.subarray(0, 4096), 511],
      ["of 1 byte", aligned.subarray(0, 1), 0],
      ["of 4097 bytes", aligned.subarray(0, 4097), 0],
      ["from address 1", aligned.subarray(1, 4097), 0],
      ["from address 4097", aligned.subarray(4097, 8193), 0]
    ]
    for (const [what, memory, offset] of transfers) {
      yield* ask(`pwrite ${what}`, kernel.pwrite(fd, memory, offset), (count) => count)
      yield* ask(`pread ${what}`, kernel.pread(fd, memory, offset), (count) => count)
    }
    yield* ask("clear O_DIRECT", kernel.fcntlSetFlags(fd, O_RDWR))

    const other = yield* needed(
      yield* ask("mkostemp", kernel.mkostemp(`${directory}/sub/other-`, O_CLOEXEC), (file) => length(file.path))
    )
    const renamed = `${directory}/renamed`
    yield* ask("rename nothing", kernel.rename(`${directory}/none`, renamed))
    yield* ask("rename nothing onto something", kernel.rename(`${directory}/none`, path))
    yield* ask("rename from no directory", kernel.rename(`${directory}/none/none`, renamed))
    yield* ask("rename to no directory", kernel.rename(path, `${directory}/none/none`))
    yield* ask("rename from below a file", kernel.rename(`${path}/none`, renamed))
    yield* ask("rename to below a file", kernel.rename(path, `${path}/none`))
    yield* ask("rename, empty path", kernel.rename("", renamed))
    yield* ask("rename to an empty path", kernel.rename(path, ""))
    yield* ask("rename, long name", kernel.rename(path, `${directory}/${longName}`))
    yield* ask("rename, long path", kernel.rename(path, longPath))
    yield* ask("rename /", kernel.rename("/", "/"))
    yield* ask("rename a file with a slash", kernel.rename(path, `${renamed}/`))
    yield* ask("rename a file onto a directory", kernel.rename(path, `${directory}/sub`))
    yield* ask("rename a directory onto a file", kernel.rename(`${directory}/sub`, path))
    yield* ask("rename a directory into itself", kernel.rename(`${directory}/sub`, `${directory}/sub/sub`))
    yield* ask("rename onto itself", kernel.rename(path, path))
    yield* ask("mkdir", kernel.mkdir(`${directory}/empty`, 0o700))
    yield* ask("rename a file onto an empty directory", kernel.rename(path, `${directory}/empty`))
    yield* ask("rename an empty directory onto a file", kernel.rename(`${directory}/empty`, path))
    yield* ask("rename a directory onto one with files", kernel.rename(`${directory}/empty`, `${directory}/sub`))
    yield* ask("rename a directory", kernel.rename(`${directory}/sub`, `${directory}/moved`))
    yield* ask("and back, onto an empty one", kernel.rename(`${directory}/moved`, `${directory}/empty/`))
    yield* ask("and back", kernel.rename(`${directory}/empty`, `${directory}/sub`))
    yield* ask("rename", kernel.rename(other.path, renamed))
    yield* ask("rename what is renamed", kernel.rename(other.path, renamed))
    yield* ask("rename onto another file", kernel.rename(renamed, path))
    yield* ask("statx of what is replaced", kernel.statx(fd), ({ links, mode }) => [links, mode.toString(8)])
    yield* ask("pread what is replaced", kernel.pread(fd, bytes, 0), (count) => count)
    yield* ask("statx of what has replaced it", kernel.statx(other.fd), ({ links, size }) => [links, size])
    yield* ask("close", kernel.close(other.fd))
    const held = yield* ask("open a directory to look", kernel.open(directory, kernel.flags.O_PATH | O_NOFOLLOW))
    if (held !== undefined) {
      yield* ask("its mode", kernel.statx(held), ({ mode }) => mode.toString(8))
      yield* ask("close", kernel.close(held))
    }

    const byLink = yield* ask(
      "open through a link",
      kernel.open(`${directory}/link/${path.slice(path.lastIndexOf("/"))}`, O_RDWR)
    )
    const again = yield* ask("open", kernel.open(path, O_RDWR | O_NOFOLLOW))
    const toLook = yield* ask("open to look", kernel.open(path, kernel.flags.O_PATH | O_NOFOLLOW))
    if (byLink !== undefined && again !== undefined && toLook !== undefined) {
      yield* ask("lock", kernel.fcntlSetLock(byLink))
      yield* ask("lock again", kernel.fcntlSetLock(byLink))
      yield* ask("lock what is locked", kernel.fcntlSetLock(again))
      yield* ask("lock what is locked", kernel.fcntlSetLock(fd))
      yield* ask("lock what is only looked at", kernel.fcntlSetLock(toLook))
      yield* ask("close", kernel.close(toLook))
      yield* ask("close", kernel.close(byLink))
      yield* ask("lock what is free", kernel.fcntlSetLock(again))
      yield* ask("lock what is locked", kernel.fcntlSetLock(fd))
      yield* ask("close", kernel.close(again))
      yield* ask("lock what is free", kernel.fcntlSetLock(fd))
    }
    yield* ask("readlink", kernel.readlink(`${directory}/link`), (target) => target)
    yield* ask("readlink with a slash", kernel.readlink(`${directory}/link/`))
    yield* ask("readlink of a loop", kernel.readlink(`${directory}/loop`), (target) => target)
    yield* ask("readlink below a loop", kernel.readlink(`${directory}/loop/none`))
    yield* ask("readlink of a file", kernel.readlink(path))
    yield* ask("readlink of a directory", kernel.readlink(directory))
    yield* ask("readlink of nothing", kernel.readlink(`${directory}/none`))
    yield* ask("readlink, empty path", kernel.readlink(""))
    yield* ask("open a link without following", kernel.open(`${directory}/link`, O_NOFOLLOW))
    yield* ask("open a loop", kernel.open(`${directory}/loop`, O_RDWR))
    const link = yield* ask("open a link to look", kernel.open(`${directory}/link`, kernel.flags.O_PATH | O_NOFOLLOW))
    if (link !== undefined) {
      yield* ask("its mode", kernel.statx(link), ({ mode }) => mode.toString(8))
      yield* ask("close", kernel.close(link))
    }
    const named = (names: ReadonlyArray<string>) => [...names].sort().map((name) => name.replace(/-.{6}$/, "-"))
    yield* ask("readdir", kernel.readdir(directory), named)
    yield* ask("readdir below", kernel.readdir(`${directory}/sub/`), named)
    yield* ask("readdir through a link", kernel.readdir(`${directory}/link`), named)
    yield* ask("readdir of a file", kernel.readdir(path))
    yield* ask("readdir of nothing", kernel.readdir(`${directory}/none`))
    yield* ask("readdir below a file", kernel.readdir(`${path}/none`))
    yield* ask("readdir of a loop", kernel.readdir(`${directory}/loop`))
    yield* ask("readdir, empty path", kernel.readdir(""))
    yield* ask("unlink a directory", kernel.unlink(directory))
    yield* ask("unlink nothing", kernel.unlink(`${directory}/none`))
    yield* ask("unlink below a file", kernel.unlink(`${path}/none`))
    yield* ask("unlink", kernel.unlink(path))
    yield* ask("unlink again", kernel.unlink(path))
    yield* ask("open what is unlinked", kernel.open(path, O_RDWR))
    yield* ask("statx of what is unlinked", kernel.statx(fd), ({ links }) => links)
    yield* ask("fallocate what is unlinked", kernel.fallocate(fd, 0, 0, 65_536))
    yield* ask("pwrite what is unlinked", kernel.pwrite(fd, content, 0), (count) => count)
    yield* ask("pread what is unlinked", kernel.pread(fd, bytes.subarray(0, 5000), 0), (count) => count)
    answers.push(`what was read: ${Buffer.compare(bytes.subarray(0, 5000), content)}`)
    yield* ask("close", kernel.close(fd))

    yield* ask("fcntl of no descriptor", kernel.fcntlGetFlags(noFd))
    yield* ask("fcntl of no descriptor", kernel.fcntlSetFlags(noFd, 0))
    yield* ask("lock of no descriptor", kernel.fcntlSetLock(noFd))
    yield* ask("ioctl of no descriptor", kernel.ioctlGetFlags(noFd))
    yield* ask("ioctl of no descriptor", kernel.ioctlSetFlags(noFd, 0))
    yield* ask("fallocate of no descriptor", kernel.fallocate(noFd, 0, 0, 4096))
    yield* ask("ftruncate of no descriptor", kernel.ftruncate(noFd, 0))
    yield* ask("pread of no descriptor", kernel.pread(noFd, bytes, 0))
    yield* ask("pwrite of no descriptor", kernel.pwrite(noFd, bytes, 0))
    yield* ask("fdatasync of no descriptor", kernel.fdatasync(noFd))
    yield* ask("statx of no descriptor", kernel.statx(noFd))
    yield* ask("fstatfs of no descriptor", kernel.fstatfs(noFd))
    yield* ask("fgetxattr of no descriptor", kernel.fgetxattr(noFd, attribute, bytes))
    yield* ask("fsetxattr of no descriptor", kernel.fsetxattr(noFd, attribute, bytes))
    yield* ask("close of no descriptor", kernel.close(noFd))
    return answers
  })

/** A disk that fills up, below `directory`, which has about 64 MiB. */
const fillUp = (directory: string) =>
  Effect.gen(function*() {
    const kernel = yield* Syscalls
    const answers: Array<string> = []
    const { fd, path } = yield* kernel.mkostemp(`${directory}/file-`, kernel.flags.O_CLOEXEC)
    const fallocated = yield* Effect.flip(kernel.fallocate(fd, 0, 0, 128 * 1024 * 1024))
    answers.push(fallocated.code)
    if (fallocated.code === "ENOSPC") {
      const { allocated } = yield* kernel.statx(fd)
      answers.push(`and keeps ${allocated > 0 ? "blocks" : "no blocks"}`)
    }
    yield* kernel.ftruncate(fd, 0)
    const bytes = new Uint8Array(1024 * 1024).fill(1)
    let written = 0
    let full: string | undefined
    while (full === undefined) {
      const outcome = yield* Effect.either(kernel.pwrite(fd, bytes, written))
      if (outcome._tag === "Right") written += outcome.right
      else full = outcome.left.code
    }
    answers.push(full, `after ${written > 0 ? "some" : "no"} bytes`)
    yield* kernel.unlink(path)
    yield* kernel.close(fd)
    return answers
  })

const simulated = <A, E>(
  options: SimulatedSyscalls.SimulatedOptions,
  use: Effect.Effect<A, E, Kernel | SimulatedSyscalls.SimulatedKernel>
) => Effect.provide(use, SimulatedSyscalls.layer(options))

const played: ReadonlyArray<readonly [Kind, SimulatedSyscalls.Profile]> = [
  ["ext4", "ext4"],
  ["ext2 on 4096-byte sectors", "ext2"],
  ["btrfs", "btrfs"],
  ["btrfs with data as dup", "btrfsMirrored"],
  ["tmpfs", "tmpfs"],
  ["ramfs", "ramfs"],
  ["ext4 with data=journal", "dataJournal"]
]

for (const [kind, profile] of played) {
  describeReal(kind, { name: "the contract" }, (it) => {
    it.effect("holds call by call, errno by errno", () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        const kernel = yield* Syscalls
        yield* kernel.mkdir(directory, 0o700)
        for (const [name, target] of links) symlinkSync(target, join(directory, name))
        const real = yield* script(directory)
        const played = yield* simulated({
          profile,
          directories: [{ path: "/cache", mode: 0o700 }],
          links: links.map(([name, target]) => ({ path: `/cache/${name}`, target }))
        }, script("/cache"))
        assert.deepStrictEqual(played, real)
      }))
  })
}

for (const [kind, profile] of [["small ext4", "ext4"], ["small ext2", "ext2"]] as const) {
  describeReal(kind, { name: "the contract of a full disk" }, (it) => {
    it.effect("holds", () =>
      Effect.gen(function*() {
        const directory = yield* freshPath
        yield* Effect.flatMap(Syscalls, (kernel) => kernel.mkdir(directory, 0o700))
        const real = yield* fillUp(directory)
        const played = yield* simulated(
          { profile, directories: ["/cache"], capacity: 64 * 1024 * 1024 },
          fillUp("/cache")
        )
        assert.deepStrictEqual(played, real)
      }))
  })
}

describeReal("ramfs", { name: "O_DIRECT at creation" }, (it) => {
  it.effect("is refused, and the file is left behind, on both kernels", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls
      const directory = yield* freshPath
      yield* kernel.mkdir(directory, 0o700)
      const real = yield* Effect.flip(kernel.mkostemp(`${directory}/file-`, kernel.flags.O_DIRECT))
      assert.strictEqual(real.code, "EINVAL")
      assert.strictEqual(readdirSync(directory).length, 1)
      const played = yield* simulated(
        { profile: "ramfs" },
        Effect.gen(function*() {
          const kernel = yield* Syscalls
          const control = yield* SimulatedSyscalls.SimulatedKernel
          const failure = yield* Effect.flip(kernel.mkostemp("/tmp/file-", kernel.flags.O_DIRECT))
          return [failure.code, (yield* control.leaks).files.length]
        })
      )
      assert.deepStrictEqual(played, ["EINVAL", 1])
    }))
})

describeReal("ext4", { name: "the mode of what is made" }, (it) => {
  it.effect("is 0600 for files and 0700 for directories", () =>
    Effect.gen(function*() {
      const kernel = yield* Syscalls
      const directory = yield* freshPath
      yield* kernel.mkdir(directory, 0o700)
      const { fd, path } = yield* kernel.mkostemp(`${directory}/file-`, kernel.flags.O_CLOEXEC)
      assert.strictEqual(statSync(directory).mode & 0o777, 0o700)
      assert.strictEqual(statSync(path).mode & 0o777, 0o600)
      yield* kernel.close(fd)
    }))
})

describe("the simulated kernel", () => {
  it.effect("gives the lowest free number, and EMFILE above its quota", () =>
    simulated(
      { maxFds: 3 },
      Effect.gen(function*() {
        const kernel = yield* Syscalls
        const files = yield* Effect.replicateEffect(kernel.mkostemp("/tmp/file-", 0), 3)
        const fds = files.map((file) => file.fd)
        assert.strictEqual((yield* Effect.flip(kernel.mkostemp("/tmp/file-", 0))).code, "EMFILE")
        const [first, second] = fds
        if (first === undefined || second === undefined) return assert.fail("no descriptors")
        yield* kernel.close(second)
        yield* kernel.close(first)
        assert.strictEqual((yield* kernel.mkostemp("/tmp/file-", 0)).fd, first)
        assert.strictEqual((yield* kernel.mkostemp("/tmp/file-", 0)).fd, second)
      })
    ))

  it.effect("keeps an unlinked file until its last close", () =>
    simulated(
      {},
      Effect.gen(function*() {
        const kernel = yield* Syscalls
        const control = yield* SimulatedSyscalls.SimulatedKernel
        const { fd, path } = yield* kernel.mkostemp("/tmp/file-", 0)
        yield* kernel.fallocate(fd, 0, 0, 8192)
        const again = yield* kernel.open(path, kernel.flags.O_RDWR)
        yield* kernel.unlink(path)
        yield* kernel.close(fd)
        assert.deepStrictEqual(yield* control.leaks, { fds: [again], files: [], bytes: 8192, mappings: 0 })
        yield* kernel.close(again)
        assert.deepStrictEqual(yield* control.leaks, { fds: [], files: [], bytes: 0, mappings: 0 })
      })
    ))

  it.effect("needs new space to overwrite on btrfs, unless the file is NOCOW", () =>
    simulated(
      { profile: "btrfs", capacity: 8192 },
      Effect.gen(function*() {
        const kernel = yield* Syscalls
        const rewrite = (flags: number) =>
          Effect.gen(function*() {
            const { fd, path } = yield* kernel.mkostemp("/tmp/file-", 0)
            yield* kernel.ioctlSetFlags(fd, flags)
            yield* kernel.fallocate(fd, 0, 0, 8192)
            const outcome = yield* Effect.either(kernel.pwrite(fd, new Uint8Array(4096).fill(1), 0))
            yield* kernel.unlink(path)
            yield* kernel.close(fd)
            return outcome._tag === "Right" ? outcome.right : outcome.left.code
          })
        assert.strictEqual(yield* rewrite(0), "ENOSPC")
        assert.strictEqual(yield* rewrite(FS_NOCOW_FL), 4096)
      })
    ))

  it.effect("ignores F_SETFL as Storage Scale does, and takes O_DIRECT at open", () =>
    simulated(
      { profile: "storageScale" },
      Effect.gen(function*() {
        const kernel = yield* Syscalls
        const { O_DIRECT, O_RDWR } = kernel.flags
        const { fd, path } = yield* kernel.mkostemp("/tmp/file-", 0)
        yield* kernel.fcntlSetFlags(fd, O_DIRECT)
        assert.strictEqual((yield* kernel.fcntlGetFlags(fd)) & O_DIRECT, 0)
        const again = yield* kernel.open(path, O_RDWR | O_DIRECT)
        assert.strictEqual((yield* kernel.fcntlGetFlags(again)) & O_DIRECT, O_DIRECT)
      })
    ))

  it.effect("is as strict as lustre about address, offset and length", () =>
    simulated(
      { profile: "lustre" },
      Effect.gen(function*() {
        const kernel = yield* Syscalls
        const { fd } = yield* kernel.mkostemp("/tmp/file-", 0)
        yield* kernel.fcntlSetFlags(fd, kernel.flags.O_DIRECT)
        const { bytes } = yield* AlignedBuffer.make(8192)
        assert.strictEqual(yield* kernel.pwrite(fd, bytes.subarray(4096), 4096), 4096)
        const refused: ReadonlyArray<readonly [Uint8Array, number]> = [
          [bytes.subarray(0, 512), 0],
          [bytes.subarray(0, 4096), 512],
          [bytes.subarray(512, 4608), 0],
          [new Uint8Array(4096), 0]
        ]
        for (const [memory, offset] of refused) {
          assert.strictEqual((yield* Effect.flip(kernel.pwrite(fd, memory, offset))).code, "EINVAL")
          assert.strictEqual((yield* Effect.flip(kernel.pread(fd, memory, offset))).code, "EINVAL")
        }
      })
    ))
})
