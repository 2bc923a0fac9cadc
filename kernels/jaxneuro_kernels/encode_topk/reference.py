# SPDX-License-Identifier: Apache-2.0
"""What encoding means, in plain JAX with all pre-activations materialised."""

import jax.numpy as jnp
from jax import Array

from ..topk.reference import topk


def encode_topk(x: Array, w: Array, b: Array, k: int, pre_dtype=jnp.float32) -> tuple[Array, Array, Array]:
    """(values before ReLU, indices, pre-activations), all float32 or int32. x: [tokens, d], w: [n_latents, d]."""
    pre = jnp.dot(x, w.T, preferred_element_type=jnp.float32) + b.astype(jnp.float32)
    pre = pre.astype(pre_dtype)
    return *topk(pre, k), pre
