# SPDX-License-Identifier: Apache-2.0
"""Labelled activations as the metrics see them: one row per example, split in two, every class against the rest."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...errors import UserError
from ...protocols import Dictionary

type Activations = Float[Array, "n d"] | Float[Array, "n pos d"]
"""One row per example, or its tokens (with a mask)."""


class Examples(NamedTuple):
    """Means over each example's tokens."""

    x: Float[Array, "n d"]
    z: Float[Array, "n n_latents"]


def pooled(
    dictionary: Dictionary, x: Activations, mask: Bool[Array, "n pos"] | None = None, *, rows: int = 32
) -> Examples:
    """Mean activation and mean latents of each example over its masked-in tokens, float32.

    Latents are averaged `rows` examples at a time: rows x pos x n_latents numbers are held, not n x pos x n_latents.

    Raises:
      UserError: shapes that do not fit, an example without a token, values that are not finite.
    Example:
      >>> from jaxneuro.dictionaries import SparseCoder, TopK
      >>> eye, zeros = jnp.eye(2), jnp.zeros(2)
      >>> d = SparseCoder(W_enc=eye, W_dec=eye, b_enc=zeros, b_dec=zeros, activation=TopK(1))
      >>> pooled(d, jnp.array([[[1.0, 0], [0, 3], [9, 9]]]), jnp.array([[True, True, False]])).z.tolist()
      [[0.5, 1.5]]
    """
    x = jnp.asarray(x)
    if x.ndim == 2 and mask is None:
        x = x[:, None]
    on = jnp.ones(x.shape[:2], bool) if mask is None else jnp.asarray(mask)
    if x.ndim != 3 or on.shape != x.shape[:2] or on.dtype != jnp.bool_:
        raise UserError(
            f"activations are [n, d], or [n, pos, d] with a mask bool [n, pos]; these are {list(x.shape)} with a mask "
            f"{on.dtype}{list(on.shape)}."
        )
    empty = int(jnp.sum(~jnp.any(on, axis=1)))
    if empty:
        raise UserError(f"{empty} of {x.shape[0]} examples have no token in the mask. Leave them out.")
    found = _pooled(dictionary, x, on, rows=rows)
    if not all(bool(jnp.isfinite(a).all()) for a in found):
        raise UserError("activations or latents are not finite at tokens that count.")
    return found


@partial(jax.jit, static_argnames="rows")
def _pooled(dictionary: Dictionary, x: Array, on: Array, *, rows: int) -> Examples:
    def one(example: tuple[Array, Array]) -> Examples:
        x, on = example
        x = jnp.where(on[:, None], x.astype(jnp.float32), 0)
        z = jnp.where(on[:, None], dictionary.encode(x).astype(jnp.float32), 0)
        n = jnp.sum(on, dtype=jnp.int32).astype(jnp.float32)
        return Examples(jnp.sum(x, 0) / n, jnp.sum(z, 0) / n)

    return jax.lax.map(one, (x, on), batch_size=rows)


def one_against_rest(labels: Int[Array, " n"] | Bool[Array, "n n_classes"]) -> Bool[np.ndarray, "n n_classes"]:
    """Labels as a table of yes and no. Classes 0 .. max; a boolean table (examples of several classes) stays.

    Raises:
      UserError: a class without two examples, or without two others.
    """
    table = np.asarray(labels)
    if table.ndim == 1 and np.issubdtype(table.dtype, np.integer) and table.size and table.min() >= 0:
        table = table[:, None] == np.arange(table.max() + 1)
    if table.ndim != 2 or table.dtype != bool:
        raise UserError(f"labels are classes int [n], from 0, or bool [n, n_classes]; not {table.dtype}{table.shape}.")
    few = np.flatnonzero((table.sum(0) < 2) | ((~table).sum(0) < 2))
    if few.size:
        raise UserError(f"classes {few.tolist()} have fewer than two examples, or all but one. Leave them out.")
    return table


def split(kinds: np.ndarray, *, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) indices: the same share of every kind of example in both, at least one each, fixed by the seed.

    Raises:
      UserError: a fraction outside (0, 1).
    Example:
      >>> train, test = split(np.array([0] * 8 + [1] * 4), test_fraction=0.25, seed=0)
      >>> (train < 8).sum(), (train >= 8).sum(), (test < 8).sum(), (test >= 8).sum()
      (np.int64(6), np.int64(3), np.int64(2), np.int64(1))
    """
    if not 0 < test_fraction < 1:
        raise UserError(f"test_fraction is between 0 and 1, not {test_fraction}.")
    rng = np.random.default_rng(seed)
    train, test = [], []
    for kind in np.unique(kinds, axis=0):
        here = rng.permutation(np.flatnonzero((kinds == kind).reshape(len(kinds), -1).all(1)))
        n = min(max(1, round(test_fraction * len(here))), max(1, len(here) - 1))
        test.append(here[:n])
        train.append(here[n:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def balanced(y: Bool[np.ndarray, "n *classes"]) -> Float[np.ndarray, "n *classes"]:
    """Weights that give yes and no the same total (and n together), class by class.

    Example:
      >>> balanced(np.array([True, False, False, False, False])).tolist()
      [2.5, 0.625, 0.625, 0.625, 0.625]
    """
    n, yes = len(y), y.sum(0)
    return np.where(y, n / (2 * np.maximum(yes, 1)), n / (2 * np.maximum(n - yes, 1))).astype(np.float32)
