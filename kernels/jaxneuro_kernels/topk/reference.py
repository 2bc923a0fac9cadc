# SPDX-License-Identifier: Apache-2.0
"""What top-k means, in plain JAX: a full stable sort by the integer image of the floats."""

import jax.numpy as jnp
from jax import Array, lax

from .order import to_key


def topk(x: Array, k: int) -> tuple[Array, Array]:
    """Sort descending by key, equal keys by index, keep k."""
    index = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    _, index = lax.sort((~to_key(x), index), num_keys=2)
    index = index[..., :k]
    return jnp.take_along_axis(x, index, -1), index
