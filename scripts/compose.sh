#!/usr/bin/env bash
# `docker compose` as the scripts call it: for this checkout, with what your shell exports.
#
#   scripts/compose.sh ARGUMENT…     any of docker compose
#   scripts/compose.sh down          remove this checkout's containers, networks and left-over images
set -euo pipefail
# shellcheck source=_common.sh
. "$(dirname "$0")/_common.sh"
if [[ ${1:-} == down && $# == 1 ]]; then
  host down
else
  host compose "$@"
fi
