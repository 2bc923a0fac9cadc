# SPDX-License-Identifier: Apache-2.0
"""KL divergence as a judge: against float64, at counted tokens only, in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries import judges
from jaxneuro.dictionaries.judges import kl_divergence


def logits(seed, shape=(3, 70, 11)):  # 70 positions: one whole chunk and a part
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def on(shape=(3, 70), seed=5):
    mask, counted = np.random.default_rng(seed).random((2, *shape)) < 0.7
    return {"mask": mask, "counted": counted}


def exact(q, p):
    q, p = (a.astype(np.float64) for a in (q, p))
    log_q, log_p = (a - np.log(np.exp(a).sum(-1, keepdims=True)) for a in (q, p))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def test_kl_is_that_of_the_formula_at_counted_real_tokens():
    edited, original, batch = logits(0), logits(1), on()
    kl, n = kl_divergence(jnp.asarray(edited), jnp.asarray(original), batch)
    both = batch["mask"] & batch["counted"]
    np.testing.assert_allclose(kl, (exact(edited, original) * both).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(n, both.sum(1))
    assert n.dtype == jnp.int32
    backwards = kl_divergence(jnp.asarray(original), jnp.asarray(edited), batch)[0]
    assert not np.allclose(kl, backwards, rtol=0.05)  # original || edited, not the other way


def test_kl_of_a_model_with_itself_is_zero_whatever_constant_is_added():
    a = jnp.asarray(logits(0))
    np.testing.assert_allclose(kl_divergence(a + 7, a, on())[0], 0, atol=1e-4)
    np.testing.assert_array_equal(kl_divergence(a, a, on())[0], 0)


def test_words_that_cannot_occur_do_not_count():
    a, b = logits(0), logits(1)
    a[..., 3], b[..., 3] = -np.inf, -np.inf
    keep = np.arange(11) != 3
    batch = on()
    found = kl_divergence(jnp.asarray(a), jnp.asarray(b), batch)[0]
    np.testing.assert_allclose(
        found, (exact(a[..., keep], b[..., keep]) * (batch["mask"] & batch["counted"])).sum(1), rtol=1e-5
    )


@pytest.mark.usefixtures("this_machine")
def test_the_largest_temporary_is_a_few_positions_and_not_the_batch():
    shape = (8, 256, 2048)
    spec = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    flags = jax.ShapeDtypeStruct(shape[:2], jnp.bool_)
    compiled = jax.jit(kl_divergence).lower(spec, spec, {"mask": flags, "counted": flags}).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    whole = 4 * np.prod(shape)
    assert temporary < 0.5 * whole  # one log softmax of the batch in float32 would be all of it


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_do_not_change_it(chunk, monkeypatch):
    a, b, batch = jnp.asarray(logits(0)), jnp.asarray(logits(1)), on()
    whole = kl_divergence(a, b, batch)[0]
    monkeypatch.setattr(judges, "POSITIONS", chunk)
    np.testing.assert_allclose(kl_divergence(a, b, batch)[0], whole, rtol=1e-6)
