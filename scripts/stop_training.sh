#!/usr/bin/env bash
# Stop trainings: the step ends, a checkpoint is saved, then they end. A second call ends them now.
#
#   scripts/stop_training.sh [PROFILE]
set -euo pipefail
# shellcheck source=_common.sh
. "$(dirname "$0")/_common.sh"
choose_runtime

profile=${1:-}
found=$(running "$profile")
mapfile -t jobs < <(printf '%s' "$found")
if ((${#jobs[@]} == 0)); then
  say "no training of this checkout is running"
  exit 0
fi
left() {
  local job
  for job in "${jobs[@]}"; do if is_there "$job"; then say "$job"; fi; done
}
# await SECONDS: until all have ended; fails after so many seconds.
await() {
  local until=$((SECONDS + $1))
  while [[ -n $(left) ]]; do
    ((SECONDS < until)) || return 1
    sleep 0.5
  done
}

mkdir -p .cache
# When a first call was made, by the clock of outputs too, and for which jobs. The call that ends last
# finds no mark any more.
mark=.cache/stopping
read -r first since asked <<<"$(cat "$mark" 2>/dev/null || true)"
if [[ $asked == "${jobs[*]}" && $first =~ ^[0-9]+$ ]]; then
  say "asked before: ending now, without a checkpoint"
  # Signals within two seconds are one wish to a training, which on a busy machine heard the first late.
  while (($(date +%s) < first + 4)); do sleep 0.2; done
  ask_to_stop "${jobs[@]}"
  mapfile -t jobs < <(await 15 || left)
  if ((${#jobs[@]})); then end_now "${jobs[@]}"; fi
else
  say "stopping $(for job in "${jobs[@]}"; do name_of "$job"; done | paste -sd ' '): the step ends, then a checkpoint is saved; call again to end at once"
  since=$(host clock)
  printf '%s' "$(date +%s) $since ${jobs[*]}" >"$mark"
  ask_to_stop "${jobs[@]}"
  await 900 || fail "still running after 15 minutes; call scripts/stop_training.sh again to end them at once"
fi
host outcome "$profile" "$since"
mv -f "$mark" .cache/stopped 2>/dev/null || true # a start that waits knows by it who ended the job
