# SPDX-License-Identifier: Apache-2.0
"""CLIP and SigLIP whole: embeddings and logits against transformers, and folders of two models."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers

from jaxneuro.data import load_tokenizer
from jaxneuro.data.rows import padded
from jaxneuro.errors import UserError
from jaxneuro.io import read_safetensors, write_safetensors
from jaxneuro.models import embedding, load, load_pair, save_pair
from jaxneuro.models.layout import flatten

from .conftest import FIXTURES
from .test_parity import TOLERANCE

PAIRS = FIXTURES / "pairs"


@pytest.fixture(scope="module", params=["clip", "siglip"])
def pair(request):
    return load_pair(PAIRS / request.param)


@pytest.fixture
def golden(pair):
    return dict(np.load(PAIRS / json.loads(pair.hf_config)["model_type"] / "pair.npz"))


def inputs(golden):
    return tuple(jnp.asarray(golden[name]) for name in ("pixels", "tokens", "mask"))


def compared(golden):
    """Texts that are as processors make them: all real, or padded on the right. The others begin with padding."""
    rows = golden["mask"][:, 0]
    assert rows.tolist() == [True, True, False]
    return rows


def test_logits_of_pictures_and_texts(pair, golden):
    rows = compared(golden)
    with jax.default_matmul_precision("highest"):
        # exp(logit_scale) is about 10 here, and multiplies the rounding of cosines
        np.testing.assert_allclose(pair(*inputs(golden))[:, rows], golden["logits"][:, rows], atol=2 * TOLERANCE)


def test_embeddings(pair, golden):
    rows, (pixels, tokens, mask) = compared(golden), inputs(golden)
    with jax.default_matmul_precision("highest"):
        image = embedding(pair.image.weights, pixels, pair.image.cfg)
        text = embedding(pair.text.weights, tokens, pair.text.cfg, mask)
    np.testing.assert_allclose(image, golden["image"], atol=TOLERANCE)
    np.testing.assert_allclose(text[rows], golden["text"][rows], atol=TOLERANCE)
    np.testing.assert_allclose(jnp.linalg.norm(image, axis=-1), 1.0, atol=1e-6)


def test_a_text_behind_padding_is_what_it_is_alone(pair, golden):
    """transformers would give its tokens the positions of their columns."""
    pixels, tokens, mask = inputs(golden)
    alone = tokens[2:, 5:]
    assert mask[2].tolist() == [False] * 5 + [True] * alone.shape[1]
    with jax.default_matmul_precision("highest"):
        whole = embedding(pair.text.weights, tokens, pair.text.cfg, mask)
        own = embedding(pair.text.weights, alone, pair.text.cfg)
        np.testing.assert_allclose(pair(pixels, tokens, mask)[:, 2:], pair(pixels, alone), atol=2 * TOLERANCE)
    np.testing.assert_allclose(whole[2:], own, atol=TOLERANCE)
    assert np.abs(own - golden["text"][2:]).max() > 1e-2


def test_texts_for_siglip_are_filled_up_to_what_it_is_pooled_at(tmp_path):
    """It was trained on texts padded to all of its positions, unmasked, and is pooled at the last, padding or not."""
    folder = shutil.copytree(PAIRS / "siglip", tmp_path / "siglip")
    from transformers import PreTrainedTokenizerFast

    fast = Fast(models.WordLevel({"<pad>" if i == 1 else f"w{i}": i for i in range(40)}, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>").save_pretrained(folder)
    golden, tokenizer, pair = dict(np.load(folder / "pair.npz")), load_tokenizer(folder), load_pair(folder)
    real = [row[on] for row, on in zip(golden["tokens"], golden["mask"], strict=True) if on[0]]
    assert len(real[0]) > len(real[1])
    texts = [" ".join("<pad>" if i == 1 else f"w{i}" for i in row) for row in real]
    tokens, mask = tokenizer.batch(texts)
    np.testing.assert_array_equal(tokens, golden["filled"])
    assert mask.all()
    short = padded(real, 1)
    with jax.default_matmul_precision("highest"):
        found = embedding(pair.text.weights, tokens, pair.text.cfg, mask)
        ragged = embedding(pair.text.weights, short.tokens, pair.text.cfg, short.mask)
    np.testing.assert_allclose(found, golden["filled_text"], atol=TOLERANCE)
    assert np.abs(ragged - golden["filled_text"]).max() > 1e-2
    with pytest.raises(UserError, match="has 33 tokens, more than length=32"):
        tokenizer.batch("w2 " * 33)
    with pytest.raises(UserError, match="padding, and was trained with it on the right"):
        tokenizer.batch(texts, side="left")
    with pytest.raises(UserError, match="no side 'up'"):
        tokenizer.batch(texts, side="up")
    with pytest.raises(UserError, match="more than length=0"):
        tokenizer.batch(texts, length=0)


def test_every_scalar_is_read(pair, golden):
    for p in pair.scalars.values():
        before = p.get_value()
        p.set_value(1.1 * before)
        rows = compared(golden)
        assert np.abs(pair(*inputs(golden))[:, rows] - golden["logits"][:, rows]).max() > 1e-3
        p.set_value(before)


def test_what_was_loaded_is_saved_byte_for_byte(pair, tmp_path):
    kind = json.loads(pair.hf_config)["model_type"]
    save_pair(pair, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (PAIRS / kind / "model.safetensors").read_bytes()
    before, after = (json.loads((f / "config.json").read_text()) for f in (PAIRS / kind, tmp_path))
    for whole, again in ((before, after), *((before[t], after[t]) for t in ("text_config", "vision_config"))):
        kept = {
            k: v for k, v in whole.items() if not isinstance(v, dict) and k not in ("dtype", "transformers_version")
        }
        assert kept == {k: again[k] for k in kept}
    again = load_pair(tmp_path)
    assert (again.image.cfg, again.text.cfg) == (pair.image.cfg, pair.text.cfg)
    a, b = flatten(again.weights), flatten(pair.weights)
    assert set(a) == set(b)
    assert all((a[leaf] == b[leaf]).all() for leaf in a)


def test_one_of_two_is_not_opened_as_one():
    with pytest.raises(UserError, match=r"holds two models.*load_pair"):
        load(PAIRS / "clip")
    with pytest.raises(UserError, match=r"no pair of models 'vit'.*Known: clip, siglip"):
        load_pair(FIXTURES / "vit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad_token_id": float("nan")}, "holds NaN or infinity"),
        ({"attention_dropout": float("inf")}, "holds NaN or infinity"),
        ({"logit_scale_init_value": 2**31}, "logit_scale_init_value = 2147483648 is not a finite number"),
    ],
)
def test_what_the_config_of_a_pair_must_not_say(tmp_path, change, message):
    """What no model computes with is kept for `save_pair`, and JSON has no NaN."""
    shutil.copytree(PAIRS / "clip", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        load_pair(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: a for n, a in t.items() if n != "logit_scale"}, "missing: logit_scale"),
        (lambda t: {**t, "odd": np.zeros(2, np.float32)}, "not part of a pair: odd"),
        (lambda t: {n: a for n, a in t.items() if n != "text_projection.weight"}, "missing: text_projection.weight"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, message):
    shutil.copytree(PAIRS / "clip", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, change({n: np.array(a) for n, a in read_safetensors(path).items()}), {"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_pair(tmp_path)
