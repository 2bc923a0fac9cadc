# SPDX-License-Identifier: Apache-2.0
"""Attention kernels of others, called for the same numbers: cuDNN's, splash (TPU) and tokamax.

Each takes queries that are scaled already, and what a query sees as `attention.Visible`; each has a function that says
why it cannot take these queries, or None. Where a query sees no key, which happens at padding only, the result is
finite and means nothing, as everywhere.
"""

import functools
import importlib.util
import logging
from typing import TYPE_CHECKING, Any, Final, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

if TYPE_CHECKING:
    from .attention import Visible

_log = logging.getLogger("jaxneuro.models")
_BLOCKS: Final = (512, 256, 128)
"""Tiles of splash, the largest that fits."""


def cudnn(
    q: Array, k: Array, v: Array, visible: "Visible", softcap: float | None, place: Any,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:  # fmt: skip
    """`jax.nn.dot_product_attention`, with cuDNN asked for: by itself it would be XLA's."""
    run = functools.partial(jax.nn.dot_product_attention, q, k, v, scale=1.0, implementation=implementation)
    if visible.mask is None and visible.window is None:
        return run(is_causal=visible.causal)  # a mask would be read as a [batch, 1, query, key] bias
    pairs = visible.pairs(jnp.arange(q.shape[1]), jnp.arange(k.shape[1]))
    return run(mask=None if pairs is None else pairs[:, None])


def cudnn_refuses(q: Array) -> str | None:
    """cuDNN's conditions: 16 bits, head size a multiple of 8 up to 128 (256 only on newer cards)."""
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes 16-bit values, these are {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"it takes heads of a multiple of 8 up to 128, these are of {q.shape[-1]}"
    return None if _cudnn_works() else "it does not run with this driver, CUDA and cuDNN (the log says more)"


@functools.cache
def _cudnn_works() -> bool:
    """Tried once per process: some combinations of CUDA and cuDNN refuse the kernel (jax issue 32430)."""
    try:
        with jax.ensure_compile_time_eval():
            x = jnp.ones((1, 64, 1, 64), jnp.bfloat16)
            jax.block_until_ready(jax.nn.dot_product_attention(x, x, x, implementation="cudnn"))
    except Exception as e:  # whatever the driver, cuDNN or XLA says
        _log.warning("cuDNN attention does not run here, using XLA's instead: %s", e)
        return False
    return True


def splash(
    q: Array, k: Array, v: Array, visible: "Visible", softcap: float | None, place: Any, *, interpret: bool = False
) -> Array:
    """JAX's splash attention: what no query sees is never computed. Padding only sees padding."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    length, heads = q.shape[1:3]
    block = next(b for b in _BLOCKS if length % b == 0)
    backward: dict[str, Any] = {"block_q_dkv": block, "block_kv_dkv": block, "block_q_dq": block, "block_kv_dq": block}
    seen = (library.CausalMask if visible.causal else library.FullMask)((length, length))
    kernel: Any = library.make_splash_mha_single_device(
        library.MultiHeadMask([seen] * heads),
        block_sizes=library.BlockSizes(block_q=block, block_kv=block, **backward),
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    real = None if visible.mask is None else visible.mask.astype(jnp.int32)
    segments = None if real is None else library.SegmentIds(real, real)
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    return jax.vmap(kernel)(q, k, v, segments).swapaxes(1, 2)


def splash_refuses(q: Array) -> str | None:
    """Its tiles are of 128 positions at least."""
    return f"it takes a multiple of 128 positions, these are {q.shape[1]}" if q.shape[1] % _BLOCKS[-1] else None


def tokamax(q: Array, k: Array, v: Array, visible: "Visible", softcap: float | None, place: Any) -> Array:
    """tokamax's choice of its kernels. It may give NaN where a query sees nothing: padding sees itself here."""
    import tokamax as library

    options: dict[str, Any] = {"scale": 1.0, "logits_soft_cap": softcap}
    if visible.mask is None and visible.window is None:
        return library.dot_product_attention(q, k, v, is_causal=visible.causal, **options)
    at = jnp.arange(q.shape[1])
    pairs = visible.pairs(at, at)
    assert pairs is not None
    return library.dot_product_attention(q, k, v, mask=(pairs | (at[:, None] == at[None]))[:, None], **options)


def tokamax_refuses(q: Array) -> str | None:
    """Whether it is there."""
    found = importlib.util.find_spec("tokamax")
    return None if found else "tokamax is not installed: pip install tokamax"
