/**
 * Slabs of WebAssembly.Memory, handed out from bottom to top and never reused: what is handed out is zero, and the collector
 * frees a slab when its last slice is gone. A Memory costs 0.4 ms and about 10 GiB of address space, hence slabs.
 */

/** The part used here; only TypeScript's DOM library declares it. */
declare const WebAssembly: {
  readonly Memory: new(limits: { initial: number; maximum: number }) => { readonly buffer: ArrayBuffer }
}

export const pageSize = 4096
const wasmPage = 65_536
/** Larger requests get a Memory of their own. */
const slabBytes = 4 * 1024 * 1024
/** A WebAssembly memory has 32-bit addresses. */
const maxBytes = 4 * 1024 * 1024 * 1024

const pageOf = (position: number) => Math.floor(position / pageSize)

/**
 * One memory, and who uses which of its pages: the kernel alone while it fills one, any number of operations while it only reads
 * from one. An operation claims its pages before the kernel sees it and gives them back when the kernel has answered.
 */
export class Slab {
  /** Per page: −1 when it is being filled, else the number of operations that take bytes from it. */
  private readonly users: Int32Array
  /** Those who wait until nobody uses some pages, in the order in which they came. */
  private readonly idle: Array<{ readonly start: number; readonly length: number; readonly call: () => void }> = []
  private retirements: Set<() => void> | undefined
  /** Where the memory starts, once an engine has asked; 0 until then. Backing stores do not move. */
  address = 0

  readonly buffer: ArrayBuffer
  /** Used again and again, so that engines may register it with the kernel, until it is retired. */
  pooled: boolean

  constructor(buffer: ArrayBuffer, pooled: boolean) {
    this.buffer = buffer
    this.pooled = pooled
    this.users = new Int32Array(Math.ceil(buffer.byteLength / pageSize))
  }

  /** False, and nothing claimed, when some of the pages are in use in a way that excludes this one. */
  claim(start: number, length: number, fill: boolean): boolean {
    const first = pageOf(start)
    const last = pageOf(start + length - 1)
    for (let page = first; page <= last; page++) {
      const users = this.users[page] ?? 0
      if (fill ? users !== 0 : users < 0) return false
    }
    for (let page = first; page <= last; page++) this.users[page] = fill ? -1 : (this.users[page] ?? 0) + 1
    return true
  }

  release(start: number, length: number): void {
    const last = pageOf(start + length - 1)
    for (let page = pageOf(start); page <= last; page++) this.users[page] = Math.max(0, (this.users[page] ?? 0) - 1)
    // One by one, and looked for anew each time: a call may use the pages again, release others, or wait here.
    while (this.idle.length > 0) {
      const at = this.idle.findIndex(({ length, start }) => this.isIdle(start, length))
      const [ready] = at < 0 ? [] : this.idle.splice(at, 1)
      if (ready === undefined) return
      ready.call()
    }
  }

  isIdle(start: number, length: number): boolean {
    const last = pageOf(start + length - 1)
    for (let page = pageOf(start); page <= last; page++) if (this.users[page] !== 0) return false
    return true
  }

  /** Calls `then` as soon as nobody uses the pages: now, or when the last operation on them ends. */
  whenIdle(start: number, length: number, then: () => void): void {
    if (this.isIdle(start, length)) then()
    else this.idle.push({ start, length, call: then })
  }

  /** Calls `then` when a pooled memory is not leased any more; the answer takes the call back. */
  onRetire(then: () => void): () => void {
    this.retirements ??= new Set()
    this.retirements.add(then)
    return () => this.retirements?.delete(then)
  }

  retire(): void {
    this.pooled = false
    const { retirements } = this
    this.retirements = undefined
    for (const then of retirements ?? []) then()
  }
}

const slabs = new WeakMap<ArrayBufferLike, Slab>()
let current: Slab | undefined
let used = 0

let onNew: ((slab: Slab) => void) | undefined

/** Tells of each new slab, before anything is written to it, so that the kernel can be advised. */
export const tellOfNew = (tell: (slab: Slab) => void): void => {
  onNew = tell
}

const memory = (byteLength: number, pooled: boolean): Slab => {
  const pages = Math.ceil(byteLength / wasmPage)
  // initial = maximum: such a memory can neither be grown nor detached.
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages })
  const slab = new Slab(buffer, pooled)
  slabs.set(buffer, slab)
  onNew?.(slab)
  return slab
}

const checked = (byteLength: number, most: number): number => {
  if (!Number.isSafeInteger(byteLength) || byteLength <= 0 || byteLength > most) {
    throw new RangeError(`a length is a whole number of bytes from 1 to ${most}`)
  }
  return Math.ceil(byteLength / pageSize) * pageSize
}

/** Part of a slab. */
export interface Part {
  readonly slab: Slab
  readonly bytes: Uint8Array
}

/** Throws a RangeError that says why when there is no such memory to be had. */
export const take = (byteLength: number): Part => {
  const rounded = checked(byteLength, maxBytes)
  if (rounded > slabBytes / 2) {
    const slab = memory(rounded, false)
    return { slab, bytes: new Uint8Array(slab.buffer, 0, rounded) }
  }
  if (current === undefined || used + rounded > slabBytes) {
    current = memory(slabBytes, false)
    used = 0
  }
  const bytes = new Uint8Array(current.buffer, used, rounded)
  used += rounded
  return { slab: current, bytes }
}

/** Memory of its own, for what lives as long as its user and would keep everybody else's alive with it. */
export const takeAlone = (byteLength: number): Part => {
  const slab = memory(checked(byteLength, maxBytes), false)
  return { slab, bytes: new Uint8Array(slab.buffer, 0, byteLength) }
}

/** `count` parts of one slab of their own, to be used again and again; throws as `take` does. */
export const takePooled = (count: number, byteLength: number): ReadonlyArray<Part> => {
  const rounded = checked(byteLength, Math.floor(maxBytes / count))
  const slab = memory(rounded * count, true)
  return Array.from({ length: count }, (_, index) => ({
    slab,
    bytes: new Uint8Array(slab.buffer, index * rounded, rounded)
  }))
}

export const slabOf = (bytes: Uint8Array): Slab | undefined => slabs.get(bytes.buffer)

/**
 * What the address of `bytes` is a multiple of, as far as JavaScript can know it: the offset in a slab, whose start is 64 KiB
 * aligned, and for any other memory, whose address is unknown, 1.
 */
export const addressAlignment = (bytes: Uint8Array): number => {
  if (slabOf(bytes) === undefined) return 1
  const offset = bytes.byteOffset % wasmPage
  // The lowest bit set is the largest power of two that divides the offset.
  return offset === 0 ? wasmPage : offset & -offset
}
