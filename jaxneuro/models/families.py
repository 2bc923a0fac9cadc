# SPDX-License-Identifier: Apache-2.0
"""One row per model family: what its config keys and its tensors are called in a Hugging Face folder.

A family is data. `keys` maps a tensor to a leaf of `layout` and spells the tensor's axes by name; the transform in both
directions follows from the names (see `convert`), so load and save cannot disagree:

    "model.layers.{i}.self_attn.q_proj.weight": ("blocks.attn.wq", "(heads head) embed")

Several leaves for one tensor are its slices along the axis called `part`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

type Keys = Mapping[str, tuple[str | tuple[str, ...], str]]

REQUIRED: Final = object()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How one `model_type` is spelled."""

    fields: Mapping[str, tuple[str, Any]]
    """{Config field: (config key, value that transformers takes when the key is absent)}."""
    fixed: Mapping[str, Any]
    """Config fields that are the same for every model of the family."""
    keys: Keys
    prefix: str
    """In front of every tensor but the head's; absent when the base model alone was saved."""
    classes: tuple[str, str]
    """transformers' class without and with a head."""
    windows: str = "never"
    """never | always (sliding_window for every layer) | by_layer (layer_types, use_sliding_window ...)."""
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Config keys that change the mathematics in ways not ported, with the values that do not."""
    ignored: tuple[str, ...] = ()
    """Patterns of buffers in checkpoints that hold no weights."""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{tensor: the one it repeats}; accepted when equal, or in its place."""
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{Config field: tensor whose presence in the checkpoint decides it}."""


def _linear(name: str, leaf: str, axes: str, bias: str = "", bias_axes: str = "") -> dict[str, Any]:
    out = {f"{name}.weight": (leaf, axes)}
    return out | {f"{name}.bias": (bias, bias_axes)} if bias else out


def _norm(name: str, leaf: str) -> dict[str, Any]:
    return _linear(name, f"{leaf}.scale", "embed", f"{leaf}.bias", "embed")


_L: Final = "model.layers.{i}"
LLAMA_KEYS: Final[Keys] = {
    "model.embed_tokens.weight": ("embed.tok", "vocab embed"),
    f"{_L}.input_layernorm.weight": ("blocks.ln1.scale", "embed"),
    **_linear(f"{_L}.self_attn.q_proj", "blocks.attn.wq", "(heads head) embed", "blocks.attn.bq", "(heads head)"),
    **_linear(f"{_L}.self_attn.k_proj", "blocks.attn.wk", "(kv_heads head) embed", "blocks.attn.bk", "(kv_heads head)"),
    **_linear(f"{_L}.self_attn.v_proj", "blocks.attn.wv", "(kv_heads head) embed", "blocks.attn.bv", "(kv_heads head)"),
    **_linear(f"{_L}.self_attn.o_proj", "blocks.attn.wo", "embed (heads head)", "blocks.attn.bo", "embed"),
    f"{_L}.self_attn.q_norm.weight": ("blocks.attn.q_norm.scale", "head"),
    f"{_L}.self_attn.k_norm.weight": ("blocks.attn.k_norm.scale", "head"),
    f"{_L}.post_attention_layernorm.weight": ("blocks.ln2.scale", "embed"),
    **_linear(f"{_L}.mlp.gate_proj", "blocks.mlp.gate", "mlp embed", "blocks.mlp.b_gate", "mlp"),
    **_linear(f"{_L}.mlp.up_proj", "blocks.mlp.up", "mlp embed", "blocks.mlp.b_up", "mlp"),
    **_linear(f"{_L}.mlp.down_proj", "blocks.mlp.down", "embed mlp", "blocks.mlp.b_down", "embed"),
    "model.norm.weight": ("final_norm.scale", "embed"),
    "lm_head.weight": ("head.w", "vocab embed"),
}
_LLAMA_FIELDS: Final = {
    "n_layers": ("num_hidden_layers", REQUIRED),
    "d_model": ("hidden_size", REQUIRED),
    "n_heads": ("num_attention_heads", REQUIRED),
    "n_kv_heads": ("num_key_value_heads", None),
    "d_head": ("head_dim", None),
    "d_mlp": ("intermediate_size", REQUIRED),
    "d_vocab": ("vocab_size", REQUIRED),
    "n_ctx": ("max_position_embeddings", 2048),
    "act": ("hidden_act", "silu"),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tied": ("tie_word_embeddings", False),
}
_LLAMA: Final[dict[str, Any]] = {
    "keys": LLAMA_KEYS,
    "prefix": "model.",
    "ignored": (r"rotary_emb\.inv_freq$",),
    "copies": {"lm_head.weight": "model.embed_tokens.weight"},
}

_G: Final = "transformer.h.{i}"
GPT2_KEYS: Final[Keys] = {
    "transformer.wte.weight": ("embed.tok", "vocab embed"),
    "transformer.wpe.weight": ("embed.pos", "pos embed"),
    **_norm(f"{_G}.ln_1", "blocks.ln1"),
    f"{_G}.attn.c_attn.weight": (
        ("blocks.attn.wq", "blocks.attn.wk", "blocks.attn.wv"),
        "embed (part heads head)",
    ),
    f"{_G}.attn.c_attn.bias": (("blocks.attn.bq", "blocks.attn.bk", "blocks.attn.bv"), "(part heads head)"),
    **_linear(f"{_G}.attn.c_proj", "blocks.attn.wo", "(heads head) embed", "blocks.attn.bo", "embed"),
    **_norm(f"{_G}.ln_2", "blocks.ln2"),
    **_linear(f"{_G}.mlp.c_fc", "blocks.mlp.up", "embed mlp", "blocks.mlp.b_up", "mlp"),
    **_linear(f"{_G}.mlp.c_proj", "blocks.mlp.down", "mlp embed", "blocks.mlp.b_down", "embed"),
    **_norm("transformer.ln_f", "final_norm"),
    "lm_head.weight": ("head.w", "vocab embed"),
}

_B: Final = "bert.encoder.layer.{i}"
BERT_KEYS: Final[Keys] = {
    "bert.embeddings.word_embeddings.weight": ("embed.tok", "vocab embed"),
    "bert.embeddings.position_embeddings.weight": ("embed.pos", "pos embed"),
    "bert.embeddings.token_type_embeddings.weight": ("embed.type", "type embed"),
    **_norm("bert.embeddings.LayerNorm", "embed.norm"),
    **_linear(f"{_B}.attention.self.query", "blocks.attn.wq", "(heads head) embed", "blocks.attn.bq", "(heads head)"),
    **_linear(f"{_B}.attention.self.key", "blocks.attn.wk", "(heads head) embed", "blocks.attn.bk", "(heads head)"),
    **_linear(f"{_B}.attention.self.value", "blocks.attn.wv", "(heads head) embed", "blocks.attn.bv", "(heads head)"),
    **_linear(f"{_B}.attention.output.dense", "blocks.attn.wo", "embed (heads head)", "blocks.attn.bo", "embed"),
    **_norm(f"{_B}.attention.output.LayerNorm", "blocks.ln1"),
    **_linear(f"{_B}.intermediate.dense", "blocks.mlp.up", "mlp embed", "blocks.mlp.b_up", "mlp"),
    **_linear(f"{_B}.output.dense", "blocks.mlp.down", "embed mlp", "blocks.mlp.b_down", "embed"),
    **_norm(f"{_B}.output.LayerNorm", "blocks.ln2"),
    **_linear("bert.pooler.dense", "pooler.w", "embed_out embed", "pooler.b", "embed_out"),
    **_linear("cls.predictions.transform.dense", "head.dense", "embed_out embed", "head.dense_bias", "embed_out"),
    **_norm("cls.predictions.transform.LayerNorm", "head.norm"),
    "cls.predictions.bias": ("head.b", "vocab"),
    "cls.predictions.decoder.weight": ("head.w", "vocab embed"),
}

FAMILIES: Final[dict[str, Family]] = {
    "gpt2": Family(
        fields={
            "n_layers": ("n_layer", REQUIRED),
            "d_model": ("n_embd", REQUIRED),
            "n_heads": ("n_head", REQUIRED),
            "d_mlp": ("n_inner", None),
            "d_vocab": ("vocab_size", REQUIRED),
            "n_ctx": ("n_positions", 1024),
            "act": ("activation_function", "gelu_new"),
            "norm_eps": ("layer_norm_epsilon", 1e-5),
            "attn_scale_by_layer": ("scale_attn_by_inverse_layer_idx", False),
            "tied": ("tie_word_embeddings", True),
        },
        fixed={
            "gated": False,
            "norm": "layer",
            "rope": None,
            "learned_positions": True,
            "qkv_bias": True,
            "out_bias": True,
            "mlp_bias": True,
        },
        keys=GPT2_KEYS,
        prefix="transformer.",
        classes=("GPT2Model", "GPT2LMHeadModel"),
        only={"add_cross_attention": (False,), "scale_attn_weights": (True,)},
        ignored=(r"^(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$",),
        copies={"lm_head.weight": "transformer.wte.weight"},
    ),
    "llama": Family(
        fields={
            **_LLAMA_FIELDS,
            "qkv_bias": ("attention_bias", False),
            "out_bias": ("attention_bias", False),
            "mlp_bias": ("mlp_bias", False),
        },
        fixed={},
        classes=("LlamaModel", "LlamaForCausalLM"),
        **_LLAMA,
    ),
    "mistral": Family(
        fields={
            **_LLAMA_FIELDS,
            "n_kv_heads": ("num_key_value_heads", 8),
            "n_ctx": ("max_position_embeddings", 131072),
        },
        fixed={},
        classes=("MistralModel", "MistralForCausalLM"),
        windows="always",
        only={"layer_types": (None,)},
        **_LLAMA,
    ),
    "qwen2": Family(
        fields={
            **_LLAMA_FIELDS,
            "n_kv_heads": ("num_key_value_heads", 32),
            "n_ctx": ("max_position_embeddings", 32768),
        },
        fixed={"qkv_bias": True},
        classes=("Qwen2Model", "Qwen2ForCausalLM"),
        windows="by_layer",
        only={"use_mrope": (False, None)},
        **_LLAMA,
    ),
    "qwen3": Family(
        fields={
            **_LLAMA_FIELDS,
            "n_kv_heads": ("num_key_value_heads", 32),
            "d_head": ("head_dim", 128),
            "n_ctx": ("max_position_embeddings", 32768),
            "qkv_bias": ("attention_bias", False),
            "out_bias": ("attention_bias", False),
        },
        fixed={"qk_norm": True},
        classes=("Qwen3Model", "Qwen3ForCausalLM"),
        windows="by_layer",
        **_LLAMA,
    ),
    "bert": Family(
        fields={
            "n_layers": ("num_hidden_layers", REQUIRED),
            "d_model": ("hidden_size", REQUIRED),
            "n_heads": ("num_attention_heads", REQUIRED),
            "d_mlp": ("intermediate_size", REQUIRED),
            "d_vocab": ("vocab_size", REQUIRED),
            "n_ctx": ("max_position_embeddings", 512),
            "n_token_types": ("type_vocab_size", 2),
            "act": ("hidden_act", "gelu"),
            "norm_eps": ("layer_norm_eps", 1e-12),
            "tied": ("tie_word_embeddings", True),
        },
        fixed={
            "gated": False,
            "norm": "layer",
            "norm_placement": "post",
            "causal": False,
            "rope": None,
            "learned_positions": True,
            "embed_norm": True,
            "qkv_bias": True,
            "out_bias": True,
            "mlp_bias": True,
            "head_transform": True,
        },
        keys=BERT_KEYS,
        prefix="bert.",
        classes=("BertModel", "BertForMaskedLM"),
        only={
            "is_decoder": (False,),
            "add_cross_attention": (False,),
            "position_embedding_type": ("absolute", None),
        },
        ignored=(r"embeddings\.position_ids$", r"^cls\.seq_relationship\."),
        copies={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        optional={
            "pooler": "bert.pooler.dense.weight",
            "has_head": "cls.predictions.transform.dense.weight",
        },
    ),
}
