# SPDX-License-Identifier: Apache-2.0
"""Encoding on a Hopper GPU: a matmul whose epilogue also writes the maximum of every group of latents.

The maxima are what makes the exact selection cheap: it reads n / group of them and k groups per token instead of every
pre-activation (topk/mosaic_gpu.py). Keeping running candidates in the matmul instead would not pay: at k = 32 of
131,072, a tile of 128 tokens x 256 latents still holds 8 that are among some token's best.

The matmul is persistent and warp-specialised: one warpgroup copies tiles, two multiply, stacked along the tokens. Per
tile the maxima cost about 150 instructions a thread, 1-2 % at d = 768. A NaN reaches the maximum of its group, and is
positive, as the matrix units make them: it ranks first.
"""

import functools
from typing import Final, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from ..hopper import SHARED_BYTES, multiprocessors, result, swizzled
from ..topk import mosaic_gpu as selection
from .xla import block_rows, map_blocks

BLOCK_BYTES: Final = 1 << 30
"""Pre-activations of one block of tokens."""
STORED: Final = 128
"""Bytes of a row of pre-activations per store: one swizzled tile."""


class Tiles(NamedTuple):
    """Configuration of the matmul."""

    bm: int = 128
    """Tokens of a tile."""
    bn: int = 256
    """Latents of a tile."""
    bk: int = 64
    """Width of a step along d."""
    stages: int = 4
    """Steps in flight."""
    band: int = 8
    """Token tiles that are walked together, so that a tile of w is read once per band."""


def refuses(x: Array, w: Array, b: Array, k: int, pre_dtype: DTypeLike) -> str | None:
    """Why this call cannot be taken, or None."""
    del b
    n, d = w.shape
    if x.dtype not in (jnp.bfloat16, jnp.float16):
        return f"x is {x.dtype}; its matmul takes bfloat16 and float16"
    if jnp.dtype(pre_dtype) not in (jnp.float32, jnp.bfloat16):
        return f"pre_dtype is {jnp.dtype(pre_dtype)}; it takes float32 and bfloat16"
    if d % Tiles().bk or n % Tiles().bn:
        return f"d = {d} and n_latents = {n} are no multiples of {Tiles().bk} and {Tiles().bn}"
    if _group(n, k, Tiles().bn) is None:
        return f"no group of latents divides n_latents = {n} so that k = {k} of them fit the registers"
    return None


def _group(n: int, k: int, bn: int) -> int | None:
    group = selection.group_size(n, k)
    return group if group is not None and bn % group == 0 else None


def encode_topk(
    x: Array,
    w: Array,
    b: Array,
    k: int,
    pre_dtype: DTypeLike = jnp.float32,
    *,
    group: int | None = None,
    **tiles: int,
) -> tuple[Array, Array]:
    """Values before ReLU (float32) and indices, descending. Two-dimensional x.

    Args:
      group: latents per maximum.
      **tiles: of `Tiles`, and `sms`, the multiprocessors used.
    """
    n = w.shape[0]
    sms = tiles.pop("sms", 0) or multiprocessors()
    config = fitting(Tiles(**tiles), pre_dtype)
    group = group or _group(n, k, config.bn)
    assert group is not None, (n, k)

    def one(part):
        pre, maxima = matmul(part, w, b, group, pre_dtype, config, sms)
        return selection.select(pre, maxima.T, k, group)

    rows = -(-block_rows(x.shape[0], n, BLOCK_BYTES) // config.bm) * config.bm
    return map_blocks(one, x, rows)


def fitting(tiles: Tiles, pre_dtype: DTypeLike) -> Tiles:
    """These tiles with as many stages as fit the shared memory.

    Example:
      >>> fitting(Tiles(stages=9), jnp.float32).stages
      4
    """
    step = (tiles.bm + tiles.bn) * tiles.bk * 2
    stored = 2 * tiles.bm * STORED
    return tiles._replace(stages=max(1, min(tiles.stages, (SHARED_BYTES - stored) // step)))


def matmul(
    x: Array, w: Array, b: Array, group: int, pre_dtype: DTypeLike, tiles: Tiles, sms: int
) -> tuple[Array, Array]:
    """(x w^T + b [tokens, n] in pre_dtype, float32 maxima [n / group, tokens] of what was rounded to it).

    x: [tokens, d], w: [n, d], b: [n]; tokens, n and d are multiples of the tile's sides.
    """
    (tokens, d), n = x.shape, w.shape[0]
    bm, bn, bk, stages, band = tiles
    wm = bm // 2  # a multiplying warpgroup's tokens
    nm, nn, nk = tokens // bm, n // bn, d // bk
    pre_dtype = jnp.dtype(pre_dtype)
    stored = STORED // pre_dtype.itemsize
    swizzle = plgpu.find_swizzle(bk * 16)
    operand, output = swizzled(swizzle // 2, swizzle), swizzled(stored, STORED)

    def pipeline(body, context):
        return plgpu.emit_pipeline_warp_specialized(
            body,
            grid=(nk,),
            memory_registers=40,
            in_specs=[
                plgpu.BlockSpec((bm, bk), lambda k: (0, k), transforms=operand),
                plgpu.BlockSpec((bn, bk), lambda k: (0, k), transforms=operand),
            ],
            wg_axis="wg",
            num_compute_wgs=2,
            max_concurrent_steps=stages,
            compute_context=context,
        )

    def kernel(x_ref, w_ref, b_ref, pre_ref, maxima_ref):
        def nothing(*_):
            return None

        @functools.partial(
            pl.run_scoped,
            tiles=pipeline(nothing, nothing).get_allocations(x_ref, w_ref),
            out=plgpu.SMEM((2, 2, wm, stored), pre_dtype, transforms=output),
            collective_axes="wg",
        )
        def scope(tiles, out):
            wg = lax.axis_index("wg")

            @plgpu.nd_loop((nm * nn,), collective_axes="sm")
            def tile(info):
                i, j = plgpu.planar_snake(info.index[0], (nm, nn), 0, band)
                mine = pl.ds(i * bm + wg * wm, wm)

                def multiply(_, x_tile, w_tile, total):
                    plgpu.wgmma(total, x_tile.at[pl.ds(wg * wm, wm)], w_tile.transpose((1, 0)))
                    plgpu.wgmma_wait(0)
                    return total

                def epilogue(run):
                    @functools.partial(pl.run_scoped, total=plgpu.ACC((wm, bn), jnp.float32))
                    def _(total):
                        run(total)
                        bias = b_ref.at[pl.ds(j * bn, bn)]
                        bias = plgpu.load(bias, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
                        z = total[...] + lax.broadcast_in_dim(bias, (wm, bn), (1,))
                        rounded = z.astype(pre_dtype)
                        z = rounded.astype(jnp.float32)
                        for g in range(bn // group):
                            largest = jnp.max(z[:, g * group : (g + 1) * group], axis=1)
                            maxima_ref[j * (bn // group) + g, mine] = largest
                        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                        for e in range(bn // stored):
                            plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                            out[wg, e % 2] = rounded[:, e * stored : (e + 1) * stored]
                            plgpu.commit_smem()
                            target = pre_ref.at[mine, pl.ds(j * bn + e * stored, stored)]
                            plgpu.copy_smem_to_gmem(out.at[wg, e % 2], target)

                rows, columns = pl.ds(i * bm, bm), pl.ds(j * bn, bn)
                pipeline(multiply, epilogue)(x_ref.at[rows, :], w_ref.at[columns, :], allocations=tiles)

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    return plgpu.kernel(
        kernel,
        # The maxima lie with their tokens contiguous: that is how a warpgroup holds them.
        out_type=[result((tokens, n), pre_dtype), result((n // group, tokens), jnp.float32)],
        grid=(min(sms, nm * nn),),
        grid_names=("sm",),
        num_threads=3,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(x, w, b.astype(jnp.float32))
