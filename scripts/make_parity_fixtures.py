# SPDX-License-Identifier: Apache-2.0
"""Make the golden data of tests/parity: tiny transformers models with every parameter perturbed, and what they compute.

Needs torch and transformers, in an environment of its own (nothing else of this repository is imported):

    python scripts/make_parity_fixtures.py                     write tests/parity/fixtures
    python scripts/make_parity_fixtures.py vit clip resized    only these cases, pairs, or the resized pictures
    python scripts/make_parity_fixtures.py hidden gaps         only the pictures with hidden patches, texts with gaps
    python scripts/make_parity_fixtures.py --bdh FILE          the case of BDH, from its authors' module
    python scripts/make_parity_fixtures.py --minilm FOLDER     also the golden embeddings of all-MiniLM-L6-v2
    python scripts/make_parity_fixtures.py --verify FOLDER     load FOLDER/CASE as jaxneuro saved it, and compare

Each case is a folder as transformers writes it (config.json, model.safetensors) and expected.npz: tokens, mask, logits
(or the last hidden state), the residual stream into the first layer and out of every layer; of models with an encoder
also its input and residual stream, as context and encoder_resid. Norm scales and biases are far from 1 and 0, epsilons
are large, windows are shorter than the text: else a wrong switch would not show.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import transformers

FIXTURES = Path(__file__).parents[1] / "tests" / "parity" / "fixtures"
SEED = 20250806
BATCH, LENGTH = 3, 20

_LLAMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False,
    "rope_theta": 100.0,
}
_MIXTRAL = {**_LLAMA, "intermediate_size": 12, "num_experts_per_tok": 2}
_QWEN_MOE = {**_LLAMA, "moe_intermediate_size": 12, "num_experts_per_tok": 2, "head_dim": 4}
_T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "layer_norm_epsilon": 1e-3,
    "initializer_factor": 0.3,  # else the residual stream is so large that its rounding is
}
_SEQ2SEQ = {**_T5, "d_model": 10, "d_kv": 4, "d_ff": 16, "num_heads": 3, "num_layers": 2, "num_decoder_layers": 3}
_GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32, "layer_norm_epsilon": 1e-3}
_BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "layer_norm_eps": 1e-3,
}
_NEOX = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-3,
    "rotary_emb_base": 100.0,
}
_OPT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_GEMMA = {**_LLAMA, "head_dim": 8, "tie_word_embeddings": True, "pad_token_id": 0}
_PHI = {**{k: v for k, v in _NEOX.items() if k != "rotary_emb_base"}, "rope_theta": 100.0}
_VIT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-3,
    "image_size": 12,
    "patch_size": 3,
    "num_channels": 2,
}
_DINO = {**{k: v for k, v in _VIT.items() if k != "intermediate_size"}, "mlp_ratio": 2}
_ROBERTA = {**_BERT, "type_vocab_size": 2}
_MAMBA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 3,
    "layer_norm_epsilon": 1e-2,
    "time_step_rank": 3,
}
_MAMBA2 = {
    **{k: v for k, v in _MAMBA.items() if k != "time_step_rank"},
    "num_heads": 4,
    "head_dim": 8,
    "n_groups": 2,
    "chunk_size": 8,  # does not divide LENGTH
}


def _rope(kind: str, **values: object) -> dict[str, object]:
    return {"rope_scaling": {"rope_type": kind, **values}}


_LISTS = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 2.0, 3.0, 5.0]}
# case: (transformers class, config). Every family and every switch of jaxneuro.models.Config appears.
CASES: dict[str, tuple[str, Mapping[str, object]]] = {
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt2-by-layer": (
        "GPT2LMHeadModel",
        {**_GPT2, "scale_attn_by_inverse_layer_idx": True, "n_inner": 24, "activation_function": "relu"},
    ),
    "llama-mha-tied": ("LlamaForCausalLM", {**_LLAMA, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-gqa": ("LlamaForCausalLM", {**_LLAMA, "head_dim": 8}),
    "llama-mqa-biases": (
        "LlamaForCausalLM",
        {**_LLAMA, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    ),
    "llama-base": ("LlamaModel", _LLAMA),
    "llama-linear": ("LlamaForCausalLM", {**_LLAMA, "head_dim": 8, **_rope("linear", factor=3.0)}),
    "llama-llama3": (
        "LlamaForCausalLM",
        {
            **_LLAMA,
            "head_dim": 8,
            **_rope(
                "llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        },
    ),
    "llama-yarn": (
        "LlamaForCausalLM",
        {
            **_LLAMA,
            "head_dim": 8,
            **_rope("yarn", factor=4.0, beta_fast=0.5, beta_slow=0.15, original_max_position_embeddings=16),
        },
    ),
    "llama-yarn-mscale": (
        "LlamaForCausalLM",
        {
            **_LLAMA,
            "head_dim": 8,
            **_rope(
                "yarn",
                factor=4.0,
                beta_fast=0.5,
                beta_slow=0.15,
                mscale=1.5,
                mscale_all_dim=0.5,
                truncate=False,
                original_max_position_embeddings=16,
            ),
        },
    ),
    "llama-longrope-short": (
        "LlamaForCausalLM",
        {**_LLAMA, "head_dim": 8, **_rope("longrope", original_max_position_embeddings=32, **_LISTS)},
    ),
    "llama-longrope-long": (
        "LlamaForCausalLM",
        {**_LLAMA, "head_dim": 8, **_rope("longrope", original_max_position_embeddings=16, **_LISTS)},
    ),
    "mistral-windowed": ("MistralForCausalLM", {**_LLAMA, "sliding_window": 5, "hidden_act": "gelu_new"}),
    "mistral-full": ("MistralForCausalLM", {**_LLAMA, "sliding_window": None}),
    "qwen2-tied": ("Qwen2ForCausalLM", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen2-windowed": (
        "Qwen2ForCausalLM",
        {**_LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {**_LLAMA, "head_dim": 8, "attention_bias": True}),
    "qwen3-alternating": (
        "Qwen3ForCausalLM",
        {
            **_LLAMA,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "bert": ("BertModel", _BERT),
    "bert-mlm": ("BertForMaskedLM", {**_BERT, "hidden_act": "gelu_new"}),
    "gptj": ("GPTJForCausalLM", {**_GPT2, "n_head": 2, "rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**_NEOX, "rotary_pct": 0.5}),
    "gpt_neox-serial": (
        "GPTNeoXForCausalLM",
        {**_NEOX, "rotary_pct": 0.5, "use_parallel_residual": False, "attention_bias": False},
    ),
    "opt": ("OPTForCausalLM", _OPT),
    "opt-350m": ("OPTForCausalLM", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 12}),
    "opt-no-biases": ("OPTForCausalLM", {**_OPT, "enable_bias": False}),
    "gemma": ("GemmaForCausalLM", _GEMMA),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            **_GEMMA,
            "sliding_window": 6,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {
            **_GEMMA,
            "sliding_window": 6,
            "query_pre_attn_scalar": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_local_base_freq": 30.0,
            **_rope("linear", factor=3.0),
        },
    ),
    "phi": ("PhiForCausalLM", {**_PHI, "partial_rotary_factor": 0.5}),
    "phi-qk": ("PhiForCausalLM", {**_PHI, "qk_layernorm": True, "num_key_value_heads": 2}),
    "phi3": ("Phi3ForCausalLM", {**_LLAMA, "pad_token_id": 0}),
    "phi3-partial": (
        "Phi3ForCausalLM",
        {**_LLAMA, "pad_token_id": 0, "num_attention_heads": 2, "partial_rotary_factor": 0.5, "sliding_window": 5},
    ),
    "llama-dynamic": (
        "LlamaForCausalLM",
        {**_LLAMA, "head_dim": 8, "max_position_embeddings": 8, **_rope("dynamic", factor=3.0)},
    ),
    "roberta": ("RobertaModel", _ROBERTA),
    "roberta-mlm": ("RobertaForMaskedLM", _ROBERTA),
    "xlm-roberta": ("XLMRobertaForMaskedLM", {**_ROBERTA, "hidden_act": "gelu_new"}),
    "vit": ("ViTModel", _VIT),
    "vit-no-biases": ("ViTModel", {**_VIT, "qkv_bias": False, "hidden_act": "gelu_new"}),
    "deit": ("DeiTModel", _VIT),
    "dinov2": ("Dinov2Model", _DINO),
    "dinov2-swiglu": ("Dinov2Model", {**_DINO, "use_swiglu_ffn": True}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {**_DINO, "num_register_tokens": 3}),
    "clip_vision_model": ("CLIPVisionModel", _VIT),
    "clip_text_model": ("CLIPTextModel", {**_BERT, "eos_token_id": 2, "bos_token_id": 1}),
    "siglip_vision_model": ("SiglipVisionModel", _VIT),
    "vit-classes": ("ViTForImageClassification", {**_VIT, "num_labels": 5}),
    "deit-classes": ("DeiTForImageClassification", _VIT),
    "deit-distilled": ("DeiTForImageClassificationWithTeacher", {**_VIT, "num_labels": 5}),
    "dinov2-classes": ("Dinov2ForImageClassification", {**_DINO, "num_labels": 5, "use_mask_token": False}),
    "dinov2_with_registers-classes": (
        "Dinov2WithRegistersForImageClassification",
        {**_DINO, "num_labels": 5, "num_register_tokens": 3},
    ),
    "clip_vision_model-projected": ("CLIPVisionModelWithProjection", {**_VIT, "projection_dim": 12}),
    "clip_text_model-projected": (
        "CLIPTextModelWithProjection",
        {**_BERT, "projection_dim": 12, "eos_token_id": 5, "bos_token_id": 1},
    ),
    "siglip_vision_model-no-pooler": ("SiglipVisionModel", {**_VIT, "vision_use_head": False}),
    "siglip_text_model": ("SiglipTextModel", {**_BERT, "projection_size": 12}),
    "mamba": ("MambaForCausalLM", _MAMBA),
    "mamba-biases": (
        "MambaForCausalLM",
        {
            **_MAMBA,
            "use_bias": True,
            "use_conv_bias": False,
            "conv_kernel": 3,
            "expand": 3,
            "residual_in_fp32": False,
            "tie_word_embeddings": False,
            "hidden_act": "gelu",
        },
    ),
    "mamba2": ("Mamba2ForCausalLM", {**_MAMBA2, "time_step_limit": [0.005, 0.05]}),
    "mamba2-biases": (
        "Mamba2ForCausalLM",
        {
            **_MAMBA2,
            "use_bias": True,
            "use_conv_bias": False,
            "conv_kernel": 3,
            "n_groups": 1,
            "residual_in_fp32": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
        },
    ),
    "mixtral": ("MixtralForCausalLM", {**_MIXTRAL, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**_QWEN_MOE, "num_experts": 4, "attention_bias": True}),
    "qwen3_moe-renormalised": (
        "Qwen3MoeForCausalLM",
        {**_QWEN_MOE, "num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": True},
    ),
    "t5-encoder": ("T5EncoderModel", _T5),
    "t5-encoder-gated": (
        "T5EncoderModel",
        {**_T5, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 12, "tie_word_embeddings": False},
    ),
    "mt5-encoder": ("MT5EncoderModel", _T5),
    "t5": ("T5ForConditionalGeneration", _SEQ2SEQ),
    "t5-gated": (
        "T5ForConditionalGeneration",
        {**_SEQ2SEQ, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mt5": ("MT5ForConditionalGeneration", _SEQ2SEQ),
    "umt5": ("UMT5ForConditionalGeneration", _SEQ2SEQ),
    "qwen3_moe-mixed": (
        "Qwen3MoeForCausalLM",
        {**_QWEN_MOE, "num_experts": 4, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
}
# Cases whose unembedding is another matrix than the embedding, which transformers 5 decides by the tensors.
UNTIED = ("t5-gated", "mt5", "umt5")
# The authors' module, which transformers has not; --bdh says where it is.
BDH = {
    "repository": "https://github.com/pathwaycom/bdh",
    "commit": "714bc800631e7bffc0946768f4f3c77d25a68ca4",
    "file": "bdh.py",
    "sha256": "cfe24008f920965cc3c8236feff52c89ca794a31e52324acf9ddb4cd6fd50ac9",
    "defaults": {
        "n_layer": 6,
        "n_embd": 256,
        "dropout": 0.1,
        "n_head": 4,
        "mlp_internal_dim_multiplier": 128,
        "vocab_size": 256,
    },
    "config": {"n_layer": 3, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 4, "vocab_size": 40},
}
_EOS = {"clip_text_model-projected": 5, "clip": 5}
_SMALL = {"num_hidden_layers": 2}
# Two models in one folder; they lie in fixtures/pairs.
PAIRS: dict[str, tuple[str, Mapping[str, object]]] = {
    "clip": (
        "CLIPModel",
        {
            "text_config": {**_BERT, **_SMALL, "eos_token_id": 5, "bos_token_id": 1},
            "vision_config": {**_VIT, **_SMALL},
            "projection_dim": 12,
        },
    ),
    "siglip": (
        "SiglipModel",
        {"text_config": {**_BERT, **_SMALL}, "vision_config": {**_VIT, **_SMALL}},
    ),
}
# Pictures of another size than the model's: which cases, how many pixels instead of 12.
RESIZED = ("vit", "dinov2", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model")
OTHER_SIZES = (18, 9)
# Models with a mask token.
HIDING = ("dinov2", "dinov2_with_registers")
# Models of text with learned positions: two that count columns, two that count real tokens.
GAPS = ("gpt2", "bert", "opt", "roberta")


# Cases whose weights were drawn before others came in front of them: what is stored stays what is made.
NUMBERS = {
    **{case: i for i, case in enumerate(("mamba", "mamba-biases", "mamba2", "mamba2-biases"), 46)},
    **{case: i for i, case in enumerate(("mixtral", "qwen3_moe", "qwen3_moe-renormalised"), 46)},
    **{case: i for i, case in enumerate(("t5-encoder", "t5-encoder-gated", "mt5-encoder"), 49)},
    "qwen3_moe-mixed": 60,
}


def _number(case: str) -> int:
    """Added to the seed."""
    if case in PAIRS:
        return -1 - list(PAIRS).index(case)
    return NUMBERS.get(case, list(CASES).index(case))


def _class(case: str) -> type[torch.nn.Module]:
    return getattr(transformers, CASES[case][0])


def build(case: str) -> torch.nn.Module:
    """The model of a case: transformers' own initialisation, then every parameter moved."""
    name, config = (CASES | PAIRS)[case]
    cls = getattr(transformers, name)
    torch.manual_seed(SEED + _number(case))
    # v4 spelling of rope in, whatever this version writes out: both must load.
    model = cls(cls.config_class(**config, attn_implementation="eager")).float().eval()
    if case in UNTIED:
        model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn_like(model.lm_head.weight))
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.ndim < 2:
                p += 0.3 * torch.randn_like(p)
            else:
                table = "emb" in key or "wte" in key or "wpe" in key
                p += torch.randn_like(p) * (0.5 if table else 0.8 * p.shape[-1] ** -0.5)
    return model


def inputs(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens; row 0 is all real, row 1 padded on the right, row 2 on the left."""
    tokens = torch.randint(0, vocab, (BATCH, LENGTH), generator=torch.Generator().manual_seed(SEED))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, 14:] = 0
    mask[2, :5] = 0
    return tokens, mask


def targets(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the decoder reads, padded as `inputs` are."""
    tokens, mask = inputs(vocab)
    return tokens.flip(1)[:, :9], torch.cat([mask[:, :4], mask[:, 11:16]], dim=1)


def pictures(config: transformers.PretrainedConfig) -> torch.Tensor:
    """Random pixels, channels last."""
    shape = BATCH, config.image_size, config.image_size, config.num_channels
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def with_end(case: str, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens as a model wants them that pools at the first end-of-text token: two of these, at real positions."""
    if case not in _EOS:
        return tokens
    tokens = torch.where(tokens == _EOS[case], _EOS[case] + 1, tokens)
    tokens[:, [9, 12]] = _EOS[case]
    return tokens


def with_padding(model: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Tokens as a family wants them that counts positions by ids: padding there and nowhere else."""
    if "roberta" not in model.config.model_type:
        return tokens
    pad = model.config.pad_token_id
    return torch.where(mask.bool(), torch.where(tokens == pad, pad + 1, tokens), pad)


def layers_of(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The stack of layers, whatever it is called."""
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


def recorded(stack: torch.nn.ModuleList) -> tuple[list[torch.Tensor], list]:
    """Where the residual stream into the first layer and out of every layer will be; the hooks that put it there."""
    resid: list[torch.Tensor] = []

    def first(output: object) -> torch.Tensor:
        return output[0] if isinstance(output, tuple) else output  # type: ignore[return-value]

    def entering(m: torch.nn.Module, args: tuple, named: dict) -> None:
        resid.append(args[0] if args else named["hidden_states"])

    hooks = [stack[0].register_forward_pre_hook(entering, with_kwargs=True)]
    return resid, hooks + [
        layer.register_forward_hook(lambda m, args, out: resid.append(first(out))) for layer in stack
    ]


def run_both(
    model: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor, context: torch.Tensor, context_mask: torch.Tensor
) -> dict[str, np.ndarray]:
    """`run` of an encoder and a decoder: `context` is what the encoder reads."""
    (resid, hooks), (encoder_resid, others) = recorded(model.decoder.block), recorded(model.encoder.block)
    with torch.no_grad():
        out = model(
            input_ids=context, attention_mask=context_mask, decoder_input_ids=tokens, decoder_attention_mask=mask
        )
    for hook in (*hooks, *others):
        hook.remove()
    found = {"tokens": tokens.int(), "mask": mask.bool(), "context": context.int(), "context_mask": context_mask.bool()}
    found |= {"out": out[0], "resid": torch.stack(resid), "encoder_resid": torch.stack(encoder_resid)}
    return {k: v.numpy() for k, v in found.items()}


def run(model: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, np.ndarray]:
    """Output, and the residual stream into the first layer and out of every layer (before the final norm)."""
    resid, hooks = recorded(layers_of(model))
    extra = {}
    if model.config.model_type in ("bert", "roberta"):
        extra["token_type_ids"] = (torch.arange(tokens.shape[1]) % 3 == 0).long().expand_as(tokens)
    with torch.no_grad():
        if tokens.ndim == 4:
            out = model(pixel_values=tokens.permute(0, 3, 1, 2))
            mask = torch.ones(resid[0].shape[:2])
        else:
            out = model(input_ids=tokens, attention_mask=mask, **extra)
    for hook in hooks:
        hook.remove()
    embeds = getattr(out, "image_embeds", getattr(out, "text_embeds", None))
    main = out[0] if embeds is None else out.last_hidden_state
    result = {"tokens": tokens, "mask": mask.bool(), "out": main, "resid": torch.stack(resid)}
    if extra:
        result["token_types"] = extra["token_type_ids"]
    if embeds is not None:
        result["embeds"] = embeds
    if getattr(out, "pooler_output", None) is not None:
        result["pooled"] = out.pooler_output
    whole = {k: v.numpy() for k, v in result.items()}
    return {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in whole.items()}


def save(model: torch.nn.Module, folder: Path) -> None:
    """The checkpoint as transformers writes it."""
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)


def write_pair(case: str) -> None:
    """Two models in one folder, and how they rate every picture with every text."""
    model, folder = build(case), FIXTURES / "pairs" / case
    tokens, mask = inputs(_BERT["vocab_size"])
    tokens, pixels = with_end(case, tokens), pictures(model.config.vision_config)
    save(model, folder)
    np.savez_compressed(folder / "pair.npz", allow_pickle=False, **run_pair(model, tokens, mask, pixels))


def run_pair(
    model: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor, pixels: torch.Tensor
) -> dict[str, np.ndarray]:
    """Inputs, embeddings and logits; of SigLIP also of texts filled up to all positions, which it reads unmasked."""
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask, pixel_values=pixels.permute(0, 3, 1, 2))
    filled = {}
    if model.config.model_type == "siglip":
        text, rows = model.config.text_config, mask[:, 0].bool()
        ids = torch.full((int(rows.sum()), text.max_position_embeddings), text.pad_token_id)
        ids[:, : tokens.shape[1]] = torch.where(mask.bool(), tokens, text.pad_token_id)[rows]
        with torch.no_grad():
            whole = model(input_ids=ids, pixel_values=pixels.permute(0, 3, 1, 2))
        filled = {"filled": ids.int(), "filled_text": whole.text_embeds}
    found = filled | {"tokens": tokens.int(), "mask": mask.bool(), "pixels": pixels, "logits": out.logits_per_image}
    found |= {"image": out.image_embeds, "text": out.text_embeds}
    return {k: v.numpy() for k, v in found.items()}


def write_resized() -> None:
    """Last hidden states of pictures of another size, for which positions are interpolated."""
    found = {}
    for size in OTHER_SIZES:
        shape = 1, size, size, _VIT["num_channels"]
        found[f"pixels-{size}"] = torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).numpy()
        for case in RESIZED:
            asked = {} if "dinov2" in case else {"interpolate_pos_encoding": True}
            with torch.no_grad():
                out = build(case)(torch.tensor(found[f"pixels-{size}"]).permute(0, 3, 1, 2), **asked)
            found[f"{case}-{size}"] = out.last_hidden_state.numpy()
    np.savez_compressed(FIXTURES / "resized.npz", allow_pickle=False, **found)


def write_hidden() -> None:
    """Last hidden states of pictures whose patches are hidden behind the mask token, or left out of attention."""
    found: dict[str, np.ndarray] = {}
    for case in HIDING:
        model = build(case)
        pixels = pictures(model.config)
        n = (model.config.image_size // model.config.patch_size) ** 2
        first = layers_input(model, pixels) - n
        hidden = torch.rand(BATCH, n, generator=torch.Generator().manual_seed(SEED)) < 0.4
        seen = torch.cat([torch.ones(BATCH, first, dtype=torch.bool), ~hidden], dim=1)
        channels_first = pixels.permute(0, 3, 1, 2)
        with torch.no_grad():
            behind = model(channels_first, bool_masked_pos=hidden).last_hidden_state
            without = model(channels_first, attention_mask=seen.long()).last_hidden_state
        found |= {f"{case}-hidden": behind.numpy(), f"{case}-unattended": without.numpy()}
        found |= {"pixels": pixels.numpy(), "hidden": hidden.numpy()}
    np.savez_compressed(FIXTURES / "hidden.npz", allow_pickle=False, **found)


def write_gaps() -> None:
    """Outputs for a text with masked tokens between real ones, which some models count among the positions."""
    found: dict[str, np.ndarray] = {}
    for case in GAPS:
        model = build(case)
        tokens, mask = inputs(model.config.vocab_size)
        mask[:, 7:10] = 0
        result = run(model, with_padding(model, tokens, mask), mask)
        found |= {f"{case}-{name}": result[name] for name in ("tokens", "mask", "out", "token_types") if name in result}
    np.savez_compressed(FIXTURES / "gaps.npz", allow_pickle=False, **found)


def layers_input(model: torch.nn.Module, pixels: torch.Tensor) -> int:
    """How many tokens enter the stack."""
    return run(model, pixels, torch.ones(BATCH, 1, dtype=torch.long))["resid"].shape[2]


def write(case: str) -> None:
    """One case: the checkpoint as transformers writes it, and what it computes."""
    model, folder = build(case), FIXTURES / case
    if hasattr(model, "decoder"):
        save(model, folder)
        found = run_both(model, *targets(model.config.vocab_size), *inputs(model.config.vocab_size))
        return np.savez_compressed(folder / "expected.npz", allow_pickle=False, **found)
    if hasattr(model.config, "image_size"):
        tokens, mask = pictures(model.config), torch.ones(BATCH, 1, dtype=torch.long)
    else:
        tokens, mask = inputs(model.config.vocab_size)
        tokens = with_end(case, tokens)
    save(model, folder)
    return np.savez_compressed(
        folder / "expected.npz", allow_pickle=False, **run(model, with_padding(model, tokens, mask), mask)
    )


def write_bdh(file: Path) -> None:
    """BDH as its authors' module computes it, its parameters under their names.

    The module takes no mask, so here no token is padding.
    """
    if hashlib.sha256(file.read_bytes()).hexdigest() != BDH["sha256"]:
        raise SystemExit(f"{file} is not {BDH['file']} of {BDH['repository']} at {BDH['commit']}")
    spec = importlib.util.spec_from_file_location("bdh", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bdh"] = module
    spec.loader.exec_module(module)
    if dataclasses.asdict(module.BDHConfig()) != BDH["defaults"]:
        raise SystemExit(f"defaults of {file} are {module.BDHConfig()}")
    torch.manual_seed(SEED)
    model = module.BDH(module.BDHConfig(**BDH["config"])).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            p += torch.randn_like(p) * (0.02 if "embed" in key else 0.8 * p.shape[-2] ** -0.5)
    norms: list[torch.Tensor] = []
    model.ln.register_forward_hook(lambda m, args, out: norms.append(out))
    tokens = inputs(BDH["config"]["vocab_size"])[0]
    with torch.no_grad():
        out = model(tokens)[0]
    resid = torch.stack(norms[::3])[:, :, 0]  # of the embedding; then three per layer, the last of its output
    folder = FIXTURES / "bdh"
    folder.mkdir(exist_ok=True)
    weights = {k: p.detach().contiguous() for k, p in model.named_parameters()}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    source = {key: BDH[key] for key in ("repository", "commit", "file", "sha256")}
    config = {"model_type": "bdh", "architectures": ["BDH"], **BDH["config"], "provenance": source}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    np.savez_compressed(
        folder / "expected.npz",
        allow_pickle=False,
        tokens=tokens.numpy().astype(np.int32),
        mask=np.ones(tokens.shape, bool),
        out=out.numpy(),
        resid=resid.numpy(),
    )


SENTENCES = (
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps for a very long time under the old oak tree.",
    "Neurons that fire together wire together.",
    "Größe, naïve, 東京, and emoji 🙂 are text too.",
    "x",
)


def write_minilm(folder: Path) -> None:
    """Sentence embeddings (mean over real tokens, unit length) and one sentence's residual stream."""
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").float().eval()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        each = model(input_ids=tokens[:1, : int(mask[0].sum())], output_hidden_states=True).hidden_states
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    np.savez_compressed(
        FIXTURES / "minilm.npz",
        tokens=tokens.numpy().astype(np.int32),
        mask=mask.bool().numpy(),
        embeddings=torch.nn.functional.normalize(mean, dim=-1).numpy(),
        resid_of_first=torch.stack(each)[:, 0].numpy(),
        sentences=np.array(SENTENCES),
    )


def verify(folder: Path) -> None:
    """Load what jaxneuro saved, with transformers, and compare with the golden output."""
    for case, (name, _) in (CASES | PAIRS).items():
        model, report = getattr(transformers, name).from_pretrained(
            folder / case, attn_implementation="eager", output_loading_info=True
        )
        wrong = {k: sorted(v) for k, v in report.items() if v}
        if case in PAIRS:
            golden = {"out": np.load(FIXTURES / "pairs" / case / "pair.npz")["logits"]}
            stored = np.load(FIXTURES / "pairs" / case / "pair.npz")
            out = run_pair(model.eval(), *(torch.tensor(stored[k]) for k in ("tokens", "mask", "pixels")))["logits"]
        else:
            golden = np.load(FIXTURES / case / "expected.npz")
            names = ("tokens", "mask", "context", "context_mask") if "context" in golden else ("tokens", "mask")
            given = [torch.tensor(golden[name]) for name in names]
            given = [a if a.is_floating_point() else a.long() for a in given]
            out = (run_both if "context" in golden else run)(model.eval(), *given)["out"]
        same = np.array_equal(out, golden["out"])
        print(f"{case:24s} {'equal' if same else 'DIFFERS by ' + str(np.abs(out - golden['out']).max())} {wrong or ''}")
        if wrong or not same:
            raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="which; all by default")
    parser.add_argument("--bdh", type=Path, metavar="FILE", help="the authors' bdh.py; its case is written alone")
    parser.add_argument("--minilm", type=Path, metavar="FOLDER", help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="folder of cases saved by jaxneuro")
    args = parser.parse_args()
    if args.verify:
        return verify(args.verify)
    if args.bdh:
        return write_bdh(args.bdh)
    others = {"resized": write_resized, "hidden": write_hidden, "gaps": write_gaps}
    for case in args.cases or [*CASES, *PAIRS, *others]:
        others[case]() if case in others else (write_pair if case in PAIRS else write)(case)
    if args.minilm:
        write_minilm(args.minilm)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, np)} | {"python": platform.python_version()}
    about = {"made_by": "scripts/make_parity_fixtures.py", "seed": SEED, "versions": versions}
    about["defaults"] = {f: _defaults(f) for f in sorted({_class(c).config_class.model_type for c in CASES})}
    about["defaults"]["bdh"] = {"model_type": "bdh", **BDH["defaults"]}
    (FIXTURES / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    return None


def _defaults(family: str) -> dict[str, object]:
    """What transformers takes for keys that a config.json leaves out."""
    return transformers.AutoConfig.for_model(family).to_dict()


if __name__ == "__main__":
    main()
