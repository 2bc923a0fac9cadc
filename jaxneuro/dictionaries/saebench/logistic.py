# SPDX-License-Identifier: Apache-2.0
"""Logistic regression in one compiled program: Newton's method for few inputs, proximal gradients for sparse ones."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

STEPS = 50
"""Newton steps at most; a dozen are usual."""
SHORTER = 0.5 ** np.arange(8, dtype=np.float32)
"""Parts of a Newton step that are tried; the best is taken."""
SPARSE_STEPS = 1000
"""Accelerated proximal steps."""


class Probe(NamedTuple):
    """A linear classifier, or several with a leading axis: yes where x . w + b > 0."""

    w: Float[Array, "*classes d"]
    b: Float[Array, "*classes"]

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n *classes"]:
        """Logits."""
        return jnp.matmul(x, self.w.T, precision="highest") + (self.b if self.b.ndim == 0 else self.b[None])


def _loss(x: Array, sign: Array, weight: Array) -> Array:
    return jnp.sum(weight * jax.nn.softplus(-sign * x))


@jax.jit
def logistic(
    x: Float[Array, "n d"], y: Bool[Array, " n"], weight: Float[Array, " n"], l2: Float[Array, ""] | float = 1.0
) -> Probe:
    """Minimise

        sum_i weight_i log(1 + exp(-s_i (x_i . w + b))) + l2 / 2 |w|^2,   s = 1 for yes, -1 for no

    which is scikit-learn's objective with C = 1 / l2. Newton steps, scaled to unit curvature and shortened where the
    loss would rise, until none improves it.

    Source: iteratively reweighted least squares; arXiv:2503.09532 uses scikit-learn with C = 1.
    Example:
      >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([False, False, True, True])
      >>> probe = logistic(x, y, jnp.ones(4))
      >>> (probe(x) > 0).tolist(), round(float(probe.w[0]), 3)
      ([False, False, True, True], 1.007)
    """
    x = jnp.concatenate([x.astype(jnp.float32), jnp.ones((x.shape[0], 1), jnp.float32)], axis=1)
    sign = jnp.where(y, jnp.float32(1), jnp.float32(-1))
    ridge = jnp.full(x.shape[1], l2, jnp.float32).at[-1].set(0)

    def objective(w: Array) -> Array:
        return _loss(jnp.matmul(x, w, precision="highest"), sign, weight) + jnp.sum(ridge * jnp.square(w)) / 2

    def newton(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        w, before, _, step = carry
        wrong = jax.nn.sigmoid(-sign * jnp.matmul(x, w, precision="highest"))
        gradient = jnp.matmul(-weight * sign * wrong, x, precision="highest") + ridge * w
        curvature = weight * wrong * (1 - wrong)
        hessian = jnp.matmul(x.T * curvature[None], x, precision="highest") + jnp.diag(ridge)
        unit = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(hessian), jnp.float32(1e-20)))
        scaled = hessian * unit[:, None] * unit[None] + jnp.float32(1e-6) * jnp.eye(w.shape[0], dtype=jnp.float32)
        move = unit * jax.scipy.linalg.solve(scaled, unit * gradient, assume_a="pos")
        tries = w[None] - SHORTER[:, None] * move[None]
        after = jax.vmap(objective)(tries)
        best = jnp.nanargmin(after)
        better = after[best] < before
        return jnp.where(better, tries[best], w), jnp.where(better, after[best], before), better, step + 1

    start = jnp.zeros(x.shape[1], jnp.float32)
    carry = (start, objective(start), jnp.array(True), jnp.int32(0))
    w = jax.lax.while_loop(lambda c: c[2] & (c[3] < STEPS), newton, carry)[0]
    return Probe(w[:-1], w[-1])


@jax.jit
def logistics(
    x: Float[Array, "n d"], y: Bool[Array, "n classes"], weight: Float[Array, "n classes"], l2: float = 1.0
) -> Probe:
    """One `logistic` per class, one after another (each needs d x d numbers)."""
    return jax.lax.map(lambda c: logistic(x, c[0], c[1], l2), (y.T, weight.T))


@partial(jax.jit, static_argnames="sizes")
def nested(
    x: Float[Array, "n k"], y: Bool[Array, " n"], weight: Float[Array, " n"], l2: float = 1.0, *, sizes: tuple[int, ...]
) -> Probe:
    """One `logistic` on the first s columns for each s of `sizes`; weights of other columns are 0. [sizes, k]"""
    used = jnp.arange(x.shape[1], dtype=jnp.int32)[None] < jnp.asarray(sizes, jnp.int32)[:, None]
    return jax.vmap(lambda on: logistic(jnp.where(on, x, 0), y, weight, l2))(used)


@jax.jit
def sparse_logistics(
    x: Float[Array, "n d"], y: Bool[Array, "n classes"], weight: Float[Array, "n classes"], l1: float = 0.01
) -> Probe:
    """Many-input probes with few weights: per class, minimise

        mean_i weight_i log(1 + exp(-s_i (x_i . w + b))) + l1 sum_j |w_j|

    by FISTA in units of each column's root mean square. Columns that are 0 get weight 0.

    Source: Beck and Teboulle 2009, doi:10.1137/080716542; objective as in SAEBench's absorption (there by Adam).
    """
    x = x.astype(jnp.float32)
    n, d = x.shape
    unit = jnp.sqrt(jnp.mean(jnp.square(x), axis=0))
    inverse = jnp.where(unit > 0, 1 / jnp.where(unit > 0, unit, 1), 0)
    x = jnp.concatenate([x * inverse[None], jnp.ones((n, 1), jnp.float32)], axis=1)
    price = jnp.append(l1 * inverse, 0).astype(jnp.float32)[:, None]
    sign = jnp.where(y, jnp.float32(1), jnp.float32(-1))

    def power(_: Array, v: Array) -> Array:
        v = x.T @ (x @ v)
        return v / jnp.linalg.norm(v)

    v = jax.lax.fori_loop(0, 30, power, jnp.ones(d + 1, jnp.float32))
    steepest = (
        1.1 * 0.25 * jnp.max(weight, axis=0, keepdims=True) * jnp.sum(jnp.square(x @ v)) / jnp.sum(jnp.square(v)) / n
    )

    def step(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        w, ahead, t = carry
        wrong = jax.nn.sigmoid(-sign * (x @ ahead))
        moved = ahead + x.T @ (weight * sign * wrong) / n / steepest
        new = jnp.sign(moved) * jax.nn.relu(jnp.abs(moved) - price / steepest)
        t_new = (1 + jnp.sqrt(1 + 4 * jnp.square(t))) / 2
        return new, new + (t - 1) / t_new * (new - w), t_new

    zero = jnp.zeros((d + 1, y.shape[1]), jnp.float32)
    w = jax.lax.fori_loop(0, SPARSE_STEPS, step, (zero, zero, jnp.float32(1)))[0]
    return Probe((w[:-1] * inverse[:, None]).T, w[-1])


def accuracy(
    logits: Float[Array, "n *rest"], y: Bool[Array, "n *rest"], weight: Float[Array, "n *rest"]
) -> Float[Array, "*rest"]:
    """Weighted share of right answers; with balanced weights 0.5 is chance."""
    return jnp.sum(jnp.where((logits > 0) == y, weight, 0), axis=0) / jnp.sum(weight, axis=0)


def f1(logits: Float[Array, "n *rest"], y: Bool[Array, "n *rest"]) -> Float[Array, "*rest"]:
    """2 precision recall / (precision + recall) of yes; 0 where nothing is right."""
    yes = logits > 0
    both, either = (jnp.sum(a, axis=0, dtype=jnp.int32).astype(jnp.float32) for a in (yes & y, yes | y))
    return 2 * both / jnp.maximum(both + either, 1)
