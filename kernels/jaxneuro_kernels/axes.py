# SPDX-License-Identifier: Apache-2.0
"""Axes added explicitly, where numpy would add them itself: JAX_NUMPY_RANK_PROMOTION=raise forbids that."""

import jax.numpy as jnp
from jax import Array


def aligned(b: Array, x: Array) -> Array:
    """b with axes of length 1 in front, until it has as many as x.

    Example:
      >>> aligned(jnp.zeros(3), jnp.zeros((2, 5, 3))).shape
      (1, 1, 3)
    """
    return jnp.expand_dims(b, tuple(range(x.ndim - b.ndim)))
