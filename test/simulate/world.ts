/** One history as it happens: its clock, what is noted of it, and what was found to be violated. */
import * as Cause from "effect/Cause"
import type * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { isDiskStorageError } from "../../src/DiskStorageError.js"
import type { JournalEntry, Leaks, SimulatedKernel } from "../../src/SimulatedSyscalls.js"
import type { Invariant } from "./invariants.js"
import type { Living } from "./living.js"
import { millis } from "./loop.js"
import type { Plan } from "./plan.js"
import { link } from "./plan.js"

export interface Violation {
  readonly invariant: Invariant
  readonly what: string
}

/** Something that happened, and after how many calls. */
interface Note {
  readonly calls: number
  readonly millis: number
  readonly text: string
}

/** What the harness itself fails registrations with. */
export class Refused {
  readonly _tag = "Refused"
}

const canary = 0xa5

/** As the kernel tells of files that are left: behind the link. */
export const canonical = (path: string): string =>
  path.startsWith(`${link.path}/`) ? `${link.target}${path.slice(link.path.length)}` : path

/** A missing directory two levels deep. */
export const directoryOf = ({ plan }: World): string =>
  plan.links === undefined ? "/tmp/cache/tier" : `${link.path}/tier`
export const keptPathOf = (world: World): string => `${directoryOf(world)}/kept`

export class World {
  readonly plan: Plan
  readonly kernel: SimulatedKernel
  readonly violations: Array<Violation> = []
  readonly notes: Array<Note> = []
  readonly checks: Map<Invariant, number>
  private readonly journalOf: () => ReadonlyArray<JournalEntry>
  private readonly leaksOf: () => Leaks
  private time = 0
  private value = 0
  private readonly idle: Array<{ readonly bytes: Uint8Array; readonly what: string }> = []
  /** Paths at which something may be left. */
  readonly keptAt = new Set<string>()
  /** The fibres of processes that were killed: they stay where they were. */
  readonly dead: Array<Living> = []
  registered = 0

  constructor(
    plan: Plan,
    kernel: SimulatedKernel,
    run: <A>(effect: Effect.Effect<A>) => A,
    checks: Map<Invariant, number>
  ) {
    this.plan = plan
    this.kernel = kernel
    this.checks = checks
    this.journalOf = () => run(kernel.journal)
    this.leaksOf = () => run(kernel.leaks)
  }

  get journal(): ReadonlyArray<JournalEntry> {
    return this.journalOf()
  }

  get leaks(): Leaks {
    return this.leaksOf()
  }

  /** The next moment. */
  tick(): number {
    return this.time += 1
  }

  /** What the next write fills its range with: never 0, never what memory is marked with when its operation has ended. */
  nextValue(): number {
    this.value = this.value % 150 + 1
    return this.value
  }

  note(text: string): void {
    this.notes.push({ calls: this.journal.length, millis: millis(), text })
  }

  holds(invariant: Invariant, condition: boolean, what: () => string): boolean {
    this.checks.set(invariant, (this.checks.get(invariant) ?? 0) + 1)
    if (condition) return true
    const violation = { invariant, what: what() }
    this.violations.push(violation)
    this.note(`VIOLATION of ${invariant}: ${violation.what}`)
    return false
  }

  /** From now on nobody may touch this memory. */
  leave(bytes: Uint8Array, what: string): void {
    bytes.fill(canary)
    this.idle.push({ bytes, what })
  }

  checkMemory(): void {
    for (const { bytes, what } of this.idle) {
      this.holds(
        "owned buffers",
        bytes.every((byte) => byte === canary),
        () => `memory was touched after ${what} ended`
      )
    }
  }

  /** The tag of the one typed failure, or whether it succeeded or was interrupted; anything else is a violation. */
  outcome(exit: Exit.Exit<unknown, unknown>, what: string): string {
    if (Exit.isSuccess(exit)) return "success"
    const defects = [...Cause.defects(exit.cause)]
    const failures = [...Cause.failures(exit.cause)]
    this.holds("errors", defects.length === 0, () => `${what} died: ${Cause.pretty(exit.cause)}`)
    if (failures.length === 0) return defects.length > 0 ? "died" : "interrupted"
    const [failure] = failures
    if (failure instanceof Refused) return failure._tag
    if (
      !this.holds("errors", failures.length === 1 && isDiskStorageError(failure), () => `${what}: ${String(failure)}`)
    ) {
      return "untyped"
    }
    return isDiskStorageError(failure) ? failure._tag : "untyped"
  }
}
