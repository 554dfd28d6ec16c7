/** What a test and `choice.ts` say to each other. */
import * as Schema from "effect/Schema"

export const Steps = Schema.parseJson(Schema.Struct({
  directory: Schema.String,
  steps: Schema.Array(Schema.Struct({
    refuse: Schema.Array(
      Schema.Literal(
        "io_setup",
        "io_submit",
        "eventfd2",
        "memfd_create",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register"
      )
    ),
    errno: Schema.Number,
    engine: Schema.optional(Schema.Literal("auto", "io_uring", "aio", "node"))
  }))
}))

export const Outcome = Schema.parseJson(Schema.Struct({
  engine: Schema.optional(Schema.String),
  failure: Schema.optional(Schema.String),
  message: Schema.String,
  lines: Schema.Array(Schema.String),
  /** Descriptors of engines and storages that are still open. */
  left: Schema.Array(Schema.String)
}))
