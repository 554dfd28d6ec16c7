/** What a test and the process that it runs a storage in say to each other, one line of JSON each. */
import * as Schema from "effect/Schema"
import {
  AllocationFailed,
  BufferUnavailable,
  CreateFailed,
  DirectIoRefused,
  DirectIoUnavailable,
  DirectoryUnsafe,
  DirectoryUnusable,
  FileReplaced,
  InsufficientSpace,
  InvalidOption,
  IoFailed,
  IoStalled,
  KeepFailed,
  MountMissing,
  OutOfBounds,
  OutOfSpace,
  PrewriteRefused,
  ReleaseFailed,
  StorageClosed,
  StorageDegraded,
  WorkingDirectoryGone
} from "../../../src/DiskStorageError.js"

/** How the storage is made, and in what circumstances. */
export const Task = Schema.parseJson(Schema.Struct({
  size: Schema.Number,
  directory: Schema.String,
  directIo: Schema.optionalWith(Schema.Literal("proven", "required", "preferred", "disabled"), { exact: true }),
  fallback: Schema.optionalWith(Schema.Literal("truncate", "zero-fill"), { exact: true }),
  earlyUnlink: Schema.optionalWith(Schema.Boolean, { exact: true }),
  keepAt: Schema.optionalWith(Schema.String, { exact: true }),
  /** The user to become once everything is loaded. */
  user: Schema.optionalWith(Schema.Number, { exact: true }),
  /** Take every file descriptor first. */
  takeDescriptors: Schema.optionalWith(Schema.Boolean, { exact: true })
}))

export type Task = typeof Task.Type

const Failure = Schema.Union(
  AllocationFailed,
  BufferUnavailable,
  CreateFailed,
  DirectIoRefused,
  DirectIoUnavailable,
  DirectoryUnsafe,
  DirectoryUnusable,
  FileReplaced,
  InsufficientSpace,
  InvalidOption,
  IoFailed,
  IoStalled,
  KeepFailed,
  MountMissing,
  OutOfBounds,
  OutOfSpace,
  PrewriteRefused,
  ReleaseFailed,
  StorageClosed,
  StorageDegraded,
  WorkingDirectoryGone
)

/** The answer to a line: `ready` comes unasked, the others after the lines `acquire`, `write`, `keep` and `close`. */
export const Reply = Schema.parseJson(Schema.Union(
  Schema.TaggedStruct("Ready", {}),
  Schema.TaggedStruct("Done", { path: Schema.String, openBelow: Schema.Array(Schema.String) }),
  Schema.TaggedStruct("Failed", { error: Failure, openBelow: Schema.Array(Schema.String) })
))

export type Reply = typeof Reply.Type
