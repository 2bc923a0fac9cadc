# SPDX-License-Identifier: Apache-2.0
"""Encoder matmul and selection in one TPU kernel: pre-activations go from the matrix unit into bins (bins.py).

Matmul and inserts are one straight-line block, scheduled together: as compiled for v5e, 256 rows x 1,024 latents take
9,200 instruction bundles at d = 2,304 and 4,100 at 768, where the matmul alone takes 9,216 and 3,072 cycles (v6e: 3,900
and 2,300, and 2,304 and 768). w is read once per 1,024 rows. The k best of 64 rows take 9,000 bundles at k = 32.
"""

import math
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from ..topk.bins import (
    LANES,
    VMEM_BYTES,
    Plan,
    best,
    block_rows,
    clear,
    for_rows,
    insert,
    padded,
    plan,
    refuses_bins,
    repaired,
)
from ..topk.bins import results as outputs
from ..topk.bins import state as scratch
from ..topk.order import from_key, to_key
from ..vary import vary, varying
from . import xla

STRIP: Final = 256
"""Rows of one unrolled step, and latents of one product: v6e's matrix unit is 256 wide."""
_SPARE_BYTES: Final = 6 << 20
"""What the compiler spills, and products on their way to the bins."""


class Blocks(NamedTuple):
    """What a step of the grid works on."""

    rows: int
    together: int
    """Tiles of latents."""
    parts: int
    """Of d."""


def _plan(n: int, k: int, tokens: int) -> Plan | None:
    """Operations hide behind the matmul, so few bins first: then many rows fit, and w is read less often."""
    return plan(n, k, tokens, among=(256, 512)) or plan(n, k, tokens)


def blocks_for(tokens: int, d: int, n: int, k: int, itemsize: int, shape: Plan) -> Blocks | None:
    """The first that fit VMEM of: 512 rows or more, since w is read once per block of them; few parts; two tiles.

    Example:
      >>> blocks_for(8192, 2304, 131072, 32, 2, Plan(512, 4)), blocks_for(8192, 32768, 131072, 32, 2, Plan(512, 4))
      (Blocks(rows=1024, together=2, parts=1), Blocks(rows=512, together=1, parts=4))
    """
    for most in ((1024, 512), (256, 128, 64, 16)):
        for parts in (p for p in range(1, d // LANES + 1) if d % (p * LANES) == 0):
            for rows in (block_rows(tokens, m) for m in most):
                for together in (t for t in (2, 1) if n % (t * shape.bins) == 0):
                    blocks = Blocks(rows, together, parts)
                    if _bytes(blocks, d, k, itemsize, shape) <= VMEM_BYTES - _SPARE_BYTES:
                        return blocks
    return None


def _bytes(blocks: Blocks, d: int, k: int, itemsize: int, shape: Plan) -> int:
    rows, together, parts = blocks
    width = shape.bins * together
    buffers_of_x = 1 if parts == 1 else 2
    operands = (buffers_of_x * rows + 2 * width) * (d // parts) * itemsize
    sums = 0 if parts == 1 else 4 * rows * width
    return operands + sums + rows * (shape.row_bytes + 4 * 4 * padded(k)) + 4 * 64 * shape.bins


def refuses(x: Array, w: Array, b: Array, k: int, pre_dtype: DTypeLike = jnp.float32) -> str | None:
    """Why this call cannot be taken, or None."""
    del b
    n, d = w.shape
    tokens = math.prod(x.shape[:-1])
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"x and w are {x.dtype}; it takes float32 and bfloat16"
    if pre_dtype not in (jnp.float32, jnp.bfloat16):
        return f"pre_dtype is {jnp.dtype(pre_dtype)}; it takes float32 and bfloat16"
    if d % LANES:
        return f"d = {d} is no multiple of {LANES}"
    shape = _plan(n, k, tokens)
    if shape is None:
        return refuses_bins(n, k, tokens)
    if blocks_for(max(1, tokens), d, n, k, x.dtype.itemsize, shape) is None:
        return f"bins for k = {k} do not fit the kernel's memory"
    return None


def encode_topk(
    x: Array,
    w: Array,
    b: Array,
    k: int,
    pre_dtype: DTypeLike = jnp.float32,
    *,
    bins: int | None = None,
    levels: int | None = None,
    rows: int | None = None,
    together: int | None = None,
) -> tuple[Array, Array]:
    """Values before ReLU (float32) and indices, descending. Two-dimensional x.

    Sums of float32 operands are those of float32 on a TPU too, where XLA's own default is bfloat16.

    Args:
      x, w, b, k, pre_dtype: see `jaxneuro_kernels.encode_topk`.
      bins, levels: see bins.py; default: `_plan`.
      rows, together: see `Blocks`; default: `blocks_for`.
    """

    def again(part):
        with jax.default_matmul_precision("highest"):
            return xla.encode_topk(part, w, b, k, pre_dtype)

    config = {"bins": bins, "levels": levels, "rows": rows, "together": together}
    return repaired(*select(x, w, b, k, pre_dtype, **config), x, again)


def select(
    x: Array,
    w: Array,
    b: Array,
    k: int,
    pre_dtype: DTypeLike = jnp.float32,
    *,
    bins: int | None = None,
    levels: int | None = None,
    rows: int | None = None,
    together: int | None = None,
    parts: int | None = None,
) -> tuple[Array, Array]:
    """(values, indices) as `encode_topk`, indices -1 in rows that have to be computed in another way."""
    tokens, d = x.shape
    n = w.shape[0]
    shape = _plan(n, k, tokens)
    assert shape is not None, (n, k)
    shape = Plan(bins or shape.bins, levels or shape.levels)
    blocks = blocks_for(tokens, d, n, k, x.dtype.itemsize, shape)
    assert blocks is not None, (d, n, k)
    blocks = Blocks(rows or blocks.rows, together or blocks.together, parts or blocks.parts)
    rows, together, parts = blocks
    width, part, strip = together * shape.bins, d // parts, min(rows, STRIP)
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT

    def kernel(x_ref, w_ref, b_ref, key_ref, index_ref, keys, tiles, taken, *sums):
        t, p = pl.program_id(1), pl.program_id(2)

        @pl.when((t == 0) & (p == 0))
        def _():
            clear(keys, tiles, n // shape.bins)

        def multiply(at, latents):
            return lax.dot_general(
                x_ref[at],
                w_ref[latents],
                (((1,), (1,)), ((), ())),
                precision=precision,
                preferred_element_type=jnp.float32,
            )

        def offer(at, product):
            for c in range(0, shape.bins, STRIP):
                fresh = []
                for j in range(together):
                    latents = pl.ds(j * shape.bins + c, STRIP)
                    pre = product(at, latents) + b_ref[:, latents]
                    fresh.append((to_key(pre.astype(pre_dtype)), t * together + j))
                insert(keys, tiles, at, c, fresh)

        if parts == 1:
            for_rows(rows, strip, lambda at: offer(at, multiply))
        else:
            (total,) = sums

            def add(at):
                for c in range(0, width, STRIP):
                    here = at, pl.ds(c, STRIP)
                    total[here] = jnp.where(p == 0, 0.0, total[here]) + multiply(*here)

            for_rows(rows, strip, add)

            @pl.when(p == parts - 1)
            def _():
                for_rows(rows, strip, lambda at: offer(at, lambda *here: total[here]))

        @pl.when((t == n // width - 1) & (p == parts - 1))
        def _():
            best(keys, tiles, taken, key_ref, index_ref, k, n)

    x, w, b = (vary(a, varying(x, w, b)) for a in (x, w, b))
    once = {"pipeline_mode": pl.Buffered(1)} if parts == 1 else {}
    out_specs, out_shape = outputs(rows, tokens, k, x)
    key, index = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(tokens, rows), n // width, parts),
        in_specs=[
            pl.BlockSpec((rows, part), lambda i, t, p: (i, p), **once),
            pl.BlockSpec((width, part), lambda i, t, p: (t, p)),
            pl.BlockSpec((1, width), lambda i, t, p: (0, t)),
        ],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=scratch(rows, shape) + [pltpu.VMEM((rows, width), jnp.float32)] * (parts > 1),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
    )(x, w, b.astype(jnp.float32)[None])
    return from_key(key[:, :k]), index[:, :k]
