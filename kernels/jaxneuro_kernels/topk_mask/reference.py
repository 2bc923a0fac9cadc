# SPDX-License-Identifier: Apache-2.0
"""What the mask means, in plain JAX: the places that a full stable sort puts first."""

import jax.numpy as jnp
from jax import Array

from ..topk.reference import topk


def topk_mask(h: Array, k: int) -> Array:
    """bool: the k largest of each row."""
    _, index = topk(h, k)
    return jnp.put_along_axis(jnp.zeros(h.shape, bool), index, jnp.array(True), axis=-1, inplace=False)
