#!/usr/bin/env bash
# Runs launch/train.py on every host of a Cloud TPU pod slice.
#
#   launch/tpu_pod.sh TPU_NAME ZONE --gin_file=taste_pretrain.gin --gin_file=parallel/fsdp.gin ...
#
# Every host needs the repository in ~/slm_jax with its environment in ~/slm_jax/.venv
# (pip install -e '.[tpu]'), and SLM_JAX_CACHE on storage that all of them see, with the datasets
# and models already there: with several processes nothing is fetched or built. Give
# --gin.TrainJob.runs a folder that all of them see, too.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
: "${SLM_JAX_CACHE:?set it to the shared folder}"
command="cd ~/slm_jax && SLM_JAX_CACHE=$(printf %q "$SLM_JAX_CACHE") .venv/bin/python launch/train.py"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --batch-size=all \
  --command="$command $(printf '%q ' "$@")"
