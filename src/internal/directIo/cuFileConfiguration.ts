/**
 * What cuFile is configured to do. The file and its keys are those of NVIDIA's GPUDirect Storage configuration guide ("GPUDirect
 * Storage Parameters"). What is taken and what is refused was tried out with libcufile 1.15.1: comments of both kinds are taken, a
 * comma too many, a value of a wrong type and an unreadable file make `cuFileDriverOpen` fail, a missing file means the defaults.
 */
import type * as PlatformError from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import { evaluate, parse } from "@humanwhocodes/momoa"
import type { DocumentNode, ValueNode } from "@humanwhocodes/momoa"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"

export interface CuFileConfiguration {
  readonly path: string
  /** Why cuFile cannot use the file, with file, line and column where there is one; cuFile does not start then. */
  readonly problem: string | null
  readonly allowCompatMode: boolean | null
  readonly forceCompatMode: boolean | null
  readonly usePciP2pDma: boolean | null
  /** `block.….use_pci_p2pdma` of newer releases, which is wanted in addition; `null` where the file does not say. */
  readonly blockP2pDma: {
    readonly nvme: boolean | null
    readonly nvmeof: boolean | null
    readonly raid: boolean | null
  }
  readonly denyList: {
    readonly drivers: ReadonlyArray<string>
    readonly devices: ReadonlyArray<string>
    readonly mounts: ReadonlyArray<string>
    readonly filesystems: ReadonlyArray<string>
  }
  /** The addresses of the RDMA devices to use: for every filesystem, and for one by its name under `fs`. */
  readonly rdmaAddresses: {
    readonly all: ReadonlyArray<string>
    readonly of: { readonly [filesystem: string]: ReadonlyArray<string> }
  }
  /** `false`: writes go through compatibility mode, on every RDMA filesystem or on WekaFS. */
  readonly rdmaWrites: { readonly all: boolean | null; readonly weka: boolean | null }
}

const Flag = Schema.optional(Schema.NullOr(Schema.Boolean))
const Texts = Schema.optional(Schema.NullOr(Schema.Array(Schema.String)))
const P2pDma = Schema.optional(Schema.NullOr(Schema.Struct({ use_pci_p2pdma: Flag })))

const FilesystemSection = Schema.Struct({
  rdma_dev_addr_list: Texts,
  rdma_write_support: Flag,
  mount_table: Schema.optional(
    Schema.NullOr(Schema.Record({ key: Schema.String, value: Schema.Struct({ rdma_dev_addr_list: Texts }) }))
  )
})

/** The keys that bear on where cuFile's I/O goes; others are left alone, as there are more in every release. */
const Content = Schema.Struct({
  properties: Schema.optional(Schema.Struct({
    allow_compat_mode: Flag,
    force_compat_mode: Flag,
    use_pci_p2pdma: Flag,
    gds_rdma_write_support: Flag,
    rdma_dev_addr_list: Texts
  })),
  fs: Schema.optional(Schema.Record({ key: Schema.String, value: FilesystemSection })),
  block: Schema.optional(Schema.Struct({ nvme: P2pDma, nvmeof: P2pDma, raid: P2pDma })),
  denylist: Schema.optional(Schema.Struct({ drivers: Texts, devices: Texts, mounts: Texts, filesystems: Texts }))
})

type Content = typeof Content.Type

const decodeContent = Schema.decodeUnknownEither(Content)

/** momoa throws errors of a class that it does not export. */
const isLocated = Schema.is(Schema.Struct({ message: Schema.String, line: Schema.Number, column: Schema.Number }))

const describeSyntax = (path: string, cause: unknown): string =>
  isLocated(cause)
    ? `${path}:${cause.line}:${cause.column}: ${cause.message.replace(/ \(\d+:\d+\)$/, "")}`
    : cause instanceof RangeError
    // libcufile's reader, jsoncpp, takes 1000 levels; what walks a document here ends by its stack, beyond that.
    ? `${path}: it is nested too deeply to be read (${cause.message}); take levels out of it`
    : `${path}: ${String(cause)}`

/** The last of several members of one name counts, for jsoncpp and for momoa's `evaluate`. */
const descend = (node: ValueNode, key: PropertyKey): ValueNode | undefined =>
  node.type === "Object"
    ? node.members.findLast((member) =>
      (member.name.type === "String" ? member.name.value : member.name.name) === String(key)
    )
      ?.value
    : node.type === "Array"
    ? node.elements[Number(key)]?.value
    : undefined

const locate = (document: DocumentNode, keys: ReadonlyArray<PropertyKey>): ValueNode["loc"]["start"] => {
  let node = document.body
  for (const key of keys) {
    const next = descend(node, key)
    if (next === undefined) break
    node = next
  }
  return node.loc.start
}

const describeType = (path: string, document: DocumentNode, error: ParseResult.ParseError): string => {
  const issue = ParseResult.ArrayFormatter.formatErrorSync(error)[0]
  if (issue === undefined) return `${path}: ${error.message}`
  const at = locate(document, issue.path)
  return `${path}:${at.line}:${at.column}: ${issue.path.map(String).join(".")}: ${issue.message}`
}

const readContent = (path: string, text: string): Either.Either<Content, string> =>
  Either.try({
    // All that walks the document, which can be deeper than the stack.
    try: () => {
      const document = parse(text, { mode: "jsonc" })
      return Either.mapLeft(decodeContent(evaluate(document)), (error) => describeType(path, document, error))
    },
    catch: (cause) => describeSyntax(path, cause)
  }).pipe(Either.flatMap((decoded) => decoded))

/** A flag of the environment goes before the one of the file (troubleshooting guide, "Environment Variables Used by GDS"). */
const flagOf = (variable: string): Effect.Effect<boolean | null | undefined> =>
  textOf(variable).pipe(Effect.map(Option.match({
    onNone: () => undefined,
    onSome: (text) => {
      const lower = text.trim().toLowerCase()
      if (lower === "true" || lower === "1") return true
      return lower === "false" || lower === "0" ? false : null
    }
  })))

/** Empty is unset: libcufile then reads the default file too. */
const textOf = (variable: string): Effect.Effect<Option.Option<string>> =>
  Config.option(Config.string(variable)).pipe(
    Effect.map(Option.filter((text) => text !== "")),
    Effect.orElseSucceed(() => Option.none<string>())
  )

/** A key that is not there has its default; one that is `null` says nothing that could be relied on. */
const orDefault = (value: boolean | null | undefined, otherwise: boolean): boolean | null =>
  value === undefined ? otherwise : value

const rdmaAddressesOf = (content: Content): CuFileConfiguration["rdmaAddresses"] => ({
  all: content.properties?.rdma_dev_addr_list ?? [],
  of: Object.fromEntries(
    Object.entries(content.fs ?? {}).map(([name, section]) => [name, [
      ...section.rdma_dev_addr_list ?? [],
      ...Object.values(section.mount_table ?? {}).flatMap((mount) => mount.rdma_dev_addr_list ?? [])
    ]])
  )
})

const fromContent = (path: string, content: Content): CuFileConfiguration => ({
  path,
  problem: null,
  allowCompatMode: orDefault(content.properties?.allow_compat_mode, true),
  forceCompatMode: orDefault(content.properties?.force_compat_mode, false),
  usePciP2pDma: orDefault(content.properties?.use_pci_p2pdma, false),
  blockP2pDma: {
    nvme: content.block?.nvme?.use_pci_p2pdma ?? null,
    nvmeof: content.block?.nvmeof?.use_pci_p2pdma ?? null,
    raid: content.block?.raid?.use_pci_p2pdma ?? null
  },
  denyList: {
    drivers: content.denylist?.drivers ?? [],
    devices: content.denylist?.devices ?? [],
    mounts: content.denylist?.mounts ?? [],
    filesystems: content.denylist?.filesystems ?? []
  },
  rdmaAddresses: rdmaAddressesOf(content),
  rdmaWrites: {
    all: orDefault(content.properties?.gds_rdma_write_support, true),
    weka: orDefault(content.fs?.["weka"]?.rdma_write_support, false)
  }
})

const unusable = (path: string, problem: string): CuFileConfiguration => ({
  ...fromContent(path, {}),
  problem,
  allowCompatMode: null,
  forceCompatMode: null,
  usePciP2pDma: null,
  rdmaWrites: { all: null, weka: null }
})

/** The one that NVIDIA ships has 5 KiB. */
const MAX_MEBIBYTES = 1

/** Why a file is not read: reading a FIFO waits for ever, and reading a device may not end. */
const notReadable = (path: string, { size, type }: FileSystem.File.Info): string | null => {
  const remedy = `put a regular file of at most ${MAX_MEBIBYTES} MiB there, or let CUFILE_ENV_PATH_JSON name one`
  if (type !== "File") return `${path} is not read: it is no regular file (${type}); ${remedy}`
  return size > FileSystem.MiB(MAX_MEBIBYTES) ? `${path} is not read: it has ${size} bytes; ${remedy}` : null
}

const readFile = (path: string): Effect.Effect<CuFileConfiguration, never, FileSystem.FileSystem> =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const refusal = notReadable(path, yield* fs.stat(path))
    if (refusal !== null) return unusable(path, refusal)
    return Either.match(readContent(path, yield* fs.readFileString(path)), {
      onLeft: (problem) => unusable(path, problem),
      onRight: (content) => fromContent(path, content)
    })
  }).pipe(Effect.catchAll((error: PlatformError.PlatformError) =>
    Effect.succeed(
      error._tag === "SystemError" && error.reason === "NotFound"
        ? fromContent(path, {})
        : unusable(path, `${path} cannot be read: ${error.message}`)
    )
  ))

/** The configuration that cuFile would use in this process; what is wrong with it is part of the answer. */
export const readCuFileConfiguration: Effect.Effect<CuFileConfiguration, never, FileSystem.FileSystem> = Effect.gen(
  function*() {
    const path = Option.getOrElse(yield* textOf("CUFILE_ENV_PATH_JSON"), () => "/etc/cufile.json")
    const file = yield* readFile(path)
    if (file.problem !== null) return file
    const allow = yield* flagOf("CUFILE_ALLOW_COMPAT_MODE")
    const force = yield* flagOf("CUFILE_FORCE_COMPAT_MODE")
    const p2p = yield* flagOf("CUFILE_USE_PCIP2PDMA")
    return {
      ...file,
      allowCompatMode: allow === undefined ? file.allowCompatMode : allow,
      forceCompatMode: force === undefined ? file.forceCompatMode : force,
      usePciP2pDma: p2p === undefined ? file.usePciP2pDma : p2p
    }
  }
)
