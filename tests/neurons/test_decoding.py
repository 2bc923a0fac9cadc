# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import Config, Experts, init
from jaxneuro.neurons import decode_directions, decode_neurons, decoding, neuron_directions, stability

LLAMA = Config(n_layers=2, d_model=12, n_heads=2, n_kv_heads=1, d_head=6, d_mlp=10, d_vocab=53, n_ctx=16)
GPT = Config(
    n_layers=2, d_model=12, n_heads=2, n_kv_heads=2, d_head=6, d_mlp=10, d_vocab=53, n_ctx=16, gated=False,
    norm="layer", tied=True, act="gelu",
)  # fmt: skip

GEMMA = dataclasses.replace(LLAMA, norm="gemma_rms")


def dense(d, u, variant, centred):
    """The whole [n, V] score matrix in float64."""
    d, u = np.asarray(d, np.float64), np.asarray(u, np.float64)
    u = u - u.mean(1, keepdims=True) if centred else u
    s = d @ u
    if variant == "cosine":
        s = s / np.linalg.norm(d, axis=1, keepdims=True) / np.linalg.norm(u, axis=0)
    return (s - s.mean(0)) / s.std(0) if variant == "zscore" else s


@pytest.mark.parametrize("variant", ["logit", "cosine", "zscore"])
def test_chunks_equal_the_dense_matrix(variant):
    d, u = (np.float32(np.random.default_rng(0).normal(size=s)) for s in [(20, 8), (8, 53)])
    for centred, chunk in [(True, 16), (False, 53)]:
        got = decode_directions(d, u, 4, chunk=chunk, centred=centred, variant=variant)
        s = dense(d, u, variant, centred)
        order = np.argsort(-s, 1)
        np.testing.assert_array_equal(np.asarray(got.promoted), order[:, :4])
        np.testing.assert_array_equal(np.asarray(got.suppressed), order[:, ::-1][:, :4])
        np.testing.assert_allclose(np.asarray(got.promoted_score), np.take_along_axis(s, order[:, :4], 1), rtol=2e-4)
        np.testing.assert_allclose(
            np.asarray(got.suppressed_score), np.take_along_axis(s, order[:, :-5:-1], 1), rtol=2e-4
        )
        np.testing.assert_allclose(np.asarray(got.logsumexp), np.log(np.exp(s).sum(1)), rtol=1e-4)


def test_equal_scores_are_ordered_by_token_across_chunks():
    got = decode_directions(jnp.ones((1, 2)), jnp.ones((2, 9)), 3, chunk=4, centred=False)
    assert got.promoted.tolist() == got.suppressed.tolist() == [[0, 1, 2]]
    assert decode_directions(jnp.ones((1, 2)), jnp.ones((2, 3)), 10).promoted.shape == (1, 3)


@pytest.mark.usefixtures("this_machine")
def test_no_array_of_neurons_by_vocabulary():
    d, u = jnp.ones((64, 8)), jnp.ones((8, 20_000))
    memory = decode_directions.lower(d, u, 5, chunk=256).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 * 20_000 * 4 / 2


@pytest.mark.parametrize("cfg", [LLAMA, GPT], ids=["llama", "gpt"])
def test_planted_output_directions_decode_to_their_tokens(toy, cfg):
    """w_down along what the folded head reads of a token promotes that token; its negative suppresses it."""
    weights = toy.random_weights(cfg)
    unembed = weights["embed"]["tok"].T if cfg.tied else weights["head"]["w"]
    gain = weights["final_norm"]["scale"]
    planted = {(0, 3): 17, (1, 9): 52, (1, 0): 0}
    down = weights["blocks"]["mlp"]["down"]
    for (layer, f), token in planted.items():
        u = unembed[:, token] - unembed.mean(1)
        down = down.at[layer, f].set(-u / gain if f == 0 else u / gain)
    weights["blocks"]["mlp"]["down"] = down
    layers, neurons = np.array([list(p) for p in planted]).T
    got = decode_neurons(weights, cfg, layers, neurons, k=3, chunk=20, variant="cosine")
    assert got.promoted[:2, 0].tolist() == [17, 52]
    assert int(got.suppressed[2, 0]) == 0
    everything = decode_neurons(weights, cfg, k=3, chunk=20, variant="cosine")
    assert everything.promoted.shape == (2, 10, 3)
    np.testing.assert_array_equal(everything.promoted[layers, neurons], got.promoted)
    assert stability(everything, everything) == 1.0


@pytest.mark.parametrize("cfg", [LLAMA, GPT, GEMMA], ids=["llama", "gpt", "gemma"])
def test_folding_gives_what_the_norms_do(toy, cfg):
    """Output: adding eps d before the final norm moves the logits along the folded direction, at fixed norm scale.
    Input: the neuron's pre-activation is the folded direction times the residual stream over the norm's scale."""
    weights = toy.random_weights(cfg)
    x = jax.random.normal(jax.random.key(3), (cfg.d_model,))
    centred = x - x.mean() if cfg.norm == "layer" else x
    more = 1 if cfg.norm == "gemma_rms" else 0
    out = neuron_directions(weights, cfg, "output")[1, 4]
    raw = weights["blocks"]["mlp"]["down"][1, 4]
    expected = (raw - raw.mean() if cfg.norm == "layer" else raw) * (more + weights["final_norm"]["scale"])
    np.testing.assert_allclose(np.asarray(out), np.asarray(expected), atol=1e-6)
    read = neuron_directions(weights, cfg, "input")[1, 4]
    pre = (centred * (more + weights["blocks"]["ln2"]["scale"][1])) @ weights["blocks"]["mlp"]["up"][1, :, 4]
    assert float(read @ x) == pytest.approx(float(pre), rel=1e-4, abs=1e-5)
    plain = neuron_directions(weights, cfg, "input", fold_norm=False)[1, 4]
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(weights["blocks"]["mlp"]["up"][1, :, 4]))


def test_zscore_standardises_over_all_neurons(toy):
    weights = toy.random_weights(LLAMA)
    d = np.asarray(neuron_directions(weights, LLAMA)).reshape(-1, LLAMA.d_model)
    s = dense(d, weights["head"]["w"], "zscore", True)
    got = decode_neurons(weights, LLAMA, [1], [3], k=2, variant="zscore")
    order = np.argsort(-s[13])[:2]
    np.testing.assert_array_equal(np.asarray(got.promoted[0]), order)
    np.testing.assert_allclose(np.asarray(got.promoted_score[0]), s[13][order], rtol=1e-3)


def test_errors(toy):
    encoder = Config(
        n_layers=1, d_model=4, n_heads=1, n_kv_heads=1, d_head=4, d_mlp=4, d_vocab=8, n_ctx=8, has_head=False
    )
    with pytest.raises(UserError, match="no unembedding"):
        decode_neurons({}, encoder)
    with pytest.raises(UserError, match="have no gate"):
        neuron_directions(toy.random_weights(GPT), GPT, "gate")
    with pytest.raises(UserError, match="Did you mean 'output'"):
        neuron_directions({}, GPT, "outputs")  # type: ignore[arg-type]
    mixed = dataclasses.replace(LLAMA, experts=Experts(n=3, per_token=2, dense=(0,), d_dense=5))
    with pytest.raises(UserError, match="experts in some layers and one MLP in others"):
        neuron_directions(toy.random_weights(mixed), mixed)
    for layer, neuron, message in ((0, LLAMA.d_mlp, "neuron=.* is out of range"), (-9, 0, "layer=-9 is out of range")):
        with pytest.raises(UserError, match=rf"decode_neurons\('blocks.mlp.post'\): {message}"):
            decode_neurons(toy.random_weights(LLAMA), LLAMA, np.array([0, layer]), np.array([0, neuron]))
    with pytest.raises(UserError, match="both layers and neurons"):
        decode_neurons({}, LLAMA, layers=[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "as stored"])
def test_all_neurons_at_once_are_each_of_them(toy, fold):
    weights = jax.tree.map(lambda a: a.astype(jnp.bfloat16), toy.random_weights(LLAMA))
    whole = decode_neurons(weights, LLAMA, k=3, fold_norm=fold)
    assert whole.promoted.shape == (2, 10, 3)
    each = decode_neurons(weights, LLAMA, np.repeat([0, 1], 10), np.tile(np.arange(10), 2), k=3, fold_norm=fold)
    for a, b in zip(whole, each, strict=True):
        np.testing.assert_allclose(np.asarray(a).reshape(b.shape), b, atol=1e-5)


def test_neurons_of_experts_count_expert_after_expert(toy):
    cfg = dataclasses.replace(LLAMA, experts=Experts(n=3, per_token=2))
    weights = toy.random_weights(cfg)
    moe, scale = weights["blocks"]["moe"], np.asarray(weights["blocks"]["ln2"]["scale"])
    wrote, read = (np.asarray(neuron_directions(weights, cfg, side, fold_norm=True)) for side in ("output", "gate"))
    assert wrote.shape == read.shape == (2, 30, 12)
    np.testing.assert_allclose(wrote[1, 24], moe["down"][1, 2, 4] * weights["final_norm"]["scale"], rtol=1e-6)
    np.testing.assert_allclose(read[1, 24], moe["gate"][1, 2, :, 4] * scale[1], rtol=1e-6)
    whole, one = decode_neurons(weights, cfg, k=3), decode_neurons(weights, cfg, np.array([1]), np.array([24]), k=3)
    np.testing.assert_array_equal(whole.promoted[1, 24], one.promoted[0])


def test_inputs_of_parallel_blocks_are_read_after_their_one_norm(toy):
    cfg = dataclasses.replace(GPT, parallel=True, one_norm=True)
    weights = toy.random_weights(cfg)
    read, scale = np.asarray(neuron_directions(weights, cfg, "input")), np.asarray(weights["blocks"]["ln1"]["scale"])
    w = np.asarray(weights["blocks"]["mlp"]["up"])[1, :, 3] * scale[1]
    np.testing.assert_allclose(read[1, 3], w - w.mean(), atol=1e-6)


@pytest.mark.usefixtures("this_machine")
def test_all_neurons_are_decoded_by_one_small_program():
    cfg = Config(n_layers=3, d_model=8, n_heads=1, n_kv_heads=1, d_head=8, d_mlp=64, d_vocab=20_000, n_ctx=8)
    program = jax.jit(lambda w: decode_neurons(w, cfg, chunk=256))
    memory = program.lower(init(cfg, jax.random.key(0))).compile().memory_analysis()
    assert memory.temp_size_in_bytes < cfg.d_mlp * cfg.d_vocab * 4 / 2  # half of one layer's scores
    weights, before = init(cfg, jax.random.key(1)), decoding._decode_all._cache_size()
    for _ in range(2):
        decode_neurons(weights, cfg, chunk=256)
    assert decoding._decode_all._cache_size() == before + 1


def test_matrix_units_of_sixteen_bits_give_the_product_of_float32():
    """What runs on accelerators: exact in 24 bits for float32 directions, in 8 for those stored as bfloat16."""
    rng = np.random.default_rng(0)
    d = jnp.asarray(rng.normal(size=(40, 64)) * 10 ** rng.uniform(-3, 3, (40, 64)), jnp.float32)
    u = jnp.asarray(rng.normal(size=(64, 50)), jnp.bfloat16)
    parts = jax.jit(decoding._parts)(d)
    np.testing.assert_array_equal(sum(np.asarray(p, np.float64) for p in parts), np.asarray(d, np.float64))
    for directions in (d, d.astype(jnp.bfloat16)):
        exact = np.asarray(directions, np.float64) @ np.asarray(u, np.float64)
        size = np.abs(np.asarray(directions, np.float64)) @ np.abs(np.asarray(u, np.float64))

        def error(product, exact=exact, size=size):
            return np.max(np.abs(product - exact) / size)

        assert error(jax.jit(decoding._product_bfloat16)(directions, u)) < 1e-6  # float32 adds up 192 products
        assert error(decoding._product_float32(directions, u)) < 1e-6
        assert error(decoding._product_float32(directions, u) * (1 + 1e-5)) > 1e-6
    gain = jnp.asarray(rng.normal(size=64), jnp.bfloat16).astype(jnp.float32)
    _, middle, low = jax.jit(decoding._parts)(d.astype(jnp.bfloat16).astype(jnp.float32) * gain[None])
    assert jnp.any(middle)
    assert not jnp.any(low)  # a product of two has 16 bits


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_multiply_sixteen_bits_and_add_up_float32(platform):
    d, u = jnp.ones((6, 16), jnp.float32), jnp.ones((16, 40), jnp.bfloat16)
    program = decode_directions.trace(d, u, 3, chunk=20).lower(lowering_platforms=(platform,)).as_text()
    assert "(tensor<6x48xbf16>, tensor<48x20xbf16>) -> tensor<6x20xf32>" in program
    cfg = Config(n_layers=1, d_model=16, n_heads=1, n_kv_heads=1, d_head=8, d_mlp=6, d_vocab=40, n_ctx=8)
    weights = jax.eval_shape(lambda key: init(cfg, key, jnp.bfloat16), jax.random.key(0))
    for fold, depth in ((True, 32), (False, 16)):
        traced = jax.jit(lambda w, fold=fold: decode_neurons(w, cfg, chunk=20, fold_norm=fold)).trace(weights)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert f"(tensor<6x{depth}xbf16>, tensor<{depth}x20xbf16>) -> tensor<6x20xf32>" in text
    assert "tensor<48x20xbf16>" not in decode_directions.lower(d, u, 3, chunk=20).as_text()
