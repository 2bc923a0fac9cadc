# SPDX-License-Identifier: Apache-2.0
"""Encoders of text: BERT, RoBERTa, XLM-RoBERTa."""

from typing import Final

from ...io.fields import whole
from .family import REQUIRED, Family, Key, Keys, attention, linear, mlp, norm


def _encoder(name: str) -> Keys:
    layer = f"{name}.encoder.layer.{{i}}"
    return {
        f"{name}.embeddings.word_embeddings.weight": ("embed.tok", "vocab token"),
        f"{name}.embeddings.position_embeddings.weight": ("embed.pos", "pos embed"),
        f"{name}.embeddings.token_type_embeddings.weight": ("embed.type", "type embed"),
        **norm(f"{name}.embeddings.LayerNorm", "embed.norm"),
        **attention(f"{layer}.attention", "self.query", "self.key", "self.value", "output.dense"),
        **norm(f"{layer}.attention.output.LayerNorm", "blocks.ln1"),
        **mlp(layer, "intermediate.dense", "output.dense"),
        **norm(f"{layer}.output.LayerNorm", "blocks.ln2"),
        **linear(f"{name}.pooler.dense", "pooler.w", "embed_out embed", "pooler.b", "embed_out"),
    }


def _head(dense: str, layer_norm: str, bias: str, decoder: str) -> Keys:
    return {
        **linear(dense, "head.dense", "embed_out embed", "head.dense_bias", "embed_out"),
        **norm(layer_norm, "head.norm"),
        bias: ("head.b", "vocab"),
        f"{decoder}.weight": ("head.w", "vocab token"),
    }


_FIELDS: Final = {
    "n_layers": Key("num_hidden_layers", REQUIRED),
    "d_model": Key("hidden_size", REQUIRED),
    "n_heads": Key("num_attention_heads", REQUIRED),
    "d_mlp": Key("intermediate_size", REQUIRED),
    "d_vocab": Key("vocab_size", REQUIRED),
    "n_ctx": Key("max_position_embeddings", 512),
    "n_token_types": Key("type_vocab_size", 2, kind=whole()),
    "act": Key("hidden_act", "gelu"),
    "norm_eps": Key("layer_norm_eps", 1e-12),
    "tied": Key("tie_word_embeddings", True),
}
_FIXED: Final = {
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
    "head_bias": True,
}
_ONLY: Final = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute", None),
}


def _roberta(*classes: str) -> Family:
    return Family(
        fields={**_FIELDS, "position_offset": Key("pad_token_id", 1, lambda pad: pad + 1, lambda n: n - 1, whole(0))},
        fixed={**_FIXED, "masked_positions": True, "head_act": "gelu"},
        keys={
            **_encoder("roberta"),
            **_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"),
        },
        prefix="roberta.",
        classes=(classes[0], classes[1]),
        positions_counted_in=True,
        only=_ONLY,
        ignored=(r"embeddings\.position_ids$",),
        copies={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        optional={"pooler": "roberta.pooler.dense.weight", "has_head": "lm_head.dense.weight"},
    )


ENCODERS: Final = {
    "bert": Family(
        fields=_FIELDS,
        fixed=_FIXED,
        keys={
            **_encoder("bert"),
            **_head(
                "cls.predictions.transform.dense",
                "cls.predictions.transform.LayerNorm",
                "cls.predictions.bias",
                "cls.predictions.decoder",
            ),
        },
        prefix="bert.",
        classes=("BertModel", "BertForMaskedLM"),
        only=_ONLY,
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
    "roberta": _roberta("RobertaModel", "RobertaForMaskedLM"),
    "xlm-roberta": _roberta("XLMRobertaModel", "XLMRobertaForMaskedLM"),
}
