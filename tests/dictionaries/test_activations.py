# SPDX-License-Identifier: Apache-2.0
"""Latents of either sign: the largest pre-activations by magnitude, without all of them at once, and counted as active.

Activations of one sign are tested with the methods that learn them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.axes import aligned
from jaxneuro.dictionaries import AbsTopK, SparseCoder, reconstruction

N, D = 20, 6
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 15, D)), jnp.float32)


def coder(k, **changes):
    w_enc, w_dec, b_enc, b_dec = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((D, N), (N, D), N, D))
    arrays = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec}
    return SparseCoder(**{**arrays, **changes}, activation=AbsTopK(k))


def by_hand(d, x, k):
    x, w, b, b_dec = map(np.asarray, (x, d.W_enc, d.b_enc, d.b_dec))
    pre = (x - b_dec) @ w + b
    least = np.sort(np.abs(pre), axis=-1)[..., N - k, None]
    return np.where(np.abs(pre) >= least, pre, 0)


@pytest.mark.parametrize("k", [1, 4, N])
def test_the_k_largest_magnitudes_keep_their_signs(k):
    d = coder(k)
    want = by_hand(d, X, k)
    assert (want < 0).any()
    assert (want > 0).any()
    z = d.encode(X)
    np.testing.assert_allclose(z, want, atol=1e-5)
    np.testing.assert_allclose(d.activation((X - aligned(d.b_dec, X)) @ d.W_enc + aligned(d.b_enc, X)), want, atol=1e-5)
    np.testing.assert_allclose(d.decode_sparse(*d.encode_sparse(X)), d.decode(z), atol=1e-4)
    vals, idx = d.encode_sparse(X)
    assert (np.diff(np.abs(vals)) <= 0).all()
    assert (np.asarray(idx) < N).all()
    assert d.k == k


def test_a_latent_is_not_chosen_with_both_signs_where_all_others_are_0():
    d = coder(3, W_enc=jnp.zeros((D, N)).at[:, 7].set(1.0), b_enc=jnp.zeros(N), b_dec=jnp.zeros(D))
    z = np.asarray(d.encode(X))
    np.testing.assert_allclose(z[..., 7], X.sum(-1), atol=1e-5)
    assert not np.delete(z, 7, axis=-1).any()


def test_negative_latents_are_active():
    d, x = coder(4), X.reshape(-1, D)
    found = reconstruction(d, [{"x": x}])
    assert found.l0 == 4
    np.testing.assert_allclose(found.density, (by_hand(d, x, 4) != 0).mean(0), atol=1e-9)


def test_the_gradient_reaches_what_was_chosen():
    d = coder(4)
    weights = jnp.asarray(RNG.normal(size=(*X.shape[:-1], N)), jnp.float32)
    on = jnp.asarray(by_hand(d, X, 4) != 0)

    def dense(w):
        return jnp.sum(jnp.where(on, ((X - aligned(d.b_dec, X)) @ w + aligned(d.b_enc, X)) * weights, 0))

    got = jax.grad(lambda w: jnp.sum(dataclasses.replace(d, W_enc=w).encode(X) * weights))(d.W_enc)
    np.testing.assert_allclose(got, jax.grad(dense)(d.W_enc), atol=1e-4)
