# SPDX-License-Identifier: Apache-2.0
"""What one layer's activations are reduced to where they live: a few numbers per row (window) and neuron.

Everything downstream (groups, shuffled groups, top examples, pooled responses) is made from rows, so the tokens of a
window are read once and `[layers, batch, pos, neurons]` never exists.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..axes import by_position


class Rows(NamedTuple):
    """Statistics over the counted tokens of each row; a row without any has count 0, mean 0, high -inf, low +inf."""

    fired: Int[Array, "*layer batch neuron"]
    """Number of counted tokens above the threshold."""
    mean: Float[Array, "*layer batch neuron"]
    m2: Float[Array, "*layer batch neuron"]
    """Sum of squared deviations from the row's mean."""
    high: Float[Array, "*layer batch neuron"]
    low: Float[Array, "*layer batch neuron"]
    peak: Int[Array, "*layer batch neuron"]
    """First position at which `high` is reached."""


def row_statistics(counted: Bool[Array, "batch pos"], threshold: Array, x: Array) -> Rows:
    """Reduce one layer's values [batch, pos, ...] over the counted positions of every row, in float32 (`by_position`).

    The mean first, then the deviations from it: a sum of squares minus a squared sum would lose small variances.
    """
    # XLA may compute x once for `high` and once more for `peak`, and round it otherwise: then `high` is nowhere
    x = jax.lax.optimization_barrier(by_position(x, counted.shape).astype(jnp.float32))
    on, n = counted[..., None], jnp.sum(counted, 1, dtype=jnp.int32)
    zero, inf = jnp.float32(0), jnp.float32(jnp.inf)
    mean = jnp.sum(jnp.where(on, x, zero), 1) / jnp.maximum(n, 1).astype(jnp.float32)[:, None]
    high = jnp.max(jnp.where(on, x, -inf), 1)
    position = jnp.arange(x.shape[1], dtype=jnp.int32)[:, None]
    at_peak = on & (x == high[:, None])
    return Rows(
        fired=jnp.sum(on & (x > threshold), 1, dtype=jnp.int32),
        mean=mean,
        m2=jnp.sum(jnp.where(on, jnp.square(x - mean[:, None]), zero), 1),
        high=high,
        low=jnp.min(jnp.where(on, x, inf), 1),
        peak=jnp.min(jnp.where(at_peak, position, jnp.int32(x.shape[1])), 1),
    )


class Scale(NamedTuple):
    """Bins equally wide in asinh(x / unit) between -reach and +reach: linear near zero, logarithmic in the tails."""

    unit: Float[Array, ""]
    reach: Float[Array, ""]


def scale_of(rms: Array, high: Array) -> Scale:
    """A scale for values with these root mean squares and largest magnitudes (one each per layer).

    unit: a tenth of the smallest positive root mean square; the range ends at twice the largest magnitude.
    """
    rms = jnp.where(rms > 0, rms, jnp.float32(jnp.inf))
    unit = jnp.clip(jnp.min(rms) * jnp.float32(0.1), 1e-12, 1e12)  # finite even if every value is 0 or broken
    top = jnp.nan_to_num(2 * jnp.max(high), nan=0.0, posinf=3e38)
    return Scale(unit, jnp.arcsinh(jnp.maximum(top / unit, jnp.float32(1))))


def bin_edges(scale: Scale, bins: int) -> np.ndarray:
    """float32 [bins + 1]; the first and last bin are open: they also hold what lies beyond."""
    t = np.linspace(-1.0, 1.0, bins + 1) * float(scale.reach)
    return (np.sinh(t) * float(scale.unit)).astype(np.float32)


def bin_of(scale: Scale, bins: int, x: Array) -> Int[Array, "..."]:
    """Number of each value's bin, 0 .. bins - 1. With an even number of bins, bins // 2 is the first for x >= 0."""
    t = jnp.arcsinh(x.astype(jnp.float32) / scale.unit) / scale.reach
    return jnp.clip(jnp.floor((t + 1) * jnp.float32(bins / 2)), 0, bins - 1).astype(jnp.int32)


def group_histogram(
    counted: Bool[Array, "batch pos"],
    label: Int[Array, " batch"],
    scale: Scale,
    x: Array,
    *,
    n_groups: int,
    bins: int,
    every: int,
) -> Int[Array, "group neuron bin"]:
    """Histogram of one layer's values per group and neuron, over every `every`-th position that is counted."""
    x = by_position(x, counted.shape)[:, ::every]
    n_neurons = x.shape[-1]
    neuron = jnp.arange(n_neurons, dtype=jnp.int32)
    on = counted[:, ::every] & ((label >= 0) & (label < n_groups))[:, None]
    # one flat index per value: a scatter with three would hold three more arrays of the size of x
    place = (label[:, None, None] * n_neurons + neuron[None, None]) * bins + bin_of(scale, bins, x)
    size = n_groups * n_neurons * bins
    flat = jnp.zeros(size, jnp.int32).at[jnp.where(on[..., None], place, size)].add(jnp.int32(1), mode="drop")
    return flat.reshape(n_groups, n_neurons, bins)


def magnitude(counted: Bool[Array, "batch pos"], x: Array) -> tuple[Array, Array]:
    """Root mean square and largest magnitude of one layer's values: what `scale_of` needs."""
    x = jnp.where(counted[..., None], by_position(x, counted.shape).astype(jnp.float32), jnp.float32(0))
    n = jnp.maximum(jnp.sum(counted), 1).astype(jnp.float32) * x.shape[-1]
    return jnp.sqrt(jnp.sum(jnp.square(x)) / n), jnp.max(jnp.abs(x))


def in_group(label: Int[Array, "batch s"], n_groups: int) -> Float[Array, "batch s group"]:
    """One-hot labels in float32; a label outside 0 .. n_groups - 1 is in no group."""
    return jax.nn.one_hot(label, n_groups, dtype=jnp.float32)
