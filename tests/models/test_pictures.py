# SPDX-License-Identifier: Apache-2.0
"""Models of pictures: read, edited and resized as others are; what only they have, or lack, is said."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.cli import main
from jaxneuro.errors import UserError
from jaxneuro.models import (
    Config,
    Image,
    Transformer,
    config_from_hf,
    config_to_hf,
    forward,
    init,
    load,
    pool,
    project,
    resized,
    save_pretrained,
    shapes,
    unembedding,
)
from jaxneuro.models.pictures import bicubic
from jaxneuro.taps import capture, intervene, sites, zero

from .conftest import LAYERNORM, SMALL

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
VIT = Config(
    **{**SMALL, "n_kv_heads": 4, "d_vocab": 5, "n_ctx": 10},
    **LAYERNORM,
    family="vit",
    image=Image(size=12, patch=4),
    act="gelu",
    norm_eps=1e-12,
    causal=False,
    learned_positions=True,
    classify="cls",
    head_bias=True,
)


@pytest.fixture(scope="module")
def vit():
    return load(FIXTURES / "vit-classes")


@pytest.fixture(scope="module")
def pixels():
    return jnp.asarray(np.load(FIXTURES / "vit-classes" / "expected.npz")["tokens"])


def test_neurons_of_a_picture_are_read(vit, pixels):
    logits, acts = jax.jit(capture(vit.apply, ["blocks.2.mlp.post", "logits"]))(vit.weights, pixels)
    assert acts["blocks.2.mlp.post"].shape == (3, 17, 24)
    assert logits.shape == (3, 5)
    np.testing.assert_array_equal(acts["logits"], logits)


def test_neurons_of_a_picture_are_edited(vit, pixels):
    plain = vit(pixels)
    one = jax.jit(intervene(vit.apply, [zero("blocks.1.mlp.post", neuron=3)]))(vit.weights, pixels)
    assert np.abs(one - plain).max() > 1e-3
    # The last block's MLP writes to each token, and the classifier reads only the first.
    unread = jax.jit(intervene(vit.apply, [zero("blocks.2.mlp_out", pos=5)]))(vit.weights, pixels)
    np.testing.assert_allclose(unread, plain, atol=1e-6)
    read = jax.jit(intervene(vit.apply, [zero("blocks.2.mlp_out", pos=0)]))(vit.weights, pixels)
    assert np.abs(read - plain).max() > 1e-3


def test_a_stack_in_two_parts_is_the_stack(vit, pixels):
    entering = vit(pixels, stop_at=1)
    np.testing.assert_allclose(vit(pixels, start_at=1, resid=entering), vit(pixels), atol=1e-5)


def test_a_class_direction_is_a_column_of_the_unembedding(vit, pixels):
    logits, acts = jax.jit(capture(vit.apply, ["ln_final.normalized"]))(vit.weights, pixels)
    first = (
        acts["ln_final.normalized"][:, 0] * vit.weights["final_norm"]["scale"][None]
        + vit.weights["final_norm"]["bias"][None]
    )
    expected = first @ unembedding(vit.weights, vit.cfg) + vit.weights["head"]["b"][None]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_sites_are_listed(vit, capsys):
    found = {s.name for s in sites(vit.apply, vit.weights, jnp.zeros((1, 12, 12, 2)))}
    assert {"embed", "pos_embed", "blocks.attn.pattern", "blocks.mlp.post", "ln_final.normalized", "logits"} <= found
    assert main(["sites", str(FIXTURES / "dinov2_with_registers-classes")]) == 0
    shown = capsys.readouterr().out
    assert "blocks.mlp.post" in shown
    assert "1 20 16" in shown  # a cls token, three registers and sixteen patches
    assert main(["sites", str(FIXTURES / "pairs" / "clip")]) == 0
    pictures, text = capsys.readouterr().out.split("Of text:")
    assert "1 17 16" in pictures
    assert "1 8 16" in text


POOLED = {
    "vit": {"pooled": (1, 16)},
    "bert": {"pooled": (1, 16)},
    "clip_vision_model-projected": {"pooled": (1, 16), "projected": (1, 12)},
    "siglip_vision_model": {
        "pooler.pattern": (1, 4, 16),
        "pooler.z": (1, 4, 4),
        "pooler.mlp.post": (1, 24),
        "pooled": (1, 16),
    },
}


@pytest.mark.parametrize("case", POOLED)
def test_the_one_vector_is_read_and_edited(case):
    model = load(FIXTURES / case)
    hidden = jnp.asarray(np.load(FIXTURES / case / "expected.npz")["out"][:1])

    def run(weights, hidden):
        pooled = pool(weights, hidden, model.cfg)
        return project(weights, pooled) if "projection" in weights else pooled

    out, acts = jax.jit(capture(run, list(POOLED[case])))(model.weights, hidden)
    assert {site: value.shape for site, value in acts.items()} == POOLED[case]
    np.testing.assert_array_equal(out, acts[list(POOLED[case])[-1]])
    for site in POOLED[case]:
        assert np.abs(jax.jit(intervene(run, [zero(site)]))(model.weights, hidden) - out).max() > 1e-3


def test_the_sites_of_the_one_vector_are_listed(capsys):
    for case, expected in POOLED.items():
        assert main(["sites", str(FIXTURES / case)]) == 0
        shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
        assert [name for name in shown if name.startswith(("pooler", "pooled", "projected"))] == list(expected)
    # A classifier gives logits; a pooled output is not made of these.
    assert main(["sites", str(FIXTURES / "dinov2-classes")]) == 0
    assert "pooled" not in capsys.readouterr().out


def test_random_weights_classify():
    weights = init(VIT, jax.random.key(0))
    assert forward(weights, jnp.ones((2, 12, 12, 3)), cfg=VIT).shape == (2, 5)
    assert set(jax.tree.leaves(jax.tree.map(jnp.shape, weights), is_leaf=lambda s: isinstance(s, tuple))) == set(
        shapes(VIT).values()
    )


def test_a_classifier_made_here_is_saved(tmp_path):
    save_pretrained(Transformer(VIT, init(VIT, jax.random.key(0))), tmp_path)
    assert load(tmp_path).cfg == VIT


def test_the_tensors_say_whether_there_is_a_classifier():
    hf = {k: v for k, v in config_to_hf(VIT).items() if k != "architectures"}
    assert config_from_hf(hf).has_head
    base = config_from_hf({**hf, "architectures": ["ViTModel"]})
    assert (base.has_head, base.d_vocab) == (False, 0)
    assert config_from_hf({k: v for k, v in hf.items() if k != "num_labels"}).d_vocab == 2
    named = {**hf, "num_labels": None, "id2label": {"0": "cat", "1": "dog", "2": "cow"}}
    assert config_from_hf(named).d_vocab == 3


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("n_in", "n_out"), [(4, 4), (4, 7), (7, 3), (5, 11)])
def test_interpolation(n_in, n_out, antialias):
    matrix = bicubic(n_in, n_out, antialias=antialias)
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-12)  # a constant stays
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-12)  # left is right
    if n_in == n_out:
        np.testing.assert_array_equal(matrix, np.eye(n_in))


def test_a_resized_model_is_saved_as_it_is(vit, tmp_path):
    larger = resized(vit, 18)
    assert larger.cfg == dataclasses.replace(vit.cfg, image=dataclasses.replace(vit.cfg.image, size=18), n_ctx=37)
    save_pretrained(larger, tmp_path)
    again = load(tmp_path)
    assert again.cfg == larger.cfg
    np.testing.assert_array_equal(again.weights["embed"]["pos"], larger.weights["embed"]["pos"])
    np.testing.assert_array_equal(resized(vit, 12).weights["embed"]["pos"], vit.weights["embed"]["pos"])


def test_pictures_that_do_not_fit(vit, llama):
    with pytest.raises(UserError, match=r"takes pictures \[batch, 12, 12, 2\]; these are \[1, 18, 18, 2\].*resized"):
        vit(jnp.zeros((1, 18, 18, 2)))
    with pytest.raises(UserError, match="13 pixels do not divide into patches of 3"):
        resized(vit, 13)
    with pytest.raises(UserError, match="this llama model reads tokens"):
        resized(llama, 12)


def test_hidden_patches_that_do_not_fit(vit, llama, pixels):
    dino, hidden = load(FIXTURES / "dinov2"), jnp.zeros((3, 16), bool)
    for model, inputs in ((vit, pixels), (llama, jnp.zeros((3, 4), jnp.int32))):
        with pytest.raises(UserError, match=r"model has no mask token .*\(DINOv2 has one\)"):
            model(inputs, hidden_patches=hidden)
    for wrong in (jnp.zeros((3, 17), bool), jnp.zeros((3, 16))):
        with pytest.raises(UserError, match=r"a bool for each patch, \[3, 16\]"):
            dino(pixels, hidden_patches=wrong)
    with pytest.raises(UserError, match="which resid= replaces"):
        dino(pixels, hidden_patches=hidden, resid=jnp.zeros((3, 17, 16)))


WRONG = {
    "token switches": ({"embed_scale": True, "tied": True}, "embed_scale, tied: of models that read tokens"),
    "no classes": ({"d_vocab": 0}, "needs d_vocab, its number of classes"),
    "classes of text": ({"image": None}, "classify is a switch of models of pictures"),
    "a final norm after all": ({"norm_pooled": True, "norm_placement": "post"}, "norm_pooled moves the final norm"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=list(WRONG))
def test_contradictions_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(VIT, **change)


def test_pictures_are_square():
    hf = {**config_to_hf(VIT), "image_size": [12, 12], "patch_size": [4, 4]}
    assert config_from_hf(hf) == VIT
    with pytest.raises(UserError, match=r"image_size = \[8, 12\]: pictures and patches are square"):
        config_from_hf({**hf, "image_size": [8, 12]})
    with pytest.raises(UserError, match="patch=0 is not a whole number"):
        Image(size=8, patch=0)


def test_what_a_model_lacks_is_said(vit):
    hidden = jnp.zeros((1, 17, 16))
    with pytest.raises(UserError, match="has no pooler"):
        pool(vit.weights, hidden, vit.cfg)
    with pytest.raises(UserError, match="has no projection"):
        project(vit.weights, hidden[:, 0])
    text = load(FIXTURES / "clip_text_model")
    with pytest.raises(UserError, match="give pool the tokens"):
        pool(text.weights, hidden, text.cfg)
    two = load(FIXTURES / "deit-distilled")
    with pytest.raises(UserError, match=r"averages two classifiers.*head\.w_distillation"):
        unembedding(two.weights, two.cfg)
