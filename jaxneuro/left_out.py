# SPDX-License-Identifier: Apache-2.0
"""Tokens that are left out of a stream by id, position or norm, such as sinks: real for the model, counted nowhere."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .errors import UserError
from .protocols import Batch, Method

type Change = Callable[[Mapping[str, Any]], dict[str, Any]]
"""A batch of windows -> the same with another `counted`."""


def leaving_out(ids: Sequence[int], positions: Sequence[int], d_vocab: int) -> Change:
    """`without_tokens` of these ids and positions, after their check.

    Raises:
      UserError: an id outside the vocabulary; a position before a window's first token.
    """
    if bad := [i for i in ids if not 0 <= i < d_vocab]:
        raise UserError(f"without_ids = {bad[0]} is not in the vocabulary of {d_vocab}.")
    if bad := [i for i in positions if i < 0]:
        raise UserError(f"without_positions = {bad[0]}: positions count from 0, each window's first real token.")
    return functools.partial(without_tokens, ids, positions)


def without_tokens(ids: Sequence[int], positions: Sequence[int], batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with these tokens not counted; positions are counted from each window's first real token.

    Arrays stay what they are, NumPy's or JAX's.

    Example:
      >>> batch = {"tokens": jnp.array([[7, 8, 9]]), "mask": jnp.array([[False, True, True]])}
      >>> without_tokens([9], [], batch | {"counted": batch["mask"]})["counted"].tolist()
      [[False, True, False]]
      >>> without_tokens([], [0], batch | {"counted": batch["mask"]})["counted"].tolist()
      [[False, False, True]]
    """
    xp = batch["counted"].__array_namespace__()
    counted = batch["counted"]
    if ids:
        counted = counted & ~xp.isin(batch["tokens"], xp.asarray(ids, dtype=xp.int32))
    if positions:
        at = xp.cumsum(batch["mask"], axis=1, dtype=xp.int32) - 1
        counted = counted & ~xp.isin(at, xp.asarray(positions, dtype=xp.int32))
    return {**batch, "counted": counted}


def told(change: Change, method: Method) -> Method:
    """The method over changed batches."""
    return Method(
        init=lambda key, batch: method.init(key, change(batch)),
        step=lambda state, batch: method.step(state, change(batch)),
        finish=method.finish,
    )


def norms(x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """Of every row, in float32."""
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1))


def norm_limit(x: Float[Array, "*n d"], valid: Bool[Array, "*n"], most: float | None) -> Float[Array, ""]:
    """`most` times the median norm of the valid rows; infinite for None, NaN of no valid row.

    Example:
      >>> norm_limit(jnp.array([[1.0], [2.0], [3.0], [1000.0], [0.0]]), jnp.ones(5, bool), 4.0).tolist()
      8.0
    """
    if most is None:
        return jnp.float32(jnp.inf)
    return jnp.float32(most) * jnp.nanmedian(jnp.where(valid, norms(x), jnp.nan))


def check_max_norm(most: float | None, name: str = "max_norm") -> None:
    """Raises: UserError: a limit that is not above the median."""
    if most is not None and not most > 1:
        raise UserError(f"{name} = {most} median norms leave out half of all tokens: above 1.")


def within_norm(most: float, method: Method) -> Method:
    """The method over rows {"x": [n, d], "mask": [n]} no longer than `most` times the median norm of the first batch's.

    The first batch is the first with a row that counts. NaN is not long: it counts, and shows.

    Raises:
      UserError: `most` is not above 1.
    Example:
      >>> from jaxneuro.activations import moments, run
      >>> x = np.array([[1.0], [2.0], [3.0], [1000.0]], np.float32)
      >>> run(within_norm(4.0, moments()), [{"x": x}, {"x": x}], key=jax.random.key(0)).max.tolist()
      [3.0]
    """
    check_max_norm(most)

    def init(key: Array, rows: Batch) -> tuple[Any, Array]:
        limit = norm_limit(rows["x"], _mask(rows), most)
        return method.init(key, _shorter(rows, limit)), limit

    def step(state: tuple[Any, Array], rows: Batch) -> tuple[tuple[Any, Array], dict]:
        limit = jnp.where(jnp.isnan(state[1]), norm_limit(rows["x"], _mask(rows), most), state[1])
        inner, info = method.step(state[0], _shorter(rows, limit))
        return (inner, limit), info

    return Method(init=init, step=step, finish=lambda state: method.finish(state[0]))


def _shorter(rows: Batch, limit: Array) -> dict[str, Any]:
    return {**rows, "mask": _mask(rows) & ~(norms(rows["x"]) > limit)}


def _mask(rows: Batch) -> Array:
    mask = rows.get("mask")
    return jnp.ones(rows["x"].shape[:-1], bool) if mask is None else jnp.asarray(mask)
