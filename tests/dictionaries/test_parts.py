# SPDX-License-Identifier: Apache-2.0
"""The pieces methods are made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries.parts import start
from jaxneuro.dictionaries.parts.autoencode import Parts, Select, autoencode
from jaxneuro.dictionaries.parts.decoder import along_the_sphere, unit_rows

from .conftest import rows

T, D, N = 40, 6, 512


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("parts", [None, Parts("rank", (2,)), Parts("index", (100, 300))])
def test_autoencode_and_its_gradient_equal_dense_autodiff(parts):
    x, w_enc, b_enc, w_dec = random(T, D), random(N, D, seed=1), random(N, seed=2), random(N, 3, seed=3)
    valid = jnp.asarray(np.random.default_rng(0).random(T) < 0.7)
    n_parts = 1 if parts is None else len(parts.ends) + 1
    weight, penalty = random(n_parts, T, 3, seed=4), random(T, 5, seed=5)

    def ours(x, w_enc, b_enc, w_dec):
        code = autoencode(x, w_enc, b_enc, w_dec, valid, jnp.int32(4), Select(5), parts)
        return jnp.sum(jnp.sin(code.x_hat) * weight) + jnp.sum(code.vals * penalty)

    def dense(x, w_enc, b_enc, w_dec):
        pre = x @ w_enc.T + b_enc[None]
        vals, idx = jax.lax.top_k(pre, 5)
        rank = jnp.broadcast_to(jnp.arange(5, dtype=jnp.int32), vals.shape)
        vals = jnp.where(valid[:, None] & (rank < 4), jax.nn.relu(vals), 0.0)
        of = jnp.zeros_like(idx) if parts is None else (idx if parts.by == "index" else rank)
        part = jnp.searchsorted(jnp.asarray(parts.ends if parts else (9,), jnp.int32), of, side="right")
        at = jnp.arange(T, dtype=jnp.int32)[:, None]
        z = [jnp.zeros_like(pre).at[at, idx].set(jnp.where(part == p, vals, 0.0)) for p in range(n_parts)]
        return jnp.sum(jnp.sin(jnp.stack(z) @ w_dec) * weight) + jnp.sum(vals * penalty)

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1, 2, 3)))(x, w_enc, b_enc, w_dec) for f in (ours, dense))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_unit_rows_and_the_tangent_plane():
    w = unit_rows(jnp.concatenate([random(9, D), jnp.zeros((1, D))]))
    np.testing.assert_allclose(np.linalg.norm(w, axis=1), [*[1.0] * 9, 0.0], rtol=1e-6)
    g = random(10, D, seed=2)
    flat = along_the_sphere(g, w)
    np.testing.assert_allclose((np.asarray(flat) * np.asarray(w)).sum(1), 0, atol=1e-6)
    np.testing.assert_array_equal(flat[9], g[9])


def test_starts_ignore_masked_rows():
    x = np.random.default_rng(0).normal(2.0, 1.0, (50, 4)).astype(np.float32)
    valid = np.arange(50) < 30
    dirty = np.where(valid[:, None], x, 1e6).astype(np.float32)
    norm_scale = functools.partial(start.norm_scale, norm="sqrt_d")
    for f in (start.masked_mean, start.geometric_median, norm_scale, start.deviation):
        np.testing.assert_allclose(
            f(jnp.asarray(dirty), jnp.asarray(valid)), f(jnp.asarray(x[:30]), jnp.ones(30, bool)), rtol=1e-4
        )
    assert float(norm_scale(jnp.zeros((5, 4)), jnp.ones(5, bool))) == 1
    directions = start.random_rows(jax.random.key(0), 2000, 3)
    np.testing.assert_allclose(np.asarray(directions).mean(0), 0, atol=0.06)


def test_the_geometric_median_minimises_distances():
    x = rows(np.random.default_rng(0), 60, 5) * np.random.default_rng(1).exponential(3.0, (60, 1)).astype(np.float32)
    m = np.asarray(start.geometric_median(jnp.asarray(x), jnp.ones(60, bool)))

    def cost(c):
        return np.linalg.norm(x - c, axis=1).sum()

    for step in 0.05 * np.vstack([np.eye(5), -np.eye(5)]):
        assert cost(m) < cost(m + step)
    assert cost(m) < cost(x.mean(0))
