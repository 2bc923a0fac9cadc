# SPDX-License-Identifier: Apache-2.0
"""Encoders of pictures: ViT, DeiT, DINOv2 with and without registers, and the towers of CLIP and SigLIP."""

from typing import Any, Final

from ..config import Config, Image
from .family import REQUIRED, Family, Key, Keys, attention, linear, mlp, norm

_SIZES: Final = {
    "n_layers": Key("num_hidden_layers", REQUIRED),
    "d_model": Key("hidden_size", REQUIRED),
    "n_heads": Key("num_attention_heads", REQUIRED),
}
_FIXED: Final = {
    "gated": False,
    "norm": "layer",
    "causal": False,
    "rope": None,
    "learned_positions": True,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "has_head": False,
}


def _patches(name: str, bias: bool = True) -> Keys:
    return linear(
        name, "embed.patch", "embed channel patch_row patch_column", *(("embed.patch_bias", "embed") if bias else ())
    )


def _vit(prefix: str, tokens: tuple[str, ...]) -> Keys:
    layer = f"{prefix}.encoder.layer.{{i}}"
    return {
        **{f"{prefix}.embeddings.{name}_token": (f"embed.{name}", "1 1 embed") for name in tokens},
        f"{prefix}.embeddings.position_embeddings": ("embed.pos", "1 pos embed"),
        **_patches(f"{prefix}.embeddings.patch_embeddings.projection"),
        **norm(f"{layer}.layernorm_before", "blocks.ln1"),
        **attention(f"{layer}.attention", "attention.query", "attention.key", "attention.value", "output.dense"),
        **norm(f"{layer}.layernorm_after", "blocks.ln2"),
        **mlp(layer, "intermediate.dense", "output.dense"),
        **norm(f"{prefix}.layernorm", "final_norm"),
        **linear(f"{prefix}.pooler.dense", "pooler.w", "embed_out embed", "pooler.b", "embed_out"),
    }


def _vit_family(prefix: str, tokens: tuple[str, ...], *classes: str) -> Family:
    return Family(
        fields={
            **_SIZES,
            "d_mlp": Key("intermediate_size", REQUIRED),
            "act": Key("hidden_act", "gelu"),
            "norm_eps": Key("layer_norm_eps", 1e-12),
            "qkv_bias": Key("qkv_bias", True),
        },
        fixed={k: v for k, v in _FIXED.items() if k != "qkv_bias"},
        keys=_vit(prefix, tokens),
        prefix=f"{prefix}.",
        classes=(classes[0], classes[1]),
        image=Image(size=224, patch=16, prefix=tokens),
        only={"pooler_act": ("tanh",)},
        optional={"pooler": f"{prefix}.pooler.dense.weight"},
    )


def _dinov2_keys(prefix: str, *, gated: bool) -> Keys:
    layer = f"{prefix}.encoder.layer.{{i}}"
    plain = mlp(f"{layer}.mlp", "fc1", "fc2")
    swiglu = {
        f"{layer}.mlp.weights_in.weight": (("blocks.mlp.gate", "blocks.mlp.up"), "(part mlp) embed"),
        f"{layer}.mlp.weights_in.bias": (("blocks.mlp.b_gate", "blocks.mlp.b_up"), "(part mlp)"),
        **linear(f"{layer}.mlp.weights_out", "blocks.mlp.down", "embed mlp", "blocks.mlp.b_down", "embed"),
    }
    return {
        f"{prefix}.embeddings.cls_token": ("embed.cls", "1 1 embed"),
        f"{prefix}.embeddings.register_tokens": ("embed.registers", "1 register embed"),
        f"{prefix}.embeddings.position_embeddings": ("embed.pos", "1 pos embed"),
        **_patches(f"{prefix}.embeddings.patch_embeddings.projection"),
        **norm(f"{layer}.norm1", "blocks.ln1"),
        **attention(f"{layer}.attention", "attention.query", "attention.key", "attention.value", "output.dense"),
        f"{layer}.layer_scale1.lambda1": ("blocks.ls1", "embed"),
        **norm(f"{layer}.norm2", "blocks.ln2"),
        **(swiglu if gated else plain),
        f"{layer}.layer_scale2.lambda1": ("blocks.ls2", "embed"),
        **norm(f"{prefix}.layernorm", "final_norm"),
    }


def _dinov2_mlp(hf: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """SwiGLU keeps two thirds of the width, rounded up to a multiple of 8."""
    width = int(values["d_model"] * hf.get("mlp_ratio", 4))
    if not values["gated"]:
        return {"d_mlp": width}
    return {"d_mlp": (int(width * 2 / 3) + 7) // 8 * 8, "act": "silu"}


def _dinov2_ratio(cfg: Config) -> dict[str, Any]:
    if not cfg.gated:
        return {"mlp_ratio": cfg.d_mlp / cfg.d_model}
    fits = [
        r
        for r in range(1, 17)
        if _dinov2_mlp({"mlp_ratio": r}, {"d_model": cfg.d_model, "gated": True})["d_mlp"] == cfg.d_mlp
    ]
    return {"mlp_ratio": fits[0] if fits else 4, "hidden_act": "gelu"}


def _dinov2(prefix: str, patch: int, registers: int, *classes: str) -> Family:
    return Family(
        fields={
            **_SIZES,
            "d_mlp": Key("mlp_ratio", 4),
            "act": Key("hidden_act", "gelu"),
            "norm_eps": Key("layer_norm_eps", 1e-6),
            "qkv_bias": Key("qkv_bias", True),
            "gated": Key("use_swiglu_ffn", False),
        },
        fixed={**{k: v for k, v in _FIXED.items() if k not in ("qkv_bias", "gated")}, "layer_scale": True},
        keys=_dinov2_keys(prefix, gated=False),
        gated_keys=_dinov2_keys(prefix, gated=True),
        prefix=f"{prefix}.",
        classes=(classes[0], classes[1]),
        image=Image(size=224, patch=patch, registers=registers),
        derived=(_dinov2_mlp, _dinov2_ratio),
        ignored=(r"embeddings\.mask_token$",),
    )


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
_TOWER_FIELDS: Final = {**_SIZES, "d_mlp": Key("intermediate_size", REQUIRED)}
_TEXT_STEM: Final[Keys] = {
    f"{_T}.embeddings.token_embedding.weight": ("embed.tok", "vocab token"),
    f"{_T}.embeddings.position_embedding.weight": ("embed.pos", "pos embed"),
}
_TOWER_IGNORED: Final = (r"embeddings\.position_ids$",)

VISION: Final = {
    "vit": _vit_family("vit", ("cls",), "ViTModel", "ViTForImageClassification"),
    "deit": _vit_family("deit", ("cls", "distillation"), "DeiTModel", "DeiTForImageClassification"),
    "dinov2": _dinov2("dinov2", 14, 0, "Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": _dinov2(
        "dinov2_with_registers", 16, 4, "Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"
    ),
    "clip_vision_model": Family(
        fields={
            **_TOWER_FIELDS,
            "act": Key("hidden_act", "quick_gelu"),
            "norm_eps": Key("layer_norm_eps", 1e-5),
        },
        fixed={**_FIXED, "embed_norm": True, "norm_pooled": True},
        keys=_tower(
            _V,
            {
                f"{_V}.embeddings.class_embedding": ("embed.cls", "embed"),
                f"{_V}.embeddings.position_embedding.weight": ("embed.pos", "pos embed"),
                **_patches(f"{_V}.embeddings.patch_embedding", bias=False),
            },
            "pre_layrnorm",
            "post_layernorm",
        ),
        prefix=f"{_V}.",
        classes=("CLIPVisionModel", "CLIPVisionModel"),
        image=Image(size=224, patch=32, patch_bias=False),
        ignored=_TOWER_IGNORED,
    ),
    "clip_text_model": Family(
        fields={
            **_TOWER_FIELDS,
            "d_vocab": Key("vocab_size", REQUIRED),
            "n_ctx": Key("max_position_embeddings", 77),
            "act": Key("hidden_act", "quick_gelu"),
            "norm_eps": Key("layer_norm_eps", 1e-5),
        },
        fixed={**_FIXED, "causal": True},
        keys=_tower(_T, _TEXT_STEM, "", "final_layer_norm"),
        prefix=f"{_T}.",
        classes=("CLIPTextModel", "CLIPTextModel"),
        ignored=_TOWER_IGNORED,
    ),
    "siglip_vision_model": Family(
        fields={
            **_TOWER_FIELDS,
            "act": Key("hidden_act", "gelu_pytorch_tanh"),
            "norm_eps": Key("layer_norm_eps", 1e-6),
        },
        fixed=_FIXED,
        keys=_tower(
            _V,
            {
                f"{_V}.embeddings.position_embedding.weight": ("embed.pos", "pos embed"),
                **_patches(f"{_V}.embeddings.patch_embedding"),
            },
            "",
            "post_layernorm",
        ),
        prefix=f"{_V}.",
        classes=("SiglipVisionModel", "SiglipVisionModel"),
        image=Image(size=224, patch=16, prefix=()),
        ignored=(*_TOWER_IGNORED, rf"^({_V}\.)?head\."),
    ),
}
