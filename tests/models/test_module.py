# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxneuro.models import Transformer, forward, to_linen, token_loss
from jaxneuro.models.module import apply_fn

from .conftest import CONFIGS, random_weights


@pytest.fixture(scope="module")
def expected(llama, tokens):
    return np.asarray(jax.jit(llama.apply)(llama.weights, tokens))


def test_weights_are_the_arrays_themselves():
    weights = random_weights(CONFIGS["llama"])
    model = Transformer(CONFIGS["llama"], weights)
    assert jax.tree.structure(model.weights) == jax.tree.structure(weights)
    assert all(a is b for a, b in zip(jax.tree.leaves(model.weights), jax.tree.leaves(weights), strict=True))


def test_equal_configurations_share_one_function_and_one_compile(llama, tokens):
    other = Transformer(dataclasses.replace(llama.cfg), random_weights(llama.cfg, seed=9))
    assert other.apply is llama.apply
    traces = []

    @jax.jit
    def run(weights, tokens):
        traces.append(1)
        return llama.apply(weights, tokens, stop_at=1)

    run(llama.weights, tokens)
    run(other.weights, tokens)
    assert len(traces) == 1
    assert apply_fn(dataclasses.replace(llama.cfg, act="relu")) is not llama.apply


def test_calling_it_is_the_pure_function(llama, tokens, expected):
    np.testing.assert_allclose(llama(tokens), expected, atol=1e-5)
    mask = jnp.ones_like(tokens, dtype=bool)
    np.testing.assert_array_equal(llama(tokens, mask, stop_at=0), llama.apply(llama.weights, tokens, stop_at=0))


def test_it_goes_through_jit_as_an_argument(llama, tokens, expected):
    np.testing.assert_allclose(jax.jit(lambda model, t: model(t))(llama, tokens), expected, atol=1e-5)


def test_split_merge_state(llama, tokens, expected):
    graph, state = nnx.split(llama)
    run = jax.jit(lambda state, t: nnx.merge(graph, state)(t))
    np.testing.assert_allclose(run(state, tokens), expected, atol=1e-5)
    assert len(jax.tree.leaves(nnx.state(llama, nnx.Param))) == len(jax.tree.leaves(llama.weights))
    zeroed = nnx.merge(graph, jax.tree.map(jnp.zeros_like, state))
    assert not zeroed(tokens, stop_at=1).any()


def test_nnx_optimizer_trains_it(tokens):
    model = Transformer(CONFIGS["llama"], random_weights(CONFIGS["llama"]))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            nll, valid = token_loss(model(tokens), tokens)
            return nll.mean(where=valid)

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(step(model, optimizer)) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]


def test_abstract_models_cost_nothing(llama):
    abstract = jax.eval_shape(lambda w: Transformer(llama.cfg, w), llama.weights)
    assert abstract.weights["embed"]["tok"].shape == (40, 16)


def test_linen_adapter(llama, tokens, expected):
    linen = to_linen(llama.cfg)
    out = jax.jit(linen.apply)({"params": llama.weights}, tokens)
    np.testing.assert_array_equal(out, expected)
    shapes = jax.eval_shape(linen.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.map(lambda a: a.shape, shapes) == jax.tree.map(lambda a: a.shape, llama.weights)
    out = forward(llama.weights, tokens, cfg=llama.cfg, stop_at=1)
    np.testing.assert_allclose(linen.apply({"params": llama.weights}, tokens, stop_at=1), out, atol=1e-5)
