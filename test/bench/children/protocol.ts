/** What a test gives a traced process, in the environment, and what that says when it is done. */
import * as Schema from "effect/Schema"

export const Task = Schema.parseJson(Schema.Struct({
  size: Schema.Number,
  directory: Schema.String,
  openStrategy: Schema.Literal("default", "open-direct"),
  fallback: Schema.Literal("truncate", "zero-fill"),
  earlyUnlink: Schema.Boolean,
  hasFallocate: Schema.Boolean,
  /** Do one of the calls on the main thread, to be caught. */
  onMainThread: Schema.Boolean
}))

export type Task = typeof Task.Type

export const Report = Schema.parseJson(Schema.Struct({
  pid: Schema.Number,
  name: Schema.String,
  method: Schema.Literal("fallocate", "zero-fill", "truncate", "kept")
}))
