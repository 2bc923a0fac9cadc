# SPDX-License-Identifier: Apache-2.0
"""Encoders of pictures and their classifiers: ViT, DeiT, DINOv2 with and without registers."""

from typing import Any, Final

from ...io.fields import Fields, number
from ..config import Config, Image
from .family import REQUIRED, Family, Key, Keys, attention, classes_of, linear, mlp, norm

_RATIO: Final = number(above=0, high=1000)
SIZES: Final = {
    "n_layers": Key("num_hidden_layers", REQUIRED),
    "d_model": Key("hidden_size", REQUIRED),
    "n_heads": Key("num_attention_heads", REQUIRED),
}
FIXED: Final = {
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


def patches(name: str, bias: bool = True) -> Keys:
    """The rows of the convolution that cuts a picture."""
    return linear(
        name, "embed.patch", "embed channel patch_row patch_column", *(("embed.patch_bias", "embed") if bias else ())
    )


def _vit(prefix: str, tokens: tuple[str, ...]) -> Keys:
    layer = f"{prefix}.encoder.layer.{{i}}"
    return {
        **{f"{prefix}.embeddings.{name}_token": (f"embed.{name}", "1 1 embed") for name in tokens},
        f"{prefix}.embeddings.position_embeddings": ("embed.pos", "1 pos embed"),
        **patches(f"{prefix}.embeddings.patch_embeddings.projection"),
        **norm(f"{layer}.layernorm_before", "blocks.ln1"),
        **attention(f"{layer}.attention", "attention.query", "attention.key", "attention.value", "output.dense"),
        **norm(f"{layer}.layernorm_after", "blocks.ln2"),
        **mlp(layer, "intermediate.dense", "output.dense"),
        **norm(f"{prefix}.layernorm", "final_norm"),
        **linear(f"{prefix}.pooler.dense", "pooler.w", "embed_out embed", "pooler.b", "embed_out"),
        **linear("classifier", "head.w", "vocab token", "head.b", "vocab"),
        **(_teachers() if "distillation" in tokens else {}),
    }


def _teachers() -> Keys:
    out: dict[str, tuple[str, str]] = {}
    for token in ("cls", "distillation"):
        axes = f"head.w_{token}", "vocab token", f"head.b_{token}", "vocab"
        out |= linear(f"{token}_classifier", *axes)
    return out


_DISTILLED: Final = "DeiTForImageClassificationWithTeacher"


def _teacher(hf: Fields, values: dict[str, Any]) -> dict[str, Any]:
    """Whether a DeiT was saved with one classifier or with two."""
    two = _DISTILLED in classes_of(hf)
    return {"classify": "distilled", "head_bias": False} if two else {"classify": "cls", "head_bias": True}


def _teacher_class(cfg: Config) -> dict[str, Any]:
    return {"architectures": [_DISTILLED]} if cfg.classify == "distilled" else {}


def _vit_family(prefix: str, tokens: tuple[str, ...], *classes: str) -> Family:
    return Family(
        fields={
            **SIZES,
            "d_mlp": Key("intermediate_size", REQUIRED),
            "act": Key("hidden_act", "gelu"),
            "norm_eps": Key("layer_norm_eps", 1e-12),
            "qkv_bias": Key("qkv_bias", True),
        },
        fixed={**{k: v for k, v in FIXED.items() if k != "qkv_bias"}, "classify": "cls", "head_bias": True},
        keys=_vit(prefix, tokens),
        prefix=f"{prefix}.",
        classes=(classes[0], classes[1]),
        image=Image(size=224, patch=16, prefix=tokens),
        only={"pooler_act": ("tanh",)},
        derived=(_teacher, _teacher_class) if "distillation" in tokens else None,
        optional={
            "pooler": f"{prefix}.pooler.dense.weight",
            "has_head": ("classifier.weight", "cls_classifier.weight"),
        },
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
        f"{prefix}.embeddings.mask_token": ("embed.mask_token", "1 embed"),
        f"{prefix}.embeddings.register_tokens": ("embed.registers", "1 register embed"),
        f"{prefix}.embeddings.position_embeddings": ("embed.pos", "1 pos embed"),
        **patches(f"{prefix}.embeddings.patch_embeddings.projection"),
        **norm(f"{layer}.norm1", "blocks.ln1"),
        **attention(f"{layer}.attention", "attention.query", "attention.key", "attention.value", "output.dense"),
        f"{layer}.layer_scale1.lambda1": ("blocks.ls1", "embed"),
        **norm(f"{layer}.norm2", "blocks.ln2"),
        **(swiglu if gated else plain),
        f"{layer}.layer_scale2.lambda1": ("blocks.ls2", "embed"),
        **norm(f"{prefix}.layernorm", "final_norm"),
        "classifier.weight": (("head.w", "head.w_patches"), "vocab (part token)"),
        "classifier.bias": ("head.b", "vocab"),
    }


def _dinov2_mlp(hf: Fields, values: dict[str, Any]) -> dict[str, Any]:
    width = _dinov2_width(values["d_model"], hf.read("mlp_ratio", _RATIO, 4), gated=values["gated"])
    return {"d_mlp": width, **({"act": "silu"} if values["gated"] else {})}


def _dinov2_width(d_model: int, ratio: float, *, gated: bool) -> int:
    """SwiGLU keeps two thirds of the width, rounded up to a multiple of 8."""
    width = int(d_model * ratio)
    return (int(width * 2 / 3) + 7) // 8 * 8 if gated else width


def _dinov2_ratio(cfg: Config) -> dict[str, Any]:
    """The ratio that gives this width; transformers takes whole ones only."""
    fits = [r for r in range(1, 17) if _dinov2_width(cfg.d_model, r, gated=cfg.gated) == cfg.d_mlp]
    masked = {} if cfg.image is None or cfg.image.mask_token else {"use_mask_token": False}
    return {"mlp_ratio": fits[0] if fits else 4, **({"hidden_act": "gelu"} if cfg.gated else {}), **masked}


def _dinov2(prefix: str, patch: int, registers: int, *classes: str) -> Family:
    return Family(
        fields={
            **SIZES,
            "d_mlp": Key("mlp_ratio", 4, kind=_RATIO),
            "act": Key("hidden_act", "gelu"),
            "norm_eps": Key("layer_norm_eps", 1e-6),
            "qkv_bias": Key("qkv_bias", True),
            "gated": Key("use_swiglu_ffn", False),
        },
        fixed={
            **{k: v for k, v in FIXED.items() if k not in ("qkv_bias", "gated")},
            "layer_scale": True,
            "pool_from": "first",
            "classify": "cls_and_patches",
            "head_bias": True,
        },
        keys=_dinov2_keys(prefix, gated=False),
        keys_of=lambda cfg: _dinov2_keys(prefix, gated=cfg.gated),
        prefix=f"{prefix}.",
        classes=(classes[0], classes[1]),
        image=Image(size=224, patch=patch, registers=registers, mask_token=True, antialias=registers > 0),
        derived=(_dinov2_mlp, _dinov2_ratio),
        optional={"has_head": "classifier.weight"},
    )


VISION: Final = {
    "vit": _vit_family("vit", ("cls",), "ViTModel", "ViTForImageClassification"),
    "deit": _vit_family("deit", ("cls", "distillation"), "DeiTModel", "DeiTForImageClassification"),
    "dinov2": _dinov2("dinov2", 14, 0, "Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": _dinov2(
        "dinov2_with_registers", 16, 4, "Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"
    ),
}
