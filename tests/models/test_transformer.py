# SPDX-License-Identifier: Apache-2.0
import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import Config, Transformer, forward, pool, unembedding
from jaxneuro.models.inputs import check_length
from jaxneuro.taps import capture, intervene, sites, wants, zero

from ..by_numpy import by_numpy
from .conftest import CONFIGS, SMALL, random_weights

RESIDUAL = {"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}
HEADS = {"attn.q", "attn.k", "attn.v", "attn.z"}
READ = {"attn.in", "mlp.in"}
NORMS = {f"ln{i}.{part}" for i in (1, 2) for part in ("scale", "normalized")}
INSIDE_ATTENTION = ["attn.scores", "attn.pattern", "attn.result"]


def expected_sites(cfg):
    names = (
        RESIDUAL
        | HEADS
        | NORMS
        | READ
        | {"mlp.pre", "mlp.post"}
        | ({"mlp.gate", "mlp.pre_linear"} if cfg.gated else set())
    )
    out = {f"blocks.{n}" for n in names} | {"embed"}
    out |= {"pos_embed"} if cfg.learned_positions else set()
    out |= {"ln_final.normalized", "ln_final.scale"} if cfg.norm_placement == "pre" else set()
    return out | ({"unembed.in", "logits"} if cfg.has_head else set())


def test_every_site_is_there(model, tokens):
    found = {s.name for s in sites(model.apply, model.weights, tokens)}
    inside = {f"blocks.{n}" for n in INSIDE_ATTENTION}
    assert found - inside == expected_sites(model.cfg)


def test_parts_agree_with_the_whole(decoder_or_encoder, tokens):
    model, names = decoder_or_encoder, ["blocks.0.resid_pre", "blocks.1.resid_post", "blocks.2.resid_post"]

    @by_numpy
    def parts(weights):
        start, two = (model.apply(weights, tokens, stop_at=i) for i in (0, 2))
        three = model.apply(weights, tokens, stop_at=3, start_at=2, resid=two)
        return (start, two, three), model.apply(weights, tokens, start_at=3, resid=three)

    out, acts = by_numpy(capture(model.apply, names))(model.weights, tokens)
    stops, end = parts(model.weights)
    for stop, name in zip(stops, names, strict=True):
        np.testing.assert_allclose(stop, acts[name], atol=1e-5, rtol=1e-5)  # other fusions, other roundings
    np.testing.assert_allclose(end, out, atol=1e-5, rtol=1e-5)


def test_stopping_early_computes_nothing_above(llama, tokens):
    broken = jax.tree.map(np.array, llama.weights)
    for leaf in jax.tree.leaves(broken["blocks"]):
        leaf[2] = np.nan
    broken["final_norm"]["scale"][:] = np.nan
    below = by_numpy(lambda weights: llama.apply(weights, tokens, stop_at=2))
    assert np.isfinite(below(broken)).all()
    assert np.isnan(by_numpy(llama.apply)(broken, tokens)).any()


def test_padding_changes_nothing_at_real_tokens(decoder_or_encoder, tokens):
    weights, run = decoder_or_encoder.weights, by_numpy(decoder_or_encoder.apply)
    mask = np.array([[True] * 6 + [False] * 3, [False] * 2 + [True] * 7])
    a, b = (run(weights, ids, mask) for ids in (tokens, np.where(mask, tokens, np.int32(7))))
    np.testing.assert_array_equal(a[mask], b[mask])
    assert np.isfinite(a).all()
    all_real = run(weights, tokens, np.ones_like(mask))
    np.testing.assert_allclose(all_real, run(weights, tokens), atol=1e-5)
    assert not np.allclose(all_real[1], a[1], atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_sites_mean_what_they_say(name, tokens):
    model = Transformer(CONFIGS[name], random_weights(CONFIGS[name]))
    cfg, names = model.cfg, ["attn.z", "attn.result", "attn.pattern", "attn.v", "attn_out"]
    names += ["mlp.pre", "mlp.post", *(["mlp.gate", "mlp.pre_linear"] if cfg.gated else [])]
    names += ["ln2.scale", "ln2.normalized", "resid_pre", "resid_mid", "mlp_out", "resid_post"]
    _, acts = by_numpy(capture(model.apply, [f"blocks.1.{n}" for n in names]))(model.weights, tokens)
    a = {n: np.asarray(acts[f"blocks.1.{n}"], np.float64) for n in names}
    block = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64)[1], model.weights["blocks"])
    bias = block["attn"].get("bo", 0)
    np.testing.assert_allclose(a["attn.result"].sum(2) + bias, a["attn_out"], atol=2e-5)
    values = np.repeat(a["attn.v"], cfg.n_heads // cfg.n_kv_heads, axis=2)
    np.testing.assert_allclose(np.einsum("bnts,bsnh->btnh", a["attn.pattern"], values), a["attn.z"], atol=2e-5)
    if cfg.gated:
        np.testing.assert_allclose(a["mlp.gate"], a["mlp.pre"] / (1 + np.exp(-a["mlp.pre"])), atol=1e-5)
        np.testing.assert_allclose(a["mlp.gate"] * a["mlp.pre_linear"], a["mlp.post"], atol=1e-5)
    down = a["mlp.post"] @ block["mlp"]["down"] + block["mlp"].get("b_down", 0)
    np.testing.assert_allclose(down, a["mlp_out"], atol=1e-4)
    np.testing.assert_allclose(np.square(a["ln2.normalized"]).mean(-1), 1, atol=1e-3)
    if cfg.norm_placement == "pre":
        np.testing.assert_allclose(a["resid_pre"] + a["attn_out"], a["resid_mid"], atol=1e-5)
        np.testing.assert_allclose(a["resid_mid"] + a["mlp_out"], a["resid_post"], atol=1e-5)
        mid = a["resid_mid"] - (a["resid_mid"].mean(-1, keepdims=True) if cfg.norm == "layer" else 0)
        np.testing.assert_allclose(a["ln2.scale"] * a["ln2.normalized"], mid, atol=1e-4)
    else:
        gain, shift = block["ln2"]["scale"], block["ln2"]["bias"]
        np.testing.assert_allclose(a["ln2.normalized"] * gain + shift, a["resid_post"], atol=1e-5)


def test_inner_attention_exists_only_when_wanted(llama, tokens):
    def program(fn):
        return str(jax.make_jaxpr(fn)(llama.weights, tokens))

    for site in INSIDE_ATTENTION:
        assert f"name=blocks.{site}" not in program(llama.apply)
        assert f"name=blocks.{site}" in program(capture(llama.apply, [f"blocks.*.{site}"]))
    assert not wants("blocks.attn.result")
    edited, z_edited = (
        by_numpy(intervene(llama.apply, [zero(f"blocks.0.attn.{site}", head=1)]))(llama.weights, tokens)
        for site in ("pattern", "z")
    )
    np.testing.assert_allclose(edited, z_edited, atol=1e-5)


def test_sixteen_bit_weights_compute_in_sixteen_bit(decoder_or_encoder, tokens):
    model = decoder_or_encoder
    half = jax.tree.map(lambda a: np.asarray(a).astype(jnp.bfloat16), model.weights)
    out, acts = by_numpy(capture(model.apply, ["blocks.0.mlp.post", "blocks.0.resid_post"]))(half, tokens)
    assert {out.dtype, *(a.dtype for a in acts.values())} == {jnp.dtype(jnp.bfloat16)}
    exact = by_numpy(model.apply)(model.weights, tokens)
    error = np.asarray(out, np.float32) - exact
    assert 1e-4 * exact.std() < error.std() < 0.1 * exact.std()


def test_layers_with_different_windows(tokens):
    cfg = CONFIGS["qwen3"]
    weights = random_weights(cfg)

    def pattern(cfg):
        return by_numpy(capture(Transformer(cfg, weights).apply, ["blocks.*.attn.pattern"]))(weights, tokens)[1]

    mixed = np.asarray(pattern(cfg)["blocks.*.attn.pattern"]) > 0
    distance = np.arange(9)[:, None] - np.arange(9)
    for layer in range(3):
        allowed = (distance >= 0) & (distance < (cfg.window(layer) or 99))
        np.testing.assert_array_equal(mixed[layer], np.broadcast_to(allowed, mixed[layer].shape))


def test_token_types_default_to_the_first(tokens):
    cfg = CONFIGS["bert"]
    model = Transformer(cfg, random_weights(cfg))
    run = by_numpy(model.apply)
    plain = run(model.weights, tokens)
    np.testing.assert_array_equal(plain, run(model.weights, tokens, token_types=np.zeros_like(tokens)))
    assert not np.allclose(plain, run(model.weights, tokens, token_types=np.ones_like(tokens)))
    assert pool(model.weights, plain, model.cfg).shape == (2, 16)


def test_unembedding_is_the_last_step(tokens, llama):
    out, acts = by_numpy(capture(llama.apply, ["ln_final.normalized"]))(llama.weights, tokens)
    normed = acts["ln_final.normalized"] * np.asarray(llama.weights["final_norm"]["scale"])
    np.testing.assert_allclose(normed @ np.asarray(unembedding(llama.weights, llama.cfg)), out, atol=1e-4)


def test_ids_outside_the_vocabulary_are_not_silent(llama):
    out = by_numpy(llama.apply)(llama.weights, np.int32([[1, 40], [1, 39]]))
    assert np.isnan(out[0, 1]).all()
    assert np.isfinite(out[0, 0]).all()  # which does not see it
    assert np.isfinite(out[1]).all()


def test_gradients_reach_every_leaf_and_scan_does_not_grow(llama, tokens):
    def total(weights):
        return jnp.square(llama.apply(weights, tokens)).mean()

    gradients = by_numpy(jax.grad(total))(llama.weights)
    assert all(float(np.abs(g).max()) > 0 for g in jax.tree.leaves(gradients))
    deep = dataclasses.replace(llama.cfg, n_layers=12)
    wide = jax.tree.map(lambda a: np.concatenate([a] * 4), llama.weights["blocks"])
    lines = [
        str(jax.make_jaxpr(lambda w, c=c: forward(w, tokens, cfg=c))(w)).count("\n")
        for c, w in ((llama.cfg, llama.weights), (deep, {**llama.weights, "blocks": wide}))
    ]
    assert lines[0] == lines[1]


WRONG = {
    "a layer too many": ({"stop_at": 4}, "cannot run layers 0 to 4: this model has 3 layers"),
    "a negative layer": ({"stop_at": -1}, "0 <= start_at"),
    "backwards": ({"start_at": 2, "stop_at": 1, "resid": 0}, "cannot run layers 2 to 1"),
    "no residual": ({"start_at": 1}, "start_at=1 needs resid="),
}


@pytest.mark.parametrize(("part", "message"), WRONG.values(), ids=list(WRONG))
def test_parts_that_do_not_exist(llama, tokens, part, message):
    with pytest.raises(UserError, match=message):
        llama(tokens, **part)


def test_learned_positions_end():
    cfg = dataclasses.replace(CONFIGS["gpt2"], n_ctx=8)
    with pytest.raises(UserError, match="9 positions, but this model has learned only 8"):
        forward(random_weights(cfg), np.zeros((1, 9), np.int32), cfg=cfg)


@pytest.mark.parametrize("name", [name for name, cfg in CONFIGS.items() if cfg.image is None])
def test_only_a_table_of_positions_is_a_limit(name):
    cfg = dataclasses.replace(CONFIGS[name], n_ctx=8)
    assert cfg.longest == (8 if cfg.learned_positions else None)
    check_length(cfg, 8, "8 positions", "")
    with pytest.raises(UserError, match="learned only 8") if cfg.learned_positions else contextlib.nullcontext():
        check_length(cfg, 9, "9 positions", "")


def test_what_a_model_lacks_is_said(tokens):
    cfg = Config(**SMALL, has_head=False)
    with pytest.raises(UserError, match="has no head"):
        unembedding(random_weights(cfg), cfg)
    with pytest.raises(UserError, match="has no pooler"):
        pool(random_weights(cfg), np.zeros((1, 2, 16), np.float32), cfg)
