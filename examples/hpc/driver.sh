#!/usr/bin/env bash
#SBATCH --job-name=scorer-driver
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --requeue
# The driver runs as a job. It starts up to 20 worker jobs of 16 threads each; their number follows the remaining work.
set -euo pipefail
source "${VENV:-.venv}/bin/activate"

scorer run "${INPUT:-flights.parquet}" --model "${MODEL:-late.onnx}" --output "${OUTPUT:-scores}" \
  --cluster slurm --adapt 1:20 --threads 16 --memory 32GiB --walltime 01:00:00
