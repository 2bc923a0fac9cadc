# SPDX-License-Identifier: Apache-2.0
"""One reduction over the integer images of the floats (CPU, 256 x 8,192: 3.5 ms for k = 32, 1.4 ms for k = 1,024)."""

import functools

import jax.numpy as jnp
from jax import Array, lax

from ..axes import aligned
from ..encode_topk import xla as encoder
from ..topk.bisect import image


def group_max(x: Array, k: int) -> tuple[Array, Array]:
    """See reference.py."""
    size = x.shape[-1] // k
    groups = image(x).reshape(*x.shape[:-1], k, size)
    at = lax.argmax(groups, groups.ndim - 1, jnp.int32)
    idx = at + aligned(jnp.arange(0, x.shape[-1], size, dtype=jnp.int32), at)
    return jnp.take_along_axis(x, idx, axis=-1, mode="clip"), idx


def encode_group_max(x: Array, w: Array, b: Array, k: int) -> tuple[Array, Array]:
    """See reference.py. One block of tokens at a time. Two-dimensional x."""
    return encoder.encode(x, w, b, functools.partial(group_max, k=k))
