# SPDX-License-Identifier: Apache-2.0
"""Attention of a decoder's layers to what its encoder read."""

from typing import Any, Final, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..errors import UserError
from ..taps import tap
from .attention import Visible, attend, project, written
from .cache import Cache, Kept
from .config import Config

_SITE: Final = "blocks.cross_attn"


class Context(NamedTuple):
    """What the layers attend to beside their own tokens, and where."""

    hidden: Float[Array, "batch key d_model"] | None
    """The encoder's last hidden state; None: keys and values are in the cache."""
    real: Bool[Array, "batch key"] | None
    """True at real tokens; None: all real."""


NO_CONTEXT: Final = Context(None, None)


def check_context(cfg: Config, context: Any, mask: Any, cache: Cache | None, batch: int) -> None:
    """A model with an encoder needs a context, or a cache that has seen it; others have no use for one.

    Raises:
      UserError: otherwise; a context of another width or batch; a mask that does not fit it.
    """
    if cfg.encoder is None:
        if context is not None or mask is not None:
            raise UserError(f"this {cfg.family} model has no encoder and attends to its own tokens: leave out context.")
        return
    if context is None:
        if mask is not None:
            raise UserError("context_mask belongs to a context: give both, or none where a cache has seen the context.")
        if cache is None or cache.context is None:
            raise UserError(
                f"this {cfg.family} model attends to what its encoder read: give forward a context=, token ids for the "
                "encoder or the hidden states that models.encode made of them."
            )
        return
    whole = jnp.issubdtype(context.dtype, jnp.integer)
    if context.ndim != (2 if whole else 3) or (not whole and context.shape[2] != cfg.d_model):
        raise UserError(
            f"context is token ids [batch, pos] or hidden states [batch, pos, {cfg.d_model}]; this one is "
            f"{context.dtype} {list(context.shape)}."
        )
    if context.shape[0] != batch:
        raise UserError(f"{batch} rows of tokens, but a context of {context.shape[0]} rows: they go together.")
    if mask is not None and mask.shape != context.shape[:2]:
        raise UserError(f"context_mask has shape {list(mask.shape)}, the context {list(context.shape[:2])} positions.")
    kept = None if cache is None else cache.context
    if kept is not None and kept.real.shape != context.shape[:2]:
        raise UserError(
            f"this cache keeps a context of {list(kept.real.shape)} positions, not {list(context.shape[:2])}. "
            "Begin with another init_cache."
        )


def room(cache: Cache, context: Context) -> Cache:
    """The cache with room for keys and values of this context, which every layer will write."""
    assert context.hidden is not None
    batch, length, _ = context.hidden.shape
    real = jnp.ones((batch, length), bool) if context.real is None else context.real
    if cache.context is not None:
        return cache._replace(context=cache.context._replace(real=real))
    layers, _, _, *heads = cache.k.shape
    empty = jnp.zeros((layers, batch, length, *heads), cache.k.dtype)
    return cache._replace(context=Kept(empty, empty, real))


def cross_attention(
    w: dict[str, Any],
    x: Float[Array, "batch pos d_model"],
    context: Context,
    scale: Any,
    layer: Array,
    at: Any,
    kept: Kept | None,
) -> tuple[Float[Array, "batch pos d_model"], Kept | None]:
    """softmax(scale q(x) k(context)^T + mask) v(context) per head, then W_o; no positions.

    Args:
      at: position of the first of x, for its sites.
      kept: where keys and values are written (`context.hidden` given) or read.
    """
    axes = ("batch", "pos", "head", "d_head")
    q = tap(project(x, w["wq"], w.get("bq")), f"{_SITE}.q", layer=layer, pos=at, axes=axes)
    if context.hidden is not None:
        k, v = (project(context.hidden, w[f"w{name}"], w.get(f"b{name}")) for name in "kv")
        kept = None if kept is None else kept.write(layer, k, v)
    else:
        assert kept is not None
        k, v = kept.read(layer)
    # What is kept is what the weights made; an edit acts whenever it is read.
    axes = ("batch", "key", "head", "d_head")
    k, v = tap(k, f"{_SITE}.k", layer=layer, axes=axes), tap(v, f"{_SITE}.v", layer=layer, axes=axes)
    visible = Visible(causal=False, window=None, mask=context.real, start=at)
    z = attend(q, k, v, visible, scale, layer, site=_SITE)
    return written(w, z, layer, at, _SITE), kept
