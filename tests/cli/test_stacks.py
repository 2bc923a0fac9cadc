# SPDX-License-Identifier: Apache-2.0
"""A model with an encoder on the command line: answers, and values of both stacks."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxneuro.activations import open_activations
from jaxneuro.activations.text import model_and_tokenizer, read_pairs, read_windows
from jaxneuro.cli import main
from jaxneuro.cli.capture import sites_of
from jaxneuro.inference import complete
from jaxneuro.taps import add, capture

from ..inference.conftest import word_tokenizer
from ..parity.conftest import FIXTURES

SITES = ["encoder.blocks.0.mlp_out", "encoder.blocks.1.mlp_out", "blocks.1.cross_attn_out"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny UMT5 with a tokenizer of its 40 words, texts and answers."""
    folder = tmp_path_factory.mktemp("umt5")
    shutil.copytree(FIXTURES / "umt5", folder / "model")
    word_tokenizer(40).save_pretrained(str(folder / "model"))
    for name, rows in {"texts": ["w3 w4 w5", "w6 w7"], "answers": ["w8", "w9 w10 w11"]}.items():
        (folder / name).mkdir()
        (folder / name / "one.jsonl").write_text("".join(f'{{"text": "{row}"}}\n' for row in rows))
    return folder


def test_texts_are_answered_as_in_python(folder, capsys):
    vector, site = np.linspace(-3, 3, 10, dtype=np.float32), "encoder.blocks.1.resid_post"
    np.save(folder / "v.npy", vector)
    steer = ["--steer", folder / "v.npy", "--site", site]
    arguments = ["generate", folder / "model", "--prompt", "w3 w4 w5", "w6 w7", "--max-new", "4", *steer]
    assert main(list(map(str, arguments))) == 0
    shown = capsys.readouterr().out
    opened, prompts = model_and_tokenizer(str(folder / "model")), ["w3 w4 w5", "w6 w7"]
    expected = complete(*opened, prompts, max_new=4, edits=[add(site, vector)])
    assert shown == "\n\n".join(f"{c.prompt}\n{c.text}" for c in expected) + "\n"


def command(folder, out, *more):
    asked = ["--site", "encoder.blocks.*.mlp_out", "blocks.1.cross_attn_out", "--groups", folder / "texts"]
    return list(map(str, ["capture", folder / "model", *asked, "--context", 5, "--batch", 2, "--out", out, *more]))


def test_values_of_both_stacks_and_moments_of_one(folder, tmp_path):
    answers = ["--answers", folder / "answers"]
    assert main(command(folder, tmp_path / "values", *answers)) == 0
    assert main(command(folder, tmp_path / "moments", "--keep", "moments", *answers, "--site", SITES[-1])) == 0
    model, tokenizer = model_and_tokenizer(str(folder / "model"))
    pairs = read_pairs(model, tokenizer, str(folder / "texts"), str(folder / "answers"), length=5)
    assert pairs.texts.fingerprint == read_windows(model, tokenizer, str(folder / "texts"), length=5).fingerprint
    batch = pairs.rows([0, 1])
    read = {name: batch[name] for name in ("tokens", "mask", "context", "context_mask")}
    want = jax.jit(lambda weights, read: capture(model.apply, SITES)(weights, **read)[1])(model.weights, read)
    found = np.load(tmp_path / "moments" / "moments.npz", allow_pickle=False)
    for site, n in zip(SITES, (5, 5, 4), strict=True):
        acts = open_activations(tmp_path / "values" / site)
        assert len(acts) == n
        np.testing.assert_allclose(acts.x, np.asarray(want[site])[acts.window, acts.pos], rtol=1e-4, atol=1e-6)
    assert found[f"{SITES[-1]}/count"] == 4
    np.testing.assert_allclose(found[f"{SITES[-1]}/mean"], np.asarray(acts.x).mean(0), rtol=1e-4, atol=1e-6)


def test_a_decoder_needs_answers(folder, tmp_path, capsys):
    assert main(command(folder, tmp_path / "acts")) == 2
    assert "Give both texts (jaxneuro.data.Paired; jaxneuro capture --answers)" in capsys.readouterr().err
    assert main(["capture", "bundled", "--site", "embed", "--answers", "bundled", "--out", str(tmp_path / "acts")]) == 2
    assert "no encoder and decoder that read different texts" in capsys.readouterr().err
    assert not (tmp_path / "acts").exists()


def test_a_dictionary_of_the_encoder(folder, tmp_path, capsys):
    def command(out, site):
        live = ("live", "--model", folder / "model", "--groups", folder / "texts", "--site", site, "--context", 5)
        asked = (
            "train-dictionary",
            "--out",
            tmp_path / out,
            "--steps",
            2,
            "--batch",
            10,
            "--evaluate-tokens",
            5,
            *live,
        )
        return main(list(map(str, (*asked, "--buffer-tokens", 0, "relu", "--n-latents", 4, "--l1", 0.1))))

    assert command("run", SITES[0]) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())["dictionaries"]["dictionary"]
    assert np.isfinite(found["fvu"])
    assert not {"ce_nats", "kl_nats"} & found.keys()
    capsys.readouterr()
    assert command("decoder", SITES[2]) == 2
    assert "or ask for the encoder's sites" in capsys.readouterr().err


def test_layers_of_both_stacks():
    asked = ["blocks.*.mlp_out", "encoder.blocks.*.mlp_out", "encoder.blocks.4,1.mlp_out", "encoder.embed"]
    assert sites_of(asked, {"": 1, "encoder.": 2}) == (
        "blocks.0.mlp_out",
        *(f"encoder.blocks.{i}.mlp_out" for i in (0, 1, 4)),
        "encoder.embed",
    )


def test_models_of_pictures_read_no_text(capsys):
    for folder in (FIXTURES / "vit", FIXTURES.parent / "convnets" / "resnet-basic"):
        assert main(["generate", str(folder), "--prompt", "a"]) == 2
        assert "holds a model of pictures, which reads no text" in capsys.readouterr().err
