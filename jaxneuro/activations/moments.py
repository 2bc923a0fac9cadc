# SPDX-License-Identifier: Apache-2.0
"""Mean, variance and range of a stream, exact to float32 however long it is."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import UserError
from ..protocols import Method
from ..sums import Pair, Tally, pair, pair_add, pair_total, tally, tally_add, tally_float, tally_total


@dataclass(frozen=True)
class Moments:
    """What `moments` returns; float64 arrays of the shape of one row."""

    count: int
    """Rows counted (unmasked)."""
    mean: np.ndarray
    variance: np.ndarray
    """Population variance: the sum of squared deviations divided by `count`."""
    min: np.ndarray
    max: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """Square root of the variance."""
        return np.sqrt(self.variance)

    @property
    def mean_squared_norm(self) -> float:
        """Mean over rows of |x|^2, the scale that input normalisations divide by."""
        return float(np.sum(self.variance + self.mean**2))


class MomentsState(NamedTuple):
    """What was gathered so far; mean and m2 with their rounding errors."""

    rows: Tally
    mean: Pair
    m2: Pair
    min: Float[Array, "*row"]
    max: Float[Array, "*row"]


def moments() -> Method:
    """Streaming mean, population variance, minimum and maximum of {"x": [n, *row], "mask": bool [n], optional}.

        delta = mean_b - mean;  N = n + n_b;  mean += delta n_b / N;  M2 += M2_b + delta^2 n n_b / N

    Batches are merged by Chan's formula; a batch's own mean and M2 take two passes over it, the second correcting the
    first. Running values carry their rounding error along (TwoSum), so neither a mean far from zero nor many batches
    cost digits: variances agree with a float64 computation to about 1e-6, means to 1e-6 standard deviations. Rows
    whose mask is False count nowhere, whatever they hold (NaN too); an unmasked NaN gives NaN. A mask of more axes,
    [batch, pos], goes with x [batch, pos, *row].

    Returns:
      Method with finish -> Moments; info: tokens (rows counted so far) and std (root of the mean variance).
    Raises:
      UserError: from finish, if no row was counted.
    Source: Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115; TwoSum: Knuth, TAOCP 4.2.2.
    Example:
      >>> from jaxneuro.activations import run
      >>> m = run(moments(), [{"x": np.array([[1.0], [3.0]], np.float32)}], key=jax.random.key(0))
      >>> m.count, m.mean.tolist(), m.variance.tolist()
      (2, [2.0], [1.0])
    """
    return Method(_init, _step, _finish)


def _init(key: Any, batch: Any) -> MomentsState:
    row = batch["x"].shape[_mask(batch).ndim :]

    def of(value: float) -> Array:
        return jnp.full(row, value, jnp.float32)

    return MomentsState(tally(), pair(row), pair(row), of(jnp.inf), of(-jnp.inf))


def _mask(batch: Any) -> Array:
    mask = batch.get("mask")
    return jnp.ones(batch["x"].shape[:1], bool) if mask is None else jnp.asarray(mask)


def _step(s: MomentsState, batch: Any) -> tuple[MomentsState, dict[str, Array]]:
    mask = _mask(batch)
    rows = tuple(range(mask.ndim))
    keep = mask.reshape(mask.shape + (1,) * (batch["x"].ndim - mask.ndim))
    x = jnp.asarray(batch["x"]).astype(jnp.float32)
    n = jnp.sum(mask, dtype=jnp.int32)
    n_b = jnp.maximum(n, 1).astype(jnp.float32)
    # The barrier makes every use below the same float32 number: fused loops recompute a mean, each with other rounding
    # (on the CPU the error was 0.2 standard deviations for data 10^7 deviations away from zero).
    mean_b = jax.lax.optimization_barrier(jnp.sum(jnp.where(keep, x, 0), rows) / n_b)
    centred = jnp.where(keep, x - jnp.expand_dims(mean_b, rows), 0)
    rest = jnp.sum(centred, rows)  # zero but for the rounding of mean_b
    m2_b = jnp.sum(jnp.square(centred), rows) - jnp.square(rest) / n_b
    before, rows_now = tally_float(s.rows), tally_add(s.rows, n)
    total = tally_float(rows_now)
    share = jnp.where(n > 0, n_b / jnp.maximum(total, 1), 0)
    start = before == 0  # the first mean is taken over whole: as an increment it would be rounded
    mean = jnp.where(start, mean_b, s.mean[0]), jnp.where(start, rest / n_b, s.mean[1])
    delta = jnp.where(start, 0, (mean_b - mean[0]) + (rest / n_b - mean[1]))
    new = MomentsState(
        rows_now,
        pair_add(mean, jnp.where(n > 0, delta * share, 0)),
        pair_add(s.m2, jnp.where(n > 0, m2_b + jnp.square(delta) * before * share, 0)),
        jnp.minimum(s.min, jnp.min(jnp.where(keep, x, jnp.inf), rows)),
        jnp.maximum(s.max, jnp.max(jnp.where(keep, x, -jnp.inf), rows)),
    )
    return new, {"tokens": total, "std": jnp.sqrt(jnp.mean(new.m2[0]) / jnp.maximum(total, 1))}


def _finish(s: MomentsState) -> Moments:
    s = jax.device_get(s)
    count = int(tally_total(s.rows))
    if not count:
        raise UserError("no row was counted: every mask in the stream is False.")
    mean, m2 = pair_total(s.mean), pair_total(s.m2)
    low, high = np.asarray(s.min, np.float64), np.asarray(s.max, np.float64)
    return Moments(count, np.asarray(mean), np.maximum(m2, 0) / count, low, high)
