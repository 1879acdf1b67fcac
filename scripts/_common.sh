# shellcheck shell=bash
# Sourced by the scripts beside it: where the repository is, what runs it, whom files belong to.
# _docker.sh and _local.sh, of which choose_runtime takes one, hold what differs.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

say() { printf '%s\n' "$*"; }
fail() {
  printf '%s\n' "$*" >&2
  exit 2
}

# dotenv NAME: the value in the environment, else the one in .env.
dotenv() {
  if [[ -n ${!1:-} ]]; then
    printf '%s' "${!1}"
  elif [[ -f .env ]]; then
    sed -nE "s/^$1=(['\"]?)([^'\"#]*)\\1.*$/\\2/p" .env | tail -n 1 | sed 's/[[:space:]]*$//'
  fi
}

# Whether the engine has an image of ours, or what one is built from, or can fetch that.
has_images() {
  [[ -n $(docker images -q 'tatara/*') ]] || docker image inspect "$1" >/dev/null 2>&1 ||
    timeout 120 docker pull --quiet "$1" >/dev/null 2>&1
}

# Sets RUNTIME to docker where an engine answers, else to local; TATARA_RUNTIME forces one.
choose_runtime() {
  local why="TATARA_RUNTIME says so" base
  RUNTIME=$(dotenv TATARA_RUNTIME)
  base=$(dotenv BASE_IMAGE)
  base=${base:-python:3.11-slim-bookworm}
  if [[ -z $RUNTIME ]] && docker compose version >/dev/null 2>&1 && docker version >/dev/null 2>&1; then
    RUNTIME=docker why="a Docker engine answers"
    has_images "$base" || RUNTIME=local why="the Docker engine cannot get the base image $base"
  elif [[ -z $RUNTIME ]]; then
    RUNTIME=local why="no Docker engine answers"
  fi
  [[ $RUNTIME == docker || $RUNTIME == local ]] ||
    fail "expected TATARA_RUNTIME=docker or local, found '$RUNTIME'; set one of them, or nothing"
  say "runtime: $RUNTIME ($why)" >&2
  # shellcheck source=/dev/null
  . "scripts/_$RUNTIME.sh"
}

# The caller, also behind sudo: files that a run writes belong to them.
caller_uid() { printf '%s' "${SUDO_UID:-$(id -u)}"; }
caller_gid() { printf '%s' "${SUDO_GID:-$(id -g)}"; }

# What the caller's shell exports reaches containers as .env does: settings by an environment file,
# tokens as files of their own, since a value would show in `docker inspect`.
hand_over_shell() {
  local name
  mkdir -p .cache
  for name in $(sed -nE 's/^(# )?([A-Z0-9_]+)=.*/\2/p' .env.example | grep -vE 'TOKEN|KEY') $(compgen -e TATARA__); do
    if [[ -n ${!name:-} ]]; then printf '%s=%s\n' "$name" "${!name}"; fi
  done | as_caller .cache/shell.env
  export TATARA_SHELL_ENV=.cache/shell.env
  HF_TOKEN=${HF_TOKEN:-${HUGGINGFACE_API_KEY:-${HUGGING_FACE_HUB_TOKEN:-}}}
  for name in HF_TOKEN WANDB_API_KEY; do
    [[ -n ${!name:-} ]] || continue
    printf '%s' "${!name}" | as_caller ".cache/$name"
    export "${name}_FILE=.cache/$name"
  done
}
# as_caller FILE: standard input into a file that the caller alone reads.
as_caller() { install -m 600 -o "$(caller_uid)" -g "$(caller_gid)" /dev/stdin "$1"; }

outputs_folder() {
  local folder
  folder=$(dotenv TATARA_OUTPUTS)
  printf '%s' "${folder:-outputs}"
}

# newest_run [PROFILE] [NEWER_THAN]: the run that wrote an event last.
newest_run() {
  find "$(outputs_folder)/${1:-}" -maxdepth 3 -name events.jsonl ${2:+-newer "$2"} -printf '%T@ %h\n' 2>/dev/null |
    sort -rn | head -n 1 | cut -d ' ' -f 2-
}
