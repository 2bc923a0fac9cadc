# SPDX-License-Identifier: Apache-2.0
"""Starting points and scales, from the first batch."""

import functools
import itertools
from typing import Final

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


@jax.jit
def geometric_median(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, "d"]:
    """The point with the least sum of distances to the valid rows (Weiszfeld), which a few huge tokens cannot move.

    Example:
      >>> x = jnp.array([[0.0], [1.0], [2.0], [1000.0], [1.5]])
      >>> geometric_median(x, jnp.ones(5, bool)).round(2).tolist()
      [1.5]
    """
    tiny = jnp.float32(1e-6) * jnp.sqrt(_mean_square(x, valid)) + jnp.finfo(jnp.float32).tiny

    def closer(_, m):
        distance = jnp.sqrt(jnp.sum(jnp.square(x - m[None]), axis=-1))
        weight = jnp.where(valid, 1 / jnp.maximum(distance, tiny), jnp.float32(0))
        return weight @ x / jnp.maximum(jnp.sum(weight), jnp.finfo(jnp.float32).tiny)

    return lax.fori_loop(0, ROUNDS, closer, masked_mean(x, valid))


def _mean_square(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, ""]:
    return jnp.sum(masked_mean(jnp.square(x), valid))


def origin(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, "d"]:
    """Zeros, as if measured."""
    del valid
    return jnp.zeros(x.shape[-1], jnp.float32)


CENTRES: Final = {"median": geometric_median, "mean": masked_mean, "zeros": origin}
"""Where a decoder's bias starts."""


def _sqrt_d(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, ""]:
    """s = sqrt(d) / mean |x_n|: the scaled mean norm is sqrt(d) (Anthropic, April 2024)."""
    norm = masked_mean(jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)), valid)[0]
    return jnp.sqrt(jnp.float32(x.shape[-1])) / norm


def _unit(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, ""]:
    """s = 1 / sqrt(mean |x_n|^2): the scaled mean squared norm is 1 (Gemma Scope)."""
    return lax.rsqrt(_mean_square(x, valid))


NORMS: Final = {"sqrt_d": _sqrt_d, "unit": _unit, "none": lambda x, valid: jnp.float32(1)}
"""What x is multiplied by, from the first batch."""


def norm_scale(
    x: Float[Array, "n d"], valid: Bool[Array, "n"], norm: str, widths: tuple[int, ...] = ()
) -> Float[Array, "*d"]:
    """What x is multiplied by: a number, or with `widths` one per coordinate, equal within each site. 1 for zeros.

    Example:
      >>> norm_scale(jnp.full((3, 4), 2.0), jnp.ones(3, bool), "sqrt_d").tolist()
      0.5
    """
    scales = [NORMS[norm](part, valid) for part in split_sites(x, widths)]
    scales = [jnp.where(jnp.isfinite(s), s, jnp.float32(1)) for s in scales]
    if not widths:
        return scales[0]
    return jnp.concatenate([jnp.broadcast_to(s, (w,)) for s, w in zip(scales, widths, strict=True)])


def split_sites(x: Float[Array, "*batch d"], widths: tuple[int, ...]) -> list[Float[Array, "*batch _"]]:
    """The sites that x joins, of these widths; x itself without widths."""
    return jnp.split(x, list(itertools.accumulate(widths))[:-1], axis=-1)


def deviation(x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Float[Array, ""]:
    """Mean squared distance from the mean."""
    return _mean_square(x - masked_mean(x, valid)[None], valid)


@functools.partial(jax.jit, static_argnums=(1, 2))
def random_rows(key: Key[Array, ""], n_latents: int, d: int) -> Float[Array, "n_latents d"]:
    """Directions uniform on the sphere."""
    return unit_rows(jax.random.normal(key, (n_latents, d), jnp.float32))
