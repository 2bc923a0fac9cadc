# SPDX-License-Identifier: Apache-2.0
"""Tokens that are left out of a stream by id or position, such as sinks: real for the model, counted nowhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ..protocols import Method


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
