/**
 * What a device-mapper device does, from what sysfs says of it and of the devices that it is made of. Its makers leave their mark: cryptsetup
 * in `lib/libdevmapper.c` (`CRYPT-<type>-…`), multipath and kpartx in `devmapper.c` (`mpath-…`, `part<N>-…`), LVM in
 * `lib/misc/lvm-string.c` and `lib/activate/dev_manager.c` (`LVM-<VG id><LV id>[-<layer>]`, and names that no user may give).
 */

export interface DmIdentity {
  readonly name: string | null
  readonly uuid: string | null
}

/** `CRYPT-LUKS2-OPAL` is `crypt` or, where only the disk encrypts, `linear`; `CRYPT-SUBDEV` can be any part of something. */
const prefixes: ReadonlyArray<readonly [uuid: RegExp, target: string | null]> = [
  [/^CRYPT-LUKS2-OPAL/, null],
  [/^CRYPT-(?:LUKS[12]|PLAIN|LOOPAES|TCRYPT|BITLK|FVAULT2)-/, "crypt"],
  [/^CRYPT-VERITY-/, "verity"],
  [/^CRYPT-INTEGRITY-/, "integrity"],
  [/^mpath-/, "multipath"],
  [/^part\d+-/, "linear"],
  [/^VDO-/, "vdo"]
]

/** A part whose name tells what is made of it. */
const parts: ReadonlyArray<readonly [volume: RegExp, target: string]> = [
  [/_tdata$/, "thin-pool"],
  [/_vdata$/, "vdo"],
  [/_corig$/, "cache"],
  [/_wcorig$/, "writecache"],
  [/_iorig$/, "integrity"],
  [/_rimage_\d+$/, "raid"],
  [/_mimage_\d+$/, "mirror"]
]

/** `VG-LV[-layer]`, where a hyphen within a part is doubled (`dm_build_dm_name` in `libdm/libdm-string.c`). */
const lvmName = (name: string): { readonly volume: string; readonly layer: string | undefined } => {
  const [, volume = "", layer] = name.replaceAll("--", "\0").split("-")
  return { volume, layer }
}

const lvmTarget = (name: string, uuid: string, below: ReadonlyArray<DmIdentity>): string | null => {
  const own = lvmName(name)
  // A volume is made of volumes of the same group, or of disks, whatever those are made of.
  const group = uuid.slice(0, "LVM-".length + 32)
  const volumes = below.flatMap((part) =>
    part.name !== null && part.uuid !== null && part.uuid.startsWith(group) ? [lvmName(part.name)] : []
  )
  for (const [pattern, target] of parts) {
    if (volumes.some(({ layer, volume }) => layer === undefined && pattern.test(volume))) return target
  }
  const layer = (of: string) => volumes.find((part) => part.layer === of)
  const origin = layer("real")
  if (layer("cow") !== undefined) return origin?.volume === own.volume ? "snapshot-merge" : "snapshot"
  if (origin !== undefined) return "snapshot-origin"
  // A pool's own name is a linear view of it, for tools; the volumes in it are thin.
  if (layer("tpool") !== undefined) return uuid.endsWith("-pool") ? "linear" : "thin"
  if (layer("vpool") !== undefined) return "linear"
  // pvmove mirrors while it moves; any other part with an underscore that LVM reserves is of something not known here.
  if (/^pvmove\d+$/.test(own.volume)) return null
  if (volumes.some(({ volume }) => /_(?:cdata|cmeta|cpool|mlog|rmeta|tmeta|imeta|vorigin)/.test(volume))) return null
  return below.length === 0 ? null : below.length === 1 ? "linear" : "linear or striped"
}

/** The target (`Documentation/admin-guide/device-mapper`), `null` where nothing tells for sure. */
export const dmTarget = ({ name, uuid }: DmIdentity, below: ReadonlyArray<DmIdentity>): string | null => {
  if (uuid === null) return null
  if (uuid.startsWith("LVM-")) return name === null ? null : lvmTarget(name, uuid, below)
  // cryptsetup names the integrity layer below `x` `x_dif`.
  if (uuid.startsWith("CRYPT-SUBDEV-")) return name?.endsWith("_dif") === true ? "integrity" : null
  return prefixes.find(([prefix]) => prefix.test(uuid))?.[1] ?? null
}
