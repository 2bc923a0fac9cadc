# SPDX-License-Identifier: Apache-2.0
"""What every dictionary is given: values of its width, as many latents as it has, indices of latents that it has."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from ..errors import UserError


def joined(x: Any, d_in: int) -> Float[Array, "*batch d_in"]:
    """Values as a dictionary reads them; of [..., batch, pos, n_heads, d_head], which `capture` gives, heads joined.

    With fewer axes [4, 8] is one token of 4 heads or four tokens of another model, so heads are not joined there.

    Raises:
      UserError: values of another width, or that are not floating.
    Example:
      >>> joined(jnp.zeros((2, 5, 4, 8)), 32).shape
      (2, 5, 32)
    """
    x = _floating(x, "the dictionary reads values")
    if x.shape[-1:] == (d_in,):
        return x
    heads = x.ndim > 1 and math.prod(x.shape[-2:]) == d_in
    if heads and x.ndim > 3:
        return x.reshape(*x.shape[:-2], d_in)
    text = f"the dictionary reads values of width {d_in}; these have the shape {list(x.shape)}."
    if heads:
        raise UserError(
            f"{text} If their last two axes are heads, join them first, x.reshape(*x.shape[:-2], {d_in}): that is done "
            "only for [batch, pos, n_heads, d_head], which cannot be tokens of another model."
        )
    raise UserError(f"{text} Give it the site and the model that it was trained on.")


def apart(out: Array, shape: tuple[int, ...]) -> Array:
    """A reconstruction in the shape of what was given: of joined heads with their axis, where widths are equal.

    Example:
      >>> apart(jnp.zeros((2, 5, 32)), (2, 5, 4, 8)).shape, apart(jnp.zeros((2, 5, 16)), (2, 5, 4, 8)).shape
      ((2, 5, 4, 8), (2, 5, 16))
    """
    return out.reshape(shape) if out.ndim < len(shape) and out.size == math.prod(shape) else out


def of_width(x: Any, *widths: int, what: str) -> Float[Array, "..."]:
    """Floating values whose last axes are these.

    Raises:
      UserError: they are not.
    Example:
      >>> of_width(jnp.zeros((2, 3)), 4, what="latents to decode")
      Traceback (most recent call last):
      jaxneuro.errors.UserError: latents to decode have the shape [..., 4]; these have [2, 3].
    """
    x = _floating(x, what)
    if x.shape[-len(widths) :] != widths:
        raise UserError(f"{what} have the shape [..., {', '.join(map(str, widths))}]; these have {list(x.shape)}.")
    return x


def code(vals: Any, idx: Any, n_latents: int) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
    """A sparse code of a dictionary of so many latents; an entry of value 0 may name none of them, as n_latents.

    Raises:
      UserError: shapes or types that do not fit; an index of no latent, where indices are known.
    Example:
      >>> code(jnp.ones((1, 1)), jnp.full((1, 1), 99), 16)
      Traceback (most recent call last):
      jaxneuro.errors.UserError: index 99 is of no latent: the dictionary has 16, from 0.
    """
    vals, idx = _floating(vals, "values of a sparse code"), jnp.asarray(idx)
    if vals.shape != idx.shape or not vals.ndim or not jnp.issubdtype(idx.dtype, jnp.integer):
        raise UserError(
            "a sparse code has floating values and whole indices of one shape [..., k]; these are "
            f"{vals.dtype}{list(vals.shape)} and {idx.dtype}{list(idx.shape)}."
        )
    if all(not isinstance(a, Tracer) and a.is_fully_addressable for a in (vals, idx)):
        on, at = (np.asarray(a) for a in jax.device_get((vals, idx)))
        wrong = at[(at < 0) | (at > n_latents) | ((at == n_latents) & (on != 0))]
        if wrong.size:
            raise UserError(f"index {wrong[0]} is of no latent: the dictionary has {n_latents}, from 0.")
    return vals, idx


def _floating(x: Any, what: str) -> Array:
    if not hasattr(x, "dtype"):
        try:
            x = np.asarray(x, np.float32)
        except (TypeError, ValueError):
            raise UserError(f"{what}: this is a {type(x).__name__}, not an array of numbers.") from None
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"{what}: these are {x.dtype}, not floating. Cast them first.")
    return jnp.asarray(x)
