#!/usr/bin/env bash
# Refresh every hashed requirements lock to the newest versions that pyproject.toml allows.
#
# All targets that train share one resolution, so a package has one version in their images; calvin,
# which needs an older numpy, has one of its own. torch, triton and
# the nvidia-* packages that torch brings are left out: they are installed first, by exact version,
# from the index that fits the machine. What vLLM needs of NVIDIA's packages beyond those stands in
# a file of its own, requirements-cuda.lock, which a CPU build leaves away.
set -euo pipefail
cd "$(dirname "$0")/.."

# Public packages only: no mirror or wheel folder of one machine may shape a lock.
unset UV_FIND_LINKS UV_INDEX UV_DEFAULT_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL

uv=$(command -v .venv/bin/uv || command -v uv) || {
  echo "expected uv in .venv or on PATH, found none; run 'make setup'" >&2
  exit 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() {
  "$uv" pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet \
    --no-config --no-header --no-annotate --no-emit-package tatara "$@"
}

# Split a resolution: torch and what it pins to nowhere, other CUDA packages to $3, the rest to $2.
split_cuda() {
  awk -v torch="$work/torch" -v plain="$2" -v cuda="$3" '
    BEGIN { while ((getline line < torch) > 0) { split(line, part, "=="); of_torch[part[1]] = 1 } }
    /^[A-Za-z0-9]/ {
      split($1, part, "=="); name = part[1]; out = plain
      if (name ~ /^(torch|triton|cuda-toolkit)$/) out = ""
      else if (name ~ /^nvidia-/ && name != "nvidia-ml-py") out = (name in of_torch) ? "" : cuda
      else if (name ~ /^cuda-(bindings|core|pathfinder|python|tile)$/) out = cuda
    }
    out != "" { print > out }
  ' "$1"
}

# lock SOURCE LOCK [CUDA_LOCK]
lock() {
  local out
  compile --generate-hashes --constraints "$work/all" "$1" >"$work/whole"
  for out in "${@:2}"; do
    echo "# Made by scripts/lock_requirements.sh from pyproject.toml; not to be edited by hand." >"$work/$(basename "$out")"
  done
  split_cuda "$work/whole" "$work/plain" "$work/cuda"
  cat "$work/plain" >>"$work/$(basename "$2")"
  if [[ -n ${3:-} ]]; then cat "$work/cuda" >>"$work/$(basename "$3")"; fi
  for out in "${@:2}"; do
    cp "$work/$(basename "$out")" "$out"
    echo "$out: $(grep -c '==' "$out") packages"
  done
  rm -f "$work"/{plain,cuda,whole}
}

echo "1/3 resolving all targets together"
compile images/{demo,llm-4090,vla,grpo-h100}/requirements.in requirements-dev.in >"$work/all"
echo "2/3 resolving torch alone"
grep '^torch==' "$work/all" >"$work/torch.in"
compile "$work/torch.in" >"$work/torch"
echo "3/3 writing the locks"
for target in demo llm-4090 vla; do
  lock "images/$target/requirements.in" "images/$target/requirements.lock"
done
lock images/grpo-h100/requirements.in images/grpo-h100/requirements.lock images/grpo-h100/requirements-cuda.lock
lock requirements-dev.in requirements-dev.lock
: >"$work/all"
lock images/calvin/requirements.in images/calvin/requirements.lock
