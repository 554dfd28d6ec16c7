/** What the service answers, as a value: the server, the client of `load.ts` and `/openapi.json` are all made from it. */
import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiGroup from "@effect/platform/HttpApiGroup"
import * as HttpApiSchema from "@effect/platform/HttpApiSchema"
import * as OpenApi from "@effect/platform/OpenApi"
import { DirectIo } from "effect-disk-storage"
import * as Schema from "effect/Schema"

/** A sequence hash: 64 bits, as 16 hex digits. */
export const Hash = Schema.transform(
  Schema.String.pipe(Schema.pattern(/^[0-9a-fA-F]{16}$/, { description: "16 hex digits" })),
  Schema.BigIntFromSelf,
  { strict: true, decode: (digits) => BigInt(`0x${digits}`), encode: (hash) => hash.toString(16).padStart(16, "0") }
)

/** Each names its status; what was wrong is in the fields. */
export class BlockMissing extends Schema.TaggedError<BlockMissing>()(
  "BlockMissing",
  { hash: Schema.String },
  HttpApiSchema.annotations({ status: 404, description: "No block is stored under this hash" })
) {}

export class WrongLength extends Schema.TaggedError<WrongLength>()(
  "WrongLength",
  { expected: Schema.Number, actual: Schema.Number },
  HttpApiSchema.annotations({ status: 400, description: "The body is shorter than a block" })
) {}

export class TooLarge extends Schema.TaggedError<TooLarge>()(
  "TooLarge",
  { expected: Schema.Number },
  HttpApiSchema.annotations({ status: 413, description: "The body is longer than a block; the connection is closed" })
) {}

export class TooSlow extends Schema.TaggedError<TooSlow>()(
  "TooSlow",
  { seconds: Schema.Number },
  HttpApiSchema.annotations({ status: 408, description: "The body did not come in time; the connection is closed" })
) {}

export class Busy extends Schema.TaggedError<Busy>()(
  "Busy",
  { transfers: Schema.Number },
  HttpApiSchema.annotations({ status: 503, description: "So many transfers run and wait already: try again later" })
) {}

export class Stopping extends Schema.TaggedError<Stopping>()(
  "Stopping",
  {},
  HttpApiSchema.annotations({ status: 503, description: "The service is being stopped" })
) {}

export class NoRoom extends Schema.TaggedError<NoRoom>()(
  "NoRoom",
  { reason: Schema.String },
  HttpApiSchema.annotations({ status: 507, description: "No slot can be made free, or no storage is left" })
) {}

export class Degraded extends Schema.TaggedError<Degraded>()(
  "Degraded",
  { retryAfterMillis: Schema.Number },
  HttpApiSchema.annotations({
    status: 503,
    description: "The disk has failed too often and is left alone: try again later"
  })
) {}

export class TransferFailed extends Schema.TaggedError<TransferFailed>()(
  "TransferFailed",
  { reason: Schema.String },
  HttpApiSchema.annotations({ status: 500, description: "It was not written, not read, or not what had been written" })
) {}

export class Unhealthy extends Schema.TaggedError<Unhealthy>()(
  "Unhealthy",
  { reason: Schema.String },
  HttpApiSchema.annotations({ status: 503, description: "No storage is left, or the service is being stopped" })
) {}

const StorageStats = Schema.Struct({
  capacity: Schema.Number,
  blocks: Schema.Number,
  retired: Schema.Number,
  failed: Schema.Boolean
})

/** In blocks, but for `blockBytes`; `transfers` run or wait for a buffer. */
export const Stats = Schema.Struct({
  blockBytes: Schema.Number,
  capacity: Schema.Number,
  blocks: Schema.Number,
  pinned: Schema.Number,
  inFlight: Schema.Number,
  stored: Schema.Number,
  duplicates: Schema.Number,
  filtered: Schema.Number,
  hits: Schema.Number,
  misses: Schema.Number,
  evicted: Schema.Number,
  corrupted: Schema.Number,
  failed: Schema.Number,
  transfers: Schema.Number,
  storages: Schema.Array(StorageStats)
})

/** `degraded`: some storages were taken out, or I/O is not direct. `io` is the verdict of the doctor on the directory. */
export const Health = Schema.Struct({
  status: Schema.Literal("ok", "degraded"),
  io: DirectIo.IoVerdict,
  gpu: DirectIo.GpuVerdict,
  reasons: Schema.Array(Schema.String),
  storages: Schema.Number,
  storagesFailed: Schema.Number
})

const path = Schema.Struct({ hash: Hash })

const blocks = HttpApiGroup.make("blocks")
  .add(
    HttpApiEndpoint.put("put", "/blocks/:hash")
      .setPath(path)
      .setPayload(HttpApiSchema.Uint8Array())
      .addSuccess(Schema.Struct({ outcome: Schema.Literal("stored", "duplicate", "filtered") }))
      .addError(WrongLength)
      .addError(TooLarge)
      .addError(TooSlow)
      .addError(Busy)
      .addError(Stopping)
      .addError(NoRoom)
      .addError(Degraded)
      .addError(TransferFailed)
      .annotate(OpenApi.Description, "Stores a block. The body has exactly `blockBytes` bytes, see /stats.")
  )
  .add(
    HttpApiEndpoint.get("get", "/blocks/:hash")
      .setPath(path)
      .addSuccess(HttpApiSchema.Uint8Array())
      .addError(BlockMissing)
      .addError(Busy)
      .addError(Stopping)
      .addError(Degraded)
      .addError(TransferFailed)
      .annotate(OpenApi.Description, "A block; answered only when all of it was read and verified.")
  )
  .add(
    HttpApiEndpoint.del("remove", "/blocks/:hash")
      .setPath(path)
      .addSuccess(HttpApiSchema.NoContent)
      .addError(BlockMissing)
      .annotate(OpenApi.Description, "Removes a block.")
  )
  .add(
    HttpApiEndpoint.post("match", "/match")
      .setPayload(Schema.Struct({ hashes: Schema.Array(Hash).pipe(Schema.maxItems(16_384)) }))
      .addSuccess(Schema.Struct({ blocks: Schema.Number }))
      .annotate(OpenApi.Description, "How many of the first hashes are all there: the longest cached prefix.")
  )

const operations = HttpApiGroup.make("operations")
  .add(HttpApiEndpoint.get("stats", "/stats").addSuccess(Stats))
  .add(HttpApiEndpoint.get("health", "/health").addSuccess(Health).addError(Unhealthy))
  .add(
    HttpApiEndpoint.get("metrics", "/metrics")
      .addSuccess(HttpApiSchema.Text({ contentType: "text/plain; version=0.0.4" }))
      .annotate(OpenApi.Description, "In the text format of Prometheus.")
  )

export class Api extends HttpApi.make("blocks-on-disk")
  .add(blocks)
  .add(operations)
  .annotate(OpenApi.Title, "Blocks on disk")
  .annotate(OpenApi.Description, "KV blocks by sequence hash, on preallocated files with direct I/O.")
{}
