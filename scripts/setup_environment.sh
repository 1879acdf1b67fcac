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
outputs=$(dotenv TATARA_OUTPUTS) cache=$(dotenv TATARA_CACHE)
folders=(data "${outputs:-outputs}" "${cache:-.cache}")

# at_least FOUND NEEDED: compare versions such as 2.26.1-4.
at_least() { [[ $(printf '%s\n%s\n' "$2" "${1#v}" | sort -V | head -n 1) == "$2" ]]; }

check_docker() {
  local engine version profile
  engine=$(docker version --format '{{.Server.Version}}' 2>&1) ||
    fail "expected a Docker engine that answers, found: $(tail -n 1 <<<"$engine"); start it" \
      "(sudo systemctl start docker), join its group (sudo usermod -aG docker \$USER, then log in" \
      "again), or set TATARA_RUNTIME=local"
  at_least "$engine" 20.10 || fail "expected Docker Engine 20.10 or newer, found $engine; upgrade docker-ce"
  version=$(docker compose version --short 2>/dev/null) || version=none
  at_least "$version" 2.24 || fail "expected Docker Compose 2.24 or newer, found $version; install" \
    "docker-compose-plugin (apt-get install docker-compose-plugin)"
  for profile in "${profiles[@]}"; do services "$profile" >/dev/null; done
}

check_folders() {
  local place
  for place in "${folders[@]}"; do
    until [[ -e $place ]]; do place=$(dirname "$place"); done
    [[ -d $place && -w $place ]] ||
      fail "expected $place to be a folder that you can write, found one of uid $(stat -c %u "$place");" \
        "mend it with: sudo chown -R $(caller_uid):$(caller_gid) $place"
  done
}

# keep NAME VALUE: the line NAME=VALUE in .env, in place of an earlier one.
keep() {
  local rest
  rest=$(grep -v "^$1=" .env || true)
  printf '%s\n' ${rest:+"$rest"} "$1=$2" >.env
}

write_dotenv() {
  local name
  [[ -f .env ]] || (umask 077 && cat .env.example >.env)
  chmod 600 .env
  keep UID "$(caller_uid)"
  keep GID "$(caller_gid)"
  keep TATARA_DOTENV .env
  for name in BASE_IMAGE TORCH_VERSION TORCH_INDEX_URL FLASH_ATTN TATARA_RUNTIME TATARA_OUTPUTS TATARA_CACHE; do
    if [[ -n ${!name:-} ]]; then keep "$name" "${!name}"; fi
  done
}

choose_runtime
say "1/4 checks"
if [[ $RUNTIME == docker ]]; then check_docker; fi
check_folders
say "2/4 folders: ${folders[*]}"
mkdir -p "${folders[@]}" "${folders[2]}/home"
say "3/4 .env, for you alone to read"
write_dotenv
if [[ $(id -u) == 0 ]]; then chown "$(caller_uid):$(caller_gid)" .env "${folders[@]}" "${folders[2]}/home"; fi
if [[ $RUNTIME == docker ]]; then
  say "4/4 images: ${profiles[*]}"
  for profile in "${profiles[@]}"; do compose --profile "$profile" build --quiet "$(services "$profile" | cut -d ' ' -f 1)"; done
else
  say "4/4 .venv"
  scripts/local_setup.sh
fi
say "ready; start with: scripts/start_training.sh ${profiles[0]}"
