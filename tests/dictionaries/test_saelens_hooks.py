# SPDX-License-Identifier: Apache-2.0
"""Dictionaries that we export change SAELens' models as they change ours, at the place that their cfg.json names.

The numbers are of scripts/golden/make_saelens_hooks.py, made with SAELens and TransformerLens.
"""

import importlib.util
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import jaxneuro
from jaxneuro import add, apply_fn, capture, intervene, set_to
from jaxneuro.dictionaries import load_placement

HERE = pathlib.Path(__file__).parents[1]
GOLDEN = json.loads((HERE / "golden" / "saelens_hooks.json").read_text())
_spec = importlib.util.spec_from_file_location("hooks", HERE.parent / "scripts" / "golden" / "make_saelens_hooks.py")
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)


def flat(dictionary, x):
    """Of the heads side by side, where a site has them."""
    joined = x.reshape(*x.shape[:2], -1)
    return dictionary(joined).reshape(*x.shape[:2], *((x.shape[2:]) if dictionary.d_in == dictionary.d_out else ()))


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_saelens_and_jaxneuro_splice_a_dictionary_in_alike(tmp_path, case):
    want = GOLDEN["cases"][case]
    dictionary = hooks.exported(case, tmp_path)
    assert hooks.digest(tmp_path) == want["files"], "SAELens opened other files: make the golden numbers again"
    place = load_placement(tmp_path)
    model = jaxneuro.load(hooks.MODELS / hooks.CASES[case][0])
    tokens = jnp.asarray(GOLDEN["tokens"])
    if place.target:
        _, acts = capture(model.apply, list(place.site))(model.weights, tokens)
        edit = set_to(place.target[0], flat(dictionary, acts[place.site[0]]))
    else:
        edit = apply_fn(place.site[0], lambda x: flat(dictionary, x))
    free = np.asarray(model(tokens))[0]
    spliced = np.asarray(intervene(model.apply, [edit])(model.weights, tokens))[0]
    # float32, sums of at most 64 products in another order; numbers kept to 7 digits
    np.testing.assert_allclose(spliced, want["logits"], atol=2e-4 * np.abs(spliced).max())
    assert np.abs(spliced - free).max() == pytest.approx(want["changed"], rel=1e-2)
    assert want["changed"] > 0.05


@pytest.mark.parametrize("name", GOLDEN["resid_mid"])
def test_an_edit_of_resid_mid_changes_the_stream_where_the_bridge_of_transformerlens_changes_the_mlp_alone(name):
    want = {key: np.asarray(logits) for key, logits in GOLDEN["resid_mid"][name].items()}
    model, tokens = jaxneuro.load(hooks.MODELS / name), jnp.asarray(GOLDEN["tokens"])
    edit = add(f"blocks.{hooks.MID}.resid_mid", jnp.asarray(hooks.added(model.cfg.d_model)))
    reads = f"blocks.{hooks.MID}.mlp.in"
    stream, acts = capture(intervene(model.apply, [edit]), [reads])(model.weights, tokens)
    alone = intervene(model.apply, [set_to(reads, acts[reads])])(model.weights, tokens)
    for found, key in ((stream, "stream"), (alone, "norm alone")):
        np.testing.assert_allclose(found[0], want[key], atol=1e-5 * np.abs(want[key]).max())
    assert np.abs(want["stream"] - want["norm alone"]).max() > 1


def test_the_golden_numbers_say_who_made_them():
    assert GOLDEN["versions"]["sae-lens"] == "6.54.12"
    assert set(GOLDEN["cases"]) == set(hooks.CASES)
    assert {c["hook_name"].rpartition(".")[2] for c in GOLDEN["cases"].values()} > {"hook_z", "hook_resid_post"}
