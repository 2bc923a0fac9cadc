# SPDX-License-Identifier: Apache-2.0
"""What a model does not have is refused in one sentence, the same by every command."""

import dataclasses
import shutil

import pytest

from jaxneuro.cli import main
from jaxneuro.data import load_tokenizer
from jaxneuro.io.sources import resolve
from jaxneuro.models import Transformer, save_pretrained

from ..models.conftest import CONFIGS, random_weights

BEYOND = {
    "study": ["--model", "MODEL", "--window", "513"],
    "capture": ["MODEL", "--site", "blocks.0.resid_post", "--window", "513"],
    "train-dictionary": [
        *("--batch", "513", "live", "--model", "MODEL", "--context", "513", "--site", "blocks.0.resid_post"),
        *("topk", "--n-latents", "8", "--k", "2"),
    ],
}
LAYERS = {
    "capture": ["bundled", "--site", "blocks.0.resid_post", "blocks.9.resid_post"],
    "capture moments": ["bundled", "--keep", "moments", "--site", "blocks.9.resid_post"],
    "train-dictionary": ["live", "--site", "blocks.9.resid_post", "topk", "--n-latents", "8", "--k", "2"],
    "train-dictionary target": [
        *("live", "--site", "blocks.1.ln2.normalized", "--target", "blocks.9.mlp_out"),
        *("transcoder", "--n-latents", "8", "--k", "2"),
    ],
}


def said(capsys, command, arguments, out):
    job, *flags = arguments
    first = [job] if command == "capture" else []
    rest = flags if first else arguments
    assert main([command, *first, "--out", str(out), *rest]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A GPT-2 with 512 learned positions and the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("table")
    cfg = dataclasses.replace(CONFIGS["gpt2"], n_ctx=512, d_vocab=load_tokenizer("bundled").n_vocab)
    save_pretrained(Transformer(cfg, random_weights(cfg)), folder)
    for file in resolve("bundled").glob("tokenizer*"):
        shutil.copy(file, folder)
    return str(folder)


@pytest.mark.parametrize("command", BEYOND)
def test_windows_beyond_a_table_of_positions(command, table, capsys, tmp_path):
    arguments = [table if word == "MODEL" else word for word in BEYOND[command]]
    line = said(capsys, command, arguments, tmp_path / "out")
    assert "513 positions are asked for, but this model has learned only 512. Choose a smaller --window." in line


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_the_model_does_not_have(name, capsys, tmp_path):
    line = said(capsys, name.partition(" ")[0], LAYERS[name], tmp_path / "out")
    assert "no layer 9 at 'blocks." in line
    assert "It has layers 0 to 5." in line
