#!/usr/bin/env bash
#SBATCH --job-name=scorer-driver
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G
#SBATCH --gpus=1
#SBATCH --requeue
# The driver runs as a job with its own GPU. It starts up to four worker jobs with one GPU and eight threads each.
set -euo pipefail
source "${VENV:-.venv}/bin/activate"

scorer run "${INPUT:-reviews.parquet}" --config "${CONFIG:-job.toml}" --output "${OUTPUT:-scores}" \
  --device cuda --cluster slurm --adapt 1:4 --threads 8 --memory 32GiB --walltime 01:00:00 --job-extra=--gpus=1
