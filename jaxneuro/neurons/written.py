# SPDX-License-Identifier: Apache-2.0
"""What a value at a site writes to the residual stream, and which tokens that promotes."""

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..models import unembedding
from ..models.transformer import gain
from ..taps.names import parse
from .decoding import Decoded, at_unembedding, decode_directions


class _Way(NamedTuple):
    """From a site's value to the residual stream: a matrix, a scale per channel, the norm after both."""

    leaf: str
    scale: str = ""
    norm: str = ""


_STREAM: Final = ("resid_pre", "resid_mid", "resid_mid_cross", "resid_post")
_ADDED: Final = ("attn_out", "cross_attn_out", "mlp_out", "mixer.out")
_WAYS: Final = {
    **{f"blocks.{name}": _Way("") for name in (*_STREAM, *_ADDED)},
    "embed": _Way(""),
    "pos_embed": _Way(""),
    "blocks.attn.z": _Way("attn.wo", "ls1", "ln1_post"),
    "blocks.cross_attn.z": _Way("cross_attn.wo"),
    "blocks.mlp.post": _Way("mlp.down", "ls2", "ln2_post"),
    "blocks.moe.post": _Way("moe.down"),
}
"""Sites whose value is in the residual stream, or reaches it through one matrix."""
_NEURONS: Final = {
    f"blocks.{part}.{name}": f"blocks.{part}.post"
    for part, names in {"mlp": ("pre", "gate", "pre_linear"), "moe": ("pre", "pre_linear")}.items()
    for name in names
}
"""Other values of a neuron on its way -> the value that it hands on: coordinate j of both is the same neuron."""


def written(
    weights: Any, cfg: Any, site: str, layer: int | None, rows: Float[Array, "n width"]
) -> Float[Array, "n d_model"] | None:
    """What values at a site (heads, experts joined) write to the residual stream; None where nothing is linear.

        resid_pre ... mlp_out: x        attn.z: x W_O        mlp.post: x W_down      then a norm's gain, if one follows

    The gain is that of Gemma 2's norm after attention or MLP, whose scale depends on the text: directions are right,
    lengths are not.

    Example:
      >>> from jaxneuro.models import Config, init
      >>> cfg = Config(n_layers=1, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> weights, rows = init(cfg, jax.random.key(0)), jnp.ones((3, 8))
      >>> written(weights, cfg, "blocks.0.attn.z", 0, rows).shape
      (3, 8)
    """
    way = None if parse(site).base in _NEURONS else _way(cfg, site)
    if way is None:
        return None
    blocks, rows = weights["blocks"], rows.astype(jnp.float32)
    if way.leaf:
        rows = jnp.matmul(rows, _matrix(weights, way.leaf, layer), precision=jax.lax.Precision.HIGHEST)
    if way.scale in blocks:
        rows = rows * blocks[way.scale][layer].astype(jnp.float32)[None]
    if way.norm in blocks:
        rows = rows * gain(blocks[way.norm], cfg)[layer][None]
    return rows


def has_tokens(cfg: Any, site: str) -> bool:
    """Whether values at a site promote tokens by what they write to the residual stream."""
    return _reads_stream(cfg) and _way(cfg, site) is not None


def _way(cfg: Any, site: str) -> _Way | None:
    way = _WAYS.get(_handed_on(site))
    # experts in some layers only: row i of their matrix is not layer i
    mixed = cfg.experts is not None and cfg.experts.dense and way is not None and way.leaf.startswith(("mlp", "moe"))
    return None if mixed else way


def _handed_on(site: str) -> str:
    """The site at which a neuron's direction begins, whichever of its values is meant."""
    name = parse(site).base
    return _NEURONS.get(name, name)


def _reads_stream(cfg: Any) -> bool:
    return cfg.has_head and not cfg.head_transform and cfg.classify != "distilled"


def _matrix(weights: Any, leaf: str, layer: int | None) -> Float[Array, "width d_model"]:
    part, _, name = leaf.partition(".")
    found = weights["blocks"][part][name][layer].astype(jnp.float32)
    return found.reshape(-1, found.shape[-1])


def decode_written(
    weights: Any, cfg: Any, site: str, layer: int | None, rows: Float[Array, "n width"], k: int
) -> Decoded | None:
    """Tokens that values at a site promote by what they write to the residual stream.

    None where the site has no such direction (queries, scores, norms, an encoder below a decoder ...) or the model no
    unembedding that reads the stream (an encoder without a head, BERT's head with a layer of its own).
    """
    d = written(weights, cfg, site, layer, rows) if _reads_stream(cfg) else None
    return None if d is None else decode_directions(at_unembedding(d, weights, cfg), unembedding(weights, cfg), k)


def decode_coordinates(
    weights: Any, cfg: Any, site: str, layers: Int[np.ndarray, " n"], coordinates: Int[np.ndarray, " n"], k: int
) -> Decoded | None:
    """The same for single coordinates of a site, heads side by side; of an MLP they are its neurons.

    A neuron has one direction, whether its gate, its input or its value is looked at: that of mlp.post.
    """
    if not (len(layers) and has_tokens(cfg, site)):
        return None
    way, each = _WAYS[_handed_on(site)], []
    for layer, j in zip(layers.tolist(), coordinates.tolist(), strict=True):
        size = len(_matrix(weights, way.leaf, layer)) if way.leaf else cfg.d_model
        each.append(written(weights, cfg, _handed_on(site), layer, jnp.zeros((1, size), jnp.float32).at[0, j].set(1)))
    rows = jnp.concatenate(each)
    return decode_directions(at_unembedding(rows, weights, cfg), unembedding(weights, cfg), k)
