/** Effect's metrics in the text format of Prometheus. Their labels are names of directions, events and errors, never hashes or paths. */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import type * as MetricKey from "effect/MetricKey"
import * as MetricState from "effect/MetricState"
import * as Option from "effect/Option"

type Labels = ReadonlyArray<readonly [name: string, value: string]>

const nameOf = (text: string) => text.replaceAll(/[^a-zA-Z0-9_:]/g, "_").replace(/^(?=\d)/, "_")
const escape = (text: string) => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\"", "\\\"")

const number = (value: number | bigint) =>
  value === Infinity ? "+Inf" : value === -Infinity ? "-Inf" : Number.isNaN(value) ? "NaN" : String(value)

const sample = (name: string, labels: Labels, value: number | bigint) => {
  const inside = labels.map(([label, text]) => `${nameOf(label)}="${escape(text)}"`).join(",")
  return `${name}${inside === "" ? "" : `{${inside}}`} ${number(value)}`
}

const render = (
  key: MetricKey.MetricKey.Untyped,
  state: MetricState.MetricState.Untyped
): { readonly type: string; readonly name: string; readonly lines: ReadonlyArray<string> } => {
  const name = nameOf(key.name)
  const labels: Labels = key.tags.map((tag) => [tag.key, tag.value])
  if (MetricState.isCounterState(state)) {
    return { type: "counter", name: `${name}_total`, lines: [sample(`${name}_total`, labels, state.count)] }
  }
  if (MetricState.isGaugeState(state)) return { type: "gauge", name, lines: [sample(name, labels, state.value)] }
  if (MetricState.isHistogramState(state)) {
    const buckets = Array.from(state.buckets).filter(([boundary]) => boundary !== Infinity)
    return {
      type: "histogram",
      name,
      lines: [
        ...buckets.map(([boundary, count]) => sample(`${name}_bucket`, [...labels, ["le", number(boundary)]], count)),
        sample(`${name}_bucket`, [...labels, ["le", "+Inf"]], state.count),
        sample(`${name}_sum`, labels, state.sum),
        sample(`${name}_count`, labels, state.count)
      ]
    }
  }
  if (MetricState.isSummaryState(state)) {
    const quantiles = state.quantiles.map(([quantile, value]) =>
      sample(name, [...labels, ["quantile", number(quantile)]], Option.getOrElse(value, () => NaN))
    )
    const ends = [sample(`${name}_sum`, labels, state.sum), sample(`${name}_count`, labels, state.count)]
    return { type: "summary", name, lines: [...quantiles, ...ends] }
  }
  if (MetricState.isFrequencyState(state)) {
    const lines = Array.from(
      state.occurrences,
      ([word, count]) => sample(`${name}_total`, [...labels, ["value", word]], count)
    )
    return { type: "counter", name: `${name}_total`, lines }
  }
  return { type: "untyped", name, lines: [] }
}

/** Every metric of this process as it is now, those of one name together. */
export const text: Effect.Effect<string> = Effect.map(Metric.snapshot, (pairs) => {
  const families = new Map<string, Array<string>>()
  for (const { metricKey, metricState } of pairs) {
    const { lines, name, type } = render(metricKey, metricState)
    const family = families.get(name) ?? [`# TYPE ${name} ${type}`]
    family.push(...lines)
    families.set(name, family)
  }
  return Array.from(families.values(), (family) => `${family.join("\n")}\n`).join("")
})
