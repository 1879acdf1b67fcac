#!/usr/bin/env bash
# Say what this machine can run and what it lacks; changes nothing, needs only python3.
#
#   scripts/test_environment.sh [PROFILE] [--json] …     as `tatara doctor`
set -euo pipefail
# shellcheck source=_common.sh
. "$(dirname "$0")/_common.sh"

exec "$python" -m workloads.doctor "$@"
