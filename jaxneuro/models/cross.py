# SPDX-License-Identifier: Apache-2.0
"""Attention of a decoder's layers to what its encoder read."""

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..errors import UserError
from ..taps import tap, wants
from .attention import Visible, attend, blank, to_heads, written
from .cache import Cache, Kept
from .config import Config
from .inputs import check_mask
from .positions import Columns, columns

_SITE: Final = "blocks.cross_attn"


class Context(NamedTuple):
    """What the layers attend to beside their own tokens."""

    hidden: Float[Array, "batch key d_model"]
    """The encoder's last hidden state."""
    real: Bool[Array, "batch key"] | None
    """True at real tokens; None: all real."""


def check_context(cfg: Config, context: Any, mask: Any, cache: Any, batch: int) -> None:
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
    check_mask(mask, context.shape[:2], "context")


def seen_by(
    w: dict[str, Any] | None, hidden: Array | None, real: Array | None, cache: Cache | None
) -> tuple[Context | Kept | None, Cache | None]:
    """What layers with these (stacked) weights attend to, and the cache that remembers it.

    Args:
      w: "blocks.cross_attn"; None: a model without an encoder.
      hidden: the encoder's last hidden state; None: the cache has seen it.
    """
    if w is None or cache is None:
        return None if hidden is None else Context(hidden, real), cache
    if hidden is not None:

        def of_layer(w: dict[str, Any]) -> list[Array]:
            return [blank(to_heads(hidden, w[f"w{name}"], w.get(f"b{name}")), real) for name in "kv"]

        k, v = jax.lax.map(of_layer, w)
        cache = cache._replace(context=Kept(k, v, jnp.ones(hidden.shape[:2], bool) if real is None else real))
    return cache.context, cache


def cross_attention(
    w: dict[str, Any],
    x: Float[Array, "batch pos d_model"],
    seen: Context | Kept,
    scale: Any,
    layer: Array,
    visible: Visible,
) -> Float[Array, "batch pos d_model"]:
    """softmax(scale q(x) k(context)^T + mask) v(context) per head, then W_o; no positions.

    Args:
      visible: of the layer's own attention: where x is.
    """

    def heads(value: Array, name: str) -> Array:
        return to_heads(value, w[f"w{name}"], w.get(f"b{name}"))

    def kept(name: str) -> Array:
        of_layer = getattr(seen, name)[layer] if isinstance(seen, Kept) else heads(seen.hidden, name)
        # What a cache keeps is what the weights made; an edit acts whenever it is read.
        return tap(of_layer, f"{_SITE}.{name}", layer=layer, key=keys, axes=("batch", "key", "head", "d_head"))

    at, keys = visible.where.pos, columns(seen.real, 0).key

    def shown(name: str) -> Array:
        # An edit may have put something at padding; what nobody edits is blank there already where a cache keeps it.
        value, edited = kept(name), wants(f"{_SITE}.{name}")
        return value if isinstance(seen, Kept) and not edited else blank(value, seen.real)

    x = tap(x, f"{_SITE}.in", layer=layer, pos=at, axes=("batch", "pos", "d_model"))
    q = tap(heads(x, "q"), f"{_SITE}.q", layer=layer, pos=at, axes=("batch", "pos", "head", "d_head"))
    here = Visible(causal=False, window=None, mask=seen.real, start=visible.start, where=Columns(at, keys))
    z = attend(q, shown("k"), shown("v"), here, scale, layer, site=_SITE)
    return written(w, z, layer, at, _SITE)
