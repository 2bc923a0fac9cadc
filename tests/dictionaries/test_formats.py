# SPDX-License-Identifier: Apache-2.0
"""SAELens' layout, strict both ways."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries import SparseCoder, TopK, load_saelens, save_saelens
from jaxneuro.errors import UserError
from jaxneuro.io.safetensors import read_safetensors, write_safetensors


@pytest.fixture
def dictionary():
    a, b = jax.random.split(jax.random.key(0))
    return SparseCoder(
        W_enc=jax.random.normal(a, (4, 10)),
        W_dec=jax.random.normal(b, (10, 4)),
        b_enc=jnp.ones(10),
        b_dec=jnp.ones(4),
        activation=TopK(3),
    )


@pytest.fixture
def folder(dictionary, tmp_path):
    return save_saelens(dictionary, tmp_path / "sae", {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"})


def change(folder, **changes):
    config = json.loads((folder / "cfg.json").read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key)
        else:
            config[key] = value
    (folder / "cfg.json").write_text(json.dumps(config))


def test_round_trip_is_bitwise(dictionary, folder):
    again = load_saelens(folder)
    assert again.k == 3
    for one, two in zip(jax.tree.leaves(dictionary), jax.tree.leaves(again), strict=True):
        assert np.array_equal(one, two)


def test_the_layout_is_saelens(folder):
    config = json.loads((folder / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"], config["k"]) == ("topk", 4, 10, 3)
    assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6  # else SAELens reads it as an older layout
    tensors = read_safetensors(folder / "sae_weights.safetensors")
    assert {n: tensors.shape(n) for n in tensors} == {"W_enc": (4, 10), "W_dec": (10, 4), "b_enc": (10,), "b_dec": (4,)}


def test_norm_aware_selection_is_folded(dictionary, folder):
    change(folder, rescale_acts_by_decoder_norm=True)
    x = jax.random.normal(jax.random.key(3), (50, 4))
    got = load_saelens(folder)(x)
    # the definition: select by pre-activation times norm, decode the plain pre-activation
    norm = np.linalg.norm(dictionary.W_dec, axis=1)
    pre = np.asarray((x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc)
    want = np.zeros_like(x)
    for t in range(50):
        top = np.argsort(-pre[t] * norm)[:3]
        want[t] = np.maximum(pre[t, top], 0) @ np.asarray(dictionary.W_dec)[top] + np.asarray(dictionary.b_dec)
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "no architecture 'temporal'.*Known: standard, topk"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations is 'covariance_whitening'"),
        ({"k": None}, "k is missing"),
        ({"k": 11}, "k = 11 for 10 latents"),
        ({"d_in": 5}, r"W_enc has shape \(4, 10\), cfg.json says \(5, 10\)"),
        ({"temperature": 1}, "unknown key 'temperature'"),
        ({"dtype": "bfloat16"}, "W_enc is float32, cfg.json says bfloat16"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_what_the_config_must_not_say(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_saelens(folder)


def test_tensors_missing_and_extra_are_named_together(folder):
    tensors = dict(read_safetensors(folder / "sae_weights.safetensors"))
    tensors["threshold"] = tensors.pop("b_enc").copy()
    write_safetensors(folder / "sae_weights.safetensors", tensors)
    with pytest.raises(UserError, match="tensor b_enc is missing; unknown tensor threshold"):
        load_saelens(folder)


def test_broken_numbers_are_refused_both_ways(dictionary, folder, tmp_path):
    broken = dataclasses.replace(dictionary, b_enc=dictionary.b_enc.at[2].set(jnp.nan))
    with pytest.raises(UserError, match="b_enc holds NaN or infinity"):
        save_saelens(broken, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    tensors = {n: np.array(a) for n, a in read_safetensors(folder / "sae_weights.safetensors").items()}
    tensors["W_dec"][0, 0] = np.inf
    write_safetensors(folder / "sae_weights.safetensors", tensors)
    with pytest.raises(UserError, match="W_dec holds NaN or infinity"):
        load_saelens(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_go_both_ways(dictionary, tmp_path, dtype):
    small = jax.tree.map(lambda a: a.astype(dtype), dictionary)
    again = load_saelens(save_saelens(small, tmp_path / "sae"))
    for one, two in zip(jax.tree.leaves(small), jax.tree.leaves(again), strict=True):
        assert one.dtype == two.dtype
        assert np.array_equal(np.asarray(one, np.float32), np.asarray(two, np.float32))
    change(tmp_path / "sae", rescale_acts_by_decoder_norm=True)
    assert load_saelens(tmp_path / "sae").W_enc.dtype == jnp.dtype(dtype)


def test_a_transcoder_has_no_layout(tmp_path):
    d = SparseCoder(
        W_enc=jnp.ones((4, 6)), W_dec=jnp.ones((6, 5)), b_enc=jnp.zeros(6), b_dec=jnp.zeros(5), activation=TopK(1),
        apply_b_dec_to_input=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="no layout for a TopK transcoder"):
        save_saelens(d, tmp_path)
