# SPDX-License-Identifier: Apache-2.0
"""Advice on the command line is in what a person can type there: every message of the library, for every command."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import jaxneuro
from jaxneuro.cli import Sites, main
from jaxneuro.cli.capture import Capture
from jaxneuro.cli.flags import in_flags
from jaxneuro.cli.generate import Generate
from jaxneuro.study import ShowDictionary, StudyConfig
from jaxneuro.training import TrainConfig
from jaxneuro.training.config import Live
from jaxneuro.training.options import OPTIONS

from ..parity.conftest import FIXTURES

CONFIGS = {
    "study": StudyConfig(),
    "show-dictionary": ShowDictionary(path="d"),
    "capture": Capture(site=("embed",)),
    "generate": Generate(prompt=("a",)),
    "sites": Sites(),
    "train-dictionary": TrainConfig(source=Live(site=("embed",)), method=OPTIONS["topk"](n_latents=8, k=2)),
}
ROOMS = ("activations", "data", "io", "models", "study", "training")
PYTHON = re.compile(r"\b[a-z_]+=('|\"|True|False|None)|\bload_\w+|models\.load|\bskip_bad\b|`(?!jaxneuro )[a-z_]+`")


def messages():
    """The texts of all errors of these rooms, with X for what is filled in."""
    root = Path(jaxneuro.__file__).parent
    for path in sorted(p for room in ROOMS for p in (root / room).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "UserError" and call.args:
                text = call.args[0]
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                yield "".join(p.value if isinstance(p, ast.Constant) else "X" for p in parts)


@pytest.mark.parametrize("command", CONFIGS)
def test_no_command_advises_python(command):
    told = [in_flags(text, CONFIGS[command]) for text in messages()]
    assert len(told) > 300
    advice = [re.split(r"(?<=[.;:]) (?=[A-Za-z])", text, maxsplit=1)[1:] for text in told]
    assert not [text for rest in advice for text in rest if PYTHON.search(text)]


def test_what_would_be_found():
    """The check above can fail."""
    assert any(PYTHON.search(text) for text in messages())


@pytest.mark.parametrize(
    ("message", "command", "told"),
    [
        ("Few. Use packing='apart' or a smaller `length`.", "study",
         "Few. Use --packing apart or a smaller --window."),
        ("Few. Use packing='apart', or a smaller `length`.", "show-dictionary",
         "Few. Use --packing apart, or a smaller --window."),
        ("Few. Pass x, or use packing='apart'.", "capture", "Few. Pass x."),
        ("Bad. Pass over such files with skip_bad=True.", "capture",
         "Bad. Pass over such files with --picture.skip-bad."),
        ("NaN. Get it again, or pass allow_nonfinite=True to look.", "generate", "NaN. Get it again."),
        ("Large. Load it with dtype='bfloat16' or 'float32'.", "sites",
         "Large. Load it with --dtype bfloat16 or 'float32'."),
        ("It is. Load it with dtype='int8'.", "sites", "It is."),
        ("Few. Choose a smaller --window, or leave them out with --cards.leave-out-small.", "show-dictionary",
         "Few. Choose a smaller --window."),
        ("No site. jaxneuro.taps.sites(fn, *args) lists them.", "capture", "No site. `jaxneuro sites` lists them."),
        ("a file x='y' is bad. Mend it.", "capture", "a file x='y' is bad. Mend it."),
    ],
)  # fmt: skip
def test_advice_of_one_command(message, command, told):
    assert in_flags(message, CONFIGS[command]) == told


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("a few words\n")
    (folder / "b.txt").write_text("ein paar Worte\n")
    return str(folder)


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dictionary")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(64, 192)).astype(np.float32))
    made = ["--out", str(folder / "d"), "--steps", "1", "--batch", "32", "--evaluate-tokens", "0", "array"]
    assert (
        main(["train-dictionary", *made, "--path", str(folder / "x.npy"), "topk", "--n-latents", "8", "--k", "2"]) == 0
    )
    return str(folder / "d" / "dictionary")


PAIR = str(FIXTURES / "pairs" / "clip")
TOPK = ["topk", "--n-latents", "8", "--k", "2"]
LIVE = ["--batch", "32000", "--evaluate-tokens", "0", "live", "--site", "embed", "--groups", "TEXT"]
FAULTS = {
    "capture": (["capture", "--site", "embed", "--groups", "TEXT", "--window", "32000"], "smaller --window."),
    "train": (["train-dictionary", *LIVE, "--context", "32000", *TOPK], "smaller --window."),
    "show": (["show-dictionary", "DICTIONARY", "--model", "bundled", "--site", "blocks.0.resid_post",
              "--groups", "TEXT", "--window", "32000"], "smaller --window."),
    "study": (["study", "--groups", "TEXT", "--text.window", "512"], "--leave-out-small."),
    "capture a pair": (["capture", PAIR, "--site", "embed", "--groups", "TEXT"], "--pictures FOLDER"),
    "train on a pair": (["train-dictionary", *LIVE, "--model", PAIR, "--context", "16", *TOPK], "--pictures FOLDER"),
    "show a pair": (["show-dictionary", "DICTIONARY", "--model", PAIR, "--site", "embed", "--groups", "TEXT"],
                    "choose a model of text"),
    "study of a pair": (["study", "--model", PAIR, "--groups", "TEXT"], "--pictures FOLDER"),
    "generate of a pair": (["generate", PAIR, "--prompt", "a"], "choose a model of text"),
    "no site": (["capture", "--site", "blocks.0.x", "--groups", "TEXT", "--context", "2"], "`jaxneuro sites` lists"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_known_errors(name, text, dictionary, tmp_path, capsys):
    words, said = FAULTS[name]
    words = [{"TEXT": text, "DICTIONARY": dictionary}.get(word, word) for word in words]
    out = [] if words[0] == "generate" else ["--out", str(tmp_path / "out")]
    assert main([words[0], *out, *words[1:]] if words[0] == "train-dictionary" else [*words, *out]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("jaxneuro: ")
    assert said in line
    assert not PYTHON.search(line)
    assert "--text." not in line
