# SPDX-License-Identifier: Apache-2.0
"""Decoders with LayerNorm: GPT-2, GPT-NeoX (Pythia), GPT-J, OPT, Phi 1 to 2."""

from typing import Final

from ..rope import RopeKeys
from .family import REQUIRED, Family, Key, Keys, attention, linear, mlp, norm

_QKV: Final = ("blocks.attn.wq", "blocks.attn.wk", "blocks.attn.wv")
_QKV_BIAS: Final = ("blocks.attn.bq", "blocks.attn.bk", "blocks.attn.bv")
_BIASED: Final = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
_PLAIN: Final = {"gated": False, "norm": "layer"}

_H: Final = "transformer.h.{i}"
_GPT2_KEYS: Final[Keys] = {
    "transformer.wte.weight": ("embed.tok", "vocab token"),
    "transformer.wpe.weight": ("embed.pos", "pos embed"),
    **norm(f"{_H}.ln_1", "blocks.ln1"),
    f"{_H}.attn.c_attn.weight": (_QKV, "embed (part heads head)"),
    f"{_H}.attn.c_attn.bias": (_QKV_BIAS, "(part heads head)"),
    **linear(f"{_H}.attn.c_proj", "blocks.attn.wo", "(heads head) embed", "blocks.attn.bo", "embed"),
    **norm(f"{_H}.ln_2", "blocks.ln2"),
    **linear(f"{_H}.mlp.c_fc", "blocks.mlp.up", "embed mlp", "blocks.mlp.b_up", "mlp"),
    **linear(f"{_H}.mlp.c_proj", "blocks.mlp.down", "mlp embed", "blocks.mlp.b_down", "embed"),
    **norm("transformer.ln_f", "final_norm"),
    **linear("lm_head", "head.w", "vocab token"),
}
_GPTJ_KEYS: Final[Keys] = {
    "transformer.wte.weight": ("embed.tok", "vocab token"),
    **norm(f"{_H}.ln_1", "blocks.ln1"),
    **attention(f"{_H}.attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    **mlp(f"{_H}.mlp", "fc_in", "fc_out"),
    **norm("transformer.ln_f", "final_norm"),
    **linear("lm_head", "head.w", "vocab token", "head.b", "vocab"),
}
_N: Final = "gpt_neox.layers.{i}"
_NEOX_KEYS: Final[Keys] = {
    "gpt_neox.embed_in.weight": ("embed.tok", "vocab token"),
    **norm(f"{_N}.input_layernorm", "blocks.ln1"),
    f"{_N}.attention.query_key_value.weight": (_QKV, "(heads part head) embed"),
    f"{_N}.attention.query_key_value.bias": (_QKV_BIAS, "(heads part head)"),
    **linear(f"{_N}.attention.dense", "blocks.attn.wo", "embed (heads head)", "blocks.attn.bo", "embed"),
    **norm(f"{_N}.post_attention_layernorm", "blocks.ln2"),
    **mlp(f"{_N}.mlp", "dense_h_to_4h", "dense_4h_to_h"),
    **norm("gpt_neox.final_layer_norm", "final_norm"),
    **linear("embed_out", "head.w", "vocab token"),
}
_O: Final = "model.decoder.layers.{i}"
_OPT_KEYS: Final[Keys] = {
    "model.decoder.embed_tokens.weight": ("embed.tok", "vocab token"),
    "model.decoder.embed_positions.weight": ("embed.pos", "pos embed"),
    "model.decoder.project_in.weight": ("embed.proj_in", "embed token"),
    **norm(f"{_O}.self_attn_layer_norm", "blocks.ln1"),
    **attention(f"{_O}.self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    **norm(f"{_O}.final_layer_norm", "blocks.ln2"),
    **mlp(_O, "fc1", "fc2"),
    **norm("model.decoder.final_layer_norm", "final_norm"),
    "model.decoder.project_out.weight": ("head.proj_out", "token embed"),
    **linear("lm_head", "head.w", "vocab token"),
}
_P: Final = "model.layers.{i}"
_PHI_KEYS: Final[Keys] = {
    "model.embed_tokens.weight": ("embed.tok", "vocab token"),
    **norm(f"{_P}.input_layernorm", "blocks.ln1"),
    **attention(f"{_P}.self_attn", "q_proj", "k_proj", "v_proj", "dense"),
    **norm(f"{_P}.self_attn.q_layernorm", "blocks.attn.q_norm", "head"),
    **norm(f"{_P}.self_attn.k_layernorm", "blocks.attn.k_norm", "head"),
    **mlp(f"{_P}.mlp", "fc1", "fc2"),
    **norm("model.final_layernorm", "final_norm"),
    **linear("lm_head", "head.w", "vocab token", "head.b", "vocab"),
}
_SIZES: Final = {
    "n_layers": Key("num_hidden_layers", REQUIRED),
    "d_model": Key("hidden_size", REQUIRED),
    "n_heads": Key("num_attention_heads", REQUIRED),
    "d_vocab": Key("vocab_size", REQUIRED),
    "n_ctx": Key("max_position_embeddings", 2048),
}
_HIDDEN: Final = {
    **_SIZES,
    "d_mlp": Key("intermediate_size", REQUIRED),
    "norm_eps": Key("layer_norm_eps", 1e-5),
    "tied": Key("tie_word_embeddings", False),
}
_GPT_SIZES: Final = {
    "n_layers": Key("n_layer", REQUIRED),
    "d_model": Key("n_embd", REQUIRED),
    "n_heads": Key("n_head", REQUIRED),
    "d_mlp": Key("n_inner", None),
    "d_vocab": Key("vocab_size", REQUIRED),
    "act": Key("activation_function", "gelu_new"),
    "norm_eps": Key("layer_norm_epsilon", 1e-5),
}
_PLACEMENT: Final = {True: "pre", False: "post"}

DECODERS: Final = {
    "gpt2": Family(
        fields={
            **_GPT_SIZES,
            "n_ctx": Key("n_positions", 1024),
            "attn_scale_by_layer": Key("scale_attn_by_inverse_layer_idx", False),
            "tied": Key("tie_word_embeddings", True),
        },
        fixed={**_PLAIN, **_BIASED, "rope": None, "learned_positions": True},
        keys=_GPT2_KEYS,
        prefix="transformer.",
        classes=("GPT2Model", "GPT2LMHeadModel"),
        only={"add_cross_attention": (False,), "scale_attn_weights": (True,)},
        ignored=(r"^(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$",),
        copies={"lm_head.weight": "transformer.wte.weight"},
    ),
    "gptj": Family(
        fields={**_GPT_SIZES, "n_ctx": Key("n_positions", 2048), "tied": Key("tie_word_embeddings", False)},
        fixed={**_PLAIN, "mlp_bias": True, "parallel": True, "one_norm": True, "head_bias": True},
        keys=_GPTJ_KEYS,
        prefix="transformer.",
        classes=("GPTJModel", "GPTJForCausalLM"),
        rope=RopeKeys(part="rotary_dim", default_part=64, interleaved=True),
        ignored=(r"\.attn\.(bias|masked_bias|embed_positions)$",),
    ),
    "gpt_neox": Family(
        fields={
            **_HIDDEN,
            "act": Key("hidden_act", "gelu"),
            "parallel": Key("use_parallel_residual", True),
            "qkv_bias": Key("attention_bias", True),
            "out_bias": Key("attention_bias", True),
        },
        fixed={**_PLAIN, "mlp_bias": True},
        keys=_NEOX_KEYS,
        prefix="gpt_neox.",
        classes=("GPTNeoXModel", "GPTNeoXForCausalLM"),
        rope=RopeKeys(theta="rotary_emb_base", part="rotary_pct", default_part=0.25),
        ignored=(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",),
        copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
    ),
    "opt": Family(
        fields={
            **_SIZES,
            "d_mlp": Key("ffn_dim", REQUIRED),
            "d_embed": Key("word_embed_proj_dim", None),
            "act": Key("activation_function", "relu"),
            "norm_placement": Key("do_layer_norm_before", True, _PLACEMENT.get, "pre".__eq__),
            "qkv_bias": Key("enable_bias", True),
            "out_bias": Key("enable_bias", True),
            "mlp_bias": Key("enable_bias", True),
            "tied": Key("tie_word_embeddings", True),
        },
        fixed={
            **_PLAIN,
            "norm_eps": 1e-5,
            "rope": None,
            "learned_positions": True,
            "position_offset": 2,
            "masked_positions": True,
        },
        keys=_OPT_KEYS,
        prefix="model.",
        classes=("OPTModel", "OPTForCausalLM"),
        only={"_remove_final_layer_norm": (False,), "layer_norm_elementwise_affine": (True,)},
        copies={"lm_head.weight": "model.decoder.embed_tokens.weight"},
    ),
    "phi": Family(
        fields={
            **_HIDDEN,
            "n_kv_heads": Key("num_key_value_heads", None),
            "act": Key("hidden_act", "gelu_new"),
            "qk_norm": Key("qk_layernorm", False),
        },
        fixed={**_PLAIN, **_BIASED, "parallel": True, "one_norm": True, "head_bias": True},
        keys=_PHI_KEYS,
        prefix="model.",
        classes=("PhiModel", "PhiForCausalLM"),
        rope=RopeKeys(part="partial_rotary_factor", default_part=0.5),
        ignored=(r"rotary_emb\.inv_freq$",),
    ),
}
