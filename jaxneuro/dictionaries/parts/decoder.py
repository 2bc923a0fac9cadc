# SPDX-License-Identifier: Apache-2.0
"""Decoder rows on the unit sphere, so that a latent's value is its size."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def unit_rows(w: Float[Array, "n_latents d"]) -> Float[Array, "n_latents d"]:
    """Every row divided by its norm. A row of zeros stays."""
    squares = jnp.sum(w * w, axis=-1, keepdims=True)
    return w * lax.rsqrt(jnp.maximum(squares, jnp.finfo(w.dtype).tiny))


def along_the_sphere(
    gradient: Float[Array, "n_latents d"], rows: Float[Array, "n_latents d"]
) -> Float[Array, "n_latents d"]:
    """The gradient without its part along each unit row, which only changes the norm (Adam's moments would keep it)."""
    return gradient - jnp.sum(gradient * rows, axis=-1, keepdims=True) * rows
