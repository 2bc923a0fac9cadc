# SPDX-License-Identifier: Apache-2.0
"""Crosscoders tell latents of one site from latents of both, whatever the size of the sites' activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries import SparseCoder, TopK, Training, relu
from jaxneuro.dictionaries.crosscoder import crosscoder, relative_norms, site_norms
from jaxneuro.errors import UserError

from .conftest import matched, rows, train

WIDTHS, EACH, STEPS, BATCH = (10, 8), 6, 400, 128
TRUE, N = 3 * EACH, 72  # latents of the first site alone, of the second alone, of both
METHODS = {
    "batch_topk": lambda training: crosscoder(N, 2, WIDTHS, training=training),
    "topk": lambda training: crosscoder(N, 2, WIDTHS, rule="topk", training=training),
    "l1": lambda training: relu(N, 0.3, training=training),
}


@functools.cache
def planted():
    """(x [n, 18], truth [TRUE, 18]): two of the latents per token."""
    rng = np.random.default_rng(2)
    truth = np.concatenate([rows(rng, TRUE, w) for w in WIDTHS], axis=1)
    truth[:EACH, WIDTHS[0] :] = 0
    truth[EACH : 2 * EACH, : WIDTHS[0]] = 0
    n = STEPS * BATCH
    z = np.zeros((n, TRUE), np.float32)
    which = np.argsort(rng.random((n, TRUE)), axis=1)[:, :2]
    np.put_along_axis(z, which, rng.uniform(1, 2, (n, 2)).astype(np.float32), 1)
    return z @ truth, truth


def learned(name, second=1.0):
    """(state, dictionary) where the second site's activations are larger by a factor."""
    size = np.repeat(np.float32([1, second]), WIDTHS)
    training = Training(learning_rate=1e-2, steps=STEPS, warmup_steps=10, widths=WIDTHS, b_dec_start="zeros")
    method = METHODS[name](training)
    state, _ = train(method, {"x": (planted()[0] * size).reshape(STEPS, BATCH, -1)})
    return state, method.finish(state)


@pytest.mark.parametrize("name", METHODS)
def test_exclusive_and_shared_latents_are_told_apart(name):
    truth = planted()[1]
    state, dictionary = learned(name)
    w = np.asarray(dictionary.W_dec) * np.asarray(state.scale_y)
    true = truth * np.asarray(state.scale_y)
    assert np.median(matched(w, true)) > 0.9
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    best = (true / np.linalg.norm(true, axis=1, keepdims=True) @ unit.T).argmax(1)
    share = np.asarray(relative_norms(site_norms(dictionary, WIDTHS, state.scale_y)))[best, 1]
    first, second, both = np.split(share, 3)
    assert np.median(first) < 0.25
    assert np.median(second) > 0.8
    assert (first < 0.35).mean() > 0.8
    assert (second > 0.7).mean() > 0.8
    assert ((both > 0.35) & (both < 0.65)).mean() > 0.8


def test_the_size_of_a_site_does_not_matter():
    """Raw activations of one site a hundred times larger: the same latents, in units of the scaled sites."""
    (a, one), (b, other) = learned("topk"), learned("topk", 128.0)  # a power of two: no rounding
    np.testing.assert_allclose(a.scale_y[-1] / b.scale_y[-1], 128, rtol=1e-6)
    for name, value in a.parameters.items():
        np.testing.assert_allclose(value, b.parameters[name], atol=2e-3, err_msg=name)
    shares = [relative_norms(site_norms(d, WIDTHS, s.scale_y)) for d, s in ((one, a), (other, b))]
    np.testing.assert_allclose(*shares, atol=2e-3)
    x, size = jnp.asarray(planted()[0][:50]), jnp.asarray(np.repeat(np.float32([1, 128]), WIDTHS))[None]
    np.testing.assert_allclose(one.encode(x), other.encode(x * size), atol=1e-2)
    np.testing.assert_allclose(one(x) * size, other(x * size), rtol=1e-2, atol=1)


def test_what_finish_returns_takes_raw_activations():
    x = jnp.asarray(planted()[0][:BATCH] * np.repeat(np.float32([0.01, 30]), WIDTHS))
    method = crosscoder(N, 2, WIDTHS, rule="topk")
    state = method.init(jax.random.key(0), {"x": x})
    dictionary = method.finish(state)
    _, info = jax.jit(method.step)(state, {"x": x})
    y = np.asarray(x * state.scale_y[None])
    error = y - np.asarray(dictionary(x) * state.scale_y[None])
    assert float(info["fvu"]) == pytest.approx(np.square(error).sum() / np.square(y - y.mean(0)).sum(), rel=1e-4)
    sizes = [np.linalg.norm(part, axis=1).mean() for part in np.split(y, [10], axis=1)]
    np.testing.assert_allclose(sizes, np.sqrt(WIDTHS), rtol=1e-5)  # every site is scaled on its own


def test_site_norms_by_hand():
    w = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    d = SparseCoder(W_enc=w.T, W_dec=w, b_enc=jnp.zeros(3), b_dec=jnp.zeros(3), activation=TopK(1))
    norms = site_norms(d, (2, 1), jnp.array([1.0, 1.0, 3.0]))
    assert norms.tolist() == [[5, 0], [0, 0], [1, 3]]
    assert relative_norms(norms).tolist() == [[1, 0], [0, 0], [0.25, 0.75]]
    with pytest.raises(UserError, match=r"widths \(2, 2\) make 4, the decoder writes 3"):
        site_norms(d, (2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "topl"}, "Did you mean 'topk'"),
        ({"widths": (18,)}, "two or more sites"),
        ({"training": Training(widths=(9, 9))}, r"Training.widths = \(9, 9\)"),
        ({"k": 0}, "1 <= k"),
    ],
)
def test_wrong_choices(change, message):
    with pytest.raises(UserError, match=message):
        crosscoder(**({"n_latents": 8, "k": 2, "widths": WIDTHS} | change))


def test_widths_that_do_not_make_up_x():
    with pytest.raises(UserError, match=r"widths \(10, 8\) make 18, but x is \[4, 17\]"):
        crosscoder(8, 2, WIDTHS).init(jax.random.key(0), {"x": jnp.arange(68.0).reshape(4, 17)})
