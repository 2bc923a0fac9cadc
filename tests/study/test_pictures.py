# SPDX-License-Identifier: Apache-2.0
"""`jaxneuro study --pictures`: a planted neuron per group of drawn pictures is found, proved and shown."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from jaxneuro.cli import main
from jaxneuro.data import load_processor
from jaxneuro.models import load
from jaxneuro.neurons import GroupStatistics, silence
from jaxneuro.neurons.measures import MEASURES
from jaxneuro.taps import capture

from .. import picture_models
from ..picture_models import GROUPS, PLANTED

SMALL = ["--preset", "small", "--dictionary.steps", "5", "--dictionary.k", "4", "--cards.latents", "3"]


def study(model, pictures, out, *more):
    command = ["study", "--model", model, "--pictures", pictures, "--out", out, *SMALL, "--quiet", *more]
    return main([str(word) for word in command])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return picture_models.draw(tmp_path_factory.mktemp("pictures") / "drawn", per_group=32)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return picture_models.vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def studied(vit, drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    assert study(vit, drawn, out, "--picture.measured-per-group", "6") == 0
    return out


def results(out):
    return json.loads((out / "results.json").read_text())


def arrays(out, name):
    with np.load(out / name, allow_pickle=False) as z:
        return {k: z[k] for k in z.files}


def test_the_planted_neuron_of_each_group_is_found(studied):
    found = arrays(studied, "neurons.npz")
    assert found["groups"].tolist() == list(GROUPS)
    for k, group in enumerate(GROUPS):
        assert found["expert"][0, PLANTED[group], k]
        assert found["ap"][0, PLANTED[group], k] == pytest.approx(1)
        assert found["chosen"][0, PLANTED[group], k]
        assert found["rate"][0, PLANTED[group], k] > 0.2
        assert found["rate"][0, PLANTED[group], (k + 1) % 3] == 0


def test_statistics_are_those_of_the_pictures(studied, vit, drawn):
    stats = GroupStatistics.load(studied / "statistics.npz")
    names = sorted(p.relative_to(drawn).as_posix() for p in drawn.rglob("*.png"))
    pixels = load_processor(vit)([Image.open(drawn / n) for n in names])
    model = load(vit, dtype="float32")
    _, got = jax.jit(capture(model.apply, ["blocks.mlp.post"]))(model.weights, pixels)
    x = np.asarray(got["blocks.mlp.post"])[:, :, 1:]  # without the class token
    for k in range(3):
        mine = np.unique(stats.response_window[stats.response_group == k])
        assert len(mine) == stats.windows[k] == 26
        assert all(names[i].startswith(GROUPS[k]) for i in mine)
        assert stats.tokens[0, k] == 26 * 16
        np.testing.assert_array_equal(stats.fired[0, :, :, k], (x[:, mine] > 0).sum((1, 2)))
        np.testing.assert_allclose(stats.mean[..., k], x[:, mine].mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_the_diagonal_of_the_effect_matrix(studied, vit, drawn):
    effect = results(studied)["effect"]
    matrix, noise = np.array(effect["matrix"]), np.array(effect["random_mean"])
    assert effect["measure"] == "increase of the loss of its own prediction"
    assert effect["unit"] == "nats per picture"
    assert (np.diag(matrix) > 0.5).all()
    assert np.abs(matrix - np.diag(np.diag(matrix))).max() < 0.1
    assert np.abs(noise).max() < 0.1
    assert effect["windows"] == [6, 6, 6]


def test_studied_and_measured_are_other_pictures(studied):
    text = results(studied)["text"]
    for t in text.values():
        assert t["split_by_document"]
        assert (t["windows_used"], t["windows_studied"], t["windows_measured"], t["windows_of_all"]) == (32, 26, 6, 32)


def test_own_loss_is_the_cross_entropy_of_the_own_prediction(vit, drawn):
    model = load(vit, dtype="float32")
    pixels = load_processor(vit)([Image.open(p) for p in sorted((drawn / "red").iterdir())[:4]])
    mask = np.ones((4, 17), bool)
    batch = {"tokens": pixels, "mask": mask, "counted": mask, "group": np.zeros(4, np.int32)}
    off = np.zeros((1, 2, 40), bool)
    off[0, 0, PLANTED["red"]] = True
    found, weight = silence(
        model.apply, model.weights, "blocks.mlp.post", off, [batch], 1, measure=MEASURES["own_loss"], chunk=1
    )
    without = np.array(model.weights["blocks"]["mlp"]["down"])
    without[0, PLANTED["red"]] = 0
    weights = {**model.weights, "blocks": {**model.weights["blocks"]}}
    weights["blocks"]["mlp"] = {**model.weights["blocks"]["mlp"], "down": without}
    label = np.asarray(model(pixels)).argmax(-1)
    logits = np.asarray(model.apply(weights, pixels), np.float64)
    want = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), label]
    assert found[0, 0] == pytest.approx(want.mean(), rel=1e-4)
    assert weight.tolist() == [4]
    assert label.tolist() == [1] * 4


def test_the_page_shows_the_pictures(studied):
    page = (studied / "report.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    example = data["neurons"][0]["examples"][0]
    group, (name,), values, peak, _, (window, rows, columns, top) = example
    assert name.startswith(group)
    assert (rows, columns, len(values)) == (4, 4, 16)
    assert values[peak] == top == max(values)
    assert data["pictures"][window]["src"].startswith("data:image/png;base64,")
    assert "img-src data:" in page
    assert "detect its pictures better" in page
    assert "32 pictures" in page
    assert "Promoted tokens" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_the_dictionary_is_of_patches(studied):
    found = results(studied)["dictionary"]
    assert found["recovered_measure"] == "own_loss"
    assert 0 < found["fvu"] < 2
    values = found["recovered_values"]
    assert values["zero"] > values["original"] + 0.1  # layer 0, whose patches the class token reads


def test_shuffled_labels_find_nothing(vit, tmp_path):
    """Pictures of all groups in folders that mean nothing."""
    drawn, mixed = picture_models.draw(tmp_path / "drawn", per_group=20, seed=3), tmp_path / "mixed"
    files = sorted(drawn.rglob("*.png"))
    for i, at in enumerate(np.random.default_rng(1).permutation(len(files))):
        folder = mixed / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        files[at].rename(folder / f"{i}.png")
    assert study(vit, mixed, tmp_path / "out") == 0
    assert set(results(tmp_path / "out")["neurons"]["expert"].values()) == {0}


def test_a_tower_without_a_head(drawn, tmp_path):
    tower = picture_models.vit(tmp_path / "tower", head=False)
    assert study(tower, drawn, tmp_path / "out", "--picture.most-per-group", "24") == 0
    found = results(tmp_path / "out")
    assert found["effect"]["unit"] == "1 - cosine"
    assert (np.diag(found["effect"]["matrix"]) > 0).all()
    assert found["text"]["red"]["windows_used"] == 24


def test_a_convolutional_network(drawn, tmp_path):
    net = picture_models.resnet(tmp_path / "resnet")
    assert study(net, drawn, tmp_path / "out", "--select.site", "stage1.blocks.post", "--select.share", "0.3") == 0
    stats = GroupStatistics.load(tmp_path / "out" / "statistics.npz")
    names = sorted(p.relative_to(drawn).as_posix() for p in drawn.rglob("*.png"))
    pixels = load_processor(net)([Image.open(drawn / n) for n in names])
    model = load(net, dtype="float32")
    _, got = jax.jit(capture(model.apply, ["stage1.blocks.post"]))(model.weights, pixels)
    x = np.asarray(got["stage1.blocks.post"])
    for k in range(3):
        mine = np.unique(stats.response_window[stats.response_group == k])
        want = x[:, mine].mean((1, 2, 3))
        np.testing.assert_allclose(stats.mean[..., k], want, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(stats.fired[0, :, :, k], (x[:, mine] > 0).sum((1, 2, 3)))
    found = results(tmp_path / "out")
    assert found["effect"]["measure"] == "increase of the loss of its own prediction"
    assert found["dictionary"] is None
    assert "No dictionary is trained" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--groups", "texts"], "Leave one of them out: --groups or --pictures"),
        (["--model", "bundled"], "reads no pictures: give it text with --groups"),
        (["--pictures", "nowhere"], "no file or folder 'nowhere'"),
        (["--select.site", "blocks.attn.pattern"], "a study needs values per token"),
    ],
)
def test_what_cannot_be_studied(vit, drawn, tmp_path, more, said, capsys):
    assert study(vit, drawn, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_of_pictures_with_text(vit, tmp_path, capsys):
    assert main(["study", "--model", str(vit), "--out", str(tmp_path / "out")]) == 2
    assert "give it pictures with --pictures FOLDER" in capsys.readouterr().err
