#!/usr/bin/env bash
# Prepare this checkout: look first, then folders, .env and images (Docker) or .venv (local).
#
#   scripts/setup_environment.sh [PROFILE…]     profiles whose images are built (default: demo)
#
# Safe to run again. BASE_IMAGE, TORCH_INDEX_URL and the like, given here, are kept in .env.
set -euo pipefail
# shellcheck source=_common.sh
. "$(dirname "$0")/_common.sh"

profiles=("${@:-demo}")
folders=(data "$TATARA_OUTPUTS" "$TATARA_CACHE")

check_docker() {
  local profile
  host check-engine
  for profile in "${profiles[@]}"; do services "$profile" >/dev/null; done
}

choose_runtime
say "1/4 checks"
if [[ $RUNTIME == docker ]]; then check_docker; fi
host check-folders "${folders[@]}"
say "2/4 folders: ${folders[*]}"
mkdir -p "${folders[@]}" "$TATARA_CACHE/home"
own "${folders[@]}" "$TATARA_CACHE/home"
say "3/4 .env, for you alone to read"
host set-up
if [[ $RUNTIME == docker ]]; then
  say "4/4 images: ${profiles[*]}"
  names=()
  for profile in "${profiles[@]}"; do
    found=$(services "$profile")
    names+=("${found%% *}")
  done
  # Builds look for the base image here before they ask a registry: later ones work offline.
  docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 || docker pull "$BASE_IMAGE"
  compose --profile '*' build "${names[@]}"
else
  say "4/4 .venv"
  scripts/local_setup.sh
fi
say "ready; start with: scripts/start_training.sh ${profiles[0]}"
