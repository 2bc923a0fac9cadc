# SPDX-License-Identifier: Apache-2.0
"""Starting points and scales, from the first batch."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from .decoder import unit_rows

ROUNDS = 64
"""Weiszfeld iterations: linear convergence, well below the noise of one batch."""


def masked_mean(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, "d"]:
    """Mean over the valid rows; zeros if there is none."""
    n = jnp.maximum(jnp.sum(valid, dtype=jnp.int32), 1).astype(jnp.float32)
    return jnp.sum(jnp.where(valid[:, None], x, jnp.float32(0)), axis=0) / n


def geometric_median(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, "d"]:
    """The point with the least sum of distances to the valid rows (Weiszfeld), which a few huge tokens cannot move.

    Example:
      >>> x = jnp.array([[0.0], [1.0], [2.0], [1000.0], [1.5]])
      >>> geometric_median(x, jnp.ones(5, bool)).round(2).tolist()
      [1.5]
    """
    tiny = jnp.float32(1e-6) * jnp.sqrt(_mean_square(x, valid)) + jnp.finfo(jnp.float32).tiny

    def closer(_, m):
        distance = jnp.sqrt(jnp.sum(jnp.square(x - m), axis=-1))
        weight = jnp.where(valid, 1 / jnp.maximum(distance, tiny), jnp.float32(0))
        return weight @ x / jnp.maximum(jnp.sum(weight), jnp.finfo(jnp.float32).tiny)

    return lax.fori_loop(0, ROUNDS, closer, masked_mean(x, valid))


def _mean_square(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, ""]:
    return jnp.sum(masked_mean(jnp.square(x), valid))


def origin(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, "d"]:
    """Zeros, as if measured."""
    del valid
    return jnp.zeros(x.shape[-1], jnp.float32)


def norm_scale(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, ""]:
    """s = sqrt(d) / mean |x_n|: the scaled mean norm is sqrt(d) (Anthropic, April 2024). 1 if all rows are zero."""
    norm = masked_mean(jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)), valid)[0]
    return jnp.where(norm > 0, jnp.sqrt(jnp.float32(x.shape[-1])) / norm, jnp.float32(1))


def deviation(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, ""]:
    """Mean squared distance from the mean."""
    return _mean_square(x - masked_mean(x, valid), valid)


def random_rows(key: Key[Array, ""], n_latents: int, d: int) -> Float[Array, "n_latents d"]:
    """Directions uniform on the sphere."""
    return unit_rows(jax.random.normal(key, (n_latents, d), jnp.float32))
