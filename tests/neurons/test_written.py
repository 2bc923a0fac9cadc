# SPDX-License-Identifier: Apache-2.0
"""What a value at a site writes to the residual stream, beside what the model itself does with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro import capture, intervene, set_to
from jaxneuro.models import Config, Experts, Transformer, init
from jaxneuro.neurons import decode_coordinates, decode_neurons, decode_written, has_tokens, written

LLAMA = Config(n_layers=2, d_model=12, n_heads=4, n_kv_heads=2, d_head=4, d_mlp=10, d_vocab=53, n_ctx=16)
GPT = dataclasses.replace(
    LLAMA, n_kv_heads=4, gated=False, norm="layer", tied=True, act="gelu", rope=None, learned_positions=True,
    qkv_bias=True, out_bias=True, mlp_bias=True,
)  # fmt: skip
GEMMA = dataclasses.replace(LLAMA, norm="gemma_rms", norm_placement="sandwich", tied=True)
SCALED = dataclasses.replace(GPT, layer_scale=True)
CONFIGS = {"llama": LLAMA, "gpt": GPT, "gemma2": GEMMA, "scaled": SCALED}
HUGE = 1e6
"""Times a direction: biases and epsilons are nothing beside it."""


def model_of(cfg):
    """Every leaf random, gains included."""
    leaves, tree = jax.tree.flatten(init(cfg, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return Transformer(cfg, jax.tree.unflatten(tree, noise))


def alike(a, b):
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def effect(model, site, value, read):
    """What stands at `read`, at the last position, where the site's value is replaced there."""
    tokens, edit = jnp.array([[3, 7, 1]]), set_to(site, value, pos=2)
    return capture(intervene(model.apply, [edit]), [read])(model.weights, tokens)[1][read][0, 2]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("site", "read"), [("attn.z", "attn_out"), ("mlp.post", "mlp_out")])
def test_a_value_writes_what_the_model_makes_of_it(name, site, read):
    cfg = CONFIGS[name]
    model, shape = model_of(cfg), (4, 4) if site == "attn.z" else (10,)
    row = jax.random.normal(jax.random.key(2), shape)
    for layer in range(2):
        out = effect(model, f"blocks.{layer}.{site}", HUGE * row, f"blocks.{layer}.{read}")
        d = written(model.weights, cfg, f"blocks.{layer}.{site}", layer, row.reshape(1, -1))
        assert alike(out, d) > 0.9999
        other = written(model.weights, cfg, f"blocks.{layer}.{site}", 1 - layer, row.reshape(1, -1))
        assert alike(out, other) < 0.99


@pytest.mark.parametrize("name", CONFIGS)
def test_promoted_tokens_of_the_stream_are_those_of_the_logits(name):
    cfg = CONFIGS[name]
    model, row = model_of(cfg), jax.random.normal(jax.random.key(3), (12,))
    # the difference of both signs: a final norm's bias is in both
    logits = jnp.subtract(*(effect(model, "blocks.1.resid_post", sign * HUGE * row, "logits") for sign in (1, -1)))
    found = decode_written(model.weights, cfg, "blocks.1.resid_post", 1, row[None], 53)
    scores = np.zeros(53)
    scores[np.asarray(found.promoted[0])] = found.promoted_score[0]
    assert alike(logits - logits.mean(), scores) > 0.9999


@pytest.mark.parametrize("name", CONFIGS)
def test_coordinates_of_an_mlp_are_its_neurons(name):
    cfg = CONFIGS[name]
    weights, at = model_of(cfg).weights, (np.array([0, 1, 1]), np.array([3, 9, 0]))
    want = decode_neurons(weights, cfg, *at, k=5)
    for site in ("pre", "gate", "pre_linear", "post"):
        got = decode_coordinates(weights, cfg, f"blocks.mlp.{site}", *at, 5)
        np.testing.assert_array_equal(got.promoted, want.promoted)
        np.testing.assert_allclose(got.suppressed_score, want.suppressed_score, rtol=1e-5, atol=1e-5)


def test_coordinates_of_heads_and_of_the_stream():
    weights, at = model_of(LLAMA).weights, (np.array([1, 0]), np.array([11, 5]))
    heads = decode_coordinates(weights, LLAMA, "blocks.attn.z", *at, 4)
    rows = jnp.stack([weights["blocks"]["attn"]["wo"][i].reshape(16, 12)[j] for i, j in zip(*at, strict=True)])
    want = decode_written(weights, LLAMA, "blocks.1.resid_post", 1, rows, 4)
    np.testing.assert_array_equal(heads.promoted, want.promoted)
    stream = decode_coordinates(weights, LLAMA, "blocks.resid_mid", *at, 4)
    scores = weights["final_norm"]["scale"][5] * weights["head"]["w"][5]
    assert stream.promoted[1, 0] == scores.argmax()


def test_nothing_is_said_where_nothing_is_linear():
    weights = model_of(LLAMA).weights
    for site in ("attn.q", "attn.v", "ln2.normalized", "mlp.in", "attn.pattern"):
        assert not has_tokens(LLAMA, f"blocks.{site}"), site
        assert decode_coordinates(weights, LLAMA, f"blocks.{site}", np.array([0]), np.array([0]), 3) is None
    assert not has_tokens(LLAMA, "encoder.blocks.0.resid_post")
    # a direction over gates is multiplied with another value, so that it writes nothing of its own
    assert written(weights, LLAMA, "blocks.0.mlp.gate", 0, jnp.ones((1, 10))) is None
    headless = dataclasses.replace(LLAMA, has_head=False)
    assert not has_tokens(headless, "blocks.resid_post")
    mixed = dataclasses.replace(LLAMA, experts=Experts(n=2, per_token=1, dense=(0,), d_dense=8))
    assert not has_tokens(mixed, "blocks.moe.post")
    assert has_tokens(mixed, "blocks.attn.z")
