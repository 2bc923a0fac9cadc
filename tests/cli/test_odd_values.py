# SPDX-License-Identifier: Apache-2.0
"""Odd values of the flags of study and show-dictionary: what they say, or one line of error that names the flag."""

import math
import os
from typing import get_args

import pytest

import jaxneuro.study
from jaxneuro.cli import main
from jaxneuro.cli.flags import options_of, plain
from jaxneuro.study import ShowDictionary, StudyConfig
from jaxneuro.study.show import study_of

NUMBERS = ["0", "-1", "1e309", "nan", "inf", "-inf", str(2**63), "-0.5", "", " ", "１", "1_000", "0x10", "true", "1.5"]
COMMANDS = {"study": (StudyConfig, ()), "show-dictionary": (ShowDictionary, ("gone",))}


def numeric(hint):
    kinds = [plain(hint), *get_args(plain(hint))]
    return int in kinds or float in kinds


NUMERIC = [
    (command, option)
    for command, (kind, _) in COMMANDS.items()
    for option in options_of(kind)
    if not option.is_group and numeric(option.hint)
]


def value_at(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(("command", "option"), NUMERIC, ids=[f"{c} {o.flag}" for c, o in NUMERIC])
def test_a_number_is_what_it_says_or_is_refused(command, option, monkeypatch, capsys):
    seen = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(jaxneuro.study, "run_study", lambda config: seen.append(config.resolved()))
    monkeypatch.setattr("jaxneuro.study.given.open_given", lambda config: None)
    monkeypatch.setattr(jaxneuro.study, "show_dictionary", lambda asked: (study_of(asked), seen.append(asked)))
    model = ["--model", "bundled"]
    refused, first = 0, NUMERIC.index((command, option)) * 3  # every value at a fifth of the flags, nan at all
    for text in ["nan", *(NUMBERS[(first + i) % len(NUMBERS)] for i in range(3))]:
        seen.clear()
        code = main([command, *COMMANDS[command][1], *model, option.flag, text])
        out, err = capsys.readouterr()
        if code == 0:
            value = value_at(seen[0], option.path)
            (value,) = value if isinstance(value, tuple) else (value,)
            assert value == type(value)(text)
            assert math.isfinite(value)
            continue
        refused += 1
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert err.startswith("jaxneuro: ")
        assert option.flag in err
    assert refused


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """{kind of path: the path}, in an empty folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "closed").write_text("x")
    (tmp_path / "closed").chmod(0)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    return {name: name for name in ("gone", "folder", "closed", "pipe", "bytes")} | {
        "loop": "a",
        "none": "",
        "space": " ",
    }


PLACES = {
    "study --groups": ["study", "--groups", "ODD"],
    "study --pictures": ["study", "--model", "bundled", "--pictures", "ODD"],
    "study --model": ["study", "--model", "ODD"],
    "study --out": ["study", "--groups", "gone", "--out", "ODD"],
    "study --dictionary.path": ["study", "--dictionary.path", "ODD"],
    "show-dictionary PATH": ["show-dictionary", "ODD", "--model", "bundled"],
    "show-dictionary --out": ["show-dictionary", "gone", "--model", "bundled", "--out", "ODD"],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_cannot_be_used_is_one_line(place, odd, capsys):
    for name, path in odd.items():
        assert main(["--quiet" if w == "-" else path if w == "ODD" else w for w in [*PLACES[place], "--quiet"]]) == 2, (
            name
        )
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("jaxneuro: "), name
        assert not any("Traceback" in line for line in lines), name
        assert len(lines[-1]) < 2000
