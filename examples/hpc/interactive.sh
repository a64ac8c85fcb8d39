#!/usr/bin/env bash
# Run this inside `salloc -N 2 -n 2 -c 16 --mem=32G`. It starts a scheduler here, a worker on each node, and the driver.
set -euo pipefail
source "${VENV:-.venv}/bin/activate"

file=$PWD/scheduler-$$.json
trap 'kill $(jobs -p) 2>/dev/null; rm -f "$file"' EXIT
dask scheduler --scheduler-file "$file" --dashboard-address 127.0.0.1:0 &
srun dask worker --scheduler-file "$file" --nthreads "${SLURM_CPUS_PER_TASK:-16}" --memory-limit 0 --no-dashboard &

scorer run "${INPUT:-flights.parquet}" --model "${MODEL:-late.onnx}" --output "${OUTPUT:-scores}" --scheduler-file "$file"
