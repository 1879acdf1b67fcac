# shellcheck shell=bash
# Sourced by _common.sh: trainings as services of compose.yaml.

compose() { host compose "$@"; }

# services PROFILE: those that train it here; the first is node 0, whose exit code is the job's.
services() { host services "$1"; }

is_set_up() { host is-set-up 2>/dev/null && [[ -d $TATARA_OUTPUTS ]]; }

# in_service PROFILE COMMAND…: a command in the image of a profile, with the GPUs that it sees.
in_service() {
  local found names
  found=$(services "$1") # on a line of its own: where it fails, or is interrupted, so does this
  read -ra names <<<"$found"
  compose --progress quiet --profile '*' run --rm -T --no-deps "${names[0]}" "${@:2}"
}

# running [PROFILE]: what trains now, as containers of this checkout.
running() { host running ${1:+"$1"} | cut -f 1; }

# begin PROFILE LIKE ARGUMENT…: have the services of LIKE train a profile; sets JOB to this host's node.
begin() {
  local file=profiles/$1.yaml found names
  found=$(services "$2")
  read -ra names <<<"$found"
  [[ -f $file ]] || file=profiles/recipes/$1.yaml
  if [[ -n $NODE_RANK ]]; then
    export COMPOSE_FILE=${COMPOSE_FILE:-compose.yaml}:compose.multihost.yaml
  fi
  TATARA_ARGS=""
  if (($# > 2)); then TATARA_ARGS=$(printf '%q ' "${@:3}"); fi
  # An image older than the code is built first (pull_policy in compose.yaml). No profile is named:
  # with all of them a training would wait for services that it has only where they are named.
  TATARA_PROFILE=$file TATARA_ARGS=$TATARA_ARGS compose up --detach --force-recreate "${names[@]}"
  JOB=$(compose --profile '*' ps --all --quiet "${names[0]}")
  BESIDE=()
  if ((${#names[@]} > 1)); then
    mapfile -t BESIDE < <(compose --profile '*' ps --all --quiet "${names[@]:1}")
  fi
}

# keep_up: while node 0 runs, starts again what was killed beside it. Node 0 waits for it, and counts
# the restarts; what ended by itself, or by a stop, stays ended. Node 0 itself: start_training.sh.
keep_up() {
  local job code
  while alive; do
    for job in ${BESIDE[@]+"${BESIDE[@]}"}; do
      code=$(docker inspect -f '{{if not .State.Running}}{{.State.ExitCode}}{{end}}' "$job" 2>/dev/null) || continue
      if [[ $code == 13[479] ]] && ! was_asked_to_stop "$job" && alive; then
        say "$(name_of "$job") was killed (exit code $code); starting it again"
        docker start "$job" >/dev/null || true # removed meanwhile
      fi
    done
    sleep 3
  done
}

is_there() { [[ $(docker inspect -f '{{.State.Running}}' "$1" 2>/dev/null) == true ]]; }
alive() { is_there "$JOB"; }
# Sets CODE once the job has ended.
# shellcheck disable=SC2034
await_end() { CODE=$(docker wait "$JOB"); }
show_log() { docker logs "${@}" "$JOB"; }
how_to_log() { say "docker logs -f ${JOB::12}"; }
# vLLM beside a training goes on answering until that has saved.
ask_to_stop() {
  local job trainers=() others=()
  for job; do
    if [[ $(docker inspect -f '{{index .Config.Cmd 0}}' "$job" 2>/dev/null) == train ]]; then
      trainers+=("$job")
    else
      others+=("$job")
    fi
  done
  send TERM ${trainers[@]+"${trainers[@]}"}
  if ((${#others[@]})); then
    {
      if ((${#trainers[@]})); then docker wait "${trainers[@]}" 2>/dev/null || true; fi
      send TERM "${others[@]}"
    } >/dev/null &
  fi
}
end_now() { send KILL "$@"; }
# send SIGNAL JOB…: to those that have not ended meanwhile.
send() {
  local job said
  for job in "${@:2}"; do
    said=$(docker kill --signal "$1" "$job" 2>&1) || ! is_there "$job" || fail "$said"
  done
}
name_of() { docker inspect -f '{{index .Config.Labels "com.docker.compose.service"}}' "$1" 2>/dev/null; }
