/** The report as a picture: for each target and direction, bandwidth and IOPS by block size, a bar for each contestant. */
import { BarChart } from "echarts/charts"
import { GridComponent, LegendComponent, TitleComponent } from "echarts/components"
import type { EChartsCoreOption } from "echarts/core"
import * as echarts from "echarts/core"
import { SVGRenderer } from "echarts/renderers"
import type { Cell, Report, Result } from "./report.js"
import { fioControl } from "./report.js"
import { bytes, count } from "./units.js"

echarts.use([BarChart, GridComponent, LegendComponent, SVGRenderer, TitleComponent])

/** A hue for each family; its members are shades of it. */
const hues: Readonly<Record<Result["family"], ReadonlyArray<string>>> = {
  io_uring: ["#08306b", "#2171b5", "#6baed6", "#b3d0ea"],
  aio: ["#00441b", "#238b45", "#74c476", "#b7e0ae"],
  node: ["#7f2704", "#d94801", "#fd8d3c", "#fdc38d"],
  fs: ["#6a51a3", "#b3a6d6"],
  platform: ["#c51b8a"],
  fio: ["#222222", "#777777"]
}

/** One row of the picture: loads side by side. */
interface Row {
  readonly title: string
  readonly cells: ReadonlyArray<Cell>
}

const groupBy = <A>(values: ReadonlyArray<A>, key: (value: A) => string): ReadonlyMap<string, ReadonlyArray<A>> => {
  const groups = new Map<string, Array<A>>()
  for (const value of values) {
    const group = groups.get(key(value))
    if (group === undefined) groups.set(key(value), [value])
    else group.push(value)
  }
  return groups
}

/** Loads of one depth stand together where a block size was measured at several; else all block sizes do. */
const rowsOf = (cells: ReadonlyArray<Cell>): ReadonlyArray<Row> => {
  const depths = [...groupBy(cells, ({ blockSize }) => String(blockSize)).values()]
    .map((group) => new Set(group.map(({ depth }) => depth)).size)
  const split = Math.max(...depths) > 1
  const groups = groupBy(cells, ({ depth, direction, target }) => `${target} ${direction}${split ? ` ${depth}` : ""}`)
  return [...groups.values()].flatMap((group) => {
    const [first] = group
    if (first === undefined) return []
    const target = first.target === "disk" ? "Disk, O_DIRECT" : "Memory-backed file"
    return [{
      title: `${target}: random ${first.direction}s${split ? `, depth ${first.depth}` : ""}`,
      cells: group.toSorted((one, other) => one.blockSize - other.blockSize)
    }]
  })
}

const size = { bar: 15, category: 26, plot: 230, gap: 96, top: 92, left: 76, between: 84, legend: 190 } as const

const label = (split: boolean) => ({ blockSize, depth, verdict }: Cell) =>
  `${bytes(blockSize)}${split ? "" : ` × depth ${depth}`}${verdict === "not decidable" ? "\nnot decidable here" : ""}`

/** The power of ten below, where the bars of a logarithmic axis stand. */
const floor = (values: ReadonlyArray<number>) =>
  10 ** Math.floor(Math.log10(Math.max(1, Math.min(...values.filter((value) => value > 0)) / 2)))

const gigabytes = (perSecond: number) => (perSecond / 1e9).toPrecision(3)

const optionOf = (report: Report, rows: ReadonlyArray<Row>, width: number, plotWidth: number): EChartsCoreOption => {
  const split = rows.some(({ title }) => title.includes(", depth "))
  // The control is there to judge the others by, and would only be taken for one of them.
  const shown = (cell: Cell) => cell.results.filter(({ contestant }) => contestant !== fioControl)
  const families = new Map(
    rows.flatMap(({ cells }) => cells.flatMap(shown)).map(({ contestant, family }) => [contestant, family] as const)
  )
  const colours = [...families].map(([contestant, family]) => {
    const shades = hues[family]
    const siblings = [...families].filter(([, other]) => other === family).map(([name]) => name)
    return [contestant, shades[siblings.indexOf(contestant) % shades.length] ?? "#000000"] as const
  })
  const panels = rows.flatMap((row, index) => {
    const top = size.top + index * (size.plot + size.gap)
    return ["bandwidth", "iops"].map((measure, column) => ({
      row,
      measure,
      top,
      left: size.left + column * (plotWidth + size.between)
    }))
  })
  const valueOf = (measure: string, { bytesPerSecond, iops }: Result) =>
    measure === "iops" ? iops.best : bytesPerSecond.best
  return {
    animation: false,
    backgroundColor: "#ffffff",
    textStyle: { fontFamily: "sans-serif" },
    title: [
      {
        text: `effect-disk-storage bench: best of ${report.rounds} rounds of ${report.millis} ms`,
        subtext: `${report.host.cpu}, ${report.host.cpus} CPUs, Linux ${report.host.kernel}, Node ${report.host.node}` +
          `${report.host.fio === null ? "" : `, ${report.host.fio}`}. Longer bars are better.`,
        left: 16,
        top: 10,
        textStyle: { fontSize: 17 },
        subtextStyle: { fontSize: 12, color: "#555555" }
      },
      ...panels.filter(({ measure }) => measure === "bandwidth").map(({ left, row, top }) => ({
        text: row.title,
        left: left - 50,
        top: top - 24,
        textStyle: { fontSize: 14 }
      }))
    ],
    legend: {
      orient: "vertical",
      left: width - size.legend + 10,
      top: size.top,
      itemWidth: 14,
      itemHeight: 12,
      textStyle: { fontSize: 12 },
      data: colours.map(([contestant]) => contestant)
    },
    grid: panels.map(({ left, top }) => ({ left, top: top + 28, width: plotWidth, height: size.plot - 28 })),
    xAxis: panels.map(({ row }, gridIndex) => ({
      type: "category",
      gridIndex,
      data: row.cells.map(label(split)),
      axisTick: { show: false },
      axisLabel: { interval: 0, fontSize: 12, color: "#222222" }
    })),
    yAxis: panels.map(({ measure, row }, gridIndex) => {
      const values = row.cells.flatMap(shown).map((result) => valueOf(measure, result))
      return {
        gridIndex,
        name: measure === "iops" ? "IOPS (logarithmic)" : "bandwidth, GB/s",
        nameLocation: "middle",
        nameGap: 48,
        nameTextStyle: { fontSize: 12, color: "#222222" },
        splitLine: { showMaxLine: false, lineStyle: { color: "#e4e4e4" } },
        ...measure === "iops"
          // Room above the longest bar for its number.
          ? {
            type: "log",
            min: floor(values),
            max: Math.max(...values) * 6,
            axisLabel: { formatter: tick(shortCount) }
          }
          : {
            type: "value",
            max: Math.max(...values) * 1.22,
            axisLabel: { formatter: tick(shortGigabytes) }
          }
      }
    }),
    series: colours.flatMap(([contestant, colour]) =>
      panels.map(({ measure, row }, index) => ({
        type: "bar",
        name: contestant,
        xAxisIndex: index,
        yAxisIndex: index,
        barGap: "0%",
        barCategoryGap: size.category,
        itemStyle: { color: colour },
        data: row.cells.map((cell) => {
          const result = shown(cell).find((other) => other.contestant === contestant)
          return result === undefined ? null : valueOf(measure, result)
        }),
        label: {
          show: true,
          position: "top",
          rotate: 90,
          align: "left",
          verticalAlign: "middle",
          distance: 6,
          fontSize: 10,
          color: "#222222",
          formatter: ({ value }: { readonly value?: unknown }) =>
            typeof value !== "number" ? "" : measure === "iops" ? count(value) : gigabytes(value)
        }
      }))
    )
  }
}

const shortCount = (value: number) =>
  value >= 1e6 ? `${value / 1e6}M` : value >= 1000 ? `${value / 1000}k` : String(value)

const shortGigabytes = (perSecond: number) => String(Number((perSecond / 1e9).toPrecision(3)))

/** The upper end of an axis is where the longest bar puts it, and no round number. */
const tick = (format: (value: number) => string) => (value: number, index: number): string =>
  index > 0 && !isRound(value) ? "" : format(value)

const isRound = (value: number) => Math.abs(value - Number(value.toPrecision(2))) < Math.abs(value) * 1e-9

/** Draws the report as SVG. */
export const draw = (report: Report): string => {
  const rows = rowsOf(report.cells)
  const contestants = new Set(report.cells.flatMap(({ results }) => results.map(({ contestant }) => contestant)))
  const categories = Math.max(1, ...rows.map(({ cells }) => cells.length))
  const plotWidth = Math.max(420, categories * (contestants.size * size.bar + size.category))
  const width = size.left + 2 * plotWidth + size.between + size.legend
  const height = Math.max(
    size.top + rows.length * (size.plot + size.gap),
    size.top + contestants.size * 24 + 40
  )
  const chart = echarts.init(null, null, { renderer: "svg", ssr: true, width, height })
  try {
    chart.setOption(optionOf(report, rows, width, plotWidth))
    // Every renderer knows `dy`; some, such as librsvg's older versions, do not know the other.
    return chart.renderToSVGString().replaceAll("dominant-baseline=\"central\"", "dy=\"0.35em\"")
  } finally {
    chart.dispose()
  }
}
