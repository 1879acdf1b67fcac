#!/usr/bin/env bash
# The robot policy's steps, inside its container or from outside.
#
#   docker compose --profile vla run --rm vla_finetune scripts/docker/vla_finetune.sh STEP …
#
#   test-dataset [FOLDER]          look at the recorded demonstrations
#   train [SETTING…]               one GPU
#   train-multi-gpu N [SETTING…]   N GPUs
#   shell                          a shell
set -euo pipefail
cd "$(dirname "$0")/../.."

# Outside of the container: the same words, inside.
if [[ -z ${TATARA_IMAGE:-} ]]; then
  exec docker compose --profile vla run --rm vla_finetune scripts/docker/vla_finetune.sh "$@"
fi
step=${1:-}
shift || true
case $step in
  test-dataset) exec tatara data inspect "${@:-data/tfrecord_logs}" ;;
  train) NPROC_PER_NODE=1 exec tatara train profiles/vla.yaml "$@" ;;
  train-multi-gpu)
    if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
      echo "expected the number of GPUs after train-multi-gpu, found '${1:-}'" >&2
      exit 2
    fi
    NPROC_PER_NODE=$1 exec tatara train profiles/vla.yaml "${@:2}"
    ;;
  shell) exec bash ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
