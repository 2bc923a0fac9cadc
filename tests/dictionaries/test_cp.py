# SPDX-License-Identifier: Apache-2.0
"""Non-negative CP: its sweep, planted components, missing entries, its rank; affinities and communities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries.connectome import affinity, communities, pair_index, pair_mask, pair_matrix
from jaxneuro.dictionaries.cp import CP, cp_starts, nonnegative_cp, sweep
from jaxneuro.dictionaries.cp_rank import chosen_rank, rank_curve, similarity
from jaxneuro.errors import UserError

SIZES, RANK = (14, 16, 6), 3


def planted(seed=0, noise=0.01):
    """(tensor, factors): sparse non-negative components and a little noise."""
    rng = np.random.default_rng(seed)
    factors = [rng.gamma(1, 1, (n, RANK)) * (rng.random((n, RANK)) < 0.7) for n in SIZES]
    factors = [3 * f / np.linalg.norm(f, axis=0) for f in factors]
    x = np.einsum("ar,br,cr->abc", *factors)
    return (x + noise * x.std() * rng.normal(size=SIZES)).astype(np.float32), factors


def as_cp(factors):
    return CP(tuple(jnp.asarray(f, jnp.float32) for f in factors), jnp.ones(RANK), jnp.float32(0), jnp.int32(0))


def reference_sweep(factors, x, mask):
    """Masked HALS in float64, entry by entry: each the minimum of the masked loss over itself alone."""
    factors = [f.astype(np.float64).copy() for f in factors]
    for mode in range(3):
        others = [factors[m] for m in range(3) if m != mode]
        z = np.einsum("ar,br->abr", *others).reshape(-1, factors[0].shape[1])
        data, there = (np.moveaxis(a, mode, 0).reshape(SIZES[mode], -1) for a in (x, mask))
        u = factors[mode]
        for i in range(len(u)):
            for r in range(u.shape[1]):
                rest = data[i] - z @ u[i] + z[:, r] * u[i, r]
                u[i, r] = max(0, (there[i] * rest) @ z[:, r] / (there[i] @ z[:, r] ** 2))
        if mode < 2:
            norm = np.linalg.norm(u, axis=0)
            factors[mode], factors[2] = u / norm, factors[2] * norm
    return factors, (mask * np.square(x - np.einsum("ar,br,cr->abc", *factors))).sum()


@pytest.mark.parametrize("kind", ["whole", "entries", "pairs"])
def test_a_sweep_equals_coordinate_descent_in_float64(kind):
    rng = np.random.default_rng(1)
    mask = {
        "whole": np.ones((1, 1, 1), bool),
        "entries": rng.random(SIZES) < 0.7,
        "pairs": rng.random((SIZES[0], 1, SIZES[2])) < 0.7,
    }[kind]
    x = np.where(mask, planted()[0], 0)
    start = tuple(rng.random((n, RANK)).astype(np.float32) for n in SIZES)
    factors, loss = jax.jit(sweep)(
        tuple(map(jnp.asarray, start)), jnp.asarray(x, jnp.float32), jnp.asarray(mask, jnp.float32)
    )
    exact, exact_loss = reference_sweep(start, x, np.broadcast_to(mask, SIZES))
    for f, e in zip(factors, exact, strict=True):
        np.testing.assert_allclose(f, e, atol=1e-4 * e.max())
    assert float(loss) == pytest.approx(exact_loss, rel=1e-3)


def test_the_masked_loss_never_rises():
    rng = np.random.default_rng(2)
    mask = jnp.asarray(rng.random(SIZES) < 0.6, jnp.float32)
    x = jnp.asarray(planted()[0]) * mask
    factors = tuple(jnp.asarray(rng.random((n, RANK)), jnp.float32) for n in SIZES)
    step, losses = jax.jit(sweep), []
    for _ in range(60):
        factors, loss = step(factors, x, mask)
        losses.append(float(loss))
    assert np.diff(losses).max() < 1e-5 * float(jnp.sum(x * x))  # float32 rounding of a difference
    assert losses[-1] < 0.05 * losses[0]


@functools.cache
def fitted():
    return nonnegative_cp(jnp.asarray(planted()[0]), RANK, key=jax.random.key(0), starts=4)


def test_finds_planted_components():
    cp = fitted()
    assert float(similarity(cp, as_cp(planted()[1])).min()) > 0.99
    assert float(cp.loss) < 1e-3
    assert all((np.asarray(f) >= 0).all() for f in cp.factors)
    for f in cp.factors:
        np.testing.assert_allclose(np.linalg.norm(f, axis=0), 1, rtol=1e-5)
    assert (np.diff(cp.weights) <= 0).all()
    x = planted()[0]
    error = np.square(x - np.asarray(cp.full())).sum() / np.square(x).sum()
    assert error == pytest.approx(float(cp.loss), abs=2e-6)


def test_missing_entries_are_predicted():
    x, factors = planted()
    mask = np.random.default_rng(3).random(SIZES) < 0.7
    spoiled = np.where(mask, x, np.nan).astype(np.float32)
    cp = nonnegative_cp(jnp.asarray(spoiled), RANK, key=jax.random.key(0), mask=jnp.asarray(mask), starts=4)
    assert float(similarity(cp, as_cp(factors)).min()) > 0.98
    missing = np.square(x - np.asarray(cp.full()))[~mask].sum() / np.square(x)[~mask].sum()
    assert missing < 0.02


def test_a_mask_of_ones_is_no_mask_and_a_thin_one_its_broadcast():
    x, key = jnp.asarray(planted()[0]), jax.random.key(0)
    options = {"key": key, "starts": 4, "sweeps": 20}
    none, ones = cp_starts(x, RANK, **options), cp_starts(x, RANK, mask=jnp.ones(SIZES, bool), **options)
    np.testing.assert_allclose(none.loss, ones.loss, atol=1e-4)
    thin = jnp.asarray(np.random.default_rng(0).random((SIZES[0], 1, SIZES[2])) < 0.8)
    one = cp_starts(x, RANK, mask=thin, **options)
    two = cp_starts(x, RANK, mask=jnp.broadcast_to(thin, SIZES), **options)
    np.testing.assert_allclose(one.loss, two.loss, atol=1e-4)


def test_starts_under_vmap_equal_their_own_runs_in_one_program():
    from jaxneuro.dictionaries import cp as module

    x, key = jnp.asarray(planted()[0]), jax.random.key(4)
    together = cp_starts(x, RANK, key=key, starts=4, sweeps=15, tolerance=0)
    for i, k in enumerate(jax.random.split(key, 4)):
        alone = module._fit(x, jnp.ones((1, 1, 1)), k, jnp.int32(15), jnp.float32(0), rank=RANK)
        assert float(alone.loss) == pytest.approx(float(together.loss[i]), rel=0.01, abs=1e-5)
        assert int(alone.sweeps) <= 15
    size = module._fit._cache_size()
    cp_starts(x * 2, RANK, key=jax.random.key(5), starts=4, sweeps=20, tolerance=0.1)
    assert module._fit._cache_size() == size


def test_matrices_and_four_axes():
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.random((n, 2)) * (rng.random((n, 2)) < 0.6) + 0.01 for n in (5, 6, 4, 3))
    four = jnp.asarray(np.einsum("ar,br,cr,dr->abcd", a, b, c, d), jnp.float32)
    assert float(nonnegative_cp(four, 2, key=jax.random.key(0), starts=3).loss) < 1e-3
    two = jnp.asarray(a @ b.T, jnp.float32)
    assert float(nonnegative_cp(two, 2, key=jax.random.key(0), starts=3).loss) < 1e-3


def test_similarity_matches_permuted_components_and_no_others():
    _, factors = planted()
    order = [2, 0, 1]
    np.testing.assert_allclose(similarity(as_cp(factors), as_cp([f[:, order] for f in factors])), 1, rtol=1e-5)
    other = as_cp([np.roll(f, 3, 0) for f in factors])
    assert float(similarity(as_cp(factors), other).mean()) < 0.5


def test_the_rank_is_where_starts_and_halves_agree():
    x, _ = planted(noise=0.3)
    curve = rank_curve(jnp.asarray(x), (3, 8), key=jax.random.key(0), starts=4, sweeps=300)
    assert chosen_rank(curve) == RANK
    assert [s.loss for s in curve] == sorted((s.loss for s in curve), reverse=True)
    noise = jnp.asarray(np.random.default_rng(0).random(SIZES) - 0.5, jnp.float32)
    assert chosen_rank(rank_curve(noise, (3,), key=jax.random.key(0), starts=4, sweeps=300)) is None


def test_affinity_equals_its_formula():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 30, 4))
    t = np.arange(30)
    weight = np.exp(-((t[:, None] - t) ** 2) / (2 * 1.5**2))
    weight /= weight.sum(1, keepdims=True)
    rate = np.gradient(np.einsum("tu,sun->stn", weight, x), axis=1)
    rate /= np.sqrt((rate**2).mean(1, keepdims=True))
    found = np.asarray(affinity(jnp.asarray(x, jnp.float32), smooth=1.5, window=0.0))
    assert found.shape == (6, 30, 2)
    for p, (i, j) in enumerate(pair_index(4)):
        np.testing.assert_allclose(found[p], np.sqrt(np.maximum(0, rate[..., i] * rate[..., j])).T, atol=2e-3)
    averaged = np.asarray(affinity(jnp.asarray(x, jnp.float32), smooth=1.5, window=1.5))
    np.testing.assert_allclose(averaged, np.einsum("tu,pus->pts", weight, found), atol=1e-4)
    constant = jnp.asarray(x, jnp.float32).at[:, :, 0].set(3.0)
    assert float(affinity(constant)[:3].max()) == 0


def test_finds_planted_communities_of_traces_from_beginning_to_end():
    """Twelve neurons in three communities, each driven in its third of the time, one neuron missing once."""
    rng = np.random.default_rng(0)
    label, time = np.repeat(np.arange(3), 4), np.arange(90)
    drive = np.stack([np.sin(time) * (time // 30 == k) for k in range(3)], 1)
    traces = drive[:, label][None] * rng.uniform(0.8, 1.2, (4, 1, 12)) + 0.02 * rng.normal(size=(4, 90, 12))
    present = np.ones((4, 12), bool)
    present[1, 5] = False
    traces[1, :, 5] = np.nan
    x = affinity(jnp.asarray(np.where(present[:, None], traces, 0), jnp.float32))
    cp = nonnegative_cp(x, 3, key=jax.random.key(0), mask=pair_mask(jnp.asarray(present)), starts=4)
    for r in range(3):
        which = int(np.asarray(cp.factors[1])[:, r].argmax()) // 30  # the third in which the component is active
        found = np.asarray(communities(cp.factors[0][:, r], 12, 2, key=jax.random.key(1)))
        strength = np.asarray(pair_matrix(cp.factors[0][:, r], 12)).sum(1)
        assert set(np.argsort(-strength)[:4]) == set(np.flatnonzero(label == which))
        assert len(set(found[label == which])) == 1


def test_spectral_communities_of_a_block_graph():
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat(np.arange(3), 8))
    weight = np.where(label[:, None] == label, 1.0, 0.1) * rng.uniform(0.5, 1.5, (24, 24))
    i, j = pair_index(24).T
    found = np.asarray(communities(jnp.asarray(weight[i, j], jnp.float32), 24, 3, key=jax.random.key(0)))
    assert len({(a, b) for a, b in zip(label, found, strict=True)}) == 3


def test_bad_requests():
    x, key = jnp.asarray(planted()[0]), jax.random.key(0)
    for call, text in (
        (lambda: nonnegative_cp(x, 0, key=key), "rank = 0 is below 1"),
        (lambda: nonnegative_cp(x, 2, key=key, starts=0), "starts = 0"),
        (lambda: nonnegative_cp(x[0, 0], 2, key=key), r"the tensor is \[6\]; it needs 2 to 8 axes"),
        (lambda: nonnegative_cp(x, 2, key=key, mask=jnp.ones((14, 2, 6), bool)), r"mask is bool\[14, 2, 6\] for"),
        (lambda: nonnegative_cp(x, 2, key=key, mask=jnp.ones(SIZES)), r"mask is float32\[14, 16, 6\]"),
        (lambda: nonnegative_cp(x.at[0, 0, 0].set(jnp.nan), 2, key=key), "NaN or infinite. Mask it"),
        (lambda: rank_curve(x, (2,), key=key, split_axis=3), "axis 3 of a tensor"),
        (lambda: communities(jnp.ones(3), 3, 4, key=key), "4 communities of 3 neurons"),
        (lambda: communities(jnp.ones(4), 3, 2, key=key), r"3 neurons has 3 pairs; this one is \[4\]"),
    ):
        with pytest.raises(UserError, match=text):
            call()
