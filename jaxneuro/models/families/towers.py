# SPDX-License-Identifier: Apache-2.0
"""The towers of CLIP and SigLIP, alone and as pairs: one of pictures, one of text."""

from typing import Any, Final

from ...io.fields import Fields, null_or, whole
from ..config import Config, Image
from .family import Family, Key, Keys, attention, classes_of, linear, mlp, norm
from .vision import FIXED, patches


def _tower(prefix: str, stem: Keys, pre: str, post: str) -> Keys:
    layer = f"{prefix}.encoder.layers.{{i}}"
    return {
        **stem,
        **(norm(f"{prefix}.{pre}", "embed.norm") if pre else {}),
        **norm(f"{layer}.layer_norm1", "blocks.ln1"),
        **attention(f"{layer}.self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
        **norm(f"{layer}.layer_norm2", "blocks.ln2"),
        **mlp(f"{layer}.mlp", "fc1", "fc2"),
        **norm(f"{prefix}.{post}", "final_norm"),
    }


_V, _T = "vision_model", "text_model"
_IGNORED: Final = (r"embeddings\.position_ids$",)
_TEXT_STEM: Final[Keys] = {
    f"{_T}.embeddings.token_embedding.weight": ("embed.tok", "vocab token"),
    f"{_T}.embeddings.position_embedding.weight": ("embed.pos", "pos embed"),
}


def _fields(act: str, eps: float, d_model: int, d_mlp: int, n_heads: int) -> dict[str, Key]:
    # Folders of pairs leave out what is transformers' default, sizes too.
    return {
        "n_layers": Key("num_hidden_layers", 12),
        "d_model": Key("hidden_size", d_model),
        "n_heads": Key("num_attention_heads", n_heads),
        "d_mlp": Key("intermediate_size", d_mlp),
        "act": Key("hidden_act", act),
        "norm_eps": Key("layer_norm_eps", eps),
    }


def _text_fields(vocab: int, length: int) -> dict[str, Key]:
    return {"d_vocab": Key("vocab_size", vocab), "n_ctx": Key("max_position_embeddings", length)}


def _clip_projection(name: str) -> tuple[Any, Any]:
    """CLIP's models come with their projection or without it, and only the class says which."""

    def read(hf: Fields, values: dict[str, Any]) -> dict[str, Any]:
        width = hf.read("projection_dim", null_or(whole()), None) or 512
        return {"d_projection": width} if "WithProjection" in " ".join(classes_of(hf)) else {}

    def write(cfg: Config) -> dict[str, Any]:
        if cfg.d_projection is None:
            return {}
        return {"projection_dim": cfg.d_projection, "architectures": [f"{name}WithProjection"]}

    return read, write


def _siglip_projection() -> tuple[Any, Any]:
    def read(hf: Fields, values: dict[str, Any]) -> dict[str, Any]:
        return {"d_projection": hf.read("projection_size", null_or(whole()), None) or values["d_model"]}

    return read, lambda cfg: {"projection_size": cfg.d_projection}


def _attention_head(prefix: str) -> Keys:
    return {
        f"{prefix}.probe": ("pooler.probe", "1 1 embed"),
        f"{prefix}.attention.in_proj_weight": (_each("w"), "(part heads head) embed"),
        f"{prefix}.attention.in_proj_bias": (_each("b"), "(part heads head)"),
        **linear(f"{prefix}.attention.out_proj", "pooler.attn.wo", "embed (heads head)", "pooler.attn.bo", "embed"),
        **norm(f"{prefix}.layernorm", "pooler.norm"),
        **linear(f"{prefix}.mlp.fc1", "pooler.mlp.up", "mlp embed", "pooler.mlp.b_up", "mlp"),
        **linear(f"{prefix}.mlp.fc2", "pooler.mlp.down", "embed mlp", "pooler.mlp.b_down", "embed"),
    }


def _each(letter: str) -> tuple[str, ...]:
    return tuple(f"pooler.attn.{letter}{x}" for x in "qkv")


TOWERS: Final = {
    "clip_vision_model": Family(
        fields=_fields("quick_gelu", 1e-5, 768, 3072, 12),
        fixed={**FIXED, "embed_norm": True, "norm_pooled": True, "pool_from": "first"},
        keys=_tower(
            _V,
            {
                f"{_V}.embeddings.class_embedding": ("embed.cls", "embed"),
                f"{_V}.embeddings.position_embedding.weight": ("embed.pos", "pos embed"),
                **patches(f"{_V}.embeddings.patch_embedding", bias=False),
                **linear("visual_projection", "projection.w", "projected embed"),
            },
            "pre_layrnorm",
            "post_layernorm",
        ),
        prefix=f"{_V}.",
        classes=("CLIPVisionModel", "CLIPVisionModel"),
        image=Image(size=224, patch=32, patch_bias=False),
        derived=_clip_projection("CLIPVisionModel"),
        ignored=_IGNORED,
    ),
    "clip_text_model": Family(
        fields={
            **_fields("quick_gelu", 1e-5, 512, 2048, 8),
            **_text_fields(49408, 77),
            "eos": Key("eos_token_id", 49407, kind=whole(0)),
        },
        fixed={**FIXED, "causal": True, "pool_from": "eos"},
        keys=_tower(
            _T,
            {**_TEXT_STEM, **linear("text_projection", "projection.w", "projected embed")},
            "",
            "final_layer_norm",
        ),
        prefix=f"{_T}.",
        classes=("CLIPTextModel", "CLIPTextModel"),
        derived=_clip_projection("CLIPTextModel"),
        ignored=_IGNORED,
    ),
    "siglip_vision_model": Family(
        fields={
            **_fields("gelu_pytorch_tanh", 1e-6, 768, 3072, 12),
            "pooler": Key("vision_use_head", True),
        },
        fixed={**FIXED, "pool_from": "attention"},
        keys=_tower(
            _V,
            {
                f"{_V}.embeddings.position_embedding.weight": ("embed.pos", "pos embed"),
                **patches(f"{_V}.embeddings.patch_embedding"),
                **_attention_head(f"{_V}.head"),
            },
            "",
            "post_layernorm",
        ),
        prefix=f"{_V}.",
        classes=("SiglipVisionModel", "SiglipVisionModel"),
        image=Image(size=224, patch=16, prefix=()),
        ignored=_IGNORED,
    ),
    "siglip_text_model": Family(
        fields={
            **_fields("gelu_pytorch_tanh", 1e-6, 768, 3072, 12),
            **_text_fields(32000, 64),
        },
        fixed={**FIXED, "pool_from": "last", "projection_bias": True},
        keys=_tower(
            _T,
            {**_TEXT_STEM, **linear(f"{_T}.head", "projection.w", "projected embed", "projection.b", "projected")},
            "",
            "final_layer_norm",
        ),
        prefix=f"{_T}.",
        classes=("SiglipTextModel", "SiglipTextModel"),
        derived=_siglip_projection(),
        ignored=_IGNORED,
    ),
}

PAIRS: Final = {
    "clip": {"text": "clip_text_model", "image": "clip_vision_model"},
    "siglip": {"text": "siglip_text_model", "image": "siglip_vision_model"},
}
"""`model_type` of a folder of two models -> their rows."""
