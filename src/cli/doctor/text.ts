/** The report as an operator reads it: the verdict first, then what stands in the way, then what both rest on. */
import * as Arr from "effect/Array"
import * as Schema from "effect/Schema"
import type {
  Alignment,
  BlockDevice,
  Condition,
  DirectIoReport,
  Filesystem,
  GpuFacts,
  GpuVerdict,
  IoVerdict,
  KernelFacts,
  Measurement,
  Probe
} from "../../DirectIo.js"
import { bytes, megabytes } from "../bench/units.js"
import type { Block, Style } from "../layout.js"
import {
  below,
  beside,
  bold,
  cyan,
  dim,
  emptyLine,
  green,
  indented,
  prose,
  red,
  span,
  withoutColours,
  yellow
} from "../layout.js"

export interface TextOptions {
  /** Columns; nothing but a word that is longer goes beyond. */
  readonly width: number
  readonly colour: boolean
  /** Also the conditions that do not apply. */
  readonly all: boolean
  readonly devicePath?: PathReport | undefined
}

/** What was tried of GPUs; `null`: there is none. */
export const PathReport = Schema.Struct({
  kind: Schema.Literal("gds", "gds-compat", "host-staged", "unavailable"),
  reasons: Schema.Array(Schema.String),
  improvements: Schema.Array(Schema.String),
  device: Schema.NullOr(Schema.String),
  cuFile: Schema.NullOr(
    Schema.Struct({ version: Schema.NullOr(Schema.String), mode: Schema.String, modeReason: Schema.String })
  )
})

export type PathReport = typeof PathReport.Type

interface Meaning {
  readonly says: string
  readonly style: Style
}

const meaningOfIo: Readonly<Record<IoVerdict, Meaning>> = {
  "direct": { says: "reads and every kind of write bypass the page cache", style: green },
  "direct-with-conditions": {
    says:
      "reads and overwrites bypass the page cache; the conditions below say what does not, or what is done to the data",
    style: yellow
  },
  "buffered": { says: "O_DIRECT is taken, and the page cache is used all the same", style: red },
  "unsupported": { says: "O_DIRECT is refused, or nothing can be written here", style: red },
  "unknown": { says: "it could not be found out, for the reasons below", style: yellow }
}

const meaningOfGpu: Readonly<Record<GpuVerdict, Meaning>> = {
  "nvidia-fs": { says: "data goes directly between storage and GPU memory, through nvidia-fs", style: green },
  "p2pdma": {
    says: "data goes directly between storage and GPU memory, through the kernel's PCI peer-to-peer DMA",
    style: green
  },
  "compat": { says: "cuFile works, by copying through CPU memory as far as is known", style: yellow },
  "unavailable": { says: "cuFile does not work here", style: dim }
}

/** The headings of the GPUDirect Storage O_DIRECT guide. */
const guideHeadings: Readonly<Record<string, string>> = {
  "2.1": "Summary of basic requirements",
  "2.2": "Client and server",
  "2.3": "Cases where O_DIRECT is not a fit",
  "2.3.1": "Buffered IO",
  "2.3.2": "Inline files",
  "2.3.3": "Block allocation for writes",
  "2.3.4": "Examining or transforming user data"
}

const sentence = (text: string): Block => prose(span(text))

const item = (bullet: string, text: string): Block => beside(span(bullet), 2, sentence(text))

const row = (label: string, width: number, text: string): Block => beside(span(label), width, sentence(text))

const section = (title: string, body: ReadonlyArray<Block>): ReadonlyArray<Block> =>
  body.length === 0 ? [] : [emptyLine, prose(span(title, bold)), ...body.map(indented)]

const list = (items: ReadonlyArray<string | false | null>): string => items.filter(Boolean).join(", ")

const verdictBlock = (name: string, word: string, { says, style }: Meaning, reasons: ReadonlyArray<string>): Block =>
  beside(
    span(name),
    5,
    below([prose(span(word, style, bold), span(`— ${says}`)), ...reasons.map((reason) => item("-", reason))])
  )

const deviceKind = ({ detail, kind, loopDirectIo, transport }: BlockDevice): string => {
  if (kind === "loop") {
    const how = loopDirectIo === null ? "" : loopDirectIo ? ", which it reads directly" : ", which it buffers"
    return `loop over ${detail ?? "a file"}${how}`
  }
  return `${kind}${detail === null ? "" : ` ${detail}`}${
    transport === null || transport === kind ? "" : ` over ${transport}`
  }`
}

const deviceFacts = (device: BlockDevice): string =>
  list([
    deviceKind(device),
    device.logicalSector !== null && `${device.logicalSector}/${device.physicalSector ?? "?"} sectors`,
    device.rotational === true && "rotational",
    device.readAhead !== null && device.readAhead > 0 && `read-ahead ${bytes(device.readAhead)}`,
    device.dax === true && "DAX",
    device.integrity !== null && `integrity ${device.integrity}`
  ])

/** Each device below the one that it carries. `above` ends a chain that comes back to itself. */
const deviceTree = (
  devices: ReadonlyArray<BlockDevice>,
  names: ReadonlyArray<string>,
  above: ReadonlyArray<string>
): ReadonlyArray<Block> =>
  names.filter((name) => !above.includes(name)).map((name) => {
    const device = devices.find((device) => device.name === name)
    const about = device === undefined ? name : `${name} (${deviceFacts(device)})`
    return beside(
      span("└"),
      2,
      below([sentence(about), ...deviceTree(devices, device?.over ?? [], [...above, name])])
    )
  })

const stackLines = ({ mountPoint, source, type }: Filesystem, devices: ReadonlyArray<BlockDevice>) => {
  const carrying = devices.flatMap(({ over }) => over)
  const tops = devices.filter(({ name }) => !carrying.includes(name))
  const [top, ...others] = tops
  const on = source === null || source === type ? "" : ` on ${source}`
  const mounted = mountPoint === null ? "" : ` mounted at ${mountPoint}`
  if (top === undefined || others.length > 0) {
    return [sentence(`${type}${on}${mounted}`), ...deviceTree(devices, tops.map(({ name }) => name), [])]
  }
  const alias = source === `/dev/${top.name}` ? "" : source === null ? ` on ${top.name}` : `, which is ${top.name}`
  return [
    sentence(`${type}${on}${alias} (${deviceFacts(top)})${mounted}`),
    ...deviceTree(devices, top.over, [top.name])
  ]
}

const kernelText = ({ inodeFlags, openFlag, release, setFlag }: KernelFacts): string =>
  [
    release === null ? [] : [`Linux ${release}`],
    setFlag === null ? [] : [`O_DIRECT by fcntl: ${setFlag}`],
    openFlag === null ? [] : [`by open: ${openFlag}`],
    inodeFlags === null || inodeFlags.length === 0 ? [] : [`a new file has ${inodeFlags.join(", ")}`]
  ].flat().join("; ")

const filesystemLines = ({ devices, filesystem, kernel }: DirectIoReport): ReadonlyArray<Block> => [
  ...stackLines(filesystem, devices),
  ...[
    ["options", filesystem.options.join(", ")],
    [
      "free",
      `${bytes(filesystem.available)} of ${bytes(filesystem.total)}, in blocks of ${bytes(filesystem.blockSize)}`
    ],
    ["kernel", kernelText(kernel)]
  ].flatMap(([label = "", text = ""]) => text === "" ? [] : [row(label, 9, text)])
]

const gpuText = ({ configuration, cuFile, driver, gpus, nvidiaFs, peerToPeerMemory }: GpuFacts): string =>
  [
    gpus === null ? "GPUs cannot be seen" : gpus.length === 0 ? "no NVIDIA GPU" : `GPU ${gpus.join(", ")}`,
    driver === null ? "no driver" : `driver ${driver}`,
    nvidiaFs === null
      ? "no nvidia-fs"
      : `nvidia-fs ${nvidiaFs.version ?? "of unknown version"} (${list(nvidiaFs.modules) || "no storage driver"})`,
    ...(peerToPeerMemory === null ? [] : [`${peerToPeerMemory ? "" : "no "}memory for peer-to-peer DMA`]),
    ...(cuFile === null ? [] : [`${cuFile ? "" : "no "}libcufile`]),
    ...(configuration.problem === null ? [] : [`${configuration.path}: ${configuration.problem}`])
  ].join("; ")

const pathLines = ({ cuFile, device, improvements, kind, reasons }: PathReport): ReadonlyArray<Block> => [
  row("path", 9, kind),
  ...(device === null ? [] : [row("device", 9, device)]),
  ...(cuFile === null ? [] : [row("cuFile", 9, `${cuFile.version ?? "?"}, ${cuFile.mode}: ${cuFile.modeReason}`)]),
  ...reasons.map((reason) => sentence(reason)),
  ...improvements.map((improvement) => row("better", 9, improvement))
]

const multiplesText = (multiples: Alignment["read"], what: string): string =>
  multiples === null
    ? `no direct ${what} was made`
    : `memory ${multiples.memory}, offset ${multiples.offset}, length ${multiples.length}`

const statxText = (statx: Alignment["statx"]): string =>
  statx === null
    ? "the kernel does not say"
    : statx.memory === 0
    ? "no direct I/O"
    : list([
      `memory ${statx.memory}`,
      `offset ${statx.offset}`,
      statx.readOffset !== null && `offset of reads ${statx.readOffset}`
    ])

const alignmentLines = ({ read, statx, write }: Alignment): ReadonlyArray<Block> => [
  row("reads", 9, multiplesText(read, "read")),
  row("writes", 9, multiplesText(write, "write")),
  row("statx", 9, statxText(statx))
]

const pathStyles: Readonly<Record<Probe["path"], Style>> = {
  "direct": green,
  "buffered": red,
  "refused": red,
  "not tried": dim,
  "unknown": yellow
}

const probeLines = ({ probeFailure, probes }: DirectIoReport): ReadonlyArray<Block> => {
  const name = ({ file, id }: Probe) => file === "nocow" ? `${id}, nocow` : id
  const width = Math.max(0, ...probes.map((probe) => name(probe).length)) + 2
  return [
    ...probes.map((probe) =>
      beside(
        span(name(probe)),
        width,
        beside(span(probe.path, pathStyles[probe.path]), 11, sentence(probe.evidence))
      )
    ),
    ...(probeFailure === null
      ? []
      : [sentence(`stopped at ${probeFailure.step} (${probeFailure.code}): ${probeFailure.message}`)])
  ]
}

const applies: Readonly<Record<Condition["applies"], { readonly label: string; readonly style: Style }>> = {
  yes: { label: "applies", style: yellow },
  unknown: { label: "unknown", style: cyan },
  no: { label: "not here", style: dim }
}

const verdictNames = { io: "I/O", gpu: "GPU" } as const

const conditionBlock = (condition: Condition): Block => {
  const { label, style } = applies[condition.applies]
  const affected = condition.affects.map((what) => `${what}s`).join(", ")
  const bears = condition.bearsOn.map((verdict) => verdictNames[verdict]).join(" and ")
  const weight = [affected === "" ? [] : [`affects ${affected}`], bears === "" ? [] : [`bears on ${bears}`]].flat()
    .join("; ")
  const tone = condition.applies === "no" ? [dim] : []
  return beside(
    span(label, style),
    10,
    below([
      prose(span(condition.title, bold, ...tone), span(weight === "" ? "" : `(${weight})`, ...tone)),
      prose(span(condition.evidence, ...tone)),
      ...(condition.remedy === null ? [] : [beside(span("→", ...tone), 2, prose(span(condition.remedy, ...tone)))])
    ])
  )
}

const conditionSection = (conditions: ReadonlyArray<Condition>, all: boolean): ReadonlyArray<Block> => {
  const shown = all ? conditions : conditions.filter(({ applies }) => applies !== "no")
  const hidden = conditions.length - shown.length
  return section("Conditions of the GPUDirect Storage O_DIRECT guide", [
    ...Arr.dedupe(shown.map(({ section }) => section)).map((heading) =>
      below([
        sentence(`${heading} ${guideHeadings[heading] ?? ""}`),
        ...shown.filter(({ section }) => section === heading).map((condition) => indented(conditionBlock(condition)))
      ])
    ),
    ...(hidden === 0 ? [] : [sentence(`${hidden} of ${conditions.length} do not apply here; --all shows them`)])
  ])
}

/** What separates two medians here by chance. */
const noticeable = 1.1

const prewriteText = ({ firstWriteRatio }: Measurement): string =>
  firstWriteRatio >= noticeable
    ? `Rewrites run at ${
      firstWriteRatio.toFixed(2)
    } times the speed of first writes: prewrite makes a storage's first writes that much faster, for a slower start.`
    : `First writes are as fast as rewrites (${firstWriteRatio.toFixed(2)}): prewrite gains nothing here.`

const measurementSection = (measurement: Measurement | null): ReadonlyArray<Block> => {
  if (measurement === null) return []
  const { blockSize, depth, engine, firstWrites, reads, rewrites, rounds } = measurement
  const rate = (label: string, perSecond: number) => row(label, 14, `${megabytes(perSecond)} MB/s`)
  return section(
    `Measured: ${
      bytes(blockSize)
    } at random offsets, ${depth} in flight, ${engine}, medians of ${rounds} interleaved rounds`,
    [
      rate("reads", reads),
      rate("first writes", firstWrites),
      rate("rewrites", rewrites),
      sentence(prewriteText(measurement))
    ]
  )
}

/** Without a newline at the end. */
export const text = (report: DirectIoReport, { all, colour, devicePath, width }: TextOptions): string => {
  const { alignment, conditions, directory, gpu, measurement, unseen, verdict } = report
  const lines = below([
    prose(span(directory, bold)),
    verdictBlock("I/O", verdict.io, meaningOfIo[verdict.io], verdict.reasons.io),
    verdictBlock("GPU", verdict.gpu, meaningOfGpu[verdict.gpu], verdict.reasons.gpu),
    ...conditionSection(conditions, all),
    ...measurementSection(measurement),
    ...section("Tries of direct I/O on a file of its own", probeLines(report)),
    ...section("Alignment of direct I/O, in bytes", alignmentLines(alignment)),
    ...section("Filesystem and devices", filesystemLines(report)),
    ...section("GPU", [sentence(gpuText(gpu))]),
    ...(devicePath === undefined ? [] : section("Path to the GPU's memory", pathLines(devicePath))),
    ...section("Not seen", unseen.map(({ reason, what }) => sentence(`${what}: ${reason}`)))
  ])(width).join("\n")
  return colour ? lines : withoutColours(lines)
}
