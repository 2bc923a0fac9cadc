# SPDX-License-Identifier: Apache-2.0
"""A folder with two models, of pictures and of text: each is reached by --tower, and what is given decides no more."""

import shutil

import numpy as np
import pytest

from jaxneuro.activations import open_activations
from jaxneuro.cli import main
from jaxneuro.models import load_pair
from jaxneuro.taps import capture

from ..inference.conftest import word_tokenizer
from ..parity.conftest import FIXTURES

SITE = "blocks.1.mlp.post"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The tiny CLIP with a tokenizer of its 40 words, and texts of two groups."""
    folder = tmp_path_factory.mktemp("clip")
    shutil.copytree(FIXTURES / "pairs" / "clip", folder / "model")
    word_tokenizer(40).save_pretrained(str(folder / "model"))
    (folder / "texts").mkdir()
    for name, rows in {"a": ["w3 w4 w5 w6"], "b": ["w7 w8 w9 w10 w11"]}.items():
        (folder / "texts" / f"{name}.txt").write_text("\n\n".join(rows))
    return folder


def command(clip, out, *more):
    model, texts = clip / "model", ["--groups", clip / "texts"]
    return list(map(str, ["capture", model, "--site", SITE, *texts, "--window", 4, "--batch", 2, "--out", out, *more]))


def test_the_tower_of_text_reads_text(clip, tmp_path):
    assert main(command(clip, tmp_path / "out", "--tower", "text")) == 0
    acts = open_activations(tmp_path / "out" / SITE)
    text = load_pair(str(clip / "model"), dtype="float32").text
    row = np.array([[3, 4, 5, 6]])
    want = capture(text.apply, [SITE])(text.weights, row, np.ones_like(row, bool))[1][SITE][0, :3]  # </s> is the fourth
    apart = np.abs(np.asarray(acts.x)[:, None] - np.asarray(want)).max(-1)  # [stored, here]
    assert acts.x.shape[1] == 24
    assert (apart.min(0) < 1e-5).all()
    assert (apart.max(0) > 1e-2).all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "two models, of pictures and of text. For study and capture"),
        (("--tower", "image"), "--pictures FOLDER (--tower image) or text with --tower text"),
        (("--tower", "txt"), "--tower txt: one of image, text or None is needed. "),
    ],
)
def test_text_without_it_is_refused_with_both_names(clip, tmp_path, more, said, capsys):
    assert main(command(clip, tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pictures_are_not_of_the_tower_of_text(clip, tmp_path, capsys):
    asked = ["capture", clip / "model", "--site", SITE, "--pictures", clip, "--tower", "text", "--out", tmp_path / "o"]
    assert main(list(map(str, asked))) == 2
    assert "two models, of pictures and of text" in capsys.readouterr().err


def test_one_model_has_no_tower(clip, tmp_path, capsys):
    asked = ["capture", "bundled", "--site", "embed", "--groups", clip / "texts", "--tower", "text"]
    assert main([*map(str, asked), "--out", str(tmp_path / "out")]) == 2
    assert "bundled holds one model, so there is no tower to choose" in capsys.readouterr().err
