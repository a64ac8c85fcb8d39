#!/usr/bin/env bash
#SBATCH --job-name=scorer-mpi
#SBATCH --ntasks=9
#SBATCH --cpus-per-task=16
#SBATCH --time=02:00:00
# Rank 0 is the scheduler, the other ranks are workers. The driver runs on the node of rank 0.
set -euo pipefail
source "${VENV:-.venv}/bin/activate"

file=$PWD/scheduler-$$.json
trap 'kill $(jobs -p) 2>/dev/null; rm -f "$file"' EXIT
mpirun ${MPI_FLAGS:-} dask-mpi --scheduler-file "$file" --worker-class distributed.Worker --nthreads "${THREADS:-16}" &

scorer run "${INPUT:-flights.parquet}" --model "${MODEL:-late.onnx}" --output "${OUTPUT:-scores}" --scheduler-file "$file"
