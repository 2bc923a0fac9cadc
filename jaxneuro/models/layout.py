# SPDX-License-Identifier: Apache-2.0
"""Which leaves a model has, and the name of every axis: one table read by init, load, save and sharding."""

import math
from collections.abc import Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .config import Config, Image
from .mixers import Mixer

type Weights = dict[str, Any]
"""Nested dict of arrays; leaves under "blocks" have a leading axis of layers (of all, or of those that have them: see
`rows_of`), "shared" ones are every layer's."""


def layout(cfg: Config) -> dict[str, tuple[str, ...]]:
    """{leaf: names of its axes} of a configuration, leaves written as dotted paths.

    Example:
      >>> from jaxneuro.models import Config
      >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
      >>> layout(cfg)["blocks.attn.wk"]
      ('layer', 'embed', 'kv_heads', 'head')
    """
    bias = None if cfg.norm == "plain" else cfg.norm == "layer"
    block = {
        **_norm("ln1", bias),
        **_attention("attn", cfg),
        **_when(cfg.qk_norm, {**_norm("attn.q_norm", bias, "head"), **_norm("attn.k_norm", bias, "head")}),
        **_when(cfg.relative is not None and cfg.relative.per_layer, {"attn.relative": ("bucket", "heads")}),
        **_when(cfg.encoder is not None, {**_norm("ln_cross", bias), **_attention("cross_attn", cfg)}),
        **_when(not cfg.one_norm, _norm("ln2", bias)),
        **_when(cfg.layer_scale, {"ls1": ("embed",), "ls2": ("embed",)}),
        **_when(cfg.norm_placement == "sandwich", {**_norm("ln1_post", bias), **_norm("ln2_post", bias)}),
        **(_mlp(cfg) if cfg.experts is None else _EXPERTS),
        **_when(cfg.experts is not None and cfg.experts.dense != (), _DENSE),
    }
    return {
        **_stem(cfg),
        **_when(cfg.d_embed is not None, {"embed.proj_in": ("token", "embed")}),
        **_when(cfg.learned_positions, {"embed.pos": ("pos", "embed")}),
        **_when(cfg.n_token_types > 0, {"embed.type": ("type", "embed")}),
        **_when(cfg.embed_norm, _norm("embed.norm", bias)),
        **(_mixer(cfg.mixer, bias) if cfg.mixer else _blocks(cfg, block)),
        **_when(cfg.relative is not None and not cfg.relative.per_layer, {"relative.table": ("bucket", "heads")}),
        **_when(cfg.norm_placement != "post", _norm("final_norm", bias)),
        **_when(cfg.d_embed is not None, {"head.proj_out": ("embed", "token")}),
        **_when(cfg.has_head and cfg.head_transform, _head_transform(bias)),
        **_when(cfg.has_head and cfg.head_bias, {"head.b": ("vocab",)}),
        **_when(cfg.has_head and not cfg.tied, _unembedding(cfg)),
        **_when(cfg.pooler, _attention_pooler() if cfg.pool_from == "attention" else _POOLER),
        **_when(cfg.d_projection is not None, {"projection.w": ("embed", "projected")}),
        **_when(cfg.d_projection is not None and cfg.projection_bias, {"projection.b": ("projected",)}),
        **({} if cfg.encoder is None else _encoder(cfg.encoder)),
    }


def _encoder(cfg: Config) -> dict[str, tuple[str, ...]]:
    """Its leaves, without the embedding, which is the decoder's."""
    return {f"encoder.{leaf}": axes for leaf, axes in layout(cfg).items() if not leaf.startswith("embed.")}


def _attention(name: str, cfg: Config) -> dict[str, tuple[str, ...]]:
    leaves = {
        "wq": ("embed", "heads", "head"),
        "wk": ("embed", "kv_heads", "head"),
        "wv": ("embed", "kv_heads", "head"),
        "wo": ("heads", "head", "embed"),
        **_when(cfg.qkv_bias, {"bq": ("heads", "head"), "bk": ("kv_heads", "head"), "bv": ("kv_heads", "head")}),
        **_when(cfg.out_bias, {"bo": ("embed",)}),
    }
    return {f"{name}.{leaf}": axes for leaf, axes in leaves.items()}


_POOLER: Final = {"pooler.w": ("embed", "embed_out"), "pooler.b": ("embed_out",)}


def _attention_pooler() -> dict[str, tuple[str, ...]]:
    heads = {f"pooler.attn.w{x}": ("embed", "heads", "head") for x in "qkv"}
    heads |= {f"pooler.attn.b{x}": ("heads", "head") for x in "qkv"}
    out = {"pooler.attn.wo": ("heads", "head", "embed"), "pooler.attn.bo": ("embed",)}
    mlp = {"pooler.mlp.up": ("embed", "mlp"), "pooler.mlp.b_up": ("mlp",)}
    mlp |= {"pooler.mlp.down": ("mlp", "embed"), "pooler.mlp.b_down": ("embed",)}
    return {"pooler.probe": ("embed",), **heads, **out, **_norm("pooler.norm", True), **mlp}


def _unembedding(cfg: Config) -> dict[str, tuple[str, ...]]:
    w, b = ("token", "vocab"), ("vocab",)
    if cfg.classify == "distilled":
        return {"head.w_cls": w, "head.b_cls": b, "head.w_distillation": w, "head.b_distillation": b}
    return {"head.w": w, **_when(cfg.classify == "cls_and_patches", {"head.w_patches": w})}


_EXPERTS: Final = {
    "moe.router": ("embed", "expert"),
    "moe.gate": ("expert", "embed", "mlp"),
    "moe.up": ("expert", "embed", "mlp"),
    "moe.down": ("expert", "mlp", "embed"),
}


_DENSE: Final = {
    "dense.gate": ("embed", "dense_mlp"),
    "dense.up": ("embed", "dense_mlp"),
    "dense.down": ("dense_mlp", "embed"),
}


PARTS: Final = ("moe", "dense")
"""First axes of leaves that only some layers have: those with experts, those without."""


def rows_of(cfg: Config, part: str) -> tuple[int, ...]:
    """The layers that one of `PARTS` counts."""
    dense = () if cfg.experts is None else cfg.experts.dense
    return tuple(i for i in range(cfg.n_layers) if (i in dense) == (part == "dense"))


def _blocks(cfg: Config, leaves: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    first = {part: part for part in PARTS if cfg.experts is not None and cfg.experts.dense}
    return {f"blocks.{n}": (first.get(n.split(".")[0], "layer"), *axes) for n, axes in leaves.items()}


def _mlp(cfg: Config) -> dict[str, tuple[str, ...]]:
    return {
        **_when(cfg.gated, {"mlp.gate": ("embed", "mlp")}),
        "mlp.up": ("embed", "mlp"),
        "mlp.down": ("mlp", "embed"),
        **_when(cfg.mlp_bias and cfg.gated, {"mlp.b_gate": ("mlp",)}),
        **_when(cfg.mlp_bias, {"mlp.b_up": ("mlp",), "mlp.b_down": ("embed",)}),
    }


def _stem(cfg: Config) -> dict[str, tuple[str, ...]]:
    image = cfg.image
    if image is None:
        return {"embed.tok": ("vocab", "token")}
    return {
        "embed.patch": ("patch_row", "patch_column", "channel", "embed"),
        **_when(image.patch_bias, {"embed.patch_bias": ("embed",)}),
        **{f"embed.{name}": ("embed",) for name in image.prefix},
        **_when(image.registers > 0, {"embed.registers": ("register", "embed")}),
        **_when(image.mask_token, {"embed.mask_token": ("embed",)}),
    }


def _when(condition: bool, leaves: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return leaves if condition else {}


def _norm(name: str, bias: bool | None, axis: str = "embed") -> dict[str, tuple[str, ...]]:
    """bias None: a norm that has no leaves."""
    return {} if bias is None else {f"{name}.scale": (axis,), **_when(bias, {f"{name}.bias": (axis,)})}


def _mixer(mixer: Mixer, bias: bool | None) -> dict[str, tuple[str, ...]]:
    if mixer.shared:
        return {f"shared.{name}": axes for name, axes in mixer.leaves().items()}
    block = {**_norm("ln1", bias), **{f"mixer.{name}": axes for name, axes in mixer.leaves().items()}}
    return {f"blocks.{name}": ("layer", *axes) for name, axes in block.items()}


def _head_transform(bias: bool | None) -> dict[str, tuple[str, ...]]:
    dense = {"head.dense": ("embed", "embed_out"), "head.dense_bias": ("embed_out",)}
    return {**dense, **_norm("head.norm", bias)}


def sizes(cfg: Config, leaf: str = "") -> dict[str, int]:
    """Length of every axis that `layout` names at a leaf: of the encoder's, if it is one of its leaves."""
    if cfg.encoder is not None and leaf.startswith("encoder."):
        return sizes(cfg.encoder)
    return {
        "vocab": cfg.d_vocab,
        "pos": cfg.n_ctx + cfg.position_offset,
        "token": cfg.d_embed or cfg.d_model,
        **({} if cfg.image is None else _image_sizes(cfg.image)),
        "type": cfg.n_token_types,
        "layer": cfg.n_layers,
        "embed": cfg.d_model,
        "embed_out": cfg.d_model,
        "projected": cfg.d_projection or 0,
        "heads": cfg.n_heads,
        "kv_heads": cfg.n_kv_heads,
        "head": cfg.d_head,
        "mlp": cfg.d_mlp,
        **({} if cfg.mixer is None else cfg.mixer.sizes()),
        **({} if cfg.relative is None else {"bucket": cfg.relative.buckets}),
        **({} if cfg.experts is None else {"expert": cfg.experts.n, "dense_mlp": cfg.experts.d_dense or 0}),
        **{axis: len(rows_of(cfg, axis)) for axis in PARTS},
    }


def _image_sizes(image: Image) -> dict[str, int]:
    rows = {"patch_row": image.patch, "patch_column": image.patch}
    return {**rows, "channel": image.channels, "register": image.registers}


def shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    """{leaf: shape} of a configuration."""
    stack, encoder = sizes(cfg), sizes(cfg, "encoder.")
    table = {leaf: (encoder if leaf.startswith("encoder.") else stack, axes) for leaf, axes in layout(cfg).items()}
    return {leaf: tuple(size[a] for a in axes) for leaf, (size, axes) in table.items()}


def nest(flat: Mapping[str, Any]) -> Weights:
    """{"a.b": x} -> {"a": {"b": x}}."""
    out: Weights = {}
    for path, value in flat.items():
        *folders, name = path.split(".")
        node = out
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return out


def flatten(weights: Weights, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a.b": x}: the inverse of `nest`."""
    out = {}
    for name, value in weights.items():
        path = f"{prefix}{name}"
        out |= flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return out


def init(cfg: Config, key: Key[Array, ""], dtype: Any = jnp.float32) -> Weights:
    """Random weights as Hugging Face starts them: N(0, 0.02^2) matrices, zero biases, unit gains of norms.

    Matrices that write to the residual stream get 0.02 / sqrt(2 n_layers) in GPT-2, as its authors do.
    """
    table = shapes(cfg)
    keys = dict(zip(table, jax.random.split(key, len(table)), strict=True))
    return nest({leaf: _start(cfg, leaf, shape, keys[leaf], dtype) for leaf, shape in table.items()})


def _start(cfg: Config, leaf: str, shape: tuple[int, ...], key: Key[Array, ""], dtype: Any) -> Float[Array, "..."]:
    name = leaf.rsplit(".", 1)[-1]
    if cfg.mixer is not None and name in cfg.mixer.starts:
        return cfg.mixer.starts[name](key, shape).astype(dtype)
    if name == "scale":
        return jnp.zeros(shape, dtype) if cfg.norm == "gemma_rms" else jnp.ones(shape, dtype)
    if name in ("ls1", "ls2"):
        return jnp.ones(shape, dtype)
    if name.startswith("b") or name.endswith("bias"):
        return jnp.zeros(shape, dtype)
    residual = cfg.family == "gpt2" and leaf in ("blocks.attn.wo", "blocks.mlp.down")
    std = 0.02 / (2 * cfg.n_layers) ** 0.5 if residual else 0.02
    flat = jax.random.normal(key, (math.prod(shape),), jnp.float32)  # drawing four axes compiles six times longer
    return (std * flat).astype(dtype).reshape(shape)
