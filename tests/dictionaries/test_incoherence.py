# SPDX-License-Identifier: Apache-2.0
"""Criteria of incoherence on cases known by algebra and against brute force in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries.incoherence import (
    Coherence,
    atomic_rows,
    babel,
    coherence,
    largest_unique_support,
    restricted_isometry,
    second_moment,
    stability,
    unique_support,
    welch_bound,
)
from jaxneuro.errors import UserError

from .conftest import rows


def gram(w):
    w = np.asarray(w, np.float64)
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    return np.abs(w @ w.T)


def directions(n=70, d=12, seed=0):
    return rows(np.random.default_rng(seed), n, d) * np.linspace(0.1, 9, n, dtype=np.float32)[:, None]


@pytest.mark.parametrize("block", [1, 32, 1024])
def test_coherence_equals_brute_force_in_any_blocks(block):
    w = directions()
    found = coherence(jnp.asarray(w), block=block)
    pairs = gram(w)[np.triu_indices(70, 1)]
    assert found.mu == pytest.approx(pairs.max(), abs=1e-6)
    assert found.rms == pytest.approx(np.sqrt(np.square(pairs).mean()), rel=1e-5)
    assert found.counts.sum() == 70 * 69 // 2
    np.testing.assert_allclose(found.counts.cumsum(), np.histogram(pairs, 4096, (0, 1))[0].cumsum(), atol=2)
    for q in (0.1, 0.5, 0.99, 1.0):
        exact = np.quantile(pairs, q, method="inverted_cdf")
        assert exact - 1e-6 <= found.quantile(q) <= exact + 1.01 / 4096


def test_orthogonal_and_equal_directions():
    apart, same = coherence(jnp.eye(6)), coherence(jnp.ones((6, 3)))
    assert (apart.mu, apart.rms, apart.counts[0]) == (0, 0, 15)
    assert same.mu == pytest.approx(1, abs=1e-6)
    assert same.counts[-1] == 15


def test_no_dictionary_beats_the_welch_bound_and_an_equiangular_one_meets_it():
    for n, d in ((70, 12), (256, 64)):
        assert coherence(jnp.asarray(directions(n, d))).rms > welch_bound(n, d) - 1e-6
    # three directions in the plane at 120 degrees
    angle = np.arange(3) * 2 * np.pi / 3
    assert coherence(jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], 1), jnp.float32)).mu == pytest.approx(
        welch_bound(3, 2), abs=1e-6
    )
    assert (welch_bound(5, 5), welch_bound(1, 5)) == (0, 0)
    # 256 random directions in 64 dimensions: plain, the rms is 64^-1/2; whitened by their own second moment it is near
    # the bound, 0.1085, while the worst pair stays far above
    w = rows(np.random.default_rng(0), 256, 64)
    assert coherence(jnp.asarray(w)).rms == pytest.approx(0.125, abs=0.002)
    white = coherence(atomic_rows(jnp.asarray(w), jnp.asarray(w.T @ w), shrinkage=0.0))
    assert white.rms == pytest.approx(0.1086, abs=0.0005)
    assert 0.35 < white.mu < 0.65


def test_the_atomic_product_is_the_whitened_cosine():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(12, 12))
    x = (rng.normal(size=(4000, 12)) @ mix.T + 1).astype(np.float32)
    method = second_moment()
    state = method.init(jax.random.key(0), {"x": jnp.asarray(x[:1000])})
    step = jax.jit(method.step)
    for part in np.split(x, 4):
        state, info = step(state, {"x": jnp.asarray(part)})
    found = method.finish(state)
    exact = x.astype(np.float64).T @ x / 4000
    assert (found.count, int(info["tokens"])) == (4000, 1000)
    np.testing.assert_allclose(found.matrix, exact, rtol=1e-5, atol=1e-5 * exact.max())
    w = directions()
    inverse = np.linalg.inv(exact + 1e-4 * np.trace(exact) / 12 * np.eye(12))
    product = w @ inverse @ w.T
    size = np.sqrt(np.diag(product))
    atoms = np.asarray(atomic_rows(jnp.asarray(w), jnp.asarray(found.matrix, jnp.float32)))
    np.testing.assert_allclose(atoms @ atoms.T, product / size / size[:, None], atol=2e-3)  # condition number 1e3


def test_planted_atoms_are_orthogonal_in_the_atomic_product_only():
    """As many skew atoms as dimensions with independent coefficients: S is (D D^T)^-1 up to scale."""
    rng = np.random.default_rng(1)
    atoms = (np.eye(10) + 0.4 * rng.normal(size=(10, 10))).astype(np.float32)
    x = (rng.normal(size=(50000, 10)) @ atoms).astype(np.float32)
    white = atomic_rows(jnp.asarray(atoms), jnp.asarray(x.T @ x / len(x)), shrinkage=0.0)
    assert coherence(white).mu < 0.03 < 0.4 < coherence(jnp.asarray(atoms)).mu


def test_masked_tokens_have_no_moment():
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    mask = np.arange(50) < 30
    method = second_moment()
    batch = {"x": jnp.asarray(np.where(mask[:, None], x, np.nan)), "mask": jnp.asarray(mask)}
    found = method.finish(method.step(method.init(jax.random.key(0), batch), batch)[0])
    np.testing.assert_allclose(found.matrix, x[:30].T @ x[:30] / 30, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="no valid token"):
        method.finish(method.init(jax.random.key(0), batch))


def test_babel_equals_brute_force():
    w = directions(9, 4)
    g = gram(w)
    for s in (1, 2, 3):
        brute = max(
            g[list(chosen), j].sum()
            for chosen in itertools.combinations(range(9), s)
            for j in set(range(9)) - set(chosen)
        )
        assert float(babel(jnp.asarray(w), 3, block=4)[s - 1]) == pytest.approx(brute, abs=1e-5)
    assert float(babel(jnp.asarray(w), 1)[0]) == pytest.approx(coherence(jnp.asarray(w)).mu, abs=1e-6)
    np.testing.assert_array_equal(babel(jnp.eye(5), 4), 0)


def test_criteria_at_their_borders():
    assert [restricted_isometry(0.25, k) for k in (1, 4, 5)] == [True, True, False]
    assert [unique_support(0.2, k) for k in (1, 2, 3)] == [True, True, False]  # 1/5 is not below 1/5
    assert largest_unique_support(0.2, 100) == 2
    assert largest_unique_support(0.0, 100) == 100
    assert largest_unique_support(1.0, 100) == 0
    for mu in np.random.default_rng(0).uniform(0.001, 1, 200):
        k = largest_unique_support(mu, 10**6)
        assert unique_support(mu, k)
        assert not unique_support(mu, k + 1)


def test_stability_equals_its_definition_on_a_fine_grid():
    rng = np.random.default_rng(0)
    for seed in range(20):
        found = coherence(jnp.asarray(directions(30, 40, seed)))
        supports = rng.integers(0, rng.integers(2, 9), 50)
        grid = np.arange(1, 20001) / 20000
        k_q = np.quantile(supports, grid, method="inverted_cdf")
        holds = (2 * k_q - 1) * found.quantile(grid) < 1
        brute = grid[holds].max(initial=0)
        assert stability(found, supports) == pytest.approx(brute, abs=1e-4)


def test_stability_of_the_best_and_the_worst():
    apart = coherence(jnp.eye(8))
    assert stability(apart, np.array([1, 8])) == 1
    same = coherence(jnp.ones((8, 3)))
    assert stability(same, np.array([2, 3])) == 0
    assert stability(same, np.array([0, 0, 0, 2])) == 0.75


def test_bad_requests():
    for call, text in (
        (lambda: coherence(jnp.ones((1, 3))), "1 directions make no pair"),
        (lambda: coherence(jnp.zeros((3, 3))), "3 of 3 directions are zero or not finite, e.g. row 0"),
        (lambda: babel(jnp.eye(3), 3), "r = 3 of 3 directions"),
        (lambda: stability(Coherence(mu=0, rms=0, counts=np.ones(1, int)), np.array([])), "no token"),
        (lambda: atomic_rows(jnp.eye(3), jnp.eye(4)), r"of 3 dimensions, second moment \[4, 4\]"),
        (lambda: atomic_rows(jnp.eye(3), jnp.eye(3), shrinkage=-1.0), "shrinkage = -1.0"),
    ):
        with pytest.raises(UserError, match=text):
            call()
