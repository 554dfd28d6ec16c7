/**
 * The JSON that libcufile reads. Its reader is an old jsoncpp, which differs from the standard in both directions. Measured with
 * `cuFileDriverOpen` of libcufile 1.4.0, 1.9.1, 1.10.0 and 1.15.1, which agree:
 *
 * - accepted: comments of both kinds, text after the document, `01`, `1.`, `-`, control characters in strings, a lone low surrogate, `{"":1,}`;
 * - refused: a byte-order mark, an empty file, a comma too many, `NaN`, a comment before a colon or in an empty list, a lone high surrogate;
 * - the document ends at the first byte 0xff, wherever it stands;
 * - more than 1000 levels end the process (an exception that nobody catches).
 */
import * as Data from "effect/Data"
import * as Either from "effect/Either"

/** `at` is an offset in the text. The last of several members of one name counts. */
export type Json =
  & { readonly at: number }
  & (
    | { readonly type: "object"; readonly members: ReadonlyMap<string, Json> }
    | { readonly type: "array"; readonly elements: ReadonlyArray<Json> }
    | { readonly type: "string"; readonly value: string }
    /** jsoncpp keeps what fits 64 bits as an integer. */
    | { readonly type: "integer"; readonly value: bigint }
    | { readonly type: "real"; readonly value: number }
    | { readonly type: "boolean"; readonly value: boolean }
    | { readonly type: "null" }
  )

/** `fatal`: libcufile ends the process instead of refusing the file. */
export class JsonProblem extends Data.TaggedClass("JsonProblem")<{
  readonly at: number
  readonly message: string
  readonly fatal: boolean
}> {}

/** `stackLimit_g` of jsoncpp. */
const MAX_DEPTH = 1000

type Kind = "{" | "}" | "[" | "]" | "," | ":" | "string" | "number" | "word" | "comment" | "end"

interface Token {
  readonly kind: Kind
  readonly at: number
  readonly text: string
}

class Refused extends Data.TaggedError("Refused")<{ readonly problem: JsonProblem }> {}

const refuse = (at: number, message: string, fatal = false): never => {
  throw new Refused({ problem: new JsonProblem({ at, message, fatal }) })
}

const escapes: { readonly [letter: string]: string } = {
  "\"": "\"",
  "/": "/",
  "\\": "\\",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t"
}

/** jsoncpp's tokens, by its rules; each is matched where the last one ended. */
const patterns: ReadonlyArray<readonly [Kind, RegExp]> = [
  ["string", /"(?:\\[^]|[^\\"])*"/y],
  ["comment", /\/\*[^]*?\*\/|\/\/[^\r\n]*/y],
  ["number", /[-0-9][0-9]*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]*)?/y],
  ["word", /true|false|null/y]
]

const MAX_UNSIGNED = 2n ** 64n - 1n
const MIN_SIGNED = -(2n ** 63n)

class Reader {
  private readonly text: string
  private position = 0

  constructor(text: string) {
    this.text = text
  }

  private peek(): string {
    while (/[ \t\r\n]/.test(this.text.charAt(this.position))) this.position += 1
    return this.text.charAt(this.position)
  }

  private token(): Token {
    const first = this.peek()
    const at = this.position
    if (first === "") return { kind: "end", at, text: "" }
    if (first === "{" || first === "}" || first === "[" || first === "]" || first === "," || first === ":") {
      this.position += 1
      return { kind: first, at, text: first }
    }
    for (const [kind, pattern] of patterns) {
      pattern.lastIndex = at
      const text = pattern.exec(this.text)?.[0]
      if (text === undefined) continue
      this.position += text.length
      return { kind, at, text }
    }
    return refuse(at, first === "\uFEFF" ? "a byte-order mark" : `${JSON.stringify(first)} begins no value`)
  }

  private withoutComments(): Token {
    let token = this.token()
    while (token.kind === "comment") token = this.token()
    return token
  }

  /** What follows the value is not read. */
  value(depth = 1): Json {
    const token = this.withoutComments()
    if (depth > MAX_DEPTH) return refuse(token.at, `more than ${MAX_DEPTH} levels`, true)
    const { at, kind, text } = token
    switch (kind) {
      case "{":
        return { type: "object", at, members: this.members(depth) }
      case "[":
        return { type: "array", at, elements: this.elements(depth) }
      case "string":
        return { type: "string", at, value: this.string(token) }
      case "number":
        return number(token)
      case "word":
        return text === "null" ? { type: "null", at } : { type: "boolean", at, value: text === "true" }
      default:
        return refuse(
          at,
          kind === "end" ? "the file ends where a value is expected" : `a value is expected, not ${text}`
        )
    }
  }

  private members(depth: number): ReadonlyMap<string, Json> {
    const members = new Map<string, Json>()
    let name = ""
    for (;;) {
      const key = this.withoutComments()
      // jsoncpp looks at the last name here, not at whether there was one.
      if (key.kind === "}" && name === "") return members
      if (key.kind !== "string") return refuse(key.at, `the name of a member is expected, not ${key.text || "the end"}`)
      name = this.string(key)
      const colon = this.token()
      if (colon.kind !== ":") return refuse(colon.at, "a colon is expected right behind the name of a member")
      members.set(name, this.value(depth + 1))
      const next = this.token()
      if (next.kind !== "," && next.kind !== "}" && next.kind !== "comment") {
        return refuse(next.at, "a comma or } is expected behind a member")
      }
      const separator = next.kind === "comment" ? this.withoutComments() : next
      if (separator.kind === "}") return members
    }
  }

  private elements(depth: number): ReadonlyArray<Json> {
    const elements: Array<Json> = []
    if (this.peek() === "]") {
      this.position += 1
      return elements
    }
    for (;;) {
      elements.push(this.value(depth + 1))
      const separator = this.withoutComments()
      if (separator.kind === "]") return elements
      if (separator.kind !== ",") return refuse(separator.at, "a comma or ] is expected behind an element")
    }
  }

  private string({ at, text }: Token): string {
    const inside = text.slice(1, -1)
    return inside.replace(/\\(u[0-9a-fA-F]{4}|[^])/g, (all: string, escape: string, offset: number) => {
      if (escape.length > 1) {
        const unit = Number.parseInt(escape.slice(1), 16)
        return unit >= 0xd800 && unit <= 0xdbff && !/^\\u[0-9a-fA-F]{4}/.test(inside.slice(offset + all.length))
          ? refuse(at + 1 + offset, "a high surrogate without a low one")
          : String.fromCharCode(unit)
      }
      return escapes[escape] ?? refuse(at + 1 + offset, `${all} is no escape sequence`)
    })
  }
}

const number = ({ at, text }: Token): Json => {
  if (/^-?[0-9]*$/.test(text)) {
    const value = text === "-" ? 0n : BigInt(text.replace(/^-/, "")) * (text.startsWith("-") ? -1n : 1n)
    return value >= MIN_SIGNED && value <= MAX_UNSIGNED
      ? { type: "integer", at, value }
      : { type: "real", at, value: Number(value) }
  }
  const value = /[0-9]/.test(text.replace(/[eE].*$/, "")) && !/[eE][-+]?$/.test(text) ? Number(text) : Number.NaN
  return Number.isFinite(value) ? { type: "real", at, value } : refuse(at, `${text} is no number`)
}

/** The document as libcufile reads it, or why it does not. */
export const readJson = (text: string): Either.Either<Json, JsonProblem> =>
  Either.try({
    try: () => new Reader(text).value(),
    catch: (cause) => {
      if (cause instanceof Refused) return cause.problem
      throw cause
    }
  })

/** libcufile reads up to a byte 0xff (`std::getline` with the delimiter `(char)EOF`), and takes what is no UTF-8. */
export const textOf = (bytes: Uint8Array): string => {
  const end = bytes.indexOf(0xff)
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(end < 0 ? bytes : bytes.subarray(0, end))
}

/** `line:column` of an offset, from 1. */
export const place = (text: string, at: number): string => {
  const lines = text.slice(0, at).split(/\r\n|\r|\n/)
  return `${lines.length}:${(lines.at(-1) ?? "").length + 1}`
}
