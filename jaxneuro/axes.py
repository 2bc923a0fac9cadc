# SPDX-License-Identifier: Apache-2.0
"""Axes that are added explicitly, as JAX_NUMPY_RANK_PROMOTION=raise asks, and axes that are joined."""

import math

from jaxneuro_kernels.axes import aligned as aligned
from jaxtyping import Array

from .errors import UserError


def by_position(x: Array, positions: tuple[int, ...], *, layers: int = 0) -> Array:
    """[*layers, batch, pos, ...] -> [*layers, batch, pos, unit]: heads and other trailing axes are counted through.

    A map [*layers, batch, row, column, channel] has its rows and columns for positions, in reading order.

    Args:
      positions: (batch, pos).
      layers: how many axes are before the batch.
    Raises:
      UserError: x has no such axes.
    Example:
      >>> from jax import numpy as jnp
      >>> by_position(jnp.zeros((2, 5, 3, 4)), (2, 5)).shape, by_position(jnp.zeros((2, 5, 3, 4)), (2, 15)).shape
      ((2, 5, 12), (2, 15, 4))
    """
    front, inner = x.shape[: layers + 1], x.shape[layers + 1 :]
    n = next((n for n in ((1, 2) if len(inner) == 3 else (1,)) if math.prod(inner[:n]) == positions[1] and inner), None)
    if n is None or front[layers:] != tuple(positions[:1]):
        raise UserError(f"values of shape {x.shape} are not one row for each of the {tuple(positions)} tokens.")
    return x.reshape(*front, positions[1], -1)


def unit_axes(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The trailing axes of [batch, pos, ...] or [batch, row, column, channel] that n units are counted through.

    Example:
      >>> unit_axes((2, 5, 3, 4), 12), unit_axes((2, 5, 3, 4), 4)
      ((3, 4), (4,))
    """
    found = next((shape[i:] for i in range(2, len(shape) + 1) if math.prod(shape[i:]) == n), None)
    if found is None:
        raise UserError(f"values of shape {shape} do not have {n} units at each position.")
    return found
