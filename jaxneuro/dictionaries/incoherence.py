# SPDX-License-Identifier: Apache-2.0
"""Are these directions a faithful and stable set of units? Coherence in the whitened inner product and what follows.

The criteria of "Atoms" (atomic inner product, restricted isometry, uniqueness, q*), as pure functions. Faithfulness,
R^2 = 1 - sum |x - x_hat|^2 / sum |x - mean|^2, is `evaluate.reconstruction(...).explained_variance`.

Read with care: whitening drives off-diagonal products towards 0 by construction, with n > d directions the coherence
cannot be below the Welch bound, and q* uses quantiles, so that it implies no theorem's guarantee.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ..errors import UserError
from ..protocols import Method
from ..taps.compiled import compiled
from .parts.decoder import unit_rows
from .parts.moments import Scatter, nothing_yet, summary, with_rows
from .parts.untargeted import read_x

_EXACT = lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class SecondMoment:
    """What `second_moment` returns, float64."""

    count: int
    mean: np.ndarray
    matrix: np.ndarray
    """E[x x^T], [d, d]: not centred."""


def second_moment() -> Method:
    """E[x x^T] of batches {"x": [n, d], "mask": bool [n], optional}; needs more than d tokens to be inverted.

    Returns:
      A Method; info: tokens, nonfinite_tokens. `finish` gives a `SecondMoment`.
    Example:
      >>> batch = {"x": jnp.array([[2.0, 0.0], [0.0, 4.0]])}
      >>> method = second_moment()
      >>> state, _ = method.step(method.init(jax.random.key(0), batch), batch)
      >>> method.finish(state).matrix.tolist()
      [[2.0, 0.0], [0.0, 8.0]]
    """

    def init(key: Key[Array, ""], batch: Any) -> Scatter:
        return nothing_yet(read_x(batch, "second_moment").x.shape[1])

    def step(state: Scatter, batch: Any) -> tuple[Scatter, dict[str, Array]]:
        inputs = read_x(batch, "second_moment")
        info = {"tokens": inputs.tokens, "nonfinite_tokens": inputs.broken}
        return with_rows(state, inputs.x, inputs.valid), info

    def finish(state: Scatter) -> SecondMoment:
        found = summary(state)
        if not found.count:
            raise UserError("second_moment: the stream holds no valid token.")
        return SecondMoment(found.count, found.mean, found.covariance + np.outer(found.mean, found.mean))

    return Method(init, step, finish)


def atomic_rows(
    W_dec: Float[Array, "n_latents d"], second_moment: Float[Array, "d d"], *, shrinkage: float = 1e-4
) -> Float[Array, "n_latents d"]:
    """Directions where the atomic inner product is the ordinary one: rows of length 1 whose products are

        <u, v> = u^T S v / (|u|_S |v|_S),   S = (E[x x^T] + shrinkage tr(E[x x^T]) / d I)^-1 = (L L^T)^-1,   u -> L^-1 u

    Args:
      W_dec: directions in activation space.
      second_moment: of the activations; `second_moment().finish(...).matrix`.
      shrinkage: towards the identity. A few massive dimensions dominate the trace: look at them first.
    Raises:
      UserError: shapes that do not fit, or a negative shrinkage.
    Source: "Atoms" (definitions from its abstract; its code is not public); whitened cosine.
    Example:
      >>> rows = atomic_rows(jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.diag(jnp.array([1.0, 4.0])), shrinkage=0.0)
      >>> float(rows[0] @ rows[1]).__round__(3)
      0.894
    """
    d = W_dec.shape[1]
    if second_moment.shape != (d, d):
        raise UserError(f"atomic_rows: directions of {d} dimensions, second moment {list(second_moment.shape)}.")
    if shrinkage < 0:
        raise UserError(f"atomic_rows: shrinkage = {shrinkage} is below 0.")
    matrix = jnp.asarray(second_moment, jnp.float32)
    root = jnp.linalg.cholesky(matrix + jnp.float32(shrinkage) * jnp.trace(matrix) / d * jnp.eye(d, dtype=jnp.float32))
    return unit_rows(jsl.solve_triangular(root, W_dec.astype(jnp.float32).T, lower=True).T)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coherence:
    """|<d_i, d_j>| over all pairs i < j."""

    mu: float
    """Largest."""
    rms: float
    counts: np.ndarray
    """int64 [bins]: pairs by size, in equal bins on [0, 1]."""

    def quantile(self, q: float | np.ndarray) -> np.ndarray:
        """Size that a share q of the pairs does not exceed: upper edge of its bin (at most 1 / bins too large)."""
        share = np.cumsum(self.counts) / self.counts.sum()
        at = np.searchsorted(share, np.asarray(q) - 1e-12)  # a share is a sum of counts: equal up to rounding
        return np.minimum((at + 1) / len(self.counts), self.mu)


def coherence(rows: Float[Array, "n_latents d"], *, bins: int = 4096, block: int = 1024) -> Coherence:
    """How alike directions are: maximum, root mean square and histogram of |cosine| over pairs.

    Blocks of rows are compared with all: memory is block x n_latents.

    Args:
      rows: directions: `atomic_rows` for the atomic inner product, W_dec for the ordinary one; normalised here.
      bins: of the histogram.
      block: rows at a time.
    Raises:
      UserError: fewer than two directions; a direction that is zero or not finite.
    Example:
      >>> found = coherence(jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]))
      >>> round(found.mu, 3), int(found.counts.sum()), round(float(found.quantile(0.5)), 2)
      (0.8, 3, 0.6)
    """
    n = rows.shape[0]
    if n < 2:
        raise UserError(f"coherence: {n} directions make no pair.")
    norm = np.asarray(jnp.linalg.norm(rows.astype(jnp.float32), axis=1))
    if not (np.isfinite(norm).all() and norm.all()):
        bad = np.flatnonzero(~(np.isfinite(norm) & (norm > 0)))
        raise UserError(
            f"coherence: {len(bad)} of {n} directions are zero or not finite, e.g. row {bad[0]}. Drop them."
        )
    largest, squares, counts = jax.device_get(_pairs(rows, bins, min(block, n)))
    pairs = n * (n - 1) // 2
    return Coherence(
        mu=float(largest.max()),
        rms=float(np.sqrt(squares.sum(dtype=np.float64) / pairs)),
        counts=counts.sum(0, dtype=np.int64),
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _pairs(rows: Array, bins: int, block: int) -> tuple[Array, Array, Array]:
    """(max, sum of squares, histogram) of each block of rows with the later rows."""
    unit = unit_rows(rows.astype(jnp.float32))
    n = unit.shape[0]
    every = jnp.arange(n, dtype=jnp.int32)

    def one(first: Array) -> tuple[Array, Array, Array]:
        at = first + jnp.arange(block, dtype=jnp.int32)
        size = jnp.abs(jnp.matmul(unit[jnp.minimum(at, n - 1)], unit.T, precision=_EXACT))
        pair = (every[None] > at[:, None]) & (at < n)[:, None]
        size = jnp.where(pair, jnp.minimum(size, 1), 0)
        slot = jnp.minimum((size * bins).astype(jnp.int32), bins - 1)
        counts = jnp.zeros(bins, jnp.int32).at[slot].add(pair.astype(jnp.int32))
        return jnp.max(size), jnp.sum(jnp.square(size)), counts

    return lax.map(one, jnp.arange(0, n, block, dtype=jnp.int32))


def welch_bound(n_latents: int, d: int) -> float:
    """sqrt((n - d) / (d (n - 1))): n directions in d dimensions cannot all be less coherent. 0 for n <= d.

    Source: Welch 1974, doi:10.1109/TIT.1974.1055219.
    Example:
      >>> round(welch_bound(4 * 2304, 2304), 3)
      0.018
    """
    return max(0.0, (n_latents - d) / (d * (n_latents - 1))) ** 0.5 if n_latents > 1 else 0.0


def restricted_isometry(mu: float, k: int) -> bool:
    """(k - 1) mu < 1: any k of the directions are independent and nearly keep lengths (Gershgorin: delta_k is below).

    Example:
      >>> restricted_isometry(0.2, 5), restricted_isometry(0.2, 6)
      (True, False)
    """
    return (k - 1) * mu < 1


def unique_support(mu: float, k: int) -> bool:
    """mu < 1 / (2k - 1): a representation by k directions is the only one by so few, and greedy methods find it.

    Source: Donoho and Elad 2003, doi:10.1073/pnas.0437847100; Tropp 2004, doi:10.1109/TIT.2004.834793.
    Example:
      >>> unique_support(0.1, 5), unique_support(0.1, 6)
      (True, False)
    """
    return (2 * k - 1) * mu < 1


def largest_unique_support(mu: float, n_latents: int) -> int:
    """The largest k, at most n_latents, with `unique_support(mu, k)`.

    Example:
      >>> largest_unique_support(welch_bound(4 * 2304, 2304), 4 * 2304)  # the best that 9,216 directions can do
      28
    """
    if not unique_support(mu, 1):
        return 0
    near = n_latents if mu <= 0 else min(n_latents - 1, int((1 / mu + 1) / 2))  # up to rounding
    return max(k for k in range(near - 1, near + 2) if k <= n_latents and unique_support(mu, k))


def stability(found: Coherence, supports: Int[np.ndarray, "tokens"]) -> float:
    """q* = sup {q : mu_q < 1 / (2 K_q - 1)}, quantiles of pairwise coherence and of support size.

    1: uniqueness holds for the worst pair and the largest support. Not a guarantee below that: mu_q ignores the worst
    pairs. mu_q is read off the histogram, so q* errs by at most one bin, downwards.

    Args:
      found: `coherence` of `atomic_rows`.
      supports: active latents of each token.
    Raises:
      UserError: no token.
    Source: "Atoms" (definition from its abstract; how it computes K_q could not be verified).
    Example:
      >>> apart = Coherence(mu=0.1, rms=0.1, counts=np.array([0, 10, 0, 0, 0, 0, 0, 0, 0, 0]))
      >>> stability(apart, np.array([1, 2, 3, 50]))
      0.75
    """
    supports = np.sort(np.asarray(supports).ravel())
    if not supports.size:
        raise UserError("stability: no token to take the support of.")
    pairs, tokens = np.cumsum(found.counts) / found.counts.sum(), np.arange(1, supports.size + 1) / supports.size
    q = np.unique(np.concatenate([pairs[found.counts > 0], tokens]))  # both quantiles are constant in between
    k_q = supports[np.searchsorted(tokens, q - 1e-12)]
    holds = (2 * k_q - 1) * found.quantile(q) < 1
    return float(q[: holds.argmin() if not holds.all() else q.size].max(initial=0))


@compiled
def babel(W_dec: Float[Array, "n_latents d"], r: int, *, block: int = 1024) -> Float[Array, "r"]:
    """mu_1(s) = max_{|S| = s} max_{j not in S} sum_{i in S} |<d_i, d_j>| for s = 1 ... r: cumulative coherence.

    mu_1(1) is the coherence; mu_1(s) <= s mu. Rows are normalised here; `block` rows are compared at a time.

    Raises:
      UserError: r not between 1 and n_latents - 1.
    Source: Tropp 2004, doi:10.1109/TIT.2004.834793.
    Example:
      >>> np.asarray(babel(jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]), 2)).round(3)
      array([0.8, 1.4], dtype=float32)
    """
    n = W_dec.shape[0]
    if not 1 <= r < n:
        raise UserError(f"babel: r = {r} of {n} directions: between 1 and {n - 1}.")
    unit = unit_rows(W_dec.astype(jnp.float32))
    every = jnp.arange(n, dtype=jnp.int32)

    def sums(j: Array) -> Array:
        size = jnp.where(every == j, -jnp.inf, jnp.abs(jnp.matmul(unit, unit[j], precision=_EXACT)))
        return jnp.cumsum(lax.top_k(size, r)[0])

    return jnp.max(lax.map(sums, every, batch_size=block), 0)
