# SPDX-License-Identifier: Apache-2.0
"""python -m benchmarks.correctness: every op against its reference on this device, before anything is timed.

Every implementation that does not refuse, at a small size and a real one, and twice: two runs must agree in every bit.
Prints a table, keeps it in benchmarks/results, and exits with 1 if a line failed.
"""

import sys
from collections.abc import Iterator
from typing import Any, Final

import jax
import numpy as np
from jaxneuro_kernels.shapes import OPS, SHAPES, case, fill

from . import harness, truth

SMALL: Final = (512, 256, 8192, 32)
"""(tokens, d, n_latents, k)."""


def refusal(call: Any, operands: tuple, implementation: str) -> str | None:
    """Why this implementation does not take the call here, or None."""
    try:
        jax.eval_shape(lambda *a: call(*a, implementation=implementation), *operands)
    except ExceptionGroup as e:
        return harness.told(e)
    except Exception:  # no refusal but a fault, which shows again where it is recorded
        return None
    return None


def rows(real: str, dtype: str) -> Iterator[dict]:
    """One row per op, implementation and size.

    Args:
      real: name of the real shape.
      dtype: of the operands.
    """
    for shape, op in ((shape, op) for shape in (SMALL, SHAPES[real]) for op in OPS):
        this = case(op, shape, dtype)
        operands = fill(this.operands, shape[2])
        error = truth.reference(op, operands, shape[3])
        for name in OPS[op].backends:
            if refusal(this.call, this.operands, name) is None:
                yield _checked(op, name, this.call, operands, error) | {
                    "shape": dict(zip(("tokens", "d", "n", "k"), shape, strict=True)),
                    "dtype": dtype,
                }


def _checked(op: str, name: str, call: Any, operands: tuple, error: truth.Error) -> dict:
    row: dict[str, Any] = {"op": op, "implementation": name, "error": None, "repeats": None}
    try:
        run = jax.jit(lambda *a: call(*a, implementation=name))
        once = run(*operands)
        row["error"] = error(once)
        twice = zip(*map(jax.tree.leaves, (once, run(*operands))), strict=True)
        row["repeats"] = all(np.array_equal(truth.plain(a), truth.plain(b), equal_nan=True) for a, b in twice)
        row["passed"] = row["error"] <= truth.TOLERANCE.get(op, truth.SUMS) and row["repeats"]
    except Exception as e:
        row |= {"passed": False, "failed": harness.told(e)}
    return row


def main() -> int:
    """Exit status."""
    on_cpu = jax.default_backend() == "cpu"
    found = list(rows(*(("cpu-128", "float32") if on_cpu else ("gpt2-32k", "bfloat16"))))
    harness.show("correctness", found)
    print(f"written: {harness.save('correctness', found)}")
    wrong = [r for r in found if not r["passed"]]
    print(f"{len(found) - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
