# SPDX-License-Identifier: Apache-2.0
"""One vector per sequence or picture, made of its last hidden state."""

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..errors import UserError
from ..taps import tap
from ..taps.compiled import compiled
from .attention import MASKED, blank
from .config import Config
from .inputs import check_pooled
from .layout import Weights
from .positions import first_real
from .transformer import ACTS, _norm, forward


@compiled
def pool(
    weights: Weights,
    hidden: Float[Array, "batch pos d_model"],
    cfg: Config,
    tokens: Int[Array, "batch pos"] | None = None,
    mask: Bool[Array, "batch pos"] | None = None,
) -> Float[Array, "batch d_model"]:
    """The pooled output of the last hidden state, as the model's own class makes it.

        BERT, ViT, DeiT: tanh(W x[0] + b)           DINOv2: x[0]          CLIP, pictures: LayerNorm(x[0])
        CLIP, text: x at the end-of-text token      SigLIP, text: x[-1]   SigLIP, pictures: a learned query attends to
        every token, y = attention(probe, x), then y + MLP(LayerNorm(y))

    Sites: "pooled" [batch, d_model]; of SigLIP's pictures also "pooler.pattern" [batch, head, pos], "pooler.z"
    [batch, head, d_head] and "pooler.mlp.post" [batch, neuron].

    Args:
      tokens: the ids that `hidden` was computed from; only CLIP's text model reads them. A row without its
        end-of-text token gives its first position, as in transformers.
      mask: True at real tokens; None: all. x[0] is each row's first real token. x[-1] is the last position whatever it
        holds, as in transformers: SigLIP was trained on texts padded to `n_ctx` and attends to their padding. The
        `batch` of its tokenizer makes such texts, whose mask is True everywhere.
    Raises:
      UserError: the checkpoint held no pooler, or tokens are needed.
    Source: transformers' classes of these families; parity at 1e-5.
    Example:
      >>> cfg = Config(n_layers=1, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=8, d_vocab=9, n_ctx=4,
      ...              pool_from="last")
      >>> pool({}, jnp.arange(32.0).reshape(1, 4, 8), cfg)[0, 0].item()
      24.0
    """
    if "pooler" not in weights and cfg.pool_from in (None, "attention"):
        raise UserError("this model has no pooler; average the hidden states over the mask instead.")
    x = _POOLED[cfg.pool_from or "first"](weights, hidden, cfg, Row(tokens, mask))
    if cfg.norm_pooled:
        x = _norm(x, weights["final_norm"], cfg)
    if "w" in weights.get("pooler", {}):
        x = jnp.tanh(x @ weights["pooler"]["w"].astype(x.dtype) + weights["pooler"]["b"].astype(x.dtype)[None])
    return tap(x, "pooled", axes=("batch", "d_model"))


@functools.partial(compiled, check=check_pooled)
def pooled(
    weights: Weights,
    inputs: Int[Array, "batch pos"] | Float[Array, "batch row column channel"],
    cfg: Config,
    mask: Bool[Array, "batch pos"] | None = None,
    *,
    stop_at: int | None = None,
    **part: Any,
) -> Float[Array, "batch d"]:
    """One vector per text or picture: the model, `pool`, and `project` where the model has a projection.

    All sites of the three are reached.

    Args:
      inputs, mask, part: tokens or pictures, and the rest, as in `forward`.
      stop_at: as in `forward`, and what it returns: nothing above is computed, so nothing is pooled.
    Raises:
      UserError: as `forward` and `pool`.
    Example:
      >>> from jaxneuro.models import Config, init
      >>> cfg = Config(n_layers=1, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=8, d_vocab=9, n_ctx=7,
      ...              has_head=False, pool_from="last", d_projection=4)
      >>> pooled(init(cfg, jax.random.key(0)), jnp.ones((2, 7), "int32"), cfg).shape
      (2, 4)
    """
    hidden = forward(weights, inputs, cfg=cfg, mask=mask, stop_at=stop_at, **part)
    if stop_at is not None:
        return hidden
    x = pool(weights, hidden, cfg, inputs, mask)
    return project(weights, x) if "projection" in weights else x


def has_pooled(cfg: Config) -> bool:
    """Whether `pool` makes a vector of what the model gives."""
    return not cfg.has_head and (cfg.pooler or cfg.pool_from not in (None, "attention"))


def project(weights: Weights, pooled: Float[Array, "batch d_model"]) -> Float[Array, "batch d_projection"]:
    """The pooled vector through the model's linear map into the space that it shares with another model.

    Site: "projected" [batch, d_projection].

    Raises:
      UserError: the model has no projection.
    """
    check_projection(weights)
    w = weights["projection"]
    x = pooled @ w["w"].astype(pooled.dtype)
    return tap(x + w["b"].astype(x.dtype)[None] if "b" in w else x, "projected", axes=("batch", "d_projection"))


def check_projection(weights: Weights) -> None:
    """Raise for a model that has none."""
    if "projection" not in weights:
        raise UserError("this model has no projection: it was not saved as one of a pair.")


class Row(NamedTuple):
    """What is pooled, beside its hidden states."""

    tokens: Array | None
    mask: Array | None


def _at(x: Array, column: Int[Array, "batch"]) -> Array:
    return jnp.take_along_axis(x, column[:, None, None], axis=1)[:, 0]


def _first(weights: Weights, x: Array, cfg: Config, row: Row) -> Array:
    return x[:, 0] if row.mask is None else _at(x, first_real(row.mask))


def _last(weights: Weights, x: Array, cfg: Config, row: Row) -> Array:
    return x[:, -1]  # padding too: it is a token like any other of this model


def _at_eos(weights: Weights, x: Array, cfg: Config, row: Row) -> Array:
    if row.tokens is None:
        raise UserError("this model is pooled at its end-of-text token: give pool the tokens too.")
    ids = row.tokens if row.mask is None else jnp.where(row.mask, row.tokens, -1)
    found = ids == (ids.max(1, keepdims=True) if cfg.eos == 2 else cfg.eos)
    first = jnp.int32(0) if row.mask is None else first_real(row.mask)
    return _at(x, jnp.where(found.any(1), found.argmax(1), first))


def _attention(weights: Weights, x: Array, cfg: Config, row: Row) -> Array:
    w = jax.tree.map(lambda a: a.astype(x.dtype), weights["pooler"])
    attn, mlp = w["attn"], w["mlp"]
    q = jnp.einsum("d,dnh->nh", w["probe"], attn["wq"]) + attn["bq"]
    k, v = (jnp.einsum("btd,dnh->btnh", x, attn[f"w{a}"]) + attn[f"b{a}"][None, None] for a in "kv")
    scores = jnp.einsum("nh,btnh->bnt", q * jnp.asarray(cfg.d_head**-0.5, q.dtype), k)
    if row.mask is not None:
        scores, v = jnp.where(row.mask[:, None], scores, MASKED), blank(v, row.mask)
    pattern = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(x.dtype)
    pattern = tap(pattern, "pooler.pattern", axes=("batch", "head", "pos"))
    z = tap(jnp.einsum("bnt,btnh->bnh", pattern, v), "pooler.z", axes=("batch", "head", "d_head"))
    y = jnp.einsum("bnh,nhd->bd", z, attn["wo"]) + attn["bo"][None]
    hidden = ACTS[cfg.act](_norm(y, w["norm"], cfg) @ mlp["up"] + mlp["b_up"][None])
    return y + tap(hidden, "pooler.mlp.post", axes=("batch", "neuron")) @ mlp["down"] + mlp["b_down"][None]


_POOLED: Final[dict[str, Callable[[Weights, Array, Config, Row], Array]]] = {
    "first": _first,
    "last": _last,
    "eos": _at_eos,
    "attention": _attention,
}
