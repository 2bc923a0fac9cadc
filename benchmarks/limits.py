# SPDX-License-Identifier: Apache-2.0
"""What this device could do at best: its copy and matmul rates, and what every op must move and multiply."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .harness import Program, run

ON_CPU: Final = jax.default_backend() == "cpu"
DTYPE: Final = "float32" if ON_CPU else "bfloat16"
"""Of operands."""
INNER: Final = 1 if ON_CPU else 4
"""Calls per sample."""
SETS: Final = 1 if ON_CPU else 2
"""Of operands, taken in turn."""


class Size(NamedTuple):
    """What the cost of an op depends on."""

    tokens: int
    d: int
    n: int
    k: int
    item: int
    """Bytes of a number of the operands."""

    def named(self, name: str) -> dict[str, Any]:
        """As a row has it."""
        return {"name": name, "tokens": self.tokens, "d": self.d, "n": self.n, "k": self.k}


class Cost(NamedTuple):
    """What a perfect program could not avoid."""

    bytes: float
    flops: float = 0.0
    """Of a matmul."""


class Limits(NamedTuple):
    """Of this device, per second."""

    bytes: float
    flops: float


def _rows(s: Size, per_entry: int) -> int:
    """Bytes of the rows gathered for every active entry, and of its value and index."""
    return s.tokens * s.k * (per_entry * s.d * s.item + 8)


COST: Final[dict[str, Callable[[Size], Cost]]] = {
    # pre-activations in, k values and indices out
    "topk": lambda s: Cost(s.tokens * (s.n * s.item + s.k * (s.item + 4))),
    # hidden units of an MLP of width 4 d, in and out
    "topk_mask": lambda s: Cost(s.tokens * 2 * 4 * s.d * s.item),
    # pre-activations need never reach memory
    "encode_topk": lambda s: Cost((s.tokens + s.n) * s.d * s.item + s.tokens * s.k * 8, 2 * s.tokens * s.d * s.n),
    # a row of w per entry; float32 out
    "sparse_decode": lambda s: Cost(_rows(s, 1) + s.tokens * s.d * 4),
    "gather_dot": lambda s: Cost(_rows(s, 1) + s.tokens * s.d * s.item + s.tokens * s.k * 4),
    # a row of x per entry; float32 out
    "row_sum": lambda s: Cost(_rows(s, 1) + s.n * s.d * 4),
    # rows of g and x per entry; w_dec in; both gradients out
    "sae_backward": lambda s: Cost(_rows(s, 2) + s.tokens * s.k * 4 + s.n * s.d * (s.item + 8) + s.n * 4),
    # the same; parameters and both moments of both matrices in and out instead
    "sae_adam": lambda s: Cost(_rows(s, 2) + s.tokens * s.k * 4 + 24 * s.n * (2 * s.d + 1)),
}


def size_of(shape: tuple[int, int, int, int], dtype: str) -> Size:
    """Of (tokens, d, n_latents, k)."""
    tokens, d, n, k = shape
    return Size(tokens, d, n, k, jnp.dtype(dtype).itemsize)


def least_ms(cost: Cost, limits: Limits) -> float:
    """Milliseconds that the limits leave.

    Example:
      >>> least_ms(Cost(bytes=1e9, flops=1e12), Limits(bytes=1e12, flops=1e14))
      10.0
    """
    return 1e3 * max(cost.bytes / limits.bytes, cost.flops / limits.flops)


def least_of(op: str, size: Size, limits: Limits) -> float:
    """The same for an op, or for a "step": encode, decode, and the backward pass with Adam."""
    parts = ("encode_topk", "sparse_decode", "sae_adam") if op == "step" else (op,)
    return sum(least_ms(COST[part](size), limits) for part in parts)


def measure(repeats: int) -> tuple[Limits, list[dict]]:
    """How fast this device copies and multiplies, and the rows that say so."""
    n, side = (1 << 26, 2048) if ON_CPU else (1 << 29, 8192)
    shape = {"float32 numbers": n}
    a, b = (jax.random.normal(jax.random.key(seed), (side, side), DTYPE) for seed in range(2))

    def copy(state: Array) -> tuple[Array, Array]:  # in place: else the price of fresh memory is in it
        state = lax.optimization_barrier(state + 1)
        return state, state[0]

    programs = [
        Program("copy", copy, (), shape, "float32", start=lambda: jnp.zeros(n, jnp.float32)),
        Program("matmul", jnp.dot, (a, b), {"side": side}, DTYPE),
    ]
    copied, multiplied = run(programs, repeats, INNER)
    limits = Limits(8 * n / copied["p50_ms"] * 1e3, 2 * side**3 / multiplied["p50_ms"] * 1e3)
    rates = (copied, limits.bytes), (multiplied, limits.flops)
    return limits, [row | {"per second": float(f"{rate:.4g}")} for row, rate in rates]
