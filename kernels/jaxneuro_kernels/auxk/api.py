# SPDX-License-Identifier: Apache-2.0
"""AuxK: dead latents learn to explain what the living ones leave over, at the price of the dead alone.

Dead latents are gathered into one of a few static sizes and treated densely there: a matmul per pass, where a gather of
k_aux rows per token would cost an order more. Sizes are chosen at run time by `lax.switch`, so nothing recompiles as
latents die and revive, and while none is dead nothing is computed. XLA everywhere: these are matmuls.
"""

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..sae_backward.adam import Rows
from ..topk.bisect import kth_largest
from ..topk.order import LOWEST, to_key
from ..vary import vary, varying

BLOCK_BYTES: Final = {"cpu": 1 << 21, "default": 1 << 28}
"""Pre-activations of the dead held at once, per platform."""


def add_auxk(
    gradients: Rows,
    parameters: Rows,
    dead: Array,
    x: Array,
    residual: Array,
    valid: Array,
    *,
    k_aux: int,
    cap: int,
    weight: Array | float,
    turn: Array | int,
    axis_name: str | tuple[str, ...] | None = None,
    latent_axis: str | tuple[str, ...] | None = None,
) -> tuple[Rows, Array]:
    """Gradients of all latents with those of weight * AuxK added at the dead ones, and AuxK itself.

        a_n = relu of the k_aux largest of x_n W_enc^T + b_enc among the dead
        AuxK = sum_n |e_n - a_n W_dec|^2 / sum_n |e_n - mean(e)|^2        0 while nothing is dead

    Values equal to the k_aux-th are all kept. No decoder bias: it belongs to the living (with it, the dead would learn
    to undo it). The gradient reaches the encoder through the kept values. Only rows of dead latents change.

    Args:
      gradients: of the main loss, `Rows`: w_enc [n_latents, d_in], b_enc [n_latents], w_dec [n_latents, d_out].
      parameters: `Rows` of the same shapes, floating.
      dead: bool [n_latents].
      x: [..., d_in], floating: what was encoded (centred); constant here, so b_dec gets nothing from AuxK.
      residual: [..., d_out], floating: e = y - y_hat; constant.
      valid: bool [...]: tokens that count.
      k_aux: latents per token.
      cap: most latents treated in one step; of more dead ones, the window starts at another latent every `turn`.
      weight: of AuxK in the loss; may be traced.
      turn: int32 scalar, one more every step.
      axis_name: inside shard_map, the axis or axes of the mesh over which tokens are split: the denominator is then
        that of all tokens, gradients and AuxK are this shard's parts of a sum, as those of the main loss must be.
      latent_axis: inside shard_map (check_vma=True), the axis or axes over which latents are split: rows and dead are
        then this shard's, k_aux counts those of all shards, and `cap` is of each shard.
    Returns:
      (gradients, AuxK as a float32 scalar; both without the part of tokens that do not count).
    Raises:
      ValueError: shapes or types that do not fit; k_aux or cap is below 1.
    Source: arXiv:2406.04093, appendix A.2.
    Example:
      >>> rows = Rows(jnp.eye(2), jnp.zeros(2), jnp.eye(2))
      >>> e = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> choices = {"k_aux": 1, "cap": 2, "weight": 1.0, "turn": 0}
      >>> zeros, dead = jax.tree.map(jnp.zeros_like, rows), jnp.array([True, False])
      >>> _, auxk = add_auxk(zeros, rows, dead, e, e, jnp.ones(2, bool), **choices)
      >>> float(auxk)  # latent 0 explains the first of two equal residuals
      0.5
    """
    dead, x, residual, valid = map(jnp.asarray, (dead, x, residual, valid))
    _check(gradients, parameters, dead, x, residual, valid, k_aux, cap)
    x, residual = (a.reshape(-1, a.shape[-1]).astype(jnp.float32) for a in (x, residual))
    valid = valid.reshape(-1)
    axes = varying(*gradients, *parameters, dead, x, residual, valid)
    gradients, parameters = (Rows(*(vary(a, axes) for a in rows)) for rows in (gradients, parameters))
    n_dead = jnp.sum(dead, dtype=jnp.int32)
    most = n_dead if latent_axis is None else lax.pmax(n_dead, latent_axis)  # one branch on all shards
    same = axes - set((latent_axis,) if isinstance(latent_axis, str) else latent_axis or ())
    residual = jnp.where(valid[:, None], residual, jnp.float32(0))
    scale = _one_over_spread(residual, valid, axis_name)
    first = (jnp.asarray(turn, jnp.int32) * jnp.int32(cap)) % jnp.int32(dead.shape[0])
    order = jnp.roll(dead, -first)

    by_platform = {
        name: jax.value_and_grad(functools.partial(_in_blocks, k_aux=k_aux, n_bytes=n, latent_axis=latent_axis))
        for name, n in BLOCK_BYTES.items()
    }

    def nothing(gradients):
        return gradients, vary(jnp.float32(0), same)

    def on(size):
        def branch(gradients):
            at = jnp.nonzero(order, size=size, fill_value=0)[0].astype(jnp.int32)
            ids = (at + first) % jnp.int32(dead.shape[0])
            there = jnp.arange(size, dtype=jnp.int32) < n_dead
            mine = Rows(*(jnp.take(p, ids, axis=0, mode="clip").astype(jnp.float32) for p in parameters))
            aux, more = lax.platform_dependent(mine, (x, residual, valid), there, **by_platform)
            share = jnp.asarray(weight, jnp.float32) * scale
            added = (
                g.at[ids].add(share * m, mode="drop") for g, m in zip(gradients, more, strict=True)
            )  # 0 if not there
            return Rows(*added), aux * scale

        return branch

    steps = sizes(min(cap, dead.shape[0]), k_aux)
    bounds = jnp.array((0, *steps[:-1]), jnp.int32)
    choice = jnp.sum(most > bounds, dtype=jnp.int32)
    return lax.switch(choice, [nothing, *map(on, steps)], gradients)


def _one_over_spread(residual: Array, valid: Array, axis_name: str | tuple[str, ...] | None) -> Array:
    """1 / sum_n |e_n - mean(e)|^2, or 0 where that is 0. residual: 0 where not valid."""

    def over_all(a: Array) -> Array:
        return a if axis_name is None else lax.psum(a, axis_name)

    n = jnp.maximum(over_all(jnp.sum(valid, dtype=jnp.int32)), 1).astype(jnp.float32)
    total = over_all(jnp.sum(residual, axis=0))
    spread = over_all(jnp.sum(jnp.square(residual))) - jnp.sum(jnp.square(total)) / n
    return jnp.where(spread > 0, 1 / spread, jnp.float32(0))


def sizes(cap: int, k_aux: int) -> tuple[int, ...]:
    """Static sizes of the compacted set: cap, cap / 8, cap / 64 ... down to about k_aux, ascending.

    Example:
      >>> sizes(4096, 64), sizes(10, 64)
      ((64, 512, 4096), (10,))
    """
    out = [cap]
    while out[-1] // 8 >= max(k_aux, 16):
        out.append(out[-1] // 8)
    return tuple(reversed(out))


def auxk_loss(
    rows: Rows, x: Array, residual: Array, valid: Array, there: Array, k_aux: int, latent_axis: Any = None
) -> Array:
    """sum_n |e_n - a_n W_dec|^2 over the valid n, with the rows `there` for the dead latents."""
    shards = 1 if latent_axis is None else lax.axis_size(latent_axis)
    pre = jnp.dot(x, rows.w_enc.T, preferred_element_type=jnp.float32) + rows.b_enc[None]
    keep = jnp.broadcast_to(there, pre.shape)
    if k_aux < pre.shape[-1] * shards:
        key = jnp.where(there, to_key(lax.stop_gradient(pre)), jnp.int32(LOWEST))
        keep &= key >= kth_largest(key, k_aux, axis_name=latent_axis)[:, None]
    a = jnp.where(keep, jax.nn.relu(pre), jnp.float32(0))
    made = jnp.dot(a, rows.w_dec, preferred_element_type=jnp.float32)
    left = residual - (made if latent_axis is None else lax.psum(made, latent_axis))
    return jnp.sum(jnp.where(valid[:, None], jnp.square(left), jnp.float32(0)))


def _in_blocks(
    rows: Rows, tokens: tuple[Array, Array, Array], there: Array, k_aux: int, n_bytes: int, latent_axis: Any = None
) -> Array:
    """auxk_loss, some tokens at a time where [tokens, rows] is above n_bytes."""
    n = tokens[0].shape[0]

    def one(part):
        return auxk_loss(rows, part[0], part[1], part[2], there, k_aux, latent_axis)

    blocks = -(-n * there.shape[0] * 4 // n_bytes)
    if blocks <= 1:
        return one(tokens)
    size = -(-n // blocks)

    def split(a):
        return jnp.pad(a, ((0, blocks * size - n), *((0, 0),) * (a.ndim - 1))).reshape(blocks, size, *a.shape[1:])

    return jnp.sum(lax.map(jax.checkpoint(one), tuple(map(split, tokens))))


def _check(
    gradients: Rows, parameters: Rows, dead: Array, x: Array, residual: Array, valid: Array, k_aux: int, cap: int
) -> None:
    n, tokens = dead.shape, x.shape[:-1]
    rows = (*n, *x.shape[-1:]), n, (*n, *residual.shape[-1:])
    fits = len(n) == 1 and all(tuple(a.shape for a in given) == rows for given in (gradients, parameters))
    fits = fits and x.ndim >= 1 and residual.ndim >= 1 and residual.shape[:-1] == tokens == valid.shape
    floats = (*gradients, *parameters, x, residual)
    typed = dead.dtype == valid.dtype == bool and all(jnp.issubdtype(a.dtype, jnp.floating) for a in floats)
    if not (fits and typed):
        named = {"dead": dead, "x": x, "residual": residual, "valid": valid}
        named |= {
            f"{of}.{name}": a
            for of, r in (("gradients", gradients), ("parameters", parameters))
            for name, a in r._asdict().items()
        }
        shown = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in named.items())
        raise ValueError(
            f"add_auxk: {shown} do not fit: dead is bool [n_latents], rows of gradients and parameters are [n_latents,"
            " width of x or residual], x and residual share leading axes with bool valid."
        )
    for name, value in (("k_aux", k_aux), ("cap", cap)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"add_auxk: {name} = {value}: it is an int of at least 1.")
