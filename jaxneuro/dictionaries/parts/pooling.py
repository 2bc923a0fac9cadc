# SPDX-License-Identifier: Apache-2.0
"""Semi-NMF from the latents of several runs: pooled, pruned to as many as are wanted, and descended."""

from typing import Final

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from .decoder import unit_rows
from .multiplicative import EPS, descended, dot, improved

INNER: Final = 10
"""Updates of G for each of W, and of both between two prunings."""
TWINS: Final = 0.9
"""Cosine above which two rows of a pool are one latent, found twice."""
POLISH: Final = 200
"""Updates of both at the end, most."""


def pruned(
    x: Float[Array, "n d"],
    valid: Bool[Array, "n"],
    pool: Float[Array, "n_pool d"],
    n_latents: int,
    share: float,
) -> Float[Array, "n_latents d"]:
    """The n_latents of a pool that explain x best together, each with the others' help learned anew.

    Copies go first: of rows at a cosine above TWINS one is enough. Left to descend together they would share out one
    latent's noise, which lowers the error a little and gives neither of them the latent. Then one by one the latent
    goes whose loss costs least: |w_k|^2 / ((G^T G)^-1)_kk, by which the best W without it is worse. What only one run
    has found stays.
    """
    size = pool.shape[0]
    earlier = jnp.tril(jnp.ones((size, size), bool), -1)

    def drop(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        w, on = state
        copies = on & jnp.any((dot(w, w.T) > TWINS) & earlier, 1)
        w, gone = lax.cond(copies.any(), lambda: (w, jnp.argmax(copies)), lambda: least(w, on))
        on = on.at[gone].set(False)
        return jnp.where(on[:, None], w, 0), on

    def least(w: Array, on: Array) -> tuple[Array, Array]:
        w, g = _both(x, valid, w, jnp.where(on, started(x, valid, w), 0), share, INNER)
        gram = dot(g.T, g)
        mean = jnp.maximum(jnp.trace(gram) / size, jnp.finfo(jnp.float32).tiny)
        inverse = jnp.linalg.inv(gram + jnp.diag(jnp.where(on, jnp.float32(EPS) * mean, mean)))
        cost = jnp.where(on, jnp.sum(jnp.square(w), 1) / jnp.diagonal(inverse), jnp.inf)
        return w, jnp.argmin(cost)

    w, on = lax.fori_loop(0, size - n_latents, drop, (unit_rows(pool), jnp.ones(size, bool)))
    return w[jnp.argsort(~on, stable=True)[:n_latents]]


def polished(
    x: Float[Array, "n d"], valid: Bool[Array, "n"], w: Float[Array, "n_latents d"], share: float, steps: int
) -> tuple[Float[Array, "n_latents d"], Float[Array, "n n_latents"], Float[Array, ""]]:
    """(w, g, |x - g w|^2) after `steps` updates of both, none of which raises the error."""
    w, g = _both(x, valid, w, started(x, valid, w), share, steps)
    return w, g, jnp.sum(jnp.square(x - dot(g, w)))


def started(x: Float[Array, "n d"], valid: Bool[Array, "n"], w: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """Coefficients to start from: relu(P) and a hundredth of a typical token, 0 for tokens that do not count."""
    typical = jnp.sqrt(jnp.sum(jnp.square(x)) / jnp.maximum(jnp.sum(valid, dtype=jnp.int32), 1).astype(jnp.float32))
    return jnp.where(valid[:, None], jnp.maximum(dot(x, w.T), 0) + jnp.float32(0.01) * typical, 0)


def _both(x: Array, valid: Array, w: Array, g: Array, share: float, steps: int) -> tuple[Array, Array]:
    """Updates of G and W in turn; rows of W have norm 1, a latent without coefficients keeps its row."""

    def once(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        w, g = state
        p, q = dot(x, w.T), dot(w, w.T)
        g = lax.fori_loop(0, INNER, lambda _, g: improved(g, p, q), g)
        new = descended(w, dot(g.T, x), dot(g.T, g), share)
        norm = jnp.linalg.norm(new, axis=1)
        kept = norm > 0
        return jnp.where(kept[:, None], unit_rows(new), w), g * jnp.where(kept, norm, 0)[None]

    return lax.fori_loop(0, steps, once, (w, g))
