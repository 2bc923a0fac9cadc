# SPDX-License-Identifier: Apache-2.0
"""Encode from XLA ops: matmul and selection, one block of tokens at a time, so that pre-activations stay in cache.

A block is reused, where `[tokens, n_latents]` would be fresh memory at every step: on a CPU that alone is worth a fifth
of the time (2,048 x 256 x 8,192: 130 ms whole, 100 ms in blocks, of which the matmul is 80). There a selection runs on
one core, so that of a block is cut in parts that run side by side (6 % of a TopK dictionary's step on two cores).
"""

import functools
import math
from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from ..topk.xla import topk


class Block(NamedTuple):
    """Pre-activations at a time, in bytes."""

    multiplied: int
    """By one matmul: about an outer cache; enough rows to fill an accelerator."""
    selected: int
    """By one selection, about."""


BLOCKS: Final = {"cpu": Block(1 << 24, 1 << 22), "default": Block(1 << 30, 1 << 30)}
"""By platform."""


def encode_topk(x: Array, w: Array, b: Array, k: int, pre_dtype: DTypeLike = jnp.float32) -> tuple[Array, Array]:
    """Values before ReLU (float32) and indices, descending. Two-dimensional x."""

    def select(pre):
        vals, idx = topk(pre.astype(pre_dtype), k)
        return vals.astype(jnp.float32), idx

    return encode(x, w, b, select)


def encode(x: Array, w: Array, b: Array, select: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Array]:
    """select(x w^T + b), one block of tokens at a time. select: float32 [rows, n_latents] -> two of [rows, k]."""
    by_platform = {name: functools.partial(_in_blocks, select=select, block=block) for name, block in BLOCKS.items()}
    return lax.platform_dependent(x, w, b, **by_platform)


def encode_topk_and_pre(
    x: Array, w: Array, b: Array, k: int, pre_dtype: DTypeLike = jnp.float32
) -> tuple[Array, Array, Array]:
    """The same and all pre-activations, [tokens, n_latents] of pre_dtype."""
    pre = _pre(x, w, b).astype(pre_dtype)
    vals, idx = topk(pre, k)
    return vals.astype(jnp.float32), idx, pre


def _pre(x: Array, w: Array, b: Array) -> Array:
    # An accelerator's default for float32 operands is a few bits (TF32, one bfloat16 pass): another ranking.
    exact = x.dtype == jnp.float32 and jax.config.jax_default_matmul_precision is None
    precision = lax.Precision.HIGHEST if exact else None
    pre = lax.dot_general(x, w, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
    return pre + b.astype(jnp.float32)[None]


def block_rows(tokens: int, n_latents: int, n_bytes: int) -> int:
    """Tokens per block: equal blocks, of at most as many rows as the last power of two that fits `n_bytes`.

    Example:
      >>> block_rows(2048, 12288, 1 << 24), block_rows(300, 12288, 1 << 24), block_rows(3, 12288, 1 << 24)
      (256, 152, 3)
    """
    most = 2 ** int(math.log2(max(8, n_bytes // (4 * n_latents))))
    rows = -(-tokens // -(-tokens // most))
    return rows if rows == tokens else -(-rows // 8) * 8


def _in_blocks(
    x: Array, w: Array, b: Array, *, select: Callable[[Array], tuple[Array, Array]], block: Block
) -> tuple[Array, Array]:
    rows = min(block_rows(x.shape[0], w.shape[0], block.multiplied), x.shape[0])
    step = -(-rows // max(1, round(rows * w.shape[0] * 4 / block.selected)))

    def one(part):
        pre = _pre(part, w, b)
        selected = [select(pre[start : start + step]) for start in range(0, rows, step)]
        return jax.tree.map(lambda *a: jnp.concatenate(a), *selected)

    return map_blocks(one, x, rows)


def map_blocks(f: Callable[[Array], tuple[Array, Array]], x: Array, rows: int) -> tuple[Array, Array]:
    """f of `rows` rows of x at a time; the last block is filled up with zeros. f: [rows, d] -> two of [rows, k]."""
    tokens, d = x.shape
    blocks = -(-tokens // rows)
    padded = jnp.pad(x, ((0, blocks * rows - tokens), (0, 0))).reshape(blocks, rows, d)
    vals, idx = f(padded[0]) if blocks == 1 else lax.map(f, padded)
    return vals.reshape(-1, vals.shape[-1])[:tokens], idx.reshape(-1, idx.shape[-1])[:tokens]
