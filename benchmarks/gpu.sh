#!/usr/bin/env bash
# Everything that PENDING.md owes, on this machine's accelerator: bash benchmarks/gpu.sh [correctness|tune|NAME ...]
# What fails stops nothing else; the exit status tells, and results say whether the kernels were found correct. Results
# stay in benchmarks/results, the tuned table in the package, and what is new goes to $OUT if set.
set -uo pipefail
cd "$(dirname "$0")/.."
# PyTorch shares the card: JAX takes what it needs, up to this part.
export PYTHONPATH=.:kernels PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_PYTHON_CLIENT_MEM_FRACTION=.6
began=$(mktemp)
keep() {
  if [ -n "${OUT:-}" ]; then
    find benchmarks/results kernels/jaxneuro_kernels/tuned -name '*.json' -newer "$began" -exec cp {} "$OUT"/ \;
  fi
}
trap keep EXIT
failed=0
for stage in ${@:-correctness tune kernels topk_step capture sweep ablations decoding dictionaries synthsae}; do
  case $stage in
    correctness) python -m benchmarks.correctness ;;
    tune) python -m jaxneuro_kernels.tune --budget "${TUNE_SECONDS:-300}" ;;
    kernels) python -m benchmarks kernels --repeats 7 ;;
    *) python -m benchmarks "$stage" --repeats 31 ;;
  esac || { echo "failed: $stage" >&2; failed=1; }
  keep
done
exit $failed
