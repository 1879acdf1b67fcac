#!/usr/bin/env bash
# Start a training, wait for its first step, and say how to watch and stop it.
#
#   scripts/start_training.sh [PROFILE] [--wait] [--node K --master ADDRESS] [--resume [RUN]] [SETTING…]
#
#   PROFILE            demo (the default), llm-4090, vla, grpo-h100, or one of profiles/recipes/
#   --like PROFILE     the profile whose services train one of your own
#   --wait             stay until the end and end with node 0's exit code; Ctrl-C stops and saves.
#                      A node that is killed meanwhile is started again and goes on where it was
#   --node, --master   this host is node K of several, node 0 is at ADDRESS
#   SETTING            optim.learning_rate=1e-5, or --learning_rate 1e-5 where the profile honours it
#
# NODES=1: one node with all of this host's GPUs. RECIPE=auto, 24gb, …: a recipe that the profile lists.
set -euo pipefail
# shellcheck source=_common.sh
. "$(dirname "$0")/_common.sh"

profile=demo like="" wait="" node="" master="" words=()
if [[ $# -gt 0 && $1 != -* && $1 != *=* ]]; then
  profile=$(basename "$1" .yaml)
  shift
fi
while (($#)); do
  case $1 in
    --wait) wait=yes ;;
    --like) like=${2:-} && shift ;;
    --node) node=${2:-} && shift ;;
    --master) master=${2:-} && shift ;;
    -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) words+=("$1") ;;
  esac
  shift
done
if [[ -n $node$master ]]; then
  [[ $node =~ ^[0-9]+$ && -n $master ]] || fail "expected --node K and --master ADDRESS, found '$node' and '$master'"
  export NODE_RANK=$node MASTER_ADDR=$master
fi
if [[ -n ${NODES:-} ]]; then export NNODES=$NODES; fi
if [[ ${NNODES:-} == 1 && -z $node ]]; then
  export NPROC_PER_NODE=${NPROC_PER_NODE:-auto} LLM_MASTER_GPUS=${LLM_MASTER_GPUS:-0,1,2,3}
fi
choose_runtime
# One start at a time, until its job is there: two would take each other's containers.
host check-folders .cache
mkdir -p .cache
exec 9>.cache/starting.lock
own .cache .cache/starting.lock
flock --nonblock 9 || fail "another start of this checkout is under way; wait until its training has begun"
like=${like:-$profile}
services "$like" >/dev/null
[[ -z $(running "$like") ]] ||
  fail "a training of $profile is running; stop it first: scripts/stop_training.sh $like"
env UID="$(caller_uid)" GID="$(caller_gid)" TATARA_RUNTIME="$RUNTIME" scripts/test_environment.sh "$profile" --brief ${words[@]+"${words[@]}"} || {
  ended=$?
  ((ended < 128)) || exit "$ended" # stopped
  fail "this machine cannot train $profile as it is; scripts/test_environment.sh $profile says more"
}
is_set_up || scripts/setup_environment.sh "$like"
if [[ -n $RECIPE && -f profiles/$profile.yaml ]]; then
  path=$(in_service "$like" python -m workloads.plan.recipes "profiles/$profile.yaml")
  profile=$(basename "$path" .yaml)
fi

# was_killed: whether the job was ended by a signal, and by no stop of ours.
RESTARTS=3
was_killed() { [[ $CODE == 13[479] ]] && ! was_asked_to_stop "$JOB"; }

since=$(host clock)
# From here on: what has been started when the signal comes is stopped.
if [[ -n $wait ]]; then trap 'scripts/stop_training.sh "$like"' INT TERM; fi
begin "$profile" "$like" ${words[@]+"${words[@]}"}
exec 9>&-
if [[ -n $wait ]]; then
  for ((starts = 1; ; starts++)); do
    keep_up &
    show_log --follow || true
    await_end
    kill "$!" 2>/dev/null || true
    was_killed || exit "$CODE"
    run=$(host resumable "$profile" "$since")
    ((starts <= RESTARTS)) || break
    say "$like was killed (exit code $CODE); restart $starts of $RESTARTS${run:+, going on with $run}"
    begin "$profile" "$like" ${words[@]+"${words[@]}"} ${run:+--resume "$run"}
  done
  ask_to_stop ${BESIDE[@]+"${BESIDE[@]}"}
  fail_with "$CODE" "$like was killed (exit code $CODE) $starts times; the kernel's log says if memory ran" \
    "out; go on with: scripts/start_training.sh $profile ${run:+--resume $run}"
fi
say "waiting for the first step; Ctrl-C ends the waiting, not the training"
run=""
first_step() { run=$(host first-step "$profile" "$since") && [[ -n $run ]]; }
until [[ ${node:-0} != 0 ]] || first_step; do
  if ! alive; then
    show_log --tail 20 >&2
    await_end
    exit "$CODE"
  fi
  sleep 1
done
say "${run:+first step done: $run}"
say "  watch: scripts/monitor_training.sh${run:+ ${run##*/}}, or: $(how_to_log)"
say "  stop:  scripts/stop_training.sh $like     (saves a checkpoint first)"
