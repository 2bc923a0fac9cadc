# SPDX-License-Identifier: Apache-2.0
"""Dictionaries that we export do in sparsify and in circuit-tracer what they do here, where their files say.

The numbers are of scripts/golden/make_peer_hooks.py, made with these libraries.
"""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxneuro
from jaxneuro import add, capture, intervene, set_to
from jaxneuro.dictionaries import CrossLayerTranscoder, Placement, load_dictionary, load_placement
from jaxneuro.dictionaries.places import sparsify_hookpoint

HERE = pathlib.Path(__file__).parents[1]
GOLDEN = json.loads((HERE / "golden" / "peer_hooks.json").read_text())
_spec = importlib.util.spec_from_file_location("peer_hooks", HERE.parent / "scripts" / "golden" / "make_peer_hooks.py")
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)
PATTERNS = "blocks.*.attn.pattern"
NEAR = 1e-5
"""Of the largest number: float32, sums of at most 48 products in another order; numbers were kept to six digits."""


def numbers(kept):
    flat = np.zeros(np.prod(kept["shape"]), np.float32)
    flat[kept["at"]] = kept["values"]
    return flat.reshape(kept["shape"])


def close(found, want):
    assert np.abs(np.asarray(found) - want).max() <= NEAR * np.abs(want).max()


def encoded(written, acts, site):
    """[layer, pos, latent] of a case: a set, a cross-layer transcoder, or one dictionary."""
    x = jnp.stack([acts[name][0] for name in site])
    if isinstance(written, CrossLayerTranscoder):
        return jnp.moveaxis(written.encode(jnp.moveaxis(x, 0, -2)), -2, 0)
    each = written.values() if isinstance(written, dict) else [written]
    return jnp.stack([coder.encode(layer) for coder, layer in zip(each, x, strict=True)])


def directions(written, layer, latent):
    """Layer -> what a latent of one layer adds to its target."""
    if isinstance(written, CrossLayerTranscoder):
        return {layer + i: row[latent] for i, row in enumerate(written.W_dec[layer])}
    return {layer: written[layer].W_dec[latent]}


def edits_of(written, place, acts, features, at):
    if at is None:  # sparsify: the whole dictionary in the place of the module's value
        return [set_to((place.target or place.site)[0], written(acts[place.site[0]]))]
    layer, pos, latent = at
    change = (features[layer, pos, latent] + hooks.SET_TO) - features[layer, pos, latent]
    rows = directions(written, layer, latent)
    moved = [add(place.target[i], change * row, pos=pos) for i, row in rows.items()]
    frozen = [set_to(f"blocks.{i}.attn.pattern", pattern) for i, pattern in enumerate(acts[PATTERNS])]
    return [*moved, *frozen]


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_the_peer_and_jaxneuro_have_the_same_features_and_change_logits_alike(tmp_path, name):
    want, case = GOLDEN["cases"][name], hooks.CASES[name]
    written, place = hooks.exported(name, tmp_path)
    assert hooks.digest(tmp_path) == want["files"], "the peer opened other files: make the golden numbers again"
    model, tokens = jaxneuro.load(hooks.MODELS / case.model), jnp.asarray([GOLDEN["tokens"]])

    @jax.jit
    def run(weights):
        logits, acts = capture(model.apply, [*place.site, PATTERNS])(weights, tokens)
        features = encoded(written, acts, place.site)
        edits = edits_of(written, place, acts, features, want.get("set"))
        return logits, features, intervene(model.apply, edits)(weights, tokens)

    free, features, edited = run(model.weights)
    if case.library == "tracer":  # it leaves out the begin token
        features = features.at[:, 0].set(0)
    close(features, numbers(want["features"]))
    np.testing.assert_array_equal(np.flatnonzero(features), want["features"]["at"])
    close(edited, numbers(want["logits"]))
    assert np.abs(edited - free).max() == pytest.approx(want["changed"], rel=1e-3)
    assert want["changed"] > 0.01


def test_a_folder_of_sparsify_is_named_after_the_module_and_says_where_it_belongs(tmp_path):
    for name, want in GOLDEN["cases"].items():
        if hooks.CASES[name].library == "sparsify":
            _, place = hooks.exported(name, tmp_path / name)
            (folder,) = (tmp_path / name).iterdir()
            assert [folder.name] == want["hooks"]
            assert load_placement(folder) == place
            assert load_dictionary(folder).n_latents == hooks.N_LATENTS


@pytest.mark.parametrize(
    ("family", "site", "target", "module"),
    [
        ("gpt2", "blocks.3.hook_resid_post", None, "h.3"),
        ("phi", "blocks.0.attn_out", None, "layers.0.self_attn"),
        ("llama", "blocks.2.resid_pre", "blocks.2.resid_post", "layers.2"),
        ("gemma3_text", "blocks.2.attn_out", None, "layers.2.post_attention_layernorm"),
        # after the MLP comes a norm, and mlp_out is what it returns
        ("gemma2", "blocks.2.mlp.in", "blocks.2.mlp_out", None),
        ("llama", "blocks.1.mlp.in", "blocks.2.mlp_out", None),
        ("llama", "blocks.1.mlp.post", None, None),
        ("llama", "blocks.*.mlp_out", None, None),
        ("llama", "embed", None, None),
        ("mamba", "blocks.1.resid_post", None, None),
        (None, "blocks.1.resid_post", None, None),
    ],
)
def test_modules_of_sites(family, site, target, module):
    place = Placement(site=(site,), target=(target,) if target else (), family=family)
    assert sparsify_hookpoint(place) == module


def test_the_golden_numbers_say_who_made_them():
    assert GOLDEN["versions"]["eai-sparsify"] == "1.3.3"
    assert GOLDEN["versions"]["circuit-tracer"] == "0.5.0"
    assert set(GOLDEN["cases"]) == set(hooks.CASES)
