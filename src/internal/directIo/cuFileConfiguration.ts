/**
 * The configuration of cuFile, as libcufile reads it. `cuFileJson` reads a file, `cuFileKeys` lists its keys; both give their sources. Measured
 * with `cuFileDriverOpen` of libcufile 1.4.0, 1.9.1, 1.10.0 and 1.15.1, without a GPU (5033 where the configuration is accepted):
 *
 * - /etc/cufile.json is read always, and then the file that CUFILE_ENV_PATH_JSON names, key by key above it. Each must be valid.
 * - A file that is missing is no error, one that may not be read is (−13), as everything else that is refused (−22).
 * - A flag in the environment counts where it is `true` or `false`, in any case; other values leave the file's (1.15.1).
 */
import type * as PlatformError from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type { Json } from "./cuFileJson.js"
import { place, readJson, textOf } from "./cuFileJson.js"
import type { Key, Violation } from "./cuFileKeys.js"
import { checkValue, keys, pathsOf } from "./cuFileKeys.js"

export interface CuFileConfiguration {
  /** The file to correct: the one with the problem, else the one that the environment names, else the default one. */
  readonly path: string
  /** Why cuFile does not start, with file, line and column where there is one. */
  readonly problem: string | null
  /** Why it is not known whether cuFile starts; beside a problem it does not matter. */
  readonly doubt: string | null
  /** Whether a release of libcufile ends the process that opens its driver with this configuration. */
  readonly endsProcess: boolean
  /** Of the flags: `null` where the value cannot be read. */
  readonly allowCompatMode: boolean | null
  readonly forceCompatMode: boolean | null
  readonly usePciP2pDma: boolean | null
  /** `block.….use_pci_p2pdma` of newer releases, which is wanted in addition; `null` where no file has the key. */
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

const DEFAULT_PATH = "/etc/cufile.json"

/** The values of all files so far, by key; none of them `null`. */
type Values = ReadonlyMap<string, Json>

interface Finding {
  readonly file: string
  readonly message: string
  /** `doubtful`: releases differ, or it is not known. */
  readonly severity: "refused" | "doubtful"
  readonly endsProcess: boolean
}

const refused = (file: string, message: string): Finding => ({
  file,
  message,
  severity: "refused",
  endsProcess: false
})

interface Document {
  readonly file: string
  readonly text: string
  readonly root: Json
}

const locate = ({ file, text }: Document, at: number): string => `${file}:${place(text, at)}`

const doubts: { readonly [since in Key["since"]]?: string } = {
  "1.15": "libcufile 1.15 refuses it, and 1.10 does not look at it",
  none: "whether libcufile refuses it is not known, as the key is newer than 1.15"
}

const findingOf = (document: Document, { path, since }: Pick<Key, "path" | "since">, violation: Violation): Finding => {
  const doubt = doubts[since]
  return {
    file: document.file,
    message: [
      `${locate(document, violation.at)}: ${path}: ${violation.message}`,
      ...violation.fatal && since !== "none" ? ["libcufile ends the process instead of refusing it"] : [],
      ...doubt === undefined ? [] : [doubt]
    ].join("; "),
    severity: doubt === undefined ? "refused" : "doubtful",
    endsProcess: violation.fatal && since !== "none"
  }
}

/** jsoncpp throws where a member is asked of what is no object; of `null` and of an empty document there is none. */
const notAnObject = (node: Json, path: string): Violation => ({
  at: node.at,
  message: `${path === "" ? "the document" : path} is no object`,
  fatal: true
})

/** The value of a key, or what is wrong on the way to it. */
const lookUp = (root: Json, path: string): Either.Either<Json | undefined, Violation> => {
  let node = root
  const parts = path.split(".")
  for (const [index, part] of parts.entries()) {
    if (node.type === "null") return Either.right(undefined)
    if (node.type !== "object") return Either.left(notAnObject(node, parts.slice(0, index).join(".")))
    const next = node.members.get(part)
    if (next === undefined) return Either.right(undefined)
    node = next
  }
  return Either.right(node.type === "null" ? undefined : node)
}

/** How long a path may take to be looked at, which libcufile does, too; a filesystem may hang. */
const patience = "5 seconds"

const checkPath = (
  { at, kind, path: whole }: ReturnType<typeof pathsOf>[number]
): Effect.Effect<
  { readonly violation: Violation; readonly known: boolean } | undefined,
  never,
  FileSystem.FileSystem
> => {
  // A path of C ends at its first NUL.
  const path = whole.split("\0")[0] ?? ""
  return Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const { type } = yield* fs.stat(path)
    if (kind !== "anything" && type !== "Directory") return `${path} is no directory`
    if (kind === "readable directory") yield* fs.access(path, { readable: true })
    return undefined
  }).pipe(
    Effect.catchAll((error: PlatformError.PlatformError) => Effect.succeed(`${path} cannot be used: ${error.message}`)),
    Effect.map((message) =>
      message === undefined ? undefined : { violation: { at, message, fatal: false }, known: true }
    ),
    Effect.timeoutTo({
      duration: patience,
      onSuccess: (found) => found,
      onTimeout: () => ({ violation: { at, message: `${path} does not answer`, fatal: false }, known: false })
    })
  )
}

interface Reading {
  readonly findings: ReadonlyArray<Finding>
  readonly values: Values
}

const checkKey = (document: Document, key: Key) =>
  Effect.gen(function*() {
    const found = lookUp(document.root, key.path)
    if (Either.isLeft(found)) return { findings: [findingOf(document, key, found.left)], value: undefined }
    const value = found.right
    if (value === undefined) return { findings: [], value }
    const violation = checkValue(value, key.rule)
    if (violation !== undefined) return { findings: [findingOf(document, key, violation)], value }
    const findings: Array<Finding> = []
    for (const path of pathsOf(value, key.rule)) {
      const wrong = yield* checkPath(path)
      if (wrong === undefined) continue
      const finding = findingOf(document, key, wrong.violation)
      findings.push(wrong.known ? finding : { ...finding, severity: "doubtful" })
    }
    return { findings, value }
  })

const lengthOf = (node: Json | undefined, otherwise: number): number =>
  node?.type === "array" ? node.elements.length : otherwise

const kibibytesOf = (node: Json | undefined): bigint => node?.type === "integer" ? node.value : 1024n

/** What keys want of each other, in all files so far. The defaults are three slabs, and 1024 KiB of both sizes. */
const checkTogether = (document: Document, own: Values, all: Values): ReadonlyArray<Finding> => {
  const findings: Array<Finding> = []
  const [sizeKey, countKey] = ["properties.posix_pool_slab_size_kb", "properties.posix_pool_slab_count"] as const
  const counts = own.get(countKey)
  // Sizes without counts are not compared.
  if (counts?.type === "array" && counts.elements.length !== lengthOf(all.get(sizeKey), 3)) {
    findings.push(findingOf(document, { path: countKey, since: "1.4" }, {
      at: counts.at,
      message: `it has ${counts.elements.length} elements, and ${sizeKey} has ${lengthOf(all.get(sizeKey), 3)}`,
      fatal: false
    }))
  }
  const [directKey, bufferKey] = ["properties.max_direct_io_size_kb", "properties.per_buffer_cache_size_kb"] as const
  const size = own.get(directKey) ?? own.get(bufferKey)
  if (size !== undefined && kibibytesOf(all.get(directKey)) < kibibytesOf(all.get(bufferKey))) {
    findings.push(findingOf(document, { path: directKey, since: "1.15" }, {
      at: size.at,
      message: `${kibibytesOf(all.get(directKey))} KiB are less than ${bufferKey}, which is ${
        kibibytesOf(all.get(bufferKey))
      }`,
      fatal: false
    }))
  }
  return findings
}

const checkDocument = (document: Document, before: Values): Effect.Effect<Reading, never, FileSystem.FileSystem> =>
  Effect.gen(function*() {
    const { root } = document
    if (root.type !== "object" && root.type !== "null" && !(root.type === "array" && root.elements.length === 0)) {
      return { findings: [findingOf(document, { path: "{}", since: "1.4" }, notAnObject(root, ""))], values: before }
    }
    if (root.type !== "object") return { findings: [], values: before }
    const findings: Array<Finding> = []
    const own = new Map<string, Json>()
    for (const key of keys) {
      const checked = yield* checkKey(document, key)
      findings.push(...checked.findings)
      if (checked.value !== undefined) own.set(key.path, checked.value)
    }
    const values = new Map([...before, ...own])
    return { findings: [...findings, ...checkTogether(document, own, values)], values }
  })

/** The one that NVIDIA ships has 10 KiB. */
const MAX_MEBIBYTES = 1

/** Why a file is not read: reading a FIFO waits for ever, and reading a device may not end. */
const notReadable = (file: string, { size, type }: FileSystem.File.Info): Finding | undefined => {
  const remedy = `put a regular file of at most ${MAX_MEBIBYTES} MiB there, or let CUFILE_ENV_PATH_JSON name one`
  if (type === "Directory") return refused(file, `${file} is a directory; ${remedy}`)
  if (type !== "File") {
    return { ...refused(file, `${file} is not read: it is no regular file (${type}); ${remedy}`), severity: "doubtful" }
  }
  return size > FileSystem.MiB(MAX_MEBIBYTES)
    ? { ...refused(file, `${file} is not read: it has ${size} bytes; ${remedy}`), severity: "doubtful" }
    : undefined
}

/** `unread`: what the file holds is not known. */
const readFile = (
  file: string,
  before: Values
): Effect.Effect<Reading & { readonly unread: boolean }, never, FileSystem.FileSystem> =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const refusal = notReadable(file, yield* fs.stat(file))
    if (refusal !== undefined) return { findings: [refusal], values: before, unread: true }
    const text = textOf(yield* fs.readFile(file))
    const json = readJson(text)
    if (Either.isRight(json)) {
      return { ...yield* checkDocument({ file, text, root: json.right }, before), unread: false }
    }
    const { at, fatal, message } = json.left
    const ends = fatal ? "; libcufile ends the process instead of refusing it" : ""
    const finding = { ...refused(file, `${file}:${place(text, at)}: ${message}${ends}`), endsProcess: fatal }
    return { findings: [finding], values: before, unread: true }
  }).pipe(Effect.catchAll((error: PlatformError.PlatformError) =>
    Effect.succeed(
      error._tag === "SystemError" && error.reason === "NotFound"
        ? { findings: [], values: before, unread: false }
        : { findings: [refused(file, `${file} cannot be read: ${error.message}`)], values: before, unread: true }
    )
  ))

const variable = (name: string): Effect.Effect<Option.Option<string>> =>
  Effect.orElseSucceed(Config.option(Config.string(name)), () => Option.none<string>())

/** A flag of the environment goes before those of the files ("Environment Variables Used by GDS"); `null`: neither true nor false. */
const flagOf = (name: string): Effect.Effect<boolean | null | undefined> =>
  Effect.map(variable(name), (text) => {
    const value = Option.getOrElse(text, () => "").toLowerCase()
    return value === "" ? undefined : value === "true" ? true : value === "false" ? false : null
  })

const dcKey = "CUFILE_RDMA_DC_KEY"

/** The only other variable for whose value libcufile refuses to start, an empty one included. */
const checkDcKey: Effect.Effect<ReadonlyArray<Finding>> = Effect.map(variable(dcKey), (text) => {
  if (Option.isNone(text)) return []
  const violation = checkValue({ type: "string", at: 0, value: text.value }, { type: "hex", zero: false })
  return violation === undefined ? [] : [refused(dcKey, `${dcKey}: ${violation.message}`)]
})

const boolean = (values: Values, path: string, otherwise: boolean): boolean | null => {
  const node = values.get(path)
  return node === undefined ? otherwise : node.type === "boolean" ? node.value : null
}

const texts = (node: Json | undefined): ReadonlyArray<string> =>
  node?.type === "array" ? node.elements.flatMap((one) => one.type === "string" ? [one.value] : []) : []

const filesystems = ["lustre", "nfs", "gpfs", "weka", "beegfs", "scatefs"] as const

const rdmaAddressesOf = (values: Values): CuFileConfiguration["rdmaAddresses"] => ({
  all: texts(values.get("properties.rdma_dev_addr_list")),
  of: Object.fromEntries(
    filesystems.map((name) => {
      const table = values.get(`fs.${name}.mount_table`)
      const mounts = table?.type === "object" ? [...table.members.values()] : []
      return [name, [
        ...texts(values.get(`fs.${name}.rdma_dev_addr_list`)),
        ...mounts.flatMap((mount) => mount.type === "object" ? texts(mount.members.get("rdma_dev_addr_list")) : [])
      ]]
    })
  )
})

const blockFlag = (values: Values, kind: "nvme" | "nvmeof" | "raid"): boolean | null => {
  const node = values.get(`block.${kind}.use_pci_p2pdma`)
  return node?.type === "boolean" ? node.value : null
}

type Content = Omit<CuFileConfiguration, "path" | "problem" | "doubt" | "endsProcess">

const contentOf = (values: Values): Content => ({
  allowCompatMode: boolean(values, "properties.allow_compat_mode", true),
  forceCompatMode: boolean(values, "properties.force_compat_mode", false),
  usePciP2pDma: boolean(values, "properties.use_pci_p2pdma", false),
  blockP2pDma: {
    nvme: blockFlag(values, "nvme"),
    nvmeof: blockFlag(values, "nvmeof"),
    raid: blockFlag(values, "raid")
  },
  denyList: {
    drivers: texts(values.get("denylist.drivers")),
    devices: texts(values.get("denylist.devices")),
    mounts: texts(values.get("denylist.mounts")),
    filesystems: texts(values.get("denylist.filesystems"))
  },
  rdmaAddresses: rdmaAddressesOf(values),
  rdmaWrites: {
    all: boolean(values, "properties.gds_rdma_write_support", true),
    weka: boolean(values, "fs.weka.rdma_write_support", false)
  }
})

const withoutFlags = {
  allowCompatMode: null,
  forceCompatMode: null,
  usePciP2pDma: null,
  rdmaWrites: { all: null, weka: null }
} as const

/** The configuration that cuFile would use in this process; what is wrong with it is part of the answer. */
export const readCuFileConfiguration: Effect.Effect<CuFileConfiguration, never, FileSystem.FileSystem> = Effect.gen(
  function*() {
    // Empty is unset, for libcufile too.
    const named = Option.filter(yield* variable("CUFILE_ENV_PATH_JSON"), (path) => path !== "")
    const base = yield* readFile(DEFAULT_PATH, new Map())
    const above = Option.isNone(named) ? undefined : yield* readFile(named.value, base.values)
    const findings = [...base.findings, ...above?.findings ?? [], ...yield* checkDcKey]
    const problem = findings.find(({ severity }) => severity === "refused")
    const doubt = findings.find(({ severity }) => severity === "doubtful")
    const unread = base.unread || above?.unread === true
    const content = contentOf((above ?? base).values)
    const { allowCompatMode, forceCompatMode, usePciP2pDma } = unread ? withoutFlags : content
    const allow = yield* flagOf("CUFILE_ALLOW_COMPAT_MODE")
    const force = yield* flagOf("CUFILE_FORCE_COMPAT_MODE")
    const p2p = yield* flagOf("CUFILE_USE_PCIP2PDMA")
    return {
      path: (problem ?? doubt)?.file ?? Option.getOrElse(named, () => DEFAULT_PATH),
      problem: problem?.message ?? null,
      doubt: doubt?.message ?? null,
      endsProcess: findings.some(({ endsProcess }) => endsProcess),
      ...content,
      ...unread ? withoutFlags : {},
      allowCompatMode: allow === undefined ? allowCompatMode : allow,
      forceCompatMode: force === undefined ? forceCompatMode : force,
      usePciP2pDma: p2p === undefined ? usePciP2pDma : p2p
    }
  }
)
