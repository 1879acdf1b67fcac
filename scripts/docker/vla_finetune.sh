#!/usr/bin/env bash
# The robot policy's steps: in its container, from outside of it, or in .venv where no engine answers.
#
#   docker compose --profile vla run --rm vla_finetune scripts/docker/vla_finetune.sh STEP …
#
#   test-dataset [FOLDER]          look at the recorded demonstrations
#   train [SETTING…]               one GPU
#   train-multi-gpu N [SETTING…]   N GPUs
#   shell                          a shell
#
# RECIPE=24gb, or one of the others, takes that recipe, RECIPE=auto the first that fits the GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Outside of the container: the same words, inside.
if [[ -z ${TATARA_IMAGE:-} ]]; then
  # shellcheck source=../_common.sh
  . scripts/_common.sh
  choose_runtime
  is_set_up || scripts/setup_environment.sh vla
  if [[ $RUNTIME == docker ]]; then
    compose --profile vla run --rm vla_finetune scripts/docker/vla_finetune.sh "$@"
    exit
  fi
  PATH=$PWD/.venv/bin:$PATH
fi
tatara=(python -m workloads.cli)
step=${1:-}
shift || true
case $step in
  test-dataset) exec "${tatara[@]}" data inspect "${@:-data/tfrecord_logs}" ;;
  train) NPROC_PER_NODE=1 exec "${tatara[@]}" train profiles/vla.yaml "$@" ;;
  train-multi-gpu)
    if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
      echo "expected the number of GPUs after train-multi-gpu, found '${1:-}'" >&2
      exit 2
    fi
    NPROC_PER_NODE=$1 exec "${tatara[@]}" train profiles/vla.yaml "${@:2}"
    ;;
  shell) exec bash ;;
  *)
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
