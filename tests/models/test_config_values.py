# SPDX-License-Identifier: Apache-2.0
"""No value of another type and none outside any sense is taken from a config.json: one error, or the same model.

Every key that is read or that stands there, in every family's folder, is replaced by values of every JSON type. What
loads must be the configuration that the folder says, or the other legal one that the tables below name.
"""

import json
import math
import shutil
import time

import pytest

from jaxneuro.errors import UserError
from jaxneuro.io.fields import Fields
from jaxneuro.models import Config, Experts, Image, Rope, config_from_hf, load
from jaxneuro.models.convnet.families import convnet_from_hf
from jaxneuro.models.convnet.layout import ConvNet, Dense, Residual, convnet_shapes
from jaxneuro.models.layout import shapes
from jaxneuro.models.mixers import Bdh, Mamba, Mamba2
from jaxneuro.models.rope import Dynamic, Linear, Llama3, LongRope, Yarn

from ..parity.conftest import CASES, FIXTURES

CONVNETS = FIXTURES.parent / "convnets"
FOLDERS = {**{c: FIXTURES / c for c in CASES}, **{p.parent.name: p.parent for p in CONVNETS.glob("*/config.json")}}
DEEP: list = []
for _ in range(50):
    DEEP = [DEEP]
OTHER_TYPES = ("text", "", "false", None, [], ["text"], [None], {}, {"a": 1}, True, math.nan, DEEP)
NUMBERS = (math.inf, -math.inf, -1, 0, 1e30, -1e-9, 2.5, 3e7, 30_000_000, 2**31, 2**63, 10**400)

# Other legal models whose tensors have the same shapes: switches turned on, ids, lengths, what null stands for.
LEGAL = {
    "architectures": (None, [], ["text"]),
    "attn_logit_softcapping": (None, 2.5),
    "final_logit_softcapping": (None, 2.5),
    "layer_types": (None,),
    "sliding_window": (None, 30_000_000),
    "mlp_only_layers": (None, []),
    "rope_parameters": (None, {}, {"a": 1}),
    "id2label": (None, {}, {"a": 1}),
    "rope_theta": (2.5, 3e7, 30_000_000, 2**31),
    "query_pre_attn_scalar": (2.5,),
    "eos_token_id": (0, 30_000_000),
    "pad_token_id": (0,),
    "projection_dim": (None,),
    "max_position_embeddings": (30_000_000,),
    "n_positions": (30_000_000,),
    "original_max_position_embeddings": (30_000_000,),
    **dict.fromkeys(
        (
            *("do_layer_norm_before", "norm_topk_prob", "residual_in_fp32", "scale_attn_by_inverse_layer_idx"),
            *("use_parallel_residual", "scale_decoder_outputs", "tie_word_embeddings"),
            *("downsample_in_first_stage", "downsample_in_bottleneck"),
        ),
        (True,),
    ),
}


def read(hf):
    return convnet_from_hf(hf) if "architecture" in hf or hf.get("model_type") == "resnet" else config_from_hf(hf)


def keys_of(hf, monkeypatch):
    """Keys of a config: those it has and those that its reader asks for."""
    asked = set(hf)
    whole = Fields.read
    monkeypatch.setattr(Fields, "read", lambda self, name, *a: (asked.add(name), whole(self, name, *a))[1])
    read(hf)
    monkeypatch.undo()
    return sorted(asked - {"model_type", "architecture"})


def shapes_of(cfg):
    return convnet_shapes(cfg) if isinstance(cfg, ConvNet) else shapes(cfg)


def same(one, other):
    return one is other or (type(one) is type(other) and one == other)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_key_of_every_family_is_typed(name, monkeypatch):
    hf = json.loads((FOLDERS[name] / "config.json").read_text())
    right, hidden, longest, began = read(hf), [], 0, time.monotonic()
    for key in keys_of(hf, monkeypatch):
        for value in (*OTHER_TYPES, *NUMBERS):
            try:
                found = read({**hf, key: value})
            except UserError as e:
                longest = max(longest, len(str(e)))
                continue
            if found == right or shapes_of(found) != shapes_of(right):
                continue  # tensors of other shapes do not fit the file
            if not any(same(value, v) for v in LEGAL.get(key, ())):
                hidden.append((key, value))
    assert not hidden
    assert longest < 1500
    assert time.monotonic() - began < 30  # two seconds here; a loop over a count of the file's would be minutes


def test_all_that_is_wrong_with_a_config_is_one_message():
    hf = json.loads((FIXTURES / "llama-gqa" / "config.json").read_text())
    wrong = {"rms_norm_eps": -1, "attention_bias": "false", "head_dim": [], "rope_theta": 0, "hidden_act": 3}
    with pytest.raises(UserError) as e:
        config_from_hf({**hf, **wrong})
    assert all(f"{key} = " in str(e.value) for key in wrong)


FACTORS = [-3, 0, 0.5, math.nan, math.inf, True, "2", [], 10**400, 1e30]


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_a_stretch_is_a_finite_number_from_1(kind, factor):
    hf = json.loads((FIXTURES / "llama-gqa" / "config.json").read_text())
    rule = {"rope_type": kind, "original_max_position_embeddings": 64}
    rule |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    assert (
        config_from_hf({**hf, "rope_parameters": None, "rope_scaling": {**rule, "factor": 2}}).rope.scaling.factor == 2
    )
    with pytest.raises(UserError, match="factor"):
        config_from_hf({**hf, "rope_parameters": None, "rope_scaling": {**rule, "factor": factor}})


RULES = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
WRONG_RULES = [
    {"beta_fast": 0},
    {"beta_fast": 0.5},  # below beta_slow
    {"beta_slow": math.nan},
    {"attention_factor": -1},
    {"mscale": "1"},
    {"truncate": "false"},
    {"truncate": None},
    {"original_max_position_embeddings": 0},
    {"original_max_position_embeddings": [64]},
    {"rope_theta": 1e-30},
    {"rope_theta": True},
    {"rope_type": ["yarn"]},
    {"partial_rotary_factor": 0.5},
    {"rope_type": "longrope", "short_factor": [1.0, 0.0], "long_factor": [1.0, 1.0]},
    {"rope_type": "longrope", "short_factor": 1.0, "long_factor": [1.0, math.nan]},
    {"rope_type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 4.0},
]


@pytest.mark.parametrize("change", WRONG_RULES, ids=str)
def test_rules_of_stretching_are_typed(change):
    hf = json.loads((FIXTURES / "llama-gqa" / "config.json").read_text())
    config_from_hf({**hf, "rope_parameters": RULES})
    for spelled in ("rope_parameters", "rope_scaling"):
        with pytest.raises(UserError):
            config_from_hf({**hf, "rope_parameters": None, spelled: {**RULES, **change}})


def test_a_part_of_a_head_is_a_whole_number_of_coordinates():
    hf = json.loads((FIXTURES / "phi" / "config.json").read_text())
    with pytest.raises(UserError, match="not a whole number"):
        config_from_hf({**hf, "rope_parameters": None, "partial_rotary_factor": 0.3})
    gptj = json.loads((FIXTURES / "gptj" / "config.json").read_text())
    for wrong in (2.5, 0, "2", None, True, 3):
        with pytest.raises(UserError):
            config_from_hf({**gptj, "rope_parameters": None, "rotary_dim": wrong})


SMALL = {
    "n_layers": 2,
    "d_model": 8,
    "n_heads": 2,
    "n_kv_heads": 2,
    "d_head": 4,
    "d_mlp": 16,
    "d_vocab": 32,
    "n_ctx": 8,
}
NOT_POSITIVE = (0, -1, math.nan, math.inf, True, "1", [], 10**400)
IN_PYTHON = [
    *((Config, SMALL, {name: v}) for name in ("norm_eps", "attn_scale", "logit_softcap") for v in NOT_POSITIVE),
    *((Config, SMALL, {name: v}) for name in ("causal", "tied", "gated") for v in (0, 1, "false", None, math.nan)),
    *((Config, SMALL, {"act": v}) for v in ("gelu_new", None, 1, [])),
    *((Config, SMALL, {"n_layers": v}) for v in (10_001, 2**31, 10**400)),
    *((Config, SMALL, {"n_ctx": v}) for v in (-1, 30_000_000, 2**63)),
    *((Config, SMALL, {"eos": v}) for v in (-1, True, 1.0)),
    *((Rope, {}, {"theta": v}) for v in (*NOT_POSITIVE, 1e-30, 1e30)),
    *((Rope, {}, {"dims": v}) for v in (0, 2.0, True)),
    (Rope, {}, {"interleaved": 1}),
    (Rope, {}, {"scaling": {"factor": 2}}),
    *((Linear, {}, {"factor": v}) for v in (*NOT_POSITIVE, 0.5)),
    *((Dynamic, {"factor": 2}, {"original_max_position_embeddings": v}) for v in (0, 1, 2.0, True, None, 30_000_000)),
    (Llama3, {"factor": 2, "low_freq_factor": 2, "original_max_position_embeddings": 8}, {"high_freq_factor": 1}),
    (Yarn, {"factor": 2, "original_max_position_embeddings": 8}, {"truncate": 1}),
    (LongRope, {"factor": 2, "long_factor": (1.0,), "original_max_position_embeddings": 8}, {"short_factor": (0.0,)}),
    *((Image, {"patch": 2}, {"size": v}) for v in (0, 4.0, True, 2**31)),
    *((Experts, {"per_token": 1}, {"n": v}) for v in (0, True, 2.0, 2**31)),
    (Experts, {"per_token": 1, "n": 2}, {"renormalise": "false"}),
    (Mamba, {"d_inner": 8, "dt_rank": 1}, {"bias": "false"}),
    (Mamba2, {"n_heads": 2, "d_head": 4}, {"conv_bias": 0}),
    *((Mamba2, {"n_heads": 2, "d_head": 4}, {"dt_limits": v}) for v in ((1e300, math.inf), (0.0, 1e300), (1, 0.1))),
    (Bdh, {"n_heads": 2}, {"n_neurons": 4.0}),
    (Residual, {"widths": (8,), "mids": (2,)}, {"bottleneck": "true"}),
    (Dense, {"mid": 4}, {"growth": "4"}),
]


@pytest.mark.parametrize(("made", "right", "wrong"), IN_PYTHON, ids=lambda v: v.__name__ if isinstance(v, type) else "")
def test_what_is_written_in_python_is_checked_alike(made, right, wrong):
    (name,) = wrong
    if made in (Residual, Dense):
        made, right, wrong = ConvNet, {"stem": 8, "depths": (1,)}, {"blocks": made(**right, **wrong)}
    with pytest.raises(UserError, match=name):
        made(**{**right, **wrong})


def test_a_text_is_pooled_from_a_token_that_there_is():
    Config(**SMALL, pool_from="eos", eos=31)
    Config(**SMALL, pool_from="last", eos=32)  # SigLIP's configs name CLIP's
    with pytest.raises(UserError, match="eos=32, from which a text is pooled, is none of the 32 tokens"):
        Config(**SMALL, pool_from="eos", eos=32)


def test_sound_configs_are_taken():
    Config(**SMALL | {"n_ctx": 10_485_760}, norm_eps=1e-12, attn_scale=1, logit_softcap=30.0)
    Mamba2(n_heads=2, d_head=4, dt_limits=(0.0, math.inf))
    Rope(theta=500_000, dims=4, scaling=Linear(factor=8))


@pytest.mark.parametrize(
    ("case", "key"), [("gpt2", "n_layer"), ("t5", "num_decoder_layers"), ("resnet-basic", "depths"), ("mixtral", "n")]
)
@pytest.mark.parametrize(
    "count", [200, 9_999, 30_000_000, 2**63, 10**400], ids=lambda n: f"{n:.0e}" if n < 1e300 else "1e400"
)
def test_counts_are_compared_before_names_are_made(case, key, count, tmp_path):
    key, value = {"n": ("num_local_experts", count), "depths": ("depths", [count, 1])}.get(key, (key, count))
    folder = tmp_path / case
    shutil.copytree(FOLDERS[case], folder)
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**hf, key: value}))
    began = time.monotonic()
    with pytest.raises(UserError) as e:
        load(folder)
    assert time.monotonic() - began < 5
    assert len(str(e.value)) < 2000
