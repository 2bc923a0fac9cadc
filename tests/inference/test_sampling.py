# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxneuro.errors import UserError
from jaxneuro.inference import Sampler, greedy, temperature, top_k, top_p

LOGITS = jnp.asarray(np.random.default_rng(0).normal(0, 2, (5, 12)), jnp.float32)


def softmax(x):
    x = np.asarray(x, np.float64)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("k", [1, 3, 12, 50])
def test_top_k_keeps_the_k_largest(k):
    kept = np.isfinite(top_k(LOGITS, k))
    rank = (-np.asarray(LOGITS)).argsort(-1).argsort(-1)
    np.testing.assert_array_equal(kept, rank < k)
    np.testing.assert_array_equal(top_k(LOGITS, k)[kept], LOGITS[kept])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_fewest_tokens_with_the_mass(p):
    kept, mass = np.isfinite(top_p(LOGITS, p)), softmax(LOGITS)
    for row, m in zip(kept, mass, strict=True):
        assert m[row].min() >= m[~row].max(initial=0)
        assert m[row].sum() >= p - 1e-6
        assert m[row].sum() - m[row].min() < p  # one fewer would not do


def test_equals_are_kept_together_and_a_flat_tail_is_not_lost():
    equal = jnp.array([1.0, 2.0, 2.0, 0.0])
    assert np.isfinite(top_k(equal, 1)).tolist() == [False, True, True, False]
    assert np.isfinite(top_p(equal, 0.1)).tolist() == [False, True, True, False]
    assert np.isfinite(top_p(jnp.zeros(50_000), 1.0)).all()


SAMPLERS = {
    "plain": (Sampler(), lambda p: p),
    "temperature": (Sampler(temperature=0.5), lambda p: p**2),
    "top_k": (Sampler(top_k=3), lambda p: np.where(p >= np.sort(p)[-3], p, 0)),
    "all": (Sampler(temperature=2.0, top_k=4, top_p=0.7), None),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_have_the_distribution(name):
    """A chi-squared test of 20,000 draws, two-sided: too good a fit is as wrong as too bad a one."""
    sampler, expected = SAMPLERS[name]
    logits, n = LOGITS[0], 20_000
    p = softmax(logits)
    p = softmax(top_p(top_k(temperature(logits, 2.0), 4), 0.7)) if expected is None else expected(p)
    p = p / p.sum()
    keys = jax.random.split(jax.random.key(1), n)
    counts = np.bincount(jax.jit(sampler)(jnp.broadcast_to(logits, (n, 12)), keys), minlength=12)
    assert counts[p == 0].sum() == 0
    chance = stats.chisquare(counts[p > 0], n * p[p > 0]).pvalue
    assert 1e-3 < chance < 1 - 1e-3


def test_a_row_draws_the_same_whatever_the_others_are():
    keys = jax.random.split(jax.random.key(0), 5)
    together = Sampler(temperature=3.0)(LOGITS, keys)
    alone = [int(Sampler(temperature=3.0)(LOGITS[i : i + 1], keys[i : i + 1])[0]) for i in range(5)]
    assert together.tolist() == alone


def test_greedy_takes_the_first_of_the_largest():
    keys = jax.random.split(jax.random.key(0), 2)
    assert greedy(jnp.array([[0.0, 3.0, 3.0], [1.0, 0.0, -1.0]]), keys).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0}, "at 0 the sampler is `greedy`"),
        ({"top_k": 0}, "at least 1"),
        ({"top_p": 1.5}, "at most 1"),
    ],
)
def test_numbers_out_of_range(wrong, message):
    with pytest.raises(UserError, match=message):
        Sampler(**wrong)
