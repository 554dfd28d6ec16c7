/**
 * @since 0.1.0
 */

/**
 * @since 0.1.0
 */
export * as AlignedBuffer from "./AlignedBuffer.js"
/**
 * @since 0.1.0
 */
export * as BlockLayout from "./BlockLayout.js"
/**
 * @since 0.1.0
 */
export * as BlockStore from "./BlockStore.js"
/**
 * @since 0.1.0
 */
export * as CuFile from "./CuFile.js"
/**
 * @since 0.1.0
 */
export * as DeviceMemory from "./DeviceMemory.js"
/**
 * @since 0.1.0
 */
export * as DevicePath from "./DevicePath.js"
/**
 * @since 0.1.0
 */
export * as DirectIo from "./DirectIo.js"
/**
 * @since 0.1.0
 */
export * as DiskAllocator from "./DiskAllocator.js"
/**
 * @since 0.1.0
 */
export * as DiskMetrics from "./DiskMetrics.js"
/**
 * @since 0.1.0
 */
export * as DiskStorage from "./DiskStorage.js"
/**
 * @since 0.1.0
 */
export * as DiskStorageConfig from "./DiskStorageConfig.js"
/**
 * @since 0.1.0
 */
export * as DiskStorageError from "./DiskStorageError.js"
/**
 * @since 0.1.0
 */
export * as IoEngine from "./IoEngine.js"
/**
 * @since 0.1.0
 */
export * as IoUring from "./IoUring.js"
/**
 * @since 0.1.0
 */
export * as Linux from "./Linux.js"
/**
 * @since 0.1.0
 */
export * as LinuxAio from "./LinuxAio.js"
/**
 * @since 0.1.0
 */
export * as LinuxSyscalls from "./LinuxSyscalls.js"
/**
 * @since 0.1.0
 */
export * as Nixl from "./Nixl.js"
/**
 * @since 0.1.0
 */
export * as NodeIo from "./NodeIo.js"
/**
 * @since 0.1.0
 */
export * as OffloadFilter from "./OffloadFilter.js"
/**
 * @since 0.1.0
 */
export * as ProcessRuntime from "./ProcessRuntime.js"
/**
 * @since 0.1.0
 */
export * as SimulatedSyscalls from "./SimulatedSyscalls.js"
/**
 * @since 0.1.0
 */
export * as Syscalls from "./Syscalls.js"
