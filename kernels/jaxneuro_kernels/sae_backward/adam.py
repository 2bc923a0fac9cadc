# SPDX-License-Identifier: Apache-2.0
"""Adam on rows of latents: one formula for XLA and for the kernel, in which a row never leaves the registers."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike


class Rows(NamedTuple):
    """Parameters of a sparse autoencoder, or their moments, one latent per row."""

    w_enc: Array
    """[n_latents, d_in]"""
    b_enc: Array
    """[n_latents]"""
    w_dec: Array
    """[n_latents, d_out]"""


class Rates(NamedTuple):
    """Numbers of one step, float32 scalars."""

    learning_rate: Array
    b1: Array
    b2: Array
    eps: Array
    first_scale: Array
    """1 / (1 - b1^step)"""
    second_scale: Array


def rates(step: Array, learning_rate: ArrayLike, b1: float, b2: float, eps: float) -> Rates:
    """Those of a step, counted from 1.

    Example:
      >>> [round(float(r), 3) for r in rates(jnp.int32(1), 0.01, 0.9, 0.99, 1e-8)]
      [0.01, 0.9, 0.99, 0.0, 10.0, 100.0]
    """
    t = jnp.asarray(step, jnp.float32)
    scales = (1 / (1 - jnp.power(jnp.float32(b), t)) for b in (b1, b2))
    return Rates(*(jnp.asarray(a, jnp.float32) for a in (learning_rate, b1, b2, eps)), *scales)


def updated(p: Array, m: Array, v: Array, g: Array, r: Rates) -> tuple[Array, Array, Array]:
    """(parameters, first, second moments) after a step with gradient g, as `optax.adam`."""
    m = r.b1 * m + (1 - r.b1) * g
    v = r.b2 * v + (1 - r.b2) * g * g
    return p - r.learning_rate * (m * r.first_scale) / (lax.sqrt(v * r.second_scale) + r.eps), m, v


def along_sphere(g: Array, w: Array, over: Array, squared: Array) -> Array:
    """g without its part along w, given <g, w> and <w, w>."""
    return g - w * (over / jnp.maximum(squared, jnp.float32(1e-30)))
