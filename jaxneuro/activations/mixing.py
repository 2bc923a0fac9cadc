# SPDX-License-Identifier: Apache-2.0
"""How well the rows of a stream are mixed, measured as they pass."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..errors import UserError, unknown
from ..protocols import Batch, Method


class MixingState(NamedTuple):
    """The running mean and over how many batches."""

    mean: Float[Array, ""]
    batches: Int[Array, ""]


def mixing(capacity: int, length: float, *, by: str = "window") -> Method:
    """Pairs of rows of one batch that come from one sequence, against a uniform sample of a buffer.

        share_b = pairs of batch b's rows with equal "window" / all pairs of its rows
        mixing  = mean_b share_b / ((length - 1) / (capacity - 1))

    1: as a uniform sample of `capacity` rows that are made of whole sequences. `shuffled` has about 1/2 in the long run
    and 1 just after filling; batches of whole sequences have capacity / n. It costs a sort of n numbers, and can be
    measured beside a method as it trains: `shuffled(together({"sae": method, "mixing": mixing(...)}), capacity)`.

    Args:
      capacity: rows of the ideal buffer.
      length: unmasked rows per sequence; if they differ, the mean over rows of their own sequence's.
      by: the array of the batch (int [n]) that says from which sequence a row is.
    Returns:
      A Method; info: mixing, of the batch (0 without a pair); `finish` returns the mean over batches with a pair.
    Raises:
      UserError: capacity or length below 2; batches without that array; from finish, if there was no pair.
    Source: ours; a uniform sample has, on average, the share of pairs of what it is drawn from.
    Example:
      >>> import jax
      >>> from jaxneuro.activations import run
      >>> four = {"window": jnp.array([7, 7, 8, 9])}  # one pair of six is from one window
      >>> run(mixing(capacity=13, length=3), [four], key=jax.random.key(0))
      1.0
    """
    if min(capacity, length) < 2:
        raise UserError(f"mixing: capacity = {capacity} and length = {length} are numbers of rows, 2 or more.")
    ideal = jnp.float32((length - 1) / (capacity - 1))

    def step(state: MixingState, batch: Batch) -> tuple[MixingState, dict[str, Array]]:
        if by not in batch:
            raise unknown("array", by, batch, where="mixing", hint="It says from which sequence each row is.")
        mask = batch.get("mask")
        share, some = _equal_pairs(batch[by], jnp.ones(batch[by].shape, bool) if mask is None else mask)
        batches = state.batches + some.astype(jnp.int32)
        weight = some.astype(jnp.float32) / jnp.maximum(batches, 1).astype(jnp.float32)
        return MixingState(state.mean + (share / ideal - state.mean) * weight, batches), {"mixing": share / ideal}

    def finish(state: MixingState) -> float:
        if not int(state.batches):
            raise UserError("mixing: no batch had two rows.")
        return float(state.mean)

    return Method(lambda key, batch: MixingState(jnp.float32(0), jnp.int32(0)), step, finish)


def _equal_pairs(names: Int[Array, "n"], mask: Bool[Array, "n"]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """(share of pairs of unmasked rows that have one name, whether there is any pair)."""
    order = jnp.lexsort((names, ~mask))  # unmasked rows first, name by name
    names, places = names[order], jnp.arange(len(mask), dtype=jnp.int32)
    starts = jnp.concatenate([jnp.ones(1, bool), names[1:] != names[:-1]])
    before = places - lax.cummax(jnp.where(starts, places, 0))  # rows of the same name in front of each
    count = jnp.sum(mask, dtype=jnp.int32)
    equal = jnp.sum(jnp.where(places < count, before, 0).astype(jnp.float32))
    n = count.astype(jnp.float32)
    return equal / jnp.maximum(n * (n - 1) / 2, 1), count > 1
