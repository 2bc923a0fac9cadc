# SPDX-License-Identifier: Apache-2.0
"""Metrics on cases known by algebra, and against whole-set float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries import (
    SparseCoder,
    TopK,
    decoder_cosine,
    kl_divergence,
    next_token_loss,
    reconstruction,
    recovered,
)
from jaxneuro.dictionaries.judges import given_loss
from jaxneuro.errors import UserError
from jaxneuro.models import Config, forward, init
from jaxneuro.models.logits import loss_fn

from .conftest import rows, through

D, F, K = 6, 24, 3


def random_dictionary():
    rng = np.random.default_rng(0)
    w, b_enc, b_dec = rows(rng, F, D), *(rng.normal(0, s, n).astype(np.float32) for s, n in ((0.1, F), (0.3, D)))
    return SparseCoder(W_enc=jnp.asarray(w.T), W_dec=jnp.asarray(w), b_enc=b_enc, b_dec=b_dec, activation=TopK(K))


def tokens(n=200, d=D):
    return np.random.default_rng(1).normal(3.0, 1.5, (n, d)).astype(np.float32)  # far from zero mean, on purpose


def perfect(d=D):
    both = np.concatenate([np.eye(d, dtype=np.float32), -np.eye(d, dtype=np.float32)])
    arrays = {"W_enc": both.T, "W_dec": both, "b_enc": np.zeros(2 * d), "b_dec": np.zeros(d)}
    return SparseCoder(**{name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()}, activation=TopK(d))


def test_perfect_is_zero_error():
    found = reconstruction(perfect(), [{"x": tokens()}])
    assert found.fvu == pytest.approx(0, abs=1e-12)
    assert (found.explained_variance, found.shrinkage, found.cosine) == pytest.approx((1, 1, 1), abs=1e-6)


def test_the_mean_explains_nothing():
    x = tokens()
    mean = SparseCoder(
        W_enc=jnp.zeros((D, F)),
        W_dec=jnp.zeros((F, D)),
        b_enc=jnp.zeros(F),
        b_dec=jnp.asarray(x.mean(0)),
        activation=TopK(1),
    )
    found = reconstruction(mean, [{"x": x}])
    assert found.fvu == pytest.approx(1, abs=1e-6)
    assert (found.l0, found.dead_fraction) == (0, 1)


def test_a_constant_error_is_seen_by_fvu_and_not_by_the_centred_form():
    x, off = tokens(), perfect()
    off = dataclasses.replace(off, b_dec=off.b_dec + 2.0, apply_b_dec_to_input=False)
    found = reconstruction(off, [{"x": x}])
    variance = np.var(x.astype(np.float64), 0).sum()
    assert found.fvu == pytest.approx(D * 4 / variance, rel=1e-5)
    assert found.explained_variance_centred == pytest.approx(1, abs=1e-6)


def test_streaming_equals_the_whole_set_in_float64():
    x, d = tokens(), random_dictionary()
    mask = np.random.default_rng(2).random(200) < 0.7
    batches = [{"x": x[i : i + 37], "mask": mask[i : i + 37]} for i in range(0, 200, 37)]
    found = reconstruction(d, batches)
    real = x[mask].astype(np.float64)
    z, _, x_hat = (np.asarray(a) for a in through(d, x[mask]))
    error = real - x_hat.astype(np.float64)
    total = np.square(real - real.mean(0)).sum()
    assert found.tokens == mask.sum()
    assert found.fvu == pytest.approx(np.square(error).sum() / total, rel=1e-6)
    centred = error.var(0).sum() / real.var(0).sum()
    assert 1 - found.explained_variance_centred == pytest.approx(centred, rel=1e-6)
    assert found.l0 == pytest.approx((z > 0).sum(1).mean(), rel=1e-6)
    assert found.dead_fraction == pytest.approx((~(z > 0).any(0)).mean())
    np.testing.assert_allclose(found.density, (z > 0).mean(0), atol=1e-9)
    np.testing.assert_allclose(found.mean, real.mean(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no valid token"),
        ([{"x": np.ones((3, D), np.float32), "mask": np.zeros(3, bool)}], "no valid token"),
        ([{"x": np.ones((3, D), np.float32)}], "all 3 tokens are equal"),
        ([{"x": np.full((3, D), np.nan, np.float32)}], "not finite"),
    ],
)
def test_what_cannot_be_judged(batches, message):
    with pytest.raises(UserError, match=message):
        reconstruction(random_dictionary(), batches)


@pytest.fixture(scope="module")
def model():
    cfg = Config(n_layers=3, d_model=8, n_heads=2, n_kv_heads=1, d_head=4, d_mlp=D, d_vocab=20, n_ctx=16)
    weights = jax.tree.map(lambda w: w * 3, init(cfg, jax.random.key(0)))
    apply = functools.partial(forward, cfg=cfg)
    rng = np.random.default_rng(0)
    mask = np.ones((4, 10), bool)
    mask[0, 7:] = False
    counted = mask.copy()
    counted[:, 0] = False
    batch = {"tokens": rng.integers(0, 20, (4, 10)).astype(np.int32), "mask": mask, "counted": counted}

    def run(weights, tokens, mask, **part):
        return apply(weights, tokens, mask=mask, **part)

    run.cfg = cfg
    return run, weights, batch


@pytest.mark.parametrize("site", ["blocks.0.mlp.post", "blocks.2.mlp.post"])
def test_a_perfect_dictionary_recovers_everything(model, site):
    apply, weights, batch = model
    found = recovered(apply, weights, site, perfect(), np.zeros(D), [batch])
    assert found.reconstructed == pytest.approx(found.original, abs=1e-5)
    assert found.zero == pytest.approx(found.mean, abs=1e-6)  # the mean given is zero
    assert found.weight == batch["counted"][:, 1:].sum()


def test_the_mean_as_a_dictionary_recovers_nothing_of_the_mean(model):
    apply, weights, batch = model
    mean = np.arange(8, dtype=np.float32) / 4
    constant = SparseCoder(
        W_enc=jnp.zeros((8, F)),
        W_dec=jnp.zeros((F, 8)),
        b_enc=jnp.zeros(F),
        b_dec=jnp.asarray(mean),
        activation=TopK(1),
    )
    found = recovered(apply, weights, "blocks.1.resid_post", constant, mean, [batch])
    assert found.recovered_mean == pytest.approx(0, abs=1e-4)
    assert found.original != pytest.approx(found.mean, abs=1e-3)


def test_against_a_whole_intervention(model):
    from jaxneuro.taps import apply_fn, intervene

    apply, weights, batch = model
    d, on = random_dictionary(), batch["counted"]
    found = recovered(apply, weights, "blocks.1.mlp.post", d, np.ones(D), [batch, batch])

    @jax.jit
    def judged(size, constant):
        """With size d(x) + constant in the place of x."""
        there = [apply_fn("blocks.1.mlp.post", lambda x: jnp.where(on[..., None], size * d(x) + constant, x))]
        out = intervene(apply, there)(weights, batch["tokens"], batch["mask"])
        return next_token_loss(out, out, batch)

    for value, size, constant in ((found.reconstructed, 1, 0), (found.zero, 0, 0), (found.mean, 0, 1)):
        loss, n = map(np.asarray, judged(np.float32(size), np.float32(constant)))
        assert value == pytest.approx(float(loss.sum()) / int(n.sum()), abs=1e-5)


def test_a_model_that_gives_its_loss_recovers_the_same_without_logits(model):
    apply, weights, batch = model
    small = loss_fn(apply.cfg, values=2 * 4 * 20)  # two positions of four rows
    given = (weights, "blocks.1.mlp.post", random_dictionary(), np.ones(D), [batch])
    ours, theirs = recovered(small, *given, judge=given_loss), recovered(apply, *given)
    for a, b in zip(dataclasses.astuple(ours), dataclasses.astuple(theirs), strict=True):
        assert a == pytest.approx(b, rel=1e-6)


def test_several_judges_in_one_pass_equal_each_alone(model):
    apply, weights, batch = model
    given = (apply, weights, "blocks.1.mlp.post", random_dictionary(), np.ones(D), [batch, batch])
    both = recovered(*given, judge={"ce": next_token_loss, "kl": kl_divergence})
    assert both["ce"] == recovered(*given)
    assert both["kl"] == recovered(*given, judge=kl_divergence)
    assert both["kl"].original == 0 < both["kl"].reconstructed
    assert both["kl"].weight == 2 * batch["counted"].sum()


def test_a_site_of_every_layer_is_refused(model):
    apply, weights, batch = model
    with pytest.raises(UserError, match="not a site of one layer"):
        recovered(apply, weights, "blocks.*.mlp.post", perfect(), np.zeros(D), [batch])


@pytest.mark.parametrize("block", [7, 1024])
def test_decoder_cosine_finds_duplicates(block):
    w = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    w[4] = 3 * w[21]
    got = np.asarray(decoder_cosine(jnp.asarray(w), rows=block))
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    np.testing.assert_allclose(got, cosine.max(1), atol=1e-6)
    assert got[[4, 21]] == pytest.approx([1, 1], abs=1e-6)


def test_values_with_a_head_axis():
    """As `capture` returns them: joined where the product is the width, refused with both shapes otherwise."""
    rng = np.random.default_rng(0)
    w_enc, w_dec = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((32, 64), (64, 32)))
    d = SparseCoder(W_enc=w_enc, W_dec=w_dec, b_enc=jnp.zeros(64), b_dec=jnp.ones(32), activation=TopK(4))
    z = jnp.asarray(rng.normal(size=(2, 9, 4, 8)), jnp.float32)
    flat = z.reshape(2, 9, 32)
    np.testing.assert_array_equal(d.encode(z), d.encode(flat))
    np.testing.assert_array_equal(d(z), d(flat).reshape(z.shape))
    for wrong in (z[..., :7], z[..., 0, :], jnp.zeros(8), jnp.float32(1)):
        with pytest.raises(UserError, match=r"reads values of width 32; these have the shape"):
            d.encode(wrong)
