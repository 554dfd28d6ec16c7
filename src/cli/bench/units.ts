/** Numbers as people read them. */

const binary = ["B", "KiB", "MiB", "GiB", "TiB"] as const

/** The largest binary unit that leaves at least 1. */
export const bytes = (count: number): string => {
  let unit = 0
  let value = count
  while (value >= 1024 && unit < binary.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${binary[unit] ?? ""}`
}

const factors: Readonly<Record<string, number>> = { "": 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 }

/** `4096`, `4K`, `64 KiB`, `1M`, `2GiB`: powers of 1024. */
export const parseBytes = (text: string): number | undefined => {
  const [, digits, unit = ""] = /^\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])?(?:i?b)?)?\s*$/i.exec(text) ?? []
  const factor = factors[unit.toLowerCase()]
  const value = digits === undefined || factor === undefined ? Number.NaN : Number(digits) * factor
  return Number.isSafeInteger(value) && value > 0 ? value : undefined
}

/** Three significant digits: `512k`, `1.27M`, `938`. */
export const count = (value: number): string =>
  value >= 999_500
    ? `${(value / 1e6).toPrecision(3)}M`
    : value >= 99_950
    ? `${Math.round(value / 1000)}k`
    : value >= 1000
    ? `${(value / 1000).toPrecision(3)}k`
    : value >= 100
    ? String(Math.round(value))
    : value.toPrecision(3)

/** Decimal megabytes, without digits that say nothing. */
export const megabytes = (perSecond: number): string => {
  const value = perSecond / 1e6
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3)
}

export const duration = (millis: number): string => {
  const seconds = Math.round(millis / 1000)
  if (seconds < 90) return `${seconds} s`
  const minutes = Math.round(seconds / 60)
  return minutes < 90 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`
}

export const median = (values: ReadonlyArray<number>): number => {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length / 2
  const [low = Number.NaN, high = low] = sorted.slice(Math.ceil(middle) - 1, Math.floor(middle) + 1)
  return (low + high) / 2
}
