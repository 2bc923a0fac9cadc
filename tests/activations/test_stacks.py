# SPDX-License-Identifier: Apache-2.0
"""Activations of an encoder, of the decoder that answers it, and of what is pooled: each against `forward` by hand."""

import jax
import numpy as np
import pytest

from jaxneuro.activations import at_site, harvest, harvest_sites, moments, run
from jaxneuro.activations.site import at_sites, reached, stop_at
from jaxneuro.data import Paired, Subset, Tokenizer, batches, windows
from jaxneuro.errors import UserError
from jaxneuro.models import Transformer, forward, pool, project
from jaxneuro.taps import capture

from ..inference.conftest import word_tokenizer
from ..parity.conftest import open_case

ENCODER, DECODER = "encoder.blocks.0.mlp.post", "blocks.1.cross_attn.z"
RNG = np.random.default_rng(0)


def texts(*lengths):
    return [" ".join(f"w{i}" for i in RNG.integers(2, 40, n)) for n in lengths]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_hf(word_tokenizer(40))


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Of group b one text says nothing that is known."""
    return windows({"a": texts(3, 9), "b": [*texts(5), "what"]}, tokenizer, length=8, packing="documents")


@pytest.fixture(scope="module")
def pairs(rows, tokenizer):
    answers = windows({"a": texts(4, 2), "b": texts(7, 5)}, tokenizer, length=6, packing="documents")
    return Paired(rows, answers, open_case("umt5").model.start_token)


@pytest.fixture(scope="module")
def by_hand(pairs):
    """{site: values at every position} of both stacks, by one whole pass."""
    model, batch = open_case("umt5").model, pairs.rows(np.arange(4))
    read = {name: batch[name] for name in ("tokens", "mask", "context", "context_mask")}
    run = jax.jit(lambda weights, read: capture(model.apply, [ENCODER, DECODER])(weights, **read)[1])
    return jax.tree.map(np.asarray, run(model.weights, read))


def test_an_encoder_is_harvested_from_its_text_and_not_run_above_the_site(tmp_path, rows, by_hand):
    model = open_case("umt5").model
    assert stop_at(ENCODER, "encoder.embed") == 1
    above = jax.tree.map(lambda a: a.at[1].set(np.nan), model.weights["encoder"]["blocks"])
    poisoned = {**model.weights, "encoder": {**model.weights["encoder"], "blocks": above}}
    acts = harvest(Transformer(model.cfg, poisoned), rows, ENCODER, tmp_path / "acts", batch_size=4)
    assert len(acts) == rows.rows(np.arange(4))["counted"].sum() == 3 + 7 + 5
    np.testing.assert_allclose(acts.x, by_hand[ENCODER][acts.window, acts.pos], rtol=1e-5, atol=1e-6)


def test_a_decoder_is_harvested_from_answers(tmp_path, pairs, by_hand):
    acts = harvest(open_case("umt5").model, pairs, DECODER, tmp_path / "acts", batch_size=4)
    assert len(acts) == pairs.tokens_per_group.sum() == 4 + 2 + 5 + 5  # of 7 words 5 fit beside </s>
    expected = by_hand[DECODER].reshape(4, 6, -1)[acts.window, acts.pos]
    np.testing.assert_allclose(acts.x, expected, rtol=1e-5, atol=1e-6)
    assert acts.pos.min() == 1, "the start token is not counted"


def test_what_is_read_for_which_stack(tmp_path, rows, pairs):
    model = open_case("umt5").model
    for windows_, sites, message in (
        (rows, [DECODER], r"reads answers to what the encoder reads. Give both texts \(jaxneuro.data.Paired"),
        (pairs, [ENCODER], "these rows are a decoder's. Give those of the encoder's own text"),
        (pairs, [ENCODER, DECODER], "are run apart"),
        (rows, ["encoder.blocks.*.mlp.post"], "Name one, 'encoder.blocks.3.mlp.post'"),
        (rows, ["encoder.blocks.0.mlp.pots"], "Did you mean"),
        (rows, ["encoder.blocks.0.mlp.post", "pooled"], "one row per text or picture"),
    ):
        with pytest.raises(UserError, match=message):
            harvest_sites(model, windows_, sites, tmp_path / "acts")
    with pytest.raises(UserError, match="has no encoder of its own"):
        harvest(open_case("bert").model, rows, ENCODER, tmp_path / "acts")
    with pytest.raises(UserError, match="has no pooler"):
        harvest(open_case("gpt2").model, rows, "pooled", tmp_path / "acts")


POOLED = ["pooled", "projected"]


@pytest.fixture(scope="module")
def clip():
    return open_case("clip_text_model-projected").model


@pytest.fixture(scope="module")
def pooled_by_hand(clip, rows):
    def run(weights, batch):
        x = pool(
            weights, forward(weights, batch["tokens"], cfg=clip.cfg, mask=batch["mask"]), clip.cfg, batch["tokens"]
        )
        return {"pooled": x, "projected": project(weights, x)}

    return jax.tree.map(np.asarray, jax.jit(run)(clip.weights, rows.rows(np.arange(4))))


def test_pooled_sites_are_one_row_per_text(tmp_path, clip, rows, pooled_by_hand):
    found = harvest_sites(clip, rows, POOLED, tmp_path / "acts", batch_size=4)
    for site, acts in found.items():
        assert sorted(acts.window) == [0, 1, 2], "a text without a counted token is none"
        np.testing.assert_allclose(acts.x, pooled_by_hand[site][acts.window], rtol=1e-5, atol=1e-6)
        assert acts.pos.tolist() == [0, 0, 0]
        np.testing.assert_array_equal(acts.group, rows.group[acts.window])
    some = harvest_sites(clip, rows, POOLED, tmp_path / "some", batch_size=4, max_tokens=2)
    assert sorted(some["pooled"].group) == [0, 1]


def test_pooled_and_other_sites_in_one_pass(clip, rows, pooled_by_hand):
    methods = {"texts": ("projected", moments()), "tokens": ("blocks.0.resid_post", moments())}
    stream = batches(Subset(rows, [0, 1, 2, 3]), batch_size=4)
    method = at_sites(reached(clip, ["projected", "embed"]), methods)
    found = run(method, stream, key=jax.random.key(0), constants={"weights": clip.weights})
    assert (found["texts"].count, found["tokens"].count) == (3, 15)
    np.testing.assert_allclose(found["texts"].mean, pooled_by_hand["projected"][:3].mean(0), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="one row per text or picture, others one per token"):
        at_site(clip.pooled, {"x": "projected", "y": "embed"}, moments())


class Pictures:
    """Rows of a model of pictures: `tokens` are pixels, mask and counted of what it makes of them."""

    group_names, group, fingerprint = ("all",), np.zeros(3, np.int32), "pictures"

    def __init__(self, image):
        self.pixels = RNG.normal(size=(3, image.size, image.size, image.channels)).astype(np.float32)
        self.positions = image.positions + image.registers
        self.tokens_per_group = np.array([3 * self.positions])

    def rows(self, indices):
        i = np.asarray(indices)
        real = np.broadcast_to((i < 3)[:, None], (len(i), self.positions))
        window = np.where(i < 3, i, -1).astype(np.int32)
        labels = {"mask": real, "counted": real, "group": np.zeros(len(i), np.int32), "window": window}
        return {"tokens": self.pixels[np.minimum(i, 2)], **labels}


def test_pictures_are_pooled_alike(tmp_path):
    model = open_case("vit").model
    pictures = Pictures(model.cfg.image)
    acts = harvest(model, pictures, "pooled", tmp_path / "acts", batch_size=2)
    assert sorted(acts.window) == [0, 1, 2]
    expected = jax.jit(lambda w, x: pool(w, forward(w, x, cfg=model.cfg), model.cfg))(model.weights, pictures.pixels)
    np.testing.assert_allclose(acts.x, np.asarray(expected)[acts.window], rtol=1e-4, atol=1e-6)
