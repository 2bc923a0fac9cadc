# SPDX-License-Identifier: Apache-2.0
"""What the maximum of groups means, in plain JAX: the first of each group's stable sort."""

import jax.numpy as jnp
from jax import Array

from ..axes import aligned
from ..topk.reference import topk


def group_max(x: Array, k: int) -> tuple[Array, Array]:
    """(values, indices), in the order of the groups."""
    size = x.shape[-1] // k
    vals, at = topk(x.reshape(*x.shape[:-1], k, size), 1)
    at = at[..., 0]
    return vals[..., 0], at + aligned(jnp.arange(0, x.shape[-1], size, dtype=jnp.int32), at)


def encode_group_max(x: Array, w: Array, b: Array, k: int) -> tuple[Array, Array]:
    """The same of x w^T + b, before ReLU."""
    return group_max(jnp.dot(x, w.T, preferred_element_type=jnp.float32) + b.astype(jnp.float32)[None], k)
