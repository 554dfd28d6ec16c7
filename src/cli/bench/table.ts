/** The report as text. */
import type { Cell, Report } from "./report.js"
import { fioControl } from "./report.js"
import { bytes, count, megabytes } from "./units.js"

const widths = [22, 10, 10, 11, 11, 9, 9, 10, 15]

const columns = (cells: ReadonlyArray<string>): string =>
  cells.map((cell, index) => index === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[index] ?? 0)).join("")
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
  ...cell.leftOut.map(({ contestant, reason }) => `  ${contestant} left out: ${reason}`)
]

export const table = (report: Report): string =>
  [
    `${report.host.cpu}, ${report.host.cpus} CPUs, Linux ${report.host.kernel} ${report.host.arch}, ` +
    `Node ${report.host.node}, ${report.host.fio ?? "no fio"}`,
    ...report.targets.map(({ direct, directory, filesystem, name, size }) =>
      `${name}: ${bytes(size)} in ${directory} (${filesystem}, ${direct ? "O_DIRECT" : "no O_DIRECT"})`
    ),
    `best and median of ${report.rounds} interleaved rounds of ${report.millis} ms, random offsets`,
    ...report.notes,
    ...report.leftOut.map(({ contestant, reason }) => `${contestant} left out: ${reason}`),
    ...report.cells.flatMap(cellLines)
  ].join("\n")
