# SPDX-License-Identifier: Apache-2.0
"""The encoders of T5 1.0 and 1.1, Flan-T5 and mT5, as `T5EncoderModel` saves them."""

from typing import Any, Final

from ..config import Config
from ..relative import RelativeBias
from .family import REQUIRED, Family, Key, Keys, attention, mlp, norm

_L: Final = "encoder.block.{i}.layer"
_ATTENTION: Final[Keys] = {
    "shared.weight": ("embed.tok", "vocab token"),
    **norm(f"{_L}.0.layer_norm", "blocks.ln1"),
    **attention(f"{_L}.0.SelfAttention", "q", "k", "v", "o"),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": ("relative.table", "bucket heads"),
    **norm(f"{_L}.1.layer_norm", "blocks.ln2"),
    **norm("encoder.final_layer_norm", "final_norm"),
}
_BUCKETS: Final = (("num_buckets", 32), ("max_distance", 128))
_GATED: Final = "gated-"
_ACTS: Final = {
    f"{_GATED}gelu": "gelu_tanh",  # the one name that transformers takes to mean another function
    f"{_GATED}gelu_new": "gelu_tanh",
    f"{_GATED}relu": "relu",
    f"{_GATED}silu": "silu",
}
_ACT_NAMES: Final = {"gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu", "gelu": "gelu"}


def _family(usual_act: str, name: str) -> Family:
    def read(hf: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        buckets, far = (hf.get(f"relative_attention_{key}", n) for key, n in _BUCKETS)
        gated = hf.get("feed_forward_proj", usual_act).startswith(_GATED)
        return {"gated": gated, "relative": RelativeBias(buckets=buckets, max_distance=far)}

    def write(cfg: Config) -> dict[str, Any]:
        relative = cfg.relative or RelativeBias()
        sizes = (relative.buckets, relative.max_distance)
        out = {f"relative_attention_{key}": n for (key, _), n in zip(_BUCKETS, sizes, strict=True)}
        names = {act: name for name, act in reversed(_ACTS.items())} if cfg.gated else _ACT_NAMES
        return {**out, "feed_forward_proj": names.get(cfg.act, cfg.act), "is_encoder_decoder": False}

    return Family(
        fields={
            "n_layers": Key("num_layers", REQUIRED),
            "d_model": Key("d_model", REQUIRED),
            "n_heads": Key("num_heads", REQUIRED),
            "d_head": Key("d_kv", 64),
            "d_mlp": Key("d_ff", REQUIRED),
            "d_vocab": Key("vocab_size", REQUIRED),
            "n_ctx": Key("n_positions", 512),
            "act": Key("feed_forward_proj", usual_act),
            "norm_eps": Key("layer_norm_epsilon", 1e-6),
        },
        fixed={"causal": False, "rope": None, "attn_scale": 1.0, "has_head": False},
        keys={**_ATTENTION, **mlp(f"{_L}.1.DenseReluDense", "wi", "wo")},
        gated_keys={**_ATTENTION, **mlp(f"{_L}.1.DenseReluDense", "wi_1", "wo", "wi_0")},
        prefix="",
        classes=(name, name),
        acts=_ACTS,
        derived=(read, write),
        only={"architectures": ([name], None), "is_decoder": (False,)},
        copies={"encoder.embed_tokens.weight": "shared.weight"},
    )


T5_ENCODERS: Final = {
    "t5": _family("relu", "T5EncoderModel"),
    "mt5": _family("gated-gelu", "MT5EncoderModel"),
}
