# SPDX-License-Identifier: Apache-2.0
"""PCA of a stream against a float64 singular value decomposition of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries.pca import LARGEST, pca
from jaxneuro.errors import UserError

D = 24


def data(n=3000, seed=0, offset=3.0):
    """Correlated rows far off centre, with a decaying spectrum."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(D, D)))[0]
    return (rng.normal(size=(n, D)) * 0.8 ** np.arange(D) @ turn.T + offset).astype(np.float32)


STEP = jax.jit(pca(1).step)  # the choices of a method are in its state and in finish: tests share one program


def learn(x, batches=2, n_latents=5, **kw):
    method = pca(n_latents, **kw)
    parts = np.split(x, batches)
    state = method.init(jax.random.key(0), {"x": jnp.asarray(parts[0])})
    for part in parts:
        state, info = STEP(state, {"x": jnp.asarray(part)})
    return method.finish(state), info


def reference(x, n_latents=5):
    """(variances, signed rows) in float64."""
    x = x.astype(np.float64)
    _, s, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    rows = rows * np.sign(np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1))
    return s**2 / len(x), rows


@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
def test_equals_a_singular_value_decomposition(offset):
    x = data(offset=offset)
    found, info = learn(x)
    variance, rows = reference(x)
    np.testing.assert_allclose(found.variance, variance[:5], rtol=2e-5)  # float32 products, summed exactly
    np.testing.assert_allclose(found.total_variance, variance.sum(), rtol=2e-5)
    np.testing.assert_allclose(found.explained_variance_ratio, variance[:5] / variance.sum(), rtol=4e-5)
    np.testing.assert_allclose(found.W_dec, rows[:5], atol=2e-4)
    np.testing.assert_allclose(found.b_dec, x.astype(np.float64).mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(float(info["variance"]), variance.sum(), rtol=2e-5)


def test_cuts_into_batches_do_not_matter():
    x = data()
    one, _ = learn(x, 1)
    many, _ = learn(x, 300)
    np.testing.assert_allclose(many.variance, one.variance, rtol=1e-5)
    np.testing.assert_allclose(many.W_dec, one.W_dec, atol=1e-4)


def test_reconstruction_leaves_what_the_ratios_say():
    x = data()
    found, _ = learn(x)
    error = np.square(x - np.asarray(found(jnp.asarray(x)))).sum() / np.square(x - x.mean(0)).sum()
    assert error == pytest.approx(1 - float(found.explained_variance_ratio.sum()), abs=1e-5)
    everything, _ = learn(x, n_latents=D)
    np.testing.assert_allclose(everything(jnp.asarray(x)), x, atol=2e-5)  # 24 products of float32


def test_whitened_latents_have_unit_covariance():
    x = data()
    found, _ = learn(x, whiten=True)
    z = np.asarray(found.encode(jnp.asarray(x)), np.float64)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(5), atol=1e-4)
    plain, _ = learn(x)
    np.testing.assert_allclose(found(jnp.asarray(x)), plain(jnp.asarray(x)), atol=1e-4)


def test_a_direction_without_variance_is_not_blown_up():
    x = data()
    x[:, 3:] = 1.0
    found, _ = learn(x, whiten=True)
    z = np.asarray(found.encode(jnp.asarray(x)))
    assert (z[:, 3:] == 0).all()
    np.testing.assert_allclose(z[:, :3].std(0), 1, rtol=1e-3)


def test_a_sketch_finds_a_low_rank_exactly_and_a_decaying_spectrum_nearly():
    rng = np.random.default_rng(1)
    low = (rng.normal(size=(3000, 3)) @ rng.normal(size=(3, D)) + 2).astype(np.float32)
    found, _ = learn(low, n_latents=3, sketch=6)
    variance, rows = reference(low)
    np.testing.assert_allclose(found.variance, variance[:3], rtol=1e-4)
    np.testing.assert_allclose(found.W_dec, rows[:3], atol=1e-3)
    x = data()
    found, _ = learn(x, sketch=14)
    variance, rows = reference(x)
    assert (np.asarray(found.variance) <= variance[:5] * 1.0001).all()
    np.testing.assert_allclose(found.variance, variance[:5], rtol=0.1)
    assert np.abs(np.sum(np.asarray(found.W_dec[:3]) * rows[:3], 1)).min() > 0.98
    np.testing.assert_allclose(found.W_dec @ found.W_dec.T, np.eye(5), atol=1e-5)


def test_a_sketch_as_wide_as_the_input_is_exact():
    x = data()
    found, _ = learn(x, sketch=D)
    np.testing.assert_allclose(found.variance, reference(x)[0][:5], rtol=1e-4)


def test_noise_has_no_leading_component():
    x = np.random.default_rng(2).normal(size=(3000, D)).astype(np.float32)
    ratio = np.asarray(learn(x)[0].explained_variance_ratio)
    # Marchenko-Pastur: the largest eigenvalue is near (1 + sqrt(D / n))^2, here 1.19
    assert 1.1 / D < ratio[0] < 1.25 / D


def test_bad_requests():
    for kw, text in (
        ({"n_latents": 0}, "n_latents = 0 is below 1"),
        ({"n_latents": 4, "sketch": 3}, "sketch = 3 is below n_latents = 4; 8 is a good choice"),
    ):
        with pytest.raises(UserError, match=text):
            pca(**kw)
    key, x = jax.random.key(0), jnp.asarray(data(8))
    with pytest.raises(UserError, match="n_latents = 25, sketch = None, but the input has 24 dimensions"):
        pca(25).init(key, {"x": x})
    wide = {"x": jax.ShapeDtypeStruct((4, LARGEST + 1), jnp.float32)}
    with pytest.raises(UserError, match=r"8193 dimensions need .* 0.5 GiB .*Use sketch = 20"):
        jax.eval_shape(pca(10).init, key, wide)
    assert jax.eval_shape(pca(10, sketch=20).init, key, wide).scatter.scatter[0].shape == (LARGEST + 1, 20)
    method = pca(8)
    state, _ = method.step(method.init(key, {"x": x}), {"x": x})
    with pytest.raises(UserError, match="8 tokens span no 8 components"):
        method.finish(state)
