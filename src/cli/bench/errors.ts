/** Ways in which the bench refuses or fails; each says what to do. */
import * as Data from "effect/Data"
import { bytes } from "./units.js"

/** The files would leave too little room for everybody else on the filesystem. */
export class NotEnoughSpace extends Data.TaggedError("NotEnoughSpace")<{
  readonly directory: string
  readonly size: number
  readonly reserve: number
  readonly free: number
}> {
  override get message(): string {
    const reserve = this.reserve === 0 ? "" : ` and is to leave ${bytes(this.reserve)} free`
    return `${this.directory} has ${bytes(this.free)} free, and this needs ${bytes(this.size)}${reserve}. ` +
      "Choose another directory or a smaller --size."
  }
}

/** The filesystem takes no O_DIRECT, so that a figure would be that of the page cache. */
export class NoDirectIo extends Data.TaggedError("NoDirectIo")<{
  readonly directory: string
  readonly filesystem: string
}> {
  override get message(): string {
    return `${this.directory} (${this.filesystem}) cannot do direct I/O: open with O_DIRECT gave EINVAL. ` +
      "Choose a directory on a disk, or --target memory."
  }
}

/** A file to measure on could not be made, filled or written to. */
export class TargetUnusable extends Data.TaggedError("TargetUnusable")<{
  readonly directory: string
  readonly step: string
  readonly cause: unknown
}> {
  override get message(): string {
    return `${this.directory} cannot be used (${this.step}): ${reason(this.cause)}`
  }
}

/** One contestant could not do one kind of load; the others go on. */
export class ContestantFailed extends Data.TaggedError("ContestantFailed")<{
  readonly contestant: string
  readonly cause: unknown
}> {
  override get message(): string {
    return `${this.contestant}: ${reason(this.cause)}`
  }
}

/** What was asked for leaves nothing to measure. */
export class NothingToMeasure extends Data.TaggedError("NothingToMeasure")<{ readonly message: string }> {}

/** A result could not be written. */
export class OutputFailed extends Data.TaggedError("OutputFailed")<{
  readonly path: string
  readonly cause: unknown
}> {
  override get message(): string {
    return `${this.path} cannot be written: ${reason(this.cause)}`
  }
}

const reason = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)
