/** The mounts that this process sees, from `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`). */
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import type { Unseen } from "../../DirectIo.js"

/** The number of a device, as `st_dev`, mountinfo and sysfs give it. */
export interface DeviceNumber {
  readonly major: number
  readonly minor: number
}

/** `id` is what `statx(2)` gives as `stx_mnt_id`; `device` is `st_dev` of what lies on it, except on btrfs. */
export interface Mount {
  readonly id: number
  readonly device: DeviceNumber
  readonly root: string
  readonly mountPoint: string
  readonly type: string
  readonly source: string
  readonly options: ReadonlyArray<string>
  readonly superOptions: ReadonlyArray<string>
}

const path = "/proc/self/mountinfo"

/** The kernel writes space, tab, newline, backslash and more as `\` and three octal digits (`seq_escape` in `fs/seq_file.c`). */
const unescape = (field: string): string =>
  field.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))

/** A comma within an option is escaped as `\054`, or the value is quoted, as SELinux does with its contexts. */
const options = (field: string): ReadonlyArray<string> => (field.match(/(?:"[^"]*"|[^,])+/g) ?? []).map(unescape)

/** Between the mount's options and a lone `-` lie any number of optional fields, none of them needed here. */
const line = /^(\d+) \d+ (\d+):(\d+) ([^ ]*) ([^ ]*) ([^ ]*)(?: (?!- )[^ ]+)* - ([^ ]*) ([^ ]*) ([^ ]*)$/

const parse = (text: string): ReadonlyArray<Mount> => {
  const found = line.exec(text)
  if (found === null) return []
  const [
    id = "",
    major = "",
    minor = "",
    root = "",
    mountPoint = "",
    own = "",
    type = "",
    source = "",
    superOptions = ""
  ] = found.slice(1)
  return [{
    id: Number(id),
    device: { major: Number(major), minor: Number(minor) },
    root: unescape(root),
    mountPoint: unescape(mountPoint),
    type: unescape(type),
    source: unescape(source),
    options: options(own),
    superOptions: options(superOptions)
  }]
}

/** A line that cannot be understood is left out. Fails with why the file could not be read. */
export const readMounts: Effect.Effect<ReadonlyArray<Mount>, Unseen, FileSystem.FileSystem> = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const text = yield* Effect.mapError(
    fs.readFileString(path),
    (error): Unseen => ({ what: path, reason: error.message })
  )
  return text.split("\n").flatMap(parse)
})
