#!/usr/bin/env bash
# Everything that PENDING.md owes, on this machine's accelerator. Results stay in benchmarks/results, and go to $OUT if set.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=.:kernels
python -m benchmarks all --repeats 31
if [ -n "${OUT:-}" ]; then cp benchmarks/results/*.json "$OUT"/; fi
