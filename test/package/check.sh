#!/usr/bin/env bash
# Packs the package and examines the tarball: every public module has an entry, publint, the types of every entry, an
# import of every entry as a user gets it, and the command in an app of its own (that one needs the npm registry).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT

echo "== entries"
node --input-type=module - >"$temp/entries" <<'NODE'
import assert from "node:assert"
import * as fs from "node:fs"
const { exports } = JSON.parse(fs.readFileSync("package.json", "utf8"))
const entries = Object.keys(exports).filter((key) => exports[key] !== null && key !== "./package.json")
const modules = fs.readdirSync("src")
  .filter((name) => name.endsWith(".ts"))
  .map((name) => name === "index.ts" ? "." : `./${name.slice(0, -3)}`)
assert.deepStrictEqual([...entries].sort(), modules.sort(), "exports of package.json and modules of src")
console.log(entries.join("\n"))
NODE
mapfile -t entries <"$temp/entries"
printf '%s\n' "${entries[@]}"

echo "== npm pack"
npm pack --pack-destination "$temp"
tarball=$(echo "$temp"/*.tgz)

echo "== command"
tar -tzf "$tarball" | grep -E '^package/(dist|src)/cli/' | sort >"$temp/cli"
diff "$temp/cli" - <<'FILES'
package/dist/cli/THIRD-PARTY-NOTICES.txt
package/dist/cli/main.js
FILES
app=$temp/app
mkdir "$app"
echo '{ "private": true }' >"$app/package.json"
(
  cd "$app"
  npm install --no-audit --no-fund --prefer-offline "$tarball"
  npx --no-install effect-disk-storage --version
  npx --no-install effect-disk-storage bench --help >help
  grep -q -e --block-size help
  npx --no-install effect-disk-storage doctor . || (( $? <= 2 ))
  # Loads koffi, from where the bundle finds it.
  npx --no-install effect-disk-storage bench --target memory --size 1M --rounds 1 --millis 10 --without-fio
)

echo "== publint"
node_modules/.bin/publint run "$tarball" --strict

echo "== attw"
node_modules/.bin/attw "$tarball" --profile esm-only --entrypoints "${entries[@]}"

echo "== import"
user=$temp/user
mkdir -p "$user/node_modules/effect-disk-storage"
tar -xzf "$tarball" -C "$user/node_modules/effect-disk-storage" --strip-components 1
for dependency in effect @effect koffi @humanwhocodes hash-wasm; do
  ln -s "$root/node_modules/$dependency" "$user/node_modules/$dependency"
done
cd "$user"
node --input-type=module - "${entries[@]}" <<'NODE'
import assert from "node:assert"
for (const entry of process.argv.slice(2)) {
  const name = `effect-disk-storage${entry.slice(1)}`
  assert.notStrictEqual(Object.keys(await import(name)).length, 0, `${name} exports nothing`)
}
await assert.rejects(import("effect-disk-storage/internal/diskStorage"), { code: "ERR_PACKAGE_PATH_NOT_EXPORTED" })
console.log(`${process.argv.length - 2} entries import; internal ones are refused`)
NODE
for entry in "${entries[@]}"; do
  echo "export * as ${entry//[^A-Za-z]/_}_ from \"effect-disk-storage${entry#.}\""
done >user.mts
"$root/node_modules/.bin/tsc" --noEmit --strict --exactOptionalPropertyTypes --skipLibCheck false --target es2022 \
  --module nodenext --types node --typeRoots "$root/node_modules/@types" user.mts
echo "${#entries[@]} entries type-check"
