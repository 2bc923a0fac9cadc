# SPDX-License-Identifier: Apache-2.0
"""k-means: its assignment, its rates, its start, and what it does with empty clusters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries.kmeans import KMeansDictionary, kmeans
from jaxneuro.dictionaries.parts import clusters
from jaxneuro.dictionaries.parts.clusters import cluster_sums, lloyd, nearest, plus_plus
from jaxneuro.dictionaries.parts.reseed import drawn_tokens
from jaxneuro.errors import UserError

from .conftest import matched

K, D = 12, 8
CENTRES = np.random.default_rng(7).normal(0, 4, (K, D)).astype(np.float32)


def blobs(n, seed=0, sd=0.3, offset=0.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, K, n)
    return (CENTRES[label] + rng.normal(0, sd, (n, D)) + offset).astype(np.float32), label


@functools.cache
def step_of(**kw):
    return jax.jit(kmeans(K, **kw).step)


@functools.cache
def init_of(**kw):
    return jax.jit(kmeans(K, **kw).init)


def learn(x, batch=256, seed=0, **kw):
    method = kmeans(K, **kw)
    state = init_of(**kw)(jax.random.key(seed), {"x": x[:batch]})
    for i in range(0, len(x), batch):
        state, info = step_of(**kw)(state, {"x": x[i : i + batch]})
    return method.finish(state), state, info


@pytest.mark.parametrize("entries", [2**24, 100])
def test_nearest_and_sums_equal_brute_force_in_any_blocks(entries, monkeypatch):
    monkeypatch.setattr(clusters, "ENTRIES", entries)  # 100: blocks of 2 centroids, the last one not full
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(50, D)).astype(np.float32), rng.normal(size=(13, D)).astype(np.float32)
    apart = np.square(x[:, None].astype(np.float64) - c).sum(-1)
    distance, index = jax.jit(lambda x, c: nearest(x, c))(x, c)
    np.testing.assert_array_equal(index, apart.argmin(1))
    np.testing.assert_allclose(distance, apart.min(1), rtol=1e-5)
    index = np.where(np.arange(50) % 5 == 0, 13, index)  # 13: of no cluster
    sums, counts = jax.jit(lambda x, index: cluster_sums(x, index, 13))(x, index.astype(np.int32))
    np.testing.assert_allclose(sums, [x[index == k].sum(0) for k in range(13)], atol=1e-5)
    np.testing.assert_array_equal(counts, np.bincount(index, minlength=14)[:13])


def test_of_equally_near_centroids_the_first():
    assert jax.jit(nearest)(np.zeros((1, 2), np.float32), np.ones((5, 2), np.float32))[1].tolist() == [0]


def test_a_step_is_the_running_mean_of_sculley():
    """Token by token in float64, with the assignment of the batch."""
    x, _ = blobs(768)
    state = init_of()(jax.random.key(0), {"x": x[:256]})
    centre = np.asarray(state.centre)
    c, counts = (np.asarray(state.centroids) + centre).astype(np.float64), np.zeros(K)
    for part in np.split(x, 3):
        state, info = step_of()(state, {"x": part})
        apart = np.square(part[:, None].astype(np.float64) - c).sum(-1)
        assert float(info["loss"]) == pytest.approx(apart.min(1).mean(), rel=1e-4)
        for row, k in zip(part, apart.argmin(1), strict=True):
            counts[k] += 1
            c[k] += (row - c[k]) / counts[k]
        np.testing.assert_allclose(np.asarray(state.centroids) + centre, c, atol=1e-5)
        np.testing.assert_array_equal(state.counts, counts)


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_finds_planted_clusters_wherever_they_lie(offset):
    x, label = blobs(4096, offset=offset)
    found, _, info = learn(x)
    apart = np.linalg.norm(np.asarray(found.W_dec, np.float64)[None] - (CENTRES + offset)[:, None], axis=-1)
    assert apart.min(1).max() < 0.1  # mean of some 340 tokens of standard deviation 0.3 in 8 dimensions: 0.05
    index = np.asarray(found.encode_sparse(jnp.asarray(x))[1])[:, 0]
    assert len({(a, b) for a, b in zip(label, index, strict=True)}) == K
    assert float(info["fvu"]) < 0.02


def test_finds_nothing_in_noise():
    """Seeds agree on blobs, and in noise hardly more than random centroids do."""
    x, noise = blobs(2048)[0], np.random.default_rng(3).normal(size=(2048, D)).astype(np.float32)
    agree = matched(learn(x, seed=0)[0].W_dec, learn(x, seed=1)[0].W_dec)
    assert agree.min() > 0.99
    a, b = learn(noise, seed=0)[0], learn(noise, seed=1)[0]
    rng = np.random.default_rng(0)
    chance = np.mean([matched(rng.normal(size=(K, D)), rng.normal(size=(K, D))).mean() for _ in range(50)])
    # centroids repel each other and fill the sphere more evenly than independent directions: somewhat above chance
    assert chance - 0.05 < matched(a.W_dec, b.W_dec).mean() < chance + 0.15 < 0.85
    fvu = np.square(noise - np.asarray(a(jnp.asarray(noise)))).sum() / np.square(noise - noise.mean(0)).sum()
    assert 0.6 < fvu < 0.9


def test_spherical_groups_by_direction_and_projects():
    rng = np.random.default_rng(1)
    label = rng.integers(0, K, 2048)
    length = rng.uniform(0.1, 100, (2048, 1))
    x = ((CENTRES[label] + rng.normal(0, 0.1, (2048, D))) * length).astype(np.float32)
    found, _, _ = learn(x, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(found.W_dec, axis=1), 1, rtol=1e-5)
    assert matched(found.W_dec, CENTRES).min() > 0.999
    z = np.asarray(found.encode(jnp.asarray(x)))
    assert ((z > 0).sum(1) == 1).all()
    np.testing.assert_allclose(z.max(1), np.linalg.norm(x, axis=1), rtol=0.02)


def test_plus_plus_takes_one_token_of_each_far_cluster_and_no_masked_one():
    x, label = blobs(400)
    valid = label != 3
    rows = jax.jit(plus_plus, static_argnums=3)(jax.random.key(0), jnp.asarray(x), jnp.asarray(valid), K - 1)
    which = [int(np.flatnonzero((x == row).all(1))[0]) for row in np.asarray(rows)]
    assert sorted(label[which]) == sorted(set(range(K)) - {3})


def test_an_empty_cluster_begins_again_at_a_badly_explained_token():
    x, _ = blobs(512)
    step = step_of(dead_after_tokens=512)
    state = init_of()(jax.random.key(0), {"x": x[:256]})
    lost = np.array(state.centroids)
    lost[4] = 1e4  # nobody's nearest
    state = state._replace(centroids=lost)
    reseeded, fvu = [], []
    for part in (x[:256], x[256:], x[:256], x[256:]):
        state, info = step(state, {"x": part})
        reseeded.append(int(info["reseeded"]))
        fvu.append(float(info["fvu"]))
    assert reseeded == [0, 1, 0, 0]
    assert float(info["dead_fraction"]) == 0
    assert fvu[3] < 0.5 * fvu[1]  # the cluster that had lost its centroid has one


def test_tokens_are_drawn_for_dead_latents_only_without_replacement():
    draw = jax.jit(drawn_tokens)
    dead = jnp.asarray(np.arange(6) % 2 == 0)
    weight = jnp.asarray([0, 5, 0, 1, 1, 0, 3], jnp.float32)
    seen = []
    for seed in range(50):
        again, token = draw(jax.random.key(seed), dead, weight)
        assert again.tolist() == dead.tolist()
        mine = np.asarray(token)[np.asarray(again)].tolist()
        assert len(set(mine)) == 3
        assert set(mine) <= {1, 3, 4, 6}
        seen.append(mine[0])
    assert 15 < seen.count(1) < 36  # P(first is token 1) = 5 / 10
    again, _ = draw(jax.random.key(0), dead, np.eye(7, dtype=np.float32)[2])
    assert again.tolist() == [True, False, False, False, False, False]


def test_memory_lets_old_tokens_fade():
    """Clusters that move: with memory the centroids follow, without they lag."""
    moving = np.concatenate([blobs(2048)[0], blobs(2048, offset=1.0)[0]])
    here, there = (learn(moving, **kw)[0].W_dec for kw in ({"memory_tokens": 40}, {}))
    lag = [np.linalg.norm(np.asarray(w)[None] - (CENTRES + 1)[:, None], axis=-1).min(1).mean() for w in (here, there)]
    assert lag[0] < 0.3 < 1 < lag[1]


def test_lloyd_equals_float64_iterations_and_respects_the_mask():
    x, _ = blobs(300)
    mask = np.arange(300) % 7 > 0
    spoiled = np.where(mask[:, None], x, np.float32(1e6))
    found, label = lloyd(jnp.asarray(spoiled), K, key=jax.random.key(0), mask=jnp.asarray(mask), steps=5)
    kept = x[mask].astype(np.float64)
    start = plus_plus(
        jax.random.key(0), jnp.asarray(np.where(mask[:, None], x - kept.mean(0), 0), jnp.float32), jnp.asarray(mask), K
    )
    c = np.asarray(start, np.float64) + kept.mean(0)
    for _ in range(5):
        at = np.square(kept[:, None] - c).sum(-1).argmin(1)
        c = np.stack([kept[at == k].mean(0) if (at == k).any() else c[k] for k in range(K)])
    np.testing.assert_allclose(found, c, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(label)[mask], np.square(kept[:, None] - c).sum(-1).argmin(1))


def test_one_hot_and_lookup():
    d = KMeansDictionary(W_dec=jnp.asarray(CENTRES))
    x, label = blobs(40)
    z = np.asarray(d.encode(jnp.asarray(x)))
    np.testing.assert_array_equal(z, np.eye(K)[label])
    np.testing.assert_array_equal(d.decode(jnp.asarray(z, jnp.float32)), CENTRES[label])


def test_bad_requests():
    for kw, text in (
        ({"n_latents": 0}, "n_latents = 0 is not between 1 and"),
        ({"n_latents": 3, "memory_tokens": -1}, "memory_tokens = -1"),
        ({"n_latents": 3, "dead_after_tokens": 2**31}, "dead_after_tokens = 2147483648"),
    ):
        with pytest.raises(UserError, match=text):
            kmeans(**kw)
    with pytest.raises(UserError, match="the first batch has 5 valid tokens for 12 latents"):
        kmeans(K).init(jax.random.key(0), {"x": jnp.asarray(blobs(5)[0])})
