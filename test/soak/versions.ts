/** Which versions of a block may be read: a model of a block store that many use at once. */

/** A change of one hash from its beginning to its end; another one meanwhile, and it is not known which came last. */
class Change {
  alone = true
}

class Entry {
  /** Those that the store may have. */
  readonly versions = new Set<number>()
  readonly changes = new Set<Change>()
  readonly readers = new Set<Set<number>>()
}

export class Versions {
  private readonly entries = new Map<number, Entry>()
  private last = 0

  private entry(hash: number): Entry {
    let entry = this.entries.get(hash)
    if (entry === undefined) this.entries.set(hash, entry = new Entry())
    return entry
  }

  private begin(entry: Entry): Change {
    const change = new Change()
    for (const other of entry.changes) other.alone = change.alone = false
    entry.changes.add(change)
    return change
  }

  /** A version that is about to be offloaded. `stored`: it alone is there now. `refused`: it never was. Otherwise it may be there. */
  offloading(
    hash: number
  ): { readonly version: number; readonly ended: (what: "stored" | "refused" | "unknown") => void } {
    const entry = this.entry(hash)
    const version = this.last += 1
    const change = this.begin(entry)
    entry.versions.add(version)
    for (const reader of entry.readers) reader.add(version)
    return {
      version,
      ended: (what) => {
        entry.changes.delete(change)
        if (what === "refused") entry.versions.delete(version)
        if (what !== "stored" || !change.alone) return
        entry.versions.clear()
        entry.versions.add(version)
      }
    }
  }

  /** Hashes that are about to be removed; what is called at the end, with whether they were. */
  removing(hashes: ReadonlyArray<number>): (removed: boolean) => void {
    const changes = hashes.map((hash) => {
      const entry = this.entry(hash)
      return { entry, change: this.begin(entry) }
    })
    return (removed) => {
      for (const { change, entry } of changes) {
        entry.changes.delete(change)
        if (removed && change.alone) entry.versions.clear()
      }
    }
  }

  /** Of what is read from now on until the end: the versions that may come. */
  reading(hash: number): { readonly allowed: ReadonlySet<number>; readonly ended: () => void } {
    const entry = this.entry(hash)
    const allowed = new Set(entry.versions)
    entry.readers.add(allowed)
    return { allowed, ended: () => void entry.readers.delete(allowed) }
  }
}
