#!/usr/bin/env bash
# Everything that PENDING.md owes, on this machine's accelerator: bash benchmarks/gpu.sh [correctness|tune|NAME ...]
# A stage longer than STAGE_SECONDS is ended (0: none is; unset: 540 for the newer stages).
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
stages="correctness tune kernels topk_step capture sweep ablations decoding attention
  large:pythia-1.4b large:gemma-2-2b large:llama-3.1-8b dictionaries synthsae"
for stage in ${@:-$stages}; do
  # Seconds after which a stage is ended; what another one needs is not its to take.
  case $stage in
    large:* | ablations | decoding | attention) limit=${STAGE_SECONDS:-540} ;;
    *) limit=${STAGE_SECONDS:-0} ;;
  esac
  case $stage in
    correctness) timeout "$limit" python -m benchmarks.correctness ;;
    tune) timeout "$limit" python -m jaxneuro_kernels.tune --budget "${TUNE_SECONDS:-300}" ;;
    kernels) timeout "$limit" python -m benchmarks kernels --repeats 7 ;;
    *) timeout "$limit" python -m benchmarks "$stage" --repeats 31 ;;
  esac || { echo "failed: $stage" >&2; failed=1; }
  keep
done
exit $failed
