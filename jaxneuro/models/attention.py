# SPDX-License-Identifier: Apache-2.0
"""Scaled dot-product attention in three forms with one meaning; the caller never chooses.

| form | used when |
|---|---|
| `_explicit` | somebody wants `attn.scores` or `attn.pattern`: both [batch, head, query, key] exist |
| `_cudnn` | 16-bit values on an NVIDIA GPU |
| `_chunked` | otherwise: queries in chunks whose scores stay in cache, keys above the diagonal never touched |

`_chunked` takes 15 ms where jax.nn.dot_product_attention takes 54 (forward) and 96 where it takes 140 (gradient),
on two CPU cores at batch 16, 256 positions, 6 heads of 32 in float32.
"""

import functools
import logging
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..taps import tap, wants
from .quantised import matmul

_log = logging.getLogger("jaxneuro.models")

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of a masked pair: finite, so that a row with no visible key is uniform and not NaN (as in transformers)."""


class Visible(NamedTuple):
    """Which keys a query may look at: the conjunction of all that is not None."""

    causal: bool
    window: Int[Array, ""] | None
    """How far back a query sees: query - key < window."""
    mask: Bool[Array, "batch key"] | None
    start: Int[Array, ""] | Int[Array, "batch"] | int | None = None
    """Which key is the first query's own, with a cache; None: there are as many keys as queries."""
    bias: Float[Array, "*batch head query key"] | None = None
    """Added to the scaled scores: T5's relative positions."""

    def pairs(self, queries: Int[Array, "q"], keys: Int[Array, "k"]) -> Bool[Array, "#batch q k"] | None:
        """True where a query sees a key; None when every pair is visible."""
        start = jnp.asarray(0 if self.start is None else self.start, jnp.int32).reshape(-1, 1, 1)
        distance = start + queries[:, None] - keys[None, :]
        found = []
        if self.causal:
            found.append(distance >= 0)
        if self.window is not None:
            found.append(distance < self.window)
        if self.mask is not None:
            found.append(self.mask[:, None, : keys.shape[0]])
        out = None
        for f in found:
            out = f if out is None else out & f
        return out


def attend(
    q: Float[Array, "batch pos head d_head"],
    k: Float[Array, "batch pos kv_head d_head"],
    v: Float[Array, "batch pos kv_head d_head"],
    visible: Visible,
    scale: Float[Array, ""] | float,
    layer: Int[Array, ""],
    *,
    softcap: float | None = None,
    site: str = "blocks.attn",
) -> Float[Array, "batch pos head d_head"]:
    """softmax(scale q k^T + bias + mask) v per head, softmax in float32; query head n uses key head n // (N/K).

    softcap: scores s become softcap * tanh(s / softcap), before bias and mask.
    """
    q = q * jnp.asarray(scale, q.dtype)
    if wants(f"{site}.scores", f"{site}.pattern"):
        return _explicit(q, k, v, visible, layer, softcap, site)
    if softcap is None and visible.start is None and visible.bias is None and _cudnn_takes(q):
        return jax.lax.platform_dependent(
            q,
            k,
            v,
            cuda=lambda q, k, v: _cudnn(q, k, v, visible),
            default=lambda q, k, v: _chunked(q, k, v, visible, None),
        )
    return _chunked(q, k, v, visible, softcap)


def project(x: Array, w: Any, b: Array | None) -> Float[Array, "batch pos head d_head"]:
    """A linear map to heads."""
    y = matmul(x, w)
    return y if b is None else y + b.astype(y.dtype)


def written(
    w: dict[str, Any], z: Array, layer: Array, at: Any, site: str = "blocks.attn"
) -> Float[Array, "batch pos d_model"]:
    """What the heads write to the residual stream, each from its mixture z of values."""
    z = tap(z, f"{site}.z", layer=layer, pos=at, axes=("batch", "pos", "head", "d_head"))
    if wants(f"{site}.result"):
        each = jnp.einsum("btnh,nhd->btnd", z, w["wo"].astype(z.dtype))
        axes = ("batch", "pos", "head", "d_model")
        out = tap(each, f"{site}.result", layer=layer, pos=at, axes=axes).sum(2)
    else:
        out = matmul(z.reshape(*z.shape[:2], -1), w["wo"], inputs=2)
    return out if "bo" not in w else out + w["bo"].astype(out.dtype)


def _scores(
    q: Array, k: Array, pairs: Array | None, softcap: float | None, bias: Array | None
) -> Float[Array, "batch kv_head group q k"]:
    b, t, n, h = q.shape
    grouped = q.reshape(b, t, k.shape[2], n // k.shape[2], h)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.reshape(-1, *scores.shape[1:])
    return scores if pairs is None else jnp.where(pairs[:, None, None], scores, MASKED)


def _explicit(q: Array, k: Array, v: Array, visible: Visible, layer: Array, softcap: float | None, site: str) -> Array:
    (b, t, n, h), s = q.shape, k.shape[1]
    place: Any = {"layer": layer, "pos": visible.start, "axes": ("batch", "head", "query", "key")}
    scores = _scores(q, k, visible.pairs(jnp.arange(t), jnp.arange(s)), softcap, visible.bias).reshape(b, n, t, s)
    scores = tap(scores, f"{site}.scores", **place)
    pattern = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    pattern = tap(pattern, f"{site}.pattern", **place)
    grouped = pattern.reshape(b, v.shape[2], -1, t, s)
    return jnp.einsum("bkgts,bskh->btkgh", grouped, v).reshape(b, t, n, h)


def _chunked(q: Array, k: Array, v: Array, visible: Visible, softcap: float | None = None) -> Array:
    length = q.shape[1]
    chunk = -(-length // max(1, min(4, length // 64)))  # at most 4 chunks (compile time), at least 64 rows each
    outs = []
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        last = stop if visible.causal and visible.start is None else k.shape[1]
        pairs = visible.pairs(jnp.arange(start, stop), jnp.arange(last))
        bias = None if visible.bias is None else visible.bias[..., start:stop, :last]
        outs.append(_softmax_values(_scores(q[:, start:stop], k[:, :last], pairs, softcap, bias), v[:, :last]))
    return jnp.concatenate(outs, axis=1)


def _softmax_values(scores: Array, v: Array) -> Array:
    # The row sum divides the [.., h] result instead of the [.., k] weights: less to write.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bkgts,bskh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    b, kv, group, t, h = out.shape
    return out.astype(v.dtype).transpose(0, 3, 1, 2, 4).reshape(b, t, kv * group, h)


def _cudnn_takes(q: Array) -> bool:
    # cuDNN's conditions: 16-bit values, head size a multiple of 8 up to 128 (256 only on newer cards).
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return fits and jax.default_backend() == "gpu" and _cudnn_works()


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


def _cudnn(q: Array, k: Array, v: Array, visible: Visible, implementation: Literal["cudnn", "xla"] = "cudnn") -> Array:
    run = functools.partial(jax.nn.dot_product_attention, q, k, v, scale=1.0, implementation=implementation)
    if visible.mask is None and visible.window is None:
        return run(is_causal=visible.causal)  # a mask would be read as a [batch, 1, query, key] bias
    pairs = visible.pairs(jnp.arange(q.shape[1]), jnp.arange(k.shape[1]))
    return run(mask=None if pairs is None else pairs[:, None])
