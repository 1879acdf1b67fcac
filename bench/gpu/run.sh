#!/usr/bin/env bash
# Everything that has to be tried on a GPU, by one command that needs no network: bench/gpu/run.py
# says how. PYTHON is the machine's own Python that holds torch.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m bench.gpu.run "$@"
