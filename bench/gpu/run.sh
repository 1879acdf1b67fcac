#!/usr/bin/env bash
# Everything that has to be tried on a GPU, by one command that needs no network: bench/gpu/run.py
# says how. PYTHON is the machine's own Python that holds torch.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "expected Python 3.11 or newer that holds torch, found $python$("$python" -V 2>&1 | sed 's/^/, /');" \
    "set PYTHON" >&2
  exit 2
fi
exec "$python" -m bench.gpu.run "$@"
