/** The one decision whether I/O bypasses the page cache: for every storage, for `directIo: "proven"` and for the doctor. */
import type { DirectIoState } from "../DiskStorage.js"
import type { Statx } from "../Syscalls.js"
import type { Observation } from "./observe.js"

export type Seen = Pick<Observation, "path" | "evidence">

/** The type of a filesystem is no evidence: one type does direct I/O or not, by options, attributes and profiles. */
export interface Evidence {
  /** O_DIRECT on the descriptor, read back from the kernel. */
  readonly flag: boolean
  /** The answer of statx for direct I/O; undefined without one. */
  readonly statx: Statx["directIo"]
  /** Whether an alignment from statx was found to mean direct I/O on this filesystem (`statxHolds`). */
  readonly statxHolds: boolean
  /** An overwrite and a read, observed in the page cache; undefined where none was made. */
  readonly write?: Seen | undefined
  readonly read?: Seen | undefined
  /** A cache of the filesystem's own, counted while I/O was made (OpenZFS: its ARC). */
  readonly ownCache?: "used" | "bypassed" | undefined
}

const noDirectIo = "statx answers that this file has no direct I/O (data journaling, for example)"
const withAlignment = "statx answers with an alignment for direct I/O"

/** An observation outranks the answer of statx; two that exclude each other, and none at all, are `unknown`. */
export const decide = (
  { flag, ownCache, read, statx, statxHolds, write }: Evidence
): Omit<DirectIoState, "flag"> => {
  if (!flag) return { verdict: "buffered", reason: "O_DIRECT is not set" }
  const seen = [write, read].filter((one) => one !== undefined)
  const observed = seen.map(({ evidence }) => evidence).join(", and ")
  const buffered = seen.filter(({ path }) => path === "buffered").map(({ evidence }) => evidence).join(", and ")
  if (buffered !== "") return { verdict: "buffered", reason: buffered }
  if (ownCache === "used") return { verdict: "buffered", reason: "the filesystem has a cache of its own, and used it" }
  const isDirect = ownCache === "bypassed" || (write?.path === "direct" && read?.path === "direct")
  if (statx?.offsetAlignment === 0) {
    return isDirect
      ? { verdict: "unknown", reason: `${observed}, but ${noDirectIo}` }
      : { verdict: "buffered", reason: noDirectIo }
  }
  if (isDirect) return { verdict: "direct", reason: observed }
  if (seen.some(({ path }) => path === "refused")) return { verdict: "unknown", reason: observed }
  if (statx !== undefined && statxHolds) return { verdict: "direct", reason: withAlignment }
  return {
    verdict: "unknown",
    reason: observed !== ""
      ? observed
      : statx === undefined
      ? "statx does not answer, and nothing was observed"
      : `${withAlignment}, which proves nothing on this filesystem`
  }
}
