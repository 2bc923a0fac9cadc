# SPDX-License-Identifier: Apache-2.0
"""What a few hundred steps reach: gradients of norm 1, rates of short runs, targets for L0, tokens left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro import dictionaries as d
from jaxneuro.dictionaries.parts.optimise import OPTIMISERS, scaled_rate
from jaxneuro.errors import UserError

from .conftest import ACTIVE, D_IN, planted, through

N, STEPS, BATCH = 48, 200, 128
TRAINING = d.Training(steps=STEPS, dead_after_tokens=20 * BATCH)
X = planted(1, STEPS * BATCH)[0].reshape(STEPS, BATCH, D_IN)
HELD_OUT = planted(99, 2000)[0]


def learned(method, x=X, mask=None):
    """(dictionary, last info, final state)."""
    many = {"x": jnp.asarray(x)} | ({} if mask is None else {"mask": jnp.asarray(mask)})
    state = method.init(jax.random.key(0), jax.tree.map(lambda a: a[0], many))
    state, infos = jax.jit(lambda s, many: jax.lax.scan(method.step, s, many))(state, many)
    return method.finish(state), jax.tree.map(lambda a: np.asarray(a[-1]), infos), state


def fvu(dictionary, x=HELD_OUT):
    return np.square(x - np.asarray(through(dictionary, x)[2])).sum() / np.square(x - x.mean(0)).sum()


def test_gradients_of_norm_one_get_further_at_the_same_rate():
    """Adam's running mean of squares no longer holds the first, large gradients against all that follow."""
    at = {
        clip: fvu(
            learned(d.topk(N, ACTIVE, training=dataclasses.replace(TRAINING, learning_rate=2e-3, clip_norm=clip)))[0]
        )
        for clip in ("unit", None)
    }
    assert at["unit"] < 0.96 * at[None]  # .242 and .264


def test_rates_of_short_runs_are_larger_and_those_of_long_ones_are_the_published():
    assert scaled_rate(2**14) == scaled_rate(2**14, 2**16) == scaled_rate(2**14, 2**20) == 2e-4
    assert scaled_rate(2**14, 2**10) == pytest.approx(8 * 2e-4)
    assert scaled_rate(2**10, 100) == 1e-2
    assert scaled_rate(2, 100) == scaled_rate(2) > 1e-2
    assert d.Training(steps=2**10).rate(2**14)(jnp.int32(300)) == pytest.approx(16e-4)
    assert d.Training().rate(2**14)(jnp.int32(3000)) == pytest.approx(2e-4)
    for name in ("muon", "signum", "schedule_free"):
        assert OPTIMISERS[name].rate(2**14, 2**10) == OPTIMISERS[name].rate(2**14, None)


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_the_threshold_of_inference_gives_k(name):
    dictionary, info, _ = learned(getattr(d, name)(N, ACTIVE, training=TRAINING))
    on = (np.asarray(through(dictionary, HELD_OUT)[0]) > 0).sum(1).mean()
    assert float(info["l0"]) == pytest.approx(ACTIVE, rel=0.01)
    assert on == pytest.approx(ACTIVE, rel=0.05)


def test_a_target_for_l0_is_reached():
    target = 4.0
    dictionary, info, _ = learned(d.jumprelu(N, target_l0=target, training=TRAINING))
    on = (np.asarray(through(dictionary, HELD_OUT)[0]) > 0).sum(1).mean()
    assert float(info["l0"]) == pytest.approx(target, rel=0.1)
    assert on == pytest.approx(target, rel=0.1)
    assert (np.asarray(dictionary.activation.threshold) >= 0).all()


def test_a_threshold_below_zero_is_used_as_zero():
    method = d.jumprelu(N, sparsity=0.0, training=TRAINING)
    state = method.init(jax.random.key(0), {"x": jnp.asarray(X[0])})
    below = state._replace(parameters=state.parameters | {"threshold": jnp.full(N, -1.0)})
    z = np.asarray(method.finish(below).encode(jnp.asarray(HELD_OUT)))
    assert z.min() == 0
    assert 0.2 < (z > 0).mean() < 0.8


# ---- tokens that are left out

SINK = np.arange(STEPS * BATCH).reshape(STEPS, BATCH) % 32 == 5
"""One token in 32 is a fixed vector of 300 times the usual norm."""
LONG = np.random.default_rng(2).normal(size=D_IN).astype(np.float32)
LONG *= np.float32(300 * np.linalg.norm(X, axis=-1).mean() / np.linalg.norm(LONG))
SPOILED = np.where(SINK[..., None], LONG * (1 + 0.02 * np.random.default_rng(3).normal(size=(*SINK.shape, 1))), X)
SPOILED = SPOILED.astype(np.float32)


@pytest.mark.parametrize(
    ("name", "start"), [("topk", "median"), ("batch_topk", "mean"), ("jumprelu", "mean"), ("matching_pursuit", "mean")]
)
def test_long_tokens_are_left_out_as_if_they_were_masked(name, start):
    """Of the scale, the start, the loss and every number: all of the state is that of the masked run."""
    options = {"jumprelu": {"target_l0": 2}}.get(name, {"k": ACTIVE})
    training = dataclasses.replace(TRAINING, b_dec_start=start)

    def made(**kw):
        return getattr(d, name)(N, **options, training=dataclasses.replace(training, **kw))

    few = slice(0, 5)
    _, info, without = learned(made(max_norm=10.0), SPOILED[few])
    _, wanted, masked = learned(made(), SPOILED[few], ~SINK[few])
    for a, b in zip(jax.tree.leaves(without.parameters), jax.tree.leaves(masked.parameters), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    assert float(without.scale_x) == pytest.approx(float(masked.scale_x), rel=1e-6)
    assert int(info["tokens"]) == BATCH - BATCH // 32
    assert {k: float(v) for k, v in info.items()} == pytest.approx({k: float(v) for k, v in wanted.items()}, rel=1e-3)


def test_without_long_tokens_the_others_are_learned_as_well_as_alone():
    training = dataclasses.replace(TRAINING, b_dec_start="mean")
    alone = fvu(learned(d.topk(N, ACTIVE, training=training))[0])
    spoiled = fvu(learned(d.topk(N, ACTIVE, training=training), SPOILED)[0])
    without = fvu(learned(d.topk(N, ACTIVE, training=dataclasses.replace(training, max_norm=10.0)), SPOILED)[0])
    assert spoiled > 1.5 * alone  # the scale and the centre are the long tokens'
    assert without == pytest.approx(alone, rel=0.3)


def test_a_limit_that_leaves_out_half_is_refused():
    with pytest.raises(UserError, match=r"max_norm = 1.0 median norms leave out half"):
        d.Training(max_norm=1.0)
