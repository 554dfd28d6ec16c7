/** What a range of bytes may hold, given the writes to it and when each began and ended. */

interface Write {
  readonly value: number
  readonly first: number
  readonly last: number
  readonly began: number
  /** Infinity while it may still reach the disk. */
  ended: number
  /** All of it was acknowledged. */
  acknowledged: boolean
}

export type { Write }

/** Bytes of a cell: offsets and lengths of writes are multiples of it, and a write fills its cells with one value. */
export const cellBytes = 256

export class Contents {
  private readonly cells: Array<Array<Write>>

  constructor(bytes: number) {
    const zeros: Write = { value: 0, first: 0, last: 0, began: -2, ended: -1, acknowledged: true }
    this.cells = Array.from({ length: Math.ceil(bytes / cellBytes) }, () => [zeros])
  }

  begin(offset: number, length: number, value: number, now: number): Write {
    const write: Write = {
      value,
      first: Math.floor(offset / cellBytes),
      last: Math.ceil((offset + length) / cellBytes),
      began: now,
      ended: Infinity,
      acknowledged: false
    }
    for (let cell = write.first; cell < write.last; cell++) this.cells[cell]?.push(write)
    return write
  }

  /** It never reached the kernel. */
  refused(write: Write): void {
    for (let cell = write.first; cell < write.last; cell++) {
      this.cells[cell] = this.cells[cell]?.filter((other) => other !== write) ?? []
    }
  }

  ended(write: Write, acknowledged: boolean, now: number): void {
    write.ended = now
    write.acknowledged = acknowledged
  }

  /** What is wrong with bytes that were read at `offset`, a multiple of a cell, between two moments; undefined when nothing is. */
  wrong(bytes: Uint8Array, offset: number, began: number, ended: number): string | undefined {
    for (let at = 0; at < bytes.byteLength; at += cellBytes) {
      const cell = this.cells[(offset + at) / cellBytes] ?? []
      const may = cell.filter((write) =>
        write.began < ended &&
        !cell.some((later) => later.acknowledged && later.began > write.ended && later.ended < began)
      )
      const end = Math.min(at + cellBytes, bytes.byteLength)
      for (let index = at; index < end; index++) {
        if (may.some(({ value }) => value === bytes[index])) continue
        return `byte ${offset + index} is ${bytes[index]}, and may be ${[...new Set(may.map(({ value }) => value))]}`
      }
    }
    return undefined
  }
}
