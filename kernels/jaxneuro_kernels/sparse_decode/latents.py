# SPDX-License-Identifier: Apache-2.0
"""One pass over the active entries of every latent on a Hopper GPU: a latent per warpgroup, its sums in registers.

Entries are sorted by latent once. Rows of the sources (x, or g and x) come by bulk copies, several entries in flight;
what the pass ends with (write the sums, or step an optimiser) happens before the sums leave the registers. A latent
with more than SPLIT entries would hold up the rest: such ones are summed beforehand in parts, a warpgroup each, and the
pass adds the parts in order. Every sum has one owner and one order: no atomics, and two runs are bitwise equal.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..hopper import SHARED_BYTES, fold, result
from .segments import Order, cut

SPLIT = 256
"""Entries of one latent that one warpgroup sums."""
SLOTS = 4
"""Entries in flight, unless measured otherwise."""


class Backward(NamedTuple):
    """Makes the pass the backward pass of a sparse autoencoder, whose sources are (g, x)."""

    w_dec: Array
    """[n_latents, d_out]"""
    extra: Array
    """[tokens, k]: gradient with respect to vals from elsewhere."""
    relu: bool


class Finish(NamedTuple):
    """How the pass ends for latent f: body(f, sums, w_dec's row or None, input refs, output refs)."""

    body: Callable[..., None]
    inputs: Sequence[Array]
    outputs: Sequence[Any]


class Pass(NamedTuple):
    """What came out."""

    outputs: list[Array]
    """Those of `Finish`, by default the sums of each source, [n_latents, d_i]."""
    bias: Array | None
    """[n_latents], of a backward pass: the sums of dvals."""
    dvals: Array | None
    """[tokens, k], of a backward pass: 0 where ReLU was shut, and for indices that name no latent."""


def latent_pass(
    order: Order,
    idx: Array,
    vals: Array,
    sources: Sequence[Array],
    *,
    backward: Backward | None = None,
    finish: Finish | None = None,
    slots: int | None = None,
    split: int | None = None,
) -> Pass:
    """Per latent f, over its entries e = (t, j):

        sums[0][f] = sum vals[e] sources[0][t]
        backward:  dvals[e] = (<sources[0][t], w_dec[f]> + extra[e]) [vals[e] > 0],  bias[f] = sum dvals[e]
                   sums[1][f] = sum dvals[e] sources[1][t]

    Args:
      order: of idx, by latent.
      idx, vals: [tokens, k].
      sources: each [tokens, d_i], d_i a multiple of 128; one, or two of a backward pass.
      backward: see `Backward`.
      finish: see `Finish`.
      slots: entries in flight.
      split: entries per part of a long latent.
    """
    (tokens, k), n = idx.shape, order.start.shape[0]
    split = split or SPLIT
    rows = [fold(s) for s in sources]
    widths = [r.shape[1:] for r in rows]
    row_bytes = sum(s.shape[1] * s.dtype.itemsize for s in sources)
    depth = max(1, min(slots or SLOTS, SHARED_BYTES // row_bytes))
    finish = finish or _write(n, sources)

    def sorted_entries(a):
        return a.astype(jnp.float32).reshape(-1)[order.entry]

    # Inputs of both kernels, by entry: token, value; then the sources; then what a backward pass reads.
    entries = [order.entry // jnp.int32(k), sorted_entries(vals), *rows]
    back = [] if backward is None else [order.entry, sorted_entries(backward.extra), fold(backward.w_dec)]
    dvals_out = [] if backward is None else [result((tokens * k,), jnp.float32)]
    scratch: list[Any] = [plgpu.SMEM((depth, *r.shape[1:]), r.dtype) for r in rows]
    scratch.append(plgpu.Barrier(num_arrivals=len(rows), num_barriers=depth))

    def sum_entries(lo, hi, w_row, entry_refs, back_refs, dvals_refs, buffers):
        """(sums per source, sum of dvals) of entries lo ... hi of one latent."""
        token_ref, val_ref, *row_refs = entry_refs
        *held, arrived = buffers

        def fetch(e, slot):
            for source, buffer in zip(row_refs, held, strict=True):
                plgpu.copy_gmem_to_smem(source.at[token_ref[e]], buffer.at[slot], arrived.at[slot])

        for s in range(depth):

            @pl.when(lo + s < hi)
            def _(s=s):
                fetch(lo + s, s)

        def step(i, so_far):
            sums, bias = so_far
            e, slot = lo + i, lax.rem(i, jnp.int32(depth))
            plgpu.barrier_wait(arrived.at[slot])
            row = [b[slot].astype(jnp.float32) for b in held]
            weights = [val_ref[e]]
            if backward is not None:
                position_ref, extra_ref, _ = back_refs
                dval = jnp.sum(row[0] * w_row) + extra_ref[e]
                if backward.relu:
                    dval = jnp.where(weights[0] > 0, dval, jnp.float32(0))
                dvals_refs[0][position_ref[e]] = dval
                weights, bias = [*weights, dval], bias + dval
            plgpu.commit_smem()  # every lane has read the slot before it is overwritten

            @pl.when(e + depth < hi)
            def _():
                fetch(e + depth, slot)

            return [total + c * r for total, c, r in zip(sums, weights, row, strict=True)], bias

        start = [jnp.zeros(width, jnp.float32) for width in widths], jnp.float32(0)
        return lax.fori_loop(jnp.int32(0), hi - lo, step, start)

    def w_row_of(f, back_refs):
        return None if backward is None else back_refs[2][f].astype(jnp.float32)

    def sum_part(*refs):
        (begin, end, owner), entry_refs, back_refs, sum_refs, (bias_ref,), dvals_refs, buffers = _split(
            refs, 3, len(entries), len(back), len(rows), 1, len(dvals_out)
        )
        c = lax.axis_index("part")
        lo, hi = begin[c], end[c]

        @pl.when(lo < hi)
        def _():
            w_row = w_row_of(owner[c], back_refs)
            sums, bias = sum_entries(lo, hi, w_row, entry_refs, back_refs, dvals_refs, buffers)
            for ref, total in zip(sum_refs, sums, strict=True):
                ref[c] = total
            bias_ref[c] = bias

    parts = cut(order, split)
    n_parts = parts.begin.shape[0]
    part_out = plgpu.kernel(
        sum_part,
        out_type=[*(result((n_parts, *w), jnp.float32) for w in widths), result((n_parts,), jnp.float32), *dvals_out],
        grid=(n_parts,),
        grid_names=("part",),
        scratch_types=scratch,
    )(parts.begin, parts.end, parts.owner, *entries, *back)
    part_sums, part_dvals = part_out[: len(rows) + 1], part_out[len(rows) + 1 :]

    def sum_latent(*refs):
        bounds, entry_refs, back_refs, part_refs, inputs, outputs, (bias_ref,), dvals_refs, buffers = _split(
            refs, 4, len(entries), len(back), len(part_sums), len(finish.inputs), len(finish.outputs), 1, len(dvals_out)
        )
        f = lax.axis_index("latent")
        start, stop, first, after = (ref[f] for ref in bounds)
        w_row = w_row_of(f, back_refs)
        own_stop = jnp.where(first < after, start, stop)  # in parts: nothing is left to do here
        so_far = sum_entries(start, own_stop, w_row, entry_refs, back_refs, dvals_refs, buffers)

        def add(i, so_far):
            sums, bias = so_far
            *rows_of, bias_of = (ref[first + i] for ref in part_refs)
            return [total + row for total, row in zip(sums, rows_of, strict=True)], bias + bias_of

        sums, bias = lax.fori_loop(jnp.int32(0), after - first, add, so_far)
        bias_ref[f] = bias
        finish.body(f, sums, w_row, inputs, outputs)

    out = plgpu.kernel(
        sum_latent,
        out_type=[*finish.outputs, result((n,), jnp.float32), *dvals_out],
        grid=(n,),
        grid_names=("latent",),
        scratch_types=scratch,
    )(order.start, order.stop, parts.first, parts.after, *entries, *back, *part_sums, *finish.inputs)
    outputs, (bias, *dvals) = out[: len(finish.outputs)], out[len(finish.outputs) :]
    if backward is None:
        return Pass(outputs, None, None)
    long = jnp.take(parts.after > parts.first, idx, mode="clip")
    own, in_parts = (a.reshape(idx.shape) for a in (*dvals, *part_dvals))
    there = (idx >= 0) & (idx < n)
    return Pass(outputs, bias, jnp.where(there, jnp.where(long, in_parts, own), jnp.float32(0)))


def _write(n: int, sources: Sequence[Array]) -> Finish:
    """Write the sums."""

    def body(f, sums, w_row, inputs, outputs):
        del w_row, inputs
        for ref, total in zip(outputs, sums, strict=True):
            ref[f] = total

    return Finish(body, (), [result((n, *fold(s).shape[1:]), jnp.float32) for s in sources])


def _split(refs: Sequence[Any], *sizes: int) -> list[list[Any]]:
    """refs in lists of these sizes, and the rest."""
    parts, at = [], 0
    for size in sizes:
        parts.append(list(refs[at : at + size]))
        at += size
    return [*parts, list(refs[at:])]
