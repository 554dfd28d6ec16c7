/** Text in colours that keeps within a number of columns: blocks of lines, one below or beside the other. */

/** SGR codes (ECMA-48) that switch a style on and off. */
export type Style = readonly [on: number, off: number]

export const bold: Style = [1, 22]
export const red: Style = [31, 39]
export const green: Style = [32, 39]
export const yellow: Style = [33, 39]
export const cyan: Style = [36, 39]
export const dim: Style = [90, 39]

export interface Span {
  readonly text: string
  readonly styles: ReadonlyArray<Style>
}

/** Lines of at most so many columns, but for a word that is longer. */
export type Block = (columns: number) => ReadonlyArray<string>

const escape = String.fromCharCode(0x1b)

const colours = new RegExp(`${escape}\\[[\\d;]*m`, "g")

/** Takes out colours, and no other sequence: what else looks like one may be part of a file's name. */
export const withoutColours = (text: string): string => text.replace(colours, "")

/** Control and format characters (of direction, of no width) and the separators that some take for ends of lines. */
const unprintable = /[\p{Cc}\p{Cf}\u2028\u2029]/gu

/** Names of files are shown with their control characters, not controlled by them. */
export const printable = (text: string): string =>
  text.replace(unprintable, (character) => {
    const code = (character.codePointAt(0) ?? 0).toString(16)
    return code.length > 2 ? `\\u{${code}}` : `\\x${code.padStart(2, "0")}`
  })

export const printableLines = (text: string): string => text.split("\n").map(printable).join("\n")

/** For who quotes names as they are, between colours of its own. */
export const printableButColours = (text: string): string =>
  text.split(new RegExp(`(${colours.source})`)).map((part, index) => index % 2 === 0 ? printableLines(part) : part)
    .join("")

export const span = (text: string, ...styles: ReadonlyArray<Style>): Span => ({ text: printable(text), styles })

const paint = ({ styles, text }: Span): string =>
  styles.reduce((painted, [on, off]) => `${escape}[${on}m${painted}${escape}[${off}m`, text)

/** Words, broken between any two. */
export const prose = (...spans: ReadonlyArray<Span>): Block => (columns) => {
  const lines: Array<string> = []
  let left = 0
  for (const { styles, text } of spans) {
    for (const word of text.split(" ").filter((word) => word !== "")) {
      const painted = paint({ text: word, styles })
      if (word.length < left) {
        lines.push(`${lines.pop() ?? ""} ${painted}`)
        left -= word.length + 1
      } else {
        lines.push(painted)
        left = columns - word.length
      }
    }
  }
  return lines
}

export const below = (blocks: ReadonlyArray<Block>): Block => (columns) => blocks.flatMap((block) => block(columns))

/** `label` in a column `width` wide, and `block` beside it, all of its lines. */
export const beside = (label: Span, width: number, block: Block): Block => (columns) =>
  block(columns - width).map((line, index) =>
    (index === 0 ? paint(label) + " ".repeat(Math.max(0, width - label.text.length)) : " ".repeat(width)) + line
  )

export const indented = (block: Block): Block => beside(span(""), 2, block)

export const emptyLine: Block = () => [""]
