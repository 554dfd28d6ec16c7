/** What is to happen in a history, all of it, as plain data: drawn from a seed, and kept where a history has failed once. */
import type { EngineOptions, Fault, Profile } from "../../src/SimulatedSyscalls.js"
import type { ErrnoCode, SyscallName } from "../../src/Syscalls.js"
import { errnosBySyscall } from "../../src/Syscalls.js"
import { Random } from "./random.js"

export type When = "before" | "during" | "after"

/** When somebody is interrupted: at a call, counted from the start of the kernel, or after simulated milliseconds. */
export type Interruption =
  | { readonly _tag: "Call"; readonly call: number; readonly when: When }
  | { readonly _tag: "Time"; readonly millis: number }

export const stepKinds = [
  "read",
  "write",
  "readBytes",
  "writeBytes",
  "readBatch",
  "writeBatch",
  "stream",
  "sink",
  "sync",
  "unsafe",
  "extents",
  "withFd",
  "register",
  "registerThenUnlink",
  "deregister",
  "unlink",
  "contend",
  "pause",
  "keep",
  "close"
] as const

export type StepKind = typeof stepKinds[number]

export interface Step {
  readonly kind: StepKind
  /** Where and how much, as parts of what there is. */
  readonly at: number
  readonly length: number
  /** Whatever else the kind needs. */
  readonly number: number
  readonly interruption?: Interruption | undefined
}

/** One storage from its beginning to its end. */
export interface Life {
  readonly size: number
  readonly directIo: "proven" | "required" | "preferred" | "disabled"
  readonly openStrategy: "default" | "open-direct"
  readonly fallback: "truncate" | "zero-fill"
  readonly prewrite: boolean
  readonly earlyUnlink: boolean
  /** Whether it has a place where it can be kept. */
  readonly placed: boolean
  readonly steps: ReadonlyArray<Step>
  /** Steps that run at once. */
  readonly together: number
  /** Milliseconds after which it is released, whatever is under way; after its steps where there are none. */
  readonly releaseAfter?: number | undefined
  readonly keepAtEnd: boolean
  readonly interruption?: Interruption | undefined
}

export const blockKinds = [
  "offload",
  "replace",
  "onboard",
  "match",
  "lease",
  "touch",
  "remove",
  "reset",
  "pause",
  "hashes"
] as const

export interface BlockStep {
  readonly kind: typeof blockKinds[number]
  readonly hashes: ReadonlyArray<number>
  readonly priority: number
  readonly millis: number
  readonly interruption?: Interruption | undefined
}

/** One block store over storages of so many blocks each. */
export interface StoreLife {
  readonly capacities: ReadonlyArray<number>
  readonly checksum: "off" | "crc32" | "xxh128"
  readonly maxBlocksInFlight: number
  readonly failureLimit: number
  /** The storage that is closed under the store, and when. */
  readonly dies?: { readonly storage: number; readonly millis: number } | undefined
  /** The block of a storage whose bytes change on the disk, and when. */
  readonly rots?: { readonly storage: number; readonly place: number; readonly millis: number } | undefined
  readonly steps: ReadonlyArray<BlockStep>
  readonly together: number
  readonly releaseAfter?: number | undefined
  readonly interruption?: Interruption | undefined
}

/** One storage of a process among others. */
export interface Tenancy {
  readonly pages: number
  readonly openStrategy: "default" | "open-direct"
  readonly place: "temporary" | "nameless" | "kept"
  /** Whether its making may begin with a sweep. */
  readonly sweep: boolean
  /** How long it is had, and whether the directory is swept after that. */
  readonly millis: number
  readonly sweeps: boolean
  readonly keepAtEnd: boolean
}

export interface Neighbour {
  readonly startAfter: number
  readonly storages: ReadonlyArray<Tenancy>
  readonly together: number
  /** SIGKILL. */
  readonly killed?: Interruption | undefined
}

export type Workload =
  | {
    readonly _tag: "Storages"
    readonly lives: ReadonlyArray<Life>
    readonly atOnce: boolean
    readonly budget?: number | undefined
  }
  | { readonly _tag: "Blocks"; readonly lives: ReadonlyArray<StoreLife>; readonly kept: boolean }
  | { readonly _tag: "Neighbours"; readonly processes: ReadonlyArray<Neighbour> }
  | { readonly _tag: "Doctor"; readonly interruption?: Interruption | undefined }

export interface Plan {
  readonly seed: number
  readonly profile: Profile
  /** bytes */
  readonly capacity: number
  readonly maxFds: number
  /** Undefined: one pread or pwrite after the other. */
  readonly device?: EngineOptions & { readonly stallTimeout?: number | undefined } | undefined
  readonly faults: ReadonlyArray<Fault>
  readonly directories?: ReadonlyArray<string> | undefined
  readonly links?: ReadonlyArray<{ readonly path: string; readonly target: string; readonly uid: number }> | undefined
  readonly workload: Workload
}

/** A link of the user's to a directory. */
export const link = { path: "/tmp/linked", target: "/tmp/real", uid: 1000 }

export const pageBytes = 4096

const profiles: ReadonlyArray<Profile> = [
  "ext4",
  "ext2",
  "lustre",
  "btrfs",
  "tmpfs",
  "ramfs",
  "storageScale",
  "dataJournal"
]

export interface Pair {
  readonly syscall: SyscallName
  readonly code: ErrnoCode
}

const isSyscall = (name: string): name is SyscallName => name in errnosBySyscall

/** Every error of every call. */
export const matrix: ReadonlyArray<Pair> = Object.entries(errnosBySyscall).flatMap(([syscall, codes]) =>
  isSyscall(syscall) ? codes.map((code) => ({ syscall, code })) : []
)

/** What a history must be like for it to make a call. */
interface Wish {
  readonly workload?: Workload["_tag"]
  readonly profile?: ReadonlyArray<Profile>
  readonly proven?: boolean
  readonly placed?: boolean
  readonly byCalls?: boolean
  readonly linked?: boolean
  readonly step?: StepKind
}

const proof: Wish = { workload: "Storages", proven: true, profile: ["ext4"] }

const wishes: { readonly [name in SyscallName]?: Wish } = {
  open: { workload: "Storages", placed: true },
  ioctlGetFlags: { workload: "Storages", profile: ["btrfs"] },
  ioctlSetFlags: { workload: "Storages", profile: ["btrfs"] },
  ftruncate: { workload: "Storages", profile: ["ext2", "lustre"] },
  pread: { workload: "Storages", byCalls: true, step: "read" },
  pwrite: { workload: "Storages", byCalls: true, step: "write" },
  fdatasync: { workload: "Storages", byCalls: true, step: "sync" },
  rename: { workload: "Storages", placed: true },
  readlink: { workload: "Storages", linked: true },
  fiemap: { workload: "Storages", step: "extents", profile: ["ext4", "btrfs"] },
  fsetxattr: { workload: "Storages", placed: true },
  fadvise: proof,
  cachestat: { ...proof, profile: ["ext4"] },
  mmap: proof,
  mincore: proof,
  munmap: proof,
  ficlone: { workload: "Doctor", profile: ["ext4", "btrfs"] },
  dlopen: { workload: "Doctor", profile: ["ext4", "btrfs"] }
}

/** Of histories whose kind is free, so many are of several processes. */
const neighbours = 0.15
/** The first calls of these, of which some take their time. */
const lateCalls = 300

const drawNeighbours = (random: Random): Extract<Workload, { readonly _tag: "Neighbours" }> => {
  // What was kept is taken up where it has the size that is asked for.
  const pages = random.between(1, 3)
  const keeps = random.fraction()
  const tenancy = (): Tenancy => ({
    pages: random.chance(0.9) ? pages : random.between(1, 3),
    openStrategy: random.chance(0.25) ? "open-direct" : "default",
    place: random.chance(keeps) ? "kept" : random.pick("temporary", "temporary", "nameless"),
    sweep: random.chance(0.8),
    millis: random.below(20) / 10,
    sweeps: random.chance(0.5),
    keepAtEnd: random.chance(0.8)
  })
  return {
    _tag: "Neighbours",
    processes: random.some(random.between(2, 5), () => ({
      startAfter: random.below(20) / 10,
      storages: random.some(random.between(1, 3), tenancy),
      together: random.pick(1, 1, 2),
      killed: random.chance(0.35)
        ? undefined
        : random.chance(0.6)
        ? { _tag: "Call", call: random.between(1, 160), when: random.pick<When>("before", "during", "after") }
        : { _tag: "Time", millis: random.below(80) / 10 }
    }))
  }
}

/** Of one history in so many the number of pairs is drawn. */
const aims = [0, 0, 1, 1, 1, 2, 3] as const

export const draw = (seed: number): Plan => {
  const random = new Random(seed)
  const aimed = random.some(random.of(aims), (index) => {
    const pair = matrix[(seed + index * 101) % matrix.length]
    if (pair === undefined) throw new RangeError("the matrix is empty")
    return pair
  })
  const wish: Wish = (aimed[0] === undefined ? undefined : wishes[aimed[0].syscall]) ?? {}

  const interruption = (likely: number): Interruption | undefined =>
    !random.chance(likely)
      ? undefined
      : random.chance(0.6)
      ? { _tag: "Call", call: random.between(1, 60), when: random.pick<When>("before", "during", "after") }
      : { _tag: "Time", millis: random.below(30) / 10 }
  const disturbed = random.chance(0.5)

  const step = (kind: StepKind): Step => ({
    kind,
    at: random.fraction(),
    length: random.fraction(),
    number: random.below(1000),
    interruption: disturbed ? interruption(0.2) : undefined
  })
  const rare: ReadonlyArray<StepKind> = ["keep", "close", "unlink", "deregister", "stream", "sink", "extents"]
  const kind = (): StepKind => {
    const drawn = random.of(stepKinds)
    return rare.includes(drawn) && random.chance(0.6) ? random.pick<StepKind>("read", "write") : drawn
  }
  // What was kept is taken up where it has the size that is asked for.
  const placedBytes = random.between(1, 10) * pageBytes - random.below(2) * random.below(pageBytes)
  const mostlyPlaced = wish.placed === true || random.chance(0.3)
  const life = (): Life => {
    const placed = random.chance(mostlyPlaced ? 0.95 : 0.05)
    const openDirect = random.chance(0.25)
    const steps = random.some(random.between(0, 12), () => step(kind()))
    return {
      size: placed && random.chance(0.9)
        ? placedBytes
        : random.between(1, 10) * pageBytes - (random.chance(0.4) ? random.below(pageBytes) : 0),
      directIo: wish.proven === true
        ? "proven"
        : random.pick("required", "preferred", "preferred", "disabled", random.chance(0.5) ? "proven" : "preferred"),
      openStrategy: openDirect ? "open-direct" : "default",
      fallback: random.pick("truncate", "zero-fill"),
      prewrite: random.chance(0.15),
      earlyUnlink: !placed && random.chance(0.25),
      placed,
      steps: wish.step === undefined ? steps : [step(wish.step), ...steps],
      together: random.between(1, 6),
      releaseAfter: random.chance(0.25) ? random.below(40) / 10 : undefined,
      keepAtEnd: placed && random.chance(0.8),
      interruption: disturbed ? interruption(0.35) : undefined
    }
  }

  const storeLife = (capacities: ReadonlyArray<number>, checksum: StoreLife["checksum"]): StoreLife => ({
    capacities,
    checksum,
    maxBlocksInFlight: random.between(1, 6),
    failureLimit: random.pick(1, 1, 2, 1000),
    dies: random.chance(0.2)
      ? { storage: random.below(capacities.length), millis: random.below(40) / 10 }
      : undefined,
    rots: checksum !== "off" && random.chance(0.15)
      ? { storage: random.below(capacities.length), place: random.below(4), millis: random.below(40) / 10 }
      : undefined,
    steps: random.some(random.between(3, 16), () => ({
      kind: random.pick("offload", "offload", "onboard", random.of(blockKinds), random.of(blockKinds)),
      hashes: random.some(random.between(0, 5), () => random.below(6)),
      priority: random.below(4),
      millis: random.below(20) / 10,
      interruption: disturbed ? interruption(0.4) : undefined
    })),
    together: random.between(1, 5),
    releaseAfter: random.chance(0.2) ? random.below(50) / 10 : undefined,
    interruption: disturbed ? interruption(0.15) : undefined
  })

  const workload = (): Workload => {
    const tag = wish.workload ?? random.pick("Storages", "Blocks")
    // It takes as long as a hundred of the others.
    if (tag === "Doctor") return { _tag: "Doctor", interruption: disturbed ? interruption(0.3) : undefined }
    if (tag === "Storages") {
      const lives = random.some(random.pick(1, 1, 2, 2, 3), life)
      const sizes = lives.reduce((sum, { size }) => sum + size, 0)
      return {
        _tag: "Storages",
        lives,
        atOnce: random.chance(0.5),
        budget: random.chance(0.3) ? Math.ceil(sizes * (0.4 + random.fraction())) : undefined
      }
    }
    const kept = random.chance(0.5)
    const capacities = random.some(random.between(1, 3), () => random.between(1, 4))
    const checksum = random.pick("off" as const, "crc32" as const, "xxh128" as const)
    return {
      _tag: "Blocks",
      kept,
      lives: random.some(kept ? random.between(1, 3) : 1, () => storeLife(capacities, checksum))
    }
  }

  const nth = () => random.pick(1, 1, 2, random.between(1, 4), random.between(1, 16))
  const harmless = (): Fault => {
    const syscall = random.of(matrix).syscall
    return random.chance(0.5) && syscall !== "close"
      ? { syscall, nth: nth(), outcome: { _tag: "Fail", code: "EINTR" } }
      : { syscall, nth: nth(), outcome: { _tag: "Late", duration: random.below(30) / 10 } }
  }
  const short = (): Fault => ({
    syscall: random.pick("pread", "pwrite"),
    nth: nth(),
    outcome: { _tag: "Short", bytes: random.pick(1, 512, 4096, random.between(1, 8192)) }
  })
  const linked = wish.linked ?? random.chance(0.1)
  const byCalls = wish.byCalls ?? random.chance(0.4)
  const never = random.chance(0.15) ? 0.1 : 0
  // With numbers of their own, so that the other histories stay what they are.
  const apart = new Random(~seed)
  const among = wish.workload === undefined && apart.chance(neighbours)
  const plan: Plan = {
    seed,
    profile: wish.profile === undefined ? random.of(profiles) : random.of(wish.profile),
    capacity: random.chance(0.1) ? random.between(1, 24) * pageBytes : 1024 ** 3,
    maxFds: random.chance(0.05) ? random.between(1, 4) : 1024,
    device: byCalls ? undefined : {
      seed: random.below(2 ** 31),
      short: random.pick(0, 0.2),
      transient: random.pick(0, 0.2),
      fail: random.pick(0, 0, 0.1),
      never,
      depth: random.pick(1, 2, 4, 32, 32),
      maxBytesInFlight: random.pick(pageBytes, 4 * pageBytes, 1024 ** 2, 1024 ** 2),
      ...(never > 0 || random.chance(0.2) ? { stallTimeout: 1000 } : {})
    },
    faults: [
      ...aimed.map(({ code, syscall }): Fault => ({ syscall, nth: nth(), outcome: { _tag: "Fail", code } })),
      ...random.some(random.pick(0, 0, 1, 2), harmless),
      // It makes hundreds of calls.
      ...(wish.workload === "Doctor" && random.chance(0.5)
        ? [{ nth: random.between(4, 400), outcome: { _tag: "Fail", code: "EIO" } } satisfies Fault]
        : []),
      ...(random.chance(0.3) ? [short()] : [])
    ],
    ...(linked ? { directories: ["/tmp", link.target], links: [link] } : {}),
    workload: workload()
  }
  if (!among) return plan
  // Calls take time, so that those of one process come between those of another.
  const late = apart.some(
    lateCalls,
    (index): ReadonlyArray<Fault> =>
      apart.chance(0.3) ? [{ nth: index + 1, outcome: { _tag: "Late", duration: apart.below(10) / 20 } }] : []
  )
  return { ...plan, device: undefined, workload: drawNeighbours(apart), faults: [...plan.faults, ...late.flat()] }
}

/** Whether something may fail at all. A call that is interrupted by a signal is made again, unless it is a close. */
export const mayFail = ({ capacity, device, faults, maxFds }: Plan): boolean =>
  capacity < 1024 ** 2 || maxFds < 64 || (device?.fail ?? 0) > 0 || (device?.never ?? 0) > 0 ||
  faults.some(({ outcome, syscall }) => outcome._tag === "Fail" && (outcome.code !== "EINTR" || syscall === "close"))
