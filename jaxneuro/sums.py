# SPDX-License-Identifier: Apache-2.0
"""Sums on the device that stay exact however many terms they have: counters past 2^31, float32 in pairs."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_BITS = 30  # low + one batch stays below 2^31 as long as a batch adds less than 2^30

type Pair = tuple[Array, Array]
"""(value, what rounding lost): float32 each, together about 48 bits."""


class Tally(NamedTuple):
    """A count split in two int32 arrays: high * 2^30 + low."""

    low: Int[Array, "..."]
    high: Int[Array, "..."]


def tally(shape: tuple[int, ...] = ()) -> Tally:
    """Counters at zero."""
    return Tally(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32))


def tally_add(t: Tally, counts: Int[Array, "..."]) -> Tally:
    """Add int32 counts, each below 2^30. Exact up to 2^61."""
    s = t.low + counts
    return Tally(s & jnp.int32(2**_BITS - 1), t.high + (s >> _BITS))


def tally_total(t: Tally) -> np.ndarray:
    """The counts as int64, on the host."""
    return (np.asarray(t.high, np.int64) << _BITS) + np.asarray(t.low, np.int64)


def tally_float(t: Tally) -> Float[Array, "..."]:
    """The counts as float32, on the device: rounded beyond 2^24, good enough as the weight of an average."""
    return t.low.astype(jnp.float32) + t.high.astype(jnp.float32) * jnp.float32(2**_BITS)


def pair(shape: tuple[int, ...] = ()) -> Pair:
    """A sum at zero."""
    return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)


def pair_add(sums: Pair, x: Float[Array, "..."]) -> Pair:
    """sums + x, with the rounding error of the sum kept in the second half.

    Source: TwoSum, Knuth, TAOCP 4.2.2.
    Example:
      >>> sums = pair_add(pair_add((jnp.float32(1), jnp.float32(0)), jnp.float32(1e-9)), jnp.float32(-1))
      >>> f"{pair_total(sums):.1e}"  # 0 in plain float32
      '1.0e-09'
    """
    high, low = sums
    total = high + x
    shifted = total - high
    low = low + ((high - (total - shifted)) + (x - shifted))
    whole = total + low
    return whole, low - (whole - total)


def pair_total(sums: Pair) -> np.ndarray:
    """The sums as float64, on the host."""
    return np.asarray(sums[0], np.float64) + np.asarray(sums[1], np.float64)
