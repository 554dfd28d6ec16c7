/** A `FileSystem` of nothing but texts and symbolic links by absolute path, for what /proc and /sys say on machines that are not this one. */
import * as PlatformError from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Option from "effect/Option"

/**
 * The content of a file, text or bytes; where a link points to, absolute or from its directory; a file or directory that may not be read; or what is
 * only looked at with `stat`: a file on the device with the number `dev`, or the node of the block device `rdev` (both as `stat(2)` packs
 * them).
 */
export type Entry =
  | string
  | Uint8Array
  | { readonly link: string }
  | { readonly refused: "PermissionDenied" }
  | { readonly dev: number }
  | { readonly rdev: number }

export type Tree = { readonly [path: string]: Entry }

const join = (directory: string, path: string): string => {
  const parts: Array<string> = []
  for (const part of `${path.startsWith("/") ? "" : directory}/${path}`.split("/")) {
    if (part === "..") parts.pop()
    else if (part !== "" && part !== ".") parts.push(part)
  }
  return `/${parts.join("/")}`
}

/** What a path without links names after all links in it were followed. */
const resolve = (tree: Tree, path: string, links = 0): string => {
  const parts = path.split("/").filter((part) => part !== "" && part !== ".")
  let at = ""
  for (const [index, part] of parts.entries()) {
    if (part === "..") {
      at = at.slice(0, Math.max(0, at.lastIndexOf("/")))
      continue
    }
    const entry = tree[`${at}/${part}`]
    if (typeof entry === "object" && "link" in entry) {
      if (links > 40) throw new Error(`${path}: too many links`)
      return resolve(tree, [join(at, entry.link), ...parts.slice(index + 1)].join("/"), links + 1)
    }
    at = `${at}/${part}`
  }
  return at === "" ? "/" : at
}

const isDirectory = (tree: Tree, path: string): boolean =>
  Object.keys(tree).some((name) => name.startsWith(path === "/" ? "/" : `${path}/`))

const refused = (tree: Tree, path: string): boolean => {
  const entry = tree[path]
  return typeof entry === "object" && "refused" in entry
}

export const layer = (tree: Tree): Layer.Layer<FileSystem.FileSystem> => {
  const fail = (method: string, reason: PlatformError.SystemErrorReason) => (path: string) =>
    Effect.fail(
      new PlatformError.SystemError({
        reason,
        module: "FileSystem",
        method,
        pathOrDescriptor: path,
        description: reason
      })
    )
  const existing = <A>(
    method: string,
    path: string,
    use: (path: string) => Effect.Effect<A, PlatformError.PlatformError>
  ) =>
    Effect.suspend(() => {
      const real = resolve(tree, path)
      return path !== "" && (real in tree || isDirectory(tree, real)) ? use(real) : fail(method, "NotFound")(path)
    })
  const read = (method: string, path: string) =>
    existing(method, path, (real) => {
      const entry = tree[real]
      return typeof entry === "string"
        ? Effect.succeed(new TextEncoder().encode(entry))
        : entry instanceof Uint8Array
        ? Effect.succeed(entry)
        : fail(method, refused(tree, real) ? "PermissionDenied" : "BadResource")(path)
    })
  return FileSystem.layerNoop({
    exists: (path) =>
      Effect.sync(() => {
        const real = resolve(tree, path)
        return real in tree || isDirectory(tree, real)
      }),
    realPath: (path) => existing("realPath", path, Effect.succeed),
    readLink: (path) =>
      Effect.suspend(() => {
        const cut = path.lastIndexOf("/")
        const entry = tree[`${resolve(tree, path.slice(0, cut))}${path.slice(cut)}`]
        return typeof entry === "object" && "link" in entry
          ? Effect.succeed(entry.link)
          : fail("readLink", "Unknown")(path)
      }),
    readDirectory: (path) =>
      existing("readDirectory", path, (real) =>
        refused(tree, real)
          ? fail("readDirectory", "PermissionDenied")(path)
          : isDirectory(tree, real)
          ? Effect.succeed([
            ...new Set(
              Object.keys(tree).filter((name) => name.startsWith(`${real}/`)).map((name) =>
                name.slice(real.length + 1).split("/")[0] ?? ""
              )
            )
          ])
          : fail("readDirectory", "Unknown")(path)),
    readFileString: (path) => Effect.map(read("readFileString", path), (bytes) => new TextDecoder().decode(bytes)),
    readFile: (path) => read("readFile", path),
    access: (path) =>
      existing("access", path, (real) => refused(tree, real) ? fail("access", "PermissionDenied")(path) : Effect.void),
    stat: (path) =>
      existing("stat", path, (real) => {
        const entry = tree[real]
        const node = typeof entry === "object" && "rdev" in entry ? entry.rdev : undefined
        return Effect.succeed<FileSystem.File.Info>({
          type: isDirectory(tree, real) ? "Directory" : node === undefined ? "File" : "BlockDevice",
          mtime: Option.none(),
          atime: Option.none(),
          birthtime: Option.none(),
          dev: typeof entry === "object" && "dev" in entry ? entry.dev : 0,
          rdev: Option.fromNullable(node),
          ino: Option.none(),
          mode: 0,
          nlink: Option.none(),
          uid: Option.none(),
          gid: Option.none(),
          size: FileSystem.Size(
            typeof entry === "string" ? Buffer.byteLength(entry) : entry instanceof Uint8Array ? entry.byteLength : 0
          ),
          blksize: Option.none(),
          blocks: Option.none()
        })
      })
  })
}
