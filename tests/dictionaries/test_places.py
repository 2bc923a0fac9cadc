# SPDX-License-Identifier: Apache-2.0
"""Where a dictionary belongs: the names that other libraries need in their files, and ours read back."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jaxneuro.dictionaries import (
    AbsTopK,
    CrossLayerTranscoder,
    Gated,
    GroupMax,
    JumpReLU,
    KMeansDictionary,
    MatchingPursuit,
    PCADictionary,
    Placement,
    Relu,
    SemiNMFDictionary,
    SparseCoder,
    TopK,
    load_dictionary,
    load_placement,
    save_circuit_tracer,
    save_native,
    save_saelens,
    save_sparsify,
)
from jaxneuro.dictionaries.places import of_saelens
from jaxneuro.errors import UserError
from jaxneuro.io.sources import hub_name


def coder(activation=None, **changes):
    d = SparseCoder(
        W_enc=jnp.ones((4, 6)), W_dec=jnp.ones((6, 4)), b_enc=jnp.zeros(6), b_dec=jnp.zeros(4), activation=Relu()
    )
    return dataclasses.replace(d, activation=activation or Relu(), **changes)


def saved(folder, **given):
    return json.loads((save_saelens(coder(), folder, **given) / "cfg.json").read_text())


@pytest.mark.parametrize(
    ("asked", "hook", "reshape"),
    [
        ("blocks.1.resid_post", "blocks.1.hook_resid_post", "none"),
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post", "none"),
        ("blocks.1.attn.z", "blocks.1.attn.hook_z", "hook_z"),
        ("blocks.1.attn.hook_z", "blocks.1.attn.hook_z", "hook_z"),
        ("blocks.0.mlp.post", "blocks.0.mlp.hook_post", "none"),
        ("blocks.0.mlp.in", "blocks.0.mlp.hook_in", "none"),
        ("blocks.0.attn.scores", "blocks.0.attn.hook_attn_scores", "none"),
        ("blocks.12.ln2.normalized", "blocks.12.ln2.hook_normalized", "none"),
        ("embed", "hook_embed", "none"),
        ("ln_final.normalized", "ln_final.hook_normalized", "none"),
    ],
)
def test_saelens_has_transformerlens_spelling_whichever_was_asked_for(tmp_path, asked, hook, reshape):
    for given in ({"metadata": {"hook_name": asked}}, {"place": Placement(site=(asked,))}):
        config = saved(tmp_path, **given)
        assert (config["metadata"]["hook_name"], config["reshape_activations"]) == (hook, reshape)
    assert load_placement(tmp_path) == Placement(site=(asked,))


def test_a_site_that_transformerlens_lacks_has_no_hook_name(tmp_path):
    metadata = saved(tmp_path, place=Placement(site=("blocks.1.mlp.gate",)))["metadata"]
    assert "hook_name" not in metadata
    assert metadata["jaxneuro"] == {"site": ["blocks.1.mlp.gate"]}
    assert load_placement(tmp_path).site == ("blocks.1.mlp.gate",)
    # names that are no site of ours are another model class's modules: as they were given
    assert saved(tmp_path, metadata={"hook_name": "model.layers.1"})["metadata"]["hook_name"] == "model.layers.1"
    with pytest.raises(UserError, match=r"hook_name = 3 is no name of a site"):
        saved(tmp_path, metadata={"hook_name": 3})


@pytest.mark.parametrize(
    "given",
    [
        {"place": Placement(site=("blocks.0.resid_post", "blocks.1.resid_post"), widths=(3, 1))},
        {"metadata": {"hook_name": "blocks.0.resid_post+blocks.1.resid_post"}},
    ],
)
def test_joined_sites_are_listed_and_keep_their_widths(tmp_path, given):
    metadata = saved(tmp_path, **given)["metadata"]
    assert "hook_name" not in metadata  # of two hooks, neither is the dictionary's
    assert metadata["hook_names"] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    found = load_placement(tmp_path)
    assert found.site == ("blocks.0.resid_post", "blocks.1.resid_post")
    assert found.widths == ((3, 1) if "place" in given else ())


def test_a_transcoder_says_what_it_writes(tmp_path):
    place = Placement(
        site=("blocks.1.mlp.in",), target=("blocks.1.mlp_out",), model="Qwen/Qwen3-0.6B", prepend_bos=False
    )
    save_saelens(coder(apply_b_dec_to_input=False), tmp_path, place=place)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == "transcoder"
    assert config["metadata"]["hook_name"] == "blocks.1.mlp.hook_in"
    assert config["metadata"]["hook_name_out"] == "blocks.1.hook_mlp_out"
    assert config["metadata"]["model_name"] == "Qwen/Qwen3-0.6B"
    assert config["metadata"]["model_from_pretrained_kwargs"] == {"center_writing_weights": False}
    assert config["metadata"]["prepend_bos"] is False
    assert "context_size" not in config["metadata"]
    assert load_placement(tmp_path) == place


def test_a_folder_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    cached = tmp_path / "hub" / "models--openai-community--gpt2" / "snapshots" / "607a"
    names = {
        "own/model": None,
        str(tmp_path / "own"): None,
        "bundled": None,
        "gpt2": "gpt2",
        str(cached): "openai-community/gpt2",
        "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    }
    assert {name: hub_name(name) for name in names} == names
    metadata = saved(tmp_path / "d", place=Placement(site=("embed",), model="own/model"))["metadata"]
    assert "model_name" not in metadata
    assert metadata["jaxneuro"]["model"] == "own/model"


def test_every_format_of_ours_keeps_the_place(tmp_path):
    place = Placement(site=("blocks.2.resid_post",), model="bundled", family="llama", context=64, prepend_bos=True)
    save_native(coder(), tmp_path / "native", place=place)
    save_sparsify(coder(TopK(2)), tmp_path / "sparsify", place=place)
    save_saelens(coder(), tmp_path / "saelens", place=place)
    for name in ("native", "sparsify", "saelens"):
        assert load_placement(tmp_path / name) == place, name
        assert load_dictionary(tmp_path / name).n_latents == 6
    save_native(coder(), tmp_path / "none")
    assert load_placement(tmp_path / "none") is None


LAYERS = tuple(f"blocks.{i}." for i in range(2))
MLPS = Placement(site=tuple(f"{b}mlp.in" for b in LAYERS), target=tuple(f"{b}mlp_out" for b in LAYERS), model="bundled")
SET = {i: coder(apply_b_dec_to_input=False) for i in range(2)}


@pytest.mark.parametrize(("family", "hook"), [("llama", "hook_mlp_out"), ("qwen3", "mlp.hook_out")])
def test_circuit_tracer_has_the_hooks_of_every_layer(tmp_path, family, hook):
    place = dataclasses.replace(MLPS, family=family)
    save_circuit_tracer(SET, tmp_path, place=place)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("mlp.hook_in", hook)
    assert "model_name" not in config
    assert load_placement(tmp_path) == place
    save_circuit_tracer(SET, tmp_path, {"model_name": "m", "feature_input_hook": "hook_resid_mid",
                                        "feature_output_hook": "mlp.hook_out"})  # fmt: skip
    found = load_placement(tmp_path)
    assert found.site == tuple(f"{b}resid_mid" for b in LAYERS)
    assert found.target == MLPS.target


@pytest.mark.parametrize(
    ("place", "metadata", "says"),
    [
        (None, {"feature_input_hook": "mlp.hook_nn", "feature_output_hook": "hook_mlp_out"}, "'mlp.hook_nn' stands"),
        (None, {"feature_input_hook": 3, "feature_output_hook": "hook_mlp_out"}, "3 stands for no site"),
        # what a block reads before its gain is not what its MLP reads
        (dataclasses.replace(MLPS, site=tuple(f"{b}ln2.normalized" for b in LAYERS)),
         {"feature_input_hook": "mlp.hook_in"}, "is 'mlp.hook_in', but the site of the place is 'ln2.hook_normalized'"),
        (dataclasses.replace(MLPS, site=MLPS.site[1:]), {}, "a hook of every layer, from 0, is needed"),
        (dataclasses.replace(MLPS, site=MLPS.site[::-1]), {}, "site is blocks.1.mlp.in, blocks.0.mlp.in: a hook of"),
        (dataclasses.replace(MLPS, target=()), {}, "target is nothing"),
    ],
)  # fmt: skip
def test_hooks_that_stand_for_no_site_are_not_written(tmp_path, place, metadata, says):
    with pytest.raises(UserError, match=says):
        save_circuit_tracer(SET, tmp_path / "out", {"model_name": "m", **metadata}, place=place)
    assert not (tmp_path / "out").exists()


eye, ones = jnp.eye(4), jnp.ones(4)
EVERY = {
    "SparseCoder": coder(),
    **{type(a).__name__: coder(a) for a in (TopK(2), AbsTopK(2), GroupMax(2), JumpReLU(jnp.ones(6)))},
    "Gated": coder(Gated(r_mag=jnp.ones(6), b_mag=jnp.ones(6), b_gate=jnp.ones(6))),
    "MatchingPursuit": MatchingPursuit(W_dec=eye, b_dec=ones, max_steps=2),
    "CrossLayerTranscoder": CrossLayerTranscoder(
        W_enc=jnp.ones((1, 4, 6)), b_enc=jnp.ones((1, 6)), W_dec=(jnp.ones((1, 6, 4)),), b_dec=jnp.ones((1, 4)),
        activation=TopK(2),
    ),
    "PCADictionary": PCADictionary(W_enc=eye, W_dec=eye, b_dec=ones, variance=ones, total_variance=ones[0]),
    "KMeansDictionary": KMeansDictionary(W_dec=eye),
    "SemiNMFDictionary": SemiNMFDictionary(W_dec=eye),
    "a set": {0: coder(apply_b_dec_to_input=False)},
    "a set of other things": {0: MatchingPursuit(W_dec=eye, b_dec=ones, max_steps=2)},
    "a set by name": {"a": coder()},
    "None": None,
    "an array": eye,
}  # fmt: skip
WRITERS = {
    "saelens": save_saelens,
    "sparsify": save_sparsify,
    "circuit_tracer": save_circuit_tracer,
    "native": save_native,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", EVERY)
def test_every_writer_takes_every_class_or_says_why_not(tmp_path, writer, kind):
    place = Placement(site=("blocks.0.mlp.in",), target=("blocks.0.mlp_out",)) if writer == "circuit_tracer" else None
    try:
        WRITERS[writer](EVERY[kind], tmp_path / "out", place=place)
    except UserError:
        assert not (tmp_path / "out").exists()
    else:
        load_dictionary(tmp_path / "out")


def test_a_gated_dictionary_keeps_an_encoder_bias_that_saelens_has_no_tensor_for(tmp_path):
    """Not what training leaves, where it is 0, but what a person may have."""
    x, b = jnp.linspace(-1, 1, 8).reshape(2, 4), jnp.linspace(-2, 2, 6)
    gated = coder(Gated(r_mag=jnp.linspace(-1, 1, 6), b_mag=b[::-1], b_gate=jnp.ones(6)), b_enc=b)
    found = load_dictionary(save_saelens(gated, tmp_path))
    np.testing.assert_allclose(found.encode(x), gated.encode(x), atol=1e-6)
    assert not np.allclose(found.encode(x), dataclasses.replace(gated, b_enc=jnp.zeros(6)).encode(x))


def test_an_input_norm_that_saelens_lacks_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"input_norm 'constant_nrom'\. Did you mean 'constant_norm'"):
        save_saelens(coder(input_norm="constant_nrom"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prepend_bos": "false"}, "prepend_bos = 'false' is not true or false"),
        ({"prepend_bos": 1}, "prepend_bos = 1 is not true or false"),
        ({"context_size": "128"}, "context_size = '128' is not"),
        ({"model_name": 3}, "model_name = 3 is not text"),
    ],
)
def test_metadata_of_another_type_are_refused(wrong, said):
    hook = {"hook_name": "blocks.1.hook_resid_post"}
    with pytest.raises(UserError, match=said):
        of_saelens(hook | wrong, "cfg.json")
    assert of_saelens(hook | dict.fromkeys(wrong), "cfg.json") == Placement(site=("blocks.1.resid_post",))
