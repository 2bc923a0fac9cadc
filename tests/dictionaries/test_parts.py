# SPDX-License-Identifier: Apache-2.0
"""The pieces methods are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries.parts import auxk, start
from jaxneuro.dictionaries.parts.autoencode import Kernel, autoencode
from jaxneuro.dictionaries.parts.decoder import along_the_sphere, unit_rows

from .conftest import rows

T, D, N, K_AUX = 40, 6, 512, 7


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.fixture(scope="module")
def case():
    parameters = auxk.Rows(random(N, D, seed=1), random(N, seed=2), random(N, D, seed=3))
    gradients = auxk.Rows(random(N, D, seed=4), random(N, seed=5), random(N, D, seed=6))
    valid = jnp.asarray(np.arange(T) % 5 != 0)
    return parameters, gradients, random(T, D, seed=7), random(T, D, seed=8) + 0.5, valid


@jax.jit
def dense_auxk(parameters, dead, x, e, valid):
    """By definition: top-k over all latents with the living at minus infinity, plain autodiff."""

    def loss(p):
        pre = jnp.where(dead, x @ p.w_enc.T + p.b_enc, -jnp.inf)
        vals, idx = jax.lax.top_k(pre, K_AUX)
        vals = jnp.where(vals > 0, vals, 0.0)
        at = jnp.arange(T, dtype=jnp.int32)[:, None]
        a = jnp.zeros((T, N), jnp.float32).at[at, idx].set(vals)
        left = jnp.sum(jnp.square(e - a @ p.w_dec), 1)
        mean = jnp.mean(e, 0, where=valid[:, None])
        spread = jnp.sum(jnp.where(valid, jnp.sum(jnp.square(e - mean), 1), 0.0))
        return jnp.sum(jnp.where(valid, left, 0.0)) / spread

    return jax.value_and_grad(loss)(parameters)


run = jax.jit(auxk.add_auxk, static_argnames=("k_aux", "cap", "weight"))
CHOICES = {"k_aux": K_AUX, "cap": N, "weight": 0.5}


def test_auxk_equals_its_definition_for_every_number_of_dead_without_recompiling(case):
    parameters, gradients, x, e, valid = case
    before = run._cache_size()
    for n_dead in (1, 5, 16, 17, 64, 100, 300, N):  # every compacted size and its borders
        dead = jnp.asarray(np.random.default_rng(n_dead).permutation(N) < n_dead)
        got, aux = run(gradients, parameters, dead, x, e, valid, turn=jnp.int32(3), **CHOICES)
        want, grad = dense_auxk(parameters, dead, x, e, valid)
        assert float(aux) == pytest.approx(float(want), rel=1e-5), n_dead
        for name, a, g, b in zip(got._fields, got, gradients, grad, strict=True):
            np.testing.assert_allclose(a, g + 0.5 * b, rtol=1e-4, atol=1e-4, err_msg=f"{name} {n_dead}")
    assert run._cache_size() - before == 1
    assert auxk.sizes(N, K_AUX) == (64, 512)


def test_auxk_of_no_dead_latent_is_nothing(case):
    parameters, gradients, x, e, valid = case
    got, aux = run(gradients, parameters, jnp.zeros(N, bool), x, e, valid, turn=jnp.int32(0), **CHOICES)
    assert float(aux) == 0
    for a, b in zip(got, gradients, strict=True):
        np.testing.assert_array_equal(a, b)


def test_auxk_above_its_cap_takes_turns(case):
    parameters, gradients, x, e, valid = case
    dead, touched = jnp.ones(N, bool), np.zeros(N, int)
    for turn in range(8):
        got, _ = run(gradients, parameters, dead, x, e, valid, k_aux=64, cap=64, weight=1.0, turn=jnp.int32(turn))
        changed = (np.asarray(got.w_dec) != np.asarray(gradients.w_dec)).any(1)
        assert changed.sum() <= 64
        touched += changed
    assert (touched <= 1).all()
    assert touched.mean() > 0.9


def test_auxk_in_blocks_of_tokens(case):
    parameters, _, x, e, valid = case
    there = jnp.ones(N, bool)
    whole, parts = (
        jax.jit(jax.value_and_grad(lambda p, n=n: auxk._in_blocks(p, (x, e, valid), there, K_AUX, n)))(parameters)
        for n in (1 << 30, N * 4 * 9)
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_a_residual_without_spread_gives_no_auxk(case):
    parameters, gradients, x, e, valid = case
    got, aux = run(gradients, parameters, jnp.ones(N, bool), x, e * 0, valid, turn=jnp.int32(0), **CHOICES)
    assert float(aux) == 0
    assert np.isfinite(np.asarray(got.w_enc)).all()


def test_autoencode_and_its_gradient_equal_dense_autodiff():
    x, w_enc, b_enc, w_dec = random(T, D), random(N, D, seed=1), random(N, seed=2), random(N, 3, seed=3)
    on = jnp.asarray(np.random.default_rng(0).random((T, 5)) < 0.7)
    weight, penalty = random(T, 3, seed=4), random(T, 5, seed=5)

    def ours(x, w_enc, b_enc, w_dec):
        code = autoencode(x, w_enc, b_enc, w_dec, on, Kernel(5))
        return jnp.sum(jnp.sin(code.x_hat) * weight) + jnp.sum(code.vals * penalty)

    def dense(x, w_enc, b_enc, w_dec):
        pre = x @ w_enc.T + b_enc
        vals, idx = jax.lax.top_k(pre, 5)
        vals = jnp.where(on, jax.nn.relu(vals), 0.0)
        z = jnp.zeros_like(pre).at[jnp.arange(T, dtype=jnp.int32)[:, None], idx].set(vals)
        return jnp.sum(jnp.sin(z @ w_dec) * weight) + jnp.sum(vals * penalty)

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
    for f in (start.masked_mean, start.geometric_median, start.norm_scale, start.deviation):
        np.testing.assert_allclose(
            f(jnp.asarray(dirty), jnp.asarray(valid)), f(jnp.asarray(x[:30]), jnp.ones(30, bool)), rtol=1e-4
        )
    assert float(start.norm_scale(jnp.zeros((5, 4)), jnp.ones(5, bool))) == 1
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
