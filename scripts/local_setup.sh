#!/usr/bin/env bash
# Make the project's .venv: torch, the hashed lock, the tatara command. Safe to run again.
#
#   --python          print the interpreter that would be used, and make nothing
#
#   PYTHON            the interpreter to use (default: the first of python3.11, python3.12, python3 that fits)
#   TORCH_INDEX_URL   the package index torch comes from (default: PIP_FIND_LINKS, then pip's own index)
#   VENV              where the environment goes (default: .venv)
set -euo pipefail
cd "$(dirname "$0")/.."
export VENV=${VENV:-.venv}

# Nothing to do is the usual case: the environment's own Python says so at once.
if [[ ${1:-} != --python && -x $VENV/bin/python ]] && "$VENV/bin/python" -IS scripts/local_setup.py --is-ready 2>/dev/null; then
  exit 0
fi

if [[ $(uname -s) != Linux ]]; then
  echo "expected Linux, found $(uname -s); on Windows use WSL 2, on macOS a Linux machine" >&2
  exit 2
fi
found=""
for name in ${PYTHON:-python3.11 python3.12 python3}; do
  # A version manager's stand-in can be on PATH for a Python that is not there: ask it.
  version=$("$name" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue
  found+=" $name ($version)"
  if "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
    [[ ${1:-} != --python ]] || { command -v "$name" && exit 0; }
    exec "$name" -I scripts/local_setup.py
  fi
done
# shellcheck disable=SC2016  # for the reader's shell
printf '%s\n' "expected Python 3.11 or 3.12 with its venv module, found:${found:- none}; install one" \
  "  Debian 12, Ubuntu 24.04: sudo apt-get install python3 python3-venv" \
  '  others: uv python install 3.12, then PYTHON=$(uv python find 3.12) make setup' >&2
exit 2
