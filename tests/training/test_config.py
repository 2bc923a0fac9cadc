# SPDX-License-Identifier: Apache-2.0
"""Configurations: from flags, from JSON and from Python they are the same; nothing unknown is dropped."""

import json
import re

import pytest

from jaxneuro.cli import main
from jaxneuro.cli.train import config_of_words
from jaxneuro.dictionaries import AuxK
from jaxneuro.errors import UserError
from jaxneuro.training import METHODS, OPTIONS, Array, Devices, Live, Store, TrainConfig
from jaxneuro.training.config import config_of
from jaxneuro.training.options import described, made
from jaxneuro.training.strict import plain, read
from jaxneuro.training.sweep import members, places

CONFIGS = {
    "array": TrainConfig(source=Array(path="x.npy"), method=OPTIONS["pca"](n_latents=4)),
    "store": TrainConfig(
        source=Store(path="acts", held_out="more"),
        method=OPTIONS["matryoshka"](n_latents=64, k=4, prefixes=(8, 64), level_weights=(1.0, 0.5), auxk=None),
        sweep={"k": (4, 8), "learning_rate": (1e-3, 3e-4), "seed": (0, 1)},
        export=("saelens",),
        devices=Devices(data=2),
    ),
    "live": TrainConfig(
        source=Live(site=("blocks.3.mlp_pre",), target=("blocks.3.mlp_out",), dtype="bfloat16"),
        method=OPTIONS["transcoder"](n_latents=64, k=4, skip=True, auxk=AuxK(weight=0.5, k=3)),
        tokens=1000,
        nonfinite="stop",
    ),
}
CONFIGS = {name: config_of(json.loads(json.dumps(plain(c)))) for name, c in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_json_and_back(name, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": plain(CONFIGS[name]), "seed": 0}))
    assert config_of(json.loads(path.read_text())) == CONFIGS[name]
    assert config_of_words(["--config", str(path)]) == CONFIGS[name]


def test_flags():
    asked = (
        "--tokens 1000 --nonfinite stop live --site blocks.3.mlp_pre --target blocks.3.mlp_out --dtype bfloat16 "
        "transcoder --n-latents 64 --k 4 --skip --auxk weight=0.5 k=3"
    )
    assert config_of_words(asked.split()) == CONFIGS["live"]
    asked = (
        "--sweep k=4,8 learning-rate=1e-3,3e-4 seed=0,1 --export saelens --devices.data 2 store --path acts --held-out "
        "more matryoshka --n-latents 64 --k 4 --prefixes 8 64 --level-weights 1 0.5 --auxk none"
    )
    assert config_of_words(asked.split()) == CONFIGS["store"]


def test_a_file_and_flags_over_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": plain(CONFIGS["live"])}))
    found = config_of_words(["--config", str(path), "--out", "other", "--tokens", "7"])
    assert (str(found.out), found.tokens) == ("other", 7)
    assert found.method == CONFIGS["live"].method


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: c.update(stepz=3), "no option 'stepz'. Did you mean 'steps'"),
        (lambda c: c["source"].update(pth="a"), "config.source: no option 'pth'. Did you mean 'path'"),
        (lambda c: c["source"].update(kind="arry"), "config.source: no kind 'arry'. Did you mean 'array'"),
        (lambda c: c["source"].pop("path"), "config.source: path must be given"),
        (lambda c: c["method"].update(kind="tpk"), "config.method: no kind 'tpk'. Did you mean 'topk'"),
        (
            lambda c: c["method"]["training"].update(learnig_rate=1),
            "option 'learnig_rate'. Did you mean 'learning_rate'",
        ),
        (lambda c: c["method"].update(k="2"), "config.method.k = '2' is not a whole number"),
        (lambda c: c["method"].update(k=True), "config.method.k = true is not a whole number"),
        (lambda c: c["method"].update(auxk={"wait": 1}), "config.method.auxk: no option 'wait'. Did you mean 'weight'"),
        (lambda c: c.update(nonfinite="halt"), "config.nonfinite = 'halt' is not one of 'skip', 'stop'"),
        (lambda c: c.update(steps=1.5), "config.steps = 1.5 is none of int, null"),
        (lambda c: c.update(export="saelens"), "config.export = 'saelens' is not a list"),
        (lambda c: c.update(devices=3), "config.devices = 3 is not a group of options"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(edit, says):
    value = plain(TrainConfig(source=Array(path="x.npy"), method=OPTIONS["topk"](n_latents=4, k=2)))
    edit(value)
    with pytest.raises(UserError, match=says):
        config_of(value)


@pytest.mark.parametrize("value", [[1], 3, {"config": [1]}])
def test_a_file_without_options_is_refused(value):
    with pytest.raises(UserError, match=r"config = (\[1\]|3) is not a group of options"):
        config_of(value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("topk --k x", "--k x: a whole number is needed."),
        ("topk --kk 3", "topk: no option '--kk'. Did you mean '--k'?"),
        ("--k 3", "--k belongs to topk: jaxneuro train-dictionary ... array ... topk --k"),
        ("--pth x", "train-dictionary: no option '--pth'."),
        ("live topk --path x", "topk: no option '--path'."),
    ],
)
def test_flags_beside_a_file_are_of_their_part(flags, says, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(plain(TrainConfig(source=Array(path="x.npy"), method=OPTIONS["topk"](n_latents=4, k=2))))
    )
    assert main(["train-dictionary", "--config", str(file), *flags.split()]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--stepz 3", "--sweep k", "array --path x topk --n-latents 4 --k 2 --auxk wait=1"])
def test_what_is_wrong_in_flags_is_said(flag, capsys):
    with pytest.raises(UserError) as e:
        config_of_words(
            [*flag.split(), *([] if "array" in flag else ["array", "--path", "x", "pca", "--n-latents", "2"])]
        )
    assert {"--stepz": "--steps", "--sweep": "option=value", "array": "weight"}[flag.split()[0]] in str(e.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("live --site blocks.0.embed topkk --n-latents 8 --k 2", "no method 'topkk'. Did you mean 'topk'"),
        ("array --path x.npy --n-latents batchtopk", "no method 'batchtopk'. Did you mean 'batch-topk'"),
        ("live --site blocks.0.embed sparse --k 2", "no method is named. After live and its flags comes one of topk, "),
        ("store --path x", "no method is named. After store"),
    ],
)
def test_a_misspelt_method_is_named(words, says):
    """`--site` takes a list, and so the word after it."""
    with pytest.raises(UserError, match=re.escape(says)) as e:
        config_of_words(words.split())
    assert "semi-nmf" in str(e.value)


def test_every_method_has_words_for_every_option():
    for name, kind in OPTIONS.items():
        words = described(METHODS[name])
        assert all(words.get(field) for field in kind.__dataclass_fields__ if field != "training"), name


def test_methods_refuse_numbers_through_their_options():
    with pytest.raises(UserError, match="k = 9"):
        made(OPTIONS["topk"](n_latents=8, k=9), steps=1)
    with pytest.raises(UserError, match="no optimiser 'sgdd'"):
        made(read(OPTIONS["relu"], {"n_latents": 8, "l1": 1, "training": {"optimiser": "sgdd"}}, "method"), steps=1)


def test_members_of_a_sweep_and_their_places():
    found = members(CONFIGS["store"])
    assert len(found) == 8
    assert found[3].name == "k=4,learning_rate=0.0003,seed=1"
    assert (found[3].options.k, found[3].options.training.learning_rate, found[3].seed) == (4, 3e-4, 1)
    pairs = {"site": ("blocks.0.mlp_pre", "blocks.1.mlp_pre"), "target": ("blocks.0.mlp_out", "blocks.1.mlp_out")}
    live = config_of({**plain(CONFIGS["live"]), "sweep": {**pairs, "k": (1, 2)}})
    assert places(live)["blocks.1.mlp_pre"] == (("blocks.1.mlp_pre",), ("blocks.1.mlp_out",))
    assert [m.name for m in members(live)][-1] == "blocks.1.mlp_pre/k=2"
    with pytest.raises(UserError, match="2 sites and 1 targets: they go in pairs"):
        places(config_of({**plain(live), "sweep": {**pairs, "target": ["embed"]}}))
