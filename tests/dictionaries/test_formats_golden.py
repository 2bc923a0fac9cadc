# SPDX-License-Identifier: Apache-2.0
"""Dictionaries of other libraries, read: encode and decode as the library that made them. And written: read by it.

The files and numbers are of scripts/make_dictionary_fixtures.py; fixtures/about.json says who made each.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries import formats
from jaxneuro.dictionaries.formats import load_dictionary, load_metadata
from jaxneuro.errors import UserError
from jaxneuro.io import read_safetensors

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
ABOUT = json.loads((FIXTURES / "about.json").read_text())["cases"]

SINGLE = {"saex": lambda p: formats.load_saex(p, use_encoder_bias=False, remove_decoder_bias=True)}
FILES = {
    "openai/topk": "7.pt",
    "openai/relu": "7.pt",
    "transcoder_circuits": "transcoder.pt",
    "saex": "sae.safetensors",
}
NORMS = {"in": 3.5, "out": 2.8}


def load(case):
    path = FIXTURES / case / FILES.get(case, "")
    if case == "llama_scope/distill":
        return formats.load_llama_scope(path, average_norm=NORMS)
    return SINGLE.get(case, load_dictionary)(path)


def computed(dictionary, x):
    """(z, x_hat) in the layout of the fixtures: layers first where there are some."""
    if isinstance(dictionary, dict):
        return tuple(
            np.stack([f(dictionary[i], x[i]) for i in dictionary])
            for f in (lambda d, a: d.encode(a), lambda d, a: d(a))
        )
    if isinstance(dictionary, formats.CrossLayerTranscoder):
        by_token = jnp.swapaxes(x, 0, 1)
        return tuple(np.swapaxes(f(by_token), 0, 1) for f in (dictionary.encode, dictionary))
    return dictionary.encode(x), dictionary(x)


CASES = [c for c in ABOUT if c != "torch" and not c.startswith("written/")]


@pytest.mark.parametrize("case", CASES)
def test_encode_and_decode_are_the_librarys(case):
    want = np.load(FIXTURES / case / "expected.npz")
    z, x_hat = computed(load(case), jnp.asarray(want["x"]))
    # 1e-5: float32 sums of at most 12 products of size below 10 in another order
    np.testing.assert_allclose(z, want["z"], atol=1e-5, rtol=1e-5)
    assert (np.sign(z) == np.sign(want["z"])).all()
    np.testing.assert_allclose(x_hat, want["x_hat"], atol=1e-5, rtol=1e-5)


def test_every_case_names_who_made_it_and_who_computed_it():
    folders = {str(p.parent.relative_to(FIXTURES)) for p in FIXTURES.rglob("expected.npz")}
    assert folders == set(ABOUT)
    for case, about in ABOUT.items():
        assert about["files"], case
        assert any(word in about["numbers"] for word in ("formula", "sae-lens", "sparsify", "dictionary-learning",
                                                          "circuit-tracer", "torch")), case  # fmt: skip


# Where a file holds more than the dictionary is: what was folded, or only shaped the training.
WRITABLE = {
    "saelens": (formats.save_saelens, "sae_weights.safetensors"),
    "sparsify": (formats.save_sparsify, "sae.safetensors"),
    "circuit_tracer": (formats.save_circuit_tracer, None),
}
WRITTEN = [c for c in CASES if c.split("/")[0] in WRITABLE and "training_" not in c]
FOLDED = {"saelens/topk_rescaled", "saelens/abstopk_rescaled", "saelens/matching_pursuit_uncentred"}
DIFFER = {
    "saelens/topk_rescaled": {"rescale_acts_by_decoder_norm"},
    "saelens/abstopk_rescaled": {"rescale_acts_by_decoder_norm"},
    # null is d_in, and a b_dec that is neither subtracted nor added is 0
    **{f"saelens/matching_pursuit{c}": {"max_iterations"} for c in ("", "_threshold")},
    "saelens/matching_pursuit_uncentred": {"apply_b_dec_to_input"},
    "sparsify/sae_expansion": {"num_latents"},
}


def write(case, folder):
    library = case.split("/")[0]
    path = FIXTURES / case
    return WRITABLE[library][0](load_dictionary(path), folder, load_metadata(path))


@pytest.mark.parametrize("case", WRITTEN)
def test_what_is_written_is_what_was_read(case, tmp_path):
    write(case, tmp_path)
    ours = sorted(p.name for p in tmp_path.iterdir())
    assert ours == sorted(p.name for p in (FIXTURES / case).iterdir() if p.name != "expected.npz")
    for name in ours:
        mine, theirs = tmp_path / name, FIXTURES / case / name
        if name.endswith(".json"):
            a, b = json.loads(mine.read_text()), json.loads(theirs.read_text())
            different = {k for k in a.keys() | b.keys() if a.get(k, "absent") != b.get(k, "absent")}
            assert different == DIFFER.get(case, set())
        elif name.endswith(".yaml"):
            assert load_metadata(tmp_path) == load_metadata(FIXTURES / case)
        elif case in FOLDED:
            assert set(read_safetensors(mine)) == set(read_safetensors(theirs))
        else:
            assert mine.read_bytes() == theirs.read_bytes(), name


@pytest.mark.parametrize("case", WRITTEN)
def test_a_second_round_trip_changes_no_byte(case, tmp_path):
    write(case, tmp_path / "once")
    save = WRITABLE[case.split("/")[0]][0]
    save(load_dictionary(tmp_path / "once"), tmp_path / "twice", load_metadata(tmp_path / "once"))
    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("case", WRITTEN)
def test_the_library_reads_what_is_written(case, tmp_path):
    """fixtures/written is what is written now, and the library computed from it what jaxneuro does."""
    write(case, tmp_path)
    kept = FIXTURES / "written" / case
    for path in tmp_path.iterdir():
        if case in FOLDED and path.suffix == ".safetensors":  # rows' norms: the last digit is the compiler's
            mine, theirs = read_safetensors(path), read_safetensors(kept / path.name)
            assert set(mine) == set(theirs)
            for name in mine:
                np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-6)
        else:
            assert path.read_bytes() == (kept / path.name).read_bytes(), f"{path.name}: make the fixtures again"
    want = np.load(kept / "expected.npz")
    z, x_hat = computed(load_dictionary(tmp_path), jnp.asarray(want["x"]))
    np.testing.assert_allclose(z, want["z"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(x_hat, want["x_hat"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_format_is_told_from_the_files(case):
    if case in ("saex", "llama_scope/distill"):
        error = "is none of" if case == "saex" else "give average_norm="
        with pytest.raises(UserError, match=error):
            load_dictionary(FIXTURES / case)
    else:
        format = case.split("/")[0].removesuffix("5")
        path = FIXTURES / case / FILES.get(case, "")
        one, two = (jax.tree.leaves(load_dictionary(path, f)) for f in (None, format))
        for a, b in zip(one, two, strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)


def test_metadata_names_model_and_hook():
    assert load_metadata(FIXTURES / "saelens" / "topk")["hook_name"] == "blocks.1.hook_resid_post"
    assert load_metadata(FIXTURES / "saelens5" / "topk")["hook_name"] == "blocks.1.hook_resid_post"
    assert load_metadata(FIXTURES / "saelens5" / "topk")["context_size"] == 32
    assert load_metadata(FIXTURES / "circuit_tracer" / "clt")["feature_output_hook"] == "mlp.hook_out"
    assert load_metadata(FIXTURES / "dictionary_learning" / "AutoEncoder")["trainer"]["lm_name"] == "tiny"
