/**
 * The errors of cuFile by number, with what they mean and what to do about them (`CUfileOpError` in cufile.h of CUDA 13 and the cuFile API
 * reference; 5021 and 5032 are not used). Older releases end at 5039, which is their `CU_FILE_IO_MAX_ERROR`.
 */

export interface CuFileErrorWords {
  readonly name: string
  readonly what: string
  readonly remedy?: string | undefined
}

const look = "Look at cufile.log, in the working directory unless the configuration names another"
const doctor = "`effect-disk-storage doctor DIRECTORY` tells which condition is not met"
const again = "Try it again; cufile.log tells more"

export const cuFileErrors: { readonly [code: number]: CuFileErrorWords } = {
  5001: {
    name: "CU_FILE_DRIVER_NOT_INITIALIZED",
    what: "the driver is not open, or nvidia-fs is not loaded",
    remedy:
      "Load it (modprobe nvidia-fs, package nvidia-gds), or allow compatibility mode: properties.allow_compat_mode of /etc/cufile.json, CUFILE_ALLOW_COMPAT_MODE=true"
  },
  5002: { name: "CU_FILE_DRIVER_INVALID_PROPS", what: "a property is not valid", remedy: "Correct /etc/cufile.json" },
  5003: {
    name: "CU_FILE_DRIVER_UNSUPPORTED_LIMIT",
    what: "a limit is out of range",
    remedy: "Correct the limits in /etc/cufile.json"
  },
  5004: {
    name: "CU_FILE_DRIVER_VERSION_MISMATCH",
    what: "nvidia-fs is of another release than libcufile",
    remedy: "Install nvidia-fs and libcufile of the same CUDA release"
  },
  5005: {
    name: "CU_FILE_DRIVER_VERSION_READ_ERROR",
    what: "the version of nvidia-fs cannot be read",
    remedy: "Load nvidia-fs again, and let this process read /proc/driver/nvidia-fs"
  },
  5006: { name: "CU_FILE_DRIVER_CLOSING", what: "the driver is being closed" },
  5007: {
    name: "CU_FILE_PLATFORM_NOT_SUPPORTED",
    what: "GPUDirect Storage is not supported on this platform",
    remedy: "Stage through host memory"
  },
  5008: {
    name: "CU_FILE_IO_NOT_SUPPORTED",
    what: "the filesystem or device is not supported",
    remedy: `Use ext4 or XFS on NVMe, or allow compatibility mode; ${doctor}`
  },
  5009: {
    name: "CU_FILE_DEVICE_NOT_SUPPORTED",
    what: "the GPU is not supported",
    remedy: "Stage through host memory, or use a data-centre GPU"
  },
  5010: {
    name: "CU_FILE_NVFS_DRIVER_ERROR",
    what: "nvidia-fs failed",
    remedy: "Look at the kernel's log and at cufile.log"
  },
  5011: {
    name: "CU_FILE_CUDA_DRIVER_ERROR",
    what: "the CUDA driver failed",
    remedy: "The CUDA code says why; 201 is a missing context on the thread that called"
  },
  5012: {
    name: "CU_FILE_CUDA_POINTER_INVALID",
    what: "the pointer is no device memory",
    remedy: "Use memory of DeviceMemory for as long as its Scope is open"
  },
  5013: {
    name: "CU_FILE_CUDA_MEMORY_TYPE_INVALID",
    what: "the memory is of a type that cannot be used",
    remedy: "Use memory of DeviceMemory (cuMemAlloc)"
  },
  5014: {
    name: "CU_FILE_CUDA_POINTER_RANGE_ERROR",
    what: "the range reaches outside the allocation or the registered buffer",
    remedy: "Register all of the buffer, or use it without registration"
  },
  5015: {
    name: "CU_FILE_CUDA_CONTEXT_MISMATCH",
    what: "the memory belongs to another CUDA context than that of the thread",
    remedy: "Use memory of the DeviceMemory that the CuFile layer was given"
  },
  5016: {
    name: "CU_FILE_INVALID_MAPPING_SIZE",
    what: "more memory would be mapped than the GPU can",
    remedy: "Register less; `nvidia-smi -q` tells how much BAR1 there is"
  },
  5017: {
    name: "CU_FILE_INVALID_MAPPING_RANGE",
    what: "a range of memory cannot be mapped",
    remedy: "Register less, and whole allocations"
  },
  5018: {
    name: "CU_FILE_INVALID_FILE_TYPE",
    what: "it is neither a regular file nor a block device",
    remedy: "Use a storage on a disk"
  },
  5019: {
    name: "CU_FILE_INVALID_FILE_OPEN_FLAG",
    what:
      "the file was opened with a flag that cuFile refuses (O_APPEND, O_NONBLOCK, O_NOATIME, O_NOFOLLOW, O_TMPFILE)",
    remedy: "Make the storage without keepAt and with openStrategy \"default\""
  },
  5020: {
    name: "CU_FILE_DIO_NOT_SET",
    what: "O_DIRECT is not set",
    remedy:
      "Make the storage with directIo \"required\" (no DYN_KVBM_DISK_DISABLE_O_DIRECT), or use cuFile 1.7 or above, or allow compatibility mode"
  },
  5022: { name: "CU_FILE_INVALID_VALUE", what: "an argument is not valid", remedy: look },
  5023: {
    name: "CU_FILE_MEMORY_ALREADY_REGISTERED",
    what: "the memory is registered already",
    remedy: "Register a buffer once, and end the Scope of its registration first"
  },
  5024: { name: "CU_FILE_MEMORY_NOT_REGISTERED", what: "the memory is not registered" },
  5025: {
    name: "CU_FILE_PERMISSION_DENIED",
    what: "the driver or the device may not be used by this user",
    remedy: "Let this user open /dev/nvidia-fs* and the file's block device"
  },
  5026: {
    name: "CU_FILE_DRIVER_ALREADY_OPEN",
    what: "the driver is open already",
    remedy: "Close it first: one CuFile layer for a process"
  },
  5027: {
    name: "CU_FILE_HANDLE_NOT_REGISTERED",
    what: "the file is not registered",
    remedy: "Register the storage again, and keep the driver open for as long as it is used"
  },
  5028: {
    name: "CU_FILE_HANDLE_ALREADY_REGISTERED",
    what: "the descriptor is registered already, by this process or by a file that had its number and was closed first",
    remedy: "Deregister it before it is closed; CuFile.register does so"
  },
  5029: {
    name: "CU_FILE_DEVICE_NOT_FOUND",
    what: "the GPU was not found",
    remedy: "Look at nvidia-smi and at CUDA_VISIBLE_DEVICES"
  },
  5030: {
    name: "CU_FILE_INTERNAL_ERROR",
    what:
      "cuFile failed; often it finds no block device below the file (overlay, an anonymous device, a container without udev's data)",
    remedy: `Use a directory on ext4 or XFS, mount /run/udev into the container; ${doctor}`
  },
  5031: {
    name: "CU_FILE_GETNEWFD_FAILED",
    what: "no descriptor could be had",
    remedy: "Raise the limit of open files (ulimit -n)"
  },
  5033: {
    name: "CU_FILE_NVFS_SETUP_ERROR",
    what: "cuFile could not load the CUDA driver library (libcuda.so.1) or one of its symbols, or set nvidia-fs up",
    remedy: `Install the NVIDIA driver, with a libcuda.so.1 that has the symbols of this cuFile. ${look}`
  },
  5034: {
    name: "CU_FILE_IO_DISABLED",
    what: "GPUDirect Storage is switched off for this file by the configuration",
    remedy: "Look at the denylist in /etc/cufile.json"
  },
  5035: {
    name: "CU_FILE_BATCH_SUBMIT_FAILED",
    what: "a batch could not be submitted",
    remedy: "Use smaller batches, or single transfers"
  },
  5036: {
    name: "CU_FILE_GPU_MEMORY_PINNING_FAILED",
    what: "GPU memory could not be pinned",
    remedy: "Register less, or raise properties.max_device_pinned_mem_size_kb in /etc/cufile.json"
  },
  5037: { name: "CU_FILE_BATCH_FULL", what: "the queue of batches is full", remedy: again },
  5038: { name: "CU_FILE_ASYNC_NOT_SUPPORTED", what: "stream operations are not supported" },
  5039: {
    name: "CU_FILE_INTERNAL_BATCH_SETUP_ERROR",
    what: "a batch could not be set up (in older releases: an error beyond all numbers)",
    remedy: again
  },
  5040: { name: "CU_FILE_INTERNAL_BATCH_SUBMIT_ERROR", what: "a batch could not be submitted", remedy: again },
  5041: {
    name: "CU_FILE_INTERNAL_BATCH_GETSTATUS_ERROR",
    what: "the state of a batch could not be asked",
    remedy: again
  },
  5042: { name: "CU_FILE_INTERNAL_BATCH_CANCEL_ERROR", what: "a batch could not be cancelled", remedy: again },
  5043: { name: "CU_FILE_NOMEM_ERROR", what: "there is no memory", remedy: "Free memory of the host and of the GPU" },
  5044: { name: "CU_FILE_IO_ERROR", what: "the transfer failed", remedy: "Look at the kernel's log" },
  5045: {
    name: "CU_FILE_INTERNAL_BUF_REGISTER_ERROR",
    what: "a buffer could not be registered",
    remedy: "Register less, or use the buffer without registration"
  },
  5046: { name: "CU_FILE_HASH_OPR_ERROR", what: "a table of cuFile failed", remedy: look },
  5047: {
    name: "CU_FILE_INVALID_CONTEXT_ERROR",
    what: "the CUDA context is not valid",
    remedy: "Keep the Scope of DeviceMemory open for as long as that of CuFile"
  },
  5048: {
    name: "CU_FILE_NVFS_INTERNAL_DRIVER_ERROR",
    what: "nvidia-fs failed",
    remedy: "Look at the kernel's log and at cufile.log"
  },
  5049: {
    name: "CU_FILE_BATCH_NOCOMPAT_ERROR",
    what: "a batch cannot be done in compatibility mode",
    remedy: "Use single transfers"
  },
  5050: { name: "CU_FILE_IO_MAX_ERROR", what: "an error beyond all numbers", remedy: look }
}

/** `cuFileDriverOpen` answers with −errno where it refuses its configuration (libcufile 1.4 to 1.15). */
const configurationErrors: { readonly [code: number]: CuFileErrorWords } = {
  [-22]: {
    name: "EINVAL",
    what: "cuFile refuses its configuration",
    remedy: `Correct it: \`effect-disk-storage doctor DIRECTORY\` shows the place. ${look}`
  },
  [-13]: {
    name: "EACCES",
    what: "cuFile may not read its configuration",
    remedy: "Make /etc/cufile.json, and the file that CUFILE_ENV_PATH_JSON names, readable"
  }
}

/** What a number that is not in the table is called. */
export const cuFileErrorOf = (code: number): CuFileErrorWords =>
  cuFileErrors[code] ?? configurationErrors[code] ??
    { name: `error ${code}`, what: "an error that this release does not know", remedy: look }
