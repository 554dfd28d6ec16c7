/** Hit rate against capacity, as SVG. */
import { LineChart } from "echarts/charts"
import { GridComponent, LegendComponent, TitleComponent } from "echarts/components"
import * as echarts from "echarts/core"
import { SVGRenderer } from "echarts/renderers"
import type { Replay } from "./replay.js"

echarts.use([GridComponent, LegendComponent, LineChart, SVGRenderer, TitleComponent])

export const draw = (replays: ReadonlyArray<Replay>, trace: string, blockBytes: number): string => {
  const chart = echarts.init(null, null, { renderer: "svg", ssr: true, width: 720, height: 440 })
  const sorted = replays.toSorted((one, other) => one.capacity - other.capacity)
  const line = (name: string, color: string, rate: (replay: Replay) => number) => ({
    type: "line",
    name,
    symbolSize: 8,
    itemStyle: { color },
    data: sorted.map((replay) => [replay.capacity, 100 * rate(replay)])
  })
  try {
    chart.setOption({
      animation: false,
      backgroundColor: "#ffffff",
      textStyle: { fontFamily: "sans-serif" },
      title: {
        text: "Hit rate of prompts by capacity of the store",
        subtext: `${trace}; blocks of ${blockBytes / 1024} KiB`,
        left: 16,
        top: 10
      },
      legend: { right: 16, top: 16 },
      grid: { left: 64, right: 32, top: 84, bottom: 60 },
      xAxis: { type: "log", logBase: 2, name: "capacity, blocks", nameLocation: "middle", nameGap: 32 },
      yAxis: { type: "value", min: 0, max: 100, name: "hit rate, %", nameLocation: "middle", nameGap: 40 },
      series: [
        line("blocks", "#2171b5", ({ hitBlocks, promptBlocks }) => hitBlocks / Math.max(1, promptBlocks)),
        line("tokens", "#d94801", ({ hitTokens, promptTokens }) => hitTokens / Math.max(1, promptTokens))
      ]
    })
    return chart.renderToSVGString()
  } finally {
    chart.dispose()
  }
}
