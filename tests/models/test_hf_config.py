# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
from pathlib import Path

import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import FAMILIES, config_from_hf, config_to_hf
from jaxneuro.models.families import REQUIRED

from .conftest import CONFIGS

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
DEFAULTS = json.loads((FIXTURES / "about.json").read_text())["defaults"]
QWEN = {
    "model_type": "qwen2",
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_keys_mean_what_transformers_means(family):
    whole = DEFAULTS[family]
    sizes = {key.name: whole[key.name] for key in FAMILIES[family].fields.values() if key.default is REQUIRED}
    assert config_from_hf({"model_type": family, **sizes}) == config_from_hf(whole)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=list(CONFIGS))
def test_what_is_written_is_read(cfg):
    back = config_from_hf(json.loads(json.dumps(config_to_hf(cfg))))
    assert dataclasses.replace(back, has_head=cfg.has_head, pooler=cfg.pooler) == cfg


def test_layers_with_windows():
    on = {**QWEN, "use_sliding_window": True, "sliding_window": 6}
    assert config_from_hf(on).windows == ()  # max_window_layers is 28 by default
    assert config_from_hf({**on, "max_window_layers": 3}).windows == (None, None, None, 6)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert config_from_hf({**on, "layer_types": kinds}).windows == (6, None, 6, None)
    assert config_from_hf({**QWEN, "sliding_window": 6}).windows == ()
    mistral = {**QWEN, "model_type": "mistral", "sliding_window": 5}
    assert config_from_hf(mistral).windows == (5, 5, 5, 5)
    assert config_from_hf({**mistral, "sliding_window": None}).windows == ()


WRONG = {
    "no config": ([], "names no model_type"),
    "no type": ({"hidden_size": 8}, "names no model_type"),
    "an unknown type": ({"model_type": "llamma"}, "no model type 'llamma'. Did you mean 'llama'.*Known: gpt2"),
    "sizes left out": (
        {"model_type": "gpt2", "n_layer": 2},
        "n_embd is missing; n_head is missing; vocab_size is missing",
    ),
    "a size that is text": ({**QWEN, "hidden_size": "8"}, "hidden_size = '8' is not a positive whole number.$"),
    "an unknown activation": ({**QWEN, "hidden_act": "mish"}, "no hidden_act 'mish'. Did you mean 'swish'"),
    "an unknown rope": ({**QWEN, "rope_scaling": {"rope_type": "ntk"}}, "no rope type 'ntk'"),
    "a decoder BERT": ({**QWEN, "model_type": "bert", "is_decoder": True}, "is_decoder=True is not supported for bert"),
    "relative positions": (
        {**QWEN, "model_type": "bert", "position_embedding_type": "relative_key"},
        "only 'absolute'",
    ),
    "a layer of another kind": (
        {**QWEN, "use_sliding_window": True, "layer_types": ["linear_attention"] * 4},
        "no layer type 'linear_attention'",
    ),
    "windows of no size": (
        {**QWEN, "use_sliding_window": True, "sliding_window": None, "layer_types": ["sliding_attention"] * 4},
        "no sliding_window",
    ),
    "windows for other layers": (
        {**QWEN, "use_sliding_window": True, "layer_types": ["sliding_attention"]},
        "1 entries for 4 layers",
    ),
}


@pytest.mark.parametrize(("hf", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_not_ported_is_named(hf, message):
    with pytest.raises(UserError, match=message):
        config_from_hf(hf)


def test_what_a_family_cannot_express_is_not_written():
    odd = dataclasses.replace(CONFIGS["llama"], norm="layer", windows=(1, 2, 3))
    with pytest.raises(UserError, match=r"llama model cannot express norm='layer', windows=\(1, 2, 3\)"):
        config_to_hf(odd)
    with pytest.raises(UserError, match="no model family 'mine'"):
        config_to_hf(dataclasses.replace(odd, family="mine"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_has_the_types_of_transformers(family):
    """transformers 5 checks the types of its config's fields: a whole number is not written as 8.0."""
    whole = DEFAULTS[family]
    cfg = config_from_hf(whole)
    if cfg.attn_scale is not None and cfg.family.startswith("gemma"):
        cfg = dataclasses.replace(cfg, attn_scale=8**-0.5)
    written = json.loads(json.dumps(config_to_hf(cfg)))
    both = {k for k in written if whole.get(k) is not None and written[k] is not None}
    assert {k: type(written[k]) for k in both} == {k: type(whole[k]) for k in both}
    assert len(both) > 3
