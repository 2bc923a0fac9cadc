# SPDX-License-Identifier: Apache-2.0
"""The sparse products and the backward pass for GPUs before Hopper, through Pallas' Triton lowering.

JAX has deprecated that lowering (0.11) and is going to remove it. So everything is in this file: to remove the backend,
delete it, its tests and the rows "triton" of the tables. Not dispatched unless measured to win on the device, as every
kernel; top-k has none: XLA's own selection runs on these GPUs (topk/xla.py).

A program is one token, or one latent, and a block of at most BLOCK columns. Sums have one owner and one order.
"""

import functools
import re
from typing import Final

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from .dispatch import target
from .hopper import result
from .sparse_decode.segments import by_latent, cut, sums_of_rows

BLOCK: Final = 1024
"""Columns of a program."""
SPLIT: Final = 256
"""Entries of one latent that one program sums."""
INTERPRET = False
"""Tests set it: Pallas' interpreter instead of a GPU."""


def refuses(a: Array, idx: Array, b: Array, *rest: Array) -> str | None:
    """Why this call cannot be taken, or None."""
    del idx
    operands = [x for x in (a, b, *rest) if hasattr(x, "dtype")]
    if any(x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16) for x in operands):
        return f"operands are {', '.join(str(x.dtype) for x in operands)}; it takes float32, bfloat16 and float16"
    if re.search(r"Blackwell|\bG?B[123]00\b", target().kind):
        return f"it is not tried on {target().kind}"
    return None


def _grid(d: int) -> tuple[int, int]:
    """(columns per program, programs) of a row."""
    block = min(1 << (d - 1).bit_length(), BLOCK)
    return block, -(-d // block)


def _call(kernel, out, grid: tuple[int, ...], warps: int | None):
    params = triton.CompilerParams(num_warps=warps or 4)
    return pl.pallas_call(kernel, out_shape=out, grid=grid, interpret=INTERPRET, compiler_params=params)


def _row(ref, row, columns, d: int) -> Array:
    return triton.load(ref.at[row, columns], mask=columns < d, other=0).astype(jnp.float32)


def sparse_decode(vals: Array, idx: Array, w: Array, *, warps: int | None = None) -> Array:
    """See sparse_decode/reference.py."""
    (tokens, k), (n, d) = idx.shape, w.shape
    block, blocks = _grid(d)

    def kernel(vals_ref, idx_ref, w_ref, out_ref):
        t, columns = pl.program_id(0), pl.program_id(1) * block + jnp.arange(block, dtype=jnp.int32)

        def add(j, total):
            return total + vals_ref[t, j] * _row(w_ref, jnp.clip(idx_ref[t, j], 0, n - 1), columns, d)

        total = lax.fori_loop(0, k, add, jnp.zeros((block,), jnp.float32))
        triton.store(out_ref.at[t, columns], total, mask=columns < d)

    call = _call(kernel, result((tokens, d), jnp.float32), (tokens, blocks), warps)
    return call(vals.astype(jnp.float32), idx, w)


def gather_dot(x: Array, idx: Array, w: Array, *, warps: int | None = None) -> Array:
    """See sparse_decode/reference.py."""
    (tokens, k), (n, d) = idx.shape, w.shape
    block, blocks = _grid(d)

    def kernel(x_ref, idx_ref, w_ref, out_ref):
        t, j = pl.program_id(0), pl.program_id(1)
        row = jnp.clip(idx_ref[t, j], 0, n - 1)

        def add(b, total):
            columns = b * block + jnp.arange(block, dtype=jnp.int32)
            return total + _row(x_ref, t, columns, d) * _row(w_ref, row, columns, d)

        out_ref[t, j] = jnp.sum(lax.fori_loop(0, blocks, add, jnp.zeros((block,), jnp.float32)))

    return _call(kernel, result((tokens, k), jnp.float32), (tokens, k), warps)(x, idx, w)


def row_sum(vals: Array, idx: Array, x: Array, n_latents: int, *, warps: int | None = None) -> Array:
    """See sparse_decode/reference.py. Latents with more than SPLIT entries are summed in parts, then the parts."""
    order = by_latent(idx, n_latents)
    parts, d = cut(order, SPLIT), x.shape[1]
    token, value = order.entry // jnp.int32(idx.shape[1]), vals.astype(jnp.float32).reshape(-1)[order.entry]
    block, blocks = _grid(d)
    n_parts = parts.begin.shape[0]

    def sum_entries(token_ref, val_ref, x_ref, lo, hi, columns):
        def add(e, total):
            return total + val_ref[e] * _row(x_ref, token_ref[e], columns, d)

        return lax.fori_loop(lo, hi, add, jnp.zeros((block,), jnp.float32))

    def sum_part(begin_ref, end_ref, token_ref, val_ref, x_ref, out_ref):
        c, columns = pl.program_id(0), pl.program_id(1) * block + jnp.arange(block, dtype=jnp.int32)
        total = sum_entries(token_ref, val_ref, x_ref, begin_ref[c], end_ref[c], columns)
        triton.store(out_ref.at[c, columns], total, mask=columns < d)

    call = _call(sum_part, result((n_parts, d), jnp.float32), (n_parts, blocks), warps)
    partial = call(parts.begin, parts.end, token, value, x)

    def sum_latent(start_ref, stop_ref, first_ref, after_ref, token_ref, val_ref, x_ref, part_ref, out_ref):
        f, columns = pl.program_id(0), pl.program_id(1) * block + jnp.arange(block, dtype=jnp.int32)
        first, after = first_ref[f], after_ref[f]
        stop = jnp.where(first < after, start_ref[f], stop_ref[f])  # in parts: no entry is left to sum here
        own = sum_entries(token_ref, val_ref, x_ref, start_ref[f], stop, columns)
        total = lax.fori_loop(first, after, lambda c, total: total + _row(part_ref, c, columns, d), own)
        triton.store(out_ref.at[f, columns], total, mask=columns < d)

    call = _call(sum_latent, result((n_latents, d), jnp.float32), (n_latents, blocks), warps)
    return call(order.start, order.stop, parts.first, parts.after, token, value, x, partial)


def sae_backward(
    vals: Array,
    idx: Array,
    g: Array,
    x: Array,
    w_dec: Array,
    extra: Array,
    relu: bool = True,
    *,
    warps: int | None = None,
) -> tuple[Array, Array, Array, Array]:
    """See sae_backward/reference.py."""
    n = w_dec.shape[0]
    dvals = gather_dot(g, idx, w_dec, warps=warps) + extra.astype(jnp.float32)
    dvals = jnp.where(vals > 0, dvals, jnp.float32(0)) if relu else dvals
    sums = functools.partial(row_sum, n_latents=n, warps=warps)
    (bias,) = sums_of_rows(idx, n, ((dvals, jnp.ones((idx.shape[0], 1), jnp.float32)),))
    return dvals, sums(vals, idx, g), sums(dvals, idx, x), bias[:, 0]
