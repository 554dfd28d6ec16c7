/** Bytes that tell the hash and the version of the block that they belong to. */

const words = (bytes: Uint8Array): Int32Array => new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 2)

const word = (hash: number, version: number, index: number): number =>
  Math.imul(Math.imul(hash + 1, 0x9e37_79b1) ^ Math.imul(version + 1, 0x85eb_ca6b) ^ index, 0xc2b2_ae35)

export const fill = (bytes: Uint8Array, hash: number, version: number): void => {
  const block = words(bytes)
  for (let index = 0; index < block.length; index++) block[index] = word(hash, version, index)
  block[0] = version
}

/** The version that `bytes` say they are of, and the first word of theirs that is not of that version and hash, if there is one. */
export const identify = (
  bytes: Uint8Array,
  hash: number
): { readonly version: number; readonly wrong: number | undefined } => {
  const block = words(bytes)
  const version = block[0] ?? 0
  for (let index = 1; index < block.length; index++) {
    if (block[index] !== word(hash, version, index)) return { version, wrong: index }
  }
  return { version, wrong: undefined }
}
