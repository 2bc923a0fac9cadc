# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxneuro.models import token_loss

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7)), jnp.float32)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 7, (2, 5)), jnp.int32)


def test_it_is_the_cross_entropy_of_the_next_token():
    nll, valid = token_loss(LOGITS, TOKENS)
    expected = optax.softmax_cross_entropy_with_integer_labels(LOGITS[:, :-1], TOKENS[:, 1:])
    np.testing.assert_allclose(nll, expected, rtol=1e-6)
    assert valid.shape == (2, 4)
    assert valid.all()


def test_uniform_logits_cost_log_v():
    nll, _ = token_loss(jnp.zeros((1, 4, 16)), jnp.zeros((1, 4), jnp.int32))
    np.testing.assert_allclose(nll, np.log(16), rtol=1e-6)


def test_both_ends_of_a_prediction_must_be_real():
    mask = jnp.array([[True, True, False, True, True], [False, False, True, True, False]])
    _, valid = token_loss(LOGITS, TOKENS, mask)
    np.testing.assert_array_equal(valid, [[True, False, False, True], [False, False, True, False]])


def test_sixteen_bit_logits_are_summed_in_float32():
    nll, _ = token_loss(LOGITS.astype(jnp.bfloat16), TOKENS)
    assert nll.dtype == jnp.float32
    exact, _ = token_loss(LOGITS.astype(jnp.bfloat16).astype(jnp.float32), TOKENS)
    np.testing.assert_array_equal(nll, exact)


def test_large_logits_do_not_overflow():
    nll, _ = token_loss(1e4 * LOGITS, TOKENS)
    assert jnp.isfinite(nll).all()
    gradient = jax.grad(lambda x: token_loss(x, TOKENS)[0].sum())(1e4 * LOGITS)
    assert jnp.isfinite(gradient).all()
