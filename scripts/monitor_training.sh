#!/usr/bin/env bash
# Watch a run, or all of them; leave with q, come back at any time.
#
#   scripts/monitor_training.sh [RUN] [--once] [--json] [--web] …     as `tatara monitor`
set -euo pipefail
# shellcheck source=_common.sh
. "$(dirname "$0")/_common.sh"

# A run is files: where this host can show them, it does, and sees its GPUs too.
if .venv/bin/python -c 'import textual' 2>/dev/null; then
  exec .venv/bin/python -m workloads.cli monitor "$@"
fi
choose_runtime
[[ $RUNTIME == docker ]] || fail "expected .venv, found none; run scripts/setup_environment.sh"
[[ " $* " != *" --web "* ]] ||
  fail "expected .venv for --web, found none: a page of a container's own 127.0.0.1 is not yours;" \
    "run scripts/local_setup.sh, or leave --web away"
compose --progress quiet run --rm --no-deps monitor monitor "$@"
