# SPDX-License-Identifier: Apache-2.0
"""A shuffle buffer that is part of a method's state: saved, resumed, split over devices and donated like the rest."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int

from ..errors import UserError
from ..protocols import Batch, Method, State
from ..taps.compiled import eagerly
from .identity import table

type Rows = dict[str, Array]
"""Arrays with a leading axis of rows: x, mask, labels."""


class BufferState(NamedTuple):
    """The method's own state, and the rows that wait for it."""

    inner: State
    rows: Rows
    """[parts, slots, ...] for each array of a batch; a slot without a row has mask False."""
    held: Int[Array, ""]
    """Slots with a row."""
    step: Int[Array, ""]
    """Steps the method has made; below 0 while the buffer fills."""


def shuffled(method: Method, capacity: int, *, seed: int = 0, dtype: str | None = None) -> Method:
    """A method over rows in random order: each step exchanges the batch with random rows of a buffer.

    The buffer is n strata of capacity / n slots, for batches of n rows. A step draws one slot in every stratum and
    deals the n incoming rows to the strata at random; the method gets the rows that were in these slots, and the
    incoming ones take their places. So every row is delivered once; it waits capacity / n steps on average
    (geometrically distributed); a batch gathers rows from all of the recent past; a step costs one reading and one
    writing of n rows, and there are no refills. Two rows of a batch come from one incoming batch half as often as in a
    uniform sample of `capacity` successive rows, and as often right after filling: see `mixing`.

    The first capacity / n steps only fill the buffer: the method rests and its infos are zeros (buffer_filled grows to
    1). It then sees one batch per step, as if run alone on the delivered batches, but for `init`, which reads the first
    batch of the stream. Rows left in the buffer at the end are dropped: for a method that is to make s steps, run
    s + capacity / n. Masked rows are not stored; the row that they would displace stays, masked.

    What a step learns from was in the buffer before: next to a model, `at_site(apply, site, shuffled(...))`, the
    forward pass and the update are independent of each other within a step, and the compiler may overlap them.

    On several devices the buffer is split as the batches are, and rows are dealt among the slots of their own device:
    no communication. Then the order depends on the number of devices.

    Args:
      method: over dict batches of rows, all arrays [n, ...], "mask" (bool [n]) optional; info is a dict.
      capacity: rows, over all devices; rounded up to a multiple of n. A million rows of 2,304 bfloat16 numbers take 4.8
        GB: `buffer_bytes`.
      seed: of the order.
      dtype: in which floating arrays wait ("bfloat16": half the memory); they are delivered in their own. None: theirs.
    Returns:
      A Method; info: the method's and buffer_filled.
    Raises:
      UserError: a batch that is not rows; at the end, a stream that did not fill the buffer.
    Source: an exchange buffer as in TensorFlow's Dataset.shuffle (one row at a time), for whole batches by strata.
    Example:
      >>> from jaxneuro.activations import run
      >>> count = Method(
      ...     init=lambda key, batch: jnp.int32(0),
      ...     step=lambda state, batch: (state + jnp.sum(batch["mask"], dtype=jnp.int32), {}),
      ...     finish=int,
      ... )
      >>> run(shuffled(count, 8), [{"x": jnp.ones((4, 2))}] * 5, key=jax.random.key(0))
      12
    """
    if capacity < 1:
        raise UserError(f"shuffled: a capacity of {capacity} rows holds nothing. A million is usual.")
    train = jax.jit(method.step)  # jit: traced once for its shapes and its program

    def init(key: Array, batch: Batch) -> BufferState:
        rows = _checked(batch)
        parts, where = _split(next(iter(rows.values())))
        depth = -(-capacity // len(rows["mask"]))
        slots = len(rows["mask"]) // parts * depth
        empty = {name: ((parts, slots, *a.shape[1:]), _stored(a, dtype)) for name, a in rows.items()}
        make = jax.jit(lambda: {name: jnp.zeros(*form) for name, form in empty.items()}, out_shardings=where)
        return BufferState(method.init(key, rows), make(), jnp.int32(0), jnp.int32(-depth))

    def step(state: BufferState, batch: Batch) -> tuple[BufferState, dict[str, Array]]:
        incoming = _checked(batch)
        parts, slots = state.rows["mask"].shape
        cut = {name: a.reshape(parts, -1, *a.shape[1:]) for name, a in incoming.items()}
        spots = _spots(seed, state.step, cut["mask"].shape, slots)
        rows, old = _exchange(state.rows, spots, cut)
        out = {name: a.reshape(incoming[name].shape).astype(incoming[name].dtype) for name, a in old.items()}
        held = state.held + jnp.sum(incoming["mask"] & ~out["mask"], dtype=jnp.int32)
        out["mask"] &= incoming["mask"]
        rest = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(train, state.inner, out)[1])
        inner, info = lax.cond(state.step >= 0, train, lambda inner, _: (inner, rest), state.inner, out)
        filled = held.astype(jnp.float32) / jnp.float32(parts * slots)
        return BufferState(inner, rows, held, state.step + 1), {**info, "buffer_filled": filled}

    def finish(state: BufferState) -> Any:
        if (made := int(state.step)) < 1:
            raise UserError(
                f"the stream ended while the shuffle buffer was filling, {1 - made} batches before the method's first "
                "step: nothing was learned. Give a smaller capacity, or more data."
            )
        return method.finish(state.inner)

    return Method(init, functools.partial(eagerly, step), finish)


def buffer_bytes(batch: Batch, capacity: int, *, dtype: str | None = None) -> int:
    """Bytes of the rows of `shuffled(method, capacity, dtype=dtype)`, over all devices.

    Args:
      batch: one batch of rows, or its shapes.
    Example:
      >>> buffer_bytes({"x": jax.ShapeDtypeStruct((32768, 2304), "float32")}, 2**20, dtype="bfloat16") / 2**20
      4609.0
    """
    shapes = jax.eval_shape(_checked, batch)
    n = shapes["mask"].shape[0]
    row = sum(math.prod(a.shape[1:]) * _stored(a, dtype).itemsize for a in shapes.values())
    return -(-capacity // n) * n * row


def _checked(batch: Batch) -> Rows:
    """The batch with a mask.

    Raises:
      UserError: it is not a dict of arrays with one leading axis.
    """
    sizes = {a.shape[:1] for a in jax.tree.leaves(batch)} if isinstance(batch, Mapping) else set()
    if len(sizes) != 1 or sizes == {()} or any(isinstance(a, Mapping) for a in batch.values()):
        raise UserError(
            f"shuffled: batches are dicts of arrays with one row per token, such as x [n, d] and mask [n]; this one: "
            f"{table(batch)}. With a model it goes inside: at_site(model.apply, site, shuffled(method, capacity))."
        )
    return dict(batch) if "mask" in batch else {**batch, "mask": jnp.ones(sizes.pop(), bool)}


def _stored(a: Any, dtype: str | None) -> Any:
    return jnp.dtype(dtype if dtype and jnp.issubdtype(a.dtype, jnp.floating) else a.dtype)


def _split(x: Any) -> tuple[int, Sharding | None]:
    """Into how many parts the batch axis is split, and where a buffer of so many parts lies; no choice if abstract."""
    if not isinstance(x, jax.Array) or isinstance(x, Tracer):
        return 1, None
    parts, where = 1, x.sharding
    if isinstance(where, NamedSharding):
        parts = x.shape[0] // where.shard_shape(x.shape)[0]
        where = NamedSharding(where.mesh, PartitionSpec(where.spec[0] if where.spec else None))
    return parts, where


def _spots(seed: int, step: Array, shape: tuple[int, ...], slots: int) -> Int[Array, "parts n"]:
    """The slot that each incoming row is exchanged with, one of each stratum: random; while filling, the next."""
    depth = slots // shape[1]
    deal, draw = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    numbers = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    strata = jax.random.permutation(deal, numbers, axis=1, independent=True)
    return strata * depth + jnp.where(step < 0, step + depth, jax.random.randint(draw, shape, 0, depth))


def _exchange(slots: Rows, spots: Int[Array, "parts n"], rows: Rows) -> tuple[Rows, Rows]:
    """(slots with the unmasked rows in their spots, what was there)."""
    read = jax.vmap(lambda a, i: a[i])
    old = {name: read(a, spots) for name, a in slots.items()}
    # Everything is read before anything is written: without the barrier XLA copies the whole buffer in every step.
    old, slots = lax.optimization_barrier((old, slots))

    write = jax.vmap(lambda a, i, v: a.at[i].set(v, unique_indices=True))

    def put(a: Array, was: Array, row: Array) -> Array:
        keep = rows["mask"].reshape(spots.shape + (1,) * (row.ndim - 2))
        return write(a, spots, jnp.where(keep, row.astype(a.dtype), was))

    return {name: put(a, old[name], rows[name]) for name, a in slots.items()}, old
