# SPDX-License-Identifier: Apache-2.0
"""Reducers against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxneuro.activations import firing_moments
from jaxneuro.activations.reducers import ROWS, _folded, _reduced
from jaxneuro.taps import capture, tap


def reference(mask, x):
    real = x.astype(np.float64)[mask]
    return (real > 0).sum(0), real.sum(0), (real**2).sum(0), real.max(0, initial=-np.inf)


@pytest.mark.parametrize("how", [firing_moments, _folded, _reduced])
@pytest.mark.parametrize("shape", [(3, 50, 7), (1, 1, 2), (2, ROWS, 5)])
def test_against_numpy(how, shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    mask = rng.random(shape[:2]) < 0.7
    x[~mask] = np.nan
    for got, want in zip(jax.jit(how)(mask, x), reference(mask, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_counts_are_exact_integers():
    x = jnp.ones((4, 1000, 2), jnp.bfloat16)
    found = firing_moments(jnp.ones((4, 1000), bool), x)
    assert found.fired.dtype == jnp.int32
    assert found.fired.tolist() == [4000, 4000]
    assert found.total.tolist() == [4000.0, 4000.0], "bfloat16 sums would stop at 256"


def test_as_a_reducer_in_a_scan_and_under_vmap():
    def model(x):
        layer = lambda x, i: (tap(x * 1.5 - 0.2, "blocks.post", layer=i, axes=("batch", "pos", "neuron")), None)  # noqa: E731
        return jax.lax.scan(layer, x, jnp.arange(3))[0]

    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 5, 3)), jnp.float32)
    mask = jnp.arange(5)[None] < jnp.array([[5], [3], [1], [0]])
    one = lambda x: capture(model, {"blocks.post": Partial(firing_moments, mask)})(x)[1]["blocks.post"]  # noqa: E731
    found = jax.jit(jax.vmap(one))(x)
    for b in range(2):
        value = np.asarray(x[b])
        for layer in range(3):
            value = value * 1.5 - 0.2
            for got, want in zip(found, reference(np.asarray(mask), value), strict=True):
                np.testing.assert_allclose(got[b, layer], want, rtol=1e-5, atol=1e-5)
