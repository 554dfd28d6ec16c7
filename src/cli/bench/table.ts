/** The report as text. */
import type { Allocation, Blocks, BlocksCell, Cell, Delay, DelayLoad, Endurance, EventLoop, Report } from "./report.js"
import { fioControl, Pass } from "./report.js"
import { bytes, count, megabytes } from "./units.js"

const widths = [22, 10, 10, 11, 11, 9, 9, 10, 15]

const columns = (cells: ReadonlyArray<string>, of: ReadonlyArray<number> = widths): string =>
  cells.map((cell, index) => index === 0 ? cell.padEnd(of[0] ?? 0) : cell.padStart(of[index] ?? 0)).join("")
    .trimEnd()

const heading = [
  columns(["", "IOPS", "IOPS", "MB/s", "MB/s", "of fio", "of fio", "CPU", "loop p99"]),
  columns(["", "best", "median", "best", "median", "best", "median", "µs/op", "ms over idle"])
]

const verdict = (cell: Cell): string => {
  if (cell.control === null) return "no fio here: no ratios"
  const { best, median } = cell.control
  const control = `fio against fio: ${best.toFixed(2)} best, ${median.toFixed(2)} median`
  return cell.verdict === "not decidable" ? `NOT DECIDABLE HERE: ${control}` : control
}

const cellLines = (cell: Cell): ReadonlyArray<string> => [
  "",
  `${cell.target} ${cell.direction}, ${bytes(cell.blockSize)} × depth ${cell.depth} — ${verdict(cell)}`,
  ...heading,
  ...cell.results.map((result) => {
    const { bytesPerSecond, contestant, cpuMicrosPerOperation, delayP99MillisAboveIdle, iops, ratioToFio } = result
    return columns([
      `  ${contestant}${contestant === fioControl ? " (fio)" : ""}`,
      count(iops.best),
      count(iops.median),
      megabytes(bytesPerSecond.best),
      megabytes(bytesPerSecond.median),
      ratioToFio === null ? "–" : ratioToFio.best.toFixed(2),
      ratioToFio === null ? "–" : ratioToFio.median.toFixed(2),
      cpuMicrosPerOperation.toFixed(1),
      delayP99MillisAboveIdle === null ? "–" : delayP99MillisAboveIdle.toFixed(2)
    ])
  }),
  ...leftOutLines(cell)
]

const leftOutLines = ({ leftOut }: Pick<Cell, "leftOut">): ReadonlyArray<string> =>
  leftOut.map(({ contestant, reason }) => `  ${contestant} left out: ${reason}`)

const allocationWidths = [24, 10, 10]

const passLines = ({ passes, ratios }: Allocation, kind: Pass["kind"]): ReadonlyArray<string> => [
  "",
  columns([kind === "zero-fill" ? kind : `${kind}, 128 KiB × 8`, "MB/s", "MB/s"], allocationWidths),
  ...passes.filter((pass) => pass.kind === kind).map(({ bytesPerSecond: { best, median }, contestant }) =>
    columns([`  ${contestant}`, megabytes(best), megabytes(median)], allocationWidths)
  ),
  ...ratios.filter((ratio) => ratio.kind === kind).map(({ best, contestant, median, to }) =>
    `  ${contestant} to ${to}: ${best.toFixed(2)} best, ${median.toFixed(2)} median`
  )
]

const allocationLines = (allocation: Allocation): ReadonlyArray<string> => [
  "",
  `allocation of ${bytes(allocation.size)} in ${allocation.directory} (${allocation.filesystem}), ` +
  `best and median of ${allocation.rounds} interleaved rounds`,
  ...Pass.fields.kind.literals.flatMap((kind) => passLines(allocation, kind)),
  ...(allocation.verdict === "not decidable"
    ? ["", "RATIOS TO FIO NOT DECIDABLE HERE: fio and fio again are more than 5 % apart"]
    : []),
  ...leftOutLines(allocation)
]

const delayWidths = [34, 9, 10, 10, 10, 10, 10, 10]

const loadLines = (load: DelayLoad): ReadonlyArray<string> => {
  const both = ({ max, p99 }: EventLoop) => [p99.toFixed(2), max.toFixed(2)]
  const { aboveIdle, blockSize, bytesPerSecond, control, depth, engine, idle, loop } = load
  return [
    columns([
      `  ${engine}, ${depth} × ${bytes(blockSize)}`,
      megabytes(bytesPerSecond),
      ...[loop, idle, aboveIdle].flatMap(both)
    ], delayWidths),
    `    another idle process above the first: p99 ${both(control).join(", max ")}`
  ]
}

const enduranceLines = (endurance: Endurance): ReadonlyArray<string> => {
  const { collected, engine, millis, operations, samples, verdict } = endurance
  const mebibytes = (value: number) => (value / 2 ** 20).toFixed(1)
  return [
    "",
    `memory after operations of 4 KiB through ${engine}, ${count(operations / millis * 1000)} a second; MiB, garbage ` +
    `${collected ? "collected" : "included"}: ${verdict}`,
    columns(["  operations", "heap", "RSS"], delayWidths),
    ...samples.map(({ heapUsed, operations, rss }) =>
      columns([`  ${operations}`, mebibytes(heapUsed), mebibytes(rss)], delayWidths)
    )
  ]
}

const delayLines = (delay: Delay): ReadonlyArray<string> => [
  "",
  `event-loop delay while reads are in flight on ${bytes(delay.file.size)} in ${delay.file.directory} ` +
  `(${delay.file.filesystem}), ms`,
  columns(["", "MB/s", "p99", "max", "idle p99", "idle max", "above p99", "above max"], delayWidths),
  ...delay.loads.flatMap(loadLines),
  ...delay.endurance.flatMap(enduranceLines),
  ...leftOutLines(delay)
]

const blocksWidths = [26, 10, 10, 10, 10, 10, 12]

/** Closer to 1 than the control came, or than 2 %, is no difference. */
const judged = ({ control, verdict }: BlocksCell, ratio: number): string => {
  if (verdict === "not decidable") return "not decidable"
  const noise = Math.max(0.02, Math.abs(control.median - 1))
  return ratio < 1 - noise ? "loses" : ratio > 1 + noise ? "beats" : "level"
}

const blocksCellLines = (cell: BlocksCell): ReadonlyArray<string> => {
  const { blockSize, control, depth, direction, engine, results, verdict } = cell
  const said = `raw against raw: ${control.best.toFixed(2)} best, ${control.median.toFixed(2)} median`
  return [
    "",
    `${direction}, ${bytes(blockSize)} × ${depth} through ${engine} — ` +
    `${verdict === "not decidable" ? "NOT DECIDABLE HERE: " : ""}${said}`,
    columns(["", "MB/s", "MB/s", "of raw", "of raw", "CPU", ""], blocksWidths),
    columns(["", "best", "median", "best", "median", "µs/block", ""], blocksWidths),
    ...results.map(({ bytesPerSecond, contestant, cpuMicrosPerBlock, ratioToRaw }) => {
      const plain = contestant === "raw" || contestant === "control"
      return columns([
        `  ${plain ? contestant : `store, checksum ${contestant}`}`,
        megabytes(bytesPerSecond.best),
        megabytes(bytesPerSecond.median),
        ratioToRaw.best.toFixed(3),
        ratioToRaw.median.toFixed(3),
        cpuMicrosPerBlock.toFixed(1),
        plain ? "" : `  ${judged(cell, ratioToRaw.median)}`
      ], blocksWidths)
    })
  ]
}

const indexWidths = [36, 12, 12, 12, 12]

const blocksLines = (
  { cells, directory, filesystem, index, leftOut, restart, rounds, size, withoutDisk }: Blocks
) => {
  const line = (label: string, ...of: ReadonlyArray<{ readonly best: number; readonly median: number }>) =>
    columns([`  ${label}`, ...of.flatMap(({ best, median }) => [best.toFixed(2), median.toFixed(2)])], indexWidths)
  const sized = ({ ratio, sizes }: Pick<Blocks["withoutDisk"], "ratio" | "sizes">) => [
    ...sizes.map(({ blocks, offloadMicros, onboardMicros }) => line(`${blocks} blocks`, offloadMicros, onboardMicros)),
    `  both, ${sizes.map(({ blocks, micros }) => `${blocks} blocks: ${micros.median.toFixed(2)}`).join(", ")}: ` +
    `ratio ${ratio.best.toFixed(2)} best, ${ratio.median.toFixed(2)} median`
  ]
  const seconds = ({ best, median }: { readonly best: number; readonly median: number }) =>
    `${(best / 1000).toFixed(2)} s best, ${(median / 1000).toFixed(2)} median`
  const { arrayBuffers, heapUsed, rss } = index.bytesPerBlock
  return [
    "",
    `blocks: four files of ${bytes(size)} in ${directory} (${filesystem}, O_DIRECT), best and median of ${rounds} ` +
    "interleaved rounds, ratios within a round",
    ...cells.flatMap(blocksCellLines),
    "",
    "the index alone, full, random hashes: µs for a block",
    columns(["", "offload", "", "onboard", ""], indexWidths),
    columns(["", "best", "median", "best", "median"], indexWidths),
    ...sized(index),
    `  memory for a block: ${arrayBuffers.toFixed(1)} bytes of arrays, ${heapUsed.toFixed(1)} of heap, ` +
    `${rss.toFixed(1)} of RSS${index.collected ? "" : " (garbage included)"}`,
    "",
    "a store whose storage moves nothing: µs for a block",
    ...sized(withoutDisk),
    `  match of ${withoutDisk.asked} hashes: ${withoutDisk.matchMicros.best.toFixed(0)} µs best, ` +
    `${withoutDisk.matchMicros.median.toFixed(0)} median`,
    "",
    `a store that is kept with ${restart.blocks} blocks: its end ${seconds(restart.endMillis)}, ` +
    `the next start ${seconds(restart.startMillis)}`,
    ...leftOutLines({ leftOut })
  ]
}

export const table = (report: Report): string =>
  [
    `${report.host.cpu}, ${report.host.cpus} CPUs, Linux ${report.host.kernel} ${report.host.arch}, ` +
    `Node ${report.host.node}, ${report.host.fio ?? "no fio"}`,
    ...report.targets.map(({ direct, directory, filesystem, name, size }) =>
      `${name}: ${bytes(size)} in ${directory} (${filesystem}, ${direct ? "O_DIRECT" : "no O_DIRECT"})`
    ),
    ...(report.cells.length === 0
      ? []
      : [`best and median of ${report.rounds} interleaved rounds of ${report.millis} ms, random offsets`]),
    ...report.notes,
    ...report.leftOut.map(({ contestant, reason }) => `${contestant} left out: ${reason}`),
    ...report.cells.flatMap(cellLines),
    ...(report.allocation === null ? [] : allocationLines(report.allocation)),
    ...(report.delay === null ? [] : delayLines(report.delay)),
    ...(report.blocks === null ? [] : blocksLines(report.blocks))
  ].join("\n")
