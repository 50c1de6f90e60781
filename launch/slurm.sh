#!/usr/bin/env bash
#SBATCH --job-name=slm_jax
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
# Runs launch/train.py with one process a node, each with all of the node's GPUs.
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --gin_file=taste_pretrain.gin \
#     --gin_file=parallel/fsdp.gin --gin.FSDP=32
#
# Submit it from the repository with its environment active. SLM_JAX_CACHE must be on storage that
# all nodes see, with the datasets and models there already. Two minutes before the time limit, and
# when it is preempted, the job saves and ends; submitted again, it goes on from there. Several
# submissions with --dependency=singleton run one after the other, until the run is complete.
set -euo pipefail
: "${SLM_JAX_CACHE:?set it to the shared folder}"
exec srun --kill-on-bad-exit=1 python launch/train.py "$@"
