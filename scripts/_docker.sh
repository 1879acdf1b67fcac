# shellcheck shell=bash
# Sourced by _common.sh: trainings as services of compose.yaml.
PROFILES="demo llm-4090 vla grpo-3b-2gpu" # together they have every service that trains

compose() {
  local secrets=/dev/null
  [[ ! -f .env ]] || secrets=.env
  env UID="$(caller_uid)" GID="$(caller_gid)" TATARA_DOTENV="$secrets" \
    GIT_COMMIT="$(git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)" \
    docker compose "$@"
}

# services PROFILE: those that train it; the first is node 0, whose exit code is the job's.
services() {
  case $1 in
    demo) echo demo-master demo-worker ;;
    llm-4090) echo llm-master llm-worker ;;
    vla | vla-*) echo vla ;;
    grpo-3b-2gpu) echo grpo-h100 grpo-vllm ;;
    grpo-*) echo grpo-h100 ;;
    *) fail "expected a profile with services of its own (demo, llm-4090, vla, grpo-h100 and the recipes" \
      "vla-… and grpo-…), found '$1'; name the one whose services are to train it:" \
      "scripts/start_training.sh $1 --like llm-4090" ;;
  esac
}

is_set_up() {
  local service
  service=$(services "$1" | cut -d ' ' -f 1)
  [[ -f .env && -d $(outputs_folder) ]] &&
    docker image inspect "$(compose --profile '*' config --images "$service" | head -n 1)" >/dev/null 2>&1
}

# recipe: the profile that RECIPE asks for, by the GPUs that the service sees.
recipe() {
  is_set_up vla || scripts/setup_environment.sh vla >&2
  compose --profile vla run --rm -T --no-deps -e RECIPE="$(dotenv RECIPE)" \
    -e MODEL_NAME="$(dotenv MODEL_NAME)" vla python -m workloads.vla.recipes
}

# running [PROFILE]: what trains now, as containers.
running() {
  local names=() profile
  for profile in ${1:-$PROFILES}; do read -ra names <<<"${names[*]-} $(services "$profile")"; done
  compose --profile '*' ps -q --status running "${names[@]}"
}

# begin PROFILE LIKE WORD…: have the services of LIKE train a profile; sets JOB to this host's node.
begin() {
  local file=profiles/$1.yaml names
  read -ra names <<<"$(services "$2")"
  [[ -f $file ]] || file=profiles/recipes/$1.yaml
  if [[ -n ${NODE_RANK:-} ]]; then
    export COMPOSE_FILE=${COMPOSE_FILE:-compose.yaml}:compose.multihost.yaml
    names=("${names[NODE_RANK>0]}")
  elif [[ ${NNODES:-} == 1 && ${names[1]:-} == *-worker ]]; then
    names=("${names[0]}")
  fi
  TATARA_ARGS=""
  if (($# > 2)); then TATARA_ARGS=$(printf '%q ' "${@:3}"); fi
  hand_over_shell
  TATARA_PROFILE=$file TATARA_ARGS=$TATARA_ARGS \
    compose --profile '*' up --detach --force-recreate "${names[@]}"
  JOB=$(compose ps -aq "${names[0]}")
}

is_there() { [[ $(docker inspect -f '{{.State.Running}}' "$1" 2>/dev/null) == true ]]; }
alive() { is_there "$JOB"; }
# Sets CODE once the job has ended.
# shellcheck disable=SC2034
await_end() { CODE=$(docker wait "$JOB"); }
show_log() { docker logs "${@}" "$JOB"; }
how_to_log() { say "docker logs -f ${JOB::12}"; }
ask_to_stop() { docker kill --signal TERM "$@" >/dev/null; }
end_now() { docker kill "$@" >/dev/null; }
name_of() { docker inspect -f '{{index .Config.Labels "com.docker.compose.service"}}' "$1"; }
