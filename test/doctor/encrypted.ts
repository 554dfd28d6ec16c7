/** Encrypted directories of ext4 (`Documentation/filesystems/fscrypt.rst`), for what needs no more than one key. */
import * as Effect from "effect/Effect"
import { closeSync, openSync } from "node:fs"

// uapi/linux/fscrypt.h
const FS_IOC_ADD_ENCRYPTION_KEY = 0xc050_6617
const FS_IOC_SET_ENCRYPTION_POLICY = 0x800c_6613
const FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER = 2
const FSCRYPT_POLICY_V2 = 2
const FSCRYPT_MODE_AES_256_XTS = 1
const FSCRYPT_MODE_AES_256_CTS = 4
/** Of `struct fscrypt_add_key_arg`, which the key follows. */
const addKeyBytes = 80
const keyBytes = 64

type Ioctl = (fd: number, request: number, argument: Uint8Array) => number

/** Adds a key to the filesystem and encrypts an empty directory with it; answers with why not where the kernel will not. */
export const encrypt = (directory: string): Effect.Effect<string | undefined> =>
  Effect.promise(async () => {
    const { default: koffi } = await import("koffi")
    const ioctl: Ioctl = koffi.load(null).func("ioctl", "int", ["int", "unsigned long", "void *"])

    const key = new Uint8Array(addKeyBytes + keyBytes).fill(0x4b, addKeyBytes)
    const keyFields = new DataView(key.buffer)
    keyFields.setUint32(0, FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER, true)
    keyFields.setUint32(40, keyBytes, true)

    const fd = openSync(directory, "r")
    try {
      if (ioctl(fd, FS_IOC_ADD_ENCRYPTION_KEY, key) !== 0) return `the kernel takes no key: errno ${koffi.errno()}`
      const policy = new Uint8Array(24)
      policy.set([FSCRYPT_POLICY_V2, FSCRYPT_MODE_AES_256_XTS, FSCRYPT_MODE_AES_256_CTS])
      // The identifier that the kernel computed from the key.
      policy.set(key.subarray(8, 24), 8)
      return ioctl(fd, FS_IOC_SET_ENCRYPTION_POLICY, policy) === 0
        ? undefined
        : `the kernel takes no policy: errno ${koffi.errno()}`
    } finally {
      closeSync(fd)
    }
  })
