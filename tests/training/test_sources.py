# SPDX-License-Identifier: Apache-2.0
"""Live models and stores, trained on as a person would."""

import contextlib
import json

import jax
import numpy as np
import pytest

from jaxneuro.activations.store import Layout
from jaxneuro.activations.writer import Writer
from jaxneuro.dictionaries import Placement, load_dictionary, load_placement
from jaxneuro.dictionaries.native import load_native
from jaxneuro.errors import UserError
from jaxneuro.models import load
from jaxneuro.training import OPTIONS, Live, Store, TrainConfig, train_dictionary

SMALL = {"context": 32, "max_tokens_per_group": 400, "buffer_tokens": 200}


def live(out, **more):
    given = {"method": OPTIONS["relu"](n_latents=32, l1=0.1), "source": Live(site=("blocks.0.resid_post",), **SMALL)}
    return TrainConfig(**{"out": out, "steps": 4, "batch": 64, "evaluate_tokens": 128, "log_every": 4, **given, **more})


def results(config):
    return json.loads((config.out / "results.json").read_text())["dictionaries"]


def test_sites_of_one_pass_each_with_its_own_dictionary(tmp_path):
    sites = ("blocks.0.resid_post", "blocks.1.mlp_out")
    config = live(tmp_path / "out", sweep={"site": sites}, export=("saelens",))
    train_dictionary(config)
    found = results(config)
    assert list(found) == list(sites)
    assert all(0 < row["fvu"] < 2 and row["ce_nats"]["zero"] > row["ce_nats"]["original"] for row in found.values())
    assert all(row["kl_nats"]["zero"] > row["kl_nats"]["original"] == 0 for row in found.values())
    assert found[sites[0]]["fvu"] != found[sites[1]]["fvu"]
    folder = config.out / "dictionary" / sites[1]
    ours, theirs = load_native(folder), load_dictionary(folder / "saelens")
    assert all((np.asarray(a) == b).all() for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    metadata = json.loads((folder / "saelens/cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_mlp_out"  # as TransformerLens spells it
    assert "model_name" not in metadata  # "bundled" is no model of the Hub
    assert (metadata["context_size"], metadata["prepend_bos"]) == (32, False)
    place = Placement(site=(sites[1],), model="bundled", family="llama", context=32, prepend_bos=False)
    assert load_placement(folder / "saelens") == load_placement(folder) == place


def test_modules_of_one_pass_lie_below_one_folder_of_sparsify(tmp_path):
    sites = ("blocks.0.resid_post", "blocks.1.mlp_out", "blocks.1.mlp.post")
    method = OPTIONS["topk"](n_latents=16, k=2, auxk=None)
    config = live(
        tmp_path / "out", method=method, sweep={"site": sites, "k": (2,)}, export=("sparsify",), evaluate_tokens=0
    )
    train_dictionary(config)
    folder = config.out / "dictionary" / "sparsify" / "k=2"
    # the MLP's neurons are what no module returns
    named = {"layers.0": sites[0], "layers.1.mlp": sites[1], "blocks.1.mlp.post": sites[2]}
    assert {p.name for p in folder.iterdir()} == set(named)
    assert {name: load_placement(folder / name).site for name in named} == {n: (s,) for n, s in named.items()}


MLP = {"site": "ln2.normalized", "target": "mlp_out"}
TRANSCODERS = {
    "transcoder": ({"n_latents": 32, "k": 4, "auxk": None}, 1),
    "cross_layer_transcoder": ({"n_latents": 16, "n_layers": 2, "k": 2}, 2),
}


@pytest.mark.parametrize("name", TRANSCODERS)
def test_transcoders_from_a_running_model(tmp_path, name):
    """What the model loses is not said: their site is not what they write."""
    given, layers = TRANSCODERS[name]
    at = {part: tuple(f"blocks.{layer}.{site}" for layer in range(layers)) for part, site in MLP.items()}
    config = live(tmp_path / "out", source=Live(**at, **SMALL), method=OPTIONS[name](**given))
    train_dictionary(config)
    found = results(config)["dictionary"]
    assert not {"ce_nats", "kl_nats"} & found.keys()
    assert 0 < found["l0"] <= 4
    assert load_native(config.out / "dictionary").b_dec.size == layers * load("bundled").cfg.d_model


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"site": ("blocks.0.resid_pst",)}, "resid_post"),
        ({"site": ("blocks.99.resid_post",)}, "It has layers 0 to 5"),
        ({"site": ("blocks.*.resid_post",)}, r"stands for several layers.*one layer, such as blocks\.3\.resid_post"),
        ({"site": ("pooled",)}, "pooled has one row per text, not per token. Store it first"),
        ({"site": ()}, "source.site is empty"),
        ({"context": 48}, "batch = 64 tokens are no whole windows of context = 48: choose 48"),
        ({"model": "nothing/there"}, "nothing/there"),
    ],
)
def test_what_a_model_cannot_give_is_refused(tmp_path, source, says):
    config = live(tmp_path / "out", source=Live(**{"site": ("blocks.0.resid_post",), **SMALL, **source}))
    with pytest.raises(UserError, match=says):
        train_dictionary(config)
    assert not (config.out / "checkpoints").exists()


def test_more_held_out_than_half_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"would hold out .* windows: at most half"):
        train_dictionary(live(tmp_path / "out", evaluate_tokens=100_000))


@pytest.fixture
def stores(tmp_path, planted_rows):
    """Two stores of 512 rows, as harvest leaves them."""
    layout = Layout.of(512, 8, "float32")
    for seed, name in enumerate(("acts", "more")):
        with contextlib.closing(Writer(tmp_path / name, {"site": name}, layout)) as writer:
            rows = np.arange(512, dtype=np.int32)
            writer.append({"x": planted_rows(512, seed), "window": rows, "pos": rows, "group": rows})
            writer.mark(1)
            writer.finish()
    return tmp_path / "acts", tmp_path / "more"


def test_a_store_judged_on_another_or_said_to_be_judged_on_itself(tmp_path, stores):
    acts, more = stores
    found = []
    for name, source in {"own": Store(path=acts), "held": Store(path=acts, held_out=more)}.items():
        config = live(tmp_path / name, source=source)
        train_dictionary(config)
        found.append(json.loads((config.out / "results.json").read_text()))
    assert [f["held_out"] for f in found] == [False, True]
    a, b = (f["dictionaries"]["dictionary"] for f in found)
    assert a["tokens"] == b["tokens"] == 128
    assert a["fvu"] != b["fvu"]
    with pytest.raises(UserError, match="holds no activations"):
        train_dictionary(live(tmp_path / "none", source=Store(path=tmp_path / "nothing")))


TRACED = {
    "a set": (
        {"method": OPTIONS["relu"](n_latents=16, l1=0.1)},
        {
            "site": ("blocks.1.ln2.normalized", "blocks.0.ln2.normalized"),
            "target": ("blocks.1.mlp_out", "blocks.0.mlp_out"),
            "l1": (0.1, 0.2),
        },
        "circuit-tracer/l1=0.1",
    ),
    "a cross-layer transcoder": (
        {"method": OPTIONS["cross_layer_transcoder"](n_latents=16, n_layers=2, sparsity=0.1)},
        {},
        "circuit-tracer",
    ),
}


@pytest.mark.parametrize("name", TRACED)
def test_transcoders_of_every_layer_are_written_for_circuit_tracer(tmp_path, name):
    given, sweep, inner = TRACED[name]
    at = {part: tuple(f"blocks.{layer}.{site}" for layer in range(2)) for part, site in MLP.items()}
    source = Live(**({"site": ("blocks.0.ln2.normalized",), "target": ("blocks.0.mlp_out",)} if sweep else at), **SMALL)
    config = live(tmp_path / "out", source=source, sweep=sweep, export=("circuit-tracer",), evaluate_tokens=0, **given)
    train_dictionary(config)
    folder = config.out / "dictionary" / inner
    place, found = load_placement(folder), load_dictionary(folder)
    assert place == Placement(**at, model="bundled", family="llama", context=32, prepend_bos=False)
    if sweep:
        ours = load_native(config.out / "dictionary" / "blocks.1.ln2.normalized" / "l1=0.1")
        assert np.array_equal(found[1].W_enc, ours.W_enc)
    else:
        assert np.array_equal(found.W_enc, load_native(config.out / "dictionary").W_enc)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": OPTIONS["transcoder"](n_latents=16, k=2)}, "has no layout for transcoder; it holds batch"),
        ({}, "target is nothing"),
        ({"source": Live(site=("blocks.1.ln2.normalized",), target=("blocks.1.mlp_out",), **SMALL)}, "from 0, is"),
        ({"method": OPTIONS["cross_layer_transcoder"](n_latents=16, n_layers=2, k=2)}, "give sparsity instead of k"),
    ],
)  # fmt: skip
def test_what_circuit_tracer_cannot_read_is_said_before_training(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        train_dictionary(live(tmp_path / "out", export=("circuit-tracer",), **changes))
    assert not (tmp_path / "out" / "dictionary").exists()
