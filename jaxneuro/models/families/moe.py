# SPDX-License-Identifier: Apache-2.0
"""Llama-like decoders with a mixture of experts in every layer, or in some: Mixtral, Qwen3-MoE."""

import dataclasses
import math
from typing import Any, Final

from ...io.fields import FLAG, Fields, many, null_or, whole
from ..config import Config, Experts
from ..ranges import kinds_of
from ..rope import RopeKeys
from .family import Key, Keys, linear
from .llama import LLAMA_LIKE

_MISTRAL, _QWEN3 = LLAMA_LIKE["mistral"], LLAMA_LIKE["qwen3"]
_L: Final = "model.layers.{i}"
_REST: Final[Keys] = {
    **{key: row for key, row in _QWEN3.keys.items() if ".mlp." not in key},
    **linear(f"{_L}.mlp.gate_proj", "blocks.dense.gate", "dense_mlp embed"),
    **linear(f"{_L}.mlp.up_proj", "blocks.dense.up", "dense_mlp embed"),
    **linear(f"{_L}.mlp.down_proj", "blocks.dense.down", "embed dense_mlp"),
}


def _per_expert(prefix: str, gate: str, up: str, down: str) -> Keys:
    """As in the files on the Hub, and as transformers writes them: three tensors per expert."""
    one = f"{prefix}.experts.{{e}}"
    return {
        **_REST,
        **linear(f"{prefix}.gate", "blocks.moe.router", "expert embed"),
        **linear(f"{one}.{gate}", "blocks.moe.gate", "mlp embed"),
        **linear(f"{one}.{up}", "blocks.moe.up", "mlp embed"),
        **linear(f"{one}.{down}", "blocks.moe.down", "embed mlp"),
    }


_FUSED: Final[Keys] = {
    **_REST,
    **linear(f"{_L}.mlp.gate", "blocks.moe.router", "expert embed"),
    f"{_L}.mlp.experts.gate_up_proj": (("blocks.moe.gate", "blocks.moe.up"), "expert (part mlp) embed"),
    f"{_L}.mlp.experts.down_proj": ("blocks.moe.down", "expert embed mlp"),
}
"""As transformers 5 has them in memory, and in files written with save_original_format=False."""


_N: Final = kinds_of(Experts)["n"]


def _experts(names: tuple[str, ...], n: int, per_token: int, renormalise: bool | None) -> Any:
    """Experts from the keys of a config and back; renormalise: the default of norm_topk_prob, None: always."""

    def read(hf: Fields, values: dict[str, Any]) -> dict[str, Any]:
        name = next((name for name in names if name in hf), names[0])
        shares = True if renormalise is None else hf.read("norm_topk_prob", FLAG, renormalise)
        found, chosen = hf.read(name, _N, n), hf.read("num_experts_per_tok", whole(), per_token)
        return {"experts": Experts(n=found, per_token=chosen, renormalise=shares)}

    def write(cfg: Config) -> dict[str, Any]:
        if cfg.experts is None:
            return {}
        out = {names[0]: cfg.experts.n, "num_experts_per_tok": cfg.experts.per_token}
        return out if renormalise is None else {**out, "norm_topk_prob": cfg.experts.renormalise}

    return read, write


def _mixed(every: Any) -> Any:
    """The same where some layers have one MLP instead: those in mlp_only_layers and all but each so many-th."""

    def read(hf: Fields, values: dict[str, Any]) -> dict[str, Any]:
        named, step = (
            hf.read("mlp_only_layers", null_or(many(whole(0))), None) or (),
            hf.read("decoder_sparse_step", whole(), 1),
        )
        if outside := [i for i in named if i >= values["n_layers"]]:
            hf.note(f"mlp_only_layers names layer {outside[0]} of {values['n_layers']}")
        dense = tuple(i for i in range(values["n_layers"]) if i in named or (i + 1) % step)
        width = hf.read("intermediate_size", whole(), 6144) if dense else None
        experts = dataclasses.replace(every[0](hf, values)["experts"], dense=dense, d_dense=width)
        return {"experts": experts}

    def write(cfg: Config) -> dict[str, Any]:
        if cfg.experts is None:
            return {}
        dense, width = cfg.experts.dense, {"intermediate_size": cfg.experts.d_dense} if cfg.experts.dense else {}
        step = math.gcd(*(i + 1 for i in range(cfg.n_layers) if i not in dense))
        named = [i for i in dense if (i + 1) % step == 0]
        return {**every[1](cfg), "decoder_sparse_step": step, "mlp_only_layers": named, **width}

    return read, write


MIXTURES: Final = {
    "mixtral": dataclasses.replace(
        _MISTRAL,
        fields={**_MISTRAL.fields, "norm_eps": Key("rms_norm_eps", 1e-5)},
        classes=("MixtralModel", "MixtralForCausalLM"),
        window=None,
        rope=RopeKeys(default_theta=1e6),
        keys=_per_expert(f"{_L}.block_sparse_moe", "w1", "w3", "w2"),
        fused_keys=_FUSED,
        derived=_experts(("num_local_experts", "num_experts"), 8, 2, None),
    ),
    "qwen3_moe": dataclasses.replace(
        _QWEN3,
        fields={
            **_QWEN3.fields,
            "n_kv_heads": Key("num_key_value_heads", 4),
            "d_head": Key("head_dim", None),
            "d_mlp": Key("moe_intermediate_size", 768),
        },
        classes=("Qwen3MoeModel", "Qwen3MoeForCausalLM"),
        windows="never",
        only={"use_sliding_window": (False,)},
        keys=_per_expert(f"{_L}.mlp", "gate_proj", "up_proj", "down_proj"),
        fused_keys=_FUSED,
        derived=_mixed(_experts(("num_experts", "num_local_experts"), 128, 8, False)),
    ),
}
