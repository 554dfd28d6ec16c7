/** Texts that come where a path belongs: those that name no file, and those that nobody means as the name of one. */

/** Half of a character of UTF-16: UTF-8 has no form of it, and every one becomes the same U+FFFD. */
const loneSurrogate = /\p{Surrogate}/u

/** A text that UTF-8 has a form of, so that two of them never become the same bytes. */
export const isWellFormed = (text: string): boolean => !loneSurrogate.test(text)

/** A text that reaches the kernel as what it is: C ends at a NUL, and a lone surrogate becomes another character. */
export const isFaithful = (text: string): boolean => !text.includes("\0") && isWellFormed(text)

export const faithful = "without NUL and without lone surrogates"

/** Of U+200C and U+200D, which Persian and emoji need, none is refused. */
const invisible =
  /[\p{Control}\p{Line_Separator}\p{Paragraph_Separator}\p{Surrogate}\uFFFD]|(?![\u200C\u200D])\p{Format}/u

/** As it can be printed: what is not seen is written as its code. */
export const printableText = (text: string): string =>
  text.replaceAll(
    new RegExp(invisible, "gu"),
    (character) => `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`
  )

const quotes = "[\"'`\u00b4\u2018\u2019\u201c\u201d\u00ab\u00bb]"
const quoted = new RegExp(`^${quotes}|${quotes}$`)
const quotesAround = new RegExp(`^${quotes}+|${quotes}+$`, "g")

/** Quotes at its beginning or end, which neither compose files of the form NAME=value nor env files take away. */
export const isQuoted = (text: string): boolean => quoted.test(text)

export const unquoted = (text: string): string => text.replaceAll(quotesAround, "").trim()

/** What a rule matches, why that cannot be meant, and what to write instead. */
type Rule = readonly [pattern: RegExp, why: string, remedy: string]

const expanded = "nothing expands it here: write the path that it stands for"
const alone = "write the path alone"

/** In this order: the first that matches is told. */
const rules: ReadonlyArray<Rule> = [
  [/^~/, "it begins with ~, which only a shell replaces by a home directory", "write the path of that directory"],
  [/\$[({]/, "it has a reference to a variable, $(…) or ${…}", expanded],
  [/\$[A-Za-z_]/, "it has a reference to a variable, $NAME", expanded],
  [/`/, "it has a backquote, as commands of a shell do", expanded],
  [/\{\{|\}\}|\{%|%\}/, "it has a piece of a template, {{…}}", expanded],
  [/<[^>]*>/, "it has a placeholder, <…>", expanded],
  [/%[A-Za-z_][A-Za-z0-9_]*%/, "it has a reference to a variable, %NAME%", expanded],
  [/^[A-Za-z]:(?:[\\/]|$)/, "it begins with a drive letter", "write a path of Linux, such as /mnt/nvme"],
  [
    /\\/,
    "it has a backslash, which is no separator here and escapes nothing",
    "write / between names, and spaces as they are"
  ],
  [/^[A-Za-z][A-Za-z0-9+.-]*:\/\/|^file:/i, "it is a URL", alone],
  [/[,:;]\s*\//, "it is several paths, or a path of another host", "write one path of this machine"],
  [/^[A-Za-z_][A-Za-z0-9_]*=/, "it begins with the name of a variable and =", alone],
  [/^=/, "it begins with =", alone],
  [/^-/, "it begins with -, as options do", "write ./ before it, or the absolute path"],
  [/(?:^|\s)#/, "it has a comment", "take the comment out of the line: it is part of the value here"],
  [/\*/, "it has a pattern, *", "write one path"],
  [
    /^(?:undefined|null|nil|none|nan|\[object object\])$/i,
    "a program or a template has put its word for no value there",
    "write the path, or leave the variable unset"
  ],
  [
    /^(?:true|false|yes|no|on|off|[01])$/i,
    "it is a word for yes or no",
    "write a path, such as /mnt/nvme; ./ before a name makes it one"
  ]
]

/** Why nobody means this text as a path, and what to write; undefined where somebody can. */
export const notMeant = (text: string): string | undefined => {
  if (invisible.test(text)) {
    return text.includes("\uFFFD")
      ? "it has U+FFFD, which stands for bytes that are no UTF-8; use a path in UTF-8"
      : "it has a character that is not seen, such as a newline; write the path in one line, without it"
  }
  const rule = rules.find(([pattern]) => pattern.test(text))
  return rule && `${rule[1]}; ${rule[2]}`
}
