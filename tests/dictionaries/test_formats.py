# SPDX-License-Identifier: Apache-2.0
"""SAELens' layout, strict both ways."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries import MatchingPursuit, SparseCoder, TopK, load_saelens, save_saelens
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
    pre = np.asarray((x - dictionary.b_dec[None]) @ dictionary.W_enc + dictionary.b_enc[None])
    want = np.zeros_like(x)
    for t in range(50):
        top = np.argsort(-pre[t] * norm)[:3]
        want[t] = np.maximum(pre[t, top], 0) @ np.asarray(dictionary.W_dec)[top] + np.asarray(dictionary.b_dec)
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "no architecture 'temporal'.*Known: standard, topk, abstopk"),
        ({"normalize_activations": "covariance_whitening"}, "no normalize_activations 'covariance_whitening'"),
        ({"k": None}, "k is missing"),
        ({"k": 11}, "k = 11 for 10 latents"),
        ({"d_in": 5}, r"W_enc has shape \(4, 10\), cfg.json says \(5, 10\)"),
        ({"temperature": 1}, "no key 'temperature'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_what_the_config_must_not_say(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_saelens(folder)


@pytest.fixture
def pursuit(tmp_path):
    w = jax.random.normal(jax.random.key(1), (10, 4)) / 2
    d = MatchingPursuit(W_dec=w, b_dec=jnp.ones(4), max_steps=3, tolerance=0.5, stop_on_repeat=True)
    return save_saelens(d, tmp_path / "pursuit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_iterations": 0}, "max_iterations = 0 is not a (positive )?whole number"),
        ({"max_iterations": 2.5}, "max_iterations = 2.5 is not a (positive )?whole number"),
        ({"residual_threshold": -0.1}, "residual_threshold = -0.1 is not a finite number at least 0"),
        ({"residual_threshold": float("inf")}, "residual_threshold = inf is not a finite"),
        ({"residual_threshold": True}, "residual_threshold = true is not a finite"),
        ({"stop_on_duplicate_support": 1}, "stop_on_duplicate_support = 1 is not true or false"),
        ({"max_iterations": 0, "residual_threshold": "1"}, "residual_threshold = '1' is.*max_iterations = 0 is"),
        ({"rescale_acts_by_decoder_norm": True}, "no key 'rescale_acts_by_decoder_norm'"),
        ({"k": 3}, "no key 'k'"),
    ],
)
def test_what_matching_pursuit_must_not_say(pursuit, changes, message):
    change(pursuit, **changes)
    with pytest.raises(UserError, match=message):
        load_saelens(pursuit)


def test_what_matching_pursuit_does_not_say_is_saelens_default(pursuit):
    change(pursuit, max_iterations=None, residual_threshold=None, stop_on_duplicate_support=None)  # taken out
    found = load_saelens(pursuit)
    assert (found.max_steps, found.tolerance, found.stop_on_repeat) == (4, 0.01, True)


def test_a_factor_of_matching_pursuit_is_folded(pursuit):
    """Of inputs times s, the code and the reconstruction are s times those of the folded dictionary."""
    plain, s = load_saelens(pursuit), 2.5
    change(pursuit, normalize_activations="expected_average_only_in")
    folded = load_saelens(pursuit, scaling_factor=s)
    x = jax.random.normal(jax.random.key(3), (50, 4))
    assert folded.tolerance == plain.tolerance / s
    np.testing.assert_array_equal(folded.W_dec, plain.W_dec)
    np.testing.assert_allclose(folded.encode(x), plain.encode(s * x) / s, atol=1e-5)
    np.testing.assert_allclose(folded(x), plain(s * x) / s, atol=1e-5)


def test_matching_pursuit_is_no_transcoder_and_has_no_other_tensors(pursuit, tmp_path):
    with pytest.raises(UserError, match=r"no layout for a MatchingPursuit transcoder.*b_dec subtracted"):
        save_saelens(load_saelens(pursuit), tmp_path / "other", {"hook_name_out": "blocks.1.hook_mlp_out"})
    change(pursuit, finetuning_scaling_factor=True)
    tensors = dict(read_safetensors(pursuit / "sae_weights.safetensors"))
    tensors |= {"W_enc": tensors["W_dec"].T.copy(), "finetuning_scaling_factor": np.full(10, 2.0, np.float32)}
    write_safetensors(pursuit / "sae_weights.safetensors", tensors)
    with pytest.raises(UserError, match="unknown tensor W_enc; unknown tensor finetuning_scaling_factor"):
        load_saelens(pursuit)


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
def test_the_type_of_cfg_json_is_read_as_saelens_reads_it(dictionary, folder, dtype):
    """SAELens 6.54 casts every tensor to it (`read_sae_components_from_disk`), whatever the file holds."""
    change(folder, dtype=f"torch.{dtype}")
    again = load_saelens(folder)
    for one, two in zip(jax.tree.leaves(dictionary), jax.tree.leaves(again), strict=True):
        assert np.array_equal(one.astype(dtype), two)
        assert two.dtype == jnp.dtype(dtype)


def test_tensors_of_several_types_and_overflow_are_no_cast(folder):
    tensors = {n: np.array(a) for n, a in read_safetensors(folder / "sae_weights.safetensors").items()}
    write_safetensors(folder / "sae_weights.safetensors", tensors | {"b_enc": tensors["b_enc"].astype(np.float16)})
    with pytest.raises(UserError, match=r"tensors of several types \(.*W_enc float32.*b_enc float16.*\) are not read"):
        load_saelens(folder)
    tensors["b_enc"][0] = 1e6
    write_safetensors(folder / "sae_weights.safetensors", tensors)
    change(folder, dtype="float16")
    with pytest.raises(UserError, match="b_enc holds NaN or infinity"):
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
