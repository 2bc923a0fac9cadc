# SPDX-License-Identifier: Apache-2.0
"""Functions of logits in chunks of positions: the numbers of the whole, in a fraction of its memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import Config, Transformer, forward, init, token_loss
from jaxneuro.models.layout import flatten
from jaxneuro.models.logits import logit_statistics, map_logits, model_loss
from jaxneuro.models.loss import cross_entropy
from jaxneuro.taps import add, capture, intervene, sites, zero

from ..by_numpy import by_numpy
from .conftest import CONFIGS, SMALL, random_weights

HEADS = {
    "untied, soft-capped": Config(**SMALL, logit_softcap=3.0),
    "transformed, with a bias": dataclasses.replace(CONFIGS["bert"], has_head=True),
    "through a narrow embedding": Config(**SMALL, d_embed=8, tied=True),
}
TWO = 2 * 2 * SMALL["d_vocab"]
"""`values` of two positions of two rows: 9 positions are five chunks, of which the last is half empty."""
MASK = jnp.array([[True] * 9, [False] * 2 + [True] * 7])


@pytest.fixture(params=HEADS)
def headed(request):
    return Transformer(HEADS[request.param], random_weights(HEADS[request.param]))


def whole_loss(weights, tokens, cfg, **how):
    nll, valid = token_loss(forward(weights, tokens, cfg=cfg, mask=MASK, **how), tokens, MASK)
    return nll.mean(where=valid)


def chunked_loss(weights, tokens, cfg, **how):
    nll, valid = model_loss(weights, tokens, MASK, cfg=cfg, values=TWO, **how)
    return nll.mean(where=valid)


def test_the_loss_and_every_gradient_are_those_of_the_whole(headed, tokens):
    """From the last residual stream on: what is below gets the gradient of that."""
    resid = jnp.asarray(np.random.default_rng(1).normal(0, 1, (2, 9, 16)), jnp.float32)

    def from_top(loss):
        def of(weights, resid):
            return loss(weights, tokens, headed.cfg, start_at=headed.cfg.n_layers, resid=resid)

        return jax.jit(jax.value_and_grad(of, (0, 1)))(headed.weights, resid)

    ours, theirs = from_top(chunked_loss), from_top(whole_loss)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    found, expected = ({**flatten(g[1][0]), "resid": g[1][1]} for g in (ours, theirs))
    assert set(found) == set(expected)
    assert np.abs(expected["resid"]).max() > 1e-3
    for leaf, gradient in expected.items():
        np.testing.assert_allclose(found[leaf], gradient, atol=1e-5 * max(1, np.abs(gradient).max()), err_msg=leaf)
    for leaf in ("embed.tok" if headed.cfg.tied else "head.w", "final_norm.scale", "head.b", "head.dense"):
        assert leaf not in found or np.abs(found[leaf]).max() > 1e-4


@pytest.mark.parametrize("positions", [1, 4])
def test_no_chunk_changes_the_statistics(headed, tokens, positions):
    cfg, resid = headed.cfg, headed.apply(headed.weights, tokens, stop_at=3)
    run = jax.jit(functools.partial(logit_statistics, cfg=cfg, k=3, values=positions * TWO // 2))
    found = run(headed.weights, resid, tokens)
    logits = np.asarray(headed.apply(headed.weights, tokens), np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(found.logsumexp, (logits - logp)[..., 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.entropy, -(np.exp(logp) * logp).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found.logprob, np.take_along_axis(logp, np.asarray(tokens)[..., None], -1)[..., 0], atol=2e-5
    )
    np.testing.assert_array_equal(found.top, np.argsort(-logits, -1, kind="stable")[..., :3])
    np.testing.assert_allclose(found.top_logprob, -np.sort(-logp, -1)[..., :3], atol=2e-5)
    assert found.top.dtype == jnp.int32


def test_statistics_have_gradients_too(headed, tokens):
    resid = headed.apply(headed.weights, tokens, stop_at=3)

    def total(values, weights, resid):
        s = logit_statistics(weights, resid, tokens, cfg=headed.cfg, k=2, values=values)
        return (s.entropy + 2 * s.logprob + 3 * s.logsumexp).sum() + s.top_logprob.sum()

    ours, theirs = (jax.jit(jax.grad(functools.partial(total, v), 1))(headed.weights, resid) for v in (TWO, 2**26))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()))
    assert jnp.abs(theirs).max() > 0.1


def test_sixteen_bit_gradients_are_summed_in_float32():
    cfg = Config(**SMALL, tied=True)
    weights = jax.tree.map(lambda a: a.astype(jnp.bfloat16), random_weights(cfg))
    resid = jax.random.normal(jax.random.key(0), (1, 512, 16), jnp.bfloat16)

    def each(logits):
        return jax.nn.logsumexp(logits.astype(jnp.float32), -1)

    def total(weights, resid, values):
        return map_logits(each, weights, resid, cfg=cfg, values=values).sum()

    gradient = jax.jit(jax.grad(total), static_argnums=2)
    one = gradient(weights, resid, cfg.d_vocab)["embed"]["tok"].astype(jnp.float32)  # 512 chunks
    all_ = gradient(weights, resid, 2**26)["embed"]["tok"].astype(jnp.float32)
    error = jnp.linalg.norm(one - all_) / jnp.linalg.norm(all_)
    assert error < 4e-3  # one rounding to 8 bits of the sum; 512 of them one after the other lose 10 times that


@pytest.mark.usefixtures("this_machine")
def test_neither_values_nor_gradients_hold_the_logits(optimised):
    cfg = Config(**{**SMALL, "d_vocab": 4096, "n_layers": 1}, tied=True)
    weights = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
    resid, tokens = jax.ShapeDtypeStruct((4, 256, 16), jnp.float32), jax.ShapeDtypeStruct((4, 256), jnp.int32)

    def temporary(values):
        def loss(weights, resid, tokens):
            return map_logits(cross_entropy, weights, resid, tokens, cfg=cfg, values=values).mean()

        memory = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(weights, resid, tokens).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    logits = 4 * 256 * 4096
    assert temporary(logits) > 4 * logits
    assert temporary(logits // 64) < 4 * logits / 8  # a few arrays of a 64th each, and the gradient of the embedding


def test_what_is_edited_or_read_at_the_head_is_not_passed_by(tokens):
    cfg = HEADS["untied, soft-capped"]
    weights = random_weights(cfg)
    top = {"start_at": 3, "resid": jnp.asarray(np.random.default_rng(1).normal(0, 1, (2, 9, 16)), jnp.float32)}
    plain, whole = (functools.partial(f, cfg=cfg, **top) for f in (chunked_loss, whole_loss))
    before = jax.jit(plain)(weights, tokens)
    for edit in (add("logits", 3.0, d_vocab=2, pos=4), zero("ln_final.normalized", d_model=3)):
        ours, theirs = (jax.jit(intervene(f, [edit]))(weights, tokens) for f in (plain, whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        assert abs(ours - before) > 1e-4
    acts = jax.jit(capture(plain, ["logits"]))(weights, tokens)[1]
    np.testing.assert_allclose(acts["logits"], forward(weights, tokens, cfg=cfg, mask=MASK, **top), atol=1e-5)
    assert {"logits", "ln_final.scale"} <= {s.name for s in sites(plain, weights, tokens)}


@pytest.mark.parametrize("pos", [0, 4, -1])
def test_positions_at_the_head_count_from_each_rows_first_real_token(tokens, pos):
    """In statistics too; row 1 begins with two columns of padding."""
    cfg = HEADS["untied, soft-capped"]
    weights, edit = random_weights(cfg), add("unembed.in", 1.0, d_model=2, pos=pos)
    resid = forward(weights, tokens, cfg=cfg, mask=MASK, stop_at=3)

    def likeliest(weights, mask):
        return logit_statistics(weights, resid, tokens, cfg=cfg, mask=mask, values=TWO).top_logprob[..., 0]

    moved = np.abs(by_numpy(intervene(likeliest, edit))(weights, MASK) - by_numpy(likeliest)(weights, MASK)) > 1e-4
    assert np.argwhere(moved).tolist() == [[0, pos % 9], [1, 8 if pos == -1 else pos + 2]]


def test_a_mask_of_another_length_is_refused(tokens):
    cfg = HEADS["untied, soft-capped"]
    with pytest.raises(UserError, match=r"mask of a residual stream \[2, 9\] .* this is bool \[2, 8\]"):
        map_logits(jnp.argmax, random_weights(cfg), jnp.zeros((2, 9, 16)), cfg=cfg, mask=MASK[:, 1:])


def test_gradients_are_sites_around_and_at_the_chunks(llama, tokens):
    plain, whole = (jax.grad(functools.partial(f, cfg=llama.cfg)) for f in (chunked_loss, whole_loss))
    sites = ["blocks.1.mlp.post@grad"]
    ours, theirs = (jax.jit(capture(f, sites))(llama.weights, tokens)[1] for f in (plain, whole))
    np.testing.assert_allclose(ours[sites[0]], theirs[sites[0]], atol=1e-6)
    assert jnp.abs(theirs[sites[0]]).max() > 1e-4
    at_logits = jax.make_jaxpr(capture(plain, ["logits@grad"]))(llama.weights, tokens)
    assert (2, 9, SMALL["d_vocab"]) in [v.aval.shape for v in at_logits.jaxpr.outvars]


def test_many_models_at_once(llama, tokens):
    """vmap over edited models, as when sets of neurons are silenced."""
    off = jnp.eye(3)
    scaled = jax.vmap(lambda s: jax.tree.map(lambda a: a * (1 + s[0]), llama.weights))(off)
    ours, theirs = (
        jax.jit(jax.vmap(functools.partial(f, cfg=llama.cfg), (0, None)))(scaled, tokens)
        for f in (chunked_loss, whole_loss)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_model_without_a_head_has_no_logits():
    cfg = Config(**SMALL, has_head=False)
    with pytest.raises(UserError, match="no head, so it has no logits"):
        map_logits(jnp.sum, random_weights(cfg), jnp.zeros((1, 2, 16)), cfg=cfg)
