# SPDX-License-Identifier: Apache-2.0
"""Which position every column of a batch has: counted from each row's own first real token, whatever the padding."""

from typing import Any, Final, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ..taps.spans import Span


class Columns(NamedTuple):
    """What the columns of one pass of a model mean, as its taps take it; None: column i is position i of every row."""

    pos: Span | None = None
    """Of the tokens that are run."""
    key: Span | None = None
    """Of what they attend to: of a cache, its slots."""


EVEN: Final = Columns()


def positions(mask: Bool[Array, "batch pos"]) -> Int[Array, "batch pos"]:
    """The position of every column: 0 at a row's first real token, on from there; -1 at padding.

    Edits and `generate` count so. `capture` returns columns as they stand; this numbers them.

    Example:
      >>> positions(jnp.array([[False, False, True, True], [True, True, True, False]])).tolist()
      [[-1, -1, 0, 1], [0, 1, 2, -1]]
    """
    mask = jnp.asarray(mask, bool)
    columns = jnp.arange(mask.shape[1], dtype=jnp.int32)
    return jnp.where(mask, columns[None] - first_real(mask)[:, None], -1)


def first_real(mask: Bool[Array, "batch n"]) -> Int[Array, "batch"]:
    """The column of each row's first real token; 0 without one."""
    return jnp.argmax(mask, axis=1).astype(jnp.int32)


def behind_last(mask: Bool[Array, "batch n"]) -> Int[Array, "batch"]:
    """One behind the last real token of each row; 0 without one."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32), 0), axis=1)


def columns(mask: Bool[Array, "batch n"] | None, n: int, before: Any = None) -> Columns:
    """Of the next n tokens.

    Args:
      before: the cache or state, `announced` these tokens; None: there is none.
    """
    if before is None:
        if mask is None:
            return EVEN
        first = first_real(mask)
        span = Span(-first, behind_last(mask) - first, mask.shape[1])
        return Columns(span, span)
    first = before.first
    end = before.at + (n if mask is None else behind_last(mask)) - first
    return Columns(Span(before.at - first, end), Span(-first, end))
