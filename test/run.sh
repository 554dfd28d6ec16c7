#!/usr/bin/env bash
# Runs vitest with the given arguments; without arguments also the type tests, afterwards.
#
# Root runs it in a mount namespace of its own, so that the filesystems that tests mount vanish with the run, however it
# ends. Where no namespace can be made, vitest runs directly.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

vitest=(node node_modules/vitest/vitest.mjs run --config test/vitest.config.ts "$@")
private=(unshare --mount --propagation private --)
if [[ $(id -u) == 0 ]] && "${private[@]}" true 2>/dev/null; then
  vitest=("${private[@]}" "${vitest[@]}")
fi

if (( $# > 0 )); then
  exec "${vitest[@]}"
fi

# Something must come afterwards, so there is no exec here: hand signals on, and wait for vitest however often one comes.
"${vitest[@]}" &
child=$!
for signal in INT TERM HUP; do
  trap "kill -$signal $child 2>/dev/null || true" "$signal"
done
status=0
wait "$child" || status=$?
while kill -0 "$child" 2>/dev/null; do
  status=0
  wait "$child" || status=$?
done
trap - INT TERM HUP
if (( status != 0 )); then
  exit "$status"
fi

exec node node_modules/tstyche/build/bin.js --config test/types/tstyche.json
