# SPDX-License-Identifier: Apache-2.0
"""What the restricted MLP means: the dense one, with each neuron's activation times how often it was chosen."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from ..axes import aligned


def gather_mlp(
    x: Array,
    neurons: Array,
    w_in: Array,
    w_out: Array,
    *,
    activation: Callable[[Array], Array],
    w_gate: Array | None = None,
    b_in: Array | None = None,
    b_out: Array | None = None,
) -> Array:
    """float32 [..., d_out]. One subset, neurons [m]."""
    x, w_in, w_out = (a.astype(jnp.float32) for a in (x, w_in, w_out))
    times = jnp.sum(neurons[:, None] == jnp.arange(w_in.shape[0], dtype=jnp.int32)[None], axis=0).astype(jnp.float32)
    pre = x @ w_in.T + (0 if b_in is None else aligned(b_in.astype(jnp.float32), x))
    hidden = activation(pre) if w_gate is None else activation(x @ w_gate.T.astype(jnp.float32)) * pre
    return (hidden * aligned(times, x)) @ w_out + (0 if b_out is None else aligned(b_out.astype(jnp.float32), x))
