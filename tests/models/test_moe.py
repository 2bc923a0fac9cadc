# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneuro.errors import UserError
from jaxneuro.io import read_safetensors, write_safetensors
from jaxneuro.models import Config, Transformer, config_from_hf, config_to_hf, load, save_pretrained, shardings
from jaxneuro.models.config import Experts
from jaxneuro.models.layout import flatten
from jaxneuro.models.moe import experts, route
from jaxneuro.taps import capture, intervene, set_to, sites, tap, zero

from ..by_numpy import by_numpy
from .conftest import SMALL, random_weights

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
CFG = Config(**SMALL, family="qwen3_moe", qk_norm=True, experts=Experts(n=5, per_token=2, renormalise=False))
INSIDE = ["weights", "pre", "pre_linear", "post"]


@pytest.fixture(scope="module")
def model():
    return Transformer(CFG, random_weights(CFG))


def layer(cfg, tokens, width=8, neurons=6, seed=0):
    """Weights of one layer of experts and its input."""
    rng = np.random.default_rng(seed)
    shapes = {"router": (width, cfg.n), "gate": (cfg.n, width, neurons), "up": (cfg.n, width, neurons)}
    shapes |= {"down": (cfg.n, neurons, width)}
    w = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    return w, rng.normal(size=(1, tokens, width)).astype(np.float32)


def plain(w, x, cfg):
    """The definition: token by token, in float64."""
    w, x = ({k: np.asarray(a, np.float64) for k, a in w.items()}, np.asarray(x[0], np.float64))
    out = np.zeros_like(x)
    for t, token in enumerate(x):
        logits = token @ w["router"]
        share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-share)[: cfg.per_token]
        total = share[best].sum() if cfg.renormalise else 1
        for e in best:
            pre = token @ w["gate"][e]
            out[t] += share[e] / total * ((pre / (1 + np.exp(-pre)) * (token @ w["up"][e])) @ w["down"][e])
    return out


def no_site(value, name, axes):
    return value


@pytest.mark.parametrize("tokens", [1, 7, 300])  # fewer pairs than experts; one block each; many
@pytest.mark.parametrize(("n", "per_token"), [(1, 1), (4, 1), (5, 3), (6, 6)])
def test_no_token_is_dropped(tokens, n, per_token):
    cfg = Experts(n=n, per_token=per_token, renormalise=per_token != 3)
    w, x = layer(cfg, tokens)
    out = by_numpy(lambda w, x: experts(w, x, cfg, jax.nn.silu, no_site))(w, x)
    np.testing.assert_allclose(out[0], plain(w, x, cfg), atol=2e-4, rtol=1e-5)  # values up to 100, in float32


def test_all_tokens_to_one_expert():
    cfg = Experts(n=4, per_token=1)
    w, x = layer(cfg, 300)
    w["router"][:, 2] = 100 * np.sign(x[0].sum(0))
    x = np.abs(x) * np.sign(x[0].sum(0))
    assert (by_numpy(lambda logits: route(logits, cfg))(x @ w["router"])[1] == 2).all()
    out = by_numpy(lambda w, x: experts(w, x, cfg, jax.nn.silu, no_site))(w, x)
    np.testing.assert_allclose(out[0], plain(w, x, cfg), atol=2e-4, rtol=1e-5)


LAYER = Experts(n=5, per_token=2, renormalise=False)


def one_layer(w, x):
    return experts(w, x, LAYER, jax.nn.silu, lambda value, name, axes: tap(value, f"blocks.{name}", axes=axes))


def test_three_forms_give_the_same_numbers_and_gradients():
    w, x = layer(LAYER, 9)

    def grad(w, name):
        def loss(w):
            out = capture(one_layer, [f"blocks.moe.{name}"])(w, x)[0]
            return jnp.square(out).mean(), out

        return by_numpy(jax.value_and_grad(loss, has_aux=True))(w)

    (_, out), gradients = grad(w, "router")
    for name in ("weights", "post"):
        (_, other), there = grad(w, name)
        np.testing.assert_allclose(other, out, rtol=1e-4, atol=1e-4)
        for leaf, g in there.items():
            np.testing.assert_allclose(g, gradients[leaf], rtol=1e-3, atol=1e-3, err_msg=leaf)
    assert all(np.abs(g).max() > 0.1 for g in gradients.values())


def test_sites(model, tokens):
    named = {s.name: s for s in sites(model.apply, model.weights, tokens)}
    assert named["blocks.moe.weights"].axes == ("batch", "pos", "expert")
    assert named["blocks.moe.post"].shape == (2, 9, 5, 24)
    assert {f"blocks.moe.{n}" for n in ("router", *INSIDE)} <= set(named)
    assert "blocks.mlp_out" in named
    assert "blocks.mlp.post" not in named
    program = str(jax.make_jaxpr(model.apply)(model.weights, tokens))
    assert "name=blocks.moe.router" in program
    assert not any(f"name=blocks.moe.{n}" in program for n in INSIDE)


def test_sites_mean_what_they_say(model, tokens):
    names = ["moe.router", *(f"moe.{n}" for n in INSIDE), "mlp_out"]
    _, acts = by_numpy(capture(model.apply, [f"blocks.1.{n}" for n in names]))(model.weights, tokens)
    a = {n: np.asarray(acts[f"blocks.1.{n}"], np.float64) for n in names}
    shares, chosen = by_numpy(lambda a: route(a, CFG.experts))(acts["blocks.1.moe.router"])
    np.testing.assert_allclose(np.take_along_axis(a["moe.weights"], np.asarray(chosen), -1), shares, atol=1e-6)
    assert ((a["moe.weights"] > 0).sum(-1) == 2).all()
    gate = a["moe.pre"] / (1 + np.exp(-a["moe.pre"]))
    np.testing.assert_allclose(gate * a["moe.pre_linear"], a["moe.post"], atol=1e-5)
    down = np.asarray(model.weights["blocks"]["moe"]["down"], np.float64)[1]
    written = np.einsum("btef,efd,bte->btd", a["moe.post"], down, a["moe.weights"])
    np.testing.assert_allclose(written, a["mlp_out"], atol=1e-5)


def test_edits():
    w, x = layer(LAYER, 9)

    def run(*edits):
        return by_numpy(intervene(one_layer, list(edits)))(w, x)

    # An expert whose neurons are silent is one that gets no share.
    silent = run(zero("blocks.moe.post", expert=3))
    np.testing.assert_allclose(silent, run(zero("blocks.moe.weights", expert=3)), atol=1e-4)
    assert not np.allclose(silent, run(), atol=1e-2)
    assert (run(zero("blocks.moe.weights")) == 0).all()
    # A router that is told where to send everything, and shares that say the same; more experts than per_token too.
    even = run(set_to("blocks.moe.router", np.float32([0, 50, -50, 50, 0])))
    np.testing.assert_allclose(even, run(set_to("blocks.moe.weights", np.float32([0, 0.5, 0, 0.5, 0]))), atol=1e-4)
    assert not np.allclose(even, run(set_to("blocks.moe.weights", np.full(5, 0.2, np.float32))), atol=1e-2)


def test_vmap_over_edits_and_tokens():
    w, x = layer(LAYER, 18)
    x = x.reshape(2, 1, 9, -1)

    def steered(strength, x):
        return intervene(one_layer, [set_to("blocks.moe.router", strength, expert=0)])(w, x)

    strengths = np.float32([-30, 30])
    together, alone = by_numpy(jax.vmap(steered))(strengths, x), by_numpy(steered)
    for i in range(2):
        np.testing.assert_allclose(together[i], alone(strengths[i], x[i]), atol=1e-4)


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


@pytest.mark.parametrize("axes", [{"model": 2, "fsdp": 2}, {"data": 2, "expert": 2}], ids=str)
def test_sharded_over_a_mesh(axes, tmp_path):
    folder = FIXTURES / "mixtral"
    single, placed, golden = load(folder), load(folder, mesh=mesh(**axes)), np.load(folder / "expected.npz")
    gate = placed.weights["blocks"]["moe"]["gate"]
    parts = [axes.get(name, 1) for name in ("expert", "fsdp", "model")]
    expected = tuple(int(n) // p for n, p in zip((4, 16, 12), parts, strict=True))
    assert {s.data.shape[1:] for s in gate.addressable_shards} == {expected}
    ids = golden["tokens"]
    if "data" in axes:
        ids = jax.device_put(ids[:2], NamedSharding(mesh(**axes), PartitionSpec("data")))
    expected = by_numpy(single.apply)(single.weights, np.asarray(ids))
    np.testing.assert_allclose(jax.jit(single.apply)(placed.weights, ids), expected, atol=1e-5)
    save_pretrained(placed, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_batches_split_by_shard_map(model):
    ids = np.random.default_rng(1).integers(0, 40, (4, 9)).astype(np.int32)
    spec = PartitionSpec("data")
    split = jax.shard_map(
        model.apply, mesh=mesh(data=4), in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False
    )
    np.testing.assert_allclose(jax.jit(split)(model.weights, ids), by_numpy(model.apply)(model.weights, ids), atol=2e-5)


def test_experts_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="5 experts cannot be split over the 4 devices of the mesh axis 'expert'"):
        shardings(CFG, mesh(expert=4))


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
def test_fused_tensors_load_as_single_ones_do(case, tmp_path):
    """As transformers 5 writes them with save_original_format=False: gate above up, all experts in one."""
    shutil.copytree(FIXTURES / case, tmp_path, dirs_exist_ok=True)
    tensors = {n: np.array(a) for n, a in read_safetensors(tmp_path / "model.safetensors").items()}
    names = {"mixtral": ("w1", "w3", "w2"), "qwen3_moe": ("gate_proj", "up_proj", "down_proj")}[case]
    fused = {n.replace("block_sparse_moe", "mlp"): a for n, a in tensors.items() if ".experts." not in n}
    for i in range(3):
        block = f"model.layers.{i}." + ("block_sparse_moe" if case == "mixtral" else "mlp")
        gate, up, down = (np.stack([tensors[f"{block}.experts.{e}.{name}.weight"] for e in range(4)]) for name in names)
        fused[f"model.layers.{i}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        fused[f"model.layers.{i}.mlp.experts.down_proj"] = down
    write_safetensors(tmp_path / "model.safetensors", fused, {"format": "pt"})
    one, other = flatten(load(tmp_path).weights), flatten(load(FIXTURES / case).weights)
    for leaf in other:
        np.testing.assert_array_equal(one[leaf], other[leaf])
    eight = [load(folder, dtype="int8").weights for folder in (tmp_path, FIXTURES / case)]
    jax.tree.map(np.testing.assert_array_equal, *eight)
    save_pretrained(load(tmp_path), tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (FIXTURES / case / "model.safetensors").read_bytes()


def test_wrong_tensors_are_named(tmp_path):
    shutil.copytree(FIXTURES / "mixtral", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    name = "model.layers.1.block_sparse_moe.experts.{}.w2.weight"
    tensors = {n: np.array(a) for n, a in read_safetensors(path).items()}
    write_safetensors(path, {n: a for n, a in tensors.items() if n != name.format(3)}, {"format": "pt"})
    with pytest.raises(UserError, match=f"missing: {name.format(3)}"):
        load(tmp_path)
    tensors[name.format(2)][:] = np.nan
    write_safetensors(path, tensors, {"format": "pt"})
    with pytest.raises(UserError, match=f"NaN or infinity in {name.format(2)}"):
        load(tmp_path)


QWEN = json.loads((FIXTURES / "qwen3_moe" / "config.json").read_text())
WRONG = {
    "no layer": ({"decoder_sparse_step": 0}, "decoder_sparse_step = 0 is not a positive whole number"),
    "no experts in any layer": ({"mlp_only_layers": [0, 1, 2]}, r"dense=\(0, 1, 2\): some of the layers 0 to 2, not"),
    "windows": ({"use_sliding_window": True}, "use_sliding_window=True is not supported"),
    "too few experts": ({"num_experts_per_tok": 9}, "a token cannot go through 9 of 4 experts"),
    "no experts": ({"num_local_experts": 0}, r"num_local_experts = 0 is not a whole number from 1"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_not_ported_is_named(change, message):
    with pytest.raises(UserError, match=message):
        config_from_hf({**QWEN, **change})


def test_layers_without_experts_are_spelled_in_two_ways():
    wide = {"n": 4, "per_token": 2, "renormalise": False, "d_dense": 24}
    for spelled, dense in (
        ({"mlp_only_layers": [1]}, (1,)),
        ({"decoder_sparse_step": 2}, (0, 2)),
        ({"decoder_sparse_step": 3, "mlp_only_layers": [0]}, (0, 1)),
    ):
        cfg = config_from_hf({**QWEN, **spelled})
        assert cfg.experts == Experts(**wide, dense=dense)
        assert config_from_hf(config_to_hf(cfg)) == cfg
    assert config_to_hf(config_from_hf(QWEN))["mlp_only_layers"] == []
    for wrong, message in (({"dense": (1,)}, "d_dense=None is not a positive"), ({"d_dense": 4}, "does not name")):
        with pytest.raises(UserError, match=message):
            Experts(n=4, per_token=2, **wrong)


def test_layers_have_the_sites_of_what_they_are():
    """Layers 0, 2 and 3 have one MLP, layer 1 experts."""
    folder = FIXTURES / "qwen3_moe-mixed"
    model, ids = load(folder), np.load(folder / "expected.npz")["tokens"]
    asked = ["blocks.*.mlp.post", "blocks.2.mlp.post", "blocks.1.moe.weights", "blocks.*.resid_post"]
    _, acts = by_numpy(capture(model.apply, asked))(model.weights, ids)
    assert [acts[name].shape for name in asked] == [(3, 3, 20, 24), (3, 20, 24), (3, 20, 4), (4, 3, 20, 16)]
    np.testing.assert_array_equal(acts[asked[0]][1], acts[asked[1]])
    for site, has in (("blocks.1.mlp.post", "the layers 0, 2, 3"), ("blocks.0.moe.post", "layer 1")):
        with pytest.raises(UserError, match=f"It has {has}"):
            intervene(model.apply, [zero(site)])(model.weights, ids)


def test_layers_without_experts_are_saved_sharded_and_quantised_as_others(tmp_path):
    folder = FIXTURES / "qwen3_moe-mixed"
    plain, placed = load(folder), load(folder, mesh=mesh(model=2, expert=2))
    jax.tree.map(np.testing.assert_array_equal, placed.weights, plain.weights)
    assert {s.data.shape for s in placed.weights["blocks"]["dense"]["up"].addressable_shards} == {(3, 16, 12)}
    save_pretrained(plain, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    eight = load(folder, dtype="int8").weights["blocks"]
    assert {name: eight[name]["up"].scale.shape for name in ("dense", "moe")} == {
        "dense": (3, 1, 24),
        "moe": (1, 4, 1, 12),
    }


def test_the_number_of_experts_has_two_names():
    hub = {k: v for k, v in QWEN.items() if k != "num_local_experts"}
    assert config_from_hf({**hub, "num_experts": 7}).experts == Experts(n=7, per_token=2, renormalise=False)


def test_what_experts_are_not(tmp_path):
    for change in ({"gated": False}, {"mlp_bias": True}):
        with pytest.raises(UserError, match="experts are gated MLPs without biases"):
            dataclasses.replace(CFG, **change)
    with pytest.raises(UserError, match="llama model cannot express experts="):
        save_pretrained(
            Transformer(dataclasses.replace(CFG, family="llama", qk_norm=False), random_weights(CFG)), tmp_path
        )


def test_sixteen_bit():
    cfg = Experts(n=4, per_token=2)
    w, x = layer(cfg, 40)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), w)
    run = by_numpy(lambda w, x: experts(w, x, cfg, jax.nn.silu, lambda v, n, axes: tap(v, n, axes=axes)))
    out = run(half, x.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
