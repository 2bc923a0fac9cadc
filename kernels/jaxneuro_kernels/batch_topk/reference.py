# SPDX-License-Identifier: Apache-2.0
"""What the selection means, in plain JAX: one stable sort of the whole batch, and the dense code it leaves."""

import jax
import jax.numpy as jnp
from jax import Array

from ..topk.reference import topk


def batch_topk(pre: Array, k: int, relu: bool = True) -> tuple[Array, Array]:
    """(dense latents [tokens, n_latents], smallest value kept). Two-dimensional pre, at least one value kept."""
    flat = pre.reshape(-1)
    vals, index = topk(flat, pre.shape[0] * k)
    return jnp.zeros_like(flat).at[index].set(jax.nn.relu(vals) if relu else vals).reshape(pre.shape), vals[-1]
