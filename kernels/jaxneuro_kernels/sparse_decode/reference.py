# SPDX-License-Identifier: Apache-2.0
"""What the three products mean, in plain JAX with everything materialised. Two-dimensional cores."""

import jax.numpy as jnp
from jax import Array


def sparse_decode(vals: Array, idx: Array, w: Array) -> Array:
    """out[t] = sum_j vals[t, j] w[idx[t, j]]."""
    return jnp.einsum("tk,tkd->td", vals.astype(jnp.float32), w[idx].astype(jnp.float32))


def gather_dot(x: Array, idx: Array, w: Array) -> Array:
    """out[t, j] = <x[t], w[idx[t, j]]>."""
    return jnp.einsum("td,tkd->tk", x.astype(jnp.float32), w[idx].astype(jnp.float32))


def row_sum(vals: Array, idx: Array, x: Array, n_latents: int) -> Array:
    """out[f] = sum of vals[t, j] x[t] over the entries with idx[t, j] = f."""
    rows = vals.astype(jnp.float32)[..., None] * x.astype(jnp.float32)[:, None]
    return jnp.zeros((n_latents, x.shape[-1]), jnp.float32).at[idx].add(rows)
