# SPDX-License-Identifier: Apache-2.0
"""What is measured of models, at tiny shapes: rows are whole, references see an error, and work is counted right."""

import dataclasses
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import ablations, attention, decoding, harness, large, limits
from benchmarks.capture import SHAPES
from benchmarks.flops import model_flops
from jaxneuro.models import Config, Transformer, config_from_hf, init

GPT2 = dataclasses.replace(
    SHAPES["GPT-2 124M"][0], n_layers=2, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=16, d_vocab=32, n_ctx=16
)
SHALLOW = dataclasses.replace(GPT2, n_layers=1)
LLAMA = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=16)


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """Something that answers as hook_peers.py does: 50 ms for everything."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "library 1.0"\nwhile read steps; do echo 50.0; done\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("JAXNEURO_PEERS", str(python))


@pytest.mark.parametrize("cfg", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_work_is_that_of_the_matrices_and_of_the_visible_pairs(cfg):
    layers = jax.tree.leaves(init(cfg, jax.random.key(0))["blocks"])
    matrices = sum(a.size for a in layers if a.ndim > 2 and a.size >= cfg.n_layers * cfg.d_model * cfg.d_head * 2)
    pairs = 5 * 6 // 2 * cfg.n_layers * cfg.n_heads * cfg.d_head
    head = cfg.d_model * cfg.d_vocab
    assert model_flops(cfg, 3, 5) == 3 * (2 * 5 * (matrices + head) + 4 * pairs)
    assert model_flops(cfg, 1, 5, logits=0) == 2 * 5 * matrices + 4 * pairs
    parts = [model_flops(cfg, 1, 5, layers=range(layer, layer + 1), logits=0) for layer in range(2)]
    assert sum(parts) + 2 * head == model_flops(cfg, 1, 5, logits=1)
    before, after = model_flops(cfg, 1, 3), model_flops(cfg, 1, 5, first=3)
    assert before + after == model_flops(cfg, 1, 5)
    near = dataclasses.replace(cfg, windows=(None, 2))
    assert model_flops(cfg, 1, 5) - model_flops(near, 1, 5) == 4 * (3 + 2 + 1) * cfg.n_heads * cfg.d_head


def test_the_ablations_beside_loops_over_hooks(monkeypatch, peers):
    monkeypatch.setattr(ablations, "MODELS", {"tiny": SHALLOW})
    for name, value in {"N": 6, "CHUNK": 2, "LOOPED": 4, "POS": 5}.items():
        monkeypatch.setattr(ablations, name, value)
    rows = {r["op"]: r for r in ablations.rows(1)}
    assert list(rows)[:2] == list(ablations.PEERS)
    base = rows[ablations.PEERS[0]]
    assert base["4,096 of them, s"] == pytest.approx(4.096 * 50, abs=0.01)
    assert base["version"] == "library 1.0"
    everywhere, last = rows["one program per layer"], rows["the same, last position only"]
    assert everywhere["speed-up over transformer_lens, loop over hooks"] == pytest.approx(
        50 / everywhere["p50_ms"], 1e-2
    )
    assert max(everywhere["error"], last["error"]) < 1e-5
    harness.show("ablations", list(rows.values()))


def test_a_sweep_that_ablates_other_neurons_is_seen(monkeypatch):
    monkeypatch.setattr(ablations, "CHUNK", 2)
    model, tokens = Transformer(SHALLOW, init(SHALLOW, jax.random.key(0))), np.arange(5, dtype=np.int32)[None]
    points = ablations.per_layer(SHALLOW, 6)
    found = ablations.swept(model, tokens, [(p + 1) % SHALLOW.d_mlp for p in points], None)()
    assert ablations.error(model, tokens, points, None, found) > 1e-4


def test_ablations_visit_all_layers_equally_often():
    assert [len(p) for p in ablations.per_layer(GPT2, 9)] == [5, 4]


def test_all_neurons_are_decoded_beside_plain_loops(monkeypatch, peers):
    monkeypatch.setattr(decoding, "MODELS", {"tiny": dataclasses.replace(LLAMA, d_vocab=64)})
    rows = {r["op"]: r for r in decoding.rows(1)}
    assert rows["gain folded in"]["exact"] == rows["as stored"]["exact"] == 1
    assert rows["PyTorch, float32 scores"]["version"] == "library 1.0"
    assert rows["PyTorch, float32 scores"]["p50_ms"] < 50  # what is called, not what it says
    assert all(r["neurons/s"] > 0 for r in rows.values())


def test_tokens_that_are_not_exact_are_seen():
    weights = decoding.random_weights(jax.random.key(0), LLAMA)
    wrong, found = decoding.exact(weights, LLAMA, True), decoding.decode_neurons(weights, LLAMA)
    assert wrong(found) == 0
    assert wrong(found._replace(promoted=found.promoted[..., ::-1])) == 1


SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32,
}  # fmt: skip


def tiny(name):
    """Of the same family."""
    return large.MODELS[name] | {k: v for k, v in SIZES.items() if k in large.MODELS[name]}


def blank(cfg, key):
    shapes = jax.eval_shape(lambda key: init(cfg, key, jnp.bfloat16), key)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_weights_are_drawn_a_few_rows_at_a_time():
    found = np.asarray(large._draw(jax.random.key(0), (5, 40, 50), jnp.bfloat16, 1.0), np.float32)
    assert found.mean() == pytest.approx(1, abs=1e-3)
    assert found.std() == pytest.approx(0.02, rel=0.05)
    assert len(np.unique(found[:, 0, :4], axis=0)) == 5
    cfg = config_from_hf(large.MODELS["llama-3.1-8b"])
    assert large._mean(cfg, (jax.tree_util.DictKey("final_norm"), jax.tree_util.DictKey("scale"))) == 1
    assert large._mean(cfg, (jax.tree_util.DictKey("mlp"), jax.tree_util.DictKey("up"))) == 0


def parameters(name):
    weights = jax.eval_shape(lambda key: init(config_from_hf(large.MODELS[name]), key), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(weights)) / 1e9


def test_large_models_are_of_their_published_sizes():
    assert parameters("pythia-1.4b") == pytest.approx(1.4146, abs=1e-4)
    assert parameters("gemma-2-2b") == pytest.approx(2.6143, abs=1e-4)
    assert parameters("llama-3.1-8b") == pytest.approx(8.0303, abs=1e-4)


def test_a_large_model_on_a_small_device_says_why():
    assert "needs an accelerator with 28 GB for JAX; this cpu has 0 GB" in large.too_large(
        config_from_hf(large.MODELS["llama-3.1-8b"])
    )


def test_a_large_model_is_measured_in_all_ways(monkeypatch, peers):
    name = "llama-3.1-8b"
    monkeypatch.setattr(large, "MODELS", {name: tiny(name)})
    monkeypatch.setattr(large, "too_large", lambda cfg: None)
    monkeypatch.setattr(large, "random_weights", blank)
    monkeypatch.setattr(large, "SHAPE", (2, 8))
    monkeypatch.setattr(large, "FEW", (1, 4))
    monkeypatch.setattr(large, "PEERS", {"transformers": (2, 8), "transformer_lens, run_with_cache": (1, 4)})
    monkeypatch.setattr(limits, "measure", lambda repeats: (limits.Limits(1e10, 1e9), []))
    rows = {r["op"]: r for r in large.rows(1, name)}
    assert not [r["failed"] for r in rows.values() if "failed" in r]
    forward, peer = rows["forward"], rows["transformers"]
    assert peer["tokens/s"] == 16 / 50e-3
    assert peer["time / ours"] == pytest.approx(50 / forward["p50_ms"], abs=1e-3)
    assert rows["transformer_lens, run_with_cache"]["time / ours"] == pytest.approx(
        50 / rows["every site"]["p50_ms"], abs=1e-3
    )
    work = model_flops(config_from_hf(tiny(name)), 2, 8)
    assert forward["share of matmul rate"] == pytest.approx(work / forward["p50_ms"] * 1e3 / 1e9, abs=2e-3)
    assert rows["store of layer 1's resid_post"]["p50_ms"] > 0


def test_forms_of_attention_are_measured_where_they_can_do_it(monkeypatch):
    monkeypatch.setattr(attention, "SMALL", {"tiny": attention.Shape(2, 9, 4, 2, 8, window=3, softcap=2.0)})
    rows = attention.rows(1)
    assert {r["op"] for r in rows} >= {"explicit", "chunked"}
    assert not {r["op"] for r in rows} & {"cudnn", "splash"}
    assert {r["shape"]["name"] for r in rows} == {"tiny, forward", "tiny, gradient"}
    assert all(r["error"] < 1e-5 for r in rows)
    assert all(r["time / chunked"] > 0 for r in rows)
