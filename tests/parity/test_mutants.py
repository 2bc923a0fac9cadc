# SPDX-License-Identifier: Apache-2.0
"""Would the parity test notice? Every switch of Config is set wrong, one at a time, and must change the output.

Each switch, at each value it has, in the first two cases that have it: what is common to sixty is not tried in all.
"Caught" is an error of 2e-5 or more: over six times the correct model's own. What survives is listed with the reason.
"""

import collections
import dataclasses
import functools

import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import Config
from jaxneuro.models.layout import flatten, nest, shapes
from jaxneuro.models.mixers import Mamba2
from jaxneuro.models.rope import LongRope

from ..by_numpy import by_numpy
from .conftest import CASES, open_case

CAUGHT = 2e-5

# Sizes: a wrong one does not fit the tensors, so `load` refuses it (tests/models/test_checkpoint.py).
SIZES = {
    "n_layers",
    "d_model",
    "n_heads",
    "n_kv_heads",
    "d_head",
    "d_mlp",
    "d_vocab",
    "n_ctx",
    "n_token_types",
    "d_embed",
}
# family: which row of the table; the others: read by `pool` and `project`, whose outputs test_parity compares.
NOT_READ = {"family", "pooler", "pool_from", "eos", "d_projection", "projection_bias"}
CHOICES = {
    "norm": ("rms", "gemma_rms", "layer", "plain"),
    "norm_placement": ("pre", "post", "sandwich"),
    "head_act": (None, "gelu"),
}
OTHER_ACT = {"quick_gelu": "silu", "relu": "silu", "silu": "gelu", "gelu": "gelu_tanh", "gelu_tanh": "gelu"}

INVISIBLE = {
    # Only one of the two lists is used at one length.
    "llama-longrope-short": {"rope.scaling.long_factor"},
    "llama-longrope-long": {"rope.scaling.short_factor"},
    # These two are read only when both are given.
    "llama-yarn": {"rope.scaling.mscale", "rope.scaling.mscale_all_dim"},
    # transformers fixes it at 1e-5, twice which changes nothing at this size.
    # Masked tokens are counted or not: they all lie before or behind the real ones here (test_parity.py has others).
    "opt-350m": {"norm_eps", "masked_positions"},
    **{case: {"masked_positions"} for case in ("bert", "bert-mlm", "opt")},
    # Both activations are the same here; xlm-roberta has two.
    "roberta-mlm": {"head_act None"},
    # These weights are float32 (tests/models/test_mixers.py has others).
    **{case: {"mixer.residual_in_float32"} for case in ("mamba", "mamba-biases", "mamba2", "mamba2-biases")},
}


def mutants(cfg: Config):
    """{name: a configuration with one switch wrong}."""
    ropes = {name: {"rope": rope} for name, rope in other_ropes(cfg).items()}
    if cfg.family == "llama" and cfg.rope.scaling is not None:  # otherwise these cases are llama-gqa
        return {name: dataclasses.replace(cfg, **change) for name, change in ropes.items()}
    mixtures = {f"experts.{name}": {"experts": e} for name, e in other_experts(cfg).items()}
    if mixtures:  # the rest is mistral and qwen3, which have their own cases
        mixtures["act"] = {"act": OTHER_ACT[cfg.act]}
        return {name: dataclasses.replace(cfg, **change) for name, change in mixtures.items()}
    out = {"act": {"act": OTHER_ACT[cfg.act]}, "norm_eps": {"norm_eps": cfg.norm_eps * 2}}
    for field, values in CHOICES.items():
        if field != "head_act" or (cfg.head_transform and cfg.has_head):
            out |= {f"{field} {v}": {field: v} for v in values if v != getattr(cfg, field)}
    if cfg.mixer is None:
        out["attn_scale"] = {"attn_scale": 1.02 * (cfg.attn_scale or cfg.d_head**-0.5)}
    out |= {f"mixer.{name}": {"mixer": mixer} for name, mixer in other_mixers(cfg.mixer).items()}
    for cap in ("attn_softcap", "logit_softcap"):
        now = getattr(cfg, cap)
        out |= {f"{cap} {v}": {cap: v} for v in ((None, 1.05 * now) if now else (3.0,))}
    if cfg.image is not None:
        image = dataclasses.replace(cfg.image, patch_bias=not cfg.image.patch_bias)
        out["image.patch_bias"] = {"image": image}
        if cfg.has_head:
            kinds = ("cls", "cls_and_patches", "distilled")
            out |= {f"classify {v}": {"classify": v} for v in (None, *kinds) if v != cfg.classify}
    if cfg.learned_positions:
        out["position_offset"] = {"position_offset": max(cfg.position_offset - 1, 0) or 1}
    flags = [f.name for f in dataclasses.fields(cfg) if f.type == "bool" or f.type is bool]
    flags = [f for f in flags if f not in NOT_READ and (f != "masked_positions" or cfg.learned_positions)]
    out |= {flag: {flag: not getattr(cfg, flag)} for flag in flags}
    out |= {f"windows {name}": {"windows": w} for name, w in other_windows(cfg).items()}
    out |= {f"relative{name}": {"relative": r} for name, r in other_relative(cfg).items()}
    out |= ropes
    if cfg.encoder is not None:
        if cfg.gated:  # the rest is t5, which is not
            out = {name: out[name] for name in out if name.startswith(("act", "gated", "tied", "head_", "relative"))}
        # Every switch of an encoder has a case of its own; here: that its own are read.
        own = ("norm_eps", "gated", "attn_scale", "relative.max_distance")
        out |= {f"encoder.{name}": {"encoder": other} for name, other in mutants(cfg.encoder).items() if name in own}
    if cfg.rope is not None and cfg.windows:
        out["local_rope"] = {"local_rope": None if cfg.local_rope else dataclasses.replace(cfg.rope, theta=7.0)}
    return {name: m for name, change in out.items() if (m := changed(cfg, change)) is not None}


@functools.cache
def tried():
    """{case: its mutants}."""
    seen, out = collections.Counter(), {}
    for case in CASES:
        cfg = open_case(case).model.cfg
        wrong = mutants(cfg)
        switches = {name: (name, getattr(cfg, name.partition(" ")[0].partition(".")[0])) for name in wrong}
        seen.update(switches.values())
        out[case] = {name: wrong[name] for name, at in switches.items() if seen[at] <= 2}
    return out


def changed(cfg, change):
    """The configuration with these fields; None where it is refused, which is as good as caught."""
    try:
        return dataclasses.replace(cfg, **change)
    except UserError:
        return None


def other_mixers(mixer):
    """Its switches, one at a time; its sizes do not fit the tensors."""
    if mixer is None:
        return {}
    flags = [f.name for f in dataclasses.fields(mixer) if f.type == "bool" or f.type is bool]
    out = {flag: dataclasses.replace(mixer, **{flag: not getattr(mixer, flag)}) for flag in flags}
    if isinstance(mixer, Mamba2):
        low, high = mixer.dt_limits
        out["dt_limits low"] = dataclasses.replace(mixer, dt_limits=(1.1 * low or 0.1, high))
        out["dt_limits high"] = dataclasses.replace(mixer, dt_limits=(low, min(0.9 * high, 0.05)))
    return out


def other_windows(cfg):
    if not cfg.causal or cfg.mixer:
        return {}
    if not cfg.windows:
        return {"everywhere": (8,) * cfg.n_layers, "one layer": (None, 8, None)}
    around = {f"{d:+}": tuple(w and w + d for w in cfg.windows) for d in (-1, 1)}
    mixed = {"reversed kinds": tuple(None if w else max(filter(None, cfg.windows)) for w in cfg.windows)}
    return around | {"none": ()} | (mixed if None in cfg.windows else {})


def other_relative(cfg):
    now = cfg.relative
    if now is None:
        return {}
    other = {"max_distance": now.max_distance + 4, "per_layer": not now.per_layer}
    return {"": None} | {f".{name}": dataclasses.replace(now, **{name: value}) for name, value in other.items()}


def other_experts(cfg):
    now = cfg.experts
    if now is None:
        return {}
    other = {"dense": dataclasses.replace(now, dense=(0, 1, 2))} if now.dense else {}  # as many as there are
    return other | {
        "per_token": dataclasses.replace(now, per_token=now.per_token - 1),
        "renormalise": dataclasses.replace(now, renormalise=not now.renormalise),
    }


def other_ropes(cfg):
    if cfg.rope is None:
        return {}
    out = {"rope": None, "rope.theta": dataclasses.replace(cfg.rope, theta=1.1 * cfg.rope.theta)}
    dims = cfg.rope.dims or cfg.d_head
    if not isinstance(cfg.rope.scaling, LongRope):  # whose lists have one entry per pair
        out["rope.dims"] = dataclasses.replace(cfg.rope, dims=cfg.d_head if dims < cfg.d_head else dims - 2)
    if dims > 2:
        out["rope.interleaved"] = dataclasses.replace(cfg.rope, interleaved=not cfg.rope.interleaved)
    rule = cfg.rope.scaling
    if rule is not None:
        out["rope.scaling"] = dataclasses.replace(cfg.rope, scaling=None)
        for field in dataclasses.fields(rule):
            wrong = dataclasses.replace(rule, **{field.name: other(getattr(rule, field.name))})
            out[f"rope.scaling.{field.name}"] = dataclasses.replace(cfg.rope, scaling=wrong)
    return out


def other(value):
    if value is None:  # attention_factor, mscale: taken from the others when absent
        return 1.05
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(1.1 * v for v in value)
    return type(value)(2 * value)


def refit(weights, cfg):
    """The leaves that a configuration has; random where the checkpoint has none: LayerNorm does not see constants."""
    flat, rng = flatten(weights), np.random.default_rng(0)
    new = {leaf: rng.normal(0.1, 0.1, shape).astype(np.float32) for leaf, shape in shapes(cfg).items()}
    return nest({leaf: flat.get(leaf, a) for leaf, a in new.items()})


def test_every_switch_is_covered():
    names = {name.split(" ")[0].split(".")[0] for wrong in tried().values() for name in wrong}
    assert names | SIZES | NOT_READ == {f.name for f in dataclasses.fields(Config)}


def test_wrong_switches_change_the_output(case):
    survivors, wrong = set(), tried()[case.folder.name]
    # By numpy: nothing to compile for each mutant.
    assert case.error(by_numpy(case.run)(case.model.weights)) < CAUGHT / 2
    for name, cfg in wrong.items():
        out = by_numpy(functools.partial(case.run, cfg=cfg))(refit(case.model.weights, cfg))
        if out.shape == case.golden["out"].shape and case.error(out) < CAUGHT:
            survivors.add(name)
    expected = INVISIBLE.get(case.folder.name, set()) & set(wrong)
    # Without a head there is nothing to tie, scale, transform, bias or cap.
    nothing = {"tied", "head_scale", "head_transform", "head_bias", "logit_softcap 3.0"}
    expected = expected | (set() if case.model.cfg.has_head else nothing & set(wrong))
    assert survivors == expected


@pytest.mark.parametrize(
    "name",
    [
        *("gpt2", "llama-gqa", "llama-mqa-biases", "qwen3", "bert", "bert-mlm", "opt-350m", "gemma2", "phi-qk", "phi3"),
        *("vit-no-biases", "deit-distilled", "dinov2-swiglu", "dinov2_with_registers-classes", "clip_vision_model"),
        *("mamba", "mamba-biases", "mamba2", "mamba2-biases", "bdh", "mixtral", "t5-encoder", "umt5"),
    ],
)
def test_every_leaf_is_read(name):
    case = open_case(name)
    leaves, unread = flatten(case.model.weights), set()
    run = by_numpy(case.run)
    for leaf, a in leaves.items():
        if case.error(run(nest({**leaves, leaf: np.float32(1.1) * np.asarray(a)}))) < CAUGHT:
            unread.add(leaf)
    allowed = {"pooler.w", "pooler.b"} if case.model.cfg.pooler else set()
    if case.model.cfg.norm_pooled:
        allowed |= {"final_norm.scale", "final_norm.bias"}  # read by `pool`
    if case.model.cfg.rope is None:
        allowed |= {"blocks.attn.bk"} & set(leaves)  # adds q.b to every key of a row alike, which softmax does not see
    assert unread == allowed | {leaf for leaf in leaves if leaf == "embed.mask_token"}  # of training
