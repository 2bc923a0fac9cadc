# SPDX-License-Identifier: Apache-2.0
"""What cannot be understood is one line with the nearest flag; one thing has one name in all commands."""

import dataclasses

import pytest

import jaxneuro.study
from jaxneuro import cli
from jaxneuro.cli import main
from jaxneuro.cli.capture import Capture
from jaxneuro.cli.flags import current, options_of
from jaxneuro.cli.generate import Generate
from jaxneuro.cli.train import METHODS, config_of_words
from jaxneuro.study import ShowDictionary, StudyConfig
from jaxneuro.training.config import SOURCES, Live, TrainConfig

TOPK = "array --path a.npy topk --n-latents 8"
REFUSED = {
    "train-dictionary array --path a.npy topk --kk 3": "topk: no option '--kk'. Did you mean '--k'?",
    f"train-dictionary {TOPK}": "train-dictionary array topk needs --k (a whole number).",
    "train-dictionary array topk --n-latents 8 --k 2": "train-dictionary array topk needs --path (a path).",
    "train-dictionary array --path a.npy topk --n-latents eight --k 2": "--n-latents eight: a whole number is needed.",
    f"train-dictionary {TOPK} --k 2 --steps 3": "--steps belongs to train-dictionary: jaxneuro train-dictionary --st",
    f"train-dictionary {TOPK} --k 2 --auxk 5": "--auxk 5: name=value or None is needed ('5' is not name=value).",
    f"train-dictionary --sweep k {TOPK} --k 2": "--sweep k: name=value is needed ('k' is not option=value,value).",
    f"train-dictionary {TOPK} --k 2 --training.optimizer adam": "topk: no option '--training.optimizer'. Did you",
    f"train-dictionary {TOPK} --k": "--k needs a value: a whole number.",
    "train-dictionary --config": "--config needs a value: a path.",
    "train-dictionary": "train-dictionary: no source is named.",
    "train-dictionary liv topk": "train-dictionary: no source 'liv'. Did you mean 'live'?",
    "study --seed x": "--seed x: a whole number is needed.",
    "study --preset tiny --preset small": "--preset tiny: one of default, small is needed.",
    "study --seed 1 --seed x": "--seed x: a whole number is needed.",
    "study --seed x --seed": "--seed needs a value: a whole number.",
    "study --seed --seed 3": "--seed needs a value: a whole number.",
    "study --SEED 1": "study: no option '--SEED'. Did you mean '--seed'?",
    "study -- --seed 1": "study: nothing takes '--seed 1'.",
    "--tyro-nothing": "nothing takes '--tyro-nothing'. See `jaxneuro --help`.",
    "study --seed=": "--seed '': a whole number is needed.",
    "study --sed 1": "study: no option '--sed'. Did you mean '--seed'?",
    "study --k 3": "study: no option '--k'. Did you mean '--dictionary.k'?",
    "study --text.windw 3": "study: no option '--windw'. Did you mean '--window' or '--min-windows'?",
    "study --out": "--out needs a value: a path.",
    "study extra": "study: nothing takes 'extra'.",
    "study --bos x": "--bos x: one of auto, always, never or None is needed.",
    "study --cards.doses 1 x": "--cards.doses 1 x: a number, or several is needed.",
    "study --leave-out-small=3": "--leave-out-small takes no value, not 3.",
    "show-dictionary": "show-dictionary needs PATH (a text).",
    "show-dictionary d --windo 3": "show-dictionary: no option '--windo'. Did you mean '--window'?",
    "capture": "capture needs --site (a text, or several).",
    "capture bundled --site embed --keep all": "--keep all: one of values, moments is needed.",
    "generate bundled": "generate needs --prompt (a text, or several).",
    "generate --prompt a --top-p q": "--top-p q: a number or None is needed.",
    "generate --prompt a --temprature 1": "generate: no option '--temprature'. Did you mean '--temperature'?",
    "sites --dtype float99": "--dtype float99: one of float32, bfloat16 is needed.",
    "sites a b": "sites: nothing takes 'b'.",
    "sites -q": "sites: no option '-q'.",
    "stdy": "no command 'stdy'. Did you mean 'study'?",
    "train": "no command 'train'. Known: study, train-dictionary, show-dictionary, capture, generate, sites.",
    "--seed 3 study": "'--seed' stands in front of the command",
    "": "name a command: study, train-dictionary",
}


@pytest.mark.parametrize("words", REFUSED)
def test_one_line_says_what_is_wrong(words, capsys):
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith(f"jaxneuro: {REFUSED[words]}")


KINDS = {"study": StudyConfig, "show-dictionary": ShowDictionary, "capture": Capture, "live": SOURCES["live"]}


def test_one_thing_has_one_name():
    """How text is read is said by the same flags in every command that reads text."""
    flags = {name: {o.flag for o in options_of(kind) if not o.is_group} for name, kind in KINDS.items()}
    for name in flags:
        assert {"--window", "--bos", "--field", "--group-field", "--split", "--skip-bad-rows"} <= flags[name], name
        assert not {f for f in flags[name] if f.startswith("--text.") or f == "--context"}, name
    for name in ("study", "show-dictionary", "live"):
        assert "--max-tokens-per-group" in flags[name]
    assert "--packing" in flags["study"] & flags["show-dictionary"]


@pytest.mark.parametrize("kind", [*KINDS.values(), Generate, cli.Sites, TrainConfig, *METHODS.values()])
def test_no_two_flags_of_a_command_are_alike(kind):
    flags = [o.flag for o in options_of(kind) if not o.is_group]
    assert len(set(flags)) == len(flags)
    assert not dataclasses.is_dataclass(kind) or flags


def test_documented_spellings_of_before_still_work(monkeypatch):
    asked = []
    monkeypatch.setattr(jaxneuro.study, "run_study", asked.append)
    old = (
        "--text.window 64 --text.max-tokens-per-group=9 --text.leave-out-small --text.no-skip-bad-rows --text.bos never"
    )
    assert main(["study", *old.split()]) == main(["study", *old.replace("text.", "").split()]) == 0
    assert asked[0] == asked[1]
    assert (asked[0].text.window, asked[0].text.leave_out_small, asked[0].text.bos) == (64, True, "never")
    live = "live --site embed {} topk --n-latents 8 --k 2"
    before, now = (live.format(f) for f in ("--context 64 --text.field body", "--window 64 --field body"))
    found = config_of_words(current(["train-dictionary", *before.split()])[1:])
    assert found == config_of_words(now.split())
    assert isinstance(found.source, Live)
    assert (found.source.context, found.source.text.field) == (64, "body")
    assert current(["generate", "--context", "4"]) == ["generate", "--context", "4"], "it reads no text"
