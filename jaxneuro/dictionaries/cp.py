# SPDX-License-Identifier: Apache-2.0
"""Non-negative CP decomposition of a tensor with missing entries, by HALS."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from ..errors import UserError
from .parts.decoder import unit_rows

_MODES = "abcdefgh"
"""One letter per axis in einsum; at most eight."""
_TINY = float(np.finfo(np.float32).tiny)


class CP(NamedTuple):
    """X[i, j, ...] ~ sum_r weights[r] factors[0][i, r] factors[1][j, r] ...; components by descending weight."""

    factors: tuple[Float[Array, "size rank"], ...]
    """Non-negative, columns of norm 1 (or 0: a component that died)."""
    weights: Float[Array, "rank"]
    loss: Float[Array, ""]
    """|M (X - model)|^2 / |M X|^2."""
    sweeps: Int[Array, ""]
    """Sweeps made."""

    def full(self) -> Float[Array, "*sizes"]:
        """The model tensor; missing entries are its predictions."""
        letters = _MODES[: len(self.factors)]
        return jnp.einsum(f"z,{','.join(m + 'z' for m in letters)}->{letters}", self.weights, *self.factors)


def sweep(
    factors: tuple[Float[Array, "size rank"], ...], x: Float[Array, "*sizes"], mask: Float[Array, "*sizes_or_ones"]
) -> tuple[tuple[Float[Array, "size rank"], ...], Float[Array, ""]]:
    """(factors, |mask (x - model)|^2) after one pass of HALS over all modes; x is 0 where the mask is.

        for each mode with factor U, Z the Khatri-Rao product of the others, row i of the mask M_i:
            B_i = Z^T diag(M_i) Z,   C = (M X)_(mode) Z
            for each r:   u_ir = max(0, u_ir + (C_ir - (U_i B_i)_r) / B_irr)

    Exact coordinate descent on the masked loss: it never rises. The mask may have size 1 along an axis on which it does
    not depend; without any missing entry B is one matrix, the elementwise product of the others' Gram matrices. All but
    the last factor then get columns of norm 1.
    """
    modes = range(x.ndim)
    new = list(factors)
    cross = gram = jnp.zeros((1, 1), jnp.float32)
    for mode in modes:
        others = [m for m in modes if m != mode]
        cross = _products(x, {m: new[m] for m in others}, mode)
        gram = _grams(mask, {m: new[m] for m in others}, mode)
        new[mode] = _hals(new[mode], cross, gram)
        if mode != x.ndim - 1:
            norm = jnp.linalg.norm(new[mode], axis=0)
            new[mode], new[-1] = unit_rows(new[mode].T).T, new[-1] * norm[None]
    u = new[-1]
    fitted = jnp.sum(jnp.einsum("iq,iqr->ir", u, jnp.broadcast_to(gram, (u.shape[0], *gram.shape[1:]))) * u)
    return tuple(new), jnp.maximum(jnp.sum(jnp.square(x)) - 2 * jnp.sum(cross * u) + fitted, 0)


def _products(x: Array, others: dict[int, Array], mode: int) -> Array:
    """C [size, rank]: the tensor against the Khatri-Rao product."""
    terms = ",".join(f"{_MODES[m]}z" for m in others)
    whole = _MODES[: x.ndim]
    return jnp.einsum(
        f"{whole},{terms}->{_MODES[mode]}z", x, *others.values(), precision=lax.Precision.HIGHEST, optimize="optimal"
    )


def _grams(mask: Array, others: dict[int, Array], mode: int) -> Array:
    """B [size or 1, rank, rank]: outer products of the others' rows, summed over the entries that are there."""
    outer = {m: f[:, :, None] * f[:, None, :] for m, f in others.items()}
    outer = {m: jnp.sum(o, 0, keepdims=True) if mask.shape[m] == 1 else o for m, o in outer.items()}
    terms = ",".join(f"{_MODES[m]}yz" for m in others)
    return jnp.einsum(
        f"{_MODES[: mask.ndim]},{terms}->{_MODES[mode]}yz",
        mask,
        *outer.values(),
        precision=lax.Precision.HIGHEST,
        optimize="optimal",
    )


def _hals(u: Array, cross: Array, gram: Array) -> Array:
    """One pass over the columns. A column with nothing to explain (B_rr = 0) stays."""

    def column(r: Array, u: Array) -> Array:
        row = lax.dynamic_index_in_dim(gram, r, 2, keepdims=False)  # [size or 1, rank]
        diagonal = lax.dynamic_index_in_dim(row, r, 1, keepdims=False)
        slack = cross[:, r] - jnp.sum(u * row, 1)
        moved = jnp.maximum(u[:, r] + slack / jnp.maximum(diagonal, _TINY), 0)
        return u.at[:, r].set(jnp.where(diagonal > _TINY, moved, u[:, r]))

    return lax.fori_loop(0, u.shape[1], column, u)


@functools.partial(jax.jit, static_argnames="rank")
def _fit(x: Array, mask: Array, key: Array, sweeps: Array, tolerance: Array, *, rank: int) -> CP:
    whole = jnp.maximum(jnp.sum(jnp.square(x)), _TINY)
    keys = jax.random.split(key, x.ndim)
    factors = tuple(jax.random.uniform(k, (n, rank), jnp.float32) for k, n in zip(keys, x.shape, strict=True))
    factors = (*(unit_rows(f.T).T for f in factors[:-1]), factors[-1] * jnp.sqrt(whole / (rank * x.shape[-1])))

    def go_on(s: tuple) -> Array:
        _, loss, before, done = s
        return (done < sweeps) & ~(before - loss <= tolerance)  # infinite before: never

    def once(s: tuple) -> tuple:
        factors, loss, _, done = s
        factors, squares = sweep(factors, x, mask)
        return factors, squares / whole, loss, done + 1

    start = (factors, jnp.float32(jnp.inf), jnp.float32(jnp.inf), jnp.int32(0))
    factors, loss, _, done = lax.while_loop(go_on, once, start)
    weights = jnp.linalg.norm(factors[-1], axis=0)
    order = jnp.argsort(-weights)
    factors = tuple(f[:, order] for f in (*factors[:-1], unit_rows(factors[-1].T).T))
    return CP(factors, weights[order], loss, done)


def nonnegative_cp(
    tensor: Float[Array, "*sizes"],
    rank: int,
    *,
    key: Key[Array, ""],
    mask: Bool[Array, "*sizes_or_ones"] | None = None,
    starts: int = 10,
    sweeps: int = 500,
    tolerance: float = 1e-5,
) -> CP:
    """The best of `starts` random starts; see `cp_starts`, which returns all of them.

    Example:
      >>> a, b, c = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0, 3.0]), jnp.array([2.0, 1.0])
      >>> cp = nonnegative_cp(jnp.einsum("i,j,k->ijk", a, b, c), 1, key=jax.random.key(0), starts=2)
      >>> cp.factors[1].ravel().round(3).tolist() == (b / jnp.linalg.norm(b)).round(3).tolist()
      True
    """
    every = cp_starts(tensor, rank, key=key, mask=mask, starts=starts, sweeps=sweeps, tolerance=tolerance)
    best = jnp.argmin(every.loss)
    return jax.tree.map(lambda a: a[best], every)


def cp_starts(
    tensor: Float[Array, "*sizes"],
    rank: int,
    *,
    key: Key[Array, ""],
    mask: Bool[Array, "*sizes_or_ones"] | None = None,
    starts: int = 10,
    sweeps: int = 500,
    tolerance: float = 1e-5,
) -> CP:
    """min |M (X - sum_r w_r a_r o b_r o c_r ...)|^2 over non-negative factors, from random starts run together (vmap).

    Args:
      tensor: two to eight axes. Free of sign, but the model is not: negative entries are fitted by 0 at best.
      rank: components.
      key: of the starts.
      mask: which entries count; size 1 along axes on which it does not depend (a pair that is missing in a subject at
        all times: [pairs, 1, subjects]), which saves rank^2 times the tensor's memory. Entries that do not count may
        hold anything.
      starts: random starts.
      sweeps: most passes over all modes.
      tolerance: stop when a sweep lowers the loss by no more (in units of |M X|^2).
    Returns:
      A CP whose arrays have a leading axis of starts.
    Raises:
      UserError: rank, starts or sweeps below 1, too few or many axes, a mask that does not fit, an entry that counts
        and is not finite.
    Source: HALS: Cichocki and Phan 2009, doi:10.1587/transfun.E92.A.708; masked as weighted least squares, row by row.
    """
    x, weight = _checked(tensor, rank, mask, starts, sweeps)
    fit = jax.vmap(functools.partial(_fit, rank=rank), (None, None, 0, None, None))
    return fit(x, weight, jax.random.split(key, starts), jnp.int32(sweeps), jnp.float32(tolerance))


def _checked(tensor: Array, rank: int, mask: Array | None, starts: int, sweeps: int) -> tuple[Array, Array]:
    for name, value in (("rank", rank), ("starts", starts), ("sweeps", sweeps)):
        if value < 1:
            raise UserError(f"nonnegative_cp: {name} = {value} is below 1.")
    if not 2 <= tensor.ndim <= len(_MODES):
        raise UserError(f"nonnegative_cp: the tensor is {list(tensor.shape)}; it needs 2 to {len(_MODES)} axes.")
    mask = jnp.ones((1,) * tensor.ndim, bool) if mask is None else mask
    fits = mask.ndim == tensor.ndim and all(m in (1, n) for m, n in zip(mask.shape, tensor.shape, strict=False))
    if not fits or mask.dtype != jnp.bool_:
        raise UserError(
            f"nonnegative_cp: mask is {mask.dtype}{list(mask.shape)} for a tensor {list(tensor.shape)}. It is bool, of "
            "the tensor's shape, with size 1 on axes on which it does not depend."
        )
    x = jnp.where(mask, tensor.astype(jnp.float32), 0)
    if not isinstance(x, Tracer) and not bool(jnp.isfinite(x).all()):
        raise UserError("nonnegative_cp: an entry that counts is NaN or infinite. Mask it.")
    return x, mask.astype(jnp.float32)
