# SPDX-License-Identifier: Apache-2.0
"""AuxK: dead latents learn to explain what the living ones leave over, at the price of the dead alone.

Dead latents are gathered into one of a few static sizes and treated densely there: a matmul per pass, where a gather of
k_aux rows per token would cost an order more. Sizes are chosen at run time by `lax.switch`, so nothing recompiles as
latents die and revive, and while none is dead nothing is computed.
"""

import functools
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxneuro_kernels.topk.order import LOWEST, to_key
from jaxtyping import Array, Bool, Float, Int

BLOCK_BYTES: Final = {"cpu": 1 << 21, "default": 1 << 28}
"""Pre-activations of the dead held at once, per platform."""


class Rows(NamedTuple):
    """Parameters (or their gradients) with one latent per row."""

    w_enc: Float[Array, "rows d_in"]
    b_enc: Float[Array, "rows"]
    w_dec: Float[Array, "rows d_out"]


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
    rows: Rows,
    x: Float[Array, "n d_in"],
    residual: Float[Array, "n d_out"],
    valid: Bool[Array, "n"],
    there: Bool[Array, "rows"],
    k_aux: int,
) -> Float[Array, ""]:
    """sum_n |e_n - a_n W_dec|^2, with a = relu of the k_aux largest of x W_enc^T + b_enc among the rows `there`.

    Values equal to the k_aux-th are all kept. No decoder bias: it belongs to the living (with it, the dead would learn
    to undo it). The gradient reaches the encoder through the kept values.
    """
    pre = jnp.dot(x, rows.w_enc.T, preferred_element_type=jnp.float32) + rows.b_enc
    keep = jnp.broadcast_to(there, pre.shape)
    if k_aux < pre.shape[-1]:
        key = jnp.where(there, to_key(lax.stop_gradient(pre)), jnp.int32(LOWEST))
        keep &= key >= _kth_largest(key, k_aux)[:, None]
    a = jnp.where(keep, jax.nn.relu(pre), jnp.float32(0))
    left = residual - jnp.dot(a, rows.w_dec, preferred_element_type=jnp.float32)
    return jnp.sum(jnp.where(valid[:, None], jnp.square(left), jnp.float32(0)))


def _in_blocks(rows: Rows, tokens: tuple[Array, Array, Array], there: Array, k_aux: int, n_bytes: int) -> Array:
    """auxk_loss, some tokens at a time where [tokens, rows] is above n_bytes."""
    n = tokens[0].shape[0]

    def one(part):
        return auxk_loss(rows, part[0], part[1], part[2], there, k_aux)

    blocks = -(-n * there.shape[0] * 4 // n_bytes)
    if blocks <= 1:
        return one(tokens)
    size = -(-n // blocks)

    def split(a):
        return jnp.pad(a, ((0, blocks * size - n), *((0, 0),) * (a.ndim - 1))).reshape(blocks, size, *a.shape[1:])

    return jnp.sum(lax.map(jax.checkpoint(one), tuple(map(split, tokens))))


def _kth_largest(key: Int[Array, "n m"], k: int) -> Int[Array, "n"]:
    """The k-th largest of each row of int32 keys, bit by bit from the top: 32 counts, no sort (k is hundreds here)."""

    def fix_bit(i, lower):
        candidate = lower + (jnp.int32(1) << (jnp.int32(31) - i))
        enough = jnp.sum(key >= candidate[:, None], axis=-1, dtype=jnp.int32) >= k
        return jnp.where(enough, candidate, lower)

    return lax.fori_loop(0, 32, fix_bit, jnp.full(key.shape[:-1], LOWEST, jnp.int32))


def add_auxk(
    gradients: Rows,
    parameters: Rows,
    dead: Bool[Array, "n_latents"],
    x: Float[Array, "n d_in"],
    residual: Float[Array, "n d_out"],
    valid: Bool[Array, "n"],
    *,
    k_aux: int,
    cap: int,
    weight: float,
    turn: Int[Array, ""],
) -> tuple[Rows, Float[Array, ""]]:
    """Gradients of all latents with those of weight * AuxK added at the dead ones, and AuxK itself.

        AuxK = sum_n |e_n - a_n W_dec|^2 / sum_n |e_n - mean(e)|^2        0 while nothing is dead

    Args:
      gradients: of the main loss; only rows of dead latents change.
      x: what was encoded (centred); constant here, so b_dec gets nothing from AuxK.
      residual: e = y - y_hat; constant.
      valid: tokens that count.
      cap: most latents treated in one step; of more dead ones, the window starts at another latent every `turn`.
    Source: arXiv:2406.04093, appendix A.2.
    """
    n_dead = jnp.sum(dead, dtype=jnp.int32)
    x = x.astype(jnp.float32)
    residual = jnp.where(valid[:, None], residual, jnp.float32(0))
    n = jnp.maximum(jnp.sum(valid, dtype=jnp.int32), 1).astype(jnp.float32)
    spread = jnp.sum(jnp.square(residual)) - jnp.sum(jnp.square(jnp.sum(residual, axis=0))) / n
    scale = jnp.where(spread > 0, 1 / spread, jnp.float32(0))
    first = (turn * jnp.int32(cap)) % jnp.int32(dead.shape[0])
    order = jnp.roll(dead, -first)

    by_platform = {
        name: jax.value_and_grad(functools.partial(_in_blocks, k_aux=k_aux, n_bytes=n))
        for name, n in BLOCK_BYTES.items()
    }

    def nothing(gradients):
        return gradients, jnp.float32(0)

    def on(size):
        def branch(gradients):
            at = jnp.nonzero(order, size=size, fill_value=0)[0].astype(jnp.int32)
            ids = (at + first) % jnp.int32(dead.shape[0])
            there = jnp.arange(size, dtype=jnp.int32) < n_dead
            mine = Rows(*(jnp.take(p, ids, axis=0, mode="clip").astype(jnp.float32) for p in parameters))
            aux, more = lax.platform_dependent(mine, (x, residual, valid), there, **by_platform)
            share = jnp.float32(weight) * scale
            added = (
                g.at[ids].add(share * m, mode="drop") for g, m in zip(gradients, more, strict=True)
            )  # 0 if not there
            return Rows(*added), aux * scale

        return branch

    steps = sizes(min(cap, dead.shape[0]), k_aux)
    bounds = jnp.array((0, *steps[:-1]), jnp.int32)
    choice = jnp.sum(n_dead > bounds, dtype=jnp.int32)
    return lax.switch(choice, [nothing, *map(on, steps)], gradients)
