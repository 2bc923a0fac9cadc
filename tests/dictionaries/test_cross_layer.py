# SPDX-License-Identifier: Apache-2.0
"""The cross-layer transcoder against its definition, written as loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries import CrossLayerTranscoder, JumpReLU, Relu, TopK

L, D_IN, M, D_OUT = 3, 4, 5, 2


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def transcoder():
    rng = np.random.default_rng(0)
    return CrossLayerTranscoder(
        W_enc=normal(rng, L, D_IN, M),
        b_enc=normal(rng, L, M),
        W_dec=tuple(normal(rng, L - s, M, D_OUT) for s in range(L)),
        b_dec=normal(rng, L, D_OUT),
        activation=JumpReLU(abs(normal(rng, L, M))),
    )


call = jax.jit(CrossLayerTranscoder.__call__)


def definition(t, x, active):
    """(z, y) of one token in float64."""
    w_enc, b_enc, b_dec = (np.asarray(a, np.float64) for a in (t.W_enc, t.b_enc, t.b_dec))
    z = np.stack([active(x[i] @ w_enc[i] + b_enc[i], i) for i in range(L)])
    y = [b_dec[i] + sum(z[s] @ np.asarray(t.W_dec[s], np.float64)[i - s] for s in range(i + 1)) for i in range(L)]
    return z, np.stack(y)


def test_it_is_its_definition(transcoder):
    x = np.random.default_rng(0).normal(size=(7, L, D_IN)).astype(np.float32)
    threshold = np.asarray(transcoder.activation.threshold, np.float64)
    want = [definition(transcoder, a.astype(np.float64), lambda pre, i: pre * (pre > threshold[i])) for a in x]
    # sums of at most 15 products of size 1 in float32
    np.testing.assert_allclose(jax.jit(CrossLayerTranscoder.encode)(transcoder, x), [z for z, _ in want], atol=1e-5)
    np.testing.assert_allclose(call(transcoder, x), [y for _, y in want], atol=1e-5)


def test_latents_write_to_their_layer_and_above_only(transcoder):
    decode = jax.jit(CrossLayerTranscoder.decode)
    for layer in range(L):
        z = np.zeros((L, M), np.float32)
        z[layer] = 1
        moved = np.abs(np.asarray(decode(transcoder, z)) - transcoder.b_dec).max(-1) > 0
        assert moved.tolist() == [i >= layer for i in range(L)]


def test_any_leading_axes_and_dtypes_and_jit(transcoder):
    x = normal(np.random.default_rng(1), 2, 3, L, D_IN)
    want = np.asarray(transcoder(jnp.asarray(x)))
    assert want.shape == (2, 3, L, D_OUT)
    np.testing.assert_allclose(call(transcoder, x), want, atol=1e-5)
    np.testing.assert_allclose(call(transcoder, x[1, 2]), want[1, 2], atol=1e-5)
    small = jax.tree.map(lambda a: a.astype(jnp.bfloat16), transcoder)
    assert jax.eval_shape(small, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert jax.eval_shape(small, x).dtype == jnp.float32
    assert (transcoder.n_layers, transcoder.d_in, transcoder.n_latents, transcoder.d_out) == (L, D_IN, M, D_OUT)


@pytest.mark.parametrize("activation", [Relu(), TopK(2)])
def test_other_activations_act_on_each_layer(transcoder, activation):
    t = dataclasses.replace(transcoder, activation=activation)
    z = np.asarray(jax.jit(CrossLayerTranscoder.encode)(t, normal(np.random.default_rng(1), 9, L, D_IN)))
    assert (z >= 0).all()
    if isinstance(activation, TopK):
        assert (z > 0).sum(-1).max() == 2


def test_gradients_reach_every_array(transcoder):
    x = normal(np.random.default_rng(1), 32, L, D_IN)
    gradients = jax.jit(jax.grad(lambda t: jnp.sum(t(x) ** 2)))(transcoder)
    for a in jax.tree.leaves((gradients.W_enc, gradients.b_enc, gradients.W_dec, gradients.b_dec)):
        assert np.abs(np.asarray(a)).max() > 0
