# SPDX-License-Identifier: Apache-2.0
"""T5 1.0 and 1.1, Flan-T5, mT5 and UMT5: encoder and decoder, or the encoder alone as `T5EncoderModel` saves it."""

from typing import Any, Final

from ...io.fields import FLAG, TEXT, Fields, null_or, whole
from ..config import Config
from ..ranges import LAYERS
from ..relative import RelativeBias
from .family import REQUIRED, Family, Key, Keys, attention, classes_of, linear, mlp, norm

_TABLE: Final = "layer.0.SelfAttention.relative_attention_bias.weight"


def _stack(side: str, *, gated: bool) -> dict[str, Any]:
    """The rows of one stack; where the decoder has cross-attention the encoder has its MLP."""
    block = f"{side}.block.{{i}}"
    cross, last = f"{block}.layer.1", f"{block}.layer.{2 if side == 'decoder' else 1}"
    names = ("wi_1", "wo", "wi_0") if gated else ("wi", "wo")
    return {
        **norm(f"{block}.layer.0.layer_norm", "blocks.ln1"),
        **attention(f"{block}.layer.0.SelfAttention", "q", "k", "v", "o"),
        f"{block}.{_TABLE}": ("blocks.attn.relative", "bucket heads"),
        f"{side}.block.0.{_TABLE}": ("relative.table", "bucket heads"),
        **(_cross(cross) if side == "decoder" else {}),
        **norm(f"{last}.layer_norm", "blocks.ln2"),
        **mlp(f"{last}.DenseReluDense", *names),
        **norm(f"{side}.final_layer_norm", "final_norm"),
    }


def _cross(layer: str) -> dict[str, Any]:
    rows = attention(f"{layer}.EncDecAttention", "q", "k", "v", "o", "blocks.cross_attn")
    return {**norm(f"{layer}.layer_norm", "blocks.ln_cross"), **rows}


_EMBED: Final[Keys] = {"shared.weight": ("embed.tok", "vocab token")}
_HEAD: Final[Keys] = linear("lm_head", "head.w", "vocab token")


def _keys(cfg: Config) -> Keys:
    if cfg.encoder is None:
        return {**_EMBED, **_stack("encoder", gated=cfg.gated)}
    encoder = _stack("encoder", gated=cfg.encoder.gated)
    rows = {key: (f"encoder.{leaf}", axes) for key, (leaf, axes) in encoder.items()}
    return {**_EMBED, **_HEAD, **_stack("decoder", gated=cfg.gated), **rows}


_BUCKETS: Final = (("num_buckets", 32), ("max_distance", 128))
_GATED: Final = "gated-"
_ACTS: Final = {
    f"{_GATED}gelu": "gelu_tanh",  # the one name that transformers takes to mean another function
    f"{_GATED}gelu_new": "gelu_tanh",
    f"{_GATED}relu": "relu",
    f"{_GATED}silu": "silu",
}
_ACT_NAMES: Final = {"gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu", "gelu": "gelu"}


def _alone(hf: Fields, name: str) -> bool:
    """The folder holds the encoder and no decoder."""
    named, both = classes_of(hf), hf.read("is_encoder_decoder", FLAG, True)
    return named == (f"{name}EncoderModel",) if named else not both


def _family(usual_act: str, name: str, *, per_layer: bool = False, scale_key: str | None = None) -> Family:
    """scale_key: where the config says whether the last hidden state is scaled before the unembedding."""

    def read(hf: Fields, values: dict[str, Any]) -> dict[str, Any]:
        buckets, far = (hf.read(f"relative_attention_{key}", whole(1, 100_000), n) for key, n in _BUCKETS)
        common = {
            "gated": hf.read("feed_forward_proj", TEXT, usual_act).startswith(_GATED),
            "relative": RelativeBias(buckets=buckets, max_distance=far, per_layer=per_layer),
        }
        encoder = {**common, "causal": False, "has_head": False}
        if _alone(hf, name):
            return encoder
        tied = hf.read("tie_word_embeddings", FLAG, True)
        return {
            **common,
            "encoder": Config(**values, **encoder, n_kv_heads=values["n_heads"]),
            "n_layers": hf.read("num_decoder_layers", null_or(LAYERS), None) or values["n_layers"],
            "has_head": classes_of(hf) != (f"{name}Model",),
            "tied": tied,
            "head_scale": scale_key is not None and hf.read(scale_key, FLAG, tied),
        }

    def write(cfg: Config) -> dict[str, Any]:
        relative = cfg.relative or RelativeBias()
        sizes = (relative.buckets, relative.max_distance)
        out = {f"relative_attention_{key}": n for (key, _), n in zip(_BUCKETS, sizes, strict=True)}
        names = {act: name for name, act in reversed(_ACTS.items())} if cfg.gated else _ACT_NAMES
        out |= {"feed_forward_proj": names.get(cfg.act, cfg.act), "is_encoder_decoder": cfg.encoder is not None}
        if cfg.encoder is None:
            return {**out, "architectures": [f"{name}EncoderModel"]}
        out |= {"num_layers": cfg.encoder.n_layers, "num_decoder_layers": cfg.n_layers, "tie_word_embeddings": cfg.tied}
        out |= {} if cfg.has_head else {"architectures": [f"{name}Model"]}
        return out if scale_key is None else {**out, scale_key: cfg.head_scale}

    both = f"{name}ForConditionalGeneration"
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
        fixed={"rope": None, "attn_scale": 1.0},
        keys={**_EMBED, **_HEAD, **_stack("decoder", gated=False)},
        keys_of=_keys,
        prefix="",
        classes=(f"{name}EncoderModel", both),
        acts=_ACTS,
        derived=(read, write),
        only={"architectures": ([both], [f"{name}EncoderModel"], [f"{name}Model"], None), "is_decoder": (False,)},
        copies={f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")},
        ignored=(r"EncDecAttention\.relative_attention_bias",),
        untied_if_stored=True,
    )


# Whether the last hidden state is scaled: T5 1.0 yes, 1.1 and Flan-T5 no, which their configs say with
# tie_word_embeddings (transformers 5: scale_decoder_outputs, if it is there); mT5 never. UMT5's say no; transformers 5
# reads that as yes, whatever they say, and 4 as here.
T5_LIKE: Final = {
    "t5": _family("relu", "T5", scale_key="scale_decoder_outputs"),
    "mt5": _family("gated-gelu", "MT5"),
    "umt5": _family("gated-gelu", "UMT5", per_layer=True, scale_key="tie_word_embeddings"),
}
