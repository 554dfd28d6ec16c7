/** Every call of an acquire-use-release run fails once with every error that it can give, and is interrupted at every point. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { isDiskStorageError } from "../src/DiskStorageError.js"
import type * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import type { ErrnoCode, SyscallName } from "../src/Syscalls.js"
import { errnosBySyscall } from "../src/Syscalls.js"
import type { History, Policy } from "./support/simulation.js"
import { history, policies, policyName, profiles } from "./support/simulation.js"

const base = { size: 3 * 4096 + 567, directory: "/tmp/a/b/" }

/** Errors that the storage can live with, by what it does then. */
const tolerated = (syscall: SyscallName, code: ErrnoCode, policy: Policy, path?: string): boolean => {
  // A limit on memory that is not known restricts nothing.
  if (path?.startsWith("/proc/") === true) return true
  if (code === "EINTR") return syscall !== "close"
  const codes = (...some: ReadonlyArray<ErrnoCode>) => some.includes(code)
  switch (syscall) {
    case "mkostemp":
      return codes("ENOENT")
    case "mkdir":
      return codes("EEXIST", "ENOENT")
    case "fallocate":
      return codes("EOPNOTSUPP", "ENOSYS", "EPERM")
    case "ioctlGetFlags":
    case "ioctlSetFlags":
      return codes("EOPNOTSUPP", "ENOTTY", "EINVAL", "EPERM", "EACCES")
    case "unlink":
      return codes("ENOENT")
    // Nobody fails because a directory could not be swept.
    case "readdir":
      return true
    // A sweep was first, or is at it: another file is made.
    case "fcntlSetLock":
      return codes("EAGAIN", "EACCES", "EINVAL", "ENOLCK", "EOPNOTSUPP")
    case "open":
      if (code === "ENOENT") return true
      return policy.directIo === "preferred" && codes("EINVAL", "EOPNOTSUPP")
    // A directory that is looked at counts as missing.
    case "statx":
      return codes("ENOENT")
    case "fcntlSetFlags":
      return policy.directIo === "preferred" && codes("EINVAL", "EOPNOTSUPP", "EPERM")
    default:
      return false
  }
}

/** Of a name that is about to be removed, or of what it was the name of: the removal goes on without an answer. */
const isAboutName = (journal: History["journal"], call: number): boolean => {
  const [before, entry] = [journal[call - 2], journal[call - 1]]
  return entry?.syscall === "statx" && (entry.path !== undefined || before?.syscall === "unlink")
}

const nothingHeld = ({ leaks, registered }: History, what: string) => {
  assert.deepStrictEqual(leaks.fds, [], `${what}: open descriptors`)
  assert.strictEqual(registered, 0, `${what}: registrations`)
}

const nothingLeft = (run: History, what: string) => {
  nothingHeld(run, what)
  assert.deepStrictEqual(run.leaks, { fds: [], files: [], bytes: 0, mappings: 0 }, what)
}

const oneTypedFailure = ({ exit }: History, what: string) => {
  assert.isTrue(Exit.isFailure(exit), `${what}: succeeded`)
  if (Exit.isSuccess(exit)) return
  const failures = [...Cause.failures(exit.cause)]
  const defects = [...Cause.defects(exit.cause)]
  // To print a cause is a large part of a run, where it is done for each.
  if (failures.length !== 1 || defects.length > 0) assert.fail(`${what}: ${Cause.pretty(exit.cause)}`)
  assert.isTrue(failures.every(isDiskStorageError), what)
}

/** The call belongs to the release: after the use, or, where the acquisition fails, among the last calls, which undo it. */
const releases = ({ journal, used }: History, call: number): boolean =>
  used === undefined
    ? journal.slice(call - 1).every(({ syscall }) => syscall === "statx" || syscall === "unlink" || syscall === "close")
    : call > used

const observing: ReadonlyArray<SyscallName> = [
  "pwrite",
  "pread",
  "mmap",
  "mincore",
  "munmap",
  "cachestat",
  "fadvise",
  "fdatasync"
]

/** The calls before the allocation that look where the bytes of one unit go: without an answer the verdict is `unknown`. */
const ofAnObservation = (baseline: History, call: number): boolean => {
  const calls = made(baseline)
  const syscall = calls[call - 1]
  return syscall !== undefined && observing.includes(syscall) && call <= calls.indexOf("fallocate")
}

const locksDoNotTell: ReadonlyArray<SimulatedSyscalls.Profile> = ["lustre", "ramfs", "storageScale"]

/** The calls of a lock that nothing depends on: open, lock, and a look. */
const ofSuchALock = (profile: SimulatedSyscalls.Profile, baseline: History, call: number): boolean => {
  const lock = made(baseline).indexOf("fcntlSetLock")
  return locksDoNotTell.includes(profile) && lock !== -1 && call >= lock && call <= lock + 2
}

const oneFault = (
  profile: SimulatedSyscalls.Profile,
  baseline: History,
  run: History,
  policy: Policy,
  call: number,
  code: ErrnoCode,
  what: string
) => {
  const syscall = run.journal[call - 1]?.syscall
  if (syscall === undefined) return assert.fail(`${what}: the call was not made`)
  const isTolerated = tolerated(syscall, code, policy, run.journal[call - 1]?.path) || isAboutName(run.journal, call)
  if (!releases(baseline, call)) {
    // A mapping that the kernel does not remove stays until the process ends.
    if (syscall === "munmap") assert.deepStrictEqual(run.leaks, { fds: [], files: [], bytes: 0, mappings: 1 }, what)
    else nothingLeft(run, what)
    if (Exit.isFailure(run.exit)) return oneTypedFailure(run, what)
    return assert.isTrue(
      isTolerated || ofSuchALock(profile, baseline, call) || ofAnObservation(baseline, call),
      `${what}: succeeded`
    )
  }
  // A release changes nothing about how the program ends; what failed is logged, and skipped nothing.
  assert.strictEqual(run.exit._tag, baseline.exit._tag, what)
  if (isTolerated) return nothingLeft(run, what)
  nothingHeld(run, what)
  const steps: ReadonlyArray<string> = run.releaseFailures.flatMap(({ failures }) => failures.map(({ step }) => step))
  assert.deepStrictEqual(steps, [syscall], what)
  assert.strictEqual(run.leaks.files.length, syscall === "unlink" ? 1 : 0, what)
}

const made = ({ journal }: History) => journal.map(({ syscall }) => syscall)

/** The calls that make and lock a file, before any policy matters. */
const creation = (run: History): number => {
  const calls = made(run)
  const lock = calls.indexOf("fcntlSetLock")
  return lock === -1 ? calls.indexOf("fstatfs") + 2 : lock + 2
}

/**
 * The calls of a run at which something is tried: those of the creation with one policy alone, and of two policies that differ in one
 * option, and otherwise make the same calls, those of the second that the option can matter at:
 *
 * - how space is got where `fallocate` says no is of no consequence before that is asked for, nor once it was given;
 * - whether O_DIRECT is required or preferred, at the calls that ask for it;
 * - an early unlink, from there on.
 */
const tried = (profile: SimulatedSyscalls.Profile, policy: Policy, baseline: History) =>
  Effect.gen(function*() {
    const calls = policy === policies[0] ? baseline.journal : baseline.journal.slice(creation(baseline))
    const like = (other: Policy) => history({ profile }, { ...base, ...other })
    const alike = (other: History) => {
      if (made(other).join() !== made(baseline).join()) return false
      assert.strictEqual(baseline.exit._tag, other.exit._tag)
      return true
    }
    if (policy.fallback === "zero-fill" && alike(yield* like({ ...policy, fallback: "truncate" }))) {
      return calls.filter(({ syscall }) => syscall === "fallocate")
    }
    if (policy.directIo === "preferred" && alike(yield* like({ ...policy, directIo: "required" }))) {
      return calls.filter(({ syscall }) =>
        syscall === "fcntlSetFlags" || syscall === "fcntlGetFlags" || syscall === "open"
      )
    }
    if (policy.earlyUnlink !== true) return calls
    const late = made(yield* like({ ...policy, earlyUnlink: false }))
    const differs = made(baseline).findIndex((syscall, index) => syscall !== late[index])
    return calls.filter(({ call }) => call > differs)
  })

/**
 * The errors that a call is tried with: all of them with one policy of each way to open, with the others those that the storage can live
 * with, and one that it cannot.
 */
const codes = (policy: Policy, syscall: SyscallName): ReadonlyArray<ErrnoCode> => {
  const all: ReadonlyArray<ErrnoCode> = errnosBySyscall[syscall]
  if (policy.directIo === "required" && policy.fallback === "truncate" && policy.earlyUnlink !== true) return all
  const fatal = all.find((code) => !tolerated(syscall, code, policy))
  return all.filter((code) => code === fatal || tolerated(syscall, code, policy))
}

/** Lets timers and the test runner have the thread. */
const breathe = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

describe.each(profiles)("on %s", (profile) => {
  for (const policy of policies) {
    const options = { ...base, ...policy }

    it.effect(`every errno at every call: ${policyName(policy)}`, () =>
      Effect.gen(function*() {
        const baseline = yield* history({ profile }, options)
        nothingLeft(baseline, "no fault")
        // Where a policy cannot be met (ramfs, Storage Scale) that is a typed failure; its calls are tried all the same.
        if (Exit.isFailure(baseline.exit)) oneTypedFailure(baseline, "no fault")
        for (const { call, syscall } of yield* tried(profile, policy, baseline)) {
          for (const code of codes(policy, syscall)) {
            const run = yield* history({ profile }, options, {
              faults: [{ nth: call, outcome: { _tag: "Fail", code } }]
            })
            oneFault(profile, baseline, run, policy, call, code, `call ${call}, ${syscall}: ${code}`)
          }
          yield* breathe
        }
      }))

    it.effect(`interrupted at every call: ${policyName(policy)}`, () =>
      Effect.gen(function*() {
        const baseline = yield* history({ profile }, options)
        for (const { call, syscall } of yield* tried(profile, policy, baseline)) {
          for (const when of ["before", "during", "after"] as const) {
            const run = yield* history({ profile }, options, { interruption: { call, when } })
            const what = `${when} call ${call}, ${syscall}`
            nothingLeft(run, what)
            if (!releases(baseline, call)) assert.isTrue(Exit.isInterrupted(run.exit), `${what}: ${run.exit}`)
          }
          yield* breathe
        }
      }))
  }
})
