# SPDX-License-Identifier: Apache-2.0
"""Layers that run again in the backward pass: the same numbers and sites, less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.models import Config, Mamba, forward, init
from jaxneuro.models.remat import POLICIES
from jaxneuro.taps import capture

from .conftest import CONFIGS, SMALL, random_weights

SITE = "blocks.*.mlp.post"


def loss(weights, tokens, cfg, remat):
    return jnp.square(forward(weights, tokens, cfg=cfg, remat=remat)).mean()


@pytest.mark.parametrize("remat", POLICIES)
def test_numbers_and_sites_are_those_without(llama, tokens, remat):
    cfg, weights = llama.cfg, llama.weights
    ours, theirs = (jax.jit(lambda w, r=r: forward(w, tokens, cfg=cfg, remat=r))(weights) for r in (remat, None))
    np.testing.assert_array_equal(ours, theirs)

    def both(remat):
        def fn(weights):
            return jax.value_and_grad(loss)(weights, tokens, cfg, remat)

        return jax.jit(capture(fn, [SITE, f"{SITE}@grad"]))(weights)

    ours, theirs = both(remat), both(None)
    assert ours[1][SITE].shape == (3, *tokens.shape, SMALL["d_mlp"])
    assert jnp.abs(ours[1][f"{SITE}@grad"]).max() > 1e-4
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * max(1, float(jnp.abs(b).max())))


@pytest.mark.usefixtures("this_machine")
def test_memory_falls_from_policy_to_policy(optimised):
    cfg = Config(**{**SMALL, "n_layers": 8, "d_model": 64, "d_mlp": 512})
    weights = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)

    def temporary(remat):
        gradient = jax.jit(jax.grad(loss), static_argnums=(2, 3)).lower(weights, tokens, cfg, remat)
        memory = gradient.compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    everything, dots, block = (temporary(remat) for remat in (None, "dots", "block"))
    wide = 8 * 4 * 64 * 512 * 4  # an array of every neuron of every layer: gate and up of each MLP are such
    assert everything - dots > 2 * wide
    assert dots - block > 1.5 * wide
    assert block < 2 * wide


def test_parts_of_the_stack_take_a_policy_too(llama, tokens):
    def part(weights, remat):
        return jnp.square(llama.apply(weights, tokens, stop_at=2, remat=remat)).mean()

    ours, theirs = (jax.jit(jax.grad(part), static_argnums=1)(llama.weights, r) for r in ("block", None))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * max(1, float(jnp.abs(b).max())), rtol=1e-5)


def test_unknown_policies_are_refused(tokens):
    with pytest.raises(UserError, match=r"forward: no remat policy 'blocks'\. Did you mean 'block'\?"):
        forward(random_weights(CONFIGS["llama"]), tokens, cfg=CONFIGS["llama"], remat="blocks")


def test_a_policy_reaches_layers_with_a_mixer():
    cfg = Config(n_layers=2, d_model=8, d_vocab=32, mixer=Mamba(d_inner=16, d_state=4, dt_rank=1))
    weights, tokens = init(cfg, jax.random.key(0)), jnp.ones((2, 5), jnp.int32)

    def total(weights, remat):
        return jnp.sum(jnp.cos(forward(weights, tokens, cfg=cfg, remat=remat)))

    plain, again = (jax.jit(jax.grad(total), static_argnums=1)(weights, remat) for remat in (None, "block"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="remat policy"):
        forward(weights, tokens, cfg=cfg, remat="blok")
