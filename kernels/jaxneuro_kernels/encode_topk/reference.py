# SPDX-License-Identifier: Apache-2.0
"""What encoding means, in plain JAX with all pre-activations materialised."""

import jax.numpy as jnp
from jax import Array

from ..topk.reference import topk


def encode_topk(x: Array, w: Array, b: Array, k: int, pre_dtype=jnp.float32) -> tuple[Array, Array, Array]:
    """(float32 values before ReLU, int32 indices, pre-activations). x: [tokens, d], w: [n_latents, d]."""
    pre = jnp.dot(x, w.T, preferred_element_type=jnp.float32) + b.astype(jnp.float32)[None]
    pre = pre.astype(pre_dtype)
    vals, idx = topk(pre, k)
    return vals.astype(jnp.float32), idx, pre
