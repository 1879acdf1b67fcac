#!/usr/bin/env bash
# Make .cache/venv-optional: the project's .venv with bitsandbytes and lm_eval above it, which no
# lock for CPUs has. `make test-full` calls it; it needs the package index once.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.cache/venv-optional
packages=(bitsandbytes==0.50.2 lm-eval==0.4.13)
wanted="${packages[*]}, $(sha256sum requirements-dev.lock | cut -c 1-16), $PWD"
if [[ -f $venv/tatara-setup && $(cat "$venv/tatara-setup") == "$wanted" ]]; then exit 0; fi

echo "making $venv with ${packages[*]}, some minutes"
rm -rf "$venv"
.venv/bin/python -m venv "$venv"
site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
below=$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')
echo "import site; site.addsitedir('$below')" >"$site/project.pth"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --compile "${packages[@]}"
"$venv/bin/python" -c 'import bitsandbytes, lm_eval; print("bitsandbytes", bitsandbytes.__version__)'
echo "$wanted" >"$venv/tatara-setup"
