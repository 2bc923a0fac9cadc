# SPDX-License-Identifier: Apache-2.0
"""Mean and scatter matrix of a stream, or the scatter seen through a test matrix."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import device_get, lax
from jaxtyping import Array, Bool, Float, Int

_LOW = 30
"""Bits of the lower counter; two int32 count to 2^61."""
_EXACT = lax.Precision.HIGHEST


class Scatter(NamedTuple):
    """Sums as pairs (value, what rounding lost): float32 each, together about 48 bits."""

    rows: tuple[Int[Array, ""], Int[Array, ""]]
    mean: tuple[Float[Array, "d"], Float[Array, "d"]]
    scatter: tuple[Float[Array, "d w"], Float[Array, "d w"]]
    """S Omega with S = sum_n (x_n - mean)(x_n - mean)^T; S itself without a test matrix."""
    total: tuple[Float[Array, ""], Float[Array, ""]]
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

    def pair(*shape: int) -> tuple[Array, Array]:
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)

    return Scatter((jnp.int32(0), jnp.int32(0)), pair(d), pair(d, width), pair(), omega)


def with_rows(s: Scatter, x: Float[Array, "n d"], valid: Bool[Array, "n"]) -> Scatter:
    """The state after the valid rows of x (float32, zeros where not valid).

        delta = mean_b - mean;  N = n + n_b;  mean += delta n_b / N;  S += S_b + delta delta^T n n_b / N

    Source: Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115; TwoSum: Knuth, TAOCP 4.2.2.
    """
    n = jnp.sum(valid, dtype=jnp.int32)
    n_b = jnp.maximum(n, 1).astype(jnp.float32)
    mean_b = lax.optimization_barrier(jnp.sum(x, 0) / n_b)  # one rounding of it, wherever it is used
    centred = jnp.where(valid[:, None], x - mean_b, jnp.float32(0))
    rest = jnp.sum(centred, 0)  # zero but for the rounding of mean_b
    before, count = _float(s.rows), _counted(s.rows, n)
    share = jnp.where(n > 0, n_b / jnp.maximum(_float(count), 1), 0)
    start = before == 0
    mean = jnp.where(start, mean_b, s.mean[0]), jnp.where(start, rest / n_b, s.mean[1])
    delta = jnp.where(start, 0, (mean_b - mean[0]) + (rest / n_b - mean[1]))
    between = before * share
    scatter = jnp.matmul(centred.T, _seen(centred, s.omega), precision=_EXACT)
    scatter += between * jnp.outer(delta, _seen(delta, s.omega)) - jnp.outer(rest, _seen(rest, s.omega)) / n_b
    total = jnp.sum(jnp.square(centred)) - jnp.sum(jnp.square(rest)) / n_b + between * jnp.sum(jnp.square(delta))
    return Scatter(count, _plus(mean, delta * share), _plus(s.scatter, scatter), _plus(s.total, total), s.omega)


def summary(s: Scatter) -> Summary:
    """Divided by the number of rows, in float64. With no row all are zero."""
    s = device_get(s)
    count = (int(s.rows[0]) << _LOW) + int(s.rows[1])
    mean, scatter, total = (np.asarray(a, np.float64) + np.asarray(b, np.float64) for a, b in (s.mean, *s[2:4]))
    return Summary(count, mean, scatter / max(count, 1), float(total) / max(count, 1))


def row_count(s: Scatter) -> Float[Array, ""]:
    """Rows so far, at least 1, to divide by."""
    return jnp.maximum(_float(s.rows), 1)


def _seen(x: Array, omega: Array | None) -> Array:
    return x if omega is None else jnp.matmul(x, omega, precision=_EXACT)


def _counted(rows: tuple[Array, Array], n: Array) -> tuple[Array, Array]:
    low = rows[1] + n
    return rows[0] + (low >> _LOW), low & jnp.int32((1 << _LOW) - 1)


def _float(rows: tuple[Array, Array]) -> Array:
    return rows[0].astype(jnp.float32) * jnp.float32(1 << _LOW) + rows[1].astype(jnp.float32)


def _plus(pair: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    """pair + x, the rounding error of the sum kept in the second half (TwoSum)."""
    high, low = pair
    total = high + x
    shifted = total - high
    low = low + ((high - (total - shifted)) + (x - shifted))
    whole = total + low
    return whole, low - (whole - total)
