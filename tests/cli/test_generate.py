# SPDX-License-Identifier: Apache-2.0
"""`jaxneuro generate`: what it prints, and what it refuses in one line."""

import json

import numpy as np
import pytest

import jaxneuro
from jaxneuro.cli import main
from jaxneuro.cli.generate import read_vector
from jaxneuro.errors import UserError
from jaxneuro.inference import complete
from jaxneuro.io import save_npz, write_safetensors
from jaxneuro.taps import add, zero

PROMPT = "Die Datei ist nicht"
SIZE = ["--max-new", "6"]


@pytest.fixture(scope="module")
def bundled():
    return jaxneuro.load("bundled"), jaxneuro.load_tokenizer("bundled")


def said(capsys, *arguments):
    assert main(["generate", "bundled", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def expected(bundled, edits=()):
    return PROMPT + complete(*bundled, [PROMPT], max_new=6, edits=edits)[0].text + "\n"


def test_a_text_goes_on_as_in_python(bundled, capsys):
    assert said(capsys, "--prompt", PROMPT, *SIZE) == expected(bundled)
    two = said(capsys, "--prompt", PROMPT, "The file", *SIZE)
    assert two.startswith(expected(bundled) + "\nThe file")


def test_seeds_and_stop_strings(bundled, capsys):
    drawn = ["--prompt", PROMPT, *SIZE, "--temperature", "1.5", "--top-k", "50", "--top-p", "0.9"]
    assert said(capsys, *drawn, "--seed", 3) == said(capsys, *drawn, "--seed", 3)
    assert said(capsys, *drawn, "--seed", 3) != said(capsys, *drawn, "--seed", 4)
    text = expected(bundled).removeprefix(PROMPT)
    assert said(capsys, "--prompt", PROMPT, *SIZE, "--stop", text[4:7]) == PROMPT + text[: text.index(text[4:7])] + "\n"


@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors"])
def test_steering_by_a_file(bundled, capsys, tmp_path, kind):
    vector = np.random.default_rng(0).normal(size=192).astype(np.float32)
    file = tmp_path / f"v.{kind}"
    if kind == "npz":
        save_npz(file, v=vector, other=vector[:3])
    elif kind == "npy":
        np.save(file, vector)
    else:
        write_safetensors(file, {"v": vector, "other": vector[:3]})
    named = [] if kind == "npy" else ["--tensor", "v"]
    place = ["--steer", file, "--site", "blocks.3.resid_post", "--strength", "4", *named]
    steered = expected(bundled, [add("blocks.3.resid_post", 4 * vector)])
    assert steered != expected(bundled)
    assert said(capsys, "--prompt", PROMPT, *SIZE, *place) == steered


@pytest.fixture
def study(tmp_path):
    """What a study leaves that is read here."""
    chosen = np.zeros((6, 512, 2), bool)
    chosen[2, :300, 0], chosen[0, :, 1] = True, True
    save_npz(tmp_path / "neurons.npz", chosen=chosen)
    results = {"groups": ["de", "en"], "config": {"select.site": None}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_silencing_what_a_study_chose(bundled, capsys, study):
    de, en = zero("blocks.2.mlp.gate", neuron=range(300)), zero("blocks.0.mlp.gate")
    arguments = ["--prompt", PROMPT, *SIZE, "--silence", study]
    assert said(capsys, *arguments, "--groups", "de") == expected(bundled, [de])
    assert said(capsys, *arguments) == expected(bundled, [de, en])
    assert expected(bundled, [de, en]) != expected(bundled)


@pytest.mark.parametrize("asked", [["--groups", "de"], []])
def test_a_study_that_chose_nothing_is_refused(capsys, study, asked):
    chosen = np.zeros((6, 512, 2), bool)
    chosen[0, :, 1] = bool(asked)  # of en alone, or nothing at all
    save_npz(study / "neurons.npz", chosen=chosen)
    assert main(["generate", "bundled", "--prompt", PROMPT, "--silence", str(study), *asked]) == 2
    shown = capsys.readouterr()
    assert f"chose no neurons{' for de' if asked else ''}: there is nothing to silence" in shown.err
    assert shown.out == ""


WRONG = {
    "empty": (["--prompt", ""], "prompt 0 is empty"),
    "site": (["--prompt", "a", "--steer", "v.npz"], "needs --site"),
    "no file": (["--prompt", "a", "--steer", "none.npz", "--site", "blocks.3.resid_post"], "cannot read none.npz"),
    "no vector": (["--prompt", "a", "--site", "blocks.3.resid_post"], "name its file with --steer"),
    "groups": (["--prompt", "a", "--groups", "de"], "name its folder with --silence"),
    "greedy": (["--prompt", "a", "--top-k", "3"], "need a --temperature above 0"),
    "temperature": (["--prompt", "a", "--temperature", "-1"], "--temperature -1.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_one_line_and_code_2(capsys, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("v.npz", v=np.ones(192))
    arguments, message = WRONG[name]
    assert main(["generate", "bundled", *arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()
    assert len(line) == 1
    assert line[0].startswith("jaxneuro: ")
    assert message in line[0]


def test_files_that_do_not_fit(capsys, tmp_path, study):
    file, place = tmp_path / "v.npz", ["--site", "blocks.3.resid_post"]
    np.savez(file, v=np.ones(192), w=np.ones(3), bad=np.full(192, np.nan))
    for arguments, message in {
        ("--steer", file, *place): "choose one with --tensor",
        ("--steer", file, *place, "--tensor", "u"): "no array 'u'",
        ("--steer", file, *place, "--tensor", "w"): "has shape [3]",
        ("--steer", file, *place, "--tensor", "bad"): "not finite",
        ("--steer", file, "--tensor", "v", "--site", "blocks.9.resid_post"): "no layer 9",
        ("--silence", study, "--groups", "fr"): "no group 'fr'",
        ("--silence", study / "none"): "cannot read",
    }.items():
        assert main(["generate", "bundled", "--prompt", "a", *map(str, arguments)]) == 2, arguments
        assert message in capsys.readouterr().err


def test_help_names_it(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--prompt", "--steer", "--silence", "--strength", "--top-p"))


def test_nothing_is_printed_before_everything_was_checked(capsys, tmp_path):
    vector = tmp_path / "v.npy"
    np.save(vector, np.ones(192, np.float32))
    for place in (
        ["--steer", tmp_path / "no.npz", "--site", "blocks.3.resid_post"],
        ["--steer", vector, "--site", "blocks.9.resid_post"],
    ):
        assert main(["generate", "bundled", "--prompt", PROMPT, *map(str, place)]) == 2
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [complex, "U4", bool, np.int16, np.float64])
def test_a_vector_is_of_real_numbers(kind, tmp_path):
    np.save(tmp_path / "v.npy", np.array([0, 1, 2]).astype(kind))
    if kind in (complex, "U4"):
        with pytest.raises(UserError, match="a vector of real numbers is added"):
            read_vector(tmp_path / "v.npy", None)
    else:
        assert read_vector(tmp_path / "v.npy", None).dtype == np.float32
