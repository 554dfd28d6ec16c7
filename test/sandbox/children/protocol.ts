/** What the table of refused calls and `refused.ts` say to each other. */
import * as Schema from "effect/Schema"

export const Task = Schema.parseJson(Schema.Struct({
  directory: Schema.String,
  /** Names of calls, some with the second argument that is meant, as `seccomp.ts` takes them. */
  refuse: Schema.Array(Schema.Union(Schema.String, Schema.Tuple(Schema.String, Schema.Number))),
  errno: Schema.Number,
  directIo: Schema.Literal("proven", "required", "preferred"),
  engine: Schema.Literal("auto", "node"),
  fallback: Schema.Literal("truncate", "zero-fill"),
  keepAt: Schema.optionalWith(Schema.String, { exact: true }),
  requireMount: Schema.optionalWith(Schema.String, { exact: true })
}))

export type Task = typeof Task.Type

export const Outcome = Schema.parseJson(Schema.Struct({
  /** The tag of the first failure, and of what it was a failure of. */
  failed: Schema.optionalWith(
    Schema.Struct({
      step: Schema.Literal("acquire", "transfer", "sync", "keep", "release"),
      tag: Schema.String,
      message: Schema.String
    }),
    { exact: true }
  ),
  storage: Schema.optionalWith(
    Schema.Struct({
      verdict: Schema.String,
      reason: Schema.String,
      alignment: Schema.Number,
      allocation: Schema.String
    }),
    { exact: true }
  ),
  warnings: Schema.Array(Schema.String)
}))

export type Outcome = typeof Outcome.Type
