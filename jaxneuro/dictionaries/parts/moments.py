# SPDX-License-Identifier: Apache-2.0
"""Mean and scatter matrix of a stream, or the scatter seen through a test matrix."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import device_get, lax
from jaxtyping import Array, Bool, Float

from ...sums import Pair, Tally, pair, pair_add, pair_total, tally, tally_add, tally_float, tally_total

_EXACT = lax.Precision.HIGHEST


class Scatter(NamedTuple):
    """What was gathered so far, with its rounding errors."""

    rows: Tally
    mean: Pair
    """[d]"""
    scatter: Pair
    """[d, w]: S Omega with S = sum_n (x_n - mean)(x_n - mean)^T; S itself without a test matrix."""
    total: Pair
    """tr S."""
    omega: Float[Array, "d w"] | None
    """The test matrix."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was gathered, float64 on the host."""

    count: int
    mean: np.ndarray
    covariance: np.ndarray
    """S / count, [d, d]; or S Omega / count."""
    variance: float
    """tr S / count."""


def nothing_yet(d: int, omega: Float[Array, "d w"] | None = None) -> Scatter:
    """The state before the first row: 8 d w bytes."""
    width = d if omega is None else omega.shape[1]
    return Scatter(tally(), pair((d,)), pair((d, width)), pair(), omega)


def with_rows(s: Scatter, x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Scatter:
    """The state after the valid rows of x (float32, zeros where not valid).

        delta = mean_b - mean;  N = n + n_b;  mean += delta n_b / N;  S += S_b + delta delta^T n n_b / N

    Source: Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115.
    """
    n = jnp.sum(valid, dtype=jnp.int32)
    n_b = jnp.maximum(n, 1).astype(jnp.float32)
    mean_b = lax.optimization_barrier(jnp.sum(x, 0) / n_b)  # one rounding of it, wherever it is used
    centred = jnp.where(valid[:, None], x - mean_b[None], jnp.float32(0))
    rest = jnp.sum(centred, 0)  # zero but for the rounding of mean_b
    before, rows = tally_float(s.rows), tally_add(s.rows, n)
    share = jnp.where(n > 0, n_b / jnp.maximum(tally_float(rows), 1), 0)
    start = before == 0
    mean = jnp.where(start, mean_b, s.mean[0]), jnp.where(start, rest / n_b, s.mean[1])
    delta = jnp.where(start, 0, (mean_b - mean[0]) + (rest / n_b - mean[1]))
    between = before * share
    scatter = jnp.matmul(centred.T, _seen(centred, s.omega), precision=_EXACT)
    scatter += between * jnp.outer(delta, _seen(delta, s.omega)) - jnp.outer(rest, _seen(rest, s.omega)) / n_b
    total = jnp.sum(jnp.square(centred)) - jnp.sum(jnp.square(rest)) / n_b + between * jnp.sum(jnp.square(delta))
    sums = pair_add(mean, delta * share), pair_add(s.scatter, scatter), pair_add(s.total, total)
    return Scatter(rows, *sums, s.omega)


def summary(s: Scatter) -> Summary:
    """Divided by the number of rows, in float64. With no row all are zero."""
    s = device_get(s)
    count = int(tally_total(s.rows))
    mean, scatter, total = (pair_total(sums) for sums in (s.mean, s.scatter, s.total))
    return Summary(count, mean, scatter / max(count, 1), float(total) / max(count, 1))


def row_count(s: Scatter) -> Float[Array, ""]:
    """Rows so far, at least 1, to divide by."""
    return jnp.maximum(tally_float(s.rows), 1)


def _seen(x: Array, omega: Array | None) -> Array:
    return x if omega is None else jnp.matmul(x, omega, precision=_EXACT)
