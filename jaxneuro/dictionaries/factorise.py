# SPDX-License-Identifier: Apache-2.0
"""Semi-NMF of activations that fit in memory: the published full-batch algorithm."""

import functools
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ..errors import UserError, unknown
from .parts.clusters import lloyd
from .parts.decoder import unit_rows
from .parts.multiplicative import EPS, GUARDS, basis, checked, dot, improved, winners
from .parts.pooling import POLISH, polished, pruned, started


class Factorisation(NamedTuple):
    """x ~ g w, the best that was met."""

    w: Float[Array, "n_latents d"]
    """The latents: unit rows, ceil(sparsity d) nonzero entries each; the transpose of the papers' F."""
    g: Float[Array, "n n_latents"]
    """Coefficients >= 0, in units of x (of the unguarded token); 0 for tokens that do not count."""
    loss: Float[Array, ""]
    """|x - g w|^2 / |x|^2 of the guarded tokens."""
    losses: Float[Array, "steps"]
    """The same after every iteration; nan where it had stopped."""
    steps: Int[Array, ""]
    """Iterations made."""


def _random(key: Array, x: Array, valid: Array, n_latents: int) -> Array:
    return jax.random.uniform(key, (x.shape[0], n_latents), jnp.float32)


def _svd(key: Array, x: Array, valid: Array, n_latents: int) -> Array:
    """Positive part of the left singular vectors times the roots of the values, from the smaller Gram matrix."""
    wide = x.shape[1] >= x.shape[0]
    values, vectors = jnp.linalg.eigh(dot(x, x.T) if wide else dot(x.T, x))
    s, v = jnp.sqrt(jnp.maximum(values, 0))[::-1][:n_latents], vectors[:, ::-1][:, :n_latents]
    u = v if wide else dot(x, v) / jnp.maximum(s, jnp.finfo(jnp.float32).tiny)[None]
    return jnp.pad(u * jnp.sqrt(s)[None], ((0, 0), (0, n_latents - u.shape[1])))


def _rotated(key: Array, x: Array, valid: Array, n_latents: int) -> Array:
    """Coefficients of the singular vectors, scaled by their values and turned until loadings are sparse (varimax).

    Where latents are used independently, their loadings are a rotation of these: sparsity tells which.
    """
    n = jnp.maximum(jnp.sum(valid, dtype=jnp.int32), 1).astype(jnp.float32)
    mean = jnp.sum(x, 0) / n
    values, vectors = jnp.linalg.eigh(dot(x.T, x) - n * jnp.outer(mean, mean))
    loadings = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None])[:, ::-1][:, :n_latents]
    k = loadings.shape[1]
    loadings @= jnp.linalg.qr(jax.random.normal(key, (k, k), jnp.float32))[0]

    def closer(_: Array, r: Array) -> Array:
        turned = loadings @ r
        rise = loadings.T @ (turned**3 - turned * jnp.mean(jnp.square(turned), 0)[None])
        u, _, vt = jnp.linalg.svd(rise, full_matrices=False)
        return u @ vt

    w = (loadings @ lax.fori_loop(0, VARIMAX, closer, jnp.eye(k, dtype=jnp.float32))).T
    w *= jnp.where(w @ mean < 0, -1, 1)[:, None].astype(jnp.float32)
    return jnp.pad(started(x, valid, unit_rows(w)), ((0, 0), (0, n_latents - k)))


VARIMAX: Final = 100
"""Rounds; it has settled long before."""


def _kmeans(key: Array, x: Array, valid: Array, n_latents: int) -> Array:
    label = lloyd(x, n_latents, key=key, mask=valid, steps=15)[1]
    return (label[:, None] == jnp.arange(n_latents, dtype=jnp.int32)[None]).astype(jnp.float32)


STARTS: Final[Mapping[str, Callable[[Array, Array, Array, int], Array]]] = {
    "random": _random,
    "svd": _svd,
    "rotated": _rotated,
    "kmeans": _kmeans,
}
"""(key, x, valid, n_latents) -> coefficients to start from; raised to at least 1e-6."""
POOLED: Final = ("rotated", *["random"] * 5)
"""The starts that `pooled` joins."""
NOISE: Final = 0.1
"""The least share of the best single run's error by which a pool must be below it; n_latents / d where that is less.

Spare latents take about 1 / d of the error each from noise alone, by sharing out a latent that was whole before.
"""


class _Loop(NamedTuple):
    step: Int[Array, ""]
    g: Float[Array, "n n_latents"]
    gram: Float[Array, "n_latents n_latents"]
    best_w: Float[Array, "n_latents d"]
    best_g: Float[Array, "n n_latents"]
    best: Float[Array, ""]
    mark: Float[Array, ""]
    """The loss from which the next improvement is counted."""
    since: Int[Array, ""]
    losses: Float[Array, "steps"]


def iteration(
    x: Float[Array, "n d"],
    g: Float[Array, "n n_latents"],
    gram: Float[Array, "n_latents n_latents"],
    *,
    sparsity: float,
    dtype: str = "float32",
) -> tuple[Float[Array, "n_latents d"], Float[Array, "n n_latents"], Float[Array, "n_latents n_latents"], Array]:
    """(w, g, g^T g, |x - g w|^2) after one iteration from g and gram = g^T g.

        W = winners((G^T G + eps I)^-1 G^T x);   G = G / s,  W = s W,  s_k = |G_k|
        G = G sqrt((P+ + G Q-) / (P- + G Q+ + eps)),   P = x W^T,  Q = W W^T
        |x - G W|^2 = |x|^2 - 2 tr(G^T P) + tr(Q G^T G)

    The loss needs no [n, d] reconstruction; in float32 it is exact to about 1e-6 |x|^2.
    """
    w = winners(basis(dot(g.T, x, dtype), gram), sparsity)
    size = jnp.maximum(jnp.sqrt(jnp.diagonal(gram)), jnp.float32(1e-8))
    g, w = g / size[None], w * size[:, None]
    p, q = dot(x, w.T, dtype), dot(w, w.T)
    g = improved(g, p, q)
    gram = dot(g.T, g)
    loss = jnp.sum(jnp.square(x.astype(jnp.float32))) - 2 * jnp.sum(g * p) + jnp.sum(q * gram)
    return w, g, gram, jnp.maximum(loss, 0)


def factorise(
    x: Float[Array, "n d"],
    n_latents: int,
    *,
    key: Key[Array, ""],
    mask: Bool[Array, "n"] | None = None,
    sparsity: float = 0.01,
    steps: int = 2000,
    patience: int = 1500,
    tolerance: float = 1e-6,
    start: Literal["pooled", "random", "svd", "rotated", "kmeans"] = "pooled",
    guard: Literal["none", "clip", "unit"] = "none",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Factorisation:
    """x ~ g w with g >= 0 and sparse rows in w, by multiplicative updates with winner-take-all; the best iterate.

    One compiled program, `iteration` in a while loop. `jax.vmap` over keys runs seeds together. With the token axis
    sharded over devices (x placed with a NamedSharding) only G^T x, G^T G and sums are exchanged. Memory: x, three
    times g, x scaled.

    Without winner-take-all (sparsity = 1) the loss never rises; with it, it may: hence the best iterate, and hence
    `sparsity` must not be below the true share of neurons, where the error grows quickly. A latent whose coefficients
    have become 0 stays 0 (its w is a row of zeros).

    One start finds most latents and is stuck without the others; another start has those. "pooled" therefore runs
    six, takes the latents of all, lets the least needed go one by one until n_latents are left and descends from there
    (`parts.pooling`): planted parts that a single start finds by half to nine tenths come out whole. Where that is no
    better than the best of the six by more than noise allows, that one is returned: it shares out no latent.

    Args:
      x: activations, tokens as rows, e.g. mlp.post. Rows that hold NaN or infinity do not count.
      n_latents: at most n.
      key: of the random start, or of k-means.
      mask: which tokens count.
      sparsity: share of neurons kept in each latent, in (0, 1].
      steps: most iterations.
      patience: stop after so many iterations without an improvement of `tolerance`.
      tolerance: in units of |x|^2 (the authors' 1e-4 is absolute, so that it depends on the data's scale).
      start: of g: uniform; from singular vectors, as they are or turned to sparse loadings; one-hot after 15 rounds of
        k-means; "pooled": see above, `losses` and `steps` are then those of the best of the six.
      guard: "clip": tokens beyond 4 median norms are shortened to that; "unit": every token has length 1. Massive
        activations otherwise dominate the squared error.
      dtype: of the two large products' inputs; "bfloat16" halves memory and time on accelerators, and the loss is then
        exact to about 1e-3.
    Raises:
      UserError: x not floating [n, d], more latents than tokens, numbers out of range, an unknown start or guard.
    Source: Ding, Li and Jordan 2010, doi:10.1109/TPAMI.2008.277; winner-take-all, normalisation, starts and defaults
      from the code released as ordavid-s/snmf-mlp-decomposition.
    Example:
      >>> x = jnp.array([[1.0, -1.0, 0, 0], [2.0, -2.0, 0, 0], [0, 0, 1.0, 2.0], [1.0, -1.0, 1.0, 2.0]])
      >>> found = factorise(x, 2, key=jax.random.key(0), sparsity=0.5, steps=300)
      >>> (found.w != 0).sum(1).tolist(), bool(found.loss < 0.05)
      ([2, 2], True)
    """
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"factorise: x is {x.dtype}{list(x.shape)}; tokens are rows of a floating [n, d].")
    if not 1 <= n_latents <= x.shape[0]:
        raise UserError(f"factorise: n_latents = {n_latents} for {x.shape[0]} tokens: between 1 and their number.")
    if mask is not None and (mask.shape != x.shape[:1] or mask.dtype != jnp.bool_):
        raise UserError(f"factorise: mask is {mask.dtype}{list(mask.shape)}, not bool[{x.shape[0]}].")
    for name, value, least in (("steps", steps, 1), ("patience", patience, 1), ("tolerance", tolerance, 0)):
        if value < least:
            raise UserError(f"factorise: {name} = {value} is below {least}.")
    if start not in (*STARTS, "pooled"):
        raise unknown("start", start, ("pooled", *STARTS), where="factorise")
    checked(sparsity, guard, "factorise")
    valid = jnp.ones(x.shape[0], bool) if mask is None else mask
    return _factorise(x, valid, key, jnp.float32(tolerance), n_latents, sparsity, steps, patience, start, guard, dtype)


@functools.partial(jax.jit, static_argnums=range(4, 11))
def _factorise(x, valid, key, tolerance, n_latents, sparsity, steps, patience, start, guard, dtype) -> Factorisation:
    valid &= jnp.isfinite(x).all(1)
    x = jnp.where(valid[:, None], x.astype(jnp.float32), 0)
    norm = jnp.linalg.norm(x, axis=1)
    factor = GUARDS[guard](norm, jnp.nanmedian(jnp.where(valid, norm, jnp.nan)))
    factor *= jnp.sqrt(x.size / jnp.maximum(jnp.sum(jnp.square(norm * factor)), jnp.finfo(jnp.float32).tiny))
    x = (x * factor[:, None]).astype(dtype)  # mean square 1: eps means the same for all data
    whole = jnp.maximum(jnp.sum(jnp.square(x.astype(jnp.float32))), jnp.finfo(jnp.float32).tiny)

    def begin(name: str, key: Array) -> Array:
        g = jnp.maximum(STARTS[name](key, x.astype(jnp.float32), valid, n_latents), jnp.float32(EPS))
        return jnp.where(valid[:, None], g, 0)

    def go_on(s: _Loop) -> Array:
        return (s.step < steps) & (s.since < patience)

    def once(s: _Loop) -> _Loop:
        w, g, gram, squares = iteration(x, s.g, s.gram, sparsity=sparsity, dtype=dtype)
        loss = squares / whole
        better, counts = loss < s.best, loss < s.mark - tolerance
        return _Loop(
            step=s.step + 1,
            g=g,
            gram=gram,
            best_w=jnp.where(better, w, s.best_w),
            best_g=jnp.where(better, g, s.best_g),
            best=jnp.where(better, loss, s.best),
            mark=jnp.where(counts, loss, s.mark),
            since=jnp.where(counts, 0, s.since + 1),
            losses=s.losses.at[s.step].set(loss),
        )

    def run(g: Array) -> _Loop:
        none, never = jnp.int32(0), jnp.float32(jnp.inf)
        w = jnp.zeros((n_latents, x.shape[1]), jnp.float32)
        s = _Loop(none, g, dot(g.T, g), w, g, never, never, none, jnp.full(steps, jnp.nan, jnp.float32))
        return lax.while_loop(go_on, once, s)

    if start == "pooled":
        each = lax.map(run, jnp.stack([begin(name, jax.random.fold_in(key, i)) for i, name in enumerate(POOLED)]))
        s = jax.tree.map(lambda a: a[jnp.argmin(each.best)], each)
        whole_x = x.astype(jnp.float32)
        w = pruned(whole_x, valid, each.best_w.reshape(-1, x.shape[1]), n_latents, sparsity)
        w, g, squares = polished(whole_x, valid, w, sparsity, min(steps, POLISH))
        better = squares / whole < (1 - min(NOISE, n_latents / x.shape[1])) * s.best
        s = s._replace(
            best_w=jnp.where(better, w, s.best_w),
            best_g=jnp.where(better, g, s.best_g),
            best=jnp.where(better, squares / whole, s.best),
        )
    else:
        s = run(begin(start, key))
    size = jnp.linalg.norm(s.best_w, axis=1)
    raw = jnp.where(factor > 0, 1 / jnp.where(factor > 0, factor, 1), 0)
    return Factorisation(unit_rows(s.best_w), s.best_g * size[None] * raw[:, None], s.best, s.losses, s.step)
