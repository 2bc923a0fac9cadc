# SPDX-License-Identifier: Apache-2.0
"""Llama and what is built like it: Mistral, Qwen, Gemma, Phi-3."""

from typing import Any, Final

from ...io.fields import null_or
from ..ranges import SCALE
from ..rope import RopeKeys
from .family import REQUIRED, Family, Key, Keys, attention, linear, mlp, norm

_L: Final = "model.layers.{i}"
_ENDS: Final[Keys] = {
    "model.embed_tokens.weight": ("embed.tok", "vocab token"),
    **norm("model.norm", "final_norm"),
    **linear("lm_head", "head.w", "vocab token"),
}
_MAPS: Final[Keys] = {
    **attention(f"{_L}.self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
    **norm(f"{_L}.self_attn.q_norm", "blocks.attn.q_norm", "head"),
    **norm(f"{_L}.self_attn.k_norm", "blocks.attn.k_norm", "head"),
    **mlp(f"{_L}.mlp", "up_proj", "down_proj", "gate_proj"),
}
_NORMS: Final[Keys] = {
    **norm(f"{_L}.input_layernorm", "blocks.ln1"),
    **norm(f"{_L}.post_attention_layernorm", "blocks.ln2"),
}
_SANDWICH: Final[Keys] = {
    **norm(f"{_L}.input_layernorm", "blocks.ln1"),
    **norm(f"{_L}.post_attention_layernorm", "blocks.ln1_post"),
    **norm(f"{_L}.pre_feedforward_layernorm", "blocks.ln2"),
    **norm(f"{_L}.post_feedforward_layernorm", "blocks.ln2_post"),
}
_FUSED: Final[Keys] = {
    f"{_L}.self_attn.qkv_proj.weight": (
        ("blocks.attn.wq", "blocks.attn.wk", "blocks.attn.wv"),
        "(heads|kv_heads|kv_heads head) embed",
    ),
    **linear(f"{_L}.self_attn.o_proj", "blocks.attn.wo", "embed (heads head)"),
    f"{_L}.mlp.gate_up_proj.weight": (("blocks.mlp.gate", "blocks.mlp.up"), "(part mlp) embed"),
    **linear(f"{_L}.mlp.down_proj", "blocks.mlp.down", "embed mlp"),
}
FIELDS: Final = {
    "n_layers": Key("num_hidden_layers", REQUIRED),
    "d_model": Key("hidden_size", REQUIRED),
    "n_heads": Key("num_attention_heads", REQUIRED),
    "n_kv_heads": Key("num_key_value_heads", None),
    "d_head": Key("head_dim", None),
    "d_mlp": Key("intermediate_size", REQUIRED),
    "d_vocab": Key("vocab_size", REQUIRED),
    "n_ctx": Key("max_position_embeddings", 2048),
    "act": Key("hidden_act", "silu"),
    "norm_eps": Key("rms_norm_eps", 1e-6),
    "tied": Key("tie_word_embeddings", False),
}
_ALIKE: Final[dict[str, Any]] = {
    "keys": {**_NORMS, **_MAPS, **_ENDS},
    "prefix": "model.",
    "rope": RopeKeys(),
    "ignored": (r"rotary_emb\.inv_freq$",),
    "copies": {"lm_head.weight": "model.embed_tokens.weight"},
}
_BIASED: Final = {"qkv_bias": Key("attention_bias", False), "out_bias": Key("attention_bias", False)}


def _scalar(scale: float) -> float | int:
    """scale ** -2, a whole number where it is one, as transformers 5 wants it."""
    found = round(scale**-2, 6)
    return int(found) if found == int(found) else found


_GEMMA_FIELDS: Final = {
    **FIELDS,
    **_BIASED,
    "d_head": Key("head_dim", 256),
    "act": Key("hidden_activation", "gelu_pytorch_tanh"),
    "n_ctx": Key("max_position_embeddings", 8192),
    "tied": Key("tie_word_embeddings", True),
}
_GEMMA_FIXED: Final = {"norm": "gemma_rms", "embed_scale": True}
_GEMMA_ONLY: Final = {"use_bidirectional_attention": (False, None)}
_GEMMA2_FIELDS: Final = {
    **_GEMMA_FIELDS,
    "n_kv_heads": Key("num_key_value_heads", 4),
    "attn_scale": Key("query_pre_attn_scalar", 256, lambda q: q**-0.5, _scalar, SCALE),
    "attn_softcap": Key("attn_logit_softcapping", None),
    "logit_softcap": Key("final_logit_softcapping", None),
}
_CAP: Final = null_or(SCALE)

LLAMA_LIKE: Final = {
    "llama": Family(
        fields={**FIELDS, **_BIASED, "mlp_bias": Key("mlp_bias", False)},
        fixed={},
        classes=("LlamaModel", "LlamaForCausalLM"),
        **_ALIKE,
    ),
    "mistral": Family(
        fields={
            **FIELDS,
            "n_kv_heads": Key("num_key_value_heads", 8),
            "n_ctx": Key("max_position_embeddings", 131072),
        },
        fixed={},
        classes=("MistralModel", "MistralForCausalLM"),
        windows="always",
        only={"layer_types": (None,)},
        **_ALIKE,
    ),
    "qwen2": Family(
        fields={
            **FIELDS,
            "n_kv_heads": Key("num_key_value_heads", 32),
            "n_ctx": Key("max_position_embeddings", 32768),
        },
        fixed={"qkv_bias": True},
        classes=("Qwen2Model", "Qwen2ForCausalLM"),
        windows="by_layer",
        only={"use_mrope": (False, None)},
        **_ALIKE,
    ),
    "qwen3": Family(
        fields={
            **FIELDS,
            **_BIASED,
            "n_kv_heads": Key("num_key_value_heads", 32),
            "d_head": Key("head_dim", 128),
            "n_ctx": Key("max_position_embeddings", 32768),
        },
        fixed={"qk_norm": True},
        classes=("Qwen3Model", "Qwen3ForCausalLM"),
        windows="by_layer",
        **_ALIKE,
    ),
    "gemma": Family(
        fields={
            **_GEMMA_FIELDS,
            "n_kv_heads": Key("num_key_value_heads", 16),
            "act": Key("hidden_act", "gelu_pytorch_tanh"),
        },
        fixed=_GEMMA_FIXED,
        classes=("GemmaModel", "GemmaForCausalLM"),
        acts={"gelu": "gelu_tanh"},  # the first releases say gelu and mean its tanh form
        only=_GEMMA_ONLY,
        **_ALIKE,
    ),
    "gemma2": Family(
        fields={
            **_GEMMA2_FIELDS,
            "attn_softcap": Key("attn_logit_softcapping", 50.0, kind=_CAP),
            "logit_softcap": Key("final_logit_softcapping", 30.0, kind=_CAP),
        },
        fixed={**_GEMMA_FIXED, "norm_placement": "sandwich"},
        classes=("Gemma2Model", "Gemma2ForCausalLM"),
        windows="periodic",
        period=2,
        only=_GEMMA_ONLY,
        **{**_ALIKE, "keys": {**_SANDWICH, **_MAPS, **_ENDS}},
    ),
    "gemma3_text": Family(
        fields={**_GEMMA2_FIELDS, "n_ctx": Key("max_position_embeddings", 131072)},
        fixed={**_GEMMA_FIXED, "norm_placement": "sandwich", "qk_norm": True},
        classes=("Gemma3TextModel", "Gemma3ForCausalLM"),
        windows="periodic",
        period=6,
        only=_GEMMA_ONLY,
        **{
            **_ALIKE,
            "keys": {**_SANDWICH, **_MAPS, **_ENDS},
            "rope": RopeKeys(default_theta=1e6, local_theta="rope_local_base_freq"),
        },
    ),
    "phi3": Family(
        fields={
            **FIELDS,
            "n_ctx": Key("max_position_embeddings", 4096),
            "norm_eps": Key("rms_norm_eps", 1e-5),
        },
        fixed={},
        classes=("Phi3Model", "Phi3ForCausalLM"),
        windows="always",
        window=None,
        **{
            **_ALIKE,
            "keys": {**_NORMS, **_FUSED, **_ENDS},
            "rope": RopeKeys(part="partial_rotary_factor"),
        },
    ),
}
