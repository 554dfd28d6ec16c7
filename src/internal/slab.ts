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

const buffers = new WeakSet<ArrayBufferLike>()
let current: { readonly buffer: ArrayBuffer; used: number } | undefined

const memory = (byteLength: number): ArrayBuffer => {
  const pages = Math.ceil(byteLength / wasmPage)
  // initial = maximum: such a memory can neither be grown nor detached.
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages })
  buffers.add(buffer)
  return buffer
}

/** Throws a RangeError that says why when there is no such memory to be had. */
export const take = (byteLength: number): Uint8Array => {
  if (!Number.isSafeInteger(byteLength) || byteLength <= 0 || byteLength > maxBytes) {
    throw new RangeError(`a length is a whole number of bytes from 1 to ${maxBytes}`)
  }
  const rounded = Math.ceil(byteLength / pageSize) * pageSize
  if (rounded > slabBytes / 2) return new Uint8Array(memory(rounded), 0, rounded)
  if (current === undefined || current.used + rounded > slabBytes) current = { buffer: memory(slabBytes), used: 0 }
  const bytes = new Uint8Array(current.buffer, current.used, rounded)
  current.used += rounded
  return bytes
}

/**
 * What the address of `bytes` is a multiple of, as far as JavaScript can know it: the offset in a slab, whose start is 64 KiB
 * aligned, and for any other memory, whose address is unknown, 1.
 */
export const addressAlignment = (bytes: Uint8Array): number => {
  if (!buffers.has(bytes.buffer)) return 1
  const offset = bytes.byteOffset % wasmPage
  // The lowest bit set is the largest power of two that divides the offset.
  return offset === 0 ? wasmPage : offset & -offset
}
