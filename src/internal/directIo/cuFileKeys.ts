/**
 * The keys of cufile.json, and what libcufile wants of their values. Sources: NVIDIA's GPUDirect Storage configuration guide ("GPUDirect
 * Storage Parameters"), the comments of the file that NVIDIA ships, and `cuFileDriverOpen` of libcufile 1.4.0, 1.9.1, 1.10.0 and 1.15.1,
 * tried with values inside, at and beyond each bound. Without a GPU: bounds that depend on a GPU's BAR are not known.
 *
 * Keys that are not here are ignored, as libcufile ignores them. `null` is as good as no key. Documented and not enforced by these releases:
 * the names of `logging.level`, `io_priority` and `rdma_load_balancing_policy`, `cufile_stats` 0–3, 4 KiB multiples of `posix_gds_min_kb`.
 */
import type { Json } from "./cuFileJson.js"

/** Sizes are in KiB and times in milliseconds, as their names say. */
export type Rule =
  | { readonly type: "boolean" }
  /** `bits`: beyond 32 bits libcufile ends the process. Reals are cut, booleans are 0 and 1. */
  | {
    readonly type: "unsigned"
    readonly bits: 32 | 64
    readonly least: bigint
    readonly most: bigint
    readonly multiple: bigint
    /** Zero is taken, although it is below `least`. */
    readonly zero: boolean
  }
  /** Of 32 bits; neither reals nor booleans. `lowByte`: the largest value of its lowest eight bits. */
  | { readonly type: "signed"; readonly lowByte: bigint | null }
  | { readonly type: "text"; readonly oneOf: ReadonlyArray<string> | null }
  /** Hexadecimal, of 32 bits. */
  | { readonly type: "hex"; readonly zero: boolean }
  /** A directory that this process may open. */
  | { readonly type: "directory" }
  /** `exist`: each is the path of something. */
  | { readonly type: "texts"; readonly oneOf: ReadonlyArray<string> | null; readonly exist: boolean }
  | { readonly type: "signed list"; readonly multiple: bigint }
  /** An object by mount point; one with addresses is a directory. */
  | { readonly type: "mount table" }

export interface Key {
  readonly path: string
  readonly rule: Rule
  /** The oldest of the tried releases that refuses; `none`: newer ones document the key, and whether they refuse is not known. */
  readonly since: "1.4" | "1.9" | "1.15" | "none"
}

const flag: Rule = { type: "boolean" }
const text: Rule = { type: "text", oneOf: null }
const addresses: Rule = { type: "texts", oneOf: null, exist: false }
const existing: Rule = { type: "texts", oneOf: null, exist: true }
const mounts: Rule = { type: "mount table" }

/** The largest number of KiB whose bytes fit 64 bits and whole pages: 2⁵⁴ − 4. */
const MOST_KIB = 18_014_398_509_481_980n

const unsigned = (
  bits: 32 | 64,
  least: bigint,
  most: bigint = bits === 32 ? 2n ** 32n - 1n : 2n ** 64n - 1n,
  { multiple = 1n, zero = false }: { readonly multiple?: bigint; readonly zero?: boolean } = {}
): Rule => ({ type: "unsigned", bits, least, most, multiple, zero })

/** The order in which libcufile looks at them does not matter here: one that is wrong is enough. */
export const keys: ReadonlyArray<Key> = [
  { path: "logging.dir", rule: { type: "directory" }, since: "1.4" },
  { path: "logging.level", rule: text, since: "1.4" },
  { path: "profile.nvtx", rule: flag, since: "1.4" },
  { path: "profile.cufile_stats", rule: unsigned(32, 0n), since: "1.4" },
  { path: "execution.max_io_queue_depth", rule: unsigned(32, 1n, 256n), since: "1.9" },
  { path: "execution.max_io_threads", rule: unsigned(32, 0n, 32n), since: "1.9" },
  { path: "execution.max_request_parallelism", rule: unsigned(32, 0n, 8n), since: "1.9" },
  { path: "execution.min_io_threshold_size_kb", rule: unsigned(32, 4n), since: "1.9" },
  { path: "execution.parallel_io", rule: flag, since: "1.9" },
  { path: "properties.allow_compat_mode", rule: flag, since: "1.4" },
  { path: "properties.force_compat_mode", rule: flag, since: "1.4" },
  { path: "properties.use_poll_mode", rule: flag, since: "1.4" },
  { path: "properties.gds_rdma_write_support", rule: flag, since: "1.4" },
  { path: "properties.rdma_dynamic_routing", rule: flag, since: "1.4" },
  { path: "properties.allow_system_memory", rule: flag, since: "1.9" },
  { path: "properties.force_odirect_mode", rule: flag, since: "1.9" },
  { path: "properties.prefer_iouring", rule: flag, since: "1.9" },
  { path: "properties.use_pci_p2pdma", rule: flag, since: "1.15" },
  // "GDS batch size"; the guide gives the default, 128.
  { path: "properties.io_batchsize", rule: unsigned(64, 1n, 256n), since: "1.4" },
  { path: "properties.max_batch_io_timeout_msecs", rule: unsigned(64, 1n, 1000n), since: "1.4" },
  // "parameter should be multiples of 64K".
  { path: "properties.max_direct_io_size_kb", rule: unsigned(64, 64n, 16_384n, { multiple: 64n }), since: "1.4" },
  {
    path: "properties.per_buffer_cache_size_kb",
    rule: unsigned(64, 64n, undefined, { multiple: 64n, zero: true }),
    since: "1.4"
  },
  // "parameter should be 4K aligned", of these three.
  {
    path: "properties.max_device_cache_size_kb",
    rule: unsigned(64, 0n, MOST_KIB, { multiple: 4n }),
    since: "1.4"
  },
  {
    path: "properties.max_device_pinned_mem_size_kb",
    rule: unsigned(64, 64n, MOST_KIB, { multiple: 4n, zero: true }),
    since: "1.4"
  },
  { path: "properties.poll_mode_max_size_kb", rule: unsigned(64, 4n, MOST_KIB, { multiple: 4n }), since: "1.4" },
  { path: "properties.posix_pool_slab_size_kb", rule: { type: "signed list", multiple: 4n }, since: "1.4" },
  { path: "properties.posix_pool_slab_count", rule: { type: "signed list", multiple: 1n }, since: "1.4" },
  { path: "properties.io_priority", rule: text, since: "1.4" },
  { path: "properties.rdma_load_balancing_policy", rule: text, since: "1.4" },
  { path: "properties.rdma_peer_type", rule: { type: "text", oneOf: ["nvidia_peermem", "dmabuf"] }, since: "1.4" },
  { path: "properties.rdma_dc_key", rule: { type: "hex", zero: false }, since: "1.4" },
  { path: "properties.rdma_access_mask", rule: { type: "hex", zero: true }, since: "1.4" },
  { path: "properties.rdma_service_level", rule: { type: "signed", lowByte: 15n }, since: "1.4" },
  { path: "properties.rdma_topN_ranks", rule: { type: "signed", lowByte: null }, since: "1.4" },
  { path: "properties.rdma_dev_addr_list", rule: addresses, since: "1.4" },
  {
    path: "properties.rdma_dynamic_routing_order",
    rule: { type: "texts", oneOf: ["GPU_MEM_NVLINKS", "GPU_MEM", "SYS_MEM", "P2P"], exist: false },
    since: "1.4"
  },
  { path: "fs.generic.posix_unaligned_writes", rule: flag, since: "1.4" },
  { path: "fs.gpfs.gds_write_support", rule: flag, since: "1.4" },
  { path: "fs.gpfs.gds_async_support", rule: flag, since: "1.15" },
  { path: "fs.weka.rdma_write_support", rule: flag, since: "1.4" },
  ...(["lustre", "beegfs", "scatefs"] as const).map((name): Key => ({
    path: `fs.${name}.posix_gds_min_kb`,
    rule: unsigned(32, 0n, 1024n),
    since: name === "scatefs" ? "1.15" : "1.4"
  })),
  ...(["lustre", "nfs", "gpfs", "weka", "beegfs", "scatefs"] as const).flatMap((name): ReadonlyArray<Key> => {
    const since = name === "scatefs" ? "1.15" : "1.4"
    return [
      { path: `fs.${name}.rdma_dev_addr_list`, rule: addresses, since },
      { path: `fs.${name}.mount_table`, rule: mounts, since }
    ]
  }),
  // Keys of releases after 1.15.
  ...([
    "fs.lustre",
    "fs.nfs",
    "fs.gpfs",
    "fs.beegfs",
    "fs.scatefs",
    "fs.virtiofs",
    "block.nvme",
    "block.nvmeof"
  ] as const)
    .map((section): Key => ({ path: `${section}.use_pci_p2pdma`, rule: flag, since: "none" })),
  { path: "block.raid.use_pci_p2pdma", rule: flag, since: "none" },
  { path: "denylist.drivers", rule: { type: "texts", oneOf: null, exist: false }, since: "1.4" },
  { path: "denylist.filesystems", rule: { type: "texts", oneOf: null, exist: false }, since: "1.4" },
  { path: "denylist.devices", rule: existing, since: "1.4" },
  { path: "denylist.mounts", rule: existing, since: "1.4" },
  { path: "miscellaneous.api_check_aggressive", rule: flag, since: "1.4" },
  { path: "miscellaneous.rcu_library_used", rule: text, since: "1.4" },
  { path: "miscellaneous.stream_memops_bypass", rule: flag, since: "1.9" },
  { path: "miscellaneous.skip_topology_detection", rule: flag, since: "1.9" }
]

/** What is wrong with a value. `fatal`: libcufile ends the process instead of refusing the configuration. */
export interface Violation {
  readonly at: number
  readonly message: string
  readonly fatal: boolean
}

const wrong = (node: Json, message: string, fatal = false): Violation => ({ at: node.at, message, fatal })

export const show = (node: Json): string => {
  switch (node.type) {
    case "integer":
    case "real":
      return String(node.value)
    case "string":
    case "boolean":
      return JSON.stringify(node.value)
    case "array":
      return "a list"
    case "object":
      return "an object"
    case "null":
      return "null"
  }
}

const expected = (node: Json, what: string): Violation => wrong(node, `${what} is expected, not ${show(node)}`)

/** The largest reals that are converted: above 2⁶⁴ − 2¹¹ the next one is 2⁶⁴. */
const LARGEST_REAL = { 32: 2 ** 32 - 1, 64: 2 ** 64 - 2 ** 11 } as const

/** As jsoncpp converts to an unsigned integer; undefined where it does not. */
const unsignedOf = (node: Json, bits: 32 | 64): bigint | undefined => {
  switch (node.type) {
    case "boolean":
      return node.value ? 1n : 0n
    case "integer":
      return node.value < 0n ? undefined : node.value
    case "real":
      return node.value < 0 || node.value > LARGEST_REAL[bits] ? undefined : BigInt(Math.trunc(node.value))
    default:
      return undefined
  }
}

const checkUnsigned = (node: Json, rule: Extract<Rule, { readonly type: "unsigned" }>): Violation | undefined => {
  const { bits, least, most, multiple, zero } = rule
  const value = unsignedOf(node, bits)
  if (value === undefined) return expected(node, "a number that is not negative")
  if (bits === 32 && value >= 2n ** 32n) return wrong(node, `${value} is beyond 32 bits`, true)
  if (zero && value === 0n) return undefined
  if (value < least || value > most) return wrong(node, `${value} is not within ${least} and ${most}`)
  return value % multiple === 0n ? undefined : wrong(node, `${value} is no multiple of ${multiple} KiB`)
}

const isSigned = (node: Json): node is Extract<Json, { readonly type: "integer" }> =>
  node.type === "integer" && node.value >= -(2n ** 31n) && node.value < 2n ** 31n

const checkHex = (node: Json, zero: boolean): Violation | undefined => {
  if (node.type !== "string") return expected(node, "a text with a hexadecimal number")
  const digits = /^\s*(?:0[xX])?([0-9a-fA-F]+)$/.exec(node.value)?.[1]
  // The empty text is 0, as `strtoul(3)` has it.
  const value = node.value === "" ? 0n : digits === undefined ? undefined : BigInt(`0x${digits}`)
  if (value === undefined || value >= 2n ** 32n) return expected(node, "a hexadecimal number of 32 bits")
  return value === 0n && !zero ? wrong(node, "0 is not allowed") : undefined
}

const checkTexts = (node: Json, oneOf: ReadonlyArray<string> | null): Violation | undefined => {
  if (node.type !== "array") return expected(node, "a list of texts")
  for (const element of node.elements) {
    if (element.type !== "string") return expected(element, "a text")
    if (oneOf !== null && !oneOf.includes(element.value)) return expected(element, `one of ${oneOf.join(", ")}`)
  }
  return undefined
}

const checkMounts = (node: Json): Violation | undefined => {
  if (node.type !== "object") return expected(node, "an object by mount point")
  for (const mount of node.members.values()) {
    if (mount.type !== "object") return expected(mount, "an object")
    const list = mount.members.get("rdma_dev_addr_list")
    const found = list === undefined || list.type === "null" ? undefined : checkTexts(list, null)
    if (found !== undefined) return found
  }
  return undefined
}

/** All of a rule but what needs the filesystem. */
export const checkValue = (node: Json, rule: Rule): Violation | undefined => {
  switch (rule.type) {
    case "boolean":
      return node.type === "boolean" ? undefined : expected(node, "true or false")
    case "unsigned":
      return checkUnsigned(node, rule)
    case "signed":
      if (!isSigned(node)) return expected(node, "a whole number of 32 bits")
      return rule.lowByte !== null && BigInt.asUintN(8, node.value) > rule.lowByte
        ? wrong(node, `${node.value} is not within 0 and ${rule.lowByte}`)
        : undefined
    case "text":
      if (node.type !== "string") return expected(node, "a text")
      return rule.oneOf === null || rule.oneOf.includes(node.value)
        ? undefined
        : expected(node, `one of ${rule.oneOf.join(", ")}`)
    case "directory":
      return node.type === "string" ? undefined : expected(node, "the path of a directory")
    case "hex":
      return checkHex(node, rule.zero)
    case "texts":
      return checkTexts(node, rule.oneOf)
    case "mount table":
      return checkMounts(node)
    case "signed list":
      if (node.type !== "array") return expected(node, "a list of numbers")
      for (const element of node.elements) {
        if (!isSigned(element)) return expected(element, "a whole number of 32 bits")
        if (element.value % rule.multiple !== 0n) {
          return wrong(element, `${element.value} is no multiple of ${rule.multiple} KiB`)
        }
      }
      return undefined
  }
}

/** The paths that a value names, and what they must be. */
export const pathsOf = (
  node: Json,
  rule: Rule
): ReadonlyArray<
  { readonly path: string; readonly at: number; readonly kind: "anything" | "directory" | "readable directory" }
> => {
  if (rule.type === "directory" && node.type === "string") {
    return [{ path: node.value, at: node.at, kind: "readable directory" }]
  }
  if (rule.type === "texts" && rule.exist && node.type === "array") {
    return node.elements.flatMap((element) =>
      element.type === "string" ? [{ path: element.value, at: element.at, kind: "anything" as const }] : []
    )
  }
  if (rule.type !== "mount table" || node.type !== "object") return []
  return [...node.members].flatMap(([path, mount]) => {
    const list = mount.type === "object" ? mount.members.get("rdma_dev_addr_list") : undefined
    return list?.type === "array" && list.elements.length > 0
      ? [{ path, at: mount.at, kind: "directory" as const }]
      : []
  })
}
