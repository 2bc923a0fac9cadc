# SPDX-License-Identifier: Apache-2.0
"""Tokens that are left out of a stream by id or position, such as sinks: real for the model, counted nowhere."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ..errors import UserError
from ..protocols import Method


def leaving_out(ids: Sequence[int], positions: Sequence[int], d_vocab: int) -> Callable[[Mapping[str, Any]], dict]:
    """`without_tokens` of these ids and positions, after their check.

    Raises:
      UserError: an id outside the vocabulary; a position before a window's first token.
    """
    if bad := [i for i in ids if not 0 <= i < d_vocab]:
        raise UserError(f"without_ids = {bad[0]} is not in the vocabulary of {d_vocab}.")
    if bad := [i for i in positions if i < 0]:
        raise UserError(f"without_positions = {bad[0]}: positions count from 0, each window's first real token.")
    return functools.partial(without_tokens, ids, positions)


def without_tokens(ids: Sequence[int], positions: Sequence[int], batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with these tokens not counted; positions are counted from each window's first real token.

    Example:
      >>> batch = {"tokens": jnp.array([[7, 8, 9]]), "mask": jnp.array([[False, True, True]])}
      >>> without_tokens([9], [], batch | {"counted": batch["mask"]})["counted"].tolist()
      [[False, True, False]]
      >>> without_tokens([], [0], batch | {"counted": batch["mask"]})["counted"].tolist()
      [[False, False, True]]
    """
    counted = jnp.asarray(batch["counted"])
    if ids:
        counted &= ~jnp.isin(batch["tokens"], jnp.asarray(ids, jnp.int32))
    if positions:
        at = jnp.cumsum(jnp.asarray(batch["mask"]), axis=1, dtype=jnp.int32) - 1
        counted &= ~jnp.isin(at, jnp.asarray(positions, jnp.int32))
    return {**batch, "counted": counted}


def told(change: Callable[[Mapping[str, Any]], dict[str, Any]], method: Method) -> Method:
    """The method over changed batches."""
    return Method(
        init=lambda key, batch: method.init(key, change(batch)),
        step=lambda state, batch: method.step(state, change(batch)),
        finish=method.finish,
    )
