# SPDX-License-Identifier: Apache-2.0
"""Models with a recurrence instead of attention: Mamba, Mamba-2, BDH."""

import math
from typing import Any, Final

from ...errors import UserError
from ...io.fields import FLAG, Fields, Kind, choice, either, null_or, number, whole
from ..config import Config
from ..mixers import Bdh, Mamba, Mamba2
from ..ranges import LONGEST_STEP
from .family import REQUIRED, Family, Key, Keys, linear, norm

_L: Final = "backbone.layers.{i}"
_M: Final = "blocks.mixer"


def _leaves(*names: str) -> tuple[str, ...]:
    return tuple(f"{_M}.{name}" for name in names)


_ALIKE: Final[Keys] = {
    "backbone.embeddings.weight": ("embed.tok", "vocab token"),
    **norm(f"{_L}.norm", "blocks.ln1"),
    **norm("backbone.norm_f", "final_norm"),
    f"{_L}.mixer.out_proj.weight": (f"{_M}.wo", "embed inner"),
    f"{_L}.mixer.out_proj.bias": (f"{_M}.bo", "embed"),
    **linear("lm_head", "head.w", "vocab token"),
}
_MAMBA_KEYS: Final[Keys] = {
    **_ALIKE,
    f"{_L}.mixer.in_proj.weight": (_leaves("wx", "wz"), "(part inner) embed"),
    f"{_L}.mixer.in_proj.bias": (_leaves("bx", "bz"), "(part inner)"),
    f"{_L}.mixer.conv1d.weight": (f"{_M}.conv", "inner 1 kernel"),
    f"{_L}.mixer.conv1d.bias": (f"{_M}.conv_bias", "inner"),
    f"{_L}.mixer.x_proj.weight": (_leaves("dt_down", "wB", "wC"), "dt_rank|state|state inner"),
    **linear(f"{_L}.mixer.dt_proj", f"{_M}.dt_up", "inner dt_rank", f"{_M}.dt_bias", "inner"),
    f"{_L}.mixer.A_log": (f"{_M}.A_log", "inner state"),
    f"{_L}.mixer.D": (f"{_M}.D", "inner"),
}
_INTO: Final = "inner|inner|group_state|group_state|heads"
_THROUGH: Final = "inner|group_state|group_state"
_MAMBA2_KEYS: Final[Keys] = {
    **_ALIKE,
    f"{_L}.mixer.in_proj.weight": (_leaves("wz", "wx", "wB", "wC", "wdt"), f"{_INTO} embed"),
    f"{_L}.mixer.in_proj.bias": (_leaves("bz", "bx", "bB", "bC", "bdt"), _INTO),
    f"{_L}.mixer.conv1d.weight": (_leaves("conv_x", "conv_B", "conv_C"), f"{_THROUGH} 1 kernel"),
    f"{_L}.mixer.conv1d.bias": (_leaves("conv_x_bias", "conv_B_bias", "conv_C_bias"), _THROUGH),
    f"{_L}.mixer.dt_bias": (f"{_M}.dt_bias", "heads"),
    f"{_L}.mixer.A_log": (f"{_M}.A_log", "heads"),
    f"{_L}.mixer.D": (f"{_M}.D", "heads"),
    **norm(f"{_L}.mixer.norm", f"{_M}.norm", "inner"),
}
_BDH_KEYS: Final[Keys] = {
    "embed.weight": ("embed.tok", "vocab token"),
    "encoder": ("shared.enc", "heads embed neuron"),
    "encoder_v": ("shared.enc_v", "heads embed neuron"),
    "decoder": ("shared.dec", "(heads neuron) embed"),
    "lm_head": ("head.w", "token vocab"),
}


_RANK: Final = either(whole(), choice(["auto"]))


def _mamba(hf: Fields, values: dict) -> dict:
    d_model, rank = values["d_model"], hf.read("time_step_rank", _RANK, "auto")
    mixer = Mamba(
        d_inner=hf.read("intermediate_size", null_or(whole()), None) or _inner(hf, d_model),
        d_state=hf.read("state_size", whole(), 16),
        d_conv=hf.read("conv_kernel", whole(), 4),
        dt_rank=math.ceil(d_model / 16) if isinstance(rank, str) else rank,
        **_switches(hf),
    )
    return {"mixer": mixer}


def _mamba_to_hf(cfg: Config) -> dict:
    mixer = _mixer(cfg, Mamba)
    return {**_switches_to_hf(mixer, cfg), "time_step_rank": mixer.dt_rank, "intermediate_size": mixer.d_inner}


def _mamba2(hf: Fields, values: dict) -> dict:
    mixer = Mamba2(
        n_heads=hf.read("num_heads", whole(), 128),
        d_head=hf.read("head_dim", whole(), 64),
        n_groups=hf.read("n_groups", whole(), 8),
        d_state=hf.read("state_size", whole(), 128),
        d_conv=hf.read("conv_kernel", whole(), 4),
        dt_limits=hf.read("time_step_limit", _LIMITS, (0.0, math.inf)),
        **_switches(hf),
    )
    if mixer.d_inner != _inner(hf, values["d_model"]):
        raise UserError(
            f"config.json: num_heads={mixer.n_heads} heads of head_dim={mixer.d_head} are not "
            f"expand={hf.get('expand', 2)} times hidden_size={values['d_model']}."
        )
    return {"mixer": mixer}


def _mamba2_to_hf(cfg: Config) -> dict:
    mixer = _mixer(cfg, Mamba2)
    sizes = {"num_heads": mixer.n_heads, "head_dim": mixer.d_head, "n_groups": mixer.n_groups}
    limits = [x if math.isfinite(x) else {"__float__": "Infinity"} for x in mixer.dt_limits]
    return {**_switches_to_hf(mixer, cfg), **sizes, "time_step_limit": limits}


def _limit(stored: Any) -> float:
    """transformers 5 writes infinity as {"__float__": "Infinity"}, as JSON has none; 4 writes it all the same."""
    return math.inf if stored == {"__float__": "Infinity"} else float(stored)


_INFINITE: Final = ({"__float__": "Infinity"}, math.inf)
_LIMITS: Final[Kind[tuple[float, float]]] = Kind(
    "[lowest, highest], numbers from 0, of which the second may be infinite",
    lambda v: (
        isinstance(v, list | tuple)
        and len(v) == 2
        and number(low=0, high=LONGEST_STEP).fits(v[0])
        and (number(above=0, high=LONGEST_STEP).fits(v[1]) or v[1] in _INFINITE)
        and _limit(v[0]) < _limit(v[1])
    ),
    lambda v: (_limit(v[0]), _limit(v[1])),
    (0.0, math.inf),
)


def _inner(hf: Fields, d_model: int) -> int:
    expand = hf.read("expand", number(above=0, high=1000), 2)
    if expand * d_model != int(expand * d_model):
        hf.note(f"expand = {expand} times hidden_size = {d_model} is not a whole number")
    return int(expand * d_model)


def _switches(hf: Fields) -> dict[str, bool]:
    return {
        "bias": hf.read("use_bias", FLAG, False),
        "conv_bias": hf.read("use_conv_bias", FLAG, True),
        "residual_in_float32": hf.read("residual_in_fp32", FLAG, True),
    }


def _switches_to_hf(mixer: Mamba | Mamba2, cfg: Config) -> dict[str, Any]:
    expand = mixer.d_inner / cfg.d_model
    return {
        "state_size": mixer.d_state,
        "conv_kernel": mixer.d_conv,
        "expand": int(expand) if expand == int(expand) else expand,
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.conv_bias,
        "residual_in_fp32": mixer.residual_in_float32,
    }


def _bdh(hf: Fields, values: dict) -> dict:
    n_heads = hf.read("n_head", whole(), 4)
    neurons = hf.read("mlp_internal_dim_multiplier", whole(), 128) * values["d_model"]
    if neurons % n_heads:
        hf.note(f"{neurons} neurons do not divide among n_head = {n_heads}")
    return {"mixer": Bdh(n_heads=n_heads, n_neurons=neurons // n_heads)}


def _bdh_to_hf(cfg: Config) -> dict:
    mixer = _mixer(cfg, Bdh)
    multiplier, rest = divmod(mixer.n_heads * mixer.n_neurons, cfg.d_model)
    if rest:
        raise UserError(f"{mixer.n_heads} heads of {mixer.n_neurons} neurons are no multiple of d_model={cfg.d_model}.")
    return {"n_head": mixer.n_heads, "mlp_internal_dim_multiplier": multiplier}


def _mixer[M: (Mamba, Mamba2, Bdh)](cfg: Config, kind: type[M]) -> M:
    if not isinstance(cfg.mixer, kind):
        raise UserError(f"a {cfg.family} model has mixer={kind.__name__}(...), not {cfg.mixer}.")
    return cfg.mixer


_FIELDS: Final = {
    "n_layers": Key("num_hidden_layers", REQUIRED),
    "d_model": Key("hidden_size", REQUIRED),
    "d_vocab": Key("vocab_size", REQUIRED),
    "act": Key("hidden_act", "silu"),
    "norm_eps": Key("layer_norm_epsilon", 1e-5),
}
_COPIES: Final = {
    "lm_head.weight": "backbone.embeddings.weight",
    "backbone.embedding.weight": "backbone.embeddings.weight",  # the authors' name, which transformers accepts too
}

RECURRENT: Final = {
    "mamba": Family(
        fields={**_FIELDS, "tied": Key("tie_word_embeddings", True)},
        fixed={},
        keys=_MAMBA_KEYS,
        prefix="backbone.",
        classes=("MambaModel", "MambaForCausalLM"),
        derived=(_mamba, _mamba_to_hf),
        only={"time_step_limit": (None,)},  # Mamba-2's: transformers reads over it here
        copies=_COPIES,
    ),
    "mamba2": Family(
        fields={**_FIELDS, "tied": Key("tie_word_embeddings", False)},
        fixed={},
        keys=_MAMBA2_KEYS,
        prefix="backbone.",
        classes=("Mamba2Model", "Mamba2ForCausalLM"),
        derived=(_mamba2, _mamba2_to_hf),
        copies=_COPIES,
    ),
    # The authors' own state_dict as safetensors, with their BDHConfig and "model_type": "bdh" as config.json.
    "bdh": Family(
        fields={
            "n_layers": Key("n_layer", REQUIRED),
            "d_model": Key("n_embd", REQUIRED),
            "d_vocab": Key("vocab_size", REQUIRED),
        },
        fixed={"norm": "plain", "norm_eps": 1e-5, "norm_placement": "post", "embed_norm": True, "act": "relu"},
        keys=_BDH_KEYS,
        prefix="",
        classes=("BDH", "BDH"),
        derived=(_bdh, _bdh_to_hf),
        ignored=(r"^attns?\.(\d+\.)?freqs$", r"^lm_gate$"),
    ),
}
