# SPDX-License-Identifier: Apache-2.0
"""Running statistics per group, and how the rows of a batch are added to each: exact, merged in float32 or int32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .rows import Rows

_FULL = jax.lax.Precision.HIGHEST  # sums of 0/1 in a matmul are exact in float32, not in bf16 or TF32


class Moments(NamedTuple):
    """Running mean, sum of squared deviations and extremes per group, [K, L, F]."""

    mean: Float[Array, "group layer neuron"]
    m2: Float[Array, "group layer neuron"]
    high: Float[Array, "group layer neuron"]
    low: Float[Array, "group layer neuron"]


class Examples(NamedTuple):
    """Running largest windows, [K, n, L, F]: best first."""

    value: Float[Array, "group n layer neuron"]
    window: Int[Array, "group n layer neuron"]
    position: Int[Array, "group n layer neuron"]


class Responses(NamedTuple):
    """Pooled responses of the first windows of each group; slot k * per_group + i."""

    value: Float[Array, "slot layer neuron"]
    window: Int[Array, " slot"]


class Blocks(NamedTuple):
    """Firing counts per block (document)."""

    fired: Int[Array, "block layer neuron"]
    tokens: Int[Array, " block"]
    group: Int[Array, " block"]


def no_blocks(shape: tuple[int, ...]) -> Blocks:
    """Counters at zero for blocks of shape [D, L, F]; group -1 where nothing was counted."""
    return Blocks(jnp.zeros(shape, jnp.int32), jnp.zeros(shape[:1], jnp.int32), jnp.full(shape[:1], -1, jnp.int32))


def add_blocks(old: Blocks, fired: Array, n: Array, block: Array, real: Array, true: Array) -> Blocks:
    """Rows into their blocks; rows that are not real, or of block -1, nowhere."""
    at = jnp.where(real & (block >= 0), block, old.tokens.shape[0])
    return Blocks(
        old.fired.at[at].add(fired.swapaxes(0, 1), mode="drop"),
        old.tokens.at[at].add(n, mode="drop"),
        old.group.at[at].set(true, mode="drop"),
    )


def no_examples(shape: tuple[int, ...]) -> Examples:
    """Empty lists of shape [K, n, L, F]."""
    # three arrays of their own: the state is donated, and one buffer cannot be donated twice
    return Examples(
        jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32), jnp.full(shape, -1, jnp.int32)
    )


def no_responses(shape: tuple[int, ...]) -> Responses:
    """Empty slots of shape [K * per_group, L, F]."""
    return Responses(jnp.zeros(shape, jnp.float32), jnp.full(shape[:1], -1, jnp.int32))


def add_up_tokens(n: Int[Array, " batch"], member: Float[Array, "batch s group"]) -> Int[Array, "s group"]:
    """Tokens of a batch per labelling and group."""
    return jnp.sum(n[:, None, None] * member.astype(jnp.int32), 0, dtype=jnp.int32)


def add_up_fired(fired: Array, member: Float[Array, "batch s group"]) -> Int[Array, "s group layer neuron"]:
    """Firing counts of a batch per labelling and group: an integer matmul in float32, exact below 2^24 tokens."""
    counts = jnp.einsum("lbf,bsk->sklf", fired.astype(jnp.float32), member, precision=_FULL)
    return counts.astype(jnp.int32)


def add_saturating(total: Array, more: Array) -> Array:
    """int32 sum that stays at 2^31 - 1."""
    top = jnp.int32(2**31 - 1)
    return jnp.where(total > top - more, top, total + more)


def add_moments(old: Moments, n_old: Array, rows: Rows, n: Array, member: Array, true: Array) -> Moments:
    """Rows into a batch, the batch into the total, both by the pairwise rule of Chan: means weighted by tokens."""
    weight = member * n.astype(jnp.float32)[:, None]
    n_new = jnp.sum(weight, 0)[:, None, None]
    mean = jnp.einsum("bk,lbf->klf", weight, rows.mean, precision=_FULL) / jnp.maximum(n_new, 1)
    centre = mean[jnp.minimum(true, member.shape[1] - 1)]  # [B, L, F]; rows in no group have weight 0
    spread = rows.m2 + n.astype(jnp.float32)[None, :, None] * jnp.square(rows.mean - centre.swapaxes(0, 1))
    m2 = jnp.einsum("bk,lbf->klf", member, spread, precision=_FULL)
    n_old = n_old[:, None, None]
    total, delta = jnp.maximum(n_old + n_new, 1), mean - old.mean
    return Moments(
        mean=old.mean + delta * (n_new / total),
        m2=old.m2 + m2 + jnp.square(delta) * (n_old * (n_new / total)),
        high=old.high.at[true].max(rows.high.swapaxes(0, 1), mode="drop"),
        low=old.low.at[true].min(rows.low.swapaxes(0, 1), mode="drop"),
    )


def add_examples(old: Examples, rows: Rows, true: Array, window: Array) -> Examples:
    """Insert each row's maximum into the sorted list of its group: exact, and no sort of [B] per neuron."""
    n_groups = old.value.shape[0]

    def insert(b, best):
        k = jnp.minimum(true[b], n_groups - 1)
        value, where = rows.high[:, b], rows.peak[:, b]
        value = jnp.where(true[b] < n_groups, value, -jnp.inf)
        lists = jax.tree.map(lambda a: a[k], best)
        ahead = (value[None] > lists.value) | ((value[None] == lists.value) & (window[b] < lists.window))
        above = jnp.concatenate([jnp.zeros_like(ahead[:1]), ahead[:-1]])
        candidate = Examples(value, window[b], where)
        moved = jax.tree.map(
            lambda a, c: jnp.where(ahead, jnp.where(above, jnp.roll(a, 1, 0), jnp.broadcast_to(c, a.shape)), a),
            lists,
            candidate,
        )
        return jax.tree.map(lambda a, m: a.at[k].set(m), best, moved)

    return jax.lax.fori_loop(0, window.shape[0], insert, old)


def add_responses(old: Responses, seen: Array, mean: Array, true: Array, window: Array) -> Responses:
    """Write rows into their group's next free slots; rows beyond the last slot are dropped."""
    n_groups = seen.shape[0]
    per_group = old.value.shape[0] // n_groups
    same = (true[:, None] == true[None, :]) & jnp.tri(true.shape[0], k=-1, dtype=bool)
    index = jnp.sum(same, 1, dtype=jnp.int32) + seen[jnp.minimum(true, n_groups - 1)]
    slot = jnp.where((true < n_groups) & (index < per_group), true * per_group + index, old.value.shape[0])
    return Responses(
        old.value.at[slot].set(mean.swapaxes(0, 1), mode="drop"),
        old.window.at[slot].set(window.astype(jnp.int32), mode="drop"),
    )
