#!/usr/bin/env bash
# Say what this machine can run and what it lacks; changes nothing, needs only python3.
#
#   scripts/test_environment.sh [PROFILE] [--json] …     as `tatara doctor`
set -euo pipefail
# shellcheck source=_common.sh
. "$(dirname "$0")/_common.sh"

python=.venv/bin/python
[[ -x $python ]] || python=$(command -v python3) ||
  fail "expected python3 on PATH, found none; install it (apt-get install python3)"
exec "$python" -m workloads.doctor "$@"
