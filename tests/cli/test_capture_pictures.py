# SPDX-License-Identifier: Apache-2.0
"""`jaxneuro capture --pictures`: patches of a ViT and of a ResNet, in stores and as moments, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxneuro.activations import open_activations
from jaxneuro.activations.pictures import model_and_processor
from jaxneuro.cli import main
from jaxneuro.data import load_processor
from jaxneuro.models import load
from jaxneuro.taps import capture

from .. import picture_models

PAIRS = Path(__file__).parents[1] / "parity" / "fixtures" / "pairs"
VIT = ["blocks.0.mlp.post", "blocks.1.mlp.post", "embed"]
RESNET = ["stage0.blocks.0.act1", "stage1.blocks.0.post", "stage1.blocks.1.post"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return picture_models.draw(tmp_path_factory.mktemp("pictures") / "drawn", per_group=5)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return picture_models.vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return picture_models.resnet(tmp_path_factory.mktemp("resnet"))


def command(model, pictures, out, *more, sites=VIT):
    asked = ["--site", *sites, "--pictures", pictures, "--batch", "4", "--out", out]
    return ["capture", *map(str, [model, *asked, *more])]


def wanted(model, drawn, sites):
    """Values of all pictures in order of groups and names, by one plain call."""
    files = sorted(p for p in drawn.rglob("*.png"))
    pixels = load_processor(model)([Image.open(p) for p in files])
    net = load(model, dtype="float32")
    return [p.relative_to(drawn).as_posix() for p in files], jax.jit(capture(net.apply, sites))(net.weights, pixels)[1]


def test_a_store_of_every_patch(vit, drawn, tmp_path):
    out = tmp_path / "acts"
    assert main(command(vit, drawn, out)) == 0
    assert sorted(p.name for p in out.iterdir()) == sorted([*VIT, "capture.json", "pictures.json"])
    names, want = wanted(vit, drawn, VIT)
    about = json.loads((out / "pictures.json").read_text())["pictures"]
    assert [entry["path"] for entry in about] == names
    for site in VIT:
        acts = open_activations(out / site)
        assert len(acts) == 15 * 16
        assert np.unique(acts.pos).tolist() == list(range(1, 17))  # the class token is at 0
        np.testing.assert_allclose(acts.x, np.asarray(want[site])[acts.window, acts.pos], rtol=1e-4, atol=1e-5)
        assert [about[w]["group"] for w in acts.window] == [picture_models.GROUPS[g] for g in acts.group]


@pytest.mark.parametrize(("positions", "n"), [("first", 1), ("all", 17)])
def test_which_positions(vit, drawn, tmp_path, positions, n):
    assert main(command(vit, drawn, tmp_path / "acts", "--picture.positions", positions, sites=["embed"])) == 0
    acts = open_activations(tmp_path / "acts" / "embed")
    assert np.unique(acts.pos).tolist() == list(range(n))


def test_stores_of_a_resnet_have_grids_of_their_own(resnet, drawn, tmp_path):
    out = tmp_path / "acts"
    sites = ["stage0.blocks.*.act1", "stage1.blocks.post", "pooled"]
    assert main(command(resnet, drawn, out, sites=sites)) == 0
    names, want = wanted(resnet, drawn, [*RESNET, "pooled"])
    for site in RESNET:
        acts, value = open_activations(out / site), np.asarray(want[site])
        assert len(acts) == value[..., 0].size
        flat = value.reshape(len(names), -1, value.shape[-1])
        np.testing.assert_allclose(acts.x, flat[acts.window, acts.pos], rtol=1e-4, atol=1e-5)
    pooled = open_activations(out / "pooled")
    np.testing.assert_allclose(pooled.x, np.asarray(want["pooled"])[pooled.window], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_moments(kind, request, drawn, tmp_path):
    model, sites = request.getfixturevalue(kind), {"vit": VIT, "resnet": RESNET}[kind]
    assert main(command(model, drawn, tmp_path / "acts", "--keep", "moments", sites=sites)) == 0
    found = np.load(tmp_path / "acts" / "moments.npz", allow_pickle=False)
    _, want = wanted(model, drawn, sites)
    for site in sites:
        value = np.asarray(want[site], np.float64)
        value = value[:, 1:] if kind == "vit" else value
        flat = value.reshape(-1, value.shape[-1])
        assert found[f"{site}/count"] == len(flat)
        np.testing.assert_allclose(found[f"{site}/mean"], flat.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[f"{site}/variance"], flat.var(0), rtol=1e-3, atol=1e-6)


def test_names_of_pictures_are_not_replaced(vit, drawn, tmp_path, capsys):
    """The window of a store is a number in pictures.json: other pictures need another folder."""
    first = command(vit, drawn, tmp_path / "acts", "--picture.most-per-group", "1", sites=VIT[:1])
    assert main(first) == 0
    names = (tmp_path / "acts" / "pictures.json").read_text()
    for more in (["--seed", "5"], ["--picture.most-per-group", "3"]):
        asked = command(vit, drawn, tmp_path / "acts", "--picture.most-per-group", "1", *more, sites=VIT[1:])
        assert main(asked) == 2
        assert "other pictures" in capsys.readouterr().err
    assert (tmp_path / "acts" / "pictures.json").read_text() == names
    assert main(first) == 0


def test_a_few_pictures_over_devices(vit, drawn, tmp_path):
    few = ["--picture.most-per-group", "3", "--seed", "4"]
    assert main(command(vit, drawn, tmp_path / "one", *few)) == 0
    assert main(command(vit, drawn, tmp_path / "four", *few, "--devices.data", "2", "--devices.model", "2")) == 0
    one, four = (open_activations(tmp_path / name / "blocks.1.mlp.post") for name in ("one", "four"))
    assert len(one) == 9 * 16
    np.testing.assert_array_equal(one.window, four.window)
    np.testing.assert_allclose(one.x, four.x, rtol=1e-4, atol=1e-5)


def test_the_half_of_a_pair_that_reads_pictures(drawn, tmp_path, capsys):
    pair = shutil.copytree(PAIRS / "clip", tmp_path / "clip")
    side = json.loads((pair / "config.json").read_text())["vision_config"]["image_size"]
    picture_models.processor(pair, side)
    assert model_and_processor(str(pair))[0].cfg.image.size == side
    assert main(command(pair, drawn, tmp_path / "acts")) == 2  # this one's pictures have two channels
    assert f"takes pictures of {side} x {side} pixels and 2 channels" in capsys.readouterr().err
    assert main(["sites", str(pair)]) == 0
    listed = capsys.readouterr().out
    assert listed.index("Of pictures:") < listed.index("Of text:")
    assert listed.count("blocks.mlp.post") >= 2


def test_what_cannot_be_done(vit, drawn, tmp_path, capsys):
    out = tmp_path / "acts"
    (drawn / "green" / "broken.png").write_bytes(b"?")
    try:
        for asked, said in {
            "bundled": "holds a model of text, which reads no pictures: give it text with --groups",
            vit: "broken.png: no whole picture of a known kind",
        }.items():
            assert main(command(asked, drawn, out)) == 2
            assert said in capsys.readouterr().err
        assert main(command(vit, drawn, out, "--picture.skip-bad")) == 0
        assert "1 bad file was skipped" in capsys.readouterr().err
    finally:
        (drawn / "green" / "broken.png").unlink()
    cases = [
        (["--site", "stage1.blocks.0.post"], "no stack of layers 'stage1.blocks'"),
        (["--site", "blocks.0.attn.pattern"], "attn.z"),
        (["--groups", "x"], "Leave one of them out"),
        (["--pictures", "nowhere"], "nowhere"),
    ]
    for more, said in cases:
        assert main(command(vit, drawn, tmp_path / "other", *more)) == 2
        line = capsys.readouterr().err
        assert said in line
        assert line.count("jaxneuro: ") == 1
    assert main(["capture", str(vit), "--site", "embed", "--out", str(tmp_path / "text")]) == 2
    assert "give it pictures with --pictures FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
